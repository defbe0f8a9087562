//! Warnings with advice: what a figure may hide, and what to run next.

use super::figures::Summary;
use crate::experiment::OTHER_RULE;
use crate::report::stats::mcnemar_of;
use std::fmt;

/// Level below which a paired difference is taken seriously.
const SIGNIFICANT: f64 = 0.01;
/// Share of zero gradients from which on gradients count as obfuscated.
const MANY_ZEROS: f64 = 0.1;
/// Difference between oblivious and white-box figures from which on a defence lives on its secrecy.
const LARGE_GAP: f64 = 0.2;
/// Robust accuracy from which on more draws of a random defence could show it weaker.
const STANDS: f64 = 0.1;
/// Share that an attack without a budget leaves from which on it gave up too early.
const MANY_LEFT: f64 = 0.1;
/// Robust accuracy of the undefended classifier from which on a black-box attack says nothing.
const WEAK: f64 = 0.5;

/// Something about a cell that a reader should know.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// Many input gradients are zero although the loss depends on the logits.
    ZeroGradient {
        /// Which cell.
        cell: String,
        /// Their share.
        share: f64,
    },
    /// The defence holds against an attacker who ignores it, and much less against one who knows it.
    LivesOnSecrecy {
        /// Which cell.
        cell: String,
        /// Robust accuracy with the purifier unknown.
        oblivious: f64,
        /// Robust accuracy with the purifier known.
        white_box: f64,
    },
    /// An attacker who knows less does better.
    TransferStronger {
        /// Which cell.
        cell: String,
        /// Robust accuracy with the purifier unknown.
        oblivious: f64,
        /// Robust accuracy with the purifier known.
        white_box: f64,
    },
    /// An attack that may go as far as it likes leaves samples.
    GaveUp {
        /// Which cell.
        cell: String,
        /// Share that it leaves.
        left: f64,
    },
    /// Gradients through a random defence come from one draw each.
    FewDraws {
        /// Which cell.
        cell: String,
    },
    /// The purifier's own backward rule was replaced by another.
    OtherRule {
        /// Which cell.
        cell: String,
    },
    /// A black-box figure without the same attack on the undefended classifier.
    NoControl {
        /// Which cell.
        cell: String,
    },
    /// A black-box attack that does not even break the undefended classifier.
    WeakSubstitute {
        /// Which cell.
        cell: String,
        /// Robust accuracy of the classifier alone.
        undefended: f64,
    },
    /// One step does better than many.
    SingleStepStronger {
        /// Which cell.
        cell: String,
        /// Robust accuracy under the single step.
        single: f64,
        /// Name of the other attack.
        other: String,
        /// Robust accuracy under it.
        iterated: f64,
    },
}

impl Warning {
    /// Everything there is to say about these cells.
    pub fn all(cells: &[Summary]) -> Vec<Self> {
        let whole: Vec<&Summary> = cells.iter().filter(|cell| cell.failed.is_none()).collect();
        let alone = whole.iter().flat_map(|cell| Self::of(cell));
        let pairs = whole
            .iter()
            .flat_map(|a| whole.iter().filter_map(|b| Self::of_pair(a, b)));
        let black_box = whole.iter().filter_map(|cell| Self::of_black_box(cell, &whole));
        alone.chain(pairs).chain(black_box).collect()
    }

    fn of_black_box(cell: &Summary, all: &[&Summary]) -> Option<Self> {
        cell.substitute.filter(|_| cell.purifier != "none")?;
        let same = |other: &&&Summary| {
            other.purifier == "none"
                && (&other.classifier, &other.threat_model, &other.attack)
                    == (&cell.classifier, &cell.threat_model, &cell.attack)
        };
        let name = cell.name();
        match all.iter().find(same).map(|control| control.robust_accuracy.value) {
            None => Some(Self::NoControl { cell: name }),
            Some(undefended) if undefended >= WEAK => Some(Self::WeakSubstitute { cell: name, undefended }),
            Some(_) => None,
        }
    }

    fn of(cell: &Summary) -> Vec<Self> {
        let zeros = cell.zero_gradients.filter(|share| *share >= MANY_ZEROS);
        let zeros = zeros.map(|share| Self::ZeroGradient {
            cell: cell.name(),
            share,
        });
        // Without gradients of the defence itself, giving up is no fault of the search.
        let unbounded = cell.epsilon.is_none() && cell.threat_model == "white_box";
        let left = cell.robust_accuracy.value;
        let gave_up = (unbounded && left >= MANY_LEFT).then(|| Self::GaveUp {
            cell: cell.name(),
            left,
        });
        let random = cell.random.is_some() && cell.threat_model == "white_box" && cell.zero_gradients.is_some();
        let few_draws = (random && cell.eot == 1 && left >= STANDS).then(|| Self::FewDraws { cell: cell.name() });
        let by_another = cell.purifier.contains(OTHER_RULE) && cell.threat_model == "white_box";
        let other_rule = by_another.then(|| Self::OtherRule { cell: cell.name() });
        let all = [zeros, gave_up, few_draws, other_rule];
        all.into_iter().flatten().collect()
    }

    fn of_pair(a: &Summary, b: &Summary) -> Option<Self> {
        let (first, second) = (a.robust_accuracy.value, b.robust_accuracy.value);
        let differ = || {
            a.rows.len() == b.rows.len() && {
                let pairs = a.rows.iter().zip(&b.rows).map(|(a, b)| (a.robust, b.robust));
                mcnemar_of(pairs) < SIGNIFICANT
            }
        };
        if a.same_defence(b) && a.budget() == b.budget() {
            // An attack that never asked for a gradient says nothing of gradients; one on a surrogate may overfit it.
            let through_the_defence = b.zero_gradients.is_some() && b.threat_model == "white_box";
            let single_step = a.passes <= 2 && b.passes >= 10 && a.epsilon.is_some() && through_the_defence;
            return (single_step && first < second && differ()).then(|| Self::SingleStepStronger {
                cell: a.name(),
                single: first,
                other: b.attack.clone(),
                iterated: second,
            });
        }
        let same = a.classifier == b.classifier && a.purifier == b.purifier && a.attack == b.attack;
        if !same || a.threat_model != "oblivious" || b.threat_model != "white_box" || !differ() {
            return None;
        }
        let (cell, oblivious, white_box) = (b.name(), first, second);
        match first - second {
            gap if gap >= LARGE_GAP => Some(Self::LivesOnSecrecy {
                cell,
                oblivious,
                white_box,
            }),
            gap if gap < 0. && b.epsilon.is_some() => Some(Self::TransferStronger {
                cell,
                oblivious,
                white_box,
            }),
            _ => None,
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100. * share)
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroGradient { cell, share } => write!(
                f,
                "{cell}: {} of the input gradients are zero: the robust accuracy may rest on obfuscated gradients: \
                 run again with --backward identity",
                percent(*share)
            ),
            Self::LivesOnSecrecy {
                cell,
                oblivious,
                white_box,
            } => write!(
                f,
                "{cell}: robust accuracy is {} where the attacker knows the defence, {} where it does not: \
                 quote the former",
                percent(*white_box),
                percent(*oblivious)
            ),
            Self::TransferStronger {
                cell,
                oblivious,
                white_box,
            } => write!(
                f,
                "{cell}: knowing the defence leaves {} robust, not knowing it {}: the attack through the defence \
                 is too weak: run again with more steps or --backward identity",
                percent(*white_box),
                percent(*oblivious)
            ),
            Self::GaveUp { cell, left } => write!(
                f,
                "{cell}: {} are left by an attack without a budget: that is where its search gave up, not where the defence \
                 holds: search longer (cw:preset=strong), and read the accuracy within L2 caps",
                percent(*left)
            ),
            Self::FewDraws { cell } => write!(
                f,
                "{cell}: the defence is random, and each gradient was that of one draw: the attack may be too weak: run again \
                 with --eot 10"
            ),
            Self::OtherRule { cell } => write!(
                f,
                "{cell}: gradients went by a backward rule that is not the purifier's own: run it without --backward too, and \
                 quote the lower figure"
            ),
            Self::NoControl { cell } => write!(
                f,
                "{cell}: whether this black-box attack breaks anything is not known: run it on the classifier alone \
                 too, with --purifier none beside the others"
            ),
            Self::WeakSubstitute { cell, undefended } => write!(
                f,
                "{cell}: the same black-box attack leaves {} of the classifier alone: it says nothing of the defence: \
                 give the substitute another architecture or more queries",
                percent(*undefended)
            ),
            Self::SingleStepStronger {
                cell,
                single,
                other,
                iterated,
            } => write!(
                f,
                "{cell}: a single step leaves {} robust, {other} {}: gradients may be masked: \
                 run again with more steps, restarts or --backward identity",
                percent(*single),
                percent(*iterated)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::DrawSummary;
    use super::*;
    use crate::experiment::CellOutcome;
    use crate::results::Substitute;
    use crate::results::tests::{header, row};
    use advae_abi::info::NormKind;

    /// A cell of 100 correct samples, of which that many stay so.
    fn cell(attack: &str, threat_model: &str, passes: u64, robust: u64) -> Summary {
        let mut header = header(attack, NormKind::Linf, Some(0.3));
        header.threat_model = threat_model.into();
        let rows = (0..100).map(|id| row(&header.key, id, true, id < robust)).collect();
        let shape = [1, 28, 28];
        Summary::of(&CellOutcome {
            header,
            rows,
            error: None,
            zero_gradients: Some(0.),
            queries: 0,
            substitute: None,
            passes,
            shape,
        })
    }

    #[test]
    fn a_single_step_that_beats_many_is_suspicious() {
        let cells = [cell("fgsm", "white_box", 1, 20), cell("pgd", "white_box", 40, 60)];
        assert!(matches!(Warning::all(&cells)[..], [Warning::SingleStepStronger { .. }]));
        let cells = [cell("fgsm", "white_box", 1, 60), cell("pgd", "white_box", 40, 20)];
        assert!(Warning::all(&cells).is_empty());
        let cells = [cell("fgsm", "oblivious", 1, 20), cell("pgd", "oblivious", 40, 60)];
        assert!(
            Warning::all(&cells).is_empty(),
            "a stronger attack may overfit its surrogate"
        );
    }

    #[test]
    fn an_attack_without_a_budget_leaves_nothing() {
        let unbounded = |threat_model: &str, robust| Summary {
            epsilon: None,
            ..cell("cw", threat_model, 1000, robust)
        };
        assert!(matches!(
            Warning::all(&[unbounded("white_box", 60)])[..],
            [Warning::GaveUp { .. }]
        ));
        for quiet in [unbounded("white_box", 3), unbounded("oblivious", 60)] {
            assert!(Warning::all(&[quiet]).is_empty());
        }
    }

    #[test]
    fn a_random_defence_asks_for_draws() {
        let random = |threat_model: &str, eot, robust| Summary {
            random: Some(DrawSummary {
                draws: 10,
                majority: 0.6,
                ever_wrong: 0.5,
            }),
            eot,
            ..cell("pgd", threat_model, 40, robust)
        };
        assert!(matches!(
            Warning::all(&[random("white_box", 1, 60)])[..],
            [Warning::FewDraws { .. }]
        ));
        for quiet in [
            random("white_box", 10, 60),
            random("white_box", 1, 3),
            random("oblivious", 1, 60),
        ] {
            assert!(Warning::all(&[quiet]).is_empty());
        }
    }

    #[test]
    fn knowing_the_defence_has_to_help() {
        let cells = [cell("pgd", "oblivious", 40, 95), cell("pgd", "white_box", 40, 30)];
        assert!(matches!(Warning::all(&cells)[..], [Warning::LivesOnSecrecy { .. }]));
        let cells = [cell("pgd", "oblivious", 40, 30), cell("pgd", "white_box", 40, 60)];
        assert!(matches!(Warning::all(&cells)[..], [Warning::TransferStronger { .. }]));
        let cells = [cell("pgd", "oblivious", 40, 61), cell("pgd", "white_box", 40, 60)];
        assert!(Warning::all(&cells).is_empty());
    }

    #[test]
    fn a_black_box_figure_needs_a_control_that_breaks_the_classifier() {
        let black_box = |purifier: &str, robust| {
            let mut cell = cell("pgd", "black_box", 40, robust);
            cell.purifier = purifier.into();
            cell.substitute = Some(Substitute {
                queries: 4800,
                agreeing: 90,
                of: 100,
            });
            cell
        };
        let warned = |cells: &[Summary]| Warning::all(cells);
        assert!(matches!(
            warned(&[black_box("advae", 97)])[..],
            [Warning::NoControl { .. }]
        ));
        let weak = [black_box("advae", 97), black_box("none", 80)];
        assert!(matches!(warned(&weak)[..], [Warning::WeakSubstitute { .. }]));
        assert!(warned(&[black_box("advae", 97), black_box("none", 20)]).is_empty());
    }

    #[test]
    fn a_rule_that_is_not_the_purifiers_own_is_told() {
        let mut cell = cell("pgd", "white_box", 40, 50);
        assert_eq!(Warning::of(&cell), []);
        cell.purifier += " backward=none";
        let [warning] = &Warning::of(&cell)[..] else {
            panic!("one warning is to be given")
        };
        assert!(
            warning.to_string().contains("run it without --backward too"),
            "{warning}"
        );
        cell.threat_model = "oblivious".into();
        assert_eq!(Warning::of(&cell), []);
    }

    #[test]
    fn zero_gradients_are_told_with_advice() {
        let mut cell = cell("pgd", "white_box", 40, 60);
        cell.zero_gradients = Some(0.5);
        let text = Warning::all(&[cell])[0].to_string();
        assert!(
            text.contains("50.0 % of the input gradients") && text.contains("--backward identity"),
            "{text}"
        );
    }
}
