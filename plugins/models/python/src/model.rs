//! A model in Python as a classifier and as a purifier.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use advae_sdk::candle_core::{DType, Device, Result, Tensor, bail};
use advae_sdk::nn::custom_vjp;
use advae_sdk::prelude::*;
use advae_sdk::serde::Deserialize;
use rand::RngCore;
use serde_json::{Value, json};

use crate::worker::{Kept, Place, Run, Worker};

settings! {
    /// Where the model is, and what the model itself does not say.
    pub struct PythonSettings {
        /// The Python file that defines the model.
        file: InputFile = InputFile::default(),
        /// Class, function or object in the file: the model, or a callable that makes the model without arguments. If empty, the only
        /// class with a method forward.
        class: String = String::new(),
        /// File of weights: a state dict that torch.save wrote. For an object of arrays: a file that its method load reads.
        weights: InputFile = InputFile::default(),
        /// Shape of an image, [channels,rows,columns]: shape=[3,32,32].
        shape: Option<Vec<usize>> = None,
        /// Mean that is subtracted from the pixels in [0,1], one number or one per channel: mean=[0.49,0.48,0.45].
        mean: Option<PerChannel> = None,
        /// Standard deviation by which the result is divided, one number or one per channel. With std=1/255 the model gets pixels
        /// from 0 to 255.
        std: Option<PerChannel> = None,
        /// Whether the output is random. If so, images are run one at a time, each with its own seed, unless forward takes seeds.
        random: Option<bool> = None,
        /// Device that runs a torch.nn.Module, as PyTorch names it: cpu, cuda, cuda:1.
        device: String = "cpu".into(),
        /// The Python interpreter. If empty, that of $VIRTUAL_ENV, else python3.
        python: String = String::new(),
        /// Seconds that one call may take before the process is ended.
        timeout: f64 = 600.,
        /// Images per call.
        batch: usize = 128,
        /// Socket of a process that serves the model (advae.serve of the Python package). It replaces the file.
        socket: String = String::new(),
    }
}

/// What a decorator of the Python package notes on a model; settings come first.
#[derive(Deserialize, Default)]
#[serde(crate = "advae_sdk::serde", default)]
struct Declared {
    shape: Option<Vec<usize>>,
    mean: Option<PerChannel>,
    std: Option<PerChannel>,
    random: Option<bool>,
}

/// Shapes that are tried where nothing says which it is.
const COMMON: [[usize; 3]; 2] = [[1, 28, 28], [3, 32, 32]];

/// A model in another process between images with pixels in `[0, 1]` and its output.
struct Network {
    worker: Arc<Worker>,
    image: Option<[usize; 3]>,
    mean: PerChannel,
    std: PerChannel,
    /// Made of them when it is known how many channels there are.
    normalisation: Option<Normalisation>,
    batch: usize,
    random: bool,
    /// Whether `forward` takes seeds, one an image.
    takes_seeds: bool,
    differentiable: bool,
    notes: Vec<String>,
}

impl Network {
    fn start(settings: &PythonSettings, weights: &Weights, class: &str) -> Result<Network> {
        if !weights.is_init() || weights.is_seeded() {
            bail!("weights of a model in Python are a setting, weights=FILE, and it cannot begin anew from a seed")
        }
        if !(0.001..=1e6).contains(&settings.timeout) {
            bail!(
                "timeout is {:?}: expected seconds between 0.001 and 1000000.0",
                settings.timeout
            )
        }
        if !(1..=65_536).contains(&settings.batch) {
            bail!("batch is {}: expected between 1 and 65536 images", settings.batch)
        }
        let place = match (settings.file.path(), settings.socket.as_str()) {
            ("", "") => bail!("no file: name one, python:file=FILE.py"),
            ("", socket) => Place::Socket(socket.into()),
            (_, "") => Place::Process(interpreter(&settings.python)),
            _ => bail!("a file and a socket are given: choose one of them"),
        };
        let load = json!({
            "kind": class,
            "file": settings.file.path(),
            "name": settings.file.name(),
            "class": settings.class,
            "weights": settings.weights.path(),
            "weights_name": settings.weights.name(),
            "device": settings.device,
        });
        let (worker, told) = Worker::start(place, load, Duration::from_secs_f64(settings.timeout))?;
        let Ok(declared) = serde_json::from_value::<Declared>(told["declared"].clone()) else {
            bail!(
                "its decorator says {}: expected shape, mean, std and random as the settings have them",
                told["declared"]
            )
        };
        let image = match settings.shape.clone().or(declared.shape).as_deref() {
            None => None,
            Some([c, h, w]) if c * h * w > 0 => Some([*c, *h, *w]),
            Some(other) => bail!("shape is {other:?}: expected [channels,rows,columns]"),
        };
        let mut network = Network {
            worker,
            image,
            mean: settings.mean.clone().or(declared.mean).unwrap_or(PerChannel::One(0.)),
            std: settings.std.clone().or(declared.std).unwrap_or(PerChannel::One(1.)),
            normalisation: None,
            batch: settings.batch,
            random: settings.random.or(declared.random).unwrap_or(false),
            takes_seeds: told["seeds"] == true,
            differentiable: told["gradient"] != "none",
            notes: notes(&told),
        };
        if let Some([c, _, _]) = image {
            network.normalise(c)?;
        }
        Ok(network)
    }

    fn normalise(&mut self, channels: usize) -> Result<()> {
        self.normalisation = Some(Normalisation::new(&self.mean, &self.std, channels)?);
        Ok(())
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let normalised = match &self.normalisation {
            Some(by) => by.apply(x)?,
            None => x.clone(),
        };
        let n = x.dims()[0];
        let seeds: Vec<u64> = match self.random {
            true => (0..n).map(|i| pass.rng(i, 0).next_u64()).collect(),
            false => vec![],
        };
        if !self.random || self.takes_seeds {
            return self.call(&normalised, &seeds);
        }
        // One generator for a whole batch would make an image's numbers depend on those beside it.
        let each = (0..n).map(|i| self.call(&normalised.narrow(0, i, 1)?, &seeds[i..=i]));
        Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)
    }

    fn call(&self, x: &Tensor, seeds: &[u64]) -> Result<Tensor> {
        let keep = x.track_op() && self.differentiable;
        let here = x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let (y, kept) = self.worker.run(&Run { x: &here, keep, seeds })?;
        if y.dims().first() != x.dims().first() {
            bail!(
                "it gives an output of shape {:?} for images of shape {:?}: expected a row an image",
                y.dims(),
                x.dims()
            )
        }
        let y = y.to_device(x.device())?;
        let device = x.device().clone();
        custom_vjp(x, &y, move |cotangent| {
            pull_back(kept.as_ref(), cotangent)?.to_device(&device)
        })
    }
}

fn pull_back(kept: Option<&Kept>, cotangent: &Tensor) -> Result<Tensor> {
    match kept {
        Some(kept) => kept.back(&cotangent.to_device(&Device::Cpu)?),
        None => bail!(
            "this model has no gradient: give it a method vjp(x, cotangent), or choose an attack that needs none, such as square"
        ),
    }
}

/// What a reader of its results should know.
fn notes(told: &Value) -> Vec<String> {
    let mut place = format!("runs in Python {}", told["python"].as_str().unwrap_or("?"));
    if let Some(torch) = told["torch"].as_str() {
        place += &format!(" with PyTorch {torch}");
    }
    let mut notes = vec![place];
    let siblings: Vec<&str> = told["siblings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !siblings.is_empty() {
        notes.push(format!(
            "its file imports {}: the hash in the results does not cover them",
            siblings.join(", ")
        ));
    }
    notes
}

/// The interpreter that a user means.
fn interpreter(setting: &str) -> PathBuf {
    match (setting, std::env::var_os("VIRTUAL_ENV")) {
        ("", Some(environment)) => PathBuf::from(environment).join("bin/python"),
        ("", None) => "python3".into(),
        (named, _) => named.into(),
    }
}

/// Images without a pattern, `[2, C, H, W]`.
fn trial([c, h, w]: [usize; 3]) -> Result<Tensor> {
    Pass::eval().rand_uniform(&[2, c, h, w], 0., 1., 0, &Device::Cpu)
}

/// A classifier in Python.
pub struct PythonClassifier {
    network: Network,
    image: [usize; 3],
    classes: usize,
}

impl PythonClassifier {
    /// Classes, and whether the outputs look like probabilities.
    fn examine(network: &Network, image: [usize; 3]) -> Result<(usize, bool)> {
        let y = network.forward(&Pass::eval(), &trial(image)?)?;
        match y.dims() {
            [2, classes] if *classes >= 2 => {
                let rows = y.to_vec2::<f32>()?;
                let sums_to_1 = |row: &Vec<f32>| {
                    row.iter().all(|p| (0. ..=1.).contains(p)) && (row.iter().sum::<f32>() - 1.).abs() < 1e-3
                };
                Ok((*classes, rows.iter().all(sums_to_1)))
            }
            other => bail!("it gives {other:?} for two images: expected logits [2,K] of two classes or more"),
        }
    }
}

#[cfg(test)]
impl PythonClassifier {
    pub(crate) fn end_process(&self) {
        self.network.worker.end();
    }
}

impl Classifier for PythonClassifier {
    type Settings = PythonSettings;

    fn new(settings: PythonSettings, weights: &Weights) -> Result<Self> {
        let mut network = Network::start(&settings, weights, "classifier")?;
        let (image, (classes, probabilities)) = match network.image {
            Some(image) => (image, Self::examine(&network, image)?),
            None => {
                let tried = COMMON.map(|image| {
                    network.normalise(image[0])?;
                    Self::examine(&network, image)
                });
                let image = match &tried {
                    [Ok(_), Err(_)] => COMMON[0],
                    [Err(_), Ok(_)] => COMMON[1],
                    [Ok(_), Ok(_)] => bail!("it takes images of several shapes: give it one, shape=[3,32,32]"),
                    [Err(a), Err(b)] => bail!(
                        "give it the shape of its images, shape=[channels,rows,columns]: it refuses {:?} ({a}) and {:?} ({b})",
                        COMMON[0],
                        COMMON[1]
                    ),
                };
                network.normalise(image[0])?;
                (image, Self::examine(&network, image)?)
            }
        };
        if probabilities {
            network
                .notes
                .push("its outputs look like probabilities: attacks need logits, so leave the softmax out".into());
        }
        Ok(Self {
            network,
            image,
            classes,
        })
    }

    fn input(&self) -> [usize; 3] {
        self.image
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn random(&self) -> bool {
        self.network.random
    }

    fn batch(&self) -> Option<usize> {
        Some(self.network.batch)
    }

    fn note(&self) -> String {
        self.network.notes.join("; ")
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let y = self.network.forward(pass, x)?;
        match y.dims() {
            [_, classes] if *classes == self.classes => Ok(y),
            other => bail!(
                "it gives an output of shape {other:?}: expected {} logits an image",
                self.classes
            ),
        }
    }
}

/// A purifier in Python. Where `mean` and `std` are given, its outputs are normalised by them as its inputs are.
pub struct PythonPurifier(Network);

impl Purifier for PythonPurifier {
    type Settings = PythonSettings;

    fn new(settings: PythonSettings, weights: &Weights) -> Result<Self> {
        let network = Network::start(&settings, weights, "purifier")?;
        let plain = network.mean == PerChannel::One(0.) && network.std == PerChannel::One(1.);
        if network.image.is_none() && !plain {
            bail!("mean and std need the shape of the images: expected shape=[channels,rows,columns] beside them")
        }
        Ok(Self(network))
    }

    fn input(&self) -> Option<[usize; 3]> {
        self.0.image
    }

    fn random(&self) -> bool {
        self.0.random
    }

    fn backward(&self) -> Vec<BackwardRule> {
        match self.0.differentiable {
            true => vec![BackwardRule::Exact],
            // What an adaptive attacker would take first.
            false => vec![BackwardRule::Identity, BackwardRule::None],
        }
    }

    fn batch(&self) -> Option<usize> {
        Some(self.0.batch)
    }

    fn note(&self) -> String {
        self.0.notes.join("; ")
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let y = self.0.forward(pass, x)?;
        if y.dims() != x.dims() {
            bail!(
                "it gives {:?} for images {:?}: expected images of the shape it takes",
                y.dims(),
                x.dims()
            )
        }
        match &self.0.normalisation {
            Some(by) => by.undo(&y),
            None => Ok(y),
        }
    }
}
