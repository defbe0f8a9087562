//! AdvAE for CIFAR-10: the paper's U-net, adversarially trained in front of ResNetV2-29.

advae_sdk::export_plugin! {
    purifier: cifar10_models::UNet,
}
