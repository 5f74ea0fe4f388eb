//! Whose attributes a user may set, and in which directories he may change names, as the server has
//! confirmed it (`writeback`).
//!
//! The owner of an object may set its mode and times, and root all of everybody's; but who a user is
//! to the server is for the server to say (root squash, the POSIX user of an access point), and it does not
//! say it. So the first request is asked, and its answer is believed for what was asked: that
//! this user sets what belongs to that owner. Who has given an object to another owner is privileged there,
//! and may set anything of all. Who has removed or renamed something in a directory may do so in others that
//! have the same owner, group and mode. A refusal ends what was believed of the user.
//!
//! The lock is taken with no other.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::rpc::auth::Credential;
use crate::vfs::types::{SetAttr, SetTime};

/// Of so many users something is believed; of others the server is asked each time.
const USERS: usize = 256;

/// So many owners of each.
const OWNERS: usize = 16;

/// So many kinds of directories of each.
const KINDS: usize = 16;

/// Set-id and sticky bits.
const SPECIAL: u32 = 0o7000;

/// In such a directory it counts whose a name is.
const STICKY: u16 = 0o1000;

/// What the server has let one user do.
#[derive(Debug, Default)]
struct Rights {
    /// He has given an object to another owner.
    is_privileged: bool,
    /// He has set mode or times of what was these users'.
    owners: SmallVec<[u32; 2]>,
    /// He has changed names in directories that were so.
    directories: SmallVec<[Owned; 1]>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ConfirmedRights(Mutex<HashMap<Arc<Credential>, Rights>>);

/// Who has what, and its permission bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) perm: u16,
}

impl ConfirmedRights {
    /// The server has let `cred` set these attributes of what was so before.
    pub(super) fn confirm(&self, cred: &Arc<Credential>, set: &SetAttr, was: Owned) {
        let mut known = self.0.lock();
        if known.len() >= USERS && !known.contains_key(cred) {
            return;
        }
        let rights = known.entry(Arc::clone(cred)).or_default();
        let gives = set.uid.is_some_and(|uid| uid != was.uid);
        rights.is_privileged |= gives;
        let is_owners = set.mode.is_some() || is_given(set.atime) || is_given(set.mtime);
        if is_owners && !rights.owners.contains(&was.uid) && rights.owners.len() < OWNERS {
            rights.owners.push(was.uid);
        }
    }

    /// The server has let `cred` remove or rename something in a directory that is so.
    pub(super) fn confirm_names(&self, cred: &Arc<Credential>, dir: Owned) {
        let mut known = self.0.lock();
        if known.len() >= USERS && !known.contains_key(cred) {
            return;
        }
        let rights = known.entry(Arc::clone(cred)).or_default();
        let is_new = !rights.directories.contains(&dir) && rights.directories.len() < KINDS;
        if is_new && dir.perm & STICKY == 0 {
            rights.directories.push(dir);
        }
    }

    /// It will let him do so in this one.
    pub(super) fn allow_names(&self, cred: &Credential, dir: Owned) -> bool {
        let known = self.0.lock();
        (known.get(cred)).is_some_and(|rights| rights.directories.contains(&dir))
    }

    /// The server has refused what was believed that it would allow.
    pub(super) fn refuted(&self, cred: &Credential) {
        self.0.lock().remove(cred);
    }

    /// The server will let `cred` set these attributes of what is so, as far as it has ever said; and it
    /// sets nothing else by it, as it takes set-id bits with a change of the owner.
    pub(super) fn allow(&self, cred: &Credential, set: &SetAttr, is: Owned) -> bool {
        let known = self.0.lock();
        let Some(rights) = known.get(cred) else {
            return false;
        };
        let may = match set.uid.is_some() || set.gid.is_some() {
            true => rights.is_privileged,
            false => rights.is_privileged || rights.owners.contains(&is.uid),
        };
        may && set.size.is_none()
            && (u32::from(is.perm) | set.mode.unwrap_or(0)) & SPECIAL == 0
            && !matches!(set.atime, Some(SetTime::Now))
            && !matches!(set.mtime, Some(SetTime::Now))
    }
}

/// A time that only the owner may set.
fn is_given(time: Option<SetTime>) -> bool {
    matches!(time, Some(SetTime::At(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::types::Timestamp;

    fn cred(uid: u32) -> Arc<Credential> {
        Arc::new(Credential {
            uid,
            gid: uid,
            gids: Vec::new(),
        })
    }

    fn of(uid: u32) -> Owned {
        Owned {
            uid,
            gid: uid,
            perm: 0o644,
        }
    }

    fn mode(mode: u32) -> SetAttr {
        SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        }
    }

    fn owner(uid: u32) -> SetAttr {
        SetAttr {
            uid: Some(uid),
            gid: Some(uid),
            ..SetAttr::default()
        }
    }

    #[test]
    fn what_the_server_has_allowed_is_believed_of_that_user_and_that_owner_alone() {
        let rights = ConfirmedRights::default();
        assert!(!rights.allow(&cred(7), &mode(0o600), of(7)), "never asked");
        rights.confirm(&cred(7), &mode(0o600), of(7));
        assert!(rights.allow(&cred(7), &mode(0o640), of(7)));
        assert!(!rights.allow(&cred(7), &mode(0o640), of(8)), "another's");
        assert!(
            !rights.allow(&cred(8), &mode(0o640), of(7)),
            "another caller"
        );
        assert!(!rights.allow(&cred(7), &owner(7), of(7)), "the owner");
        rights.refuted(&cred(7));
        assert!(!rights.allow(&cred(7), &mode(0o640), of(7)));
    }

    #[test]
    fn who_has_given_something_away_may_set_all_of_everybody() {
        let rights = ConfirmedRights::default();
        rights.confirm(&cred(0), &owner(5), of(5));
        assert!(!rights.allow(&cred(0), &owner(6), of(5)), "it was his");
        rights.confirm(&cred(0), &owner(6), of(5));
        assert!(rights.allow(&cred(0), &owner(9), of(7)));
        assert!(rights.allow(&cred(0), &mode(0o700), of(7)));
    }

    #[test]
    fn what_sets_more_than_it_says_is_asked_of_the_server() {
        let rights = ConfirmedRights::default();
        rights.confirm(&cred(0), &owner(6), of(5));
        let set_id = Owned {
            perm: 0o4755,
            ..of(5)
        };
        assert!(!rights.allow(&cred(0), &owner(9), set_id));
        assert!(!rights.allow(&cred(0), &mode(0o2755), of(5)));
        let size = SetAttr {
            size: Some(0),
            ..mode(0o600)
        };
        assert!(!rights.allow(&cred(0), &size, of(5)));
        let time = |mtime| SetAttr {
            mtime: Some(mtime),
            ..SetAttr::default()
        };
        assert!(!rights.allow(&cred(0), &time(SetTime::Now), of(5)));
        let given = SetTime::At(Timestamp::default());
        assert!(rights.allow(&cred(0), &time(given), of(5)));
    }

    #[test]
    fn who_has_changed_names_may_do_so_in_directories_of_that_owner_and_mode() {
        let rights = ConfirmedRights::default();
        let dir = |uid, perm| Owned { perm, ..of(uid) };
        rights.confirm_names(&cred(7), dir(7, 0o755));
        assert!(rights.allow_names(&cred(7), dir(7, 0o755)));
        assert!(!rights.allow_names(&cred(7), dir(7, 0o555)));
        assert!(!rights.allow_names(&cred(7), dir(8, 0o755)));
        assert!(!rights.allow_names(&cred(8), dir(7, 0o755)));
        rights.confirm_names(&cred(7), dir(0, 0o1777));
        assert!(!rights.allow_names(&cred(7), dir(0, 0o1777)), "sticky");
    }

    #[test]
    fn times_that_are_now_confirm_nothing_since_who_writes_may_set_them() {
        let rights = ConfirmedRights::default();
        let touch = SetAttr {
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        rights.confirm(&cred(7), &touch, of(8));
        assert!(!rights.allow(&cred(7), &mode(0o600), of(8)));
    }
}
