//! Errors that cross the boundary, and the guard that keeps panics from crossing it.

use abi_stable::StableAbi;
use abi_stable::std_types::{RErr, ROk, RResult, RString, RVec};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// What kind of failure an [`AbiError`] tells of.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// Settings or weights do not fit.
    Config = 1,
    /// A computation failed.
    Compute = 2,
    /// A shape, element type or value is not what was promised.
    Shape = 3,
    /// The device is not available in this build.
    Device = 4,
    /// The plugin does not offer this.
    Unsupported = 5,
    /// The threat model does not grant this to the attacker.
    Denied = 6,
    /// The run was cancelled.
    Cancelled = 7,
    /// A plugin panicked.
    Panic = 99,
}

/// An error as `{code, message, chain}`; the chain goes from the nearest cause to the root.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct AbiError {
    /// An [`ErrorCode`].
    pub code: u32,
    /// Lowercase sentence with the values and the remedy.
    pub message: RString,
    /// Causes.
    pub chain: RVec<RString>,
}

/// Result of every call of the contract.
pub type AbiResult<T> = RResult<T, AbiError>;

impl AbiError {
    /// An error without causes.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code as u32,
            message: message.into().into(),
            chain: RVec::new(),
        }
    }

    /// An error with the causes of `error`.
    pub fn from_error(code: ErrorCode, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = RVec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            chain.push(RString::from(cause.to_string()));
            source = cause.source();
        }
        Self {
            code: code as u32,
            message: error.to_string().into(),
            chain,
        }
    }

    /// Whether the error is of that kind.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code as u32
    }
}

impl std::fmt::Display for AbiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.message)?;
        self.chain
            .iter()
            .filter(|c| !self.message.contains(c.as_str()))
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for AbiError {}

/// Runs plugin code: an error or a panic comes out as an [`AbiError`], never as an unwinding stack.
///
/// The panic's message and place are in the error; they are printed as well only where `RUST_BACKTRACE` is set.
///
/// # Errors
/// That of `f`, or [`ErrorCode::Panic`].
pub fn guard<T>(f: impl FnOnce() -> Result<T, AbiError>) -> AbiResult<T> {
    match quietly(f) {
        Ok(Ok(value)) => ROk(value),
        Ok(Err(error)) => RErr(error),
        Err(panic) => RErr(AbiError::new(ErrorCode::Panic, format!("plugin panicked: {panic}"))),
    }
}

/// Runs a destructor; a panic ends there.
pub(crate) fn swallow(destructor: impl FnOnce()) {
    // Nobody asks a destructor how it went.
    let _ = quietly(destructor);
}

thread_local! {
    /// How many guards this thread is in.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
    /// Where this thread panicked last inside a guard.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

/// Catches a panic without the message that std would print: whoever gets the error tells of it once. The error is the panic's
/// message and place.
fn quietly<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // A hook cannot be changed by a thread that panics.
    if !std::thread::panicking() {
        HOOK.call_once(hush);
    }
    GUARDS.set(GUARDS.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(f));
    GUARDS.set(GUARDS.get() - 1);
    result.map_err(|payload| {
        let message = panic_message(payload.as_ref());
        // Any other payload is a value of the plugin's: its own destructor may panic, outside of every guard.
        if !payload.is::<&str>() && !payload.is::<String>() {
            std::mem::forget(payload);
        }
        let place = PLACE.try_with(Cell::take).ok().flatten();
        format!(
            "{message}{}",
            place.map(|place| format!(" (at {place})")).unwrap_or_default()
        )
    })
}

fn hush() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if GUARDS.get() == 0 || std::env::var_os("RUST_BACKTRACE").is_some() {
            before(info);
        }
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
        // Gone already where a thread panics at its very end.
        let _ = PLACE.try_with(|last| last.set(place));
    }));
}

/// The text of a panic.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// Holds a plugin's value so that a panic in its destructor is swallowed instead of crossing the boundary.
pub struct Guarded<T>(std::mem::ManuallyDrop<T>);

impl<T> Guarded<T> {
    /// Guards `value`.
    pub fn new(value: T) -> Self {
        Self(std::mem::ManuallyDrop::new(value))
    }
}

impl<T> std::ops::Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let value = &mut self.0;
        // SAFETY: the value is dropped here and nowhere else.
        swallow(|| unsafe { std::mem::ManuallyDrop::drop(value) });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Panics when it is dropped, with a payload that panics when it is dropped.
    pub(crate) struct Bomb;
    struct Payload;

    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::panic_any(Payload)
        }
    }

    impl Drop for Payload {
        fn drop(&mut self) {
            panic!("in the payload's destructor")
        }
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let RErr(error) = guard::<()>(|| panic!("boom {}", 3)) else {
            panic!("no error")
        };
        assert!(error.is(ErrorCode::Panic));
        let text = error.to_string();
        assert!(
            text.starts_with("plugin panicked: boom 3 (at ") && text.contains("error.rs:"),
            "{text}"
        );
    }

    #[test]
    fn a_panicking_destructor_is_swallowed_with_its_payload() {
        drop(Guarded::new(Bomb));
        let RErr(error) = guard::<()>(|| std::panic::panic_any(Payload)) else {
            panic!("no error")
        };
        assert!(error.message.starts_with("plugin panicked: no message (at "), "{error}");
    }

    #[test]
    fn a_guarded_value_that_panics_while_a_panic_unwinds_does_not_end_the_process() {
        let RErr(error) = guard::<()>(|| {
            let _held = Guarded::new(Bomb);
            panic!("first")
        }) else {
            panic!("no error")
        };
        assert!(error.message.contains("first"), "{error}");
    }

    #[test]
    fn the_chain_is_printed_once() {
        let mut error = AbiError::new(ErrorCode::Compute, "outer");
        error.chain.push("inner".into());
        assert_eq!(error.to_string(), "outer: inner");
    }
}
