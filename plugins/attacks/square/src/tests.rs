use crate::{Square, SquareSettings};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{ids, images_of, values, within_its_ball};

const INPUT: [usize; 3] = [1, 6, 6];

fn images(n: usize) -> Tensor {
    images_of(INPUT, n)
}

fn settings(norm: Norm) -> SquareSettings {
    SquareSettings {
        norm,
        epsilon: if norm == Norm::L2 { 0.8 } else { 0.15 },
        n_queries: 100,
        ..Default::default()
    }
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_ball_and_bounds() {
    let network = Testbed::mlp(INPUT, 16, 4, 3).unwrap();
    let (x, y) = (images(7), network.predict(&images(7)).unwrap());
    // No gradient is granted.
    let network = network.without_gradients();
    for target in [network.clone(), network.with_early_stop(false)] {
        for norm in [Norm::Linf, Norm::L2] {
            within_its_ball(&target, &Square::new(settings(norm)).unwrap(), &x, &y);
        }
    }
}

/// Of all images of the Linf ball the corner with the signs of the weights has the lowest margin, and single pixels reach it.
#[test]
fn it_finds_the_corner_of_a_linear_model() {
    let weight: Vec<f32> = (0..36).map(|i| (i * 7 % 11) as f32 - 5.).collect();
    let gain: f32 = weight.iter().map(|w| w.abs()).sum();
    let x = (images(1).zeros_like().unwrap() + 0.5).unwrap();
    let sum: f32 = weight.iter().sum::<f32>() * 0.5;
    for (share, broken) in [(0.93, true), (1.01, false)] {
        // The label leads by a share of what the ball can take away.
        let target = Testbed::linear(INPUT, &[vec![0.; 36], weight.clone()], &[0.1 * gain * share + sum, 0.]).unwrap();
        let settings = SquareSettings {
            epsilon: 0.1,
            n_queries: 3000,
            ..Default::default()
        };
        let x_adv = target
            .attack(&Square::new(settings).unwrap(), &ids(1), &x, &[0])
            .unwrap()
            .x_adv;
        assert_eq!(target.predict(&x_adv).unwrap() == [1], broken, "{share}");
    }
}

#[test]
fn the_share_is_halved_on_the_published_schedule() {
    let square = |rescale_schedule, n_queries| {
        let settings = SquareSettings {
            rescale_schedule,
            n_queries,
            ..Default::default()
        };
        Square::new(settings).unwrap()
    };
    let plain = square(false, 5000);
    let shares = [0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 4999].map(|query| plain.share(query));
    let halved = [1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 128].map(|by| 0.8 / f64::from(by));
    assert_eq!(shares, halved);
    let stretched = square(true, 5000);
    assert_eq!(
        [5, 6, 26, 4001].map(|query| stretched.share(query)),
        [1, 2, 4, 512].map(|by| 0.8 / f64::from(by))
    );
}

#[test]
fn it_stops_at_the_first_success_where_that_is_allowed() {
    let target = Testbed::linear(INPUT, &[vec![0.; 36], vec![1.; 36]], &[18.1, 0.]).unwrap();
    let pixels = [vec![0.5f32; 36], vec![0.9; 36]].concat();
    let x = Tensor::from_vec(pixels, (2, 1, 6, 6), &Device::Cpu).unwrap();
    let square = Square::new(settings(Norm::Linf)).unwrap();
    let out = target.attack(&square, &ids(2), &x, &[0, 0]).unwrap().x_adv;
    assert_eq!(target.predict(&out).unwrap(), [1, 1]);
    assert_eq!(
        values(&out)[36..],
        values(&x)[36..],
        "the second was wrong to begin with"
    );
    assert!(target.asked() < 60, "{}", target.asked());
    let patient = target.with_early_stop(false);
    let before = patient.asked();
    patient.attack(&square, &ids(2), &x, &[0, 0]).unwrap();
    assert_eq!(
        patient.asked() - before,
        2 * 101,
        "every query, where stopping is not allowed"
    );
}

#[test]
fn a_target_is_reached_and_reported() {
    let mut weights = vec![vec![0.; 36]; 3];
    (weights[1], weights[2]) = (vec![-1.; 36], vec![1.; 36]);
    let target = Testbed::linear(INPUT, &weights, &[25., 0., 0.]).unwrap();
    let x = (images(1).zeros_like().unwrap() + 0.5).unwrap();
    let settings = SquareSettings {
        epsilon: 0.4,
        target: Goal::Class(2),
        ..settings(Norm::Linf)
    };
    let out = target
        .attack(&Square::new(settings).unwrap(), &ids(1), &x, &[0])
        .unwrap();
    assert_eq!(
        (out.targets, target.predict(&out.x_adv).unwrap()),
        (Some(vec![2]), vec![2])
    );
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = Square::new(Default::default()).unwrap().info();
    assert_eq!((info.epsilon, info.passes, info.loss), (Some(0.3), 5002, None));
    for (text, said) in [
        (r#"{"epsilon": -1}"#, "epsilon is -1: choose a value from 0 to"),
        (r#"{"n_queries": 0}"#, "n_queries is 0: choose a value from 1 to"),
        (r#"{"p_init": 2}"#, "p_init is 2"),
    ] {
        let error = Square::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
