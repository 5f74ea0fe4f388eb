//! rename.

use std::sync::Arc;

use tokio::time::Instant;

use crate::nfs::NfsError;
use crate::nfs::calls::{DirChange, PrePost, Renamed};
use crate::nfs::proto::status::Status;
use crate::rpc::auth::Credential;
use crate::rpc::caller::{self, TakingIn};
use crate::vfs::Vfs;
use crate::vfs::files::Files;
use crate::vfs::files::silly::{Hidden, Losing, Taking};
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::kind_of;
use crate::vfs::namespace::names::check_name;
use crate::vfs::types::{Errno, FileKind, Ino, VfsError, VfsResult};

/// renameat2(2) flags: nothing of it can be said in NFS.
const NO_FLAGS: u32 = 0;

/// RFC 8881 §18.26.3 has EXIST for a target that cannot be replaced, a full directory among
/// them; rename(2) tells more. Two that are no directories can replace each other: one of them
/// is not what is known of it, and after ESTALE the kernel finds out which. A first of which
/// nothing is known is taken for a directory: the caller asks whether it is one.
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

/// One side of a RENAME: a name in a directory.
type Name<'a> = (&'a Arc<Inode>, &'a [u8]);

impl Vfs {
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
    ) -> VfsResult<()> {
        if flags != NO_FLAGS {
            return Err(Errno(libc::EINVAL).into());
        }
        check_name(name)?;
        check_name(new_name)?;
        let from = self.namespace.inode(parent)?;
        let to = self.namespace.inode(new_parent)?;
        if self.files.accepted_before().is_some() {
            return Ok(());
        }
        if Arc::ptr_eq(&from, &to) && self.files.accept_rename(cred, &from, (name, new_name)) {
            return Ok(());
        }
        self.files.before_removal(&[&from, &to]).await;
        let source = self.namespace.remembered_inode(&from, name);
        match &source {
            // What has the new name is what programs have made of it.
            Some(source) => self.files.before_naming(source).await,
            // It may be a directory.
            None => self.files.settle_all().await,
        }
        let (from, to) = ((&from, name), (&to, new_name));
        let _changing_to = self.namespace.let_opens_pass(to.0, new_name).await;
        let victim = self.files.who_is(cred, to.0, new_name).await?;
        if victim.is_some() {
            (self.files)
                .before_removal_of_directory(victim.as_ref())
                .await;
        }
        let same = matches!((&source, &victim), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        let replaced = victim.as_ref().filter(|_| !same);
        let (removing, hidden) = self.take_target(cred, to, replaced).await?;
        let _changing_from = match Arc::ptr_eq(from.0, to.0) {
            true => None,
            false => self.namespace.changing(from.0),
        };
        // Whoever begins after its caller's death waits until what became of it is known here.
        let _taking_in = TakingIn::begin();
        let (renamed, sent) = self.send_rename(cred, from, to, replaced).await;
        let objects = (source.as_ref(), victim.as_ref());
        let renamed = match renamed {
            Ok(renamed) => renamed,
            Err(error) => {
                self.undo_taking(hidden, new_name, victim.as_ref()).await;
                return Err(self.refused_rename(cred, from, to, objects, &error).await);
            }
        };
        if let (Some(hidden), Some(victim)) = (&hidden, &victim) {
            if hidden.beside {
                Files::mark_hidden(victim);
            }
            caller::apart(self.files.replaced(victim)).await;
        }
        if same {
            // Two names of one file: rename(2) does nothing, nor did the server.
            self.namespace.dir_moved(from.0, &renamed.left, sent);
            return Ok(());
        }
        if let Some(victim) = &victim
            && hidden.is_none()
        {
            victim.lost_a_name();
        }
        drop(removing);
        self.renamed(from, to, (source, victim), &renamed, sent);
        for dir in [from.0, to.0] {
            self.files.confirm_names(cred, dir);
        }
        Ok(())
    }

    /// What the new name leads to is about to lose it. A file that is open here has a hidden
    /// name when this returns.
    async fn take_target<'a>(
        &self,
        cred: &Arc<Credential>,
        (to, new_name): Name<'_>,
        replaced: Option<&'a Arc<Inode>>,
    ) -> VfsResult<(Option<Losing<'a>>, Option<Hidden>)> {
        let Some(victim) = replaced else {
            return Ok((None, None));
        };
        if let Some(silly) = self.files.hidden_before(victim) {
            let beside = true;
            self.files.begin_replacing(victim);
            return Ok((None, Some(Hidden { silly, beside })));
        }
        match self.files.take_name(victim).await {
            Taking::Removing(removing) => Ok((Some(removing), None)),
            Taking::Hiding(hiding) => {
                self.files.begin_replacing(victim);
                let made = self.files.hide_beside(cred, to, new_name, victim).await;
                drop(hiding);
                if !matches!(made, Ok(Some(_))) {
                    caller::apart(self.files.replaced(victim)).await;
                }
                Ok((None, made?))
            }
        }
    }

    /// The RENAME, and when it was sent: once more, if a directory that it replaces held nothing
    /// but hidden names.
    async fn send_rename(
        &self,
        cred: &Arc<Credential>,
        (from, name): Name<'_>,
        (to, new_name): Name<'_>,
        replaced: Option<&Arc<Inode>>,
    ) -> (Result<Renamed, NfsError>, Instant) {
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
            && self.files.make_way(cred, to, victim).await
        {
            sent = Instant::now();
            renamed = rename().await;
        }
        (renamed, sent)
    }

    /// The RENAME has failed: what was hidden for it gets its name back.
    async fn undo_taking(
        &self,
        hidden: Option<Hidden>,
        new_name: &[u8],
        victim: Option<&Arc<Inode>>,
    ) {
        if let (Some(hidden), Some(victim)) = (hidden, victim) {
            caller::apart(async {
                self.files.bring_back(&hidden, new_name, victim).await;
                self.files.replaced(victim).await;
            })
            .await;
        }
    }

    /// What the failure of a RENAME is to the caller, and what is not believed any more.
    async fn refused_rename(
        &self,
        cred: &Arc<Credential>,
        (from, name): Name<'_>,
        (to, new_name): Name<'_>,
        (source, victim): (Option<&Arc<Inode>>, Option<&Arc<Inode>>),
        error: &NfsError,
    ) -> VfsError {
        let names = &self.namespace;
        if error.abandoned().is_some() {
            names.doubt(to);
        }
        if error.status() == Some(Status::EXIST) {
            let mut errno = not_replaced(source.map(AsRef::as_ref), victim.map(AsRef::as_ref));
            let told_by_kind = matches!(errno.0, libc::ENOTEMPTY | libc::ENOTDIR);
            let ends = [((from, name), source), ((to, new_name), victim)];
            if told_by_kind && !self.lead_as_taken(cred, ends).await {
                errno = Errno(libc::ESTALE);
            }
            names.heed_refusal(errno, to, new_name);
            if errno.0 == libc::ESTALE {
                names.doubt(from);
                names.doubt(to);
            }
            return VfsError::caused(errno, error, to.ino);
        }
        if error.errno() == libc::ENOENT {
            names.doubt(to);
        }
        let error = names.refused(error, from, name);
        let error = names.blamed(cred, &[from, to], error).await;
        if error.is(libc::ENOENT) {
            names.forget_entry(from.ino, name);
        }
        error
    }

    /// Whether each of the names leads still to what is known by it, and one of which nothing is
    /// known to a directory, the server says.
    async fn lead_as_taken(
        &self,
        cred: &Arc<Credential>,
        ends: [(Name<'_>, Option<&Arc<Inode>>); 2],
    ) -> bool {
        for ((dir, name), known) in ends {
            let found = self.client.lookup(cred, &dir.handle, name).await;
            let Some((handle, attrs)) = found.ok().and_then(|found| found.object) else {
                return false;
            };
            let as_taken = match known {
                Some(known) => handle == known.handle,
                None => kind_of(attrs.kind) == FileKind::Directory,
            };
            if !as_taken {
                return false;
            }
        }
        true
    }

    /// Takes in what the RENAME has made of both names. `source` is what was known to have the
    /// first, `victim` what had the second.
    fn renamed(
        &self,
        (from, name): Name<'_>,
        (to, new_name): Name<'_>,
        (source, victim): (Option<Arc<Inode>>, Option<Arc<Inode>>),
        renamed: &Renamed,
        sent: Instant,
    ) {
        let Renamed {
            left,
            entered,
            leads_to,
            links,
        } = renamed;
        let source = source.filter(|source| {
            let moved = leads_to.as_ref().is_none_or(|now| *now == source.handle);
            if !moved {
                // Another host had replaced it.
                source.not_found();
                source.attr.lock().expire();
            }
            moved
        });
        let names = &self.namespace;
        // The kernel takes the new name for what it knew by the old one: if it was not
        // told that this leads to what has been moved, it is to ask.
        // A directory is left alone: with it the kernel would forget what is mounted below.
        let is_directory = source
            .as_ref()
            .is_some_and(|source| source.kind == FileKind::Directory);
        let told = is_directory
            || source
                .as_ref()
                .is_some_and(|source| names.is_told(from.ino, name, source));
        if !told {
            names.forget_entry(to.ino, new_name);
        }
        let is_gone = is_directory || *links == Some(1);
        if Arc::ptr_eq(from, to) {
            // Both halves tell of the same directory; the later one counts.
            let whole = DirChange {
                seen: PrePost {
                    before: left.seen.before,
                    after: left
                        .seen
                        .after
                        .clone()
                        .or_else(|| entered.seen.after.clone()),
                },
                atomic: left.atomic,
            };
            names.moved_away(from, name, &whole, is_gone, sent);
        } else {
            names.moved_away(from, name, left, is_gone, sent);
            names.dir_moved(to, entered, sent);
        }
        names.rename_target(to, new_name, source.as_ref());
        if let Some(victim) = victim.filter(|v| v.kind == FileKind::Directory) {
            names.lost_dir(&victim);
        }
        if let Some(source) = source {
            source.found_at(to, new_name);
            names.log_place(&source);
            // Its ctime, and for a directory its "..", may have moved.
            source.attr.lock().expire();
        }
    }
}
