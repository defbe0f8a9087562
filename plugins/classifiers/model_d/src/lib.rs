//! Classifier D of the AdvAE paper as a plugin.
