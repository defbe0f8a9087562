//! Classifier A of the AdvAE paper as a plugin.

advae_sdk::export_plugin! {
    classifier: mnist_models::ModelA,
    weights: { "clean" => include_bytes!("../weights/clean.safetensors") },
}
