//! A plugin as it is named on the command line: `name[@weights][:key=value,...]`.

use advae_abi::info::WeightSource;
use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

/// A plugin, its weights and its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSpec {
    /// Name or path of the file.
    pub name: String,
    /// Where its weights come from.
    pub weights: WeightSource,
    /// Inline settings.
    pub config: Map<String, Value>,
    /// Settings in the order they were given, as they were written.
    written: Vec<String>,
}

impl PluginSpec {
    /// Reads `pgd:steps=100,restarts=5`, `model_x.so@clean` or `advae.so@/path/weights.safetensors:key=value`.
    ///
    /// Values are JSON scalars or `[lists]`; what is neither is a string.
    ///
    /// # Errors
    /// Where a name, a key or a value is missing, or a key comes twice.
    pub fn parse(text: &str) -> Result<Self> {
        let (head, settings) = text.split_once(':').unwrap_or((text, ""));
        let (name, weights) = match head.split_once('@') {
            Some((name, "")) => {
                bail!("'{text}' names no weights after '@': write {name}@SET or {name}@FILE.safetensors")
            }
            Some((name, weights)) => (name, weight_source(weights)),
            None => (head, WeightSource::Default),
        };
        ensure!(
            !name.is_empty(),
            "'{text}' names no plugin: write NAME, NAME@WEIGHTS or NAME:key=value"
        );
        let mut spec = Self {
            name: name.into(),
            weights,
            config: Map::new(),
            written: vec![],
        };
        for part in split_outside_brackets(settings) {
            spec.read_setting(part, text)?;
        }
        Ok(spec)
    }

    /// The plugin of that name with all defaults.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            weights: WeightSource::Default,
            config: Map::new(),
            written: vec![],
        }
    }

    /// Settings in the order they were given, `key=value` each, as they were written.
    pub fn written(&self) -> &[String] {
        &self.written
    }

    /// Short and stable name for tables: `pgd steps=100 restarts=5`, `model_x@clean`.
    pub fn label(&self) -> String {
        let file = self.name.rsplit('/').next().unwrap_or(&self.name);
        let stem = file.strip_suffix(".so").unwrap_or(file);
        let mut label = stem.strip_prefix("lib").unwrap_or(stem).to_string();
        match &self.weights {
            WeightSource::Default => {}
            WeightSource::Set(set) => label += &format!("@{set}"),
            WeightSource::Path(path) => label += &format!("@{}", path.rsplit('/').next().unwrap_or(path)),
            WeightSource::Init(seed) => label += &format!("@init:{seed}"),
        }
        self.written.iter().for_each(|setting| label += &format!(" {setting}"));
        label
    }

    fn read_setting(&mut self, part: &str, text: &str) -> Result<()> {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() && !value.trim().is_empty() => (key.trim(), value.trim()),
            _ => bail!("'{part}' in '{text}' is no setting: write key=value"),
        };
        ensure!(
            self.config.insert(key.into(), scalar(value)).is_none(),
            "'{text}' sets '{key}' twice: keep one"
        );
        self.written.push(format!("{key}={value}"));
        Ok(())
    }
}

fn weight_source(text: &str) -> WeightSource {
    match text.contains('/') || text.ends_with(".safetensors") {
        true => WeightSource::Path(text.into()),
        false => WeightSource::Set(text.into()),
    }
}

fn scalar(text: &str) -> Value {
    if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return split_outside_brackets(list)
            .into_iter()
            .map(|item| scalar(item.trim()))
            .collect();
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(_)) | Err(_) => Value::String(text.into()),
        Ok(value) => value,
    }
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (vec![], 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    if !text.is_empty() {
        parts.push(&text[start..]);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_are_scalars_strings_and_lists() {
        let spec =
            PluginSpec::parse("pgd:steps=100,step_size=0.01,norm=l2,targets=[1,2,x],random_start=false").unwrap();
        let expected =
            json!({"steps": 100, "step_size": 0.01, "norm": "l2", "targets": [1, 2, "x"], "random_start": false});
        assert_eq!(Value::Object(spec.config.clone()), expected);
        assert_eq!(
            spec.label(),
            "pgd steps=100 step_size=0.01 norm=l2 targets=[1,2,x] random_start=false"
        );
    }

    #[test]
    fn weights_are_a_set_or_a_file() {
        assert_eq!(
            PluginSpec::parse("model_x.so@clean").unwrap().weights,
            WeightSource::Set("clean".into())
        );
        let spec = PluginSpec::parse("lib/libadvae.so@/w/plus.safetensors:depth=2").unwrap();
        assert_eq!(spec.weights, WeightSource::Path("/w/plus.safetensors".into()));
        assert_eq!(
            (spec.name.as_str(), spec.label().as_str()),
            ("lib/libadvae.so", "advae@plus.safetensors depth=2")
        );
    }

    #[test]
    fn what_is_no_spec_is_refused() {
        for text in [
            "",
            ":steps=1",
            "pgd:steps",
            "pgd:=1",
            "pgd:steps=",
            "pgd:steps=1,steps=2",
            "model_x@",
        ] {
            assert!(PluginSpec::parse(text).is_err(), "{text}");
        }
    }
}
