//! A network as one differentiable operator of candle.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::compose;
use super::exec::{self, Tape, Wanted, Workspace};
use super::graph::{Graph, Output};
use super::operators::Number;
use super::plan::Plan;
use super::train::Route;
use crate::kernels::Real;
use crate::ops::adapter::{composed, slice, stored, with_slices};
use crate::threads::for_each_chunk;
use crate::{Param, Pass};

/// Images that one tape holds at most.
const IMAGES: usize = 24;

/// A network described by a [`NetBuilder`](super::NetBuilder). Clones share it.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

struct Inner {
    graph: Arc<Graph>,
    output: usize,
    params: Vec<Param>,
    /// How it is trained.
    training: OnceLock<Route>,
    f32: Slot<f32>,
    f64: Slot<f64>,
    #[cfg(feature = "cudnn")]
    cuda: super::cuda::Slot,
}

/// What is compiled for one type, and for which weights.
type Slot<T> = Mutex<Option<(u64, Option<Arc<Compiled<T>>>)>>;

/// A plan, and what calls leave for later ones.
struct Compiled<T> {
    plan: Plan<T>,
    workspaces: Mutex<Vec<Workspace<T>>>,
    tapes: Mutex<Vec<Tape<T>>>,
}

impl<T: Real> Compiled<T> {
    fn new(plan: Plan<T>) -> Self {
        Self {
            plan,
            workspaces: Mutex::default(),
            tapes: Mutex::default(),
        }
    }

    /// Lends `f` a workspace for `images` images.
    fn work<R>(&self, images: usize, f: impl FnOnce(&mut Workspace<T>) -> R) -> R {
        let spare = spare(&self.workspaces, |work| work.images() >= images);
        let mut work = spare.unwrap_or_else(|| Workspace::new(&self.plan, images, false));
        let result = f(&mut work);
        lock(&self.workspaces).push(work);
        result
    }

    /// A tape for `images` images.
    fn tape(&self, images: usize) -> Tape<T> {
        spare(&self.tapes, |tape| tape.images() >= images).unwrap_or_else(|| Tape::new(&self.plan, images))
    }
}

/// Takes out one of a pool that will do.
fn spare<P>(pool: &Mutex<Vec<P>>, will_do: impl Fn(&P) -> bool) -> Option<P> {
    let mut pool = lock(pool);
    let i = pool.iter().rposition(will_do)?;
    Some(pool.swap_remove(i))
}

fn lock<P>(mutex: &Mutex<P>) -> MutexGuard<'_, P> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    pub(super) fn new(graph: Arc<Graph>, output: usize) -> Net {
        Net(Arc::new(Inner {
            params: graph.params(output),
            graph,
            output,
            training: OnceLock::new(),
            f32: Mutex::default(),
            f64: Mutex::default(),
            #[cfg(feature = "cudnn")]
            cuda: super::cuda::Slot::default(),
        }))
    }

    /// Images of one pass, `[C, H, W]`.
    pub fn input(&self) -> [usize; 3] {
        self.0.graph.0[0].shape
    }

    /// Outputs for images `x` `[N, C, H, W]`: `[N, K]` of a vector, else `[N, C', H', W']`.
    ///
    /// # Errors
    /// When the shape of `x` differs from the network's.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        if [c, h, w] != self.input() {
            bail!("a network of images {:?} was given {:?}", self.input(), [c, h, w]);
        }
        let ours = x.device().is_cpu() && !composed() && n > 0;
        let training = pass.train || pass.batch_statistics || pass.track;
        if ours
            && training
            && let Some(y) = self.route().forward(pass, x)?
        {
            return Ok(y);
        }
        #[cfg(feature = "cudnn")]
        if x.device().is_cuda() && !composed() && n > 0 && !training && x.dtype() == DType::F32 {
            let graph = (&*self.0.graph, self.0.output);
            return super::cuda::forward(&self.0.cuda, graph, self.version(), x, pass.tf32);
        }
        match x.dtype() {
            DType::F32 if ours && !training => self.run(&self.0.f32, pass, x),
            DType::F64 if ours && !training => self.run(&self.0.f64, pass, x),
            _ => compose::forward(&self.0.graph, self.0.output, pass, x),
        }
    }

    /// What each launch of a pass of so many images takes on a GPU, in milliseconds: forward, then back.
    ///
    /// # Errors
    /// Where an operator has no kernel there, or one of CUDA's libraries fails.
    #[doc(hidden)]
    #[cfg(feature = "cudnn")]
    pub fn profile(&self, device: &Device, images: usize, tf32: bool) -> Result<Vec<(String, f32)>> {
        let graph = (&*self.0.graph, self.0.output);
        super::cuda::profile(&self.0.cuda, graph, self.version(), device, tf32, images)
    }

    /// Grows with every change of a weight.
    fn version(&self) -> u64 {
        self.0.params.iter().map(Param::version).sum()
    }

    fn route(&self) -> &Route {
        let Inner { graph, output, .. } = &*self.0;
        self.0.training.get_or_init(|| Route::new(graph, *output))
    }

    fn run<T: Number>(&self, slot: &Slot<T>, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let Some(compiled) = self.compiled(slot) else {
            return compose::forward(&self.0.graph, self.0.output, pass, x);
        };
        let x = x.contiguous()?;
        let op = NetOp {
            net: self.0.clone(),
            compiled,
            taped: x.track_op(),
            tapes: Mutex::default(),
        };
        x.apply_op1(op)
    }

    /// The plan for the present weights; none for a graph that has none.
    fn compiled<T: Number>(&self, slot: &Slot<T>) -> Option<Arc<Compiled<T>>> {
        let version = self.version();
        let mut slot = lock(slot);
        match &*slot {
            Some((of, compiled)) if *of == version => compiled.clone(),
            _ => {
                let plan = Plan::new(&self.0.graph, self.0.output, false).ok();
                let compiled = plan.map(|plan| Arc::new(Compiled::new(plan)));
                *slot = Some((version, compiled.clone()));
                compiled
            }
        }
    }
}

/// One pass of a network over a batch.
struct NetOp<T: Real> {
    net: Arc<Inner>,
    compiled: Arc<Compiled<T>>,
    /// Whether a way back will be asked for.
    taped: bool,
    /// One for each part of the batch.
    tapes: Mutex<Vec<Option<Tape<T>>>>,
}

impl<T: Real> NetOp<T> {
    /// Images of every part of a batch, the last one perhaps less.
    fn part(n: usize) -> usize {
        n.div_ceil(n.div_ceil(IMAGES))
    }

    fn forward(&self, n: usize, x: &[T]) -> Vec<T> {
        let part = Self::part(n);
        let (x_len, y_len) = (x.len() / n, self.net.output().len());
        let mut y = vec![T::ZERO; n * y_len];
        lock(&self.tapes).resize_with(n.div_ceil(part), || None);
        for_each_chunk(&mut y, part * y_len, |i, y| {
            let images = y.len() / y_len;
            let x = &x[i * part * x_len..][..images * x_len];
            let mut tape = self.taped.then(|| self.compiled.tape(images));
            self.compiled.work(images, |work| {
                exec::forward(&self.compiled.plan, work, tape.as_mut(), images, x, y)
            });
            lock(&self.tapes)[i] = tape;
        });
        y
    }

    fn gradient(&self, n: usize, x_len: usize, dy: &[T]) -> Vec<T> {
        let part = Self::part(n);
        let y_len = dy.len() / n;
        let mut dx = vec![T::ZERO; n * x_len];
        for_each_chunk(&mut dx, part * x_len, |i, dx| {
            let images = dx.len() / x_len;
            let dy = &dy[i * part * y_len..][..images * y_len];
            let Some(mut tape) = lock(&self.tapes)[i].take() else {
                return;
            };
            self.compiled.work(images, |work| {
                exec::backward(
                    &self.compiled.plan,
                    work,
                    &mut tape,
                    images,
                    dy,
                    Wanted {
                        dx: Some(dx),
                        sums: None,
                    },
                )
            });
            lock(&self.tapes)[i] = Some(tape);
        });
        dx
    }
}

impl<T: Real> Drop for NetOp<T> {
    fn drop(&mut self) {
        let tapes = std::mem::take(&mut *lock(&self.tapes));
        lock(&self.compiled.tapes).extend(tapes.into_iter().flatten());
    }
}

impl<T: Real> CustomOp1 for NetOp<T> {
    fn name(&self) -> &'static str {
        "net"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let n = layout.dims()[0];
        let y = self.forward(n, slice::<T>(storage, layout)?);
        Ok((stored(y), self.net.output().batch(n)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let n = x.dims()[0];
        let dy = dy.contiguous()?;
        let dx = with_slices([&dy], |[dy]| self.gradient(n, x.elem_count() / n, dy))?;
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

impl Inner {
    /// Shape of the output of one image.
    fn output(&self) -> Output {
        self.graph.0[self.output].output()
    }
}
