//! Audited differentiable layers and CPU kernels for candle.
