//! Attribute changes of one unpublished file, as they wait and leave: a plain state machine
//! under the file's lock. What may wait, and how long, is written where they are sent
//! (`files::deferred_setattr`).

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::types::{SetAttr, SetTime, Stat, Timestamp};

/// Set-id and sticky bits.
const SPECIAL: u32 = 0o7000;

/// A change that waits, or is on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct Change {
    pub(in crate::vfs) set: SetAttr,
    #[serde(with = "as_owned")]
    pub(in crate::vfs) cred: Arc<Credential>,
    /// What this host shows as the time of the change.
    pub(in crate::vfs) ctime: Timestamp,
}

/// An identity that others share is written down for itself.
mod as_owned {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::rpc::auth::Credential;

    pub(super) fn serialize<S: Serializer>(
        cred: &Arc<Credential>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        (**cred).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<Credential>, D::Error> {
        Credential::deserialize(from).map(Arc::new)
    }
}

impl Change {
    fn join(&mut self, newer: &SetAttr, ctime: Timestamp) {
        self.set.join(newer);
        self.ctime = ctime;
    }
}

/// Who has made a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Maker {
    uid: u32,
    /// `None` where operations have no callers.
    thread: Option<u32>,
}

impl Maker {
    /// The caller of this operation, whose user this is; `None` if it cannot be told
    /// from others.
    fn calling(uid: u32) -> Option<Self> {
        let thread = caller::current().map(|caller| caller.thread());
        (thread != Some(0)).then_some(Self { uid, thread })
    }
}

/// The changes of one file.
#[derive(Debug, Default)]
pub(in crate::vfs) struct DeferredSetattr {
    /// Who has made it, if that was here and it was not published since.
    unpublished_of: Option<Maker>,
    waiting: Option<Change>,
    /// At most one, so that no change overtakes another.
    leaving: Option<Change>,
}

impl DeferredSetattr {
    /// The file was just created by this operation, and `owner` is whose it is.
    pub(in crate::vfs) fn made(&mut self, owner: u32) {
        self.unpublished_of = Maker::calling(owner);
    }

    /// Others may rely on the file now: from here on no change waits.
    pub(in crate::vfs) fn publish(&mut self) {
        self.unpublished_of = None;
    }

    /// Nothing waits and nothing is on its way.
    pub(in crate::vfs) fn is_empty(&self) -> bool {
        self.waiting.is_none() && self.leaving.is_none()
    }

    /// Nothing waits; what was to be changed is on its way.
    pub(in crate::vfs) fn is_leaving_whole(&self) -> bool {
        self.waiting.is_none()
    }

    /// What the server does not know yet, oldest first.
    pub(in crate::vfs) fn unknown(&self) -> impl Iterator<Item = (&SetAttr, Timestamp)> {
        let both = self.leaving.iter().chain(&self.waiting);
        both.map(|change| (&change.set, change.ctime))
    }

    /// The time of the last write is known, because it was set.
    pub(in crate::vfs) fn knows_mtime(&self) -> bool {
        self.unknown().any(|(set, _)| set.mtime.is_some())
    }

    /// Takes a change in, if it is one that may wait. True for the first.
    pub(in crate::vfs) fn join(
        &mut self,
        stat: &Stat,
        cred: &Arc<Credential>,
        set: &SetAttr,
    ) -> Option<bool> {
        let root = cred.uid == 0;
        let new = |wanted: Option<u32>, is: u32| wanted.is_none_or(|wanted| wanted == is || root);
        let given = |time: Option<SetTime>| !matches!(time, Some(SetTime::Now));
        let allowed = self.unpublished_of.is_some()
            && self.unpublished_of == Maker::calling(cred.uid)
            && (root || stat.uid == cred.uid)
            && set.size.is_none()
            && (u32::from(stat.perm) | set.mode.unwrap_or(0)) & SPECIAL == 0
            && new(set.uid, stat.uid)
            && new(set.gid, stat.gid)
            && given(set.atime)
            && given(set.mtime)
            && self.leaving.is_none()
            && self.waiting.iter().all(|change| change.cred == *cred);
        if !allowed {
            return None;
        }
        let first = self.waiting.is_none();
        let change = self.waiting.get_or_insert_with(|| Change {
            set: SetAttr::default(),
            cred: Arc::clone(cred),
            ctime: Timestamp::default(),
        });
        change.join(set, Timestamp::now());
        Some(first)
    }

    /// A mode that waits, if nothing else does: it is set otherwise.
    pub(in crate::vfs) fn take_mode(&mut self) -> Option<u32> {
        let waiting = self.waiting.as_ref().filter(|_| self.leaving.is_none())?;
        let only_mode = SetAttr {
            mode: waiting.set.mode,
            ..SetAttr::default()
        };
        let mode = waiting.set.mode.filter(|_| waiting.set == only_mode)?;
        self.waiting = None;
        Some(mode)
    }

    /// All that the server does not know yet, as one change.
    pub(in crate::vfs) fn all(&self) -> Option<Change> {
        let mut all = self.leaving.clone().or_else(|| self.waiting.clone())?;
        if let (Some(_), Some(newer)) = (&self.leaving, &self.waiting) {
            all.join(&newer.set, newer.ctime);
        }
        Some(all)
    }

    /// Changes that another process has let wait.
    pub(in crate::vfs) fn take_over(&mut self, all: Change) {
        self.waiting = Some(all);
    }

    /// What waits is now on its way.
    pub(in crate::vfs) fn leave(&mut self) -> Option<Change> {
        if self.leaving.is_some() {
            return None;
        }
        self.leaving = self.waiting.take();
        self.leaving.clone()
    }

    /// What waits leaves with a WRITE in the name of `cred`.
    pub(in crate::vfs) fn leave_as(&mut self, cred: &Credential) -> Option<Change> {
        if self.waiting.as_ref().is_none_or(|one| *one.cred != *cred) {
            return None;
        }
        self.leave()
    }

    /// What was on its way has come to its end; or it did not get there, and is
    /// to be sent again. What was joined since is newer.
    pub(in crate::vfs) fn left(&mut self, again: bool) {
        let Some(mut older) = self.leaving.take().filter(|_| again) else {
            return;
        };
        if let Some(newer) = self.waiting.take() {
            older.join(&newer.set, newer.ctime);
        }
        self.waiting = Some(older);
    }
}
