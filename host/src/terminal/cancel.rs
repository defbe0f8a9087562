//! Ctrl-C: a flag that every oracle call looks at.

use super::console;
use super::exit::{EXIT_CANCELLED, end};
use super::waiting;
use advae_abi::{AbiError, ErrorCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the run is to stop; clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that Ctrl-C sets, which says what is waited for; a second Ctrl-C ends the process at once, whatever a plugin is doing.
    ///
    /// # Errors
    /// Where the handler cannot be installed.
    pub fn on_ctrl_c() -> Result<Self, ctrlc::Error> {
        let cancel = Self::default();
        let flag = cancel.clone();
        ctrlc::set_handler(move || match flag.0.swap(true, Ordering::SeqCst) {
            // On a thread of its own: whoever does not read the error stream must not keep the second from being heard.
            false => drop(std::thread::spawn(|| console::say(&stopping(waiting::in_progress())))),
            true => end(EXIT_CANCELLED),
        })?;
        Ok(cancel)
    }

    /// A flag that is set without a word where another process asks this one to stop.
    ///
    /// # Errors
    /// Where the handler cannot be installed.
    pub fn on_request() -> Result<Self, ctrlc::Error> {
        let cancel = Self::default();
        let flag = cancel.clone();
        ctrlc::set_handler(move || flag.cancel())?;
        Ok(cancel)
    }

    /// Asks to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error where the run is to stop.
    ///
    /// # Errors
    /// [`ErrorCode::Cancelled`].
    pub fn check(&self) -> Result<(), AbiError> {
        match self.is_cancelled() {
            true => Err(AbiError::new(ErrorCode::Cancelled, "the run was cancelled")),
            false => Ok(()),
        }
    }
}

fn stopping(calls: Option<String>) -> String {
    let waits = calls
        .map(|calls| format!("waiting for {calls} to return; "))
        .unwrap_or_default();
    format!("stopping: {waits}Ctrl-C again ends at once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ctrl_c_says_what_is_waited_for() {
        let text = "stopping: waiting for attack 'pgd' (perturb) to return; Ctrl-C again ends at once";
        assert_eq!(stopping(Some("attack 'pgd' (perturb)".into())), text);
        assert_eq!(stopping(None), "stopping: Ctrl-C again ends at once");
    }
}
