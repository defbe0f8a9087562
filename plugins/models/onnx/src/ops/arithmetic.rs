//! Numbers with numbers: element by element, products, sums along axes.

use advae_sdk::candle_core::{D, DType, Result, Shape, Tensor, bail};
use advae_sdk::nn;

use super::{Call, axis};

/// Functions of one tensor.
pub fn unary(call: &Call) -> Result<Tensor> {
    as_floats(call.input(0)?, |x| function(call, x))
}

/// candle has few functions of whole numbers, and those overflow.
fn as_floats(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match x.dtype() {
        floats if floats.is_float() => f(x),
        whole => f(&x.to_dtype(DType::F64)?)?.to_dtype(whole),
    }
}

fn function(call: &Call, x: &Tensor) -> Result<Tensor> {
    let node = call.node;
    let float = |name, default| node.float(name, default);
    // `x` where it is positive, else `other`; the derivative at 0 is that of `other`.
    let positive_or = |other: Tensor| nn::relu(x)? + other;
    let negative = || nn::relu(&x.neg()?)?.neg();
    match node.op.as_str() {
        "Relu" => nn::relu(x),
        "LeakyRelu" => nn::leaky_relu(x, float("alpha", 0.01)),
        "Sigmoid" => nn::sigmoid(x),
        "Tanh" => x.tanh(),
        "Elu" => positive_or(((negative()?.exp()? - 1.)? * float("alpha", 1.))?),
        "Selu" => {
            let alpha = float("alpha", 1.673_263_192_176_818_8);
            positive_or(((negative()?.exp()? - 1.)? * alpha)?)? * float("gamma", 1.050_701_022_148_132_3)
        }
        "HardSigmoid" => hard_sigmoid(x, float("alpha", 0.2), float("beta", 0.5)),
        "HardSwish" => x * hard_sigmoid(x, 1. / 6., 0.5)?,
        // log(1 + e^x) without e^x of a large x.
        "Softplus" => nn::relu(x)? + (x.abs()?.neg()?.exp()? + 1.)?.log()?,
        "Gelu" => match node.text("approximate", "none") {
            "tanh" => x.gelu(),
            _ => x.gelu_erf(),
        },
        "Erf" => x.erf(),
        "Exp" => x.exp(),
        "Log" => x.log(),
        "Sqrt" => x.sqrt(),
        "Abs" => x.abs(),
        "Neg" => x.neg(),
        "Reciprocal" => x.recip(),
        // Steps: their derivative is 0 wherever there is one.
        "Floor" => x.detach().floor(),
        "Ceil" => x.detach().ceil(),
        "Clip" => clip(call, x),
        other => bail!("no operator {other} here"),
    }
}

fn hard_sigmoid(x: &Tensor, alpha: f64, beta: f64) -> Result<Tensor> {
    nn::clamp(&x.affine(alpha, beta)?, 0., 1.)
}

fn clip(call: &Call, x: &Tensor) -> Result<Tensor> {
    let bound = |i: usize, name: &str, default: f64| match call.numbers(i)? {
        Some(values) => values.first().copied().map_or_else(|| bail!("an empty bound"), Ok),
        None => Ok(call.node.float(name, default)),
    };
    nn::clamp(x, bound(1, "min", f64::NEG_INFINITY)?, bound(2, "max", f64::INFINITY)?)
}

/// Functions of two tensors or more, of shapes that broadcast.
pub fn binary(call: &Call) -> Result<Tensor> {
    let inputs = call.inputs();
    let Some((first, rest)) = inputs.split_first() else {
        bail!("an operator without inputs")
    };
    let mut y = (*first).clone();
    for other in rest {
        y = pair(call, &y, &aligned(call, &y, other)?)?;
    }
    Ok(y)
}

/// Before opset 7 the second operand's axes could be set beside any of the first's.
fn aligned(call: &Call, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if call.node.opset >= 7 || call.node.int("broadcast", 0) == 0 || b.rank() == 0 {
        return Ok(b.clone());
    }
    let first = axis(call.node.int("axis", a.rank() as i64 - b.rank() as i64), a.rank())?;
    let mut dims = b.dims().to_vec();
    dims.resize(a.rank().saturating_sub(first).max(b.rank()), 1);
    b.reshape(dims)
}

fn pair(call: &Call, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // What was computed from shapes is wider than the network's numbers.
    let (a, b) = match (a.dtype(), b.dtype()) {
        (one, other) if one == other => (a.clone(), b.clone()),
        (one, _) if a.track_op() => (a.clone(), b.to_dtype(one)?),
        (_, other) => (a.to_dtype(other)?, b.clone()),
    };
    let b = if call.node.op == "PRelu" {
        channelwise(&a, &b)?
    } else {
        b
    };
    let (a, b) = (&a, &b);
    call.room_for_both(a, b)?;
    if !a.dtype().is_float() {
        return whole(call.node.op.as_str(), a, b);
    }
    match call.node.op.as_str() {
        "Add" | "Sum" => a.broadcast_add(b),
        "Sub" => a.broadcast_sub(b),
        "Mul" => a.broadcast_mul(b),
        "Div" => a.broadcast_div(b),
        "Min" => a.broadcast_minimum(b),
        "Max" => a.broadcast_maximum(b),
        "Pow" => power(a, b),
        "PRelu" => nn::relu(a)? - nn::relu(&a.neg()?)?.broadcast_mul(b)?,
        other => bail!("no operator {other} here"),
    }
}

/// Of whole numbers, as they are computed from shapes.
fn whole(op: &str, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let f = match op {
        "Add" | "Sum" => i64::checked_add,
        "Sub" => i64::checked_sub,
        "Mul" => i64::checked_mul,
        "Div" => i64::checked_div,
        "Min" => |a: i64, b: i64| Some(a.min(b)),
        "Max" => |a: i64, b: i64| Some(a.max(b)),
        "Pow" => |a: i64, b: i64| a.checked_pow(u32::try_from(b).ok()?),
        other => bail!("no operator {other} of whole numbers here"),
    };
    let shape = a.shape().broadcast_shape_binary_op(b.shape(), "broadcast")?;
    let numbers = |x: &Tensor| x.broadcast_as(&shape)?.flatten_all()?.to_vec1::<i64>();
    let pairs = numbers(a)?.into_iter().zip(numbers(b)?);
    let results = pairs.map(|(a, b)| match f(a, b) {
        Some(y) => Ok(y),
        None => bail!("{op} of {a} and {b} is no whole number of 64 bits: the file is damaged"),
    });
    Tensor::from_vec(results.collect::<Result<Vec<i64>>>()?, &shape, a.device())
}

/// Old files give the slopes `[C]` of an input `[N, C, ...]`.
fn channelwise(x: &Tensor, slope: &Tensor) -> Result<Tensor> {
    let beside_last = x.dims().last() == slope.dims().last();
    if x.rank() > 2 && slope.rank() == 1 && !beside_last {
        let mut dims = vec![1; x.rank() - 1];
        dims[0] = slope.dims()[0];
        return slope.reshape(dims);
    }
    Ok(slope.clone())
}

/// A power of one exponent is right for negative bases, too, where it is whole.
fn power(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if b.elem_count() == 1 && !b.track_op() {
        let exponent = b.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?[0];
        return match exponent {
            1. => Ok(a.clone()),
            2. => a.sqr(),
            _ => a.powf(exponent),
        };
    }
    // e^{b log a}: defined for positive bases.
    let b = b.to_dtype(a.dtype())?;
    a.log()?.broadcast_mul(&b)?.exp()
}

/// `Where`: the second input where the first is true, else the third.
pub fn choose(call: &Call) -> Result<Tensor> {
    let (condition, a, b) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let shape = (condition.shape().broadcast_shape_binary_op(a.shape(), "where")?)
        .broadcast_shape_binary_op(b.shape(), "where")?;
    call.room(shape.dims())?;
    let to = |x: &Tensor| x.broadcast_as(&shape)?.contiguous();
    to(&condition.ne(&condition.zeros_like()?)?)?.where_cond(&to(a)?, &to(b)?)
}

/// `Equal`, as 0 and 1.
pub fn equal(call: &Call) -> Result<Tensor> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    call.room_for_both(a, b)?;
    a.detach().broadcast_eq(&b.detach())?.to_dtype(DType::I64)
}

/// `alpha A' B' + beta C`.
pub fn gemm(call: &Call) -> Result<Tensor> {
    let node = call.node;
    let turned = |i: usize, name| match node.int(name, 0) {
        0 => call.input(i).cloned(),
        _ => call.input(i)?.t(),
    };
    let (a, b) = (turned(0, "transA")?, turned(1, "transB")?);
    let scaled = |x: Tensor, by: f64| if by == 1. { Ok(x) } else { x * by };
    let y = scaled(matmul(call, &a, &b)?, node.float("alpha", 1.))?;
    match call.optional(2) {
        None => Ok(y),
        Some(c) => {
            call.room_for_both(&y, c)?;
            y.broadcast_add(&scaled(c.clone(), node.float("beta", 1.))?)
        }
    }
}

/// Products of matrices as numpy has them.
pub fn matmul(call: &Call, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (a.rank() == 1, b.rank() == 1);
    let a = if rows { a.unsqueeze(0)? } else { a.clone() };
    let b = if columns { b.unsqueeze(1)? } else { b.clone() };
    room_for_product(call, &a, &b)?;
    let mut y = match (a.rank(), b.rank()) {
        (2, 2) => a.contiguous()?.matmul(&b.contiguous()?)?,
        _ => a.contiguous()?.broadcast_matmul(&b.contiguous()?)?,
    };
    if columns {
        y = y.squeeze(D::Minus1)?;
    }
    if rows {
        y = y.squeeze(if columns { D::Minus1 } else { D::Minus2 })?;
    }
    Ok(y)
}

/// Matrices along all other axes, which broadcast: candle repeats both operands to these.
pub fn room_for_product(call: &Call, a: &Tensor, b: &Tensor) -> Result<()> {
    let ([batch_a @ .., m, k], [batch_b @ .., _, n]) = (a.dims(), b.dims()) else {
        bail!("a product of {:?} and {:?}: these are no matrices", a.dims(), b.dims())
    };
    let batch = Shape::from(batch_a).broadcast_shape_binary_op(&Shape::from(batch_b), "matmul")?;
    let with = |sizes: &[usize]| [batch.dims(), sizes].concat();
    for sizes in [[*m, *k], [*k, *n], [*m, *n]] {
        call.room(&with(&sizes))?;
    }
    call.product(&with(&[*m, *k, *n]))
}

/// Mean, sum or maximum along axes.
pub fn reduce(call: &Call) -> Result<Tensor> {
    as_floats(call.input(0)?, |x| reduced(call, x))
}

fn reduced(call: &Call, x: &Tensor) -> Result<Tensor> {
    let node = call.node;
    let axes = match call.whole_or(1, "axes")? {
        Some(axes) if !axes.is_empty() => axes.iter().map(|a| axis(*a, x.rank())).collect::<Result<_>>()?,
        _ if node.int("noop_with_empty_axes", 0) != 0 => return Ok(x.clone()),
        _ => (0..x.rank()).collect::<Vec<usize>>(),
    };
    let keep = node.int("keepdims", 1) != 0;
    match (node.op.as_str(), keep) {
        ("ReduceMean", true) => x.mean_keepdim(axes),
        ("ReduceMean", false) => x.mean(axes),
        ("ReduceSum", true) => x.sum_keepdim(axes),
        ("ReduceSum", false) => x.sum(axes),
        (_, keep) => {
            let mut axes = axes;
            axes.sort_unstable();
            let mut y = x.clone();
            for axis in axes.into_iter().rev() {
                y = y.max_keepdim(axis)?;
                if !keep {
                    y = y.squeeze(axis)?;
                }
            }
            Ok(y)
        }
    }
}

/// A function of rows along an axis. Before opset 13 all axes from that one on were one row.
pub fn over_axis(call: &Call, f: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (node, x) = (call.node, call.input(0)?);
    if node.opset < 13 {
        let at = axis(node.int("axis", 1), x.rank())?;
        let rows: usize = x.dims()[..at].iter().product();
        return f(&x.reshape((rows, x.elem_count() / rows.max(1)))?)?.reshape(x.shape());
    }
    let (at, last) = (axis(node.int("axis", -1), x.rank())?, x.rank().saturating_sub(1));
    f(&x.transpose(at, last)?.contiguous()?)?
        .transpose(at, last)?
        .contiguous()
}
