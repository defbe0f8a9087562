use crate::tanh_space::TanhSpace;
use crate::{Cw, CwSettings, Preset, batch};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, values};

fn cw(text: &str) -> Cw {
    Cw::new(advae_sdk::serde_json::from_str(text).unwrap()).unwrap()
}

fn tensor(pixels: Vec<f32>) -> Tensor {
    let n = pixels.len() / 9;
    Tensor::from_vec(pixels, (n, 1, 3, 3), &Device::Cpu).unwrap()
}

fn images(n: usize) -> Tensor {
    tensor(
        (0..n * 9)
            .map(|i| ((i * 37 % 23) as f32 / 15. - 0.2).clamp(0., 1.))
            .collect(),
    )
}

fn distances(a: &Tensor, b: &Tensor) -> Vec<f32> {
    Norm::L2.length(&(a - b).unwrap()).unwrap().to_vec1().unwrap()
}

fn ids(n: usize) -> Vec<u64> {
    (0..n as u64).collect()
}

/// Label 0 until `sum x` passes 5, with all logits below zero.
fn plane() -> Testbed {
    Testbed::linear(INPUT, &[vec![-1.; 9], vec![0.; 9], vec![-1.; 9]], &[-10., -15., -30.]).unwrap()
}

#[test]
fn the_nearest_point_of_a_plane_is_found() {
    // From .5 each, sum 4.5, the plane lies .5 / 3 away.
    let out = plane()
        .attack(&cw(r#"{"preset": "strong"}"#), &ids(1), &tensor(vec![0.5; 9]), &[0])
        .unwrap();
    let distance = distances(&out.x_adv, &tensor(vec![0.5; 9]))[0];
    assert_eq!(
        (out.found, plane().predict(&out.x_adv).unwrap()),
        (Some(vec![true]), vec![1])
    );
    assert!((0.1666..0.1700).contains(&distance), "{distance}");
}

#[test]
fn confidence_goes_beyond_the_plane() {
    let attack = cw(r#"{"preset": "strong", "confidence": 0.4}"#);
    let out = plane().attack(&attack, &ids(1), &tensor(vec![0.5; 9]), &[0]).unwrap();
    let distance = distances(&out.x_adv, &tensor(vec![0.5; 9]))[0];
    assert!((0.2999..0.3060).contains(&distance), "{distance}");
}

#[test]
fn pixels_at_the_bounds_move() {
    let target = Testbed::linear(INPUT, &[vec![0.; 9], vec![1.; 9]], &[1.8, 0.]).unwrap();
    let out = target
        .attack(&cw(r#"{"preset": "strong"}"#), &ids(1), &tensor(vec![0.; 9]), &[0])
        .unwrap();
    assert_eq!(out.found, Some(vec![true]));
    assert!(
        values(&out.x_adv).iter().all(|x| (0.19..0.22).contains(x)),
        "{:?}",
        values(&out.x_adv)
    );

    let falling = Testbed::linear(INPUT, &[vec![0.; 9], vec![-1.; 9]], &[-7.2, 0.]).unwrap();
    let out = falling
        .attack(&cw(r#"{"preset": "strong"}"#), &ids(1), &tensor(vec![1.; 9]), &[0])
        .unwrap();
    assert!(
        values(&out.x_adv).iter().all(|x| (0.78..0.81).contains(x)),
        "{:?}",
        values(&out.x_adv)
    );
}

#[test]
fn a_failure_is_reported_with_the_clean_image() {
    let x = images(2);
    let flat = Testbed::linear(INPUT, &[vec![0.; 9], vec![0.; 9]], &[1., 0.]).unwrap();
    let far = Testbed::linear(INPUT, &[vec![0.; 9], vec![1.; 9]], &[20., 0.]).unwrap();
    for target in [flat, far] {
        let out = target
            .attack(&cw(r#"{"iterations": 50, "search_steps": 3}"#), &ids(2), &x, &[0, 0])
            .unwrap();
        assert_eq!(out.found, Some(vec![false, false]));
        assert_eq!(values(&out.x_adv), values(&x));
    }
}

#[test]
fn what_is_found_is_adversarial_and_inside_the_bounds() {
    let (target, x) = (Testbed::mlp(INPUT, 16, 4, 3).unwrap(), images(30));
    let y = target.predict(&x).unwrap();
    let out = target.attack(&cw(r#"{"iterations": 100}"#), &ids(30), &x, &y).unwrap();
    let found = out.found.unwrap();
    assert!(found.iter().filter(|found| **found).count() > 20, "{found:?}");
    for (i, predicted) in target.predict(&out.x_adv).unwrap().into_iter().enumerate() {
        assert_eq!(predicted != y[i], found[i], "{i}");
    }
    assert!(values(&out.x_adv).iter().all(|x| (0. ..=1.).contains(x)));
}

#[test]
fn results_do_not_depend_on_the_batch() {
    let (target, x) = (Testbed::mlp(INPUT, 16, 4, 3).unwrap(), images(7));
    let y = target.predict(&x).unwrap();
    for settings in [
        r#"{"iterations": 200}"#,
        r#"{"iterations": 40, "search_steps": 11, "initial_constant": 0.1}"#,
        r#"{"preset": "strong", "iterations": 30, "learning_rate": 0.05, "target": "random"}"#,
    ] {
        let together = target.attack(&cw(settings), &ids(7), &x, &y).unwrap();
        let found = together.found.unwrap();
        assert!(found.contains(&true), "{settings}");
        for i in 0..7 {
            let alone = target
                .attack(&cw(settings), &ids(7)[i..=i], &x.narrow(0, i, 1).unwrap(), &y[i..=i])
                .unwrap();
            assert_eq!(alone.found.unwrap()[0], found[i]);
            assert_eq!(
                values(&alone.x_adv),
                values(&together.x_adv.get(i).unwrap()),
                "{settings} {i}"
            );
        }
    }
}

#[test]
fn more_searches_find_nearer_images() {
    let (target, x) = (Testbed::mlp(INPUT, 16, 4, 3).unwrap(), images(20));
    let y = target.predict(&x).unwrap();
    let search = |steps: usize| {
        let settings = CwSettings {
            search_steps: Some(steps),
            iterations: Some(200),
            learning_rate: Some(0.05),
            ..Default::default()
        };
        let out = target.attack(&Cw::new(settings).unwrap(), &ids(20), &x, &y).unwrap();
        (distances(&out.x_adv, &x), out.found.unwrap())
    };
    let ((one, found_one), (six, found_six)) = (search(1), search(6));
    for i in 0..20 {
        assert!(
            found_six[i] >= found_one[i] && (!found_one[i] || six[i] <= one[i]),
            "{i}"
        );
    }
    assert!(six.iter().sum::<f32>() < 0.99 * one.iter().sum::<f32>());
}

#[test]
fn the_target_is_reached() {
    let (target, x) = (Testbed::mlp(INPUT, 16, 4, 3).unwrap(), images(12));
    let y = target.predict(&x).unwrap();
    let out = target
        .attack(&cw(r#"{"iterations": 100, "target": "next"}"#), &ids(12), &x, &y)
        .unwrap();
    let (targets, found) = (out.targets.unwrap(), out.found.unwrap());
    assert!(found.iter().filter(|found| **found).count() >= 6);
    for (i, predicted) in target.predict(&out.x_adv).unwrap().into_iter().enumerate() {
        assert_eq!(targets[i], (y[i] + 1) % 4);
        assert_eq!(predicted == targets[i], found[i]);
    }
}

#[test]
fn an_abort_saves_passes_and_no_abort_spends_them_all() {
    let flat = Testbed::linear(INPUT, &[vec![0.; 9], vec![0.; 9]], &[1., 0.]).unwrap();
    flat.attack(&cw(r#"{"iterations": 100}"#), &ids(3), &images(3), &[0, 0, 0])
        .unwrap();
    assert_eq!(
        flat.asked(),
        3 * 11,
        "the loss is looked at before the first step and after ten"
    );
    flat.attack(
        &cw(r#"{"iterations": 100, "abort": false}"#),
        &ids(3),
        &images(3),
        &[0, 0, 0],
    )
    .unwrap();
    assert_eq!(flat.asked(), 3 * 111);
}

#[test]
fn presets_can_be_overridden() {
    let info = |text: &str| cw(text).info();
    assert_eq!(
        (info("{}").norm, info("{}").epsilon, info("{}").passes),
        (Norm::L2, None, 1000)
    );
    assert_eq!(info(r#"{"preset": "strong"}"#).passes, 9000);
    assert_eq!(info(r#"{"preset": "authors_bpda"}"#).passes, 30);
    assert_eq!(info(r#"{"preset": "strong", "iterations": 10}"#).passes, 90);
    assert!(info(r#"{"target": 3}"#).targeted);
    let said = info("{}");
    assert_eq!(
        (said.reach, said.random_start, said.loss.as_deref()),
        (None, Some(false), Some("margin"))
    );
    let plan = CwSettings {
        preset: Preset::Strong,
        learning_rate: Some(0.5),
        ..Default::default()
    }
    .plan()
    .unwrap();
    assert_eq!(
        (plan.initial_constant, plan.learning_rate, plan.abort),
        (1e-3, 0.5, false)
    );
}

#[test]
fn bad_settings_are_refused() {
    for (text, said) in [
        (r#"{"initial_constant": 0}"#, "initial_constant is 0"),
        (
            r#"{"initial_constant": 1e300}"#,
            "initial_constant is 1e300: choose a value from 1e-10 to 10000000000",
        ),
        (r#"{"learning_rate": -1}"#, "learning_rate is -1"),
        (r#"{"learning_rate": 1e39}"#, "learning_rate is 1e39"),
        (r#"{"confidence": -0.5}"#, "confidence is -0.5"),
        (r#"{"confidence": 1e39}"#, "confidence is 1e39"),
        (r#"{"iterations": 0}"#, "iterations is 0"),
        (
            r#"{"iterations": 18446744073709551615}"#,
            "iterations is 18446744073709551615",
        ),
        (r#"{"search_steps": 0}"#, "search_steps is 0"),
        (
            r#"{"search_steps": 51}"#,
            "search_steps is 51: choose a value from 1 to 50",
        ),
    ] {
        let error = Cw::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_refusal_of_the_oracle_is_passed_on() {
    let error = plane()
        .without_gradients()
        .attack(&cw("{}"), &ids(1), &images(1), &[0])
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("does not grant gradients"), "{error}");
}

/// What runs on a device, here on the CPU: the same searches to rounding, whether they restart together or one by one.
#[test]
fn searches_in_one_batch_find_what_searches_one_by_one_do() {
    let (target, x) = (Testbed::mlp(INPUT, 16, 4, 3).unwrap(), images(20));
    let y = target.predict(&x).unwrap();
    let labels = Tensor::new(y.iter().map(|y| i64::from(*y)).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    for text in [
        r#"{"iterations": 60}"#,
        r#"{"preset": "strong", "iterations": 40, "search_steps": 4}"#,
        r#"{"iterations": 40, "search_steps": 10, "confidence": 0.1}"#,
        r#"{"preset": "authors_bpda", "target": "next"}"#,
    ] {
        let settings: CwSettings = advae_sdk::serde_json::from_str(text).unwrap();
        let (plan, goal) = (settings.plan().unwrap(), settings.target);
        let one_by_one = target.attack(&cw(text), &ids(20), &x, &y).unwrap();
        let search = |oracle: &Oracle| {
            let objective = goal.objective(oracle, &x, &labels)?;
            batch::search(plan, TanhSpace { low: 0., high: 1. }, oracle, &objective, &x)
        };
        let (found, x_adv) = target.with_oracle(&ids(20), search).unwrap();
        assert_eq!(one_by_one.found.unwrap(), found, "{text}");
        let [alone, together] = [&one_by_one.x_adv, &x_adv].map(|images| distances(images, &x));
        for (alone, together) in alone.into_iter().zip(together) {
            assert!(
                (alone - together).abs() < 2e-3 * (1. + alone),
                "{text}: {alone} {together}"
            );
        }
    }
}
