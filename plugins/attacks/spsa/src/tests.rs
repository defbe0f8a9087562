use crate::{Spsa, SpsaSettings};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, grey, ids, images, network, values, within_its_ball};

fn spsa(epsilon: f64) -> Spsa {
    let settings = SpsaSettings {
        epsilon,
        steps: 20,
        pairs: 16,
        ..Default::default()
    };
    Spsa::new(settings).unwrap()
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_ball_and_bounds() {
    let (x, y) = (images(7), network().predict(&images(7)).unwrap());
    let target = network().without_gradients();
    for target in [target.clone(), target.with_early_stop(false)] {
        within_its_ball(&target, &spsa(0.1), &x, &y);
    }
}

/// A linear model falls exactly beyond its distance.
#[test]
fn a_linear_target_is_broken_exactly_beyond_its_distance() {
    let weight: Vec<f32> = (0..9).map(|i| i as f32 - 4.5).collect();
    let sum: f32 = weight.iter().sum();
    let target = Testbed::linear(INPUT, &[vec![0.; 9], weight.clone()], &[0.6 + 0.5 * sum, 0.]).unwrap();
    let distance = f64::from(0.6 / weight.iter().map(|w| w.abs()).sum::<f32>());
    for (share, broken) in [(0.95, false), (1.2, true)] {
        let attack = spsa(distance * share);
        for target in [target.clone(), target.with_early_stop(false)] {
            let x_adv = target.attack(&attack, &ids(1), &grey(), &[0]).unwrap().x_adv;
            assert_eq!(target.predict(&x_adv).unwrap() == [1], broken, "{share}");
        }
    }
}

#[test]
fn it_stops_at_the_first_success_where_that_is_allowed() {
    let target = Testbed::linear(INPUT, &[vec![0.; 9], vec![1.; 9]], &[0.4, 0.]).unwrap();
    let x = Tensor::from_vec([vec![0f32; 9], vec![0.5; 9]].concat(), (2, 1, 3, 3), &Device::Cpu).unwrap();
    let out = target.attack(&spsa(0.2), &ids(2), &x, &[0, 0]).unwrap().x_adv;
    assert_eq!(target.predict(&out).unwrap(), [1, 1]);
    assert_eq!(values(&out)[9..], values(&x)[9..], "the second was wrong to begin with");
    let patient = target.with_early_stop(false);
    let before = patient.asked();
    patient.attack(&spsa(0.2), &ids(2), &x, &[0, 0]).unwrap();
    assert_eq!(patient.asked() - before, 2 * 20 * 32);
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = Spsa::new(Default::default()).unwrap().info();
    assert_eq!(
        (info.norm, info.epsilon, info.passes, info.loss),
        (Norm::Linf, Some(0.3), 25_701, None)
    );
    for (text, said) in [
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to"),
        (r#"{"pairs": 0}"#, "pairs is 0"),
        (r#"{"delta": 0}"#, "delta is 0"),
        (r#"{"epsilon": -1}"#, "epsilon is -1"),
        (r#"{"learning_rate": 0}"#, "learning_rate is 0"),
    ] {
        let error = Spsa::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
