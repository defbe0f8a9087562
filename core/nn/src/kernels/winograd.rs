//! Convolution of 3 x 3 taps and stride 1 by Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2015): 36 multiplications
//! for 16 outputs instead of 144. Bound by compute: the 36 products are tiles of fused multiply-adds, the transforms
//! are additions on vectors of channels, and all of a block of 24 tiles stays in the second-level cache. By the bench
//! `kernels` (one thread, AMD Zen 3, batches of 24) the direct algorithm would have to run at 180 to 300 % of the peak forward, at
//! 135 to 245 % for input gradients; the products take half of the time.
//!
//! Rounding: the transforms use the points 0, +-1, +-2, so that an output differs from the direct sum by some 1e-6 of
//! the largest in `f32`. Every tile is transformed by itself: its result does not depend on the others.

use super::aligned::Aligned;
use super::direct::{Grid, in_panels, spans};
use super::frame::PANEL;
use super::scratch::Scratch;
use super::sink::{Place, Sink, Spot};
use super::vector::Vector;
use super::{Real, Task};
use candle_core::WithDType;

/// Tiles whose 36 products are made together.
const TILES: usize = 24;

/// Products of one tile.
const POINTS: usize = 36;

/// Apart, beyond their length, for the sets of numbers of the 36 points: powers of two would share cache lines.
const SKEW: usize = 16;

/// Weight transform: `G g G^T`.
const G: [[f64; 3]; 6] = [
    [1. / 4., 0., 0.],
    [-1. / 6., -1. / 6., -1. / 6.],
    [-1. / 6., 1. / 6., -1. / 6.],
    [1. / 24., 1. / 12., 1. / 6.],
    [1. / 24., -1. / 12., 1. / 6.],
    [0., 0., 1.],
];

/// Transformed weights: `[POINTS, panels, c_in, PANEL]`.
#[derive(Clone, Debug)]
pub(crate) struct Winograd<T> {
    c_in: usize,
    panels: usize,
    packed: Aligned<T>,
}

/// Tiles of 4 x 4 outputs that cover a grid.
#[derive(Clone, Copy)]
struct Tiles {
    grid: Grid,
    down: usize,
    across: usize,
}

impl Tiles {
    fn new(grid: Grid) -> Self {
        Self {
            grid,
            down: grid.h.div_ceil(4),
            across: grid.w.div_ceil(4),
        }
    }

    /// Tiles of one map.
    fn count(&self) -> usize {
        self.down * self.across
    }

    /// The place, in tiles, of tile number `i` of a batch.
    fn place(&self, i: usize) -> Place {
        let (image, rest) = (i / self.count(), i % self.count());
        Place {
            image,
            y: rest / self.across,
            x: rest % self.across,
        }
    }

    /// Where the 6 x 6 patch of a tile begins in the source.
    fn start(&self, tile: Place) -> usize {
        self.grid.base + tile.image * self.grid.image + 4 * (tile.y * self.grid.row + tile.x * self.grid.column)
    }

    /// Steps between rows and places of the source.
    fn steps(&self) -> [usize; 2] {
        [self.grid.row, self.grid.column]
    }
}

impl<T: Real> Winograd<T> {
    /// Transforms `weight(co, ci, r, s)`; `c_in` as stored, a multiple of eight.
    pub fn new(c_in: usize, [c_out, used]: [usize; 2], weight: impl Fn(usize, usize, usize, usize) -> T) -> Self {
        let panels = c_out.div_ceil(PANEL);
        let mut packed = Aligned::zeros(POINTS * panels * c_in * PANEL);
        for co in 0..c_out {
            for ci in 0..used {
                let taps = std::array::from_fn(|r| std::array::from_fn(|s| weight(co, ci, r, s).to_f64()));
                let transformed = transform_weight(&taps);
                for (point, value) in transformed.as_flattened().iter().enumerate() {
                    let row = (point * panels + co / PANEL) * c_in + ci;
                    packed[row * PANEL + co % PANEL] = T::from_f64(*value);
                }
            }
        }
        Self { c_in, panels, packed }
    }

    /// Columns, the padding's included.
    pub fn columns(&self) -> usize {
        self.panels * PANEL
    }
}

/// `G g G^T`.
fn transform_weight(g: &[[f64; 3]; 3]) -> [[f64; 6]; 6] {
    let half: [[f64; 3]; 6] = G.map(|row| std::array::from_fn(|s| (0..3).map(|r| row[r] * g[r][s]).sum()));
    half.map(|row| G.map(|by| (0..3).map(|s| row[s] * by[s]).sum()))
}

/// `G^T u G`: the gradient at the weight from the one at its transform.
fn untransform_weight(u: &[[f64; 6]; 6]) -> [[f64; 3]; 3] {
    let half: [[f64; 6]; 3] = std::array::from_fn(|r| std::array::from_fn(|j| (0..6).map(|i| G[i][r] * u[i][j]).sum()));
    half.map(|row| std::array::from_fn(|s| (0..6).map(|j| row[j] * G[j][s]).sum()))
}

/// What the transforms' rounding must not touch. Some 3 % of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exact {
    /// Outputs whose inputs are all 0 are 0, for gradients: a step along the sign would make a whole step of noise.
    Zeros,
    /// Neighbours in a 2 x 2 block of outputs with equal inputs, as on a flat background, are equal, for what is pooled:
    /// the first of equals has the gradient, and noise would choose another.
    Ties,
}

/// One convolution over a batch.
pub(crate) struct Convolve<'a, T, S> {
    pub winograd: &'a Winograd<T>,
    pub grid: Grid,
    pub images: usize,
    pub source: *const T,
    pub exact: Exact,
    pub sink: S,
}

impl<T: Real, S: Sink<T>> Convolve<'_, T, S> {
    /// Runs it.
    ///
    /// # Safety
    /// The patches of all tiles, whole ones, lie in the source; the sink takes every place and channel.
    pub unsafe fn run(&self) {
        let (c_in, c_out) = (self.winograd.c_in, self.winograd.columns());
        let tiles = Tiles::new(self.grid);
        let total = self.images * tiles.count();
        let (step_in, step_out) = (TILES * c_in + SKEW, TILES * c_out + SKEW);
        let mut scratch = Scratch::new(POINTS * (step_in + step_out));
        let inputs: *mut T = scratch.as_mut_ptr();
        let outputs = inputs.wrapping_add(POINTS * step_in);
        for from in (0..total).step_by(TILES) {
            let count = TILES.min(total - from);
            let mut fixes = [0; TILES];
            // Two tasks: the first is the same for every sink, and compiled once.
            // SAFETY: the caller's; the scratch holds `TILES` tiles of every point.
            unsafe {
                T::dispatch(Products {
                    winograd: self.winograd,
                    tiles,
                    from,
                    source: self.source,
                    exact: self.exact,
                    fixes: &mut fixes[..count],
                    inputs: (inputs, step_in),
                    outputs: (outputs, step_out),
                });
                T::dispatch(Give {
                    convolve: self,
                    tiles,
                    from,
                    fixes: &fixes[..count],
                    outputs: (outputs, step_out),
                });
            }
        }
    }
}

/// The products of a block of tiles, from `from` on: one for each of the `fixes`.
struct Products<'a, T> {
    winograd: &'a Winograd<T>,
    tiles: Tiles,
    from: usize,
    source: *const T,
    exact: Exact,
    /// What is to be made exact of each tile's outputs.
    fixes: &'a mut [u32],
    /// Transformed inputs, and the numbers between two points.
    inputs: (*mut T, usize),
    outputs: (*mut T, usize),
}

impl<T: Real> Task<T> for Products<'_, T> {
    /// # Safety
    /// The patches of the tiles lie in the source; inputs and outputs have room for all points.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let (c_in, count) = (self.winograd.c_in, self.fixes.len());
        let ((inputs, step_in), (outputs, step_out)) = (self.inputs, self.outputs);
        // SAFETY: the caller's.
        unsafe {
            for (t, fix) in self.fixes.iter_mut().enumerate() {
                let patch = self.source.add(self.tiles.start(self.tiles.place(self.from + t)));
                transform_input::<V>(patch, self.tiles.steps(), c_in, inputs.add(t * c_in), step_in);
                *fix = match self.exact {
                    Exact::Zeros => zero_outputs::<V>(patch, self.tiles.steps(), c_in),
                    Exact::Ties => ties::<V>(patch, self.tiles.steps(), c_in),
                };
            }
            let plane = self.winograd.panels * c_in * PANEL;
            for point in 0..POINTS {
                let weights = self.winograd.packed.as_ptr().add(point * plane);
                multiply::<V>(
                    [count, c_in, self.winograd.panels],
                    inputs.add(point * step_in),
                    weights,
                    outputs.add(point * step_out),
                );
            }
        }
    }
}

/// Hands the outputs of a block of tiles to the sink.
struct Give<'a, T, S> {
    convolve: &'a Convolve<'a, T, S>,
    tiles: Tiles,
    from: usize,
    fixes: &'a [u32],
    outputs: (*const T, usize),
}

impl<T: Real, S: Sink<T>> Task<T> for Give<'_, T, S> {
    /// # Safety
    /// The outputs hold all points of the tiles; the sink takes every place and channel of them.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let (outputs, step) = self.outputs;
        for (t, fix) in self.fixes.iter().enumerate() {
            let from = outputs.wrapping_add(t * self.convolve.winograd.columns());
            // SAFETY: the caller's.
            unsafe {
                self.convolve
                    .give::<V>(self.tiles.place(self.from + t), *fix, from, step)
            };
        }
    }
}

impl<T: Real, S: Sink<T>> Convolve<'_, T, S> {
    /// Hands on the places of a tile that lie on the map, all channels of them, made exact where a bit of
    /// `fix` is set.
    #[inline(always)]
    unsafe fn give<V: Vector<T = T>>(&self, tile: Place, fix: u32, outputs: *const T, step: usize) {
        let size = 1 + usize::from(S::BLOCKS);
        let count = 4 / size;
        let (y, x) = (tile.y * count, tile.x * count);
        let rows = (self.grid.h / size).saturating_sub(y).min(count);
        let columns = (self.grid.w / size).saturating_sub(x).min(count);
        let mut spots = [[Spot::default(); 4]; 4];
        for (i, spots) in spots.iter_mut().enumerate().take(rows) {
            for (j, spot) in spots.iter_mut().enumerate().take(columns) {
                *spot = self.sink.spot(Place {
                    image: tile.image,
                    y: y + i,
                    x: x + j,
                });
            }
        }
        for c in (0..self.winograd.columns()).step_by(V::LANES) {
            // SAFETY: the caller's; the spots are those of places on the map.
            unsafe {
                let mut v = transform_output::<V>(outputs.add(c), step);
                if fix != 0 {
                    self.exact.apply(fix, &mut v);
                }
                for i in 0..count {
                    for j in 0..count {
                        if i >= rows || j >= columns {
                            continue;
                        }
                        if S::BLOCKS {
                            let (a, b) = (2 * i, 2 * j);
                            let block = [v[a][b], v[a][b + 1], v[a + 1][b], v[a + 1][b + 1]];
                            self.sink.block(spots[i][j], c, block);
                        } else {
                            self.sink.place(spots[i][j], c, v[i][j]);
                        }
                    }
                }
            }
        }
    }
}

/// The 3 x 3 inputs of the first output, a bit a place of a 6 x 6 patch.
const WINDOW: u64 = 0b111 | 0b111 << 6 | 0b111 << 12;

/// Whether the channels of a place are 0. Without branches: which channel is the first that is not is hard to foresee.
#[inline(always)]
unsafe fn is_zero<V: Vector>(place: *const V::T, channels: usize) -> bool {
    let mut zero = true;
    for c in (0..channels).step_by(V::LANES) {
        // SAFETY: the caller's.
        zero &= unsafe { V::load(place.add(c)).equals(V::splat(V::T::ZERO)) };
    }
    zero
}

/// A bit for each of the 4 x 4 outputs whose inputs in a 6 x 6 patch are 0, all channels of them.
#[inline(always)]
unsafe fn zero_outputs<V: Vector>(patch: *const V::T, [row, column]: [usize; 2], c_in: usize) -> u32 {
    // Every output has one of the middle places among its inputs.
    let mut found = false;
    for i in [14, 15, 20, 21] {
        // SAFETY: the caller's: the patch lies in the source.
        found |= unsafe { is_zero::<V>(patch.add(i / 6 * row + i % 6 * column), c_in) };
    }
    if !found {
        return 0;
    }
    let mut filled = 0u64;
    for i in 0..36 {
        // SAFETY: as above.
        let zero = unsafe { is_zero::<V>(patch.add(i / 6 * row + i % 6 * column), c_in) };
        filled |= u64::from(!zero) << i;
    }
    let zero = |i: &usize| filled & (WINDOW << (6 * (i / 4) + i % 4)) == 0;
    (0..16).filter(zero).fold(0, |bits, i| bits | 1 << i)
}

/// Two bits for each output of each 2 x 2 block: the first output of the block whose inputs, in all channels, are equal to
/// its own, as far as neighbours are; by exclusive or with itself, so that 0 is none.
#[inline(always)]
unsafe fn ties<V: Vector>(patch: *const V::T, [row, column]: [usize; 2], c_in: usize) -> u32 {
    // Whether input (y, x) is its right neighbour's, or its lower one's.
    let same = |y: usize, x: usize, step: usize| {
        let first = y * row + x * column;
        // SAFETY: the caller's: the patch lies in the source.
        let same = |c| unsafe { V::load(patch.add(first + c)).equals(V::load(patch.add(first + step + c))) };
        (0..c_in).step_by(V::LANES).all(same)
    };
    // Each pair's nine comparisons include one of these.
    let across = same(2, 2, column) || same(3, 2, column);
    let down = same(2, 2, row) || same(2, 3, row);
    if !across && !down {
        return 0;
    }
    let (mut equal_across, mut equal_down) = (0u64, 0u64);
    for i in 0..36 {
        let (y, x) = (i / 6, i % 6);
        equal_across |= u64::from(across && x < 5 && same(y, x, column)) << i;
        equal_down |= u64::from(down && y < 5 && same(y, x, row)) << i;
    }
    let whole = |equal: u64, y: usize, x: usize| !equal & (WINDOW << (6 * y + x)) == 0;
    let mut bits = 0;
    for block in 0..4 {
        let (y, x) = (block / 2 * 2, block % 2 * 2);
        let mut first = [0, 1, 2, 3];
        for (a, b, tie) in [
            (0, 1, whole(equal_across, y, x)),
            (2, 3, whole(equal_across, y + 1, x)),
            (0, 2, whole(equal_down, y, x)),
            (1, 3, whole(equal_down, y, x + 1)),
        ] {
            if tie {
                let (low, high) = (first[a].min(first[b]), first[a].max(first[b]));
                first = first.map(|f| if f == high { low } else { f });
            }
        }
        for (i, first) in first.into_iter().enumerate() {
            bits |= (first ^ i as u32) << (8 * block + 2 * i);
        }
    }
    bits
}

impl Exact {
    /// Makes the outputs of a tile exact where a bit of `fix` is set.
    #[inline(always)]
    fn apply<V: Vector>(self, fix: u32, v: &mut [[V; 4]; 4]) {
        match self {
            Self::Zeros => {
                for (i, v) in v.as_flattened_mut().iter_mut().enumerate() {
                    // SAFETY: arithmetic only.
                    *v = unsafe { v.keep_if(fix >> i & 1 == 0) };
                }
            }
            Self::Ties => {
                let at = |block: usize, i: usize| (block / 2 * 2 + i / 2, block % 2 * 2 + i % 2);
                for (block, i) in (0..4).flat_map(|block| (1..4).map(move |i| (block, i))) {
                    let off = (fix >> (8 * block + 2 * i) & 3) as usize;
                    if off != 0 {
                        let ((y, x), (y_first, x_first)) = (at(block, i), at(block, i ^ off));
                        v[y][x] = v[y_first][x_first];
                    }
                }
            }
        }
    }
}

/// `B^T d B` of one 6 x 6 patch, a vector of channels at a time.
#[inline(always)]
unsafe fn transform_input<V: Vector>(
    patch: *const V::T,
    [row, column]: [usize; 2],
    c_in: usize,
    to: *mut V::T,
    step: usize,
) {
    for c in (0..c_in).step_by(V::LANES) {
        // SAFETY: the caller's: the patch lies in the source, `to` has room for every point.
        unsafe {
            let mut half = [[V::splat(V::T::ZERO); 6]; 6];
            for x in 0..6 {
                let mut d = [V::splat(V::T::ZERO); 6];
                for (y, d) in d.iter_mut().enumerate() {
                    *d = V::load(patch.add(y * row + x * column + c));
                }
                for (half, v) in half.iter_mut().zip(input_points(d)) {
                    half[x] = v;
                }
            }
            for (y, half) in half.into_iter().enumerate() {
                for (x, v) in input_points(half).into_iter().enumerate() {
                    v.store(to.add((y * 6 + x) * step + c));
                }
            }
        }
    }
}

/// `B^T d`.
#[inline(always)]
unsafe fn input_points<V: Vector>(d: [V; 6]) -> [V; 6] {
    // SAFETY: arithmetic only.
    unsafe {
        let by = |k: f64| V::splat(V::T::from_f64(k));
        let a = d[2].mul_add(by(-4.), d[4]);
        let b = d[1].mul_add(by(-4.), d[3]);
        let c = d[4].sub(d[2]);
        let e = d[3].sub(d[1]);
        [
            d[0].mul_add(by(4.), d[2].mul_add(by(-5.), d[4])),
            a.add(b),
            a.sub(b),
            e.mul_add(by(2.), c),
            e.mul_add(by(-2.), c),
            d[1].mul_add(by(4.), d[3].mul_add(by(-5.), d[5])),
        ]
    }
}

/// `A^T m A` of a vector of channels of one tile.
#[inline(always)]
unsafe fn transform_output<V: Vector>(m: *const V::T, step: usize) -> [[V; 4]; 4] {
    // SAFETY: the caller's: `m` holds every point.
    unsafe {
        let mut half = [[V::splat(V::T::ZERO); 6]; 4];
        for x in 0..6 {
            let mut column = [V::splat(V::T::ZERO); 6];
            for (y, v) in column.iter_mut().enumerate() {
                *v = V::load(m.add((y * 6 + x) * step));
            }
            for (half, v) in half.iter_mut().zip(output_points(column)) {
                half[x] = v;
            }
        }
        [
            output_points(half[0]),
            output_points(half[1]),
            output_points(half[2]),
            output_points(half[3]),
        ]
    }
}

/// `A^T m`.
#[inline(always)]
unsafe fn output_points<V: Vector>(m: [V; 6]) -> [V; 4] {
    // SAFETY: arithmetic only.
    unsafe {
        let by = |k: f64| V::splat(V::T::from_f64(k));
        let (s1, d1) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (s2, d2) = (m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(s1).add(s2),
            d2.mul_add(by(2.), d1),
            s2.mul_add(by(4.), s1),
            d2.mul_add(by(8.), d1).add(m[5]),
        ]
    }
}

/// `A d`: the transpose of [`output_points`].
#[inline(always)]
unsafe fn gradient_points<V: Vector>(d: [V; 4]) -> [V; 6] {
    // SAFETY: arithmetic only.
    unsafe {
        let by = |k: f64| V::splat(V::T::from_f64(k));
        let zero = by(0.);
        let (even, odd) = (d[0].add(d[2]), d[1].add(d[3]));
        let (even4, odd8) = (
            d[2].mul_add(by(4.), d[0]),
            d[3].mul_add(by(8.), d[1].mul_add(by(2.), zero)),
        );
        [
            d[0],
            even.add(odd),
            even.sub(odd),
            even4.add(odd8),
            even4.sub(odd8),
            d[3],
        ]
    }
}

/// `to[i][j] = sum_k a[i][k] w[k][j]` for `rows` of `a`, and panels of `w` one after the other.
#[inline(always)]
unsafe fn multiply<V: Vector>([rows, terms, panels]: [usize; 3], a: *const V::T, weights: *const V::T, to: *mut V::T) {
    let columns = panels * PANEL;
    for span in spans::<V>(0..panels) {
        // SAFETY: the caller's.
        unsafe {
            let weights = weights.add(span.panel * terms * PANEL);
            let mut i = 0;
            while i < rows {
                let (a, to) = (a.add(i * terms), to.add(i * columns + span.panel * PANEL));
                let left = rows - i;
                i += match span.alone::<V>() {
                    true => rows_of::<V, 1>(left, terms, a, weights, to, columns),
                    false => rows_of::<V, 2>(left, terms, a, weights, to, columns),
                };
            }
        }
    }
}

/// The largest [`tile`] that so many rows fill; returns its rows.
#[inline(always)]
unsafe fn rows_of<V: Vector, const P: usize>(
    rows: usize,
    terms: usize,
    a: *const V::T,
    weights: *const V::T,
    to: *mut V::T,
    columns: usize,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        // What cannot be is not compiled: conditions on constants come first.
        if V::ROWS == 8 && rows >= 8 {
            return tile::<V, 8, P>(terms, a, weights, to, columns);
        }
        if V::ROWS == 6 && rows >= 6 {
            return tile::<V, 6, P>(terms, a, weights, to, columns);
        }
        match rows {
            4.. => tile::<V, 4, P>(terms, a, weights, to, columns),
            2.. => tile::<V, 2, P>(terms, a, weights, to, columns),
            _ => tile::<V, 1, P>(terms, a, weights, to, columns),
        }
    }
}

/// `M` rows of a product, `P` vectors wide; returns `M`.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const P: usize>(
    terms: usize,
    a: *const V::T,
    weights: *const V::T,
    to: *mut V::T,
    columns: usize,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        let rows: [*const V::T; M] = std::array::from_fn(|r| a.add(r * terms));
        let weights: [*const V::T; P] = std::array::from_fn(|p| weights.add(in_panels::<V>(p, terms * PANEL)));
        let mut sums = [[V::splat(V::T::ZERO); P]; M];
        for k in 0..terms {
            let w = weights.map(|weights| V::load(weights.add(k * PANEL)));
            for (sum, row) in sums.iter_mut().zip(rows) {
                let a = V::splat(*row.add(k));
                *sum = std::array::from_fn(|p| a.mul_add(w[p], sum[p]));
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            for (p, sum) in sum.iter().enumerate() {
                sum.store(to.add(r * columns + p * V::LANES));
            }
        }
    }
    M
}

/// Adds the weight gradient of a batch to sums in the transformed domain, `[POINTS, c_in, c_out]` as stored: for every
/// point the product of the transformed inputs with `A dy A^T`.
pub(crate) struct Gradient<'a, T> {
    /// Of the forward pass.
    pub grid: Grid,
    pub images: usize,
    /// Channels as stored.
    pub c_in: usize,
    pub c_out: usize,
    pub source: *const T,
    /// The output's gradient: a map of `4 * tiles` rows and columns at least, zero beyond the output.
    pub dy: *const T,
    /// Its steps: maps, rows, places.
    pub steps: [usize; 3],
    pub sums: &'a mut [T],
}

impl<T: Real> Task<T> for Gradient<'_, T> {
    /// # Safety
    /// As for [`Convolve::run`]; `dy` has a place for every place of a tile.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let (c_in, c_out) = (self.c_in, self.c_out);
        let tiles = Tiles::new(self.grid);
        let total = self.images * tiles.count();
        let (step_in, step_out) = (TILES * c_in + SKEW, TILES * c_out + SKEW);
        let sums = self.sums.as_mut_ptr();
        let mut scratch = Scratch::new(POINTS * (step_in + step_out));
        let inputs: *mut T = scratch.as_mut_ptr();
        let gradients = inputs.wrapping_add(POINTS * step_in);
        for from in (0..total).step_by(TILES) {
            let count = TILES.min(total - from);
            // SAFETY: the caller's.
            unsafe {
                for t in 0..count {
                    let tile = tiles.place(from + t);
                    let patch = self.source.add(tiles.start(tile));
                    transform_input::<V>(patch, tiles.steps(), c_in, inputs.add(t * c_in), step_in);
                    let [image, row, column] = self.steps;
                    let dy = self.dy.add(tile.image * image + 4 * (tile.y * row + tile.x * column));
                    transform_gradient::<V>(dy, [row, column], c_out, gradients.add(t * c_out), step_out);
                }
                for point in 0..POINTS {
                    let (a, b) = (inputs.add(point * step_in), gradients.add(point * step_out));
                    outer::<V>([count, c_in, c_out], a, b, sums.add(point * c_in * c_out));
                }
            }
        }
    }
}

/// `A d A^T` of one 4 x 4 tile of gradients.
#[inline(always)]
unsafe fn transform_gradient<V: Vector>(
    dy: *const V::T,
    [row, column]: [usize; 2],
    c_out: usize,
    to: *mut V::T,
    step: usize,
) {
    for c in (0..c_out).step_by(V::LANES) {
        // SAFETY: the caller's.
        unsafe {
            let mut half = [[V::splat(V::T::ZERO); 4]; 6];
            for x in 0..4 {
                let mut d = [V::splat(V::T::ZERO); 4];
                for (y, d) in d.iter_mut().enumerate() {
                    *d = V::load(dy.add(y * row + x * column + c));
                }
                for (half, v) in half.iter_mut().zip(gradient_points(d)) {
                    half[x] = v;
                }
            }
            for (y, half) in half.into_iter().enumerate() {
                for (x, v) in gradient_points(half).into_iter().enumerate() {
                    v.store(to.add((y * 6 + x) * step + c));
                }
            }
        }
    }
}

/// `sums[i][j] += sum_t a[t][i] b[t][j]`, in tiles two vectors wide.
#[inline(always)]
unsafe fn outer<V: Vector>(sizes: [usize; 3], a: *const V::T, b: *const V::T, sums: *mut V::T) {
    for span in spans::<V>(0..sizes[2] / PANEL) {
        let j = span.panel * PANEL;
        // SAFETY: the caller's; rows, stored channels, are a multiple of a tile's.
        unsafe {
            if V::LANES < PANEL {
                outer_columns::<V, 4, 2>(sizes, j, a, b, sums);
            } else if span.alone::<V>() {
                outer_columns::<V, 8, 1>(sizes, j, a, b, sums);
            } else {
                outer_columns::<V, 8, 2>(sizes, j, a, b, sums);
            }
        }
    }
}

/// The same for the columns of `P` vectors from `j` on, `M` rows at a time.
#[inline(always)]
unsafe fn outer_columns<V: Vector, const M: usize, const P: usize>(
    [count, rows, columns]: [usize; 3],
    j: usize,
    a: *const V::T,
    b: *const V::T,
    sums: *mut V::T,
) {
    for i in (0..rows).step_by(M) {
        // SAFETY: the caller's.
        unsafe {
            let to = |r: usize, p: usize| sums.add((i + r) * columns + j + p * V::LANES);
            let mut tile: [[V; P]; M] = std::array::from_fn(|r| std::array::from_fn(|p| V::load(to(r, p))));
            for t in 0..count {
                let b: [V; P] = std::array::from_fn(|p| V::load(b.add(t * columns + j + p * V::LANES)));
                for (r, sum) in tile.iter_mut().enumerate() {
                    let a = V::splat(*a.add(t * rows + i + r));
                    *sum = std::array::from_fn(|p| a.mul_add(b[p], sum[p]));
                }
            }
            for (r, sum) in tile.iter().enumerate() {
                (sum.iter().enumerate()).for_each(|(p, sum)| sum.store(to(r, p)));
            }
        }
    }
}

/// Elements of the sums of a [`Gradient`].
pub(crate) fn gradient_len(c_in: usize, c_out: usize) -> usize {
    POINTS * c_in * c_out
}

/// The gradient at the weight of input channel `ci` and output channel `co` from the sums of a [`Gradient`].
pub(crate) fn weight_gradient<T: Real>(sums: &[T], [c_in, c_out]: [usize; 2], ci: usize, co: usize) -> [[T; 3]; 3] {
    let at = |point: usize| sums[(point * c_in + ci) * c_out + co].to_f64();
    let u = std::array::from_fn(|i| std::array::from_fn(|j| at(i * 6 + j)));
    untransform_weight(&u).map(|row| row.map(T::from_f64))
}
