//! Models written in Python as a plugin: classifiers and purifiers in a process of their own, with gradients.

advae_sdk::export_plugin! {
    classifier: python_models::PythonClassifier,
    purifier: python_models::PythonPurifier,
}
