//! Names: looking them up and making them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::nfs::NfsError;
use crate::nfs::calls::{DirChange, HowToOpen, Made};
use crate::nfs::proto::attrs::{Attributes, NewAttributes};
use crate::nfs::proto::ops::{ACCESS_WRITE, Make};
use crate::nfs::proto::types::FileHandle;
use crate::rpc::auth::Credential;
use crate::telemetry::Cache;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::{Dentry, DentryTarget};
use crate::vfs::types::{Entry, Errno, FileKind, Ino, Lookup, ROOT_INO};
use crate::vfs::{NAME_MAX, Vfs};

/// How long the kernel may say by itself that a name is missing. It cannot be
/// told when the directory is seen to have moved, so it asks each time: a missing
/// name that is known here costs no round trip.
const NEGATIVE_TTL: Duration = Duration::ZERO;

impl Vfs {
    /// Answers a lookup from what is remembered, if that may be believed.
    /// A found name counts as looked up.
    pub fn lookup_cached(&self, parent: Ino, name: &[u8]) -> Option<Result<Lookup, Errno>> {
        if name.len() > NAME_MAX {
            return Some(Err(Errno(libc::ENAMETOOLONG)));
        }
        let dir = self.inodes.get(parent)?;
        let answer = self.remembered(&dir, name, false);
        self.metrics.cache(Cache::Dentry, answer.is_some());
        answer.map(Ok)
    }

    /// With `fetched`, the directory has just been fetched whole for this very
    /// question.
    fn remembered(&self, dir: &Arc<Inode>, name: &[u8], fetched: bool) -> Option<Lookup> {
        if !self.names.is_on() || dir.is_stale() || self.names_ttl(dir).is_zero() {
            return None;
        }
        let (answer, confirmed) = {
            let names = dir.names().lock();
            (names.get(name), names.tracker.confirmed())
        };
        let found = match answer {
            answer if self.names.says_missing(&answer, confirmed) => {
                Lookup::Missing { ttl: NEGATIVE_TTL }
            }
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

    /// Whether a lookup of this name, by who is about to make it, need not go to the
    /// server: the directory's names were all known last, and this was none of them, so
    /// the kernel has none under it either; the making itself asks.
    ///
    /// Not where everybody may make names and nobody remove others': there the kernel
    /// wants to know whose the file is before it opens it for somebody who would
    /// have made it (`fs.protected_regular`, `fs.protected_fifos`).
    pub fn may_be_made(&self, parent: Ino, name: &[u8]) -> bool {
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
    pub fn is_named(&self, parent: Ino, component: &[u8]) -> bool {
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

    /// LOOKUP: one round trip; or READDIR of the whole directory, see `access_pattern`.
    pub async fn lookup(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> Result<Lookup, Errno> {
        Self::check_name(name)?;
        let dir = self.inode(parent)?;
        if self.fetch_for_lookup(cred, &dir, name).await
            && let Some(found) = self.remembered(&dir, name, true)
        {
            return Ok(found);
        }
        self.ask_for(cred, &dir, name).await
    }

    /// LOOKUP, whatever is known: the kernel wants to know of the server. A listing is
    /// not good enough for that.
    pub async fn lookup_asked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> Result<Lookup, Errno> {
        Self::check_name(name)?;
        let dir = self.inode(parent)?;
        self.ask_for(cred, &dir, name).await
    }

    /// The inode was found by this name last.
    pub fn is_found_at(&self, ino: Ino, parent: Ino, name: &[u8]) -> bool {
        let place = self.inodes.get(ino).and_then(|inode| inode.place());
        place.is_some_and(|place| place.dir.ino == parent && *place.name == *name)
    }

    pub(in crate::vfs) async fn ask_for(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> Result<Lookup, Errno> {
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
            None if self.is_removed(&found.dir) => Err(Errno(libc::ESTALE)),
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

    /// FORGET.
    pub fn forget(&self, ino: Ino, nlookup: u64) {
        self.inodes.forget(ino, nlookup);
        self.metrics.gauges.inodes.set(self.inodes.len() as u64);
    }

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
    pub(in crate::vfs) fn refused(&self, error: &NfsError, dir: &Arc<Inode>, name: &[u8]) -> Errno {
        let errno = self.failed(error, dir);
        self.heed_refusal(errno, dir, name);
        errno
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
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        error: &NfsError,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> Errno {
        let errno = self.refused(error, dir, name);
        let errno = self.blamed(cred, &[dir], errno).await;
        if matches!(errno.0, libc::ENOENT | libc::ENOTDIR | libc::EISDIR) {
            self.forget_entry(dir.ino, name);
        }
        errno
    }

    /// unlink(2) of a name that another host has given to a directory.
    pub(in crate::vfs) fn is_directory_now(&self, dir: &Arc<Inode>, name: &[u8]) -> Errno {
        let errno = Errno(libc::EISDIR);
        self.heed_refusal(errno, dir, name);
        self.forget_entry(dir.ino, name);
        errno
    }

    async fn make(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        make: Make<'_>,
        mode: Option<u32>,
    ) -> Result<Entry, Errno> {
        Self::check_name(name)?;
        let dir = self.inode(parent)?;
        let new = NewAttributes {
            mode,
            ..NewAttributes::default()
        };
        let _changing = self.changing(&dir);
        let sent = Instant::now();
        let made = self.client.make(cred, &dir.handle, name, make, &new).await;
        let made = match made {
            Ok(made) => made,
            Err(error) => return Err(self.refused_in(cred, &error, &dir, name).await),
        };
        let inode = self.made(&dir, name, &made, sent);
        match make {
            Make::Directory if made.dir.seen.before.is_some() => {
                self.install_empty_listing(&inode, &made.attrs, cred, sent);
            }
            Make::Symlink(text) => {
                let _ = inode.link.set(Box::new(Bytes::copy_from_slice(text)));
            }
            _ => {}
        }
        Ok(self.entry(&inode, &dir))
    }

    /// CREATE of a FIFO, a socket or a device (which EFS refuses), or of a
    /// regular file by OPEN and CLOSE.
    pub async fn mknod(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Entry, Errno> {
        let major = (rdev >> 8) & 0xfff;
        let minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
        let make = match mode & libc::S_IFMT {
            libc::S_IFIFO => Make::Fifo,
            libc::S_IFSOCK => Make::Socket,
            libc::S_IFBLK => Make::Block(major, minor),
            libc::S_IFCHR => Make::Char(major, minor),
            libc::S_IFREG | 0 => {
                Self::check_name(name)?;
                let dir = self.inode(parent)?;
                let _changing = self.changing(&dir);
                let sent = Instant::now();
                let how = HowToOpen::Exclusive;
                let file = self
                    .client
                    .create(cred, &dir.handle, name, ACCESS_WRITE, mode & 0o7777, how)
                    .await;
                let file = match file {
                    Ok(file) => file,
                    Err(error) => return Err(self.refused_in(cred, &error, &dir, name).await),
                };
                let made = Made {
                    handle: file.open.handle.clone(),
                    attrs: file.attrs,
                    dir: file.dir,
                };
                let inode = self.made(&dir, name, &made, sent);
                self.client.close_soon(&file.open);
                return Ok(self.entry(&inode, &dir));
            }
            _ => return Err(Errno(libc::EINVAL)),
        };
        self.make(cred, parent, name, make, Some(mode & 0o7777))
            .await
    }

    /// CREATE of a directory.
    pub async fn mkdir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Entry, Errno> {
        self.make(cred, parent, name, Make::Directory, Some(mode & 0o7777))
            .await
    }

    /// CREATE of a symbolic link.
    pub async fn symlink(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Entry, Errno> {
        self.make(cred, parent, name, Make::Symlink(target), Some(0o777))
            .await
    }

    /// LINK.
    pub async fn link(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        new_parent: Ino,
        new_name: &[u8],
    ) -> Result<Entry, Errno> {
        Self::check_name(new_name)?;
        let inode = self.inode(ino)?;
        let dir = self.inode(new_parent)?;
        if inode.kind == FileKind::Directory {
            return Err(Errno(libc::EPERM));
        }
        self.publish(&inode).await;
        let _changing = self.changing(&dir);
        let sent = Instant::now();
        let linked = self
            .client
            .link(cred, &inode.handle, &dir.handle, new_name)
            .await;
        let (own, moved) = match linked {
            Ok(linked) => linked,
            Err(error) => {
                let errno = self.failed(&error, &inode);
                if errno.0 == libc::EEXIST {
                    self.heed_refusal(errno, &dir, new_name);
                }
                return Err(self.blamed(cred, &[&dir], errno).await);
            }
        };
        self.moved(&inode, &own, sent);
        let target = DentryTarget::Inode(Arc::clone(&inode));
        self.named(&dir, new_name, &moved, target, sent);
        if !self.inodes.look_up_listed(&inode) {
            return Err(Errno(libc::ESTALE));
        }
        Ok(self.entry(&inode, &dir))
    }
}
