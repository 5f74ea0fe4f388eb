//! CLOSEs go together, and none is lost on the way.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::Client;
use efs_fuse::nfs::calls::HowToOpen;
use efs_fuse::nfs::proto::reply::NfsError;
use efs_fuse::nfs::state::OpenState;
use efs_fuse::rpc::auth::Credential;

use efs_fuse::vfs::types::ROOT_INO;

use super::rig::{Mount, Rig, connect, millis, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

async fn opened(rig: &Rig, count: usize) -> Vec<Arc<OpenState>> {
    let mut opens = Vec::new();
    for number in 0..count {
        let name = format!("f{number}");
        opens.push(rig.create(&name, HowToOpen::Exclusive).await.expect("open"));
    }
    rig.peer.clear_log();
    opens
}

/// How many CLOSEs each compound had, and how many of them were OK.
fn batches(peer: &Peer) -> Vec<(usize, usize)> {
    let log = peer.log();
    let mut batches = Vec::new();
    for entry in log.iter().filter(|entry| entry.ops.contains(&op::CLOSE)) {
        let closes = entry.ops.iter().filter(|&&op| op == op::CLOSE).count();
        let pairs = entry.ops.iter().zip(&entry.statuses);
        let done = pairs.filter(|(op, status)| **op == op::CLOSE && **status == 0);
        batches.push((closes, done.count()));
    }
    batches
}

#[tokio::test(start_paused = true)]
async fn seven_files_are_closed_in_one_round_trip_without_waiting() {
    let rig = Rig::new(PeerConfig::default()).await;
    for open in opened(&rig, 7).await {
        rig.client.close_soon(&open);
    }
    millis(20).await;
    assert_eq!(batches(&rig.peer), [(7, 7)]);
    assert_eq!((rig.peer.open_count(), rig.client.opens()), (0, 0));
    assert_eq!(rig.peer.max_ops_seen(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_file_without_company_is_closed_after_a_moment() {
    let rig = Rig::new(PeerConfig::default()).await;
    for round in 0..3 {
        let opens = opened(&rig, 1 + round).await;
        for open in &opens {
            rig.client.close_soon(open);
            millis(20).await;
        }
        assert_eq!(batches(&rig.peer), [], "they wait");
        assert_eq!(rig.client.opens(), opens.len());
        millis(400).await;
        assert_eq!(batches(&rig.peer), [(1 + round, 1 + round)]);
        assert_eq!((rig.peer.open_count(), rig.client.opens()), (0, 0));
        for number in 0..=round {
            rig.remove(&format!("f{number}")).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_that_is_refused_keeps_none_behind_it_open() {
    for bad in 0..7 {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 7).await;
        let mut seen = 0;
        rig.peer.on_op(move |event| {
            seen += usize::from(event.op == op::CLOSE);
            match event.op == op::CLOSE && seen == bad + 1 {
                true => Action::FailAfter(st::BAD_STATEID),
                false => Action::Pass,
            }
        });
        for open in &opens {
            rig.client.close_soon(open);
        }
        within(60, rig.client.closes_sent()).await;
        assert_eq!(rig.peer.open_count(), 0, "number {bad} refused");
        assert_eq!(rig.client.opens(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_put_off_is_asked_for_again_and_nothing_else_is() {
    for put_off in 0..7 {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 7).await;
        let mut seen = 0;
        rig.peer.on_op(move |event| {
            seen += usize::from(event.op == op::CLOSE);
            match event.op == op::CLOSE && seen == put_off + 1 {
                true => Action::Fail(st::DELAY),
                false => Action::Pass,
            }
        });
        for open in &opens {
            rig.client.close_soon(open);
        }
        within(60, rig.client.closes_sent()).await;
        assert_eq!(rig.peer.open_count(), 0);
        let done: usize = batches(&rig.peer).iter().map(|(_, done)| done).sum();
        assert_eq!(done, 7);
        assert_eq!(batches(&rig.peer).len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_reply_is_lost_closes_each_file_once() {
    for action in [
        || Action::DropConnectionAfter,
        || Action::DropConnectionBefore,
    ] {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 7).await;
        once_at(&rig.peer, op::CLOSE, action());
        for open in &opens {
            rig.client.close_soon(open);
        }
        within(60, rig.client.closes_sent()).await;
        assert_eq!(rig.peer.open_count(), 0);
        let failed = rig
            .peer
            .log()
            .iter()
            .filter(|entry| entry.statuses.iter().any(|&status| status != 0))
            .count();
        assert_eq!(failed, 0, "none was closed twice");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_server_leaves_nothing_to_be_closed() {
    let rig = Rig::new(PeerConfig::default()).await;
    let opens = opened(&rig, 5).await;
    for open in &opens {
        rig.client.close_soon(open);
    }
    rig.peer.crash_and_restart();
    within(600, rig.client.closes_sent()).await;
    assert_eq!((rig.peer.open_count(), rig.client.opens()), (0, 0));
}

/// Such a server does not find a removed file again, not even to close it.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_removed_or_replaced_right_after_its_close_is_closed_before() {
    for replaced in [false, true] {
        let mount = Mount::new(PeerConfig {
            keep_unlinked: false,
            ..PeerConfig::default()
        })
        .await;
        let peer = &mount.peer;
        peer.fs().write_file("/other", b"other").unwrap();
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, b"data").await.unwrap();
        mount.close(file).await.unwrap();
        if replaced {
            let rename = mount.rename((ROOT_INO, "other"), (ROOT_INO, "f"));
            within(60, rename).await.unwrap();
        } else {
            within(60, mount.unlink(ROOT_INO, "f")).await.unwrap();
        }
        millis(400).await;
        assert_eq!(peer.open_count(), 0, "replaced: {replaced}");
        assert_eq!(mount.vfs.client().opens(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn two_users_are_not_closed_in_one_compound() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().chmod("/", 0o777).unwrap();
    let client = connect(&peer, "one").await;
    let mut opens = Vec::new();
    for (number, uid) in [1000, 1001, 1000, 1001].into_iter().enumerate() {
        let file = create_as(&client, uid, &format!("f{number}")).await;
        opens.push(file.expect("create"));
    }
    opens.iter().for_each(|open| client.close_soon(open));
    peer.clear_log();
    within(60, client.closes_sent()).await;
    assert_eq!(batches(&peer), [(2, 2), (2, 2)]);
    let mut uids: Vec<u32> = peer.log().iter().map(|entry| entry.uid).collect();
    uids.sort_unstable();
    assert_eq!(uids, [1000, 1001]);
    assert_eq!(peer.open_count(), 0);
}

async fn create_as(client: &Arc<Client>, uid: u32, name: &str) -> Result<Arc<OpenState>, NfsError> {
    let cred = Arc::new(Credential {
        uid,
        gid: uid,
        gids: Vec::new(),
    });
    let root = client.fs().root.clone();
    let how = HowToOpen::Exclusive;
    client
        .create(&cred, &root, name.as_bytes(), 1, 0o644, how)
        .await
        .map(|file| file.open)
}

#[tokio::test(start_paused = true)]
async fn a_close_goes_along_with_the_next_open_of_the_same_user_and_of_nobody_else() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().chmod("/", 0o777).unwrap();
    let client = connect(&peer, "one").await;
    let first = create_as(&client, 1000, "a").await.unwrap();
    client.close_soon(&first);
    peer.clear_log();
    create_as(&client, 1001, "b").await.unwrap();
    assert_eq!(batches(&peer), []);
    create_as(&client, 1000, "c").await.unwrap();
    assert_eq!(batches(&peer), [(1, 1)]);
    assert_eq!((peer.round_trips(), client.opens()), (2, 2));
}

/// The CLOSE in front of an OPEN refused, put off, and with its reply lost: the file is
/// opened, at once, and made only once.
#[tokio::test(start_paused = true)]
async fn a_close_in_front_of_an_open_never_changes_what_becomes_of_that() {
    for case in 0..6 {
        let rig = Rig::new(PeerConfig::default()).await;
        let peer = &rig.peer;
        for open in opened(&rig, 2).await {
            rig.client.close_soon(&open);
        }
        match case {
            0 => once_at(peer, op::CLOSE, Action::FailAfter(st::BAD_STATEID)),
            1 => once_at(peer, op::CLOSE, Action::Fail(st::DELAY)),
            2 => once_at(peer, op::OPEN, Action::DropConnectionAfter),
            3 => once_at(peer, op::CLOSE, Action::DropConnectionBefore),
            4 => once_at(peer, op::OPEN, Action::Fail(st::DELAY)),
            _ => once_at(peer, op::OPEN, Action::Fail(st::ACCESS)),
        }
        let begun = tokio::time::Instant::now();
        let made = within(60, rig.create("new", HowToOpen::Exclusive)).await;
        if case < 2 {
            assert_eq!(begun.elapsed(), Duration::ZERO, "case {case}: waited");
        }
        assert_eq!(made.is_ok(), case < 5, "case {case}: {made:?}");
        within(60, rig.client.closes_sent()).await;
        let left = usize::from(case < 5);
        assert_eq!(
            (peer.open_count(), rig.client.opens()),
            (left, left),
            "case {case}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_with_short_compounds_closes_fewer_at_once() {
    let rig = Rig::new(PeerConfig {
        max_ops: 10,
        ..PeerConfig::default()
    })
    .await;
    for open in opened(&rig, 9).await {
        rig.client.close_soon(&open);
    }
    within(60, rig.client.closes_sent()).await;
    assert_eq!(rig.peer.open_count(), 0);
    assert!(batches(&rig.peer).iter().all(|(closes, _)| *closes <= 4));
}

#[tokio::test(start_paused = true)]
async fn files_are_not_opened_faster_than_they_can_be_closed() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.on_op(|event| match event.op {
        op::CLOSE => Action::Fail(st::DELAY),
        _ => Action::Pass,
    });
    let opening = async {
        for number in 0..1_100 {
            let name = format!("f{number}");
            let open = rig.create(&name, HowToOpen::Exclusive).await.expect("open");
            rig.client.close_soon(&open);
        }
    };
    let stuck = tokio::time::timeout(Duration::from_secs(120), opening).await;
    assert!(stuck.is_err(), "opens went on");
    assert_eq!(rig.client.opens(), 1024);
    rig.peer.clear_script();
    within(60, rig.create("one more", HowToOpen::Exclusive))
        .await
        .expect("open");
}

/// The CLOSE that goes in front of a REMOVE, refused, put off, and with its reply
/// lost: the REMOVE runs once, and its result is told.
#[tokio::test(start_paused = true)]
async fn a_close_in_front_of_a_removal_never_changes_what_becomes_of_that() {
    for case in 0..5 {
        let mount = Mount::new(PeerConfig::default()).await;
        let peer = &mount.peer;
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        mount.close(file).await.unwrap();
        peer.clear_log();
        match case {
            0 => once_at(peer, op::CLOSE, Action::FailAfter(st::BAD_STATEID)),
            1 => once_at(peer, op::CLOSE, Action::Fail(st::DELAY)),
            2 => once_at(peer, op::REMOVE, Action::DropConnectionAfter),
            3 => once_at(peer, op::REMOVE, Action::Fail(st::DELAY)),
            _ => peer.destroy_sessions(),
        }
        within(60, mount.unlink(ROOT_INO, "f"))
            .await
            .unwrap_or_else(|error| panic!("case {case}: {error:?}"));
        within(60, mount.vfs.client().closes_sent()).await;
        assert!(!peer.fs().exists("/f"));
        assert_eq!(peer.open_count(), 0, "case {case}");
        assert_eq!(mount.vfs.client().opens(), 0, "case {case}");
        let first = peer.log().iter().find(|entry| entry.ops.len() > 2).cloned();
        let first = first.map(|entry| entry.ops);
        let both = [op::CLOSE, op::REMOVE];
        assert!(
            first.is_some_and(|ops| both.iter().all(|op| ops.contains(op))),
            "one compound"
        );
    }
}
