//! The floating-point state of a thread: rounding mode, flushing of denormals, masked exceptions. A plugin may change it, and everything
//! that is computed on the thread afterwards would come out otherwise: it is put back whenever a plugin returns.

use std::mem::ManuallyDrop;
use std::ops::Deref;

/// Runs a plugin's code and puts the floating-point state back that it found.
pub fn kept<T>(f: impl FnOnce() -> T) -> T {
    let _back = Saved(State::now());
    f()
}

/// Runs the host's code on a thread that a plugin called it from: under the state every process begins with. The plugin has its own
/// back afterwards.
pub fn as_host<T>(f: impl FnOnce() -> T) -> T {
    let _back = Saved(State::now());
    State::DEFAULT.set();
    f()
}

/// Puts a state back when it goes out of scope, a panic included.
struct Saved(State);

impl Drop for Saved {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// A value whose destructor is a plugin's code.
pub struct Foreign<T>(ManuallyDrop<T>);

impl<T> Foreign<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T> Deref for Foreign<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Foreign<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped here and nowhere else.
        kept(|| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}

/// Control bits of the floating-point units; the flags of exceptions that happened are nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    #[cfg(target_arch = "x86_64")]
    mxcsr: u32,
    #[cfg(target_arch = "x86_64")]
    x87: u16,
    #[cfg(target_arch = "aarch64")]
    fpcr: u64,
}

#[cfg(target_arch = "x86_64")]
impl State {
    /// As the System V ABI has it at the start of a process: round to nearest, denormals kept, exceptions masked.
    const DEFAULT: Self = Self {
        mxcsr: 0x1f80,
        x87: 0x037f,
    };
    /// Bits of MXCSR that control; the six below them are sticky flags.
    const CONTROL: u32 = !0x3f;

    fn now() -> Self {
        let (mut mxcsr, mut x87) = (0u32, 0u16);
        // SAFETY: both instructions store a register of the thread into the variable they are given.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags));
            std::arch::asm!("fnstcw [{}]", in(reg) &raw mut x87, options(nostack, preserves_flags));
        }
        Self {
            mxcsr: mxcsr & Self::CONTROL,
            x87,
        }
    }

    fn set(self) {
        let now = Self::now();
        // SAFETY: both instructions load a value that the thread had before or that the ABI prescribes, so no exception that was
        // masked is raised.
        unsafe {
            if now.mxcsr != self.mxcsr {
                std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const self.mxcsr, options(nostack, preserves_flags));
            }
            if now.x87 != self.x87 {
                std::arch::asm!("fnclex", "fldcw [{}]", in(reg) &raw const self.x87, options(nostack, preserves_flags));
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
impl State {
    /// As the procedure call standard has it at the start of a process: round to nearest, denormals kept, exceptions masked.
    const DEFAULT: Self = Self { fpcr: 0 };

    fn now() -> Self {
        let fpcr: u64;
        // SAFETY: reads a register of the thread.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
        Self { fpcr }
    }

    fn set(self) {
        if Self::now() != self {
            // SAFETY: sets a value that the thread had before or that the standard prescribes.
            unsafe { std::arch::asm!("msr fpcr, {}", in(reg) self.fpcr, options(nostack, preserves_flags)) };
        }
    }
}

/// Plugins are not supported on other machines.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl State {
    const DEFAULT: Self = Self {};

    fn now() -> Self {
        Self {}
    }

    fn set(self) {}
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Toward zero, denormals flushed, in both units; exceptions stay masked.
    const STRANGE: State = State {
        mxcsr: 0xff80,
        x87: 0x0f7f,
    };

    #[test]
    fn the_state_is_put_back_after_a_call() {
        let before = State::now();
        kept(|| STRANGE.set());
        assert_eq!(State::now(), before);
        let panicked = std::panic::catch_unwind(|| {
            kept(|| {
                STRANGE.set();
                std::panic::resume_unwind(Box::new(()));
            })
        });
        assert!(panicked.is_err());
        assert_eq!(State::now(), before);
    }

    #[test]
    fn the_host_computes_under_its_own_state_and_the_caller_has_its_own_back() {
        let (inside, after) = kept(|| {
            STRANGE.set();
            let inside = as_host(State::now);
            (inside, State::now())
        });
        assert_eq!((inside, after), (State::DEFAULT, STRANGE));
    }

    #[test]
    fn a_destructor_is_a_call_too() {
        struct Rude;
        impl Drop for Rude {
            fn drop(&mut self) {
                STRANGE.set();
            }
        }
        let before = State::now();
        drop(Foreign::new(Rude));
        assert_eq!(State::now(), before);
    }
}
