//! Plugins as the host sees them: the only folder that names types of the contract's calls.

pub mod attack;
pub mod boundary;
pub mod construct;
pub mod device;
pub mod head;
pub mod info;
pub mod linear;
pub mod meter;
pub mod model;
pub mod on_device;
pub mod oracle;
pub mod pipeline;
pub mod tensor;
pub mod threat;
