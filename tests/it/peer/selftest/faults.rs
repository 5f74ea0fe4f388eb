//! Crashes, lost connections and what scripts do.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_crash_loses_what_was_not_committed_and_lets_known_clients_reclaim() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let (id, fh) = c.create("f").await;
    let mut commit = o(op::COMMIT);
    commit.u64(0).u32(0);
    let r = c
        .run(vec![putfh(&fh), write(&id, 0, 0, b"kept"), commit])
        .await;
    assert_eq!(r.status, st::OK);
    let mut r = c.run(vec![putfh(&fh), write(&id, 4, 0, b"lost")]).await;
    r.ok(&[op::SEQUENCE, op::PUTFH, op::WRITE]);
    let before = r.d.fixed::<16>().expect("write");
    assert_eq!(peer.fs().read_file("/f"), Ok(b"keptlost".to_vec()));
    assert_eq!(peer.fs().has_unstable("/f"), Ok(true));

    peer.crash_and_restart();
    assert_eq!(peer.fs().read_file("/f"), Ok(b"kept".to_vec()));
    assert!(c.wire.receive().await.is_none(), "the connection is cut");
    c.reconnect().await;
    let m = c.message(0, 9, false, vec![]);
    assert_eq!(c.exchange(&m).await.status, st::BADSESSION);

    let mut other = Client::new(&peer, "b").await;
    other.reclaim_complete().await;
    let open = vec![o(op::PUTROOTFH), open_create("me", "g")];
    assert_eq!(other.run(open.clone()).await.status, st::GRACE);

    let mut c = Client::new(&peer, "a").await;
    let mut reclaim = o(op::OPEN);
    reclaim
        .u32(0)
        .u32(3)
        .u32(0)
        .u64(0)
        .opaque(b"me")
        .u32(0)
        .u32(1)
        .u32(0);
    let mut r = c.run(vec![putfh(&fh), write(&id, 0, 0, b"x")]).await;
    assert_eq!(
        r.ok(&[op::SEQUENCE, op::PUTFH]).next(op::WRITE),
        st::STALE_STATEID
    );
    let mut r = c.run(vec![putfh(&fh), reclaim.clone()]).await;
    let id = r.ok(&[op::SEQUENCE, op::PUTFH]).open();
    assert!(peer.in_grace());
    c.reclaim_complete().await;
    assert!(!peer.in_grace(), "everybody known is back");
    assert_eq!(c.run(vec![putfh(&fh), reclaim]).await.status, st::NO_GRACE);
    assert_eq!(other.run(open).await.status, st::OK);
    let mut r = c.run(vec![putfh(&fh), write(&id, 4, 0, b"again")]).await;
    r.ok(&[op::SEQUENCE, op::PUTFH, op::WRITE]);
    let after = r.d.fixed::<16>().expect("write");
    assert_ne!(before[8..], after[8..], "the write verifier moves");
}

#[tokio::test(start_paused = true)]
async fn a_reply_lost_with_its_connection_is_there_on_the_next_one() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let mut lose = true;
    peer.on_op(
        move |e| match e.op == op::REMOVE && std::mem::take(&mut lose) {
            true => Action::DropConnectionAfter,
            false => Action::Pass,
        },
    );
    peer.fs().write_file("/f", b"").expect("make");
    let m = c.next(0, true, vec![o(op::PUTROOTFH), named(op::REMOVE, "f")]);
    c.wire.send(&m).await;
    assert!(c.wire.receive().await.is_none());
    assert!(!peer.fs().exists("/f"), "it was executed");
    c.reconnect().await;
    assert_eq!(c.exchange(&m).await.status, st::OK);
    peer.refuse_connections(true);
    assert!(peer.connector().connect().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_connection_cut_before_the_call_leaves_its_slot_alone() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let mut cut = true;
    peer.on_op(move |e| match e.op_index == 1 && std::mem::take(&mut cut) {
        true => Action::DropConnectionBefore,
        false => Action::Pass,
    });
    let m = c.next(1, true, vec![o(op::PUTROOTFH), open_create("me", "f")]);
    c.wire.send(&m).await;
    assert!(c.wire.receive().await.is_none());
    assert!(!peer.fs().exists("/f"));
    c.reconnect().await;
    assert_eq!(c.exchange(&m).await.status, st::OK);
    assert!(!peer.log().last().is_some_and(|e| e.replayed));
}

#[tokio::test(start_paused = true)]
async fn replies_of_other_slots_overtake_a_delayed_one_whose_retry_is_told_to_wait() {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(10),
        reply_fragment: 7,
        ..PeerConfig::default()
    });
    let mut c = Client::ready(&peer, "a").await;
    peer.on_op(|e| match e.slot == Some(1) && e.op == op::GETFH {
        true => Action::Delay(Duration::from_secs(1)),
        false => Action::Pass,
    });
    let started = tokio::time::Instant::now();
    let slow = c.next(1, true, vec![o(op::PUTROOTFH), o(op::GETFH)]);
    let fast = c.next(2, true, vec![o(op::PUTROOTFH)]);
    c.wire.send(&slow).await;
    assert_eq!(c.exchange(&fast).await.status, st::OK);
    assert_eq!(started.elapsed().as_millis(), 10);
    assert_eq!(c.exchange(&slow).await.status, st::DELAY);
    let late = Results::parse(c.wire.receive().await.expect("reply"));
    assert_eq!((late.status, late.count), (st::OK, 3));
    assert_eq!(started.elapsed().as_millis(), 1010);
}

#[tokio::test(start_paused = true)]
async fn scripted_failures_run_nothing_and_show_only_where_they_were_put() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    peer.on_op(|e| match (e.op, e.slot) {
        (op::OPEN, _) => Action::Fail(st::DELAY),
        (op::SEQUENCE, Some(1)) => Action::Fail(st::DELAY),
        (op::CREATE, _) => Action::FailAfter(st::IO),
        _ => Action::Pass,
    });
    let r = c.run(vec![o(op::PUTROOTFH), open_create("me", "f")]).await;
    assert_eq!((r.status, r.count), (st::DELAY, 3));
    assert!(!peer.fs().exists("/f"));
    let m = c.message(1, 1, true, vec![]);
    assert_eq!(c.exchange(&m).await.status, st::DELAY);
    assert_eq!(c.mkdir("d").await, st::IO);
    assert!(peer.fs().exists("/d"), "it was done all the same");
    peer.clear_script();
    assert_eq!(
        c.exchange(&m).await.status,
        st::OK,
        "the seqid was not spent"
    );
    peer.set_status_flags(0x100, 1);
    peer.set_target_highest_slotid(Some(0));
    for expected in [[0, 3, 0, 0x100], [0, 3, 0, 0]] {
        let mut r = c.run(vec![]).await;
        r.next(op::SEQUENCE);
        let body = r.d.fixed::<36>().expect("body");
        let words: Vec<u32> = (20..36)
            .step_by(4)
            .map(|at| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]))
            .collect();
        assert_eq!(words, expected, "slot, highest, target, flags");
    }
}

#[tokio::test(start_paused = true)]
async fn revoked_state_is_reported_until_it_is_freed() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let (id, fh) = c.create("f").await;
    peer.revoke_state(st::ADMIN_REVOKED);
    assert_eq!(peer.open_count(), 0);
    let w = || vec![putfh(&fh), write(&id, 0, 2, b"x")];
    assert_eq!(c.run(w()).await.status, st::ADMIN_REVOKED);
    let with_id = |number: u32| {
        let mut e = o(number);
        if number == op::TEST_STATEID {
            e.u32(1);
        }
        e.fixed(&id);
        e
    };
    let mut r = c
        .run(vec![with_id(op::TEST_STATEID), with_id(op::FREE_STATEID)])
        .await;
    assert_eq!(r.next(op::SEQUENCE), st::OK);
    assert_eq!(r.d.fixed::<36>().expect("body")[32..], hex("00000020"));
    r.ok(&[op::TEST_STATEID]);
    assert_eq!((r.d.u32(), r.d.u32()), (Ok(1), Ok(st::ADMIN_REVOKED)));
    r.ok(&[op::FREE_STATEID]);
    assert_eq!(c.run(w()).await.status, st::BAD_STATEID);
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_in_a_crash_does_not_reach_the_next_server() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    peer.set_latency(Duration::from_millis(10));
    let m = c.next(0, true, vec![o(op::PUTROOTFH), open_create("me", "f")]);
    c.wire.send(&m).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let seen = peer.round_trips();
    peer.crash_and_restart();
    assert!(c.wire.receive().await.is_none());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(peer.round_trips(), seen);
    assert!(!peer.fs().exists("/f"));
}

#[tokio::test(start_paused = true)]
async fn data_can_be_lost_without_a_restart_and_the_verifier_tells() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let (id, fh) = c.create("f").await;
    let mut commit = o(op::COMMIT);
    commit.u64(0).u32(0);
    let mut r = c.run(vec![putfh(&fh), write(&id, 0, 0, b"data")]).await;
    r.ok(&[op::SEQUENCE, op::PUTFH, op::WRITE]);
    assert_eq!(r.d.u64(), Ok(4 << 32), "four bytes, UNSTABLE");
    let written = r.d.u64().expect("verifier");
    peer.lose_unstable_data();
    assert_eq!(peer.fs().read_file("/f"), Ok(Vec::new()));
    let mut r = c.run(vec![putfh(&fh), commit]).await;
    r.ok(&[op::SEQUENCE, op::PUTFH, op::COMMIT]);
    assert_ne!(r.d.u64(), Ok(written));
    assert_eq!(peer.open_count(), 1);
}
