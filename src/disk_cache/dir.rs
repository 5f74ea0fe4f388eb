//! The directory of the cache, reached by descriptors.
//!
//! ```text
//! DIR/usage                      bytes in use and slices made so far, by all daemons
//! DIR/<file system>/<xx>/<slice> cache files; 32, 2 and 32 hexadecimal digits
//! ```
//!
//! No link is followed, and nothing is removed but files whose names look like ours, in directories
//! whose names do.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use super::format::FileSystemId;

/// The name of a slice: the hash of file handle and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SliceName {
    pub(super) fs: FileSystemId,
    pub(super) hash: [u8; 16],
}

/// What a file of the cache is found to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) name: SliceName,
    /// Bytes that are allocated.
    pub(super) bytes: u64,
    /// When it was used last: seconds and nanoseconds since 1970.
    pub(super) used: (i64, i64),
}

/// The space of the file system that the directory is in, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// The file by which several daemons keep one account.
const USAGE: &str = "usage";
/// Its magic number; behind it stand the bytes in use, and how many slices were made.
const MAGIC: [u8; 8] = *b"EFSF-DU1";
/// So often the account is asked for while another daemon has it. That takes microseconds, unless it
/// was stopped at it.
const LOCK_TRIES: u32 = 20;

/// What all daemons of a directory know together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Bytes in use.
    pub(super) used: u64,
    /// Slices that were made, ever.
    pub(super) made: u64,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Dir {
    fd: File,
    usage: File,
    /// Keeps the threads of this process apart at the account; flock(2) does that with processes.
    /// Only threads that do I/O anyway take it.
    mine: Mutex<()>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(name: &OsStr) -> Option<[u8; 16]> {
    let text = name.to_str().filter(|text| text.len() == 32)?;
    if !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let number = u128::from_str_radix(text, 16).ok()?;
    Some(number.to_be_bytes())
}

fn open_at(at: &File, name: &str, flags: i32) -> io::Result<File> {
    let name = CString::new(name)?;
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a valid descriptor and a C string that lives through the call.
    let fd = unsafe { libc::openat(at.as_raw_fd(), name.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn open_dir_at(at: &File, name: &str, make: bool) -> io::Result<File> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    match open_at(at, name, flags) {
        Err(why) if make && why.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let text = CString::new(name)?;
    // SAFETY: as above.
    let made = unsafe { libc::mkdirat(at.as_raw_fd(), text.as_ptr(), 0o700) };
    if made != 0 {
        let why = io::Error::last_os_error();
        if why.kind() != io::ErrorKind::AlreadyExists {
            return Err(why);
        }
    }
    open_at(at, name, flags)
}

/// What is in a directory that is open.
fn names_in(dir: &File) -> io::Result<Vec<std::ffi::OsString>> {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

impl fmt::Display for SliceName {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}/{}", hex(&self.fs.0), self.folder(), self.file())
    }
}

impl SliceName {
    fn folder(&self) -> String {
        hex(&self.hash[..1])
    }

    fn file(&self) -> String {
        hex(&self.hash)
    }
}

/// Why there is no cache in a directory.
#[derive(Debug)]
pub(super) enum Unfit {
    /// It is not fit to be one, in words.
    Wrong(String),
    /// There is no room for its first bytes, which may pass.
    Full(io::Error),
}

impl From<io::Error> for Unfit {
    fn from(why: io::Error) -> Self {
        match is_full(&why) {
            true => Self::Full(why),
            false => Self::Wrong(why.to_string()),
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(why) => why.fmt(to),
            Self::Full(why) => why.fmt(to),
        }
    }
}

impl std::error::Error for Unfit {}

/// The disk has no room.
pub(super) fn is_full(why: &io::Error) -> bool {
    matches!(
        why.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether a directory is fit to be a cache; why not, in words.
fn check(path: &Path) -> Result<(), String> {
    // SAFETY: geteuid has no preconditions.
    let user = unsafe { libc::geteuid() };
    let about = match fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(why) => return Err(why.to_string()),
    };
    if about.file_type().is_symlink() {
        return Err("it is a symbolic link".to_owned());
    }
    if !about.is_dir() {
        return Err("it is no directory".to_owned());
    }
    if about.uid() != user {
        return Err(format!("it belongs to user {}, not to {user}", about.uid()));
    }
    match about.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(format!(
            "others have access to it (mode {:04o}, not 0700)",
            about.mode() & 0o7777
        )),
    }
}

impl Dir {
    /// The directory at `path`, which is made (0700) if there is none.
    ///
    /// # Errors
    /// It is somebody else's, open to others, a link, or no directory; or the disk fails.
    pub(super) fn make(path: &Path) -> Result<Self, Unfit> {
        let made = fs::DirBuilder::new().mode(0o700).create(path);
        match made {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
            Err(why) => return Err(why.into()),
            Ok(()) => {}
        }
        Self::open_with(path, true)
    }

    /// The directory at `path`, which has been a cache before.
    ///
    /// # Errors
    /// As [`Dir::make`]; or there is none.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        Self::open_with(path, false).map_err(|why| why.to_string())
    }

    fn open_with(path: &Path, make: bool) -> Result<Self, Unfit> {
        check(path).map_err(Unfit::Wrong)?;
        let text = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: a C string that lives through the call.
        let fd = unsafe { libc::open(text.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: it was just opened, and nobody else has it.
        let fd = unsafe { File::from_raw_fd(fd) };
        let create = if make { libc::O_CREAT } else { 0 };
        let usage = open_at(&fd, USAGE, libc::O_RDWR | create).map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => Unfit::Wrong("it is no cache of efs-fuse".to_owned()),
            _ => why.into(),
        })?;
        let mine = Mutex::default();
        let dir = Self { fd, usage, mine };
        match dir.account(|_| ()) {
            // It steps aside until there is room.
            Err(why) if make && is_full(&why) => {}
            looked => looked?,
        }
        Ok(dir)
    }

    /// Looks at the account, and changes it.
    ///
    /// # Errors
    /// The disk fails, or another daemon does not give the account back (`WouldBlock`).
    pub(super) fn account<T>(&self, change: impl FnOnce(&mut Account) -> T) -> io::Result<T> {
        let _mine = self.mine.lock();
        let _lock = self.lock()?;
        let mut bytes = [0; 24];
        let mut length = 0;
        while length < bytes.len() {
            match self.usage.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        let word = |at: usize| {
            let word = bytes[at..at + 8].try_into();
            word.map_or(0, u64::from_le_bytes)
        };
        let mut account = match length == bytes.len() && bytes[..8] == MAGIC {
            true => Account {
                used: word(8),
                made: word(16),
            },
            false => Account::default(),
        };
        let before = account;
        let result = change(&mut account);
        if account != before || bytes[..8] != MAGIC {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..16].copy_from_slice(&account.used.to_le_bytes());
            bytes[16..].copy_from_slice(&account.made.to_le_bytes());
            self.usage.write_all_at(&bytes, 0)?;
        }
        Ok(result)
    }

    fn lock(&self) -> io::Result<Unlock<'_>> {
        let mut tries = 0;
        loop {
            let operation = libc::LOCK_EX | libc::LOCK_NB;
            // SAFETY: a valid descriptor and a documented operation.
            if unsafe { libc::flock(self.usage.as_raw_fd(), operation) } == 0 {
                return Ok(Unlock(&self.usage));
            }
            let why = io::Error::last_os_error();
            tries += 1;
            match why.kind() {
                io::ErrorKind::WouldBlock if tries < LOCK_TRIES => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                io::ErrorKind::Interrupted => {}
                _ => return Err(why),
            }
        }
    }

    /// Opens a cache file.
    ///
    /// # Errors
    /// There is none (`NotFound`), or the disk fails.
    pub(super) fn open_slice(&self, name: &SliceName) -> io::Result<File> {
        let fs = open_dir_at(&self.fd, &hex(&name.fs.0), false)?;
        let folder = open_dir_at(&fs, &name.folder(), false)?;
        open_at(&folder, &name.file(), libc::O_RDWR | libc::O_NONBLOCK)
    }

    /// Makes a cache file, in the place of what is there. The old one stays as it is for who has it
    /// open.
    ///
    /// # Errors
    /// Another daemon makes it at this moment (`AlreadyExists`), or the disk fails.
    pub(super) fn make_slice(&self, name: &SliceName) -> io::Result<File> {
        let fs = open_dir_at(&self.fd, &hex(&name.fs.0), true)?;
        let folder = open_dir_at(&fs, &name.folder(), true)?;
        match unlink_at(&folder, &name.file()) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            _ => {}
        }
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        open_at(&folder, &name.file(), flags)
    }

    /// Removes a cache file.
    ///
    /// # Errors
    /// There is none (`NotFound`), or the disk fails.
    pub(super) fn remove_slice(&self, name: &SliceName) -> io::Result<()> {
        let fs = open_dir_at(&self.fd, &hex(&name.fs.0), false)?;
        let folder = open_dir_at(&fs, &name.folder(), false)?;
        unlink_at(&folder, &name.file())
    }

    /// All cache files, one after the other.
    ///
    /// # Errors
    /// The disk fails, or `each` does.
    pub(super) fn walk(&self, mut each: impl FnMut(Found) -> io::Result<()>) -> io::Result<()> {
        for fs_name in names_in(&self.fd)? {
            let Some(fs) = from_hex(&fs_name) else {
                continue;
            };
            let fs = FileSystemId(fs);
            let Ok(of_fs) = open_dir_at(&self.fd, &hex(&fs.0), false) else {
                continue;
            };
            for folder_name in names_in(&of_fs)? {
                let Some(folder) = folder_name.to_str().filter(|name| name.len() == 2) else {
                    continue;
                };
                let Ok(of_folder) = open_dir_at(&of_fs, folder, false) else {
                    continue;
                };
                for file in names_in(&of_folder)? {
                    let Some(hash) = from_hex(&file) else {
                        continue;
                    };
                    let name = SliceName { fs, hash };
                    if name.folder() != folder {
                        continue;
                    }
                    let about = fs::symlink_metadata(
                        PathBuf::from(format!("/proc/self/fd/{}", of_folder.as_raw_fd()))
                            .join(&file),
                    );
                    // It may be gone by now.
                    let Ok(about) = about else { continue };
                    if about.is_file() {
                        each(Found {
                            name,
                            bytes: about.blocks() * 512,
                            used: (about.mtime(), about.mtime_nsec()),
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes directories of ours that are empty.
    pub(super) fn remove_empty(&self) {
        let remove = |at: &File, name: &OsStr| {
            if let Ok(name) = CString::new(name.as_bytes()) {
                // SAFETY: a valid descriptor and a C string. One that is not empty stays.
                unsafe { libc::unlinkat(at.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) };
            }
        };
        for fs in names_in(&self.fd).unwrap_or_default() {
            let Some(id) = from_hex(&fs) else { continue };
            let Ok(of_fs) = open_dir_at(&self.fd, &hex(&id), false) else {
                continue;
            };
            for folder in names_in(&of_fs).unwrap_or_default() {
                if folder.len() == 2 {
                    remove(&of_fs, &folder);
                }
            }
            remove(&self.fd, &fs);
        }
    }

    /// How large the file system is, and how much of it is free for root's programs.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn space(&self) -> io::Result<Space> {
        // SAFETY: all zeros are a value of this struct.
        let mut space: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: a valid descriptor, and a struct that lives through the call.
        if unsafe { libc::fstatvfs(self.fd.as_raw_fd(), &mut space) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let unit = space.f_frsize as u64;
        Ok(Space {
            total: space.f_blocks as u64 * unit,
            free: space.f_bavail as u64 * unit,
        })
    }
}

fn unlink_at(at: &File, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: a valid descriptor and a C string that lives through the call.
    match unsafe { libc::unlinkat(at.as_raw_fd(), name.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives the account back.
struct Unlock<'a>(&'a File);

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        // SAFETY: a valid descriptor and a documented operation.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn why_not(path: &Path) -> String {
        let made = Dir::make(path);
        made.err().map(|why| why.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_directory_that_others_may_enter_or_that_is_none_is_refused() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = dir.path().join("cache");
        assert!(Dir::open(&cache).is_err());
        assert!(Dir::make(&cache).is_ok(), "it is made");
        assert_eq!(fs::metadata(&cache)?.mode() & 0o7777, 0o700);
        assert!(Dir::open(&cache).is_ok());
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o750))?;
        let why = why_not(&cache);
        assert!(why.contains("0750"), "{why}");
        let link = dir.path().join("link");
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o700))?;
        symlink(&cache, &link)?;
        let why = why_not(&link);
        assert!(why.contains("symbolic link"), "{why}");
        let file = dir.path().join("file");
        fs::write(&file, "")?;
        let why = why_not(&file);
        assert!(why.contains("no directory"), "{why}");
        Ok(())
    }

    #[test]
    fn the_account_is_one_for_all_who_have_the_directory() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let open = || Dir::make(&dir.path().join("cache")).map_err(io::Error::other);
        let (one, other) = (open()?, open()?);
        std::thread::scope(|scope| {
            for dir in [&one, &other] {
                scope.spawn(move || {
                    let mut done = 0;
                    while done < 200 {
                        done += u32::from(dir.account(|account| account.used += 3).is_ok());
                    }
                });
            }
        });
        assert_eq!(one.account(|account| account.used)?, 1200);
        Ok(())
    }

    #[test]
    fn only_what_looks_like_ours_is_walked() -> io::Result<()> {
        let temp = tempfile::tempdir()?;
        let path = temp.path().join("cache");
        let dir = Dir::make(&path).map_err(io::Error::other)?;
        let name = SliceName {
            fs: FileSystemId([7; 16]),
            hash: [0xab; 16],
        };
        dir.make_slice(&name)?.write_all_at(&[1; 5000], 0)?;
        fs::write(path.join("a letter"), "")?;
        let of_fs = path.join(hex(&name.fs.0));
        fs::write(of_fs.join("ab").join("another"), "")?;
        // A name like ours in the wrong folder.
        fs::create_dir(of_fs.join("cd"))?;
        fs::write(of_fs.join("cd").join(hex(&[0xab; 16])), "")?;
        symlink("/etc/passwd", of_fs.join("cd").join(hex(&[0xcd; 16])))?;
        let mut found = Vec::new();
        dir.walk(|one| {
            found.push(one);
            Ok(())
        })?;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].name == name && found[0].bytes >= 5000);
        dir.remove_slice(&name)?;
        dir.remove_empty();
        assert!(of_fs.join("cd").exists() && path.join("a letter").exists());
        Ok(())
    }
}
