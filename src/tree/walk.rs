//! Listing, several directories a compound and many compounds at once.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::progress::Progress;
use crate::nfs::calls::ListFrom;
use crate::nfs::proto::reply::DirEntry;
use crate::nfs::proto::reply::DirResult;
use crate::nfs::proto::types::{FileHandle, FileType};
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;

/// Directories that are worked on at the same time by tasks of their own.
/// Further ones are done by the task that found them: a tree of any shape
/// takes bounded memory, and nobody waits for a permit while holding one.
pub(super) const SPARE: usize = 256;

/// What all tasks of a walk share.
#[derive(Debug)]
pub(super) struct Walker {
    pub(super) client: Arc<Client>,
    pub(super) cred: Arc<Credential>,
    pub(super) progress: Arc<Progress>,
    /// The file system that is not left.
    fsid: (u64, u64),
    /// Directories a compound, and names.
    pub(super) lists: usize,
    pub(super) removes: usize,
    spare: Arc<Semaphore>,
}

/// A directory on the way.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    /// From the top, for people.
    pub(super) path: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) handle: FileHandle,
    /// Seconds since 1970, from before the walk.
    pub(super) mtime: i64,
}

/// The beginning of a listing.
pub(super) type FirstPage = Result<DirResult, NfsError>;

impl Walker {
    pub(super) async fn new(
        client: Arc<Client>,
        cred: Arc<Credential>,
        progress: Arc<Progress>,
        fsid: (u64, u64),
    ) -> Result<Arc<Self>, NfsError> {
        Ok(Arc::new(Self {
            lists: client.lists_at_once().await?,
            removes: client.removes_at_once().await?,
            client,
            cred,
            progress,
            fsid,
            spare: Arc::new(Semaphore::new(SPARE)),
        }))
    }

    /// Whether an entry is a directory to go into; a directory of another file
    /// system is not, and says so.
    pub(super) fn enters(&self, path: &[u8], entry: &DirEntry) -> bool {
        if entry.attrs.kind != Some(FileType::Directory) {
            return false;
        }
        let same = entry.attrs.fsid == self.fsid;
        if !same {
            self.progress
                .failed(path, "another file system begins here; left alone");
        }
        same && entry.attrs.handle.is_some()
    }

    /// The first page of each of `dirs`, at most [`lists`](Self::lists).
    pub(super) async fn first_pages(&self, dirs: &[Dir]) -> Vec<FirstPage> {
        let mut pages = Vec::with_capacity(dirs.len());
        while pages.len() < dirs.len() {
            let rest: Vec<_> = dirs[pages.len()..]
                .iter()
                .map(|dir| (dir.handle.clone(), ListFrom::default()))
                .collect();
            match self.client.list_many(&self.cred, &rest).await {
                // The first is always there, so this comes to an end.
                Ok(found) => pages.extend(found.into_iter().map_while(|page| page)),
                Err(error) => pages.push(Err(error)),
            }
        }
        pages
    }

    /// The page after `page` of the same directory; `None` after the last.
    pub(super) async fn next_page(
        &self,
        dir: &FileHandle,
        page: &DirResult,
    ) -> Result<Option<DirResult>, NfsError> {
        let Some(last) = page.last.filter(|_| !page.eof) else {
            return Ok(None);
        };
        let (_, next) = self
            .client
            .read_dir(&self.cred, dir, last, page.verifier, u32::MAX)
            .await?;
        Ok(Some(next))
    }

    /// Runs `work` in a task of its own if there are not too many, else here.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        tasks: &mut JoinSet<T>,
        done: &mut Vec<T>,
        work: impl Future<Output = T> + Send + 'static,
    ) {
        match Arc::clone(&self.spare).try_acquire_owned() {
            Ok(permit) => {
                tasks.spawn(async move {
                    let result = work.await;
                    drop(permit);
                    result
                });
            }
            Err(_) => done.push(Box::pin(work).await),
        }
    }
}

/// What all the tasks came to.
pub(super) async fn collect<T: 'static>(mut tasks: JoinSet<T>, mut done: Vec<T>) -> Vec<T> {
    while let Some(result) = tasks.join_next().await {
        // A panic was reported by the hook; its part is missing.
        done.extend(result);
    }
    done
}
