//! Attributes of an inode, written down for another process.
//!
//! Nobody believes them there before the server was asked once more. What is kept of them is
//! kept to be compared: by the change attribute a change of another host is noticed, also one
//! of the time in which nobody looked.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{AttrState, Life, Millis, Timeouts};
use crate::vfs::file::pages::Moves;
use crate::vfs::types::{FileKind, Ino, Stat, Timestamp};

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

/// What the write-ahead log has of attributes. There is one for each inode, so it is short: what was
/// moved since it was written is looked for by the change attribute. Times and blocks are not in
/// it: whatever the server tells is later, and nobody is told them before it was asked. Of an object
/// that is gone by then, as a removed directory that somebody works in, they are those of 1970.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::vfs) struct LoggedAttr {
    /// `st_ino`, where it is another than the number of the inode.
    shown: Option<Ino>,
    kind: u8,
    perm: u16,
    nlink: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    size: u64,
    /// Where it is another than `size`.
    server_size: Option<u64>,
    largest: Option<u64>,
    change: u64,
    foreign: Moves,
    hidden: bool,
    life: u8,
}

const KINDS: [FileKind; 7] = [
    FileKind::Regular,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::BlockDevice,
    FileKind::CharDevice,
];
const LIVES: [Life; 3] = [Life::Sure, Life::Unsure, Life::Over];

/// Where a value is among all; they are fewer than 256.
fn number_of<T: PartialEq>(all: &[T], value: &T) -> u8 {
    let at = all.iter().position(|known| known == value);
    at.unwrap_or_default() as u8
}

impl LoggedAttr {
    /// These are of the inode `ino`.
    pub(in crate::vfs) fn of(self, ino: Ino) -> AttrRecord {
        let at = |number: u8| usize::from(number);
        AttrRecord {
            stat: Stat {
                ino: self.shown.unwrap_or(ino),
                kind: KINDS[at(self.kind).min(KINDS.len() - 1)],
                perm: self.perm,
                nlink: self.nlink,
                uid: self.uid,
                gid: self.gid,
                rdev: self.rdev,
                size: self.size,
                blocks: 0,
                blksize: 0,
                atime: Timestamp::default(),
                mtime: Timestamp::default(),
                ctime: Timestamp::default(),
            },
            server_size: self.server_size.unwrap_or(self.size),
            largest: self.largest.unwrap_or(self.size),
            change: self.change,
            foreign: self.foreign,
            hidden: self.hidden,
            life: LIVES[at(self.life).min(LIVES.len() - 1)],
            explained: vec![self.change],
        }
    }
}

impl AttrState {
    /// What the log has of them, which are those of the inode `of`.
    pub(in crate::vfs) fn logged(&self, of: Ino) -> LoggedAttr {
        let Stat {
            ino,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            size,
            ..
        } = self.stat;
        LoggedAttr {
            shown: Some(ino).filter(|shown| *shown != of),
            kind: number_of(&KINDS, &kind),
            perm,
            nlink,
            uid,
            gid,
            rdev,
            size,
            server_size: Some(self.server_size).filter(|other| *other != size),
            largest: Some(self.largest).filter(|other| *other != size),
            change: self.change,
            foreign: self.foreign,
            hidden: self.hidden,
            life: number_of(&LIVES, &self.life),
        }
    }

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
            own_times: false,
            hidden: record.hidden,
            life: record.life,
            accepted: None,
            explained: record.explained.into(),
        }
    }
}
