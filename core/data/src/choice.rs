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
