//! Silly rename: how a file that is open here stays readable after its last name is gone
//! (POSIX).
//!
//! A server may promise to keep such a file until the last CLOSE
//! (OPEN4_RESULT_PRESERVE_UNLINKED). Where it does not, the name is not removed but moved out
//! of sight (`.nfs` and numbers, as every NFS client does it), and the hidden name is
//! removed when the file is closed. Where another file takes the name (by a rename), the hidden
//! one is made beside it first, so that the name is never missing. What may be done with
//! hidden names is in [`hidden`](super::hidden).
//!
//! A file's hidden name is in its state (`FileInner::silly`), under its lock. Which
//! directories hidden names are being removed from is under a lock of its own, with which no
//! other is taken.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Files;
use super::hidden::Ours;
use crate::nfs::NfsError;
use crate::nfs::calls::Found;
use crate::nfs::proto::status::Status;
use crate::quoting;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::file::state::NameLoss;
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::kind_of;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::inode::{FileState, SillyName};
use crate::vfs::types::{Errno, FileKind, Ino, VfsResult};
use crate::wal::Table;

/// The files that are kept out of sight.
#[derive(Debug)]
pub(in crate::vfs) struct Silly {
    /// Part of each hidden name, drawn when the mount begins. Process ids tell nobody apart:
    /// in containers every host's daemon may have the same.
    mount: u64,
    counter: AtomicU64,
    /// By directory: how many of its names are about to be removed.
    closing: Mutex<HashMap<Ino, usize>>,
    removed: Notify,
    /// The names, as listings leave them out.
    pub(in crate::vfs) ours: Ours,
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

/// `file` has this name in `dir`, made in the name of `cred`.
fn silly_name(dir: &Arc<Inode>, name: &str, file: &Inode, cred: &Arc<Credential>) -> SillyName {
    SillyName {
        dir: Arc::clone(dir),
        name: name.as_bytes().to_vec(),
        file: file.handle.clone(),
        cred: Arc::clone(cred),
        first: None,
        was: None,
    }
}

/// What became of the name of an open file that is replaced.
pub(in crate::vfs) struct Hidden {
    pub(in crate::vfs) silly: SillyName,
    /// The hidden name is one more, not the one that the file had.
    pub(in crate::vfs) beside: bool,
}

/// A hidden name of a directory may be about to be removed, until this is
/// dropped.
#[derive(Debug)]
pub(in crate::vfs) struct Closing<'a> {
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
pub(in crate::vfs) enum Taking<'a> {
    /// It is removed.
    Removing(Losing<'a>),
    /// It is hidden, so that the file has one.
    Hiding(Losing<'a>),
}

/// A name of a file is being taken or hidden, until this is dropped.
#[derive(Debug)]
pub(in crate::vfs) struct Losing<'a>(Option<(&'a FileState, NameLoss)>);

impl Drop for Losing<'_> {
    fn drop(&mut self) {
        if let Some((file, loss)) = self.0 {
            file.lock().end_loss(loss);
            file.notify_waiters();
        }
    }
}

/// Hidden names that are tried before the server is not believed any more that they are taken.
const NAMES_TRIED: usize = 64;

/// The server says of every name that it is taken (as the kernel's client: EBUSY).
fn no_free_name(dir: &Inode) -> Errno {
    tracing::warn!(
        ino = dir.ino,
        "the server says of {NAMES_TRIED} hidden names that they are taken: the file keeps its name"
    );
    Errno(libc::EBUSY)
}

impl Files {
    /// The inode that a name leads to, if it matters: only a file that is open
    /// here has to be kept. The kernel has looked the name up just before, so it
    /// is remembered as a rule; if not, and something is open, the server is
    /// asked.
    pub(in crate::vfs) async fn who_is(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
    ) -> VfsResult<Option<Arc<Inode>>> {
        if let Some(inode) = self.victim_before() {
            return Ok(Some(inode));
        }
        if let Some(inode) = self.namespace.remembered_inode(dir, name) {
            return Ok(Some(inode));
        }
        if self.is_empty() {
            return Ok(None);
        }
        match self.client.lookup(cred, &dir.handle, name).await {
            Ok(found) => Ok(found
                .object
                .and_then(|(handle, attrs)| self.namespace.find(&handle, &attrs))),
            Err(error) => Err(self.namespace.failed(&error, dir)),
        }
    }

    /// A name of the object may be taken: opens of it wait until that is done. It is
    /// hidden instead if the file is open here, has no hidden name yet, and the server does
    /// not promise to keep it. How many other names it had last does not count: another
    /// host may have removed them since.
    pub(in crate::vfs) async fn take_name<'a>(&self, inode: &'a Inode) -> Taking<'a> {
        if inode.kind != FileKind::Regular {
            return Taking::Removing(Losing(None));
        }
        let file = self.file_state(inode);
        let before = self.victim_before();
        let again = before.is_some_and(|before| before.ino == inode.ino);
        let loss = file.when(|inner| inner.begin_loss(again)).await;
        let losing = Losing(Some((file, loss)));
        match loss {
            NameLoss::Removed => Taking::Removing(losing),
            NameLoss::Hidden => {
                self.log_victim(inode);
                Taking::Hiding(losing)
            }
        }
    }

    /// Whether programs are not to see this name.
    pub(in crate::vfs) fn is_hidden(&self, dir: &Inode, name: &[u8]) -> bool {
        self.silly.ours.has(dir, name)
    }

    /// A RENAME onto the file begins; to be ended by [`replaced`](Self::replaced).
    pub(in crate::vfs) fn begin_replacing(&self, victim: &Inode) {
        self.file_state(victim).lock().begin_replacing();
    }

    /// A RENAME onto the file has come to its end.
    pub(in crate::vfs) async fn replaced(self: &Arc<Self>, victim: &Arc<Inode>) {
        self.file_state(victim).lock().end_replacing();
        self.remove_unneeded(victim).await;
    }

    /// Removes the hidden name of a file that was closed while it was hidden.
    pub(in crate::vfs) async fn remove_unneeded(self: &Arc<Self>, victim: &Arc<Inode>) {
        let unneeded = self.file_state(victim).lock().unneeded_name();
        if let Some(silly) = unneeded {
            self.remove_silly(victim, silly).await;
        }
    }

    /// A name that no file has had, as far as this host knows.
    pub(super) fn hidden_name(&self, victim: &Inode, attempt: usize) -> String {
        // The operation may run again in another process, which has to find what this one made.
        if let Some(mark) = self.client.mark() {
            return format!(".nfs{:016x}{mark:016x}{attempt:04x}", victim.ino);
        }
        let number = self.silly.counter.fetch_add(1, Ordering::Relaxed);
        let mount = self.silly.mount;
        format!(".nfs{:016x}{mount:016x}{number:04x}", victim.ino)
    }

    /// The file has its hidden name, and the one that it had is gone.
    pub(in crate::vfs) fn mark_hidden(victim: &Inode) {
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
    pub(in crate::vfs) async fn hide_beside(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        victim: &Arc<Inode>,
    ) -> VfsResult<Option<Hidden>> {
        for attempt in 0..NAMES_TRIED {
            let hidden = self.hidden_name(victim, attempt);
            self.silly.ours.add(dir, hidden.as_bytes(), victim);
            let _changing = self.namespace.changing(dir);
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
                Err(error) => return Err(self.namespace.failed(&error, dir)),
            };
            victim.attr.lock().hide_name(true);
            self.namespace.moved(victim, &own, sent);
            let target = DentryTarget::Inode(Arc::clone(victim));
            self.namespace
                .named(dir, hidden.as_bytes(), &moved, target, sent);
            let silly = silly_name(dir, &hidden, victim, cred);
            self.set_silly(victim, silly.clone());
            let beside = true;
            return Ok(Some(Hidden { silly, beside }));
        }
        Err(no_free_name(dir).into())
    }

    /// Moves a name out of sight. The caller sees to what becomes of it if the
    /// file is closed meanwhile. `None`: the name led to another file, and is gone.
    pub(in crate::vfs) async fn hide(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        name: &[u8],
        victim: &Arc<Inode>,
    ) -> VfsResult<Option<SillyName>> {
        for attempt in 0..NAMES_TRIED {
            let hidden = self.hidden_name(victim, attempt);
            // RENAME would replace what has that name.
            match self
                .client
                .lookup(cred, &dir.handle, hidden.as_bytes())
                .await
            {
                Ok(Found { object: None, .. }) => {}
                // An earlier run of this operation has hidden it already.
                Ok(Found {
                    object: Some((handle, _)),
                    ..
                }) if caller::request().resent && handle == victim.handle => {}
                Ok(_) => continue,
                Err(error) => return Err(self.namespace.failed(&error, dir)),
            }
            self.silly.ours.add(dir, hidden.as_bytes(), victim);
            let _changing = self.namespace.changing(dir);
            let sent = Instant::now();
            let fileid = victim.attr.lock().stat().ino;
            let moved = self
                .client
                .hide_name(
                    cred,
                    &dir.handle,
                    (name, hidden.as_bytes()),
                    (&victim.handle, fileid),
                )
                .await;
            let moved = match moved {
                Ok(moved) => moved,
                Err(NfsError::Status(_, Status::NOT_SAME)) => {
                    self.silly.ours.remove(dir, hidden.as_bytes());
                    return Err(self.gave_away(dir, name, victim).into());
                }
                Err(error) => {
                    self.silly.ours.remove(dir, hidden.as_bytes());
                    return Err(self.namespace.refused_in(cred, &error, dir, name).await);
                }
            };
            match &moved {
                Some(moved) => {
                    self.namespace
                        .named(dir, name, &moved.entered, DentryTarget::Negative, sent);
                }
                None => self.namespace.doubt(dir),
            }
            let leads_to = moved.and_then(|moved| moved.leads_to);
            if leads_to.is_some_and(|now| now != victim.handle) {
                self.gave_away(dir, name, victim);
                caller::apart(self.hid_another(cred, dir, name, hidden)).await?;
                return Ok(None);
            }
            let target = DentryTarget::Inode(Arc::clone(victim));
            self.namespace
                .put_name(dir, hidden.as_bytes(), target, None);
            let silly = silly_name(dir, &hidden, victim, cred);
            self.set_silly(victim, silly.clone());
            Self::mark_hidden(victim);
            return Ok(Some(silly));
        }
        Err(no_free_name(dir).into())
    }

    /// Another host has given the name to something else than this one knew by it. The kernel is
    /// to walk to it again.
    fn gave_away(&self, dir: &Inode, name: &[u8], victim: &Arc<Inode>) -> Errno {
        victim.not_found();
        victim.attr.lock().expire();
        // It takes the name off what it knows by it.
        self.namespace.inval_attr(victim.ino);
        self.namespace.stranger_was_here();
        self.namespace.forget_entry(dir.ino, name);
        dir.names().lock().doubt();
        dir.attr.lock().expire();
        Errno(libc::ESTALE)
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
    ) -> VfsResult<()> {
        self.namespace.stranger_was_here();
        self.silly.ours.remove(dir, hidden.as_bytes());
        let found = self.client.lookup(cred, &dir.handle, hidden.as_bytes());
        let found = found.await.ok().and_then(|found| found.object);
        if let Some((handle, attrs)) = &found
            && kind_of(attrs.kind) == FileKind::Directory
        {
            match self.is_free(cred, dir, name).await {
                true => {
                    let (from, to) = ((&dir.handle, hidden.as_bytes()), (&dir.handle, name));
                    if let Err(error) = self.client.rename_hidden(cred, from, to, handle).await {
                        tracing::error!(
                            "a directory is left as {hidden} in its directory: {error}"
                        );
                    }
                }
                // RENAME would replace what another host has made there since.
                false => tracing::error!(
                    "a directory is left as {hidden} in its directory: its name {} is taken",
                    quoting::name(name)
                ),
            }
            return Err(self.namespace.is_directory_now(dir, name).into());
        }
        let other = found.and_then(|(handle, attrs)| self.namespace.find(&handle, &attrs));
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
            Ok(moved) => self.namespace.dir_moved(dir, &moved, sent),
            // Another host was faster.
            Err(NfsError::Status(_, Status::NOENT)) => self.namespace.doubt(dir),
            Err(error) => {
                self.namespace.doubt(dir);
                tracing::error!("a file is left as {hidden} in its directory: {error}");
            }
        }
        Ok(())
    }

    /// Nothing has this name, the server says.
    async fn is_free(&self, cred: &Credential, dir: &Inode, name: &[u8]) -> bool {
        let found = self.client.lookup(cred, &dir.handle, name).await;
        found.is_ok_and(|found| found.object.is_none())
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
            let mut inner = opened.lock();
            if !inner.is_open() || inner.silly().is_some() {
                return false;
            }
            let silly = silly_name(dir, hidden, file, cred);
            self.log_silly(file, &silly);
            inner.set_silly(Some(silly));
        }
        self.silly.ours.add(dir, hidden.as_bytes(), file);
        Self::mark_hidden(file);
        true
    }

    /// Undoes `hide_beside`, unless the file has lost its other name all the same: that
    /// a RENAME failed does not say that none was executed.
    pub(in crate::vfs) async fn bring_back(
        self: &Arc<Self>,
        hidden: &Hidden,
        name: &[u8],
        victim: &Arc<Inode>,
    ) {
        let Hidden { silly, beside } = hidden;
        let place = &silly.dir.handle;
        let is_as_before = match *beside {
            true => {
                let found = self.client.lookup(&silly.cred, place, name).await;
                let found = found.ok().and_then(|found| found.object);
                found.is_some_and(|(handle, _)| handle == victim.handle)
            }
            // Moved back, the file would replace whatever has the name by now: what a RENAME
            // has brought there that was executed all the same, or another host's.
            false => self.is_free(&silly.cred, &silly.dir, name).await,
        };
        if !is_as_before {
            if *beside {
                Self::mark_hidden(victim);
            }
            self.namespace.doubt(&silly.dir);
            return;
        }
        self.file_state(victim).lock().set_silly(None);
        self.wal.remove(Table::Silly, victim.ino);
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
        self.namespace.doubt(&silly.dir);
        let mut attr = victim.attr.lock();
        attr.hide_name(false);
        attr.names_changed(Instant::now());
    }

    /// The file is closed: its hidden name goes.
    pub(super) async fn remove_silly(self: &Arc<Self>, inode: &Arc<Inode>, silly: SillyName) {
        let _closing = self.silly.closing(silly.dir.ino);
        for place in [Some(silly.clone()), silly.as_it_was()]
            .into_iter()
            .flatten()
        {
            self.remove_hidden(&place).await;
        }
        self.wal.remove(Table::Silly, inode.ino);
        // It may have other names.
        let mut attr = inode.attr.lock();
        attr.hide_name(false);
        attr.names_changed(Instant::now());
    }

    async fn remove_hidden(&self, silly: &SillyName) {
        let SillyName { dir, name, .. } = silly;
        let _changing = self.namespace.changing(dir);
        for cred in silly.first.iter().chain([&silly.cred]) {
            let sent = Instant::now();
            // Some servers do not remove what is open: the CLOSE goes in front.
            let removed = self
                .client
                .remove_closed(cred, &dir.handle, name, Some(&silly.file))
                .await;
            match removed {
                Ok(moved) => {
                    self.namespace
                        .named(dir, name, &moved, DentryTarget::Negative, sent);
                    break;
                }
                Err(NfsError::Status(_, Status::NOENT | Status::STALE)) => break,
                Err(NfsError::Status(_, Status::ACCESS | Status::PERM))
                    if !Arc::ptr_eq(cred, &silly.cred) => {}
                Err(error) => {
                    // As a name like any other.
                    tracing::warn!("the hidden name {} stays: {error}", quoting::name(name));
                    break;
                }
            }
        }
        self.silly.ours.remove(dir, name);
    }

    /// The file is being closed: if it has a hidden name, that may be about to
    /// be removed.
    pub(in crate::vfs) fn closing_hidden(&self, inode: &Inode) -> Option<Closing<'_>> {
        let inner = inode.opened()?.lock();
        let dir = inner.silly()?.dir.ino;
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
