//! The examples of training: crafted anew at every step on what is trained, or once on the frozen classifier.

use super::checkpoint::Folder;
use super::recipe::Statistics;
use crate::experiment::{self as workers, Layout};
use crate::plugin::{Plugin, PluginSpec};
use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Ticker;
use crate::wire::attack::Attack;
use crate::wire::oracle::{Oracle, Rules};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::flags::BATCH_STATISTICS;
use advae_abi::info::{Access, Kind, Label, Target};
use advae_data::Dataset;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;

/// Images that are crafted between two writes.
const STORED_AT_ONCE: usize = 1000;

/// An attack that is given its radius later.
pub struct Attacker {
    plugin: Plugin,
    spec: PluginSpec,
    epsilon: f64,
}

impl Attacker {
    /// Finds the plugin of `pgd:steps=10`; `epsilon` is the radius where the text names none.
    ///
    /// # Errors
    /// Where the plugin is not found, is no attack, or refuses its settings.
    pub fn new(text: &str, epsilon: f64) -> Result<Self> {
        let spec = PluginSpec::parse(text)?;
        let attacker = Self {
            plugin: Plugin::find(&spec.name, Kind::Attack)?,
            epsilon: spec.config.get("epsilon").and_then(|v| v.as_f64()).unwrap_or(epsilon),
            spec,
        };
        attacker.at(1.)?;
        Ok(attacker)
    }

    /// Its full radius.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// The attack with this share of its radius.
    ///
    /// # Errors
    /// Where the plugin refuses the settings.
    pub fn at(&self, share: f64) -> Result<Attack> {
        let mut config = self.spec.config.clone();
        if self.plugin.description.settings.iter().any(|s| s.name == "epsilon") {
            config.insert("epsilon".into(), (self.epsilon * share).into());
        }
        Attack::construct(&self.plugin, config)
    }
}

/// Crafts on one pipeline.
pub struct Crafter<'a> {
    /// Whom it attacks.
    pub target: &'a Pipeline,
    /// By which labels.
    pub label: Label,
    /// By whose statistics batch norm goes.
    pub statistics: Statistics,
    /// Threads in all.
    pub threads: usize,
    /// Keys random starts, together with the images' ids.
    pub seed: u64,
}

impl Crafter<'_> {
    /// Adversarial images for all of `batch`, on all threads.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn craft(&self, attack: &Attack, batch: &Dataset) -> Result<Tensor> {
        let layout = match self.statistics {
            Statistics::Running => Layout::of(self.target.models(), self.threads, None),
            // The statistics are those of the whole batch.
            Statistics::Batch => Layout {
                workers: 1,
                batch: batch.len(),
                call_threads: self.threads,
            },
        };
        let indices: Vec<usize> = (0..batch.len()).collect();
        let parts = layout.cut(&indices);
        let crafted = workers::for_each(layout.workers, parts.len(), |i| {
            self.craft_part(attack, &batch.select(parts[i]), layout.call_threads)
        })?;
        let mut all = Tensor::zeros(&[&[0], batch.shape.as_slice()].concat());
        crafted.iter().for_each(|part| all.append(part));
        Ok(all)
    }

    fn flags(&self) -> u64 {
        match self.statistics {
            Statistics::Running => 0,
            Statistics::Batch => BATCH_STATISTICS,
        }
    }

    /// The same on the caller's thread, in one call.
    ///
    /// Examples for training run all their steps: an early stop would leave them at the decision boundary.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn craft_part(&self, attack: &Attack, batch: &Dataset, call_threads: usize) -> Result<Tensor> {
        let x = images(batch)?;
        let call = Call::craft(self.seed, &batch.ids).with_threads(call_threads);
        let labels = match self.label {
            Label::True => batch.labels.clone(),
            Label::Predicted => self.target.forward(&call, &x)?.argmax(),
        };
        let rules = Rules {
            target: self.target.clone(),
            labelled: self.target.clone(),
            access: Access {
                target: Target::Pipeline,
                gradients: true,
                logits: true,
                labels: true,
                query_limit: None,
            },
            seed: self.seed,
            eot: 1,
            early_stop: false,
            call_threads,
            flags: self.flags(),
            meter: Arc::default(),
            cancel: Cancel::default(),
        };
        let (oracle, state) = Oracle::boxed(rules, &batch.ids, &labels, Ticker::silent());
        let perturbed = attack.perturb(&call, &oracle, &x, &labels);
        match state.first_error() {
            Some(error) => Err(error.into()),
            None => Ok(perturbed?.x_adv),
        }
    }
}

/// Adversarial images of a whole dataset, made once and kept in a file of the run.
pub struct Examples(Vec<f32>);

impl Examples {
    /// Reads what the file has and crafts the rest, writing as it goes. `told` hears how many there are after each write;
    /// absent where it says to stop.
    ///
    /// # Errors
    /// Where a plugin or the file fails.
    pub fn make(
        folder: &Folder,
        name: &str,
        data: &Dataset,
        craft: impl Fn(&Dataset) -> Result<Tensor>,
        mut told: impl FnMut(usize) -> bool,
    ) -> Result<Option<Self>> {
        let (path, image) = (folder.file(name), data.image_len());
        let context = || format!("cannot write '{}'", path.display());
        let stored = std::fs::read(&path).unwrap_or_default();
        let mut images: Vec<f32> = (stored.as_chunks::<4>().0.iter())
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        // A write that was cut off is made again.
        images.truncate(images.len() / image * image);
        images.truncate(data.len() * image);
        let mut file = open_at(&path, 4 * images.len() as u64).with_context(context)?;
        while images.len() < data.len() * image {
            let from = images.len() / image;
            let part: Vec<usize> = (from..data.len().min(from + STORED_AT_ONCE)).collect();
            let crafted = craft(&data.select(&part))?.data;
            let bytes: Vec<u8> = crafted.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes).with_context(context)?;
            images.extend(crafted);
            if !told(images.len() / image) {
                return Ok(None);
            }
        }
        Ok(Some(Self(images)))
    }

    /// The images at these positions of the dataset.
    pub fn select(&self, indices: &[usize], shape: [usize; 3]) -> Tensor {
        let image = shape.iter().product::<usize>();
        let rows = indices.iter().flat_map(|i| &self.0[i * image..(i + 1) * image]);
        Tensor {
            shape: [&[indices.len()], shape.as_slice()].concat(),
            data: rows.copied().collect(),
        }
    }
}

/// A file cut to `len` bytes, to be written on from there.
fn open_at(path: &std::path::Path, len: u64) -> std::io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    file.set_len(len)?;
    Ok(file)
}

/// The images of a dataset.
///
/// # Errors
/// Where their number and shape do not fit.
pub fn images(batch: &Dataset) -> Result<Tensor> {
    let shape = [&[batch.len()], batch.shape.as_slice()].concat();
    Ok(Tensor::new(shape, batch.images.clone())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn examples_are_made_once_and_an_interrupted_file_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let data = Dataset::new(
            "d",
            vec![0.25; 2 * 2500],
            vec![1; 2500],
            (0..2500).collect(),
            [1, 1, 2],
            2,
        )
        .unwrap();
        let crafted = Cell::new(0);
        let craft = |batch: &Dataset| {
            crafted.set(crafted.get() + batch.len());
            let mut x = images(batch)?;
            (x.data.iter_mut().zip(batch.ids.iter().flat_map(|id| [id, id]))).for_each(|(v, id)| *v += *id as f32);
            Ok(x)
        };
        assert!(Examples::make(&folder, "a", &data, craft, |_| false).unwrap().is_none());
        // Half a number more, as a process that was killed may leave.
        let mut bytes = std::fs::read(folder.file("a")).unwrap();
        bytes.extend([1, 2]);
        std::fs::write(folder.file("a"), bytes).unwrap();
        let examples = Examples::make(&folder, "a", &data, craft, |_| true).unwrap().unwrap();
        assert_eq!(crafted.get(), 2500);
        assert_eq!(
            examples.select(&[2499, 3], [1, 1, 2]).data,
            [2499.25, 2499.25, 3.25, 3.25]
        );
        let again = Examples::make(&folder, "a", &data, craft, |_| true).unwrap().unwrap();
        assert_eq!((crafted.get(), again.0), (2500, examples.0));
    }
}
