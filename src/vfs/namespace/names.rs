//! Looking names up, and what changes make of them: ours as they are answered, and others' as they
//! are found out.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Namespace;
use crate::nfs::NfsError;
use crate::nfs::calls::{DirChange, Made};
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::FileHandle;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::{Dentry, DentryTarget, Listed, Name};
use crate::vfs::types::{Errno, Ino, Lookup, ROOT_INO, VfsError, VfsResult};

/// Names longer than this are refused here, as the server would
/// (NAME_MAX of the kernel's VFS).
pub(in crate::vfs) const NAME_MAX: usize = 255;

/// How long the kernel may say by itself that a name is missing. It cannot be
/// told when the directory is seen to have moved, so it asks each time: a missing
/// name that is known here costs no round trip.
const NEGATIVE_TTL: Duration = Duration::ZERO;

/// ENAMETOOLONG for a name that no file system has.
pub(in crate::vfs) fn check_name(name: &[u8]) -> VfsResult<()> {
    if name.len() > NAME_MAX {
        return Err(Errno(libc::ENAMETOOLONG).into());
    }
    Ok(())
}

/// What is remembered of names.
impl Namespace {
    /// With `fetched`, the directory has just been fetched whole for this very
    /// question.
    pub(in crate::vfs) fn remembered(
        &self,
        dir: &Arc<Inode>,
        name: &[u8],
        fetched: bool,
    ) -> Option<Lookup> {
        if !self.names.is_on() || dir.is_stale() || self.names_ttl(dir).is_zero() {
            return None;
        }
        let (answer, confirmed, is_private) = {
            let names = dir.names().lock();
            (
                names.get(name),
                names.tracker.confirmed(),
                names.maker().is_some(),
            )
        };
        let found = match answer {
            answer if self.names.says_missing(&answer, confirmed) => {
                Lookup::Missing { ttl: NEGATIVE_TTL }
            }
            // By what is said here to who makes it. ("writeback")
            Dentry::NotListed if is_private => Lookup::Missing { ttl: NEGATIVE_TTL },
            Dentry::NotListed if fetched && dir.names().lock().record_negative(name) => {
                Lookup::Missing { ttl: NEGATIVE_TTL }
            }
            Dentry::Positive(inode) => {
                if inode.is_stale() || !self.inodes.look_up_again(&inode) {
                    return None;
                }
                self.found_at(&inode, dir, name);
                // Its attributes may be too old; the kernel asks for them if
                // it needs them.
                Lookup::Found(self.entry(&inode, dir))
            }
            Dentry::Negative | Dentry::NotListed | Dentry::Unknown => return None,
        };
        self.names.used(dir);
        Some(found)
    }

    /// The inode that a name is remembered to lead to, believed or not.
    pub(in crate::vfs) fn remembered_inode(&self, dir: &Inode, name: &[u8]) -> Option<Arc<Inode>> {
        match dir.names().lock().get(name) {
            Dentry::Positive(inode) => Some(inode),
            Dentry::Negative | Dentry::NotListed | Dentry::Unknown => None,
        }
    }

    /// Whether a lookup of this name, by who is about to make it, need not go to the
    /// server: the directory's names were all known last, and this was none of them, so
    /// the kernel has none under it either; the making itself asks.
    ///
    /// Not where everybody may make names and nobody remove others': there the kernel
    /// wants to know whose the file is before it opens it for somebody who would
    /// have made it (`fs.protected_regular`, `fs.protected_fifos`).
    pub(in crate::vfs) fn may_be_made(&self, parent: Ino, name: &[u8]) -> bool {
        const SHARED: u16 = (libc::S_ISVTX | libc::S_IWOTH) as u16;
        if name.len() > NAME_MAX || !self.names.is_on() {
            return false;
        }
        let Some(dir) = self.inodes.get(parent) else {
            return false;
        };
        let shared = dir.attr.lock().stat().perm & SHARED == SHARED;
        let known = dir.names().lock().get(name);
        !shared && matches!(known, Dentry::NotListed | Dentry::Negative)
    }

    /// Whether the directory is the one that a path leads to by this component, as far
    /// as names tell: it has that name, and none in it has it, too.
    pub(in crate::vfs) fn is_named(&self, parent: Ino, component: &[u8]) -> bool {
        let Some(dir) = self.inodes.get(parent) else {
            return false;
        };
        let named = match dir.place() {
            Some(place) => *place.name == *component,
            // The root: what it is called is not known here.
            None => parent == ROOT_INO,
        };
        named && self.remembered_inode(&dir, component).is_none()
    }

    /// The inode was found by this name last.
    pub(in crate::vfs) fn is_found_at(&self, ino: Ino, parent: Ino, name: &[u8]) -> bool {
        let inode = self.inodes.get(ino);
        inode.is_some_and(|inode| inode.is_found_at(parent, name))
    }
}

/// Listings, and what is believed of names at all.
impl Namespace {
    /// All names of the directory, if they are known and may be believed, and after how many
    /// edits that was so.
    pub(in crate::vfs) fn all_names(
        &self,
        cred: &Credential,
        dir: &Arc<Inode>,
    ) -> Option<(Listed, u64)> {
        let ttl = self.names_ttl(dir);
        self.names.used(dir);
        let names = dir.names().lock();
        (!ttl.is_zero() && names.is_complete_for(cred)).then(|| names.listing())
    }

    /// A directory with more names is not kept.
    pub(in crate::vfs) fn most_names_of_one(&self) -> usize {
        self.names.most_of_one()
    }

    /// Another host was found to have taken a name away, or to have given it to another object.
    pub(in crate::vfs) fn stranger_was_here(&self) {
        self.names.stranger_was_here();
    }
}

/// What the server says of names.
impl Namespace {
    /// LOOKUP, whatever is known: one round trip.
    pub(in crate::vfs) async fn ask_for(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> VfsResult<Lookup> {
        let known = self.remembered_inode(dir, name);
        let sent = Instant::now();
        let found = self
            .client
            .lookup(cred, &dir.handle, name)
            .await
            .map_err(|error| self.failed(&error, dir))?;
        self.learn(dir, &found.dir, sent);
        // A change of ours may have made the answer untrue on its way here.
        let late = dir.attr.lock().overtook(sent);
        let now = found.object.as_ref().map(|(handle, _)| handle);
        if !late && known.is_some_and(|known| now != Some(&known.handle)) {
            self.names.stranger_was_here();
        }
        match found.object {
            Some((handle, attrs)) => {
                let inode = self.known(&handle, &attrs, sent);
                self.found_at(&inode, dir, name);
                if !late {
                    let target = DentryTarget::Inode(Arc::clone(&inode));
                    self.put_name(dir, name, target, Some((found.dir.change, sent)));
                }
                let mut entry = self.entry(&inode, dir);
                if late {
                    entry.entry_ttl = Duration::ZERO;
                }
                Ok(Lookup::Found(entry))
            }
            None if self.is_removed(&found.dir) => Err(Errno(libc::ESTALE).into()),
            None => {
                if !late {
                    let seen = Some((found.dir.change, sent));
                    self.put_name(dir, name, DentryTarget::Negative, seen);
                }
                Ok(Lookup::Missing { ttl: NEGATIVE_TTL })
            }
        }
    }

    /// The inode of an object that a reply named, counted as looked up, with
    /// what the reply said about it.
    pub(in crate::vfs) fn known(
        &self,
        handle: &FileHandle,
        attrs: &Attributes,
        sent: Instant,
    ) -> Arc<Inode> {
        let kept = |ino| self.names.dir(ino);
        let (inode, new) = self.inodes.look_up(handle, attrs, sent, kept);
        if new {
            self.metrics.gauges.inodes.set(self.inodes.len() as u64);
        } else {
            self.learn(&inode, attrs, sent);
        }
        inode
    }
}

/// What became of a change of ours.
impl Namespace {
    /// Takes in a name that we made.
    pub(in crate::vfs) fn made(
        &self,
        dir: &Arc<Inode>,
        name: &[u8],
        made: &Made,
        sent: Instant,
    ) -> Arc<Inode> {
        let inode = self.known(&made.handle, &made.attrs, sent);
        // By its name it is known which directory a path leads to, that makes names in it.
        self.found_at(&inode, dir, name);
        self.named(
            dir,
            name,
            &made.dir,
            DentryTarget::Inode(Arc::clone(&inode)),
            sent,
        );
        inode
    }

    /// Takes in how a directory moved when we changed one of its names, and
    /// where that name leads now.
    pub(in crate::vfs) fn named(
        &self,
        dir: &Arc<Inode>,
        name: &[u8],
        moved: &DirChange,
        target: DentryTarget,
        sent: Instant,
    ) {
        self.dir_moved(dir, moved, sent);
        self.put_name(dir, name, target, None);
    }

    /// A change of one name of a directory failed. If that contradicts what is
    /// known of the name, that is not good any more.
    pub(in crate::vfs) fn refused(
        &self,
        error: &NfsError,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> VfsError {
        let error = self.failed(error, dir);
        self.heed_refusal(error.errno(), dir, name);
        error
    }

    /// The same, where the server's word for it is not the caller's.
    pub(in crate::vfs) fn heed_refusal(&self, errno: Errno, dir: &Arc<Inode>, name: &[u8]) {
        let known = dir.names().lock().get(name);
        let surprise = match errno.0 {
            libc::EEXIST => !matches!(known, Dentry::Positive(_)),
            libc::ENOENT => matches!(known, Dentry::Positive(_)),
            libc::ENOTDIR | libc::EISDIR => true,
            _ => false,
        };
        if surprise {
            self.doubt(dir);
            self.names.stranger_was_here();
        }
    }

    /// The same, if ENOENT may be about the directory, too. If it is not, nor is what the
    /// kernel believes of the name good any more: Linux 6.1 keeps the entry of what unlink(2)
    /// has found gone, or of another kind.
    pub(in crate::vfs) async fn refused_in(
        &self,
        cred: &Arc<Credential>,
        error: &NfsError,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> VfsError {
        let error = self.refused(error, dir, name);
        let error = self.blamed(cred, &[dir], error).await;
        if matches!(error.errno().0, libc::ENOENT | libc::ENOTDIR | libc::EISDIR) {
            self.forget_entry(dir.ino, name);
        }
        error
    }

    /// unlink(2) of a name that another host has given to a directory.
    pub(in crate::vfs) fn is_directory_now(&self, dir: &Arc<Inode>, name: &[u8]) -> Errno {
        let errno = Errno(libc::EISDIR);
        self.heed_refusal(errno, dir, name);
        self.forget_entry(dir.ino, name);
        errno
    }

    /// The server contradicts what is known of the directory's names: they are
    /// asked for again.
    pub(in crate::vfs) fn doubt(&self, dir: &Arc<Inode>) {
        dir.attr.lock().expire();
        dir.names().lock().doubt();
    }

    /// A name was seen to lead there by a request sent then, while the directory
    /// was at that change. With `None`, it leads there by our own change, which
    /// has been taken in.
    pub(in crate::vfs) fn put_name(
        &self,
        dir: &Arc<Inode>,
        name: impl AsRef<[u8]> + Into<Name>,
        target: DentryTarget,
        seen: Option<(u64, Instant)>,
    ) {
        if !self.names.is_on() {
            return;
        }
        {
            let mut names = dir.names().lock();
            if !names.tracker.takes(seen) {
                return;
            }
            if let Dentry::Positive(before) = names.get(name.as_ref())
                && !matches!(&target, DentryTarget::Inode(now) if Arc::ptr_eq(now, &before))
            {
                self.leads_elsewhere(dir.ino, name.as_ref(), &before, seen.is_some());
            }
            match target {
                DentryTarget::Negative if self.names.has_missing() => {
                    names.put(name.into(), target)
                }
                DentryTarget::Negative => names.remove(name.as_ref()),
                DentryTarget::Inode(_) => names.put(name.into(), target),
            }
        }
        self.names.used(dir);
    }

    /// RENAME has moved what a name led to. If that has other names (`!is_gone`), this may be
    /// one of them still: another host may have given it the new name before, and RENAME
    /// moved nothing.
    pub(in crate::vfs) fn moved_away(
        &self,
        dir: &Arc<Inode>,
        name: &[u8],
        moved: &DirChange,
        is_gone: bool,
        sent: Instant,
    ) {
        if is_gone {
            return self.named(dir, name, moved, DentryTarget::Negative, sent);
        }
        self.dir_moved(dir, moved, sent);
        dir.names().lock().forget(name);
    }

    /// The name leads to what RENAME has moved there, if it is known what that was.
    pub(in crate::vfs) fn rename_target(
        &self,
        dir: &Arc<Inode>,
        name: &[u8],
        source: Option<&Arc<Inode>>,
    ) {
        match source {
            Some(source) => self.put_name(dir, name, DentryTarget::Inode(Arc::clone(source)), None),
            None => dir.names().lock().forget(name),
        }
    }

    /// A directory was removed or replaced whose name was known to lead here. Another host
    /// may have moved this one away before, so whether it is gone the server is asked by who
    /// wants to know.
    pub(in crate::vfs) fn lost_dir(&self, dir: &Arc<Inode>) {
        self.names.drop_dir(dir);
        dir.attr.lock().may_be_over();
    }
}
