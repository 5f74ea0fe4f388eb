//! What is known about running mounts: one small JSON file and one control
//! socket each, in `/run/efs-fuse` for root, `$XDG_RUNTIME_DIR/efs-fuse` for
//! others.
//!
//! The kernel's mount table is the truth about what is mounted, and whose it is; the
//! registry of that user adds which process serves it ([`found`](super::found) says what
//! of it is believed). An entry is only believed while its process
//! lives (pid and start time), so a daemon that was killed leaves nothing that
//! has to be cleaned by hand. Pids mean something in their own pid namespace only: the
//! daemon of another one, which shares the directory, lives if it answers at its socket.
//! Files are named by a hash of the mount point:
//! socket paths must stay below 108 bytes.
//!
//! Only who owns a registry changes it, root's hands included ([`super::litter`]
//! says what goes when), and by the directory's descriptor ([`super::private_dir`]).
//!
//! [`StartLock`] makes mounting at one place exclusive from the first check
//! until the mount is in the table, so that two mounts begun at the same time
//! cannot end up on top of each other. It is a file lock, gone with its holder.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::claim::Claim;
use super::found::Found;
use super::litter;
use super::origins::Origin;
use super::private_dir::{PrivateDir, effective_user};
use super::process::{self, Identity};
use crate::quoting;

/// How long another process may take over a change of the directory.
const CHANGING: Duration = Duration::from_secs(1);

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
    /// Where those of them come from that were not written for the mount.
    #[serde(default)]
    pub origins: Vec<Origin>,
    /// Who holds the mount while a daemon takes over from another: pid and start time.
    #[serde(default)]
    pub keeper: Option<(u32, u64)>,
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
            origins: Vec::new(),
            keeper: None,
        })
    }

    /// What a file says; `None` for anything else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// Its pid is one of the namespace of this process.
    pub(super) fn is_near(&self) -> bool {
        self.pid_namespace == 0 || self.pid_namespace == process::own_pid_namespace()
    }

    /// The process that holds the mount, if there is one.
    pub fn keeper(&self) -> Option<Identity> {
        self.keeper
            .map(|(pid, start_time)| Identity { pid, start_time })
    }

    /// The process that serves it.
    pub fn identity(&self) -> Identity {
        Identity {
            pid: self.pid,
            start_time: self.start_time,
        }
    }
}

/// The directory of entries of one user.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The one of the current user.
    pub fn of_user() -> Self {
        let uid = effective_user();
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

    /// Makes the directory, for this user alone.
    fn create(&self) -> io::Result<Arc<PrivateDir>> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
            _ => {}
        }
        // Others may write to what is above it (/tmp): what they put there is not ours.
        let dir = PrivateDir::own(&self.dir).map_err(|why| {
            let shown = quoting::path(&self.dir);
            let text = format!("{shown} is not a directory of this user alone: {why}");
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        })?;
        dir.close_to_others()?;
        Ok(Arc::new(dir))
    }

    /// The directory, if it is there and this user's alone.
    fn open(&self) -> Option<Arc<PrivateDir>> {
        PrivateDir::own(&self.dir).ok().map(Arc::new)
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

    /// Keeps other processes from changing the directory for as long as what is returned
    /// lives; `None` if one does, and takes longer than it may.
    ///
    /// # Errors
    /// The directory cannot be made, or is somebody else's.
    pub(super) fn alone(&self) -> io::Result<Option<OwnedFd>> {
        self.create()?.alone(CHANGING)
    }

    fn file(&self, mountpoint: &Path, suffix: &str) -> PathBuf {
        self.dir.join(file_name(mountpoint, suffix))
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
        let dir = self.create()?;
        let alone = dir.alone(CHANGING)?;
        if alone.is_some() {
            litter::clear(&dir);
        }
        let name = file_name(&entry.mountpoint, "json");
        let half_written = file_name(&entry.mountpoint, "new");
        dir.write(&name, &half_written, &serde_json::to_vec(entry)?)?;
        Ok(Registration {
            socket: self.file(&entry.mountpoint, "sock"),
            identity: entry.identity(),
            dir,
            name,
        })
    }

    /// The entry of a mount point, if its process lives.
    pub fn find(&self, mountpoint: &Path) -> Option<Found> {
        Found::in_dir(&self.open()?, mountpoint)
    }

    /// Removes what dead daemons of this user left behind, unless somebody is at it.
    pub fn clean(&self) {
        if let Some(dir) = self.open()
            && let Ok(Some(_alone)) = dir.alone(CHANGING)
        {
            litter::clear(&dir);
        }
    }

    /// Whether the socket at `path` was bound by a daemon of this user.
    pub fn has_claimed(&self, path: &Path, socket: &fs::Metadata) -> bool {
        let claim = self.open().and_then(|dir| {
            let claim = Claim::read(&dir, &file_name(path, "claim"))?;
            claim.is_of(path, socket).then_some(())
        });
        claim.is_some()
    }

    /// Notes that the socket at `path` is this daemon's, for the next one to know if this
    /// is killed.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn claim(&self, path: &Path, socket: &fs::Metadata) -> io::Result<()> {
        let dir = self.create()?;
        let _alone = dir.alone(CHANGING)?;
        let (name, half_written) = (file_name(path, "claim"), file_name(path, "new"));
        let text = serde_json::to_vec(&Claim::of(path, socket))?;
        dir.write(&name, &half_written, &text)
    }
}

/// The name of a file about a path.
pub(super) fn file_name(path: &Path, suffix: &str) -> OsString {
    format!("{:032x}.{suffix}", hash(path)).into()
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
    dir: Arc<PrivateDir>,
    name: OsString,
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
        let _alone = self.dir.alone(CHANGING);
        let written = Found::load(&self.dir, &self.name);
        let written = written.as_ref().and_then(Found::written);
        if written.is_some_and(|entry| entry.identity() == self.identity) {
            // Both may be gone already.
            let _ = self.dir.remove(&self.name);
            if let Some(socket) = self.socket.file_name() {
                let _ = self.dir.remove(socket);
            }
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
    use std::os::unix::fs::PermissionsExt;

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
        let written = found.written().ok_or(io::ErrorKind::NotFound)?;
        assert_eq!(written.device, "h:/");
        assert_eq!(registration.socket(), registry.file(place, "sock"));
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
        let _living = registry.register(&Entry::own(Path::new("/living"), "h:/", "h:2049")?)?;
        assert!(!registry.dir.join(&kept.name).exists() && !kept.socket.exists());
        assert!(registry.find(Path::new("/living")).is_some());
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
        far.since -= 2 * super::super::found::STARTING.as_secs();
        fs::write(registry.dir.join(&kept.name), serde_json::to_vec(&far)?)?;
        let listener = std::os::unix::net::UnixListener::bind(kept.socket())?;
        registry.clean();
        assert!(registry.find(place).is_some(), "it listens");
        drop(listener);
        registry.clean();
        let path = registry.dir.join(&kept.name);
        assert!(!path.exists() && !kept.socket.exists(), "it is gone");
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
        let place = Path::new("/p");
        fs::write(registry.file(place, "json"), "{")?;
        fs::create_dir(registry.dir.join("y.json"))?;
        registry.clean();
        assert!(registry.find(place).is_none());
        Ok(())
    }

    #[test]
    fn socket_paths_fit_into_a_socket_address() {
        let long = PathBuf::from(format!("/{}", "x".repeat(3000)));
        let path = Registry::at("/run/user/4294967295/efs-fuse").file(&long, "sock");
        assert!(path.as_os_str().len() < 108, "{}", path.display());
        assert_ne!(hash(Path::new("/a")), hash(Path::new("/b")));
    }

    #[test]
    fn a_registry_that_others_may_write_or_that_is_a_link_is_neither_read_nor_cleaned()
    -> io::Result<()> {
        let (dir, registry) = registry()?;
        let mut dead = Entry::own(Path::new("/dead"), "h:/", "h:2049")?;
        dead.start_time += 1;
        std::mem::forget(registry.register(&dead)?);
        let alive = Entry::own(Path::new("/alive"), "h:/", "h:2049")?;
        let _alive = registry.register(&alive)?;
        std::mem::forget(registry.register(&dead)?);
        fs::set_permissions(&registry.dir, PermissionsExt::from_mode(0o1777))?;
        registry.clean();
        assert!(registry.file(Path::new("/dead"), "json").exists());
        assert!(registry.find(Path::new("/alive")).is_none());
        fs::set_permissions(&registry.dir, PermissionsExt::from_mode(0o700))?;
        let link = Registry::at(dir.path().join("link"));
        std::os::unix::fs::symlink(&registry.dir, &link.dir)?;
        link.clean();
        assert!(registry.file(Path::new("/dead"), "json").exists());
        assert!(link.find(Path::new("/alive")).is_none() && link.create().is_err());
        Ok(())
    }

    #[test]
    fn a_socket_is_claimed_as_long_as_it_is_the_one_that_was_bound() -> io::Result<()> {
        let (dir, registry) = registry()?;
        let path = dir.path().join("m");
        let about = |path: &Path| fs::symlink_metadata(path);
        drop(std::os::unix::net::UnixListener::bind(&path)?);
        assert!(!registry.has_claimed(&path, &about(&path)?));
        registry.claim(&path, &about(&path)?)?;
        registry.clean();
        assert!(registry.has_claimed(&path, &about(&path)?));
        assert!(!registry.has_claimed(&dir.path().join("n"), &about(&path)?));
        std::thread::sleep(Duration::from_millis(20));
        fs::remove_file(&path)?;
        drop(std::os::unix::net::UnixListener::bind(&path)?);
        assert!(!registry.has_claimed(&path, &about(&path)?));
        registry.clean();
        assert_eq!(fs::read_dir(&registry.dir)?.count(), 0);
        Ok(())
    }
}
