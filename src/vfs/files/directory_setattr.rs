//! Attributes of a private directory that are answered before the server knows of them
//! (`writeback`): who unpacks an archive sets owner, mode and times of each directory once all
//! is in it.
//!
//! They have their place in the [queue](super::name_writeback) of the directory itself, behind
//! the names that were made in it, which move its times. Accepted is what the server is certain
//! to allow, by the rule of new files ([`deferred_setattr`](super::deferred_setattr)): the directory
//! is the caller's, owner and group stay unless the caller is root and what it makes is root's, no
//! set-id or sticky bit is involved, and times are given, not "now". What is refused nevertheless is
//! told as a refused name is: by the next fsync of the directory, by `status` and the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Files;
use super::accepted_name::What;
use crate::rpc::auth::Credential;
use crate::rpc::caller::Effect;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::Name;
use crate::vfs::types::{FileKind, Ino, SetAttr, SetTime, Stat, Timestamp};

/// Set-id and sticky bits.
const SPECIAL: u32 = 0o7000;

impl Files {
    /// SETATTR of a private directory; its attributes with it, and how long they may be believed.
    /// `None`: the server is to be asked.
    pub(in crate::vfs) fn set_ahead(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        cred: &Arc<Credential>,
        set: &SetAttr,
    ) -> Option<(Stat, Duration)> {
        if inode.kind != FileKind::Directory || !self.has_room_in(inode) {
            return None;
        }
        let _effect = Effect::begin()?;
        let maker = self.namespace.private_to(cred, inode)?;
        let (owner, perm) = {
            let attr = inode.attr.lock();
            ((attr.stat().uid, attr.stat().gid), attr.stat().perm)
        };
        if !is_certain(set, owner, perm, (cred.uid, maker.uid)) {
            return None;
        }
        let now = (Timestamp::now(), Instant::now());
        if self.joins_last_set(inode.ino, inode, cred, set) {
            inode.attr.lock().join_accepted(set, now.0, now.1);
            return Some(inode.stat_ahead());
        }
        inode.attr.lock().accept_set(set, now.0, now.1);
        self.namespace.accepted_set(inode);
        let what = What::Attributes(set.clone());
        self.accept_name(cred, inode, Name::from(&b""[..]), what);
        Some(inode.stat_ahead())
    }

    /// Whoever unpacks sets times, owner and mode one after the other: they are one SETATTR, if
    /// nothing came between in the queue of `dir`.
    pub(super) fn joins_last_set(
        &self,
        dir: Ino,
        inode: &Arc<Inode>,
        cred: &Credential,
        set: &SetAttr,
    ) -> bool {
        let mut queue = self.names.queue.lock();
        let last = queue
            .last_waiting(dir)
            .filter(|last| *last.change.cred == *cred);
        last.is_some_and(|last| {
            let Some(waiting) = last.change.set_of(inode) else {
                return false;
            };
            waiting.join(set);
            self.log_change(last.number, &last.change);
            true
        })
    }
}

/// The server will allow it to `caller`, whose files are those of `makes`, for what is `owner`'s.
pub(super) fn is_certain(
    set: &SetAttr,
    (owner, group): (u32, u32),
    perm: u16,
    (caller, makes): (u32, u32),
) -> bool {
    let root = caller == 0 && makes == 0;
    let stays = |wanted: Option<u32>, is: u32| root || wanted.is_none_or(|wanted| wanted == is);
    let given = |time: Option<SetTime>| !matches!(time, Some(SetTime::Now));
    (root || owner == caller && makes == caller)
        && set.size.is_none()
        && (u32::from(perm) | set.mode.unwrap_or(0)) & SPECIAL == 0
        && stays(set.uid, owner)
        && stays(set.gid, group)
        && given(set.atime)
        && given(set.mtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_certain_to_be_allowed_is_asked_of_the_server() {
        let set = SetAttr::default;
        let mode = |mode| SetAttr {
            mode: Some(mode),
            ..set()
        };
        let owner = |uid, gid| SetAttr {
            uid: Some(uid),
            gid: Some(gid),
            ..set()
        };
        let mtime = |mtime| SetAttr {
            mtime: Some(mtime),
            ..set()
        };
        let is = |set: &SetAttr, who| is_certain(set, (1000, 1000), 0o755, who);
        let (mine, roots) = ((1000, 1000), (0, 0));
        for certain in [
            mode(0o700),
            owner(1000, 1000),
            mtime(SetTime::At(Timestamp::default())),
        ] {
            assert!(is(&certain, mine) && is(&certain, roots), "{certain:?}");
            assert!(!is(&certain, (1001, 1001)), "another's: {certain:?}");
            assert!(!is(&certain, (0, 65534)), "squashed: {certain:?}");
        }
        assert!(is(&owner(5, 5), roots));
        assert!(!is(&owner(5, 1000), mine) && !is(&owner(1000, 5), mine));
        for asked in [mode(0o2755), mode(0o1777), mtime(SetTime::Now)] {
            assert!(!is(&asked, mine) && !is(&asked, roots), "{asked:?}");
        }
        assert!(
            !is_certain(&mode(0o755), (0, 0), 0o2755, roots),
            "it has one"
        );
    }
}
