//! Plain tensors of the host. Wire types end at the loader: everything behind it sees [`Tensor`] and [`Call`].

use advae_abi::{AbiError, AbiTensor, AbiTensorRef, CallCtx, CallPhase, Dims, ErrorCode, flags};

/// A row-major `f32` tensor on the CPU; the first extent counts samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements, in row-major order.
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor of that shape.
    ///
    /// # Errors
    /// Where the number of elements does not fit.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self, AbiError> {
        let expected: usize = shape.iter().product();
        if expected != data.len() {
            let text = format!(
                "a tensor of shape {shape:?} holds {expected} elements, not {}",
                data.len()
            );
            return Err(AbiError::new(ErrorCode::Shape, text));
        }
        Ok(Self { shape, data })
    }

    /// All zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self {
            shape: shape.to_vec(),
            data: vec![0.; shape.iter().product()],
        }
    }

    /// Number of samples.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Elements a sample.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Elements of sample `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        let len = self.row_len();
        &self.data[i * len..(i + 1) * len]
    }

    /// Replaces sample `i`.
    pub fn set_row(&mut self, i: usize, row: &[f32]) {
        let len = self.row_len();
        self.data[i * len..(i + 1) * len].copy_from_slice(row);
    }

    /// The samples at `indices`, in that order.
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut shape = self.shape.clone();
        shape[0] = indices.len();
        let data = indices.iter().flat_map(|i| self.row(*i)).copied().collect();
        Self { shape, data }
    }

    /// Adds the samples of `other` behind its own. Panics if the samples' shapes differ: the caller made both.
    pub fn append(&mut self, other: &Self) {
        assert_eq!(self.shape[1..], other.shape[1..], "samples of different shapes");
        self.shape[0] += other.rows();
        self.data.extend_from_slice(&other.data);
    }

    /// Index of the largest element of each row; the first one where several are equal.
    pub fn argmax(&self) -> Vec<u32> {
        (0..self.rows()).map(|i| argmax(self.row(i))).collect()
    }

    /// Adds `other`, element by element. Panics if the shapes differ: the caller made both.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.shape, other.shape, "sum of different shapes");
        self.data.iter_mut().zip(&other.data).for_each(|(a, b)| *a += b);
    }

    /// Multiplies every element.
    pub fn scale(&mut self, factor: f32) {
        self.data.iter_mut().for_each(|a| *a *= factor);
    }

    /// Extents ready to be lent together with the elements.
    pub fn dims(&self) -> Dims {
        Dims::new(&self.shape)
    }

    /// Lends the tensor for one call.
    pub fn lend<'a>(&'a self, dims: &'a Dims) -> AbiTensorRef<'a> {
        AbiTensorRef::from_slice(&self.data, dims)
    }

    /// Copies a borrowed tensor of that shape; `what` names it in errors. Its shape is compared before anything is read or allocated.
    ///
    /// # Errors
    /// Where it is not a contiguous `f32` tensor on the CPU, or has another shape.
    pub fn copy_from(tensor: AbiTensorRef<'_>, expected: &[usize], what: &str) -> Result<Self, AbiError> {
        let shape = tensor.shape()?;
        if shape != expected {
            let text = format!("{what} has shape {shape:?}, expected {expected:?}");
            return Err(AbiError::new(ErrorCode::Shape, text));
        }
        Self::new(shape, tensor.as_slice::<f32>()?.to_vec())
    }

    /// The first element that is NaN or infinite, as `(row, value)`.
    pub fn not_finite(&self) -> Option<(usize, f32)> {
        let at = self.data.iter().position(|v| !v.is_finite())?;
        Some((at / self.row_len().max(1), self.data[at]))
    }

    /// Hands the tensor over without copying.
    ///
    /// # Errors
    /// Where shape and elements disagree.
    pub fn export(self) -> Result<AbiTensor, AbiError> {
        AbiTensor::from_vec(self.data, &self.shape)
    }
}

/// Largest absolute difference of two tensors of one shape.
pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    let pairs = a.data.iter().zip(&b.data);
    pairs.fold(0., |m, (a, b)| f64::from((a - b).abs()).max(m))
}

/// `x` and `step` times a direction of its shape.
pub fn moved(x: &Tensor, direction: &Tensor, step: f32) -> Tensor {
    let mut moved = direction.clone();
    moved.scale(step);
    moved.add(x);
    moved
}

/// Dot product, in `f64`.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Index of the largest element, the first one where several are equal.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best as u32
}

/// What travels beside the tensors of a call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Seed of the experiment.
    pub seed: u64,
    /// Sample ids, one a row: they key all randomness.
    pub ids: &'a [u64],
    /// Why the pass is made.
    pub phase: CallPhase,
    /// Repetition for random defences.
    pub draw: u64,
    /// Bits of [`advae_abi::flags`].
    pub flags: u64,
    /// Threads the plugin may use.
    pub threads: usize,
}

impl<'a> Call<'a> {
    fn new(seed: u64, ids: &'a [u64], phase: CallPhase) -> Self {
        Self {
            seed,
            ids,
            phase,
            draw: 0,
            flags: 0,
            threads: 1,
        }
    }

    /// A call on behalf of an attack.
    pub fn craft(seed: u64, ids: &'a [u64]) -> Self {
        Self::new(seed, ids, CallPhase::Craft)
    }

    /// A call that measures.
    pub fn score(seed: u64, ids: &'a [u64]) -> Self {
        Self::new(seed, ids, CallPhase::Score)
    }

    /// The same with these flags.
    pub fn with_flags(self, flags: u64) -> Self {
        Self { flags, ..self }
    }

    /// The same, whose tensors stay on the device of the model.
    pub fn on_device(self) -> Self {
        self.with_flags(self.flags | flags::DEVICE)
    }

    /// The same for another draw.
    pub fn with_draw(self, draw: u64) -> Self {
        Self { draw, ..self }
    }

    /// The same with that many threads.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// The context as it crosses; lend it over `self.ids`.
    pub fn context(&self) -> CallCtx {
        let mut ctx = CallCtx::new(self.seed, self.phase, self.ids);
        (ctx.draw, ctx.flags, ctx.threads) = (self.draw, self.flags, self.threads as u32);
        if ctx.takes_device() { ctx.on_device() } else { ctx }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_selected_in_the_order_asked_for() {
        let t = Tensor::new(vec![3, 2], vec![1., 2., 3., 4., 5., 6.]).unwrap();
        let picked = t.select(&[2, 0]);
        assert_eq!(
            (picked.shape.as_slice(), picked.data.as_slice()),
            ([2, 2].as_slice(), [5., 6., 1., 2.].as_slice())
        );
        assert_eq!((t.rows(), t.row_len(), t.row(1)), (3, 2, [3., 4.].as_slice()));
        assert!(Tensor::new(vec![2], vec![1.]).is_err());
    }

    #[test]
    fn the_first_of_equal_logits_wins() {
        let t = Tensor::new(vec![2, 3], vec![1., 1., 0., -2., -3., -1.]).unwrap();
        assert_eq!(t.argmax(), [0, 2]);
    }

    #[test]
    fn a_call_crosses_as_it_is() {
        let call = Call::craft(7, &[3]).with_draw(2).with_flags(1).with_threads(4);
        let ctx = call.context();
        assert_eq!((ctx.seed, ctx.draw, ctx.flags, ctx.threads), (7, 2, 1, 4));
        assert_eq!(ctx.lend(call.ids).sample_ids(), [3]);
    }

    #[test]
    fn a_tensor_crosses_and_comes_back() {
        let t = Tensor::new(vec![1, 2], vec![1., 2.]).unwrap();
        let dims = t.dims();
        assert_eq!(Tensor::copy_from(t.lend(&dims), &[1, 2], "it").unwrap(), t);
        let exported = t.clone().export().unwrap();
        assert_eq!(Tensor::copy_from(exported.view(), &[1, 2], "it").unwrap(), t);
    }

    #[test]
    fn a_shape_is_compared_before_anything_is_read() {
        let mut one = [1f32];
        // SAFETY: nothing of the memory that the shape claims is read, which is what is tested here.
        let huge = unsafe {
            let data = one.as_mut_ptr().cast();
            advae_abi::AbiTensor::from_owner(
                (),
                data,
                advae_abi::DLDataType::F32,
                advae_abi::DLDevice::CPU,
                &[1 << 38, 7],
            )
        };
        let error = Tensor::copy_from(huge.view(), &[1, 7], "an output").unwrap_err();
        assert_eq!(
            error.to_string(),
            "an output has shape [274877906944, 7], expected [1, 7]"
        );
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_found() {
        let t = Tensor::new(vec![2, 2], vec![0., 1., 2., f32::INFINITY]).unwrap();
        assert_eq!(
            (t.not_finite(), t.select(&[0]).not_finite()),
            (Some((1, f32::INFINITY)), None)
        );
    }
}
