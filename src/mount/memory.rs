//! What the allocator is told before the daemon starts working.

/// Buffers of 1 MiB come and go with every READ and WRITE. Left to itself glibc
/// maps fresh pages for many of them, and clearing those costs as much as
/// copying the data. Freed memory is kept up to a bound instead; one that is
/// small beside the write window.
///
/// To be called before threads exist.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets parameters of the allocator; nobody else uses it
    // yet. A refusal leaves the default.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 20);
    }
}
