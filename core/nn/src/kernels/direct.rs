//! Products of patches with a matrix of weights: convolutions of any kernel and stride, their input gradients, fully
//! connected layers. Bound by compute: a tile of 6 places by 16 channels (with AVX-512 of 8 by 32) keeps twelve chains (sixteen)
//! of fused multiply-adds going, at eight loads for twelve operations (ten for sixteen). By the bench `kernels` (one thread, AMD Zen 3) 85 to 95 % of the peak where a
//! patch has hundreds of terms; beginning and ending a tile takes as long as seven terms, which leaves 75 % for 5 x 5
//! patches of one channel. For 3 x 3 patches of one channel neighbours share what they read: 65 to 68 % for 128
//! channels, 51 to 54 % for 32, whose tiles end as soon as they begin.
//!
//! A patch is never copied: term `k` of a place is the element `offsets[k]` after the place's first. Terms are taken
//! in blocks whose weights stay in the first-level cache while the places of a chunk pass; sums wait in between in
//! memory, exactly, so that an element is the same sum in the same order wherever the cuts fall.

use std::ops::Range;

use super::aligned::Aligned;
use super::frame::PANEL;
use super::sink::{Place, Sink, Spot};
use super::vector::Vector;
use super::{Real, Task};

/// Places whose sums are kept at a time.
pub(crate) const CHUNK: usize = 96;

/// Terms whose weights are used for all places of a chunk before the next ones: 16 KiB in `f32`.
const BLOCK: usize = 256;

/// Weights `[terms, columns]`, in panels of 16 columns, and where the terms lie.
#[derive(Clone, Debug)]
pub(crate) struct Direct<T> {
    offsets: Vec<usize>,
    /// `[panels, terms, PANEL]`.
    packed: Aligned<T>,
    panels: usize,
}

/// The places a product is taken at: those of a map of outputs, each `row` and `column` apart in the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub h: usize,
    pub w: usize,
    pub row: usize,
    pub column: usize,
    /// Where the first patch begins.
    pub base: usize,
    /// Elements between the maps of a batch.
    pub image: usize,
}

impl<T: Real> Direct<T> {
    /// Packs `weight(term, column)`.
    pub fn new(offsets: Vec<usize>, columns: usize, weight: impl Fn(usize, usize) -> T) -> Self {
        Self::packed(offsets, columns, |term, first, row| {
            for (j, value) in row.iter_mut().enumerate() {
                *value = weight(term, first + j);
            }
        })
    }

    /// Packs elements of `weight`, those of a term `step` apart, from `firsts[term]` on. Bound by the caches: training packs anew at every
    /// call.
    pub fn gathered(offsets: Vec<usize>, columns: usize, weight: &[T], firsts: &[usize], step: usize) -> Self {
        Self::packed(offsets, columns, |term, first, row| {
            let elements = weight[firsts[term] + first * step..].iter().step_by(step);
            row.iter_mut()
                .zip(elements)
                .for_each(|(value, element)| *value = *element);
        })
    }

    fn packed(offsets: Vec<usize>, columns: usize, fill: impl Fn(usize, usize, &mut [T])) -> Self {
        let panels = columns.div_ceil(PANEL);
        let mut packed = Aligned::zeros(panels * offsets.len() * PANEL);
        for (panel, values) in packed.chunks_exact_mut((offsets.len() * PANEL).max(1)).enumerate() {
            let width = PANEL.min(columns - panel * PANEL);
            for (term, row) in values.chunks_exact_mut(PANEL).enumerate() {
                fill(term, panel * PANEL, &mut row[..width]);
            }
        }
        Self {
            offsets,
            packed,
            panels,
        }
    }

    /// Columns, the padding's included.
    pub fn columns(&self) -> usize {
        self.panels * PANEL
    }

    /// Whether terms come by threes that lie side by side.
    fn is_triples(&self) -> bool {
        let mut triples = self.offsets.chunks_exact(3);
        triples.remainder().is_empty() && triples.all(|t| t[1] == t[0] + 1 && t[2] == t[0] + 2)
    }

    /// All terms, in blocks.
    pub fn blocks(&self) -> Vec<Range<usize>> {
        blocks(0..self.offsets.len()).collect()
    }
}

/// A run of terms, in blocks.
pub(crate) fn blocks(terms: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = terms.end;
    terms.step_by(BLOCK).map(move |from| from..(from + BLOCK).min(end))
}

/// One product over a batch: outputs `(y * stride + first.0, x * stride + first.1)` for `(y, x)` of the grid.
pub(crate) struct Product<'a, T, S> {
    pub direct: &'a Direct<T>,
    /// The terms that are summed, in order.
    pub blocks: &'a [Range<usize>],
    pub grid: Grid,
    pub first: (usize, usize),
    pub stride: usize,
    pub images: usize,
    pub source: *const T,
    pub sink: S,
}

impl<T: Real, S: Sink<T>> Product<'_, T, S> {
    /// Computes it.
    ///
    /// # Safety
    /// Every patch of the grid lies in the source, and the sink takes every place and column of it.
    pub unsafe fn run(&self) {
        let mut chunk = Chunk::default();
        let mut places = Places::new(&self.grid, self.images, S::BLOCKS);
        let mut spots = [Spot::default(); CHUNK];
        let mut sums = [T::ZERO; CHUNK * WIDEST];
        let triples = !S::BLOCKS && self.grid.column == 1 && self.direct.is_triples();
        loop {
            places.fill(&mut chunk);
            if chunk.len == 0 {
                return;
            }
            for (spot, place) in spots.iter_mut().zip(&chunk.places[..chunk.len]) {
                *spot = self.sink.spot(Place {
                    image: place.image,
                    y: place.y * self.stride + self.first.0,
                    x: place.x * self.stride + self.first.1,
                });
            }
            let (chunk, spots) = (&chunk, &spots);
            if self.blocks.len() <= 1 && self.direct.packed.len() <= BLOCK * PANEL {
                // SAFETY: the caller's; there are as many spots as places of the chunk.
                unsafe {
                    T::dispatch(Short {
                        product: self,
                        chunk,
                        spots,
                        triples,
                    });
                }
                continue;
            }
            for from in (0..self.direct.panels).step_by(WIDEST / PANEL) {
                let panels = from..(from + WIDEST / PANEL).min(self.direct.panels);
                // Two tasks: the first is the same for every sink, and compiled once.
                // SAFETY: as above; the sums hold a row of the widest tile for every place.
                unsafe {
                    T::dispatch(Sums {
                        direct: self.direct,
                        blocks: self.blocks,
                        source: self.source,
                        starts: &chunk.starts[..chunk.len],
                        panels: panels.clone(),
                        sums: &mut sums,
                    });
                    T::dispatch(Give {
                        sink: &self.sink,
                        spots: &spots[..chunk.len],
                        panels,
                        sums: &sums,
                    });
                }
            }
        }
    }
}

/// A product whose weights all stay in the first-level cache: a place's results are handed on from registers, and all columns of one
/// place are written before the next.
struct Short<'a, T, S> {
    product: &'a Product<'a, T, S>,
    chunk: &'a Chunk,
    spots: &'a [Spot; CHUNK],
    triples: bool,
}

impl<T: Real, S: Sink<T>> Task<T> for Short<'_, T, S> {
    /// # Safety
    /// As for [`Product::run`]; the product has one block at most.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let mut i = 0;
        while i < self.chunk.len {
            let near = self.triples && self.chunk.is_run(i, NEAR);
            let mut done = NEAR;
            for span in spans::<V>(0..self.product.direct.panels) {
                // SAFETY: the caller's.
                unsafe {
                    done = match span.alone::<V>() {
                        true => self.some::<V, 1>(near, span.panel, i),
                        false => self.some::<V, 2>(near, span.panel, i),
                    };
                }
            }
            i += done;
        }
    }
}

impl<T: Real, S: Sink<T>> Short<'_, T, S> {
    /// The next places, `P` vectors of columns; returns how many places.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn some<V: Vector<T = T>, const P: usize>(&self, near: bool, panel: usize, i: usize) -> usize {
        // What cannot be is not compiled: conditions on constants come first.
        // SAFETY: the caller's.
        unsafe {
            if S::BLOCKS {
                return self.tile::<V, 4, P>(panel, i);
            }
            if near {
                return self.near::<V, P>(panel, i);
            }
            let left = self.chunk.len - i;
            if V::ROWS == 8 && left >= 8 {
                return self.tile::<V, 8, P>(panel, i);
            }
            if V::ROWS == 6 && left >= 6 {
                return self.tile::<V, 6, P>(panel, i);
            }
            if V::ROWS == 4 && left >= 4 {
                return self.tile::<V, 4, P>(panel, i);
            }
            self.tile::<V, 1, P>(panel, i)
        }
    }

    /// [`NEAR`] neighbouring places, all terms at once: [`near`].
    ///
    /// # Safety
    /// As for [`Task::run`]; the terms are triples.
    #[inline(always)]
    unsafe fn near<V: Vector<T = T>, const P: usize>(&self, panel: usize, i: usize) -> usize {
        let Direct { offsets, packed, .. } = self.product.direct;
        // SAFETY: the caller's.
        unsafe {
            let weights = packed.as_ptr().add(panel * offsets.len() * PANEL);
            let first = self.product.source.wrapping_add(*self.chunk.starts.get_unchecked(i));
            self.give::<V, NEAR, P>(panel, i, near::<V, P>(first, offsets, weights));
        }
        NEAR
    }

    /// `M` places, all terms at once: [`tile`].
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn tile<V: Vector<T = T>, const M: usize, const P: usize>(&self, panel: usize, i: usize) -> usize {
        // No checks here: a tile of nine terms has only some sixty instructions besides its multiply-adds.
        // SAFETY: the caller's: there are such a panel and such places.
        unsafe {
            let terms = self.product.blocks.first().cloned().unwrap_or_default();
            let terms = self.product.direct.terms::<V, P>(panel, &terms);
            let starts = self.chunk.starts.get_unchecked(i..i + M);
            let zeros = [[V::splat(T::ZERO); P]; M];
            self.give::<V, M, P>(panel, i, tile::<V, M, P>(self.product.source, starts, &terms, zeros));
        }
        M
    }

    /// Hands sums on.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn give<V: Vector<T = T>, const M: usize, const P: usize>(&self, panel: usize, i: usize, sums: [[V; P]; M]) {
        let sink = &self.product.sink;
        // SAFETY: the caller's.
        unsafe {
            let spots = self.spots.get_unchecked(i..i + M);
            for p in 0..P {
                let c = panel * PANEL + p * V::LANES;
                if !S::BLOCKS {
                    (spots.iter().zip(&sums)).for_each(|(spot, sums)| sink.place(*spot, c, sums[p]));
                } else if let [a, b, c_, d] = sums.as_slice() {
                    sink.block(spots[0], c, [a[p], b[p], c_[p], d[p]]);
                }
            }
        }
    }
}

/// The sums of a chunk's places over all blocks, the columns of two panels at most: rows of [`WIDEST`] in `sums`.
struct Sums<'a, T> {
    direct: &'a Direct<T>,
    blocks: &'a [Range<usize>],
    source: *const T,
    starts: &'a [usize],
    panels: Range<usize>,
    sums: &'a mut [T; CHUNK * WIDEST],
}

impl<T: Real> Task<T> for Sums<'_, T> {
    /// # Safety
    /// Every patch lies in the source.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(mut self) {
        for span in spans::<V>(self.panels.clone()) {
            for number in 0..self.blocks.len().max(1) {
                // SAFETY: the caller's.
                unsafe {
                    match span.alone::<V>() {
                        true => self.block::<V, 1>(span.panel, number),
                        false => self.block::<V, 2>(span.panel, number),
                    }
                }
            }
        }
    }
}

impl<T: Real> Sums<'_, T> {
    /// Adds a block of terms, `P` vectors of columns: exactly as if all blocks were one.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn block<V: Vector<T = T>, const P: usize>(&mut self, panel: usize, number: usize) {
        // SAFETY: the caller's.
        unsafe {
            let terms = self.blocks.get(number).cloned().unwrap_or_default();
            let terms = self.direct.terms::<V, P>(panel, &terms);
            let mut i = 0;
            while i < self.starts.len() {
                let left = self.starts.len() - i;
                // What cannot be is not compiled: conditions on constants come first.
                i += if V::ROWS == 8 && left >= 8 {
                    self.tile::<V, 8, P>(&terms, [panel, number, i])
                } else if V::ROWS == 6 && left >= 6 {
                    self.tile::<V, 6, P>(&terms, [panel, number, i])
                } else {
                    match left {
                        4.. => self.tile::<V, 4, P>(&terms, [panel, number, i]),
                        2.. => self.tile::<V, 2, P>(&terms, [panel, number, i]),
                        _ => self.tile::<V, 1, P>(&terms, [panel, number, i]),
                    }
                };
            }
        }
    }

    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn tile<V: Vector<T = T>, const M: usize, const P: usize>(
        &mut self,
        terms: &Terms<T, P>,
        [panel, number, i]: [usize; 3],
    ) -> usize {
        // SAFETY: the caller's: there are such places.
        unsafe {
            let kept = self
                .sums
                .as_mut_ptr()
                .add(i * WIDEST + (panel - self.panels.start) * PANEL);
            let at = |r: usize, p: usize| kept.add(r * WIDEST + p * V::LANES);
            let mut sums = [[V::splat(T::ZERO); P]; M];
            if number > 0 {
                sums = std::array::from_fn(|r| std::array::from_fn(|p| V::load(at(r, p))));
            }
            let sums = tile::<V, M, P>(self.source, self.starts.get_unchecked(i..i + M), terms, sums);
            for (r, sums) in sums.into_iter().enumerate() {
                sums.into_iter().enumerate().for_each(|(p, sum)| sum.store(at(r, p)));
            }
        }
        M
    }
}

/// Hands the sums of a chunk's places to a sink.
struct Give<'a, T, S> {
    sink: &'a S,
    spots: &'a [Spot],
    panels: Range<usize>,
    sums: &'a [T; CHUNK * WIDEST],
}

impl<T: Real, S: Sink<T>> Task<T> for Give<'_, T, S> {
    /// # Safety
    /// The sink takes the panels' columns of every spot.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let columns = self.panels.len() * PANEL;
        let step = if S::BLOCKS { 4 } else { 1 };
        for (i, spot) in self.spots.iter().enumerate().step_by(step) {
            for column in (0..columns).step_by(V::LANES) {
                let c = self.panels.start * PANEL + column;
                let row = |r: usize| self.sums[(i + r) * WIDEST + column..][..V::LANES].as_ptr();
                // SAFETY: the caller's.
                unsafe {
                    match S::BLOCKS {
                        true => (self.sink).block(*spot, c, [0, 1, 2, 3].map(|r| V::load(row(r)))),
                        false => self.sink.place(*spot, c, V::load(row(0))),
                    }
                }
            }
        }
    }
}

/// Columns of the widest tile.
const WIDEST: usize = 2 * PANEL;

/// What a tile covers of the panels: two vectors, or the last one alone where vectors are as long as a panel.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub panel: usize,
    pub vectors: usize,
}

impl Span {
    /// Whether it is one vector. Never where two make a panel: a constant condition, for the compiler's sake.
    #[inline(always)]
    pub fn alone<V: Vector>(self) -> bool {
        V::LANES == PANEL && self.vectors == 1
    }
}

/// All of some panels.
#[inline(always)]
pub(crate) fn spans<V: Vector>(panels: Range<usize>) -> impl Iterator<Item = Span> {
    let (step, end) = (2 * V::LANES / PANEL, panels.end);
    panels.step_by(step).map(move |panel| Span {
        panel,
        vectors: 2.min((end - panel) * PANEL / V::LANES),
    })
}

/// Where vector `p` of a tile begins in panels that lie `apart`.
#[inline(always)]
pub(crate) const fn in_panels<V: Vector>(p: usize, apart: usize) -> usize {
    p * V::LANES / PANEL * apart + p * V::LANES % PANEL
}

/// A block of terms.
struct Terms<T, const P: usize> {
    offsets: *const usize,
    /// `[count, PANEL]`, the numbers of each vector from its own begin on.
    weights: [*const T; P],
    count: usize,
}

impl<T: Real> Direct<T> {
    /// The terms `of` some, with the weights of `P` vectors of columns from `panel` on.
    ///
    /// # Safety
    /// There are such terms and such columns.
    #[inline(always)]
    unsafe fn terms<V: Vector<T = T>, const P: usize>(&self, panel: usize, of: &Range<usize>) -> Terms<T, P> {
        let apart = self.offsets.len() * PANEL;
        // SAFETY: the caller's.
        unsafe {
            let weights = self.packed.as_ptr().add(panel * apart + of.start * PANEL);
            Terms {
                offsets: self.offsets.as_ptr().add(of.start),
                weights: std::array::from_fn(|p| weights.add(in_panels::<V>(p, apart))),
                count: of.len(),
            }
        }
    }
}

/// The sums of `M` places over a block of terms, `P` vectors of columns, on top of `sums`.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const P: usize>(
    source: *const V::T,
    starts: &[usize],
    terms: &Terms<V::T, P>,
    mut sums: [[V; P]; M],
) -> [[V; P]; M] {
    // SAFETY: the caller's: every term of every place lies in the source.
    unsafe {
        let rows: [*const V::T; M] = std::array::from_fn(|r| source.wrapping_add(*starts.get_unchecked(r)));
        for k in 0..terms.count {
            let offset = *terms.offsets.add(k);
            let w = terms.weights.map(|weights| V::load(weights.add(k * PANEL)));
            for (sum, row) in sums.iter_mut().zip(rows) {
                let a = V::splat(*row.wrapping_add(offset));
                *sum = std::array::from_fn(|p| a.mul_add(w[p], sum[p]));
            }
        }
    }
    sums
}

/// Neighbouring places that share what they read.
const NEAR: usize = 4;

/// The sums of [`tile`], in its order, for [`NEAR`] places side by side whose terms come as triples: an element that three
/// places read is loaded once, which spares a third of all instructions.
#[inline(always)]
unsafe fn near<V: Vector, const P: usize>(
    first: *const V::T,
    offsets: &[usize],
    weights: *const V::T,
) -> [[V; P]; NEAR] {
    // SAFETY: as for `tile`; there is a panel's row of weights for every term.
    unsafe {
        let mut sums = [[V::splat(V::T::ZERO); P]; NEAR];
        for (number, triple) in offsets.chunks_exact(3).enumerate() {
            let from = first.wrapping_add(triple[0]);
            let weights = weights.add(number * 3 * PANEL);
            let w: [[V; P]; 3] = std::array::from_fn(|k| {
                std::array::from_fn(|p| V::load(weights.add(k * PANEL + in_panels::<V>(p, offsets.len() * PANEL))))
            });
            for j in 0..NEAR + 2 {
                let a = V::splat(*from.wrapping_add(j));
                for (k, w) in w.iter().enumerate() {
                    if let Some(sum) = j.checked_sub(k).and_then(|i| sums.get_mut(i)) {
                        *sum = std::array::from_fn(|p| a.mul_add(w[p], sum[p]));
                    }
                }
            }
        }
        sums
    }
}

/// Places of one chunk, and where their patches begin.
pub(crate) struct Chunk {
    pub starts: [usize; CHUNK],
    pub places: [Place; CHUNK],
    pub len: usize,
}

impl Chunk {
    /// Whether there are `count` places from `i` on that lie side by side in the source.
    #[inline(always)]
    fn is_run(&self, i: usize, count: usize) -> bool {
        i + count <= self.len && self.starts[i + count - 1] == self.starts[i].wrapping_add(count - 1)
    }

    #[inline(always)]
    fn put(&mut self, start: usize, place: Place) {
        self.starts[self.len] = start;
        self.places[self.len] = place;
        self.len += 1;
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self {
            starts: [0; CHUNK],
            places: [Place::default(); CHUNK],
            len: 0,
        }
    }
}

/// The places of a grid over a batch, in order; in 2 x 2 blocks if `step` is 2.
pub(crate) struct Places<'a> {
    grid: &'a Grid,
    images: usize,
    h: usize,
    w: usize,
    step: usize,
    next: Place,
}

impl<'a> Places<'a> {
    pub fn new(grid: &'a Grid, images: usize, blocks: bool) -> Self {
        let step = 1 + usize::from(blocks);
        let (h, w) = (grid.h / step, grid.w / step);
        Self {
            grid,
            images: if h * w == 0 { 0 } else { images },
            h,
            w,
            step,
            next: Place::default(),
        }
    }

    /// The next places; none at the end.
    #[inline(always)]
    pub fn fill(&mut self, chunk: &mut Chunk) {
        let (row, column) = (self.grid.row, self.grid.column);
        chunk.len = 0;
        while self.next.image < self.images && chunk.len < CHUNK {
            let Place { image, y, x } = self.next;
            // The base may lie before the source, where the first terms of a part are left out.
            let start = self
                .grid
                .base
                .wrapping_add(image * self.grid.image + self.step * (y * row + x * column));
            let room = (CHUNK - chunk.len) / (self.step * self.step);
            let run = room.min(self.w - x);
            for i in 0..run {
                let (start, place) = (start.wrapping_add(i * self.step * column), Place { image, y, x: x + i });
                match self.step {
                    1 => chunk.put(start, place),
                    _ => {
                        for reach in [0, column, row, row + column] {
                            chunk.put(start.wrapping_add(reach), place);
                        }
                    }
                }
            }
            self.next.x += run;
            if self.next.x == self.w {
                self.next = Place { image, y: y + 1, x: 0 };
                if self.next.y == self.h {
                    self.next = Place {
                        image: image + 1,
                        y: 0,
                        x: 0,
                    };
                }
            }
        }
    }
}
