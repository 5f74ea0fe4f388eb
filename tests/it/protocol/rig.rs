//! What every test here starts from: a client on a scripted server, with
//! nothing between them but memory and tokio's paused clock.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use efs_fuse::disk_cache::{Amount, DiskCache, DiskCacheConfig, FileSystemId};
use efs_fuse::nfs::calls::HowToOpen;
use efs_fuse::nfs::proto::attrs::NewAttributes;
use efs_fuse::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE, Make};
use efs_fuse::nfs::proto::types::FileHandle;
use efs_fuse::nfs::session::establish::Identity;
use efs_fuse::nfs::state::OpenState;
use efs_fuse::nfs::{Client, ClientConfig, NfsError};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::transport::Connector;
use efs_fuse::rpc::{Connections, Tolerance};
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::Timeouts;
use efs_fuse::vfs::handover::VfsState;
use efs_fuse::vfs::types::{
    DirEntry, DirSink, Entry, Errno, Ino, Lookup, MissingNames, ROOT_INO, SetAttr,
};
use efs_fuse::vfs::{Vfs, VfsConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

/// Operations that change something and must not run twice.
pub(crate) const ONCE: [u32; 6] = [
    op::CREATE,
    op::REMOVE,
    op::RENAME,
    op::LINK,
    op::OPEN,
    op::SETATTR,
];

/// Fails the test if `future` needs longer than `secs` of the (virtual) clock:
/// what waits for nothing would else wait for ever.
pub(crate) async fn within<T>(secs: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(secs), future)
        .await
        .unwrap_or_else(|_| panic!("not answered within {secs} s"))
}

pub(crate) async fn seconds(secs: u64) {
    tokio::time::sleep(Duration::from_secs(secs)).await;
}

pub(crate) async fn millis(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Runs futures at once. (They are polled in turn; there are few.)
pub(crate) async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut waits = false;
        for (future, slot) in running.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *slot = Some(value),
                    std::task::Poll::Pending => waits = true,
                }
            }
        }
        if waits {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity {
        owner: format!("efs-fuse test {name}").into_bytes(),
        verifier: [7; 8],
        machine_name: "tester".to_owned(),
    }
}

pub(crate) fn client_config(name: &str) -> ClientConfig {
    ClientConfig {
        identity: identity(name),
        slots: 64,
        rsize: 1 << 20,
        wsize: 1 << 20,
        tolerance: Tolerance::default(),
        connections: Connections::ONE,
        suspended: slept,
        wal: efs_fuse::wal::Wal::off(),
    }
}

thread_local! {
    static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn slept() -> Duration {
    SLEPT.get()
}

/// The machine was suspended for so long: leases ran on, tokio's clock did not.
pub(crate) fn suspend(time: Duration) {
    SLEPT.set(SLEPT.get() + time);
}

/// A client and its server.
pub(crate) struct Rig {
    pub(crate) peer: Arc<Peer>,
    pub(crate) client: Arc<Client>,
    pub(crate) cred: Arc<Credential>,
    pub(crate) root: FileHandle,
}

impl Rig {
    pub(crate) async fn new(cfg: PeerConfig) -> Self {
        Self::of(Peer::new(cfg), "one").await
    }

    /// With several connections.
    pub(crate) async fn with(cfg: PeerConfig, connections: Connections) -> Self {
        let peer = Peer::new(cfg);
        let config = ClientConfig {
            connections,
            ..client_config("one")
        };
        let client = connect_as(&peer, config, Metrics::new()).await;
        Self {
            root: client.fs().root.clone(),
            peer,
            client,
            cred: Credential::machine(),
        }
    }

    /// Another client of the same server.
    pub(crate) async fn of(peer: Arc<Peer>, name: &str) -> Self {
        let client = connect(&peer, name).await;
        Self {
            root: client.fs().root.clone(),
            peer,
            client,
            cred: Credential::machine(),
        }
    }

    pub(crate) async fn mkdir(&self, name: &str) -> Result<FileHandle, NfsError> {
        let new = NewAttributes {
            mode: Some(0o755),
            ..NewAttributes::default()
        };
        self.client
            .make(
                &self.cred,
                &self.root,
                name.as_bytes(),
                Make::Directory,
                &new,
            )
            .await
            .map(|made| made.handle)
    }

    pub(crate) async fn symlink(&self, name: &str, target: &str) -> Result<FileHandle, NfsError> {
        let new = NewAttributes::default();
        let make = Make::Symlink(target.as_bytes());
        self.client
            .make(&self.cred, &self.root, name.as_bytes(), make, &new)
            .await
            .map(|made| made.handle)
    }

    pub(crate) async fn create(
        &self,
        name: &str,
        how: HowToOpen,
    ) -> Result<Arc<OpenState>, NfsError> {
        self.client
            .create(
                &self.cred,
                &self.root,
                name.as_bytes(),
                ACCESS_READ | ACCESS_WRITE,
                0o644,
                how,
            )
            .await
            .map(|file| file.open)
    }

    pub(crate) async fn lookup(&self, name: &str) -> Result<Option<FileHandle>, NfsError> {
        let found = self
            .client
            .lookup(&self.cred, &self.root, name.as_bytes())
            .await?;
        Ok(found.object.map(|(handle, _)| handle))
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<(), NfsError> {
        self.client
            .remove(&self.cred, &self.root, name.as_bytes())
            .await
            .map(drop)
    }

    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<(), NfsError> {
        self.client
            .rename(
                &self.cred,
                (&self.root, from.as_bytes()),
                (&self.root, to.as_bytes()),
                None,
            )
            .await
            .map(drop)
    }

    pub(crate) async fn link(&self, object: &FileHandle, name: &str) -> Result<(), NfsError> {
        self.client
            .link(&self.cred, object, &self.root, name.as_bytes())
            .await
            .map(drop)
    }

    pub(crate) async fn chmod(&self, object: &FileHandle, mode: u32) -> Result<(), NfsError> {
        let new = NewAttributes {
            mode: Some(mode),
            ..NewAttributes::default()
        };
        self.client
            .set_attrs(&self.cred, object, None, &new)
            .await
            .map(drop)
    }
}

pub(crate) async fn connect(peer: &Arc<Peer>, name: &str) -> Arc<Client> {
    connect_as(peer, client_config(name), Metrics::new()).await
}

pub(crate) async fn connect_as(
    peer: &Arc<Peer>,
    config: ClientConfig,
    metrics: Arc<Metrics>,
) -> Arc<Client> {
    connect_by(peer.connector(), config, metrics).await
}

/// The same on a way of its own.
pub(crate) async fn connect_by(
    connector: Arc<dyn Connector>,
    config: ClientConfig,
    metrics: Arc<Metrics>,
) -> Arc<Client> {
    let client = Client::connect(connector, config, metrics)
        .await
        .expect("a session");
    client
        .find_root(&Credential::machine(), b"/")
        .await
        .expect("the root");
    client
}

/// Cuts the connection at the next operation `op`, once.
pub(crate) fn once_at(peer: &Peer, wanted: u32, action: Action) {
    let mut action = Some(action);
    peer.on_op(move |event| {
        if event.op == wanted {
            action.take().unwrap_or(Action::Pass)
        } else {
            Action::Pass
        }
    });
}

pub(crate) fn default_timeouts() -> Timeouts {
    let s = Duration::from_secs;
    Timeouts {
        reg_min: s(3),
        reg_max: s(60),
        dir_min: s(30),
        dir_max: s(60),
    }
}

fn vfs_config(timeouts: Timeouts, write_window: usize, missing_names: MissingNames) -> VfsConfig {
    VfsConfig {
        timeouts,
        write_window,
        read_ahead: 8 << 20,
        max_names: 10_000,
        missing_names,
        max_inodes: usize::MAX,
        asks_who_searches: false,
        writeback: None,
        close_to_open: true,
    }
}

/// A mount of which nothing is said but the times.
pub(crate) fn plain(timeouts: Timeouts) -> VfsConfig {
    vfs_config(timeouts, 64 << 20, MissingNames::AskedFor)
}

/// A mount with `writeback`.
pub(crate) fn ahead(timeouts: Timeouts) -> VfsConfig {
    VfsConfig {
        writeback: Some(Duration::from_secs(1)),
        ..plain(timeouts)
    }
}

/// A mount with `nocto`.
pub(crate) fn nocto(timeouts: Timeouts) -> VfsConfig {
    VfsConfig {
        close_to_open: false,
        ..plain(timeouts)
    }
}

/// What a process has written down for another one.
pub(crate) struct Estate {
    client: Vec<u8>,
    vfs: Vec<u8>,
    pub(crate) peer: Arc<Peer>,
}

/// In bytes, from which the same is read again.
fn written_down<T>(state: &T) -> Vec<u8>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = rmp_serde::to_vec_named(state).expect("it is written");
    let again: T = rmp_serde::from_slice(&bytes).expect("it is read");
    assert!(again == *state, "{again:?} is not {state:?}");
    bytes
}

impl Estate {
    /// What is written down of the file system.
    pub(crate) fn vfs(&self) -> VfsState {
        rmp_serde::from_slice(&self.vfs).expect("it is read")
    }

    /// Bytes of it.
    pub(crate) fn size(&self) -> usize {
        self.vfs.len()
    }

    /// Another process goes on with it.
    pub(crate) async fn taken_over(&self, timeouts: Timeouts) -> Mount {
        let (mount, _) = self.taken_over_with(timeouts).await;
        mount
    }

    /// The same, and what it counts.
    pub(crate) async fn taken_over_with(&self, timeouts: Timeouts) -> (Mount, Arc<Metrics>) {
        self.taken_over_as(plain(timeouts)).await
    }

    /// The same by one that behaves so.
    pub(crate) async fn taken_over_as(&self, behaviour: VfsConfig) -> (Mount, Arc<Metrics>) {
        let state = rmp_serde::from_slice(&self.client).expect("it is read");
        let config = client_config("nobody asks for this one");
        let metrics = Metrics::new();
        let client =
            Client::take_over(self.peer.connector(), config, Arc::clone(&metrics), state).await;
        let (client, taken) = client.expect("the server goes on with it");
        let vfs = Vfs::take_over(client, behaviour, Arc::clone(&metrics), self.vfs(), taken);
        let vfs = vfs.expect("the state is whole");
        with_disk_cache(&vfs, &self.peer);
        let mount = Mount {
            vfs,
            peer: Arc::clone(&self.peer),
            cred: Credential::machine(),
        };
        (mount, metrics)
    }
}

/// With `EFS_FUSE_TEST_CACHE=1` hosts have a disk cache, all of a peer the same: what tests hold with.
fn with_disk_cache(vfs: &Vfs, peer: &Arc<Peer>) {
    if std::env::var_os("EFS_FUSE_TEST_CACHE").is_none() {
        return;
    }
    let config = DiskCacheConfig {
        dir: peer.fs().cache_dir().join("cache"),
        size: Amount::Bytes(16 << 20),
        min_free: Amount::Bytes(0),
        secret: false,
    };
    let fs = FileSystemId::of(&[b"the peer"]);
    let disk = DiskCache::open(&config, fs, &Metrics::new()).expect("a cache");
    vfs.set_disk_cache(disk);
}

/// A mounted file system without a kernel.
pub(crate) struct Mount {
    pub(crate) vfs: Arc<Vfs>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) cred: Arc<Credential>,
}

/// A file that this mount has open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    pub(crate) ino: Ino,
    pub(crate) fh: u64,
}

impl Mount {
    pub(crate) async fn new(cfg: PeerConfig) -> Self {
        Self::of(&Peer::new(cfg), "one", default_timeouts()).await
    }

    pub(crate) async fn of(peer: &Arc<Peer>, name: &str, timeouts: Timeouts) -> Self {
        let client = connect(peer, name).await;
        Self::over(&client, peer, timeouts, 64 << 20)
    }

    pub(crate) fn over(
        client: &Arc<Client>,
        peer: &Arc<Peer>,
        timeouts: Timeouts,
        write_window: usize,
    ) -> Self {
        Self::knowing(client, peer, timeouts, write_window, MissingNames::AskedFor)
    }

    /// The same, with `lookupcache=` as is said.
    pub(crate) fn knowing(
        client: &Arc<Client>,
        peer: &Arc<Peer>,
        timeouts: Timeouts,
        write_window: usize,
        missing_names: MissingNames,
    ) -> Self {
        Self::behaving(
            client,
            peer,
            vfs_config(timeouts, write_window, missing_names),
        )
    }

    /// The same, that behaves so.
    pub(crate) fn behaving(client: &Arc<Client>, peer: &Arc<Peer>, config: VfsConfig) -> Self {
        let vfs = Vfs::new(Arc::clone(client), config, Instant::now(), Metrics::new());
        with_disk_cache(&vfs, peer);
        Self {
            vfs,
            peer: Arc::clone(peer),
            cred: Credential::machine(),
        }
    }

    /// One whose changes are answered before the server knows of them.
    pub(crate) fn ahead(client: &Arc<Client>, peer: &Arc<Peer>) -> Self {
        Self::behaving(client, peer, ahead(default_timeouts()))
    }

    /// The process ends, for another one to go on.
    pub(crate) async fn left(self) -> Estate {
        within(600, self.vfs.drained()).await;
        let estate = Estate {
            vfs: written_down(&self.vfs.hand_over()),
            client: written_down(&self.vfs.client().hand_over()),
            peer: self.peer,
        };
        // A process ends with its tasks.
        let client = Arc::downgrade(self.vfs.client());
        drop(self.vfs);
        let ended = async {
            while client.strong_count() > 0 {
                millis(1).await;
            }
        };
        within(60, ended).await;
        estate
    }

    /// Another process goes on with it.
    pub(crate) async fn handed_over(self) -> Self {
        self.left().await.taken_over(default_timeouts()).await
    }

    /// As the kernel does: what is remembered first, then the server.
    pub(crate) async fn lookup(&self, dir: Ino, name: &str) -> Result<Option<Entry>, Errno> {
        let name = name.as_bytes();
        let answer = match self.vfs.lookup_cached(dir, name) {
            Some(answer) => answer,
            None => self.vfs.lookup(&self.cred, dir, name).await,
        };
        match answer? {
            Lookup::Found(entry) => Ok(Some(entry)),
            Lookup::Missing { .. } => Ok(None),
        }
    }

    /// The number of a path below the root.
    pub(crate) async fn walk(&self, path: &str) -> Result<Ino, Errno> {
        let mut at = ROOT_INO;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match self.lookup(at, name).await? {
                Some(entry) => at = entry.ino,
                None => return Err(Errno(libc::ENOENT)),
            }
        }
        Ok(at)
    }

    pub(crate) async fn create(&self, dir: Ino, name: &str, flags: i32) -> Result<Open, Errno> {
        let flags = flags | libc::O_CREAT;
        let (entry, opened) = self
            .vfs
            .create(&self.cred, dir, name.as_bytes(), 0o644, flags)
            .await?;
        Ok(Open {
            ino: entry.ino,
            fh: opened.fh,
        })
    }

    pub(crate) async fn open(&self, ino: Ino, flags: i32) -> Result<Open, Errno> {
        let opened = self.vfs.open(&self.cred, ino, flags).await?;
        Ok(Open { ino, fh: opened.fh })
    }

    pub(crate) async fn write(&self, file: Open, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let data = self.vfs.copy(data);
        let len = data.len() as u32;
        let written = self
            .vfs
            .write(
                file.fh,
                offset,
                data,
                efs_fuse::vfs::types::WriteFlags::default(),
            )
            .await?;
        assert_eq!(written, len, "a buffered write is whole");
        Ok(())
    }

    pub(crate) async fn read(&self, file: Open, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let data = self.vfs.read(file.fh, offset, size, libc::O_RDONLY).await?;
        assert!(data.len() <= size as usize, "more than was asked for");
        Ok(data.to_vec())
    }

    pub(crate) async fn fsync(&self, file: Open) -> Result<(), Errno> {
        self.vfs.fsync(file.fh).await.map_err(Errno::from)
    }

    pub(crate) async fn flush(&self, file: Open) -> Result<(), Errno> {
        self.vfs.flush(file.fh, 0).await.map_err(Errno::from)
    }

    pub(crate) async fn release(&self, file: Open) {
        self.vfs.release(file.fh).await.expect("an open handle");
    }

    /// close(2), and the RELEASE that follows it.
    pub(crate) async fn close(&self, file: Open) -> Result<(), Errno> {
        let flushed = self.flush(file).await;
        self.release(file).await;
        flushed
    }

    pub(crate) async fn getattr(&self, ino: Ino) -> Result<efs_fuse::vfs::types::Stat, Errno> {
        if let Some((stat, _)) = self.vfs.getattr_cached(ino, None) {
            return Ok(stat);
        }
        Ok(self.vfs.getattr(&self.cred, ino, None).await?.0)
    }

    pub(crate) async fn truncate(&self, ino: Ino, fh: Option<u64>, size: u64) -> Result<(), Errno> {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        self.vfs
            .setattr(&self.cred, ino, fh, set)
            .await
            .map(|(stat, _)| assert_eq!(stat.size, size, "the size that was set"))
            .map_err(Errno::from)
    }

    pub(crate) async fn mkdir(&self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        self.vfs
            .mkdir(&self.cred, dir, name.as_bytes(), 0o755)
            .await
            .map(|entry| entry.ino)
            .map_err(Errno::from)
    }

    pub(crate) async fn unlink(&self, dir: Ino, name: &str) -> Result<(), Errno> {
        self.vfs
            .unlink(&self.cred, dir, name.as_bytes())
            .await
            .map_err(Errno::from)
    }

    pub(crate) async fn rename(&self, from: (Ino, &str), to: (Ino, &str)) -> Result<(), Errno> {
        self.vfs
            .rename(
                &self.cred,
                from.0,
                from.1.as_bytes(),
                to.0,
                to.1.as_bytes(),
                0,
            )
            .await
            .map_err(Errno::from)
    }

    /// The names of a directory but "." and "..", in order.
    pub(crate) async fn list(&self, dir: Ino, plus: bool) -> Result<Vec<String>, Errno> {
        self.list_as(1, dir, plus).await
    }

    /// The same by one of several threads.
    pub(crate) async fn list_as(
        &self,
        thread: u32,
        dir: Ino,
        plus: bool,
    ) -> Result<Vec<String>, Errno> {
        let opened = self.vfs.opendir(&self.cred, dir, thread).await?;
        let names = self.read_dir(opened.fh, plus).await;
        self.vfs.releasedir(opened.fh).await?;
        names
    }

    /// What a directory that is open holds, from its beginning on.
    pub(crate) async fn read_dir(&self, fh: u64, plus: bool) -> Result<Vec<String>, Errno> {
        let mut names = Names::default();
        let mut at = 0;
        loop {
            names.room = 100;
            let before = names.names.len();
            self.vfs.readdir(fh, at, plus, &mut names).await?;
            if names.names.len() == before {
                break;
            }
            at = names.last;
        }
        let mut names = names.names;
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }
}

/// What of a directory has come in.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) names: Vec<String>,
    /// Where it goes on behind the last one.
    pub(crate) last: u64,
    /// So many more are taken.
    pub(crate) room: usize,
}

impl Names {
    fn take(&mut self, entry: &DirEntry<'_>) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.last = entry.offset;
        self.names
            .push(String::from_utf8_lossy(entry.name).into_owned());
        true
    }
}

impl DirSink for Names {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        self.take(entry)
    }

    fn add_plus(&mut self, entry: &DirEntry<'_>, _plus: &Entry) -> bool {
        self.take(entry)
    }
}
