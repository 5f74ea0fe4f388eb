//! Removing and moving names: unlink, rmdir, rename.
//!
//! A file that is open here must stay readable after its last name is gone
//! (POSIX). A server may promise to keep it until the last CLOSE
//! (OPEN4_RESULT_PRESERVE_UNLINKED); where it does not, the name is not removed
//! but moved out of sight (`.nfs` and numbers, "silly rename" as every NFS client
//! does it), and removed when the file is closed. Where another file takes the name,
//! the hidden one is made beside it first, so that the name is never missing. Other
//! hosts see the hidden name.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Vfs;
use super::attr::kind_of;
use super::dentry_cache::DentryTarget;
use super::hidden::Ours;
use super::inode::Inode;
use super::open::FileState;
use super::types::{Errno, FileKind, Ino};
use crate::nfs::NfsError;
use crate::nfs::calls::{DirChange, PrePost, Renamed};
use crate::nfs::proto::status::Status;
use crate::nfs::proto::types::FileHandle;
use crate::quoting;
use crate::rpc::auth::Credential;
use crate::rpc::caller;

/// Where a removed file is kept while it is open.
#[derive(Clone, Debug)]
pub struct SillyName {
    pub(super) dir: Arc<Inode>,
    pub(super) name: Vec<u8>,
    pub(super) file: FileHandle,
    /// In whose name it is removed: who removed it first, or has moved it last.
    pub(super) cred: Arc<Credential>,
    /// Who removed it first, if another has moved it: of the two, each may lack a right.
    pub(super) first: Option<Arc<Credential>>,
}

/// The files that are kept out of sight.
#[derive(Debug)]
pub struct Silly {
    /// Part of each hidden name, drawn when the mount begins. Process ids tell nobody apart:
    /// in containers every host's daemon may have the same.
    mount: u64,
    counter: AtomicU64,
    /// By directory: how many of its names are about to be removed.
    closing: Mutex<HashMap<Ino, usize>>,
    removed: Notify,
    /// The names, as listings leave them out.
    pub(super) ours: Ours,
}

impl Default for Silly {
    fn default() -> Self {
        Self {
            mount: RandomState::new().hash_one(std::process::id()),
            counter: AtomicU64::default(),
            closing: Mutex::default(),
            removed: Notify::default(),
            ours: Ours::default(),
        }
    }
}

impl Silly {
    fn closing(&self, dir: Ino) -> Closing<'_> {
        *self.closing.lock().entry(dir).or_insert(0) += 1;
        Closing { silly: self, dir }
    }
}

/// What became of the name of an open file that is replaced.
struct Hidden {
    silly: SillyName,
    /// The hidden name is one more, not the one that the file had.
    beside: bool,
}

/// A hidden name of a directory may be about to be removed, until this is
/// dropped.
#[derive(Debug)]
pub(super) struct Closing<'a> {
    silly: &'a Silly,
    dir: Ino,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut closing = self.silly.closing.lock();
        if let Some(count) = closing.get_mut(&self.dir) {
            *count -= 1;
            if *count == 0 {
                closing.remove(&self.dir);
            }
        }
        drop(closing);
        self.silly.removed.notify_waiters();
    }
}

/// What is done with a name that a file is to lose.
#[derive(Debug)]
enum Taking<'a> {
    /// It is removed.
    Removing(Removing<'a>),
    /// It is hidden, so that the file has one.
    Hiding(Hiding<'a>),
}

/// A name of a file is being taken, until this is dropped.
#[derive(Debug)]
struct Removing<'a>(Option<&'a FileState>);

/// A name of an open file is being hidden, until this is dropped.
#[derive(Debug)]
struct Hiding<'a>(&'a FileState);

impl Drop for Hiding<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().hiding = false;
        self.0.progress.notify_waiters();
    }
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0 {
            file.inner.lock().removing -= 1;
            file.progress.notify_waiters();
        }
    }
}

/// renameat2(2) flags: nothing of it can be said in NFS.
const NO_FLAGS: u32 = 0;

/// RFC 8881 §18.26.3 has EXIST for a target that cannot be replaced; rename(2) tells
/// more. Two that are no directories can replace each other: one of them is not what is
/// known of it, and after ESTALE the kernel finds out which.
fn not_replaced(source: Option<&Inode>, target: Option<&Inode>) -> Errno {
    let is_directory = |inode: &Inode| inode.kind == FileKind::Directory;
    let source = source.map(is_directory);
    Errno(match (source, target.map(is_directory)) {
        (_, None) => libc::EEXIST,
        (Some(false), Some(true)) => libc::EISDIR,
        (Some(false), Some(false)) => libc::ESTALE,
        (Some(true) | None, Some(true)) => libc::ENOTEMPTY,
        (Some(true) | None, Some(false)) => libc::ENOTDIR,
    })
}

impl Vfs {
    /// REMOVE of a file: one round trip, or RENAME if it is open here.
    pub async fn unlink(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> Result<(), Errno> {
        Self::check_name(name)?;
        let dir = self.inode(parent)?;
        self.send_all_changes().await;
        let _changing = self.let_opens_pass(&dir, name).await;
        let victim = self.who_is(cred, &dir, name).await?;
        let removing = match &victim {
            Some(victim) => match self.take_name(victim).await {
                Taking::Removing(removing) => Some(removing),
                Taking::Hiding(hiding) => {
                    let _ = self.hide(cred, &dir, name, victim).await?;
                    drop(hiding);
                    caller::apart(self.remove_unneeded(victim)).await;
                    return Ok(());
                }
            },
            None => None,
        };
        let sent = Instant::now();
        let moved = self
            .client
            .remove_closed(
                cred,
                &dir.handle,
                name,
                victim.as_ref().map(|victim| &victim.handle),
            )
            .await;
        let moved = match moved {
            Ok(moved) => moved,
            // REMOVE tells that it is a directory, and full; unlink(2) that it is one.
            Err(error) if error.status() == Some(Status::NOTEMPTY) => {
                let errno = Errno(libc::EISDIR);
                self.heed_refusal(errno, &dir, name);
                self.forget_entry(dir.ino, name);
                return Err(errno);
            }
            Err(error) => return Err(self.refused_in(cred, &error, &dir, name).await),
        };
        if let Some(victim) = &victim {
            Self::lost_a_name(victim);
        }
        drop(removing);
        self.named(&dir, name, &moved, DentryTarget::Negative, sent);
        Ok(())
    }

    /// REMOVE of an empty directory: one round trip.
    pub async fn rmdir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> Result<(), Errno> {
        Self::check_name(name)?;
        let dir = self.inode(parent)?;
        self.send_all_changes().await;
        let mut victim = self.remembered_inode(&dir, name);
        let mut waited = false;
        loop {
            let changing = self.changing(&dir);
            let sent = Instant::now();
            let removed = self.client.remove(cred, &dir.handle, name).await;
            match removed {
                Ok(moved) => {
                    self.named(&dir, name, &moved, DentryTarget::Negative, sent);
                    if let Some(victim) = &victim {
                        self.lost_dir(victim);
                    }
                    return Ok(());
                }
                // The directory may hold nothing but hidden names.
                Err(error)
                    if !waited
                        && matches!(error.status(), Some(Status::NOTEMPTY | Status::EXIST)) =>
                {
                    waited = true;
                    drop(changing);
                    if victim.is_none() {
                        victim = self.who_is(cred, &dir, name).await.ok().flatten();
                    }
                    let way = match &victim {
                        Some(victim) => self.make_way(cred, &dir, victim).await,
                        None => false,
                    };
                    if !way {
                        if let Some(victim) = &victim {
                            self.doubt(victim);
                        }
                        return Err(Errno(libc::ENOTEMPTY));
                    }
                }
                Err(error) => {
                    // RFC 8881 §18.25.4 allows either for a directory with names
                    // in it; rmdir(2) says ENOTEMPTY.
                    if error.status() == Some(Status::EXIST) {
                        return Err(Errno(libc::ENOTEMPTY));
                    }
                    return Err(self.refused_in(cred, &error, &dir, name).await);
                }
            }
        }
    }

    /// RENAME: one round trip; one more, a LINK, if it replaces a file that is open
    /// here, which is so kept without its name being gone for a moment. RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT cannot be
    /// said in NFS and are refused, so that programs fall back.
    pub async fn rename(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        if flags != NO_FLAGS {
            return Err(Errno(libc::EINVAL));
        }
        Self::check_name(name)?;
        Self::check_name(new_name)?;
        let from = self.inode(parent)?;
        let to = self.inode(new_parent)?;
        self.send_all_changes().await;
        let source = self.remembered_inode(&from, name);
        if let Some(source) = &source {
            // What has the new name is what programs have made of it.
            self.publish(source).await;
        }
        let _changing_to = self.let_opens_pass(&to, new_name).await;
        let victim = self.who_is(cred, &to, new_name).await?;
        let same = matches!((&source, &victim), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        let mut hidden = None;
        let replaced = victim.as_ref().filter(|_| !same);
        let taking = match replaced {
            Some(victim) => Some((victim, self.take_name(victim).await)),
            None => None,
        };
        let removing = match taking {
            Some((_, Taking::Removing(removing))) => Some(removing),
            Some((victim, Taking::Hiding(hiding))) => {
                self.file_state(victim).inner.lock().replacing += 1;
                let made = self.hide_beside(cred, &to, new_name, victim).await;
                drop(hiding);
                if !matches!(made, Ok(Some(_))) {
                    caller::apart(self.replaced(victim)).await;
                }
                hidden = made?;
                None
            }
            None => None,
        };
        let _changing_from = (!Arc::ptr_eq(&from, &to)).then(|| self.changing(&from));
        let mut sent = Instant::now();
        let rename = || {
            let replaced = replaced.map(|victim| &victim.handle);
            let (from, to) = ((&from.handle, name), (&to.handle, new_name));
            self.client.rename(cred, from, to, replaced)
        };
        let mut renamed = rename().await;
        if let (Err(error), Some(victim)) = (&renamed, replaced)
            && victim.kind == FileKind::Directory
            && matches!(error.status(), Some(Status::NOTEMPTY | Status::EXIST))
            && self.make_way(cred, &to, victim).await
        {
            sent = Instant::now();
            renamed = rename().await;
        }
        let Renamed {
            left,
            entered,
            leads_to,
            links,
        } = match renamed {
            Ok(renamed) => renamed,
            Err(error) => {
                if let (Some(hidden), Some(victim)) = (hidden, &victim) {
                    caller::apart(async {
                        self.bring_back(&hidden, new_name, victim).await;
                        self.replaced(victim).await;
                    })
                    .await;
                }
                if error.abandoned().is_some() {
                    self.doubt(&to);
                }
                if error.status() == Some(Status::EXIST) {
                    let errno = not_replaced(source.as_deref(), victim.as_deref());
                    self.heed_refusal(errno, &to, new_name);
                    if errno.0 == libc::ESTALE {
                        self.doubt(&from);
                        self.doubt(&to);
                    }
                    return Err(errno);
                }
                if error.errno() == libc::ENOENT {
                    self.doubt(&to);
                }
                let errno = self.refused(&error, &from, name);
                let errno = self.blamed(cred, &[&from, &to], errno).await;
                if errno.0 == libc::ENOENT {
                    self.forget_entry(from.ino, name);
                }
                return Err(errno);
            }
        };
        if let (Some(hidden), Some(victim)) = (&hidden, &victim) {
            if hidden.beside {
                Self::mark_hidden(victim);
            }
            caller::apart(self.replaced(victim)).await;
        }
        if same {
            // Two names of one file: rename(2) does nothing, nor did the server.
            self.dir_moved(&from, &left, sent);
            return Ok(());
        }
        if let Some(victim) = &victim
            && hidden.is_none()
        {
            Self::lost_a_name(victim);
        }
        drop(removing);
        let source = source.filter(|source| {
            let moved = leads_to.as_ref().is_none_or(|now| *now == source.handle);
            if !moved {
                // Another host had replaced it.
                source.not_found();
                source.attr.lock().expire();
            }
            moved
        });
        // The kernel takes the new name for what it knew by the old one: if it was not
        // told that this leads to what has been moved, it is to ask.
        // A directory is left alone: with it the kernel would forget what is mounted below.
        let told = source.as_ref().is_some_and(|source| {
            source.kind == FileKind::Directory || self.is_told(from.ino, name, source)
        });
        if !told {
            self.forget_entry(to.ino, new_name);
        }
        if Arc::ptr_eq(&from, &to) {
            // Both halves tell of the same directory; the later one counts.
            let whole = DirChange {
                seen: PrePost {
                    before: left.seen.before,
                    after: left.seen.after.or(entered.seen.after),
                },
                atomic: left.atomic,
            };
            self.named(&from, name, &whole, DentryTarget::Negative, sent);
            self.rename_target(&from, new_name, source.as_ref());
        } else {
            self.named(&from, name, &left, DentryTarget::Negative, sent);
            self.dir_moved(&to, &entered, sent);
            self.rename_target(&to, new_name, source.as_ref());
        }
        if let Some(victim) = victim.as_ref().filter(|v| v.kind == FileKind::Directory) {
            self.lost_dir(victim);
        }
        let is_directory = |source: &Arc<Inode>| source.kind == FileKind::Directory;
        if !source.as_ref().is_some_and(is_directory) && links != Some(1) {
            // Another host may have given the file the new name before: then it has both.
            from.names().lock().forget(name);
        }
        if let Some(source) = source {
            source.found_at(&to, new_name);
            // Its ctime, and for a directory its "..", may have moved.
            source.attr.lock().expire();
        }
        Ok(())
    }

    fn rename_target(&self, dir: &Arc<Inode>, name: &[u8], source: Option<&Arc<Inode>>) {
        match source {
            Some(source) => self.put_name(dir, name, DentryTarget::Inode(Arc::clone(source)), None),
            None => dir.names().lock().forget(name),
        }
    }

    /// The inode that a name leads to, if it matters: only a file that is open
    /// here has to be kept. The kernel has looked the name up just before, so it
    /// is remembered as a rule; if not, and something is open, the server is
    /// asked.
    async fn who_is(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> Result<Option<Arc<Inode>>, Errno> {
        if let Some(inode) = self.remembered_inode(dir, name) {
            return Ok(Some(inode));
        }
        if self.files.is_empty() {
            return Ok(None);
        }
        match self.client.lookup(cred, &dir.handle, name).await {
            Ok(found) => Ok(found
                .object
                .and_then(|(handle, attrs)| self.inodes.find(&handle, &attrs))),
            Err(error) => Err(self.failed(&error, dir)),
        }
    }

    /// A name of the object may be taken: opens of it wait until that is done. It is
    /// hidden instead if the file is open here, has no hidden name yet, and the server does
    /// not promise to keep it. How many other names it had last does not count: another
    /// host may have removed them since.
    async fn take_name<'a>(&self, inode: &'a Inode) -> Taking<'a> {
        if inode.kind != FileKind::Regular {
            return Taking::Removing(Removing(None));
        }
        let file = self.file_state(inode);
        loop {
            let progress = file.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let mut inner = file.inner.lock();
                if !inner.is_open() || inner.preserved || inner.silly.is_some() {
                    inner.removing += 1;
                    return Taking::Removing(Removing(Some(file)));
                }
                if !inner.hiding {
                    inner.hiding = true;
                    return Taking::Hiding(Hiding(file));
                }
            }
            progress.await;
        }
    }

    fn lost_a_name(inode: &Arc<Inode>) {
        inode.not_found();
        let mut attr = inode.attr.lock();
        attr.unlinked();
        if attr.stat().nlink > 0 {
            attr.names_changed(Instant::now());
        }
    }

    /// A directory was removed or replaced whose name was known to lead here. Another host
    /// may have moved this one away before, so whether it is gone the server is asked by who
    /// wants to know.
    fn lost_dir(&self, dir: &Arc<Inode>) {
        self.names.drop_dir(dir);
        dir.attr.lock().may_be_over();
    }

    /// A RENAME onto the file has come to its end.
    pub(super) async fn replaced(self: &Arc<Self>, victim: &Arc<Inode>) {
        self.file_state(victim).inner.lock().replacing -= 1;
        self.remove_unneeded(victim).await;
    }

    /// Removes the hidden name of a file that was closed while it was hidden.
    async fn remove_unneeded(self: &Arc<Self>, victim: &Arc<Inode>) {
        let unneeded = self.file_state(victim).inner.lock().unneeded_name();
        if let Some(silly) = unneeded {
            self.remove_silly(victim, silly).await;
        }
    }

    pub(super) fn hidden_name(&self, victim: &Inode) -> String {
        let number = self.silly.counter.fetch_add(1, Ordering::Relaxed);
        let mount = self.silly.mount;
        format!(".nfs{:016x}{mount:016x}{number:04x}", victim.ino)
    }

    /// The file has its hidden name, and the one that it had is gone.
    fn mark_hidden(victim: &Inode) {
        victim.not_found();
        let mut attr = victim.attr.lock();
        attr.hide_name(true);
        attr.unlinked();
        attr.names_changed(Instant::now());
    }

    /// Gives the file a second, hidden name, before the one that it has is given to
    /// another. `None` if there is nothing left to be kept: somebody else was
    /// faster. Where the server makes no links the name is moved away, and is
    /// missing until the caller has put the other file there.
    async fn hide_beside(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        victim: &Arc<Inode>,
    ) -> Result<Option<Hidden>, Errno> {
        loop {
            let hidden = self.hidden_name(victim);
            self.silly.ours.add(dir, hidden.as_bytes(), victim);
            let _changing = self.changing(dir);
            let sent = Instant::now();
            let linked = self
                .client
                .link_hidden(cred, &victim.handle, &dir.handle, hidden.as_bytes())
                .await;
            if linked.is_err() {
                self.silly.ours.remove(dir, hidden.as_bytes());
            }
            let (own, moved) = match linked {
                Ok(linked) => linked,
                Err(NfsError::Status(_, Status::EXIST)) => continue,
                Err(NfsError::Status(_, Status::STALE | Status::NOENT)) => return Ok(None),
                Err(NfsError::Status(..)) => {
                    drop(_changing);
                    let silly = self.hide(cred, dir, name, victim).await?;
                    let beside = false;
                    return Ok(silly.map(|silly| Hidden { silly, beside }));
                }
                Err(error) => return Err(self.failed(&error, dir)),
            };
            victim.attr.lock().hide_name(true);
            self.moved(victim, &own, sent);
            let target = DentryTarget::Inode(Arc::clone(victim));
            self.named(dir, hidden.as_bytes(), &moved, target, sent);
            let silly = SillyName {
                dir: Arc::clone(dir),
                name: hidden.into_bytes(),
                file: victim.handle.clone(),
                cred: Arc::clone(cred),
                first: None,
            };
            self.file_state(victim).inner.lock().silly = Some(silly.clone());
            let beside = true;
            return Ok(Some(Hidden { silly, beside }));
        }
    }

    /// Moves a name out of sight. The caller sees to what becomes of it if the
    /// file is closed meanwhile. `None`: the name led to another file, and is gone.
    async fn hide(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        victim: &Arc<Inode>,
    ) -> Result<Option<SillyName>, Errno> {
        loop {
            let hidden = self.hidden_name(victim);
            // RENAME would replace what has that name.
            match self
                .client
                .lookup(cred, &dir.handle, hidden.as_bytes())
                .await
            {
                Ok(found) if found.object.is_none() => {}
                Ok(_) => continue,
                Err(error) => return Err(self.failed(&error, dir)),
            }
            self.silly.ours.add(dir, hidden.as_bytes(), victim);
            let _changing = self.changing(dir);
            let sent = Instant::now();
            let moved = self
                .client
                .rename_hidden(
                    cred,
                    (&dir.handle, name),
                    (&dir.handle, hidden.as_bytes()),
                    &victim.handle,
                )
                .await;
            let moved = match moved {
                Ok(moved) => moved,
                Err(error) => {
                    self.silly.ours.remove(dir, hidden.as_bytes());
                    return Err(self.refused_in(cred, &error, dir, name).await);
                }
            };
            self.named(dir, name, &moved.entered, DentryTarget::Negative, sent);
            if moved.leads_to.is_some_and(|now| now != victim.handle) {
                victim.not_found();
                victim.attr.lock().expire();
                caller::apart(self.hid_another(cred, dir, name, hidden)).await?;
                return Ok(None);
            }
            let target = DentryTarget::Inode(Arc::clone(victim));
            self.put_name(dir, hidden.as_bytes(), target, None);
            let silly = SillyName {
                dir: Arc::clone(dir),
                name: hidden.into_bytes(),
                file: victim.handle.clone(),
                cred: Arc::clone(cred),
                first: None,
            };
            self.file_state(victim).inner.lock().silly = Some(silly.clone());
            Self::mark_hidden(victim);
            return Ok(Some(silly));
        }
    }

    /// Another host had given the name to another file than this one knew by it: that has
    /// been moved out of sight, and goes, as the name would have. If it is open here as well,
    /// it stays where it is until it is closed. A directory is moved back: unlink(2) does not
    /// remove directories.
    async fn hid_another(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        hidden: String,
    ) -> Result<(), Errno> {
        self.names.stranger_was_here();
        self.silly.ours.remove(dir, hidden.as_bytes());
        let found = self.client.lookup(cred, &dir.handle, hidden.as_bytes());
        let found = found.await.ok().and_then(|found| found.object);
        if let Some((handle, attrs)) = &found
            && kind_of(attrs.kind) == FileKind::Directory
        {
            let (from, to) = ((&dir.handle, hidden.as_bytes()), (&dir.handle, name));
            if let Err(error) = self.client.rename_hidden(cred, from, to, handle).await {
                tracing::error!("a directory is left as {hidden} in its directory: {error}");
            }
            self.doubt(dir);
            self.forget_entry(dir.ino, name);
            return Err(Errno(libc::EISDIR));
        }
        let other = found.and_then(|(handle, attrs)| self.inodes.find(&handle, &attrs));
        if let Some(other) = other
            && self.stays_hidden(cred, dir, &hidden, &other)
        {
            self.remove_unneeded(&other).await;
            return Ok(());
        }
        let sent = Instant::now();
        match self
            .client
            .remove(cred, &dir.handle, hidden.as_bytes())
            .await
        {
            Ok(moved) => self.dir_moved(dir, &moved, sent),
            Err(error) => {
                self.doubt(dir);
                tracing::error!("a file is left as {hidden} in its directory: {error}");
            }
        }
        Ok(())
    }

    /// The file is open and has been moved out of sight: false if it need not be.
    fn stays_hidden(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        hidden: &str,
        file: &Arc<Inode>,
    ) -> bool {
        let Some(opened) = file.opened() else {
            return false;
        };
        {
            let mut inner = opened.inner.lock();
            if !inner.is_open() || inner.silly.is_some() {
                return false;
            }
            inner.silly = Some(SillyName {
                dir: Arc::clone(dir),
                name: hidden.as_bytes().to_vec(),
                file: file.handle.clone(),
                cred: Arc::clone(cred),
                first: None,
            });
        }
        self.silly.ours.add(dir, hidden.as_bytes(), file);
        Self::mark_hidden(file);
        true
    }

    /// Undoes `hide_beside`, unless the file has lost its other name all the same: that
    /// a RENAME failed does not say that none was executed.
    async fn bring_back(self: &Arc<Self>, hidden: &Hidden, name: &[u8], victim: &Arc<Inode>) {
        let Hidden { silly, beside } = hidden;
        let place = &silly.dir.handle;
        if *beside {
            let found = self.client.lookup(&silly.cred, place, name).await;
            let found = found.ok().and_then(|found| found.object);
            if found.is_none_or(|(handle, _)| handle != victim.handle) {
                Self::mark_hidden(victim);
                self.doubt(&silly.dir);
                return;
            }
        }
        self.file_state(victim).inner.lock().silly = None;
        let back = if *beside {
            let removed = self.client.remove(&silly.cred, place, &silly.name);
            removed.await.map(drop)
        } else {
            let (from, to) = ((place, &silly.name[..]), (place, name));
            let moved = self
                .client
                .rename_hidden(&silly.cred, from, to, &victim.handle);
            moved.await.map(drop)
        };
        if let Err(error) = back {
            tracing::error!(
                "a file is left as {} in its directory: {error}",
                quoting::name(&silly.name)
            );
        }
        self.silly.ours.remove(&silly.dir, &silly.name);
        self.doubt(&silly.dir);
        let mut attr = victim.attr.lock();
        attr.hide_name(false);
        attr.names_changed(Instant::now());
    }

    /// The file is closed: its hidden name goes.
    pub(super) async fn remove_silly(self: &Arc<Self>, inode: &Arc<Inode>, silly: SillyName) {
        let _closing = self.silly.closing(silly.dir.ino);
        let SillyName { dir, name, .. } = &silly;
        let _changing = self.changing(dir);
        for cred in silly.first.iter().chain([&silly.cred]) {
            let sent = Instant::now();
            // Some servers do not remove what is open: the CLOSE goes in front.
            let removed = self
                .client
                .remove_closed(cred, &dir.handle, name, Some(&silly.file))
                .await;
            match removed {
                Ok(moved) => {
                    self.named(dir, name, &moved, DentryTarget::Negative, sent);
                    break;
                }
                Err(NfsError::Status(_, Status::NOENT | Status::STALE)) => break,
                Err(NfsError::Status(_, Status::ACCESS | Status::PERM))
                    if !Arc::ptr_eq(cred, &silly.cred) => {}
                Err(error) => {
                    tracing::warn!("the hidden name {} stays: {error}", quoting::name(name));
                    self.silly.ours.remove(dir, name);
                    return;
                }
            }
        }
        self.silly.ours.remove(dir, name);
        // It may have other names.
        let mut attr = inode.attr.lock();
        attr.hide_name(false);
        attr.names_changed(Instant::now());
    }

    /// The file is being closed: if it has a hidden name, that may be about to
    /// be removed.
    pub(super) fn closing_hidden(&self, inode: &Inode) -> Option<Closing<'_>> {
        let inner = inode.opened()?.inner.lock();
        let dir = inner.silly.as_ref()?.dir.ino;
        Some(self.silly.closing(dir))
    }

    /// Waits for the removals under way in a directory. False if there are
    /// none.
    pub(super) async fn silly_removals_end(&self, dir: Ino) -> bool {
        let mut any = false;
        loop {
            let removed = self.silly.removed.notified();
            tokio::pin!(removed);
            removed.as_mut().enable();
            if !self.silly.closing.lock().contains_key(&dir) {
                return any;
            }
            any = true;
            removed.await;
        }
    }
}
