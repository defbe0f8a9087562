//! The ids that plugins see. A plugin that knew a sample's place in the dataset, or met a sample twice under one id, could answer
//! by heart.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Who meets a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An attack, and the models while they are attacked.
    Craft,
    /// The models while they are scored.
    Score,
    /// The models when their scoring is repeated.
    Repeat,
    /// Nobody: which samples are repeated is decided by it.
    Choose,
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

    /// A plugin's message as a reader can follow it: the samples `known` under their own ids.
    pub fn reveal(&self, text: &str, known: &[u64]) -> String {
        let shortest = 10;
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        if !numbers.any(|number| number.len() >= shortest) {
            return text.into();
        }
        let purposes = [Purpose::Craft, Purpose::Score, Purpose::Repeat];
        let names = known
            .iter()
            .flat_map(|id| purposes.map(|purpose| (self.opaque(purpose, *id), *id)));
        let named = |text: String, (opaque, id): (u64, u64)| match text.contains(&opaque.to_string()) {
            true => text.replace(&opaque.to_string(), &id.to_string()),
            false => text,
        };
        names.fold(text.into(), named)
    }

    /// The ids by which samples are scored, by those that an attack knows them by.
    pub fn crafting_to_scoring(&self, ids: &[u64]) -> BTreeMap<u64, u64> {
        let of = |purpose| self.all(purpose, ids);
        of(Purpose::Craft).into_iter().zip(of(Purpose::Score)).collect()
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
    fn a_message_names_samples_by_their_ids_in_the_dataset() {
        let ids = Ids::new("data", 3);
        let (craft, score) = (ids.opaque(Purpose::Craft, 7), ids.opaque(Purpose::Score, 8));
        let text = format!("classifier 'm': image {craft}, then {score}, 12 of 1000000000000");
        let told = "classifier 'm': image 7, then 8, 12 of 1000000000000";
        assert_eq!(ids.reveal(&text, &[7, 8, 9]), told);
        assert_eq!(ids.reveal("12 of 500", &[12]), "12 of 500");
    }

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
