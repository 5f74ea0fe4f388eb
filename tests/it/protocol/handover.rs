//! A client that ends without a word to the server, and another one in its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use efs_fuse::nfs::calls::{HowToOpen, Locked};
use efs_fuse::nfs::handover::{
    ClientState, FileSystem, Layout, LockRecord, OpenRecord, PATIENCE, TakenOver,
};
use efs_fuse::nfs::proto::attrs::Attributes;
use efs_fuse::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use efs_fuse::nfs::proto::types::{FileHandle, FileType, Stable, StateId};
use efs_fuse::nfs::session::establish::{ClientId, ServerId};
use efs_fuse::nfs::state::OpenState;
use efs_fuse::nfs::state::locks::LockState;
use efs_fuse::nfs::state::ranges::{LockKind, Ranges, Span};
use efs_fuse::nfs::{Client, ConnectError, NfsError};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::telemetry::Metrics;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::rig::{Rig, client_config, identity, millis, once_at, seconds, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const SPAN: Span = Span { start: 10, end: 19 };

/// What a process had that is gone.
struct Estate {
    peer: Arc<Peer>,
    state: ClientState,
}

/// The process has files open, the first `locked` of them with a lock, and ends.
async fn dead(cfg: PeerConfig, files: usize, locked: usize) -> Estate {
    let rig = Rig::new(cfg).await;
    let mut had = Vec::new();
    for number in 0..files {
        let name = format!("f{number}");
        let open = rig.create(&name, HowToOpen::Existing).await.unwrap();
        write(&rig.client, &open, b"stable").await.unwrap();
        let lock = rig.client.prepare_lock(&open);
        if number < locked {
            let turn = lock.turn().await;
            let granted = rig.client.lock(&turn, SPAN, LockKind::Write, false).await;
            assert!(matches!(granted, Ok(Locked::Granted(_))), "{granted:?}");
        }
        had.push((open, lock));
    }
    let state = rig.client.hand_over();
    Estate {
        state: through_messagepack(&state),
        peer: rig.peer,
    }
}

fn through_messagepack(state: &ClientState) -> ClientState {
    let bytes = rmp_serde::to_vec_named(state).expect("encodes");
    let read = rmp_serde::from_slice(&bytes).expect("decodes");
    assert_eq!(*state, read);
    read
}

async fn write(client: &Arc<Client>, open: &Arc<OpenState>, data: &[u8]) -> Result<(), NfsError> {
    let data = [Bytes::copy_from_slice(data)];
    let written = client.write(open, open.fence(), 0, Stable::FileSync, &data);
    written.await.map(drop)
}

/// Another process in its place.
async fn try_take(
    peer: &Arc<Peer>,
    state: &ClientState,
) -> Result<(Arc<Client>, TakenOver), ConnectError> {
    let config = client_config("nobody asks for this identity");
    let state = through_messagepack(state);
    let taken = Client::take_over(peer.connector(), config, Metrics::new(), state);
    within(600, taken).await
}

impl Estate {
    async fn taken(&self) -> (Arc<Client>, TakenOver) {
        let taken = try_take(&self.peer, &self.state).await;
        taken.expect("the server goes on with it")
    }

    fn ops(&self) -> Vec<Vec<u32>> {
        self.peer.log().into_iter().map(|one| one.ops).collect()
    }
}

/// Every open can be read, written and closed, every lock is held, keeps others out and can
/// be given up; and nothing is left behind.
async fn all_work(peer: &Arc<Peer>, client: &Arc<Client>, taken: TakenOver, locked: usize) {
    let count = taken.opens.len();
    within(300, async {
        for open in taken.opens.values() {
            let read = client.read(open, 0, 100).await.expect("read");
            assert_eq!(&read.data[..], b"stable");
            write(client, open, b"STABLE").await.expect("write");
        }
        assert_eq!(peer.open_count(), count);
        assert_eq!(peer.lock_count(), locked);
        for number in 0..locked {
            let at = (SPAN.start, SPAN.end, true);
            assert_eq!(peer.fs().locks(&format!("/f{number}")).unwrap(), [at]);
        }
        for lock in taken.locks.values() {
            assert!(!lock.is_lost());
            give_up(client, lock).await;
        }
        assert_eq!(peer.lock_count(), 0);
        for open in taken.opens.values() {
            client.close(open).await.expect("close");
        }
    })
    .await;
    assert_eq!(peer.open_count(), 0);
    seconds(60).await;
    assert_eq!((peer.client_count(), peer.session_count()), (1, 1));
}

async fn give_up(client: &Arc<Client>, lock: &Arc<LockState>) {
    let turn = lock.turn().await;
    client.unlock(&turn, Span::ALL).await.expect("unlock");
}

#[tokio::test(start_paused = true)]
async fn another_process_goes_on_with_the_client_id_and_all_that_is_open_and_locked() {
    let estate = dead(PeerConfig::default(), 5, 3).await;
    let id = estate.state.client_id.id;
    estate.peer.clear_log();
    let (client, taken) = estate.taken().await;
    assert_eq!((taken.opens.len(), taken.locks.len()), (5, 5));
    let steps = [op::CREATE_SESSION, op::DESTROY_SESSION, op::SEQUENCE];
    assert_eq!(estate.ops(), steps.map(|step| vec![step]));
    assert_eq!(client.hand_over().client_id.id, id);
    assert_eq!(client.fs(), estate.state.fs.as_ref().unwrap());
    assert_eq!((client.rsize(), client.wsize()), (1_048_456, 1 << 20));
    all_work(&estate.peer, &client, taken, 3).await;
    for number in [op::OPEN, op::LOCK, op::LOOKUP, op::PUTROOTFH] {
        assert_eq!(estate.peer.count_op(number), 0, "{}", op::name(number));
    }
}

#[tokio::test(start_paused = true)]
async fn no_owner_is_ever_used_anew() {
    let estate = dead(PeerConfig::default(), 3, 3).await;
    let (client, taken) = estate.taken().await;
    let known: Vec<u64> = taken
        .opens
        .keys()
        .chain(taken.locks.keys())
        .copied()
        .collect();
    let cred = Credential::machine();
    let root = client.fs().root.clone();
    let access = ACCESS_READ | ACCESS_WRITE;
    let how = HowToOpen::Existing;
    let created = client
        .create(&cred, &root, b"new", access, 0o644, how)
        .await;
    let open = created.expect("created").open;
    let lock = client.prepare_lock(&open);
    for owner in [open.owner(), lock.owner()] {
        assert!(owner >= estate.state.next_owner && !known.contains(&owner));
    }
    assert_eq!(estate.peer.open_count(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_request_of_the_dead_process_that_arrives_late_is_refused() {
    let rig = Rig::new(PeerConfig::default()).await;
    let open = rig.create("f0", HowToOpen::Existing).await.unwrap();
    write(&rig.client, &open, b"stable").await.unwrap();
    // It stays in a socket until the other process is there.
    let late = Duration::from_secs(30);
    rig.peer.on_op(move |event| match event.op {
        op::SEQUENCE if event.compound.contains(&op::WRITE) => Action::Delay(late),
        _ => Action::Pass,
    });
    let state = rig.client.hand_over();
    let (client, dying) = (Arc::clone(&rig.client), Arc::clone(&open));
    let request = tokio::spawn(async move { write(&client, &dying, b"LATE!!").await });
    millis(10).await;
    request.abort();
    let estate = Estate {
        state,
        peer: Arc::clone(&rig.peer),
    };
    rig.client.channel().close();
    drop((rig, open));
    millis(10).await;
    estate.peer.clear_script();
    let (client, taken) = estate.taken().await;
    seconds(60).await;
    let refused = |one: &crate::peer::Executed| one.ops.contains(&op::WRITE);
    let log = estate.peer.log();
    let request = log.iter().rfind(|one| refused(one)).expect("it arrived");
    assert_eq!(request.statuses, [st::BADSESSION]);
    all_work(&estate.peer, &client, taken, 0).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_before_the_old_session_is_known_to_be_gone() {
    let trouble: [(fn() -> Action, bool); 8] = [
        (|| Action::DropConnectionBefore, true),
        (|| Action::DropConnectionAfter, false),
        (|| Action::SwallowReply, false),
        (|| Action::Garble, false),
        (|| Action::Fail(st::DELAY), true),
        (|| Action::Fail(st::BACK_CHAN_BUSY), true),
        (|| Action::Fail(st::SERVERFAULT), true),
        (|| Action::FailAfter(st::DELAY), false),
    ];
    for (number, (action, again)) in trouble.into_iter().enumerate() {
        for implicit_bind in [true, false] {
            let cfg = PeerConfig {
                implicit_bind,
                ..PeerConfig::default()
            };
            let estate = dead(cfg, 2, 1).await;
            let old = estate.state.sessions[0];
            let peer = Arc::downgrade(&estate.peer);
            let destroyed = Arc::new(Mutex::new(0));
            let (count, early) = (Arc::clone(&destroyed), Arc::new(AtomicU32::new(0)));
            let seen = Arc::clone(&early);
            let mut left = 3;
            estate.peer.on_op(move |event| {
                if event.op == op::SEQUENCE {
                    let there = peer.upgrade().is_some_and(|peer| peer.has_session(&old));
                    seen.fetch_add(u32::from(there), Ordering::Relaxed);
                }
                if event.op != op::DESTROY_SESSION || left == 0 {
                    return Action::Pass;
                }
                *count.lock() += 1;
                left -= 1;
                action()
            });
            let (client, taken) = estate.taken().await;
            let case = format!("{number}, bound: {implicit_bind}");
            all_work(&estate.peer, &client, taken, 1).await;
            assert!(!estate.peer.has_session(&old), "{case}");
            assert!(!again || *destroyed.lock() == 3, "{case}");
            assert_eq!(early.load(Ordering::Relaxed), 0, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_gone_already_is_as_good_as_destroyed() {
    let estate = dead(PeerConfig::default(), 2, 1).await;
    estate.peer.destroy_sessions();
    let (client, taken) = estate.taken().await;
    all_work(&estate.peer, &client, taken, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_create_session_of_the_dead_process_makes_no_difference() {
    for off_by in [1_u32, 0_u32.wrapping_sub(1), 7] {
        let mut estate = dead(PeerConfig::default(), 2, 1).await;
        let sequence = &mut estate.state.client_id.sequence;
        *sequence = sequence.wrapping_add(off_by);
        let (client, taken) = estate.taken().await;
        assert!(!estate.peer.has_session(&estate.state.sessions[0]));
        all_work(&estate.peer, &client, taken, 1).await;
    }
    let estate = dead(PeerConfig::default(), 2, 1).await;
    let misordered = Action::Fail(st::SEQ_MISORDERED);
    once_at(&estate.peer, op::CREATE_SESSION, misordered);
    let (client, taken) = estate.taken().await;
    assert_eq!(estate.peer.count_op(op::EXCHANGE_ID), 2, "and one at first");
    all_work(&estate.peer, &client, taken, 1).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_server_has_lost_that_restarted_meanwhile_is_reclaimed() {
    for in_place in [false, true] {
        let estate = dead(PeerConfig::default(), 5, 3).await;
        match in_place {
            true => estate.peer.restart_and_keep_sessions(),
            false => estate.peer.crash_and_restart(),
        }
        let (client, taken) = estate.taken().await;
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        client.on_restart(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        all_work(&estate.peer, &client, taken, 3).await;
        assert_eq!(told.load(Ordering::Relaxed), 1, "whenever it was found");
        assert!(!estate.peer.in_grace());
    }
}

#[tokio::test(start_paused = true)]
async fn what_went_with_the_lease_is_opened_anew_and_its_locks_are_said_to_be_lost() {
    for revoked in [false, true] {
        let estate = dead(PeerConfig::default(), 3, 2).await;
        match revoked {
            true => estate.peer.revoke_state(st::EXPIRED),
            false => seconds(600).await,
        }
        let (client, taken) = estate.taken().await;
        within(60, async {
            for open in taken.opens.values() {
                write(&client, open, b"STABLE").await.expect("write");
            }
        })
        .await;
        seconds(5).await;
        let lost = taken.locks.values().filter(|lock| lock.is_lost()).count();
        assert_eq!(lost, 2, "revoked: {revoked}");
        assert!(taken.opens.values().all(|open| open.fence() <= 1));
        assert_eq!((estate.peer.open_count(), estate.peer.lock_count()), (3, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_lost_stays_lost_in_the_next_process() {
    let estate = dead(PeerConfig::default(), 1, 1).await;
    seconds(600).await;
    let (client, taken) = estate.taken().await;
    let state = client.hand_over();
    assert!(state.locks[0].lost && state.locks[0].held.is_empty());
    assert_eq!(state.opens[0].fence, 1);
    drop((client, taken));
    let (_client, taken) = try_take(&estate.peer, &state).await.expect("once more");
    assert!(taken.locks.values().all(|lock| lock.is_lost()));
    assert!(taken.opens.values().all(|open| open.fence() == 1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_waited_for_and_so_are_the_requests() {
    let estate = dead(PeerConfig::default(), 2, 1).await;
    for hangs in [false, true] {
        match hangs {
            true => estate.peer.black_hole(true),
            false => estate.peer.refuse_connections(true),
        }
        let begun = Instant::now();
        let (client, taken) = estate.taken().await;
        assert_eq!(begun.elapsed(), PATIENCE, "serves without it");
        let open = taken.opens.values().next().unwrap();
        let waits = tokio::time::timeout(Duration::from_secs(30), client.read(open, 0, 100));
        assert!(waits.await.is_err());
        estate.peer.refuse_connections(false);
        estate.peer.black_hole(false);
        let read = within(60, client.read(open, 0, 100)).await.expect("read");
        assert_eq!(&read.data[..], b"stable");
        assert!(!estate.peer.has_session(&estate.state.sessions[0]));
    }
}

/// The server does not take our credentials (RFC 5531 §9: MSG_DENIED, AUTH_ERROR).
fn denied(mut message: Vec<u8>) -> Vec<u8> {
    message.truncate(4);
    message.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5]);
    message
}

#[tokio::test(start_paused = true)]
async fn what_waiting_does_not_mend_is_told_and_the_next_one_has_all_of_it() {
    for trouble in 0..4 {
        let estate = dead(PeerConfig::default(), 2, 1).await;
        estate.peer.on_op(move |event| match (trouble, event.op) {
            (0, op::CREATE_SESSION) => Action::Rewrite(Box::new(denied)),
            (1, op::CREATE_SESSION | op::EXCHANGE_ID) => Action::Fail(st::ACCESS),
            (2, op::CREATE_SESSION | op::EXCHANGE_ID) => Action::Fail(st::MINOR_VERS_MISMATCH),
            (3, op::DESTROY_SESSION) => Action::Fail(st::PERM),
            _ => Action::Pass,
        });
        let begun = Instant::now();
        let refused = try_take(&estate.peer, &estate.state).await;
        let Err(ConnectError::Nfs(error)) = refused else {
            panic!("{trouble}: {refused:?}");
        };
        assert!(begun.elapsed() < Duration::from_secs(2), "{error}");
        seconds(1).await;
        assert_eq!(estate.peer.connection_count(), 0);
        estate.peer.clear_script();
        let (client, taken) = estate.taken().await;
        assert!(!estate.peer.has_session(&estate.state.sessions[0]));
        within(60, async {
            for open in taken.opens.values() {
                write(&client, open, b"STABLE").await.expect("write");
            }
        })
        .await;
        assert_eq!((estate.peer.open_count(), estate.peer.lock_count()), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn another_server_behind_the_name_is_not_taken_for_the_one_that_was() {
    let estate = dead(PeerConfig::default(), 2, 1).await;
    let other = Peer::new(PeerConfig {
        scope: "elsewhere",
        ..PeerConfig::default()
    });
    let refused = try_take(&other, &estate.state).await;
    let Err(ConnectError::Nfs(NfsError::Unfit(why))) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("another server"), "{why}");
    assert_eq!((other.session_count(), other.open_count()), (0, 0));
    let (client, taken) = estate.taken().await;
    all_work(&estate.peer, &client, taken, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_close_that_was_still_to_be_sent_is_sent() {
    let rig = Rig::new(PeerConfig::default()).await;
    let mut kept = Vec::new();
    for name in ["a", "b", "c"] {
        let open = rig.create(name, HowToOpen::Existing).await.unwrap();
        let lock = rig.client.prepare_lock(&open);
        let turn = lock.turn().await;
        let locked = rig.client.lock(&turn, SPAN, LockKind::Read, false).await;
        assert!(matches!(locked, Ok(Locked::Granted(_))));
        drop(turn);
        kept.push((open, lock));
    }
    rig.client.close_soon(&kept[0].0);
    rig.client.close_soon(&kept[1].0);
    let state = rig.client.hand_over();
    assert_eq!((state.opens.len(), state.closes.len()), (1, 2));
    let peer = Arc::clone(&rig.peer);
    drop((rig, kept));
    let (client, taken) = try_take(&peer, &state).await.expect("goes on");
    assert_eq!((taken.opens.len(), taken.locks.len()), (1, 1));
    assert_eq!(client.opens(), 3);
    within(60, client.closes_sent()).await;
    assert_eq!((peer.open_count(), peer.lock_count()), (1, 1));
    assert_eq!(client.opens(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_process_after_the_other_leaves_nothing_behind() {
    let mut estate = dead(PeerConfig::default(), 3, 2).await;
    for _ in 0..20 {
        let (client, taken) = estate.taken().await;
        assert_eq!((taken.opens.len(), taken.locks.len()), (3, 3));
        assert_eq!(estate.peer.session_count(), 1);
        estate.state = client.hand_over();
        assert_eq!(estate.state.sessions.len(), 1);
    }
    let (client, taken) = estate.taken().await;
    all_work(&estate.peer, &client, taken, 2).await;
}

/// Whoever takes over may die of it, and the next one begins with the same state.
#[tokio::test(start_paused = true)]
async fn a_take_over_that_ends_at_any_request_is_begun_again() {
    for restarted in [false, true] {
        for nth in 0.. {
            let estate = dead(PeerConfig::default(), 3, 2).await;
            if restarted {
                estate.peer.crash_and_restart();
            }
            let (reached, left) = (Arc::new(tokio::sync::Notify::new()), AtomicU32::new(nth));
            let dies = Arc::clone(&reached);
            estate.peer.on_op(move |_| {
                match left.fetch_sub(1, Ordering::Relaxed) {
                    0 => dies.notify_one(),
                    1.. => return Action::Pass,
                }
                Action::DropConnectionAfter
            });
            let config = client_config("one");
            let first = Client::take_over(
                estate.peer.connector(),
                config,
                Metrics::new(),
                estate.state.clone(),
            );
            let through = tokio::select! {
                biased;
                () = reached.notified() => false,
                taken = within(60, first) => taken.is_ok(),
            };
            estate.peer.clear_script();
            let (client, taken) = estate.taken().await;
            within(60, async {
                for open in taken.opens.values() {
                    write(&client, open, b"STABLE").await.expect("write");
                }
            })
            .await;
            assert_eq!(estate.peer.open_count(), 3, "{nth}, {restarted}");
            // Of what the first had reclaimed, and said so, the second cannot know that
            // nobody had it in between.
            let lost = taken.locks.values().filter(|lock| lock.is_lost()).count();
            assert!(restarted || lost == 0, "{nth}: {lost} locks are lost");
            assert!(lost + estate.peer.lock_count() >= 2, "{nth}, {restarted}");
            if through {
                assert!(nth > if restarted { 12 } else { 1 }, "only {nth}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_that_contradicts_itself_is_refused() {
    let whole = dead(PeerConfig::default(), 2, 1).await;
    let spoil: [fn(&mut ClientState); 4] = [
        |state| state.opens[0].owner = state.opens[1].owner,
        |state| state.opens[0].owner = state.next_owner,
        |state| state.locks[0].open = 1000,
        |state| state.closes = vec![state.opens[0].clone()],
    ];
    for spoil in spoil {
        let mut state = whole.state.clone();
        spoil(&mut state);
        whole.peer.clear_log();
        let refused = try_take(&whole.peer, &state).await;
        assert!(refused.is_err());
        assert_eq!(whole.peer.round_trips(), 0);
    }
}

#[test]
fn a_state_of_another_layout_is_refused_and_one_with_more_fields_is_not() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let estate = runtime.unwrap().block_on(dead(PeerConfig::default(), 1, 1));
    let mut bytes = rmp_serde::to_vec_named(&estate.state).unwrap();
    let mut more = bytes.clone();
    more[0] += 1; // fields
    more.extend(rmp_serde::to_vec("a field of a newer program").unwrap());
    more.push(7);
    let read: ClientState = rmp_serde::from_slice(&more).expect("nothing is missing");
    assert_eq!(read, estate.state);
    let name = b"layout";
    let at = bytes.windows(name.len()).position(|some| some == name);
    let layout = at.unwrap() + name.len();
    bytes[layout] += 1;
    let error = rmp_serde::from_slice::<ClientState>(&bytes).unwrap_err();
    assert!(error.to_string().contains("layout 2"), "{error}");
    bytes[layout] -= 1;
    for end in 0..bytes.len() {
        assert!(rmp_serde::from_slice::<ClientState>(&bytes[..end]).is_err());
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn every_state_is_read_as_it_was_written(
        owners in proptest::collection::vec(proptest::prelude::any::<u64>(), 0..20),
        handle in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..=128),
        other in proptest::prelude::any::<[u8; 12]>(),
        gids in proptest::collection::vec(proptest::prelude::any::<u32>(), 0..20),
        spans in proptest::collection::vec((0..1000_u64, 0..50_u64, 0..3), 0..20),
        attrs in proptest::prelude::any::<u128>(),
    ) {
        through_messagepack(&random_state(&owners, &handle, other, &gids, &spans, attrs));
    }
}

fn random_state(
    owners: &[u64],
    handle: &[u8],
    other: [u8; 12],
    gids: &[u32],
    spans: &[(u64, u64, i32)],
    attrs: u128,
) -> ClientState {
    let handle = FileHandle::try_from(Bytes::copy_from_slice(handle)).unwrap();
    let mut held = Ranges::default();
    for &(start, len, kind) in spans {
        let kind = [None, Some(LockKind::Read), Some(LockKind::Write)][kind as usize];
        let end = start + len;
        held.set(Span { start, end }, kind);
    }
    let state = |owner: &u64| {
        (!owner.is_multiple_of(3)).then_some(StateId {
            seqid: *owner as u32,
            other,
        })
    };
    let open = |owner: &u64| OpenRecord {
        owner: *owner,
        handle: handle.clone(),
        cred: Credential {
            uid: *owner as u32,
            gid: 7,
            gids: gids.to_vec(),
        },
        stateid: state(owner),
        access: 3,
        fence: *owner as u32,
        dead: owner.is_multiple_of(2),
    };
    let lock = |owner: &u64| LockRecord {
        owner: !owner,
        open: *owner,
        stateid: state(owner),
        held: held.clone(),
        lost: owner.is_multiple_of(2),
        unproved: false,
        leaving: None,
        asked: None,
    };
    ClientState {
        layout: Layout,
        identity: identity("random"),
        client_id: ClientId {
            id: u64::from_be_bytes(other[..8].try_into().unwrap()),
            sequence: gids.len() as u32,
            server: ServerId {
                major: Bytes::copy_from_slice(&other),
                minor: 0,
                scope: Bytes::new(),
                flags: u32::MAX,
            },
        },
        sessions: vec![[other[0]; 16]; owners.len() % 3],
        reclaimed: 0,
        must_reclaim: owners.len().is_multiple_of(2),
        lease: 90,
        fs: (!gids.is_empty()).then(|| FileSystem {
            root: handle.clone(),
            root_attrs: Attributes {
                present: attrs.into(),
                kind: Some(FileType::Directory),
                handle: Some(handle.clone()),
                fs: Some(Box::default()),
                ..Attributes::default()
            },
            supported: attrs.into(),
            exclcreat: (!attrs).into(),
            max_read: 1,
            max_write: 2,
            max_name: 255,
            max_file_size: u64::MAX,
        }),
        next_owner: u64::MAX,
        opens: owners.iter().map(open).collect(),
        closes: owners.iter().rev().map(open).collect(),
        locks: owners.iter().map(lock).collect(),
    }
}
