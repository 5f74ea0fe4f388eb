//! The line of the log for a request that has failed: what, to what object, why, and what to
//! do. It is written once, where the kernel is answered.
//!
//! Most errors are everyday answers: a name is missing, a lock is taken, a caller was killed.
//! They are told at debug. What an operator should see is told at warn, and bounded: a server
//! that is full refuses every request.

use std::time::Instant;

use super::dispatch::FuseRequest;
use crate::telemetry::{FuseOp, LineLimit};
use crate::vfs::types::{Ino, VfsError};

/// Tells of requests that have failed.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    limit: LineLimit,
}

impl FailureLog {
    /// The request `call` has come to `error`.
    pub(super) fn log(&self, call: &FuseRequest, error: &VfsError) {
        let (id, tid) = (call.unique, call.tid);
        if !is_for_the_operator(call.op, error) {
            tracing::debug!(id, tid, "{}", line(call.op, call.ino, error));
        } else if let Some(left_out) = self.limit.room(Instant::now()) {
            tracing::warn!(id, tid, left_out, "{}", line(call.op, call.ino, error));
        }
    }
}

/// Whether the operator should see it. What has no cause was decided here, and is either an
/// everyday answer or was told when it was found out, as the loss of locks is.
fn is_for_the_operator(op: FuseOp, error: &VfsError) -> bool {
    if error.cause().is_none() {
        return false;
    }
    match error.errno().0 {
        libc::EIO | libc::ENOSPC | libc::EDQUOT => true,
        // The caller was killed, or has removed the file.
        libc::EINTR | libc::ESTALE => false,
        // write(2) or fchmod(2) has long succeeded, and what it did is lost.
        _ => is_late(op),
    }
}

/// Whether the operation tells of what others have failed to do.
fn is_late(op: FuseOp) -> bool {
    matches!(op, FuseOp::Flush | FuseOp::Fsync)
}

/// What is logged.
fn line(op: FuseOp, ino: Ino, error: &VfsError) -> String {
    let name = op.name();
    let Some(cause) = error.cause() else {
        return format!("{name} of inode {ino} has failed: {error}");
    };
    let remedy = match error.errno().0 {
        libc::ENOSPC | libc::EDQUOT => "make room at the server, or raise the quota there",
        _ => cause.remedy(),
    };
    let lost = match is_late(op) {
        true => "; what was written or changed before is lost",
        false => "",
    };
    format!("{name} of inode {ino} has failed: {error}{lost}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::types::Errno;

    const NFS4ERR_IO: u32 = 5;
    const NFS4ERR_ACCESS: u32 = 13;
    const NFS4ERR_DQUOT: u32 = 69;

    #[test]
    fn a_line_has_the_operations_the_inodes_the_status_and_what_to_do() {
        let error = VfsError::of_refused_write(NFS4ERR_IO, 17);
        assert_eq!(
            line(FuseOp::Write, 17, &error),
            "write of inode 17 has failed: Input/output error (os error 5), \
             from WRITE: NFS4ERR_IO (inode 17); the server says so: look there for the reason"
        );
        let error = VfsError::of_refused_write(NFS4ERR_DQUOT, 17);
        assert_eq!(
            line(FuseOp::Fsync, 17, &error),
            "fsync of inode 17 has failed: Disk quota exceeded (os error 122), \
             from WRITE: NFS4ERR_DQUOT (inode 17); what was written or changed before is lost; \
             make room at the server, or raise the quota there"
        );
    }

    #[test]
    fn a_line_of_what_was_decided_here_has_no_more_than_the_errno() {
        assert_eq!(
            line(FuseOp::Lookup, 1, &Errno(libc::ENAMETOOLONG).into()),
            "lookup of inode 1 has failed: File name too long (os error 36)"
        );
    }

    #[test]
    fn everyday_answers_are_not_for_the_operator_and_lost_data_are() {
        let (io, access) = (
            VfsError::of_refused_write(NFS4ERR_IO, 17),
            VfsError::of_refused_write(NFS4ERR_ACCESS, 17),
        );
        assert!(is_for_the_operator(FuseOp::Read, &io));
        assert!(!is_for_the_operator(FuseOp::Open, &access));
        assert!(is_for_the_operator(FuseOp::Flush, &access), "it is late");
        for errno in [libc::ENOENT, libc::EAGAIN, libc::EINTR, libc::EIO] {
            assert!(!is_for_the_operator(FuseOp::Fsync, &Errno(errno).into()));
        }
    }
}
