//! A file as a classifier and as a purifier.

use advae_sdk::candle_core::{DType, Device, Error, Result, Tensor, bail};
use advae_sdk::nn::{Net, Pass};
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

use crate::graph::Graph;
use crate::layers::Layers;
use crate::lower::{Entry, lower};
use crate::room::{Room, count};

settings! {
    /// What the file itself does not say.
    pub struct OnnxSettings {
        /// The ONNX file.
        model: InputFile = InputFile::default(),
        /// Shape of an image, [channels,rows,columns], if the file does not fix it: shape=[3,32,32].
        shape: Option<Vec<usize>> = None,
        /// Mean that is subtracted from the pixels in [0,1], one number or one per channel: mean=[0.49,0.48,0.45].
        mean: PerChannel = PerChannel::One(0.),
        /// Standard deviation by which the result is divided, one number or one per channel. With std=1/255 the network gets pixels
        /// from 0 to 255.
        std: PerChannel = PerChannel::One(1.),
        /// Order of the axes of an image: channels,rows,columns (nchw) or rows,columns,channels (nhwc). auto decides by the shape of
        /// the file's input.
        layout: Layout = Layout::Auto,
        /// Name of the output to use. If empty, the first output.
        output: String = String::new(),
    }
}

/// Where a file's images have their channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "lowercase")]
pub enum Layout {
    Auto,
    Nchw,
    Nhwc,
}

/// What runs a graph.
enum Runner {
    /// All operators as one: the outputs, and the features if there are any.
    Fused(Vec<Net>),
    /// One after the other.
    Layers(Box<Layers>),
}

/// A network of a file between images `[N, C, H, W]` with pixels in `[0, 1]` and its output.
struct Network {
    runner: Runner,
    arrangement: Arrangement,
    /// The output, then the features if there are any, as values of the graph.
    asked: Vec<usize>,
    /// Shape of the output for one image.
    output: Vec<usize>,
    notes: Vec<String>,
}

/// How a file takes its images.
#[derive(Clone, Debug)]
struct Arrangement {
    image: [usize; 3],
    channels_last: bool,
    /// Axes behind the batch's, where they are others than those of an image.
    axes: Option<Vec<usize>>,
    normalisation: Normalisation,
}

impl Arrangement {
    fn new(settings: &OnnxSettings, graph: &Graph) -> Result<Arrangement> {
        let own = match graph.input.dims.as_deref() {
            Some([]) => bail!(
                "the input '{}' is one number: expected images with a batch axis",
                graph.input.name
            ),
            Some([_, axes @ ..]) => Some(axes),
            None => None,
        };
        let known = own.and_then(|axes| axes.iter().copied().collect::<Option<Vec<usize>>>());
        let shown = || match own {
            None => "nothing".into(),
            Some(axes) => {
                let sizes = axes.iter().map(|d| d.map_or("?".into(), |d| d.to_string()));
                format!("[N,{}]", sizes.collect::<Vec<_>>().join(","))
            }
        };
        let few = |d: Option<usize>| d.is_some_and(|d| d == 1 || d == 3);
        let channels_last = match (settings.layout, own) {
            (Layout::Nchw, _) => false,
            (Layout::Nhwc, _) => true,
            (Layout::Auto, Some([first, _, last])) => few(*last) && !few(*first),
            (Layout::Auto, _) => false,
        };
        let image = match (&settings.shape, known.as_deref()) {
            (Some(shape), _) => match shape.as_slice() {
                [c, h, w] => [*c, *h, *w],
                _ => bail!("shape has {} numbers: expected [channels,rows,columns]", shape.len()),
            },
            (None, Some([h, w, c])) if channels_last => [*c, *h, *w],
            (None, Some([c, h, w])) => [*c, *h, *w],
            // One axis of pixels, such as of MNIST's.
            (None, Some(axes)) => match count(axes) {
                Some(784) => [1, 28, 28],
                Some(3072) => [3, 32, 32],
                _ => bail!(
                    "the file's input is {}: say which images it takes, shape=[channels,rows,columns]",
                    shown()
                ),
            },
            (None, None) => {
                bail!(
                    "the file says {} of its input: say which images it takes, shape=[channels,rows,columns]",
                    shown()
                )
            }
        };
        if image.contains(&0) {
            bail!("shape {image:?} has an axis of no elements")
        }
        (Room::new(1, graph.work).value(&image, 0)).map_err(|e| e.context(format!("images of shape {image:?}")))?;
        let [c, h, w] = image;
        let as_image = if channels_last { [h, w, c] } else { image };
        let axes = match own {
            Some(axes) if axes.len() != 3 => Some(match known {
                Some(axes) => axes,
                // One free axis takes what the others leave.
                None if axes.len() == 1 => vec![c * h * w],
                None => bail!("the file's input is {}: export it with fixed sizes", shown()),
            }),
            Some(axes) => {
                let fits = axes
                    .iter()
                    .zip(as_image)
                    .all(|(own, image)| own.is_none_or(|own| own == image));
                if !fits {
                    bail!("images of shape {image:?} do not fit the file's input {}", shown())
                }
                None
            }
            None => None,
        };
        if let Some(axes) = &axes
            && count(axes) != Some(c * h * w)
        {
            bail!("images of shape {image:?} do not fit the file's input {}", shown())
        }
        Ok(Arrangement {
            image,
            channels_last,
            axes,
            normalisation: Normalisation::new(&settings.mean, &settings.std, c)?,
        })
    }

    /// Images `[N, C, H, W]` as the file takes them.
    fn arrange(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.normalisation.apply(x)?;
        if self.channels_last {
            x = x.permute((0, 2, 3, 1))?.contiguous()?;
        }
        match &self.axes {
            Some(axes) => {
                let shape: Vec<usize> = [x.dims()[0]].into_iter().chain(axes.iter().copied()).collect();
                x.contiguous()?.reshape(shape)
            }
            None => Ok(x),
        }
    }

    /// Its output as images again, in pixels.
    fn restore(&self, y: &Tensor) -> Result<Tensor> {
        let [c, h, w] = self.image;
        let n = y.dims()[0];
        let y = match self.channels_last {
            true => y
                .contiguous()?
                .reshape((n, h, w, c))?
                .permute((0, 3, 1, 2))?
                .contiguous()?,
            false => y.contiguous()?.reshape((n, c, h, w))?,
        };
        self.normalisation.undo(&y)
    }
}

impl Network {
    fn read(settings: &OnnxSettings, weights: &Weights, classifier: bool) -> Result<Network> {
        let path = settings.model.path();
        if path.is_empty() {
            bail!("no file: name one, onnx:model=FILE.onnx")
        }
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) => bail!("cannot read the model '{path}': {e}"),
        };
        let mut graph = Graph::read(&bytes, Some(settings.output.as_str()).filter(|name| !name.is_empty()))?;
        drop(bytes);
        if classifier {
            graph.cut_softmax();
        }
        let arrangement = Arrangement::new(settings, &graph)?;
        let features = if classifier { graph.features() } else { None };
        let asked: Vec<usize> = [graph.output].into_iter().chain(features).collect();
        // Nothing of the caller's weights is asked for before it is clear which way the graph runs.
        let trial = Layers::new(&graph, &Weights::own())?;
        let blank = |n: usize| {
            let [c, h, w] = arrangement.image;
            arrangement.arrange(&Tensor::zeros((n, c, h, w), DType::F32, &Device::Cpu)?)
        };
        let of_batch = |n: usize| {
            trial
                .shapes(n, blank)
                .map_err(|e| e.context(format!("on images of shape {:?}", arrangement.image)))
        };
        let shapes = [of_batch(2)?, of_batch(3)?];
        let output = match (shapes[0].get(&graph.output), shapes[1].get(&graph.output)) {
            (Some(two), Some(three)) if two.first() == Some(&2) && three.first() == Some(&3) => two[1..].to_vec(),
            _ => bail!(
                "the output '{}' has no row an image: export the model with a free batch axis, \
                 torch.onnx.export(..., dynamic_axes={{'input': {{0: 'batch'}}}})",
                graph.names[graph.output]
            ),
        };
        let (x, expected) = independent(&trial, &arrangement, graph.output)?;
        let [scale, shift] = arrangement.normalisation.affine();
        let entry = Entry {
            image: arrangement.image,
            channels_last: arrangement.channels_last,
            normalise: (!arrangement.normalisation.is_identity()).then_some([&scale, &shift]),
        };
        let mut notes = std::mem::take(&mut graph.notes);
        let fused = lower(&graph, &shapes, &entry, &Weights::own(), &asked).and_then(|nets| {
            let y = nets[0].forward(&Pass::eval(), &x)?.flatten_all()?.to_vec1()?;
            match apart(&y, &expected) {
                None => Ok(()),
                Some(by) => bail!("a fused net that gives something else (by {by}): please report this file"),
            }
        });
        let runner = match fused {
            Ok(()) => Runner::Fused(lower(&graph, &shapes, &entry, weights, &asked)?),
            Err(reason) => {
                notes.push(format!(
                    "it runs operator by operator, not fused, because of {}",
                    plain(&reason)
                ));
                Runner::Layers(Box::new(Layers::new(&graph, weights)?))
            }
        };
        Ok(Network {
            runner,
            arrangement,
            asked,
            output,
            notes,
        })
    }

    /// The output, or the features, of images.
    fn forward(&self, pass: &Pass, x: &Tensor, number: usize) -> Result<Tensor> {
        match &self.runner {
            Runner::Fused(nets) => nets[number].forward(pass, x),
            Runner::Layers(layers) => {
                let asked = &self.asked[number..=number];
                let mut outputs = layers.run(pass, &self.arrangement.arrange(x)?, asked)?;
                Ok(outputs.swap_remove(0))
            }
        }
    }

    fn threading(&self) -> Threading {
        match self.runner {
            Runner::Fused(_) => Threading::Caller,
            Runner::Layers(_) => Threading::Internal,
        }
    }

    fn batch(&self) -> Option<usize> {
        match self.runner {
            Runner::Fused(_) => Some(24),
            Runner::Layers(_) => None,
        }
    }
}

/// An error in one line, without the places in this code that it went through.
pub(crate) fn plain(error: &Error) -> String {
    match error {
        Error::WithBacktrace { inner, .. } => plain(inner),
        Error::Context { inner, context } => format!("{context}: {}", plain(inner)),
        other => other.to_string(),
    }
}

/// Three images, and the outputs for them, if images of a batch do not depend on each other, as they do where a file's fixed batch is part
/// of its arithmetic.
fn independent(layers: &Layers, arrangement: &Arrangement, output: usize) -> Result<(Tensor, Vec<f32>)> {
    let [c, h, w] = arrangement.image;
    let size = c * h * w;
    // Three different images without a generator: the golden ratio's multiples are spread evenly.
    let pixels = (0..3 * size).map(|i| ((i as f64 + 1.) * 0.618_033_988_75).fract() as f32);
    let x = Tensor::from_vec(pixels.collect::<Vec<f32>>(), (3, c, h, w), &Device::Cpu)?;
    let run = |x: &Tensor| -> Result<Vec<f32>> {
        let mut y = layers.run(&Pass::eval(), &arrangement.arrange(x)?, &[output])?;
        y.swap_remove(0).flatten_all()?.to_dtype(DType::F32)?.to_vec1()
    };
    let together = run(&x)?;
    let mut alone = vec![];
    for i in 0..3 {
        alone.extend(run(&x.narrow(0, i, 1)?)?);
    }
    match apart(&alone, &together) {
        None => Ok((x, together)),
        Some(by) => bail!(
            "an image's output depends on the other images of its batch (by {by}): export the model in evaluation mode and with a \
             free batch axis"
        ),
    }
}

/// By how much two outputs differ, where that is more than rounding; numbers that are not finite are not compared.
fn apart(values: &[f32], expected: &[f32]) -> Option<String> {
    if values.len() != expected.len() {
        return Some(format!("{} numbers in place of {}", values.len(), expected.len()));
    }
    let finite = values
        .iter()
        .zip(expected)
        .filter(|(a, b)| a.is_finite() && b.is_finite());
    let (largest, apart) = finite.fold((1e-6f32, 0f32), |(largest, apart), (a, b)| {
        (largest.max(b.abs()), apart.max((a - b).abs()))
    });
    (apart > 1e-3 * largest).then(|| format!("{apart:.2e} of {largest:.2e}"))
}

impl Graph {
    /// Attacks ask for logits: softmax at the end is left out.
    fn cut_softmax(&mut self) {
        while let Some(node) = self.maker(self.output) {
            let (label, op) = (node.label(), node.op.clone());
            let Some(input) = node.inputs.first().copied().flatten() else {
                return;
            };
            match op.as_str() {
                "Softmax" => {
                    self.notes
                        .push(format!("{label} at the end is left out: what it takes are the logits"));
                    self.end_at(input);
                }
                "Identity" => self.end_at(input),
                _ => return,
            }
        }
    }

    /// What the last linear layer takes.
    fn features(&self) -> Option<usize> {
        let mut node = self.maker(self.output)?;
        if node.op == "Add" {
            node = (node.inputs.iter().flatten().filter(|v| !self.constants.contains_key(v)))
                .find_map(|v| self.maker(*v))?;
        }
        let linear = matches!(node.op.as_str(), "Gemm" | "MatMul");
        let input = node.inputs.first().copied().flatten()?;
        (linear && input != self.input.value && !self.constants.contains_key(&input)).then_some(input)
    }
}

/// A classifier out of an ONNX file.
pub struct OnnxClassifier {
    network: Network,
    classes: usize,
}

impl Classifier for OnnxClassifier {
    type Settings = OnnxSettings;

    fn new(settings: OnnxSettings, weights: &Weights) -> Result<Self> {
        let network = Network::read(&settings, weights, true)?;
        let classes = network.output.iter().product();
        if classes < 2 || network.output.iter().filter(|d| **d != 1).count() != 1 {
            bail!(
                "its output has shape {:?} an image: expected a logit for each of two classes or more",
                network.output
            )
        }
        Ok(Self { network, classes })
    }

    fn input(&self) -> [usize; 3] {
        self.network.arrangement.image
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn threading(&self) -> Threading {
        self.network.threading()
    }

    fn batch(&self) -> Option<usize> {
        self.network.batch()
    }

    fn note(&self) -> String {
        self.network.notes.join("; ")
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let logits = self.network.forward(pass, x, 0)?;
        match logits.rank() {
            2 => Ok(logits),
            _ => logits.reshape((x.dims()[0], self.classes)),
        }
    }

    fn features(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
        match self.network.asked.len() {
            1 => Ok(None),
            _ => self.network.forward(pass, x, 1)?.flatten_from(1).map(Some),
        }
    }
}

/// A purifier out of an ONNX file. Where `mean` and `std` are given, its outputs are normalised by them as its inputs are.
pub struct OnnxPurifier(Network);

impl Purifier for OnnxPurifier {
    type Settings = OnnxSettings;

    fn new(settings: OnnxSettings, weights: &Weights) -> Result<Self> {
        let network = Network::read(&settings, weights, false)?;
        let image = network.arrangement.image;
        if network.output.iter().product::<usize>() != image.iter().product::<usize>() {
            bail!(
                "its output has shape {:?} an image, the images {image:?}: a purifier gives images of the shape it takes",
                network.output
            )
        }
        let Arrangement { channels_last, .. } = network.arrangement;
        let [c, h, w] = image;
        if channels_last && network.output == [c, h, w] && image != [h, w, c] {
            bail!("it takes images channels last and gives them channels first: a purifier gives them as it takes them")
        }
        Ok(Self(network))
    }

    fn input(&self) -> Option<[usize; 3]> {
        Some(self.0.arrangement.image)
    }

    fn threading(&self) -> Threading {
        self.0.threading()
    }

    fn batch(&self) -> Option<usize> {
        self.0.batch()
    }

    fn note(&self) -> String {
        self.0.notes.join("; ")
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.0.arrangement.restore(&self.0.forward(pass, x, 0)?)
    }
}
