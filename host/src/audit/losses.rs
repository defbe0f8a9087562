//! Losses of logits as the host computes them, with their cotangents, and random directions.

use crate::wire::tensor::{Tensor, moved};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The class other than `label` with the largest logit; the first of equals.
pub fn runner_up(logits: &[f32], label: u32) -> usize {
    let others = (0..logits.len()).filter(|k| *k != label as usize);
    others.fold(
        usize::from(label == 0),
        |best, k| if logits[k] > logits[best] { k } else { best },
    )
}

/// By how much the largest other logit exceeds the label's: positive where the image is misclassified.
pub fn margin(logits: &[f32], label: u32) -> f64 {
    f64::from(logits[runner_up(logits, label)]) - f64::from(logits[label as usize])
}

/// The margin's cotangent `[N, K]`.
pub fn margin_cotangent(logits: &Tensor, labels: &[u32]) -> Tensor {
    rows(logits, labels, |row, label| {
        let mut cotangent = vec![0.; row.len()];
        cotangent[runner_up(row, label)] = 1.;
        cotangent[label as usize] -= 1.;
        cotangent
    })
}

/// The cotangent of the difference of logits ratio (Croce & Hein 2020, eq. 8): `-(z_y - max z_other) / (z_1 - z_3)`, of three classes at
/// least.
pub fn dlr_cotangent(logits: &Tensor, labels: &[u32]) -> Tensor {
    rows(logits, labels, |row, label| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let (first, third) = (order[0], order[2]);
        let spread = (f64::from(row[first]) - f64::from(row[third])).max(1e-12);
        let lead = -margin(row, label);
        let mut cotangent = vec![0f64; row.len()];
        cotangent[label as usize] -= 1. / spread;
        cotangent[runner_up(row, label)] += 1. / spread;
        cotangent[first] += lead / spread.powi(2);
        cotangent[third] -= lead / spread.powi(2);
        cotangent.into_iter().map(|v| v as f32).collect()
    })
}

/// The cotangent of cross-entropy, in f32 as frameworks compute it: zero where the softmax is sure.
pub fn cross_entropy_cotangent(logits: &Tensor, labels: &[u32]) -> Tensor {
    rows(logits, labels, |row, label| {
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let mut cotangent: Vec<f32> = row.iter().map(|z| (z - largest).exp()).collect();
        let sum: f32 = cotangent.iter().sum();
        cotangent.iter_mut().for_each(|p| *p /= sum);
        cotangent[label as usize] -= 1.;
        cotangent
    })
}

fn rows(logits: &Tensor, labels: &[u32], of: impl Fn(&[f32], u32) -> Vec<f32>) -> Tensor {
    let data = labels
        .iter()
        .enumerate()
        .flat_map(|(i, label)| of(logits.row(i), *label));
    Tensor {
        shape: logits.shape.clone(),
        data: data.collect(),
    }
}

/// Numbers in `[-1, 1)` like the images `x`, keyed by seed, sample and round: whatever else is in the batch.
pub fn uniform(x: &Tensor, ids: &[u64], seed: u64, round: u64) -> Tensor {
    let row = |id: &u64| {
        let key = seed ^ id.rotate_left(17) ^ (round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = ChaCha8Rng::seed_from_u64(key);
        (0..x.row_len()).map(move |_| rng.random_range(-1f32..1.))
    };
    Tensor {
        shape: x.shape.clone(),
        data: ids.iter().flat_map(row).collect(),
    }
}

/// 1 or -1, keyed likewise.
pub fn signs(x: &Tensor, ids: &[u64], seed: u64, round: u64) -> Tensor {
    let mut signs = uniform(x, ids, seed, round);
    signs.data.iter_mut().for_each(|v| *v = if *v < 0. { -1. } else { 1. });
    signs
}

/// `x` and `step` times the direction, clipped to pixels.
pub fn moved_within(x: &Tensor, direction: &Tensor, step: f32) -> Tensor {
    let mut moved = moved(x, direction, step);
    moved.data.iter_mut().for_each(|v| *v = v.clamp(0., 1.));
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_positive_where_the_image_is_misclassified() {
        assert_eq!(margin(&[1., 3., 2.5], 1), -0.5);
        assert_eq!(margin(&[1., 3., 2.5], 0), 2.);
        assert_eq!(margin(&[1., 1.], 0), 0.);
        let logits = Tensor::new(vec![1, 3], vec![1., 3., 2.5]).unwrap();
        assert_eq!(margin_cotangent(&logits, &[1]).data, [0., -1., 1.]);
    }

    #[test]
    fn cross_entropy_is_saturated_where_one_logit_leads_far() {
        let logits = Tensor::new(vec![2, 3], vec![0., 2000., 1000., 0., 1., 0.5]).unwrap();
        let cotangent = cross_entropy_cotangent(&logits, &[1, 1]);
        assert_eq!(cotangent.row(0), [0.; 3]);
        assert!(cotangent.row(1).iter().sum::<f32>().abs() < 1e-6 && cotangent.row(1)[1] < 0.);
    }

    #[test]
    fn the_cotangent_of_dlr_is_its_derivative() {
        let dlr = |z: &[f32], label: u32| {
            let mut sorted = z.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            margin(z, label) / (f64::from(sorted[0]) - f64::from(sorted[2]))
        };
        let z = [0.5f32, 2., -1., 1.25, 0.75];
        for label in 0..5 {
            let logits = Tensor::new(vec![1, 5], z.to_vec()).unwrap();
            let cotangent = dlr_cotangent(&logits, &[label]);
            for k in 0..5 {
                let at = |step: f32| {
                    let mut z = z;
                    z[k] += step;
                    dlr(&z, label)
                };
                let slope = (at(1. / 128.) - at(-1. / 128.)) * 64.;
                let off = (slope - f64::from(cotangent.data[k])).abs();
                assert!(off < 1e-3, "{label} {k}: {slope} {}", cotangent.data[k]);
            }
        }
    }
}
