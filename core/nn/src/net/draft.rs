//! From a graph to steps: what is fused.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::graph::{Graph, Op};
use super::operators::{Affine, Epilogue, Number, Operator, Single, Widen};
use super::step::{Conv, Norm, Post, Route, Step, numbers};
use crate::kernels::Real;
use crate::kernels::conv::Correlation;
use crate::kernels::conv_weights::gradient_border;
use crate::kernels::frame::{Border, Frame, NARROW, PANEL};
use crate::kernels::geometry::Geometry;
use crate::{BatchNorm2d, Param};
/// Steps before their layouts are known.
pub(super) struct Drafts<'a> {
    pub steps: Vec<Draft<'a>>,
    /// Shape of every value.
    pub shapes: Vec<[usize; 3]>,
    pub output: usize,
}

pub(super) struct Draft<'a> {
    pub kind: DraftKind<'a>,
    pub sources: Vec<usize>,
    pub target: usize,
    pub linear: bool,
}

pub(super) enum DraftKind<'a> {
    Conv {
        weight: &'a Param,
        bias: Option<&'a Param>,
        correlation: Correlation,
        norm: Option<&'a BatchNorm2d>,
        post: Post,
    },
    /// A norm that is no part of a convolution, and perhaps `relu`.
    Norm(&'a BatchNorm2d, bool),
    Plain(&'a Arc<dyn Operator>),
    /// A map stored plane by plane, as a vector with channels last.
    Widen,
}

impl<'a> Drafts<'a> {
    /// The steps that `output` needs. With `weights` norms are steps of their own.
    pub fn new(graph: &'a Graph, output: usize, weights: bool) -> Self {
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
                    let (correlation, weight, bias) = match &entry.op {
                        Op::Conv(layer) => (layer.correlation(shape), layer.weight(), layer.bias()),
                        Op::ConvTranspose(layer) => {
                            let [weight, bias] = layer.params();
                            (layer.correlation(shape), weight, Some(bias))
                        }
                        _ => continue,
                    };
                    let Ok(correlation) = correlation else { continue };
                    let (mut last, mut norm) = (i, None);
                    if let Some((n, Op::Norm(layer))) = next(i).map(|n| (n, &graph.0[n].op))
                        && !weights
                    {
                        (last, norm) = (n, Some(layer));
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
                    let (last, post) = match next(i).filter(|n| graph.epilogue(*n) == Some(Epilogue::Relu)) {
                        Some(n) if entry.shape[0] > NARROW => (n, Post::Relu),
                        _ => (i, Post::None),
                    };
                    let [weight, bias] = layer.params();
                    sources = vec![drafts.widened(sources[0])];
                    let kind = DraftKind::Conv {
                        weight,
                        bias: Some(bias),
                        correlation: Correlation::new(Geometry::linear(drafts.shapes[sources[0]], entry.shape[0])),
                        norm: None,
                        post,
                    };
                    (kind, last, true)
                }
                Op::Norm(layer) => {
                    let relu = next(i).filter(|n| graph.epilogue(*n) == Some(Epilogue::Relu));
                    (DraftKind::Norm(layer, relu.is_some()), relu.unwrap_or(i), false)
                }
                Op::Plain(operator) => (DraftKind::Plain(operator), i, false),
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
    pub fn borders(&self, weights: bool) -> Vec<Border> {
        let mut borders = vec![Border::default(); self.shapes.len()];
        for draft in &self.steps {
            if let DraftKind::Conv { correlation, .. } = &draft.kind {
                let border = &mut borders[draft.sources[0]];
                *border = border.union(correlation.border());
                if weights && correlation.transposed {
                    *border = border.union(gradient_border(&correlation.geometry));
                }
            }
        }
        borders
    }
}

impl Graph {
    /// What a convolution can do in place of node `i`.
    fn epilogue(&self, i: usize) -> Option<Epilogue> {
        match &self.0[i].op {
            Op::Plain(operator) => operator.epilogue(),
            _ => None,
        }
    }
}

/// What follows node `last`, the end of a correlation, as far as it can be fused; and where that ends.
fn follow(
    graph: &Graph,
    next: impl Fn(usize) -> Option<usize>,
    last: usize,
    correlation: &Correlation,
) -> (usize, Post) {
    let then = |node: usize| next(node).and_then(|n| Some((n, graph.epilogue(n)?)));
    let [c, ..] = correlation.output();
    if c <= NARROW {
        return (last, Post::None);
    }
    // Results of a transposed convolution do not come in blocks.
    let blocks = !correlation.transposed;
    let Some((relu, Epilogue::Relu)) = then(last) else {
        return match then(last) {
            Some((pool, Epilogue::Pool)) if blocks => (pool, Post::Pool { relu: false }),
            _ => (last, Post::None),
        };
    };
    match then(relu) {
        Some((pool, Epilogue::Pool)) if blocks => (pool, Post::Pool { relu: true }),
        Some((up, Epilogue::Upsample)) if blocks => (up, Post::Upsample),
        _ => (relu, Post::Relu),
    }
}

impl Draft<'_> {
    pub fn step<T: Number>(&self, values: &[Frame], weights: bool) -> Result<Step<T>> {
        let (sources, target) = (self.sources.clone(), self.target);
        match &self.kind {
            DraftKind::Plain(operator) => Ok(Step::Single(Single::new(T::run(operator), sources, target))),
            DraftKind::Widen => Ok(Step::Single(Single::new(Arc::new(Widen), sources, target))),
            DraftKind::Norm(layer, relu) if weights => Ok(Step::Norm(Norm {
                source: sources[0],
                target,
                layer: (*layer).clone(),
                relu: *relu,
                add: false,
                number: 0,
            })),
            DraftKind::Norm(layer, relu) => {
                let (scale, shift) = affine::<T>(layer)?;
                let affine = Affine::new(&values[target], scale, shift, *relu);
                Ok(Step::Single(Single::new(Arc::new(affine), sources, target)))
            }
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
                let mut weight = numbers::<T>(weight)?;
                let biased = bias.is_some();
                let mut bias = match bias {
                    Some(bias) => numbers::<T>(bias)?,
                    None => vec![T::ZERO; correlation.output()[0]],
                };
                if let Some(norm) = norm {
                    fold(norm, correlation, &mut weight, &mut bias)?;
                }
                let border = |border: Border| match (weights, correlation.transposed) {
                    (true, false) => border.union(gradient_border(geometry)),
                    _ => border,
                };
                let [source, target] = [sources[0], target];
                let (back, output) = (correlation.transpose(), correlation.output());
                let gradient = Frame::new(output, border(back.border()));
                bias.resize(output[0].next_multiple_of(PANEL), T::ZERO);
                Ok(Step::Conv(Box::new(Conv {
                    source,
                    target,
                    forward: correlation.kernel(&values[source], &weight),
                    backward: back.kernel(&gradient, &weight),
                    bias,
                    biased,
                    post: *post,
                    result: Frame::new(output, Border::default()),
                    gradient,
                    route: Route::Value { add: false },
                    pulled: true,
                    geometry: *geometry,
                    transposed: correlation.transposed,
                })))
            }
        }
    }
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
