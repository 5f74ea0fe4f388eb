//! Reading from the disk of this host (`-o cache=`): when that may be, and what is put there.
//!
//! The disk is asked for the version of the file that its view says
//! ([`disk_view`](crate::vfs::file::disk_view)), and for nothing else. A view is set where an open has
//! asked the server, or need not (`nocto`), if nothing of this host's was under way meanwhile. It ends
//! with the next foreign change, write, cut, lock or restart of the server; and when a READ, by
//! whichever handle, shows another change attribute: what it brought may be newer, and nobody on this
//! host is given older bytes after newer ones.
//!
//! A READ has the change attribute asked for behind it, in its compound. If it is the view's, the data
//! are of that version, and if that is settled, they are put on the disk. What is read between two
//! changes, or while something of this host's is on its way, is not.
//!
//! Nothing is asked of the disk by who reads with O_DIRECT, and where nothing may be believed.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Files;
use super::handle::OpenHandle;
use crate::disk_cache::{DiskCache, Version};
use crate::nfs::calls::{InlineRead, OpenedHandle};
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::reply::ReadResult;
use crate::vfs::file::disk_view::DiskView;
use crate::vfs::inode::Inode;

/// The whole of a small file, at that version.
pub(in crate::vfs) type OnDisk = (Version, Bytes);

impl Files {
    /// The cache on the disk, if there is one and it may be used.
    pub(in crate::vfs) fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.disk.get().filter(|_| self.believes_data())
    }

    /// READs are to tell the change attribute.
    pub(in crate::vfs) fn reads_look(&self) -> bool {
        self.disk().is_some()
    }

    /// What is read of files is kept on the disk from here on. To be said once, before anything is
    /// read.
    pub(in crate::vfs) fn set_disk_cache(&self, disk: Arc<DiskCache>) {
        let _ = self.disk.set(disk);
    }

    /// An open that was sent at `sent` has said what the file is, and that was taken in.
    pub(in crate::vfs) fn view_at_open(&self, inode: &Inode, attrs: &Attributes, sent: Instant) {
        if self.disk().is_none() || !inode.handle.is_given() {
            return;
        }
        let mut inner = self.file_state(inode).lock();
        let attr = inode.attr.lock();
        // Another reply has crossed it, or something of this host's was under way: which came first
        // nobody can say.
        let is_sure = attr.change() == attrs.change
            && attr.server_size() == attrs.size
            && !attr.is_expired()
            && !attr.overtook(sent)
            && inner.writeback().is_idle();
        let at = Version {
            change: attrs.change,
            size: attrs.size,
        };
        let view = is_sure.then(|| {
            let file = inner.version(attr.foreign());
            let before = inner.disk_view_mut().take();
            DiskView::new(at, file, attrs.ctime.sec, before.as_ref(), Instant::now())
        });
        *inner.disk_view_mut() = view;
    }

    /// An open that asks nobody believes what is known of the file (`nocto`).
    pub(in crate::vfs) fn view_believed(&self, inode: &Inode) {
        if self.disk().is_none() || !inode.handle.is_given() {
            return;
        }
        let mut inner = self.file_state(inode).lock();
        let attr = inode.attr.lock();
        let now = Instant::now();
        let is_believed = !attr.ttl(now).is_zero()
            && attr.stat().size == attr.server_size()
            && inner.writeback().is_idle();
        let view = is_believed.then(|| {
            let at = Version {
                change: attr.change(),
                size: attr.server_size(),
            };
            let file = inner.version(attr.foreign());
            let before = inner.disk_view_mut().take();
            DiskView::new(at, file, attr.stat().ctime.sec, before.as_ref(), now)
        });
        *inner.disk_view_mut() = view;
    }

    /// The version that may be read from the disk at this moment.
    pub(super) fn disk_view(&self, inode: &Inode) -> Option<DiskView> {
        self.disk()?;
        let inner = self.file_state(inode).lock();
        let attr = inode.attr.lock();
        let view = inner.disk_view(attr.change(), attr.foreign());
        view.copied()
    }

    /// The bytes of that version, if the disk has all of them and nothing has come between.
    pub(super) async fn read_disk(
        &self,
        handle: &OpenHandle,
        view: DiskView,
        offset: u64,
        size: u64,
    ) -> Option<Bytes> {
        let disk = self.disk()?;
        let file = handle.inode.handle.as_bytes();
        let range = offset..offset.saturating_add(size);
        let data = disk.read(file, view.known.at, range, handle.number).await?;
        let is_good = self.disk_view(&handle.inode) == Some(view);
        is_good.then(|| {
            disk.count(data.len() as u64, true);
            data
        })
    }

    /// A READ that was sent at `sent` has come back, with the change attribute behind it: the data
    /// are put on the disk, if they are those of `view`.
    pub(super) async fn read_came(
        &self,
        handle: &OpenHandle,
        view: Option<DiskView>,
        (sent, offset): (Instant, u64),
        (read, change): (&ReadResult, Option<u64>),
    ) {
        let Some(disk) = self.disk() else { return };
        disk.count(read.data.len() as u64, false);
        self.look_behind(&handle.inode, change);
        let Some(view) = view.filter(|view| change == Some(view.known.at.change)) else {
            return;
        };
        let end = offset + read.data.len() as u64;
        // A server that stamps a file before it changes it may have shown something between.
        let is_torn = end > view.known.at.size || read.eof && end < view.known.at.size;
        if !is_torn && view.known.was_settled(sent) && self.disk_view(&handle.inode) == Some(view) {
            let file = handle.inode.handle.as_bytes();
            let (at, reader) = (view.known.at, handle.number);
            disk.fill(file, at, offset, &read.data, reader).await;
        }
    }

    /// A READ has shown the file at this change attribute, or nobody knows at which: unless it is
    /// the view's, the bytes may be newer than what the disk has.
    fn look_behind(&self, inode: &Inode, change: Option<u64>) {
        let mut inner = self.file_state(inode).lock();
        let view = inner.disk_view_mut();
        if view.is_some_and(|view| change != Some(view.known.at.change)) {
            *view = None;
        }
    }

    /// The whole of a small file as it is known, which is about to be opened, if the disk has it:
    /// then the OPEN brings it along only if the file has moved.
    pub(in crate::vfs) async fn on_disk_before_open(
        &self,
        inode: &Inode,
        inline: &mut InlineRead,
    ) -> Option<OnDisk> {
        let disk = self.disk().filter(|_| inline.unless.is_none())?;
        let at = {
            let attr = inode.attr.lock();
            Version {
                change: attr.change(),
                size: attr.server_size(),
            }
        };
        if at.size == 0 || at.size > u64::from(inline.count) {
            return None;
        }
        let file = inode.handle.as_bytes();
        let data = disk.read(file, at, 0..at.size, self.new_reader()).await?;
        inline.unless = Some(at.change);
        Some((at, data))
    }

    /// What an OPEN that was sent at `sent` has brought along: from the server, which is put on the
    /// disk, or from the disk, if the file is what it was.
    pub(in crate::vfs) async fn beginning_came(
        &self,
        inode: &Inode,
        opened: &mut OpenedHandle,
        on_disk: Option<OnDisk>,
        sent: Instant,
    ) -> Option<ReadResult> {
        let data = opened.data.take();
        let Some(disk) = self.disk() else { return data };
        let Some(read) = data else {
            let (at, data) = on_disk?;
            let is_same = at.change == opened.attrs.change && at.size == opened.attrs.size;
            return is_same.then(|| {
                disk.count(at.size, true);
                ReadResult { eof: true, data }
            });
        };
        disk.count(read.data.len() as u64, false);
        let view = self.disk_view(inode);
        self.look_behind(inode, opened.change_behind);
        if let Some(view) = view.filter(|view| opened.change_behind == Some(view.known.at.change))
            && read.data.len() as u64 == view.known.at.size
            && view.known.was_settled(sent)
        {
            let file = inode.handle.as_bytes();
            let (at, reader) = (view.known.at, self.new_reader());
            disk.fill(file, at, 0, &read.data, reader).await;
        }
        Some(read)
    }

    /// A number for who is no handle yet.
    pub(super) fn new_reader(&self) -> u64 {
        self.readers
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
            | 1 << 63
    }
}
