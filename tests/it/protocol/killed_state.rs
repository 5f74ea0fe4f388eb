//! A client whose process is killed at any instruction, and another one that goes on from
//! the log of it alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use efs_fuse::nfs::calls::{HowToOpen, Locked, OpenRequest};
use efs_fuse::nfs::handover::{ClientState, TakenOver};
use efs_fuse::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use efs_fuse::nfs::state::OpenState;
use efs_fuse::nfs::state::locks::LockState;
use efs_fuse::nfs::state::ranges::{LockKind, Span};
use efs_fuse::nfs::{Client, ClientConfig};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::transport::{Connecting, Connector};
use efs_fuse::telemetry::Metrics;
use efs_fuse::wal::{Survived, Wal};
use proptest::prelude::*;

use super::rig::{Rig, client_config, connect_as, millis, once_at, seconds, within};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

const SPAN: Span = Span { start: 10, end: 19 };
const ALL_ACCESS: u32 = ACCESS_READ | ACCESS_WRITE;

/// The way of a process to the server, which ends with it.
pub(super) struct Lifeline {
    peer: Arc<dyn Connector>,
    cut: AtomicBool,
}

impl Lifeline {
    /// No word of the process reaches the server from here on.
    pub(super) fn cut(&self, peer: &Peer) {
        self.cut.store(true, Ordering::Relaxed);
        peer.cut_all_connections();
    }
}

impl Connector for Lifeline {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let connected = self.peer.connect().await;
            // Also of one that was begun before.
            match self.cut.load(Ordering::Relaxed) {
                true => std::future::pending().await,
                false => connected,
            }
        })
    }

    fn peer(&self) -> String {
        self.peer.peer()
    }
}

/// A client with a log that has room for so many bytes of data.
pub(super) fn with_log(peer: &Arc<Peer>, data: usize) -> (ClientConfig, Arc<Lifeline>, Wal) {
    let wal = Wal::create(data).expect("memory");
    let config = ClientConfig {
        wal: wal.clone(),
        ..client_config("one")
    };
    let peer = peer.connector();
    let cut = AtomicBool::new(false);
    (config, Arc::new(Lifeline { peer, cut }), wal)
}

fn log_of(wal: &Wal) -> ClientState {
    let memory = wal.memory().expect("it is on").try_clone().expect("a dup");
    let survived = Survived::read(memory).expect("a log");
    ClientState::survived(&survived).expect("the records of a client")
}

/// A process with a log, alone with its server.
struct Process {
    peer: Arc<Peer>,
    client: Arc<Client>,
    lifeline: Arc<Lifeline>,
    wal: Wal,
}

impl Process {
    async fn new() -> Self {
        Self::of(&Peer::new(PeerConfig::default())).await
    }

    async fn of(peer: &Arc<Peer>) -> Self {
        let (config, lifeline, wal) = with_log(peer, 0);
        let client = Client::connect(Arc::clone(&lifeline) as _, config, Metrics::new());
        let client = client.await.expect("a session");
        let cred = Credential::machine();
        client.find_root(&cred, b"/").await.expect("the root");
        Self {
            peer: Arc::clone(peer),
            client,
            lifeline,
            wal,
        }
    }

    async fn file(&self, name: &str) -> Arc<OpenState> {
        let (cred, root) = (Credential::machine(), &self.client.fs().root);
        let how = HowToOpen::Existing;
        let made = self
            .client
            .create(&cred, root, name.as_bytes(), ALL_ACCESS, 0o644, how);
        made.await.expect("created").open
    }

    /// The log of this moment is all that is left, and no word of it reaches the server.
    fn killed(self) -> (Arc<Peer>, ClientState) {
        let state = log_of(&self.wal);
        self.lifeline.cut(&self.peer);
        // What is dropped in a process that goes on is not dropped in one that was killed.
        std::mem::forget(self.client);
        (self.peer, state)
    }

    /// Another process goes on.
    async fn again((peer, state): (Arc<Peer>, ClientState)) -> (Self, TakenOver) {
        peer.clear_script();
        let (config, lifeline, wal) = with_log(&peer, 0);
        let connector = Arc::clone(&lifeline) as _;
        let taken = Client::take_over(connector, config, Metrics::new(), state);
        let (client, taken) = within(600, taken).await.expect("the server goes on");
        let process = Self {
            peer,
            client,
            lifeline,
            wal,
        };
        process.log_is_whole();
        (process, taken)
    }

    /// The log says what a planned hand-over would.
    fn log_is_whole(&self) {
        let (mut log, mut now) = (log_of(&self.wal), self.client.hand_over());
        assert!(log.next_owner >= now.next_owner);
        now.next_owner = log.next_owner;
        for state in [&mut log, &mut now] {
            state.opens.sort_by_key(|open| open.owner);
            state.closes.sort_by_key(|open| open.owner);
            state.locks.sort_by_key(|lock| lock.owner);
        }
        assert_eq!(log, now);
    }

    async fn nothing_is_left(&self) {
        within(60, self.client.closes_sent()).await;
        assert_eq!((self.peer.open_count(), self.peer.lock_count()), (0, 0));
        seconds(60).await;
        assert_eq!(
            (self.peer.client_count(), self.peer.session_count()),
            (1, 1)
        );
        let log = log_of(&self.wal);
        assert_eq!(
            (log.opens.len(), log.closes.len(), log.locks.len()),
            (0, 0, 0)
        );
        self.log_is_whole();
    }
}

async fn lock(client: &Arc<Client>, lock: &Arc<LockState>) -> bool {
    let turn = lock.turn().await;
    let locked = client.lock(&turn, SPAN, LockKind::Write, false).await;
    matches!(locked.expect("an answer"), Locked::Granted(_))
}

async fn unlock(client: &Arc<Client>, lock: &Arc<LockState>) {
    let turn = lock.turn().await;
    client.unlock(&turn, Span::ALL).await.expect("unlocked");
}

/// Begins something that is not answered, in a process that will be killed.
async fn begun(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
    millis(50).await;
}

/// What becomes of a request: it was executed and not answered, or it never came.
fn fates() -> [Action; 2] {
    [Action::SwallowReply, Action::Hang]
}

#[tokio::test(start_paused = true)]
async fn opens_and_locks_are_there_after_a_kill_and_after_another_one() {
    let process = Process::new().await;
    let open = process.file("f").await;
    let held = process.client.prepare_lock(&open);
    assert!(lock(&process.client, &held).await);
    process.log_is_whole();
    let (process, first) = Process::again(process.killed()).await;
    assert_eq!((first.opens.len(), first.locks.len()), (1, 1));
    let (process, taken) = Process::again(process.killed()).await;
    assert_eq!(process.peer.lock_count(), 1);
    let held = taken.locks.values().next().expect("the lock");
    assert_eq!(held.held().iter().count(), 1);
    assert!(!held.is_lost());
    let fresh = process.client.prepare_lock(&held.open);
    assert!(fresh.owner() > held.owner(), "no number twice");
    drop(fresh);
    process.client.settle(&[], taken).await;
    process.nothing_is_left().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_that_was_not_answered_is_closed_if_nobody_asks_again() {
    for fate in fates() {
        let process = Process::new().await;
        let first = process.file("f").await;
        let open = (process.client).prepare_open(first.handle.clone(), Credential::machine());
        once_at(&process.peer, op::OPEN, fate);
        let client = Arc::clone(&process.client);
        begun(async move {
            let request = OpenRequest::of(&open, ALL_ACCESS);
            let _ = client.open_by_handle(request).await;
        })
        .await;
        let (process, taken) = Process::again(process.killed()).await;
        assert_eq!(taken.opens.len(), 2);
        process.client.settle(&[], taken).await;
        process.nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_that_was_not_answered_is_one_open_if_it_is_asked_for_again() {
    for fate in fates() {
        let process = Process::new().await;
        let first = process.file("f").await;
        let open = (process.client).prepare_open(first.handle.clone(), Credential::machine());
        let owner = open.owner();
        once_at(&process.peer, op::OPEN, fate);
        let client = Arc::clone(&process.client);
        begun(async move {
            let request = OpenRequest::of(&open, ALL_ACCESS);
            let _ = client.open_by_handle(request).await;
        })
        .await;
        let (process, mut taken) = Process::again(process.killed()).await;
        let open = taken.opens.remove(&owner).expect("it was prepared");
        let request = OpenRequest::of(&open, ALL_ACCESS);
        let opened = process.client.open_by_handle(request).await;
        assert!(opened.expect("opened").is_some());
        assert_eq!(process.peer.open_count(), 2);
        process.client.close(&open).await.expect("closed");
        process.client.settle(&[], taken).await;
        drop(open);
        process.nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_to_be_closed_is_closed_whether_its_close_waited_or_was_sent() {
    // Not sent at all, then either fate.
    let fates = std::iter::once(None).chain(fates().map(Some));
    for fate in fates {
        let process = Process::new().await;
        let open = process.file("f").await;
        let held = process.client.prepare_lock(&open);
        assert!(lock(&process.client, &held).await);
        let sent = fate.is_some();
        if let Some(fate) = fate {
            once_at(&process.peer, op::CLOSE, fate);
        }
        process.client.close_soon(&open);
        process.log_is_whole();
        if sent {
            millis(500).await;
        }
        let (peer, state) = process.killed();
        assert_eq!((state.opens.len(), state.closes.len()), (0, 1));
        assert_eq!(state.locks.len(), 1, "a server may want it unlocked first");
        drop((open, held));
        let (process, taken) = Process::again((peer, state)).await;
        assert_eq!((taken.opens.len(), taken.locks.len()), (0, 0));
        process.nothing_is_left().await;
    }
}

/// A LOCK is under way when the process is killed.
async fn killed_while_locking(fate: Action) -> (Arc<Peer>, ClientState) {
    let process = Process::new().await;
    let open = process.file("f").await;
    let wanted = process.client.prepare_lock(&open);
    once_at(&process.peer, op::LOCK, fate);
    let client = Arc::clone(&process.client);
    begun(async move {
        lock(&client, &wanted).await;
    })
    .await;
    process.killed()
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_not_answered_is_freed_if_nobody_asks_again() {
    for fate in fates() {
        let (process, mut taken) = Process::again(killed_while_locking(fate).await).await;
        let (_, open) = taken.opens.pop_first().expect("the file stays open");
        process.client.settle(&[], taken).await;
        assert_eq!(process.peer.lock_count(), 0);
        assert_eq!(process.peer.fs().locks("/f").unwrap(), []);
        let other = process.client.prepare_lock(&open);
        assert!(lock(&process.client, &other).await, "it is free");
        unlock(&process.client, &other).await;
        process.client.close(&open).await.expect("closed");
        drop((open, other));
        process.nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_not_answered_is_held_once_if_it_is_asked_for_again() {
    for fate in fates() {
        let (process, mut taken) = Process::again(killed_while_locking(fate).await).await;
        let (_, again) = taken.locks.pop_first().expect("it was intended");
        assert!(
            lock(&process.client, &again).await,
            "no lock of its own in the way"
        );
        assert_eq!(process.peer.lock_count(), 1);
        process.log_is_whole();
        unlock(&process.client, &again).await;
        process.client.free_lock(&again).await.expect("freed");
        drop(again);
        process.client.settle(&[], taken).await;
        process.nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_another_has_is_left_alone_by_whoever_asks_for_the_fate_of_his() {
    let (peer, state) = killed_while_locking(Action::Hang).await;
    peer.clear_script();
    let other = Rig::of(Arc::clone(&peer), "two").await;
    let open = other.create("f", HowToOpen::Existing).await.unwrap();
    let theirs = other.client.prepare_lock(&open);
    assert!(lock(&other.client, &theirs).await);
    let (process, taken) = Process::again((peer, state)).await;
    process.client.settle(&[], taken).await;
    let at = (SPAN.start, SPAN.end, true);
    assert_eq!(process.peer.fs().locks("/f").unwrap(), [at]);
}

/// A LOCKU is under way when the process is killed.
async fn killed_while_unlocking(fate: Action) -> (Arc<Peer>, ClientState) {
    let process = Process::new().await;
    let open = process.file("f").await;
    let held = process.client.prepare_lock(&open);
    assert!(lock(&process.client, &held).await);
    once_at(&process.peer, op::LOCKU, fate);
    let client = Arc::clone(&process.client);
    begun(async move {
        unlock(&client, &held).await;
    })
    .await;
    process.killed()
}

#[tokio::test(start_paused = true)]
async fn what_was_being_unlocked_is_unlocked_and_a_later_lock_of_its_owner_stays() {
    for fate in fates() {
        let (process, mut taken) = Process::again(killed_while_unlocking(fate).await).await;
        let (_, held) = taken.locks.pop_first().expect("the lock");
        let locks = [Arc::clone(&held)];
        process.client.settle(&locks, TakenOver::default()).await;
        assert!(held.held().is_empty());
        assert_eq!(process.peer.fs().locks("/f").unwrap(), []);
        assert!(lock(&process.client, &held).await);
        process.client.settle(&locks, TakenOver::default()).await;
        assert_eq!(process.peer.fs().locks("/f").unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_being_unlocked_is_not_reclaimed_and_what_is_held_is() {
    for unlocking in [true, false] {
        let (peer, state) = match unlocking {
            true => killed_while_unlocking(Action::Hang).await,
            false => {
                let process = Process::new().await;
                let open = process.file("f").await;
                let held = process.client.prepare_lock(&open);
                assert!(lock(&process.client, &held).await);
                std::mem::forget(held);
                process.killed()
            }
        };
        peer.crash_and_restart();
        let (process, taken) = Process::again((peer, state)).await;
        let locks = process.peer.fs().locks("/f").unwrap();
        assert_eq!(locks.len(), usize::from(!unlocking));
        assert!(taken.locks.values().all(|lock| !lock.is_lost()));
        process.client.settle(&[], taken).await;
        process.nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kill_while_the_session_is_remade_leaves_the_client_as_it_was() {
    for (at, fate) in [op::CREATE_SESSION, op::DESTROY_SESSION, op::SEQUENCE]
        .into_iter()
        .flat_map(|at| fates().map(|fate| (at, fate)))
    {
        let process = Process::new().await;
        let open = process.file("f").await;
        let id = log_of(&process.wal).client_id.id;
        process.peer.destroy_sessions();
        let mut fate = Some(fate);
        let mut made = false;
        process.peer.on_op(move |event| {
            made |= event.op == op::CREATE_SESSION;
            match made && event.op == at {
                true => fate.take().unwrap_or(Action::Pass),
                false => Action::Pass,
            }
        });
        let client = Arc::clone(&process.client);
        let asks = Arc::clone(&open);
        begun(async move {
            let _ = client.read(&asks, 0, 1).await;
        })
        .await;
        let (process, taken) = Process::again(process.killed()).await;
        assert_eq!(process.client.hand_over().client_id.id, id);
        assert_eq!(process.peer.open_count(), 1);
        process.client.settle(&[], taken).await;
        process.nothing_is_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_session_of_a_taker_that_was_killed_too_is_not_used_by_the_next() {
    let process = Process::new().await;
    let open = process.file("f").await;
    let held = process.client.prepare_lock(&open);
    assert!(lock(&process.client, &held).await);
    let (peer, state) = process.killed();
    // Its log was not given to anybody: the next one begins from the same.
    let (taker, _taken) = Process::again((Arc::clone(&peer), state.clone())).await;
    let used = log_of(&taker.wal).sessions;
    let (peer, _) = taker.killed();
    let (process, taken) = Process::again((peer, state)).await;
    let ours = log_of(&process.wal).sessions;
    assert!(used.iter().all(|id| !ours.contains(id)));
    assert_eq!(process.peer.lock_count(), 1);
    process.client.settle(&[], taken).await;
    within(60, process.client.closes_sent()).await;
    assert_eq!(
        (process.peer.open_count(), process.peer.lock_count()),
        (0, 0)
    );
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    CloseSoon(usize),
    Close(usize),
    Lock(usize),
    Unlock(usize),
    DropLock(usize),
    LoseSessions,
    Restart,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let which = || 0..4usize;
    prop_oneof![
        4 => Just(Step::Create),
        2 => which().prop_map(Step::CloseSoon),
        1 => which().prop_map(Step::Close),
        4 => which().prop_map(Step::Lock),
        2 => which().prop_map(Step::Unlock),
        1 => which().prop_map(Step::DropLock),
        1 => Just(Step::LoseSessions),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
    ]
}

/// After each step the log says what a hand-over would.
async fn walk(steps: Vec<Step>) {
    let mut process = Process::new().await;
    let mut opens: Vec<Arc<OpenState>> = Vec::new();
    let mut locks: Vec<Arc<LockState>> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let client = Arc::clone(&process.client);
        match step {
            Step::Create => opens.push(process.file(&format!("f{number}")).await),
            Step::CloseSoon(at) | Step::Close(at) if at < opens.len() => {
                let open = opens.swap_remove(at);
                locks.retain(|lock| !Arc::ptr_eq(&lock.open, &open));
                match step {
                    Step::Close(_) => drop(client.close(&open).await),
                    _ => client.close_soon(&open),
                }
            }
            Step::Lock(at) if at < opens.len() => {
                let new = client.prepare_lock(&opens[at]);
                lock(&client, &new).await;
                locks.push(new);
            }
            Step::Unlock(at) if at < locks.len() => unlock(&client, &locks[at]).await,
            Step::DropLock(at) if at < locks.len() => {
                let lock = locks.swap_remove(at);
                unlock(&client, &lock).await;
                client.free_lock(&lock).await.expect("freed");
            }
            Step::LoseSessions => process.peer.destroy_sessions(),
            Step::Restart => {
                process.peer.crash_and_restart();
                let cred = Credential::machine();
                let root = process.client.fs().root.clone();
                client.get_attrs(&cred, &root).await.expect("it is back");
            }
            Step::Kill => {
                drop(client);
                let dead = process.killed();
                let (next, taken) = Process::again(dead).await;
                std::mem::forget(std::mem::take(&mut opens));
                std::mem::forget(std::mem::take(&mut locks));
                opens.extend(taken.opens.into_values());
                locks.extend(taken.locks.into_values());
                process = next;
            }
            _ => {}
        }
        process.log_is_whole();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn the_log_says_at_any_time_what_a_hand_over_would(
        steps in proptest::collection::vec(step(), 0..25)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async { within(6000, walk(steps)).await });
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_keeper_nothing_is_recorded() {
    let peer = Peer::new(PeerConfig::default());
    let client = connect_as(&peer, client_config("one"), Metrics::new()).await;
    assert!(client.wal().memory().is_none());
}
