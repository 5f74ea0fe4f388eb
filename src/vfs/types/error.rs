//! Why an operation has failed: the errno(3) for the program, and what that comes from.
//!
//! What the vfs decides by itself is an [`Errno`] and needs no cause: the errno says it
//! all. What a request to the server has come to, or what is wrong with its answer, carries
//! a [`Cause`] up to whoever answers the kernel, and is logged there, once. An error of write-back is kept with its
//! cause until fsync(2) or close(2) tells of it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Errno, Ino};
use crate::nfs::NfsError;
use crate::rpc::RpcError;

/// What an operation of the vfs comes to.
pub type VfsResult<T> = Result<T, VfsError>;

/// Why an operation has failed. It is part of every future, so it is two words; and it is
/// cloned, because a write error is told by every descriptor of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct VfsError(Why);

#[derive(Clone, PartialEq, Eq)]
enum Why {
    /// It was decided here.
    Decided(Errno),
    Caused(Arc<(Errno, Cause)>),
}

/// What has failed, and for which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The write-back of a file does not know which file that is; who is told by it does.
    ino: Option<Ino>,
    failure: Failure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// A request to the server.
    Nfs(NfsError),
    /// What was found wrong here, though the server has said that all is well.
    Found(&'static str),
    /// As the process that had the mount before has said it.
    HandedOver(Box<str>),
}

/// A [`VfsError`], written down for another process: what it comes from as people read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vfs) struct ErrorRecord {
    errno: i32,
    cause: Option<(Option<Ino>, String)>,
}

impl From<ErrorRecord> for VfsError {
    fn from(record: ErrorRecord) -> Self {
        let errno = Errno(record.errno);
        Self(match record.cause {
            None => Why::Decided(errno),
            Some((ino, text)) => {
                let failure = Failure::HandedOver(text.into());
                Why::Caused(Arc::new((errno, Cause { ino, failure })))
            }
        })
    }
}

impl VfsError {
    /// What `error`, of a request for the inode `ino`, is to the caller.
    pub(in crate::vfs) fn caused(errno: Errno, error: &NfsError, ino: Ino) -> Self {
        let failure = Failure::Nfs(error.clone());
        let ino = Some(ino);
        Self(Why::Caused(Arc::new((errno, Cause { ino, failure }))))
    }

    /// EIO, because of what was `found` wrong with the object `ino`, or with the file whose
    /// write-back says so (`None`).
    pub(in crate::vfs) fn found(found: &'static str, ino: Option<Ino>) -> Self {
        let failure = Failure::Found(found);
        let errno = Errno(libc::EIO);
        Self(Why::Caused(Arc::new((errno, Cause { ino, failure }))))
    }

    /// What WRITE of the inode `ino` comes to that the server has answered with `status`
    /// (`nfsstat4`): for tests of layers that know no NFS.
    #[cfg(test)]
    pub(crate) fn of_refused_write(status: u32, ino: Ino) -> Self {
        use crate::nfs::proto::{ops::Op, status::Status};
        let error = NfsError::Status(Op::Write, Status(status));
        Self::caused(Errno(error.errno()), &error, ino)
    }

    /// What the program is told.
    pub fn errno(&self) -> Errno {
        match &self.0 {
            Why::Decided(errno) => *errno,
            Why::Caused(caused) => caused.0,
        }
    }

    /// Whether the program is told `errno` (`E*`).
    pub fn is(&self, errno: i32) -> bool {
        self.errno().0 == errno
    }

    /// What it comes from, if that was a request to the server.
    pub fn cause(&self) -> Option<&Cause> {
        match &self.0 {
            Why::Decided(_) => None,
            Why::Caused(caused) => Some(&caused.1),
        }
    }

    /// The error for another process.
    pub(in crate::vfs) fn record(&self) -> ErrorRecord {
        let cause = self.cause();
        ErrorRecord {
            errno: self.errno().raw(),
            cause: cause.map(|cause| (cause.ino, cause.failure.to_string())),
        }
    }

    /// The same cause under another errno: that of the server means something else to the
    /// caller.
    pub(in crate::vfs) fn told_as(self, errno: i32) -> Self {
        let errno = Errno(errno);
        match self.0 {
            Why::Caused(caused) if caused.0 != errno => {
                Self(Why::Caused(Arc::new((errno, caused.1.clone()))))
            }
            Why::Caused(caused) => Self(Why::Caused(caused)),
            Why::Decided(_) => Self(Why::Decided(errno)),
        }
    }
}

impl Cause {
    /// The object that the request was for: the directory, where it was for a name in it.
    /// `None`: the one whose data are written back.
    pub fn ino(&self) -> Option<Ino> {
        self.ino
    }

    /// What an operator may do about it.
    pub fn remedy(&self) -> &'static str {
        let error = match &self.failure {
            Failure::Nfs(error) => error,
            Failure::HandedOver(_) => {
                return "the daemon met it before it was upgraded: its log may say more";
            }
            Failure::Found(_) => return "try it once more, and report it if it comes again",
        };
        match error {
            NfsError::Rpc(RpcError::Abandoned { .. }) => {
                "the program did not wait for it: see why it was killed or interrupted"
            }
            NfsError::Rpc(RpcError::Closed) => {
                "the mount is being taken down, or has given its server up: mount it again"
            }
            NfsError::Rpc(_) => "see that the server speaks NFSv4.1 and accepts this host",
            NfsError::Garbled(..) => {
                "the server, or something on the way to it, does not keep to NFSv4.1: report it"
            }
            NfsError::StateLost => {
                "the open or its locks were lost while the server was not reached: \
                 open the file again"
            }
            NfsError::Unfit(_) | NfsError::Outgrown { .. } => {
                "the server's limits are too small: report it"
            }
            NfsError::Status(..) | NfsError::Compound(_) => {
                "the server says so: look there for the reason"
            }
        }
    }
}

impl From<Errno> for VfsError {
    fn from(errno: Errno) -> Self {
        Self(Why::Decided(errno))
    }
}

impl From<VfsError> for Errno {
    fn from(error: VfsError) -> Self {
        error.errno()
    }
}

impl PartialEq<Errno> for VfsError {
    fn eq(&self, errno: &Errno) -> bool {
        self.errno() == *errno
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nfs(error) => write!(f, "{error}"),
            Self::Found(found) => f.write_str(found),
            Self::HandedOver(said) => f.write_str(said),
        }
    }
}

/// As `READ: NFS4ERR_IO (inode 17)`.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failure)?;
        match self.ino {
            Some(ino) => write!(f, " (inode {ino})"),
            None => Ok(()),
        }
    }
}

/// As `Input/output error (os error 5), from READ: NFS4ERR_IO (inode 17)`.
impl fmt::Display for VfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause() {
            None => write!(f, "{}", self.errno()),
            Some(cause) => write!(f, "{}, from {cause}", self.errno()),
        }
    }
}

impl fmt::Debug for VfsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for VfsError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfs::proto::status::Status;

    fn quota() -> VfsError {
        VfsError::of_refused_write(Status::DQUOT.0, 17)
    }

    #[test]
    fn an_error_of_the_server_carries_its_cause() {
        let error = quota();
        assert_eq!(error, Errno(libc::EDQUOT));
        let cause = error.cause().expect("the server's status");
        assert_eq!(cause.ino(), Some(17));
        assert_eq!(cause.to_string(), "WRITE: NFS4ERR_DQUOT (inode 17)");
    }

    #[test]
    fn what_is_decided_here_has_no_cause() {
        let error = VfsError::from(Errno(libc::EBADF));
        assert!(error.is(libc::EBADF) && error.cause().is_none());
        assert!(error.told_as(libc::EIO).cause().is_none());
    }

    #[test]
    fn what_is_found_wrong_is_a_cause() {
        let error = VfsError::found("the server's listing stands still", Some(3));
        assert_eq!(error, Errno(libc::EIO));
        let cause = error.cause().expect("what was found").to_string();
        assert_eq!(cause, "the server's listing stands still (inode 3)");
    }

    #[test]
    fn another_errno_keeps_the_cause() {
        let error = quota().told_as(libc::ENOSPC);
        assert_eq!(error, Errno(libc::ENOSPC));
        assert_eq!(error.cause(), quota().cause());
    }

    #[test]
    fn an_error_that_is_handed_over_says_the_same() {
        for error in [quota(), Errno(libc::EIO).into()] {
            let again = VfsError::from(error.record());
            assert_eq!(again.to_string(), error.to_string());
            assert_eq!(again.record(), error.record(), "a second time");
        }
    }

    #[test]
    fn an_error_costs_a_future_two_words() {
        assert_eq!(size_of::<VfsError>(), 2 * size_of::<usize>());
        assert_eq!(size_of::<VfsResult<()>>(), 2 * size_of::<usize>());
    }
}
