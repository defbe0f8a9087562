//! `doctor`: measures whether a plugin keeps the contract, before anybody believes its figures.

mod attack;
mod checklist;
mod differences;
mod gradient;
mod lending;
mod memory;
mod model;
mod patient;
pub(crate) mod sample;
mod saturation;
mod settings;
mod threat;
mod toy;
mod training;

use crate::experiment::check_device;
use crate::isolation::SandboxArgs;
use crate::plugin::{Plugin, PluginSpec, find, inspect};
use crate::terminal::console;
use crate::terminal::exit::EXIT_FAILED;
use crate::wire::construct::{Wanted, request};
use advae_abi::info::Kind;
use anyhow::Result;
use checklist::{Checklist, Finding};
use clap::Args;
use patient::Patient;

/// Flags of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Plugin as FILE[@WEIGHTS][:key=value,...]
    plugin: String,
    /// Device that runs the models: `cpu` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Kind to examine if the plugin is both a classifier and a purifier; if left out, the plugin's first kind
    #[arg(long)]
    kind: Option<Examined>,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    pub isolation: SandboxArgs,
}

/// Kind to examine if a file holds both.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Examined {
    Classifier,
    Purifier,
}

impl From<Examined> for Kind {
    fn from(examined: Examined) -> Kind {
        match examined {
            Examined::Classifier => Kind::Classifier,
            Examined::Purifier => Kind::Purifier,
        }
    }
}

/// Examines a plugin and prints a checklist. Returns the exit code: 2 where anything failed.
///
/// # Errors
/// Where the plugin is not found, or nothing can be printed.
pub fn run(args: DoctorArgs) -> Result<i32> {
    check_device(&args.device)?;
    let spec = PluginSpec::parse(&args.plugin)?;
    let mut list = Checklist::default();
    if let Some(plugin) = open(&mut list, &spec, args.kind.map(Into::into))? {
        let kind = args.kind.map_or(plugin.manifest.kind, Into::into);
        plugin.expect_kind(kind)?;
        let wanted = Wanted {
            device: &args.device,
            ..Wanted::on_cpu(kind)
        };
        let (request, _) = request(&plugin, &spec, &wanted)?;
        examine(&mut list, &Patient { plugin, request })?;
    }
    console::print(&list.summary())?;
    Ok(if list.failed() { EXIT_FAILED } else { 0 })
}

fn open(list: &mut Checklist, spec: &PluginSpec, asked: Option<Kind>) -> Result<Option<Plugin>> {
    let path = find(&spec.name)?;
    list.check("file", || {
        let manifest = inspect(&path)?.manifest;
        Ok(Finding::Pass(format!(
            "{} '{}' {}, sdk {}, {}",
            asked.unwrap_or(manifest.kind),
            manifest.name,
            manifest.version,
            manifest.sdk,
            manifest.rustc
        )))
    })?;
    if list.failed() {
        return Ok(None);
    }
    let mut plugin = None;
    list.check("contract", || {
        let opened = plugin.insert(Plugin::open(&path)?);
        let contract = &opened.manifest.contract;
        Ok(Finding::Pass(format!(
            "version {contract}, layout as this host knows it"
        )))
    })?;
    Ok(plugin)
}

fn examine(list: &mut Checklist, patient: &Patient) -> Result<()> {
    settings::examine(list, patient)?;
    if list.failed() {
        return Ok(());
    }
    match patient.kind() {
        Kind::Classifier | Kind::Purifier => {
            if !model::examine(list, patient)? {
                return Ok(());
            }
            gradient::examine(list, patient)?;
            training::examine(list, patient)
        }
        Kind::Attack => attack::examine(list, patient),
        Kind::ThreatModel => threat::examine(list, patient),
    }
}
