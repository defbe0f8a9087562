//! From kernels on slices to differentiable candle operators.

use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor,
    bail,
};

use crate::kernels::Real;

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every operator of this thread composed of candle's own, as on devices other than the
/// CPU. It is slower; checks use it to compare the two.
pub fn with_composed_ops<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(COMPOSED.replace(true));
    f()
}

/// Puts the former choice back, also on a panic.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        COMPOSED.set(self.0);
    }
}

/// Whether this thread composes its operators.
pub(crate) fn composed() -> bool {
    COMPOSED.get()
}

/// Whether our kernels can compute with `x`.
fn has_kernels(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64) && !composed()
}

/// Evaluates an expression with `$T` standing for the float type that `$dtype` names.
macro_rules! with_real {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            other => bail!("kernels compute in f32 and f64, not in {other:?}"),
        }
    };
}

/// A function of one tensor, its gradient, and the same function in candle's operators.
pub(crate) trait Unary: Send + Sync + Sized + 'static {
    const NAME: &'static str;
    /// Shape of the output.
    fn shape(&self, x: &Shape) -> Shape;
    /// The output.
    fn forward<T: Real>(&self, x: &[T]) -> Vec<T>;
    /// Gradient at the input, from input, output, and the gradient at the output.
    fn gradient<T: Real>(&self, x: &[T], y: &[T], dy: &[T]) -> Vec<T>;
    /// The same, of candle's operators.
    fn compose(&self, x: &Tensor) -> Result<Tensor>;

    /// Applies it to `x`.
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        if has_kernels(&x) {
            x.apply_op1(UnaryOp(self))
        } else {
            self.compose(&x)
        }
    }
}

struct UnaryOp<U>(U);

impl<U: Unary> CustomOp1 for UnaryOp<U> {
    fn name(&self) -> &'static str {
        U::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        with_real!(storage_dtype(storage), T => {
            let y = self.0.forward(slice::<T>(storage, layout)?);
            Ok((stored(y), self.0.shape(layout.shape())))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let dx = with_real!(x.dtype(), T => {
            let dx = with_slices([x, y, &dy], |[x, y, dy]| self.0.gradient::<T>(x, y, dy))?;
            Tensor::from_vec(dx, x.shape(), &Device::Cpu)?
        });
        Ok(Some(dx))
    }
}

/// A function of a tensor and one or two parameters, its gradients, and its composition. A gradient that
/// no variable asks for is not computed.
pub(crate) trait Parametric: Send + Sync + Sized + 'static {
    const NAME: &'static str;
    /// Shape of the output.
    fn shape(&self, x: &Shape) -> Shape;
    /// The output.
    fn forward<T: Real>(&self, x: &[T], w: &[T], b: Option<&[T]>) -> Vec<T>;
    /// Gradient at the input.
    fn input_gradient<T: Real>(&self, x: &[T], w: &[T], dy: &[T]) -> Vec<T>;
    /// Gradient at the first parameter.
    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T>;
    /// Gradient at the second parameter.
    fn bias_gradient<T: Real>(&self, dy: &[T]) -> Vec<T>;
    /// The same, of candle's operators.
    fn compose(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor>;

    /// Applies it to `x`.
    fn apply(self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        let (x, w) = (x.contiguous()?, w.contiguous()?);
        if !has_kernels(&x) {
            return self.compose(&x, &w, b);
        }
        match b {
            None => x.apply_op2(&w, ParametricOp(self)),
            Some(b) => x.apply_op3(&w, &b.contiguous()?, ParametricOp(self)),
        }
    }
}

/// An operator's output that was computed before it was applied. Handing it over costs two copies, bound by memory: candle hands over
/// storages, not tensors, and those whole.
pub(crate) struct Computed(Mutex<Option<Tensor>>);

impl Computed {
    pub fn new(output: &Tensor) -> Result<Self> {
        Ok(Self(Mutex::new(Some(output.detach().force_contiguous()?))))
    }

    fn take(&self) -> Result<Tensor> {
        let output = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        output.map_or_else(|| bail!("an output was handed over already"), Ok)
    }

    pub fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        let y = self.take()?;
        match &*y.storage_and_layout().0 {
            Storage::Cpu(storage) => Ok((storage.try_clone(y.layout())?, y.shape().clone())),
            _ => bail!("the input is on the CPU, the output is not"),
        }
    }

    pub fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        let y = self.take()?;
        match &*y.storage_and_layout().0 {
            Storage::Cuda(storage) => Ok((storage.try_clone(y.layout())?, y.shape().clone())),
            _ => bail!("the input is on a GPU, the output is not"),
        }
    }
}

/// A bilinear function of a tensor and a parameter of candle's operators, its gradients too. candle's own gradients go through
/// kernels that on a GPU are far slower than the function is, and compute those of constants.
pub(crate) trait Bilinear: Send + Sync + Sized + 'static {
    const NAME: &'static str;
    /// The output.
    fn forward(&self, x: &Tensor, w: &Tensor) -> Result<Tensor>;
    /// Gradient at the input.
    fn input_gradient(&self, w: &Tensor, dy: &Tensor) -> Result<Tensor>;
    /// Gradient at the parameter.
    fn weight_gradient(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor>;

    /// Applies it to `x`.
    fn compose(self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let y = self.forward(&x.detach(), &w.detach())?;
        match x.track_op() || w.track_op() {
            true => x.apply_op2(w, BilinearOp(self, Computed::new(&y)?)),
            false => Ok(y),
        }
    }
}

struct BilinearOp<B>(B, Computed);

impl<B: Bilinear> CustomOp2 for BilinearOp<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.1.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.1.on_cuda()
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (at_x, at_w) = (x.track_op(), w.track_op());
        let [x, w, dy] = [x, w, &dy.contiguous()?].map(Tensor::detach);
        let dx = at_x.then(|| self.0.input_gradient(&w, &dy)).transpose()?;
        let dw = at_w.then(|| self.0.weight_gradient(&x, &dy)).transpose()?;
        Ok((dx, dw))
    }
}

struct ParametricOp<P>(P);

impl<P: Parametric> ParametricOp<P> {
    /// The gradients at `x` and `w`, where a variable asks for them.
    fn gradients(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        with_real!(x.dtype(), T => {
            let dx = wanted(x, || {
                with_slices([x, w, dy], |[x, w, dy]| self.0.input_gradient::<T>(x, w, dy))
            })?;
            let dw = wanted(w, || {
                with_slices([x, dy], |[x, dy]| self.0.weight_gradient::<T>(x, dy))
            })?;
            Ok((dx, dw))
        })
    }
}

impl<P: Parametric> CustomOp2 for ParametricOp<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_real!(storage_dtype(x), T => {
            let (x, w) = (slice::<T>(x, x_layout)?, slice(w, w_layout)?);
            Ok((stored(self.0.forward(x, w, None)), self.0.shape(x_layout.shape())))
        })
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, w, &dy.contiguous()?)
    }
}

impl<P: Parametric> CustomOp3 for ParametricOp<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_real!(storage_dtype(x), T => {
            let (x, w, b) = (slice::<T>(x, x_layout)?, slice(w, w_layout)?, slice(b, b_layout)?);
            Ok((stored(self.0.forward(x, w, Some(b))), self.0.shape(x_layout.shape())))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (dx, dw) = self.gradients(x, w, &dy)?;
        let db = with_real!(dy.dtype(), T => {
            wanted(b, || with_slices([&dy], |[dy]| self.0.bias_gradient::<T>(dy)))?
        });
        Ok((dx, dw, db))
    }
}

/// The gradient at `at`, in its shape, if `at` is or depends on a variable.
fn wanted<T: Real>(at: &Tensor, gradient: impl FnOnce() -> Result<Vec<T>>) -> Result<Option<Tensor>> {
    if !at.track_op() {
        return Ok(None);
    }
    Tensor::from_vec(gradient()?, at.shape(), &Device::Cpu).map(Some)
}

pub(crate) fn stored<T: Real>(values: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(values)
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    storage.dtype()
}

/// The elements of a contiguous tensor.
pub(crate) fn slice<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let values = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((begin, end)) => Ok(&values[begin..end]),
        None => bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// Calls `f` with the elements of contiguous tensors on the CPU.
pub(crate) fn with_slices<T: Real, R, const N: usize>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[T]; N] = [&[]; N];
    for (out, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else {
            bail!("a kernel was given a tensor that is not on the CPU");
        };
        *out = slice(storage, layout)?;
    }
    Ok(f(slices))
}

pub(crate) use with_real;
