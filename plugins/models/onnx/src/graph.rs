//! A file as a graph: nodes in order, constants, one input of images and one output.

use std::collections::{BTreeSet, HashMap};

use advae_sdk::candle_core::{Result, Tensor, bail};
use prost::Message;

use crate::ops::{self, Call};
use crate::proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::room::{self, Room};
use crate::tensor::{read, types};

/// A constant of a node.
#[derive(Clone, Debug)]
pub enum Attribute {
    Float(f64),
    Int(i64),
    Text(String),
    Tensor(Tensor),
    Floats(Vec<f64>),
    Ints(Vec<i64>),
    /// Of a kind that no operator here reads, such as a graph.
    Other,
}

/// An operator between values.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does, `Conv`.
    pub op: String,
    /// Its name in the file, else that of its output.
    pub name: String,
    /// Values; none where an optional input is left out.
    pub inputs: Vec<Option<usize>>,
    /// Values; none where an optional output is left out.
    pub outputs: Vec<Option<usize>>,
    /// Version of ONNX's own operators.
    pub opset: i64,
    attributes: HashMap<String, Attribute>,
}

impl Node {
    /// `Conv 'layer1.conv'`, for messages.
    pub fn label(&self) -> String {
        format!("{} '{}'", self.op, self.name)
    }

    /// An attribute, if it is there.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.get(name)
    }

    /// A whole number, or its default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.attributes.get(name) {
            Some(Attribute::Int(v)) => *v,
            _ => default,
        }
    }

    /// A number, or its default.
    pub fn float(&self, name: &str, default: f64) -> f64 {
        match self.attributes.get(name) {
            Some(Attribute::Float(v)) => *v,
            _ => default,
        }
    }

    /// Whole numbers, if they are there.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// Numbers, if they are there.
    pub fn floats(&self, name: &str) -> Option<&[f64]> {
        match self.attributes.get(name) {
            Some(Attribute::Floats(v)) => Some(v),
            _ => None,
        }
    }

    /// A text, or its default.
    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        match self.attributes.get(name) {
            Some(Attribute::Text(v)) => v,
            _ => default,
        }
    }
}

/// The one input.
#[derive(Clone, Debug)]
pub struct Input {
    pub value: usize,
    pub name: String,
    /// Sizes of the axes, the batch's first; none where a size is free. Absent where the file says nothing.
    pub dims: Option<Vec<Option<usize>>>,
}

/// What a file computes.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Nodes, each after those whose outputs it reads.
    pub nodes: Vec<Node>,
    /// Name of every value.
    pub names: Vec<String>,
    /// Values that are the same for all images, numbers with a point in `f64`.
    pub constants: HashMap<usize, Tensor>,
    pub input: Input,
    pub output: usize,
    /// Elements that all values of an image may have together.
    pub work: usize,
    /// What was left out of the file, for the reader of results.
    pub notes: Vec<String>,
}

impl Graph {
    /// Reads a file's bytes; `output` names one of its outputs, absent: the first.
    ///
    /// # Errors
    /// Where they are no ONNX file, a constant is damaged, an operator is missing here (all of them are named), or there is not
    /// exactly one input.
    pub fn read(bytes: &[u8], output: Option<&str>) -> Result<Graph> {
        let model = match ModelProto::decode(bytes) {
            Ok(model) => model,
            Err(e) => bail!("it is no ONNX file, or a damaged one ({e}): torch.onnx.export writes such files"),
        };
        let Some(proto) = &model.graph else {
            bail!("it is no ONNX file: it holds no graph; torch.onnx.export writes one")
        };
        let opset = (model.opset_import.iter())
            .filter(|o| is_onnx(&o.domain))
            .map(|o| o.version)
            .max();
        let Some(opset) = opset else {
            bail!("the file does not say which version of ONNX's operators it means (opset_import): export it anew")
        };
        let mut reader = Reader::default();
        let mut constants = HashMap::new();
        for tensor in &proto.initializer {
            constants.insert(reader.value(&tensor.name), read(tensor)?);
        }
        let input = reader.input(proto, &constants)?;
        let nodes: Vec<Node> = (proto.node.iter())
            .map(|node| reader.node(node, opset))
            .collect::<Result<_>>()?;
        let found = match output {
            None => proto.output.first(),
            Some(name) => proto.output.iter().find(|o| o.name == name),
        };
        let Some(found) = found else {
            let known: Vec<&str> = proto.output.iter().map(|o| o.name.as_str()).collect();
            bail!(
                "no such output '{}': expected one of the file's, {}",
                output.unwrap_or_default(),
                known.join(", ")
            )
        };
        let output = reader.value(&found.name);
        let mut graph = Graph {
            nodes,
            names: reader.names,
            constants,
            input,
            output,
            work: room::of_file(bytes.len()),
            notes: vec![],
        };
        graph.keep_needed();
        graph.check_operators()?;
        graph.fold()?;
        graph.keep_needed();
        graph.check_order()?;
        Ok(graph)
    }

    /// The nodes that read a value.
    pub fn readers(&self, value: usize) -> impl Iterator<Item = (usize, &Node)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(move |(_, node)| node.inputs.contains(&Some(value)))
    }

    /// The node that gives a value.
    pub fn maker(&self, value: usize) -> Option<&Node> {
        self.nodes.iter().find(|node| node.outputs.contains(&Some(value)))
    }

    /// Makes another value the output.
    pub fn end_at(&mut self, value: usize) {
        self.output = value;
        self.keep_needed();
    }

    /// Drops the nodes that the output does not depend on.
    fn keep_needed(&mut self) {
        let mut needed = BTreeSet::from([self.output]);
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if node.outputs.iter().flatten().any(|v| needed.contains(v)) {
                keep[i] = true;
                needed.extend(node.inputs.iter().flatten());
            }
        }
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().unwrap_or(false));
        self.constants.retain(|value, _| needed.contains(value));
    }

    fn check_operators(&self) -> Result<()> {
        let missing: Vec<String> = (self.nodes.iter())
            .filter(|node| !ops::SUPPORTED.contains(&node.op.as_str()))
            .map(Node::label)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let shown = missing.len().min(5);
        let more = match missing.len() - shown {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        bail!(
            "operators that are missing here: {}{more}; known are {}",
            missing[..shown].join(", "),
            ops::SUPPORTED.join(", ")
        )
    }

    /// Computes what does not depend on the images.
    fn fold(&mut self) -> Result<()> {
        let mut rest = vec![];
        let room = Room::new(1, self.work);
        for node in std::mem::take(&mut self.nodes) {
            let inputs: Vec<Option<Tensor>> = (node.inputs.iter())
                .map(|value| value.and_then(|v| self.constants.get(&v).cloned()))
                .collect();
            let constant = inputs
                .iter()
                .zip(&node.inputs)
                .all(|(there, named)| there.is_some() == named.is_some());
            // Random numbers and the like are no operators here, so what reads constants alone is one.
            if !constant {
                rest.push(node);
                continue;
            }
            let outputs = Call::new(&node, inputs, &room).compute()?;
            for (value, tensor) in node.outputs.iter().zip(outputs) {
                if let Some(value) = value {
                    self.constants.insert(*value, tensor);
                }
            }
        }
        self.nodes = rest;
        Ok(())
    }

    /// That every value is there when a node reads it.
    fn check_order(&self) -> Result<()> {
        let mut known: BTreeSet<usize> = self.constants.keys().copied().chain([self.input.value]).collect();
        for node in &self.nodes {
            if let Some(missing) = node.inputs.iter().flatten().find(|v| !known.contains(v)) {
                bail!(
                    "{} reads '{}', which no node before it gives: the file is damaged",
                    node.label(),
                    self.names[*missing]
                )
            }
            known.extend(node.outputs.iter().flatten());
        }
        match known.contains(&self.output) {
            true => Ok(()),
            false => bail!(
                "nothing gives the output '{}': the file is damaged",
                self.names[self.output]
            ),
        }
    }
}

fn is_onnx(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// Names to numbers.
#[derive(Default)]
struct Reader {
    names: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Reader {
    fn value(&mut self, name: &str) -> usize {
        if let Some(value) = self.numbers.get(name) {
            return *value;
        }
        let value = self.names.len();
        self.names.push(name.into());
        self.numbers.insert(name.into(), value);
        value
    }

    fn optional(&mut self, name: &str) -> Option<usize> {
        (!name.is_empty()).then(|| self.value(name))
    }

    /// Old files list their constants among the inputs.
    fn input(&mut self, graph: &GraphProto, constants: &HashMap<usize, Tensor>) -> Result<Input> {
        let mut inputs = vec![];
        for input in &graph.input {
            let value = self.value(&input.name);
            if !constants.contains_key(&value) {
                inputs.push((value, input));
            }
        }
        match inputs.as_slice() {
            [(value, input)] => Ok(Input {
                value: *value,
                name: input.name.clone(),
                dims: sizes(input)?,
            }),
            [] => bail!("the file has no input"),
            several => {
                let names: Vec<&str> = several.iter().map(|(_, input)| input.name.as_str()).collect();
                bail!(
                    "the file has the inputs {}: a model here takes images alone, export one that does",
                    names.join(", ")
                )
            }
        }
    }

    fn node(&mut self, node: &NodeProto, opset: i64) -> Result<Node> {
        let first = node.output.first().map_or("", String::as_str);
        let name = if node.name.is_empty() { first } else { &node.name };
        if !is_onnx(&node.domain) {
            bail!(
                "{} '{name}' is an operator of '{}', not of ONNX: export the model without such",
                node.op_type,
                node.domain
            )
        }
        let mut attributes = HashMap::new();
        for a in &node.attribute {
            // Kinds as onnx.proto numbers them; the oldest files leave the number out.
            let kind = match (a.kind, &a.t) {
                (0, Some(_)) => 4,
                (0, None) if !a.ints.is_empty() => 7,
                (0, None) if !a.floats.is_empty() => 6,
                (0, None) if !a.s.is_empty() => 3,
                (0, None) if a.f != 0. => 1,
                (0, None) => 2,
                (kind, _) => kind,
            };
            let value = match kind {
                1 => Attribute::Float(f64::from(a.f)),
                2 => Attribute::Int(a.i),
                3 => Attribute::Text(String::from_utf8_lossy(&a.s).into_owned()),
                4 => match &a.t {
                    Some(tensor) => Attribute::Tensor(read(tensor)?),
                    None => Attribute::Other,
                },
                6 => Attribute::Floats(a.floats.iter().map(|v| f64::from(*v)).collect()),
                7 => Attribute::Ints(a.ints.clone()),
                _ => Attribute::Other,
            };
            attributes.insert(a.name.clone(), value);
        }
        Ok(Node {
            op: node.op_type.clone(),
            name: name.into(),
            inputs: node.input.iter().map(|name| self.optional(name)).collect(),
            outputs: node.output.iter().map(|name| self.optional(name)).collect(),
            opset,
            attributes,
        })
    }
}

/// Sizes of an input's axes.
fn sizes(input: &ValueInfoProto) -> Result<Option<Vec<Option<usize>>>> {
    let Some(tensor) = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) else {
        return Ok(None);
    };
    if !types::is_float(tensor.elem_type) {
        bail!(
            "the input '{}' has elements of ONNX type {}, expected floats: images have pixels in [0,1]",
            input.name,
            tensor.elem_type
        )
    }
    let size = |value: Option<i64>| value.and_then(|v| usize::try_from(v).ok()).filter(|v| *v > 0);
    let shape = tensor.shape.as_ref();
    Ok(shape.map(|shape| shape.dim.iter().map(|d| size(d.dim_value)).collect()))
}
