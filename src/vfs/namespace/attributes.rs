//! What replies say of attributes is taken in here, and what errors mean for what is known.

use std::sync::Arc;

use tokio::time::Instant;

use super::Namespace;
use super::changing::said;
use crate::nfs::NfsError;
use crate::nfs::calls::{DirChange, PrePost};
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::FileType;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::Seen;
use crate::vfs::inode::change_tracker::Verdict;
use crate::vfs::types::{Errno, FileKind, VfsError};

impl Namespace {
    /// What an error of the server is to the caller. An object that the server
    /// does not know any more is not looked for by name again. It becomes the cause
    /// of what the caller is told, and is logged where the kernel is answered.
    pub(in crate::vfs) fn failed(&self, error: &NfsError, inode: &Inode) -> VfsError {
        let errno = error.errno();
        match errno {
            // It may have been done.
            libc::EINTR if error.abandoned() == Some(true) => {
                inode.attr.lock().expire();
                if inode.kind == FileKind::Directory {
                    inode.names().lock().doubt();
                }
            }
            libc::ESTALE if !inode.is_stale() => {
                inode.mark_stale();
                self.names.stranger_was_here();
            }
            libc::EIO => self.metrics.set_last_error(error.to_string()),
            _ => {}
        }
        VfsError::caused(Errno(errno), error, inode.ino)
    }

    /// Takes in what a request sent at `sent` learned about `inode`.
    pub(in crate::vfs) fn learn(
        &self,
        inode: &Arc<Inode>,
        attrs: &Attributes,
        sent: Instant,
    ) -> Seen {
        let timeouts = self.inodes.timeouts();
        let now = Instant::now();
        let mut seen = self.with_attr_told(inode, |attr| attr.learn(attrs, sent, now, timeouts));
        if inode.kind == FileKind::Directory {
            // Late attributes are left alone; but names that were seen with them may be
            // newer than those known.
            let heard = inode.names().lock().observed(attrs.change, sent, now);
            if seen != Seen::Late || heard != Verdict::Same {
                seen = said(heard);
            }
            self.heed(inode, seen);
        }
        if self.is_removed(attrs) {
            inode.mark_stale();
        }
        seen
    }

    /// Attributes of a directory that was removed and that the server still has something
    /// to say about (nfs-ganesha does, for a while): it holds nothing, and answers
    /// ENOENT where others answer ESTALE.
    pub(in crate::vfs) fn is_removed(&self, attrs: &Attributes) -> bool {
        attrs.kind == Some(FileType::Directory) && self.says_removed(attrs.nlink)
    }

    /// The same of a directory's number of links.
    pub(super) fn says_removed(&self, nlink: u32) -> bool {
        // Else the server does not count links at all.
        nlink == 0 && self.inodes.root().attr.lock().stat().nlink > 0
    }

    /// Whether a directory in which something was not found is there itself: one round
    /// trip. ENOENT for a path is only the truth if it is.
    pub(super) async fn is_gone(&self, cred: &Arc<Credential>, dir: &Arc<Inode>) -> bool {
        let sent = Instant::now();
        match self.client.get_attrs(cred, &dir.handle).await {
            Ok(attrs) => {
                self.learn(dir, &attrs, sent);
                self.is_removed(&attrs)
            }
            Err(error) => self.failed(&error, dir).is(libc::ESTALE),
        }
    }

    /// What a change in these directories, which ended with `error`, is to the caller: after
    /// ESTALE the kernel walks to the directory once more.
    pub(in crate::vfs) async fn blamed(
        &self,
        cred: &Arc<Credential>,
        dirs: &[&Arc<Inode>],
        error: VfsError,
    ) -> VfsError {
        if error.is(libc::ENOENT) {
            for dir in dirs {
                if Box::pin(self.is_gone(cred, dir)).await {
                    return error.told_as(libc::ESTALE);
                }
            }
        }
        error
    }

    /// Takes in what a change of ours, sent at `sent`, came to.
    pub(in crate::vfs) fn moved(&self, inode: &Arc<Inode>, moved: &PrePost, sent: Instant) {
        if inode.kind == FileKind::Directory {
            let moved = DirChange {
                seen: moved.clone(),
                atomic: None,
            };
            return self.dir_moved(inode, &moved, sent);
        }
        let (now, timeouts) = (Instant::now(), self.inodes.timeouts());
        self.with_attr_told(inode, |attr| attr.moved(moved, sent, now, timeouts));
    }

    /// The same of a directory.
    pub(in crate::vfs) fn dir_moved(&self, dir: &Arc<Inode>, moved: &DirChange, sent: Instant) {
        let (now, timeouts) = (Instant::now(), self.inodes.timeouts());
        dir.attr.lock().moved(&moved.seen, sent, now, timeouts);
        let heard = dir.names().lock().moved(moved, sent, now);
        self.heed(dir, said(heard));
    }

    /// Takes in the attributes that came with an OPEN or a LOCK, after which
    /// nothing older may be seen. [`Seen::Foreign`] has moved the file's epoch
    /// by one.
    pub(in crate::vfs) fn learn_at_open(
        &self,
        inode: &Arc<Inode>,
        attrs: &Attributes,
        sent: Instant,
    ) -> Seen {
        let (now, timeouts) = (Instant::now(), self.inodes.timeouts());
        self.with_attr_told(inode, |attr| attr.learn_at_open(attrs, sent, now, timeouts))
    }
}
