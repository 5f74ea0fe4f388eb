//! Directories that are this host's alone, and what is believed of them before the server knows
//! (`writeback`).
//!
//! A directory is *private* to who has made it since the mount, for as long as every move of its
//! change attribute is one of this host's own changes. Nobody else's names are in it, as far as
//! anybody can know, so what can be said about a name in it is said here. The first move that is
//! somebody else's ends that for good, as do cache times that are over
//! ([`ChangeTracker`](crate::vfs::inode::change_tracker)).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Namespace;
use crate::nfs::calls::PrePost;
use crate::nfs::proto::attrs::{Attributes, OBJECT};
use crate::nfs::proto::types::{FileType, NfsTime, Promise};
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::{Dentry, DentryTarget, Maker, Name};
use crate::vfs::types::{FileKind, Timestamp};

/// Set-id and sticky bits.
const SPECIAL: u32 = 0o7000;

/// Names that were confirmed so shortly ago are all that there are.
const NOW: Duration = Duration::from_secs(1);

/// What a directory allows who makes or removes names in it: to write and to search.
const CHANGES_NAMES: u16 = 0o300;

impl Namespace {
    /// Who makes what in this directory, if it is private to `cred`, and may be changed by it.
    pub(in crate::vfs) fn private_to(
        &self,
        cred: &Credential,
        dir: &Arc<Inode>,
    ) -> Option<Arc<Maker>> {
        if dir.is_stale() || !self.names.is_on() || self.names_ttl(dir).is_zero() {
            return None;
        }
        let allows = dir.attr.lock().stat().perm & CHANGES_NAMES == CHANGES_NAMES;
        let names = dir.names().lock();
        let maker = names.maker().filter(|maker| *maker.cred == *cred)?;
        allows.then(|| Arc::clone(maker))
    }

    /// Nobody else's names are in this directory, nor does anybody else look into it.
    pub(in crate::vfs) fn is_private(&self, dir: &Inode) -> bool {
        dir.names().lock().maker().is_some()
    }

    /// All names of this directory are known as `cred` sees them, and were confirmed in this second: by
    /// the server, since then by nothing but changes of this host's, behind none of which another's can
    /// hide.
    pub(in crate::vfs) fn knows_all_now(&self, cred: &Credential, dir: &Arc<Inode>) -> bool {
        if dir.is_stale() || !self.names.is_on() || self.names_ttl(dir).is_zero() {
            return false;
        }
        let names = dir.names().lock();
        let confirmed = names.tracker.confirmed();
        names.are_sure_for(cred) && Instant::now().saturating_duration_since(confirmed) <= NOW
    }

    /// The directory has just been made by `cred`.
    pub(in crate::vfs) fn made_private(&self, dir: &Arc<Inode>, cred: &Arc<Credential>) {
        let (uid, gid) = {
            let attr = dir.attr.lock();
            (attr.stat().uid, attr.stat().gid)
        };
        let maker = Maker {
            cred: Arc::clone(cred),
            uid,
            gid,
        };
        dir.names().lock().is_private_of(Arc::new(maker));
    }

    /// Nothing has this name in a private directory.
    pub(in crate::vfs) fn is_free(&self, dir: &Inode, name: &[u8]) -> bool {
        let known = dir.names().lock().get(name);
        matches!(known, Dentry::NotListed | Dentry::Negative)
    }

    /// What the server will say of an object that `maker` makes in `dir`. `None` if that is not
    /// for certain.
    pub(in crate::vfs) fn attributes_of_new(
        &self,
        dir: &Inode,
        maker: &Maker,
        (kind, mode, size): (FileType, u32, u64),
    ) -> Option<Attributes> {
        if mode & SPECIAL != 0 {
            return None;
        }
        let (inherits, group) = {
            let attr = dir.attr.lock();
            (u32::from(attr.stat().perm) & libc::S_ISGID, attr.stat().gid)
        };
        let is_dir = kind == FileType::Directory;
        let Timestamp { sec, nsec } = Timestamp::now();
        let now = NfsTime { sec, nsec };
        Some(Attributes {
            present: OBJECT,
            kind: Some(kind),
            size,
            fsid: self.inodes.root_fsid(),
            mode: if is_dir { mode | inherits } else { mode },
            nlink: 1 + u32::from(is_dir),
            uid: maker.uid,
            gid: if inherits != 0 { group } else { maker.gid },
            atime: now,
            mtime: now,
            ctime: now,
            ..Attributes::default()
        })
    }

    /// An object by this name, which the server has yet to make.
    pub(in crate::vfs) fn promise(
        &self,
        dir: &Arc<Inode>,
        name: &Name,
        attrs: &Attributes,
    ) -> (Arc<Inode>, Promise) {
        let (inode, promise) = self.inodes.promise(attrs, Instant::now());
        self.metrics.gauges.inodes.set(self.inodes.len() as u64);
        self.found_at(&inode, dir, Arc::clone(name));
        let links = i32::from(inode.kind == FileKind::Directory);
        self.accepted(dir, name, DentryTarget::Inode(Arc::clone(&inode)), links);
        (inode, promise)
    }

    /// A name in a private directory leads there from now on, and the server does not know it
    /// yet. With it the directory has so many links more.
    pub(in crate::vfs) fn accepted(
        &self,
        dir: &Arc<Inode>,
        name: &Name,
        target: DentryTarget,
        links: i32,
    ) {
        let now = Instant::now();
        {
            let mut attr = dir.attr.lock();
            attr.touch(Timestamp::now(), now);
            attr.count_link(links);
        }
        {
            let mut names = dir.names().lock();
            names.tracker.accepted(now);
            names.count_accepted(1, links);
        }
        self.put_name(dir, Arc::clone(name), target, None);
    }

    /// The same of a change that another process has accepted, of which no more than its directory is
    /// remembered.
    pub(in crate::vfs) fn accepted_again(&self, dir: &Arc<Inode>, links: i32) {
        // Of what is there the server is asked first.
        if dir.handle.is_undecided() {
            let mut attr = dir.attr.lock();
            attr.touch(Timestamp::now(), Instant::now());
            attr.count_link(links);
        }
        let mut names = dir.names().lock();
        names.tracker.accepted(Instant::now());
        names.count_accepted(1, links);
    }

    /// The same of what was set of the directory itself.
    pub(in crate::vfs) fn accepted_set(&self, dir: &Arc<Inode>) {
        let mut names = dir.names().lock();
        names.tracker.accepted(Instant::now());
        names.count_accepted(1, 0);
    }

    /// So many changes of names of a directory were answered, with which it has so many links more,
    /// or will never be sent; and how it moved by those that were executed, in a request sent at
    /// `sent`.
    pub(in crate::vfs) fn answered(
        &self,
        dir: &Arc<Inode>,
        (changes, links): (usize, i32),
        moved: Option<(&PrePost, Instant)>,
    ) {
        let changes = isize::try_from(changes).unwrap_or(isize::MAX);
        let left = dir.names().lock().count_accepted(-changes, -links);
        if let Some((moved, sent)) = moved {
            self.moved(dir, moved, sent);
            // What the server does not know yet stays true here.
            dir.attr.lock().count_link(left);
        }
    }

    /// A directory is private from its beginning, before the server has made it.
    pub(in crate::vfs) fn promised_private(&self, dir: &Arc<Inode>, cred: &Arc<Credential>) {
        // The change attribute is told with the handle, before anything else of it is.
        self.install_empty_listing(dir, &Attributes::default(), cred, Instant::now());
        self.made_private(dir, cred);
    }

    /// The server has made what was promised, and says this of it.
    pub(in crate::vfs) fn made_as_promised(
        &self,
        inode: &Arc<Inode>,
        attrs: Option<&Attributes>,
        sent: Instant,
    ) {
        self.inodes.made(inode);
        let Some(attrs) = attrs else { return };
        let now = Instant::now();
        let ahead = match inode.kind {
            FileKind::Directory => {
                let mut names = inode.names().lock();
                if names.maker().is_some() {
                    names.tracker.start(attrs.change, sent, false);
                }
                names.are_ahead()
            }
            _ => false,
        };
        inode.with_attr(|attr| attr.made(attrs, ahead, sent, now));
    }

    /// What was accepted was refused, or something behind it: what is known of the directory's
    /// names is not good any more.
    pub(in crate::vfs) fn not_as_accepted(&self, dir: &Arc<Inode>, name: &[u8]) {
        self.doubt(dir);
        self.forget_entry(dir.ino, name);
    }
}
