//! Opens that ask nobody (`nocto`).
//!
//! Close-to-open consistency has every open(2) ask the server. With `nocto` one for reading does
//! not, as long as everything that it would be told is known and may be believed:
//!
//! - that the name leads to the file: the directory's names are believed, and this is one of
//!   them;
//! - the file's attributes, and nothing of this host's is on its way that changes them;
//! - that this user may open it for reading: the server has opened it so for him, or ACCESS has
//!   granted him reading, since the file was changed last.
//!
//! A refusal is never known: who is not known to be allowed has the server asked. What another
//! host does is therefore seen when the times of the caches are over, and what this host does at
//! once. Of what comes with such an open see [`files::late_open`](crate::vfs::files::late_open).
//!
//! A directory whose names are all known is listed without being asked for, while they are
//! believed. Linux' own client does without the same questions; but of each file that it opens it
//! tells an NFSv4 server all the same.

use std::sync::Arc;

use tokio::time::Instant;

use super::Namespace;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::Listed;

impl Namespace {
    /// Each open asks the server, whatever is known (close-to-open).
    pub(in crate::vfs) fn asks_at_open(&self) -> bool {
        self.config.close_to_open
    }

    /// An open of the file for reading by this user may be answered from what is known.
    pub(in crate::vfs) fn believes_open(&self, cred: &Arc<Credential>, inode: &Arc<Inode>) -> bool {
        !inode.attr.lock().ttl(Instant::now()).is_zero() && self.knows_open(cred, inode)
    }

    /// The same, if only the attributes are too old for it: they are asked for, with those of
    /// its neighbours that are too old as well.
    pub(in crate::vfs) async fn confirms_open(
        &self,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
    ) -> bool {
        self.knows_open(cred, inode)
            && self.refresh(cred, inode).await.is_ok()
            && self.believes_open(cred, inode)
    }

    /// All but the age of its attributes.
    fn knows_open(&self, cred: &Arc<Credential>, inode: &Arc<Inode>) -> bool {
        if self.asks_at_open() || inode.is_stale() || inode.is_changing() {
            return false;
        }
        // It has lost its last name here; or the server does not count them.
        if inode.attr.lock().stat().nlink == 0 {
            return false;
        }
        let Some(place) = inode.place() else {
            return false;
        };
        let leads_here = self
            .remembered_inode(&place.dir, &place.name)
            .is_some_and(|known| Arc::ptr_eq(&known, inode));
        leads_here
            && !place.dir.is_stale()
            && !self.names_ttl(&place.dir).is_zero()
            && !self.may_mean_another_name(inode)
            && self.may_read(cred, inode)
    }

    /// All names of a directory that is opened, if they are believed without being asked for.
    pub(in crate::vfs) fn believed_listing(
        &self,
        cred: &Credential,
        dir: &Arc<Inode>,
    ) -> Option<(Listed, u64)> {
        match self.asks_at_open() || dir.is_stale() {
            true => None,
            false => self.all_names(cred, dir),
        }
    }
}
