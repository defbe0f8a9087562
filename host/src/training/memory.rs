//! What the process's allocator does with memory that is given back.

/// Keeps freed memory for the next allocation, however large. A training step makes and drops tensors of megabytes again and
/// again; glibc would give each back to the system, which fills it with zeros page by page for the next one: a third of an
/// update's time. To be called before other threads are started; elsewhere than on glibc it does nothing.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // One arena: those of other threads never keep what is larger than 64 MB together.
        for (option, value) in [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_TOP_PAD, 64 << 20),
        ] {
            // SAFETY: sets options of the allocator; it takes what it cannot use as they are.
            if unsafe { libc::mallopt(option, value) } == 0 {
                tracing::debug!("mallopt({option}, {value}) was refused");
            }
        }
    }
}
