//! Owner, mode and times of files that exist, ahead of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO, SetAttr, SetTime, Stat, Timestamp};
use parking_lot::Mutex;

use super::super::rig::{Mount, millis, within};
use super::{EXCLUSIVE, mounted, settled, shut, unpack};
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

const LONG_AGO: i64 = 1_000_000_000;

fn mode(mode: u32) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    }
}

fn dated() -> SetAttr {
    let time = SetTime::At(Timestamp {
        sec: LONG_AGO,
        nsec: 7,
    });
    SetAttr {
        atime: Some(time),
        mtime: Some(time),
        ..SetAttr::default()
    }
}

fn owner(uid: u32) -> SetAttr {
    SetAttr {
        uid: Some(uid),
        gid: Some(uid),
        ..SetAttr::default()
    }
}

async fn set(mount: &Mount, ino: Ino, set: SetAttr) -> Result<(Stat, Duration), Errno> {
    Ok(mount.vfs.setattr(&mount.cred, ino, None, set).await?)
}

/// A mount, and files in a directory that another host has made.
async fn with_files(count: usize) -> (Mount, Vec<Ino>) {
    let mount = mounted(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/tree").expect("a directory");
    for number in 0..count {
        let path = format!("/tree/f{number}");
        fs.write_file(&path, b"data").expect("a file");
        fs.chown(&path, 5, 5).expect("an owner");
    }
    let tree = mount.walk("tree").await.expect("a directory");
    let mut files = Vec::new();
    for number in 0..count {
        let found = mount.lookup(tree, &format!("f{number}")).await;
        files.push(found.expect("a name").expect("it is there").ino);
    }
    (mount, files)
}

async fn told(mount: &Mount) -> Result<(), Errno> {
    let tree = mount.walk("tree").await.expect("a directory");
    let told = within(600, mount.vfs.fsyncdir(tree)).await;
    told.map_err(Errno::from)
}

#[tokio::test(start_paused = true)]
async fn attributes_of_files_wait_for_no_answer_once_one_was_allowed_and_are_three_to_a_request() {
    let (mount, files) = with_files(31).await;
    mount.peer.set_latency(Duration::from_secs(1));
    let before = mount.peer.round_trips();
    let start = tokio::time::Instant::now();
    for (number, ino) in files.iter().enumerate() {
        let (stat, ttl) = set(&mount, *ino, mode(0o600)).await.expect("chmod");
        assert_eq!(stat.perm, 0o600);
        if number == 0 {
            assert!(start.elapsed() >= Duration::from_secs(1), "it is asked");
        } else {
            let kept = Duration::from_millis(1)..=Duration::from_millis(100);
            assert!(kept.contains(&ttl), "the kernel keeps it: {ttl:?}");
        }
    }
    assert!(
        start.elapsed() < Duration::from_millis(1020),
        "nobody waits"
    );
    for ino in &files {
        assert_eq!(mount.getattr(*ino).await.expect("stat").perm, 0o600);
    }
    assert!(start.elapsed() < Duration::from_millis(1020), "nor here");
    settled(&mount).await;
    let requests = mount.peer.round_trips() - before;
    assert!(requests <= 1 + 10 + 1, "{requests} requests");
    for (number, ino) in files.iter().enumerate() {
        let stat = mount.peer.fs().stat(&format!("/tree/f{number}"));
        assert_eq!(stat.expect("stat").mode, 0o600);
        assert_eq!(mount.getattr(*ino).await.expect("stat").perm, 0o600);
    }
}

#[tokio::test(start_paused = true)]
async fn what_this_user_was_never_seen_to_be_allowed_is_asked_of_the_server() {
    let (mount, files) = with_files(4).await;
    let fs = mount.peer.fs();
    fs.chown("/tree/f2", 6, 6).expect("another owner");
    fs.link("/tree/f3", "/tree/other").expect("another name");
    tokio::time::sleep(Duration::from_secs(100)).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    for ino in &files {
        mount.getattr(*ino).await.expect("stat");
    }
    mount.peer.set_latency(Duration::from_millis(100));
    let takes = async |ino: Ino, change: SetAttr| {
        let start = tokio::time::Instant::now();
        set(&mount, ino, change).await.expect("setattr");
        start.elapsed()
    };
    let asked = Duration::from_millis(100);
    assert!(takes(files[1], mode(0o640)).await < asked, "of that owner");
    assert!(takes(files[2], mode(0o640)).await >= asked, "of another");
    assert!(takes(files[1], mode(0o4755)).await >= asked, "set-id");
    assert!(takes(files[3], mode(0o640)).await >= asked, "two names");
    // Who has given something away may do all.
    assert!(takes(files[0], owner(5)).await >= asked, "it was his");
    assert!(takes(files[0], owner(7)).await >= asked, "a gift");
    assert!(takes(files[2], owner(7)).await < asked, "another");
    settled(&mount).await;
    assert_eq!(fs.stat("/tree/f2").expect("stat").uid, 7);
}

#[tokio::test(start_paused = true)]
async fn whatever_is_asked_about_a_file_comes_after_what_was_set_of_it() {
    let (mount, files) = with_files(3).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    mount.peer.set_latency(Duration::from_millis(100));
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    mount.peer.on_op(move |event| {
        if [op::SETATTR, op::OPEN, op::WRITE, op::ACCESS].contains(&event.op) {
            seen.lock().push(event.op);
        }
        Action::Pass
    });
    set(&mount, files[1], mode(0o640)).await.expect("chmod");
    let file = mount.open(files[1], libc::O_RDWR).await.expect("open");
    assert_eq!(*order.lock(), [op::SETATTR, op::OPEN]);
    // Data that are written after the times move them, and those before do not.
    let (stat, _) = set(&mount, files[1], dated()).await.expect("utimes");
    assert_eq!(stat.mtime.sec, LONG_AGO);
    mount.write(file, 0, b"more").await.expect("write");
    within(60, mount.fsync(file)).await.expect("fsync");
    assert_eq!(
        *order.lock(),
        [op::SETATTR, op::OPEN, op::SETATTR, op::WRITE]
    );
    assert!(mount.getattr(files[1]).await.expect("stat").mtime.sec != LONG_AGO);
    mount.write(file, 0, b"once").await.expect("write");
    set(&mount, files[1], dated()).await.expect("utimes");
    mount.close(file).await.expect("close");
    settled(&mount).await;
    let stat = mount.peer.fs().stat("/tree/f1").expect("stat");
    assert_eq!((stat.mtime.secs, stat.mode), (LONG_AGO, 0o640));
}

#[tokio::test(start_paused = true)]
async fn attributes_of_a_file_that_are_refused_late_are_told_and_not_shown_and_the_next_are_asked()
{
    let (mount, files) = with_files(4).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    let was = mount.getattr(files[1]).await.expect("stat").perm;
    mount.peer.on_op(move |event| match event.op {
        op::SETATTR => Action::Fail(st::PERM),
        _ => Action::Pass,
    });
    set(&mount, files[1], mode(0o640)).await.expect("chmod");
    set(&mount, files[2], mode(0o640)).await.expect("chmod");
    assert_eq!(told(&mount).await, Err(Errno(libc::EPERM)));
    assert_eq!(told(&mount).await, Ok(()), "once");
    mount.peer.clear_script();
    let (count, late) = mount.vfs.late_errors();
    assert_eq!((count, &*late[0].path), (2, "/tree/f1"));
    assert_eq!(late[0].what, "change of attributes of");
    assert_eq!(mount.getattr(files[1]).await.expect("stat").perm, was);
    mount.peer.set_latency(Duration::from_secs(1));
    let start = tokio::time::Instant::now();
    set(&mount, files[3], mode(0o640)).await.expect("chmod");
    assert!(start.elapsed() >= Duration::from_secs(1), "it is asked");
    within(60, mount.vfs.settled()).await;
}

/// Those behind it in its request were not executed then.
#[tokio::test(start_paused = true)]
async fn one_that_is_refused_in_the_middle_of_a_request_stops_no_other() {
    let (mount, files) = with_files(8).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        let second = event.op == op::SETATTR && seen.fetch_add(1, Ordering::Relaxed) == 1;
        match second {
            true => Action::Fail(st::DQUOT),
            false => Action::Pass,
        }
    });
    for ino in &files[1..] {
        set(&mount, *ino, mode(0o640)).await.expect("chmod");
    }
    assert_eq!(told(&mount).await, Err(Errno(libc::EDQUOT)));
    let fs = mount.peer.fs();
    let modes = (1..8).map(|number| fs.stat(&format!("/tree/f{number}")).expect("stat").mode);
    let refused = modes.filter(|mode| *mode != 0o640).count();
    assert_eq!(refused, 1);
}

#[tokio::test(start_paused = true)]
async fn attributes_whose_reply_and_session_are_lost_are_set_all_the_same() {
    let (mount, files) = with_files(10).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    let peer = Arc::downgrade(&mount.peer);
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        if event.op != op::SETATTR || seen.fetch_add(1, Ordering::Relaxed) != 1 {
            return Action::Pass;
        }
        peer.upgrade().expect("it lives").destroy_sessions();
        Action::DropConnectionAfter
    });
    for (number, ino) in files.iter().enumerate().skip(1) {
        let bits = 0o600 + number as u32;
        set(&mount, *ino, mode(bits)).await.expect("chmod");
    }
    assert_eq!(told(&mount).await, Ok(()));
    for number in 1..10 {
        let stat = mount.peer.fs().stat(&format!("/tree/f{number}"));
        assert_eq!(stat.expect("stat").mode, 0o600 + number);
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_host_has_removed_meanwhile_is_told_and_stops_no_other() {
    let (mount, files) = with_files(4).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    mount.peer.fs().remove("/tree/f2").expect("removed");
    for ino in &files[1..] {
        set(&mount, *ino, mode(0o640)).await.expect("chmod");
    }
    assert_eq!(told(&mount).await, Err(Errno(libc::ESTALE)));
    let fs = mount.peer.fs();
    assert_eq!(fs.stat("/tree/f1").expect("stat").mode, 0o640);
    assert_eq!(fs.stat("/tree/f3").expect("stat").mode, 0o640);
}

/// What is written after both waits for the attributes, which wait for the name, which is not to
/// wait for what is written.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_renamed_set_and_written_is_all_of_it() {
    let mount = mounted(PeerConfig::default()).await;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    let file = mount.create(dir, "a", EXCLUSIVE).await.expect("a file");
    mount.write(file, 0, b"first").await.expect("write");
    within(60, mount.fsync(file)).await.expect("fsync");
    mount.peer.set_latency(Duration::from_millis(50));
    for round in 0..20_u64 {
        let (from, to) = if round % 2 == 0 {
            ("a", "b")
        } else {
            ("b", "a")
        };
        mount.rename((dir, from), (dir, to)).await.expect("rename");
        millis(round % 7).await;
        set(&mount, file.ino, mode(0o600 + round as u32))
            .await
            .expect("chmod");
        let data = format!("{round}");
        mount
            .write(file, round, data.as_bytes())
            .await
            .expect("write");
        millis(round % 5 * 30).await;
    }
    within(60, mount.fsync(file)).await.expect("fsync");
    let stat = mount.peer.fs().stat("/d/a").expect("stat");
    assert_eq!((stat.mode, stat.size), (0o600 + 19, 21));
    mount.close(file).await.expect("close");
    within(60, mount.vfs.settled()).await;
}

/// A change of a name may wait for room to open a file, which is made by CLOSEs.
#[tokio::test(start_paused = true)]
async fn a_close_does_not_wait_for_attributes_that_are_ahead() {
    let (mount, files) = with_files(2).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    let file = mount.open(files[1], libc::O_RDONLY).await.expect("open");
    assert_eq!(mount.read(file, 0, 10).await.expect("read"), b"data");
    mount.peer.on_op(move |event| match event.op {
        op::SETATTR => Action::Delay(Duration::from_secs(20)),
        _ => Action::Pass,
    });
    set(&mount, files[1], mode(0o640)).await.expect("chmod");
    shut(&mount, file).await.expect("close");
    millis(10_000).await;
    assert_eq!(mount.peer.open_count(), 0);
    assert!(mount.peer.fs().stat("/tree/f1").expect("stat").mode != 0o640);
    settled(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn files_that_are_made_and_set_without_a_pause_are_all_there() {
    let mount = mounted(PeerConfig::default()).await;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    mount.peer.set_latency(Duration::from_millis(20));
    let mut made = Vec::new();
    for number in 0..300_u32 {
        let name = format!("f{number}");
        let file = unpack(&mount, dir, &name, b"data").await;
        made.push(file.expect("a file"));
        if number % 3 == 2 {
            let earlier = made[number as usize / 3];
            set(&mount, earlier.ino, mode(0o640)).await.expect("chmod");
        }
        millis(u64::from(number % 4)).await;
    }
    settled(&mount).await;
    for number in 0..100 {
        let stat = mount.peer.fs().stat(&format!("/d/f{number}"));
        assert_eq!(stat.expect("stat").mode, 0o640, "f{number}");
    }
    within(60, mount.vfs.settled()).await;
    assert_eq!(mount.peer.open_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_another_host_beside_one_that_is_ahead_is_noticed() {
    let (mount, files) = with_files(2).await;
    set(&mount, files[0], mode(0o600)).await.expect("chmod");
    let file = mount.open(files[1], libc::O_RDONLY).await.expect("open");
    assert_eq!(mount.read(file, 0, 10).await.expect("read"), b"data");
    shut(&mount, file).await.expect("close");
    millis(1000).await;
    mount.peer.set_latency(Duration::from_millis(100));
    set(&mount, files[1], mode(0o640)).await.expect("chmod");
    mount
        .peer
        .fs()
        .write_file("/tree/f1", b"another's")
        .expect("write");
    settled(&mount).await;
    let file = mount.open(files[1], libc::O_RDONLY).await.expect("open");
    assert_eq!(mount.read(file, 0, 10).await.expect("read"), b"another's");
    mount.close(file).await.expect("close");
}
