//! A network in training that cannot be cut at its norms, because other maps pass by them: residuals, skips. It runs as one
//! operator over the whole batch, segment by segment: each ends where a norm waits for all images. The images of a part stay on
//! one thread, and within a segment those of a group in cache; what is read again in a later segment goes to memory and back.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};

use super::{IMAGES, Room, Rooms, lock};
use crate::kernels::Real;
use crate::kernels::channels::Moments;
use crate::net::exec::{self, Products, Pullback, Scale, Statistics, Sums, Tape, Workspace};
use crate::net::graph::{Entry, Graph, Op, Output};
use crate::net::operators::Number;
use crate::net::plan::Plan;
use crate::ops::adapter::{slice, stored, with_slices};
use crate::threads::for_each_chunk;
use crate::{Param, Pass};

/// A whole graph up to a node.
pub(in crate::net) struct Whole {
    graph: Arc<Graph>,
    output: usize,
    /// Those that are trained, in the order of their nodes.
    params: Vec<Param>,
    f32: Rooms<f32>,
    f64: Rooms<f64>,
}

/// Gradients of a norm's scale and shift, and its way back.
type Finished<T> = ([Vec<T>; 2], Pullback<T>);

impl Whole {
    /// The graph up to `output`; none where dropout needs random numbers.
    pub fn new(graph: &Arc<Graph>, output: usize) -> Option<Self> {
        let needed = graph.needed(output);
        let dropout = |(entry, needed): (&Entry, &bool)| *needed && matches!(entry.op, Op::Dropout(_));
        if graph.0.iter().zip(&needed).any(dropout) {
            return None;
        }
        let params = graph.params(output);
        Some(Self {
            graph: graph.clone(),
            output,
            params: params.into_iter().filter(Param::trainable).collect(),
            f32: Arc::default(),
            f64: Arc::default(),
        })
    }

    /// Outputs for `x` `[N, C, H, W]`, `N` at least 1, for gradients of `x` and of the parameters; none where it must go layer by layer.
    pub fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
        match x.dtype() {
            DType::F32 => self.run(&self.f32, pass, x),
            DType::F64 => self.run(&self.f64, pass, x),
            _ => Ok(None),
        }
    }

    fn run<T: Number>(&self, rooms: &Rooms<T>, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
        let Ok(plan) = Plan::<T>::new(&self.graph, self.output, true) else {
            return Ok(None);
        };
        let by_batch = pass.train || pass.batch_statistics;
        let running = plan.norms().filter(|_| !by_batch);
        let running = running.map(|(_, norm)| Scale::by_running(&norm.layer, plan.values[norm.source].channels()));
        let scales = running.collect::<Result<Vec<_>>>()?;
        let weights = self.params.iter().map(|param| param.tensor(pass).flatten_all());
        let weights = Tensor::cat(&weights.collect::<Result<Vec<_>>>()?, 0)?.to_dtype(x.dtype())?;
        let statistics = Arc::new(Mutex::new(vec![]));
        let layers: Vec<_> = plan.norms().map(|(_, norm)| norm.layer.clone()).collect();
        let op = WholeOp {
            state: Mutex::new(State {
                parts: vec![],
                scales,
                by_batch,
            }),
            plan,
            rooms: rooms.clone(),
            statistics: statistics.clone(),
            output: self.graph.0[self.output].output(),
        };
        let y = x.contiguous()?.apply_op2(&weights, op)?;
        if pass.train {
            let found = std::mem::take(&mut *lock(&statistics));
            found
                .into_iter()
                .zip(&layers)
                .try_for_each(|(found, layer)| found.update(layer))?;
        }
        Ok(Some(y))
    }
}

/// One pass over a batch. The weights are in the plan; as an argument they are there for their gradients.
struct WholeOp<T: Real> {
    plan: Plan<T>,
    rooms: Rooms<T>,
    /// What forward leaves for the way back.
    state: Mutex<State<T>>,
    /// What forward leaves for the running statistics, norm by norm.
    statistics: Arc<Mutex<Vec<Statistics>>>,
    output: Output,
}

struct State<T> {
    parts: Vec<Part<T>>,
    /// One a norm.
    scales: Vec<Scale<T>>,
    by_batch: bool,
}

/// Some images of the batch, on one thread at a time.
struct Part<T> {
    room: Room<T>,
    images: usize,
    moments: Moments,
    products: Products,
    sums: Option<Sums<T>>,
    /// Gradient of the images.
    dx: Vec<T>,
}

impl<T: Real> WholeOp<T> {
    fn part(&self, images: usize) -> Part<T> {
        let mut rooms = lock(&self.rooms);
        let fits = rooms.iter().rposition(|room| room.work.images() >= images);
        let room = fits.map(|i| rooms.swap_remove(i)).unwrap_or_else(|| Room {
            work: Workspace::new(&self.plan, images, true),
            tape: Tape::new(&self.plan, images),
        });
        Part {
            room,
            images,
            moments: Moments::default(),
            products: Products::default(),
            sums: None,
            dx: vec![],
        }
    }

    fn forward(&self, n: usize, x: &[T]) -> Result<Vec<T>> {
        let plan = &self.plan;
        let State {
            parts,
            scales,
            by_batch,
        } = &mut *lock(&self.state);
        parts.extend((0..n).step_by(IMAGES).map(|first| self.part(IMAGES.min(n - first))));
        let x_len = x.len() / n;
        for (k, segment) in plan.segments.iter().enumerate() {
            let next = plan.norm(k + 1).filter(|_| *by_batch);
            let channels = next.map_or(0, |(_, norm)| plan.values[norm.source].channels());
            for_each_chunk(parts, 1, |i, part| {
                let Part {
                    room: Room { work, tape },
                    images: n,
                    moments,
                    ..
                } = &mut part[0];
                *moments = Moments::none(channels);
                for images in segment.images(*n) {
                    if k == 0 {
                        exec::take_in(work, *n, &x[i * IMAGES * x_len..][..*n * x_len], &images);
                    }
                    exec::run(plan, k, scales, work, Some(tape), &images);
                    if let Some((_, norm)) = next {
                        exec::add_moments(norm, work, &images, moments);
                    }
                }
            });
            if let Some((_, norm)) = next {
                let mut all = Moments::none(channels);
                parts.iter().for_each(|part| all.add(&part.moments));
                let (scale, statistics) = Scale::by_batch(&norm.layer, all)?;
                scales.push(scale);
                lock(&self.statistics).push(statistics);
            }
        }
        let y_len = self.output.len();
        let mut y = vec![T::ZERO; n * y_len];
        for_each_chunk(&mut y, IMAGES * y_len, |i, y| {
            exec::give_out(plan, &parts[i].room.work, y.len() / y_len, y);
        });
        Ok(y)
    }

    /// Gradients of the images, if they are wanted, and of the weights.
    fn gradients(&self, n: usize, x_len: usize, dy: &[T], to_images: bool) -> (Vec<T>, Vec<T>) {
        let plan = &self.plan;
        let State { parts, scales, .. } = &mut *lock(&self.state);
        let y_len = dy.len() / n;
        let mut norms: Vec<Option<Finished<T>>> = Vec::new();
        norms.resize_with(scales.len(), || None);
        for (k, segment) in plan.segments.iter().enumerate().rev() {
            // The norm after the segment, whose sums are known by now, and the one it begins with, whose sums are taken.
            let known = plan.norm(k + 1).filter(|(_, norm)| norm.source > 0 || to_images);
            let known = known.and_then(|step| Some((step, &norms[step.1.number].as_ref()?.1)));
            let own = plan.norm(k);
            let channels = own.map_or(0, |(_, norm)| plan.values[norm.source].channels());
            for_each_chunk(parts, 1, |i, part| {
                let Part {
                    room: Room { work, tape },
                    images: n,
                    products,
                    sums,
                    dx,
                    ..
                } = &mut part[0];
                if k + 1 == plan.segments.len() {
                    exec::take_gradient(plan, work, *n, &dy[i * IMAGES * y_len..][..*n * y_len]);
                    *sums = Some(Sums::new(plan));
                    *dx = vec![T::ZERO; if to_images { *n * x_len } else { 0 }];
                }
                *products = Products::none(channels);
                for images in segment.images(*n) {
                    if let Some((step, pullback)) = known {
                        pullback.run(step, &scales[step.1.number], work, tape, &images);
                    }
                    exec::run_back(plan, k, work, tape, sums.as_mut(), &images, to_images);
                    if let Some(step) = own {
                        products.add_images(step, &scales[step.1.number], work, tape, &images);
                    }
                    if k == 0 && to_images {
                        exec::give_gradient(work, *n, dx, &images);
                    }
                }
            });
            if let Some((_, norm)) = own {
                let mut all = Products::none(channels);
                parts.iter().for_each(|part| all.add(&part.products));
                norms[norm.number] = Some(all.finish(&scales[norm.number], norm.layer.channels()));
            }
        }
        let (mut all, mut dx) = (
            Sums::new(plan),
            Vec::with_capacity(if to_images { n * x_len } else { 0 }),
        );
        for part in parts {
            dx.append(&mut part.dx);
            part.sums.take().iter().for_each(|sums| all.add(sums));
        }
        let norms: Vec<_> = norms.into_iter().flatten().map(|(gradients, _)| gradients).collect();
        (dx, all.finish(plan, &norms))
    }
}

impl<T: Real> Drop for WholeOp<T> {
    fn drop(&mut self) {
        let parts = std::mem::take(&mut lock(&self.state).parts);
        lock(&self.rooms).extend(parts.into_iter().map(|part| part.room));
    }
}

impl<T: Real> CustomOp2 for WholeOp<T> {
    fn name(&self) -> &'static str {
        "whole net in training"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let n = layout.dims()[0];
        let y = self.forward(n, slice::<T>(x, layout)?)?;
        Ok((stored(y), self.output.batch(n)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = x.dims()[0];
        let dy = dy.contiguous()?;
        let (dx, dw) = with_slices([&dy], |[dy]| self.gradients(n, x.elem_count() / n, dy, x.track_op()))?;
        let dx = x.track_op().then(|| Tensor::from_vec(dx, x.shape(), &Device::Cpu));
        Ok((dx.transpose()?, Some(Tensor::from_vec(dw, w.shape(), &Device::Cpu)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Route;
    use super::*;
    use crate::{BatchNorm2d, Conv2d, Dropout, Init, NetBuilder, Padding, Weights};

    /// A residual with norms, and `dropout` behind it.
    fn residual(dropout: bool) -> (Arc<Graph>, usize) {
        let (weights, mut net) = (Weights::init(1), NetBuilder::new([8, 6, 6]));
        let init = Init::HeNormal { fan_in: 72 };
        let conv = Conv2d::without_bias(&weights.pp("conv"), [8, 8], 3, 1, Padding::Same, init).unwrap();
        let norms = ["a", "b"].map(|name| BatchNorm2d::new(&weights.pp(name), 8).unwrap());
        let x = net.input();
        let mut y = net.batch_norm(x, &norms[0]).unwrap();
        y = net.relu(y);
        y = net.conv2d(y, &conv).unwrap();
        y = net.batch_norm(y, &norms[1]).unwrap();
        y = net.add(x, y).unwrap();
        if dropout {
            y = net.dropout(y, Dropout::new(0.5, 1));
        }
        net.graph(y)
    }

    #[test]
    fn residuals_with_norms_are_trained_as_a_whole() {
        let (graph, output) = residual(false);
        let Route::Whole(whole) = Route::new(&graph, output) else {
            panic!("another route");
        };
        let x = Tensor::ones((3, 8, 6, 6), DType::F32, &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let y = whole.forward(&Pass::training(0), &x.to_dtype(dtype).unwrap()).unwrap();
            assert_eq!(y.unwrap().dims(), [3, 8, 6, 6]);
        }
        let (graph, output) = residual(true);
        assert!(matches!(Route::new(&graph, output), Route::Layers));
    }

    #[test]
    fn a_pass_gives_its_maps_back() {
        let (graph, output) = residual(false);
        let whole = Whole::new(&graph, output).unwrap();
        let x = Tensor::ones((IMAGES + 1, 8, 6, 6), DType::F32, &Device::Cpu).unwrap();
        let y = whole.forward(&Pass::training(0), &x).unwrap();
        assert_eq!(lock(&whole.f32).len(), 0);
        drop(y);
        assert_eq!(lock(&whole.f32).len(), 2);
    }
}
