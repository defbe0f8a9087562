//! Layers: parameters and how they are applied.

use candle_core::{Device, Result, Tensor, bail};

use crate::kernels::conv::Correlation;
use crate::ops::conv::{conv_transpose2d_to, geometry, transposed_geometry};
use crate::ops::norm::{batch_norm, channel_affine};
use crate::pass::bernoulli;
use crate::{Init, Padding, Param, Pass, Weights, conv2d, linear};

/// Convolution, with a bias unless it is made [without](Conv2d::without_bias); weight Glorot-uniform, bias 0.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Param,
    bias: Option<Param>,
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// Parameters `weight` `[out, in, kernel, kernel]` and `bias` `[out]`.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn new(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<Conv2d> {
        let init = Init::glorot_uniform([in_channels, out_channels], kernel * kernel);
        Conv2d::with_init(weights, [in_channels, out_channels], kernel, stride, padding, init)
    }

    /// The same with another initialisation of the weight; `[in, out]` channels.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn with_init(
        weights: &Weights,
        [in_channels, out_channels]: [usize; 2],
        kernel: usize,
        stride: usize,
        padding: Padding,
        init: Init,
    ) -> Result<Conv2d> {
        let layer = Conv2d::without_bias(weights, [in_channels, out_channels], kernel, stride, padding, init)?;
        let bias = Some(weights.param("bias", &[out_channels], Init::Zeros)?);
        Ok(Conv2d { bias, ..layer })
    }

    /// The same without a bias, as where a norm follows: a parameter `weight` `[out, in, kernel, kernel]` alone.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn without_bias(
        weights: &Weights,
        [in_channels, out_channels]: [usize; 2],
        kernel: usize,
        stride: usize,
        padding: Padding,
        init: Init,
    ) -> Result<Conv2d> {
        let shape = [out_channels, in_channels, kernel, kernel];
        Ok(Conv2d {
            weight: weights.param("weight", &shape, init)?,
            bias: None,
            stride,
            padding,
        })
    }

    /// The layer of parameters made before: weight `[out, in, kh, kw]`, bias `[out]`. That they fit each other is asked when it is
    /// first used.
    pub fn from_params(weight: Param, bias: Option<Param>, stride: usize, padding: Padding) -> Conv2d {
        Conv2d {
            weight,
            bias,
            stride,
            padding,
        }
    }

    /// What it does to maps `[C, H, W]`.
    pub(crate) fn correlation(&self, shape: [usize; 3]) -> Result<Correlation> {
        let geometry = geometry(shape, self.weight.var().dims(), self.stride, self.padding)?;
        Ok(Correlation::new(geometry))
    }

    /// `[out, in, kernel, kernel]`.
    pub(crate) fn weight(&self) -> &Param {
        &self.weight
    }

    /// `[out]`, if there is one.
    pub(crate) fn bias(&self) -> Option<&Param> {
        self.bias.as_ref()
    }

    /// Weight, and bias if there is one.
    pub(crate) fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.weight].into_iter().chain(&self.bias)
    }

    /// `x` `[N, in, H, W]` to `[N, out, Hout, Wout]`.
    ///
    /// # Errors
    /// Those of [`conv2d`]: if `x` has other axes or channels, or is too small for the kernel.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|bias| bias.tensor(pass));
        conv2d(x, &self.weight.tensor(pass), bias.as_ref(), self.stride, self.padding)
    }
}

/// Transposed convolution with bias, as [`conv_transpose2d`](crate::conv_transpose2d); weight Glorot-uniform, bias 0.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    weight: Param,
    bias: Param,
    stride: usize,
    padding: Padding,
    /// Height and width of the output, where they are not the usual ones.
    output: Option<[usize; 2]>,
}

impl ConvTranspose2d {
    /// Parameters `weight` `[in, out, kernel, kernel]` and `bias` `[out]`.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn new(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        stride: usize,
        padding: Padding,
    ) -> Result<ConvTranspose2d> {
        let init = Init::glorot_uniform([in_channels, out_channels], kernel * kernel);
        Ok(ConvTranspose2d {
            weight: weights.param("weight", &[in_channels, out_channels, kernel, kernel], init)?,
            bias: weights.param("bias", &[out_channels], Init::Zeros)?,
            stride,
            padding,
            output: None,
        })
    }

    /// The layer of parameters made before: weight `[in, out, kh, kw]`, bias `[out]`.
    pub fn from_params(weight: Param, bias: Param, stride: usize, padding: Padding) -> ConvTranspose2d {
        ConvTranspose2d {
            weight,
            bias,
            stride,
            padding,
            output: None,
        }
    }

    /// The same layer with outputs of this height and width: any from which the convolution goes to its inputs, such as 7 x 7 in
    /// place of 8 x 8 from 4 x 4 with stride 2.
    pub fn with_output(self, output: [usize; 2]) -> ConvTranspose2d {
        ConvTranspose2d {
            output: Some(output),
            ..self
        }
    }

    /// What it does to maps `[C, H, W]`.
    pub(crate) fn correlation(&self, shape: [usize; 3]) -> Result<Correlation> {
        let weight = self.weight.var().dims();
        let geometry = transposed_geometry(shape, weight, self.output, self.stride, self.padding)?;
        Ok(Correlation::new(geometry).transpose())
    }

    /// Weight and bias.
    pub(crate) fn params(&self) -> [&Param; 2] {
        [&self.weight, &self.bias]
    }

    /// `x` `[N, in, H, W]` to `[N, out, Hout, Wout]`.
    ///
    /// # Errors
    /// If `x` has other axes or channels, or the height and width of [`with_output`](Self::with_output) do not convolve to
    /// those of `x`.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.tensor(pass), self.bias.tensor(pass));
        conv_transpose2d_to(x, &weight, Some(&bias), self.output, self.stride, self.padding)
    }
}

/// Fully connected layer with bias; weight Glorot-uniform, bias 0.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Param,
    bias: Param,
}

impl Linear {
    /// Parameters `weight` `[out, in]` and `bias` `[out]`.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn new(weights: &Weights, inputs: usize, outputs: usize) -> Result<Linear> {
        let init = Init::glorot_uniform([inputs, outputs], 1);
        Ok(Linear {
            weight: weights.param("weight", &[outputs, inputs], init)?,
            bias: weights.param("bias", &[outputs], Init::Zeros)?,
        })
    }

    /// The layer of parameters made before: weight `[out, in]`, bias `[out]`.
    pub fn from_params(weight: Param, bias: Param) -> Linear {
        Linear { weight, bias }
    }

    /// Inputs and outputs.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        let dims = self.weight.var().dims();
        [dims[1], dims[0]]
    }

    /// Weight and bias.
    pub(crate) fn params(&self) -> [&Param; 2] {
        [&self.weight, &self.bias]
    }

    /// `x` `[N, in]` to `[N, out]`.
    ///
    /// # Errors
    /// If `x` has another shape.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.tensor(pass), self.bias.tensor(pass));
        linear(x, &weight, Some(&bias))
    }
}

/// Batch normalisation (Ioffe and Szegedy 2015) over `[N, H, W]` of each channel.
#[derive(Clone, Debug)]
pub struct BatchNorm2d {
    weight: Param,
    bias: Param,
    running_mean: Param,
    running_var: Param,
}

impl BatchNorm2d {
    /// Added to the variance.
    pub const EPSILON: f64 = 1e-5;
    /// Share of the batch in the running statistics.
    pub const MOMENTUM: f64 = 0.1;

    /// Parameters `weight` and `bias`, buffers `running_mean` and `running_var`, all `[channels]`.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn new(weights: &Weights, channels: usize) -> Result<BatchNorm2d> {
        Ok(BatchNorm2d {
            weight: weights.param("weight", &[channels], Init::Ones)?,
            bias: weights.param("bias", &[channels], Init::Zeros)?,
            running_mean: weights.buffer("running_mean", &[channels], Init::Zeros)?,
            running_var: weights.buffer("running_var", &[channels], Init::Ones)?,
        })
    }

    /// The layer of parameters made before, all `[channels]`.
    pub fn from_params(weight: Param, bias: Param, running_mean: Param, running_var: Param) -> BatchNorm2d {
        BatchNorm2d {
            weight,
            bias,
            running_mean,
            running_var,
        }
    }

    /// `x` `[N, C, H, W]`, normalised by the running statistics; in a training pass by the batch's own
    /// mean and biased variance, which then move the running ones (the variance as its unbiased estimate). A pass may ask for the
    /// batch's statistics alone.
    ///
    /// # Errors
    /// If `x` has other axes or channels, or a running statistic cannot be set.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        if pass.train || pass.batch_statistics {
            let (weight, bias) = (self.weight.tensor(pass), self.bias.tensor(pass));
            let (y, mean, var) = batch_norm(x, &weight, &bias, Self::EPSILON)?;
            if !pass.train {
                return Ok(y);
            }
            let (n, _, h, w) = x.dims4()?;
            self.update(&mean, &var, (n * h * w) as f64)?;
            return Ok(y);
        }
        let [scale, shift] = self.affine(pass)?;
        channel_affine(x, &scale, &shift)
    }

    /// Moves the running statistics towards mean and biased variance `[channels]` of a batch of so many places.
    pub(crate) fn update(&self, mean: &Tensor, var: &Tensor, places: f64) -> Result<()> {
        update(&self.running_mean, mean)?;
        update(&self.running_var, &(var * (places / (places - 1.0).max(1.0)))?)
    }

    /// Scale and shift `[channels]` by the running statistics.
    pub(crate) fn affine(&self, pass: &Pass) -> Result<[Tensor; 2]> {
        let deviation = (self.running_var.tensor(pass) + Self::EPSILON)?.sqrt()?;
        let scale = (self.weight.tensor(pass) / deviation)?;
        let shift = (self.bias.tensor(pass) - (self.running_mean.tensor(pass) * &scale)?)?;
        Ok([scale, shift])
    }

    /// Number of channels.
    pub(crate) fn channels(&self) -> usize {
        self.weight.var().elem_count()
    }

    /// Everything that evaluation depends on.
    pub(crate) fn params(&self) -> [&Param; 4] {
        [&self.weight, &self.bias, &self.running_mean, &self.running_var]
    }
}

/// Moves a running statistic towards the batch's.
fn update(running: &Param, batch: &Tensor) -> Result<()> {
    let old = running.var().as_detached_tensor();
    let batch = batch.to_dtype(old.dtype())?;
    let keep = 1.0 - BatchNorm2d::MOMENTUM;
    running.set(&((old * keep)? + (&batch * BatchNorm2d::MOMENTUM)?)?)
}

/// Dropout (Srivastava et al. 2014), inverted: in a training pass each element is 0 with probability
/// `p`, else divided by `1 - p`; otherwise the identity.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    p: f64,
    stream: u64,
}

impl Dropout {
    /// Drops with probability `p`. Layers of one model need streams of their own: they keep their random
    /// numbers apart.
    pub fn new(p: f64, stream: u64) -> Dropout {
        Dropout { p, stream }
    }

    /// `x` `[N, ...]`. What is dropped from a sample depends on the pass's key for it, not on its place.
    ///
    /// # Errors
    /// When `p` is not in `[0, 1)`, or the pass names another number of samples.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        if !(0.0..1.0).contains(&self.p) {
            bail!("dropout with probability {}: it must be in [0, 1)", self.p);
        }
        if !pass.train || self.p == 0.0 {
            return Ok(x.clone());
        }
        let n = x.dim(0)?;
        pass.check_ids(n)?;
        let per_sample = x.elem_count() / n.max(1);
        let keep = (1.0 / (1.0 - self.p)) as f32;
        let mut mask = Vec::with_capacity(x.elem_count());
        for index in 0..n {
            let mut rng = pass.rng(index, self.stream);
            let dropped = std::iter::repeat_with(|| bernoulli(&mut rng, self.p));
            mask.extend(dropped.take(per_sample).map(|d| if d { 0.0 } else { keep }));
        }
        let mask = Tensor::from_vec(mask, x.shape(), &Device::Cpu)?;
        x * mask.to_dtype(x.dtype())?.to_device(x.device())?
    }
}
