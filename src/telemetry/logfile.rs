//! Opening the file of `-o log=FILE`.
//!
//! Root opens it before it lays its capabilities down, at a path that may lead through
//! directories of others. Who may write to a directory on the way can put a link there, or
//! a pipe that nobody reads. So the path is walked by hand:
//!
//! - a link is followed only if root or the user of this process made it, and nobody else
//!   can put another in its place;
//! - what is at the end is a regular file, or is made; in a directory that others may
//!   write, one that is there must be root's or this user's, and have no other name;
//! - nothing is opened before it is known to be that: opening a device does things, and
//!   opening a pipe waits.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use crate::quoting;

/// As the kernel allows in one path walk.
const MAX_LINKS: usize = 40;
/// A file that is made and removed all the time is not waited for.
const TRIES: usize = 10;
/// For who else is to read it, such as the group `adm`.
const MODE: libc::mode_t = 0o640;

/// Opens the file to append to it; makes it if there is none.
///
/// # Errors
/// It cannot be opened, or must not be: see the module.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut walk = Walk::from_root()?;
    walk.go(&std::path::absolute(path)?)?;
    for _ in 0..TRIES {
        match walk.last() {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
            Ok(Some(file)) => return Ok(file),
            // It was a link: on with what it leads to.
            Ok(None) => {}
            Err(why) => return Err(why),
        }
    }
    Err(refusal("it does not stay what it is"))
}

struct Walk {
    dir: File,
    rest: VecDeque<OsString>,
    links: usize,
}

impl Walk {
    fn from_root() -> io::Result<Self> {
        Ok(Self {
            dir: root()?,
            rest: VecDeque::new(),
            links: 0,
        })
    }

    /// Puts a path before what is left to be walked.
    fn go(&mut self, path: &Path) -> io::Result<()> {
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.rest.push_front(name.to_owned()),
                Component::ParentDir => self.rest.push_front("..".into()),
                Component::RootDir => self.dir = root()?,
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    /// Walks to the last name and opens it; `None` if that was a link.
    fn last(&mut self) -> io::Result<Option<File>> {
        loop {
            let Some(name) = self.rest.pop_front() else {
                return Err(refusal("it is a directory"));
            };
            if !self.rest.is_empty() {
                self.step(&name)?;
                continue;
            }
            // For another try.
            self.rest.push_front(name.clone());
            let found = match open_at(&self.dir, &name, libc::O_PATH, 0) {
                Ok(found) => found,
                Err(why) if why.kind() == io::ErrorKind::NotFound => {
                    let new = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_APPEND;
                    return open_at(&self.dir, &name, new, MODE).map(Some);
                }
                Err(why) => return Err(why),
            };
            let about = found.metadata()?;
            if about.is_symlink() {
                self.rest.clear();
                self.follow(&name, &found, &about)?;
                return Ok(None);
            }
            self.may_be_written(&about)?;
            let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOCTTY;
            let file = open_at(&self.dir, &name, flags, 0)?;
            let opened = file.metadata()?;
            if (opened.dev(), opened.ino()) != (about.dev(), about.ino()) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            return Ok(Some(file));
        }
    }

    fn step(&mut self, name: &OsStr) -> io::Result<()> {
        let next = open_at(&self.dir, name, libc::O_PATH, 0)?;
        let about = next.metadata()?;
        match about.is_symlink() {
            true => self.follow(name, &next, &about),
            false if about.is_dir() => {
                self.dir = next;
                Ok(())
            }
            false => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        }
    }

    fn follow(&mut self, name: &OsStr, link: &File, about: &Metadata) -> io::Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let dir = self.dir.metadata()?;
        let sticky = dir.mode() & libc::S_ISVTX != 0 && is_trusted(&dir);
        if !is_trusted(about) || (is_open_to_others(&dir) && !sticky) {
            let why = format!(
                "{} on the way is a link that others could have made",
                quoting::name(name.as_bytes())
            );
            return Err(refusal(&why));
        }
        let target = read_link(link)?;
        self.go(Path::new(&target))
    }

    fn may_be_written(&self, about: &Metadata) -> io::Result<()> {
        if !about.is_file() {
            return Err(refusal("it is no regular file"));
        }
        if is_open_to_others(&self.dir.metadata()?) && (!is_trusted(about) || about.nlink() != 1) {
            return Err(refusal(
                "others may write to its directory, and the file is not this user's alone",
            ));
        }
        Ok(())
    }
}

fn refusal(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Made by root or by the user of this process.
fn is_trusted(about: &Metadata) -> bool {
    // SAFETY: geteuid cannot fail and has no memory effects.
    let user = unsafe { libc::geteuid() };
    about.uid() == 0 || about.uid() == user
}

fn is_open_to_others(dir: &Metadata) -> bool {
    !is_trusted(dir) || dir.mode() & 0o022 != 0
}

fn root() -> io::Result<File> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    open_raw(libc::AT_FDCWD, OsStr::new("/"), flags, 0)
}

fn open_at(dir: &File, name: &OsStr, flags: i32, mode: libc::mode_t) -> io::Result<File> {
    open_raw(dir.as_raw_fd(), name, flags | libc::O_NOFOLLOW, mode)
}

fn open_raw(dir: i32, name: &OsStr, flags: i32, mode: libc::mode_t) -> io::Result<File> {
    let name = CString::new(name.as_bytes())?;
    // SAFETY: a C string that lives through the call; the descriptor is new.
    unsafe {
        match libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC, mode) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// The text of a link that was opened by path only.
fn read_link(link: &File) -> io::Result<OsString> {
    let mut text = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: a valid descriptor, an empty C string, and a buffer of the length that is
    // told.
    let length = unsafe {
        libc::readlinkat(
            link.as_raw_fd(),
            c"".as_ptr(),
            text.as_mut_ptr().cast(),
            text.len(),
        )
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    text.truncate(length);
    Ok(OsStr::from_bytes(&text).to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    #[test]
    fn a_file_is_made_and_appended_to_also_behind_links_of_our_own() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let real = dir.path().join("real");
        fs::create_dir(&real)?;
        symlink("real", dir.path().join("link"))?;
        symlink("../real/log", real.join("other"))?;
        for path in ["link/log", "real/log", "real/other", "link/../link/./log"] {
            open(&dir.path().join(path))?.write_all(b"x")?;
        }
        assert_eq!(fs::read(real.join("log"))?, b"xxxx");
        assert_eq!(fs::metadata(real.join("log"))?.mode() & 0o137, 0);
        assert!(open(&real).is_err() && open(&dir.path().join("no/log")).is_err());
        symlink("circle", dir.path().join("circle"))?;
        assert!(open(&dir.path().join("circle")).is_err());
        Ok(())
    }

    #[test]
    fn a_link_where_others_may_put_one_is_not_followed() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (open_dir, secret) = (dir.path().join("open"), dir.path().join("secret"));
        fs::create_dir(&open_dir)?;
        fs::write(&secret, "kept")?;
        symlink(&secret, open_dir.join("log"))?;
        symlink(dir.path(), open_dir.join("way"))?;
        for others in [0o777, 0o775] {
            mode(&open_dir, others)?;
            assert!(open(&open_dir.join("log")).is_err(), "{others:o}");
            assert!(open(&open_dir.join("way/new")).is_err(), "{others:o}");
        }
        // Sticky: nobody else can have put our own link there.
        mode(&open_dir, 0o1777)?;
        open(&open_dir.join("way/new"))?;
        assert_eq!(fs::read(&secret)?, b"kept");
        Ok(())
    }

    #[test]
    fn only_a_regular_file_is_opened_and_nothing_hangs() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let pipe = dir.path().join("pipe");
        let text = CString::new(pipe.as_os_str().as_bytes())?;
        // SAFETY: a C string that lives through the call.
        assert_eq!(unsafe { libc::mkfifo(text.as_ptr(), 0o666) }, 0);
        let begun = std::time::Instant::now();
        assert!(open(&pipe).is_err());
        // With a reader it would be writable.
        let text = OsStr::new("pipe");
        let read = libc::O_RDONLY | libc::O_NONBLOCK;
        let _reader = open_at(&File::open(dir.path())?, text, read, 0)?;
        assert!(open(&pipe).is_err());
        assert!(open(Path::new("/dev/null")).is_err());
        assert!(begun.elapsed().as_secs() < 5);
        Ok(())
    }

    #[test]
    fn a_file_that_others_have_put_there_is_not_written() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (open_dir, kept) = (dir.path().join("open"), dir.path().join("kept"));
        fs::create_dir(&open_dir)?;
        fs::write(&kept, "kept")?;
        fs::hard_link(&kept, open_dir.join("log"))?;
        mode(&open_dir, 0o1777)?;
        assert!(open(&open_dir.join("log")).is_err());
        // Where only we write it is our own doing.
        mode(&open_dir, 0o755)?;
        open(&open_dir.join("log"))?;
        // For root only.
        if fs::write(open_dir.join("theirs"), "").is_ok()
            && chown(open_dir.join("theirs"), Some(1000), None).is_ok()
        {
            open(&open_dir.join("theirs"))?;
            mode(&open_dir, 0o1777)?;
            assert!(open(&open_dir.join("theirs")).is_err());
        }
        Ok(())
    }
}
