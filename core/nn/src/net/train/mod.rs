//! A network in training: the layers between its norms and dropouts run as one operator each, with gradients of images and
//! weights from maps that stay in the kernels' own layout.
//!
//! Norms by batch statistics and dropout see a whole batch, so the graph is cut at them; a graph in which other maps pass by norms
//! (a residual, a skip) is not cut but runs [as a whole](whole). Weights come as one vector, which candle cuts into their gradients.

mod whole;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};

use super::compose;
use super::exec::{self, Sums, Tape, Wanted, Workspace};
use super::graph::{Entry, Graph, Op, Output};
use super::operators::Number;
use super::plan::Plan;
use crate::kernels::Real;
use crate::ops::adapter::{slice, stored, with_slices};
use crate::threads::for_each_chunk;
use crate::{Param, Pass};

pub(super) use whole::Whole;

/// How a network is trained.
pub(super) enum Route {
    /// Piece after piece.
    Pieces(Vec<Piece>),
    Whole(Box<Whole>),
    /// Layer by layer.
    Layers,
}

impl Route {
    /// The one for the graph up to `output`.
    pub fn new(graph: &Arc<Graph>, output: usize) -> Self {
        match Piece::all(graph, output) {
            Some(pieces) => Route::Pieces(pieces),
            None => Whole::new(graph, output).map_or(Route::Layers, |whole| Route::Whole(Box::new(whole))),
        }
    }

    /// Outputs for `x` `[N, C, H, W]`, `N` at least 1; none where it must go layer by layer.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
        match self {
            Route::Pieces(pieces) => (pieces.iter())
                .try_fold(x.clone(), |x, piece| piece.forward(pass, &x))
                .map(Some),
            Route::Whole(whole) => whole.forward(pass, x),
            Route::Layers => Ok(None),
        }
    }
}

/// Images that one thread takes at a time. Part of the result: sums of weights' gradients are added in this order.
const IMAGES: usize = 16;

/// Maps and marks of some images on their way through a piece, from forward to back.
struct Room<T> {
    work: Workspace<T>,
    tape: Tape<T>,
}

/// Those that passes leave for later ones: they fit any weights.
type Rooms<T> = Arc<Mutex<Vec<Room<T>>>>;

/// A part of a network.
pub(super) enum Piece {
    Fused(Box<Fused>),
    /// A single layer: a norm, dropout, or what no convolution takes along, which is faster by itself.
    Layer(Op),
}

/// Layers that run as one.
pub(super) struct Fused {
    graph: Graph,
    output: usize,
    params: Vec<Param>,
    f32: Rooms<f32>,
    f64: Rooms<f64>,
}

impl Piece {
    /// The parts of the graph up to `output`, one after the other; none where it cannot be cut.
    fn all(graph: &Graph, output: usize) -> Option<Vec<Piece>> {
        let needed = graph.needed(output);
        let last_reader = |node: usize| {
            let reads = |i: &usize| needed[*i] && graph.0[*i].inputs.contains(&node);
            (node + 1..=output).rev().find(reads)
        };
        let (mut pieces, mut from) = (vec![], 0);
        for i in (1..=output).filter(|i| needed[*i]) {
            let (Op::Norm(_) | Op::Dropout(_)) = &graph.0[i].op else {
                continue;
            };
            let input = graph.0[i].inputs[0];
            // Nothing but this node's input may be of use from here on.
            if (0..i).any(|node| needed[node] && last_reader(node) > Some(if node == input { i } else { i - 1 })) {
                return None;
            }
            pieces.extend(Self::between(graph, from, input));
            pieces.push(Piece::Layer(graph.0[i].op.clone()));
            from = i;
        }
        pieces.extend(Self::between(graph, from, output));
        Some(pieces)
    }

    /// The layers after node `from` that `to` needs: element by element as long as no convolution comes, then as one.
    fn between(graph: &Graph, mut from: usize, to: usize) -> Vec<Piece> {
        let needed = graph.needed(to);
        let mut pieces = vec![];
        while from != to {
            let mut readers = (from + 1..=to).filter(|i| needed[*i] && graph.0[*i].inputs.contains(&from));
            let (Some(only), None) = (readers.next(), readers.next()) else {
                break;
            };
            match &graph.0[only] {
                Entry {
                    op: op @ (Op::Plain(_) | Op::Flatten),
                    inputs,
                    ..
                } if inputs.len() == 1 => pieces.push(Piece::Layer(op.clone())),
                _ => break,
            }
            from = only;
        }
        if from != to {
            pieces.push(Piece::Fused(Box::new(Fused::between(graph, from, to))));
        }
        pieces
    }

    /// What it makes of `x` `[N, ...]`, for gradients of `x` and of its parameters.
    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        match self {
            Piece::Layer(op) => compose::layer(op, pass, &[x]),
            Piece::Fused(fused) => fused.forward(pass, x),
        }
    }
}

impl Fused {
    /// The layers after node `from` that `to` needs, as a graph of their own.
    fn between(graph: &Graph, from: usize, to: usize) -> Fused {
        let needed = graph.needed(to);
        let mut number = vec![0; to + 1];
        let mut entries = vec![Entry {
            op: Op::Input,
            inputs: vec![],
            shape: graph.0[from].shape,
            flat: false,
        }];
        for i in (from + 1..=to).filter(|i| needed[*i]) {
            number[i] = entries.len();
            let entry = graph.0[i].clone();
            let inputs = entry.inputs.iter().map(|input| number[*input]).collect();
            entries.push(Entry { inputs, ..entry });
        }
        let (graph, output) = (Graph(entries), number[to]);
        Fused {
            params: graph.params(output),
            graph,
            output,
            f32: Arc::default(),
            f64: Arc::default(),
        }
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let [c, h, w] = self.graph.0[0].shape;
        let x = x.contiguous()?.reshape((x.dim(0)?, c, h, w))?;
        match x.dtype() {
            DType::F32 => self.run(&self.f32, pass, &x),
            DType::F64 => self.run(&self.f64, pass, &x),
            _ => compose::forward(&self.graph, self.output, pass, &x),
        }
    }

    fn run<T: Number>(&self, rooms: &Rooms<T>, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let plan = match self.params.is_empty() {
            true => None,
            false => Plan::<T>::new(&self.graph, self.output, true).ok(),
        };
        let Some(plan) = plan else {
            return compose::forward(&self.graph, self.output, pass, x);
        };
        let weights = self.params.iter().map(|param| param.tensor(pass).flatten_all());
        let weights = Tensor::cat(&weights.collect::<Result<Vec<_>>>()?, 0)?;
        let op = FusedOp {
            plan,
            rooms: rooms.clone(),
            parts: Mutex::default(),
            output: self.graph.0[self.output].output(),
        };
        x.apply_op2(&weights, op)
    }
}

/// One pass of a piece over a batch. The weights are in the plan; as an argument they are there for their gradients.
struct FusedOp<T: Real> {
    plan: Plan<T>,
    rooms: Rooms<T>,
    /// What each part of the batch left for its way back.
    parts: Mutex<Vec<Option<Room<T>>>>,
    output: Output,
}

impl<T: Real> FusedOp<T> {
    fn room(&self, images: usize) -> Room<T> {
        let mut rooms = lock(&self.rooms);
        let fits = rooms.iter().rposition(|room| room.work.images() >= images);
        match fits.map(|i| rooms.swap_remove(i)) {
            Some(room) => room,
            None => Room {
                work: Workspace::new(&self.plan, images, true),
                tape: Tape::new(&self.plan, images),
            },
        }
    }

    fn forward(&self, n: usize, x: &[T]) -> Vec<T> {
        let (x_len, y_len) = (x.len() / n.max(1), self.output.len());
        let mut y = vec![T::ZERO; n * y_len];
        lock(&self.parts).resize_with(n.div_ceil(IMAGES), || None);
        for_each_chunk(&mut y, IMAGES * y_len, |i, y| {
            let images = y.len() / y_len;
            let x = &x[i * IMAGES * x_len..][..images * x_len];
            let mut room = self.room(images);
            exec::forward(&self.plan, &mut room.work, Some(&mut room.tape), images, x, y);
            lock(&self.parts)[i] = Some(room);
        });
        y
    }

    /// Gradients of the images, if they are wanted, and of the weights.
    fn gradients(&self, n: usize, x_len: usize, dy: &[T], images: bool) -> (Vec<T>, Vec<T>) {
        let y_len = dy.len() / n.max(1);
        let mut found: Vec<(Vec<T>, Option<Sums<T>>)> = Vec::new();
        found.resize_with(n.div_ceil(IMAGES), || (vec![], None));
        for_each_chunk(&mut found, 1, |i, found| {
            let Some(mut room) = lock(&self.parts)[i].take() else {
                return;
            };
            let count = IMAGES.min(n - i * IMAGES);
            let dy = &dy[i * IMAGES * y_len..][..count * y_len];
            let (mut dx, mut sums) = (
                vec![T::ZERO; if images { count * x_len } else { 0 }],
                Sums::new(&self.plan),
            );
            let wanted = Wanted {
                dx: images.then_some(dx.as_mut_slice()),
                sums: Some(&mut sums),
            };
            exec::backward(&self.plan, &mut room.work, &mut room.tape, count, dy, wanted);
            lock(&self.parts)[i] = Some(room);
            found[0] = (dx, Some(sums));
        });
        let mut dx = Vec::with_capacity(if images { n * x_len } else { 0 });
        let mut all = Sums::new(&self.plan);
        for (part, sums) in found {
            dx.extend(part);
            sums.iter().for_each(|sums| all.add(sums));
        }
        (dx, all.finish(&self.plan, &[]))
    }
}

impl<T: Real> Drop for FusedOp<T> {
    fn drop(&mut self) {
        let parts = std::mem::take(&mut *lock(&self.parts));
        lock(&self.rooms).extend(parts.into_iter().flatten());
    }
}

impl<T: Real> CustomOp2 for FusedOp<T> {
    fn name(&self) -> &'static str {
        "net in training"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let n = layout.dims()[0];
        let y = self.forward(n, slice::<T>(x, layout)?);
        Ok((stored(y), self.output.batch(n)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = x.dims()[0];
        let dy = dy.contiguous()?;
        let (dx, dw) = with_slices([&dy], |[dy]| {
            self.gradients(n, x.elem_count() / n.max(1), dy, x.track_op())
        })?;
        let dx = x.track_op().then(|| Tensor::from_vec(dx, x.shape(), &Device::Cpu));
        Ok((dx.transpose()?, Some(Tensor::from_vec(dw, w.shape(), &Device::Cpu)?)))
    }
}

fn lock<P>(mutex: &Mutex<P>) -> MutexGuard<'_, P> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
