//! What is agreed with the kernel at FUSE_INIT.

use std::time::Duration;

use fuser::{InitFlags, KernelConfig};

/// The server's largest READ and WRITE, and what 256 pages (the kernel's
/// default `max_pages_limit`) hold.
pub(super) const MAX_WRITE: u32 = 1 << 20;

/// Requests nobody waits for (read-ahead, direct I/O of aio) in flight at the
/// same time. The kernel's default of 12 would throttle read-ahead.
const MAX_BACKGROUND: u16 = 128;

/// What fuser asks for by itself (`default_init_flags` in its lib.rs).
const BY_FUSER: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES);

/// What of the negotiation can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// `fcntl` locks come here; else the kernel keeps them to this host.
    pub posix_locks: bool,
    /// The same for `flock`.
    pub flock_locks: bool,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            posix_locks: true,
            flock_locks: true,
        }
    }
}

impl KernelOptions {
    /// The capabilities to ask for. Not among them, with reasons:
    /// - WRITEBACK_CACHE: the kernel would own size and times and delay
    ///   writes past unlock and close;
    /// - AUTO_INVAL_DATA: it drops our own pages after each own write;
    /// - ATOMIC_O_TRUNC: the file would be cut before the kernel has made sure
    ///   that it may be (ETXTBSY of a running program, which is found by
    ///   pjdfstest); a SETATTR of its own is the price;
    /// - NO_OPEN_SUPPORT: OPEN is where close-to-open consistency lives;
    /// - HANDLE_KILLPRIV: the kernel clears setuid itself, by SETATTR.
    fn capabilities(self) -> Vec<InitFlags> {
        let mut flags = vec![
            // Lookups and listings in one directory at the same time.
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Direct I/O of aio and io_uring in parallel.
            InitFlags::FUSE_ASYNC_DIO,
            // `ls -l` without a lookup per name, `ls` without attributes.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            // Pages are dropped when we say so, not when a size changes.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // name_to_handle_at(2), and exporting the mount again: lookups of "." and "..".
            InitFlags::FUSE_EXPORT_SUPPORT,
            // A file that must bypass the page cache can still be mapped.
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        if self.posix_locks {
            flags.push(InitFlags::FUSE_POSIX_LOCKS);
        }
        if self.flock_locks {
            flags.push(InitFlags::FUSE_FLOCK_LOCKS);
        }
        flags
    }

    /// Asks for what the kernel has of it, and says on what both have agreed.
    pub(super) fn negotiate(self, config: &mut KernelConfig) -> InitFlags {
        let mut agreed = BY_FUSER & config.capabilities();
        // One by one: fuser adds none of a set that is not wholly supported.
        for flag in self.capabilities() {
            if config.add_capabilities(flag).is_err() {
                tracing::info!(?flag, "the kernel lacks a FUSE capability");
            } else {
                agreed |= flag;
            }
        }
        // Each setter refuses only values out of its range, and says which
        // would do.
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        agreed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(options: KernelOptions) -> InitFlags {
        options.capabilities().into_iter().collect()
    }

    #[test]
    fn locks_go_to_the_server_unless_told_not_to() {
        let locks = InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS;
        assert!(asked(KernelOptions::default()).contains(locks));
        let local = KernelOptions {
            posix_locks: false,
            flock_locks: false,
        };
        assert!(!asked(local).intersects(locks));
    }

    #[test]
    fn nothing_is_asked_that_breaks_close_to_open() {
        let never = InitFlags::FUSE_WRITEBACK_CACHE
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_NO_OPEN_SUPPORT;
        assert!(!asked(KernelOptions::default()).intersects(never));
    }
}
