//! Listing directories.
//!
//! Offsets are positions in the order this handle has given names out: 1 after
//! ".", 2 after "..", then one more for each name. They are small and stable,
//! which the server's cookies (64 bits, all in use, of any order) are not for a
//! signed `off_t`. Each position keeps the cookie that leads on from it, so
//! seekdir(3) to any of them asks the server to go on from there; the entries
//! themselves are held for one page only.
//!
//! A server may refuse a cookie after the directory has changed
//! (NFS4ERR_BAD_COOKIE, NFS4ERR_NOT_SAME). The listing then starts over at the
//! server and skips the names that were given out already, known by a hash.
//!
//! One reader at a time: a permit is held while a page is fetched; the kernel
//! takes turns too, but only for one descriptor.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Vfs;
use super::attr::kind_of;
use super::inode::Inode;
use super::namecache::Target;
use super::types::{DirEntry, DirSink, Errno, FileKind, Ino, Opened};
use crate::nfs::NfsError;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::status::Status;
use crate::nfs::proto::types::{FileHandle, Verifier};
use crate::rpc::auth::Credential;

/// "." and "..".
const DOTS: u64 = 2;

/// A listing that the server makes start over more often has no end in sight.
const RESTARTS: usize = 5;

/// Pages without a new name in a row after which the server runs in circles.
const BARREN_PAGES: usize = 64;

/// One opendir(3).
#[derive(Debug)]
pub struct DirHandle {
    dir: Arc<Inode>,
    cred: Arc<Credential>,
    /// Who reads.
    turn: Semaphore,
    listing: Mutex<Listing>,
}

#[derive(Debug, Default)]
struct Listing {
    /// For each name given out, in order: the cookie after it, and its hash.
    given: Vec<(u64, u64)>,
    verifier: Verifier,
    /// The names after `given[..first]`, as far as fetched.
    first: usize,
    page: VecDeque<Item>,
    /// Nothing comes after the page.
    complete: bool,
}

#[derive(Clone, Debug)]
struct Item {
    name: Bytes,
    attrs: Box<Attributes>,
    handle: Option<FileHandle>,
    /// When the request left that brought it, and the directory's change
    /// attribute it belongs to.
    sent: Instant,
    dir_change: u64,
}

impl Vfs {
    /// Opens a directory. Its names are the server's to check; the kernel has
    /// checked the permission.
    pub async fn opendir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
    ) -> Result<Opened, Errno> {
        let dir = self.inode(ino)?;
        if dir.kind != FileKind::Directory {
            return Err(Errno(libc::ENOTDIR));
        }
        let fh = self.new_fh();
        self.dirs.insert(
            fh,
            Arc::new(DirHandle {
                dir,
                cred: Arc::clone(cred),
                turn: Semaphore::new(1),
                listing: Mutex::new(Listing::default()),
            }),
        );
        self.metrics.gauges.open_dirs.inc();
        Ok(Opened {
            fh,
            keep_cache: false,
            direct_io: false,
        })
    }

    /// Closes a directory.
    pub async fn releasedir(self: &Arc<Self>, _ino: Ino, fh: u64) -> Result<(), Errno> {
        match self.dirs.remove(&fh) {
            Some(_) => {
                self.metrics.gauges.open_dirs.dec();
                Ok(())
            }
            None => Err(Errno(libc::EBADF)),
        }
    }

    /// Directories are changed at the server and nowhere else.
    pub async fn fsyncdir(self: &Arc<Self>, _ino: Ino, _fh: u64) -> Result<(), Errno> {
        Ok(())
    }

    /// READDIR from `offset` on, until `sink` is full: one round trip for each
    /// page of about rsize bytes. With `plus` each name counts as looked up.
    pub async fn readdir(
        self: &Arc<Self>,
        _cred: &Arc<Credential>,
        _ino: Ino,
        fh: u64,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> Result<(), Errno> {
        let handle = self
            .dirs
            .get(&fh)
            .map(|handle| Arc::clone(&handle))
            .ok_or(Errno(libc::EBADF))?;
        let _turn = handle
            .turn
            .acquire()
            .await
            .map_err(|_| Errno(libc::EBADF))?;
        let mut at = offset;
        if at == 0 {
            // rewinddir(3): what the directory holds now.
            *handle.listing.lock() = Listing::default();
        }
        while at < DOTS {
            let name: &'static [u8] = if at == 0 { b"." } else { b".." };
            let entry = DirEntry {
                ino: handle.dir.attr.lock().stat().ino,
                offset: at + 1,
                kind: FileKind::Directory,
                name: Bytes::from_static(name),
            };
            if !sink.add(&entry) {
                return Ok(());
            }
            at += 1;
        }
        let mut given_any = at > offset;
        loop {
            let position = (at - DOTS) as usize;
            let item = handle.listing.lock().item(position);
            let item = match item {
                Ok(Some(item)) => item,
                Ok(None) => return Ok(()),
                Err(from) => {
                    match self.fetch_page(&handle, from).await {
                        Ok(()) => continue,
                        // What was found so far is delivered first.
                        Err(_) if given_any => return Ok(()),
                        Err(errno) => return Err(errno),
                    }
                }
            };
            if !self.offer(&handle.dir, &item, at + 1, plus, sink) {
                return Ok(());
            }
            given_any = true;
            at += 1;
        }
    }

    fn offer(
        &self,
        dir: &Arc<Inode>,
        item: &Item,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> bool {
        let entry = DirEntry {
            ino: match self.inodes.ino_of(&item.attrs) {
                super::types::ROOT_INO => item.attrs.fileid,
                ino => ino,
            },
            offset,
            kind: kind_of(item.attrs.kind),
            name: item.name.clone(),
        };
        // Read before a change of ours, it may be a name that we have removed.
        let late = dir.attr.lock().overtook(item.sent);
        let handle = match &item.handle {
            Some(handle) if plus && !late && item.attrs.is_whole() => handle,
            _ => return sink.add(&entry),
        };
        let inode = self.known(handle, &item.attrs, item.sent);
        let target = Target::Inode(Arc::clone(&inode));
        if sink.add_plus(&entry, &self.entry(&inode, dir)) {
            inode.found_at(dir, &item.name);
            self.names.put(dir, &item.name, target, item.dir_change);
            true
        } else {
            self.inodes.forget(inode.ino, 1);
            false
        }
    }

    /// Gets the page that follows the first `from` names.
    async fn fetch_page(
        self: &Arc<Self>,
        handle: &Arc<DirHandle>,
        mut from: usize,
    ) -> Result<(), Errno> {
        let mut skip: HashSet<u64> = HashSet::new();
        let mut restarts = 0;
        let mut barren = 0;
        // While the listing starts over, this leads on instead of `given`.
        let mut detour: Option<(u64, Verifier)> = None;
        loop {
            let (cookie, verifier) = detour.unwrap_or_else(|| {
                let listing = handle.listing.lock();
                match from.checked_sub(1) {
                    Some(last) => (listing.given[last].0, listing.verifier),
                    None => (0, [0; 8]),
                }
            });
            let sent = Instant::now();
            let result = self
                .client
                .read_dir(&handle.cred, &handle.dir.handle, cookie, verifier)
                .await;
            let (dir, page) = match result {
                Ok(result) => result,
                Err(NfsError::Status(_, Status::BAD_COOKIE | Status::NOT_SAME))
                    if restarts < RESTARTS && cookie != 0 =>
                {
                    restarts += 1;
                    let mut listing = handle.listing.lock();
                    listing.given.truncate(from);
                    skip = listing.given.iter().map(|&(_, hash)| hash).collect();
                    detour = Some((0, [0; 8]));
                    continue;
                }
                Err(error) => return Err(self.failed(&error, &handle.dir)),
            };
            self.learn(&handle.dir, &dir, sent);
            let last = page.entries.last().map(|entry| entry.cookie);
            if last == Some(cookie) && !page.eof {
                tracing::warn!(ino = handle.dir.ino, "the server's listing stands still");
                return Err(Errno(libc::EIO));
            }
            let mut items = VecDeque::with_capacity(page.entries.len());
            let mut given = Vec::with_capacity(page.entries.len());
            for mut entry in page.entries {
                let hash = hash_name(&entry.name);
                if skip.contains(&hash) || &entry.name[..] == b"." || &entry.name[..] == b".." {
                    continue;
                }
                given.push((entry.cookie, hash));
                items.push_back(Item {
                    handle: entry.attrs.handle.take(),
                    attrs: Box::new(entry.attrs),
                    // A copy, so that the record does not live as long as the
                    // longest-lived of its names.
                    name: Bytes::copy_from_slice(&entry.name),
                    sent,
                    dir_change: dir.change,
                });
            }
            if items.is_empty() && !page.eof {
                barren += 1;
                match last {
                    Some(last) if barren < BARREN_PAGES && last != cookie => {
                        detour = Some((last, page.verifier));
                        continue;
                    }
                    _ => {
                        tracing::warn!(
                            ino = handle.dir.ino,
                            "the server's listing runs in circles"
                        );
                        return Err(Errno(libc::EIO));
                    }
                }
            }
            let mut listing = handle.listing.lock();
            listing.given.truncate(from);
            from = listing.given.len();
            listing.given.extend(given);
            listing.first = from;
            listing.page = items;
            listing.complete = page.eof;
            listing.verifier = page.verifier;
            return Ok(());
        }
    }
}

impl Listing {
    /// The name at a position; `None` at the end; `Err` says after how many
    /// names the page to be fetched begins.
    fn item(&self, position: usize) -> Result<Option<Item>, usize> {
        let end = self.first + self.page.len();
        if (self.first..end).contains(&position) {
            return Ok(self.page.get(position - self.first).cloned());
        }
        if position >= end && self.complete {
            return Ok(None);
        }
        // A position that was never given out (a made-up seekdir) goes on
        // where the listing does.
        Err(position.min(self.given.len()))
    }
}

/// A name's hash; the same for the life of the process, and not known to whoever
/// names the files.
fn hash_name(name: &[u8]) -> u64 {
    static HASHER: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    HASHER.get_or_init(RandomState::new).hash_one(name)
}
