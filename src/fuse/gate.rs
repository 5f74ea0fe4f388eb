//! The gate in front of every request, which closes when the mount is handed to another
//! process.
//!
//! While it is open a request passes by one counter of its reader thread. Once it is closed,
//! requests are *parked*: they keep their reply object and copies of what lay in the reader
//! thread's buffer, and nothing of them has happened. Parked requests are worked off in their
//! order when the gate opens again; or this process ends without having answered them, and the
//! kernel sends them to its successor.
//!
//! Under way is what a reader thread is answering from a cache just now ([`Pass`]), and what
//! has become a task ([`UnderWay`]). The counter of a reader thread is added to before `closed`
//! is looked at, and who closes looks at the counters after he has set it, all in one order
//! (SeqCst): either the thread sees the gate closed or the closer sees the thread.
//!
//! Bounds: the kernel has one request per thread that waits, plus `max_background`; each holds
//! at most `max_write` bytes. A FORGET has no answer and nobody waits for it, so the kernel
//! would not send it again: it is never parked.
//!
//! Dropping one of fuser's reply objects answers EIO, so what is left to a successor is
//! leaked on purpose ([`Gate::leave`]).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use parking_lot::Mutex;

use super::convert;
use super::dispatch::FuseReply;
use super::interrupt::{Interrupt, InterruptWatcher, Ticket, WaitMode};
use crate::vfs::types::Errno;

/// Counters of reader threads: as many as `SessionOptions` ever makes, and some. Threads that
/// share one are slower and no less right.
const COUNTERS: usize = 8;

/// A counter on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counter(AtomicUsize);

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Which counter this thread uses.
    static OWN: usize = NEXT.fetch_add(1, SeqCst) % COUNTERS;
}

/// The gate.
#[derive(Default)]
pub(super) struct Gate {
    closed: AtomicBool,
    /// Requests that are being answered on reader threads.
    passing: [Counter; COUNTERS],
    /// Tasks, and parked requests that are being worked off.
    tasks: Arc<AtomicUsize>,
    parked: Mutex<Vec<Parked>>,
    /// This process answers nothing any more.
    left: AtomicBool,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate")
            .field("closed", &self.closed)
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}

/// A request is on a reader thread.
pub(super) struct Pass<'a>(&'a AtomicUsize);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A request has become a task.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A request that nothing was done of.
trait Held: Interrupt {
    fn work_off(&self);
    /// Leaves it unanswered for good.
    fn leave(&self);
}

type Work<R> = Box<dyn FnOnce(R) + Send>;

/// What is kept of a request, until somebody takes it.
struct Kept<R>(Mutex<Option<(R, Work<R>)>>);

impl<R: FuseReply> Interrupt for Kept<R> {
    /// Who is killed meanwhile, or interrupted where that ends his call, need not wait for
    /// the other process: nothing has begun.
    fn give_up(&self, errno: i32) -> bool {
        let kept = self.0.lock().take();
        let any = kept.is_some();
        if let Some((reply, _)) = kept {
            reply.refuse(convert::errno(Errno(errno)));
        }
        any
    }
}

impl<R: FuseReply> Held for Kept<R> {
    fn work_off(&self) {
        let kept = self.0.lock().take();
        if let Some((reply, work)) = kept {
            work(reply);
        }
    }

    fn leave(&self) {
        // With the reply object, which would answer EIO.
        mem::forget(self.0.lock().take());
    }
}

/// Dropping it takes it off the list of those whose callers are watched.
struct Parked {
    request: Arc<dyn Held>,
    wait_mode: WaitMode,
    _ticket: Option<Ticket>,
}

impl Gate {
    /// Lets a request through, which is under way until the pass is dropped; `None` if it is
    /// to be parked.
    #[inline]
    pub(super) fn enter(&self) -> Option<Pass<'_>> {
        let counter = &self.passing[OWN.with(|own| *own)].0;
        counter.fetch_add(1, SeqCst);
        let pass = Pass(counter);
        (!self.closed.load(SeqCst)).then_some(pass)
    }

    /// A task begins.
    pub(super) fn begin(&self) -> UnderWay {
        self.tasks.fetch_add(1, SeqCst);
        UnderWay(Arc::clone(&self.tasks))
    }

    /// Keeps a request of thread `tid` until the gate opens, and then gives its reply to
    /// `work`: at once, if it has opened since [`enter`](Self::enter).
    pub(super) fn park<R: FuseReply>(
        &self,
        watcher: &Arc<InterruptWatcher>,
        (tid, wait_mode): (u32, WaitMode),
        reply: R,
        work: impl FnOnce(R) + Send + 'static,
    ) {
        let request = Arc::new(Kept(Mutex::new(Some((reply, Box::new(work) as Work<R>)))));
        // Under the lock, as in all that opens and closes.
        let mut parked = self.parked.lock();
        if self.left.load(SeqCst) {
            return request.leave();
        }
        if !self.closed.load(SeqCst) {
            let _begun = self.begin();
            drop(parked);
            return request.work_off();
        }
        let watched = Arc::clone(&request) as Arc<dyn Interrupt>;
        parked.push(Parked {
            request,
            wait_mode,
            _ticket: watcher.list(watched, tid, wait_mode, Instant::now()),
        });
    }

    /// Closes it; false if it was closed.
    pub(super) fn close(&self) -> bool {
        let _parked = self.parked.lock();
        !self.closed.swap(true, SeqCst)
    }

    /// Works off what is parked, in its order and before anything newer, and opens.
    pub(super) fn open(&self) {
        loop {
            let mut parked = self.parked.lock();
            if parked.is_empty() || self.left.load(SeqCst) {
                self.closed.store(self.left.load(SeqCst), SeqCst);
                return;
            }
            let (batch, _begun) = (mem::take(&mut *parked), self.begin());
            drop(parked);
            batch.iter().for_each(|parked| parked.request.work_off());
        }
    }

    /// Works off what is parked but does not wait for a file lock, and stays closed for what
    /// comes. Returns how many those were.
    pub(super) fn let_through(&self) -> usize {
        let (batch, _begun) = {
            let mut parked = self.parked.lock();
            let waits = |parked: &Parked| parked.wait_mode == WaitMode::Interruptible;
            let (stay, go) = mem::take(&mut *parked).into_iter().partition(waits);
            *parked = stay;
            let go: Vec<Parked> = go;
            (go, self.begin())
        };
        batch.iter().for_each(|parked| parked.request.work_off());
        batch.len()
    }

    /// Stays closed for good and leaves what is parked, now and later, unanswered. Returns
    /// how many those are.
    pub(super) fn leave(&self) -> usize {
        let mut parked = self.parked.lock();
        self.closed.store(true, SeqCst);
        self.left.store(true, SeqCst);
        let batch = mem::take(&mut *parked);
        drop(parked);
        batch.iter().for_each(|parked| parked.request.leave());
        batch.len()
    }

    /// No reader thread is with a request that has passed. Of a closed gate this stays so.
    pub(super) fn none_passes(&self) -> bool {
        // A thread that finds the gate closed is counted for a moment as well, which may look
        // like more than there is, and never like less.
        self.passing
            .iter()
            .all(|counter| counter.0.load(SeqCst) == 0)
    }

    /// Tasks that have not ended.
    pub(super) fn under_way(&self) -> usize {
        self.tasks.load(SeqCst)
    }

    /// Requests that are parked.
    pub(super) fn parked(&self) -> usize {
        self.parked.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Metrics;

    const SOON: Duration = Duration::from_secs(20);
    /// What those are answered that were worked off.
    const DONE: i32 = libc::EALREADY;
    const CALLER: (u32, WaitMode) = (0, WaitMode::Killable);

    /// A reply object; fuser's answer EIO when they are dropped.
    struct Reply(u32, mpsc::Sender<(u32, i32)>);

    impl FuseReply for Reply {
        fn refuse(self, errno: fuser::Errno) {
            self.1.send((self.0, errno.code())).unwrap();
            mem::forget(self);
        }
    }

    impl Drop for Reply {
        fn drop(&mut self) {
            self.1.send((self.0, libc::EIO)).unwrap();
        }
    }

    struct Bench {
        gate: Arc<Gate>,
        watcher: Arc<InterruptWatcher>,
        answers: mpsc::Sender<(u32, i32)>,
        answered: mpsc::Receiver<(u32, i32)>,
    }

    fn bench() -> Bench {
        let (answers, answered) = mpsc::channel();
        Bench {
            gate: Arc::default(),
            watcher: InterruptWatcher::start(Metrics::new(), None).unwrap(),
            answers,
            answered,
        }
    }

    impl Bench {
        fn park(&self, number: u32, caller: (u32, WaitMode)) {
            let reply = Reply(number, self.answers.clone());
            let work = |reply: Reply| reply.refuse(fuser::Errno::from_i32(DONE));
            self.gate.park(&self.watcher, caller, reply, work);
        }

        fn answers(&self) -> Vec<(u32, i32)> {
            self.answered.try_iter().collect()
        }
    }

    #[test]
    fn a_closed_gate_parks_and_works_off_in_order_when_it_opens() {
        let bench = bench();
        assert!(bench.gate.enter().is_some());
        assert!(bench.gate.close());
        assert!(!bench.gate.close(), "closed twice");
        assert!(bench.gate.enter().is_none());
        (0..100).for_each(|number| bench.park(number, CALLER));
        assert_eq!((bench.gate.parked(), bench.answers()), (100, vec![]));
        bench.gate.open();
        let expected: Vec<_> = (0..100).map(|number| (number, DONE)).collect();
        assert_eq!(bench.answers(), expected);
        assert_eq!((bench.gate.parked(), bench.gate.under_way()), (0, 0));
        assert!(bench.gate.enter().is_some());
        assert!(bench.gate.none_passes(), "a pass was not given back");
    }

    #[test]
    fn what_is_parked_when_the_gate_has_just_opened_is_worked_on_at_once() {
        let bench = bench();
        bench.park(1, CALLER);
        assert_eq!(bench.answers(), [(1, DONE)]);
        assert_eq!(bench.gate.under_way(), 0);
    }

    #[test]
    fn what_is_left_behind_is_never_answered() {
        let bench = bench();
        bench.gate.close();
        bench.park(1, CALLER);
        assert_eq!(bench.gate.leave(), 1);
        // Also what a reader thread brings afterwards.
        bench.park(2, CALLER);
        bench.gate.open();
        assert!(bench.gate.enter().is_none());
        drop(bench.gate);
        assert_eq!(bench.answered.try_recv(), Err(mpsc::TryRecvError::Empty));
    }

    #[test]
    fn a_cached_answer_in_flight_is_waited_for() {
        let bench = bench();
        let (inside, is_inside) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let gate = Arc::clone(&bench.gate);
        let reader = thread::spawn(move || {
            let pass = gate.enter().unwrap();
            inside.send(()).unwrap();
            gone.recv_timeout(SOON).unwrap();
            drop(pass);
        });
        is_inside.recv_timeout(SOON).unwrap();
        bench.gate.close();
        assert!(!bench.gate.none_passes());
        go.send(()).unwrap();
        reader.join().unwrap();
        assert!(bench.gate.none_passes());
    }

    #[test]
    fn nobody_passes_once_none_passed_behind_a_closed_gate() {
        let bench = bench();
        let stop = Arc::new(AtomicBool::new(false));
        let working = Arc::new(AtomicUsize::new(0));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (gate, stop) = (Arc::clone(&bench.gate), Arc::clone(&stop));
                let working = Arc::clone(&working);
                thread::spawn(move || {
                    while !stop.load(SeqCst) {
                        if let Some(_pass) = gate.enter() {
                            working.fetch_add(1, SeqCst);
                            working.fetch_sub(1, SeqCst);
                        }
                    }
                })
            })
            .collect();
        for _ in 0..200 {
            bench.gate.close();
            // Threads that are turned away count for moments, on counters of their own.
            for counter in &bench.gate.passing {
                while counter.0.load(SeqCst) != 0 {
                    std::hint::spin_loop();
                }
            }
            for _ in 0..100 {
                assert_eq!(working.load(SeqCst), 0, "someone has passed a closed gate");
            }
            bench.gate.open();
        }
        stop.store(true, SeqCst);
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
    }

    #[test]
    fn who_waits_for_a_lock_stays_when_the_others_are_let_through() {
        let bench = bench();
        bench.gate.close();
        bench.park(1, CALLER);
        bench.park(2, (0, WaitMode::Interruptible));
        bench.park(3, (0, WaitMode::Uninterruptible));
        assert_eq!(bench.gate.let_through(), 2);
        assert_eq!(bench.answers(), [(1, DONE), (3, DONE)]);
        assert!(bench.gate.enter().is_none(), "it has opened");
        bench.gate.open();
        assert_eq!(bench.answers(), [(2, DONE)]);
    }

    #[test]
    fn who_gives_up_is_answered_once_and_nothing_is_done_for_him() {
        let bench = bench();
        bench.gate.close();
        bench.park(1, CALLER);
        bench.park(2, CALLER);
        let first = Arc::clone(&bench.gate.parked.lock()[0].request);
        assert!(first.give_up(libc::EINTR));
        assert!(!first.give_up(libc::EINTR));
        bench.gate.open();
        assert_eq!(bench.answers(), [(1, libc::EINTR), (2, DONE)]);
    }
}
