//! Settings of a plugin: serde structs with defaults; unknown keys are refused with the list of the known ones. Keys may be
//! written in kebab case, and a number that need not be whole as a fraction (`8/255`).

use advae_abi::info::Setting;
use advae_abi::{AbiError, ErrorCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::any::TypeId;

/// Settings of a plugin. Written with [`settings!`](crate::settings).
pub trait Settings: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Names and explanations, in the author's order.
    fn help() -> Vec<(&'static str, &'static str)>;

    /// Names of those that are an [`InputFile`].
    fn files() -> Vec<&'static str> {
        vec![]
    }
}

/// The path of a file that a plugin reads, as a setting. The host hashes the file, so that results say which one it was, and hands
/// on a copy that does not change while it runs. Read it by its [`path`](Self::path).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FileForm", into = "FileForm")]
pub struct InputFile {
    path: String,
    name: String,
}

impl InputFile {
    /// Where it is; empty where none was named.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the user calls it: the path that the copy was made from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file at a path.
    pub fn at(path: impl Into<String>) -> Self {
        FileForm::Path(path.into()).into()
    }
}

/// How a setting says a file: a user by its path, the host by a copy and the user's path.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected the path of a file")]
enum FileForm {
    Path(String),
    Copy { path: String, name: String },
}

impl From<FileForm> for InputFile {
    fn from(form: FileForm) -> Self {
        let (path, name) = match form {
            FileForm::Path(path) => (path.clone(), path),
            FileForm::Copy { path, name } => (path, name),
        };
        Self { path, name }
    }
}

impl From<InputFile> for FileForm {
    fn from(file: InputFile) -> Self {
        let InputFile { path, name } = file;
        match path == name {
            true => FileForm::Path(path),
            false => FileForm::Copy { path, name },
        }
    }
}

/// Whether a setting's type is [`InputFile`].
#[doc(hidden)]
pub fn is_file<T: 'static>() -> bool {
    TypeId::of::<T>() == TypeId::of::<InputFile>()
}

crate::settings! {
    /// For plugins that have nothing to set.
    pub struct NoSettings {}
}

/// Declares a settings struct: every field with its explanation, type and default.
///
/// Users may write `step-size` for `step_size`, and a fraction such as `"8/255"` for a number that need not be whole.
///
/// ```
/// advae_sdk::settings! {
///     /// Settings of an attack.
///     pub struct Pgd {
///         /// Number of steps.
///         steps: usize = 40,
///         /// Length of a step.
///         step_size: f64 = 0.01,
///     }
/// }
/// assert_eq!(Pgd::default().steps, 40);
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[$about:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $doc:literal])* $field:ident : $ty:ty = $default:expr),* $(,)?
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, $crate::serde::Serialize, $crate::serde::Deserialize)]
        #[serde(crate = "advae_sdk::serde", default, deny_unknown_fields)]
        $vis struct $name { $($(#[doc = $doc])* pub $field: $ty),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }

        impl $crate::Settings for $name {
            fn help() -> Vec<(&'static str, &'static str)> {
                vec![$((stringify!($field), concat!("", $($doc),*))),*]
            }

            fn files() -> Vec<&'static str> {
                let all: &[(&'static str, bool)] = &[$((stringify!($field), $crate::export_support::is_file::<$ty>())),*];
                all.iter().filter(|(_, file)| *file).map(|(name, _)| *name).collect()
            }
        }
    };
}

/// Reads settings from keys and values, as a recipe's table `own`.
///
/// # Errors
/// When a key is unknown or given twice, a value does not fit, or a denominator is 0; the error names it, with what is expected.
pub fn read<S: Settings>(config: &Map<String, Value>) -> candle_core::Result<S> {
    parse(config).map_err(crate::convert::to_candle)
}

/// The same, for requests.
pub(crate) fn parse<S: Settings>(config: &Map<String, Value>) -> Result<S, AbiError> {
    let error = |text: String| AbiError::new(ErrorCode::Config, text);
    let config = &numbers::<S>(named(config, &known_names::<S>()).map_err(error)?).map_err(error)?;
    serde_json::from_value(Value::Object(config.clone())).map_err(|whole| {
        // Each key alone, to name the one that is wrong.
        let wrong = config.iter().find_map(|(key, value)| {
            let reason = alone::<S>(key, value.clone()).err()?;
            let default = describe::<S>().into_iter().find(|s| s.name == *key)?.default;
            let reason = plain(&reason.to_string());
            Some(format!(
                "setting '{key}' is {value}: {reason} (its default is {default})"
            ))
        });
        error(wrong.unwrap_or_else(|| format!("bad settings: {whole}")))
    })
}

fn known_names<S: Settings>() -> Vec<&'static str> {
    S::help().iter().map(|(name, _)| *name).collect()
}

/// The settings with one key and the defaults of the others.
fn alone<S: Settings>(key: &str, value: Value) -> serde_json::Result<S> {
    serde_json::from_value(Value::Object(Map::from_iter([(key.to_string(), value)])))
}

/// The values under the names of the settings: `step-size` is `step_size`.
fn named(config: &Map<String, Value>, known: &[&str]) -> Result<Map<String, Value>, String> {
    let mut named = Map::new();
    for (key, value) in config {
        let name = key.replace('-', "_");
        if !known.contains(&name.as_str()) {
            return Err(unknown(key, known));
        }
        if named.insert(name.clone(), value.clone()).is_some() {
            let kebab = name.replace('_', "-");
            return Err(format!(
                "setting '{name}' is given twice, also as '{kebab}': leave one out"
            ));
        }
    }
    Ok(named)
}

/// Fractions as numbers, where the setting takes a number that need not be whole and no text; and numbers as texts, where it takes
/// a text, such as a name that consists of digits.
fn numbers<S: Settings>(config: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let number = |(key, value): (String, Value)| {
        if value.is_number() && alone::<S>(&key, value.clone()).is_err() {
            let text = Value::from(value.to_string());
            let taken = alone::<S>(&key, text.clone()).is_ok();
            return Ok((key, if taken { text } else { value }));
        }
        let Some((above, below)) = value.as_str().and_then(fraction) else {
            return Ok((key, value));
        };
        if alone::<S>(&key, value.clone()).is_ok() || alone::<S>(&key, Value::from(0.5)).is_err() {
            return Ok((key, value));
        }
        if below == 0. {
            return Err(format!(
                "setting '{key}' is {value}: its denominator is 0, expected another number"
            ));
        }
        Ok((key, Value::from(above / below)))
    };
    config.into_iter().map(number).collect()
}

/// Numerator and denominator of a text `a/b`.
fn fraction(text: &str) -> Option<(f64, f64)> {
    let (above, below) = text.split_once('/')?;
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite());
    Some((number(above)?, number(below)?))
}

/// What is said of a key that is no setting.
fn unknown(key: &str, known: &[&str]) -> String {
    if known.is_empty() {
        return format!("unknown setting '{key}': it has no settings");
    }
    let name = key.replace('-', "_");
    let same = known.iter().find(|known| elsewhere(known).contains(&name.as_str()));
    let near = same.or_else(|| known.iter().find(|known| strsim::osa_distance(known, &name) <= 2));
    let meant = near.map_or_else(String::new, |name| format!("did you mean '{name}'? "));
    format!("unknown setting '{key}': {meant}its settings are {}", known.join(", "))
}

/// What other libraries (foolbox, torchattacks, ART, AutoAttack) call a setting of this name.
fn elsewhere(name: &str) -> &'static [&'static str] {
    match name {
        "epsilon" => &["eps", "radius", "max_eps", "epsilons"],
        "step_size" => &[
            "alpha",
            "eps_step",
            "stepsize",
            "eps_iter",
            "abs_stepsize",
            "rel_stepsize",
        ],
        "steps" | "iterations" => &[
            "n_iter",
            "nb_iter",
            "max_iter",
            "num_steps",
            "n_steps",
            "steps",
            "iterations",
        ],
        "restarts" => &["n_restarts", "num_restarts", "num_random_init", "nb_restarts"],
        "random_start" => &["rand_init", "random_init", "rand_start"],
        "learning_rate" => &["lr", "stepsize"],
        "initial_constant" => &["c", "initial_const"],
        "binary_search_steps" => &["search_steps"],
        "confidence" => &["kappa"],
        _ => &[],
    }
}

/// A message of serde without the names of Rust's types.
fn plain(message: &str) -> String {
    let names = [
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number, such as 0.3 or 8/255"),
        ("expected f32", "expected a number, such as 0.3 or 8/255"),
        ("expected a boolean", "expected true or false"),
        ("expected a string", "expected a text"),
        ("expected string or map", "expected a word"),
        ("expected a sequence", "expected a list, such as [1,2]"),
    ];
    names
        .iter()
        .fold(message.to_string(), |text, (from, to)| text.replace(from, to))
}

/// The settings with their defaults, for listing.
pub fn describe<S: Settings>() -> Vec<Setting> {
    let defaults = serde_json::to_value(S::default()).unwrap_or(Value::Null);
    let files = S::files();
    let entry = |(name, help): (&str, &str)| Setting {
        name: name.to_string(),
        default: defaults.get(name).cloned().unwrap_or(Value::Null),
        help: help.trim().to_string(),
        file: files.contains(&name),
    };
    S::help().into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::settings! {
        /// For the tests.
        struct Some {
            /// Number of steps.
            steps: usize = 40,
            /// Kind.
            /// Of two lines.
            kind: String = "a".into(),
            /// Length of a step.
            step_size: f64 = 0.01,
            /// Radius, where there is one.
            epsilon: Option<f64> = None,
            /// Share.
            share: f32 = 0.5,
        }
    }

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn absent_keys_have_their_defaults() {
        let some: Some = parse(&object(r#"{"kind": "b"}"#)).unwrap();
        assert_eq!((some.steps, some.kind.as_str()), (40, "b"));
    }

    #[test]
    fn unknown_keys_are_refused_with_the_known_ones() {
        let error = parse::<Some>(&object(r#"{"step": 1}"#)).unwrap_err().to_string();
        assert!(
            error.contains("'step'") && error.contains("did you mean 'steps'?"),
            "{error}"
        );
        assert!(error.contains("steps, kind, step_size"), "{error}");
        let error = parse::<NoSettings>(&object(r#"{"step": 1}"#)).unwrap_err().to_string();
        assert!(error.contains("no settings"), "{error}");
    }

    #[test]
    fn a_name_of_another_library_leads_to_ours() {
        for (theirs, ours) in [
            ("eps", "epsilon"),
            ("alpha", "step_size"),
            ("eps_step", "step_size"),
            ("n_iter", "steps"),
        ] {
            let error = refused(&format!(r#"{{"{theirs}": 1}}"#));
            assert!(error.contains(&format!("did you mean '{ours}'?")), "{error}");
        }
        let error = refused(r#"{"kappa": 1}"#);
        assert!(!error.contains("did you mean"), "it has no confidence: {error}");
    }

    #[test]
    fn a_name_of_digits_is_a_text() {
        let some: Some = parse(&object(r#"{"kind": 1207, "steps": 3}"#)).unwrap();
        assert_eq!((some.kind.as_str(), some.steps), ("1207", 3));
    }

    #[test]
    fn a_wrong_type_is_refused() {
        let error = parse::<Some>(&object(r#"{"steps": -1}"#)).unwrap_err().to_string();
        assert!(error.contains("setting 'steps' is -1"), "{error}");
        assert!(
            error.contains("expected a whole number, 0 or more (its default is 40)"),
            "{error}"
        );
    }

    fn refused(text: &str) -> String {
        parse::<Some>(&object(text)).unwrap_err().to_string()
    }

    #[test]
    fn a_fraction_is_a_number_where_a_number_need_not_be_whole() {
        let some: Some = parse(&object(
            r#"{"step_size": "2/255", "epsilon": " 8 / 255", "share": "1/4", "kind": "8/255"}"#,
        ))
        .unwrap();
        assert_eq!(
            (some.step_size, some.epsilon, some.share),
            (2. / 255., std::option::Option::Some(8. / 255.), 0.25)
        );
        assert_eq!(some.kind, "8/255", "a text stays a text");
        let some: Some = parse(&object(r#"{"epsilon": null, "step_size": 3}"#)).unwrap();
        assert_eq!((some.step_size, some.epsilon), (3., None));
    }

    #[test]
    fn a_fraction_that_is_no_number_is_refused_with_its_setting() {
        for text in ["8/0", "0/0", "8/-0"] {
            let error = refused(&format!(r#"{{"epsilon": "{text}"}}"#));
            assert_eq!(
                error,
                format!("setting 'epsilon' is \"{text}\": its denominator is 0, expected another number")
            );
        }
        for text in ["8/x", "8/", "1/2/3", "inf/2", "0.3"] {
            let error = refused(&format!(r#"{{"step_size": "{text}"}}"#));
            assert!(
                error.contains("expected a number, such as 0.3 or 8/255 (its default is 0.01)"),
                "{error}"
            );
        }
        let error = refused(r#"{"steps": "80/2"}"#);
        assert!(error.contains("expected a whole number, 0 or more"), "{error}");
    }

    #[test]
    fn a_key_may_be_written_in_kebab_case_once() {
        let some: Some = parse(&object(r#"{"step-size": "1/2"}"#)).unwrap();
        assert_eq!(some.step_size, 0.5);
        assert_eq!(
            refused(r#"{"step-size": 1, "step_size": 2}"#),
            "setting 'step_size' is given twice, also as 'step-size': leave one out"
        );
        let error = refused(r#"{"step-siz": 1}"#);
        assert!(
            error.contains("unknown setting 'step-siz': did you mean 'step_size'?"),
            "{error}"
        );
    }

    #[test]
    fn settings_are_listed_with_default_and_help() {
        let listed = describe::<Some>();
        assert_eq!(listed[0].default, 40);
        assert_eq!(listed[1].help, "Kind. Of two lines.");
        assert!(listed.iter().all(|setting| !setting.file));
    }

    crate::settings! {
        /// For the tests.
        struct Files {
            /// Steps.
            steps: usize = 1,
            /// Model.
            model: InputFile = InputFile::default(),
        }
    }

    #[test]
    fn a_setting_that_names_a_file_is_listed_as_such() {
        let files: Vec<bool> = describe::<Files>().iter().map(|setting| setting.file).collect();
        assert_eq!(files, [false, true]);
        let read: Files = parse(&object(r#"{"model": "net.onnx"}"#)).unwrap();
        assert_eq!(read.model, InputFile::at("net.onnx"));
    }
}
