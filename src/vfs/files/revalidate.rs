//! Pages of files that stay open: the kernel reads them without asking anybody, so
//! this host asks for it.
//!
//! With FUSE_EXPLICIT_INVAL_DATA the kernel drops pages when it is told to. At OPEN and LOCK
//! it is; but a program that keeps a file open and reads it again and again is answered
//! from pages, and no request comes here. What another host has written over in place would
//! never be seen. Linux's NFS client asks for the attributes before such a read once
//! they are too old (nfs_revalidate_mapping). Here they are asked for when they are, whether or
//! not anybody reads: GETATTR, seven files in a round trip, for each file that is open for
//! reading, again after `acregmin` and, as long as nobody else changes it, after twice the
//! time of the last, up to `acregmax`. If it has moved, the kernel is told
//! ([`KernelCache::inval_inode`](crate::vfs::types::KernelCache)).
//!
//! Bound: what is read is at most `acregmax` old, and a quarter of it, 1 s at most. With
//! `acregmax=0` (`noac`) nothing may be believed: reads go past the pages instead
//! (`Opened::direct_io`).
//!
//! A kernel's thread that was given a new size cuts the pages at that size some time later,
//! without a lock (fuse_change_attributes): if it is not scheduled in between, and the file grows
//! once more, it clears bytes of a page that was read since. So when a file has been left
//! alone by others from one look to the next, its pages are dropped once more
//! ([`Files::drop_cut_pages`]): two looks after the change, that is 2 s at most.
//!
//! One task, which owns no state: what is due is read from the table of open files each
//! time. It holds no lock while it waits for the server. While the server does not answer
//! ([`PATIENCE`]), what is too old is not to be read: the pages go, and a read waits for the
//! server as the kernel's client does.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Files;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::types::Ino;

/// How often it is looked which files are due, at most and at least.
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What is due is believed for so long while its GETATTR is under way.
const PATIENCE: Duration = Duration::from_millis(250);

impl Files {
    /// Begins to ask for the attributes of open files, for the life of the mount.
    pub(in crate::vfs) fn revalidate_open_files(self: &Arc<Self>) {
        if !self.believes_data() {
            return;
        }
        let longest = self.config.reg_max;
        let every = (longest / 4).clamp(LOOKS.0, LOOKS.1);
        let weak = Arc::downgrade(self);
        let _task = self.metrics.tasks.restarted("revalidate", move || {
            let weak = weak.clone();
            async move {
                loop {
                    tokio::time::sleep(every).await;
                    let Some(files) = weak.upgrade() else { return };
                    files.metrics.tasks.point("revalidate");
                    files.drop_cut_pages();
                    files.revalidate_due().await;
                }
            }
        });
    }

    /// Whether data may be kept at all: where attributes may not be believed, each read(2)
    /// asks the server.
    pub(super) fn believes_data(&self) -> bool {
        !self.config.reg_max.is_zero()
    }

    /// Asks for the attributes of every file whose pages may be read and whose attributes
    /// are too old.
    pub(in crate::vfs) async fn revalidate_due(self: &Arc<Self>) {
        for (cred, due) in self.due(Instant::now()) {
            let mut due = &due[..];
            while !due.is_empty() {
                let handles: Vec<_> = due.iter().map(|inode| &inode.handle).collect();
                let sent = Instant::now();
                let mut asked = pin!(self.client.get_attrs_of(&cred, &handles));
                let answer = match tokio::time::timeout(PATIENCE, &mut asked).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        due.iter()
                            .for_each(|inode| self.namespace.lose_pages(inode));
                        asked.await
                    }
                };
                let answered = match answer {
                    Ok(all) => {
                        for (inode, attrs) in due.iter().zip(&all) {
                            self.namespace.learn(inode, attrs, sent);
                        }
                        all.len().max(1)
                    }
                    // The first one's; who reads it hears of it himself.
                    Err(error) => {
                        self.namespace.failed(&error, &due[0]);
                        1
                    }
                };
                due = &due[answered..];
            }
        }
    }

    /// Has the kernel drop the pages of files that others have changed, and not since the
    /// last look, for a second time: the first came before it heard of the new size.
    fn drop_cut_pages(&self) {
        for file in &self.handles {
            let inode = &file.inode;
            let Some(state) = inode.opened().filter(|_| file.reads_pages) else {
                continue;
            };
            let mut inner = state.lock();
            let foreign = inode.attr.lock().foreign();
            if inner.may_be_cut_late(foreign) {
                self.namespace.inval_inode(inode.ino);
            }
        }
    }

    /// What is due now, by whose open may ask for it. Each file once.
    fn due(self: &Arc<Self>, now: Instant) -> Vec<(Arc<Credential>, Vec<Arc<Inode>>)> {
        let mut seen: HashSet<Ino> = HashSet::new();
        let mut due: Vec<(Arc<Credential>, Vec<Arc<Inode>>)> = Vec::new();
        for file in &self.handles {
            let inode = &file.inode;
            if !file.reads_pages
                || inode.is_stale()
                || !inode.attr.lock().ttl(now).is_zero()
                || !seen.insert(inode.ino)
            {
                continue;
            }
            // What this host is writing brings attributes along: now.
            if inode.is_changing() {
                self.end_linger(inode);
                continue;
            }
            let cred = &file.open.cred;
            match due.iter_mut().find(|(known, _)| **known == **cred) {
                Some((_, inodes)) => inodes.push(Arc::clone(inode)),
                None => due.push((Arc::clone(cred), vec![Arc::clone(inode)])),
            }
        }
        due
    }
}
