//! Kernels by themselves, on maps as a network keeps them, for the benchmark `kernels`. Not for other use.

use crate::kernels::aligned::Aligned;
use crate::kernels::conv::{Correlation, Kernel};
use crate::kernels::conv_weights::Rule;
use crate::kernels::frame::{Border, Frame};
use crate::kernels::geometry::Geometry;
use crate::kernels::sink::{Maps, Plain, Store};
use crate::ops::conv::geometry;
use crate::{Padding, Result};

/// One convolution over a batch, with everything but the arithmetic done before.
pub struct Convolution {
    g: Geometry,
    images: usize,
    forward: Kernel<f32>,
    backward: Kernel<f32>,
    source: Aligned<f32>,
    gradient: Aligned<f32>,
    output: Frame,
    input: Frame,
    bias: Vec<f32>,
    results: Aligned<f32>,
    sums: Vec<f32>,
}

impl Convolution {
    /// For maps `[c_in, size, size]`.
    ///
    /// # Errors
    /// When the kernel does not fit.
    pub fn new(
        images: usize,
        [c_in, c_out, size]: [usize; 3],
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        let g = geometry([c_in, size, size], &[c_out, c_in, kernel, kernel], stride, padding)?;
        let number = |i: usize| ((i * 7919 % 1000) as f32 - 500.) / 5000.;
        let weight: Vec<f32> = (0..c_out * c_in * kernel * kernel).map(number).collect();
        let forward = Correlation::new(g);
        let [source, gradient] = [forward, forward.transpose()].map(|c| Frame::new(c.input(), c.border()));
        let [output, input] = [g.output(), g.input()].map(|shape| Frame::channels_last(shape, Border::default()));
        let [x, dy] = Rule::new(&g).lengths();
        // The weight's gradient reads maps of a layout of its own: any numbers will do.
        let numbers = |len: usize| Aligned::from(&*(0..images * len).map(number).collect::<Vec<_>>());
        Ok(Self {
            forward: forward.kernel(&source, &weight),
            backward: forward.transpose().kernel(&gradient, &weight),
            source: numbers(source.len().max(x)),
            gradient: numbers(gradient.len().max(dy)),
            bias: vec![0.1; output.channels()],
            results: Aligned::zeros(images * output.len().max(input.len())),
            sums: vec![0.; Rule::new(&g).sums()],
            g,
            images,
            output,
            input,
        })
    }

    /// Floating-point operations of one pass by the direct algorithm: a multiplication and an addition are two.
    pub fn flops(&self) -> f64 {
        (2 * self.images * self.g.h_out * self.g.w_out * self.g.c_out * self.g.c_in * self.g.taps()) as f64
    }

    /// Outputs, with bias and `relu`.
    pub fn forward(&mut self) {
        let to = Maps::new(&mut self.results, &self.output);
        let (images, from) = (self.images, self.source.as_ptr());
        // SAFETY: the source has the kernel's layout, and there is a map for every image.
        unsafe {
            match &self.forward {
                kernel if kernel.is_narrow() => kernel.run_narrow(images, from, |_, _, _| {}),
                kernel => kernel.run(
                    images,
                    from,
                    Store::<f32, true> {
                        bias: self.bias.as_ptr(),
                        to,
                        positive: None,
                    },
                ),
            }
        }
    }

    /// Gradient at the inputs.
    pub fn input_gradient(&mut self) {
        let to = Maps::new(&mut self.results, &self.input);
        let (images, from) = (self.images, self.gradient.as_ptr());
        // SAFETY: as above.
        unsafe {
            match &self.backward {
                kernel if kernel.is_narrow() => kernel.run_narrow(images, from, |_, _, _| {}),
                kernel => kernel.run(images, from, Plain::<f32, false>(to)),
            }
        }
    }

    /// Gradient at the weights, before the batch's parts are added.
    pub fn weight_gradient(&mut self) {
        let rule = Rule::new(&self.g);
        // SAFETY: there is a map for every image of both.
        unsafe {
            rule.add_maps(
                self.images,
                self.source.as_ptr(),
                self.gradient.as_ptr(),
                &mut self.sums,
            )
        }
    }
}
