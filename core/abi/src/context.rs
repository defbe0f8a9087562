//! What travels beside the tensors of a call: seed, sample ids, draw, phase, flags.

use crate::{AbiError, ErrorCode};
use abi_stable::StableAbi;
use std::marker::PhantomData;

/// Bits of [`CallCtx::flags`].
pub mod flags {
    /// Training mode: dropout on, batch norm on batch statistics, running statistics updated.
    pub const TRAIN: u64 = 1;
    /// The tape keeps what parameter gradients need, and `backward` adds them to the trainable's sums.
    pub const ACCUMULATE_PARAMS: u64 = 2;
    /// Batch norm on batch statistics, as in training; running statistics and everything else as in evaluation. Since 1.1.
    pub const BATCH_STATISTICS: u64 = 4;
    /// The caller takes device tensors: outputs and gradients may lie on the device that the model computes on, and inputs may lie there too.
    /// The order of such tensors is that of [`CallCtx::stream`](super::CallCtx::stream). Since 1.3.
    pub const DEVICE: u64 = 8;
    /// A GPU may round the factors of products to TF32. Never set where the host measures. Since 1.3.
    pub const TF32: u64 = 16;
}

/// Why a pass is made. Scoring never reuses crafting's randomness.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallPhase {
    /// An attack is looking for an image.
    Craft = 0,
    /// The host measures.
    Score = 1,
}

/// Context of a call. Crosses as a pointer; begins with its own size, so that it can grow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CallCtx {
    size: u64,
    /// Seed of the experiment.
    pub seed: u64,
    /// Flags, see [`flags`].
    pub flags: u64,
    /// Repetition for random defences (EOT draw or scoring draw).
    pub draw: u64,
    /// A [`CallPhase`].
    pub phase: u32,
    /// How many threads the plugin may use in this call; 0 means 1.
    pub threads: u32,
    ids: *const u64,
    ids_len: u64,
    /// The stream in whose order the device tensors of the call are complete, numbered as DLPack does it: 0 where there are none,
    /// [`PER_THREAD_STREAM`] with [`flags::DEVICE`]. See [`AbiDevice`](crate::AbiDevice) for the rule.
    pub stream: u64,
}

/// [`CallCtx::stream`]: the default stream of the thread that makes the call (`CU_STREAM_PER_THREAD`).
pub const PER_THREAD_STREAM: u64 = 2;

/// A borrowed context, valid for the call.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy)]
pub struct CtxRef<'a> {
    #[sabi(unsafe_opaque_field)]
    raw: *const CallCtx,
    borrow: PhantomData<&'a ()>,
}

impl CallCtx {
    /// A context over the given sample ids, which key all randomness.
    pub fn new(seed: u64, phase: CallPhase, ids: &[u64]) -> Self {
        Self {
            size: std::mem::size_of::<Self>() as u64,
            seed,
            flags: 0,
            draw: 0,
            phase: phase as u32,
            threads: 1,
            ids: ids.as_ptr(),
            ids_len: ids.len() as u64,
            stream: 0,
        }
    }

    /// The same for a caller that takes device tensors, on the stream of its thread.
    pub fn on_device(mut self) -> Self {
        self.flags |= flags::DEVICE;
        self.stream = PER_THREAD_STREAM;
        self
    }

    /// Whether the caller takes device tensors.
    pub fn takes_device(&self) -> bool {
        self.flags & flags::DEVICE != 0
    }

    /// Lends the context for one call, during which `ids` must be the slice it was made over.
    ///
    /// # Panics
    /// If `ids` is another slice.
    pub fn lend<'a>(&'a self, ids: &'a [u64]) -> CtxRef<'a> {
        let same = ids.is_empty() || std::ptr::eq(ids.as_ptr(), self.ids);
        assert!(same && ids.len() as u64 == self.ids_len, "lent over other ids");
        CtxRef {
            raw: self,
            borrow: PhantomData,
        }
    }
}

/// A context ends after a whole field; phase and threads share one word.
const WORD: u64 = size_of::<u64>() as u64;

impl CallCtx {
    /// Lends the context and `ids`, in place of those it was made over, for one call. A callee that writes into either, which it must not,
    /// writes into what is lent here and nothing else.
    pub fn lend_mut<'a>(&'a mut self, ids: &'a mut [u64]) -> CtxRef<'a> {
        (self.ids, self.ids_len) = (ids.as_mut_ptr(), ids.len() as u64);
        CtxRef {
            raw: self,
            borrow: PhantomData,
        }
    }
}

impl<'a> CtxRef<'a> {
    /// What a plugin asks before it believes a context that foreign code may have made.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`] for a null or unaligned context, a size that ends inside a field, and ids that lie nowhere.
    pub fn check(&self) -> Result<(), AbiError> {
        let bad = |text: String| Err(AbiError::new(ErrorCode::Shape, text));
        let Some(size) = self.size() else {
            return bad(format!(
                "the context of the call lies at {:?}: expected an aligned struct",
                self.raw
            ));
        };
        if size < WORD || size % WORD != 0 {
            return bad(format!(
                "the context of the call claims {size} bytes: expected a multiple of {WORD}, {WORD} at least"
            ));
        }
        let ctx = self.get();
        if ctx.ids_len > 0 && ctx.ids_bytes().is_none() {
            return bad(format!(
                "the context of the call claims {} ids at {:?}",
                ctx.ids_len, ctx.ids
            ));
        }
        Ok(())
    }

    /// A copy of the context. Fields that the caller's older struct does not have keep their defaults; all of them do where
    /// [`check`](Self::check) finds no context.
    pub fn get(&self) -> CallCtx {
        let mut copy = CallCtx::new(0, CallPhase::Score, &[]);
        let own = copy.size;
        let known = self.size().unwrap_or(0).min(own);
        // SAFETY: the caller lends a live struct that begins with its own size, so reading as many bytes as both sides know
        // stays inside it. Every field is plain data, and is copied whole or not at all.
        unsafe {
            let bytes = (known - known % WORD) as usize;
            std::ptr::copy_nonoverlapping(self.raw.cast::<u8>(), (&raw mut copy).cast::<u8>(), bytes);
        }
        copy.size = own;
        copy
    }

    /// Ids of the samples of the batch, in order; none where [`check`](Self::check) refuses them.
    pub fn sample_ids(&self) -> &'a [u64] {
        let ctx = self.get();
        let Some(len) = ctx.ids_bytes().map(|bytes| bytes / size_of::<u64>()) else {
            return &[];
        };
        // SAFETY: `CallCtx::lend` holds the borrow of this very slice for as long as the reference lives; the pointer is aligned
        // and not null, and the slice is not larger than any memory.
        unsafe { std::slice::from_raw_parts(ctx.ids, len) }
    }

    /// The size that the struct begins with; none where there is no struct.
    fn size(&self) -> Option<u64> {
        if self.raw.is_null() || !self.raw.is_aligned() {
            return None;
        }
        // SAFETY: the pointer is neither null nor unaligned, and the caller lends a live struct that begins with its size.
        Some(unsafe { *self.raw.cast::<u64>() })
    }
}

impl CallCtx {
    /// Bytes of the ids; none where they lie nowhere, or are more than any memory holds.
    fn ids_bytes(&self) -> Option<usize> {
        let bytes = usize::try_from(self.ids_len).ok()?.checked_mul(size_of::<u64>())?;
        let placed = !self.ids.is_null() && self.ids.is_aligned();
        (placed && bytes <= isize::MAX as usize).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_crosses_with_its_ids() {
        let ids = [7, 9];
        let mut ctx = CallCtx::new(3, CallPhase::Craft, &ids);
        ctx.flags = flags::TRAIN;
        let lent = ctx.lend(&ids);
        assert_eq!(
            (lent.get().seed, lent.get().flags, lent.get().phase),
            (3, flags::TRAIN, 0)
        );
        assert_eq!(lent.sample_ids(), ids);
    }

    #[test]
    fn an_older_and_shorter_context_is_read_as_far_as_it_goes() {
        #[repr(C)]
        struct Old {
            size: u64,
            seed: u64,
            flags: u64,
        }
        let old = Old {
            size: 24,
            seed: 5,
            flags: 1,
        };
        let lent = CtxRef {
            raw: (&raw const old).cast(),
            borrow: PhantomData,
        };
        let ctx = lent.get();
        assert_eq!((ctx.seed, ctx.flags, ctx.draw, ctx.threads), (5, 1, 0, 1));
        assert!(lent.sample_ids().is_empty());
    }

    #[test]
    fn a_newer_and_longer_context_is_cut_to_what_is_known() {
        #[repr(C)]
        struct New {
            known: CallCtx,
            more: u64,
        }
        let mut new = New {
            known: CallCtx::new(1, CallPhase::Score, &[]),
            more: 99,
        };
        new.known.size = std::mem::size_of::<New>() as u64;
        let lent = CtxRef {
            raw: (&raw const new).cast(),
            borrow: PhantomData,
        };
        assert_eq!(lent.get().seed, 1);
        assert_eq!(new.more, 99);
    }

    fn borrowed(raw: *const CallCtx) -> CtxRef<'static> {
        CtxRef {
            raw,
            borrow: PhantomData,
        }
    }

    fn refuses(lent: CtxRef<'_>, word: &str) {
        let error = lent.check().unwrap_err();
        assert!(error.is(ErrorCode::Shape) && error.message.contains(word), "{error}");
        assert!(lent.sample_ids().is_empty());
    }

    #[test]
    fn a_null_context_is_an_error_and_not_a_crash() {
        let null = borrowed(std::ptr::null());
        refuses(null, "expected an aligned struct");
        assert_eq!((null.get().seed, null.get().threads), (0, 1));
        let ctx = CallCtx::new(1, CallPhase::Craft, &[]);
        refuses(
            borrowed((&raw const ctx).cast::<u8>().wrapping_add(4).cast()),
            "expected an aligned struct",
        );
    }

    #[test]
    fn a_context_that_ends_inside_a_field_is_refused() {
        let mut ctx = CallCtx::new(u64::MAX, CallPhase::Craft, &[]);
        for (size, seed) in [(0, 0), (4, 0), (12, 0), (20, u64::MAX)] {
            ctx.size = size;
            refuses(borrowed(&ctx), &format!("{size} bytes"));
            assert_eq!(borrowed(&ctx).get().seed, seed, "half a seed was read");
        }
    }

    #[test]
    fn ids_that_lie_nowhere_are_refused() {
        let ids = [7u64];
        let mut ctx = CallCtx::new(1, CallPhase::Craft, &ids);
        ctx.lend(&ids).check().unwrap();
        for len in [u64::MAX, 1 << 61, 1 << 60] {
            ctx.ids_len = len;
            refuses(borrowed(&ctx), &format!("{len} ids"));
        }
        (ctx.ids, ctx.ids_len) = (std::ptr::null(), 1);
        refuses(borrowed(&ctx), "1 ids");
    }

    #[test]
    fn a_context_without_ids_may_be_lent_over_any_empty_slice() {
        let ids = [7u64];
        let ctx = CallCtx::new(1, CallPhase::Craft, &[]);
        let lent = ctx.lend(&ids[1..]);
        lent.check().unwrap();
        assert!(lent.sample_ids().is_empty());
    }
}
