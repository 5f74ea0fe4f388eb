//! A listing in the middle, written down for another process.
//!
//! Of what the server lists: for each name that was given out the server's cookie behind it and the
//! name's hash, sixteen bytes. The names of the page are asked for again, from the very cookie
//! where the reader is; should the server not know that any more, it starts over as always
//! and leaves out by their hashes what was given out.
//!
//! Of a listing of names that were known: the names with their numbers, in their order. Those are
//! no more than the cache of names allows for one directory.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Item, Listing, Source, Taken};
use crate::nfs::proto::types::Verifier;
use crate::vfs::inode::dentry_cache::Name;
use crate::vfs::types::{FileKind, Ino};

/// See [`Source`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs::dirs) enum SourceRecord {
    Known(Vec<KnownName>),
    Server(GivenNames),
}

/// A name, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs::dirs) struct KnownName {
    name: Bytes,
    ino: Ino,
    kind: FileKind,
}

/// What was given out of the server's listing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::vfs::dirs) struct GivenNames {
    /// The cookies and the hashes, each eight bytes.
    given: Bytes,
    verifier: Verifier,
}

/// Cookies and hashes as bytes.
fn as_bytes(given: &[(u64, u64)]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(given.len() * GIVEN);
    for &(cookie, hash) in given {
        bytes.put_u64(cookie);
        bytes.put_u64(hash);
    }
    bytes.freeze()
}

/// A page of the server's listing, as the write-ahead log has it: what was given out of it, which
/// comes after the first `from` names.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::vfs::dirs) struct GivenPage {
    from: u64,
    names: GivenNames,
}

impl GivenPage {
    /// A page that comes after the first `from` names.
    pub(in crate::vfs::dirs) fn of(from: usize, taken: &Taken) -> Self {
        Self {
            from: from as u64,
            names: GivenNames {
                given: as_bytes(&taken.given),
                verifier: taken.verifier,
            },
        }
    }

    /// What was given out of a listing with these pages, in the order in which they were taken.
    pub(in crate::vfs::dirs) fn all(pages: impl IntoIterator<Item = Self>) -> GivenNames {
        let mut all = BytesMut::new();
        let mut verifier = Verifier::default();
        for page in pages {
            let from = usize::try_from(page.from).unwrap_or(usize::MAX);
            all.truncate(from.saturating_mul(GIVEN));
            all.extend_from_slice(&page.names.given);
            verifier = page.names.verifier;
        }
        GivenNames {
            given: all.freeze(),
            verifier,
        }
    }
}

impl GivenNames {
    /// The same as one page.
    pub(in crate::vfs::dirs) fn as_page(&self) -> GivenPage {
        GivenPage {
            from: 0,
            names: self.clone(),
        }
    }
}

/// A cookie and a hash.
const GIVEN: usize = 16;

impl Source {
    /// What another process is to know.
    pub(in crate::vfs::dirs) fn record(&self) -> SourceRecord {
        match self {
            Self::Known { names } => SourceRecord::Known(
                names
                    .iter()
                    .map(|(name, inode)| KnownName {
                        name: Bytes::copy_from_slice(name),
                        ino: inode.attr.lock().stat().ino,
                        kind: inode.kind,
                    })
                    .collect(),
            ),
            Self::Server(listing) if listing.is_page_alone() => SourceRecord::Known(
                listing
                    .page
                    .iter()
                    .map(|item| KnownName {
                        name: Bytes::copy_from_slice(&item.name),
                        ino: item.ino,
                        kind: item.kind,
                    })
                    .collect(),
            ),
            Self::Server(listing) => SourceRecord::Server(listing.given_names()),
        }
    }

    /// What another process has known at `now`. If names hash differently here
    /// (`same_hashes`), those that were given out are not known by them.
    pub(in crate::vfs::dirs) fn of_record(
        record: SourceRecord,
        now: Instant,
        same_hashes: bool,
    ) -> Self {
        let listing = match record {
            SourceRecord::Known(names) => Listing::of_known(names, now),
            SourceRecord::Server(given) => Listing::of_given(given, same_hashes),
        };
        Self::Server(Box::new(listing))
    }
}

impl Listing {
    /// The page is all that there is.
    fn is_page_alone(&self) -> bool {
        self.complete && self.first == 0
    }

    fn given_names(&self) -> GivenNames {
        GivenNames {
            given: as_bytes(&self.given),
            verifier: self.verifier,
        }
    }

    /// All names as one page, after which nothing comes. The kernel asks for each that it wants to
    /// know more of.
    fn of_known(names: Vec<KnownName>, now: Instant) -> Self {
        let items = names.into_iter().map(|known| Item {
            name: Name::from(&known.name[..]),
            ino: known.ino,
            kind: known.kind,
            inode: None,
            sent: now,
            dir_change: 0,
        });
        Self {
            page: items.collect(),
            complete: true,
            ..Self::default()
        }
    }

    fn of_given(names: GivenNames, same_hashes: bool) -> Self {
        let GivenNames {
            mut given,
            verifier,
        } = names;
        let mut all = Vec::with_capacity(given.len() / GIVEN);
        while given.len() >= GIVEN {
            all.push((given.get_u64(), given.get_u64()));
        }
        Self {
            first: all.len(),
            given: all,
            verifier,
            strange_hashes: !same_hashes,
            ..Self::default()
        }
    }
}
