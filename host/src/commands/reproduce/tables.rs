//! What the tables of the paper (Li et al. 2019) hold. How each column is measured stands in an experiment file: `tables/*.toml`.

use crate::commands::run::Experiment;
use crate::experiment::Settings;
use crate::plugin::PluginSpec;
use crate::results::CellConfig;
use advae_data::{CIFAR10, Family, MNIST};
use anyhow::{Context, Result, ensure};

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
    /// Its columns, and what the paper prints in them.
    pub columns: &'static [Column],
    /// How they are measured: one matrix a column.
    pub experiment: &'static str,
}

impl Table {
    /// How a column is measured, but for what the command line says.
    ///
    /// # Errors
    /// Where the experiment has no matrix of that title, or one of several evaluations.
    pub fn settings(&self, column: &Column) -> Result<Measured> {
        let experiment = Experiment::parse(self.experiment, self.name)?;
        let titled = experiment.matrix.iter().zip(experiment.by_matrix()?);
        let mut own = titled.filter(|(matrix, _)| matrix.title.as_deref() == Some(column.title));
        let (matrix, mut evaluations) = own
            .next()
            .with_context(|| format!("'{}' has no matrix '{}'", self.name, column.title))?;
        ensure!(evaluations.len() == 1, "'{}' is several evaluations", column.title);
        Ok(Measured {
            settings: evaluations.remove(0),
            most: matrix.samples,
        })
    }
}

/// How a column is measured.
pub struct Measured {
    /// What is run.
    pub settings: Settings,
    /// Images at the most, where all would take days.
    pub most: Option<usize>,
}

/// A row.
pub struct Attack {
    /// What it is called.
    pub title: &'static str,
    /// The plugin and its settings.
    pub spec: &'static str,
    /// Where the paper's figure stands among those of a column; absent: the paper has none.
    pub paper: Option<usize>,
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
    /// What it is called, here and in the experiment file.
    pub title: &'static str,
    /// Accuracy in percent that the paper prints: clean, FGSM, PGD, CW.
    pub paper: [Option<f64>; 4],
}

const HEADLINE: [Attack; 3] = [
    attack("FGSM", "fgsm", Some(1)),
    attack("PGD-40", "pgd", Some(2)),
    attack("CW", "cw", Some(3)),
];

/// The paper's 40 steps of 0.01 from a random start cannot cross the ball; these can.
const CROSSING: Attack = attack("PGD-40, step 0.03", "pgd:step_size=0.03", None);

const fn attack(title: &'static str, spec: &'static str, paper: Option<usize>) -> Attack {
    Attack { title, spec, paper }
}

const fn column(title: &'static str, paper: [Option<f64>; 4]) -> Column {
    Column { title, paper }
}

const fn all(clean: f64, fgsm: f64, pgd: f64, cw: f64) -> [Option<f64>; 4] {
    [Some(clean), Some(fgsm), Some(pgd), Some(cw)]
}

const fn attacked(fgsm: f64, pgd: f64, cw: f64) -> [Option<f64>; 4] {
    [None, Some(fgsm), Some(pgd), Some(cw)]
}

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
            attack("DDN", "ddn", None),
            attack("FMN, L2", "fmn", None),
            attack("AutoAttack", "autoattack", None),
        ]
    };
    const COLUMNS: &[Column] = &[
        column("no defence", all(99.6, 41.1, 1.6, 0.0)),
        column("AdvAE, oblivious", attacked(96.5, 97.1, 96.6)),
        column("AdvAE, black box", attacked(96.8, 97.6, 97.3)),
        column("no defence, black box (control)", UNPRINTED),
        column("AdvAE, white box", all(99.1, 96.9, 94.8, 82.7)),
        column("HGD, oblivious", UNPRINTED),
        column("HGD, white box", all(98.3, 57.1, 1.3, 0.0)),
        column("DefenseGAN, white box (BPDA)", all(92.2, 87.8, 44.0, 36.5)),
        column("It-Adv-train, white box", all(99.5, 98.0, 97.2, 93.0)),
        column("AdvAE@plus (ours), white box", UNPRINTED),
    ];
    Table {
        name: "table1",
        title: "Table 1, MNIST: accuracy of classifier X",
        data: &MNIST,
        attacks: ATTACKS,
        columns: COLUMNS,
        experiment: include_str!("tables/table1.toml"),
    }
}

/// Table 3: transfer.
pub fn table3() -> Table {
    const ATTACKS: &[Attack] = &{
        let [fgsm, pgd, cw] = HEADLINE;
        [fgsm, pgd, CROSSING, cw]
    };
    const COLUMNS: &[Column] = &[
        column("X on X", all(99.1, 96.9, 94.8, 82.7)),
        column("X on A", all(98.1, 93.1, 90.7, 76.9)),
        column("X on B", all(96.8, 92.1, 88.2, 71.7)),
        column("X on C", all(96.5, 93.1, 90.9, 77.9)),
        column("X on D", all(79.7, 73.8, 71.8, 50.2)),
        column("XAB on A", all(99.0, 97.1, 95.7, 85.0)),
        column("XAB on B", all(99.1, 95.8, 93.8, 81.8)),
        column("XAB on C", all(97.9, 94.7, 93.4, 81.2)),
        column("XAB on D", all(95.0, 88.5, 85.4, 69.7)),
    ];
    Table {
        name: "table3",
        title: "Table 3: accuracy where the purifier was trained on some classifiers and is used on another, white box",
        data: &MNIST,
        attacks: ATTACKS,
        columns: COLUMNS,
        experiment: include_str!("tables/table3.toml"),
    }
}

/// Table 4, CIFAR-10.
pub fn table4() -> Table {
    const ATTACKS: &[Attack] = &[
        attack("FGSM", "fgsm", Some(1)),
        attack("PGD-10", "pgd:steps=10,step_size=1/255", Some(2)),
        attack("CW", "cw", Some(3)),
        // Ten steps of 1/255 from a random start cannot cross the ball either.
        attack("PGD-10, step 2/255", "pgd:steps=10,step_size=2/255", None),
        attack("PGD-100, 5 restarts", "pgd:steps=100,step_size=1/255,restarts=5", None),
    ];
    const COLUMNS: &[Column] = &[
        column("no defence", all(89.2, 22.6, 10.4, 0.0)),
        column("AdvAE, oblivious", attacked(63.1, 62.8, 62.7)),
        column("AdvAE, black box", attacked(60.7, 60.9, 61.3)),
        column("no defence, black box (control)", UNPRINTED),
        column("AdvAE, white box", all(63.5, 50.8, 43.6, 0.2)),
        column("HGD, oblivious", UNPRINTED),
        column("HGD, white box", all(83.3, 18.1, 9.7, 0.0)),
        column("It-Adv-train, white box", all(71.1, 52.1, 48.2, 0.0)),
    ];
    Table {
        name: "table4",
        title: "Table 4, CIFAR-10: accuracy of ResNetV2-29",
        data: &CIFAR10,
        attacks: ATTACKS,
        columns: COLUMNS,
        experiment: include_str!("tables/table4.toml"),
    }
}

/// Every purifier, oblivious and white box.
pub fn purifiers() -> Table {
    const ATTACKS: &[Attack] = &{
        let [fgsm, pgd, _] = HEADLINE;
        [fgsm, pgd, CROSSING]
    };
    const COLUMNS: &[Column] = &[
        column("none", all(99.6, 41.1, 1.6, 0.0)),
        column("AdvAE, oblivious", UNPRINTED),
        column("AdvAE, white box", all(99.1, 96.9, 94.8, 82.7)),
        column("HGD, oblivious", UNPRINTED),
        column("HGD, white box", all(98.3, 57.1, 1.3, 0.0)),
        column("Defense-VAE, oblivious", UNPRINTED),
        column("Defense-VAE, white box", UNPRINTED),
        column("APE-GAN, oblivious", UNPRINTED),
        column("APE-GAN, white box", UNPRINTED),
        column("MagNet, oblivious", UNPRINTED),
        column("MagNet, white box", UNPRINTED),
        column("DefenseGAN, oblivious", UNPRINTED),
        column("DefenseGAN, white box (BPDA)", all(92.2, 87.8, 44.0, 36.5)),
        column("DefenseGAN, white box without a gradient (naive)", UNPRINTED),
        column("DefenseGAN quick, white box (BPDA)", UNPRINTED),
        column("DefenseGAN quick, white box without a gradient (naive)", UNPRINTED),
        column("bit depth 1, oblivious", UNPRINTED),
        column("bit depth 1, white box (BPDA)", UNPRINTED),
        column("median 3x3, oblivious", UNPRINTED),
        column("median 3x3, white box", UNPRINTED),
        column("Gaussian blur, oblivious", UNPRINTED),
        column("Gaussian blur, white box", UNPRINTED),
        column("JPEG 75, oblivious", UNPRINTED),
        column("JPEG 75, white box (BPDA)", UNPRINTED),
        column("total variation, oblivious", UNPRINTED),
        column("total variation, white box", UNPRINTED),
        column("random resize and pad, oblivious", UNPRINTED),
        column("random resize and pad, white box (EOT 10)", UNPRINTED),
    ];
    Table {
        name: "purifiers",
        title: "Purifiers in front of classifier X on MNIST, against an attacker who does not know them and one who does",
        data: &MNIST,
        attacks: ATTACKS,
        columns: COLUMNS,
        experiment: include_str!("tables/purifiers.toml"),
    }
}
