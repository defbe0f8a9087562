//! What travels beside the tensors of a call: seed, sample ids, draw, phase, flags.

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
    /// CUDA stream of the producer, 0 on the CPU.
    pub stream: u64,
}

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

    /// Lends the context for one call, during which `ids` must be the slice it was made over.
    pub fn lend<'a>(&'a self, ids: &'a [u64]) -> CtxRef<'a> {
        assert!(
            std::ptr::eq(ids.as_ptr(), self.ids) && ids.len() as u64 == self.ids_len,
            "lent over other ids"
        );
        CtxRef {
            raw: self,
            borrow: PhantomData,
        }
    }
}

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
    /// A copy of the context. Fields that the caller's older struct does not have keep their defaults.
    pub fn get(&self) -> CallCtx {
        let mut copy = CallCtx::new(0, CallPhase::Score, &[]);
        let own = copy.size;
        // SAFETY: the caller lends a live struct that begins with its own size, so reading the first word is valid,
        // and reading as many bytes as both sides know stays inside it. Every field is plain data.
        unsafe {
            let size = (*self.raw.cast::<u64>()).min(own) as usize;
            std::ptr::copy_nonoverlapping(self.raw.cast::<u8>(), (&raw mut copy).cast::<u8>(), size);
        }
        copy.size = own;
        copy
    }

    /// Ids of the samples of the batch, in order.
    pub fn sample_ids(&self) -> &'a [u64] {
        let ctx = self.get();
        if ctx.ids.is_null() || ctx.ids_len == 0 {
            return &[];
        }
        // SAFETY: `CallCtx::lend` holds the borrow of this very slice for as long as the reference lives.
        unsafe { std::slice::from_raw_parts(ctx.ids, ctx.ids_len as usize) }
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
}
