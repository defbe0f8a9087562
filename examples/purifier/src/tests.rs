use super::*;
use advae_sdk::candle_core::Device;

#[test]
fn one_bit_is_black_or_white() {
    let purifier = Squeezer::new(BitDepth { bits: 1 }, &Weights::init(0)).unwrap();
    let x = Tensor::new(&[0.1f32, 0.4, 0.6, 1.], &Device::Cpu)
        .unwrap()
        .reshape((1, 1, 2, 2))
        .unwrap();
    let y = purifier.purify(&Pass::eval(), &x).unwrap();
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 0., 1., 1.]);
}
