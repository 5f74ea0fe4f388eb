//! What an NFS error is to a program: the one table.

use libc::c_int;

use super::proto::ops::Op;
use super::proto::reply::NfsError;
use super::proto::status::Status;
use crate::rpc::RpcError;

impl NfsError {
    /// The errno(3) number that a system call fails with.
    ///
    /// Statuses that the client has to deal with itself (DELAY, BADSESSION,
    /// ...) become EIO: that they come up here at all is a bug.
    pub fn errno(&self) -> c_int {
        match self {
            Self::Status(op, status) => status_errno(*op, *status),
            Self::Compound(status) => status_errno(Op::Sequence, *status),
            // Nobody is told: the caller has been answered.
            Self::Rpc(RpcError::Abandoned { .. }) => libc::EINTR,
            // The channel is closed only when the mount goes away.
            Self::Rpc(_)
            | Self::Garbled(..)
            | Self::StateLost
            | Self::Unfit(_)
            | Self::Outgrown { .. } => libc::EIO,
        }
    }
}

fn status_errno(op: Op, status: Status) -> c_int {
    match status {
        Status::PERM | Status::WRONGSEC => libc::EPERM,
        Status::NOENT => libc::ENOENT,
        Status::NXIO => libc::ENXIO,
        Status::ACCESS => libc::EACCES,
        // Another client denies what we ask for; nobody here can change that.
        Status::SHARE_DENIED => libc::EACCES,
        Status::EXIST => libc::EEXIST,
        Status::XDEV => libc::EXDEV,
        Status::NOTDIR => libc::ENOTDIR,
        Status::ISDIR => libc::EISDIR,
        Status::INVAL
        | Status::BADTYPE
        | Status::BADOWNER
        | Status::BADCHAR
        | Status::BADNAME
        | Status::BAD_RANGE
        | Status::LOCK_RANGE
        | Status::ATTRNOTSUPP => libc::EINVAL,
        Status::FBIG => libc::EFBIG,
        Status::NOSPC => libc::ENOSPC,
        Status::ROFS => libc::EROFS,
        Status::MLINK => libc::EMLINK,
        Status::NAMETOOLONG => libc::ENAMETOOLONG,
        Status::NOTEMPTY => libc::ENOTEMPTY,
        Status::DQUOT => libc::EDQUOT,
        Status::STALE | Status::BADHANDLE | Status::FHEXPIRED => libc::ESTALE,
        // nfs-ganesha says so of the handle of a file that is being removed.
        Status::SERVERFAULT if op == Op::PutFh => libc::ESTALE,
        // mknod(2): a server without devices (EFS) is a file system that does
        // not support the type.
        Status::NOTSUPP | Status::OP_ILLEGAL if op == Op::Create => libc::EPERM,
        Status::NOTSUPP | Status::OP_ILLEGAL if matches!(op, Op::Lock | Op::LockT | Op::LockU) => {
            libc::ENOLCK
        }
        Status::NOTSUPP | Status::OP_ILLEGAL => libc::EOPNOTSUPP,
        Status::DENIED | Status::LOCKED => libc::EAGAIN,
        Status::DEADLOCK => libc::EDEADLK,
        // OPEN met a symbolic link (or a FIFO, on some servers) where the
        // kernel believed in a file: it looks the name up again on ESTALE.
        Status::SYMLINK | Status::WRONG_TYPE if op == Op::Open => libc::ESTALE,
        Status::SYMLINK => libc::ELOOP,
        Status::WRONG_TYPE => libc::EINVAL,
        Status::FILE_OPEN => libc::EBUSY,
        Status::OPENMODE => libc::EBADF,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_the_errno_a_program_expects() {
        for (op, status, errno) in [
            (Op::Remove, Status::NOTEMPTY, libc::ENOTEMPTY),
            (Op::Create, Status::NOTSUPP, libc::EPERM),
            (Op::Lock, Status::NOTSUPP, libc::ENOLCK),
            (Op::SetAttr, Status::NOTSUPP, libc::EOPNOTSUPP),
            (Op::Write, Status::DQUOT, libc::EDQUOT),
            (Op::Open, Status::SYMLINK, libc::ESTALE),
            (Op::PutFh, Status::SERVERFAULT, libc::ESTALE),
            (Op::Read, Status::SERVERFAULT, libc::EIO),
            (Op::Read, Status(4711), libc::EIO),
        ] {
            assert_eq!(NfsError::Status(op, status).errno(), errno, "{status}");
        }
    }
}
