//! Where a model's parameters come from.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::key_map::{KeyMap, reorder, reordered, usual_axes};
use crate::{Param, key_rng};

/// How a parameter starts when no file gives its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All this value.
    Const(f64),
    /// Uniform in `+-sqrt(6 / (fan_in + fan_out))` (Glorot and Bengio 2010).
    GlorotUniform {
        /// Inputs that reach one output.
        fan_in: usize,
        /// Outputs that one input reaches.
        fan_out: usize,
    },
    /// Normal with deviation `sqrt(2 / fan_in)` (He et al. 2015).
    HeNormal {
        /// Inputs that reach one output.
        fan_in: usize,
    },
    /// Uniform in `+-bound`.
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
}

impl Init {
    /// [`Init::GlorotUniform`] for a layer from `[in, out]` channels or elements, over `taps` places.
    pub(crate) fn glorot_uniform([inputs, outputs]: [usize; 2], taps: usize) -> Init {
        Init::GlorotUniform {
            fan_in: inputs * taps,
            fan_out: outputs * taps,
        }
    }
}

/// Where a model's parameters come from: a safetensors blob or a seeded initialisation.
///
/// A blob is read strictly: a missing name, a wrong shape, a value that is not finite, and (see
/// [`Weights::finish`]) a name nobody asked for are errors, except for [counters](Weights::counters) of PyTorch's batch norm.
/// `f16` and `bf16` are widened to `f32`. An initial value depends on the seed and the parameter's name, not on the order of
/// creation.
#[derive(Clone)]
pub struct Weights {
    prefix: String,
    dtype: DType,
    device: Device,
    source: Arc<Source>,
    created: Arc<Mutex<Vec<Param>>>,
}

enum Source {
    /// Values that the model brings, where it brings any, else an initialisation from seed 0.
    Own,
    Seed(u64),
    File(File),
}

#[derive(Default)]
struct File {
    entries: HashMap<String, Entry>,
    counters: Vec<String>,
    /// What a map let be done.
    reading: Mutex<Reading>,
}

struct Entry {
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Whether a map named it, and left the order of its axes open.
    open: bool,
}

impl Entry {
    fn new(shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self {
            shape,
            values,
            open: false,
        }
    }
}

/// Parameters of tensors whose axes a map left open.
#[derive(Default)]
struct Reading {
    /// Those that fit transposed only.
    transposed: Vec<String>,
    /// Those that fit both ways, and were read as they are.
    either: Vec<String>,
}

impl Weights {
    /// Parameters from a safetensors blob.
    ///
    /// # Errors
    /// When the blob is no safetensors file, or holds integers (but for counters) or values that are not finite.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Weights> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| {
            candle_core::Error::msg(format!(
                "not a safetensors file ({e}): save it with safetensors.torch.save_file, or name another"
            ))
        })?;
        let (mut entries, mut counters) = (HashMap::new(), vec![]);
        for (name, view) in file.iter() {
            if is_counter(name, view.shape()) {
                counters.push(name.to_string());
                continue;
            }
            let values = read_values(name, &view)?;
            let shape = view.shape().to_vec();
            entries.insert(name.to_string(), Entry::new(shape, values));
        }
        counters.sort();
        Ok(Weights::of_file(entries, counters))
    }

    /// Parameters from a state dict that `torch.save` wrote, of PyTorch 1.6 or newer: a dictionary of tensors, or one that holds it as
    /// `state_dict`, `model_state_dict` or `model`. Its pickle is read and never executed.
    ///
    /// # Errors
    /// When the file is none, and as for [`from_safetensors`](Self::from_safetensors); when a tensor is a view into a larger one.
    pub fn from_pth(path: &Path) -> Result<Weights> {
        // candle's reader of pickles panics at some damaged ones.
        let read = catch_unwind(AssertUnwindSafe(|| Self::read_pth(path)));
        read.unwrap_or_else(|_| {
            bail!("not a state dict (its pickle is damaged): save it anew with torch.save(model.state_dict(), FILE)")
        })
    }

    fn read_pth(path: &Path) -> Result<Weights> {
        // A dictionary without the key is refused without a word; one read as a whole complains of everything that is no tensor.
        let keys = ["state_dict", "model_state_dict", "model"]
            .map(Some)
            .into_iter()
            .chain([None]);
        let mut failure = None;
        let found = keys.into_iter().find_map(|key| match PthTensors::new(path, key) {
            Ok(tensors) => Some(tensors).filter(|tensors| !tensors.tensor_infos().is_empty()),
            Err(e) => {
                failure = Some(e);
                None
            }
        });
        let Some(tensors) = found else {
            let why = failure.map_or_else(|| "it holds no tensors".into(), |e| first_line(&e));
            bail!("not a state dict ({why}): save it with torch.save(model.state_dict(), FILE), or as safetensors")
        };
        let (mut entries, mut counters) = (HashMap::new(), vec![]);
        for (name, info) in tensors.tensor_infos() {
            let shape = info.layout.dims().to_vec();
            if is_counter(name, &shape) {
                counters.push(name.clone());
                continue;
            }
            // candle 0.11 counts the elements before a view as bytes.
            if info.layout.start_offset() > 0 {
                bail!(
                    "'{name}' is a view into a larger tensor: save {{k: v.clone() for k, v in model.state_dict().items()}}"
                );
            }
            if !info.dtype.is_float() {
                bail!(
                    "'{name}' has type {:?} in the weight file: save it as float32 or float16",
                    info.dtype
                );
            }
            let Some(tensor) = tensors.get(name)? else { continue };
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            all_finite(name, &values)?;
            entries.insert(name.clone(), Entry::new(shape, values));
        }
        counters.sort();
        Ok(Weights::of_file(entries, counters))
    }

    /// Parameters initialised at random from `seed`.
    pub fn init(seed: u64) -> Weights {
        Weights::new(Source::Seed(seed))
    }

    /// What a model starts with where neither a file nor a seed was asked for: the values [`given`](Self::given) by it, else an
    /// initialisation from seed 0.
    pub fn own() -> Weights {
        Weights::new(Source::Own)
    }

    fn of_file(entries: HashMap<String, Entry>, counters: Vec<String>) -> Weights {
        Weights::new(Source::File(File {
            entries,
            counters,
            ..File::default()
        }))
    }

    fn new(source: Source) -> Weights {
        Weights {
            prefix: String::new(),
            dtype: DType::F32,
            device: Device::Cpu,
            source: Arc::new(source),
            created: Arc::default(),
        }
    }

    /// Whether the parameters are initialised, not read from a file.
    pub fn is_init(&self) -> bool {
        !matches!(*self.source, Source::File(_))
    }

    /// Whether a seeded initialisation was asked for: a model that has values of its own is to begin anew.
    pub fn is_seeded(&self) -> bool {
        matches!(*self.source, Source::Seed(_))
    }

    /// Whether every parameter made so far has the value that the model [gave](Self::given), and there is one.
    pub fn all_given(&self) -> bool {
        let created = self.created();
        matches!(*self.source, Source::Own) && !created.is_empty() && created.iter().all(Param::given)
    }

    /// Names ending in `num_batches_tracked` that were left out of the file, sorted: PyTorch's batch norm counts its training
    /// batches in them, and no network reads them in evaluation.
    pub fn counters(&self) -> &[String] {
        match &*self.source {
            Source::Own | Source::Seed(_) => &[],
            Source::File(file) => &file.counters,
        }
    }

    /// Shape of a tensor of the file; none where there is no file or no such name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match &*self.source {
            Source::Own | Source::Seed(_) => None,
            Source::File(file) => Some(&file.entries.get(&self.full_name(name))?.shape),
        }
    }

    /// The tensors of the file after `change` was made to each, by full name, for a model of another shape. A source
    /// without a file stays as it is.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn map(&self, change: impl Fn(&str, Tensor) -> Result<Tensor>) -> Result<Weights> {
        let Source::File(file) = &*self.source else {
            return Ok(self.clone());
        };
        let mapped = file.entries.iter().map(|(name, entry)| {
            let tensor = Tensor::from_slice(&entry.values, entry.shape.as_slice(), &Device::Cpu)?;
            let tensor = change(name, tensor)?;
            let entry = Entry {
                open: entry.open,
                ..Entry::new(tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1()?)
            };
            Ok((name.clone(), entry))
        });
        let mapped = File {
            entries: mapped.collect::<Result<_>>()?,
            counters: file.counters.clone(),
            ..File::default()
        };
        Ok(Weights {
            source: Arc::new(Source::File(mapped)),
            ..self.clone()
        })
    }

    /// The tensors of the file under the names that a map gives them. A tensor that it names may be transposed as its parameter's shape
    /// asks: `[in, out]` to `[out, in]`, and `[rows, columns, in, out]` to `[out, in, rows, columns]`.
    ///
    /// # Errors
    /// Where the map names a tensor that is not there, gives two tensors one name, or an order of axes does not fit; where there is no
    /// file.
    pub fn renamed(&self, map: &KeyMap) -> Result<Weights> {
        let Source::File(file) = &*self.source else {
            bail!("a map of names needs a weight file")
        };
        for rule in map.exact() {
            if !file.entries.contains_key(&rule.tensor) {
                let mut names: Vec<&str> = file.entries.keys().map(String::as_str).collect();
                names.sort_unstable();
                bail!(
                    "the map names '{}', which the weight file does not have: expected one of {}",
                    rule.tensor,
                    names.join(", ")
                )
            }
        }
        let mut entries = HashMap::new();
        for (name, entry) in &file.entries {
            let (parameter, renamed) = match map.parameter(name) {
                None => (name.clone(), Entry::new(entry.shape.clone(), entry.values.clone())),
                Some((parameter, rule)) => {
                    let renamed = match &rule.axes {
                        None => Entry {
                            open: true,
                            ..Entry::new(entry.shape.clone(), entry.values.clone())
                        },
                        Some(axes) => {
                            let Some(shape) = reordered(&entry.shape, axes) else {
                                bail!(
                                    "axes = {axes:?} for '{name}' of shape {:?}: expected every axis from 0 on once",
                                    entry.shape
                                )
                            };
                            Entry::new(shape, reorder(&entry.values, &entry.shape, axes)?)
                        }
                    };
                    (parameter, renamed)
                }
            };
            if entries.insert(parameter.clone(), renamed).is_some() {
                bail!("the map gives two tensors of the weight file the name '{parameter}': choose one")
            }
        }
        Ok(Weights {
            source: Arc::new(Source::File(File {
                entries,
                counters: file.counters.clone(),
                ..File::default()
            })),
            created: Arc::default(),
            ..self.clone()
        })
    }

    /// Parameters that were read transposed, as a [map](Self::renamed) lets them be, sorted.
    pub fn transposed(&self) -> Vec<String> {
        let Source::File(file) = &*self.source else {
            return vec![];
        };
        let mut names = file.reading().transposed.clone();
        names.sort();
        names
    }

    /// For a file that does not fit a network with these parameters: what of it does, and for the rest a guess by shapes in the order of
    /// names, as lines of a map. None where the shapes have too little in common for one.
    pub fn guess(&self, params: &[Param]) -> Option<String> {
        let Source::File(file) = &*self.source else {
            return None;
        };
        let fits = |param: &&Param| {
            let own = file.entries.get(param.name());
            own.is_some_and(|entry| entry.fits(param.var().dims(), entry.open).is_some())
        };
        let (fitting, others): (Vec<_>, Vec<_>) = params.iter().partition(fits);
        let taken: BTreeSet<&str> = fitting.iter().map(|param| param.name()).collect();
        let mut free: Vec<(&String, &Entry)> = (file.entries.iter())
            .filter(|(name, _)| !taken.contains(name.as_str()))
            .collect();
        free.sort_by_cached_key(|(name, _)| natural(name));
        let pairs: Vec<_> = (others.iter())
            .map(|param| {
                let shape = param.var().dims();
                let place = (free.iter().position(|(_, entry)| entry.shape == shape))
                    .or_else(|| free.iter().position(|(_, entry)| entry.fits(shape, true).is_some()));
                (param, place.map(|place| free.remove(place)))
            })
            .collect();
        let fit = |param: &Param, entry: &Entry| entry.fits(param.var().dims(), true);
        let found = pairs.iter().filter_map(|(param, entry)| fit(param, entry.as_ref()?.1));
        let found: Vec<Fit> = found.collect();
        // A square one is most likely what the others are.
        let transposed = found.iter().any(|fit| matches!(fit, Fit::Transposed(_)));
        let line = |(param, pair): &(&&Param, Option<(&String, &Entry)>)| {
            let (own, shape) = (param.name(), param.var().dims());
            let Some((name, entry)) = pair else {
                return format!("# {own} {shape:?}: nothing of this shape");
            };
            match fit(param, entry) {
                Some(Fit::Transposed(_)) => {
                    format!("\"{own}\" = \"{name}\"  # {shape:?}, transposed from {:?}", entry.shape)
                }
                Some(Fit::Either(axes)) if transposed => {
                    format!("\"{own}\" = {{ tensor = \"{name}\", axes = {axes:?} }}  # {shape:?}")
                }
                _ => format!("\"{own}\" = \"{name}\"  # {shape:?}"),
            }
        };
        let mut lines: Vec<String> = pairs.iter().map(line).collect();
        let unused = free
            .iter()
            .map(|(name, entry)| format!("# of no use: {name} {:?}", entry.shape));
        lines.extend(unused);
        (2 * found.len() >= others.len() && !found.is_empty()).then(|| lines.join("\n"))
    }

    /// The same source under a prefix: `pp("conv1")` names `conv1.weight`.
    pub fn pp(&self, prefix: &str) -> Weights {
        Weights {
            prefix: self.full_name(prefix),
            ..self.clone()
        }
    }

    /// The same source making parameters of another type (`f64` for gradient checks).
    pub fn with_dtype(&self, dtype: DType) -> Weights {
        Weights { dtype, ..self.clone() }
    }

    /// The same source making parameters on another device.
    pub fn with_device(&self, device: &Device) -> Weights {
        Weights {
            device: device.clone(),
            ..self.clone()
        }
    }

    /// A trainable parameter.
    ///
    /// # Errors
    /// When the file lacks the name, has another shape, or the name was already asked for.
    pub fn param(&self, name: &str, shape: &[usize], init: Init) -> Result<Param> {
        self.create(name, shape, init, None, true)
    }

    /// A tensor that is saved but not trained, such as a running mean.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn buffer(&self, name: &str, shape: &[usize], init: Init) -> Result<Param> {
        self.create(name, shape, init, None, false)
    }

    /// A parameter, or a buffer where it is not `trainable`, that the model brings a value for: it starts at `value` unless a file
    /// or a seed was asked for.
    ///
    /// # Errors
    /// Those of [`Weights::param`].
    pub fn given(&self, name: &str, value: &Tensor, init: Init, trainable: bool) -> Result<Param> {
        self.create(name, value.dims(), init, Some(value), trainable)
    }

    /// Every parameter and buffer made from this source so far, under any prefix, in order of creation.
    pub fn params(&self) -> Vec<Param> {
        self.created().clone()
    }

    /// Number of trainable scalars made so far.
    pub fn parameter_count(&self) -> usize {
        let created = self.created();
        let trainable = created.iter().filter(|p| p.trainable());
        trainable.map(|p| p.var().elem_count()).sum()
    }

    /// To be called when the model is built.
    ///
    /// # Errors
    /// When the file holds names that no parameter asked for.
    pub fn finish(&self) -> Result<()> {
        let Source::File(file) = &*self.source else {
            return Ok(());
        };
        let created = self.created();
        let used: BTreeSet<&str> = created.iter().map(Param::name).collect();
        let unused: BTreeSet<&str> = file.entries.keys().map(String::as_str).collect();
        let unused: Vec<&str> = unused.difference(&used).copied().collect();
        if !unused.is_empty() {
            bail!(
                "the weight file holds {} names this model does not use: {}: is it another model's file?",
                unused.len(),
                unused.join(", ")
            );
        }
        let reading = file.reading();
        if let (Some(name), false) = (reading.either.first(), reading.transposed.is_empty()) {
            bail!(
                "'{name}' fits as it is and transposed, while others fit transposed only ({}): say which in the map, \
                 \"{name}\" = {{ tensor = \"...\", axes = [1, 0] }} or [0, 1]",
                reading.transposed.join(", ")
            )
        }
        Ok(())
    }

    fn create(&self, name: &str, shape: &[usize], init: Init, own: Option<&Tensor>, trainable: bool) -> Result<Param> {
        let name = self.full_name(name);
        let initial = |seed| Tensor::from_vec(init.values(seed, &name, shape.iter().product()), shape, &Device::Cpu);
        let (value, given) = match (&*self.source, own) {
            (Source::Own, Some(value)) => (value.clone(), true),
            (Source::Own, None) => (initial(0)?, false),
            (Source::Seed(seed), _) => (initial(*seed)?, false),
            (Source::File(file), _) => (file.tensor(&name, shape)?, false),
        };
        let value = value.to_dtype(self.dtype)?.to_device(&self.device)?;
        let mut created = self.created();
        if created.iter().any(|p| p.name() == name) {
            bail!("two parameters are named '{name}': give each layer its own prefix");
        }
        let param = Param::new(name, &value, trainable, given)?;
        created.push(param.clone());
        Ok(param)
    }

    fn full_name(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_string(),
            prefix => format!("{prefix}.{name}"),
        }
    }

    fn created(&self) -> MutexGuard<'_, Vec<Param>> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Init {
    /// `count` initial values of the parameter `name`.
    fn values(self, seed: u64, name: &str, count: usize) -> Vec<f64> {
        let mut rng = name_rng(seed, name);
        let mut uniform = |bound: f64| (0..count).map(|_| bound * (2.0 * rng.random::<f64>() - 1.0)).collect();
        match self {
            Init::Zeros => vec![0.0; count],
            Init::Ones => vec![1.0; count],
            Init::Const(value) => vec![value; count],
            Init::Uniform { bound } => uniform(bound),
            Init::GlorotUniform { fan_in, fan_out } => uniform((6.0 / (fan_in + fan_out) as f64).sqrt()),
            Init::HeNormal { fan_in } => {
                let deviation = (2.0 / fan_in as f64).sqrt();
                (0..count)
                    .map(|_| deviation * crate::pass::normal_pair(&mut rng).0)
                    .collect()
            }
        }
    }
}

/// The generator of one parameter's initial values.
fn name_rng(seed: u64, name: &str) -> rand_chacha::ChaCha8Rng {
    let bytes = name.bytes().map(u64::from);
    let words: Vec<u64> = std::iter::once(seed).chain(bytes).collect();
    key_rng(&words)
}

impl File {
    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of a parameter.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(entry) = self.entries.get(name) else {
            let mut alike: Vec<&str> = (self.entries.iter())
                .filter(|(_, entry)| entry.shape == shape)
                .map(|(name, _)| name.as_str())
                .collect();
            alike.sort_unstable();
            let more = alike.len().saturating_sub(ALIKE);
            alike.truncate(ALIKE);
            let alike = match (alike.is_empty(), more) {
                (true, _) => String::new(),
                (false, 0) => format!(" (of its shape {shape:?} it has {})", alike.join(", ")),
                (false, more) => format!(" (of its shape {shape:?} it has {} and {more} more)", alike.join(", ")),
            };
            bail!("the weight file has no '{name}'{alike}: is it another model's file?");
        };
        let Some(fits) = entry.fits(shape, entry.open) else {
            bail!(
                "'{name}' has shape {:?} in the weight file, this model needs {shape:?}",
                entry.shape
            );
        };
        match fits {
            Fit::AsItIs => {}
            Fit::Either(_) => self.reading().either.push(name.into()),
            Fit::Transposed(axes) => {
                self.reading().transposed.push(name.into());
                let values = reorder(&entry.values, &entry.shape, axes)?;
                return Tensor::from_vec(values, shape, &Device::Cpu);
            }
        }
        Tensor::from_slice(&entry.values, shape, &Device::Cpu)
    }
}

/// How a tensor of a file fits a parameter.
enum Fit {
    AsItIs,
    Transposed(&'static [usize]),
    /// As it is, and transposed as well.
    Either(&'static [usize]),
}

impl Entry {
    /// How it fits a parameter of this shape, where its axes may be `open`.
    fn fits(&self, shape: &[usize], open: bool) -> Option<Fit> {
        let axes = usual_axes(shape.len()).filter(|_| open && self.shape.len() == shape.len());
        let transposed = axes.filter(|axes| reordered(&self.shape, axes).as_deref() == Some(shape));
        match (self.shape == shape, transposed) {
            (true, Some(axes)) => Some(Fit::Either(axes)),
            (true, None) => Some(Fit::AsItIs),
            (false, Some(axes)) => Some(Fit::Transposed(axes)),
            (false, None) => None,
        }
    }
}

/// A name by which `layer.10` comes after `layer.9`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let parts = name.split_inclusive(|c: char| !c.is_ascii_digit());
    parts
        .map(|part| {
            let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
            (part[digits.len()..].to_string(), digits.parse().unwrap_or(0))
        })
        .collect()
}

/// Names of a file that are shown beside one that is missing.
const ALIKE: usize = 3;

/// An error without the places in candle's code that it went through.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

/// Whether a tensor of a file is the one number in which PyTorch's batch norm counts its training batches.
fn is_counter(name: &str, shape: &[usize]) -> bool {
    name.rsplit('.').next() == Some("num_batches_tracked") && shape.iter().product::<usize>() == 1
}

/// The finite values of one tensor of a file.
fn read_values(name: &str, view: &TensorView) -> Result<Vec<f32>> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => bail!("'{name}' has type {other:?} in the weight file: save it as F32 or F16"),
    };
    let count = view.shape().iter().product::<usize>();
    let values = Tensor::from_raw_buffer(view.data(), dtype, &[count], &Device::Cpu)?
        .to_dtype(DType::F32)?
        .to_vec1::<f32>()?;
    all_finite(name, &values)?;
    Ok(values)
}

fn all_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(v) => bail!("'{name}' holds {v} in the weight file: the file is damaged or training diverged"),
        None => Ok(()),
    }
}
