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
//! former program reads it again ([`keeper`](super::keeper)). At the server the next daemon is
//! the same client with the same opens and locks, in a session of its own.
//!
//! [`leave`] is what the daemon does that goes, [`take`] what the one does that comes, and
//! [`memory`] is where the state lies meanwhile.

pub mod leave;
pub mod memory;
pub mod take;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::keeper::{self, KeeperLink, Slot};
use super::launch::MountRequest;
use super::owner::OwnerState;
use super::process::Identity;
use crate::fuse::InitValues;
use crate::nfs::handover::ClientState;
use crate::vfs::handover::VfsState;

/// All that the next daemon has to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandedOver {
    /// The version of the program that wrote it.
    pub version: String,
    /// How often the mount was handed over, this time not counted.
    pub generation: u64,
    /// When the kernel's requests were kept waiting, by [`clock`].
    pub paused_at: Duration,
    /// How it was mounted.
    pub mounted: Mounted,
    /// Who the daemon is to the server.
    pub owner: OwnerState,
    /// What the kernel has offered when it was mounted.
    pub init: InitValues,
    /// Of the NFS client.
    pub client: ClientState,
    /// Of the file system.
    pub vfs: VfsState,
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
            foreground: request.foreground,
            mount_namespace: request.mount_namespace.as_ref().map(bytes),
            since,
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

/// The time since the machine was started, asleep or awake: the same for all processes.
pub fn clock() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock exists, and the struct lives through the call.
    unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now);
    }
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

/// What outlives this daemon, and the process that holds it.
#[derive(Debug)]
pub struct Lifeline {
    link: KeeperLink,
    memory: File,
    /// How often the mount was handed over.
    pub generation: u64,
}

impl Lifeline {
    /// For a daemon that is about to mount.
    ///
    /// # Errors
    /// There is no memory, or the keeper has ended.
    pub fn begin(link: KeeperLink) -> io::Result<Self> {
        let memory = memory::create()?;
        link.hold(Slot::State, memory.as_fd())?;
        Self::taken(link, memory, 0)
    }

    /// For a daemon that has taken over. The keeper holds what it gave.
    fn taken(link: KeeperLink, memory: File, generation: u64) -> io::Result<Self> {
        link.hold(Slot::Program, keeper::own_program()?.as_fd())?;
        Ok(Self {
            link,
            memory,
            generation,
        })
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
        self.link.ready()
    }

    /// The keeper, if it lives.
    pub fn keeper(&self) -> Option<Identity> {
        self.link.keeper().filter(|_| self.link.is_alive())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_was_mounted_need_not_be_text() -> Result<(), rmp_serde::encode::Error> {
        let mounted = Mounted {
            device: "h:/".to_owned(),
            mountpoint: Bytes::from_static(b"/vol\xff"),
            options: vec!["ro".to_owned()],
            foreground: false,
            mount_namespace: Some(Bytes::from_static(b"/proc/1/ns/mnt")),
            since: 7,
        };
        let bytes = rmp_serde::to_vec_named(&mounted)?;
        assert_eq!(
            rmp_serde::from_slice::<Mounted>(&bytes).ok(),
            Some(mounted.clone())
        );
        assert_eq!(mounted.mountpoint().as_os_str().as_bytes(), b"/vol\xff");
        Ok(())
    }

    #[test]
    fn the_clock_goes_on() {
        let before = clock();
        assert!(before > Duration::ZERO && clock() >= before);
    }
}
