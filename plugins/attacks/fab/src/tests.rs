use crate::{Fab, FabSettings};
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, finds_what_is_adversarial, grey, ids, images, lengths, network, values};

const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

/// Targeted and not, in both norms.
fn cases() -> impl Iterator<Item = FabSettings> {
    let of = |norm, targeted| FabSettings {
        norm,
        targeted,
        steps: 30,
        ..Default::default()
    };
    NORMS
        .into_iter()
        .flat_map(move |norm| [true, false].map(|targeted| of(norm, targeted)))
}

/// From class 0 the plane of class 1 is the nearest; class 2 is farther away.
fn linear() -> (Testbed, Vec<f32>) {
    let weight: Vec<f32> = (0..9).map(|i| i as f32 - 4.).collect();
    let weights = [vec![0.; 9], weight.clone(), weight.iter().rev().copied().collect()];
    (Testbed::linear(INPUT, &weights, &[0.6, 0., -1.]).unwrap(), weight)
}

fn distance(norm: Norm, weight: &[f32]) -> f32 {
    0.6 / match norm {
        Norm::L2 => weight.iter().map(|w| w * w).sum::<f32>().sqrt(),
        Norm::Linf => weight.iter().map(|w| w.abs()).sum(),
    }
}

#[test]
fn the_nearest_image_beyond_a_plane_is_found() {
    let (target, weight) = linear();
    for settings in cases() {
        let (norm, nearest) = (settings.norm, distance(settings.norm, &weight));
        let out = target
            .attack(&Fab::new(settings).unwrap(), &ids(1), &grey(), &[0])
            .unwrap();
        assert_eq!(
            (out.found, target.predict(&out.x_adv).unwrap()),
            (Some(vec![true]), vec![1])
        );
        let length = lengths(norm, &out.x_adv, &grey())[0];
        assert!(
            length >= nearest - 1e-5 && length < 1.02 * nearest,
            "{norm}: {length} {nearest}"
        );
    }
}

#[test]
fn an_image_beyond_the_budget_is_not_found() {
    let (target, weight) = linear();
    for settings in cases() {
        for (share, found) in [(0.98, false), (1.06, true)] {
            let settings = FabSettings {
                epsilon: Some(f64::from(distance(settings.norm, &weight)) * share),
                ..settings.clone()
            };
            let fab = Fab::new(settings).unwrap();
            assert!(fab.info().epsilon.is_some());
            let out = target.attack(&fab, &ids(1), &grey(), &[0]).unwrap();
            assert_eq!(out.found, Some(vec![found]));
            assert_eq!(
                values(&out.x_adv) != values(&grey()),
                found,
                "the clean image where nothing was found"
            );
        }
    }
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_the_bounds() {
    for settings in cases() {
        let targeted = settings.targeted;
        for epsilon in [None, Some(0.4)] {
            let fab = Fab::new(FabSettings {
                epsilon,
                restarts: 2,
                ..settings.clone()
            });
            let found = finds_what_is_adversarial(&fab.unwrap());
            let broken = found.iter().filter(|f| **f).count();
            assert!(
                broken > if epsilon.is_some() { 2 } else { 4 },
                "{epsilon:?} {targeted} {found:?}"
            );
        }
    }
}

#[test]
fn more_searches_find_nothing_farther() {
    let (target, x) = (network(), images(20));
    let y = target.predict(&x).unwrap();
    for settings in cases() {
        let norm = settings.norm;
        let mean = |restarts| {
            let fab = Fab::new(FabSettings {
                restarts,
                ..settings.clone()
            })
            .unwrap();
            let out = target.attack(&fab, &ids(20), &x, &y).unwrap();
            lengths(norm, &out.x_adv, &x)
        };
        let (one, three) = (mean(1), mean(3));
        assert!(
            one.iter().zip(&three).all(|(one, three)| three <= one),
            "{one:?} {three:?}"
        );
    }
}

#[test]
fn a_flat_target_is_not_found_and_gives_no_nan() {
    let flat = Testbed::linear(INPUT, &vec![vec![0.; 9]; 4], &[1., 0., 0., 0.]).unwrap();
    for settings in cases() {
        let out = flat
            .attack(&Fab::new(settings).unwrap(), &ids(3), &images(3), &[0; 3])
            .unwrap();
        assert_eq!(
            (out.found, values(&out.x_adv)),
            (Some(vec![false; 3]), values(&images(3)))
        );
    }
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = |text: &str| Fab::new(advae_sdk::serde_json::from_str(text).unwrap()).unwrap().info();
    assert_eq!((info("{}").epsilon, info("{}").passes), (None, 1 + 2 * 100 * 9));
    let budget = info(r#"{"epsilon": 0.3, "targeted": false, "norm": "l2"}"#);
    assert_eq!((budget.norm, budget.epsilon, budget.passes), (Norm::L2, Some(0.3), 201));
    for (text, said) in [
        (r#"{"epsilon": -1}"#, "epsilon is -1: choose a value from 0 to"),
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to 100000"),
        (r#"{"eta": 0.5}"#, "eta is 0.5: choose a value from 1 to 10"),
        (r#"{"beta": 2}"#, "beta is 2"),
        (r#"{"alpha_max": -1}"#, "alpha_max is -1"),
    ] {
        let error = Fab::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
