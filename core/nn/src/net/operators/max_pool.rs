//! Max pooling of blocks: of a map that others read too, as in a U-net. Blocks of 2 x 2 of maps with channels last are compared in
//! vectors of eight channels, bound by the caches; others element by element.

use candle_core::{Result, Tensor, bail};

use super::{Elementwise, Epilogue, Map, Operator, Run, Slope, blocks, each, only, place};
use crate::kernels::frame::Frame;
use crate::kernels::vector::Vector;
use crate::kernels::{Real, Task};
use crate::max_pool2d;

/// Height and width of a block: 15 at most, as the index of the largest element is a byte.
#[derive(Debug)]
pub(in crate::net) struct MaxPool(pub usize);

impl Operator for MaxPool {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        if self.0 > 15 {
            bail!("max_pool2d of {0}x{0} blocks: 15x15 at most", self.0);
        }
        blocks("max_pool2d", only(inputs)?, [self.0; 2])
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        max_pool2d(only(inputs)?, self.0)
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::MaxPool(self.0))
    }

    fn epilogue(&self) -> Option<Epilogue> {
        (self.0 == 2).then_some(Epilogue::Pool)
    }
}

impl MaxPool {
    /// Whether blocks are compared in vectors.
    fn by_vectors(&self, target: &Frame) -> bool {
        self.0 == 2 && !target.narrow
    }
}

impl<T: Real> Run<T> for MaxPool {
    /// The index of every block's largest element.
    fn kept(&self, target: &Frame) -> [usize; 2] {
        match self.by_vectors(target) {
            true => [target.h * target.w * target.channels(), 0],
            false => [target.shape().iter().product(), 0],
        }
    }

    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], bytes: &mut [u8], _: &mut [T]) {
        let ((frame, from), k) = (sources[0], self.0);
        if self.by_vectors(target) {
            assert!(from.len() >= frame.len() && to.len() >= target.len() && frame.channels() == target.channels());
            assert!(target.h <= frame.h / 2 && target.w <= frame.w / 2);
            assert!(bytes.is_empty() || bytes.len() == target.h * target.w * target.channels());
            let pairs = Pairs {
                from: (frame, from),
                to: (target, to),
                indices: bytes,
            };
            // SAFETY: the maps are as long as their layouts say, and there are four places for each of the target
            // and an index for each of its channels, or none.
            return unsafe { T::dispatch(pairs) };
        }
        each(target, |i, c, y, x| {
            let (index, max) = largest(k, |r, s| from[place(frame, c, y * k + r, x * k + s)]);
            if let Some(byte) = bytes.get_mut(i) {
                *byte = index;
            }
            to[place(target, c, y, x)] = max;
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, bytes: &[u8], _: &[T]) {
        let (own, (frame, dy), k) = (&sources[source], target, self.0);
        if self.by_vectors(frame) {
            assert!(dy.len() >= frame.len() && to.values.len() >= own.len() && frame.channels() == own.channels());
            assert!(bytes.len() == frame.h * frame.w * frame.channels());
            assert!(frame.h == own.h / 2 && frame.w == own.w / 2);
            for (y, x) in (0..own.h).flat_map(|y| (0..own.w).map(move |x| (y, x))) {
                // Of no block.
                if y >= 2 * frame.h || x >= 2 * frame.w {
                    to.give_all(own.at(y, x), std::iter::repeat_n(T::ZERO, own.channels()));
                }
            }
            let pairs = BackToPairs {
                from: (frame, dy),
                to: (own, to),
                indices: bytes,
            };
            // SAFETY: as above; there is an index for every channel of every place.
            return unsafe { T::dispatch(pairs) };
        }
        each(own, |_, c, y, x| {
            let (block_y, block_x) = (y / k, x / k);
            let inside = block_y < frame.h && block_x < frame.w;
            let here = ((y % k) * k + x % k) as u8;
            let chosen = inside && bytes[(c * frame.h + block_y) * frame.w + block_x] == here;
            let share = if chosen {
                dy[place(frame, c, block_y, block_x)]
            } else {
                T::ZERO
            };
            to.give(place(own, c, y, x), share);
        });
    }
}

/// The largest of every block of 2 x 2.
struct Pairs<'a, T> {
    from: Map<'a, T>,
    to: (&'a Frame, &'a mut [T]),
    /// In the order of memory, or empty.
    indices: &'a mut [u8],
}

impl<T: Real> Task<T> for Pairs<'_, T> {
    /// # Safety
    /// Maps are as long as their layouts say; the source has four places for each of the target, and as many channels.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let (frame, target) = (self.from.0, self.to.0);
        let (from, to) = (self.from.1.as_ptr(), self.to.1.as_mut_ptr());
        let [_, row, column] = frame.strides();
        let (mut indices, kept) = (self.indices.as_mut_ptr(), !self.indices.is_empty());
        for y in 0..target.h {
            for x in 0..target.w {
                for c in (0..target.channels()).step_by(V::LANES) {
                    // SAFETY: four places and a place, and channels of both maps; an index for each, or none.
                    unsafe {
                        let first = from.add(frame.at(2 * y, 2 * x) + c);
                        let block = [first, first.add(column), first.add(row), first.add(row + column)];
                        let [a, b, c_, d] = block;
                        let to_indices = if kept { indices } else { std::ptr::null_mut() };
                        let block = [V::load(a), V::load(b), V::load(c_), V::load(d)];
                        let max = V::largest::<false>(block, to_indices);
                        indices = indices.wrapping_add(V::LANES);
                        max.store(to.add(target.at(y, x) + c));
                    }
                }
            }
        }
    }
}

/// The gradient of every block's largest element, 0 for the others.
struct BackToPairs<'a, T> {
    from: Map<'a, T>,
    to: (&'a Frame, Slope<'a, T>),
    indices: &'a [u8],
}

impl<T: Real> Task<T> for BackToPairs<'_, T> {
    /// # Safety
    /// As for [`Pairs`], with source and target exchanged; there is an index for every element of the source.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let (frame, (own, slope)) = (self.from.0, self.to);
        let (from, to) = (self.from.1.as_ptr(), slope.values.as_mut_ptr());
        let [_, row, column] = own.strides();
        let mut indices = self.indices.as_ptr();
        for y in 0..frame.h {
            for x in 0..frame.w {
                for c in (0..frame.channels()).step_by(V::LANES) {
                    // SAFETY: a place and four places, and channels of both maps; an index for each.
                    unsafe {
                        let dy = V::load(from.add(frame.at(y, x) + c));
                        let first = to.add(own.at(2 * y, 2 * x) + c);
                        for (i, at) in [0, column, row, row + column].into_iter().enumerate() {
                            let (share, to) = (dy.select(indices, i as u8), first.add(at));
                            if slope.add { V::load(to).add(share) } else { share }.store(to);
                        }
                        indices = indices.add(V::LANES);
                    }
                }
            }
        }
    }
}

/// Index and value of the first of the largest of a block; of a NaN if there is one.
fn largest<T: Real>(k: usize, at: impl Fn(usize, usize) -> T) -> (u8, T) {
    let mut best = (0, at(0, 0));
    for i in 1..k * k {
        let v = at(i / k, i % k);
        if v > best.1 || v.is_not_a_number() {
            best = (i as u8, v);
        }
    }
    best
}
