//! Images that were crafted elsewhere, on another model or by another tool (Szegedy et al. 2014; Papernot et al. 2016).

use advae_sdk::attack::{rows, stack};
use advae_sdk::candle_core::{DType, bail};
use advae_sdk::prelude::*;
use std::collections::HashMap;

settings! {
    /// The images of a file.
    pub struct TransferSettings {
        /// File of images, with arrays x (clean) and x_adv, float32 [N,C,H,W]. `eval --save-adversarial` and numpy.savez write such files.
        file: InputFile = InputFile::default(),
        /// Norm of the ball that must contain the images: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball.
        epsilon: f64 = 0.3,
    }
}

/// Answers every clean image of the file with the adversarial one beside it. It asks nothing of its target.
pub struct Transfer {
    settings: TransferSettings,
    /// Adversarial images by the bits of the clean ones: a sample's id is not known to an attack.
    images: HashMap<Vec<u32>, Vec<f32>>,
}

impl Attack for Transfer {
    type Settings = TransferSettings;

    fn new(settings: TransferSettings) -> Result<Self> {
        in_range("epsilon", settings.epsilon, 0. ..=1e6)?;
        let file = settings.file.path();
        if file.is_empty() {
            bail!("file is empty: choose one, transfer:file=FILE.npz, as eval --save-adversarial writes it")
        }
        let arrays = match Tensor::read_npz(file) {
            Ok(arrays) => arrays,
            Err(error) => bail!(
                "file '{file}' cannot be read as npz ({error}): choose one that eval --save-adversarial or numpy.savez wrote"
            ),
        };
        let array = |name: &str| {
            let found = arrays.iter().find(|(key, _)| key == name);
            let Some((_, array)) = found else {
                bail!("file '{file}' has no array '{name}'")
            };
            if array.rank() != 4 {
                bail!(
                    "array '{name}' of '{file}' has shape {:?}, expected [N,C,H,W]",
                    array.dims()
                )
            }
            rows(&array.to_dtype(DType::F32)?)
        };
        let (clean, adversarial) = (array("x")?, array("x_adv")?);
        if clean.len() != adversarial.len() {
            bail!(
                "file '{file}' has {} images x and {} images x_adv",
                clean.len(),
                adversarial.len()
            )
        }
        let images = clean.iter().map(|image| bits(image)).zip(adversarial).collect();
        Ok(Self { settings, images })
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            epsilon: Some(self.settings.epsilon),
            passes: 1,
            random_start: Some(false),
            ..AttackInfo::new(self.settings.norm)
        }
    }

    /// Images that the file does not have were not found.
    fn perturb(&self, _: &Oracle, x: &Tensor, _: &Tensor) -> Result<Perturbed> {
        let clean = rows(x)?;
        let found: Vec<bool> = clean
            .iter()
            .map(|image| self.images.contains_key(&bits(image)))
            .collect();
        let image = |image: Vec<f32>| match self.images.get(&bits(&image)) {
            Some(adversarial) if adversarial.len() == image.len() => adversarial.clone(),
            _ => image,
        };
        let images: Vec<Vec<f32>> = clean.into_iter().map(image).collect();
        Ok(Perturbed {
            x_adv: stack(&images, x)?,
            found: Some(found),
            targets: None,
        })
    }
}

fn bits(image: &[f32]) -> Vec<u32> {
    image.iter().map(|v| v.to_bits()).collect()
}
