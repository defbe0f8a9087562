//! The MNIST networks of the AdvAE paper, shared by the plugins.
