//! Convolutions from maps with channels last to few channels, such as the input gradient of a first layer: a place's
//! output is one dot product of taps and channels, and eight places share every vector of weights. Bound by loads: nine
//! for eight fused multiply-adds leave 89 % of the peak, and the sums across the eight lanes take a tenth to a fifth of
//! the time for 32 channels.

use super::aligned::Aligned;
use super::direct::Grid;
use super::narrow::Planes;
use super::scratch::with_scratch;
use super::vector::{LANES, Vector};
use super::{Real, Task};

/// A convolution whose outputs are stored plane by plane.
#[derive(Clone, Debug)]
pub(crate) struct Dots<T> {
    planes: Planes,
    parts: Vec<Part<T>>,
}

/// Outputs `(y * stride + first.0, x * stride + first.1)` for `(y, x)` of a grid, which the same taps reach.
#[derive(Clone, Debug)]
struct Part<T> {
    grid: Grid,
    first: (usize, usize),
    stride: usize,
    /// Where each vector of eight terms lies, after a place's first.
    offsets: Vec<usize>,
    /// `[planes, offsets, LANES]`.
    weights: Aligned<T>,
}

impl<T: Real> Dots<T> {
    /// For outputs `[planes, h, w]`.
    pub fn new(output: [usize; 3]) -> Self {
        Self {
            planes: Planes::tight(output),
            parts: vec![],
        }
    }

    /// Adds the outputs of a grid. `taps` are where the `channels` of each tap lie after a place's first, and
    /// `weight(plane, i, c)` is the weight of channel `c` of tap number `i`.
    pub fn push(
        &mut self,
        grid: Grid,
        (first, stride): ((usize, usize), usize),
        taps: &[usize],
        channels: usize,
        weight: impl Fn(usize, usize, usize) -> T,
    ) {
        let vectors = || (0..channels).step_by(LANES);
        let terms = (0..self.planes.count())
            .flat_map(|plane| (0..taps.len()).map(move |i| (plane, i)))
            .flat_map(|(plane, i)| (0..channels).map(move |c| (plane, i, c)));
        self.parts.push(Part {
            grid,
            first,
            stride,
            offsets: taps.iter().flat_map(|tap| vectors().map(move |c| tap + c)).collect(),
            weights: Aligned::from(&*terms.map(|(plane, i, c)| weight(plane, i, c)).collect::<Vec<_>>()),
        });
    }

    /// Calls `f(image, planes, values)` with the outputs of each map of a batch, without a bias.
    ///
    /// # Safety
    /// `source` holds `images` maps of the frame that the grids were made for.
    pub unsafe fn run(&self, images: usize, source: *const T, mut f: impl FnMut(usize, &Planes, &[T])) {
        with_scratch(self.planes.len(), |values: &mut [T]| {
            for image in 0..images {
                for part in &self.parts {
                    let sums = Sums {
                        part,
                        planes: &self.planes,
                        source: source.wrapping_add(image * part.grid.image),
                        values,
                    };
                    // SAFETY: the caller's.
                    unsafe { T::dispatch(sums) };
                }
                f(image, &self.planes, values);
            }
        });
    }
}

/// The outputs of one part in one map.
struct Sums<'a, T> {
    part: &'a Part<T>,
    planes: &'a Planes,
    source: *const T,
    values: &'a mut [T],
}

impl<T: Real> Task<T> for Sums<'_, T> {
    /// # Safety
    /// Every term of every place of the grid lies in the source.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let Part {
            grid, first, stride, ..
        } = self.part;
        let total = grid.h * grid.w;
        // Down strips of eight columns: their rows stay in the first-level cache until the last tap has read them.
        let mut strip = 0..LANES.min(grid.w);
        let (mut y, mut x) = (0, 0);
        for from in (0..total).step_by(LANES) {
            let count = LANES.min(total - from);
            let (mut starts, mut to) = ([self.source; LANES], [0; LANES]);
            for i in 0..LANES {
                if i >= count {
                    starts[i] = starts[count - 1];
                    continue;
                }
                starts[i] = (self.source).wrapping_add(grid.base + y * grid.row + x * grid.column);
                to[i] = self.planes.at(first.0 + y * stride, first.1 + x * stride);
                x += 1;
                if x == strip.end {
                    (y, x) = (y + 1, strip.start);
                }
                if y == grid.h {
                    strip = strip.end..(strip.end + LANES).min(grid.w);
                    (y, x) = (0, strip.start);
                }
            }
            for plane in 0..self.planes.count() {
                // SAFETY: the caller's.
                let sums = unsafe { self.part.sums::<V>(plane, &starts) };
                for (to, sum) in to.iter().zip(sums).take(count) {
                    self.values[plane * self.planes.plane() + to] = sum;
                }
            }
        }
    }
}

impl<T: Real> Part<T> {
    /// One plane's outputs of eight places.
    #[inline(always)]
    unsafe fn sums<V: Vector<T = T>>(&self, plane: usize, starts: &[*const T; LANES]) -> [T; LANES] {
        let weights = self.weights[plane * self.offsets.len() * LANES..].as_ptr();
        let mut sums = [T::ZERO; LANES];
        // SAFETY: the caller's; there are as many vectors of weights as offsets.
        unsafe {
            let mut by_lane = [V::splat(T::ZERO); LANES];
            for (i, offset) in self.offsets.iter().enumerate() {
                let w = V::load(weights.add(i * LANES));
                for (sum, start) in by_lane.iter_mut().zip(starts) {
                    *sum = V::load(start.wrapping_add(*offset)).mul_add(w, *sum);
                }
            }
            let [a, b, c, d, e, f, g, h] = V::transpose(by_lane);
            let sum = (a.add(b).add(c.add(d))).add(e.add(f).add(g.add(h)));
            sum.store(sums.as_mut_ptr());
        }
        sums
    }
}
