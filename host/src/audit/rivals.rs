//! Other readings of a random defence, other ways back, and other defences: checks 19, 20 and 21.

use super::bench::{Bench, Part, WHITE_BOX, WhiteBox, suite};
use super::finding::Finding;
use super::shares::{POINT, Shares, least, lesser, lower, percent, value};
use crate::experiment::{Backward, STATIC, adversarially_trained};
use crate::report::{DrawSummary, Summary};
use crate::results::Cell;
use advae_abi::info::BackwardRule;
use anyhow::Result;

/// Check 19.
pub fn known_draw(bench: &mut Bench, white: &WhiteBox) -> Result<Finding> {
    const THRESHOLD: &str = "the claim holds for the mean over draws; the other readings belong beside it";
    let subject = bench.subject;
    if !white.random {
        return Ok(Finding::not_applicable(19, "the defence is not random"));
    }
    let part = Part {
        attacks: std::slice::from_ref(&subject.attack),
        threat_model: WHITE_BOX,
        epsilon: subject.claim.epsilon,
    };
    let cells = bench.run(&part, |settings| settings.known_draw = true)?;
    let (known, mean): (Vec<&Cell>, Vec<&Cell>) = cells.iter().partition(|cell| cell.header.config.known_draw);
    let Some(shares) = least(mean.iter().copied()) else {
        return Ok(Finding::not_run(19, white.absent()));
    };
    let summary = Summary::all(&mean.iter().map(|cell| (*cell).clone()).collect::<Vec<_>>());
    let mut text = format!("'{}' leaves {} (mean over draws)", subject.attack, percent(&shares));
    if let Some(DrawSummary {
        draws,
        majority,
        ever_wrong,
    }) = summary.iter().find_map(|summary| summary.random)
    {
        text += &format!(
            "; by majority of {draws} draws {:.1} %; to one who may ask {draws} times {:.1} %",
            100. * majority,
            100. * (1. - ever_wrong)
        );
    }
    if let Some(known) = least(known) {
        text += &format!("; to one who knows the draw {}", percent(&known));
    }
    let more = format!(
        "--attack {} --known-draw --eot {} --draws 20",
        subject.attack, bench.eot
    );
    Ok(Finding::note(19, text, THRESHOLD).next(subject.eval(&more)))
}

/// Check 20, and the cells of other backward rules.
pub fn every_rule(bench: &mut Bench, white: &WhiteBox) -> Result<(Finding, Vec<Cell>)> {
    const THRESHOLD: &str =
        "no other rule, and no minimum over all, lowers the figure by more than 1 point beyond chance";
    let subject = bench.subject;
    let Some(purifier) = &subject.purifier else {
        return Ok((Finding::not_applicable(20, "there is no purifier"), vec![]));
    };
    let rule = purifier.rule();
    let mut rules = purifier.model.info().backward_rules.clone();
    if !rules.contains(&BackwardRule::Identity) {
        rules.push(BackwardRule::Identity);
    }
    rules.retain(|other| other.name() != rule.used && *other != BackwardRule::None);
    let part = Part {
        attacks: std::slice::from_ref(&subject.attack),
        threat_model: WHITE_BOX,
        epsilon: subject.claim.epsilon,
    };
    let (mut cells, mut told, mut wrong) = (vec![], vec![], vec![]);
    if let Some(own) = &white.claimed {
        told.push(format!("{} (its own) leaves {}", rule.used, percent(own)));
    }
    for other in rules {
        let by_rule = bench.run(&part, |settings| settings.backward = Some(Backward::One(other)))?;
        let shares = least(&by_rule);
        cells.extend(by_rule);
        let Some(shares) = shares else { continue };
        told.push(format!("{} {}", other.name(), percent(&shares)));
        if white.claimed.as_ref().is_none_or(|own| lower(own, &shares, POINT)) {
            wrong.push(other.name());
        }
    }
    let all = least(cells.iter())
        .into_iter()
        .chain(white.claimed.clone())
        .reduce(lesser);
    if let Some(all) = &all {
        told.push(format!("the minimum over all, per sample, {}", percent(all)));
        if wrong.is_empty() && white.claimed.as_ref().is_some_and(|own| lower(own, all, POINT)) {
            wrong.push("the minimum over all");
        }
    }
    if white.claimed.is_none() && wrong.is_empty() {
        return Ok((Finding::not_run(20, white.absent()), cells));
    }
    let text = match wrong.is_empty() {
        true => told.join("; "),
        false => format!("stronger than its own rule: {}; {}", wrong.join(", "), told.join("; ")),
    };
    let finding = Finding::expect(20, wrong.is_empty(), text, THRESHOLD);
    Ok((finding.next(subject.eval("--attack apgd --backward all")), cells))
}

/// Check 21.
pub fn baseline(bench: &mut Bench, strongest: Option<&Shares>) -> Result<Finding> {
    const THRESHOLD: &str = "a purifier is to beat the classifier without it, and the best static classifier at hand";
    let subject = bench.subject;
    let classifier = &subject.classifier;
    let mut rivals: Vec<(String, String)> = vec![];
    if subject.purifier.is_some() {
        rivals.push(("without the purifier".into(), classifier.named.to_string()));
    }
    if let Some(trained) = adversarially_trained(classifier) {
        rivals.push((format!("adversarially trained (@{STATIC})"), trained.to_string()));
    }
    if rivals.is_empty() {
        return Ok(Finding::not_applicable(
            21,
            "there is no purifier, and no adversarially trained classifier beside it",
        ));
    }
    let Some(strongest) = strongest else {
        return Ok(Finding::not_run(
            21,
            "no attack of the whole defence could be run".into(),
        ));
    };
    let attacks = suite(subject, false)?;
    let part = Part {
        attacks: &attacks,
        threat_model: WHITE_BOX,
        epsilon: subject.claim.epsilon,
    };
    let (mut told, mut beaten) = (vec![format!("the defence keeps {}", percent(strongest))], vec![]);
    for (name, spec) in rivals {
        let cells = bench.run(&part, |settings| {
            settings.classifiers = vec![spec];
            settings.purifiers = vec!["none".into()];
        })?;
        let Some(shares) = least(&cells) else {
            return Ok(Finding::not_run(
                21,
                format!("the classifier {name} could not be attacked"),
            ));
        };
        told.push(format!("the classifier {name} {}", percent(&shares)));
        if value(strongest) <= value(&shares) {
            beaten.push(name);
        }
    }
    let text = told.join("; ");
    Ok(match beaten.is_empty() {
        true => Finding::expect(21, true, text, THRESHOLD),
        false => Finding::note(
            21,
            format!("no better than the classifier {}: {text}", beaten.join(" and ")),
            THRESHOLD,
        )
        .next("use that classifier instead, or show what the purifier is good for"),
    })
}
