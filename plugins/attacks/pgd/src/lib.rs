//! The attack PGD as a plugin.
