use crate::{Ddn, DdnSettings};
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, finds_what_is_adversarial, grey, ids, images, lengths, planes, values};

fn ddn(steps: u64) -> Ddn {
    Ddn::new(DdnSettings {
        steps,
        ..Default::default()
    })
    .unwrap()
}

/// From spheres that are too large and too small it comes within a percent of the plane.
#[test]
fn the_nearest_image_beyond_a_plane_is_found() {
    let (target, weight) = planes();
    let nearest = 0.6 / weight.iter().map(|w| w * w).sum::<f32>().sqrt();
    for initial_radius in [1., 0.01] {
        let settings = DdnSettings {
            initial_radius,
            steps: 300,
            ..Default::default()
        };
        let out = target
            .attack(&Ddn::new(settings).unwrap(), &ids(1), &grey(), &[0])
            .unwrap();
        assert_eq!(
            (out.found, target.predict(&out.x_adv).unwrap()),
            (Some(vec![true]), vec![1])
        );
        let length = lengths(Norm::L2, &out.x_adv, &grey())[0];
        // The last sphere may be a twentieth too large, and all steps but the last few come nearer.
        assert!(
            length >= nearest - 1e-5 && length < 1.05 * nearest,
            "{length} {nearest}"
        );
    }
}

#[test]
fn a_target_is_reached_and_reported() {
    let settings = DdnSettings {
        steps: 200,
        target: Goal::Class(2),
        ..Default::default()
    };
    let (target, weight) = planes();
    let out = target
        .attack(&Ddn::new(settings).unwrap(), &ids(1), &grey(), &[0])
        .unwrap();
    assert_eq!(
        (out.targets, target.predict(&out.x_adv).unwrap()),
        (Some(vec![2]), vec![2])
    );
    let nearest = 1.6 / weight.iter().map(|w| w * w).sum::<f32>().sqrt();
    let length = lengths(Norm::L2, &out.x_adv, &grey())[0];
    assert!(
        length >= nearest - 1e-5 && length < 1.05 * nearest,
        "{length} {nearest}"
    );
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_the_bounds() {
    let found = finds_what_is_adversarial(&ddn(40));
    assert!(found.iter().filter(|f| **f).count() > 4, "{found:?}");
}

#[test]
fn a_flat_target_is_not_found_and_gives_no_nan() {
    let flat = Testbed::linear(INPUT, &vec![vec![0.; 9]; 4], &[1., 0., 0., 0.]).unwrap();
    let attack = ddn(20);
    let out = flat.attack(&attack, &ids(3), &images(3), &[0; 3]).unwrap();
    assert_eq!(
        (out.found, values(&out.x_adv)),
        (Some(vec![false; 3]), values(&images(3)))
    );
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = ddn(1000).info();
    assert_eq!(
        (info.norm, info.epsilon, info.passes, info.targeted),
        (Norm::L2, None, 1000, false)
    );
    for (text, said) in [
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to"),
        (r#"{"gamma": 1}"#, "gamma is 1: choose a value from"),
        (r#"{"initial_radius": 0}"#, "initial_radius is 0"),
    ] {
        let error = Ddn::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
