//! Pipelines whose tensors stay on their device while they are attacked. The host hands such tensors on without looking inside: it checks
//! where they lie, their type, shape and strides. What it would look for in them, it has the device count ([`DeviceTally`]).

use crate::plugin::fenv::Foreign;
use crate::wire::boundary::{LentCall, Origin};
use crate::wire::model::{Model, ModelDevice};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::Kind;
use advae_abi::tally::FIELDS;
use advae_abi::{AbiError, AbiTensor, AbiTensorRef, DLDataType, DLDevice, ErrorCode, TallyBox, TapeBox, Taped};
use anyhow::{Context, Result, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A contiguous `f32` tensor on a device; the first extent counts samples.
pub struct DeviceTensor {
    tensor: Foreign<AbiTensor>,
    shape: Vec<usize>,
}

/// Copies between the CPU and the device, on behalf of one attack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// Tensors that went to the device.
    pub uploads: u64,
    /// Their bytes.
    pub uploaded: u64,
    /// Tensors that came from there.
    pub downloads: u64,
    /// Their bytes.
    pub downloaded: u64,
}

impl std::fmt::Display for Copies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            uploads,
            uploaded,
            downloads,
            downloaded,
        } = self;
        write!(
            f,
            "{uploads} uploads of {uploaded} bytes, {downloads} downloads of {downloaded} bytes"
        )
    }
}

#[derive(Default)]
struct Traffic {
    uploads: AtomicU64,
    uploaded: AtomicU64,
    downloads: AtomicU64,
    downloaded: AtomicU64,
}

/// A classifier behind an optional purifier, both on one device.
pub struct DevicePipeline {
    purifier: Option<Model>,
    classifier: Model,
    id: DLDevice,
    traffic: Traffic,
}

/// The way back through a pipeline, end to end.
pub struct DeviceTape {
    purifier: Option<One>,
    classifier: One,
}

/// The way back through one model.
struct One {
    origin: Origin,
    tape: Foreign<TapeBox>,
    input: Vec<usize>,
}

/// Counts about an attack's samples, on the device.
pub struct DeviceTally {
    origin: Origin,
    tally: Foreign<TallyBox>,
}

impl DeviceTensor {
    /// Lends the tensor for one call.
    pub fn view(&self) -> AbiTensorRef<'_> {
        self.tensor.view()
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The same memory, for another owner.
    pub fn share(self: &Arc<Self>) -> AbiTensor {
        let (view, shape) = (self.view(), self.shape.clone());
        let raw = view.raw();
        let data = raw.data.wrapping_byte_add(raw.byte_offset as usize);
        // SAFETY: as many `f32` as the shape asks for were promised to be there when the tensor was taken in, contiguous and unwritten; the
        // owner keeps them.
        unsafe { AbiTensor::from_owner(self.clone(), data, DLDataType::F32, raw.device, &shape) }
    }
}

fn bytes(shape: &[usize]) -> u64 {
    (shape.iter().product::<usize>() * size_of::<f32>()) as u64
}

impl DevicePipeline {
    /// The pipeline on its device: where every model of it hands tensors over there, and nothing of the host's stands behind it.
    pub fn of(pipeline: &Pipeline) -> Option<Self> {
        let id = pipeline.classifier.device()?.id;
        let there = |model: &Model| model.device().is_some_and(|device| device.id == id);
        (pipeline.head.is_none() && pipeline.models().all(there)).then(|| Self {
            purifier: pipeline.purifier.clone(),
            classifier: pipeline.classifier.clone(),
            id,
            traffic: Traffic::default(),
        })
    }

    /// Which device it is.
    pub fn id(&self) -> DLDevice {
        self.id
    }

    /// The models, as messages name them together.
    pub fn named(&self) -> String {
        let classifier = self.classifier.parts().0;
        match &self.purifier {
            Some(purifier) => format!("{} or {classifier}", purifier.parts().0),
            None => classifier.to_string(),
        }
    }

    /// What was copied so far.
    pub fn copies(&self) -> Copies {
        let Traffic {
            uploads,
            uploaded,
            downloads,
            downloaded,
        } = &self.traffic;
        let [uploads, uploaded, downloads, downloaded] =
            [uploads, uploaded, downloads, downloaded].map(|count| count.load(Ordering::Relaxed));
        Copies {
            uploads,
            uploaded,
            downloads,
            downloaded,
        }
    }

    /// The classifier's device, which serves the whole pipeline.
    fn provider(&self) -> Result<(&Origin, &ModelDevice)> {
        let device = self.classifier.device().context("the classifier has no device")?;
        Ok((self.classifier.parts().0, device))
    }

    /// A copy on the device.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn upload(&self, x: &Tensor) -> Result<DeviceTensor> {
        let (origin, provider) = self.provider()?;
        let dims = x.dims();
        let copy = origin.enter("upload", || provider.device.upload(x.lend(&dims)).map(Foreign::new))?;
        self.traffic.uploads.fetch_add(1, Ordering::Relaxed);
        self.traffic.uploaded.fetch_add(bytes(&x.shape), Ordering::Relaxed);
        self.receive(origin, copy, &x.shape, "a copy on the device")
    }

    /// A copy on the CPU of a tensor of that shape.
    ///
    /// # Errors
    /// Where the device fails, or the tensor is another than was said.
    pub fn download(&self, x: AbiTensorRef<'_>, shape: &[usize]) -> Result<Tensor> {
        let (origin, provider) = self.provider()?;
        let copy = origin.enter("download", || provider.device.download(x).map(Foreign::new))?;
        self.traffic.downloads.fetch_add(1, Ordering::Relaxed);
        self.traffic.downloaded.fetch_add(bytes(shape), Ordering::Relaxed);
        Tensor::copy_from(copy.view(), shape, "a copy from the device").map_err(|error| origin.blame(&error))
    }

    /// The mean of several draws.
    ///
    /// # Errors
    /// Where there is none, or the device fails.
    pub fn mean(&self, mut draws: Vec<DeviceTensor>) -> Result<DeviceTensor> {
        if draws.len() == 1
            && let Some(only) = draws.pop()
        {
            return Ok(only);
        }
        let shape = draws.first().context("no draw was made")?.shape.clone();
        let views: Vec<AbiTensorRef<'_>> = draws.iter().map(DeviceTensor::view).collect();
        let (origin, provider) = self.provider()?;
        let mean = origin.enter("mean", || {
            provider.device.mean(views.as_slice().into()).map(Foreign::new)
        })?;
        self.receive(origin, mean, &shape, "a mean")
    }

    /// Counts about so many samples.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn tally(&self, samples: usize) -> Result<DeviceTally> {
        let (origin, provider) = self.provider()?;
        let tally = origin.enter("tally", || provider.device.tally(samples as u64).map(Foreign::new))?;
        Ok(DeviceTally {
            origin: origin.clone(),
            tally,
        })
    }

    /// Refuses a tensor of another place, type, shape or order; `what` names it.
    ///
    /// # Errors
    /// Where it is one.
    pub fn check(&self, x: AbiTensorRef<'_>, expected: &[usize], what: &str) -> Result<(), AbiError> {
        let shape = x.shape()?;
        if shape != expected {
            let text = format!("{what} has shape {shape:?}, expected {expected:?}");
            return Err(AbiError::new(ErrorCode::Shape, text));
        }
        x.address::<f32>(self.id).map(|_| ())
    }

    fn receive(
        &self,
        origin: &Origin,
        tensor: Foreign<AbiTensor>,
        expected: &[usize],
        what: &str,
    ) -> Result<DeviceTensor> {
        self.check(tensor.view(), expected, what)
            .map_err(|error| origin.blame(&error))?;
        Ok(DeviceTensor {
            tensor,
            shape: expected.to_vec(),
        })
    }

    /// Logits `[N,K]` of images `[N,C,H,W]` that lie on the device, and are [checked](Self::check).
    ///
    /// # Errors
    /// Where a plugin fails, or answers with anything else.
    pub fn forward(&self, call: &Call, x: AbiTensorRef<'_>) -> Result<DeviceTensor> {
        let purified = self.purifier.as_ref().map(|purifier| self.plain(purifier, call, x));
        let purified = purified.transpose()?;
        self.plain(&self.classifier, call, purified.as_ref().map_or(x, DeviceTensor::view))
    }

    /// The same, and the way back.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn forward_tape(&self, call: &Call, x: AbiTensorRef<'_>) -> Result<(DeviceTensor, DeviceTape)> {
        let purified = self.purifier.as_ref().map(|purifier| self.taped(purifier, call, x));
        let (purified, purifier) = purified.transpose()?.unzip();
        let x = purified.as_ref().map_or(x, DeviceTensor::view);
        let (logits, classifier) = self.taped(&self.classifier, call, x)?;
        Ok((logits, DeviceTape { purifier, classifier }))
    }

    fn plain(&self, model: &Model, call: &Call, x: AbiTensorRef<'_>) -> Result<DeviceTensor> {
        let (call, output) = (call.on_device(), output(model, call, x)?);
        let (origin, plugin) = model.parts();
        let mut ids = LentCall::new(&call);
        let y = origin.enter("forward", || plugin.forward(ids.lend(), x).map(Foreign::new))?;
        origin.check_unwritten(&[&ids])?;
        self.receive(origin, y, &output, "an output")
    }

    fn taped(&self, model: &Model, call: &Call, x: AbiTensorRef<'_>) -> Result<(DeviceTensor, One)> {
        let (call, output) = (call.on_device(), output(model, call, x)?);
        let (origin, plugin) = model.parts();
        let mut ids = LentCall::new(&call);
        let apart = |Taped { y, tape }| (Foreign::new(y), Foreign::new(tape));
        let (y, tape) = origin.enter("forward", || plugin.forward_tape(ids.lend(), x).map(apart))?;
        origin.check_unwritten(&[&ids])?;
        let tape = One {
            origin: origin.clone(),
            tape,
            input: x.shape().map_err(|error| origin.blame(&error))?,
        };
        Ok((self.receive(origin, y, &output, "an output")?, tape))
    }

    /// The input's gradient `[N,C,H,W]` for a cotangent `[N,K]` on the device.
    ///
    /// # Errors
    /// Where a plugin fails or gives no gradient.
    pub fn backward(&self, tape: &DeviceTape, call: &Call, cotangent: AbiTensorRef<'_>) -> Result<DeviceTensor> {
        let gradient = self.back(&tape.classifier, call, cotangent)?;
        match &tape.purifier {
            Some(purifier) => self.back(purifier, call, gradient.view()),
            None => Ok(gradient),
        }
    }

    fn back(&self, one: &One, call: &Call, cotangent: AbiTensorRef<'_>) -> Result<DeviceTensor> {
        let (origin, call) = (&one.origin, call.on_device());
        let mut ids = LentCall::new(&call);
        let back = || {
            let gradient = one.tape.backward(ids.lend(), cotangent);
            gradient.map(|gradient| gradient.into_option().map(Foreign::new))
        };
        let gradient = origin.enter("backward", back)?;
        origin.check_unwritten(&[&ids])?;
        let gradient = gradient.with_context(|| format!("{origin} gave no input gradient"))?;
        self.receive(origin, gradient, &one.input, "a gradient")
    }
}

/// Shape of a model's output for these images.
fn output(model: &Model, call: &Call, x: AbiTensorRef<'_>) -> Result<Vec<usize>> {
    let origin = model.parts().0;
    let shape = x.shape().map_err(|error| origin.blame(&error))?;
    let rows = shape.first().copied().unwrap_or(0);
    ensure!(
        call.ids.len() == rows,
        "{origin} was given {} ids for {rows} images",
        call.ids.len()
    );
    if let Some(input) = model.info().input {
        ensure!(
            shape.get(1..) == Some(&input[..]),
            "{origin} takes images {input:?}, not {shape:?}"
        );
    }
    Ok(
        match model.info().classes.filter(|_| model.kind() == Kind::Classifier) {
            Some(classes) => vec![rows, classes],
            None => shape,
        },
    )
}

impl DeviceTally {
    /// Counts rows of `values` that are not finite, in this field.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn look(&self, field: usize, slots: &[u32], values: AbiTensorRef<'_>) -> Result<()> {
        self.origin
            .enter("look", || self.tally.look(field as u32, slots.into(), values))
    }

    /// Counts a backward pass.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn count(&self, slots: &[u32], labels: &[i64], passed: [AbiTensorRef<'_>; 3]) -> Result<()> {
        let [logits, cotangent, gradient] = passed;
        self.origin.enter("count", || {
            self.tally
                .count(slots.into(), labels.into(), logits, cotangent, gradient)
        })
    }

    /// The counts of so many samples.
    ///
    /// # Errors
    /// Where the device fails, or answers about another number of samples.
    pub fn read(&self, samples: usize) -> Result<Vec<[u64; FIELDS]>> {
        let read = self.origin.enter("read", || self.tally.read())?;
        ensure!(
            read.len() == samples * FIELDS,
            "{} counted {} numbers about {samples} samples, expected {}",
            self.origin,
            read.len(),
            samples * FIELDS
        );
        let sample = |counts: &[u64]| std::array::from_fn(|field| counts[field]);
        Ok(read.chunks_exact(FIELDS).map(sample).collect())
    }
}
