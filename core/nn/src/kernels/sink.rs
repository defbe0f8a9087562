//! What becomes of a kernel's results while they are still in registers.

use super::Real;
use super::frame::Frame;
use super::vector::{OCTET, Vector};

/// A place in a batch of maps; of 2 x 2 blocks where a [`Sink`] takes those.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub image: usize,
    pub y: usize,
    pub x: usize,
}

/// Where a sink puts the results of a place: found once for all channels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spot {
    pub to: usize,
    pub mark: usize,
}

/// Takes results in vectors of channels from `c` on.
///
/// # Safety
/// Kernels pass what [`spot`](Sink::spot) answers on to [`place`](Sink::place) or [`block`](Sink::block) without a look at
/// it. So for a place of the maps that the sink was made for, `spot` must answer a spot that these two may be called with, for
/// every vector of stored channels, and [`BLOCKS`](Sink::BLOCKS) must say which of the two the sink implements.
pub(crate) unsafe trait Sink<T: Real> {
    /// Whether it takes 2 x 2 blocks instead of single places. Rows and columns that fill no block are left out.
    const BLOCKS: bool;
    /// Finds a place.
    fn spot(&self, at: Place) -> Spot;
    /// One place.
    ///
    /// # Safety
    /// `spot` is this sink's, of a place of its maps; `c` is a multiple of the lanes below the stored channels; nothing else has
    /// borrowed what the sink writes to since it was made.
    unsafe fn place<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: V) {
        let _ = (spot, c, v);
    }
    /// One block, row by row; its place counts blocks.
    ///
    /// # Safety
    /// As for [`place`](Sink::place).
    unsafe fn block<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: [V; 4]) {
        let _ = (spot, c, v);
    }
}

/// A batch of maps to write to.
#[derive(Clone, Copy)]
pub(crate) struct Maps<T> {
    first: *mut T,
    image: usize,
    row: usize,
    column: usize,
}

impl<T> Maps<T> {
    /// The maps of `frame` in `values`, one after the other; channels last.
    pub fn new(values: &mut [T], frame: &Frame) -> Self {
        let [_, row, column] = frame.strides();
        Self {
            // Of no images there is no first place: the pointer may lie beyond the values, and is not followed.
            first: values.as_mut_ptr().wrapping_add(frame.at(0, 0)),
            image: frame.len(),
            row,
            column,
        }
    }

    /// Elements from the first place to this one.
    #[inline(always)]
    fn offset(&self, at: Place) -> usize {
        at.image * self.image + at.y * self.row + at.x * self.column
    }

    /// The same for the first of the four places of a map twice as high and wide.
    #[inline(always)]
    fn offset_of_four(&self, at: Place) -> usize {
        self.offset(Place {
            y: 2 * at.y,
            x: 2 * at.x,
            ..at
        })
    }

    #[inline(always)]
    unsafe fn at(&self, spot: Spot, c: usize) -> *mut T {
        // SAFETY: a sink is called with places of the map.
        unsafe { self.first.add(spot.to + c) }
    }
}

/// A byte (a bit a channel) or eight bytes for every octet of a batch of maps `[h, w, channels]`.
#[derive(Clone, Copy)]
pub(crate) struct Marks<M> {
    first: *mut M,
    h: usize,
    w: usize,
    octets: usize,
}

impl<M> Marks<M> {
    /// Marks for the maps of `frame`.
    pub fn new(marks: &mut [M], frame: &Frame) -> Self {
        Self {
            first: marks.as_mut_ptr(),
            h: frame.h,
            w: frame.w,
            octets: frame.channels() / OCTET,
        }
    }

    /// Marks from the first place to this one.
    #[inline(always)]
    fn offset(&self, at: Place) -> usize {
        ((at.image * self.h + at.y) * self.w + at.x) * self.octets
    }

    /// The same where there may be none.
    #[inline(always)]
    fn offset_in(marks: &Option<Self>, at: Place) -> usize {
        marks.as_ref().map_or(0, |marks| marks.offset(at))
    }

    #[inline(always)]
    unsafe fn at(&self, spot: Spot, c: usize) -> *mut M {
        // SAFETY: a sink is called with places of the map.
        unsafe { self.first.add(spot.mark + c / OCTET) }
    }
}

/// Forward: adds the bias, takes the positive part if `RELU`, stores, and keeps what was positive.
#[derive(Clone, Copy)]
pub(crate) struct Store<T, const RELU: bool> {
    pub bias: *const T,
    pub to: Maps<T>,
    pub positive: Option<Marks<u8>>,
}

// SAFETY: offsets are those of the maps and marks of the place.
unsafe impl<T: Real, const RELU: bool> Sink<T> for Store<T, RELU> {
    const BLOCKS: bool = false;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: self.to.offset(at),
            mark: Marks::offset_in(&self.positive, at),
        }
    }
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: V) {
        // SAFETY: a place and channels of the map; the bias has as many.
        unsafe {
            let mut v = v.add(V::load(self.bias.add(c)));
            if RELU {
                if let Some(positive) = &self.positive {
                    v.mark_positive(positive.at(spot, c));
                }
                v = v.relu();
            }
            v.store(self.to.at(spot, c));
        }
    }
}

/// Forward: the same with `RELU`, each place stored four times, in a map twice as high and wide.
#[derive(Clone, Copy)]
pub(crate) struct StoreUpsampled<T> {
    pub bias: *const T,
    pub to: Maps<T>,
    pub positive: Option<Marks<u8>>,
}

// SAFETY: as above.
unsafe impl<T: Real> Sink<T> for StoreUpsampled<T> {
    const BLOCKS: bool = false;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: self.to.offset_of_four(at),
            mark: Marks::offset_in(&self.positive, at),
        }
    }
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: V) {
        // SAFETY: as above; the larger map has four places for each.
        unsafe {
            let v = v.add(V::load(self.bias.add(c)));
            if let Some(positive) = &self.positive {
                v.mark_positive(positive.at(spot, c));
            }
            let v = v.relu();
            let to = self.to.at(spot, c);
            for to in [
                to,
                to.add(self.to.column),
                to.add(self.to.row),
                to.add(self.to.row + self.to.column),
            ] {
                v.store(to);
            }
        }
    }
}

/// Forward: adds the bias, takes the positive part if `RELU`, stores the largest of each block, and keeps which it was.
#[derive(Clone, Copy)]
pub(crate) struct StorePooled<T, const RELU: bool> {
    pub bias: *const T,
    pub to: Maps<T>,
    pub largest: Option<Marks<u64>>,
}

// SAFETY: as above.
unsafe impl<T: Real, const RELU: bool> Sink<T> for StorePooled<T, RELU> {
    const BLOCKS: bool = true;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: self.to.offset(at),
            mark: Marks::offset_in(&self.largest, at),
        }
    }
    #[inline(always)]
    unsafe fn block<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: [V; 4]) {
        // SAFETY: as above.
        unsafe {
            let bias = V::load(self.bias.add(c));
            let indices = self.largest.as_ref().map(|largest| largest.at(spot, c).cast());
            let block = [v[0].add(bias), v[1].add(bias), v[2].add(bias), v[3].add(bias)];
            let max = V::largest::<RELU>(block, indices.unwrap_or(std::ptr::null_mut()));
            max.store(self.to.at(spot, c));
        }
    }
}

/// Stores, or adds to what is there.
#[derive(Clone, Copy)]
pub(crate) struct Plain<T, const ADD: bool>(pub Maps<T>);

// SAFETY: as above.
unsafe impl<T: Real, const ADD: bool> Sink<T> for Plain<T, ADD> {
    const BLOCKS: bool = false;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: self.0.offset(at),
            mark: 0,
        }
    }
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: V) {
        // SAFETY: as above.
        unsafe {
            let to = self.0.at(spot, c);
            if ADD { V::load(to).add(v) } else { v }.store(to);
        }
    }
}

/// Backward through `relu`: what was positive passes.
#[derive(Clone, Copy)]
pub(crate) struct Masked<T> {
    pub positive: Marks<u8>,
    pub to: Maps<T>,
}

// SAFETY: as above.
unsafe impl<T: Real> Sink<T> for Masked<T> {
    const BLOCKS: bool = false;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: self.to.offset(at),
            mark: self.positive.offset(at),
        }
    }
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: V) {
        // SAFETY: as above.
        unsafe { v.keep(self.positive.at(spot, c)).store(self.to.at(spot, c)) }
    }
}

/// Backward through pooling, and `relu` before it: the largest of each block takes it all.
#[derive(Clone, Copy)]
pub(crate) struct Unpooled<T> {
    pub largest: Marks<u64>,
    pub to: Maps<T>,
}

// SAFETY: as above.
unsafe impl<T: Real> Sink<T> for Unpooled<T> {
    const BLOCKS: bool = false;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: self.to.offset_of_four(at),
            mark: self.largest.offset(at),
        }
    }
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: V) {
        // SAFETY: as above; the larger map has four places for each.
        unsafe {
            let largest: *const u8 = self.largest.at(spot, c).cast();
            let to = self.to.at(spot, c);
            v.select(largest, 0).store(to);
            v.select(largest, 1).store(to.add(self.to.column));
            v.select(largest, 2).store(to.add(self.to.row));
            v.select(largest, 3).store(to.add(self.to.row + self.to.column));
        }
    }
}

/// Backward through upsampling, and `relu` before it: the sum of each block.
#[derive(Clone, Copy)]
pub(crate) struct Summed<T> {
    pub positive: Marks<u8>,
    pub to: Maps<T>,
}

// SAFETY: as above.
unsafe impl<T: Real> Sink<T> for Summed<T> {
    const BLOCKS: bool = true;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: self.to.offset(at),
            mark: self.positive.offset(at),
        }
    }
    #[inline(always)]
    unsafe fn block<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: [V; 4]) {
        // SAFETY: as above.
        unsafe {
            let sum = v[0].add(v[1]).add(v[2].add(v[3]));
            sum.keep(self.positive.at(spot, c)).store(self.to.at(spot, c));
        }
    }
}
