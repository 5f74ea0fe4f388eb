//! What can be found wrong on this machine before anything is sent to a server.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::MountError;
use super::found::Found;
use super::mountinfo::{Mount, MountTable};
use super::options::MountOptions;
use super::private_dir::effective_user;
use super::registry::{Registry, StartLock};
use super::{place, unmount};
use crate::quoting;

/// How long an unmount that is about to end, or a mount that is about to be
/// ready, may keep the place from us.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How long a mount that nobody is registered for may take to show that it lives.
const LIFE_SIGN: Duration = Duration::from_secs(2);
/// The numbers of `/dev/fuse`, in every kernel (Linux's list of devices).
const FUSE_NUMBERS: (u32, u32) = (10, 229);
/// More dead mounts than this on top of each other are somebody else's problem.
const MAX_STACKED: usize = 16;

/// A mount point that is fit to be mounted on.
#[derive(Debug)]
pub struct CheckedMountpoint {
    /// Its canonical path.
    pub mountpoint: PathBuf,
    /// What the user should know, each for a line of its own.
    pub warnings: Vec<String>,
    /// Keeps other mounts away from it until ours is there.
    pub lock: StartLock,
}

/// Checks `mountpoint`, reserves it, and clears it of dead mounts of ours.
///
/// # Errors
/// It no such directory, is no directory, is mounted by us and alive, or is just
/// being mounted.
pub fn prepare(mountpoint: &Path, registry: &Registry) -> Result<CheckedMountpoint, MountError> {
    let what = || format!("mounting on {}", quoting::path(mountpoint));
    let canonical = place::canonical(mountpoint).map_err(|why| unusable(mountpoint, &why))?;
    let lock = registry
        .lock(&canonical, START_PATIENCE)
        .map_err(|why| MountError::system("reserving the mount point", why))?
        .ok_or_else(|| MountError::mount(what(), "another mount is just being made there"))?;
    let mut warnings = Vec::new();
    for _ in 0..MAX_STACKED {
        let table =
            MountTable::read().map_err(|why| MountError::system("reading the mount table", why))?;
        let Some(mount) = table.at(&canonical).filter(|mount| mount.is_ours()) else {
            break;
        };
        if is_alive(mount, registry) {
            return Err(taken(mountpoint, &canonical, mount));
        }
        unmount::detach(&canonical).map_err(|why| MountError::mounting(&canonical, &why))?;
        warnings.push(format!(
            "replacing a dead mount of {} on {}",
            quoting::name(&mount.source),
            quoting::path(&canonical)
        ));
    }
    check_directory(mountpoint, &canonical, &mut warnings)?;
    Ok(CheckedMountpoint {
        mountpoint: canonical,
        warnings,
        lock,
    })
}

/// The same checks, which change nothing. Returns what is worth a warning.
///
/// # Errors
/// As [`prepare`].
pub fn look(mountpoint: &Path, registry: &Registry) -> Result<Vec<String>, MountError> {
    let canonical = place::canonical(mountpoint).map_err(|why| unusable(mountpoint, &why))?;
    let table =
        MountTable::read().map_err(|why| MountError::system("reading the mount table", why))?;
    let mut warnings = Vec::new();
    match table.at(&canonical).filter(|mount| mount.is_ours()) {
        Some(mount) if is_alive(mount, registry) => Err(taken(mountpoint, &canonical, mount)),
        // What is below a dead mount is seen when that is gone.
        Some(mount) => Ok(vec![format!(
            "a dead mount of {} on {} would be replaced",
            quoting::name(&mount.source),
            quoting::path(&canonical)
        )]),
        None => {
            check_directory(mountpoint, &canonical, &mut warnings)?;
            Ok(warnings)
        }
    }
}

fn taken(written: &Path, canonical: &Path, mount: &Mount) -> MountError {
    let what = format!("mounting on {}", quoting::path(written));
    let why = format!("{} is already mounted there", quoting::name(&mount.source));
    let remedy = format!("efs-fuse umount {}", quoting::path(canonical));
    MountError::mount(what, why).remedy(remedy)
}

/// What of the options this machine or this user cannot have, and is mounted without.
pub fn missing(options: &MountOptions) -> Vec<String> {
    let root = effective_user() == 0;
    let mut missing = Vec::new();
    let to_be_had = root && has_selinux();
    if !options.security.is_empty() && !to_be_had {
        let words = options.security.join(",");
        let why = match root {
            true => "this machine has no SELinux",
            false => "only root's mounts can have it",
        };
        missing.push(format!("{} has no effect: {why}", quoting::plain(&words)));
    }
    if options.nosymfollow && !root {
        missing.push("nosymfollow has no effect: only root's mounts can have it".to_owned());
    }
    missing
}

/// Whether the kernel has SELinux and uses it. mount(8), too, drops contexts where not.
pub fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Checks that this machine has FUSE and lets us use it.
///
/// # Errors
/// Status 2: `/dev/fuse` is missing, something else, or not for us.
pub fn fuse_device() -> Result<(), MountError> {
    fuse_device_at(Path::new("/dev/fuse"))
}

fn fuse_device_at(path: &Path) -> Result<(), MountError> {
    let what = format!("opening {}", quoting::path(path));
    // Before it is opened: some files act when that happens.
    let opened = fs::metadata(path).and_then(|about| match another_kind(&about) {
        Some(kind) => Ok(Some(kind)),
        None => {
            let device = OpenOptions::new().read(true).write(true).open(path);
            device.map(|_| None)
        }
    });
    let why = match opened {
        Ok(None) => return Ok(()),
        Ok(Some(kind)) => {
            let shown = quoting::path(path);
            let (major, minor) = FUSE_NUMBERS;
            return Err(MountError::system(what, format_args!("it is no FUSE device but {kind}")).remedy(
                format_args!(
                    "umount {shown} if it was mounted there (findmnt {shown}), else rm {shown} and mknod -m 666 {shown} c {major} {minor}; \
                     a container needs --device /dev/fuse"
                ),
            ));
        }
        Err(why) => why,
    };
    Err(match why.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            MountError::system(what, "this machine has no FUSE device").remedy(
                "modprobe fuse; a container needs --device /dev/fuse and --cap-add SYS_ADMIN",
            )
        }
        Some(libc::EPERM | libc::EACCES) => MountError::system(what, "not permitted")
            .remedy("mount as root, or in a container with --device /dev/fuse"),
        _ => MountError::system(what, why),
    })
}

/// What it is that stands in the place of the FUSE device; `None`: the device.
fn another_kind(about: &fs::Metadata) -> Option<String> {
    let (kind, device) = (about.file_type(), about.rdev());
    let (major, minor) = (libc::major(device), libc::minor(device));
    let words = match () {
        () if kind.is_char_device() && (major, minor) == FUSE_NUMBERS => return None,
        () if kind.is_char_device() => return Some(format!("device {major}:{minor}")),
        () if kind.is_file() => "a regular file",
        () if kind.is_dir() => "a directory",
        () => "a file of another kind",
    };
    Some(words.to_owned())
}

fn check_directory(
    written: &Path,
    canonical: &Path,
    warnings: &mut Vec<String>,
) -> Result<(), MountError> {
    let about = fs::metadata(canonical).map_err(|why| unusable(written, &why))?;
    if !about.is_dir() {
        return Err(unusable(
            written,
            &io::Error::from_raw_os_error(libc::ENOTDIR),
        ));
    }
    // Unreadable is no reason not to mount, and tells nothing.
    if fs::read_dir(canonical).is_ok_and(|mut names| names.next().is_some()) {
        warnings.push(format!(
            "{} is not empty; what is in it is hidden while the mount is there",
            quoting::path(written)
        ));
    }
    Ok(())
}

fn unusable(mountpoint: &Path, why: &io::Error) -> MountError {
    let shown = quoting::path(mountpoint);
    let error =
        |why: &dyn std::fmt::Display| MountError::mount(format_args!("mounting on {shown}"), why);
    match why.raw_os_error() {
        Some(libc::ENOENT) => {
            error(&"no such directory here").remedy(format_args!("mkdir -p {shown}"))
        }
        Some(libc::ENOTDIR) => error(&"it is not a directory"),
        Some(libc::ENOTCONN) => {
            error(&"a dead FUSE mount is there").remedy(format_args!("fusermount3 -u -z {shown}"))
        }
        Some(libc::EACCES) => error(&"permission denied"),
        _ => error(why),
    }
}

/// Whether somebody serves one of our mounts. The registry of its user knows; for a mount
/// that is not in it (another namespace's) its root is asked.
fn is_alive(mount: &Mount, registry: &Registry) -> bool {
    let daemon = match mount.user() == Some(effective_user()) {
        true => registry.find(&mount.mountpoint),
        false => Found::of(mount),
    };
    daemon.is_some() || shows_life(&mount.mountpoint)
}

/// Asks the root of a mount for its attributes, in a process of its own that
/// can be left behind if it hangs. Only a clear ENOTCONN counts as dead: to
/// take away a mount that is merely slow would be worse than not to mount.
fn shows_life(mountpoint: &Path) -> bool {
    let Ok(path) = CString::new(mountpoint.as_os_str().as_bytes()) else {
        return true;
    };
    // SAFETY: the child makes two system calls, which are async-signal-safe.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a valid string and a statfs to be written; _exit runs nothing.
        unsafe {
            let mut about: libc::statfs = std::mem::zeroed();
            let dead = libc::statfs(path.as_ptr(), &raw mut about) != 0
                && *libc::__errno_location() == libc::ENOTCONN;
            libc::_exit(i32::from(dead));
        }
    }
    if child < 0 {
        return true;
    }
    let end = Instant::now() + LIFE_SIGN;
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int.
        let reaped = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if reaped != 0 {
            return !(reaped == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1);
        }
        if Instant::now() >= end {
            // SAFETY: our own child, not reaped yet.
            unsafe { libc::kill(child, libc::SIGKILL) };
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> io::Result<(tempfile::TempDir, Registry)> {
        let dir = tempfile::tempdir()?;
        let registry = Registry::at(dir.path().join("registry"));
        Ok((dir, registry))
    }

    #[test]
    fn an_empty_directory_is_fit_without_warning() -> io::Result<()> {
        let (dir, registry) = fixture()?;
        let target = dir.path().join("a");
        fs::create_dir(&target)?;
        let place = prepare(&target, &registry).map_err(io::Error::other)?;
        assert_eq!(place.mountpoint, target.canonicalize()?);
        assert_eq!(place.warnings, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_directory_that_is_not_empty_is_fit_with_a_warning() -> io::Result<()> {
        let (dir, registry) = fixture()?;
        fs::create_dir_all(dir.path().join("a/b"))?;
        let place = prepare(&dir.path().join("a"), &registry).map_err(io::Error::other)?;
        assert!(
            place.warnings[0].contains("not empty"),
            "{:?}",
            place.warnings
        );
        Ok(())
    }

    #[test]
    fn missing_mount_points_and_files_are_named_with_status_32() -> io::Result<()> {
        let (dir, registry) = fixture()?;
        let file = dir.path().join("file");
        fs::write(&file, "")?;
        for (path, because) in [
            (dir.path().join("missing"), "no such directory"),
            (dir.path().join("no/where"), "no such directory"),
            (file.clone(), "not a directory"),
            (file.join("below"), "not a directory"),
        ] {
            let Err(error) = prepare(&path, &registry) else {
                panic!("{} is fit", path.display());
            };
            assert!(error.message.contains(because), "{error}");
            assert!(
                error.message.contains(&path.display().to_string()),
                "{error}"
            );
            assert_eq!(error.status, 32);
        }
        Ok(())
    }

    #[test]
    fn two_mounts_cannot_begin_at_one_place() -> io::Result<()> {
        let (dir, registry) = fixture()?;
        let first = prepare(dir.path(), &registry).map_err(io::Error::other)?;
        let Err(error) = prepare(dir.path(), &registry) else {
            panic!("both began");
        };
        assert_eq!(error.status, 32);
        drop(first);
        assert!(prepare(dir.path(), &registry).is_ok());
        Ok(())
    }

    #[test]
    fn an_ordinary_directory_shows_life() {
        assert!(shows_life(Path::new("/")));
        assert!(shows_life(Path::new("/nonexistent")));
    }

    #[test]
    fn what_is_no_fuse_device_is_named_with_a_way_out() -> io::Result<()> {
        let (dir, _registry) = fixture()?;
        let file = dir.path().join("file");
        fs::write(&file, "")?;
        for (path, because, remedy) in [
            (
                file.as_path(),
                "no FUSE device but a regular file",
                "c 10 229",
            ),
            (
                Path::new("/dev/null"),
                "no FUSE device but device 1:3",
                "--device /dev/fuse",
            ),
            (dir.path(), "no FUSE device but a directory", "umount"),
            (
                &dir.path().join("none"),
                "has no FUSE device",
                "modprobe fuse",
            ),
        ] {
            let Err(error) = fuse_device_at(path) else {
                panic!("{} is a FUSE device", path.display());
            };
            assert_eq!(error.status, 2);
            assert!(error.message.contains(because), "{error}");
            let try_this = error.remedy.clone().unwrap_or_default();
            assert!(try_this.contains(remedy), "{error}");
        }
        Ok(())
    }
}
