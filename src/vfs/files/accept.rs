//! Taking data in: how much, where, and when there is room.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Files;
use super::handle::OpenHandle;
use super::write::now;
use crate::rpc::caller;
use crate::vfs::file::origin::Origin;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Errno, Timestamp, VfsError, VfsResult};
use crate::vfs::writeback::{DrainTicket, WriteTicket};

/// How long an append waits for the kernel to drop pages that it may hold locked until
/// the append is answered.
const LOCKED_PAGE: Duration = Duration::from_millis(20);

/// Where data go.
#[derive(Clone, Copy, Debug)]
pub(in crate::vfs) enum WritePlace {
    At(u64),
    /// To the end of the file (O_APPEND), wherever that is when they are accepted.
    End,
}

/// Data that are in the write-back.
#[derive(Debug)]
pub(in crate::vfs) struct Accepted {
    pub(in crate::vfs) offset: u64,
    /// Fewer than were given where the server's files end.
    pub(in crate::vfs) len: u64,
    pub(in crate::vfs) write: WriteTicket,
    /// Of synchronous ones.
    pub(in crate::vfs) drain: Option<DrainTicket>,
}

impl Files {
    /// Takes data into the write-back, unless their caller has been answered meanwhile.
    pub(in crate::vfs) async fn accept(
        self: &Arc<Self>,
        handle: &Arc<OpenHandle>,
        place: WritePlace,
        data: Bytes,
        sync: bool,
    ) -> VfsResult<Accepted> {
        let inode = &handle.inode;
        let caller = sync.then(caller::current).flatten();
        loop {
            let accepted = self.with_writeback(inode, |inner| {
                if caller::is_answered() {
                    return Err(VfsError::from(Errno(libc::EINTR)));
                }
                let mut attr = inode.attr.lock();
                let offset = match place {
                    WritePlace::At(offset) => offset,
                    WritePlace::End => attr.stat().size,
                };
                let mut data = data.clone();
                data.truncate(self.room_in_file(offset)?);
                let len = data.len() as u64;
                let end = offset.checked_add(len).ok_or(Errno(libc::EFBIG))?;
                // What is lost with these data, if they are, must be theirs alone.
                if sync && inner.writeback().overlaps_pending(offset..end) {
                    return Ok(Err((offset, len)));
                }
                if matches!(place, WritePlace::End) {
                    self.log_append(offset);
                }
                let origin = Origin::new(&handle.open, caller.clone());
                let write = inner
                    .writeback_mut()
                    .accept(now(), origin, offset, data.clone(), sync);
                let at = inode.handle.is_undecided().then(Timestamp::now);
                if !sync {
                    let of = (write, at);
                    self.log_write(inode, inner, &handle.open, (offset, &data), of);
                }
                // Nobody who waits for room waits for what lingers.
                if self.window.is_awaited() {
                    inner.writeback_mut().make_room();
                }
                inner.count_write();
                attr.grow(end);
                if let Some(at) = at {
                    attr.touch(at, Instant::now());
                }
                let drain = sync.then(|| inner.writeback_mut().begin_drain());
                let readers = inner.readers();
                Ok(Ok((
                    Accepted {
                        offset,
                        len,
                        write,
                        drain,
                    },
                    readers,
                )))
            });
            match accepted? {
                Ok((accepted, readers)) => {
                    // What they read ahead from now on waits for these data.
                    for reader in readers {
                        let end = accepted.offset + accepted.len;
                        reader.outdated(accepted.offset..end);
                    }
                    return Ok(accepted);
                }
                Err((offset, len)) => self.before_sync_write(inode, offset, len).await,
            }
        }
    }

    /// Makes sure that the size that data are appended at may be believed: the one that
    /// the open or a lock has brought, or a later one. While data are on their way it is
    /// this host's.
    pub(in crate::vfs) async fn know_the_end(
        self: &Arc<Self>,
        handle: &OpenHandle,
    ) -> VfsResult<()> {
        let inode = &handle.inode;
        let known = {
            let inner = self.file_state(inode).lock();
            let attr = inode.attr.lock();
            inner.writeback().end_offset().is_some() || !attr.ttl(Instant::now()).is_zero()
        };
        match known {
            true => Ok(()),
            false => self.namespace.refresh(&handle.open.cred, inode).await,
        }
    }

    /// Data were appended elsewhere than where the kernel believed the end to be,
    /// because another host has moved it: it has put them into pages of another place,
    /// which are dropped, and its size is forgotten. Or they were written past its pages, which
    /// it has left as they were ([`KernelCache::direct_writes_leave_pages`]).
    ///
    /// Before the write is answered, as far as that can be: a page that the kernel holds
    /// locked until then is not up to date, and read anew by whoever wants it.
    ///
    /// [`KernelCache::direct_writes_leave_pages`]: crate::vfs::types::KernelCache::direct_writes_leave_pages
    pub(in crate::vfs) async fn misplaced(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.file_state(inode).lose_pages();
        self.namespace
            .drop_pages_within(inode.ino, LOCKED_PAGE)
            .await;
    }

    /// How much may be written at `offset` of any file. The kernel knows only its own
    /// limit, and a server that is told of more would refuse it when write(2) has long
    /// been answered. What begins below the server's limit is written up to there, as on
    /// every file system.
    ///
    /// # Errors
    /// EFBIG: nothing.
    fn room_in_file(&self, offset: u64) -> VfsResult<usize> {
        match self.client.fs().max_file_size.saturating_sub(offset) {
            0 => Err(Errno(libc::EFBIG).into()),
            room => Ok(usize::try_from(room).unwrap_or(usize::MAX)),
        }
    }

    /// Waits until the mount and the file may hold `len` bytes more; or for the caller's
    /// end, which is an error.
    pub(in crate::vfs) async fn wait_for_room(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        len: usize,
    ) -> VfsResult<()> {
        let limit = self.writeback.file_limit;
        let mut waiting = None;
        loop {
            let freed = self.window.freed();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let held = self.file_state(inode).lock().writeback().bytes();
            let file_has_room = held == 0 || held + len <= limit;
            if file_has_room && self.window.has_room(len) {
                return Ok(());
            }
            // What is acknowledged is held until it is committed, and nobody
            // else would ask for that: neither now, nor (`Window::wait`) when
            // what is in flight gets there.
            if waiting.is_none() {
                waiting = Some(self.window.wait());
                continue;
            }
            if file_has_room {
                for busy in self.window.busy() {
                    self.with_writeback(&busy, |inner| inner.writeback_mut().make_room());
                    self.pump(&busy);
                }
            } else {
                self.with_writeback(inode, |inner| inner.writeback_mut().make_room());
                self.pump(inode);
            }
            tokio::select! {
                biased;
                () = freed => {}
                () = caller::answered() => return Err(Errno(libc::EINTR).into()),
            }
        }
    }

    /// Waits until synchronous data are stable or have failed: the error that they were lost by,
    /// if they were.
    pub(in crate::vfs) async fn fate(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        drain: DrainTicket,
        write: WriteTicket,
    ) -> Option<VfsError> {
        self.hurry_names(inode);
        self.wait_until(inode, |inner| inner.writeback().drained(&drain))
            .await;
        self.with_writeback(inode, |inner| inner.writeback_mut().fate(write))
    }
}
