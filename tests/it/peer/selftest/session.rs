//! Sessions, slots, leases and limits; the first compounds byte for byte.

use super::*;

/// RPC head of the golden calls: xid 7, COMPOUND, AUTH_SYS "h" 0/0, no groups,
/// then tag "", minor version 1, one operation.
const GOLDEN_HEAD: &str = "00000007 00000000 00000002 000186a3 00000004 00000001
    00000001 00000018 00000000 00000001 68000000 00000000 00000000 00000000
    00000000 00000000  00000000 00000001 00000001";
/// Its reply: xid 7, REPLY, accepted, no verifier, success; NFS4_OK, tag "", one result.
const GOLDEN_REPLY: &str = "00000007 00000001 00000000 00000000 00000000 00000000
    00000000 00000000 00000001";

#[tokio::test(start_paused = true)]
async fn session_setup_is_answered_byte_for_byte() {
    let peer = Peer::new(PeerConfig::default());
    let mut wire = Wire::connect(&peer).await;
    let golden = [
        (
            // EXCHANGE_ID: verifier, owner "abc", flags 0, SP4_NONE, no impl id.
            "0000002a 0102030405060708 00000003 61626300 00000000 00000000 00000000",
            // clientid, sequence 1, USE_NON_PNFS, SP4_NONE, owner 0/"efs-double",
            // scope "efs-double-scope", no impl id.
            "0000002a 00000000 00005eed00000001 00000001 00010000 00000000
             0000000000000000 0000000a 6566732d646f75626c650000
             00000010 6566732d646f75626c652d73636f7065 00000000",
        ),
        (
            // CREATE_SESSION: sequence 1, flags 0; fore and back attributes with
            // no RDMA; callback program, AUTH_NONE.
            "0000002b 00005eed00000001 00000001 00000000
             00000000 00200000 00200000 00010000 00000020 00000400 00000000
             00000000 00001000 00001000 00000000 00000002 00000010 00000000
             40000000 00000001 00000000",
            // Lowered to 1,049,620 / 1,049,480 / 8,192 / 16 operations / 64 slots.
            "0000002b 00000000 00005eed00000001 00000002 53455353 00000001 00000000
             00000000 00100414 00100388 00002000 00000010 00000040 00000000
             00000000 00001000 00001000 00000000 00000002 00000010 00000000",
        ),
        (
            // SEQUENCE: session, seqid 1, slot 2, highest 5, no cache.
            "00000035 00005eed00000001 00000002 53455353 00000001 00000002 00000005 00000000",
            "00000035 00000000 00005eed00000001 00000002 53455353 00000001 00000002
             0000003f 0000003f 00000000",
        ),
        (
            // The retry of a lone SEQUENCE.
            "00000035 00005eed00000001 00000002 53455353 00000001 00000002 00000005 00000000",
            "00000035 00000000 00005eed00000001 00000002 53455353 00000001 00000002
             0000003f 0000003f 00000000",
        ),
    ];
    for (sent, expected) in golden {
        wire.send(&[hex(GOLDEN_HEAD), hex(sent)].concat()).await;
        let reply = wire.receive().await.expect("reply");
        assert_eq!(reply, [hex(GOLDEN_REPLY), hex(expected)].concat(), "{sent}");
    }
    assert_eq!(peer.round_trips(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_retry_gets_the_kept_reply_and_runs_nothing() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    peer.fs().write_file("/f", b"").expect("make");
    let remove = c.next(0, true, vec![o(op::PUTROOTFH), named(op::REMOVE, "f")]);
    c.wire.send(&remove).await;
    let first = c.wire.receive().await.expect("reply");
    assert_eq!(Results::parse(first.clone()).status, st::OK);
    // Also when the name is there again: the retry must not hit it.
    peer.fs().write_file("/f", b"").expect("make");
    c.reconnect().await;
    c.wire.send(&remove).await;
    assert_eq!(c.wire.receive().await, Some(first));
    assert!(peer.fs().exists("/f"));
    assert!(peer.log().last().is_some_and(|e| e.replayed));
}

#[tokio::test(start_paused = true)]
async fn a_retry_without_a_kept_reply_says_so() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let message = c.next(0, false, vec![o(op::PUTROOTFH), o(op::GETFH)]);
    assert_eq!(c.exchange(&message).await.status, st::OK);
    let mut r = c.exchange(&message).await;
    assert_eq!((r.status, r.count), (st::RETRY_UNCACHED_REP, 2));
    r.ok(&[op::SEQUENCE]);
    assert_eq!(r.next(op::PUTROOTFH), st::RETRY_UNCACHED_REP);
}

#[tokio::test(start_paused = true)]
async fn slots_reject_gaps_reuse_and_numbers_out_of_range() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    for (slot, seqid, expected) in [
        (1, 2, st::SEQ_MISORDERED),
        (1, 0, st::SEQ_MISORDERED),
        (4, 1, st::BADSLOT),
        (1, 1, st::OK),
        (1, 3, st::SEQ_MISORDERED),
        (1, 2, st::OK),
    ] {
        let m = c.message(slot, seqid, true, vec![o(op::PUTROOTFH)]);
        assert_eq!(c.exchange(&m).await.status, expected, "{slot}/{seqid}");
    }
    let m = c.message(1, 2, true, vec![o(op::PUTROOTFH), o(op::GETFH)]);
    assert_eq!(c.exchange(&m).await.status, st::SEQ_FALSE_RETRY);
    peer.set_slot_table(1);
    let m = c.message(1, 3, true, vec![]);
    assert_eq!(c.exchange(&m).await.status, st::BADSLOT);
    c.session[15] ^= 1;
    let m = c.message(0, 2, true, vec![]);
    assert_eq!(c.exchange(&m).await.status, st::BADSESSION);
}

#[tokio::test(start_paused = true)]
async fn negotiated_limits_are_enforced_before_anything_runs() {
    let peer = Peer::new(PeerConfig {
        max_cached: 160,
        max_request: 2000,
        max_ops: 4,
        ..PeerConfig::default()
    });
    let mut c = Client::ready(&peer, "a").await;
    let m = c.message(
        1,
        1,
        false,
        vec![o(op::PUTROOTFH), o(op::SAVEFH), o(op::GETFH), o(op::GETFH)],
    );
    assert_eq!(c.exchange(&m).await.status, st::TOO_MANY_OPS);
    let m = c.message(
        1,
        1,
        false,
        vec![o(op::PUTROOTFH), named(op::LOOKUP, &"x".repeat(2000))],
    );
    assert_eq!(c.exchange(&m).await.status, st::REQ_TOO_BIG);
    // SEQUENCE failed: seqid 1 is still to come.
    let m = c.message(1, 1, true, vec![o(op::PUTROOTFH), o(op::GETFH)]);
    assert_eq!(c.exchange(&m).await.status, st::REP_TOO_BIG_TO_CACHE);
    let m = c.message(
        1,
        2,
        true,
        vec![o(op::PUTROOTFH), o(op::SAVEFH), open_create("me", "f")],
    );
    assert_eq!(c.exchange(&m).await.status, st::REP_TOO_BIG_TO_CACHE);
    assert!(!peer.fs().exists("/f"));
    let m = c.message(1, 3, false, vec![o(op::PUTROOTFH), o(op::GETFH)]);
    assert_eq!(c.exchange(&m).await.status, st::OK);
}

#[tokio::test(start_paused = true)]
async fn opens_wait_for_reclaim_complete() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::new(&peer, "a").await;
    let open = vec![o(op::PUTROOTFH), open_create("me", "f")];
    assert_eq!(c.run(open.clone()).await.status, st::GRACE);
    c.reclaim_complete().await;
    assert_eq!(c.run(open).await.status, st::OK);
    let mut again = o(op::RECLAIM_COMPLETE);
    again.bool(false);
    assert_eq!(c.run(vec![again]).await.status, st::COMPLETE_ALREADY);
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_loses_its_session_and_state_after_its_lease() {
    let peer = Peer::new(PeerConfig {
        lease_s: 10,
        ..PeerConfig::default()
    });
    let mut c = Client::ready(&peer, "a").await;
    c.create("f").await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(c.run(vec![]).await.status, st::OK, "SEQUENCE renews");
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(c.run(vec![]).await.status, st::BADSESSION);
    assert_eq!((peer.open_count(), peer.client_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_answered_or_cut_and_hurts_nobody_else() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let mut bad = Wire::connect(&peer).await;
    bad.send(&[0xff; 28]).await;
    assert!(bad.receive().await.is_none());

    let mut wire = Wire::connect(&peer).await;
    wire.send(&call(5, 0, &[o(op::PUTROOTFH)])).await;
    let r = Results::parse(wire.receive().await.expect("reply"));
    assert_eq!(r.status, st::OP_NOT_IN_SESSION);
    let mut other_minor = call(6, 0, &[o(op::PUTROOTFH)]);
    let at = other_minor.len() - 9;
    other_minor[at] = 2;
    wire.send(&other_minor).await;
    let r = Results::parse(wire.receive().await.expect("reply"));
    assert_eq!((r.status, r.count), (st::MINOR_VERS_MISMATCH, 0));

    let mut r = c.run(vec![o(op::PUTROOTFH), o(4711)]).await;
    r.ok(&[op::SEQUENCE, op::PUTROOTFH]);
    assert_eq!(r.next(op::ILLEGAL), st::OP_ILLEGAL);
    let mut cut_short = o(op::LOOKUP);
    cut_short.u32(1000);
    assert_eq!(
        c.run(vec![o(op::PUTROOTFH), cut_short]).await.status,
        st::BADXDR
    );
    for (name, status) in [
        ("", st::INVAL),
        ("..", st::BADNAME),
        ("a/b", st::BADCHAR),
        (&*"n".repeat(256), st::NAMETOOLONG),
    ] {
        let ops = vec![o(op::PUTROOTFH), named(op::LOOKUP, name)];
        assert_eq!(c.run(ops).await.status, status, "{name}");
    }
    assert_eq!(c.run(vec![putfh(b"no handle")]).await.status, st::BADHANDLE);
}

#[tokio::test(start_paused = true)]
async fn a_strict_server_wants_connections_bound() {
    let peer = Peer::new(PeerConfig {
        implicit_bind: false,
        ..PeerConfig::default()
    });
    let mut c = Client::ready(&peer, "a").await;
    c.reconnect().await;
    let m = c.next(0, true, vec![o(op::PUTROOTFH)]);
    assert_eq!(c.exchange(&m).await.status, st::CONN_NOT_BOUND_TO_SESSION);
    let mut bind = o(op::BIND_CONN_TO_SESSION);
    bind.fixed(&c.session).u32(3).bool(false);
    let bind = call(9, 0, &[bind]);
    let mut r = c.exchange(&bind).await;
    assert_eq!(r.next(op::BIND_CONN_TO_SESSION), st::OK);
    assert_eq!(r.d.fixed(), Ok(c.session));
    assert_eq!((r.d.u32(), r.d.bool()), (Ok(1), Ok(false)));
    assert_eq!(c.exchange(&m).await.status, st::OK);
}

#[tokio::test(start_paused = true)]
async fn a_client_ends_only_without_sessions_and_state() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let (id, fh) = c.create("f").await;
    let mut destroy_client = o(op::DESTROY_CLIENTID);
    destroy_client.fixed(&c.session[..8]);
    let destroy_client = call(9, 0, &[destroy_client]);
    let mut destroy_session = o(op::DESTROY_SESSION);
    destroy_session.fixed(&c.session);
    let destroy_session = call(9, 0, &[destroy_session]);
    assert_eq!(c.exchange(&destroy_client).await.status, st::CLIENTID_BUSY);
    assert_eq!(c.run(vec![putfh(&fh), close(&id)]).await.status, st::OK);
    assert_eq!(c.exchange(&destroy_client).await.status, st::CLIENTID_BUSY);
    assert_eq!(c.exchange(&destroy_session).await.status, st::OK);
    assert_eq!(c.exchange(&destroy_session).await.status, st::BADSESSION);
    assert_eq!(c.exchange(&destroy_client).await.status, st::OK);
    assert_eq!(c.exchange(&destroy_client).await.status, st::STALE_CLIENTID);
    assert_eq!((peer.session_count(), peer.client_count()), (0, 0));
}
