//! Open directories, written down for another process.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Dirs;
use super::handle::DirHandle;
use super::listing::Source;
use super::listing::handover::SourceRecord;
use crate::rpc::auth::Credential;
use crate::vfs::inode::name_hash::NameHashKey;
use crate::vfs::inode::table::handover::{Collected, Contradiction, InodeRef, Restored};

/// All open directories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct DirsState {
    pub(super) key: NameHashKey,
    pub(super) handles: Vec<DirRecord>,
}

/// See [`DirHandle`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct DirRecord {
    pub(super) fh: u64,
    pub(super) dir: InodeRef,
    pub(super) cred: Credential,
    pub(super) by: u32,
    pub(super) source: SourceRecord,
    pub(super) begun: bool,
    /// This host has changed the directory since `source` was made.
    pub(super) moved: bool,
}

impl DirsState {
    /// How many directories are open.
    pub(in crate::vfs) fn count(&self) -> usize {
        self.handles.len()
    }
}

impl Dirs {
    /// What another process is to know.
    pub(in crate::vfs) fn hand_over(&self, inodes: &mut Collected) -> DirsState {
        let open = self.handles.iter();
        let mut open: Vec<_> = open
            .map(|open| (*open.key(), Arc::clone(open.value())))
            .collect();
        open.sort_unstable_by_key(|(fh, _)| *fh);
        let handles = open.into_iter().map(|(fh, handle)| {
            let changes = handle.dir.names().lock().tracker.begun();
            DirRecord {
                fh,
                dir: inodes.refer(&handle.dir),
                cred: (*handle.cred).clone(),
                by: handle.by,
                source: handle.source.lock().record(),
                begun: handle.begun.load(Ordering::Relaxed),
                moved: handle.changes.load(Ordering::Relaxed) != changes,
            }
        });
        DirsState {
            key: NameHashKey::of_this_process(),
            handles: handles.collect(),
        }
    }

    /// Opens what was open in another process.
    pub(in crate::vfs) fn take_over(
        &self,
        state: DirsState,
        inodes: &Restored,
    ) -> Result<(), Contradiction> {
        let same_hashes = state.key.adopt();
        if !same_hashes && !state.handles.is_empty() {
            tracing::warn!(
                "names hash differently in this build: a directory that is being read is an \
                 error (EIO) to its reader if the server makes its listing start over"
            );
        }
        for record in state.handles {
            let dir = inodes.get(record.dir)?;
            let handle = DirHandle::new(record.fh, dir, &Arc::new(record.cred), record.by);
            self.log_dir(&handle);
            self.log_source(&handle, &record.source);
            *handle.source.lock() = Source::of_record(record.source, Instant::now(), same_hashes);
            handle.begun.store(record.begun, Ordering::Relaxed);
            let mut names = dir.names().lock();
            let changes = match record.moved {
                true => u64::MAX,
                false => names.tracker.begun(),
            };
            handle.changes.store(changes, Ordering::Relaxed);
            // What the kernel has of the listing is of before.
            names.begin_listing(None);
            drop(names);
            self.handles.insert(record.fh, Arc::new(handle));
            self.metrics.gauges.open_dirs.inc();
        }
        Ok(())
    }
}
