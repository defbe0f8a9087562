//! HGD (Liao et al. 2018) for CIFAR-10: the paper's U-net, trained on adversarial images of ResNetV2-29, crafted once, to give it the
//! logits of the clean ones.

advae_sdk::export_plugin! {
    purifier: cifar10_models::UNet,
}
