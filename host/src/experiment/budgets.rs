//! Budgets: inline epsilon, then `--epsilon`, then the dataset's default.

use crate::plugin::number;
use advae_abi::info::NormKind;
use advae_data::Conventions;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Points that a range of budgets has at the most.
const MOST_POINTS: f64 = 1000.;

/// What `--epsilon` said: one budget a norm, or several for a curve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budgets {
    linf: Option<Vec<f64>>,
    l2: Option<Vec<f64>>,
}

impl Budgets {
    /// Reads `0.3`, `linf=0.3`, `l2=2`, and ranges `first:last:step` such as `0:0.4:0.05`.
    ///
    /// # Errors
    /// Where a norm is unknown, a value no positive number, a range empty or too long, or a norm given twice.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut budgets = Self::default();
        for text in texts {
            let (norms, value) = match text.split_once('=') {
                Some(("linf", value)) => (vec![NormKind::Linf], value),
                Some(("l2", value)) => (vec![NormKind::L2], value),
                Some((norm, _)) => bail!("no norm '{norm}' in --epsilon {text}: give linf or l2"),
                None => (vec![NormKind::Linf, NormKind::L2], text.as_str()),
            };
            let values = values(value, text)?;
            for norm in norms {
                let slot = budgets.slot(norm);
                ensure!(
                    slot.replace(values.clone()).is_none(),
                    "--epsilon gives {norm} twice: keep one"
                );
            }
        }
        Ok(budgets)
    }

    fn slot(&mut self, norm: NormKind) -> &mut Option<Vec<f64>> {
        match norm {
            NormKind::Linf => &mut self.linf,
            NormKind::L2 => &mut self.l2,
        }
    }

    /// The budgets in that norm: those that were given, else the customary one.
    ///
    /// # Errors
    /// Where there are neither.
    pub fn resolve(&self, norm: NormKind, conventions: &Conventions) -> Result<Vec<f64>> {
        let given = match norm {
            NormKind::Linf => &self.linf,
            NormKind::L2 => &self.l2,
        };
        let budgets = given
            .clone()
            .or_else(|| customary(norm, conventions).map(|budget| vec![budget]));
        let budgets =
            budgets.with_context(|| format!("these images have no customary {norm} budget: give --epsilon"))?;
        budgets.into_iter().map(|budget| within_range(norm, budget)).collect()
    }
}

/// One budget, or those of a range, its ends included.
fn values(value: &str, text: &str) -> Result<Vec<f64>> {
    let read = |value: &str| {
        number(value)
            .with_context(|| format!("--epsilon {text} is no number: give 0.3, 8/255, linf=0.3, l2=2 or 0:0.4:0.05"))
    };
    let parts = value.split(':').map(read).collect::<Result<Vec<f64>>>()?;
    match parts[..] {
        [value] => {
            ensure!(
                value > 0. && value.is_finite(),
                "--epsilon {text} is no budget: give a positive number"
            );
            Ok(vec![value])
        }
        [first, last, step] => {
            ensure!(
                first >= 0. && last >= first && last.is_finite() && step > 0.,
                "--epsilon {text} is no range: give first:last:step with 0 <= first <= last and a positive step, such as 0:0.4:0.05"
            );
            // A last step that rounding makes a hair too long counts.
            let points = ((last - first) / step + 1e-9).floor() + 1.;
            ensure!(
                points <= MOST_POINTS,
                "--epsilon {text} has {points} points: {MOST_POINTS} are the most, choose a longer step"
            );
            // Of decimal fractions the nearest, not what their sum is.
            let point = |i: usize| ((first + i as f64 * step) * 1e12).round() / 1e12;
            Ok((0..points as usize).map(point).collect())
        }
        _ => bail!("--epsilon {text} is no range: give first:last:step, such as 0:0.4:0.05"),
    }
}

/// A budget, if images can use it: pixels are in 0..1.
///
/// # Errors
/// Where it is negative or no number, or an Linf budget is above 1, as in `8` for 8/255.
pub fn within_range(norm: NormKind, epsilon: f64) -> Result<f64> {
    ensure!(
        epsilon >= 0. && epsilon.is_finite(),
        "the {norm} budget {epsilon} is none: give a finite number, 0 or more"
    );
    ensure!(
        norm != NormKind::Linf || epsilon <= 1.,
        "the Linf budget {epsilon} is above 1, but pixels are in 0..1: give a share of that range, such as {}",
        if epsilon <= 255. {
            format!("{epsilon}/255")
        } else {
            "8/255".into()
        }
    );
    Ok(epsilon)
}

/// How many of the images the budget allows to be made plain grey, each of the grey that is nearest to it. No classifier can
/// tell those apart.
pub fn made_plain<'a>(images: impl Iterator<Item = &'a [f32]>, norm: NormKind, epsilon: f64) -> usize {
    let far = |image: &[f32]| {
        let pixels = || image.iter().map(|pixel| f64::from(*pixel));
        match norm {
            NormKind::Linf => (pixels().fold(0., f64::max) - pixels().fold(1., f64::min)) / 2.,
            NormKind::L2 => {
                let mean = pixels().sum::<f64>() / image.len().max(1) as f64;
                pixels().map(|pixel| (pixel - mean).powi(2)).sum::<f64>().sqrt()
            }
        }
    };
    images.filter(|image| far(image) <= epsilon).count()
}

/// The budget of the literature.
fn customary(norm: NormKind, conventions: &Conventions) -> Option<f64> {
    match norm {
        NormKind::Linf => conventions.linf,
        NormKind::L2 => conventions.l2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Budgets> {
        Budgets::parse(&texts.iter().map(|t| t.to_string()).collect::<Vec<_>>())
    }

    fn budgets(texts: &[&str], norm: NormKind, conventions: &Conventions) -> Vec<f64> {
        parse(texts).unwrap().resolve(norm, conventions).unwrap()
    }

    #[test]
    fn a_budget_is_given_or_customary() {
        let mnist = &advae_data::MNIST.conventions;
        assert_eq!(budgets(&[], NormKind::Linf, mnist), [0.3]);
        assert_eq!(budgets(&["l2=3"], NormKind::L2, mnist), [3.]);
        assert_eq!(budgets(&["l2=3"], NormKind::Linf, mnist), [0.3]);
        assert_eq!(budgets(&["0.1"], NormKind::Linf, mnist), [0.1]);
        assert_eq!(budgets(&["linf=8/255"], NormKind::Linf, mnist), [8. / 255.]);
        assert!(parse(&["8/0"]).is_err());
        assert!(parse(&[]).unwrap().resolve(NormKind::Linf, &Conventions::NONE).is_err());
        let cifar10 = &advae_data::CIFAR10.conventions;
        assert_eq!(budgets(&[], NormKind::Linf, cifar10), [8. / 255.]);
        assert_eq!(budgets(&[], NormKind::L2, cifar10), [0.5]);
        assert_eq!(budgets(&["2"], NormKind::L2, mnist), [2.]);
        let error = parse(&["8"])
            .unwrap()
            .resolve(NormKind::Linf, mnist)
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("such as 8/255"), "{error}");
    }

    #[test]
    fn a_range_is_a_budget_a_point_with_both_ends() {
        let mnist = &advae_data::MNIST.conventions;
        assert_eq!(
            budgets(&["0:0.4:0.05"], NormKind::Linf, mnist),
            [0., 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
        );
        assert_eq!(budgets(&["l2=1:2:0.4"], NormKind::L2, mnist), [1., 1.4, 1.8]);
        assert_eq!(budgets(&["linf=0:8/255:4/255"], NormKind::Linf, mnist).len(), 3);
        for (text, said) in [
            ("0.4:0:0.1", "no range"),
            ("0:1:0", "no range"),
            ("-1:1:0.5", "no range"),
            ("0:1", "no range: give first:last:step"),
            ("0:1:0.0001", "has 10001 points: 1000 are the most"),
            ("0:a:1", "is no number"),
        ] {
            let error = parse(&[text]).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_large_budget_makes_images_plain() {
        let images: [&[f32]; 2] = [&[0., 0.5, 0.5, 1.], &[0.4, 0.6, 0.5, 0.5]];
        let plain = |norm, epsilon| made_plain(images.into_iter(), norm, epsilon);
        assert_eq!(
            [0.05, 0.11, 0.5].map(|epsilon| plain(NormKind::Linf, epsilon)),
            [0, 1, 2]
        );
        // Distances from the mean: 0.7071 and 0.1414.
        assert_eq!([0.1, 0.2, 0.8].map(|epsilon| plain(NormKind::L2, epsilon)), [0, 1, 2]);
    }

    #[test]
    fn what_is_no_budget_is_refused() {
        for texts in [&["x"][..], &["-1"], &["0"], &["l1=3"], &["0.3", "linf=0.2"], &["inf"]] {
            assert!(parse(texts).is_err(), "{texts:?}");
        }
    }
}
