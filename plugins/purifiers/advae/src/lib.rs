//! The adversarially trained auto-encoder as a plugin.
