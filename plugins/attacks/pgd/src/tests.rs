use crate::{Loss, Pgd, PgdSettings};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, ids, images, together_as_alone, values};

const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

fn network() -> Testbed {
    Testbed::mlp(INPUT, 16, 4, 3).unwrap()
}

/// Images with all sorts of pixels, zeros and ones among them.
/// The attack on samples that are correct before it.
fn attack(target: &Testbed, settings: PgdSettings, n: usize) -> Perturbed {
    let x = images(n);
    let y = network().predict(&x).unwrap();
    target.attack(&Pgd::new(settings).unwrap(), &ids(n), &x, &y).unwrap()
}

fn robust(target: &Testbed, settings: PgdSettings, n: usize) -> usize {
    let y = network().predict(&images(n)).unwrap();
    let predicted = network().predict(&attack(target, settings, n).x_adv).unwrap();
    predicted.iter().zip(&y).filter(|(a, b)| a == b).count()
}

fn settings(norm: Norm) -> PgdSettings {
    PgdSettings {
        norm,
        epsilon: if norm == Norm::L2 { 0.4 } else { 0.15 },
        steps: 10,
        ..Default::default()
    }
}

#[test]
fn results_do_not_depend_on_the_batch() {
    let (target, x) = (network(), images(7));
    let y = target.predict(&x).unwrap();
    for norm in NORMS {
        for restarts in [1, 3] {
            for early_stop in [true, false] {
                let pgd = Pgd::new(PgdSettings {
                    restarts,
                    early_stop,
                    target: Goal::Random,
                    ..settings(norm)
                })
                .unwrap();
                let together = together_as_alone(&target, &pgd, &x, &y);
                assert!(together.targets.is_some(), "{norm} {restarts} {early_stop}");
            }
        }
    }
}

#[test]
fn images_stay_in_the_ball_and_in_the_bounds() {
    for norm in NORMS {
        for step_size in [0.01, 10.] {
            let settings = PgdSettings {
                step_size: Some(step_size),
                early_stop: false,
                ..settings(norm)
            };
            let (epsilon, x_adv) = (settings.epsilon, attack(&network(), settings, 30).x_adv);
            let length = norm
                .length(&(&x_adv - images(30)).unwrap())
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            assert!(
                length.iter().all(|l| f64::from(*l) <= epsilon + 1e-6),
                "{norm} {length:?}"
            );
            assert!(values(&x_adv).iter().all(|v| (0. ..=1.).contains(v)));
        }
    }
}

#[test]
fn epsilon_zero_returns_the_clean_image() {
    for norm in NORMS {
        let x_adv = attack(
            &network(),
            PgdSettings {
                epsilon: 0.,
                ..settings(norm)
            },
            5,
        )
        .x_adv;
        assert_eq!(values(&x_adv), values(&images(5)));
    }
}

#[test]
fn a_zero_gradient_gives_no_nan() {
    let flat = Testbed::linear(INPUT, &[vec![0.; 9], vec![0.; 9]], &[1., 0.]).unwrap();
    for norm in NORMS {
        let still = Pgd::new(PgdSettings {
            random_start: Some(false),
            ..settings(norm)
        })
        .unwrap();
        assert_eq!(
            values(&flat.attack(&still, &ids(3), &images(3), &[0; 3]).unwrap().x_adv),
            values(&images(3))
        );
    }
}

#[test]
fn a_linear_target_is_broken_exactly_beyond_its_distance() {
    let weight: Vec<f32> = (0..9).map(|i| i as f32 - 4.).collect();
    let target = Testbed::linear(INPUT, &[vec![0.; 9], weight.clone()], &[0.6, 0.]).unwrap();
    let x = (images(1).zeros_like().unwrap() + 0.5).unwrap();
    // z_0 - z_1 = .6 - w (x + delta), and w x = 0: the plane lies .6 / |w| away.
    let length = |dual: Norm| match dual {
        Norm::L2 => weight.iter().map(|w| w * w).sum::<f32>().sqrt(),
        Norm::Linf => weight.iter().map(|w| w.abs()).sum(),
    };
    for norm in NORMS {
        let distance = f64::from(0.6 / length(norm));
        for (share, broken) in [(0.99, false), (1.01, true)] {
            for early_stop in [true, false] {
                let settings = PgdSettings {
                    norm,
                    epsilon: distance * share,
                    relative_step_size: Some(0.2),
                    steps: 20,
                    early_stop,
                    ..Default::default()
                };
                let x_adv = target
                    .attack(&Pgd::new(settings).unwrap(), &ids(1), &x, &[0])
                    .unwrap()
                    .x_adv;
                assert_eq!(
                    target.predict(&x_adv).unwrap() == [1],
                    broken,
                    "{norm} {share} {early_stop}"
                );
            }
        }
    }
}

#[test]
fn the_first_adversarial_iterate_is_returned_and_its_sample_left_alone() {
    let target = Testbed::linear(INPUT, &[vec![0.; 9], vec![1.; 9]], &[0.4, 0.]).unwrap();
    let pixels = [vec![0f32; 9], vec![0.5; 9]].concat();
    let x = Tensor::from_vec(pixels, (2, 1, 3, 3), &Device::Cpu).unwrap();
    let settings = PgdSettings {
        epsilon: 0.2,
        steps: 20,
        step_size: Some(0.01),
        random_start: Some(false),
        ..Default::default()
    };
    // After n steps of .01 the nine pixels sum to .09 n, which passes .4 at n = 5; the second image is wrong at once.
    let out = target
        .attack(&Pgd::new(settings.clone()).unwrap(), &ids(2), &x, &[0, 0])
        .unwrap()
        .x_adv;
    assert!(values(&out)[..9].iter().all(|v| (v - 0.05).abs() < 1e-6));
    assert_eq!(values(&out)[9..], values(&x)[9..]);
    assert_eq!(
        target.asked(),
        2 + 5,
        "the second sample left after the start, the first after five steps"
    );

    let patient = target.with_early_stop(false);
    let out = patient
        .attack(&Pgd::new(settings).unwrap(), &ids(2), &x, &[0, 0])
        .unwrap()
        .x_adv;
    assert!(
        values(&out)[..9].iter().all(|v| (v - 0.2).abs() < 1e-6),
        "the last image, where stopping is not allowed"
    );
    assert_eq!(target.asked(), 7 + 2 * 20);
}

#[test]
fn stopping_early_and_restarting_never_flatter_the_target() {
    let (target, n) = (network(), 60);
    for norm in NORMS {
        for loss in [Loss::Ce, Loss::Margin] {
            let settings = PgdSettings {
                steps: 5,
                epsilon: 0.6 * settings(norm).epsilon,
                loss,
                ..settings(norm)
            };
            let last = robust(&target.with_early_stop(false), settings.clone(), n);
            let first = robust(&target, settings.clone(), n);
            let several = robust(
                &target,
                PgdSettings {
                    restarts: 4,
                    ..settings.clone()
                },
                n,
            );
            let several_last = robust(
                &target.with_early_stop(false),
                PgdSettings {
                    restarts: 4,
                    ..settings.clone()
                },
                n,
            );
            assert!(
                first <= last && several <= first && several_last <= last,
                "{norm} {last} {first} {several} {several_last}"
            );
            assert!(first > 0 && first < n, "{norm}: {first} of {n} says nothing");
        }
    }
}

#[test]
fn targets_are_reached_and_reported() {
    let (target, n) = (network(), 40);
    let y = target.predict(&images(n)).unwrap();
    for goal in [Goal::Next, Goal::Random, Goal::LeastLikely, Goal::Class(2)] {
        let settings = PgdSettings {
            target: goal,
            epsilon: 1.,
            steps: 60,
            step_size: Some(0.05),
            ..settings(Norm::Linf)
        };
        let out = attack(&target, settings, n);
        let targets = out.targets.unwrap();
        assert!(targets.iter().zip(&y).all(|(target, y)| target != y), "{goal:?}");
        let reached = target
            .predict(&out.x_adv)
            .unwrap()
            .iter()
            .zip(&targets)
            .filter(|(a, b)| a == b)
            .count();
        assert!(reached * 10 >= n * 7, "{goal:?}: {reached} of {n}");
    }
}

#[test]
fn the_rules_of_the_targets() {
    let target = Testbed::linear(INPUT, &vec![vec![0.; 9]; 4], &[3., 0., -1., -1.]).unwrap();
    let chosen = |goal: Goal, y: &[u32]| {
        let x = images(y.len());
        let y = Tensor::new(y, &Device::Cpu).unwrap();
        target.with_oracle(&ids(x.dim(0).unwrap()), |oracle| {
            Ok(goal.objective(oracle, &x, &y)?.targets())
        })
    };
    assert_eq!(chosen(Goal::Untargeted, &[0, 3]).unwrap(), None);
    assert_eq!(chosen(Goal::Next, &[0, 3]).unwrap(), Some(vec![1, 0]));
    assert_eq!(chosen(Goal::LeastLikely, &[0, 2]).unwrap(), Some(vec![2, 3]));
    assert_eq!(chosen(Goal::Class(3), &[0, 3]).unwrap(), Some(vec![3, 0]));
    let random = chosen(Goal::Random, &[1; 200]).unwrap().unwrap();
    assert!(
        [0, 2, 3]
            .iter()
            .all(|class| random.iter().filter(|t| *t == class).count() > 40)
    );
    let error = chosen(Goal::Class(9), &[0]).unwrap_err().to_string();
    assert!(error.contains("target 9") && error.contains("choose 0 to 3"), "{error}");
}

#[test]
fn settings_are_read_and_checked() {
    let read = |text: &str| advae_sdk::serde_json::from_str::<PgdSettings>(text);
    let settings = read(r#"{"norm": "l2", "target": 3, "loss": "margin", "step_size": 0.5}"#).unwrap();
    assert_eq!(
        (settings.norm, settings.target, settings.loss),
        (Norm::L2, Goal::Class(3), Loss::Margin)
    );
    assert_eq!(read(r#"{"target": null}"#).unwrap().target, Goal::Untargeted);
    assert_eq!(read(r#"{"target": "least_likely"}"#).unwrap().target, Goal::LeastLikely);
    for (text, said) in [
        (
            r#"{"target": "nearest"}"#,
            "least_likely, the number of a class, or null",
        ),
        (r#"{"target": -1}"#, "least_likely, the number of a class, or null"),
        (r#"{"norm": "l1"}"#, "linf"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    for (text, said) in [
        (r#"{"epsilon": -0.5}"#, "epsilon is -0.5"),
        (
            r#"{"epsilon": 1e300}"#,
            "epsilon is 1e300: choose a value from 0 to 1000000",
        ),
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to 100000"),
        (r#"{"steps": 18446744073709551615}"#, "steps is 18446744073709551615"),
        (r#"{"restarts": 0}"#, "restarts is 0"),
        (
            r#"{"restarts": 18446744073709551615}"#,
            "restarts is 18446744073709551615",
        ),
        (r#"{"restarts": 2, "random_start": false}"#, "set it to 1"),
        (r#"{"step_size": -1}"#, "step_size is -1"),
        (r#"{"step_size": 1e300}"#, "step_size is 1e300"),
        (r#"{"relative_step_size": 1e300}"#, "relative_step_size is 1e300"),
    ] {
        let error = Pgd::new(read(text).unwrap()).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn it_names_norm_radius_and_cost() {
    let info = |text: &str| Pgd::new(advae_sdk::serde_json::from_str(text).unwrap()).unwrap().info();
    assert_eq!(
        (info("{}").norm, info("{}").epsilon, info("{}").passes),
        (Norm::Linf, Some(0.3), 40)
    );
    assert_eq!(info(r#"{"restarts": 3, "target": "next"}"#).passes, 3 * 41);
    assert_eq!(
        (info("{}").random_start, info("{}").loss.as_deref()),
        (Some(true), Some("ce"))
    );
    let other = info(r#"{"loss": "margin", "random_start": false}"#);
    assert_eq!(
        (other.random_start, other.loss.as_deref()),
        (Some(false), Some("margin"))
    );
}

#[test]
fn bim_is_pgd_from_the_clean_image() {
    let read = |text: &str| Pgd::new(advae_sdk::serde_json::from_str(text).unwrap());
    assert_eq!(read(r#"{"preset": "bim"}"#).unwrap().info().random_start, Some(false));
    let error = read(r#"{"preset": "bim", "restarts": 2}"#).err().unwrap().to_string();
    assert!(error.contains("random_start is false"), "{error}");
    let both = read(r#"{"preset": "bim", "random_start": true, "restarts": 2}"#);
    assert_eq!(both.unwrap().info().random_start, Some(true));
}

#[test]
fn a_default_step_crosses_the_ball_but_for_the_papers() {
    let info = |text: &str| Pgd::new(advae_sdk::serde_json::from_str(text).unwrap()).unwrap().info();
    let reach = |text: &str| info(text).reach.unwrap();
    for text in [
        "{}",
        r#"{"epsilon": 0.30000001192092896}"#,
        r#"{"random_start": false}"#,
    ] {
        assert!(
            (reach(text) - 0.4).abs() < 1e-12,
            "the paper's 40 steps of 0.01: {text}"
        );
    }
    for text in [
        r#"{"steps": 1}"#,
        r#"{"steps": 10}"#,
        r#"{"steps": 100}"#,
        r#"{"epsilon": 0.03137254901960784}"#,
        r#"{"epsilon": 0.9}"#,
        r#"{"norm": "l2"}"#,
        r#"{"norm": "l2", "epsilon": 2}"#,
    ] {
        let share = reach(text) / info(text).epsilon.unwrap();
        assert!((share - 2.5).abs() < 1e-12, "{text}: {share} epsilon");
    }
    assert!((reach(r#"{"steps": 20, "step_size": 0.02}"#) - 0.4).abs() < 1e-12);
    assert!((reach(r#"{"steps": 20, "relative_step_size": 0.5}"#) - 3.).abs() < 1e-12);
}

/// Ten steps of .01 left 52 % of a network that forty broke.
#[test]
fn few_steps_of_the_default_length_find_what_many_find() {
    let target = network().with_early_stop(false);
    let at = |steps| {
        let epsilon = settings(Norm::Linf).epsilon;
        robust(
            &target,
            PgdSettings {
                steps,
                epsilon,
                ..Default::default()
            },
            200,
        )
    };
    let (few, many) = (at(5), at(100));
    assert!(few <= many + 6, "{few} after 5 steps, {many} after 100");
    assert!((20..180).contains(&many), "{many} of 200 says nothing");
}

/// Gradients of every size that `f32` has, and beyond: what does not overflow in the network must not in the attack.
#[test]
fn gradients_of_any_size_lead_to_images_within_ball_and_bounds() {
    for size in [0., 1e-45, 1e-40, 1e-25, 1e-20, 1e20, 1e30, 3e37] {
        let weight: Vec<f32> = (0..9).map(|i| size * (i as f32 - 4.) / 4.).collect();
        let target = Testbed::linear(INPUT, &[vec![0.; 9], weight], &[1., 0.]).unwrap();
        for (norm, loss) in NORMS
            .into_iter()
            .flat_map(|norm| [(norm, Loss::Ce), (norm, Loss::Margin)])
        {
            for restarts in [1, 2] {
                let settings = PgdSettings {
                    loss,
                    restarts,
                    ..settings(norm)
                };
                let epsilon = settings.epsilon;
                let pgd = Pgd::new(settings).unwrap();
                let x = images(3);
                let x_adv = target.attack(&pgd, &ids(3), &x, &[0; 3]).unwrap().x_adv;
                let length = norm.length(&(&x_adv - &x).unwrap()).unwrap().to_vec1::<f32>().unwrap();
                assert!(
                    length.iter().all(|l| f64::from(*l) <= epsilon + 1e-6),
                    "{size} {norm} {loss:?}: {length:?}"
                );
                assert!(values(&x_adv).iter().all(|v| (0. ..=1.).contains(v)));
            }
        }
    }
}

/// The host measures in `f64` and tolerates 1e-6: a long L2 step must not lose that to rounding.
#[test]
fn images_stay_in_balls_of_any_radius() {
    let input = [3, 32, 32];
    let weight: Vec<f32> = (0..3072).map(|i| ((i * 7919 % 1000) as f32 - 500.) * 1e-3).collect();
    let target = Testbed::linear(input, &[vec![0.; 3072], weight], &[1e4, 0.]).unwrap();
    let pixels: Vec<f32> = (0..3072).map(|i| 0.3 + 0.4 * ((i * 31 % 97) as f32 / 97.)).collect();
    let x = Tensor::from_vec(pixels, (1, 3, 32, 32), &Device::Cpu).unwrap();
    for epsilon in [0.5, 2., 5., 10., 20.] {
        for random_start in [true, false] {
            let settings = PgdSettings {
                norm: Norm::L2,
                epsilon,
                random_start: Some(random_start),
                // Its gradient is the same everywhere.
                loss: Loss::Margin,
                ..Default::default()
            };
            let pgd = Pgd::new(settings).unwrap();
            let x_adv = target.attack(&pgd, &ids(1), &x, &[0]).unwrap().x_adv;
            let pairs = values(&x_adv).into_iter().zip(values(&x));
            let squares = pairs.map(|(a, b)| (f64::from(a) - f64::from(b)).powi(2));
            let length = squares.sum::<f64>().sqrt();
            assert!(length <= epsilon + 1e-6, "{length} is more than {epsilon}");
            assert!(
                length > 0.9 * epsilon.min(15.),
                "{length} leaves the ball of {epsilon} unused"
            );
        }
    }
}

#[test]
fn a_target_is_never_the_true_label_even_where_the_model_is_wrong() {
    // It says 0 to everything; logits fall from class to class.
    let chosen = |classes: usize, goal: Goal, y: &[u32]| {
        let bias: Vec<f32> = (0..classes).map(|class| -(class as f32)).collect();
        let target = Testbed::linear(INPUT, &vec![vec![0.; 9]; classes], &bias).unwrap();
        let (x, y) = (images(y.len()), Tensor::new(y, &Device::Cpu).unwrap());
        let objective = |oracle: &Oracle| goal.objective_by(Label::Predicted, oracle, &x, &y);
        target
            .with_oracle(&ids(x.dim(0).unwrap()), objective)
            .unwrap()
            .targets()
            .unwrap()
    };
    assert_eq!(chosen(4, Goal::Next, &[0, 1, 2]), [1, 2, 1]);
    assert_eq!(chosen(4, Goal::Class(1), &[0, 1, 2]), [1, 2, 1]);
    assert_eq!(chosen(4, Goal::LeastLikely, &[0, 3, 2]), [3, 1, 3]);
    // The class after the true label is the prediction, which is passed over too.
    assert_eq!(chosen(4, Goal::Class(3), &[3]), [1]);
    assert!(
        chosen(4, Goal::Random, &[2; 100])
            .iter()
            .all(|target| [1, 3].contains(target))
    );
    // Of two classes the other one is all there is.
    assert_eq!(chosen(2, Goal::Next, &[0, 1]), [1, 0]);
}

#[test]
fn a_refusal_of_the_oracle_is_passed_on() {
    let pgd = Pgd::new(PgdSettings::default()).unwrap();
    let error = network()
        .without_gradients()
        .attack(&pgd, &ids(1), &images(1), &[0])
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("does not grant gradients"), "{error}");
}
