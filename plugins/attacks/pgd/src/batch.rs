//! The samples of a batch that are still searched.

use advae_sdk::prelude::*;

/// Samples whose search goes on, and the images of those whose search has ended.
pub(crate) struct Batch<'a> {
    pub(crate) oracle: Oracle<'a>,
    pub(crate) objective: Objective,
    pub(crate) x: Tensor,
    pub(crate) x_adv: Tensor,
    /// Where in the whole batch each sample stands.
    places: Vec<usize>,
    ended: Vec<Option<Tensor>>,
}

impl<'a> Batch<'a> {
    /// All samples, from their starting points `x_adv`.
    pub(crate) fn new(oracle: &Oracle<'a>, objective: &Objective, x: &Tensor, x_adv: Tensor) -> Self {
        let n = oracle.samples();
        let (oracle, objective) = (oracle.clone(), objective.clone());
        Self {
            oracle,
            objective,
            x: x.clone(),
            x_adv,
            places: (0..n).collect(),
            ended: vec![None; n],
        }
    }

    /// Ends the search of the samples that are `done` at their present images.
    pub(crate) fn end(&mut self, done: &[bool]) -> Result<()> {
        for (i, _) in done.iter().enumerate().filter(|(_, done)| **done) {
            self.ended[self.places[i]] = Some(self.x_adv.get(i)?);
        }
        let open = positions(done, false);
        self.oracle = self.oracle.select(&open);
        self.objective = self.objective.select(&open);
        self.x = select_rows(&self.x, &open)?;
        self.x_adv = select_rows(&self.x_adv, &open)?;
        self.places = open.iter().map(|i| self.places[*i]).collect();
        Ok(())
    }

    /// The images of all samples, in their order.
    pub(crate) fn images(mut self) -> Result<Tensor> {
        self.end(&vec![true; self.places.len()])?;
        Tensor::stack(&self.ended.into_iter().flatten().collect::<Vec<_>>(), 0)
    }
}

/// The positions that hold `value`.
pub(crate) fn positions(flags: &[bool], value: bool) -> Vec<usize> {
    (0..flags.len()).filter(|i| flags[*i] == value).collect()
}
