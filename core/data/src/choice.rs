//! Seeded choices that must never change, not even with a new version of a random library.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// `0..n` in a shuffled order that depends on `n` and `seed` alone.
///
/// Fisher-Yates from the end, `j = floor(u * (i + 1) / 2^64)` with `u` the next 64 bits of ChaCha8, keyed by the
/// seed's 8 little-endian bytes and 24 zeros. Spelled out here, and not taken from `rand`, so that it can be repeated
/// in any language and outlives that crate's changes of algorithm.
pub(crate) fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// The seed of the embedded samples' choice. No other was tried.
pub(crate) const SAMPLE_SEED: u64 = 1150;
/// How many test images of a dataset are scored by default.
pub(crate) const SCORED: usize = 1000;
/// How many more are set aside for a black-box attacker.
pub(crate) const ASIDE: usize = 150;

/// Positions in a test set of `n` images: (scored, set aside), each sorted. They are the first [`SCORED`] and the next
/// [`ASIDE`] of the test set shuffled by [`SAMPLE_SEED`].
pub(crate) fn sample(n: usize) -> (Vec<usize>, Vec<usize>) {
    let mut scored = shuffled(n, SAMPLE_SEED);
    scored.truncate(SCORED + ASIDE);
    let mut aside = scored.split_off(SCORED.min(scored.len()));
    scored.sort_unstable();
    aside.sort_unstable();
    (scored, aside)
}

/// The ids of a test set of 10,000 images that are set aside, where ids are positions in its file.
pub(crate) fn aside_of_ten_thousand() -> Vec<u64> {
    let (_, aside) = sample(10_000);
    aside.into_iter().map(|position| position as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_pinned() {
        // From another implementation, in Python.
        assert_eq!(shuffled(10, 0), [9, 2, 3, 4, 6, 7, 0, 1, 5, 8]);
        assert!(shuffled(0, 1).is_empty());
    }

    #[test]
    fn every_index_occurs_once() {
        let mut order = shuffled(1000, 7);
        assert_ne!(order, shuffled(1000, 8));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }
}
