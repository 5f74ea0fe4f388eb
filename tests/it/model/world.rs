//! One mount and the reference, step by step. The world plays the kernel: it
//! looks names up before it uses them, and refuses what the kernel refuses
//! before a file system is asked.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::ClientConfig;
use efs_fuse::rpc::Connections;
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::Timeouts;
use efs_fuse::vfs::types::{Entry, Errno, FileKind, Ino, ROOT_INO, SetAttr};

use super::step::{Fault, Foreign, Place, Step};
use super::tree::{Id, Kind, ROOT, Tree};
use crate::peer::proto::st;
use crate::peer::{Action, Peer, PeerConfig};
use crate::protocol::rig::{
    Mount, Open, client_config, connect_as, default_timeouts, once_at, seconds,
};

/// Handles at once.
const MOST_OPEN: usize = 6;

/// Longer than anything is believed.
const FORGOTTEN: u64 = 61;

#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) peer: PeerConfig,
    /// Attributes are asked for every time.
    pub(super) noac: bool,
    pub(super) connections: Connections,
}

struct File {
    open: Open,
    id: Id,
    flags: i32,
}

impl File {
    fn reads(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    fn writes(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

pub(super) struct World {
    mount: Mount,
    peer: Arc<Peer>,
    setting: Setting,
    tree: Tree,
    files: Vec<File>,
    /// Makes the data of every write its own.
    written: usize,
    /// A request may be sent again whose first sending is of unknown fate. Then
    /// what exists is not made and what is missing is not removed: the kernel
    /// would not ask either. And what was done may be told as if somebody else had
    /// been faster ([`World::told`]).
    unsure: bool,
}

fn data(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 7 + i / 256 + seed * 31) as u8)
        .collect()
}

fn errno<T>(result: Result<T, impl Into<Errno>>) -> Result<T, i32> {
    result.map_err(|error| error.into().raw())
}

impl World {
    pub(super) async fn new(setting: Setting) -> Self {
        let peer = Peer::new(setting.peer.clone());
        let timeouts = match setting.noac {
            true => Timeouts {
                reg_min: Duration::ZERO,
                reg_max: Duration::ZERO,
                dir_min: Duration::ZERO,
                dir_max: Duration::ZERO,
            },
            false => default_timeouts(),
        };
        let config = ClientConfig {
            connections: setting.connections,
            ..client_config("one")
        };
        let client = connect_as(&peer, config, Metrics::new()).await;
        Self {
            mount: Mount::over(&client, &peer, timeouts, 64 << 20),
            peer,
            setting,
            tree: Tree::new(),
            files: Vec::new(),
            written: 0,
            unsure: false,
        }
    }

    /// Does every step, and compares everything in the end.
    pub(super) async fn run(setting: Setting, steps: &[Step]) {
        let mut world = Self::new(setting).await;
        for (number, step) in steps.iter().enumerate() {
            let limit = Duration::from_secs(3600);
            let done = tokio::time::timeout(limit, world.step(step)).await;
            assert!(done.is_ok(), "step {number} hangs: {step:?}");
        }
        let ended = tokio::time::timeout(Duration::from_secs(3600), world.end()).await;
        assert!(ended.is_ok(), "the end hangs");
    }

    /// Compares what a change of names came to. A second sending of one that has taken
    /// effect may find its own doing, which is not told from another's.
    fn told(&self, result: Result<(), i32>, expected: Result<(), i32>, second: i32, what: &str) {
        let as_if_another = self.unsure && expected.is_ok() && result == Err(second);
        assert!(
            as_if_another || result == expected,
            "{what}: {result:?}, not {expected:?}"
        );
    }

    async fn walk(&self, dirs: &[&str]) -> Result<Ino, i32> {
        let mut at = ROOT_INO;
        for name in dirs {
            let entry = errno(self.mount.lookup(at, name).await)?.ok_or(libc::ENOENT)?;
            if entry.stat.kind != FileKind::Directory {
                return Err(libc::ENOTDIR);
            }
            at = entry.ino;
        }
        Ok(at)
    }

    /// Both sides look a place up, and agree. `None`: its directory is not
    /// there. Then its directory, and what it leads to.
    async fn find(&self, at: &Place) -> Option<((Ino, Id), Option<(Entry, Id)>)> {
        let there = self.walk(&at.dirs).await;
        let here = self.tree.walk(&at.dirs);
        assert_eq!(there.map(drop), here.map(drop), "{at:?}");
        let (dir, id) = (there.ok()?, here.ok()?);
        let found = errno(self.mount.lookup(dir, at.name).await).expect("lookup");
        let expected = self.tree.get(id, at.name).ok();
        assert_eq!(found.is_some(), expected.is_some(), "lookup of {at:?}");
        let found = found.zip(expected);
        if let Some((entry, id)) = &found {
            // With attributes that are too old the kernel asks for others.
            if entry.attr_ttl.is_zero() {
                self.stat(entry.ino, *id).await;
            } else {
                self.compare_stat(*id, &entry.stat, "lookup");
            }
        }
        Some(((dir, id), found))
    }

    fn compare_stat(&self, id: Id, stat: &efs_fuse::vfs::types::Stat, how: &str) {
        let node = &self.tree.nodes[id];
        let kind = match node.kind {
            Kind::File(_) => FileKind::Regular,
            Kind::Dir(_) => FileKind::Directory,
            Kind::Link(_) => FileKind::Symlink,
        };
        assert_eq!(stat.kind, kind, "kind by {how}");
        assert_eq!(stat.perm, node.perm, "mode by {how}");
        if kind != FileKind::Directory {
            assert_eq!(stat.nlink, node.nlink, "links by {how}");
            assert_eq!(stat.size, self.tree.size(id), "size by {how}");
        }
    }

    async fn stat(&self, ino: Ino, id: Id) {
        let stat = self.mount.getattr(ino).await.expect("getattr");
        self.compare_stat(id, &stat, "getattr");
    }

    fn file(&self, handle: usize) -> Option<&File> {
        self.files.get(handle % self.files.len().max(1))
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Create { at, flags } => self.create(at, *flags).await,
            Step::Open { at, flags } => self.open(at, *flags).await,
            Step::Write { file, at, len } => self.write(*file, *at, *len).await,
            Step::Read { file, at, len } => self.read(*file, *at, *len).await,
            Step::Fsync(file) => {
                if let Some(file) = self.file(*file) {
                    self.mount.fsync(file.open).await.expect("fsync");
                }
            }
            Step::Close(file) => {
                if !self.files.is_empty() {
                    let at = file % self.files.len();
                    self.close(at).await;
                }
            }
            Step::Ftruncate(file, size) => {
                if let Some(file) = self.file(*file).filter(|file| file.writes()) {
                    let (open, id) = (file.open, file.id);
                    let cut = self.mount.truncate(open.ino, Some(open.fh), *size as u64);
                    cut.await.expect("ftruncate");
                    self.tree.truncate(id, *size);
                }
            }
            Step::Fstat(file) => {
                if let Some(file) = self.file(*file) {
                    let fh = Some(file.open.fh);
                    let stat = match self.mount.vfs.getattr_cached(file.open.ino, fh) {
                        Some((stat, _)) => stat,
                        None => {
                            let stat = self.mount.vfs.getattr(&self.mount.cred, file.open.ino, fh);
                            stat.await.expect("fstat").0
                        }
                    };
                    self.compare_stat(file.id, &stat, "fstat");
                }
            }
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(*millis)).await,
            Step::Foreign(foreign) => {
                // What it removes may be a file that is only open at the server,
                // and one that keeps no removed files could not close it.
                self.mount.vfs.client().closes_sent().await;
                self.foreign(foreign).await;
            }
            Step::Fault(fault) => {
                self.unsure = true;
                self.fault(fault);
                if matches!(fault, Fault::LoseUnstable) {
                    // Without a restart only the next COMMIT can tell.
                    for file in &self.files {
                        self.mount.fsync(file.open).await.expect("fsync");
                    }
                }
                // The client notices that its connection is gone; a call that
                // goes out on a dying one may have been run for all it knows.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            step => self.names(step).await,
        }
    }

    async fn create(&mut self, at: &Place, flags: i32) {
        if self.files.len() == MOST_OPEN {
            return;
        }
        let Some(((dir, dir_id), found)) = self.find(at).await else {
            return;
        };
        if let Some((entry, id)) = found {
            if flags & libc::O_EXCL != 0 {
                let result = errno(self.mount.create(dir, at.name, flags).await);
                assert_eq!(result.map(drop), Err(libc::EEXIST), "O_EXCL of {at:?}");
            } else if entry.stat.kind == FileKind::Regular {
                self.open_found(entry.ino, id, flags).await;
            }
            return;
        }
        let open = self.mount.create(dir, at.name, flags).await;
        let open = open.unwrap_or_else(|error| panic!("create of {at:?}: {error}"));
        let file = Kind::File(Vec::new());
        let id = self.tree.make(dir_id, at.name, file, 0o644).unwrap();
        self.tree.nodes[id].opens += 1;
        self.files.push(File { open, id, flags });
    }

    async fn open(&mut self, at: &Place, flags: i32) {
        if let Some((_, Some((entry, id)))) = self.find(at).await
            && entry.stat.kind == FileKind::Regular
            && self.files.len() < MOST_OPEN
        {
            self.open_found(entry.ino, id, flags).await;
        }
    }

    async fn open_found(&mut self, ino: Ino, id: Id, flags: i32) {
        let flags = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => flags & !libc::O_TRUNC,
            _ => flags,
        };
        let open = self.mount.open(ino, flags).await.expect("open");
        if flags & libc::O_TRUNC != 0 {
            self.tree.truncate(id, 0);
        }
        self.tree.nodes[id].opens += 1;
        self.files.push(File { open, id, flags });
        self.stat(ino, id).await;
    }

    async fn write(&mut self, file: usize, at: usize, len: usize) {
        self.written += 1;
        let data = data(self.written, len);
        if let Some(file) = self.file(file).filter(|file| file.writes()) {
            let (open, id) = (file.open, file.id);
            self.mount
                .write(open, at as u64, &data)
                .await
                .expect("write");
            self.tree.write(id, at, &data);
        }
    }

    async fn read(&self, file: usize, at: usize, len: usize) {
        if let Some(file) = self.file(file).filter(|file| file.reads()) {
            let got = self.mount.read(file.open, at as u64, len as u32).await;
            let got = got.expect("read");
            let expected = self.tree.read(file.id, at, len);
            assert_eq!(got.len(), expected.len(), "length read at {at}");
            let differs = got.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "first byte that differs, read at {at}");
        }
    }

    async fn close(&mut self, at: usize) {
        let file = self.files.swap_remove(at);
        self.mount.close(file.open).await.expect("close");
        let node = &mut self.tree.nodes[file.id];
        node.opens -= 1;
        if node.opens == 0 {
            node.hidden_in = None;
        }
    }

    async fn names(&mut self, step: &Step) {
        match step {
            Step::Stat(at) => {
                if let Some((_, Some((entry, id)))) = self.find(at).await {
                    self.stat(entry.ino, id).await;
                    if let Kind::Link(target) = &self.tree.nodes[id].kind {
                        let text = self.mount.vfs.readlink(&self.mount.cred, entry.ino).await;
                        assert_eq!(text.expect("readlink"), target.as_bytes());
                    }
                }
            }
            Step::Truncate(at, size) => {
                if let Some((_, Some((entry, id)))) = self.find(at).await
                    && entry.stat.kind == FileKind::Regular
                {
                    let cut = self.mount.truncate(entry.ino, None, *size as u64);
                    cut.await.expect("truncate");
                    self.tree.truncate(id, *size);
                }
            }
            Step::Chmod(at, perm) => {
                if let Some((_, Some((entry, id)))) = self.find(at).await
                    && entry.stat.kind != FileKind::Symlink
                {
                    let set = SetAttr {
                        mode: Some((*perm).into()),
                        ..SetAttr::default()
                    };
                    let mount = &self.mount;
                    let set = mount.vfs.setattr(&mount.cred, entry.ino, None, set);
                    let (stat, _) = set.await.expect("chmod");
                    self.tree.nodes[id].perm = *perm;
                    self.compare_stat(id, &stat, "chmod");
                }
            }
            Step::Mkdir(at) => {
                if let Some(((dir, dir_id), found)) = self.find(at).await
                    && !(self.unsure && found.is_some())
                {
                    let made = errno(self.mount.mkdir(dir, at.name).await).map(drop);
                    let kind = Kind::Dir(Default::default());
                    let expected = self.tree.make(dir_id, at.name, kind, 0o755);
                    let what = format!("mkdir of {at:?}");
                    self.told(made, expected.map(drop), libc::EEXIST, &what);
                }
            }
            Step::Symlink(at) => {
                if let Some(((dir, dir_id), found)) = self.find(at).await
                    && !(self.unsure && found.is_some())
                {
                    let mount = &self.mount;
                    let name = at.name.as_bytes();
                    let made = mount.vfs.symlink(&mount.cred, dir, name, b"over/there");
                    let made = errno(made.await).map(drop);
                    let kind = Kind::Link("over/there".to_owned());
                    let expected = self.tree.make(dir_id, at.name, kind, 0o777);
                    let what = format!("symlink at {at:?}");
                    self.told(made, expected.map(drop), libc::EEXIST, &what);
                }
            }
            Step::Link(from, to) => self.link(from, to).await,
            Step::Rename(from, to) => self.rename(from, to).await,
            Step::Unlink(at) => {
                let Some(((dir, dir_id), found)) = self.find(at).await else {
                    return;
                };
                if match found {
                    Some((_, id)) => self.tree.is_dir(id),
                    None => self.unsure,
                } {
                    return;
                }
                let removed = errno(self.mount.unlink(dir, at.name).await);
                let expected = self.tree.remove(dir_id, at.name);
                self.told(removed, expected, libc::ENOENT, &format!("unlink {at:?}"));
            }
            Step::Rmdir(at) => {
                let Some(((dir, dir_id), found)) = self.find(at).await else {
                    return;
                };
                if match found {
                    Some((_, id)) => !self.tree.is_dir(id) || self.tree.hides(id),
                    None => self.unsure,
                } {
                    return;
                }
                let mount = &self.mount;
                let removed = mount.vfs.rmdir(&mount.cred, dir, at.name.as_bytes());
                let removed = errno(removed.await);
                let expected = self.tree.remove(dir_id, at.name);
                self.told(removed, expected, libc::ENOENT, &format!("rmdir {at:?}"));
            }
            Step::List { dirs, plus } => self.list(dirs, *plus).await,
            _ => unreachable!("no name in it"),
        }
    }

    async fn link(&mut self, from: &Place, to: &Place) {
        let Some((_, Some((entry, id)))) = self.find(from).await else {
            return;
        };
        let Some(((dir, dir_id), found)) = self.find(to).await else {
            return;
        };
        if self.tree.is_dir(id) || self.unsure && found.is_some() {
            return;
        }
        let mount = &self.mount;
        let name = to.name.as_bytes();
        let linked = mount.vfs.link(&mount.cred, entry.ino, dir, name).await;
        let expected = self.tree.link(id, dir_id, to.name);
        if let Ok(entry) = &linked {
            self.compare_stat(id, &entry.stat, "link");
        }
        let linked = errno(linked).map(drop);
        self.told(
            linked,
            expected,
            libc::EEXIST,
            &format!("link {from:?} {to:?}"),
        );
    }

    async fn rename(&mut self, from: &Place, to: &Place) {
        let Some((source, Some((_, id)))) = self.find(from).await else {
            return;
        };
        let Some((target, victim)) = self.find(to).await else {
            return;
        };
        // As the kernel: kinds agree, nothing goes below itself.
        if self.tree.is_dir(id) && self.tree.is_below(id, target.1) {
            return;
        }
        if let Some((_, victim)) = victim
            && (self.tree.is_dir(victim) != self.tree.is_dir(id)
                || self.tree.hides(victim)
                || self.tree.is_dir(victim) && self.tree.is_below(victim, source.1))
        {
            return;
        }
        let renamed = self
            .mount
            .rename((source.0, from.name), (target.0, to.name))
            .await;
        let expected = self.tree.rename((source.1, from.name), (target.1, to.name));
        let renamed = errno(renamed);
        self.told(
            renamed,
            expected,
            libc::ENOENT,
            &format!("rename {from:?} {to:?}"),
        );
    }

    async fn list(&self, dirs: &[&'static str], plus: bool) {
        let there = self.walk(dirs).await;
        let here = self.tree.walk(dirs);
        assert_eq!(there.map(drop), here.map(drop), "{dirs:?}");
        let (Ok(dir), Ok(id)) = (there, here) else {
            return;
        };
        let mut names = self.mount.list(dir, plus).await.expect("readdir");
        names.retain(|name| !name.starts_with(".nfs"));
        let expected: Vec<_> = self.tree.names(id).unwrap().keys().cloned().collect();
        assert_eq!(names, expected, "names in {dirs:?}");
    }

    /// Everything written is at the server first, so that the two hosts do not
    /// race; and this one has time to forget what it knew.
    async fn foreign(&mut self, foreign: &Foreign) {
        for file in &self.files {
            self.mount.fsync(file.open).await.expect("fsync");
        }
        let fs = self.peer.fs();
        let path = |at: &Place| format!("/{}/{}", at.dirs.join("/"), at.name);
        let find = |tree: &Tree, at: &Place| {
            let dir = tree.walk(&at.dirs)?;
            tree.get(dir, at.name)
        };
        match foreign {
            Foreign::Write { at, offset, len } => {
                if let Ok(id) = find(&self.tree, at)
                    && matches!(self.tree.nodes[id].kind, Kind::File(_))
                {
                    self.written += 1;
                    let data = data(self.written, *len);
                    fs.write_at(&path(at), *offset as u64, &data).unwrap();
                    self.tree.write(id, *offset, &data);
                }
            }
            Foreign::Truncate(at, size) => {
                if let Ok(id) = find(&self.tree, at)
                    && matches!(self.tree.nodes[id].kind, Kind::File(_))
                {
                    fs.truncate(&path(at), *size as u64).unwrap();
                    self.tree.truncate(id, *size);
                }
            }
            Foreign::Make(at) => {
                if let Ok(dir) = self.tree.walk(&at.dirs)
                    && self.tree.get(dir, at.name).is_err()
                {
                    fs.write_file(&path(at), b"foreign").unwrap();
                    let file = Kind::File(b"foreign".to_vec());
                    self.tree.make(dir, at.name, file, 0o644).unwrap();
                }
            }
            Foreign::Remove(at) => {
                if let Ok(dir) = self.tree.walk(&at.dirs)
                    && let Ok(id) = self.tree.get(dir, at.name)
                    && self.tree.nodes[id].opens == 0
                    && !self.tree.hides(id)
                    && self.tree.remove(dir, at.name).is_ok()
                {
                    fs.remove(&path(at)).unwrap();
                }
            }
            Foreign::Rename(from, to) => self.foreign_rename(from, to),
        }
        seconds(FORGOTTEN).await;
        for file in &self.files {
            // What the kernel asks before it reads from its cache.
            let stat = self.mount.getattr(file.open.ino).await.expect("getattr");
            self.compare_stat(file.id, &stat, "getattr");
        }
    }

    fn foreign_rename(&mut self, from: &Place, to: &Place) {
        let path = |at: &Place| format!("/{}/{}", at.dirs.join("/"), at.name);
        let tree = &mut self.tree;
        let (Ok(source), Ok(target)) = (tree.walk(&from.dirs), tree.walk(&to.dirs)) else {
            return;
        };
        let Ok(id) = tree.get(source, from.name) else {
            return;
        };
        // Only to where nothing is: what it replaced may be open here.
        if tree.get(target, to.name).is_ok() || tree.is_dir(id) && tree.is_below(id, target) {
            return;
        }
        tree.rename((source, from.name), (target, to.name)).unwrap();
        self.peer.fs().rename(&path(from), &path(to)).unwrap();
    }

    fn fault(&self, fault: &Fault) {
        // A file that has no name even at the server goes when its opens do.
        let nameless = self.setting.peer.preserve_unlinked && self.tree.any_orphan();
        match *fault {
            Fault::Cut => self.peer.cut_all_connections(),
            Fault::CutAt(number, after) => {
                let action = match after {
                    true => Action::DropConnectionAfter,
                    false => Action::DropConnectionBefore,
                };
                once_at(&self.peer, number, action);
            }
            Fault::LoseSession => self.peer.destroy_sessions(),
            Fault::LoseUnstable => self.peer.lose_unstable_data(),
            Fault::Restart if !nameless => self.peer.crash_and_restart(),
            Fault::Expire if !nameless => self.peer.expire_clients(),
            // What is removed before the loss is noticed is gone.
            Fault::Revoke if !self.setting.peer.preserve_unlinked => {
                self.peer.revoke_state(st::ADMIN_REVOKED)
            }
            Fault::Restart | Fault::Expire | Fault::Revoke => {}
            Fault::Latency(millis) => self.peer.set_latency(Duration::from_millis(millis)),
            Fault::ShortIo(write, read) => self.peer.limit_io(write, read),
            Fault::Target(highest) => self.peer.set_target_highest_slotid(Some(highest)),
        }
    }

    /// Closes everything, then compares the tree as this mount sees it and as
    /// the server has it.
    async fn end(&mut self) {
        while !self.files.is_empty() {
            self.close(0).await;
        }
        self.mount.vfs.settled().await;
        assert_eq!(self.peer.open_count(), 0, "nothing is open");
        let mut left = vec![(String::new(), ROOT_INO, ROOT)];
        while let Some((path, ino, id)) = left.pop() {
            let names = self.tree.names(id).unwrap();
            let expected: Vec<_> = names.keys().cloned().collect();
            let listed = self.mount.list(ino, true).await.expect("readdir");
            assert_eq!(listed, expected, "in {path}/");
            let real = self.peer.fs().list(&format!("{path}/")).unwrap();
            assert_eq!(real, expected, "in {path}/ at the server");
            for (name, &child) in names {
                let path = format!("{path}/{name}");
                let entry = self.mount.lookup(ino, name).await.expect("lookup");
                let entry = entry.expect("the name");
                self.stat(entry.ino, child).await;
                match &self.tree.nodes[child].kind {
                    Kind::Dir(_) => left.push((path, entry.ino, child)),
                    Kind::File(content) => {
                        let real = self.peer.fs().read_file(&path).unwrap();
                        assert!(real == *content, "{path} at the server");
                        let unstable = self.peer.fs().has_unstable(&path).unwrap();
                        assert!(!unstable, "{path} is not stable after close");
                    }
                    Kind::Link(_) => {}
                }
            }
        }
    }
}
