//! The examples of training: crafted anew at every step on what is trained, or once on the frozen classifier.

use super::folder::Folder;
use super::fraction;
use super::recipe::Statistics;
use crate::experiment::{self as workers, Layout, Limits, within_range};
use crate::plugin::{Plugin, PluginSpec};
use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Ticker;
use crate::wire::attack::{Attack, Perturbed};
use crate::wire::oracle::{Rules, everything};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::flags::BATCH_STATISTICS;
use advae_abi::info::{Kind, Label, Target};
use advae_data::Dataset;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

/// Images that are crafted between two writes.
const STORED_AT_ONCE: usize = 1000;
/// Bytes of a checksum.
const SUM: usize = 32;

/// An attack that is given its radius later.
pub struct Attacker {
    plugin: Plugin,
    spec: PluginSpec,
    /// Its full radius; absent if the attack has no such setting.
    epsilon: Option<f64>,
}

/// An attack, and what the images that it crafts have to keep.
pub struct LimitedAttack {
    attack: Attack,
    /// The same limits as in an evaluation.
    pub limits: Limits,
}

impl Attacker {
    /// Finds the plugin of `pgd:steps=10`; `epsilon` is the radius if the text names none.
    ///
    /// # Errors
    /// If the plugin is not found, is no attack, refuses its settings, needs a radius that nobody names, or images cannot use it.
    pub fn new(text: &str, epsilon: Option<f64>) -> Result<Self> {
        let context = || format!("attack '{text}'");
        let spec = PluginSpec::parse(text)?;
        let plugin = Plugin::find(&spec.name, Kind::Attack)?;
        let given = spec.config.get("epsilon").map(fraction::number_of).transpose();
        let given = given.with_context(context)?;
        let takes = plugin.description.settings.iter().any(|s| s.name == "epsilon");
        let radius = given.or(epsilon);
        ensure!(
            !takes || radius.is_some(),
            "attack '{text}' needs a radius, and these images have no customary one: give epsilon"
        );
        let attacker = Self {
            epsilon: radius.filter(|_| takes),
            plugin,
            spec,
        };
        let limits = attacker.at(1.)?.limits;
        let checked = limits.epsilon.map(|epsilon| within_range(limits.norm, epsilon));
        checked.transpose().with_context(context)?;
        Ok(attacker)
    }

    /// The attack with this share of its radius.
    ///
    /// # Errors
    /// If the plugin refuses the settings.
    pub fn at(&self, share: f64) -> Result<LimitedAttack> {
        let mut config = self.spec.config.clone();
        let epsilon = self.epsilon.map(|epsilon| epsilon * share);
        if let Some(epsilon) = epsilon {
            config.insert("epsilon".into(), epsilon.into());
        }
        let attack = Attack::construct(&self.plugin, config)?;
        let limits = Limits {
            bounds: [0., 1.],
            norm: attack.info().norm,
            epsilon: epsilon.or(attack.info().epsilon),
        };
        Ok(LimitedAttack { attack, limits })
    }
}

impl LimitedAttack {
    /// The images that count: where the attack found nothing, the clean one.
    ///
    /// # Errors
    /// The first image that an evaluation would refuse.
    fn accept(&self, batch: &Dataset, x: &Tensor, perturbed: Perturbed) -> Result<Tensor> {
        let Perturbed { mut x_adv, found, .. } = perturbed;
        for (i, id) in batch.ids.iter().enumerate() {
            if found.as_ref().is_some_and(|found| !found[i]) {
                x_adv.set_row(i, x.row(i));
            } else if let Some(reason) = self.limits.refuse(x.row(i), x_adv.row(i)) {
                bail!(
                    "the image that attack '{}' crafted from sample {id} of '{}' is refused: {reason}: mend the attack, or train \
                     with another",
                    self.attack.name(),
                    batch.name
                );
            }
        }
        Ok(x_adv)
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
    /// Stops an attack in progress.
    pub cancel: &'a Cancel,
}

impl Crafter<'_> {
    /// Adversarial images for all of `batch`, on all threads.
    ///
    /// # Errors
    /// If a plugin fails, an image is refused, or the run is cancelled.
    pub fn craft(&self, attack: &LimitedAttack, batch: &Dataset) -> Result<Tensor> {
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
    /// As for [`craft`](Self::craft).
    pub fn craft_part(&self, attack: &LimitedAttack, batch: &Dataset, call_threads: usize) -> Result<Tensor> {
        self.cancel.check()?;
        let x = images(batch)?;
        let call = Call::craft(self.seed, &batch.ids).with_threads(call_threads);
        let labels = match self.label {
            Label::True => batch.labels.clone(),
            Label::Predicted => self.target.forward(&call, &x)?.argmax(),
        };
        let rules = Rules {
            target: self.target.clone(),
            labelled: self.target.clone(),
            access: everything(Target::Pipeline),
            seed: self.seed,
            eot: 1,
            early_stop: false,
            known_ids: None,
            call_threads,
            flags: self.flags(),
            meter: Arc::default(),
            watch: None,
            cancel: self.cancel.clone(),
        };
        let (perturbed, state) = attack.attack.search(&call, rules, &x, &labels, Ticker::silent());
        match state.first_error() {
            Some(error) => Err(error.into()),
            None => attack.accept(batch, &x, perturbed?),
        }
    }
}

/// Adversarial images of a whole dataset, made once and kept in a file of the run: blocks of [`STORED_AT_ONCE`] images as
/// little-endian `f32`, each followed by its checksum.
pub struct Examples(Vec<f32>);

/// What [`Examples::make`] is about.
pub struct Wanted<'a> {
    /// Name of the file.
    pub name: &'a str,
    /// Everything that decides how the images are crafted, such as the recipe. A file that was made by another is not used.
    pub recipe: &'a str,
    /// The clean images.
    pub data: &'a Dataset,
}

/// What [`Examples::make`] tells while it works.
pub enum Told {
    /// So many images are there.
    Made(usize),
    /// The file is damaged, or of other images, from this image on: what follows is crafted again.
    Damaged(usize),
}

impl Examples {
    /// Reads what the file has and crafts the rest, writing as it goes. `told` hears of each write, and stops the work by `false`:
    /// then nothing is returned, and the file stays.
    ///
    /// # Errors
    /// If a plugin or the file fails.
    pub fn make(
        folder: &Folder,
        wanted: &Wanted,
        craft: impl Fn(&Dataset) -> Result<Tensor>,
        mut told: impl FnMut(Told) -> bool,
    ) -> Result<Option<Self>> {
        let path = folder.file(wanted.name);
        let context = || format!("cannot write '{}'", path.display());
        let Stored {
            mut images,
            bytes,
            damaged,
        } = Stored::read(&path, wanted)?;
        if damaged && !told(Told::Damaged(images.len() / wanted.data.image_len())) {
            return Ok(None);
        }
        let mut file = open_at(&path, bytes).with_context(context)?;
        while let Some(block) = wanted.block(&images) {
            let crafted = craft(&block.clean)?.data;
            let mut bytes: Vec<u8> = crafted.iter().flat_map(|value| value.to_le_bytes()).collect();
            bytes.extend(block.sum(wanted.recipe, &bytes));
            file.write_all(&bytes).with_context(context)?;
            images.extend(crafted);
            if !told(Told::Made(images.len() / wanted.data.image_len())) {
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

impl Wanted<'_> {
    /// The block that comes after these images; absent after the last.
    fn block(&self, images: &[f32]) -> Option<Block> {
        let from = images.len() / self.data.image_len();
        let indices: Vec<usize> = (from..self.data.len().min(from + STORED_AT_ONCE)).collect();
        (!indices.is_empty()).then(|| Block {
            from,
            clean: self.data.select(&indices),
        })
    }
}

/// Images that are written together.
struct Block {
    /// Position of its first image.
    from: usize,
    clean: Dataset,
}

impl Block {
    /// Checksum over what the images are made of and what they are.
    fn sum(&self, recipe: &str, crafted: &[u8]) -> [u8; SUM] {
        let mut sha = Sha256::new();
        sha.update(Sha256::digest(recipe.as_bytes()));
        sha.update((self.from as u64).to_le_bytes());
        sha.update(self.clean.sha256());
        sha.update(crafted);
        sha.finalize().into()
    }
}

/// What a file holds that can be used.
struct Stored {
    images: Vec<f32>,
    /// Length of that part of the file.
    bytes: u64,
    /// Whether a block that is whole does not fit its checksum. One that was cut off is no damage: it is what a killed process leaves.
    damaged: bool,
}

impl Stored {
    fn read(path: &Path, wanted: &Wanted) -> Result<Self> {
        let file = match std::fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => vec![],
            file => file.with_context(|| format!("cannot read '{}'", path.display()))?,
        };
        let mut stored = Self {
            images: vec![],
            bytes: 0,
            damaged: false,
        };
        let mut rest = file.as_slice();
        while let Some(block) = wanted.block(&stored.images) {
            let images = 4 * block.clean.images.len();
            let Some((whole, more)) = rest.split_at_checked(images + SUM) else {
                break;
            };
            let (crafted, sum) = whole.split_at(images);
            if block.sum(wanted.recipe, crafted) != sum {
                stored.damaged = true;
                break;
            }
            let values = crafted.as_chunks::<4>().0.iter();
            stored.images.extend(values.map(|bytes| f32::from_le_bytes(*bytes)));
            stored.bytes += whole.len() as u64;
            rest = more;
        }
        Ok(stored)
    }
}

/// A file cut to `len` bytes, to be written on from there.
fn open_at(path: &Path, len: u64) -> std::io::Result<File> {
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

    struct Scene {
        _dir: tempfile::TempDir,
        folder: Folder,
        data: Dataset,
        crafted: Cell<usize>,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (images, ids) = (vec![0.25; 2 * 2500], (0..2500).collect());
            Self {
                folder: Folder::open(dir.path()).unwrap(),
                _dir: dir,
                data: Dataset::new("d", images, vec![1; 2500], ids, [1, 1, 2], 2).unwrap(),
                crafted: Cell::new(0),
            }
        }

        fn make(&self, recipe: &str, told: impl FnMut(Told) -> bool) -> Option<Examples> {
            let craft = |batch: &Dataset| {
                self.crafted.set(self.crafted.get() + batch.len());
                let mut x = images(batch)?;
                (x.data.iter_mut().zip(batch.ids.iter().flat_map(|id| [id, id]))).for_each(|(v, id)| *v += *id as f32);
                Ok(x)
            };
            let data = &self.data;
            Examples::make(
                &self.folder,
                &Wanted {
                    name: "a",
                    recipe,
                    data,
                },
                craft,
                told,
            )
            .unwrap()
        }

        fn file(&self) -> Vec<u8> {
            std::fs::read(self.folder.file("a")).unwrap()
        }
    }

    #[test]
    fn examples_are_made_once_and_an_interrupted_file_is_gone_on_with() {
        let scene = Scene::new();
        let sound = |told| matches!(told, Told::Made(_));
        assert!(scene.make("r", |_| false).is_none());
        // Half a number more, as a process that was killed may leave.
        let mut bytes = scene.file();
        bytes.extend([1, 2]);
        std::fs::write(scene.folder.file("a"), bytes).unwrap();
        let examples = scene.make("r", sound).unwrap();
        assert_eq!(scene.crafted.get(), 2500);
        assert_eq!(
            examples.select(&[2499, 3], [1, 1, 2]).data,
            [2499.25, 2499.25, 3.25, 3.25]
        );
        let again = scene.make("r", sound).unwrap();
        assert_eq!((scene.crafted.get(), again.0), (2500, examples.0));
    }

    #[test]
    fn damaged_examples_are_noticed_and_made_again() {
        let scene = Scene::new();
        let examples = scene.make("r", |_| true).unwrap();
        let whole = scene.file();
        // A pixel of the first block, one of the last, and a checksum.
        for (byte, from) in [(3, 0), (whole.len() - SUM - 1, 2000), (2 * 4 * 1000 + 5, 0)] {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1;
            std::fs::write(scene.folder.file("a"), damaged).unwrap();
            scene.crafted.set(0);
            let mut found = None;
            let again = scene.make("r", |told| {
                if let Told::Damaged(from) = told {
                    found = Some(from);
                }
                true
            });
            assert_eq!((found, scene.crafted.get()), (Some(from), 2500 - from), "byte {byte}");
            assert_eq!((again.unwrap().0, scene.file()), (examples.0.clone(), whole.clone()));
        }
    }

    #[test]
    fn examples_of_another_recipe_or_of_other_images_are_never_used() {
        let mut scene = Scene::new();
        scene.make("r", |_| true).unwrap();
        scene.make("another", |_| true).unwrap();
        assert_eq!(scene.crafted.get(), 5000);
        scene.data.images[0] = 0.5;
        assert_eq!(scene.make("another", |_| true).unwrap().0[0], 0.5);
    }
}
