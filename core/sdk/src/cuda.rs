//! Memory of CUDA devices between candle and the contract.
//!
//! candle's devices compute on the default stream of the calling thread, which all libraries of a process share: what is handed over here is
//! complete in its order, and nothing waits.

use crate::convert::{may_cross, to_candle};
use advae_abi::{AbiResult, AbiTensor, AbiTensorRef, DLDataType, DLDevice, Dims, ErrorCode};
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut, result, sys};
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, DType, Device, DeviceLocation, Error, Layout, Result, Shape, Storage, Tensor,
};
use std::os::raw::c_void;

/// Which device it is.
///
/// # Errors
/// Where it is none of CUDA's.
pub(crate) fn id(location: DeviceLocation) -> Result<DLDevice> {
    match location {
        DeviceLocation::Cuda { gpu_id } => Ok(DLDevice::cuda(i32::try_from(gpu_id).map_err(Error::wrap)?)),
        other => candle_core::bail!("a tensor on {other:?} is on no CUDA device"),
    }
}

/// Leaves out the two events that every tensor of a device otherwise has, to order streams that there are not.
pub(crate) fn on_one_stream(device: &Device) {
    if let Device::Cuda(cuda) = device {
        // SAFETY: no stream is ever made here: all work goes to the default stream of the thread, and none of it is ordered by events.
        unsafe { cuda.disable_event_tracking() };
    }
}

/// Has the driver keep memory that was freed for the next tensors. Left to itself it gives all of it back whenever somebody waits for the
/// device, and asks for it anew: that takes longer than most operations. Where it refuses, nothing but time is lost.
pub(crate) fn keep_memory(ordinal: usize) {
    let keep = || {
        let device = result::device::get(i32::try_from(ordinal).ok()?).ok()?;
        let mut bytes = u64::MAX;
        // SAFETY: the device was just named by the driver; the attribute is a number of 64 bits, which is read during the call.
        unsafe {
            let pool = result::device::get_default_mem_pool(device).ok()?;
            let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, threshold, (&raw mut bytes).cast()).ok()
        }
    };
    let _ = keep();
}

/// Loads the kernels that attacks and counts begin with: the driver compiles them when they are first used.
///
/// # Errors
/// Where the device fails.
pub(crate) fn warm_up(device: &Device) -> Result<()> {
    let x = Tensor::zeros((2, 3), DType::F32, device)?;
    let flags = x.sign()?.abs()?.clamp(-1., 1.)?.ge(&x)?;
    let x = flags.where_cond(&(&x * 2.)?, &(&x + &x)?)?;
    let rows = Tensor::new(&[1u32, 0], device)?;
    let x = Tensor::cat(&[&x, &x.index_select(&rows, 0)?], 0)?;
    let largest = x.broadcast_sub(&x.max_keepdim(1)?)?.exp()?.sum(1)?;
    largest.eq(0f64)?.to_dtype(DType::F32)?.to_vec1::<f32>().map(|_| ())
}

/// Hands a tensor over where it lies. It must not be written in place afterwards.
///
/// # Errors
/// [`ErrorCode::Shape`] for another type than `f32`, and for more dimensions than may cross.
pub(crate) fn export(tensor: &Tensor) -> Result<AbiTensor> {
    let tensor = tensor.detach().contiguous()?;
    may_cross(&tensor)?;
    let (data, device) = {
        let (storage, layout) = tensor.storage_and_layout();
        (memory(&storage, layout)?, id(tensor.device().location())?)
    };
    let shape = tensor.dims().to_vec();
    // SAFETY: the tensor owns the memory, is contiguous and `f32`, and nothing writes into what has been computed. Its memory is freed in
    // the order of the stream of the thread that drops it, which the contract wants to be the one that ordered it.
    Ok(unsafe { AbiTensor::from_owner(tensor, data, DLDataType::F32, device, &shape) })
}

/// Lends a tensor for a call where it lies. In-place operations on it wait until the call is over.
///
/// # Errors
/// Those of [`export`], and the call's.
pub(crate) fn lend<T>(tensor: &Tensor, call: impl FnOnce(AbiTensorRef<'_>) -> AbiResult<T>) -> Result<T> {
    let tensor = tensor.detach().contiguous()?;
    may_cross(&tensor)?;
    let dims = Dims::new(tensor.dims());
    let (storage, layout) = tensor.storage_and_layout();
    let (data, device) = (memory(&storage, layout)?, id(tensor.device().location())?);
    // SAFETY: the tensor is contiguous and `f32`, and lives until the call is over; what the callee has enqueued by then comes before
    // its memory is freed, on the same stream.
    let view = unsafe { AbiTensorRef::on_device(data, DLDataType::F32, device, &dims) };
    call(view).into_result().map_err(to_candle)
}

/// Takes a tensor of this device in, with one copy there. `variable`: gradients with respect to it will be asked for.
///
/// # Errors
/// [`ErrorCode::Device`] for another device; [`ErrorCode::Shape`] for another type and for strides that are not row-major.
pub(crate) fn import(device: &CudaDevice, tensor: AbiTensorRef<'_>, variable: bool) -> Result<Tensor> {
    let shape = Shape::from(tensor.shape().map_err(to_candle)?);
    let from = tensor.address::<f32>(id(device.location())?).map_err(to_candle)?;
    let (count, stream) = (shape.elem_count(), device.cuda_stream());
    if count == 0 {
        return Err(to_candle(advae_abi::AbiError::new(
            ErrorCode::Shape,
            format!("a tensor on a device has shape {shape:?}: it must hold something"),
        )));
    }
    // SAFETY: every element is written just below, in the order of the stream.
    let mut copy = unsafe { device.alloc::<f32>(count) }?;
    {
        let (to, _written) = copy.device_ptr_mut(&stream);
        // SAFETY: both sides hold `count` elements on this device, the one by its allocation, the other by the contract; the lender keeps
        // it until the work of this stream is done.
        unsafe { result::memcpy_dtod_async(to, from as u64, count * size_of::<f32>(), stream.cu_stream()) }
            .map_err(Error::wrap)?;
    }
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(copy, device.clone()));
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), variable))
}

/// Address of the first element.
fn memory(storage: &Storage, layout: &Layout) -> Result<*mut c_void> {
    let Storage::Cuda(cuda) = storage else {
        candle_core::bail!("the tensor is on no CUDA device")
    };
    let slice = cuda.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
    let stream = cuda.device.cuda_stream();
    let (address, _read) = slice.device_ptr(&stream);
    Ok(address as usize as *mut c_void)
}
