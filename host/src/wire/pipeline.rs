//! A classifier behind an optional purifier.

use crate::wire::head::Head;
use crate::wire::model::{Model, Tape};
use crate::wire::tensor::{Call, Tensor};
use anyhow::{Context, Result, ensure};
use std::sync::Arc;

/// Purifier and classifier together: `x [N,C,H,W]` to logits `[N,K]`.
#[derive(Clone)]
pub struct Pipeline {
    /// What cleans the images, if anything.
    pub purifier: Option<Model>,
    /// What classifies them.
    pub classifier: Model,
    /// What the host makes of the classifier's answer, where it examines an attack; absent: nothing.
    pub head: Option<Arc<Head>>,
}

/// The way back through a pipeline, end to end.
pub struct PipelineTape {
    purifier: Option<Tape>,
    classifier: Tape,
    head: Option<Arc<Head>>,
}

impl Pipeline {
    /// A classifier, behind a purifier if there is one.
    pub fn new(purifier: Option<Model>, classifier: Model) -> Self {
        Self {
            purifier,
            classifier,
            head: None,
        }
    }

    /// The classifier alone.
    pub fn undefended(classifier: Model) -> Self {
        Self::new(None, classifier)
    }

    /// The same models with another answer.
    pub fn with_head(&self, head: Head) -> Self {
        Self {
            head: Some(Arc::new(head)),
            ..self.clone()
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
        let own = self.classifier.info().classes.unwrap_or(0);
        self.head.as_ref().map_or(own, |head| head.classes(own))
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

    /// What the purifier makes of images `[N,C,H,W]`; absent without one.
    ///
    /// # Errors
    /// Where it fails.
    pub fn purified(&self, call: &Call, x: &Tensor) -> Result<Option<Tensor>> {
        self.purifier
            .as_ref()
            .map(|purifier| purifier.forward(call, x))
            .transpose()
    }

    /// Logits `[N,K]`.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn forward(&self, call: &Call, x: &Tensor) -> Result<Tensor> {
        let purified = self.purified(call, x)?;
        let x = purified.as_ref().unwrap_or(x);
        match &self.head {
            None => self.classifier.forward(call, x),
            Some(head) if head.reads_features() => Ok(head.forward(&self.classifier.features(call, x)?)),
            Some(head) => Ok(head.forward(&self.classifier.forward(call, x)?)),
        }
    }

    /// Logits `[N,K]` and the way back.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn forward_tape(&self, call: &Call, x: &Tensor) -> Result<(Tensor, PipelineTape)> {
        let purified = self.purifier.as_ref().map(|purifier| purifier.forward_tape(call, x));
        let (purified, purifier) = purified.transpose()?.unzip();
        let x = purified.as_ref().unwrap_or(x);
        let head = self.head.clone();
        let (y, classifier) = match head.as_ref().is_some_and(|head| head.reads_features()) {
            true => self.classifier.features_tape(call, x)?,
            false => self.classifier.forward_tape(call, x)?,
        };
        let logits = match &head {
            Some(head) => head.forward(&y),
            None => y,
        };
        let tape = PipelineTape {
            purifier,
            classifier,
            head,
        };
        Ok((logits, tape))
    }
}

impl PipelineTape {
    /// The input's gradient `[N,C,H,W]` for a cotangent `[N,K]`.
    ///
    /// # Errors
    /// Where a plugin fails or gives no gradient.
    pub fn backward(&self, call: &Call, cotangent: &Tensor) -> Result<Tensor> {
        let through_head = self.head.as_ref().map(|head| head.backward(cotangent));
        let gradient = self
            .classifier
            .backward(call, through_head.as_ref().unwrap_or(cotangent))?
            .context("the classifier gave no input gradient")?;
        let Some(purifier) = &self.purifier else {
            return Ok(gradient);
        };
        purifier
            .backward(call, &gradient)?
            .context("the purifier gave no input gradient")
    }
}
