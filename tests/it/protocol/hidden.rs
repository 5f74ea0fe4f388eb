//! Hidden names (`.nfs…`) are nobody's business on the host that has made them: no
//! listing shows them and no directory is kept by them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use efs_fuse::rpc::auth::Credential;
use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO};

use super::rig::{Mount, Open, default_timeouts, millis, once_at, seconds, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const NOT_EMPTY: Errno = Errno(libc::ENOTEMPTY);

/// A file of the directory, open and unlinked.
async fn unlinked(mount: &Mount, dir: Ino, name: &str) -> Open {
    let file = mount.create(dir, name, libc::O_RDWR).await.unwrap();
    mount.write(file, 0, b"kept").await.unwrap();
    mount.unlink(dir, name).await.unwrap();
    file
}

async fn rmdir(mount: &Mount, dir: Ino, name: &str) -> Result<(), Errno> {
    Ok(within(60, mount.vfs.rmdir(&mount.cred, dir, name.as_bytes())).await?)
}

/// It can be read still, and leaves nothing at its end.
async fn ends(mount: &Mount, file: Open) {
    assert_eq!(mount.read(file, 0, 10).await.unwrap(), b"kept");
    assert_eq!(mount.getattr(file.ino).await.unwrap().nlink, 0);
    mount.close(file).await.unwrap();
    millis(100).await;
}

#[tokio::test(start_paused = true)]
async fn a_listing_does_not_show_what_this_mount_hides() {
    let peer = Peer::new(PeerConfig::default());
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let other = Mount::of(&peer, "two", default_timeouts()).await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    let kept = mount.create(dir, "kept", libc::O_RDWR).await.unwrap();
    mount.close(kept).await.unwrap();
    let before = mount.vfs.opendir(&mount.cred, dir, 1).await.unwrap();
    let file = unlinked(&mount, dir, "file").await;
    assert_eq!(peer.fs().list("/dir").unwrap().len(), 2);
    assert_eq!(mount.read_dir(before.fh, true).await.unwrap(), ["kept"]);
    for plus in [true, false] {
        // Known names, and then the server's.
        assert_eq!(mount.list(dir, plus).await.unwrap(), ["kept"], "{plus}");
        seconds(200).await;
        assert_eq!(mount.list(dir, plus).await.unwrap(), ["kept"], "{plus}");
        let fresh = other.walk("/dir").await.unwrap();
        let names = other.list(fresh, plus).await.unwrap();
        assert_eq!(names.len(), 2, "another host sees it: {names:?}");
    }
    ends(&mount, file).await;
    assert_eq!(peer.fs().list("/dir").unwrap(), ["kept"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_of_hidden_names_alone_is_removed_and_so_are_those_above() {
    let mount = Mount::new(PeerConfig::default()).await;
    let a = mount.mkdir(ROOT_INO, "a").await.unwrap();
    let b = mount.mkdir(a, "b").await.unwrap();
    let files = [
        unlinked(&mount, b, "one").await,
        unlinked(&mount, b, "two").await,
        unlinked(&mount, a, "three").await,
    ];
    rmdir(&mount, a, "b").await.unwrap();
    rmdir(&mount, ROOT_INO, "a").await.unwrap();
    assert_eq!(mount.list(ROOT_INO, true).await.unwrap(), [""; 0]);
    assert_eq!(mount.peer.fs().list("/").unwrap().len(), 3);
    // The name is free for another directory.
    mount.mkdir(ROOT_INO, "a").await.unwrap();
    for file in files {
        ends(&mount, file).await;
    }
    assert_eq!(mount.peer.fs().list("/").unwrap(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_rename_replaces_a_directory_of_hidden_names_alone() {
    let mount = Mount::new(PeerConfig::default()).await;
    let old = mount.mkdir(ROOT_INO, "old").await.unwrap();
    mount.mkdir(ROOT_INO, "new").await.unwrap();
    let file = unlinked(&mount, old, "file").await;
    mount
        .rename((ROOT_INO, "new"), (ROOT_INO, "old"))
        .await
        .unwrap();
    ends(&mount, file).await;
    assert_eq!(mount.peer.fs().list("/").unwrap(), ["old"]);
    assert_eq!(mount.peer.fs().list("/old").unwrap(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_with_a_name_of_anybodys_is_not_removed_and_nothing_is_moved() {
    let peer = Peer::new(PeerConfig::default());
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let other = Mount::of(&peer, "two", default_timeouts()).await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    let file = unlinked(&mount, dir, "file").await;
    let theirs = other.walk("/dir").await.unwrap();
    let theirs = unlinked(&other, theirs, "theirs").await;
    let before = peer.fs().list("/dir").unwrap();
    assert_eq!(before.len(), 2);
    assert_eq!(rmdir(&mount, ROOT_INO, "dir").await, Err(NOT_EMPTY));
    assert_eq!(peer.fs().list("/dir").unwrap(), before);
    let seen = mount.list(dir, false).await.unwrap();
    assert_eq!(seen.len(), 1, "another host's: {seen:?}");
    ends(&other, theirs).await;
    rmdir(&mount, ROOT_INO, "dir").await.unwrap();
    ends(&mount, file).await;
    assert_eq!(peer.fs().list("/").unwrap(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_closed_while_its_name_is_moved_leaves_nothing() {
    // Before the listing, between it and the move, during the move, after it.
    for at in [op::READDIR, op::LOOKUP, op::RENAME, op::REMOVE] {
        let mount = Mount::new(PeerConfig {
            latency: std::time::Duration::from_millis(5),
            ..PeerConfig::default()
        })
        .await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        let file = unlinked(&mount, dir, "file").await;
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut tell = Some(tell);
        let mut armed = false;
        mount.peer.on_op(move |event| {
            // REMOVE of the directory comes first, and again after the move.
            armed |= at != op::REMOVE || event.op == op::RENAME;
            if armed
                && event.op == at
                && let Some(tell) = tell.take()
            {
                let _ = tell.send(());
            }
            Action::Pass
        });
        let closes = async {
            told.await.unwrap();
            mount.close(file).await.unwrap();
        };
        let removes = rmdir(&mount, ROOT_INO, "dir");
        let (removed, ()) = tokio::join!(removes, within(60, closes));
        millis(100).await;
        if removed == Err(NOT_EMPTY) {
            rmdir(&mount, ROOT_INO, "dir").await.unwrap();
        }
        millis(100).await;
        assert_eq!(mount.peer.fs().list("/").unwrap(), [""; 0], "op {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_that_fails_leaves_the_file_where_it_is_or_goes_with_it() {
    for error in [st::IO, st::NOSPC, st::ACCESS] {
        let mount = Mount::new(PeerConfig::default()).await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        let files = [
            unlinked(&mount, dir, "one").await,
            unlinked(&mount, dir, "two").await,
        ];
        once_at(&mount.peer, op::RENAME, Action::Fail(error));
        let removed = rmdir(&mount, ROOT_INO, "dir").await;
        if error != st::ACCESS {
            assert_eq!(removed, Err(NOT_EMPTY), "{error}");
        }
        for file in files {
            ends(&mount, file).await;
        }
        if removed.is_err() {
            rmdir(&mount, ROOT_INO, "dir").await.unwrap();
        }
        assert_eq!(mount.peer.fs().list("/").unwrap(), [""; 0], "{error}");
    }
}

/// RENAME to the hidden name is executed, and its reply lost with the session. Before it is sent
/// again another host makes something else under the name.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_hidden_before_the_session_was_lost_is_unlinked_whatever_has_its_name_now()
{
    for is_made in [false, true] {
        let mount = Mount::new(PeerConfig::default()).await;
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, b"kept").await.unwrap();
        mount.fsync(file).await.unwrap();
        let (peer, step) = (Arc::downgrade(&mount.peer), AtomicUsize::new(0));
        mount.peer.on_op(move |event| {
            match (step.load(Ordering::Relaxed), event.op) {
                (0, op::RENAME) => {
                    step.store(1, Ordering::Relaxed);
                    return Action::DropConnectionAfter;
                }
                (1, op::SEQUENCE) => {
                    step.store(2, Ordering::Relaxed);
                    let peer = peer.upgrade().unwrap();
                    peer.destroy_sessions();
                    if is_made {
                        peer.fs().mkdir("/f").unwrap();
                    }
                }
                _ => {}
            }
            Action::Pass
        });
        within(120, mount.unlink(ROOT_INO, "f")).await.unwrap();
        let there = mount.walk("/f").await;
        assert_eq!(there.is_ok(), is_made, "{there:?}");
        ends(&mount, file).await;
        let left = mount.peer.fs().list("/").unwrap();
        assert_eq!(left, ["f"][..usize::from(is_made)]);
    }
}

/// In whose name: who removes the directory need not be who removed the file.
#[tokio::test(start_paused = true)]
async fn another_users_hidden_name_does_not_keep_a_directory() {
    // The mode of the directory above, and who owns the one that is removed.
    for (above, owner) in [(0o777, 2000), (0o1777, 2000), (0o777, 1000)] {
        let mount = Mount::new(PeerConfig::default()).await;
        let fs = mount.peer.fs();
        fs.mkdir("/above").unwrap();
        fs.chmod("/above", above).unwrap();
        fs.mkdir("/above/dir").unwrap();
        fs.chmod("/above/dir", 0o777).unwrap();
        fs.chown("/above/dir", owner, owner).unwrap();
        let user = |uid| Mount {
            vfs: Arc::clone(&mount.vfs),
            peer: Arc::clone(&mount.peer),
            cred: Arc::new(Credential {
                uid,
                gid: uid,
                gids: Vec::new(),
            }),
        };
        let (one, two) = (user(1000), user(2000));
        let dir = one.walk("/above/dir").await.unwrap();
        let file = unlinked(&one, dir, "file").await;
        fs.chmod("/above/dir", 0o755).unwrap();
        let above_ino = one.walk("/above").await.unwrap();
        rmdir(&two, above_ino, "dir").await.unwrap();
        assert_eq!(fs.list("/above").unwrap().len(), 1);
        ends(&one, file).await;
        assert_eq!(fs.list("/above").unwrap(), [""; 0], "{above:o} {owner}");
    }
}
