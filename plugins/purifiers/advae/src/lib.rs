//! AdvAE for MNIST: the paper's auto-encoder, adversarially trained in front of classifier X; `xab`: in front of X, A and B (Eq. 8);
//! `plus`: on twice the channels.

advae_sdk::export_plugin! {
    purifier: mnist_models::AutoEncoder,
    weights: {
        "default" => include_bytes!("../weights/default.safetensors"),
        "plus" => include_bytes!("../weights/plus.safetensors"),
        "xab" => include_bytes!("../weights/xab.safetensors"),
    },
}
