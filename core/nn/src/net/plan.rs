//! From a graph to the steps that a processor runs: what is fused, where maps lie, how gradients go.

use candle_core::{Result, Tensor, bail};

use super::graph::{Graph, Op};
use super::single::Single;
use crate::kernels::Real;
use crate::kernels::conv::{Correlation, Kernel};
use crate::kernels::conv_weights::gradient_border;
use crate::kernels::frame::{Border, Frame, NARROW, PANEL};
use crate::kernels::geometry::Geometry;
use crate::{BatchNorm2d, Param};

/// A compiled network with its weights.
pub(super) struct Plan<T> {
    /// In order; a step's inputs come before it.
    pub steps: Vec<Step<T>>,
    /// Layout of every value. Value 0 holds the images.
    pub values: Vec<Frame>,
    pub output: usize,
    /// Steps that are run group by group: those before the first fully connected layer.
    pub grouped: usize,
    /// Values that steps of both kinds touch, or that are read from outside.
    pub shared: Vec<bool>,
}

/// One step.
pub(super) enum Step<T> {
    Conv(Box<Conv<T>>),
    Single(Single<T>),
}

/// A convolution or fully connected layer, with the norm before and what follows.
pub(super) struct Conv<T> {
    pub source: usize,
    pub target: usize,
    pub forward: Kernel<T>,
    pub backward: Kernel<T>,
    /// As long as the stored channels.
    pub bias: Vec<T>,
    pub post: Post,
    /// Layout of the result before `post`, without a border: what marks are kept for.
    pub result: Frame,
    /// Layout of that result's gradient.
    pub gradient: Frame,
    pub route: Route,
    /// Whether the gradient of what it made comes by the value, not straight from the step that reads it.
    pub pulled: bool,
    /// Its shape.
    pub geometry: Geometry,
}

/// What follows a convolution in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Post {
    None,
    Relu,
    /// Pooling of 2 x 2, after `relu` or not.
    Pool {
        relu: bool,
    },
    /// `relu`, then upsampling by 2.
    Upsample,
}

/// Where a step sends the gradient of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Through what follows the convolution of step `.0`, which made the input for this step alone.
    Into(usize),
    /// To the gradient of the value: written, or added to what later steps wrote.
    Value { add: bool },
}

impl<T> Step<T> {
    /// Values it reads.
    pub fn sources(&self) -> Vec<usize> {
        match self {
            Step::Conv(conv) => vec![conv.source],
            Step::Single(single) => single.sources.clone(),
        }
    }

    /// The value it writes.
    pub fn target(&self) -> usize {
        match self {
            Step::Conv(conv) => conv.target,
            Step::Single(single) => single.target,
        }
    }
}

impl<T: Real> Plan<T> {
    /// Compiles the part of the graph that `output` needs. With `weights`, gradients lie as those of weights need them.
    pub fn new(graph: &Graph, output: usize, weights: bool) -> Result<Plan<T>> {
        let drafts = Drafts::new(graph, output);
        let borders = drafts.borders();
        let values: Vec<Frame> = drafts
            .shapes
            .iter()
            .zip(borders)
            .map(|(shape, border)| Frame::new(*shape, border))
            .collect();
        let mut plan = Plan {
            grouped: drafts.steps.iter().position(|s| s.linear).unwrap_or(drafts.steps.len()),
            steps: vec![],
            values,
            output: drafts.output,
            shared: vec![],
        };
        for draft in &drafts.steps {
            let step = draft.step(&plan.values, weights)?;
            plan.steps.push(step);
        }
        plan.route();
        plan.share();
        Ok(plan)
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
                let add = sources
                    .iter()
                    .map(|s| std::mem::replace(&mut written[*s], true))
                    .collect();
                if let Step::Single(single) = &mut self.steps[i] {
                    single.add = add;
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
            Step::Single(_) => false,
        }
    }

    fn share(&mut self) {
        let mut touched = vec![[false; 2]; self.values.len()];
        for (i, step) in self.steps.iter().enumerate() {
            let side = usize::from(i >= self.grouped);
            for value in step.sources().into_iter().chain([step.target()]) {
                touched[value][side] = true;
            }
        }
        self.shared = touched.iter().map(|[a, b]| *a && *b).collect();
        self.shared[self.output] = true;
        self.shared[0] |= self.grouped == 0;
    }
}

/// Steps before their layouts are known.
struct Drafts<'a> {
    steps: Vec<Draft<'a>>,
    /// Shape of every value.
    shapes: Vec<[usize; 3]>,
    output: usize,
}

struct Draft<'a> {
    kind: DraftKind<'a>,
    sources: Vec<usize>,
    target: usize,
    linear: bool,
}

enum DraftKind<'a> {
    Conv {
        weight: &'a Param,
        bias: &'a Param,
        correlation: Correlation,
        norm: Option<&'a BatchNorm2d>,
        post: Post,
    },
    Single(&'a Op),
    /// A map stored plane by plane, as a vector with channels last.
    Widen,
}

impl<'a> Drafts<'a> {
    fn new(graph: &'a Graph, output: usize) -> Self {
        let needed = graph.needed(output);
        let readers = |node: usize| {
            let inputs = graph
                .0
                .iter()
                .zip(&needed)
                .filter(|(_, n)| **n)
                .flat_map(|(e, _)| &e.inputs);
            inputs.filter(|i| **i == node).count() + usize::from(node == output)
        };
        // The only reader of a node.
        let next = |node: usize| match readers(node) {
            1 => (node + 1..=output).find(|i| needed[*i] && graph.0[*i].inputs == [node]),
            _ => None,
        };
        let mut drafts = Drafts {
            steps: vec![],
            shapes: vec![],
            output: 0,
        };
        // The value of every node.
        let mut value = vec![None; output + 1];
        for (i, entry) in graph.0.iter().enumerate().take(output + 1) {
            if !needed[i] || value[i].is_some() {
                continue;
            }
            let mut sources: Vec<usize> = entry.inputs.iter().filter_map(|i| value[*i]).collect();
            let (kind, last, linear) = match &entry.op {
                Op::Input => {
                    value[i] = Some(drafts.value(entry.shape));
                    continue;
                }
                // In evaluation these are their inputs.
                Op::Dropout(_) | Op::Flatten => {
                    value[i] = sources.first().copied();
                    continue;
                }
                Op::Conv(_) | Op::ConvTranspose(_) => {
                    let shape = graph.0[entry.inputs[0]].shape;
                    let (correlation, [weight, bias]) = match &entry.op {
                        Op::Conv(layer) => (layer.correlation(shape), layer.params()),
                        Op::ConvTranspose(layer) => (layer.correlation(shape), layer.params()),
                        _ => continue,
                    };
                    let Ok(correlation) = correlation else { continue };
                    let (mut last, mut norm) = (i, None);
                    if let Some(Op::Norm(layer)) = next(i).map(|n| &graph.0[n].op) {
                        (last, norm) = (next(i).unwrap_or(i), Some(layer));
                    }
                    let (last, post) = follow(graph, next, last, &correlation);
                    let kind = DraftKind::Conv {
                        weight,
                        bias,
                        correlation,
                        norm,
                        post,
                    };
                    (kind, last, false)
                }
                Op::Linear(layer) => {
                    let (last, post) = match next(i).map(|n| (n, &graph.0[n].op)) {
                        Some((n, Op::Relu)) if entry.shape[0] > NARROW => (n, Post::Relu),
                        _ => (i, Post::None),
                    };
                    let [weight, bias] = layer.params();
                    sources = vec![drafts.widened(sources[0])];
                    let kind = DraftKind::Conv {
                        weight,
                        bias,
                        correlation: Correlation::new(Geometry::linear(drafts.shapes[sources[0]], entry.shape[0])),
                        norm: None,
                        post,
                    };
                    (kind, last, true)
                }
                op => (DraftKind::Single(op), i, false),
            };
            let target = drafts.value(graph.0[last].shape);
            drafts.push(kind, sources, target, linear);
            // Only nodes of one chain are fused, each the reader of the one before.
            let mut node = Some(i);
            while let Some(n) = node {
                value[n] = Some(target);
                node = if n == last { None } else { next(n) };
            }
        }
        drafts.output = value[output].unwrap_or(0);
        drafts
    }

    fn value(&mut self, shape: [usize; 3]) -> usize {
        self.shapes.push(shape);
        self.shapes.len() - 1
    }

    fn push(&mut self, kind: DraftKind<'a>, sources: Vec<usize>, target: usize, linear: bool) {
        self.steps.push(Draft {
            kind,
            sources,
            target,
            linear,
        });
    }

    /// The value itself, or a vector of it where it is stored plane by plane.
    fn widened(&mut self, value: usize) -> usize {
        let [c, h, w] = self.shapes[value];
        if c > NARROW || c * h * w <= NARROW {
            return value;
        }
        let wide = self.value([c * h * w, 1, 1]);
        self.push(DraftKind::Widen, vec![value], wide, true);
        wide
    }

    /// The border that each value's readers need.
    fn borders(&self) -> Vec<Border> {
        let mut borders = vec![Border::default(); self.shapes.len()];
        for draft in &self.steps {
            if let DraftKind::Conv { correlation, .. } = &draft.kind {
                let source = draft.sources[0];
                borders[source] = borders[source].union(correlation.border());
            }
        }
        borders
    }
}

/// What follows node `last`, the end of a correlation, as far as it can be fused; and where that ends.
fn follow(
    graph: &Graph,
    next: impl Fn(usize) -> Option<usize>,
    last: usize,
    correlation: &Correlation,
) -> (usize, Post) {
    let op = |node: Option<usize>| node.map(|n| (n, &graph.0[n].op));
    let [c, ..] = correlation.output();
    if c <= NARROW {
        return (last, Post::None);
    }
    // Results of a transposed convolution do not come in blocks.
    let blocks = !correlation.transposed;
    let Some((relu, Op::Relu)) = op(next(last)) else {
        return match op(next(last)) {
            Some((pool, Op::MaxPool(2))) if blocks => (pool, Post::Pool { relu: false }),
            _ => (last, Post::None),
        };
    };
    match op(next(relu)) {
        Some((pool, Op::MaxPool(2))) if blocks => (pool, Post::Pool { relu: true }),
        Some((up, Op::Upsample(2))) if blocks => (up, Post::Upsample),
        _ => (relu, Post::Relu),
    }
}

impl Draft<'_> {
    fn step<T: Real>(&self, values: &[Frame], weights: bool) -> Result<Step<T>> {
        let (sources, target) = (self.sources.clone(), self.target);
        let op = match &self.kind {
            DraftKind::Single(op) => *op,
            DraftKind::Widen => return Ok(Step::Single(Single::widen(sources, target))),
            DraftKind::Conv {
                weight,
                bias,
                correlation,
                norm,
                post,
            } => {
                let geometry = &correlation.geometry;
                if geometry.c_out <= NARROW && geometry.c_in <= NARROW && !geometry.dense() {
                    bail!("few channels at a stride are computed layer by layer");
                }
                if weights && correlation.transposed {
                    bail!("weights of transposed convolutions are trained layer by layer");
                }
                let (mut weight, mut bias) = (numbers::<T>(weight)?, numbers::<T>(bias)?);
                if let Some(norm) = norm {
                    fold(norm, correlation, &mut weight, &mut bias)?;
                }
                return Ok(Step::Conv(Box::new(conv(
                    correlation,
                    weight,
                    bias,
                    values,
                    [sources[0], target],
                    *post,
                    weights,
                ))));
            }
        };
        let affine = match op {
            Op::Norm(norm) => Some(affine::<T>(norm)?),
            _ => None,
        };
        match Single::new(op, affine, sources, target) {
            Some(single) => Ok(Step::Single(single)),
            None => bail!("{op:?} is no step of its own"),
        }
    }
}

fn conv<T: Real>(
    correlation: &Correlation,
    weight: Vec<T>,
    mut bias: Vec<T>,
    values: &[Frame],
    [source, target]: [usize; 2],
    post: Post,
    weights: bool,
) -> Conv<T> {
    let (back, output) = (correlation.transpose(), correlation.output());
    let border = match weights {
        true => back.border().union(gradient_border(&correlation.geometry)),
        false => back.border(),
    };
    let gradient = Frame::new(output, border);
    bias.resize(output[0].next_multiple_of(PANEL), T::ZERO);
    Conv {
        source,
        target,
        forward: correlation.kernel(&values[source], &weight),
        backward: back.kernel(&gradient, &weight),
        bias,
        post,
        result: Frame::new(output, Border::default()),
        gradient,
        route: Route::Value { add: false },
        pulled: true,
        geometry: correlation.geometry,
    }
}

/// The values of a parameter.
pub(super) fn numbers<T: Real>(param: &Param) -> Result<Vec<T>> {
    let tensor: Tensor = param.var().as_detached_tensor();
    tensor.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()
}

/// Scale and shift of every channel in evaluation.
fn affine<T: Real>(norm: &BatchNorm2d) -> Result<(Vec<T>, Vec<T>)> {
    let [scale, shift] = norm.affine(&crate::Pass::eval())?;
    let numbers = |t: Tensor| t.to_dtype(T::DTYPE)?.to_vec1::<T>();
    Ok((numbers(scale)?, numbers(shift)?))
}

/// Makes a norm part of the convolution before it.
fn fold<T: Real>(norm: &BatchNorm2d, correlation: &Correlation, weight: &mut [T], bias: &mut [T]) -> Result<()> {
    let (scale, shift) = affine::<T>(norm)?;
    // The weights of one channel of the output, one run of them after the other.
    let run = match correlation.transposed {
        true => correlation.geometry.taps(),
        false => weight.len() / bias.len().max(1),
    };
    for (weights, scale) in weight.chunks_exact_mut(run.max(1)).zip(scale.iter().cycle()) {
        weights.iter_mut().for_each(|w| *w *= *scale);
    }
    for (bias, (scale, shift)) in bias.iter_mut().zip(scale.iter().zip(&shift)) {
        *bias = *bias * *scale + *shift;
    }
    Ok(())
}
