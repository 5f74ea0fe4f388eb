//! DELAY and GRACE are waited out, at a sane rate, and never seen.

use std::sync::Arc;

use efs_fuse::nfs::calls::HowToOpen;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::rig::{ONCE, Rig, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

/// Fails `number` with `status` for a minute.
fn for_a_minute(rig: &Rig, number: u32, status: u32) {
    let begun = Instant::now();
    rig.peer.on_op(move |event| {
        if event.op == number && begun.elapsed().as_secs() < 60 {
            Action::Fail(status)
        } else {
            Action::Pass
        }
    });
}

#[tokio::test(start_paused = true)]
async fn an_operation_put_off_for_a_minute_is_repeated_a_few_times_and_succeeds() {
    for status in [st::DELAY, st::GRACE] {
        for number in ONCE.into_iter().chain([op::LOOKUP, op::GETATTR, op::PUTFH]) {
            let rig = Rig::new(PeerConfig::default()).await;
            rig.peer.fs().write_file("/x", b"x").unwrap();
            rig.peer.clear_log();
            for_a_minute(&rig, number, status);
            let begun = Instant::now();
            within(120, async {
                let object = rig.lookup("x").await.unwrap().unwrap();
                rig.mkdir("made").await.expect("mkdir");
                let open = rig.create("new", HowToOpen::Exclusive).await;
                rig.client.close(&open.expect("create")).await.unwrap();
                rig.link(&object, "linked").await.expect("link");
                rig.rename("linked", "moved").await.expect("rename");
                rig.chmod(&object, 0o600).await.expect("chmod");
                rig.remove("x").await.expect("remove");
            })
            .await;
            let took = begun.elapsed().as_secs();
            assert!((60..90).contains(&took), "{took} s");
            let sent = rig.peer.round_trips();
            assert!(sent < 60, "{}: {sent} requests", op::name(number));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sequence_put_off_is_repeated_under_the_same_sequence_id() {
    let rig = Rig::new(PeerConfig::default()).await;
    let begun = Instant::now();
    let tries = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&tries);
    rig.peer.on_op(move |event| {
        if event.op != op::SEQUENCE || !event.compound.contains(&op::CREATE) {
            return Action::Pass;
        }
        seen.lock().push((event.slot, event.seqid));
        match begun.elapsed().as_secs() < 60 {
            true => Action::Fail(st::DELAY),
            false => Action::Pass,
        }
    });
    within(120, rig.mkdir("d")).await.expect("mkdir");
    let tries = tries.lock();
    assert!((5..50).contains(&tries.len()), "{} tries", tries.len());
    assert!(tries.iter().all(|sent| *sent == tries[0]), "{tries:?}");
}

#[tokio::test(start_paused = true)]
async fn what_makes_a_session_is_put_off_too() {
    let rig = Rig::new(PeerConfig::default()).await;
    for number in [op::EXCHANGE_ID, op::CREATE_SESSION, op::RECLAIM_COMPLETE] {
        for_a_minute(&rig, number, st::DELAY);
        rig.peer.expire_clients();
        within(120, rig.lookup("x")).await.expect("lookup");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mount_waits_for_a_server_that_puts_it_off() {
    for number in [
        op::EXCHANGE_ID,
        op::CREATE_SESSION,
        op::RECLAIM_COMPLETE,
        op::SEQUENCE,
    ] {
        let peer = crate::peer::Peer::new(PeerConfig::default());
        let mut left = 10;
        peer.on_op(move |event| {
            if event.op == number && left > 0 {
                left -= 1;
                return Action::Fail(st::DELAY);
            }
            Action::Pass
        });
        within(120, super::rig::connect(&peer, "one")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn attributes_that_are_only_welcome_do_not_make_a_change_run_twice() {
    for status in [st::DELAY, st::GRACE, st::IO, st::STALE] {
        for number in ONCE {
            let rig = Rig::new(PeerConfig::default()).await;
            let fs = rig.peer.fs();
            fs.write_file("/x", b"x").unwrap();
            fs.write_file("/y", b"y").unwrap();
            let object = rig.lookup("x").await.unwrap().unwrap();
            // The last operation of the compound, a GETATTR.
            let mut failed = false;
            rig.peer.on_op(move |event| {
                let last = event.op_index + 1 == event.compound.len();
                if !failed && last && event.op == op::GETATTR && event.compound.contains(&number) {
                    failed = true;
                    return Action::Fail(status);
                }
                Action::Pass
            });
            rig.peer.clear_log();
            within(60, async {
                match number {
                    op::CREATE => rig.mkdir("d").await.map(drop),
                    op::REMOVE => rig.remove("x").await,
                    op::RENAME => rig.rename("x", "z").await,
                    op::LINK => rig.link(&object, "z").await,
                    op::SETATTR => rig.chmod(&object, 0o600).await,
                    _ => rig.create("new", HowToOpen::Existing).await.map(drop),
                }
            })
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", op::name(number)));
            assert_eq!(rig.peer.count_op(number), 1, "{}", op::name(number));
        }
    }
}
