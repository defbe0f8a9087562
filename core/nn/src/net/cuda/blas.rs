//! cuBLAS: products of matrices.

use std::ffi::c_int;
use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda_backend::cudarc::cublas;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::device::{Precision, failed, pointer};

/// Bytes for products.
const BLAS_SCRATCH: usize = 32 << 20;

/// cuBLAS's handle, and its memory.
pub struct Blas {
    handle: cublas::sys::cublasHandle_t,
    _scratch: CudaSlice<u8>,
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle was created with the machine and is destroyed once.
        let _ = unsafe { cublas::result::destroy_handle(self.handle) };
    }
}

impl Blas {
    pub fn new(stream: &Arc<CudaStream>, precision: Precision) -> Result<Blas> {
        use cublas::sys::{cublasMath_t, cublasSetMathMode, cublasSetWorkspace_v2};
        let error = failed("cuBLAS");
        let scratch = stream.alloc_zeros::<u8>(BLAS_SCRATCH).map_err(|e| failed("CUDA")(&e))?;
        let place = pointer(scratch.device_ptr(stream).0);
        let blas = Blas {
            handle: cublas::result::create_handle().map_err(|e| error(&e))?,
            _scratch: scratch,
        };
        let math = match precision {
            Precision::Single => cublasMath_t::CUBLAS_DEFAULT_MATH,
            Precision::Tf32 => cublasMath_t::CUBLAS_TF32_TENSOR_OP_MATH,
        };
        // SAFETY: the handle was just created, stream and memory are alive; memory is set last, as a change of stream forgets it.
        unsafe {
            cublas::result::set_stream(blas.handle, stream.cu_stream().cast()).map_err(|e| error(&e))?;
            cublasSetMathMode(blas.handle, math).result().map_err(|e| error(&e))?;
            cublasSetWorkspace_v2(blas.handle, place, BLAS_SCRATCH)
                .result()
                .map_err(|e| error(&e))?;
        }
        Ok(blas)
    }

    /// Rows `x W^T` of `n` rows `x`, or `x W` where it is transposed; `W` is `[outputs, inputs]`.
    pub fn product(
        &self,
        [inputs, outputs, n]: [usize; 3],
        [w, x, y]: [u64; 3],
        transposed: bool,
        add: bool,
    ) -> Result<()> {
        use cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        let (one, beta) = (1f32, if add { 1f32 } else { 0. });
        let [ni, no, n] = [inputs, outputs, n].map(|v| v as c_int);
        // Columns first, as cuBLAS has matrices: `W` is `[inputs, outputs]`, rows are columns.
        let (of_w, m, k) = if transposed {
            (CUBLAS_OP_N, ni, no)
        } else {
            (CUBLAS_OP_T, no, ni)
        };
        // SAFETY: the matrices are as large as their sizes say.
        unsafe {
            cublas::result::sgemm(
                self.handle,
                of_w,
                CUBLAS_OP_N,
                m,
                n,
                k,
                &raw const one,
                pointer(w).cast(),
                ni,
                pointer(x).cast(),
                k,
                &raw const beta,
                pointer(y).cast(),
                m,
            )
        }
        .map_err(|e| failed("cuBLAS")(&e))
    }
}

// SAFETY: the handle is used under the calls of a machine, which one thread makes at a time.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}
