//! Names in tables. A cell is identified by its key; labels are for eyes, and no two that look alike mean two things.

use crate::results::{CellHeader, ModelConfig, Named, PluginConfig};
use advae_abi::info::MAP;
use std::collections::{BTreeMap, BTreeSet};

/// Label of a classifier without a purifier.
pub const NONE: &str = "none";

/// Labels of one cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// Classifier.
    pub classifier: String,
    /// Purifier, or `none`.
    pub purifier: String,
    /// Threat model.
    pub threat_model: String,
    /// Attack, as it is given to `--attack`.
    pub attack: String,
}

/// Something with a name, and what tells it from others of that name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Thing {
    named: Named,
    identity: String,
    /// What to say beside the name where others have the same; empty: nothing.
    apart: String,
}

/// Labels of cells that are shown together: the shortest by which they differ.
pub fn labels(headers: &[&CellHeader]) -> Vec<Labels> {
    let kinds: [fn(&CellHeader) -> Option<Thing>; 4] = [classifier, purifier, threat_model, attack];
    let [classifiers, purifiers, threat_models, attacks] =
        kinds.map(|kind| distinct(headers.iter().filter_map(|header| kind(header)).collect()));
    let find = |known: &BTreeMap<Thing, String>, thing: Option<Thing>| {
        thing
            .and_then(|thing| known.get(&thing).cloned())
            .unwrap_or_else(|| NONE.into())
    };
    let of = |header: &&CellHeader| Labels {
        classifier: find(&classifiers, classifier(header)),
        purifier: find(&purifiers, purifier(header)),
        threat_model: find(&threat_models, threat_model(header)),
        attack: find(&attacks, attack(header)),
    };
    headers.iter().map(of).collect()
}

fn classifier(header: &CellHeader) -> Option<Thing> {
    Some(model(header.classifier.clone(), &header.config.classifier))
}

fn purifier(header: &CellHeader) -> Option<Thing> {
    Some(model(header.purifier.clone()?, header.config.purifier.as_ref()?))
}

fn model(named: Named, config: &ModelConfig) -> Thing {
    Thing {
        named,
        identity: format!("{} {} {}", contents(&config.plugin), config.weights, config.device),
        apart: String::new(),
    }
}

fn threat_model(header: &CellHeader) -> Option<Thing> {
    let origin = header.crafted_on.clone().unwrap_or_default();
    Some(Thing {
        named: header.threat_model.clone(),
        // Of a transfer all that matters is from where.
        identity: match &header.crafted_on {
            Some(origin) => origin.clone(),
            None => contents(&header.config.threat_model),
        },
        apart: origin,
    })
}

fn attack(header: &CellHeader) -> Option<Thing> {
    let images = header.config.images_sha256.clone().unwrap_or_default();
    Some(Thing {
        named: header.attack.clone(),
        identity: format!("{} {images}", contents(&header.config.attack)),
        apart: String::new(),
    })
}

/// Hashes of a plugin's file and of those that its settings name.
fn contents(plugin: &PluginConfig) -> String {
    let files = plugin
        .files
        .iter()
        .map(|(setting, sha256)| format!(" {setting} {sha256}"));
    plugin.sha256.clone() + &files.collect::<String>()
}

/// A label for each thing.
fn distinct(things: BTreeSet<Thing>) -> BTreeMap<Thing, String> {
    let mut alike: BTreeMap<String, Vec<&Thing>> = BTreeMap::new();
    for thing in &things {
        alike.entry(label(&thing.named, 1)).or_default().push(thing);
    }
    let mut labels = BTreeMap::new();
    for group in alike.values() {
        for (thing, label) in group.iter().zip(told_apart(group)) {
            labels.insert((*thing).clone(), label);
        }
    }
    labels
}

/// Longer parts of paths until all differ; where no path does, a piece of what identifies them.
fn told_apart(group: &[&Thing]) -> Vec<String> {
    let longest = group.iter().map(|thing| depth(&thing.named)).max().unwrap_or(1);
    let at = |parts: usize| group.iter().map(|thing| label(&thing.named, parts)).collect::<Vec<_>>();
    let differ = |labels: &Vec<String>| labels.iter().collect::<BTreeSet<_>>().len() == labels.len();
    if let Some(labels) = (1..=longest).map(at).find(differ) {
        return labels;
    }
    let apart: Vec<String> = group
        .iter()
        .filter(|thing| !thing.apart.is_empty())
        .map(|thing| format!("{} from {}", label(&thing.named, longest), thing.apart))
        .collect();
    if apart.len() == group.len() && differ(&apart) {
        return apart;
    }
    let numbered = group.iter().enumerate();
    numbered
        .map(|(i, thing)| format!("{} #{}", label(&thing.named, longest), i + 1))
        .collect()
}

fn depth(named: &Named) -> usize {
    let parts = |path: &str| path.split('/').count();
    let settings = named
        .settings
        .iter()
        .filter_map(|setting| path_of(setting))
        .map(|(_, path)| parts(path));
    (settings.max().unwrap_or(1))
        .max(parts(&named.plugin))
        .max(named.weights.as_deref().map_or(1, parts))
}

/// `advae@plus:key=value`, with that many last parts of each path.
fn label(named: &Named, parts: usize) -> String {
    let mut label = library(&last(&named.plugin, parts));
    if let Some(weights) = &named.weights {
        let files: Vec<String> = weights.split(MAP).map(|path| last(path, parts)).collect();
        label += &format!("@{}", files.join(MAP));
    }
    if !named.settings.is_empty() {
        let settings: Vec<String> = named.settings.iter().map(|setting| short(setting, parts)).collect();
        label += &format!(":{}", settings.join(","));
    }
    label
}

/// `model=a/b/net.onnx` with that many last parts of the path.
fn short(setting: &str, parts: usize) -> String {
    match path_of(setting) {
        Some((key, path)) => format!("{key}={}", last(path, parts)),
        None => setting.into(),
    }
}

/// The key and the path of a setting that is one; `epsilon=8/255` and lists are none.
fn path_of(setting: &str) -> Option<(&str, &str)> {
    let (key, value) = setting.split_once('=')?;
    let number = |part: &str| part.trim().parse::<f64>().is_ok();
    let path = value.contains('/') && !value.starts_with('[') && !value.split('/').all(number);
    path.then(|| (key, value.trim_matches('"')))
}

fn last(path: &str, parts: usize) -> String {
    let all: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    all[all.len().saturating_sub(parts)..].join("/")
}

/// `a/libadvae.so` is shown as `a/advae`.
fn library(path: &str) -> String {
    let (folder, file) = path
        .rsplit_once('/')
        .map_or(("", path), |(folder, file)| (folder, file));
    let stem = file.strip_suffix(".so").unwrap_or(file);
    let stem = stem.strip_prefix("lib").unwrap_or(stem);
    if folder.is_empty() {
        stem.into()
    } else {
        format!("{folder}/{stem}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(plugin: &str, weights: Option<&str>, identity: &str) -> Thing {
        Thing {
            named: Named {
                plugin: plugin.into(),
                weights: weights.map(String::from),
                settings: vec![],
            },
            identity: identity.into(),
            apart: String::new(),
        }
    }

    fn shown(things: &[Thing]) -> Vec<String> {
        let labels = distinct(things.iter().cloned().collect());
        things.iter().map(|thing| labels[thing].clone()).collect()
    }

    #[test]
    fn a_label_is_short_and_a_spec() {
        let mut pgd = thing("lib/libpgd.so", None, "1");
        pgd.named.settings = vec!["steps=10".into(), "restarts=2".into()];
        assert_eq!(shown(&[pgd]), ["pgd:steps=10,restarts=2"]);
        assert_eq!(
            shown(&[thing("advae.so", Some("w/plus.safetensors"), "1")]),
            ["advae@plus.safetensors"]
        );
    }

    #[test]
    fn paths_in_settings_are_shortened_as_those_of_weights_are() {
        let onnx = |settings: &[&str], identity: &str| {
            let mut thing = thing("onnx", None, identity);
            thing.named.settings = settings.iter().map(|s| s.to_string()).collect();
            thing
        };
        let all = ["model=/long/way/net.onnx", "std=1/255", "mean=[1/2,1/3]"];
        assert_eq!(
            shown(&[onnx(&all, "1")]),
            ["onnx:model=net.onnx,std=1/255,mean=[1/2,1/3]"]
        );
        assert_eq!(
            shown(&[onnx(&["model=/a/net.onnx"], "1"), onnx(&["model=\"/b/net.onnx\""], "2")]),
            ["onnx:model=a/net.onnx", "onnx:model=b/net.onnx"]
        );
        let same = onnx(&["model=/a/net.onnx"], "1");
        let changed = Thing {
            identity: "2".into(),
            ..same.clone()
        };
        assert_eq!(
            shown(&[same, changed]),
            ["onnx:model=a/net.onnx #1", "onnx:model=a/net.onnx #2"]
        );
    }

    #[test]
    fn files_of_one_name_are_told_apart_by_the_shortest_part_of_their_paths() {
        let weights = [
            thing("advae", Some("runs/a/weights.safetensors"), "1"),
            thing("advae", Some("runs/b/weights.safetensors"), "2"),
        ];
        assert_eq!(
            shown(&weights),
            ["advae@a/weights.safetensors", "advae@b/weights.safetensors"]
        );
        let files = [thing("x/a/libnet.so", None, "1"), thing("x/b/libnet.so", None, "2")];
        assert_eq!(shown(&files), ["a/net", "b/net"]);
    }

    #[test]
    fn transfers_are_told_apart_by_where_they_come_from() {
        let from = |origin: &str| Thing {
            apart: origin.into(),
            ..thing("transfer", None, origin)
        };
        assert_eq!(shown(&[from("a, white_box")]), ["transfer"]);
        assert_eq!(
            shown(&[from("a, white_box"), from("b + c, white_box")]),
            ["transfer from a, white_box", "transfer from b + c, white_box"]
        );
    }

    #[test]
    fn one_path_with_two_contents_is_numbered() {
        let files = [thing("a/libnet.so", None, "1"), thing("a/libnet.so", None, "2")];
        assert_eq!(shown(&files), ["a/net #1", "a/net #2"]);
    }
}
