//! Normalisations.

use advae_sdk::candle_core::{Result, Tensor, bail};

use super::{Call, axis};

/// By running statistics: `gamma (x - mean) / sqrt(var + epsilon) + beta`.
pub fn batch(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    if call.node.int("training_mode", 0) != 0 {
        bail!("batch norm by the statistics of the batch: images would depend on each other; export with model.eval()")
    }
    let along = |i: usize| channels(x, call.input(i)?);
    let deviation = (along(4)? + call.node.float("epsilon", 1e-5))?.sqrt()?;
    let scale = (along(1)? / deviation)?;
    call.room_for_both(x, &scale)?;
    let shift = (along(2)? - (along(3)? * &scale)?)?;
    x.broadcast_mul(&scale)?.broadcast_add(&shift)
}

/// By the statistics of every map.
pub fn instance(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let axes: Vec<usize> = (2..x.rank()).collect();
    let y = standard(x, &axes, call.node.float("epsilon", 1e-5))?;
    let (scale, shift) = (channels(x, call.input(1)?)?, channels(x, call.input(2)?)?);
    call.room_for_both(&y, &scale)?;
    let y = y.broadcast_mul(&scale)?;
    call.room_for_both(&y, &shift)?;
    y.broadcast_add(&shift)
}

/// By the statistics over all axes from one on.
pub fn layer(call: &Call) -> Result<Tensor> {
    let x = call.input(0)?;
    let from = axis(call.node.int("axis", -1), x.rank())?;
    let axes: Vec<usize> = (from..x.rank()).collect();
    let (y, scale) = (standard(x, &axes, call.node.float("epsilon", 1e-5))?, call.input(1)?);
    call.room_for_both(&y, scale)?;
    let y = y.broadcast_mul(scale)?;
    match call.optional(2) {
        Some(shift) => {
            call.room_for_both(&y, shift)?;
            y.broadcast_add(shift)
        }
        None => Ok(y),
    }
}

/// `(x - mean) / sqrt(var + epsilon)` with the biased variance over these axes.
fn standard(x: &Tensor, axes: &[usize], epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(axes)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(axes)? + epsilon)?.sqrt()?;
    centred.broadcast_div(&deviation)
}

/// Numbers `[C]` beside maps `[N, C, ...]`.
fn channels(x: &Tensor, values: &Tensor) -> Result<Tensor> {
    let mut dims = vec![1; x.rank().max(2)];
    dims[1] = values.elem_count();
    values.reshape(dims)
}
