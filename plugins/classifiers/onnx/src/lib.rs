//! Networks of ONNX files as a plugin: classifiers and purifiers, with gradients.

advae_sdk::export_plugin! {
    classifier: onnx_models::OnnxClassifier,
    purifier: onnx_models::OnnxPurifier,
}
