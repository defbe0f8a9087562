//! Classifier X of the AdvAE paper as a plugin: clean-trained, and iteratively adversarially trained from there (`it_adv`).

advae_sdk::export_plugin! {
    classifier: mnist_models::ModelX,
    weights: {
        "clean" => include_bytes!("../weights/clean.safetensors"),
        "it_adv" => include_bytes!("../weights/it_adv.safetensors"),
    },
}
