//! Classifier X of the AdvAE paper as a plugin.

advae_sdk::export_plugin! {
    classifier: mnist_models::ModelX,
    weights: { "clean" => include_bytes!("../weights/clean.safetensors") },
}
