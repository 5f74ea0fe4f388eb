//! Changes of names that are answered before the server knows of them (`writeback`): which are
//! accepted, and who waits for them.
//!
//! Accepted is what this host can answer for by itself: in a directory that is
//! [private](crate::vfs::namespace::promised) to the caller, a file, a directory or a link by a
//! name that is free; there, and where all names were confirmed in this second and the server has
//! [let](super::confirmed_rights) the caller change such, the removal or the new name of what this host
//! knows to be there; and what is set of the directory itself
//! ([`directory_setattr`](super::directory_setattr)), or of files ([`file_setattr`](super::file_setattr)). All else is
//! asked of the server, and waits there for what was accepted before it ([`Gate`](crate::nfs) by its
//! directory, a promised handle by its object). In what order they go, and when, says the
//! [queue](crate::vfs::writeback::name_queue); how, `send_names`.
//!
//! What is refused later is told as an error of a write is: by the next fsync or close of the
//! file, and by the next fsync of the directory; and it is logged with its path.
//!
//! Nothing is accepted of a caller who was answered without his operation (a killed one), as nothing
//! of his is sent then: each change is an [`Effect`] of its caller.
//!
//! Locks: the queue's is taken with no other but, under it, a file's, an inode's attributes', and the
//! log's ([`logged_names`](super::logged_names)). The alarm, and the count of what tells others something, have
//! locks with which no other is taken; under that of closed files their states' are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Files;
use super::accepted_name::{Accepted, PromisedFile, What, fits};
use super::confirmed_rights::Owned;
use super::request_room::Growth;
use super::write::now;
use crate::nfs::calls::{AROUND_CHANGES, LARGEST_CHANGE};
use crate::nfs::proto::types::FileType;
use crate::rpc::auth::Credential;
use crate::rpc::caller::Effect;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::{DentryTarget, Name};
use crate::vfs::namespace::names::NAME_MAX;
use crate::vfs::types::{FileKind, Ino, Opened, Timestamp, VfsResult};
use crate::vfs::writeback::name_queue::{Config, NameQueue, Next, Number};

/// The most changes that are ahead of the server. With more the caller waits, by being answered
/// by the server itself.
const MOST: usize = 4096;

/// How long a change waits for company. Whoever asks for what it is about hurries it.
const LINGER: Duration = Duration::from_millis(4);

/// How long a new file waits for its data and its close, as a part of the longest that anything stays
/// back; not as long if it has more data than go along with it.
const PATIENCE: u32 = 4;

/// With so many in its directory no file waits for its close.
const CROWD: usize = 64;

/// What of a mount is ahead of the server.
#[derive(Debug)]
pub(super) struct NameWriteback {
    is_on: bool,
    pub(super) queue: Mutex<NameQueue<Accepted>>,
    /// Whether requests may be larger than they are.
    pub(super) growth: Growth,
    /// When the queue is looked at next.
    alarm: Mutex<Option<Instant>>,
    /// Something was answered.
    pub(super) answered: Notify,
    /// Requests that were accepted, and that the kernel has no answer to yet; with a log.
    pub(super) requests: Mutex<HashSet<u64>>,
    /// Files that were closed with data on their way, until a handle of theirs is gone and they have none.
    closed: Mutex<Vec<Arc<Inode>>>,
    /// How many changes of each directory are ahead by which others are told something: all but removals.
    pub(super) telling: Mutex<HashMap<Ino, usize>>,
    /// What was made of promises, by inodes, and up to which change a record may name one as such.
    pub(super) made: Mutex<VecDeque<(Number, Ino)>>,
}

impl NameWriteback {
    /// Nothing is ahead, and nothing ever is without the longest time that it stays back.
    pub(super) fn new(longest: Option<Duration>) -> Self {
        let is_on = longest.is_some();
        let longest = longest.unwrap_or_default();
        Self {
            is_on,
            queue: Mutex::new(NameQueue::new(Config {
                most: MOST,
                linger: LINGER.min(longest),
                patience: longest / PATIENCE,
                crowd: CROWD,
            })),
            growth: Growth::default(),
            alarm: Mutex::default(),
            answered: Notify::new(),
            requests: Mutex::default(),
            closed: Mutex::default(),
            telling: Mutex::default(),
            made: Mutex::default(),
        }
    }
}

impl NameWriteback {
    /// The file is being closed, and has data on their way.
    pub(super) fn was_closed(&self, file: &Arc<Inode>) {
        let mut closed = self.closed.lock();
        if !closed.iter().any(|known| Arc::ptr_eq(known, file)) {
            closed.push(Arc::clone(file));
        }
    }

    /// A handle of the file is gone.
    pub(super) fn was_released(&self, file: &Arc<Inode>) {
        if !self.is_on {
            return;
        }
        let mut closed = self.closed.lock();
        if let Some(at) = closed.iter().position(|known| Arc::ptr_eq(known, file))
            && !file.is_written()
        {
            closed.swap_remove(at);
        }
    }

    /// Files that were closed and have data on their way still.
    pub(super) fn closed(&self) -> Vec<Arc<Inode>> {
        let mut closed = self.closed.lock();
        closed.retain(|file| file.is_written());
        closed.clone()
    }
}

/// Accepting.
impl Files {
    /// Changes of names, attributes and data are answered before the server knows of them.
    pub(in crate::vfs) fn is_ahead_allowed(&self) -> bool {
        self.names.is_on
    }

    fn has_room_ahead(&self) -> bool {
        // The largest change and what stands around it is one request.
        let fits = self.client.session_info().max_ops as usize >= AROUND_CHANGES + LARGEST_CHANGE;
        self.names.is_on && fits && self.names.queue.lock().has_room()
    }

    /// The same of names in a directory, for which nobody waits.
    pub(super) fn has_room_in(&self, dir: &Inode) -> bool {
        self.has_room_ahead() && !self.client.is_awaited(&dir.handle)
    }

    /// O_CREAT of a name that is free in a private directory. `None`: the server is to be asked.
    pub(in crate::vfs) fn promise_file(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        mode: u32,
        (access, flags): (u32, i32),
    ) -> Option<(Arc<Inode>, Opened)> {
        let _effect = Effect::begin()?;
        let attrs = self.may_promise(cred, dir, name, (FileType::Regular, mode, 0))?;
        let mut verifier = [0; 8];
        getrandom::fill(&mut verifier).ok()?;
        let name = Name::from(name);
        let (inode, promise) = self.namespace.promise(dir, &name, &attrs);
        let open = self
            .client
            .prepare_open(inode.handle.clone(), Arc::clone(cred));
        {
            let mut inner = self.file_state(&inode).lock();
            inner.deferred_mut().made(attrs.uid);
            inner.add_open(&open);
        }
        let opened = self.opened(&inode, Arc::clone(&open), (access, flags), None);
        let file = PromisedFile {
            inode: Arc::clone(&inode),
            open,
            access,
            mode,
            verifier,
            marks: SmallVec::new(),
            promise,
        };
        self.accept_name(cred, dir, name, What::File(file));
        Some((inode, opened))
    }

    /// mkdir(2) of the same.
    pub(in crate::vfs) fn promise_directory(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        mode: u32,
    ) -> Option<Arc<Inode>> {
        let _effect = Effect::begin()?;
        let attrs = self.may_promise(cred, dir, name, (FileType::Directory, mode, 4096))?;
        let name = Name::from(name);
        let (inode, promise) = self.namespace.promise(dir, &name, &attrs);
        self.namespace.promised_private(&inode, cred);
        let what = What::Directory {
            inode: Arc::clone(&inode),
            mode,
            promise,
        };
        self.accept_name(cred, dir, name, what);
        Some(inode)
    }

    /// symlink(2) of the same.
    pub(in crate::vfs) fn promise_symlink(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        text: &[u8],
    ) -> Option<Arc<Inode>> {
        let _effect = Effect::begin()?;
        let kind = (FileType::Symlink, 0o777, text.len() as u64);
        let attrs = self.may_promise(cred, dir, name, kind)?;
        let name = Name::from(name);
        let (inode, promise) = self.namespace.promise(dir, &name, &attrs);
        let text = Bytes::copy_from_slice(text);
        let _ = inode.link.set(Box::new(text.clone()));
        let what = What::Symlink {
            inode: Arc::clone(&inode),
            text,
            promise,
        };
        self.accept_name(cred, dir, name, what);
        Some(inode)
    }

    fn may_promise(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        what: (FileType, u32, u64),
    ) -> Option<crate::nfs::proto::attrs::Attributes> {
        if !self.has_room_in(dir) || name.len() > NAME_MAX {
            return None;
        }
        let maker = self.namespace.private_to(cred, dir)?;
        let free = self.namespace.is_free(dir, name);
        free.then(|| self.namespace.attributes_of_new(dir, &maker, what))?
    }

    pub(super) fn accept_name(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: Name,
        what: What,
    ) {
        self.take_in(Accepted {
            dir: Arc::clone(dir),
            cred: Arc::clone(cred),
            name,
            what,
            again: false,
            request: self.log_request(),
        });
        self.pump_names();
    }

    /// The change is in the queue from here on, and in the log.
    pub(super) fn take_in(&self, accepted: Accepted) {
        let dir = Arc::clone(&accepted.dir);
        self.client.shut_gate(&dir.handle);
        if accepted.tells() {
            self.count_telling(dir.ino, true);
        }
        {
            let mut queue = self.names.queue.lock();
            self.log_change(queue.next_number(), &accepted);
            queue.accept(dir.ino, now(), accepted);
            // Who has come to wait in between has hurried what was there.
            if self.client.is_awaited(&dir.handle) {
                queue.hurry();
            }
        }
        self.metrics.gauges.names_ahead.inc();
    }

    /// unlink(2) or rmdir(2) of what this host knows to be in a private directory. False: the
    /// server is to be asked.
    pub(in crate::vfs) fn accept_removal(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        of_directory: bool,
    ) -> bool {
        let Some(_effect) = Effect::begin() else {
            return false;
        };
        let Some(victim) = self.own(cred, dir, name, false) else {
            return false;
        };
        let is_dir = victim.kind == FileKind::Directory;
        if is_dir != of_directory || is_dir && !self.is_known_empty(cred, &victim) {
            return false;
        }
        let name = Name::from(name);
        let links = -i32::from(is_dir);
        self.namespace
            .accepted(dir, &name, DentryTarget::Negative, links);
        match is_dir {
            true => self.namespace.lost_dir(&victim),
            false => victim.lost_a_name(),
        }
        self.accept_name(cred, dir, name, What::Remove { victim });
        true
    }

    /// rename(2) within a private directory of what this host knows to be there.
    pub(in crate::vfs) fn accept_rename(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        (from, to): (&[u8], &[u8]),
    ) -> bool {
        let Some(_effect) = Effect::begin() else {
            return false;
        };
        let Some(moved) = self.own(cred, dir, from, true) else {
            return false;
        };
        let replaced = match self.namespace.is_free(dir, to) {
            true => None,
            false => match self.own(cred, dir, to, false) {
                Some(replaced) => Some(replaced),
                None => return false,
            },
        };
        let is_file = |inode: &Arc<Inode>| inode.kind == FileKind::Regular;
        let files = is_file(&moved) && replaced.as_ref().is_none_or(is_file);
        if !files || from == to || to.len() > NAME_MAX {
            return false;
        }
        let (from, to) = (Name::from(from), Name::from(to));
        if let Some(replaced) = &replaced {
            replaced.lost_a_name();
        }
        self.namespace
            .accepted(dir, &from, DentryTarget::Negative, 0);
        let target = DentryTarget::Inode(Arc::clone(&moved));
        self.namespace.put_name(dir, Arc::clone(&to), target, None);
        self.namespace.found_at(&moved, dir, Arc::clone(&to));
        let changed = (Timestamp::now(), Instant::now());
        moved.attr.lock().touch_itself(changed.0, changed.1);
        let what = What::Rename {
            to,
            moved,
            replaced,
        };
        self.accept_name(cred, dir, from, what);
        true
    }

    /// What a name in a private directory leads to, if nothing of it has to be seen to before the
    /// name goes, and nobody has it open, or it `keeps` a name.
    fn own(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        keeps: bool,
    ) -> Option<Arc<Inode>> {
        if !self.has_room_in(dir) {
            return None;
        }
        if !self.may_change_names(cred, dir) {
            return None;
        }
        let inode = self.namespace.remembered_inode(dir, name)?;
        let (is_one, is_ours) = {
            let attr = inode.attr.lock();
            let stat = attr.stat();
            let links = if inode.kind == FileKind::Directory {
                2
            } else {
                1
            };
            (stat.nlink <= links, !attr.is_over())
        };
        let is_open = inode.opened().is_some_and(|file| match keeps {
            true => file.lock().is_hidden(),
            false => file.lock().is_open_or_hidden(),
        });
        let ours = is_ours && !inode.is_stale() && !is_open;
        (ours && (is_one || inode.kind == FileKind::Directory)).then_some(inode)
    }

    /// What its names are is known here, and the server will let them be changed. Who sees one of them go
    /// may rely on what was done before: what is ahead but removals is in the same directory, whose changes
    /// go in their order.
    fn may_change_names(&self, cred: &Credential, dir: &Arc<Inode>) -> bool {
        self.namespace.private_to(cred, dir).is_some()
            || self.namespace.knows_all_now(cred, dir)
                && self.rights.allow_names(cred, Owned::of_inode(dir))
                && !self.tells_elsewhere(dir.ino)
    }

    /// Data of what is closed are on their way, or attributes, or changes of names in other directories by
    /// which others are told something.
    fn tells_elsewhere(&self, dir: Ino) -> bool {
        let elsewhere = {
            let telling = self.names.telling.lock();
            telling.len() > usize::from(telling.contains_key(&dir))
        };
        elsewhere || !self.names.closed().is_empty() || !self.changed.lock().is_empty()
    }

    /// A change by which others are told something is ahead, or is not any more.
    pub(super) fn count_telling(&self, dir: Ino, is_ahead: bool) {
        let mut telling = self.names.telling.lock();
        let count = telling.entry(dir).or_default();
        match is_ahead {
            true => *count += 1,
            false => *count -= 1,
        }
        if *count == 0 {
            telling.remove(&dir);
        }
    }

    fn is_known_empty(&self, cred: &Credential, dir: &Arc<Inode>) -> bool {
        let is_known = self.namespace.private_to(cred, dir).is_some()
            || self.namespace.knows_all_now(cred, dir);
        is_known && dir.names().lock().is_known_empty()
    }

    /// The server has let `cred` remove or rename something in this directory.
    pub(in crate::vfs) fn confirm_names(&self, cred: &Arc<Credential>, dir: &Inode) {
        if self.names.is_on {
            self.rights.confirm_names(cred, Owned::of_inode(dir));
        }
    }
}

/// Waiting.
impl Files {
    /// Waits until the server knows of every change of a name that was accepted so far, or has
    /// refused it.
    pub(in crate::vfs) async fn settle_names(self: &Arc<Self>) {
        if self.names.is_on {
            let number = self.names.queue.lock().hurry();
            self.pump_names();
            self.names_until(|queue| queue.settled(number)).await;
        }
    }

    /// The same of one directory.
    pub(super) async fn settle_names_in(self: &Arc<Self>, dir: Ino) {
        self.names.queue.lock().hurry();
        self.pump_names();
        self.names_until(|queue| queue.is_settled_in(dir)).await;
    }

    async fn names_until(&self, done: impl Fn(&NameQueue<Accepted>) -> bool) {
        loop {
            let answered = self.names.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if done(&self.names.queue.lock()) {
                return;
            }
            answered.await;
        }
    }

    /// Somebody waits for this object: what it waits for is not made to wait for company.
    pub(super) fn hurry_names(self: &Arc<Self>, inode: &Inode) {
        if inode.handle.is_undecided() {
            self.names.queue.lock().hurry();
            self.pump_names();
        }
    }

    /// Somebody waits for changes that were accepted.
    pub(in crate::vfs) fn hurry_all_names(self: &Arc<Self>) {
        if self.names.is_on {
            self.names.queue.lock().hurry();
            self.pump_names();
        }
    }

    /// Changes of names that are ahead of the server.
    pub(in crate::vfs) fn names_ahead(&self) -> usize {
        self.names.queue.lock().len()
    }

    /// fsync(2) of a directory: everything accepted before is stable, or its error is told.
    pub(in crate::vfs) async fn sync_directory(self: &Arc<Self>, dir: Ino) -> VfsResult<()> {
        self.settle_all().await;
        match self.late.take(dir) {
            Some(error) => {
                self.log_told(dir);
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// With `writeback`, waits until everything that was accepted is stable or has failed.
    pub(in crate::vfs) async fn settle_all(self: &Arc<Self>) {
        if self.names.is_on {
            self.settle_everything().await;
        }
    }
}

/// Sending: what, and when.
impl Files {
    /// Sends what is to be sent now.
    pub(in crate::vfs) fn pump_names(self: &Arc<Self>) {
        loop {
            let room = self.room();
            let mut is_cut = false;
            let next = (self.names.queue.lock()).next(now(), |waiting, ripe| {
                let (fit, cut) = fits(waiting, ripe, room);
                is_cut = cut;
                fit
            });
            match next {
                Next::Send(batch) => {
                    if is_cut {
                        self.names.growth.was_cut();
                    }
                    self.send_names(batch);
                }
                Next::WakeAt(at) => return self.wake_names_at(Instant::from_std(at)),
                Next::Nothing => return,
            }
        }
    }

    fn wake_names_at(self: &Arc<Self>, at: Instant) {
        {
            let mut alarm = self.names.alarm.lock();
            if alarm.is_some_and(|set| set <= at) {
                return;
            }
            *alarm = Some(at);
        }
        let files = Arc::downgrade(self);
        self.metrics.tasks.restarted("wake_names", move || {
            let files = files.clone();
            async move {
                tokio::time::sleep_until(at).await;
                if let Some(files) = files.upgrade() {
                    files.metrics.tasks.point("wake_names");
                    files.names.alarm.lock().take_if(|set| *set == at);
                    files.pump_names();
                }
            }
        });
    }
}
