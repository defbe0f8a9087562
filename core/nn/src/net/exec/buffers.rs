//! Where the maps, gradients and marks of some images lie between a network's steps.

use std::ops::Range;

use crate::kernels::Real;
use crate::kernels::aligned::Aligned;
use crate::kernels::frame::{Border, Frame};
use crate::kernels::layout::{export, import};
use crate::kernels::sink::Maps;
use crate::kernels::vector::OCTET;
use crate::net::plan::{GROUP, Plan};
use crate::net::step::{Post, Route, Step};

/// Maps of a network for some images, kept from call to call: their borders stay zero.
pub(in crate::net) struct Workspace<T> {
    images: usize,
    pub(super) values: Vec<Buffer<T>>,
    /// Gradients of values.
    pub(super) slopes: Vec<Buffer<T>>,
    /// Gradients of what convolutions made, before what follows them; empty for other steps.
    pub(super) results: Vec<Buffer<T>>,
}

/// What one call of the way back needs of some images.
pub(in crate::net) struct Tape<T> {
    pub(super) images: usize,
    pub(super) marks: Vec<Mark<T>>,
}

/// Marks of one step.
#[derive(Default)]
pub(super) struct Mark<T> {
    pub bytes: Vec<u8>,
    largest: Vec<u64>,
    numbers: Vec<T>,
}

/// Maps of one layout, one an image of the batch, or of the group that is under way.
pub(super) struct Buffer<T> {
    pub frame: Frame,
    grouped: bool,
    data: Aligned<T>,
}

impl<T: Real> Buffer<T> {
    fn new(frame: Frame, grouped: bool, images: usize) -> Self {
        let slots = if grouped { GROUP.min(images) } else { images };
        Self {
            frame,
            grouped,
            data: Aligned::zeros(slots * frame.len()),
        }
    }

    /// Takes no room.
    pub fn empty() -> Self {
        Self {
            frame: Frame::new([1, 1, 1], Border::default()),
            grouped: false,
            data: Aligned::default(),
        }
    }

    fn range(&self, images: &Range<usize>) -> Range<usize> {
        let first = if self.grouped { 0 } else { images.start };
        first * self.frame.len()..(first + images.len()) * self.frame.len()
    }

    pub fn maps(&self, images: &Range<usize>) -> &[T] {
        &self.data[self.range(images)]
    }

    pub fn maps_mut(&mut self, images: &Range<usize>) -> &mut [T] {
        let range = self.range(images);
        &mut self.data[range]
    }

    /// The map of one of the images under way.
    pub fn map(&self, image: usize, images: &Range<usize>) -> &[T] {
        &self.maps(images)[(image - images.start) * self.frame.len()..][..self.frame.len()]
    }

    pub fn map_mut(&mut self, image: usize, images: &Range<usize>) -> &mut [T] {
        let len = self.frame.len();
        &mut self.maps_mut(images)[(image - images.start) * len..][..len]
    }

    pub fn to(&mut self, images: &Range<usize>) -> Maps<T> {
        let frame = self.frame;
        Maps::new(self.maps_mut(images), &frame)
    }

    /// Takes in images `[C, H, W]`.
    pub fn import(&mut self, x: &[T], images: &Range<usize>) {
        let frame = self.frame;
        let maps = self.maps_mut(images).chunks_exact_mut(frame.len());
        for (map, image) in maps.zip(x.chunks_exact(frame.shape().iter().product())) {
            import(&frame, image, map);
        }
    }

    /// Gives them out.
    pub fn export(&self, x: &mut [T], images: &Range<usize>) {
        let maps = self.maps(images).chunks_exact(self.frame.len());
        for (map, image) in maps.zip(x.chunks_exact_mut(self.frame.shape().iter().product())) {
            export(&self.frame, map, image);
        }
    }
}

/// Which of some buffers have a map for every image, and which only for those of a group: what a single segment touches, that takes
/// its images group by group.
struct Rooms {
    touched: Vec<Option<usize>>,
    whole: Vec<bool>,
}

impl Rooms {
    fn new(count: usize) -> Self {
        Self {
            touched: vec![None; count],
            whole: vec![false; count],
        }
    }

    fn touch<T>(&mut self, plan: &Plan<T>, i: usize, segment: usize) {
        let first = *self.touched[i].get_or_insert(segment);
        self.whole[i] |= first != segment || !plan.segments[segment].grouped;
    }
}

impl<T: Real> Workspace<T> {
    /// Room for `images` images. With `keep`, what gradients of weights need is still there when the last step has run.
    pub fn new(plan: &Plan<T>, images: usize, keep: bool) -> Self {
        let [mut values, mut slopes] = [Rooms::new(plan.values.len()), Rooms::new(plan.values.len())];
        let mut results = Rooms::new(plan.steps.len());
        // Values that have a gradient.
        let mut read = vec![false; plan.values.len()];
        for rooms in [&mut values, &mut slopes] {
            rooms.touch(plan, 0, 0);
            rooms.whole[plan.output] = true;
        }
        read[plan.output] = true;
        for (i, step) in plan.steps.iter().enumerate() {
            let segment = plan.segment(i);
            for value in step.sources().into_iter().chain([step.target()]) {
                values.touch(plan, value, segment);
                if !matches!(step, Step::Norm(_)) {
                    slopes.touch(plan, value, segment);
                }
            }
            match step {
                Step::Conv(conv) => {
                    values.whole[conv.source] |= keep;
                    results.touch(plan, i, segment);
                    match conv.route {
                        Route::Into(maker) => results.touch(plan, maker, segment),
                        Route::Value { .. } => read[conv.source] = true,
                    }
                }
                Step::Single(single) => single.sources.iter().for_each(|s| read[*s] = true),
                Step::Norm(norm) => {
                    // Its statistics and its gradient are found at the end of the segment before its own.
                    values.whole[norm.source] = true;
                    slopes.touch(plan, norm.source, segment - 1);
                    slopes.whole[norm.target] = true;
                    read[norm.source] = true;
                }
            }
        }
        let result = |(i, step): (usize, &Step<T>)| match step {
            Step::Conv(conv) => Buffer::new(conv.gradient, !results.whole[i], images),
            Step::Single(_) | Step::Norm(_) => Buffer::empty(),
        };
        let slope = |(i, frame): (usize, &Frame)| match read[i] {
            true => Buffer::new(bare(frame), !slopes.whole[i], images),
            false => Buffer::empty(),
        };
        let value = |(i, frame): (usize, &Frame)| Buffer::new(*frame, !values.whole[i], images);
        Self {
            images,
            values: plan.values.iter().enumerate().map(value).collect(),
            slopes: plan.values.iter().enumerate().map(slope).collect(),
            results: plan.steps.iter().enumerate().map(result).collect(),
        }
    }
}

impl<T> Workspace<T> {
    /// Images it has room for.
    pub fn images(&self) -> usize {
        self.images
    }
}

/// The layout without a border.
fn bare(frame: &Frame) -> Frame {
    Frame {
        border: Border::default(),
        ..*frame
    }
}

impl<T: Real> Tape<T> {
    /// Room for the marks of `images` images.
    pub fn new(plan: &Plan<T>, images: usize) -> Self {
        let marks = plan.steps.iter().map(|step| match step {
            Step::Conv(conv) => {
                let octets = conv.result.h * conv.result.w * conv.result.channels() / OCTET;
                match conv.post {
                    Post::None => Mark::default(),
                    Post::Relu | Post::Upsample => Mark {
                        bytes: vec![0; images * octets],
                        ..Mark::default()
                    },
                    Post::Pool { .. } => {
                        let pooled = &plan.values[conv.target];
                        Mark {
                            largest: vec![0; images * pooled.h * pooled.w * pooled.channels() / OCTET],
                            ..Mark::default()
                        }
                    }
                }
            }
            Step::Single(single) => {
                let [bytes, numbers] = single.run.kept(&plan.values[single.target]);
                Mark {
                    bytes: vec![0; images * bytes],
                    numbers: vec![T::ZERO; images * numbers],
                    ..Mark::default()
                }
            }
            Step::Norm(norm) => Mark {
                bytes: vec![0; images * norm.marks(&plan.values[norm.target])],
                ..Mark::default()
            },
        });
        Self {
            images,
            marks: marks.collect(),
        }
    }

    /// Images it was made for.
    pub fn images(&self) -> usize {
        self.images
    }
}

impl<T: Default> Mark<T> {
    /// The marks of some of `all` images.
    pub fn of(&mut self, images: &Range<usize>, all: usize) -> (&mut [u8], &mut [u64], &mut [T]) {
        fn part<'a, M>(marks: &'a mut [M], images: &Range<usize>, all: usize) -> &'a mut [M] {
            let one = marks.len() / all.max(1);
            &mut marks[images.start * one..images.end * one]
        }
        (
            part(&mut self.bytes, images, all),
            part(&mut self.largest, images, all),
            part(&mut self.numbers, images, all),
        )
    }
}

/// Two different buffers.
pub(super) fn pair<T>(buffers: &mut [Buffer<T>], a: usize, b: usize) -> [&mut Buffer<T>; 2] {
    match buffers.get_disjoint_mut([a, b]) {
        Ok(pair) => pair,
        Err(_) => unreachable!("a step's values differ"),
    }
}
