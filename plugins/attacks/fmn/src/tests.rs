use crate::fmn::next_radius;
use crate::start::{QUESTIONS, beyond};
use crate::{Fmn, FmnSettings, Start};
use advae_sdk::candle_core::{DType, Device, bail};
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;
use advae_sdk::testing::toy::{INPUT, finds_what_is_adversarial, grey, ids, images, lengths, network, planes, values};

fn fmn(norm: Norm, steps: u64) -> Fmn {
    Fmn::new(FmnSettings {
        norm,
        steps,
        ..Default::default()
    })
    .unwrap()
}

const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];
const STARTS: [Start; 3] = [Start::Clean, Start::Adversarial, Start::Both];

/// Short steps, so that none leaps out of the [`trap`].
fn from(start: Start, norm: Norm, steps: u64) -> Fmn {
    Fmn::new(FmnSettings {
        norm,
        start,
        steps,
        step_size: 0.1,
        ..Default::default()
    })
    .unwrap()
}

/// Images of mean `0.5 + t` are of class 1 where `f(t) > 0`, below `t = -0.2104`. At 0 `f` rises with `t`, but only to a maximum below 0.
fn trap() -> Testbed {
    Testbed::new(INPUT, 2, |_, x| {
        let t = (x.flatten_from(1)?.mean(1)? - 0.5)?;
        // f' = -100 (t - 0.1) (t + 0.1)
        let f = (((t.sqr()? * &t)? * (-100. / 3.))? + (t - 0.1)?)?;
        Tensor::stack(&[f.zeros_like()?, f], 1)
    })
}

#[test]
fn a_start_beyond_the_boundary_escapes_a_local_maximum() {
    for (norm, nearest) in NORMS.into_iter().zip([0.2104, 3. * 0.2104]) {
        for start in STARTS {
            let attack = from(start, norm, 200);
            let out = trap().attack(&attack, &ids(4)[..1], &grey(), &[0]).unwrap();
            assert_eq!(out.found, Some(vec![start != Start::Clean]), "{norm} {start:?}");
            let length = lengths(norm, &out.x_adv, &grey())[0];
            match start {
                Start::Clean => assert_eq!(length, 0.),
                _ => assert!((nearest - 1e-3..1.03 * nearest).contains(&length), "{norm} {length}"),
            }
        }
    }
}

#[test]
fn the_nearer_of_both_results_is_kept_and_no_more_is_asked_than_was_announced() {
    let (target, x) = (network(), images(8));
    let y = target.predict(&x).unwrap();
    for norm in NORMS {
        let [clean, adversarial, both] = STARTS.map(|start| {
            let (attack, before) = (from(start, norm, 40), target.asked());
            let out = target.attack(&attack, &ids(8), &x, &y).unwrap();
            assert!(
                (target.asked() - before) as u64 <= 8 * attack.info().passes,
                "{start:?}"
            );
            let unfound = |(found, length): (bool, f32)| if found { length } else { f32::INFINITY };
            let found = out.found.unwrap().into_iter();
            found
                .zip(lengths(norm, &out.x_adv, &x))
                .map(unfound)
                .collect::<Vec<_>>()
        });
        let nearer: Vec<f32> = clean.iter().zip(&adversarial).map(|(a, b)| a.min(*b)).collect();
        assert_eq!(both, nearer, "{norm}");
        assert!(
            nearer != clean && nearer != adversarial,
            "{norm} {clean:?} {adversarial:?}"
        );
    }
}

#[test]
fn a_start_is_adversarial_near_the_boundary_and_the_samples_own() {
    let (x, n) = (grey().broadcast_as((6, 1, 3, 3)).unwrap().contiguous().unwrap(), 6);
    let starts = |norm, ids: &[u64]| {
        let start = |oracle: &Oracle| {
            let y = Tensor::zeros(ids.len(), DType::I64, &Device::Cpu)?;
            let x = x.narrow(0, 0, ids.len())?;
            beyond(norm, oracle, &Goal::Untargeted.objective(oracle, &x, &y)?, &x)
        };
        trap().with_oracle(ids, start).unwrap()
    };
    for norm in NORMS {
        let (found, images) = starts(norm, &ids(n));
        let (count, predicted) = (found.iter().filter(|f| **f).count(), trap().predict(&images).unwrap());
        assert!((2..6).contains(&count), "{found:?}");
        for (i, id) in ids(n).into_iter().enumerate() {
            assert_eq!(predicted[i] == 1, found[i], "{norm} {i}");
            let image = values(&images.get(i).unwrap());
            assert_eq!(values(&starts(norm, &[id]).1), image, "{norm} {i}");
            assert!(image.iter().all(|pixel| (0. ..=1.).contains(pixel)));
            // A little nearer it is none. (Linf: not on the way that was halved.)
            let inside = image
                .iter()
                .map(|pixel| 0.5 + (pixel - 0.5) * 0.995)
                .collect::<Vec<_>>();
            let inside = Tensor::from_vec(inside, (1, 1, 3, 3), &Device::Cpu).unwrap();
            assert!(
                !found[i] || norm == Norm::Linf || trap().predict(&inside).unwrap() == [0],
                "{i}"
            );
        }
    }
}

/// A random defence is asked with other draws each time, never twice with one.
#[test]
fn every_question_is_another_draw() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let draws = seen.clone();
    let target = Testbed::new(INPUT, 2, move |pass, x| {
        if !draws.lock().unwrap().insert(pass.draw) {
            bail!("draw {} is used twice", pass.draw)
        }
        let z = x.flatten_from(1)?.narrow(1, 0, 1)?;
        Tensor::cat(&[&z, &z.affine(-1., 0.9)?], 1)
    });
    target
        .attack(&from(Start::Both, Norm::L2, 9), &ids(2), &images(2), &[1, 1])
        .unwrap();
    let expected = QUESTIONS + 2 * 9;
    assert_eq!(
        seen.lock().unwrap().iter().copied().collect::<Vec<_>>(),
        (0..expected).collect::<Vec<_>>()
    );
}

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
    for norm in NORMS {
        for start in STARTS {
            let found = finds_what_is_adversarial(&from(start, norm, 40));
            assert!(found.iter().filter(|f| **f).count() > 4, "{norm} {start:?} {found:?}");
        }
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
    assert_eq!((info.norm, info.epsilon, info.passes), (Norm::Linf, None, 2089));
    assert_eq!(from(Start::Clean, Norm::L2, 1000).info().passes, 1000);
    for (text, said) in [
        (r#"{"steps": 0}"#, "steps is 0: choose a value from 1 to"),
        (r#"{"gamma": 1}"#, "gamma is 1: choose a value from"),
        (r#"{"step_size": 0}"#, "step_size is 0"),
        (r#"{"start": "adversarial", "steps": 0}"#, "steps is 0"),
    ] {
        let error = Fmn::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
