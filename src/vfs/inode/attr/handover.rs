//! Attributes of an inode, written down for another process.
//!
//! Nobody believes them there before the server was asked once more. What is kept of them is
//! kept to be compared: by the change attribute a change of another host is noticed, also one
//! of the time in which nobody looked.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{AttrState, Life, Millis, Timeouts};
use crate::vfs::file::pages::Moves;
use crate::vfs::types::Stat;

/// See [`AttrState`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct AttrRecord {
    pub(in crate::vfs) stat: Stat,
    server_size: u64,
    largest: u64,
    change: u64,
    foreign: Moves,
    hidden: bool,
    life: Life,
    explained: Vec<u64>,
}

impl AttrState {
    /// What another process is to know.
    pub(in crate::vfs) fn record(&self) -> AttrRecord {
        AttrRecord {
            stat: self.stat.clone(),
            server_size: self.server_size,
            largest: self.largest,
            change: self.change,
            foreign: self.foreign,
            hidden: self.hidden,
            life: self.life,
            explained: self.explained.to_vec(),
        }
    }

    /// What another process has known. Whatever is asked for from `now` on is newer.
    pub(in crate::vfs) fn of_record(record: AttrRecord, now: Instant, timeouts: &Timeouts) -> Self {
        let (min, _) = timeouts.range(record.stat.kind);
        Self {
            stat: record.stat,
            server_size: record.server_size,
            largest: record.largest,
            change: record.change,
            sent: now,
            taken: now,
            foreign: record.foreign,
            changed: now,
            timeout: Millis::from(min),
            expired: true,
            hidden: record.hidden,
            life: record.life,
            explained: record.explained.into(),
        }
    }
}
