//! Tensors, errors and contexts between candle and the contract.

use advae_abi::abi_stable::std_types::RString;
use advae_abi::info::OracleInfo;
use advae_abi::{
    AbiError, AbiResult, AbiTensor, AbiTensorRef, CallCtx, CallPhase, CtxRef, DLDataType, Dims, ErrorCode, MAX_RANK,
    flags,
};
use advae_nn::{Pass, Phase};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Error, Result, Shape, Storage, Tensor};
use std::sync::{Mutex, PoisonError};

/// Hands a candle tensor over, as a copy of its own: whoever else holds the tensor may still write to it in place.
///
/// # Errors
/// [`ErrorCode::Shape`] for another type than `f32` and `i64`, and for more dimensions than may cross.
pub(crate) fn export(tensor: &Tensor) -> Result<AbiTensor> {
    let (flat, shape) = (tensor.detach().flatten_all()?, tensor.dims());
    let exported = match tensor.dtype() {
        DType::F32 => AbiTensor::from_vec(flat.to_vec1::<f32>()?, shape),
        DType::I64 => AbiTensor::from_vec(flat.to_vec1::<i64>()?, shape),
        other => Err(wrong_type(other)),
    };
    exported.map_err(to_candle)
}

/// Hands an output over to the caller of `ctx`: where it lies, if that is a device and the caller takes such tensors; else as [`export`] does.
///
/// # Errors
/// Those of [`export`].
pub(crate) fn export_to(ctx: CtxRef<'_>, tensor: &Tensor) -> Result<AbiTensor> {
    #[cfg(feature = "cuda")]
    if ctx.get().takes_device() && tensor.device().is_cuda() {
        return crate::cuda::export(tensor);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = ctx;
    export(tensor)
}

/// Lends a tensor for a call, without copying it where it lies on the CPU in one piece. In-place operations on it wait until the
/// call is over.
///
/// # Errors
/// Those of [`export`], and the call's.
pub(crate) fn lend<T>(tensor: &Tensor, call: impl FnOnce(AbiTensorRef<'_>) -> AbiResult<T>) -> Result<T> {
    let tensor = tensor.detach().contiguous()?.to_device(&Device::Cpu)?;
    check_rank(&tensor)?;
    let dims = Dims::new(tensor.dims());
    // The guard is what in-place operations wait for.
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    let view = match &*storage {
        Storage::Cpu(CpuStorage::F32(v)) => AbiTensorRef::from_slice(&v[range], &dims),
        Storage::Cpu(CpuStorage::I64(v)) => AbiTensorRef::from_slice(&v[range], &dims),
        _ => return Err(to_candle(wrong_type(tensor.dtype()))),
    };
    call(view).into_result().map_err(to_candle)
}

/// The same where it lies, for a callee that takes device tensors.
///
/// # Errors
/// Those of [`lend`].
pub(crate) fn lend_in_place<T>(tensor: &Tensor, call: impl FnOnce(AbiTensorRef<'_>) -> AbiResult<T>) -> Result<T> {
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return crate::cuda::lend(tensor, call);
    }
    lend(tensor, call)
}

/// A tensor has a type and a rank that may cross, or an error.
#[cfg(feature = "cuda")]
pub(crate) fn may_cross(tensor: &Tensor) -> Result<()> {
    if tensor.dtype() != DType::F32 {
        return Err(to_candle(wrong_type(tensor.dtype())));
    }
    check_rank(tensor)
}

fn check_rank(tensor: &Tensor) -> Result<()> {
    if tensor.rank() <= MAX_RANK {
        return Ok(());
    }
    let text = format!(
        "a tensor of shape {:?} has more than {MAX_RANK} dimensions",
        tensor.dims()
    );
    Err(to_candle(AbiError::new(ErrorCode::Shape, text)))
}

fn wrong_type(dtype: DType) -> AbiError {
    let text = format!("a tensor of {dtype:?} cannot be handed over: convert it to f32, or labels to i64");
    AbiError::new(ErrorCode::Shape, text)
}

/// Takes a borrowed tensor in, with one copy. `variable`: gradients with respect to it will be asked for.
pub(crate) fn import(tensor: AbiTensorRef<'_>, variable: bool) -> std::result::Result<Tensor, AbiError> {
    let shape = Shape::from(tensor.shape()?);
    let storage = if tensor.raw().dtype == DLDataType::I64 {
        CpuStorage::I64(tensor.to_vec::<i64>()?)
    } else {
        CpuStorage::F32(tensor.to_vec::<f32>()?)
    };
    Ok(Tensor::from_storage(
        Storage::Cpu(storage),
        shape,
        BackpropOp::none(),
        variable,
    ))
}

/// The same on a model's device. A tensor that lies there already is copied there.
pub(crate) fn import_to(device: &Device, tensor: AbiTensorRef<'_>, leaf: bool) -> Result<Tensor> {
    if device.is_cpu() {
        return import(tensor, leaf).map_err(to_candle);
    }
    #[cfg(feature = "cuda")]
    if let (Device::Cuda(cuda), true) = (device, tensor.device() != advae_abi::DLDevice::CPU) {
        return crate::cuda::import(cuda, tensor, leaf);
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
        tf32: ctx.flags & flags::TF32 != 0,
    }
}

/// The device a request names.
pub(crate) fn device(name: &str) -> std::result::Result<Device, AbiError> {
    let failed = |text: String| AbiError::new(ErrorCode::Device, text);
    if name == "cpu" {
        advae_nn::Kernels::asked().map_err(failed)?;
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
    opened(ordinal).map_err(|error| failed(format!("device '{name}' does not open: {}", to_abi(error))))
}

/// The CUDA device of that ordinal, once a library: opening one compiles its kernels, and tensors of two openings do not mix.
fn opened(ordinal: usize) -> Result<Device> {
    static OPEN: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = open.iter().find(|(known, _)| *known == ordinal) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda(ordinal)?;
    #[cfg(feature = "cuda")]
    {
        crate::cuda::on_one_stream(&device);
        crate::cuda::keep_memory(ordinal);
        crate::cuda::warm_up(&device)?;
    }
    open.push((ordinal, device.clone()));
    Ok(device)
}

/// An error of candle as one of the contract. An error of the contract that went through the author's code, and through
/// `context`, keeps its code.
pub(crate) fn to_abi(error: Error) -> AbiError {
    described(&error)
}

fn described(error: &(dyn std::error::Error + 'static)) -> AbiError {
    if let Some(error) = error.downcast_ref::<AbiError>() {
        return error.clone();
    }
    match error.downcast_ref::<Error>() {
        Some(Error::WithBacktrace { inner, .. }) => described(&**inner),
        Some(Error::Context { inner, context }) => under(context, described(&**inner)),
        Some(Error::WithPath { inner, path }) => under(&path.display(), described(&**inner)),
        Some(Error::WrappedContext { wrapped, context }) => {
            let mut error = described(&**wrapped);
            error.chain.insert(0, error.message.clone());
            AbiError {
                message: context.as_str().into(),
                ..error
            }
        }
        Some(Error::Io(io)) if crossed(io).is_some() => described(io),
        _ => match error.downcast_ref::<std::io::Error>().and_then(crossed) {
            Some(crossed) => crossed.clone(),
            None => AbiError {
                code: error
                    .source()
                    .map_or(ErrorCode::Compute as u32, |cause| described(cause).code),
                ..AbiError::from_error(ErrorCode::Compute, error)
            },
        },
    }
}

fn under(context: &dyn std::fmt::Display, error: AbiError) -> AbiError {
    AbiError {
        message: format!("{context}: {}", error.message).into(),
        ..error
    }
}

/// What [`to_candle`] put there.
fn crossed(error: &std::io::Error) -> Option<&AbiError> {
    error.get_ref()?.downcast_ref()
}

/// An error of the contract as one of candle, in which [`to_abi`] finds it again. `Io` is the variant that prints as what it holds
/// and keeps its type; `Wrapped` keeps the text alone.
pub(crate) fn to_candle(error: AbiError) -> Error {
    Error::Io(std::io::Error::other(error))
}

/// Runs a plugin's code with the threads the context grants.
pub(crate) fn run<T>(ctx: CtxRef<'_>, f: impl FnOnce(Pass) -> Result<T>) -> AbiResult<T> {
    advae_abi::guard(|| {
        ctx.check()?;
        let context = ctx.get();
        let pass = pass(&context, ctx.sample_ids());
        advae_nn::with_threads(context.threads.max(1) as usize, || f(pass)).map_err(to_abi)
    })
}

/// A description as JSON. `describe` runs the author's code.
pub(crate) fn json<T: serde::Serialize>(describe: impl FnOnce() -> T) -> AbiResult<RString> {
    advae_abi::guard(|| match serde_json::to_string(&describe()) {
        Ok(text) => Ok(text.into()),
        Err(error) => Err(AbiError::new(
            ErrorCode::Compute,
            format!("cannot describe itself: {error}"),
        )),
    })
}

/// Images of a batch are `[N,C,H,W]` of the shape the oracle names.
pub(crate) fn check_images(x: &Tensor, info: &OracleInfo) -> Result<()> {
    match x.dims() {
        [_, c, h, w] if [*c, *h, *w] == info.input && x.dtype() == DType::F32 => Ok(()),
        other => {
            let ([c, h, w], dtype) = (info.input, x.dtype());
            let text = format!("the oracle takes f32 images [N,{c},{h},{w}], not {other:?} of {dtype:?}");
            Err(to_candle(AbiError::new(ErrorCode::Shape, text)))
        }
    }
}

#[cfg(test)]
mod tests;
