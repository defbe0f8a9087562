//! Products of patches with a matrix of weights: convolutions of any kernel and stride, their input gradients, fully
//! connected layers. Bound by compute: a tile of 6 places by 16 channels keeps twelve chains of fused multiply-adds
//! going, at eight loads for twelve operations. By the bench `kernels` (one thread, AMD Zen 3) 85 to 95 % of the peak where a
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
use super::vector::{LANES, Vector};
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

/// One product over a batch.
pub(crate) struct Product<'a, T, S> {
    pub direct: &'a Direct<T>,
    /// The terms that are summed, in order.
    pub blocks: &'a [Range<usize>],
    pub grid: Grid,
    pub images: usize,
    pub source: *const T,
    pub sink: S,
}

impl<T: Real, S: Sink<T>> Task<T> for Product<'_, T, S> {
    /// # Safety
    /// Every patch of the grid lies in the source, and the sink takes every place and column of it.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let mut chunk = Chunk::default();
        let mut places = Places::new(&self.grid, self.images, S::BLOCKS);
        let mut sums = [T::ZERO; CHUNK * PANEL];
        let mut spots = [Spot::default(); CHUNK];
        let triples = !S::BLOCKS && self.grid.column == 1 && self.direct.is_triples();
        loop {
            places.fill(&mut chunk);
            if chunk.len == 0 {
                return;
            }
            for (spot, place) in spots.iter_mut().zip(&chunk.places[..chunk.len]) {
                *spot = self.sink.spot(*place);
            }
            let mut i = 0;
            if self.blocks.len() <= 1 && self.direct.packed.len() <= BLOCK * PANEL {
                // All weights stay in the first-level cache: a place's results are written one after the other.
                while i < chunk.len {
                    let near = triples && chunk.is_run(i, NEAR);
                    let mut done = NEAR;
                    for panel in 0..self.direct.panels {
                        // SAFETY: the caller's; there are as many starts, spots and sums as places of the chunk.
                        unsafe {
                            match near {
                                true => self.near::<V>([panel, i], &chunk, &spots),
                                false => done = self.tiles::<V>([panel, 0, i], &chunk, &spots, &mut sums),
                            }
                        }
                    }
                    i += done;
                }
                continue;
            }
            for panel in 0..self.direct.panels {
                for number in 0..self.blocks.len().max(1) {
                    i = 0;
                    while i < chunk.len {
                        // SAFETY: as above.
                        i += unsafe { self.tiles::<V>([panel, number, i], &chunk, &spots, &mut sums) };
                    }
                }
            }
        }
    }
}

impl<T: Real, S: Sink<T>> Product<'_, T, S> {
    /// The largest [`tile`](Self::tile) that the chunk's places from `i` on fill.
    ///
    /// # Safety
    /// As for [`Task::run`].
    #[inline(always)]
    unsafe fn tiles<V: Vector<T = T>>(
        &self,
        at: [usize; 3],
        chunk: &Chunk,
        spots: &[Spot; CHUNK],
        sums: &mut [T; CHUNK * PANEL],
    ) -> usize {
        let rows = if S::BLOCKS { 4 } else { 6 };
        // SAFETY: the caller's.
        unsafe {
            match rows.min(chunk.len - at[2]) {
                6 => self.tile::<V, 6>(at, chunk, spots, sums),
                4.. => self.tile::<V, 4>(at, chunk, spots, sums),
                2.. => self.tile::<V, 2>(at, chunk, spots, sums),
                _ => self.tile::<V, 1>(at, chunk, spots, sums),
            }
        }
    }

    /// [`NEAR`] neighbouring places from `i` on and the columns of one panel, all terms at once: [`near`].
    ///
    /// # Safety
    /// As for [`Task::run`]; the terms are triples.
    #[inline(always)]
    unsafe fn near<V: Vector<T = T>>(&self, [panel, i]: [usize; 2], chunk: &Chunk, spots: &[Spot; CHUNK]) {
        let Direct { offsets, packed, .. } = self.direct;
        // SAFETY: the caller's.
        unsafe {
            let weights = packed.as_ptr().add(panel * offsets.len() * PANEL);
            let first = self.source.wrapping_add(*chunk.starts.get_unchecked(i));
            let tile = near::<V>(first, offsets, weights);
            for (spot, [a, b]) in spots.get_unchecked(i..i + NEAR).iter().zip(tile) {
                self.sink.place(*spot, panel * PANEL, a);
                self.sink.place(*spot, panel * PANEL + LANES, b);
            }
        }
    }

    /// `sum_k source[starts[i] + offsets[k]] weight[k][j]` for the terms of block `number`, `M` places from `i` on and the
    /// columns of one panel: kept in `sums`, or after the last block given to the sink. Returns `M`.
    #[inline(always)]
    unsafe fn tile<V: Vector<T = T>, const M: usize>(
        &self,
        [panel, number, i]: [usize; 3],
        chunk: &Chunk,
        spots: &[Spot; CHUNK],
        sums: &mut [T; CHUNK * PANEL],
    ) -> usize {
        // No checks here: a tile of nine terms has only some sixty instructions besides its multiply-adds.
        // SAFETY: the caller's: there are such a block, such a panel and such places.
        unsafe {
            let terms = match self.blocks.is_empty() {
                true => 0..0,
                false => self.blocks.get_unchecked(number).clone(),
            };
            let from = panel * self.direct.offsets.len() + terms.start;
            let block = Terms {
                offsets: self.direct.offsets.as_ptr().add(terms.start),
                weights: self.direct.packed.as_ptr().add(from * PANEL),
                count: terms.end - terms.start,
                resume: number > 0,
            };
            let kept = sums.as_mut_ptr().add(i * PANEL);
            let spots = spots.get_unchecked(i..i + M);
            let tile = tile::<V, M>(self.source, chunk.starts.get_unchecked(i..i + M), &block, kept);
            if number + 1 < self.blocks.len() {
                for (r, [a, b]) in tile.into_iter().enumerate() {
                    a.store(kept.add(r * PANEL));
                    b.store(kept.add(r * PANEL + LANES));
                }
                return M;
            }
            let c = panel * PANEL;
            if !S::BLOCKS {
                for (spot, [a, b]) in spots.iter().zip(tile) {
                    self.sink.place(*spot, c, a);
                    self.sink.place(*spot, c + LANES, b);
                }
            } else if let [a, b, c_, d] = *tile.as_slice() {
                for half in 0..2 {
                    let values = [a[half], b[half], c_[half], d[half]];
                    self.sink.block(spots[0], c + half * LANES, values);
                }
            }
        }
        M
    }
}

/// A block of terms.
struct Terms<T> {
    offsets: *const usize,
    /// `[count, PANEL]`.
    weights: *const T,
    count: usize,
    /// Whether earlier blocks have left sums.
    resume: bool,
}

/// The sums of `M` places over a block of terms, `PANEL` columns, on top of those in `kept` if it resumes.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize>(
    source: *const V::T,
    starts: &[usize],
    terms: &Terms<V::T>,
    kept: *const V::T,
) -> [[V; 2]; M] {
    // SAFETY: the caller's: every term of every place lies in the source; `kept` has `M` rows.
    unsafe {
        let rows: [*const V::T; M] = std::array::from_fn(|r| source.wrapping_add(*starts.get_unchecked(r)));
        let mut sums = [[V::splat(V::T::ZERO); 2]; M];
        if terms.resume {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = [V::load(kept.add(r * PANEL)), V::load(kept.add(r * PANEL + LANES))];
            }
        }
        for k in 0..terms.count {
            let offset = *terms.offsets.add(k);
            let weights = terms.weights.add(k * PANEL);
            let w = [V::load(weights), V::load(weights.add(LANES))];
            for (sum, row) in sums.iter_mut().zip(rows) {
                let a = V::splat(*row.wrapping_add(offset));
                *sum = [a.mul_add(w[0], sum[0]), a.mul_add(w[1], sum[1])];
            }
        }
        sums
    }
}

/// Neighbouring places that share what they read.
const NEAR: usize = 4;

/// The sums of [`tile`], in its order, for [`NEAR`] places side by side whose terms come as triples: an element that three
/// places read is loaded once, which spares a third of all instructions.
#[inline(always)]
unsafe fn near<V: Vector>(first: *const V::T, offsets: &[usize], weights: *const V::T) -> [[V; 2]; NEAR] {
    // SAFETY: as for `tile`; there is a panel's row of weights for every term.
    unsafe {
        let mut sums = [[V::splat(V::T::ZERO); 2]; NEAR];
        for (number, triple) in offsets.chunks_exact(3).enumerate() {
            let from = first.wrapping_add(triple[0]);
            let weights = weights.add(number * 3 * PANEL);
            let w: [[V; 2]; 3] = std::array::from_fn(|k| {
                let weights = weights.add(k * PANEL);
                [V::load(weights), V::load(weights.add(LANES))]
            });
            for j in 0..NEAR + 2 {
                let a = V::splat(*from.wrapping_add(j));
                for (k, w) in w.iter().enumerate() {
                    if let Some(sum) = j.checked_sub(k).and_then(|i| sums.get_mut(i)) {
                        *sum = [a.mul_add(w[0], sum[0]), a.mul_add(w[1], sum[1])];
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
