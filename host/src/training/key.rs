//! Seeds from several words: one of a run, with a step, an epoch or a sample's id.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// A seed from several words; other words, or another number of them, give another one.
pub fn key(words: &[u64]) -> u64 {
    let mut hasher = Sha256::new();
    words.iter().for_each(|word| hasher.update(word.to_le_bytes()));
    u64::from_le_bytes(std::array::from_fn(|i| hasher.clone().finalize()[i]))
}

/// Random numbers from several words.
pub fn keyed(words: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(key(words))
}
