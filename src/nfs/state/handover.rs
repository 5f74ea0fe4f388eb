//! Opens and locks written down for another process, and made of that again.
//!
//! An owner number means the same to the server in either process: what is restored keeps
//! its own, and new ones begin beyond all that were ever given out.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::super::proto::types::{FileHandle, StateId};
use super::locks::LockState;
use super::ranges::{LockKind, Ranges, Span};
use super::{Inner, Listed, OpenState, OpenTable};
use crate::rpc::auth::Credential;
use crate::wal::Wal;

/// An open, as [`OpenState`] has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRecord {
    /// The open owner.
    pub owner: u64,
    /// The file.
    pub handle: FileHandle,
    /// Who opened it.
    pub cred: Credential,
    /// `None`: nothing is open at the server.
    pub stateid: Option<StateId>,
    /// What the open allows (OPEN4_SHARE_ACCESS_*).
    pub access: u32,
    /// See [`OpenState::fence`].
    pub fence: u32,
    /// Lost: whoever has a handle to it gets an error.
    pub dead: bool,
}

/// The locks of one owner on one file, as [`LockState`] has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// The lock owner.
    pub owner: u64,
    /// The owner of the open that they were made with.
    pub open: u64,
    /// `None`: nothing is locked at the server.
    pub stateid: Option<StateId>,
    /// What is held, as far as the server has said so.
    pub held: Ranges,
    /// The server has taken away what the owner believes in.
    pub lost: bool,
    /// A reclaim of it was begun, and not all of it was answered.
    #[serde(default)]
    pub unproved: bool,
    /// What a LOCKU was under way for: whether it is held the server knows.
    #[serde(default)]
    pub leaving: Option<Span>,
    /// What a LOCK was under way for that nobody knows the outcome of.
    #[serde(default)]
    pub asked: Option<(Span, LockKind)>,
}

/// One [`Credential`] for all opens of an identity, as they had it before.
#[derive(Debug, Default)]
pub(in super::super) struct Identities(HashMap<Credential, Arc<Credential>>);

impl Identities {
    fn shared(&mut self, cred: Credential) -> Arc<Credential> {
        let known = self.0.entry(cred);
        Arc::clone(known.or_insert_with_key(|cred| Arc::new(cred.clone())))
    }
}

impl OpenState {
    /// The number of the open owner, by which a record names this open.
    pub fn owner(&self) -> u64 {
        self.owner
    }

    pub(in super::super) fn record(&self) -> OpenRecord {
        self.record_of(&self.inner.lock())
    }

    pub(super) fn record_of(&self, inner: &Inner) -> OpenRecord {
        OpenRecord {
            owner: self.owner,
            handle: self.handle.settled(),
            cred: (*self.cred).clone(),
            stateid: inner.stateid,
            access: inner.access,
            fence: inner.fence,
            dead: inner.dead,
        }
    }

    /// The open of a record; `closing`: it is to be closed. No table knows it.
    pub(in super::super) fn of_record(
        record: OpenRecord,
        closing: bool,
        identities: &mut Identities,
        wal: &Wal,
    ) -> Arc<Self> {
        let inner = Inner {
            listed: match closing {
                true => Listed::Closing,
                false => Listed::Open,
            },
            stateid: record.stateid,
            access: record.access,
            renewals: 0,
            dead: record.dead,
            fence: record.fence,
        };
        let cred = identities.shared(record.cred);
        Self::begin((record.handle, cred), record.owner, inner, wal)
    }
}

impl LockState {
    /// The number of the lock owner, by which a record names these locks.
    pub fn owner(&self) -> u64 {
        self.owner
    }
}

impl OpenTable {
    /// Every open that somebody has, and those that are lost among them.
    pub(in super::super) fn all(&self) -> Vec<Arc<OpenState>> {
        let opens = self.opens.lock();
        opens.values().filter_map(Weak::upgrade).collect()
    }

    /// No owner from here on was given out.
    pub(in super::super) fn owners_from(&self) -> u64 {
        self.owners.next()
    }

    /// No owner below this one is given out any more.
    pub(in super::super) fn owners_begin_at(&self, first: u64) {
        self.owners.begin_at(first);
    }

    /// Takes in an open of a record.
    pub(in super::super) fn take_in(&self, open: &Arc<OpenState>) {
        self.owners.begin_at(open.owner.saturating_add(1));
        let weak = Arc::downgrade(open);
        self.opens.lock().insert(open.owner, weak);
    }
}
