//! SEQUENCE says that something is wrong with the slot, the session or the
//! connection: nothing is visible, or a new session; never the reply of another
//! call, and never a hang.

use efs_fuse::nfs::calls::HowToOpen;

use super::rig::{Rig, join_all, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

/// A few requests of different kinds, one after the other and at once.
async fn goes_on(rig: &Rig) {
    within(120, async {
        rig.mkdir("d").await.expect("mkdir");
        let lookups = (0..20).map(|_| rig.lookup("d"));
        for found in join_all(lookups).await {
            assert!(found.expect("lookup").is_some());
        }
        let open = rig.create("f", HowToOpen::Exclusive).await.expect("create");
        rig.client.close(&open).await.expect("close");
        rig.remove("f").await.expect("remove");
        rig.remove("d").await.expect("remove");
    })
    .await;
    assert_eq!(rig.peer.fs().list("/").unwrap(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn any_status_of_sequence_about_slot_or_session_once_is_not_visible() {
    for status in [
        st::DELAY,
        st::SEQ_MISORDERED,
        st::BADSLOT,
        st::BAD_HIGH_SLOT,
        st::SEQ_FALSE_RETRY,
        st::BADSESSION,
        st::CONN_NOT_BOUND_TO_SESSION,
        // Of a client whose lease ran out, by nfs-ganesha.
        st::EXPIRED,
        st::STALE_CLIENTID,
        10078, // DEADSESSION
    ] {
        for nth in [0, 1, 5, 21] {
            let rig = Rig::new(PeerConfig::default()).await;
            let mut seen = 0;
            rig.peer.on_op(move |event| {
                if event.op != op::SEQUENCE {
                    return Action::Pass;
                }
                seen += 1;
                if seen == nth + 1 {
                    Action::Fail(status)
                } else {
                    Action::Pass
                }
            });
            goes_on(&rig).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_stays_misordered_is_given_up_for_another() {
    for status in [st::SEQ_MISORDERED, st::BADSLOT] {
        let rig = Rig::new(PeerConfig::default()).await;
        rig.peer.on_op(move |event| match (event.op, event.slot) {
            (op::SEQUENCE, Some(1)) => Action::Fail(status),
            _ => Action::Pass,
        });
        goes_on(&rig).await;
        let tries = rig.peer.log().iter().filter(|e| e.slot == Some(1)).count();
        assert!(tries < 12, "{tries} tries on a slot that is broken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_every_slot_is_broken_is_replaced() {
    for status in [st::SEQ_MISORDERED, st::BADSLOT] {
        let rig = Rig::new(PeerConfig {
            slots: 4,
            ..PeerConfig::default()
        })
        .await;
        let first = rig.peer.count_op(op::CREATE_SESSION);
        let mut sessions = 0;
        rig.peer.on_op(move |event| {
            sessions += u32::from(event.op == op::CREATE_SESSION);
            if event.op == op::SEQUENCE && sessions == 0 {
                Action::Fail(status)
            } else {
                Action::Pass
            }
        });
        goes_on(&rig).await;
        assert_eq!(rig.peer.count_op(op::CREATE_SESSION), first + 1);
        assert_eq!(rig.peer.session_count(), 1, "the old one is not left");
    }
}

#[tokio::test(start_paused = true)]
async fn broken_slots_and_a_shrunken_table_together_do_not_hang() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.on_op(move |event| match (event.op, event.slot) {
        (op::SEQUENCE, Some(1)) => Action::Fail(st::SEQ_MISORDERED),
        _ => Action::Pass,
    });
    within(60, rig.mkdir("a")).await.unwrap();
    // Slot 1 is given up by now; the server wants slots 0 and 1 used only.
    rig.peer.set_target_highest_slotid(Some(1));
    within(60, rig.lookup("a")).await.unwrap();
    rig.peer.clear_script();
    within(60, rig.lookup("a")).await.unwrap();
    within(60, rig.lookup("a")).await.unwrap();
}

/// Changes a word of the SEQUENCE result in one reply: results start behind
/// status, tag and count, with opnum and status.
fn rewrite_sequence(peer: &Peer, word_at: usize) {
    once_at(
        peer,
        op::LOOKUP,
        Action::Rewrite(Box::new(move |mut message| {
            let at = 24 + 12 + 8 + word_at;
            message[at + 3] ^= 1;
            message
        })),
    );
}

#[tokio::test(start_paused = true)]
async fn a_reply_for_another_slot_or_session_is_never_taken() {
    // sessionid, sequenceid, slotid.
    for word_at in [0, 12, 16, 20] {
        let rig = Rig::new(PeerConfig::default()).await;
        rig.peer.fs().mkdir("/d").unwrap();
        rewrite_sequence(&rig.peer, word_at);
        let result = within(60, rig.lookup("d")).await;
        if let Err(error) = &result {
            assert_eq!(error.errno(), libc::EIO, "{error}");
        }
        rig.peer.clear_script();
        rig.remove("d").await.expect("the client goes on");
        goes_on(&rig).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_wants_connections_bound_gets_one_bind_a_connection() {
    let rig = Rig::new(PeerConfig {
        implicit_bind: false,
        ..PeerConfig::default()
    })
    .await;
    for _ in 0..3 {
        rig.peer.cut_all_connections();
        goes_on(&rig).await;
    }
    let binds = rig.peer.count_op(op::BIND_CONN_TO_SESSION);
    assert!((3..=3 * 20).contains(&binds), "{binds} binds");
    assert_eq!(rig.peer.count_op(op::CREATE_SESSION), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_gone_when_a_connection_is_to_be_bound_is_replaced() {
    for status in [st::BADSESSION, st::DELAY] {
        let rig = Rig::new(PeerConfig {
            implicit_bind: false,
            ..PeerConfig::default()
        })
        .await;
        rig.peer.cut_all_connections();
        once_at(&rig.peer, op::BIND_CONN_TO_SESSION, Action::Fail(status));
        goes_on(&rig).await;
    }
}
