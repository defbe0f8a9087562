//! `plugins`: what is found, and what it can be told.

use crate::isolation::SandboxArgs;
use crate::plugin::{Found, Inspected, Plugin, scan, search_dirs};
use crate::terminal::console;
use advae_abi::info::{Kind, Manifest, Setting};
use anyhow::Result;
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use std::path::{Path, PathBuf};

/// Flags of `plugins`.
#[derive(Args, Clone, Debug, Default)]
pub struct PluginsArgs {
    /// Plugins to load and show with their settings: names or paths; if none is given, all plugins that are found are listed from
    /// the information in their files, and none is loaded
    #[arg(value_name = "PLUGIN")]
    plugins: Vec<String>,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    pub isolation: SandboxArgs,
}

/// Lists every plugin of the searched folders without loading it, or shows the settings of those that are named.
///
/// # Errors
/// Where a named plugin does not load, or the list cannot be printed.
pub fn run(args: PluginsArgs) -> Result<i32> {
    let text = match args.plugins.is_empty() {
        true => listing(scan()),
        false => {
            let load = |name: &String| Ok(with_settings(&Plugin::find_any(name)?));
            args.plugins.iter().map(load).collect::<Result<String>>()?
        }
    };
    console::print(&text)?;
    Ok(0)
}

fn listing(found: Vec<Found>) -> String {
    let (mut whole, mut broken): (Vec<Inspected>, Vec<(PathBuf, String)>) = (vec![], vec![]);
    for Found { path, inspected } in found {
        match inspected.and_then(|inspected| inspected.check().map(|()| inspected)) {
            Ok(inspected) => whole.push(inspected),
            Err(error) => broken.push((path, console::one_line(&error))),
        }
    }
    whole.sort_by_key(|plugin| (plugin.manifest.kind, plugin.manifest.name.clone()));
    let mut out: String = whole
        .iter()
        .map(|plugin| head(&plugin.path, &plugin.manifest))
        .collect();
    for (path, reason) in &broken {
        out += &format!("broken: {}: {reason}\n", path.display());
    }
    if whole.is_empty() && broken.is_empty() {
        let dirs: Vec<String> = search_dirs().iter().map(|dir| dir.display().to_string()).collect();
        return format!("no plugins in {}: set ADVAE_PLUGIN_PATH\n", dirs.join(", "));
    }
    out + "None of them was loaded. The settings of one: advae-host plugins NAME\n"
}

fn with_settings(plugin: &Plugin) -> String {
    let mut out = head(&plugin.path, &plugin.manifest);
    let mut lines = |text: &[String]| text.iter().for_each(|line| out.extend([line, "\n"]));
    lines(&settings(&plugin.description.settings));
    if !plugin.description.own.is_empty() {
        lines(&["  objective of its own in training:".into()]);
        lines(&settings(&plugin.description.own));
    }
    out
}

fn head(path: &Path, manifest: &Manifest) -> String {
    let cuda = if manifest.cuda { ", cuda" } else { "" };
    let kinds: Vec<String> = [manifest.kind]
        .iter()
        .chain(&manifest.also)
        .map(Kind::to_string)
        .collect();
    let mut out = format!(
        "{} {} {} (contract {}, sdk {}, {}{cuda})\n  {}\n",
        kinds.join(" and "),
        manifest.name,
        manifest.version,
        manifest.contract,
        manifest.sdk,
        manifest.rustc,
        path.display()
    );
    if !manifest.weight_sets.is_empty() {
        let sets = manifest.weight_sets.join(", ");
        out += &format!("  weight sets: {sets} (the first is the default)\n");
    }
    out
}

fn settings(settings: &[Setting]) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for setting in settings {
        table.add_row([
            format!("   {} = {}", setting.name, setting.default),
            setting.help.clone(),
        ]);
    }
    table
        .lines()
        .map(|line| line.trim_end().to_string())
        .filter(|line| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_stand_in_columns() {
        let setting = |name: &str, default, help: &str| Setting {
            name: name.into(),
            default,
            help: help.into(),
            file: false,
        };
        let list = [
            setting("steps", json!(40), "iterations"),
            setting("random_start", json!(true), "start in the ball"),
        ];
        let text = settings(&list).join("\n");
        assert_eq!(
            text,
            "    steps = 40           iterations\n    random_start = true  start in the ball"
        );
    }
}
