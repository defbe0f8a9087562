//! Classifier A of the AdvAE paper as a plugin.
