//! write.

use std::sync::Arc;

use bytes::Bytes;

use crate::nfs::proto::ops::ACCESS_WRITE;
use crate::vfs::Vfs;
use crate::vfs::files::accept::WritePlace;
use crate::vfs::types::{Errno, VfsResult, WriteFlags};

/// Open flags whose writes are stable before they are answered. O_DIRECT is
/// among them: EFS's promise is that such data are durable.
const SYNCHRONOUS: i32 = libc::O_SYNC | libc::O_DSYNC | libc::O_DIRECT;

impl Vfs {
    /// A copy of what is to be written, where it survives if anything of this mount does.
    pub fn copy(&self, data: &[u8]) -> Bytes {
        self.files.copy(data)
    }

    /// WRITE. Returns at once while the window has room, unless the file was
    /// opened for synchronous writing or the window is 0.
    pub async fn write(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    ) -> VfsResult<u32> {
        let handle = match flags.from_cache {
            true => self.files.handle(fh)?,
            false => self.files.used_handle(fh)?,
        };
        // Pages of a shared mapping come by any handle that may write.
        if handle.access & ACCESS_WRITE == 0 {
            return Err(Errno(libc::EBADF).into());
        }
        if data.is_empty() {
            // write(2) of nothing changes nothing, not even the size.
            return Ok(0);
        }
        self.files.check_locks(&handle, fh)?;
        let direct = flags.open_flags & libc::O_DIRECT != 0;
        if !direct {
            self.files.tell_write_error(&handle)?;
        }
        let inode = &handle.inode;
        self.files.before_write(inode).await;
        if flags.kills_privileges {
            self.files.kill_privileges(inode, &handle.open.cred).await?;
        }
        let sync = flags.open_flags & SYNCHRONOUS != 0
            || self.files.writes_are_synchronous()
            || self.files.would_be_lost(&data);
        if sync {
            self.files.settle_all().await;
        } else {
            self.files.wait_for_room(inode, data.len()).await?;
        }
        let place = match flags.open_flags & libc::O_APPEND != 0 && !flags.from_cache {
            // What a process that was killed has appended is written to the same place.
            true => self
                .files
                .appended_at()
                .map_or(WritePlace::End, WritePlace::At),
            false => WritePlace::At(offset),
        };
        if matches!(place, WritePlace::End) {
            self.files.know_the_end(&handle).await?;
        }
        let accepted = self.files.accept(&handle, place, data, sync).await?;
        self.files.pump(inode);
        if accepted.offset != offset {
            self.files.misplaced(inode).await;
        }
        if let Some(ticket) = accepted.drain {
            let fate = self.files.fate(inode, ticket, accepted.write).await;
            if let Some(error) = fate {
                return Err(error);
            }
            if !direct {
                self.files.tell_write_error(&handle)?;
            }
        }
        if direct && self.namespace.direct_writes_leave_pages() {
            // Who reads by pages on this host is not shown what was there before.
            self.files.misplaced(inode).await;
        }
        Ok(accepted.len as u32)
    }
}
