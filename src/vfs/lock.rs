//! File locks.
//!
//! In this version locks are kept by the kernel and exclude only processes of
//! this host: the FUSE session does not ask for them (`KernelOptions::locks`),
//! so nothing here is called. Whatever comes all the same is refused, never
//! granted without the server.

use std::sync::Arc;

use super::Vfs;
use super::types::{Errno, Ino, LockRange};
use crate::rpc::auth::Credential;

impl Vfs {
    /// F_GETLK.
    pub async fn getlk(
        self: &Arc<Self>,
        _cred: &Arc<Credential>,
        _ino: Ino,
        _fh: u64,
        _owner: u64,
        _range: LockRange,
    ) -> Result<LockRange, Errno> {
        Err(Errno(libc::ENOLCK))
    }

    /// F_SETLK and F_SETLKW.
    pub async fn setlk(
        self: &Arc<Self>,
        _cred: &Arc<Credential>,
        _ino: Ino,
        _fh: u64,
        _owner: u64,
        _range: LockRange,
        _sleep: bool,
    ) -> Result<(), Errno> {
        Err(Errno(libc::ENOLCK))
    }
}
