//! Attributes of a file that exists, which are answered before the server knows of them
//! (`writeback`): chmod -R, chown -R, and whatever restores times.
//!
//! They have their place in the [queue](super::name_writeback) of the directory that the file is in, and go
//! there with others of their kind, several files to a request. Accepted is what the server has
//! [confirmed](super::confirmed_rights) that it allows this user, of a file whose attributes are believed, that has
//! one name, and of which nothing else is on its way.
//!
//! Whatever else is asked about the file, by whomever of this host, waits for them
//! ([`Gate`](crate::nfs)): a write that comes later comes after them, an open is allowed by the new
//! mode. What is refused nevertheless is told by the next fsync or close of the file, by the next
//! fsync of its directory, by `status` and the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Files;
use super::accepted_name::{Accepted, What};
use super::confirmed_rights::Owned;
use super::deferred_setattr::new_attributes;
use super::directory_setattr::is_certain;
use super::logged_names::Ended;
use super::send_names::{REST, Sending, is_put_off};
use super::write::now;
use crate::nfs::NfsError;
use crate::nfs::calls::PrePost;
use crate::rpc::auth::Credential;
use crate::rpc::caller::Effect;
use crate::vfs::inode::{FileInner, Inode, Place};
use crate::vfs::types::{FileKind, SetAttr, Stat, Timestamp};
use crate::vfs::writeback::name_queue::{Queued, Rested};

impl Owned {
    /// As it is known.
    pub(super) fn of_inode(inode: &Inode) -> Self {
        Self::of(inode.attr.lock().stat())
    }

    fn of(stat: &Stat) -> Self {
        Self {
            uid: stat.uid,
            gid: stat.gid,
            perm: stat.perm,
        }
    }
}

/// What was known of an object when the server was asked to set its attributes.
pub(in crate::vfs) struct Before {
    owned: Owned,
    change: u64,
}

/// What a user may do, as the server says.
impl Files {
    /// The server is about to be asked to set attributes of this.
    pub(in crate::vfs) fn before_set(inode: &Inode) -> Before {
        let attr = inode.attr.lock();
        Before {
            owned: Owned::of(attr.stat()),
            change: attr.change(),
        }
    }

    /// It has done so for `cred`. What it was before is known only if nobody else has changed it.
    pub(in crate::vfs) fn confirm_rights(
        &self,
        cred: &Arc<Credential>,
        set: &SetAttr,
        before: &Before,
        moved: &PrePost,
    ) {
        if self.is_ahead_allowed() && moved.before == Some(before.change) {
            self.rights.confirm(cred, set, before.owned);
        }
    }
}

/// Accepting.
impl Files {
    /// SETATTR of a file or a symbolic link; its attributes with it, and how long they may be
    /// believed. `None`: the server is to be asked.
    pub(in crate::vfs) fn set_file_ahead(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        cred: &Arc<Credential>,
        set: &SetAttr,
    ) -> Option<(Stat, Duration)> {
        let settable = match inode.kind {
            FileKind::Regular => true,
            FileKind::Symlink => set.mode.is_none(),
            _ => false,
        };
        if !settable || inode.is_stale() || !inode.handle.is_given() {
            return None;
        }
        let Place { dir, name } = inode.place()?;
        if !self.has_room_in(&dir) || self.client.is_awaited(&inode.handle) {
            return None;
        }
        let _effect = Effect::begin()?;
        if !self.may_be_set(inode, &dir, cred, set) {
            return None;
        }
        let now = (Timestamp::now(), Instant::now());
        if self.joins_last_set(dir.ino, inode, cred, set) {
            inode.attr.lock().join_accepted(set, now.0, now.1);
            return Some(inode.known_stat());
        }
        // What is written from here on waits for it; what was written before shows.
        self.client.shut_gate(&inode.handle);
        let file = inode.opened().map(|file| file.lock());
        if file.as_deref().is_some_and(is_busy) {
            drop(file);
            self.client.open_gate(&inode.handle, 1);
            return None;
        }
        inode.attr.lock().accept_set(set, now.0, now.1);
        drop(file);
        let what = What::AttributesOf(Arc::clone(inode), set.clone());
        self.accept_name(cred, &dir, name, what);
        Some(inode.known_stat())
    }

    /// The server is certain to allow it, and nothing else of the file is on its way.
    fn may_be_set(
        &self,
        inode: &Arc<Inode>,
        dir: &Arc<Inode>,
        cred: &Arc<Credential>,
        set: &SetAttr,
    ) -> bool {
        if inode.opened().is_some_and(|file| is_busy(&file.lock())) {
            return false;
        }
        let (owned, is_known) = {
            let attr = inode.attr.lock();
            let is_believed = !attr.ttl(Instant::now()).is_zero();
            (
                Owned::of(attr.stat()),
                is_believed && attr.stat().nlink == 1,
            )
        };
        is_known && (self.rights.allow(cred, set, owned) || self.owns(cred, dir, set, owned))
    }

    /// The same by what the server has made of the private directory that it is in.
    fn owns(&self, cred: &Credential, dir: &Arc<Inode>, set: &SetAttr, owned: Owned) -> bool {
        let maker = self.namespace.private_to(cred, dir);
        maker.is_some_and(|maker| {
            let owner = (owned.uid, owned.gid);
            is_certain(set, owner, owned.perm, (cred.uid, maker.uid))
        })
    }
}

/// Something of the file is on its way, or will be seen to before its attributes are set.
fn is_busy(file: &FileInner) -> bool {
    file.is_hidden()
        || !file.writeback().is_idle()
        || !file.deferred().is_empty()
        || file.has_unread()
}

/// Sending.
impl Files {
    /// Sends attributes of several files, and takes in what the server makes of them.
    pub(super) async fn send_attributes(
        self: &Arc<Self>,
        mut sending: Sending,
        all: Vec<Queued<Accepted>>,
    ) {
        let Some(cred) = all.first().map(|first| Arc::clone(&first.change.cred)) else {
            return;
        };
        let sets: Vec<_> = (all.iter())
            .filter_map(|queued| match &queued.change.what {
                What::AttributesOf(inode, set) => Some((inode.handle.clone(), new_attributes(set))),
                _ => None,
            })
            .collect();
        let sent = Instant::now();
        let told = self.client.set_attrs_of_several(&cred, &sets).await;
        let (mut rests, mut again) = (None, Vec::new());
        let mut each = match told {
            Ok(each) => each,
            // A new session takes fewer at a time.
            Err(NfsError::Outgrown { .. }) if all.len() > 1 => {
                rests = Some(Rested(now() + REST));
                Vec::new()
            }
            // Nothing was done, as far as is known, and nothing will be.
            Err(error) => all.iter().map(|_| Err(error.clone())).collect(),
        }
        .into_iter();
        for queued in all {
            match each.next() {
                Some(Err(error)) if is_put_off(&error) => {
                    rests = Some(Rested(now() + REST));
                    again.push(queued);
                }
                Some(told) => {
                    // Before whoever waits for it may set something else.
                    self.change_ended(queued.number, &Ended::of(&queued.change));
                    self.attributes_answered(&mut sending, queued.change, told, sent);
                }
                None => again.push(queued),
            }
        }
        sending.ends(again, rests);
    }

    fn attributes_answered(
        self: &Arc<Self>,
        sending: &mut Sending,
        change: Accepted,
        told: Result<PrePost, NfsError>,
        sent: Instant,
    ) {
        let Accepted {
            dir,
            cred,
            name,
            what: What::AttributesOf(inode, _),
            ..
        } = change
        else {
            return;
        };
        inode.attr.lock().set_answered();
        match told {
            Ok(moved) => self.namespace.moved(&inode, &moved, sent),
            Err(error) => {
                self.rights.refuted(&cred);
                self.attributes_refused(&dir, &inode, dir.path_of(&name), &error);
            }
        }
        sending.was_set(&inode);
    }

    /// The server refuses what was answered.
    fn attributes_refused(
        self: &Arc<Self>,
        dir: &Arc<Inode>,
        inode: &Arc<Inode>,
        path: String,
        error: &NfsError,
    ) {
        let cause = self.namespace.failed(error, inode);
        tracing::error!(
            "a change of attributes of {path} was answered (writeback) and is refused by the server: \
             {error}; fsync of its directory tells the error"
        );
        self.metrics.set_last_error(error.to_string());
        self.refused_late(dir, path, "change of attributes of", &cause);
        inode.attr.lock().expire();
        self.namespace.inval_attr(inode.ino);
        if let Some(file) = inode.opened() {
            let mut inner = file.lock();
            inner.writeback_mut().errors_mut().record(cause);
            self.log_errors(inode, &inner);
            drop(inner);
            file.notify_waiters();
        }
    }
}
