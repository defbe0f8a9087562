//! What the oracle of one attack has on a device: the pipeline that answers, and the counts about its samples.

use crate::wire::boundary::to_abi;
use crate::wire::device::{DevicePipeline, DeviceTally, DeviceTensor};
use crate::wire::meter::Meter;
use crate::wire::pipeline::Pipeline;
use advae_abi::tally::{
    COTANGENTS, FIELDS, GRADIENT_VALUES, GRADIENTS, IMAGES, LARGEST_COTANGENT, LOGITS, SATURATED, ZERO_GRADIENTS,
};
use advae_abi::{AbiError, AbiTensor, CtxRef, ErrorCode};
use anyhow::{Result, anyhow};
use std::collections::HashMap;
use std::sync::Arc;

/// A pipeline on its device, for one batch under attack.
pub struct OnDevice {
    /// Answers.
    pub pipeline: DevicePipeline,
    /// Counts.
    pub tally: DeviceTally,
    /// Sample ids, by their places in the tally.
    ids: Vec<u64>,
    slots: HashMap<u64, u32>,
}

impl OnDevice {
    /// For the samples `ids`; none where the pipeline's tensors cross by the CPU.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn of(pipeline: &Pipeline, ids: &[u64]) -> Result<Option<Self>> {
        let Some(pipeline) = DevicePipeline::of(pipeline) else {
            return Ok(None);
        };
        Ok(Some(Self {
            tally: pipeline.tally(ids.len())?,
            pipeline,
            ids: ids.to_vec(),
            slots: ids.iter().copied().zip(0..).collect(),
        }))
    }

    /// Places of samples of the batch in the tally.
    pub fn slots(&self, ids: &[u64]) -> Vec<u32> {
        ids.iter()
            .map(|id| self.slots.get(id).copied().unwrap_or(u32::MAX))
            .collect()
    }

    /// Hands a tensor to the attack: where it lies, if the attack takes it there, else on the CPU.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn give(&self, ctx: CtxRef<'_>, tensor: Arc<DeviceTensor>) -> Result<AbiTensor> {
        match ctx.get().takes_device() {
            true => Ok(tensor.share()),
            false => {
                let copy = self.pipeline.download(tensor.view(), tensor.shape())?;
                copy.export().map_err(|error| anyhow!(error))
            }
        }
    }

    /// Reads the counts, once the attack has ended, and adds them to the meter's.
    ///
    /// # Errors
    /// Where something that crossed was not finite: the first such sample, and what began it. Where the device fails.
    pub fn settle(&self, meter: &Meter) -> Result<(), AbiError> {
        let read = self.tally.read(self.ids.len()).map_err(to_abi)?;
        for (id, counts) in self.ids.iter().zip(&read) {
            let [gradients, zero, saturated] = [GRADIENTS, ZERO_GRADIENTS, SATURATED].map(|field| counts[field]);
            meter.add_gradients(*id, gradients, zero, saturated);
        }
        let found = |(id, counts): (&u64, &[u64; FIELDS])| Some(self.blame(*id, begun(counts)?));
        match self.ids.iter().zip(&read).find_map(found) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn blame(&self, id: u64, field: usize) -> AbiError {
        let models = self.pipeline.named();
        let text = match field {
            IMAGES => format!("the oracle was asked about an image that is not finite, for sample {id}"),
            LOGITS => format!("{models}: its output for sample {id} is not finite"),
            COTANGENTS => format!(
                "the cotangent given to the oracle's tape is not finite or too large for sample {id}: the loss must be finite, and its \
                 derivative {LARGEST_COTANGENT:e} at most"
            ),
            _ => format!("{models}: its gradient for sample {id} is not finite"),
        };
        AbiError::new(ErrorCode::Compute, text)
    }
}

/// What was not finite first, if anything was. What begins it is counted once more than what comes of it in the next step; of what comes in
/// the same step, all counted alike, the first in the order of computation began it.
fn begun(counts: &[u64; FIELDS]) -> Option<usize> {
    let order = [IMAGES, LOGITS, COTANGENTS, GRADIENT_VALUES];
    let most = order.iter().map(|field| counts[*field]).max()?;
    order.into_iter().find(|field| most > 0 && counts[*field] == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(images: u64, logits: u64, cotangents: u64, gradients: u64) -> [u64; FIELDS] {
        let mut counts = [7, 3, 1, 0, 0, 0, 0];
        (counts[IMAGES], counts[LOGITS]) = (images, logits);
        (counts[COTANGENTS], counts[GRADIENT_VALUES]) = (cotangents, gradients);
        counts
    }

    #[test]
    fn what_began_it_is_blamed() {
        assert_eq!(begun(&counted(0, 0, 0, 0)), None);
        assert_eq!(begun(&counted(0, 0, 0, 1)), Some(GRADIENT_VALUES));
        // A gradient at the first of three steps, then everything.
        assert_eq!(begun(&counted(2, 2, 2, 3)), Some(GRADIENT_VALUES));
        assert_eq!(begun(&counted(2, 3, 3, 3)), Some(LOGITS));
        assert_eq!(begun(&counted(3, 3, 3, 3)), Some(IMAGES));
        assert_eq!(begun(&counted(0, 0, 1, 1)), Some(COTANGENTS));
    }
}
