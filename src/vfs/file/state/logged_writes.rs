//! Accepted data in the write-ahead log, as long as they are not stable.
//!
//! Records are let go in the order in which they were put, and as a drain sees it: when nothing is
//! left of what was accepted up to then. So a record of older bytes never outlives one of newer bytes
//! in their place, and after fsync(2), close(2) or the end of a lock nothing is left that
//! was accepted before: written again later it would go over what another host has written
//! since.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::vfs::file::origin::Origin;
use crate::vfs::writeback::{WriteTicket, Writeback};
use crate::wal::{Table, Wal};

/// A record, and the data that it names, which are not given to others as long as it is there.
#[derive(Debug)]
struct LoggedWrite {
    accepted: WriteTicket,
    key: u64,
    _data: Bytes,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LoggedWrites(VecDeque<LoggedWrite>);

impl LoggedWrites {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, accepted: WriteTicket, key: u64, data: Bytes) {
        self.0.push_back(LoggedWrite {
            accepted,
            key,
            _data: data,
        });
    }

    pub(super) fn settle(&mut self, writeback: &Writeback<Origin>, wal: &Wal) {
        let oldest = writeback.oldest();
        while let Some(first) = self.0.front()
            && oldest.is_none_or(|oldest| first.accepted.is_before(oldest))
        {
            wal.remove(Table::Write, first.key);
            self.0.pop_front();
        }
    }
}
