//! The attributes of one inode, and how long they may be believed: a plain
//! state machine under the inode's lock.
//!
//! Replies overtake each other, so what a reply says is judged by when its
//! request was *sent*:
//! - Older than what is known already (its request left before the one that
//!   brought it): dropped.
//! - Sent before a change of ours was answered: it may be from before that
//!   change, and is dropped, so that a host always sees its own changes.
//! - Sent before the reply that brought what is known came in, and different:
//!   the server may have run the two in either order. The one with the later
//!   ctime is kept (what the server says, where what is known has times of this
//!   host's clock), and neither is believed any longer.
//!
//! The change attribute says whether an object moved, and only equality means
//! anything. Each change of ours brings a pair (before, after); if `before` is a
//! value we can explain, nobody else has been at it, and `after` is explained
//! too. What was cached of the object (pages of a file, names of a directory)
//! is good as long as its change attribute is an explained one.

pub(in crate::vfs) mod handover;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::nfs::calls::PrePost;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::{FileType, NfsTime};
use crate::vfs::file::pages::Moves;
use crate::vfs::types::{FileKind, Ino, SetAttr, SetTime, Stat, Timestamp};

/// How long attributes are believed, as nfs(5) names it.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Files: at least.
    pub reg_min: Duration,
    /// Files: at most.
    pub reg_max: Duration,
    /// Directories: at least.
    pub dir_min: Duration,
    /// Directories: at most.
    pub dir_max: Duration,
}

impl Timeouts {
    fn range(&self, kind: FileKind) -> (Duration, Duration) {
        if kind == FileKind::Directory {
            (self.dir_min, self.dir_max.max(self.dir_min))
        } else {
            (self.reg_min, self.reg_max.max(self.reg_min))
        }
    }
}

/// This many values of the change attribute are remembered as explained.
const EXPLAINED: usize = 8;

/// The longest that the kernel may believe the attributes of what is ahead of the server: they are
/// this host's, and true, but that the server has another ctime, and other times of a directory.
pub(super) const AHEAD: Duration = Duration::from_millis(100);

/// What is known of an inode.
#[derive(Debug)]
pub(in crate::vfs) struct AttrState {
    stat: Stat,
    /// The size at the server, as far as it has told; `stat` counts what is on
    /// its way as well.
    server_size: u64,
    /// The largest size that `stat` has had since we last set one: the kernel
    /// may believe that still.
    largest: u64,
    /// The change attribute of `stat`.
    change: u64,
    /// When the request left that brought `stat`.
    sent: Instant,
    /// When its reply came in.
    taken: Instant,
    /// Counts the changes by others that were seen.
    foreign: Moves,
    /// When our last change was answered.
    changed: Instant,
    /// Believed for so long after `sent`; grows while nothing changes.
    timeout: Millis,
    /// To be asked for again before it is believed.
    expired: bool,
    /// Times of `stat` are by this host's clock: they say nothing of the order of replies.
    own_times: bool,
    /// Its last name is a hidden one, not to be counted.
    hidden: bool,
    /// Whether the object is there at all.
    life: Life,
    /// What was set and answered, and the server does not know yet (`writeback`).
    accepted: Option<Box<AcceptedSet>>,
    /// Values of the change attribute that what is cached belongs to.
    explained: SmallVec<[u64; 2]>,
}

/// Changes of attributes that are ahead of the server, as one.
#[derive(Debug)]
struct AcceptedSet {
    /// So many.
    count: usize,
    set: SetAttr,
    /// What is shown as the time of the last one.
    ctime: Timestamp,
}

/// A time in milliseconds, since there is one in each of many inodes; longer ones
/// are 49 days.
#[derive(Clone, Copy, Debug)]
struct Millis(u32);

impl From<Duration> for Millis {
    fn from(time: Duration) -> Self {
        Self(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
    }
}

impl From<Millis> for Duration {
    fn from(time: Millis) -> Self {
        Self::from_millis(time.0.into())
    }
}

/// Whether an object is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Life {
    /// As far as the server has told.
    Sure,
    /// This host may have removed it.
    Unsure,
    /// This host has removed it, and the server does not know it any more.
    Over,
}

/// What taking in a reply came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vfs) enum Seen {
    /// Nothing that was cached is old.
    Same,
    /// The reply may be from before what is known, and was dropped.
    Late,
    /// Somebody else changed the object: what was cached of it is old.
    Foreign,
}

impl AttrState {
    /// Of an object that the server has yet to make.
    pub(in crate::vfs) fn is_promised(&mut self) {
        self.own_times = true;
    }

    /// The same of one that another process has promised, and shown with these times.
    pub(in crate::vfs) fn promised_again(
        &mut self,
        atime: Timestamp,
        mtime: Timestamp,
        ctime: Timestamp,
    ) {
        (self.stat.atime, self.stat.mtime, self.stat.ctime) = (atime, mtime, ctime);
        self.own_times = true;
    }

    /// From a first reply.
    pub(in crate::vfs) fn new(
        ino: Ino,
        attrs: &Attributes,
        sent: Instant,
        timeouts: &Timeouts,
    ) -> Self {
        let stat = to_stat(ino, attrs);
        let (min, _) = timeouts.range(stat.kind);
        Self {
            server_size: stat.size,
            largest: stat.size,
            stat,
            change: attrs.change,
            sent,
            taken: sent,
            foreign: 0,
            changed: sent,
            timeout: Millis::from(min),
            expired: false,
            own_times: false,
            hidden: false,
            life: Life::Sure,
            accepted: None,
            explained: SmallVec::from_elem(attrs.change, 1),
        }
    }

    /// The attributes, and whatever their age.
    pub(in crate::vfs) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// The size of what the server has of a file.
    pub(in crate::vfs) fn server_size(&self) -> u64 {
        self.server_size
    }

    /// Somebody else has cut the file, and the kernel may not know it.
    pub(in crate::vfs) fn may_seem_longer(&self) -> bool {
        self.largest > self.stat.size
    }

    /// A change of ours was answered after `sent`: what a request sent then has
    /// learned may be from before it.
    pub(in crate::vfs) fn overtook(&self, sent: Instant) -> bool {
        sent < self.changed
    }

    /// The change attribute.
    pub(in crate::vfs) fn change(&self) -> u64 {
        self.change
    }

    /// How many changes by others were seen: what was cached under another
    /// count is old.
    pub(in crate::vfs) fn foreign(&self) -> Moves {
        self.foreign
    }

    /// What is known may be older than something else that was told.
    pub(in crate::vfs) fn is_expired(&self) -> bool {
        self.expired
    }

    /// What was cached under this value of the change attribute is good.
    pub(in crate::vfs) fn explains(&self, change: u64) -> bool {
        self.explained.contains(&change)
    }

    /// How long the attributes may still be believed; zero: ask again.
    pub(in crate::vfs) fn ttl(&self, now: Instant) -> Duration {
        if self.life == Life::Over {
            return self.timeout();
        }
        if self.expired {
            return Duration::ZERO;
        }
        (self.sent + self.timeout()).saturating_duration_since(now)
    }

    /// The same of what the kernel is told.
    pub(super) fn ttl_here(&self, now: Instant) -> Duration {
        match self.accepted {
            Some(_) => self.ttl(now).min(AHEAD),
            None => self.ttl(now),
        }
    }

    /// For how long a confirmation of the change attribute is good.
    pub(in crate::vfs) fn timeout(&self) -> Duration {
        self.timeout.into()
    }

    /// The attributes are to be asked for again.
    pub(in crate::vfs) fn expire(&mut self) {
        self.expired = true;
    }

    /// Takes in what a request sent at `sent` and answered at `now` learned.
    pub(in crate::vfs) fn learn(
        &mut self,
        attrs: &Attributes,
        sent: Instant,
        now: Instant,
        timeouts: &Timeouts,
    ) -> Seen {
        if sent < self.sent || sent < self.changed || self.is_over() {
            return Seen::Late;
        }
        if sent < self.taken && attrs.change != self.change {
            // A tie goes to the request that was sent last.
            if self.own_times || attrs.ctime >= ntime(self.stat.ctime) {
                self.take(attrs, sent, now);
            }
            self.disturbed();
            return Seen::Foreign;
        }
        // Attributes read in the middle of somebody's write: servers stamp a
        // file before they change it.
        let torn = attrs.change == self.change && attrs.size != self.server_size;
        let (min, max) = timeouts.range(self.stat.kind);
        let timeout = self.timeout();
        let timeout = if attrs.change == self.change && !torn {
            // Undisturbed: believe it longer, the longer it stays so. Many
            // lookups in a directory all bring its attributes along; they must
            // not stretch the time out at once.
            if sent.saturating_duration_since(self.sent) >= timeout {
                (timeout * 2).clamp(min, max)
            } else {
                timeout
            }
        } else {
            min
        };
        self.timeout = timeout.into();
        self.take(attrs, sent, now);
        if self.explained.contains(&attrs.change) && !torn {
            return Seen::Same;
        }
        self.foreign_change();
        Seen::Foreign
    }

    /// As [`AttrState::learn`], for what an OPEN or a LOCK brought: nothing older
    /// may be seen afterwards. A reply that is late may be the only one to know
    /// of somebody else's close before it.
    pub(in crate::vfs) fn learn_at_open(
        &mut self,
        attrs: &Attributes,
        sent: Instant,
        now: Instant,
        timeouts: &Timeouts,
    ) -> Seen {
        match self.learn(attrs, sent, now, timeouts) {
            Seen::Late if !self.explained.contains(&attrs.change) => {
                self.disturbed();
                Seen::Foreign
            }
            seen => seen,
        }
    }

    /// Takes in what our own change came to, answered at `now`.
    pub(in crate::vfs) fn moved(
        &mut self,
        moved: &PrePost,
        sent: Instant,
        now: Instant,
        timeouts: &Timeouts,
    ) -> Seen {
        let raced = sent < self.changed || sent < self.sent;
        self.changed = now;
        let Some(after) = &moved.after else {
            self.expired = true;
            return Seen::Same;
        };
        let explained = moved
            .before
            .is_some_and(|before| self.explained.contains(&before));
        if explained && !self.explained.contains(&after.change) {
            if self.explained.len() == EXPLAINED {
                self.explained.remove(0);
            }
            self.explained.push(after.change);
        }
        if raced {
            // Which of two changes that were on their way together is the
            // later one cannot be told from here. A file only grows by them.
            let size = self.stat.size.max(after.size);
            let server_size = self.server_size.max(after.size);
            let known = (ntime(self.stat.mtime), ntime(self.stat.ctime));
            if self.own_times || (after.mtime, after.ctime) >= known {
                self.take(after, self.sent.max(sent), now);
            }
            self.stat.size = size;
            self.largest = self.largest.max(size);
            self.server_size = server_size;
            self.expired = true;
            return Seen::Same;
        }
        self.timeout = timeouts.range(self.stat.kind).0.into();
        self.take(after, sent, now);
        if explained {
            Seen::Same
        } else {
            self.foreign_change();
            Seen::Foreign
        }
    }

    /// What this host has set and the server does not know yet. Everybody here
    /// sees it at once.
    pub(in crate::vfs) fn overlay(&mut self, set: &SetAttr, ctime: Timestamp) {
        let time = |at: SetTime| match at {
            SetTime::At(at) => at,
            SetTime::Now => ctime,
        };
        let stat = &mut self.stat;
        if let Some(mode) = set.mode {
            stat.perm = (mode & 0o7777) as u16;
        }
        stat.uid = set.uid.unwrap_or(stat.uid);
        stat.gid = set.gid.unwrap_or(stat.gid);
        stat.atime = set.atime.map_or(stat.atime, time);
        stat.mtime = set.mtime.map_or(stat.mtime, time);
        stat.ctime = ctime;
        self.own_times = true;
    }

    /// This was set and answered, and the server does not know it yet: it stays true here,
    /// whatever the server says until [`AttrState::set_answered`].
    pub(in crate::vfs) fn accept_set(&mut self, set: &SetAttr, ctime: Timestamp, now: Instant) {
        let accepted = self.accepted.get_or_insert_with(|| {
            Box::new(AcceptedSet {
                count: 0,
                set: SetAttr::default(),
                ctime,
            })
        });
        accepted.count += 1;
        self.join_accepted(set, ctime, now);
    }

    /// The same of what goes to the server with the last of those.
    pub(in crate::vfs) fn join_accepted(&mut self, set: &SetAttr, ctime: Timestamp, now: Instant) {
        if let Some(accepted) = &mut self.accepted {
            accepted.set.join(set);
            accepted.ctime = ctime;
        }
        self.overlay(set, ctime);
        self.changed = now;
    }

    /// One of those was answered by the server, or will never be sent.
    pub(in crate::vfs) fn set_answered(&mut self) {
        if let Some(accepted) = &mut self.accepted {
            accepted.count -= 1;
        }
        self.accepted.take_if(|accepted| accepted.count == 0);
    }

    /// The server has made the object, which was promised: what it says counts from here on, but
    /// that what was done to it since (`ahead`) stays true here.
    pub(in crate::vfs) fn made(
        &mut self,
        attrs: &Attributes,
        ahead: bool,
        sent: Instant,
        now: Instant,
    ) {
        let shown = ahead.then(|| self.stat.clone());
        self.take(attrs, sent, now);
        if let Some(shown) = shown {
            self.stat = shown;
            self.own_times = true;
        }
        self.explained = SmallVec::from_elem(attrs.change, 1);
        self.changed = now;
    }

    /// This host has done something now that moves these times, and the server does not know it
    /// yet. Nothing that was asked before tells of it.
    pub(in crate::vfs) fn touch(&mut self, at: Timestamp, now: Instant) {
        self.stat.mtime = at;
        self.touch_itself(at, now);
    }

    /// The same of the object itself, and not of what is in it.
    pub(in crate::vfs) fn touch_itself(&mut self, at: Timestamp, now: Instant) {
        self.stat.ctime = at;
        self.own_times = true;
        self.changed = now;
    }

    /// A change of ours was answered `now`, and nothing was said of what it came to.
    pub(in crate::vfs) fn overtaken(&mut self, now: Instant) {
        self.changed = now;
    }

    /// A directory in it was made (1) or removed (-1).
    pub(in crate::vfs) fn count_link(&mut self, change: i32) {
        self.stat.nlink = self.stat.nlink.saturating_add_signed(change);
    }

    /// We have written up to `end`, and the server will have it.
    pub(in crate::vfs) fn grow(&mut self, end: u64) {
        self.stat.size = self.stat.size.max(end);
        self.largest = self.largest.max(end);
    }

    /// We have set the size, and nothing was on its way.
    pub(in crate::vfs) fn cut(&mut self, size: u64) {
        self.stat.size = size;
        self.server_size = size;
        self.largest = size;
    }

    /// A name of the object is gone (or kept out of sight).
    pub(in crate::vfs) fn unlinked(&mut self) {
        self.stat.nlink = self.stat.nlink.saturating_sub(1);
    }

    /// We have removed a directory by a name that was known to lead here: most likely it was
    /// this one.
    pub(in crate::vfs) fn may_be_over(&mut self) {
        self.life = Life::Unsure;
        self.expired = true;
    }

    /// The server does not know the object any more. True if that is by our own doing: then
    /// what was known of it last, without a link, is shown to who has it open.
    pub(in crate::vfs) fn ends(&mut self) -> bool {
        if self.life == Life::Unsure {
            self.life = Life::Over;
            self.stat.nlink = 0;
        }
        self.is_over()
    }

    /// See [`AttrState::ends`].
    pub(in crate::vfs) fn is_over(&self) -> bool {
        self.life == Life::Over
    }

    /// One of the object's names is hidden, and none for programs; or it is no more.
    pub(in crate::vfs) fn hide_name(&mut self, hidden: bool) {
        self.hidden = hidden;
    }

    /// A name of the object was hidden or has gone, and nothing was said of its attributes:
    /// what was asked for before `now` does not tell which names it has counted.
    pub(in crate::vfs) fn names_changed(&mut self, now: Instant) {
        self.changed = now;
        self.expired = true;
    }

    /// Somebody else's change led to what is known now.
    fn foreign_change(&mut self) {
        self.foreign += 1;
        self.explained.clear();
        self.explained.push(self.change);
    }

    /// Somebody else changed the object, and when is not known.
    fn disturbed(&mut self) {
        self.foreign_change();
        self.expired = true;
    }

    fn take(&mut self, attrs: &Attributes, sent: Instant, now: Instant) {
        let kind = self.stat.kind;
        self.stat = to_stat(self.stat.ino, attrs);
        self.server_size = attrs.size;
        self.largest = self.largest.max(attrs.size);
        if self.hidden {
            self.stat.nlink = self.stat.nlink.saturating_sub(1);
        }
        if attrs.kind.is_none() {
            self.stat.kind = kind;
        }
        self.change = attrs.change;
        self.life = Life::Sure;
        self.sent = sent;
        self.taken = now;
        self.own_times = false;
        self.expired = false;
        if let Some(accepted) = self.accepted.take() {
            self.overlay(&accepted.set, accepted.ctime);
            self.accepted = Some(accepted);
        }
    }
}

fn ntime(time: Timestamp) -> NfsTime {
    NfsTime {
        sec: time.sec,
        nsec: time.nsec,
    }
}

fn timestamp(time: NfsTime) -> Timestamp {
    Timestamp {
        sec: time.sec,
        nsec: time.nsec,
    }
}

/// The kind of an object.
pub fn kind_of(kind: Option<FileType>) -> FileKind {
    match kind {
        Some(FileType::Directory) => FileKind::Directory,
        Some(FileType::Block) => FileKind::BlockDevice,
        Some(FileType::Char) => FileKind::CharDevice,
        Some(FileType::Symlink) => FileKind::Symlink,
        Some(FileType::Socket) => FileKind::Socket,
        Some(FileType::Fifo) => FileKind::Fifo,
        Some(FileType::Regular) | None => FileKind::Regular,
    }
}

fn to_stat(ino: Ino, attrs: &Attributes) -> Stat {
    let (major, minor) = attrs.rdev;
    let kind = kind_of(attrs.kind);
    let rdev = match kind {
        FileKind::BlockDevice | FileKind::CharDevice => {
            // The kernel's 32-bit encoding of the FUSE protocol.
            (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
        }
        _ => 0,
    };
    Stat {
        ino,
        kind,
        perm: (attrs.mode & 0o7777) as u16,
        nlink: attrs.nlink,
        uid: attrs.uid,
        gid: attrs.gid,
        rdev,
        size: attrs.size,
        blocks: attrs.space_used.div_ceil(512),
        // What one READ or WRITE carries best.
        blksize: 1 << 20,
        atime: timestamp(attrs.atime),
        mtime: timestamp(attrs.mtime),
        ctime: timestamp(attrs.ctime),
    }
}

#[cfg(test)]
mod tests;
