//! Correctness by sample under one attack or several, and when two of them differ.

use crate::report::mcnemar_of;
use crate::results::Cell;
use std::collections::BTreeMap;

/// Points by which more search, another loss, another scale or another rule may move a figure.
pub const POINT: f64 = 0.01;
/// Two figures differ where chance makes them so in less than one of twenty cases (McNemar's exact test).
const CHANCE: f64 = 0.05;

/// Correctness under one attack or several, by sample.
pub type Shares = BTreeMap<u64, f64>;

/// Correctness a sample, where the cell has figures.
pub fn shares(cell: &Cell) -> Option<Shares> {
    let whole = cell.failed.is_none() && !cell.rows.is_empty();
    whole.then(|| {
        cell.rows
            .iter()
            .map(|(id, row)| (*id, row.robust_share().min(row.clean_share())))
            .collect()
    })
}

/// The least over several attacks; absent where none has figures.
pub fn least<'c>(cells: impl IntoIterator<Item = &'c Cell>) -> Option<Shares> {
    cells.into_iter().filter_map(shares).reduce(lesser)
}

/// The lesser of two, sample by sample.
pub fn lesser(mut a: Shares, b: Shares) -> Shares {
    for (id, share) in b {
        a.entry(id)
            .and_modify(|known| *known = known.min(share))
            .or_insert(share);
    }
    a
}

pub fn value(shares: &Shares) -> f64 {
    shares.values().sum::<f64>() / shares.len().max(1) as f64
}

pub fn percent(shares: &Shares) -> String {
    format!("{:.1} %", 100. * value(shares))
}

/// Whether the second figure lies below the first by more than `points`, and not by chance: over the samples of both.
pub fn lower(first: &Shares, second: &Shares, points: f64) -> bool {
    let pairs: Vec<(f64, f64)> = first
        .iter()
        .filter_map(|(id, a)| Some((*a, *second.get(id)?)))
        .collect();
    let difference = pairs.iter().map(|(a, b)| a - b).sum::<f64>() / pairs.len().max(1) as f64;
    let verdicts = pairs.iter().map(|(a, b)| (*a > 0.5, *b > 0.5));
    difference > points && mcnemar_of(verdicts) < CHANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(robust: &[u8]) -> Shares {
        (0u64..)
            .zip(robust)
            .map(|(id, robust)| (id, f64::from(*robust)))
            .collect()
    }

    #[test]
    fn a_figure_is_lower_where_chance_does_not_explain_it() {
        let all = verdicts(&[1; 100]);
        let mut few = [1; 100];
        few[..5].fill(0);
        assert!(
            !lower(&all, &verdicts(&few), 0.01),
            "five pairs of one kind happen by chance"
        );
        few[..8].fill(0);
        assert!(lower(&all, &verdicts(&few), 0.01));
        assert!(!lower(&all, &verdicts(&few), 0.1), "not by so many points");
        assert!(!lower(&verdicts(&few), &all, 0.));
    }
}
