//! The threat model oblivious as a plugin.
