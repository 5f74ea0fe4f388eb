//! Names by which hosts keep each other away: a directory, or a file that is made with O_EXCL. Who sees
//! one go finds all that was done while it was there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO};

use super::super::rig::{Mount, within};
use super::{EXCLUSIVE, mounted, settled, shut, unpack};
use crate::peer::proto::op;
use crate::peer::{Action, PeerConfig};

/// How it is let go.
#[derive(Clone, Copy, Debug)]
enum Lock {
    Directory,
    File,
    Renamed,
}

impl Lock {
    async fn take(self, mount: &Mount) {
        match self {
            Self::Directory => drop(mount.mkdir(ROOT_INO, "lock").await.expect("mkdir")),
            Self::File | Self::Renamed => {
                let file = mount.create(ROOT_INO, "lock", EXCLUSIVE).await;
                shut(mount, file.expect("create")).await.expect("close");
            }
        }
    }

    async fn give(self, mount: &Mount) {
        let given = match self {
            Self::Directory => {
                let removed = mount.vfs.rmdir(&mount.cred, ROOT_INO, b"lock").await;
                removed.map_err(Errno::from)
            }
            Self::File => mount.unlink(ROOT_INO, "lock").await,
            Self::Renamed => mount.rename((ROOT_INO, "lock"), (ROOT_INO, "free")).await,
        };
        given.expect("it is given");
    }
}

/// What is done under the lock: data of a file, and a new one in a directory of this host's.
async fn works(mount: &Mount, (data, private): (Ino, Ino)) {
    let file = mount.open(data, libc::O_WRONLY).await.expect("open");
    mount.write(file, 0, b"a line").await.expect("write");
    shut(mount, file).await.expect("close");
    unpack(mount, private, "new", b"new").await.expect("a file");
}

async fn is_there_when_the_lock_goes(lock: Lock, known: bool) {
    let mount = mounted(PeerConfig {
        atomic_cinfo: true,
        ..PeerConfig::default()
    })
    .await;
    mount.peer.fs().write_file("/data", b"").expect("write");
    mount.peer.fs().write_file("/first", b"").expect("write");
    let data = mount.walk("data").await.expect("a file");
    let private = mount.mkdir(ROOT_INO, "private").await.expect("mkdir");
    lock.take(&mount).await;
    if known {
        // All names of the directory are known, and this user is seen to be let change them.
        mount.list(ROOT_INO, true).await.expect("names");
        mount.walk("first").await.expect("a file");
        mount.unlink(ROOT_INO, "first").await.expect("unlink");
        settled(&mount).await;
        mount.list(ROOT_INO, true).await.expect("names");
        mount.walk("lock").await.expect("the lock");
    }
    let peer = Arc::downgrade(&mount.peer);
    let given = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&given);
    mount.peer.on_op(move |event| match event.op {
        // The server is slow.
        op::WRITE | op::OPEN => Action::Delay(Duration::from_millis(50)),
        op::REMOVE | op::RENAME => {
            let peer = peer.upgrade().expect("it lives");
            let fs = peer.fs();
            let is_there = fs.read_file("/data").is_ok_and(|data| data == b"a line")
                && fs
                    .read_file("/private/new")
                    .is_ok_and(|data| data == b"new");
            seen.fetch_add(if is_there { 1 } else { 100 }, Ordering::Relaxed);
            Action::Pass
        }
        _ => Action::Pass,
    });
    works(&mount, (data, private)).await;
    lock.give(&mount).await;
    settled(&mount).await;
    let given = given.load(Ordering::Relaxed);
    assert_eq!(given, 1, "{lock:?}, known: {known}");
    mount.peer.clear_script();
    within(60, mount.vfs.settled()).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_a_lock_goes_after_what_was_done_while_it_was_there() {
    for lock in [Lock::Directory, Lock::File, Lock::Renamed] {
        for known in [false, true] {
            is_there_when_the_lock_goes(lock, known).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_does_not_wait_for_data_of_a_file_that_is_open() {
    let mount = mounted(PeerConfig::default()).await;
    for name in ["/data", "/lock"] {
        mount.peer.fs().write_file(name, b"").expect("write");
    }
    let data = mount.walk("data").await.expect("a file");
    let file = mount.open(data, libc::O_WRONLY).await.expect("open");
    let hour = Duration::from_secs(3600);
    mount.peer.on_op(move |event| match event.op {
        op::WRITE => Action::Delay(hour),
        _ => Action::Pass,
    });
    mount.write(file, 0, b"data").await.expect("write");
    within(10, mount.unlink(ROOT_INO, "lock"))
        .await
        .expect("unlink");
    mount.peer.clear_script();
    within(2 * 3600, mount.close(file)).await.expect("close");
}
