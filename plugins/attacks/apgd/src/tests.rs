use crate::{Apgd, ApgdSettings, Loss};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, ids, images, network, values, within_its_ball};

const LOSSES: [Loss; 3] = [Loss::Ce, Loss::Dlr, Loss::DlrTargeted];

fn settings(norm: Norm, loss: Loss) -> ApgdSettings {
    ApgdSettings {
        norm,
        loss,
        epsilon: if norm == Norm::L2 { 0.4 } else { 0.15 },
        steps: 30,
        ..Default::default()
    }
}

fn cases() -> impl Iterator<Item = ApgdSettings> {
    [Norm::Linf, Norm::L2]
        .into_iter()
        .flat_map(|norm| LOSSES.map(|loss| settings(norm, loss)))
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_ball_and_bounds() {
    let (x, y) = (images(9), network().predict(&images(9)).unwrap());
    for target in [network(), network().with_early_stop(false)] {
        for settings in cases() {
            let apgd = Apgd::new(ApgdSettings {
                restarts: 2,
                ..settings
            });
            within_its_ball(&target, &apgd.unwrap(), &x, &y);
        }
    }
}

/// A linear model falls exactly beyond its distance, which APGD finds from any start.
#[test]
fn a_linear_target_is_broken_exactly_beyond_its_distance() {
    let weight: Vec<f32> = (0..9).map(|i| i as f32 - 4.).collect();
    let weights = [vec![0.; 9], weight.clone(), vec![0.; 9], vec![0.; 9], vec![0.; 9]];
    let target = Testbed::linear(INPUT, &weights, &[0.6, 0., -3., -4., -5.]).unwrap();
    let x = (images(1).zeros_like().unwrap() + 0.5).unwrap();
    for settings in cases() {
        let length: f32 = match settings.norm {
            Norm::L2 => weight.iter().map(|w| w * w).sum::<f32>().sqrt(),
            Norm::Linf => weight.iter().map(|w| w.abs()).sum(),
        };
        for (share, broken) in [(0.99, false), (1.01, true)] {
            let settings = ApgdSettings {
                epsilon: f64::from(0.6 / length) * share,
                ..settings.clone()
            };
            let said = format!("{settings:?}");
            let apgd = Apgd::new(settings).unwrap();
            for target in [target.clone(), target.with_early_stop(false)] {
                let x_adv = target.attack(&apgd, &ids(1), &x, &[0]).unwrap().x_adv;
                assert_eq!(target.predict(&x_adv).unwrap() == [1], broken, "{said}");
            }
        }
    }
}

#[test]
fn a_sample_that_is_wrong_or_found_is_left_alone_where_that_is_allowed() {
    let target = Testbed::linear(INPUT, &[vec![0.; 9], vec![1.; 9]], &[0.4, 0.]).unwrap();
    let pixels = [vec![0f32; 9], vec![0.5; 9]].concat();
    let x = Tensor::from_vec(pixels, (2, 1, 3, 3), &Device::Cpu).unwrap();
    let apgd = Apgd::new(ApgdSettings {
        epsilon: 0.2,
        ..Default::default()
    })
    .unwrap();
    let out = target.attack(&apgd, &ids(2), &x, &[0, 0]).unwrap().x_adv;
    assert_eq!(values(&out)[9..], values(&x)[9..], "the second was wrong to begin with");
    assert_eq!(target.predict(&out).unwrap(), [1, 1]);
    assert!(target.asked() < 20, "{} images", target.asked());
    let patient = target.with_early_stop(false);
    let before = patient.asked();
    patient.attack(&apgd, &ids(2), &x, &[0, 0]).unwrap();
    assert_eq!(
        patient.asked() - before,
        2 * 102,
        "all steps, where stopping is not allowed"
    );
    assert_eq!(apgd.info().passes, 102);
}

#[test]
fn zero_gradients_give_no_nan() {
    let flat = Testbed::linear(INPUT, &vec![vec![0.; 9]; 5], &[1., 0., 0., 0., 0.]).unwrap();
    for settings in cases() {
        let x_adv = flat
            .attack(&Apgd::new(settings).unwrap(), &ids(3), &images(3), &[0; 3])
            .unwrap()
            .x_adv;
        assert!(values(&x_adv).iter().all(|v| (0. ..=1.).contains(v)));
    }
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = |text: &str| {
        Apgd::new(advae_sdk::serde_json::from_str(text).unwrap())
            .unwrap()
            .info()
    };
    let plain = info("{}");
    assert_eq!(
        (plain.norm, plain.epsilon, plain.random_start),
        (Norm::Linf, Some(0.3), Some(true))
    );
    assert_eq!((plain.passes, plain.loss.as_deref()), (1 + 101, Some("ce")));
    let targeted = info(r#"{"loss": "dlr_targeted", "norm": "l2", "restarts": 2}"#);
    assert_eq!(
        (targeted.passes, targeted.loss.as_deref()),
        (1 + 9 * 2 * 101, Some("dlr_targeted"))
    );
    assert!(!targeted.targeted, "any other label will do");
    for (text, said) in [
        (r#"{"epsilon": -1}"#, "epsilon is -1: choose a value from 0 to"),
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to 100000"),
        (r#"{"restarts": 0}"#, "restarts is 0"),
        (r#"{"n_target_classes": 0}"#, "n_target_classes is 0"),
        (r#"{"rho": 2}"#, "rho is 2"),
    ] {
        let error = Apgd::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
    let two = Testbed::linear(INPUT, &[vec![0.; 9], vec![1.; 9]], &[9., 0.]).unwrap();
    let dlr = Apgd::new(settings(Norm::Linf, Loss::Dlr)).unwrap();
    let error = two.attack(&dlr, &ids(1), &images(1), &[0]).err().unwrap().to_string();
    assert!(
        error.contains("loss=dlr needs 3 classes at least, these logits have 2"),
        "{error}"
    );
    let denied =
        network()
            .without_gradients()
            .attack(&dlr, &ids(1), &images(1), &network().predict(&images(1)).unwrap());
    assert!(denied.err().unwrap().to_string().contains("does not grant gradients"));
}
