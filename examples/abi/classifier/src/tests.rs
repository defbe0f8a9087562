use super::*;
use advae_abi::{CallCtx, CallPhase, Dims};

/// The gradient of a linear model is a row of its weights.
#[test]
fn its_gradient_is_that_of_its_forward_pass() {
    let model = Linear::new();
    let (ids, dims) = ([0], Dims::new(&[1, 1, 28, 28]));
    let ctx = CallCtx::new(0, CallPhase::Score, &ids);
    let logits = |image: &[f32]| {
        let y = model
            .forward(ctx.lend(&ids), AbiTensorRef::from_slice(image, &dims))
            .into_result()
            .unwrap();
        y.view().to_vec::<f32>().unwrap()
    };
    let image = vec![0.5; PIXELS];
    let taped = model
        .forward_tape(ctx.lend(&ids), AbiTensorRef::from_slice(&image, &dims))
        .into_result()
        .unwrap();
    let (cotangent, of_logits) = ([0., 0., 0., 1., 0., 0., 0., 0., 0., 0.], Dims::new(&[1, CLASSES]));
    let gradient = taped
        .tape
        .backward(ctx.lend(&ids), AbiTensorRef::from_slice(&cotangent, &of_logits));
    let gradient = gradient.into_result().unwrap().unwrap().view().to_vec::<f32>().unwrap();
    for pixel in [0, 300, 406] {
        let mut moved = image.clone();
        moved[pixel] += 0.25;
        let difference = (logits(&moved)[3] - logits(&image)[3]) / 0.25;
        assert!(
            (difference - gradient[pixel]).abs() < 1e-4,
            "{difference} {}",
            gradient[pixel]
        );
    }
}
