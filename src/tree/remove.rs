//! Takes a tree away: `efs-fuse rm -r`.
//!
//! A directory is listed, what is in it removed while it is listed on, its
//! subdirectories emptied, and then removed by their names in it. A listing
//! that misses entries because others were removed meanwhile shows as a
//! directory that is not empty: it is then listed again.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::progress::{Progress, add};
use super::walk::{Dir, FirstPage, Walker, collect};
use super::{Top, joined};
use crate::nfs::proto::reply::DirEntry;
use crate::nfs::proto::status::Status;
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;

/// How often a directory that is not empty after all is listed again.
const AGAIN: usize = 5;
/// Compounds that one directory may have on their way before it lists on.
const AHEAD: usize = 64;

/// What to remove.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Only what was changed last before this time, in seconds since 1970.
    pub before: Option<i64>,
    /// Remove nothing: name what would be removed, directories after what is
    /// in them, with a `/` at the end.
    pub only_list: Option<mpsc::Sender<Vec<u8>>>,
}

/// Removes `top`, and everything in it if it is a directory. What could not be
/// removed is in `progress`. Returns whether nothing is left.
///
/// # Errors
/// The session is lost for good.
pub async fn remove(
    client: Arc<Client>,
    cred: Arc<Credential>,
    top: &Top,
    wanted: Wanted,
    progress: Arc<Progress>,
) -> Result<bool, NfsError> {
    let walker = Walker::new(client, cred, progress, top.attrs.fsid).await?;
    let remove = Arc::new(Remove { walker, wanted });
    let parent = Dir {
        path: Vec::new(),
        name: Vec::new(),
        handle: top.parent.clone(),
        mtime: 0,
    };
    let own = Object {
        name: top.name.clone(),
        size: if top.is_directory() {
            0
        } else {
            top.attrs.size
        },
    };
    if top.is_directory() {
        add(&remove.walker.progress.directories, 1);
        let dir = Dir {
            path: top.name.clone(),
            name: top.name.clone(),
            handle: top.handle.clone(),
            mtime: top.attrs.mtime.sec,
        };
        return Ok(remove.subdirectories(parent, vec![dir]).await);
    }
    if !remove.is_old(top.attrs.mtime.sec) {
        add(&remove.walker.progress.kept, 1);
        return Ok(false);
    }
    add(&remove.walker.progress.files, 1);
    Ok(remove.names(Arc::new(parent), vec![own]).await)
}

struct Remove {
    walker: Arc<Walker>,
    wanted: Wanted,
}

/// A name to remove, and what that frees.
#[derive(Debug, Clone)]
struct Object {
    name: Vec<u8>,
    size: u64,
}

impl AsRef<[u8]> for Object {
    fn as_ref(&self) -> &[u8] {
        &self.name
    }
}

/// A result that says whether everything that was asked for is gone.
type Future = Pin<Box<dyn std::future::Future<Output = bool> + Send>>;

impl Remove {
    fn is_old(&self, mtime: i64) -> bool {
        self.wanted.before.is_none_or(|before| mtime < before)
    }

    /// Empties these subdirectories of `parent`, and removes them.
    fn subdirectories(self: Arc<Self>, parent: Dir, dirs: Vec<Dir>) -> Future {
        Box::pin(async move {
            let parent = Arc::new(parent);
            let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
            for group in dirs.chunks(self.walker.lists) {
                let work = Arc::clone(&self).group(Arc::clone(&parent), group.to_vec());
                self.walker.run(&mut tasks, &mut done, work).await;
            }
            collect(tasks, done).await.into_iter().all(|gone| gone)
        })
    }

    /// As many directories as can be listed, and removed, at once.
    fn group(self: Arc<Self>, parent: Arc<Dir>, dirs: Vec<Dir>) -> Future {
        Box::pin(async move {
            let mut left = dirs;
            let mut all_gone = true;
            for round in 0..=AGAIN {
                let pages = self.walker.first_pages(&left).await;
                let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
                for (dir, page) in left.into_iter().zip(pages) {
                    let this = Arc::clone(&self);
                    let work = async move {
                        let emptied = this.empty(&dir, page).await;
                        (dir, emptied)
                    };
                    self.walker.run(&mut tasks, &mut done, work).await;
                }
                let mut emptied = Vec::new();
                for (dir, is_empty) in collect(tasks, done).await {
                    if is_empty && self.is_old(dir.mtime) {
                        emptied.push(dir);
                    } else {
                        if is_empty {
                            add(&self.walker.progress.kept, 1);
                        }
                        all_gone = false;
                        add(&self.walker.progress.finished, 1);
                    }
                }
                left = self
                    .remove_emptied(&parent, emptied, round == AGAIN, &mut all_gone)
                    .await;
                if left.is_empty() {
                    break;
                }
            }
            all_gone
        })
    }

    /// Removes directories; returns those that are not empty after all.
    async fn remove_emptied(
        &self,
        parent: &Dir,
        mut dirs: Vec<Dir>,
        last: bool,
        all_gone: &mut bool,
    ) -> Vec<Dir> {
        let progress = &self.walker.progress;
        let mut again = Vec::new();
        while !dirs.is_empty() {
            if let Some(list) = &self.wanted.only_list {
                for dir in &dirs {
                    // Nobody listens any more: the command is about to end.
                    let _ = list.send([&dir.path[..], b"/"].concat()).await;
                }
                add(&progress.finished, dirs.len() as u64);
                break;
            }
            let count = dirs.len().min(self.walker.removes);
            let names: Vec<&[u8]> = dirs[..count].iter().map(|dir| &dir.name[..]).collect();
            let outcome = self
                .walker
                .client
                .remove_many(&self.walker.cred, &parent.handle, &names)
                .await;
            let (gone, error) = match outcome {
                Ok(outcome) => outcome,
                Err(error) => (0, Some(error)),
            };
            add(&progress.removed, gone as u64);
            add(&progress.finished, gone as u64);
            dirs.drain(..gone);
            if let Some(error) = error {
                let dir = dirs.remove(0);
                if error.status() == Some(Status::NOTEMPTY) && !last {
                    again.push(dir);
                } else {
                    progress.failed(&dir.path, error);
                    add(&progress.finished, 1);
                    *all_gone = false;
                }
            }
        }
        again
    }

    /// Removes everything in `dir`; true if nothing was left.
    fn empty(self: Arc<Self>, dir: &Dir, first: FirstPage) -> Future {
        let dir = Arc::new(dir.clone());
        Box::pin(async move {
            let progress = Arc::clone(&self.walker.progress);
            let mut subdirectories = Vec::new();
            let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
            let mut all_gone = true;
            let mut page = first.map(Some);
            loop {
                let listed = match page {
                    Ok(Some(listed)) => listed,
                    Ok(None) => break,
                    Err(error) => {
                        progress.failed(&dir.path, error);
                        all_gone = false;
                        break;
                    }
                };
                let mut objects = Vec::new();
                for entry in &listed.entries {
                    match self.sort(&dir, entry) {
                        Sorted::Enter(subdirectory) => subdirectories.push(subdirectory),
                        Sorted::Remove(object) => objects.push(object),
                        Sorted::Leave => all_gone = false,
                    }
                }
                for batch in objects.chunks(self.walker.removes) {
                    let (this, dir, batch) = (Arc::clone(&self), Arc::clone(&dir), batch.to_vec());
                    let work = async move { this.names(dir, batch).await };
                    self.walker.run(&mut tasks, &mut done, work).await;
                    while tasks.len() >= AHEAD {
                        done.extend(tasks.join_next().await.and_then(Result::ok));
                    }
                }
                if progress.stopped() {
                    all_gone = false;
                    break;
                }
                page = self.walker.next_page(&dir.handle, &listed).await;
            }
            all_gone &= collect(tasks, done).await.into_iter().all(|gone| gone);
            if !subdirectories.is_empty() {
                let below = Arc::clone(&self).subdirectories((*dir).clone(), subdirectories);
                all_gone &= below.await;
            }
            all_gone && !progress.stopped()
        })
    }

    fn sort(&self, dir: &Dir, entry: &DirEntry) -> Sorted {
        let progress = &self.walker.progress;
        let path = joined(&dir.path, &entry.name);
        if let Some(error) = entry.attrs.error {
            progress.failed(&path, Status(error));
            return Sorted::Leave;
        }
        if entry.attrs.kind == Some(crate::nfs::proto::types::FileType::Directory) {
            return match (self.walker.enters(&path, entry), &entry.attrs.handle) {
                (true, Some(handle)) => {
                    add(&progress.directories, 1);
                    Sorted::Enter(Dir {
                        path,
                        name: entry.name.to_vec(),
                        handle: handle.clone(),
                        mtime: entry.attrs.mtime.sec,
                    })
                }
                _ => Sorted::Leave,
            };
        }
        if !self.is_old(entry.attrs.mtime.sec) {
            add(&progress.kept, 1);
            return Sorted::Leave;
        }
        add(&progress.files, 1);
        Sorted::Remove(Object {
            name: entry.name.to_vec(),
            // What has another name elsewhere frees nothing.
            size: if entry.attrs.nlink > 1 {
                0
            } else {
                entry.attrs.size
            },
        })
    }

    /// Removes names of `dir` that are no directories.
    async fn names(&self, dir: Arc<Dir>, objects: Vec<Object>) -> bool {
        let progress = &self.walker.progress;
        let mut rest = &objects[..];
        let mut all_gone = true;
        while !rest.is_empty() {
            if let Some(list) = &self.wanted.only_list {
                for object in rest {
                    add(&progress.bytes, object.size);
                    let path = joined(&dir.path, &object.name);
                    // As above.
                    let _ = list.send(path).await;
                }
                return true;
            }
            if progress.stopped() {
                return false;
            }
            let outcome = self
                .walker
                .client
                .remove_many(&self.walker.cred, &dir.handle, rest)
                .await;
            let (gone, error) = match outcome {
                Ok(outcome) => outcome,
                Err(error) => (0, Some(error)),
            };
            add(&progress.removed, gone as u64);
            let freed = rest[..gone].iter().map(|object| object.size).sum();
            add(&progress.bytes, freed);
            rest = &rest[gone..];
            if let (Some(error), [first, others @ ..]) = (error, rest) {
                progress.failed(&joined(&dir.path, &first.name), error);
                all_gone = false;
                rest = others;
            }
        }
        all_gone
    }
}

enum Sorted {
    Enter(Dir),
    Remove(Object),
    Leave,
}
