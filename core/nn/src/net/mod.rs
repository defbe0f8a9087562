//! Networks described as a graph of layers, so that they can be run as one.
//!
//! ```
//! use advae_nn::{Conv2d, Linear, Net, NetBuilder, Padding, Pass, Result, Tensor, Weights};
//!
//! fn small(weights: &Weights) -> Result<Net> {
//!     let mut net = NetBuilder::new([1, 28, 28]);
//!     let x = net.input();
//!     let x = net.conv2d(x, &Conv2d::new(&weights.pp("conv"), 1, 16, 3, 1, Padding::Same)?)?;
//!     let x = net.relu(x); // [16, 28, 28]
//!     let x = net.max_pool2d(x, 2)?; // [16, 14, 14]
//!     let x = net.linear(x, &Linear::new(&weights.pp("fc"), 16 * 14 * 14, 10)?)?;
//!     net.build(x)
//! }
//!
//! let net = small(&Weights::init(0)).unwrap();
//! let x = Tensor::zeros((2, 1, 28, 28), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
//! assert_eq!(net.forward(&Pass::eval(), &x).unwrap().dims(), [2, 10]);
//! ```
//!
//! In evaluation on the CPU the whole graph is one operator with one tape: maps stay in the kernels' own layout and, a
//! few images at a time, in cache; bias, batch norm, `relu`, pooling and upsampling happen to results still in
//! registers; the tape keeps a bit or an index for an element instead of the element; no weight gradient is computed. In training the
//! graph is cut at norms and dropouts, and the pieces between them run likewise, with gradients of weights. On a GPU, with feature
//! `cudnn`, evaluation is a replayed graph of cuDNN's convolutions and a few kernels of our own. On other devices, in training on a GPU
//! and inside [`with_composed_ops`](crate::with_composed_ops), the same graph runs layer by layer. All give the same values and
//! gradients within rounding.

mod builder;
mod compose;
#[cfg(any(test, feature = "cudnn"))]
#[cfg_attr(
    not(feature = "cudnn"),
    allow(dead_code, reason = "tests of the lowering run what needs no GPU")
)]
mod cuda;
mod draft;
mod exec;
mod graph;
mod network;
mod operators;
mod plan;
mod step;
mod train;

pub use builder::{NetBuilder, Node};
pub use network::Net;
