//! The attack CW as a plugin.
