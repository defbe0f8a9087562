//! What one query changes of one image. Nothing here knows of a batch.

use advae_sdk::prelude::*;
use rand::Rng;

/// Keeps quotients finite where a window has not been changed yet, as in the authors' code.
const GUARD: f32 = 1e-12;

/// Shape and bounds of the images.
pub(crate) struct Canvas {
    channels: usize,
    height: usize,
    width: usize,
    low: f32,
    high: f32,
}

/// A square of an image.
#[derive(Clone, Copy)]
struct Window {
    top: usize,
    left: usize,
    side: usize,
}

/// Side of a square that covers a share of the image: at least a pixel for Linf; odd, and at least three, for L2.
pub(crate) fn side(share: f64, canvas: &Canvas, norm: Norm) -> usize {
    let side = (share * (canvas.height * canvas.width) as f64).sqrt().round() as usize;
    let side = match norm {
        Norm::Linf => side.max(1),
        Norm::L2 => side.max(3) | 1,
    };
    side.min(canvas.height).min(canvas.width)
}

impl Canvas {
    /// That of images `x` `[N,C,H,W]`.
    pub(crate) fn new(x: &Tensor, (low, high): (f64, f64)) -> Result<Self> {
        let (_, channels, height, width) = x.dims4()?;
        Ok(Self {
            channels,
            height,
            width,
            low: low as f32,
            high: high as f32,
        })
    }

    /// The first image: vertical stripes for Linf, a grid of five by five tiles for L2.
    pub(crate) fn start(&self, norm: Norm, x: &[f32], epsilon: f32, rng: &mut impl Rng) -> Vec<f32> {
        match norm {
            Norm::Linf => self.stripes(x, epsilon, rng),
            Norm::L2 => {
                let tiles = self.tiles(rng);
                self.scaled(x, &tiles, epsilon)
            }
        }
    }

    /// The image of the best margin with one more random square.
    pub(crate) fn change(
        &self,
        norm: Norm,
        x: &[f32],
        best: &[f32],
        epsilon: f32,
        side: usize,
        rng: &mut impl Rng,
    ) -> Vec<f32> {
        match norm {
            Norm::Linf => self.square(x, best, epsilon, side, rng),
            Norm::L2 => {
                let delta: Vec<f32> = best.iter().zip(x).map(|(best, x)| best - x).collect();
                self.scaled(x, &self.moved(delta, epsilon, side, rng), epsilon)
            }
        }
    }

    fn stripes(&self, x: &[f32], epsilon: f32, rng: &mut impl Rng) -> Vec<f32> {
        let stripes: Vec<f32> = (0..self.channels * self.width).map(|_| sign(rng) * epsilon).collect();
        let stripe = |i: usize| stripes[i / (self.height * self.width) * self.width + i % self.width];
        let pixels = x.iter().enumerate();
        pixels
            .map(|(i, x)| (x + stripe(i)).clamp(self.low, self.high))
            .collect()
    }

    /// One sign a channel within a square, which takes its pixels to the edge of the ball.
    fn square(&self, x: &[f32], best: &[f32], epsilon: f32, side: usize, rng: &mut impl Rng) -> Vec<f32> {
        let window = self.window(side, rng);
        let mut image = best.to_vec();
        for channel in 0..self.channels {
            let step = sign(rng) * 2. * epsilon;
            for i in self.pixels(window, channel) {
                let moved = (image[i] + step).clamp(x[i] - epsilon, x[i] + epsilon);
                image[i] = moved.clamp(self.low, self.high);
            }
        }
        image
    }

    /// Five by five tiles, each with a bump of its own.
    fn tiles(&self, rng: &mut impl Rng) -> Vec<f32> {
        let side = (self.height / 5).max(1);
        let margin = self.height.saturating_sub(5 * side) / 2;
        let mut delta = vec![0.; self.channels * self.height * self.width];
        for (row, column) in (0..self.height / side).flat_map(|row| (0..self.width / side).map(move |c| (row, c))) {
            let (top, left) = (margin + row * side, margin + column * side);
            if top + side > self.height || left + side > self.width {
                continue;
            }
            let bump = bump(side, rng);
            for channel in 0..self.channels {
                let sign = sign(rng);
                let pixels = self.pixels(Window { top, left, side }, channel);
                pixels.zip(&bump).for_each(|(i, bump)| delta[i] += sign * bump);
            }
        }
        delta
    }

    /// Takes the length of one square away and puts it, with what is left of the budget, into another, along a new bump.
    fn moved(&self, mut delta: Vec<f32>, epsilon: f32, side: usize, rng: &mut impl Rng) -> Vec<f32> {
        let (to, from) = (self.window(side, rng), self.window(side, rng));
        let bump = bump(side, rng);
        let unused = (epsilon * epsilon - squared(delta.iter())).max(0.) / self.channels as f32;
        for channel in 0..self.channels {
            let sign = sign(rng);
            let both = |i: &usize| self.holds(to, *i) || self.holds(from, *i);
            let plane = channel * self.height * self.width..(channel + 1) * self.height * self.width;
            let length = (unused + squared(plane.filter(both).map(|i| &delta[i]))).sqrt();
            let old = squared(self.pixels(to, channel).map(|i| &delta[i])).sqrt();
            let pixels = self.pixels(to, channel).zip(&bump);
            let new: Vec<f32> = pixels.map(|(i, bump)| sign * bump + delta[i] / (GUARD + old)).collect();
            let factor = length / (GUARD + squared(new.iter()).sqrt());
            self.pixels(from, channel).for_each(|i| delta[i] = 0.);
            self.pixels(to, channel)
                .zip(new)
                .for_each(|(i, new)| delta[i] = new * factor);
        }
        delta
    }

    /// `x` and the perturbation at the length epsilon, within bounds.
    fn scaled(&self, x: &[f32], delta: &[f32], epsilon: f32) -> Vec<f32> {
        let factor = epsilon / (GUARD + squared(delta.iter()).sqrt());
        let pixels = x.iter().zip(delta);
        pixels
            .map(|(x, delta)| (x + delta * factor).clamp(self.low, self.high))
            .collect()
    }

    /// Anywhere, as in the paper. The authors' code never reaches the last row and column.
    fn window(&self, side: usize, rng: &mut impl Rng) -> Window {
        let top = rng.random_range(0..=self.height - side);
        let left = rng.random_range(0..=self.width - side);
        Window { top, left, side }
    }

    fn pixels(&self, window: Window, channel: usize) -> impl Iterator<Item = usize> + use<> {
        let (height, width) = (self.height, self.width);
        let row = move |y: usize| {
            (0..window.side).map(move |x| (channel * height + window.top + y) * width + window.left + x)
        };
        (0..window.side).flat_map(row)
    }

    fn holds(&self, window: Window, pixel: usize) -> bool {
        let (y, x) = (pixel / self.width % self.height, pixel % self.width);
        let within = |at: usize, from: usize| (from..from + window.side).contains(&at);
        within(y, window.top) && within(x, window.left)
    }
}

fn sign(rng: &mut impl Rng) -> f32 {
    if rng.random() { 1. } else { -1. }
}

fn squared<'a>(values: impl Iterator<Item = &'a f32>) -> f32 {
    values.map(|v| f64::from(*v).powi(2)).sum::<f64>() as f32
}

/// A square of unit length, one half of it a positive bump and the other a negative one, side by side or one above the other.
fn bump(side: usize, rng: &mut impl Rng) -> Vec<f32> {
    let upper = half(side / 2, side).into_iter();
    let lower = half(side - side / 2, side).into_iter().map(|v| -v);
    let mut bump: Vec<f32> = upper.chain(lower).collect();
    let length = squared(bump.iter()).sqrt();
    bump.iter_mut().for_each(|v| *v /= length);
    match rng.random::<bool>() {
        true => (0..side * side).map(|i| bump[i % side * side + i / side]).collect(),
        false => bump,
    }
}

/// A bump of unit length over a rectangle: nested rectangles around its centre, each of the weight of its inverse squared rank.
fn half(height: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0f32; height * width];
    let (middle, centre) = (height / 2, width / 2);
    for ring in 0..=middle.max(centre) {
        let weight = 1. / ((ring + 1) * (ring + 1)) as f32;
        for y in middle.saturating_sub(ring)..(middle + ring + 1).min(height) {
            for x in centre.saturating_sub(ring)..(centre + ring + 1).min(width) {
                values[y * width + x] += weight;
            }
        }
    }
    let length = squared(values.iter()).sqrt();
    values.iter_mut().for_each(|v| *v /= length);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canvas(channels: usize, height: usize, width: usize) -> Canvas {
        Canvas {
            channels,
            height,
            width,
            low: 0.,
            high: 1.,
        }
    }

    fn rng() -> impl Rng {
        advae_sdk::nn::key_rng(&[7])
    }

    #[test]
    fn sides_are_those_of_the_authors_code() {
        let mnist = canvas(1, 28, 28);
        let of = |norm| [0.8, 0.4, 0.1, 0.8 / 512.].map(|share| side(share, &mnist, norm));
        assert_eq!(of(Norm::Linf), [25, 18, 9, 1]);
        assert_eq!(of(Norm::L2), [25, 19, 9, 3]);
        assert_eq!(side(1., &canvas(3, 4, 6), Norm::L2), 4, "no larger than the image");
    }

    /// By hand for 3 x 3 and 2 x 3: the ring around the centre weighs a quarter of it; an empty half stays empty.
    #[test]
    fn bumps_fall_off_from_the_centre_and_have_unit_length() {
        let bump = half(3, 3);
        assert!((bump[4] / bump[0] - 1.25 / 0.25).abs() < 1e-5, "{bump:?}");
        assert!((squared(bump.iter()) - 1.).abs() < 1e-6);
        assert!(half(0, 3).is_empty());
        let whole = super::bump(5, &mut rng());
        assert!((squared(whole.iter()) - 1.).abs() < 1e-6);
        let positive = whole.iter().filter(|v| **v > 0.).count();
        assert!(positive == 10, "two lines of five are positive: {positive}");
    }

    #[test]
    fn a_query_changes_one_square_to_the_edge_of_the_ball() {
        let (canvas, x) = (canvas(2, 6, 5), vec![0.5; 60]);
        let start = canvas.start(Norm::Linf, &x, 0.25, &mut rng());
        for column in 0..5 {
            let stripe: Vec<f32> = (0..6).map(|row| start[row * 5 + column]).collect();
            assert!(
                stripe.iter().all(|v| *v == stripe[0] && (v - 0.5).abs() == 0.25),
                "{stripe:?}"
            );
        }
        let image = canvas.change(Norm::Linf, &x, &x, 0.25, 3, &mut rng());
        let changed = image.iter().filter(|v| (**v - 0.5).abs() == 0.25).count();
        assert_eq!(changed, 2 * 9, "three by three in both channels");
        assert_eq!(image.iter().filter(|v| **v == 0.5).count(), 60 - 18);
    }

    #[test]
    fn an_l2_query_keeps_the_whole_length() {
        let (canvas, x) = (canvas(3, 11, 12), vec![0.5; 3 * 132]);
        let mut rng = rng();
        let length = |image: &[f32]| {
            let squares = image
                .iter()
                .zip(&x)
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let mut image = canvas.start(Norm::L2, &x, 0.7, &mut rng);
        for side in [9, 5, 3, 3] {
            assert!((length(&image) - 0.7).abs() < 1e-6, "{}", length(&image));
            let next = canvas.change(Norm::L2, &x, &image, 0.7, side, &mut rng);
            assert!(next != image);
            image = next;
        }
    }

    #[test]
    fn images_smaller_than_five_pixels_have_tiles_too() {
        for (height, width) in [(1, 1), (3, 3), (4, 9), (9, 4)] {
            let canvas = canvas(1, height, width);
            let x = vec![0.5; height * width];
            let side = side(0.8, &canvas, Norm::L2);
            let image = canvas.start(Norm::L2, &x, 0.1, &mut rng());
            let image = canvas.change(Norm::L2, &x, &image, 0.1, side, &mut rng());
            assert!(image.iter().all(|v| v.is_finite()) && image != x, "{height} {width}");
        }
    }
}
