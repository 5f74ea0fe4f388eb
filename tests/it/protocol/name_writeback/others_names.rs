//! Names that others have made, which are removed and renamed ahead of the server while all of them
//! are known.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO};

use super::super::rig::{Mount, default_timeouts, millis, within};
use super::{mounted, settled};
use crate::peer::{Peer, PeerConfig};

const SECOND: Duration = Duration::from_secs(1);

fn sure() -> PeerConfig {
    PeerConfig {
        atomic_cinfo: true,
        ..PeerConfig::default()
    }
}

/// Directories of fifteen files each, made by another host.
fn tree(peer: &Arc<Peer>, directories: usize) {
    let fs = peer.fs();
    fs.mkdir("/tree").expect("a directory");
    for dir in 0..directories {
        fs.mkdir(&format!("/tree/d{dir}")).expect("a directory");
        for file in 0..15 {
            let path = format!("/tree/d{dir}/f{file}");
            fs.write_file(&path, b"data").expect("a file");
        }
    }
}

/// As rm -rf does it: each directory is listed, emptied and removed.
async fn empty(mount: &Mount, tree: Ino, name: &str) -> Result<(), Errno> {
    let dir = mount.lookup(tree, name).await?.expect("it is there").ino;
    for file in mount.list(dir, true).await? {
        mount.lookup(dir, &file).await?.expect("it is there");
        mount.unlink(dir, &file).await?;
    }
    rmdir(mount, tree, name).await
}

/// A tree in which this user was let remove the first of two directories.
async fn allowed(mount: &Mount) -> Ino {
    tree(&mount.peer, 2);
    let tree = mount.walk("tree").await.expect("a directory");
    empty(mount, tree, "d0").await.expect("removed");
    settled(mount).await;
    tree
}

async fn rmdir(mount: &Mount, dir: Ino, name: &str) -> Result<(), Errno> {
    Ok(mount.vfs.rmdir(&mount.cred, dir, name.as_bytes()).await?)
}

async fn sync(mount: &Mount, dir: Ino) -> Result<(), Errno> {
    let told = within(600, mount.vfs.fsyncdir(dir)).await;
    told.map_err(Errno::from)
}

#[tokio::test(start_paused = true)]
async fn a_tree_of_others_is_removed_many_names_to_a_request_once_one_was_allowed() {
    let mount = mounted(sure()).await;
    tree(&mount.peer, 10);
    let tree = mount.walk("tree").await.expect("a directory");
    let names = mount.list(tree, true).await.expect("names");
    let before = mount.peer.round_trips();
    for name in &names {
        empty(&mount, tree, name).await.expect("removed");
    }
    rmdir(&mount, ROOT_INO, "tree").await.expect("rmdir");
    settled(&mount).await;
    assert!(!mount.peer.fs().exists("/tree"));
    let requests = mount.peer.round_trips() - before;
    // One was 171: each name, and each listing.
    assert!(requests <= 65, "{requests} requests");
    assert_eq!(mount.vfs.late_errors().0, 0);
    within(60, mount.vfs.settled()).await;
}

#[tokio::test(start_paused = true)]
async fn names_that_were_not_confirmed_in_this_second_are_removed_by_the_server() {
    for doubt in 0..4 {
        let mount = mounted(PeerConfig {
            // A change of another host may hide behind one of this host's.
            atomic_cinfo: doubt != 1,
            ..PeerConfig::default()
        })
        .await;
        tree(&mount.peer, 2);
        if doubt == 2 {
            let fs = mount.peer.fs();
            fs.chmod("/tree/d1", 0o700).expect("another kind");
        }
        let tree = mount.walk("tree").await.expect("a directory");
        empty(&mount, tree, "d0").await.expect("removed");
        settled(&mount).await;
        let dir = mount.lookup(tree, "d1").await.expect("a name");
        let dir = dir.expect("it is there").ino;
        mount.list(dir, true).await.expect("names");
        for file in ["f0", "f1"] {
            let found = mount.lookup(dir, file).await.expect("a name");
            assert!(found.is_some());
        }
        match doubt {
            0 => millis(1500).await,
            1 => {
                mount.unlink(dir, "f1").await.expect("unlink");
                settled(&mount).await;
            }
            _ => {}
        }
        mount.peer.set_latency(Duration::from_millis(400));
        let start = tokio::time::Instant::now();
        mount.unlink(dir, "f0").await.expect("unlink");
        let is_asked = start.elapsed() >= Duration::from_millis(400);
        assert_eq!(is_asked, doubt < 3, "{doubt}: {:?}", start.elapsed());
        settled(&mount).await;
        assert!(!mount.peer.fs().exists("/tree/d1/f0"));
        within(60, mount.vfs.settled()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_another_host_has_put_something_in_stays_and_that_is_told() {
    let mount = mounted(sure()).await;
    let tree = allowed(&mount).await;
    mount.peer.set_latency(SECOND / 10);
    let dir = mount.lookup(tree, "d1").await.expect("a name");
    let dir = dir.expect("it is there").ino;
    for file in mount.list(dir, true).await.expect("names") {
        mount.lookup(dir, &file).await.expect("a name");
        mount.unlink(dir, &file).await.expect("unlink");
    }
    let theirs = mount.peer.fs().write_file("/tree/d1/theirs", b"data");
    theirs.expect("a file");
    rmdir(&mount, tree, "d1").await.expect("it seems empty");
    assert_eq!(sync(&mount, tree).await, Err(Errno(libc::ENOTEMPTY)));
    assert_eq!(sync(&mount, tree).await, Ok(()), "once");
    let fs = mount.peer.fs();
    assert_eq!(fs.list("/tree/d1").expect("names"), ["theirs"]);
    let found = mount.lookup(tree, "d1").await.expect("a name");
    let dir = found.expect("it is shown again").ino;
    assert_eq!(mount.list(dir, true).await.expect("names"), ["theirs"]);
    within(60, mount.vfs.settled()).await;
}

/// What it is told of the directory meanwhile is no older than without the option.
#[tokio::test(start_paused = true)]
async fn a_directory_of_others_that_is_ahead_is_asked_for_when_its_attributes_are_too_old() {
    let mount = mounted(sure()).await;
    let tree = allowed(&mount).await;
    let dir = mount.lookup(tree, "d1").await.expect("a name");
    let dir = dir.expect("it is there").ino;
    for file in mount.list(dir, true).await.expect("names") {
        mount.lookup(dir, &file).await.expect("a name");
    }
    mount.peer.set_latency(SECOND * 40);
    mount.unlink(dir, "f0").await.expect("unlink");
    millis(35_000).await;
    mount.peer.set_latency(SECOND / 10);
    mount.peer.fs().chmod("/tree/d1", 0o711).expect("chmod");
    let stat = within(600, mount.getattr(dir)).await.expect("stat");
    assert_eq!(stat.perm, 0o711);
    settled(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_host_has_taken_meanwhile_is_told_and_stops_no_other() {
    let mount = mounted(sure()).await;
    let two = Mount::of(&mount.peer, "two", default_timeouts()).await;
    let tree = allowed(&mount).await;
    let dir = mount.lookup(tree, "d1").await.expect("a name");
    let dir = dir.expect("it is there").ino;
    let files = mount.list(dir, true).await.expect("names");
    for file in &files {
        mount.lookup(dir, file).await.expect("a name");
    }
    let theirs = two.walk("tree/d1").await.expect("a directory");
    two.unlink(theirs, "f3").await.expect("unlink");
    for file in &files {
        mount.unlink(dir, file).await.expect("unlink");
    }
    assert_eq!(sync(&mount, dir).await, Err(Errno(libc::ENOENT)));
    let left = mount.peer.fs().list("/tree/d1").expect("names");
    assert_eq!(left, [""; 0]);
    within(60, mount.vfs.settled()).await;
}
