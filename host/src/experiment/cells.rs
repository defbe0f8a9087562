//! Cells that share their crafting, and how one such group runs.

use super::images::Images;
use super::load::LoadedModel;
use super::score::{Batch, Limits, Scorer, Verdict};
use super::workers::{Layout, for_each_batch};
use crate::results::{CellHeader, Previous, Results, Row, Substitute};
use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Progress;
use crate::wire::attack::{Attack, Perturbed};
use crate::wire::oracle::{Meter, Oracle, Rules, target};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use crate::wire::threat::{Services, ThreatModel};
use advae_abi::info::{Access, Target};
use advae_abi::{AbiError, ErrorCode};
use advae_data::Dataset;
use anyhow::{Result, anyhow};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is crafted once for every cell of a group.
#[derive(Clone)]
pub struct Crafting {
    /// Under attack.
    pub classifier: LoadedModel,
    /// What the attacker knows.
    pub threat_model: ThreatModel,
    /// Its declaration.
    pub access: Access,
    /// Attack.
    pub attack: Attack,
    /// Budget and bounds.
    pub limits: Limits,
    /// Whether decided samples may be left alone.
    pub early_stop: bool,
    /// Draws gradients are averaged over.
    pub eot: u64,
}

/// Cells that share their crafting.
pub struct Group {
    /// What is crafted.
    pub crafting: Crafting,
    /// What scores it.
    pub cells: Vec<(CellHeader, Pipeline)>,
}

/// What became of a cell.
pub struct CellOutcome {
    /// Its header.
    pub header: CellHeader,
    /// Its rows, in the dataset's order.
    pub rows: Vec<Row>,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// Share of input gradients that were zero without reason.
    pub zero_gradients: Option<f64>,
    /// Label queries.
    pub queries: u64,
    /// What was attacked in place of the whole model.
    pub substitute: Option<Substitute>,
    /// Passes a sample may need.
    pub passes: u64,
    /// Shape of the images.
    pub shape: [usize; 3],
}

impl CellOutcome {
    /// Whether it failed or has all its rows.
    pub fn is_whole(&self) -> bool {
        self.error.is_some() || self.rows.len() == self.header.samples
    }
}

/// What all groups of a run share.
pub struct Run<'a> {
    /// Samples.
    pub dataset: &'a Dataset,
    /// Images for the attacker.
    pub seeds: Option<Arc<Dataset>>,
    /// Seed of the experiment.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// Samples a micro-batch.
    pub batch: Option<usize>,
    /// Rows of earlier runs.
    pub previous: &'a Previous,
    /// Where rows go.
    pub results: &'a Mutex<Results>,
    /// Where images go.
    pub images: &'a Images,
    /// The bar.
    pub progress: &'a Progress,
    /// Stops the run.
    pub cancel: &'a Cancel,
}

/// A cell while it runs.
struct Live<'a> {
    header: &'a CellHeader,
    scorer: Scorer,
    clean: BTreeMap<u64, Verdict>,
    rows: Mutex<BTreeMap<u64, Row>>,
    error: Mutex<Option<anyhow::Error>>,
    substitute: Mutex<Option<Substitute>>,
}

impl Live<'_> {
    fn fail(&self, error: anyhow::Error) {
        lock(&self.error).get_or_insert(error);
    }

    fn failed(&self) -> bool {
        lock(&self.error).is_some()
    }
}

impl Run<'_> {
    /// Crafts and scores the group's cells. A failure of one cell is told in its outcome.
    ///
    /// # Errors
    /// Where results cannot be written.
    pub fn group(&self, group: &Group) -> Result<Vec<CellOutcome>> {
        let layout = self.layout(group);
        let meter = Arc::new(Meter::default());
        let mut cells: Vec<Live> = group
            .cells
            .iter()
            .map(|(header, pipeline)| self.live(header, pipeline, layout))
            .collect();
        for cell in &mut cells {
            lock(self.results).begin(cell.header)?;
        }
        let missing = self.missing(&cells);
        let passes = group.crafting.attack.info().passes.max(1);
        self.progress.skip(passes * (self.dataset.len() - missing.len()) as u64);
        if let Err(error) = self.attack(group, &mut cells, &missing, layout, &meter) {
            let text = format!("{error:#}");
            let again = || match error.downcast_ref::<AbiError>().filter(|_| is_cancelled(&error)) {
                Some(cancelled) => anyhow!(cancelled.clone()),
                None => anyhow!(text.clone()),
            };
            cells
                .iter()
                .filter(|cell| lock(&cell.rows).len() < self.dataset.len())
                .for_each(|cell| cell.fail(again()));
        }
        cells
            .into_iter()
            .map(|cell| self.outcome(cell, &meter, passes))
            .collect()
    }

    fn layout(&self, group: &Group) -> Layout {
        let models = group.cells.iter().flat_map(|(_, pipeline)| pipeline.models());
        Layout::of(models, self.threads, self.batch)
    }

    fn live<'a>(&self, header: &'a CellHeader, pipeline: &Pipeline, layout: Layout) -> Live<'a> {
        let scorer = Scorer {
            pipeline: pipeline.clone(),
            seed: self.seed,
            draws: header.config.draws,
            call_threads: layout.call_threads,
        };
        let known = self.previous.rows.get(&header.key).cloned().unwrap_or_default();
        let here = |id: &u64| self.dataset.ids.contains(id);
        let rows = known.into_iter().filter(|(id, _)| here(id)).collect();
        Live {
            header,
            scorer,
            clean: BTreeMap::new(),
            rows: Mutex::new(rows),
            error: Mutex::new(None),
            substitute: Mutex::new(self.previous.substitutes.get(&header.key).copied()),
        }
    }

    /// Positions of samples that some cell still lacks.
    fn missing(&self, cells: &[Live]) -> Vec<usize> {
        let lacks =
            |cell: &Live, id: &u64| !lock(&cell.rows).contains_key(id) || !self.images.has(&cell.header.key, *id);
        let ids = self.dataset.ids.iter().enumerate();
        ids.filter(|(_, id)| cells.iter().any(|cell| lacks(cell, id)))
            .map(|(i, _)| i)
            .collect()
    }

    fn attack(
        &self,
        group: &Group,
        cells: &mut [Live],
        missing: &[usize],
        layout: Layout,
        meter: &Arc<Meter>,
    ) -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        for cell in cells.iter_mut() {
            match self.classify_clean(cell, missing, layout) {
                Ok(clean) => cell.clean = clean,
                Err(error) => cell.fail(error),
            }
        }
        let cells = &*cells;
        if cells.iter().all(Live::failed) {
            return Ok(());
        }
        let rules = self.prepare(group, cells, layout, meter)?;
        for_each_batch(layout, missing, |batch| self.batch(group, cells, batch, layout, &rules))
    }

    fn classify_clean(&self, cell: &Live, samples: &[usize], layout: Layout) -> Result<BTreeMap<u64, Verdict>> {
        let verdicts = Mutex::new(BTreeMap::new());
        for_each_batch(layout, samples, |batch| {
            self.cancel.check()?;
            let batch = self.select(batch);
            let classified = cell.scorer.classify(&batch)?;
            lock(&verdicts).extend(batch.ids.iter().copied().zip(classified));
            Ok(())
        })?;
        Ok(verdicts.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn prepare(&self, group: &Group, cells: &[Live], layout: Layout, meter: &Arc<Meter>) -> Result<Rules> {
        let Crafting {
            classifier,
            threat_model,
            access,
            early_stop,
            eot,
            ..
        } = &group.crafting;
        let Some((_, pipeline)) = group.cells.first() else {
            return Err(anyhow!("a group without cells"));
        };
        self.cancel.check()?;
        let services = Services {
            architecture: classifier.plugin.clone(),
            request: classifier.request.clone(),
            pipeline: pipeline.clone(),
            seeds: self.seeds.clone(),
            access: access.clone(),
            seed: self.seed,
            call_threads: self.threads,
            meter: meter.clone(),
            cancel: self.cancel.clone(),
        };
        let substitute = threat_model.prepare(&Call::craft(self.seed, &[]).with_threads(self.threads), services)?;
        let attacked = target(access, pipeline, substitute.map(Pipeline::undefended))?;
        if access.target == Target::Substitute {
            cells
                .iter()
                .try_for_each(|cell| self.compare(cell, &attacked, layout, meter))?;
        }
        Ok(Rules {
            // The labels a black box gives are those of the whole model, whatever else is attacked in its stead.
            labelled: match access.target {
                Target::Classifier => attacked.clone(),
                _ => pipeline.clone(),
            },
            target: attacked,
            access: access.clone(),
            seed: self.seed,
            eot: *eot,
            early_stop: *early_stop,
            call_threads: layout.call_threads,
            flags: 0,
            meter: meter.clone(),
            cancel: self.cancel.clone(),
        })
    }

    /// Measures how far the substitute agrees with the whole model on clean images.
    fn compare(&self, cell: &Live, substitute: &Pipeline, layout: Layout, meter: &Meter) -> Result<()> {
        let agreeing = AtomicUsize::new(0);
        let all: Vec<usize> = (0..self.dataset.len()).collect();
        for_each_batch(layout, &all, |samples| {
            self.cancel.check()?;
            let batch = self.select(samples);
            let call = Call::score(self.seed, &batch.ids).with_threads(layout.call_threads);
            let said = substitute.forward(&call, &batch.x)?.argmax();
            let rows = lock(&cell.rows);
            let whole = |id: &u64| match rows.get(id) {
                Some(row) => Some(row.clean_prediction),
                None => cell.clean.get(id).map(|verdict| verdict.prediction),
            };
            let same = batch.ids.iter().zip(said).filter(|(id, said)| whole(id) == Some(*said));
            agreeing.fetch_add(same.count(), Ordering::Relaxed);
            Ok(())
        })?;
        let substitute = Substitute {
            queries: meter.queries(),
            agreeing: agreeing.into_inner(),
            of: self.dataset.len(),
        };
        *lock(&cell.substitute) = Some(substitute);
        lock(self.results).prepared(&cell.header.key, substitute)
    }

    fn batch(&self, group: &Group, cells: &[Live], samples: &[usize], layout: Layout, rules: &Rules) -> Result<()> {
        let batch = self.select(samples);
        let start = Instant::now();
        let perturbed = self.craft(&group.crafting, &batch, rules)?;
        let crafting = start.elapsed();
        for cell in cells.iter().filter(|cell| !cell.failed()) {
            let start = Instant::now();
            let clean: Vec<Verdict> = batch.ids.iter().map(|id| cell.clean[id]).collect();
            let scored = cell
                .scorer
                .score(&cell.header.key, &group.crafting.limits, &batch, &clean, &perturbed);
            let mut rows = match scored {
                Ok(rows) => rows,
                Err(error) => {
                    cell.fail(error);
                    continue;
                }
            };
            let seconds = (crafting + start.elapsed()).as_secs_f64() / (layout.workers * rows.len()) as f64;
            rows.iter_mut().for_each(|row| row.seconds = seconds);
            self.images.keep(&cell.header.key, &batch, &perturbed);
            self.keep(cell, rows)?;
        }
        Ok(())
    }

    fn keep(&self, cell: &Live, rows: Vec<Row>) -> Result<()> {
        let mut known = lock(&cell.rows);
        let new: Vec<Row> = rows.into_iter().filter(|row| !known.contains_key(&row.id)).collect();
        lock(self.results).append(&new)?;
        known.extend(new.into_iter().map(|row| (row.id, row)));
        Ok(())
    }

    fn craft(&self, crafting: &Crafting, batch: &Batch, rules: &Rules) -> Result<Perturbed> {
        let attack = &crafting.attack;
        let ticker = self
            .progress
            .ticker(attack.info().passes.max(1) * batch.ids.len() as u64);
        let (oracle, state) = Oracle::boxed(rules.clone(), &batch.ids, &batch.y, ticker.clone());
        let call = Call::craft(self.seed, &batch.ids).with_threads(rules.call_threads);
        let perturbed = attack.perturb(&call, &oracle, &batch.x, &batch.y);
        ticker.complete();
        match state.first_error() {
            // An attack that swallowed the error has not seen what it was to attack.
            Some(error) => Err(anyhow!(error).context(format!("attack '{}'", attack.name()))),
            None => perturbed,
        }
    }

    fn select(&self, samples: &[usize]) -> Batch {
        let [c, h, w] = self.dataset.shape;
        let data = samples.iter().flat_map(|i| self.dataset.image(*i)).copied().collect();
        Batch {
            ids: samples.iter().map(|i| self.dataset.ids[*i]).collect(),
            x: Tensor {
                shape: vec![samples.len(), c, h, w],
                data,
            },
            y: samples.iter().map(|i| self.dataset.labels[*i]).collect(),
        }
    }

    fn outcome(&self, cell: Live, meter: &Meter, passes: u64) -> Result<CellOutcome> {
        let error = cell.error.into_inner().unwrap_or_else(PoisonError::into_inner);
        let cancelled = error.as_ref().is_some_and(is_cancelled);
        let substitute = *lock(&cell.substitute);
        let error = error.filter(|_| !cancelled).map(|e| format!("{e:#}"));
        if let Some(error) = &error {
            lock(self.results).fail(&cell.header.key, error)?;
        }
        self.images.save(cell.header, self.dataset)?;
        let mut rows = cell.rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(CellOutcome {
            header: cell.header.clone(),
            rows: self.dataset.ids.iter().filter_map(|id| rows.remove(id)).collect(),
            error,
            zero_gradients: meter.zero_gradient_share(),
            queries: meter.queries().max(substitute.map_or(0, |s| s.queries)),
            substitute,
            passes,
            shape: self.dataset.shape,
        })
    }
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<AbiError>()
        .is_some_and(|e| e.is(ErrorCode::Cancelled))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
