//! The CIFAR-10 networks of the AdvAE paper (Li et al. 2019): the classifier ResNetV2-29 and the purifying U-net. Every `.so` is a few
//! lines over one of them.

mod resnet;
mod unet;

pub use resnet::ResNet29;
pub use unet::{UNet, UNetSettings};

/// Shape of a CIFAR-10 image.
pub const INPUT: [usize; 3] = [3, 32, 32];
/// Number of classes.
pub const CLASSES: usize = 10;
