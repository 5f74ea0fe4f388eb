//! The state of a file, written down for another process when nothing of it is on its way.
//!
//! Not among it: what was read ahead, and what the kernel's pages are of. So the first open has
//! them dropped; those of files that stay open are dropped when the attributes, which are asked for
//! again, say that somebody else has changed the file.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{FileInner, HandleLocking, LateCut, Moves, SharedOpen};
use crate::nfs::proto::types::FileHandle;
use crate::nfs::state::OpenState;
use crate::nfs::state::locks::LockState;
use crate::rpc::auth::Credential;
use crate::vfs::file::silly_name::SillyName;
use crate::vfs::locks::locktable::{LockTable, OwnerRecord};
use crate::vfs::writeback::errseq::ErrSeqRecord;

/// See [`FileInner`]. `D` is how a directory is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct FileRecord<D> {
    errors: ErrSeqRecord,
    /// Pages are to be dropped a second time.
    cut_late: bool,
    beside: Moves,
    losses: Moves,
    cuts: Moves,
    writes: u64,
    filled: bool,
    preserved: bool,
    pub(in crate::vfs) silly: Option<SillyRecord<D>>,
    pub(in crate::vfs) owners: Vec<OwnerRecord>,
}

/// See [`SillyName`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct SillyRecord<D> {
    dir: D,
    #[serde(with = "as_bytes")]
    name: Vec<u8>,
    file: FileHandle,
    cred: Credential,
    first: Option<Credential>,
    was: Option<(D, Bytes)>,
}

/// Names are bytes, not lists of numbers.
mod as_bytes {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(name: &[u8], to: S) -> Result<S::Ok, S::Error> {
        Bytes::copy_from_slice(name).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Bytes::deserialize(from).map(|name| name.to_vec())
    }
}

impl<E> SillyRecord<E> {
    /// The hidden name, whose directory is known as `dir` says.
    pub(in crate::vfs) fn of<D>(silly: &SillyName<D>, mut dir: impl FnMut(&D) -> E) -> Self {
        let was = silly.was.as_ref();
        Self {
            was: was.map(|(was, name)| (dir(was), Bytes::copy_from_slice(name))),
            dir: dir(&silly.dir),
            name: silly.name.clone(),
            file: silly.file.clone(),
            cred: (*silly.cred).clone(),
            first: silly.first.as_deref().cloned(),
        }
    }

    /// The same, with its directory known otherwise.
    pub(in crate::vfs) fn known_as<F>(self, mut dir: impl FnMut(E) -> F) -> SillyRecord<F> {
        SillyRecord {
            was: self.was.map(|(was, name)| (dir(was), name)),
            dir: dir(self.dir),
            name: self.name,
            file: self.file,
            cred: self.cred,
            first: self.first,
        }
    }
}

impl<D> SillyRecord<D> {
    /// In what is its directory here.
    pub(in crate::vfs) fn restored<E, X>(
        self,
        mut dir: impl FnMut(D) -> Result<E, X>,
    ) -> Result<SillyName<E>, X> {
        let was = self.was.map(|(was, name)| Ok((dir(was)?, name.to_vec())));
        Ok(SillyName {
            was: was.transpose()?,
            dir: dir(self.dir)?,
            name: self.name,
            file: self.file,
            cred: Arc::new(self.cred),
            first: self.first.map(Arc::new),
        })
    }
}

/// What a file has of the server's, as it was found again.
#[derive(Debug)]
pub(in crate::vfs) struct Found<D> {
    /// The opens, and how many handles and owners of locks need each.
    pub(in crate::vfs) opens: Vec<(Arc<OpenState>, usize)>,
    pub(in crate::vfs) locks: LockTable,
    pub(in crate::vfs) retired: Vec<Arc<LockState>>,
    pub(in crate::vfs) silly: Option<SillyName<D>>,
}

impl<D> FileRecord<D> {
    /// What is known of a file whose process was killed. The kernel may have any pages of it.
    pub(in crate::vfs) fn survived(
        errors: ErrSeqRecord,
        silly: Option<SillyRecord<D>>,
        owners: Vec<OwnerRecord>,
    ) -> Self {
        Self {
            errors,
            cut_late: true,
            beside: 0,
            losses: 0,
            cuts: 0,
            writes: 0,
            filled: true,
            preserved: false,
            silly,
            owners,
        }
    }
}

impl<D> FileInner<D> {
    /// What another process is to know; `foreign` counts the foreign changes of the file, and
    /// `refer` says how a directory is known there.
    pub(in crate::vfs) fn record<E>(
        &self,
        foreign: Moves,
        mut refer: impl FnMut(&D) -> E,
    ) -> FileRecord<E> {
        let silly = self.silly.as_ref();
        FileRecord {
            errors: self.writeback.errors().record_of_all(),
            cut_late: self.late_cut.is_due(foreign),
            beside: self.beside,
            losses: self.losses,
            cuts: self.cuts,
            writes: self.writes,
            filled: self.filled,
            preserved: self.preserved,
            silly: silly.map(|silly| SillyRecord::of(silly, &mut refer)),
            owners: self.locks.records(),
        }
    }

    /// What another process has known, of a file that nobody has used here yet.
    pub(in crate::vfs) fn restore<E>(
        &mut self,
        record: FileRecord<E>,
        foreign: Moves,
        found: Found<D>,
    ) {
        self.writeback.errors_mut().restore(record.errors);
        self.late_cut = match record.cut_late {
            true => LateCut::due(foreign),
            false => LateCut::since(foreign),
        };
        self.beside = record.beside;
        self.losses = record.losses;
        self.cuts = record.cuts;
        self.writes = record.writes;
        self.filled = record.filled;
        self.preserved = record.preserved;
        self.silly = found.silly;
        let opens = found.opens.into_iter();
        self.opens = opens
            .map(|(open, users)| SharedOpen { open, users })
            .collect();
        self.locks = found.locks;
        self.retired = found.retired;
    }
}

impl HandleLocking {
    /// Of a handle that was (not) locked through in another process.
    pub(in crate::vfs) fn restored(was_used: bool) -> Self {
        Self {
            locked: was_used.into(),
            released: false.into(),
        }
    }
}
