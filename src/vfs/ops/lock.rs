//! getlk, setlk: fcntl(2) and flock(2).

use std::sync::Arc;

use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::Vfs;
use crate::vfs::files::lock::{kind_of, span_of};
use crate::vfs::types::{LockRange, VfsResult, Waiting};

impl Vfs {
    /// F_GETLK. A holder on another host has process id 0.
    pub async fn getlk(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        fh: u64,
        owner: u64,
        range: LockRange,
    ) -> VfsResult<LockRange> {
        let handle = self.files.handle(fh)?;
        loop {
            let releases = self.files.releases(&handle.inode);
            let found = self.files.find_lock(cred, &handle, owner, range).await?;
            let nobody = Waiting::default();
            if found.typ == libc::F_UNLCK
                || !self
                    .files
                    .release_ended(&handle.inode, releases, &nobody)
                    .await?
            {
                return Ok(found);
            }
        }
    }

    /// F_SETLK and (`sleep`) F_SETLKW, `flock` likewise.
    pub async fn setlk(
        self: &Arc<Self>,
        fh: u64,
        owner: u64,
        range: LockRange,
        sleep: bool,
        waiting: &Waiting,
    ) -> VfsResult<()> {
        let handle = self.files.handle(fh)?;
        let span = span_of(&range)?;
        let Some(kind) = kind_of(range.typ)? else {
            // Whether or not the caller waits for it.
            return caller::apart(self.files.unlock(&handle, owner, span)).await;
        };
        self.files
            .lock(
                &handle,
                (fh, owner, range.pid),
                (span, kind),
                sleep,
                waiting,
            )
            .await
    }
}
