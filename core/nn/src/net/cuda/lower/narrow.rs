//! Convolutions with few channels on one side: kernels of our own, and what is fused with them.

use super::{B, Back, Buffer, Geometry, K, Launch, Lowering, Order, Post, Way};

/// Channels a turn of `few_to_many` makes where channels are first, and the threads that share one of `many_to_few` where they are last.
pub(super) const CHANNELS: usize = 8;
pub(super) const WARP: usize = 32;
/// Numbers of a patch of `few_to_many`, and outputs of a turn of `many_to_few`.
pub(super) const PATCH: usize = 64;
pub(super) const FEW: usize = 4;

/// Whether the kernels for few channels are for this convolution.
pub(super) fn narrow(g: &Geometry) -> bool {
    let few = g.c_in.min(g.c_out);
    g.stride == 1 && few <= FEW && g.taps() > 1 && few * (g.kh + 1) * (g.kw + 1) <= PATCH
}

/// Whether it reads few channels: the fewer of both sides.
pub(super) fn few_in(g: &Geometry) -> bool {
    g.c_in <= g.c_out
}

/// Ends of a convolution with few channels on one side, or of its way back.
pub(super) struct Narrow {
    to_many: bool,
    source: [usize; 3],
    target: [usize; 3],
    kernel: [usize; 2],
    /// Zeros above and to the left.
    zeros: [usize; 2],
}

impl Narrow {
    pub(super) fn new(g: &Geometry, backward: bool) -> Narrow {
        let (source, target, zeros) = match backward {
            false => (g.input(), g.output(), [g.top, g.left]),
            true => (g.output(), g.input(), [g.kh - 1 - g.top, g.kw - 1 - g.left]),
        };
        Narrow {
            to_many: few_in(g) != backward,
            source,
            target,
            kernel: [g.kh, g.kw],
            zeros,
        }
    }

    /// As the kernels take them.
    pub(super) fn sizes(&self) -> Vec<usize> {
        [self.source.as_slice(), &self.target, &self.kernel, &self.zeros].concat()
    }
}

/// What a convolution with few channels does besides.
#[derive(Default)]
pub(super) struct Fused {
    pub relu: bool,
    /// Added to what is there.
    pub add: bool,
    /// Added to the result.
    pub bias: Option<usize>,
    /// Only where this buffer is above 0 the source counts.
    pub mask: Option<usize>,
}

impl Lowering<'_> {
    /// A convolution of few channels with what follows it, where one kernel does both: which of a pool was largest, if it pools.
    pub(super) fn fused(
        &mut self,
        way: Way,
        post: Post,
        [from, to]: [usize; 2],
        shift: usize,
        len: usize,
    ) -> Option<Option<usize>> {
        let Way::Narrow { weight, geometry } = way else {
            return None;
        };
        match post {
            Post::None | Post::Relu if few_in(&geometry) || post == Post::None => {
                let fused = Fused {
                    relu: post == Post::Relu,
                    bias: Some(shift),
                    ..Fused::default()
                };
                let launch = self.narrow(weight, &geometry, [from, to], false, fused);
                self.program.forward.push(launch);
                Some(None)
            }
            Post::Pool { relu } if few_in(&geometry) => {
                let ends = Narrow::new(&geometry, false);
                let which = self.program.buffer(Buffer::Bytes(len));
                let arguments = [B(from), K(weight), K(shift), B(to), B(which)];
                let numbers = [ends.sizes().as_slice(), &[usize::from(relu)]].concat();
                self.push("few_to_many_pool", self.narrow_elements(&ends), &arguments, &numbers);
                Some(Some(which))
            }
            _ => None,
        }
    }

    /// A convolution with few channels on one side, or its way back.
    pub(super) fn narrow(
        &mut self,
        weight: usize,
        g: &Geometry,
        [from, to]: [usize; 2],
        backward: bool,
        fused: Fused,
    ) -> Launch {
        let ends = Narrow::new(g, backward);
        let sizes = ends.sizes();
        // A pointer that is not read stands for a bias or mask that is not there.
        let bias = K(fused.bias.unwrap_or(weight));
        let biased = usize::from(fused.bias.is_some());
        let flip = usize::from(backward);
        let elements = self.narrow_elements(&ends);
        if ends.to_many {
            let arguments = [B(from), K(weight), bias, B(to)];
            let numbers = [
                sizes.as_slice(),
                &[flip, biased, usize::from(fused.relu), usize::from(fused.add)],
            ]
            .concat();
            return self.program.kernel("few_to_many", elements, &arguments, &numbers);
        }
        let mask = B(fused.mask.unwrap_or(from));
        let masked = usize::from(fused.mask.is_some());
        let arguments = [B(from), mask, K(weight), bias, B(to)];
        let numbers = [sizes.as_slice(), &[flip, masked, biased, usize::from(fused.add)]].concat();
        self.program.kernel("many_to_few", elements, &arguments, &numbers)
    }

    /// Turns an image.
    pub(super) fn narrow_elements(&self, ends: &Narrow) -> usize {
        let [_, oh, ow] = ends.target;
        let blocks = oh.div_ceil(2) * ow.div_ceil(2);
        let last = self.program.order == Order::ChannelsLast;
        match (ends.to_many, last) {
            (true, true) => blocks * ends.target[0],
            (true, false) => blocks * ends.target[0].div_ceil(CHANNELS),
            (false, true) => blocks * WARP,
            (false, false) => blocks,
        }
    }

    /// The way back of a convolution with few channels, with what is beside it, where one kernel does both.
    pub(super) fn narrow_back(
        &mut self,
        weight: usize,
        g: &Geometry,
        source: usize,
        target: usize,
        post: Post,
    ) -> bool {
        if few_in(g) && post == Post::Relu {
            let fused = Fused {
                add: self.write(source),
                mask: Some(self.values[target]),
                ..Fused::default()
            };
            let ends = [self.slopes[target], self.slopes[source]];
            let launch = self.narrow(weight, g, ends, true, fused);
            self.program.backward.push(launch);
            return true;
        }
        let Some(maker) = self.maker[source].filter(|_| self.readers[source].len() == 1 && !few_in(g)) else {
            return false;
        };
        let Back::Conv {
            post: Post::Upsample,
            result,
            ..
        } = self.backs[maker]
        else {
            return false;
        };
        let ends = Narrow::new(g, true);
        let raw = self.program.buffer(Buffer::Floats(result.iter().product()));
        let arguments = [B(self.slopes[target]), K(weight), B(self.values[source]), B(raw)];
        self.push_back(
            "few_to_many_sum",
            self.narrow_elements(&ends),
            &arguments,
            &ends.sizes(),
        );
        self.gradients[maker] = Some(raw);
        self.write(source);
        true
    }
}
