//! Everything that takes bytes from outside, each as a function that must not
//! panic, hang or allocate from a length it has not checked, whatever it is
//! given. Used by the fuzz targets beside it and by `tests/it/hostile.rs`.

mod answers;

use std::time::Duration;

use bytes::Bytes;
use efs_fuse::cli::option_list;
use efs_fuse::efs::Device;
use efs_fuse::mount::registry::Entry;
use efs_fuse::nfs::proto::attrs::Attributes;
use efs_fuse::nfs::proto::ops::Op;
use efs_fuse::nfs::proto::reply::Reply;
use efs_fuse::quoting;
use efs_fuse::rpc::call;
use efs_fuse::rpc::record::RecordReader;
use efs_fuse::telemetry::control;
use efs_fuse::telemetry::prometheus::{self, Answer, Shown};
use efs_fuse::xdr::Decoder;

#[allow(unused_imports)]
pub(super) use answers::{
    bind_reply, ca_file, certificate, container_credentials, efs_answer, http_answer,
    instance_metadata, role_credentials, sts_answer, tls_answer,
};

/// A record may be this long, here.
pub(super) const MAX_RECORD: usize = 1 << 16;

/// Record marking: splits the bytes into records, none longer than the limit.
pub(super) fn records(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let mut reader = RecordReader::new(data, MAX_RECORD);
        while let Ok(Some(record)) = reader.next().await {
            assert!(record.len() <= MAX_RECORD);
        }
    });
}

/// An RPC message from the server.
pub(super) fn rpc_reply(data: &[u8]) {
    let _ = call::parse(Bytes::copy_from_slice(data));
}

/// Takes a result; false if it is refused.
type Take = fn(&mut Reply) -> bool;

/// The operations whose results have a body, each with the decoder of it.
const RESULTS: &[(Op, Take)] = &[
    (Op::GetAttr, |r| r.attrs().is_ok()),
    (Op::GetFh, |r| r.handle().is_ok()),
    (Op::Remove, |r| r.change(Op::Remove).is_ok()),
    (Op::Link, |r| r.change(Op::Link).is_ok()),
    (Op::Rename, |r| r.renamed().is_ok()),
    (Op::Create, |r| r.created().is_ok()),
    (Op::SetAttr, |r| r.attrs_set().is_ok()),
    (Op::Access, |r| r.access().is_ok()),
    (Op::ReadLink, |r| r.link_text().is_ok()),
    (Op::Open, |r| r.open().is_ok()),
    (Op::Close, |r| r.stateid(Op::Close).is_ok()),
    (Op::Read, |r| r.read().is_ok()),
    (Op::Write, |r| r.written().is_ok()),
    (Op::Commit, |r| r.committed().is_ok()),
    (Op::ReadDir, |r| r.dir().is_ok()),
    (Op::PutFh, |r| r.ok(Op::PutFh).is_ok()),
    (Op::TestStateId, |r| r.states_tested().is_ok()),
    (Op::Lock, |r| r.locked().is_ok()),
    (Op::LockT, |r| r.lock_tested().is_ok()),
];

/// Operations whose results can be asked for.
pub(super) fn kinds() -> usize {
    RESULTS.len()
}

/// A COMPOUND of up to 16 operations. The first byte says how many, the next
/// ones which, the rest is the reply. Results are taken on after a failure, as
/// callers do for those that are only welcome.
pub(super) fn compound_reply(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else {
        return;
    };
    let count = usize::from(count % 16) + 1;
    if rest.len() < count {
        return;
    }
    let (which, body) = rest.split_at(count);
    let asked: Vec<_> = which
        .iter()
        .map(|&kind| RESULTS[usize::from(kind) % RESULTS.len()])
        .collect();
    let ops: Vec<Op> = asked.iter().map(|(op, _)| *op).collect();
    if let Ok(mut reply) = Reply::parse(Bytes::copy_from_slice(body), &ops) {
        let mut failed = false;
        for (_, take) in asked {
            let taken = take(&mut reply);
            assert!(!(failed && taken), "a result from behind a failure");
            failed |= !taken;
        }
    }
}

/// One result by its number, for a body that is only that result.
pub(super) fn result(kind: usize, body: &[u8]) {
    let (op, take) = RESULTS[kind % RESULTS.len()];
    if let Ok(mut reply) = Reply::parse(Bytes::copy_from_slice(body), &[op]) {
        take(&mut reply);
    }
}

/// A page of READDIR: more entries than its bytes can hold do not come out.
pub(super) fn readdir(data: &[u8]) {
    if let Ok(mut reply) = Reply::parse(Bytes::copy_from_slice(data), &[Op::ReadDir])
        && let Ok(page) = reply.dir()
    {
        assert!(page.entries.len() <= data.len() / 24);
    }
}

/// A fattr4.
pub(super) fn attributes(data: &[u8]) {
    let _ = Attributes::decode(&mut Decoder::new(Bytes::copy_from_slice(data)));
}

/// The `-o` lists of a mount command.
pub(super) fn options(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        for sloppy in [false, true] {
            if let Ok(read) = option_list::read(&[text], sloppy) {
                let _ = option_list::mean(&read.typed);
            }
        }
    }
}

/// What a user calls the server by.
pub(super) fn device(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Device::parse(text);
    }
}

/// A file of a registry, which its user may write by hand.
pub(super) fn registry_entry(data: &[u8]) {
    if let Some(entry) = Entry::parse(data) {
        let text = serde_json::to_vec(&entry).expect("what was read can be written");
        assert_eq!(Entry::parse(&text), Some(entry));
    }
}

/// What something that listens at a control socket answers.
pub(super) fn control_answer(data: &[u8]) {
    if let Ok(answer) = control::parse(data) {
        harmless(&quoting::plain(&answer.to_string()));
    }
}

/// What a daemon answers, on the page of metrics of all mounts: it makes no line of its own.
pub(super) fn metrics_page(data: &[u8]) {
    let Ok(answer) = control::parse(data) else {
        return;
    };
    let (numbers, status) = (answer["numbers"].clone(), answer["status"].clone());
    let page = prometheus::render(&[Shown {
        mountpoint: "/v".to_owned(),
        device: "h:/".to_owned(),
        took: Duration::ZERO,
        answer: Some(Answer { numbers, status }),
    }]);
    for line in page.lines() {
        let is_heading =
            line.starts_with("# HELP efs_fuse_") || line.starts_with("# TYPE efs_fuse_");
        let is_sample = line.starts_with("efs_fuse_") && line.contains("{mountpoint=\"/v\"");
        assert!(is_heading || is_sample, "{line}");
    }
}

/// A name, and text, as they are shown.
pub(super) fn shown(data: &[u8]) {
    harmless(&quoting::name(data).to_string());
    if let Ok(text) = std::str::from_utf8(data) {
        harmless(&quoting::plain(text));
    }
}

/// One line, which no terminal obeys.
fn harmless(text: &str) {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    assert!(
        !text.chars().any(|c| c.is_control() || turns(c)),
        "{text:?}"
    );
}
