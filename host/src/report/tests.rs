use super::*;
use crate::results::tests::{header, row};
use crate::results::{Cell, Named, Rule};
use advae_abi::info::NormKind;
use advae_abi::info::Target;

fn cell(attack: &str, norm: NormKind, epsilon: Option<f64>, verdicts: &[(bool, bool)]) -> Cell {
    let mut cell = Cell::new(header(attack, norm, epsilon));
    let numbered = (0..).zip(verdicts);
    cell.rows = numbered
        .map(|(id, (clean, robust))| (id, row(&cell.header.key, id, *clean, *robust)))
        .collect();
    cell.rows.values_mut().for_each(|row| row.at = 2.);
    cell
}

fn linf(attack: &str, verdicts: &[(bool, bool)]) -> Cell {
    cell(attack, NormKind::Linf, Some(0.3), verdicts)
}

fn report() -> Report {
    let fgsm = linf("fgsm", &[(true, true), (true, true), (true, false), (false, false)]);
    let pgd = linf(
        "pgd:steps=100",
        &[(true, true), (true, false), (true, true), (false, true)],
    );
    let cw = [(true, false), (true, false), (true, false), (false, false)];
    let mut cw = cell("cw", NormKind::L2, None, &cw);
    let edit =
        |row: Option<&mut crate::results::Row>, edit: fn(&mut crate::results::Row)| row.into_iter().for_each(edit);
    edit(cw.rows.get_mut(&1), |row| row.l2 = Some(2.25));
    edit(cw.rows.get_mut(&2), |row| {
        row.refused = Some("a pixel is NaN".into());
        row.robust = true;
    });
    let mut broken = linf("bad|attack", &[(true, true)]);
    broken.failed = Some("attack 'bad': plugin panicked: boom".into());
    let unfinished = linf("slow", &[(true, true), (true, true)]);
    Report::new(&[fgsm, pgd, cw, broken, unfinished])
}

#[test]
fn the_table_as_a_person_sees_it() {
    insta::assert_snapshot!(report().render(Format::Table, None).unwrap());
}

#[test]
fn the_table_on_a_narrow_terminal() {
    let text = report().render(Format::Table, Some(80)).unwrap();
    let table = text.lines().take_while(|line| !line.starts_with("broken:"));
    assert!(table.clone().all(|line| line.chars().count() <= 80), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn what_went_wrong_is_told_a_line_a_cell() {
    insta::assert_snapshot!(report().complaints().join("\n"));
}

#[test]
fn the_table_in_a_document() {
    insta::assert_snapshot!(report().render(Format::Markdown, None).unwrap());
}

#[test]
fn the_table_in_a_spreadsheet() {
    insta::assert_snapshot!(report().render(Format::Csv, None).unwrap());
}

#[test]
fn the_report_for_a_program() {
    let json: serde_json::Value = serde_json::from_str(&report().render(Format::Json, None).unwrap()).unwrap();
    assert_eq!(json["cells"].as_array().unwrap().len(), 4);
    assert_eq!(json["worst_cases"][0]["robust_accuracy"]["value"], 0.25);
    assert_eq!(json["cells"][3]["failed"], "attack 'bad': plugin panicked: boom");
    assert_eq!(json["cells"][3]["robust_accuracy"], serde_json::Value::Null);
}

/// The worst case's robust accuracies, in order.
fn worst(cells: &[Cell]) -> Vec<f64> {
    Report::new(cells)
        .worst_cases
        .iter()
        .map(|worst| worst.robust_accuracy.unwrap().value)
        .collect()
}

/// The same cell with other weights of the same file name.
fn with_weights(mut cell: Cell, path: &str) -> Cell {
    cell.header.purifier = Some(Named {
        weights: Some(path.into()),
        ..Named::plain("advae")
    });
    if let Some(purifier) = &mut cell.header.config.purifier {
        purifier.weights = format!("file:{path}");
    }
    cell.header.key = cell.header.config.key();
    cell
}

#[test]
fn two_weight_files_of_one_name_are_two_rows_and_two_worst_cases() {
    let a = with_weights(
        linf("pgd", &[(true, true), (true, false), (true, false), (true, false)]),
        "a/weights.safetensors",
    );
    let b = with_weights(
        linf("pgd", &[(true, false), (true, true), (true, true), (true, false)]),
        "b/weights.safetensors",
    );
    let report = Report::new(&[a, b]);
    let names: Vec<&str> = report.cells.iter().map(|cell| cell.purifier.as_str()).collect();
    assert_eq!(names, ["advae@a/weights.safetensors", "advae@b/weights.safetensors"]);
    let worst: Vec<f64> = report
        .worst_cases
        .iter()
        .map(|w| w.robust_accuracy.unwrap().value)
        .collect();
    assert_eq!(worst, [0.25, 0.5]);
}

#[test]
fn two_classifier_files_of_one_name_are_two_defences() {
    let with = |path: &str, verdicts| {
        let mut cell = linf("pgd", verdicts);
        cell.header.classifier = Named::plain(path);
        cell.header.config.classifier.plugin.sha256 = path.into();
        cell.header.key = cell.header.config.key();
        cell
    };
    let report = Report::new(
        &[
            with("a/libnet.so", &[(true, true), (true, false)][..]),
            with("b/libnet.so", &[(true, false), (true, true)][..]),
        ]
        .map(|mut cell| {
            cell.header.samples = 2;
            cell
        }),
    );
    let names: Vec<&str> = report.cells.iter().map(|cell| cell.classifier.as_str()).collect();
    assert_eq!(names, ["a/net", "b/net"]);
    assert_eq!(report.worst_cases.len(), 2);
}

#[test]
fn budgets_that_agree_to_four_decimals_are_two() {
    let near = |epsilon, verdicts| cell("pgd", NormKind::Linf, Some(epsilon), verdicts);
    let cells = [
        near(0.3, &[(true, true), (true, false), (true, true), (true, true)]),
        near(0.30001, &[(true, false), (true, true), (true, true), (true, true)]),
    ];
    assert_eq!(worst(&cells), [0.75, 0.75]);
    let report = Report::new(&cells);
    assert_eq!(report.cells[0].budget(), "Linf 0.3");
    assert_eq!(report.cells[1].budget(), "Linf 0.30001");
}

#[test]
fn the_worst_case_joins_rows_by_id_and_leaves_out_what_is_not_common() {
    let four = [(true, true), (true, false), (true, false), (true, true)];
    let (a, mut b) = (linf("fgsm", &four), linf("pgd", &four));
    assert_eq!(worst(&[a.clone(), b.clone()]), [0.5]);
    let key = b.header.key.clone();
    b.rows.remove(&3);
    b.rows.insert(10, row(&key, 10, true, false));
    let report = Report::new(&[a, b]);
    let worst = &report.worst_cases[0];
    assert_eq!((worst.samples, worst.left_out), (3, 2));
    assert!((worst.robust_accuracy.unwrap().value - 1. / 3.).abs() < 1e-12);
    let text = report.render(Format::Table, None).unwrap();
    assert!(
        text.contains("over the 3 samples that all of them attacked; 2 others are left out"),
        "{text}"
    );
}

/// The same cell under another threat model.
fn under(mut cell: Cell, threat_model: &str, target: Target) -> Cell {
    cell.header.threat_model = Named::plain(threat_model);
    cell.header.config.threat_model.name = threat_model.into();
    cell.header.target = Some(target);
    cell.header.key = cell.header.config.key();
    cell
}

#[test]
fn who_knows_the_defence_has_the_images_of_who_does_not() {
    let own = linf("pgd", &[(true, true), (true, true), (true, false), (true, true)]);
    let oblivious = |verdicts| under(linf("pgd", verdicts), "oblivious", Target::Classifier);
    let less = oblivious(&[(true, false), (true, true), (true, true), (true, true)][..]);
    let report = Report::new(&[own.clone(), less.clone()]);
    let shown: Vec<(&str, String, f64)> = (report.worst_cases.iter())
        .map(|worst| {
            (
                worst.threat_model.as_str(),
                worst.attacks.join(", "),
                worst.robust_accuracy.unwrap().value,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("white_box", "pgd, oblivious pgd".into(), 0.5),
            ("oblivious", "pgd".into(), 0.75)
        ]
    );
    // Fewer of the other's images never cost samples of one's own.
    let mut fewer = less;
    fewer.rows.remove(&0);
    fewer.header.samples = 3;
    assert_eq!(worst(&[own, fewer]), [0.75, 1.]);
}

#[test]
fn where_every_image_was_refused_there_is_no_figure() {
    let refuse = |row: &mut crate::results::Row| row.refused = Some("a pixel is NaN".into());
    let mut some = linf("pgd", &[(true, true), (true, true), (true, false), (true, true)]);
    some.rows.get_mut(&0).into_iter().for_each(refuse);
    let figure = |cell: &Cell| {
        Report::new(std::slice::from_ref(cell)).cells[0]
            .robust_accuracy
            .map(|s| s.value)
    };
    assert_eq!(figure(&some), Some(0.75));
    let mut all = linf("pgd", &[(true, true); 4]);
    all.rows.values_mut().for_each(refuse);
    assert_eq!((figure(&all), worst(&[all.clone()]).len()), (None, 0));
    let report = Report::new(&[all]);
    let text = report.render(Format::Table, None).unwrap();
    let line = text.lines().find(|line| line.contains("pgd")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..6], ["white_box", "pgd", "Linf", "0.3", "100.0", "-"], "{text}");
    assert!(
        report.complaints()[0].contains("all 4 images refused"),
        "{:?}",
        report.complaints()
    );
}

#[test]
fn the_latex_as_a_person_sees_it() {
    insta::assert_snapshot!(report().render(Format::Latex, None).unwrap());
}

#[test]
fn every_format_says_by_which_rule_gradients_went() {
    let mut cell = linf("pgd", &[(true, true), (true, false), (true, false), (true, true)]);
    cell.rows.values_mut().for_each(|row| row.gradients = 1);
    let mut other = cell.clone();
    for (cell, used) in [(&mut cell, "exact"), (&mut other, "identity")] {
        cell.header.rule = Some(Rule {
            used: used.into(),
            offered: vec!["exact".into()],
        });
    }
    other
        .header
        .config
        .purifier
        .iter_mut()
        .for_each(|p| p.backward = Some("identity".into()));
    other.header.key = other.header.config.key();
    other
        .rows
        .values_mut()
        .for_each(|row| row.cell.clone_from(&other.header.key));
    let cells = [cell, other];
    let report = Report::new(&cells);
    let table = report.render(Format::Table, None).unwrap();
    assert!(
        table.contains("gradients through advae went by the backward rules exact, identity"),
        "{table}"
    );
    assert!(table.contains("pgd backward=identity"), "{table}");
    assert_eq!(
        table.matches("model_x + advae: mnist-1k").count(),
        1,
        "one defence has one table: {table}"
    );
    let json: serde_json::Value = serde_json::from_str(&report.render(Format::Json, None).unwrap()).unwrap();
    assert_eq!(json["cells"][1]["backward"]["used"], "identity");
    assert_eq!(json["cells"][1]["config"]["purifier"]["backward"], "identity");
    assert_eq!(json["cells"][1]["attack"], "pgd", "what --attack takes");
    let csv = report.render(Format::Csv, None).unwrap();
    assert!(csv.lines().nth(2).unwrap().contains(",cell,identity,"), "{csv}");
    let markdown = report.render(Format::Markdown, None).unwrap();
    assert!(markdown.contains("| pgd | identity | Linf 0.3 |"), "{markdown}");
}

#[test]
fn other_datasets_never_share_a_worst_case() {
    let (a, mut b) = (linf("fgsm", &[(true, true); 4]), linf("pgd", &[(true, false); 4]));
    b.header.config.dataset_sha256 = "22".into();
    assert_eq!(worst(&[a, b]), [1., 0.]);
}

#[test]
fn time_is_wall_time() {
    let mut cell = linf("pgd", &[(true, true); 4]);
    // Four workers that ended together after 2 s: 2 s and not 8.
    cell.rows.values_mut().for_each(|row| row.at = 2.);
    let report = Report::new(&[cell]);
    assert_eq!(
        (report.cells[0].seconds, report.cells[0].images_per_second),
        (2., Some(2.))
    );
}
