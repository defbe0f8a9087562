//! What the host puts behind a classifier to examine an attack: the same answer on another scale, or another question about the same
//! features.

use crate::wire::tensor::Tensor;

/// A function of the classifier's logits or features, with its way back.
#[derive(Clone, Debug, PartialEq)]
pub enum Head {
    /// Logits times a factor: no prediction changes.
    Scaled(f32),
    /// A linear classifier of features or logits, the same for every sample.
    Readout {
        /// Whether it reads the penultimate features; else the logits.
        features: bool,
        /// Weights and biases.
        linear: Linear,
    },
}

/// `y = W x + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[K, F]`, row-major.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
}

impl Linear {
    /// `[N, F]` to `[N, K]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (n, k, f) = (x.rows(), self.bias.len(), x.row_len());
        let output = |i: usize, j: usize| {
            let terms = self.weight[j * f..(j + 1) * f].iter().zip(x.row(i));
            let sum: f64 = terms.map(|(w, v)| f64::from(*w) * f64::from(*v)).sum();
            (sum + f64::from(self.bias[j])) as f32
        };
        Tensor {
            shape: vec![n, k],
            data: (0..n).flat_map(|i| (0..k).map(move |j| output(i, j))).collect(),
        }
    }

    /// A cotangent `[N, K]` back to `[N, F]`.
    pub fn backward(&self, cotangent: &Tensor) -> Tensor {
        let (n, k) = (cotangent.rows(), self.bias.len());
        let f = self.weight.len() / k.max(1);
        let mut back = Tensor::zeros(&[n, f]);
        for (row, cotangent) in back.data.chunks_exact_mut(f).zip(cotangent.data.chunks_exact(k)) {
            for (weight, c) in self.weight.chunks_exact(f).zip(cotangent) {
                row.iter_mut().zip(weight).for_each(|(v, w)| *v += c * w);
            }
        }
        back
    }
}

impl Head {
    /// Whether it is given features instead of logits.
    pub fn reads_features(&self) -> bool {
        matches!(self, Self::Readout { features: true, .. })
    }

    /// Classes of its answer, behind a classifier of so many.
    pub fn classes(&self, classifier: usize) -> usize {
        match self {
            Self::Scaled(_) => classifier,
            Self::Readout { linear, .. } => linear.bias.len(),
        }
    }

    /// Its answer `[N, K]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Scaled(factor) => scaled(x, *factor),
            Self::Readout { linear, .. } => linear.forward(x),
        }
    }

    /// A cotangent of its answer, pulled back to what it was given.
    pub fn backward(&self, cotangent: &Tensor) -> Tensor {
        match self {
            Self::Scaled(factor) => scaled(cotangent, *factor),
            Self::Readout { linear, .. } => linear.backward(cotangent),
        }
    }
}

fn scaled(x: &Tensor, factor: f32) -> Tensor {
    let mut y = x.clone();
    y.scale(factor);
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_head_is_its_matrix_and_its_way_back_the_transpose() {
        let linear = Linear {
            weight: vec![1., 2., 3., -1., 0., 4.],
            bias: vec![0.5, -1.],
        };
        let x = Tensor::new(vec![2, 3], vec![1., 0., 2., -1., 1., 0.5]).unwrap();
        assert_eq!(linear.forward(&x).data, [7.5, 6., 3., 2.]);
        let cotangent = Tensor::new(vec![2, 2], vec![1., 0., 2., -1.]).unwrap();
        assert_eq!(linear.backward(&cotangent).data, [1., 2., 3., 3., 4., 2.]);
        let head = Head::Readout { features: true, linear };
        assert!(head.reads_features());
        assert_eq!((head.classes(10), head.forward(&x).shape), (2, vec![2, 2]));
    }

    #[test]
    fn scaled_logits_have_a_scaled_way_back() {
        let x = Tensor::new(vec![1, 2], vec![1., -2.]).unwrap();
        let head = Head::Scaled(10.);
        assert_eq!(
            (head.forward(&x).data, head.backward(&x).data),
            (vec![10., -20.], vec![10., -20.])
        );
        assert_eq!((head.classes(10), head.reads_features()), (10, false));
    }
}
