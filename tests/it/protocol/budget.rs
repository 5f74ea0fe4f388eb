//! What each operation costs in round trips. Latency is what users of a remote
//! file system feel, so a number that gets worse fails; one that gets better is
//! to be written down here.

use std::time::Duration;

use efs_fuse::vfs::types::ROOT_INO;

use super::rig::{Mount, millis, within};
use crate::peer::PeerConfig;
use crate::peer::proto::op;

const LOOKUP: u64 = 1;
const LOOKUP_AGAIN: u64 = 0;
const LOOKUP_MISSING: u64 = 1;
const LOOKUP_MISSING_AGAIN: u64 = 0;
const GETATTR_FRESH: u64 = 0;
const GETATTR_STALE: u64 = 1;
const OPEN: u64 = 1;
/// The file is cut when it is known to be the one.
const OPEN_AND_CUT: u64 = 2;
const CREATE: u64 = 1;
/// Its data have come along.
const READ_SMALL: u64 = 0;
const READ: u64 = 1;
const SMALL_WRITE: u64 = 0;
const SMALL_FLUSH: u64 = 1;
const FLUSH_NOTHING: u64 = 0;
/// CLOSE waits for an OPEN or for others.
const RELEASE: u64 = 0;
/// Of seven files that were open at the same time: their CLOSEs.
const SEVEN_RELEASED: u64 = 1;
/// Of seven files one after the other: each CLOSE goes along with the next OPEN.
const SEVEN_OPENED_AND_RELEASED: u64 = 7;
/// An open, a write, an fsync and a close of a file that exists.
const APPEND: u64 = 2;
/// Times, owner and mode of a file that was just made and is still open.
const SET_THREE: u64 = 0;
/// With the data.
const FLUSH_DATA_AND_SET: u64 = 1;
const TRUNCATE: u64 = 1;
const CHMOD: u64 = 1;
const MKDIR: u64 = 1;
const SYMLINK: u64 = 1;
const READLINK: u64 = 1;
const READLINK_OURS: u64 = 0;
const READLINK_AGAIN: u64 = 0;
const LINK: u64 = 1;
const RENAME: u64 = 1;
const UNLINK: u64 = 1;
const RMDIR: u64 = 1;
/// With the first page.
const OPENDIR: u64 = 1;
/// Of a thousand entries that are known from then on.
const READDIR: u64 = 1;
/// After READDIRPLUS.
const LOOKUP_LISTED: u64 = 0;
const STATFS: u64 = 1;
const STATFS_AGAIN: u64 = 0;
const ACCESS: u64 = 1;
const ACCESS_AGAIN: u64 = 0;

struct Bill {
    mount: Mount,
}

impl Bill {
    /// Runs one operation, then asks what it cost.
    async fn costs<T>(&self, what: &str, budget: u64, run: impl Future<Output = T>) -> T {
        self.mount.peer.clear_log();
        let result = within(60, run).await;
        let log = self.mount.peer.log();
        let spent = self.mount.peer.round_trips();
        let ops: Vec<Vec<&str>> = log
            .iter()
            .map(|entry| entry.ops.iter().map(|&number| op::name(number)).collect())
            .collect();
        assert_eq!(spent, budget, "round trips of {what}: {ops:?}");
        result
    }
}

#[tokio::test(start_paused = true)]
async fn no_operation_costs_more_round_trips_than_its_budget() {
    let peer = crate::peer::Peer::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    });
    let fs = peer.fs();
    fs.mkdir("/many").unwrap();
    for number in 0..1000 {
        let name = format!("/many/{number:05}");
        fs.write_file(&name, b"").unwrap();
    }
    fs.write_file("/old", b"old content").unwrap();
    fs.write_file("/large", &vec![1; 1 << 20]).unwrap();
    let mount = Mount::of(&peer, "one", super::rig::default_timeouts()).await;
    let bill = Bill { mount };
    let m = &bill.mount;
    let cred = &m.cred;

    let old = bill
        .costs("lookup", LOOKUP, m.lookup(ROOT_INO, "old"))
        .await;
    let old = old.unwrap().unwrap().ino;
    let again = m.lookup(ROOT_INO, "old");
    bill.costs("lookup again", LOOKUP_AGAIN, again)
        .await
        .unwrap();
    let missing = m.lookup(ROOT_INO, "missing");
    let missing = bill.costs("a missing name", LOOKUP_MISSING, missing).await;
    assert!(missing.unwrap().is_none());
    let missing = m.lookup(ROOT_INO, "missing");
    bill.costs("and again", LOOKUP_MISSING_AGAIN, missing)
        .await
        .unwrap();

    let fresh = bill.costs("getattr", GETATTR_FRESH, m.getattr(old)).await;
    assert_eq!(fresh.unwrap().size, 11);
    super::rig::seconds(61).await;
    let stale = bill.costs("stale getattr", GETATTR_STALE, m.getattr(old));
    stale.await.unwrap();

    let file = bill.costs("open", OPEN, m.open(old, libc::O_RDONLY)).await;
    let file = file.unwrap();
    let data = bill.costs("read", READ_SMALL, m.read(file, 0, 4096)).await;
    assert_eq!(data.unwrap(), b"old content");
    bill.costs("flush of nothing", FLUSH_NOTHING, m.flush(file))
        .await
        .unwrap();
    bill.costs("release", RELEASE, m.release(file)).await;
    let large = m.walk("large").await.unwrap();
    let file = bill.costs("open", OPEN, m.open(large, libc::O_RDONLY));
    let file = file.await.unwrap();
    bill.costs("read", READ, m.read(file, 0, 4096))
        .await
        .unwrap();
    m.release(file).await;

    let create = m.create(ROOT_INO, "new", libc::O_WRONLY | libc::O_EXCL);
    let file = bill.costs("create", CREATE, create).await.unwrap();
    let write = m.write(file, 0, &[1; 4000]);
    bill.costs("a small write", SMALL_WRITE, write)
        .await
        .unwrap();
    bill.costs("and its flush", SMALL_FLUSH, m.flush(file))
        .await
        .unwrap();
    bill.costs("release", RELEASE, m.release(file)).await;
    bill.costs("getattr after", GETATTR_FRESH, m.getattr(file.ino))
        .await
        .unwrap();
    assert!(!peer.fs().has_unstable("/new").unwrap());
    let append = async {
        let file = m.open(file.ino, libc::O_WRONLY).await?;
        m.write(file, 4000, &[2; 100]).await?;
        m.fsync(file).await?;
        m.close(file).await
    };
    bill.costs("append and fsync", APPEND, append)
        .await
        .unwrap();

    let create = m.create(ROOT_INO, "made", libc::O_WRONLY | libc::O_EXCL);
    let made = bill.costs("create", CREATE, create).await.unwrap();
    let changes = [
        efs_fuse::vfs::types::SetAttr {
            mtime: Some(efs_fuse::vfs::types::SetTime::At(Default::default())),
            ..Default::default()
        },
        efs_fuse::vfs::types::SetAttr {
            uid: Some(0),
            gid: Some(0),
            ..Default::default()
        },
        efs_fuse::vfs::types::SetAttr {
            mode: Some(0o600),
            ..Default::default()
        },
    ];
    bill.costs("its attributes", SET_THREE, async {
        m.write(made, 0, &[3; 5000]).await.unwrap();
        for set in changes {
            m.vfs
                .setattr(cred, made.ino, Some(made.fh), set)
                .await
                .unwrap();
        }
    })
    .await;
    bill.costs("its flush", FLUSH_DATA_AND_SET, m.flush(made))
        .await
        .unwrap();
    m.release(made).await;

    m.vfs.client().closes_sent().await;
    let mut seven = Vec::new();
    for number in 0..7 {
        let name = format!("seven{number}");
        let file = m.create(ROOT_INO, &name, libc::O_RDWR).await.unwrap();
        seven.push(file);
    }
    bill.costs("releasing seven", SEVEN_RELEASED, async {
        for &file in &seven {
            m.release(file).await;
        }
        millis(20).await;
    })
    .await;
    let again = "opening and releasing seven, one after the other";
    bill.costs(again, SEVEN_OPENED_AND_RELEASED, async {
        for &file in &seven {
            let file = m.open(file.ino, libc::O_RDONLY).await.unwrap();
            m.release(file).await;
        }
    })
    .await;
    m.vfs.client().closes_sent().await;
    assert_eq!(m.peer.open_count(), 0);

    let cut = m.open(file.ino, libc::O_WRONLY | libc::O_TRUNC);
    let cut = bill.costs("open O_TRUNC", OPEN_AND_CUT, cut).await.unwrap();
    m.close(cut).await.unwrap();
    let truncate = m.truncate(file.ino, None, 10);
    bill.costs("truncate", TRUNCATE, truncate).await.unwrap();
    let set = efs_fuse::vfs::types::SetAttr {
        mode: Some(0o600),
        ..Default::default()
    };
    let chmod = m.vfs.setattr(cred, file.ino, None, set);
    bill.costs("chmod", CHMOD, chmod).await.unwrap();

    let dir = bill.costs("mkdir", MKDIR, m.mkdir(ROOT_INO, "dir")).await;
    let dir = dir.unwrap();
    let symlink = m.vfs.symlink(cred, ROOT_INO, b"soft", b"old");
    let soft = bill.costs("symlink", SYMLINK, symlink).await.unwrap().ino;
    bill.costs("readlink of what we made", READLINK_OURS, async {
        m.vfs.readlink_cached(soft)
    })
    .await
    .expect("remembered");
    fs.symlink("old", "/theirs").unwrap();
    super::rig::seconds(61).await;
    let theirs = m.walk("theirs").await.unwrap();
    let readlink = m.vfs.readlink(cred, theirs);
    bill.costs("readlink", READLINK, readlink).await.unwrap();
    bill.costs("readlink again", READLINK_AGAIN, async {
        m.vfs.readlink_cached(theirs)
    })
    .await
    .expect("remembered");
    let link = m.vfs.link(cred, old, dir, b"hard");
    bill.costs("link", LINK, link).await.unwrap();
    let rename = m.rename((dir, "hard"), (ROOT_INO, "moved"));
    bill.costs("rename", RENAME, rename).await.unwrap();
    bill.costs("unlink", UNLINK, m.unlink(ROOT_INO, "moved"))
        .await
        .unwrap();
    let rmdir = m.vfs.rmdir(cred, ROOT_INO, b"dir");
    bill.costs("rmdir", RMDIR, rmdir).await.unwrap();

    let many = m.walk("many").await.unwrap();
    let opened = m.vfs.opendir(cred, many, 1);
    let opened = bill.costs("opendir", OPENDIR, opened).await.unwrap();
    m.vfs.releasedir(opened.fh).await.unwrap();
    let names = bill.costs("readdir", READDIR, m.list(many, true)).await;
    assert_eq!(names.unwrap().len(), 1000);
    bill.costs("lookup of what was listed", LOOKUP_LISTED, async {
        for number in 0..1000 {
            let name = format!("{number:05}");
            assert!(m.lookup(many, &name).await.unwrap().is_some());
        }
    })
    .await;

    bill.costs("statfs", STATFS, m.vfs.statfs(cred, ROOT_INO))
        .await
        .unwrap();
    bill.costs("statfs again", STATFS_AGAIN, m.vfs.statfs(cred, ROOT_INO))
        .await
        .unwrap();
    for (what, budget) in [("access", ACCESS), ("access again", ACCESS_AGAIN)] {
        let allowed = m.vfs.access(cred, old, libc::R_OK as u32);
        bill.costs(what, budget, allowed).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_copy_is_written_in_full_size_and_committed_rarely() {
    let mount = Mount::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    })
    .await;
    let file = mount.create(ROOT_INO, "f", libc::O_WRONLY).await.unwrap();
    mount.peer.clear_log();
    for at in 0..512_u64 {
        mount.write(file, at << 17, &[7; 128 << 10]).await.unwrap();
    }
    within(60, mount.close(file)).await.unwrap();
    let (writes, commits) = (
        mount.peer.count_op(op::WRITE),
        mount.peer.count_op(op::COMMIT),
    );
    assert!(writes <= 64 + 6, "{writes} WRITEs of 64 MiB");
    assert!(commits <= 6, "{commits} COMMITs");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_does_costs_nothing() {
    let mount = Mount::new(PeerConfig::default()).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    mount.write(file, 0, b"x").await.unwrap();
    millis(1000).await;
    mount.close(file).await.unwrap();
    mount.vfs.client().closes_sent().await;
    mount.peer.clear_log();
    super::rig::seconds(25).await;
    assert_eq!(mount.peer.round_trips(), 0);
}
