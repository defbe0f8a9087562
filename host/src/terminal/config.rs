//! Configuration files as people write them: TOML with keys in either spelling, and errors that name file, line and key.

use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// How the keys of a file are spelled in the program. In the file both spellings are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// `batch_size`.
    Snake,
    /// `batch-size`.
    Kebab,
}

impl Case {
    fn spell(self, key: &str) -> String {
        match self {
            Self::Snake => key.replace('-', "_"),
            Self::Kebab => key.replace('_', "-"),
        }
    }
}

/// Reads a TOML file. Each key may be written as `batch_size` or as `batch-size`; the keys inside the top-level tables named by `free`
/// belong to a plugin and stay as they are written.
///
/// # Errors
/// If the file cannot be read, and as for [`parse`].
pub fn read<T: DeserializeOwned>(path: &Path, case: Case, free: &[&str]) -> Result<T> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read '{file}'"))?;
    parse(&text, &file, case, free)
}

/// The same for text that is in memory; `file` is its name in errors.
///
/// # Errors
/// If the text is not TOML, a key is unknown or given in both spellings, or a value has the wrong type: one line with the file, the
/// line number, the key, and what was expected.
pub fn parse<T: DeserializeOwned>(text: &str, file: &str, case: Case, free: &[&str]) -> Result<T> {
    let fault = |error: toml::de::Error| {
        let at = error.span().map(|span| span.start);
        let key = at.and_then(|at| DeTable::parse(text).ok().and_then(|table| key_at(table.get_ref(), at)));
        let line = at.map(|at| format!(" line {}", line_of(text, at))).unwrap_or_default();
        let key = key.map(|key| format!(", key '{key}'")).unwrap_or_default();
        anyhow!("'{file}'{line}{key}: {}", error.message().replace('\n', " "))
    };
    let mut root = DeTable::parse(text).map_err(fault)?;
    respell(root.get_mut(), case, free).map_err(|Twice { at, written, key }| {
        let line = line_of(text, at);
        anyhow!(
            "'{file}' line {line}, key '{written}': '{key}' is already given in its other spelling: keep one of them"
        )
    })?;
    T::deserialize(Deserializer::from(root)).map_err(fault)
}

/// A key that is in the file in both spellings.
struct Twice {
    at: usize,
    written: String,
    key: String,
}

fn respell(table: &mut DeTable<'_>, case: Case, free: &[&str]) -> Result<(), Twice> {
    let mut keys: Vec<_> = std::mem::take(table).into_iter().collect();
    // In the order of the file, so that an error names the second of two.
    keys.sort_by_key(|(key, _)| key.span().start);
    for (mut key, mut value) in keys {
        let (written, at) = (key.get_ref().to_string(), key.span().start);
        *key.get_mut() = Cow::Owned(case.spell(&written));
        let name = key.get_ref().to_string();
        if !free.contains(&name.as_str()) {
            respell_value(&mut value, case)?;
        }
        if table.contains_key(&key) {
            return Err(Twice { at, written, key: name });
        }
        table.insert(key, value);
    }
    Ok(())
}

fn respell_value(value: &mut Spanned<DeValue<'_>>, case: Case) -> Result<(), Twice> {
    match value.get_mut() {
        DeValue::Table(table) => respell(table, case, &[]),
        DeValue::Array(items) => items.iter_mut().try_for_each(|item| respell_value(item, case)),
        _ => Ok(()),
    }
}

/// The key, `schedule.factor`, that stands at a place of the file, or whose value does.
fn key_at(table: &DeTable<'_>, at: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        // The values of a table under a header lie outside its own span.
        let inner = match value.get_ref() {
            DeValue::Table(table) => key_at(table, at),
            DeValue::Array(items) => items.iter().find_map(|item| match item.get_ref() {
                DeValue::Table(table) => key_at(table, at),
                _ => None,
            }),
            _ => None,
        };
        let here = key.span().contains(&at) || value.span().contains(&at);
        match inner {
            Some(inner) => Some(format!("{}.{inner}", key.get_ref())),
            None => here.then(|| key.get_ref().to_string()),
        }
    })
}

/// Line number, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        batch_size: usize,
        rates: Vec<f64>,
        schedule: Schedule,
        stage: Vec<Schedule>,
        own: toml::Table,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Schedule {
        early_stop: usize,
    }

    fn settings(text: &str) -> Result<Settings> {
        parse(text, "r.toml", Case::Snake, &["own"])
    }

    fn refusal(text: &str) -> String {
        let error = format!("{:#}", settings(text).unwrap_err());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn both_spellings_of_a_key_are_one_key() {
        let kebab = settings("batch-size = 3\n[schedule]\nearly-stop = 4\n[[stage]]\nearly-stop = 5").unwrap();
        let snake = settings("batch_size = 3\n[schedule]\nearly_stop = 4\n[[stage]]\nearly_stop = 5").unwrap();
        assert_eq!(kebab, snake);
        assert_eq!((kebab.batch_size, kebab.schedule.early_stop), (3, 4));
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        struct Flags {
            data_dir: String,
        }
        let flags: Flags = parse("data_dir = 'd'", "f", Case::Kebab, &[]).unwrap();
        assert_eq!(flags.data_dir, "d");
    }

    #[test]
    fn a_key_in_both_spellings_is_refused() {
        let error = refusal("batch_size = 3\nrates = []\nbatch-size = 4");
        assert_eq!(
            error,
            "'r.toml' line 3, key 'batch-size': 'batch_size' is already given in its other spelling: keep one of them"
        );
    }

    #[test]
    fn the_settings_of_a_plugin_stay_as_they_are_written() {
        let own = settings("[own]\na-b = 1\na_b = 2").unwrap().own;
        assert_eq!(own.keys().collect::<Vec<_>>(), ["a-b", "a_b"]);
    }

    #[test]
    fn an_error_names_file_line_key_and_expectation() {
        let error = refusal("rates = [\n  1.0,\n  'x',\n]");
        assert!(error.starts_with("'r.toml' line 3, key 'rates': "), "{error}");
        assert!(error.contains("expected f64"), "{error}");
        let error = refusal("\n[schedule]\nearly-stop = -1");
        assert!(
            error.starts_with("'r.toml' line 3, key 'schedule.early-stop': "),
            "{error}"
        );
        let error = refusal("batch-size = 3\nbatchsize = 3");
        assert!(
            error.starts_with("'r.toml' line 2, key 'batchsize': unknown field"),
            "{error}"
        );
        assert!(error.contains("`batch_size`"), "{error}");
        let error = refusal("batch_size = 3\nrates = [1.0,");
        assert!(error.starts_with("'r.toml' line 2"), "{error}");
        let error = refusal("batch_size = 3\nbatch_size = 4");
        assert!(
            error.starts_with("'r.toml' line 2") && error.contains("duplicate"),
            "{error}"
        );
    }
}
