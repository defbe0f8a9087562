//! What is fuzzed: every reader of what somebody else has written. Each takes any bytes, and may answer with an error and nothing else: no
//! panic, no crash, no hang, no memory without bound.

use advae_host::commands::run::Experiment;
use advae_host::plugin::{PluginSpec, inspect, number};
use advae_host::training::Recipe;
use advae_sdk::nn::{KeyMap, Weights};
use advae_sdk::{Classifier, InputFile};
use onnx_models::{OnnxClassifier, OnnxSettings};
use std::path::{Path, PathBuf};

/// A reader of bytes.
pub type Target = fn(&[u8]);

/// All readers, by the names of their folders of seeds.
pub const TARGETS: [(&str, Target); 13] = [
    ("elf", elf),
    ("idx", idx),
    ("cifar_binary", cifar_binary),
    ("npz", npz),
    ("parquet", parquet),
    ("jpeg", jpeg),
    ("safetensors", safetensors),
    ("pth", pth),
    ("onnx", onnx),
    ("recipe", recipe),
    ("experiment", experiment),
    ("results", results),
    ("spec", spec),
];

/// A folder in memory where there is one, for readers of files.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() {
        memory.into()
    } else {
        std::env::temp_dir()
    };
    let own = format!("advae-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
    let folder = root.join(own.replace(['(', ')'], ""));
    std::fs::create_dir_all(&folder).expect("no folder for the inputs");
    folder
}

/// Has a reader of files read the bytes under that name.
fn as_file<T>(name: &str, data: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static FOLDER: PathBuf = scratch();
    }
    FOLDER.with(|folder| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a file has a folder")).expect("no folder for the input");
        std::fs::write(&path, data).expect("the input cannot be written");
        let answer = read(&path);
        let _ = std::fs::remove_file(&path);
        answer
    })
}

/// Headers, sections and the manifest of a plugin, without executing it.
fn elf(data: &[u8]) {
    let _ = as_file("plugin.so", data, inspect);
}

/// MNIST's format, raw and gzip: images and labels.
fn idx(data: &[u8]) {
    as_file("file", data, |path| {
        let _ = advae_data::idx::read_images(path);
        let _ = advae_data::idx::read_labels(path);
    });
}

/// CIFAR-10's batches.
fn cifar_binary(data: &[u8]) {
    let _ = as_file("batch.bin", data, |path| {
        advae_data::cifar_binary::load("fuzz", &[path.into()])
    });
}

/// Saved adversarial images, and a dataset of the user's.
fn npz(data: &[u8]) {
    as_file("images.npz", data, |path| {
        let _ = advae_data::npz::Saved::read(path);
        let _ = advae_data::load(&path.to_string_lossy(), None);
    });
}

/// A dataset of Hugging Face's.
fn parquet(data: &[u8]) {
    let _ = as_file("images.parquet", data, |path| {
        advae_data::load(&path.to_string_lossy(), None)
    });
}

/// Images of a folder, JPEG by their contents or PNG.
fn jpeg(data: &[u8]) {
    for name in ["images/a/x.jpg", "images/a/x.png"] {
        let _ = as_file(name, data, |path| {
            let folder = path.ancestors().nth(2).expect("the folder of a class's folder");
            advae_data::load(&folder.to_string_lossy(), None)
        });
    }
}

/// Weights, and what a network does with them.
fn safetensors(data: &[u8]) {
    if let Ok(weights) = Weights::from_safetensors(data) {
        used(&weights);
    }
}

/// PyTorch's files, old and new, read without executing their pickle.
fn pth(data: &[u8]) {
    if let Ok(weights) = as_file("weights.pth", data, Weights::from_pth) {
        used(&weights);
    }
}

fn used(weights: &Weights) {
    let _ = weights.param("conv.weight", &[2, 1, 3, 3], advae_sdk::nn::Init::Zeros);
    let _ = weights.finish();
    if let Ok(map) = KeyMap::new(vec![]) {
        let _ = weights.renamed(&map);
    }
}

/// A network of a file, up to its shapes: it is read, lowered and run on one image.
fn onnx(data: &[u8]) {
    let _ = as_file("net.onnx", data, |path| {
        let settings = OnnxSettings {
            model: InputFile::at(path.to_string_lossy()),
            ..OnnxSettings::default()
        };
        OnnxClassifier::new(settings, &Weights::own()).map(|_| ())
    });
}

/// Recipes of `train`.
fn recipe(data: &[u8]) {
    let _ = as_file("recipe.toml", data, Recipe::read);
}

/// Experiment files, and every evaluation of theirs.
fn experiment(data: &[u8]) {
    let _ = as_file("sweep.toml", data, |path| Experiment::read(path)?.evaluations());
}

/// Results files, as they are and with checksums that fit.
fn results(data: &[u8]) {
    let _ = as_file("results.jsonl", data, advae_host::results::read);
    let sealed: Vec<u8> = data.split(|byte| *byte == b'\n').flat_map(sealed).collect();
    let _ = as_file("results.jsonl", &sealed, advae_host::results::read);
}

/// A line whose checksum, which is its end, is made to fit.
fn sealed(line: &[u8]) -> Vec<u8> {
    const TAIL: usize = ",\"crc\":\"01234567\"}".len();
    let body = &line[..line.len().saturating_sub(TAIL)];
    let crc = crc32fast::hash(body);
    [body, format!(",\"crc\":\"{crc:08x}\"}}\n").as_bytes()].concat()
}

/// Plugins with weights and settings as they stand on the command line, and numbers.
fn spec(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(spec) = PluginSpec::parse(text) {
        // What it prints can be pasted.
        let again = PluginSpec::parse(&spec.to_string()).expect("a spec that was printed");
        assert_eq!(again.to_string(), spec.to_string());
    }
    let _ = number(text);
}
