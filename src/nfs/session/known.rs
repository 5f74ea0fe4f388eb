//! The sessions that the server may still have of this client.
//!
//! A session in which requests of a process may be under way that has ended must be
//! destroyed before its successor sends any: a WRITE that still is in a socket would else
//! be executed after newer ones (RFC 8881 §2.10.6 keeps apart what is in one session, and
//! says nothing of two). Such a session is *unfenced*. The sessions of this process wait
//! until their own requests are answered.
//!
//! With the client id its sessions are gone; nothing is left to be fenced then.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::super::proto::types::SessionId;

/// So many are remembered of this process. There are more only if recovery has failed as
/// often within one client id; the oldest have been without requests for longest.
const MOST: usize = 64;

#[derive(Debug, Default)]
struct Inner {
    ours: VecDeque<SessionId>,
    unfenced: Vec<SessionId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::nfs) struct KnownSessions(Mutex<Inner>);

impl KnownSessions {
    /// This process has made a session.
    pub(in crate::nfs) fn made(&self, id: SessionId) {
        let mut inner = self.0.lock();
        inner.ours.retain(|known| *known != id);
        if inner.ours.len() == MOST {
            inner.ours.pop_front();
        }
        inner.ours.push_back(id);
    }

    /// A process that has ended has made these.
    pub(in crate::nfs) fn inherit(&self, sessions: Vec<SessionId>) {
        self.0.lock().unfenced = sessions;
    }

    /// One more.
    pub(in crate::nfs) fn inherit_one(&self, id: SessionId) {
        self.0.lock().unfenced.push(id);
    }

    /// The server has none of them any more: the client id is another one.
    pub(in crate::nfs) fn forget(&self) {
        *self.0.lock() = Inner::default();
    }

    /// The server does not have this session any more.
    pub(in crate::nfs) fn gone(&self, id: SessionId) {
        let mut inner = self.0.lock();
        inner.ours.retain(|known| *known != id);
        inner.unfenced.retain(|known| *known != id);
    }

    /// The sessions of this process but for this one.
    pub(in crate::nfs) fn others(&self, id: SessionId) -> Vec<SessionId> {
        let inner = self.0.lock();
        let others = inner.ours.iter().filter(|known| **known != id);
        others.copied().collect()
    }

    /// A session of the process before this one that has to be destroyed.
    pub(in crate::nfs) fn unfenced(&self) -> Option<SessionId> {
        self.0.lock().unfenced.first().copied()
    }

    /// The session is one of those.
    pub(in crate::nfs) fn is_unfenced(&self, id: SessionId) -> bool {
        self.0.lock().unfenced.contains(&id)
    }

    /// All of them, for whoever comes after this process.
    pub(in crate::nfs) fn all(&self) -> Vec<SessionId> {
        let inner = self.0.lock();
        inner.unfenced.iter().chain(&inner.ours).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_yet_fenced_is_handed_on_along_with_what_is_ours() {
        let known = KnownSessions::default();
        known.inherit(vec![[1; 16], [2; 16]]);
        known.made([3; 16]);
        assert_eq!(known.all(), [[1; 16], [2; 16], [3; 16]]);
        assert!(known.is_unfenced([1; 16]));
        assert_eq!(known.others([3; 16]), [[0; 16]; 0], "none of ours");
        known.gone([1; 16]);
        assert_eq!(known.unfenced(), Some([2; 16]));
        known.forget();
        assert_eq!((known.unfenced(), known.all().len()), (None, 0));
    }

    #[test]
    fn no_more_sessions_are_remembered_than_recovery_may_leave_behind() {
        let known = KnownSessions::default();
        for number in 0..=MOST as u8 {
            known.made([number; 16]);
            known.made([number; 16]);
        }
        assert_eq!(known.all().len(), MOST);
        assert_eq!(known.others([1; 16]).first(), Some(&[2; 16]));
    }
}
