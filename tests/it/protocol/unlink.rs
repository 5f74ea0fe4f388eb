//! A file that is open here loses a name: what was open stays readable, whatever another
//! host has done to its other names, and whatever becomes of the server.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, FileKind, Lookup, ROOT_INO};

use super::rig::{Mount, default_timeouts, join_all, millis, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

/// "a" and "b" are one file, known to have two names, and open here.
async fn two_names() -> (Mount, super::rig::Open) {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    });
    peer.fs().write_file("/a", b"data").unwrap();
    peer.fs().link("/a", "/b").unwrap();
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let ino = mount.walk("/a").await.unwrap();
    assert_eq!(mount.walk("/b").await.unwrap(), ino);
    let open = mount.open(ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(mount.getattr(ino).await.unwrap().nlink, 2);
    (mount, open)
}

#[tokio::test(start_paused = true)]
async fn the_last_name_of_an_open_file_is_kept_although_it_was_not_known_to_be_the_last() {
    for replaced in [false, true] {
        let (mount, open) = two_names().await;
        let fs = mount.peer.fs();
        // Nobody tells this host.
        fs.remove("/b").unwrap();
        if replaced {
            fs.write_file("/new", b"new").unwrap();
            mount.walk("/new").await.unwrap();
            let moved = mount.rename((ROOT_INO, "new"), (ROOT_INO, "a"));
            within(60, moved).await.unwrap();
        } else {
            mount.unlink(ROOT_INO, "a").await.unwrap();
        }
        mount.peer.crash_and_restart();
        let read = within(300, mount.read(open, 0, 10)).await;
        assert_eq!(read.unwrap(), b"data", "replaced: {replaced}");
        mount.close(open).await.unwrap();
        millis(200).await;
        let left: &[&str] = if replaced { &["a"] } else { &[] };
        assert_eq!(fs.list("/").unwrap(), left);
    }
}

/// A server with VERIFY, or without.
fn verifies(mount: &Mount, does: bool) {
    mount
        .peer
        .on_op(move |event| match event.op == op::VERIFY && !does {
            true => Action::Fail(st::NOTSUPP),
            false => Action::Pass,
        });
}

/// As the kernel does it: after ESTALE it walks to the name once more.
async fn unlink(mount: &Mount, name: &str, does: bool) -> Result<(), Errno> {
    match mount.unlink(ROOT_INO, name).await {
        Err(Errno(libc::ESTALE)) if does => {
            let vfs = &mount.vfs;
            let found = vfs.lookup_asked(&mount.cred, ROOT_INO, name.as_bytes());
            let Lookup::Found(found) = found.await? else {
                return Err(Errno(libc::ENOENT));
            };
            match found.stat.kind {
                FileKind::Directory => Err(Errno(libc::EISDIR)),
                _ => mount.unlink(ROOT_INO, name).await,
            }
        }
        said => said,
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_file_whose_name_another_host_has_given_away_loses_nothing_by_an_unlink_of_it() {
    for (other_is_open, does) in [(false, true), (true, true), (false, false), (true, false)] {
        let (mount, open) = two_names().await;
        verifies(&mount, does);
        let fs = mount.peer.fs();
        fs.write_file("/other", b"another").unwrap();
        let other = match other_is_open {
            true => {
                let ino = mount.walk("/other").await.unwrap();
                Some(mount.open(ino, libc::O_RDONLY).await.unwrap())
            }
            false => None,
        };
        // It is asked for by its other names after this, if at all.
        assert_eq!(mount.walk("/a").await.unwrap(), open.ino);
        fs.remove("/b").unwrap();
        fs.rename("/a", "/kept").unwrap();
        fs.link("/other", "/a").unwrap();
        // This host still believes "a" to lead to what it has open.
        unlink(&mount, "a", does).await.unwrap();
        assert_eq!(mount.getattr(open.ino).await.unwrap().nlink, 1);
        fs.remove("/other").unwrap();
        mount.peer.crash_and_restart();
        if let Some(other) = other {
            let read = within(300, mount.read(other, 0, 10)).await;
            assert_eq!(read.unwrap(), b"another");
            mount.close(other).await.unwrap();
        }
        let kept = mount.walk("/kept").await.unwrap();
        assert_eq!(kept, open.ino);
        // It has no hidden name yet, so this must give it one.
        mount.unlink(ROOT_INO, "kept").await.unwrap();
        mount.peer.crash_and_restart();
        let read = within(300, mount.read(open, 0, 10)).await;
        assert_eq!(read.unwrap(), b"data", "other is open: {other_is_open}");
        mount.close(open).await.unwrap();
        millis(200).await;
        assert!(fs.list("/").unwrap().is_empty(), "{:?}", fs.list("/"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_another_host_has_put_in_the_place_of_an_open_file_is_not_unlinked() {
    for (is_open, does) in [(false, true), (true, true), (false, false), (true, false)] {
        let (mount, open) = two_names().await;
        verifies(&mount, does);
        if !is_open {
            mount.close(open).await.unwrap();
        }
        let fs = mount.peer.fs();
        fs.remove("/b").unwrap();
        fs.remove("/a").unwrap();
        fs.mkdir("/a").unwrap();
        fs.write_file("/a/theirs", b"theirs").unwrap();
        if does {
            // Nobody misses it for a moment.
            let peer = Arc::downgrade(&mount.peer);
            mount.peer.on_op(move |_| {
                let fs = peer.upgrade().unwrap().fs();
                assert_eq!(fs.list("/").unwrap(), ["a"]);
                Action::Pass
            });
        }
        let refused = unlink(&mount, "a", does).await.unwrap_err();
        assert_eq!(refused.0, libc::EISDIR, "is open: {is_open}");
        assert_eq!(fs.read_file("/a/theirs").unwrap(), b"theirs");
        assert_eq!(fs.list("/").unwrap(), ["a"]);
    }
}

/// The handle counts, whatever a server says of fileids.
#[tokio::test(start_paused = true)]
async fn a_server_whose_verify_finds_every_object_another_one_has_its_names_hidden_all_the_same() {
    let (mount, open) = two_names().await;
    mount.peer.on_op(|event| match event.op == op::VERIFY {
        true => Action::Fail(st::NOT_SAME),
        false => Action::Pass,
    });
    for name in ["a", "b"] {
        mount.unlink(ROOT_INO, name).await.unwrap();
    }
    mount.peer.crash_and_restart();
    let read = within(300, mount.read(open, 0, 10)).await;
    assert_eq!(read.unwrap(), b"data");
    mount.close(open).await.unwrap();
    millis(200).await;
    let left = mount.peer.fs().list("/").unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// Without VERIFY a directory is moved out of sight, and back: not over what another host has
/// made there in the meantime, be it empty.
#[tokio::test(start_paused = true)]
async fn a_directory_is_not_moved_back_over_one_that_another_host_has_made_meanwhile() {
    let (mount, _open) = two_names().await;
    let fs = mount.peer.fs();
    fs.remove("/b").unwrap();
    fs.remove("/a").unwrap();
    fs.mkdir("/a").unwrap();
    fs.write_file("/a/theirs", b"theirs").unwrap();
    let (peer, mut is_made) = (Arc::downgrade(&mount.peer), false);
    mount.peer.on_op(move |event| {
        let fs = peer.upgrade().unwrap().fs();
        if event.op == op::VERIFY {
            return Action::Fail(st::NOTSUPP);
        }
        if event.op == op::SEQUENCE && !is_made && !fs.list("/").unwrap().contains(&"a".into()) {
            is_made = true;
            fs.mkdir("/a").unwrap();
        }
        Action::Pass
    });
    let refused = mount.unlink(ROOT_INO, "a").await.unwrap_err();
    assert_eq!(refused.0, libc::EISDIR);
    assert!(fs.list("/a").unwrap().is_empty(), "the newer one");
    let all = fs.list("/").unwrap();
    assert_eq!(all.len(), 2, "{all:?}");
    let hidden = all.iter().find(|name| *name != "a").unwrap();
    let kept = fs.read_file(&format!("/{hidden}/theirs")).unwrap();
    assert_eq!(kept, b"theirs");
}

#[tokio::test(start_paused = true)]
async fn of_an_open_file_with_several_names_one_is_hidden_and_the_rest_are_removed() {
    let (mount, open) = two_names().await;
    mount.peer.clear_log();
    // At once: one of them hides, and the other waits for it.
    let both = ["a", "b"].map(|name| mount.unlink(ROOT_INO, name));
    for removed in join_all(both.into_iter()).await {
        removed.unwrap();
    }
    assert_eq!(mount.peer.count_op(op::RENAME), 1);
    assert_eq!(mount.peer.count_op(op::REMOVE), 1);
    let ino = open.ino;
    assert_eq!(mount.getattr(ino).await.unwrap().nlink, 0);
    assert_eq!(mount.read(open, 0, 10).await.unwrap(), b"data");
    mount.close(open).await.unwrap();
    millis(200).await;
    let left = mount.peer.fs().list("/").unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_hidden_is_not_counted_and_another_that_stays_is() {
    let (mount, open) = two_names().await;
    mount.unlink(ROOT_INO, "a").await.unwrap();
    assert_eq!(mount.getattr(open.ino).await.unwrap().nlink, 1);
    mount.close(open).await.unwrap();
    millis(200).await;
    assert_eq!(mount.peer.fs().list("/").unwrap(), ["b"]);
    let ino = mount.walk("/b").await.unwrap();
    mount.peer.fs().write_file("/other", b"").unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(mount.getattr(ino).await.unwrap().nlink, 1);
}

/// In containers the daemons of all hosts may have the same process id, and of one file they
/// hide one name each.
#[tokio::test(start_paused = true)]
async fn hidden_names_of_two_hosts_are_never_the_same() {
    let peer = Peer::new(PeerConfig::default());
    let one = Mount::of(&peer, "one", default_timeouts()).await;
    let two = Mount::of(&peer, "two", default_timeouts()).await;
    let first = one.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    one.write(first, 0, b"kept").await.unwrap();
    one.fsync(first).await.unwrap();
    let second = two.open(two.walk("/f").await.unwrap(), libc::O_RDWR).await;
    let second = second.unwrap();
    // Both have seen that their hidden name is free; the first one's is made first.
    let mut renames = 0;
    peer.on_op(move |event| {
        renames += u32::from(event.op == op::RENAME);
        match (event.op, renames) {
            (op::RENAME, 1) => Action::Delay(Duration::from_millis(500)),
            _ => Action::Pass,
        }
    });
    let second_first = async { two.unlink(ROOT_INO, "f").await };
    let then_first = async {
        millis(100).await;
        one.unlink(ROOT_INO, "f").await
    };
    let (gone, taken) = tokio::join!(second_first, then_first);
    taken.unwrap();
    assert_eq!(gone, Err(Errno(libc::ENOENT)), "two have taken one name");
    two.close(second).await.unwrap();
    two.vfs.settled().await;
    assert_eq!(peer.fs().list("/").unwrap().len(), 1, "the first one's");
    assert_eq!(one.read(first, 0, 10).await.unwrap(), b"kept");
    one.close(first).await.unwrap();
}
