//! ONNX's own test cases: a folder with `model.onnx` and, in `test_data_set_0`, inputs and the outputs they give.

use std::path::Path;

use advae_sdk::candle_core::{DType, Result, Tensor, bail};
use advae_sdk::nn::{GradcheckOptions, gradcheck};
use advae_sdk::prelude::*;
use prost::Message;

use crate::graph::Graph;
use crate::layers::Layers;
use crate::proto::{ModelProto, TensorProto};
use crate::tensor::{read, types};

/// What came of a case.
#[derive(Debug)]
pub enum Outcome {
    /// Its outputs are right, and its gradient is its differences', where there is one.
    Passed {
        /// Largest relative error of the gradient; absent where the input is no place of a derivative.
        gradient: Option<f64>,
    },
    /// It is not read here, and the message says why.
    Refused(String),
    /// It gives something else.
    Failed(String),
}

/// Runs a case: its first input of floats is the images, the others are constants.
pub fn run(case: &Path) -> Outcome {
    match prepare(case) {
        Err(e) => Outcome::Refused(crate::model::plain(&e)),
        Ok(prepared) => compare(&prepared).unwrap_or_else(|e| Outcome::Failed(crate::model::plain(&e))),
    }
}

struct Prepared {
    graphs: Vec<Graph>,
    x: Tensor,
    expected: Vec<Tensor>,
}

fn prepare(case: &Path) -> Result<Prepared> {
    let data = case.join("test_data_set_0");
    let load = |name: String| -> Result<Option<TensorProto>> {
        let path = data.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => match TensorProto::decode(bytes.as_slice()) {
                Ok(tensor) => Ok(Some(tensor)),
                Err(e) => bail!("'{}' is no tensor: {e}", path.display()),
            },
            Err(_) => Ok(None),
        }
    };
    let file = case.join("model.onnx");
    let bytes = std::fs::read(&file)?;
    let Ok(mut model) = ModelProto::decode(bytes.as_slice()) else {
        bail!("'{}' is no model", file.display())
    };
    let Some(graph) = model.graph.as_mut() else {
        bail!("'{}' holds no graph", file.display())
    };
    let known: Vec<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let open: Vec<String> = (graph.input.iter().map(|i| i.name.clone()))
        .filter(|name| !known.contains(name))
        .collect();
    let (mut x, mut image) = (None, None);
    for (i, name) in open.into_iter().enumerate() {
        let Some(tensor) = load(format!("input_{i}.pb"))? else {
            bail!("there is no input number {i}")
        };
        if x.is_none() && types::is_float(tensor.data_type) {
            x = Some(read(&tensor)?);
            image = Some(name);
            continue;
        }
        graph.initializer.push(TensorProto { name, ..tensor });
    }
    let Some(x) = x else { bail!("it has no input of floats") };
    graph.input.retain(|input| Some(&input.name) == image.as_ref());
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let bytes = model.encode_to_vec();
    let (mut graphs, mut expected) = (vec![], vec![]);
    for (i, name) in outputs.iter().enumerate() {
        let Some(tensor) = load(format!("output_{i}.pb"))? else {
            continue;
        };
        expected.push(read(&tensor)?);
        graphs.push(Graph::read(&bytes, Some(name))?);
    }
    Ok(Prepared { graphs, x, expected })
}

fn compare(prepared: &Prepared) -> Result<Outcome> {
    let Prepared { graphs, x, expected } = prepared;
    let mut gradient = None;
    for (graph, expected) in graphs.iter().zip(expected) {
        let layers = Layers::new(graph, &Weights::own().with_dtype(DType::F64))?;
        let f = |x: &Tensor| Ok(layers.run(&Pass::eval(), x, &[graph.output])?.swap_remove(0));
        let y = f(x)?;
        if y.dims() != expected.dims() {
            return Ok(Outcome::Failed(format!(
                "shape {:?}, expected {:?}",
                y.dims(),
                expected.dims()
            )));
        }
        let numbers = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let (y, expected) = (numbers(&y)?, numbers(expected)?);
        let apart = |(a, b): (&f64, &f64)| match (a == b || a.is_nan() && b.is_nan(), a.is_nan() || b.is_nan()) {
            (true, _) => 0.,
            (_, true) => f64::INFINITY,
            _ => (a - b).abs() / b.abs().max(1.),
        };
        let apart = y.iter().zip(&expected).map(apart).fold(0f64, f64::max);
        // Their outputs were computed in f32.
        if apart > 1e-3 {
            return Ok(Outcome::Failed(format!("an output is off by {apart:.2e}")));
        }
        // Some cases hold what was in memory.
        if numbers(x)?.iter().any(|v| v.abs() > 1e6) {
            continue;
        }
        let options = GradcheckOptions {
            directions: Some(4),
            step: 1e-6,
            ..Default::default()
        };
        if let Ok(report) = gradcheck(f, x, &options)
            && report.max_relative_error.is_finite()
        {
            gradient = Some(gradient.unwrap_or(0f64).max(report.max_relative_error));
        }
    }
    Ok(Outcome::Passed { gradient })
}
