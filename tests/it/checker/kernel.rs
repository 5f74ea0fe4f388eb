//! The kernel's part in memory: a process's call by path or descriptor, as the
//! operations that the kernel would ask the vfs for. After ESTALE the path is walked once
//! more, and every name is asked for.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use efs_fuse::nfs::Client;
use efs_fuse::rpc::caller::{self, Caller};
use efs_fuse::vfs::types::{
    Entry, Errno, FileKind, Ino, LockRange, Lookup, Opened, ROOT_INO, SetAttr, Stat, VfsResult,
    Waiting, WriteFlags,
};
use efs_fuse::vfs::{Timeouts, VfsConfig};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::history::{Answer, Call, Fd, How, Kind, Name, Path, Seen, Token};
use super::pages::Pages;
use super::real::kernels;
use crate::peer::Peer;
use crate::protocol::rig::{self, Mount, Open};

/// Bytes of a slot: the token, again and again. With the kernel's client among the hosts it is a
/// page: of one that it has read that client writes the whole (nfs_can_extend_write), and what
/// others append to it are zeros there.
pub(super) fn slot_size() -> usize {
    static BYTES: LazyLock<usize> = LazyLock::new(|| match kernels().is_empty() {
        true => 16,
        false => 4096,
    });
    *BYTES
}

/// More than any file has: a reader is shown the end.
pub(super) const SLOTS: usize = 64;

/// One host.
pub(super) struct Kernel {
    /// `None` while another process is about to go on with it.
    mount: Mutex<Option<Arc<Mount>>>,
    /// The directory that paths begin in.
    top: Ino,
    /// How another process goes on with it.
    behaves: fn(Timeouts) -> VfsConfig,
    /// Read by the calls under way, written by who replaces the mount.
    calls: Arc<RwLock<()>>,
    files: Mutex<HashMap<Fd, Open>>,
    /// Of each directory its `i_rwsem`: what changes its names, or takes it away, does so alone, and
    /// nobody asks for one meanwhile.
    dirs: Mutex<HashMap<Ino, Arc<RwLock<()>>>>,
    /// With `nocto`.
    pages: Option<Arc<Pages>>,
    /// Files that are read past them.
    direct: Mutex<HashSet<u64>>,
}

type Said = Result<Answer, i32>;

fn errno<T>(result: Result<T, impl Into<Errno>>) -> Result<T, i32> {
    result.map_err(|error| error.into().raw())
}

fn is_there(entry: Option<Entry>) -> Result<Entry, i32> {
    entry.ok_or(libc::ENOENT)
}

pub(super) fn filled(token: Token) -> Vec<u8> {
    token.to_le_bytes().repeat(slot_size() / 4)
}

/// The tokens of a file's bytes; what is no token of the checker's is -1.
pub(super) fn tokens(data: &[u8]) -> Vec<Token> {
    let token = |slot: &[u8]| {
        let words: Vec<_> = slot.chunks(4).collect();
        let same = slot.len() == slot_size() && words.iter().all(|word| word == &words[0]);
        match same {
            true => Token::from_le_bytes(words[0].try_into().unwrap_or_default()),
            false => Token::MAX,
        }
    };
    data.chunks(slot_size()).map(token).collect()
}

pub(super) fn link_text(token: Token) -> String {
    format!("to-{token}")
}

pub(super) fn link_token(text: &[u8]) -> Token {
    let text = std::str::from_utf8(text).unwrap_or_default();
    (text.strip_prefix("to-"))
        .and_then(|token| token.parse().ok())
        .unwrap_or(Token::MAX)
}

pub(super) fn seen(stat: &Stat) -> Seen {
    let kind = match stat.kind {
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink => Kind::Symlink,
        _ => Kind::File,
    };
    Seen {
        kind,
        mode: stat.perm,
        links: stat.nlink,
        size: match kind {
            Kind::File => stat.size.div_ceil(slot_size() as u64) as u32,
            _ => 0,
        },
    }
}

impl Kernel {
    pub(super) fn new(mount: Mount) -> Self {
        Self {
            mount: Mutex::new(Some(Arc::new(mount))),
            top: ROOT_INO,
            behaves: rig::plain,
            calls: Arc::default(),
            files: Mutex::default(),
            dirs: Mutex::default(),
            pages: None,
            direct: Mutex::default(),
        }
    }

    /// One with `writeback`, whose paths begin in that directory.
    pub(super) fn ahead(mount: Mount, top: Ino) -> Self {
        Self {
            top,
            behaves: rig::ahead,
            ..Self::new(mount)
        }
    }

    /// It has `writeback`.
    pub(super) fn is_ahead(&self) -> bool {
        self.top != ROOT_INO
    }

    /// One with `nocto`, which keeps pages.
    pub(super) fn nocto(client: Arc<Client>, peer: &Arc<Peer>, timeouts: Timeouts) -> Self {
        let pages = Arc::new(Pages::default());
        let mount = Mount::behaving(&client, peer, rig::nocto(timeouts));
        mount.vfs.set_kernel(Arc::clone(&pages) as _);
        Self {
            pages: Some(pages),
            behaves: rig::nocto,
            ..Self::new(mount)
        }
    }

    /// This host changes the file.
    fn changes(&self, ino: Ino) {
        if let Some(pages) = &self.pages {
            pages.forget(ino);
        }
    }

    /// What the answer to an open says of its pages.
    fn takes(&self, ino: Ino, opened: Opened) -> Open {
        if !opened.keep_cache {
            self.changes(ino);
        }
        if opened.direct_io {
            self.direct.lock().insert(opened.fh);
        }
        Open { ino, fh: opened.fh }
    }

    /// READ, unless there are pages.
    async fn read(&self, open: Open) -> Result<Vec<u8>, i32> {
        let all = (SLOTS * slot_size()) as u32;
        let mount = self.mount();
        let Some(pages) = &self.pages else {
            return errno(mount.read(open, 0, all).await);
        };
        if self.direct.lock().contains(&open.fh) {
            pages.forget(open.ino);
            return errno(mount.read(open, 0, all).await);
        }
        let (state, known) = pages.get(open.ino);
        if let Some(data) = known {
            return Ok(data);
        }
        let data = errno(mount.read(open, 0, all).await)?;
        pages.fill(open.ino, state, &data);
        Ok(data)
    }

    fn dir(&self, dir: Ino) -> Arc<RwLock<()>> {
        Arc::clone(self.dirs.lock().entry(dir).or_default())
    }

    /// There is one as long as a call is under way ([`Kernel::begins`]), or nobody replaces it.
    pub(super) fn mount(&self) -> Arc<Mount> {
        let mount = self.mount.lock();
        Arc::clone(mount.as_ref().expect("no call is let in meanwhile"))
    }

    /// A call is under way until this is dropped.
    pub(super) async fn begins(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.calls).read_owned().await
    }

    /// Another process goes on with the mount, unless a call is under way: then this is false.
    pub(super) async fn hand_over(&self, timeouts: Timeouts) -> bool {
        let Ok(_quiet) = self.calls.try_write() else {
            return false;
        };
        let mount = self.mount.lock().take().expect("nobody else replaces it");
        let mount = Arc::into_inner(mount).expect("nobody calls");
        let estate = mount.left().await;
        let (mount, _) = estate.taken_over_as((self.behaves)(timeouts)).await;
        if let Some(pages) = &self.pages {
            mount.vfs.set_kernel(Arc::clone(pages) as _);
        }
        *self.mount.lock() = Some(Arc::new(mount));
        true
    }

    /// One system call of a thread.
    pub(super) async fn call(&self, thread: u32, call: Call) -> Answer {
        let caller = caller::current().unwrap_or_else(|| {
            let abandoned = Arc::clone(self.mount().vfs.abandoned());
            Caller::new(Some(abandoned), thread)
        });
        caller::on_behalf_of(Some(caller), self.made(thread, call)).await
    }

    async fn made(&self, thread: u32, call: Call) -> Answer {
        let walk = |again| self.walk(thread, call, again);
        let said = match call.fd() {
            Some(fd) if !matches!(call, Call::Open { .. }) => self.on_open(call, fd).await,
            _ => match walk(false).await {
                Err(libc::ESTALE) => walk(true).await,
                said => said,
            },
        };
        said.unwrap_or_else(Answer::Refused)
    }

    async fn walk(&self, thread: u32, call: Call, again: bool) -> Said {
        Walk {
            kernel: self,
            mount: &self.mount(),
            thread,
            again,
            locked: Mutex::default(),
        }
        .call(call)
        .await
    }

    async fn on_open(&self, call: Call, fd: Fd) -> Said {
        let mount = self.mount();
        // Of a process that was killed before it came so far.
        let open = *self.files.lock().get(&fd).ok_or(libc::EBADF)?;
        match call {
            Call::Write { slot, token, .. } => {
                let at = u64::from(slot) * slot_size() as u64;
                self.write(open, at, token, 0).await
            }
            Call::Append { token, .. } => {
                // Where the kernel believes the end to be.
                let size = mount.vfs.getattr_cached(open.ino, None);
                let at = size.map_or(0, |(stat, _)| stat.size);
                self.write(open, at, token, libc::O_APPEND).await
            }
            Call::Read(_) => {
                // Pages are believed as long as attributes are.
                let known = mount.vfs.getattr_cached(open.ino, None);
                if known.is_none_or(|(_, ttl)| ttl.is_zero()) {
                    errno(
                        mount
                            .vfs
                            .getattr(&mount.cred, open.ino, Some(open.fh))
                            .await,
                    )?;
                }
                let mut data = self.read(open).await?;
                // Nor is more shown than the size that is known.
                if let Some((stat, _)) = mount.vfs.getattr_cached(open.ino, None) {
                    data.truncate(usize::try_from(stat.size).unwrap_or(usize::MAX));
                }
                Ok(Answer::Data(tokens(&data)))
            }
            Call::Ftruncate(_) => {
                self.truncate(open.ino, Some(open.fh)).await?;
                Ok(Answer::Done)
            }
            Call::Fstat(_) => {
                let stat = match mount.vfs.getattr_cached(open.ino, None) {
                    Some((stat, _)) => stat,
                    None => {
                        errno(
                            mount
                                .vfs
                                .getattr(&mount.cred, open.ino, Some(open.fh))
                                .await,
                        )?
                        .0
                    }
                };
                Ok(Answer::Seen(seen(&stat)))
            }
            Call::Fsync(_) => errno(mount.fsync(open).await).map(|()| Answer::Done),
            Call::Close(fd) => {
                let owner = u64::from(fd);
                let flushed = mount.vfs.flush(open.fh, owner).await;
                self.release(fd).await;
                errno(flushed).map(|()| Answer::Done)
            }
            Call::Lock { exclusive, .. } => {
                let typ = if exclusive {
                    libc::F_WRLCK
                } else {
                    libc::F_RDLCK
                };
                self.lock(open, fd, typ).await
            }
            Call::Unlock(_) => self.lock(open, fd, libc::F_UNLCK).await,
            _ => unreachable!("by path"),
        }
    }

    async fn truncate(&self, ino: Ino, fh: Option<u64>) -> Result<(), i32> {
        let set = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        let mount = self.mount();
        self.changes(ino);
        let cut = mount.vfs.setattr(&mount.cred, ino, fh, set).await;
        self.changes(ino);
        errno(cut).map(drop)
    }

    async fn write(&self, open: Open, at: u64, token: Token, flags: i32) -> Said {
        let flags = WriteFlags {
            open_flags: flags,
            ..WriteFlags::default()
        };
        let data = Bytes::from(filled(token));
        let mount = self.mount();
        let vfs = &mount.vfs;
        self.changes(open.ino);
        let written = vfs.write(open.fh, at, data, flags).await;
        self.changes(open.ino);
        let written = errno(written)?;
        assert_eq!(written as usize, slot_size(), "a buffered write is whole");
        Ok(Answer::Done)
    }

    async fn lock(&self, open: Open, fd: Fd, typ: i32) -> Said {
        let range = LockRange {
            start: 0,
            end: i64::MAX as u64,
            typ,
            pid: fd,
        };
        let (mount, owner) = (self.mount(), u64::from(fd));
        let vfs = &mount.vfs;
        let waiting = Waiting::default();
        let waits = typ != libc::F_UNLCK;
        let done = vfs.setlk(open.fh, owner, range, waits, &waiting);
        errno(done.await).map(|()| Answer::Done)
    }

    /// RELEASE, for which nobody waits.
    async fn release(&self, fd: Fd) {
        let open = self.files.lock().remove(&fd);
        if let Some(open) = open {
            let released = self.mount().vfs.release(open.fh);
            let _ = caller::apart(released).await;
        }
    }

    /// What the kernel does with the open file of a process that ended.
    pub(super) async fn leave(&self, fd: Fd) {
        let open = self.files.lock().get(&fd).copied();
        if let Some(open) = open {
            let _ = self.mount().vfs.flush(open.fh, u64::from(fd)).await;
            self.release(fd).await;
        }
    }
}

/// One walk of a call by path.
struct Walk<'a> {
    kernel: &'a Kernel,
    mount: &'a Mount,
    thread: u32,
    /// After ESTALE.
    again: bool,
    /// The directories that it holds, until its call has ended.
    locked: Mutex<Vec<(Ino, OwnedRwLockWriteGuard<()>)>>,
}

impl Walk<'_> {
    /// Takes the locks of directories whose names are about to change, or which are to go, in the
    /// order of their numbers; those above before those in them.
    async fn lock(&self, mut dirs: Vec<Ino>) {
        dirs.sort_unstable();
        dirs.dedup();
        dirs.retain(|dir| !self.has_locked(*dir));
        for dir in dirs {
            let lock = self.kernel.dir(dir).write_owned().await;
            self.locked.lock().push((dir, lock));
        }
    }

    fn has_locked(&self, dir: Ino) -> bool {
        self.locked.lock().iter().any(|(locked, _)| *locked == dir)
    }

    fn known(&self, dir: Ino, name: &[u8]) -> Option<VfsResult<Lookup>> {
        (!self.again)
            .then(|| self.mount.vfs.lookup_cached(dir, name))
            .flatten()
    }

    /// LOOKUP of a name that may be found. `exclusive`: the call fails if it is.
    async fn lookup(&self, dir: Ino, name: Name, exclusive: bool) -> Result<Option<Entry>, i32> {
        let (vfs, cred, name) = (&self.mount.vfs, &self.mount.cred, &[name][..]);
        let known = self.known(dir, name);
        let _shared = match known.is_none() && !self.has_locked(dir) {
            true => Some(self.kernel.dir(dir).read_owned().await),
            false => None,
        };
        let found = match known {
            Some(Ok(Lookup::Found(_))) if exclusive => vfs.lookup_asked(cred, dir, name).await,
            Some(known) => known,
            None if self.again => vfs.lookup_asked(cred, dir, name).await,
            // Who is about to make it need not ask.
            None if exclusive && vfs.may_be_made(dir, name) => return Ok(None),
            None => vfs.lookup(cred, dir, name).await,
        };
        match errno(found)? {
            Lookup::Found(entry) => Ok(Some(entry)),
            Lookup::Missing { .. } => Ok(None),
        }
    }

    async fn directory(&self, dir: Option<Name>) -> Result<Ino, i32> {
        let Some(name) = dir else {
            return Ok(self.kernel.top);
        };
        let entry = is_there(self.lookup(self.kernel.top, name, false).await?)?;
        match entry.stat.kind {
            FileKind::Directory => Ok(entry.ino),
            // Its target is nowhere.
            FileKind::Symlink => Err(libc::ENOENT),
            _ => Err(libc::ENOTDIR),
        }
    }

    async fn find(&self, at: Path) -> Result<Option<Entry>, i32> {
        let dir = self.directory(at.dir).await?;
        self.lookup(dir, at.name, false).await
    }

    /// The directory in which a call makes a name, which is free as far as is known.
    async fn free(&self, at: Path) -> Result<Ino, i32> {
        let dir = self.directory(at.dir).await?;
        self.lock(vec![dir]).await;
        match self.lookup(dir, at.name, true).await? {
            Some(_) => Err(libc::EEXIST),
            None => Ok(dir),
        }
    }

    async fn call(&self, call: Call) -> Said {
        let (vfs, cred) = (&self.mount.vfs, &self.mount.cred);
        match call {
            Call::Mkdir(at) => {
                let dir = self.free(at).await?;
                errno(vfs.mkdir(cred, dir, &[at.name], 0o755).await)?;
            }
            Call::Symlink(at, token) => {
                let dir = self.free(at).await?;
                let text = link_text(token);
                errno(vfs.symlink(cred, dir, &[at.name], text.as_bytes()).await)?;
            }
            Call::Rmdir(at) => {
                let dir = self.directory(at.dir).await?;
                self.lock(vec![dir]).await;
                let entry = is_there(self.lookup(dir, at.name, false).await?)?;
                if entry.stat.kind != FileKind::Directory {
                    return Err(libc::ENOTDIR);
                }
                self.lock(vec![entry.ino]).await;
                errno(vfs.rmdir(cred, dir, &[at.name]).await)?;
            }
            Call::Unlink(at) => {
                let dir = self.directory(at.dir).await?;
                self.lock(vec![dir]).await;
                let entry = is_there(self.lookup(dir, at.name, false).await?)?;
                if entry.stat.kind == FileKind::Directory {
                    return Err(libc::EISDIR);
                }
                errno(vfs.unlink(cred, dir, &[at.name]).await)?;
            }
            Call::Link(from, to) => {
                let object = is_there(self.find(from).await?)?;
                let dir = self.free(to).await?;
                if object.stat.kind == FileKind::Directory {
                    return Err(libc::EPERM);
                }
                errno(vfs.link(cred, object.ino, dir, &[to.name]).await)?;
            }
            Call::Rename { from, to, replaces } => return self.rename(from, to, replaces).await,
            Call::Chmod(at, mode) => {
                let object = self.object(at).await?;
                if object.stat.kind == FileKind::Directory {
                    self.lock(vec![object.ino]).await;
                }
                let set = SetAttr {
                    mode: Some(mode.into()),
                    ..SetAttr::default()
                };
                errno(vfs.setattr(cred, object.ino, None, set).await)?;
            }
            Call::Truncate(at) => {
                let object = self.object(at).await?;
                if object.stat.kind == FileKind::Directory {
                    return Err(libc::EISDIR);
                }
                self.kernel.truncate(object.ino, None).await?;
            }
            Call::Stat(at) => {
                let entry = is_there(self.find(at).await?)?;
                if !entry.attr_ttl.is_zero() {
                    return Ok(Answer::Seen(seen(&entry.stat)));
                }
                let stat = errno(self.mount.getattr(entry.ino).await)?;
                return Ok(Answer::Seen(seen(&stat)));
            }
            Call::Readlink(at) => {
                let entry = is_there(self.find(at).await?)?;
                if entry.stat.kind != FileKind::Symlink {
                    return Err(libc::EINVAL);
                }
                let text = errno(vfs.readlink(cred, entry.ino).await)?;
                return Ok(Answer::Text(link_token(&text)));
            }
            Call::List(dir) => {
                let dir = self.directory(dir).await?;
                let names = errno(self.mount.list_as(self.thread, dir, true).await)?;
                return Ok(Answer::Listed(listed(&names)));
            }
            Call::Open { at, how, fd } => self.open(at, how, fd).await?,
            _ => unreachable!("by descriptor"),
        }
        Ok(Answer::Done)
    }

    /// What a path leads to, links followed: theirs lead nowhere.
    async fn object(&self, at: Path) -> Result<Entry, i32> {
        let entry = is_there(self.find(at).await?)?;
        match entry.stat.kind {
            FileKind::Symlink => Err(libc::ENOENT),
            _ => Ok(entry),
        }
    }

    async fn rename(&self, from: Path, to: Path, replaces: bool) -> Said {
        let source = self.directory(from.dir).await?;
        let target = self.directory(to.dir).await?;
        self.lock(vec![source, target]).await;
        let object = is_there(self.lookup(source, from.name, false).await?)?;
        let there = self.lookup(target, to.name, !replaces).await?;
        if there.is_some() && !replaces {
            return Err(libc::EEXIST);
        }
        if object.ino == target {
            return Err(libc::EINVAL);
        }
        if let Some(victim) = there {
            if victim.ino == source {
                return Err(libc::ENOTEMPTY);
            }
            let is_dir = |entry: &Entry| entry.stat.kind == FileKind::Directory;
            match (is_dir(&object), is_dir(&victim)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                _ if victim.ino == object.ino => return Ok(Answer::Same),
                (true, true) => self.lock(vec![victim.ino]).await,
                (false, false) => {}
            }
        }
        let flags = if replaces { 0 } else { libc::RENAME_NOREPLACE };
        let (vfs, cred) = (&self.mount.vfs, &self.mount.cred);
        let (from, to) = ([from.name], [to.name]);
        let renamed = vfs.rename(cred, source, &from, target, &to, flags);
        errno(renamed.await).map(|()| Answer::Done)
    }

    /// The second walk opens what it finds.
    async fn lookup_to_open(&self, dir: Ino, name: Name, flags: i32) -> Result<Option<Entry>, i32> {
        let (vfs, cred) = (&self.mount.vfs, &self.mount.cred);
        let name = [name];
        let found = vfs.lookup_to_open(cred, dir, &name, flags, self.thread);
        match errno(found.await)? {
            Lookup::Found(entry) => Ok(Some(entry)),
            Lookup::Missing { .. } => Ok(None),
        }
    }

    async fn open_found(&self, ino: Ino, flags: i32) -> Result<Open, i32> {
        let (vfs, cred) = (&self.mount.vfs, &self.mount.cred);
        let opened = match self.again {
            false => vfs.open(cred, ino, flags).await,
            true => vfs.open_found(cred, ino, flags, self.thread).await,
        };
        if flags & libc::O_TRUNC != 0 {
            self.kernel.changes(ino);
        }
        Ok(self.kernel.takes(ino, errno(opened)?))
    }

    async fn open(&self, at: Path, how: How, fd: Fd) -> Result<(), i32> {
        let mut flags = libc::O_NOFOLLOW
            | if how.reads {
                libc::O_RDONLY
            } else {
                libc::O_RDWR
            };
        for (set, flag) in [
            (how.truncate, libc::O_TRUNC),
            (how.append, libc::O_APPEND),
            (how.exclusive, libc::O_EXCL),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let exclusive = how.create && how.exclusive;
        let dir = self.directory(at.dir).await?;
        if how.create {
            self.lock(vec![dir]).await;
        }
        let found = match self.again && !exclusive {
            true => self.lookup_to_open(dir, at.name, flags).await?,
            false => self.lookup(dir, at.name, exclusive).await?,
        };
        let opened = match found {
            Some(_) if exclusive => return Err(libc::EEXIST),
            Some(entry) => match entry.stat.kind {
                FileKind::Directory => return Err(libc::EISDIR),
                FileKind::Symlink => return Err(libc::ELOOP),
                _ => {
                    self.locked.lock().clear();
                    self.open_found(entry.ino, flags & !libc::O_EXCL).await?
                }
            },
            None if how.create => {
                let made = errno(self.mount.create(dir, &name(at), flags).await)?;
                self.kernel.changes(made.ino);
                made
            }
            None => return Err(libc::ENOENT),
        };
        self.kernel.files.lock().insert(fd, opened);
        Ok(())
    }
}

fn name(at: Path) -> String {
    char::from(at.name).to_string()
}

/// Hidden names are not the checker's.
pub(super) fn listed(names: &[String]) -> Vec<Name> {
    let mut listed: Vec<_> = names
        .iter()
        .filter(|name| !name.starts_with(".nfs"))
        .map(|name| name.as_bytes()[0])
        .collect();
    listed.sort_unstable();
    listed
}

/// For who keeps one of several.
pub(super) type Host = Arc<Kernel>;
