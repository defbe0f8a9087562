//! The root of a plugin: what its shared library exports.

use crate::{AbiResult, AttackBox, ModelBox, ThreatModelBox};
use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RStr, RString};

/// The functions a plugin exports. Constructors of other kinds than the plugin's own answer with an error.
///
/// Requests cross as JSON: [`info::Construct`](crate::info::Construct).
///
/// # Errors
/// A constructor answers [`ErrorCode::Config`](crate::ErrorCode::Config) for settings and weights that do not fit,
/// [`ErrorCode::Device`](crate::ErrorCode::Device) for a device it does not run on, and
/// [`ErrorCode::Unsupported`](crate::ErrorCode::Unsupported) where the plugin is of another kind.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef)))]
#[sabi(missing_field(option))]
pub struct Root {
    /// A [`Description`](crate::info::Description) as JSON: the manifest and the settings with their defaults.
    pub describe: extern "C" fn() -> AbiResult<RString>,
    /// Constructs a classifier or a purifier.
    pub new_model: extern "C" fn(request: RStr<'_>) -> AbiResult<ModelBox>,
    /// Constructs an attack.
    pub new_attack: extern "C" fn(request: RStr<'_>) -> AbiResult<AttackBox>,
    /// Constructs a threat model.
    #[sabi(last_prefix_field)]
    pub new_threat_model: extern "C" fn(request: RStr<'_>) -> AbiResult<ThreatModelBox>,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}

    const BASE_NAME: &'static str = "advae_plugin";
    const NAME: &'static str = "advae_plugin";
    // The contract's version, not the crate's: abi_stable compares majors (and minors while the major is 0).
    const VERSION_STRINGS: VersionStrings = CONTRACT_VERSION;
}

const CONTRACT_VERSION: VersionStrings = {
    let mut version = package_version_strings!();
    version.version = RStr::from_str(crate::CONTRACT_VERSION_STRING);
    version
};

/// Exports a [`Root`] and a manifest from a shared library.
///
/// ```ignore
/// advae_abi::export_root!(MANIFEST_JSON_PARTS, || Root { describe, new_model, new_attack, new_threat_model });
/// ```
#[macro_export]
macro_rules! export_root {
    ($manifest:expr, $root:expr) => {
        const _: () = {
            const PARTS: &[&str] = $manifest;
            const LEN: usize = $crate::joined_len(PARTS);

            /// Read by the host without executing the file.
            #[unsafe(no_mangle)]
            #[unsafe(link_section = ".advae.manifest")]
            #[used]
            pub static ADVAE_MANIFEST: [u8; LEN] = $crate::joined::<LEN>(PARTS);

            fn root() -> $crate::RootRef {
                use $crate::abi_stable::prefix_type::PrefixTypeTrait;
                let make: fn() -> $crate::Root = $root;
                make().leak_into_prefix()
            }

            extern "C" fn constructor() -> $crate::abi_stable::library::RootModuleResult {
                $crate::abi_stable::library::__call_root_module_loader(root)
            }

            // The symbol abi_stable's loader looks for; its own macro would hide the layout from our check.
            #[unsafe(no_mangle)]
            #[allow(non_upper_case_globals)]
            pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::abi_stable::library::LibHeader =
                // SAFETY: `constructor` returns the root of this very contract.
                unsafe {
                    $crate::abi_stable::library::LibHeader::from_constructor::<$crate::RootRef>(
                        constructor,
                        $crate::abi_stable::library::CheckTypeLayout::Yes,
                    )
                };
        };
    };
}
