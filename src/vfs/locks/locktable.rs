//! Who of this host has locks on one file: plain bookkeeping under the file's lock.
//!
//! The server decides; this table only saves asking it. A lock that another
//! owner of this host has is known to be in the way without a request. Who waits for
//! one stands in line ([`super::lockline`]).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::nfs::state::locks::LockState;
use crate::nfs::state::ranges::{LockKind, Span};

/// The locks of one of the kernel's owners: a process for POSIX locks, an open
/// file description for `flock` and OFD locks.
#[derive(Debug)]
struct Owner {
    /// The kernel's number. It comes back for another owner once this one has
    /// let go of everything.
    id: u64,
    state: Arc<LockState>,
    /// The handles it locked through.
    handles: SmallVec<[u64; 2]>,
    /// The process that locked last, for F_GETLK.
    pid: u32,
    /// Requests that use the entry.
    busy: usize,
}

/// The locks of an owner, written down for another process when no request uses them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vfs) struct OwnerRecord {
    id: u64,
    /// The lock owner at the server.
    pub(in crate::vfs) lock: u64,
    /// The owner of the open that it locks with.
    pub(in crate::vfs) open: u64,
    /// Something is locked, or was lost.
    pub(in crate::vfs) matters: bool,
    pub(in crate::vfs) handles: Vec<u64>,
    pid: u32,
}

impl Owner {
    fn record(&self) -> OwnerRecord {
        OwnerRecord {
            id: self.id,
            lock: self.state.owner(),
            open: self.state.open.owner(),
            matters: self.state.is_lost() || !self.state.held().is_empty(),
            handles: self.handles.to_vec(),
            pid: self.pid,
        }
    }
}

/// What is in the way of a lock on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) struct Holder {
    pub(in crate::vfs) span: Span,
    pub(in crate::vfs) kind: LockKind,
    pub(in crate::vfs) pid: u32,
}

/// The locks of an owner who has closed the file.
#[derive(Debug)]
pub(in crate::vfs) enum Closed {
    /// The owner is in the table no more.
    Gone(Arc<LockState>),
    /// Another thread of it is about to lock.
    InUse(Arc<LockState>),
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::vfs) struct LockTable {
    owners: Vec<Owner>,
}

impl LockTable {
    fn find(&self, owner: u64) -> Option<usize> {
        self.owners.iter().position(|known| known.id == owner)
    }

    /// The locks of `owner`.
    pub(in crate::vfs) fn state(&self, owner: u64) -> Option<Arc<LockState>> {
        let at = self.find(owner)?;
        Some(Arc::clone(&self.owners[at].state))
    }

    /// Begins to use the locks of `owner`, who locks through `handle`. To be
    /// ended by [`LockTable::end`].
    pub(in crate::vfs) fn begin(
        &mut self,
        owner: u64,
        handle: u64,
        pid: u32,
        make: impl FnOnce() -> Arc<LockState>,
    ) -> Arc<LockState> {
        let at = self.find(owner).unwrap_or_else(|| {
            self.owners.push(Owner {
                id: owner,
                state: make(),
                handles: SmallVec::new(),
                pid,
                busy: 0,
            });
            self.owners.len() - 1
        });
        let known = &mut self.owners[at];
        known.busy += 1;
        known.pid = pid;
        if !known.handles.contains(&handle) {
            known.handles.push(handle);
        }
        Arc::clone(&known.state)
    }

    /// Ends a use. Gives the locks out if the last handle they were taken
    /// through was released meanwhile.
    pub(in crate::vfs) fn end(&mut self, owner: u64) -> Option<Arc<LockState>> {
        let at = self.find(owner)?;
        let known = &mut self.owners[at];
        known.busy -= 1;
        (known.busy == 0 && known.handles.is_empty()).then(|| self.owners.swap_remove(at).state)
    }

    /// `owner` has closed the file: its locks are to go. The entry stays while
    /// another thread of it waits for a lock.
    pub(in crate::vfs) fn closed_by(&mut self, owner: u64) -> Option<Closed> {
        let at = self.find(owner)?;
        Some(match self.owners[at].busy {
            0 => Closed::Gone(self.owners.swap_remove(at).state),
            _ => Closed::InUse(Arc::clone(&self.owners[at].state)),
        })
    }

    /// The handle is gone: takes out the owners that locked through it and
    /// through no other.
    pub(in crate::vfs) fn released(&mut self, handle: u64) -> Vec<Arc<LockState>> {
        for owner in &mut self.owners {
            owner.handles.retain(|known| *known != handle);
        }
        self.owners
            .extract_if(.., |owner| owner.handles.is_empty() && owner.busy == 0)
            .map(|owner| owner.state)
            .collect()
    }

    /// Locks taken through the handle were lost.
    pub(in crate::vfs) fn is_lost(&self, handle: u64) -> bool {
        self.owners
            .iter()
            .any(|owner| owner.handles.contains(&handle) && owner.state.is_lost())
    }

    /// What another process is to know.
    pub(in crate::vfs) fn records(&self) -> Vec<OwnerRecord> {
        self.owners.iter().map(Owner::record).collect()
    }

    /// The same of one owner.
    pub(in crate::vfs) fn record(&self, owner: u64) -> Option<OwnerRecord> {
        let at = self.find(owner)?;
        Some(self.owners[at].record())
    }

    /// Takes in an owner of another process, whose locks are these.
    pub(in crate::vfs) fn take_in(&mut self, record: OwnerRecord, state: Arc<LockState>) {
        self.owners.push(Owner {
            id: record.id,
            state,
            handles: record.handles.into(),
            pid: record.pid,
            busy: 0,
        });
    }

    /// What another owner of this host has that keeps `owner` from a lock.
    pub(in crate::vfs) fn holder(&self, owner: u64, span: Span, kind: LockKind) -> Option<Holder> {
        let mut others = self.owners.iter().filter(|known| known.id != owner);
        others.find_map(|known| {
            let (span, kind) = known.state.conflict(span, kind)?;
            let pid = known.pid;
            Some(Holder { span, kind, pid })
        })
    }

    /// `owner` has locked through another handle than this one.
    pub(in crate::vfs) fn knows_another_handle(&self, owner: u64, handle: u64) -> bool {
        self.find(owner)
            .is_some_and(|at| self.owners[at].handles.iter().any(|known| *known != handle))
    }

    /// Nobody has locks, or asks for any.
    pub(in crate::vfs) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}
