//! The host's side of loading: from the header symbol of an opened library to a checked [`RootRef`].

use crate::RootRef;
use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use std::os::raw::c_void;

/// NUL-terminated name of the header symbol.
pub const HEADER_SYMBOL: &str = ROOT_MODULE_LOADER_NAME_WITH_NUL;

/// Checks header, version and layout, and runs the plugin's root constructor.
///
/// The layout is checked **both ways**: abi_stable asks that the plugin has at least what the host knows, which
/// refuses an older plugin; the contract is append-only, with options or defaults for everything appended, so it is as
/// sound when the host has at least what the plugin knows.
///
/// # Errors
/// One line that says what does not fit.
///
/// # Safety
/// `header` must be the address of the symbol [`HEADER_SYMBOL`] of a library that is never unloaded.
pub unsafe fn root_from_header(header: *const c_void) -> Result<RootRef, String> {
    if header.is_null() {
        return Err("the symbol of its header is null".into());
    }
    // SAFETY: an `AbiHeaderRef` is one word, the address of the header, which is not null; the caller promises that this is
    // one, and its magic bytes are checked by `upgrade`.
    let header = unsafe { *(&raw const header).cast::<AbiHeaderRef>() };
    let header = header
        .upgrade()
        .map_err(|e| format!("its header is not of this contract: {}", one_line(&e)))?;
    let plugin = header.layout().ok_or("it was built without a layout to check")?;
    let host = <RootRef as StableAbi>::LAYOUT;
    if let Err(forward) = check_layout_compatibility(host, plugin)
        && check_layout_compatibility(plugin, host).is_err()
    {
        return Err(format!("its layout is not of this contract: {}", one_line(&forward)));
    }
    // SAFETY: the layouts were checked just above, in one direction or the other.
    unsafe { header.init_root_module_with_unchecked_layout::<RootRef>() }.map_err(|e| one_line(&e))
}

/// abi_stable prints pages; the host prints a line.
fn one_line(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if line.len() > 400 {
        let cut = (0..=400).rev().find(|i| line.is_char_boundary(*i)).unwrap_or(0);
        line.truncate(cut);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_header_is_an_error_and_not_a_crash() {
        // SAFETY: null is refused before anything is read.
        let refused = unsafe { root_from_header(std::ptr::null()) };
        assert_eq!(refused.err().unwrap(), "the symbol of its header is null");
    }

    #[test]
    fn a_long_message_becomes_a_line() {
        assert_eq!(one_line(&"two\n  lines"), "two lines");
        assert_eq!(one_line(&"é".repeat(300)).chars().count(), 204);
    }
}
