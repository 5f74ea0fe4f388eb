//! What is asked for together: a round trip that asks about one object costs as
//! much as one that asks about seven.
//!
//! - Two names of a directory that are not known, shortly after each other:
//!   the directory is fetched whole, with attributes, and answers the rest.
//! - A file's attributes are too old: those of its neighbours that are too old
//!   as well come along from the second one on, and from the third one on the
//!   directory is fetched whole if it is small. Who walks through several
//!   directories so does not begin anew in each of them.
//! - Directories that are opened one after the other: those that lie beside
//!   and in the one being opened are confirmed together with it, and are
//!   believed for that when the same thread opens them in turn, for [`EXPECTED`].
//! - The text of one symbolic link is read: so are those beside it.
//!
//! A single request never asks for more than it needs: it takes a second one
//! to show a pattern.
//!
//! A name that is not known is asked for, also in a directory whose names are all
//! known: another host may have made it a moment ago, and a program that waits for it
//! or was told of it wants it now and not when the cache times are over. Whose caller is
//! about to make it need not be asked for ([`Namespace::may_be_made`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Namespace;
use super::keyed_mutex::KeyedMutex;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::reply::DirResult;
use crate::nfs::proto::types::FileHandle;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::{Dentry, Listed, Name};
use crate::vfs::inode::name_hash::hash_name;
use crate::vfs::types::{Errno, FileKind, Ino, Stat, VfsError, VfsResult};

/// A directory with more bytes of names and attributes than this (some 700
/// names) is not fetched whole because of a few of them.
const WHOLE: u32 = 256 << 10;

/// And one with more names than this not for their attributes.
const SMALL: usize = 700;

/// A directory that was confirmed because it was likely to be opened next may
/// be opened without asking again for so long, by the thread whose walk it was confirmed
/// for and by nobody else. What that thread sees of the directory is so much older
/// than its opening, and never older than the cache times allow.
const EXPECTED: Duration = Duration::from_millis(500);

/// This many more objects are asked about in the round trip of one.
const COMPANY: usize = 6;

/// A walk is over when it has not gone on for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// Who is asking, and for what they seem to be at it.
#[derive(Debug, Default)]
pub(in crate::vfs) struct AccessPattern {
    listings: KeyedMutex,
    attributes: KeyedMutex,
    links: KeyedMutex,
    /// When a directory's attributes were fetched whole last.
    on: Mutex<Option<Instant>>,
}

impl AccessPattern {
    fn is_on(&self, now: Instant) -> bool {
        self.on.lock().is_some_and(|last| now < last + PAUSE)
    }

    fn goes_on(&self, now: Instant) {
        *self.on.lock() = Some(now);
    }
}

impl Namespace {
    /// A name of the directory is not known. True if the directory has been
    /// fetched whole because of that: look again.
    pub(in crate::vfs) async fn fetch_for_lookup(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> bool {
        if !self.believes(FileKind::Directory) {
            return false;
        }
        let now = Instant::now();
        {
            let mut names = dir.names().lock();
            let again = names.missed(now, hash_name(name)) > 1;
            // One that is complete only has to be confirmed, which the lookup
            // does.
            if !again || names.is_complete() || !names.may_be_fetched(now) {
                return false;
            }
        }
        self.fetch_whole(cred, dir).await
    }

    /// What is learned may be believed for a while.
    fn believes(&self, kind: FileKind) -> bool {
        let timeouts = self.inodes.timeouts();
        let longest = match kind {
            FileKind::Directory => timeouts.dir_max.max(timeouts.dir_min),
            _ => timeouts.reg_max.max(timeouts.reg_min),
        };
        self.names.is_on() && !longest.is_zero()
    }

    /// READDIR of a whole directory: one round trip, shared by all who want it.
    /// False if it is too large or may not be listed.
    async fn fetch_whole(&self, cred: &Arc<Credential>, dir: &Arc<Inode>) -> bool {
        let asked = Instant::now();
        let _turn = self.walk.listings.turn(dir.ino).await;
        if dir.names().lock().was_fetched_since(asked) {
            return true;
        }
        let steps = dir.names().lock().tracker.steps();
        let sent = Instant::now();
        let page = self
            .client
            .read_dir(cred, &dir.handle, 0, [0; 8], WHOLE)
            .await;
        let (attrs, page) = match page {
            Ok(page) => page,
            Err(error) => {
                tracing::debug!(ino = dir.ino, "not fetched whole: {error}");
                dir.names().lock().leave_alone(Instant::now());
                return false;
            }
        };
        self.learn(dir, &attrs, sent);
        if self.is_removed(&attrs) {
            return false;
        }
        let whole = page.eof;
        let names = self.take_page(dir, page, sent);
        if whole && let Some(names) = names {
            return self.install_listing(dir, names, cred, attrs.change, sent, steps);
        }
        dir.names().lock().leave_alone(Instant::now());
        false
    }

    /// The names of a page that begins a listing, with what it says about the
    /// objects taken in. `None` if it does not say of each which it is.
    fn take_page(&self, dir: &Arc<Inode>, page: DirResult, sent: Instant) -> Option<Listed> {
        let entries = page.entries.into_iter();
        entries
            .map(|entry| {
                let handle = entry.attrs.handle.as_ref()?;
                self.listed(dir, &entry.name, handle, &entry.attrs, sent)
            })
            .collect()
    }

    /// The inode of a name in a listing, with what that says about it taken in.
    pub(in crate::vfs) fn listed(
        &self,
        dir: &Arc<Inode>,
        name: &[u8],
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
    ) -> Option<(Name, Arc<Inode>)> {
        if !attrs.is_whole() {
            return None;
        }
        let (key, before) = {
            let names = dir.names().lock();
            (names.key(name), names.get(name))
        };
        let (inode, new) = self.inodes.intern(handle, attrs, sent, |ino| match before {
            Dentry::Positive(inode) if inode.ino == ino => Some(inode),
            _ => self.names.dir(ino),
        });
        if !new {
            self.learn(&inode, attrs, sent);
        }
        let key = key.unwrap_or_else(|| name.into());
        self.found_at(&inode, dir, Arc::clone(&key));
        Some((key, inode))
    }

    /// A directory was listed to its end, all the time at `change`; the first
    /// request was sent after `steps` of the directory's chain and the last one
    /// at `sent`. False if something of ours has come in between.
    pub(in crate::vfs) fn install_listing(
        &self,
        dir: &Arc<Inode>,
        listing: Listed,
        cred: &Arc<Credential>,
        change: u64,
        sent: Instant,
        steps: u64,
    ) -> bool {
        if !self.names.is_on() || listing.len() > self.names.most_of_one() {
            return false;
        }
        {
            let mut names = dir.names().lock();
            let chain = &mut names.tracker;
            if !chain.is_quiet() || chain.steps() != steps || !chain.explains(change) {
                return false;
            }
            chain.start(change, sent, true);
            names.complete(listing, cred, sent);
        }
        self.names.used(dir);
        true
    }

    /// GETATTR of an object whose attributes are too old.
    pub(in crate::vfs) async fn refresh(
        &self,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
    ) -> VfsResult<()> {
        let believes = self.believes(inode.kind);
        let mut company = Vec::new();
        if believes && let Some(place) = inode.place() {
            let now = Instant::now();
            let (misses, whole) = {
                let mut names = place.dir.names().lock();
                let small = names.is_complete() && names.count() <= SMALL;
                (
                    names.missed(now, inode.ino),
                    small && names.may_be_fetched(now),
                )
            };
            let walks = self.walk.is_on(now);
            if whole && (misses > 2 || walks) {
                self.walk.goes_on(now);
                let asked = self.fetch_whole(cred, &place.dir).await;
                if asked && !inode.attr.lock().ttl(Instant::now()).is_zero() {
                    return Ok(());
                }
            } else if misses > 1 {
                company = Self::too_old(&place.dir, &place.name, inode);
            }
        }
        let _turn = if believes {
            let turn = self.walk.attributes.turn(inode.ino).await;
            if !inode.attr.lock().ttl(Instant::now()).is_zero() {
                return Ok(());
            }
            Some(turn)
        } else {
            None
        };
        company.insert(0, Arc::clone(inode));
        self.ask_about(cred, &company).await.map(drop)
    }

    /// The next objects beside one whose attributes are too old as well.
    fn too_old(dir: &Inode, name: &[u8], but: &Arc<Inode>) -> Vec<Arc<Inode>> {
        // Looked at outside of the directory's lock.
        let beside: Vec<_> = {
            let names = dir.names().lock();
            let beside = names.around(name).take(8 * COMPANY);
            beside.map(Arc::clone).collect()
        };
        let now = Instant::now();
        beside
            .into_iter()
            .filter(|other| !Arc::ptr_eq(other, but) && !other.is_stale())
            .filter(|other| other.attr.lock().ttl(now).is_zero() && !other.is_changing())
            .take(COMPANY)
            .collect()
    }

    /// GETATTR of several objects, of which only the first matters: one round
    /// trip. Returns when it was sent, and how many were answered.
    async fn ask_about(
        &self,
        cred: &Arc<Credential>,
        inodes: &[Arc<Inode>],
    ) -> VfsResult<(Instant, usize)> {
        let handles: Vec<_> = inodes.iter().map(|inode| &inode.handle).collect();
        let sent = Instant::now();
        let answers = self
            .client
            .get_attrs_of(cred, &handles)
            .await
            .map_err(|error| self.failed(&error, &inodes[0]))?;
        for (inode, attrs) in inodes.iter().zip(&answers) {
            self.learn(inode, attrs, sent);
        }
        Ok((sent, answers.len()))
    }

    /// A directory whose names are all known is opened: are they still those?
    /// One round trip, or none if thread `by` was expected to open this directory.
    pub(in crate::vfs) async fn confirm(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        by: u32,
    ) -> VfsResult<()> {
        let now = Instant::now();
        let expected = dir.names().lock().take_expected();
        let window = EXPECTED.min(dir.attr.lock().timeout());
        if by != 0
            && !dir.is_stale()
            && expected.is_some_and(|(sent, whom)| whom == by && now < sent + window)
        {
            self.visits(dir, now);
            tracing::debug!(
                ino = dir.ino,
                by,
                "it was expected to be opened: its names are believed"
            );
            return Ok(());
        }
        self.ask_on_a_walk(cred, dir, by).await.map(drop)
    }

    /// GETATTR of a directory, and of those that thread `by` will open next if it walks.
    /// Returns when it was sent.
    async fn ask_on_a_walk(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        by: u32,
    ) -> VfsResult<Instant> {
        let now = Instant::now();
        let walks = self.visits(dir, now);
        let mut ask = vec![Arc::clone(dir)];
        if walks {
            ask.extend(self.likely_next(cred, dir, now));
        }
        let (sent, answered) = self.ask_about(cred, &ask).await?;
        for other in &ask[1..answered] {
            other.names().lock().expect(sent, by);
        }
        let links = dir.attr.lock().stat().nlink;
        match self.says_removed(links) {
            true => Err(Errno(libc::ESTALE).into()),
            false => Ok(sent),
        }
    }

    /// The kernel asks for the attributes of a directory that was listed meanwhile, which has
    /// moved its time of access.
    pub(in crate::vfs) fn is_listed_since(&self, ino: Ino) -> bool {
        if !self.asks_at_open() {
            return false;
        }
        let dir = self.inodes.get(ino);
        dir.is_some_and(|dir| dir.kind == FileKind::Directory && dir.names().lock().was_listed())
    }

    /// GETATTR of a directory that was listed, by thread `by`: as when it is opened, which
    /// is what comes next on a walk and is not asked for again then. Whoever removes and makes
    /// directories anew elsewhere is so noticed by stat(2), as by the kernel's client.
    pub(in crate::vfs) async fn getattr_listed(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        by: u32,
    ) -> VfsResult<(Stat, Duration)> {
        let now = Instant::now();
        let (expected, sure) = {
            let mut names = dir.names().lock();
            names.clear_listed();
            (names.expected_by(by), names.are_sure_for(cred))
        };
        let window = EXPECTED.min(dir.attr.lock().timeout());
        let is_expected = by != 0 && expected.is_some_and(|sent| now < sent + window);
        let is_private = self.private_to(cred, dir).is_some();
        if !is_expected && !is_private && !dir.attr.lock().is_over() {
            match self.ask_on_a_walk(cred, dir, by).await {
                Ok(sent) if sure => dir.names().lock().expect(sent, by),
                Ok(_) => {}
                Err(error) => dir.ends_by_us(error)?,
            }
        }
        Ok(dir.known_stat())
    }

    /// A directory is opened. True if one beside it, or the one it lies in, was
    /// a short while ago.
    pub(in crate::vfs) fn visits(&self, dir: &Arc<Inode>, now: Instant) -> bool {
        dir.names().lock().visit(now);
        dir.place()
            .is_some_and(|place| place.dir.names().lock().visit(now))
    }

    /// Directories that whoever opens `dir` on a walk will open next, as far as
    /// their names are known: those in it, then those beside it.
    fn likely_next(&self, cred: &Credential, dir: &Arc<Inode>, now: Instant) -> Vec<Arc<Inode>> {
        let directories = |at: &Inode, name: &[u8]| -> Vec<Arc<Inode>> {
            let names = at.names().lock();
            names
                .around(name)
                .filter(|other| other.kind == FileKind::Directory && !Arc::ptr_eq(other, dir))
                .take(8 * COMPANY)
                .map(Arc::clone)
                .collect()
        };
        let mut near = directories(dir, b"");
        if let Some(place) = dir.place() {
            near.extend(directories(&place.dir, &place.name));
        }
        let mut next: Vec<_> = near
            .into_iter()
            .filter_map(|other| {
                let names = other.names().lock();
                let asks = names.are_sure_for(cred) && !names.is_expected(now, EXPECTED / 2);
                let confirmed = names.tracker.confirmed();
                drop(names);
                asks.then_some((confirmed, other))
            })
            .collect();
        // A walk comes by in the order of the one before.
        next.sort_by_key(|(confirmed, _)| *confirmed);
        next.truncate(COMPANY);
        next.into_iter().map(|(_, other)| other).collect()
    }

    /// READLINK of a link and of those beside it that were not read yet: one
    /// round trip.
    pub(in crate::vfs) async fn read_links(
        &self,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
    ) -> VfsResult<Bytes> {
        let _turn = self.walk.links.turn(inode.ino).await;
        if let Some(text) = inode.link.get() {
            return Ok(Bytes::clone(text));
        }
        let mut ask = vec![Arc::clone(inode)];
        if let Some(place) = inode.place() {
            let names = place.dir.names().lock();
            let beside = names.around(&place.name).filter(|other| {
                other.kind == FileKind::Symlink
                    && other.link.get().is_none()
                    && !Arc::ptr_eq(other, inode)
            });
            ask.extend(beside.take(COMPANY).map(Arc::clone));
        }
        let handles: Vec<_> = ask.iter().map(|inode| &inode.handle).collect();
        let texts = self
            .client
            .read_links(cred, &handles)
            .await
            .map_err(|error| self.failed(&error, inode))?;
        for (link, text) in ask.iter().zip(texts) {
            // Not a slice of the record, which would stay alive with it.
            let _ = link.link.set(Box::new(Bytes::copy_from_slice(&text)));
        }
        let text = inode.link.get().ok_or_else(|| {
            VfsError::found(
                "the server answers READLINK without a link",
                Some(inode.ino),
            )
        })?;
        Ok(Bytes::clone(text))
    }

    /// The directory is new, and we have made it: it is empty.
    pub(in crate::vfs) fn install_empty_listing(
        &self,
        dir: &Arc<Inode>,
        attrs: &Attributes,
        by: &Arc<Credential>,
        sent: Instant,
    ) {
        if !self.names.is_on() {
            return;
        }
        {
            let mut names = dir.names().lock();
            // Its attributes were taken after it was made, by when somebody may
            // have put something in.
            names.tracker.start(attrs.change, sent, false);
            names.complete(Vec::new(), by, sent);
        }
        self.names.used(dir);
    }
}
