//! The space of a file system, as statvfs(3) shows it. Owned by a lock with which no other is taken.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Namespace;
use super::names::NAME_MAX;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::types::{StatFs, VfsResult};

/// `df` and file managers ask often; space does not move that fast.
const SPACE_TTL: Duration = Duration::from_secs(1);

/// What EFS and others without limits say: unlimited, in the field's size.
const BLOCK: u64 = 1 << 20;

/// The last answer to statfs, and of which object (its generation): another one may lie
/// in another file system of the server, or under another quota.
#[derive(Debug, Default)]
pub(super) struct SpaceCache(Mutex<Option<(u64, Instant, StatFs)>>);

impl Namespace {
    /// The space of the file system that the object lies in: one round trip a second at
    /// most, for who asks about one object.
    pub(in crate::vfs) async fn space_of(
        &self,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
    ) -> VfsResult<StatFs> {
        if let Some((of, at, space)) = &*self.space.0.lock()
            && *of == inode.generation
            && at.elapsed() < SPACE_TTL
        {
            return Ok(*space);
        }
        let fs = self
            .client
            .space(cred, &inode.handle)
            .await
            .map_err(|error| self.failed(&error, inode))?;
        let space = StatFs {
            blocks: fs.space_total / BLOCK,
            bfree: fs.space_free / BLOCK,
            bavail: fs.space_avail / BLOCK,
            files: fs.files_total,
            ffree: fs.files_free,
            bsize: BLOCK as u32,
            namelen: NAME_MAX as u32,
        };
        *self.space.0.lock() = Some((inode.generation, Instant::now(), space));
        Ok(space)
    }
}
