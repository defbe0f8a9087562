use crate::{Kind, Noise, NoiseSettings};
use advae_sdk::prelude::*;
use advae_sdk::testing::toy::{grey, ids, images, network, values, within_its_ball};

fn noise(kind: Kind, norm: Norm, tries: u64) -> Noise {
    let epsilon = 0.3;
    Noise::new(NoiseSettings {
        norm,
        epsilon,
        kind,
        tries,
    })
    .unwrap()
}

fn all(tries: u64) -> [Noise; 3] {
    let kinds = [
        (Kind::Uniform, Norm::Linf),
        (Kind::Uniform, Norm::L2),
        (Kind::Sign, Norm::Linf),
    ];
    kinds.map(|(kind, norm)| noise(kind, norm, tries))
}

#[test]
fn results_do_not_depend_on_the_batch_and_stay_in_ball_and_bounds() {
    let (x, y) = (images(7), network().predict(&images(7)).unwrap());
    let target = network().without_gradients();
    for target in [target.clone(), target.with_early_stop(false)] {
        for attack in all(1).into_iter().chain(all(12)) {
            within_its_ball(&target, &attack, &x, &y);
        }
    }
}

#[test]
fn more_tries_find_no_less_and_of_one_nothing_is_asked() {
    let (target, x) = (network(), images(60));
    let y = target.predict(&x).unwrap();
    for target in [target.clone(), target.with_early_stop(false)] {
        let broken = |attack: &Noise| {
            let x_adv = target.attack(attack, &ids(60), &x, &y).unwrap().x_adv;
            let predicted = target.predict(&x_adv).unwrap();
            predicted.iter().zip(&y).filter(|(a, b)| a != b).count()
        };
        let before = target.asked();
        let one: Vec<usize> = all(1).iter().map(&broken).collect();
        assert_eq!(target.asked(), before);
        let many: Vec<usize> = all(20).iter().map(&broken).collect();
        assert!(
            one.iter().zip(&many).all(|(one, many)| one <= many) && many[2] > one[2],
            "{one:?} {many:?}"
        );
    }
}

#[test]
fn signs_are_corners() {
    let x_adv = network()
        .attack(&noise(Kind::Sign, Norm::Linf, 1), &ids(1), &grey(), &[0])
        .unwrap()
        .x_adv;
    assert!(
        values(&x_adv).iter().all(|v| ((v - 0.5).abs() - 0.3).abs() < 1e-6),
        "{x_adv}"
    );
}

#[test]
fn what_it_says_of_itself_and_what_it_refuses() {
    let info = Noise::new(Default::default()).unwrap().info();
    assert_eq!(
        (info.norm, info.epsilon, info.passes, info.loss),
        (Norm::Linf, Some(0.3), 100, None)
    );
    for (text, said) in [
        (r#"{"tries": 0}"#, "tries is 0: choose a value from 1 to"),
        (r#"{"epsilon": -1}"#, "epsilon is -1"),
        (r#"{"kind": "sign", "norm": "l2"}"#, "choose kind=uniform or norm=linf"),
    ] {
        let error = Noise::new(advae_sdk::serde_json::from_str(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}
