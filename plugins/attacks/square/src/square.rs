//! Square attack (Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search"): changes
//! one random square at a time, and keeps the change where the margin falls. It needs logits, no gradients.

use crate::window::{Canvas, side};
use advae_sdk::attack::{Active, choose, rows, stack};
use advae_sdk::prelude::*;
use rand::Rng;

settings! {
    /// Defaults of AutoAttack.
    pub struct SquareSettings {
        /// Norm of the ball: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball.
        epsilon: f64 = 0.3,
        /// Number of squares that are tried, one query each.
        n_queries: u64 = 5000,
        /// Share of the image that the first squares cover. It is halved several times during the search.
        p_init: f64 = 0.8,
        /// Halve this share by the schedule for 10,000 queries, rescaled to n_queries. AutoAttack does not rescale it.
        rescale_schedule: bool = false,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
    }
}

/// Stream of the squares among a sample's generators.
const SQUARES: u64 = 0x5351;

/// Queries, of 10,000, after which the share of the image is halved.
const HALVINGS: [u64; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];

/// Random search over squares.
pub struct Square(SquareSettings);

impl Attack for Square {
    type Settings = SquareSettings;

    fn new(settings: SquareSettings) -> Result<Self> {
        // Squares of the largest, summed over an image, are far from what f32 holds.
        in_range("epsilon", settings.epsilon, 0. ..=1e6)?;
        in_range("n_queries", settings.n_queries, 1..=10_000_000)?;
        in_range("p_init", settings.p_init, 1e-6..=1.)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            epsilon: Some(self.0.epsilon),
            targeted: self.0.target.targeted(),
            passes: 2 + self.0.n_queries,
            random_start: Some(true),
            ..AttackInfo::new(self.0.norm)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = self.0.target.objective(oracle, x, y)?;
        let (clean, canvas) = (rows(x)?, Canvas::new(x, oracle.bounds())?);
        let mut rngs: Vec<_> = (0..clean.len()).map(|i| oracle.pass().rng(i, SQUARES)).collect();
        let mut lowest = vec![f32::INFINITY; clean.len()];
        let mut active = Active::new(oracle, &objective, x, x.clone());
        if oracle.early_stop() {
            active.end(&objective.is_adversarial(&oracle.logits(x)?)?)?;
        }
        for query in 0..=self.0.n_queries {
            if active.is_empty() {
                break;
            }
            let best = rows(&active.x_adv)?;
            let propose = |(place, best): (&usize, &Vec<f32>)| {
                self.propose(query, &canvas, &clean[*place], best, &mut rngs[*place])
            };
            let tried: Vec<Vec<f32>> = active.places().iter().zip(&best).map(propose).collect();
            let tried = stack(&tried, x)?;
            let logits = active.oracle.logits(&tried)?;
            let margins: Vec<f32> = active.objective.margin(&logits)?.to_vec1()?;
            let adversarial = active.objective.is_adversarial(&logits)?;
            let falls = |(row, place): (usize, &usize)| {
                // With two equal logits either class may be the first.
                let falls = margins[row] < lowest[*place] || (adversarial[row] && margins[row] == lowest[*place]);
                lowest[*place] = if falls { margins[row] } else { lowest[*place] };
                falls
            };
            let accepted: Vec<bool> = active.places().iter().enumerate().map(falls).collect();
            active.x_adv = choose(&accepted, &tried, &active.x_adv)?;
            active.next_draw();
            active.end_found(&adversarial)?;
        }
        Ok(Perturbed {
            x_adv: active.images()?,
            found: None,
            targets: objective.targets(),
        })
    }
}

impl Square {
    /// The image of a query: the first is a start of its own, every other one changes a square of the best so far.
    fn propose(&self, query: u64, canvas: &Canvas, x: &[f32], best: &[f32], rng: &mut impl Rng) -> Vec<f32> {
        let (norm, epsilon) = (self.0.norm, self.0.epsilon as f32);
        if query == 0 {
            return canvas.start(norm, x, epsilon, rng);
        }
        let side = side(self.share(query - 1), canvas, norm);
        canvas.change(norm, x, best, epsilon, side, rng)
    }

    /// Share of the image that the square of this query covers; the first is query 0.
    pub(crate) fn share(&self, query: u64) -> f64 {
        let query = match self.0.rescale_schedule {
            true => (query as f64 / self.0.n_queries as f64 * 10_000.) as u64,
            false => query,
        };
        let halvings = HALVINGS.iter().filter(|after| query > **after).count();
        self.0.p_init / f64::from(1 << halvings)
    }
}
