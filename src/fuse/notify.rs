//! Tells the kernel to forget what it cached.
//!
//! An invalidation can wait inside the kernel: for the directory's lock, which
//! the caller of a request in our hands may hold, or for a page whose READ we
//! have not answered. So nothing that a request depends on may send one. They
//! are queued, and a thread sends them.
//!
//! The queue holds each inode and each name at most once: a second
//! invalidation of what is queued adds nothing. One that arrives while its like
//! is being sent is queued again, since it may stand for a newer change.
//!
//! An invalidation has a side effect that is worse than being late: a GETATTR that
//! the kernel has under way meanwhile is ignored when its answer comes, and the read
//! that it was for ends at the old size. So none may be left over from before an
//! OPEN or a LOCK when that is answered ([`KernelCache::settle`]).
//!
//! The other order is worse still. The kernel fills what lies beyond the end of a file in
//! the last page with zeros; if it hears of a larger size while it has that page, a read is
//! answered with zeros that nobody has written. So no answer that brings attributes goes out
//! while an invalidation of that inode is queued or being sent
//! ([`Vfs::pages_go_first`](crate::vfs::Vfs::pages_go_first)): pages go before the size
//! comes. That makes the kernel ignore the answer of a GETATTR that found out itself, so
//! what has grown is told to be as large right behind its invalidation
//! ([`notify_store`](super::notify_store)): the read that had asked goes on behind the old end.
//!
//! A process that hands its mount over must not end while one of its threads is inside the
//! kernel with an invalidation: it cannot be killed there, and what it waits for is answered
//! by the next process, which starts when this one has ended. So every call is counted, and
//! the queue is frozen once it is empty and no call is made ([`freeze`](Notify::freeze)): what
//! comes after that stays in it (see [`quiesce`](super::quiesce)).
//!
//! Bounds: inodes by the number the kernel knows, which is that of the vfs's
//! table, so no inode invalidation is ever lost. Names by [`MAX_NAMES`]; one
//! beyond is dropped and counted, and its staleness ends with the entry's TTL.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use fuser::INodeNo;
use parking_lot::{Condvar, Mutex};

use super::notify_store::SizeTeller;
use crate::background::{Pause, Tasks};
use crate::vfs::types::{Ino, KernelCache};

/// Names queued at the same time.
const MAX_NAMES: usize = 16_384;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Stale {
    Inode(Ino),
    Name(Ino, Arc<[u8]>),
}

/// The other end: the kernel, or a test.
trait Kernel: Send + Sync + 'static {
    /// Attributes and all pages.
    fn inval_inode(&self, ino: Ino) -> io::Result<()>;
    /// Attributes alone, so that no page is waited for.
    fn inval_attr(&self, ino: Ino) -> io::Result<()>;
    fn inval_entry(&self, parent: Ino, name: &[u8]) -> io::Result<()>;
    /// A file has so many bytes at least.
    fn has_grown(&self, ino: Ino, size: u64) -> io::Result<()>;
}

/// The kernel behind a mount.
struct Linux {
    notifier: fuser::Notifier,
    sizes: SizeTeller,
}

impl Kernel for Linux {
    fn inval_inode(&self, ino: Ino) -> io::Result<()> {
        // Offset 0 and length 0.
        self.notifier.inval_inode(INodeNo(ino), 0, 0)
    }

    fn inval_attr(&self, ino: Ino) -> io::Result<()> {
        // A negative offset.
        self.notifier.inval_inode(INodeNo(ino), -1, 0)
    }

    fn inval_entry(&self, parent: Ino, name: &[u8]) -> io::Result<()> {
        self.notifier
            .inval_entry(INodeNo(parent), OsStr::from_bytes(name))
    }

    fn has_grown(&self, ino: Ino, size: u64) -> io::Result<()> {
        self.sizes.has_grown(ino, size)
    }
}

/// Pages and attributes of an inode first, and then its size, if that is known to have grown.
fn tell(kernel: &dyn Kernel, ino: Ino, size: Option<u64>) -> io::Result<()> {
    kernel.inval_inode(ino)?;
    match size.map(|size| kernel.has_grown(ino, size)) {
        Some(Err(error)) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

#[derive(Default)]
struct State {
    /// There is a kernel to tell. Before and after, nothing is cached.
    open: bool,
    order: VecDeque<Stale>,
    queued: HashSet<Stale>,
    /// How large those of the queued inodes are that have grown, as was seen last.
    sizes: HashMap<Ino, u64>,
    /// The inodes whose invalidation is being sent, by how many threads.
    sending: HashMap<Ino, usize>,
    names: usize,
    dropped: u64,
    /// The mount is being handed over: nothing is sent.
    frozen: bool,
    calls: Calls,
}

/// What threads do in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Calls {
    /// So many are in it.
    pub(super) inside: usize,
    /// So many have come out of it.
    pub(super) done: u64,
}

impl State {
    fn begin(&mut self, ino: Ino) {
        *self.sending.entry(ino).or_default() += 1;
    }

    fn is_idle(&self) -> bool {
        self.order.is_empty() && self.sending.is_empty() && self.calls.inside == 0
    }
}

/// A thread is about to be in the kernel, or is, until this is dropped.
struct Calling<'a>(&'a Notify);

impl<'a> Calling<'a> {
    fn begin(queue: &'a Notify, state: &mut State) -> Self {
        state.calls.inside += 1;
        Self(queue)
    }
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        let calls = &mut self.0.state.lock().calls;
        calls.inside -= 1;
        calls.done += 1;
    }
}

/// Says that one was sent when it is dropped, however that went.
struct SentGuard<'a> {
    queue: &'a Notify,
    ino: Ino,
}

impl Drop for SentGuard<'_> {
    fn drop(&mut self) {
        self.queue.was_sent(self.ino);
    }
}

/// The queue. It is made before the mount, so that the vfs can be given it,
/// and does nothing until the session connects it.
#[derive(Default)]
pub struct Notify {
    state: Mutex<State>,
    wake: Condvar,
    /// One of an inode was sent.
    sent: Condvar,
    /// Inodes in `state` that are queued or being sent: most often none, which whoever
    /// answers from a cache sees without the lock.
    telling: AtomicUsize,
    /// For what the kernel must know at once.
    direct: Mutex<Option<Arc<dyn Kernel>>>,
    /// See [`KernelCache::direct_writes_leave_pages`].
    leaves_pages: AtomicBool,
}

impl Notify {
    /// A queue that is not connected yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Names whose invalidation was dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    /// What the kernel does with pages at a direct write. To be said before it serves.
    pub(super) fn direct_writes_drop_pages(&self, drops: bool) {
        self.leaves_pages.store(!drops, Ordering::Relaxed);
    }

    /// Begins to send, by way of `notifier` and of `device`, a descriptor of the same mount.
    ///
    /// # Errors
    /// No thread could be made, or there is no memory.
    pub(super) fn connect(
        self: &Arc<Self>,
        notifier: fuser::Notifier,
        device: OwnedFd,
        tasks: Arc<Tasks>,
    ) -> io::Result<()> {
        let sizes = SizeTeller::new(device)?;
        self.connect_to(Arc::new(Linux { notifier, sizes }), tasks)
    }

    fn connect_to(self: &Arc<Self>, kernel: Arc<dyn Kernel>, tasks: Arc<Tasks>) -> io::Result<()> {
        *self.direct.lock() = Some(Arc::clone(&kernel));
        self.state.lock().open = true;
        let queue = Arc::clone(self);
        let thread = thread::Builder::new().name("fuse-notify".into());
        match thread.spawn(move || queue.send_all(&*kernel, &tasks)) {
            Ok(_detached) => Ok(()),
            Err(e) => {
                self.close();
                Err(e)
            }
        }
    }

    /// Ends the thread, after the one notification it may be in. Not joined:
    /// the kernel may hold it until the mount is gone.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        *state = State {
            dropped: state.dropped,
            calls: state.calls,
            ..State::default()
        };
        self.count(&state);
        drop(state);
        *self.direct.lock() = None;
        self.wake.notify_all();
        self.sent.notify_all();
    }

    /// The kernel, for a call that is made now; `None` without one, and while it is frozen.
    fn direct(&self) -> Option<(Arc<dyn Kernel>, Calling<'_>)> {
        let kernel = self.direct.lock().clone()?;
        let mut state = self.state.lock();
        let calling = (!state.frozen).then(|| Calling::begin(self, &mut state));
        drop(state);
        Some((kernel, calling?))
    }

    /// What threads do in the kernel just now.
    pub(super) fn calls(&self) -> Calls {
        self.state.lock().calls
    }

    /// Nothing is queued, and no thread is in the kernel.
    pub(super) fn is_idle(&self) -> bool {
        self.state.lock().is_idle()
    }

    /// From here on no thread enters the kernel; false if there is something to tell it, or
    /// one is in it.
    pub(super) fn freeze(&self) -> bool {
        let mut state = self.state.lock();
        let idle = state.is_idle();
        state.frozen |= idle;
        idle
    }

    /// Goes on.
    pub(super) fn thaw(&self) {
        self.state.lock().frozen = false;
        self.wake.notify_all();
    }

    /// With the size of what has grown.
    fn push(&self, stale: Stale, size: Option<u64>) {
        let mut state = self.state.lock();
        if !state.open {
            return;
        }
        if let (Stale::Inode(ino), Some(size)) = (&stale, size) {
            state.sizes.insert(*ino, size);
        }
        if state.queued.contains(&stale) {
            return;
        }
        if matches!(stale, Stale::Name(..)) {
            if state.names == MAX_NAMES {
                state.dropped += 1;
                if state.dropped.is_power_of_two() {
                    tracing::warn!(
                        dropped = state.dropped,
                        "the kernel is slow to take invalidations; names stay until their TTL"
                    );
                }
                return;
            }
            state.names += 1;
        }
        state.queued.insert(stale.clone());
        state.order.push_back(stale);
        self.count(&state);
        drop(state);
        self.wake.notify_one();
    }

    /// The next one, which is out of the queue then; `None` when closed.
    fn pop(&self) -> Option<(Stale, Option<u64>, Calling<'_>)> {
        let mut state = self.state.lock();
        loop {
            if !state.open {
                return None;
            }
            let next = (!state.frozen).then(|| state.order.pop_front()).flatten();
            if let Some(stale) = next {
                state.queued.remove(&stale);
                let size = match stale {
                    Stale::Name(..) => {
                        state.names -= 1;
                        None
                    }
                    Stale::Inode(ino) => {
                        state.begin(ino);
                        state.sizes.remove(&ino)
                    }
                };
                self.count(&state);
                return Some((stale, size, Calling::begin(self, &mut state)));
            }
            self.wake.wait(&mut state);
        }
    }

    /// After every change of `state`, before it is let go.
    fn count(&self, state: &State) {
        let inodes = state.queued.len() - state.names + state.sending.len();
        self.telling.store(inodes, Ordering::Release);
    }

    /// One that had begun.
    fn was_sent(&self, ino: Ino) {
        let mut state = self.state.lock();
        if let Some(threads) = state.sending.get_mut(&ino) {
            *threads -= 1;
            if *threads == 0 {
                state.sending.remove(&ino);
            }
        }
        self.count(&state);
        drop(state);
        self.sent.notify_all();
    }

    fn send_all(&self, kernel: &dyn Kernel, tasks: &Tasks) {
        let mut pause = Pause::default();
        let mut died = Instant::now();
        while let Some((stale, size, calling)) = self.pop() {
            // fuser takes ENOENT, "not cached", for success.
            let sent = tasks.round("notify", || {
                tasks.point("notify");
                match &stale {
                    Stale::Inode(ino) => (tell(kernel, *ino, size), *ino),
                    Stale::Name(parent, name) => (kernel.inval_entry(*parent, name), *parent),
                }
            });
            if sent.is_err() {
                // Behind the others, and before it is said that it is not being sent.
                self.push(stale.clone(), size);
            }
            if let Stale::Inode(ino) = stale {
                self.was_sent(ino);
            }
            drop(calling);
            match sent {
                Ok((Ok(()), _)) => {}
                Ok((Err(error), ino)) => {
                    tracing::debug!(ino, %error, "the kernel refused an invalidation");
                }
                Err(_) => {
                    let pause = pause.after(died.elapsed());
                    tracing::warn!("invalidations go on in {pause:?}");
                    thread::sleep(pause);
                    died = Instant::now();
                }
            }
        }
    }
}

impl KernelCache for Notify {
    fn inval_inode(&self, ino: Ino) {
        self.push(Stale::Inode(ino), None);
    }

    fn inval_inode_grown(&self, ino: Ino, size: u64) {
        self.push(Stale::Inode(ino), Some(size));
    }

    fn inval_inode_now(&self, ino: Ino) {
        // As above; an inode that the kernel does not hold has no pages.
        match self.direct() {
            Some((kernel, _calling)) => drop(kernel.inval_inode(ino)),
            None => self.push(Stale::Inode(ino), None),
        }
    }

    fn is_telling(&self, ino: Ino) -> bool {
        if self.telling.load(Ordering::Acquire) == 0 {
            return false;
        }
        let state = self.state.lock();
        state.sending.contains_key(&ino) || state.queued.contains(&Stale::Inode(ino))
    }

    /// One on whose sending the thread dies is queued again by it, and so taken out once more.
    fn settle(&self, ino: Ino) {
        let stale = Stale::Inode(ino);
        let mut state = self.state.lock();
        loop {
            if !state.frozen && state.queued.remove(&stale) {
                state.order.retain(|other| *other != stale);
                // It is being told from here on, without a moment between.
                state.begin(ino);
                let size = state.sizes.remove(&ino);
                self.count(&state);
                drop(state);
                let sent = SentGuard { queue: self, ino };
                if let Some((kernel, _calling)) = self.direct() {
                    let _ = tell(&*kernel, ino, size);
                }
                drop(sent);
                state = self.state.lock();
            } else if state.sending.contains_key(&ino) {
                self.sent.wait(&mut state);
            } else {
                return;
            }
        }
    }

    fn inval_attr(&self, ino: Ino) {
        // An inode that the kernel does not hold is an error, and none to us.
        match self.direct() {
            Some((kernel, _calling)) => drop(kernel.inval_attr(ino)),
            None => self.push(Stale::Inode(ino), None),
        }
    }

    fn inval_entry(&self, parent: Ino, name: &[u8]) {
        self.push(Stale::Name(parent, name.into()), None);
    }

    fn backlog(&self) -> usize {
        self.state.lock().names
    }

    fn direct_writes_leave_pages(&self) -> bool {
        self.leaves_pages.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
