//! Which socket a daemon has bound at a path that the user chose (`metrics=/SOCKET`).
//!
//! A daemon that was killed leaves its socket, in whose way the next one's is. What lies
//! at that path by then may be anybody's; it is removed only if it is the very socket that
//! a daemon of this user has noted here.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::private_dir::PrivateDir;

/// Paths are 4 KiB at most, and each byte of one up to six in JSON.
const MAX_CLAIM: u64 = 32 << 10;

/// One socket, told from all that may lie at its path later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// When the inode was changed last, in nanoseconds since 1970: its number may be given
    /// to another one.
    changed: i64,
}

impl Claim {
    pub(super) fn of(path: &Path, socket: &fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            device: socket.dev(),
            inode: socket.ino(),
            changed: (socket.ctime().saturating_mul(1_000_000_000))
                .saturating_add(socket.ctime_nsec()),
        }
    }

    pub(super) fn read(dir: &PrivateDir, name: &OsStr) -> Option<Self> {
        serde_json::from_slice(&dir.read(name, MAX_CLAIM).ok()?).ok()
    }

    /// It is about this socket.
    pub(super) fn is_of(&self, path: &Path, socket: &fs::Metadata) -> bool {
        *self == Self::of(path, socket)
    }

    /// The socket is still there.
    pub(super) fn stands(&self) -> bool {
        let about = fs::symlink_metadata(&self.path);
        about.is_ok_and(|about| self.is_of(&self.path, &about))
    }
}
