//! Where the mount lies: found in mountinfo, tuned through sysfs, unmounted by
//! path.
//!
//! Nothing here touches the mount point by a path lookup that would end in our
//! own file system: stat(2) on it would have to be answered by ourselves. That
//! the path still shows our mount is known from the device number.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::privilege;

/// How much force an unmount uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nothing is open.
    Clean,
    /// Out of sight now, gone when the last file is closed.
    Lazy,
    /// Requests in flight fail with ECONNABORTED; root only.
    Force,
}

/// A mount point and the mount on it.
#[derive(Clone, Debug)]
pub(super) struct MountPlace {
    /// Without symbolic links, resolved before the mount.
    mountpoint: PathBuf,
    /// `major:minor`; `None` if mountinfo could not be read.
    device: Option<String>,
    /// It stays when this program ends: dead, or with another process.
    left: Arc<AtomicBool>,
}

impl MountPlace {
    /// The place of the FUSE mount that was just made at `mountpoint`.
    pub(super) fn find(mountpoint: PathBuf) -> Self {
        let table = mount_table().unwrap_or_default();
        let device = fuse_devices_at(&table, &mountpoint).pop().flatten();
        Self {
            mountpoint,
            device,
            left: Arc::default(),
        }
    }

    /// The place of a mount that another process has made: the one with this device number,
    /// wherever it lies in the stack of mounts there.
    pub(super) fn of(mountpoint: PathBuf, device: Option<String>) -> Self {
        match device {
            Some(_) => Self {
                mountpoint,
                device,
                left: Arc::default(),
            },
            None => Self::find(mountpoint),
        }
    }

    /// `major:minor` of the mount, if it is known.
    pub(super) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    pub(super) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Sets the kernel's read-ahead, and warns where that fails. It is 128 KiB
    /// and FUSE_INIT can only lower it, while a round trip to the server holds
    /// megabytes. The setting goes with the mount.
    pub(super) fn set_read_ahead(&self, kib: u32) {
        let set = match &self.device {
            Some(device) => {
                let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
                // A service may see /sys read-only; where it mounts it is not.
                privilege::mounting(|| fs::write(setting, kib.to_string()))
            }
            None => Err(io::ErrorKind::NotFound.into()),
        };
        if let Err(error) = set {
            tracing::warn!(%error, "read-ahead stays small: cannot set read_ahead_kb");
        }
    }

    /// Unmounts; success if our mount is not there any more.
    ///
    /// # Errors
    /// As [`Running::unmount`](super::Running::unmount).
    pub(super) fn unmount(&self, how: Unmount) -> io::Result<()> {
        match self.visibility()? {
            Visibility::OnTop => {}
            Visibility::Covered => return Err(io::Error::from_raw_os_error(libc::EBUSY)),
            Visibility::Gone => return Ok(()),
        }
        let flags = match how {
            Unmount::Clean => 0,
            Unmount::Lazy => libc::MNT_DETACH,
            Unmount::Force => libc::MNT_FORCE,
        };
        let Err(error) = self.umount2(flags) else {
            return Ok(());
        };
        match error.raw_os_error() {
            // Unmounted by another hand since the look.
            Some(libc::EINVAL) => Ok(()),
            Some(libc::EPERM) if how != Unmount::Force => self.unmount_by_helper(how),
            _ => Err(error),
        }
    }

    /// Fails all requests, now and later, and leaves the mount where it is for good:
    /// nothing here unmounts it any more.
    pub(super) fn leave_dead(&self) {
        if self.left.swap(true, Ordering::SeqCst) {
            // It is dead, or another process's.
            return;
        }
        if let Some((_, connection)) = self.device.as_ref().and_then(|of| of.split_once(':')) {
            // Where it cannot be done, the end of this process does the same: as soon
            // as none of its threads waits in the kernel for an answer of its own.
            let abort = format!("/sys/fs/fuse/connections/{connection}/abort");
            let _ = privilege::mounting(|| fs::write(abort, "1"));
        }
    }

    /// The mount stays, for another process that serves it: nothing here unmounts it any more.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Takes away what an aborted connection (`umount -f`, fusectl) leaves
    /// behind: a mount on which everything fails with ENOTCONN.
    pub(super) fn clear(&self) {
        // The device number alone does not tell: as soon as ours is unmounted
        // the next mount, perhaps at this very place, may be given it.
        if !self.is_left() && matches!(self.visibility(), Ok(Visibility::OnTop)) && self.is_dead() {
            let _ = self.unmount(Unmount::Lazy);
        }
    }

    /// Fails all requests and takes the mount away, because nobody serves it
    /// any more: else each caller would wait until it is killed.
    pub(super) fn abandon(&self) {
        if self.is_left() {
            return;
        }
        // Both may find the mount gone, which is what they are for.
        let _ = self.unmount(Unmount::Force);
        let _ = self.unmount(Unmount::Lazy);
    }

    /// Has the mount lost its daemon? Every statfs(2) is a request. Only for
    /// use when our own session has ended: it would have to answer.
    fn is_dead(&self) -> bool {
        let Ok(path) = CString::new(self.mountpoint.as_os_str().as_bytes()) else {
            return false;
        };
        let mut answer = std::mem::MaybeUninit::uninit();
        privilege::mounting(|| {
            // SAFETY: `path` is a C string and `answer` has room for the answer;
            // both live through the call.
            let failed = unsafe { libc::statfs(path.as_ptr(), answer.as_mut_ptr()) } != 0;
            failed && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTCONN)
        })
    }

    fn umount2(&self, flags: i32) -> io::Result<()> {
        let path = CString::new(self.mountpoint.as_os_str().as_bytes())?;
        privilege::mounting(|| {
            // SAFETY: `path` is a C string that lives through the call.
            match unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW | flags) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }

    fn visibility(&self) -> io::Result<Visibility> {
        let Some(device) = &self.device else {
            return Ok(Visibility::OnTop);
        };
        let table = mount_table()?;
        let stack = fuse_devices_at(&table, &self.mountpoint);
        let ours = |found: &Option<String>| found.as_ref() == Some(device);
        Ok(if stack.last().is_some_and(ours) {
            Visibility::OnTop
        } else if stack.iter().any(ours) {
            Visibility::Covered
        } else {
            Visibility::Gone
        })
    }

    /// What an unprivileged user mounted only the setuid helper can unmount.
    fn unmount_by_helper(&self, how: Unmount) -> io::Result<()> {
        let helper = std::env::var_os("FUSERMOUNT_PATH").unwrap_or_else(|| "fusermount3".into());
        let mut command = Command::new(helper);
        command.arg("-u").arg("-q");
        if how == Unmount::Lazy {
            command.arg("-z");
        }
        let status = command.arg("--").arg(&self.mountpoint).status()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        }
    }
}

/// What the path of a mount shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visibility {
    /// The mount.
    OnTop,
    /// Another one that was mounted over it.
    Covered,
    /// Something else; the mount is not there.
    Gone,
}

/// mountinfo of the namespace that is mounted in.
fn mount_table() -> io::Result<Vec<u8>> {
    privilege::mounting(|| fs::read("/proc/thread-self/mountinfo"))
}

/// `major:minor` of each mount at `mountpoint`, the topmost last, from the
/// text of mountinfo (proc(5)); `None` for those that are not FUSE.
fn fuse_devices_at(mountinfo: &[u8], mountpoint: &Path) -> Vec<Option<String>> {
    let mut stack = Vec::new();
    for line in mountinfo.split(|&b| b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else {
            continue;
        };
        if dash < 6 || unescaped(fields[4]) != mountpoint.as_os_str().as_bytes() {
            continue;
        }
        let fuse = fields
            .get(dash + 1)
            .is_some_and(|kind| *kind == b"fuse" || kind.starts_with(b"fuse."));
        let device = std::str::from_utf8(fields[2]).ok();
        stack.push(device.filter(|_| fuse).map(str::to_owned));
    }
    stack
}

/// A path in mountinfo: blanks and backslashes are three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        path.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:41 / /mnt/a rw,nosuid,nodev shared:9 master:2 - fuse.efs-fuse fs-1:/ rw,user_id=0
41 22 0:42 / /mnt/with\\040blank\\134 rw - fuse efs rw
42 22 0:43 / /mnt/b rw - fuse.efs-fuse x rw
43 42 0:44 / /mnt/b rw - tmpfs tmpfs rw
44 22 0:45 / /mnt/c rw - fuse.efs-fuse x rw
45 44 0:46 / /mnt/c rw - fuse.efs-fuse x rw
torn 0:47 / /mnt/d";

    fn at(path: &str) -> Vec<Option<String>> {
        fuse_devices_at(TABLE, Path::new(path))
    }

    fn fuse(device: &str) -> Option<String> {
        Some(device.to_owned())
    }

    #[test]
    fn a_mount_is_found_by_its_path_whatever_is_in_it() {
        assert_eq!(at("/mnt/a"), [fuse("0:41")]);
        assert_eq!(at("/mnt/with blank\\"), [fuse("0:42")]);
        assert_eq!(at("/mnt"), []);
        assert_eq!(at("/mnt/d"), []);
    }

    #[test]
    fn mounts_over_each_other_are_told_apart() {
        assert_eq!(at("/mnt/b"), [fuse("0:43"), None]);
        assert_eq!(at("/mnt/c"), [fuse("0:45"), fuse("0:46")]);
        assert_eq!(at("/"), [None]);
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        // umount2 would say ENOENT.
        let place = MountPlace {
            mountpoint: PathBuf::from("/proc/no/such/place"),
            device: fuse("0:4294967295"),
            left: Arc::default(),
        };
        assert_eq!(place.visibility().unwrap(), Visibility::Gone);
        for how in [Unmount::Clean, Unmount::Lazy, Unmount::Force] {
            place.unmount(how).unwrap();
        }
        assert!(place.umount2(0).is_err());
    }
}
