//! Losses of logits beside those of [`Objective`](crate::Objective), one value a sample.

use candle_core::{Device, Result, Tensor, bail};

/// Keeps the denominator of [`dlr`] from zero, as in the authors' code.
const GUARD: f64 = 1e-12;

/// `z_a - z_b` of logits `[N,K]`, `[N]`, for two classes of every sample.
///
/// # Errors
/// Where there is not one class of either kind a sample, or a class is none of the `K`.
pub fn difference(logits: &Tensor, a: &[u32], b: &[u32]) -> Result<Tensor> {
    pick(logits, a)? - pick(logits, b)?
}

/// Difference of logits ratio (Croce and Hein 2020, equation 6) of logits `[N,K]`, `[N]`: `-(z_y - max z_i (i != y)) / (z_p1 - z_p3)`, where
/// `p1, p2, ...` are the classes from the likeliest on. It does not change when logits are scaled or shifted.
///
/// # Errors
/// Where there are fewer than 3 classes, or labels that are none of them.
pub fn dlr(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let order = enough(logits, 3, "dlr")?;
    let other = |(order, label): (&Vec<u32>, &u32)| order[usize::from(order[0] == *label)];
    let others: Vec<u32> = order.iter().zip(labels).map(other).collect();
    let range = difference(logits, &at(&order, 0), &at(&order, 2))?;
    difference(logits, &others, labels)? / (range + GUARD)?
}

/// Targeted difference of logits ratio (Croce and Hein 2020, equation 7) of logits `[N,K]`, `[N]`:
/// `-(z_y - z_t) / (z_p1 - (z_p3 + z_p4) / 2)`.
///
/// # Errors
/// Where there are fewer than 4 classes, or labels or targets that are none of them.
pub fn dlr_targeted(logits: &Tensor, labels: &[u32], targets: &[u32]) -> Result<Tensor> {
    let order = enough(logits, 4, "dlr_targeted")?;
    let third = difference(logits, &at(&order, 0), &at(&order, 2))?;
    let fourth = difference(logits, &at(&order, 0), &at(&order, 3))?;
    let range = ((third + fourth)? / 2.)?;
    difference(logits, targets, labels)? / (range + GUARD)?
}

/// The classes of every row of logits `[N,K]`, from the likeliest on; of equals the first.
///
/// # Errors
/// Where the logits are not `[N,K]` of `f32`.
pub fn ranked(logits: &Tensor) -> Result<Vec<Vec<u32>>> {
    let order = |z: Vec<f32>| {
        let mut classes: Vec<u32> = (0..z.len() as u32).collect();
        classes.sort_by(|a, b| z[*b as usize].total_cmp(&z[*a as usize]));
        classes
    };
    let logits: Vec<Vec<f32>> = logits.detach().to_device(&Device::Cpu)?.to_vec2()?;
    Ok(logits.into_iter().map(order).collect())
}

/// The classes of every row of logits `[N,K]` but its label, from the likeliest on.
///
/// # Errors
/// As for [`ranked`].
pub fn others(logits: &Tensor, labels: &[u32]) -> Result<Vec<Vec<u32>>> {
    let mut classes = ranked(logits)?;
    classes
        .iter_mut()
        .zip(labels)
        .for_each(|(classes, label)| classes.retain(|class| class != label));
    Ok(classes)
}

fn enough(logits: &Tensor, least: usize, loss: &str) -> Result<Vec<Vec<u32>>> {
    let classes = logits.dim(1)?;
    if classes < least {
        bail!("loss={loss} needs {least} classes at least, these logits have {classes}: use loss=ce")
    }
    ranked(logits)
}

fn at(order: &[Vec<u32>], rank: usize) -> Vec<u32> {
    order.iter().map(|classes| classes[rank]).collect()
}

/// One logit of every row, `[N]`.
fn pick(logits: &Tensor, classes: &[u32]) -> Result<Tensor> {
    let index = Tensor::new(classes, logits.device())?.unsqueeze(1)?;
    logits.gather(&index, 1)?.squeeze(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    type Loss = fn(&Tensor) -> Result<Tensor>;

    fn logits() -> Tensor {
        let rows = [[3f32, 1., 0.5, -2., 0.], [1., 3., 0.5, -2., 0.], [-1., 2., 7., 3., 4.]];
        Tensor::new(&rows, &Device::Cpu).unwrap()
    }

    const UNTARGETED: Loss = |z| dlr(z, &[0, 0, 1]);
    const TARGETED: Loss = |z| dlr_targeted(z, &[0, 0, 1], &[1, 2, 0]);

    fn values(loss: Loss, z: &Tensor) -> Vec<f32> {
        loss(z).unwrap().to_vec1().unwrap()
    }

    /// By hand: the first row is right by 2, the second wrong by 2, the third wrong by 5.
    #[test]
    fn ratios_are_those_of_the_paper() {
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let untargeted = values(UNTARGETED, &logits());
        assert!(close(&untargeted, &[-2. / 2.5, 2. / 2.5, 5. / 4.]), "{untargeted:?}");
        let targeted = values(TARGETED, &logits());
        assert!(close(&targeted, &[-2. / 2.75, -0.5 / 2.75, -3. / 4.5]), "{targeted:?}");
    }

    #[test]
    fn neither_scale_nor_shift_changes_them() {
        let other = (logits() * 1000.).unwrap().affine(1., -77.).unwrap();
        for loss in [UNTARGETED, TARGETED] {
            for (a, b) in values(loss, &logits()).iter().zip(values(loss, &other)) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let h = 1e-2f32;
        for loss in [UNTARGETED, TARGETED] {
            let z = Var::from_tensor(&logits()).unwrap();
            let sum = loss(z.as_tensor()).unwrap().sum_all().unwrap();
            let gradient = sum.backward().unwrap().get(&z).unwrap().to_vec2::<f32>().unwrap();
            for (i, k) in (0..3).flat_map(|i| (0..5).map(move |k| (i, k))) {
                let moved = |by: f32| {
                    let mut rows: Vec<Vec<f32>> = logits().to_vec2().unwrap();
                    rows[i][k] += by;
                    values(loss, &Tensor::new(rows, &Device::Cpu).unwrap())[i]
                };
                let slope = (moved(h) - moved(-h)) / (2. * h);
                assert!(
                    (gradient[i][k] - slope).abs() < 1e-3,
                    "{i} {k}: {} {slope}",
                    gradient[i][k]
                );
            }
        }
    }

    #[test]
    fn too_few_classes_are_refused_with_the_number_that_is_needed() {
        let two = Tensor::new(&[[1f32, 2.]], &Device::Cpu).unwrap();
        let three = Tensor::new(&[[1f32, 2., 0.]], &Device::Cpu).unwrap();
        for (error, said) in [
            (
                dlr(&two, &[0]),
                "loss=dlr needs 3 classes at least, these logits have 2",
            ),
            (
                dlr_targeted(&three, &[0], &[1]),
                "loss=dlr_targeted needs 4 classes at least, these logits have 3",
            ),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn equal_logits_give_a_finite_loss_and_the_first_class_leads() {
        let flat = Tensor::zeros((1, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(ranked(&flat).unwrap(), [[0, 1, 2, 3, 4]]);
        assert_eq!(dlr(&flat, &[0]).unwrap().to_vec1::<f32>().unwrap(), [0.]);
        assert_eq!(ranked(&logits()).unwrap()[2], [2, 4, 3, 1, 0]);
        assert_eq!(
            others(&logits(), &[0, 0, 3]).unwrap()[1..],
            [[1, 2, 4, 3], [2, 4, 1, 0]]
        );
    }
}
