//! LOOKUP: who may be answered from what is known, and who wants to know of the server.
//!
//! | the kernel | the name is known here | answer |
//! |---|---|---|
//! | walks a second time after ESTALE (`estale_retry`) | | the server's |
//! | believes the name, and asks all the same (`Vfs::dentry_state`) | | the server's; of a plain rename, which replaces what is there, what is known |
//! | does not believe it | to be there | what is known; the server's, if the caller's call fails because the name is there (`intent`) |
//! | does not | to be missing | what is known |
//! | does not | not, or of a listing | the server's; none if what comes next makes the name |

use std::sync::Arc;
use std::time::Duration;

use super::estale_retry::EstaleRetries;
use super::intent::{self, Glance, Intents, Making};
use crate::rpc::auth::Credential;
use crate::vfs::types::{FileKind, Ino, Lookup, VfsResult};
use crate::vfs::{DentryState, Vfs};

type LookupResult = VfsResult<Lookup>;

/// The answer without asking anybody, if the caller, thread `tid`, may have it. What it is
/// doing is only looked at where that matters: it takes some 8 us.
pub(super) fn cached(
    vfs: &Vfs,
    reopens: &EstaleRetries,
    tid: u32,
    (parent, name): (Ino, &[u8]),
    dentry_state: DentryState,
) -> Option<LookupResult> {
    if reopens.asks(tid) {
        return None;
    }
    match dentry_state {
        DentryState::Believed(_) => None,
        DentryState::Leads if intent::glance(tid) != Glance::Finds => None,
        DentryState::Leads | DentryState::Open => vfs.lookup_cached(parent, name),
    }
}

/// Who asks for a name.
pub(super) struct Asker {
    pub(super) vfs: Arc<Vfs>,
    pub(super) intents: Arc<Intents>,
    pub(super) reopens: Arc<EstaleRetries>,
    pub(super) tid: u32,
}

impl Asker {
    /// The answer otherwise.
    pub(super) async fn find(
        &self,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        dentry_state: DentryState,
    ) -> LookupResult {
        let found = if self.reopens.asks(self.tid) {
            self.find_again(cred, parent, name).await
        } else {
            self.find_first(cred, parent, name, dentry_state).await
        };
        if matches!(&found, Err(error) if error.is(libc::ESTALE)) {
            self.reopens.refused(self.tid, None);
        }
        found
    }

    /// The server's answer, or none if the server is asked by what comes next: it is also
    /// who finds that the directory is gone, upon which the kernel walks again; of mkdir
    /// and its like it does not after a lookup.
    async fn find_first(
        &self,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        dentry_state: DentryState,
    ) -> LookupResult {
        const LATER: Lookup = Lookup::Missing {
            ttl: Duration::ZERO,
        };
        let vfs = &self.vfs;
        vfs.search(cred, parent).await?;
        let known_will_do = match dentry_state {
            DentryState::Believed(FileKind::Directory) => false,
            // RENAME says what it replaces, and whether it may.
            DentryState::Believed(_) => self.replaces(parent, name).await,
            DentryState::Leads => !self.intents.refuses(self.tid, name).await,
            DentryState::Open => false,
        };
        if known_will_do && let Some(known) = vfs.lookup_cached(parent, name) {
            return known;
        }
        let found = match dentry_state {
            DentryState::Believed(_) | DentryState::Leads => {
                vfs.lookup_asked(cred, parent, name).await
            }
            DentryState::Open
                if vfs.may_be_made(parent, name) && self.makes(parent, name).await =>
            {
                return Ok(LATER);
            }
            DentryState::Open => vfs.lookup(cred, parent, name).await,
        };
        match found {
            Err(error) if error.is(libc::ESTALE) && self.makes(parent, name).await => Ok(LATER),
            found => found,
        }
    }

    /// The same on a second walk.
    async fn find_again(&self, cred: &Arc<Credential>, parent: Ino, name: &[u8]) -> LookupResult {
        let (vfs, tid) = (&self.vfs, self.tid);
        let refused = self.reopens.open(tid);
        let by_name = refused.filter(|open| vfs.is_found_at(open.ino, parent, name));
        let flags = match by_name {
            Some(open) => Some(open.flags),
            None => self.intents.opens(tid, name).await,
        };
        let found = match flags {
            Some(flags) => vfs.lookup_to_open(cred, parent, name, flags, tid).await,
            None => vfs.lookup_asked(cred, parent, name).await,
        };
        let ino = match &found {
            Ok(Lookup::Found(entry)) => Some(entry.ino),
            _ => None,
        };
        self.reopens.found(tid, ino);
        found
    }

    /// Because it is about to make it in this directory.
    async fn makes(&self, parent: Ino, name: &[u8]) -> bool {
        let making = self.intents.makes(self.tid, name).await;
        making.is_some_and(|making| self.is_of(making, parent))
    }

    /// Because it is about to replace it in this directory.
    async fn replaces(&self, parent: Ino, name: &[u8]) -> bool {
        let making = self.intents.replaces(self.tid, name).await;
        making.is_some_and(|making| self.is_of(making, parent))
    }

    fn is_of(&self, making: Making, parent: Ino) -> bool {
        let above = making.above;
        above.is_none_or(|above| self.vfs.is_named(parent, &above))
    }
}
