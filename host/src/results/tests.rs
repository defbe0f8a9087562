use super::*;
use advae_abi::info::{NormKind, Target};
use serde_json::Map;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) fn plugin(name: &str) -> PluginConfig {
    PluginConfig {
        name: name.into(),
        version: "0.1.0".into(),
        sha256: "00".into(),
        config: Map::new(),
        files: BTreeMap::new(),
    }
}

/// A cell of model_x behind advae in white box.
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
        images_sha256: None,
        known_draw: false,
        quantize: None,
        precision: Precision::F32,
        stage: None,
    };
    let mut named = attack.split(':');
    CellHeader {
        key: config.key(),
        classifier: Named::plain("model_x"),
        purifier: Some(Named::plain("advae")),
        threat_model: Named::plain("white_box"),
        attack: Named {
            plugin: named.next().unwrap_or_default().into(),
            settings: named.map(String::from).collect(),
            weights: None,
        },
        target: Some(Target::Pipeline),
        granted: None,
        search: Search::default(),
        rule: None,
        crafted_on: None,
        samples: 4,
        l2_caps: vec![1.5, 2., 3.],
        plain: 0,
        note: String::new(),
        classifier_note: String::new(),
        dataset_note: String::new(),
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
        gradients: 0,
        zero_gradients: 0,
        queries: 0,
        asked: 0,
        at: 0.5,
        carried: false,
    }
}

fn linf() -> CellHeader {
    header("pgd", NormKind::Linf, Some(0.3))
}

/// A file with one cell of three rows.
fn write(path: &Path) -> CellHeader {
    let header = linf();
    let mut results = Results::create(path).unwrap();
    results.begin(&header).unwrap();
    let mut cell = Cell::new(header.clone());
    for id in [0, 7, 9] {
        let row = row(&header.key, id, true, id == 7);
        results.append(&header.key, std::slice::from_ref(&row), None).unwrap();
        cell.rows.insert(id, row);
    }
    results.end(&cell).unwrap();
    header
}

#[test]
fn the_key_depends_on_the_whole_configuration() {
    let one = linf().config;
    let mut other = one.clone();
    assert_eq!(one.key(), other.key());
    other.attack.config.insert("steps".into(), 41.into());
    assert_ne!(one.key(), other.key());
    assert_eq!(one.key().len(), 16);
}

#[test]
fn the_backward_rule_is_the_attackers_and_budgets_are_compared_exactly() {
    let one = linf().config;
    let mut other = one.clone();
    if let Some(purifier) = &mut other.purifier {
        purifier.backward = Some("identity".into());
    }
    assert!(one.same_defence(&other) && one.key() != other.key());
    other.epsilon = Some(0.30001);
    assert!(!one.same_budget(&other));
    other.classifier.weights = "file:1".into();
    assert!(!one.same_defence(&other));
}

#[test]
fn a_cut_off_file_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let header = linf();
    let mut results = Results::create(&path).unwrap();
    results.begin(&header).unwrap();
    let rows = [row(&header.key, 0, true, true), row(&header.key, 7, true, false)];
    results.append(&header.key, &rows, None).unwrap();
    let substitute = Substitute {
        queries: 4800,
        agreeing: 9,
        of: 10,
    };
    results.prepared(&header.key, substitute).unwrap();
    drop(results);
    assert!(Results::create(&path).is_err_and(|e| e.to_string().contains("--resume")));
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{whole}{{\"type\":\"sam")).unwrap();

    let (mut results, previous) = Results::resume(&path, false).unwrap();
    let cell = previous.cell(&header.key).unwrap();
    assert_eq!(cell.rows.values().collect::<Vec<_>>(), rows.iter().collect::<Vec<_>>());
    assert_eq!(cell.substitute, Some(substitute));
    results.begin(&header).unwrap();
    results
        .append(&header.key, &[row(&header.key, 9, true, true)], None)
        .unwrap();
    drop(results);
    let text = std::fs::read_to_string(&path).unwrap();
    // A second run introduces itself; the header stands there already.
    assert!(text.starts_with(&whole) && text.lines().count() == 7, "{text}");
}

#[test]
fn a_larger_run_writes_its_number_of_samples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let mut header = write(&path);
    let (mut results, _) = Results::resume(&path, false).unwrap();
    header.samples = 10;
    results.begin(&header).unwrap();
    drop(results);
    assert_eq!(read(&path).unwrap().cells[0].header.samples, 10);
}

#[test]
fn two_runs_do_not_write_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let first = Results::create(&path).unwrap();
    let error = Results::resume(&path, false).err().unwrap().to_string();
    assert!(error.contains("written by another run"), "{error}");
    drop(first);
    assert!(Results::resume(&path, false).is_ok());
}

#[test]
fn a_file_whose_first_line_is_not_ours_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("notes.txt"), dir.path().join("link"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for text in ["hello\n", "hello", "{\"type\":\"run\"}\n", "\n"] {
        std::fs::write(&path, text).unwrap();
        for path in [&path, &link] {
            let error = Results::resume(path, true).err().unwrap();
            assert!(format!("{error:#}").contains("first line"), "{error:#}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    for path in ["/dev/full", "/dev/null"] {
        let error = Results::resume(Path::new(path), false).err().unwrap().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }
}

#[test]
fn a_blank_line_at_the_end_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let header = write(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text + "\n  \n").unwrap();
    let (_, previous) = Results::resume(&path, false).unwrap();
    assert_eq!(previous.cell(&header.key).unwrap().rows.len(), 3);
    assert_eq!(read(&path).unwrap().runs.len(), 2);
}

#[test]
fn every_flipped_digit_is_named_with_its_line_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    write(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    let digits = text.bytes().enumerate().filter(|(_, b)| b.is_ascii_digit());
    // Another number of the format is another format, and is told so.
    let format = text.find("\"format\":").unwrap() + "\"format\":".len();
    for (at, digit) in digits.filter(|(at, _)| *at != format) {
        let mut damaged = text.clone().into_bytes();
        damaged[at] = if digit == b'9' { b'0' } else { digit + 1 };
        std::fs::write(&path, &damaged).unwrap();
        let number = text[..at].lines().count().max(1);
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(
            error.contains(&format!("line {number}:")) && error.contains("--repair"),
            "{error}"
        );
    }
}

#[test]
fn a_repair_drops_what_is_damaged_and_keeps_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let header = write(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    let damaged = text.replace("\"id\":7", "\"id\":8");
    std::fs::write(&path, &damaged).unwrap();
    let error = format!("{:#}", Results::resume(&path, false).err().unwrap());
    assert!(
        error.contains("line 4: it is damaged") && error.contains("add --repair"),
        "{error}"
    );
    let (_, previous) = Results::resume(&path, true).unwrap();
    let ids: Vec<u64> = previous.cell(&header.key).unwrap().rows.keys().copied().collect();
    assert_eq!(ids, [0, 9]);
    assert!(read(&path).is_ok());
    let kept = dir.path().join("results.jsonl.damaged");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), damaged);
}

#[test]
fn a_first_line_that_is_damaged_is_dropped_by_a_repair_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let header = write(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("run", "ran", 1)).unwrap();
    let error = format!("{:#}", Results::resume(&path, false).err().unwrap());
    assert!(error.contains("line 1:") && error.contains("add --repair"), "{error}");
    let (_, previous) = Results::resume(&path, true).unwrap();
    assert_eq!(previous.cell(&header.key).unwrap().rows.len(), 3);
    assert!(read(&path).is_ok());
}

#[test]
fn a_check_or_a_substitute_that_went_missing_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let header = linf();
    let mut cell = Cell::new(header.clone());
    cell.rows = [(7, row(&header.key, 7, true, true))].into();
    cell.check = Some(Check {
        repeated: 1,
        ..Check::default()
    });
    cell.substitute = Some(Substitute {
        queries: 5,
        agreeing: 1,
        of: 1,
    });
    let mut results = Results::create(&path).unwrap();
    results.begin(&header).unwrap();
    results.prepared(&header.key, cell.substitute.unwrap()).unwrap();
    let rows: Vec<Row> = cell.rows.values().cloned().collect();
    results.append(&header.key, &rows, cell.check).unwrap();
    results.end(&cell).unwrap();
    drop(results);
    assert!(read(&path).is_ok());
    let text = std::fs::read_to_string(&path).unwrap();
    for kind in ["check", "substitute"] {
        let lines = text
            .lines()
            .filter(|line| !line.contains(&format!("\"type\":\"{kind}\"")));
        let without: String = lines.flat_map(|line| [line, "\n"]).collect();
        assert!(without.len() < text.len());
        std::fs::write(&path, without).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(
            error.contains("of which 1 are here unchanged or others have been added"),
            "{kind}: {error}"
        );
    }
}

#[test]
fn a_row_that_went_missing_and_one_that_contradicts_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let header = write(&path);
    let text = std::fs::read_to_string(&path).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.contains("\"id\":9,"))
        .flat_map(|l| [l, "\n"])
        .collect();
    std::fs::write(&path, without).unwrap();
    let error = format!("{:#}", read(&path).unwrap_err());
    assert!(error.contains("ended with 3 rows"), "{error}");

    std::fs::write(&path, &text).unwrap();
    let (mut results, _) = Results::resume(&path, false).unwrap();
    results
        .append(&header.key, &[row(&header.key, 7, true, false)], None)
        .unwrap();
    drop(results);
    let error = format!("{:#}", read(&path).unwrap_err());
    assert!(error.contains("contradicts an earlier line about sample 7"), "{error}");
}

#[test]
fn a_full_disk_ends_the_file_and_not_the_run() {
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    let mut results = Results::over(full);
    results.append("c", &[row("c", 0, true, true)], None).unwrap();
    let trouble = results.trouble().unwrap();
    assert!(trouble.contains("can no longer be written"), "{trouble}");
    results.append("c", &[row("c", 1, true, true)], None).unwrap();
}

#[test]
fn a_cell_that_one_file_has_whole_keeps_that_files_times() {
    let header = linf();
    let cell = |ids: std::ops::Range<u64>, at: f64| {
        let mut cell = Cell::new(header.clone());
        let timed = |id| Row {
            at,
            ..row(&header.key, id, true, true)
        };
        cell.rows = ids.map(|id| (id, timed(id))).collect();
        Records {
            cells: vec![cell],
            ..Records::default()
        }
    };
    for files in [[cell(0..3, 9.), cell(0..4, 2.)], [cell(0..4, 2.), cell(0..3, 9.)]] {
        let merged = merge(files.to_vec()).unwrap();
        assert_eq!((merged.cells[0].rows.len(), merged.cells[0].seconds()), (4, 2.));
    }
}

#[test]
fn files_are_merged_by_cell_and_sample() {
    let cell = |ids: &[u64], robust| {
        let mut cell = Cell::new(linf());
        cell.rows = ids
            .iter()
            .map(|id| (*id, row(&cell.header.key, *id, true, robust)))
            .collect();
        Records {
            runs: vec![],
            cells: vec![cell],
        }
    };
    let merged = merge(vec![cell(&[1, 2], true), cell(&[2, 3], true)]).unwrap();
    assert_eq!(merged.cells[0].rows.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    let error = merge(vec![cell(&[1], true), cell(&[1], false)])
        .unwrap_err()
        .to_string();
    assert!(error.contains("contradict each other about sample 1"), "{error}");
}

#[test]
fn a_targeted_attack_has_to_hit_its_target_and_the_true_label_is_none() {
    let mut row = row("c", 0, true, false);
    assert!(row.broken());
    row.target = Some(5);
    assert!(!row.broken());
    row.adversarial_prediction = 5;
    assert!(row.broken());
    row.refused = Some("over budget".into());
    assert!(!row.broken());
    row.refused = None;
    (row.target, row.adversarial_prediction, row.robust) = (Some(1), 1, true);
    assert!(!row.broken(), "the true label is no success");
}
