//! The opens of a file at the server, which handles share, and what they know of its last name.

use std::sync::Arc;

use super::{FileInner, Left, SharedOpen};
use crate::nfs::proto::ops::ACCESS_READ;
use crate::nfs::state::OpenState;
use crate::nfs::state::locks::LockState;
use crate::rpc::auth::Credential;

/// The opens of the file at the server.
impl<D> FileInner<D> {
    /// Somebody who has the file open.
    pub(in crate::vfs) fn any_cred(&self) -> Option<Arc<Credential>> {
        self.opens
            .first()
            .map(|shared| Arc::clone(&shared.open.cred))
    }

    /// Somebody has the file open.
    pub(in crate::vfs) fn is_open(&self) -> bool {
        !self.opens.is_empty()
    }

    /// Whether the server keeps the file until its last CLOSE, as an OPEN has said.
    pub(in crate::vfs) fn set_preserved(&mut self, preserved: bool) {
        self.preserved = preserved;
    }

    /// It is one of them.
    pub(in crate::vfs) fn has_open(&self, open: &Arc<OpenState>) -> bool {
        self.opens
            .iter()
            .any(|shared| Arc::ptr_eq(&shared.open, open))
    }

    /// An open that has its first user.
    pub(in crate::vfs) fn add_open(&mut self, open: &Arc<OpenState>) {
        self.opens.push(SharedOpen::new(open));
    }

    /// The open of this identity, or one that is made for it, with one more user. `None`
    /// while the file loses a name: with the last one it would be gone.
    pub(in crate::vfs) fn join(
        &mut self,
        cred: &Credential,
        make: impl FnOnce() -> Arc<OpenState>,
    ) -> Option<Arc<OpenState>> {
        if self.removing > 0 {
            return None;
        }
        let mut opens = self.opens.iter_mut();
        if let Some(shared) = opens.find(|shared| *shared.open.cred == *cred) {
            shared.users += 1;
            return Some(Arc::clone(&shared.open));
        }
        let open = make();
        self.add_open(&open);
        Some(open)
    }

    /// A user of the open of a file that is not made yet is being released: the request that makes it
    /// may close it, if all its users are by then.
    pub(in crate::vfs) fn begin_close(&mut self, open: &Arc<OpenState>) {
        match &mut self.closing {
            Some((closing, users)) if Arc::ptr_eq(closing, open) => *users += 1,
            closing => *closing = Some((Arc::clone(open), 1)),
        }
    }

    /// The file was made or refused, and with it that was decided of one of them.
    pub(in crate::vfs) fn end_close(&mut self, open: &Arc<OpenState>) {
        if let Some((closing, users)) = &mut self.closing
            && Arc::ptr_eq(closing, open)
        {
            *users -= 1;
        }
        self.closing.take_if(|(_, users)| *users == 0);
    }

    /// Whether that is so of this one still.
    pub(in crate::vfs) fn closes_along(&self, open: &Arc<OpenState>) -> bool {
        let closing = self.closing.as_ref();
        let mut opens = self.opens.iter();
        closing.is_some_and(|(closing, users)| {
            Arc::ptr_eq(closing, open)
                && opens.any(|shared| Arc::ptr_eq(&shared.open, open) && shared.users == *users)
        })
    }

    /// The same, and whoever opens the file next has an open of his own.
    pub(in crate::vfs) fn take_closing(&mut self, open: &Arc<OpenState>) -> bool {
        let closes = self.closes_along(open);
        if closes {
            self.opens.retain(|shared| !Arc::ptr_eq(&shared.open, open));
        }
        closes
    }

    /// It was not closed: the request was not executed.
    pub(in crate::vfs) fn close_again(&mut self, open: &Arc<OpenState>) {
        let closing = self.closing.as_ref();
        let of_it = closing.filter(|(closing, _)| Arc::ptr_eq(closing, open));
        let users = of_it.map_or(1, |(_, users)| *users);
        self.opens.push(SharedOpen {
            users,
            ..SharedOpen::new(open)
        });
    }

    /// Its last name was taken, or is being taken, and it has a hidden one.
    pub(in crate::vfs) fn is_hidden(&self) -> bool {
        self.silly.is_some() || self.hiding || self.replacing > 0
    }

    /// Somebody has the file open and goes on with it, or it has a hidden name.
    pub(in crate::vfs) fn is_open_or_hidden(&self) -> bool {
        let closes = |shared: &SharedOpen| self.closes_along(&shared.open);
        !self.opens.iter().all(closes) || self.is_hidden()
    }

    /// One more user of an open that is in the table. False if it is not (any more).
    pub(in crate::vfs) fn use_again(&mut self, open: &Arc<OpenState>) -> bool {
        let mut opens = self.opens.iter_mut();
        let shared = opens.find(|shared| Arc::ptr_eq(&shared.open, open));
        shared.is_some_and(|shared| {
            shared.users += 1;
            true
        })
    }

    /// The opens that do not allow reading at the server (yet), each with one more user.
    pub(in crate::vfs) fn use_unread(&mut self) -> Vec<Arc<OpenState>> {
        let opens = self.opens.iter_mut();
        let unknown = opens.filter(|shared| shared.open.access() & ACCESS_READ == 0);
        unknown
            .map(|shared| {
                shared.users += 1;
                Arc::clone(&shared.open)
            })
            .collect()
    }

    /// There are such opens.
    pub(in crate::vfs) fn has_unread(&self) -> bool {
        (self.opens.iter()).any(|shared| shared.open.access() & ACCESS_READ == 0)
    }

    /// The server knows of every open, and so keeps the file for each if it has promised that.
    pub(super) fn is_known_to_be_open(&self) -> bool {
        (self.opens.iter()).all(|shared| shared.open.is_at_server())
    }

    /// One user less, who was the owner of this lock state or of none. `None` if the open is
    /// in the table no more.
    pub(in crate::vfs) fn leave(
        &mut self,
        open: &Arc<OpenState>,
        lock: Option<Arc<LockState>>,
    ) -> Option<Left<D>> {
        let frees = lock.is_none();
        self.retired.extend(lock);
        let mut opens = self.opens.iter();
        let at = opens.position(|shared| Arc::ptr_eq(&shared.open, open))?;
        self.opens[at].users -= 1;
        let closes = self.opens[at].users == 0;
        if closes {
            self.opens.swap_remove(at);
        }
        let retired = self
            .retired
            .extract_if(.., |lock| {
                (closes || frees) && Arc::ptr_eq(&lock.open, open)
            })
            .collect();
        Some(Left {
            closes,
            silly: self.unneeded_name(),
            retired,
        })
    }
}
