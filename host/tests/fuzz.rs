//! Readers of what others have written, on damaged copies of sound files: an error is an answer, a panic or a crash is none. `fuzz/` has the
//! same readers for cargo-fuzz, which looks where it has been; this needs nothing but the toolchain.
//!
//! `ADVAE_FUZZ_SECONDS` seconds a reader, or 2, from `ADVAE_FUZZ_SEED`, or 1. The input that was at hand when the process died lies in the
//! folder that a failure names.
#![allow(clippy::unwrap_used)]

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Seek, Write};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// All readers together get no more memory than this: one that asks for more ends the process, not the machine.
const MEMORY: usize = 8 << 30;

/// The system's memory, up to a limit.
struct Limited {
    used: AtomicUsize,
    told: AtomicBool,
}

#[global_allocator]
static LIMITED: Limited = Limited {
    used: AtomicUsize::new(0),
    told: AtomicBool::new(false),
};

impl Limited {
    /// Takes memory, if there is as much.
    fn take(&self, size: usize) -> bool {
        let used = self.used.fetch_add(size, Ordering::Relaxed);
        if used.checked_add(size).is_some_and(|used| used <= MEMORY) {
            return true;
        }
        self.used.fetch_sub(size, Ordering::Relaxed);
        if !self.told.swap(true, Ordering::Relaxed) {
            // The allocation that fails ends the process without a word about its input, and with what tests have printed.
            let thread = std::thread::current();
            let _ = writeln!(
                std::io::stderr(),
                "{} asks for more memory than there is: its input is in '{}', fuzz-*",
                thread.name().unwrap_or("a reader"),
                env!("CARGO_TARGET_TMPDIR")
            );
        }
        false
    }
}

// SAFETY: it is the system's, or refuses.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout.size()) {
            // SAFETY: the caller's promise.
            true => unsafe { System.alloc(layout) },
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout.size()) {
            // SAFETY: the caller's promise.
            true => unsafe { System.alloc_zeroed(layout) },
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match self.take(size.saturating_sub(layout.size())) {
            true => {
                (self.used).fetch_sub(layout.size().saturating_sub(size), Ordering::Relaxed);
                // SAFETY: the caller's promise.
                unsafe { System.realloc(memory, layout, size) }
            }
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

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
    // Open all the time: a file system that saves at every close would take longer than most readers.
    let mut open = std::fs::File::create(&kept).unwrap();
    let mut run = |bytes: &[u8]| {
        open.rewind().unwrap();
        open.write_all(bytes).unwrap();
        open.set_len(bytes.len() as u64).unwrap();
        let start = Instant::now();
        let outcome = catch_unwind(|| target(bytes));
        assert!(outcome.is_ok(), "{name} panicked: its input is '{}'", kept.display());
        start.elapsed()
    };
    let known = files(&folder("regressions").join(name));
    let mut slowest = seeds.iter().chain(&known).map(|bytes| run(bytes)).max().unwrap();
    let seed = std::env::var("ADVAE_FUZZ_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
        for _ in 0..1 << rng.random_range(0..4) {
            damage(&mut bytes, &seeds, &mut rng);
        }
        slowest = slowest.max(run(&bytes));
        count += 1;
    }
    let _ = std::fs::remove_file(&kept);
    println!("{name}: {count} inputs, {slowest:.1?} at most");
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
