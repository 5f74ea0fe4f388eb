//! A listening socket at a path that the user chose, in a directory that may be anybody's.
//!
//! It has its mode from its first moment on, since changing it by path later might change
//! another file's. And only what is known to be ours is removed to make way for it.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::quoting;

/// Removed from the mode 0777 of a new socket: others may not connect, and nobody executes.
const UMASK: libc::mode_t = 0o117;

/// Binds and listens at `path`, with mode 0660; also says what was made. A socket that is
/// there, where nobody listens, and that `is_ours`, is replaced.
///
/// # Errors
/// Somebody listens there (`AddrInUse`), something else is there (`AlreadyExists`), or it
/// cannot be bound.
pub(super) fn bind(
    path: &Path,
    is_ours: impl Fn(&Path, &Metadata) -> bool,
) -> io::Result<(UnixListener, Metadata)> {
    let place = SocketPlace::of(path)?;
    if let Ok(found) = place.about() {
        if found.file_type().is_socket() && UnixStream::connect(place.path()).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        if !found.file_type().is_socket() || !is_ours(path, &found) {
            let text = format!(
                "{} is there already, and is not the socket of a daemon of this user that has ended",
                quoting::path(path)
            );
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        place.remove(&found)?;
    }
    let listener = private_umask(|| UnixListener::bind(place.path()))?;
    Ok((listener, place.about()?))
}

/// Removes the socket at `path` if it is still this one.
///
/// # Errors
/// It is gone, or something else is there.
pub(super) fn remove(path: &Path, socket: &Metadata) -> io::Result<()> {
    SocketPlace::of(path)?.remove(socket)
}

/// A name in a directory that was opened once.
struct SocketPlace<'a> {
    dir: File,
    name: &'a OsStr,
}

impl<'a> SocketPlace<'a> {
    fn of(path: &'a Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = path.parent().unwrap_or_else(|| Path::new("/"));
        let dir = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(dir)?;
        Ok(Self { dir, name })
    }

    /// A path that means this place whatever is renamed meanwhile; also short enough for a
    /// socket address.
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.dir.as_raw_fd().to_string())
            .join(self.name)
    }

    fn about(&self) -> io::Result<Metadata> {
        fs::symlink_metadata(self.path())
    }

    fn remove(&self, socket: &Metadata) -> io::Result<()> {
        let now = self.about()?;
        if (now.dev(), now.ino()) != (socket.dev(), socket.ino()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let name = CString::new(self.name.as_bytes())?;
        // SAFETY: a C string that lives through the call, and a valid descriptor.
        match unsafe { libc::unlinkat(self.dir.as_raw_fd(), name.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Makes a file with a umask of its own. The umask is the process's, and other threads make
/// files too: a thread with a umask of its own does it, and ends.
fn private_umask<T: Send>(make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: it concerns this thread only, which makes one file and ends.
            if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: umask cannot fail and has no memory effects.
            unsafe { libc::umask(UMASK) };
            make()
        });
        let made = made.join();
        made.unwrap_or_else(|_| Err(io::Error::other("making a socket panicked")))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_socket_has_its_mode_and_the_processs_umask_stays() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (_listener, socket) = bind(&dir.path().join("m"), |_, _| false)?;
        assert_eq!(socket.mode() & 0o7777, 0o660);
        fs::write(dir.path().join("file"), "")?;
        let file = fs::metadata(dir.path().join("file"))?;
        assert_ne!(
            file.mode() & 0o777,
            0o660 & !UMASK,
            "another umask than before"
        );
        Ok(())
    }

    #[test]
    fn only_a_dead_socket_of_ours_is_replaced() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("m");
        let living = UnixListener::bind(&path)?;
        let taken = bind(&path, |_, _| true).map(|_| ());
        assert!(taken.is_err_and(|why| why.kind() == io::ErrorKind::AddrInUse));
        drop(living);
        // A service's that is being started anew, say.
        assert!(bind(&path, |_, _| false).is_err());
        assert!(path.exists());
        drop(bind(&path, |_, _| true)?);
        fs::remove_file(&path)?;
        fs::write(&path, "not a socket")?;
        assert!(bind(&path, |_, _| true).is_err());
        assert_eq!(fs::read(&path)?, b"not a socket");
        fs::remove_file(&path)?;
        symlink(dir.path().join("elsewhere"), &path)?;
        assert!(bind(&path, |_, _| true).is_err());
        assert!(!dir.path().join("elsewhere").exists());
        Ok(())
    }

    #[test]
    fn what_took_the_place_of_a_socket_is_not_removed_with_it() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("m");
        let (_listener, socket) = bind(&path, |_, _| false)?;
        fs::rename(&path, dir.path().join("moved"))?;
        fs::write(&path, "another")?;
        assert!(remove(&path, &socket).is_err());
        assert_eq!(fs::read(&path)?, b"another");
        Ok(())
    }
}
