//! What the tables of the paper (Li et al. 2019) hold, and how each figure is measured here.

use crate::plugin::PluginSpec;
use crate::results::CellConfig;
use advae_abi::info::BackwardRule;
use advae_data::{CIFAR10, Family, MNIST};

/// A table.
pub struct Table {
    /// Name of its files.
    pub name: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// What it is measured on.
    pub data: &'static Family,
    /// Its rows.
    pub attacks: &'static [Attack],
    /// Its columns.
    pub columns: &'static [Column],
}

/// A row.
pub struct Attack {
    /// What it is called.
    pub title: &'static str,
    /// The plugin and its settings.
    pub spec: &'static str,
    /// Where the paper's figure stands among those of a column; absent: the paper has none.
    pub paper: Option<usize>,
    /// Whether it is run on the whole defence alone: it takes long, and says little of an attacker who does not know the defence.
    pub white_box_alone: bool,
}

impl Attack {
    /// Whether this is the attack of a cell: the same plugin and settings, a budget apart, which `eval` fills in. Of a suite the last
    /// stage is meant, which has the rows of all.
    pub fn is(&self, cell: &CellConfig) -> bool {
        if let Some(stage) = &cell.stage {
            return stage.suite == self.spec && stage.number == stage.of;
        }
        let (cell, Ok(spec)) = (&cell.attack, PluginSpec::parse(self.spec)) else {
            return false;
        };
        let mut config = cell.config.clone();
        if !spec.config.contains_key("epsilon") {
            config.remove("epsilon");
        }
        cell.name == spec.name && config == spec.config
    }
}

/// A defence under a threat model.
pub struct Column {
    /// What it is called.
    pub title: &'static str,
    /// Classifier.
    pub classifier: &'static str,
    /// Purifier, or `none`.
    pub purifier: &'static str,
    /// Threat model.
    pub threat_model: &'static str,
    /// Accuracy in percent that the paper prints: clean, FGSM, PGD, CW.
    pub paper: [Option<f64>; 4],
    /// Images and attacks (the first ones) at the most, where all would take days.
    pub most: Option<(usize, usize)>,
    /// Scoring draws of a random purifier.
    pub draws: u64,
    /// Draws that gradients through a random purifier are averaged over.
    pub eot: u64,
    /// Backward rule, where it is not the purifier's own.
    pub backward: Option<BackwardRule>,
}

const HEADLINE: [Attack; 3] = [
    attack("FGSM", "fgsm", Some(1)),
    attack("PGD-40", "pgd", Some(2)),
    attack("CW", "cw", Some(3)),
];

/// The paper's 40 steps of 0.01 from a random start cannot cross the ball; these can.
const CROSSING: Attack = attack("PGD-40, step 0.03", "pgd:step_size=0.03", None);

const fn attack(title: &'static str, spec: &'static str, paper: Option<usize>) -> Attack {
    Attack {
        title,
        spec,
        paper,
        white_box_alone: false,
    }
}

/// Beyond the paper, on the whole defence.
const fn white_box_alone(title: &'static str, spec: &'static str) -> Attack {
    Attack {
        white_box_alone: true,
        ..attack(title, spec, None)
    }
}

const fn column(title: &'static str, models: [&'static str; 3], paper: [Option<f64>; 4]) -> Column {
    let [classifier, purifier, threat_model] = models;
    Column {
        title,
        classifier,
        purifier,
        threat_model,
        paper,
        most: None,
        draws: 10,
        eot: 1,
        backward: None,
    }
}

/// On a hundred images, scored once each, without CW and what comes after it.
const fn costly(column: Column) -> Column {
    Column {
        most: Some((100, 2)),
        draws: 1,
        ..column
    }
}

/// Attacked by someone who is told that the purifier has no gradient, and believes it.
const fn naive(column: Column) -> Column {
    Column {
        backward: Some(BackwardRule::None),
        ..column
    }
}

const fn all(clean: f64, fgsm: f64, pgd: f64, cw: f64) -> [Option<f64>; 4] {
    [Some(clean), Some(fgsm), Some(pgd), Some(cw)]
}

const fn attacked(fgsm: f64, pgd: f64, cw: f64) -> [Option<f64>; 4] {
    [None, Some(fgsm), Some(pgd), Some(cw)]
}

/// DefenseGAN as it was published.
const PAPER_PROJECTION: &str = "defense_gan@default:preset=paper";
/// DefenseGAN for a first look.
const QUICK_PROJECTION: &str = "defense_gan@default:preset=quick";

const UNPRINTED: [Option<f64>; 4] = [None; 4];

/// Table 1, MNIST.
pub fn table1() -> Table {
    const ATTACKS: &[Attack] = &{
        let [fgsm, pgd, cw] = HEADLINE;
        [
            fgsm,
            pgd,
            cw,
            attack("FGSM, predicted label", "fgsm:label=predicted", Some(1)),
            attack(
                "PGD-40, predicted label, no early stop",
                "pgd:label=predicted,early_stop=false",
                Some(2),
            ),
            CROSSING,
            attack("PGD-100, 5 restarts", "pgd:steps=100,step_size=0.01,restarts=5", None),
            attack("CW without abort", "cw:abort=false", None),
            white_box_alone("DDN", "ddn"),
            white_box_alone("FMN, L2", "fmn"),
            white_box_alone("AutoAttack", "autoattack"),
        ]
    };
    const COLUMNS: &[Column] = &[
        column(
            "no defence",
            ["model_x@clean", "none", "white_box"],
            all(99.6, 41.1, 1.6, 0.0),
        ),
        column(
            "AdvAE, oblivious",
            ["model_x@clean", "advae", "oblivious"],
            attacked(96.5, 97.1, 96.6),
        ),
        column(
            "AdvAE, black box",
            ["model_x@clean", "advae", "black_box"],
            attacked(96.8, 97.6, 97.3),
        ),
        column(
            "no defence, black box (control)",
            ["model_x@clean", "none", "black_box"],
            UNPRINTED,
        ),
        column(
            "AdvAE, white box",
            ["model_x@clean", "advae", "white_box"],
            all(99.1, 96.9, 94.8, 82.7),
        ),
        column("HGD, oblivious", ["model_x@clean", "hgd", "oblivious"], UNPRINTED),
        column(
            "HGD, white box",
            ["model_x@clean", "hgd", "white_box"],
            all(98.3, 57.1, 1.3, 0.0),
        ),
        costly(column(
            "DefenseGAN, white box (BPDA)",
            ["model_x@clean", PAPER_PROJECTION, "white_box"],
            all(92.2, 87.8, 44.0, 36.5),
        )),
        column(
            "It-Adv-train, white box",
            ["model_x@it_adv", "none", "white_box"],
            all(99.5, 98.0, 97.2, 93.0),
        ),
        column(
            "AdvAE@plus (ours), white box",
            ["model_x@clean", "advae@plus", "white_box"],
            UNPRINTED,
        ),
    ];
    Table {
        name: "table1",
        title: "Table 1, MNIST: accuracy of classifier X",
        data: &MNIST,
        attacks: ATTACKS,
        columns: COLUMNS,
    }
}

/// Table 3: transfer.
pub fn table3() -> Table {
    const ATTACKS: &[Attack] = &{
        let [fgsm, pgd, cw] = HEADLINE;
        [fgsm, pgd, CROSSING, cw]
    };
    const COLUMNS: &[Column] = &[
        column(
            "X on X",
            ["model_x@clean", "advae", "white_box"],
            all(99.1, 96.9, 94.8, 82.7),
        ),
        column(
            "X on A",
            ["model_a@clean", "advae", "white_box"],
            all(98.1, 93.1, 90.7, 76.9),
        ),
        column(
            "X on B",
            ["model_b@clean", "advae", "white_box"],
            all(96.8, 92.1, 88.2, 71.7),
        ),
        column(
            "X on C",
            ["model_c@clean", "advae", "white_box"],
            all(96.5, 93.1, 90.9, 77.9),
        ),
        column(
            "X on D",
            ["model_d@clean", "advae", "white_box"],
            all(79.7, 73.8, 71.8, 50.2),
        ),
        column(
            "XAB on A",
            ["model_a@clean", "advae@xab", "white_box"],
            all(99.0, 97.1, 95.7, 85.0),
        ),
        column(
            "XAB on B",
            ["model_b@clean", "advae@xab", "white_box"],
            all(99.1, 95.8, 93.8, 81.8),
        ),
        column(
            "XAB on C",
            ["model_c@clean", "advae@xab", "white_box"],
            all(97.9, 94.7, 93.4, 81.2),
        ),
        column(
            "XAB on D",
            ["model_d@clean", "advae@xab", "white_box"],
            all(95.0, 88.5, 85.4, 69.7),
        ),
    ];
    Table {
        name: "table3",
        title: "Table 3: accuracy where the purifier was trained on some classifiers and is used on another, white box",
        data: &MNIST,
        attacks: ATTACKS,
        columns: COLUMNS,
    }
}

/// Table 4, CIFAR-10.
pub fn table4() -> Table {
    const CLASSIFIER: &str = "resnet29v2@clean";
    const PURIFIER: &str = "advae_cifar10@default";
    const HGD: &str = "hgd_cifar10@default";
    const ATTACKS: &[Attack] = &[
        attack("FGSM", "fgsm", Some(1)),
        attack("PGD-10", "pgd:steps=10,step_size=1/255", Some(2)),
        attack("CW", "cw", Some(3)),
        // Ten steps of 1/255 from a random start cannot cross the ball either.
        attack("PGD-10, step 2/255", "pgd:steps=10,step_size=2/255", None),
        attack("PGD-100, 5 restarts", "pgd:steps=100,step_size=1/255,restarts=5", None),
    ];
    const COLUMNS: &[Column] = &[
        column(
            "no defence",
            [CLASSIFIER, "none", "white_box"],
            all(89.2, 22.6, 10.4, 0.0),
        ),
        column(
            "AdvAE, oblivious",
            [CLASSIFIER, PURIFIER, "oblivious"],
            attacked(63.1, 62.8, 62.7),
        ),
        column(
            "AdvAE, black box",
            [CLASSIFIER, PURIFIER, "black_box"],
            attacked(60.7, 60.9, 61.3),
        ),
        column(
            "no defence, black box (control)",
            [CLASSIFIER, "none", "black_box"],
            UNPRINTED,
        ),
        column(
            "AdvAE, white box",
            [CLASSIFIER, PURIFIER, "white_box"],
            all(63.5, 50.8, 43.6, 0.2),
        ),
        column("HGD, oblivious", [CLASSIFIER, HGD, "oblivious"], UNPRINTED),
        column(
            "HGD, white box",
            [CLASSIFIER, HGD, "white_box"],
            all(83.3, 18.1, 9.7, 0.0),
        ),
        column(
            "It-Adv-train, white box",
            ["resnet29v2@it_adv", "none", "white_box"],
            all(71.1, 52.1, 48.2, 0.0),
        ),
    ];
    Table {
        name: "table4",
        title: "Table 4, CIFAR-10: accuracy of ResNetV2-29",
        data: &CIFAR10,
        attacks: ATTACKS,
        columns: COLUMNS,
    }
}

/// Every purifier, oblivious and white box.
pub fn purifiers() -> Table {
    const X: &str = "model_x@clean";
    const ATTACKS: &[Attack] = &{
        let [fgsm, pgd, _] = HEADLINE;
        [fgsm, pgd, CROSSING]
    };
    const fn oblivious(title: &'static str, purifier: &'static str) -> Column {
        column(title, [X, purifier, "oblivious"], UNPRINTED)
    }
    const fn white_box(title: &'static str, purifier: &'static str, paper: [Option<f64>; 4]) -> Column {
        column(title, [X, purifier, "white_box"], paper)
    }
    const COLUMNS: &[Column] = &[
        white_box("none", "none", all(99.6, 41.1, 1.6, 0.0)),
        oblivious("AdvAE, oblivious", "advae"),
        white_box("AdvAE, white box", "advae", all(99.1, 96.9, 94.8, 82.7)),
        oblivious("HGD, oblivious", "hgd"),
        white_box("HGD, white box", "hgd", all(98.3, 57.1, 1.3, 0.0)),
        oblivious("Defense-VAE, oblivious", "defense_vae@default"),
        white_box("Defense-VAE, white box", "defense_vae@default", UNPRINTED),
        oblivious("APE-GAN, oblivious", "ape_gan@default"),
        white_box("APE-GAN, white box", "ape_gan@default", UNPRINTED),
        oblivious("MagNet, oblivious", "magnet@default"),
        white_box("MagNet, white box", "magnet@default", UNPRINTED),
        costly(oblivious("DefenseGAN, oblivious", PAPER_PROJECTION)),
        costly(white_box(
            "DefenseGAN, white box (BPDA)",
            PAPER_PROJECTION,
            all(92.2, 87.8, 44.0, 36.5),
        )),
        Column {
            // Without a gradient PGD stays where it started, forty projections long.
            most: Some((100, 1)),
            ..naive(costly(white_box(
                "DefenseGAN, white box without a gradient (naive)",
                PAPER_PROJECTION,
                UNPRINTED,
            )))
        },
        costly(white_box(
            "DefenseGAN quick, white box (BPDA)",
            QUICK_PROJECTION,
            UNPRINTED,
        )),
        naive(costly(white_box(
            "DefenseGAN quick, white box without a gradient (naive)",
            QUICK_PROJECTION,
            UNPRINTED,
        ))),
        oblivious("bit depth 1, oblivious", "bit_depth"),
        white_box("bit depth 1, white box (BPDA)", "bit_depth", UNPRINTED),
        oblivious("median 3x3, oblivious", "median_filter"),
        white_box("median 3x3, white box", "median_filter", UNPRINTED),
        oblivious("Gaussian blur, oblivious", "gaussian_blur"),
        white_box("Gaussian blur, white box", "gaussian_blur", UNPRINTED),
        oblivious("JPEG 75, oblivious", "jpeg"),
        white_box("JPEG 75, white box (BPDA)", "jpeg", UNPRINTED),
        oblivious("total variation, oblivious", "total_variation"),
        white_box("total variation, white box", "total_variation", UNPRINTED),
        oblivious("random resize and pad, oblivious", "resize_pad"),
        Column {
            eot: 10,
            ..white_box("random resize and pad, white box (EOT 10)", "resize_pad", UNPRINTED)
        },
    ];
    Table {
        name: "purifiers",
        title: "Purifiers in front of classifier X on MNIST, against an attacker who does not know them and one who does",
        data: &MNIST,
        attacks: ATTACKS,
        columns: COLUMNS,
    }
}
