//! Weight and bias gradients of a convolution: products of the output's gradient with the shifted planes of the
//! input (see [`planes`](super::planes)). Bound by compute: 71 % of the peak at 32 -> 32 channels, 28 x 28, 3 x 3
//! and at 64 -> 64, 14 x 14, by the bench `kernels`; 13 % with one input channel, where turning `dy` over costs
//! more than the products.

use super::planes::Geometry;
use super::scratch::with_scratch;
use super::tile::{LANES, TAPS, outer, sum_of};
use super::{Real, fused};
use crate::threads::for_each_chunk;

/// Images whose weight gradients are summed before they join the others. Part of the result: do not
/// change it lightly.
const CHUNK: usize = 8;

/// `dw` `[Cout, Cin, kh, kw]`, summed over the batch in chunks of fixed size and order.
pub(crate) fn weight_gradient<T: Real>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    match g.c_out {
        0..=LANES => weight_gradient_by::<T, 1>(g, x, dy),
        _ => weight_gradient_by::<T, 2>(g, x, dy),
    }
}

/// The same, `V` vectors of output channels at a time.
fn weight_gradient_by<T: Real, const V: usize>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let (planes, mut taps) = g.input_planes();
    taps.resize(g.k().next_multiple_of(TAPS), 0);
    let width = V * LANES;
    let len = g.c_out.div_ceil(width) * taps.len() * width;
    // [chunks, channel blocks, taps, channels of a block]
    let mut partial = vec![T::ZERO; g.n.div_ceil(CHUNK) * len];
    for_each_chunk(&mut partial, len, |chunk, dw| {
        let dw = vectors_mut::<T, V>(dw);
        for n in chunk * CHUNK..((chunk + 1) * CHUNK).min(g.n) {
            let dy = &dy[n * g.out_len()..][..g.out_len()];
            planes.lend(&x[n * g.in_len()..][..g.in_len()], |x| {
                with_scratch(g.out_area() * width, |panel| {
                    let blocks = dy.chunks(width * g.out_area());
                    for (dy, dw) in blocks.zip(dw.chunks_mut(taps.len())) {
                        transpose(width, dy, panel);
                        let panel = vectors_mut::<T, V>(panel);
                        add_products::<T, V>([g.w_out, planes.pitch()], x, panel, &taps, dw);
                    }
                });
            });
        }
    });
    let sum = sum_chunks(partial, len);
    let mut dw = Vec::with_capacity(g.c_out * g.k());
    for co in 0..g.c_out {
        let block = &sum[co / width * taps.len() * width..];
        dw.extend((0..g.k()).map(|k| block[k * width + co % width]));
    }
    dw
}

/// The slice in groups of `V` vectors.
fn vectors_mut<T, const V: usize>(values: &mut [T]) -> &mut [[[T; LANES]; V]] {
    values.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0
}

fused!(fn add_products<T: Real, const V: usize>(
    sizes: [usize; 2],
    x: &[T],
    dy: &[[[T; LANES]; V]],
    taps: &[usize],
    dw: &mut [[[T; LANES]; V]]
) = add_products_by);

/// Adds `sum_p x[taps[k] + p] dy[p]` to `dw[k]`, for the positions `p` of one image: rows of `w_out`, which
/// are `pitch` apart in `x`.
#[inline(always)]
fn add_products_by<T: Real, const V: usize, const FMA: bool>(
    [w_out, pitch]: [usize; 2],
    x: &[T],
    dy: &[[[T; LANES]; V]],
    taps: &[usize],
    dw: &mut [[[T; LANES]; V]],
) {
    let tiles = taps.as_chunks::<TAPS>().0.iter();
    for (taps, dw) in tiles.zip(dw.as_chunks_mut::<TAPS>().0) {
        for (y, dy) in dy.chunks_exact(w_out).enumerate() {
            let a = taps.map(|tap| &x[tap + y * pitch..tap + y * pitch + w_out]);
            outer::<T, V, FMA>(dw, a, dy);
        }
    }
}

/// Turns at most `width` channels `[channels, positions]` into `[positions, width]`, with zeros where
/// there are fewer channels.
fn transpose<T: Real>(width: usize, dy: &[T], panel: &mut [T]) {
    let area = panel.len() / width;
    if dy.len() < panel.len() {
        panel.fill(T::ZERO);
    }
    for (c, channel) in dy.chunks_exact(area).enumerate() {
        for (out, value) in panel.chunks_exact_mut(width).zip(channel) {
            out[c] = *value;
        }
    }
}

/// `db` `[Cout]`, summed over the batch and the positions.
pub(crate) fn bias_gradient<T: Real>(g: &Geometry, dy: &[T]) -> Vec<T> {
    let mut db = vec![T::ZERO; g.c_out];
    for image in dy.chunks(g.out_len().max(1)) {
        for (sum, channel) in db.iter_mut().zip(image.chunks(g.out_area())) {
            *sum += sum_of(channel);
        }
    }
    db
}

/// Adds the parts, of `len` elements each, in their order.
fn sum_chunks<T: Real>(mut parts: Vec<T>, len: usize) -> Vec<T> {
    let Some((sum, rest)) = parts.split_at_mut_checked(len) else {
        return vec![T::ZERO; len];
    };
    for part in rest.chunks(len.max(1)) {
        for (total, value) in sum.iter_mut().zip(part) {
            *total += *value;
        }
    }
    parts.truncate(len);
    parts
}
