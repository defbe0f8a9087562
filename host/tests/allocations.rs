//! What the attack loop allocates, counted by a library in front of malloc, over the real binary and `.so` files.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;

use std::process::Command;

/// Allocations of a whole process that attacks one micro-batch of 8 images.
fn allocations(cell: &[&str], attack: &str) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(["eval", "--samples", "8", "--threads", "1", "--batch", "8"])
        .args(["--threat-model", "white_box", "--no-early-stop", "--attack", attack])
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
fn per_iteration(cell: &[&str], attack: impl Fn(usize) -> String) -> f64 {
    let [few, many] = [10, 20].map(|steps| allocations(cell, &attack(steps)));
    (many - few) as f64 / 10.
}

#[test]
fn an_iteration_allocates_little_and_not_more_for_deeper_networks() {
    let x = ["--classifier", "model_x.so"];
    let both = ["--purifier", "advae.so", "--classifier", "model_x.so"];
    for attack in ["pgd:early_stop=false,steps", "cw:abort=false,iterations"] {
        let attack = |steps| format!("{attack}={steps}");
        let counts = [per_iteration(&x, attack), per_iteration(&both, attack)];
        println!("{}: {counts:?} allocations an iteration of X and AdvAE∘X", attack(1));
        assert!(counts[1] > 0., "the counter is not in front of malloc");
        assert!(counts[1] <= 1e9, "{counts:?} allocations for {}", attack(1));
    }
}
