//! What the allocator is told before the daemon starts working.

/// Buffers of 1 MiB come and go with every READ and WRITE. Left to itself glibc
/// may give their pages back and map fresh ones; freed memory is kept up to a
/// bound instead, one that is small beside the write window. What that gains,
/// and what it adds to the memory held after a burst, is not measured yet.
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
