use crate::{DeepFool, DeepFoolSettings};
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, finds_what_is_adversarial, grey, ids, images, lengths, planes, values};

fn deepfool() -> DeepFool {
    DeepFool::new(Default::default()).unwrap()
}

/// One step crosses the nearest plane, by its overshoot.
#[test]
fn the_nearest_plane_is_crossed_in_one_step() {
    let (target, weight) = planes();
    let nearest = 0.6 / weight.iter().map(|w| w * w).sum::<f32>().sqrt();
    let out = target.attack(&deepfool(), &ids(1), &grey(), &[0]).unwrap();
    assert_eq!(
        (out.found, target.predict(&out.x_adv).unwrap()),
        (Some(vec![true]), vec![1])
    );
    let length = lengths(Norm::L2, &out.x_adv, &grey())[0];
    assert!((length - 1.02 * (nearest + 1e-4)).abs() < 1e-5, "{length} {nearest}");
    assert_eq!(target.asked(), 3, "the classes, the plane, and what lies beyond it");
}

#[test]
fn the_last_step_is_judged_too() {
    let (target, _) = planes();
    let one = DeepFool::new(DeepFoolSettings {
        steps: 1,
        ..Default::default()
    })
    .unwrap();
    let out = target.attack(&one, &ids(1), &grey(), &[0]).unwrap();
    assert_eq!(out.found, Some(vec![true]));
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_the_bounds() {
    let found = finds_what_is_adversarial(&deepfool());
    assert!(found.iter().filter(|f| **f).count() > 4, "{found:?}");
}

#[test]
fn a_flat_target_is_not_found_and_gives_no_nan() {
    let flat = Testbed::linear(INPUT, &vec![vec![0.; 9]; 4], &[1., 0., 0., 0.]).unwrap();
    let attack = deepfool();
    let out = flat.attack(&attack, &ids(3), &images(3), &[0; 3]).unwrap();
    assert_eq!(
        (out.found, values(&out.x_adv)),
        (Some(vec![false; 3]), values(&images(3)))
    );
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = deepfool().info();
    assert_eq!((info.norm, info.epsilon, info.passes), (Norm::L2, None, 52));
    for (text, said) in [
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to"),
        (r#"{"classes": 1}"#, "classes is 1: choose a value from 2"),
        (r#"{"overshoot": -1}"#, "overshoot is -1"),
    ] {
        let error = DeepFool::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
