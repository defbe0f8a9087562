//! Exit codes.

/// A cell failed, an image was refused, or nothing could be run.
pub const EXIT_FAILED: i32 = 2;
/// The run was interrupted.
pub const EXIT_CANCELLED: i32 = 130;
