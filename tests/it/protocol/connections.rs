//! One session over several connections (RFC 8881 §2.10.5): how they come and go, and
//! what is left to notice when one of them breaks.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::proto::types::FileHandle;
use efs_fuse::rpc::Connections;
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::types::ROOT_INO;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::rig::{
    Mount, Rig, client_config, connect_as, default_timeouts, join_all, millis, once_at, seconds,
    within,
};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Executed, Peer, PeerConfig};

const FIVE: Connections = Connections { least: 5, most: 5 };
const UP_TO_FIVE: Connections = Connections { least: 1, most: 5 };
const MIB: usize = 1 << 20;

/// A server on which a connection must be bound before it is used.
fn strict() -> PeerConfig {
    PeerConfig {
        implicit_bind: false,
        latency: Duration::from_millis(2),
        ..PeerConfig::default()
    }
}

async fn until_connections(peer: &Peer, count: usize) {
    within(120, async {
        while peer.connection_count() != count {
            millis(10).await;
        }
    })
    .await;
}

async fn five(cfg: PeerConfig) -> Rig {
    let rig = Rig::with(cfg, FIVE).await;
    until_connections(&rig.peer, 5).await;
    // Greeted means bound, and the last of them may still be at it.
    seconds(1).await;
    rig
}

fn mount_of(rig: &Rig) -> Mount {
    Mount::over(&rig.client, &rig.peer, default_timeouts(), 64 << 20)
}

fn block(number: usize) -> Vec<u8> {
    (0..MIB).map(|i| (i / 7 + number) as u8).collect()
}

/// Writes blocks to `/f`, all at once, syncs, and looks at what the server has.
async fn copy(mount: &Mount, blocks: usize) {
    within(600, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        for number in 0..blocks {
            let at = (number * MIB) as u64;
            mount.write(file, at, &block(number)).await.unwrap();
        }
        mount.fsync(file).await.unwrap();
        mount.close(file).await.unwrap();
    })
    .await;
    let data = mount.peer.fs().read_file("/f").unwrap();
    assert_eq!(data.len(), blocks * MIB);
    for (number, found) in data.chunks(MIB).enumerate() {
        assert!(found == block(number), "block {number} differs");
    }
}

fn carried(log: &[Executed], number: u32) -> BTreeSet<u64> {
    let with = log.iter().filter(|entry| entry.ops.contains(&number));
    with.map(|entry| entry.conn_id).collect()
}

#[tokio::test(start_paused = true)]
async fn each_connection_is_bound_to_the_session_and_all_of_them_carry_data() {
    let rig = five(strict()).await;
    assert_eq!(rig.peer.count_op(op::BIND_CONN_TO_SESSION), 4);
    assert_eq!(rig.client.channel().connections().len(), 5);
    copy(&mount_of(&rig), 64).await;
    let log = rig.peer.log();
    assert!(
        log.iter().all(|entry| entry
            .statuses
            .iter()
            .all(|status| *status != st::CONN_NOT_BOUND_TO_SESSION)),
        "nothing went over a connection that was not bound"
    );
    assert_eq!(carried(&log, op::WRITE).len(), 4);
    assert_eq!(rig.peer.session_count(), 1);
    assert_eq!(rig.peer.connections().len(), 5, "the same five");
    rig.client.shut_down(Duration::from_secs(2)).await;
    until_connections(&rig.peer, 0).await;
    assert_eq!(rig.peer.session_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_connection_is_one_connection_whatever_it_carries() {
    let rig = Rig::new(strict()).await;
    let first = rig.peer.connections();
    rig.peer.set_latency(Duration::from_millis(200));
    copy(&mount_of(&rig), 200).await;
    seconds(600).await;
    assert_eq!(rig.peer.connections(), first);
    assert_eq!(rig.peer.count_op(op::BIND_CONN_TO_SESSION), 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_to_bind_is_asked_once_and_used_with_one_connection() {
    for status in [st::NOTSUPP, st::ACCESS] {
        let peer = Peer::new(strict());
        peer.on_op(move |event| match event.op {
            op::BIND_CONN_TO_SESSION => Action::Fail(status),
            _ => Action::Pass,
        });
        let config = efs_fuse::nfs::ClientConfig {
            connections: FIVE,
            ..client_config("one")
        };
        let client = connect_as(&peer, config, Metrics::new()).await;
        let mount = Mount::over(&client, &peer, default_timeouts(), 64 << 20);
        seconds(1000).await;
        copy(&mount, 64).await;
        assert_eq!(peer.count_op(op::BIND_CONN_TO_SESSION), 1);
        assert_eq!(peer.connection_count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn another_server_behind_the_same_name_is_not_taken_for_a_lost_session() {
    let peer = Peer::new(PeerConfig::default());
    peer.on_op(|event| match event.op {
        op::BIND_CONN_TO_SESSION => Action::Fail(st::BADSESSION),
        _ => Action::Pass,
    });
    let metrics = Metrics::new();
    let config = efs_fuse::nfs::ClientConfig {
        connections: FIVE,
        ..client_config("one")
    };
    let client = connect_as(&peer, config, Arc::clone(&metrics)).await;
    let mount = Mount::over(&client, &peer, default_timeouts(), 64 << 20);
    seconds(1000).await;
    copy(&mount, 64).await;
    assert_eq!(metrics.recoveries.get(), 0);
    assert_eq!(peer.connection_count(), 1);
    let asked = peer.count_op(op::BIND_CONN_TO_SESSION);
    assert!((2..=40).contains(&asked), "{asked} times in 1000 s");
    // It may have been a moment's trouble of the server.
    peer.clear_script();
    until_connections(&peer, 5).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_five_that_is_cut_costs_no_error_and_is_replaced_alone() {
    let rig = five(strict()).await;
    let before = rig.peer.connections();
    let victim: Arc<Mutex<Option<u64>>> = Arc::default();
    let chosen = Arc::clone(&victim);
    let mut writes = 0;
    rig.peer.on_op(move |event| {
        if event.op != op::WRITE {
            return Action::Pass;
        }
        writes += 1;
        match writes {
            // The writes that are under way on it by then run to their end; their
            // replies are lost.
            20 => {
                *chosen.lock() = Some(event.conn_id);
                Action::DropConnectionAfter
            }
            _ => Action::Delay(Duration::from_millis(5)),
        }
    });
    rig.peer.clear_log();
    copy(&mount_of(&rig), 200).await;
    let victim = victim.lock().expect("twenty writes");
    until_connections(&rig.peer, 5).await;
    let after = rig.peer.connections();
    let kept: Vec<_> = after.iter().filter(|id| before.contains(id)).collect();
    assert_eq!(kept.len(), 4, "the others go on: {before:?}, {after:?}");
    assert!(!after.contains(&victim));

    // What was on it went out again elsewhere, in the same slots; nothing else did.
    let log = rig.peer.log();
    let mut sent: HashMap<_, Vec<u64>> = HashMap::new();
    for entry in log.iter().filter(|entry| entry.ops.contains(&op::WRITE)) {
        let request = (entry.slot, entry.seqid);
        sent.entry(request).or_default().push(entry.conn_id);
    }
    sent.retain(|_, over| over.len() > 1);
    assert!(!sent.is_empty(), "something was under way");
    for over in sent.values() {
        assert!(over.contains(&victim), "{over:?}, but {victim} was cut");
    }
    assert_eq!(rig.client.session_info().in_use, 0);
}

#[tokio::test(start_paused = true)]
async fn what_must_run_once_is_replayed_on_any_connection_that_lives() {
    let rig = five(strict()).await;
    // None can be made in its place.
    rig.peer.refuse_connections(true);
    for (number, left) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
        once_at(&rig.peer, op::CREATE, Action::DropConnectionAfter);
        rig.peer.clear_log();
        let begun = Instant::now();
        let name = format!("d{number}");
        within(10, rig.mkdir(&name)).await.expect("made once");
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "no wait for a new connection"
        );
        assert_eq!(rig.peer.connection_count(), left);
        let log = rig.peer.log();
        let creates: Vec<_> = log.iter().filter(|e| e.ops.contains(&op::CREATE)).collect();
        assert_eq!(creates.len(), 2);
        assert!(!creates[0].replayed && creates[1].replayed);
        assert_eq!(creates[0].seqid, creates[1].seqid);
        assert_ne!(creates[0].conn_id, creates[1].conn_id);
    }
    rig.peer.clear_script();
    rig.peer.refuse_connections(false);
    until_connections(&rig.peer, 5).await;
}

#[tokio::test(start_paused = true)]
async fn garbage_on_one_connection_ends_that_one_only() {
    let rig = five(strict()).await;
    let before = rig.peer.connections();
    once_at(&rig.peer, op::CREATE, Action::Garble);
    within(10, rig.mkdir("d")).await.expect("made once");
    seconds(5).await;
    let after = rig.peer.connections();
    let kept = after.iter().filter(|id| before.contains(id)).count();
    assert_eq!((kept, after.len()), (4, 5));
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_given_up_and_those_that_answer_are_kept() {
    let rig = five(PeerConfig::default()).await;
    let before = rig.peer.connections();
    let object = rig.mkdir("object").await.unwrap();
    let silent = before[0];
    rig.peer.on_op(move |event| match event.conn_id == silent {
        true => Action::SwallowReply,
        false => Action::Pass,
    });
    let work = async {
        let begun = Instant::now();
        rig.mkdir("d").await.expect("made once");
        begun.elapsed()
    };
    let (waited, ()) = tokio::join!(within(60, work), async {
        // Something is heard on each of the others all the time.
        for _ in 0..140 {
            for _ in 0..16 {
                let (client, cred) = (Arc::clone(&rig.client), Arc::clone(&rig.cred));
                let object = object.clone();
                tokio::spawn(async move { client.get_attrs(&cred, &object).await });
            }
            millis(100).await;
        }
    });
    assert!((14..18).contains(&waited.as_secs()), "{waited:?}");
    seconds(5).await;
    let after = rig.peer.connections();
    let kept: Vec<_> = after.iter().filter(|id| before.contains(id)).collect();
    assert_eq!((after.len(), kept.len()), (5, 4), "{before:?}, {after:?}");
    assert!(!after.contains(&silent));
}

#[tokio::test(start_paused = true)]
async fn when_all_are_dead_without_a_word_that_is_found_as_soon_as_with_one() {
    let rig = five(PeerConfig::default()).await;
    let dead: BTreeSet<u64> = rig.peer.connections().into_iter().collect();
    rig.peer
        .on_op(move |event| match dead.contains(&event.conn_id) {
            true => Action::SwallowReply,
            false => Action::Pass,
        });
    // Longer than a connection may be silent, and before the lease is renewed.
    seconds(20).await;
    let begun = Instant::now();
    within(300, rig.mkdir("d")).await.expect("made once");
    let waited = begun.elapsed();
    assert!((14..20).contains(&waited.as_secs()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn connections_are_made_when_there_is_much_to_carry_and_let_go_when_idle() {
    let rig = Rig::with(strict(), UP_TO_FIVE).await;
    let metrics_before = rig.client.channel().link().connections;
    seconds(10).await;
    assert_eq!((rig.peer.connection_count(), metrics_before), (1, 1));
    rig.peer.set_latency(Duration::from_millis(300));
    let small = (0..200).map(|number| {
        let (rig, name) = (&rig, format!("d{number}"));
        async move { rig.mkdir(&name).await.map(drop) }
    });
    for made in join_all(small).await {
        made.expect("mkdir");
    }
    assert_eq!(rig.peer.connection_count(), 1, "no data, no need");
    let mount = mount_of(&rig);
    copy(&mount, 400).await;
    until_connections(&rig.peer, 5).await;
    seconds(30).await;
    assert_eq!(rig.peer.connection_count(), 5, "there may be more to come");
    seconds(60).await;
    assert_eq!(rig.peer.connection_count(), 1);
    assert_eq!(rig.client.channel().link().connections, 5);
    assert!(rig.client.channel().link().last_error.is_none(), "no loss");
    rig.mkdir("after").await.expect("mkdir");
}

#[tokio::test(start_paused = true)]
async fn small_requests_never_stand_behind_data() {
    let rig = five(strict()).await;
    let mount = mount_of(&rig);
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    rig.peer.clear_log();
    rig.peer.on_op(|event| match event.op {
        op::WRITE => Action::Delay(Duration::from_secs(5)),
        _ => Action::Pass,
    });
    for number in 0..40 {
        let at = (number * MIB) as u64;
        mount.write(file, at, &block(number)).await.unwrap();
    }
    seconds(1).await;
    for number in 0..20 {
        within(1, rig.mkdir(&format!("d{number}"))).await.unwrap();
    }
    within(60, mount.fsync(file)).await.unwrap();
    let log = rig.peer.log();
    let (data, small) = (carried(&log, op::WRITE), carried(&log, op::CREATE));
    assert!(data.is_disjoint(&small), "{data:?}, {small:?}");
    assert_eq!(data.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_takes_its_connections_with_it_and_the_next_has_as_many() {
    let losses: [fn(&Peer); 3] = [
        Peer::destroy_sessions,
        Peer::crash_and_restart,
        Peer::expire_clients,
    ];
    for lose in losses {
        let rig = five(strict()).await;
        let mount = mount_of(&rig);
        lose(&rig.peer);
        copy(&mount, 64).await;
        until_connections(&rig.peer, 5).await;
        seconds(2).await;
        rig.peer.clear_log();
        copy(&mount_again(&rig).await, 64).await;
        let log = rig.peer.log();
        assert_eq!(carried(&log, op::WRITE).len(), 4);
        assert!(
            log.iter()
                .flat_map(|entry| &entry.statuses)
                .all(|status| *status != st::CONN_NOT_BOUND_TO_SESSION)
        );
        assert_eq!(rig.peer.session_count(), 1);
    }
}

/// Another view of the same mount, where `f` is not there yet.
async fn mount_again(rig: &Rig) -> Mount {
    rig.remove("f").await.expect("what was copied before");
    mount_of(rig)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_idle_connections_is_not_hammered() {
    let rig = five(strict()).await;
    // Whatever is made ends before it has carried anything.
    let kept = rig.peer.connections()[0];
    let begun = rig.client.channel().link().connections;
    for _ in 0..600 {
        for id in rig.peer.connections() {
            if id != kept {
                rig.peer.cut_connection(id);
            }
        }
        seconds(1).await;
    }
    let made = rig.client.channel().link().connections - begun;
    assert!((4..120).contains(&made), "{made} in 600 s");
    assert!(rig.peer.connections().contains(&kept));
    let _: FileHandle = rig.mkdir("d").await.expect("mkdir");
}
