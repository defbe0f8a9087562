//! Ctrl-C: a flag that every oracle call looks at.

use super::exit::{EXIT_CANCELLED, end};
use advae_abi::{AbiError, ErrorCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the run is to stop; clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that Ctrl-C sets; a second Ctrl-C ends the process at once.
    ///
    /// # Errors
    /// Where the handler cannot be installed.
    pub fn on_ctrl_c() -> Result<Self, ctrlc::Error> {
        let cancel = Self::default();
        let flag = cancel.clone();
        ctrlc::set_handler(move || {
            if flag.0.swap(true, Ordering::SeqCst) {
                end(EXIT_CANCELLED);
            }
        })?;
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
