//! Classifier C of the AdvAE paper as a plugin.
