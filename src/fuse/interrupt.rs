//! Ends the wait of callers that a signal wants back.
//!
//! fuser answers FUSE_INTERRUPT with ENOSYS, upon which the kernel stops
//! sending it: a caller whose request is in the daemon then stays in its call
//! until the reply, through SIGKILL. So this watcher looks by itself. Each
//! request that waits for the server is listed with the thread id of its
//! caller; those listed for longer than [`OLD`] are checked every [`TICK`]
//! against the pending signals in `/proc/<tid>/status`, and answered with EINTR
//! if there is one that may end their wait ([`WaitMode`]).
//!
//! EINTR is given only while a signal is pending. For locks the kernel makes
//! ERESTARTSYS of it, which would reach the application if nothing were there
//! to be delivered.
//!
//! Cost: a request pays two short sections under one of [`SHARDS`] locks. The
//! thread sleeps without a timer while nothing was listed for [`QUIET_TICKS`],
//! and reads at most [`SHARDS`] × [`PER_SHARD`] files a tick, in turn, so that
//! ten thousand hung requests delay a signal by seconds but take no core. It
//! is a thread and not a task because it reads files and because it must act
//! when every worker of the runtime is stuck.
//!
//! A caller in a pid namespace that the mounter does not see has pid 0 and
//! cannot be watched.
//!
//! On a soft mount the same thread ends the wait for a server that does not answer
//! ([`Soft`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::proc::{self, Signals};
use crate::background::Pause;
use crate::telemetry::Metrics;

/// A request younger than this is left alone.
const OLD: Duration = Duration::from_millis(100);

/// The time between two looks.
const TICK: Duration = Duration::from_millis(50);

/// Looks at an empty list before the thread goes to sleep.
const QUIET_TICKS: u32 = 20;

/// Lists of waiting requests, each with its lock.
const SHARDS: usize = 8;

/// Status files read per list and tick.
const PER_SHARD: usize = 32;

/// What may end a caller's wait before the answer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitMode {
    /// Nothing: nobody waits (release), or the data would be lost (write-back
    /// of mapped pages).
    Uninterruptible,
    /// The caller's death.
    Killable,
    /// Any signal that would be delivered (waiting for a lock).
    Interruptible,
}

impl WaitMode {
    fn is_over(self, signals: Signals) -> bool {
        match self {
            WaitMode::Uninterruptible => false,
            WaitMode::Killable => signals.fatal(),
            WaitMode::Interruptible => signals.fatal() || signals.deliverable(),
        }
    }
}

/// When a soft mount gives up: a request is answered with an error once it has
/// waited for `limit` and a call to the server has gone unanswered for as long. A
/// request that takes long because it is much work, and goes on, is left alone.
pub struct Soft {
    /// How long.
    pub limit: Duration,
    /// What the caller gets: EIO or ETIMEDOUT.
    pub errno: i32,
    /// How long the call has waited that the server owes the longest.
    pub unanswered: Box<dyn Fn() -> Duration + Send + Sync>,
}

impl std::fmt::Debug for Soft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Soft")
            .field("limit", &self.limit)
            .field("errno", &self.errno)
            .finish_non_exhaustive()
    }
}

/// A request that can be answered early.
pub(super) trait Interrupt: Send + Sync {
    /// Answers with this error; false if the request has its answer already.
    fn give_up(&self, errno: i32) -> bool;

    /// If it waits for a file lock: makes it a request that has not begun, and is parked.
    fn withdraw(&self) {}
}

struct Waiter {
    request: Arc<dyn Interrupt>,
    tid: u32,
    wait_mode: WaitMode,
    since: Instant,
}

/// A waiter that is looked at.
struct Candidate {
    request: Arc<dyn Interrupt>,
    tid: u32,
    wait_mode: WaitMode,
    since: Instant,
}

#[derive(Default)]
struct Slots {
    waiters: Vec<Option<Waiter>>,
    free: Vec<usize>,
    /// Where the next look begins.
    next: usize,
}

impl Slots {
    fn insert(&mut self, waiter: Waiter) -> usize {
        if let Some(index) = self.free.pop() {
            self.waiters[index] = Some(waiter);
            index
        } else {
            self.waiters.push(Some(waiter));
            self.waiters.len() - 1
        }
    }

    fn remove(&mut self, index: usize) -> Option<Waiter> {
        let waiter = self.waiters[index].take();
        self.free.push(index);
        waiter
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.waiters.len()
    }

    /// Adds the next [`PER_SHARD`] old waiters to `found`.
    fn old(&mut self, now: Instant, found: &mut Vec<Candidate>) {
        let (len, start) = (self.waiters.len(), self.next);
        let limit = found.len() + PER_SHARD;
        for step in 0..len {
            let index = (start + step) % len;
            let Some(waiter) = &self.waiters[index] else {
                continue;
            };
            if now.saturating_duration_since(waiter.since) < OLD {
                continue;
            }
            if found.len() == limit {
                self.next = index;
                return;
            }
            found.push(Candidate {
                request: Arc::clone(&waiter.request),
                tid: waiter.tid,
                wait_mode: waiter.wait_mode,
                since: waiter.since,
            });
        }
    }
}

/// A list on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Shard(Mutex<Slots>);

#[derive(Default)]
struct Registry {
    shards: [Shard; SHARDS],
    /// The thread is looking. Set by whoever lists a request and finds it
    /// unset, unset by the thread.
    armed: AtomicBool,
    stopped: AtomicBool,
}

impl Registry {
    /// Lists a request; true if the thread has to be woken for it.
    fn insert(&self, waiter: Waiter) -> (usize, bool) {
        let shard = &self.shards[waiter.tid as usize % SHARDS];
        let index = shard.0.lock().insert(waiter);
        let wake = !self.armed.load(Ordering::SeqCst) && !self.armed.swap(true, Ordering::SeqCst);
        (index, wake)
    }

    fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.0.lock().is_empty())
    }

    /// Goes to rest if nothing is listed. A request listed after its shard was
    /// looked at finds `armed` unset, one listed before it is seen here.
    fn disarm(&self) -> bool {
        self.armed.store(false, Ordering::SeqCst);
        if self.is_empty() {
            return true;
        }
        self.armed.store(true, Ordering::SeqCst);
        false
    }

    /// One look: interrupts whom it must and says how many those were.
    fn look(
        &self,
        now: Instant,
        found: &mut Vec<Candidate>,
        soft: Option<&Soft>,
        mut signals_of: impl FnMut(u32) -> Option<Signals>,
    ) -> u64 {
        for shard in &self.shards {
            shard.0.lock().old(now, found);
        }
        let soft = soft.filter(|soft| !found.is_empty() && (soft.unanswered)() >= soft.limit);
        let mut interrupted = 0;
        for Candidate {
            request,
            tid,
            wait_mode,
            since,
        } in found.drain(..)
        {
            if signals_of(tid).is_some_and(|signals| wait_mode.is_over(signals)) {
                interrupted += u64::from(request.give_up(libc::EINTR));
            } else if let Some(soft) = soft
                && now.saturating_duration_since(since) >= soft.limit
            {
                request.give_up(soft.errno);
            }
        }
        interrupted
    }
}

/// The list of waiting requests and the thread that watches their callers.
pub(super) struct InterruptWatcher {
    registry: Arc<Registry>,
    thread: Thread,
    /// Also requests are listed that no signal ends.
    soft: bool,
}

impl InterruptWatcher {
    /// Starts the thread. It ends with [`stop`](Self::stop) or when the
    /// watcher is dropped.
    ///
    /// # Errors
    /// No thread could be made.
    pub(super) fn start(metrics: Arc<Metrics>, soft: Option<Soft>) -> io::Result<Arc<Self>> {
        let registry = Arc::new(Registry::default());
        let watched = Arc::clone(&registry);
        let is_soft = soft.is_some();
        let handle = thread::Builder::new()
            .name("fuse-interrupt".into())
            .spawn(move || watch(&watched, soft.as_ref(), &metrics))?;
        Ok(Arc::new(Self {
            registry,
            thread: handle.thread().clone(),
            soft: is_soft,
        }))
    }

    /// Lists `request` until the ticket is dropped. `None` if there is nobody
    /// to watch.
    pub(super) fn list(
        self: &Arc<Self>,
        request: Arc<dyn Interrupt>,
        tid: u32,
        wait_mode: WaitMode,
        since: Instant,
    ) -> Option<Ticket> {
        // Who waits for a lock is listed in any case: he may have to be withdrawn.
        let has_end = match wait_mode {
            WaitMode::Uninterruptible => false,
            WaitMode::Killable => tid != 0,
            WaitMode::Interruptible => true,
        };
        if !has_end && !self.soft {
            return None;
        }
        let (index, wake) = self.registry.insert(Waiter {
            request,
            tid,
            wait_mode,
            since,
        });
        if wake {
            self.thread.unpark();
        }
        Some(Ticket {
            watcher: Arc::clone(self),
            shard: tid as usize % SHARDS,
            index,
        })
    }

    /// Withdraws all that wait for file locks.
    pub(super) fn withdraw_waits(&self) {
        for shard in &self.registry.shards {
            let waits: Vec<_> = {
                let slots = shard.0.lock();
                let waiters = slots.waiters.iter().flatten();
                waiters
                    .filter(|waiter| waiter.wait_mode == WaitMode::Interruptible)
                    .map(|waiter| Arc::clone(&waiter.request))
                    .collect()
            };
            // Without the lock: what is parked is listed.
            waits.iter().for_each(|request| request.withdraw());
        }
    }

    /// Ends the thread; nobody is interrupted any more.
    pub(super) fn stop(&self) {
        self.registry.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Drop for InterruptWatcher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The place of a request in the list; dropping it takes the request out.
pub(super) struct Ticket {
    watcher: Arc<InterruptWatcher>,
    shard: usize,
    index: usize,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let waiter = self.watcher.registry.shards[self.shard]
            .0
            .lock()
            .remove(self.index);
        // The lock is released before the request is.
        drop(waiter);
    }
}

fn watch(registry: &Registry, soft: Option<&Soft>, metrics: &Metrics) {
    let mut found = Vec::with_capacity(SHARDS * PER_SHARD);
    let mut status = Vec::new();
    let mut quiet = 0;
    let (mut pause, mut died) = (Pause::default(), Instant::now());
    while !registry.stopped.load(Ordering::SeqCst) {
        if !registry.armed.load(Ordering::SeqCst) {
            thread::park();
            continue;
        }
        thread::park_timeout(TICK);
        let looked = metrics.tasks.round("interrupt", || {
            metrics.tasks.point("interrupt");
            registry.look(Instant::now(), &mut found, soft, |tid| {
                proc::read_status(tid, &mut status).ok()?;
                Signals::parse(&status)
            })
        });
        for _ in 0..*looked.as_ref().unwrap_or(&0) {
            metrics.interrupts.inc();
        }
        if looked.is_err() {
            // Who was found and not told is found again.
            found.clear();
            let pause = pause.after(died.elapsed());
            tracing::warn!("signals are looked for again in {pause:?}");
            thread::sleep(pause);
            died = Instant::now();
        }
        quiet = if registry.is_empty() { quiet + 1 } else { 0 };
        if quiet >= QUIET_TICKS && registry.disarm() {
            quiet = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicI32;

    use super::*;

    #[derive(Default)]
    struct Request(AtomicBool, AtomicI32);

    impl Interrupt for Request {
        fn give_up(&self, errno: i32) -> bool {
            self.1.store(errno, Ordering::SeqCst);
            !self.0.swap(true, Ordering::SeqCst)
        }
    }

    fn pending(mask: u64) -> Signals {
        Signals {
            pending: mask,
            ..Signals::default()
        }
    }

    const KILL: u64 = 0x100;
    const TERM: u64 = 0x4000;

    fn waiter(request: &Arc<Request>, tid: u32, wait_mode: WaitMode, since: Instant) -> Waiter {
        Waiter {
            request: Arc::clone(request) as Arc<dyn Interrupt>,
            tid,
            wait_mode,
            since,
        }
    }

    #[test]
    fn a_lock_yields_to_any_signal_and_the_rest_only_to_death() {
        assert!(WaitMode::Interruptible.is_over(pending(TERM)));
        assert!(WaitMode::Interruptible.is_over(pending(KILL)));
        assert!(!WaitMode::Interruptible.is_over(pending(0)));
        assert!(!WaitMode::Killable.is_over(pending(TERM)));
        assert!(WaitMode::Killable.is_over(pending(KILL | TERM)));
        assert!(!WaitMode::Uninterruptible.is_over(pending(KILL)));
    }

    #[test]
    fn only_old_requests_are_looked_at_and_only_once_answered() {
        let registry = Registry::default();
        let (old, young) = (Arc::<Request>::default(), Arc::<Request>::default());
        let now = Instant::now() + Duration::from_secs(10);
        registry.insert(waiter(&old, 1, WaitMode::Killable, now - OLD));
        registry.insert(waiter(&young, 2, WaitMode::Killable, now - OLD / 2));
        let mut asked = Vec::new();
        let mut found = Vec::new();
        let count = registry.look(now, &mut found, None, |tid| {
            asked.push(tid);
            Some(pending(KILL))
        });
        assert_eq!((count, asked.as_slice()), (1, &[1][..]));
        assert!(old.0.load(Ordering::SeqCst) && !young.0.load(Ordering::SeqCst));
        assert_eq!(
            registry.look(now, &mut found, None, |_| Some(pending(KILL))),
            0
        );
    }

    #[test]
    fn a_caller_that_cannot_be_seen_is_not_interrupted() {
        let registry = Registry::default();
        let request = Arc::<Request>::default();
        let now = Instant::now() + OLD;
        registry.insert(waiter(&request, 1, WaitMode::Interruptible, now - OLD));
        assert_eq!(registry.look(now, &mut Vec::new(), None, |_| None), 0);
        assert!(!request.0.load(Ordering::SeqCst));
    }

    #[test]
    fn a_soft_mount_gives_up_on_who_waits_for_a_server_that_owes_an_answer() {
        let limit = Duration::from_secs(4);
        let now = Instant::now() + Duration::from_secs(10);
        for (waited, unanswered, expected) in [(3, 9, 0), (9, 3, 0), (9, 9, libc::ETIMEDOUT)] {
            let registry = Registry::default();
            let request = Arc::<Request>::default();
            let since = now - Duration::from_secs(waited);
            // Also who no signal would end.
            registry.insert(waiter(&request, 0, WaitMode::Uninterruptible, since));
            let soft = Soft {
                limit,
                errno: libc::ETIMEDOUT,
                unanswered: Box::new(move || Duration::from_secs(unanswered)),
            };
            let signals = |_| None;
            registry.look(now, &mut Vec::new(), Some(&soft), signals);
            assert_eq!(request.1.load(Ordering::SeqCst), expected);
        }
    }

    #[test]
    fn a_look_is_bounded_and_reaches_everybody_in_turn() {
        let registry = Registry::default();
        let now = Instant::now() + OLD;
        let request = Arc::<Request>::default();
        for n in 1..=100u32 {
            let tid = n * u32::try_from(SHARDS).unwrap();
            registry.insert(waiter(&request, tid, WaitMode::Killable, now - OLD));
        }
        let mut seen = HashSet::new();
        for _ in 0..4 {
            let mut reads = 0;
            registry.look(now, &mut Vec::new(), None, |tid| {
                reads += 1;
                seen.insert(tid);
                Some(pending(0))
            });
            assert_eq!(reads, PER_SHARD);
        }
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn rest_is_left_for_a_request_and_not_entered_with_one() {
        let registry = Registry::default();
        assert!(registry.disarm());
        let request = Arc::<Request>::default();
        let listed = |tid| waiter(&request, tid, WaitMode::Killable, Instant::now());
        let (index, wake) = registry.insert(listed(1));
        assert!(wake);
        assert!(!registry.insert(listed(2)).1);
        assert!(!registry.disarm());
        registry.shards[1].0.lock().remove(index);
        registry.shards[2].0.lock().remove(0);
        assert!(registry.disarm());
    }

    #[test]
    fn a_dropped_ticket_frees_its_place() {
        let watcher = InterruptWatcher::start(Metrics::new(), None).unwrap();
        let request = Arc::<Request>::default();
        for _ in 0..1000 {
            let listed = watcher.list(
                Arc::clone(&request) as Arc<dyn Interrupt>,
                5,
                WaitMode::Killable,
                Instant::now(),
            );
            assert!(listed.is_some());
        }
        assert!(watcher.registry.is_empty());
        assert_eq!(watcher.registry.shards[5].0.lock().waiters.len(), 1);
        assert_eq!(Arc::strong_count(&request), 1);
    }

    #[test]
    fn nobody_is_listed_who_cannot_be_watched() {
        let watcher = InterruptWatcher::start(Metrics::new(), None).unwrap();
        let request = Arc::<Request>::default();
        let list = |tid, wait_mode| {
            watcher.list(
                Arc::clone(&request) as Arc<dyn Interrupt>,
                tid,
                wait_mode,
                Instant::now(),
            )
        };
        // But who waits for a lock may have to be withdrawn.
        assert!(list(0, WaitMode::Killable).is_none());
        assert!(list(0, WaitMode::Interruptible).is_some());
        assert!(list(1, WaitMode::Uninterruptible).is_none());
    }

    #[test]
    fn a_pending_signal_is_found_in_proc_and_ends_the_wait() {
        let metrics = Metrics::new();
        let watcher = InterruptWatcher::start(Arc::clone(&metrics), None).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        // A stopped process leaves SIGTERM pending.
        // SAFETY: signals to a child that is not waited for yet.
        unsafe {
            libc::kill(pid, libc::SIGSTOP);
            libc::kill(pid, libc::SIGTERM);
        }
        let (lock, read) = (Arc::<Request>::default(), Arc::<Request>::default());
        let list = |request: &Arc<Request>, wait_mode| {
            let request = Arc::clone(request) as Arc<dyn Interrupt>;
            watcher.list(request, child.id(), wait_mode, Instant::now())
        };
        let tickets = (
            list(&lock, WaitMode::Interruptible),
            list(&read, WaitMode::Killable),
        );
        let until = Instant::now() + Duration::from_secs(20);
        while !lock.0.load(Ordering::SeqCst) && Instant::now() < until {
            thread::sleep(TICK);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(tickets);
        assert!(lock.0.load(Ordering::SeqCst));
        assert!(!read.0.load(Ordering::SeqCst));
    }
}
