//! What is known of the server: the mounted file system, how large an I/O may be, and
//! what it was found to lack.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::config::ClientConfig;
use super::proto::attrs::{AttrSet, Attributes};
use super::proto::types::{FileHandle, StateId};
use super::session::establish::{ChannelAttrs, OVERHEAD};

/// What is known of the mounted file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// The root of the mount.
    pub root: FileHandle,
    /// Its attributes at mount.
    pub root_attrs: Attributes,
    /// Attributes the server has.
    pub supported: AttrSet,
    /// Attributes that an exclusive create can set.
    pub exclcreat: AttrSet,
    /// Largest READ the server takes, bytes.
    pub max_read: u32,
    /// Largest WRITE the server takes, bytes.
    pub max_write: u32,
    /// Longest name, bytes.
    pub max_name: u32,
    /// No file is longer, bytes.
    pub max_file_size: u64,
}

/// Largest READ and WRITE, bytes: what was asked for, as far as the file system and
/// the current session allow it.
pub(super) struct IoSizes {
    read: AtomicU32,
    write: AtomicU32,
}

impl IoSizes {
    /// The smallest that is tried when the server finds a message too large.
    const SMALLEST: u32 = 4096;

    pub(super) fn new(config: &ClientConfig) -> Self {
        Self {
            read: AtomicU32::new(config.rsize),
            write: AtomicU32::new(config.wsize),
        }
    }

    pub(super) fn read(&self) -> u32 {
        self.read.load(Ordering::Relaxed)
    }

    pub(super) fn write(&self) -> u32 {
        self.write.load(Ordering::Relaxed)
    }

    /// Halves the size of a READ, which turned out to be too large; false if it cannot
    /// be smaller.
    pub(super) fn shrink_read(&self) -> bool {
        Self::shrink(&self.read)
    }

    /// The same for a WRITE.
    pub(super) fn shrink_write(&self) -> bool {
        Self::shrink(&self.write)
    }

    fn shrink(size: &AtomicU32) -> bool {
        size.try_update(Ordering::Relaxed, Ordering::Relaxed, |size| {
            (size > Self::SMALLEST).then(|| (size / 2).max(Self::SMALLEST))
        })
        .is_ok()
    }

    /// Takes in what a session allows, and what the file system does, once it is
    /// known.
    pub(super) fn fit(
        &self,
        config: &ClientConfig,
        session: &ChannelAttrs,
        fs: Option<&FileSystem>,
    ) {
        let size = |asked: u32, channel: u32, server: Option<u32>| {
            asked
                .min(channel - OVERHEAD.min(channel / 2))
                .min(server.unwrap_or(u32::MAX))
        };
        let (read, write) = (fs.map(|fs| fs.max_read), fs.map(|fs| fs.max_write));
        let read = size(config.rsize, session.max_response, read);
        let write = size(config.wsize, session.max_request, write);
        self.read.store(read, Ordering::Relaxed);
        self.write.store(write, Ordering::Relaxed);
    }
}

/// What is to be done when the server has restarted; and whether it has before anybody said
/// what.
#[derive(Default)]
pub(super) struct RestartHook(Mutex<Restarts>);

type Hook = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Restarts {
    hook: Option<Hook>,
    /// Nobody had said what is to be done.
    missed: bool,
}

impl RestartHook {
    /// Only the first hook given is kept. It is called at once if the server has restarted
    /// before.
    pub(super) fn set(&self, hook: Hook) {
        let missed = {
            let mut inner = self.0.lock();
            inner.hook.get_or_insert_with(|| Arc::clone(&hook));
            std::mem::take(&mut inner.missed)
        };
        if missed {
            hook();
        }
    }

    /// The server has restarted.
    pub(super) fn restarted(&self) {
        let hook = {
            let mut inner = self.0.lock();
            inner.missed = inner.hook.is_none();
            inner.hook.clone()
        };
        if let Some(hook) = hook {
            hook();
        }
    }
}

/// What a trial has found of requests with several WRITEs, with this client id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) client_id: u64,
    pub(super) is_right: bool,
}

/// What saves requests and this server was found to lack. Asked for until it is
/// refused once, then never again.
#[derive(Debug, Default)]
pub(super) struct ServerFeatures {
    /// The current stateid (RFC 8881 §16.2.3.1.2) in READ.
    current_stateid: AtomicBool,
    /// The anonymous stateid (§8.2.3) in READ of an open file.
    anonymous_read: AtomicBool,
    /// NVERIFY (§18.15).
    nverify: AtomicBool,
    /// VERIFY (§18.31) of a fileid.
    verify: AtomicBool,
    /// Of several WRITEs in a request; `None` before it was tried.
    several_writes: Mutex<Option<Trial>>,
}

impl ServerFeatures {
    /// The stateid for a READ in the compound of its OPEN.
    pub(super) fn stateid(&self) -> Option<StateId> {
        if !self.current_stateid.load(Ordering::Relaxed) {
            Some(StateId::CURRENT)
        } else if !self.anonymous_read.load(Ordering::Relaxed) {
            Some(StateId::ANONYMOUS)
        } else {
            None
        }
    }

    /// The server has refused this stateid, which [`Self::stateid`] gave.
    pub(super) fn refused(&self, stateid: StateId) {
        let lack = match stateid == StateId::CURRENT {
            true => &self.current_stateid,
            false => &self.anonymous_read,
        };
        lack.store(true, Ordering::Relaxed);
    }

    /// A READ may name no open.
    pub(super) fn has_anonymous_read(&self) -> bool {
        !self.anonymous_read.load(Ordering::Relaxed)
    }

    /// NVERIFY may be asked for.
    pub(super) fn has_nverify(&self) -> bool {
        !self.nverify.load(Ordering::Relaxed)
    }

    /// VERIFY may be asked for.
    pub(super) fn has_verify(&self) -> bool {
        !self.verify.load(Ordering::Relaxed)
    }

    /// What a trial of several WRITEs in a request has found last.
    pub(super) fn several_writes(&self) -> Option<Trial> {
        *self.several_writes.lock()
    }

    /// It has found this.
    pub(super) fn tried_several_writes(&self, found: Trial) {
        *self.several_writes.lock() = Some(found);
    }

    /// The server has refused VERIFY.
    pub(super) fn refused_verify(&self) {
        self.verify.store(true, Ordering::Relaxed);
    }

    /// The server has refused NVERIFY.
    pub(super) fn refused_nverify(&self) {
        self.nverify.store(true, Ordering::Relaxed);
    }
}
