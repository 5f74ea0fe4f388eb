//! The caller of an operation: whether it still waits for the answer, and what that
//! means for the requests that are made on its behalf.
//!
//! A caller that was killed, or whose soft mount gave up, has been answered before its
//! operation has ended. From then on others may rely on it that the operation has no
//! effect any more, or had it already:
//!
//! - A request that was *not yet handed to a connection* is not sent
//!   ([`Request::start`] refuses it).
//! - One that was sent and whose connection was lost is not sent again for its own
//!   sake ([`Request::start`]). What became of it is found out by
//!   `nfs::fore_channel`, which resolves its slot.
//! - One that is on a living connection takes effect, if it does, before anything that
//!   begins after the answer: until its end it is listed in [`Abandoned`], and what
//!   begins later waits for that ([`Abandoned::ended`]).
//!
//! So an operation is never aborted from outside. It ends by itself, with
//! [`RpcError::Abandoned`](super::RpcError::Abandoned), at the next request it would
//! make, and undoes by requests *apart* ([`apart`]) what it must not leave behind.
//!
//! The caller is a task-local: a task that the operation spawns, as the one that sends
//! accepted data, has none, and is not touched by the caller's end unless it is given
//! one ([`on_behalf_of`]).
//!
//! Locks: a caller's state is locked for moments, with nothing but the list of
//! [`Abandoned`] locked inside it, and nothing inside that.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

tokio::task_local! {
    static CALLER: Option<Arc<Caller>>;
}

/// The request of the kernel that an operation is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelRequest {
    /// Its number, which no other request of the mount has; 0: the operation is about none.
    pub unique: u64,
    /// A daemon before this one has read it and has not answered it: it may have had any part of
    /// its effects.
    pub resent: bool,
}

/// The caller of one operation.
#[derive(Debug)]
pub struct Caller {
    state: Mutex<CallerState>,
    answered: Notify,
    /// Where the operation is listed if it outlives the caller's wait; `None` for an
    /// operation that changes nothing.
    abandoned: Option<Arc<Abandoned>>,
    thread: u32,
    request: KernelRequest,
}

#[derive(Debug, Default)]
struct CallerState {
    answered: bool,
    /// Effects that may still come about: requests that were sent and have not ended.
    under_way: usize,
    /// Who will take in what became of such.
    taking_in: usize,
    /// Since the caller was answered while something was under way.
    listed: Option<Listed>,
}

impl Caller {
    /// The caller of an operation, the thread with this id (0: it cannot be seen from
    /// here). An operation that changes what others see is listed in `abandoned` should
    /// it go on without its caller.
    pub fn new(abandoned: Option<Arc<Abandoned>>, thread: u32) -> Arc<Self> {
        Self::of(abandoned, thread, KernelRequest::default())
    }

    /// The same of an operation that is about a request of the kernel.
    pub fn of(abandoned: Option<Arc<Abandoned>>, thread: u32, request: KernelRequest) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            answered: Notify::new(),
            abandoned,
            thread,
            request,
        })
    }

    /// What the operation is about.
    pub fn request(&self) -> KernelRequest {
        self.request
    }

    /// The id of the thread that calls; 0 if it cannot be seen from here.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// The caller is about to be answered although its operation has not ended. When
    /// this returns, nothing of the operation is sent any more, and what was sent is
    /// listed.
    pub fn give_up(&self) {
        {
            let mut state = self.state.lock();
            state.answered = true;
            if state.under_way > 0 && state.listed.is_none() {
                state.listed = self.abandoned.as_ref().map(Abandoned::begin);
            }
        }
        self.answered.notify_waiters();
    }

    /// Whether the caller was answered before its operation had ended.
    pub fn is_answered(&self) -> bool {
        self.state.lock().answered
    }

    /// Comes back when the caller has been answered.
    pub async fn answered(&self) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if self.is_answered() {
                return;
            }
            answered.await;
        }
    }

    /// Something takes effect from here on; false if the caller has been answered, and
    /// it must not.
    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        state.under_way += usize::from(!state.answered);
        !state.answered
    }

    fn end(&self) {
        self.ends(|state| state.under_way -= 1);
    }

    fn ends(&self, end: impl FnOnce(&mut CallerState)) {
        let listed = {
            let mut state = self.state.lock();
            end(&mut state);
            match (state.under_way, state.taking_in) {
                (0, 0) => state.listed.take(),
                _ => None,
            }
        };
        drop(listed);
    }
}

/// The caller of the operation that this task is about.
pub fn current() -> Option<Arc<Caller>> {
    CALLER.try_with(Clone::clone).ok().flatten()
}

/// The request of the kernel that this task's operation is about.
pub fn request() -> KernelRequest {
    let request = |caller: &Option<Arc<Caller>>| caller.as_ref().map(|caller| caller.request);
    CALLER.try_with(request).ok().flatten().unwrap_or_default()
}

/// Whether the caller of this task's operation has been answered already.
pub fn is_answered() -> bool {
    CALLER
        .try_with(|caller| caller.as_ref().is_some_and(|caller| caller.is_answered()))
        .unwrap_or(false)
}

/// Comes back when the caller of this task's operation has been answered; never, if
/// nobody calls.
pub async fn answered() {
    match current() {
        Some(caller) => caller.answered().await,
        None => std::future::pending().await,
    }
}

/// Runs work for a caller (or, with `None`, for nobody): its requests are his.
pub fn on_behalf_of<T>(
    caller: Option<Arc<Caller>>,
    work: impl Future<Output = T>,
) -> impl Future<Output = T> {
    CALLER.scope(caller, work)
}

/// Runs what must be done whether or not the caller waits: undoing, or the work of
/// others that this operation happens to do.
pub fn apart<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    // Boxed: what is done apart is rare and long, and would make every operation that
    // may have to do it as large.
    on_behalf_of(None, Box::pin(work))
}

/// Keeps the effects of a caller's operation in one piece: while this lives, the
/// operation counts as under way, between its requests too.
#[derive(Debug)]
pub struct Effect(Option<Arc<Caller>>);

impl Effect {
    /// Begins it for this task's caller. `None` if that has been answered.
    pub fn begin() -> Option<Self> {
        let caller = current();
        let may = caller.as_ref().is_none_or(|caller| caller.begin());
        // Not made before: dropping one ends it.
        may.then(|| Self(caller))
    }
}

impl Drop for Effect {
    fn drop(&mut self) {
        if let Some(caller) = &self.0 {
            caller.end();
        }
    }
}

/// Somebody will take in what becomes of the operation's effects: until he has, that is until this is
/// dropped, they have not ended for whoever waits for them ([`Abandoned`]). He must not wait for those
/// himself while he has it: he would be one of them.
#[derive(Debug)]
pub struct TakingIn(Option<Arc<Caller>>);

impl TakingIn {
    /// For the caller of this task's operation.
    pub fn begin() -> Self {
        let caller = current();
        if let Some(caller) = &caller {
            caller.state.lock().taking_in += 1;
        }
        Self(caller)
    }
}

impl Drop for TakingIn {
    fn drop(&mut self) {
        if let Some(caller) = &self.0 {
            caller.ends(|state| state.taking_in -= 1);
        }
    }
}

/// One request, from when it is made until it is known what became of it.
#[derive(Debug, Default)]
pub struct Request {
    caller: Option<Arc<Caller>>,
    started: AtomicBool,
}

impl Request {
    /// A request of this task's operation.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            caller: current(),
            started: AtomicBool::new(false),
        })
    }

    /// A request that is made whether anybody waits or not.
    pub fn of_nobody() -> Arc<Self> {
        Arc::default()
    }

    /// The request is about to be handed to its first connection. False if it must
    /// not: the caller has been answered.
    pub fn start(&self) -> bool {
        let Some(caller) = &self.caller else {
            return true;
        };
        if self.started.load(Ordering::Relaxed) {
            return !caller.is_answered();
        }
        let begun = caller.begin();
        self.started.store(begun, Ordering::Relaxed);
        begun
    }

    /// It was handed to a connection.
    pub fn was_started(&self) -> bool {
        self.caller.is_none() || self.started.load(Ordering::Relaxed)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(caller) = &self.caller
            && self.started.load(Ordering::Relaxed)
        {
            caller.end();
        }
    }
}

/// The operations of a mount that go on without their callers, as far as something of
/// them may still take effect.
#[derive(Debug, Default)]
pub struct Abandoned {
    running: Mutex<AbandonedSet>,
    /// How many there are: what begins looks here first.
    count: AtomicUsize,
    ended: Notify,
}

#[derive(Debug, Default)]
struct AbandonedSet {
    next: u64,
    numbers: BTreeSet<u64>,
}

/// One of them; it ends when this is dropped.
#[derive(Debug)]
pub struct Listed {
    of: Arc<Abandoned>,
    number: u64,
}

impl Abandoned {
    /// Something is listed until the result is dropped.
    pub fn begin(self: &Arc<Self>) -> Listed {
        let mut running = self.running.lock();
        let number = running.next;
        running.next += 1;
        running.numbers.insert(number);
        self.count.fetch_add(1, Ordering::SeqCst);
        Listed {
            of: Arc::clone(self),
            number,
        }
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Waits for the end of all that were abandoned so far.
    pub async fn ended(&self) {
        if !self.any() {
            return;
        }
        let until = self.running.lock().next;
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            let first = self.running.lock().numbers.first().copied();
            if first.is_none_or(|first| first >= until) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.of.running.lock().numbers.remove(&self.number);
        self.of.count.fetch_sub(1, Ordering::SeqCst);
        self.of.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount() -> (Arc<Abandoned>, Arc<Caller>) {
        let abandoned = Arc::new(Abandoned::default());
        let caller = Caller::new(Some(Arc::clone(&abandoned)), 1);
        (abandoned, caller)
    }

    async fn request(caller: &Arc<Caller>) -> Arc<Request> {
        on_behalf_of(Some(Arc::clone(caller)), async { Request::new() }).await
    }

    #[tokio::test]
    async fn what_was_not_sent_when_its_caller_was_answered_is_never_sent() {
        let (abandoned, caller) = mount();
        let request = request(&caller).await;
        caller.give_up();
        assert!(!request.start(), "sent for nobody");
        assert!(!abandoned.any(), "nothing can take effect");
        assert!(Request::of_nobody().start());
    }

    #[tokio::test]
    async fn what_was_sent_is_listed_until_what_became_of_it_was_taken_in() {
        let (abandoned, caller) = mount();
        let taking_in = on_behalf_of(Some(Arc::clone(&caller)), async { TakingIn::begin() }).await;
        let sent = request(&caller).await;
        assert!(sent.start());
        caller.give_up();
        drop(sent);
        assert!(abandoned.any(), "nobody knows of it yet");
        drop(taking_in);
        assert!(!abandoned.any());
        // Nothing was sent: nobody need wait for who would have taken it in.
        let (abandoned, caller) = mount();
        let taking_in = on_behalf_of(Some(Arc::clone(&caller)), async { TakingIn::begin() }).await;
        caller.give_up();
        assert!(!abandoned.any());
        drop(taking_in);
    }

    #[tokio::test]
    async fn what_was_sent_is_listed_until_it_is_known_what_became_of_it() {
        let (abandoned, caller) = mount();
        let (sent, not_sent) = (request(&caller).await, request(&caller).await);
        assert!(sent.start());
        assert!(!abandoned.any(), "its caller waits");
        caller.give_up();
        caller.give_up();
        assert!(abandoned.any());
        assert!(!sent.start(), "nor is it sent again");
        drop(not_sent);
        assert!(abandoned.any());
        drop(sent);
        assert!(!abandoned.any());
    }

    #[tokio::test]
    async fn effects_are_begun_for_living_callers_and_last_over_several_requests() {
        let (abandoned, caller) = mount();
        let work = async {
            let effect = Effect::begin().expect("the caller waits");
            caller.give_up();
            assert!(Effect::begin().is_none() && is_answered());
            assert!(abandoned.any());
            apart(async { assert!(Request::new().start() && !is_answered()) }).await;
            drop(effect);
            assert!(!abandoned.any());
        };
        on_behalf_of(Some(Arc::clone(&caller)), work).await;
        assert!(Effect::begin().is_some(), "of nobody");
    }

    #[tokio::test]
    async fn questions_are_never_listed() {
        let caller = Caller::new(None, 1);
        let question = request(&caller).await;
        assert!(question.start());
        caller.give_up();
        caller.answered().await;
        assert!(!question.start());
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_came_before_are_waited_for_and_those_after_are_not() {
        let abandoned = Arc::new(Abandoned::default());
        abandoned.ended().await;
        let (first, second) = (abandoned.begin(), abandoned.begin());
        let waits = tokio::spawn({
            let abandoned = Arc::clone(&abandoned);
            async move { abandoned.ended().await }
        });
        tokio::task::yield_now().await;
        let _later = abandoned.begin();
        drop(second);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(first);
        waits.await.unwrap();
    }
}
