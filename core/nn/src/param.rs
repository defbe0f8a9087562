//! Named parameters, and files of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Result, Tensor, Var, bail};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::Pass;

/// A named tensor of a model: a trainable parameter, or a buffer such as a running mean. Clones share it.
#[derive(Clone, Debug)]
pub struct Param {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    var: Var,
    trainable: bool,
    given: bool,
    version: AtomicU64,
}

impl Param {
    pub(crate) fn new(name: String, value: &Tensor, trainable: bool, given: bool) -> Result<Param> {
        let var = Var::from_tensor(value)?;
        let inner = Inner {
            name,
            var,
            trainable,
            given,
            version: AtomicU64::new(0),
        };
        Ok(Param { inner: Arc::new(inner) })
    }

    /// Its name in the weight file, `conv1.weight`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Grows with every change of the value by this crate; what was computed from an older value is out of date.
    pub(crate) fn version(&self) -> u64 {
        self.inner.version.load(Ordering::Acquire)
    }

    /// To be called after every change of the value.
    pub(crate) fn changed(&self) {
        self.inner.version.fetch_add(1, Ordering::AcqRel);
    }

    /// The variable that holds it. To change its value, use [`Param::set`]: networks keep weights in forms of their own.
    pub fn var(&self) -> &Var {
        &self.inner.var
    }

    /// Whether an optimiser may change it.
    pub fn trainable(&self) -> bool {
        self.inner.trainable
    }

    /// Its value in a pass: a variable where weight gradients are wanted, else a constant.
    pub fn tensor(&self, pass: &Pass) -> Tensor {
        if pass.track && self.trainable() {
            self.var().as_tensor().clone()
        } else {
            self.var().as_detached_tensor()
        }
    }

    /// Whether its model brought the value it began with.
    pub(crate) fn given(&self) -> bool {
        self.inner.given
    }

    /// Overwrites its value.
    ///
    /// # Errors
    /// When the shape differs.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        if value.dims() != self.var().dims() {
            bail!(
                "parameter '{}' has shape {:?}, the new value {:?}",
                self.name(),
                self.var().dims(),
                value.dims()
            );
        }
        let value = value
            .detach()
            .to_dtype(self.var().dtype())?
            .to_device(self.var().device())?
            .contiguous()?;
        self.var().set(&value)?;
        self.changed();
        Ok(())
    }
}

/// Writes parameters as a safetensors blob, in `f32`.
///
/// # Errors
/// When a value is not finite, or two parameters share a name.
pub fn save_safetensors(params: &[Param]) -> Result<Vec<u8>> {
    save(params, DType::F32)
}

/// Writes parameters as a safetensors blob, rounded to `f16`.
///
/// # Errors
/// When a value is not finite after rounding, or two parameters share a name.
pub fn save_safetensors_f16(params: &[Param]) -> Result<Vec<u8>> {
    save(params, DType::F16)
}

fn save(params: &[Param], dtype: DType) -> Result<Vec<u8>> {
    let mut entries = Vec::with_capacity(params.len());
    for param in params {
        let value = param.var().as_detached_tensor().flatten_all()?;
        let value = value.to_dtype(dtype)?;
        check_finite(param.name(), &value)?;
        let mut bytes = Vec::new();
        value.write_bytes(&mut bytes)?;
        entries.push((param.name().to_string(), param.var().dims().to_vec(), bytes));
    }
    let dtype = match dtype {
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    write_safetensors(&entries, dtype)
}

/// Blobs by name as one.
///
/// # Errors
/// When two share a name.
pub fn pack(blobs: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let entry = |(name, blob): &(String, Vec<u8>)| (name.clone(), vec![blob.len()], blob.clone());
    write_safetensors(&blobs.iter().map(entry).collect::<Vec<_>>(), Dtype::U8)
}

/// What [`pack`] made one of.
///
/// # Errors
/// When it is no such blob.
pub fn unpack(blob: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let file =
        SafeTensors::deserialize(blob).map_err(|e| candle_core::Error::msg(format!("not a pack of blobs: {e}")))?;
    let entry = |(name, view): (&str, TensorView)| (name.to_string(), view.data().to_vec());
    Ok(file.iter().map(entry).collect())
}

/// An error naming the tensor, if it holds a value that is not finite.
fn check_finite(name: &str, value: &Tensor) -> Result<()> {
    let values = value.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    match values.iter().find(|v| !v.is_finite()) {
        Some(v) => bail!("parameter '{name}' holds {v}, which cannot be saved: train it again with a lower rate"),
        None => Ok(()),
    }
}

/// Little-endian bytes of `values`.
pub(crate) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Serialises `(name, shape, bytes)` entries of one type.
pub(crate) fn write_safetensors(entries: &[(String, Vec<usize>, Vec<u8>)], dtype: Dtype) -> Result<Vec<u8>> {
    let mut views = Vec::with_capacity(entries.len());
    for (name, shape, bytes) in entries {
        if views.iter().any(|(other, _): &(&str, TensorView)| other == name) {
            bail!("two parameters are named '{name}'");
        }
        let view = TensorView::new(dtype, shape.clone(), bytes).map_err(candle_core::Error::wrap)?;
        views.push((name.as_str(), view));
    }
    safetensors::serialize(views, None).map_err(candle_core::Error::wrap)
}
