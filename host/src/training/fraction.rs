//! Numbers as people write them: `0.03` or `8/255`.

use crate::plugin::number;
use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

/// A plugin's setting: a number, or text that [`number`] reads.
///
/// # Errors
/// If it is neither a number nor text that [`number`] reads.
pub fn number_of(value: &Value) -> Result<f64> {
    match value {
        Value::Number(number) => number.as_f64().with_context(|| format!("{number} is too large")),
        Value::String(text) => number(text),
        other => number(&other.to_string()),
    }
}

/// A key of a recipe: `epsilon = 0.03` or `epsilon = "8/255"`.
///
/// # Errors
/// If it is neither.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a number such as 0.03, or a fraction such as \"8/255\""
    )]
    enum Written {
        Number(f64),
        Text(String),
    }
    let value = match Written::deserialize(deserializer)? {
        Written::Number(value) => Ok(value),
        Written::Text(text) => number(&text).map_err(D::Error::custom),
    };
    value.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_a_number() {
        assert_eq!(number("8/255").unwrap(), 8. / 255.);
        assert_eq!(number("1e-2").unwrap(), 0.01);
        assert_eq!(number_of(&Value::from("8/255")).unwrap(), 8. / 255.);
        assert_eq!(number_of(&Value::from(0.5)).unwrap(), 0.5);
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for text in ["", "x", "8/", "/255", "8/0", "0/0", "1/2/3", "inf", "nan"] {
            let error = number(text).unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
        assert!(number_of(&Value::from(true)).is_err());
    }
}
