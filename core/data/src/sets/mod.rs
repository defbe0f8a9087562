//! Datasets as values: what is known of each stands here once, and nowhere as a comparison of names or shapes.

mod cifar10;
mod fashion_mnist;
pub(crate) mod files;
pub(crate) mod folder;
mod mnist;
pub(crate) mod own_npz;

use std::fmt;
use std::path::{Path, PathBuf};

pub use cifar10::CIFAR10;
pub use fashion_mnist::FASHION_MNIST;
pub use mnist::MNIST;

use crate::{DataError, Dataset};

/// Datasets that belong together: the test and the training set of one name, and an embedded sample of the first.
pub struct Family {
    /// As people call it.
    pub name: &'static str,
    /// Shape of one image: `[C, H, W]`.
    pub shape: [usize; 3],
    /// How many classes there are (K).
    pub classes: usize,
    /// Names of the classes, `[K]`.
    pub class_names: &'static [&'static str],
    /// What is customary on its images.
    pub conventions: Conventions,
    /// Test images that are embedded, to be scored by default where no data is given.
    pub sample: Option<&'static Set>,
    /// The test set.
    pub test: &'static Set,
    /// The training set.
    pub train: &'static Set,
}

/// What the literature customarily does on images of a dataset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conventions {
    /// Linf budget, in [0, 1].
    pub linf: Option<f64>,
    /// L2 budget.
    pub l2: Option<f64>,
    /// Length of a step of PGD within the Linf budget (Li et al. 2019).
    pub step: Option<f64>,
    /// L2 caps at which an attack without a budget is read, growing.
    pub l2_caps: &'static [f64],
}

impl Conventions {
    /// Of images that nobody has conventions for.
    pub const NONE: Self = Self {
        linf: None,
        l2: None,
        step: None,
        l2_caps: &[],
    };
}

/// A known dataset.
pub struct Set {
    /// The name that [`load`](crate::load) knows it by.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// How many samples it has.
    pub samples: usize,
    /// Whether its images are test images, which models are evaluated on and must not be trained on.
    pub test: bool,
    /// The family it belongs to.
    pub family: &'static Family,
    pub(crate) source: Source,
    pub(crate) content: Content,
    pub(crate) aside: Aside,
}

/// Reads a set out of a data folder.
pub(crate) type Reader = fn(&'static Set, &Path) -> Result<(Dataset, PathBuf), DataError>;

/// Where a set's images come from.
pub(crate) enum Source {
    /// The library itself.
    Embedded(fn() -> Result<Dataset, DataError>),
    /// A data folder: the images, and the folder within it that they were found in.
    Files(Reader),
}

/// What shows that the images are the set's, whatever file they were read from.
pub(crate) enum Content {
    /// Their hash, [`Dataset::sha256`].
    Sha256(&'static str),
    /// All classes are equally frequent. Copies with other pixels, such as a JPEG export, count too.
    Balanced,
}

/// Images for a black-box attacker.
pub(crate) enum Aside {
    /// There are none.
    Nothing,
    /// Embedded ones; `within`: they are among the set's own.
    Embedded {
        images: fn() -> Result<Dataset, DataError>,
        within: bool,
    },
    /// Those of the set's own that have these ids.
    Own(fn() -> Vec<u64>),
}

impl Set {
    /// Whether the library itself holds the images.
    pub fn is_embedded(&self) -> bool {
        matches!(self.source, Source::Embedded(_))
    }

    /// Whether images are set aside for a black-box attacker.
    pub fn has_attacker_images(&self) -> bool {
        !matches!(self.aside, Aside::Nothing)
    }

    /// Refuses images that are not the set's.
    pub(crate) fn check(&self, dataset: &Dataset, folder: &Path) -> Result<(), DataError> {
        match self.content {
            Content::Sha256(expected) => {
                let found = dataset.sha256();
                if found == expected {
                    return Ok(());
                }
                Err(DataError::OtherContent {
                    name: self.name.to_owned(),
                    folder: folder.to_path_buf(),
                    found,
                    expected: expected.to_owned(),
                })
            }
            Content::Balanced => self.check_balance(dataset, folder),
        }
    }

    fn check_balance(&self, dataset: &Dataset, folder: &Path) -> Result<(), DataError> {
        let refuse = |found: String, expected: usize| {
            DataError::unfit(
                format!("dataset '{}' in '{}'", self.name, folder.display()),
                found,
                expected.to_string(),
                "the files are incomplete or of another dataset: copy or download them again",
            )
        };
        if dataset.len() != self.samples {
            return Err(refuse(format!("has {} images", dataset.len()), self.samples));
        }
        let each = self.samples / self.family.classes;
        for (class, name) in self.family.class_names.iter().enumerate() {
            let n = dataset.labels.iter().filter(|&&label| label as usize == class).count();
            if n != each {
                return Err(refuse(format!("has {n} images of class {class} ({name})"), each));
            }
        }
        Ok(())
    }
}

/// Every set has a name of its own.
impl PartialEq for Set {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set").field("name", &self.name).finish_non_exhaustive()
    }
}

const FAMILIES: [&Family; 3] = [&MNIST, &FASHION_MNIST, &CIFAR10];

/// The embedded sample with images of that shape, to look at or to score where nobody named a dataset.
pub fn sample_for(shape: [usize; 3]) -> Option<&'static Set> {
    let fitting = FAMILIES.iter().filter(|family| family.shape == shape);
    fitting.filter_map(|family| family.sample).next()
}

/// Every set, the embedded ones of a family first.
pub(crate) static SETS: [&Set; 10] = [
    &mnist::SAMPLE,
    &mnist::SEEDS,
    &mnist::TEST,
    &mnist::TRAIN,
    &fashion_mnist::TEST,
    &fashion_mnist::TRAIN,
    &cifar10::SAMPLE,
    &cifar10::SEEDS,
    &cifar10::TEST,
    &cifar10::TRAIN,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_an_embedded_set_is_the_one_in_its_value() {
        let embedded = SETS.into_iter().filter(|set| set.is_embedded());
        let wrong: Vec<String> = embedded
            .map(|set| (set, set.find(None).unwrap().dataset))
            .filter(|(set, dataset)| set.check(dataset, Path::new("embedded")).is_err())
            .map(|(set, dataset)| format!("{} {}", set.name, dataset.sha256()))
            .collect();
        assert!(wrong.is_empty(), "other content: {}", wrong.join(", "));
    }

    #[test]
    fn every_set_belongs_to_a_family_and_has_a_name_of_its_own() {
        for (i, set) in SETS.iter().enumerate() {
            assert!(!SETS[..i].contains(set), "{}", set.name);
            assert!(
                FAMILIES.iter().any(|family| family.name == set.family.name),
                "{}",
                set.name
            );
            assert_eq!(set.family.class_names.len(), set.family.classes);
        }
    }
}
