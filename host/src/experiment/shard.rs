//! A part of an experiment, for one of several processes.

use super::cells::Group;
use advae_data::Dataset;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Part `index` of `count`, from 1. All parts together measure every cell and sample once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, from 1.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    /// Reads `2/8`.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').map(|(i, n)| (i.parse(), n.parse()));
        match parts {
            Some((Ok(index), Ok(count))) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => bail!("'{text}' is no shard: expected i/n with i from 1 to n, such as 2/8"),
        }
    }
}

impl Shard {
    /// The groups and the samples of this part. A chain of groups, such as the stages of a suite, stays together. With at least as many
    /// chains as parts, a part takes whole chains; with fewer, several parts share a chain and take every so many of its samples.
    pub fn cut(self, groups: Vec<Group>, dataset: Dataset) -> (Vec<Group>, Dataset) {
        let chains = chains(groups);
        let part = self.index - 1;
        if chains.is_empty() || chains.len() >= self.count {
            let own = chains.into_iter().enumerate().filter(|(i, _)| i % self.count == part);
            return (own.flat_map(|(_, chain)| chain).collect(), dataset);
        }
        let (number, chain) = (chains.len(), part % chains.len());
        // Parts chain, chain + number, ... share it.
        let (place, sharing) = (part / number, (self.count - chain).div_ceil(number));
        let samples: Vec<usize> = (place..dataset.len()).step_by(sharing).collect();
        let groups = chains.into_iter().nth(chain).unwrap_or_default();
        (groups, dataset.select(&samples))
    }
}

/// Groups that need what the one before found, together with it.
fn chains(groups: Vec<Group>) -> Vec<Vec<Group>> {
    let mut chains: Vec<Vec<Group>> = vec![];
    for group in groups {
        let before = group
            .cells
            .iter()
            .find_map(|(header, _)| header.config.stage.as_ref()?.after.clone());
        let follows = |chain: &Vec<Group>| {
            let keys = chain
                .iter()
                .flat_map(|group| &group.cells)
                .map(|(header, _)| &header.key);
            before
                .as_ref()
                .is_some_and(|before| keys.into_iter().any(|key| key == before))
        };
        match chains.last_mut().filter(|chain| follows(chain)) {
            Some(chain) => chain.push(group),
            None => chains.push(vec![group]),
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_written_as_a_fraction() {
        assert_eq!("2/8".parse::<Shard>().unwrap(), Shard { index: 2, count: 8 });
        for wrong in ["0/8", "9/8", "1", "a/b", "1/0", "-1/2"] {
            let error = wrong.parse::<Shard>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("'{wrong}' is no shard: expected i/n with i from 1 to n, such as 2/8")
            );
        }
    }
}
