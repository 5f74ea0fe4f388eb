//! `writeback`: changes of names that are answered before the server knows of them, to the
//! request and the millisecond; and what a server, a connection or another host does to them.

mod attributes;
mod crossing;
mod file_attributes;
mod killed;
mod larger_requests;
mod lost;
mod model;
mod name_locks;
mod opened_again;
mod others_names;
mod twice;
mod waited_for;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO, SetAttr, SetTime, Timestamp};

use super::rig::{Mount, Open, connect, millis, seconds, within};
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
