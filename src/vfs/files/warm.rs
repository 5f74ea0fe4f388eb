//! The small files of a directory are put on this host's disk (`-o cache=`), many with a request.
//!
//! Who warms a tree wants nothing but that. So nothing is opened: a page of the directory's listing says
//! which version of each file the server has, what the disk has of that version is left alone, and the
//! rest is read whole, several files in a compound ([`Client::read_several`](crate::nfs::Client)).
//!
//! The rules for what is kept are those of any read ([`disk_read`](super::disk_read)): the change
//! attribute behind the READ, in its compound, is the one that the server had told before (here with the
//! listing), and it is settled. Files that are too young for that are read when they are not.
//!
//! No program is given what is read here. So it matters little that a READ without an open may be granted
//! where an OPEN is not (`nfs::calls::read_several`): it only comes to a directory of root's, and who reads
//! it from there has had an open granted. The READ itself goes out in the caller's name, and what the
//! server does not let him read is not put there.
//!
//! What is left out here, whatever the reason, is opened and read by who asked, who hears of errors so.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Files;
use crate::disk_cache::{DiskCache, Version};
use crate::nfs::calls::WholeRead;
use crate::nfs::proto::reply::{DirEntry, DirResult};
use crate::nfs::proto::types::{FileHandle, FileType};
use crate::rpc::auth::Credential;
use crate::vfs::file::disk_view::KnownVersion;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Errno, VfsResult, WarmFrom, Warmed, WarmedFile};

/// The largest file that is read so. A larger one takes few requests for what it is, and reads of it
/// are made ahead.
const LARGEST: u64 = 256 << 10;
/// Compounds at a time: the server works on them together. Each has rsize bytes at most.
const AT_ONCE: usize = 8;
/// Callers that read at a time. With [`AT_ONCE`] this bounds the memory: 32 MiB.
pub(super) const CALLERS: usize = 4;
/// A page of the listing, bytes: some more names than an answer takes.
const PAGE: u32 = 256 << 10;
/// Bytes of files that one call reads, at most: so that a bar moves, and nobody who wants the mount at rest
/// waits for long.
const A_CALL: u64 = 64 << 20;
/// So many files that are too young are worth a second of waiting. Fewer are left to who asked: a tree has
/// many small directories.
const WORTH_WAITING: usize = 50;
/// After so many files of a page that could not be read, the rest is left to who asked: each has cost a
/// request, and will cost another.
const REFUSED: usize = 16;

/// A file that is to be read.
#[derive(Clone)]
struct Wanted {
    name: Bytes,
    handle: FileHandle,
    known: KnownVersion,
}

impl Wanted {
    fn size(&self) -> u32 {
        self.known.at.size as u32
    }

    fn done(self) -> WarmedFile {
        WarmedFile {
            size: self.size(),
            name: self.name,
        }
    }
}

impl Files {
    /// See [`Vfs::warm`](crate::vfs::Vfs::warm).
    pub(in crate::vfs) async fn warm(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        from: WarmFrom,
        room: usize,
    ) -> VfsResult<Warmed> {
        let disk = Arc::clone(self.disk().ok_or(Errno(libc::ENOTTY))?);
        let page = self
            .client
            .read_dir(cred, &dir.handle, from.cookie, from.verifier, PAGE)
            .await;
        let (_, page) = page.map_err(|error| self.namespace.failed(&error, dir))?;
        // From here on the versions are known.
        let now = Instant::now();
        let mut answer = Warmed {
            cookie: page.last.unwrap_or(from.cookie),
            verifier: page.verifier,
            eof: page.eof || page.last.is_none(),
            files: Vec::new(),
        };
        let wanted = self.pick(dir, page, (from, room), now, &mut answer);
        let mut missing = Vec::new();
        for file in wanted {
            match self.has(&disk, &file).await {
                true => answer.files.push(file.done()),
                false => missing.push(file),
            }
        }
        // Those that need not wait first.
        missing.sort_by_key(|file| file.known.settles());
        let young = missing.partition_point(|file| file.known.was_settled(now));
        let young = missing.split_off(young);
        self.read_in(&disk, cred, missing, &mut answer.files).await;
        if let Some(last) = young.last().filter(|_| young.len() >= WORTH_WAITING) {
            tokio::time::sleep_until(last.known.settles()).await;
            self.read_in(&disk, cred, young, &mut answer.files).await;
        }
        Ok(answer)
    }

    /// The files of a page that may be read so, as far as the answer has room for them: it says where
    /// to go on.
    fn pick(
        &self,
        dir: &Inode,
        page: DirResult,
        (from, mut room): (WarmFrom, usize),
        now: Instant,
        answer: &mut Warmed,
    ) -> Vec<Wanted> {
        let mut bytes = 0;
        let mut picked = Vec::new();
        let mut before = from.cookie;
        for entry in page.entries {
            let cookie = entry.cookie;
            if let Some(file) = self.fit(dir, entry, now) {
                let takes = file.name.len() + WarmedFile::OVERHEAD;
                if takes > room || bytes >= from.most.min(A_CALL) {
                    (answer.cookie, answer.eof) = (before, false);
                    break;
                }
                room -= takes;
                bytes += file.known.at.size;
                picked.push(file);
            }
            before = cookie;
        }
        picked
    }

    /// The entry as a file that may be read so, if it is one.
    fn fit(&self, dir: &Inode, entry: DirEntry, now: Instant) -> Option<Wanted> {
        let attrs = &entry.attrs;
        let handle = attrs.handle.clone()?;
        let is_small = attrs.kind == Some(FileType::Regular) && attrs.size <= LARGEST;
        if !is_small || self.is_hidden(dir, &entry.name) {
            return None;
        }
        // What this host is writing has many versions; an open waits for the last.
        let inode = self.namespace.find(&handle, attrs);
        if inode.is_some_and(|inode| inode.is_changing()) {
            return None;
        }
        let at = Version {
            change: attrs.change,
            size: attrs.size,
        };
        Some(Wanted {
            name: entry.name,
            handle,
            known: KnownVersion::new(at, attrs.ctime.sec, now),
        })
    }

    /// The disk has this version of the file, whole and undamaged.
    async fn has(&self, disk: &DiskCache, file: &Wanted) -> bool {
        let at = file.known.at;
        let handle = file.handle.as_bytes();
        let there = disk.read(handle, at, 0..at.size, self.new_reader()).await;
        let is_there = at.size == 0 || there.is_some_and(|data| data.len() as u64 == at.size);
        if is_there {
            disk.count(at.size, true);
        }
        is_there
    }

    /// Reads these files, and has them put on the disk. Adds those that are done with.
    async fn read_in(
        self: &Arc<Self>,
        disk: &Arc<DiskCache>,
        cred: &Arc<Credential>,
        files: Vec<Wanted>,
        done: &mut Vec<WarmedFile>,
    ) {
        let _turn = self.warming.acquire().await;
        let mut left = VecDeque::from(files);
        let mut refused = 0;
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < AT_ONCE && !left.is_empty() && refused < REFUSED {
                let count = self.client.reads_at_once(left.iter().map(Wanted::size));
                let batch: Vec<_> = left.drain(..count.min(left.len())).collect();
                let (files, disk, cred) = (Arc::clone(self), Arc::clone(disk), Arc::clone(cred));
                under_way.spawn(async move {
                    let tasks = &files.metrics.tasks;
                    let work = files.read_batch(&disk, &cred, batch);
                    tasks.watched("warm", work).await
                });
            }
            // A batch whose task has died is left to who asked.
            match under_way.join_next().await {
                None => return,
                Some(Ok(Ok(batch))) => {
                    done.extend(batch.done);
                    refused += batch.refused;
                    left.extend(batch.again);
                }
                Some(_) => refused += 1,
            }
        }
    }

    /// One compound.
    async fn read_batch(
        &self,
        disk: &DiskCache,
        cred: &Arc<Credential>,
        files: Vec<Wanted>,
    ) -> Batch {
        self.metrics.tasks.point("warm");
        let asked: Vec<_> = files
            .iter()
            .map(|file| (file.handle.clone(), file.size()))
            .collect();
        let sent = Instant::now();
        let mut batch = Batch::default();
        let mut files = files.into_iter();
        match self.client.read_several(cred, &asked).await {
            Ok(results) => {
                for (read, file) in results.iter().zip(files.by_ref()) {
                    disk.count(read.0.data.len() as u64, false);
                    if file.is_in(read, sent) {
                        let (handle, data) = (file.handle.as_bytes(), &read.0.data);
                        let (at, reader) = (file.known.at, self.new_reader());
                        disk.fill(handle, at, 0, data, reader).await;
                        batch.done.push(file.done());
                    }
                }
                disk.caught_up().await;
            }
            Err(error) => {
                tracing::debug!("left to an open: {error}");
                batch.refused = 1;
                files.next();
            }
        }
        batch.again = files.collect();
        batch
    }
}

/// What a compound has come to.
#[derive(Default)]
struct Batch {
    done: Vec<WarmedFile>,
    /// Those behind a failure, which were not asked for.
    again: Vec<Wanted>,
    refused: usize,
}

impl Wanted {
    /// What a READ that was sent then has brought is all of the version that is known, for good.
    fn is_in(&self, (read, change): &WholeRead, sent: Instant) -> bool {
        *change == Some(self.known.at.change)
            && read.data.len() as u64 == self.known.at.size
            && read.eof
            && self.known.was_settled(sent)
    }
}
