//! Windows that move over maps: where they lie, and pooling.

use advae_sdk::candle_core::{D, Result, Tensor, bail};
use advae_sdk::nn;

use super::shapes::{take, with_one_more};
use super::{Call, sizes};
use crate::graph::Node;
use crate::room::VALUE;

/// How windows move over the last axes of maps `[N, C, ...]`: a number an axis each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spatial {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Elements around the map, before and after it; windows of poolings that round up may go further.
    pub pads: Vec<[usize; 2]>,
    pub outputs: Vec<usize>,
}

impl Spatial {
    /// From a node's attributes, the sizes of a map and of the kernel.
    ///
    /// # Errors
    /// Where they do not fit each other.
    pub fn new(node: &Node, map: &[usize], kernel: &[usize]) -> Result<Spatial> {
        let rank = map.len();
        let numbers = |name: &str| match node.ints(name) {
            Some(values) => extents(values, rank),
            None => Ok(vec![1; rank]),
        };
        let (strides, dilations) = (numbers("strides")?, numbers("dilations")?);
        let lists = [map, kernel, &strides, &dilations].concat();
        if rank == 0 || kernel.len() != rank || lists.iter().any(|size| *size == 0 || *size > LONGEST) {
            bail!(
                "kernel {kernel:?}, strides {strides:?} and dilations {dilations:?} on a map {map:?}: these do not fit"
            )
        }
        let extent = |i: usize| (kernel[i] - 1) * dilations[i] + 1;
        let pads = match node.text("auto_pad", "NOTSET") {
            "NOTSET" | "" => pads_of(node, rank)?,
            "VALID" => vec![[0, 0]; rank],
            same @ ("SAME_UPPER" | "SAME_LOWER") => (0..rank)
                .map(|i| {
                    let outputs = map[i].div_ceil(strides[i]);
                    let total = (outputs.max(1) - 1) * strides[i] + extent(i);
                    let total = total.saturating_sub(map[i]);
                    let (less, more) = (total / 2, total - total / 2);
                    if same == "SAME_UPPER" {
                        [less, more]
                    } else {
                        [more, less]
                    }
                })
                .collect(),
            other => bail!("auto_pad '{other}': expected NOTSET, VALID, SAME_UPPER or SAME_LOWER"),
        };
        let ceil = node.int("ceil_mode", 0) != 0;
        let outputs = (0..rank).map(|i| {
            let [before, after] = pads[i];
            let Some(room) = (map[i] + before + after).checked_sub(extent(i)) else {
                bail!(
                    "a window of {} does not fit into {} places with {before} and {after} around them",
                    extent(i),
                    map[i]
                )
            };
            if !ceil {
                return Ok(room / strides[i] + 1);
            }
            let outputs = room.div_ceil(strides[i]) + 1;
            // A window begins within the map or before it.
            Ok(if (outputs - 1) * strides[i] >= map[i] + before {
                outputs - 1
            } else {
                outputs
            })
        });
        Ok(Spatial {
            outputs: outputs.collect::<Result<_>>()?,
            kernel: kernel.to_vec(),
            strides,
            dilations,
            pads,
        })
    }

    /// For every tap of the kernel and every output, in this order, the element of the map, flattened; `None` outside of it. And
    /// whether it lies within the map and its padding.
    fn places(&self, map: &[usize]) -> impl Iterator<Item = (Option<usize>, bool)> {
        let [taps, outputs]: [usize; 2] = [&self.kernel, &self.outputs].map(|sizes| sizes.iter().product());
        (0..taps * outputs).map(move |place| {
            let (mut tap, mut output) = (place / outputs, place % outputs);
            let (mut at, mut step) = (Some(0), 1);
            let mut padded = true;
            for i in (0..map.len()).rev() {
                let place = (output % self.outputs[i] * self.strides[i]) + tap % self.kernel[i] * self.dilations[i];
                (output, tap) = (output / self.outputs[i], tap / self.kernel[i]);
                let [before, after] = self.pads[i];
                padded &= place < before + map[i] + after;
                let inside = place.checked_sub(before).filter(|p| *p < map[i]);
                at = at.zip(inside).map(|(at, p)| at + p * step);
                step *= map[i];
            }
            (at, padded)
        })
    }

    /// That the windows of maps have room.
    fn room(&self, call: &Call, x: &Tensor) -> Result<()> {
        call.room(&[&x.dims()[..2], &self.kernel, &self.outputs].concat())
    }

    /// Windows of maps `[N, C, ...]`: `[N, C, taps, outputs]`, with `outside` around the maps.
    ///
    /// # Errors
    /// Where there is no room for them, or an operation fails.
    pub fn windows(&self, call: &Call, x: &Tensor, outside: f64) -> Result<Tensor> {
        self.room(call, x)?;
        let (n, c, map) = (x.dims()[0], x.dims()[1], &x.dims()[2..]);
        let size: usize = map.iter().product();
        let indices: Vec<u32> = self.places(map).map(|(at, _)| at.unwrap_or(size) as u32).collect();
        let flat = x.contiguous()?.reshape((n, c, size))?;
        let flat = match indices.contains(&(size as u32)) {
            true => with_one_more(&flat, 2, outside)?,
            false => flat,
        };
        let [taps, outputs]: [usize; 2] = [&self.kernel, &self.outputs].map(|sizes| sizes.iter().product());
        take(&flat, 2, indices)?.reshape((n, c, taps, outputs))
    }

    /// Shape of the outputs for `n` maps of so many channels.
    pub fn shape(&self, n: usize, channels: usize) -> Vec<usize> {
        [n, channels].into_iter().chain(self.outputs.iter().copied()).collect()
    }

    /// The side of square windows beside each other that leave nothing out but a rest at the end, if they are such.
    pub fn blocks(&self, map: &[usize]) -> Option<usize> {
        let k = *self.kernel.first()?;
        let whole = |(outputs, map): (&usize, &usize)| *outputs == map / k.max(1);
        let fits = self.kernel.len() == 2
            && k > 0
            && self.kernel.iter().chain(&self.strides).all(|v| *v == k)
            && self.dilations.iter().all(|d| *d == 1)
            && self.pads.iter().all(|pads| *pads == [0, 0])
            && self.outputs.iter().zip(map).all(whole);
        fits.then_some(k)
    }
}

/// Nothing of a window is longer, so that the arithmetic of windows cannot overflow.
const LONGEST: usize = VALUE;

/// Sizes, strides or widths of windows, of which there must be so many.
///
/// # Errors
/// Where there are others, or one is negative or longer than anything of a map.
pub fn extents(values: &[i64], expected: usize) -> Result<Vec<usize>> {
    let extents = sizes(values)?;
    if extents.len() != expected {
        bail!("{values:?} for windows: expected {expected} numbers")
    }
    match extents.iter().find(|size| **size > LONGEST) {
        Some(size) => bail!("a window, or a step or a width of one, of {size}: the file is damaged"),
        None => Ok(extents),
    }
}

/// A node's padding, `[before, after]` an axis.
///
/// # Errors
/// Where the attribute has another length, or a negative number.
pub fn pads_of(node: &Node, rank: usize) -> Result<Vec<[usize; 2]>> {
    let pads = match node.ints("pads") {
        Some(pads) => extents(pads, 2 * rank)?,
        None => vec![0; 2 * rank],
    };
    Ok((0..rank).map(|i| [pads[i], pads[rank + i]]).collect())
}

/// The windows of a pooling.
///
/// # Errors
/// Where they do not fit the map.
pub fn pooling(node: &Node, dims: &[usize]) -> Result<Spatial> {
    if dims.len() < 3 {
        bail!("pooling of a tensor {dims:?}: expected maps [N, C, ...]")
    }
    let kernel = extents(node.ints("kernel_shape").unwrap_or_default(), dims.len() - 2)?;
    Spatial::new(node, &dims[2..], &kernel)
}

pub fn max_pool(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let windows = pooling(call.node, x.dims())?;
    if let Some(k) = windows.blocks(&x.dims()[2..]) {
        return nn::max_pool2d(x, k);
    }
    let y = largest_of(&windows.windows(call, x, f64::NEG_INFINITY)?, 2)?;
    y.reshape(windows.shape(x.dims()[0], x.dims()[1]))
}

pub fn average_pool(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let windows = pooling(call.node, x.dims())?;
    let map = &x.dims()[2..];
    if let Some(k) = windows.blocks(map) {
        return nn::avg_pool2d(x, k);
    }
    windows.room(call, x)?;
    // By how many elements a window's sum is divided: those of the map, or those of its padding, too.
    let with_padding = call.node.int("count_include_pad", 0) != 0;
    let outputs: usize = windows.outputs.iter().product();
    let mut counts = vec![0f64; outputs];
    for (i, (at, padded)) in windows.places(map).enumerate() {
        counts[i % outputs.max(1)] += f64::from(u8::from(if with_padding { padded } else { at.is_some() }));
    }
    let counts = Tensor::new(counts, x.device())?.to_dtype(x.dtype())?;
    let y = windows.windows(call, x, 0.)?.sum(2)?.broadcast_div(&counts)?;
    y.reshape(windows.shape(x.dims()[0], x.dims()[1]))
}

/// A number of each map.
pub fn global(call: &Call, f: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let x = call.input(0)?;
    if x.rank() < 3 {
        bail!("pooling of a tensor {:?}: expected maps [N, C, ...]", x.dims())
    }
    let mut dims = x.dims().to_vec();
    dims[2..].fill(1);
    f(&x.contiguous()?.flatten_from(2)?)?.reshape(dims)
}

/// The largest elements `[N, C, 1]` of rows `[N, C, S]`.
pub fn largest(x: &Tensor) -> Result<Tensor> {
    largest_of(x, 2)?.unsqueeze(2)
}

/// The largest element along an axis; one of equals has the whole gradient.
fn largest_of(x: &Tensor, axis: usize) -> Result<Tensor> {
    let last = x.rank() - 1;
    let x = x.transpose(axis, last)?.contiguous()?;
    let at = x.detach().argmax_keepdim(D::Minus1)?;
    let y = x.gather(&at, D::Minus1)?;
    y.transpose(axis, last)?.contiguous()?.squeeze(axis)
}
