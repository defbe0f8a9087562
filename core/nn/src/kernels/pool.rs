//! Max and average pooling and nearest-neighbour upsampling, and their gradients. Bound by memory: on `[16, 32, 28, 28]` in
//! f32 the bench `kernels` gives 26 and 30 GB/s for the outputs, where a copy in cache moves 78, and 5 to 9 for
//! the gradients, most of which is the tape's own adding.

use super::vector::OCTET;
use super::{Real, fused};
use crate::threads::for_each_chunk;

/// Planes a thread takes at once.
const PLANES: usize = 64;

/// `planes` images of `h` by `w`, in blocks of `k` by `k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    pub planes: usize,
    pub h: usize,
    pub w: usize,
    pub k: usize,
}

impl Blocks {
    /// Whole blocks in a column of blocks, and in a row.
    pub fn counts(&self) -> (usize, usize) {
        (self.h / self.k, self.w / self.k)
    }

    /// Elements of a plane of blocks, one a block, and of a plane.
    fn lengths(&self) -> [usize; 2] {
        let (h, w) = self.counts();
        [h * w, self.h * self.w]
    }
}

/// The largest element of each whole block, `[planes, h / k, w / k]`; NaN where a block holds one.
pub(crate) fn max_pool<T: Real>(b: &Blocks, x: &[T]) -> Vec<T> {
    let [y_len, x_len] = b.lengths();
    let mut y = vec![T::ZERO; b.planes * y_len];
    for_each_chunk(&mut y, PLANES * y_len, |part, y| {
        let planes = x[part * PLANES * x_len..].chunks_exact(x_len);
        for (x, y) in planes.zip(y.chunks_exact_mut(y_len)) {
            match b.k {
                2 => max_of_pairs(b.w, x, y),
                _ => max_of_blocks(b, x, y),
            }
        }
    });
    y
}

/// One plane of blocks of any size.
fn max_of_blocks<T: Real>(b: &Blocks, x: &[T], y: &mut [T]) {
    for (rows, y) in x.chunks_exact(b.k * b.w).zip(y.chunks_exact_mut(b.w / b.k)) {
        for (j, y) in y.iter_mut().enumerate() {
            *y = rows[j * b.k];
            for row in rows.chunks_exact(b.w) {
                let block = &row[j * b.k..(j + 1) * b.k];
                *y = block.iter().fold(*y, |max, v| max.larger(*v));
            }
        }
    }
}

fused!(fn max_of_pairs<T: Real>(w: usize, x: &[T], y: &mut [T]) = max_of_pairs_by);

/// One plane of blocks of 2 by 2.
#[inline(always)]
fn max_of_pairs_by<T: Real, const FMA: bool>(w: usize, x: &[T], y: &mut [T]) {
    for (rows, y) in x.chunks_exact(2 * w).zip(y.chunks_exact_mut(w / 2)) {
        let (top, bottom) = rows.split_at(w);
        let (top, bottom) = (top.as_chunks::<2>().0, bottom.as_chunks::<2>().0);
        if y.len() < OCTET {
            for (y, (top, bottom)) in y.iter_mut().zip(top.iter().zip(bottom)) {
                *y = max_of_four(top, bottom);
            }
        }
        for j in windows(y.len()) {
            let (top, bottom) = (&top[j..j + OCTET], &bottom[j..j + OCTET]);
            let mut max = [T::ZERO; OCTET];
            for l in 0..OCTET {
                max[l] = max_of_four(&top[l], &bottom[l]);
            }
            y[j..j + OCTET].copy_from_slice(&max);
        }
    }
}

#[inline(always)]
fn max_of_four<T: Real>([a, b]: &[T; 2], [c, d]: &[T; 2]) -> T {
    a.larger(*c).larger(b.larger(*d))
}

/// Where windows of one vector begin that cover `0..len`, the last two overlapping; none if it is shorter.
/// What a window writes does not depend on what is there, so that overlaps do no harm; and a scalar loop over
/// the rest would branch on the data.
fn windows(len: usize) -> impl Iterator<Item = usize> {
    let last = len.checked_sub(OCTET);
    last.into_iter().flat_map(|last| (0..last).step_by(OCTET).chain([last]))
}

/// Gives each block's gradient to its largest element `y`, the first of equals (row by row).
pub(crate) fn max_pool_gradient<T: Real>(b: &Blocks, x: &[T], y: &[T], dy: &[T]) -> Vec<T> {
    let [y_len, x_len] = b.lengths();
    let mut dx = vec![T::ZERO; x.len()];
    for_each_chunk(&mut dx, PLANES * x_len, |part, dx| {
        let [y, dy] = [y, dy].map(|v| v[part * PLANES * y_len..].chunks_exact(y_len));
        let planes = x[part * PLANES * x_len..]
            .chunks_exact(x_len)
            .zip(dx.chunks_exact_mut(x_len));
        for ((x, dx), (y, dy)) in planes.zip(y.zip(dy)) {
            match b.k {
                2 => give_to_pairs(b.w, x, y, dy, dx),
                _ => give_to_blocks(b, x, y, dy, dx),
            }
        }
    });
    dx
}

/// One plane of blocks of any size.
fn give_to_blocks<T: Real>(b: &Blocks, x: &[T], y: &[T], dy: &[T], dx: &mut [T]) {
    let (_, w_out) = b.counts();
    for (block, (y, g)) in y.iter().zip(dy).enumerate() {
        let corner = (block / w_out * b.w + block % w_out) * b.k;
        let mut places = (0..b.k).flat_map(|r| (0..b.k).map(move |s| corner + r * b.w + s));
        if let Some(first) = places.find(|i| x[*i] == *y) {
            dx[first] = *g;
        }
    }
}

fused!(fn give_to_pairs<T: Real>(
    w: usize,
    x: &[T],
    y: &[T],
    dy: &[T],
    dx: &mut [T]
) = give_to_pairs_by);

/// One plane of blocks of 2 by 2, upper and lower rows in loops of their own: one loop has too many arrays to
/// vectorise well.
#[inline(always)]
fn give_to_pairs_by<T: Real, const FMA: bool>(w: usize, x: &[T], y: &[T], dy: &[T], dx: &mut [T]) {
    let outputs = y.chunks_exact(w / 2).zip(dy.chunks_exact(w / 2));
    let rows = x.chunks_exact(2 * w).zip(dx.chunks_exact_mut(2 * w));
    for ((x, dx), (y, dy)) in rows.zip(outputs) {
        let ((top, bottom), (dtop, dbottom)) = (x.split_at(w), dx.split_at_mut(w));
        let (top, bottom) = (
            &top.as_chunks::<2>().0[..y.len()],
            &bottom.as_chunks::<2>().0[..y.len()],
        );
        let outputs = || y.iter().zip(dy);
        for ((x, dx), (y, g)) in top.iter().zip(dtop.as_chunks_mut::<2>().0).zip(outputs()) {
            *dx = give_to_pair(x, false, *y, *g);
        }
        let rows = bottom.iter().zip(top).zip(dbottom.as_chunks_mut::<2>().0);
        for (((x, above), dx), (y, g)) in rows.zip(outputs()) {
            *dx = give_to_pair(x, (above[0] == *y) | (above[1] == *y), *y, *g);
        }
    }
}

/// Gives `g` to the first of a pair that is `y`, unless it is given already.
#[inline(always)]
fn give_to_pair<T: Real>([left, right]: &[T; 2], given: bool, y: T, g: T) -> [T; 2] {
    let (left, right) = (*left == y, *right == y);
    [g.keep_if(left & !given), g.keep_if(right & !(left | given))]
}

/// `planes` images of `h` by `w`, in blocks of `kh` by `kw`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Averages {
    pub planes: usize,
    pub h: usize,
    pub w: usize,
    pub kh: usize,
    pub kw: usize,
}

impl Averages {
    /// Whole blocks in a column of blocks, and in a row.
    pub fn counts(&self) -> [usize; 2] {
        [self.h / self.kh, self.w / self.kw]
    }

    /// Elements of a plane of blocks, one a block, of a plane, and of a block.
    fn lengths(&self) -> [usize; 3] {
        let [h, w] = self.counts();
        [h * w, self.h * self.w, self.kh * self.kw]
    }
}

/// The mean of each whole block, `[planes, h / kh, w / kw]`.
pub(crate) fn average<T: Real>(b: &Averages, x: &[T]) -> Vec<T> {
    let [y_len, x_len, count] = b.lengths();
    let count = T::from_f64(count as f64);
    let mut y = vec![T::ZERO; b.planes * y_len];
    for_each_chunk(&mut y, PLANES * y_len, |part, y| {
        let planes = x[part * PLANES * x_len..].chunks_exact(x_len);
        for (x, y) in planes.zip(y.chunks_exact_mut(y_len)) {
            for (rows, y) in x.chunks_exact(b.kh * b.w).zip(y.chunks_exact_mut(b.w / b.kw)) {
                for row in rows.chunks_exact(b.w) {
                    for (sum, block) in y.iter_mut().zip(row.chunks_exact(b.kw)) {
                        *sum += block.iter().fold(T::ZERO, |sum, v| sum + *v);
                    }
                }
                y.iter_mut().for_each(|sum| *sum /= count);
            }
        }
    });
    y
}

/// Gives each element of a block its share of the gradient `dy` `[planes, h / kh, w / kw]`: `[planes, h, w]`.
pub(crate) fn average_gradient<T: Real>(b: &Averages, dy: &[T]) -> Vec<T> {
    let [y_len, x_len, count] = b.lengths();
    let count = T::from_f64(count as f64);
    let mut dx = vec![T::ZERO; b.planes * x_len];
    for_each_chunk(&mut dx, PLANES * x_len, |part, dx| {
        let planes = dy[part * PLANES * y_len..].chunks_exact(y_len);
        for (dy, dx) in planes.zip(dx.chunks_exact_mut(x_len)) {
            for (dy, rows) in dy.chunks_exact(b.w / b.kw).zip(dx.chunks_exact_mut(b.kh * b.w)) {
                for row in rows.chunks_exact_mut(b.w) {
                    let blocks = row.chunks_exact_mut(b.kw).zip(dy);
                    blocks.for_each(|(block, dy)| block.fill(*dy / count));
                }
            }
        }
    });
    dx
}

/// Repeats each element of `x` `[planes, h / k, w / k]` into a block of `[planes, h, w]`.
pub(crate) fn upsample<T: Real>(b: &Blocks, x: &[T]) -> Vec<T> {
    let [x_len, y_len] = b.lengths();
    let mut y = vec![T::ZERO; b.planes * y_len];
    for_each_chunk(&mut y, PLANES * y_len, |part, y| {
        repeat(b, &x[part * PLANES * x_len..], y);
    });
    y
}

fused!(fn repeat<T: Real>(b: &Blocks, x: &[T], y: &mut [T]) = repeat_by);

#[inline(always)]
fn repeat_by<T: Real, const FMA: bool>(b: &Blocks, x: &[T], y: &mut [T]) {
    let (_, w_in) = b.counts();
    for (row, rows) in x.chunks_exact(w_in).zip(y.chunks_exact_mut(b.k * b.w)) {
        let (first, rest) = rows.split_at_mut(b.w);
        match b.k {
            2 => {
                for (value, pair) in row.iter().zip(first.as_chunks_mut::<2>().0) {
                    *pair = [*value; 2];
                }
            }
            _ => {
                for (value, block) in row.iter().zip(first.chunks_exact_mut(b.k)) {
                    block.fill(*value);
                }
            }
        }
        for copy in rest.chunks_exact_mut(b.w) {
            copy.copy_from_slice(first);
        }
    }
}

/// Sums each block of `dy` `[planes, h, w]`: `[planes, h / k, w / k]`.
pub(crate) fn upsample_gradient<T: Real>(b: &Blocks, dy: &[T]) -> Vec<T> {
    let [x_len, y_len] = b.lengths();
    let mut dx = vec![T::ZERO; b.planes * x_len];
    for_each_chunk(&mut dx, PLANES * x_len, |part, dx| {
        add_up(b, &dy[part * PLANES * y_len..], dx);
    });
    dx
}

fused!(fn add_up<T: Real>(b: &Blocks, dy: &[T], dx: &mut [T]) = add_up_by);

#[inline(always)]
fn add_up_by<T: Real, const FMA: bool>(b: &Blocks, dy: &[T], dx: &mut [T]) {
    let (_, w_in) = b.counts();
    for (sums, rows) in dx.chunks_exact_mut(w_in).zip(dy.chunks_exact(b.k * b.w)) {
        match b.k {
            2 => {
                let (top, bottom) = rows.split_at(b.w);
                let pairs = top.as_chunks::<2>().0.iter().zip(bottom.as_chunks::<2>().0);
                for (sum, (top, bottom)) in sums.iter_mut().zip(pairs) {
                    *sum = (top[0] + bottom[0]) + (top[1] + bottom[1]);
                }
            }
            _ => {
                for row in rows.chunks_exact(b.w) {
                    for (sum, block) in sums.iter_mut().zip(row.chunks_exact(b.k)) {
                        *sum += block.iter().fold(T::ZERO, |sum, v| sum + *v);
                    }
                }
            }
        }
    }
}
