//! The purifier that changes nothing, as a plugin.
