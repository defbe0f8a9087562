//! Runs a compiled network over a few images, forward and back.

use std::ops::Range;

use super::plan::{Conv, Plan, Post, Route, Step};
use super::single::Single;
use crate::kernels::aligned::Aligned;
use crate::kernels::conv_weights::{Rule, gradient_border};
use crate::kernels::frame::{Border, Frame};
use crate::kernels::layout::{export, import};
use crate::kernels::scratch::with_scratch;
use crate::kernels::sink::{
    Maps, Marks, Masked, Place, Plain, Sink, Store, StorePooled, StoreUpsampled, Summed, Unpooled,
};
use crate::kernels::vector::{LANES, Vector};
use crate::kernels::{Real, Task};

/// Images that pass through the convolutions together: enough for whole blocks of tiles (6 maps of 8 x 8 are 24), few
/// enough that what one layer writes is in cache when the next one reads it.
const GROUP: usize = 6;

/// Maps of a network for some images, kept from call to call: their borders stay zero.
pub(super) struct Workspace<T> {
    images: usize,
    values: Vec<Buffer<T>>,
    /// Gradients of values.
    slopes: Vec<Buffer<T>>,
    /// Gradients of what convolutions made, before what follows them; empty for other steps.
    results: Vec<Buffer<T>>,
}

/// What one call of the way back needs of some images.
pub(super) struct Tape<T> {
    images: usize,
    marks: Vec<Mark<T>>,
}

/// Marks of one step.
#[derive(Default)]
struct Mark<T> {
    bytes: Vec<u8>,
    largest: Vec<u64>,
    numbers: Vec<T>,
}

/// Maps of one layout, one an image of the batch, or of the group that is under way.
struct Buffer<T> {
    frame: Frame,
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
    fn empty() -> Self {
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

    fn maps(&self, images: &Range<usize>) -> &[T] {
        &self.data[self.range(images)]
    }

    fn maps_mut(&mut self, images: &Range<usize>) -> &mut [T] {
        let range = self.range(images);
        &mut self.data[range]
    }

    /// The map of one of the images under way.
    fn map(&self, image: usize, images: &Range<usize>) -> &[T] {
        &self.maps(images)[(image - images.start) * self.frame.len()..][..self.frame.len()]
    }

    fn map_mut(&mut self, image: usize, images: &Range<usize>) -> &mut [T] {
        let len = self.frame.len();
        &mut self.maps_mut(images)[(image - images.start) * len..][..len]
    }

    fn to(&mut self, images: &Range<usize>) -> Maps<T> {
        let frame = self.frame;
        Maps::new(self.maps_mut(images), &frame)
    }
}

impl<T: Real> Workspace<T> {
    /// Room for `images` images. With `keep`, every map is still there when the last step has run, as gradients of weights need
    /// them.
    pub fn new(plan: &Plan<T>, images: usize, keep: bool) -> Self {
        let inner = |value: usize, grouped_step: bool| !keep && grouped_step && !plan.shared[value];
        let mut grouped = vec![false; plan.values.len()];
        for (i, step) in plan.steps.iter().enumerate() {
            for value in step.sources().into_iter().chain([step.target()]) {
                grouped[value] |= inner(value, i < plan.grouped);
            }
        }
        let mut read = vec![false; plan.values.len()];
        read[plan.output] = true;
        let results = plan.steps.iter().enumerate().map(|(i, step)| match step {
            Step::Conv(conv) => {
                if let Route::Value { .. } = conv.route {
                    read[conv.source] = true;
                }
                Buffer::new(conv.gradient, inner(conv.target, i < plan.grouped), images)
            }
            Step::Single(single) => {
                single.sources.iter().for_each(|s| read[*s] = true);
                Buffer::empty()
            }
        });
        let results = results.collect();
        let values = plan.values.iter().zip(&grouped);
        let slope = |(i, frame): (usize, &Frame)| match read[i] {
            true => Buffer::new(bare(frame), grouped[i], images),
            false => Buffer::empty(),
        };
        Self {
            images,
            values: values
                .map(|(frame, grouped)| Buffer::new(*frame, *grouped, images))
                .collect(),
            slopes: plan.values.iter().enumerate().map(slope).collect(),
            results,
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
                let vectors = conv.result.h * conv.result.w * conv.result.channels() / LANES;
                match conv.post {
                    Post::None => Mark::default(),
                    Post::Relu | Post::Upsample => Mark {
                        bytes: vec![0; images * vectors],
                        ..Mark::default()
                    },
                    Post::Pool { .. } => {
                        let pooled = &plan.values[conv.target];
                        Mark {
                            largest: vec![0; images * pooled.h * pooled.w * pooled.channels() / LANES],
                            ..Mark::default()
                        }
                    }
                }
            }
            Step::Single(single) => {
                let [bytes, numbers] = single.kept(&plan.values[single.target]);
                Mark {
                    bytes: vec![0; images * bytes],
                    numbers: vec![T::ZERO; images * numbers],
                    ..Mark::default()
                }
            }
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
    fn of(&mut self, images: &Range<usize>, all: usize) -> (&mut [u8], &mut [u64], &mut [T]) {
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

/// Output `y` `[n, ...]` for images `x` `[n, C, H, W]`; the tape is written if there is one.
pub(super) fn forward<T: Real>(
    plan: &Plan<T>,
    work: &mut Workspace<T>,
    mut tape: Option<&mut Tape<T>>,
    n: usize,
    x: &[T],
    y: &mut [T],
) {
    let mut run = |work: &mut Workspace<T>, steps: Range<usize>, images: Range<usize>| {
        for i in steps {
            let mark = tape.as_deref_mut().map(|tape| (tape.images, &mut tape.marks[i]));
            match &plan.steps[i] {
                Step::Conv(conv) => forward_conv(conv, work, mark, &images),
                Step::Single(single) => forward_single(single, work, mark, &images),
            }
        }
    };
    let length = x.len() / n;
    for images in groups(n) {
        let input = &mut work.values[0];
        let frame = input.frame;
        let maps = input.maps_mut(&images).chunks_exact_mut(frame.len());
        for (map, image) in maps.zip(x[images.start * length..].chunks_exact(length)) {
            import(&frame, image, map);
        }
        run(work, 0..plan.grouped, images);
    }
    run(work, plan.grouped..plan.steps.len(), 0..n);
    let output = &work.values[plan.output];
    let maps = output.maps(&(0..n)).chunks_exact(output.frame.len());
    for (map, y) in maps.zip(y.chunks_exact_mut(y.len() / n)) {
        export(&output.frame, map, y);
    }
}

/// Sums over images of the gradients of a network's weights, layer by layer.
pub(super) struct Sums<T>(Vec<Layer<T>>);

/// Those of one layer, as its [`Rule`] has them.
struct Layer<T> {
    weight: Vec<T>,
    bias: Vec<T>,
}

impl<T: Real> Sums<T> {
    /// Zeros.
    pub fn new(plan: &Plan<T>) -> Self {
        let layer = |conv: &Conv<T>| Layer {
            weight: vec![T::ZERO; Rule::new(&conv.geometry).sums()],
            bias: vec![T::ZERO; conv.result.c],
        };
        Self(convolutions(plan).map(layer).collect())
    }

    /// Adds those of further images.
    pub fn add(&mut self, other: &Self) {
        for (layer, more) in self.0.iter_mut().zip(&other.0) {
            for (sums, more) in [(&mut layer.weight, &more.weight), (&mut layer.bias, &more.bias)] {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += *more);
            }
        }
    }

    /// The gradients, weight and bias of one layer after the other, in one vector.
    pub fn finish(self, plan: &Plan<T>) -> Vec<T> {
        let mut all = Vec::new();
        for (layer, conv) in self.0.iter().zip(convolutions(plan)) {
            all.extend(Rule::new(&conv.geometry).finish(&layer.weight));
            all.extend_from_slice(&layer.bias);
        }
        all
    }
}

/// The convolutions and fully connected layers of a plan.
fn convolutions<T>(plan: &Plan<T>) -> impl Iterator<Item = &Conv<T>> {
    plan.steps.iter().filter_map(|step| match step {
        Step::Conv(conv) => Some(&**conv),
        Step::Single(_) => None,
    })
}

/// What the way back is to find.
pub(super) struct Wanted<'a, T> {
    /// Gradient `[n, C, H, W]` of the images.
    pub dx: Option<&'a mut [T]>,
    /// Sums of the gradients of weights; the workspace must keep all maps.
    pub sums: Option<&'a mut Sums<T>>,
}

/// Gradients of the images or the weights, from the output's `dy` `[n, ...]` and the tape of their way forward.
pub(super) fn backward<T: Real>(
    plan: &Plan<T>,
    work: &mut Workspace<T>,
    tape: &mut Tape<T>,
    n: usize,
    dy: &[T],
    wanted: Wanted<T>,
) {
    let Wanted { mut dx, mut sums } = wanted;
    let output = &mut work.slopes[plan.output];
    let frame = output.frame;
    for (map, dy) in output
        .maps_mut(&(0..n))
        .chunks_exact_mut(frame.len())
        .zip(dy.chunks_exact(dy.len() / n))
    {
        import(&frame, dy, map);
    }
    let mut layer = sums.as_ref().map_or(0, |sums| sums.0.len());
    let to_images = dx.is_some();
    let mut back = |i: usize, layer: &mut usize, work: &mut Workspace<T>, images: &Range<usize>| {
        let Step::Conv(conv) = &plan.steps[i] else {
            return step_back(plan, i, work, tape, images, to_images);
        };
        pull_back(conv, i, work, tape, images);
        if let Some(sums) = sums.as_deref_mut() {
            *layer -= 1;
            learn(
                conv,
                &work.values[conv.source],
                &work.results[i],
                &mut sums.0[*layer],
                images,
            );
        }
        step_back(plan, i, work, tape, images, to_images);
    };
    for i in (plan.grouped..plan.steps.len()).rev() {
        back(i, &mut layer, work, &(0..n));
    }
    for images in groups(n) {
        let mut layer = layer;
        for i in (0..plan.grouped).rev() {
            back(i, &mut layer, work, &images);
        }
        let Some(dx) = dx.as_deref_mut() else { continue };
        let length = dx.len() / n;
        let slopes = &work.slopes[0];
        let maps = slopes.maps(&images).chunks_exact(slopes.frame.len());
        for (map, dx) in maps.zip(dx[images.start * length..].chunks_exact_mut(length)) {
            export(&slopes.frame, map, dx);
        }
    }
}

fn groups(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(GROUP).map(move |first| first..(first + GROUP).min(n))
}

fn forward_conv<T: Real>(
    conv: &Conv<T>,
    work: &mut Workspace<T>,
    mark: Option<(usize, &mut Mark<T>)>,
    images: &Range<usize>,
) {
    let [source, target] = pair(&mut work.values, conv.source, conv.target);
    let (n, frame) = (images.len(), target.frame);
    let from = source.maps(images).as_ptr();
    if conv.forward.is_narrow() {
        let maps = target.maps_mut(images);
        // SAFETY: the source has the layout and border that the kernel was made for.
        return unsafe {
            conv.forward.run_narrow(n, from, |image, planes, values| {
                let map = &mut maps[image * frame.len()..];
                for (c, y) in (0..frame.c).flat_map(|c| (0..frame.h).map(move |y| (c, y))) {
                    let to = frame.at(y, 0) + c * frame.strides()[0];
                    for (to, v) in map[to..to + frame.w].iter_mut().zip(planes.row(values, c, y)) {
                        *to = *v + conv.bias[c];
                    }
                }
            });
        };
    }
    let to = target.to(images);
    let bias = conv.bias.as_ptr();
    let marks = mark.map(|(all, mark)| mark.of(images, all));
    let (positive, largest) = match marks {
        Some((bytes, largest, _)) => (Some(Marks::new(bytes, &conv.result)), Some(Marks::new(largest, &frame))),
        None => (None, None),
    };
    let kernel = &conv.forward;
    // SAFETY: as above; the target has a map and the tape marks for every image, and the bias is as long as the channels.
    unsafe {
        match conv.post {
            Post::None => kernel.run(n, from, Store::<T, false> { bias, to, positive }),
            Post::Relu => kernel.run(n, from, Store::<T, true> { bias, to, positive }),
            Post::Pool { relu: true } => kernel.run(n, from, StorePooled::<T, true> { bias, to, largest }),
            Post::Pool { relu: false } => kernel.run(n, from, StorePooled::<T, false> { bias, to, largest }),
            Post::Upsample => kernel.run(n, from, StoreUpsampled { bias, to, positive }),
        }
    }
}

fn forward_single<T: Real>(
    single: &Single<T>,
    work: &mut Workspace<T>,
    mut mark: Option<(usize, &mut Mark<T>)>,
    images: &Range<usize>,
) {
    // Taken out, so that the others can be read.
    let mut target = std::mem::replace(&mut work.values[single.target], Buffer::empty());
    let frame = target.frame;
    let mut sources = Vec::with_capacity(single.sources.len());
    for image in images.clone() {
        let source = |s: &usize| (&work.values[*s].frame, work.values[*s].map(image, images));
        sources.clear();
        sources.extend(single.sources.iter().map(source));
        let marks = mark.as_mut().map(|(all, mark)| mark.of(&(image..image + 1), *all));
        let (bytes, _, numbers) = marks.unwrap_or_default();
        single.forward(&sources, &frame, target.map_mut(image, images), bytes, numbers);
    }
    work.values[single.target] = target;
}

/// Takes the gradient of what a convolution made to its result, unless the step that reads it has done so.
fn pull_back<T: Real>(conv: &Conv<T>, i: usize, work: &mut Workspace<T>, tape: &mut Tape<T>, images: &Range<usize>) {
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

/// Adds the gradients of a layer's weight and bias.
fn learn<T: Real>(conv: &Conv<T>, source: &Buffer<T>, result: &Buffer<T>, sums: &mut Layer<T>, images: &Range<usize>) {
    let (x, dy) = (source.maps(images), result.maps(images));
    if !result.frame.narrow {
        return learn_from(conv, source.frame, x, result.frame, dy, sums);
    }
    // Few outputs lie plane by plane: a copy with channels last.
    let wide = Frame::channels_last(result.frame.shape(), gradient_border(&conv.geometry));
    let Frame { c, h, w, .. } = wide;
    with_scratch(images.len() * wide.len(), |copy: &mut [T]| {
        copy.fill(T::ZERO);
        for (from, to) in dy
            .chunks_exact(result.frame.len())
            .zip(copy.chunks_exact_mut(wide.len()))
        {
            for (channel, y, x) in (0..c).flat_map(|c| (0..h).flat_map(move |y| (0..w).map(move |x| (c, y, x)))) {
                to[wide.at(y, x) + channel] = from[result.frame.at(y, x) + channel * result.frame.strides()[0]];
            }
        }
        learn_from(conv, source.frame, x, wide, copy, sums);
    });
}

/// The same with the result's gradient channels last.
fn learn_from<T: Real>(conv: &Conv<T>, x_frame: Frame, x: &[T], frame: Frame, dy: &[T], sums: &mut Layer<T>) {
    let images = x.len() / x_frame.len();
    let rule = Rule::laid_out(&conv.geometry, x_frame, frame);
    // SAFETY: both hold a map for every image, with the borders that the plan asked for.
    unsafe { rule.add_maps(images, x.as_ptr(), dy.as_ptr(), &mut sums.weight) };
    for map in dy.chunks_exact(frame.len()) {
        for (y, x) in (0..frame.h).flat_map(|y| (0..frame.w).map(move |x| (y, x))) {
            let place = &map[frame.at(y, x)..][..sums.bias.len()];
            sums.bias.iter_mut().zip(place).for_each(|(sum, dy)| *sum += *dy);
        }
    }
}

/// Takes a step's gradient to what it read; that of the images only if `to_images`.
fn step_back<T: Real>(
    plan: &Plan<T>,
    i: usize,
    work: &mut Workspace<T>,
    tape: &mut Tape<T>,
    images: &Range<usize>,
    to_images: bool,
) {
    match &plan.steps[i] {
        Step::Conv(conv) => {
            if conv.source == 0 && !to_images {
                return;
            }
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
        Step::Single(single) => {
            let frames: Vec<Frame> = single.sources.iter().map(|s| work.slopes[*s].frame).collect();
            let wanted = |source: usize| source > 0 || to_images;
            for (number, source) in single.sources.iter().enumerate().filter(|(_, s)| wanted(**s)) {
                for image in images.clone() {
                    let [target, to] = pair(&mut work.slopes, single.target, *source);
                    let (bytes, _, numbers) = tape.marks[i].of(&(image..image + 1), tape.images);
                    let from = (&target.frame, target.map(image, images));
                    single.backward(number, &frames, from, to.map_mut(image, images), bytes, numbers);
                }
            }
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
                    for c in (0..self.frame.channels()).step_by(LANES) {
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

/// Two different buffers.
fn pair<T>(buffers: &mut [Buffer<T>], a: usize, b: usize) -> [&mut Buffer<T>; 2] {
    match buffers.get_disjoint_mut([a, b]) {
        Ok(pair) => pair,
        Err(_) => unreachable!("a step's values differ"),
    }
}
