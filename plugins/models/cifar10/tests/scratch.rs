#![allow(missing_docs, clippy::unwrap_used)]
use advae_sdk::candle_core::{DType, Device, Tensor, Var};
use advae_sdk::nn::{self, Pass, Weights, vjp, with_threads};
use advae_sdk::prelude::*;
use cifar10_models::*;
use std::time::Instant;

fn time(name: &str, runs: usize, mut f: impl FnMut()) {
    let mut best = f64::MAX;
    let mut all = vec![];
    for _ in 0..runs {
        let t = Instant::now();
        f();
        let s = t.elapsed().as_secs_f64();
        best = best.min(s);
        all.push(s);
    }
    all.sort_by(f64::total_cmp);
    println!(
        "{name}: best {:.1} ms, median {:.1} ms",
        best * 1e3,
        all[runs / 2] * 1e3
    );
}

fn measure(name: &str, weights: &Weights, f: &dyn Fn(&Pass, &Tensor) -> Tensor, n: usize) {
    let params: Vec<_> = weights.params().into_iter().filter(|p| p.trainable()).collect();
    let x = Var::rand_f64(0., 1., (n, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    for threads in [1, 2] {
        with_threads(threads, || {
            time(&format!("{name} update of {n}, {threads} threads"), 5, || {
                let y = f(&Pass::training(1), &x.as_detached_tensor());
                let (_, g) = vjp(x.as_tensor(), &y, &y.ones_like().unwrap()).unwrap();
                assert!(g.get(params[0].var().as_tensor()).is_some());
            });
        });
    }
    let x = Var::from_tensor(&x.as_detached_tensor().narrow(0, 0, 24).unwrap()).unwrap();
    time(&format!("{name} forward of 24"), 10, || {
        f(&Pass::eval(), &x.as_detached_tensor());
    });
    time(&format!("{name} forward and gradient of 24"), 10, || {
        let y = f(&Pass::eval(), x.as_tensor());
        vjp(x.as_tensor(), &y, &y.ones_like().unwrap()).unwrap().0.unwrap();
    });
}

#[test]
fn times() {
    let w = Weights::init(1);
    let m = ResNet29::new(NoSettings {}, &w).unwrap();
    measure("resnet", &w, &|p, x| m.forward(p, x).unwrap(), 128);
    let _ = nn::threads();
    let w = Weights::init(1);
    let m = UNet::new(UNetSettings { convolutions: Some(2) }, &w).unwrap();
    measure("unet two", &w, &|p, x| m.purify(p, x).unwrap(), 32);
}
