//! An audit as a page.

use super::cells::Figure;
use super::finding::{Finding, Status};
use super::record::Audit;
use crate::report::{Share, short, with_interval};
use std::fmt::Write;

/// The audit in Markdown, readable as it is on a terminal.
pub fn markdown(audit: &Audit) -> String {
    let mut page = String::new();
    let claim = &audit.claim;
    let percent = |share: f64| format!("{:.1} %", 100. * share);
    let share = |share: Option<Share>| share.map_or("-".into(), with_interval);
    let mut line = |text: &str| {
        let _ = writeln!(page, "{text}");
    };
    line(&format!("# Audit of {}: {}\n", audit.defence, audit.verdict.name()));
    for reason in &audit.reasons {
        line(&format!("- {reason}"));
    }
    if audit.reasons.is_empty() {
        line("- the strongest attack does not lower the claim by more than the tolerance, and no check objects");
    }
    if audit.extent.quick {
        line(
            "- this was a quick audit: few samples and short searches; leave --quick away before you publish a figure",
        );
    }
    line(&format!(
        "\nClaim: {} robust under {} {} against `{}`, {}; tolerance {:.1} points.",
        percent(claim.robust),
        claim.norm,
        short(claim.epsilon),
        claim.attack,
        claim.threat_model,
        100. * claim.tolerance
    ));
    line(&format!(
        "Measured on {} samples of {}, seed {}: clean {}, robust under the strongest attack {} (%, Wilson's 95 % interval).",
        audit.samples,
        audit.dataset,
        audit.seed,
        share(audit.clean),
        share(audit.strongest)
    ));
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
