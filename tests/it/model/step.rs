//! The operations that are made up.

use proptest::prelude::*;

use crate::peer::proto::op;

/// Few names, so that steps meet each other.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A name, and the directories that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) dirs: Vec<&'static str>,
    pub(super) name: &'static str,
}

/// An open file: taken modulo the number of those.
pub(super) type Handle = usize;

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// open(2) with O_CREAT.
    Create {
        at: Place,
        flags: i32,
    },
    Open {
        at: Place,
        flags: i32,
    },
    Write {
        file: Handle,
        at: usize,
        len: usize,
    },
    Read {
        file: Handle,
        at: usize,
        len: usize,
    },
    Fsync(Handle),
    Close(Handle),
    Ftruncate(Handle, usize),
    /// fstat(2).
    Fstat(Handle),
    Truncate(Place, usize),
    Chmod(Place, u16),
    Stat(Place),
    Mkdir(Place),
    Symlink(Place),
    Link(Place, Place),
    Rename(Place, Place),
    Unlink(Place),
    Rmdir(Place),
    List {
        dirs: Vec<&'static str>,
        plus: bool,
    },
    Wait(u64),
    Foreign(Foreign),
    Fault(Fault),
}

/// What another host does; this one has time to notice.
#[derive(Clone, Debug)]
pub(super) enum Foreign {
    Write {
        at: Place,
        offset: usize,
        len: usize,
    },
    Truncate(Place, usize),
    Make(Place),
    Remove(Place),
    Rename(Place, Place),
}

#[derive(Clone, Debug)]
pub(super) enum Fault {
    Cut,
    /// The connection is cut at the next operation with this number.
    CutAt(u32, bool),
    LoseSession,
    LoseUnstable,
    Restart,
    Expire,
    Revoke,
    Latency(u64),
    ShortIo(u32, u32),
    Target(u32),
}

fn name() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(&NAMES[..])
}

fn dirs() -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![
        3 => Just(Vec::new()),
        2 => proptest::collection::vec(name(), 1),
        1 => proptest::collection::vec(name(), 2),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    (dirs(), name()).prop_map(|(dirs, name)| Place { dirs, name })
}

fn access() -> impl Strategy<Value = i32> {
    proptest::sample::select(vec![
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDWR,
    ])
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0..20_usize, 0..40_000_usize, 60_000..200_000_usize]
}

fn file_step() -> impl Strategy<Value = Step> {
    let file = || 0..6_usize;
    prop_oneof![
        4 => (file(), size(), size()).prop_map(|(file, at, len)| Step::Write { file, at, len }),
        4 => (file(), size(), size()).prop_map(|(file, at, len)| Step::Read { file, at, len }),
        1 => file().prop_map(Step::Fsync),
        2 => file().prop_map(Step::Close),
        1 => (file(), size()).prop_map(|(file, size)| Step::Ftruncate(file, size)),
        1 => file().prop_map(Step::Fstat),
    ]
}

fn name_step() -> impl Strategy<Value = Step> {
    let extra = proptest::sample::select(vec![0, 0, libc::O_EXCL, libc::O_TRUNC]);
    prop_oneof![
        6 => (place(), access(), extra)
            .prop_map(|(at, access, extra)| Step::Create { at, flags: access | extra }),
        4 => (place(), access(), any::<bool>()).prop_map(|(at, access, cut)| Step::Open {
            at,
            flags: access | if cut { libc::O_TRUNC } else { 0 },
        }),
        1 => (place(), size()).prop_map(|(at, size)| Step::Truncate(at, size)),
        1 => (place(), proptest::sample::select(vec![0o600, 0o644, 0o755]))
            .prop_map(|(at, perm)| Step::Chmod(at, perm)),
        3 => place().prop_map(Step::Stat),
        4 => place().prop_map(Step::Mkdir),
        1 => place().prop_map(Step::Symlink),
        3 => (place(), place()).prop_map(|(from, to)| Step::Link(from, to)),
        5 => (place(), place()).prop_map(|(from, to)| Step::Rename(from, to)),
        4 => place().prop_map(Step::Unlink),
        2 => place().prop_map(Step::Rmdir),
        3 => (dirs(), any::<bool>()).prop_map(|(dirs, plus)| Step::List { dirs, plus }),
        1 => prop_oneof![0..10_u64, 1000..100_000_u64].prop_map(Step::Wait),
    ]
}

fn foreign() -> impl Strategy<Value = Step> {
    prop_oneof![
        (place(), size(), size()).prop_map(|(at, offset, len)| Foreign::Write { at, offset, len }),
        (place(), size()).prop_map(|(at, size)| Foreign::Truncate(at, size)),
        place().prop_map(Foreign::Make),
        place().prop_map(Foreign::Remove),
        (place(), place()).prop_map(|(from, to)| Foreign::Rename(from, to)),
    ]
    .prop_map(Step::Foreign)
}

fn fault() -> impl Strategy<Value = Step> {
    let at = proptest::sample::select(vec![
        op::SEQUENCE,
        op::OPEN,
        op::CLOSE,
        op::WRITE,
        op::COMMIT,
        op::READ,
        op::CREATE,
        op::REMOVE,
        op::RENAME,
        op::LINK,
        op::SETATTR,
        op::READDIR,
    ]);
    prop_oneof![
        3 => Just(Fault::Cut),
        4 => (at, any::<bool>()).prop_map(|(op, after)| Fault::CutAt(op, after)),
        1 => Just(Fault::LoseSession),
        1 => Just(Fault::LoseUnstable),
        2 => Just(Fault::Restart),
        1 => Just(Fault::Expire),
        1 => Just(Fault::Revoke),
        2 => (1..20_u64).prop_map(Fault::Latency),
        1 => (1000..100_000_u32, 1000..100_000_u32).prop_map(|(w, r)| Fault::ShortIo(w, r)),
        1 => (0..64_u32).prop_map(Fault::Target),
    ]
    .prop_map(Step::Fault)
}

/// Steps of one host on a server without faults.
pub(super) fn calm(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![1 => file_step(), 1 => name_step()];
    proptest::collection::vec(step, 1..most)
}

/// The same, with everything that may happen.
pub(super) fn stormy(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => file_step(),
        8 => name_step(),
        2 => foreign(),
        3 => fault(),
    ];
    proptest::collection::vec(step, 1..most)
}
