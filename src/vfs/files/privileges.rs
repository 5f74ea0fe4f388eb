//! Set-id rights: what a write or a new size takes from a file, in whose name.

use std::sync::Arc;

use tokio::time::Instant;

use super::Files;
use super::deferred_setattr::new_attributes;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::types::{SetAttr, Stat, VfsResult};

impl Files {
    /// The kernel takes setuid and setgid rights from a file that somebody who
    /// does not own it writes to. The server would refuse that user the change,
    /// so it is made as the owner: a mode that only loses these bits widens
    /// nobody's rights. Where the kernel does not check, a chmod(2) of a stranger looks the
    /// same: so only for who has the file open for writing, and might take them by that.
    pub(in crate::vfs) fn drops_privileges(
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
    pub(in crate::vfs) fn split_off_rights(
        inode: &Inode,
        cred: &Credential,
        set: SetAttr,
    ) -> (SetAttr, Option<u32>) {
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
    pub(in crate::vfs) async fn lose_rights(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        mode: Option<u32>,
        rights: u32,
    ) -> VfsResult<()> {
        let (owner, known) = {
            let attr = inode.attr.lock();
            (owner_of(attr.stat()), attr.stat().perm.into())
        };
        let mode = mode.unwrap_or(known) & 0o7777;
        if mode & rights == 0 {
            return Ok(());
        }
        self.set_mode_as(&owner, inode, mode & !rights).await
    }

    /// SETATTR of the mode, in the name of the file's owner.
    async fn set_mode_as(
        self: &Arc<Self>,
        owner: &Credential,
        inode: &Arc<Inode>,
        mode: u32,
    ) -> VfsResult<()> {
        let new = new_attributes(&SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        });
        let sent = Instant::now();
        let moved = self
            .client
            .set_attrs(owner, &inode.handle, None, &new)
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
    ) -> VfsResult<()> {
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
        let _changing = self.namespace.changing(inode);
        self.set_mode_as(&owner, inode, after).await?;
        // execve(2) goes by what the kernel knows.
        self.namespace.inval_attr(inode.ino);
        Ok(())
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
