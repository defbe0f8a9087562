//! Which build of the host this is.

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `git describe --always` said of the checkout that the host was built from, with `-dirty` where the sources of the host
/// differed from it; `unknown` where it was not built from its own checkout.
pub const COMMIT: &str = env!("ADVAE_COMMIT");

/// Both, as `--version` shows them.
pub const LINE: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("ADVAE_COMMIT"), ")");
