//! Whoever waits for what is ahead of the server is not kept by what others do meanwhile.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::vfs::VfsConfig;
use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO};

use super::super::locks::{range, set};
use super::super::rig::{Mount, ahead, connect, default_timeouts, millis, within};
use super::{EXCLUSIVE, private, settled, shut, unpack};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

const OWNER: u64 = 1;

/// A line is appended to one file under a lock of another, as programs of several hosts do.
#[tokio::test(start_paused = true)]
async fn who_lets_go_of_a_lock_has_all_that_was_written_before_at_the_server_whichever_file_it_is_of()
 {
    for by_close in [false, true] {
        let peer = Peer::new(PeerConfig::default());
        for name in ["/lock", "/data"] {
            peer.fs().write_file(name, b"").expect("write");
        }
        let mount = Mount::ahead(&connect(&peer, "one").await, &peer);
        let at = async |name: &str| {
            let entry = mount.lookup(ROOT_INO, name).await.expect("the server");
            entry.expect("it is there").ino
        };
        let (guard, data) = (at("lock").await, at("data").await);
        let locked = mount.open(guard, libc::O_RDWR).await.expect("open");
        set(&mount, locked, OWNER, range(libc::F_WRLCK, 0, 0))
            .await
            .expect("a lock");
        // By any descriptor of the process.
        let other = mount.open(guard, libc::O_RDONLY).await.expect("open");
        let file = mount.open(data, libc::O_WRONLY).await.expect("open");
        let seen = Arc::downgrade(&peer);
        peer.on_op(move |event| {
            if event.op == op::LOCKU {
                let peer = seen.upgrade().expect("it lives");
                let there = peer.fs().read_file("/data").expect("data");
                assert_eq!(there, b"a line", "by close: {by_close}");
            }
            match event.op {
                // The server is slow.
                op::WRITE => Action::Delay(Duration::from_millis(100)),
                _ => Action::Pass,
            }
        });
        mount.write(file, 0, b"a line").await.expect("write");
        shut(&mount, file).await.expect("close");
        match by_close {
            true => {
                let told = within(60, mount.vfs.flush(other.fh, OWNER)).await;
                told.map_err(Errno::from).expect("close");
            }
            false => set(&mount, locked, OWNER, range(libc::F_UNLCK, 0, 0))
                .await
                .expect("unlock"),
        }
        let there = peer.fs().read_file("/data").expect("data");
        assert_eq!(there, b"a line");
        for file in [other, locked] {
            mount.release(file).await;
        }
        peer.clear_script();
        within(60, mount.vfs.settled()).await;
    }
}

/// PostgreSQL writes a file anew, renames it over the old one and opens it (durable_rename).
#[tokio::test(start_paused = true)]
async fn an_open_that_waits_for_a_change_does_not_keep_the_close_that_the_change_waits_for() {
    let (mount, dir) = private().await;
    for name in ["old", "new", "other"] {
        unpack(&mount, dir, name, name.as_bytes())
            .await
            .expect("a file");
    }
    settled(&mount).await;
    millis(1000).await;
    let at = async |name: &str| {
        let entry = mount.lookup(dir, name).await.expect("the server");
        entry.expect("it is there").ino
    };
    let (old, other) = (at("old").await, at("other").await);
    let file = mount.open(old, libc::O_RDONLY).await.expect("open");
    // Its CLOSE waits for company, which the next OPEN is.
    mount.close(file).await.expect("close");
    mount
        .rename((dir, "new"), (dir, "old"))
        .await
        .expect("rename");
    let opened = within(10, mount.open(other, libc::O_RDWR))
        .await
        .expect("open");
    assert_eq!(mount.peer.fs().read_file("/d/old").expect("data"), b"new");
    mount.close(opened).await.expect("close");
    within(10, mount.vfs.settled()).await;
    assert_eq!(mount.peer.open_count(), 0);
}

/// A change that this host does not answer for by itself: of a directory with a mode whose bits
/// servers are free to drop.
async fn asks(mount: &Mount, dir: Ino, name: &str) {
    let (vfs, name) = (&mount.vfs, name.as_bytes());
    vfs.mkdir(&mount.cred, dir, name, 0o2755)
        .await
        .expect("mkdir");
}

#[tokio::test(start_paused = true)]
async fn an_open_file_keeps_nobody_who_asks_the_server_and_no_more_than_go_in_a_crowd() {
    let (mount, dir) = private().await;
    let start = tokio::time::Instant::now();
    let open = mount.create(dir, "open", EXCLUSIVE).await.expect("create");
    within(60, asks(&mount, dir, "asked")).await;
    assert!(
        mount.peer.fs().exists("/d/open"),
        "after what is in front of it"
    );
    assert!(start.elapsed() < Duration::from_millis(100), "hurried");
    mount.close(open).await.expect("close");
    settled(&mount).await;
    // Those behind a file that stays open wait for it, and not long.
    let open = mount.create(dir, "log", EXCLUSIVE).await.expect("create");
    unpack(&mount, dir, "behind", b"x").await.expect("a file");
    millis(100).await;
    assert!(!mount.peer.fs().exists("/d/behind"));
    millis(200).await;
    assert!(mount.peer.fs().exists("/d/log") && mount.peer.fs().exists("/d/behind"));
    // Data that do not go along are not kept back.
    let large = mount.create(dir, "large", EXCLUSIVE).await.expect("create");
    mount.write(large, 0, &[7; 1 << 17]).await.expect("write");
    millis(100).await;
    assert!(mount.peer.fs().exists("/d/large"));
    mount.close(large).await.expect("close");
    mount.close(open).await.expect("close");
}

#[tokio::test(start_paused = true)]
async fn who_asks_about_a_directory_is_answered_however_many_changes_come_meanwhile() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(5));
    let mount = Arc::new(mount);
    let maker = Arc::clone(&mount);
    let making = tokio::spawn(async move {
        for number in 0.. {
            let name = format!("f{number}");
            unpack(&maker, dir, &name, b"x").await.expect("a file");
            millis(1).await;
        }
    });
    millis(50).await;
    for turn in 0..5 {
        within(2, asks(&mount, dir, &format!("asked{turn}"))).await;
    }
    making.abort();
    let _ = making.await;
    settled(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_about_a_directory_is_answered_after_what_was_done_in_it() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(200));
    for number in 0..10 {
        unpack(&mount, dir, &format!("f{number}"), b"x")
            .await
            .expect("a file");
    }
    // A link is made by the server, in a directory of which it knows half.
    let entry = mount
        .lookup(dir, "f9")
        .await
        .expect("a name")
        .expect("a file");
    let vfs = &mount.vfs;
    let linked = within(60, vfs.link(&mount.cred, entry.ino, dir, b"link")).await;
    assert_eq!(linked.expect("link").stat.nlink, 2);
    assert_eq!(mount.peer.fs().list("/d").expect("names").len(), 11);
    let moved = within(60, mount.rename((dir, "f1"), (ROOT_INO, "f1"))).await;
    assert_eq!(moved, Ok(()));
    assert_eq!(mount.peer.fs().read_file("/f1").expect("data"), b"x");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_stays_back_no_longer_than_the_option_says() {
    for delay in [100, 4000] {
        let peer = Peer::new(PeerConfig::default());
        let config = VfsConfig {
            writeback: Some(Duration::from_millis(delay)),
            ..ahead(default_timeouts())
        };
        let mount = Mount::behaving(&connect(&peer, "one").await, &peer, config);
        let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
        let (fs, begun) = (mount.peer.fs(), tokio::time::Instant::now());
        let file = mount.create(dir, "f", EXCLUSIVE).await.expect("create");
        mount.write(file, 0, b"x").await.expect("write");
        while !fs.exists("/d/f") {
            millis(1).await;
        }
        // A file that stays open has a quarter of it.
        let waited = begun.elapsed().as_millis();
        assert!(waited.abs_diff(u128::from(delay) / 4) <= 10, "{waited}");
        // Whoever goes on writing, all of it.
        let begun = tokio::time::Instant::now();
        let has = || fs.read_file("/d/f").is_ok_and(|data| data.len() > 1);
        let mut at = 1;
        while !has() {
            mount.write(file, at, b"y").await.expect("write");
            at += 1;
            millis(2).await;
        }
        let waited = begun.elapsed().as_millis();
        assert!(waited.abs_diff(u128::from(delay)) <= 10, "{waited}");
    }
}
