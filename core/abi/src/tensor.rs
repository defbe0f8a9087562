//! Tensors as DLPack 1.x: [`AbiTensor`] owns its memory, [`AbiTensorRef`] borrows it.

use crate::{AbiError, ErrorCode};
use abi_stable::StableAbi;
use std::marker::PhantomData;
use std::os::raw::c_void;

/// `DLPACK_FLAG_BITMASK_READ_ONLY`, a bit of [`DLManagedTensorVersioned::flags`]: the receiver must not write to the
/// memory. Every tensor that this crate makes has it.
pub const READ_ONLY: u64 = 1;

/// Dimensions that a tensor may have at the most.
pub const MAX_RANK: usize = 8;

/// The major version of DLPack that is read and written here.
const DLPACK_MAJOR: u32 = 1;

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
    /// Bytes an element, at least 1.
    fn bytes(self) -> usize {
        (usize::from(self.bits) * usize::from(self.lanes)).div_ceil(8).max(1)
    }

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

impl std::fmt::Display for DLDataType {
    /// As numpy's short names have it: `f32`, `i64`, `u8`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            0 => write!(f, "i{}", self.bits)?,
            1 => write!(f, "u{}", self.bits)?,
            2 => write!(f, "f{}", self.bits)?,
            code => write!(f, "type {code} of {} bits", self.bits)?,
        }
        match self.lanes {
            1 => Ok(()),
            lanes => write!(f, "x{lanes}"),
        }
    }
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
    /// `ndim` strides in elements; the contract does not allow null, which older DLPack reads as row-major.
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
    /// Bits, see [`READ_ONLY`].
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: DLTensor,
}

const _: () = {
    assert!(std::mem::size_of::<DLTensor>() == 48);
    assert!(std::mem::size_of::<DLManagedTensorVersioned>() == 80);
};

/// A borrowed tensor, valid for the call it is an argument of. The receiver must not write to its memory.
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

// SAFETY: through a shared reference only what nobody writes is read, the description and the elements.
unsafe impl Sync for AbiTensor {}

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
    crate::error::swallow(|| {
        // SAFETY: `manager_ctx` was set by `AbiTensor::from_owner::<O>` from `Box::into_raw`, and a deleter runs once.
        drop(unsafe { Box::from_raw((*managed).manager_ctx.cast::<Keeper<O>>()) });
    });
}

fn shape_error(text: String) -> AbiError {
    AbiError::new(ErrorCode::Shape, text)
}

/// Row-major strides of a shape, in elements. What does not fit an `i64` is `i64::MAX`: no memory has such a shape.
pub fn contiguous_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].saturating_mul(shape[i + 1].max(1));
    }
    strides
}

/// Extents for the wire, as [`contiguous_strides`] does it.
fn wire_extents(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect()
}

/// Number of elements of a shape. None where an element of that size cannot lie in memory at every one of its places,
/// also where an extent of 0 leaves no element: strides would not fit.
fn element_count(shape: &[usize], bytes: usize) -> Option<usize> {
    let places = shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)))?;
    let size = places.checked_mul(bytes)?;
    let count = if shape.contains(&0) { 0 } else { places };
    (size <= isize::MAX as usize).then_some(count)
}

impl AbiTensor {
    /// A contiguous CPU tensor that takes over `data` without copying; `data` holds the elements of `shape` in row-major order.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`] where `shape` asks for another number of elements, or has more than [`MAX_RANK`] extents.
    pub fn from_vec<T: Element>(mut data: Vec<T>, shape: &[usize]) -> Result<Self, AbiError> {
        if shape.len() > MAX_RANK {
            return Err(shape_error(format!(
                "a tensor of shape {shape:?} has {} dimensions: {MAX_RANK} may cross at the most",
                shape.len()
            )));
        }
        let expected = element_count(shape, size_of::<T>());
        if expected != Some(data.len()) {
            let expected = expected.map_or("more than memory has".into(), |n| n.to_string());
            return Err(shape_error(format!(
                "a tensor of shape {shape:?} holds {expected} elements, not {}",
                data.len()
            )));
        }
        let pointer = data.as_mut_ptr();
        // SAFETY: the vector's heap block does not move when the vector is moved into the keeper, and it holds
        // exactly the elements the shape asks for.
        Ok(unsafe { Self::from_owner(data, pointer.cast(), T::DTYPE, DLDevice::CPU, shape) })
    }

    /// A contiguous tensor over memory that `owner` keeps alive. It is marked [`READ_ONLY`].
    ///
    /// # Safety
    /// `data` must point to as many elements of `dtype` on `device` as `shape` asks for, stay valid **and unwritten**
    /// until `owner` is dropped, and `owner` may be dropped on any thread; that of a device tensor is dropped on the thread whose stream
    /// orders it ([`AbiDevice`](crate::AbiDevice)). `shape` has [`MAX_RANK`] extents at the most.
    pub unsafe fn from_owner<O: 'static>(
        owner: O,
        data: *mut c_void,
        dtype: DLDataType,
        device: DLDevice,
        shape: &[usize],
    ) -> Self {
        let dims = wire_extents(shape);
        let strides = contiguous_strides(&dims);
        let mut keeper = Box::new(Keeper {
            _owner: owner,
            dims,
            strides,
            managed: DLManagedTensorVersioned {
                version: DLPackVersion {
                    major: DLPACK_MAJOR,
                    minor: 0,
                },
                manager_ctx: std::ptr::null_mut(),
                deleter: Some(delete::<O>),
                flags: READ_ONLY,
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

    /// Borrows the tensor. Where another compiler's code handed over null, or a tensor of another DLPack major, every reader of the
    /// view answers with an error.
    pub fn view(&self) -> AbiTensorRef<'_> {
        let raw = match self.managed() {
            None => refused(NULL, 0),
            // Nothing of another major but version, context, deleter and flags lies where this one has it.
            Some(managed) if managed.version.major != DLPACK_MAJOR => refused(OTHER_MAJOR, managed.version.major),
            Some(managed) => managed.dl_tensor,
        };
        AbiTensorRef {
            raw,
            borrow: PhantomData,
        }
    }

    /// Whether the producer forbids writing to the memory.
    pub fn is_read_only(&self) -> bool {
        self.managed().is_some_and(|managed| managed.flags & READ_ONLY != 0)
    }

    fn managed(&self) -> Option<&DLManagedTensorVersioned> {
        if !self.0.is_aligned() {
            return None;
        }
        // SAFETY: an `AbiTensor` that is not null holds a live managed tensor until it is dropped.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for AbiTensor {
    fn drop(&mut self) {
        if let Some(deleter) = self.managed().and_then(|managed| managed.deleter) {
            // SAFETY: the pointer is live until here, and this is the only call of the deleter. A deleter lies at the same
            // place in every major version, so that a tensor of another one can be freed.
            unsafe { deleter(self.0) }
        }
    }
}

/// In place of a rank: the tensor is null.
const NULL: i32 = i32::MIN;
/// In place of a rank: the tensor is of the DLPack major that the offset names.
const OTHER_MAJOR: i32 = i32::MIN + 1;

/// The view of a tensor that cannot be read: its rank says why.
fn refused(why: i32, major: u32) -> DLTensor {
    DLTensor {
        data: std::ptr::null_mut(),
        device: DLDevice::CPU,
        ndim: why,
        dtype: DLDataType::F32,
        shape: std::ptr::null_mut(),
        strides: std::ptr::null_mut(),
        byte_offset: u64::from(major),
    }
}

impl<'a> AbiTensorRef<'a> {
    /// A view of a slice in row-major order.
    ///
    /// # Panics
    /// If the shape asks for another number of elements: the caller builds both.
    pub fn from_slice<T: Element>(data: &'a [T], dims: &'a Dims) -> Self {
        assert_eq!(
            Some(data.len()),
            dims.elements(size_of::<T>()),
            "slice and shape disagree"
        );
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

    /// The same over memory that a callee may write into, although it must not: what is lent so is a private copy.
    ///
    /// # Panics
    /// If the shape asks for another number of elements: the caller builds both.
    pub fn from_slice_mut<T: Element>(data: &'a mut [T], dims: &'a mut Dims) -> Self {
        assert_eq!(
            Some(data.len()),
            dims.elements(size_of::<T>()),
            "slice and shape disagree"
        );
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

    /// A view of memory on a device, in row-major order.
    ///
    /// # Safety
    /// `data` points to as many elements of `dtype` on `device` as `dims` asks for, which stay there for the borrow.
    pub unsafe fn on_device(data: *mut c_void, dtype: DLDataType, device: DLDevice, dims: &'a Dims) -> Self {
        let raw = DLTensor {
            data,
            device,
            ndim: dims.shape.len() as i32,
            dtype,
            shape: dims.shape.as_ptr().cast_mut(),
            strides: dims.strides.as_ptr().cast_mut(),
            byte_offset: 0,
        };
        Self {
            raw,
            borrow: PhantomData,
        }
    }

    /// The raw DLPack view, unchecked.
    pub fn raw(&self) -> &DLTensor {
        &self.raw
    }

    /// Device of the memory.
    pub fn device(&self) -> DLDevice {
        self.raw.device
    }

    /// Extents, [`MAX_RANK`] at the most; their product and its bytes fit an `isize`.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`] for a null tensor or one of another DLPack major, an impossible rank, null extents or strides, a negative
    /// extent, and a shape larger than any memory.
    pub fn shape(&self) -> Result<Vec<usize>, AbiError> {
        let dims = self.numbers(self.raw.shape, "shape")?;
        self.numbers(self.raw.strides, "strides")?;
        let claimed = || shape_error(format!("a tensor claims the shape {dims:?}: no memory holds it"));
        let shape: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let shape = shape.ok_or_else(claimed)?;
        element_count(&shape, self.raw.dtype.bytes()).ok_or_else(claimed)?;
        Ok(shape)
    }

    /// The rank, from 0 to [`MAX_RANK`].
    fn rank(&self) -> Result<usize, AbiError> {
        match self.raw.ndim {
            NULL => Err(shape_error(
                "a null tensor was handed over: the plugin must return a tensor or an error".into(),
            )),
            OTHER_MAJOR => Err(shape_error(format!(
                "a tensor of DLPack {} was handed over, expected DLPack {DLPACK_MAJOR}: rebuild the plugin with this contract",
                self.raw.byte_offset
            ))),
            ndim => usize::try_from(ndim)
                .ok()
                .filter(|n| *n <= MAX_RANK)
                .ok_or_else(|| shape_error(format!("a tensor claims {ndim} dimensions, expected 0 to {MAX_RANK}"))),
        }
    }

    /// As many numbers as there are dimensions, from a pointer of the view.
    fn numbers(&self, start: *mut i64, what: &str) -> Result<&'a [i64], AbiError> {
        let rank = self.rank()?;
        if rank == 0 {
            return Ok(&[]);
        }
        if start.is_null() || !start.is_aligned() {
            return Err(shape_error(format!(
                "a tensor of {rank} dimensions has no {what}: the contract wants both extents and strides"
            )));
        }
        // SAFETY: DLPack promises `ndim` numbers behind each of the two pointers, which is neither null nor unaligned.
        Ok(unsafe { std::slice::from_raw_parts(start, rank) })
    }

    /// The elements of a contiguous CPU tensor of type `T`, in row-major order.
    ///
    /// # Errors
    /// Those of [`shape`](Self::shape); [`ErrorCode::Device`] for memory of another device; [`ErrorCode::Shape`] for another
    /// element type, strides that are not row-major, and a null, unaligned or overflowing address.
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T], AbiError> {
        let (start, len) = self.elements::<T>(DLDevice::CPU)?;
        if len == 0 {
            return Ok(&[]);
        }
        // SAFETY: DLPack promises that many elements from `data + byte_offset` on, alive for the borrow; checked above:
        // non-null, aligned, typed, contiguous, and not longer than any memory.
        Ok(unsafe { std::slice::from_raw_parts(start.cast::<T>(), len) })
    }

    /// The address of the first element of a contiguous tensor of type `T` on `device`, for whoever has that device copy from there. Nothing
    /// is read.
    ///
    /// # Errors
    /// As for [`as_slice`](Self::as_slice).
    pub fn address<T: Element>(&self, device: DLDevice) -> Result<usize, AbiError> {
        self.elements::<T>(device).map(|(start, _)| start.addr())
    }

    /// Where the elements of a contiguous tensor of type `T` on `device` begin, and how many there are.
    fn elements<T: Element>(&self, device: DLDevice) -> Result<(*const u8, usize), AbiError> {
        let shape = self.shape()?;
        self.check_type::<T>(device)?;
        let len = element_count(&shape, size_of::<T>()).unwrap_or(0);
        if len == 0 {
            return Ok((std::ptr::null(), 0));
        }
        self.check_strides(&shape)?;
        match self.start(len * size_of::<T>(), align_of::<T>()) {
            Some(start) => Ok((start, len)),
            None => Err(shape_error(format!(
                "a tensor of shape {shape:?} has no aligned memory"
            ))),
        }
    }

    /// A copy of the elements, in row-major order.
    ///
    /// # Errors
    /// Those of [`as_slice`](Self::as_slice), and [`ErrorCode::Shape`] where there is no memory for the copy.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, AbiError> {
        let elements = self.as_slice::<T>()?;
        let mut copy = Vec::new();
        copy.try_reserve_exact(elements.len()).map_err(|_| {
            shape_error(format!(
                "a tensor claims {} elements: there is no memory for a copy",
                elements.len()
            ))
        })?;
        copy.extend_from_slice(elements);
        Ok(copy)
    }

    fn check_type<T: Element>(&self, device: DLDevice) -> Result<(), AbiError> {
        if self.raw.device != device {
            let text = match device {
                DLDevice::CPU => format!("a tensor on {} was given to a build for the cpu", self.raw.device),
                device => format!("a tensor lies on {}, expected {device}", self.raw.device),
            };
            return Err(AbiError::new(ErrorCode::Device, text));
        }
        if self.raw.dtype != T::DTYPE {
            return Err(shape_error(format!(
                "a tensor has element type {}, expected {}",
                self.raw.dtype,
                T::DTYPE
            )));
        }
        Ok(())
    }

    /// Of an extent of 1 the stride does not matter.
    fn check_strides(&self, shape: &[usize]) -> Result<(), AbiError> {
        let strides = self.numbers(self.raw.strides, "strides")?;
        let natural = contiguous_strides(&wire_extents(shape));
        let differ = |((d, s), n): ((&usize, &i64), &i64)| *d > 1 && s != n;
        if shape.iter().zip(strides).zip(&natural).any(differ) {
            return Err(shape_error(format!(
                "a tensor of shape {shape:?} has strides {strides:?}, expected {natural:?}"
            )));
        }
        Ok(())
    }

    /// Where the elements begin; none where so many bytes cannot lie there.
    fn start(&self, bytes: usize, align: usize) -> Option<*const u8> {
        let data = self.raw.data.cast_const().cast::<u8>();
        let offset = usize::try_from(self.raw.byte_offset).ok()?;
        let first = data.addr().checked_add(offset)?;
        first.checked_add(bytes)?;
        (!data.is_null() && first.is_multiple_of(align)).then(|| data.wrapping_add(offset))
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
        let shape = wire_extents(shape);
        Self {
            strides: contiguous_strides(&shape),
            shape,
        }
    }

    /// Elements of that size; none where the shape has no place in memory or cannot cross.
    fn elements(&self, bytes: usize) -> Option<usize> {
        let shape: Vec<usize> = self.shape.iter().map(|d| *d as usize).collect();
        element_count(&shape, bytes).filter(|_| shape.len() <= MAX_RANK)
    }
}

#[cfg(test)]
mod tests;
