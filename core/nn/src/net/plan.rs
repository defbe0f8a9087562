//! The steps that a processor runs, where maps lie, and how gradients go.

use std::ops::Range;

use candle_core::Result;

use super::draft::Drafts;
use super::graph::Graph;
use super::operators::Number;
use super::step::{Norm, Post, Route, Step};
use crate::kernels::Real;
use crate::kernels::conv::Kernel;
use crate::kernels::frame::Frame;

/// Images that pass through the convolutions together at most: enough for whole blocks of tiles (6 maps of 8 x 8 are 24), few
/// enough that what one layer writes is in cache when the next one reads it.
pub(super) const GROUP: usize = 6;

/// Bytes that the largest maps of a group may take where steps wait for whole batches: such steps do little but read and write, and
/// a second-level cache of half a megabyte is to hold what the step before wrote.
const CACHE: usize = 384 << 10;

/// A compiled network with its weights.
pub(super) struct Plan<T> {
    /// In order; a step's inputs come before it.
    pub steps: Vec<Step<T>>,
    /// Layout of every value. Value 0 holds the images.
    pub values: Vec<Frame>,
    pub output: usize,
    /// All steps, in order: two at least. A norm by its batch is the first step of a segment, as it waits for all images.
    pub segments: Vec<Segment>,
}

/// Steps that run one after the other before the next images' turn.
pub(super) struct Segment {
    pub steps: Range<usize>,
    /// Whether images come group by group, as they do before the first fully connected layer, or all at once.
    pub grouped: bool,
    /// Images of a group, [`GROUP`] at most. Part of the result where gradients of weights are summed.
    group: usize,
}

impl Segment {
    /// The images that its steps take together, of `n`.
    pub fn images(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = if self.grouped { self.group } else { n.max(1) };
        (0..n).step_by(step).map(move |first| first..(first + step).min(n))
    }
}

impl<T: Number> Plan<T> {
    /// Compiles the part of the graph that `output` needs. With `weights`, gradients of weights can be found, and norms go by
    /// statistics of the pass; else these are part of the steps.
    pub fn new(graph: &Graph, output: usize, weights: bool) -> Result<Plan<T>> {
        let drafts = Drafts::new(graph, output, weights);
        let borders = drafts.borders(weights);
        let values: Vec<Frame> = drafts
            .shapes
            .iter()
            .zip(borders)
            .map(|(shape, border)| Frame::new(*shape, border))
            .collect();
        let mut plan = Plan {
            steps: vec![],
            values,
            output: drafts.output,
            segments: vec![],
        };
        for draft in &drafts.steps {
            let mut step = draft.step(&plan.values, weights)?;
            if let Step::Norm(norm) = &mut step {
                norm.number = plan.norms().count();
            }
            plan.steps.push(step);
        }
        let linear = drafts.steps.iter().position(|s| s.linear);
        plan.cut(linear.unwrap_or(drafts.steps.len()));
        plan.route();
        Ok(plan)
    }
}

impl<T: Real> Plan<T> {
    /// Norms by statistics of the pass, with the numbers of their steps.
    pub fn norms(&self) -> impl Iterator<Item = (usize, &Norm)> {
        self.steps.iter().enumerate().filter_map(|(i, step)| match step {
            Step::Norm(norm) => Some((i, norm)),
            Step::Conv(_) | Step::Single(_) => None,
        })
    }

    /// The norm that segment `k` begins with.
    pub fn norm(&self, k: usize) -> Option<(usize, &Norm)> {
        let Segment { steps, .. } = self.segments.get(k)?;
        match self.steps.get(steps.start).filter(|_| !steps.is_empty())? {
            Step::Norm(norm) => Some((steps.start, norm)),
            Step::Conv(_) | Step::Single(_) => None,
        }
    }

    /// The segment of a step.
    pub fn segment(&self, step: usize) -> usize {
        let position = self.segments.iter().position(|segment| segment.steps.contains(&step));
        position.unwrap_or(0)
    }

    /// Into segments; steps before `grouped` take images group by group.
    fn cut(&mut self, grouped: usize) {
        let mut cuts: Vec<usize> = self.norms().map(|(i, _)| i).chain([grouped]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let ends = cuts.iter().copied().chain([self.steps.len()]);
        let begins = [0].into_iter().chain(cuts.iter().copied());
        let waits = self.norms().next().is_some();
        let segment = |(begin, end): (usize, usize)| {
            let values = self.steps[begin..end].iter();
            let values = values.flat_map(|step| step.sources().into_iter().chain([step.target()]));
            let largest = values.map(|value| self.values[value].len() * size_of::<T>()).max();
            Segment {
                steps: begin..end,
                grouped: end <= grouped,
                group: match largest {
                    Some(bytes) if waits => (CACHE / bytes).clamp(1, GROUP),
                    _ => GROUP,
                },
            }
        };
        let segments = begins.zip(ends).map(segment).collect();
        self.segments = segments;
    }

    /// Decides how gradients go, from the last step to the first.
    fn route(&mut self) {
        let mut readers = vec![0; self.values.len()];
        readers[self.output] += 1;
        for source in self.steps.iter().flat_map(Step::sources) {
            readers[source] += 1;
        }
        let mut written = vec![false; self.values.len()];
        written[self.output] = true;
        for i in (0..self.steps.len()).rev() {
            let Step::Conv(conv) = &self.steps[i] else {
                let sources = self.steps[i].sources();
                let add: Vec<bool> = sources
                    .iter()
                    .map(|s| std::mem::replace(&mut written[*s], true))
                    .collect();
                match &mut self.steps[i] {
                    Step::Single(single) => single.add = add,
                    Step::Norm(norm) => norm.add = add[0],
                    Step::Conv(_) => {}
                }
                continue;
            };
            let maker = self.steps[..i].iter().position(|s| s.target() == conv.source);
            let direct = maker.filter(|m| readers[conv.source] == 1 && self.takes(*m, &conv.backward));
            let route = match direct {
                Some(maker) => Route::Into(maker),
                None => Route::Value {
                    add: std::mem::replace(&mut written[conv.source], true),
                },
            };
            if let Step::Conv(conv) = &mut self.steps[i] {
                conv.route = route;
            }
            if let Some(Step::Conv(maker)) = direct.map(|m| &mut self.steps[m]) {
                maker.pulled = false;
            }
        }
    }

    /// Whether a kernel can hand its results to what follows a convolution.
    fn takes(&self, maker: usize, kernel: &Kernel<T>) -> bool {
        match &self.steps[maker] {
            Step::Conv(conv) if conv.gradient.narrow => false,
            Step::Conv(conv) if conv.post == Post::Upsample => kernel.blocks(),
            Step::Conv(_) => !kernel.is_narrow(),
            Step::Single(_) | Step::Norm(_) => false,
        }
    }
}
