//! The ids that plugins see. A plugin that knew a sample's place in the dataset, or met a sample twice under one id, could answer
//! by heart.

use sha2::{Digest, Sha256};

/// Who meets a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An attack, and the models while they are attacked.
    Craft,
    /// The models while they are scored.
    Score,
    /// The models when their scoring is repeated.
    Repeat,
}

/// Turns a dataset's ids into opaque ones: a keyed hash, another one for every purpose.
#[derive(Clone, Debug)]
pub struct Ids {
    key: [u8; 32],
}

impl Ids {
    /// For the samples of one dataset under one seed. The same seed and dataset give the same ids, and so the same randomness.
    pub fn new(dataset_sha256: &str, seed: u64) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"advae sample ids");
        hasher.update(seed.to_le_bytes());
        hasher.update(dataset_sha256.as_bytes());
        Self {
            key: hasher.finalize().into(),
        }
    }

    /// The id of a sample for a purpose.
    pub fn opaque(&self, purpose: Purpose, id: u64) -> u64 {
        let mut hasher = Sha256::new();
        hasher.update(self.key);
        hasher.update([purpose as u8]);
        hasher.update(id.to_le_bytes());
        let hash = hasher.finalize();
        u64::from_le_bytes(std::array::from_fn(|i| hash[i]))
    }

    /// The ids of several samples.
    pub fn all(&self, purpose: Purpose, ids: &[u64]) -> Vec<u64> {
        ids.iter().map(|id| self.opaque(purpose, *id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_dataset_seed_and_purpose_and_is_repeated_by_them() {
        let ids = Ids::new("data", 3);
        assert_eq!(
            ids.all(Purpose::Craft, &[7, 8]),
            Ids::new("data", 3).all(Purpose::Craft, &[7, 8])
        );
        let others = [
            ids.opaque(Purpose::Score, 7),
            ids.opaque(Purpose::Repeat, 7),
            ids.opaque(Purpose::Craft, 8),
            Ids::new("data", 4).opaque(Purpose::Craft, 7),
            Ids::new("other", 3).opaque(Purpose::Craft, 7),
        ];
        assert!(others.iter().all(|other| *other != ids.opaque(Purpose::Craft, 7)));
    }
}
