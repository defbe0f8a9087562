//! One step for one sample: projections onto a plane within the box of the bounds. Nothing here knows of a batch.

use advae_sdk::prelude::*;

/// Range of the pixels.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    low: f64,
    high: f64,
}

impl From<(f64, f64)> for Bounds {
    fn from((low, high): (f64, f64)) -> Self {
        Self { low, high }
    }
}

/// Keeps the weight of the pull defined where both projections have no length.
const SHORTEST: f64 = 1e-8;

/// What does not change from step to step.
pub(crate) struct Step {
    pub(crate) norm: Norm,
    pub(crate) bounds: Bounds,
    pub(crate) alpha_max: f64,
    pub(crate) eta: f64,
}

impl Step {
    /// From `x_adv`, where the plane is `f + w (x' - x_adv) = 0`.
    pub(crate) fn of(&self, x: &[f32], x_adv: &[f32], f: f32, w: &[f32]) -> Vec<f32> {
        let between = w
            .iter()
            .zip(x.iter().zip(x_adv))
            .map(|(w, (x, x_adv))| f64::from(*w) * (f64::from(*x) - f64::from(*x_adv)));
        let at_x = f64::from(f) + between.sum::<f64>();
        let d1 = projection(self.norm, x_adv, w, f64::from(f), self.bounds);
        let d2 = projection(self.norm, x, w, at_x, self.bounds);
        let [a1, a2] = [&d1, &d2].map(|d| length(self.norm, d).max(SHORTEST));
        let alpha = (a1 / (a1 + a2)).min(self.alpha_max);
        let points = x.iter().zip(d2).zip(x_adv.iter().zip(d1));
        let moved = points.map(|((x, d2), (x_adv, d1))| {
            (f64::from(*x_adv) + self.eta * d1) * (1. - alpha) + (f64::from(*x) + self.eta * d2) * alpha
        });
        moved
            .map(|v| v.clamp(self.bounds.low, self.bounds.high) as f32)
            .collect()
    }
}

/// The shortest `d` with `f + w d = 0` and `t + d` within bounds; where there is none, the `d` that comes nearest to the plane.
///
/// Every pixel goes towards the plane by `min(l s, room)`, where `s` is 1 for Linf and `|w|` for L2. The gain `sum |w| min(l s, room)`
/// grows with `l`, piece by piece: pixels that reach their bound no longer take part.
pub(crate) fn projection(norm: Norm, t: &[f32], w: &[f32], f: f64, bounds: Bounds) -> Vec<f64> {
    let towards = |w: f32| if f64::from(w) * f > 0. { -1. } else { 1. };
    let room = |t: f32, w: f32| match towards(w) > 0. {
        true => (bounds.high - f64::from(t)).max(0.),
        false => (f64::from(t) - bounds.low).max(0.),
    };
    let speed = |w: f32| match norm {
        Norm::Linf => 1.,
        Norm::L2 => f64::from(w).abs(),
    };
    let pixels = t.iter().zip(w).filter(|(_, w)| **w != 0. && w.is_finite());
    let mut ends: Vec<(f64, f64)> = pixels
        .map(|(t, w)| (room(*t, *w) / speed(*w), f64::from(*w).abs() * speed(*w)))
        .collect();
    ends.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let l = reach(&ends, f.abs());
    let moved = |(t, w): (&f32, &f32)| match *w != 0. && w.is_finite() {
        true => towards(*w) * (l * speed(*w)).min(room(*t, *w)),
        false => 0.,
    };
    t.iter().zip(w).map(moved).collect()
}

/// The smallest `l` with `sum rate min(l, end) >= gain`, for pairs `(end, rate)` by their ends; infinity where there is none.
fn reach(ends: &[(f64, f64)], gain: f64) -> f64 {
    let (mut gained, mut rate) = (0., ends.iter().map(|(_, rate)| rate).sum::<f64>());
    let mut at = 0.;
    for (end, own) in ends {
        let next = gained + rate * (end - at);
        if next >= gain {
            return at + (gain - gained) / rate;
        }
        (gained, at, rate) = (next, *end, (rate - own).max(0.));
    }
    f64::INFINITY
}

fn length(norm: Norm, d: &[f64]) -> f64 {
    match norm {
        Norm::Linf => d.iter().fold(0., |longest, d| d.abs().max(longest)),
        Norm::L2 => d.iter().map(|d| d * d).sum::<f64>().sqrt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOX: Bounds = Bounds { low: 0., high: 1. };

    fn case(seed: u64) -> (Vec<f32>, Vec<f32>, f64) {
        use advae_sdk::candle_core::Device;
        let pass = Pass::eval().with_ids(vec![seed]);
        let draw = |low, high, n: usize, stream| {
            let drawn = pass.rand_uniform(&[1, n], low, high, stream, &Device::Cpu).unwrap();
            drawn.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        // Some pixels lie at the bounds.
        let t: Vec<f32> = draw(-0.3, 1.3, 3, 1).into_iter().map(|t| t.clamp(0., 1.)).collect();
        (t, draw(-2., 2., 3, 2), f64::from(draw(-3., 3., 1, 3)[0]))
    }

    /// Smallest length of a point of a fine grid on the plane within the box: two pixels are tried, the third follows.
    fn brute_force(norm: Norm, t: &[f32], w: &[f32], f: f64) -> Option<f64> {
        const FINE: i32 = 400;
        let [t, w] = [t, w].map(|v| [f64::from(v[0]), f64::from(v[1]), f64::from(v[2])]);
        let places = |pixel: usize| (0..=FINE).map(move |i| f64::from(i) / f64::from(FINE) - t[pixel]);
        let mut shortest = None::<f64>;
        // The pixel with the steepest weight follows: its error is the smallest.
        let follows = (0..3).max_by(|a, b| w[*a].abs().total_cmp(&w[*b].abs())).unwrap();
        let [a, b] = [(follows + 1) % 3, (follows + 2) % 3];
        for (da, db) in places(a).flat_map(|da| places(b).map(move |db| (da, db))) {
            let last = -(f + w[a] * da + w[b] * db) / w[follows];
            if (-1e-9..=1. + 1e-9).contains(&(t[follows] + last)) {
                let found = length(norm, &[da, db, last]);
                shortest = Some(shortest.map_or(found, |shortest| shortest.min(found)));
            }
        }
        shortest
    }

    #[test]
    fn projections_are_as_short_as_any_point_of_the_plane() {
        let (mut feasible, mut beyond) = (0, 0);
        for seed in 0..60 {
            let (t, w, f) = case(seed);
            for norm in [Norm::Linf, Norm::L2] {
                let d = projection(norm, &t, &w, f, BOX);
                let within = t
                    .iter()
                    .zip(&d)
                    .all(|(t, d)| (-1e-9..=1. + 1e-9).contains(&(f64::from(*t) + d)));
                assert!(within, "{seed} {norm}");
                let left = f + w.iter().zip(&d).map(|(w, d)| f64::from(*w) * d).sum::<f64>();
                match brute_force(norm, &t, &w, f) {
                    Some(shortest) => {
                        feasible += 1;
                        assert!(left.abs() < 1e-9, "{seed} {norm}: {left} away from the plane");
                        let ours = length(norm, &d);
                        assert!(
                            ours <= shortest + 1e-9 && ours > shortest - 0.01,
                            "{seed} {norm}: {ours} {shortest}"
                        );
                    }
                    None => {
                        beyond += 1;
                        let farthest = |(t, w): (&f32, &f32)| {
                            f64::from(*w)
                                * if f64::from(*w) * f > 0. {
                                    -f64::from(*t)
                                } else {
                                    1. - f64::from(*t)
                                }
                        };
                        let most: f64 = t.iter().zip(&w).map(farthest).sum();
                        assert!(
                            (left - (f + most)).abs() < 1e-6 || left.abs() < 1e-9,
                            "{seed} {norm}: {left}"
                        );
                    }
                }
            }
        }
        assert!(feasible > 20 && beyond > 20, "{feasible} {beyond}");
    }

    #[test]
    fn nothing_moves_without_a_gradient_or_on_the_plane() {
        for norm in [Norm::Linf, Norm::L2] {
            assert_eq!(projection(norm, &[0.2, 0.7], &[0., 0.], 3., BOX), [0., 0.]);
            assert_eq!(projection(norm, &[0.2, 0.7], &[1., -2.], 0., BOX), [0., 0.]);
            assert_eq!(projection(norm, &[0.2, 0.7], &[f32::NAN, 0.], 1., BOX), [0., 0.]);
        }
    }

    #[test]
    fn a_step_goes_beyond_the_plane_and_is_pulled_towards_the_clean_image() {
        let step = Step {
            norm: Norm::L2,
            bounds: BOX,
            alpha_max: 0.1,
            eta: 1.05,
        };
        // The plane x_0 = .6: from the clean image itself both projections are (.1, 0), and so is any mixture.
        let moved = step.of(&[0.5, 0.5], &[0.5, 0.5], -0.1, &[1., 0.]);
        assert!((moved[0] - 0.605).abs() < 1e-6 && moved[1] == 0.5, "{moved:?}");
        // From elsewhere on the plane's far side: d1 = (-.1, 0), d2 = (.1, 0); the weight .5 is capped at .1.
        let moved = step.of(&[0.5, 0.5], &[0.7, 0.9], 0.1, &[1., 0.]);
        assert!((moved[0] - (0.9 * 0.595 + 0.1 * 0.605)).abs() < 1e-6, "{moved:?}");
        assert!((moved[1] - (0.9 * 0.9 + 0.1 * 0.5)).abs() < 1e-6, "{moved:?}");
    }
}
