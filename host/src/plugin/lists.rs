//! Lists in configuration files, which may be written as a single value.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Reads `"a"`, `0.3` or `["a", "b"]`.
///
/// # Errors
/// For anything else.
pub fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text, a number, or a list of them")]
    enum Item {
        Text(String),
        Number(f64),
        Many(Vec<Item>),
    }
    fn flatten(item: Item) -> Vec<String> {
        match item {
            Item::Text(text) => vec![text],
            Item::Number(number) => vec![number.to_string()],
            Item::Many(items) => items.into_iter().flat_map(flatten).collect(),
        }
    }
    Item::deserialize(deserializer).map(flatten)
}

/// Writes a list of one element as that element.
///
/// # Errors
/// The serializer's.
pub fn one_if_single<S: Serializer>(list: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    match list {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}
