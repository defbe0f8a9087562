//! Warnings with advice: what a figure may hide, and what to run next. Typed, and aware of what was already done.

use super::figures::Summary;
use super::labels::NONE;
use super::stats::mcnemar_of;
use advae_abi::info::Target;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Level below which a paired difference is taken seriously.
const SIGNIFICANT: f64 = 0.01;
/// Share of zero gradients from which on gradients count as obfuscated.
const MANY_ZEROS: f64 = 0.1;
/// Difference between oblivious and white-box figures from which on a defence depends on being unknown.
const LARGE_GAP: f64 = 0.2;
/// Robust accuracy from which on a stronger attack could show the defence weaker.
const STANDS: f64 = 0.1;
/// Share that an attack without a budget leaves from which on it gave up too early.
const MANY_LEFT: f64 = 0.1;
/// Robust accuracy of the undefended classifier from which on a black-box attack says nothing.
const WEAK: f64 = 0.5;
/// Share of images that can be made plain from which on a budget is too large.
const MANY_PLAIN: f64 = 0.1;
/// By how much Square may lower the figure of the stages before it (Croce & Hein 2020, AutoAttack's flags).
const SQUARE_LOWERS: f64 = 0.002;
/// Draws of a random defence that count as many.
const MANY_DRAWS: u64 = 10;

/// Something about a cell that a reader should know. `cell` names it as the table does.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Warning {
    /// Many input gradients are zero.
    ZeroGradient {
        /// Which cell.
        cell: String,
        /// Their share.
        share: f64,
        /// What has not been tried against it yet.
        advice: Advice,
    },
    /// The budget is so large that many images can be made plain grey.
    HopelessBudget {
        /// The budget.
        budget: String,
        /// How many.
        plain: usize,
        /// Of how many.
        of: usize,
    },
    /// A search is too short for the ball.
    CannotCross {
        /// Which cell.
        cell: String,
        /// How far it can move.
        reach: f64,
        /// How far it would have to: the ball's diameter from a random start, its radius from the clean image.
        needed: f64,
        /// Whether it starts at random.
        random_start: bool,
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
        /// What has not been tried against it yet.
        advice: Advice,
    },
    /// An attack that may go as far as it likes leaves samples.
    GaveUp {
        /// Which cell.
        cell: String,
        /// Share that it leaves.
        left: f64,
        /// Whether the strong preset ran already.
        strong: bool,
    },
    /// Images were crafted on a GPU that rounded products.
    Rounded {
        /// Which cell.
        cell: String,
    },
    /// Gradients through a random defence come from few draws each.
    FewDraws {
        /// Which cell.
        cell: String,
        /// How many.
        eot: u64,
    },
    /// Another backward rule than the purifier's own was in use, and its own was not.
    OtherRule {
        /// Which cell.
        cell: String,
    },
    /// The purifier's gradient is a surrogate of its own, and no other rule was tried.
    SurrogateRule {
        /// Which cell.
        cell: String,
        /// Rules on offer that were not tried.
        untried: Vec<String>,
    },
    /// Another backward rule makes the attack stronger.
    StrongerRule {
        /// Which cell.
        cell: String,
        /// Robust accuracy under its rule.
        robust: f64,
        /// The other rule.
        rule: String,
        /// Robust accuracy under that.
        other: f64,
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
        /// What has not been tried against it yet.
        advice: Advice,
    },
    /// A purifier in front of a classifier that is as robust without it.
    NoBetter {
        /// Which cell.
        cell: String,
        /// Robust accuracy of the defence.
        robust: f64,
        /// The classifier alone.
        rival: String,
        /// Its robust accuracy.
        alone: f64,
    },
    /// Square breaks what the stages by gradients before it left standing.
    SquareLowers {
        /// Which cell.
        cell: String,
        /// Robust accuracy before it.
        before: f64,
        /// Robust accuracy with it.
        after: f64,
    },
    /// The defence says it is not random, but does not repeat its verdicts.
    NotRepeatable {
        /// Which cell.
        cell: String,
        /// Samples whose verdict changed.
        differing: usize,
        /// Samples that were classified again.
        of: usize,
    },
    /// One defence has two clean accuracies.
    CleanDiffers {
        /// Which defence.
        cell: String,
        /// Samples with two verdicts.
        differing: usize,
    },
    /// The classifier answers with probabilities.
    Probabilities {
        /// Which cell.
        cell: String,
    },
}

/// What to run next: only what can be run and was not yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Advice(Vec<String>);

impl Advice {
    /// Against gradients that lead nowhere.
    fn against_masking(cell: &Summary, tried: &Tried) -> Self {
        let mut advice = vec![];
        if !tried.margin {
            advice.push(format!("--attack {}", margin(cell)));
        }
        let identity = cell.cell.header.rule.is_some() && !tried.rules.contains("identity");
        if identity && cell.through_the_defence() {
            advice.push("--backward all".into());
        }
        if advice.is_empty() && !tried.black_box {
            advice.push("an attack that needs no gradient, such as --threat-model black_box".into());
        }
        Self(advice)
    }

    /// Against a search that ends too early.
    fn against_short_search(cell: &Summary, tried: &Tried) -> Self {
        let mut advice = Self::against_masking(cell, tried);
        if !tried.thorough {
            let steps = "more steps and restarts, such as --attack pgd:steps=100,restarts=5";
            advice.0.insert(0, steps.into());
        }
        advice
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => write!(f, "what is at hand was run: take the lowest figure as an upper bound"),
            advice => write!(f, "run {}", advice.join(", or ")),
        }
    }
}

/// The attack with the margin loss; where it is another than `pgd`, which has that loss, `pgd` itself.
fn margin(cell: &Summary) -> String {
    let named = &cell.cell.header.attack;
    let own = named
        .settings
        .iter()
        .filter(|_| cell.cell.header.config.attack.name == "pgd");
    let kept = own.map(String::as_str).filter(|setting| !setting.starts_with("loss="));
    let settings: Vec<&str> = kept.chain(["loss=margin"]).collect();
    format!("pgd:{}", settings.join(","))
}

/// What was run against one defence.
struct Tried {
    /// Backward rules, under the cell's threat model.
    rules: BTreeSet<String>,
    /// Whether a search went by the margin loss, under that.
    margin: bool,
    /// Whether a search reached the whole ball, under that.
    crossing: bool,
    /// Whether a search had 100 steps and 5 restarts, or steps that adapt, under that.
    thorough: bool,
    /// Whether an attacker had labels alone.
    black_box: bool,
}

impl Tried {
    fn against(cell: &Summary, all: &[&Summary]) -> Self {
        let config = |other: &Summary| other.cell.header.config.clone();
        let like: Vec<&Summary> = all.iter().filter(|other| other.same_defence(cell)).copied().collect();
        let rules = like.iter().filter_map(|other| other.cell.header.rule.as_ref());
        let same_budget = |other: &&&Summary| config(other).same_budget(&config(cell));
        let crosses = |other: &&Summary| {
            let search = &other.cell.header.search;
            let reaches = |epsilon: f64| search.reach.is_some() && search.falls_short_of(epsilon).is_none();
            search.passes >= 10 && other.epsilon.is_some_and(reaches)
        };
        let thorough = |other: &&Summary| {
            let setting = |name: &str| {
                config(other)
                    .attack
                    .config
                    .get(name)
                    .and_then(serde_json::Value::as_u64)
            };
            match config(other).attack.name.as_str() {
                "pgd" => setting("steps") >= Some(100) && setting("restarts") >= Some(5),
                name => name == "apgd" && setting("steps").is_none_or(|steps| steps >= 100),
            }
        };
        let substitute = |other: &&Summary| {
            let target = other.cell.header.target == Some(Target::Substitute);
            target && config(other).same_defence(&config(cell))
        };
        Self {
            crossing: like.iter().filter(same_budget).any(crosses),
            thorough: like.iter().filter(same_budget).any(thorough),
            rules: rules.map(|rule| rule.used.clone()).collect(),
            margin: (like.iter().filter_map(|other| other.cell.header.search.loss.as_deref()))
                .any(|loss| ["margin", "dlr", "dlr_targeted"].contains(&loss)),
            black_box: all.iter().any(substitute),
        }
    }
}

impl Warning {
    /// Everything there is to say about these cells.
    pub fn all(cells: &[Summary]) -> Vec<Self> {
        let whole: Vec<&Summary> = cells.iter().filter(|cell| cell.robust_accuracy.is_some()).collect();
        let alone = whole.iter().flat_map(|cell| Self::of(cell, &whole));
        let pairs = whole
            .iter()
            .flat_map(|a| whole.iter().filter_map(|b| Self::of_pair(a, b, &whole)));
        let black_box = whole.iter().filter_map(|cell| Self::of_black_box(cell, &whole));
        let clean = Self::of_clean(&whole);
        let better = whole
            .iter()
            .flat_map(|a| whole.iter().filter_map(|b| Self::of_rival(a, b)));
        let square = whole.iter().filter_map(|cell| Self::of_square(cell, &whole));
        let budgets = Self::of_budgets(&whole);
        budgets
            .into_iter()
            .chain(alone)
            .chain(pairs)
            .chain(better)
            .chain(square)
            .chain(black_box)
            .chain(clean)
            .collect()
    }

    /// Once a budget.
    fn of_budgets(all: &[&Summary]) -> Vec<Self> {
        let mut warnings = vec![];
        for cell in all {
            let (plain, of) = (cell.cell.header.plain, cell.cell.header.samples);
            let budget = cell.budget();
            let warning = Self::HopelessBudget { budget, plain, of };
            if plain as f64 >= MANY_PLAIN * of as f64 && plain > 0 && !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings
    }

    /// A defence beside the same classifier without a purifier, whatever its weights, under the same attack.
    fn of_rival(a: &Summary, b: &Summary) -> Option<Self> {
        let [x, y] = [a, b].map(|cell| &cell.cell.header.config);
        let images = (&x.dataset, &x.dataset_sha256) == (&y.dataset, &y.dataset_sha256);
        let same = images && x.classifier.plugin == y.classifier.plugin && a.same_attack(b);
        let rivals = a.purifier != NONE && b.purifier == NONE && a.through_the_defence() && b.through_the_defence();
        let no_better = same && rivals && a.epsilon.is_some() && a.robust() <= b.robust();
        no_better.then(|| Self::NoBetter {
            cell: a.name(),
            robust: a.robust(),
            rival: b.classifier.clone(),
            alone: b.robust(),
        })
    }

    /// AutoAttack's own flag: a search that asks for logits alone should find nothing behind gradients that lead somewhere.
    fn of_square(cell: &Summary, all: &[&Summary]) -> Option<Self> {
        let config = &cell.cell.header.config;
        let after = config.stage.as_ref()?.after.as_ref()?;
        let before = all.iter().find(|other| other.key == *after)?;
        let lowers = config.attack.name == "square" && before.robust() - cell.robust() > SQUARE_LOWERS;
        lowers.then(|| Self::SquareLowers {
            cell: cell.name(),
            before: before.robust(),
            after: cell.robust(),
        })
    }

    fn of_black_box(cell: &Summary, all: &[&Summary]) -> Option<Self> {
        cell.substitute.filter(|_| cell.purifier != NONE)?;
        let config = &cell.cell.header.config;
        let same = |other: &&&Summary| {
            let its = &other.cell.header.config;
            its.purifier.is_none()
                && its.classifier == config.classifier
                && its.threat_model == config.threat_model
                && other.same_attack(cell)
        };
        let name = cell.name();
        match all.iter().find(same).map(|control| control.robust()) {
            None => Some(Self::NoControl { cell: name }),
            Some(undefended) if undefended >= WEAK => Some(Self::WeakSubstitute { cell: name, undefended }),
            Some(_) => None,
        }
    }

    /// Two verdicts on one clean image: a cell differs from the first of the same defence.
    fn of_clean(all: &[&Summary]) -> Vec<Self> {
        let mut warnings = vec![];
        for (i, cell) in all.iter().enumerate() {
            let config = &cell.cell.header.config;
            let first = all[..i]
                .iter()
                .find(|first| config.same_defence(&first.cell.header.config));
            let Some(first) = first.filter(|_| config.draws == 1) else {
                continue;
            };
            let pairs = cell
                .cell
                .rows
                .iter()
                .filter_map(|(id, row)| Some((first.cell.rows.get(id)?, row)));
            let differing = pairs.filter(|(a, b)| a.clean_prediction != b.clean_prediction).count();
            if differing > 0 {
                let cell = cell.defence();
                warnings.push(Self::CleanDiffers { cell, differing });
            }
        }
        warnings
    }

    fn of(cell: &Summary, all: &[&Summary]) -> Vec<Self> {
        let search = Self::of_search(cell, all).into_iter();
        search
            .chain(Self::of_rule(cell, all))
            .chain(Self::of_check(cell))
            .collect()
    }

    fn of_search(cell: &Summary, all: &[&Summary]) -> Vec<Self> {
        let (search, left) = (&cell.cell.header.search, cell.robust());
        let zeros = cell
            .zero_gradients
            .filter(|share| *share >= MANY_ZEROS && left >= STANDS);
        let zeros = zeros.map(|share| Self::ZeroGradient {
            cell: cell.name(),
            share,
            advice: Advice::against_masking(cell, &Tried::against(cell, all)),
        });
        let short = (cell.epsilon.filter(|_| left >= STANDS)).and_then(|epsilon| search.falls_short_of(epsilon));
        let short = short.filter(|_| !Tried::against(cell, all).crossing);
        let short = short.map(|needed| Self::CannotCross {
            cell: cell.name(),
            reach: search.reach.unwrap_or_default(),
            needed,
            random_start: search.random_start == Some(true),
        });
        // Without gradients of the defence itself, giving up is no fault of the search.
        let unbounded = cell.epsilon.is_none() && cell.through_the_defence();
        let gave_up = (unbounded && left >= MANY_LEFT).then(|| Self::GaveUp {
            cell: cell.name(),
            left,
            strong: cell.cell.header.attack.settings.iter().any(|s| s == "preset=strong"),
        });
        let random = cell.random.is_some() && cell.through_the_defence() && cell.zero_gradients.is_some();
        let few_draws = (random && cell.eot < MANY_DRAWS && left >= STANDS).then(|| Self::FewDraws {
            cell: cell.name(),
            eot: cell.eot,
        });
        let exact = |other: &&Summary| {
            other.cell.header.config.precision.is_single() && other.same_defence(cell) && other.same_attack(cell)
        };
        let rounds =
            !cell.cell.header.config.precision.is_single() && left >= STANDS && !all.iter().copied().any(|o| exact(&o));
        let rounded = rounds.then(|| Self::Rounded { cell: cell.name() });
        [zeros, short, gave_up, few_draws, rounded]
            .into_iter()
            .flatten()
            .collect()
    }

    fn of_rule(cell: &Summary, all: &[&Summary]) -> Option<Self> {
        let rule = cell.cell.header.rule.as_ref().filter(|_| cell.through_the_defence())?;
        let tried = Tried::against(cell, all).rules;
        let own = rule.offered.first()?;
        if rule.used != *own {
            return (!tried.contains(own)).then(|| Self::OtherRule { cell: cell.name() });
        }
        let untried: Vec<String> = (rule.offered.iter())
            .filter(|other| !tried.contains(*other) && *other != "none")
            .cloned()
            .collect();
        let surrogate = rule.used == "custom" && !untried.is_empty() && cell.robust() >= STANDS;
        surrogate.then(|| Self::SurrogateRule {
            cell: cell.name(),
            untried,
        })
    }

    fn of_check(cell: &Summary) -> Vec<Self> {
        let Some(check) = cell.cell.check else { return vec![] };
        let name = || cell.name();
        let differs = (check.differing > 0).then(|| Self::NotRepeatable {
            cell: name(),
            differing: check.differing,
            of: check.repeated,
        });
        let probabilities = check.probabilities.then(|| Self::Probabilities { cell: name() });
        [differs, probabilities].into_iter().flatten().collect()
    }

    fn of_pair(a: &Summary, b: &Summary, all: &[&Summary]) -> Option<Self> {
        let (first, second) = (a.robust(), b.robust());
        let [x, y] = [a, b].map(|cell| &cell.cell.header.config);
        if a.key == b.key || !x.same_samples(y) {
            return None;
        }
        if a.same_defence(b) && x.same_budget(y) {
            if a.same_attack(b) && a.cell.header.rule != b.cell.header.rule {
                let rule = b.cell.header.rule.as_ref()?.used.clone();
                let weaker = a.through_the_defence() && second < first && differ(a, b);
                return weaker.then(|| Self::StrongerRule {
                    cell: a.name(),
                    robust: first,
                    rule,
                    other: second,
                });
            }
            // An attack that never asked for a gradient says nothing of gradients; one on a surrogate may overfit it.
            let through_the_defence = b.zero_gradients.is_some() && b.through_the_defence();
            let [one, many] = [a, b].map(|cell| cell.cell.header.search.passes);
            let single_step = (1..=2).contains(&one) && many >= 10 && a.epsilon.is_some() && through_the_defence;
            return (single_step && first < second && differ(a, b)).then(|| Self::SingleStepStronger {
                cell: a.name(),
                single: first,
                other: b.attack.clone(),
                iterated: second,
                advice: Advice::against_short_search(b, &Tried::against(b, all)),
            });
        }
        let same = x.same_defence(y) && a.same_attack(b);
        let ignores = a.cell.header.target == Some(Target::Classifier) && a.purifier != NONE;
        if !same || !ignores || !b.through_the_defence() || !differ(a, b) {
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
                advice: Advice::against_short_search(b, &Tried::against(b, all)),
            }),
            _ => None,
        }
    }
}

/// McNemar's test on the samples that both cells scored.
fn differ(a: &Summary, b: &Summary) -> bool {
    let pairs = a
        .cell
        .rows
        .iter()
        .filter_map(|(id, row)| Some((row.robust, b.cell.rows.get(id)?.robust)));
    mcnemar_of(pairs) < SIGNIFICANT
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100. * share)
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroGradient { cell, share, advice } => write!(
                f,
                "{cell}: {} of the input gradients are zero: the robust accuracy may rest on masked or saturated gradients: \
                 {advice}",
                percent(*share)
            ),
            Self::HopelessBudget { budget, plain, of } => write!(
                f,
                "{budget} is enough to make {plain} of {of} images plain grey, where no classifier can tell one from the other: what \
                 is left robust is chance, or a search that gave up: choose a smaller budget"
            ),
            Self::CannotCross {
                cell,
                reach,
                needed,
                random_start,
            } => {
                let (reach, far) = (super::figures::short(*reach), super::figures::short(*needed));
                match random_start {
                    true => write!(
                        f,
                        "{cell}: from its random start the search can move {reach}, but the ball is {far} wide"
                    )?,
                    false => write!(
                        f,
                        "{cell}: the search can move {reach}, but the edge of the ball is {far} away"
                    )?,
                }
                let step = super::figures::short(needed / 20.);
                write!(
                    f,
                    ": some of it is never reached: run it with longer steps too, such as --attack pgd:step_size={step}"
                )
            }
            Self::LivesOnSecrecy {
                cell,
                oblivious,
                white_box,
            } => write!(
                f,
                "{cell}: robust accuracy is {} where the attacker knows the defence, {} where it does not: \
                 quote the worst case of an attacker who knows it",
                percent(*white_box),
                percent(*oblivious)
            ),
            Self::TransferStronger {
                cell,
                oblivious,
                white_box,
                advice,
            } => write!(
                f,
                "{cell}: knowing the defence leaves {} robust, not knowing it {}: the attack through the defence \
                 is too weak: {advice}",
                percent(*white_box),
                percent(*oblivious)
            ),
            Self::GaveUp { cell, left, strong } => write!(
                f,
                "{cell}: {} are left by an attack without a budget: that is where its search gave up, not where the defence \
                 holds: {}read the accuracy within L2 caps",
                percent(*left),
                if *strong {
                    ""
                } else {
                    "search longer (cw:preset=strong), and "
                }
            ),
            Self::FewDraws { cell, eot } => write!(
                f,
                "{cell}: the defence is random, and each gradient is the mean of {eot} draw{}: the attack may be too weak: run \
                 again with --eot {}",
                if *eot == 1 { "" } else { "s" },
                (10 * eot).max(MANY_DRAWS)
            ),
            Self::Rounded { cell } => write!(
                f,
                "{cell}: the attack computed in TF32, in which it may miss what it would find in f32: quote figures without \
                 --precision tf32"
            ),
            Self::OtherRule { cell } => write!(
                f,
                "{cell}: gradients went by a backward rule that is not the purifier's own: run it with --backward all, and \
                 quote the lowest figure"
            ),
            Self::SurrogateRule { cell, untried } => write!(
                f,
                "{cell}: gradients went by the purifier's own surrogate, which may lead nowhere; {} not tried: run it with \
                 --backward all, and quote the lowest figure",
                match &untried[..] {
                    [one] => format!("the rule {one} was"),
                    many => format!("the rules {} were", many.join(", ")),
                }
            ),
            Self::StrongerRule {
                cell,
                robust,
                rule,
                other,
            } => write!(
                f,
                "{cell}: this backward rule leaves {} robust, {rule} {}: quote the worst case over both",
                percent(*robust),
                percent(*other)
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
                advice,
            } => write!(
                f,
                "{cell}: a single step leaves {} robust, {other} {}: gradients may be masked: {advice}",
                percent(*single),
                percent(*iterated)
            ),
            Self::NoBetter {
                cell,
                robust,
                rival,
                alone,
            } => write!(
                f,
                "{cell}: leaves {}, and {rival} without a purifier {}: the purifier is of no use against this attack",
                percent(*robust),
                percent(*alone)
            ),
            Self::SquareLowers { cell, before, after } => write!(
                f,
                "{cell}: attacks by gradients leave {}, and Square, which asks for logits alone, {}: gradients mislead here, so that \
                 stronger attacks without them may leave less: run advae-host audit",
                percent(*before),
                percent(*after)
            ),
            Self::NotRepeatable { cell, differing, of } => write!(
                f,
                "{cell}: the defence says it is not random, but {differing} of {of} verdicts changed when the host repeated \
                 them: no figure of it can be relied on: set random in its info, and key all randomness by the call's context"
            ),
            Self::CleanDiffers { cell, differing } => write!(
                f,
                "{cell}: {differing} clean images have one verdict in one row and another in the next: the defence is random or \
                 keeps state: no figure of it can be relied on: examine it with doctor"
            ),
            Self::Probabilities { cell } => write!(
                f,
                "{cell}: the classifier answers with numbers that add up to 1, as probabilities do: gradients through a softmax \
                 vanish and flatter it: return the logits before the softmax"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::DrawSummary;
    use super::*;
    use crate::plugin::PluginSpec;
    use crate::results::tests::{header, row};
    use crate::results::{Cell, Check, Named, Rule, Substitute};
    use advae_abi::info::NormKind;

    /// A cell of 100 correct samples, of which that many stay so.
    fn record(attack: &str, target: Target, passes: u64, robust: u64) -> Cell {
        let mut header = header(attack, NormKind::Linf, Some(0.3));
        header.target = Some(target);
        header.search.passes = passes;
        let name = match target {
            Target::Pipeline => "white_box",
            Target::Classifier => "oblivious",
            Target::Substitute => "black_box",
        };
        header.threat_model = Named::plain(name);
        header.config.threat_model.name = name.into();
        header.key = header.config.key();
        let mut cell = Cell::new(header);
        cell.rows = (0..100)
            .map(|id| (id, row(&cell.header.key, id, true, id < robust)))
            .collect();
        cell.rows.values_mut().for_each(|row| row.gradients = 10);
        cell
    }

    fn warned(cells: &[Cell]) -> Vec<Warning> {
        Warning::all(&Summary::all(cells))
    }

    const WHITE: Target = Target::Pipeline;
    const OBLIVIOUS: Target = Target::Classifier;

    #[test]
    fn a_single_step_that_beats_many_is_suspicious() {
        let cells = [record("fgsm", WHITE, 1, 20), record("pgd", WHITE, 40, 60)];
        assert!(matches!(warned(&cells)[..], [Warning::SingleStepStronger { .. }]));
        assert_eq!(
            warned(&[record("fgsm", WHITE, 1, 60), record("pgd", WHITE, 40, 20)]),
            []
        );
        let surrogate = [record("fgsm", OBLIVIOUS, 1, 20), record("pgd", OBLIVIOUS, 40, 60)];
        assert_eq!(warned(&surrogate), [], "a stronger attack may overfit its surrogate");
    }

    #[test]
    fn square_that_breaks_what_gradients_left_is_suspicious() {
        let staged = |robust: u64| {
            let before = record("fab", Target::Pipeline, 100, 80);
            let mut square = record("square", Target::Pipeline, 5000, robust);
            square.header.config.stage = Some(crate::results::Stage {
                suite: "autoattack".into(),
                number: 4,
                of: 4,
                after: Some(before.header.key.clone()),
            });
            warned(&[before, square])
        };
        let lowers = |warnings: &[Warning]| warnings.iter().any(|w| matches!(w, Warning::SquareLowers { .. }));
        assert!(lowers(&staged(79)));
        assert!(!lowers(&staged(80)));
    }

    #[test]
    fn an_attack_without_a_budget_leaves_nothing() {
        let unbounded = |target, robust| {
            let mut cell = record("cw", target, 1000, robust);
            cell.header.config.epsilon = None;
            cell
        };
        assert!(matches!(warned(&[unbounded(WHITE, 60)])[..], [Warning::GaveUp { .. }]));
        for quiet in [unbounded(WHITE, 3), unbounded(OBLIVIOUS, 60)] {
            assert_eq!(warned(&[quiet]), []);
        }
    }

    #[test]
    fn advice_never_names_what_was_done_already() {
        let mut strong = record("cw", WHITE, 1000, 60);
        strong.header.config.epsilon = None;
        strong.header.attack.settings = vec!["preset=strong".into()];
        let text = warned(&[strong])[0].to_string();
        assert!(!text.contains("cw:preset=strong)"), "{text}");

        let mut zeros = record("pgd", WHITE, 40, 60);
        zeros.rows.values_mut().for_each(|row| row.zero_gradients = 5);
        zeros.header.search.loss = Some("ce".into());
        zeros.header.rule = Some(Rule {
            used: "exact".into(),
            offered: vec!["exact".into(), "identity".into()],
        });
        let text = |cells: &[Cell]| warned(cells)[0].to_string();
        let first = text(std::slice::from_ref(&zeros));
        assert!(first.contains("50.0 % of the input gradients"), "{first}");
        assert!(
            first.contains("--attack pgd:loss=margin") && first.contains("--backward all"),
            "{first}"
        );
        let mut margin = zeros.clone();
        margin.header.search.loss = Some("margin".into());
        margin
            .header
            .config
            .attack
            .config
            .insert("loss".into(), "margin".into());
        margin.header.key = margin.header.config.key();
        let second = text(&[zeros.clone(), margin]);
        assert!(
            !second.contains("loss=margin") && second.contains("--backward all"),
            "{second}"
        );
        zeros.header.rule = None;
        zeros.header.search.loss = Some("margin".into());
        let last = text(&[zeros]);
        assert!(last.contains("needs no gradient"), "{last}");
    }

    #[test]
    fn advice_can_be_pasted() {
        let advised = |attack: &str, settings: &[&str], loss: Option<&str>| {
            let mut cell = record(attack, WHITE, 40, 60);
            cell.rows.values_mut().for_each(|row| row.zero_gradients = 5);
            cell.header.attack.settings = settings.iter().map(|s| s.to_string()).collect();
            cell.header.search.loss = loss.map(String::from);
            warned(&[cell])[0].to_string()
        };
        let spec = |text: &str| {
            let from = text.find("--attack ").map(|at| at + "--attack ".len()).unwrap();
            let word = text[from..].split_whitespace().next().unwrap().trim_end_matches(',');
            PluginSpec::parse(word).unwrap().to_string()
        };
        let fgsm = advised("fgsm", &[], Some("ce"));
        assert_eq!(spec(&fgsm), "pgd:loss=margin", "fgsm has no such setting");
        let pgd = advised("pgd", &["steps=20", "loss=ce"], Some("ce"));
        assert_eq!(spec(&pgd), "pgd:steps=20,loss=margin");
        assert_eq!(spec(&advised("theirs", &["a=b"], None)), "pgd:loss=margin");
    }

    #[test]
    fn nothing_is_advised_twice() {
        let weak = record("pgd", WHITE, 40, 60);
        let step = record("fgsm", WHITE, 1, 20);
        let text = |cells: &[Cell]| warned(cells).iter().map(Warning::to_string).collect::<String>();
        assert!(text(&[step.clone(), weak.clone()]).contains("pgd:steps=100,restarts=5"));
        let mut thorough = record("pgd", WHITE, 1000, 50);
        let config = &mut thorough.header.config.attack.config;
        config.insert("steps".into(), 100.into());
        config.insert("restarts".into(), 5.into());
        thorough.header.key = thorough.header.config.key();
        let said = text(&[step.clone(), weak.clone(), thorough.clone()]);
        assert!(
            said.contains("a single step") && !said.contains("pgd:steps=100"),
            "{said}"
        );
        thorough.header.search.loss = Some("margin".into());
        assert!(text(&[step.clone(), weak.clone(), thorough.clone()]).contains("--threat-model black_box"));
        let box_ = record("pgd", Target::Substitute, 40, 60);
        let said = text(&[step, weak, thorough, box_]);
        assert!(
            said.contains("what is at hand was run") && !said.contains("--threat-model black_box"),
            "{said}"
        );
    }

    #[test]
    fn a_search_that_cannot_cross_the_ball_is_told() {
        let mut cell = record("pgd", WHITE, 40, 60);
        cell.header.search.random_start = Some(true);
        cell.header.search.reach = Some(0.4);
        let text = warned(std::slice::from_ref(&cell))[0].to_string();
        assert!(text.contains("can move 0.4, but the ball is 0.6 wide"), "{text}");
        let mut longer = cell.clone();
        longer.header.search.reach = Some(1.2);
        longer
            .header
            .config
            .attack
            .config
            .insert("step_size".into(), 0.03.into());
        longer.header.key = longer.header.config.key();
        assert_eq!(warned(&[cell.clone(), longer]), [], "it was done already");
        cell.header.search.reach = Some(0.75);
        assert_eq!(warned(std::slice::from_ref(&cell)), []);
        (cell.header.search.reach, cell.header.search.random_start) = (Some(0.4), Some(false));
        assert_eq!(
            warned(std::slice::from_ref(&cell)),
            [],
            "from the clean image the radius is enough"
        );
        cell.header.search.reach = Some(0.1);
        let text = warned(&[cell])[0].to_string();
        assert!(
            text.contains("can move 0.1, but the edge of the ball is 0.3 away"),
            "{text}"
        );
    }

    #[test]
    fn a_budget_that_makes_images_plain_is_told_once() {
        let (mut fgsm, mut pgd) = (record("fgsm", WHITE, 1, 20), record("pgd", WHITE, 40, 15));
        for cell in [&mut fgsm, &mut pgd] {
            (cell.header.samples, cell.header.plain) = (100, 9);
        }
        assert_eq!(warned(&[fgsm.clone(), pgd.clone()]), []);
        (fgsm.header.plain, pgd.header.plain) = (40, 40);
        let warnings = warned(&[fgsm, pgd]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let text = warnings[0].to_string();
        assert!(
            text.starts_with("Linf 0.3 is enough to make 40 of 100 images plain grey"),
            "{text}"
        );
    }

    #[test]
    fn a_random_defence_asks_for_draws() {
        let random = |target, eot, robust| {
            let mut cell = record("pgd", target, 40, robust);
            (cell.header.config.draws, cell.header.config.eot) = (10, eot);
            cell
        };
        assert!(matches!(
            warned(&[random(WHITE, 1, 60)])[..],
            [Warning::FewDraws { eot: 1, .. }]
        ));
        for quiet in [random(WHITE, 10, 60), random(WHITE, 1, 3), random(OBLIVIOUS, 1, 60)] {
            assert_eq!(warned(&[quiet]), []);
        }
        let summary = &Summary::all(&[random(WHITE, 1, 60)])[0];
        assert!(matches!(summary.random, Some(DrawSummary { draws: 10, .. })));
    }

    #[test]
    fn knowing_the_defence_has_to_help() {
        let cells = [record("pgd", OBLIVIOUS, 40, 95), record("pgd", WHITE, 40, 30)];
        assert!(matches!(warned(&cells)[..], [Warning::LivesOnSecrecy { .. }]));
        let cells = [record("pgd", OBLIVIOUS, 40, 30), record("pgd", WHITE, 40, 60)];
        assert!(matches!(warned(&cells)[..], [Warning::TransferStronger { .. }]));
        assert_eq!(
            warned(&[record("pgd", OBLIVIOUS, 40, 61), record("pgd", WHITE, 40, 60)]),
            []
        );
    }

    #[test]
    fn pairs_are_joined_by_their_ids_and_not_by_their_order() {
        let (mut a, b) = (record("pgd", OBLIVIOUS, 40, 95), record("pgd", WHITE, 40, 30));
        a.rows = (a.rows.into_iter()).map(|(id, row)| (id + 1000, row)).collect();
        assert_eq!(warned(&[a, b]), [], "no sample is common: nothing can be compared");
    }

    #[test]
    fn a_black_box_figure_needs_a_control_that_breaks_the_classifier() {
        let black_box = |purified: bool, robust| {
            let mut cell = record("pgd", Target::Substitute, 40, robust);
            if !purified {
                (cell.header.purifier, cell.header.config.purifier) = (None, None);
                cell.header.key = cell.header.config.key();
            }
            cell.substitute = Some(Substitute {
                queries: 4800,
                agreeing: 90,
                of: 100,
            });
            cell
        };
        assert!(matches!(
            warned(&[black_box(true, 97)])[..],
            [Warning::NoControl { .. }]
        ));
        let weak = [black_box(true, 97), black_box(false, 80)];
        assert!(matches!(warned(&weak)[..], [Warning::WeakSubstitute { .. }]));
        assert_eq!(warned(&[black_box(true, 97), black_box(false, 20)]), []);
    }

    /// The cell with gradients by that rule of `custom`, `identity` and `none`.
    fn by(rule: &str, robust: u64) -> Cell {
        let mut cell = record("pgd", WHITE, 40, robust);
        cell.header.rule = Some(Rule {
            used: rule.into(),
            offered: ["custom", "identity", "none"].map(String::from).to_vec(),
        });
        if let Some(purifier) = &mut cell.header.config.purifier {
            purifier.backward = Some(rule.into());
        }
        cell.header.key = cell.header.config.key();
        cell
    }

    #[test]
    fn a_rule_that_is_not_the_purifiers_own_is_told() {
        let [warning] = &warned(&[by("none", 50)])[..] else {
            panic!("one warning is to be given")
        };
        assert!(warning.to_string().contains("with --backward all"), "{warning}");
        let mut oblivious = by("none", 50);
        oblivious.header.target = Some(OBLIVIOUS);
        assert_eq!(warned(&[oblivious]), []);
    }

    #[test]
    fn a_surrogate_gradient_asks_for_the_other_rules_and_a_stronger_one_is_named() {
        assert!(
            matches!(&warned(&[by("custom", 50)])[..], [Warning::SurrogateRule { untried, .. }] if untried == &["identity"])
        );
        let both = warned(&[by("custom", 50), by("identity", 10)]);
        assert!(
            matches!(&both[..], [Warning::StrongerRule { rule, robust, .. }] if rule == "identity" && *robust == 0.5),
            "{both:?}"
        );
    }

    #[test]
    fn what_does_not_repeat_and_what_is_no_logit_is_told() {
        let mut cell = record("pgd", WHITE, 40, 60);
        cell.check = Some(Check {
            repeated: 16,
            differing: 3,
            probabilities: true,
        });
        assert!(matches!(
            warned(&[cell])[..],
            [Warning::NotRepeatable { .. }, Warning::Probabilities { .. }]
        ));
        let (first, mut second) = (record("fgsm", WHITE, 1, 60), record("pgd", WHITE, 40, 60));
        if let Some(row) = second.rows.get_mut(&7) {
            row.clean_prediction = 9;
        }
        assert!(matches!(
            warned(&[first, second])[..],
            [Warning::CleanDiffers { differing: 1, .. }]
        ));
    }
}
