//! `writeback`: changes of names that are answered before the server knows of them, to the
//! request and the millisecond; and what a server, a connection or another host does to them.

mod attributes;
mod crossing;
mod larger_requests;
mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO, SetAttr, SetTime, Timestamp};

use super::rig::{Mount, Open, connect, millis, once_at, seconds, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const EXCLUSIVE: i32 = libc::O_RDWR | libc::O_EXCL;

/// Operations that change a name.
const MAKES_OR_REMOVES: [u32; 4] = [op::OPEN, op::CREATE, op::REMOVE, op::RENAME];

async fn mounted(config: PeerConfig) -> Mount {
    let peer = Peer::new(config);
    Mount::ahead(&connect(&peer, "one").await, &peer)
}

/// A mount, and a directory in it that is this host's.
async fn private() -> (Mount, Ino) {
    let mount = mounted(PeerConfig::default()).await;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    (mount, dir)
}

/// close(2): the RELEASE after it is waited for by nobody.
async fn shut(mount: &Mount, file: Open) -> Result<(), Errno> {
    let flushed = mount.flush(file).await;
    tokio::spawn(mount.vfs.release(file.fh));
    tokio::task::yield_now().await;
    flushed
}

async fn settled(mount: &Mount) {
    within(60, mount.vfs.fsyncdir(ROOT_INO))
        .await
        .expect("sync");
}

/// As tar does it.
async fn unpack(mount: &Mount, dir: Ino, name: &str, data: &[u8]) -> Result<Open, Errno> {
    let file = mount.create(dir, name, EXCLUSIVE).await?;
    if !data.is_empty() {
        mount.write(file, 0, data).await?;
    }
    let time = SetTime::At(Timestamp {
        sec: 1_000_000_000,
        nsec: 5,
    });
    let set = SetAttr {
        mode: Some(0o600),
        atime: Some(time),
        mtime: Some(time),
        ..SetAttr::default()
    };
    let vfs = &mount.vfs;
    let (stat, _) = (vfs.setattr(&mount.cred, file.ino, Some(file.fh), set)).await?;
    assert_eq!((stat.perm, stat.mtime.sec), (0o600, 1_000_000_000));
    shut(mount, file).await?;
    Ok(file)
}

#[tokio::test(start_paused = true)]
async fn files_of_a_private_directory_wait_for_no_answer_and_are_two_to_a_request() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_secs(1));
    let before = mount.peer.round_trips();
    let start = tokio::time::Instant::now();
    for number in 0..20 {
        let name = format!("f{number}");
        let file = unpack(&mount, dir, &name, name.as_bytes())
            .await
            .expect("a file");
        let stat = mount.getattr(file.ino).await.expect("stat");
        assert_eq!((stat.size, stat.nlink), (name.len() as u64, 1));
        assert!(mount.lookup(dir, &name).await.expect("a name").is_some());
    }
    assert!(start.elapsed() < Duration::from_millis(20), "nobody waits");
    settled(&mount).await;
    let requests = mount.peer.round_trips() - before;
    let fs = mount.peer.fs();
    for number in 0..20 {
        let path = format!("/d/f{number}");
        assert_eq!(fs.read_file(&path).expect("data"), &path.as_bytes()[3..]);
        let stat = fs.stat(&path).expect("stat");
        assert_eq!((stat.mode, stat.mtime.secs), (0o600, 1_000_000_000));
    }
    // The first went alone.
    assert!(requests <= 12, "{requests} requests");
    millis(2000).await;
    assert_eq!(mount.peer.open_count(), 0, "all are closed");
}

#[tokio::test(start_paused = true)]
async fn directories_below_a_private_one_are_private_and_there_before_what_is_in_them() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(100));
    let mut at = dir;
    for depth in 0..5 {
        at = mount.mkdir(at, &format!("d{depth}")).await.expect("mkdir");
        unpack(&mount, at, "file", b"data").await.expect("a file");
    }
    let vfs = &mount.vfs;
    vfs.symlink(&mount.cred, at, b"link", b"target")
        .await
        .expect("symlink");
    assert_eq!(mount.getattr(dir).await.expect("stat").nlink, 3);
    assert_eq!(
        mount.list(at, false).await.expect("names"),
        ["file", "link"]
    );
    settled(&mount).await;
    let fs = mount.peer.fs();
    assert_eq!(
        fs.read_file("/d/d0/d1/d2/d3/d4/file").expect("data"),
        b"data"
    );
    assert_eq!(
        fs.readlink("/d/d0/d1/d2/d3/d4/link").expect("a link"),
        "target"
    );
    assert_eq!(mount.getattr(dir).await.expect("stat").nlink, 3);
}

#[tokio::test(start_paused = true)]
async fn in_a_directory_of_others_the_server_decides() {
    let mount = mounted(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/theirs").expect("mkdir");
    let theirs = mount.walk("theirs").await.expect("a directory");
    let file = mount.create(theirs, "f", EXCLUSIVE).await.expect("create");
    assert!(fs.exists("/theirs/f"), "at once");
    mount.close(file).await.expect("close");
    fs.write_file("/theirs/g", b"other").expect("write");
    let found = mount.create(theirs, "g", EXCLUSIVE).await;
    assert_eq!(found.map(drop), Err(Errno(libc::EEXIST)));
}

#[tokio::test(start_paused = true)]
async fn names_are_removed_and_renamed_in_order_and_many_to_a_request() {
    let (mount, dir) = private().await;
    for number in 0..24 {
        unpack(&mount, dir, &format!("f{number}"), b"x")
            .await
            .expect("a file");
    }
    settled(&mount).await;
    mount.peer.set_latency(Duration::from_secs(1));
    let (before, start) = (mount.peer.round_trips(), tokio::time::Instant::now());
    mount.rename((dir, "f0"), (dir, "g")).await.expect("rename");
    mount
        .rename((dir, "f1"), (dir, "g"))
        .await
        .expect("rename over");
    for number in 2..24 {
        mount
            .unlink(dir, &format!("f{number}"))
            .await
            .expect("unlink");
    }
    assert_eq!(mount.unlink(dir, "f3").await, Err(Errno(libc::ENOENT)));
    let waited = start.elapsed();
    settled(&mount).await;
    let requests = mount.peer.round_trips() - before;
    assert_eq!(mount.peer.fs().list("/d").expect("names"), ["g"]);
    // The second unlink of f3 is the server's to refuse, after all before it.
    assert!(requests <= 6, "{requests} requests");
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    mount.unlink(dir, "g").await.expect("unlink");
    let vfs = &mount.vfs;
    vfs.rmdir(&mount.cred, ROOT_INO, b"d").await.expect("rmdir");
    settled(&mount).await;
    assert!(!mount.peer.fs().exists("/d"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_comes_late_is_told_by_fsync_and_stops_nothing_else() {
    let (mount, dir) = private().await;
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        let third = event.op == op::OPEN && seen.fetch_add(1, Ordering::Relaxed) == 2;
        match third {
            true => Action::Fail(st::DQUOT),
            false => Action::Pass,
        }
    });
    let mut files = Vec::new();
    for number in 0..6 {
        let file = mount
            .create(dir, &format!("f{number}"), EXCLUSIVE)
            .await
            .expect("create");
        mount.write(file, 0, b"data").await.expect("write");
        mount.flush(file).await.expect("close");
        files.push(file);
    }
    millis(100).await;
    let told = mount.vfs.fsyncdir(dir).await.map_err(Errno::from);
    assert_eq!(told, Err(Errno(libc::EDQUOT)));
    let again = mount.vfs.fsyncdir(dir).await.map_err(Errno::from);
    assert_eq!(again, Ok(()), "once");
    let (count, late) = mount.vfs.late_errors();
    assert_eq!((&*late[0].path, late[0].what), ("/d/f2", "new file"));
    assert!(count >= 1 && late[0].error.contains("quota"), "{late:?}");
    for (number, file) in files.into_iter().enumerate() {
        let told = mount.fsync(file).await;
        match number {
            2 => assert_eq!(told, Err(Errno(libc::EDQUOT))),
            _ => assert_eq!(told, Ok(()), "{number}"),
        }
        mount.release(file).await;
    }
    let names = mount.peer.fs().list("/d").expect("names");
    assert_eq!(names, ["f0", "f1", "f3", "f4", "f5"]);
    assert!(mount.lookup(dir, "f2").await.expect("the server").is_none());
    within(60, mount.vfs.settled()).await;
}

#[tokio::test(start_paused = true)]
async fn data_of_a_closed_file_that_are_refused_are_told_by_fsync_of_its_directory_and_shown() {
    let (mount, dir) = private().await;
    mount.peer.on_op(|event| match event.op == op::WRITE {
        true => Action::Fail(st::NOSPC),
        false => Action::Pass,
    });
    let file = mount.create(dir, "large", EXCLUSIVE).await.expect("create");
    for part in 0..4 {
        let written = mount.write(file, part << 16, &[7; 1 << 16]).await;
        written.expect("accepted");
    }
    assert_eq!(shut(&mount, file).await, Ok(()), "close waits for nothing");
    let told = within(60, mount.vfs.fsyncdir(dir)).await;
    assert_eq!(told.map_err(Errno::from), Err(Errno(libc::ENOSPC)));
    let again = within(60, mount.vfs.fsyncdir(dir)).await;
    assert_eq!(again.map_err(Errno::from), Ok(()), "once");
    let (count, late) = mount.vfs.late_errors();
    let is_it =
        |error: &efs_fuse::vfs::LateError| (&*error.path, error.what) == ("/d/large", "data");
    assert!(count >= 1 && late.iter().all(is_it), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_directory_with_names_that_the_server_does_not_know_is_neither_replaced_nor_removed() {
    for replaces in [true, false] {
        let (mount, dir) = private().await;
        let empty = mount.mkdir(dir, "empty").await.expect("mkdir");
        let full = mount.mkdir(dir, "full").await.expect("mkdir");
        settled(&mount).await;
        mount.peer.set_latency(Duration::from_millis(200));
        // Its maker has it open: it is not sent yet.
        let file = mount.create(full, "file", EXCLUSIVE).await.expect("create");
        let refused = match replaces {
            true => within(60, mount.rename((dir, "empty"), (dir, "full"))).await,
            false => {
                let removed = within(60, mount.vfs.rmdir(&mount.cred, dir, b"full")).await;
                removed.map_err(Errno::from)
            }
        };
        assert_eq!(refused, Err(Errno(libc::ENOTEMPTY)), "{replaces}");
        mount.close(file).await.expect("close");
        settled(&mount).await;
        assert!(mount.peer.fs().exists("/d/full/file"));
        assert_eq!(mount.vfs.late_errors().0, 0);
        assert!(mount.getattr(empty).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_gets_its_name_has_all_that_was_made_in_it_with_its_data() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(50));
    let built = mount.mkdir(dir, "building").await.expect("mkdir");
    let mut at = built;
    for depth in 0..3 {
        unpack(&mount, at, "file", &[7; 100_000])
            .await
            .expect("a file");
        at = mount.mkdir(at, &format!("d{depth}")).await.expect("mkdir");
    }
    let renamed = within(60, mount.rename((dir, "building"), (ROOT_INO, "built"))).await;
    assert_eq!(renamed, Ok(()));
    // As another host sees it who waits for the name.
    for path in ["/built/file", "/built/d0/file", "/built/d0/d1/file"] {
        let data = mount.peer.fs().read_file(path).expect(path);
        assert_eq!(data, [7; 100_000], "{path}");
    }
    assert!(mount.peer.fs().exists("/built/d0/d1/d2"));
    let moved = within(60, mount.rename((ROOT_INO, "built"), (dir, "again"))).await;
    assert_eq!(moved, Ok(()));
    assert_eq!(mount.getattr(built).await.expect("stat").nlink, 3);
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_times_were_set_before_its_reply_and_session_were_lost_is_known_again() {
    for theirs in [false, true] {
        let mount = mounted(PeerConfig {
            exclusive_in_times: true,
            exclusive_until_times: true,
            ..PeerConfig::default()
        })
        .await;
        let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
        let peer = Arc::downgrade(&mount.peer);
        let seen = AtomicUsize::new(0);
        mount.peer.on_op(move |event| {
            if event.op != op::OPEN || seen.fetch_add(1, Ordering::Relaxed) > 0 {
                return Action::Pass;
            }
            peer.upgrade().expect("it lives").destroy_sessions();
            match theirs {
                // It was not executed, and another host makes the name meanwhile.
                true => {
                    let peer = peer.upgrade().expect("it lives");
                    peer.fs().write_file("/d/f0", b"theirs").expect("write");
                    Action::DropConnectionBefore
                }
                false => Action::DropConnectionAfter,
            }
        });
        for number in 0..5 {
            let name = format!("f{number}");
            unpack(&mount, dir, &name, name.as_bytes())
                .await
                .expect("a file");
        }
        let told = within(600, mount.vfs.fsyncdir(dir)).await;
        let fs = mount.peer.fs();
        for number in usize::from(theirs)..5 {
            let path = format!("/d/f{number}");
            assert_eq!(fs.read_file(&path).expect("data"), &path.as_bytes()[3..]);
            let stat = fs.stat(&path).expect("stat");
            assert_eq!(
                (stat.mode, stat.mtime.secs),
                (0o600, 1_000_000_000),
                "{path}"
            );
        }
        match theirs {
            true => {
                assert_eq!(told.map_err(Errno::from), Err(Errno(libc::EEXIST)));
                assert_eq!(fs.read_file("/d/f0").expect("data"), b"theirs");
            }
            false => {
                assert_eq!(told.map_err(Errno::from), Ok(()));
                assert_eq!(mount.vfs.late_errors().0, 0);
            }
        }
        within(600, mount.vfs.settled()).await;
        assert_eq!(mount.peer.open_count(), 0, "all are closed");
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
async fn a_name_that_another_host_has_made_meanwhile_is_neither_cut_nor_replaced() {
    let (mount, dir) = private().await;
    mount
        .peer
        .fs()
        .write_file("/d/f1", b"theirs")
        .expect("write");
    for number in 0..3 {
        let file = mount
            .create(dir, &format!("f{number}"), libc::O_RDWR | libc::O_TRUNC)
            .await;
        let file = file.expect("create");
        mount.write(file, 0, b"ours").await.expect("write");
        shut(&mount, file).await.expect("close");
    }
    let told = within(60, mount.vfs.fsyncdir(dir))
        .await
        .map_err(Errno::from);
    assert_eq!(told, Err(Errno(libc::EEXIST)));
    let fs = mount.peer.fs();
    assert_eq!(fs.read_file("/d/f1").expect("data"), b"theirs");
    assert_eq!(
        fs.read_file("/d/f2").expect("data"),
        b"ours",
        "what does not depend goes on"
    );
    // It is not private any more.
    let file = mount.create(dir, "g", EXCLUSIVE).await.expect("create");
    assert!(fs.exists("/d/g"));
    mount.close(file).await.expect("close");
}

/// A directory with two files in it, one of which has been another and one of three.
async fn in_one(mount: &Mount, dir: Ino, name: &str, number: usize) -> Result<(), Errno> {
    let sub = mount.mkdir(dir, name).await?;
    for file in ["a", "b", "c"] {
        unpack(mount, sub, file, format!("{number}{file}").as_bytes()).await?;
    }
    mount.rename((sub, "a"), (sub, "z")).await?;
    mount.unlink(sub, "b").await
}

#[tokio::test(start_paused = true)]
async fn a_server_that_restarts_and_lines_that_break_have_everything_done_once() {
    for fault in 0..6_u64 {
        let (mount, dir) = private().await;
        let peer = Arc::downgrade(&mount.peer);
        let seen = AtomicUsize::new(0);
        mount.peer.on_op(move |event| {
            let about = MAKES_OR_REMOVES.contains(&event.op);
            if !about || seen.fetch_add(1, Ordering::Relaxed) % 5 != 3 {
                return Action::Pass;
            }
            // A server that has begun a compound ends it, whatever becomes of the connection.
            let begun = &event.compound[..event.op_index];
            let is_first = !begun.iter().any(|op| MAKES_OR_REMOVES.contains(op));
            match fault {
                0 if is_first => Action::DropConnectionBefore,
                1 => Action::DropConnectionAfter,
                2 => Action::Fail(st::DELAY),
                3 => {
                    peer.upgrade().expect("it lives").destroy_sessions();
                    Action::DropConnectionAfter
                }
                4 if seen.load(Ordering::Relaxed) < 9 => {
                    peer.upgrade().expect("it lives").crash_and_restart();
                    Action::DropConnectionBefore
                }
                _ => Action::Pass,
            }
        });
        let mut expected = Vec::new();
        for number in 0..12 {
            let name = format!("d{number:02}");
            // When the first reply was lost with its session, nobody can say whose a move of the
            // directory was that it would have told of: then it is private no more, and what the
            // server says of a second sending counts (`nfs::calls`).
            let done = in_one(&mount, dir, &name, number).await;
            match done {
                Ok(()) => expected.push(name),
                Err(error) => {
                    let doubtful = [libc::EEXIST, libc::ENOENT].contains(&error.raw());
                    assert!(fault == 3 && doubtful, "fault {fault}: {error}");
                    break;
                }
            }
        }
        let told = within(600, mount.vfs.fsyncdir(dir))
            .await
            .map_err(Errno::from);
        assert_eq!(told, Ok(()), "fault {fault}");
        mount.peer.clear_script();
        let fs = mount.peer.fs();
        let mut names = fs.list("/d").expect("names");
        names.truncate(expected.len());
        assert_eq!(names, expected, "fault {fault}");
        for (number, name) in expected.iter().enumerate() {
            let sub = format!("/d/{name}");
            assert_eq!(
                fs.list(&sub).expect("names"),
                ["c", "z"],
                "fault {fault}: {sub}"
            );
            let data = fs.read_file(&format!("{sub}/z")).expect("data");
            assert_eq!(data, format!("{number}a").as_bytes());
        }
        within(600, mount.vfs.settled()).await;
        assert_eq!(mount.peer.open_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_after_a_file_was_made_or_is_much_goes_by_itself() {
    let (mount, dir) = private().await;
    let much: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let file = mount.create(dir, "much", EXCLUSIVE).await.expect("create");
    mount.write(file, 0, &much).await.expect("write");
    shut(&mount, file).await.expect("close");
    let slow = mount.create(dir, "slow", EXCLUSIVE).await.expect("create");
    mount.write(slow, 0, b"one").await.expect("write");
    millis(500).await;
    assert_eq!(
        mount.peer.fs().read_file("/d/slow").expect("data"),
        b"one",
        "within a second"
    );
    mount.write(slow, 3, b"two").await.expect("write");
    assert_eq!(mount.read(slow, 0, 100).await.expect("data"), b"onetwo");
    mount.fsync(slow).await.expect("fsync");
    let fs = mount.peer.fs();
    assert!(fs.read_file("/d/much").expect("data") == much);
    assert_eq!(fs.read_file("/d/slow").expect("data"), b"onetwo");
    mount.close(slow).await.expect("close");
    let back = mount
        .lookup(dir, "much")
        .await
        .expect("a name")
        .expect("a file");
    let file = mount.open(back.ino, libc::O_RDONLY).await.expect("open");
    assert!(mount.read(file, 1_000_000, 4096).await.expect("data") == much[1_000_000..1_004_096]);
    mount.close(file).await.expect("close");
    seconds(1).await;
    within(60, mount.vfs.settled()).await;
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
async fn a_server_of_few_operations_is_asked_and_one_without_the_current_stateid_gets_it_all() {
    for few in [true, false] {
        let config = PeerConfig {
            max_ops: if few { 8 } else { 16 },
            ..PeerConfig::default()
        };
        let mount = mounted(config).await;
        let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
        if !few {
            once_at(&mount.peer, op::WRITE, Action::Fail(st::BAD_STATEID));
        }
        for number in 0..7 {
            unpack(&mount, dir, &format!("f{number}"), b"data")
                .await
                .expect("a file");
            mount
                .mkdir(dir, &format!("d{number}"))
                .await
                .expect("mkdir");
        }
        let told = within(60, mount.vfs.fsyncdir(dir))
            .await
            .map_err(Errno::from);
        assert_eq!(told, Ok(()));
        let fs = mount.peer.fs();
        assert_eq!(fs.list("/d").expect("names").len(), 14);
        for number in 0..7 {
            assert_eq!(
                fs.read_file(&format!("/d/f{number}")).expect("data"),
                b"data"
            );
        }
        assert!(mount.peer.max_ops_seen() <= if few { 8 } else { 16 });
        within(60, mount.vfs.settled()).await;
        assert_eq!(mount.peer.open_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn another_process_goes_on_with_what_was_made_ahead_and_with_what_was_refused() {
    let (mount, dir) = private().await;
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        match event.op == op::OPEN && seen.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Action::Fail(st::DQUOT),
            false => Action::Pass,
        }
    });
    let refused = mount.create(dir, "a", EXCLUSIVE).await.expect("create");
    let made = unpack(&mount, dir, "b", b"data").await.expect("a file");
    let open = mount.create(dir, "c", EXCLUSIVE).await.expect("create");
    mount.write(open, 0, b"one").await.expect("write");
    let mount = mount.handed_over().await;
    let fs = mount.peer.fs();
    assert_eq!(fs.list("/d").expect("names"), ["b", "c"]);
    assert_eq!(fs.read_file("/d/c").expect("data"), b"one");
    mount.write(open, 3, b"two").await.expect("write");
    mount.close(open).await.expect("close");
    assert_eq!(fs.read_file("/d/c").expect("data"), b"onetwo");
    let found = mount
        .lookup(dir, "b")
        .await
        .expect("a name")
        .expect("a file");
    assert_eq!(found.ino, made.ino, "the kernel's number for it");
    assert_eq!(mount.getattr(made.ino).await.expect("stat").size, 4);
    let told = mount.flush(refused).await;
    assert!(told.is_err(), "it was never made");
    mount.release(refused).await;
    within(60, mount.vfs.settled()).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_request_has_done_whose_reply_and_session_were_lost_is_refused_to_nobody() {
    for about in [op::REMOVE, op::CREATE] {
        let (mount, dir) = private().await;
        for number in 0..4 {
            let name = format!("f{number}");
            unpack(&mount, dir, &name, b"x").await.expect("a file");
        }
        settled(&mount).await;
        let peer = Arc::downgrade(&mount.peer);
        let seen = AtomicUsize::new(0);
        mount.peer.on_op(move |event| {
            if event.op != about || seen.fetch_add(1, Ordering::Relaxed) > 0 {
                return Action::Pass;
            }
            peer.upgrade().expect("it lives").destroy_sessions();
            Action::DropConnectionAfter
        });
        for number in 0..3 {
            let name = |kind: &str| format!("{kind}{number}");
            match about {
                op::REMOVE => mount.unlink(dir, &name("f")).await.expect("unlink"),
                _ => drop(mount.mkdir(dir, &name("d")).await.expect("mkdir")),
            }
        }
        let told = within(600, mount.vfs.fsyncdir(dir)).await;
        assert_eq!(told.map_err(Errno::from), Ok(()), "{about}");
        let names = mount.peer.fs().list("/d").expect("names").len();
        assert_eq!(names, if about == op::REMOVE { 1 } else { 7 });
        within(600, mount.vfs.settled()).await;
    }
}

/// By a server that takes data as Linux 6.1's does (`Dec::payload`).
#[tokio::test(start_paused = true)]
async fn files_of_any_size_have_their_own_data_whatever_goes_in_a_request() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(5));
    let sizes = [0, 10, 900, 2000, 3000, 4096, 5000, 20_000, 70_000];
    let data = |number: usize| vec![number as u8 + 1; sizes[number % sizes.len()]];
    for number in 0..60 {
        let name = format!("f{number}");
        unpack(&mount, dir, &name, &data(number))
            .await
            .expect("a file");
        if number % 7 == 0 {
            mount
                .mkdir(dir, &format!("d{number}"))
                .await
                .expect("mkdir");
        }
    }
    settled(&mount).await;
    let fs = mount.peer.fs();
    for number in 0..60 {
        let found = fs.read_file(&format!("/d/f{number}")).expect("data");
        assert!(found == data(number), "{number}");
    }
}

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

#[tokio::test(start_paused = true)]
async fn a_name_of_a_private_directory_that_nobody_has_made_is_not_asked_for() {
    let (mount, dir) = private().await;
    mount.mkdir(dir, "below").await.expect("mkdir");
    settled(&mount).await;
    let before = mount.peer.round_trips();
    for name in ["a", "b", "c"] {
        assert!(mount.lookup(dir, name).await.expect("a name").is_none());
    }
    assert_eq!(mount.peer.round_trips(), before);
    // Once another host has made one there, the directory is private no more.
    mount
        .peer
        .fs()
        .write_file("/d/theirs", b"x")
        .expect("write");
    mount
        .unlink(dir, "none")
        .await
        .expect_err("nothing to remove");
    mount.mkdir(dir, "more").await.expect("mkdir");
    settled(&mount).await;
    let found = mount.lookup(dir, "theirs").await.expect("a name");
    assert!(found.is_some());
}

/// As rm -r does it, of what was made here.
#[tokio::test(start_paused = true)]
async fn a_private_directory_is_listed_and_emptied_without_asking_and_no_other_is() {
    let (mount, dir) = private().await;
    for number in 0..30 {
        let name = format!("f{number:02}");
        let made = unpack(&mount, dir, &name, b"x").await;
        made.expect("a file");
    }
    settled(&mount).await;
    let before = mount.peer.round_trips();
    let names = mount.list(dir, true).await.expect("names");
    assert_eq!(names.len(), 30);
    assert_eq!(mount.getattr(dir).await.expect("stat").nlink, 2);
    assert_eq!(mount.peer.round_trips(), before, "nobody is asked");
    for name in &names {
        mount.unlink(dir, name).await.expect("unlink");
    }
    assert!(mount.list(dir, false).await.expect("names").is_empty());
    mount
        .vfs
        .rmdir(&mount.cred, ROOT_INO, b"d")
        .await
        .expect("rmdir");
    // Twelve, twelve, six; and the directory, whose own is not private.
    let requests = mount.peer.round_trips() - before;
    assert!(requests <= 4, "{requests} requests");
    assert!(!mount.peer.fs().exists("/d"));

    // A directory that somebody else has made a name in is asked for what it holds.
    let dir = mount.mkdir(ROOT_INO, "e").await.expect("mkdir");
    unpack(&mount, dir, "mine", b"x").await.expect("a file");
    settled(&mount).await;
    let fs = mount.peer.fs();
    fs.write_file("/e/theirs", b"y").expect("write");
    // Which the next change of this host shows.
    unpack(&mount, dir, "more", b"x").await.expect("a file");
    settled(&mount).await;
    let mut names = mount.list(dir, false).await.expect("names");
    names.sort();
    assert_eq!(names, ["mine", "more", "theirs"]);
}
