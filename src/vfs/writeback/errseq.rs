//! Write errors that reach every open descriptor once.
//!
//! A write(2) is answered before the server has taken its data, so an error
//! may come when nobody waits for it. The file keeps the latest error under a
//! number that moves with each one ([`ErrSeq`]); each open handle keeps the
//! number it has seen ([`Seen`]), one for its writes and one for its fsyncs. A handle
//! whose number is behind reports the
//! error at its next write, and at its next fsync or close, and is then level again. A handle
//! opened later starts level: it does not answer for what came before it. A close
//! reports the error and leaves the handle behind: what is closed may be a copy, in a
//! child about to execute a program, which must not take the error from its parent.
//!
//! Of several errors between two checks of a handle the last one is reported,
//! as the kernel's `errseq_t` does.

use serde::{Deserialize, Serialize};

use crate::vfs::types::{ErrorRecord, VfsError};

/// The error history of one file. Lives as long as the inode, under its lock.
#[derive(Debug, Default)]
pub(in crate::vfs) struct ErrSeq {
    /// Moves with every error; compared for equality only, so it may wrap.
    count: u32,
    /// The last error recorded.
    /// Behind a pointer, because every file that was opened has one of these, and next to
    /// none has an error.
    last: Option<Box<VfsError>>,
}

/// How much of an [`ErrSeq`] one open handle has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vfs) struct Seen(u32);

/// An [`ErrSeq`], written down for another process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs) struct ErrSeqRecord {
    count: u32,
    last: Option<ErrorRecord>,
}

impl ErrSeq {
    /// Makes `error` known to every handle that is open now.
    pub(in crate::vfs) fn record(&mut self, error: VfsError) {
        self.count = self.count.wrapping_add(1);
        self.last = Some(Box::new(error));
    }

    /// There was an error.
    pub(in crate::vfs) fn has_any(&self) -> bool {
        self.last.is_some()
    }

    /// What another process is to know, so that each handle tells there what it has not told here.
    pub(in crate::vfs) fn record_of_all(&self) -> ErrSeqRecord {
        ErrSeqRecord {
            count: self.count,
            last: self.last.as_deref().map(VfsError::record),
        }
    }

    /// What another process has known.
    pub(in crate::vfs) fn restore(&mut self, record: ErrSeqRecord) {
        self.count = record.count;
        self.last = record.last.map(|last| Box::new(last.into()));
    }

    /// What a handle that is being opened starts with: nothing to report.
    pub(in crate::vfs) fn sample(&self) -> Seen {
        Seen(self.count)
    }

    /// The error the handle has to report now, if one was recorded since it
    /// last asked. Asking again gives nothing until the next error.
    pub(in crate::vfs) fn check(&self, seen: &mut Seen) -> Option<VfsError> {
        if seen.0 == self.count {
            return None;
        }
        seen.0 = self.count;
        self.last.as_deref().cloned()
    }

    /// The same for a descriptor that is closed while another of the handle may stay
    /// open: that one still has it to report.
    pub(in crate::vfs) fn peek(&self, seen: &Seen) -> Option<VfsError> {
        match seen.0 != self.count {
            true => self.last.as_deref().cloned(),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::types::Errno;

    const EIO: Errno = Errno(libc::EIO);
    const ENOSPC: Errno = Errno(libc::ENOSPC);

    #[test]
    fn each_open_handle_reports_an_error_once() {
        let mut errors = ErrSeq::default();
        let (mut a, mut b) = (errors.sample(), errors.sample());
        errors.record(ENOSPC.into());
        assert_eq!(errors.check(&mut a), Some(ENOSPC.into()));
        assert_eq!(errors.check(&mut a), None);
        assert_eq!(errors.check(&mut b), Some(ENOSPC.into()));
        assert_eq!(errors.check(&mut b), None);
    }

    #[test]
    fn a_closed_copy_does_not_take_the_error_from_who_has_the_file_open() {
        let mut errors = ErrSeq::default();
        let mut seen = errors.sample();
        assert_eq!(errors.peek(&seen), None);
        errors.record(EIO.into());
        assert_eq!(errors.peek(&seen), Some(EIO.into()));
        assert_eq!(errors.check(&mut seen), Some(EIO.into()));
        assert_eq!(errors.peek(&seen), None);
    }

    #[test]
    fn a_later_handle_does_not_see_older_errors() {
        let mut errors = ErrSeq::default();
        errors.record(EIO.into());
        let mut late = errors.sample();
        assert_eq!(errors.check(&mut late), None);
        errors.record(EIO.into());
        assert_eq!(errors.check(&mut late), Some(EIO.into()));
    }

    #[test]
    fn of_several_errors_between_two_checks_the_last_is_reported() {
        let mut errors = ErrSeq::default();
        let mut seen = errors.sample();
        errors.record(ENOSPC.into());
        errors.record(EIO.into());
        assert_eq!(errors.check(&mut seen), Some(EIO.into()));
        assert_eq!(errors.check(&mut seen), None);
    }
}
