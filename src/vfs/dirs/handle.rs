//! Listing directories.
//!
//! A directory is asked for when it is opened: who opens it is told what others have
//! done before (close-to-open), its attributes are as new as its listing, and a
//! directory that is not there any more is ESTALE, upon which the kernel walks to it once
//! more; of an error that comes later it would tell the program.
//!
//! A directory whose names are all known ([`dentry_cache`](crate::vfs::inode::dentry_cache)) is
//! listed from there, after the server has confirmed that they are still those.
//! Else the first page of the server's listing comes with the opening,
//! the others as they are wanted, and if it
//! was not too long and the directory has not moved meanwhile, its names are
//! known from then on. Of a long one nothing is kept but a page, and what it
//! takes to go on.
//!
//! Offsets are positions in the order this handle has given names out: 1 after
//! ".", 2 after "..", then one more for each name. They are small and stable,
//! which the server's cookies (64 bits, all in use, of any order) are not for a
//! signed `off_t`. Each position keeps the cookie that leads on from it, so
//! seekdir(3) to any of them asks the server to go on from there; the entries
//! themselves are held for one page only. Once half of a page has been given
//! out, the next one is asked for.
//!
//! A server may refuse a cookie after the directory has changed
//! (NFS4ERR_BAD_COOKIE, NFS4ERR_NOT_SAME). The listing then starts over at the
//! server and skips the names that were given out already, known by a hash.
//!
//! Hidden names of this mount keep their positions and are not shown ([`hidden`](crate::vfs::files::hidden)).
//!
//! One reader at a time: a permit is held while a page is fetched; the kernel
//! takes turns too, but only for one descriptor.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::background::Died;
use crate::nfs::NfsError;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::reply::DirResult;
use crate::nfs::proto::status::Status;
use crate::nfs::proto::types::Verifier;
use crate::rpc::auth::Credential;
use crate::vfs::Vfs;
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::kind_of;
use crate::vfs::inode::dentry_cache::{Dentry, DentryTarget, Listed, Name};
use crate::vfs::types::{DirEntry, DirSink, Errno, FileKind, Ino, Opened, ROOT_INO};

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
    /// Who has opened it.
    by: u32,
    /// Who reads.
    turn: Semaphore,
    source: Mutex<Source>,
    /// It was read from its beginning.
    begun: AtomicBool,
    /// How many changes of ours there were in the directory when `source` was made.
    changes: AtomicU64,
}

/// Where a handle's names come from.
#[derive(Debug)]
enum Source {
    /// All of them were known when it was opened.
    Known { names: Listed },
    /// The server lists them.
    Server(Box<Listing>),
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
    /// The page that was asked for early, and the cookie it follows.
    next: Option<(u64, JoinHandle<Result<Page, Died>>)>,
    /// The names so far, as long as they may turn out to be all.
    all: Option<All>,
}

/// The names of a listing from its beginning on.
#[derive(Debug)]
struct All {
    names: Listed,
    /// The directory's change attribute, the same all the time.
    change: u64,
    /// How far the chain of our own changes was when the first request left.
    steps: u64,
}

/// A page, and when it was asked for.
#[derive(Debug)]
struct Page {
    sent: Instant,
    /// See [`All::steps`].
    steps: u64,
    result: Result<(Attributes, DirResult), NfsError>,
}

#[derive(Clone, Debug)]
struct Item {
    name: Name,
    ino: Ino,
    kind: FileKind,
    /// `None` if the server could not say which object it is.
    inode: Option<Arc<Inode>>,
    /// When the request left that brought it, and the directory's change
    /// attribute it belongs to.
    sent: Instant,
    dir_change: u64,
}

/// The kernel has yet to drop what it has of this file, before it hears of its size.
struct Telling(Ino);

impl Vfs {
    /// Opens a directory, for thread `by`. The kernel has checked the permission; what
    /// the server lists it lists for the caller, and names that are known are shown to
    /// the user who has listed them. One round trip to confirm those, or for the first page;
    /// see `access_pattern`.
    ///
    /// # Errors
    /// ESTALE: it was removed. What else the server has against it is for who lists it.
    pub async fn opendir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        by: u32,
    ) -> Result<Opened, Errno> {
        let dir = self.namespace.inode(ino)?;
        if dir.kind != FileKind::Directory {
            return Err(Errno(libc::ENOTDIR));
        }
        self.namespace.may_list(cred, &dir).await?;
        let handle = Arc::new(DirHandle {
            dir: Arc::clone(&dir),
            cred: Arc::clone(cred),
            by,
            turn: Semaphore::new(1),
            source: Mutex::default(),
            begun: AtomicBool::new(false),
            changes: AtomicU64::new(0),
        });
        let edits = Box::pin(self.begin(&handle)).await?;
        self.namespace.nothing_to_tell(ino).await;
        let keep_cache = dir.names().lock().begin_listing(edits);
        let fh = self.new_fh();
        self.dirs.insert(fh, handle);
        self.metrics.gauges.open_dirs.inc();
        Ok(Opened {
            fh,
            keep_cache,
            direct_io: false,
        })
    }

    /// Finds out what the directory holds now, for a handle that begins to list it. Says
    /// after how many edits its names were all known, if they are.
    async fn begin(self: &Arc<Self>, handle: &Arc<DirHandle>) -> Result<Option<u64>, Errno> {
        const STALE: Errno = Errno(libc::ESTALE);
        let (dir, cred) = (&handle.dir, &handle.cred);
        let changes = dir.names().lock().tracker.begun();
        handle.changes.store(changes, Ordering::Relaxed);
        handle.begun.store(false, Ordering::Relaxed);
        let mut known = self.known_names(cred, dir, handle.by).await?;
        *handle.source.lock() = Source::default();
        if known.is_none() {
            match self.fetch_page(handle, 0).await {
                Err(STALE) => return Err(STALE),
                Err(_) => {}
                Ok(()) => known = self.namespace.all_names(cred, dir),
            }
        }
        let Some((names, edits)) = known else {
            return Ok(None);
        };
        *handle.source.lock() = Source::Known { names };
        Ok(Some(edits))
    }

    /// All names of the directory, if they are known, as the server has
    /// confirmed.
    async fn known_names(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        by: u32,
    ) -> Result<Option<(Listed, u64)>, Errno> {
        if !dir.names().lock().are_sure_for(cred) {
            self.namespace.visits(dir, Instant::now());
            return Ok(None);
        }
        match self.namespace.confirm(cred, dir, by).await {
            Ok(()) => Ok(self.namespace.all_names(cred, dir)),
            Err(Errno(libc::ESTALE)) => Err(Errno(libc::ESTALE)),
            // For the listing to find.
            Err(_) => Ok(None),
        }
    }

    /// Closes a directory.
    pub async fn releasedir(self: &Arc<Self>, fh: u64) -> Result<(), Errno> {
        match self.dirs.remove(&fh) {
            Some((_, handle)) => {
                handle.dir.names().lock().end_listing();
                self.metrics.gauges.open_dirs.dec();
                Ok(())
            }
            None => Err(Errno(libc::EBADF)),
        }
    }

    /// READDIR from `offset` on, until `sink` is full: one round trip for each
    /// page of about rsize bytes. With `plus` each name counts as looked up.
    pub async fn readdir(
        self: &Arc<Self>,
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
        handle.dir.names().lock().begin_reading();
        let mut at = offset;
        if at == 0 {
            // rewinddir(3): what the directory holds now. Also before anything was read,
            // for as much as this host has done since it was opened.
            let changes = handle.dir.names().lock().tracker.begun();
            let moved = changes != handle.changes.load(Ordering::Relaxed);
            if moved || handle.begun.load(Ordering::Relaxed) {
                Box::pin(self.begin(&handle)).await?;
            }
            handle.begun.store(true, Ordering::Relaxed);
        }
        while at < DOTS {
            let name: &'static [u8] = if at == 0 { b"." } else { b".." };
            let entry = DirEntry {
                ino: handle.dir.attr.lock().stat().ino,
                offset: at + 1,
                kind: FileKind::Directory,
                name,
            };
            if !sink.add(&entry) {
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
                        Err(errno) => return Err(errno),
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

    fn is_out_of_sight(&self, dir: &Inode, item: &Next) -> bool {
        match item {
            Next::Known(name, _) => self.silly.ours.has(dir, name),
            Next::Listed(item) => self.silly.ours.has(dir, &item.name),
            Next::End => false,
        }
    }

    fn offer(
        &self,
        dir: &Arc<Inode>,
        item: &Item,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> Result<bool, Telling> {
        let entry = DirEntry {
            ino: item.ino,
            offset,
            kind: item.kind,
            name: &item.name,
        };
        let inode = match &item.inode {
            Some(inode) if plus && self.namespace.look_up_listed(inode) => inode,
            _ => return Ok(sink.add(&entry)),
        };
        // Read before a change of ours, it may be a name that we have removed: the kernel
        // is to ask for it, and learns no more than which it was.
        let late = dir.attr.lock().overtook(item.sent);
        let taken = self.offer_plus(dir, inode, &entry, late, sink)?;
        if taken && !late {
            let target = DentryTarget::Inode(Arc::clone(inode));
            let name = Arc::clone(&item.name);
            self.namespace
                .put_name(dir, name, target, Some((item.dir_change, item.sent)));
        }
        Ok(taken)
    }

    fn offer_known(
        &self,
        dir: &Arc<Inode>,
        name: &Name,
        inode: &Arc<Inode>,
        offset: u64,
        plus: bool,
        sink: &mut dyn DirSink,
    ) -> Result<bool, Telling> {
        // It may lead elsewhere since the listing was begun, or nowhere.
        let (inode, late) = match dir.names().lock().get(name) {
            Dentry::Positive(now) => (now, false),
            Dentry::Negative => return Ok(true),
            Dentry::NotListed | Dentry::Unknown => (Arc::clone(inode), true),
        };
        let entry = DirEntry {
            ino: inode.attr.lock().stat().ino,
            offset,
            kind: inode.kind,
            name,
        };
        if plus && !inode.is_stale() && self.namespace.look_up_again(&inode) {
            if !late {
                self.namespace.found_at(&inode, dir, Arc::clone(name));
            }
            self.offer_plus(dir, &inode, &entry, late, sink)
        } else {
            Ok(sink.add(&entry))
        }
    }

    /// Offers a name whose inode has been counted as looked up; if it is `late`, for
    /// the kernel to ask for before it believes anything of it.
    fn offer_plus(
        &self,
        dir: &Arc<Inode>,
        inode: &Arc<Inode>,
        entry: &DirEntry<'_>,
        late: bool,
        sink: &mut dyn DirSink,
    ) -> Result<bool, Telling> {
        let mut plus = self.namespace.entry(inode, dir);
        if self.namespace.is_telling(inode.ino) {
            self.namespace.forget(inode.ino, 1);
            return Err(Telling(inode.ino));
        }
        if late {
            (plus.entry_ttl, plus.attr_ttl) = (Duration::ZERO, Duration::ZERO);
        }
        let taken = sink.add_plus(entry, &plus);
        if !taken {
            self.namespace.forget(inode.ino, 1);
        }
        Ok(taken)
    }

    /// Asks for the page that follows, if half of this one has been given out.
    fn ask_early(self: &Arc<Self>, handle: &Arc<DirHandle>, position: usize) {
        let mut source = handle.source.lock();
        let Source::Server(listing) = &mut *source else {
            return;
        };
        let half = listing.first + listing.page.len() / 2;
        if listing.complete || listing.next.is_some() || position < half {
            return;
        }
        if let Some(&(cookie, _)) = listing.given.last() {
            let (vfs, handle) = (Arc::clone(self), Arc::clone(handle));
            let verifier = listing.verifier;
            let page = async move {
                let tasks = &vfs.metrics.tasks;
                let page = async {
                    tasks.point("ask_page");
                    vfs.ask_page(&handle, cookie, verifier).await
                };
                tasks.watched("ask_page", page).await
            };
            listing.next = Some((cookie, tokio::spawn(page)));
        }
    }

    async fn ask_page(&self, handle: &DirHandle, cookie: u64, verifier: Verifier) -> Page {
        let steps = handle.dir.names().lock().tracker.steps();
        let sent = Instant::now();
        let result = self
            .client
            .read_dir(&handle.cred, &handle.dir.handle, cookie, verifier, u32::MAX)
            .await;
        Page {
            sent,
            steps,
            result,
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
            let (cookie, verifier) =
                detour.unwrap_or_else(|| handle.source.lock().listing().after(from));
            let early = handle.source.lock().listing().next.take();
            let asked = match early {
                Some((follows, page)) if follows == cookie => page.await.ok().and_then(Result::ok),
                _ => None,
            };
            let asked = match asked {
                Some(page) => page,
                None => self.ask_page(handle, cookie, verifier).await,
            };
            let sent = asked.sent;
            let (dir, page) = match asked.result {
                Ok(result) => result,
                Err(NfsError::Status(_, Status::BAD_COOKIE | Status::NOT_SAME))
                    if restarts < RESTARTS && cookie != 0 =>
                {
                    restarts += 1;
                    let mut source = handle.source.lock();
                    let listing = source.listing();
                    listing.given.truncate(from);
                    listing.all = None;
                    skip = listing.given.iter().map(|&(_, hash)| hash).collect();
                    detour = Some((0, [0; 8]));
                    continue;
                }
                Err(error) => return Err(self.namespace.failed(&error, &handle.dir)),
            };
            self.namespace.learn(&handle.dir, &dir, sent);
            if self.namespace.is_removed(&dir) {
                return Err(Errno(libc::ESTALE));
            }
            let last = page.last;
            if last == Some(cookie) && !page.eof {
                tracing::warn!(ino = handle.dir.ino, "the server's listing stands still");
                return Err(Errno(libc::EIO));
            }
            let mut items = VecDeque::with_capacity(page.entries.len());
            let mut given = Vec::with_capacity(page.entries.len());
            for entry in page.entries {
                let hash = hash_name(&entry.name);
                if skip.contains(&hash) {
                    continue;
                }
                given.push((entry.cookie, hash));
                let (name, inode) = entry
                    .attrs
                    .handle
                    .as_ref()
                    .and_then(|fh| {
                        self.namespace
                            .listed(&handle.dir, &entry.name, fh, &entry.attrs, sent)
                    })
                    // A copy, so that the record does not live as long as the
                    // longest-lived of its names.
                    .map_or_else(
                        || (Name::from(&entry.name[..]), None),
                        |(name, inode)| (name, Some(inode)),
                    );
                items.push_back(Item {
                    name,
                    ino: match self.namespace.ino_of(&entry.attrs) {
                        ROOT_INO => entry.attrs.fileid,
                        ino => ino,
                    },
                    kind: kind_of(entry.attrs.kind),
                    inode,
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
            let all = {
                let mut source = handle.source.lock();
                let listing = source.listing();
                listing.given.truncate(from);
                from = listing.given.len();
                listing.given.extend(given);
                listing.first = from;
                listing.gather(&items, cookie == 0, dir.change, asked.steps);
                let most = self.namespace.most_names_of_one();
                if listing
                    .all
                    .as_ref()
                    .is_some_and(|all| all.names.len() > most)
                {
                    listing.all = None;
                }
                listing.page = items;
                listing.complete = page.eof;
                listing.verifier = page.verifier;
                listing.all.take_if(|_| page.eof)
            };
            if let Some(all) = all {
                let All {
                    names,
                    change,
                    steps,
                } = all;
                self.namespace.install_listing(
                    &handle.dir,
                    names,
                    &handle.cred,
                    change,
                    sent,
                    steps,
                );
            }
            return Ok(());
        }
    }
}

/// What comes next in a listing.
enum Next {
    Known(Name, Arc<Inode>),
    Listed(Item),
    End,
}

impl Default for Source {
    fn default() -> Self {
        Self::Server(Box::default())
    }
}

impl Source {
    /// The name at a position; `Err` says after how many names the page to be
    /// fetched begins.
    fn item(&mut self, position: usize) -> Result<Next, usize> {
        match self {
            Self::Known { names } => Ok(match names.get(position) {
                Some((name, inode)) => Next::Known(Arc::clone(name), Arc::clone(inode)),
                None => Next::End,
            }),
            Self::Server(listing) => listing.item(position),
        }
    }

    /// The server's listing. A page is fetched for nothing else.
    fn listing(&mut self) -> &mut Listing {
        if let Self::Known { .. } = self {
            *self = Self::Server(Box::default());
        }
        match self {
            Self::Server(listing) => listing,
            Self::Known { .. } => unreachable!("replaced just now"),
        }
    }
}

impl Listing {
    fn item(&self, position: usize) -> Result<Next, usize> {
        let end = self.first + self.page.len();
        if (self.first..end).contains(&position)
            && let Some(item) = self.page.get(position - self.first)
        {
            return Ok(Next::Listed(item.clone()));
        }
        if position >= end && self.complete {
            return Ok(Next::End);
        }
        // A position that was never given out (a made-up seekdir) goes on
        // where the listing does.
        Err(position.min(self.given.len()))
    }

    /// Where the server goes on after the first `from` names.
    fn after(&self, from: usize) -> (u64, Verifier) {
        match from.checked_sub(1).and_then(|last| self.given.get(last)) {
            Some(&(cookie, _)) => (cookie, self.verifier),
            None => (0, [0; 8]),
        }
    }

    /// Adds a page to the names so far, or gives up to have all of them.
    fn gather(&mut self, items: &VecDeque<Item>, first: bool, change: u64, steps: u64) {
        if first && self.given.len() == items.len() {
            self.all = Some(All {
                names: Vec::with_capacity(items.len()),
                change,
                steps,
            });
        }
        let Some(all) = &mut self.all else {
            return;
        };
        let follows = all.change == change && all.names.len() + items.len() == self.given.len();
        let names = items.iter().map(|item| {
            let inode = item.inode.as_ref()?;
            Some((Arc::clone(&item.name), Arc::clone(inode)))
        });
        match names.collect::<Option<Vec<_>>>() {
            Some(names) if follows => all.names.extend(names),
            _ => self.all = None,
        }
    }
}

/// A name's hash; the same for the life of the process, and not known to whoever
/// names the files.
pub(in crate::vfs) fn hash_name(name: &[u8]) -> u64 {
    static HASHER: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    HASHER.get_or_init(RandomState::new).hash_one(name)
}
