//! A running mean of weights: flatter and, under adversarial training, more robust than the last step's.

use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, SafeTensors};

/// Exponential mean of safetensors blobs of one layout.
#[derive(Clone, Debug, Default)]
pub struct Average {
    /// The mean, as a blob; empty before the first weights.
    pub blob: Vec<u8>,
}

impl Average {
    /// Takes the weights after step `step` (from 0) into the mean, with the decay `min(decay, (1 + step) / (10 + step))`: the
    /// first steps are soon forgotten.
    ///
    /// # Errors
    /// Where a blob is no safetensors file of `f32`, or its layout changed.
    pub fn add(&mut self, weights: Vec<u8>, step: u64, decay: f64) -> Result<()> {
        let file = SafeTensors::deserialize(&weights).context("the plugin's weights are no safetensors file")?;
        if let Some((name, view)) = file.iter().find(|(_, view)| view.dtype() != Dtype::F32) {
            let dtype = view.dtype();
            anyhow::bail!("'{name}' holds {dtype:?}, a mean needs F32: set weight_averaging = 0 in the recipe");
        }
        if self.blob.is_empty() {
            self.blob = weights;
            return Ok(());
        }
        let header = header_len(&weights);
        ensure!(
            self.blob.len() == weights.len() && self.blob[..header] == weights[..header],
            "the plugin's weights changed their layout between two steps"
        );
        let keep = decay.min((1. + step as f64) / (10. + step as f64)) as f32;
        let means = self.blob[header..].as_chunks_mut::<4>().0;
        for (mean, new) in means.iter_mut().zip(weights[header..].as_chunks::<4>().0) {
            let (old, new) = (f32::from_le_bytes(*mean), f32::from_le_bytes(*new));
            *mean = (new + keep * (old - new)).to_le_bytes();
        }
        Ok(())
    }
}

/// Bytes before the tensors: the length of the header, and the header.
fn header_len(blob: &[u8]) -> usize {
    8 + u64::from_le_bytes(std::array::from_fn(|i| blob[i])) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn blob(name: &str, values: [f32; 2]) -> Vec<u8> {
        let bytes = values.map(f32::to_le_bytes).concat();
        let view = TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
        safetensors::serialize([(name, view)], None).unwrap()
    }

    #[test]
    fn the_mean_moves_by_its_decay() {
        let mut average = Average::default();
        average.add(blob("w", [1., -2.]), 0, 0.75).unwrap();
        assert_eq!(average.blob, blob("w", [1., -2.]));
        average.add(blob("w", [5., 2.]), 1000, 0.75).unwrap();
        assert_eq!(average.blob, blob("w", [2., -1.]));
        // Of the first steps little is kept, whatever the decay: (1 + 1) / (10 + 1) here.
        let mut young = Average::default();
        young.add(blob("w", [11., 0.]), 0, 0.999).unwrap();
        young.add(blob("w", [0., 0.]), 1, 0.999).unwrap();
        assert_eq!(young.blob, blob("w", [2., 0.]));
    }

    #[test]
    fn another_layout_is_an_error() {
        let mut average = Average::default();
        average.add(blob("w", [1., 2.]), 0, 0.5).unwrap();
        let error = average.add(blob("v", [1., 2.]), 1, 0.5).unwrap_err().to_string();
        assert!(error.contains("layout"), "{error}");
        assert!(average.add(b"no file".to_vec(), 1, 0.5).is_err());
    }
}
