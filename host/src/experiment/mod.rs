//! An experiment, from settings to records: plan, craft, score.

mod budgets;
mod cells;
mod ids;
mod images;
mod load;
mod pictures;
mod plan;
mod repeat;
mod rescore;
mod run;
mod score;
mod settings;
mod shard;
mod suite;
mod workers;

pub use budgets::{Budgets, within_range};
pub use ids::{Ids, Purpose};
pub use load::{LoadedModel, load_model, load_recorded};
pub use pictures::png;
pub use plan::{STATIC, adversarially_trained, samples};
pub use rescore::{Rescored, Rescoring};
pub use run::{Outcome, Session};
pub use score::{Batch, Distances, Limits, Scorer, Verdict};
pub use settings::{Backward, Settings, check_device};
pub use shard::Shard;
pub use workers::{Layout, STACK_BYTES, for_each, for_each_batch, on_large_stack, threads};

use crate::results::Cell;
use crate::terminal::cancel::Cancel;
use anyhow::Result;

/// Crafts and scores every cell, or as many as come before a cancellation.
///
/// # Errors
/// Where nothing can be run, or results cannot be read or written.
pub fn outcomes(settings: &Settings, cancel: &Cancel) -> Result<Outcome> {
    outcomes_after(settings, &[], cancel)
}

/// The same, where some cells are known already: their rows are not measured again.
///
/// # Errors
/// As for [`outcomes`].
pub fn outcomes_after(settings: &Settings, known: &[Cell], cancel: &Cancel) -> Result<Outcome> {
    let plan = plan::plan(settings)?;
    let mut session = Session::open(settings)?;
    session.learn(known);
    run::run(&mut session, settings, &plan, cancel)
}

/// One evaluation of several that share a results file, which the first of them opens.
///
/// # Errors
/// As for [`outcomes`].
pub fn outcomes_in(session: &mut Option<Session>, settings: &Settings, cancel: &Cancel) -> Result<Outcome> {
    let plan = plan::plan(settings)?;
    let session = match session {
        Some(session) => session,
        None => session.insert(Session::open(settings)?),
    };
    run::run(session, settings, &plan, cancel)
}
