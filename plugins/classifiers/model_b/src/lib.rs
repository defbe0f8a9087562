//! Classifier B of the AdvAE paper as a plugin.

advae_sdk::export_plugin! {
    classifier: mnist_models::ModelB,
    weights: { "clean" => include_bytes!("../weights/clean.safetensors") },
}
