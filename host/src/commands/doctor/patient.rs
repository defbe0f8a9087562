//! Who is examined.

use crate::plugin::Plugin;
use advae_abi::info::{Construct, Kind};

/// A loaded plugin, and how it is to be constructed.
pub struct Patient {
    /// Its file.
    pub plugin: Plugin,
    /// The request that constructs it.
    pub request: Construct,
}

impl Patient {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.request.kind.unwrap_or(self.plugin.manifest.kind)
    }
}
