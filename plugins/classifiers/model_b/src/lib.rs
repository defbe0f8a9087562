//! Classifier B of the AdvAE paper as a plugin.
