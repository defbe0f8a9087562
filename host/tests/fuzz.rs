//! Readers of what others have written, on damaged copies of sound files: an error is an answer, a panic or a crash is none. `fuzz/` has the
//! same readers for cargo-fuzz, which looks where it has been; this needs nothing but the toolchain.
//!
//! `ADVAE_FUZZ_SECONDS` seconds a reader, or 2. The input that was at hand when the process died lies in the folder that a failure names.
#![allow(clippy::unwrap_used)]

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use targets::{TARGETS, Target};

/// What a length or an offset may be that nobody has thought of.
const EXTREME: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];
/// Inputs grow no larger than this.
const LARGEST: usize = 1 << 17;

fn folder(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(part)
}

fn files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return vec![];
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// One small damage.
fn damage(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) {
    let at = rng.random_range(0..=bytes.len());
    let end = (at + rng.random_range(1..=16)).min(bytes.len());
    match rng.random_range(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = rng.random(),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let copy = bytes[at..end].to_vec();
            let to = rng.random_range(0..=bytes.len());
            drop(bytes.splice(to..to, copy));
        }
        4 => bytes.truncate(at),
        5 => {
            let value = EXTREME[rng.random_range(0..EXTREME.len())];
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            let little = value.to_le_bytes();
            let mut new = little[..width].to_vec();
            if rng.random() {
                new.reverse();
            }
            let end = (at + width).min(bytes.len());
            drop(bytes.splice(at..end, new));
        }
        6 => {
            let digits = EXTREME[rng.random_range(0..EXTREME.len())].to_string();
            drop(bytes.splice(at..end, digits.into_bytes()));
        }
        _ => {
            // The end of another.
            let other = &seeds[rng.random_range(0..seeds.len())];
            let from = rng.random_range(0..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
    bytes.truncate(LARGEST);
}

fn fuzz(name: &str, target: Target) -> usize {
    let seconds = std::env::var("ADVAE_FUZZ_SECONDS").map_or(2., |seconds| seconds.parse().unwrap());
    let seeds = files(&folder("corpus").join(name));
    assert!(!seeds.is_empty(), "no seeds for {name}");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
    let run = |bytes: &[u8]| {
        std::fs::write(&kept, bytes).unwrap();
        let outcome = catch_unwind(|| target(bytes));
        assert!(outcome.is_ok(), "{name} panicked: its input is '{}'", kept.display());
    };
    let known = files(&folder("regressions").join(name));
    seeds.iter().chain(&known).for_each(|bytes| run(bytes));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
        for _ in 0..1 << rng.random_range(0..4) {
            damage(&mut bytes, &seeds, &mut rng);
        }
        run(&bytes);
        count += 1;
    }
    let _ = std::fs::remove_file(&kept);
    println!("{name}: {count} inputs");
    count
}

/// One test a reader, by name.
macro_rules! readers {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            let target = TARGETS.iter().find(|(name, _)| *name == stringify!($name)).unwrap().1;
            assert!(fuzz(stringify!($name), target) > 0);
        })*

        #[test]
        fn every_reader_has_a_test_and_a_target_of_its_own() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|(name, _)| name), tested);
            for name in tested {
                assert!(folder("fuzz_targets").join(format!("{name}.rs")).is_file(), "{name}");
            }
        }
    };
}

readers!(
    elf,
    idx,
    cifar_binary,
    npz,
    parquet,
    jpeg,
    safetensors,
    pth,
    onnx,
    recipe,
    experiment,
    results,
    spec
);
