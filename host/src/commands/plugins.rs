//! `plugins`: what is found, and what it can be told.

use crate::plugin::{Found, Inspected, Plugin, scan, search_dirs};
use crate::terminal::console;
use advae_abi::info::Setting;
use anyhow::Result;
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use std::path::PathBuf;

/// Flags of `plugins`.
#[derive(Args, Clone, Debug, Default)]
pub struct PluginsArgs {}

/// Lists every plugin of the searched folders.
///
/// # Errors
/// Where the list cannot be printed.
pub fn run(_: PluginsArgs) -> Result<i32> {
    let (mut whole, mut broken) = (vec![], vec![]);
    for Found { path, inspected } in scan() {
        match inspected.and_then(|inspected| Ok((Plugin::open(&path)?, inspected))) {
            Ok(found) => whole.push(found),
            Err(error) => broken.push((path, console::one_line(&error))),
        }
    }
    whole.sort_by_key(|(plugin, _)| (plugin.manifest.kind, plugin.manifest.name.clone()));
    console::print(&render(&whole, &broken))?;
    Ok(0)
}

fn render(whole: &[(Plugin, Inspected)], broken: &[(PathBuf, String)]) -> String {
    let mut out = String::new();
    let mut line = |text: &str| out.extend([text, "\n"]);
    for (plugin, inspected) in whole {
        line(&title(inspected));
        line(&format!("  {}", plugin.path.display()));
        if !inspected.manifest.weight_sets.is_empty() {
            line(&format!(
                "  weight sets: {} (the first is the default)",
                inspected.manifest.weight_sets.join(", ")
            ));
        }
        settings(&plugin.description.settings)
            .iter()
            .for_each(|text| line(text));
        if !plugin.description.own.is_empty() {
            line("  objective of its own in training:");
            settings(&plugin.description.own).iter().for_each(|text| line(text));
        }
    }
    for (path, reason) in broken {
        line(&format!("broken: {}: {reason}", path.display()));
    }
    if whole.is_empty() && broken.is_empty() {
        let dirs: Vec<String> = search_dirs().iter().map(|dir| dir.display().to_string()).collect();
        line(&format!("no plugins in {}: set ADVAE_PLUGIN_PATH", dirs.join(", ")));
    }
    out
}

fn title(inspected: &Inspected) -> String {
    let manifest = &inspected.manifest;
    let cuda = if manifest.cuda { ", cuda" } else { "" };
    format!(
        "{} {} {} (contract {}, sdk {}, {}{cuda})",
        manifest.kind, manifest.name, manifest.version, manifest.contract, manifest.sdk, manifest.rustc
    )
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
