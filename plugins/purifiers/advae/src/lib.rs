//! AdvAE for MNIST: the paper's auto-encoder, adversarially trained in front of classifier X.

advae_sdk::export_plugin! {
    purifier: mnist_models::AutoEncoder,
    weights: { "default" => include_bytes!("../weights/default.safetensors") },
}
