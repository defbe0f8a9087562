//! What figures say beside one another: checks 13 and 14.

use super::bench::{Outside, WhiteBox};
use super::finding::Finding;
use super::shares::{POINT, Shares, lower, percent};
use super::subject::{Search, Subject};
use crate::report::Share;
use crate::wire::head::Head;
use crate::wire::pipeline::Pipeline;
use anyhow::Result;

/// An attack of no more passes takes one step.
const ONE_STEP: u64 = 2;

/// Check 13.
pub fn order(subject: &Subject, white: &WhiteBox, outside: &Outside) -> Finding {
    const THRESHOLD: &str = "many steps <= one, white box <= transfer, noise and Square, larger budgets <= smaller ones, chance where every image \
                             can be made grey; beyond what chance explains (McNemar's p < 0.05)";
    let Some(claimed) = white.best_claimed() else {
        return Finding::not_run(13, white.absent());
    };
    let mut wrong = vec![];
    let mut told = vec![format!("'{}' leaves {}", subject.attack, percent(claimed))];
    let mut below = |name: &str, other: Option<&Shares>| {
        let Some(other) = other else { return };
        told.push(format!("{name} {}", percent(other)));
        if lower(claimed, other, 0.) {
            wrong.push(format!("{name} does better"));
        }
    };
    below("one step", white.one_step.as_ref());
    below("noise", white.noise.as_ref());
    below("Square", white.square.as_ref());
    below("an attack that knows less", outside.transfer.as_ref());
    below("half the budget", outside.half.as_ref());
    if let Some(double) = &outside.double {
        told.push(format!("twice the budget {}", percent(double)));
        if lower(double, claimed, 0.) {
            wrong.push("twice the budget is weaker".into());
        }
    }
    if let Some((epsilon, shares)) = &outside.hopeless {
        told.push(format!("{} {epsilon} {}", subject.claim.norm, percent(shares)));
        let chance = 1. / subject.dataset.classes.max(1) as f64;
        if Share::of(shares.values().copied()).is_some_and(|share| share.low > chance) {
            wrong.push("where every image can be made grey, more than chance is left".into());
        }
    }
    // A claim on one step, or on an attacker who does not know the defence.
    if let (Some(strongest), Some(own)) = (&white.gradients, &white.claimed) {
        let one = subject.passes <= ONE_STEP;
        if one && lower(own, strongest, subject.claim.tolerance) {
            told.push(format!("attacks of many steps {}", percent(strongest)));
            wrong.push("the claim rests on one step".into());
        }
        if let Some(other) = &outside.claimed
            && lower(other, strongest, subject.claim.tolerance)
        {
            told.push(format!("attacks that know the defence {}", percent(strongest)));
            wrong.push(format!(
                "the claim rests on the threat model {}, which knows less",
                subject.claim.threat_model
            ));
        }
    }
    let text = match wrong.is_empty() {
        true => told.join("; "),
        false => format!("{}: {}", wrong.join(", "), told.join("; ")),
    };
    Finding::expect(13, wrong.is_empty(), text, THRESHOLD)
        .next(subject.eval("--attack autoattack --attack pgd:steps=100,restarts=5 --attack pgd:loss=margin"))
}

/// Check 14.
pub fn more_search(subject: &Subject, white: &WhiteBox) -> Result<Finding> {
    const THRESHOLD: &str = "by 1 point at the most, beyond what chance explains";
    let Some(claimed) = &white.claimed else {
        return Ok(Finding::not_run(14, white.absent()));
    };
    let mut told = vec![format!("'{}' leaves {}", subject.attack, percent(claimed))];
    let mut wrong = vec![];
    if let Some(longer) = &white.longer {
        let what = "twice the steps with restarts";
        told.push(format!("{what} {}", percent(longer)));
        if lower(claimed, longer, POINT) {
            wrong.push(what.to_string());
        }
    }
    for (loss, shares) in &white.losses {
        told.push(format!("loss {loss} {}", percent(shares)));
        if lower(claimed, shares, POINT) {
            wrong.push(format!("loss {loss}"));
        }
    }
    if let Some(averaged) = &white.averaged {
        told.push(format!("gradients of many draws {}", percent(averaged)));
        if lower(claimed, averaged, POINT) {
            wrong.push("gradients of many draws".into());
        }
    }
    let own = on_few(subject, &subject.pipeline)?;
    for (factor, what) in [(10., "logits times 10"), (0.1, "logits a tenth")] {
        let scaled = on_few(subject, &subject.pipeline.with_head(Head::Scaled(factor)))?;
        told.push(format!("{what} {} of {} images", percent(&scaled), scaled.len()));
        if lower(&own, &scaled, POINT) {
            wrong.push(format!("{what} (lower)"));
        } else if lower(&scaled, &own, POINT) {
            wrong.push(format!("{what} (higher)"));
        }
    }
    let text = match wrong.is_empty() {
        true => told.join("; "),
        false => format!("the figure moves with {}: {}", wrong.join(", "), told.join("; ")),
    };
    Ok(
        Finding::expect(14, wrong.is_empty(), text, THRESHOLD).next(subject.eval(
            "--attack apgd:steps=200,restarts=5 --attack pgd:loss=margin,steps=100,restarts=5 --attack apgd:loss=dlr",
        )),
    )
}

/// What the claimed attack on such a pipeline leaves of a few samples.
fn on_few(subject: &Subject, attacked: &Pipeline) -> Result<Shares> {
    let samples = subject.first(subject.extent.few);
    let (attack, limits) = subject.claimed(subject.claim.epsilon)?;
    let searched = subject.search(&Search {
        attack: &attack,
        limits,
        attacked,
        scored: &subject.pipeline,
        samples: &samples,
        labels: None,
        early_stop: !subject.pipeline.random(),
        watch: None,
    })?;
    let ids = samples.iter().map(|i| subject.dataset.ids[*i]);
    Ok(ids
        .zip(searched)
        .map(|(id, found)| (id, f64::from(u8::from(found.robust && found.clean))))
        .collect())
}
