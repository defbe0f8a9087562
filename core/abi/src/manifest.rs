//! The manifest: JSON in a section of the shared library, readable without executing the file.

/// Name of the ELF section that holds the manifest.
pub const MANIFEST_SECTION: &str = ".advae.manifest";

/// Version of the contract as text.
pub const CONTRACT_VERSION_STRING: &str = "1.3.0";

/// Length of the parts put together.
pub const fn joined_len(parts: &[&str]) -> usize {
    let mut len = 0;
    let mut i = 0;
    while i < parts.len() {
        len += parts[i].len();
        i += 1;
    }
    len
}

/// The parts put together, at compile time.
pub const fn joined<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut out = [0; N];
    let (mut i, mut at) = (0, 0);
    while i < parts.len() {
        let bytes = parts[i].as_bytes();
        let mut j = 0;
        while j < bytes.len() {
            out[at] = bytes[j];
            at += 1;
            j += 1;
        }
        i += 1;
    }
    out
}

/// The parts of a manifest ([`info::Manifest`](crate::info::Manifest)) as `&[&str]`, for [`export_root!`](crate::export_root).
///
/// Expands inside the plugin, so that the panic strategy and the versions are the plugin's own. Weight sets are
/// given as string literals, the default first.
#[macro_export]
macro_rules! manifest {
    (kind: $kind:literal, name: $name:expr, version: $version:expr, sdk: $sdk:expr, cuda: $cuda:expr, weight_sets: [$($set:literal),*] $(, also: $also:literal)?) => {
        &[
            "{\"contract\":\"", $crate::CONTRACT_VERSION_STRING,
            "\",\"kind\":\"", $kind,
            "\",\"name\":\"", $name,
            "\",\"version\":\"", $version,
            "\",\"sdk\":\"", $sdk,
            "\",\"rustc\":\"", $crate::RUSTC_VERSION,
            "\",\"panic\":\"", if cfg!(panic = "abort") { "abort" } else { "unwind" },
            "\",\"cuda\":", if $cuda { "true" } else { "false" },
            ",\"weight_sets\":[", $("\"", $set, "\",",)* "\"\"]",
            $(",\"also\":[\"", $also, "\"]",)?
            "}",
        ]
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_same_as_text_and_as_numbers() {
        let numbers = format!("{}.{}.0", crate::CONTRACT_MAJOR, crate::CONTRACT_MINOR);
        assert_eq!(super::CONTRACT_VERSION_STRING, numbers);
        assert_eq!(env!("CARGO_PKG_VERSION"), numbers);
    }

    #[test]
    fn a_manifest_is_json() {
        const PARTS: &[&str] = crate::manifest!(
            kind: "classifier", name: "m", version: "1.2.3", sdk: "none", cuda: false, weight_sets: ["clean", "robust"]
        );
        const LEN: usize = super::joined_len(PARTS);
        let bytes = super::joined::<LEN>(PARTS);
        let manifest = crate::info::Manifest::from_json(&bytes).unwrap();
        assert_eq!(manifest.weight_sets, ["clean", "robust"]);
        assert_eq!(
            (manifest.kind, manifest.panic.as_str()),
            (crate::info::Kind::Classifier, "unwind")
        );
    }
}
