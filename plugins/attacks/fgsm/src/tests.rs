use crate::{Fgsm, FgsmSettings};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::values;

const INPUT: [usize; 3] = [1, 2, 2];

/// Two classes apart by `z_1 - z_0 = 3 x_0 - x_1 + 2 x_3 - 1`.
fn target() -> Testbed {
    Testbed::linear(INPUT, &[vec![0.; 4], vec![3., -1., 0., 2.]], &[0., -1.]).unwrap()
}

fn images(rows: &[[f32; 4]]) -> Tensor {
    Tensor::new(rows.concat(), &Device::Cpu)
        .unwrap()
        .reshape(((), 1, 2, 2))
        .unwrap()
}

fn fgsm(settings: FgsmSettings) -> Fgsm {
    Fgsm::new(settings).unwrap()
}

#[test]
fn a_step_follows_the_sign_and_stops_at_the_bounds() {
    let x = images(&[[0.5, 0.5, 0.5, 0.9], [0.1, 0.5, 0.5, 0.5]]);
    let out = target()
        .attack(
            &fgsm(FgsmSettings {
                epsilon: 0.25,
                ..Default::default()
            }),
            &[0, 1],
            &x,
            &[0, 1],
        )
        .unwrap();
    assert_eq!(values(&out.x_adv), [0.75, 0.25, 0.5, 1., 0., 0.75, 0.5, 0.25]);
    assert!(out.targets.is_none() && out.found.is_none());
}

#[test]
fn the_l2_step_has_length_epsilon() {
    let settings = FgsmSettings {
        norm: Norm::L2,
        epsilon: 0.25,
        ..Default::default()
    };
    let out = target()
        .attack(&fgsm(settings), &[0], &images(&[[0.5; 4]]), &[0])
        .unwrap();
    for (value, slope) in values(&out.x_adv).iter().zip([3., -1., 0., 2.]) {
        assert!((value - (0.5 + 0.25 * slope / 14f32.sqrt())).abs() < 1e-6, "{value}");
    }
}

#[test]
fn a_target_is_approached_and_reported() {
    let settings = FgsmSettings {
        epsilon: 0.25,
        target: Goal::Class(1),
        ..Default::default()
    };
    let out = target()
        .attack(&fgsm(settings), &[0], &images(&[[0.5; 4]]), &[0])
        .unwrap();
    assert_eq!(values(&out.x_adv), [0.75, 0.25, 0.5, 0.75]);
    assert_eq!(out.targets, Some(vec![1]));
}

#[test]
fn epsilon_zero_and_a_zero_gradient_change_nothing() {
    let x = images(&[[0.1, 0.2, 0.3, 1.]]);
    let still = fgsm(FgsmSettings {
        epsilon: 0.,
        ..Default::default()
    });
    assert_eq!(
        values(&target().attack(&still, &[0], &x, &[0]).unwrap().x_adv),
        values(&x)
    );
    let flat = Testbed::linear(INPUT, &[vec![0.; 4], vec![0.; 4]], &[1., 0.]).unwrap();
    for norm in [Norm::Linf, Norm::L2] {
        let step = fgsm(FgsmSettings {
            norm,
            ..Default::default()
        });
        assert_eq!(values(&flat.attack(&step, &[0], &x, &[0]).unwrap().x_adv), values(&x));
    }
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = fgsm(FgsmSettings {
        target: Goal::Next,
        ..Default::default()
    })
    .info();
    assert_eq!((info.epsilon, info.targeted, info.passes), (Some(0.3), true, 1));
    assert_eq!(
        (info.reach, info.random_start, info.loss.as_deref()),
        (Some(0.3), Some(false), Some("ce"))
    );
    for epsilon in [-0.1, f64::NAN, f64::INFINITY, 1e300] {
        let error = Fgsm::new(FgsmSettings {
            epsilon,
            ..Default::default()
        })
        .err()
        .unwrap()
        .to_string();
        assert!(
            error.contains(&format!("epsilon is {epsilon:?}: choose a value from 0 to 1000000")),
            "{error}"
        );
    }
    let denied = target()
        .without_gradients()
        .attack(&fgsm(Default::default()), &[0], &images(&[[0.5; 4]]), &[0]);
    assert!(denied.err().unwrap().to_string().contains("does not grant gradients"));
}
