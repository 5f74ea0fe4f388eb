//! One object: getattr, setattr, readlink.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::nfs::proto::ops::ACCESS_WRITE;
use crate::rpc::auth::Credential;
use crate::rpc::caller::TakingIn;
use crate::telemetry::Cache;
use crate::vfs::Vfs;
use crate::vfs::files::Files;
use crate::vfs::files::deferred_setattr::new_attributes;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Errno, FileKind, Ino, SetAttr, Stat, VfsResult};

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
            Some(known) => Some(known),
            None if inode.is_changing() => fh
                .and_then(|_| inode.stat_while_writing())
                .map(|stat| (stat, Duration::ZERO)),
            None => inode.believed_stat(),
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
    ) -> VfsResult<(Stat, Duration)> {
        let inode = self.inode_of(ino, fh)?;
        if let Some(known) = inode.stat_of_changed() {
            return Ok(known);
        }
        self.files.before_getattr(&inode).await;
        if let Some(believed) = inode.believed_stat() {
            return Ok(believed);
        }
        match self.namespace.refresh(cred, &inode).await {
            Ok(()) => {}
            Err(error) => inode.ends_by_us(error)?,
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
    ) -> VfsResult<(Stat, Duration)> {
        let dir = self.namespace.inode(ino)?;
        self.namespace.getattr_listed(cred, &dir, by).await
    }

    /// GETATTR, whatever is known: the caller wants what the server has now.
    pub async fn getattr_asked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
    ) -> VfsResult<(Stat, Duration)> {
        let inode = self.namespace.inode(ino)?;
        if !inode.attr.lock().is_over() {
            self.files.before_getattr(&inode).await;
            let sent = Instant::now();
            let attrs = self.client.get_attrs(cred, &inode.handle).await;
            match attrs.map_err(|error| self.namespace.failed(&error, &inode)) {
                Ok(attrs) => drop(self.namespace.learn(&inode, &attrs, sent)),
                Err(error) => inode.ends_by_us(error)?,
            }
        }
        Ok(inode.known_stat())
    }

    /// What a descriptor is open on, if one is given: the number may have gone
    /// to another file meanwhile.
    fn inode_of(&self, ino: Ino, fh: Option<u64>) -> VfsResult<Arc<Inode>> {
        match fh.map(|fh| self.files.handle(fh)) {
            Some(Ok(handle)) => Ok(Arc::clone(&handle.inode)),
            // A directory's, perhaps.
            Some(Err(_)) | None => self.namespace.inode(ino),
        }
    }

    /// SETATTR: one round trip, or none at once (see `files::deferred_setattr`). Before a new
    /// size everything written is made stable, so that nothing of it can come
    /// back behind the new end.
    pub async fn setattr(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        fh: Option<u64>,
        set: SetAttr,
    ) -> VfsResult<(Stat, Duration)> {
        let inode = self.inode_of(ino, fh)?;
        if set.size > Some(self.client.fs().max_file_size) {
            return Err(Errno(libc::EFBIG).into());
        }
        if let Some(known) = self.files.set_together(&inode, cred, &set) {
            return Ok(known);
        }
        if let Some(known) = self.files.set_ahead(&inode, cred, &set) {
            return Ok(known);
        }
        if let Some(known) = self.files.set_file_ahead(&inode, cred, &set) {
            return Ok(known);
        }
        self.files.before_setattr(&inode).await;
        if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            self.files.before_permissions(&inode).await;
        }
        let (set, rights) = Files::split_off_rights(&inode, cred, set);
        let new = new_attributes(&set);
        let (mut open, mut joined) = (None, None);
        if set.size.is_some() {
            if inode.kind != FileKind::Regular {
                return Err(Errno(libc::EINVAL).into());
            }
            self.files.before_cut(&inode).await;
            open = match fh {
                // ftruncate(2): permission was checked when it was opened.
                Some(fh) => {
                    let handle = self.files.handle(fh)?;
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
            self.files.before_times(&inode).await;
        }
        let owner = Files::drops_privileges(&inode, cred, &set);
        let caller = match (&open, fh) {
            (Some(open), Some(_)) => &open.cred,
            _ => owner.as_ref().unwrap_or(cred),
        };
        // Whoever begins after its caller's death waits until what became of it is known here.
        let _taking_in = TakingIn::begin();
        let before = Files::before_set(&inode);
        let _changing = self.namespace.changing(&inode);
        let sent = Instant::now();
        let moved = self
            .client
            .set_attrs(caller, &inode.handle, open.as_ref(), &new)
            .await;
        if let Some(open) = &joined {
            self.files.leave(&inode, open).await;
        }
        let moved = moved.map_err(|error| self.namespace.failed(&error, &inode))?;
        if owner.is_none() {
            self.files.confirm_rights(cred, &set, &before, &moved);
        }
        self.namespace.moved(&inode, &moved, sent);
        if set.size.is_some() {
            inode.was_cut(moved.after.as_ref());
        }
        if let Some(rights) = rights {
            let mode = moved.after.as_ref().map(|after| after.mode);
            self.files.lose_rights(&inode, mode, rights).await?;
        }
        if moved.after.is_none() {
            return self.getattr(cred, ino, fh).await;
        }
        Ok(inode.known_stat())
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
    pub async fn readlink(self: &Arc<Self>, cred: &Arc<Credential>, ino: Ino) -> VfsResult<Bytes> {
        let inode = self.namespace.inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(Errno(libc::EINVAL).into());
        }
        self.namespace.read_links(cred, &inode).await
    }
}
