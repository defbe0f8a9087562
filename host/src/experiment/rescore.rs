//! Saved adversarial images, measured and classified again.

use super::budgets::made_plain;
use super::ids::{Ids, Purpose};
use super::images::SavedMeta;
use super::load::{LoadedModel, load_model, load_recorded};
use super::repeat::{Chosen, Scored, repeat};
use super::score::{Batch, Limits, Scorer};
use super::workers::{Layout, for_each};
use crate::plugin::hex;
use crate::results::{Cell, CellConfig, CellHeader, Check, ModelConfig, Named, PluginConfig, Precision, Row, Search};
use crate::terminal::console;
use crate::wire::attack::Perturbed;
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::{Kind, NormKind};
use advae_data::npz::{Logits, Saved};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Map;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// How files are scored; what is absent the file itself says.
#[derive(Clone, Debug)]
pub struct Rescoring {
    /// Classifier.
    pub classifier: Option<String>,
    /// Purifier in front of it, or `none`.
    pub purifier: Option<String>,
    /// Norm and budget.
    pub budget: Option<(NormKind, f64)>,
    /// Seed of a random defence.
    pub seed: Option<u64>,
    /// Scoring draws of a random defence.
    pub draws: u64,
    /// Where models run.
    pub device: String,
    /// Threads.
    pub threads: usize,
}

/// A file that is being scored.
pub struct Rescored {
    saved: Saved,
    header: CellHeader,
    pipeline: Pipeline,
    limits: Limits,
    layout: Layout,
    samples: Vec<usize>,
}

impl Rescored {
    /// Reads a file, and loads the defence that is to classify its images.
    ///
    /// # Errors
    /// Where the file or a plugin cannot be read, or they do not fit each other.
    pub fn open(rescoring: &Rescoring, path: &Path) -> Result<Self> {
        let saved = Saved::read(path)?;
        let meta: Option<SavedMeta> = match saved.meta.as_str() {
            "" => None,
            text => {
                Some(serde_json::from_str(text).context("its meta is not of this host: take the array 'meta' out")?)
            }
        };
        let origin = meta.map(|meta| meta.cell);
        let (classifier, purifier) = defence(rescoring, origin.as_ref())?;
        let pipeline = Pipeline::new(purifier.as_ref().map(|p| p.model.clone()), classifier.model.clone());
        pipeline.check()?;
        check(&saved, &pipeline)?;
        let bounds = [0., 1.];
        let recorded = || (origin.as_ref()).map(|cell| (cell.config.norm, cell.config.epsilon));
        let (norm, epsilon) = match rescoring.budget {
            Some((norm, epsilon)) => (norm, Some(epsilon)),
            None => recorded().unwrap_or((NormKind::L2, None)),
        };
        if let (Some((norm, asked)), Some((its_norm, Some(its)))) = (rescoring.budget, recorded()) {
            ensure!(
                (norm, asked >= its) == (its_norm, true),
                "--epsilon {norm} {asked}: its images were made within {its_norm} {its}, and beyond a budget nothing is measured: leave \
                 --epsilon out, or run eval with the budget that you want"
            );
        }
        let limits = Limits { bounds, norm, epsilon };
        let rounded = origin.as_ref().and_then(|cell| cell.config.quantize);
        if origin.is_none() {
            console::say(&unsaid(path, rescoring));
        }
        let scorers = Scorers {
            classifier: &classifier,
            purifier: purifier.as_ref(),
            random: pipeline.random(),
        };
        Ok(Self {
            header: header(rescoring, path, origin, &saved, &scorers, &limits),
            layout: Layout::of(pipeline.models(), rescoring.threads, None),
            samples: (0..saved.ids.len()).collect(),
            pipeline,
            limits: limits.after_rounding(rounded, saved.shape.iter().product()),
            saved,
        })
    }

    /// Ids, labels and clean images of the samples.
    pub fn samples(&self) -> impl Iterator<Item = (u64, u32, &[f32])> {
        let len: usize = self.saved.shape.iter().product();
        let images = self.originals().chunks(len.max(1));
        let labels = self.saved.labels.iter().copied();
        (self.saved.ids.iter().copied())
            .zip(labels)
            .zip(images)
            .map(|((id, label), x)| (id, label, x))
    }

    /// Name and hash of the dataset that the ids are of; empty where the file does not say.
    pub fn dataset(&self) -> (&str, &str) {
        (&self.header.config.dataset, &self.header.config.dataset_sha256)
    }

    fn originals(&self) -> &[f32] {
        self.saved.originals.as_deref().unwrap_or_default()
    }

    /// Ids of a batch as plugins see them.
    fn scoring_ids(&self, batch: &[usize]) -> Vec<u64> {
        let ids: Vec<u64> = batch.iter().map(|i| self.saved.ids[*i]).collect();
        self.ids().all(Purpose::Score, &ids)
    }

    fn ids(&self) -> Ids {
        Ids::new(&self.header.config.dataset_sha256, self.header.config.seed)
    }

    /// Images of a batch, out of those of all samples.
    fn select(&self, pixels: &[f32], batch: &[usize]) -> Tensor {
        let [c, h, w] = self.saved.shape;
        let image = |i: &usize| &pixels[i * c * h * w..(i + 1) * c * h * w];
        Tensor {
            shape: vec![batch.len(), c, h, w],
            data: batch.iter().flat_map(image).copied().collect(),
        }
    }

    /// Logits of all images, on the first draw of a random defence.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn logits(&self) -> Result<Logits> {
        let batches = self.layout.cut(&self.samples);
        let of = |pixels: &[f32]| -> Result<Vec<f32>> {
            let parts = for_each(self.layout.workers, batches.len(), |i| {
                let ids = self.scoring_ids(batches[i]);
                let call = Call::score(self.header.config.seed, &ids).with_threads(self.layout.call_threads);
                Ok(self.pipeline.forward(&call, &self.select(pixels, batches[i]))?.data)
            });
            Ok(parts?.concat())
        };
        Ok(Logits {
            ids: self.saved.ids.clone(),
            clean: of(self.originals())?,
            adversarial: of(&self.saved.images)?,
        })
    }

    /// Measures and classifies the images.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn score(&self) -> Result<Cell> {
        let start = std::time::Instant::now();
        let scorer = Scorer {
            pipeline: self.pipeline.clone(),
            seed: self.header.config.seed,
            draws: self.header.config.draws,
            call_threads: self.layout.call_threads,
        };
        let (batches, ids) = (self.layout.cut(&self.samples), self.ids());
        let chosen = Chosen::of(&ids, &self.saved.ids);
        let scored: Result<Vec<(Vec<Row>, Option<Check>)>> = for_each(self.layout.workers, batches.len(), |i| {
            let of = |all: &[u32]| batches[i].iter().map(|i| all[*i]).collect::<Vec<u32>>();
            let batch = Batch {
                ids: batches[i].iter().map(|i| self.saved.ids[*i]).collect(),
                scoring_ids: self.scoring_ids(batches[i]),
                x: self.select(self.originals(), batches[i]),
                y: of(&self.saved.labels),
            };
            let clean = scorer.classify(&batch)?;
            let found = self.saved.found.as_ref();
            let perturbed = Perturbed {
                x_adv: self.select(&self.saved.images, batches[i]),
                found: found.map(|found| batches[i].iter().map(|i| found[*i]).collect()),
                targets: self.saved.targets.as_deref().map(of),
            };
            let mut rows = scorer.score(&self.header.key, &self.limits, &batch, &clean, &perturbed)?;
            let scored = Scored {
                batch: &batch,
                clean: &clean,
                perturbed: &perturbed,
                rows: &rows,
            };
            let check = repeat(&scorer, &ids, &chosen, &scored)?;
            let at = start.elapsed().as_secs_f64();
            rows.iter_mut().for_each(|row| row.at = at);
            Ok((rows, check))
        });
        let scored = scored.map_err(|error| anyhow!(ids.reveal(&format!("{error:#}"), &self.saved.ids)))?;
        let mut cell = Cell::new(self.header.clone());
        let (rows, checks): (Vec<_>, Vec<_>) = scored.into_iter().unzip();
        cell.rows = rows.into_iter().flatten().map(|row| (row.id, row)).collect();
        cell.check = checks.into_iter().flatten().reduce(Check::and);
        Ok(cell)
    }
}

/// Refuses what cannot be scored.
fn check(saved: &Saved, pipeline: &Pipeline) -> Result<()> {
    let (shape, input, classes) = (saved.shape, pipeline.input()?, pipeline.classes());
    let classifier = pipeline.classifier.name();
    ensure!(!saved.ids.is_empty(), "it holds no images: nothing can be scored");
    ensure!(
        shape == input,
        "it holds images {shape:?}, classifier '{classifier}' takes {input:?}: give another with --classifier"
    );
    let originals = (saved.originals.as_ref())
        .context("it holds no clean images 'x': distances cannot be measured: add that array")?;
    let len: usize = shape.iter().product();
    if let Some(at) = originals.iter().position(|pixel| !(0.0..=1.0).contains(pixel)) {
        bail!(
            "the clean image 'x' of sample {} has the pixel {}, outside [0, 1]: divide bytes by 255, and undo any other \
             normalisation",
            saved.ids[at / len],
            originals[at]
        );
    }
    if let Some(at) = saved.labels.iter().position(|label| *label as usize >= classes) {
        bail!(
            "sample {} has the label {}, classifier '{classifier}' knows the classes 0 to {}: choose one for these images",
            saved.ids[at],
            saved.labels[at],
            classes - 1
        );
    }
    Ok(())
}

fn defence(rescoring: &Rescoring, origin: Option<&CellHeader>) -> Result<(LoadedModel, Option<LoadedModel>)> {
    let load = |spec: &str, kind| load_model(spec, kind, &rescoring.device, None);
    let classifier = match (&rescoring.classifier, origin) {
        (Some(spec), _) => load(spec, Kind::Classifier)?,
        (None, Some(cell)) => load_recorded(&cell.config.classifier, Kind::Classifier, &rescoring.device)?,
        (None, None) => bail!("it names no classifier: give --classifier"),
    };
    let purifier = match (
        &rescoring.purifier,
        origin.and_then(|cell| cell.config.purifier.as_ref()),
    ) {
        (Some(spec), _) if spec == "none" => None,
        (Some(spec), _) => Some(load(spec, Kind::Purifier)?),
        (None, Some(model)) => Some(load_recorded(model, Kind::Purifier, &rescoring.device)?),
        (None, None) => None,
    };
    Ok((classifier, purifier))
}

/// What scores a file.
struct Scorers<'a> {
    classifier: &'a LoadedModel,
    purifier: Option<&'a LoadedModel>,
    random: bool,
}

fn header(
    rescoring: &Rescoring,
    path: &Path,
    origin: Option<CellHeader>,
    saved: &Saved,
    scorers: &Scorers,
    limits: &Limits,
) -> CellHeader {
    let classifier = &scorers.classifier.config;
    let purifier = scorers.purifier.map(|p| p.config.clone());
    let mut header = origin.unwrap_or_else(|| unknown(path, classifier));
    let len: usize = saved.shape.iter().product();
    let originals = saved.originals.as_deref().unwrap_or_default().chunks(len.max(1));
    header.plain = (limits.epsilon).map_or(0, |epsilon| made_plain(originals, limits.norm, epsilon));
    let other = |a: &ModelConfig, b: &ModelConfig| (&a.plugin, &a.weights) != (&b.plugin, &b.weights);
    let config = &header.config;
    let transfer = other(&config.classifier, classifier)
        || match (&config.purifier, &purifier) {
            (Some(a), Some(b)) => other(a, b),
            (a, b) => a.is_some() != b.is_some(),
        };
    if transfer && header.target.is_some() {
        header.crafted_on = Some(format!("{}, {}", header.defence(), header.threat_model));
        (header.target, header.granted, header.rule) = (None, None, None);
        header.threat_model = Named::plain("transfer");
    }
    header.classifier = scorers.classifier.named.clone();
    header.purifier = scorers.purifier.map(|p| p.named.clone());
    header.note = scorers.purifier.map(LoadedModel::note).unwrap_or_default();
    header.classifier_note = scorers.classifier.note();
    header.samples = saved.ids.len();
    header.config.classifier = classifier.clone();
    header.config.purifier = purifier;
    (header.config.norm, header.config.epsilon) = (limits.norm, limits.epsilon);
    header.config.seed = rescoring.seed.unwrap_or(header.config.seed);
    header.config.draws = if scorers.random { rescoring.draws } else { 1 };
    // The images alone are scored: by draws that nobody knew, and of one attack, whatever suite it was a stage of.
    (header.config.known_draw, header.config.stage) = (false, None);
    header.config.images_sha256 = Some(content(saved));
    header.key = header.config.key();
    header
}

/// Hash of what is scored, and of what success means.
fn content(saved: &Saved) -> String {
    let mut hasher = Sha256::new();
    saved.ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    saved.images.iter().for_each(|pixel| hasher.update(pixel.to_le_bytes()));
    for target in saved.targets.iter().flatten() {
        hasher.update(target.to_le_bytes());
    }
    for found in saved.found.iter().flatten() {
        hasher.update([u8::from(*found)]);
    }
    hex(&hasher.finalize())
}

/// What is taken for granted of a file that does not say where its images come from.
fn unsaid(path: &Path, rescoring: &Rescoring) -> String {
    let mut text = format!("note: '{}' does not say what its images were made for", path.display());
    if rescoring.purifier.is_none() {
        text += "; scored without a purifier: give --purifier where there is one";
    }
    if rescoring.budget.is_none() {
        text += "; any distance is allowed: give --epsilon linf=VALUE or l2=VALUE to refuse what is beyond a budget";
    }
    text
}

/// A header for images of unknown origin.
fn unknown(path: &Path, classifier: &ModelConfig) -> CellHeader {
    let plugin = PluginConfig {
        name: "-".into(),
        version: "-".into(),
        sha256: "-".into(),
        config: Map::new(),
        files: BTreeMap::new(),
    };
    let config = CellConfig {
        contract: String::new(),
        classifier: classifier.clone(),
        purifier: None,
        threat_model: plugin.clone(),
        attack: plugin,
        norm: NormKind::L2,
        epsilon: None,
        early_stop: false,
        dataset: String::new(),
        dataset_sha256: String::new(),
        seed: 0,
        eot: 1,
        draws: 1,
        images_sha256: None,
        known_draw: false,
        quantize: None,
        precision: Precision::F32,
        stage: None,
    };
    CellHeader {
        key: String::new(),
        classifier: Named::default(),
        purifier: None,
        threat_model: Named::plain("unknown"),
        attack: Named::plain(&path.to_string_lossy()),
        target: None,
        granted: None,
        search: Search::default(),
        rule: None,
        crafted_on: None,
        samples: 0,
        l2_caps: vec![],
        plain: 0,
        note: String::new(),
        classifier_note: String::new(),
        dataset_note: String::new(),
        config,
    }
}
