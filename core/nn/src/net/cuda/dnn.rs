//! cuDNN: descriptors of convolutions, and which of its algorithms to take.

use std::ffi::{c_int, c_void};

use candle_core::cuda_backend::cudarc::cudnn;
use candle_core::{Error, Result};

use super::device::{Precision, failed};
use super::program::{Conv, Order};

#[derive(Clone, Copy)]
pub enum Algorithm {
    Forward(cudnn::sys::cudnnConvolutionFwdAlgo_t),
    Backward(cudnn::sys::cudnnConvolutionBwdDataAlgo_t),
}

/// cuDNN's handle.
pub struct Dnn(pub cudnn::sys::cudnnHandle_t);

impl Drop for Dnn {
    fn drop(&mut self) {
        // SAFETY: the handle was created with the machine and is destroyed once.
        let _ = unsafe { cudnn::result::destroy_handle(self.0) };
    }
}

/// Descriptors of a convolution of some images.
pub struct Shapes {
    pub x: cudnn::sys::cudnnTensorDescriptor_t,
    pub y: cudnn::sys::cudnnTensorDescriptor_t,
    pub w: cudnn::sys::cudnnFilterDescriptor_t,
    pub conv: cudnn::sys::cudnnConvolutionDescriptor_t,
}

impl Shapes {
    pub fn new(conv: &Conv, images: usize, order: Order, precision: Precision) -> Result<Shapes> {
        use cudnn::sys::{cudnnConvolutionMode_t, cudnnDataType_t, cudnnMathType_t, cudnnTensorFormat_t};
        let error = failed("cuDNN");
        let g = conv.geometry;
        let format = match order {
            Order::Planes => cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
            Order::ChannelsLast => cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
        };
        let float = cudnnDataType_t::CUDNN_DATA_FLOAT;
        let four = |n: usize, [c, h, w]: [usize; 3]| [n, c, h, w].map(|v| v as c_int);
        let create = || -> std::result::Result<Shapes, cudnn::CudnnError> {
            let shapes = Shapes {
                x: cudnn::result::create_tensor_descriptor()?,
                y: cudnn::result::create_tensor_descriptor()?,
                w: cudnn::result::create_filter_descriptor()?,
                conv: cudnn::result::create_convolution_descriptor()?,
            };
            let [top, left, stride] = [g.top, g.left, g.stride].map(|v| v as c_int);
            // SAFETY: the descriptors were just created.
            unsafe {
                cudnn::result::set_tensor4d_descriptor(shapes.x, format, float, four(images, g.input()))?;
                cudnn::result::set_tensor4d_descriptor(shapes.y, format, float, four(images, g.output()))?;
                let filter = four(g.c_out, [g.c_in, g.kh, g.kw]);
                cudnn::result::set_filter4d_descriptor(shapes.w, float, format, filter)?;
                let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
                cudnn::result::set_convolution2d_descriptor(shapes.conv, top, left, stride, stride, 1, 1, mode, float)?;
                let math = match precision {
                    Precision::Single => cudnnMathType_t::CUDNN_FMA_MATH,
                    Precision::Tf32 => cudnnMathType_t::CUDNN_DEFAULT_MATH,
                };
                cudnn::result::set_convolution_math_type(shapes.conv, math)?;
            }
            Ok(shapes)
        };
        create().map_err(|e| error(&e))
    }
}

impl Drop for Shapes {
    fn drop(&mut self) {
        // SAFETY: the descriptors were created with the value and are destroyed once.
        unsafe {
            let _ = cudnn::result::destroy_tensor_descriptor(self.x);
            let _ = cudnn::result::destroy_tensor_descriptor(self.y);
            let _ = cudnn::result::destroy_filter_descriptor(self.w);
            let _ = cudnn::result::destroy_convolution_descriptor(self.conv);
        }
    }
}

/// The first choice of cuDNN's measurements that is not a tenth slower than the best: `(milliseconds, number, choice)`.
fn first_fast<A>(mut found: Vec<(f32, u32, A)>) -> Option<A> {
    let best = found.iter().map(|(time, ..)| *time).min_by(f32::total_cmp)?;
    found.retain(|(time, ..)| *time <= best * 1.1);
    found
        .into_iter()
        .min_by_key(|(_, number, _)| *number)
        .map(|(.., choice)| choice)
}

impl Shapes {
    pub fn fastest_forward(
        &self,
        dnn: &Dnn,
        [w, x, y]: [*mut c_void; 3],
        scratch: (*mut c_void, usize),
    ) -> Result<Algorithm> {
        use cudnn::sys::{cudnnConvolutionFwdAlgoPerf_t, cudnnDeterminism_t, cudnnFindConvolutionForwardAlgorithmEx};
        let mut count = 0;
        let mut found = [const { std::mem::MaybeUninit::<cudnnConvolutionFwdAlgoPerf_t>::uninit() }; TRIALS];
        // SAFETY: descriptors are alive and describe the buffers; there is room for as many answers as are asked for.
        let answers = unsafe {
            cudnnFindConvolutionForwardAlgorithmEx(
                dnn.0,
                self.x,
                x,
                self.w,
                w,
                self.conv,
                self.y,
                y,
                TRIALS as c_int,
                &raw mut count,
                found.as_mut_ptr().cast(),
                scratch.0,
                scratch.1,
            )
            .result()
            .map_err(|e| failed("cuDNN finds no algorithm")(&e))?;
            found[..count as usize]
                .iter()
                .map(|found| found.assume_init())
                .collect::<Vec<_>>()
        };
        let sound = answers.iter().filter(|a| {
            a.status.result().is_ok() && a.determinism == cudnnDeterminism_t::CUDNN_DETERMINISTIC && a.time > 0.
        });
        let sound = sound
            .map(|a| (a.time, a.algo as u32, Algorithm::Forward(a.algo)))
            .collect();
        first_fast(sound).ok_or_else(|| Error::msg("cuDNN has no algorithm for a convolution"))
    }

    pub fn fastest_backward(
        &self,
        rounds: bool,
        dnn: &Dnn,
        [w, y, x]: [*mut c_void; 3],
        scratch: (*mut c_void, usize),
    ) -> Result<Algorithm> {
        use cudnn::sys::{
            cudnnConvolutionBwdDataAlgoPerf_t, cudnnDeterminism_t, cudnnFindConvolutionBackwardDataAlgorithmEx,
        };
        let mut count = 0;
        let mut found = [const { std::mem::MaybeUninit::<cudnnConvolutionBwdDataAlgoPerf_t>::uninit() }; TRIALS];
        // SAFETY: as above.
        let answers = unsafe {
            cudnnFindConvolutionBackwardDataAlgorithmEx(
                dnn.0,
                self.w,
                w,
                self.y,
                y,
                self.conv,
                self.x,
                x,
                TRIALS as c_int,
                &raw mut count,
                found.as_mut_ptr().cast(),
                scratch.0,
                scratch.1,
            )
            .result()
            .map_err(|e| failed("cuDNN finds no algorithm")(&e))?;
            found[..count as usize]
                .iter()
                .map(|found| found.assume_init())
                .collect::<Vec<_>>()
        };
        let sound = answers.iter().filter(|a| {
            a.status.result().is_ok()
                && a.determinism == cudnnDeterminism_t::CUDNN_DETERMINISTIC
                && a.time > 0.
                && (rounds || EXACT.contains(&a.algo))
        });
        let sound = sound
            .map(|a| (a.time, a.algo as u32, Algorithm::Backward(a.algo)))
            .collect();
        first_fast(sound).ok_or_else(|| Error::msg("cuDNN has no algorithm for the gradient of a convolution"))
    }
}

// SAFETY: the handle is used under the calls of a machine, which one thread makes at a time.
unsafe impl Send for Dnn {}
// SAFETY: as above.
unsafe impl Sync for Dnn {}

/// Algorithms for gradients that sum products and nothing else, so that what is 0 stays 0: pixels that do not matter have no sign. Fourier's and
/// Winograd's transforms leave rounding there.
const EXACT: [cudnn::sys::cudnnConvolutionBwdDataAlgo_t; 2] = [
    cudnn::sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0,
    cudnn::sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
];

/// What cuDNN tries at most.
const TRIALS: usize = 16;

#[cfg(test)]
mod tests {
    use super::first_fast;

    #[test]
    fn the_first_of_nearly_equal_algorithms_is_taken() {
        assert_eq!(first_fast(vec![(1.05, 1, 'a'), (1., 6, 'b'), (2., 0, 'c')]), Some('a'));
        assert_eq!(first_fast(vec![(1.2, 1, 'a'), (1., 6, 'b')]), Some('b'));
        assert_eq!(first_fast::<char>(vec![]), None);
    }
}
