//! Steps back.

use std::ops::Range;

use super::buffers::{Buffer, Mark, Tape, Workspace, pair};
use crate::kernels::frame::Frame;
use crate::kernels::layout::import;
use crate::kernels::sink::{Maps, Marks, Masked, Place, Plain, Sink, Summed, Unpooled};
use crate::kernels::vector::Vector;
use crate::kernels::{Real, Task};
use crate::net::operators::{Single, Slope};
use crate::net::plan::Plan;
use crate::net::step::{Conv, Post, Route, Step};

/// Takes the gradient of what a convolution made to its result, unless the step that reads it has done so.
pub(super) fn pull_back<T: Real>(
    conv: &Conv<T>,
    i: usize,
    work: &mut Workspace<T>,
    tape: &mut Tape<T>,
    images: &Range<usize>,
) {
    if conv.pulled {
        pull(
            conv,
            &work.slopes[conv.target],
            &mut work.results[i],
            &mut tape.marks[i],
            tape.images,
            images,
        );
    }
}

/// Takes a convolution's gradient to what it read.
pub(super) fn conv<T: Real>(
    plan: &Plan<T>,
    i: usize,
    conv: &Conv<T>,
    work: &mut Workspace<T>,
    tape: &mut Tape<T>,
    images: &Range<usize>,
) {
    match conv.route {
        Route::Into(maker) => {
            let Step::Conv(before) = &plan.steps[maker] else { return };
            let [own, to] = pair(&mut work.results, i, maker);
            let (from, to) = (own.maps(images).as_ptr(), to.to(images));
            let kernel = &conv.backward;
            let run = |sink: Back<T>| {
                // SAFETY: the gradient has the layout that the kernel was made for, and the maker's results and
                // marks are those of the value that this step reads.
                unsafe {
                    match sink {
                        Back::Plain(sink) => kernel.run(images.len(), from, sink),
                        Back::Masked(sink) => kernel.run(images.len(), from, sink),
                        Back::Unpooled(sink) => kernel.run(images.len(), from, sink),
                        Back::Summed(sink) => kernel.run(images.len(), from, sink),
                    }
                }
            };
            run(Back::new(
                before,
                &plan.values[before.target],
                &mut tape.marks[maker],
                tape.images,
                to,
                images,
            ));
        }
        Route::Value { add } => to_value(conv, &work.results[i], &mut work.slopes[conv.source], add, images),
    }
}

/// Takes an operator's gradient to what it read; that of the images only if `to_images`.
pub(super) fn single<T: Real>(
    single: &Single<T>,
    mark: &mut Mark<T>,
    all: usize,
    work: &mut Workspace<T>,
    images: &Range<usize>,
    to_images: bool,
) {
    let frames: Vec<Frame> = single.sources.iter().map(|s| work.slopes[*s].frame).collect();
    let wanted = |source: usize| source > 0 || to_images;
    for (number, source) in single.sources.iter().enumerate().filter(|(_, s)| wanted(**s)) {
        for image in images.clone() {
            let [target, to] = pair(&mut work.slopes, single.target, *source);
            let (bytes, _, numbers) = mark.of(&(image..image + 1), all);
            let from = (&target.frame, target.map(image, images));
            let slope = Slope {
                values: to.map_mut(image, images),
                add: single.add[number],
            };
            single.run.backward(number, &frames, from, slope, bytes, numbers);
        }
    }
}

/// What a gradient passes through on its way to the result of a convolution.
enum Back<T> {
    Plain(Plain<T, false>),
    Masked(Masked<T>),
    Unpooled(Unpooled<T>),
    Summed(Summed<T>),
}

impl<T: Real> Back<T> {
    fn new(conv: &Conv<T>, value: &Frame, mark: &mut Mark<T>, all: usize, to: Maps<T>, images: &Range<usize>) -> Self {
        let (bytes, largest, _) = mark.of(images, all);
        match conv.post {
            Post::None => Self::Plain(Plain(to)),
            Post::Relu => Self::Masked(Masked {
                positive: Marks::new(bytes, &conv.result),
                to,
            }),
            Post::Pool { .. } => Self::Unpooled(Unpooled {
                largest: Marks::new(largest, value),
                to,
            }),
            Post::Upsample => Self::Summed(Summed {
                positive: Marks::new(bytes, &conv.result),
                to,
            }),
        }
    }
}

/// Takes the gradient of a value to the result of the convolution that made it.
fn pull<T: Real>(
    conv: &Conv<T>,
    slope: &Buffer<T>,
    result: &mut Buffer<T>,
    mark: &mut Mark<T>,
    all: usize,
    images: &Range<usize>,
) {
    let (from, to) = (slope.maps(images), result.frame);
    if to.narrow {
        let maps = result.maps_mut(images).chunks_exact_mut(to.len());
        for (from, map) in from.chunks_exact(slope.frame.len()).zip(maps) {
            import(&to, from, map);
        }
        return;
    }
    let sink = Back::new(conv, &slope.frame, mark, all, result.to(images), images);
    let source = from.as_ptr();
    let (frame, images) = (&slope.frame, images.len());
    // SAFETY: the slope has a map without a border for every image, the result and its marks too.
    unsafe {
        match sink {
            Back::Plain(sink) => T::dispatch(Pull {
                frame,
                images,
                source,
                sink,
            }),
            Back::Masked(sink) => T::dispatch(Pull {
                frame,
                images,
                source,
                sink,
            }),
            Back::Unpooled(sink) => T::dispatch(Pull {
                frame,
                images,
                source,
                sink,
            }),
            Back::Summed(sink) => T::dispatch(Pull {
                frame,
                images,
                source,
                sink,
            }),
        }
    }
}

/// Gives every place of maps with channels last to a sink.
struct Pull<'a, T, S> {
    frame: &'a Frame,
    images: usize,
    source: *const T,
    sink: S,
}

impl<T: Real, S: Sink<T>> Task<T> for Pull<'_, T, S> {
    /// # Safety
    /// The source holds the images' maps; the sink takes all their places.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let step = 1 + usize::from(S::BLOCKS);
        let [_, row, column] = self.frame.strides();
        for image in 0..self.images {
            for y in 0..self.frame.h / step {
                for x in 0..self.frame.w / step {
                    let spot = self.sink.spot(Place { image, y, x });
                    for c in (0..self.frame.channels()).step_by(V::LANES) {
                        // SAFETY: the caller's.
                        unsafe {
                            let first = self
                                .source
                                .add(image * self.frame.len() + step * (y * row + x * column) + c);
                            if S::BLOCKS {
                                let block = [first, first.add(column), first.add(row), first.add(row + column)];
                                self.sink.block(
                                    spot,
                                    c,
                                    [
                                        V::load(block[0]),
                                        V::load(block[1]),
                                        V::load(block[2]),
                                        V::load(block[3]),
                                    ],
                                );
                            } else {
                                self.sink.place(spot, c, V::load(first));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Takes the gradient of a convolution's result to the value it read.
fn to_value<T: Real>(conv: &Conv<T>, own: &Buffer<T>, slope: &mut Buffer<T>, add: bool, images: &Range<usize>) {
    let (from, frame) = (own.maps(images).as_ptr(), slope.frame);
    if conv.backward.is_narrow() {
        let maps = slope.maps_mut(images);
        // SAFETY: the gradient has the layout that the kernel was made for.
        return unsafe {
            conv.backward.run_narrow(images.len(), from, |image, planes, values| {
                let map = &mut maps[image * frame.len()..][..frame.len()];
                for (row, to) in map.chunks_exact_mut(frame.w).enumerate() {
                    for (to, v) in to.iter_mut().zip(planes.row(values, row / frame.h, row % frame.h)) {
                        *to = if add { *to + *v } else { *v };
                    }
                }
            });
        };
    }
    let to = slope.to(images);
    // SAFETY: as above; there is a map for every image.
    unsafe {
        match add {
            true => conv.backward.run(images.len(), from, Plain::<T, true>(to)),
            false => conv.backward.run(images.len(), from, Plain::<T, false>(to)),
        }
    }
}
