use super::*;
use crate::testing::Testbed;
use crate::{Attack, AttackInfo, NoSettings, Oracle, Perturbed};
use advae_abi::info::Construct;
use candle_core::{Context, Var};

const CODES: [ErrorCode; 8] = [
    ErrorCode::Config,
    ErrorCode::Compute,
    ErrorCode::Shape,
    ErrorCode::Device,
    ErrorCode::Unsupported,
    ErrorCode::Denied,
    ErrorCode::Cancelled,
    ErrorCode::Panic,
];

/// An author's own error around another one.
#[derive(Debug)]
struct Own(Error);

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "own")
    }
}

impl std::error::Error for Own {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

fn vector(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn an_error_keeps_its_code_through_the_authors_code() {
    let wrapped = |make: &dyn Fn() -> Error| -> [Error; 6] {
        let backtrace = |inner| Error::WithBacktrace {
            inner: Box::new(inner),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        [
            make(),
            make().context("while it attacked"),
            Err::<(), _>(make()).context("while it attacked").unwrap_err(),
            make().with_path("weights.safetensors"),
            backtrace(make().context("inner").context("outer")),
            Err::<(), _>(Own(make())).context("while it attacked").unwrap_err(),
        ]
    };
    for code in CODES {
        for error in wrapped(&|| to_candle(AbiError::new(code, "no more queries"))) {
            let back = to_abi(error);
            assert!(back.is(code), "{code:?} became {}: {back}", back.code);
            assert!(back.to_string().contains("no more queries"), "{back}");
        }
    }
}

#[test]
fn an_error_prints_as_it_was_written() {
    let mut error = AbiError::new(ErrorCode::Denied, "no gradients");
    error.chain.push("ask for logits".into());
    assert_eq!(to_candle(error.clone()).to_string(), "no gradients: ask for logits");
    let back = to_abi(to_candle(error).context("step 3"));
    assert_eq!(back.to_string(), "step 3: no gradients: ask for logits");
}

#[test]
fn a_text_that_says_denied_is_no_denial() {
    let error = to_abi(Error::msg("denied: too few images"));
    assert!(error.is(ErrorCode::Compute));
    assert_eq!(error.to_string(), "denied: too few images");
    let missing = std::fs::read("/no/such/file").unwrap_err();
    assert!(to_abi(missing.into()).is(ErrorCode::Compute));
}

struct Asks;

impl Attack for Asks {
    type Settings = NoSettings;

    fn new(_: NoSettings) -> Result<Self> {
        Ok(Self)
    }

    fn info(&self) -> AttackInfo {
        panic!("no information")
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let loss = |logits: &Tensor| advae_nn::cross_entropy(logits, y);
        Ok(oracle.gradient(x, loss).context("in the first step")?.x.into())
    }
}

/// What the host gets of an attack on this target.
fn perturb(target: &Testbed, ctx: CtxRef<'_>, x: &Tensor) -> AbiError {
    use advae_abi::AbiOracle_TO;
    use advae_abi::abi_stable::sabi_trait::TD_Opaque;
    let attack = crate::attack::boxed::<Asks>(&Construct::default()).unwrap();
    let oracle = AbiOracle_TO::from_value(target.clone(), TD_Opaque);
    let (x, y) = (export(x).unwrap(), AbiTensor::from_vec(vec![0i64], &[1]).unwrap());
    attack
        .perturb(ctx, &oracle, x.view(), y.view())
        .into_result()
        .err()
        .unwrap()
}

#[test]
fn what_the_oracle_answers_reaches_the_host_with_its_code() {
    let image = vector(&[0.5]).reshape((1, 1, 1, 1)).unwrap();
    let ids = [7];
    let ctx = CallCtx::new(1, CallPhase::Craft, &ids);
    let stops = |code| Testbed::new([1, 1, 1], 2, move |_, _| Err(to_candle(AbiError::new(code, "stop"))));
    for code in CODES {
        let error = perturb(&stops(code), ctx.lend(&ids), &image);
        assert!(error.is(code), "{code:?} became {}: {error}", error.code);
        assert!(error.to_string().contains("stop"), "{error}");
    }
    let denied = perturb(&stops(ErrorCode::Compute).without_gradients(), ctx.lend(&ids), &image);
    assert!(denied.is(ErrorCode::Denied), "{denied}");
    let wide = vector(&[0.5, 0.5]).reshape((1, 1, 1, 2)).unwrap();
    let error = perturb(&stops(ErrorCode::Compute), ctx.lend(&ids), &wide);
    assert!(
        error.is(ErrorCode::Shape) && error.to_string().contains("[N,1,1,1], not [1, 1, 1, 2]"),
        "{error}"
    );
}

#[test]
fn a_call_without_a_context_is_an_error_and_not_a_crash() {
    // SAFETY: a borrowed context is a pointer and nothing else, and null is what foreign code may hand over.
    let null = unsafe { std::mem::transmute::<*const CallCtx, CtxRef<'_>>(std::ptr::null()) };
    let target = Testbed::new([1, 1, 1], 2, |_, x| Ok(x.clone()));
    let error = perturb(&target, null, &vector(&[0.5]).reshape((1, 1, 1, 1)).unwrap());
    assert!(error.is(ErrorCode::Shape), "{error}");
}

#[test]
fn an_authors_description_that_panics_is_an_error_and_not_a_crash() {
    let attack = crate::attack::boxed::<Asks>(&Construct::default()).unwrap();
    let error = attack.info().into_result().unwrap_err();
    assert!(
        error.is(ErrorCode::Panic) && error.to_string().contains("no information"),
        "{error}"
    );
}

#[test]
fn what_was_handed_over_does_not_change_with_the_tensor() {
    let variable = Var::from_tensor(&vector(&[1., 2.])).unwrap();
    // As parameters give their values in an evaluation.
    let exported = export(&variable.as_detached_tensor()).unwrap();
    variable.set(&vector(&[8., 9.])).unwrap();
    assert_eq!(exported.view().as_slice::<f32>().unwrap(), [1., 2.]);
    assert!(exported.is_read_only());
}

#[test]
fn a_tensor_crosses_in_row_major_order() {
    let matrix = vector(&[1., 2., 3., 4., 5., 6.]).reshape((2, 3)).unwrap();
    for (tensor, expected) in [
        (matrix.t().unwrap(), [1., 4., 2., 5., 3., 6.]),
        (matrix.reshape((3, 2)).unwrap(), [1., 2., 3., 4., 5., 6.]),
    ] {
        let exported = export(&tensor).unwrap();
        assert_eq!(exported.view().shape().unwrap(), [3, 2]);
        assert_eq!(exported.view().as_slice::<f32>().unwrap(), expected);
        let lent = lend(&tensor, |view| view.to_vec::<f32>().into());
        assert_eq!(lent.unwrap(), expected);
    }
    let row = matrix.get(1).unwrap();
    assert_eq!(lend(&row, |view| view.to_vec::<f32>().into()).unwrap(), [4., 5., 6.]);
}

#[test]
fn a_lent_tensor_is_not_written_to_before_the_call_is_over() {
    let variable = Var::from_tensor(&vector(&[1., 2.])).unwrap();
    std::thread::scope(|scope| {
        let seen = lend(variable.as_tensor(), |view| {
            scope.spawn(|| variable.set(&vector(&[8., 9.])).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            view.to_vec::<f32>().into()
        });
        assert_eq!(seen.unwrap(), [1., 2.]);
    });
    assert_eq!(variable.to_vec1::<f32>().unwrap(), [8., 9.]);
}

#[test]
fn what_may_not_cross_is_refused_with_its_type_or_rank() {
    let half = vector(&[1.]).to_dtype(DType::F64).unwrap();
    let nine = vector(&[1.]).reshape(vec![1; 9]).unwrap();
    for (tensor, word) in [(&half, "F64"), (&nine, "dimensions")] {
        let lent = lend::<()>(tensor, |_| panic!("it was lent")).unwrap_err();
        for error in [to_abi(lent), to_abi(export(tensor).err().unwrap())] {
            assert!(
                error.is(ErrorCode::Shape) && error.to_string().contains(word),
                "{error}"
            );
        }
    }
}
