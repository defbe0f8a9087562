//! Tensors as DLPack 1.x: [`AbiTensor`] owns its memory, [`AbiTensorRef`] borrows it.

use crate::{AbiError, ErrorCode};
use abi_stable::StableAbi;
use std::marker::PhantomData;
use std::os::raw::c_void;

/// `DLPackVersion`.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLPackVersion {
    /// Major version; a tensor of another major is refused.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

/// `DLDevice`: where the memory lives.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDevice {
    /// `kDLCPU` = 1, `kDLCUDA` = 2.
    pub device_type: i32,
    /// Ordinal among devices of the type.
    pub device_id: i32,
}

impl DLDevice {
    /// Host memory.
    pub const CPU: Self = Self {
        device_type: 1,
        device_id: 0,
    };

    /// The CUDA device of that ordinal.
    pub const fn cuda(ordinal: i32) -> Self {
        Self {
            device_type: 2,
            device_id: ordinal,
        }
    }
}

impl std::fmt::Display for DLDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.device_type {
            1 => write!(f, "cpu"),
            2 => write!(f, "cuda:{}", self.device_id),
            other => write!(f, "device type {other}:{}", self.device_id),
        }
    }
}

/// `DLDataType`.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct DLDataType {
    /// 0 signed integer, 1 unsigned integer, 2 IEEE float.
    pub code: u8,
    /// Bits an element.
    pub bits: u8,
    /// Vector lanes, always 1 here.
    pub lanes: u16,
}

impl DLDataType {
    /// 32-bit float: images, logits, cotangents.
    pub const F32: Self = Self {
        code: 2,
        bits: 32,
        lanes: 1,
    };
    /// 64-bit signed integer: labels.
    pub const I64: Self = Self {
        code: 0,
        bits: 64,
        lanes: 1,
    };
}

/// `DLTensor`: a view of memory somebody else owns.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct DLTensor {
    /// Start of the memory.
    pub data: *mut c_void,
    /// Where it lives.
    pub device: DLDevice,
    /// Number of dimensions.
    pub ndim: i32,
    /// Type of an element.
    pub dtype: DLDataType,
    /// `ndim` extents.
    pub shape: *mut i64,
    /// `ndim` strides in elements; always filled here.
    pub strides: *mut i64,
    /// Offset of the first element from `data`, in bytes.
    pub byte_offset: u64,
}

/// `DLManagedTensorVersioned`: a tensor together with the function that frees it.
#[repr(C)]
#[derive(StableAbi)]
pub struct DLManagedTensorVersioned {
    /// Version of DLPack the producer speaks.
    pub version: DLPackVersion,
    /// The producer's own.
    pub manager_ctx: *mut c_void,
    /// Frees the tensor; called once.
    #[sabi(unsafe_opaque_field)]
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    /// Bit 0: read-only.
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: DLTensor,
}

const _: () = {
    assert!(std::mem::size_of::<DLTensor>() == 48);
    assert!(std::mem::size_of::<DLManagedTensorVersioned>() == 80);
};

/// A borrowed tensor, valid for the call it is an argument of.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct AbiTensorRef<'a> {
    raw: DLTensor,
    borrow: PhantomData<&'a ()>,
}

/// An owned tensor; whoever holds it frees it with its producer's deleter.
#[repr(transparent)]
#[derive(StableAbi)]
pub struct AbiTensor(*mut DLManagedTensorVersioned);

// SAFETY: the memory behind the pointer is owned by the tensor alone, and a producer of this contract promises that
// its deleter may run on any thread.
unsafe impl Send for AbiTensor {}

/// An element type that crosses the boundary.
pub trait Element: Copy + Send + 'static {
    /// Its DLPack type.
    const DTYPE: DLDataType;
}
impl Element for f32 {
    const DTYPE: DLDataType = DLDataType::F32;
}
impl Element for i64 {
    const DTYPE: DLDataType = DLDataType::I64;
}

/// What keeps an exported tensor alive: its owner, shape and strides, behind `manager_ctx`.
struct Keeper<O> {
    _owner: O,
    dims: Vec<i64>,
    strides: Vec<i64>,
    managed: DLManagedTensorVersioned,
}

unsafe extern "C" fn delete<O>(managed: *mut DLManagedTensorVersioned) {
    // A panicking destructor must not unwind into a foreign caller.
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: `manager_ctx` was set by `AbiTensor::from_owner::<O>` from `Box::into_raw`, and a deleter runs once.
        drop(unsafe { Box::from_raw((*managed).manager_ctx.cast::<Keeper<O>>()) });
    });
}

/// Row-major strides of a shape, in elements.
pub fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1].max(1);
    }
    strides
}

impl AbiTensor {
    /// A contiguous CPU tensor that takes over `data` without copying.
    pub fn from_vec<T: Element>(mut data: Vec<T>, shape: &[usize]) -> Result<Self, AbiError> {
        let expected: usize = shape.iter().product();
        if data.len() != expected {
            return Err(AbiError::new(
                ErrorCode::Shape,
                format!(
                    "a tensor of shape {shape:?} holds {expected} elements, not {}",
                    data.len()
                ),
            ));
        }
        let pointer = data.as_mut_ptr();
        // SAFETY: the vector's heap block does not move when the vector is moved into the keeper, and it holds
        // exactly the elements the shape asks for.
        Ok(unsafe { Self::from_owner(data, pointer.cast(), T::DTYPE, DLDevice::CPU, shape) })
    }

    /// A contiguous tensor over memory that `owner` keeps alive.
    ///
    /// # Safety
    /// `data` must point to as many elements of `dtype` on `device` as `shape` asks for, stay valid until `owner` is
    /// dropped, and `owner` may be dropped on any thread.
    pub unsafe fn from_owner<O: 'static>(
        owner: O,
        data: *mut c_void,
        dtype: DLDataType,
        device: DLDevice,
        shape: &[usize],
    ) -> Self {
        let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let strides = contiguous_strides(&dims);
        let mut keeper = Box::new(Keeper {
            _owner: owner,
            dims,
            strides,
            managed: DLManagedTensorVersioned {
                version: DLPackVersion { major: 1, minor: 0 },
                manager_ctx: std::ptr::null_mut(),
                deleter: Some(delete::<O>),
                flags: 0,
                dl_tensor: DLTensor {
                    data,
                    device,
                    ndim: shape.len() as i32,
                    dtype,
                    shape: std::ptr::null_mut(),
                    strides: std::ptr::null_mut(),
                    byte_offset: 0,
                },
            },
        });
        keeper.managed.dl_tensor.shape = keeper.dims.as_mut_ptr();
        keeper.managed.dl_tensor.strides = keeper.strides.as_mut_ptr();
        let raw = Box::into_raw(keeper);
        // SAFETY: `raw` comes from the box just leaked, so both projections are valid.
        unsafe {
            (*raw).managed.manager_ctx = raw.cast();
            Self(&raw mut (*raw).managed)
        }
    }

    /// Borrows the tensor.
    pub fn view(&self) -> AbiTensorRef<'_> {
        AbiTensorRef {
            // SAFETY: an `AbiTensor` always holds a live managed tensor.
            raw: unsafe { (*self.0).dl_tensor },
            borrow: PhantomData,
        }
    }
}

impl Drop for AbiTensor {
    fn drop(&mut self) {
        // SAFETY: the pointer is live until here, and this is the only call of the deleter.
        unsafe {
            if let Some(deleter) = (*self.0).deleter {
                deleter(self.0)
            }
        }
    }
}

impl<'a> AbiTensorRef<'a> {
    /// A view of a slice in row-major order. Panics if the shape does not fit: the caller builds both.
    ///
    /// `dims` must hold the extents followed by room for the strides; see [`Dims`].
    pub fn from_slice<T: Element>(data: &'a [T], dims: &'a Dims) -> Self {
        assert_eq!(data.len() as i64, dims.elements(), "slice and shape disagree");
        let raw = DLTensor {
            data: data.as_ptr().cast_mut().cast(),
            device: DLDevice::CPU,
            ndim: dims.shape.len() as i32,
            dtype: T::DTYPE,
            shape: dims.shape.as_ptr().cast_mut(),
            strides: dims.strides.as_ptr().cast_mut(),
            byte_offset: 0,
        };
        Self {
            raw,
            borrow: PhantomData,
        }
    }

    /// The same over memory that a callee may write into, although it must not: what is lent so is a private copy. Panics likewise.
    pub fn from_slice_mut<T: Element>(data: &'a mut [T], dims: &'a mut Dims) -> Self {
        assert_eq!(data.len() as i64, dims.elements(), "slice and shape disagree");
        let raw = DLTensor {
            data: data.as_mut_ptr().cast(),
            device: DLDevice::CPU,
            ndim: dims.shape.len() as i32,
            dtype: T::DTYPE,
            shape: dims.shape.as_mut_ptr(),
            strides: dims.strides.as_mut_ptr(),
            byte_offset: 0,
        };
        Self {
            raw,
            borrow: PhantomData,
        }
    }

    /// The raw DLPack view.
    pub fn raw(&self) -> &DLTensor {
        &self.raw
    }

    /// Device of the memory.
    pub fn device(&self) -> DLDevice {
        self.raw.device
    }

    /// Extents. An impossible rank or a negative extent is an error.
    pub fn shape(&self) -> Result<Vec<usize>, AbiError> {
        let bad = |what: String| AbiError::new(ErrorCode::Shape, what);
        if !(0..=8).contains(&self.raw.ndim) || (self.raw.ndim > 0 && self.raw.shape.is_null()) {
            return Err(bad(format!("a tensor claims {} dimensions", self.raw.ndim)));
        }
        let ndim = self.raw.ndim as usize;
        if ndim == 0 {
            return Ok(vec![]);
        }
        // SAFETY: DLPack promises `ndim` extents behind a non-null `shape`.
        let dims = unsafe { std::slice::from_raw_parts(self.raw.shape, ndim) };
        dims.iter()
            .map(|d| usize::try_from(*d).map_err(|_| bad(format!("a tensor claims the shape {dims:?}"))))
            .collect()
    }

    /// The elements of a contiguous CPU tensor of type `T`, in row-major order.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T], AbiError> {
        let bad = |what: String| Err(AbiError::new(ErrorCode::Shape, what));
        if self.raw.device != DLDevice::CPU {
            return Err(AbiError::new(
                ErrorCode::Device,
                format!("a tensor on {} was given to a build for the cpu", self.raw.device),
            ));
        }
        if self.raw.dtype != T::DTYPE {
            return bad(format!(
                "a tensor has element type {:?}, expected {:?}",
                self.raw.dtype,
                T::DTYPE
            ));
        }
        let shape = self.shape()?;
        let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        if !self.raw.strides.is_null() && !dims.is_empty() {
            // SAFETY: DLPack promises `ndim` strides behind a non-null `strides`.
            let strides = unsafe { std::slice::from_raw_parts(self.raw.strides, dims.len()) };
            let natural = contiguous_strides(&dims);
            if dims
                .iter()
                .zip(strides.iter().zip(&natural))
                .any(|(d, (s, n))| *d > 1 && s != n)
            {
                return bad(format!(
                    "a tensor of shape {shape:?} has strides {strides:?}, expected {natural:?}"
                ));
            }
        }
        let Some(len) = shape
            .iter()
            .try_fold(1usize, |a, d| a.checked_mul(*d))
            .filter(|n| *n < 1 << 40)
        else {
            return bad(format!("a tensor claims the shape {shape:?}"));
        };
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: DLPack promises that many elements from `data + byte_offset` on, alive for the borrow.
        let start = unsafe { self.raw.data.cast::<u8>().add(self.raw.byte_offset as usize) };
        if start.is_null() || !(start as usize).is_multiple_of(std::mem::align_of::<T>()) {
            return bad(format!("a tensor of shape {shape:?} has no aligned memory"));
        }
        // SAFETY: checked above: non-null, aligned, typed, contiguous.
        Ok(unsafe { std::slice::from_raw_parts(start.cast::<T>(), len) })
    }
}

/// Extents and row-major strides of a tensor that is about to be lent.
#[derive(Clone, Debug)]
pub struct Dims {
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Dims {
    /// Of a shape.
    pub fn new(shape: &[usize]) -> Self {
        let shape: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        Self {
            strides: contiguous_strides(&shape),
            shape,
        }
    }

    fn elements(&self) -> i64 {
        self.shape.iter().product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_keeps_its_elements_and_shape() {
        let t = AbiTensor::from_vec(vec![1f32, 2., 3., 4., 5., 6.], &[2, 3]).unwrap();
        assert_eq!(t.view().shape().unwrap(), [2, 3]);
        assert_eq!(t.view().as_slice::<f32>().unwrap(), [1., 2., 3., 4., 5., 6.]);
        assert!(t.view().as_slice::<i64>().unwrap_err().message.contains("element type"));
        assert!(AbiTensor::from_vec(vec![1f32], &[2]).is_err());
    }

    #[test]
    fn strides_that_are_not_row_major_are_refused() {
        let dims = Dims {
            shape: vec![2, 2],
            strides: vec![1, 2],
        };
        let data = [1f32, 2., 3., 4.];
        assert!(
            AbiTensorRef::from_slice(&data, &dims)
                .as_slice::<f32>()
                .unwrap_err()
                .message
                .contains("strides")
        );
    }

    #[test]
    fn a_device_tensor_is_refused_by_a_cpu_reader() {
        let dims = Dims::new(&[1]);
        let mut view = AbiTensorRef::from_slice(&[1f32], &dims);
        view.raw.device = DLDevice::cuda(1);
        let error = view.as_slice::<f32>().unwrap_err();
        assert_eq!(error.code, ErrorCode::Device as u32);
        assert!(error.message.contains("cuda:1"));
    }

    #[test]
    fn the_owner_is_dropped_once() {
        use std::sync::Arc;
        let owner = Arc::new(vec![1f32]);
        let pointer = owner.as_ptr().cast_mut();
        // SAFETY: the arc keeps the one element alive.
        let t = unsafe { AbiTensor::from_owner(owner.clone(), pointer.cast(), DLDataType::F32, DLDevice::CPU, &[1]) };
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(t);
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}
