//! Requests are encoded and replies decoded.

use std::hint::black_box;

use bytes::Bytes;
use efs_fuse::nfs::proto::attrs::{CHANGE_ONLY, OBJECT};
use efs_fuse::nfs::proto::compound::{Compound, SlotUse};
use efs_fuse::nfs::proto::ops::Op;
use efs_fuse::nfs::proto::reply::Reply;
use efs_fuse::nfs::proto::types::{FileHandle, Stable, StateId};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::call::Message;
use efs_fuse::xdr::{Decoder, Encoder};

use crate::Case;

const MIB: usize = 1 << 20;

fn handle() -> FileHandle {
    let mut enc = Encoder::default();
    enc.opaque(&[7; 128]);
    let decoded = FileHandle::decode(&mut Decoder::new(enc.into_vec().into()));
    decoded.expect("a handle of 128 bytes")
}

fn send(compound: &Compound) {
    let slot = SlotUse {
        session: [1; 16],
        seqid: 2,
        slot: 3,
        highest: 4,
        keeps: true,
    };
    black_box(Message::seal(compound.finish(Some(slot)), 5));
}

fn lookup() -> Case {
    let (cred, dir) = (Credential::machine(), handle());
    Case {
        name: "encode LOOKUP",
        allocations: 2,
        bytes: 1024,
        instructions: [4_412, 1_573],
        times: 10_000,
        run: Box::new(move || {
            let mut compound = Compound::in_session(&cred, "host");
            compound
                .put(&dir)
                .get_attrs(CHANGE_ONLY)
                .lookup(b"a name of some length.txt")
                .get_handle()
                .get_attrs(OBJECT);
            send(&compound);
        }),
    }
}

fn write() -> Case {
    let (cred, file) = (Credential::machine(), handle());
    let data = [Bytes::from(vec![7; MIB])];
    Case {
        name: "encode WRITE of 1 MiB",
        allocations: 5,
        bytes: 1024,
        instructions: [5_908, 2_538],
        times: 10_000,
        run: Box::new(move || {
            let mut compound = Compound::in_session(&cred, "host");
            compound
                .put(&file)
                .get_attrs(CHANGE_ONLY)
                .write(StateId::ANONYMOUS, 0, Stable::Unstable, &data)
                .then()
                .get_attrs(OBJECT);
            send(&compound);
        }),
    }
}

/// The body of a reply with one result.
fn reply(op: Op, result: &[u8]) -> Bytes {
    let mut enc = Encoder::default();
    enc.u32(0).opaque(b"").u32(1).u32(op as u32).u32(0);
    let mut body = enc.into_vec();
    body.extend(result);
    body.into()
}

fn read(name: &'static str, len: usize) -> Case {
    let mut enc = Encoder::default();
    enc.bool(true).opaque(&vec![7; len]);
    let body = reply(Op::Read, enc.as_slice());
    Case {
        name,
        allocations: 0,
        bytes: 0,
        instructions: [688, 380],
        times: 10_000,
        run: Box::new(move || {
            let taken = Reply::parse(body.clone(), &[Op::Read]).and_then(|mut r| r.read());
            assert_eq!(taken.map(|read| read.data.len()), Ok(len));
        }),
    }
}

const ENTRIES: usize = 1000;

fn readdir() -> Case {
    let mut values = Encoder::default();
    values.u32(1).u64(7).u64(4096).u64(1).u64(2); // type, change, size, fsid
    values.opaque(&[7; 128]).u64(42).u32(0o644).u32(1); // filehandle .. numlinks
    values.opaque(b"1000").opaque(b"1000"); // owner, owner_group
    let low = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 19 | 1 << 20;
    let high = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5;
    let mut enc = Encoder::default();
    enc.fixed(&[9; 8]);
    for entry in 0..ENTRIES as u64 {
        enc.bool(true).u64(entry + 3).opaque(b"a name.txt");
        enc.u32(2).u32(low).u32(high).opaque(values.as_slice());
    }
    enc.bool(false).bool(true);
    let body = reply(Op::ReadDir, enc.as_slice());
    Case {
        name: "decode READDIR of 1,000",
        // One for each handle; the entries are in one growing array.
        allocations: ENTRIES + 16,
        bytes: ENTRIES * 2048,
        instructions: [2_861_000, 1_854_000],
        times: 20,
        run: Box::new(move || {
            let taken = Reply::parse(body.clone(), &[Op::ReadDir]).and_then(|mut r| r.dir());
            assert_eq!(taken.map(|page| page.entries.len()), Ok(ENTRIES));
        }),
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        lookup(),
        write(),
        read("decode READ of 4 KiB", 4096),
        read("decode READ of 1 MiB", MIB),
        readdir(),
    ]
}
