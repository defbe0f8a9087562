//! What the host waits for: the calls of plugins that have not returned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A call in progress.
struct InProgress {
    number: u64,
    callee: Arc<str>,
    function: &'static str,
}

static CALLS: Mutex<Vec<InProgress>> = Mutex::new(Vec::new());

/// A call in progress, until it is dropped.
pub struct Waiting(u64);

impl Waiting {
    /// For a function of `callee`, such as `forward` of `classifier 'model_x'`.
    pub fn for_call(callee: Arc<str>, function: &'static str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        calls().push(InProgress {
            number,
            callee,
            function,
        });
        Self(number)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut calls = calls();
        // The last to begin is mostly the first to end.
        if let Some(at) = calls.iter().rposition(|call| call.number == self.0) {
            calls.remove(at);
        }
    }
}

/// The calls in progress, each once, those that began first in front: `attack 'pgd' (perturb), classifier 'model_x' (forward)`.
pub fn in_progress() -> Option<String> {
    let mut names: Vec<String> = vec![];
    for call in calls().iter() {
        let name = format!("{} ({})", call.callee, call.function);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    (!names.is_empty()).then(|| names.join(", "))
}

fn calls() -> MutexGuard<'static, Vec<InProgress>> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_named_once_in_the_order_of_their_beginning() {
        let call = |callee: &str, function| Waiting::for_call(callee.into(), function);
        let (outer, inner) = (call("attack 'w'", "perturb"), call("classifier 'w'", "forward"));
        let _other_worker = call("attack 'w'", "perturb");
        // Other tests of this process may be in calls of their own.
        let said = in_progress().unwrap();
        assert!(
            said.contains("attack 'w' (perturb), ") && said.matches("attack 'w'").count() == 1,
            "{said}"
        );
        assert!(said.find("attack 'w'") < said.find("classifier 'w'"), "{said}");
        drop((outer, inner));
        assert!(!in_progress().unwrap().contains("classifier 'w'"));
    }
}
