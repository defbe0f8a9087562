//! Median smoothing (Xu, Evans and Qi 2018): every pixel becomes the median of its neighbourhood.

use advae_sdk::candle_core::{DType, Device, bail};
use advae_sdk::prelude::*;

settings! {
    /// Size of the neighbourhood.
    pub struct MedianSettings {
        /// Height and width of the window, odd, 1 to 51. Beyond the edge, the pixels of the edge are repeated.
        size: usize = 3,
    }
}

struct Median {
    radius: usize,
}

impl Purifier for Median {
    type Settings = MedianSettings;
    const THREADING: Threading = Threading::Caller;

    fn new(settings: MedianSettings, _: &Weights) -> Result<Self> {
        let size = in_range("size", settings.size, 1..=51)?;
        if size.is_multiple_of(2) {
            bail!("size is {size}: it must be odd, choose {} or {}", size - 1, size + 1)
        }
        Ok(Self { radius: size / 2 })
    }

    /// The median is a pixel of the input, and the derivative is 1 there: gathering has it for free.
    fn purify(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let values = x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let values = values.flatten_all()?.to_vec1::<f32>()?;
        let chosen: Vec<u32> = (values.chunks_exact(h * w))
            .flat_map(|map| (0..h * w).map(|at| self.median(map, [h, w], at)))
            .collect();
        let chosen = Tensor::from_vec(chosen, (n * c, h * w), x.device())?;
        x.reshape((n * c, h * w))?.gather(&chosen, 1)?.reshape(x.shape())
    }
}

impl Median {
    /// Position of the median of the window around `at`.
    fn median(&self, map: &[f32], [h, w]: [usize; 2], at: usize) -> u32 {
        let (r, size) = (self.radius, 2 * self.radius + 1);
        let clamped = |centre: usize, step: usize, end: usize| (centre + step).saturating_sub(r).min(end - 1);
        let near = |i: usize| clamped(at / w, i / size, h) * w + clamped(at % w, i % size, w);
        let mut window: Vec<usize> = (0..size * size).map(near).collect();
        let middle = window.len() / 2;
        // Equal pixels by position, so that the choice is always the same.
        let order = |a: &usize, b: &usize| map[*a].total_cmp(&map[*b]).then(a.cmp(b));
        *window.select_nth_unstable_by(middle, order).1 as u32
    }
}

export_plugin! { purifier: Median }

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::Var;

    #[test]
    fn the_median_and_its_derivative() {
        let weights = Weights::init(0);
        assert!(Median::new(MedianSettings { size: 4 }, &weights).is_err());
        let median = Median::new(MedianSettings::default(), &weights).unwrap();
        let pixels = [9f64, 1., 2., 3., 8., 4., 5., 6., 7.];
        let x = Var::from_slice(&pixels, (1, 1, 3, 3), &Device::Cpu).unwrap();
        let y = median.purify(&Pass::eval(), x.as_tensor()).unwrap();
        let values = y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        // In the corner: 9 9 1 / 9 9 1 / 3 3 8; in the middle all nine.
        assert_eq!((values[0], values[4]), (8., 5.));
        let cotangent = Tensor::new(&[[[[1f64, 0., 0.], [0., 2., 0.], [0., 0., 0.]]]], &Device::Cpu).unwrap();
        let gradient = nn::vjp(x.as_tensor(), &y, &cotangent).unwrap().0.unwrap();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(gradient, [0., 0., 0., 0., 1., 0., 2., 0., 0.]);
    }
}
