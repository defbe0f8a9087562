//! What holds for every dataset, and every choice from it.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use advae_data::{DataError, Dataset};
use proptest::prelude::*;

/// `n` images of one channel, 1x2, told apart by their pixels; ids count down by three.
fn dataset(n: usize) -> Dataset {
    let images = (0..2 * n).map(|value| value as f32 / (2 * n) as f32).collect();
    let labels = (0..n as u32).map(|i| i % 10).collect();
    let ids = (0..n as u64).rev().map(|id| 3 * id).collect();
    Dataset::new("test", images, labels, ids, [1, 1, 2], 10).unwrap()
}

proptest! {
    #[test]
    fn select_keeps_image_label_and_id_together(
        n in 1..40_usize,
        picks in proptest::collection::vec(any::<usize>(), 0..20),
    ) {
        let all = dataset(n);
        let indices: Vec<usize> = picks.into_iter().map(|pick| pick % n).collect();
        let some = all.select(&indices);
        prop_assert_eq!(some.len(), indices.len());
        for (to, from) in indices.into_iter().enumerate() {
            prop_assert_eq!(some.image(to), all.image(from));
            prop_assert_eq!((some.labels[to], some.ids[to]), (all.labels[from], all.ids[from]));
        }
    }

    #[test]
    fn a_split_is_a_partition_in_order(n in 0..60_usize, fraction in 0.0..=1.0_f64) {
        let all = dataset(n);
        let (train, validation) = all.split_last(fraction);
        prop_assert_eq!([&train.ids[..], &validation.ids].concat(), &all.ids[..]);
        prop_assert_eq!([&train.images[..], &validation.images].concat(), &all.images[..]);
        prop_assert!((validation.len() as f64 - fraction * n as f64).abs() <= 0.5);
    }

    #[test]
    fn a_random_subset_is_sorted_distinct_and_nested(
        n in 0..60_usize,
        small in 0..70_usize,
        more in 0..70_usize,
        seed: u64,
    ) {
        let all = dataset(n);
        let (less, more) = (all.random_subset(small, seed), all.random_subset(small + more, seed));
        prop_assert_eq!(less.len(), small.min(n));
        prop_assert!(less.ids.is_sorted_by(|a, b| a < b));
        prop_assert!(less.ids.iter().all(|id| more.ids.contains(id)));
    }

    #[test]
    fn a_random_subset_does_not_depend_on_the_order(n in 1..60_usize, seed: u64) {
        let all = dataset(n);
        let reversed = all.select(&(0..n).rev().collect::<Vec<_>>());
        prop_assert_eq!(all.random_subset(n / 2, seed), reversed.random_subset(n / 2, seed));
    }

    #[test]
    fn take_is_the_start(n in 0..30_usize, k in 0..40_usize) {
        let all = dataset(n);
        prop_assert_eq!(all.take(k), all.select(&(0..k.min(n)).collect::<Vec<_>>()));
    }
}

#[test]
fn seeds_choose_differently() {
    let all = dataset(100);
    assert_ne!(all.random_subset(50, 1).ids, all.random_subset(50, 2).ids);
}

#[test]
fn the_papers_split() {
    let (train, validation) = dataset(60_000).split_last(0.1);
    assert_eq!((train.len(), validation.len()), (54_000, 6_000));
}

#[test]
fn fractions_beyond_the_ends_count_as_the_ends() {
    let all = dataset(10);
    let held_out = |fraction| all.split_last(fraction).1.len();
    assert_eq!([held_out(-1.0), held_out(2.0), held_out(f64::NAN)], [0, 10, 0]);
}

#[test]
fn the_hash_tells_every_part_but_the_name() {
    let hash = |change: fn(&mut Dataset)| {
        let mut d = dataset(4);
        change(&mut d);
        d.sha256()
    };
    let same = hash(|_| {});
    assert_eq!(same.len(), 64);
    assert_eq!(same, hash(|d| d.name.push('!')));
    let changes: [fn(&mut Dataset); 5] = [
        |d| d.images[7] = 0.0,
        |d| d.labels[0] = 9,
        |d| d.ids[0] = 77,
        |d| d.shape = [1, 2, 1],
        |d| d.classes = 11,
    ];
    assert!(changes.into_iter().all(|change| hash(change) != same));
}

#[test]
fn an_invalid_dataset_says_what_is_wrong() {
    let message = |change: fn(&mut Dataset)| {
        let mut d = dataset(4);
        change(&mut d);
        match Dataset::new(d.name, d.images, d.labels, d.ids, d.shape, d.classes) {
            Err(DataError::Invalid { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        message(|d| d.images.truncate(7)),
        "7 pixel values for 4 images of 1x1x2"
    );
    assert_eq!(message(|d| d.ids.truncate(3)), "3 ids for 4 labels");
    assert_eq!(
        message(|d| d.images[3] = 255.0),
        "image 1 has the pixel 255, expected [0, 1]: divide bytes by 255"
    );
    assert_eq!(
        message(|d| d.images[0] = f32::NAN),
        "image 0 has the pixel NaN, expected [0, 1]: divide bytes by 255"
    );
    assert_eq!(
        message(|d| d.labels[2] = 10),
        "sample 2 has the label 10, expected 0..10"
    );
    assert_eq!(
        message(|d| d.ids[1] = d.ids[3]),
        "the id 0 occurs twice: ids must be unique, they key each sample's randomness"
    );
}

#[test]
fn an_empty_dataset_is_one() {
    let none = dataset(3).take(0);
    assert!(none.is_empty());
    assert_eq!((none.len(), none.image_len(), none.shape), (0, 2, [1, 1, 2]));
}
