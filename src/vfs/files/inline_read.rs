//! Whether the beginning of a file comes along with an OPEN
//! ([`inline_read`](crate::vfs::file::inline_read)).

use super::Files;
use super::handle::OpenHandle;
use crate::nfs::calls::InlineRead;
use crate::nfs::proto::reply::ReadResult;
use crate::vfs::file::inline_read::{FileVersion, InlineData, SMALL};
use crate::vfs::file::pages::FileAt;
use crate::vfs::inode::Inode;

impl Files {
    /// Whether the beginning of the file is to come along with an OPEN that is
    /// about to be sent, and how the file stands before that.
    pub(in crate::vfs) fn inline_read(&self, inode: &Inode) -> Option<(InlineRead, FileVersion)> {
        if !self.believes_data() {
            return None;
        }
        let inner = self.file_state(inode).lock();
        if inner.is_unread() || !inner.writeback().is_idle() || !self.inline_reads.has_room() {
            return None;
        }
        let attr = inode.attr.lock();
        let (size, change) = (attr.stat().size, attr.change());
        // A reply has more in it than a READ alone.
        let count = SMALL.min(self.client.rsize().saturating_sub(1024));
        if size > u64::from(count) || count == 0 {
            return None;
        }
        let moves = inner.moves(attr.foreign());
        let file = FileAt { change, moves };
        let kept = inner.has_pages_of(file, |pages| attr.explains(pages));
        let unless = kept.then_some(change);
        let inline = InlineRead {
            offset: 0,
            count,
            unless,
            looks: self.reads_look(),
        };
        Some((inline, inner.version(attr.foreign())))
    }

    /// The kernel has pages of the file as it is known, or there is nothing to have pages of.
    pub(in crate::vfs) fn has_pages(&self, inode: &Inode) -> bool {
        let inner = self.file_state(inode).lock();
        let attr = inode.attr.lock();
        let (change, moves) = (attr.change(), inner.moves(attr.foreign()));
        attr.stat().size == 0
            || inner.has_pages_of(FileAt { change, moves }, |pages| attr.explains(pages))
    }

    /// The handle is gone: whether what came along with its OPEN was wanted counts for the next.
    pub(in crate::vfs) fn count_inline_use(&self, handle: &OpenHandle) {
        if let Some(used) = handle.ahead.beginning_used() {
            self.file_state(&handle.inode).lock().inline_used(used);
        }
    }

    /// What came along with an OPEN, if the file still stands as it should.
    pub(super) fn beginning(
        &self,
        now: FileVersion,
        came: Option<(ReadResult, FileVersion)>,
    ) -> Option<InlineData> {
        InlineData::came(&self.inline_reads, now, came?)
    }
}
