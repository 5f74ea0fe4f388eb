//! What a test may do to single operations, and what it can see afterwards.

use std::collections::VecDeque;
use std::time::Duration;

use super::fs::Status;

/// One operation about to run. SEQUENCE is an operation like any other; the
/// operations of a replayed compound are not seen again.
#[derive(Debug)]
pub(crate) struct OpEvent<'a> {
    pub(crate) op: u32,
    /// Position in its compound.
    pub(crate) op_index: usize,
    /// All operation numbers of the compound.
    pub(crate) compound: &'a [u32],
    /// From SEQUENCE; `None` for calls outside of a session.
    pub(crate) slot: Option<u32>,
    pub(crate) seqid: Option<u32>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) gids: &'a [u32],
    pub(crate) conn_id: u64,
    pub(crate) xid: u32,
}

/// Rewrites the RPC reply message (without record marks).
pub(crate) type Rewrite = Box<dyn FnOnce(Vec<u8>) -> Vec<u8> + Send>;

/// What becomes of an operation, or of its whole compound.
pub(crate) enum Action {
    Pass,
    /// The operation is not run and fails with this status.
    Fail(Status),
    /// The operation runs, and is then said to have failed.
    FailAfter(Status),
    /// The operation runs after this time.
    Delay(Duration),
    /// The connection is cut; neither this operation nor those behind it run,
    /// and the slot is as before the call.
    DropConnectionBefore,
    /// The compound runs to its end and is cached, but instead of the reply
    /// the connection is cut.
    DropConnectionAfter,
    /// The compound runs to its end; no reply comes, the connection stays.
    SwallowReply,
    /// Nothing runs any more and no reply comes: a server that hangs. A retry
    /// of the call finds its slot in use, and the client's lease does not end.
    Hang,
    /// The reply comes with everything behind its xid damaged.
    Garble,
    /// The reply comes twice.
    Duplicate,
    /// The reply is what the closure makes of it.
    Rewrite(Rewrite),
}

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Pass => "Pass",
            Self::Fail(_) => "Fail",
            Self::FailAfter(_) => "FailAfter",
            Self::Delay(_) => "Delay",
            Self::DropConnectionBefore => "DropConnectionBefore",
            Self::DropConnectionAfter => "DropConnectionAfter",
            Self::SwallowReply => "SwallowReply",
            Self::Hang => "Hang",
            Self::Garble => "Garble",
            Self::Duplicate => "Duplicate",
            Self::Rewrite(_) => "Rewrite",
        };
        f.write_str(name)
    }
}

pub(crate) type Hook = Box<dyn FnMut(&OpEvent<'_>) -> Action + Send>;

/// One COMPOUND that was answered (or would have been, but for the script).
#[derive(Debug, Clone)]
pub(crate) struct Executed {
    /// Operation numbers as sent.
    pub(crate) ops: Vec<u32>,
    /// Status of each operation that ran; the last is that of the compound.
    /// Empty if the compound was replayed.
    pub(crate) statuses: Vec<Status>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) gids: Vec<u32>,
    pub(crate) slot: Option<u32>,
    pub(crate) seqid: Option<u32>,
    pub(crate) conn_id: u64,
    pub(crate) xid: u32,
    /// Since the double was made.
    pub(crate) at: Duration,
    /// Answered from the slot's cache.
    pub(crate) replayed: bool,
    /// Bytes of the RPC messages.
    pub(crate) request_len: usize,
    pub(crate) reply_len: usize,
}

/// The last compounds and the counts of all.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) entries: VecDeque<Executed>,
    pub(super) round_trips: u64,
    pub(super) max_ops: u32,
}

impl Log {
    /// Entries kept; older ones are dropped.
    const CAPACITY: usize = 100_000;

    pub(super) fn push(&mut self, entry: Executed) {
        if self.entries.len() == Self::CAPACITY {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }
}
