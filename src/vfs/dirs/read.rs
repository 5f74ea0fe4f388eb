//! Reading a listing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Dirs;
use super::handle::DirHandle;
use super::listing::Next;
use super::offer::Telling;
use crate::vfs::types::{DirEntry, DirSink, Errno, FileKind, VfsResult};

/// "." and "..".
const DOTS: u64 = 2;

impl Dirs {
    /// READDIR from `offset` on, until `sink` is full: one round trip for each
    /// page of about rsize bytes. With `plus` each name counts as looked up.
    pub(in crate::vfs) async fn read(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> VfsResult<()> {
        let handle = self
            .handles
            .get(&fh)
            .map(|handle| Arc::clone(&handle))
            .ok_or(Errno(libc::EBADF))?;
        let _turn = handle
            .turn
            .acquire()
            .await
            .map_err(|_| Errno(libc::EBADF))?;
        handle.dir.names().lock().begin_reading();
        if offset == 0 {
            self.rewind(&handle).await?;
        }
        let mut at = offset;
        while at < DOTS {
            if !offer_dot(&handle, at, sink) {
                return Ok(());
            }
            at += 1;
        }
        let mut given_any = at > offset;
        loop {
            let position = (at - DOTS) as usize;
            let item = handle.source.lock().item(position);
            if let Ok(item) = &item
                && self.is_out_of_sight(&handle.dir, item)
            {
                at += 1;
                continue;
            }
            let taken = match item {
                Ok(Next::Known(name, inode)) => {
                    self.offer_known(&handle.dir, &name, &inode, at + 1, plus, sink)
                }
                Ok(Next::Listed(item)) => self.offer(&handle.dir, &item, at + 1, plus, sink),
                Ok(Next::End) => return Ok(()),
                Err(from) => {
                    match self.fetch_page(&handle, from).await {
                        Ok(()) => continue,
                        // What was found so far is delivered first.
                        Err(_) if given_any => return Ok(()),
                        Err(error) => return Err(error),
                    }
                }
            };
            let taken = match taken {
                Ok(taken) => taken,
                Err(Telling(ino)) => {
                    self.namespace.nothing_to_tell(ino).await;
                    continue;
                }
            };
            if !taken {
                self.ask_early(&handle, position);
                return Ok(());
            }
            given_any = true;
            at += 1;
        }
    }

    /// rewinddir(3): what the directory holds now. Also before anything was read,
    /// for as much as this host has done since it was opened.
    async fn rewind(self: &Arc<Self>, handle: &Arc<DirHandle>) -> VfsResult<()> {
        let changes = handle.dir.names().lock().tracker.begun();
        let moved = changes != handle.changes.load(Ordering::Relaxed);
        if moved || handle.begun.load(Ordering::Relaxed) {
            Box::pin(self.begin(handle)).await?;
        }
        handle.begun.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Offers the first name or the second, which no server lists; false if it did not fit.
fn offer_dot(handle: &DirHandle, at: u64, sink: &mut dyn DirSink) -> bool {
    let name: &'static [u8] = if at == 0 { b"." } else { b".." };
    sink.add(&DirEntry {
        ino: handle.dir.attr.lock().stat().ino,
        offset: at + 1,
        kind: FileKind::Directory,
        name,
    })
}
