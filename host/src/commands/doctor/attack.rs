//! Attacks, tried on a linear classifier inside the host.

use super::checklist::{Checklist, Finding};
use super::lending;
use super::model::same_rows;
use super::patient::Patient;
use super::sample::{IDS, images, scale};
use super::toy;
use crate::experiment::{Limits, within_range};
use crate::report::short;
use crate::results::Search;
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use crate::terminal::progress::Ticker;
use crate::wire::attack::{Attack, Perturbed};
use crate::wire::model::Model;
use crate::wire::oracle::{Meter, Oracle, OracleState, Rules};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor, difference};
use advae_abi::OracleBox;
use advae_abi::info::{Access, AttackInfo, Target};
use anyhow::Result;
use std::sync::Arc;

/// An attack, and what it is tried on.
struct Trial {
    attack: Attack,
    model: Model,
    x: Tensor,
    y: Vec<u32>,
}

/// Checks what an attack returns, and what it does with errors.
pub fn examine(list: &mut Checklist, patient: &Patient) -> Result<()> {
    let attack = Attack::construct(&patient.plugin, patient.request.config.clone())?;
    let (model, x) = (toy::model()?, images(IDS.len(), toy::INPUT));
    let y = model.forward(&Call::score(0, &IDS), &x)?.argmax();
    let trial = Trial { attack, model, x, y };
    list.check("description", || Ok(trial.description()))?;
    if !lending::examine(list, || trial.first())? {
        return Ok(());
    }
    let mut perturbed = None;
    list.check("images", || {
        let (found, state) = trial.run(5, &[0, 1, 2, 3, 4, 5, 6], true)?;
        let finding = trial.images(&found);
        perturbed = Some((found, state));
        Ok(finding)
    })?;
    let Some((perturbed, state)) = perturbed else {
        return Ok(());
    };
    list.check("success", || trial.success(&perturbed))?;
    list.check("targets", || trial.targets(&perturbed))?;
    list.check("found", || trial.found(&perturbed))?;
    list.check("passes", || Ok(trial.passes(&state)))?;
    list.check("determinism", || trial.determinism(&perturbed))?;
    list.check("batch", || trial.batch(&perturbed))?;
    list.check("errors of the oracle", || trial.denied())
}

impl Trial {
    fn first(&self) -> Result<()> {
        let (oracle, _) = self.oracle(5, true, &IDS, &self.y);
        let perturbed = (self.attack).perturb(&Call::craft(5, &IDS), &oracle, &self.x, &self.y);
        perturbed.map(drop)
    }

    /// Attacks some of the samples, with everything granted or nothing.
    fn run(&self, seed: u64, samples: &[usize], granted: bool) -> Result<(Perturbed, Arc<OracleState>)> {
        let ids: Vec<u64> = samples.iter().map(|i| IDS[*i]).collect();
        let y: Vec<u32> = samples.iter().map(|i| self.y[*i]).collect();
        let (oracle, state) = self.oracle(seed, granted, &ids, &y);
        let result = self
            .attack
            .perturb(&Call::craft(seed, &ids), &oracle, &self.x.select(samples), &y);
        match (result, state.first_error()) {
            (Ok(_), Some(error)) => anyhow::bail!("the attack swallowed an error of the oracle: pass it on ({error})"),
            (result, _) => Ok((result?, state)),
        }
    }

    fn oracle(&self, seed: u64, granted: bool, ids: &[u64], y: &[u32]) -> (OracleBox, Arc<OracleState>) {
        let target = Pipeline::undefended(self.model.clone());
        let rules = Rules {
            labelled: target.clone(),
            target,
            access: Access {
                target: Target::Pipeline,
                gradients: granted,
                logits: granted,
                labels: granted,
                query_limit: None,
            },
            seed,
            eot: 1,
            early_stop: true,
            known_ids: None,
            call_threads: 1,
            flags: 0,
            meter: Arc::new(Meter::default()),
            watch: None,
            cancel: Cancel::default(),
        };
        Oracle::boxed(rules, ids, y, Ticker::silent())
    }

    fn description(&self) -> Finding {
        let info = self.attack.info();
        let AttackInfo {
            norm,
            epsilon,
            targeted,
            passes,
            ..
        } = info;
        if let Some(Err(error)) = epsilon.map(|epsilon| within_range(*norm, epsilon)) {
            return Finding::Fail(format!("{error:#}"));
        }
        let budget = epsilon.map_or("without a budget".into(), |epsilon| format!("within {epsilon}"));
        let aim = if *targeted { "targeted" } else { "untargeted" };
        let text = format!("{norm} {budget}, {aim}, {passes} forward or backward passes a sample at most");
        let (search, advice) = (
            Search::from(info),
            "take longer steps, or more of them, so that it can go everywhere",
        );
        match epsilon.and_then(|epsilon| search.falls_short_of(epsilon)) {
            None => Finding::Pass(text),
            Some(needed) => Finding::Warn(format!(
                "{text}; one search moves {} where the budget takes {}: {advice}",
                short(search.reach.unwrap_or_default()),
                short(needed)
            )),
        }
    }

    fn images(&self, perturbed: &Perturbed) -> Finding {
        let info = self.attack.info();
        let limits = Limits {
            bounds: [0., 1.],
            norm: info.norm,
            epsilon: info.epsilon,
        };
        let refusal = |i: usize| limits.refuse(self.x.row(i), perturbed.x_adv.row(i));
        let refused: Vec<String> = (0..self.x.rows()).filter_map(refusal).collect();
        match refused.first() {
            None => Finding::Pass("of the right shape, finite, within bounds and budget".into()),
            Some(reason) => Finding::Fail(format!(
                "{} of {} would be refused ({reason}): project and clip the last iterate",
                refused.len(),
                self.x.rows()
            )),
        }
    }

    /// Not a matter of the contract, but an attack that breaks no linear model has a mistake somewhere.
    fn success(&self, perturbed: &Perturbed) -> Result<Finding> {
        let reached = self.reached(perturbed)?;
        let broken = reached.iter().filter(|reached| **reached).count();
        let text = format!("{broken} of {} samples of an undefended linear model", reached.len());
        Ok(Finding::hope(broken > 0, text, "check the direction of the steps"))
    }

    /// Which samples end where the attack wanted them: at their target, which is not the true label, or anywhere but there.
    fn reached(&self, perturbed: &Perturbed) -> Result<Vec<bool>> {
        let labels = self.model.forward(&Call::score(5, &IDS), &perturbed.x_adv)?.argmax();
        let aimed = |i: usize| perturbed.targets.as_ref().is_none_or(|targets| labels[i] == targets[i]);
        Ok((0..labels.len()).map(|i| labels[i] != self.y[i] && aimed(i)).collect())
    }

    /// Targets where they are declared, classes of the model, and never the true label. Asked once more of samples that are
    /// misclassified to begin with, since a target may be chosen by the prediction.
    fn targets(&self, perturbed: &Perturbed) -> Result<Finding> {
        match (self.attack.info().targeted, &perturbed.targets) {
            (false, None) => return Ok(Finding::Pass("none, as it says".into())),
            (false, Some(_)) => {
                let text = "it returns targets and declares itself untargeted: set `targeted` in its info";
                return Ok(Finding::Fail(text.into()));
            }
            (true, _) => {}
        }
        let misclassified = Self {
            attack: self.attack.clone(),
            model: self.model.clone(),
            x: self.x.clone(),
            y: self.y.iter().map(|y| (y + 1) % toy::CLASSES as u32).collect(),
        };
        let (others, _) = misclassified.run(5, &[0, 1, 2, 3, 4, 5, 6], true)?;
        let problem = mistaken_target(perturbed, &self.y).or_else(|| mistaken_target(&others, &misclassified.y));
        Ok(match problem {
            Some(problem) => Finding::Fail(problem),
            None => Finding::Pass("one per sample, never the true label".into()),
        })
    }

    /// Whether it knows what it found: a sample that it gives up counts as unbroken, whatever its image.
    fn found(&self, perturbed: &Perturbed) -> Result<Finding> {
        let Some(found) = &perturbed.found else {
            return Ok(Finding::Pass("it does not say: every image is scored".into()));
        };
        let reached = self.reached(perturbed)?;
        let count = |claimed: bool, real: bool| {
            let pairs = found.iter().zip(&reached);
            pairs.filter(|pair| *pair == (&claimed, &real)).count()
        };
        let (claimed, denied) = (count(true, false), count(false, true));
        let text = format!("{} of {} found", found.iter().filter(|f| **f).count(), found.len());
        Ok(if claimed > 0 {
            Finding::Fail(format!(
                "{text}, {claimed} of which are not adversarial: claim only images that the attacked model gets wrong"
            ))
        } else if denied > 0 {
            Finding::Fail(format!(
                "{text}, but {denied} of the images given up are adversarial: they are scored as robust, claim them"
            ))
        } else {
            Finding::Pass(format!("{text}, as the model says too"))
        })
    }

    fn passes(&self, state: &OracleState) -> Finding {
        let (used, promised) = (state.rows(), self.attack.info().passes * IDS.len() as u64);
        let text = format!("{used} images went through the model, {promised} were announced");
        Finding::hope(
            used <= promised,
            text,
            "announce as many as there may be, for the progress bar",
        )
    }

    fn determinism(&self, before: &Perturbed) -> Result<Finding> {
        let (again, _) = self.run(5, &[0, 1, 2, 3, 4, 5, 6], true)?;
        let deviation = difference(&before.x_adv, &again.x_adv);
        let text = match deviation {
            0. => "the same seed gives the same bits".to_string(),
            other => format!("the same seed twice differs by {other:.3e}"),
        };
        let advice = "key all randomness by seed, sample id and draw, and keep no state";
        Ok(Finding::expect(deviation == 0., text, advice))
    }

    fn batch(&self, together: &Perturbed) -> Result<Finding> {
        let mut worst = 0f64;
        for i in 0..IDS.len() {
            let (alone, _) = self.run(5, &[i], true)?;
            worst = worst.max(difference(&alone.x_adv, &together.x_adv.select(&[i])));
        }
        Ok(same_rows(
            worst,
            scale(&together.x_adv),
            "a sample alone and in a batch of 7",
        ))
    }

    /// A threat model that grants nothing: whoever asks gets an error, and has to pass it on.
    fn denied(&self) -> Result<Finding> {
        let (oracle, state) = self.oracle(5, false, &IDS, &self.y);
        let result = self.attack.perturb(&Call::craft(5, &IDS), &oracle, &self.x, &self.y);
        Ok(match (result, state.first_error()) {
            (_, None) => Finding::Pass("it asks the oracle nothing that could be denied".into()),
            (Err(error), Some(_)) => Finding::Pass(format!("passed on: {}", console::one_line(&error))),
            (Ok(_), Some(error)) => Finding::Fail(format!("swallowed ({error}): return it, or the cell is void")),
        })
    }
}

/// What is wrong with the targets for samples with true labels `y`.
fn mistaken_target(perturbed: &Perturbed, y: &[u32]) -> Option<String> {
    let Some(targets) = &perturbed.targets else {
        return Some("it declares itself targeted and returns no targets: return one per sample".into());
    };
    targets.iter().zip(y).find_map(|(target, y)| {
        if *target as usize >= toy::CLASSES {
            let (classes, last) = (toy::CLASSES, toy::CLASSES - 1);
            return Some(format!(
                "the target {target} is none of the model's {classes} classes: return 0 to {last}"
            ));
        }
        let text = "is the sample's true label: choose another class, reaching this one is no success";
        (target == y).then(|| format!("the target {target} {text}"))
    })
}
