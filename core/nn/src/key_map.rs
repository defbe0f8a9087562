//! Weight files whose tensors have other names, or other orders of axes, than a network's parameters.

use std::cmp::Reverse;

use candle_core::{Device, Result, Tensor, bail};

/// Which tensor of a file is which parameter.
///
/// A `*` stands for any text, the same on both sides: `*` = `module.*` drops a prefix. Exact names go before patterns, long patterns
/// before short ones. What no rule names keeps its name.
#[derive(Clone, Debug, Default)]
pub struct KeyMap(Vec<Rule>);

/// One parameter, or one pattern of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Name of the parameter.
    pub parameter: String,
    /// Name of the tensor in the file.
    pub tensor: String,
    /// Order of the tensor's axes in the parameter; absent: as they are, or transposed where only that fits.
    pub axes: Option<Vec<usize>>,
}

impl KeyMap {
    /// A map of these rules.
    ///
    /// # Errors
    /// Where a pattern stands on one side only, or has two `*`.
    pub fn new(mut rules: Vec<Rule>) -> Result<Self> {
        for rule in &rules {
            let stars = |name: &str| name.matches('*').count();
            if stars(&rule.parameter) != stars(&rule.tensor) || stars(&rule.tensor) > 1 {
                bail!(
                    "'{}' = '{}' in the map: a '*' stands once on both sides or on none",
                    rule.parameter,
                    rule.tensor
                )
            }
        }
        rules.sort_by_key(|rule| (rule.tensor.contains('*'), Reverse(rule.tensor.len())));
        Ok(Self(rules))
    }

    /// The parameter of a tensor, and the rule that says so.
    pub(crate) fn parameter(&self, tensor: &str) -> Option<(String, &Rule)> {
        self.0.iter().find_map(|rule| Some((rule.parameter_of(tensor)?, rule)))
    }

    /// Exact rules.
    pub(crate) fn exact(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().filter(|rule| !rule.tensor.contains('*'))
    }
}

impl Rule {
    fn parameter_of(&self, tensor: &str) -> Option<String> {
        let Some((before, after)) = self.tensor.split_once('*') else {
            return (self.tensor == tensor).then(|| self.parameter.clone());
        };
        let middle = tensor.strip_prefix(before)?.strip_suffix(after)?;
        Some(self.parameter.replacen('*', middle, 1))
    }
}

/// The order of axes in which weights of TensorFlow, Keras and Flax lie as PyTorch has them: `[in, out]` and `[rows, columns, in, out]`.
pub(crate) fn usual_axes(rank: usize) -> Option<&'static [usize]> {
    match rank {
        2 => Some(&[1, 0]),
        4 => Some(&[3, 2, 0, 1]),
        _ => None,
    }
}

/// A shape with its axes in another order; none where `axes` is no order of them.
pub(crate) fn reordered(shape: &[usize], axes: &[usize]) -> Option<Vec<usize>> {
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    let complete = sorted.iter().copied().eq(0..shape.len());
    complete.then(|| axes.iter().map(|axis| shape[*axis]).collect())
}

/// Values with their axes in another order.
pub(crate) fn reorder(values: &[f32], shape: &[usize], axes: &[usize]) -> Result<Vec<f32>> {
    Tensor::from_slice(values, shape, &Device::Cpu)?
        .permute(axes)?
        .flatten_all()?
        .to_vec1()
}
