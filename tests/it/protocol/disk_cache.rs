//! `-o cache=` against the scripted server: which READ is asked for, and which data may be kept.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use efs_fuse::disk_cache::{Amount, DiskCache, DiskCacheConfig, FileSystemId};
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::VfsConfig;

use super::rig::{Mount, connect, default_timeouts, millis, nocto};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

/// A mount with a cache, and what that has counted.
pub(super) struct Host {
    pub(super) mount: Mount,
    pub(super) metrics: Arc<Metrics>,
}

impl Host {
    pub(super) async fn of(peer: &Arc<Peer>, name: &str, dir: &Path) -> Self {
        let client = connect(peer, name).await;
        let mount = Mount::over(&client, peer, default_timeouts(), 64 << 20);
        Self::with(mount, dir)
    }

    async fn behaving(peer: &Arc<Peer>, name: &str, dir: &Path, config: VfsConfig) -> Self {
        let client = connect(peer, name).await;
        Self::with(Mount::behaving(&client, peer, config), dir)
    }

    fn with(mount: Mount, dir: &Path) -> Self {
        let metrics = Metrics::new();
        let config = DiskCacheConfig {
            dir: dir.join("cache"),
            size: Amount::Bytes(64 << 20),
            min_free: Amount::Bytes(0),
            secret: false,
        };
        let fs = FileSystemId::of(&[b"the peer"]);
        let disk = DiskCache::open(&config, fs, &metrics).expect("a cache");
        mount.vfs.set_disk_cache(disk);
        Self { mount, metrics }
    }

    /// Opens, reads to the end and closes, as a kernel without pages does.
    pub(super) async fn cat(&self, path: &str) -> Vec<u8> {
        let ino = self.mount.walk(path).await.expect("lookup");
        let file = self.mount.open(ino, libc::O_RDONLY).await.expect("open");
        let mut data = Vec::new();
        loop {
            let at = data.len() as u64;
            let piece = self.mount.read(file, at, 128 << 10).await.expect("read");
            let ended = piece.len() < 128 << 10;
            data.extend_from_slice(&piece);
            if ended {
                break;
            }
        }
        self.mount.close(file).await.expect("close");
        data
    }

    pub(super) fn count(&self, name: &str) -> i64 {
        let disk = self.metrics.disk_cache.get().expect("a cache");
        let found = disk.read().into_iter().find(|(key, _)| *key == name);
        found.expect("a number").1
    }

    /// Waits until so much is on the disk.
    async fn filled(&self, bytes: usize) {
        for _ in 0..2000 {
            if self.count("filled_bytes") >= bytes as i64 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            millis(1).await;
        }
        panic!("{} of {bytes}", self.count("filled_bytes"));
    }
}

/// READs that the server was sent, those that came along with an OPEN among them.
pub(super) fn reads(peer: &Peer) -> usize {
    let log = peer.log();
    log.iter()
        .filter(|entry| entry.ops.contains(&op::READ))
        .count()
}

pub(super) fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at / 251) as u8 ^ seed.wrapping_mul(37))
        .collect()
}

/// Knows the file's change attribute for long enough, then reads it.
async fn read_in(host: &Host, path: &str, data: &[u8]) {
    let ino = host.mount.walk(path).await.expect("lookup");
    let file = host.mount.open(ino, libc::O_WRONLY).await.expect("open");
    host.mount.close(file).await.expect("close");
    millis(1100).await;
    let before = host.count("filled_bytes") as usize;
    assert!(host.cat(path).await == data);
    host.filled(before + data.len()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_on_the_disk_is_not_read_from_the_server_again_and_an_open_costs_one_request() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let (large, small) = (content(1, 1_000_000), content(2, 3000));
    peer.fs().write_file("/large", &large).unwrap();
    peer.fs().write_file("/small", &small).unwrap();
    let one = Host::of(&peer, "one", dir.path()).await;
    read_in(&one, "/large", &large).await;
    read_in(&one, "/small", &small).await;
    let two = Host::of(&peer, "two", dir.path()).await;
    for (path, data) in [("/large", &large), ("/small", &small)] {
        two.mount.walk(path).await.unwrap();
        peer.clear_log();
        assert!(two.cat(path).await == *data);
        let log = peer.log();
        let asked = log
            .iter()
            .filter(|entry| entry.ops.contains(&op::OPEN) || !entry.ops.contains(&op::CLOSE));
        let asked: Vec<_> = asked.map(|entry| entry.ops.clone()).collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(asked[0].contains(&op::OPEN), "{asked:?}");
    }
    assert_eq!(two.count("miss_bytes"), 0);
    let all = (large.len() + small.len()) as i64;
    // What was read ahead at the end of the file is read once more.
    assert!(two.count("hit_bytes") >= all);
}

#[tokio::test(start_paused = true)]
async fn without_a_cache_a_read_asks_for_nothing_else_and_with_one_for_the_change_attribute() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let data = content(1, 300_000);
    peer.fs().write_file("/f", &data).unwrap();
    let plain = Mount::of(&peer, "plain", default_timeouts()).await;
    let host = Host::of(&peer, "one", dir.path()).await;
    for (mount, ops) in [
        (&plain, vec![op::SEQUENCE, op::PUTFH, op::READ]),
        (
            &host.mount,
            vec![op::SEQUENCE, op::PUTFH, op::READ, op::GETATTR],
        ),
    ] {
        let ino = mount.walk("/f").await.unwrap();
        let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
        peer.clear_log();
        mount.read(file, 0, 128 << 10).await.unwrap();
        let log = peer.log();
        let read = log.iter().find(|entry| entry.ops.contains(&op::READ));
        assert_eq!(read.map(|entry| entry.ops.clone()), Some(ops));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_attribute_that_two_changes_share_never_brings_back_the_first_ones_data() {
    let tick = Duration::from_millis(4);
    for wait_to_open in [0, 1, 3, 900] {
        for wait_to_read in [0, 1, 500, 2000] {
            for wait_to_change in [0, 1, 5] {
                for len in [3000, 400_000] {
                    let dir = tempfile::tempdir().expect("temporary directory");
                    let peer = Peer::new(PeerConfig::default());
                    peer.fs().make_changes_coarse(tick);
                    let (first, second) = (content(1, len), content(2, len));
                    peer.fs().write_file("/f", &first).unwrap();
                    let one = Host::of(&peer, "one", dir.path()).await;
                    let ino = one.mount.walk("/f").await.unwrap();
                    millis(wait_to_open).await;
                    peer.fs().write_file("/f", &first).unwrap();
                    let file = one.mount.open(ino, libc::O_RDONLY).await.unwrap();
                    millis(wait_to_read).await;
                    one.mount.read(file, 0, 128 << 10).await.unwrap();
                    millis(wait_to_change).await;
                    peer.fs().write_file("/f", &second).unwrap();
                    one.mount.close(file).await.unwrap();
                    // What is to be put on the disk has come there.
                    std::thread::sleep(Duration::from_millis(5));
                    millis(20).await;
                    let two = Host::of(&peer, "two", dir.path()).await;
                    let case = (wait_to_open, wait_to_read, wait_to_change, len);
                    assert!(two.cat("/f").await == second, "{case:?}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn data_read_in_the_middle_of_a_change_are_not_kept() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let (first, second) = (content(1, 300_000), content(2, 300_000));
    peer.fs().write_file("/f", &first).unwrap();
    let one = Host::of(&peer, "one", dir.path()).await;
    let ino = one.mount.walk("/f").await.unwrap();
    let file = one.mount.open(ino, libc::O_RDONLY).await.unwrap();
    millis(1100).await;
    // Somebody changes the file between the open and the READ.
    peer.fs().write_file("/f", &second).unwrap();
    let read = one.mount.read(file, 0, 128 << 10).await.unwrap();
    assert!(read == second[..128 << 10]);
    std::thread::sleep(Duration::from_millis(20));
    millis(20).await;
    assert_eq!(one.count("filled_bytes"), 0);
    // And what the disk may have of the version before is not given out behind it.
    let again = one.mount.read(file, 128 << 10, 128 << 10).await.unwrap();
    assert!(again == second[128 << 10..256 << 10]);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_given_older_bytes_of_the_disk_after_newer_ones_of_the_server() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let (first, second) = (content(1, 400_000), content(2, 400_000));
    peer.fs().write_file("/f", &first).unwrap();
    let one = Host::of(&peer, "one", dir.path()).await;
    read_in(&one, "/f", &first).await;
    let ino = one.mount.walk("/f").await.unwrap();
    let file = one.mount.open(ino, libc::O_RDONLY).await.unwrap();
    let read = one.mount.read(file, 0, 64 << 10).await.unwrap();
    assert!(read == first[..64 << 10]);
    let direct = one.mount.open(ino, libc::O_RDONLY).await.unwrap();
    peer.fs().write_file("/f", &second).unwrap();
    // Another descriptor, which asks the server, shows what is new.
    let vfs = &one.mount.vfs;
    let newer = vfs.read(direct.fh, 0, 64 << 10, libc::O_DIRECT).await;
    assert!(newer.expect("read")[..] == second[..64 << 10]);
    let behind = one.mount.read(file, 0, 64 << 10).await.unwrap();
    assert!(behind == second[..64 << 10]);
}

#[tokio::test(start_paused = true)]
async fn with_nocto_nothing_is_asked_for_what_is_on_the_disk() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let data = content(1, 300_000);
    peer.fs().write_file("/f", &data).unwrap();
    let config = nocto(default_timeouts());
    let one = Host::behaving(&peer, "one", dir.path(), config).await;
    read_in(&one, "/f", &data).await;
    one.cat("/f").await;
    millis(100).await;
    peer.clear_log();
    assert!(one.cat("/f").await == data);
    assert_eq!(reads(&peer), 0, "{:?}", peer.log());
    assert_eq!(peer.round_trips(), 0, "{:?}", peer.log());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_tells_no_change_attribute_behind_a_read_is_read_without_the_disk() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let data = content(1, 300_000);
    peer.fs().write_file("/f", &data).unwrap();
    let one = Host::of(&peer, "one", dir.path()).await;
    peer.on_op(|event| {
        let behind = event.op == op::GETATTR && event.compound.contains(&op::READ);
        match behind {
            true => Action::Fail(crate::peer::proto::st::SERVERFAULT),
            false => Action::Pass,
        }
    });
    for _ in 0..3 {
        millis(1100).await;
        assert!(one.cat("/f").await == data);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(one.count("filled_bytes"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_this_host_writes_is_read_back_and_not_what_the_disk_has() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let mut data = content(1, 300_000);
    peer.fs().write_file("/f", &data).unwrap();
    let one = Host::of(&peer, "one", dir.path()).await;
    read_in(&one, "/f", &data).await;
    let ino = one.mount.walk("/f").await.unwrap();
    let reader = one.mount.open(ino, libc::O_RDONLY).await.unwrap();
    one.mount.read(reader, 0, 64 << 10).await.unwrap();
    let writer = one.mount.open(ino, libc::O_WRONLY).await.unwrap();
    one.mount.write(writer, 70_000, b"new").await.unwrap();
    data[70_000..70_003].copy_from_slice(b"new");
    let read = one.mount.read(reader, 64 << 10, 64 << 10).await.unwrap();
    assert!(read == data[64 << 10..128 << 10]);
    one.mount
        .truncate(ino, Some(writer.fh), 100_000)
        .await
        .unwrap();
    data.truncate(100_000);
    one.mount.close(writer).await.unwrap();
    let read = one.mount.read(reader, 64 << 10, 64 << 10).await.unwrap();
    assert!(read == data[64 << 10..]);
    assert!(one.cat("/f").await == data);
}
