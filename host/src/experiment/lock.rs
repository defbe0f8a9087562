//! What an experiment is made of, hash by hash: written down once, and asked for again before anything is measured.

use crate::plugin::hex;
use crate::results::{CellHeader, PluginConfig};
use crate::terminal::version;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;

/// How weights of a file are recorded.
const FILE: &str = "file:";

/// The contents of `advae.lock`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version and commit of the host.
    pub host: String,
    /// Plugins.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub plugin: BTreeSet<Part>,
    /// Files of weights, and other files that settings name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub file: BTreeSet<Part>,
    /// Datasets, whole as they are before samples are drawn.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dataset: BTreeSet<Part>,
}

/// A part of an experiment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What it is: `classifier model_x`, `weights of classifier model_x`, `mnist-1k`.
    pub name: String,
    /// Its hash.
    pub sha256: String,
}

impl Lock {
    /// Of these cells.
    pub fn of<'a>(headers: impl IntoIterator<Item = &'a CellHeader>) -> Self {
        let mut lock = Self {
            host: version::LINE.into(),
            ..Self::default()
        };
        for header in headers {
            let parts = Self::parts(header);
            lock.plugin.extend(parts.plugin);
            lock.file.extend(parts.file);
            lock.dataset.extend(parts.dataset);
        }
        lock
    }

    fn parts(header: &CellHeader) -> Self {
        let (config, mut parts) = (&header.config, Self::default());
        let part = |name: String, sha256: &str| Part {
            name,
            sha256: sha256.into(),
        };
        let models = [
            ("classifier", Some(&config.classifier)),
            ("purifier", config.purifier.as_ref()),
        ];
        for (kind, model) in models.into_iter().filter_map(|(kind, model)| Some((kind, model?))) {
            parts.add(kind, &model.plugin);
            if let Some(sha256) = model.weights.strip_prefix(FILE) {
                let name = format!("weights of {kind} {}", model.plugin.name);
                parts.file.insert(part(name, sha256));
            }
        }
        parts.add("threat model", &config.threat_model);
        parts.add("attack", &config.attack);
        parts
            .dataset
            .insert(part(config.dataset.clone(), &config.dataset_sha256));
        parts
    }

    fn add(&mut self, kind: &str, plugin: &PluginConfig) {
        let name = format!("{kind} {}", plugin.name);
        for (setting, sha256) in &plugin.files {
            self.file.insert(Part {
                name: format!("{setting} of {name}"),
                sha256: sha256.clone(),
            });
        }
        self.plugin.insert(Part {
            name,
            sha256: plugin.sha256.clone(),
        });
    }

    /// Reads a lock, and notes its hash for the results of this process.
    ///
    /// # Errors
    /// Where it cannot be read, or is for another host.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read '{shown}': write it with advae-host lock, or name it: --locked FILE")
        })?;
        let lock: Self = toml::from_str(&text)
            .with_context(|| format!("'{shown}' is no lock: write it anew with advae-host lock"))?;
        ensure!(
            lock.host == version::LINE,
            "'{shown}' is for host {}, this is {}: use that host, or write the lock anew with advae-host lock",
            lock.host,
            version::LINE
        );
        version::hold_to(hex(&Sha256::digest(text.as_bytes())));
        Ok(lock)
    }

    /// As a file.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn text(&self) -> Result<String> {
        let text = toml::to_string(self)?;
        Ok(format!(
            "# Written by advae-host lock. With --locked, eval and run refuse whatever has another hash.\n{text}"
        ))
    }

    /// Compares the cells with what is locked.
    ///
    /// # Errors
    /// Names the first part that is another one or is not in the lock.
    pub fn check<'a>(&self, headers: impl IntoIterator<Item = &'a CellHeader>) -> Result<()> {
        let found = Self::of(headers);
        let kinds = [
            (&found.plugin, &self.plugin),
            (&found.file, &self.file),
            (&found.dataset, &self.dataset),
        ];
        for (found, locked) in kinds {
            let Some(part) = found.difference(locked).next() else {
                continue;
            };
            let (name, sha256) = (&part.name, &part.sha256);
            let remedy = "write the lock anew with advae-host lock if it is meant";
            match locked.iter().find(|other| other.name == *name) {
                Some(other) => bail!(
                    "'{name}' has the sha256 {sha256}, locked is {}: put the locked one back, or {remedy}",
                    other.sha256
                ),
                None => bail!("'{name}' is not in the lock: leave it out, or {remedy}"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(sha256: &str) -> Lock {
        let part = |name: &str| Part {
            name: name.into(),
            sha256: sha256.into(),
        };
        Lock {
            host: version::LINE.into(),
            plugin: [part("classifier model_x"), part("attack pgd")].into(),
            file: BTreeSet::new(),
            dataset: [part("mnist-1k")].into(),
        }
    }

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("advae.lock");
        std::fs::write(&path, lock("ab").text().unwrap()).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock("ab"));
    }

    #[test]
    fn what_is_no_lock_or_is_for_another_host_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("advae.lock");
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", Lock::read(&path).unwrap_err())
        };
        assert!(refused("hello").contains("is no lock: write it anew with advae-host lock"));
        let other = lock("ab").text().unwrap().replace(version::LINE, "9.9.9");
        assert!(refused(&other).contains("is for host 9.9.9, this is"));
        let missing = Lock::read(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("or name it: --locked FILE"), "{missing}");
    }
}
