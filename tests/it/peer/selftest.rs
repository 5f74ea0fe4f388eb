//! The double judged by hand-made bytes, not by the client it is made for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use efs_fuse::rpc::transport::BoxStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::proto::{fattr, op, st};
use super::xdr::{Bits, Dec, Enc};
use super::{Action, CommitMode, Peer, PeerConfig};

/// Bytes from hex digits; white space is for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let nibble = |d: u8| (d as char).to_digit(16).unwrap_or(0) as u8;
    digits
        .chunks(2)
        .map(|p| nibble(p[0]) << 4 | nibble(p[1]))
        .collect()
}

/// One connection that speaks raw records.
struct Wire(BoxStream);

impl Wire {
    async fn connect(peer: &Arc<Peer>) -> Self {
        Self(peer.connector().connect().await.expect("connect"))
    }

    async fn send(&mut self, message: &[u8]) {
        let mark = 1 << 31 | message.len() as u32;
        self.0.write_all(&mark.to_be_bytes()).await.expect("send");
        self.0.write_all(message).await.expect("send");
    }

    /// The next record, or `None` when the connection ends.
    async fn receive(&mut self) -> Option<Vec<u8>> {
        let mut message = Vec::new();
        loop {
            let mark = self.0.read_u32().await.ok()?;
            let at = message.len();
            message.resize(at + (mark & 0x7fff_ffff) as usize, 0);
            self.0.read_exact(&mut message[at..]).await.ok()?;
            if mark >> 31 == 1 {
                return Some(message);
            }
        }
    }
}

/// A COMPOUND call by `uid` with the given operations.
fn call(xid: u32, uid: u32, ops: &[Enc]) -> Vec<u8> {
    let mut m = Enc::new();
    m.u32(xid).u32(0).u32(2).u32(100_003).u32(4).u32(1);
    let mut auth = Enc::new();
    auth.u32(0).opaque(b"host").u32(uid).u32(uid).u32(0);
    m.u32(1).opaque(&auth.0).u32(0).u32(0);
    m.u32(0).u32(1).u32(ops.len() as u32);
    ops.iter().for_each(|o| {
        m.raw(&o.0);
    });
    m.0
}

fn o(number: u32) -> Enc {
    let mut e = Enc::new();
    e.u32(number);
    e
}

fn named(number: u32, name: &str) -> Enc {
    let mut e = o(number);
    e.opaque(name.as_bytes());
    e
}

fn getattr(numbers: &[u32]) -> Enc {
    let mut e = o(op::GETATTR);
    e.bitmap(Bits::of(numbers));
    e
}

/// OPEN for both, UNCHECKED with mode 0644.
fn open_create(owner: &str, name: &str) -> Enc {
    let mut e = o(op::OPEN);
    e.u32(0).u32(3).u32(0).u64(0).opaque(owner.as_bytes());
    e.u32(1).u32(0).bitmap(Bits::of(&[fattr::MODE]));
    e.opaque(&0o644u32.to_be_bytes());
    e.u32(0).opaque(name.as_bytes());
    e
}

type Sid = [u8; 16];
const CURRENT: Sid = {
    let mut id = [0; 16];
    id[3] = 1;
    id
};

fn write(id: &Sid, offset: u64, stable: u32, data: &[u8]) -> Enc {
    let mut e = o(op::WRITE);
    e.fixed(id).u64(offset).u32(stable).opaque(data);
    e
}

fn read(id: &Sid, offset: u64, count: u32) -> Enc {
    let mut e = o(op::READ);
    e.fixed(id).u64(offset).u32(count);
    e
}

fn close(id: &Sid) -> Enc {
    let mut e = o(op::CLOSE);
    e.u32(0).fixed(id);
    e
}

fn putfh(fh: &[u8]) -> Enc {
    let mut e = o(op::PUTFH);
    e.opaque(fh);
    e
}

fn lock(open: &Sid, owner: &str, offset: u64, len: u64) -> Enc {
    let mut e = o(op::LOCK);
    e.u32(2).u32(0).u64(offset).u64(len);
    e.u32(1).u32(0).fixed(open).u32(0).u64(0);
    e.opaque(owner.as_bytes());
    e
}

/// The results of a COMPOUND: its status, and a cursor behind each head.
struct Results {
    status: u32,
    count: u32,
    d: Dec,
}

impl Results {
    fn parse(message: Vec<u8>) -> Self {
        let mut d = Dec::new(Bytes::from(message));
        let head: Vec<u32> = (0..6).map(|_| d.u32().expect("head")).collect();
        assert_eq!(&head[1..], [1, 0, 0, 0, 0], "an accepted reply");
        let status = d.u32().expect("status");
        d.opaque(1024).expect("tag");
        let count = d.u32().expect("count");
        Self { status, count, d }
    }

    /// Consumes the next result's head, which must be this operation's.
    fn next(&mut self, number: u32) -> u32 {
        assert_eq!(self.d.u32(), Ok(number), "{}", op::name(number));
        self.d.u32().expect("status")
    }

    /// Consumes SEQUENCE and results without a body.
    fn ok(&mut self, numbers: &[u32]) -> &mut Self {
        for number in numbers {
            assert_eq!(self.next(*number), st::OK, "{}", op::name(*number));
            match *number {
                op::SEQUENCE => drop(self.d.fixed::<36>()),
                op::REMOVE => drop(self.d.fixed::<20>()),
                op::OPEN => {}
                _ => {}
            }
        }
        self
    }

    /// Consumes OPEN4resok.
    fn open(&mut self) -> Sid {
        assert_eq!(self.next(op::OPEN), st::OK);
        let id = self.d.fixed().expect("stateid");
        self.d.fixed::<20>().expect("cinfo");
        self.d.u32().expect("rflags");
        self.d.bitmap().expect("attrset");
        assert_eq!(self.d.u32(), Ok(0), "no delegation");
        id
    }

    fn getfh(&mut self) -> Vec<u8> {
        assert_eq!(self.next(op::GETFH), st::OK);
        self.d.opaque(128).expect("fh").to_vec()
    }
}

/// A client with one session, its calls numbered per slot.
struct Client {
    wire: Wire,
    peer: Arc<Peer>,
    session: Sid,
    seqids: [u32; 4],
    xid: u32,
    uid: u32,
}

impl Client {
    /// EXCHANGE_ID and CREATE_SESSION as `owner`.
    async fn new(peer: &Arc<Peer>, owner: &str) -> Self {
        let mut wire = Wire::connect(peer).await;
        let mut e = o(op::EXCHANGE_ID);
        e.fixed(b"bootverf")
            .opaque(owner.as_bytes())
            .u32(0)
            .u32(0)
            .u32(0);
        wire.send(&call(1, 0, &[e])).await;
        let mut r = Results::parse(wire.receive().await.expect("reply"));
        assert_eq!(r.next(op::EXCHANGE_ID), st::OK);
        let id = r.d.u64().expect("clientid");
        let sequence = r.d.u32().expect("sequence");
        let mut e = o(op::CREATE_SESSION);
        e.u64(id).u32(sequence).u32(0);
        for _ in 0..2 {
            e.u32(0)
                .u32(1 << 20)
                .u32(1 << 20)
                .u32(4096)
                .u32(64)
                .u32(4)
                .u32(0);
        }
        e.u32(0x4000_0000).u32(0);
        wire.send(&call(2, 0, &[e])).await;
        let mut r = Results::parse(wire.receive().await.expect("reply"));
        assert_eq!(r.next(op::CREATE_SESSION), st::OK);
        Self {
            session: r.d.fixed().expect("session"),
            wire,
            peer: peer.clone(),
            seqids: [0; 4],
            xid: 100,
            uid: 0,
        }
    }

    /// The same, ready to OPEN.
    async fn ready(peer: &Arc<Peer>, owner: &str) -> Self {
        let mut client = Self::new(peer, owner).await;
        client.reclaim_complete().await;
        client
    }

    async fn reclaim_complete(&mut self) {
        let mut e = o(op::RECLAIM_COMPLETE);
        e.bool(false);
        assert_eq!(self.run(vec![e]).await.status, st::OK);
    }

    fn message(&mut self, slot: u32, seqid: u32, cache: bool, ops: Vec<Enc>) -> Vec<u8> {
        let mut seq = o(op::SEQUENCE);
        seq.fixed(&self.session)
            .u32(seqid)
            .u32(slot)
            .u32(3)
            .bool(cache);
        let mut all = vec![seq];
        all.extend(ops);
        self.xid += 1;
        call(self.xid, self.uid, &all)
    }

    /// The message of the next call on a slot.
    fn next(&mut self, slot: u32, cache: bool, ops: Vec<Enc>) -> Vec<u8> {
        self.seqids[slot as usize] += 1;
        self.message(slot, self.seqids[slot as usize], cache, ops)
    }

    async fn exchange(&mut self, message: &[u8]) -> Results {
        self.wire.send(message).await;
        Results::parse(self.wire.receive().await.expect("reply"))
    }

    async fn run(&mut self, ops: Vec<Enc>) -> Results {
        let message = self.next(0, true, ops);
        self.exchange(&message).await
    }

    async fn reconnect(&mut self) {
        self.wire = Wire::connect(&self.peer).await;
    }

    /// Makes and opens a file in the root.
    async fn create(&mut self, name: &str) -> (Sid, Vec<u8>) {
        let ops = vec![o(op::PUTROOTFH), open_create("me", name), o(op::GETFH)];
        let mut r = self.run(ops).await;
        r.ok(&[op::SEQUENCE, op::PUTROOTFH]);
        (r.open(), r.getfh())
    }

    async fn mkdir(&mut self, name: &str) -> u32 {
        let mut e = o(op::CREATE);
        e.u32(2).opaque(name.as_bytes()).u32(0).u32(0);
        self.run(vec![o(op::PUTROOTFH), e]).await.status
    }
}

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
