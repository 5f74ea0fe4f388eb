//! The tree behind the server: inodes and names, without protocol.
//!
//! `Fs` owns every inode. A file lives while it has a name or a hold (an open
//! state holds one). Nothing here checks permissions except [`Node::allows`],
//! which the operations call.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::data::FileData;
use super::proto::{ftype, st};

/// nfsstat4 of a failed call.
pub(crate) type Status = u32;

pub(crate) const ROOT: u64 = 0x1_0000_0001;

/// nfstime4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) secs: i64,
    pub(crate) nanos: u32,
}

/// Who asks, from the AUTH_SYS credential.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cred {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) gids: Vec<u32>,
}

impl Cred {
    pub(crate) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.gids.contains(&gid)
    }
}

pub(crate) const R: u32 = 4;
pub(crate) const W: u32 = 2;
pub(crate) const X: u32 = 1;

#[derive(Debug)]
pub(crate) enum Kind {
    Reg(FileData),
    Dir(Dir),
    Lnk(Vec<u8>),
    /// FIFO, SOCK, BLK or CHR with its device number.
    Special(u32, (u32, u32)),
}

#[derive(Debug, Default)]
pub(crate) struct Dir {
    pub(crate) parent: u64,
    entries: BTreeMap<Vec<u8>, (u64, u64)>,
    by_cookie: BTreeMap<u64, Vec<u8>>,
}

impl Dir {
    pub(crate) fn get(&self, name: &[u8]) -> Option<u64> {
        self.entries.get(name).map(|(_, id)| *id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names, in byte order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.keys().map(Vec::as_slice)
    }

    /// (cookie, name, fileid) of the entries behind `cookie`, in cookie order.
    pub(crate) fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &[u8], u64)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.by_cookie
            .range((Excluded(cookie), Unbounded))
            .map(|(cookie, name)| (*cookie, name.as_slice(), self.entries[name].1))
    }

    /// Adds or replaces; a cookie is a hash of the name as in ext4, so it
    /// survives other entries' changes.
    fn put(&mut self, name: &[u8], id: u64, cookie_mask: u64) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.1 = id;
            return;
        }
        let mut cookie = hash(name) & cookie_mask;
        while cookie <= 2 || self.by_cookie.contains_key(&cookie) {
            cookie = (cookie + 1) & cookie_mask;
        }
        self.entries.insert(name.to_vec(), (cookie, id));
        self.by_cookie.insert(cookie, name.to_vec());
    }

    fn take(&mut self, name: &[u8]) -> Option<u64> {
        let (cookie, id) = self.entries.remove(name)?;
        self.by_cookie.remove(&cookie);
        Some(id)
    }
}

/// FNV-1a, finished so that all bits move.
fn hash(name: &[u8]) -> u64 {
    let h = name.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    });
    (h ^ h >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    /// What it is shown under, and in which file system (the minor half of the fsid).
    pub(crate) fileid: u64,
    pub(crate) fsid: u64,
    pub(crate) generation: u64,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
    pub(crate) btime: Time,
    /// Moves at every change of content, names or attributes.
    pub(crate) change: u64,
    /// Verifier of the EXCLUSIVE create that made it.
    pub(crate) create_verf: Option<[u8; 8]>,
    holds: u32,
}

impl Node {
    pub(crate) fn ftype(&self) -> u32 {
        match &self.kind {
            Kind::Reg(_) => ftype::REG,
            Kind::Dir(_) => ftype::DIR,
            Kind::Lnk(_) => ftype::LNK,
            Kind::Special(t, _) => *t,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        match &self.kind {
            Kind::Reg(data) => data.size(),
            Kind::Dir(dir) => 4096 + dir.entries.len() as u64 * 32,
            Kind::Lnk(target) => target.len() as u64,
            Kind::Special(..) => 0,
        }
    }

    pub(crate) fn dir(&self) -> Result<&Dir, Status> {
        match &self.kind {
            Kind::Dir(dir) => Ok(dir),
            Kind::Lnk(_) => Err(st::SYMLINK),
            _ => Err(st::NOTDIR),
        }
    }

    /// The content of a regular file; other types fail as READ and WRITE do.
    pub(crate) fn data(&self) -> Result<&FileData, Status> {
        match &self.kind {
            Kind::Reg(data) => Ok(data),
            other => Err(wrong_for_io(other)),
        }
    }

    pub(crate) fn data_mut(&mut self) -> Result<&mut FileData, Status> {
        match &mut self.kind {
            Kind::Reg(data) => Ok(data),
            other => Err(wrong_for_io(other)),
        }
    }

    /// The rwx bits that `cred` has.
    pub(crate) fn rights(&self, cred: &Cred) -> u32 {
        if cred.uid == 0 {
            let any_x = self.mode & 0o111 != 0 || self.ftype() == ftype::DIR;
            return if any_x { R | W | X } else { R | W };
        }
        let shift = if cred.uid == self.uid {
            6
        } else if cred.in_group(self.gid) {
            3
        } else {
            0
        };
        self.mode >> shift & 7
    }

    pub(crate) fn allows(&self, cred: &Cred, want: u32) -> Result<(), Status> {
        if self.rights(cred) & want == want {
            Ok(())
        } else {
            Err(st::ACCESS)
        }
    }
}

fn wrong_for_io(kind: &Kind) -> Status {
    match kind {
        Kind::Dir(_) => st::ISDIR,
        Kind::Lnk(_) => st::SYMLINK,
        _ => st::WRONG_TYPE,
    }
}

/// What a new inode starts with.
#[derive(Debug)]
pub(crate) struct New {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

#[derive(Debug)]
pub(crate) struct Fs {
    nodes: BTreeMap<u64, Node>,
    next_id: u64,
    /// Ids free for reuse with the next generation, if the test wants that.
    freed: Vec<(u64, u64)>,
    reuse_ids: bool,
    cookie_mask: u64,
    maxlink: u32,
    /// False: removal ends a file even while it is open.
    keep_unlinked: bool,
    /// True: a removed directory stays, without names.
    keep_removed_dirs: bool,
    started: Instant,
    /// What the clock on the wall said then, seconds since 1970: clients judge by it
    /// whether an object is new.
    born: u64,
    ticks: u32,
    changes: u64,
    /// The change attribute is the time of the change in ticks of this length: two changes within a
    /// tick have one value.
    pub(crate) coarse: Option<Duration>,
    /// Where hosts of this double have their disk caches, if they have.
    pub(crate) caches: Option<tempfile::TempDir>,
}

impl Fs {
    pub(crate) fn new(
        cookie_bits: u32,
        maxlink: u32,
        reuse_ids: bool,
        keep_unlinked: bool,
        keep_removed_dirs: bool,
    ) -> Self {
        let mut fs = Self {
            nodes: BTreeMap::new(),
            next_id: ROOT,
            freed: Vec::new(),
            reuse_ids,
            cookie_mask: u64::MAX >> (64 - cookie_bits.clamp(3, 64)),
            maxlink,
            keep_unlinked,
            keep_removed_dirs,
            started: Instant::now(),
            born: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            ticks: 0,
            changes: 1000,
            coarse: None,
            caches: None,
        };
        let root = fs.alloc(New {
            kind: Kind::Dir(Dir {
                parent: ROOT,
                ..Dir::default()
            }),
            mode: 0o755,
            uid: 0,
            gid: 0,
        });
        debug_assert_eq!(root, ROOT);
        fs
    }

    /// Time since the double was made.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Server time: tokio's clock plus a tick, so that no two are equal.
    pub(crate) fn now(&mut self) -> Time {
        self.ticks += 1;
        let since = self.elapsed() + Duration::from_nanos(u64::from(self.ticks));
        Time {
            secs: (self.born + since.as_secs()) as i64,
            nanos: since.subsec_nanos(),
        }
    }

    pub(crate) fn node(&self, id: u64) -> Result<&Node, Status> {
        self.nodes.get(&id).ok_or(st::STALE)
    }

    pub(crate) fn node_mut(&mut self, id: u64) -> Result<&mut Node, Status> {
        self.nodes.get_mut(&id).ok_or(st::STALE)
    }

    /// The inode of a file handle, if it is still that file.
    pub(crate) fn resolve(&self, id: u64, generation: u64) -> Result<u64, Status> {
        let node = self.node(id)?;
        if node.generation == generation {
            Ok(id)
        } else {
            Err(st::STALE)
        }
    }

    /// Moves the change attribute and ctime; with `content` also mtime.
    pub(crate) fn touch(&mut self, id: u64, content: bool) {
        let now = self.now();
        self.changes += 1;
        let change = match self.coarse {
            None => self.changes,
            Some(tick) => 1_000_000 + (self.elapsed().as_micros() / tick.as_micros()) as u64,
        };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.change = change;
            node.ctime = now;
            if content {
                node.mtime = now;
            }
        }
    }

    pub(crate) fn lookup(&self, dir: u64, name: &[u8]) -> Result<u64, Status> {
        self.node(dir)?.dir()?.get(name).ok_or(st::NOENT)
    }

    /// Makes an inode with one name.
    pub(crate) fn create(&mut self, dir: u64, name: &[u8], mut new: New) -> Result<u64, Status> {
        self.living(dir)?;
        let parent = self.node(dir)?;
        if parent.dir()?.get(name).is_some() {
            return Err(st::EXIST);
        }
        if parent.mode & 0o2000 != 0 {
            new.gid = parent.gid;
            if matches!(new.kind, Kind::Dir(_)) {
                new.mode |= 0o2000;
            }
        }
        if let Kind::Dir(made) = &mut new.kind {
            made.parent = dir;
        }
        let fsid = parent.fsid;
        let id = self.alloc(new);
        self.node_mut(id)?.fsid = fsid;
        self.enter(dir, name, id);
        Ok(id)
    }

    /// Names can be put into the directory.
    fn living(&self, dir: u64) -> Result<(), Status> {
        match (self.node(dir)?.nlink, self.keep_removed_dirs) {
            (0, true) => Err(st::NOENT),
            (0, false) => Err(st::STALE),
            _ => Ok(()),
        }
    }

    pub(crate) fn link(&mut self, file: u64, dir: u64, name: &[u8]) -> Result<(), Status> {
        self.living(dir)?;
        let node = self.node(file)?;
        if matches!(node.kind, Kind::Dir(_)) {
            return Err(st::ISDIR);
        }
        if node.nlink == 0 {
            return Err(st::STALE);
        }
        if node.nlink >= self.maxlink {
            return Err(st::MLINK);
        }
        if self.node(dir)?.dir()?.get(name).is_some() {
            return Err(st::EXIST);
        }
        self.node_mut(file)?.nlink += 1;
        self.touch(file, false);
        self.enter(dir, name, file);
        Ok(())
    }

    /// Removes a name; the inode goes with its last name and hold.
    pub(crate) fn remove(&mut self, dir: u64, name: &[u8]) -> Result<(), Status> {
        let id = self.lookup(dir, name)?;
        if let Kind::Dir(victim) = &self.node(id)?.kind
            && !victim.is_empty()
        {
            return Err(st::NOTEMPTY);
        }
        self.leave(dir, name);
        self.unlinked(id);
        Ok(())
    }

    /// RENAME with the rules of RFC 8881 section 18.26.
    pub(crate) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) -> Result<(), Status> {
        self.living(to.0)?;
        let id = self.lookup(from.0, from.1)?;
        let is_dir = matches!(self.node(id)?.kind, Kind::Dir(_));
        let target = self.node(to.0)?.dir()?.get(to.1);
        if target == Some(id) {
            return Ok(());
        }
        if is_dir && self.is_inside(to.0, id) {
            return Err(st::INVAL);
        }
        if let Some(target) = target {
            match &self.node(target)?.kind {
                Kind::Dir(old) if is_dir && old.is_empty() => {}
                Kind::Dir(_) => return Err(st::EXIST),
                _ if is_dir => return Err(st::EXIST),
                _ => {}
            }
            self.leave(to.0, to.1);
            self.unlinked(target);
        }
        self.leave(from.0, from.1);
        self.enter(to.0, to.1, id);
        if let Kind::Dir(moved) = &mut self.node_mut(id)?.kind {
            moved.parent = to.0;
        }
        self.touch(id, false);
        Ok(())
    }

    /// Keeps an inode without names alive; one `release` each.
    pub(crate) fn hold(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.holds += 1;
        }
    }

    pub(crate) fn release(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.holds = node.holds.saturating_sub(1);
            self.reap(id);
        }
    }

    /// Unstable data are lost; with `forget_holds` open files without a name too.
    pub(crate) fn crash(&mut self, forget_holds: bool) {
        let mut changed = Vec::new();
        for node in self.nodes.values_mut() {
            if forget_holds {
                node.holds = 0;
            }
            if let Kind::Reg(data) = &mut node.kind
                && data.crash()
            {
                changed.push(node.id);
            }
        }
        for id in changed {
            self.touch(id, false);
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.reap(id);
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Is `dir` the directory `top` or below it?
    fn is_inside(&self, mut dir: u64, top: u64) -> bool {
        while dir != top && dir != ROOT {
            match self.nodes.get(&dir).map(|n| &n.kind) {
                Some(Kind::Dir(d)) => dir = d.parent,
                _ => return false,
            }
        }
        dir == top
    }

    fn alloc(&mut self, new: New) -> u64 {
        let (id, generation) = self.freed.pop().unwrap_or_else(|| {
            self.next_id += 1;
            (self.next_id - 1, 1)
        });
        let now = self.now();
        self.changes += 1;
        let nlink = if matches!(new.kind, Kind::Dir(_)) {
            2
        } else {
            1
        };
        let node = Node {
            id,
            fileid: id,
            fsid: 1,
            generation,
            kind: new.kind,
            mode: new.mode & 0o7777,
            uid: new.uid,
            gid: new.gid,
            nlink,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            change: self.changes,
            create_verf: None,
            holds: 0,
        };
        self.nodes.insert(id, node);
        id
    }

    fn enter(&mut self, dir: u64, name: &[u8], id: u64) {
        let is_dir = self.is_dir(id);
        let mask = self.cookie_mask;
        if let Some(node) = self.nodes.get_mut(&dir)
            && let Kind::Dir(d) = &mut node.kind
        {
            d.put(name, id, mask);
            node.nlink += u32::from(is_dir);
        }
        self.touch(dir, true);
    }

    fn leave(&mut self, dir: u64, name: &[u8]) {
        if let Some(node) = self.nodes.get_mut(&dir)
            && let Kind::Dir(d) = &mut node.kind
            && let Some(id) = d.take(name)
        {
            let is_dir = self.is_dir(id);
            if let Some(node) = self.nodes.get_mut(&dir) {
                node.nlink -= u32::from(is_dir);
            }
        }
        self.touch(dir, true);
    }

    fn is_dir(&self, id: u64) -> bool {
        matches!(self.nodes.get(&id), Some(n) if matches!(n.kind, Kind::Dir(_)))
    }

    /// One name of `id` is gone.
    fn unlinked(&mut self, id: u64) {
        let is_dir = self.is_dir(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.nlink = if is_dir { 0 } else { node.nlink - 1 };
        }
        self.touch(id, false);
        self.reap(id);
    }

    fn reap(&mut self, id: u64) {
        let kept = self.keep_removed_dirs && self.is_dir(id);
        let dead = |n: &Node| !kept && n.nlink == 0 && (n.holds == 0 || !self.keep_unlinked);
        if self.nodes.get(&id).is_some_and(dead)
            && let Some(node) = self.nodes.remove(&id)
            && self.reuse_ids
        {
            self.freed.push((id, node.generation + 1));
        }
    }
}
