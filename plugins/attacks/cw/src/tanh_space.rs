//! Images as `x' = low + (high - low) (1 + tanh w) / 2` of unbounded `w`.
//!
//! Written with `e = exp(-2 |w|)`, so that neither the image nor its slope loses digits where tanh saturates: there lie
//! all the background pixels of MNIST. The loops vectorise.

use advae_sdk::candle_core::DType;
use advae_sdk::prelude::*;

/// Keeps the `w` of pixels at the bounds finite.
const SHRINK: f64 = 0.999_999;

/// The bounds of the pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TanhSpace {
    pub(crate) low: f32,
    pub(crate) high: f32,
}

impl TanhSpace {
    /// `w = atanh(.999999 u)` of a pixel, mapped to `u` in `[-1, 1]`.
    pub(crate) fn enter(self, x: f32) -> f32 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let u = 2. * (f64::from(x) - low) / (high - low) - 1.;
        (SHRINK * u.clamp(-1., 1.)).atanh() as f32
    }

    /// The image `x'` of `w`, and its slope `dx'/dw`.
    pub(crate) fn image(self, w: &[f32], image: &mut [f32], slope: &mut [f32]) {
        let range = self.high - self.low;
        for ((w, image), slope) in w.iter().zip(image).zip(slope) {
            let e = exp_of_negative(-2. * w.abs());
            let part = 1. / (1. + e);
            let share = if *w < 0. { e * part } else { part };
            *image = (self.low + range * share).min(self.high);
            *slope = range * 2. * e * part * part;
        }
    }
}

/// The same for whole tensors, where they lie.
impl TanhSpace {
    /// [`enter`](Self::enter) for every pixel of `x`.
    pub(crate) fn enter_all(self, x: &Tensor) -> Result<Tensor> {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let u = x
            .to_dtype(DType::F64)?
            .affine(2. / (high - low), -2. * low / (high - low) - 1.)?;
        let u = (u.clamp(-1., 1.)? * SHRINK)?;
        let odds = ((&u + 1.)? / u.affine(-1., 1.)?)?;
        (odds.log()? * 0.5)?.to_dtype(DType::F32)
    }

    /// [`image`](Self::image) for every `w`, with its slope.
    pub(crate) fn images(self, w: &Tensor) -> Result<(Tensor, Tensor)> {
        let range = f64::from(self.high - self.low);
        let e = (w.abs()? * -2.)?.exp()?;
        let part = (&e + 1.)?.recip()?;
        let falling = (&e * &part)?;
        let share = w.lt(0f64)?.where_cond(&falling, &part)?;
        let image = ((share * range)? + f64::from(self.low))?.minimum(f64::from(self.high))?;
        Ok((image, (falling * part)?.affine(2. * range, 0.)?))
    }
}

/// `exp(x)` for `x <= 0`, to about two units in the last place, without a branch or a call; below -87 it stays there.
fn exp_of_negative(x: f32) -> f32 {
    /// Added and taken away again, it rounds to an integer, which it leaves in its lowest bits.
    const ROUND: f32 = 12_582_912.;
    /// `ln 2` in two parts, the first of few digits: `n` times it is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.max(-87.);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1]; // within half of ln 2
    // Taylor's series: its next term is below 1.3e-8.
    let mut sum = 1. / 5040.;
    for factor in [1. / 720., 1. / 120., 1. / 24., 1. / 6., 0.5, 1., 1.] {
        sum = sum * r + factor;
    }
    let power = (rounded.to_bits() << 23).wrapping_add(1f32.to_bits());
    sum * f32::from_bits(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_exact_to_the_last_places() {
        for i in 0..87_000 {
            let x = -i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_of_negative(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "{x}: {error}");
        }
        assert_eq!(exp_of_negative(0.), 1.);
        assert!(exp_of_negative(-1e9) > 0. && exp_of_negative(-1e9) < 1e-37);
    }

    #[test]
    fn pixels_come_back_and_slopes_are_derivatives() {
        let space = TanhSpace { low: -1., high: 3. };
        let x = [-1., -0.999, 0., 1., 2.5, 3.];
        let w = x.map(|x| space.enter(x));
        let (mut image, mut slope) = ([0.; 6], [0.; 6]);
        space.image(&w, &mut image, &mut slope);
        for i in 0..6 {
            assert!((image[i] - x[i]).abs() < 3e-6, "{} {}", image[i], x[i]);
            let exact = |w: f64| 1. + 2. * w.tanh();
            let difference = (exact(f64::from(w[i]) + 1e-4) - exact(f64::from(w[i]) - 1e-4)) / 2e-4;
            assert!(
                (f64::from(slope[i]) - difference).abs() < 1e-5 * difference,
                "{} {difference}",
                slope[i]
            );
            assert!(slope[i] > 0., "pixels at the bounds can move");
        }
    }

    #[test]
    fn images_never_leave_the_bounds() {
        let space = TanhSpace { low: 0.1, high: 0.9 };
        let w: Vec<f32> = (-400..=400).map(|i| i as f32 * 0.25).collect();
        let (mut image, mut slope) = (vec![0.; w.len()], vec![0.; w.len()]);
        space.image(&w, &mut image, &mut slope);
        assert!(image.iter().all(|x| (0.1..=0.9).contains(x)) && slope.iter().all(|s| *s >= 0.));
    }
}
