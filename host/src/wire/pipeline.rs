//! A classifier behind an optional purifier.

use crate::wire::model::{Model, Tape};
use crate::wire::tensor::{Call, Tensor};
use anyhow::{Context, Result, ensure};

/// Purifier and classifier together: `x [N,C,H,W]` to logits `[N,K]`.
#[derive(Clone)]
pub struct Pipeline {
    /// What cleans the images, if anything.
    pub purifier: Option<Model>,
    /// What classifies them.
    pub classifier: Model,
}

/// The way back through a pipeline, end to end.
pub struct PipelineTape {
    purifier: Option<Tape>,
    classifier: Tape,
}

impl Pipeline {
    /// The classifier alone.
    pub fn undefended(classifier: Model) -> Self {
        Self {
            purifier: None,
            classifier,
        }
    }

    /// Whether two passes over the same image may differ.
    pub fn random(&self) -> bool {
        self.classifier.info().random || self.purifier.as_ref().is_some_and(|p| p.info().random)
    }

    /// The models, in the order that images pass them.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.purifier.iter().chain([&self.classifier])
    }

    /// Shape of one image.
    ///
    /// # Errors
    /// Where the classifier does not say.
    pub fn input(&self) -> Result<[usize; 3]> {
        self.classifier
            .info()
            .input
            .with_context(|| format!("classifier '{}' names no input", self.classifier.name()))
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classifier.info().classes.unwrap_or(0)
    }

    /// Refuses a purifier that does not fit the classifier.
    ///
    /// # Errors
    /// Where their shapes differ.
    pub fn check(&self) -> Result<()> {
        let Some(purifier) = &self.purifier else { return Ok(()) };
        let (given, needed) = (purifier.info().input, self.input()?);
        ensure!(
            given.is_none_or(|given| given == needed),
            "purifier '{}' gives images {given:?}, classifier '{}' takes {needed:?}: choose two that fit",
            purifier.name(),
            self.classifier.name()
        );
        Ok(())
    }

    /// Logits `[N,K]`.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn forward(&self, call: &Call, x: &Tensor) -> Result<Tensor> {
        match &self.purifier {
            Some(purifier) => self.classifier.forward(call, &purifier.forward(call, x)?),
            None => self.classifier.forward(call, x),
        }
    }

    /// Logits `[N,K]` and the way back.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn forward_tape(&self, call: &Call, x: &Tensor) -> Result<(Tensor, PipelineTape)> {
        let Some(purifier) = &self.purifier else {
            let (logits, classifier) = self.classifier.forward_tape(call, x)?;
            return Ok((
                logits,
                PipelineTape {
                    purifier: None,
                    classifier,
                },
            ));
        };
        let (purified, tape) = purifier.forward_tape(call, x)?;
        let (logits, classifier) = self.classifier.forward_tape(call, &purified)?;
        Ok((
            logits,
            PipelineTape {
                purifier: Some(tape),
                classifier,
            },
        ))
    }
}

impl PipelineTape {
    /// The input's gradient `[N,C,H,W]` for a cotangent `[N,K]`.
    ///
    /// # Errors
    /// Where a plugin fails or gives no gradient.
    pub fn backward(&self, call: &Call, cotangent: &Tensor) -> Result<Tensor> {
        let gradient = self
            .classifier
            .backward(call, cotangent)?
            .context("the classifier gave no input gradient")?;
        let Some(purifier) = &self.purifier else {
            return Ok(gradient);
        };
        purifier
            .backward(call, &gradient)?
            .context("the purifier gave no input gradient")
    }
}
