//! Tensors, errors and contexts between candle and the contract.

use advae_abi::info::OracleInfo;
use advae_abi::{
    AbiError, AbiTensor, AbiTensorRef, CallCtx, CallPhase, CtxRef, DLDataType, DLDevice, ErrorCode, flags,
};
use advae_nn::{Pass, Phase};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Error, Result, Shape, Storage, Tensor};
use std::os::raw::c_void;

/// Hands a candle tensor over, on the CPU. From there nothing is copied: the tensor itself keeps the memory alive.
pub(crate) fn export(tensor: &Tensor) -> Result<AbiTensor> {
    let tensor = tensor.detach().contiguous()?.to_device(&Device::Cpu)?;
    let dims = tensor.dims().to_vec();
    let (data, dtype) = {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            candle_core::bail!(
                "a tensor on {:?} cannot be handed over by a build for the cpu",
                tensor.device().location()
            )
        };
        let offset = layout.start_offset();
        match storage {
            CpuStorage::F32(v) => (v[offset..].as_ptr().cast::<c_void>(), DLDataType::F32),
            CpuStorage::I64(v) => (v[offset..].as_ptr().cast::<c_void>(), DLDataType::I64),
            _ => candle_core::bail!(
                "a tensor of {:?} cannot be handed over: convert it to f32",
                tensor.dtype()
            ),
        }
    };
    // SAFETY: `data` points into the tensor's contiguous storage, which the owner keeps alive and which nothing
    // reallocates: candle's in-place operations write elements, they do not grow buffers.
    Ok(unsafe { AbiTensor::from_owner(tensor, data.cast_mut(), dtype, DLDevice::CPU, &dims) })
}

/// Takes a borrowed tensor in, with one copy. `variable`: gradients with respect to it will be asked for.
pub(crate) fn import(tensor: AbiTensorRef<'_>, variable: bool) -> std::result::Result<Tensor, AbiError> {
    let shape = Shape::from(tensor.shape()?);
    let storage = if tensor.raw().dtype == DLDataType::I64 {
        CpuStorage::I64(tensor.as_slice::<i64>()?.to_vec())
    } else {
        CpuStorage::F32(tensor.as_slice::<f32>()?.to_vec())
    };
    Ok(Tensor::from_storage(
        Storage::Cpu(storage),
        shape,
        BackpropOp::none(),
        variable,
    ))
}

/// The same on a model's device.
pub(crate) fn import_to(device: &Device, tensor: AbiTensorRef<'_>, leaf: bool) -> Result<Tensor> {
    if device.is_cpu() {
        return import(tensor, leaf).map_err(to_candle);
    }
    let moved = import(tensor, false).map_err(to_candle)?.to_device(device)?;
    if leaf { variable(&moved) } else { Ok(moved) }
}

/// A leaf of the graph with the values of `tensor`.
pub(crate) fn variable(tensor: &Tensor) -> Result<Tensor> {
    Ok(candle_core::Var::from_tensor(tensor)?.as_tensor().clone())
}

/// The pass that a context asks for.
pub(crate) fn pass(ctx: &CallCtx, ids: &[u64]) -> Pass {
    Pass {
        train: ctx.flags & flags::TRAIN != 0,
        batch_statistics: ctx.flags & flags::BATCH_STATISTICS != 0,
        track: ctx.flags & flags::ACCUMULATE_PARAMS != 0,
        seed: ctx.seed,
        sample_ids: ids.into(),
        draw: ctx.draw,
        phase: if ctx.phase == CallPhase::Craft as u32 {
            Phase::Craft
        } else {
            Phase::Score
        },
    }
}

/// The device a request names.
pub(crate) fn device(name: &str) -> std::result::Result<Device, AbiError> {
    let failed = |text: String| AbiError::new(ErrorCode::Device, text);
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let Some(ordinal) = name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) else {
        return Err(failed(format!("unknown device '{name}': expected cpu or cuda:N")));
    };
    if !crate::CUDA {
        return Err(failed(format!(
            "device '{name}' asked of a build for the cpu: use --device cpu, or a plugin built with CUDA"
        )));
    }
    Device::new_cuda(ordinal).map_err(|error| failed(format!("device '{name}' does not open: {}", to_abi(error))))
}

/// An error of candle as one of the contract. An oracle's error that went through the author's code keeps its code.
pub(crate) fn to_abi(error: Error) -> AbiError {
    match error {
        Error::WithBacktrace { inner, .. } => to_abi(*inner),
        Error::Context { inner, context } => {
            let inner = to_abi(*inner);
            AbiError {
                message: format!("{context}: {}", inner.message).into(),
                ..inner
            }
        }
        Error::WrappedContext { wrapped, context } => {
            let mut error = AbiError::from_error(ErrorCode::Compute, &*wrapped);
            error.chain.insert(0, error.message.clone());
            AbiError {
                message: context.into(),
                ..error
            }
        }
        Error::Msg(text) => match text.strip_prefix(DENIED) {
            Some(text) => AbiError::new(ErrorCode::Denied, text),
            None => AbiError::new(ErrorCode::Compute, text),
        },
        other => AbiError::from_error(ErrorCode::Compute, &other),
    }
}

const DENIED: &str = "denied: ";

/// An error of the contract as one of candle.
pub(crate) fn to_candle(error: AbiError) -> Error {
    let denied = if error.is(ErrorCode::Denied) { DENIED } else { "" };
    Error::Msg(format!("{denied}{error}"))
}

/// Runs a plugin's code with the threads the context grants.
pub(crate) fn run<T>(ctx: CtxRef<'_>, f: impl FnOnce(Pass) -> Result<T>) -> advae_abi::AbiResult<T> {
    let context = ctx.get();
    let pass = pass(&context, ctx.sample_ids());
    advae_abi::guard(|| advae_nn::with_threads(context.threads.max(1) as usize, || f(pass)).map_err(to_abi))
}

/// Images of a batch are `[N,C,H,W]` of the shape the oracle names.
pub(crate) fn check_images(x: &Tensor, info: &OracleInfo) -> Result<()> {
    match x.dims() {
        [_, c, h, w] if [*c, *h, *w] == info.input && x.dtype() == DType::F32 => Ok(()),
        other => candle_core::bail!(
            "the oracle takes f32 images [N,{:?}], not {:?} of {:?}",
            info.input,
            other,
            x.dtype()
        ),
    }
}
