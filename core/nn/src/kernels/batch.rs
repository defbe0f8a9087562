//! Convolutions and fully connected layers over candle's batches `[N, C, H, W]`: images are turned into maps that the
//! kernels read, a few at a time, and the results back. The turning is bound by memory and takes a tenth to a third of
//! the time; a network that keeps its maps, [`Net`](crate::Net), does without.

use super::Real;
use super::conv::{Correlation, Kernel};
use super::frame::{Border, Frame};
use super::layout::{export, import};
use super::narrow::Planes;
use super::scratch::with_scratch;
use super::sink::{Maps, Plain, Store};
use crate::threads::for_each_chunk;

/// Images a thread takes at once, for maps and for single places.
const IMAGES: [usize; 2] = [8, 48];

/// The outputs `y` for inputs `x`, both `[n, channels, h, w]` as `correlation` has them, `weight` `[c_out, c_in, kh, kw]` of
/// the convolution, and a `bias` for every channel of the output.
pub(crate) fn correlate<T: Real>(
    correlation: &Correlation,
    n: usize,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
) -> Vec<T> {
    let source = layout(correlation.input(), correlation.border());
    let kernel = correlation.kernel(&source, weight);
    let output = correlation.output();
    let padded = bias.map_or_else(Vec::new, |bias| {
        let mut padded = bias.to_vec();
        padded.resize(output[0].next_multiple_of(super::frame::PANEL), T::ZERO);
        padded
    });
    run(&kernel, n, x, &source, output, &padded)
}

/// Single places lie as they come: neither padding nor turning.
fn layout(shape: [usize; 3], border: Border) -> Frame {
    match shape {
        [_, 1, 1] if border == Border::default() => Frame {
            narrow: true,
            ..Frame::new(shape, border)
        },
        _ => Frame::new(shape, border),
    }
}

/// Runs a kernel over a batch; adds `bias`, as long as the stored channels, or none if it is empty.
fn run<T: Real>(kernel: &Kernel<T>, n: usize, x: &[T], source: &Frame, output: [usize; 3], bias: &[T]) -> Vec<T> {
    let [x_len, y_len] = [source.shape(), output].map(|shape| shape.iter().product::<usize>());
    let target = Frame::channels_last(output, Border::default());
    let images = IMAGES[usize::from(source.h * source.w == 1)];
    let mut y = vec![T::ZERO; n * y_len];
    for_each_chunk(&mut y, (images * y_len).max(1), |chunk, y| {
        let count = y.len() / y_len;
        let x = &x[chunk * images * x_len..][..count * x_len];
        let plain = source.narrow && source.len() == x_len;
        with_scratch(if plain { 0 } else { count * source.len() }, |maps: &mut [T]| {
            maps.fill(T::ZERO);
            for (image, map) in x.chunks_exact(x_len).zip(maps.chunks_exact_mut(source.len())) {
                import(source, image, map);
            }
            let maps = if plain { x } else { maps };
            if kernel.is_narrow() {
                // SAFETY: the maps have the layout that the kernel was made for.
                return unsafe { kernel.run_narrow(count, maps.as_ptr(), planes_to(y, output, bias)) };
            }
            with_scratch(count * target.len(), |outputs: &mut [T]| {
                let to = Maps::new(outputs, &target);
                // SAFETY: as above; there is a map for every image's outputs, and a bias for every channel.
                unsafe {
                    match bias {
                        [] => kernel.run(count, maps.as_ptr(), Plain::<T, false>(to)),
                        _ => kernel.run(
                            count,
                            maps.as_ptr(),
                            Store::<T, false> {
                                bias: bias.as_ptr(),
                                to,
                                positive: None,
                            },
                        ),
                    }
                }
                for (map, image) in outputs.chunks_exact(target.len()).zip(y.chunks_exact_mut(y_len)) {
                    export(&target, map, image);
                }
            });
        });
    });
    y
}

/// Takes planes in as images `[c, h, w]`, with their bias.
fn planes_to<T: Real>(y: &mut [T], [c, h, w]: [usize; 3], bias: &[T]) -> impl FnMut(usize, &Planes, &[T]) {
    move |image, planes, values| {
        for (row, to) in y[image * c * h * w..][..c * h * w].chunks_exact_mut(w).enumerate() {
            let bias = bias.get(row / h).copied().unwrap_or(T::ZERO);
            for (to, v) in to.iter_mut().zip(planes.row(values, row / h, row % h)) {
                *to = *v + bias;
            }
        }
    }
}
