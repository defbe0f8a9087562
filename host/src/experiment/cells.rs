//! Cells that share their crafting, and how one such group runs.

use super::ids::{Ids, Purpose};
use super::images::Images;
use super::load::LoadedModel;
use super::pictures;
use super::repeat::{Chosen, Scored, repeat};
use super::score::{Batch, Limits, Scorer, Verdict};
use super::workers::{Layout, for_each_batch};
use crate::results::{Cell, CellHeader, Check, Picture, Precision, Records, Results, Row, Substitute};
use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Progress;
use crate::wire::attack::{Attack, Perturbed};
use crate::wire::model::Model;
use crate::wire::oracle::{Meter, Rules, target};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::Call;
use crate::wire::threat::{Services, ThreatModel};
use advae_abi::info::{Access, Target};
use advae_abi::{AbiError, ErrorCode};
use advae_data::Dataset;
use anyhow::{Result, anyhow};
use std::collections::{BTreeMap, HashMap};
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
    /// Whether the attacker knows the draw that scores.
    pub known_draw: bool,
    /// Bits a pixel that images are rounded to before they are scored.
    pub quantize: Option<u32>,
    /// How a GPU computes.
    pub precision: Precision,
}

/// Cells that share their crafting.
pub struct Group {
    /// What is crafted.
    pub crafting: Crafting,
    /// What scores it.
    pub cells: Vec<(CellHeader, Pipeline)>,
}

/// A substitute, and the label queries that it cost.
#[derive(Clone)]
struct Prepared {
    substitute: Option<Model>,
    queries: u64,
}

/// What threat models prepared, by pipeline and threat model.
#[derive(Default)]
pub struct Substitutes(Mutex<HashMap<String, Prepared>>);

/// What all groups of a run share.
pub struct Run<'a> {
    /// Samples.
    pub dataset: &'a Dataset,
    /// Their ids as plugins see them.
    pub ids: Ids,
    /// Those of which the scoring is repeated.
    pub chosen: Chosen,
    /// Samples that pictures are kept of.
    pub pictured: Vec<u64>,
    /// Images for the attacker.
    pub seeds: Option<Arc<Dataset>>,
    /// Seed of the experiment.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// Samples a micro-batch.
    pub batch: Option<usize>,
    /// What earlier runs measured.
    pub previous: &'a Records,
    /// Where rows go.
    pub results: &'a Mutex<Results>,
    /// Where images go.
    pub images: &'a Images,
    /// The bar.
    pub progress: &'a Progress,
    /// Number of cells.
    pub cells: usize,
    /// Stops the run.
    pub cancel: &'a Cancel,
    /// What was prepared so far.
    pub substitutes: Substitutes,
}

/// A cell while it runs.
struct Live<'a> {
    header: &'a CellHeader,
    scorer: Scorer,
    clean: BTreeMap<u64, Verdict>,
    cell: Mutex<Cell>,
    error: Mutex<Option<anyhow::Error>>,
}

impl Live<'_> {
    fn fail(&self, error: anyhow::Error) {
        lock(&self.error).get_or_insert(error);
    }

    fn failed(&self) -> bool {
        lock(&self.error).is_some()
    }

    fn lacks(&self, id: u64) -> bool {
        !lock(&self.cell).rows.contains_key(&id)
    }

    /// Whether its row is that of the stage before, which has the image.
    fn carries(&self, id: u64) -> bool {
        lock(&self.cell).rows.get(&id).is_some_and(|row| row.carried)
    }
}

/// Wall-clock time of a group, with that of earlier runs.
struct Clock {
    start: Instant,
    before: f64,
}

impl Clock {
    fn now(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }
}

/// What the workers of a group share.
struct Work<'a> {
    group: &'a Group,
    cells: &'a [Live<'a>],
    rules: Rules,
    clock: &'a Clock,
}

impl Run<'_> {
    /// Crafts and scores the group's cells, among them those of `done` groups that a stage goes on with. A failure of one cell is told in
    /// its record.
    ///
    /// # Errors
    /// Where results cannot be written.
    pub fn group(&self, group: &Group, done: &[Cell]) -> Result<Vec<Cell>> {
        let layout = self.layout(group);
        let mut cells: Vec<Live> = group
            .cells
            .iter()
            .map(|(header, pipeline)| self.live(header, pipeline, layout))
            .collect();
        for cell in &cells {
            lock(self.results).begin(&lock(&cell.cell).header)?;
            self.carry(cell, done)?;
        }
        let missing = self.missing(&cells);
        let passes = group.crafting.attack.info().passes.max(1);
        self.progress
            .skip(passes.saturating_mul((self.dataset.len() - missing.len()) as u64));
        let before = cells.iter().map(|cell| lock(&cell.cell).seconds()).fold(0., f64::max);
        let clock = Clock {
            start: Instant::now(),
            before,
        };
        if let Err(error) = self.attack(group, &mut cells, &missing, layout, &clock) {
            let text = format!("{error:#}");
            let lacking = |cell: &&Live| self.dataset.ids.iter().any(|id| cell.lacks(*id));
            let cells = cells.iter().filter(lacking);
            cells.for_each(|cell| cell.fail(anyhow!(text.clone())));
        }
        cells
            .into_iter()
            .map(|cell| self.end(cell, !missing.is_empty()))
            .collect()
    }

    fn layout(&self, group: &Group) -> Layout {
        let models = group.cells.iter().flat_map(|(_, pipeline)| pipeline.models());
        Layout::of(models, self.threads, self.batch)
    }

    fn live<'b>(&self, header: &'b CellHeader, pipeline: &Pipeline, layout: Layout) -> Live<'b> {
        let scorer = Scorer {
            pipeline: pipeline.clone(),
            seed: self.seed,
            draws: header.config.draws,
            call_threads: layout.call_threads,
        };
        let mut cell = Cell::new(header.clone());
        if let Some(known) = self.previous.cell(&header.key) {
            (cell.rows, cell.pictures) = (known.rows.clone(), known.pictures.clone());
            (cell.substitute, cell.check) = (known.substitute, known.check);
            cell.header.samples = header.samples.max(known.rows.len());
        }
        Live {
            header,
            scorer,
            clean: BTreeMap::new(),
            cell: Mutex::new(cell),
            error: Mutex::new(None),
        }
    }

    /// Takes over the rows of samples that fell to the stage before.
    fn carry(&self, live: &Live, done: &[Cell]) -> Result<()> {
        let stage = live.header.config.stage.as_ref();
        let after = stage.and_then(|stage| stage.after.as_ref());
        let Some(before) = after.and_then(|key| done.iter().find(|cell| cell.header.key == *key)) else {
            return Ok(());
        };
        let fallen = self
            .dataset
            .ids
            .iter()
            .filter_map(|id| before.rows.get(id))
            .filter(|row| !row.robust);
        let rows: Vec<Row> = fallen.map(|row| row.carry(&live.header.key)).collect();
        self.keep(live, rows, None)
    }

    /// Positions of samples that some cell still lacks.
    fn missing(&self, cells: &[Live]) -> Vec<usize> {
        let lacks =
            |cell: &Live, id: u64| cell.lacks(id) || !cell.carries(id) && !self.images.has(&cell.header.key, id);
        let ids = self.dataset.ids.iter().enumerate();
        ids.filter(|(_, id)| cells.iter().any(|cell| lacks(cell, **id)))
            .map(|(i, _)| i)
            .collect()
    }

    fn attack(
        &self,
        group: &Group,
        cells: &mut [Live],
        missing: &[usize],
        layout: Layout,
        clock: &Clock,
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
        let rules = self.prepare(group, cells, layout)?;
        let work = Work {
            group,
            cells,
            rules,
            clock,
        };
        for_each_batch(layout, missing, |samples| self.batch(&work, samples))
    }

    fn classify_clean(&self, cell: &Live, samples: &[usize], layout: Layout) -> Result<BTreeMap<u64, Verdict>> {
        let verdicts = Mutex::new(BTreeMap::new());
        for_each_batch(layout, samples, |samples| {
            self.cancel.check()?;
            let batch = self.select(samples);
            let classified = cell.scorer.classify(&batch)?;
            lock(&verdicts).extend(batch.ids.iter().copied().zip(classified));
            Ok(())
        })?;
        Ok(verdicts.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn prepare(&self, group: &Group, cells: &[Live], layout: Layout) -> Result<Rules> {
        let Crafting {
            access,
            early_stop,
            eot,
            ..
        } = &group.crafting;
        let Some((header, pipeline)) = group.cells.first() else {
            return Err(anyhow!("a group without cells"));
        };
        self.cancel.check()?;
        let Prepared { substitute, queries } = self.substitute(&group.crafting, header, pipeline)?;
        let attacked = target(access, pipeline, substitute.map(Pipeline::undefended))?;
        if access.target == Target::Substitute {
            cells
                .iter()
                .try_for_each(|cell| self.compare(cell, &attacked, layout, queries))?;
        }
        let meter = Arc::new(Meter::default());
        // What the substitute cost counts towards the limit of every attack on it.
        meter.charge(queries, None)?;
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
            known_ids: group
                .crafting
                .known_draw
                .then(|| Arc::new(self.ids.crafting_to_scoring(&self.dataset.ids))),
            call_threads: layout.call_threads,
            flags: group.crafting.precision.flags(),
            meter,
            watch: None,
            cancel: self.cancel.clone(),
        })
    }

    /// What the threat model prepares: once a pipeline, whatever attacks follow.
    fn substitute(&self, crafting: &Crafting, header: &CellHeader, pipeline: &Pipeline) -> Result<Prepared> {
        let config = &header.config;
        let key = serde_json::to_string(&(&config.classifier, &config.purifier, &config.threat_model))?;
        let mut prepared = lock(&self.substitutes.0);
        if let Some(known) = prepared.get(&key) {
            return Ok(known.clone());
        }
        let meter = Arc::new(Meter::default());
        let services = Services {
            architecture: crafting.classifier.plugin.clone(),
            request: crafting.classifier.request.clone(),
            pipeline: pipeline.clone(),
            seeds: self.seeds.clone(),
            access: crafting.access.clone(),
            seed: self.seed,
            call_threads: self.threads,
            meter: meter.clone(),
            cancel: self.cancel.clone(),
        };
        let call = Call::craft(self.seed, &[]).with_threads(self.threads);
        let made = Prepared {
            substitute: crafting.threat_model.prepare(&call, services)?,
            queries: meter.queries(),
        };
        prepared.insert(key, made.clone());
        Ok(made)
    }

    /// Measures how far the substitute agrees with the whole model on clean images.
    fn compare(&self, live: &Live, substitute: &Pipeline, layout: Layout, queries: u64) -> Result<()> {
        let agreeing = AtomicUsize::new(0);
        let all: Vec<usize> = (0..self.dataset.len()).collect();
        for_each_batch(layout, &all, |samples| {
            self.cancel.check()?;
            let batch = self.select(samples);
            let call = Call::score(self.seed, &batch.scoring_ids).with_threads(layout.call_threads);
            let said = substitute.forward(&call, &batch.x)?.argmax();
            let cell = lock(&live.cell);
            let whole = |id: &u64| match cell.rows.get(id) {
                Some(row) => Some(row.clean_prediction),
                None => live.clean.get(id).map(|verdict| verdict.prediction),
            };
            let same = batch.ids.iter().zip(said).filter(|(id, said)| whole(id) == Some(*said));
            agreeing.fetch_add(same.count(), Ordering::Relaxed);
            Ok(())
        })?;
        let substitute = Substitute {
            queries,
            agreeing: agreeing.into_inner(),
            of: self.dataset.len(),
        };
        lock(&live.cell).substitute = Some(substitute);
        lock(self.results).prepared(&live.header.key, substitute)
    }

    fn batch(&self, work: &Work, samples: &[usize]) -> Result<()> {
        let batch = self.select(samples);
        let crafting_ids = self.ids.all(Purpose::Craft, &batch.ids);
        let mut perturbed = self.craft(&work.group.crafting, &batch, &crafting_ids, &work.rules)?;
        if let Some(bits) = work.group.crafting.quantize {
            work.group
                .crafting
                .limits
                .quantize(bits, &batch.x, &mut perturbed.x_adv);
        }
        for live in work.cells.iter().filter(|cell| !cell.failed()) {
            let clean: Vec<Verdict> = batch.ids.iter().map(|id| live.clean[id]).collect();
            let limits = work
                .group
                .crafting
                .limits
                .after_rounding(work.group.crafting.quantize, batch.x.row_len());
            let scored = live.scorer.score(&live.header.key, &limits, &batch, &clean, &perturbed);
            let checked = scored.and_then(|rows| {
                let scored = Scored {
                    batch: &batch,
                    clean: &clean,
                    perturbed: &perturbed,
                    rows: &rows,
                };
                Ok((repeat(&live.scorer, &self.ids, &self.chosen, &scored)?, rows))
            });
            let (check, mut rows) = match checked {
                Ok(checked) => checked,
                Err(error) => {
                    live.fail(error);
                    continue;
                }
            };
            let has = |id| lock(&live.cell).pictures.contains_key(&id);
            let places = pictures::wanted(&self.pictured, &batch, has);
            match live.scorer.pictures(&batch, &perturbed, &rows, &places) {
                Ok(pictures) if !pictures.is_empty() => self.show(live, pictures)?,
                Ok(_) => {}
                Err(error) => {
                    live.fail(error);
                    continue;
                }
            }
            let at = work.clock.now();
            for (row, id) in rows.iter_mut().zip(&crafting_ids) {
                let counts = work.rules.meter.of(*id);
                (row.gradients, row.zero_gradients) = (counts.gradients, counts.zero_gradients);
                (row.queries, row.asked, row.at) = (counts.queries, counts.asked, at);
            }
            self.images.keep(&live.header.key, &batch, &perturbed);
            self.keep(live, rows, check)?;
        }
        self.progress.estimate(self.cells);
        Ok(())
    }

    fn keep(&self, live: &Live, rows: Vec<Row>, check: Option<Check>) -> Result<()> {
        let mut cell = lock(&live.cell);
        let new: Vec<Row> = rows
            .into_iter()
            .filter(|row| !cell.rows.contains_key(&row.id))
            .collect();
        if let Some(check) = check {
            cell.check = Some(cell.check.map_or(check, |so_far| so_far.and(check)));
        }
        lock(self.results).append(&live.header.key, &new, cell.check.filter(|_| check.is_some()))?;
        cell.rows.extend(new.into_iter().map(|row| (row.id, row)));
        Ok(())
    }

    fn show(&self, live: &Live, pictures: Vec<Picture>) -> Result<()> {
        lock(self.results).pictures(&live.header.key, &pictures)?;
        lock(&live.cell)
            .pictures
            .extend(pictures.into_iter().map(|p| (p.id, p)));
        Ok(())
    }

    fn craft(&self, crafting: &Crafting, batch: &Batch, ids: &[u64], rules: &Rules) -> Result<Perturbed> {
        let attack = &crafting.attack;
        let ticker = self
            .progress
            .ticker(attack.info().passes.max(1).saturating_mul(batch.ids.len() as u64));
        let call = Call::craft(self.seed, ids).with_threads(rules.call_threads);
        let (perturbed, state) = attack.search(&call, rules.clone(), &batch.x, &batch.y, ticker.clone());
        ticker.complete();
        match state.first_error() {
            // An attack that swallowed the error has not seen what it was to attack.
            Some(error) => Err(anyhow!(error).context(format!("attack '{}'", attack.name()))),
            None => perturbed,
        }
    }

    fn select(&self, samples: &[usize]) -> Batch {
        Batch::of(self.dataset, &self.ids, samples)
    }

    /// Writes how the cell ended. `worked`: whether anything was left to do.
    fn end(&self, live: Live, worked: bool) -> Result<Cell> {
        let error = live.error.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut cell = live.cell.into_inner().unwrap_or_else(PoisonError::into_inner);
        // While the run is being stopped a failure is the stop's, whatever a plugin makes of it.
        let stopped = self.cancel.is_cancelled() || error.as_ref().is_some_and(is_cancelled);
        let scored = self.dataset.ids.iter().filter(|id| cell.rows.contains_key(id)).count();
        let incomplete = || {
            let lacking = scored < self.dataset.len();
            lacking.then(|| {
                anyhow!(
                    "only {scored} of {} samples came back from the attack",
                    self.dataset.len()
                )
            })
        };
        let error = error.or_else(incomplete).filter(|_| !stopped);
        cell.failed = error.map(|error| self.ids.reveal(&format!("{error:#}"), &self.dataset.ids));
        // Taken in any case, that they are forgotten; a cell without work has its file.
        if let Some(images) = (self.images.take(live.header, self.dataset.shape)?).filter(|_| worked) {
            lock(self.results).images(&live.header.key, images.sha256())?;
            self.images.write(live.header, &images);
        }
        if worked && !stopped {
            lock(self.results).end(&cell)?;
        }
        Ok(cell)
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
