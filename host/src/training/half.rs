//! Weights rounded to 16 bits, for plugins that carry them.

use anyhow::{Context, Result, ensure};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// The safetensors blob with its `f32` tensors rounded to the nearest `f16`.
///
/// # Errors
/// Where the blob is no safetensors file, or a value lies beyond what `f16` holds.
pub fn round(blob: &[u8]) -> Result<Vec<u8>> {
    let file = SafeTensors::deserialize(blob).context("the plugin's weights are no safetensors file")?;
    let mut rounded = Vec::new();
    for (name, view) in file.iter() {
        let (dtype, bytes) = match view.dtype() {
            Dtype::F32 => (Dtype::F16, round_all(name, view.data())?),
            other => (other, view.data().to_vec()),
        };
        rounded.push((name.to_string(), dtype, view.shape().to_vec(), bytes));
    }
    let views = rounded
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)));
    Ok(safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?)
}

fn round_all(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() / 2);
    for value in bytes.as_chunks::<4>().0 {
        let value = f32::from_le_bytes(*value);
        let rounded = f16::from_f32(value);
        ensure!(
            rounded.is_finite(),
            "'{name}' holds {value}, which f16 cannot: set half_precision = false in the recipe"
        );
        out.extend_from_slice(&rounded.to_le_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(values: [f32; 2]) -> Vec<u8> {
        let bytes = values.map(f32::to_le_bytes).concat();
        let view = TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
        safetensors::serialize([("w", view)], None).unwrap()
    }

    #[test]
    fn values_are_rounded_to_the_nearest() {
        // Between 1 and 2 the numbers of f16 are 1/1024 apart.
        let rounded = round(&blob([1.0 + 1.4 / 1024.0, -0.5])).unwrap();
        let file = SafeTensors::deserialize(&rounded).unwrap();
        let view = file.tensor("w").unwrap();
        assert_eq!((view.dtype(), view.shape()), (Dtype::F16, [2].as_slice()));
        let values: Vec<f32> = view
            .data()
            .chunks(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect();
        assert_eq!(values, [1.0 + 1.0 / 1024.0, -0.5]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let error = round(&blob([1e6, 0.])).unwrap_err().to_string();
        assert!(error.contains("'w' holds 1000000"), "{error}");
        assert!(round(b"no file").is_err());
    }
}
