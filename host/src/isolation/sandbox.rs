//! What is taken away from a process before it loads plugins: by Landlock writing, but in a few folders; by seccomp sockets, but those of this
//! machine. Threads that exist already keep what they have: to be called before any other runs.

use anyhow::Result;
use std::path::PathBuf;

/// Devices are written to: `/dev/null`, GPUs, and memory that processes share.
#[cfg(target_os = "linux")]
const DEVICES: &str = "/dev";

/// Takes network and writing away for good, but in `writable` folders.
///
/// # Errors
/// Where the kernel has no Landlock or no seccomp.
#[cfg(target_os = "linux")]
pub fn confine(writable: &[PathBuf]) -> Result<()> {
    use anyhow::Context;
    let remedy = "this system does not allow it: leave --sandbox out";
    without_writing(writable).context(remedy)?;
    without_network().context(remedy)
}

#[cfg(target_os = "linux")]
fn without_writing(writable: &[PathBuf]) -> Result<()> {
    use landlock::{ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus};
    // Older kernels know fewer kinds of writing; all of them know how to make and open files.
    let writing = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default().handle_access(writing)?.create()?;
    for folder in [PathBuf::from(DEVICES)].iter().chain(writable) {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(folder)?, writing))?;
    }
    let status = rules.restrict_self()?;
    anyhow::ensure!(
        status.ruleset != RulesetStatus::NotEnforced,
        "the kernel has no Landlock"
    );
    Ok(())
}

#[cfg(target_os = "linux")]
fn without_network() -> Result<()> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        apply_filter,
    };
    let elsewhere = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?;
    let rules = [
        (libc::SYS_socket, vec![SeccompRule::new(vec![elsewhere])?]),
        // It makes sockets without that call.
        (libc::SYS_io_uring_setup, vec![]),
    ];
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EACCES as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    Ok(apply_filter(&program)?)
}

/// Never allowed: there is no Landlock.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn confine(_: &[PathBuf]) -> Result<()> {
    anyhow::bail!("--sandbox needs Linux: leave it out")
}
