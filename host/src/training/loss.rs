//! Losses of training, with the cotangents they send back.

use crate::wire::tensor::{Tensor, argmax};

/// Softmax cross-entropy of every row of `logits [N,K]`, and its gradient times `weight` a row. It is the true one, however sure the
/// model is: nothing is rescaled, as attacks may do.
pub fn cross_entropy(logits: &Tensor, labels: &[u32], weight: f32) -> (Vec<f64>, Tensor) {
    let mut cotangent = Tensor::zeros(&logits.shape);
    let mut losses = Vec::with_capacity(labels.len());
    for (i, label) in labels.iter().enumerate() {
        let (row, label) = (logits.row(i), *label as usize);
        let largest = argmax(row) as usize;
        let parts: Vec<f32> = row.iter().map(|z| (z - row[largest]).exp()).collect();
        let sum: f32 = parts.iter().sum();
        // The label's p - 1 as minus the sum of the others: it is not rounded away where the model is sure.
        let others: f32 = (parts.iter().enumerate())
            .filter(|(k, _)| *k != label)
            .map(|(_, part)| part)
            .sum();
        losses.push(f64::from(row[largest]) - f64::from(row[label]) + ln_sum(row, largest));
        let mut gradient: Vec<f32> = parts.iter().map(|part| weight * part / sum).collect();
        gradient[label] = -weight * others / sum;
        cotangent.set_row(i, &gradient);
    }
    (losses, cotangent)
}

/// Logarithm of the sum of `exp(z - z[largest])`, without losing what is small beside the largest's 1.
fn ln_sum(row: &[f32], largest: usize) -> f64 {
    let top = f64::from(row[largest]);
    let others = row.iter().enumerate().filter(|(k, _)| *k != largest);
    others.map(|(_, z)| (f64::from(*z) - top).exp()).sum::<f64>().ln_1p()
}

/// Pixel-wise sigmoid cross-entropy between purified images `p` and clean images `x` (Eq. 7's D), the mean over the
/// pixels of each sample, and its gradient with respect to `p` times `weight` a sample.
pub fn reconstruction(p: &Tensor, x: &Tensor, weight: f32) -> (Vec<f64>, Tensor) {
    const TINY: f32 = 1e-6;
    let pixels = p.row_len() as f32;
    let mut cotangent = Tensor::zeros(&p.shape);
    let mut losses = vec![0.; p.rows()];
    for (i, loss) in losses.iter_mut().enumerate() {
        let mut gradient = Vec::with_capacity(p.row_len());
        for (p, x) in p.row(i).iter().zip(x.row(i)) {
            let p = p.clamp(TINY, 1. - TINY);
            *loss -= f64::from((x * p.ln() + (1. - x) * (1. - p).ln()) / pixels);
            gradient.push(weight * (p - x) / (p * (1. - p)) / pixels);
        }
        cotangent.set_row(i, &gradient);
    }
    (losses, cotangent)
}

/// Summed absolute differences of each row of `a` and `b` `[N,K]` (HGD's loss), and the gradient with respect to `a` times
/// `weight` a row.
pub fn l1(a: &Tensor, b: &Tensor, weight: f32) -> (Vec<f64>, Tensor) {
    let mut cotangent = Tensor::zeros(&a.shape);
    let mut losses = vec![0.; a.rows()];
    for (i, loss) in losses.iter_mut().enumerate() {
        let pairs = a.row(i).iter().zip(b.row(i));
        let differences: Vec<f64> = pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        *loss = differences.iter().map(|d| d.abs()).sum();
        let sign = |d: &f64| if *d == 0. { 0. } else { weight * d.signum() as f32 };
        cotangent.set_row(i, &differences.iter().map(sign).collect::<Vec<_>>());
    }
    (losses, cotangent)
}

/// Divergence KL(p || q) of every row, where `p` and `q` are the softmax of `a` and `b` `[N,K]`, and the gradients with respect
/// to `a` and `b` times `weight` a row.
pub fn divergence(a: &Tensor, b: &Tensor, weight: f32) -> (Vec<f64>, [Tensor; 2]) {
    let mut cotangents = [Tensor::zeros(&a.shape), Tensor::zeros(&b.shape)];
    let mut losses = Vec::with_capacity(a.rows());
    let weight = f64::from(weight);
    for i in 0..a.rows() {
        let (log_p, log_q) = (log_softmax(a.row(i)), log_softmax(b.row(i)));
        let terms = log_p.iter().zip(&log_q);
        let loss: f64 = terms.clone().map(|(p, q)| p.exp() * (p - q)).sum();
        let by_a = terms.clone().map(|(p, q)| (weight * p.exp() * (p - q - loss)) as f32);
        let by_b = terms.map(|(p, q)| (weight * (q.exp() - p.exp())) as f32);
        cotangents[0].set_row(i, &by_a.collect::<Vec<_>>());
        cotangents[1].set_row(i, &by_b.collect::<Vec<_>>());
        losses.push(loss);
    }
    (losses, cotangents)
}

/// In `f64`: the difference of two `f32` may overflow, and minus infinity times a probability of 0 is no number.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let largest = argmax(row) as usize;
    let (top, ln_sum) = (f64::from(row[largest]), ln_sum(row, largest));
    row.iter().map(|z| f64::from(*z) - top - ln_sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], data: Vec<f32>) -> Tensor {
        Tensor::new(shape.to_vec(), data).unwrap()
    }

    /// Central differences of the summed losses against the cotangent.
    fn check(at: &Tensor, loss: impl Fn(&Tensor) -> (Vec<f64>, Tensor)) {
        let (_, gradient) = loss(at);
        for i in 0..at.data.len() {
            let sum = |step: f32| {
                let mut moved = at.clone();
                moved.data[i] += step;
                loss(&moved).0.iter().sum::<f64>()
            };
            let difference = (sum(1e-2) - sum(-1e-2)) / 2e-2;
            assert!(
                (difference - f64::from(gradient.data[i])).abs() < 2e-3,
                "{difference} {}",
                gradient.data[i]
            );
        }
    }

    #[test]
    fn cross_entropy_has_the_gradient_of_its_differences() {
        let logits = tensor(&[2, 3], vec![0.3, -0.2, 1., -1., 0.5, 0.1]);
        check(&logits, |z| cross_entropy(z, &[2, 0], 1.));
        let (losses, _) = cross_entropy(&tensor(&[1, 2], vec![0., 0.]), &[1], 1.);
        assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-12);
        let (losses, _) = cross_entropy(&tensor(&[1, 2], vec![1000., 0.]), &[1], 1.);
        assert_eq!(losses[0], 1000.);
        let (_, gradient) = cross_entropy(&tensor(&[1, 2], vec![20., 0.]), &[0], 1.);
        assert!((gradient.data[0] / -(-20f32).exp() - 1.).abs() < 1e-6);
    }

    #[test]
    fn the_loss_of_a_sure_model_is_not_rounded_away() {
        // ln(1 + exp(-20)), beside logits whose f32 are 6e-5 apart.
        let (losses, gradient) = cross_entropy(&tensor(&[1, 2], vec![1020., 1000.]), &[0], 1.);
        assert!((losses[0] / (-20f64).exp() - 1.).abs() < 1e-8, "{}", losses[0]);
        assert!((gradient.data[0] / -(-20f32).exp() - 1.).abs() < 1e-6);
        let (losses, _) = cross_entropy(&tensor(&[1, 3], vec![1000., 1000., 0.]), &[1], 1.);
        assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn logits_of_any_size_give_numbers() {
        const MAX: f32 = f32::MAX;
        let a = tensor(&[3, 3], vec![MAX, -MAX, 0., -MAX, MAX, MAX, 1e30, -1e30, 0.]);
        let b = tensor(&[3, 3], vec![-MAX, MAX, 0., 0., 0., 0., 1e30, -1e30, 0.]);
        let (losses, cotangent) = cross_entropy(&a, &[1, 0, 1], 1.);
        assert_eq!(losses[0], 2. * f64::from(MAX));
        assert_eq!(cotangent.row(0), [1., -1., 0.]);
        assert!(losses.iter().all(|loss| loss.is_finite()));
        let (losses, cotangents) = divergence(&a, &b, 1.);
        assert!(losses.iter().all(|loss| loss.is_finite() && *loss >= 0.), "{losses:?}");
        let finite = |t: &Tensor| t.data.iter().all(|v| v.is_finite());
        assert!(cotangents.iter().all(finite), "{cotangents:?}");
        assert_eq!(cotangents[1].row(0), [-1., 1., 0.]);
        let (losses, cotangent) = l1(&a, &b, 1.);
        assert_eq!(
            (losses[0], cotangent.row(0)),
            (4. * f64::from(MAX), [1., -1., 0.].as_slice())
        );
    }

    #[test]
    fn reconstruction_has_the_gradient_of_its_differences() {
        let x = tensor(&[1, 4], vec![0., 1., 0.5, 0.2]);
        check(&tensor(&[1, 4], vec![0.3, 0.6, 0.5, 0.4]), |p| {
            reconstruction(p, &x, 1.)
        });
    }

    #[test]
    fn l1_has_the_gradient_of_its_differences() {
        let b = tensor(&[2, 2], vec![0., 1., 0.5, 0.2]);
        check(&tensor(&[2, 2], vec![0.3, 0.6, -0.5, 0.4]), |a| l1(a, &b, 1.));
        assert_eq!(l1(&b, &b, 1.), (vec![0., 0.], Tensor::zeros(&[2, 2])));
    }

    #[test]
    fn the_divergence_has_the_gradients_of_its_differences() {
        let (a, b) = (
            tensor(&[2, 3], vec![0.3, -0.2, 1., -1., 0.5, 0.1]),
            tensor(&[2, 3], vec![1.3, 0.2, -1., 0., 0.5, 0.7]),
        );
        let one = |(losses, cotangents): (Vec<f64>, [Tensor; 2]), which: usize| (losses, cotangents[which].clone());
        check(&a, |a| one(divergence(a, &b, 1.), 0));
        check(&b, |b| one(divergence(&a, b, 1.), 1));
        assert!(divergence(&a, &a, 1.).0.iter().all(|loss| loss.abs() < 1e-6));
    }
}
