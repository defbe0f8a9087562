//! Weight gradients of convolutions and fully connected layers. Bound by compute: tiles of six (four) terms
//! by two vectors of channels stay in registers while places pass; in the transformed domain where Winograd applies. By the bench `kernels`
//! (one thread, AMD Zen 3, batches of 24) 180 to 300 % of the direct algorithm's peak there; else 74 to 88 % from many channels,
//! 46 to 82 % from one, whose terms are not copied, and 14 % to a single one, which fills a sixteenth of its panel.
//!
//! Images are taken in chunks of fixed size, whose sums are added in order: the number of threads changes nothing.

use super::conv::border;
use super::direct::{CHUNK, Chunk, Grid, Places, in_panels, spans};
use super::frame::{Border, Frame, NARROW, PANEL};
use super::geometry::Geometry;
use super::layout::import;
use super::scratch::{Scratch, with_scratch};
use super::vector::Vector;
use super::winograd;
use super::{Real, Task};
use crate::threads::for_each_chunk;

/// Images whose gradients are summed before they join the others. Part of the result: do not change it lightly.
const IMAGES: usize = 8;

/// Rows of a tile.
const ROWS: usize = 6;

/// `dw` `[c_out, c_in, kh, kw]`, summed over a batch, from `x` `[n, c_in, h, w]` and `dy` `[n, c_out, h_out, w_out]`.
pub(crate) fn weight_gradient<T: Real>(g: &Geometry, n: usize, x: &[T], dy: &[T]) -> Vec<T> {
    if (g.kh, g.kw, g.h_out, g.w_out) == (g.h, g.w, 1, 1) {
        return whole_maps(g, n, x, dy);
    }
    let rule = Rule::new(g);
    let len = rule.sums();
    let mut partial = vec![T::ZERO; n.div_ceil(IMAGES) * len];
    let [x_len, dy_len] = [g.input(), g.output()].map(|shape| shape.iter().product::<usize>());
    for_each_chunk(&mut partial, len, |chunk, sums| {
        let images = IMAGES.min(n - chunk * IMAGES);
        let part = chunk * IMAGES..chunk * IMAGES + images;
        let [x, dy] = [(x, x_len), (dy, dy_len)].map(|(values, len)| &values[part.start * len..part.end * len]);
        rule.add(images, x, dy, sums);
    });
    rule.finish(&sum_chunks(partial, len))
}

/// The same where one patch is the whole map, as in fully connected layers: the weights are many and the places few, so
/// that threads share the weights and each takes all images.
fn whole_maps<T: Real>(g: &Geometry, n: usize, x: &[T], dy: &[T]) -> Vec<T> {
    /// Terms that a thread takes at once, whole tiles.
    const TERMS: usize = 16 * ROWS;
    let frame = Frame::channels_last(g.output(), Border::default());
    let (terms, columns) = (g.c_in * g.taps(), frame.len());
    let mut sums = vec![T::ZERO; terms.next_multiple_of(ROWS) * columns];
    let mut gradients = vec![T::ZERO; n * columns];
    for (row, to) in dy.chunks_exact(g.c_out).zip(gradients.chunks_exact_mut(columns)) {
        to[..g.c_out].copy_from_slice(row);
    }
    let (x, dy) = (x, gradients.as_slice());
    for_each_chunk(&mut sums, TERMS * columns, |part, sums| {
        let first = part * TERMS;
        // Beyond the last term, the first one again.
        let offset = |k: usize| if k < terms { k } else { 0 };
        let offsets: Vec<usize> = (first..first + sums.len() / columns).map(offset).collect();
        let grid = Grid {
            h: 1,
            w: 1,
            row: 0,
            column: 0,
            base: 0,
            image: terms,
        };
        // SAFETY: every image has all terms and a padded row of gradients; the sums are whole tiles.
        unsafe {
            T::dispatch(Gradient {
                offsets: &offsets,
                grid,
                images: n,
                source: x.as_ptr(),
                dy: dy.as_ptr(),
                steps: [columns, 0, 0],
                columns,
                sums,
            });
        }
    });
    let mut dw = Vec::with_capacity(g.c_out * terms);
    for co in 0..g.c_out {
        dw.extend((0..terms).map(|k| sums[k * columns + co]));
    }
    dw
}

/// Whether sums are taken in the transformed domain.
fn transformed(g: &Geometry) -> bool {
    g.three_by_three() && g.c_in > NARROW
}

/// Zeros that the gradient of the weights needs around the output's gradient: whole tiles of 4 x 4 where it is transformed.
pub(crate) fn gradient_border(g: &Geometry) -> Border {
    let beyond = |size: usize| {
        if transformed(g) {
            size.next_multiple_of(4) - size
        } else {
            0
        }
    };
    Border {
        bottom: beyond(g.h_out),
        right: beyond(g.w_out),
        ..Border::default()
    }
}

/// How the gradient of one shape is summed.
pub(crate) struct Rule<'a> {
    g: &'a Geometry,
    x: Frame,
    dy: Frame,
    /// Offsets of the terms, in whole tiles; none in the transformed domain.
    offsets: Option<Vec<usize>>,
}

impl<'a> Rule<'a> {
    pub fn new(g: &'a Geometry) -> Self {
        let x = Frame::new(g.input(), border(g));
        let dy = Frame::channels_last(g.output(), gradient_border(g));
        Self::laid_out(g, x, dy)
    }

    /// For maps of these layouts: inputs with the border that the convolution needs at least, gradients channels last and with
    /// their [`gradient_border`].
    pub fn laid_out(g: &'a Geometry, x: Frame, dy: Frame) -> Self {
        let [channel, row, column] = x.strides();
        let offsets = (!transformed(g)).then(|| {
            let mut offsets: Vec<usize> = (0..g.c_in * g.taps())
                .map(|k| {
                    let (ci, tap) = split(g, &x, k);
                    ci * channel + tap / g.kw * row + tap % g.kw * column
                })
                .collect();
            offsets.resize(offsets.len().next_multiple_of(ROWS), 0);
            offsets
        });
        Self { g, x, dy, offsets }
    }

    /// Elements of the sums.
    pub fn sums(&self) -> usize {
        match &self.offsets {
            Some(offsets) => offsets.len() * self.dy.channels(),
            None => winograd::gradient_len(self.x.channels(), self.dy.channels()),
        }
    }

    /// Adds the gradient of some images.
    fn add<T: Real>(&self, images: usize, x: &[T], dy: &[T], sums: &mut [T]) {
        let [x_len, dy_len] = [self.x.len(), self.dy.len()];
        with_scratch(images * (x_len + dy_len), |scratch: &mut [T]| {
            scratch.fill(T::ZERO);
            let (inputs, gradients) = scratch.split_at_mut(images * x_len);
            for (image, map) in x.chunks_exact(x.len() / images).zip(inputs.chunks_exact_mut(x_len)) {
                import(&self.x, image, map);
            }
            for (image, map) in dy
                .chunks_exact(dy.len() / images)
                .zip(gradients.chunks_exact_mut(dy_len))
            {
                import(&self.dy, image, map);
            }
            // SAFETY: the scratch holds `images` maps of both.
            unsafe { self.add_maps(images, inputs.as_ptr(), gradients.as_ptr(), sums) }
        });
    }

    /// Elements of a map of inputs, and of one of gradients.
    pub fn lengths(&self) -> [usize; 2] {
        [self.x.len(), self.dy.len()]
    }

    /// Adds the gradient of some images whose maps are laid out already.
    ///
    /// # Safety
    /// Both hold `images` maps.
    pub unsafe fn add_maps<T: Real>(&self, images: usize, source: *const T, dy: *const T, sums: &mut [T]) {
        let [x_len, dy_len] = self.lengths();
        let [_, row, column] = self.x.strides();
        let [_, dy_row, dy_column] = self.dy.strides();
        let (c_in, c_out) = (self.x.channels(), self.dy.channels());
        let base = self.x.corner(self.g.top, self.g.left);
        let steps = [dy_len, dy_row, dy_column];
        let grid = Grid {
            h: self.g.h_out,
            w: self.g.w_out,
            row: self.g.stride * row,
            column: self.g.stride * column,
            base,
            image: x_len,
        };
        let dy = dy.wrapping_add(self.dy.at(0, 0));
        // SAFETY: the frames have the borders that these kernels read; the rest is the caller's.
        unsafe {
            match &self.offsets {
                None => T::dispatch(winograd::Gradient {
                    grid,
                    images,
                    c_in,
                    c_out,
                    source,
                    dy,
                    steps,
                    sums,
                }),
                Some(offsets) => T::dispatch(Gradient {
                    offsets,
                    grid,
                    images,
                    source,
                    dy,
                    steps,
                    columns: c_out,
                    sums,
                }),
            }
        }
    }

    /// The weight's gradient `[c_out, c_in, kh, kw]` from the sums of all chunks.
    pub fn finish<T: Real>(&self, sums: &[T]) -> Vec<T> {
        let g = self.g;
        let (c_in, c_out) = (self.x.channels(), self.dy.channels());
        let mut dw = Vec::with_capacity(g.c_out * g.c_in * g.taps());
        for co in 0..g.c_out {
            match self.offsets {
                Some(_) => {
                    let taps = g.taps();
                    let term = |i: usize| join(g, &self.x, i / taps, i % taps);
                    dw.extend((0..g.c_in * taps).map(|i| sums[term(i) * c_out + co]));
                }
                None => (0..g.c_in).for_each(|ci| {
                    let taps = winograd::weight_gradient(sums, [c_in, c_out], ci, co);
                    dw.extend_from_slice(taps.as_flattened());
                }),
            }
        }
        dw
    }
}

/// Channel and tap of term `k`: terms that lie side by side in the source come one after the other.
fn split(g: &Geometry, x: &Frame, k: usize) -> (usize, usize) {
    match x.narrow {
        true => (k / g.taps(), k % g.taps()),
        false => (k % g.c_in, k / g.c_in),
    }
}

/// The term of a channel and a tap.
fn join(g: &Geometry, x: &Frame, ci: usize, tap: usize) -> usize {
    match x.narrow {
        true => ci * g.taps() + tap,
        false => tap * g.c_in + ci,
    }
}

/// `sums[k][co] += sum over the places of source[start + offsets[k]] dy[place][co]`.
///
/// Both factors of a chunk of places are copied side by side first, the terms where they come by sixes: as they lie, the places of one
/// channel are a power of two apart and share a few lines of the cache.
struct Gradient<'a, T> {
    offsets: &'a [usize],
    grid: Grid,
    images: usize,
    source: *const T,
    dy: *const T,
    steps: [usize; 3],
    columns: usize,
    sums: &'a mut [T],
}

impl<T: Real> Task<T> for Gradient<'_, T> {
    /// # Safety
    /// Every term of every place lies in the source, every place in `dy`; offsets come in whole tiles.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let mut chunk = Chunk::default();
        let mut places = Places::new(&self.grid, self.images, false);
        let panels = self.columns / PANEL;
        let mut room = Scratch::<T>::new(CHUNK * (self.columns + ROWS));
        // One borrow for both: a second one would end the first.
        let packed = room.as_mut_ptr();
        let terms = packed.wrapping_add(CHUNK * self.columns);
        loop {
            places.fill(&mut chunk);
            if chunk.len == 0 {
                return;
            }
            // SAFETY: the caller's; tiles and panels are whole.
            unsafe {
                self.pack_gradients::<V>(&chunk, packed);
                for (i, offsets) in self.offsets.chunks_exact(ROWS).enumerate() {
                    let tile = self.sums.as_mut_ptr().add(i * ROWS * self.columns);
                    let side_by_side = offsets.windows(2).all(|pair| pair[1] == pair[0] + 1);
                    if side_by_side {
                        self.pack_terms(&chunk, offsets[0], terms);
                    }
                    let rows: [*const T; ROWS] = std::array::from_fn(|r| self.source.add(offsets[r]));
                    for span in spans::<V>(0..panels) {
                        let dy = packed.add(span.panel * CHUNK * PANEL);
                        let tile = tile.add(span.panel * PANEL);
                        let packed = |p: usize, r: usize| *terms.add(p * ROWS + r);
                        let apart = |p: usize, r: usize| *rows[r].add(chunk.starts[p]);
                        match (side_by_side, span.alone::<V>()) {
                            (true, true) => add_products::<V, 1>(chunk.len, packed, dy, tile, self.columns),
                            (true, false) => add_products::<V, 2>(chunk.len, packed, dy, tile, self.columns),
                            (false, true) => add_products::<V, 1>(chunk.len, apart, dy, tile, self.columns),
                            (false, false) => add_products::<V, 2>(chunk.len, apart, dy, tile, self.columns),
                        }
                    }
                }
            }
        }
    }
}

impl<T: Real> Gradient<'_, T> {
    /// `to[panel][place][column]`.
    ///
    /// # Safety
    /// `to` holds a chunk of places; the rest as for [`Task::run`].
    #[inline(always)]
    unsafe fn pack_gradients<V: Vector<T = T>>(&self, chunk: &Chunk, to: *mut T) {
        let [image, row, column] = self.steps;
        for (p, place) in chunk.places[..chunk.len].iter().enumerate() {
            let from = self
                .dy
                .wrapping_add(place.image * image + place.y * row + place.x * column);
            for j in 0..self.columns / PANEL {
                // SAFETY: the caller's.
                unsafe {
                    let (from, to) = (from.add(j * PANEL), to.add((j * CHUNK + p) * PANEL));
                    (0..PANEL)
                        .step_by(V::LANES)
                        .for_each(|c| V::load(from.add(c)).store(to.add(c)));
                }
            }
        }
    }

    /// `to[place][term]`, of a tile's terms, which lie side by side from `first` on.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn pack_terms(&self, chunk: &Chunk, first: usize, to: *mut T) {
        for (p, start) in chunk.starts[..chunk.len].iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { std::ptr::copy_nonoverlapping(self.source.add(start + first), to.add(p * ROWS), ROWS) };
        }
    }
}

/// `sums[row][column] += sum over the places of term(place, row) dy[place][column]`, six rows by `P` vectors.
///
/// # Safety
/// Both factors have `places` places, panels of `dy` a chunk of them, the sums six rows that are `stride` apart.
#[inline(always)]
unsafe fn add_products<V: Vector, const P: usize>(
    places: usize,
    term: impl Fn(usize, usize) -> V::T,
    dy: *const V::T,
    sums: *mut V::T,
    stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let to = |r: usize, p: usize| sums.add(r * stride + p * V::LANES);
        let dy: [*const V::T; P] = std::array::from_fn(|p| dy.add(in_panels::<V>(p, CHUNK * PANEL)));
        let mut tile: [[V; P]; ROWS] = std::array::from_fn(|r| std::array::from_fn(|p| V::load(to(r, p))));
        for place in 0..places {
            let dy = dy.map(|dy| V::load(dy.add(place * PANEL)));
            for (r, sum) in tile.iter_mut().enumerate() {
                let a = V::splat(term(place, r));
                *sum = std::array::from_fn(|p| a.mul_add(dy[p], sum[p]));
            }
        }
        for (r, sum) in tile.iter().enumerate() {
            (sum.iter().enumerate()).for_each(|(p, sum)| sum.store(to(r, p)));
        }
    }
}

/// Adds the parts, of `len` elements each, in their order.
pub(crate) fn sum_chunks<T: Real>(mut parts: Vec<T>, len: usize) -> Vec<T> {
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
