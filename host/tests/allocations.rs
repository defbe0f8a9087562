//! What the attack loop allocates, counted by a library in front of malloc, over the real binary and `.so` files.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;

use std::process::Command;

/// Allocations of a whole process that attacks one micro-batch.
fn allocations(cell: &[&str], images: usize, attack: &str) -> u64 {
    let images = images.to_string();
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(["eval", "--samples", &images, "--batch", &images, "--threads", "1"])
        .args([
            "--in-process",
            "--threat-model",
            "white_box",
            "--no-early-stop",
            "--attack",
            attack,
        ])
        .args(cell)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .env("LD_PRELOAD", fixtures::dir().join("libmalloc_counter.so"))
        .env("MALLOC_COUNT", &count)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(count).unwrap().parse().unwrap()
}

/// Allocations of one more iteration: what a process with 20 of them does beyond one with 10.
fn per_iteration(cell: &[&str], images: usize, attack: impl Fn(usize) -> String) -> f64 {
    let [few, many] = [10, 20].map(|steps| allocations(cell, images, &attack(steps)));
    (many - few) as f64 / 10.
}

/// Tensors' headers and shapes, and handles that cross; CW keeps a number or two an image. What kernels work in is kept from
/// call to call.
#[test]
fn an_iteration_allocates_little() {
    const X: &[&str] = &["--classifier", "model_x.so"];
    const BOTH: &[&str] = &["--purifier", "advae.so", "--classifier", "model_x.so"];
    for attack in ["pgd:early_stop=false,steps", "cw:abort=false,iterations"] {
        for (cell, limit) in [(X, 350.), (BOTH, 450.)] {
            let counts = [1, 24].map(|images| per_iteration(cell, images, |steps| format!("{attack}={steps}")));
            println!("{attack}, {cell:?}: {counts:?} allocations an iteration of 1 and of 24 images");
            assert!(counts[0] > 0., "the counter is not in front of malloc");
            assert!(
                counts[0] <= limit && counts[1] <= counts[0] + 48.,
                "{attack}: {counts:?}"
            );
        }
    }
}
