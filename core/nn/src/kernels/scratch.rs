//! Buffers that kernels use again from call to call, kept by each thread.

use std::cell::RefCell;

use super::aligned::Aligned;

/// A type whose scratch buffers are pooled.
pub(crate) trait Pooled: Sized + Copy + 'static {
    /// Takes a buffer out of this thread's pool.
    fn take() -> Aligned<Self>;
    /// Puts it back.
    fn give(buffer: Aligned<Self>);
}

macro_rules! pooled {
    ($type:ty, $pool:ident) => {
        thread_local! {
            static $pool: RefCell<Vec<Aligned<$type>>> = const { RefCell::new(Vec::new()) };
        }

        impl Pooled for $type {
            fn take() -> Aligned<$type> {
                $pool.with_borrow_mut(Vec::pop).unwrap_or_default()
            }

            fn give(buffer: Aligned<$type>) {
                $pool.with_borrow_mut(|pool| pool.push(buffer));
            }
        }
    };
}

pooled!(f32, POOL_F32);
pooled!(f64, POOL_F64);

/// Lends `f` a buffer of `len` elements whose contents are whatever was left there.
pub(crate) fn with_scratch<T: Pooled + Default, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    f(&mut Scratch::new(len).0[..len])
}

/// A buffer of this thread's pool, given back when dropped. For kernels, whose closures would be compiled for the
/// least of processors.
pub(crate) struct Scratch<T: Pooled + Default>(Aligned<T>);

impl<T: Pooled + Default> Scratch<T> {
    /// At least `len` elements, whose contents are whatever was left there.
    pub fn new(len: usize) -> Self {
        let mut buffer = T::take();
        if buffer.len() < len {
            buffer = Aligned::zeros(len);
        }
        Self(buffer)
    }

    /// Its elements.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.0.as_mut_ptr()
    }
}

impl<T: Pooled + Default> Drop for Scratch<T> {
    fn drop(&mut self) {
        T::give(std::mem::take(&mut self.0));
    }
}
