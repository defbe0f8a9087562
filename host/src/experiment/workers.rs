//! Worker threads: each takes micro-batches until none is left.

use crate::wire::model::Model;
use advae_abi::info::{ModelInfo, Threading};
use anyhow::{Result, anyhow, ensure};
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Stack of every thread that calls plugins: candle walks graphs recursively.
pub const STACK_BYTES: usize = 64 << 20;

/// Threads to use: as many as `--threads` asks for, or all cores.
///
/// # Errors
/// If 0 are asked for.
pub fn threads(asked: Option<usize>) -> Result<usize> {
    ensure!(asked != Some(0), "--threads is 0: give 1 or more");
    Ok(asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)))
}

/// How a set of samples is cut and spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of workers.
    pub workers: usize,
    /// Samples a micro-batch.
    pub batch: usize,
    /// Threads a plugin may use in one call.
    pub call_threads: usize,
}

impl Layout {
    /// For calls of these models: many workers with small batches, as large as the model that wants the smallest says (an expensive one,
    /// that work may be interrupted between); or one worker with large ones, where a plugin threads by itself or hands tensors over on a
    /// device, which orders them by thread.
    pub fn of<'a>(models: impl Iterator<Item = &'a Model>, threads: usize, batch: Option<usize>) -> Self {
        let models: Vec<&Model> = models.collect();
        let infos: Vec<&ModelInfo> = models.iter().map(|model| model.info()).collect();
        let internal = |info: &&&ModelInfo| info.threading == Threading::Internal;
        let wanted = infos.iter().filter_map(|info| info.batch).min();
        let alone = infos.iter().any(|info| internal(&info)) || models.iter().any(|model| model.on_device());
        match alone {
            true => Self {
                workers: 1,
                batch: batch
                    .or(infos.iter().filter(internal).filter_map(|info| info.batch).min())
                    .unwrap_or(128),
                call_threads: threads,
            },
            false => Self {
                workers: threads,
                batch: batch.or(wanted).unwrap_or(16),
                call_threads: 1,
            },
        }
    }

    /// The samples cut into micro-batches of nearly one size, as many for every worker.
    pub fn cut<'a>(&self, samples: &'a [usize]) -> Vec<&'a [usize]> {
        let count = samples
            .len()
            .div_ceil(self.batch.max(1))
            .next_multiple_of(self.workers.max(1));
        samples.chunks(samples.len().div_ceil(count.max(1)).max(1)).collect()
    }
}

/// Runs `work` on every micro-batch. The first error stops the others after the batch they are at.
///
/// # Errors
/// An error of `work`, or a panic inside it.
pub fn for_each_batch(layout: Layout, samples: &[usize], work: impl Fn(&[usize]) -> Result<()> + Sync) -> Result<()> {
    let batches = layout.cut(samples);
    for_each(layout.workers, batches.len(), |i| work(batches[i])).map(|_| ())
}

thread_local! {
    /// Whether the thread was started here: its stack is large enough for plugin calls.
    static LARGE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on `0..n`, one item after the other on each of `workers` threads, and returns the answers in order. A single worker is the
/// caller's thread, where its stack is large enough: what libraries keep for a thread, such as a GPU's stream and handles, is made once.
///
/// # Errors
/// An error of `work`, or a panic inside it.
pub fn for_each<T: Send>(workers: usize, n: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = || {
        let mut done = vec![];
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                break;
            }
            done.push((i, work(i).inspect_err(|_| stop.store(true, Ordering::Relaxed))?));
        }
        Ok(done)
    };
    let workers = workers.clamp(1, n.max(1));
    let mut done: Vec<(usize, T)> = match workers == 1 && LARGE.get() {
        true => ended(std::panic::catch_unwind(AssertUnwindSafe(worker)))?,
        false => on_threads(workers, worker)?.into_iter().flatten().collect(),
    };
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, answer)| answer).collect())
}

fn on_threads<T: Send>(workers: usize, worker: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    let worker = &worker;
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| spawn(scope, worker)).collect();
        let joined = handles.into_iter().map(|handle| join(handle?)).collect::<Vec<_>>();
        joined.into_iter().collect()
    })
}

/// Starts a thread whose stack is large enough for plugin calls.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, Result<T>>> {
    let run = || {
        LARGE.set(true);
        work()
    };
    Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run)
}

fn join<T>(handle: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    ended(handle.join())
}

fn ended<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|p| Err(anyhow!("a worker panicked: {}", advae_abi::panic_message(p.as_ref()))))
}

/// Runs `work` on a thread whose stack is large enough for plugin calls.
///
/// # Errors
/// What `work` answers, or a panic inside it.
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| join(spawn(scope, work)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::thread::current;

    fn layout(workers: usize, batch: usize) -> Layout {
        Layout {
            workers,
            batch,
            call_threads: 1,
        }
    }

    #[test]
    fn no_threads_are_refused() {
        assert_eq!(threads(Some(3)).unwrap(), 3);
        assert!(threads(None).unwrap() >= 1);
        let error = threads(Some(0)).unwrap_err().to_string();
        assert_eq!(error, "--threads is 0: give 1 or more");
    }

    #[test]
    fn every_sample_is_visited_once() {
        for (threads, batch) in [(1, 1), (3, 4), (8, 100)] {
            let seen = Mutex::new(vec![]);
            let samples: Vec<usize> = (0..50).collect();
            for_each_batch(layout(threads, batch), &samples, |b| {
                seen.lock().unwrap().extend_from_slice(b);
                Ok(())
            })
            .unwrap();
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            assert_eq!(seen, samples);
        }
    }

    #[test]
    fn errors_and_panics_come_out() {
        let layout = layout(2, 1);
        let error = for_each_batch(layout, &[0, 1, 2], |_| Err(anyhow!("no"))).unwrap_err();
        assert_eq!(error.to_string(), "no");
        let error = for_each_batch(layout, &[0], |_| panic!("boom")).unwrap_err();
        assert!(error.to_string().contains("boom"));
        assert!(on_large_stack(|| Ok(1)).is_ok());
    }

    #[test]
    fn answers_come_in_order() {
        assert_eq!(
            for_each(3, 20, |i| Ok(i * i)).unwrap(),
            (0..20).map(|i| i * i).collect::<Vec<_>>()
        );
        assert!(for_each(3, 0, |_| Ok(())).unwrap().is_empty());
    }

    #[test]
    fn every_worker_has_as_many_batches() {
        let sizes = |layout: Layout, n: usize| -> Vec<usize> {
            layout
                .cut(&(0..n).collect::<Vec<_>>())
                .iter()
                .map(|b| b.len())
                .collect()
        };
        assert_eq!(sizes(layout(4, 16), 6), [2, 2, 2]);
        assert_eq!(sizes(layout(2, 24), 100), [17, 17, 17, 17, 17, 15]);
        assert_eq!(sizes(layout(1, 24), 48), [24, 24]);
        assert!(sizes(layout(2, 24), 0).is_empty());
    }

    #[test]
    fn a_single_worker_is_the_callers_thread_where_its_stack_is_large() {
        let ids = |workers| for_each(workers, 3, |_| Ok(current().id())).unwrap();
        assert!(
            !ids(1).contains(&current().id()),
            "a thread of the tests has a small stack"
        );
        on_large_stack(|| {
            let own = current().id();
            assert!(ids(1).iter().all(|id| *id == own) && !ids(2).contains(&own));
            let panics = for_each(1, 1, |_| -> Result<()> { panic!("as asked") });
            assert_eq!(panics.unwrap_err().to_string(), "a worker panicked: as asked");
            Ok(())
        })
        .unwrap();
    }
}
