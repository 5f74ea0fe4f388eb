//! open, create.
//!
//! What handles share at the server is in `files::opens`; close(2) is in [`close`](super::close).

use std::sync::Arc;

use tokio::time::Instant;

use crate::nfs::NfsError;
use crate::nfs::calls::{BehindOpen, HowToOpen, OpenRequest, OpenedHandle, PrePost};
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::nfs::proto::reply::ReadResult;
use crate::nfs::proto::status::Status;
use crate::rpc::auth::Credential;
use crate::rpc::caller::TakingIn;
use crate::telemetry::Cache;
use crate::vfs::Vfs;
use crate::vfs::file::inline_read::FileVersion;
use crate::vfs::files::disk_read::OnDisk;
use crate::vfs::files::handle::access_of;
use crate::vfs::files::kept_open::KeptOpen;
use crate::vfs::inode::attr::Seen;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::inode::{Inode, Place};
use crate::vfs::namespace::names::check_name;
use crate::vfs::types::{Entry, Errno, FileKind, Ino, Opened, SetAttr, VfsError, VfsResult};

/// OPEN has found a directory, a link or a device by the name.
fn is_no_file(error: &NfsError) -> bool {
    matches!(
        error.status(),
        Some(Status::ISDIR | Status::SYMLINK | Status::WRONG_TYPE)
    )
}

impl Vfs {
    /// OPEN by handle: one round trip, in which the file's attributes come
    /// along, so that the kernel's pages are kept exactly if the file has not
    /// moved (close-to-open); and a small file's data, if they will be wanted.
    ///
    /// ESTALE if the name that the file was found by leads elsewhere now.
    pub async fn open(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        flags: i32,
    ) -> VfsResult<Opened> {
        if let Some((_, opened)) = self.files.opened_before(flags) {
            return Ok(opened);
        }
        if !self.namespace.asks_at_open() {
            let opened = Box::pin(self.open_unasked(cred, ino, flags)).await?;
            self.metrics.cache(Cache::Open, opened.is_some());
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
        self.open_checked(cred, ino, flags, true).await
    }

    /// With `nocto`: a handle on a file of which enough is known, for who reads it. The server
    /// learns of it when something needs that (`files::late_open`). `None`: it is to be
    /// asked.
    async fn open_unasked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        flags: i32,
    ) -> VfsResult<Option<Opened>> {
        // O_DIRECT is for who wants what the server has now.
        if access_of(flags) != ACCESS_READ || flags & (libc::O_TRUNC | libc::O_DIRECT) != 0 {
            return Ok(None);
        }
        let inode = self.namespace.inode(ino)?;
        let is_believed = || self.namespace.believes_open(cred, &inode);
        // Where there are no pages, the OPEN brings along what is read next.
        let is_known = inode.kind == FileKind::Regular
            && (is_believed()
                || self.files.has_pages(&inode)
                    && self.namespace.confirms_open(cred, &inode).await);
        if !is_known {
            return Ok(None);
        }
        self.files.before_open(&inode, false).await;
        let open = self.files.join(&inode, cred).await;
        self.namespace.nothing_to_tell(inode.ino).await;
        // The file may have lost a name while that was waited for.
        if open.is_dead() || !is_believed() {
            self.files.leave(&inode, &open).await;
            return Ok(None);
        }
        self.files.view_believed(&inode);
        Ok(Some(self.files.opened(
            &inode,
            open,
            (ACCESS_READ, flags),
            None,
        )))
    }

    /// The same for a file that this very open has found by asking for its name,
    /// or was not found by name at all: whatever that leads to by now. If it was opened
    /// when it was found ([`lookup_to_open`](Self::lookup_to_open)), that is this open.
    pub async fn open_found(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        flags: i32,
        tid: u32,
    ) -> VfsResult<Opened> {
        if let Some((_, opened)) = self.files.opened_before(flags) {
            return Ok(opened);
        }
        let kept = self.files.take_kept(cred, ino, tid);
        let cuts = flags & libc::O_TRUNC != 0;
        let opened = match &kept {
            Some(kept) if !cuts && kept.allows(access_of(flags)) => {
                self.open_kept(kept, flags).await
            }
            _ => {
                let opened = self.open_checked(cred, ino, flags, false).await;
                if let Some(kept) = kept {
                    self.files.leave(&kept.inode, &kept.open).await;
                }
                opened
            }
        };
        self.namespace.end_walk(ino);
        opened
    }

    /// A handle on an open that was kept for it.
    async fn open_kept(self: &Arc<Self>, kept: &KeptOpen, flags: i32) -> VfsResult<Opened> {
        let inode = &kept.inode;
        self.files.before_open(inode, false).await;
        self.namespace.learn_at_open(inode, &kept.attrs, kept.sent);
        self.files.view_at_open(inode, &kept.attrs, kept.sent);
        if access_of(flags) & ACCESS_READ != 0 {
            self.namespace
                .opened_to_read(&kept.open.cred, inode, &kept.attrs);
        }
        self.namespace.nothing_to_tell(inode.ino).await;
        let open = Arc::clone(&kept.open);
        Ok(self
            .files
            .opened(inode, open, (access_of(flags), flags), None))
    }

    async fn open_checked(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        flags: i32,
        check: bool,
    ) -> VfsResult<Opened> {
        let inode = self.namespace.inode(ino)?;
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno(libc::EISDIR).into()),
            _ => return Err(Errno(libc::ENXIO).into()),
        }
        if let Some(opened) = self.files.open_promised(cred, &inode, flags) {
            return Ok(opened);
        }
        if check && self.namespace.may_mean_another_name(&inode) {
            // Upon which the kernel asks for the name.
            return Err(Errno(libc::ESTALE).into());
        }
        let access = access_of(flags);
        // O_TRUNC with O_RDONLY is left undefined by POSIX; Linux truncates if
        // the caller may write.
        let truncate = flags & libc::O_TRUNC != 0;
        let share = if truncate {
            access | ACCESS_WRITE
        } else {
            access
        };
        self.files.before_open(&inode, truncate).await;
        let open = self.files.join(&inode, cred).await;
        let reads = share & ACCESS_READ != 0 && flags & libc::O_DIRECT == 0 && !truncate;
        let mut inline = reads.then(|| self.files.inline_read(&inode)).flatten();
        let on_disk = match &mut inline {
            Some((inline, _)) => self.files.on_disk_before_open(&inode, inline).await,
            None => None,
        };
        let sent = Instant::now();
        // A name is believed for a while, but what is opened is what it leads
        // to now: another host may have put a new file there.
        let place = inode.place().filter(|_| check);
        let name = place
            .as_ref()
            .map(|place| (&place.dir.handle, &*place.name));
        let behind = match inline {
            _ if truncate => BehindOpen::Truncate,
            Some((inline, _)) => BehindOpen::Read(inline),
            None => BehindOpen::Nothing,
        };
        let request = OpenRequest {
            name,
            behind,
            ..OpenRequest::of(&open, share)
        };
        let opened = self.client.open_by_handle(request).await;
        match opened {
            Ok(None) => {
                self.files.leave(&inode, &open).await;
                Err(self.leads_elsewhere(place).into())
            }
            Ok(Some(opened)) => {
                if share & ACCESS_READ != 0 {
                    self.namespace.opened_to_read(cred, &inode, &opened.attrs);
                }
                let asked = inline.map(|(_, version)| (version, on_disk));
                let came = self.opened_at(&inode, opened, asked, truncate, sent).await;
                Ok(self.files.opened(&inode, open, (access, flags), came))
            }
            Err(error) => {
                let error = self.namespace.failed(&error, &inode);
                self.files.leave(&inode, &open).await;
                Err(error)
            }
        }
    }

    /// The name that the file was found by does not lead to it any more.
    fn leads_elsewhere(&self, place: Option<Place>) -> Errno {
        self.namespace.stranger_was_here();
        // The place stays: who else has walked here by that name is to be
        // told the same.
        if let Some(Place { dir, name }) = place {
            self.namespace.forget_entry(dir.ino, &name);
            self.namespace.doubt(&dir);
        }
        // Upon which the kernel looks the name up, and opens that.
        Errno(libc::ESTALE)
    }

    /// Takes in what an OPEN has said of the file. Gives the data that came along with it, if
    /// they were `asked` for: then that says how the file stood before, and what the disk has of it.
    async fn opened_at(
        &self,
        inode: &Arc<Inode>,
        mut opened: OpenedHandle,
        asked: Option<(FileVersion, Option<OnDisk>)>,
        truncate: bool,
        sent: Instant,
    ) -> Option<(ReadResult, FileVersion)> {
        self.files.set_preserved(inode, opened.preserves_unlinked);
        if truncate {
            let own = PrePost {
                before: None,
                after: Some(opened.attrs),
            };
            self.namespace.moved(inode, &own, sent);
            inode.was_cut(own.after.as_ref());
            return None;
        }
        let seen = self.namespace.learn_at_open(inode, &opened.attrs, sent);
        self.files.view_at_open(inode, &opened.attrs, sent);
        let (version, on_disk) = asked.unzip();
        let on_disk = on_disk.flatten();
        let data = self.files.beginning_came(inode, &mut opened, on_disk, sent);
        let data = data.await;
        self.namespace.nothing_to_tell(inode.ino).await;
        let moved_on = u64::from(seen == Seen::Foreign);
        let (data, version) = data.zip(version)?;
        Some((data, version.moved_on(moved_on)))
    }

    /// OPEN with creation: one round trip.
    pub async fn create(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> VfsResult<(Entry, Opened)> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        if let Some((inode, opened)) = self.files.opened_before(flags) {
            // Its attributes are asked for before they are believed; without, the kernel asks.
            let _ = self.namespace.refresh(cred, &inode).await;
            return Ok((self.namespace.entry(&inode, &dir), opened));
        }
        let opening = (access_of(flags), flags);
        if let Some((inode, opened)) =
            self.files
                .promise_file(cred, &dir, name, mode & 0o7777, opening)
        {
            return Ok((self.namespace.entry(&inode, &dir), opened));
        }
        let exclusive = flags & libc::O_EXCL != 0;
        let how = if exclusive {
            HowToOpen::Exclusive
        } else if flags & libc::O_TRUNC != 0 {
            HowToOpen::Truncate
        } else {
            HowToOpen::Existing
        };
        let access = access_of(flags);
        // Whoever begins after its caller's death waits until what became of it is known here.
        let _taking_in = TakingIn::begin();
        let _changing = self.namespace.changing(&dir);
        let sent = Instant::now();
        let file = self
            .client
            .create(cred, &dir.handle, name, access, mode & 0o7777, how)
            .await;
        let file = match file {
            Ok(file) => file,
            // The server tells what it is that is there; open(2) that something is.
            Err(error) if exclusive && is_no_file(&error) => {
                let errno = Errno(libc::EEXIST);
                self.namespace.heed_refusal(errno, &dir, name);
                return Err(VfsError::caused(errno, &error, dir.ino));
            }
            Err(error) => return Err(self.namespace.refused_in(cred, &error, &dir, name).await),
        };
        let inode = self.namespace.known(&file.open.handle, &file.attrs, sent);
        self.namespace.found_at(&inode, &dir, name);
        let target = DentryTarget::Inode(Arc::clone(&inode));
        self.namespace.named(&dir, name, &file.dir, target, sent);
        self.namespace.nothing_to_tell(inode.ino).await;
        if access & ACCESS_READ != 0 {
            self.namespace.opened_to_read(cred, &inode, &file.attrs);
        }
        self.files.created(&inode, &file);
        let opened = self.files.opened(&inode, file.open, (access, flags), None);
        let is_cut = matches!(how, HowToOpen::Truncate) && !file.is_new;
        if is_cut && let Err(error) = Box::pin(self.cut_once_more(cred, &inode)).await {
            // The error is that of open(2).
            let _ = self.release(opened.fh).await;
            self.forget(inode.ino, 1);
            return Err(error);
        }
        Ok((self.namespace.entry(&inode, &dir), opened))
    }

    /// An OPEN by a name that was not known here has cut the file, and that turns out to be one
    /// that this host is writing: what it accepted before, and sends after the OPEN, was to be
    /// cut as well. So it is sent, and the file cut once more; open(2) has not returned yet.
    async fn cut_once_more(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
    ) -> VfsResult<()> {
        if !inode.is_written() {
            return Ok(());
        }
        let empty = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        self.setattr(cred, inode.ino, None, empty).await.map(drop)
    }
}
