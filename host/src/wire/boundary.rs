//! The one way into a plugin. Every call goes through [`Origin::enter`]: the plugin's error gets its name and printable text, the
//! floating-point state is put back, and Ctrl-C can say what is waited for. What a call lends is a private copy ([`LentTensor`],
//! [`LentCall`]) that is compared after the call: a plugin that wrote into it is refused, and what is scored stays as it was.

use crate::plugin::fenv;
use crate::terminal::console::{printable, printable_lines};
use crate::terminal::waiting::Waiting;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::Kind;
use advae_abi::{AbiError, AbiResult, AbiTensorRef, CallCtx, CtxRef, Dims, Element, ErrorCode};
use anyhow::{Result, anyhow};
use std::fmt::{Debug, Display, Formatter};
use std::sync::Arc;

/// Where an object comes from, as messages name it: `classifier 'model_x'`.
#[derive(Clone, Debug)]
pub struct Origin(Arc<str>);

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Origin {
    /// Of a plugin's kind and name.
    pub fn new(kind: Kind, name: &str) -> Self {
        Self(format!("{kind} '{}'", printable(name)).into())
    }

    /// Runs the plugin's code; `what` names its function for whoever waits.
    ///
    /// # Errors
    /// The plugin's own error, under its name.
    pub fn enter<T>(&self, what: &'static str, f: impl FnOnce() -> AbiResult<T>) -> Result<T> {
        let _waiting = Waiting::for_call(&self.0, what);
        fenv::kept(|| f().into_result().map_err(|error| self.blame(&error)))
    }

    /// Looks at the copies that a call was lent.
    ///
    /// # Errors
    /// Where the plugin wrote into one of them.
    pub fn check_unwritten(&self, lent: &[&dyn Unwritten]) -> Result<()> {
        match lent.iter().find_map(|lent| lent.written()) {
            None => Ok(()),
            Some(what) => Err(self.fault(
                ErrorCode::Compute,
                format!("{WROTE} {what}: it must compute in memory of its own"),
            )),
        }
    }

    /// An error under the plugin's name. Its code survives; its text is the host's own copy, and printable.
    pub fn blame(&self, error: &AbiError) -> anyhow::Error {
        let own = AbiError {
            code: error.code,
            message: printable_lines(&error.message).into(),
            chain: error.chain.iter().map(|cause| printable_lines(cause).into()).collect(),
        };
        anyhow!(own).context(self.to_string())
    }

    /// What the host found wrong with it.
    pub fn fault(&self, code: ErrorCode, text: String) -> anyhow::Error {
        anyhow!(AbiError::new(code, text)).context(self.to_string())
    }
}

/// An error of the host as it crosses; the code of a plugin's own error is kept.
pub fn to_abi(error: anyhow::Error) -> AbiError {
    let code = error
        .downcast_ref::<AbiError>()
        .map_or(ErrorCode::Compute as u32, |e| e.code);
    let mut crossing = AbiError::new(ErrorCode::Compute, format!("{error:#}"));
    crossing.code = code;
    crossing
}

/// How [`Origin::check_unwritten`] begins to complain.
const WROTE: &str = "wrote into";

/// Whether a call failed because the plugin wrote into what it was lent.
pub fn wrote(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<AbiError>();
    error.is_some_and(|error| error.message.starts_with(WROTE))
}

/// Something lent that must not be written into.
pub trait Unwritten {
    /// What was written into, and where, if anything was.
    fn written(&self) -> Option<String>;
}

/// A private copy of a tensor that is lent for one call.
pub struct LentTensor<'a, T> {
    name: &'static str,
    given: &'a [T],
    copy: Vec<T>,
    dims: Dims,
    ids: &'a [u64],
}

impl<'a> LentTensor<'a, f32> {
    /// Of `x`, whose rows belong to the samples of the call; `name` is its plural in messages.
    pub fn new(name: &'static str, call: &Call<'a>, x: &'a Tensor) -> Self {
        Self::of(name, call, &x.data, x.dims())
    }
}

impl<'a> LentTensor<'a, i64> {
    /// Of labels `[N]`.
    pub fn labels(call: &Call<'a>, labels: &'a [i64]) -> Self {
        Self::of("labels", call, labels, Dims::new(&[labels.len()]))
    }
}

impl<'a, T: Element> LentTensor<'a, T> {
    fn of(name: &'static str, call: &Call<'a>, given: &'a [T], dims: Dims) -> Self {
        Self {
            name,
            given,
            copy: given.to_vec(),
            dims,
            ids: call.ids,
        }
    }

    /// Lends the copy.
    pub fn lend(&mut self) -> AbiTensorRef<'_> {
        AbiTensorRef::from_slice_mut(&mut self.copy, &mut self.dims)
    }
}

impl<T: Bits + Display> Unwritten for LentTensor<'_, T> {
    fn written(&self) -> Option<String> {
        let at = first_difference(self.given, &self.copy)?;
        let row = at / (self.given.len() / self.ids.len().max(1)).max(1);
        let (name, before, after) = (self.name, self.given[at], self.copy[at]);
        let sample = self.ids.get(row).copied().unwrap_or_default();
        Some(format!(
            "the {name} it was lent (sample {sample}: {before} became {after})"
        ))
    }
}

/// A private copy of a call's context and sample ids.
pub struct LentCall<'a> {
    ids: &'a [u64],
    copy: Vec<u64>,
    ctx: CallCtx,
}

impl<'a> LentCall<'a> {
    /// Of `call`.
    pub fn new(call: &Call<'a>) -> Self {
        Self {
            ids: call.ids,
            copy: call.ids.to_vec(),
            ctx: call.context(),
        }
    }

    /// Lends the copy.
    pub fn lend(&mut self) -> CtxRef<'_> {
        self.ctx.lend_mut(&mut self.copy)
    }
}

impl Unwritten for LentCall<'_> {
    fn written(&self) -> Option<String> {
        let at = first_difference(self.ids, &self.copy)?;
        Some(format!(
            "the sample ids it was lent ({} became {})",
            self.ids[at], self.copy[at]
        ))
    }
}

/// A number whose every bit counts: a NaN, or the sign of a zero, is a difference too.
trait Bits: Copy {
    fn bits(self) -> u64;
}

impl Bits for f32 {
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Bits for i64 {
    fn bits(self) -> u64 {
        self as u64
    }
}

impl Bits for u64 {
    fn bits(self) -> u64 {
        self
    }
}

fn first_difference<T: Bits>(before: &[T], after: &[T]) -> Option<usize> {
    const AT_ONCE: usize = 64;
    let differ = |(a, b): (&[T], &[T])| a.iter().zip(b).fold(0, |all, (a, b)| all | (a.bits() ^ b.bits())) != 0;
    // Whole pieces without a branch inside, so that they are compared as vectors.
    let piece = before.chunks(AT_ONCE).zip(after.chunks(AT_ONCE)).position(differ)?;
    let from = piece * AT_ONCE;
    let differs = |i: &usize| before[*i].bits() != after[*i].bits();
    (from..before.len()).find(differs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin::new(Kind::Attack, "a")
    }

    #[test]
    fn a_copy_that_was_written_into_is_told_with_its_sample() {
        let x = Tensor::new(vec![2, 100], vec![0.5; 200]).unwrap();
        let call = Call::craft(0, &[4, 9]);
        let mut lent = LentTensor::new("images", &call, &x);
        assert!(origin().check_unwritten(&[&lent, &LentCall::new(&call)]).is_ok());
        lent.copy[170] = -0.5;
        let error = origin().check_unwritten(&[&LentCall::new(&call), &lent]).unwrap_err();
        let text = "attack 'a': wrote into the images it was lent (sample 9: 0.5 became -0.5): it must compute in memory of its own";
        assert_eq!(format!("{error:#}"), text);
        assert_eq!(x.data, vec![0.5; 200]);
    }

    #[test]
    fn every_bit_counts() {
        assert_eq!(first_difference(&[0f32, f32::NAN], &[0., f32::NAN]), None);
        assert_eq!(first_difference(&[1f32, 0.], &[1., -0.]), Some(1));
        let (before, mut after) = (vec![3u64; 1000], vec![3u64; 1000]);
        after[999] = 4;
        assert_eq!(first_difference(&before, &after), Some(999));
    }

    #[test]
    fn sample_ids_are_lent_as_a_copy() {
        let call = Call::craft(7, &[3, 4]).with_draw(2);
        let mut lent = LentCall::new(&call);
        let crossing = lent.lend();
        assert_eq!(
            (crossing.sample_ids(), crossing.get().draw, crossing.get().seed),
            ([3, 4].as_slice(), 2, 7)
        );
        lent.copy[1] = 3;
        assert_eq!(lent.written().unwrap(), "the sample ids it was lent (4 became 3)");
    }

    #[test]
    fn the_text_of_a_plugins_error_is_printable() {
        let mut error = AbiError::new(ErrorCode::Denied, "red \u{1b}[31m");
        error.chain.push("bell \u{7}".into());
        let blamed = origin().blame(&error);
        assert_eq!(format!("{blamed:#}"), "attack 'a': red \\u{1b}[31m: bell \\u{7}");
        assert!(blamed.downcast_ref::<AbiError>().unwrap().is(ErrorCode::Denied));
    }
}
