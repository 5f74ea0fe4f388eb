//! A directory that one user writes, reached by its descriptor and by nothing else.
//!
//! Paths can be made to mean something else between two calls by whoever may write to a
//! directory on the way. So a directory is opened once, and what it is is asked of the
//! descriptor; everything in it is named by one component from there on, and no link is
//! followed. What is opened must belong to the directory's user.
//!
//! For root that is not enough where the directory is another user's: a file there may be
//! a mount of a file system that never answers, or a pipe. [`PrivateDir::of_user`] crosses
//! no mount and waits for nothing.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mountinfo::MountTable;

/// Where users have their directories (pam_systemd(8)).
const USERS: &CStr = c"/run/user";

/// The directory of a user.
#[derive(Debug)]
pub(super) struct PrivateDir {
    file: File,
    owner: u32,
    /// It is not this process's user's own: see the module.
    strange: bool,
}

impl PrivateDir {
    /// The directory at `path`, which must be this process's user's and nobody else's to
    /// write.
    ///
    /// # Errors
    /// There is none, or it is somebody else's (`PermissionDenied`), or a link.
    pub(super) fn own(path: &Path) -> io::Result<Self> {
        let text = CString::new(path.as_os_str().as_bytes())?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let file = open_at(libc::AT_FDCWD, &text, flags, 0)?;
        let dir = Self {
            file,
            owner: effective_user(),
            strange: false,
        };
        dir.check()?;
        Ok(dir)
    }

    /// The directory `name` of another user in `/run/user`, for root.
    ///
    /// # Errors
    /// There is none, it is not the user's alone, or this kernel cannot be told to cross
    /// no mount (openat2(2), Linux 5.6).
    pub(super) fn of_user(user: u32, name: &CStr) -> io::Result<Self> {
        let path_only = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let users = open_at(libc::AT_FDCWD, USERS, path_only, 0)?;
        let number = CString::new(user.to_string())?;
        // Opened by path only, and the file system is not asked anything: it may be one
        // of the user's.
        let home = open_at(users.as_raw_fd(), &number, path_only, 0)?;
        if serves_itself(&home)? {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let file = open_within(&home, name, flags)?;
        let dir = Self {
            file,
            owner: user,
            strange: true,
        };
        dir.check()?;
        Ok(dir)
    }

    fn check(&self) -> io::Result<()> {
        let about = self.file.metadata()?;
        let alone = about.is_dir() && about.uid() == self.owner && about.mode() & 0o022 == 0;
        match alone {
            true => Ok(()),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Whose it is.
    pub(super) fn owner(&self) -> u32 {
        self.owner
    }

    /// Keeps others of this user's processes from changing things here as long as what is
    /// returned lives, and waits at most `patience` for one that does. `None`: it still
    /// does.
    pub(super) fn alone(&self, patience: Duration) -> io::Result<Option<OwnedFd>> {
        let end = Instant::now() + patience;
        // A descriptor of its own, since the lock is the open file's.
        let file = self.open(c".", libc::O_RDONLY | libc::O_DIRECTORY)?;
        loop {
            // SAFETY: a valid descriptor and a documented operation.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(Some(file.into()));
            }
            let why = io::Error::last_os_error();
            match why.kind() {
                io::ErrorKind::WouldBlock if Instant::now() >= end => return Ok(None),
                io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                io::ErrorKind::Interrupted => {}
                _ => return Err(why),
            }
        }
    }

    /// What is in it, without "." and "..".
    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        let files = fs::read_dir(self.by_descriptor())?;
        Ok(files.flatten().map(|file| file.file_name()).collect())
    }

    /// What a file holds: one of the directory's owner, and no longer than `limit`.
    pub(super) fn read(&self, name: &OsStr, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open(&component(name)?, libc::O_RDONLY | libc::O_NONBLOCK)?;
        let about = file.metadata()?;
        if !about.is_file() || about.uid() != self.owner || about.len() > limit {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut text = Vec::new();
        file.take(limit).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Writes a file anew: whoever reads it finds the old one or the new one, whole.
    pub(super) fn write(&self, name: &OsStr, half_written: &OsStr, text: &[u8]) -> io::Result<()> {
        let (name, half_written) = (component(name)?, component(half_written)?);
        // Left by one that was killed at it, if it is there.
        let _ = self.unlink(&half_written);
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        open_at(self.file.as_raw_fd(), &half_written, flags, 0o600)?.write_all(text)?;
        let dir = self.file.as_raw_fd();
        // SAFETY: two C strings that live through the call, and a valid descriptor.
        match unsafe { libc::renameat(dir, half_written.as_ptr(), dir, name.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Removes a file of the directory itself.
    pub(super) fn remove(&self, name: &OsStr) -> io::Result<()> {
        debug_assert!(!self.strange, "nobody cleans what others write");
        self.unlink(&component(name)?)
    }

    fn unlink(&self, name: &CStr) -> io::Result<()> {
        // SAFETY: a C string that lives through the call, and a valid descriptor.
        match unsafe { libc::unlinkat(self.file.as_raw_fd(), name.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A file that may be locked; nothing is waited for.
    pub(super) fn file(&self, name: &OsStr) -> io::Result<File> {
        self.open(&component(name)?, libc::O_WRONLY | libc::O_NONBLOCK)
    }

    /// About the file itself, links not followed.
    pub(super) fn about(&self, name: &OsStr) -> io::Result<fs::Metadata> {
        self.open(&component(name)?, libc::O_PATH)?.metadata()
    }

    /// A socket of the owner's, as a path that names this very socket as long as the
    /// descriptor lives.
    pub(super) fn socket(&self, name: &OsStr) -> io::Result<(OwnedFd, PathBuf)> {
        let socket = self.open(&component(name)?, libc::O_PATH)?;
        let about = socket.metadata()?;
        if !about.file_type().is_socket() || about.uid() != self.owner {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        Ok((socket.into(), path.into()))
    }

    fn open(&self, name: &CStr, flags: i32) -> io::Result<File> {
        // openat2(2) takes no other flag beside O_PATH.
        let further = match flags & libc::O_PATH {
            0 => libc::O_NOFOLLOW | libc::O_NOCTTY,
            _ => libc::O_NOFOLLOW,
        };
        let flags = flags | further;
        match self.strange {
            true => open_within(&self.file, name, flags),
            false => open_at(self.file.as_raw_fd(), name, flags, 0),
        }
    }

    fn by_descriptor(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Lets nobody but the owner look into it.
    pub(super) fn close_to_others(&self) -> io::Result<()> {
        // SAFETY: a valid descriptor.
        match unsafe { libc::fchmod(self.file.as_raw_fd(), 0o700) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The user that this process acts as.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid cannot fail and has no memory effects.
    unsafe { libc::geteuid() }
}

/// One component of a path: no way out of a directory.
fn component(name: &OsStr) -> io::Result<CString> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(CString::new(bytes)?)
}

fn open_at(dir: i32, name: &CStr, flags: i32, mode: libc::mode_t) -> io::Result<File> {
    // SAFETY: a C string that lives through the call; the descriptor is new.
    unsafe {
        match libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC, mode) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// Opens a name in `dir` that is of the same mount and no link.
fn open_within(dir: &File, name: &CStr, flags: i32) -> io::Result<File> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = libc::RESOLVE_NO_XDEV | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_BENEATH;
    // SAFETY: a C string and a struct of the size that is told, which live through the
    // call; the descriptor is new.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            name.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        );
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(File::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// What was opened is in a file system that a user's program serves, by the kernel's list.
fn serves_itself(file: &File) -> io::Result<bool> {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = about
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let table = MountTable::read()?;
    let mount = id.and_then(|id| table.by_id(id));
    Ok(mount.is_none_or(|mount| mount.fs_type.starts_with("fuse")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_a_directory_that_nobody_else_writes_is_taken() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (plain, link) = (dir.path().join("plain"), dir.path().join("link"));
        fs::create_dir(&plain)?;
        symlink(&plain, &link)?;
        assert!(PrivateDir::own(&link).is_err());
        for (mode, fit) in [
            (0o700, true),
            (0o755, true),
            (0o770, false),
            (0o1777, false),
        ] {
            fs::set_permissions(&plain, fs::Permissions::from_mode(mode))?;
            assert_eq!(PrivateDir::own(&plain).is_ok(), fit, "{mode:o}");
        }
        Ok(())
    }

    #[test]
    fn nothing_outside_is_read_or_removed() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let inner = dir.path().join("inner");
        fs::create_dir(&inner)?;
        fs::write(dir.path().join("x"), "outside")?;
        symlink("../x", inner.join("link"))?;
        let opened = PrivateDir::own(&inner)?;
        for name in ["../x", "..", ".", "", "/etc/passwd", "link"] {
            assert!(opened.read(OsStr::new(name), 100).is_err(), "{name}");
        }
        assert!(opened.remove(OsStr::new("../x")).is_err());
        // The directory is what was opened, whatever lies at its path.
        fs::write(inner.join("y"), "inside")?;
        fs::rename(&inner, dir.path().join("moved"))?;
        symlink(dir.path(), &inner)?;
        opened.remove(OsStr::new("y"))?;
        assert!(opened.remove(OsStr::new("x")).is_err());
        assert!(dir.path().join("x").exists());
        Ok(())
    }

    #[test]
    fn a_pipe_in_it_is_not_waited_for() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = CString::new(dir.path().join("pipe").as_os_str().as_bytes())?;
        // SAFETY: a C string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let opened = PrivateDir::own(dir.path())?;
        assert!(opened.read(OsStr::new("pipe"), 100).is_err());
        fs::write(dir.path().join("long"), "12345")?;
        assert!(opened.read(OsStr::new("long"), 4).is_err());
        assert_eq!(opened.read(OsStr::new("long"), 5)?, b"12345");
        Ok(())
    }
}
