//! Steps that no convolution takes along: element by element, or moving elements. Bound by memory; a few per cent of
//! the networks here.

use super::graph::Op;
use crate::kernels::Real;
use crate::kernels::frame::Frame;

/// A step of its own.
pub(super) struct Single<T> {
    kind: Kind<T>,
    pub sources: Vec<usize>,
    pub target: usize,
    /// For each source, whether its gradient is added to what later steps wrote.
    pub add: Vec<bool>,
}

enum Kind<T> {
    /// `scale[c] x + shift[c]`.
    Affine(Vec<T>, Vec<T>),
    Relu,
    Sigmoid,
    MaxPool(usize),
    Upsample(usize),
    Concat,
    Add,
    /// Planes as one vector.
    Widen,
}

/// A map: its layout, and where it begins in a slice.
pub(super) type Map<'a, T> = (&'a Frame, &'a [T]);

impl<T: Real> Single<T> {
    /// The step for `op`; none for what is no step of its own.
    pub fn new(op: &Op, affine: Option<(Vec<T>, Vec<T>)>, sources: Vec<usize>, target: usize) -> Option<Self> {
        let kind = match (op, affine) {
            (Op::Norm(_), Some((scale, shift))) => Kind::Affine(scale, shift),
            (Op::Relu, _) => Kind::Relu,
            (Op::Sigmoid, _) => Kind::Sigmoid,
            (Op::MaxPool(k), _) => Kind::MaxPool(*k),
            (Op::Upsample(k), _) => Kind::Upsample(*k),
            (Op::Concat, _) => Kind::Concat,
            (Op::Add, _) => Kind::Add,
            _ => return None,
        };
        Some(Self::of(kind, sources, target))
    }

    /// Planes as one vector with channels last.
    pub fn widen(sources: Vec<usize>, target: usize) -> Self {
        Self::of(Kind::Widen, sources, target)
    }

    fn of(kind: Kind<T>, sources: Vec<usize>, target: usize) -> Self {
        let add = vec![false; sources.len()];
        Self {
            kind,
            sources,
            target,
            add,
        }
    }

    /// What the way back needs of an image: bytes and numbers, for a target of this layout.
    pub fn kept(&self, target: &Frame) -> [usize; 2] {
        match self.kind {
            Kind::Relu | Kind::MaxPool(_) => [target.shape().iter().product(), 0],
            Kind::Sigmoid => [0, target.shape().iter().product()],
            _ => [0, 0],
        }
    }

    /// One image. `bytes` and `numbers` are as long as [`kept`](Self::kept) says, or empty.
    pub fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], bytes: &mut [u8], numbers: &mut [T]) {
        let (frame, from) = sources[0];
        let at = |c, y, x| place(target, c, y, x);
        match &self.kind {
            Kind::Affine(scale, shift) => {
                each(target, |_, c, y, x| {
                    to[at(c, y, x)] = from[place(frame, c, y, x)] * scale[c] + shift[c]
                });
            }
            Kind::Relu => each(target, |i, c, y, x| {
                let v = from[place(frame, c, y, x)];
                if let Some(byte) = bytes.get_mut(i) {
                    *byte = u8::from(v > T::ZERO);
                }
                to[at(c, y, x)] = if v <= T::ZERO { T::ZERO } else { v };
            }),
            Kind::Sigmoid => each(target, |i, c, y, x| {
                let v = crate::kernels::elementwise::logistic(from[place(frame, c, y, x)]);
                if let Some(number) = numbers.get_mut(i) {
                    *number = v;
                }
                to[at(c, y, x)] = v;
            }),
            Kind::MaxPool(k) => each(target, |i, c, y, x| {
                let (index, max) = largest(*k, |r, s| from[place(frame, c, y * k + r, x * k + s)]);
                if let Some(byte) = bytes.get_mut(i) {
                    *byte = index;
                }
                to[at(c, y, x)] = max;
            }),
            Kind::Upsample(k) => each(target, |_, c, y, x| {
                to[at(c, y, x)] = from[place(frame, c, y / k, x / k)]
            }),
            Kind::Concat => {
                let mut first = 0;
                for (frame, from) in sources {
                    each(frame, |_, c, y, x| {
                        to[at(first + c, y, x)] = from[place(frame, c, y, x)]
                    });
                    first += frame.c;
                }
            }
            Kind::Add => {
                let (other, more) = sources[1];
                each(target, |_, c, y, x| {
                    to[at(c, y, x)] = from[place(frame, c, y, x)] + more[place(other, c, y, x)]
                });
            }
            Kind::Widen => each(frame, |i, c, y, x| to[at(i, 0, 0)] = from[place(frame, c, y, x)]),
        }
    }

    /// The gradient of source number `source` of one image, from the target's; both layouts without borders. It is
    /// written, or added where [`add`](Self::add) says so.
    pub fn backward(&self, source: usize, all: &[Frame], target: Map<T>, to: &mut [T], bytes: &[u8], numbers: &[T]) {
        let (frame, dy) = target;
        let own = &all[source];
        let from = |c, y, x| dy[place(frame, c, y, x)];
        let mut give = |at: usize, v: T| to[at] = if self.add[source] { to[at] + v } else { v };
        match &self.kind {
            Kind::Affine(scale, _) => each(own, |_, c, y, x| give(place(own, c, y, x), from(c, y, x) * scale[c])),
            Kind::Relu => each(own, |i, c, y, x| {
                give(place(own, c, y, x), from(c, y, x).keep_if(bytes[i] == 1))
            }),
            Kind::Sigmoid => each(own, |i, c, y, x| {
                give(place(own, c, y, x), from(c, y, x) * numbers[i] * (T::ONE - numbers[i]));
            }),
            Kind::MaxPool(k) => each(own, |_, c, y, x| {
                let (block_y, block_x) = (y / k, x / k);
                let inside = block_y < frame.h && block_x < frame.w;
                let here = ((y % k) * k + x % k) as u8;
                let chosen = inside && bytes[(c * frame.h + block_y) * frame.w + block_x] == here;
                give(
                    place(own, c, y, x),
                    if chosen { from(c, block_y, block_x) } else { T::ZERO },
                );
            }),
            Kind::Upsample(k) => each(own, |_, c, y, x| {
                let block = (0..k * k).map(|i| from(c, y * k + i / k, x * k + i % k));
                give(place(own, c, y, x), block.fold(T::ZERO, |sum, v| sum + v));
            }),
            Kind::Concat => {
                let first: usize = all[..source].iter().map(|f| f.c).sum();
                each(own, |_, c, y, x| give(place(own, c, y, x), from(first + c, y, x)));
            }
            Kind::Add => each(own, |_, c, y, x| give(place(own, c, y, x), from(c, y, x))),
            Kind::Widen => each(own, |i, c, y, x| give(place(own, c, y, x), from(i, 0, 0))),
        }
    }
}

/// Calls `f(i, c, y, x)` for every element of a map, numbered by `[C, H, W]`, in the order of memory.
#[inline(always)]
fn each(frame: &Frame, mut f: impl FnMut(usize, usize, usize, usize)) {
    let Frame { c, h, w, .. } = *frame;
    if frame.narrow {
        for i in 0..c * h * w {
            f(i, i / (h * w), i / w % h, i % w);
        }
        return;
    }
    for y in 0..h {
        for x in 0..w {
            (0..c).for_each(|channel| f((channel * h + y) * w + x, channel, y, x));
        }
    }
}

/// Where an element lies.
#[inline(always)]
fn place(frame: &Frame, c: usize, y: usize, x: usize) -> usize {
    frame.at(y, x) + c * frame.strides()[0]
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
