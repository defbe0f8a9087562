//! Evaluations whose plugins run in a process of their own. This process loads no plugin and alone has the results: where the other dies, the
//! cells it was at have failed, and another one goes on behind them.

use super::messages::{Heard, Reply, Request, heard, said, unchained};
use super::run::{Outcome, Session, both, opened};
use super::settings::Settings;
use crate::isolation::{Event, Limits, Output, Process};
use crate::results::{CellHeader, Collector, Line, Results, Run, lines_of};
use crate::terminal::cancel::Cancel;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::BTreeMap;

/// The hidden command of the process with the plugins.
pub const COMMAND: &str = "serve";

/// Its flag where NVIDIA's libraries may round products.
pub const TF32: &str = "--tf32";

/// What is measured in one go, group by group.
struct Planned(Vec<Vec<CellHeader>>);

/// How a process left off.
enum Left {
    /// With everything done, or stopped.
    Finished(Option<String>),
    /// It died in this group.
    Died(usize, String),
}

/// Measures one evaluation of a series.
///
/// # Errors
/// Where nothing can be run, results cannot be read or written, or a process dies before it has begun with a cell.
pub fn outcome(
    process: &mut Option<Process>,
    session: &mut Option<Session>,
    settings: &Settings,
    limits: Limits,
    cancel: &Cancel,
) -> Result<Outcome> {
    let mut failed = BTreeMap::new();
    loop {
        let running = started(process, settings, limits)?;
        let planned = planned(running, settings, !failed.is_empty(), cancel).inspect_err(|_| *process = None)?;
        if let Some(lock) = &settings.lock {
            lock.check(planned.0.iter().flatten())?;
        }
        let session = opened(session, settings)?;
        let (results, known) = session.parts();
        let mut collector = Collector::after(std::mem::take(known));
        let Some(running) = process else { bail!("no process") };
        let left = measured(running, &planned, &failed, results, &mut collector, cancel);
        let finished = left.and_then(|left| match left {
            Left::Finished(images) => Ok(Some(images)),
            Left::Died(..) if cancel.is_cancelled() => Ok(Some(None)),
            Left::Died(group, why) => {
                fail(&planned.0[group], &why, results, &mut collector)?;
                failed.extend(planned.0[group].iter().map(|header| (header.key.clone(), why.clone())));
                Ok(None)
            }
        });
        let trouble = results.trouble().map(String::from);
        *known = collector.into_records();
        match finished {
            Ok(None) => *process = None,
            Ok(Some(images)) => {
                if cancel.is_cancelled() {
                    *process = None;
                }
                return Ok(came_to(session, &planned, trouble, images));
            }
            Err(error) => {
                *process = None;
                return Err(error);
            }
        }
    }
}

/// The cells of an evaluation, which is not measured.
///
/// # Errors
/// Where something does not load or fit, or the process dies.
pub fn headers(
    process: &mut Option<Process>,
    settings: &Settings,
    limits: Limits,
    cancel: &Cancel,
) -> Result<Vec<CellHeader>> {
    let running = started(process, settings, limits)?;
    let planned = planned(running, settings, false, cancel).inspect_err(|_| *process = None)?;
    Ok(planned.0.into_iter().flatten().collect())
}

fn started<'a>(process: &'a mut Option<Process>, settings: &Settings, limits: Limits) -> Result<&'a mut Process> {
    match process {
        Some(running) => Ok(running),
        None => {
            let folder = settings.save_adversarial.as_deref();
            if let Some(folder) = folder.filter(|_| limits.sandbox) {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("cannot make the folder '{}'", folder.display()))?;
            }
            let mut words = vec![COMMAND.into()];
            if !settings.precision.is_single() {
                words.push(TF32.into());
            }
            Ok(process.insert(Process::start(&words, Output::Errors, limits, folder)?))
        }
    }
}

/// What the evaluation came to.
fn came_to(session: &mut Session, planned: &Planned, rows: Option<String>, images: Option<String>) -> Outcome {
    let (_, known) = session.parts();
    let by_key: BTreeMap<&str, usize> = (known.cells.iter().enumerate())
        .map(|(at, cell)| (cell.header.key.as_str(), at))
        .collect();
    let headers = planned.0.iter().flatten();
    let cells = headers.filter_map(|header| by_key.get(header.key.as_str()));
    Outcome {
        cells: cells.map(|at| known.cells[*at].clone()).collect(),
        runs: known.runs.iter().cloned().chain([Run::here()]).collect(),
        rows: known.cells.iter().map(|cell| cell.rows.len()).sum(),
        trouble: both(rows, images),
    }
}

/// Has the evaluation planned.
fn planned(process: &mut Process, settings: &Settings, again: bool, cancel: &Cancel) -> Result<Planned> {
    process.send(&said(&Request::Plan {
        settings: Box::new(settings.clone()),
        again,
    })?);
    match process.next(cancel) {
        Event::Line(line) => match heard(&line)? {
            Heard::Message(Reply::Planned(groups)) => Ok(Planned(groups)),
            Heard::Message(Reply::Refused(chain)) => Err(unchained(chain)),
            _ => bail!("the process with the plugins answered out of turn"),
        },
        Event::Ended(code) => bail!("the process with the plugins ended with exit code {code}"),
        Event::Died(why) => bail!(why),
    }
}

/// Has measured what was planned, as far as the process comes.
fn measured(
    process: &mut Process,
    planned: &Planned,
    failed: &BTreeMap<String, String>,
    results: &mut Results,
    collector: &mut Collector,
    cancel: &Cancel,
) -> Result<Left> {
    for cell in planned
        .0
        .iter()
        .flatten()
        .filter_map(|header| collector.cell(&header.key))
    {
        for line in lines_of(cell) {
            process.send(&format!("{}\n", line.write()?));
        }
    }
    process.send(&said(&Request::Measure { failed: failed.clone() })?);
    let mut group = None;
    loop {
        let why = match process.next(cancel) {
            Event::Line(line) => match take(&line, planned, group, results, collector) {
                Ok(None) => continue,
                Ok(Some(Reply::Begins(number))) => {
                    group = Some(number);
                    continue;
                }
                Ok(Some(Reply::Finished { trouble })) => return Ok(Left::Finished(trouble)),
                Ok(Some(Reply::Refused(chain))) => return Err(unchained(chain)),
                Ok(Some(Reply::Planned(_))) => "the process with the plugins answered out of turn".into(),
                Err(error) => format!("the process with the plugins said what is no result: {error:#}"),
            },
            Event::Ended(code) => format!("the process with the plugins ended with exit code {code}"),
            Event::Died(why) => why,
        };
        return match group {
            Some(group) => Ok(Left::Died(group, why)),
            None => Err(anyhow!(why)),
        };
    }
}

/// Takes a line. Results are those of the group that has begun, and of no sample twice.
fn take(
    line: &str,
    planned: &Planned,
    group: Option<usize>,
    results: &mut Results,
    collector: &mut Collector,
) -> Result<Option<Reply>> {
    match heard(line)? {
        Heard::Message(Reply::Begins(group)) if group >= planned.0.len() => bail!("a group that was not planned"),
        Heard::Message(reply) => Ok(Some(reply)),
        Heard::Result => {
            let read = Line::read(line)?;
            let key = read.cell().context("a line that belongs to no cell")?;
            let group = group
                .and_then(|group| planned.0.get(group))
                .context("a line before any group")?;
            if !group.iter().any(|header| header.key == key) {
                bail!("a line of the cell '{key}', which is not at hand");
            }
            if let Line::Sample(row) = &read {
                let twice = collector.cell(key).is_some_and(|cell| cell.rows.contains_key(&row.id));
                if twice {
                    bail!("sample {} of the cell '{key}' twice", row.id);
                }
            }
            // Before it is written: what does not go with the others never is.
            if let Line::Cell(header) = read {
                collector.take(Line::Cell(header.clone()))?;
                results.begin(&header)?;
            } else {
                collector.take(read)?;
                results.pass_on(line);
            }
            Ok(None)
        }
    }
}

/// Notes that the cells of a group have failed that lack samples, and that the others are done.
fn fail(group: &[CellHeader], why: &str, results: &mut Results, collector: &mut Collector) -> Result<()> {
    for header in group {
        if collector.cell(&header.key).is_none() {
            results.begin(header)?;
            collector.take(Line::Cell(Box::new(header.clone())))?;
        }
        let rows = collector.cell(&header.key).map_or(0, |cell| cell.rows.len());
        if rows < header.samples {
            collector.take(Line::Failed {
                cell: header.key.clone(),
                error: why.into(),
            })?;
        }
        if let Some(cell) = collector.cell(&header.key) {
            results.end(cell)?;
        }
    }
    Ok(())
}
