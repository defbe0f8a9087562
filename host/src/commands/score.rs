//! `score`: measures and classifies saved adversarial images again.

use crate::commands::complain;
use crate::experiment::{
    Batch, Budgets, CellOutcome, Layout, Limits, LoadedModel, SavedMeta, Scorer, check_device, for_each, load_model,
    threads,
};
use crate::report::{Format, Report, Summary};
use crate::results::{CellConfig, CellHeader, ModelConfig, PluginConfig, Row};
use crate::wire::attack::Perturbed;
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::{Kind, NormKind};
use advae_data::npz::{Logits, Saved};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Map;
use std::path::{Path, PathBuf};

/// Flags of `score`.
#[derive(Args, Clone, Debug)]
pub struct ScoreArgs {
    /// Files that `eval --save-adversarial` wrote, or with the same arrays
    #[arg(required = true, value_name = "FILE.npz")]
    files: Vec<PathBuf>,
    /// Classifier [default: the one the file names]
    #[arg(long, value_name = "PLUGIN")]
    classifier: Option<String>,
    /// Purifier in front of it, or `none` [default: the one the file names]
    #[arg(long, value_name = "PLUGIN")]
    purifier: Option<String>,
    /// Budget, `linf=0.3` or `l2=2` [default: the one the file names]
    #[arg(long, value_name = "NORM=VALUE")]
    epsilon: Option<String>,
    /// Seed of a random defence [default: the one the file names]
    #[arg(long)]
    seed: Option<u64>,
    /// Scoring draws of a random defence
    #[arg(long, value_name = "N", default_value_t = 10)]
    draws: u64,
    /// Where models run: `cpu` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write the logits of every file's clean and adversarial images, as `NAME.logits.npz`
    #[arg(long, value_name = "DIR")]
    logits: Option<PathBuf>,
    /// How the report is printed
    #[arg(long, default_value = "table")]
    format: Format,
}

/// Scores the files and prints a report. Returns the exit code.
///
/// # Errors
/// Where a file or a plugin cannot be read.
pub fn run(args: ScoreArgs) -> Result<i32> {
    check_device(&args.device)?;
    ensure!(args.draws > 0, "--draws is 0: give 1 or more");
    let score = |path: &PathBuf| {
        let saved = Saved::read(path)?;
        score_file(&args, path, saved).with_context(|| format!("'{}'", path.display()))
    };
    let outcomes = args.files.iter().map(score).collect::<Result<Vec<_>>>()?;
    let report = Report::new(outcomes.iter().map(Summary::of).collect());
    report.print(args.format)?;
    Ok(complain(&report))
}

fn score_file(args: &ScoreArgs, path: &Path, saved: Saved) -> Result<CellOutcome> {
    let meta: Option<SavedMeta> = match saved.meta.as_str() {
        "" => None,
        text => Some(serde_json::from_str(text).context("its meta is not of this host: give --classifier")?),
    };
    let origin = meta.map(|meta| meta.cell);
    let (classifier, purifier) = defence(args, origin.as_ref())?;
    let pipeline = Pipeline {
        purifier: purifier.as_ref().map(|p| p.model.clone()),
        classifier: classifier.model.clone(),
    };
    pipeline.check()?;
    let limits = limits(args, origin.as_ref())?;
    let header = header(
        args,
        path,
        origin,
        &saved,
        (&classifier, purifier.as_ref()),
        &limits,
        pipeline.random(),
    );
    let images = Images::new(args, &pipeline, &saved)?;
    if let Some(dir) = &args.logits {
        let name = format!("{}.logits.npz", path.file_stem().unwrap_or_default().to_string_lossy());
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder '{}'", dir.display()))?;
        images.logits(&header, &pipeline)?.write(&dir.join(name))?;
    }
    let rows = images.rows(&header, pipeline, &limits)?;
    Ok(CellOutcome {
        header,
        rows,
        error: None,
        zero_gradients: None,
        queries: 0,
        substitute: None,
        passes: 0,
        shape: saved.shape,
    })
}

fn defence(args: &ScoreArgs, origin: Option<&CellHeader>) -> Result<(LoadedModel, Option<LoadedModel>)> {
    let named = |model: &ModelConfig| spec_of(model);
    let classifier = match (&args.classifier, origin) {
        (Some(spec), _) => spec.clone(),
        (None, Some(cell)) => named(&cell.config.classifier)?,
        (None, None) => bail!("it names no classifier: give --classifier"),
    };
    let purifier = match (&args.purifier, origin.and_then(|cell| cell.config.purifier.as_ref())) {
        (Some(spec), _) => Some(spec.clone()).filter(|spec| spec != "none"),
        (None, Some(model)) => Some(named(model)?),
        (None, None) => None,
    };
    let load = |spec: &str, kind| load_model(spec, kind, &args.device, None);
    let classifier = load(&classifier, Kind::Classifier)?;
    let purifier = purifier.map(|spec| load(&spec, Kind::Purifier)).transpose()?;
    Ok((classifier, purifier))
}

/// The model as it is named on the command line.
fn spec_of(model: &ModelConfig) -> Result<String> {
    let name = &model.plugin.name;
    let mut spec = match model.weights.split_once(':') {
        None => name.clone(),
        Some(("set", set)) => format!("{name}@{set}"),
        Some(_) => bail!("'{name}' ran with weights from a file: name it, {name}@FILE.safetensors"),
    };
    for (i, (key, value)) in model.plugin.config.iter().enumerate() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        spec += &format!("{}{key}={value}", if i == 0 { ':' } else { ',' });
    }
    Ok(spec)
}

fn limits(args: &ScoreArgs, origin: Option<&CellHeader>) -> Result<Limits> {
    let bounds = [0., 1.];
    let Some(text) = &args.epsilon else {
        let config = origin.map(|cell| &cell.config);
        let (norm, epsilon) = config.map_or((NormKind::L2, None), |config| (config.norm, config.epsilon));
        return Ok(Limits { bounds, norm, epsilon });
    };
    let norm = match text.split_once('=') {
        Some(("linf", _)) => NormKind::Linf,
        Some(("l2", _)) => NormKind::L2,
        _ => bail!("--epsilon {text} names no norm: give linf=VALUE or l2=VALUE"),
    };
    let epsilon = Budgets::parse(std::slice::from_ref(text))?.resolve(norm, [0; 3])?;
    Ok(Limits {
        bounds,
        norm,
        epsilon: Some(epsilon),
    })
}

fn header(
    args: &ScoreArgs,
    path: &Path,
    origin: Option<CellHeader>,
    saved: &Saved,
    (classifier, purifier): (&LoadedModel, Option<&LoadedModel>),
    limits: &Limits,
    random: bool,
) -> CellHeader {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut header = origin.unwrap_or_else(|| unknown(&name, &classifier.config));
    header.classifier = classifier.label.clone();
    header.purifier = purifier.map_or("none".into(), |p| p.label.clone());
    header.note = purifier.map(|p| p.model.info().note.clone()).unwrap_or_default();
    header.samples = saved.ids.len();
    header.host = env!("CARGO_PKG_VERSION").into();
    header.config.classifier = classifier.config.clone();
    header.config.purifier = purifier.map(|p| p.config.clone());
    (header.config.norm, header.config.epsilon) = (limits.norm, limits.epsilon);
    header.config.seed = args.seed.unwrap_or(header.config.seed);
    header.config.draws = if random { args.draws } else { 1 };
    header.key = header.config.key();
    header
}

/// A header for images of unknown origin.
fn unknown(name: &str, classifier: &ModelConfig) -> CellHeader {
    let plugin = PluginConfig {
        name: "-".into(),
        version: "-".into(),
        sha256: "-".into(),
        config: Map::new(),
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
    };
    CellHeader {
        key: String::new(),
        classifier: String::new(),
        purifier: String::new(),
        threat_model: "-".into(),
        attack: name.into(),
        samples: 0,
        host: String::new(),
        note: String::new(),
        config,
    }
}

/// The images of a file, and how they are spread over workers.
struct Images<'a> {
    saved: &'a Saved,
    originals: &'a [f32],
    layout: Layout,
    samples: Vec<usize>,
}

impl<'a> Images<'a> {
    fn new(args: &ScoreArgs, pipeline: &Pipeline, saved: &'a Saved) -> Result<Self> {
        let originals = saved.originals.as_ref();
        let originals =
            originals.context("it holds no clean images 'x': distances cannot be measured: add that array")?;
        Ok(Self {
            saved,
            originals,
            layout: Layout::of(pipeline.models(), threads(args.threads)?, None),
            samples: (0..saved.ids.len()).collect(),
        })
    }

    /// Ids of a batch.
    fn ids(&self, batch: &[usize]) -> Vec<u64> {
        batch.iter().map(|i| self.saved.ids[*i]).collect()
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
    fn logits(&self, header: &CellHeader, pipeline: &Pipeline) -> Result<Logits> {
        let batches = self.layout.cut(&self.samples);
        let of = |pixels: &[f32]| -> Result<Vec<f32>> {
            let parts = for_each(self.layout.workers, batches.len(), |i| {
                let ids = self.ids(batches[i]);
                let call = Call::score(header.config.seed, &ids).with_threads(self.layout.call_threads);
                Ok(pipeline.forward(&call, &self.select(pixels, batches[i]))?.data)
            });
            Ok(parts?.concat())
        };
        Ok(Logits {
            ids: self.saved.ids.clone(),
            clean: of(self.originals)?,
            adversarial: of(&self.saved.images)?,
        })
    }

    fn rows(&self, header: &CellHeader, pipeline: Pipeline, limits: &Limits) -> Result<Vec<Row>> {
        let scorer = Scorer {
            pipeline,
            seed: header.config.seed,
            draws: header.config.draws,
            call_threads: self.layout.call_threads,
        };
        let batches = self.layout.cut(&self.samples);
        let rows = for_each(self.layout.workers, batches.len(), |i| {
            let start = std::time::Instant::now();
            let batch = Batch {
                ids: self.ids(batches[i]),
                x: self.select(self.originals, batches[i]),
                y: batches[i].iter().map(|i| self.saved.labels[*i]).collect(),
            };
            let clean = scorer.classify(&batch)?;
            let perturbed = Perturbed {
                x_adv: self.select(&self.saved.images, batches[i]),
                found: None,
                targets: None,
            };
            let mut rows = scorer.score(&header.key, limits, &batch, &clean, &perturbed)?;
            let seconds = start.elapsed().as_secs_f64() / (self.layout.workers * rows.len()) as f64;
            rows.iter_mut().for_each(|row| row.seconds = seconds);
            Ok(rows)
        })?;
        Ok(rows.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::header;

    #[test]
    fn a_file_names_its_defence() {
        let mut model = header("cw", NormKind::L2, None).config.classifier;
        assert_eq!(spec_of(&model).unwrap(), "model_x");
        model.weights = "set:clean".into();
        model.plugin.config = serde_json::from_str(r#"{"a":1,"b":"c"}"#).unwrap();
        assert_eq!(spec_of(&model).unwrap(), "model_x@clean:a=1,b=c");
        model.weights = "file:00".into();
        assert!(spec_of(&model).is_err());
    }
}
