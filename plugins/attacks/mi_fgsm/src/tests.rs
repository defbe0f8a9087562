use crate::{MiFgsm, MiFgsmSettings};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, grey, ids, images, network, values, within_its_ball};

fn mi_fgsm(epsilon: f64) -> MiFgsm {
    MiFgsm::new(MiFgsmSettings {
        epsilon,
        ..Default::default()
    })
    .unwrap()
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_ball_and_bounds() {
    let (x, y) = (images(7), network().predict(&images(7)).unwrap());
    for target in [network(), network().with_early_stop(false)] {
        for attack in [mi_fgsm(0.15), mi_fgsm(0.)] {
            within_its_ball(&target, &attack, &x, &y);
        }
    }
}

/// A linear model falls exactly beyond its distance.
#[test]
fn a_linear_target_is_broken_exactly_beyond_its_distance() {
    let weight: Vec<f32> = (0..9).map(|i| i as f32 - 4.5).collect();
    let sum: f32 = weight.iter().sum();
    let target = Testbed::linear(INPUT, &[vec![0.; 9], weight.clone()], &[0.6 + 0.5 * sum, 0.]).unwrap();
    let distance = f64::from(0.6 / weight.iter().map(|w| w.abs()).sum::<f32>());
    for (share, broken) in [(0.95, false), (1.05, true)] {
        let attack = mi_fgsm(distance * share);
        for target in [target.clone(), target.with_early_stop(false)] {
            let x_adv = target.attack(&attack, &ids(1), &grey(), &[0]).unwrap().x_adv;
            assert_eq!(target.predict(&x_adv).unwrap() == [1], broken, "{share}");
        }
    }
}

/// By hand: gradients over their mean absolute value, added up. Two pixels pull harder at first, one of them in vain later.
#[test]
fn steps_follow_the_sum_of_normalised_gradients() {
    // The label's lead falls with x_0 until .64, and rises with it from there on.
    let target = Testbed::new([1, 1, 2], 2, |_, x| {
        let x = x.flatten_from(1)?;
        let (a, b) = (x.narrow(1, 0, 1)?, x.narrow(1, 1, 1)?);
        let tent = (a - 0.64)?.abs()?.neg()?;
        let other = ((tent * 4.)? + b)?;
        Tensor::cat(&[&other.zeros_like()?.affine(1., 9.)?, &other], 1)
    });
    let x = Tensor::new(&[0.5f32, 0.25], &Device::Cpu)
        .unwrap()
        .reshape((1, 1, 1, 2))
        .unwrap();
    let at = |decay, steps| {
        let settings = MiFgsmSettings {
            epsilon: 1.,
            step_size: Some(0.0625),
            decay,
            steps,
            ..Default::default()
        };
        values(
            &target
                .attack(&MiFgsm::new(settings).unwrap(), &ids(1), &x, &[0])
                .unwrap()
                .x_adv,
        )
    };
    // Without memory x_0 turns back as soon as it has passed .64; the sum of three gradients needs three more steps for that.
    assert_eq!(at(0., 5), [0.5 + 0.0625 * 3., 0.25 + 0.0625 * 5.]);
    assert_eq!(at(1., 5), [0.5 + 0.0625 * 5., 0.25 + 0.0625 * 5.]);
}

#[test]
fn it_stops_at_the_first_success_where_that_is_allowed() {
    let target = Testbed::linear(INPUT, &[vec![0.; 9], vec![1.; 9]], &[0.4, 0.]).unwrap();
    let pixels = [vec![0f32; 9], vec![0.5; 9]].concat();
    let x = Tensor::from_vec(pixels, (2, 1, 3, 3), &Device::Cpu).unwrap();
    let out = target.attack(&mi_fgsm(0.1), &ids(2), &x, &[0, 0]).unwrap().x_adv;
    assert!(values(&out)[..9].iter().all(|v| (v - 0.05).abs() < 1e-6), "{out}");
    assert_eq!(values(&out)[9..], values(&x)[9..]);
    let patient = target.with_early_stop(false);
    let out = patient.attack(&mi_fgsm(0.1), &ids(2), &x, &[0, 0]).unwrap().x_adv;
    assert!(values(&out)[..9].iter().all(|v| (v - 0.1).abs() < 1e-6));
}

#[test]
fn gradients_of_any_size_give_no_nan() {
    for size in [0., 1e-45, 1e-30, 1e30, 3e37] {
        let target = Testbed::linear(INPUT, &[vec![0.; 9], vec![size; 9]], &[1., 0.]).unwrap();
        let x_adv = target
            .attack(&mi_fgsm(0.1), &ids(3), &images(3), &[0; 3])
            .unwrap()
            .x_adv;
        assert!(values(&x_adv).iter().all(|v| (0. ..=1.).contains(v)), "{size}");
    }
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = mi_fgsm(0.3).info();
    assert_eq!((info.norm, info.epsilon, info.passes), (Norm::Linf, Some(0.3), 10));
    assert!((info.reach.unwrap() - 0.3).abs() < 1e-12);
    for (text, said) in [
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to"),
        (r#"{"epsilon": -1}"#, "epsilon is -1: choose a value from 0"),
        (r#"{"decay": -1}"#, "decay is -1"),
        (r#"{"step_size": -1}"#, "step_size is -1"),
    ] {
        let error = MiFgsm::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
