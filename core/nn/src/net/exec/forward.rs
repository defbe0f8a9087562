//! Steps forward.

use std::ops::Range;

use super::buffers::{Buffer, Mark, Workspace, pair};
use super::norms::Scale;
use crate::kernels::Real;
use crate::kernels::sink::{Marks, Store, StorePooled, StoreUpsampled};
use crate::net::operators::{Affine, Run, Single};
use crate::net::step::{Conv, Norm, Post};

/// A convolution, with what follows it.
pub(super) fn conv<T: Real>(
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

/// An operator.
pub(super) fn single<T: Real>(
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
        single
            .run
            .forward(&sources, &frame, target.map_mut(image, images), bytes, numbers);
    }
    work.values[single.target] = target;
}

/// A norm by the statistics that `scale` comes from.
pub(super) fn norm<T: Real>(
    norm: &Norm,
    scale: &Scale<T>,
    work: &mut Workspace<T>,
    mut mark: Option<(usize, &mut Mark<T>)>,
    images: &Range<usize>,
) {
    let [source, target] = pair(&mut work.values, norm.source, norm.target);
    let frame = target.frame;
    let affine = Affine::new(&frame, scale.scale.clone(), scale.shift.clone(), norm.relu);
    for image in images.clone() {
        let marks = mark.as_mut().map(|(all, mark)| mark.of(&(image..image + 1), *all));
        let (bytes, ..) = marks.unwrap_or_default();
        let from = [(&source.frame, source.map(image, images))];
        affine.forward(&from, &frame, target.map_mut(image, images), bytes, &mut []);
    }
}
