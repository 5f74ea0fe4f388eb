//! Directories that another host has removed, and perhaps made anew; files that it
//! replaces while they are opened; listings that are as new as their opening. The other
//! host is the server's own file system, which tells nobody.

use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, Lookup, ROOT_INO, SetAttr};

use super::rig::{Mount, millis, seconds};
use crate::peer::proto::op;
use crate::peer::{Action, PeerConfig};

const STALE: Errno = Errno(libc::ESTALE);

/// A server that knows nothing of a removed directory, and one that still has something to
/// say about it.
fn kinds() -> [PeerConfig; 2] {
    [false, true].map(|keep_removed_dirs| PeerConfig {
        keep_removed_dirs,
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    })
}

async fn one() -> Mount {
    Mount::new(kinds()[0].clone()).await
}

/// A directory `d` with a file `f`, known here and made anew elsewhere. Returns its number,
/// as it is known, and that of a file beside it.
async fn remade(mount: &Mount) -> (Ino, Ino) {
    let dir = mount.mkdir(ROOT_INO, "d").await.unwrap();
    let mut last = 0;
    for (at, name) in [(dir, "f"), (dir, "g"), (ROOT_INO, "beside")] {
        let file = mount.create(at, name, libc::O_RDWR).await.unwrap();
        mount.close(file).await.unwrap();
        last = file.ino;
    }
    mount.list(dir, true).await.unwrap();
    let fs = mount.peer.fs();
    for gone in ["/d/f", "/d/g", "/d"] {
        fs.remove(gone).unwrap();
    }
    fs.mkdir("/d").unwrap();
    fs.write_file("/d/f", b"new").unwrap();
    (dir, last)
}

/// Upon ESTALE the kernel walks to the directory once more, and finds the new one; of
/// ENOENT it would tell the program.
#[tokio::test(start_paused = true)]
async fn every_operation_in_a_directory_that_was_made_anew_elsewhere_is_stale() {
    type Try =
        fn(&Mount, Ino, Ino) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Errno>> + '_>>;
    let tries: [(&str, Try); 11] = [
        ("lookup", |m, dir, _| {
            Box::pin(async move {
                m.vfs
                    .lookup(&m.cred, dir, b"n")
                    .await
                    .map(drop)
                    .map_err(Errno::from)
            })
        }),
        ("lookup, asked", |m, dir, _| {
            Box::pin(async move {
                m.vfs
                    .lookup_asked(&m.cred, dir, b"f")
                    .await
                    .map(drop)
                    .map_err(Errno::from)
            })
        }),
        ("opendir", |m, dir, _| {
            Box::pin(async move {
                m.vfs
                    .opendir(&m.cred, dir, 1)
                    .await
                    .map(drop)
                    .map_err(Errno::from)
            })
        }),
        ("create", |m, dir, _| {
            Box::pin(async move { m.create(dir, "n", libc::O_RDWR).await.map(drop) })
        }),
        ("mkdir", |m, dir, _| {
            Box::pin(async move { m.mkdir(dir, "n").await.map(drop) })
        }),
        ("mknod", |m, dir, _| {
            let mode = libc::S_IFREG | 0o600;
            Box::pin(async move {
                m.vfs
                    .mknod(&m.cred, dir, b"n", mode, 0)
                    .await
                    .map(drop)
                    .map_err(Errno::from)
            })
        }),
        ("symlink", |m, dir, _| {
            Box::pin(async move {
                m.vfs
                    .symlink(&m.cred, dir, b"n", b"t")
                    .await
                    .map(drop)
                    .map_err(Errno::from)
            })
        }),
        ("link", |m, dir, file| {
            Box::pin(async move {
                m.vfs
                    .link(&m.cred, file, dir, b"n")
                    .await
                    .map(drop)
                    .map_err(Errno::from)
            })
        }),
        ("unlink", |m, dir, _| {
            Box::pin(async move { m.unlink(dir, "f").await })
        }),
        ("rename", |m, dir, _| {
            Box::pin(async move { m.rename((dir, "f"), (dir, "n")).await })
        }),
        ("rename into it", |m, dir, _| {
            Box::pin(async move { m.rename((ROOT_INO, "beside"), (dir, "n")).await })
        }),
    ];
    for cfg in kinds() {
        for (what, run) in tries {
            let mount = Mount::new(cfg.clone()).await;
            let (dir, file) = remade(&mount).await;
            let result = run(&mount, dir, file).await;
            assert_eq!(result, Err(STALE), "{what}, {}", cfg.keep_removed_dirs);
            // As the kernel does then.
            let found = mount.vfs.lookup_asked(&mount.cred, ROOT_INO, b"d").await;
            let Ok(Lookup::Found(entry)) = found else {
                panic!("{what}: {found:?}");
            };
            assert_ne!(entry.ino, dir);
            assert_eq!(mount.list(entry.ino, true).await.unwrap(), ["f"], "{what}");
        }
    }
}

/// A descriptor of a removed directory can be looked at.
#[tokio::test(start_paused = true)]
async fn a_removed_directory_still_has_the_attributes_that_the_server_tells() {
    let mount = Mount::new(kinds()[1].clone()).await;
    let (dir, _) = remade(&mount).await;
    seconds(61).await;
    assert_eq!(mount.getattr(dir).await.unwrap().nlink, 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_gone_from_a_directory_that_is_there_is_missing() {
    let mount = one().await;
    for name in ["f", "g"] {
        let file = mount.create(ROOT_INO, name, libc::O_RDWR).await.unwrap();
        mount.close(file).await.unwrap();
        mount.peer.fs().remove(&format!("/{name}")).unwrap();
    }
    let none = Err(Errno(libc::ENOENT));
    assert_eq!(mount.unlink(ROOT_INO, "f").await, none);
    assert_eq!(mount.rename((ROOT_INO, "g"), (ROOT_INO, "h")).await, none);
}

#[tokio::test(start_paused = true)]
async fn the_attributes_of_an_opened_directory_are_as_new_as_its_listing() {
    let mount = one().await;
    let fs = mount.peer.fs();
    fs.mkdir("/d").unwrap();
    fs.write_file("/d/one", b"").unwrap();
    let dir = mount.walk("d").await.unwrap();
    for (round, listed) in [(2, false), (3, true), (4, true)] {
        if listed {
            mount.list(dir, true).await.unwrap();
        }
        fs.write_file(&format!("/d/{round}"), b"").unwrap();
        mount.peer.clear_log();
        let opened = mount.vfs.opendir(&mount.cred, dir, 1).await.unwrap();
        let stat = mount
            .vfs
            .getattr_cached(dir, None)
            .expect("asked just now")
            .0;
        assert_eq!(mount.read_dir(opened.fh, true).await.unwrap().len(), round);
        // A directory that has moved is listed anew.
        assert!(mount.peer.round_trips() <= 1 + u64::from(listed));
        let after = mount.getattr(dir).await.unwrap();
        assert_eq!(stat.mtime, after.mtime);
        assert_eq!(stat.size, after.size, "of {round} names");
        mount.vfs.releasedir(opened.fh).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_begins_again_shows_what_was_made_meanwhile() {
    let mount = one().await;
    let dir = mount.mkdir(ROOT_INO, "d").await.unwrap();
    let opened = mount.vfs.opendir(&mount.cred, dir, 1).await.unwrap();
    for number in 0..300 {
        mount.mkdir(dir, &number.to_string()).await.unwrap();
    }
    let names = mount.read_dir(opened.fh, true).await.unwrap();
    assert_eq!(names.len(), 300, "ours, before anything was read");
    mount.mkdir(dir, "ours").await.unwrap();
    mount.peer.fs().mkdir("/d/theirs").unwrap();
    let names = mount.read_dir(opened.fh, true).await.unwrap();
    assert_eq!(names.len(), 302, "anybody's, after it was read");
    mount.vfs.rmdir(&mount.cred, dir, b"7").await.unwrap();
    let names = mount.read_dir(opened.fh, false).await.unwrap();
    assert_eq!(names.len(), 301);
}

/// That a directory lies on the way of a walk says nothing to anybody else.
#[tokio::test(start_paused = true)]
async fn what_is_expected_of_one_thread_is_not_believed_for_another() {
    let mount = one().await;
    let fs = mount.peer.fs();
    let mut inos = Vec::new();
    for number in 0..6 {
        fs.mkdir(&format!("/d{number}")).unwrap();
        inos.push(mount.walk(&format!("d{number}")).await.unwrap());
    }
    mount.list(ROOT_INO, true).await.unwrap();
    for _ in 0..2 {
        for &ino in &inos {
            mount.list_as(5, ino, true).await.unwrap();
        }
        seconds(1).await;
    }
    mount.list_as(5, inos[0], true).await.unwrap();
    mount.list_as(5, inos[1], true).await.unwrap();
    millis(1).await;
    for number in 2..6 {
        fs.write_file(&format!("/d{number}/new"), b"").unwrap();
    }
    for &ino in &inos[2..] {
        assert_eq!(mount.list_as(6, ino, true).await.unwrap(), ["new"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_found_to_be_opened_cannot_be_taken_away_before_it_is() {
    for (flags, keeps) in [
        (libc::O_RDONLY, true),
        (libc::O_RDWR, true),
        (libc::O_RDWR | libc::O_TRUNC, false),
    ] {
        let mount = one().await;
        let fs = mount.peer.fs();
        fs.write_file("/f", b"first").unwrap();
        mount.peer.clear_log();
        let found = mount
            .vfs
            .lookup_to_open(&mount.cred, ROOT_INO, b"f", flags, 5)
            .await;
        let Ok(Lookup::Found(entry)) = found else {
            panic!("{found:?}");
        };
        fs.write_file("/f.new", b"second").unwrap();
        fs.rename("/f.new", "/f").unwrap();
        let vfs = &mount.vfs;
        let opened = vfs.open_found(&mount.cred, entry.ino, flags, 5).await;
        let opened = opened.expect("the file that had the name");
        if keeps {
            assert_eq!(mount.peer.round_trips(), 1, "found and opened");
            let data = mount.vfs.read(opened.fh, 0, 9, flags).await;
            assert_eq!(&data.unwrap()[..], b"first");
        }
        mount.vfs.release(opened.fh).await.unwrap();
        seconds(2).await;
        assert_eq!(mount.vfs.client().opens(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_for_an_open_that_does_not_come_is_closed() {
    let mount = one().await;
    let fs = mount.peer.fs();
    fs.write_file("/f", b"x").unwrap();
    fs.mkdir("/d").unwrap();
    fs.symlink("f", "/l").unwrap();
    let look = async |name: &[u8], tid| {
        let vfs = &mount.vfs;
        vfs.lookup_to_open(&mount.cred, ROOT_INO, name, 0, tid)
            .await
    };
    for (name, tid) in [(&b"f"[..], 5), (b"d", 6), (b"l", 7)] {
        let found = look(name, tid).await;
        assert!(matches!(found, Ok(Lookup::Found(_))), "{name:?}");
    }
    assert!(matches!(look(b"n", 8).await, Ok(Lookup::Missing { .. })));
    assert_eq!(mount.vfs.client().opens(), 1, "the file alone");
    seconds(2).await;
    assert_eq!(mount.vfs.client().opens(), 0);
    assert_eq!(mount.peer.count_op(op::CLOSE), 1);
    // The end of the mount does not wait for it.
    assert!(look(b"f", 5).await.is_ok());
    mount.vfs.settled().await;
    assert_eq!(mount.vfs.client().opens(), 0);
}

/// Close-to-open: what another host has closed before open(2) was called is seen by it,
/// whatever somebody else, or an earlier call, was told on its own second walk.
#[tokio::test(start_paused = true)]
async fn what_was_kept_for_one_open_is_nobody_elses() {
    const READ: i32 = libc::O_RDONLY;
    for (tid, walks) in [(6, false), (6, true), (5, true)] {
        let mount = one().await;
        let (fs, vfs) = (mount.peer.fs(), &mount.vfs);
        fs.write_file("/f", b"old").unwrap();
        let walk = async |tid| {
            let found = vfs.lookup_to_open(&mount.cred, ROOT_INO, b"f", READ, tid);
            let Ok(Lookup::Found(entry)) = found.await else {
                panic!("it is there");
            };
            assert!(entry.entry_ttl.is_zero(), "the next open walks");
            entry.ino
        };
        let ino = walk(5).await;
        fs.write_file("/f", b"newer").unwrap();
        if walks {
            assert_eq!(walk(tid).await, ino);
        }
        let opened = vfs.open_found(&mount.cred, ino, READ, tid).await.unwrap();
        let data = vfs.read(opened.fh, 0, 9, READ).await;
        assert_eq!(
            &data.unwrap()[..],
            b"newer",
            "thread {tid}, walked: {walks}"
        );
        vfs.release(opened.fh).await.unwrap();
        seconds(2).await;
        assert_eq!(vfs.client().opens(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_what_is_gone_is_stale_so_that_its_name_is_looked_up_again() {
    let mount = one().await;
    mount.peer.fs().write_file("/f", b"x").unwrap();
    let file = mount.walk("f").await.unwrap();
    mount.peer.fs().remove("/f").unwrap();
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let set = mount.vfs.setattr(&mount.cred, file, None, set).await;
    assert_eq!(set.unwrap_err(), STALE);
}

/// RENAME moves what the server has under the old name: the reply tells what that was, in
/// the same round trip.
#[tokio::test(start_paused = true)]
async fn a_rename_of_what_another_host_has_replaced_shows_what_was_moved() {
    let mount = one().await;
    let known = mount.create(ROOT_INO, "b", libc::O_RDWR).await.unwrap();
    mount.close(known).await.unwrap();
    let fs = mount.peer.fs();
    fs.remove("/b").unwrap();
    fs.write_file("/b", b"theirs").unwrap();
    let before = mount.peer.round_trips();
    let renamed = mount.rename((ROOT_INO, "b"), (ROOT_INO, "a")).await;
    renamed.unwrap();
    assert_eq!(mount.peer.round_trips() - before, 1);
    let moved = mount.lookup(ROOT_INO, "a").await.unwrap().unwrap();
    assert_ne!(moved.ino, known.ino);
    assert_eq!(moved.stat.size, 6);
}

/// Makes something that is no regular file.
async fn make(mount: &Mount, what: &str, dir: Ino) -> Result<(), Errno> {
    let (vfs, cred) = (&mount.vfs, &mount.cred);
    let made = match what {
        "mkdir" => vfs.mkdir(cred, dir, b"n", 0o755).await,
        "mknod" => vfs.mknod(cred, dir, b"n", libc::S_IFIFO | 0o600, 0).await,
        _ => vfs.symlink(cred, dir, b"n", b"t").await,
    };
    made.map(drop).map_err(Errno::from)
}

/// Between CREATE and the GETATTR of its compound another host removes what was made, so often,
/// and perhaps takes the name. What the kernel does upon ESTALE is done here by hand.
#[tokio::test(start_paused = true)]
async fn what_is_removed_before_its_attributes_are_read_is_stale_and_is_made_once_more() {
    for what in ["mkdir", "mknod", "symlink"] {
        for (times, taken) in [(1, false), (1, true), (2, false)] {
            let context = format!("{what}, {times} times, name taken: {taken}");
            let mount = one().await;
            let dir = mount.mkdir(ROOT_INO, "d").await.unwrap();
            let (files, mut left) = (mount.peer.fs(), times);
            mount.peer.clear_log();
            mount.peer.on_op(move |event| {
                let is_read = event.op == op::GETATTR
                    && event.compound.contains(&op::CREATE)
                    && event.compound[event.op_index - 1] == op::GETFH;
                if is_read && left > 0 {
                    left -= 1;
                    files.remove("/d/n").unwrap();
                    if taken {
                        files.write_file("/d/n", b"theirs").unwrap();
                    }
                }
                Action::Pass
            });
            assert_eq!(make(&mount, what, dir).await, Err(STALE), "{context}");
            // The second walk asks for every name.
            let found = mount.vfs.lookup_asked(&mount.cred, ROOT_INO, b"d").await;
            let Ok(Lookup::Found(entry)) = found else {
                panic!("{context}: {found:?}");
            };
            assert_eq!(entry.ino, dir);
            let found = mount.vfs.lookup_asked(&mount.cred, dir, b"n").await;
            assert_eq!(matches!(found, Ok(Lookup::Found(_))), taken, "{context}");
            let expected = match (times, taken) {
                (1, false) => Ok(()),
                (1, true) => Err(Errno(libc::EEXIST)),
                _ => Err(STALE),
            };
            assert_eq!(make(&mount, what, dir).await, expected, "{context}");
            assert_eq!(mount.peer.count_op(op::CREATE), 2, "{context}");
            let fs = mount.peer.fs();
            assert_eq!(fs.exists("/d/n"), times == 1, "{context}");
            let theirs = fs.read_file("/d/n").ok();
            assert_eq!(theirs.as_deref(), taken.then_some(&b"theirs"[..]));
        }
    }
}
