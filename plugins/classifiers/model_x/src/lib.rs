//! Classifier X of the AdvAE paper as a plugin.
