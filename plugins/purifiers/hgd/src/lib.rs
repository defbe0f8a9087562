//! HGD (Liao et al. 2018) for MNIST: the paper's auto-encoder, trained on adversarial images of classifier X, crafted once, to give
//! X the logits of the clean ones.

advae_sdk::export_plugin! {
    purifier: mnist_models::AutoEncoder,
    weights: { "default" => include_bytes!("../weights/default.safetensors") },
}
