//! Errors that came when whoever had asked was answered already: of data that were accepted, of
//! attributes that were set later, of names that are ahead of the server (`writeback`).
//!
//! Programs are told by the next fsync or close of the file
//! ([`errseq`](crate::vfs::writeback::errseq)), and, of what `writeback` has answered ahead, by the next
//! fsync of the directory. People are told by the log, and by `status`, which shows the last of
//! them with their paths for as long as the mount lives: that a program has not asked for its error
//! must not mean that nobody hears of it.
//!
//! The lock is taken with no other.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::Files;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Ino, VfsError};

/// So many are shown.
const SHOWN: usize = 32;

/// Of so many directories fsync tells what was refused; of more the log alone does.
const DIRECTORIES: usize = 4096;

/// An error that nobody waited for.
#[derive(Clone, Debug)]
pub struct LateError {
    /// The how manieth of the mount it is; of several of the same, the last.
    pub number: u64,
    /// When it came.
    pub at: SystemTime,
    /// The way to the object from the root of the mount, quoted for a shell.
    pub path: String,
    /// What was done, as a noun.
    pub what: &'static str,
    /// The error in words.
    pub error: String,
    /// How often in a row the same has happened to the same object.
    pub times: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LateErrors(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    count: u64,
    last: VecDeque<LateError>,
    /// What no fsync of the directory has told of.
    refused: BTreeMap<Ino, VfsError>,
}

impl LateErrors {
    /// Keeps one.
    fn record(&self, mut error: LateError) {
        let mut kept = self.0.lock();
        kept.count += 1;
        error.number = kept.count;
        if let Some(last) = kept.last.back_mut()
            && (&last.path, last.what, &last.error) == (&error.path, error.what, &error.error)
        {
            (last.times, last.number, last.at) = (last.times + 1, error.number, error.at);
            return;
        }
        if kept.last.len() == SHOWN {
            kept.last.pop_front();
        }
        kept.last.push_back(error);
    }

    /// The next fsync of the directory is to tell it, unless an earlier one is left to be told: then it
    /// is false.
    pub(super) fn refuse(&self, dir: Ino, error: VfsError) -> bool {
        let refused = &mut self.0.lock().refused;
        let has_room = refused.len() < DIRECTORIES && !refused.contains_key(&dir);
        if has_room {
            refused.insert(dir, error);
        }
        has_room
    }

    /// What fsync of a directory has to tell.
    pub(super) fn take(&self, dir: Ino) -> Option<VfsError> {
        self.0.lock().refused.remove(&dir)
    }

    fn all(&self) -> (u64, Vec<LateError>) {
        let kept = self.0.lock();
        (kept.count, kept.last.iter().cloned().collect())
    }
}

impl Files {
    /// What was accepted of a file has come to nothing.
    pub(super) fn failed_late(&self, inode: &Inode, what: &'static str, error: &VfsError) {
        self.tell_late(inode.path(), what, error);
        if self.is_ahead_allowed()
            && let Some(place) = inode.place()
        {
            self.refuse_late(place.dir.ino, error);
        }
    }

    fn refuse_late(&self, dir: Ino, error: &VfsError) {
        if self.late.refuse(dir, error.clone()) {
            self.log_refused(dir, error);
        }
    }

    /// A change of a name in this directory, or of the directory, was refused after it had been
    /// answered; `path` leads to what it was about.
    pub(super) fn refused_late(
        &self,
        dir: &Inode,
        path: String,
        what: &'static str,
        error: &VfsError,
    ) {
        self.tell_late(path, what, error);
        self.refuse_late(dir.ino, error);
    }

    fn tell_late(&self, path: String, what: &'static str, error: &VfsError) {
        self.late.record(LateError {
            number: 0,
            at: SystemTime::now(),
            path,
            what,
            error: error.to_string(),
            times: 1,
        });
    }

    /// How many errors have come late, and the last of them, the oldest first.
    pub(in crate::vfs) fn late_errors(&self) -> (u64, Vec<LateError>) {
        self.late.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::types::Errno;

    fn error(path: usize) -> LateError {
        LateError {
            number: 0,
            at: SystemTime::UNIX_EPOCH,
            path: format!("/{path}"),
            what: "data",
            error: "no space".to_owned(),
            times: 1,
        }
    }

    #[test]
    fn the_last_errors_are_shown_and_all_are_counted() {
        let late = LateErrors::default();
        for path in 0..SHOWN + 3 {
            late.record(error(path));
        }
        late.record(error(SHOWN + 2));
        let (count, last) = late.all();
        assert_eq!((count, last.len()), (SHOWN as u64 + 4, SHOWN));
        assert_eq!((&*last[0].path, last[0].times), ("/3", 1));
        let again = &last[SHOWN - 1];
        assert_eq!(
            (again.times, again.number),
            (2, count),
            "the same once more"
        );
    }

    #[test]
    fn a_directory_tells_the_first_error_once() {
        let late = LateErrors::default();
        late.refuse(7, Errno(libc::EDQUOT).into());
        late.refuse(7, Errno(libc::EIO).into());
        let told = late.take(7).map(|error| error.errno());
        assert_eq!(told, Some(Errno(libc::EDQUOT)));
        assert!(late.take(7).is_none() && late.take(8).is_none());
    }
}
