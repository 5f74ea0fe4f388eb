//! The double judged by hand-made bytes, not by the client it is made for.

mod faults;
mod files;
mod session;

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
