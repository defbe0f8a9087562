//! ResNetV2-29 for CIFAR-10, the classifier of the AdvAE paper, as a plugin.

advae_sdk::export_plugin! {
    classifier: cifar10_models::ResNet29,
    weights: { "clean" => include_bytes!("../weights/clean.safetensors") },
}
