//! Asking the server what a directory holds: whether its names are still those that are known,
//! and page by page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Dirs;
use super::handle::DirHandle;
use super::listing::{All, Item, Page, Search, Source, Taken};
use crate::nfs::NfsError;
use crate::nfs::proto::reply::DirResult;
use crate::nfs::proto::status::Status;
use crate::nfs::proto::types::Verifier;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::attr::kind_of;
use crate::vfs::inode::dentry_cache::{Listed, Name};
use crate::vfs::inode::name_hash::hash_name;
use crate::vfs::types::{Errno, ROOT_INO, VfsError, VfsResult};

impl Dirs {
    /// Finds out what the directory holds now, for a handle that begins to list it. Says
    /// after how many edits its names were all known, if they are.
    pub(super) async fn begin(self: &Arc<Self>, handle: &Arc<DirHandle>) -> VfsResult<Option<u64>> {
        let (dir, cred) = (&handle.dir, &handle.cred);
        let changes = dir.names().lock().tracker.begun();
        handle.changes.store(changes, Ordering::Relaxed);
        handle.begun.store(false, Ordering::Relaxed);
        let mut known = self.known_names(cred, dir, handle.by).await?;
        *handle.source.lock() = Source::default();
        self.log_begin(handle);
        if known.is_none() {
            match self.fetch_page(handle, 0).await {
                Err(error) if error.is(libc::ESTALE) => return Err(error),
                Err(_) => {}
                Ok(()) => known = self.namespace.all_names(cred, dir),
            }
        }
        let Some((names, edits)) = known else {
            return Ok(None);
        };
        let source = Source::Known { names };
        self.log_known(handle, &source);
        *handle.source.lock() = source;
        Ok(Some(edits))
    }

    /// All names of the directory, if they are known, as the server has
    /// confirmed, or nobody else can know them.
    async fn known_names(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
        by: u32,
    ) -> VfsResult<Option<(Listed, u64)>> {
        // Nobody else has made a name there, as far as anybody can know.
        if self.namespace.private_to(cred, dir).is_some()
            && let Some(known) = self.namespace.all_names(cred, dir)
        {
            return Ok(Some(known));
        }
        if !dir.names().lock().are_sure_for(cred) {
            self.namespace.visits(dir, Instant::now());
            return Ok(None);
        }
        if let Some(known) = self.namespace.believed_listing(cred, dir) {
            return Ok(Some(known));
        }
        match self.namespace.confirm(cred, dir, by).await {
            Ok(()) => Ok(self.namespace.all_names(cred, dir)),
            Err(error) if error.is(libc::ESTALE) => Err(error),
            // For the listing to find.
            Err(_) => Ok(None),
        }
    }

    /// Asks for the page that follows, if half of this one has been given out.
    pub(super) fn ask_early(self: &Arc<Self>, handle: &Arc<DirHandle>, position: usize) {
        let mut source = handle.source.lock();
        let Source::Server(listing) = &mut *source else {
            return;
        };
        let Some((cookie, verifier)) = listing.wants_early(position) else {
            return;
        };
        let (dirs, of) = (Arc::clone(self), Arc::clone(handle));
        let page = async move {
            let tasks = &dirs.metrics.tasks;
            let page = async {
                tasks.point("ask_page");
                dirs.ask_page(&of, cookie, verifier).await
            };
            tasks.watched("ask_page", page).await
        };
        listing.asked_early(cookie, tokio::spawn(page));
    }

    async fn ask_page(&self, handle: &DirHandle, cookie: u64, verifier: Verifier) -> Page {
        let steps = handle.dir.names().lock().tracker.steps();
        let sent = Instant::now();
        let result = self
            .client
            .read_dir(&handle.cred, &handle.dir.handle, cookie, verifier, u32::MAX)
            .await;
        Page {
            sent,
            steps,
            result,
        }
    }

    /// Gets the page that follows the first `from` names.
    pub(super) async fn fetch_page(
        self: &Arc<Self>,
        handle: &Arc<DirHandle>,
        from: usize,
    ) -> VfsResult<()> {
        let mut search = Search::after(from);
        loop {
            let (cookie, verifier) = search.place(handle.source.lock().listing());
            let asked = self.early_or_now(handle, cookie, verifier).await;
            let sent = asked.sent;
            let (dir, page) = match asked.result {
                Ok(result) => result,
                Err(NfsError::Status(_, Status::BAD_COOKIE | Status::NOT_SAME))
                    if search.may_start_over(cookie, handle.source.lock().listing()) =>
                {
                    search.start_over(handle.source.lock().listing());
                    continue;
                }
                Err(error) => return Err(self.namespace.failed(&error, &handle.dir)),
            };
            self.namespace.learn(&handle.dir, &dir, sent);
            if self.namespace.is_removed(&dir) {
                return Err(Errno(libc::ESTALE).into());
            }
            let last = page.last;
            if last == Some(cookie) && !page.eof {
                let found = "the server's listing stands still";
                return Err(VfsError::found(found, Some(handle.dir.ino)));
            }
            let mut taken = self.take_entries(handle, page, (dir.change, sent), &search);
            if taken.items.is_empty() && !taken.eof {
                if search.goes_on(cookie, last, taken.verifier) {
                    continue;
                }
                let found = "the server's listing runs in circles";
                return Err(VfsError::found(found, Some(handle.dir.ino)));
            }
            (taken.is_first, taken.steps) = (cookie == 0, asked.steps);
            self.log_page(handle, search.from(), &taken);
            let most = self.namespace.most_names_of_one();
            let all = handle
                .source
                .lock()
                .listing()
                .take_page(search.from(), taken, most);
            if let Some(All {
                names,
                change,
                steps,
            }) = all
            {
                let (dir, cred) = (&handle.dir, &handle.cred);
                self.namespace
                    .install_listing(dir, names, cred, change, sent, steps);
            }
            return Ok(());
        }
    }

    /// The page that follows a cookie: as it was asked for early, or now.
    async fn early_or_now(&self, handle: &DirHandle, cookie: u64, verifier: Verifier) -> Page {
        let early = handle.source.lock().listing().take_early(cookie);
        if let Some(early) = early
            && let Some(page) = early.await.ok().and_then(Result::ok)
        {
            return page;
        }
        self.ask_page(handle, cookie, verifier).await
    }

    /// The names of a page that were not given out before, with what it says about the objects
    /// taken in; it was asked for at `sent`, and the directory was at `change`.
    fn take_entries(
        &self,
        handle: &DirHandle,
        page: DirResult,
        (change, sent): (u64, Instant),
        search: &Search,
    ) -> Taken {
        let mut items = VecDeque::with_capacity(page.entries.len());
        let mut given = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            let hash = hash_name(&entry.name);
            if search.skips(hash) {
                continue;
            }
            given.push((entry.cookie, hash));
            let attrs = &entry.attrs;
            let listed = attrs.handle.as_ref().and_then(|fh| {
                self.namespace
                    .listed(&handle.dir, &entry.name, fh, attrs, sent)
            });
            // A copy, so that the record does not live as long as the
            // longest-lived of its names.
            let (name, inode) = listed.map_or_else(
                || (Name::from(&entry.name[..]), None),
                |(name, inode)| (name, Some(inode)),
            );
            items.push_back(Item {
                name,
                ino: match self.namespace.ino_of(attrs) {
                    ROOT_INO => attrs.fileid,
                    ino => ino,
                },
                kind: kind_of(attrs.kind),
                inode,
                sent,
                dir_change: change,
            });
        }
        Taken {
            items,
            given,
            is_first: false,
            eof: page.eof,
            verifier: page.verifier,
            change,
            steps: 0,
        }
    }
}
