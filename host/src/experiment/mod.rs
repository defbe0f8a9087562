//! An experiment, from settings to records: plan, craft, score.

mod apart;
mod budgets;
mod cells;
mod ids;
mod images;
mod load;
mod lock;
mod messages;
mod pictures;
mod plan;
mod repeat;
mod rescore;
mod run;
mod score;
mod service;
mod settings;
mod shard;
mod suite;
mod workers;

pub use apart::{COMMAND, TF32};
pub use budgets::{Budgets, within_range};
pub use ids::{Ids, Purpose};
pub use load::{LoadedModel, load_model, load_recorded};
pub use lock::Lock;
pub use pictures::png;
pub use plan::{STATIC, adversarially_trained, samples};
pub use rescore::{Rescored, Rescoring};
pub use run::Outcome;
pub use score::{Batch, Distances, Limits, Scorer, Verdict};
pub use service::serve;
pub use settings::{Backward, Settings, check_device};
pub use shard::Shard;
pub use workers::{Layout, STACK_BYTES, for_each, for_each_batch, on_large_stack, threads};

use crate::isolation::Process;
use crate::results::{Cell, CellHeader};
use crate::terminal::cancel::Cancel;
use anyhow::Result;
use run::{Session, opened};

/// Evaluations that share a results file, which the first of them opens, and the process that runs their plugins, where one does.
#[derive(Default)]
pub struct Series {
    session: Option<Session>,
    process: Option<Process>,
}

impl Series {
    /// Opens the results file before anything is planned, where that has not been done.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn open(&mut self, settings: &Settings) -> Result<()> {
        opened(&mut self.session, settings).map(|_| ())
    }

    /// Crafts and scores every cell of the next evaluation, or as many as come before a cancellation.
    ///
    /// # Errors
    /// Where nothing can be run, or results cannot be read or written.
    pub fn outcomes(&mut self, settings: &Settings, cancel: &Cancel) -> Result<Outcome> {
        if let Some(limits) = settings.isolation {
            return apart::outcome(&mut self.process, &mut self.session, settings, limits, cancel);
        }
        let plan = plan::plan(settings)?;
        if let Some(lock) = &settings.lock {
            lock.check(plan.headers())?;
        }
        run::run(opened(&mut self.session, settings)?, settings, &plan, cancel)
    }

    /// The cells of an evaluation, which is not measured.
    ///
    /// # Errors
    /// Where something does not load or fit.
    pub fn headers(&mut self, settings: &Settings, cancel: &Cancel) -> Result<Vec<CellHeader>> {
        match settings.isolation {
            Some(limits) => apart::headers(&mut self.process, settings, limits, cancel),
            None => Ok(plan::plan(settings)?.headers().cloned().collect()),
        }
    }
}

/// Crafts and scores every cell, or as many as come before a cancellation.
///
/// # Errors
/// As for [`Series::outcomes`].
pub fn outcomes(settings: &Settings, cancel: &Cancel) -> Result<Outcome> {
    Series::default().outcomes(settings, cancel)
}

/// The same in this process, where some cells are known already: their rows are not measured again.
///
/// # Errors
/// As for [`Series::outcomes`].
pub fn outcomes_after(settings: &Settings, known: &[Cell], cancel: &Cancel) -> Result<Outcome> {
    let plan = plan::plan(settings)?;
    let mut session = Session::open(settings)?;
    session.learn(known);
    run::run(&mut session, settings, &plan, cancel)
}
