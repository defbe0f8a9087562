//! Every kernel and epilogue against loops over its definition, on slices alone, so that Miri can follow every pointer:
//! `scripts/miri.sh`. Sizes are small for its sake.
#![allow(clippy::unwrap_used)]

use super::aligned::Aligned;
use super::batch::correlate;
use super::conv::{Correlation, Kernel};
use super::conv_weights::weight_gradient;
use super::frame::{Border, Frame, PANEL};
use super::geometry::Geometry;
use super::layout::{export, import};
use super::pool::{Blocks, max_pool, max_pool_gradient, upsample, upsample_gradient};
use super::sink::{Maps, Marks, Masked, Plain, Sink, Store, StorePooled, StoreUpsampled, Summed, Unpooled};
use super::vector::{OCTET, choices, with_choice};
use super::{Real, narrow::Planes};
use crate::ops::Padding;
use crate::ops::conv::geometry;

/// Images of a batch: two chunks of weight gradients would take nine.
const N: usize = if cfg!(miri) { 1 } else { 9 };

/// One shape for each kernel, forward and back: input `[c, h, w]`, outputs, taps, stride, padding.
const SHAPES: [([usize; 3], usize, usize, usize, Padding); 9] = [
    ([5, 6, 5], 17, 3, 1, Padding::Same),  // Winograd both ways, its weight gradient
    ([5, 7, 6], 7, 5, 2, Padding::Same),   // products of patches, bands of taps
    ([1, 3, 9], 6, 3, 1, Padding::Same),   // triples that neighbours share; dot products back
    ([33, 3, 3], 5, 3, 2, Padding::Same),  // more terms than a block
    ([9, 3, 10], 2, 3, 1, Padding::Valid), // dot products, strips of eight
    ([9, 2, 5], 3, 2, 1, Padding::Same),   // and of four
    ([2, 5, 9], 3, 3, 1, Padding::Same),   // planes from planes
    ([3, 4, 5], 6, 6, 2, Padding::Same),   // dot products back from beyond the outputs
    ([2, 3, 3], 20, 3, 1, Padding::Valid), // one place, planes back
];

/// Numbers in `+-1`, with zeros among them.
fn numbers<T: Real>(seed: usize, len: usize) -> Vec<T> {
    let value = |i: usize| ((i * 37 + seed * 11) % 23) as f64 / 11. - 1.;
    (0..len).map(|i| T::from_f64(value(i))).collect()
}

fn assert_near<T: Real>(what: &str, a: &[T], b: &[f64]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = b.iter().fold(1., |scale: f64, b| scale.max(b.abs()));
    let tolerance = if T::DTYPE.size_in_bytes() == 8 { 1e-11 } else { 1e-4 };
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a.to_f64() - b).abs() <= tolerance * scale, "{what} at {i}: {a} {b}");
    }
}

/// Calls `f` once for each form of the kernels that this processor has, those of sixteen numbers among them.
fn in_every_form(f: impl Fn()) {
    choices().into_iter().for_each(|choice| with_choice(choice, &f));
}

/// Calls `f` with the indices of output, input and weight of every term of a batch.
fn terms(g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
    for (image, co) in (0..N).flat_map(|image| (0..g.c_out).map(move |co| (image, co))) {
        for (i, j) in (0..g.h_out).flat_map(|i| (0..g.w_out).map(move |j| (i, j))) {
            for (ci, r, s) in (0..g.c_in * g.taps()).map(|k| (k / g.taps(), k % g.taps() / g.kw, k % g.kw)) {
                let (y, x) = (i * g.stride + r, j * g.stride + s);
                let on_map = (g.top..g.top + g.h).contains(&y) && (g.left..g.left + g.w).contains(&x);
                if on_map {
                    let input = ((image * g.c_in + ci) * g.h + y - g.top) * g.w + x - g.left;
                    f(
                        ((image * g.c_out + co) * g.h_out + i) * g.w_out + j,
                        input,
                        g.weight(co, ci, r, s),
                    );
                }
            }
        }
    }
}

/// Outputs, input gradient and weight gradient of one convolution.
fn check_convolution<T: Real>(g: &Geometry) {
    let [x_len, y_len] = [g.input(), g.output()].map(|shape| N * shape.iter().product::<usize>());
    let (x, dy) = (numbers::<T>(1, x_len), numbers::<T>(2, y_len));
    let (weight, bias) = (numbers::<T>(3, g.c_out * g.c_in * g.taps()), numbers::<T>(4, g.c_out));
    let mut y: Vec<f64> = (0..y_len)
        .map(|i| bias[i / (g.h_out * g.w_out) % g.c_out].to_f64())
        .collect();
    let (mut dx, mut dw) = (vec![0.; x_len], vec![0.; weight.len()]);
    terms(g, |at_y, at_x, at_w| {
        let [x, w, dy] = [x[at_x], weight[at_w], dy[at_y]].map(T::to_f64);
        y[at_y] += x * w;
        dx[at_x] += dy * w;
        dw[at_w] += dy * x;
    });
    let convolution = Correlation::new(*g);
    assert_near("y", &correlate(&convolution, N, &x, &weight, Some(&bias)), &y);
    assert_near("dx", &correlate(&convolution.transpose(), N, &dy, &weight, None), &dx);
    assert_near("dw", &weight_gradient(g, N, &x, &dy), &dw);
}

#[test]
fn convolutions_and_their_gradients_are_their_definition() {
    for (input, outputs, taps, stride, padding) in SHAPES {
        let g = geometry(input, &[outputs, input[0], taps, taps], stride, padding).unwrap();
        check_convolution::<f64>(&g);
        in_every_form(|| check_convolution::<f32>(&g));
    }
    for input in [[3, 2, 3], [19, 1, 1]] {
        check_convolution::<f64>(&Geometry::linear(input, 5));
        in_every_form(|| check_convolution::<f32>(&Geometry::linear(input, 5)));
    }
}

#[test]
fn no_images_have_no_outputs() {
    for (input, outputs, taps, stride, padding) in SHAPES {
        let g = geometry(input, &[outputs, input[0], taps, taps], stride, padding).unwrap();
        let weight = numbers::<f32>(3, outputs * input[0] * taps * taps);
        for correlation in [Correlation::new(g), Correlation::new(g).transpose()] {
            assert!(correlate(&correlation, 0, &[], &weight, None).is_empty());
        }
        assert!(weight_gradient::<f32>(&g, 0, &[], &[]).iter().all(|dw| *dw == 0.));
    }
}

/// A batch of maps of one layout.
struct Batch {
    frame: Frame,
    data: Aligned<f32>,
}

impl Batch {
    fn zeros(shape: [usize; 3], border: Border) -> Self {
        let frame = Frame::channels_last(shape, border);
        Self {
            frame,
            data: Aligned::zeros(N * frame.len()),
        }
    }

    fn of(shape: [usize; 3], border: Border, images: &[f32]) -> Self {
        let mut batch = Self::zeros(shape, border);
        let maps = batch.data.chunks_exact_mut(batch.frame.len());
        for (map, image) in maps.zip(images.chunks_exact(shape.iter().product())) {
            import(&batch.frame, image, map);
        }
        batch
    }

    fn images(&self) -> Vec<f32> {
        let one = self.frame.shape().iter().product();
        let mut images = vec![0.; N * one];
        let maps = self.data.chunks_exact(self.frame.len());
        for (map, image) in maps.zip(images.chunks_exact_mut(one)) {
            export(&self.frame, map, image);
        }
        images
    }

    fn to(&mut self) -> Maps<f32> {
        let frame = self.frame;
        Maps::new(&mut self.data, &frame)
    }
}

/// What a convolution `[5, h, w]` to `[17, h, w]` does with an epilogue: by Winograd, or by products of patches where its taps are
/// one.
fn run(taps: usize, x: &[f32], sink: impl Sink<f32> + Copy) {
    let input = [5, 4, 6];
    let g = geometry(input, &[17, 5, taps, taps], 1, Padding::Same).unwrap();
    let convolution = Correlation::new(g);
    let source = Batch::of(input, convolution.border(), x);
    let kernel: Kernel<f32> = convolution.kernel(&source.frame, &weight(taps));
    // SAFETY: the source has the kernel's layout; the sinks below take 17 channels, as stored, of 4 x 6 places.
    unsafe { kernel.run(N, source.data.as_ptr(), sink) };
}

fn weight(taps: usize) -> Vec<f32> {
    numbers(3, 17 * 5 * taps * taps)
}

/// Epilogues on the way forward and back, each against the operators it stands for.
fn check_epilogues(taps: usize) {
    let (small, full, large) = ([17, 2, 3], [17, 4, 6], [17, 8, 12]);
    let x = numbers::<f32>(1, N * 5 * 4 * 6);
    let mut bias = numbers::<f32>(4, 17);
    let g = geometry([5, 4, 6], &[17, 5, taps, taps], 1, Padding::Same).unwrap();
    let y = correlate(&Correlation::new(g), N, &x, &weight(taps), Some(&bias));
    bias.resize(2 * PANEL, 0.);
    let bias = bias.as_ptr();
    let border = Border {
        top: 1,
        left: 2,
        bottom: 0,
        right: 1,
    };
    let octets = 2 * PANEL / OCTET;
    let positive: Vec<f32> = y.iter().map(|y| y.max(0.)).collect();
    let blocks = |k: usize, h: usize, w: usize| Blocks {
        planes: N * 17,
        h,
        w,
        k,
    };
    let same = |what: &str, a: &[f32], b: &[f32]| {
        let b: Vec<f64> = b.iter().map(|b| f64::from(*b)).collect();
        assert_near(what, a, &b);
    };

    let mut marks = vec![0u8; N * 24 * octets];
    let mut to = Batch::zeros(full, border);
    let frame = to.frame;
    let sink = Store::<f32, true> {
        bias,
        to: to.to(),
        positive: Some(Marks::new(&mut marks, &frame)),
    };
    run(taps, &x, sink);
    same("relu", &to.images(), &positive);

    let mut up = Batch::zeros(large, border);
    let sink = StoreUpsampled {
        bias,
        to: up.to(),
        positive: Some(Marks::new(&mut marks, &frame)),
    };
    run(taps, &x, sink);
    same("upsample", &up.images(), &upsample(&blocks(2, 8, 12), &positive));

    let mut down = Batch::zeros(small, border);
    let small_frame = down.frame;
    let mut largest = vec![0u64; N * 6 * octets];
    let sink = StorePooled::<f32, true> {
        bias,
        to: down.to(),
        largest: Some(Marks::new(&mut largest, &small_frame)),
    };
    run(taps, &x, sink);
    let pooled = max_pool(&blocks(2, 4, 6), &positive);
    same("pool", &down.images(), &pooled);

    // Back: the gradient that arrives is what a convolution without a bias makes of its own input.
    let dy = correlate(&Correlation::new(g), N, &x, &weight(taps), None);
    let mut to = Batch::zeros(full, border);
    run(taps, &x, Plain::<f32, false>(to.to()));
    run(taps, &x, Plain::<f32, true>(to.to()));
    same("add", &to.images(), &dy.iter().map(|dy| 2. * dy).collect::<Vec<_>>());

    let mut to = Batch::zeros(full, border);
    run(
        taps,
        &x,
        Masked {
            positive: Marks::new(&mut marks, &frame),
            to: to.to(),
        },
    );
    let passed: Vec<f32> = y
        .iter()
        .zip(&dy)
        .map(|(y, dy)| if *y > 0. { *dy } else { 0. })
        .collect();
    same("masked", &to.images(), &passed);

    // The gradient of a map half as large: the first places of every image's.
    let mut to = Batch::zeros(large, border);
    let mut largest = vec![2u64 | 1 << 8; N * 24 * octets];
    run(
        taps,
        &x,
        Unpooled {
            largest: Marks::new(&mut largest, &frame),
            to: to.to(),
        },
    );
    let images = to.images();
    for (i, dy) in dy.iter().enumerate() {
        let (channel, y, x) = (i / 24, i / 6 % 4, i % 6);
        let block = [0, 1, 12, 13].map(|reach| images[channel * 96 + 24 * y + 2 * x + reach]);
        // The first lane's byte says the third element, the second's the second, the others' the first.
        let chosen = [2, 1, 0, 0, 0, 0, 0, 0][channel % 17 % OCTET];
        let expected: [f32; 4] = std::array::from_fn(|i| if i == chosen { *dy } else { 0. });
        assert_eq!(
            block.map(|v| (v * 1e4).round()),
            expected.map(|v| (v * 1e4).round()),
            "{i}"
        );
    }

    let mut to = Batch::zeros(small, border);
    let mut all = vec![0xffu8; N * 6 * octets];
    run(
        taps,
        &x,
        Summed {
            positive: Marks::new(&mut all, &small_frame),
            to: to.to(),
        },
    );
    same("summed", &to.images(), &upsample_gradient(&blocks(2, 4, 6), &dy));
}

#[test]
fn epilogues_are_the_operators_they_stand_for() {
    for taps in [1, 3] {
        in_every_form(|| check_epilogues(taps));
    }
}

#[test]
fn pooling_and_its_gradient_are_their_definition() {
    for (k, h, w) in [(2, 5, 9), (3, 7, 6)] {
        let blocks = Blocks { planes: 2, h, w, k };
        let x = numbers::<f32>(1, 2 * h * w);
        let (rows, columns) = blocks.counts();
        let places = (0..2 * rows * columns).map(|i| (i / (rows * columns), i / columns % rows, i % columns));
        let (mut y, mut dx) = (vec![], vec![0.; x.len()]);
        for (plane, i, j) in places {
            let block = (0..k * k).map(|t| (plane * h + i * k + t / k) * w + j * k + t % k);
            let largest = block.clone().fold(f32::NEG_INFINITY, |max, at| max.max(x[at]));
            y.push(f64::from(largest));
            dx[block.clone().find(|at| x[*at] == largest).unwrap()] = y.len() as f64;
        }
        let pooled = max_pool(&blocks, &x);
        assert_near("y", &pooled, &y);
        let dy: Vec<f32> = (1..=y.len()).map(|i| i as f32).collect();
        assert_near("dx", &max_pool_gradient(&blocks, &x, &pooled, &dy), &dx);
    }
}

#[test]
fn planes_hand_out_rows_without_what_surrounds_them() {
    let planes = Planes::tight([2, 3, 4]);
    let values: Vec<usize> = (0..planes.len()).collect();
    assert_eq!(planes.row(&values, 1, 2), [20, 21, 22, 23]);
}
