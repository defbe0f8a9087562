//! AutoAttack as a suite of the host, on plugins that ship, through the real binary.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

/// D is small: thousands of queries of it take no time. Its images in this budget fall to some stages and not to others.
const CELL: [&str; 10] = [
    "--classifier",
    "model_d",
    "--threat-model",
    "white_box",
    "--attack",
    "autoattack",
    "--epsilon",
    "0.03",
    "--samples",
    "40",
];

fn eval(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .arg("eval")
        .args(args)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .output()
        .unwrap()
}

/// The rows of each stage, in the order of the file.
fn stages(path: &Path) -> Vec<(Value, BTreeMap<u64, Value>)> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut cells: Vec<(Value, BTreeMap<u64, Value>)> = vec![];
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        match line["type"].as_str() {
            Some("cell") if cells.iter().all(|(header, _)| header["key"] != line["key"]) => {
                cells.push((line, BTreeMap::new()));
            }
            Some("sample") => {
                let cell = cells
                    .iter_mut()
                    .find(|(header, _)| header["key"] == line["cell"])
                    .unwrap();
                cell.1.insert(line["id"].as_u64().unwrap(), line);
            }
            _ => {}
        }
    }
    cells
}

fn robust(rows: &BTreeMap<u64, Value>) -> usize {
    rows.values().filter(|row| row["robust"] == true).count()
}

#[test]
fn each_stage_attacks_what_the_ones_before_left_standing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let output = eval(&[&CELL[..], &["--out", path.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cells = stages(&path);
    let attacks: Vec<&str> = cells
        .iter()
        .map(|(header, _)| header["config"]["attack"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(attacks, ["apgd", "apgd", "fab", "square"]);
    assert!(cells.iter().all(|(_, rows)| rows.len() == 40));
    for pair in cells.windows(2) {
        let [(before, fallen), (header, rows)] = pair else {
            unreachable!()
        };
        assert_eq!(header["config"]["stage"]["after"], before["key"]);
        for (id, row) in rows {
            let stands = fallen[id]["robust"] == true;
            assert_eq!(row["carried"] == true, !stands, "sample {id}");
            let verdict = |row: &Value| [&row["adversarial_prediction"], &row["linf"], &row["l2"]].map(Value::clone);
            assert!(stands || verdict(row) == verdict(&fallen[id]), "sample {id}");
        }
    }
    let left: Vec<usize> = cells.iter().map(|(_, rows)| robust(rows)).collect();
    assert!(
        left[0] > 0 && left[0] < 40 && left.is_sorted_by(|a, b| a >= b),
        "{left:?}"
    );

    let format = ["report", path.to_str().unwrap(), "--format", "json"];
    let report = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(format)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let worst = report["worst_cases"].as_array().unwrap();
    assert_eq!(
        (worst.len(), &worst[0]["attacks"]),
        (1, &serde_json::json!(["autoattack"]))
    );
    assert_eq!(worst[0]["robust_accuracy"]["value"], left[3] as f64 / 40.);
    let labels: Vec<&str> = (report["cells"].as_array().unwrap().iter())
        .map(|cell| cell["attack"].as_str().unwrap())
        .collect();
    assert_eq!(
        labels,
        [
            "autoattack 1/4 apgd:loss=ce",
            "autoattack 2/4 apgd:loss=dlr_targeted,n_target_classes=9",
            "autoattack 3/4 fab:n_target_classes=9,targeted=true",
            "autoattack 4/4 square:n_queries=5000"
        ]
    );

    // Nothing is left to do for the same command, and more samples are attacked stage by stage.
    let more = [
        &CELL[..8],
        &["--samples", "50", "--resume", "--out", path.to_str().unwrap()],
    ]
    .concat();
    let output = eval(&more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let longer = stages(&path);
    assert_eq!(longer.len(), 4);
    for ((_, rows), (_, more)) in cells.iter().zip(&longer) {
        assert!(more.len() == 50 && rows.iter().all(|(id, row)| more[id] == *row));
    }
}

#[test]
fn the_standard_version_refuses_a_random_defence_and_names_the_one_for_it() {
    let output = eval(&[&CELL[..], &["--purifier", "resize_pad"]].concat());
    let says = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{says}");
    assert!(
        says.starts_with("error: 'autoattack' attacks only what its earlier stages left standing"),
        "{says}"
    );
    assert!(
        says.contains("--attack autoattack:version=rand") && says.trim_end().lines().count() == 1,
        "{says}"
    );
}
