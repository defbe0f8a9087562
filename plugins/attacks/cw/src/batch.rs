//! The same searches for a whole batch, in tensors, for images on a device: `search` goes pixel by pixel on the CPU.
//!
//! Numbers are read back when a search is judged: at every tenth of its iterations, and at its end.

use crate::search::{Constants, Judge};
use crate::settings::Plan;
use crate::tanh_space::TanhSpace;
use advae_sdk::attack::{Active, Adam, column};
use advae_sdk::nn::relu;
use advae_sdk::prelude::*;

/// Looks for the nearest adversarial images of all samples: which were found, and the images, clean ones where none was.
pub(crate) fn search(
    plan: Plan,
    space: TanhSpace,
    oracle: &Oracle,
    objective: &Objective,
    x: &Tensor,
) -> Result<(Vec<bool>, Tensor)> {
    let mut active = Active::new(oracle, objective, x, x.clone());
    let mut searches = Searches::new(plan, space, x)?;
    let mut found = vec![false; oracle.samples()];
    while !active.is_empty() {
        let weights = searches.weights(x)?;
        let hinge = |logits: &Tensor| relu(&(active.objective.margin(logits)? + plan.confidence)?)? * &weights;
        let answer = active.oracle.gradient(&searches.image, hinge)?;
        let reached = active.objective.reached(&answer.logits)?;
        let ended = searches.advance(&answer, &reached)?;
        // A random defence is drawn afresh at every iteration.
        active.next_draw();
        if ended.contains(&true) {
            let succeeded = searches.best_distance.lt(f64::from(f32::MAX))?.to_vec1::<u8>()?;
            for (row, place) in active.places().iter().enumerate().filter(|(row, _)| ended[*row]) {
                found[*place] = succeeded[row] != 0;
            }
            active.x_adv = searches.best.clone();
            let open = active.end(&ended)?;
            if !open.is_empty() {
                searches.select(&open)?;
            }
        }
    }
    Ok((found, active.images()?))
}

/// Searches that go on, a row each.
struct Searches {
    plan: Plan,
    space: TanhSpace,
    /// Clean images, and what they are in tanh space.
    x: Tensor,
    start: Tensor,
    /// Variables, their moments, the images that they are, and the slopes of those.
    w: Tensor,
    m: Tensor,
    v: Tensor,
    image: Tensor,
    slope: Tensor,
    /// The nearest successes so far, the clean image where there is none, and their squared distances `[n]`.
    best: Tensor,
    best_distance: Tensor,
    /// Whether the present search has succeeded, `[n]` of 1 and 0.
    succeeded: Tensor,
    states: Vec<State>,
}

/// Where one search is.
#[derive(Clone)]
struct State {
    constants: Constants,
    searches: usize,
    iteration: usize,
    judge: Judge,
}

impl Searches {
    fn new(plan: Plan, space: TanhSpace, x: &Tensor) -> Result<Self> {
        let n = x.dim(0)?;
        let (w, zeros) = (space.enter_all(x)?, x.zeros_like()?);
        let (image, slope) = space.images(&w)?;
        let state = State {
            constants: Constants::new(plan.initial_constant),
            searches: 0,
            iteration: 0,
            judge: Judge::default(),
        };
        Ok(Self {
            plan,
            space,
            x: x.clone(),
            start: w.clone(),
            w,
            m: zeros.clone(),
            v: zeros,
            image,
            slope,
            best: x.clone(),
            best_distance: Tensor::new(vec![f32::INFINITY; n], x.device())?,
            succeeded: Tensor::new(vec![0u8; n], x.device())?,
            states: vec![state; n],
        })
    }

    /// The present weights of the classification term, `[n]`.
    fn weights(&self, like: &Tensor) -> Result<Tensor> {
        let weights: Vec<f32> = self.states.iter().map(|state| state.constants.now() as f32).collect();
        Tensor::new(weights, like.device())
    }

    /// Takes the answers in and moves on. Returns which searches have nothing more to ask.
    fn advance(&mut self, answer: &Gradient, reached: &Tensor) -> Result<Vec<bool>> {
        let distance = (&self.image - &self.x)?.sqr()?.flatten_from(1)?.sum(1)?;
        let success = (reached * answer.loss.eq(0f64)?)?;
        let nearer = (&success * distance.lt(&self.best_distance)?)?;
        self.best_distance = nearer.where_cond(&distance, &self.best_distance)?;
        self.best = beside(&nearer, &self.image)?.where_cond(&self.image, &self.best)?;
        self.succeeded = self.succeeded.maximum(&success)?;

        let plan = self.plan;
        let judged =
            |state: &State| state.judge.is_due(&plan, state.iteration) || state.iteration + 1 == plan.iterations;
        let mut losses = vec![];
        let mut succeeded = vec![];
        if self.states.iter().any(judged) {
            let loss = ((distance * f64::from(plan.distance_weight()))? + &answer.loss)?;
            losses = loss.to_vec1::<f32>()?;
            succeeded = self.succeeded.to_vec1::<u8>()?;
        }
        let (mut restarts, mut ended) = (vec![0u8; self.states.len()], vec![false; self.states.len()]);
        let steps: Vec<i32> = self.states.iter().map(|state| state.iteration as i32 + 1).collect();
        for (row, state) in self.states.iter_mut().enumerate() {
            let stalled = state.judge.is_due(&plan, state.iteration) && state.judge.stalled(f64::from(losses[row]));
            state.iteration += 1;
            if !stalled && state.iteration < plan.iterations {
                continue;
            }
            state.searches += 1;
            state
                .constants
                .update(succeeded[row] != 0, plan.final_repeat(state.searches));
            (state.iteration, state.judge) = (0, Judge::default());
            match state.searches < plan.search_steps {
                true => restarts[row] = 1,
                false => ended[row] = true,
            }
        }
        self.step(&answer.x, &steps)?;
        if restarts.contains(&1) {
            self.restart(&Tensor::new(restarts, self.x.device())?)?;
        }
        (self.image, self.slope) = self.space.images(&self.w)?;
        Ok(ended)
    }

    /// One step of Adam down `norm2(x' - x)^2 + hinge`, or the hinge alone, through `dx'/dw`. `steps` counts those of every search.
    fn step(&mut self, hinge_gradient: &Tensor, steps: &[i32]) -> Result<()> {
        let away = ((&self.image - &self.x)? * (2. * f64::from(self.plan.distance_weight())))?;
        let gradient = ((away + hinge_gradient)? * &self.slope)?;
        // What is no number gives no direction.
        let gradient = gradient.eq(&gradient)?.where_cond(&gradient, &gradient.zeros_like()?)?;
        let gradient = gradient.clamp(-f64::from(Adam::STEEPEST), f64::from(Adam::STEEPEST))?;
        let [b1, b2] = Adam::BETAS;
        self.m = ((&self.m * b1)? + (&gradient * (1. - b1))?)?;
        self.v = ((&self.v * b2)? + (gradient.sqr()? * (1. - b2))?)?;
        let rates = |step: &i32| (self.plan.learning_rate / (1. - b1.powi(*step))) as f32;
        let corrections = |step: &i32| (1. / (1. - b2.powi(*step))) as f32;
        let width = (scaled(&self.v, steps, corrections)?.sqrt()? + f64::from(Adam::EPSILON))?;
        self.w = (&self.w - (scaled(&self.m, steps, rates)? / width)?)?;
        Ok(())
    }

    /// From the clean image again where `rows` `[n]` is 1, with the present weight.
    fn restart(&mut self, rows: &Tensor) -> Result<()> {
        let (there, zeros) = (beside(rows, &self.x)?, self.x.zeros_like()?);
        self.w = there.where_cond(&self.start, &self.w)?;
        self.m = there.where_cond(&zeros, &self.m)?;
        self.v = there.where_cond(&zeros, &self.v)?;
        self.succeeded = rows.where_cond(&self.succeeded.zeros_like()?, &self.succeeded)?;
        Ok(())
    }

    /// Goes on with some rows.
    fn select(&mut self, rows: &[usize]) -> Result<()> {
        let Self {
            x,
            start,
            w,
            m,
            v,
            image,
            slope,
            best,
            best_distance,
            succeeded,
            states,
            ..
        } = self;
        for tensor in [x, start, w, m, v, image, slope, best, best_distance, succeeded] {
            *tensor = select_rows(tensor, rows)?;
        }
        *states = rows.iter().map(|row| states[*row].clone()).collect();
        Ok(())
    }
}

/// Every sample's values times a factor of its own, most often the same for all.
fn scaled(x: &Tensor, steps: &[i32], factor: impl Fn(&i32) -> f32) -> Result<Tensor> {
    match steps {
        [first, others @ ..] if others.iter().all(|step| step == first) => x * f64::from(factor(first)),
        _ => x.broadcast_mul(&column(&steps.iter().map(factor).collect::<Vec<_>>(), x)?),
    }
}

/// Flags `[n]` in the shape of `x` `[n,C,H,W]`.
fn beside(flags: &Tensor, x: &Tensor) -> Result<Tensor> {
    flags.reshape(((), 1, 1, 1))?.broadcast_as(x.shape())
}
