//! The device of a model, for tensors that stay there during an attack.

use crate::convert::{export, import_to, to_abi, to_candle};
use crate::goal::first_largest;
use advae_abi::abi_stable::sabi_trait::TD_Opaque;
use advae_abi::abi_stable::std_types::{RSlice, RVec};
use advae_abi::tally::{
    COTANGENTS, FIELDS, GRADIENT_VALUES, GRADIENTS, IMAGES, LARGEST_COTANGENT, LOGITS, SATURATED, ZERO_GRADIENTS,
};
use advae_abi::{
    AbiDevice, AbiDevice_TO, AbiError, AbiResult, AbiTally, AbiTally_TO, AbiTensor, AbiTensorRef, DLDevice, DeviceBox,
    ErrorCode, TallyBox, guard,
};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::{Mutex, PoisonError};

/// The device as the host sees it.
pub(crate) fn boxed(device: &Device) -> DeviceBox {
    AbiDevice_TO::from_value(Provider(device.clone()), TD_Opaque)
}

struct Provider(Device);

impl Provider {
    fn id(&self) -> Result<DLDevice> {
        #[cfg(feature = "cuda")]
        if self.0.is_cuda() {
            return crate::cuda::id(self.0.location());
        }
        Ok(DLDevice::CPU)
    }

    /// Leaves a tensor where it lies.
    fn hand_over(&self, tensor: &Tensor) -> Result<AbiTensor> {
        #[cfg(feature = "cuda")]
        if self.0.is_cuda() {
            return crate::cuda::export(tensor);
        }
        export(tensor)
    }
}

fn answer<T>(f: impl FnOnce() -> Result<T>) -> AbiResult<T> {
    guard(|| f().map_err(to_abi))
}

impl AbiDevice for Provider {
    fn device(&self) -> AbiResult<DLDevice> {
        answer(|| self.id())
    }

    fn upload(&self, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        answer(|| self.hand_over(&import_to(&self.0, x, false)?))
    }

    fn download(&self, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        answer(|| export(&import_to(&self.0, x, false)?))
    }

    fn mean(&self, xs: RSlice<'_, AbiTensorRef<'_>>) -> AbiResult<AbiTensor> {
        answer(|| {
            let mut terms = xs.iter().map(|x| import_to(&self.0, *x, false));
            let Some(first) = terms.next() else {
                candle_core::bail!("the mean of no tensors was asked for")
            };
            let sum = terms.try_fold(first?, |sum, term| sum + term?)?;
            let mean = match xs.len() {
                1 => sum,
                n => (sum * f64::from(1. / n as f32))?,
            };
            self.hand_over(&mean)
        })
    }

    fn tally(&self, samples: u64) -> AbiResult<TallyBox> {
        answer(|| {
            let tally = Tally::new(&self.0, samples as usize)?;
            Ok(AbiTally_TO::from_value(tally, TD_Opaque))
        })
    }
}

/// Counts `[samples, FIELDS]` (`f32`, exact up to 2^24), and what is to be added to them: few large operations are faster than many small.
struct Tally {
    device: Device,
    samples: usize,
    counts: Mutex<Counts>,
}

struct Counts {
    sums: Tensor,
    pending: Pending,
}

/// Numbers about the same samples at several steps.
#[derive(Default)]
struct Pending {
    slots: Vec<u32>,
    labels: Vec<i64>,
    /// Sums of the absolute values of images, `[N]`.
    images: Vec<Tensor>,
    /// Those of logits that no gradient was asked about.
    logits: Vec<Tensor>,
    passes: Vec<Passed>,
}

/// A backward pass.
struct Passed {
    /// `[N,K]`.
    logits: Tensor,
    /// `[N,K]`.
    cotangent: Tensor,
    /// Sums of the absolute values of the gradient, `[N]`.
    slope: Tensor,
}

/// Steps that are counted together.
const TOGETHER: usize = 16;

impl Tally {
    fn new(device: &Device, samples: usize) -> Result<Self> {
        let sums = Tensor::zeros((samples.max(1), FIELDS), DType::F32, device)?;
        Ok(Self {
            device: device.clone(),
            samples,
            counts: Mutex::new(Counts {
                sums,
                pending: Pending::default(),
            }),
        })
    }

    /// Takes a tensor in whose rows belong to `slots`, as `[N, ...]` flattened to `[N,D]`.
    fn rows(&self, slots: &[u32], values: AbiTensorRef<'_>) -> Result<Tensor> {
        let values = import_to(&self.device, values, false)?;
        if values.rank() < 1 || values.dims()[0] != slots.len() {
            let text = format!("{} slots for a tensor of shape {:?}", slots.len(), values.dims());
            return Err(to_candle(AbiError::new(ErrorCode::Shape, text)));
        }
        values.reshape((slots.len(), ()))
    }

    /// Keeps numbers about the samples in `slots` until they are counted.
    fn keep(&self, slots: &[u32], labels: Option<&[i64]>, keep: impl FnOnce(&mut Pending)) -> Result<()> {
        if let Some(slot) = slots.iter().find(|slot| **slot as usize >= self.samples) {
            let text = format!("slot {slot} of a tally of {} samples", self.samples);
            return Err(to_candle(AbiError::new(ErrorCode::Shape, text)));
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = &counts.pending;
        let others = labels.is_some_and(|labels| !pending.passes.is_empty() && pending.labels != labels);
        if pending.slots != slots || others || pending.len() >= TOGETHER {
            counts.add()?;
            counts.pending.slots = slots.to_vec();
        }
        if let Some(labels) = labels {
            counts.pending.labels = labels.to_vec();
        }
        keep(&mut counts.pending);
        Ok(())
    }

    fn count(&self, slots: &[u32], labels: &[i64], [logits, cotangent, gradient]: [AbiTensorRef<'_>; 3]) -> Result<()> {
        if labels.len() != slots.len() {
            let text = format!("{} labels for {} slots", labels.len(), slots.len());
            return Err(to_candle(AbiError::new(ErrorCode::Shape, text)));
        }
        let passed = Passed {
            logits: self.rows(slots, logits)?,
            cotangent: self.rows(slots, cotangent)?,
            slope: size(&self.rows(slots, gradient)?)?,
        };
        if passed.logits.dims() != passed.cotangent.dims() {
            let text = "logits and cotangents of different shapes".to_string();
            return Err(to_candle(AbiError::new(ErrorCode::Shape, text)));
        }
        self.keep(slots, Some(labels), |pending| pending.passes.push(passed))
    }
}

impl Counts {
    /// Counts what is pending.
    fn add(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.len() == 0 {
            return Ok(());
        }
        let device = &self.sums.device().clone();
        let n = pending.slots.len();
        let none = Tensor::zeros(n, DType::F32, device)?;
        let mut columns = vec![none; FIELDS];
        for (field, sums) in [(IMAGES, &pending.images), (LOGITS, &pending.logits)] {
            if !sums.is_empty() {
                columns[field] = not_finite(&Tensor::stack(sums, 0)?)?.sum(0)?;
            }
        }
        if !pending.passes.is_empty() {
            for (field, counted) in pending.passed(device)? {
                columns[field] = (&columns[field] + counted)?;
            }
        }
        // One row more, of zeros, for samples that are not among them.
        let rows = Tensor::stack(&columns, 1)?.pad_with_zeros(0, 0, 1)?;
        for places in places(&pending.slots, self.sums.dim(0)?) {
            self.sums = (&self.sums + rows.index_select(&Tensor::new(places, device)?, 0)?)?;
        }
        Ok(())
    }
}

/// For every sample the row that belongs to it, `slots.len()` where none does; once more for every further row of a sample.
fn places(slots: &[u32], samples: usize) -> Vec<Vec<u32>> {
    let none = slots.len() as u32;
    let mut all: Vec<Vec<u32>> = vec![];
    for (row, slot) in (0..).zip(slots) {
        let free = all.iter_mut().find(|places| places[*slot as usize] == none);
        match free {
            Some(places) => places[*slot as usize] = row,
            None => {
                let mut places = vec![none; samples];
                places[*slot as usize] = row;
                all.push(places);
            }
        }
    }
    all
}

impl Pending {
    fn len(&self) -> usize {
        self.images.len().max(self.logits.len()).max(self.passes.len())
    }

    /// Counts of the backward passes by field, `[N]` each.
    fn passed(&self, device: &Device) -> Result<[(usize, Tensor); 6]> {
        let (steps, n) = (self.passes.len(), self.slots.len());
        let stacked =
            |part: fn(&Passed) -> &Tensor| Tensor::stack(&self.passes.iter().map(part).collect::<Vec<_>>(), 0);
        let logits = stacked(|passed| &passed.logits)?.flatten(0, 1)?;
        let cotangent = stacked(|passed| &passed.cotangent)?.flatten(0, 1)?.abs()?;
        let slope = stacked(|passed| &passed.slope)?.flatten_all()?;
        let labels: Vec<f32> = self.labels.iter().map(|label| *label as f32).collect();
        let labels = Tensor::new(labels.repeat(steps), device)?;
        let correct = flag(&first_largest(&logits)?.eq(&labels)?)?;
        let steepness = cotangent.sum(1)?;
        let no_loss = flag(&steepness.eq(0f64)?)?;
        let saturated = (&no_loss * &correct)?;
        // 1 where the row is correct or has a loss.
        let counted = ((&saturated - &no_loss)? + 1.)?;
        let zero = (&counted * flag(&slope.eq(0f64)?)?)?;
        let steep = flag(&cotangent.max(1)?.gt(f64::from(LARGEST_COTANGENT))?)?;
        let unbounded = steep.maximum(&not_finite(&steepness)?)?;
        let over_steps = |rows: &Tensor| rows.reshape((steps, n))?.sum(0);
        Ok([
            (GRADIENTS, over_steps(&counted)?),
            (ZERO_GRADIENTS, over_steps(&zero)?),
            (SATURATED, over_steps(&saturated)?),
            (LOGITS, over_steps(&not_finite(&size(&logits)?)?)?),
            (COTANGENTS, over_steps(&unbounded)?),
            (GRADIENT_VALUES, over_steps(&not_finite(&slope)?)?),
        ])
    }
}

/// Sum of the absolute values of every row of `[N,D]`, `[N]`.
fn size(rows: &Tensor) -> Result<Tensor> {
    rows.abs()?.sum(1)
}

/// 1 where a sum of absolute values is NaN or infinite, else 0.
fn not_finite(sums: &Tensor) -> Result<Tensor> {
    1. - flag(&sums.le(f64::from(f32::MAX))?)?
}

/// 0 and 1 as numbers.
fn flag(flags: &Tensor) -> Result<Tensor> {
    flags.to_dtype(DType::F32)
}

impl AbiTally for Tally {
    fn look(&self, field: u32, slots: RSlice<'_, u32>, values: AbiTensorRef<'_>) -> AbiResult<()> {
        answer(|| {
            let field = field as usize;
            if field != IMAGES && field != LOGITS {
                let text = format!("field {field} is counted by no look: {IMAGES} and {LOGITS} are");
                return Err(to_candle(AbiError::new(ErrorCode::Shape, text)));
            }
            let slots = slots.as_slice();
            let seen = size(&self.rows(slots, values)?)?;
            self.keep(slots, None, |pending| match field {
                IMAGES => pending.images.push(seen),
                _ => pending.logits.push(seen),
            })
        })
    }

    fn count(
        &self,
        slots: RSlice<'_, u32>,
        labels: RSlice<'_, i64>,
        logits: AbiTensorRef<'_>,
        cotangent: AbiTensorRef<'_>,
        gradient: AbiTensorRef<'_>,
    ) -> AbiResult<()> {
        answer(|| self.count(slots.as_slice(), labels.as_slice(), [logits, cotangent, gradient]))
    }

    fn read(&self) -> AbiResult<RVec<u64>> {
        answer(|| {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.add()?;
            let sums = counts
                .sums
                .narrow(0, 0, self.samples)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            Ok(sums.into_iter().map(|count| count as u64).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_abi::Dims;

    fn view<'a>(values: &'a [f32], dims: &'a Dims) -> AbiTensorRef<'a> {
        AbiTensorRef::from_slice(values, dims)
    }

    fn field(read: &[u64], field: usize) -> Vec<u64> {
        read.chunks_exact(FIELDS).map(|sample| sample[field]).collect()
    }

    /// Rows: correct with a gradient; correct without one; saturated; wrong without a loss; wrong with one; equal logits, the first of which
    /// is the label's; equal logits, the second of which is.
    #[test]
    fn gradients_count_as_the_host_counts_them() {
        let provider = boxed(&Device::Cpu);
        let tally = provider.tally(7).into_result().unwrap();
        let slots = [6u32, 5, 4, 3, 2, 1, 0];
        let labels = [0i64, 0, 0, 1, 1, 0, 1];
        let logits = [2f32, 1., 2., 1., 2., 1., 2., 1., 2., 1., 3., 3., 3., 3.];
        let cotangent = [1f32, -1., 1., 0., 0., 0., 0., 0., 1e-45, 0., 0., 0., 0., 0.];
        let gradient = [1f32, 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 1., 0., 0.];
        let dims = Dims::new(&[7, 2]);
        let count = || {
            let [logits, cotangent, gradient] = [&logits, &cotangent, &gradient].map(|v| view(v, &dims));
            tally.count(slots[..].into(), labels[..].into(), logits, cotangent, gradient)
        };
        count().into_result().unwrap();
        count().into_result().unwrap();
        let read = tally.read().into_result().unwrap();
        let twice = |expected: [u64; 7]| expected.map(|n| 2 * n).into_iter().rev().collect::<Vec<_>>();
        assert_eq!(field(&read, GRADIENTS), twice([1, 1, 1, 0, 1, 1, 0]));
        assert_eq!(field(&read, ZERO_GRADIENTS), twice([0, 1, 1, 0, 1, 0, 0]));
        assert_eq!(field(&read, SATURATED), twice([0, 0, 1, 0, 0, 1, 0]));
        for unseen in [IMAGES, LOGITS, COTANGENTS, GRADIENT_VALUES] {
            assert_eq!(field(&read, unseen), [0; 7]);
        }
        // Fewer samples from here on, one of them twice: their counts alone grow, at more steps than are counted together.
        let few = Dims::new(&[3, 2]);
        for _ in 0..2 * TOGETHER + 1 {
            let [logits, cotangent] = [&logits[..6], &cotangent[..6]].map(|v| view(v, &few));
            let again = tally.count(
                [1u32, 4, 1][..].into(),
                [0i64, 1, 0][..].into(),
                logits,
                cotangent,
                logits,
            );
            again.into_result().unwrap();
            let looked = tally.look(
                IMAGES as u32,
                [1u32, 4, 1][..].into(),
                view(&[f32::NAN, 0., 1., 1., 1., 1.], &few),
            );
            looked.into_result().unwrap();
        }
        let grown = tally.read().into_result().unwrap();
        let more = |field: usize| -> Vec<u64> {
            let pairs = self::field(&grown, field).into_iter().zip(self::field(&read, field));
            pairs.map(|(after, before)| after - before).collect()
        };
        let steps = 2 * TOGETHER as u64 + 1;
        assert_eq!(more(GRADIENTS), [0, 2 * steps, 0, 0, steps, 0, 0]);
        assert_eq!(more(SATURATED), [0, steps, 0, 0, 0, 0, 0]);
        assert_eq!(more(ZERO_GRADIENTS), [0; 7]);
        assert_eq!(more(IMAGES), [0, steps, 0, 0, 0, 0, 0]);
        let one = Dims::new(&[1, 2]);
        let beyond = tally.look(IMAGES as u32, [7u32][..].into(), view(&[0.; 2], &one));
        assert!(beyond.into_result().unwrap_err().is(ErrorCode::Shape));
        let two = tally.look(IMAGES as u32, [1u32, 2][..].into(), view(&[0.; 2], &one));
        assert!(two.into_result().unwrap_err().is(ErrorCode::Shape));
    }

    #[test]
    fn what_is_not_finite_is_counted_by_kind_and_sample() {
        let provider = boxed(&Device::Cpu);
        let tally = provider.tally(3).into_result().unwrap();
        let dims = Dims::new(&[3, 2]);
        let slots: RSlice<'_, u32> = [0u32, 1, 2][..].into();
        let fine = [1f32; 6];
        let images = [0., f32::NAN, 1., 2., f32::INFINITY, 0.];
        let look = |field: usize, values: &[f32]| tally.look(field as u32, slots, view(values, &dims)).into_result();
        look(IMAGES, &images).unwrap();
        look(LOGITS, &fine).unwrap();
        assert!(look(GRADIENTS, &fine).is_err());
        let count = |logits: &[f32], cotangent: &[f32], gradient: &[f32]| {
            let [logits, cotangent, gradient] = [logits, cotangent, gradient].map(|v| view(v, &dims));
            let counted = tally.count(slots, [0i64, 0, 0][..].into(), logits, cotangent, gradient);
            counted.into_result().unwrap();
        };
        count(&[f32::NEG_INFINITY, 0., 1., 1., 1., f32::NAN], &fine, &fine);
        count(&fine, &[1., 2e30, 1e30, -1e30, f32::NAN, 0.], &fine);
        count(&fine, &fine, &[0., 0., f32::NAN, 0., 1., f32::INFINITY]);
        let read = tally.read().into_result().unwrap();
        assert_eq!(field(&read, IMAGES), [1, 0, 1]);
        assert_eq!(field(&read, LOGITS), [1, 0, 1]);
        assert_eq!(field(&read, COTANGENTS), [1, 0, 1]);
        assert_eq!(field(&read, GRADIENT_VALUES), [0, 1, 1]);
    }

    #[test]
    fn a_mean_is_of_the_draws_in_their_order() {
        let provider = boxed(&Device::Cpu);
        let dims = Dims::new(&[1, 2]);
        let draws = [[1f32, 2.], [3., 5.], [5., -1.]];
        let views: Vec<AbiTensorRef<'_>> = draws.iter().map(|draw| view(draw, &dims)).collect();
        let mean = provider.mean(views.as_slice().into()).into_result().unwrap();
        let third = 1. / 3f32;
        assert_eq!(mean.view().as_slice::<f32>().unwrap(), [9. * third, 6. * third]);
        assert!(provider.mean([][..].into()).into_result().is_err());
        let up = provider.upload(views[1]).into_result().unwrap();
        let down = provider.download(up.view()).into_result().unwrap();
        assert_eq!(down.view().as_slice::<f32>().unwrap(), draws[1]);
        assert_eq!(provider.device().into_result().unwrap(), DLDevice::CPU);
    }
}
