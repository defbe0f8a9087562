//! Audits a stated robust accuracy: the strongest attack, and twenty-one checks of whether any attack says something here.
//!
//! The checks are those of AutoAttack's flags, of Pintor et al.'s indicators of attack failure, of the binarisation test, and of the
//! literature on adaptive attacks; [`CHECKS`] lists them with their sources.

mod answers;
mod bench;
mod binarisation;
mod cells;
mod finding;
mod gradients;
mod linear;
mod losses;
mod order;
mod page;
mod path;
mod record;
mod rivals;
mod shares;
mod subject;

pub use cells::Figure;
pub use finding::{CHECKS, Check, Finding, Status, Verdict};
pub use page::{markdown, report};
pub use record::Audit;
pub use subject::{Claim, DEFAULT_ATTACK, Extent};

use crate::experiment::Settings;
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use anyhow::Result;
use subject::Subject;

/// Audits a claim. `settings`: one classifier, one purifier or `none`, samples, seed, and where results go; attacks, threat models and
/// budgets are the audit's own.
///
/// # Errors
/// Where nothing can be run, results cannot be read or written, or the audit is cancelled.
pub fn audit(claim: &Claim, settings: &Settings, extent: Extent, cancel: &Cancel) -> Result<Audit> {
    let subject = Subject::load(claim, settings, extent, cancel)?;
    let mut findings = vec![];
    let stage = |what: &str, numbers: &[u8], findings: &mut Vec<Finding>, found: Result<Vec<Finding>>| -> Result<()> {
        cancel.check()?;
        match found {
            Ok(found) => findings.extend(found),
            // A check that fails does not end the others.
            Err(error) => {
                let why = format!("{what}: {}", console::one_line(&error));
                let missing = numbers.iter().map(|number| Finding::not_run(*number, why.clone()));
                findings.extend(missing);
            }
        }
        Ok(())
    };
    say("answers");
    stage(
        "asking the defence",
        &[1, 2, 5, 16],
        &mut findings,
        answers::examine(&subject),
    )?;
    say("gradients");
    let (found, eot) = match gradients::examine(&subject) {
        Ok(gradients) => (Ok(gradients.findings), gradients.eot),
        Err(error) => (Err(error), 1),
    };
    stage("measuring gradients", &[3, 6, 7, 15, 18], &mut findings, found)?;
    say("the way of the claimed attack");
    stage(
        "watching the attack",
        &[8, 9, 10, 11],
        &mut findings,
        path::examine(&subject),
    )?;
    say("planted images");
    stage(
        "planting images",
        &[12],
        &mut findings,
        binarisation::examine(&subject).map(|one| vec![one]),
    )?;
    stage(
        "attacking a linear model",
        &[17],
        &mut findings,
        linear::examine(&subject).map(|one| vec![one]),
    )?;
    say("attacks");
    let figures = cells::examine(&subject, eot)?;
    findings.extend(figures.findings);
    findings.sort_by_key(|finding| finding.check.number);
    let (verdict, reasons) = finding::judge(claim.robust, claim.tolerance, figures.strongest, &findings);
    Ok(Audit {
        verdict,
        reasons,
        claim: claim.clone(),
        defence: match &subject.purifier {
            Some(purifier) => format!("{} + {}", subject.classifier.label, purifier.label),
            None => subject.classifier.label.clone(),
        },
        dataset: subject.dataset.name.clone(),
        samples: subject.dataset.len(),
        seed: settings.seed,
        extent,
        clean: figures.clean,
        strongest: figures.strongest,
        notes: notes(&subject),
        findings,
        figures: figures.figures,
        cells: figures.cells,
        trouble: figures.trouble,
    })
}

fn say(what: &str) {
    console::say(&format!("audit: {what}"));
}

fn notes(subject: &Subject) -> Vec<String> {
    let mut notes = vec![];
    if subject.dataset.lossy {
        notes.push(format!(
            "the images of {} were decoded from JPEG, which is slightly lossy",
            subject.dataset.name
        ));
    }
    let models = [Some(&subject.classifier), subject.purifier.as_ref()];
    for model in models.into_iter().flatten().filter(|model| !model.note().is_empty()) {
        notes.push(format!("{}: {}", model.label, model.note()));
    }
    notes
}
