//! What is read of the daemon before: a state that it has left, or the log of one that was
//! killed.
//!
//! In the log the mount has one record, of [`Table::Mount`]. The layers below have theirs, from
//! which they restore what the daemon had; from there on both kinds of state go the
//! same way.

use std::fs::File;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::memory::{self, Unreadable};
use super::{HandedOver, Mounted};
use crate::fuse::{InitValues, WalksUnderWay};
use crate::mount::keeper::Died;
use crate::mount::owner::OwnerState;
use crate::nfs::handover::{ClientState, Unanswered};
use crate::vfs::handover::VfsState;
use crate::wal::{self, Survived, Table, Wal};

/// The take-overs of a mount so far, for `status` and the metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Past {
    /// Those that were asked for.
    pub planned: u64,
    /// How often a daemon has died and was followed by another.
    pub crashes: u64,
}

/// The record of the mount.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: String,
    generation: u64,
    mounted: Mounted,
    owner: OwnerState,
    init: InitValues,
    past: Past,
}

/// What the record of a mount is made of.
#[derive(Debug)]
pub struct Serving<'a> {
    /// How often the mount was handed over.
    pub generation: u64,
    /// How it was mounted.
    pub mounted: Mounted,
    /// Who the daemon is to the server.
    pub owner: OwnerState,
    /// What the kernel has offered when it was mounted.
    pub init: &'a InitValues,
    /// The take-overs so far.
    pub past: Past,
}

/// Records how the mount is served by this daemon.
pub fn put(wal: &Wal, serving: Serving<'_>) {
    let record = Record {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        generation: serving.generation,
        mounted: serving.mounted,
        owner: serving.owner,
        init: serving.init.clone(),
        past: serving.past,
    };
    wal.put(Table::Mount, 0, &record);
}

/// Reads what the daemon before has left, which stays there. `died` says how it has ended, if
/// that was a crash.
///
/// # Errors
/// It has left nothing that can be understood.
pub fn read(memory: &File, died: Option<Died>) -> Result<HandedOver, Unreadable> {
    let state = match Survived::is_log(memory)? {
        false => memory::read(memory)?,
        true => of_log(&Survived::read(memory.try_clone()?)?)?,
    };
    let paused_at = match died {
        Some(died) => died.noticed,
        None if state.paused_at.is_zero() => wal::clock(),
        None => state.paused_at,
    };
    Ok(HandedOver { paused_at, ..state })
}

fn of_log(log: &Survived) -> Result<HandedOver, wal::Unreadable> {
    let record: Record = log.only(Table::Mount)?;
    let mut client = ClientState::survived(log)?;
    Ok(HandedOver {
        version: record.version,
        generation: record.generation,
        // Who is killed does not know when.
        paused_at: Duration::ZERO,
        mounted: record.mounted,
        owner: record.owner,
        init: record.init,
        past: record.past,
        vfs: VfsState::survived(log, &mut client)?,
        client,
        walks: WalksUnderWay::survived(log)?,
        unanswered: Unanswered::read(log)?,
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn record() -> Record {
        Record {
            version: "1".to_owned(),
            generation: 7,
            mounted: Mounted::example(),
            owner: crate::mount::owner::Owner::passing()
                .expect("an owner")
                .hand_over(),
            init: InitValues {
                major: 7,
                minor: 45,
                max_readahead: 1,
                offered: 2,
                agreed: 3,
                mount: Some("0:77".to_owned()),
            },
            past: Past {
                planned: 4,
                crashes: 3,
            },
        }
    }

    #[test]
    fn how_a_mount_is_served_is_read_from_its_log_as_it_was_put_last() -> io::Result<()> {
        let wal = Wal::create(0)?;
        for generation in [6, 7] {
            let Record {
                mounted,
                owner,
                init,
                past,
                ..
            } = record();
            let init = &init;
            let serving = Serving {
                generation,
                mounted,
                owner,
                init,
                past,
            };
            put(&wal, serving);
        }
        let memory = wal.memory().ok_or(io::ErrorKind::NotFound)?;
        let log = Survived::read(memory.try_clone()?).map_err(io::Error::other)?;
        let read: Record = log.only(Table::Mount).map_err(io::Error::other)?;
        let expected = record();
        assert_eq!(read.version, env!("CARGO_PKG_VERSION"));
        assert_eq!((read.generation, read.past), (7, expected.past));
        assert_eq!((read.mounted, read.init), (expected.mounted, expected.init));
        Ok(())
    }

    #[test]
    fn a_log_without_a_mount_is_refused() -> io::Result<()> {
        let wal = Wal::create(0)?;
        let memory = wal.memory().ok_or(io::ErrorKind::NotFound)?;
        assert!(matches!(read(memory, None), Err(Unreadable::Log(_))));
        Ok(())
    }
}
