//! What encoding and decoding cost: allocations, which are exact and checked,
//! and time, which is shown against the time of a small `memcpy` of the same
//! process, so that numbers of two machines compare.
//!
//! `cargo test` runs this file for the counts alone, `cargo bench` for the
//! times as well.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use efs_fuse::nfs::proto::attrs::{CHANGE_ONLY, OBJECT};
use efs_fuse::nfs::proto::compound::{Compound, SlotUse};
use efs_fuse::nfs::proto::ops::Op;
use efs_fuse::nfs::proto::reply::Reply;
use efs_fuse::nfs::proto::types::{FileHandle, Stable, StateId};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::call::Message;
use efs_fuse::xdr::{Decoder, Encoder};

/// The system's allocator, counted for each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: usize) {
    // A thread that ends allocates without its counters.
    let _ = COUNT.try_with(|cell| {
        let (calls, total) = cell.get();
        cell.set((calls + 1, total + bytes));
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for this function.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as for this function.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What may be spent on one run: allocations, and bytes asked for in them.
struct Case {
    name: &'static str,
    calls: usize,
    bytes: usize,
    run: Box<dyn Fn()>,
}

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
        calls: 2,
        bytes: 1024,
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
        calls: 5,
        bytes: 1024,
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
        calls: 0,
        bytes: 0,
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
        calls: ENTRIES + 16,
        bytes: ENTRIES * 2048,
        run: Box::new(move || {
            let taken = Reply::parse(body.clone(), &[Op::ReadDir]).and_then(|mut r| r.dir());
            assert_eq!(taken.map(|page| page.entries.len()), Ok(ENTRIES));
        }),
    }
}

/// The time of one run: the shortest of some batches.
fn time(run: &dyn Fn()) -> Duration {
    let batch = |times: u32| {
        let start = Instant::now();
        (0..times).for_each(|_| run());
        start.elapsed()
    };
    let once = batch(1).max(Duration::from_nanos(100));
    let times = (Duration::from_millis(20).as_nanos() / once.as_nanos()).clamp(1, 100_000) as u32;
    let best = (0..10).map(|_| batch(times)).min();
    best.unwrap_or_default() / times
}

fn main() {
    let with_times = std::env::args().any(|argument| argument == "--bench");
    let source = vec![7_u8; 4096];
    let unit = time(&|| drop(black_box(source.clone())));
    let cases = [
        lookup(),
        write(),
        read("decode READ of 4 KiB", 4096),
        read("decode READ of 1 MiB", MIB),
        readdir(),
    ];
    let mut over = 0;
    for case in cases {
        (case.run)(); // what is made once is made now
        let before = COUNT.get();
        (case.run)();
        let after = COUNT.get();
        let (calls, bytes) = (after.0 - before.0, after.1 - before.1);
        print!("{:<24} {calls:>5} allocations {bytes:>8} bytes", case.name);
        if with_times {
            let took = time(&*case.run);
            let ratio = took.as_secs_f64() / unit.as_secs_f64();
            print!("  {took:>10.1?} = {ratio:.2} copies of 4 KiB");
        }
        if calls > case.calls || bytes > case.bytes {
            over += 1;
            print!("  OVER {} allocations {} bytes", case.calls, case.bytes);
        }
        println!();
    }
    assert_eq!(over, 0, "cases that allocate more than they may");
}
