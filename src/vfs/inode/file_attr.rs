//! The attributes of an inode whose file may have data or changes on their way: the file's lock
//! is taken first, so that nothing is accepted in between.

use std::time::Duration;

use tokio::time::Instant;

use super::Inode;
use super::attr::{AHEAD, AttrState};
use crate::nfs::proto::attrs::Attributes;
use crate::vfs::types::{Stat, VfsError, VfsResult};

impl Inode {
    /// Changes the attributes to what the server says, and keeps the file at
    /// least as long as what is on its way to it: the kernel cuts its pages at
    /// any size that it is told, and appends there. What this host has set and
    /// the server does not know yet stays set.
    pub(in crate::vfs) fn with_attr<T>(&self, change: impl FnOnce(&mut AttrState) -> T) -> T {
        // Held, so that no write is accepted between the two.
        let file = self.opened().map(|file| file.lock());
        let mut attr = self.attr.lock();
        let result = change(&mut attr);
        if let Some(inner) = file {
            if let Some(end) = inner.writeback().end_offset() {
                attr.grow(end);
            }
            for (set, ctime) in inner.deferred().unknown() {
                attr.overlay(set, ctime);
            }
        }
        result
    }

    /// Something is on its way that changes the attributes.
    pub(in crate::vfs) fn is_changing(&self) -> bool {
        self.opened().is_some_and(|file| file.is_changing()) || self.is_ahead()
    }

    /// The server has yet to make it, or to learn of names in it.
    pub(in crate::vfs) fn is_ahead(&self) -> bool {
        let names = self.known_names();
        self.handle.is_undecided() || names.is_some_and(|names| names.lock().are_ahead())
    }

    /// Nobody else can have changed what is ahead.
    fn is_alone(&self) -> bool {
        let names = self.known_names();
        self.handle.is_undecided() || names.is_some_and(|names| names.lock().maker().is_some())
    }

    /// This host has accepted data for the file that are not at the server for good.
    pub(in crate::vfs) fn is_written(&self) -> bool {
        self.opened()
            .is_some_and(|file| !file.lock().writeback().is_idle())
    }

    /// The attributes, and how long they may be believed: not at all while
    /// there are data on their way, which will move them.
    pub(in crate::vfs) fn known_stat(&self) -> (Stat, Duration) {
        if self.is_ahead() {
            return self.stat_ahead();
        }
        let changing = self.opened().is_some_and(|file| file.is_changing());
        let attr = self.attr.lock();
        let ttl = if changing {
            Duration::ZERO
        } else {
            attr.ttl_here(Instant::now())
        };
        (attr.stat().clone(), ttl)
    }

    /// The attributes and how long they may be believed, if they may be.
    pub(in crate::vfs) fn believed_stat(&self) -> Option<(Stat, Duration)> {
        let attr = self.attr.lock();
        let ttl = attr.ttl_here(Instant::now());
        (!ttl.is_zero()).then(|| (attr.stat().clone(), ttl))
    }

    /// What the attributes are while data are on their way, but for the times: those
    /// the server has yet to tell. The size is known, if it was.
    pub(in crate::vfs) fn stat_while_writing(&self) -> Option<Stat> {
        let file = self.opened()?;
        if !file.lock().deferred().is_empty() {
            return None;
        }
        self.believed_stat().map(|(stat, _)| stat)
    }

    /// The attributes of a file whose changes are not known to the server, if
    /// this host knows all of them by itself; and how long they may be believed.
    pub(in crate::vfs) fn stat_of_changed(&self) -> Option<(Stat, Duration)> {
        if self.is_ahead() {
            let known = self.stat_ahead();
            return (self.is_alone() || !known.1.is_zero()).then_some(known);
        }
        let inner = self.opened()?.lock();
        if !inner.deferred().knows_mtime() {
            return None;
        }
        let attr = self.attr.lock();
        Some((inner.shown(attr.stat()), Duration::ZERO))
    }

    /// The attributes of what is ahead of the server, and how long they may be believed.
    pub(in crate::vfs) fn stat_ahead(&self) -> (Stat, Duration) {
        let stat = self.shown_stat();
        (stat, self.attr.lock().ttl(Instant::now()).min(AHEAD))
    }

    /// The attributes as this host knows them.
    pub(in crate::vfs) fn shown_stat(&self) -> Stat {
        match self.opened().map(|file| file.lock()) {
            Some(inner) => inner.shown(self.attr.lock().stat()),
            None => self.attr.lock().stat().clone(),
        }
    }

    /// We have set the size of a file: what was read ahead is old, and the
    /// size is this, even if a reply from before was taken in meanwhile.
    pub(in crate::vfs) fn was_cut(&self, after: Option<&Attributes>) {
        if let Some(file) = self.opened() {
            file.lock().cut();
        }
        if let Some(after) = after {
            self.with_attr(|attr| attr.cut(after.size));
        }
    }

    /// What fstat(2) of a directory comes to that the server does not know any more: no
    /// error if this host has removed it.
    pub(in crate::vfs) fn ends_by_us(&self, error: VfsError) -> VfsResult<()> {
        match error.is(libc::ESTALE) && self.attr.lock().ends() {
            true => Ok(()),
            false => Err(error),
        }
    }
}
