//! unlink, rmdir. What keeps a file that is open here is in
//! [`silly`](crate::vfs::files::silly).

use std::sync::Arc;

use tokio::time::Instant;

use crate::nfs::proto::status::Status;
use crate::rpc::auth::Credential;
use crate::rpc::caller::{self, TakingIn};
use crate::vfs::Vfs;
use crate::vfs::files::silly::Taking;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::namespace::names::check_name;
use crate::vfs::types::{Errno, Ino, VfsError, VfsResult};

impl Vfs {
    /// REMOVE of a file: one round trip, or RENAME if it is open here.
    pub async fn unlink(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> VfsResult<()> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        let is_accepted = self.files.accepted_before().is_some();
        if is_accepted || self.files.accept_removal(cred, &dir, name, false) {
            return Ok(());
        }
        self.files.before_removal(&[&dir]).await;
        let _changing = self.namespace.let_opens_pass(&dir, name).await;
        let victim = self.files.who_is(cred, &dir, name).await?;
        let removing = match &victim {
            Some(victim) if self.files.hidden_before(victim).is_some() => return Ok(()),
            Some(victim) => match self.files.take_name(victim).await {
                Taking::Removing(removing) => Some(removing),
                Taking::Hiding(hiding) => {
                    let _ = self.files.hide(cred, &dir, name, victim).await?;
                    drop(hiding);
                    caller::apart(self.files.remove_unneeded(victim)).await;
                    return Ok(());
                }
            },
            None => None,
        };
        // Whoever begins after its caller's death waits until what became of it is known here.
        let _taking_in = TakingIn::begin();
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
                let errno = self.namespace.is_directory_now(&dir, name);
                return Err(VfsError::caused(errno, &error, dir.ino));
            }
            Err(error) => return Err(self.namespace.refused_in(cred, &error, &dir, name).await),
        };
        if let Some(victim) = &victim {
            victim.lost_a_name();
        }
        drop(removing);
        self.namespace
            .named(&dir, name, &moved, DentryTarget::Negative, sent);
        self.files.confirm_names(cred, &dir);
        Ok(())
    }

    /// REMOVE of an empty directory: one round trip.
    pub async fn rmdir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
    ) -> VfsResult<()> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        let is_accepted = self.files.accepted_before().is_some();
        if is_accepted || self.files.accept_removal(cred, &dir, name, true) {
            return Ok(());
        }
        self.files.before_removal(&[&dir]).await;
        let mut victim = self.namespace.remembered_inode(&dir, name);
        (self.files)
            .before_removal_of_directory(victim.as_ref())
            .await;
        let mut waited = false;
        loop {
            // Whoever begins after its caller's death waits until what became of it is known here.
            let _taking_in = TakingIn::begin();
            let changing = self.namespace.changing(&dir);
            let sent = Instant::now();
            let removed = self.client.remove(cred, &dir.handle, name).await;
            match removed {
                Ok(moved) => {
                    self.namespace
                        .named(&dir, name, &moved, DentryTarget::Negative, sent);
                    self.files.confirm_names(cred, &dir);
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
                        victim = self.files.who_is(cred, &dir, name).await.ok().flatten();
                    }
                    let way = match &victim {
                        Some(victim) => self.files.make_way(cred, &dir, victim).await,
                        None => false,
                    };
                    if !way {
                        if let Some(victim) = &victim {
                            self.namespace.doubt(victim);
                        }
                        let errno = Errno(libc::ENOTEMPTY);
                        return Err(VfsError::caused(errno, &error, dir.ino));
                    }
                }
                Err(error) => {
                    // RFC 8881 §18.25.4 allows either for a directory with names
                    // in it; rmdir(2) says ENOTEMPTY.
                    if error.status() == Some(Status::EXIST) {
                        let errno = Errno(libc::ENOTEMPTY);
                        return Err(VfsError::caused(errno, &error, dir.ino));
                    }
                    return Err(self.namespace.refused_in(cred, &error, &dir, name).await);
                }
            }
        }
    }
}
