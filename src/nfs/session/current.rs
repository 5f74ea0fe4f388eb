//! The session of this moment: requests wait for it and use it, recovery replaces it.

use std::sync::Arc;

use tokio::sync::watch;

use super::live::Session;

/// What is being done about the session.
#[derive(Clone)]
pub(in crate::nfs) enum Phase {
    /// Requests may be sent.
    Up(Arc<Session>),
    /// The recovery task is at work; requests wait.
    Recovering,
    /// The client was shut down.
    Down,
}

/// See the module. Only the methods here change the phase, and only these ways:
/// `Up` to `Recovering`, once for each session; `Recovering` to `Up`; anything to
/// `Down`, which is final.
pub(in crate::nfs) struct CurrentSession(watch::Sender<Phase>);

impl CurrentSession {
    /// The first session is there.
    pub(in crate::nfs) fn new(session: Arc<Session>) -> Self {
        Self(watch::Sender::new(Phase::Up(session)))
    }

    /// There is none yet; somebody is at work on it.
    pub(in crate::nfs) fn awaited() -> Self {
        Self(watch::Sender::new(Phase::Recovering))
    }

    /// What is being done at this moment.
    pub(in crate::nfs) fn phase(&self) -> Phase {
        self.0.borrow().clone()
    }

    /// The session, if there is one at this moment.
    pub(in crate::nfs) fn up(&self) -> Option<Arc<Session>> {
        match &*self.0.borrow() {
            Phase::Up(session) => Some(Arc::clone(session)),
            Phase::Recovering | Phase::Down => None,
        }
    }

    /// The session, once there is one; `None` once the client was shut down.
    pub(in crate::nfs) async fn wait(&self) -> Option<Arc<Session>> {
        let mut phase = self.0.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Up(session) => return Some(Arc::clone(session)),
                Phase::Down => return None,
                Phase::Recovering => {}
            }
            if phase.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The session with this generation is lost. It is returned if it was still the
    /// current one: whoever gets it has to see to the next one.
    pub(in crate::nfs) fn lose(&self, generation: u64) -> Option<Arc<Session>> {
        let mut lost = None;
        self.0.send_if_modified(|phase| match phase {
            Phase::Up(session) if session.generation == generation => {
                lost = Some(Arc::clone(session));
                *phase = Phase::Recovering;
                true
            }
            _ => false,
        });
        lost
    }

    /// There is a new session. A shutdown in the meantime stands.
    pub(in crate::nfs) fn replace(&self, session: Arc<Session>) {
        self.0.send_if_modified(|phase| {
            let recovering = matches!(phase, Phase::Recovering);
            if recovering {
                *phase = Phase::Up(session);
            }
            recovering
        });
    }

    /// There is no session any more, and will be none. Returns what there was.
    pub(in crate::nfs) fn shut_down(&self) -> Phase {
        self.0.send_replace(Phase::Down)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::establish::{ChannelAttrs, NewSession};
    use super::*;

    fn session(generation: u64) -> Arc<Session> {
        let new = NewSession {
            id: [0; 16],
            attrs: ChannelAttrs::wanted(4),
        };
        Arc::new(Session::new(&new, generation, 0, || Duration::ZERO))
    }

    #[test]
    fn a_session_is_lost_once_however_many_find_it_lost() {
        let current = CurrentSession::new(session(1));
        assert!(current.lose(1).is_some());
        assert!(current.lose(1).is_none(), "somebody sees to it");
        current.replace(session(2));
        assert!(current.lose(1).is_none(), "a late finding");
        assert_eq!(current.up().map(|now| now.generation), Some(2));
    }

    #[tokio::test]
    async fn nothing_comes_back_after_a_shutdown() {
        let current = CurrentSession::new(session(1));
        current.lose(1);
        assert!(matches!(current.shut_down(), Phase::Recovering));
        current.replace(session(2));
        assert!(matches!(current.phase(), Phase::Down));
        assert!(current.wait().await.is_none());
    }
}
