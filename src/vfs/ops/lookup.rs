//! lookup, forget; and what is known of a name before anybody is asked.

use std::sync::Arc;

use crate::rpc::auth::Credential;
use crate::telemetry::Cache;
use crate::vfs::Vfs;
use crate::vfs::namespace::names::{NAME_MAX, check_name};
use crate::vfs::types::{Errno, FileKind, Ino, Lookup, VfsResult};

impl Vfs {
    /// Answers a lookup from what is remembered, if that may be believed.
    /// A found name counts as looked up.
    pub fn lookup_cached(&self, parent: Ino, name: &[u8]) -> Option<VfsResult<Lookup>> {
        if name.len() > NAME_MAX {
            return Some(Err(Errno(libc::ENAMETOOLONG).into()));
        }
        let dir = self.namespace.get(parent)?;
        let answer = self.namespace.remembered(&dir, name, false);
        self.metrics.cache(Cache::Dentry, answer.is_some());
        answer.map(Ok)
    }

    /// LOOKUP: one round trip; or READDIR of the whole directory, see `access_pattern`.
    pub async fn lookup(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> VfsResult<Lookup> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        if self.namespace.fetch_for_lookup(cred, &dir, name).await
            && let Some(found) = self.namespace.remembered(&dir, name, true)
        {
            return Ok(found);
        }
        self.namespace.ask_for(cred, &dir, name).await
    }

    /// LOOKUP, whatever is known: the kernel wants to know of the server. A listing is
    /// not good enough for that.
    pub async fn lookup_asked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> VfsResult<Lookup> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        self.namespace.ask_for(cred, &dir, name).await
    }

    /// LOOKUP, whatever is known, of a file that thread `tid` is about to open so (`O_*`):
    /// the answer stays true until its [`open_found`](Self::open_found).
    pub async fn lookup_to_open(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        flags: i32,
        tid: u32,
    ) -> VfsResult<Lookup> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        self.files.leave_older_walk(tid).await;
        self.namespace.walk_again(&dir, name).await;
        let opened = match self.files.may_keep() {
            true => Box::pin(self.files.find_open(cred, &dir, name, flags, tid)).await,
            false => Ok(None),
        };
        let found = match opened {
            Ok(Some(found)) => Ok(found),
            Ok(None) => self.namespace.ask_for(cred, &dir, name).await,
            Err(error) => Err(error),
        };
        let file = match &found {
            Ok(Lookup::Found(entry)) if entry.stat.kind == FileKind::Regular => Some(entry.ino),
            _ => None,
        };
        self.namespace.walk_found(dir.ino, name, file);
        found
    }

    /// Whether a lookup of this name, by who is about to make it, need not go to the
    /// server: the directory's names were all known last, and this was none of them.
    pub fn may_be_made(&self, parent: Ino, name: &[u8]) -> bool {
        self.namespace.may_be_made(parent, name)
    }

    /// Whether the directory is the one that a path leads to by this component, as far
    /// as names tell: it has that name, and none in it has it, too.
    pub fn is_named(&self, parent: Ino, component: &[u8]) -> bool {
        self.namespace.is_named(parent, component)
    }

    /// The inode was found by this name last.
    pub fn is_found_at(&self, ino: Ino, parent: Ino, name: &[u8]) -> bool {
        self.namespace.is_found_at(ino, parent, name)
    }

    /// FORGET.
    pub fn forget(&self, ino: Ino, nlookup: u64) {
        self.namespace.forget(ino, nlookup);
    }
}
