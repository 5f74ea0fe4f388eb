//! Owner, mode and times of directories that are ahead of the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO, SetAttr, SetTime, Timestamp};

use super::super::rig::{Mount, millis, within};
use super::{private, settled, unpack};
use crate::peer::Action;
use crate::peer::proto::{op, st};

const LONG_AGO: i64 = 1_000_000_000;

/// As tar does it, once all is in the directory.
fn dated(mode: u32) -> SetAttr {
    let time = SetTime::At(Timestamp {
        sec: LONG_AGO,
        nsec: 7,
    });
    SetAttr {
        mode: Some(mode),
        atime: Some(time),
        mtime: Some(time),
        ..SetAttr::default()
    }
}

async fn set(mount: &Mount, dir: Ino, set: SetAttr) -> Result<(), Errno> {
    let wanted = set.mode;
    let (stat, _) = mount.vfs.setattr(&mount.cred, dir, None, set).await?;
    assert_eq!(Some(u32::from(stat.perm)), wanted);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn attributes_of_a_private_directory_wait_for_no_answer_and_come_after_the_names_in_it() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_secs(1));
    let start = tokio::time::Instant::now();
    for number in 0..4 {
        let name = format!("d{number}");
        let below = mount.mkdir(dir, &name).await.expect("mkdir");
        for file in ["a", "b", "c"] {
            unpack(&mount, below, file, b"data").await.expect("a file");
        }
        set(&mount, below, dated(0o500)).await.expect("chmod");
        let stat = mount.getattr(below).await.expect("stat");
        assert_eq!((stat.perm, stat.mtime.sec), (0o500, LONG_AGO));
    }
    assert!(start.elapsed() < Duration::from_millis(20), "nobody waits");
    settled(&mount).await;
    for number in 0..4 {
        let path = format!("/d/d{number}");
        let stat = mount.peer.fs().stat(&path).expect("stat");
        assert_eq!((stat.mode, stat.mtime.secs), (0o500, LONG_AGO));
        let names = mount.peer.fs().list(&path).expect("names");
        assert_eq!(names, ["a", "b", "c"], "made while they could be");
        let below = mount
            .walk(&format!("d/d{number}"))
            .await
            .expect("a directory");
        let stat = mount.getattr(below).await.expect("stat");
        assert_eq!((stat.perm, stat.mtime.sec), (0o500, LONG_AGO));
    }
}

/// As tar does it, once all is in the directory.
#[tokio::test(start_paused = true)]
async fn times_owner_and_mode_that_are_set_one_after_the_other_are_one_request() {
    let (mount, dir) = private().await;
    let below = mount.mkdir(dir, "below").await.expect("mkdir");
    unpack(&mount, below, "f", b"x").await.expect("a file");
    settled(&mount).await;
    let before = mount.peer.round_trips();
    let times = SetAttr {
        mode: None,
        ..dated(0)
    };
    let owner = SetAttr {
        uid: Some(7),
        gid: Some(8),
        ..SetAttr::default()
    };
    let mode = SetAttr {
        mode: Some(0o550),
        ..SetAttr::default()
    };
    for change in [times, owner, mode] {
        let set = mount.vfs.setattr(&mount.cred, below, None, change).await;
        let (_, ttl) = set.expect("setattr");
        let kept = Duration::from_millis(1)..=Duration::from_millis(100);
        assert!(kept.contains(&ttl), "the kernel keeps it: {ttl:?}");
    }
    settled(&mount).await;
    let stat = mount.peer.fs().stat("/d/below").expect("stat");
    assert_eq!((stat.mode, stat.uid, stat.gid), (0o550, 7, 8));
    assert_eq!(stat.mtime.secs, LONG_AGO);
    assert_eq!(mount.peer.round_trips(), before + 1);
    within(60, mount.vfs.settled()).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_set_again_before_the_server_knows_is_what_everybody_here_sees() {
    let (mount, dir) = private().await;
    mount.peer.set_latency(Duration::from_millis(100));
    for mode in [0o711, 0o750, 0o700] {
        set(&mount, dir, dated(mode)).await.expect("chmod");
        millis(30).await;
        unpack(&mount, dir, &format!("f{mode}"), b"x")
            .await
            .expect("a file");
        assert_eq!(
            u32::from(mount.getattr(dir).await.expect("stat").perm),
            mode
        );
    }
    // Whoever finds it by its name is told the same, whoever answers.
    let found = mount.lookup(ROOT_INO, "d").await.expect("a name");
    assert_eq!(found.expect("it is there").stat.perm, 0o700);
    settled(&mount).await;
    let stat = mount.peer.fs().stat("/d").expect("stat");
    assert_eq!(stat.mode, 0o700);
    assert!(
        stat.mtime.secs != LONG_AGO,
        "a name came after its time was set"
    );
}

#[tokio::test(start_paused = true)]
async fn attributes_that_are_refused_late_are_told_by_fsync_and_not_shown_any_more() {
    let (mount, dir) = private().await;
    let before = mount.getattr(dir).await.expect("stat").perm;
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        let first = event.op == op::SETATTR && seen.fetch_add(1, Ordering::Relaxed) == 0;
        match first {
            true => Action::Fail(st::PERM),
            false => Action::Pass,
        }
    });
    set(&mount, dir, dated(0o711)).await.expect("chmod");
    unpack(&mount, dir, "f", b"x").await.expect("a file");
    let told = within(60, mount.vfs.fsyncdir(dir)).await;
    assert_eq!(told.map_err(Errno::from), Err(Errno(libc::EPERM)));
    let (_, late) = mount.vfs.late_errors();
    assert_eq!(late[0].what, "change of attributes of");
    assert_eq!(mount.getattr(dir).await.expect("stat").perm, before);
    assert!(
        mount.peer.fs().exists("/d/f"),
        "what does not depend goes on"
    );
    within(60, mount.vfs.settled()).await;
}

#[tokio::test(start_paused = true)]
async fn what_sets_attributes_and_loses_its_reply_and_session_leaves_the_times_of_what_came_after()
{
    let (mount, dir) = private().await;
    let peer = Arc::downgrade(&mount.peer);
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        if event.op != op::SETATTR || seen.fetch_add(1, Ordering::Relaxed) > 0 {
            return Action::Pass;
        }
        peer.upgrade().expect("it lives").destroy_sessions();
        Action::DropConnectionAfter
    });
    set(&mount, dir, dated(0o700)).await.expect("chmod");
    mount.mkdir(dir, "after").await.expect("mkdir");
    let told = within(600, mount.vfs.fsyncdir(dir)).await;
    assert_eq!(told.map_err(Errno::from), Ok(()));
    let stat = mount.peer.fs().stat("/d").expect("stat");
    assert!(stat.mtime.secs != LONG_AGO, "{stat:?}");
    within(600, mount.vfs.settled()).await;
}
