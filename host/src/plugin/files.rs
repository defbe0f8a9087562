//! Files that settings name: read once, hashed, and handed on as copies that nobody changes.

use super::{Plugin, hex, sealed};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, PoisonError};

/// A plugin's settings, and which files they name.
pub struct Given {
    /// The settings, with paths of the copies.
    pub config: Map<String, Value>,
    /// Hash of each file, in hex, by its setting.
    pub hashes: BTreeMap<String, String>,
}

/// A file as it was when it was first asked for.
#[derive(Clone)]
struct Known {
    sha256: String,
    path: String,
}

/// Files by the paths they were asked for: one path is one file as long as the process lives.
static READ: LazyLock<Mutex<HashMap<String, Known>>> = LazyLock::new(Mutex::default);

/// What a plugin is given for these settings.
///
/// # Errors
/// Where a file cannot be read.
pub fn given(plugin: &Plugin, config: &Map<String, Value>) -> Result<Given> {
    let (mut config, mut hashes) = (config.clone(), BTreeMap::new());
    for setting in plugin.description.settings.iter().filter(|setting| setting.file) {
        let path = match config.get(&setting.name) {
            Some(Value::String(path)) => path.clone(),
            // A file whose name is a number.
            Some(Value::Number(path)) => path.to_string(),
            _ => continue,
        };
        let known = read(&path).with_context(|| format!("setting '{}' of '{}'", setting.name, plugin.manifest.name))?;
        hashes.insert(setting.name.clone(), known.sha256);
        let copy = json!({"path": known.path, "name": path});
        config.insert(setting.name.clone(), copy);
    }
    Ok(Given { config, hashes })
}

/// A setting's value as the user gave it: a copy by the name of its file.
pub fn as_given(value: &Value) -> &Value {
    value.get("name").unwrap_or(value)
}

fn read(path: &str) -> Result<Known> {
    let mut all = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.get(path) {
        return Ok(known.clone());
    }
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the file '{path}': expected the path of a file that exists"))?;
    let sha256 = hex(&Sha256::digest(&bytes));
    let known = Known {
        path: sealed::or_itself(path, &sha256, &bytes),
        sha256,
    };
    all.insert(path.into(), known.clone());
    Ok(known)
}
