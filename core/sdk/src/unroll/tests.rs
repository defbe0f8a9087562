use super::*;
use advae_abi::{AbiError, ErrorCode};
use advae_nn::{GradcheckOptions, Pass, gradcheck};
use candle_core::{DType, Device};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn random(shape: &[usize], stream: u64) -> Tensor {
    Pass::eval()
        .randn_like(&Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap(), stream)
        .unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let largest = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    largest((a - b).unwrap()) / largest(b.clone()).max(1.)
}

fn pulled_back(x: &Var, y: &Tensor, cotangent: &Tensor) -> Tensor {
    vjp(x.as_tensor(), y, cotangent).unwrap().0.unwrap()
}

/// Depends on its number, its state `[N,4]` and `x` `[N,1,2,3]`.
fn step(weights: &Tensor) -> impl Fn(usize, &Tensor, &Tensor) -> Result<Tensor> + Clone + Send + Sync + 'static {
    let weights = weights.clone();
    move |i, state, x| {
        let x = x.flatten_from(1)?;
        let pushed = x.matmul(&weights)?.affine(0.3, 0.1 * i as f64)?;
        ((state * 1.3)? + pushed.sin()?)?.tanh()? + state.sqr()?.affine(-0.2, 0.)?
    }
}

type Way<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;

/// An iteration within a graph: image and first state are computed from `v` `[N,1,2,3]`, and what comes out goes on with both.
fn within(v: &Tensor, iterate: Way<'_>) -> Result<Tensor> {
    let x = v.sqr()?.affine(0.5, -0.2)?;
    let state = (x.flatten_from(1)?.narrow(1, 1, 4)? * v.flatten_from(1)?.narrow(1, 0, 4)?)?;
    let end = iterate(&x, &state)?;
    (end.sqr()? * state)?.broadcast_add(&x.flatten_from(1)?.narrow(1, 5, 1)?)
}

#[test]
fn the_gradient_is_that_of_the_whole_graph() {
    let (weights, v) = (random(&[6, 4], 1), Var::from_tensor(&random(&[3, 1, 2, 3], 2)).unwrap());
    let cotangent = random(&[3, 4], 3);
    for steps in [0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 31] {
        let whole =
            |x: &Tensor, state: &Tensor| (0..steps).try_fold(state.clone(), |state, i| step(&weights)(i, &state, x));
        let expected = within(v.as_tensor(), &whole).unwrap();
        let gradient = pulled_back(&v, &expected, &cotangent);
        let compare = |way: Way<'_>, name: &str| {
            let y = within(v.as_tensor(), way).unwrap();
            assert_eq!(apart(&y, &expected), 0., "{name}, {steps} steps");
            for _ in 0..2 {
                let error = apart(&pulled_back(&v, &y, &cotangent), &gradient);
                assert!(error < 1e-12, "{name}, {steps} steps: {error:e}");
            }
        };
        compare(&|x, state| unrolled(x, state, steps, step(&weights)), "unrolled");
        for segment in [1, 3, 4, steps.max(1), steps + 5, usize::MAX] {
            let way = |x: &Tensor, state: &Tensor| unrolled_by(x, state, steps, segment, step(&weights));
            compare(&way, &format!("segments of {segment}"));
        }
    }
}

#[test]
fn the_gradient_agrees_with_differences() {
    let (weights, v) = (random(&[6, 4], 1), random(&[3, 1, 2, 3], 2));
    for steps in [1, 6, 10] {
        let iterate = |x: &Tensor, state: &Tensor| unrolled(x, state, steps, step(&weights));
        let report = gradcheck(|v| within(v, &iterate), &v, &GradcheckOptions::default()).unwrap();
        assert!(report.max_relative_error < 1e-6, "{steps} steps: {report:?}");
    }
}

#[test]
fn image_and_state_have_a_gradient_each_if_the_end_depends_on_them() {
    let [x, state] = [random(&[2, 3], 1), random(&[2, 3], 2)].map(|t| Var::from_tensor(&t).unwrap());
    let gradients = |step: fn(usize, &Tensor, &Tensor) -> Result<Tensor>| {
        let y = unrolled(x.as_tensor(), state.as_tensor(), 5, step).unwrap();
        let all = y.sum_all().unwrap().backward().unwrap();
        [&x, &state].map(|v| {
            all.get(v.as_tensor())
                .unwrap()
                .mean_all()
                .unwrap()
                .to_scalar::<f64>()
                .unwrap()
        })
    };
    assert_eq!(gradients(|_, state, x| (state * 0.5)? + x), [1.9375, 0.03125]);
    assert_eq!(
        gradients(|_, state, _| state * 2.),
        [0., 32.],
        "DiffPure's steps do not read the image"
    );
    assert_eq!(gradients(|_, _, x| x * 3.), [3., 0.]);
    assert_eq!(gradients(|_, state, _| Ok(state.clone())), [0., 1.]);
    assert_eq!(
        gradients(|i, state, x| Ok(if i < 3 { x } else { state }.clone())),
        [1., 0.]
    );
    assert_eq!(gradients(|_, state, _| state.zeros_like()), [0., 0.]);
    // One of the two may be a constant.
    let constant = random(&[2, 3], 3);
    let y = unrolled(&constant, state.as_tensor(), 4, |_, state, x| state * x).unwrap();
    let error = apart(
        &pulled_back(&state, &y, &y.ones_like().unwrap()),
        &constant.powf(4.).unwrap(),
    );
    assert!(error < 1e-12, "{error}");
    let y = unrolled(&constant, &constant, 4, |_, state, x| state * x).unwrap();
    assert!(!y.track_op());
}

/// How many steps were computed, and how many graphs of steps live, now and at most.
#[derive(Default)]
struct Count {
    calls: AtomicUsize,
    live: AtomicUsize,
    most: AtomicUsize,
}

/// Lives as long as the node of the graph that holds it.
struct Node(Arc<Count>);

impl Drop for Node {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, SeqCst);
    }
}

impl Count {
    fn node(self: &Arc<Self>) -> Node {
        self.most.fetch_max(1 + self.live.fetch_add(1, SeqCst), SeqCst);
        Node(self.clone())
    }
}

fn counted(count: &Arc<Count>) -> impl Fn(usize, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static {
    let count = count.clone();
    move |_, state, x| {
        count.calls.fetch_add(1, SeqCst);
        let node = count.node();
        let next = (state.detach() + x.detach())?;
        custom_vjp(&(state + x)?, &next, move |cotangent| {
            assert!(node.0.live.load(SeqCst) > 0);
            Ok(cotangent.clone())
        })
    }
}

#[test]
fn steps_are_computed_twice_and_one_segments_graph_lives_at_a_time() {
    let x = Var::from_tensor(&random(&[2, 3], 1)).unwrap();
    for (steps, segment, live) in [
        (1, None, 1),
        (10, None, 4),
        (100, None, 10),
        (100, Some(1), 1),
        (101, Some(7), 7),
    ] {
        let count = Arc::new(Count::default());
        let start = (x.as_tensor() * 2.).unwrap();
        let y = match segment {
            None => unrolled(x.as_tensor(), &start, steps, counted(&count)),
            Some(segment) => unrolled_by(x.as_tensor(), &start, steps, segment, counted(&count)),
        };
        let y = y.unwrap();
        let seen = |of: &AtomicUsize| of.load(SeqCst);
        assert_eq!(
            (seen(&count.calls), seen(&count.live), seen(&count.most)),
            (steps, 0, 1),
            "forward"
        );
        for times in 1..3 {
            let gradient = pulled_back(&x, &y, &y.ones_like().unwrap());
            assert_eq!(
                apart(
                    &gradient,
                    &(gradient.ones_like().unwrap() * (2 + steps) as f64).unwrap()
                ),
                0.
            );
            assert_eq!(seen(&count.calls), steps * (1 + times));
            assert_eq!((seen(&count.live), seen(&count.most)), (0, live), "{steps} steps");
        }
    }
    // What the graph of all steps comes to.
    let count = Arc::new(Count::default());
    let step = counted(&count);
    let y = (0..100).try_fold(x.as_tensor().clone(), |state, i| step(i, &state, x.as_tensor()));
    assert_eq!(count.live.load(SeqCst), 100);
    drop(y);
    assert_eq!(count.live.load(SeqCst), 0);
}

#[test]
fn as_many_states_are_kept_as_there_are_segments() {
    let x = random(&[2, 3], 1);
    for (steps, segment, kept) in [(1, 1, 2), (100, 10, 11), (101, 11, 11), (7, 3, 4), (7, usize::MAX, 2)] {
        let iteration = Iteration {
            steps,
            segment,
            step: |_, state: &Tensor, x: &Tensor| state + x,
        };
        assert_eq!(iteration.checkpoints(&x, &x).unwrap().len(), kept);
    }
}

#[test]
fn random_steps_draw_the_same_numbers_in_the_backward_pass() {
    let (pass, v) = (Pass::eval().with_seed(5).with_ids([7, 3]), random(&[2, 3], 1));
    let noisy = |pass: &Pass| {
        let pass = pass.clone();
        move |i: usize, state: &Tensor, x: &Tensor| {
            let noise = pass.randn_like(state, i as u64)?;
            (state * noise.affine(0.1, 0.9)?)? + (x * 0.1)?
        }
    };
    let run = |v: &Tensor| unrolled(v, v, 10, noisy(&pass));
    let report = gradcheck(run, &v, &GradcheckOptions::default()).unwrap();
    assert!(report.max_relative_error < 1e-8, "{report:?}");

    let v = Var::from_tensor(&v).unwrap();
    let y = unrolled(v.as_tensor(), v.as_tensor(), 10, |_, state, _| {
        state + state.rand_like(0., 1.)?
    })
    .unwrap();
    let error = vjp(v.as_tensor(), &y, &y).unwrap_err().to_string();
    let said = "steps 8 to 9 gave another state when they were computed again";
    assert!(error.contains(said) && error.contains("Pass::rng"), "{error}");
}

#[test]
fn parameters_that_a_step_reads_get_their_gradients() {
    let parameter = Var::from_tensor(&random(&[3], 1)).unwrap();
    let step = {
        let parameter = parameter.clone();
        move |i: usize, state: &Tensor, x: &Tensor| match i {
            2 => state.broadcast_mul(parameter.as_tensor())? + x,
            _ => state + x,
        }
    };
    let start = random(&[2, 3], 2);
    let x = Var::from_tensor(&start).unwrap();
    for x in [x.as_tensor(), &start] {
        let y = unrolled(x, x, 5, step.clone()).unwrap();
        let gradient = pulled_back(&parameter, &y, &y.ones_like().unwrap());
        assert!(apart(&gradient, &(start.sum(0).unwrap() * 3.).unwrap()) < 1e-12);
    }
    let y = unrolled(x.as_tensor(), x.as_tensor(), 5, step).unwrap();
    let gradient = pulled_back(&x, &y, &y.ones_like().unwrap());
    let expected = (parameter.as_detached_tensor() * 3.)
        .unwrap()
        .broadcast_as((2, 3))
        .unwrap();
    assert!(apart(&gradient, &(expected + 3.).unwrap()) < 1e-12);
}

#[test]
fn an_iteration_may_run_within_a_step() {
    let v = random(&[2, 3], 1);
    let outer = |_: usize, state: &Tensor, x: &Tensor| unrolled(x, state, 3, |_, s, x| (s.sin()? + (x * 0.3)?)?.tanh());
    let report = gradcheck(|v| unrolled(v, v, 4, outer), &v, &GradcheckOptions::default()).unwrap();
    assert!(report.max_relative_error < 1e-8, "{report:?}");
}

#[test]
fn errors_name_the_step_and_keep_their_code() {
    let x = Var::from_tensor(&random(&[2, 3], 1)).unwrap();
    let failing = |i: usize, state: &Tensor, _: &Tensor| match i {
        4 => Err(crate::convert::to_candle(AbiError::new(ErrorCode::Cancelled, "enough"))),
        _ => Ok(state.clone()),
    };
    let error = crate::convert::to_abi(unrolled(x.as_tensor(), x.as_tensor(), 9, failing).unwrap_err());
    assert_eq!(error.code, ErrorCode::Cancelled as u32);
    assert!(error.to_string().contains("step 4 of 9"), "{error}");

    let said = |error: candle_core::Error, said: &str| assert!(error.to_string().contains(said), "{error}");
    let same = |_: usize, state: &Tensor, _: &Tensor| Ok(state.clone());
    said(
        unrolled_by(x.as_tensor(), x.as_tensor(), 9, 0, same).unwrap_err(),
        "segment is 0: choose a value from 1",
    );
    let narrow = x.as_tensor().to_dtype(DType::F32).unwrap();
    said(
        unrolled(x.as_tensor(), &narrow, 9, same).unwrap_err(),
        "x is F64 on Cpu, what is iterated F32 on Cpu: bring both to one type and device",
    );
}

#[test]
fn numbers_that_are_none_go_through() {
    let x = Var::from_tensor(&random(&[1, 3], 1).abs().unwrap()).unwrap();
    let y = unrolled(x.as_tensor(), x.as_tensor(), 4, |_, state, x| {
        (state - x)?.log()? * state
    })
    .unwrap();
    let gradient = pulled_back(&x, &y, &y.ones_like().unwrap()).to_vec2::<f64>().unwrap();
    assert!(gradient[0].iter().all(|g| !g.is_finite()), "{gradient:?}");
}
