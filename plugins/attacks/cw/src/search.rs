//! The search for one sample. Nothing here knows of a batch.

use crate::settings::{LARGEST_CONSTANT, Plan};
use crate::tanh_space::TanhSpace;
use advae_sdk::attack::Adam;

/// What the oracle answered about a sample's image.
pub(crate) struct Answer<'a> {
    /// `c max(0, margin + confidence)`.
    pub(crate) hinge: f32,
    /// Whether the label reaches the goal.
    pub(crate) adversarial: bool,
    /// Gradient of the hinge with respect to the image.
    pub(crate) gradient: &'a [f32],
}

/// State of the search for one sample: minimises `norm2(x' - x)^2 + c max(0, margin + confidence)` over tanh space by
/// Adam, once for every weight `c` of a binary search.
pub(crate) struct Search {
    plan: Plan,
    space: TanhSpace,
    x: Vec<f32>,
    start: Vec<f32>,
    w: Vec<f32>,
    image: Vec<f32>,
    slope: Vec<f32>,
    adam: Adam,
    constants: Constants,
    searches: usize,
    iteration: usize,
    /// Whether the present search has succeeded.
    succeeded: bool,
    judge: Judge,
    best: Option<Success>,
}

/// The nearest success so far.
struct Success {
    squared_distance: f64,
    image: Vec<f32>,
}

impl Search {
    pub(crate) fn new(plan: Plan, space: TanhSpace, x: &[f32]) -> Self {
        let start: Vec<f32> = x.iter().map(|x| space.enter(*x)).collect();
        let mut search = Self {
            plan,
            space,
            x: x.to_vec(),
            w: start.clone(),
            image: vec![0.; x.len()],
            slope: vec![0.; x.len()],
            adam: Adam::new(x.len()),
            constants: Constants::new(plan.initial_constant),
            searches: 0,
            iteration: 0,
            succeeded: false,
            judge: Judge::default(),
            best: None,
            start,
        };
        search.restart();
        search
    }

    /// The image to ask the oracle about.
    pub(crate) fn image(&self) -> &[f32] {
        &self.image
    }

    /// The present weight of the classification term.
    pub(crate) fn constant(&self) -> f32 {
        self.constants.now() as f32
    }

    /// The nearest successful image.
    pub(crate) fn best(&self) -> Option<&[f32]> {
        self.best.as_ref().map(|best| best.image.as_slice())
    }

    /// Takes the answer in and moves on. Returns whether there is more to ask.
    pub(crate) fn advance(&mut self, answer: &Answer) -> bool {
        let squared_distance = squared_distance(&self.image, &self.x);
        if answer.adversarial && answer.hinge == 0. {
            self.succeeded = true;
            if self
                .best
                .as_ref()
                .is_none_or(|best| squared_distance < best.squared_distance)
            {
                self.best = Some(Success {
                    squared_distance,
                    image: self.image.clone(),
                });
            }
        }
        let loss = f64::from(self.plan.distance_weight()) * squared_distance + f64::from(answer.hinge);
        let stalled = self.judge.is_due(&self.plan, self.iteration) && self.judge.stalled(loss);
        self.iteration += 1;
        if !stalled && self.iteration < self.plan.iterations {
            self.step(answer.gradient);
            return true;
        }
        self.searches += 1;
        let final_repeat = self.plan.final_repeat(self.searches);
        self.constants.update(self.succeeded, final_repeat);
        let more = self.searches < self.plan.search_steps;
        if more {
            self.restart();
        }
        more
    }

    /// One step of Adam down `norm2(x' - x)^2 + hinge`, or the hinge alone, through `dx'/dw`.
    fn step(&mut self, hinge_gradient: &[f32]) {
        let distance = 2. * self.plan.distance_weight();
        // From here on `slope` holds the gradient with respect to `w`.
        let pixels = self
            .slope
            .iter_mut()
            .zip(self.image.iter().zip(&self.x))
            .zip(hinge_gradient);
        for ((slope, (image, x)), gradient) in pixels {
            *slope *= distance * (image - x) + gradient;
        }
        self.adam.step(&mut self.w, &self.slope, self.plan.learning_rate);
        self.space.image(&self.w, &mut self.image, &mut self.slope);
    }

    /// From the clean image again, with the present weight.
    fn restart(&mut self) {
        self.w.copy_from_slice(&self.start);
        self.space.image(&self.w, &mut self.image, &mut self.slope);
        self.adam = Adam::new(self.x.len());
        (self.iteration, self.succeeded, self.judge) = (0, false, Judge::default());
    }
}

/// Ends a search that gets no further, by its loss at the last tenth of the iterations.
#[derive(Clone)]
pub(crate) struct Judge(f64);

impl Default for Judge {
    fn default() -> Self {
        Self(f64::INFINITY)
    }
}

impl Judge {
    /// Whether a search is judged at this iteration.
    pub(crate) fn is_due(&self, plan: &Plan, iteration: usize) -> bool {
        plan.abort && iteration.is_multiple_of(plan.iterations.div_ceil(10))
    }

    /// Whether the loss fell by less than .01 % over the last tenth of the iterations.
    pub(crate) fn stalled(&mut self, loss: f64) -> bool {
        let stalled = loss > 0.9999 * self.0;
        self.0 = loss;
        stalled
    }
}

/// Binary search for the smallest weight that succeeds.
#[derive(Clone)]
pub(crate) struct Constants {
    now: f64,
    low: f64,
    high: f64,
}

impl Constants {
    pub(crate) fn new(first: f64) -> Self {
        Self {
            now: first,
            low: 0.,
            high: f64::INFINITY,
        }
    }

    /// The present weight.
    pub(crate) fn now(&self) -> f64 {
        self.now
    }

    /// The next weight after a search with the present one; in a `final_repeat` the smallest known to succeed.
    pub(crate) fn update(&mut self, succeeded: bool, final_repeat: bool) {
        *(if succeeded { &mut self.high } else { &mut self.low }) = self.now;
        self.now = match (self.high.is_finite(), final_repeat) {
            (true, true) => self.high,
            (true, false) => (self.low + self.high) / 2.,
            (false, _) => (self.now * 10.).min(LARGEST_CONSTANT),
        };
    }
}

/// In eight lanes whose order is fixed: fast, and the same in any batch.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += (a - b) * (a - b);
        }
    }
    lanes.iter().map(|lane| f64::from(*lane)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: TanhSpace = TanhSpace { low: 0., high: 1. };

    fn plan(search_steps: usize, iterations: usize) -> Plan {
        Plan {
            initial_constant: 1.,
            search_steps,
            learning_rate: 0.05,
            iterations,
            confidence: 0.,
            abort: false,
            distance_gradient: true,
        }
    }

    /// The weights of all searches on samples that are broken from a weight of `threshold` on.
    fn constants(threshold: f32, search_steps: usize) -> Vec<f32> {
        let mut search = Search::new(plan(search_steps, 1), SPACE, &[0.5]);
        let mut seen = vec![];
        loop {
            let c = search.constant();
            seen.push(c);
            let hinge = if c >= threshold { 0. } else { c };
            if !search.advance(&Answer {
                hinge,
                adversarial: hinge == 0.,
                gradient: &[0.],
            }) {
                return seen;
            }
        }
    }

    #[test]
    fn the_weights_follow_the_binary_search() {
        assert_eq!(constants(0.3, 5), [1., 0.5, 0.25, 0.375, 0.3125]);
        assert_eq!(constants(20., 6), [1., 10., 100., 55., 32.5, 21.25]);
        assert_eq!(constants(1e9, 3), [1., 10., 100.]);
        assert_eq!(
            constants(0.301, 10)[7..],
            [0.304_687_5, 0.300_781_25, 0.304_687_5],
            "the last of ten repeats the best"
        );
    }

    /// Adam by hand, in f64, on one pixel with a constant gradient of the hinge.
    #[test]
    fn steps_are_those_of_adam_in_tanh_space() {
        for (distance_gradient, factor) in [(true, 2.), (false, 0.)] {
            let x = 0.3f32;
            let plan = Plan {
                distance_gradient,
                ..plan(1, 50)
            };
            let mut search = Search::new(plan, SPACE, &[x]);
            let mut w = (0.999_999 * (2. * f64::from(x) - 1.)).atanh();
            let (mut m, mut v) = (0., 0.);
            let answer = Answer {
                hinge: 1.,
                adversarial: false,
                gradient: &[-0.7],
            };
            for t in 1..=49 {
                let image = (1. + w.tanh()) / 2.;
                assert!(
                    (f64::from(search.image()[0]) - image).abs() < 1e-5,
                    "{t}: {} {image}",
                    search.image()[0]
                );
                let gradient = (factor * (image - f64::from(x)) - 0.7) * (1. - w.tanh().powi(2)) / 2.;
                m = 0.9 * m + 0.1 * gradient;
                v = 0.999 * v + 0.001 * gradient * gradient;
                w -= 0.05 * (m / (1. - 0.9f64.powi(t))) / ((v / (1. - 0.999f64.powi(t))).sqrt() + 1e-8);
                assert!(search.advance(&answer));
            }
            assert!(!search.advance(&answer));
        }
    }

    #[test]
    fn a_search_that_ignores_the_distance_is_not_ended_by_it() {
        let asked = |distance_gradient| {
            let plan = Plan {
                distance_gradient,
                abort: true,
                ..plan(1, 30)
            };
            let mut search = Search::new(plan, SPACE, &[0.5; 100]);
            let (mut asked, mut hinge) = (1, 1.);
            while search.advance(&Answer {
                hinge,
                adversarial: false,
                gradient: &[-1.; 100],
            }) {
                // Slower than the squared distance grows.
                (asked, hinge) = (asked + 1, hinge * 0.99);
            }
            asked
        };
        assert_eq!(asked(false), 30);
        assert!(asked(true) < 30, "{}", asked(true));
    }

    #[test]
    fn the_nearest_success_is_kept() {
        let mut search = Search::new(plan(1, 4), SPACE, &[0.5, 0.5]);
        let mut images = vec![];
        for (adversarial, hinge) in [(false, 1.), (true, 0.), (true, 0.1), (true, 0.)] {
            images.push(search.image().to_vec());
            search.advance(&Answer {
                hinge,
                adversarial,
                gradient: &[-1., 1.],
            });
        }
        assert_eq!(
            search.best().unwrap(),
            images[1],
            "later ones are farther, and a margin below the confidence is no success"
        );
    }

    #[test]
    fn a_search_without_a_gradient_stays_finite() {
        let mut search = Search::new(plan(2, 20), SPACE, &[0., 1., 0.5]);
        while search.advance(&Answer {
            hinge: 1.,
            adversarial: false,
            gradient: &[0.; 3],
        }) {}
        assert!(search.image().iter().all(|x| x.is_finite()) && search.best().is_none());
    }

    #[test]
    fn the_weight_grows_no_further_than_f32_holds_it() {
        let grown = constants(f32::INFINITY, 50);
        assert_eq!(grown[..3], [1., 10., 100.]);
        assert_eq!(grown[10..], [LARGEST_CONSTANT as f32; 40]);
    }

    #[test]
    fn gradients_of_any_size_give_images_within_bounds() {
        let steep = [1e-45, 1e-30, 1., 1e19, 1e30, f32::MAX, f32::INFINITY, f32::NAN];
        for gradient in steep.into_iter().flat_map(|g| [g, -g]) {
            for learning_rate in [1e-10, 0.2, 100.] {
                let plan = Plan {
                    learning_rate,
                    ..plan(2, 30)
                };
                let mut search = Search::new(plan, SPACE, &[0., 1., 0.5]);
                while search.advance(&Answer {
                    hinge: 1.,
                    adversarial: false,
                    gradient: &[gradient, 1., -gradient],
                }) {
                    let (image, w) = (&search.image, &search.w);
                    assert!(image.iter().all(|x| (0. ..=1.).contains(x)), "{gradient}: {image:?}");
                    assert!(w.iter().all(|w| w.is_finite()), "{gradient}: {w:?}");
                }
            }
        }
    }

    #[test]
    fn distances_add_up_over_all_pixels() {
        let (a, b): (Vec<f32>, Vec<f32>) = (0..21).map(|i| (i as f32, 0.)).unzip();
        assert_eq!(squared_distance(&a, &b), 2870.);
    }
}
