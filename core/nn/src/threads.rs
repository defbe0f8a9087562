//! How many threads the kernels may use.
//!
//! The count belongs to the calling thread and is 1 unless [`with_threads`] says otherwise, so workers
//! that each run a whole attack never compete. Work is cut into chunks that depend on shapes alone and
//! partial sums are added in the order of the chunks: results are the same for any count.
//!
//! candle's own element-wise operators, which also add up the gradients on a tape, know nothing of this: from
//! 65,536 elements on they run on one pool of the process and wait for it, spinning. A program whose workers
//! run tapes should set `CANDLE_NUM_THREADS=1` before the first tensor is made; on two busy cores an input
//! gradient was 2 to 3 times slower without.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use crate::kernels::vector::{choice, with_choice};

thread_local! {
    static THREADS: Cell<usize> = const { Cell::new(1) };
}

/// Number of threads kernels called from this thread may use.
pub fn threads() -> usize {
    THREADS.get()
}

/// Runs `f` with kernels allowed `n` threads (at least 1). Results do not depend on `n`.
pub fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> R {
    let _restore = Restore(THREADS.replace(n.max(1)));
    f()
}

/// Puts the former count back, also when `f` panics.
struct Restore(usize);

impl Drop for Restore {
    fn drop(&mut self) {
        THREADS.set(self.0);
    }
}

/// Calls `f(i, chunk)` for the chunks of `out`, of `len` elements each, on as many threads as allowed.
pub(crate) fn for_each_chunk<T: Send>(out: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Send + Sync) {
    if out.is_empty() {
        return;
    }
    match pool(threads().min(out.len().div_ceil(len))) {
        None => out.chunks_mut(len).enumerate().for_each(|(i, c)| f(i, c)),
        Some(pool) => {
            let choice = choice();
            let f = |(i, chunk): (usize, &mut [T])| with_choice(choice, || f(i, chunk));
            pool.install(|| out.par_chunks_mut(len).enumerate().for_each(f));
        }
    }
}

/// The pool of `n` threads; none for a single one, or where one cannot be had.
fn pool(n: usize) -> Option<Arc<rayon::ThreadPool>> {
    static POOLS: OnceLock<Mutex<HashMap<usize, Arc<rayon::ThreadPool>>>> = OnceLock::new();
    if n <= 1 {
        return None;
    }
    let mut pools = POOLS
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&n) {
        return Some(pool.clone());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().ok()?;
    Some(pools.entry(n).or_insert(Arc::new(pool)).clone())
}
