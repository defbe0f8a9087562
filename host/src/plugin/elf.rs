//! What can be learnt of a plugin file without executing it.

use crate::terminal::console::printable;
use advae_abi::MANIFEST_SECTION;
use advae_abi::info::Manifest;
use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{EM_AARCH64, EM_X86_64, ET_DYN, FileHeader64, PT_LOAD, SHT_NOBITS};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

type Header = FileHeader64<Endianness>;

/// A plugin file that passed the checks that need no execution.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// Canonical path.
    pub path: PathBuf,
    /// What the file says of itself.
    pub manifest: Manifest,
    /// Hash of the file, in hex.
    pub sha256: String,
}

/// Checks the file and reads its manifest.
///
/// # Errors
/// One line that says why it is no plugin for this machine.
pub fn inspect(path: &Path) -> Result<Inspected> {
    inspect_bytes(path).map(|(inspected, _)| inspected)
}

/// The same, and the bytes that were looked at: the file itself may be another one at any time.
pub(super) fn inspect_bytes(path: &Path) -> Result<(Inspected, Vec<u8>)> {
    let shown = path.display();
    let canonical = path.canonicalize().with_context(|| format!("cannot open '{shown}'"))?;
    // What is no file may never end.
    ensure!(canonical.is_file(), "'{shown}' is no plugin: it is not a file");
    let bytes = std::fs::read(&canonical).with_context(|| format!("cannot read '{shown}'"))?;
    let manifest = read_manifest(&bytes).with_context(|| format!("'{shown}' is no plugin"))?;
    let inspected = Inspected {
        path: canonical,
        manifest,
        sha256: hex(&Sha256::digest(&bytes)),
    };
    Ok((inspected, bytes))
}

/// Whether a library that passed the checks wants others from the folder that it lies in (`$ORIGIN`).
pub(super) fn names_its_folder(bytes: &[u8]) -> bool {
    let strings = || {
        let header = Header::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, bytes).ok()?;
        let (_, section) = sections.section_by_name(endian, b".dynstr")?;
        section.data(endian, bytes).ok()
    };
    let strings: &[u8] = strings().unwrap_or_default();
    [&b"$ORIGIN"[..], b"${ORIGIN}"]
        .iter()
        .any(|word| strings.windows(word.len()).any(|window| window == *word))
}

/// Lowercase hex of a hash.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn read_manifest(bytes: &[u8]) -> Result<Manifest> {
    ensure!(
        bytes.starts_with(b"\x7fELF"),
        "it is not a shared library (no ELF header): give the path of a .so file"
    );
    let header = Header::parse(bytes).map_err(|e| anyhow::anyhow!("not a 64-bit ELF file: {e}"))?;
    let endian = header
        .endian()
        .map_err(|e| anyhow::anyhow!("unreadable ELF header: {e}"))?;
    check_machine(header, endian)?;
    check_extents(header, endian, bytes)?;
    let sections = header
        .sections(endian, bytes)
        .map_err(|e| anyhow::anyhow!("unreadable section table: {e}"))?;
    let Some((_, section)) = sections.section_by_name(endian, MANIFEST_SECTION.as_bytes()) else {
        bail!(
            "it is a shared library without the section '{MANIFEST_SECTION}': export it with advae-sdk's export_plugin!"
        );
    };
    let json = section
        .data(endian, bytes)
        .map_err(|e| anyhow::anyhow!("unreadable manifest: {e}"))?;
    let mut manifest = Manifest::from_json(json).context("its manifest is not the JSON of this contract")?;
    let Manifest {
        contract,
        name,
        version,
        sdk,
        rustc,
        panic,
        weight_sets,
        ..
    } = &mut manifest;
    // Shown in tables and errors, and written by whoever made the file.
    let texts = [contract, name, version, sdk, rustc, panic]
        .into_iter()
        .chain(weight_sets);
    texts.for_each(|text| *text = printable(text));
    Ok(manifest)
}

fn check_machine(header: &Header, endian: Endianness) -> Result<()> {
    let (name, expected) = match std::env::consts::ARCH {
        "x86_64" => ("x86_64", EM_X86_64),
        "aarch64" => ("aarch64", EM_AARCH64),
        other => bail!("plugins are not supported on {other}"),
    };
    let machine = header.e_machine(endian);
    ensure!(
        machine == expected,
        "it was built for ELF machine {machine:?}, this host runs on {name}: rebuild it here"
    );
    ensure!(
        header.e_type(endian) == ET_DYN,
        "it is an ELF file but not a shared library: build it as a cdylib"
    );
    Ok(())
}

/// A file shorter than its own headers say would be mapped by dlopen and then kill the process with SIGBUS.
fn check_extents(header: &Header, endian: Endianness, bytes: &[u8]) -> Result<()> {
    let truncated = |end: u64| {
        format!(
            "the file is truncated: it has {} bytes, its headers speak of {end}: copy or build it again",
            bytes.len()
        )
    };
    let table_end = header
        .e_shoff(endian)
        .saturating_add(u64::from(header.e_shentsize(endian)) * u64::from(header.e_shnum(endian)));
    ensure!(table_end <= bytes.len() as u64, truncated(table_end));
    let segments = header
        .program_headers(endian, bytes)
        .map_err(|e| anyhow::anyhow!("unreadable segments: {e}"))?;
    ensure!(
        segments.iter().any(|s| s.p_type(endian) == PT_LOAD),
        "it has no loadable segment"
    );
    for segment in segments {
        let end = segment.p_offset(endian).saturating_add(segment.p_filesz(endian));
        ensure!(end <= bytes.len() as u64, truncated(end));
    }
    let sections = header
        .section_headers(endian, bytes)
        .map_err(|e| anyhow::anyhow!("unreadable sections: {e}"))?;
    for section in sections.iter().filter(|s| s.sh_type(endian) != SHT_NOBITS) {
        let end = section.sh_offset(endian).saturating_add(section.sh_size(endian));
        ensure!(end <= bytes.len() as u64, truncated(end));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_binary() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn text_is_not_a_shared_library() {
        let error = read_manifest(b"not a library").unwrap_err();
        assert!(error.to_string().contains("not a shared library"), "{error}");
        assert!(read_manifest(b"\x7fELF").is_err());
    }

    #[test]
    fn a_truncated_file_is_told_from_its_headers() {
        let bytes = own_binary();
        let error = read_manifest(&bytes[..bytes.len() / 2]).unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error}");
    }

    #[test]
    fn a_library_of_somebody_else_has_no_manifest() {
        let error = read_manifest(&own_binary()).unwrap_err();
        assert!(error.to_string().contains(MANIFEST_SECTION), "{error}");
    }

    #[test]
    fn another_machine_is_refused() {
        let mut bytes = own_binary();
        bytes[18] = 0x28; // EM_ARM
        bytes[19] = 0;
        assert!(
            read_manifest(&bytes)
                .unwrap_err()
                .to_string()
                .contains("rebuild it here")
        );
    }
}
