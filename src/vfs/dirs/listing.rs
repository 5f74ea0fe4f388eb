//! One listing of a directory, as a handle gives it out: a plain machine under the handle's lock.
//!
//! Offsets are positions in the order this handle has given names out: small and stable, which
//! the server's cookies (64 bits, all in use, of any order) are not for a
//! signed `off_t`. Each position keeps the cookie that leads on from it, so
//! seekdir(3) to any of them asks the server to go on from there; the entries
//! themselves are held for one page only.
//!
//! A server may refuse a cookie after the directory has changed
//! (NFS4ERR_BAD_COOKIE, NFS4ERR_NOT_SAME). The listing then starts over at the
//! server and skips the names that were given out already, known by a hash ([`Search`]).

pub(super) mod handover;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::background::Died;
use crate::nfs::NfsError;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::reply::DirResult;
use crate::nfs::proto::types::Verifier;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::{Listed, Name};
use crate::vfs::types::{FileKind, Ino};

/// A listing that the server makes start over more often has no end in sight.
const RESTARTS: usize = 5;

/// Pages without a new name in a row after which the server runs in circles.
const BARREN_PAGES: usize = 64;

/// Where a handle's names come from.
#[derive(Debug)]
pub(super) enum Source {
    /// All of them were known when it was opened.
    Known { names: Listed },
    /// The server lists them.
    Server(Box<Listing>),
}

/// The names of a directory as the server lists them, one page at a time.
#[derive(Debug, Default)]
pub(super) struct Listing {
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
    /// The hashes in `given` are another process's, which hashed differently.
    strange_hashes: bool,
}

/// The names of a listing from its beginning on.
#[derive(Debug)]
pub(super) struct All {
    pub(super) names: Listed,
    /// The directory's change attribute, the same all the time.
    pub(super) change: u64,
    /// How far the chain of our own changes was when the first request left.
    pub(super) steps: u64,
}

/// A page, and when it was asked for.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) sent: Instant,
    /// See [`All::steps`].
    pub(super) steps: u64,
    pub(super) result: Result<(Attributes, DirResult), NfsError>,
}

/// A name in a listing.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) name: Name,
    pub(super) ino: Ino,
    pub(super) kind: FileKind,
    /// `None` if the server could not say which object it is.
    pub(super) inode: Option<Arc<Inode>>,
    /// When the request left that brought it, and the directory's change
    /// attribute it belongs to.
    pub(super) sent: Instant,
    pub(super) dir_change: u64,
}

/// What comes next in a listing.
pub(super) enum Next {
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
    pub(super) fn item(&mut self, position: usize) -> Result<Next, usize> {
        match self {
            Self::Known { names } => Ok(match names.get(position) {
                Some((name, inode)) => Next::Known(Arc::clone(name), Arc::clone(inode)),
                None => Next::End,
            }),
            Self::Server(listing) => listing.item(position),
        }
    }

    /// The server's listing. A page is fetched for nothing else.
    pub(super) fn listing(&mut self) -> &mut Listing {
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
    pub(super) fn after(&self, from: usize) -> (u64, Verifier) {
        match from.checked_sub(1).and_then(|last| self.given.get(last)) {
            Some(&(cookie, _)) => (cookie, self.verifier),
            None => (0, [0; 8]),
        }
    }

    /// The page that was asked for early, if it follows this cookie.
    pub(super) fn take_early(&mut self, cookie: u64) -> Option<JoinHandle<Result<Page, Died>>> {
        let (follows, page) = self.next.take()?;
        (follows == cookie).then_some(page)
    }

    /// Whether the page that follows should be asked for now, because half of this one has
    /// been given out at `position`: with this cookie.
    pub(super) fn wants_early(&self, position: usize) -> Option<(u64, Verifier)> {
        let half = self.first + self.page.len() / 2;
        if self.complete || self.next.is_some() || position < half {
            return None;
        }
        let &(cookie, _) = self.given.last()?;
        Some((cookie, self.verifier))
    }

    /// It was asked for.
    pub(super) fn asked_early(&mut self, cookie: u64, page: JoinHandle<Result<Page, Died>>) {
        self.next = Some((cookie, page));
    }

    /// The page that follows the first `from` names. Gives all names out, if these are the
    /// last ones and no more than `most` were known from the beginning on.
    pub(super) fn take_page(&mut self, from: usize, taken: Taken, most: usize) -> Option<All> {
        self.given.truncate(from);
        let from = self.given.len();
        self.given.extend(taken.given);
        self.first = from;
        self.gather(&taken.items, taken.is_first, taken.change, taken.steps);
        if self.all.as_ref().is_some_and(|all| all.names.len() > most) {
            self.all = None;
        }
        self.page = taken.items;
        self.complete = taken.eof;
        self.verifier = taken.verifier;
        self.all.take_if(|_| taken.eof)
    }

    /// The listing starts over at the server after the first `from` names. Gives their
    /// hashes.
    fn start_over(&mut self, from: usize) -> HashSet<u64> {
        self.given.truncate(from);
        self.all = None;
        self.given.iter().map(|&(_, hash)| hash).collect()
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

/// A page, as it goes into a listing.
#[derive(Debug)]
pub(super) struct Taken {
    /// The names that were not given out before.
    pub(super) items: VecDeque<Item>,
    /// For each of them the cookie after it, and its hash.
    pub(super) given: Vec<(u64, u64)>,
    /// The page begins the server's listing.
    pub(super) is_first: bool,
    /// Nothing comes after it.
    pub(super) eof: bool,
    /// The server's word for where it goes on.
    pub(super) verifier: Verifier,
    /// The directory's change attribute.
    pub(super) change: u64,
    /// See [`All::steps`].
    pub(super) steps: u64,
}

/// How the page that follows the first `from` names is looked for, at a server that may make the
/// listing start over.
#[derive(Debug, Default)]
pub(super) struct Search {
    from: usize,
    /// Hashes of names that were given out already.
    skip: HashSet<u64>,
    restarts: usize,
    barren: usize,
    /// While the listing starts over, this leads on instead of what was given out.
    detour: Option<(u64, Verifier)>,
}

impl Search {
    /// The page that follows the first `from` names.
    pub(super) fn after(from: usize) -> Self {
        Self {
            from,
            ..Self::default()
        }
    }

    /// After how many names the page is to come.
    pub(super) fn from(&self) -> usize {
        self.from
    }

    /// Where the server goes on now.
    pub(super) fn place(&self, listing: &Listing) -> (u64, Verifier) {
        self.detour.unwrap_or_else(|| listing.after(self.from))
    }

    /// The name was given out already.
    pub(super) fn skips(&self, hash: u64) -> bool {
        self.skip.contains(&hash)
    }

    /// The server refuses this cookie. False if it is not to be tried again.
    pub(super) fn may_start_over(&self, cookie: u64, listing: &Listing) -> bool {
        self.restarts < RESTARTS && cookie != 0 && !listing.strange_hashes
    }

    /// The listing starts over.
    pub(super) fn start_over(&mut self, listing: &mut Listing) {
        self.restarts += 1;
        self.skip = listing.start_over(self.from);
        self.detour = Some((0, [0; 8]));
    }

    /// A page after `cookie` had no new name. False if there is no going on from its `last` one:
    /// the server runs in circles.
    pub(super) fn goes_on(&mut self, cookie: u64, last: Option<u64>, verifier: Verifier) -> bool {
        self.barren += 1;
        match last {
            Some(last) if self.barren < BARREN_PAGES && last != cookie => {
                self.detour = Some((last, verifier));
                true
            }
            _ => false,
        }
    }
}
