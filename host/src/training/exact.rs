//! Numbers of a checkpoint, as text: serde_json may read the last bit of an `f64` differently from how it was written, and a resumed
//! run must stand exactly where the interrupted one stood.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes the shortest decimal that reads back to the same number.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{value:?}"))
}

/// Reads it.
///
/// # Errors
/// If the text is not a number.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|_| D::Error::custom(format!("'{text}' is not a number")))
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "super")] f64);

    #[test]
    fn every_bit_of_a_number_comes_back() {
        for i in 1..=2000 {
            let value = f64::from(i).sqrt() * 1e-5 / 3.;
            let again: One = serde_json::from_str(&serde_json::to_string(&One(value)).unwrap()).unwrap();
            assert_eq!(again.0.to_bits(), value.to_bits(), "{value:?}");
        }
    }
}
