//! What a tree takes: `efs-fuse du`.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::progress::{Progress, add};
use super::walk::{Dir, FirstPage, Walker, collect};
use super::{Top, joined};
use crate::nfs::proto::attrs::{Attributes, number};
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;

/// What there is in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Directories, the top one included.
    pub directories: u64,
    /// Everything else; a file with several names in the tree is one.
    pub files: u64,
    /// Bytes of storage used, as the server says.
    pub used: u64,
    /// Bytes that reading would give.
    pub size: u64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.directories += other.directories;
        self.files += other.files;
        self.used += other.used;
        self.size += other.size;
    }

    fn of(attrs: &Attributes, is_directory: bool) -> Self {
        let used = if attrs.present.has(number::SPACE_USED) {
            attrs.space_used
        } else {
            attrs.size
        };
        Self {
            directories: u64::from(is_directory),
            files: u64::from(!is_directory),
            used,
            size: if is_directory { 0 } else { attrs.size },
        }
    }
}

/// A tree, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// From the top; empty for the top itself.
    pub path: Vec<u8>,
    /// Everything at or below it.
    pub totals: Totals,
}

/// Measures `top`, and each directory at most `depth` below it. The top comes
/// last. What could not be read is in `progress`.
///
/// # Errors
/// The session is lost for good.
pub async fn measure(
    client: Arc<Client>,
    cred: Arc<Credential>,
    top: &Top,
    depth: usize,
    progress: Arc<Progress>,
) -> Result<Vec<Measured>, NfsError> {
    let own = Totals::of(&top.attrs, top.is_directory());
    let mut found = Vec::new();
    let mut totals = own;
    if top.is_directory() {
        let walker = Walker::new(client, cred, progress, top.attrs.fsid).await?;
        let measure = Arc::new(Measure {
            walker,
            depth,
            several_names: Mutex::default(),
            found: Mutex::default(),
        });
        add(&measure.walker.progress.directories, 1);
        let dir = Dir {
            path: Vec::new(),
            name: Vec::new(),
            handle: top.handle.clone(),
            mtime: 0,
        };
        totals.add(Arc::clone(&measure).group(vec![dir], 1).await);
        found = std::mem::take(&mut *measure.found.lock());
    }
    found.sort_by(|a, b| (b.totals.used, &a.path).cmp(&(a.totals.used, &b.path)));
    found.push(Measured {
        path: Vec::new(),
        totals,
    });
    Ok(found)
}

struct Measure {
    walker: Arc<Walker>,
    depth: usize,
    /// File ids of what has several names: counted once.
    several_names: Mutex<HashSet<u64>>,
    found: Mutex<Vec<Measured>>,
}

type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

impl Measure {
    /// What is below these directories, which are `level` below the top.
    fn group(self: Arc<Self>, dirs: Vec<Dir>, level: usize) -> Future<Totals> {
        Box::pin(async move {
            let pages = self.walker.first_pages(&dirs).await;
            let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
            for (dir, page) in dirs.into_iter().zip(pages) {
                let work = Arc::clone(&self).directory(dir, page, level);
                self.walker.run(&mut tasks, &mut done, work).await;
            }
            sum(collect(tasks, done).await)
        })
    }

    fn directory(self: Arc<Self>, dir: Dir, first: FirstPage, level: usize) -> Future<Totals> {
        Box::pin(async move {
            let mut totals = Totals::default();
            let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
            let mut group = Vec::new();
            let mut own = Vec::new();
            let mut page = first.map(Some);
            loop {
                let listed = match page {
                    Ok(Some(listed)) => listed,
                    Ok(None) => break,
                    Err(error) => {
                        self.walker.progress.failed(&dir.path, error);
                        break;
                    }
                };
                for entry in &listed.entries {
                    let path = joined(&dir.path, &entry.name);
                    if let Some(error) = entry.attrs.error {
                        let status = crate::nfs::proto::status::Status(error);
                        self.walker.progress.failed(&path, status);
                        continue;
                    }
                    if !self.walker.enters(&path, entry) {
                        totals.add(self.file(&entry.attrs));
                        continue;
                    }
                    let Some(handle) = entry.attrs.handle.clone() else {
                        continue;
                    };
                    add(&self.walker.progress.directories, 1);
                    let of = Totals::of(&entry.attrs, true);
                    own.push(of);
                    group.push(Dir {
                        path,
                        name: entry.name.to_vec(),
                        handle,
                        mtime: 0,
                    });
                    if group.len() == self.walker.lists {
                        let work = Arc::clone(&self).group(std::mem::take(&mut group), level + 1);
                        self.walker.run(&mut tasks, &mut done, work).await;
                    }
                }
                page = if self.walker.progress.stopped() {
                    Ok(None)
                } else {
                    self.walker.next_page(&dir.handle, &listed).await
                };
            }
            if !group.is_empty() {
                let work = Arc::clone(&self).group(group, level + 1);
                self.walker.run(&mut tasks, &mut done, work).await;
            }
            own.into_iter().for_each(|of| totals.add(of));
            totals.add(sum(collect(tasks, done).await));
            add(&self.walker.progress.finished, 1);
            if level > 1 && level - 1 <= self.depth {
                let path = dir.path;
                self.found.lock().push(Measured { path, totals });
            }
            totals
        })
    }

    fn file(&self, attrs: &Attributes) -> Totals {
        if attrs.nlink > 1 && !self.several_names.lock().insert(attrs.fileid) {
            return Totals::default();
        }
        let totals = Totals::of(attrs, false);
        add(&self.walker.progress.files, 1);
        add(&self.walker.progress.bytes, totals.used);
        totals
    }
}

fn sum(all: Vec<Totals>) -> Totals {
    all.into_iter().fold(Totals::default(), |mut sum, part| {
        sum.add(part);
        sum
    })
}
