//! Making names: mknod, mkdir, symlink, link.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::nfs::calls::{HowToOpen, Made};
use crate::nfs::proto::attrs::NewAttributes;
use crate::nfs::proto::ops::{ACCESS_WRITE, Make};
use crate::rpc::auth::Credential;
use crate::rpc::caller::TakingIn;
use crate::vfs::Vfs;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::namespace::names::check_name;
use crate::vfs::types::{Entry, Errno, FileKind, Ino, VfsResult};

impl Vfs {
    async fn make(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        make: Make<'_>,
        mode: Option<u32>,
    ) -> VfsResult<Entry> {
        check_name(name)?;
        let dir = self.namespace.inode(parent)?;
        if let Some(Some(inode)) = self.files.accepted_before() {
            return Ok(self.namespace.entry(&inode, &dir));
        }
        let promised = match make {
            Make::Directory => {
                let mode = mode.unwrap_or_default();
                self.files.promise_directory(cred, &dir, name, mode)
            }
            Make::Symlink(text) => self.files.promise_symlink(cred, &dir, name, text),
            _ => None,
        };
        if let Some(inode) = promised {
            return Ok(self.namespace.entry(&inode, &dir));
        }
        let new = NewAttributes {
            mode,
            ..NewAttributes::default()
        };
        // Whoever begins after its caller's death waits until what became of it is known here.
        let _taking_in = TakingIn::begin();
        let _changing = self.namespace.changing(&dir);
        let sent = Instant::now();
        let made = self.client.make(cred, &dir.handle, name, make, &new).await;
        let made = match made {
            Ok(made) => made,
            Err(error) => return Err(self.namespace.refused_in(cred, &error, &dir, name).await),
        };
        let inode = self.namespace.made(&dir, name, &made, sent);
        match make {
            Make::Directory if made.dir.seen.before.is_some() => {
                self.namespace
                    .install_empty_listing(&inode, &made.attrs, cred, sent);
                if self.files.is_ahead_allowed() {
                    self.namespace.made_private(&inode, cred);
                }
            }
            Make::Symlink(text) => {
                let _ = inode.link.set(Box::new(Bytes::copy_from_slice(text)));
            }
            _ => {}
        }
        Ok(self.namespace.entry(&inode, &dir))
    }

    /// CREATE of a FIFO, a socket or a device (which EFS refuses), or of a
    /// regular file by OPEN and CLOSE.
    pub async fn mknod(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> VfsResult<Entry> {
        let major = (rdev >> 8) & 0xfff;
        let minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
        let make = match mode & libc::S_IFMT {
            libc::S_IFIFO => Make::Fifo,
            libc::S_IFSOCK => Make::Socket,
            libc::S_IFBLK => Make::Block(major, minor),
            libc::S_IFCHR => Make::Char(major, minor),
            libc::S_IFREG | 0 => {
                check_name(name)?;
                let dir = self.namespace.inode(parent)?;
                // Whoever begins after its caller's death waits until what became of it is known here.
                let _taking_in = TakingIn::begin();
                let _changing = self.namespace.changing(&dir);
                let sent = Instant::now();
                let how = HowToOpen::Exclusive;
                let file = self
                    .client
                    .create(cred, &dir.handle, name, ACCESS_WRITE, mode & 0o7777, how)
                    .await;
                let file = match file {
                    Ok(file) => file,
                    Err(error) => {
                        return Err(self.namespace.refused_in(cred, &error, &dir, name).await);
                    }
                };
                let made = Made {
                    handle: file.open.handle.clone(),
                    attrs: file.attrs,
                    dir: file.dir,
                };
                let inode = self.namespace.made(&dir, name, &made, sent);
                self.client.close_soon(&file.open);
                return Ok(self.namespace.entry(&inode, &dir));
            }
            _ => return Err(Errno(libc::EINVAL).into()),
        };
        self.make(cred, parent, name, make, Some(mode & 0o7777))
            .await
    }

    /// CREATE of a directory.
    pub async fn mkdir(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> VfsResult<Entry> {
        self.make(cred, parent, name, Make::Directory, Some(mode & 0o7777))
            .await
    }

    /// CREATE of a symbolic link.
    pub async fn symlink(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> VfsResult<Entry> {
        self.make(cred, parent, name, Make::Symlink(target), Some(0o777))
            .await
    }

    /// LINK.
    pub async fn link(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        ino: Ino,
        new_parent: Ino,
        new_name: &[u8],
    ) -> VfsResult<Entry> {
        check_name(new_name)?;
        let inode = self.namespace.inode(ino)?;
        let dir = self.namespace.inode(new_parent)?;
        if inode.kind == FileKind::Directory {
            return Err(Errno(libc::EPERM).into());
        }
        self.files.before_naming(&inode).await;
        // Whoever begins after its caller's death waits until what became of it is known here.
        let _taking_in = TakingIn::begin();
        let _changing = self.namespace.changing(&dir);
        let sent = Instant::now();
        let linked = self
            .client
            .link(cred, &inode.handle, &dir.handle, new_name)
            .await;
        let (own, moved) = match linked {
            Ok(linked) => linked,
            Err(error) => {
                let error = self.namespace.failed(&error, &inode);
                if error.is(libc::EEXIST) {
                    self.namespace.heed_refusal(error.errno(), &dir, new_name);
                }
                return Err(self.namespace.blamed(cred, &[&dir], error).await);
            }
        };
        self.namespace.moved(&inode, &own, sent);
        let target = DentryTarget::Inode(Arc::clone(&inode));
        self.namespace.named(&dir, new_name, &moved, target, sent);
        if !self.namespace.look_up_listed(&inode) {
            return Err(Errno(libc::ESTALE).into());
        }
        Ok(self.namespace.entry(&inode, &dir))
    }
}
