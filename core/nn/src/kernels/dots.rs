//! Convolutions from maps with channels last to few channels, such as the input gradient of a first layer: a place's
//! output is one dot product of taps and channels. Eight neighbouring places are taken at once, so that a vector of the map
//! serves all taps of a row that meet there, and every vector of weights all places. Bound by compute: 66 % of the peak by the
//! bench `kernels` (one thread, AMD Zen 3, batches of 24) for 5 x 5 taps and for 8 x 8 at stride 2 of 64 channels; the strips'
//! overlap takes an eighth where the width is no multiple of eight, the sums across lanes a tenth to a fifth for 32 channels. Of
//! 3 x 3 taps of 128 channels 69 % while the map is in the second-level cache, 58 % from the third.

use super::aligned::Aligned;
use super::direct::Grid;
use super::frame::PANEL;
use super::narrow::Planes;
use super::scratch::with_scratch;
use super::vector::{OCTET, Octet, Vector};
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
    channels: usize,
    runs: Vec<Run>,
    /// `[planes, runs, channels / PANEL, taps of the run, PANEL]`.
    weights: Aligned<T>,
}

/// Taps that lie side by side, as neighbouring places do: [`TAPS`] at most.
#[derive(Clone, Debug)]
struct Run {
    /// Where the first one lies, after a place's first.
    offset: usize,
    count: usize,
}

/// Taps that are taken at once: with their weights, the sums of eight places and one vector of the map in registers.
const TAPS: usize = 6;

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
        let mut order: Vec<usize> = (0..taps.len()).collect();
        order.sort_by_key(|i| taps[*i]);
        let beside = |a: &usize, b: &usize| taps[*a] + grid.column == taps[*b];
        let rows = order.chunk_by(beside);
        // Rows that are too long are cut into equal runs.
        let runs: Vec<&[usize]> = rows
            .flat_map(|row| row.chunks(row.len().div_ceil(row.len().div_ceil(TAPS))))
            .collect();
        let mut weights = Vec::with_capacity(self.planes.count() * taps.len() * channels);
        for plane in 0..self.planes.count() {
            for run in &runs {
                for c in (0..channels).step_by(PANEL) {
                    weights.extend(
                        run.iter()
                            .flat_map(|i| (c..c + PANEL).map(move |c| (*i, c)))
                            .map(|(i, c)| weight(plane, i, c)),
                    );
                }
            }
        }
        let run = |taps_of: &&[usize]| Run {
            offset: taps[taps_of[0]],
            count: taps_of.len(),
        };
        self.parts.push(Part {
            grid,
            first,
            stride,
            channels,
            runs: runs.iter().map(run).collect(),
            weights: Aligned::from(weights.as_slice()),
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
    unsafe fn run<V: Vector<T = T>>(mut self) {
        // SAFETY: the caller's.
        unsafe {
            match self.part.grid.w {
                OCTET.. => self.strips::<V, OCTET>(),
                4.. => self.strips::<V, 4>(),
                _ => self.strips::<V, 1>(),
            }
        }
    }
}

impl<T: Real> Sums<'_, T> {
    /// Down strips of `N` columns, the last two of which may overlap: their rows stay in the first-level cache until the
    /// last tap has read them.
    #[inline(always)]
    unsafe fn strips<V: Vector<T = T>, const N: usize>(&mut self) {
        let Part {
            grid, first, stride, ..
        } = self.part;
        let last = grid.w - N;
        for x in (0..last).step_by(N).chain([last]) {
            for y in 0..grid.h {
                // The base may lie before the source, where the first terms of a part are left out.
                let start = grid.base.wrapping_add(y * grid.row + x * grid.column);
                let to = self.planes.at(first.0 + y * stride, first.1 + x * stride);
                for plane in 0..self.planes.count() {
                    // SAFETY: the caller's.
                    let sums = unsafe { self.part.sums::<V, N>(plane, self.source.wrapping_add(start)) };
                    let values = self.values[plane * self.planes.plane() + to..].iter_mut();
                    for (value, sum) in values.step_by(*stride).zip(&sums[..N]) {
                        *value = *sum;
                    }
                }
            }
        }
    }
}

impl<T: Real> Part<T> {
    /// One plane's outputs of `N` neighbouring places, and zeros.
    #[inline(always)]
    unsafe fn sums<V: Vector<T = T>, const N: usize>(&self, plane: usize, start: *const T) -> [T; OCTET] {
        let taps: usize = self.runs.iter().map(|run| run.count).sum();
        let mut weights = self.weights[plane * taps * self.channels..].as_ptr();
        // SAFETY: the processor has these vectors.
        let (mut by_lane, mut rows) = unsafe { ([V::splat(T::ZERO); N], [V::Octet::splat(T::ZERO); OCTET]) };
        for run in &self.runs {
            let from = start.wrapping_add(run.offset);
            // SAFETY: the caller's; there is a vector of weights for every tap of the run and vector of channels.
            unsafe {
                match run.count {
                    1 => self.add::<V, N, 1>(from, weights, &mut by_lane),
                    2 => self.add::<V, N, 2>(from, weights, &mut by_lane),
                    3 => self.add::<V, N, 3>(from, weights, &mut by_lane),
                    4 => self.add::<V, N, 4>(from, weights, &mut by_lane),
                    5 => self.add::<V, N, 5>(from, weights, &mut by_lane),
                    _ => self.add::<V, N, TAPS>(from, weights, &mut by_lane),
                }
                weights = weights.add(run.count * self.channels);
            }
        }
        let mut sums = [T::ZERO; OCTET];
        // SAFETY: as above.
        unsafe {
            rows.iter_mut().zip(by_lane).for_each(|(row, sum)| *row = sum.fold());
            let [a, b, c, d, e, f, g, h] = Octet::transpose(rows);
            let sum = (a.add(b).add(c.add(d))).add(e.add(f).add(g.add(h)));
            sum.store(sums.as_mut_ptr());
        }
        sums
    }

    /// Adds the terms of `K` taps side by side. A vector of the map is loaded once for all places that it is a term of.
    #[inline(always)]
    unsafe fn add<V: Vector<T = T>, const N: usize, const K: usize>(
        &self,
        from: *const T,
        weights: *const T,
        sums: &mut [V; N],
    ) {
        for c in (0..self.channels).step_by(V::LANES) {
            // SAFETY: the caller's.
            unsafe {
                let weights = weights.add(c / PANEL * PANEL * K + c % PANEL);
                let w: [V; K] = std::array::from_fn(|k| V::load(weights.add(k * PANEL)));
                for column in 0..N + K - 1 {
                    let v = V::load(from.wrapping_add(column * self.grid.column + c));
                    for (k, w) in w.iter().enumerate() {
                        if let Some(sum) = column.checked_sub(k).and_then(|i| sums.get_mut(i)) {
                            *sum = v.mul_add(*w, *sum);
                        }
                    }
                }
            }
        }
    }
}
