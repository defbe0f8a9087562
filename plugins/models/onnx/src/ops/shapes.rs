//! What changes shapes and moves elements about.

use advae_sdk::candle_core::{DType, Device, Result, Tensor, bail};

use super::{Call, axis, sizes};
use crate::graph::Attribute;
use crate::room::count;
use crate::tensor::types;

/// Elements of an axis by constant indices; the gradient is summed back.
pub fn take(x: &Tensor, axis: usize, indices: Vec<u32>) -> Result<Tensor> {
    let indices = Tensor::new(indices, x.device())?;
    x.contiguous()?.index_select(&indices, axis)
}

pub fn constant(call: &Call) -> Result<Tensor> {
    let device = &Device::Cpu;
    for name in ["value", "value_float", "value_floats", "value_int", "value_ints"] {
        match call.node.attribute(name) {
            Some(Attribute::Tensor(tensor)) => return Ok(tensor.clone()),
            Some(Attribute::Float(v)) => return Tensor::new(*v, device),
            Some(Attribute::Floats(v)) => return Tensor::new(v.as_slice(), device),
            Some(Attribute::Int(v)) => return Tensor::new(*v, device),
            Some(Attribute::Ints(v)) => return Tensor::new(v.as_slice(), device),
            _ => {}
        }
    }
    bail!("a constant of a kind that is not read here: expected numbers")
}

pub fn constant_of_shape(call: &Call) -> Result<Tensor> {
    let shape = sizes(&call.whole(0)?.unwrap_or_default())?;
    call.room(&shape)?;
    match call.node.attribute("value") {
        Some(Attribute::Tensor(value)) => value.flatten_all()?.broadcast_as(shape)?.contiguous(),
        _ => Tensor::zeros(shape, DType::F64, &Device::Cpu),
    }
}

pub fn shape(call: &Call) -> Result<Tensor> {
    let dims: Vec<i64> = call.input(0)?.dims().iter().map(|d| *d as i64).collect();
    let rank = dims.len() as i64;
    let end = |name, default| {
        let v = call.node.int(name, default);
        (if v < 0 { v + rank } else { v }).clamp(0, rank) as usize
    };
    let (from, to) = (end("start", 0), end("end", rank));
    Tensor::new(&dims[from..to.max(from)], &Device::Cpu)
}

pub fn cast(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let to = call.node.int("to", i64::from(types::FLOAT));
    match types::is_float(to as i32) {
        // A network has one type of floats.
        true if x.dtype().is_float() => Ok(x.clone()),
        true => x.to_dtype(DType::F64),
        false if to == i64::from(types::BOOL) => x.detach().ne(&x.zeros_like()?)?.to_dtype(DType::I64),
        false => x.detach().to_dtype(DType::I64),
    }
}

/// 0 keeps an axis, -1 takes what is left. Where a file was written for a fixed number of images, it is the runner that has put
/// theirs in place of it.
pub fn reshape(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let mut target = call.whole_or(1, "shape")?.unwrap_or_default();
    if call.node.int("allowzero", 0) == 0 {
        for (i, size) in target.iter_mut().enumerate().filter(|(_, size)| **size == 0) {
            *size = match x.dims().get(i) {
                Some(d) => *d as i64,
                None => bail!("a shape keeps axis {i} of a tensor {:?}", x.dims()),
            };
        }
    }
    if target.iter().filter(|size| **size == -1).count() > 1 {
        bail!("a shape {target:?} leaves several sizes open")
    }
    let known: Vec<i64> = target.iter().copied().filter(|size| *size != -1).collect();
    let known = count(&sizes(&known)?);
    if let (Some(open), Some(known)) = (target.iter_mut().find(|size| **size == -1), known) {
        *open = (x.elem_count() / known) as i64;
    }
    let fits = |target: &[i64]| {
        let target = sizes(target).ok().filter(|target| count(target).is_some())?;
        (target.iter().product::<usize>() == x.elem_count()).then_some(target)
    };
    let Some(target) = fits(&target) else {
        bail!("elements of shape {:?} cannot be arranged as {target:?}", x.dims())
    };
    call.room(&target)?;
    x.contiguous()?.reshape(target)
}

pub fn flatten(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let at = match call.node.int("axis", 1) {
        at if at == x.rank() as i64 => x.rank(),
        at => axis(at, x.rank())?,
    };
    let rows: usize = x.dims()[..at].iter().product();
    x.contiguous()?
        .reshape((rows, x.dims()[at..].iter().product::<usize>()))
}

pub fn squeeze(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let axes: Vec<usize> = match call.whole_or(1, "axes")? {
        Some(axes) => axes.iter().map(|a| axis(*a, x.rank())).collect::<Result<_>>()?,
        None => (0..x.rank()).filter(|i| x.dims()[*i] == 1).collect(),
    };
    if let Some(wrong) = axes.iter().find(|i| x.dims()[**i] != 1) {
        bail!("axis {wrong} of {:?} is not of size 1", x.dims())
    }
    let dims = x.dims().iter().enumerate().filter(|(i, _)| !axes.contains(i));
    x.reshape(dims.map(|(_, d)| *d).collect::<Vec<usize>>())
}

pub fn unsqueeze(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let axes = call.whole_or(1, "axes")?.unwrap_or_default();
    let rank = x.rank() + axes.len();
    call.room(&vec![1; rank])?;
    let axes: Vec<usize> = axes.iter().map(|a| axis(*a, rank)).collect::<Result<_>>()?;
    let mut old = x.dims().iter();
    let dims = (0..rank).map(|i| {
        if axes.contains(&i) {
            1
        } else {
            old.next().copied().unwrap_or(1)
        }
    });
    x.reshape(dims.collect::<Vec<usize>>())
}

pub fn transpose(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let order: Vec<usize> = match call.node.ints("perm") {
        Some(perm) => perm.iter().map(|a| axis(*a, x.rank())).collect::<Result<_>>()?,
        None => (0..x.rank()).rev().collect(),
    };
    x.permute(order)?.contiguous()
}

pub fn concat(call: &Call) -> Result<Tensor> {
    let xs = call.inputs();
    let rank = xs.first().map_or(0, |x| x.rank());
    let at = axis(call.node.int("axis", 1), rank)?;
    let size = xs.iter().try_fold(0usize, |sum, x| sum.checked_add(x.elem_count()));
    call.room(&[size.unwrap_or(usize::MAX)])?;
    // Whole numbers are whole numbers, whatever their width was.
    let one = xs
        .iter()
        .find(|x| x.dtype().is_float())
        .map_or(DType::I64, |x| x.dtype());
    let xs: Vec<Tensor> = xs
        .iter()
        .map(|x| x.to_dtype(one)?.contiguous())
        .collect::<Result<_>>()?;
    Tensor::cat(&xs, at)
}

pub fn split(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let at = axis(call.node.int("axis", 0), x.rank())?;
    let (size, count) = (x.dims()[at], call.node.outputs.len().max(1));
    let parts = match call.whole_or(1, "split")? {
        Some(parts) => sizes(&parts)?,
        None => {
            let each = size.div_ceil(count);
            (0..count).map(|i| each.min(size.saturating_sub(i * each))).collect()
        }
    };
    let mut start = 0;
    (parts.into_iter())
        .map(|part| {
            let y = x.narrow(at, start, part)?.contiguous();
            start += part;
            y
        })
        .collect()
}

pub fn slice(call: &Call) -> Result<Tensor> {
    let mut y = call.input(0)?.clone();
    let starts = call.whole_or(1, "starts")?.unwrap_or_default();
    let ends = call.whole_or(2, "ends")?.unwrap_or_default();
    let axes = call.whole_or(3, "axes")?;
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.whole(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    for (((start, end), at), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
        let at = axis(at, y.rank())?;
        let size = y.dims()[at] as i64;
        let from_end = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
        let indices: Vec<u32> = match step {
            0 => bail!("a slice of step 0"),
            1.. => {
                let (start, end) = (from_end(start).clamp(0, size), from_end(end).clamp(0, size));
                (start..end).step_by(step as usize).map(|i| i as u32).collect()
            }
            _ => {
                let (start, end) = (from_end(start).clamp(-1, size - 1), from_end(end).clamp(-1, size - 1));
                let back = std::iter::successors(Some(start), |i| i.checked_add(step)).take_while(|i| *i > end);
                back.map(|i| i as u32).collect()
            }
        };
        call.room_along(&y, at, indices.len())?;
        y = take(&y, at, indices)?;
    }
    Ok(y)
}

pub fn gather(call: &Call) -> Result<Tensor> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.node.int("axis", 0), x.rank())?;
    let size = x.dims()[at] as i64;
    let rows = (call.whole(1)?.unwrap_or_default().into_iter())
        .map(|i| match if i < 0 { i + size } else { i } {
            i if (0..size).contains(&i) => Ok(i as u32),
            _ => bail!("index {i} into an axis of {size} elements"),
        })
        .collect::<Result<Vec<u32>>>()?;
    let mut dims = x.dims()[..at].to_vec();
    dims.extend(indices.dims());
    dims.extend(&x.dims()[at + 1..]);
    call.room(&dims)?;
    take(x, at, rows)?.reshape(dims)
}

pub fn expand(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let target = sizes(&call.whole(1)?.unwrap_or_default())?;
    let shape = (x.shape()).broadcast_shape_binary_op(&target.into(), "expand")?;
    call.room(shape.dims())?;
    x.broadcast_as(shape)?.contiguous()
}

/// Zeros or another number, the edge, or a reflection around tensors; negative widths cut.
pub fn pad(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let node = call.node;
    let pads = match call.whole_or(1, "pads")? {
        Some(pads) => pads,
        None => node.ints("paddings").map(<[i64]>::to_vec).unwrap_or_default(),
    };
    let value = match call.numbers(2)? {
        Some(value) => value.first().copied().unwrap_or(0.),
        None => node.float("value", 0.),
    };
    let axes = match call.whole(3)? {
        Some(axes) => axes
            .iter()
            .map(|a| axis(*a, x.rank()))
            .collect::<Result<Vec<usize>>>()?,
        None => (0..x.rank()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        bail!(
            "{} widths for {} axes: there must be two an axis",
            pads.len(),
            axes.len()
        )
    }
    let mut y = x.clone();
    for (i, at) in axes.iter().enumerate() {
        y = pad_axis(
            call,
            &y,
            *at,
            [pads[i], pads[axes.len() + i]],
            node.text("mode", "constant"),
            value,
        )?;
    }
    Ok(y)
}

/// Along one axis.
pub fn pad_axis(
    call: &Call,
    x: &Tensor,
    at: usize,
    [before, after]: [i64; 2],
    mode: &str,
    value: f64,
) -> Result<Tensor> {
    if before == 0 && after == 0 {
        return Ok(x.clone());
    }
    let size = x.dims()[at] as i64;
    let (Some(first), Some(end)) = (before.checked_neg(), size.checked_add(after)) else {
        bail!("{before} and {after} beside an axis of {size}: no widths of a padding")
    };
    let places = first..end;
    if places.is_empty() {
        bail!("nothing is left of an axis of {size} with {before} and {after} beside it")
    }
    if size == 0 && mode != "constant" {
        bail!("a padding of mode '{mode}' around an axis of no elements")
    }
    call.room_along(x, at, usize::try_from(end.abs_diff(first)).unwrap_or(usize::MAX))?;
    let source = |i: i64| match mode {
        "edge" => Ok(i.clamp(0, size - 1)),
        "wrap" => Ok(i.rem_euclid(size)),
        "reflect" => {
            // Back and forth over `size - 1` steps.
            let period = 2 * (size - 1).max(1);
            let i = i.rem_euclid(period);
            Ok(if i < size { i } else { period - i })
        }
        // One element behind the last holds the number.
        "constant" => Ok(if (0..size).contains(&i) { i } else { size }),
        other => bail!("a padding of mode '{other}': expected constant, edge, reflect or wrap"),
    };
    let indices = places
        .map(|i| source(i).map(|i| i as u32))
        .collect::<Result<Vec<u32>>>()?;
    if mode != "constant" {
        return take(x, at, indices);
    }
    take(&with_one_more(x, at, value)?, at, indices)
}

/// `x` and one element more along an axis.
pub fn with_one_more(x: &Tensor, at: usize, value: f64) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    dims[at] = 1;
    let more = Tensor::full(value, dims, x.device())?.to_dtype(x.dtype())?;
    Tensor::cat(&[&x.contiguous()?, &more], at)
}
