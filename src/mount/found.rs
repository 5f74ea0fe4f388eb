//! Who serves a mount, as far as that can be believed.
//!
//! Each user writes the own registry, and into it whatever they like. The kernel knows
//! whose a mount is ([`Mount::user`]), and only the registry of that user is asked about
//! it. What is written there by the user of this process is believed. What another user
//! wrote is for root only the key under which to look: the pid, if that process belongs
//! to that user, and the socket, if it does and one of that user's processes listens there.
//! Device, options, server and times of such an entry are not given out: there is no
//! function for it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::mountinfo::Mount;
use super::private_dir::PrivateDir;
pub use super::private_dir::effective_user;
use super::process::{self, Process};
use super::registry::{Entry, Registry, file_name};
use crate::telemetry::control;

/// Entries are a few hundred bytes.
const MAX_ENTRY: u64 = 64 << 10;
/// How long a daemon may take from its entry to its control socket.
pub(super) const STARTING: Duration = Duration::from_secs(60);
/// How long a daemon of another pid namespace may take to show that it listens.
const LISTENING: Duration = Duration::from_secs(1);

/// The daemon of a mount.
#[derive(Debug, Clone)]
pub struct Found {
    entry: Entry,
    socket: OsString,
    dir: Arc<PrivateDir>,
}

impl Found {
    /// The living daemon of a mount of the kernel's table.
    pub fn of(mount: &Mount) -> Option<Self> {
        let user = mount.user()?;
        if user == effective_user() {
            return Registry::of_user().find(&mount.mountpoint);
        }
        // Nobody else could look into it.
        if effective_user() != 0 {
            return None;
        }
        let dir = PrivateDir::of_user(user, c"efs-fuse").ok()?;
        Self::in_dir(&Arc::new(dir), &mount.mountpoint)
    }

    /// The living daemon that an entry of this directory names for a mount point.
    pub(super) fn in_dir(dir: &Arc<PrivateDir>, mountpoint: &Path) -> Option<Self> {
        let found = Self::load(dir, &file_name(mountpoint, "json"))?;
        (found.entry.mountpoint == mountpoint && found.is_alive()).then_some(found)
    }

    /// What a file of the directory says, dead or alive.
    pub(super) fn load(dir: &Arc<PrivateDir>, name: &OsStr) -> Option<Self> {
        let entry = Entry::parse(&dir.read(name, MAX_ENTRY).ok()?)?;
        let socket = Path::new(name).with_extension("sock").into_os_string();
        Some(Self {
            entry,
            socket,
            dir: Arc::clone(dir),
        })
    }

    /// What is written about the mount, if this process's own user wrote it.
    pub fn written(&self) -> Option<&Entry> {
        (self.dir.owner() == effective_user()).then_some(&self.entry)
    }

    /// The pid in this pid namespace, if the process lives and is the owner's.
    pub fn pid(&self) -> Option<u32> {
        self.process().map(|_| self.entry.pid)
    }

    /// The process, which can be signalled: the one that is meant, and one of the owner's.
    pub fn process(&self) -> Option<Process> {
        // Of another namespace's pids nothing can be told from here.
        if !self.entry.is_near() {
            return None;
        }
        let process = self.entry.identity().open()?;
        let fits =
            self.is_of_owner() && (self.written().is_none() || process.runs(&self.entry.exe));
        // Asked by its number, which is still its own if it lives.
        (fits && self.entry.identity().is_alive()).then_some(process)
    }

    /// The process is one of the user's who wrote the entry. A program that runs with more
    /// rights than the user who called it is not that user's.
    fn is_of_owner(&self) -> bool {
        self.is_owners(self.entry.pid)
    }

    fn is_owners(&self, pid: u32) -> bool {
        let owner = self.dir.owner();
        process::users(pid).is_some_and(|users| match self.written() {
            Some(_) => users[1] == owner,
            None => users == [owner; 4],
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        match self.entry.is_near() {
            true => {
                self.entry.identity().is_alive() && self.is_of_owner() || self.is_between_daemons()
            }
            false => self.connect(Instant::now() + LISTENING).is_ok() || self.is_starting(),
        }
    }

    /// The keeper, which can be signalled: it passes signals on to whichever daemon there is.
    pub fn keeper(&self) -> Option<Process> {
        let keeper = self.entry.is_near().then(|| self.entry.keeper())??;
        let process = keeper.open()?;
        (self.is_owners(keeper.pid) && keeper.is_alive()).then_some(process)
    }

    /// The daemon has ended, and its keeper starts the next one.
    pub fn is_taking_over(&self) -> bool {
        self.entry.is_near() && !self.entry.identity().is_alive() && self.is_between_daemons()
    }

    /// The daemon that is written has ended, and its keeper starts the next one.
    fn is_between_daemons(&self) -> bool {
        let keeper = self.entry.keeper().filter(|keeper| keeper.is_alive());
        keeper.is_some_and(|keeper| self.is_owners(keeper.pid))
    }

    fn is_starting(&self) -> bool {
        let began = UNIX_EPOCH.checked_add(Duration::from_secs(self.entry.since));
        let age = began.and_then(|began| SystemTime::now().duration_since(began).ok());
        age.is_some_and(|age| age < STARTING)
    }

    /// Asks the daemon at its control socket. The whole answer is there until `deadline`,
    /// and at most `limit` bytes long.
    ///
    /// # Errors
    /// As [`control::exchange`]; `PermissionDenied` for a socket that is not the owner's.
    pub fn ask(&self, request: &Value, deadline: Instant, limit: u64) -> io::Result<Value> {
        let stream = self.connect(deadline)?;
        control::exchange(stream, request, deadline, limit)
    }

    fn connect(&self, deadline: Instant) -> io::Result<std::os::unix::net::UnixStream> {
        let (socket, path) = self.dir.socket(&self.socket)?;
        let stream = control::connect(&path, deadline)?;
        drop(socket);
        // Of the own user's directory only that user's daemons write; one in a container
        // may be shown as another user's.
        let owner = self.dir.owner();
        if owner != effective_user() && control::peer_user(&stream)? != owner {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(stream)
    }
}
