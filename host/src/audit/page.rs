//! An audit as a page.

use super::cells::Figure;
use super::finding::{Finding, Status, Verdict};
use super::record::Audit;
use crate::report::{Audited, CheckLine, Report, Share, short, with_interval};
use crate::results::Run;
use std::fmt::Write;

/// The audit in Markdown, readable as it is on a terminal.
pub fn markdown(audit: &Audit) -> String {
    let mut page = String::new();
    let mut line = |text: &str| {
        let _ = writeln!(page, "{text}");
    };
    line(&format!("# Audit of {}: {}\n", audit.defence, audit.verdict.name()));
    for reason in reasons(audit) {
        line(&format!("- {reason}"));
    }
    line(&format!("\n{}", claimed(audit, "`")));
    line(&measured(audit));
    for note in &audit.notes {
        line(&format!("Note: {note}."));
    }
    line("\n## Checks\n");
    line("| # | check | says | measured | asked | source |");
    line("|---|---|---|---|---|---|");
    for finding in &audit.findings {
        line(&row(finding));
    }
    let next: Vec<&Finding> = audit.findings.iter().filter(|finding| finding.next.is_some()).collect();
    if !next.is_empty() {
        line("\n## What to do next\n");
    }
    for finding in next {
        let next = finding.next.as_deref().unwrap_or_default();
        line(&match next.starts_with("advae-host") {
            true => format!("- {} ({}): `{next}`", finding.check.number, finding.check.name),
            false => format!("- {} ({}): {next}", finding.check.number, finding.check.name),
        });
    }
    if !audit.figures.is_empty() {
        line("\n## Every attack\n");
        line("| defence | threat model | attack | budget | robust % [95 %] |");
        line("|---|---|---|---|---|");
    }
    for figure in &audit.figures {
        line(&figure_row(figure));
    }
    page
}

/// The audit as a report: its checks, and the cells of its attacks.
pub fn report(audit: &Audit) -> Report {
    let check = |finding: &Finding| CheckLine {
        number: finding.check.number,
        name: finding.check.name.into(),
        says: finding.status.name().into(),
        objects: finding.status == Status::Objects,
        measured: finding.measured.clone(),
        asked: finding.threshold.clone(),
        source: finding.check.source.into(),
        next: finding.next.clone().unwrap_or_default(),
    };
    let audited = Audited {
        defence: audit.defence.clone(),
        verdict: audit.verdict.name().into(),
        passed: audit.verdict == Verdict::Pass,
        reasons: reasons(audit),
        claim: format!("{} {}", claimed(audit, ""), measured(audit)),
        checks: audit.findings.iter().map(check).collect(),
    };
    Report {
        audited: Some(audited),
        ..Report::new(&audit.cells)
    }
    .by([Run::here()])
}

/// Why the verdict is what it is.
fn reasons(audit: &Audit) -> Vec<String> {
    let mut reasons = audit.reasons.clone();
    if reasons.is_empty() {
        reasons.push(
            "the strongest attack does not lower the claim by more than the tolerance, and no check objects".into(),
        );
    }
    if audit.extent.quick {
        reasons.push(
            "this was a quick audit: few samples and short searches; leave --quick away before you publish a figure"
                .into(),
        );
    }
    reasons
}

/// What was claimed; `quote` around what can be typed.
fn claimed(audit: &Audit, quote: &str) -> String {
    let claim = &audit.claim;
    format!(
        "Claim: {:.1} % robust under {} {} against {quote}{}{quote}, {}; tolerance {:.1} points.",
        100. * claim.robust,
        claim.norm,
        short(claim.epsilon),
        claim.attack,
        claim.threat_model,
        100. * claim.tolerance
    )
}

fn measured(audit: &Audit) -> String {
    let share = |share: Option<Share>| share.map_or("-".into(), with_interval);
    format!(
        "Measured on {} samples of {}, seed {}: clean {}, robust under the strongest attack {} (%, Wilson's 95 % interval).",
        audit.samples,
        audit.dataset,
        audit.seed,
        share(audit.clean),
        share(audit.strongest)
    )
}

fn row(finding: &Finding) -> String {
    let says = match finding.status {
        Status::Objects => format!("**{}**", finding.status.name()),
        status => status.name().into(),
    };
    format!(
        "| {} | {} | {says} | {} | {} | {} |",
        finding.check.number,
        finding.check.name,
        cell(&finding.measured),
        cell(&finding.threshold),
        finding.check.source
    )
}

fn figure_row(figure: &Figure) -> String {
    let robust = match (&figure.failed, figure.robust) {
        (Some(why), _) => format!("failed: {why}"),
        (None, Some(share)) => with_interval(share),
        (None, None) => "-".into(),
    };
    format!(
        "| {} | {} | {} | {} | {} |",
        cell(&figure.defence),
        cell(&figure.threat_model),
        cell(&figure.attack),
        cell(&figure.budget),
        cell(&robust)
    )
}

/// Text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
