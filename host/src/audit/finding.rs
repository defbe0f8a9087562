//! What a check found, and the verdict that follows from all of them.

use crate::report::Share;
use serde::{Serialize, Serializer};

/// A check of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Number in [`CHECKS`].
    pub number: u8,
    /// What it looks at.
    pub name: &'static str,
    /// Where it comes from.
    pub source: &'static str,
}

const AUTOATTACK: &str = "Croce & Hein 2020, AutoAttack's flags";
const INDICATORS: &str = "Pintor et al. 2022, indicators of attack failure";
const CARLINI: &str = "Carlini et al. 2019, On Evaluating Adversarial Robustness";
const ATHALYE: &str = "Athalye et al. 2018, Obfuscated Gradients";
const LEE: &str = "Lee & Kim 2023, Robust Evaluation of Diffusion-Based Purification";

/// Every check, in the order it is told.
pub const CHECKS: [Check; 21] = [
    check(1, "randomised", AUTOATTACK),
    check(2, "softmax output", AUTOATTACK),
    check(3, "zero gradient of DLR", AUTOATTACK),
    check(4, "Square lowers the figure", AUTOATTACK),
    check(5, "optimisation at inference", AUTOATTACK),
    check(6, "unavailable gradients", INDICATORS),
    check(7, "unstable predictions", INDICATORS),
    check(8, "silent success", INDICATORS),
    check(9, "incomplete optimisation", INDICATORS),
    check(10, "transfer failure", INDICATORS),
    check(11, "unconstrained failure", INDICATORS),
    check(
        12,
        "binarisation test",
        "Zimmermann et al. 2022, Increasing Confidence in Adversarial Robustness Evaluations",
    ),
    check(13, "order of the figures", CARLINI),
    check(
        14,
        "more search, other loss, other scale",
        "Tramèr et al. 2020, On Adaptive Attacks",
    ),
    check(15, "gradient against differences", ATHALYE),
    check(16, "same answer to the same image", CARLINI),
    check(17, "linear model", CARLINI),
    check(18, "draws a gradient", LEE),
    check(19, "known draw, several draws", LEE),
    check(
        20,
        "every backward rule",
        "Croce et al. 2022, Evaluating the Adversarial Robustness of Adaptive Test-time Defenses",
    ),
    check(
        21,
        "baseline",
        "Croce et al. 2022, Evaluating the Adversarial Robustness of Adaptive Test-time Defenses",
    ),
];

const fn check(number: u8, name: &'static str, source: &'static str) -> Check {
    Check { number, name, source }
}

/// What a check says of the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As a sound evaluation has it.
    Holds,
    /// Says nothing against the claim, but belongs beside it.
    Note,
    /// The figure cannot be trusted.
    Objects,
    /// Could not be run.
    NotRun,
    /// Does not concern this defence.
    NotApplicable,
}

impl Status {
    /// In a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Note => "note",
            Self::Objects => "OBJECTS",
            Self::NotRun => "not run",
            Self::NotApplicable => "-",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Which check, with its name and source.
    #[serde(flatten, serialize_with = "check_fields")]
    pub check: Check,
    /// What it says of the claim.
    pub status: Status,
    /// What was measured.
    pub measured: String,
    /// What was asked of it.
    pub threshold: String,
    /// The next command to run, or what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

fn check_fields<S: Serializer>(check: &Check, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = serializer.serialize_map(Some(3))?;
    map.serialize_entry("number", &check.number)?;
    map.serialize_entry("name", check.name)?;
    map.serialize_entry("source", check.source)?;
    map.end()
}

impl Finding {
    fn new(number: u8, status: Status, measured: String, threshold: &str) -> Self {
        Self {
            check: CHECKS[usize::from(number) - 1],
            status,
            measured,
            threshold: threshold.into(),
            next: None,
        }
    }

    /// Holds where `fine`, else objects.
    pub fn expect(number: u8, fine: bool, measured: String, threshold: &str) -> Self {
        let status = if fine { Status::Holds } else { Status::Objects };
        Self::new(number, status, measured, threshold)
    }

    /// Something to know.
    pub fn note(number: u8, measured: String, threshold: &str) -> Self {
        Self::new(number, Status::Note, measured, threshold)
    }

    /// Could not be run.
    pub fn not_run(number: u8, why: String) -> Self {
        Self::new(number, Status::NotRun, why, "")
    }

    /// Does not concern this defence.
    pub fn not_applicable(number: u8, why: &str) -> Self {
        Self::new(number, Status::NotApplicable, why.into(), "")
    }

    /// With the next thing to do, where there is something to be done.
    pub fn next(self, next: impl Into<String>) -> Self {
        match self.status {
            Status::Holds | Status::NotApplicable => self,
            _ => Self {
                next: Some(next.into()),
                ..self
            },
        }
    }
}

/// What the audit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Nothing speaks against the claim.
    Pass,
    /// Something does.
    Suspect,
    /// Not everything could be run, or the samples are too few.
    Inconclusive,
}

impl Verdict {
    /// As it is told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Suspect => "SUSPECT",
            Self::Inconclusive => "INCONCLUSIVE",
        }
    }

    /// The exit code that says so.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Pass => 0,
            Self::Suspect => 3,
            Self::Inconclusive => 4,
        }
    }
}

/// The verdict, and why. `strongest`: robust accuracy under the strongest attack; absent where none could be run.
///
/// A pass asks that the strongest attack lowers the claim by no more than the tolerance, and that no check objects or is missing. The
/// claim is suspect where a check objects, or where it lies above the strongest attack's figure by more than the tolerance, and beyond
/// what the choice of the samples explains (Wilson's 95 % interval). Between the two more samples decide.
pub fn judge(claim: f64, tolerance: f64, strongest: Option<Share>, findings: &[Finding]) -> (Verdict, Vec<String>) {
    /// Of decimal fractions as f64 has them.
    const ROUNDING: f64 = 1e-9;
    let numbers = |status: Status| {
        let of = findings.iter().filter(|finding| finding.status == status);
        of.map(|finding| finding.check.number.to_string()).collect::<Vec<_>>()
    };
    let (objecting, missing) = (numbers(Status::Objects), numbers(Status::NotRun));
    let percent = |share: f64| format!("{:.1} %", 100. * share);
    let mut reasons = vec![];
    let mut suspect = false;
    let mut open = false;
    match strongest {
        None => {
            open = true;
            reasons.push("no attack of the whole defence could be run".to_string());
        }
        Some(share) if share.value + tolerance + ROUNDING < claim => {
            let explained = share.high + tolerance + ROUNDING >= claim;
            (suspect, open) = (!explained, explained);
            reasons.push(format!(
                "the strongest attack leaves {} [{}, {}], the claim is {}{}",
                percent(share.value),
                percent(share.low),
                percent(share.high),
                percent(claim),
                if explained { ": too few samples to tell" } else { "" },
            ));
        }
        Some(_) => {}
    }
    let checks = |numbers: &[String]| match numbers {
        [one] => format!("check {one}"),
        many => format!("checks {}", many.join(", ")),
    };
    if !objecting.is_empty() {
        suspect = true;
        let verb = if objecting.len() == 1 { "objects" } else { "object" };
        reasons.push(format!("{} {verb}", checks(&objecting)));
    }
    if !missing.is_empty() {
        open = true;
        reasons.push(format!("{} could not be run", checks(&missing)));
    }
    let verdict = match (suspect, open) {
        (true, _) => Verdict::Suspect,
        (false, true) => Verdict::Inconclusive,
        (false, false) => Verdict::Pass,
    };
    (verdict, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(value: f64, n: usize) -> Option<Share> {
        let right = (value * n as f64).round() as usize;
        Share::of((0..n).map(|i| f64::from(u8::from(i < right))))
    }

    fn verdict(claim: f64, strongest: Option<Share>, findings: &[Finding]) -> Verdict {
        judge(claim, 0.02, strongest, findings).0
    }

    #[test]
    fn a_pass_needs_the_figure_and_every_check() {
        let fine = Finding::expect(1, true, String::new(), "");
        let absent = Finding::not_applicable(18, "");
        assert_eq!(verdict(0.92, share(0.9, 1000), &[fine.clone(), absent]), Verdict::Pass);
        assert_eq!(
            verdict(0.92, share(1., 1000), &[]),
            Verdict::Pass,
            "stronger than it says"
        );
        let objects = Finding::expect(4, false, String::new(), "");
        assert_eq!(
            verdict(0.92, share(0.92, 1000), &[fine.clone(), objects]),
            Verdict::Suspect
        );
        let missing = Finding::not_run(12, String::new());
        assert_eq!(
            verdict(0.92, share(0.92, 1000), &[fine.clone(), missing]),
            Verdict::Inconclusive
        );
        assert_eq!(verdict(0.92, None, &[fine]), Verdict::Inconclusive);
    }

    #[test]
    fn few_samples_do_not_make_a_claim_suspect() {
        assert_eq!(verdict(0.92, share(0.86, 50), &[]), Verdict::Inconclusive);
        assert_eq!(verdict(0.92, share(0.86, 1000), &[]), Verdict::Suspect);
        assert_eq!(verdict(0.92, share(0.5, 50), &[]), Verdict::Suspect);
    }

    #[test]
    fn the_reasons_name_the_checks() {
        let findings = [
            Finding::expect(4, false, String::new(), ""),
            Finding::expect(15, false, String::new(), ""),
        ];
        let (_, reasons) = judge(0.9, 0.02, share(0.5, 100), &findings);
        assert_eq!(
            reasons,
            [
                "the strongest attack leaves 50.0 % [40.4 %, 59.6 %], the claim is 90.0 %",
                "checks 4, 15 object"
            ]
        );
    }

    #[test]
    fn checks_are_numbered_as_they_are_told() {
        for (i, check) in CHECKS.iter().enumerate() {
            assert_eq!(usize::from(check.number), i + 1);
        }
    }
}
