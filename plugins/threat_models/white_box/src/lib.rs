//! The threat model white_box as a plugin.
