use super::*;
use advae_sdk::candle_core::Device;
use advae_sdk::testing::Testbed;

/// Logits (x, 0.5 - x) of one pixel: class 0 wins above 0.25.
#[test]
fn it_crosses_the_boundary_where_the_ball_reaches_it() {
    let target = Testbed::linear([1, 1, 1], &[vec![1.], vec![-1.]], &[0., 0.5]).unwrap();
    let x = Tensor::new(&[0.5f32, 0.9], &Device::Cpu)
        .unwrap()
        .reshape((2, 1, 1, 1))
        .unwrap();
    let attack = Noise::new(NoiseSettings {
        epsilon: 0.3,
        tries: 20,
    })
    .unwrap();
    let out = target.attack(&attack, &[1, 2], &x, &[0, 0]).unwrap().x_adv;
    let pixels: Vec<f32> = out.flatten_all().unwrap().to_vec1().unwrap();
    assert!((pixels[0] - 0.2).abs() < 1e-6, "{pixels:?}");
    assert_eq!(pixels[1], 0.9, "what it cannot reach it leaves alone");
}

#[test]
fn a_setting_out_of_its_range_is_refused() {
    assert!(Noise::new(NoiseSettings { epsilon: 2., tries: 1 }).is_err());
}
