//! Convolutions: by [`nn`]'s kernels where they know the form, else as windows times a matrix.

use advae_sdk::candle_core::{Result, Tensor, bail};
use advae_sdk::nn::{self, Padding};

use super::Call;
use super::shapes::pad_axis;
use super::window::{Spatial, extents, pads_of};

/// `Conv` of maps `[N, C, ...]` with a weight `[O, C / group, ...]`.
pub fn conv(call: &Call) -> Result<Tensor> {
    let (x, weight) = (call.input(0)?, call.input(1)?);
    if x.rank() < 3 || weight.rank() != x.rank() {
        bail!(
            "a weight {:?} on a tensor {:?}: these do not fit",
            weight.dims(),
            x.dims()
        )
    }
    let windows = Spatial::new(call.node, &x.dims()[2..], &weight.dims()[2..])?;
    convolve(call, x, weight, &windows)
}

fn convolve(call: &Call, x: &Tensor, weight: &Tensor, windows: &Spatial) -> Result<Tensor> {
    let groups = usize::try_from(call.node.int("group", 1)).unwrap_or(0);
    let (inputs, outputs) = (x.dims()[1], weight.dims()[0]);
    if groups == 0 || inputs % groups != 0 || outputs % groups != 0 || weight.dims()[1] != inputs / groups {
        bail!(
            "a weight {:?} in {groups} groups on {inputs} channels: these do not fit",
            weight.dims()
        )
    }
    let shape = windows.shape(x.dims()[0], outputs);
    call.room(&shape)?;
    call.product(&[&shape, &weight.dims()[1..]].concat())?;
    let part = |x: &Tensor, axis: usize, i: usize| match groups {
        1 => Ok(x.clone()),
        _ => {
            let size = x.dims()[axis] / groups;
            x.narrow(axis, i * size, size)?.contiguous()
        }
    };
    let parts: Vec<Tensor> = (0..groups)
        .map(|i| one_group(call, &part(x, 1, i)?, &part(weight, 0, i)?, windows))
        .collect::<Result<_>>()?;
    let y = match parts.as_slice() {
        [one] => one.clone(),
        several => Tensor::cat(several, 1)?,
    };
    let Some(bias) = call.optional(2) else { return Ok(y) };
    let mut dims = vec![1; y.rank()];
    dims[1] = outputs;
    y.broadcast_add(&bias.reshape(dims)?)
}

fn one_group(call: &Call, x: &Tensor, weight: &Tensor, windows: &Spatial) -> Result<Tensor> {
    if let Some(stride) = kernel_stride(windows) {
        let mut x = x.clone();
        for (i, [before, after]) in windows.pads.iter().enumerate() {
            x = pad_axis(call, &x, 2 + i, [*before as i64, *after as i64], "constant", 0.)?;
        }
        return nn::conv2d(&x, weight, None, stride, Padding::Valid);
    }
    // [N, C, taps, outputs] as [N, C taps, outputs]
    let (n, outputs) = (x.dims()[0], weight.dims()[0]);
    let columns = windows.windows(call, x, 0.)?.flatten(1, 2)?;
    let weight = weight
        .contiguous()?
        .reshape((1, outputs, weight.elem_count() / outputs.max(1)))?;
    weight.broadcast_matmul(&columns)?.reshape(windows.shape(n, outputs))
}

/// The stride of a convolution that [`nn::conv2d`] knows.
pub fn kernel_stride(windows: &Spatial) -> Option<usize> {
    match (windows.strides.as_slice(), windows.dilations.as_slice()) {
        ([a, b], [1, 1]) if a == b => Some(*a),
        _ => None,
    }
}

/// `ConvTranspose` of maps `[N, C, ...]` with a weight `[C, O / group, ...]`: the elements of a map stand `stride` apart, and the
/// turned kernel moves over them.
pub fn conv_transpose(call: &Call) -> Result<Tensor> {
    let (node, x, weight) = (call.node, call.input(0)?, call.input(1)?);
    let rank = x.rank().saturating_sub(2);
    if rank == 0 || weight.rank() != x.rank() {
        bail!(
            "a weight {:?} on a tensor {:?}: these do not fit",
            weight.dims(),
            x.dims()
        )
    }
    let numbers = |name: &str, default: usize| match node.ints(name) {
        Some(values) => extents(values, rank),
        None => Ok(vec![default; rank]),
    };
    let (strides, dilations) = (numbers("strides", 1)?, numbers("dilations", 1)?);
    let more = numbers("output_padding", 0)?;
    let kernel = weight.dims()[2..].to_vec();
    if [&x.dims()[2..], &kernel, &strides, &dilations].concat().contains(&0) {
        bail!(
            "kernel {kernel:?}, strides {strides:?} and dilations {dilations:?} on a tensor {:?}: these do not fit",
            x.dims()
        )
    }
    let full = |i: usize| (x.dims()[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1;
    let mut pads: Vec<[i64; 2]> = match node.text("auto_pad", "NOTSET") {
        "NOTSET" | "" | "VALID" => pads_of(node, rank)?.iter().map(|p| p.map(|v| v as i64)).collect(),
        _ => vec![[0, 0]; rank],
    };
    let asked = match node.ints("output_shape") {
        Some(shape) => Some(extents(&shape[shape.len().saturating_sub(rank)..], rank)?),
        None if node.text("auto_pad", "NOTSET").starts_with("SAME") => {
            Some((0..rank).map(|i| x.dims()[2 + i] * strides[i]).collect())
        }
        None => None,
    };
    if let Some(asked) = asked {
        for (i, pads) in pads.iter_mut().enumerate() {
            let total = (full(i) + more[i]) as i64 - asked[i] as i64;
            let (less, rest) = (total / 2, total - total / 2);
            *pads = if node.text("auto_pad", "NOTSET") == "SAME_UPPER" {
                [less, rest]
            } else {
                [rest, less]
            };
        }
    }
    let mut spread = x.clone();
    for i in 0..rank {
        let reach = ((kernel[i] - 1) * dilations[i]) as i64;
        let [before, after] = pads[i];
        spread = apart(call, &spread, 2 + i, strides[i])?;
        spread = pad_axis(
            call,
            &spread,
            2 + i,
            [reach - before, reach - after + more[i] as i64],
            "constant",
            0.,
        )?;
    }
    let outputs: Vec<usize> = (0..rank)
        .map(|i| spread.dims()[2 + i].saturating_sub((kernel[i] - 1) * dilations[i]))
        .collect();
    if outputs.contains(&0) {
        bail!("nothing is left of a tensor {:?} with pads {pads:?}", x.dims())
    }
    let windows = Spatial {
        outputs,
        strides: vec![1; rank],
        pads: vec![[0, 0]; rank],
        kernel,
        dilations,
    };
    convolve(call, &spread, &turned(weight, node.int("group", 1))?, &windows)
}

/// `stride - 1` zeros between the elements of an axis.
fn apart(call: &Call, x: &Tensor, axis: usize, stride: usize) -> Result<Tensor> {
    let size = x.dims()[axis];
    if stride == 1 || size == 0 {
        return Ok(x.clone());
    }
    let (mut dims, mut joined) = (x.dims().to_vec(), x.dims().to_vec());
    dims.insert(axis + 1, 1);
    joined[axis] = size.saturating_mul(stride);
    call.room(&joined)?;
    let x = x.contiguous()?.reshape(dims)?.pad_with_zeros(axis + 1, 0, stride - 1)?;
    x.reshape(joined)?
        .narrow(axis, 0, (size - 1) * stride + 1)?
        .contiguous()
}

/// `[C, O / groups, ...]` as `[O, C / groups, ...]` with its taps in reverse.
fn turned(weight: &Tensor, groups: i64) -> Result<Tensor> {
    let dims = weight.dims();
    let groups = usize::try_from(groups).unwrap_or(0);
    if groups == 0 || !dims[0].is_multiple_of(groups) {
        bail!("a weight {dims:?} in {groups} groups: these do not fit")
    }
    let (inputs, outputs) = (dims[0] / groups, dims[1]);
    let taps: usize = dims[2..].iter().product();
    let reverse = (0..taps as u32).rev().collect();
    let flat = weight.contiguous()?.reshape((groups, inputs, outputs, taps))?;
    let flat = super::shapes::take(&flat, 3, reverse)?.transpose(1, 2)?.contiguous()?;
    let mut shape = vec![groups * outputs, inputs];
    shape.extend(&dims[2..]);
    flat.reshape(shape)
}
