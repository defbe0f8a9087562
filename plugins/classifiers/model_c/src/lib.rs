//! Classifier C of the AdvAE paper as a plugin.

advae_sdk::export_plugin! {
    classifier: mnist_models::ModelC,
    weights: { "clean" => include_bytes!("../weights/clean.safetensors") },
}
