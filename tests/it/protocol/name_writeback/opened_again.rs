//! What is done to a file that the server has yet to make.

use std::time::Duration;

use efs_fuse::vfs::types::SetAttr;

use super::super::rig::millis;
use super::{EXCLUSIVE, private, settled, shut, unpack};

/// As rsync does it: written under one name, opened once more for its mode, renamed.
#[tokio::test(start_paused = true)]
async fn what_is_opened_again_and_renamed_goes_with_the_request_that_makes_it() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_secs(1));
    let before = mount.peer.round_trips();
    let start = tokio::time::Instant::now();
    for number in 0..10 {
        let (temporary, name) = (format!(".f{number}.x"), format!("f{number}"));
        assert!(mount.lookup(dir, &name).await.expect("a name").is_none());
        let file = unpack(&mount, dir, &temporary, b"data")
            .await
            .expect("a file");
        let opened = mount.open(file.ino, libc::O_RDONLY).await.expect("open");
        let mode = SetAttr {
            mode: Some(0o644),
            ..SetAttr::default()
        };
        let vfs = &mount.vfs;
        let set = vfs
            .setattr(&mount.cred, file.ino, Some(opened.fh), mode)
            .await;
        assert_eq!(set.expect("fchmod").0.perm, 0o644);
        shut(&mount, opened).await.expect("close");
        let renamed = mount.rename((dir, &temporary), (dir, &name)).await;
        renamed.expect("rename");
    }
    assert!(start.elapsed() < Duration::from_millis(20), "nobody waits");
    settled(&mount).await;
    let fs = mount.peer.fs();
    assert_eq!(fs.list("/d").expect("names").len(), 10);
    for number in 0..10 {
        let path = format!("/d/f{number}");
        assert_eq!(fs.read_file(&path).expect("data"), b"data");
        assert_eq!(fs.stat(&path).expect("stat").mode, 0o644);
    }
    let requests = mount.peer.round_trips() - before;
    assert!(requests <= 12, "{requests} requests");
    millis(2000).await;
    assert_eq!(mount.peer.open_count(), 0, "all are closed");
}

/// As rsync does it.
#[tokio::test(start_paused = true)]
async fn a_mode_that_is_set_before_the_data_is_the_one_that_the_file_is_made_with() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_secs(1));
    let before = mount.peer.round_trips();
    let start = tokio::time::Instant::now();
    let mode = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    for number in 0..10 {
        let (temporary, name) = (format!(".f{number}.x"), format!("f{number}"));
        let file = mount.create(dir, &temporary, EXCLUSIVE).await;
        let file = file.expect("create");
        let vfs = &mount.vfs;
        let set = vfs.setattr(&mount.cred, file.ino, Some(file.fh), mode(0o600));
        set.await.expect("fchmod");
        mount.write(file, 0, b"secret").await.expect("write");
        assert_eq!(mount.getattr(file.ino).await.expect("stat").perm, 0o600);
        shut(&mount, file).await.expect("close");
        if number % 2 == 0 {
            let set = vfs.setattr(&mount.cred, file.ino, None, mode(0o640));
            set.await.expect("chmod");
        }
        let renamed = mount.rename((dir, &temporary), (dir, &name)).await;
        renamed.expect("rename");
    }
    assert!(start.elapsed() < Duration::from_millis(20), "nobody waits");
    settled(&mount).await;
    for number in 0..10 {
        let path = format!("/d/f{number}");
        assert_eq!(mount.peer.fs().read_file(&path).expect("data"), b"secret");
        let mode = mount.peer.fs().stat(&path).expect("stat").mode;
        assert_eq!(mode, if number % 2 == 0 { 0o640 } else { 0o600 });
    }
    let requests = mount.peer.round_trips() - before;
    assert!(requests <= 12, "{requests} requests");
    millis(2000).await;
    assert_eq!(mount.peer.open_count(), 0, "all are closed");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_opened_again_before_it_was_made_is_open() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(100));
    let file = unpack(&mount, dir, "f", b"data").await.expect("a file");
    let opened = mount.open(file.ino, libc::O_RDWR).await.expect("open");
    settled(&mount).await;
    mount.unlink(dir, "f").await.expect("unlink");
    mount.write(opened, 4, b" and more").await.expect("write");
    mount.fsync(opened).await.expect("fsync");
    assert_eq!(
        mount.read(opened, 0, 100).await.expect("read"),
        b"data and more"
    );
    shut(&mount, opened).await.expect("close");
    settled(&mount).await;
    millis(2000).await;
    let names = mount.peer.fs().list("/d").expect("names");
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(mount.peer.open_count(), 0);
}
