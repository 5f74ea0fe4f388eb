//! Open directories in the write-ahead log, for the case that this daemon is killed.
//!
//! A handle is one record. Its listing is more: each page that was taken of the server's listing, or all
//! names where those were known. They are numbered below the handle, and go when the listing
//! begins anew.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::Dirs;
use super::handle::DirHandle;
use super::handover::{DirRecord, DirsState};
use super::listing::handover::{GivenPage, SourceRecord};
use super::listing::{Source, Taken};
use crate::rpc::auth::Credential;
use crate::vfs::inode::name_hash::NameHashKey;
use crate::vfs::inode::table::logged::LoggedInodes;
use crate::vfs::types::Ino;
use crate::wal::{Survived, Table, Unreadable};

/// Records of one listing: more pages than this are not taken of any.
const PAGES: u64 = 1 << 20;

/// See [`DirHandle`].
#[derive(Serialize, Deserialize)]
struct LoggedDirHandle {
    ino: Ino,
    cred: Credential,
    by: u32,
}

/// A part of a listing. `S` is all of it.
#[derive(Serialize, Deserialize)]
enum LoggedListing<S> {
    Known(S),
    Page(GivenPage),
}

impl Dirs {
    /// The key that names hash with, before any hash is on record.
    pub(in crate::vfs) fn log_hashes(&self) {
        self.wal
            .put(Table::Hashes, 0, &NameHashKey::of_this_process());
    }

    pub(super) fn log_dir(&self, handle: &DirHandle) {
        if self.wal.is_on() {
            let record = LoggedDirHandle {
                ino: handle.dir.ino,
                cred: (*handle.cred).clone(),
                by: handle.by,
            };
            self.wal.put(Table::Dir, handle.fh, &record);
        }
    }

    pub(super) fn log_closed(&self, handle: &DirHandle) {
        self.wal.remove(Table::Dir, handle.fh);
        self.log_begin(handle);
    }

    /// The listing begins anew: nothing of it was given out.
    pub(super) fn log_begin(&self, handle: &DirHandle) {
        for page in 0..handle.logged.swap(0, Ordering::Relaxed) {
            self.wal.remove(Table::Listing, handle.fh * PAGES + page);
        }
    }

    fn log_listing<S: Serialize>(&self, handle: &DirHandle, part: &LoggedListing<S>) {
        let page = handle.logged.fetch_add(1, Ordering::Relaxed);
        let key = handle.fh * PAGES + page.min(PAGES - 1);
        self.wal.put(Table::Listing, key, part);
    }

    /// A page is about to be given out, after the first `from` names.
    pub(super) fn log_page(&self, handle: &DirHandle, from: usize, taken: &Taken) {
        if self.wal.is_on() {
            let page = GivenPage::of(from, taken);
            self.log_listing(handle, &LoggedListing::<SourceRecord>::Page(page));
        }
    }

    /// All names are known, and are about to be given out.
    pub(super) fn log_known(&self, handle: &DirHandle, source: &Source) {
        if self.wal.is_on() {
            self.log_begin(handle);
            self.log_listing(handle, &LoggedListing::Known(source.record()));
        }
    }

    /// What another process has given out.
    pub(super) fn log_source(&self, handle: &DirHandle, source: &SourceRecord) {
        if self.wal.is_on() {
            match source {
                SourceRecord::Known(_) => {
                    self.log_listing(handle, &LoggedListing::Known(source));
                }
                SourceRecord::Server(given) => {
                    let page = LoggedListing::<SourceRecord>::Page(given.as_page());
                    self.log_listing(handle, &page);
                }
            }
        }
    }
}

impl DirsState {
    /// The open directories of a daemon that was killed.
    pub(in crate::vfs) fn survived(
        survived: &Survived,
        inodes: &LoggedInodes,
    ) -> Result<Self, Unreadable> {
        let mut listings = BTreeMap::<u64, Vec<LoggedListing<SourceRecord>>>::new();
        for (key, part) in survived.table(Table::Listing)? {
            listings.entry(key / PAGES).or_default().push(part);
        }
        let handles: Vec<(u64, LoggedDirHandle)> = survived.table(Table::Dir)?;
        let handles = handles.into_iter().filter_map(|(fh, handle)| {
            let (mut known, mut pages) = (None, Vec::new());
            for part in listings.remove(&fh).unwrap_or_default() {
                match part {
                    LoggedListing::Known(all) => known = Some(all),
                    LoggedListing::Page(page) => pages.push(page),
                }
            }
            let given = || SourceRecord::Server(GivenPage::all(pages));
            Some(DirRecord {
                fh,
                dir: inodes.held(handle.ino)?,
                cred: handle.cred,
                by: handle.by,
                source: known.unwrap_or_else(given),
                begun: true,
                moved: true,
            })
        });
        Ok(Self {
            key: survived.only(Table::Hashes)?,
            handles: handles.collect(),
        })
    }
}
