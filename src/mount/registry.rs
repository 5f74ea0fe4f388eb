//! What is known about running mounts: one small JSON file and one control
//! socket each, in `/run/efs-fuse` for root, `$XDG_RUNTIME_DIR/efs-fuse` for
//! others.
//!
//! The kernel's mount table is the truth about what is mounted; the registry
//! adds which process serves it. An entry is only believed while its process
//! lives (pid and start time), so a daemon that was killed leaves nothing that
//! has to be cleaned by hand. Pids mean something in their own pid namespace only: the
//! daemon of another one, which shares the directory, lives if it answers at its socket.
//! Files are named by a hash of the mount point:
//! socket paths must stay below 108 bytes.
//!
//! [`StartLock`] makes mounting at one place exclusive from the first check
//! until the mount is in the table, so that two mounts begun at the same time
//! cannot end up on top of each other. It is a file lock, gone with its holder.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::process::{self, Identity};

/// Entries are a few hundred bytes.
const MAX_ENTRY: u64 = 64 << 10;

/// What is written about a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The canonical mount point.
    pub mountpoint: PathBuf,
    /// The device as the mount table shows it.
    pub device: String,
    /// The server, `HOST:PORT`.
    pub server: String,
    /// The process that serves the mount.
    pub pid: u32,
    /// Its start time in clock ticks since boot.
    pub start_time: u64,
    /// The pid namespace in which that is its pid; 0: not known.
    #[serde(default)]
    pub pid_namespace: u64,
    /// The program it runs.
    pub exe: PathBuf,
    /// When it began, in seconds since 1970.
    pub since: u64,
    /// The version of the program.
    pub version: String,
    /// The mount options, each as it was written.
    #[serde(default)]
    pub options: Vec<String>,
}

impl Entry {
    /// An entry for a mount that this process is about to serve.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn own(mountpoint: &Path, device: &str, server: &str) -> io::Result<Self> {
        let Identity { pid, start_time } = Identity::own()?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Self {
            mountpoint: mountpoint.to_owned(),
            device: device.to_owned(),
            server: server.to_owned(),
            pid,
            start_time,
            pid_namespace: process::own_pid_namespace(),
            exe: process::executable(pid).unwrap_or_default(),
            since: now.as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            options: Vec::new(),
        })
    }

    /// Its pid is one of the namespace of this process.
    fn is_near(&self) -> bool {
        self.pid_namespace == 0 || self.pid_namespace == process::own_pid_namespace()
    }

    /// The process that serves it.
    pub fn identity(&self) -> Identity {
        Identity {
            pid: self.pid,
            start_time: self.start_time,
        }
    }
}

/// How long a daemon may take from its entry to its control socket.
const STARTING: Duration = Duration::from_secs(60);

/// An entry together with where its control socket is.
#[derive(Debug, Clone)]
pub struct Found {
    /// What is written.
    pub entry: Entry,
    /// The control socket of the mount.
    pub socket: PathBuf,
}

impl Found {
    /// The process that serves the mount can be looked at from here.
    fn is_near(&self) -> bool {
        self.entry.is_near()
    }

    /// The process that serves the mount lives.
    fn is_alive(&self) -> bool {
        match self.is_near() {
            true => self.entry.identity().is_alive(),
            false => UnixStream::connect(&self.socket).is_ok() || self.is_starting(),
        }
    }

    fn is_starting(&self) -> bool {
        let began = UNIX_EPOCH + Duration::from_secs(self.entry.since);
        let age = SystemTime::now().duration_since(began);
        age.is_ok_and(|age| age < STARTING)
    }
}

/// One directory of entries.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The one of the current user.
    pub fn of_user() -> Self {
        // SAFETY: geteuid cannot fail and has no memory effects.
        let uid = unsafe { libc::geteuid() };
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        Self::at(match runtime_dir {
            _ if uid == 0 => PathBuf::from("/run/efs-fuse"),
            Some(dir) => Path::new(&dir).join("efs-fuse"),
            None => PathBuf::from(format!("/tmp/efs-fuse-{uid}")),
        })
    }

    /// One in a given directory.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// All that the current user may look into, the own one first: root also
    /// sees the mounts of users that are logged in.
    pub fn visible() -> Vec<Self> {
        let mut visible = vec![Self::of_user()];
        if visible[0].dir == Path::new("/run/efs-fuse") {
            let users = fs::read_dir("/run/user").into_iter().flatten().flatten();
            visible.extend(users.map(|user| Self::at(user.path().join("efs-fuse"))));
        }
        visible
    }

    /// Makes the directory, for this user alone.
    fn create(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
            _ => {}
        }
        // Others may write to what is above it (/tmp): what they put there is not ours.
        let found = fs::symlink_metadata(&self.dir)?;
        // SAFETY: geteuid cannot fail and has no memory effects.
        if !found.is_dir() || found.uid() != unsafe { libc::geteuid() } {
            let why = format!("{} belongs to somebody else", self.dir.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// The path of a file about `mountpoint`, in the directory, which is made if there is
    /// none.
    ///
    /// # Errors
    /// The directory cannot be made, or is somebody else's.
    pub(super) fn private_file(&self, mountpoint: &Path, suffix: &str) -> io::Result<PathBuf> {
        self.create()?;
        Ok(self.file(mountpoint, suffix))
    }

    fn file(&self, mountpoint: &Path, suffix: &str) -> PathBuf {
        self.dir.join(format!("{:032x}.{suffix}", hash(mountpoint)))
    }

    /// Takes the start lock of a place; waits at most `patience` for another
    /// holder. `Ok(None)`: somebody else is mounting there.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn lock(&self, mountpoint: &Path, patience: Duration) -> io::Result<Option<StartLock>> {
        self.create()?;
        let path = self.file(mountpoint, "lock");
        let end = Instant::now() + patience;
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            // SAFETY: a valid descriptor and a documented operation.
            let locked =
                unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
            if locked {
                // The last holder removes the file: a lock on a removed file keeps nobody out.
                let same = fs::metadata(&path)
                    .is_ok_and(|now| file.metadata().is_ok_and(|ours| now.ino() == ours.ino()));
                if same {
                    return Ok(Some(StartLock { path, _file: file }));
                }
                continue;
            }
            let why = io::Error::last_os_error();
            if why.raw_os_error() != Some(libc::EWOULDBLOCK) {
                return Err(why);
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Publishes a mount. The control socket is to be bound at
    /// [`Registration::socket`]; both are removed when that is dropped. What
    /// dead daemons left behind is removed on the way.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn register(&self, entry: &Entry) -> io::Result<Registration> {
        self.create()?;
        self.clean();
        let path = self.file(&entry.mountpoint, "json");
        let half_written = self.file(&entry.mountpoint, "new");
        fs::write(&half_written, serde_json::to_vec(entry)?)?;
        fs::rename(&half_written, &path)?;
        Ok(Registration {
            path,
            socket: self.file(&entry.mountpoint, "sock"),
            identity: entry.identity(),
        })
    }

    /// The entry of a mount point, if its process lives.
    pub fn find(&self, mountpoint: &Path) -> Option<Found> {
        let found = self.load(&self.file(mountpoint, "json"))?;
        (found.entry.mountpoint == mountpoint && found.is_alive()).then_some(found)
    }

    /// All entries whose process lives, oldest first.
    pub fn list(&self) -> Vec<Found> {
        let mut entries: Vec<_> = self
            .entries()
            .filter(|(_, found)| found.is_alive())
            .collect();
        entries.sort_by_key(|(_, found)| found.entry.since);
        entries.into_iter().map(|(_, found)| found).collect()
    }

    /// Removes what dead daemons left behind.
    pub fn clean(&self) {
        for (path, found) in self.entries() {
            if !found.is_alive() {
                // Somebody else may have been faster.
                let _ = fs::remove_file(&path);
                let _ = fs::remove_file(&found.socket);
            }
        }
    }

    fn entries(&self) -> impl Iterator<Item = (PathBuf, Found)> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "json"))
            .filter_map(|path| Some((path.clone(), self.load(&path)?)))
    }

    /// Root reads entries that other users wrote: one is only believed if the
    /// process it names belongs to its writer.
    fn load(&self, path: &Path) -> Option<Found> {
        let about = fs::symlink_metadata(path).ok()?;
        if !about.is_file() || about.len() > MAX_ENTRY {
            return None;
        }
        let entry: Entry = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let owner = fs::metadata(format!("/proc/{}", entry.pid)).map(|process| process.uid());
        if entry.is_near() && owner.is_ok_and(|uid| uid != about.uid()) {
            return None;
        }
        let socket = path.with_extension("sock");
        Some(Found { entry, socket })
    }
}

/// The right to mount at one place. Ends when dropped, or with the process;
/// a forked child holds it too.
#[derive(Debug)]
pub struct StartLock {
    path: PathBuf,
    _file: File,
}

impl StartLock {
    /// After a fork: leaves the lock to the child. It must not be dropped here,
    /// which would remove the file and so end the child's hold.
    pub fn leave_to_child(self) {
        std::mem::forget(self);
    }
}

impl Drop for StartLock {
    fn drop(&mut self) {
        // Before the lock goes with the descriptor: who opens the file from
        // here on makes a new one.
        let _ = fs::remove_file(&self.path);
    }
}

/// A published mount. Dropping it removes entry and socket, unless another
/// mount has taken the place since.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
    socket: PathBuf,
    identity: Identity,
}

impl Registration {
    /// Where the control socket is to be bound.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let written: Option<Entry> = fs::read(&self.path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        if written.is_some_and(|entry| entry.identity() == self.identity) {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_file(&self.socket);
        }
    }
}

/// FNV-1a, 128 bits: the same in every version of the program, unlike std's hash.
fn hash(path: &Path) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = path.as_os_str().as_bytes();
    bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> io::Result<(tempfile::TempDir, Registry)> {
        let dir = tempfile::tempdir()?;
        let registry = Registry::at(dir.path().join("efs-fuse"));
        Ok((dir, registry))
    }

    #[test]
    fn a_registered_mount_is_found_until_it_is_dropped() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let place = Path::new("/volumes");
        let registration = registry.register(&Entry::own(place, "h:/", "h:2049")?)?;
        let found = registry.find(place).ok_or(io::ErrorKind::NotFound)?;
        assert_eq!(found.entry.device, "h:/");
        assert_eq!(found.socket, registration.socket());
        assert_eq!(registry.list().len(), 1);
        assert!(registry.find(Path::new("/volume")).is_none());
        let mode = fs::metadata(&registry.dir)?.mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(registration);
        assert!(registry.find(place).is_none());
        Ok(())
    }

    #[test]
    fn entries_of_dead_daemons_are_not_believed_and_are_cleaned() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let mut dead = Entry::own(Path::new("/dead"), "h:/", "h:2049")?;
        dead.start_time += 1;
        let kept = std::mem::ManuallyDrop::new(registry.register(&dead)?);
        fs::write(kept.socket(), "")?;
        assert!(registry.find(Path::new("/dead")).is_none());
        assert!(registry.list().is_empty());
        let _living = registry.register(&Entry::own(Path::new("/living"), "h:/", "h:2049")?)?;
        assert!(!kept.path.exists() && !kept.socket.exists());
        assert_eq!(registry.list().len(), 1);
        Ok(())
    }

    #[test]
    fn the_daemon_of_another_pid_namespace_is_not_taken_for_dead() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let place = Path::new("/far");
        let mut far = Entry::own(place, "h:/", "h:2049")?;
        // Of its pid nothing can be told from here.
        far.pid_namespace += 1;
        far.start_time += 1;
        let kept = std::mem::ManuallyDrop::new(registry.register(&far)?);
        registry.clean();
        assert!(registry.find(place).is_some(), "it may be about to listen");
        far.since -= 2 * STARTING.as_secs();
        fs::write(&kept.path, serde_json::to_vec(&far)?)?;
        let listener = std::os::unix::net::UnixListener::bind(kept.socket())?;
        registry.clean();
        assert!(registry.find(place).is_some(), "it listens");
        drop(listener);
        registry.clean();
        assert!(!kept.path.exists() && !kept.socket.exists(), "it is gone");
        Ok(())
    }

    #[test]
    fn a_successor_at_the_same_place_is_not_removed_by_its_predecessor() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let place = Path::new("/p");
        let mut predecessor = registry.register(&Entry::own(place, "old:/", "old:2049")?)?;
        predecessor.identity.start_time += 1;
        let _successor = registry.register(&Entry::own(place, "new:/", "new:2049")?)?;
        drop(predecessor);
        assert!(registry.find(place).is_some());
        Ok(())
    }

    #[test]
    fn one_at_a_time_may_mount_at_a_place() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let place = Path::new("/p");
        let first = registry.lock(place, Duration::ZERO)?;
        assert!(first.is_some());
        assert!(registry.lock(place, Duration::from_millis(30))?.is_none());
        assert!(registry.lock(Path::new("/q"), Duration::ZERO)?.is_some());
        drop(first);
        assert!(registry.lock(place, Duration::ZERO)?.is_some());
        assert_eq!(fs::read_dir(&registry.dir)?.count(), 0);
        Ok(())
    }

    #[test]
    fn garbage_in_the_directory_is_ignored() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        registry.create()?;
        fs::write(registry.dir.join("x.json"), "{")?;
        fs::create_dir(registry.dir.join("y.json"))?;
        registry.clean();
        assert!(registry.list().is_empty());
        Ok(())
    }

    #[test]
    fn socket_paths_fit_into_a_socket_address() {
        let long = PathBuf::from(format!("/{}", "x".repeat(3000)));
        let path = Registry::at("/run/user/4294967295/efs-fuse").file(&long, "sock");
        assert!(path.as_os_str().len() < 108, "{}", path.display());
        assert_ne!(hash(Path::new("/a")), hash(Path::new("/b")));
    }
}
