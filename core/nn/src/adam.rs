//! The Adam optimiser.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, bail};
use safetensors::{Dtype, SafeTensors};

use crate::Param;
use crate::kernels::simd;
use crate::ops::adapter::with_slices;
use crate::param::{le_bytes, write_safetensors};

/// Adam (Kingma and Ba 2015), with bias correction. Its state is one pair of moments a parameter, known
/// by the parameter's name. Gradients may be clipped, and weights decay in either of two ways; vectors, which are biases and
/// the scales of norms, never decay.
#[derive(Clone, Debug)]
pub struct Adam {
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// L2 regularisation: this much of a weight is added to its gradient, as a penalty of `weight_decay / 2 |w|^2` would.
    pub weight_decay: f64,
    /// Decoupled decay (AdamW, Loshchilov and Hutter 2019): a step takes this share of a weight, times the rate, away from it.
    pub decoupled_weight_decay: f64,
    /// Largest L2 norm of all gradients together: longer ones are scaled to it. Absent: any.
    pub clip_norm: Option<f64>,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// Means of the gradients and of their squares, in the parameter's shape, flattened.
#[derive(Clone, Debug)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Default for Adam {
    fn default() -> Adam {
        Adam::new()
    }
}

impl Adam {
    /// The authors' constants: 0.9, 0.999, 1e-8.
    pub fn new() -> Adam {
        Adam {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled_weight_decay: 0.0,
            clip_norm: None,
            steps: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Number of steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step with learning rate `lr`, in place. A parameter without a gradient, or not trainable, stays.
    ///
    /// # Errors
    /// When the numbers of parameters and gradients, or the shapes of a pair, differ.
    pub fn step(&mut self, params: &[Param], grads: &[Option<Tensor>], lr: f64) -> Result<()> {
        if params.len() != grads.len() {
            bail!(
                "{} parameters, but {} gradients: give one a parameter",
                params.len(),
                grads.len()
            );
        }
        for (param, grad) in params.iter().zip(grads) {
            if let Some(grad) = grad.as_ref().filter(|g| g.dims() != param.var().dims()) {
                bail!(
                    "the gradient of '{}' has shape {:?}, the parameter {:?}",
                    param.name(),
                    grad.dims(),
                    param.var().dims()
                );
            }
        }
        let moved = params.iter().zip(grads).filter(|(param, _)| param.trainable());
        let moved: Vec<(&Param, &Tensor)> = moved
            .filter_map(|(param, grad)| Some((param, grad.as_ref()?)))
            .collect();
        let scale = self.clip(&moved)?;
        self.steps += 1;
        for (param, grad) in moved {
            self.update(param, grad, lr, scale)?;
        }
        Ok(())
    }

    /// The factor that makes the gradients no longer than the largest norm.
    fn clip(&self, moved: &[(&Param, &Tensor)]) -> Result<f64> {
        let Some(most) = self.clip_norm else { return Ok(1.0) };
        let mut square = 0.0;
        for (_, grad) in moved {
            square += grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok((most / square.sqrt()).min(1.0))
    }

    fn update(&mut self, param: &Param, grad: &Tensor, lr: f64, scale: f64) -> Result<()> {
        let grad = grad.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
        let decays = param.var().dims().len() > 1;
        let rule = Rule::new(self, lr, scale, decays);
        let moments = self.moments.entry(param.name().to_string());
        let moments = moments.or_insert_with(|| Moments::zeros(grad.elem_count()));
        let var = param.var();
        if var.device().is_cpu() && var.dtype() == DType::F32 {
            with_slices([&grad], |[grad]| {
                let moments = RefCell::new(moments);
                var.inplace_op1(&InPlace { rule, grad, moments })
            })??;
            param.changed();
            return Ok(());
        }
        let mut values = var.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        with_slices([&grad], |[grad]| rule.apply(&mut values, grad, moments))?;
        param.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)
    }

    /// Moments and step count as a safetensors blob.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn save_state(&self) -> Result<Vec<u8>> {
        // The count as four 16-bit digits: exact in f32, so that the file has one type.
        let digits: Vec<f32> = (0..4).map(|i| (self.steps >> (16 * i) & 0xffff) as f32).collect();
        let mut entries = vec![("steps".to_string(), vec![4], le_bytes(&digits))];
        for (name, moments) in &self.moments {
            for (kind, values) in [("mean", &moments.mean), ("square", &moments.square)] {
                let shape = vec![values.len()];
                entries.push((format!("{kind}/{name}"), shape, le_bytes(values)));
            }
        }
        write_safetensors(&entries, Dtype::F32)
    }

    /// Continues from a blob of [`Adam::save_state`].
    ///
    /// # Errors
    /// When the blob is no such state.
    pub fn load_state(&mut self, bytes: &[u8]) -> Result<()> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| candle_core::Error::msg(format!("not an optimiser state: {e}")))?;
        let read = |name: &str| -> Result<Vec<f32>> {
            let Ok(view) = file.tensor(name) else {
                bail!("the optimiser state has no '{name}'");
            };
            let count = [view.shape().iter().product()];
            Tensor::from_raw_buffer(view.data(), DType::F32, &count, &Device::Cpu)?.to_vec1()
        };
        let digits = read("steps")?;
        let steps = digits.iter().rev().fold(0, |sum, d| (sum << 16) + *d as u64);
        let mut moments = BTreeMap::new();
        for name in file.names() {
            let Some(name) = name.strip_prefix("mean/") else {
                continue;
            };
            let (mean, square) = (read(&format!("mean/{name}"))?, read(&format!("square/{name}"))?);
            if mean.len() != square.len() {
                bail!("the moments of '{name}' differ in length: the optimiser state is damaged");
            }
            moments.insert(name.to_string(), Moments { mean, square });
        }
        (self.steps, self.moments) = (steps, moments);
        Ok(())
    }
}

impl Moments {
    fn zeros(len: usize) -> Moments {
        Moments {
            mean: vec![0.0; len],
            square: vec![0.0; len],
        }
    }
}

/// The constants of one step.
struct Rule {
    /// `1 - beta1`, `1 - beta2`: subtracted in f64, for 0.999 has no exact f32.
    share1: f32,
    share2: f32,
    eps: f32,
    /// `lr / (1 - beta1^t)`.
    rate: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    correction: f32,
    /// Of clipping.
    scale: f32,
    /// Of L2 regularisation.
    penalty: f32,
    /// `lr` times the decoupled decay.
    decay: f32,
}

impl Rule {
    fn new(adam: &Adam, lr: f64, scale: f64, decays: bool) -> Rule {
        let t = adam.steps as f64;
        let decay = |amount: f64| if decays { amount as f32 } else { 0.0 };
        Rule {
            share1: (1.0 - adam.beta1) as f32,
            share2: (1.0 - adam.beta2) as f32,
            eps: adam.eps as f32,
            rate: (lr / (1.0 - adam.beta1.powf(t))) as f32,
            correction: (1.0 / (1.0 - adam.beta2.powf(t)).sqrt()) as f32,
            scale: scale as f32,
            penalty: decay(adam.weight_decay),
            decay: decay(lr * adam.decoupled_weight_decay),
        }
    }

    /// `p -= rate m / (correction sqrt(v) + eps) + decay p`, moments of `scale g + penalty p` first. Bound by memory: it reads four
    /// arrays and writes three.
    fn apply(&self, values: &mut [f32], grad: &[f32], moments: &mut Moments) {
        let moments = moments.mean.iter_mut().zip(&mut moments.square);
        simd(|| {
            for ((p, g), (m, v)) in values.iter_mut().zip(grad).zip(moments) {
                let g = self.scale * *g + self.penalty * *p;
                *m += self.share1 * (g - *m);
                *v += self.share2 * (g * g - *v);
                *p -= self.rate * *m / (v.sqrt() * self.correction + self.eps) + self.decay * *p;
            }
        });
    }
}

/// A step on the variable's own storage.
struct InPlace<'a> {
    rule: Rule,
    grad: &'a [f32],
    moments: RefCell<&'a mut Moments>,
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((begin, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("a parameter must be contiguous, in f32");
        };
        let mut moments = self.moments.borrow_mut();
        self.rule.apply(&mut values[begin..end], self.grad, &mut moments);
        Ok(())
    }
}
