//! The attack FGSM as a plugin.
