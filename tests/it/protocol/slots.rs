//! The slot table under load: as many requests at once as there are slots, and
//! always one for what keeps the session alive.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use efs_fuse::nfs::calls::HowToOpen;
use efs_fuse::nfs::proto::types::Stable;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::rig::{Rig, millis, seconds, within};

use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

/// Counts how many requests are at the server at once.
fn watch_load(peer: &Peer) -> Arc<Mutex<(usize, usize, u32)>> {
    let seen = Arc::new(Mutex::new((0, 0, 0)));
    let load = Arc::clone(&seen);
    peer.on_op(move |event| {
        let mut load = load.lock();
        match event.op {
            op::SEQUENCE => {
                load.0 += 1;
                load.1 = load.1.max(load.0);
                load.2 = load.2.max(event.slot.unwrap_or(0));
                Action::Delay(Duration::from_millis(10))
            }
            // The last operation of a LOOKUP and of a lone GETATTR.
            _ if event.op_index + 1 == event.compound.len() => {
                load.0 -= 1;
                Action::Pass
            }
            _ => Action::Pass,
        }
    });
    seen
}

async fn many_getattrs(rig: &Rig, count: usize) {
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let (client, cred, root) = (rig.client.clone(), rig.cred.clone(), rig.root.clone());
        calls.spawn(async move { client.get_attrs(&cred, &root).await });
    }
    for result in calls.join_all().await {
        result.expect("getattr");
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_requests_run_at_once_as_there_are_slots_but_the_one_kept_back() {
    for slots in [1, 2, 5, 64] {
        let rig = Rig::new(PeerConfig {
            slots,
            ..PeerConfig::default()
        })
        .await;
        let load = watch_load(&rig.peer);
        within(60, many_getattrs(&rig, 300)).await;
        let most = if slots == 1 { 1 } else { slots as usize - 1 };
        assert_eq!(load.lock().1, most);
        assert!(load.lock().2 < slots);
    }
}

#[tokio::test(start_paused = true)]
async fn the_table_shrinks_to_one_slot_and_grows_again_under_load() {
    let rig = Rig::new(PeerConfig::default()).await;
    let load = watch_load(&rig.peer);
    within(600, async {
        tokio::join!(many_getattrs(&rig, 6000), async {
            for target in [63, 7, 0, 31, 0, 63, 2] {
                millis(100).await;
                rig.peer.set_target_highest_slotid(Some(target));
                // Requests that hold higher slots have ended by then.
                millis(40).await;
                {
                    let mut load = load.lock();
                    (load.1, load.2) = (0, 0);
                }
                millis(100).await;
                let (_, most, highest) = *load.lock();
                assert!(highest <= target, "slot {highest} used, {target} wanted");
                assert!(most > 0, "no requests at a target of {target}");
            }
            rig.peer.set_target_highest_slotid(None);
        });
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_cut_without_a_word_is_found_out_and_got_over() {
    let rig = Rig::new(PeerConfig::default()).await;
    watch_load(&rig.peer);
    within(600, async {
        tokio::join!(many_getattrs(&rig, 1000), async {
            millis(50).await;
            rig.peer.set_slot_table(3);
        });
        many_getattrs(&rig, 100).await;
    })
    .await;
}

/// READs that never end.
async fn hung_reads(rig: &Rig, count: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let open = rig.create("f", HowToOpen::Existing).await.unwrap();
    let data = [Bytes::from_static(b"data")];
    let written = rig.client.write(&open, 0, 0, Stable::FileSync, &data);
    written.await.unwrap();
    rig.peer.on_op(|event| match event.op {
        op::READ => Action::Hang,
        _ => Action::Pass,
    });
    (0..count)
        .map(|_| {
            let (client, open) = (Arc::clone(&rig.client), Arc::clone(&open));
            tokio::spawn(async move {
                let _ = client.read(&open, 0, 4).await;
            })
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn data_that_hang_leave_room_for_names_and_for_the_lease() {
    let rig = Rig::new(PeerConfig {
        slots: 8,
        ..PeerConfig::default()
    })
    .await;
    let reads = hung_reads(&rig, 100).await;
    millis(10).await;
    within(5, rig.mkdir("d")).await.expect("mkdir");
    for _ in 0..10 {
        seconds(80).await;
        within(5, rig.lookup("d")).await.expect("lookup");
    }
    assert_eq!(rig.peer.count_op(op::CREATE_SESSION), 1);
    for read in reads {
        read.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_kept_while_every_other_slot_hangs() {
    let rig = Rig::new(PeerConfig {
        slots: 4,
        ..PeerConfig::default()
    })
    .await;
    rig.peer.fs().mkdir("/d").unwrap();
    rig.peer.on_op(|event| match event.op {
        op::LOOKUP => Action::Hang,
        _ => Action::Pass,
    });
    let client = Arc::clone(&rig.client);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (client, cred, root) = (Arc::clone(&client), rig.cred.clone(), rig.root.clone());
            tokio::spawn(async move { client.lookup(&cred, &root, b"d").await.is_ok() })
        })
        .collect();
    seconds(1).await;
    assert_eq!(rig.client.session_info().in_use, 3);
    rig.peer.clear_log();
    seconds(600).await;
    // Calls that hang are asked for again on another connection, so lone ones.
    let log = rig.peer.log();
    let renewals = log.iter().filter(|e| e.ops == [op::SEQUENCE]).count();
    assert!((15..=25).contains(&renewals), "{renewals} in 600 s");
    assert!(rig.client.session_info().idle < Duration::from_secs(31));
    // A connection that is replaced finds the hung ones again, and they end.
    rig.peer.clear_script();
    rig.peer.crash_and_restart();
    for call in calls {
        assert!(within(120, call).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_listed_at_once_while_a_file_is_copied() {
    let rig = Rig::new(PeerConfig {
        slots: 8,
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    })
    .await;
    let open = rig.create("f", HowToOpen::Existing).await.unwrap();
    rig.peer.on_op(|event| match event.op {
        op::WRITE => Action::Delay(Duration::from_millis(50)),
        _ => Action::Pass,
    });
    let data = [Bytes::from(vec![1; 1 << 20])];
    let writers: Vec<_> = (0..64)
        .map(|i| {
            let (client, open, data) = (Arc::clone(&rig.client), Arc::clone(&open), data.clone());
            tokio::spawn(async move {
                let at = i << 20;
                client
                    .write(&open, 0, at, Stable::Unstable, &data)
                    .await
                    .is_ok()
            })
        })
        .collect();
    millis(10).await;
    for _ in 0..20 {
        let begun = tokio::time::Instant::now();
        rig.lookup("f").await.unwrap();
        let took = begun.elapsed();
        assert!(took <= Duration::from_millis(5), "a lookup took {took:?}");
    }
    for writer in writers {
        assert!(within(60, writer).await.unwrap());
    }
}
