//! A mount is handed over: its daemon ends, another takes its place, and who uses the mount
//! sees a pause.
//!
//! ```text
//! daemon                                     keeper                next daemon
//!   gate closed, requests finished, drained
//!   state ─► memory
//!   next PROGRAM ──────────────────────────►
//!   ends ──────────────────────────────────► starts PROGRAM ─────► state read, client and vfs
//!                                                                  made of it
//!                                            ◄──────────── ready
//!                                                                  the kernel resends, and is
//!                                                                  answered
//! ```
//!
//! Until `ready` everything can be taken back: the state is not changed by who reads it, and the
//! former program reads it again ([`super::keeper`]). At the server the next daemon is
//! the same client with the same opens and locks, in a session of its own.
//!
//! A daemon that was killed has left no state, but its write-ahead log ([`crate::wal`]), which the
//! keeper holds in the same place. The next one is the same program. It restores the same kinds
//! of state from the log's records ([`record`]) and goes the same way from there on. What it
//! needs to be followed by another itself is a log of its own, and that is complete before it is
//! given to the keeper.
//!
//! [`leave`] is what the daemon does that goes, [`take`] what the one does that comes, and
//! [`memory`] is where the state lies meanwhile.

pub mod leave;
pub mod memory;
pub mod record;
pub mod take;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::record::{Past, Serving};
use super::keeper::{self, KeeperLink, Slot};
use super::launch::MountRequest;
use super::options::TakeOver;
use super::origins::Origin;
use super::owner::{Owner, OwnerState};
use super::process::Identity;
use crate::background::Tasks;
use crate::fuse::{InitValues, Running, WalksUnderWay};
use crate::nfs::handover::{ClientState, Unanswered};
use crate::vfs::handover::VfsState;
use crate::wal::Wal;

/// All that the next daemon has to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandedOver {
    /// The version of the program that wrote it.
    pub version: String,
    /// How often the mount was handed over, this time not counted.
    pub generation: u64,
    /// When the kernel's requests were kept waiting, by [`clock`](crate::wal::clock).
    pub paused_at: Duration,
    /// How it was mounted.
    pub mounted: Mounted,
    /// Who the daemon is to the server.
    pub owner: OwnerState,
    /// What the kernel has offered when it was mounted.
    pub init: InitValues,
    /// The take-overs before this one.
    #[serde(default)]
    pub past: Past,
    /// Of the NFS client.
    pub client: ClientState,
    /// Of the file system.
    pub vfs: VfsState,
    /// Calls that walk their path once more.
    #[serde(default)]
    pub walks: WalksUnderWay,
    /// Requests to the server that were not answered; none if the daemon came to rest.
    #[serde(skip)]
    pub unanswered: Unanswered,
}

/// How a mount was asked for. Paths are bytes: they need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// The server and the directory, as they were written.
    pub device: String,
    /// The canonical mount point.
    mountpoint: Bytes,
    /// The options, each as it was written.
    pub options: Vec<String>,
    /// Where those of them come from that were not written for the mount.
    #[serde(default)]
    pub origins: Vec<Origin>,
    /// In the foreground.
    pub foreground: bool,
    mount_namespace: Option<Bytes>,
    /// When it was mounted, in seconds since 1970.
    pub since: u64,
}

impl Mounted {
    /// How `request` asked for it, which has been so since then.
    pub fn by(request: &MountRequest, since: u64) -> Self {
        let bytes = |path: &PathBuf| Bytes::copy_from_slice(path.as_os_str().as_bytes());
        Self {
            device: request.device.spec.clone(),
            mountpoint: bytes(&request.mountpoint),
            options: request.written.clone(),
            origins: request.origins.clone(),
            foreground: request.foreground,
            mount_namespace: request.mount_namespace.as_ref().map(bytes),
            since,
        }
    }

    #[cfg(test)]
    fn example() -> Self {
        Self {
            device: "h:/".to_owned(),
            mountpoint: Bytes::from_static(b"/vol\xff"),
            options: vec!["ro".to_owned()],
            origins: vec![Origin {
                from: "/etc/file".to_owned(),
                options: vec!["ro".to_owned()],
            }],
            foreground: false,
            mount_namespace: Some(Bytes::from_static(b"/proc/1/ns/mnt")),
            since: 7,
        }
    }

    /// The canonical mount point.
    pub fn mountpoint(&self) -> PathBuf {
        path(&self.mountpoint)
    }

    /// The mount namespace it was mounted in, if that is another one.
    pub fn mount_namespace(&self) -> Option<PathBuf> {
        self.mount_namespace.as_ref().map(path)
    }
}

fn path(bytes: &Bytes) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// The log of a mount that `request` asks for.
///
/// # Errors
/// There is no memory.
pub fn log_of(request: &MountRequest) -> io::Result<Wal> {
    /// Beside what waits to be written: what was appended, and is on its way by another request.
    const MORE: u64 = 64 << 20;
    match request.options.takeover {
        TakeOver::Always => {
            let room = (2 * request.options.write_window).saturating_add(MORE);
            Wal::create(usize::try_from(room).unwrap_or(usize::MAX))
        }
        TakeOver::Never | TakeOver::Upgrade => Ok(Wal::off()),
    }
}

/// What outlives this daemon, and the process that holds it.
#[derive(Debug)]
pub struct Lifeline {
    link: KeeperLink,
    /// The log; off where the death of a daemon is not to be survived.
    wal: Wal,
    /// How often the mount was handed over.
    pub generation: u64,
    /// The take-overs so far, the one to this daemon included.
    pub past: Past,
}

impl Lifeline {
    /// For a daemon that mounts, or takes over.
    pub fn new(link: KeeperLink, wal: Wal, generation: u64, past: Past) -> Self {
        Self {
            link,
            wal,
            generation,
            past,
        }
    }

    /// Records how the mount is served, and has the keeper hold the log, which is complete with
    /// this, and the program. Of a daemon that takes over, they count from [`ready`](Self::ready).
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn record(&self, mounted: Mounted, owner: &Owner, init: &InitValues) -> io::Result<()> {
        let serving = Serving {
            generation: self.generation,
            mounted,
            owner: owner.hand_over(),
            init,
            past: self.past,
        };
        record::put(&self.wal, serving);
        self.link
            .hold(Slot::Program, keeper::own_program()?.as_fd())?;
        self.hold_log()
    }

    /// Has the keeper hold the log, instead of a state if it was to be handed over.
    ///
    /// # Errors
    /// The keeper has ended.
    fn hold_log(&self) -> io::Result<()> {
        let memory = self.wal.memory();
        memory.map_or(Ok(()), |memory| self.link.hold(Slot::State, memory.as_fd()))
    }

    /// Has the keeper hold the mount, and who this daemon is to the server.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn hold(&self, device: BorrowedFd<'_>, owner: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.link.hold(Slot::Device, device)?;
        owner.map_or(Ok(()), |owner| self.link.hold(Slot::Owner, owner))
    }

    /// This daemon serves: from here on it can be followed by another.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn ready(&self) -> io::Result<()> {
        if let Err(why) = self.link.witness() {
            tracing::debug!(
                "should this daemon die with a thread that cannot end, nobody notices: {why}"
            );
        }
        self.link.ready()
    }

    /// The log that whoever follows reads.
    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// Whether another daemon finds in the log all that it has to know.
    fn has_log(&self) -> bool {
        self.wal.is_on()
    }

    /// Whether a daemon that dies is to be followed by another.
    pub fn survives(&self, running: &Running) -> bool {
        self.has_log() && self.link.is_alive() && running.can_be_handed_over().is_ok()
    }

    /// From here on it is.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn survive(&self) -> io::Result<()> {
        self.link.survives()
    }

    /// The mount ends with this daemon. To be said before anything of it is taken apart.
    pub fn goodbye(&self) {
        // Where there is no keeper nobody would follow.
        let _ = self.link.goodbye();
    }

    /// Has this daemon die at once when a vital task dies, before anybody is told an error: the
    /// next daemon gives the answers.
    pub fn die_with(&self, tasks: &Tasks) {
        let link = self.link.clone();
        tasks.instead_of_ending(Box::new(move || {
            if link.is_alive() {
                die();
            }
        }));
    }

    /// To the keeper.
    pub(super) fn link(&self) -> &KeeperLink {
        &self.link
    }

    /// The keeper, if it lives.
    pub fn keeper(&self) -> Option<Identity> {
        self.link.keeper().filter(|_| self.link.is_alive())
    }
}

/// Ends this process for another daemon to follow: nothing of it may answer the kernel, tell the
/// server that it goes, or take away what the next one finds.
pub(super) fn die() -> ! {
    // SAFETY: it does not return, and runs nothing of this process.
    unsafe { libc::_exit(101) }
}

/// Dies, as [`die`], if it is dropped by a panic.
#[derive(Debug)]
pub(super) struct DieOfPanic;

impl Drop for DieOfPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            die();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_was_mounted_need_not_be_text() -> Result<(), rmp_serde::encode::Error> {
        let mounted = Mounted::example();
        let bytes = rmp_serde::to_vec_named(&mounted)?;
        assert_eq!(
            rmp_serde::from_slice::<Mounted>(&bytes).ok(),
            Some(mounted.clone())
        );
        assert_eq!(mounted.mountpoint().as_os_str().as_bytes(), b"/vol\xff");
        Ok(())
    }
}
