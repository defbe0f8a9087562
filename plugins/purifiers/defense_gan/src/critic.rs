//! The critic, and the gradient penalty.

use advae_sdk::candle_core::{D, Var, bail};
use advae_sdk::nn::{Init, Padding, Param, conv2d, flatten, leaky_relu, linear, vjp};
use advae_sdk::prelude::*;

/// Slope of the leaky ReLU below 0.
const SLOPE: f64 = 0.2;

/// Convolutions 5x5 of stride 2 to 64, 128 and 256 channels with leaky ReLU, FC to one number: 1,030,145 parameters; or as wide as it is told.
/// No batch norm: the penalty is on each sample's own gradient.
pub struct Critic {
    convolutions: Vec<[Param; 2]>,
    last: [Param; 2],
    /// All of them.
    pub params: Vec<Param>,
}

/// The penalty of a batch.
pub struct Penalty {
    /// `mean((|g| - 1)^2)`, `g` the critic's gradient at one sample, over all its pixels.
    pub value: f64,
    /// Gradients of `weight * value` with respect to the weights, layer by layer. (Biases move no gradient.)
    pub gradients: Vec<(Param, Tensor)>,
}

impl Critic {
    /// Asks for its parameters, of `wide`, twice and four times as many channels.
    pub fn new(weights: &Weights, wide: usize) -> Result<Self> {
        let layer = |name: &str, shape: &[usize], taps: usize| {
            let init = Init::GlorotUniform {
                fan_in: shape[1] * taps,
                fan_out: shape[0] * taps,
            };
            let at = weights.pp(name);
            Ok([
                at.param("weight", shape, init)?,
                at.param("bias", &shape[..1], Init::Zeros)?,
            ])
        };
        let convolutions = [
            ("conv1", 1, wide),
            ("conv2", wide, 2 * wide),
            ("conv3", 2 * wide, 4 * wide),
        ];
        let convolution = |(name, from, to): &(&str, usize, usize)| layer(name, &[*to, *from, 5, 5], 25);
        Ok(Self {
            convolutions: convolutions.iter().map(convolution).collect::<Result<_>>()?,
            last: layer("fc", &[1, 4 * wide * 16], 1)?,
            params: weights.params(),
        })
    }

    /// Images `[N, 1, 28, 28]` to scores `[N, 1]`.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for [weight, bias] in &self.convolutions {
            let z = conv2d(&x, &weight.tensor(pass), Some(&bias.tensor(pass)), 2, Padding::Same)?;
            x = leaky_relu(&z, SLOPE)?;
        }
        let [weight, bias] = &self.last;
        linear(&flatten(&x)?, &weight.tensor(pass), Some(&bias.tensor(pass)))
    }

    /// The gradient penalty `weight * mean((|g| - 1)^2)` (Gulrajani et al. 2017, Eq. 3) at `x` `[N, 1, 28, 28]`, and its own gradient.
    ///
    /// That gradient is a second derivative, but the critic is piecewise linear: with every leaky ReLU kept at the slopes that it has at
    /// `x`, and without biases, the critic is a linear function `T` of its input, and `<g, v> = T(v)`. So the gradient of the penalty
    /// is that of `sum T(v)`, with `v` the penalty's derivative by `g` held constant. Slopes are constant almost everywhere: this is
    /// exact. What `T` sends back from its output to a layer is what the critic itself sends back to it: one way back serves both.
    pub fn penalty(&self, pass: &Pass, x: &Tensor, weight: f64) -> Result<Penalty> {
        let (n, pass) = (x.dim(0)?, pass.clone().with_track(false));
        let (mut at, mut layers) = (x.clone(), vec![]);
        for [weight, bias] in &self.convolutions {
            let input = Var::from_tensor(&at)?;
            let (weight, bias) = (weight.tensor(&pass), bias.tensor(&pass));
            let z = conv2d(input.as_tensor(), &weight, Some(&bias), 2, Padding::Same)?;
            let above = z.detach().gt(0.)?.to_dtype(z.dtype())?;
            at = leaky_relu(&z.detach(), SLOPE)?;
            layers.push((input, z, above.affine(1. - SLOPE, SLOPE)?));
        }
        // From the scores back to the input; `sent` is what reaches each convolution's output.
        let mut back = self.last[0]
            .tensor(&pass)
            .reshape((1, (), 4, 4))?
            .broadcast_as(at.shape())?;
        let mut sent = vec![];
        for (input, z, slopes) in layers.iter().rev() {
            sent.push((back * slopes)?);
            let to_input = vjp(input.as_tensor(), z, &sent[sent.len() - 1])?.0;
            back = to_input.map_or_else(|| bail!("the critic does not depend on its input"), Ok)?;
        }
        let gradient = back;
        let norms = flatten(&gradient)?.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
        let excess = (&norms - 1.)?;
        let value = advae_sdk::scalar(&excess.sqr()?.mean_all()?)?;
        // d/dg (|g| - 1)^2 = 2 (|g| - 1) g / |g|; where g is 0 it has no direction, and none is taken.
        let factor = ((excess / (norms + 1e-12)?)? * (2. * weight / n as f64))?;
        let mut tangent = gradient.broadcast_mul(&factor.reshape((n, 1, 1, 1))?)?;
        let mut gradients = vec![];
        for (([weight, _], (_, _, slopes)), sent) in self.convolutions.iter().zip(&layers).zip(sent.iter().rev()) {
            let variable = weight.var().as_tensor();
            let z = conv2d(&tangent, variable, None, 2, Padding::Same)?;
            let to_weight = vjp(variable, &z, sent)?.0;
            gradients.push((
                weight.clone(),
                to_weight.map_or_else(|| bail!("no gradient reached a weight"), Ok)?,
            ));
            tangent = (z.detach() * slopes)?;
        }
        gradients.push((self.last[0].clone(), flatten(&tangent)?.sum_keepdim(0)?));
        Ok(Penalty { value, gradients })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::{DType, Device};

    fn images(n: usize, stream: u64) -> Tensor {
        let zeros = Tensor::zeros((n, 1, 28, 28), DType::F64, &Device::Cpu).unwrap();
        Pass::eval().randn_like(&zeros, stream).unwrap()
    }

    fn critic() -> Critic {
        Critic::new(&Weights::init(3).with_dtype(DType::F64), 64).unwrap()
    }

    #[test]
    fn it_has_the_papers_parameters() {
        let weights = Weights::init(1);
        Critic::new(&weights, 64).unwrap();
        assert_eq!(weights.parameter_count(), 1_030_145);
        let half = Weights::init(1);
        Critic::new(&half, 32).unwrap();
        assert_eq!(
            half.parameter_count(),
            25 * (32 + 32 * 64 + 64 * 128) + 32 + 64 + 128 + 128 * 16 + 1
        );
    }

    #[test]
    fn the_penaltys_gradient_is_its_difference() {
        let (critic, x, weight) = (critic(), images(3, 0), 10.);
        // Scores that are steep enough for norms on both sides of 1.
        critic.last[0]
            .set(&(critic.last[0].var().as_detached_tensor() * 6.).unwrap())
            .unwrap();
        let pass = Pass::training(0);
        let penalty = critic.penalty(&pass, &x, weight).unwrap();
        let value = || weight * critic.penalty(&pass, &x, weight).unwrap().value;
        for (i, (param, gradient)) in penalty.gradients.iter().enumerate() {
            let start = param.var().as_detached_tensor().copy().unwrap();
            let along = Pass::eval()
                .with_seed(i as u64)
                .randn_like(&start.unsqueeze(0).unwrap(), 1)
                .unwrap();
            let along = along.squeeze(0).unwrap();
            // So short that no unit changes its side: there the penalty jumps.
            let step = 1e-9;
            let at = |step: f64| {
                param.set(&(&start + (&along * step).unwrap()).unwrap()).unwrap();
                value()
            };
            let difference = (at(step) - at(-step)) / (2. * step);
            param.set(&start).unwrap();
            let gradient: f64 = (gradient * &along).unwrap().sum_all().unwrap().to_scalar().unwrap();
            let error = (difference - gradient).abs() / difference.abs().max(1e-3);
            assert!(error < 1e-5, "{}: {difference} {gradient}", param.name());
        }
    }

    /// The `i`-th number is `scale sin(pace i)`.
    fn numbers(shape: &[usize], pace: f64, scale: f64) -> Tensor {
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f64> = (0..count).map(|i| scale * (pace * i as f64).sin()).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }

    /// Figures of `scripts/agreement/penalty.py`, which has PyTorch differentiate twice.
    #[test]
    fn the_penalty_is_torchs() {
        let torch = [
            -5.024951170110161,
            -27.660755340206517,
            -0.8375251959050729,
            -9.145809592492073,
        ];
        let critic = critic();
        let layers = critic.convolutions.iter().chain([&critic.last]);
        for (i, ([weight, bias], scale)) in layers.clone().zip([0.4, 0.15, 0.1, 0.4]).enumerate() {
            weight
                .set(&numbers(weight.var().dims(), 0.7 + 0.1 * i as f64, scale))
                .unwrap();
            bias.set(&numbers(bias.var().dims(), 0.3, 0.1)).unwrap();
        }
        let x = (numbers(&[3, 1, 28, 28], 0.9, 0.5) + 0.5).unwrap();
        let penalty = critic.penalty(&Pass::training(0), &x, 10.).unwrap();
        assert!((10. * penalty.value - 1.7017224773227448).abs() < 1e-9);
        for ((weight, gradient), torch) in penalty.gradients.iter().zip(torch) {
            let along = numbers(gradient.dims(), 0.4, 1.);
            let along = (gradient * along)
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f64>()
                .unwrap();
            assert!(
                (along - torch).abs() < 1e-8 * torch.abs(),
                "{}: {along} {torch}",
                weight.name()
            );
        }
    }

    #[test]
    fn a_linear_critics_penalty_is_its_weights_norm() {
        // Where every unit is above 0 the critic is linear, and the penalty is known.
        let (critic, weight) = (critic(), 1.);
        for [_, bias] in &critic.convolutions {
            bias.set(&(bias.var().ones_like().unwrap() * 1e3).unwrap()).unwrap();
        }
        let (a, b) = (images(2, 0), images(2, 1));
        let pass = Pass::eval();
        let score = |x: &Tensor| {
            critic
                .forward(&pass, x)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap()
        };
        let (at_a, at_b) = (score(&a), score(&b));
        // T(a - b) = <g, a - b>, with the gradient that the penalty goes by.
        let x = Var::from_tensor(&a).unwrap();
        let y = critic.forward(&pass, x.as_tensor()).unwrap();
        let g = vjp(x.as_tensor(), &y, &y.ones_like().unwrap()).unwrap().0.unwrap();
        let step = ((&a - &b).unwrap() * &g).unwrap();
        let step = flatten(&step).unwrap().sum(1).unwrap().to_vec1::<f64>().unwrap();
        for i in 0..2 {
            assert!((at_a[i] - at_b[i] - step[i]).abs() < 1e-6 * at_a[i].abs());
        }
        let norms = flatten(&g)
            .unwrap()
            .sqr()
            .unwrap()
            .sum(1)
            .unwrap()
            .sqrt()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap();
        let expected = norms.iter().map(|norm| (norm - 1.).powi(2)).sum::<f64>() / 2.;
        let penalty = critic.penalty(&pass, &a, weight).unwrap();
        assert!((penalty.value - expected).abs() < 1e-12);
    }
}
