//! What plugins say of themselves, checked before anything is allocated or computed by it.

use crate::terminal::console::printable;
use crate::wire::boundary::Origin;
use advae_abi::ErrorCode;
use advae_abi::info::{AttackInfo, Kind, ModelInfo};
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

/// Largest extent of an image.
const LARGEST_EXTENT: usize = 4096;
/// Most values an image may have, over all channels.
const MOST_VALUES: usize = 1 << 24;
/// Most classes.
const MOST_CLASSES: usize = 1_000_000;
/// Most images a call that a model may wish for.
const LARGEST_BATCH: usize = 1 << 16;
/// Most oracle passes a sample that an attack may announce.
const MOST_PASSES: u64 = 1_000_000_000;

/// Reads JSON that a plugin describes itself by.
///
/// # Errors
/// Where it is not what the contract says.
pub fn read<T: DeserializeOwned>(origin: &Origin, json: &str) -> Result<T> {
    serde_json::from_str(json).with_context(|| format!("{origin} describes itself badly"))
}

/// Reads what a classifier or purifier says of itself.
///
/// # Errors
/// Where it leaves out what its kind must say, or names a value that no model has.
pub fn model(origin: &Origin, kind: Kind, json: &str) -> Result<ModelInfo> {
    let mut info: ModelInfo = read(origin, json)?;
    info.note = printable(&info.note);
    info.weights = printable(&info.weights);
    match wrong(kind, &info) {
        Some(text) => Err(origin.fault(ErrorCode::Shape, text)),
        None => Ok(info),
    }
}

fn wrong(kind: Kind, info: &ModelInfo) -> Option<String> {
    let ModelInfo {
        input,
        classes,
        bounds,
        batch,
        ..
    } = info;
    let classifies = kind == Kind::Classifier;
    match (input, classes) {
        (None, _) if classifies => return Some("its info names no input shape: a classifier has to".into()),
        (_, None) if classifies => return Some("its info names no number of classes: a classifier has to".into()),
        (_, Some(k)) if classifies && !(2..=MOST_CLASSES).contains(k) => {
            return Some(format!("its info names {k} classes: 2 to {MOST_CLASSES} are possible"));
        }
        _ => {}
    }
    if let Some(shape) = input {
        // Checked first, so that the product does not overflow.
        let extents = shape.iter().all(|extent| (1..=LARGEST_EXTENT).contains(extent));
        if !extents || shape.iter().product::<usize>() > MOST_VALUES {
            return Some(format!(
                "its info names images of shape {shape:?}: each extent must be 1 to {LARGEST_EXTENT}, and an image may have \
                 {MOST_VALUES} values at most"
            ));
        }
    }
    if *bounds != [0., 1.] {
        return Some(format!(
            "its info names pixels in {bounds:?}: this host's lie in [0, 1], scale them inside the plugin"
        ));
    }
    let batch = batch.filter(|batch| !(1..=LARGEST_BATCH).contains(batch))?;
    Some(format!(
        "its info asks for {batch} images a call: 1 to {LARGEST_BATCH} are possible"
    ))
}

/// Reads what an attack says of itself.
///
/// # Errors
/// Where its budget or its cost is no number that an attack can have.
pub fn attack(origin: &Origin, json: &str) -> Result<AttackInfo> {
    let info: AttackInfo = read(origin, json)?;
    let text = match info {
        AttackInfo {
            epsilon: Some(epsilon), ..
        } if !(epsilon.is_finite() && epsilon >= 0.) => {
            format!("its info names the budget {epsilon}: it must be finite, and 0 or more")
        }
        AttackInfo { passes, .. } if passes > MOST_PASSES => {
            format!("its info announces {passes} oracle passes a sample: {MOST_PASSES} at most are possible")
        }
        info => return Ok(info),
    };
    Err(origin.fault(ErrorCode::Config, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: Kind, json: &str) -> String {
        format!("{:#}", model(&Origin::new(kind, "m"), kind, json).unwrap_err())
    }

    #[test]
    fn a_classifier_has_to_name_its_input_and_classes() {
        assert!(refused(Kind::Classifier, r#"{"classes": 10}"#).contains("no input shape"));
        assert!(refused(Kind::Classifier, r#"{"input": [1, 2, 2]}"#).contains("no number of classes"));
        assert!(model(&Origin::new(Kind::Purifier, "p"), Kind::Purifier, "{}").is_ok());
    }

    #[test]
    fn impossible_numbers_are_refused_with_what_is_possible() {
        let with = |text: &str| refused(Kind::Classifier, &format!("{{{text}}}"));
        for shape in [
            "[16384, 16384, 16384]",
            "[0, 28, 28]",
            "[4096, 4096, 2]",
            "[4611686018427387904, 4, 4]",
        ] {
            let text = with(&format!(r#""input": {shape}, "classes": 10"#));
            assert!(
                text.contains("each extent must be 1 to 4096") && text.contains("16777216"),
                "{text}"
            );
        }
        for classes in [0, 1, 1_000_001] {
            let text = with(&format!(r#""input": [1, 2, 2], "classes": {classes}"#));
            assert_eq!(
                text,
                format!("classifier 'm': its info names {classes} classes: 2 to 1000000 are possible")
            );
        }
        assert!(with(r#""input": [1, 2, 2], "classes": 2, "batch": 0"#).contains("0 images a call"));
        assert!(with(r#""input": [1, 2, 2], "classes": 2, "bounds": [-1.0, 1.0]"#).contains("lie in [0, 1]"));
    }

    #[test]
    fn an_attack_with_an_impossible_budget_or_cost_is_refused() {
        let read = |json: &str| attack(&Origin::new(Kind::Attack, "a"), json).map_err(|e| format!("{e:#}"));
        assert!(read(r#"{"norm": "linf", "epsilon": 0.3, "passes": 40}"#).is_ok());
        assert!(
            read(r#"{"norm": "linf", "epsilon": -1.0}"#)
                .unwrap_err()
                .contains("the budget -1")
        );
        let text = read(r#"{"norm": "l2", "passes": 18446744073709551615}"#).unwrap_err();
        assert!(text.contains("announces 18446744073709551615 oracle passes"), "{text}");
    }

    #[test]
    fn escape_codes_of_a_note_are_printable() {
        let info = model(
            &Origin::new(Kind::Purifier, "p"),
            Kind::Purifier,
            r#"{"note": "\u001b[2J gone"}"#,
        )
        .unwrap();
        assert_eq!(info.note, "\\u{1b}[2J gone");
    }
}
