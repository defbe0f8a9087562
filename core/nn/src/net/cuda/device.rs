//! What the calls of CUDA's libraries share: errors, addresses, precision.

use std::ffi::c_void;

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr};
use candle_core::{Error, Result};

/// How the factors of products are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    Single,
    /// To 10 bits after the point, with sums in `f32`: what tensor cores do.
    Tf32,
}

/// An error of one of CUDA's libraries as one of candle.
pub fn failed(what: &'static str) -> impl Fn(&dyn std::fmt::Debug) -> Error {
    move |error| Error::msg(format!("{what}: {error:?}"))
}

/// Address of numbers of a tensor on the device.
///
/// # Errors
/// Where they are no `f32`.
pub fn address(storage: &CudaStorage, offset: usize, stream: &CudaStream) -> Result<u64> {
    let slice = storage.as_cuda_slice::<f32>()?;
    Ok(slice.device_ptr(stream).0 + (offset * size_of::<f32>()) as u64)
}

/// A device's address as libraries take it.
pub fn pointer(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}
