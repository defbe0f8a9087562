//! Gradients through the plugin's tapes.

use super::checklist::{Checklist, Finding};
use super::differences::{self, OPERATORS, backward};
use super::model::same_rows;
use super::patient::Patient;
use super::sample::{IDS, images, input, scale, signed};
use crate::terminal::console;
use crate::wire::model::Model;
use crate::wire::tensor::{Call, difference};
use advae_abi::info::{BackwardRule, Construct, Kind};
use anyhow::Result;

/// Checks every backward rule, and the tapes.
pub fn examine(list: &mut Checklist, patient: &Patient) -> Result<()> {
    let model = Model::construct(&patient.plugin, &patient.request)?;
    let rules = rules(&model);
    for rule in rules.iter().copied() {
        let default = (rule != rules[0]).then(|| rules[0].name());
        list.check(&format!("gradient, {}", rule.name()), || {
            let request = Construct {
                backward: (model.kind() == Kind::Purifier).then_some(rule),
                ..patient.request.clone()
            };
            let checked =
                Model::construct(&patient.plugin, &request).and_then(|model| check_rule(&model, rule, default));
            Ok(advised(checked, model.kind(), rule, default))
        })?;
    }
    list.check("gradient, batch", || batch(&model))?;
    list.check("tape, twice", || twice(&model))?;
    list.check("tapes, two alive", || two_alive(&model))
}

/// The rules on offer, and the two an evaluator may always choose.
fn rules(model: &Model) -> Vec<BackwardRule> {
    if model.kind() == Kind::Classifier {
        return vec![BackwardRule::Exact];
    }
    let mut rules = model.info().backward_rules.clone();
    for always in [BackwardRule::Identity, BackwardRule::None] {
        if !rules.contains(&always) {
            rules.push(always);
        }
    }
    rules
}

/// What was found, with what an author of such a model can do about a failure.
fn advised(checked: Result<Finding>, kind: Kind, rule: BackwardRule, default: Option<&str>) -> Finding {
    let failed = match checked {
        Ok(Finding::Fail(text)) => text,
        Ok(other) => return other,
        // The differences name the operators themselves.
        Err(error) if kind == Kind::Classifier => format!("{}: {OPERATORS}", console::one_line(&error)),
        Err(error) => console::one_line(&error),
    };
    if (kind, rule, default) != (Kind::Purifier, BackwardRule::Exact, None) {
        return Finding::Fail(failed);
    }
    Finding::Fail(format!(
        "{failed}; a purifier that is not differentiable declares `Identity` (BPDA), `Custom` or `None` in its backward rules \
         (the sdk's `BACKWARD`, whose default is `Exact`)"
    ))
}

/// `default`: the purifier's own rule, where that is another.
fn check_rule(model: &Model, rule: BackwardRule, default: Option<&str>) -> Result<Finding> {
    if rule == BackwardRule::Exact {
        return differences::examine(model, default);
    }
    let (x, call) = (images(IDS.len(), input(model)), Call::craft(0, &IDS));
    let (y, tape) = model.forward_tape(&call, &x)?;
    let cotangent = signed(&y.shape, 2);
    let gradient = backward(&tape, &call, &cotangent)?;
    Ok(match rule {
        BackwardRule::Identity => {
            let same = difference(&gradient, &cotangent) == 0.;
            Finding::expect(same, "the cotangent passes".into(), "it has to pass unchanged")
        }
        BackwardRule::None => {
            let zero = gradient.data.iter().all(|v| *v == 0.);
            Finding::expect(zero, "the gradient is zero".into(), "it has to be zero")
        }
        _ => Finding::Pass(format!("finite, up to {:.3}", scale(&gradient))),
    })
}

fn batch(model: &Model) -> Result<Finding> {
    let (x, call) = (images(IDS.len(), input(model)), Call::craft(5, &IDS));
    let (y, tape) = model.forward_tape(&call, &x)?;
    let cotangent = signed(&y.shape, 3);
    let together = backward(&tape, &call, &cotangent)?;
    let mut worst = 0f64;
    for i in 0..IDS.len() {
        let call = Call::craft(5, &IDS[i..=i]);
        let (_, tape) = model.forward_tape(&call, &x.select(&[i]))?;
        let alone = backward(&tape, &call, &cotangent.select(&[i]))?;
        worst = worst.max(difference(&alone, &together.select(&[i])));
    }
    Ok(same_rows(
        worst,
        scale(&together),
        "a gradient alone and in a batch of 7",
    ))
}

fn twice(model: &Model) -> Result<Finding> {
    let (x, call) = (images(3, input(model)), Call::craft(0, &IDS[..3]));
    let (y, tape) = model.forward_tape(&call, &x)?;
    let cotangent = signed(&y.shape, 4);
    let first = backward(&tape, &call, &cotangent)?;
    backward(&tape, &call, &signed(&y.shape, 5))?;
    let again = backward(&tape, &call, &cotangent)?;
    let same = difference(&first, &again) == 0.;
    let text = "backward after another cotangent gives the first gradient again";
    Ok(Finding::expect(
        same,
        text.into(),
        "it does not: a tape must not change when it runs",
    ))
}

fn two_alive(model: &Model) -> Result<Finding> {
    let call = Call::craft(0, &IDS[..2]);
    let (x, other) = (images(2, input(model)), images(4, input(model)).select(&[2, 3]));
    let (y, alone) = model.forward_tape(&call, &x)?;
    let cotangent = signed(&y.shape, 6);
    let expected = backward(&alone, &call, &cotangent)?;
    drop(alone);
    let (_, first) = model.forward_tape(&call, &x)?;
    let (_, second) = model.forward_tape(&call, &other)?;
    backward(&second, &call, &cotangent)?;
    let same = difference(&expected, &backward(&first, &call, &cotangent)?) == 0.;
    let text = "a later tape leaves an earlier one alone";
    Ok(Finding::expect(
        same,
        text.into(),
        "it does not: a tape must own what it needs",
    ))
}
