//! What the server keeps for us: opens, and [locks] made with them (RFC 8881 §9).
//!
//! An open is kept per file and identity: whoever opens the same file as the
//! same user shares it. Its open owner is used for nothing else and never
//! again, so an OPEN can never meet the CLOSE of an earlier open of the same
//! owner, which is the race that other clients (and servers) got wrong.
//!
//! The stateid changes with every OPEN that is merged in; replies may come in
//! any order, so only a newer seqid replaces an older one, and access bits are
//! only ever added. I/O names the state with seqid 0 ("the newest").

pub mod handover;
pub mod locks;
pub mod ranges;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::proto::types::{FileHandle, StateId};
use crate::rpc::auth::Credential;
use crate::wal::{Numbers, Table, Wal};

/// How often an operation is repeated because its state was replaced meanwhile.
/// A server that never accepts a state it has just given out ends here.
pub(super) const STATE_RETRIES: usize = 8;

/// One open of one file by one identity.
#[derive(Debug)]
pub struct OpenState {
    /// The file.
    pub handle: FileHandle,
    /// Who opened it; I/O is done in this name.
    pub cred: Arc<Credential>,
    /// The open owner, unique to this open.
    pub(super) owner: u64,
    /// It changes by [`OpenState::change`] alone, so that its record does.
    inner: Mutex<Inner>,
    /// Taken alone; see [`locks`].
    locks: locks::LockList,
    /// What the next process must know should this one be killed.
    wal: Wal,
}

/// The table of the log in which the record of an open is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    /// Somebody may use it.
    Open,
    /// Nobody uses it any more, and the server has not answered its CLOSE.
    Closing,
    /// The server has nothing of it.
    Nowhere,
}

#[derive(Clone, Copy, Debug)]
struct Inner {
    listed: Listed,
    stateid: Option<StateId>,
    access: u32,
    /// Moves whenever recovery replaced the stateid.
    renewals: u32,
    /// Never to be opened again: lost, or closed.
    dead: bool,
    /// See [`OpenState::fence`].
    fence: u32,
}

impl Listed {
    fn table(self) -> Option<Table> {
        match self {
            Self::Open => Some(Table::Open),
            Self::Closing => Some(Table::Close),
            Self::Nowhere => None,
        }
    }
}

/// Nobody can close it any more. Not in a panic: whoever takes over then needs the record.
impl Drop for OpenState {
    fn drop(&mut self) {
        if let Some(table) = self.inner.get_mut().listed.table()
            && !std::thread::panicking()
        {
            self.wal.remove(table, self.owner);
        }
    }
}

impl Inner {
    /// Of an open that nothing is known of but this.
    fn new(stateid: Option<StateId>, access: u32) -> Self {
        Self {
            listed: Listed::Open,
            stateid,
            access,
            renewals: 0,
            dead: false,
            fence: 0,
        }
    }

    fn lose(&mut self) {
        self.dead = true;
        self.renewals = self.renewals.wrapping_add(1);
    }

    /// Keeps the newer of two stateids of the same state.
    fn take(&mut self, stateid: StateId) {
        match self.stateid {
            Some(known) if known.other == stateid.other && !stateid.is_newer_than(known) => {}
            _ => self.stateid = Some(stateid),
        }
    }
}

impl OpenState {
    /// A new open, which the log knows from here on.
    fn begin(
        (handle, cred): (FileHandle, Arc<Credential>),
        owner: u64,
        inner: Inner,
        wal: &Wal,
    ) -> Arc<Self> {
        let open = Arc::new(Self {
            handle,
            cred,
            owner,
            inner: Mutex::new(inner),
            locks: Mutex::default(),
            wal: wal.clone(),
        });
        open.change(|_| ());
        open
    }

    /// Changes it, and its record under the same lock. Where the record moves to another
    /// table, it is in both for a moment and never in none.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock();
        let before = inner.listed;
        let result = change(&mut inner);
        if self.wal.is_on() {
            if let Some(table) = inner.listed.table() {
                self.wal.put(table, self.owner, &self.record_of(&inner));
            }
            if before != inner.listed
                && let Some(table) = before.table()
            {
                self.wal.remove(table, self.owner);
            }
        }
        result
    }

    /// Its record says the handle as it is now.
    pub(super) fn record_again(&self) {
        if self.wal.is_on() {
            self.change(|_| ());
        }
    }

    /// The server has answered the CLOSE, or nothing will ask it any more.
    pub(super) fn closed(&self) {
        self.change(|inner| {
            if inner.listed == Listed::Closing {
                inner.listed = Listed::Nowhere;
            }
        });
    }

    /// The stateid for READ and WRITE, and a token for
    /// [`OpenState::renewed_since`].
    pub(super) fn for_io(&self) -> (StateId, u32) {
        let inner = self.inner.lock();
        let stateid = inner.stateid.map_or(StateId::ANONYMOUS, StateId::newest);
        (stateid, inner.renewals)
    }

    /// The exact stateid, for CLOSE.
    pub(super) fn exact(&self) -> Option<StateId> {
        self.inner.lock().stateid
    }

    /// The server has told of it.
    pub fn is_at_server(&self) -> bool {
        self.exact().is_some()
    }

    /// What the open allows (OPEN4_SHARE_ACCESS_*); nothing, as long as the server does not
    /// know of it.
    pub fn access(&self) -> u32 {
        self.inner.lock().access
    }

    /// Another task has replaced the stateid since `token` was given out.
    pub(super) fn renewed_since(&self, token: u32) -> bool {
        self.inner.lock().renewals != token
    }

    /// The open is closed, or lost and its handles are dead.
    pub fn is_dead(&self) -> bool {
        self.inner.lock().dead
    }

    /// Takes in the result of an OPEN. False if it began a new state, which
    /// lacks access that the one before it had: the server has dropped that.
    pub(super) fn opened(&self, stateid: StateId, access: u32) -> bool {
        self.change(|inner| {
            let merged = inner
                .stateid
                .is_none_or(|known| known.other == stateid.other);
            let whole = merged || inner.access & !access == 0;
            inner.take(stateid);
            inner.access |= access;
            whole
        })
    }

    /// Takes in the result of an OPEN by recovery, which replaces what was.
    /// Several requests may have found the state gone and opened it again at
    /// the same time; those OPENs are merged like any other.
    pub(super) fn renewed(&self, stateid: StateId) {
        self.change(|inner| {
            inner.take(stateid);
            inner.renewals = inner.renewals.wrapping_add(1);
            // It was closed while it was opened again: there is something to close again.
            if inner.listed == Listed::Nowhere {
                inner.listed = Listed::Closing;
            }
        });
    }

    /// The open is of no more use.
    pub(super) fn lose(&self) {
        self.change(Inner::lose);
    }
}

/// The key of the owners' numbers in the log.
pub(super) const OWNERS: u64 = 0;

/// All opens of a client, for recovery to find them.
#[derive(Debug)]
pub struct OpenTable {
    /// The numbers of open owners and lock owners.
    owners: Numbers,
    wal: Wal,
    opens: Mutex<BTreeMap<u64, Weak<OpenState>>>,
}

impl OpenTable {
    /// Nothing is open, and what will be is in this log.
    pub(super) fn of(wal: Wal) -> Self {
        Self {
            owners: Numbers::new(wal.clone(), OWNERS, 0),
            wal,
            opens: Mutex::default(),
        }
    }

    /// A new open, with no state at the server yet.
    pub fn prepare(&self, handle: FileHandle, cred: Arc<Credential>) -> Arc<OpenState> {
        let owner = self.next_owner();
        let open = OpenState::begin((handle, cred), owner, Inner::new(None, 0), &self.wal);
        self.opens.lock().insert(owner, Arc::downgrade(&open));
        open
    }

    /// An owner for an OPEN whose file is not known yet.
    pub(super) fn next_owner(&self) -> u64 {
        self.owners.give()
    }

    /// Somebody has an open with this owner.
    pub(super) fn has(&self, owner: u64) -> bool {
        let opens = self.opens.lock();
        opens
            .get(&owner)
            .is_some_and(|open| open.strong_count() > 0)
    }

    /// An open that the server has confirmed already: a new one, unless somebody has it.
    pub(super) fn adopt(
        &self,
        handle: FileHandle,
        cred: Arc<Credential>,
        owner: u64,
        stateid: StateId,
        access: u32,
    ) -> Arc<OpenState> {
        let known = self.opens.lock().get(&owner).and_then(Weak::upgrade);
        if let Some(known) = known {
            known.opened(stateid, access);
            return known;
        }
        let inner = Inner::new(Some(stateid), access);
        let open = OpenState::begin((handle, cred), owner, inner, &self.wal);
        self.opens.lock().insert(owner, Arc::downgrade(&open));
        open
    }

    /// The open is closed; recovery need not think of it any more.
    pub(super) fn forget(&self, open: &OpenState) {
        self.opens.lock().remove(&open.owner);
    }

    /// The open was closed by the request that has made it.
    pub(super) fn closed_along(&self, open: &OpenState) {
        self.forget(open);
        open.change(|inner| {
            inner.lose();
            inner.listed = Listed::Nowhere;
        });
    }

    /// Nobody uses the open any more. What there is to be closed: the newest stateid, or
    /// `None` if the server knows nothing of it.
    pub(super) fn close_here(&self, open: &OpenState) -> Option<StateId> {
        self.forget(open);
        open.change(|inner| {
            let stateid = inner.stateid.filter(|_| !inner.dead);
            // Requests may still be on their way with it (reading ahead): they must
            // not open it again.
            inner.lose();
            inner.listed = match stateid {
                Some(_) => Listed::Closing,
                None => Listed::Nowhere,
            };
            stateid
        })
    }

    /// Every open that has state at the server.
    pub(super) fn live(&self) -> Vec<Arc<OpenState>> {
        let mut opens = self.opens.lock();
        opens.retain(|_, open| open.strong_count() > 0);
        opens
            .values()
            .filter_map(Weak::upgrade)
            .filter(|open| open.exact().is_some() && !open.is_dead())
            .collect()
    }

    /// Number of opens.
    pub fn len(&self) -> usize {
        self.opens.lock().len()
    }

    /// Nothing is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::{Decoder, Encoder};

    fn handle() -> FileHandle {
        let mut enc = Encoder::default();
        enc.opaque(b"fh");
        FileHandle::decode(&mut Decoder::new(enc.into_vec().into())).unwrap()
    }

    fn id(seqid: u32, tag: u8) -> StateId {
        StateId {
            seqid,
            other: [tag; 12],
        }
    }

    #[test]
    fn a_late_reply_does_not_bring_an_older_seqid_back_but_adds_its_access() {
        let table = OpenTable::of(Wal::off());
        let open = table.prepare(handle(), Credential::machine());
        open.opened(id(2, 1), 2);
        open.opened(id(1, 1), 1);
        assert_eq!(open.exact(), Some(id(2, 1)));
        assert_eq!(open.access(), 3);
        assert_eq!(open.for_io().0, id(0, 1));
    }

    #[test]
    fn recovery_sees_what_is_open_and_nothing_else() {
        let table = OpenTable::of(Wal::off());
        let open = table.prepare(handle(), Credential::machine());
        assert!(table.live().is_empty(), "no state at the server yet");
        open.opened(id(1, 1), 1);
        assert_eq!(table.live().len(), 1);
        let token = open.for_io().1;
        open.renewed(id(1, 9));
        assert!(open.renewed_since(token));
        assert_eq!(open.exact(), Some(id(1, 9)));
        open.lose();
        assert!(table.live().is_empty());
        table.forget(&open);
        assert!(table.is_empty());
    }
}
