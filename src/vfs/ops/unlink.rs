//! Removing and moving names: unlink, rmdir, rename. What keeps a file that is open here is in
//! [`silly`](crate::vfs::files::silly).

use std::sync::Arc;

use tokio::time::Instant;

use crate::nfs::calls::{DirChange, PrePost, Renamed};
use crate::nfs::proto::status::Status;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::Vfs;
use crate::vfs::files::silly::Taking;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::namespace::names::check_name;
use crate::vfs::types::{Errno, FileKind, Ino};

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
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        self.send_all_changes().await;
        let _changing = self.namespace.let_opens_pass(&dir, name).await;
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
                return Err(self.namespace.is_directory_now(&dir, name));
            }
            Err(error) => return Err(self.namespace.refused_in(cred, &error, &dir, name).await),
        };
        if let Some(victim) = &victim {
            victim.lost_a_name();
        }
        drop(removing);
        self.namespace
            .named(&dir, name, &moved, DentryTarget::Negative, sent);
        Ok(())
    }

    /// REMOVE of an empty directory: one round trip.
    pub async fn rmdir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> Result<(), Errno> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        self.send_all_changes().await;
        let mut victim = self.namespace.remembered_inode(&dir, name);
        let mut waited = false;
        loop {
            let changing = self.namespace.changing(&dir);
            let sent = Instant::now();
            let removed = self.client.remove(cred, &dir.handle, name).await;
            match removed {
                Ok(moved) => {
                    self.namespace
                        .named(&dir, name, &moved, DentryTarget::Negative, sent);
                    if let Some(victim) = &victim {
                        self.namespace.lost_dir(victim);
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
                            self.namespace.doubt(victim);
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
                    return Err(self.namespace.refused_in(cred, &error, &dir, name).await);
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
        check_name(name)?;
        check_name(new_name)?;
        let from = self.namespace.inode(parent)?;
        let to = self.namespace.inode(new_parent)?;
        self.send_all_changes().await;
        let source = self.namespace.remembered_inode(&from, name);
        if let Some(source) = &source {
            // What has the new name is what programs have made of it.
            self.publish(source).await;
        }
        let _changing_to = self.namespace.let_opens_pass(&to, new_name).await;
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
                self.file_state(victim).lock().begin_replacing();
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
        let _changing_from = (!Arc::ptr_eq(&from, &to)).then(|| self.namespace.changing(&from));
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
                    self.namespace.doubt(&to);
                }
                if error.status() == Some(Status::EXIST) {
                    let errno = not_replaced(source.as_deref(), victim.as_deref());
                    self.namespace.heed_refusal(errno, &to, new_name);
                    if errno.0 == libc::ESTALE {
                        self.namespace.doubt(&from);
                        self.namespace.doubt(&to);
                    }
                    return Err(errno);
                }
                if error.errno() == libc::ENOENT {
                    self.namespace.doubt(&to);
                }
                let errno = self.namespace.refused(&error, &from, name);
                let errno = self.namespace.blamed(cred, &[&from, &to], errno).await;
                if errno.0 == libc::ENOENT {
                    self.namespace.forget_entry(from.ino, name);
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
            self.namespace.dir_moved(&from, &left, sent);
            return Ok(());
        }
        if let Some(victim) = &victim
            && hidden.is_none()
        {
            victim.lost_a_name();
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
        let is_directory = source
            .as_ref()
            .is_some_and(|source| source.kind == FileKind::Directory);
        let told = is_directory
            || source
                .as_ref()
                .is_some_and(|source| self.namespace.is_told(from.ino, name, source));
        if !told {
            self.namespace.forget_entry(to.ino, new_name);
        }
        let is_gone = is_directory || links == Some(1);
        if Arc::ptr_eq(&from, &to) {
            // Both halves tell of the same directory; the later one counts.
            let whole = DirChange {
                seen: PrePost {
                    before: left.seen.before,
                    after: left.seen.after.or(entered.seen.after),
                },
                atomic: left.atomic,
            };
            self.namespace
                .moved_away(&from, name, &whole, is_gone, sent);
            self.namespace
                .rename_target(&from, new_name, source.as_ref());
        } else {
            self.namespace.moved_away(&from, name, &left, is_gone, sent);
            self.namespace.dir_moved(&to, &entered, sent);
            self.namespace.rename_target(&to, new_name, source.as_ref());
        }
        if let Some(victim) = victim.as_ref().filter(|v| v.kind == FileKind::Directory) {
            self.namespace.lost_dir(victim);
        }
        if let Some(source) = source {
            source.found_at(&to, new_name);
            // Its ctime, and for a directory its "..", may have moved.
            source.attr.lock().expire();
        }
        Ok(())
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
        if let Some(inode) = self.namespace.remembered_inode(dir, name) {
            return Ok(Some(inode));
        }
        if self.files.is_empty() {
            return Ok(None);
        }
        match self.client.lookup(cred, &dir.handle, name).await {
            Ok(found) => Ok(found
                .object
                .and_then(|(handle, attrs)| self.namespace.find(&handle, &attrs))),
            Err(error) => Err(self.namespace.failed(&error, dir)),
        }
    }
}
