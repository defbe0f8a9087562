use super::*;
use advae_abi::{CallCtx, CallPhase, Dims};

#[test]
fn it_keeps_as_many_levels_as_the_bits_make() {
    let model = new_model(r#"{"config": {"bits": 2}, "weights": "default", "device": "cpu"}"#.into());
    let model = model.into_result().unwrap();
    let (ids, dims, image) = ([0], Dims::new(&[1, 1, 1, 4]), [0., 0.2, 0.49, 0.9]);
    let ctx = CallCtx::new(0, CallPhase::Score, &ids);
    let y = model
        .forward(ctx.lend(&ids), AbiTensorRef::from_slice(&image, &dims))
        .into_result()
        .unwrap();
    assert_eq!(y.view().to_vec::<f32>().unwrap(), [0., 1. / 3., 1. / 3., 1.]);
}

#[test]
fn a_setting_out_of_its_range_is_refused() {
    let refused = new_model(r#"{"config": {"bits": 9}, "weights": "default", "device": "cpu"}"#.into());
    assert!(refused.into_result().err().unwrap().to_string().contains("'bits' is 9"));
}
