//! Differentiable functions of tensors. On the CPU, in `f32` and `f64`, they run our kernels and carry
//! their own gradients; elsewhere they are composed of candle operators whose gradients are right.

mod activation;
pub(crate) mod adapter;
pub(crate) mod conv;
mod linear;
mod loss;
pub(crate) mod norm;
pub(crate) mod pool;

pub use activation::{clamp, leaky_relu, relu, sigmoid};
pub use adapter::with_composed_ops;
pub use conv::{Padding, conv_transpose2d, conv2d};
pub use linear::{flatten, linear};
pub use loss::{cross_entropy, log_odds_against, log_softmax, margin, softmax};
pub use pool::{avg_pool2d, global_avg_pool2d, max_pool2d, upsample_nearest2d};
