//! Files are written here message by message.

use advae_sdk::candle_core::{DType, Device, Tensor, Var};
use advae_sdk::nn::{GradcheckOptions, gradcheck, save_safetensors, vjp};
use advae_sdk::prelude::*;
use prost::Message;

use crate::graph::Graph;
use crate::layers::Layers;
use crate::proto::*;
use crate::tensor::types;
use crate::{Layout, OnnxClassifier, OnnxPurifier, OnnxSettings};

/// A file under construction.
struct File(GraphProto, i64);

fn size(d: i64) -> DimensionProto {
    DimensionProto {
        dim_value: (d > 0).then_some(d),
        dim_param: (d <= 0).then(|| "batch".into()),
    }
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let shape = ShapeProto {
        dim: dims.iter().map(|d| size(*d)).collect(),
    };
    let tensor = TensorTypeProto {
        elem_type: types::FLOAT,
        shape: Some(shape),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}

/// Numbers without a pattern, from -0.5 to 0.5.
fn numbers(count: usize, of: &str) -> Vec<f64> {
    let start = of.bytes().fold(1f64, |sum, b| sum * 1.7 + f64::from(b));
    (0..count)
        .map(|i| ((start + i as f64 * 0.754_877_666) * 0.569_840_29).fract() - 0.5)
        .collect()
}

impl File {
    /// Of an input `x` with these axes; 0 is a free one.
    fn new(opset: i64, dims: &[i64]) -> Self {
        let graph = GraphProto {
            input: vec![value("x", dims)],
            output: vec![value("y", &[])],
            ..Default::default()
        };
        File(graph, opset)
    }

    fn node(mut self, op: &str, inputs: &str, output: &str, attributes: &[(&str, A)]) -> Self {
        let attribute = attributes.iter().map(|(name, a)| {
            let mut proto = AttributeProto {
                name: (*name).into(),
                ..Default::default()
            };
            match a {
                A::I(v) => (proto.kind, proto.i) = (2, *v),
                A::F(v) => (proto.kind, proto.f) = (1, *v),
                A::S(v) => (proto.kind, proto.s) = (3, v.as_bytes().to_vec()),
                A::Is(v) => (proto.kind, proto.ints) = (7, v.to_vec()),
            }
            proto
        });
        self.0.node.push(NodeProto {
            input: inputs
                .split_whitespace()
                .map(|i| if i == "-" { String::new() } else { i.into() })
                .collect(),
            output: output.split_whitespace().map(String::from).collect(),
            op_type: op.into(),
            attribute: attribute.collect(),
            ..Default::default()
        });
        self
    }

    /// A constant of numbers without a pattern.
    fn weight(self, name: &str, dims: &[i64]) -> Self {
        let values = numbers(dims.iter().product::<i64>() as usize, name);
        self.floats(name, dims, &values)
    }

    fn floats(mut self, name: &str, dims: &[i64], values: &[f64]) -> Self {
        self.0.initializer.push(TensorProto {
            dims: dims.to_vec(),
            name: name.into(),
            data_type: types::DOUBLE,
            double_data: values.to_vec(),
            ..Default::default()
        });
        self
    }

    fn ints(mut self, name: &str, values: &[i64]) -> Self {
        self.0.initializer.push(TensorProto {
            dims: vec![values.len() as i64],
            name: name.into(),
            data_type: types::INT64,
            int64_data: values.to_vec(),
            ..Default::default()
        });
        self
    }

    /// Of another output.
    fn ending(mut self, output: &str) -> Self {
        self.0.output = vec![value(output, &[])];
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let opset = OperatorSetIdProto {
            domain: String::new(),
            version: self.1,
        };
        let model = ModelProto {
            ir_version: 8,
            graph: Some(self.0.clone()),
            opset_import: vec![opset],
            ..Default::default()
        };
        model.encode_to_vec()
    }

    fn graph(&self) -> Graph {
        Graph::read(&self.bytes(), None).unwrap()
    }

    /// Runs operator by operator in f64.
    fn run(&self, x: &Tensor) -> Result<Tensor> {
        let graph = self.graph();
        let layers = Layers::new(&graph, &Weights::own().with_dtype(DType::F64))?;
        Ok(layers.run(&Pass::eval(), x, &[graph.output])?.swap_remove(0))
    }

    /// On the disk, with the settings that read it.
    fn saved(&self) -> (tempfile::NamedTempFile, OnnxSettings) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.bytes()).unwrap();
        let model = InputFile::at(file.path().display().to_string());
        (
            file,
            OnnxSettings {
                model,
                ..OnnxSettings::default()
            },
        )
    }
}

/// An attribute.
enum A {
    I(i64),
    F(f32),
    S(&'static str),
    Is(&'static [i64]),
}

fn tensor(dims: &[usize], of: &str) -> Tensor {
    Tensor::from_vec(numbers(dims.iter().product(), of), dims, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[track_caller]
fn close(a: &[f64], b: &[f64], within: f64) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= within, "number {i}: {a} and {b}");
    }
}

/// One operator on `x [2, 4, 6, 5]`.
fn one(op: &str, inputs: &str, attributes: &[(&str, A)]) -> File {
    let file = File::new(18, &[0, 4, 6, 5]).node(op, inputs, "y", attributes);
    file.weight("w33", &[6, 4, 3, 3])
        .weight("w32", &[6, 2, 3, 2])
        .weight("t32", &[4, 3, 3, 2])
        .weight("t33", &[4, 6, 3, 3])
        .weight("b6", &[6])
        .weight("c4", &[4])
        .weight("d4", &[4])
        .weight("m4", &[4])
        .weight("last", &[5])
        .weight("map", &[4, 6, 5])
        .weight("matrix", &[5, 3])
        .floats("v4", &[4], &[0.5, 1., 2., 0.25])
        .floats("v4b", &[4, 1, 1], &[0.5, -1., 2., 0.25])
        .floats("two", &[], &[2.])
        .floats("half", &[], &[0.5])
        .floats("scales", &[4], &[1., 1., 1.5, 2.])
        .ints("sizes", &[2, 4, 9, 10])
        .ints("halves", &[2, 2])
        .ints("axes", &[2, 3])
        .ints("axis1", &[1])
        .ints("from", &[1, 4])
        .ints("to", &[6, 0])
        .ints("steps", &[2, -1])
        .ints("rows", &[3, 0, 3])
        .ints("pads", &[0, 0, 2, 1, 0, 0, 0, 3])
        .ints("flat", &[0, -1])
}

/// Operator, inputs, attributes.
type Case = (&'static str, &'static str, &'static [(&'static str, A)]);

/// Every operator of floats that has a gradient everywhere.
const CASES: &[Case] = {
    use A::{F, I, Is, S};
    &[
        ("Conv", "x w33 b6", &[("pads", Is(&[1, 1, 1, 1]))]),
        (
            "Conv",
            "x w33",
            &[("strides", Is(&[2, 2])), ("pads", Is(&[0, 1, 2, 0]))],
        ),
        ("Conv", "x w32 b6", &[("group", I(2)), ("strides", Is(&[2, 1]))]),
        (
            "Conv",
            "x w33 b6",
            &[("dilations", Is(&[2, 2])), ("auto_pad", S("SAME_LOWER"))],
        ),
        (
            "ConvTranspose",
            "x t33",
            &[("strides", Is(&[2, 2])), ("output_padding", Is(&[1, 0]))],
        ),
        (
            "ConvTranspose",
            "x t32",
            &[("group", I(2)), ("pads", Is(&[1, 0, 0, 1])), ("dilations", Is(&[1, 2]))],
        ),
        (
            "MaxPool",
            "x",
            &[("kernel_shape", Is(&[2, 2])), ("strides", Is(&[2, 2]))],
        ),
        (
            "MaxPool",
            "x",
            &[
                ("kernel_shape", Is(&[3, 2])),
                ("pads", Is(&[1, 0, 1, 1])),
                ("ceil_mode", I(1)),
            ],
        ),
        (
            "AveragePool",
            "x",
            &[
                ("kernel_shape", Is(&[3, 3])),
                ("pads", Is(&[1, 1, 1, 1])),
                ("strides", Is(&[2, 2])),
            ],
        ),
        (
            "AveragePool",
            "x",
            &[
                ("kernel_shape", Is(&[3, 3])),
                ("pads", Is(&[1, 1, 1, 1])),
                ("count_include_pad", I(1)),
            ],
        ),
        ("GlobalAveragePool", "x", &[]),
        ("GlobalMaxPool", "x", &[]),
        ("BatchNormalization", "x c4 d4 m4 v4", &[("epsilon", F(0.01))]),
        ("InstanceNormalization", "x c4 d4", &[]),
        ("LayerNormalization", "x last", &[]),
        ("LayerNormalization", "x map map", &[("axis", I(1))]),
        ("MatMul", "x matrix", &[]),
        ("Relu", "x", &[]),
        ("LeakyRelu", "x", &[("alpha", F(0.2))]),
        ("Elu", "x", &[("alpha", F(0.7))]),
        ("Selu", "x", &[]),
        ("PRelu", "x last", &[]),
        ("Sigmoid", "x", &[]),
        ("HardSigmoid", "x", &[("alpha", F(2.))]),
        ("HardSwish", "x", &[]),
        ("Tanh", "x", &[]),
        ("Softplus", "x", &[]),
        ("Gelu", "x", &[]),
        ("Gelu", "x", &[("approximate", S("tanh"))]),
        ("Erf", "x", &[]),
        ("Exp", "x", &[]),
        ("Abs", "x", &[]),
        ("Neg", "x", &[]),
        ("Softmax", "x", &[("axis", I(1))]),
        ("LogSoftmax", "x", &[]),
        ("Clip", "x - half", &[]),
        ("Add", "x map", &[]),
        ("Sub", "map x", &[]),
        ("Mul", "x last", &[]),
        ("Div", "x v4b", &[]),
        ("Pow", "x two", &[]),
        ("Min", "x map", &[]),
        ("Max", "x map last", &[]),
        ("ReduceMean", "x axes", &[("keepdims", I(0))]),
        ("ReduceSum", "x axis1", &[]),
        ("ReduceMax", "x axes", &[]),
        ("Resize", "x - scales", &[("mode", S("linear"))]),
        (
            "Resize",
            "x - scales",
            &[
                ("mode", S("linear")),
                ("coordinate_transformation_mode", S("align_corners")),
            ],
        ),
        ("Resize", "x - - sizes", &[]),
        ("Pad", "x pads", &[("mode", S("reflect"))]),
        ("Pad", "x pads half", &[]),
        ("Slice", "x from to axes steps", &[]),
        ("Gather", "x rows", &[("axis", I(2))]),
        ("Transpose", "x", &[("perm", Is(&[0, 3, 1, 2]))]),
        ("Reshape", "x flat", &[]),
        ("Concat", "x x", &[("axis", I(-1))]),
    ]
};

#[test]
fn gradients_of_every_operator_are_its_differences() {
    for (op, inputs, attributes) in CASES {
        let file = one(op, inputs, attributes);
        let x = tensor(&[2, 4, 6, 5], "images");
        let report = gradcheck(
            |x| file.run(x),
            &x,
            &GradcheckOptions {
                directions: Some(12),
                ..Default::default()
            },
        );
        let report = report.unwrap_or_else(|e| panic!("{op} {inputs}: {e}"));
        assert!(report.max_relative_error < 1e-6, "{op} {inputs}: {report:?}");
    }
    for op in ["Sqrt", "Log", "Reciprocal"] {
        let file = one(op, "x", &[]);
        let x = (tensor(&[2, 4, 6, 5], "images") + 1.).unwrap();
        let report = gradcheck(|x| file.run(x), &x, &GradcheckOptions::default()).unwrap();
        assert!(report.max_relative_error < 1e-6, "{op}: {report:?}");
    }
}

/// A residual network with everything that a fused net knows.
fn residual(dims: &[i64]) -> File {
    use A::{F, I, Is};
    let conv = |pads: &'static [i64], strides: &'static [i64]| [("pads", Is(pads)), ("strides", Is(strides))];
    File::new(13, dims)
        .node("Sub", "x mean", "x0", &[])
        .node("Pad", "x0 around", "x0p", &[])
        .node("Conv", "x0p w0 b0", "x1", &[])
        .node("BatchNormalization", "x1 g0 h0 m0 v0", "x2", &[])
        .node("Relu", "x2", "x3", &[])
        .node("Conv", "x3 w1 b16", "x4", &conv(&[1, 1, 1, 1], &[2, 2]))
        .node("BatchNormalization", "x4 g1 h1 m1 v1", "x5", &[("epsilon", F(0.001))])
        .node("Conv", "x3 w2 b16", "x6", &conv(&[0, 0, 0, 0], &[2, 2]))
        .node("Add", "x5 x6", "x7", &[])
        .node("Relu", "x7", "x8", &[])
        .node("Upsample", "x8 scales", "x9", &[])
        .node(
            "MaxPool",
            "x9",
            "x10",
            &[("kernel_shape", Is(&[2, 2])), ("strides", Is(&[2, 2]))],
        )
        .node("Concat", "x10 x8", "x11", &[("axis", I(1))])
        .node("GlobalAveragePool", "x11", "x12", &[])
        .node("Shape", "x12", "s", &[])
        .node("Gather", "s zero", "n", &[])
        .node("Unsqueeze", "n zeros", "n1", &[])
        .node("Concat", "n1 rest", "target", &[("axis", I(0))])
        .node("Reshape", "x12 target", "x13", &[])
        .node("MatMul", "x13 w3", "x14", &[])
        .node("Add", "b3 x14", "x15", &[])
        .node("Relu", "x15", "x16", &[])
        .node("Gemm", "x16 w4 b4", "z", &[("transB", I(1))])
        .node("Softmax", "z", "y", &[("axis", I(1))])
        .floats("mean", &[1, 3, 1, 1], &[0.4, 0.5, 0.6])
        .floats("scales", &[4], &[1., 1., 2., 2.])
        .ints("around", &[0, 0, 1, 1, 0, 0, 1, 1])
        .ints("zeros", &[0])
        .ints("rest", &[-1])
        .floats("zero", &[], &[0.])
        .weight("w0", &[8, 3, 3, 3])
        .weight("b0", &[8])
        .weight("b16", &[16])
        .weight("w1", &[16, 8, 3, 3])
        .weight("w2", &[16, 8, 1, 1])
        .weight("w3", &[32, 24])
        .weight("b3", &[24])
        .weight("w4", &[5, 24])
        .weight("b4", &[5])
        .norm("0", 8)
        .norm("1", 16)
}

impl File {
    fn norm(self, i: &str, channels: i64) -> Self {
        let var: Vec<f64> = numbers(channels as usize, i).iter().map(|v| v + 1.).collect();
        let [g, h, m, v] = ["g", "h", "m", "v"].map(|name| format!("{name}{i}"));
        self.weight(&g, &[channels])
            .weight(&h, &[channels])
            .weight(&m, &[channels])
            .floats(&v, &[channels], &var)
    }
}

/// Output and input gradient of a classifier.
fn both(model: &OnnxClassifier, x: &Tensor) -> [Vec<f64>; 2] {
    let x = Var::from_tensor(x).unwrap();
    let y = model.forward(&Pass::eval(), x.as_tensor()).unwrap();
    let cotangent = tensor(y.dims(), "cotangent").to_dtype(y.dtype()).unwrap();
    let (dx, _) = vjp(x.as_tensor(), &y, &cotangent).unwrap();
    [values(&y), values(&dx.unwrap())]
}

#[test]
fn a_fused_network_computes_what_its_operators_do() {
    let file = residual(&[0, 3, 12, 12]);
    let (_kept, settings) = file.saved();
    let model = OnnxClassifier::new(settings, &Weights::own().with_dtype(DType::F64)).unwrap();
    assert_eq!(
        model.threading(),
        Threading::Caller,
        "it is not fused: {}",
        model.note()
    );
    assert!(
        model.note().contains("Softmax 'y' at the end is left out"),
        "{}",
        model.note()
    );
    assert_eq!((model.input(), model.classes()), ([3, 12, 12], 5));
    let x = tensor(&[3, 3, 12, 12], "images");
    let mut graph = file.graph();
    graph.end_at(graph.names.iter().position(|name| name == "z").unwrap());
    let layers = Layers::new(&graph, &Weights::own().with_dtype(DType::F64)).unwrap();
    let var = Var::from_tensor(&x).unwrap();
    let y = layers
        .run(&Pass::eval(), var.as_tensor(), &[graph.output])
        .unwrap()
        .swap_remove(0);
    let cotangent = tensor(y.dims(), "cotangent");
    let dx = vjp(var.as_tensor(), &y, &cotangent).unwrap().0.unwrap();
    let [fused, gradient] = both(&model, &x);
    close(&fused, &values(&y), 1e-12);
    close(&gradient, &values(&dx), 1e-12);
    let features = model.features(&Pass::eval(), &x).unwrap().unwrap();
    assert_eq!(features.dims(), [3, 24]);
}

#[test]
fn a_file_for_one_image_takes_many() {
    let model = |batch: i64| {
        let file = File::new(9, &[batch, 1, 4, 4])
            .node("Reshape", "x target", "f", &[])
            .node("Gemm", "f w b", "y", &[])
            .ints("target", &[1, 16])
            .weight("w", &[16, 3])
            .weight("b", &[1, 3]);
        let (_kept, settings) = file.saved();
        OnnxClassifier::new(settings, &Weights::own()).map(|model| {
            let x = tensor(&[4, 1, 4, 4], "images").to_dtype(DType::F32).unwrap();
            both(&model, &x)
        })
    };
    let [y, _] = model(1).unwrap();
    let x = values(&tensor(&[4, 1, 4, 4], "images"));
    let (w, b) = (numbers(48, "w"), numbers(3, "b"));
    let expected = (0..12).map(|i| (0..16).map(|k| x[i / 3 * 16 + k] * w[k * 3 + i % 3]).sum::<f64>() + b[i % 3]);
    close(&y, &expected.collect::<Vec<f64>>(), 1e-6);
    // With a free batch the file's own shape is wrong for any other number of images than one.
    let error = model(0).err().unwrap().to_string();
    assert!(
        error.contains("Reshape 'f'") && error.contains("cannot be arranged"),
        "{error}"
    );
}

#[test]
fn a_batch_whose_images_meet_is_refused() {
    let file = File::new(13, &[0, 1, 2, 2])
        .node("ReduceMean", "x", "m", &[("axes", A::Is(&[0]))])
        .node("Sub", "x m", "d", &[])
        .node("Flatten", "d", "y", &[]);
    let (_kept, settings) = file.saved();
    let error = OnnxClassifier::new(settings, &Weights::own())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("depends on the other images of its batch"), "{error}");
}

#[test]
fn channels_last_and_normalised_pixels_are_inside_the_network() {
    // The mean of every channel of (x - mean) / std.
    let file = File::new(13, &[0, 4, 5, 3])
        .node("Transpose", "x", "t", &[("perm", A::Is(&[0, 3, 1, 2]))])
        .node("GlobalAveragePool", "t", "y", &[]);
    let (_kept, settings) = file.saved();
    let settings = OnnxSettings {
        mean: PerChannel::Each(vec![0.1, 0.2, 0.3]),
        std: PerChannel::Each(vec![1., 2., 4.]),
        ..settings
    };
    let model = OnnxClassifier::new(settings.clone(), &Weights::own().with_dtype(DType::F64)).unwrap();
    assert_eq!(
        (model.input(), model.threading()),
        ([3, 4, 5], Threading::Caller),
        "{}",
        model.note()
    );
    let x = tensor(&[2, 3, 4, 5], "images");
    let [y, gradient] = both(&model, &x);
    let pixels = values(&x);
    let mean = |i: usize| pixels[i * 20..][..20].iter().sum::<f64>() / 20.;
    let expected: Vec<f64> = (0..6)
        .map(|i| (mean(i) - [0.1, 0.2, 0.3][i % 3]) / [1., 2., 4.][i % 3])
        .collect();
    close(&y, &expected, 1e-12);
    let cotangent = numbers(6, "cotangent");
    let slopes: Vec<f64> = (0..120)
        .map(|i| cotangent[i / 20] / 20. / [1., 2., 4.][i / 20 % 3])
        .collect();
    close(&gradient, &slopes, 1e-12);
    for (layout, refused) in [(Layout::Nhwc, false), (Layout::Nchw, true)] {
        let settings = OnnxSettings {
            layout,
            mean: PerChannel::One(0.),
            std: PerChannel::One(1.),
            ..settings.clone()
        };
        let read = OnnxClassifier::new(settings, &Weights::own()).map(|model| model.input());
        assert_eq!(read.ok() == Some([3, 4, 5]), !refused);
    }
}

#[test]
fn a_purifier_gives_pixels_again() {
    let file = File::new(13, &[0, 2, 4, 4])
        .node("Mul", "x two", "y", &[])
        .floats("two", &[1], &[2.]);
    let (_kept, settings) = file.saved();
    let settings = OnnxSettings {
        mean: PerChannel::One(0.5),
        std: PerChannel::One(0.25),
        ..settings
    };
    let model = OnnxPurifier::new(settings, &Weights::own()).unwrap();
    let x = tensor(&[1, 2, 4, 4], "images").to_dtype(DType::F32).unwrap();
    let y = model.purify(&Pass::eval(), &x).unwrap();
    let expected: Vec<f64> = values(&x).iter().map(|v| 2. * (v - 0.5) + 0.5).collect();
    close(&values(&y), &expected, 1e-6);
}

#[test]
fn weights_of_a_file_are_parameters_that_can_be_saved_and_replaced() {
    let (_kept, settings) = residual(&[0, 3, 12, 12]).saved();
    let x = tensor(&[2, 3, 12, 12], "images").to_dtype(DType::F32).unwrap();
    let built = |weights: &Weights| {
        let model = OnnxClassifier::new(settings.clone(), weights).unwrap();
        weights.finish().unwrap();
        both(&model, &x)[0].clone()
    };
    let own = Weights::own();
    let first = built(&own);
    assert!(own.all_given());
    let saved = save_safetensors(&own.params()).unwrap();
    assert_eq!(first, built(&Weights::from_safetensors(&saved).unwrap()));
    let seeded = Weights::init(1);
    assert_ne!(first, built(&seeded), "a seed is a new beginning, as for a substitute");
    assert!(!seeded.all_given());
    // Convolutions (two read one bias, and get one each), the norm that learns, and both linear layers; the norm of another epsilon stays as it is.
    assert_eq!(
        own.parameter_count(),
        8 * 27 + 3 * 8 + 16 * 8 * 9 + 16 * 8 + 2 * 16 + 32 * 24 + 24 + 24 * 5 + 5
    );
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let refused = |bytes: &[u8]| Graph::read(bytes, None).err().unwrap().to_string();
    assert!(refused(b"not a model").contains("no ONNX file"));
    assert!(refused(&[]).contains("it holds no graph"));
    let file = || File::new(13, &[0, 1, 4, 4]);
    let error = refused(&file().node("Bogus", "x", "y", &[]).bytes());
    assert!(
        error.contains("operators that are missing here: Bogus 'y'; known are Abs, "),
        "{error}"
    );
    let error = refused(&file().node("Add", "x nowhere", "y", &[]).bytes());
    assert!(
        error.contains("Add 'y' reads 'nowhere', which no node before it gives"),
        "{error}"
    );
    let error = refused(&File::new(13, &[0, 1]).bytes());
    assert!(error.contains("nothing gives the output 'y'"), "{error}");
    let mut two = file().node("Add", "x z", "y", &[]);
    two.0.input.push(value("z", &[0, 1, 4, 4]));
    assert!(refused(&two.bytes()).contains("the inputs x, z"));
    let (_kept, settings) = file().node("Conv", "x w", "y", &[]).weight("w", &[2, 3, 3, 3]).saved();
    let error = OnnxClassifier::new(settings, &Weights::own())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("Conv 'y'") && error.contains("these do not fit"),
        "{error}"
    );
}

#[test]
fn what_a_file_leaves_open_is_asked_for() {
    let model = |dims: &[i64], shape: Option<Vec<usize>>| {
        let file = File::new(13, dims).node("Flatten", "x", "y", &[]);
        let (_kept, settings) = file.saved();
        let settings = OnnxSettings { shape, ..settings };
        OnnxClassifier::new(settings, &Weights::own())
            .map(|m| m.input())
            .map_err(|e| e.to_string())
    };
    assert_eq!(model(&[0, 784], None), Ok([1, 28, 28]));
    assert_eq!(model(&[1, 784, 1], None), Ok([1, 28, 28]));
    assert_eq!(model(&[0, 2, 3, 4], None), Ok([2, 3, 4]));
    assert_eq!(model(&[0, 3, 0, 0], Some(vec![3, 8, 8])), Ok([3, 8, 8]));
    let error = model(&[0, 3, 0, 0], None).unwrap_err();
    assert!(
        error.contains("[N,3,?,?]") && error.contains("shape=[channels,rows,columns]"),
        "{error}"
    );
    let error = model(&[0, 12], Some(vec![1, 2, 2])).unwrap_err();
    assert!(error.contains("do not fit the file's input [N,12]"), "{error}");
    let error = model(&[0, 3, 4, 4], Some(vec![1, 4, 4])).unwrap_err();
    assert!(error.contains("do not fit the file's input [N,3,4,4]"), "{error}");
}

/// Why a file is not read as a classifier of images `[N, 1, 4, 4]`.
fn refusal(file: &File) -> String {
    let (_kept, settings) = file.saved();
    let refused = OnnxClassifier::new(settings, &Weights::own());
    crate::model::plain(&refused.err().unwrap())
}

#[test]
fn what_is_larger_than_any_image_is_refused_before_it_is_made() {
    use A::{I, Is, S};
    const FAR: i64 = i64::MAX;
    let cases: &[Case] = &[
        ("Resize", "x - much", &[]),
        ("Resize", "x - much", &[("mode", S("linear"))]),
        ("Resize", "x - - far", &[]),
        ("Expand", "x far", &[]),
        ("Expand", "x million", &[]),
        ("ConstantOfShape", "million", &[]),
        ("ConstantOfShape", "far", &[]),
        ("Pad", "x around", &[]),
        ("Pad", "x around", &[("mode", S("reflect"))]),
        ("Pad", "x beside", &[]),
        (
            "MaxPool",
            "x",
            &[("kernel_shape", Is(&[2, 2])), ("pads", Is(&[9999; 4]))],
        ),
        (
            "AveragePool",
            "x",
            &[("kernel_shape", Is(&[2, 2])), ("pads", Is(&[9999; 4]))],
        ),
        ("Conv", "x kernel", &[("pads", Is(&[9999; 4]))]),
        (
            "Conv",
            "x kernel",
            &[("pads", Is(&[9999; 4])), ("dilations", Is(&[2, 1]))],
        ),
        ("ConvTranspose", "x kernel", &[("strides", Is(&[9999, 9999]))]),
        ("Add", "column row", &[]),
        ("Where", "one column row", &[]),
        ("Equal", "column row", &[]),
        ("Sum", "one column row", &[]),
        ("PRelu", "column row", &[]),
        ("MatMul", "column row", &[]),
        ("Gemm", "column row", &[]),
        ("LayerNormalization", "x long", &[]),
        ("BatchNormalization", "x many many many many", &[]),
        ("Gather", "column places", &[("axis", I(1))]),
    ];
    for (op, inputs, attributes) in cases {
        let file = File::new(18, &[0, 1, 4, 4])
            .node("Expand", "one tall", "column", &[])
            .node("Expand", "one wide", "row", &[])
            .node("Expand", "one long_shape", "long", &[])
            .node("Expand", "one many_shape", "many", &[])
            .node("Expand", "zero places_shape", "places", &[])
            .node(op, inputs, "y", attributes)
            .floats("one", &[], &[1.])
            .ints("zero", &[0])
            .floats("much", &[4], &[7e16, 1., 1., 1.])
            .weight("kernel", &[1, 1, 2, 2])
            .ints("far", &[1, FAR, 4, 4])
            .ints("million", &[1_000_000, 1, 9, 4, 4])
            .ints("around", &[0, 0, 1 << 62, 0, 0, 0, 1 << 62, 0])
            .ints("beside", &[0, 0, 0, 99_999_999, 0, 0, 0, 0])
            .ints("tall", &[99_999, 1])
            .ints("wide", &[1, 99_999])
            .ints("long_shape", &[1, 40_000_000, 1, 1])
            .ints("many_shape", &[40_000_000])
            .ints("places_shape", &[99_999]);
        let error = refusal(&file);
        assert!(
            error.contains(&format!("{op} 'y'")) && error.contains("more than the 67108864 an image that fit here"),
            "{op} {inputs}: {error}"
        );
    }
    // What no arithmetic can reach is no size at all.
    let cases: &[Case] = &[
        ("Pad", "x least", &[]),
        (
            "MaxPool",
            "x",
            &[("kernel_shape", Is(&[2, 2])), ("pads", Is(&[0, FAR, 0, FAR]))],
        ),
        (
            "MaxPool",
            "x",
            &[("kernel_shape", Is(&[FAR, FAR])), ("auto_pad", S("SAME_UPPER"))],
        ),
        (
            "MaxPool",
            "x",
            &[("kernel_shape", Is(&[2, 2])), ("dilations", Is(&[FAR, 1]))],
        ),
        (
            "MaxPool",
            "x",
            &[
                ("kernel_shape", Is(&[2, 2])),
                ("strides", Is(&[FAR, 1])),
                ("ceil_mode", I(1)),
            ],
        ),
        ("MaxPool", "x", &[("kernel_shape", Is(&[0, 2]))]),
        ("Conv", "x kernel", &[("dilations", Is(&[FAR, FAR]))]),
        ("ConvTranspose", "x kernel", &[("strides", Is(&[FAR, FAR]))]),
        ("ConvTranspose", "x kernel", &[("strides", Is(&[1]))]),
        ("ConvTranspose", "x kernel", &[("output_shape", Is(&[4]))]),
        ("ConvTranspose", "x kernel", &[("pads", Is(&[3, 3, 3, 3]))]),
        ("Reshape", "x far", &[]),
        ("Reshape", "x both", &[]),
        ("Unsqueeze", "x axes", &[]),
        ("Gather", "two x", &[]),
        ("Mul", "far far", &[]),
        ("Div", "far none", &[]),
        ("Sub", "least most", &[]),
        ("Softmax", "far", &[]),
    ];
    for (op, inputs, attributes) in cases {
        let file = File::new(18, &[0, 1, 4, 4])
            .node(op, inputs, "y", attributes)
            .floats("two", &[], &[2.])
            .weight("kernel", &[1, 1, 2, 2])
            .ints("far", &[FAR, FAR, 4, 4])
            .ints("both", &[FAR, FAR, -1])
            .ints("none", &[0])
            .ints("axes", &[5; 64])
            .ints("most", &[FAR])
            .ints("least", &[0, 0, i64::MIN, 0, 0, 0, FAR, 0]);
        let error = refusal(&file);
        assert!(error.contains(&format!("{op} 'y'")), "{op} {inputs}: {error}");
    }
}

/// What a damaged file may have in place of a number.
const DAMAGED: [i64; 20] = [
    i64::MIN,
    i64::MIN + 1,
    -(1 << 40),
    -9999,
    -2,
    -1,
    0,
    1,
    2,
    3,
    7,
    64,
    5000,
    70_000,
    1 << 24,
    1 << 31,
    1 << 40,
    1 << 62,
    i64::MAX - 1,
    i64::MAX,
];

/// Numbers without a pattern below `below`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % below.max(1)
    }

    /// Replaces one of these, if there are any.
    fn damage<T>(&mut self, values: &mut [T], as_type: impl Fn(i64) -> T) {
        let (at, new) = (self.roll(values.len()), DAMAGED[self.roll(DAMAGED.len())]);
        if let Some(value) = values.get_mut(at) {
            *value = as_type(new);
        }
    }
}

#[test]
fn no_operator_panics_or_takes_long_on_damaged_numbers() {
    use A::{I, Is, S};
    let more: &[Case] = &[
        ("Expand", "x sizes", &[]),
        ("ConstantOfShape", "sizes", &[]),
        ("Split", "x", &[("axis", I(1))]),
        ("Squeeze", "x", &[("axes", Is(&[1]))]),
        ("Unsqueeze", "x axis1", &[]),
        ("Flatten", "x", &[("axis", I(2))]),
        ("Where", "x map last", &[]),
        ("Equal", "x map", &[]),
        ("Gemm", "matrix matrix - ", &[("transA", I(1))]),
        ("Upsample", "x scales", &[]),
        ("Cast", "x", &[("to", I(7))]),
        ("Shape", "x", &[("start", I(1))]),
        ("Pad", "x pads", &[("mode", S("edge"))]),
        ("Pad", "x pads", &[("mode", S("wrap"))]),
        ("Add", "sizes sizes", &[]),
        ("Div", "sizes sizes", &[]),
        ("Pow", "sizes sizes", &[]),
        ("Neg", "sizes", &[]),
        ("Exp", "sizes", &[]),
        ("ReduceSum", "sizes", &[]),
        ("Concat", "sizes axes", &[("axis", I(0))]),
        ("Slice", "sizes from to axes steps", &[]),
    ];
    let times = std::env::var("ADVAE_FUZZ_TIMES").map_or(10, |times| times.parse().unwrap());
    let mut dice = Dice(std::env::var("ADVAE_FUZZ_SEED").map_or(1, |seed| seed.parse().unwrap()));
    for (op, inputs, attributes) in CASES.iter().chain(more) {
        for _ in 0..times {
            let mut file = one(op, inputs, attributes);
            file.1 = [9, 10, 12, 18][dice.roll(4)];
            let names: Vec<&str> = inputs.split_whitespace().collect();
            for _ in 0..=dice.roll(3) {
                let graph = &mut file.0;
                match dice.roll(5) {
                    0 => {
                        let tensor = (graph.initializer.iter_mut()).find(|t| t.name == names[dice.roll(names.len())]);
                        if let Some(tensor) = tensor {
                            dice.damage(&mut tensor.int64_data, |v| v);
                            dice.damage(&mut tensor.double_data, |v| v as f64);
                        }
                    }
                    1 => {
                        let tensor = (graph.initializer.iter_mut()).find(|t| t.name == names[dice.roll(names.len())]);
                        if let Some(tensor) = tensor {
                            // Other axes for as many elements.
                            let count = tensor.double_data.len().max(tensor.int64_data.len()) as i64;
                            tensor.dims = match dice.roll(5) {
                                0 => vec![count],
                                1 => vec![count, 1, 1, 1, 1],
                                2 => vec![1, count],
                                3 => vec![],
                                _ => vec![0, DAMAGED[dice.roll(DAMAGED.len())]],
                            };
                        }
                    }
                    2 => {
                        let shape = graph.input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
                        dice.damage(&mut shape.shape.as_mut().unwrap().dim, size);
                    }
                    3 => {
                        let inputs = &mut graph.node[0].input;
                        let (to, from) = (dice.roll(inputs.len()), dice.roll(graph.initializer.len()));
                        inputs[to] = graph.initializer[from].name.clone();
                    }
                    _ => {
                        let attributes = &mut graph.node[0].attribute;
                        let at = dice.roll(attributes.len());
                        if let Some(a) = attributes.get_mut(at) {
                            dice.damage(&mut a.ints, |v| v);
                            dice.damage(std::slice::from_mut(&mut a.i), |v| v);
                            if dice.roll(4) == 0 {
                                a.ints.pop();
                            }
                        }
                    }
                }
            }
            // Its output alone is often no classifier's.
            let file = File(file.0, file.1).node("Flatten", "y", "z", &[]).ending("z");
            let (kept, settings) = file.saved();
            let start = std::time::Instant::now();
            let outcome = std::panic::catch_unwind(|| OnnxClassifier::new(settings, &Weights::own()).map(|_| ()));
            let took = start.elapsed();
            if outcome.is_err() || took.as_secs() >= 30 {
                let (_, path) = kept.keep().unwrap();
                panic!("{op} {inputs}: {took:?}, '{}'", path.display());
            }
        }
    }
}

#[test]
fn steps_without_end_are_taken_once() {
    let file = |steps: &[i64]| {
        File::new(13, &[0, 1, 4, 4])
            .node("Slice", "x from to axes steps", "y", &[])
            .ints("from", &[i64::MAX, i64::MIN])
            .ints("to", &[i64::MIN, i64::MAX])
            .ints("axes", &[2, 3])
            .ints("steps", steps)
    };
    let x = tensor(&[2, 1, 4, 4], "images");
    let y = file(&[i64::MIN, i64::MAX]).run(&x).unwrap();
    assert_eq!(y.dims(), [2, 1, 1, 1]);
    close(&values(&y), &[values(&x)[12], values(&x)[28]], 0.);
}

#[test]
fn doubling_and_the_sum_of_many_values_are_refused() {
    // 2^30 elements after 26 of them.
    let mut file = File::new(13, &[0, 1, 4, 4]);
    for i in 0..30 {
        let (x, y) = (format!("x{i}"), format!("x{}", i + 1));
        let x = if i == 0 { "x" } else { &x };
        file = file.node("Concat", &format!("{x} {x}"), &y, &[("axis", A::I(1))]);
    }
    let error = refusal(&file.node("Flatten", "x30", "y", &[]));
    assert!(
        error.contains("Concat 'x23'") && error.contains("268435456 elements for 2 images"),
        "{error}"
    );
    // Each of them fits.
    let mut file = File::new(13, &[0, 1, 4, 4])
        .node("ConstantOfShape", "size", "c0", &[])
        .ints("size", &[1 << 25]);
    for i in 0..9 {
        file = file.node("Exp", &format!("c{i}"), &format!("c{}", i + 1), &[]);
    }
    let error = refusal(&file.node("Add", "x c9", "y", &[]));
    assert!(error.contains("a file of this size may ask for"), "{error}");
    // Products.
    let file = File::new(13, &[0, 1, 4, 4])
        .node("ConstantOfShape", "size", "c", &[])
        .node("MatMul", "c c", "d", &[])
        .node("Add", "x d", "y", &[])
        .ints("size", &[1 << 13, 1 << 13]);
    let error = refusal(&file);
    assert!(
        error.contains("MatMul 'd'") && error.contains("multiplications"),
        "{error}"
    );
    // The images themselves.
    let error = refusal(&File::new(13, &[0, 1, 1 << 31, 1 << 31]).node("Relu", "x", "y", &[]));
    assert!(
        error.contains("images of shape") && error.contains("4611686018427387904 elements"),
        "{error}"
    );
}

#[test]
fn a_file_may_hold_what_is_larger_than_a_value() {
    // Weights of 2^26 elements and more are moved about, as long as they do not grow.
    let room = crate::room::Room::new(1, 1 << 30);
    assert!(room.value(&[1 << 27], 1 << 27).is_ok());
    assert!(room.value(&[(1 << 27) + 1], 1 << 27).is_err());
    assert!(room.value(&[0, usize::MAX, 2], 0).is_err());
    assert!(room.value(&[1; 33], 0).is_err());
    let room = crate::room::Room::new(4, 1 << 30);
    assert!(room.value(&[4, 1 << 26], 0).is_ok());
    let error = room.value(&[5, 1 << 26], 0).unwrap_err().to_string();
    assert!(error.contains("335544320 elements for 4 images"), "{error}");
}

#[test]
fn whole_numbers_are_computed_as_such() {
    let file = |op: &str, inputs: &str| {
        let file = File::new(13, &[0, 4])
            .node(op, inputs, "c", &[])
            .node("Add", "x c", "y", &[])
            .ints("a", &[7, -7, 2, i64::MAX - 1])
            .ints("b", &[2, 2, 3, 1]);
        let graph = file.graph();
        let constant = graph.names.iter().position(|name| name == "c").unwrap();
        graph.constants[&constant].to_vec1::<i64>().unwrap()
    };
    assert_eq!(file("Add", "a b"), [9, -5, 5, i64::MAX]);
    assert_eq!(file("Sub", "b a"), [-5, 9, 1, 2 - i64::MAX]);
    assert_eq!(file("Div", "a b"), [3, -3, 0, i64::MAX - 1]);
    assert_eq!(file("Min", "a b"), [2, -7, 2, 1]);
    assert_eq!(file("Pow", "b b"), [4, 4, 27, 1]);
    assert_eq!(file("Neg", "b"), [-2, -2, -3, -1]);
    assert_eq!(file("Abs", "b"), [2, 2, 3, 1]);
}

#[test]
fn the_documentation_lists_every_operator() {
    let page = include_str!("../../../../docs/onnx.md").replace('\n', " ");
    assert!(page.contains(&format!("Known operators: {}.", crate::ops::SUPPORTED.join(", "))));
}
