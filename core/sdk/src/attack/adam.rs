//! How long a step is.

use std::f64::consts::PI;

/// A number that goes from `first` to nearly `last` in `steps` steps, along half a cosine: its value at `step`, from 0 on.
pub fn cosine(first: f64, last: f64, step: u64, steps: u64) -> f64 {
    last + (first - last) * (1. + (PI * step as f64 / steps as f64).cos()) / 2.
}

/// Adam (Kingma and Ba 2014) with the usual moments, for the pixels of one sample.
pub struct Adam {
    m: Vec<f32>,
    v: Vec<f32>,
    steps: i32,
}

impl Adam {
    /// Shares of the former moments in the next.
    pub const BETAS: [f64; 2] = [0.9, 0.999];
    /// Added to the root of the second moment.
    pub const EPSILON: f32 = 1e-8;
    /// Longer gradients count as this long: the square of what is beyond overflows `f32`, and infinity over infinity is NaN. Adam's
    /// steps do not depend on the gradient's scale.
    pub const STEEPEST: f32 = 1e18;

    /// Before the first step, for so many pixels.
    pub fn new(len: usize) -> Self {
        Self {
            m: vec![0.; len],
            v: vec![0.; len],
            steps: 0,
        }
    }

    /// One step down the gradient.
    pub fn step(&mut self, w: &mut [f32], gradient: &[f32], rate: f64) {
        self.steps += 1;
        let [b1, b2] = Self::BETAS;
        let rate = (rate / (1. - b1.powi(self.steps))) as f32;
        let correction = (1. / (1. - b2.powi(self.steps))) as f32;
        let ([b1, b2], [a1, a2]) = ([b1 as f32, b2 as f32], [(1. - b1) as f32, (1. - b2) as f32]);
        let moments = self.m.iter_mut().zip(&mut self.v);
        for ((w, g), (m, v)) in w.iter_mut().zip(gradient).zip(moments) {
            // What is no number gives no direction.
            let g = if g.is_nan() {
                0.
            } else {
                g.clamp(-Self::STEEPEST, Self::STEEPEST)
            };
            *m = b1 * *m + a1 * g;
            *v = b2 * *v + a2 * g * g;
            *w -= rate * *m / ((*v * correction).sqrt() + Self::EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_as_long_as_the_rate_whatever_the_gradient() {
        for gradient in [1e-3f32, 1., 1e30, f32::INFINITY] {
            let mut w = [1f32, 1., 1.];
            Adam::new(3).step(&mut w, &[gradient, -gradient, f32::NAN], 0.1);
            let moved = w.map(|w| (w * 1e3).round() / 1e3);
            assert_eq!(moved, [0.9, 1.1, 1.], "{gradient}");
        }
    }

    #[test]
    fn half_a_cosine_begins_flat_and_is_halfway_in_the_middle() {
        assert_eq!(cosine(1., 0.01, 0, 100), 1.);
        assert!((cosine(1., 0.01, 50, 100) - 0.505).abs() < 1e-12);
        assert!(cosine(1., 0.01, 99, 100) < 0.0103);
    }
}
