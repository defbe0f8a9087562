//! Small targets and images that the tests of several attacks share. What fails here panics, as a test does.
#![allow(clippy::missing_panics_doc)]

use super::Testbed;
use crate::{Attack, Ball, Norm, Perturbed};
use candle_core::{Device, Tensor};

/// Shape of the images: `[C,H,W]`.
pub const INPUT: [usize; 3] = [1, 3, 3];

/// A network of two layers with five classes.
pub fn network() -> Testbed {
    Testbed::mlp(INPUT, 16, 5, 3).expect("it has units and classes")
}

/// From class 0 the plane of class 1 is the nearest to [`grey`]; class 2 is farther away. Also the nearer plane's weights.
pub fn planes() -> (Testbed, Vec<f32>) {
    let weight: Vec<f32> = (0..9).map(|i| i as f32 - 4.).collect();
    let weights = [vec![0.; 9], weight.clone(), weight.iter().rev().copied().collect()];
    let target = Testbed::linear(INPUT, &weights, &[0.6, 0., -1.]).expect("rows are equally long");
    (target, weight)
}

/// `n` images of pixels in `[0,1]`, some of them at the bounds.
pub fn images(n: usize) -> Tensor {
    images_of(INPUT, n)
}

/// The same of another shape `[C,H,W]`.
pub fn images_of([c, h, w]: [usize; 3], n: usize) -> Tensor {
    let pixel = |i: usize| ((i * 37 % 23) as f32 / 15. - 0.2).clamp(0., 1.);
    let pixels: Vec<f32> = (0..n * c * h * w).map(pixel).collect();
    Tensor::from_vec(pixels, (n, c, h, w), &Device::Cpu).expect("there are as many pixels")
}

/// One image, grey all over.
pub fn grey() -> Tensor {
    let [c, h, w] = INPUT;
    Tensor::full(0.5f32, (1, c, h, w), &Device::Cpu).expect("a tensor can be filled")
}

/// Ids of `n` samples.
pub fn ids(n: usize) -> Vec<u64> {
    (100..100 + n as u64).collect()
}

/// All numbers of `x` (`f32`), in the order of memory.
pub fn values(x: &Tensor) -> Vec<f32> {
    let flat = x.flatten_all().and_then(|x| x.to_vec1());
    flat.expect("they are f32")
}

/// Distance of every image of `a` from that of `b`, `[N,C,H,W]` both.
pub fn lengths(norm: Norm, a: &Tensor, b: &Tensor) -> Vec<f32> {
    let lengths = (a - b)
        .and_then(|apart| norm.length(&apart))
        .and_then(|lengths| lengths.to_vec1());
    lengths.expect("both have one shape")
}

/// Attacks samples (`x` `[N,C,H,W]`, labels `y`) together and each alone, and checks that this changes nothing and that images stay
/// within bounds. Returns what the attack on all of them gave.
pub fn together_as_alone<A: Attack>(target: &Testbed, attack: &A, x: &Tensor, y: &[u32]) -> Perturbed {
    let run = |rows: std::ops::Range<usize>| {
        let some = x.narrow(0, rows.start, rows.len()).expect("there are such rows");
        let out = target.attack(attack, &ids(y.len())[rows.clone()], &some, &y[rows]);
        out.expect("the attack runs")
    };
    let together = run(0..y.len());
    let pixels = values(&together.x_adv);
    let len = pixels.len() / y.len();
    for i in 0..y.len() {
        let alone = run(i..i + 1);
        assert_eq!(values(&alone.x_adv), pixels[i * len..(i + 1) * len], "image {i}");
        let [ours, all] = [(&alone, 0), (&together, i)].map(|(out, row)| {
            let found = out.found.as_ref().map(|found| found[row]);
            (found, out.targets.as_ref().map(|targets| targets[row]))
        });
        assert_eq!(ours, all, "found and target of {i}");
    }
    assert!(pixels.iter().all(|v| (0. ..=1.).contains(v)), "{pixels:?}");
    together
}

/// [`together_as_alone`] for an attack within a ball, whose images must stay in it.
pub fn within_its_ball<A: Attack>(target: &Testbed, attack: &A, x: &Tensor, y: &[u32]) {
    let (norm, epsilon) = (attack.info().norm, attack.info().epsilon.expect("it has a ball"));
    let lengths = lengths(norm, &together_as_alone(target, attack, x, y).x_adv, x);
    assert!(
        lengths.iter().all(|l| f64::from(*l) <= epsilon + 1e-6),
        "{norm} {lengths:?}"
    );
}

/// [`together_as_alone`] for an attack that minimises the distance, on eight images of [`network`]: it finds the images that are
/// adversarial and no others, and leaves the one alone that is wrong to begin with. Returns which it found.
pub fn finds_what_is_adversarial<A: Attack>(attack: &A) -> Vec<bool> {
    let (target, x) = (network(), images(8));
    let mut y = target.predict(&x).expect("it predicts");
    y[3] = (y[3] + 1) % 5;
    let out = together_as_alone(&target, attack, &x, &y);
    let found = out.found.expect("it says what it found");
    let row = |x: &Tensor| values(&x.get(3).expect("there are eight"));
    assert!(found[3] && row(&out.x_adv) == row(&x), "wrong to begin with");
    let predicted = target.predict(&out.x_adv).expect("it predicts");
    assert!(
        (0..8).all(|i| found[i] == (predicted[i] != y[i])),
        "{found:?} {predicted:?} {y:?}"
    );
    found
}
