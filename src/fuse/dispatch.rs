//! Runs one request: exactly one answer, never an aborted call.
//!
//! A request that no cache answers becomes a tokio task which runs to its end,
//! even when its caller is gone: the session slot of an NFS call must stay
//! taken until the reply is in. The reply object lies in a cell that can be
//! emptied once. The task and the interrupt watcher share it; whoever takes
//! the reply answers. If that was the watcher, the task's result is undone
//! (a handle released, a lookup forgotten), because the kernel knows nothing of
//! it; a lock is given back by the vfs itself ([`Waiting`]).
//!
//! A change has a [`Caller`], who has no effect any more once it was answered by the
//! watcher: what was not sent is not sent then. What was, and may still take effect, is
//! listed ([`Abandoned`]), and whatever begins later waits for its end
//! ([`waits_for_abandoned`]); locks are not given up before it.
//!
//! A panic ends one request: the task owns an [`InFlight`], and dropping that
//! without an answer answers EIO. Tokio catches the unwinding. On a reader
//! thread [`attempt`] does.
//!
//! The number of tasks is bounded by the kernel: one per thread that waits,
//! plus `max_background`.

use std::future::{Future, Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::Instrument;

use super::convert;
use super::failure_log::FailureLog;
use super::gate::{Gate, UnderWay};
use super::interrupt::{Interrupt, InterruptWatcher, Ticket, WaitMode};
use crate::rpc::caller::{self, Abandoned, Caller, KernelRequest};
use crate::telemetry::{FuseOp, Metrics};
use crate::vfs::types::{Errno, Ino, VfsError, VfsResult, Waiting};

/// A reply object: what all of fuser's have in common.
pub(super) trait FuseReply: Send + 'static {
    /// Answers with an error.
    fn refuse(self, errno: fuser::Errno);
}

macro_rules! replies {
    ($($reply:ident)*) => {$(
        impl FuseReply for fuser::$reply {
            fn refuse(self, errno: fuser::Errno) {
                self.error(errno);
            }
        }
    )*};
}

replies! {
    ReplyAttr ReplyCreate ReplyData ReplyDirectory ReplyDirectoryPlus ReplyEmpty
    ReplyEntry ReplyIoctl ReplyLock ReplyOpen ReplyStatfs ReplyWrite
}

/// `FUSE_UNIQUE_RESEND`: the bit in the number of a request that was read by a process before
/// this one, and sent again. Its answer needs it; whoever reads the log does not.
const RESENT: u64 = 1 << 63;

/// What is known of a request before it is worked on.
#[derive(Clone, Copy, Debug)]
pub(super) struct FuseRequest {
    /// The operation, for the counters.
    pub(super) op: FuseOp,
    /// The kernel's number of the request, which ties log lines together.
    pub(super) unique: u64,
    /// A process before this one has read it.
    pub(super) resent: bool,
    /// The inode it is about.
    pub(super) ino: Ino,
    /// The caller's thread id; 0 if it cannot be seen from here.
    pub(super) tid: u32,
    /// What may end the caller's wait.
    pub(super) wait_mode: WaitMode,
    /// When it came in.
    pub(super) started: Instant,
}

impl FuseRequest {
    /// A request whose caller waits until it is killed.
    pub(super) fn new(op: FuseOp, request: &fuser::Request, ino: Ino) -> Self {
        Self {
            op,
            unique: request.unique().0 & !RESENT,
            resent: request.unique().0 & RESENT != 0,
            ino,
            tid: request.pid(),
            wait_mode: WaitMode::Killable,
            started: Instant::now(),
        }
    }

    /// Counts the request, which is over, and logs it if that took too long.
    fn account(&self, metrics: &Metrics, ok: bool) {
        let elapsed = self.started.elapsed();
        metrics.fuse_op(self.op, ok, elapsed);
        if let Some(left_out) = metrics.slow.line(elapsed) {
            tracing::warn!(
                id = self.unique,
                ino = self.ino,
                tid = self.tid,
                ok,
                left_out,
                "slow: {} took {elapsed:.1?}",
                self.op.name(),
            );
        }
    }

    /// The same with another wait mode.
    pub(super) fn wait_mode(self, wait_mode: WaitMode) -> Self {
        Self { wait_mode, ..self }
    }
}

/// Whether an operation changes what others see or may have, and has no effect any more
/// once its caller is gone. Giving up a lock is none: the vfs does that whoever waits.
fn changes(op: FuseOp) -> bool {
    matches!(
        op,
        FuseOp::SetAttr
            | FuseOp::MkNod
            | FuseOp::MkDir
            | FuseOp::Unlink
            | FuseOp::RmDir
            | FuseOp::Symlink
            | FuseOp::Rename
            | FuseOp::Link
            | FuseOp::Open
            | FuseOp::Create
            | FuseOp::Write
            | FuseOp::SetLk
    )
}

/// Whether an operation begins only after what abandoned ones may still do.
///
/// The others must go on whatever happens: a process that was killed closes its files
/// (FLUSH, RELEASE), and the kernel holds pages locked while it reads and writes them
/// back, which an abandoned operation may have to wait for.
fn waits_for_abandoned(call: &FuseRequest) -> bool {
    call.wait_mode != WaitMode::Uninterruptible
        && !matches!(
            call.op,
            FuseOp::Read | FuseOp::Flush | FuseOp::Fsync | FuseOp::FsyncDir
        )
}

/// The reply of a request in flight, until somebody takes it.
pub(super) struct Pending<R> {
    reply: Mutex<Option<R>>,
    /// For a request whose work decides when it is too late to give up.
    waiting: Option<Arc<Waiting>>,
    /// Parks the request if it has to be withdrawn.
    again: Mutex<Option<Again<R>>>,
    /// Of a change. It is told under the lock of `reply`, before anybody is answered.
    caller: Option<Arc<Caller>>,
    log: Option<Arc<dyn RequestLog>>,
}

/// What makes a request, whose reply this gets, one that has not begun.
pub(super) type Again<R> = Box<dyn FnOnce(R) + Send>;

impl<R> Pending<R> {
    fn take(&self) -> Option<R> {
        self.reply.lock().take()
    }

    /// Works on the reply in its place; `None` if the request has its answer
    /// already.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut R) -> T) -> Option<T> {
        self.reply.lock().as_mut().map(work)
    }
}

impl<R: FuseReply> Pending<R> {
    /// Takes the reply from the task, unless that is about to answer: nothing more is sent on
    /// behalf of the caller then, and what was, or is decided later, is undone.
    fn withhold(&self) -> Option<R> {
        // Locked first: the task, which hears of it at once, finds no reply to answer EINTR
        // with.
        let mut reply = self.reply.lock();
        if self
            .waiting
            .as_ref()
            .is_some_and(|waiting| !waiting.give_up())
        {
            return None;
        }
        if let (Some(_), Some(caller)) = (&*reply, &self.caller) {
            caller.give_up();
            // Whoever goes on in our place must not do for him what was not done yet.
            if let Some(log) = &self.log {
                log.given_up(caller.request().unique);
            }
        }
        reply.take()
    }
}

impl<R: FuseReply> Interrupt for Pending<R> {
    fn give_up(&self, errno: i32) -> bool {
        let taken = self.withhold();
        let any = taken.is_some();
        if let Some(reply) = taken {
            reply.refuse(convert::errno(Errno(errno)));
        }
        any
    }

    fn withdraw(&self) {
        let Some(again) = self.again.lock().take() else {
            return;
        };
        if let Some(reply) = self.withhold() {
            again(reply);
        }
    }
}

/// What a request leaves behind whichever way it ends.
struct InFlight<R: FuseReply> {
    pending: Arc<Pending<R>>,
    _ticket: Option<Ticket>,
    metrics: Arc<Metrics>,
    call: FuseRequest,
    ok: bool,
    _under_way: UnderWay,
}

impl<R: FuseReply> InFlight<R> {
    fn succeed(&mut self) {
        self.ok = true;
    }
}

impl<R: FuseReply> Drop for InFlight<R> {
    fn drop(&mut self) {
        if let Some(reply) = self.pending.take() {
            tracing::error!(op = ?self.call.op, ino = self.call.ino, "request ended without an answer");
            reply.refuse(fuser::Errno::EIO);
        }
        if let (Some(_), Some(log)) = (&self.pending.caller, &self.pending.log) {
            log.answered(self.call.unique);
        }
        self.metrics.gauges.fuse_in_flight.dec();
        self.call.account(&self.metrics, self.ok);
    }
}

/// Undoes nothing: for results that the kernel need not know of.
pub(super) fn keep<T>(_result: T) -> Ready<()> {
    ready(())
}

/// Asks a cache on the reader thread. A panic is a miss: fuser would lose the
/// thread by it.
pub(super) fn attempt<T>(ask: impl FnOnce() -> Option<T>) -> Option<T> {
    // What the closure may leave half-done are caches of the vfs, whose locks
    // do not poison either.
    catch_unwind(AssertUnwindSafe(ask)).ok().flatten()
}

/// Who keeps record of requests, for whoever goes on should this process be killed.
pub(super) trait RequestLog: Send + Sync {
    /// A change was answered: the kernel does not ask for it again.
    fn answered(&self, unique: u64);
    /// Its caller is about to be answered although it has not ended.
    fn given_up(&self, unique: u64);
}

/// Starts the tasks.
pub(super) struct Dispatcher {
    runtime: Handle,
    watcher: Arc<InterruptWatcher>,
    gate: Arc<Gate>,
    abandoned: Arc<Abandoned>,
    failures: Arc<FailureLog>,
    metrics: Arc<Metrics>,
    log: Option<Arc<dyn RequestLog>>,
}

impl Dispatcher {
    /// Tasks go to `runtime` and count as under way behind `gate`; changes whose callers are
    /// gone are listed in `abandoned`. With a `log` it is told of them.
    pub(super) fn new(
        runtime: Handle,
        watcher: Arc<InterruptWatcher>,
        gate: Arc<Gate>,
        abandoned: Arc<Abandoned>,
        metrics: Arc<Metrics>,
        log: Option<Arc<dyn RequestLog>>,
    ) -> Self {
        Self {
            log,
            runtime,
            watcher,
            gate,
            abandoned,
            failures: Arc::default(),
            metrics,
        }
    }

    /// Logs why a request has failed that is answered on the reader thread.
    pub(super) fn log_failure(&self, call: &FuseRequest, error: &VfsError) {
        self.failures.log(call, error);
    }

    /// Counts a request that was answered on the reader thread.
    pub(super) fn answered(&self, call: &FuseRequest, ok: bool) {
        call.account(&self.metrics, ok);
    }

    /// Runs `work` in a task and gives its result to `answer`, or, if the
    /// caller has been answered meanwhile, to `undo`.
    pub(super) fn run<R, T, W, U>(
        &self,
        call: FuseRequest,
        reply: R,
        work: W,
        answer: impl FnOnce(R, T) + Send + 'static,
        undo: impl FnOnce(T) -> U + Send + 'static,
    ) where
        R: FuseReply,
        T: Send + 'static,
        W: Future<Output = VfsResult<T>> + Send + 'static,
        U: Future<Output = ()> + Send + 'static,
    {
        self.start(call, reply, (None, None), |_| work, answer, undo);
    }

    /// The same for work that ends early when its caller gives up, and that
    /// itself decides (`waiting`) when it is too late for that. The request can be withdrawn
    /// by `again` until then.
    pub(super) fn run_waiting<R, T, W>(
        &self,
        call: FuseRequest,
        reply: R,
        (waiting, again): (Arc<Waiting>, Option<Again<R>>),
        work: W,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        R: FuseReply,
        T: Send + 'static,
        W: Future<Output = VfsResult<T>> + Send + 'static,
    {
        let waiting = (Some(waiting), again);
        self.start(call, reply, waiting, |_| work, answer, keep);
    }

    /// The same as `run` for work that fills its reply as it goes.
    pub(super) fn run_with<R, T, W, U>(
        &self,
        call: FuseRequest,
        reply: R,
        work: impl FnOnce(&Arc<Pending<R>>) -> W,
        answer: impl FnOnce(R, T) + Send + 'static,
        undo: impl FnOnce(T) -> U + Send + 'static,
    ) where
        R: FuseReply,
        T: Send + 'static,
        W: Future<Output = VfsResult<T>> + Send + 'static,
        U: Future<Output = ()> + Send + 'static,
    {
        self.start(call, reply, (None, None), work, answer, undo);
    }

    fn start<R, T, W, U>(
        &self,
        call: FuseRequest,
        reply: R,
        (waiting, again): (Option<Arc<Waiting>>, Option<Again<R>>),
        work: impl FnOnce(&Arc<Pending<R>>) -> W,
        answer: impl FnOnce(R, T) + Send + 'static,
        undo: impl FnOnce(T) -> U + Send + 'static,
    ) where
        R: FuseReply,
        T: Send + 'static,
        W: Future<Output = VfsResult<T>> + Send + 'static,
        U: Future<Output = ()> + Send + 'static,
    {
        let pending = Arc::new(Pending {
            reply: Mutex::new(Some(reply)),
            waiting,
            again: Mutex::new(again),
            caller: changes(call.op).then(|| {
                let request = KernelRequest {
                    unique: call.unique,
                    resent: call.resent,
                };
                Caller::of(Some(Arc::clone(&self.abandoned)), call.tid, request)
            }),
            log: self.log.clone(),
        });
        let caller = pending.caller.clone();
        let before = waits_for_abandoned(&call).then(|| Arc::clone(&self.abandoned));
        let failures = Arc::clone(&self.failures);
        let work = work(&pending);
        self.metrics.gauges.fuse_in_flight.inc();
        // Before the spawn: a runtime that shuts down drops the task at once.
        let flight = InFlight {
            _ticket: self.watcher.list(
                Arc::clone(&pending) as Arc<dyn Interrupt>,
                call.tid,
                call.wait_mode,
                call.started,
            ),
            pending,
            metrics: Arc::clone(&self.metrics),
            call,
            ok: false,
            _under_way: self.gate.begin(),
        };
        // Costs one load unless debug is enabled for this module.
        let span = tracing::debug_span!("fuse", id = call.unique, op = ?call.op, ino = call.ino);
        let task = async move {
            let mut flight = flight;
            if let Some(abandoned) = before {
                abandoned.ended().await;
            }
            let result = caller::on_behalf_of(caller, work).await;
            match (flight.pending.take(), result) {
                (Some(reply), Ok(result)) => {
                    flight.succeed();
                    answer(reply, result);
                }
                (reply, Err(error)) => {
                    failures.log(&flight.call, &error);
                    if let Some(reply) = reply {
                        reply.refuse(convert::errno(error.errno()));
                    }
                }
                (None, Ok(result)) => {
                    tracing::debug!("the caller is gone, undone");
                    undo(result).await;
                }
            }
        };
        drop(self.runtime.spawn(task.instrument(span)));
    }
}

#[cfg(test)]
mod tests;
