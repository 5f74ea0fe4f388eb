//! The hidden names (`.nfs…`, see [`silly`](super::silly)) of this mount are no names
//! to its programs: no listing shows them, and a directory that holds nothing else is
//! empty.
//!
//! A directory that is to be removed, or replaced by a rename, is made empty for the server
//! by moving them to the directory above; who removes a whole tree goes that way up with
//! them. Moved they are in the name of who removes the directory, or if that may not, of who removed the
//! file. Each move is whole: it goes on when its caller is killed, and the file's record
//! ([`SillyName`]) says where its name is, also for a close meanwhile, which waits for the
//! end of the move (`FileInner::is_being_replaced`). A move that fails ends the attempt; what was
//! moved before stays where it is, out of sight.
//!
//! Names of other hosts, and of daemons before this one, are names like others. Who looks up
//! a hidden name finds it.
//!
//! [`Ours`] is owned by its own lock, with which no other is taken. Bounded by the files
//! that are open.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Files;
use crate::nfs::NfsError;
use crate::nfs::proto::status::Status;
use crate::quoting;
use crate::rpc::auth::Credential;
use crate::rpc::caller;
use crate::vfs::inode::Inode;
use crate::vfs::inode::SillyName;
use crate::vfs::inode::dentry_cache::DentryTarget;
use crate::vfs::types::Ino;

/// So often is a directory listed whose hidden names are being removed as their files
/// are closed.
const LOOKS: usize = 4;

/// Hidden names of a directory, with their files.
type HiddenNames = HashMap<Box<[u8]>, Arc<Inode>>;

/// The hidden names that there are, or may be: by directory.
#[derive(Debug, Default)]
pub(in crate::vfs) struct Ours(Mutex<HashMap<Ino, HiddenNames>>);

impl Ours {
    /// A name is about to be made.
    pub(in crate::vfs) fn add(&self, dir: &Inode, name: &[u8], file: &Arc<Inode>) {
        let mut ours = self.0.lock();
        let names = ours.entry(dir.ino).or_default();
        names.insert(name.into(), Arc::clone(file));
    }

    /// It was not made, is gone, or will stay.
    pub(in crate::vfs) fn remove(&self, dir: &Inode, name: &[u8]) {
        let mut ours = self.0.lock();
        if let Some(names) = ours.get_mut(&dir.ino) {
            names.remove(name);
            if names.is_empty() {
                ours.remove(&dir.ino);
            }
        }
    }

    /// The file that is kept under this name.
    pub(in crate::vfs) fn file(&self, dir: &Inode, name: &[u8]) -> Option<Arc<Inode>> {
        self.0.lock().get(&dir.ino)?.get(name).map(Arc::clone)
    }

    /// Whether programs are not to see this name.
    pub(in crate::vfs) fn has(&self, dir: &Inode, name: &[u8]) -> bool {
        name.starts_with(b".nfs") && self.file(dir, name).is_some()
    }

    /// The files that are kept under any.
    pub(super) fn files(&self) -> Vec<Arc<Inode>> {
        let ours = self.0.lock();
        ours.values()
            .flat_map(HashMap::values)
            .map(Arc::clone)
            .collect()
    }

    fn any_in(&self, dir: &Inode) -> bool {
        self.0.lock().contains_key(&dir.ino)
    }
}

/// What became of a hidden name.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Moved,
    /// Its file was closed.
    Ends,
    Stays,
}

impl Files {
    /// The server refuses to remove `dir`, in `above`, because of names in it. True if those
    /// were hidden ones and are gone: the removal is worth another try.
    pub(in crate::vfs) async fn make_way(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        above: &Arc<Inode>,
        dir: &Arc<Inode>,
    ) -> bool {
        let mut way = self.silly_removals_end(dir.ino).await;
        for _ in 0..LOOKS {
            if !self.silly.ours.any_in(dir) {
                return way;
            }
            let Some(names) = self.only_hidden(cred, dir).await else {
                tracing::debug!(ino = dir.ino, "it holds other names than hidden ones");
                return false;
            };
            way = true;
            let mut ends = false;
            for (name, file) in names {
                let moves = self.move_hidden(cred, (dir, &name), above, &file);
                let fate = caller::apart(moves).await;
                tracing::debug!(ino = dir.ino, name = %quoting::name(&name), ?fate, "a hidden name is in the way");
                match fate {
                    Fate::Moved => {}
                    Fate::Ends => ends = true,
                    Fate::Stays => return false,
                }
            }
            if !ends {
                return true;
            }
            self.silly_removals_end(dir.ino).await;
        }
        way
    }

    /// The names in a directory, if all of them are hidden ones of this mount: one round
    /// trip.
    async fn only_hidden(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
    ) -> Option<Vec<(Box<[u8]>, Arc<Inode>)>> {
        let listing = self
            .client
            .read_dir(cred, &dir.handle, 0, [0; 8], u32::MAX)
            .await;
        let (_, page) = listing.ok().filter(|(_, page)| page.eof)?;
        let names = page.entries.iter().map(|entry| &entry.name[..]);
        names
            .map(|name| Some((name.into(), self.silly.ours.file(dir, name)?)))
            .collect()
    }

    async fn move_hidden(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        (from, name): (&Arc<Inode>, &[u8]),
        to: &Arc<Inode>,
        file: &Arc<Inode>,
    ) -> Fate {
        let silly = {
            let Some(state) = file.opened() else {
                return Fate::Stays;
            };
            let mut inner = state.lock();
            let is_it = |silly: &SillyName| Arc::ptr_eq(&silly.dir, from) && silly.name == name;
            let known = inner.silly().cloned();
            let was = known.as_ref().and_then(SillyName::as_it_was);
            match known.into_iter().chain(was).find(is_it) {
                // Also while the name is being made beside another: nobody knows yet
                // whether it stays.
                Some(_) if inner.is_being_replaced() => return Fate::Stays,
                Some(silly) => {
                    inner.begin_replacing();
                    silly
                }
                None => return Fate::Ends,
            }
        };
        let mut fate = Fate::Stays;
        let first = silly.first.as_ref().unwrap_or(&silly.cred);
        for by in [cred, first] {
            match self.moved_by(by, &silly, to, file).await {
                Ok(moved) => {
                    self.set_silly(file, moved);
                    fate = Fate::Moved;
                    break;
                }
                Err(NfsError::Status(_, Status::ACCESS | Status::PERM)) => {}
                Err(error) => {
                    tracing::info!(dir = from.ino, "a hidden name cannot be moved: {error}");
                    break;
                }
            }
        }
        self.replaced(file).await;
        fate
    }

    /// RENAME of a hidden name into the directory above, under a name that is free there:
    /// two round trips.
    async fn moved_by(
        self: &Arc<Self>,
        by: &Arc<Credential>,
        silly: &SillyName,
        to: &Arc<Inode>,
        file: &Arc<Inode>,
    ) -> Result<SillyName, NfsError> {
        let mut attempt = 0;
        let name = loop {
            let name = self.hidden_name(file, attempt).into_bytes();
            attempt += 1;
            // RENAME would replace what has that name.
            let found = self.client.lookup(by, &to.handle, &name).await?;
            let is_free = found.object.is_none_or(|(handle, _)| {
                // An earlier run of this operation has moved it already.
                caller::request().resent && handle == silly.file
            });
            if is_free {
                break name;
            }
        };
        let from = &silly.dir;
        self.silly.ours.add(to, &name, file);
        let mut moved = SillyName {
            dir: Arc::clone(to),
            name: name.clone(),
            file: silly.file.clone(),
            cred: Arc::clone(by),
            first: Some(Arc::clone(silly.first.as_ref().unwrap_or(&silly.cred))),
            was: Some((Arc::clone(from), silly.name.clone())),
        };
        self.log_silly(file, &moved);
        let _changing = (self.namespace.changing(from), self.namespace.changing(to));
        let sent = Instant::now();
        let renamed = self
            .client
            .rename_hidden(
                by,
                (&from.handle, &silly.name),
                (&to.handle, &name),
                &silly.file,
            )
            .await;
        let (left, entered) = match renamed {
            Ok(renamed) => {
                let renamed = renamed.unwrap_or_default();
                (renamed.left, renamed.entered)
            }
            Err(error) => {
                self.silly.ours.remove(to, &name);
                self.log_silly(file, silly);
                return Err(error);
            }
        };
        self.namespace
            .named(from, &silly.name, &left, DentryTarget::Negative, sent);
        let target = DentryTarget::Inode(Arc::clone(file));
        self.namespace.named(to, &name, &entered, target, sent);
        self.silly.ours.remove(from, &silly.name);
        moved.was = None;
        Ok(moved)
    }
}
