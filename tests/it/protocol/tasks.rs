//! A task of the client or the file system dies in the middle: nobody waits for ever,
//! and what it owed is given back. The points where one is made to panic exist only in
//! builds with debug assertions, as the suite's is.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::calls::HowToOpen;
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::{RpcError, Tolerance};
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::types::{Errno, MissingNames, ROOT_INO, SetAttr, SetTime, Timestamp};
use efs_fuse::vfs::{Vfs, VfsConfig};
use tokio::time::Instant;

use super::rig::{
    Mount, Rig, client_config, connect_as, default_timeouts, millis, seconds, within,
};
use crate::peer::proto::op;
use crate::peer::{Peer, PeerConfig};

const EIO: Errno = Errno(libc::EIO);

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 % 249) as u8).collect()
}

/// A client whose tasks can be made to die.
async fn rig(cfg: PeerConfig) -> (Rig, Arc<Metrics>) {
    let (peer, metrics) = (Peer::new(cfg), Metrics::new());
    let mut config = client_config("one");
    config.tolerance = Tolerance::of(Duration::from_secs(10), 2);
    let client = connect_as(&peer, config, Arc::clone(&metrics)).await;
    let rig = Rig {
        root: client.fs().root.clone(),
        peer,
        client,
        cred: Credential::machine(),
    };
    (rig, metrics)
}

async fn mount() -> (Mount, Arc<Metrics>) {
    let (rig, metrics) = rig(PeerConfig {
        readdir_page_entries: 200,
        ..PeerConfig::default()
    })
    .await;
    let config = VfsConfig {
        timeouts: default_timeouts(),
        write_window: 64 << 20,
        read_ahead: 8 << 20,
        max_names: 10_000,
        missing_names: MissingNames::AskedFor,
        max_inodes: usize::MAX,
        asks_who_searches: false,
        writeback: None,
        close_to_open: true,
    };
    let mount = Mount {
        vfs: Vfs::new(rig.client, config, Instant::now(), Arc::clone(&metrics)),
        peer: rig.peer,
        cred: rig.cred,
    };
    (mount, metrics)
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_task_dies_is_an_error_of_fsync_and_its_range_is_free_again() {
    for task in ["send_write", "send_fragments"] {
        let (mount, metrics) = mount().await;
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        let data = pattern(3 << 20);
        metrics.tasks.arm(&format!("{task}:1"));
        match task {
            "send_write" => mount.write(file, 0, &data).await.unwrap(),
            // Apart from each other, and small.
            _ => {
                for at in 0..8 {
                    mount.write(file, at << 16, &data[..100]).await.unwrap();
                }
            }
        }
        assert_eq!(within(60, mount.fsync(file)).await, Err(EIO), "{task}");
        assert_eq!(metrics.tasks.deaths(task), 1);
        assert!(metrics.last_error().is_some_and(|why| why.contains(task)));
        // Readers of the range do not wait, and it can be written again.
        within(60, mount.read(file, 0, 4096)).await.unwrap();
        within(60, mount.write(file, 0, &data)).await.unwrap();
        within(60, mount.fsync(file))
            .await
            .expect("the next one counts");
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), data);
        within(60, mount.close(file)).await.unwrap();
        assert_eq!(metrics.gauges.window_bytes.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_task_dies_is_an_error_of_fsync_and_no_wait() {
    let (mount, metrics) = mount().await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    let data = pattern(8 << 20);
    for (at, part) in data.chunks(1 << 20).enumerate() {
        mount.write(file, (at as u64) << 20, part).await.unwrap();
    }
    // All of them are at the server, unstable; what is left to do is a COMMIT.
    millis(500).await;
    metrics.tasks.arm("send_commit:1");
    assert_eq!(within(60, mount.fsync(file)).await, Err(EIO));
    assert_eq!(metrics.tasks.deaths("send_commit"), 1);
    within(60, mount.write(file, 0, &data)).await.unwrap();
    within(60, mount.fsync(file))
        .await
        .expect("the next one counts");
    within(60, mount.close(file)).await.unwrap();
    assert!(!mount.peer.fs().has_unstable("/f").unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_timer_of_the_pipeline_that_dies_is_set_again() {
    let (mount, metrics) = mount().await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    metrics.tasks.arm("wake_at:1");
    mount.write(file, 0, b"lingers").await.unwrap();
    seconds(60).await;
    assert_eq!(metrics.tasks.deaths("wake_at"), 1);
    assert_eq!(mount.peer.fs().read_file("/f").unwrap(), b"lingers");
    within(60, mount.close(file)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn changes_of_attributes_whose_task_dies_are_sent_again() {
    let (mount, metrics) = mount().await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR | libc::O_EXCL);
    let file = file.await.unwrap();
    metrics.tasks.arm("deferred_setattr:1");
    let then = Timestamp {
        sec: 1_000_000_000,
        nsec: 0,
    };
    let set = SetAttr {
        mtime: Some(SetTime::At(then)),
        ..SetAttr::default()
    };
    let set = mount.vfs.setattr(&mount.cred, file.ino, Some(file.fh), set);
    within(60, set).await.unwrap();
    seconds(2).await;
    assert_eq!(metrics.tasks.deaths("deferred_setattr"), 1);
    let stat = mount.peer.fs().stat("/f").unwrap();
    assert_eq!(stat.mtime.secs, then.sec);
    within(60, mount.close(file)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_is_read_ahead_reads_for_himself_when_that_dies() {
    let (mount, metrics) = mount().await;
    let data = pattern(16 << 20);
    mount.peer.fs().write_file("/f", &data).unwrap();
    let ino = mount.walk("/f").await.unwrap();
    let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
    metrics.tasks.arm("fetch:1,fetch:3");
    for at in (0..data.len()).step_by(128 << 10) {
        let part = within(60, mount.read(file, at as u64, 128 << 10)).await;
        assert!(part.unwrap() == data[at..at + (128 << 10)]);
    }
    assert_eq!(metrics.tasks.deaths("fetch"), 2);
    mount.release(file).await;
}

#[tokio::test(start_paused = true)]
async fn a_listing_whose_next_page_dies_on_its_way_is_whole() {
    let (mount, metrics) = mount().await;
    for number in 0..3000 {
        let name = format!("/a-rather-long-name-of-a-file-{number}");
        mount.peer.fs().write_file(&name, b"").unwrap();
    }
    metrics.tasks.arm("ask_page:1");
    let names = within(60, mount.list(ROOT_INO, false)).await.unwrap();
    assert_eq!(names.len(), 3000);
    assert_eq!(metrics.tasks.deaths("ask_page"), 1);
}

#[tokio::test(start_paused = true)]
async fn closes_whose_task_dies_are_sent_again_and_are_given_up_after_some_times() {
    for (dies, left) in [("send_deferred_setattr:1", 0), ("send_together:1+", 7)] {
        let (rig, metrics) = rig(PeerConfig::default()).await;
        metrics.tasks.arm(dies);
        let mut opens = Vec::new();
        for number in 0..7 {
            let open = rig
                .create(&format!("f{number}"), HowToOpen::Exclusive)
                .await;
            opens.push(open.unwrap());
        }
        for open in &opens {
            rig.client.close_soon(open);
        }
        within(60, rig.client.closes_sent()).await;
        assert_eq!(rig.client.opens(), 0, "{dies}");
        assert_eq!(rig.peer.open_count(), left, "{dies}");
        assert_eq!(metrics.gauges.closes_pending.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_timer_of_closes_that_dies_is_set_again() {
    let (rig, metrics) = rig(PeerConfig::default()).await;
    metrics.tasks.arm("look_after:1");
    let open = rig.create("f", HowToOpen::Exclusive).await.unwrap();
    rig.client.close_soon(&open);
    seconds(5).await;
    assert_eq!(metrics.tasks.deaths("look_after"), 1);
    assert_eq!(rig.peer.open_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_lease_is_kept_although_its_renewal_dies_again_and_again() {
    let (rig, metrics) = rig(PeerConfig {
        lease_s: 10,
        ..PeerConfig::default()
    })
    .await;
    let open = rig.create("f", HowToOpen::Existing).await.unwrap();
    metrics.tasks.arm("renew:1,renew:2,renew:4,renew:9");
    seconds(300).await;
    rig.lookup("f").await.expect("lookup");
    assert_eq!(metrics.tasks.deaths("renew"), 4);
    assert_eq!(rig.peer.count_op(op::EXCHANGE_ID), 1, "the state was kept");
    assert_eq!(rig.peer.open_count(), 1);
    rig.client.close(&open).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_dies_is_begun_again_and_one_that_always_does_is_an_error() {
    for (dies, back) in [
        ("rebuild:1", true),
        ("rebuild:1+", false),
        ("recover:1", false),
    ] {
        let (rig, metrics) = rig(PeerConfig::default()).await;
        metrics.tasks.arm(dies);
        rig.peer.destroy_sessions();
        let answer = within(60, rig.mkdir("d")).await;
        assert_eq!(answer.is_ok(), back, "{dies}: {answer:?}");
        assert_eq!(metrics.tasks.has_ended(), !back, "{dies}");
        if !back {
            let died = metrics.tasks.ended().await;
            assert_eq!(died.task, "recover");
            assert_eq!(rig.client.session_info().state, "down");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_task_dies_is_replaced_and_its_calls_go_out_again() {
    let (rig, metrics) = rig(PeerConfig::default()).await;
    metrics.tasks.arm("connection:2,connection:4");
    for number in 0..5 {
        within(60, rig.mkdir(&format!("d{number}"))).await.unwrap();
    }
    assert_eq!(metrics.tasks.deaths("connection"), 2);
    assert!(!metrics.tasks.has_ended());
    assert_eq!(rig.peer.count_op(op::EXCHANGE_ID), 1);
    assert_eq!(metrics.gauges.connections.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_that_all_die_and_a_supervisor_that_does_are_an_error_for_every_call() {
    for dies in ["connection:1+", "supervise:1"] {
        let (rig, metrics) = rig(PeerConfig::default()).await;
        metrics.tasks.arm(dies);
        if dies.starts_with("supervise") {
            rig.peer.cut_all_connections();
        }
        let answer = within(60, rig.mkdir("d")).await;
        assert!(answer.is_err(), "{dies}");
        assert_eq!(metrics.tasks.ended().await.task, "supervise", "{dies}");
        let again = within(60, rig.lookup("d")).await;
        let closed = again.expect_err("nobody sends it").to_string();
        assert!(closed.contains(&RpcError::Closed.to_string()), "{closed}");
        assert_eq!(metrics.gauges.connections.get(), 0, "{dies}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_told_of_although_the_watch_on_it_has_died() {
    let (rig, metrics) = rig(PeerConfig::default()).await;
    metrics.tasks.arm("watch_responses:1");
    seconds(60).await;
    assert_eq!(metrics.tasks.deaths("watch_responses"), 1);
    rig.peer.set_latency(Duration::from_secs(120));
    let asked = {
        let client = Arc::clone(&rig.client);
        let (cred, root) = (Arc::clone(&rig.cred), rig.root.clone());
        tokio::spawn(async move { client.lookup(&cred, &root, b"x").await.map(drop) })
    };
    seconds(60).await;
    assert!(rig.client.channel().link().silent_since.is_some());
    rig.peer.set_latency(Duration::ZERO);
    within(600, asked).await.expect("it runs").expect("lookup");
}
