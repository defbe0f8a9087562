//! Networks on a GPU: the graph that the processor runs fused, as calls of CUDA's libraries and kernels of our own, replayed from CUDA
//! graphs.
//!
//! What bounds it: on an H100 in `f32` the convolutions, which cuDNN computes at 30 to 60 % of the peak; what is between them is bound by
//! memory. See `docs/performance.md`.

#[cfg(feature = "cudnn")]
mod blas;
#[cfg(feature = "cudnn")]
mod device;
#[cfg(feature = "cudnn")]
mod dnn;
mod lower;
#[cfg(feature = "cudnn")]
mod machine;
#[cfg(feature = "cudnn")]
mod op;
mod program;
#[cfg(test)]
mod tests;

#[cfg(feature = "cudnn")]
pub(super) use op::{Slot, forward, profile};
