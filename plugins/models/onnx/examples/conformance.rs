//! Runs ONNX's own test cases and counts them: `conformance FOLDER...`, each a folder of cases.

use onnx_models::conformance::{Outcome, run};
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let (mut passed, mut refused, mut failed, mut doubtful) = (0, 0, 0, 0);
    for folder in std::env::args().skip(1) {
        let entries = std::fs::read_dir(&folder)?.collect::<std::io::Result<Vec<_>>>()?;
        let mut cases: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        cases.sort();
        for case in cases.iter().filter(|case| case.join("model.onnx").is_file()) {
            let name = case.file_name().unwrap_or_default().display();
            match run(case) {
                Outcome::Passed { gradient } => {
                    passed += 1;
                    // Kinks and steps of the input itself show here, too.
                    if let Some(error) = gradient.filter(|error| *error > 1e-4) {
                        doubtful += 1;
                        println!("gradient {name}: off by {error:.1e}");
                    }
                }
                Outcome::Refused(reason) => {
                    refused += 1;
                    println!("refused  {name}: {reason}");
                }
                Outcome::Failed(reason) => {
                    failed += 1;
                    println!("FAILED   {name}: {reason}");
                }
            }
        }
    }
    println!("{passed} passed ({doubtful} with a gradient to look at), {refused} refused, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
