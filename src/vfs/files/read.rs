//! Reading: what is pending is settled first, then a READ as large as the
//! request; for a sequential reader more is fetched than was asked for.
//!
//! Data read ahead belong to the file as it was when they were asked for. They
//! are dropped when the file is seen to have moved by other hands or was cut
//! (`epoch`), and where this host writes, by whichever handle; and they live
//! only as long as the handle. All handles share one sum of memory
//! ([`crate::vfs::file::readahead_memory`]).
//!
//! Nobody on this host is given older bytes after newer ones, by whichever handle: what one
//! handle hands out no other keeps from before ([`Files::handed_out`]). Another host's change that
//! a READ has shown need not be known by its attributes yet.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::Files;
use super::handle::OpenHandle;
use crate::vfs::file::readahead::{CHUNK, Fetch};
use crate::vfs::file::readahead_memory::Share;
use crate::vfs::inode::Inode;
use crate::vfs::types::{VfsError, VfsResult};

/// A server that says neither data nor end of file so many times in a row has
/// lost its way.
const EMPTY_READS: usize = 3;

fn range_of(offset: u64, data: &Bytes) -> Range<u64> {
    offset..offset + data.len() as u64
}

impl Files {
    /// Bytes that are read ahead for all handles together, here or on their way, and the
    /// most of them.
    pub(in crate::vfs) fn read_ahead_bytes(&self) -> (u64, u64) {
        let (held, most) = self.read_memory.shares();
        (held as u64 * CHUNK, most as u64 * CHUNK)
    }

    /// Restarts of the server so far.
    pub(in crate::vfs) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// The bytes at `offset` from what came along with the OPEN, if nothing has come between.
    pub(in crate::vfs) fn read_inline(
        &self,
        handle: &OpenHandle,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Option<Bytes> {
        let mut inner = handle.inode.opened()?.lock();
        if !inner.writeback().is_idle() || inner.locks().is_lost(fh) {
            return None;
        }
        let epoch = inner.epoch(handle.inode.attr.lock().foreign());
        let data = handle.ahead.read_beginning(epoch, offset, size.into())?;
        inner.pages_read();
        inner.handed_out(&handle.ahead, &range_of(offset, &data));
        Some(data)
    }

    /// These bytes go to who reads them through the handle: what other handles have read ahead
    /// of them, or are reading, may be older.
    pub(in crate::vfs) fn handed_out(&self, handle: &OpenHandle, offset: u64, data: &Bytes) {
        let file = self.file_state(&handle.inode);
        file.lock()
            .handed_out(&handle.ahead, &range_of(offset, data));
    }

    /// The kernel reads the file: it has pages of it from here on.
    pub(in crate::vfs) fn kernel_reads(&self, handle: &OpenHandle) {
        self.file_state(&handle.inode).lock().pages_read();
    }

    /// READ, once what is pending of it is at the server.
    pub(in crate::vfs) async fn read_settled(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        offset: u64,
        size: u64,
        open_flags: i32,
    ) -> VfsResult<Bytes> {
        let inode = &handle.inode;
        // Before the end of the file, only what overlaps matters. Beyond what
        // the server has of it, a hole of ours may be in the making: a short
        // answer would make the kernel cut the file.
        let server_has = inode.attr.lock().server_size();
        let len = if offset + size <= server_has {
            size
        } else {
            u64::MAX - offset
        };
        self.before_read(inode, offset, len).await;
        if open_flags & libc::O_DIRECT == 0
            && self.believes_data()
            && let Some(data) = self.from_ahead(handle, offset, size).await
        {
            return Ok(data);
        }
        let is_direct = open_flags & libc::O_DIRECT != 0;
        let data = self
            .read_through(handle, (offset, size), !is_direct)
            .await?;
        self.doubt_size(inode, (offset, size), data.len() as u64, is_direct);
        Ok(data)
    }

    /// Data that have just been read end elsewhere than the file does by its attributes:
    /// those are older. Where the kernel fills a page it cuts the file itself at the end that
    /// it has found, and must not be disturbed in that: whom it asks next is told the
    /// truth. Of what is read past its pages it draws no conclusion, so it is told.
    fn doubt_size(&self, inode: &Arc<Inode>, asked: (u64, u64), got: u64, is_direct: bool) {
        let (offset, size) = asked;
        if inode.is_changing() {
            return;
        }
        let end = offset + got;
        let mut attr = inode.attr.lock();
        let known = attr.stat().size;
        let is_older = end > known || got < size && end < known;
        if is_older && !attr.ttl(Instant::now()).is_zero() {
            attr.expire();
            drop(attr);
            if is_direct {
                self.namespace.inval_attr(inode.ino);
            }
        }
    }

    /// From the disk of this host, if that may be asked and has it; else READs until the request is
    /// satisfied or the file ends.
    async fn read_through(
        self: &Arc<Self>,
        handle: &OpenHandle,
        (offset, size): (u64, u64),
        by_disk: bool,
    ) -> VfsResult<Bytes> {
        let view = match by_disk {
            true => self.disk_view(&handle.inode),
            false => None,
        };
        if let Some(view) = view
            && let Some(data) = self.read_disk(handle, view, offset, size).await
        {
            return Ok(data);
        }
        let rsize = u64::from(self.client.rsize());
        let mut joined: Option<BytesMut> = None;
        let mut at = offset;
        let mut empty = 0;
        loop {
            let want = (offset + size - at).min(rsize) as u32;
            let sent = Instant::now();
            let (read, change) = match self.open_late(handle, at, want).await? {
                Some(read) => read,
                None => {
                    let looks = self.reads_look();
                    let read = self.client.read_and_look(&handle.open, at, want, looks);
                    let read = read.await;
                    read.map_err(|error| self.namespace.failed(&error, &handle.inode))?
                }
            };
            self.read_came(handle, view, (sent, at), (&read, change))
                .await;
            at += read.data.len() as u64;
            let done = read.eof || at == offset + size;
            if done && joined.is_none() {
                return Ok(read.data);
            }
            empty = if read.data.is_empty() { empty + 1 } else { 0 };
            if !done && empty == EMPTY_READS {
                let found = "the server answers READ with neither data nor the end of the file";
                return Err(VfsError::found(found, Some(handle.inode.ino)));
            }
            let joined = joined.get_or_insert_with(|| BytesMut::with_capacity(size as usize));
            joined.extend_from_slice(&read.data);
            if done {
                return Ok(joined.split().freeze());
            }
        }
    }

    /// Answers from what was read ahead, and reads on ahead.
    async fn from_ahead(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        offset: u64,
        size: u64,
    ) -> Option<Bytes> {
        let file_size = handle.inode.attr.lock().stat().size;
        let now = Instant::now();
        let first = handle.ahead.begin_reading(now);
        if first.for_the_mount {
            self.read_memory.enlist(&handle.ahead);
        }
        let epoch = {
            let mut file = self.file_state(&handle.inode).lock();
            if first.for_the_file {
                file.reads_ahead(&handle.ahead);
            }
            file.epoch(handle.inode.attr.lock().foreign())
        };
        for range in handle.ahead.on_read(epoch, (offset, size), file_size) {
            let Some(share) = self.read_memory.share(now) else {
                handle.ahead.forget_asked();
                break;
            };
            let Some(fetch) = handle.ahead.want(range.start) else {
                continue;
            };
            let (files, handle) = (Arc::clone(self), Arc::clone(handle));
            tokio::spawn(async move { files.fetch(&handle, fetch, share).await });
        }
        handle.ahead.read(offset, size).await
    }

    async fn fetch(self: &Arc<Self>, handle: &Arc<OpenHandle>, fetch: Fetch, share: Share) {
        let range = fetch.range();
        let len = range.end - range.start;
        let tasks = &self.metrics.tasks;
        let read = tasks.watched("fetch", async {
            tasks.point("fetch");
            self.before_read(&handle.inode, range.start, len).await;
            self.read_through(handle, (range.start, len), true).await
        });
        let read = read.await;
        let data = read.ok().and_then(Result::ok);
        handle.ahead.fetched(fetch, data, share);
    }
}
