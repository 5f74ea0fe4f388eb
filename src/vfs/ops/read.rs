//! read.

use std::sync::Arc;

use bytes::Bytes;

use crate::vfs::Vfs;
use crate::vfs::types::VfsResult;

impl Vfs {
    /// READ, if it can be answered at once: from what came along with the OPEN.
    pub fn read_cached(&self, fh: u64, offset: u64, size: u32) -> Option<Bytes> {
        let handle = self.files.used_handle(fh).ok()?;
        self.files.read_inline(&handle, fh, offset, size)
    }

    /// READ. Fewer bytes than asked for mean the end of the file.
    pub async fn read(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        size: u32,
        open_flags: i32,
    ) -> VfsResult<Bytes> {
        if let Some(data) = self.read_cached(fh, offset, size) {
            return Ok(data);
        }
        let handle = self.files.used_handle(fh)?;
        self.files.check_locks(&handle, fh)?;
        self.files.kernel_reads(&handle);
        loop {
            let restarts = self.files.restarts();
            let data = self
                .files
                .read_settled(&handle, offset, size.into(), open_flags)
                .await;
            // A READ that was repeated after a restart of the server may have
            // been answered before what that lost was written again.
            if self.files.restarts() == restarts {
                if let Ok(data) = &data {
                    self.files.handed_out(&handle, offset, data);
                }
                return data;
            }
        }
    }
}
