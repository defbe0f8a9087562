use crate::{Transfer, TransferSettings};
use advae_sdk::candle_core::Device;
use advae_sdk::prelude::*;
use advae_sdk::testing::Testbed;

const INPUT: [usize; 3] = [1, 2, 2];

fn images(pixels: &[f32]) -> Tensor {
    Tensor::from_vec(pixels.to_vec(), (pixels.len() / 4, 1, 2, 2), &Device::Cpu).unwrap()
}

/// A file of arrays in a folder that lives as long as the test's process.
fn file(name: &str, arrays: &[(&str, &Tensor)]) -> String {
    let path = std::env::temp_dir().join(format!("advae-transfer-{}-{name}.npz", std::process::id()));
    Tensor::write_npz(arrays, &path).unwrap();
    path.display().to_string()
}

fn of(file: &str) -> Result<Transfer> {
    Transfer::new(TransferSettings {
        file: InputFile::at(file),
        ..Default::default()
    })
}

#[test]
fn a_clean_image_is_answered_by_the_adversarial_one_beside_it() {
    let clean = images(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]);
    let adversarial = (&clean + 0.1).unwrap();
    let file = file("pairs", &[("x", &clean), ("x_adv", &adversarial)]);
    let target = Testbed::mlp(INPUT, 4, 3, 1).unwrap();
    // In another order, and one that the file does not have.
    let x = images(&[0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4]);
    let transfer = of(&file).unwrap();
    let out = target.attack(&transfer, &[7, 8, 9], &x, &[0, 1, 2]).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(out.found, Some(vec![true, false, true]));
    let moved = (&out.x_adv - &x)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let expected = [0.1f32, 0., 0.1].map(|moved| [moved; 4]).concat();
    assert!(
        moved.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
        "{moved:?}"
    );
    assert_eq!((target.asked(), transfer.info().epsilon), (0, Some(0.3)));
}

#[test]
fn what_is_no_file_of_images_is_refused() {
    let clean = images(&[0.; 8]);
    let refused = |file: &str| of(file).err().unwrap().to_string();
    assert!(refused("").contains("file is empty: choose one, transfer:file=FILE.npz"));
    assert!(refused("/no/such.npz").contains("file '/no/such.npz' cannot be read as npz"));
    let alone = file("alone", &[("x", &clean)]);
    assert!(refused(&alone).contains("has no array 'x_adv'"));
    let fewer = file("fewer", &[("x", &clean), ("x_adv", &images(&[0.; 4]))]);
    assert!(refused(&fewer).contains("has 2 images x and 1 images x_adv"));
    let flat = file("flat", &[("x", &clean.flatten_all().unwrap()), ("x_adv", &clean)]);
    assert!(refused(&flat).contains("array 'x' of"));
    for file in [alone, fewer, flat] {
        std::fs::remove_file(file).unwrap();
    }
}
