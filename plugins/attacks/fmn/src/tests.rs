use crate::fmn::next_radius;
use crate::{Fmn, FmnSettings};
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, finds_what_is_adversarial, grey, ids, images, lengths, planes, values};

fn fmn(norm: Norm, steps: u64) -> Fmn {
    Fmn::new(FmnSettings {
        norm,
        steps,
        ..Default::default()
    })
    .unwrap()
}

const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

#[test]
fn the_nearest_image_beyond_a_plane_is_found() {
    let (target, weight) = planes();
    for norm in NORMS {
        let nearest = 0.6
            / match norm {
                Norm::L2 => weight.iter().map(|w| w * w).sum::<f32>().sqrt(),
                Norm::Linf => weight.iter().map(|w| w.abs()).sum(),
            };
        let out = target.attack(&fmn(norm, 500), &ids(1), &grey(), &[0]).unwrap();
        assert_eq!(
            (out.found, target.predict(&out.x_adv).unwrap()),
            (Some(vec![true]), vec![1])
        );
        let length = lengths(norm, &out.x_adv, &grey())[0];
        assert!(
            length >= nearest - 1e-5 && length < 1.03 * nearest,
            "{norm}: {length} {nearest}"
        );
    }
}

#[test]
fn the_radius_follows_the_boundary() {
    let never = || -> f32 { unreachable!("the boundary is only asked for before anything was found") };
    assert_eq!(next_radius(2., 0.5, true, Some(3.), never), 1.);
    assert_eq!(
        next_radius(2., 0.5, true, Some(0.4), never),
        0.4,
        "no larger than the nearest"
    );
    assert_eq!(next_radius(2., 0.5, false, Some(0.4), never), 3.);
    assert_eq!(next_radius(f32::INFINITY, 0.5, false, None, || 0.5), 0.75);
}

#[test]
fn a_target_is_reached_and_reported() {
    let (target, _) = planes();
    let settings = FmnSettings {
        steps: 200,
        target: Goal::Class(2),
        ..Default::default()
    };
    let out = target
        .attack(&Fmn::new(settings).unwrap(), &ids(1), &grey(), &[0])
        .unwrap();
    assert_eq!(
        (out.targets, target.predict(&out.x_adv).unwrap()),
        (Some(vec![2]), vec![2])
    );
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_the_bounds() {
    for attack in NORMS.map(|norm| fmn(norm, 40)) {
        let found = finds_what_is_adversarial(&attack);
        assert!(found.iter().filter(|f| **f).count() > 4, "{found:?}");
    }
}

#[test]
fn a_flat_target_is_not_found_and_gives_no_nan() {
    let flat = Testbed::linear(INPUT, &vec![vec![0.; 9]; 4], &[1., 0., 0., 0.]).unwrap();
    for attack in NORMS.map(|norm| fmn(norm, 20)) {
        let out = flat.attack(&attack, &ids(3), &images(3), &[0; 3]).unwrap();
        assert_eq!(
            (out.found, values(&out.x_adv)),
            (Some(vec![false; 3]), values(&images(3)))
        );
    }
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = fmn(Norm::Linf, 1000).info();
    assert_eq!((info.norm, info.epsilon, info.passes), (Norm::Linf, None, 1000));
    for (text, said) in [
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to"),
        (r#"{"gamma": 1}"#, "gamma is 1: choose a value from"),
        (r#"{"step_size": 0}"#, "step_size is 0"),
    ] {
        let error = Fmn::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
