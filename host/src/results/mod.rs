//! Results as JSON lines: a header a cell, then a row a sample, written as they come.

use advae_abi::info::NormKind;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

/// A plugin file and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginConfig {
    /// The plugin's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Hash of its file.
    pub sha256: String,
    /// Settings that were given; the others have their defaults.
    pub config: Map<String, Value>,
}

/// A classifier or a purifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// File and settings.
    #[serde(flatten)]
    pub plugin: PluginConfig,
    /// `default`, `set:NAME` or `file:SHA256`.
    pub weights: String,
    /// Where it runs.
    pub device: String,
    /// Backward rule the evaluator chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward: Option<String>,
}

/// Everything a cell's figures depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellConfig {
    /// Version of the contract.
    pub contract: String,
    /// Under attack.
    pub classifier: ModelConfig,
    /// In front of it.
    pub purifier: Option<ModelConfig>,
    /// What the attacker knows.
    pub threat_model: PluginConfig,
    /// Attack.
    pub attack: PluginConfig,
    /// Norm of the budget.
    pub norm: NormKind,
    /// Budget; absent: none.
    pub epsilon: Option<f64>,
    /// Whether decided samples were left alone.
    pub early_stop: bool,
    /// Name of the dataset.
    pub dataset: String,
    /// Hash of the dataset.
    pub dataset_sha256: String,
    /// Seed of everything.
    pub seed: u64,
    /// Draws gradients are averaged over.
    pub eot: u64,
    /// Scoring draws.
    pub draws: u64,
}

impl CellConfig {
    /// Short hash of the whole configuration: what resuming goes by.
    pub fn key(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        crate::plugin::hex(&Sha256::digest(json))[..16].to_string()
    }
}

/// First line of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellHeader {
    /// [`CellConfig::key`].
    pub key: String,
    /// As in the table.
    pub classifier: String,
    /// As in the table.
    pub purifier: String,
    /// As in the table.
    pub threat_model: String,
    /// As in the table.
    pub attack: String,
    /// How many samples were asked for.
    pub samples: usize,
    /// Version of the host.
    pub host: String,
    /// What the purifier says a reader must know of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What is needed to repeat the cell.
    pub config: CellConfig,
}

/// Shares over the scoring draws of a random pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawShares {
    /// Share of draws that are correct on the clean image.
    pub clean: f64,
    /// Share of draws that are correct on the scored image.
    pub robust: f64,
}

/// One sample of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Key of the cell.
    pub cell: String,
    /// Sample id.
    pub id: u64,
    /// True label.
    pub label: u32,
    /// Label given to the clean image.
    pub clean_prediction: u32,
    /// Label given to the scored image.
    pub adversarial_prediction: u32,
    /// Whether the clean image is classified correctly (by most draws).
    pub clean_correct: bool,
    /// Whether the scored image is classified correctly (by most draws).
    pub robust: bool,
    /// For a random pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draws: Option<DrawShares>,
    /// L2 distance from the clean image.
    pub l2: Option<f64>,
    /// Linf distance from the clean image.
    pub linf: Option<f64>,
    /// Why the image was refused; it is then scored as the clean one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What the attack says it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<bool>,
    /// Label a targeted attack aimed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u32>,
    /// Share of the run's time.
    pub seconds: f64,
}

impl Row {
    /// Correctness on the clean image: 0 or 1, or a mean over draws.
    pub fn clean_share(&self) -> f64 {
        self.draws.map_or(f64::from(u8::from(self.clean_correct)), |d| d.clean)
    }

    /// Correctness on the scored image: 0 or 1, or a mean over draws.
    pub fn robust_share(&self) -> f64 {
        self.draws.map_or(f64::from(u8::from(self.robust)), |d| d.robust)
    }

    /// Whether the attack succeeded on a sample that was classified correctly.
    pub fn broken(&self) -> bool {
        let success = self
            .target
            .map_or(!self.robust, |target| self.adversarial_prediction == target);
        self.clean_correct && self.refused.is_none() && success
    }

    /// Distance in that norm.
    pub fn distance(&self, norm: NormKind) -> Option<f64> {
        match norm {
            NormKind::Linf => self.linf,
            NormKind::L2 => self.l2,
        }
    }
}

/// The model that a black-box attacker trained and attacked in place of the whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Substitute {
    /// Labels of the whole model that it cost.
    pub queries: u64,
    /// Clean images of the run on which both models say the same.
    pub agreeing: usize,
    /// Of so many.
    pub of: usize,
}

impl Substitute {
    /// Share of the clean images on which both models say the same.
    pub fn agreement(&self) -> f64 {
        self.agreeing as f64 / self.of.max(1) as f64
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Cell(Box<CellHeader>),
    Sample(Row),
    Substitute {
        cell: String,
        #[serde(flatten)]
        substitute: Substitute,
    },
    Failed {
        cell: String,
        error: String,
    },
}

/// What earlier runs left.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    /// Rows by cell and sample.
    pub rows: BTreeMap<String, BTreeMap<u64, Row>>,
    /// Substitutes by cell.
    pub substitutes: BTreeMap<String, Substitute>,
}

/// Where rows go; nowhere, if no file was asked for.
pub struct Results {
    path: Option<PathBuf>,
    writer: Option<BufWriter<File>>,
    headers: HashSet<String>,
}

impl Results {
    /// No file.
    pub fn nowhere() -> Self {
        Self {
            path: None,
            writer: None,
            headers: HashSet::new(),
        }
    }

    /// A new file.
    ///
    /// # Errors
    /// Where it is there already or cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        ensure!(
            !path.is_dir(),
            "--out '{}' is a folder: name a file, such as results.jsonl in it",
            path.display()
        );
        if path.exists() {
            bail!(
                "'{}' is there already: add --resume to go on with it, or choose another --out",
                path.display()
            );
        }
        let file = File::create_new(path).with_context(|| {
            format!(
                "cannot write --out '{}': name a file in a folder that is there and may be written",
                path.display()
            )
        })?;
        claim(&file, path)?;
        Ok(Self {
            path: Some(path.into()),
            writer: Some(BufWriter::new(file)),
            headers: HashSet::new(),
        })
    }

    /// Goes on with a file, or begins it. A last line that was cut off by a crash is dropped.
    ///
    /// # Errors
    /// Where the file is not one of this host, or another run writes it.
    pub fn resume(path: &Path) -> Result<(Self, Previous)> {
        if !path.exists() || path.is_dir() {
            return Ok((Self::create(path)?, Previous::default()));
        }
        let shown = path.display();
        let mut file = OpenOptions::new()
            .write(true)
            .open(path)
            .with_context(|| format!("cannot write '{shown}'"))?;
        claim(&file, path)?;
        let read = || -> Result<_> { read_lines(File::open(path)?) };
        let (lines, end) = read().with_context(|| format!("cannot resume '{shown}'"))?;
        file.set_len(end)?;
        file.seek(std::io::SeekFrom::End(0))?;
        let (mut headers, mut previous) = (HashSet::new(), Previous::default());
        for line in lines {
            match line {
                Line::Cell(header) => drop(headers.insert(header.key)),
                Line::Sample(row) => {
                    previous.rows.entry(row.cell.clone()).or_default().insert(row.id, row);
                }
                Line::Substitute { cell, substitute } => drop(previous.substitutes.insert(cell, substitute)),
                Line::Failed { .. } => {}
            }
        }
        Ok((
            Self {
                path: Some(path.into()),
                writer: Some(BufWriter::new(file)),
                headers,
            },
            previous,
        ))
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Writes the header of a cell, once.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn begin(&mut self, header: &CellHeader) -> Result<()> {
        if self.headers.insert(header.key.clone()) {
            self.write([Line::Cell(Box::new(header.clone()))])?;
        }
        Ok(())
    }

    /// Writes rows and flushes them.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn append(&mut self, rows: &[Row]) -> Result<()> {
        self.write(rows.iter().cloned().map(Line::Sample))
    }

    /// Notes whom a cell attacks in place of the whole model.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn prepared(&mut self, cell: &str, substitute: Substitute) -> Result<()> {
        self.write([Line::Substitute {
            cell: cell.into(),
            substitute,
        }])
    }

    /// Notes that a cell failed.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn fail(&mut self, cell: &str, error: &str) -> Result<()> {
        self.write([Line::Failed {
            cell: cell.into(),
            error: error.into(),
        }])
    }

    fn write(&mut self, lines: impl IntoIterator<Item = Line>) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        for line in lines {
            serde_json::to_writer(&mut *writer, &line).context("cannot write the results")?;
            writer.write_all(b"\n").context("cannot write the results")?;
        }
        writer.flush().context("cannot write the results")
    }
}

/// Keeps other runs from writing the file as long as it is open. Where a file system knows no locks there is none.
fn claim(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!(
            "'{}' is being written by another run: wait for its end, or choose another --out",
            path.display()
        ),
        Err(TryLockError::Error(_)) | Ok(()) => Ok(()),
    }
}

/// The lines, and where the last whole one ends.
fn read_lines(file: File) -> Result<(Vec<Line>, u64)> {
    let mut reader = BufReader::new(file);
    let (mut lines, mut end, mut text) = (vec![], 0, String::new());
    loop {
        text.clear();
        let read = reader
            .read_line(&mut text)
            .with_context(|| format!("line {} is not text", lines.len() + 1))?;
        if read == 0 || !text.ends_with('\n') {
            return Ok((lines, end));
        }
        let line = serde_json::from_str(&text);
        lines.push(line.with_context(|| format!("line {} is no result of this host", lines.len() + 1))?);
        end += read as u64;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn plugin(name: &str) -> PluginConfig {
        PluginConfig {
            name: name.into(),
            version: "0.1.0".into(),
            sha256: "00".into(),
            config: Map::new(),
        }
    }

    pub(crate) fn header(attack: &str, norm: NormKind, epsilon: Option<f64>) -> CellHeader {
        let model = |name| ModelConfig {
            plugin: plugin(name),
            weights: "default".into(),
            device: "cpu".into(),
            backward: None,
        };
        let config = CellConfig {
            contract: "1.0".into(),
            classifier: model("model_x"),
            purifier: Some(model("advae")),
            threat_model: plugin("white_box"),
            attack: plugin(attack),
            norm,
            epsilon,
            early_stop: true,
            dataset: "mnist-1k".into(),
            dataset_sha256: "11".into(),
            seed: 0,
            eot: 1,
            draws: 1,
        };
        CellHeader {
            key: config.key(),
            classifier: "model_x".into(),
            purifier: "advae".into(),
            threat_model: "white_box".into(),
            attack: attack.into(),
            samples: 4,
            host: "0.1.0".into(),
            note: String::new(),
            config,
        }
    }

    pub(crate) fn row(cell: &str, id: u64, clean_correct: bool, robust: bool) -> Row {
        Row {
            cell: cell.into(),
            id,
            label: 1,
            clean_prediction: u32::from(clean_correct),
            adversarial_prediction: u32::from(robust),
            clean_correct,
            robust,
            draws: None,
            l2: Some(1.5),
            linf: Some(0.3),
            refused: None,
            found: None,
            target: None,
            seconds: 0.5,
        }
    }

    #[test]
    fn the_key_depends_on_the_whole_configuration() {
        let one = header("pgd", NormKind::Linf, Some(0.3)).config;
        let mut other = one.clone();
        assert_eq!(one.key(), other.key());
        other.attack.config.insert("steps".into(), 41.into());
        assert_ne!(one.key(), other.key());
        assert_eq!(one.key().len(), 16);
    }

    #[test]
    fn a_cut_off_file_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        let header = header("pgd", NormKind::Linf, Some(0.3));
        let mut results = Results::create(&path).unwrap();
        results.begin(&header).unwrap();
        results
            .append(&[row(&header.key, 0, true, true), row(&header.key, 7, true, false)])
            .unwrap();
        let substitute = Substitute {
            queries: 4800,
            agreeing: 9,
            of: 10,
        };
        results.prepared(&header.key, substitute).unwrap();
        results.fail(&header.key, "plugin broke").unwrap();
        drop(results);
        assert!(Results::create(&path).is_err_and(|e| e.to_string().contains("--resume")));
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"type\":\"sam")).unwrap();

        let (mut results, previous) = Results::resume(&path).unwrap();
        let rows = &previous.rows[&header.key];
        assert_eq!(rows.keys().copied().collect::<Vec<_>>(), [0, 7]);
        assert_eq!(rows[&7], row(&header.key, 7, true, false));
        assert_eq!(previous.substitutes[&header.key], substitute);
        results.begin(&header).unwrap();
        results.append(&[row(&header.key, 9, true, true)]).unwrap();
        drop(results);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&whole) && text.lines().count() == 6, "{text}");
    }

    #[test]
    fn two_runs_do_not_write_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        let first = Results::create(&path).unwrap();
        let error = Results::resume(&path).err().unwrap().to_string();
        assert!(error.contains("written by another run"), "{error}");
        drop(first);
        assert!(Results::resume(&path).is_ok());
    }

    #[test]
    fn a_foreign_file_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "hello\n").unwrap();
        let error = Results::resume(&path).err().unwrap();
        assert!(
            format!("{error:#}").contains("line 1 is no result of this host"),
            "{error:#}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "hello\n");
    }

    #[test]
    fn a_targeted_attack_has_to_hit_its_target() {
        let mut row = row("c", 0, true, false);
        assert!(row.broken());
        row.target = Some(5);
        assert!(!row.broken());
        row.adversarial_prediction = 5;
        assert!(row.broken());
        row.refused = Some("over budget".into());
        assert!(!row.broken());
    }
}
