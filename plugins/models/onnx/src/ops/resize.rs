//! Resizing of maps, axis by axis: nearest neighbours and linear interpolation.

use advae_sdk::candle_core::{Result, Tensor, bail};

use super::shapes::take;
use super::{Call, sizes};
use crate::graph::Node;

/// What an axis becomes.
struct Axis {
    from: usize,
    to: usize,
    scale: f64,
}

/// `Resize` and its forerunner `Upsample`.
pub fn resize(call: &Call) -> Result<Tensor> {
    let mut x = call.input(0)?.clone();
    let axes = axes(call, x.dims())?;
    for (at, axis) in axes.iter().enumerate().filter(|(_, axis)| axis.from != axis.to) {
        call.room_along(&x, at, axis.to)?;
        x = along(call.node, &x, at, axis)?;
    }
    Ok(x)
}

fn axes(call: &Call, dims: &[usize]) -> Result<Vec<Axis>> {
    let node = call.node;
    // Upsample of opset 7 has an attribute; Resize of opset 10 its scales where newer ones have a region.
    let at = if node.op == "Upsample" || node.opset < 11 { 1 } else { 2 };
    let scales = call.numbers(at)?.filter(|v| !v.is_empty());
    let scales = scales.or_else(|| node.floats("scales").map(<[f64]>::to_vec));
    let asked = call.whole(3)?.filter(|v| !v.is_empty());
    let chosen: Vec<usize> = match node.ints("axes") {
        Some(axes) => axes
            .iter()
            .map(|a| super::axis(*a, dims.len()))
            .collect::<Result<_>>()?,
        None => (0..dims.len()).collect(),
    };
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch" {
        bail!("a resize that keeps the aspect ratio: give it all sizes")
    }
    let mut axes: Vec<Axis> = dims
        .iter()
        .map(|d| Axis {
            from: *d,
            to: *d,
            scale: 1.,
        })
        .collect();
    match (scales, asked) {
        (_, Some(asked)) if asked.len() == chosen.len() => {
            for (axis, to) in chosen.iter().zip(sizes(&asked)?) {
                let from = axes[*axis].from;
                axes[*axis] = Axis {
                    from,
                    to,
                    scale: to as f64 / from.max(1) as f64,
                };
            }
        }
        (Some(scales), None) if scales.len() == chosen.len() => {
            for (axis, scale) in chosen.iter().zip(scales) {
                let from = axes[*axis].from;
                axes[*axis] = Axis {
                    from,
                    to: (from as f64 * scale).floor() as usize,
                    scale,
                };
            }
        }
        _ => bail!("a resize of {dims:?} needs a factor or a size an axis"),
    }
    Ok(axes)
}

fn along(node: &Node, x: &Tensor, at: usize, axis: &Axis) -> Result<Tensor> {
    let last = axis.from.max(1) - 1;
    match node.text("mode", "nearest") {
        "nearest" => {
            let indices = (0..axis.to)
                .map(|i| nearest(node, axis, i))
                .collect::<Result<Vec<u32>>>()?;
            take(x, at, indices)
        }
        "linear" | "bilinear" if !x.dtype().is_float() => {
            bail!("whole numbers between whole numbers: the file is damaged")
        }
        "linear" | "bilinear" => {
            let (mut low, mut high, mut share) = (vec![], vec![], vec![]);
            for i in 0..axis.to {
                let place = source(node, axis, i)?.clamp(0., last as f64);
                let below = place.floor();
                low.push(below as u32);
                high.push((below as usize + 1).min(last) as u32);
                share.push(place - below);
            }
            let mut dims = vec![1; x.rank()];
            dims[at] = axis.to;
            let share = Tensor::new(share, x.device())?.to_dtype(x.dtype())?.reshape(dims)?;
            let (low, high) = (take(x, at, low)?, take(x, at, high)?);
            &low + (high - &low)?.broadcast_mul(&share)?
        }
        other => bail!("a resize of mode '{other}': expected nearest or linear"),
    }
}

/// Where an output's element lies in the input.
fn source(node: &Node, axis: &Axis, i: usize) -> Result<f64> {
    let (i, to, from) = (i as f64, axis.to as f64, axis.from as f64);
    // Before opset 11 nothing else was known.
    let old = node.op == "Upsample" || node.opset < 11;
    let mode = if old { "asymmetric" } else { "half_pixel" };
    Ok(match node.text("coordinate_transformation_mode", mode) {
        "asymmetric" => i / axis.scale,
        "half_pixel" => (i + 0.5) / axis.scale - 0.5,
        "pytorch_half_pixel" if axis.to > 1 => (i + 0.5) / axis.scale - 0.5,
        "pytorch_half_pixel" => 0.,
        "align_corners" if axis.to > 1 => i * (from - 1.) / (to - 1.),
        "align_corners" => 0.,
        "half_pixel_symmetric" => {
            let adjusted = to / (axis.scale * from);
            from / 2. * (1. - adjusted) + (i + 0.5) / axis.scale - 0.5
        }
        other => bail!("a resize by coordinates '{other}': expected half_pixel, asymmetric or align_corners"),
    })
}

fn nearest(node: &Node, axis: &Axis, i: usize) -> Result<u32> {
    let place = source(node, axis, i)?;
    let old = node.op == "Upsample" || node.opset < 11;
    let mode = if old { "floor" } else { "round_prefer_floor" };
    let place = match node.text("nearest_mode", mode) {
        "floor" => place.floor(),
        "ceil" => place.ceil(),
        "round_prefer_floor" => (place - 0.5).ceil(),
        "round_prefer_ceil" => (place + 0.5).floor(),
        other => {
            bail!("a resize that rounds by '{other}': expected floor, ceil, round_prefer_floor or round_prefer_ceil")
        }
    };
    Ok(place.clamp(0., (axis.from.max(1) - 1) as f64) as u32)
}

/// By which factor maps `[N, C, H, W]` are repeated, where that is all a node does.
///
/// # Errors
/// Where its factors do not fit.
pub fn repeats(call: &Call, dims: &[usize]) -> Result<Option<usize>> {
    let axes = axes(call, dims)?;
    let [n, c, h, w] = axes.as_slice() else { return Ok(None) };
    let factor = h.to / h.from.max(1);
    let fits = n.from == n.to && c.from == c.to && [h, w].iter().all(|axis| axis.to == factor * axis.from);
    if !fits || factor == 0 || call.node.text("mode", "nearest") != "nearest" {
        return Ok(None);
    }
    for axis in [h, w] {
        for i in 0..axis.to {
            if nearest(call.node, axis, i)? as usize != i / factor {
                return Ok(None);
            }
        }
    }
    Ok(Some(factor))
}
