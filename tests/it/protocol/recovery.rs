//! The server restarts, forgets us, or takes our state away.

use std::sync::Arc;

use bytes::Bytes;
use efs_fuse::nfs::calls::{HowToOpen, OpenRequest};
use efs_fuse::nfs::proto::types::Stable;
use efs_fuse::nfs::state::OpenState;
use parking_lot::Mutex;

use super::rig::{Mount, Rig, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

async fn opened(rig: &Rig, count: usize) -> Vec<Arc<OpenState>> {
    let mut opens = Vec::new();
    for number in 0..count {
        let name = format!("f{number}");
        let open = rig.create(&name, HowToOpen::Existing).await.unwrap();
        write(rig, &open, b"stable", Stable::FileSync).await;
        opens.push(open);
    }
    opens
}

async fn write(rig: &Rig, open: &Arc<OpenState>, data: &'static [u8], stable: Stable) {
    let data = [Bytes::from_static(data)];
    rig.client
        .write(open, 0, 0, stable, &data)
        .await
        .expect("write");
}

/// Every open works for reading and writing, and can be closed.
async fn all_work(rig: &Rig, opens: &[Arc<OpenState>]) {
    within(300, async {
        for open in opens {
            let read = rig.client.read(open, 0, 100).await.expect("read");
            assert_eq!(&read.data[..], b"stable");
            write(rig, open, b"STABLE", Stable::FileSync).await;
        }
        assert_eq!(rig.peer.open_count(), opens.len());
        for open in opens {
            rig.client.close(open).await.expect("close");
        }
    })
    .await;
    assert_eq!(rig.peer.open_count(), 0);
    assert_eq!((rig.peer.client_count(), rig.peer.session_count()), (1, 1));
    assert!(!rig.peer.in_grace());
}

#[tokio::test(start_paused = true)]
async fn opens_are_reclaimed_after_a_restart() {
    let rig = Rig::new(PeerConfig::default()).await;
    let opens = opened(&rig, 10).await;
    rig.peer.crash_and_restart();
    rig.peer.clear_log();
    all_work(&rig, &opens).await;
    assert_eq!(rig.peer.count_op(op::RECLAIM_COMPLETE), 1);
    assert_eq!(rig.peer.count_op(op::OPEN), 10, "each reclaimed, once");
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_nothing_open_is_survived_too() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.crash_and_restart();
    let open = within(60, rig.create("f", HowToOpen::Exclusive))
        .await
        .unwrap();
    rig.client.close(&open).await.unwrap();
    assert!(!rig.peer.in_grace(), "RECLAIM_COMPLETE was sent");
}

#[tokio::test(start_paused = true)]
async fn a_second_restart_in_the_middle_of_recovery_starts_it_over() {
    for nth in [0, 4] {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 5).await;
        let peer = Arc::downgrade(&rig.peer);
        let mut seen = 0;
        rig.peer.on_op(move |event| {
            if event.op == op::OPEN {
                seen += 1;
                if seen == nth + 1
                    && let Some(peer) = peer.upgrade()
                {
                    peer.crash_and_restart();
                }
            }
            Action::Pass
        });
        rig.peer.crash_and_restart();
        all_work(&rig, &opens).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_lost_in_the_middle_of_recovery_does_not_end_it_half_done() {
    for at in [op::OPEN, op::RECLAIM_COMPLETE] {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 5).await;
        let peer = Arc::downgrade(&rig.peer);
        let mut done = false;
        rig.peer.on_op(move |event| {
            if !done && event.op == op::SEQUENCE && event.compound.contains(&at) {
                done = true;
                if let Some(peer) = peer.upgrade() {
                    peer.destroy_sessions();
                }
            }
            Action::Pass
        });
        rig.peer.crash_and_restart();
        all_work(&rig, &opens).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_opens_are_reclaimed_several_at_once() {
    let rig = Rig::new(PeerConfig::default()).await;
    let opens = opened(&rig, 100).await;
    rig.peer.set_latency(std::time::Duration::from_millis(50));
    rig.peer.crash_and_restart();
    let begun = tokio::time::Instant::now();
    let read = within(60, rig.client.read(&opens[0], 0, 9))
        .await
        .expect("read");
    assert_eq!(&read.data[..], b"stable");
    let took = begun.elapsed();
    assert!(
        took.as_millis() < 2500,
        "{took:?}, one after the other: 5 s"
    );
    rig.peer.set_latency(std::time::Duration::ZERO);
    assert_eq!(rig.peer.open_count(), 100);
    all_work(&rig, &opens).await;
}

#[tokio::test(start_paused = true)]
async fn opens_come_back_after_the_server_forgot_us() {
    let rig = Rig::new(PeerConfig::default()).await;
    let opens = opened(&rig, 3).await;
    rig.peer.expire_clients();
    assert_eq!(rig.peer.open_count(), 0);
    all_work(&rig, &opens).await;
}

#[tokio::test(start_paused = true)]
async fn opens_that_cannot_be_reclaimed_are_opened_anew() {
    for status in [st::NO_GRACE, st::RECLAIM_BAD, st::RECLAIM_CONFLICT] {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 3).await;
        rig.peer.crash_and_restart();
        once_at(&rig.peer, op::OPEN, Action::Fail(status));
        all_work(&rig, &opens).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_went_away_with_its_server_state_is_lost_alone() {
    let rig = Rig::new(PeerConfig::default()).await;
    let opens = opened(&rig, 3).await;
    rig.peer.expire_clients();
    rig.peer.fs().remove("/f1").unwrap();
    within(60, async {
        let read = rig.client.read(&opens[0], 0, 9).await.expect("read");
        assert_eq!(&read.data[..], b"stable");
        let error = rig.client.read(&opens[1], 0, 9).await.unwrap_err();
        assert!(
            [libc::EIO, libc::ESTALE].contains(&error.errno()),
            "{error}"
        );
        for open in &opens {
            let _ = rig.client.close(open).await;
        }
    })
    .await;
    assert_eq!(rig.peer.open_count(), 0);
    assert_eq!(rig.client.opens(), 0);
}

#[tokio::test(start_paused = true)]
async fn revoked_state_is_replaced_where_it_is_used() {
    for status in [st::EXPIRED, st::ADMIN_REVOKED] {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 3).await;
        rig.peer.revoke_state(status);
        all_work(&rig, &opens).await;
    }
}

#[tokio::test(start_paused = true)]
async fn revoked_state_that_many_requests_meet_at_once_is_replaced_and_closed() {
    let rig = Rig::new(PeerConfig {
        latency: std::time::Duration::from_millis(1),
        ..PeerConfig::default()
    })
    .await;
    let opens = opened(&rig, 1).await;
    rig.peer.revoke_state(st::ADMIN_REVOKED);
    // Requests that run at once are answered in any order.
    let mut turn = 0;
    rig.peer.on_op(move |event| {
        turn += 7;
        match event.op {
            op::SEQUENCE => Action::Delay(std::time::Duration::from_millis(turn % 11)),
            _ => Action::Pass,
        }
    });
    within(60, async {
        let reads = (0..16).map(|_| rig.client.read(&opens[0], 0, 9));
        for read in super::rig::join_all(reads).await {
            assert_eq!(&read.expect("read").data[..], b"stable");
        }
    })
    .await;
    rig.peer.clear_script();
    all_work(&rig, &opens).await;
}

#[tokio::test(start_paused = true)]
async fn any_status_about_the_state_is_bounded_and_heals() {
    for status in [
        st::BAD_STATEID,
        st::STALE_STATEID,
        st::OLD_STATEID,
        st::EXPIRED,
        st::ADMIN_REVOKED,
    ] {
        for number in [op::READ, op::WRITE] {
            let rig = Rig::new(PeerConfig::default()).await;
            let opens = opened(&rig, 1).await;
            once_at(&rig.peer, number, Action::Fail(status));
            all_work(&rig, &opens).await;

            let opens = opened(&rig, 1).await;
            rig.peer.on_op(move |event| match event.op == number {
                true => Action::Fail(status),
                false => Action::Pass,
            });
            rig.peer.clear_log();
            let data = [Bytes::from_static(b"x")];
            let error = within(300, async {
                match number {
                    op::READ => rig.client.read(&opens[0], 0, 9).await.map(drop),
                    _ => {
                        let write = rig.client.write(&opens[0], 0, 0, Stable::FileSync, &data);
                        write.await.map(drop)
                    }
                }
            })
            .await
            .expect_err("a server that refuses for ever");
            assert_eq!(error.errno(), libc::EIO, "{status}: {error}");
            assert!(rig.peer.count_op(number) <= 20);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_between_write_and_commit_loses_nothing() {
    let mount = Mount::new(PeerConfig::default()).await;
    let data = vec![42; 3 << 20];
    within(300, async {
        let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, &data[..2 << 20]).await.unwrap();
        super::rig::millis(500).await;
        mount.peer.crash_and_restart();
        mount.write(file, 2 << 20, &data[2 << 20..]).await.unwrap();
        mount.fsync(file).await.expect("fsync");
        assert!(!mount.peer.fs().has_unstable("/f").unwrap());
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), data);
        mount.close(file).await.expect("close");
        mount.vfs.client().closes_sent().await;
    })
    .await;
    assert_eq!(mount.peer.open_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_at_any_request_of_a_copy_loses_nothing() {
    // How many requests it takes is not known beforehand: until one is past it.
    for nth in 0.. {
        let mount = Mount::new(PeerConfig {
            max_request: 65536 + 1024,
            ..PeerConfig::default()
        })
        .await;
        let peer = Arc::downgrade(&mount.peer);
        let hit = Arc::new(Mutex::new(0));
        let count = Arc::clone(&hit);
        mount.peer.on_op(move |event| {
            if event.op == op::SEQUENCE {
                *count.lock() += 1;
                if *count.lock() == nth + 1
                    && let Some(peer) = peer.upgrade()
                {
                    peer.crash_and_restart();
                }
            }
            Action::Pass
        });
        let data: Vec<u8> = (0..400_000_u32).map(|i| (i % 251) as u8).collect();
        within(600, async {
            let file = mount.create(1, "f", libc::O_RDWR).await.expect("create");
            for (at, part) in data.chunks(100_000).enumerate() {
                mount
                    .write(file, at as u64 * 100_000, part)
                    .await
                    .expect("write");
            }
            mount.close(file).await.expect("close");
            let moved = mount.rename((1, "f"), (1, "g")).await;
            moved.expect("rename");
            mount.vfs.client().closes_sent().await;
        })
        .await;
        assert_eq!(mount.peer.fs().read_file("/g").unwrap(), data, "{nth}");
        assert!(!mount.peer.fs().has_unstable("/g").unwrap());
        assert_eq!(mount.peer.open_count(), 0);
        if *hit.lock() <= nth {
            assert!(nth > 6, "only {nth} requests");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn status_flags_that_stay_up_start_no_recovery_loop() {
    for bit in 0..13 {
        let rig = Rig::new(PeerConfig::default()).await;
        let opens = opened(&rig, 1).await;
        rig.peer.clear_log();
        rig.peer.set_status_flags(1 << bit, u32::MAX);
        for _ in 0..20 {
            let read = within(60, rig.client.read(&opens[0], 0, 9)).await;
            assert_eq!(&read.expect("read").data[..], b"stable");
        }
        assert!(
            rig.peer.round_trips() < 60,
            "flag {:#x}: {} round trips",
            1 << bit,
            rig.peer.round_trips()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_restart_lost_is_read_back_before_anybody_asks_for_a_commit() {
    for during_read in [false, true] {
        let mount = Mount::new(PeerConfig::default()).await;
        let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 249) as u8).collect();
        within(300, async {
            let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
            mount.write(file, 0, &data).await.unwrap();
            super::rig::seconds(1).await;
            assert!(mount.peer.fs().has_unstable("/f").unwrap());
            if during_read {
                let peer = Arc::downgrade(&mount.peer);
                let mut left = 1;
                mount.peer.on_op(move |event| {
                    if event.op == op::READ && left > 0 {
                        left -= 1;
                        peer.upgrade().unwrap().crash_and_restart();
                    }
                    Action::Pass
                });
            } else {
                mount.peer.crash_and_restart();
            }
            let got = mount.read(file, 2_000_000, 900_000).await.unwrap();
            assert!(got == data[2_000_000..2_900_000], "{during_read}");
            let entry = mount.lookup(1, "f").await.unwrap().unwrap();
            assert_eq!(entry.stat.size, 3_000_000);
            assert_eq!(mount.getattr(file.ino).await.unwrap().size, 3_000_000);
            mount.close(file).await.unwrap();
        })
        .await;
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), data);
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_that_joins_one_whose_state_was_dropped_brings_all_of_it_back() {
    let rig = Rig::new(PeerConfig::default()).await;
    let opens = opened(&rig, 1).await;
    rig.peer.revoke_state(st::ADMIN_REVOKED);
    let access = efs_fuse::nfs::proto::ops::ACCESS_WRITE;
    let request = OpenRequest::of(&opens[0], access);
    let joined = rig.client.open_by_handle(request);
    within(60, joined).await.expect("open");
    all_work(&rig, &opens).await;
}

#[tokio::test(start_paused = true)]
async fn a_reclaim_whose_reply_was_not_kept_is_no_lost_file() {
    for max_cached in [0, 8192] {
        let rig = Rig::new(PeerConfig {
            max_cached,
            ..PeerConfig::default()
        })
        .await;
        let opens = opened(&rig, 3).await;
        once_at(&rig.peer, op::OPEN, Action::DropConnectionAfter);
        rig.peer.crash_and_restart();
        all_work(&rig, &opens).await;
    }
}

/// The next reply with an operation `wanted` ends in the middle of its result.
pub(super) fn cut_short_at(peer: &Peer, wanted: u32) {
    once_at(
        peer,
        wanted,
        Action::Rewrite(Box::new(|mut message| {
            message.truncate(message.len() - 8);
            message
        })),
    );
}

#[tokio::test(start_paused = true)]
async fn a_reclaim_whose_reply_does_not_decode_is_no_lost_file() {
    let rig = Rig::new(PeerConfig::default()).await;
    let opens = opened(&rig, 3).await;
    cut_short_at(&rig.peer, op::OPEN);
    rig.peer.crash_and_restart();
    all_work(&rig, &opens).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_back_is_found_within_a_small_part_of_its_lease() {
    let lease_s = 4;
    let rig = Rig::new(PeerConfig {
        lease_s,
        ..PeerConfig::default()
    })
    .await;
    for away in [300, 1000, 3150, 7000, 60_000] {
        rig.peer.refuse_connections(true);
        rig.peer.cut_all_connections();
        super::rig::millis(away).await;
        rig.peer.refuse_connections(false);
        let back = tokio::time::Instant::now();
        let name = format!("d{away}");
        within(30, rig.mkdir(&name)).await.expect("mkdir");
        let part = std::time::Duration::from_secs(u64::from(lease_s)) / 8;
        assert!(
            back.elapsed() < part,
            "away for {away} ms: found after {:?}",
            back.elapsed()
        );
    }
}
