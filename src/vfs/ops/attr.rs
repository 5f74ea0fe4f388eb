//! One object: getattr, setattr, readlink; and statfs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::nfs::proto::attrs::{Attributes, NewAttributes, NewTime};
use crate::nfs::proto::ops::ACCESS_WRITE;
use crate::nfs::proto::types::NfsTime;
use crate::rpc::auth::Credential;
use crate::telemetry::Cache;
use crate::vfs::Vfs;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Errno, FileKind, Ino, SetAttr, SetTime, Stat, Timestamp};

impl Vfs {
    /// The attributes, if they may be believed and nothing is on its way that
    /// changes them.
    ///
    /// With a handle the kernel asks on behalf of read(2) near the end of the file and
    /// of SEEK_END, and takes but the size from the answer (fstat(2) comes without):
    /// then data on their way are no obstacle, and nothing is to be kept of it.
    pub fn getattr_cached(&self, ino: Ino, fh: Option<u64>) -> Option<(Stat, Duration)> {
        let inode = self.namespace.get(ino)?;
        let answer = match inode.stat_of_changed() {
            Some(stat) => Some((stat, Duration::ZERO)),
            None if inode.is_changing() => fh
                .and_then(|_| inode.stat_while_writing())
                .map(|stat| (stat, Duration::ZERO)),
            None => {
                let attr = inode.attr.lock();
                let ttl = attr.ttl(Instant::now());
                (!ttl.is_zero()).then(|| (attr.stat().clone(), ttl))
            }
        };
        self.metrics.cache(Cache::Attr, answer.is_some());
        answer
    }

    /// GETATTR. What was written is at the server before it is asked, so that
    /// times and size are those after the last write(2).
    pub async fn getattr(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        fh: Option<u64>,
    ) -> Result<(Stat, Duration), Errno> {
        let inode = self.inode_of(ino, fh)?;
        if let Some(stat) = inode.stat_of_changed() {
            return Ok((stat, Duration::ZERO));
        }
        self.send_changes(&inode).await;
        self.settle(&inode, 0, u64::MAX).await;
        {
            let attr = inode.attr.lock();
            let ttl = attr.ttl(Instant::now());
            if !ttl.is_zero() {
                return Ok((attr.stat().clone(), ttl));
            }
        }
        match self.namespace.refresh(cred, &inode).await {
            Ok(()) => {}
            Err(errno) => inode.ends_by_us(errno)?,
        }
        Ok(inode.known_stat())
    }

    /// The kernel asks for the attributes of a directory that was listed meanwhile, which has
    /// moved its time of access.
    pub fn is_listed_since(&self, ino: Ino) -> bool {
        self.namespace.is_listed_since(ino)
    }

    /// GETATTR of a directory that was listed, by thread `by`: as when it is opened, which
    /// is what comes next on a walk and is not asked for again then. Whoever removes and makes
    /// directories anew elsewhere is so noticed by stat(2), as by the kernel's client.
    pub async fn getattr_listed(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        by: u32,
    ) -> Result<(Stat, Duration), Errno> {
        let dir = self.namespace.inode(ino)?;
        self.namespace.getattr_listed(cred, &dir, by).await
    }

    /// GETATTR, whatever is known: the caller wants what the server has now.
    pub async fn getattr_asked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
    ) -> Result<(Stat, Duration), Errno> {
        let inode = self.namespace.inode(ino)?;
        if !inode.attr.lock().is_over() {
            self.send_changes(&inode).await;
            self.settle(&inode, 0, u64::MAX).await;
            let sent = Instant::now();
            let attrs = self.client.get_attrs(cred, &inode.handle).await;
            match attrs.map_err(|error| self.namespace.failed(&error, &inode)) {
                Ok(attrs) => drop(self.namespace.learn(&inode, &attrs, sent)),
                Err(errno) => inode.ends_by_us(errno)?,
            }
        }
        Ok(inode.known_stat())
    }

    /// What a descriptor is open on, if one is given: the number may have gone
    /// to another file meanwhile.
    fn inode_of(&self, ino: Ino, fh: Option<u64>) -> Result<Arc<Inode>, Errno> {
        match fh.map(|fh| self.handle(fh)) {
            Some(Ok(handle)) => Ok(Arc::clone(&handle.inode)),
            // A directory's, perhaps.
            Some(Err(_)) | None => self.namespace.inode(ino),
        }
    }

    /// SETATTR: one round trip, or none at once (see [`deferred_setattr`]). Before a new
    /// size everything written is made stable, so that nothing of it can come
    /// back behind the new end.
    ///
    /// [`deferred_setattr`]: crate::vfs::files::deferred_setattr
    pub async fn setattr(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        fh: Option<u64>,
        set: SetAttr,
    ) -> Result<(Stat, Duration), Errno> {
        let inode = self.inode_of(ino, fh)?;
        if set.size > Some(self.client.fs().max_file_size) {
            return Err(Errno(libc::EFBIG));
        }
        if let Some(stat) = self.set_together(&inode, cred, &set) {
            return Ok((stat, Duration::ZERO));
        }
        self.send_changes(&inode).await;
        let (set, rights) = Self::split_off_rights(&inode, cred, set);
        let new = new_attributes(&set);
        let (mut open, mut joined) = (None, None);
        if set.size.is_some() {
            if inode.kind != FileKind::Regular {
                return Err(Errno(libc::EINVAL));
            }
            self.drain(&inode).await;
            open = match fh {
                // ftruncate(2): permission was checked when it was opened.
                Some(fh) => {
                    let handle = self.handle(fh)?;
                    // open(2) with O_RDONLY and O_TRUNC cuts by its handle too.
                    (handle.access & ACCESS_WRITE != 0).then(|| Arc::clone(&handle.open))
                }
                None => {
                    joined = inode.opened().and_then(|file| file.join_writable(cred));
                    joined.clone()
                }
            };
        } else if set.mtime.is_some() || set.atime.is_some() {
            // A write that reaches the server later would move them again.
            self.settle(&inode, 0, u64::MAX).await;
        }
        let owner = Self::drops_privileges(&inode, cred, &set);
        let caller = match (&open, fh) {
            (Some(open), Some(_)) => &open.cred,
            _ => owner.as_ref().unwrap_or(cred),
        };
        let _changing = self.namespace.changing(&inode);
        let sent = Instant::now();
        let moved = self
            .client
            .set_attrs(caller, &inode.handle, open.as_ref(), &new)
            .await;
        if let Some(open) = &joined {
            self.leave(&inode, open).await;
        }
        let moved = moved.map_err(|error| self.namespace.failed(&error, &inode))?;
        self.namespace.moved(&inode, &moved, sent);
        if set.size.is_some() {
            self.was_cut(&inode, moved.after.as_ref());
        }
        if let Some(rights) = rights {
            let mode = moved.after.as_ref().map(|after| after.mode);
            self.lose_rights(&inode, mode, rights).await?;
        }
        if moved.after.is_none() {
            return self.getattr(cred, ino, fh).await;
        }
        Ok(inode.known_stat())
    }

    /// We have set the size of a file: what was read ahead is old, and the
    /// size is this, even if a reply from before was taken in meanwhile.
    pub(in crate::vfs) fn was_cut(&self, inode: &Arc<Inode>, after: Option<&Attributes>) {
        if let Some(file) = inode.opened() {
            file.lock().cut();
        }
        if let Some(after) = after {
            inode.with_attr(|attr| attr.cut(after.size));
        }
    }

    /// The kernel takes setuid and setgid rights from a file that somebody who
    /// does not own it writes to. The server would refuse that user the change,
    /// so it is made as the owner: a mode that only loses these bits widens
    /// nobody's rights. Where the kernel does not check, a chmod(2) of a stranger looks the
    /// same: so only for who has the file open for writing, and might take them by that.
    fn drops_privileges(
        inode: &Inode,
        cred: &Credential,
        set: &SetAttr,
    ) -> Option<Arc<Credential>> {
        let only_mode = set.uid.is_none()
            && set.gid.is_none()
            && set.size.is_none()
            && set.atime.is_none()
            && set.mtime.is_none();
        let mode = set.mode.filter(|_| only_mode)? & 0o7777;
        let writes = inode.opened().is_some_and(|file| file.is_written_by(cred));
        let attr = inode.attr.lock();
        let stat = attr.stat();
        let loses_only = loses_only_rights(stat.perm.into(), mode);
        if !loses_only || cred.uid == 0 || cred.uid == stat.uid || !writes {
            return None;
        }
        Some(owner_of(stat))
    }

    /// What the kernel takes from a file whose size is set (truncate(2), O_TRUNC), from
    /// the size: who may write a file may cut it, but may not set its mode. The server
    /// takes these rights itself, as it would after the kernel's NFS client, which leaves
    /// the mode out, too; else see [`Self::lose_rights`].
    fn split_off_rights(inode: &Inode, cred: &Credential, set: SetAttr) -> (SetAttr, Option<u32>) {
        let attr = inode.attr.lock();
        let stat = attr.stat();
        let may = cred.uid == 0 || cred.uid == stat.uid;
        let mode = set.mode.map(|mode| mode & 0o7777);
        match mode.filter(|_| !may && set.size.is_some()) {
            Some(mode) if loses_only_rights(stat.perm.into(), mode) => {
                let lost = u32::from(stat.perm) & !mode;
                (SetAttr { mode: None, ..set }, Some(lost))
            }
            _ => (set, None),
        }
    }

    /// The file was cut, after which the server shows this mode: of these rights none
    /// is left in it. As the owner, see [`Self::drops_privileges`].
    async fn lose_rights(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        mode: Option<u32>,
        rights: u32,
    ) -> Result<(), Errno> {
        let (owner, known) = {
            let attr = inode.attr.lock();
            (owner_of(attr.stat()), attr.stat().perm.into())
        };
        let mode = mode.unwrap_or(known) & 0o7777;
        if mode & rights == 0 {
            return Ok(());
        }
        let new = new_attributes(&SetAttr {
            mode: Some(mode & !rights),
            ..SetAttr::default()
        });
        let sent = Instant::now();
        let moved = self
            .client
            .set_attrs(&owner, &inode.handle, None, &new)
            .await
            .map_err(|error| self.namespace.failed(&error, inode))?;
        self.namespace.moved(inode, &moved, sent);
        Ok(())
    }

    /// Somebody without CAP_FSETID writes past the page cache: the set-id rights that the
    /// kernel takes from a file before it writes through the cache are ours to take then
    /// (FUSE_WRITE_KILL_SUIDGID). None without these rights costs anything.
    pub(in crate::vfs) async fn kill_privileges(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        writer: &Credential,
    ) -> Result<(), Errno> {
        let (before, owner) = {
            let attr = inode.attr.lock();
            let stat = attr.stat();
            let owner = Credential {
                uid: stat.uid,
                gid: stat.gid,
                gids: Vec::new(),
            };
            (u32::from(stat.perm), owner)
        };
        let member = writer.gid == owner.gid || writer.gids.contains(&owner.gid);
        let after = without_privileges(before, member);
        if after == before {
            return Ok(());
        }
        let new = new_attributes(&SetAttr {
            mode: Some(after),
            ..SetAttr::default()
        });
        let _changing = self.namespace.changing(inode);
        let sent = Instant::now();
        let moved = self
            .client
            .set_attrs(&owner, &inode.handle, None, &new)
            .await
            .map_err(|error| self.namespace.failed(&error, inode))?;
        self.namespace.moved(inode, &moved, sent);
        // execve(2) goes by what the kernel knows.
        self.namespace.inval_attr(inode.ino);
        Ok(())
    }

    /// The text of a symbolic link, if it was read before.
    pub fn readlink_cached(&self, ino: Ino) -> Option<Bytes> {
        self.namespace
            .get(ino)?
            .link
            .get()
            .map(|text| Bytes::clone(text))
    }

    /// READLINK: one round trip, once in the life of the inode, and for others
    /// beside it too; see `access_pattern`.
    pub async fn readlink(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
    ) -> Result<Bytes, Errno> {
        let inode = self.namespace.inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(Errno(libc::EINVAL));
        }
        self.namespace.read_links(cred, &inode).await
    }
}

const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// The second mode is the first without some set-id rights.
fn loses_only_rights(before: u32, mode: u32) -> bool {
    mode != before && before & !SET_ID == mode & !SET_ID && mode & SET_ID & !before == 0
}

fn owner_of(stat: &Stat) -> Arc<Credential> {
    Arc::new(Credential {
        uid: stat.uid,
        gid: stat.gid,
        gids: Vec::new(),
    })
}

/// A mode without what a write takes from it: the right of setuid, and that of setgid
/// where it is one. Without the group's right to execute it is a mark, which members of
/// the group leave there (Linux, setattr_should_drop_sgid).
fn without_privileges(mode: u32, member: bool) -> u32 {
    let mark = mode & libc::S_IXGRP == 0 && member;
    let setgid = if mark { 0 } else { libc::S_ISGID };
    mode & !(libc::S_ISUID | setgid)
}

/// What SETATTR is asked to set.
pub(in crate::vfs) fn new_attributes(set: &SetAttr) -> NewAttributes {
    NewAttributes {
        size: set.size,
        mode: set.mode.map(|mode| mode & 0o7777),
        uid: set.uid,
        gid: set.gid,
        atime: set.atime.map(new_time),
        mtime: set.mtime.map(new_time),
    }
}

fn new_time(time: SetTime) -> NewTime {
    match time {
        SetTime::Now => NewTime::Server,
        SetTime::At(Timestamp { sec, nsec }) => NewTime::At(NfsTime { sec, nsec }),
    }
}
