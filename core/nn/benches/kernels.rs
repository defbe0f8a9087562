//! Speed of the kernels on one thread, beside the processor's peak measured in the same run.
//!
//! ```text
//! CANDLE_NUM_THREADS=1 cargo bench -p advae-nn --bench kernels [-- batch [name]]
//! ```
//!
//! `ADVAE_KERNELS=avx2` measures a lesser set than the processor's best; the first line says which ran.
//!
//! With a part of a name, such as `'128 @28 k3'`, only the kernels of the convolutions that have it are timed.
//! Gradients are timed as a caller sees them, tape included: candle fills zeros and adds each gradient to them.
//! The variable keeps candle from doing so on a pool of its own.
//!
//! GFLOPS count a multiplication and an addition as two, of the direct algorithm; the share is that of
//! the fused multiply-add peak. Times are the best of several runs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use advae_nn::measure::Convolution;
use advae_nn::*;
use candle_core::{Device, Tensor, Var};

/// `(channels in, channels out, size, kernel, stride, padding)` of the networks under test.
const CONVOLUTIONS: [(usize, usize, usize, usize, usize, Padding); 21] = [
    // AdvAE
    (1, 32, 28, 3, 1, Padding::Same),
    (32, 32, 14, 3, 1, Padding::Same),
    (32, 32, 7, 3, 1, Padding::Same),
    (32, 1, 28, 3, 1, Padding::Same),
    // X
    (1, 32, 28, 3, 1, Padding::Valid),
    (32, 32, 26, 3, 1, Padding::Valid),
    (32, 64, 12, 3, 1, Padding::Valid),
    (64, 64, 10, 3, 1, Padding::Valid),
    // A
    (1, 64, 28, 5, 1, Padding::Same),
    (64, 64, 28, 5, 2, Padding::Valid),
    // B
    (1, 64, 28, 8, 2, Padding::Same),
    (64, 128, 14, 6, 2, Padding::Valid),
    (128, 128, 5, 5, 1, Padding::Valid),
    // C
    (1, 128, 28, 3, 1, Padding::Same),
    (128, 64, 28, 3, 2, Padding::Valid),
    // DefenseGAN: the critic, and backwards the generator
    (1, 64, 28, 5, 2, Padding::Same),
    (64, 128, 14, 5, 2, Padding::Same),
    (128, 256, 7, 5, 2, Padding::Same),
    // for comparison
    (32, 32, 28, 3, 1, Padding::Same),
    (64, 64, 14, 3, 1, Padding::Same),
    (64, 256, 8, 1, 1, Padding::Valid),
];

const LINEARS: [(usize, usize); 3] = [(1024, 200), (9216, 128), (784, 200)];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let batch = words.iter().find_map(|word| word.parse().ok()).unwrap_or(16);
    let part = words.iter().find(|word| word.parse::<usize>().is_err());
    let peak = peak_gflops();
    println!(
        "batch {batch}, one thread, f32; kernels {}, peak {peak:.0} GFLOPS",
        kernels()
    );
    println!("{:34} {:>14} {:>14} {:>14}", "", "forward", "input grad", "weight grad");
    for (c_in, c_out, size, k, stride, padding) in CONVOLUTIONS {
        let name = format!("conv {c_in}->{c_out} @{size} k{k} s{stride} {padding:?}");
        if part.is_some_and(|part| !name.contains(part.as_str())) {
            continue;
        }
        let mut kernel = Convolution::new(batch, [c_in, c_out, size], k, stride, padding)?;
        let times = [
            best(|| kernel.forward()),
            best(|| kernel.input_gradient()),
            best(|| kernel.weight_gradient()),
        ];
        line(&name, kernel.flops(), peak, times);
    }
    if part.is_some() {
        return Ok(());
    }
    println!("as operators of candle, with tape, layout and weights made ready at every call");
    for (c_in, c_out, size, k, stride, padding) in CONVOLUTIONS {
        let x = random(&[batch, c_in, size, size])?;
        let w = random(&[c_out, c_in, k, k])?;
        let b = random(&[c_out])?;
        let f = |x: &Tensor, w: &Tensor| conv2d(x, w, Some(&b), stride, padding);
        let y = f(&x, &w)?;
        let flops = 2.0 * (y.elem_count() * c_in * k * k) as f64;
        let name = format!("conv {c_in}->{c_out} @{size} k{k} s{stride} {padding:?}");
        report(&name, flops, peak, &x, &w, f)?;
    }
    for (inputs, outputs) in LINEARS {
        let (x, w, b) = (
            random(&[batch, inputs])?,
            random(&[outputs, inputs])?,
            random(&[outputs])?,
        );
        let flops = 2.0 * (batch * inputs * outputs) as f64;
        let name = format!("linear {inputs}->{outputs}");
        report(&name, flops, peak, &x, &w, |x, w| linear(x, w, Some(&b)))?;
    }
    memory_bound(batch)
}

/// One line: forward, input gradient, weight gradient.
fn report(
    name: &str,
    flops: f64,
    peak: f64,
    x: &Tensor,
    w: &Tensor,
    f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    let (x_var, w_var) = (Var::from_tensor(x)?, Var::from_tensor(w)?);
    let by_x = f(x_var.as_tensor(), w)?;
    let by_w = f(x, w_var.as_tensor())?;
    let cotangent = random(by_x.dims())?;
    let times = [
        best(|| f(x, w)),
        best(|| vjp(x_var.as_tensor(), &by_x, &cotangent)),
        best(|| vjp(w_var.as_tensor(), &by_w, &cotangent)),
    ];
    line(name, flops, peak, times);
    Ok(())
}

/// GFLOPS and share of the peak, in three columns.
fn line(name: &str, flops: f64, peak: f64, times: [Duration; 3]) {
    let columns = times.map(|time| {
        let gflops = flops / time.as_secs_f64() / 1e9;
        format!("{gflops:>7.1} ({:>3.0} %)", 100.0 * gflops / peak)
    });
    println!("{name:34} {:>14} {:>14} {:>14}", columns[0], columns[1], columns[2]);
}

/// The operators bound by memory, in GB/s of what they must read and write, beside a plain copy.
fn memory_bound(batch: usize) -> Result<()> {
    let x = random(&[batch, 32, 28, 28])?;
    let var = Var::from_tensor(&x)?;
    let bytes = 4.0 * x.elem_count() as f64;
    println!("{:34} {:>14} {:>14}   GB/s", "[N, 32, 28, 28]", "forward", "input grad");
    let copy = best(|| x.copy());
    println!("{:34} {:>14.1}", "copy", 2.0 * bytes / copy.as_secs_f64() / 1e9);
    type Op = fn(&Tensor) -> Result<Tensor>;
    let ops: [(&str, Op); 4] = [
        ("relu", relu),
        ("sigmoid", sigmoid),
        ("max_pool2d 2", |x| max_pool2d(x, 2)),
        ("upsample_nearest2d 2", |x| upsample_nearest2d(x, 2)),
    ];
    for (name, f) in ops {
        let y = f(var.as_tensor())?;
        let cotangent = random(y.dims())?;
        let out = 4.0 * y.elem_count() as f64;
        let forward = (bytes + out) / best(|| f(&x)).as_secs_f64() / 1e9;
        // The tape adds the gradient to zeros: that is counted as time, not as bytes.
        let backward = (bytes + out) / best(|| vjp(var.as_tensor(), &y, &cotangent)).as_secs_f64() / 1e9;
        println!("{name:34} {forward:>14.1} {backward:>14.1}");
    }
    Ok(())
}

/// Best of the runs that fit into a quarter of a second, at least five.
fn best<R>(mut f: impl FnMut() -> R) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || start.elapsed() < Duration::from_millis(250) {
        let run = Instant::now();
        black_box(f());
        best = best.min(run.elapsed());
        runs += 1;
    }
    best
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Pass::eval().rand_uniform(shape, -1.0, 1.0, 0, &Device::Cpu)
}

/// Fused multiply-adds a second in registers, with the vectors that the kernels use, as GFLOPS; 0 for portable ones.
fn peak_gflops() -> f64 {
    const ROUNDS: usize = 1_000_000;
    let (lanes, time) = match kernels() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the kernels run.
        Kernels::Avx512 => (16, best(|| unsafe { multiply_adds_of_16(ROUNDS) })),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kernels::Avx2 => (8, best(|| unsafe { multiply_adds_of_8(ROUNDS) })),
        _ => return 0.0,
    };
    (ROUNDS * CHAINS * lanes * 2) as f64 / time.as_secs_f64() / 1e9
}

/// Independent chains of multiply-adds.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_adds_of_8(rounds: usize) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    let mut sums = [b; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    let total = sums.into_iter().reduce(|x, y| _mm256_add_ps(x, y)).unwrap_or(b);
    _mm256_cvtss_f32(total)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_adds_of_16(rounds: usize) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let mut sums = [b; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    let total = sums.into_iter().reduce(|x, y| _mm512_add_ps(x, y)).unwrap_or(b);
    _mm512_reduce_add_ps(total)
}
