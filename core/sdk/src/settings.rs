//! Settings of a plugin: serde structs with defaults; unknown keys are refused with the list of the known ones.

use advae_abi::info::Setting;
use advae_abi::{AbiError, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Settings of a plugin. Written with [`settings!`](crate::settings).
pub trait Settings: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Names and explanations, in the author's order.
    fn help() -> Vec<(&'static str, &'static str)>;
}

crate::settings! {
    /// For plugins that have nothing to set.
    pub struct NoSettings {}
}

/// Declares a settings struct: every field with its explanation, type and default.
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
        }
    };
}

/// Reads settings from keys and values, as a recipe's table `own`.
///
/// # Errors
/// When a key is unknown or a value does not fit; the error names it, with what is expected.
pub fn read<S: Settings>(config: &Map<String, Value>) -> candle_core::Result<S> {
    parse(config).map_err(crate::convert::to_candle)
}

/// The same, for requests.
pub(crate) fn parse<S: Settings>(config: &Map<String, Value>) -> Result<S, AbiError> {
    let error = |text: String| AbiError::new(ErrorCode::Config, text);
    let known: Vec<&str> = S::help().iter().map(|(name, _)| *name).collect();
    if let Some(key) = config.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(error(unknown(key, &known)));
    }
    serde_json::from_value(Value::Object(config.clone())).map_err(|whole| {
        // Each key alone, to name the one that is wrong.
        let wrong = config.iter().find_map(|(key, value)| {
            let alone = Map::from_iter([(key.clone(), value.clone())]);
            let reason = serde_json::from_value::<S>(Value::Object(alone)).err()?;
            let default = describe::<S>().into_iter().find(|s| s.name == *key)?.default;
            let reason = plain(&reason.to_string());
            Some(format!(
                "setting '{key}' is {value}: {reason} (its default is {default})"
            ))
        });
        error(wrong.unwrap_or_else(|| format!("bad settings: {whole}")))
    })
}

/// What is said of a key that is no setting.
fn unknown(key: &str, known: &[&str]) -> String {
    if known.is_empty() {
        return format!("unknown setting '{key}': it has no settings");
    }
    let near = known.iter().find(|name| strsim::osa_distance(name, key) <= 2);
    let meant = near.map_or_else(String::new, |name| format!("did you mean '{name}'? "));
    format!("unknown setting '{key}': {meant}its settings are {}", known.join(", "))
}

/// A message of serde without the names of Rust's types.
fn plain(message: &str) -> String {
    let names = [
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected a boolean", "expected true or false"),
    ];
    names
        .iter()
        .fold(message.to_string(), |text, (from, to)| text.replace(from, to))
}

/// The settings with their defaults, for listing.
pub fn describe<S: Settings>() -> Vec<Setting> {
    let defaults = serde_json::to_value(S::default()).unwrap_or(Value::Null);
    let entry = |(name, help): (&str, &str)| Setting {
        name: name.to_string(),
        default: defaults.get(name).cloned().unwrap_or(Value::Null),
        help: help.trim().to_string(),
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
        assert!(error.contains("steps, kind"), "{error}");
        let error = parse::<NoSettings>(&object(r#"{"step": 1}"#)).unwrap_err().to_string();
        assert!(error.contains("no settings"), "{error}");
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

    #[test]
    fn settings_are_listed_with_default_and_help() {
        let listed = describe::<Some>();
        assert_eq!(listed[0].default, 40);
        assert_eq!(listed[1].help, "Kind. Of two lines.");
    }
}
