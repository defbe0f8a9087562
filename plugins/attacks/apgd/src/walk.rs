//! What APGD keeps of every sample's search: its best point, and the step that it halves.

use advae_sdk::attack::choose;
use advae_sdk::prelude::*;

/// Checkpoints: the first after .22 of the steps, then each gap is .03 of the steps shorter than the last, down to .06.
pub(crate) fn checkpoints(steps: u64) -> Vec<u64> {
    let share = |share: f64| ((share * steps as f64) as u64).max(1);
    let (mut gap, mut all) = (share(0.22), vec![]);
    let mut next = gap;
    while next <= steps {
        all.push(next);
        gap = gap.saturating_sub(share(0.03)).max(share(0.06));
        next += gap;
    }
    all
}

/// The searches of all active samples, a row each.
pub(crate) struct Walk {
    /// Images before the last step `[n,C,H,W]`.
    pub(crate) previous: Tensor,
    /// Gradients at the present images `[n,C,H,W]`.
    pub(crate) gradient: Tensor,
    /// The points with the highest loss, and their gradients.
    best: Tensor,
    best_gradient: Tensor,
    paces: Vec<Pace>,
}

impl Walk {
    pub(crate) fn new(start: &Tensor, gradient: Tensor, losses: &[f32], step_size: f64) -> Self {
        Self {
            previous: start.clone(),
            best: start.clone(),
            best_gradient: gradient.clone(),
            gradient,
            paces: losses.iter().map(|loss| Pace::new(*loss, step_size as f32)).collect(),
        }
    }

    pub(crate) fn step_sizes(&self) -> Vec<f32> {
        self.paces.iter().map(|pace| pace.step_size).collect()
    }

    /// Goes on with some rows; the gradient is that of the last step until the next is seen.
    pub(crate) fn select(&mut self, rows: &[usize]) -> Result<()> {
        if rows.len() == self.paces.len() {
            return Ok(());
        }
        for tensor in [&mut self.previous, &mut self.best, &mut self.best_gradient] {
            *tensor = select_rows(tensor, rows)?;
        }
        self.paces = rows.iter().map(|row| self.paces[*row].clone()).collect();
        Ok(())
    }

    /// Takes in gradients and losses at the present images.
    pub(crate) fn see(&mut self, x_adv: &Tensor, gradient: Tensor, losses: &[f32]) -> Result<()> {
        let better: Vec<bool> = self
            .paces
            .iter_mut()
            .zip(losses)
            .map(|(pace, loss)| pace.see(*loss))
            .collect();
        self.best = choose(&better, x_adv, &self.best)?;
        self.best_gradient = choose(&better, &gradient, &self.best_gradient)?;
        self.gradient = gradient;
        Ok(())
    }

    /// At a checkpoint: halves steps where it is time, and returns the images to go on from, which are the best ones there.
    pub(crate) fn check(&mut self, rho: f64, x_adv: &Tensor) -> Result<Tensor> {
        let halved: Vec<bool> = self.paces.iter_mut().map(|pace| pace.check(rho)).collect();
        self.gradient = choose(&halved, &self.best_gradient, &self.gradient)?;
        choose(&halved, &self.best, x_adv)
    }
}

/// The step of one sample, and what decides whether it is halved.
#[derive(Clone)]
struct Pace {
    step_size: f32,
    loss: f32,
    best: f32,
    /// Steps since the last checkpoint, and how many of them raised the loss.
    steps: u32,
    rises: u32,
    best_at_check: f32,
    halved_at_check: bool,
}

impl Pace {
    fn new(loss: f32, step_size: f32) -> Self {
        Self {
            step_size,
            loss,
            best: loss,
            steps: 0,
            rises: 0,
            best_at_check: loss,
            // Standing still counts only from the second checkpoint on.
            halved_at_check: true,
        }
    }

    /// Takes in the loss after a step. Whether it is the best so far.
    fn see(&mut self, loss: f32) -> bool {
        self.steps += 1;
        self.rises += u32::from(loss > self.loss);
        self.loss = loss;
        let better = loss > self.best;
        if better {
            self.best = loss;
        }
        better
    }

    /// Halves the step if the loss rose too rarely since the last checkpoint, or if neither the step nor the best loss has changed.
    fn check(&mut self, rho: f64) -> bool {
        let oscillates = f64::from(self.rises) <= rho * f64::from(self.steps);
        let stands = !self.halved_at_check && self.best_at_check >= self.best;
        let halve = oscillates || stands;
        if halve {
            self.step_size /= 2.;
        }
        (self.steps, self.rises) = (0, 0);
        (self.best_at_check, self.halved_at_check) = (self.best, halve);
        halve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_the_published_ones() {
        assert_eq!(checkpoints(100), [22, 41, 57, 70, 80, 87, 93, 99]);
        assert_eq!(checkpoints(1), [1]);
        assert_eq!(checkpoints(10), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(checkpoints(1000)[..4], [220, 410, 570, 700]);
    }

    /// A pace after so many rises in `steps` steps.
    fn walked(pace: &mut Pace, steps: u32, rises: u32) {
        for step in 0..steps {
            let loss = pace.loss + if step < rises { 1. } else { -1. };
            pace.see(loss);
        }
    }

    #[test]
    fn the_step_is_halved_where_too_few_steps_raised_the_loss() {
        for (rises, halves) in [(0, true), (15, true), (16, false), (20, false)] {
            let mut pace = Pace::new(0., 0.6);
            walked(&mut pace, 20, rises);
            assert_eq!(pace.check(0.75), halves, "{rises} of 20");
            assert_eq!(pace.step_size, if halves { 0.3 } else { 0.6 });
        }
    }

    #[test]
    fn standing_still_halves_but_not_twice_in_a_row() {
        let mut pace = Pace::new(0., 1.);
        walked(&mut pace, 8, 8);
        assert!(!pace.check(0.75), "it rose all the time");
        pace.see(-9.);
        walked(&mut pace, 8, 8);
        assert!(pace.best == 8. && pace.check(0.75), "it rose, but not above its best");
        pace.see(-9.);
        walked(&mut pace, 8, 8);
        assert!(!pace.check(0.75), "the step has just been halved");
    }

    #[test]
    fn a_loss_that_is_no_number_is_never_the_best() {
        let mut pace = Pace::new(0., 1.);
        assert!(!pace.see(f32::NAN) && pace.see(1.) && pace.best == 1.);
    }
}
