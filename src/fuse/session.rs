//! The mount: made, tuned, watched until it is gone, and unmade.
//!
//! fuser's own unmounter gives up the mount at the first refusal (EBUSY), so
//! unmounting is done here, by path, after a look into mountinfo that what
//! lies there is still ours. Nothing here touches a path below the mount
//! point once it is mounted: our own reader threads would have to answer.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use fuser::{Config, MountOption, Session, SessionACL};
use tokio::sync::watch;

use super::adapter::Adapter;
use super::notify::Notify;

/// How a file system is mounted.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// What `mount` shows as the source.
    pub device: String,
    /// `ro`.
    pub read_only: bool,
    /// `dev`: device files work. Off unless asked for.
    pub dev: bool,
    /// `suid`: setuid bits count. Off unless asked for.
    pub suid: bool,
    /// `noexec`.
    pub noexec: bool,
    /// `noatime`.
    pub noatime: bool,
    /// The kernel checks mode bits, without asking. Wrong where the server
    /// acts as somebody else than the caller (an access point with an enforced
    /// identity).
    pub default_permissions: bool,
    /// Users other than the one who mounts may use the mount.
    pub allow_other: bool,
    /// Threads that read requests; at least 1.
    pub threads: usize,
    /// Each of them reads from a descriptor of its own.
    pub clone_fd: bool,
    /// Read-ahead of the kernel in KiB, if we may set it (root); `None` leaves
    /// the kernel's 128.
    pub read_ahead_kib: Option<u32>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            device: String::new(),
            read_only: false,
            dev: false,
            suid: false,
            noexec: false,
            noatime: false,
            default_permissions: true,
            allow_other: is_root(),
            // More than four never helped; one makes a single caller wait for
            // wake-ups.
            threads: thread::available_parallelism().map_or(2, |n| n.get().min(4)),
            clone_fd: true,
            read_ahead_kib: Some(8192),
        }
    }
}

impl SessionOptions {
    fn config(&self) -> Config {
        let mut options = vec![MountOption::FSName(if is_root() {
            self.device.clone()
        } else {
            escaped(&self.device)
        })];
        // Not MountOption::Subtype: fuser keeps that from mount(2), and the
        // type would be shown as plain "fuse".
        if kernel_takes_subtype() {
            options.push(MountOption::CUSTOM("subtype=efs-fuse".into()));
        }
        let chosen = [
            (self.read_only, MountOption::RO),
            (self.dev, MountOption::Dev),
            (!self.dev, MountOption::NoDev),
            (self.suid, MountOption::Suid),
            (!self.suid, MountOption::NoSuid),
            (self.noexec, MountOption::NoExec),
            (self.noatime, MountOption::NoAtime),
            (self.default_permissions, MountOption::DefaultPermissions),
        ];
        options.extend(chosen.into_iter().filter(|(on, _)| *on).map(|(_, o)| o));
        let mut config = Config::default();
        config.mount_options = options;
        config.acl = if self.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(self.threads.max(1));
        config.clone_fd = self.clone_fd && self.threads > 1;
        config
    }
}

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

/// A mount that is being served. Dropping it unmounts lazily, so that no way
/// out of the program leaves a dead mount behind.
#[derive(Debug)]
pub struct Running {
    mountpoint: PathBuf,
    /// `major:minor`; `None` if mountinfo could not be read.
    device: Option<String>,
    ended: watch::Receiver<Option<Result<(), Arc<io::Error>>>>,
}

/// Mounts and serves `adapter` at `mountpoint`, in threads of its own. When it
/// returns, the kernel and the adapter have agreed (FUSE_INIT) and the mount
/// answers.
///
/// # Errors
/// The mount point cannot be used, `/dev/fuse` is missing, or the mount is not
/// permitted; nothing is left mounted.
pub fn start(
    adapter: Adapter,
    notify: &Arc<Notify>,
    mountpoint: &Path,
    options: &SessionOptions,
) -> io::Result<Running> {
    let mountpoint = mountpoint.canonicalize()?;
    let session = Session::new(adapter, &mountpoint, &options.config())?;
    notify.connect(session.notifier())?;
    let (end, ended) = watch::channel(None);
    let queue = Arc::clone(notify);
    let serving = thread::Builder::new()
        .name("fuse-session".into())
        .spawn(move || {
            let result = session.run().map_err(Arc::new);
            queue.close();
            if let Err(error) = &result {
                tracing::error!(%error, "the FUSE session failed");
            }
            end.send_replace(Some(result));
        });
    if let Err(error) = serving {
        notify.close();
        return Err(error);
    }
    let device = fs::read("/proc/self/mountinfo")
        .ok()
        .and_then(|table| device_at(&table, &mountpoint));
    if let Some(kib) = options.read_ahead_kib
        && is_root()
    {
        set_read_ahead(device.as_deref(), kib);
    }
    Ok(Running {
        mountpoint,
        device,
        ended,
    })
}

impl Running {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The kernel has let go of the mount.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits until the kernel has let go of the mount: it was unmounted, here
    /// or by anybody, and the last file in it was closed.
    ///
    /// # Errors
    /// Reading from the kernel failed; the mount is gone all the same.
    pub async fn ended(&self) -> io::Result<()> {
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            // The session thread panicked; fuser unmounts on its way out.
            Err(_) => None,
        };
        match result {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error)),
            None => Err(io::Error::other("the FUSE session panicked")),
        }
    }

    /// Unmounts. Blocks while the kernel does, which may ask us things: not
    /// to be called on a thread of the runtime. Success if nothing of ours is
    /// mounted there any more; [`ended`](Self::ended) tells when the kernel is
    /// through.
    ///
    /// # Errors
    /// EBUSY: something is in use ([`Unmount::Clean`] and [`Unmount::Force`]).
    /// EPERM: neither root nor, by way of `fusermount3`, the owner.
    pub fn unmount(&self, how: Unmount) -> io::Result<()> {
        if self.has_ended() || !self.is_on_top()? {
            return Ok(());
        }
        let path = std::ffi::CString::new(self.mountpoint.as_os_str().as_bytes())?;
        let flags = libc::UMOUNT_NOFOLLOW
            | match how {
                Unmount::Clean => 0,
                Unmount::Lazy => libc::MNT_DETACH,
                Unmount::Force => libc::MNT_FORCE,
            };
        // SAFETY: `path` is a C string that lives through the call.
        if unsafe { libc::umount2(path.as_ptr(), flags) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Unmounted by another hand since the look.
            Some(libc::EINVAL) => Ok(()),
            Some(libc::EPERM) if how != Unmount::Force => self.unmount_by_helper(how),
            _ => Err(error),
        }
    }

    /// Is our mount there, and not hidden by another?
    fn is_on_top(&self) -> io::Result<bool> {
        let Some(device) = &self.device else {
            return Ok(true);
        };
        let table = fs::read("/proc/self/mountinfo")?;
        Ok(device_at(&table, &self.mountpoint).as_ref() == Some(device))
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

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(Unmount::Lazy) {
            tracing::warn!(%error, mountpoint = %self.mountpoint.display(), "not unmounted");
        }
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// A source as `fusermount3` reads it: it splits options at commas.
fn escaped(source: &str) -> String {
    source.replace('\\', "\\\\").replace(',', "\\,")
}

/// mount(2) knows `subtype=` for fuse since Linux 5.4, and refuses what it
/// does not know.
fn kernel_takes_subtype() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|r| release(&r) >= (5, 4))
}

/// Major and minor of a kernel release such as `6.1.0-18-amd64`.
fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next())
}

/// The kernel's read-ahead is 128 KiB and FUSE_INIT can only lower it, while
/// a round trip to the server holds megabytes. It belongs to the mount and
/// goes with it.
fn set_read_ahead(device: Option<&str>, kib: u32) {
    let set = match device {
        Some(device) => fs::write(
            format!("/sys/class/bdi/{device}/read_ahead_kb"),
            kib.to_string(),
        ),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    if let Err(error) = set {
        tracing::warn!(%error, "read-ahead stays small: cannot set read_ahead_kb");
    }
}

/// `major:minor` of the topmost mount at `mountpoint` if that is a FUSE one,
/// from the text of mountinfo (proc(5)). stat(2) would have to be answered by
/// ourselves.
fn device_at(mountinfo: &[u8], mountpoint: &Path) -> Option<String> {
    let mut found = None;
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
        found = device.filter(|_| fuse).map(str::to_owned);
    }
    found
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

    fn at(path: &str) -> Option<String> {
        device_at(TABLE, Path::new(path))
    }

    #[test]
    fn a_mount_is_found_by_its_path_whatever_is_in_it() {
        assert_eq!(at("/mnt/a").as_deref(), Some("0:41"));
        assert_eq!(at("/mnt/with blank\\").as_deref(), Some("0:42"));
        assert_eq!(at("/mnt"), None);
        assert_eq!(at("/mnt/d"), None);
    }

    #[test]
    fn a_mount_under_another_is_not_taken_for_it() {
        assert_eq!(at("/mnt/b"), None);
        assert_eq!(at("/mnt/c").as_deref(), Some("0:46"));
        assert_eq!(at("/"), None);
    }

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(release("6.18.44"), (6, 18));
        assert_eq!(release("5.10.0-18-amd64\n"), (5, 10));
        assert_eq!(release("4.14"), (4, 14));
        assert_eq!(release("strange"), (0, 0));
    }

    #[test]
    fn devices_and_setuid_are_off_unless_asked_for() {
        let given = SessionOptions::default().config().mount_options;
        assert!(given.contains(&MountOption::NoDev) && given.contains(&MountOption::NoSuid));
        let asked = SessionOptions {
            dev: true,
            suid: true,
            read_only: true,
            ..SessionOptions::default()
        };
        let given = asked.config().mount_options;
        assert!(given.contains(&MountOption::Dev) && given.contains(&MountOption::Suid));
        assert!(given.contains(&MountOption::RO));
        assert!(!given.contains(&MountOption::NoDev) && !given.contains(&MountOption::NoSuid));
    }

    #[test]
    fn one_thread_needs_no_cloned_descriptor_and_none_is_one() {
        let config = |threads| {
            SessionOptions {
                threads,
                ..SessionOptions::default()
            }
            .config()
        };
        assert_eq!((config(0).n_threads, config(0).clone_fd), (Some(1), false));
        assert_eq!((config(2).n_threads, config(2).clone_fd), (Some(2), true));
    }

    #[test]
    fn a_comma_in_the_device_does_not_end_the_option() {
        assert_eq!(escaped("fs-1:/a,b\\c"), "fs-1:/a\\,b\\\\c");
    }
}
