//! Tensors that stay on the device of a model, such as a GPU, during an attack.

use crate::{AbiResult, AbiTensor, AbiTensorRef, DLDevice};
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, RSlice, RVec};

/// The device of a model, and what the host has it do with tensors that lie there. They are `f32`, contiguous and read-only.
///
/// **Order.** A call with [`flags::DEVICE`](crate::flags::DEVICE) names the stream in
/// [`CallCtx::stream`](crate::CallCtx::stream): the default stream of the thread that makes the call
/// ([`PER_THREAD_STREAM`](crate::PER_THREAD_STREAM)), which all libraries of a process share. A device tensor is complete in the order of
/// that stream. Whoever reads it enqueues on the same stream from the same thread, or synchronises. A tensor is freed on that thread, too:
/// its deleter enqueues there. The host makes all calls of an evaluation that uses device tensors on one thread for each device. The methods
/// of this trait, and of [`AbiTally`], go by the same rule without naming the stream.
///
/// **Memory.** A tensor that is lent stays where it is until the work that the callee has enqueued is done: the lender frees it in the order
/// of the stream. Nobody writes into a tensor that was handed over.
#[sabi_trait]
pub trait AbiDevice: Send + Sync {
    /// Which device it is.
    ///
    /// # Errors
    /// Where the device fails.
    fn device(&self) -> AbiResult<DLDevice>;
    /// A copy on the device of an `f32` tensor on the CPU.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`](crate::ErrorCode::Shape) for another type; [`ErrorCode::Device`](crate::ErrorCode::Device) for another place; the
    /// device's own.
    fn upload(&self, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor>;
    /// A copy on the CPU of a tensor on the device. It waits for the stream.
    ///
    /// # Errors
    /// As for [`upload`](Self::upload).
    fn download(&self, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor>;
    /// The mean of one or several tensors of one shape, on the device: their sum in their order, times `1 / n`.
    ///
    /// # Errors
    /// As for [`upload`](Self::upload), and where shapes differ or there is none.
    fn mean(&self, xs: RSlice<'_, AbiTensorRef<'_>>) -> AbiResult<AbiTensor>;
    /// Counts about so many samples, on the device, all 0.
    ///
    /// # Errors
    /// The device's own.
    #[sabi(last_prefix_field)]
    fn tally(&self, samples: u64) -> AbiResult<TallyBox>;
}

/// An owned device.
pub type DeviceBox = AbiDevice_TO<'static, RBox<()>>;

/// Counts about the samples of an attack, kept on the device and read once: what the host would have to download at every step to know.
///
/// Rows belong to samples by `slots`, each below the number of samples. A row counts as not finite where the sum of
/// its absolute values is not: NaN, infinity, or more than `f32` holds.
#[sabi_trait]
pub trait AbiTally: Send + Sync {
    /// Counts rows of `values` `[N, ...]` that are not finite in the field `field`, one of [`tally::IMAGES`] and [`tally::LOGITS`]. It does not wait.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`](crate::ErrorCode::Shape) where there is not one slot a row, or no such field; the device's own.
    fn look(&self, field: u32, slots: RSlice<'_, u32>, values: AbiTensorRef<'_>) -> AbiResult<()>;
    /// Counts a backward pass: `logits` `[N,K]`, the `cotangent` `[N,K]` at them and the `gradient` `[N, ...]` at the images, for samples with these
    /// true labels. It does not wait. A row is correct where the first of its largest logits is its label's. Only rows count that are
    /// correct or whose cotangent is not all 0: see [`tally`].
    ///
    /// # Errors
    /// As for [`look`](Self::look).
    fn count(
        &self,
        slots: RSlice<'_, u32>,
        labels: RSlice<'_, i64>,
        logits: AbiTensorRef<'_>,
        cotangent: AbiTensorRef<'_>,
        gradient: AbiTensorRef<'_>,
    ) -> AbiResult<()>;
    /// The counts, [`tally::FIELDS`] a sample, sample after sample. It waits for the stream.
    ///
    /// # Errors
    /// The device's own.
    #[sabi(last_prefix_field)]
    fn read(&self) -> AbiResult<RVec<u64>>;
}

/// An owned tally.
pub type TallyBox = AbiTally_TO<'static, RBox<()>>;

/// Fields of a sample in what [`AbiTally::read`] answers.
pub mod tally {
    /// Gradients that count.
    pub const GRADIENTS: usize = 0;
    /// Those of them that were 0 in every pixel.
    pub const ZERO_GRADIENTS: usize = 1;
    /// Those of them whose cotangent was 0 for every class although the sample was classified correctly.
    pub const SATURATED: usize = 2;
    /// Images that were not finite.
    pub const IMAGES: usize = 3;
    /// Logits that were not finite.
    pub const LOGITS: usize = 4;
    /// Cotangents that were not finite, or above 1e30.
    pub const COTANGENTS: usize = 5;
    /// Gradients that were not finite.
    pub const GRADIENT_VALUES: usize = 6;
    /// How many fields a sample has.
    pub const FIELDS: usize = 7;
    /// Largest value of a cotangent: beyond it a backward pass in `f32` overflows, and the model would be blamed.
    pub const LARGEST_COTANGENT: f32 = 1e30;
}
