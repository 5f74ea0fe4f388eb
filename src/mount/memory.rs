//! What the allocator is told before the daemon starts working.

/// Buffers of 1 MiB come and go with every READ and WRITE. The ones in steady
/// use are pooled ([`crate::rpc::buffers`]); what a burst needs beyond that is
/// to go back to the system at once. Left to itself glibc learns from the first
/// of them to carve them out of its heaps, and keeps the memory of a full write
/// window for ever (80 MiB instead of 25, measured by `scripts/bench`).
///
/// To be called before threads exist.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter of the allocator; nobody else uses
    // it yet. A refusal leaves the default.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 512 << 10);
    }
}
