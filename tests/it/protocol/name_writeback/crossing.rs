//! What is under way when a change is accepted tells nothing of it; and nothing is accepted of who
//! was answered.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::rpc::caller::{self, Caller};
use efs_fuse::vfs::types::{ROOT_INO, SetAttr};

use super::super::rig::{millis, within};
use super::{EXCLUSIVE, mounted, private, settled};
use crate::peer::PeerConfig;

/// Seen by the checker: a host lost what it had just made from its sight, and made it again.
#[tokio::test(start_paused = true)]
async fn a_listing_that_was_asked_for_before_a_change_was_accepted_does_not_hide_it() {
    // Where others may have been as well, a listing goes to the server.
    let config = PeerConfig {
        atomic_cinfo: false,
        ..PeerConfig::default()
    };
    let mount = mounted(config).await;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    let old = mount.create(dir, "old", EXCLUSIVE).await.expect("a file");
    mount.close(old).await.expect("close");
    settled(&mount).await;
    mount.peer.set_latency(Duration::from_millis(20));
    let mount = Arc::new(mount);
    let lister = Arc::clone(&mount);
    let listing = tokio::spawn(async move { lister.list(dir, false).await });
    millis(5).await;
    let file = mount.create(dir, "new", EXCLUSIVE).await.expect("a file");
    listing.await.expect("no panic").expect("a listing");
    let found = mount.lookup(dir, "new").await.expect("an answer");
    assert_eq!(found.expect("it was made").ino, file.ino);
    let again = mount.create(dir, "new", EXCLUSIVE).await.map(drop);
    assert_eq!(again.expect_err("it is there").raw(), libc::EEXIST);
    mount.close(file).await.expect("close");
    settled(&mount).await;
    assert_eq!(mount.peer.fs().list("/d").expect("names"), ["new", "old"]);
}

/// A process that is killed while it waits has done nothing, and does nothing later.
#[tokio::test(start_paused = true)]
async fn nothing_is_accepted_of_a_caller_that_was_answered() {
    let (mount, dir) = private().await;
    let held = mount.create(dir, "held", EXCLUSIVE).await.expect("a file");
    mount
        .close(mount.create(dir, "f", EXCLUSIVE).await.expect("a file"))
        .await
        .expect("close");
    settled(&mount).await;
    let before = mount.peer.fs().list("/d").expect("names");
    let caller = Caller::new(Some(Arc::clone(mount.vfs.abandoned())), 7);
    caller.give_up();
    let (vfs, cred) = (&mount.vfs, &mount.cred);
    let mode = SetAttr {
        mode: Some(0o500),
        ..SetAttr::default()
    };
    let work = async {
        assert!(mount.create(dir, "file", EXCLUSIVE).await.is_err());
        assert!(mount.mkdir(dir, "dir").await.is_err());
        assert!(vfs.symlink(cred, dir, b"link", b"text").await.is_err());
        assert!(mount.unlink(dir, "f").await.is_err());
        assert!(mount.rename((dir, "f"), (dir, "g")).await.is_err());
        assert!(vfs.setattr(cred, dir, None, mode.clone()).await.is_err());
        let set = vfs.setattr(cred, held.ino, Some(held.fh), mode);
        assert!(set.await.is_err());
    };
    within(60, caller::on_behalf_of(Some(caller), work)).await;
    settled(&mount).await;
    let fs = mount.peer.fs();
    assert_eq!(fs.list("/d").expect("names"), before);
    let mode = |path| fs.stat(path).expect("stat").mode;
    assert_ne!((mode("/d"), mode("/d/held")), (0o500, 0o500));
    mount.close(held).await.expect("close");
}

/// A session that is being made anew has no number of operations yet.
#[tokio::test(start_paused = true)]
async fn what_is_to_be_sent_while_the_session_is_made_anew_is_lost_to_nobody() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(50));
    let file = mount.create(dir, "file", EXCLUSIVE).await.expect("a file");
    mount.write(file, 0, b"data").await.expect("write");
    // These wait for the file, which waits for its close.
    let below = mount.mkdir(dir, "below").await.expect("mkdir");
    mount.mkdir(below, "deep").await.expect("mkdir");
    let (vfs, cred) = (&mount.vfs, &mount.cred);
    let link = vfs.symlink(cred, dir, b"link", b"text");
    link.await.expect("a link");
    mount.peer.destroy_sessions();
    let asked = async {
        let found = mount.lookup(ROOT_INO, "nothing").await;
        assert!(found.expect("an answer").is_none());
    };
    let closed = async {
        millis(60).await;
        assert_ne!(vfs.client().session_info().state, "up");
        mount.close(file).await.expect("close");
    };
    within(60, async { tokio::join!(asked, closed) }).await;
    settled(&mount).await;
    assert_eq!(vfs.late_errors().0, 0);
    let fs = mount.peer.fs();
    let names = |dir| fs.list(dir).expect("names");
    assert_eq!(names("/d"), ["below", "file", "link"]);
    assert_eq!(names("/d/below"), ["deep"]);
    assert_eq!(fs.read_file("/d/file").expect("data"), b"data");
}
