//! Files, directories, opens and locks.

use super::*;

#[tokio::test(start_paused = true)]
async fn create_write_read_and_close_fit_in_one_compound() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let mut r = c
        .run(vec![
            o(op::PUTROOTFH),
            open_create("me", "f"),
            o(op::GETFH),
            write(&CURRENT, 3, 2, b"hello"),
            read(&CURRENT, 0, 100),
            getattr(&[fattr::SIZE, fattr::MODE]),
            close(&CURRENT),
        ])
        .await;
    r.ok(&[op::SEQUENCE, op::PUTROOTFH]);
    let id = r.open();
    assert_eq!(id[..8], hex("00000001 00005eed"));
    assert_eq!(r.getfh().len(), 128);
    assert_eq!(r.next(op::WRITE), st::OK);
    // Five bytes, FILE_SYNC, verifier from the epoch.
    assert_eq!(
        r.d.fixed(),
        Ok(<[u8; 16]>::try_from(hex("00000005 00000002 00005eed 00000000")).expect("16"))
    );
    assert_eq!(r.next(op::READ), st::OK);
    assert_eq!(r.d.bool(), Ok(true));
    assert_eq!(r.d.opaque(100).expect("data"), &b"\0\0\0hello"[..]);
    assert_eq!(r.next(op::GETATTR), st::OK);
    // Bitmap of two words, twelve bytes: size 8, mode 0644.
    let attrs = hex("00000002 00000010 00000002 0000000c 0000000000000008 000001a4");
    assert_eq!(r.d.fixed(), Ok(<[u8; 28]>::try_from(attrs).expect("28")));
    assert_eq!(r.next(op::CLOSE), st::OK);
    assert_eq!(
        r.d.fixed(),
        Ok(<[u8; 16]>::try_from(hex("ffffffff 00000000 00000000 00000000")).expect("16"))
    );
    assert_eq!(r.d.remaining(), 0);
    assert_eq!(peer.fs().read_file("/f"), Ok(b"\0\0\0hello".to_vec()));
    assert_eq!(peer.open_count(), 0);
    assert_eq!(peer.max_ops_seen(), 8);
}

#[tokio::test(start_paused = true)]
async fn readdir_pages_give_every_entry_once() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let mut expected: Vec<String> = (0..200).map(|n| format!("file-{n}")).collect();
    for name in &expected {
        peer.fs()
            .write_file(&format!("/{name}"), b"x")
            .expect("make");
    }
    let readdir = |cookie: u64, verifier: u64, maxcount: u32| {
        let mut e = o(op::READDIR);
        e.u64(cookie).u64(verifier).u32(0).u32(maxcount);
        e.bitmap(Bits::of(&[fattr::FILEID]));
        vec![o(op::PUTROOTFH), e]
    };
    let (mut seen, mut cookie, mut verifier, mut pages) = (Vec::new(), 0, 0, 0);
    loop {
        let mut r = c.run(readdir(cookie, verifier, 1000)).await;
        r.ok(&[op::SEQUENCE, op::PUTROOTFH, op::READDIR]);
        assert!(r.d.remaining() <= 1000);
        verifier = r.d.u64().expect("verifier");
        while r.d.bool().expect("more") {
            cookie = r.d.u64().expect("cookie");
            assert!(cookie > 2);
            seen.push(String::from_utf8(r.d.opaque(255).expect("name").to_vec()).expect("utf8"));
            r.d.bitmap().expect("bitmap");
            r.d.opaque(100).expect("values");
        }
        pages += 1;
        // Another host's changes move nobody else's cookie.
        peer.fs().remove(&format!("/{}", seen[0])).ok();
        if r.d.bool().expect("eof") {
            break;
        }
    }
    assert!(pages > 5);
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
    for (cookie, verifier, maxcount, status) in [
        (0, 0, 20, st::TOOSMALL),
        (1, verifier, 1000, st::BAD_COOKIE),
        (99, 7, 1000, st::NOT_SAME),
    ] {
        assert_eq!(
            c.run(readdir(cookie, verifier, maxcount)).await.status,
            status
        );
    }
}

#[tokio::test(start_paused = true)]
async fn locks_conflict_between_owners_split_and_hold_up_close() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    let (id, fh) = c.create("f").await;
    let mut r = c.run(vec![putfh(&fh), lock(&id, "A", 0, 100)]).await;
    r.ok(&[op::SEQUENCE, op::PUTFH, op::LOCK]);
    let la: Sid = r.d.fixed().expect("stateid");

    let mut r = c.run(vec![putfh(&fh), lock(&id, "B", 50, u64::MAX)]).await;
    assert_eq!(r.status, st::DENIED);
    r.ok(&[op::SEQUENCE, op::PUTFH]);
    r.next(op::LOCK);
    assert_eq!((r.d.u64(), r.d.u64(), r.d.u32()), (Ok(0), Ok(100), Ok(2)));
    r.d.u64().expect("clientid");
    assert_eq!(r.d.opaque(64).expect("owner"), &b"A"[..]);

    assert_eq!(
        c.run(vec![putfh(&fh), close(&id)]).await.status,
        st::LOCKS_HELD
    );
    let unlock = |id: &Sid, offset: u64, len: u64| {
        let mut e = o(op::LOCKU);
        e.u32(1).u32(0).fixed(id).u64(offset).u64(len);
        e
    };
    let mut r = c.run(vec![putfh(&fh), unlock(&la, 40, 20)]).await;
    r.ok(&[op::SEQUENCE, op::PUTFH, op::LOCKU]);
    let la2: Sid = r.d.fixed().expect("stateid");
    assert_eq!(la2[3], la[3] + 1);
    assert_eq!(
        peer.fs().locks("/f"),
        Ok(vec![(0, 39, true), (60, 99, true)])
    );
    assert_eq!(
        c.run(vec![putfh(&fh), unlock(&la, 0, 1)]).await.status,
        st::OLD_STATEID
    );
    assert_eq!(
        c.run(vec![putfh(&fh), lock(&id, "B", 40, 20)]).await.status,
        st::OK
    );
    assert_eq!(peer.lock_count(), 3);
    assert_eq!(
        c.run(vec![putfh(&fh), lock(&id, "B", 5, 0)]).await.status,
        st::INVAL
    );
    assert_eq!(
        c.run(vec![putfh(&fh), lock(&id, "B", 5, u64::MAX - 4)])
            .await
            .status,
        st::INVAL
    );
}

#[tokio::test(start_paused = true)]
async fn a_removed_file_lives_until_its_last_close_and_its_id_is_not_mixed_up() {
    let peer = Peer::new(PeerConfig {
        reuse_fileids: true,
        ..PeerConfig::default()
    });
    let mut c = Client::ready(&peer, "a").await;
    let (id, fh) = c.create("f").await;
    let fileid = peer.fs().stat("/f").expect("stat").fileid;
    peer.fs().remove("/f").expect("remove");
    assert_eq!(
        c.run(vec![putfh(&fh), write(&id, 0, 2, b"x")]).await.status,
        st::OK
    );
    assert_eq!(c.run(vec![putfh(&fh), close(&id)]).await.status, st::OK);
    peer.fs().write_file("/g", b"").expect("make");
    assert_eq!(peer.fs().stat("/g").expect("stat").fileid, fileid);
    assert_eq!(c.run(vec![putfh(&fh)]).await.status, st::STALE);
}

#[tokio::test(start_paused = true)]
async fn opens_of_one_owner_merge_and_io_needs_their_access() {
    let peer = Peer::new(PeerConfig {
        commit_mode: CommitMode::FileSync,
        ..PeerConfig::default()
    });
    let mut c = Client::ready(&peer, "a").await;
    peer.fs().write_file("/f", b"data").expect("make");
    let open = |access: u32| {
        let mut e = o(op::OPEN);
        e.u32(0)
            .u32(access)
            .u32(0)
            .u64(0)
            .opaque(b"me")
            .u32(0)
            .u32(0)
            .opaque(b"f");
        vec![o(op::PUTROOTFH), e, o(op::GETFH)]
    };
    let mut r = c.run(open(1)).await;
    let first = r.ok(&[op::SEQUENCE, op::PUTROOTFH]).open();
    let fh = r.getfh();
    let w = |id: &Sid| vec![putfh(&fh), write(id, 0, 0, b"D")];
    assert_eq!(c.run(w(&first)).await.status, st::OPENMODE);
    let mut r = c.run(open(2)).await;
    let second = r.ok(&[op::SEQUENCE, op::PUTROOTFH]).open();
    assert_eq!((first[3], second[3]), (1, 2));
    assert_eq!(first[4..], second[4..]);
    assert_eq!(c.run(w(&first)).await.status, st::OLD_STATEID);
    let mut newest = second;
    newest[3] = 0;
    let mut r = c.run(w(&newest)).await;
    r.ok(&[op::SEQUENCE, op::PUTFH, op::WRITE]);
    assert_eq!(
        (r.d.u32(), r.d.u32()),
        (Ok(1), Ok(2)),
        "one byte, FILE_SYNC"
    );
    assert_eq!(peer.open_count(), 1);
    let mut exclusive = o(op::OPEN);
    exclusive
        .u32(0)
        .u32(3)
        .u32(0)
        .u64(0)
        .opaque(b"me")
        .u32(1)
        .u32(3);
    exclusive
        .fixed(b"verf0001")
        .u32(0)
        .u32(0)
        .u32(0)
        .opaque(b"x");
    let mut other = o(op::OPEN);
    other
        .u32(0)
        .u32(3)
        .u32(0)
        .u64(0)
        .opaque(b"me")
        .u32(1)
        .u32(3);
    other.fixed(b"verf0002").u32(0).u32(0).u32(0).opaque(b"x");
    for (open, status) in [
        (&exclusive, st::OK),
        (&exclusive, st::OK),
        (&other, st::EXIST),
    ] {
        assert_eq!(
            c.run(vec![o(op::PUTROOTFH), open.clone()]).await.status,
            status
        );
    }
}

#[tokio::test(start_paused = true)]
async fn permissions_are_those_of_each_calls_credential() {
    let peer = Peer::new(PeerConfig::default());
    let mut c = Client::ready(&peer, "a").await;
    peer.fs().write_file("/f", b"secret").expect("make");
    peer.fs().chmod("/f", 0o600).expect("chmod");
    c.uid = 1000;
    assert_eq!(c.mkdir("d").await, st::ACCESS);
    let anonymous = vec![
        o(op::PUTROOTFH),
        named(op::LOOKUP, "f"),
        read(&[0; 16], 0, 9),
    ];
    assert_eq!(c.run(anonymous.clone()).await.status, st::ACCESS);
    peer.fs().chown("/f", 1000, 1000).expect("chown");
    assert_eq!(c.run(anonymous).await.status, st::OK);
    let mut chown = o(op::SETATTR);
    chown.fixed(&[0; 16]).bitmap(Bits::of(&[fattr::OWNER]));
    chown.opaque(&hex("00000001 30000000"));
    let ops = vec![o(op::PUTROOTFH), named(op::LOOKUP, "f"), chown];
    assert_eq!(c.run(ops.clone()).await.status, st::PERM);
    c.uid = 0;
    assert_eq!(c.run(ops).await.status, st::OK);
    let uids: Vec<u32> = peer.log().iter().rev().take(2).map(|e| e.uid).collect();
    assert_eq!(uids, [0, 1000]);
}
