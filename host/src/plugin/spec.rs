//! A plugin as it is named on the command line: `name[@weights][:key=value,...]`.

use super::number::fraction;
use advae_abi::info::{MAP, WeightSource};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::fmt::{self, Display};
use std::path::Path;

/// A plugin, its weights and its settings. Prints itself as a text that [`parse`](Self::parse) reads as the same spec.
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
    /// Reads `pgd:steps=100,epsilon=8/255`, `model_x.so@clean` or `advae.so@/path/weights.safetensors:key=value`.
    ///
    /// - The name ends at the first `:` or `@`, the weights end at the first `:`. A path that holds such characters is taken whole
    ///   where the file exists: of all ways to cut the text, the one with the longest existing file wins. Or it is quoted, as a
    ///   JSON string: `"a:b/libnet.so"@"w@2.safetensors":key=value`.
    /// - Weights are a set of the plugin, a file (with a `/`, or `.safetensors`, `.pth` or `.pt` at the end), or `init:SEED`, a seeded initialisation.
    /// - `step-size` is the same key as `step_size`.
    /// - Values are JSON scalars, fractions such as `8/255` or `[lists]`; what is none of them is a string, and so is what stands in `"`.
    ///
    /// # Errors
    /// Where a name, a key or a value is missing, a key comes twice, or a fraction is not finite.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, rest) = split_name(text)?;
        ensure!(
            !name.is_empty(),
            "'{text}' names no plugin: write NAME, NAME@WEIGHTS or NAME:key=value"
        );
        let (weights, settings) = match rest.strip_prefix('@') {
            Some(rest) => split_weights(text, &name, rest)?,
            None => (WeightSource::Default, rest),
        };
        let mut spec = Self {
            weights,
            ..Self::named(&name)
        };
        let Some(settings) = settings.strip_prefix(':') else {
            ensure!(
                settings.is_empty(),
                "'{text}' goes on with '{settings}' where '@' or ':' is expected"
            );
            return Ok(spec);
        };
        for part in split_list(settings) {
            spec.read_setting(part, text)?;
        }
        Ok(spec)
    }

    /// The plugin of that name or path with all defaults.
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

    /// The plugin of that name with these weights and settings, as a record has them.
    pub fn new(name: &str, weights: WeightSource, config: Map<String, Value>) -> Self {
        let written = config
            .iter()
            .map(|(key, value)| format!("{key}={}", write(value)))
            .collect();
        Self {
            weights,
            config,
            written,
            ..Self::named(name)
        }
    }

    /// The spec without the folders of its files, for messages and pictures: `pgd:steps=100,restarts=5`, `model_x@clean`.
    pub fn label(&self) -> String {
        let file = self.name.rsplit('/').next().unwrap_or(&self.name);
        let stem = file.strip_suffix(".so").unwrap_or(file);
        let mut label = stem.strip_prefix("lib").unwrap_or(stem).to_string();
        match &self.weights {
            WeightSource::Default => {}
            WeightSource::Set(set) => label += &format!("@{set}"),
            WeightSource::Path(path) => {
                let files = path.split(MAP).map(|path| path.rsplit('/').next().unwrap_or(path));
                label += &format!("@{}", files.collect::<Vec<_>>().join(MAP));
            }
            WeightSource::Init(seed) => label += &format!("@init:{seed}"),
        }
        let colon = if self.written.is_empty() { "" } else { ":" };
        label + colon + &self.written.join(",")
    }

    fn read_setting(&mut self, part: &str, text: &str) -> Result<()> {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() && !value.trim().is_empty() => (key.trim(), value.trim()),
            _ => bail!("'{part}' in '{text}' is no setting: write key=value"),
        };
        let key = key.replace('-', "_");
        let parsed = scalar(value).with_context(|| format!("'{key}' in '{text}'"))?;
        self.written.push(format!("{key}={value}"));
        ensure!(
            self.config.insert(key.clone(), parsed).is_none(),
            "'{text}' sets '{key}' twice: keep one"
        );
        Ok(())
    }
}

impl Display for PluginSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted_path(&self.name))?;
        match &self.weights {
            WeightSource::Default => {}
            WeightSource::Set(set) => write!(f, "@{set}")?,
            WeightSource::Path(path) => write!(f, "@{}", quoted_path(path))?,
            WeightSource::Init(seed) => write!(f, "@{INIT}{seed}")?,
        }
        let colon = if self.written.is_empty() { "" } else { ":" };
        write!(f, "{colon}{}", self.written.join(","))
    }
}

/// What a seed follows in `model_x@init:3`.
const INIT: &str = "init:";

/// The name, and what follows it.
fn split_name(text: &str) -> Result<(String, &str)> {
    if let Some(split) = split_quoted(text)? {
        return Ok(split);
    }
    let ends = || ends(text, [':', '@']);
    let file = ends()
        .rev()
        .find(|end| text[..*end].contains('/') && is_file(&text[..*end]));
    let end = file.or_else(|| ends().next()).unwrap_or(text.len());
    Ok((text[..end].into(), &text[end..]))
}

/// The weights at the beginning of `rest`, and what follows them.
fn split_weights<'a>(text: &str, name: &str, rest: &'a str) -> Result<(WeightSource, &'a str)> {
    if let Some((path, rest)) = split_quoted(rest)? {
        return Ok((WeightSource::Path(path), rest));
    }
    if let Some(init) = rest.strip_prefix(INIT) {
        let (seed, rest) = init.split_at(init.find(':').unwrap_or(init.len()));
        let seed = (seed.parse()).with_context(|| format!("'{seed}' in '{text}' is no seed: write {name}@init:0"))?;
        return Ok((WeightSource::Init(seed), rest));
    }
    let ends = || ends(rest, [':', ':']);
    let file = ends()
        .rev()
        .find(|end| is_path(&rest[..*end]) && is_file(&rest[..*end]));
    let end = file.or_else(|| ends().next()).unwrap_or(rest.len());
    let (weights, rest) = rest.split_at(end);
    ensure!(
        !weights.is_empty(),
        "'{text}' names no weights after '@': write {name}@SET or {name}@FILE.safetensors"
    );
    Ok(match is_path(weights) {
        true => (WeightSource::Path(weights.into()), rest),
        false => (WeightSource::Set(weights.into()), rest),
    })
}

/// A JSON string at the beginning, and what follows it; absent where the text does not begin with a quotation mark.
fn split_quoted(text: &str) -> Result<Option<(String, &str)>> {
    if !text.starts_with('"') {
        return Ok(None);
    }
    let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match strings.next() {
        Some(Ok(quoted)) => Ok(Some((quoted, &text[strings.byte_offset()..]))),
        _ => bail!(
            "{text} begins a quoted path that does not end: write \"PATH\", with \\\" for a quotation mark inside"
        ),
    }
}

/// Where a part of the text may end: at these characters, or with the text.
fn ends(text: &str, separators: [char; 2]) -> impl DoubleEndedIterator<Item = usize> {
    let inside = text.match_indices(separators).map(|(at, _)| at);
    inside.chain([text.len()]).collect::<Vec<_>>().into_iter()
}

fn is_file(text: &str) -> bool {
    let text = text.split(MAP).next().unwrap_or(text);
    // Anything but a folder: a pipe of the shell holds weights as well.
    Path::new(text).metadata().is_ok_and(|found| !found.is_dir())
}

fn is_path(weights: &str) -> bool {
    let weights = weights.split(MAP).next().unwrap_or(weights);
    weights.contains('/') || [".safetensors", ".pth", ".pt"].iter().any(|end| weights.ends_with(end))
}

/// Quoted where it could be cut elsewhere.
pub fn quoted_path(path: &str) -> String {
    match path.contains([':', '@', '"']) {
        true => Value::from(path).to_string(),
        false => path.into(),
    }
}

fn scalar(text: &str) -> Result<Value> {
    if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return split_list(list).into_iter().map(|item| scalar(item.trim())).collect();
    }
    if let Some(quotient) = fraction(text) {
        return quotient.map(Value::from);
    }
    Ok(match serde_json::from_str(text) {
        Ok(Value::Object(_)) | Err(_) => Value::String(text.into()),
        Ok(value) => value,
    })
}

/// The value as a text that [`scalar`] reads as the same value.
fn write(value: &Value) -> String {
    match value {
        Value::String(text) if reads_back(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(write).collect::<Vec<_>>().join(",")),
        value => value.to_string(),
    }
}

/// Whether this text without quotation marks is read as itself.
fn reads_back(text: &str) -> bool {
    let plain = !text.is_empty() && text.trim() == text && !text.contains([',', '[', ']', '"']);
    plain && scalar(text).is_ok_and(|value| value.as_str() == Some(text))
}

/// Splits at commas, but for those in brackets or in quotation marks.
fn split_list(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (vec![], 0, 0);
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
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

    fn parse(text: &str) -> PluginSpec {
        PluginSpec::parse(text).unwrap()
    }

    #[test]
    fn settings_are_scalars_strings_and_lists() {
        let spec = parse("pgd:steps=100,step_size=0.01,norm=l2,targets=[1,2,x],random_start=false");
        let expected =
            json!({"steps": 100, "step_size": 0.01, "norm": "l2", "targets": [1, 2, "x"], "random_start": false});
        assert_eq!(Value::Object(spec.config.clone()), expected);
        assert_eq!(
            spec.label(),
            "pgd:steps=100,step_size=0.01,norm=l2,targets=[1,2,x],random_start=false"
        );
    }

    #[test]
    fn a_fraction_is_a_number_and_is_shown_as_it_was_written() {
        let spec = parse("pgd:epsilon=8/255,step_size=2/255,schedule=[1/2,1],file=a/b");
        let expected = json!({"epsilon": 8. / 255., "step_size": 2. / 255., "schedule": [0.5, 1], "file": "a/b"});
        assert_eq!(Value::Object(spec.config.clone()), expected);
        assert_eq!(
            spec.label(),
            "pgd:epsilon=8/255,step_size=2/255,schedule=[1/2,1],file=a/b"
        );
        let error = PluginSpec::parse("pgd:epsilon=8/0").unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "'epsilon' in 'pgd:epsilon=8/0': '8/0' is no finite number: its denominator is 0"
        );
    }

    #[test]
    fn a_key_may_be_written_with_hyphens() {
        let spec = parse("pgd:step-size=0.1,random-start=false");
        assert_eq!(
            Value::Object(spec.config.clone()),
            json!({"step_size": 0.1, "random_start": false})
        );
        assert_eq!(spec.to_string(), "pgd:step_size=0.1,random_start=false");
        let error = PluginSpec::parse("pgd:step-size=1,step_size=2")
            .unwrap_err()
            .to_string();
        assert!(error.contains("sets 'step_size' twice"), "{error}");
    }

    #[test]
    fn weights_are_a_set_or_a_file_or_a_seed() {
        assert_eq!(parse("model_x.so@clean").weights, WeightSource::Set("clean".into()));
        let spec = parse("lib/libadvae.so@/w/plus.safetensors:depth=2");
        assert_eq!(spec.weights, WeightSource::Path("/w/plus.safetensors".into()));
        assert_eq!(
            (spec.name.as_str(), spec.label().as_str()),
            ("lib/libadvae.so", "advae@plus.safetensors:depth=2")
        );
        let spec = parse("model_x@init:3:depth=2");
        assert_eq!((spec.weights, spec.config.len()), (WeightSource::Init(3), 1));
    }

    #[test]
    fn what_is_no_spec_is_refused() {
        for text in [
            "",
            ":steps=1",
            "@clean",
            "pgd:steps",
            "pgd:=1",
            "pgd:steps=",
            "pgd:steps=1,steps=2",
            "model_x@",
            "model_x@:a=1",
            "model_x@init:x",
            "\"model_x",
            "\"model_x\"clean",
            "model_x@\"w\"clean",
        ] {
            assert!(PluginSpec::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_existing_file_is_taken_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path.display().to_string()
        };
        let (plugin, weights) = (file("a:1@2/libnet.so"), file("w@3:4/w.safetensors"));
        for text in [
            format!("{plugin}@{weights}:depth=2,file=x@y:z"),
            format!(
                "{}@{}:depth=2,file=x@y:z",
                Value::from(&*plugin),
                Value::from(&*weights)
            ),
        ] {
            let spec = parse(&text);
            assert_eq!(
                (&spec.name, &spec.weights),
                (&plugin, &WeightSource::Path(weights.clone())),
                "{text}"
            );
            assert_eq!(Value::Object(spec.config.clone()), json!({"depth": 2, "file": "x@y:z"}));
            assert_eq!(parse(&spec.to_string()), spec);
        }
        // The longest existing file wins.
        let longer = file("a:1@2/libnet.so:b=1");
        assert_eq!(parse(&longer).name, longer);
        assert_eq!(parse(&format!("{plugin}:b=2")).name, plugin);
        // Where there is none, the first separator counts.
        assert_eq!(parse("/nowhere/a@b:c=1").weights, WeightSource::Set("b".into()));
    }

    #[test]
    fn a_spec_prints_itself_so_that_it_reads_back() {
        for text in [
            "pgd",
            "pgd:steps=10",
            "a/libnet.so@b/w.safetensors:depth=2,names=[a,\"b,c\"]",
            "model_x@clean:epsilon=8/255",
            "model_x@init:7",
            "\"a:b@c.so\"@\"d:e.safetensors\":x=1",
            "m:word=\"1\",empty=\"\",list=[[1,2],x]",
        ] {
            assert_eq!(parse(text).to_string(), text);
            assert_eq!(parse(&parse(text).to_string()), parse(text));
        }
    }

    #[test]
    fn a_spec_out_of_a_record_reads_back_with_the_same_values() {
        let config = json!({"a": 1, "b": "c", "number": "1", "word": "true", "list": ["x,y", 0.5, "z"], "half": "1/2", "none": null, "text": " a\"b"});
        let Value::Object(config) = config else { unreachable!() };
        let spec = PluginSpec::new("model_x", WeightSource::Set("clean".into()), config);
        let read = parse(&spec.to_string());
        assert_eq!(
            (&read.name, &read.weights, &read.config),
            (&spec.name, &spec.weights, &spec.config),
            "{spec}"
        );
    }
}
