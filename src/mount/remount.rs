//! `mount -o remount`: changes what the kernel keeps about a living mount.
//!
//! Whether writing, device nodes, set-user-id bits, programs and access times
//! are allowed is the kernel's business alone, and mount(2) changes it at
//! once, for all bind mounts of the same file system as far as `ro` goes.
//! Everything else belongs to the daemon and stays as it was.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::{MOUNT, MountError, SYSTEM, USAGE};
use super::found::Found;
use super::mountinfo::{Mount, MountTable};
use super::place;
use crate::fuse::MS_NOSYMFOLLOW;
use crate::quoting;

/// What is to change; `None` leaves it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// `ro`, `rw`
    pub read_only: Option<bool>,
    /// `nodev`, `dev`
    pub nodev: Option<bool>,
    /// `nosuid`, `suid`
    pub nosuid: Option<bool>,
    /// `noexec`, `exec`
    pub noexec: Option<bool>,
    /// `noatime`, `atime`
    pub noatime: Option<bool>,
    /// `nosymfollow`, `symfollow`
    pub nosymfollow: Option<bool>,
}

impl Flags {
    /// The flags of mount(2) for a mount that shows `now` in the mount table.
    fn over(self, now: &str) -> libc::c_ulong {
        let is = |name: &str| now.split(',').any(|option| option == name);
        let mut flags = libc::MS_REMOUNT;
        for (name, wanted, flag) in [
            ("ro", self.read_only, libc::MS_RDONLY),
            ("nodev", self.nodev, libc::MS_NODEV),
            ("nosuid", self.nosuid, libc::MS_NOSUID),
            ("noexec", self.noexec, libc::MS_NOEXEC),
            ("noatime", self.noatime, libc::MS_NOATIME),
            ("nodiratime", None, libc::MS_NODIRATIME),
            ("nosymfollow", self.nosymfollow, MS_NOSYMFOLLOW),
        ] {
            if wanted.unwrap_or_else(|| is(name)) {
                flags |= flag;
            }
        }
        flags
    }
}

/// A living mount of ours that can be changed.
#[derive(Debug)]
pub struct Remount {
    mount: Mount,
    daemon: Found,
}

impl Remount {
    /// The mount at `path`.
    ///
    /// # Errors
    /// Nothing of ours is mounted there (status 1), or nobody serves it (32).
    pub fn of(path: &Path) -> Result<Self, MountError> {
        let error = |status, why: &str| {
            MountError::new(
                status,
                format_args!("remounting {}", quoting::path(path)),
                why,
            )
        };
        let canonical = place::canonical(path).map_err(|why| error(USAGE, &why.to_string()))?;
        let table =
            MountTable::read().map_err(|why| MountError::system("reading the mount table", why))?;
        let mount = match table.at(&canonical) {
            Some(mount) if mount.is_ours() => mount.clone(),
            _ => {
                return Err(
                    error(USAGE, "it is not a mount point of efs-fuse").remedy("efs-fuse status")
                );
            }
        };
        let daemon = Found::of(&mount).ok_or_else(|| {
            error(MOUNT, "its daemon is gone").remedy("to mount it again, which replaces it")
        })?;
        Ok(Self { mount, daemon })
    }

    /// Whether `option` is in force: it was mounted with it, or the mount table
    /// shows it, from where mount(8) takes it if there is no line in fstab.
    pub fn has(&self, option: &str) -> bool {
        let written = self.daemon.written().into_iter();
        let mut written = written.flat_map(|entry| &entry.options);
        written.any(|known| known == option)
            || self
                .mount
                .super_options
                .split(',')
                .any(|shown| shown == option)
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// Files are open for writing and `ro` was asked for, or not permitted.
    pub fn apply(&self, flags: Flags) -> Result<(), MountError> {
        let at = &self.mount.mountpoint;
        let failed = |status, why: &dyn std::fmt::Display| {
            MountError::new(
                status,
                format_args!("remounting {}", quoting::path(at)),
                why,
            )
        };
        let path = CString::new(at.as_os_str().as_bytes()).map_err(|why| failed(USAGE, &why))?;
        let flags = flags.over(&self.mount.options);
        let nothing = std::ptr::null();
        // SAFETY: `path` is a C string that lives through the call; a remount
        // needs neither source nor type nor data.
        let done = unsafe { libc::mount(nothing, path.as_ptr(), nothing, flags, nothing.cast()) };
        if done == 0 {
            return Ok(());
        }
        let why = io::Error::last_os_error();
        Err(match why.raw_os_error() {
            Some(libc::EBUSY) => failed(MOUNT, &"files are open for writing").remedy(format_args!(
                "to end what writes (fuser -vm {})",
                quoting::path(at)
            )),
            Some(libc::EPERM) => failed(SYSTEM, &"not permitted").remedy("as root"),
            _ => failed(MOUNT, &why),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mentioned_stays_as_it_is() {
        let flags = Flags {
            read_only: Some(true),
            ..Flags::default()
        };
        let all = libc::MS_REMOUNT | libc::MS_RDONLY;
        assert_eq!(flags.over("rw,relatime"), all);
        assert_eq!(
            flags.over("rw,nosuid,noatime"),
            all | libc::MS_NOSUID | libc::MS_NOATIME
        );
        let back = Flags {
            read_only: Some(false),
            nosuid: Some(false),
            ..Flags::default()
        };
        assert_eq!(
            back.over("ro,nosuid,nodev"),
            libc::MS_REMOUNT | libc::MS_NODEV
        );
    }

    #[test]
    fn what_is_not_ours_is_not_remounted() {
        for path in ["/proc", "/nonexistent/x"] {
            assert!(Remount::of(path.as_ref()).is_err_and(|why| why.status == USAGE));
        }
    }
}
