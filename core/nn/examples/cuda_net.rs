//! Networks on a GPU against the same on the processor, and how fast they are there.
//!
//!     cuda_net            outputs and gradients of four networks and of odd shapes, compared; images per second
//!     cuda_net --profile  what each launch of a pass takes, too
//!
//! `scripts/cuda/build.sh` builds it, `scripts/cuda/on_gpu.sh` runs it.

use std::time::Instant;

use advae_nn::net::Node;
use advae_nn::{
    BatchNorm2d, Conv2d, ConvTranspose2d, Init, Linear, Net, NetBuilder, Padding, Pass, Result, Tensor, Weights, vjp,
};
use candle_core::{Device, Var};

struct Layers<'a> {
    net: NetBuilder,
    weights: &'a Weights,
    count: usize,
}

impl Layers<'_> {
    fn name(&mut self) -> Weights {
        self.count += 1;
        self.weights.pp(&format!("layer{}", self.count))
    }

    fn conv(&mut self, x: Node, to: usize, kernel: usize, stride: usize, padding: Padding) -> Result<Node> {
        let ([from, ..], weights) = (self.net.shape(x), self.name());
        let init = Init::HeNormal {
            fan_in: from * kernel * kernel,
        };
        self.net.conv2d(
            x,
            &Conv2d::with_init(&weights, [from, to], kernel, stride, padding, init)?,
        )
    }

    fn conv_relu(&mut self, x: Node, to: usize, padding: Padding) -> Result<Node> {
        let x = self.conv(x, to, 3, 1, padding)?;
        Ok(self.net.relu(x))
    }

    fn norm_relu(&mut self, x: Node) -> Result<Node> {
        let ([channels, ..], weights) = (self.net.shape(x), self.name());
        let x = self.net.batch_norm(x, &BatchNorm2d::new(&weights, channels)?)?;
        Ok(self.net.relu(x))
    }

    fn linear(&mut self, x: Node, to: usize) -> Result<Node> {
        let (from, weights) = (self.net.shape(x).iter().product(), self.name());
        self.net.linear(x, &Linear::new(&weights, from, to)?)
    }
}

/// X of the AdvAE paper, for MNIST.
fn classifier(l: &mut Layers) -> Result<Node> {
    let mut x = l.net.input();
    for to in [32, 64] {
        x = l.conv_relu(x, to, Padding::Valid)?;
        x = l.conv_relu(x, to, Padding::Valid)?;
        x = l.net.max_pool2d(x, 2)?;
    }
    for _ in 0..2 {
        x = l.linear(x, 200)?;
        x = l.net.relu(x);
    }
    l.linear(x, 10)
}

/// The paper's auto-encoder for MNIST.
fn auto_encoder(l: &mut Layers) -> Result<Node> {
    let mut x = l.net.input();
    for _ in 0..2 {
        x = l.conv(x, 32, 3, 1, Padding::Same)?;
        x = l.norm_relu(x)?;
        x = l.net.max_pool2d(x, 2)?;
    }
    for _ in 0..2 {
        x = l.conv_relu(x, 32, Padding::Same)?;
        x = l.net.upsample_nearest2d(x, 2)?;
    }
    x = l.conv(x, 1, 3, 1, Padding::Same)?;
    Ok(l.net.sigmoid(x))
}

/// ResNetV2-29 for CIFAR-10.
fn residual(l: &mut Layers) -> Result<Node> {
    let mut x = l.net.input();
    x = l.conv(x, 16, 3, 1, Padding::Same)?;
    x = l.norm_relu(x)?;
    for (stage, (mid, out, stride)) in [(16, 64, 1), (64, 128, 2), (128, 256, 2)].into_iter().enumerate() {
        for block in 0..3 {
            let stride = if block == 0 { stride } else { 1 };
            let mut y = if (stage, block) == (0, 0) { x } else { l.norm_relu(x)? };
            y = l.conv(y, mid, 1, stride, Padding::Same)?;
            y = l.norm_relu(y)?;
            y = l.conv(y, mid, 3, 1, Padding::Same)?;
            y = l.norm_relu(y)?;
            y = l.conv(y, out, 1, 1, Padding::Same)?;
            let short = if block == 0 {
                l.conv(x, out, 1, stride, Padding::Same)?
            } else {
                x
            };
            x = l.net.add(y, short)?;
        }
    }
    x = l.norm_relu(x)?;
    x = l.net.global_avg_pool2d(x)?;
    l.linear(x, 10)
}

/// The U-net for CIFAR-10, with one convolution a level.
fn u_net(l: &mut Layers) -> Result<Node> {
    const LEVELS: [usize; 5] = [32, 64, 128, 256, 512];
    let image = l.net.input();
    let (mut x, mut levels) = (image, vec![]);
    for (i, to) in LEVELS.into_iter().enumerate() {
        if i > 0 {
            x = l.net.max_pool2d(x, 2)?;
        }
        x = l.conv_relu(x, to, Padding::Same)?;
        levels.push(x);
    }
    for (i, skip) in levels.into_iter().enumerate().rev().skip(1) {
        let ([from, ..], weights) = (l.net.shape(x), l.name());
        let up = ConvTranspose2d::new(&weights, from, LEVELS[i], 2, 2, Padding::Valid)?;
        x = l.net.conv_transpose2d(x, &up)?;
        x = l.net.concat(&[x, skip])?;
        x = l.conv_relu(x, LEVELS[i], Padding::Same)?;
    }
    x = l.conv(x, 3, 3, 1, Padding::Same)?;
    x = l.net.add(x, image)?;
    Ok(l.net.sigmoid(x))
}

/// Convolutions whose zeros are not alike on both sides, and blocks that leave places out.
fn odd(l: &mut Layers) -> Result<Node> {
    let mut x = l.net.input();
    x = l.net.scale(x, &[2., 3.], &[0.1, -0.2])?;
    x = l.conv(x, 17, 4, 2, Padding::Same)?;
    x = l.net.max_pool2d(x, 2)?;
    let weights = l.name();
    x = l
        .net
        .conv_transpose2d(x, &ConvTranspose2d::new(&weights, 17, 16, 3, 2, Padding::Same)?)?;
    x = l.norm_relu(x)?;
    x = l.net.upsample_nearest2d(x, 3)?;
    x = l.net.avg_pool2d(x, 2)?;
    x = l.net.max_pool2d(x, 3)?;
    x = l.net.relu(x);
    Ok(l.net.flatten(x))
}

/// A network, the shape of its images, its seed.
type Build = fn(&mut Layers) -> Result<Node>;

fn build(shape: [usize; 3], f: Build, device: &Device) -> Result<Net> {
    let weights = Weights::init(7).with_device(device);
    let mut layers = Layers {
        net: NetBuilder::new(shape),
        weights: &weights,
        count: 0,
    };
    let node = f(&mut layers)?;
    layers.net.build(node)
}

fn random(shape: &[usize], seed: u64) -> Result<Tensor> {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Outputs and gradients at the images.
fn pass(net: &Net, pass: &Pass, x: &Tensor, device: &Device, cotangent: Option<&Tensor>) -> Result<[Tensor; 3]> {
    let leaf = Var::from_tensor(&x.to_device(device)?)?;
    let y = net.forward(pass, leaf.as_tensor())?;
    let cotangent = match cotangent {
        Some(given) => given.clone(),
        None => (random(y.dims(), 5)? - 0.5)?,
    };
    let dx = vjp(leaf.as_tensor(), &y, &cotangent.to_device(device)?)?.0;
    let dx = dx.ok_or_else(|| candle_core::Error::msg("no gradient"))?;
    Ok([
        y.to_device(&Device::Cpu)?.detach(),
        dx.to_device(&Device::Cpu)?,
        cotangent,
    ])
}

/// The norm of the difference over the norm.
fn apart(a: &Tensor, b: &Tensor) -> Result<f64> {
    let norm = |t: Tensor| {
        t.sqr()?
            .sum_all()?
            .to_dtype(candle_core::DType::F64)?
            .to_scalar::<f64>()
    };
    Ok((norm((a - b)?)? / norm(b.clone())?).sqrt())
}

fn main() -> Result<()> {
    let profile = std::env::args().any(|a| a == "--profile");
    let gpu = Device::new_cuda(0)?;
    let nets: [(&str, [usize; 3], Build, usize); 5] = [
        ("odd", [2, 11, 7], odd, 0),
        ("X", [1, 28, 28], classifier, 10_000),
        ("auto-encoder", [1, 28, 28], auto_encoder, 10_000),
        ("ResNet29", [3, 32, 32], residual, 2_000),
        ("U-net", [3, 32, 32], u_net, 2_000),
    ];
    println!(
        "{:14} {:6} {:>9} {:>9}   norms of differences from the processor's over norms",
        "network", "", "outputs", "gradient"
    );
    let mut wrong = 0;
    for (name, shape, f, _) in nets {
        let (here, there) = (build(shape, f, &Device::Cpu)?, build(shape, f, &gpu)?);
        let x = random(&[48, shape[0], shape[1], shape[2]], 3)?;
        let [y, dx, cotangent] = pass(&here, &Pass::eval(), &x, &Device::Cpu, None)?;
        for tf32 in [false, true] {
            let how = Pass { tf32, ..Pass::eval() };
            let started = Instant::now();
            let [found, slope, _] = pass(&there, &how, &x, &gpu, Some(&cotangent))?;
            let first = started.elapsed().as_secs_f64();
            let again = pass(&there, &how, &x, &gpu, Some(&cotangent))?;
            let same = apart(&again[0], &found)? == 0. && apart(&again[1], &slope)? == 0.;
            let far = [apart(&found, &y)?, apart(&slope, &dx)?];
            // A gradient jumps where rounding decides which side of a kink an image is on.
            let most = if tf32 { [5e-3, 1e-1] } else { [1e-5, 3e-2] };
            let right = same && far[0] < most[0] && far[1] < most[1];
            wrong += usize::from(!right);
            let precision = if tf32 { "tf32" } else { "f32" };
            let verdict = if right { "" } else { "  WRONG" };
            println!(
                "{name:14} {precision:6} {:9.1e} {:9.1e}   twice alike: {same}, first call {first:.2} s{verdict}",
                far[0], far[1]
            );
        }
    }
    println!(
        "\n{:14} {:6} {:>7} {:>10} {:>12}   a pass forward and back, images stay on the GPU",
        "network", "", "images", "ms", "images/s"
    );
    for (name, shape, f, most) in nets {
        let net = build(shape, f, &gpu)?;
        for tf32 in [false, true] {
            let how = Pass { tf32, ..Pass::eval() };
            for images in [128, 512, 2_000, 10_000].into_iter().filter(|n| *n <= most) {
                let x = Var::from_tensor(&random(&[images, shape[0], shape[1], shape[2]], 3)?.to_device(&gpu)?)?;
                let once = || -> Result<()> {
                    let y = net.forward(&how, x.as_tensor())?;
                    vjp(x.as_tensor(), &y, &y.detach())?;
                    Ok(())
                };
                once()?;
                once()?;
                gpu.synchronize()?;
                let rounds = 10;
                let started = Instant::now();
                for _ in 0..rounds {
                    once()?;
                }
                gpu.synchronize()?;
                let seconds = started.elapsed().as_secs_f64() / f64::from(rounds);
                let precision = if tf32 { "tf32" } else { "f32" };
                println!(
                    "{name:14} {precision:6} {images:7} {:10.3} {:12.0}",
                    seconds * 1e3,
                    images as f64 / seconds
                );
            }
            if profile && most > 0 {
                let rows = net.profile(&gpu, most, tf32)?;
                let all: f32 = rows.iter().map(|(_, ms)| ms).sum();
                println!("  launches of {most} images: {all:.2} ms");
                for (launch, ms) in rows {
                    println!("  {ms:8.3} {:5.1} %  {launch}", 100. * ms / all);
                }
            }
        }
    }
    if wrong > 0 {
        candle_core::bail!("{wrong} differences are too large");
    }
    Ok(())
}
