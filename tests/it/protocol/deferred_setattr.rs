//! Attribute changes of a new file travel together: others see them no later
//! than close, this host at once, and what the server refuses is told.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::rpc::auth::Credential;
use efs_fuse::vfs::types::{Errno, ROOT_INO, SetAttr, SetTime, Stat, Timestamp};

use super::rig::{Mount, Open, default_timeouts, millis, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const THEN: Timestamp = Timestamp {
    sec: 1_000_000_000,
    nsec: 5,
};

fn times() -> SetAttr {
    SetAttr {
        mtime: Some(SetTime::At(THEN)),
        ..SetAttr::default()
    }
}

fn mode(mode: u32) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    }
}

fn owner(uid: u32, gid: u32) -> SetAttr {
    SetAttr {
        uid: Some(uid),
        gid: Some(gid),
        ..SetAttr::default()
    }
}

async fn mount() -> Mount {
    Mount::new(PeerConfig::default()).await
}

async fn new_file(mount: &Mount) -> Open {
    let file = mount.create(ROOT_INO, "f", libc::O_WRONLY | libc::O_EXCL);
    let file = file.await.unwrap();
    mount.peer.clear_log();
    file
}

async fn set(mount: &Mount, file: Open, set: SetAttr) -> Result<Stat, Errno> {
    let fh = Some(file.fh);
    let answer = mount.vfs.setattr(&mount.cred, file.ino, fh, set);
    Ok(within(60, answer).await?.0)
}

/// Mode, owner, group, seconds of the last write: here and at the server.
type Shown = (u32, u32, u32, i64);

async fn here(mount: &Mount, file: Open) -> Shown {
    let stat = mount.getattr(file.ino).await.unwrap();
    (stat.perm.into(), stat.uid, stat.gid, stat.mtime.sec)
}

fn there(mount: &Mount) -> Shown {
    let stat = mount.peer.fs().stat("/f").unwrap();
    (stat.mode, stat.uid, stat.gid, stat.mtime.secs)
}

const ALL: Shown = (0o600, 7, 8, THEN.sec);

async fn set_all(mount: &Mount, file: Open) {
    set(mount, file, times()).await.unwrap();
    set(mount, file, owner(7, 8)).await.unwrap();
    let stat = set(mount, file, mode(0o600)).await.unwrap();
    assert_eq!((stat.uid, stat.perm, stat.mtime), (7, 0o600, THEN));
}

#[tokio::test(start_paused = true)]
async fn what_tar_does_to_a_file_is_two_round_trips_and_a_close() {
    let mount = mount().await;
    let file = new_file(&mount).await;
    mount.write(file, 0, b"unpacked").await.unwrap();
    set_all(&mount, file).await;
    assert_eq!(mount.peer.round_trips(), 0);
    assert_eq!(here(&mount, file).await, ALL);
    assert_eq!(mount.getattr(file.ino).await.unwrap().size, 8);
    mount.flush(file).await.unwrap();
    assert_eq!(mount.peer.round_trips(), 1);
    assert_eq!(there(&mount), ALL);
    assert!(!mount.peer.fs().has_unstable("/f").unwrap());
    mount.release(file).await;
    assert_eq!(here(&mount, file).await, ALL);
    assert_eq!(mount.peer.round_trips(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_data_they_are_one_request() {
    let mount = mount().await;
    let file = new_file(&mount).await;
    set_all(&mount, file).await;
    within(60, mount.fsync(file)).await.unwrap();
    assert_eq!(mount.peer.round_trips(), 1);
    assert_eq!(there(&mount), ALL);
}

#[tokio::test(start_paused = true)]
async fn another_host_sees_them_after_the_close_and_soon_without_one() {
    let one = mount().await;
    let two = Mount::of(&one.peer, "two", default_timeouts()).await;
    let file = new_file(&one).await;
    set_all(&one, file).await;
    millis(30).await;
    let ino = two.walk("/f").await.unwrap();
    assert_eq!(here(&two, Open { ino, fh: 0 }).await, ALL, "still open");
    set(&one, file, mode(0o640)).await.unwrap();
    one.close(file).await.unwrap();
    assert_eq!(there(&one).0, 0o640);
}

#[tokio::test(start_paused = true)]
async fn a_mode_is_at_the_server_before_the_data_that_follow_it() {
    let mount = mount().await;
    let file = new_file(&mount).await;
    set(&mount, file, mode(0o600)).await.unwrap();
    mount.write(file, 0, b"secret").await.unwrap();
    assert_eq!(there(&mount).0, 0o600);
    mount.close(file).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_after_the_times_were_set_moves_them() {
    let mount = mount().await;
    let file = new_file(&mount).await;
    set(&mount, file, times()).await.unwrap();
    mount.write(file, 0, b"later").await.unwrap();
    mount.close(file).await.unwrap();
    assert_ne!(there(&mount).3, THEN.sec);
    assert_eq!(here(&mount, file).await, there(&mount));
}

/// What the server had not committed is sent again, which would move them.
#[tokio::test(start_paused = true)]
async fn times_that_were_set_stay_when_the_server_crashes() {
    for published in [false, true] {
        let mount = mount().await;
        let file = new_file(&mount).await;
        if published {
            within(60, mount.fsync(file)).await.unwrap();
        }
        mount.write(file, 0, b"content").await.unwrap();
        millis(100).await;
        set(&mount, file, times()).await.unwrap();
        millis(100).await;
        mount.peer.crash_and_restart();
        within(60, mount.fsync(file)).await.unwrap();
        assert_eq!(there(&mount).3, THEN.sec, "{published}");
        mount.close(file).await.unwrap();
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), b"content");
        assert_eq!(there(&mount).3, THEN.sec, "{published}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_name_leads_to_the_attributes_that_were_set_before() {
    for links in [false, true] {
        let mount = mount().await;
        let file = new_file(&mount).await;
        mount.write(file, 0, b"config").await.unwrap();
        set_all(&mount, file).await;
        if links {
            let link = mount.vfs.link(&mount.cred, file.ino, ROOT_INO, b"g");
            within(60, link).await.unwrap();
        } else {
            let rename = mount.rename((ROOT_INO, "f"), (ROOT_INO, "g"));
            within(60, rename).await.unwrap();
        }
        let log = mount.peer.log();
        let order: Vec<u32> = log.iter().flat_map(|entry| entry.ops.clone()).collect();
        let at = |wanted| order.iter().position(|&op| op == wanted);
        let named = at(if links { op::LINK } else { op::RENAME });
        assert!(at(op::SETATTR).is_some() && at(op::SETATTR) < named);
        assert_eq!(mount.peer.fs().stat("/g").unwrap().mode, 0o600);
        mount.close(file).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_told_at_close_and_not_shown_any_more() {
    for with_data in [false, true] {
        let mount = mount().await;
        let file = new_file(&mount).await;
        if with_data {
            mount.write(file, 0, b"data").await.unwrap();
        }
        set_all(&mount, file).await;
        once_at(&mount.peer, op::SETATTR, Action::Fail(st::DQUOT));
        let told = within(60, mount.flush(file)).await;
        assert_eq!(told, Err(Errno(libc::EDQUOT)));
        let told = within(60, mount.fsync(file)).await;
        assert_eq!(told, Err(Errno(libc::EDQUOT)), "the closed one was a copy");
        within(60, mount.flush(file)).await.expect("told once");
        mount.release(file).await;
        let expected = there(&mount);
        assert_ne!(expected, ALL);
        assert_eq!(here(&mount, file).await, expected);
        let data = mount.peer.fs().read_file("/f").unwrap();
        assert_eq!(data, if with_data { &b"data"[..] } else { b"" });
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_write_does_not_move_the_times_that_were_set() {
    let mount = mount().await;
    let file = new_file(&mount).await;
    mount.peer.limit_io(3, 1 << 20);
    mount.write(file, 0, b"written in pieces").await.unwrap();
    set_all(&mount, file).await;
    within(60, mount.close(file)).await.unwrap();
    assert_eq!(there(&mount), ALL);
    let data = mount.peer.fs().read_file("/f").unwrap();
    assert_eq!(data, b"written in pieces");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_with_a_connection_or_a_server() {
    for case in 0..4 {
        let mount = mount().await;
        let file = new_file(&mount).await;
        mount.write(file, 0, b"data").await.unwrap();
        set_all(&mount, file).await;
        match case {
            0 => once_at(&mount.peer, op::WRITE, Action::DropConnectionAfter),
            1 => once_at(&mount.peer, op::WRITE, Action::DropConnectionBefore),
            2 => once_at(&mount.peer, op::SETATTR, Action::Fail(st::DELAY)),
            _ => mount.peer.crash_and_restart(),
        }
        within(600, mount.close(file)).await.unwrap();
        assert_eq!(there(&mount), ALL, "case {case}");
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), b"data");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_certain_is_asked_at_once() {
    let now = SetAttr {
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    // Another user's change, set-id bits, the server's clock.
    for change in [mode(0o4755), mode(0o2755), mode(0o1777), now] {
        let mount = mount().await;
        let file = new_file(&mount).await;
        set(&mount, file, change).await.unwrap();
        assert_eq!(mount.peer.count_op(op::SETATTR), 1);
    }
    let peer = Peer::new(PeerConfig::default());
    peer.fs().chmod("/", 0o777).unwrap();
    let mut mount = Mount::of(&peer, "one", default_timeouts()).await;
    mount.cred = Arc::new(Credential {
        uid: 1000,
        gid: 1000,
        gids: Vec::new(),
    });
    let file = new_file(&mount).await;
    let refused = set(&mount, file, owner(1, 1)).await;
    assert_eq!(refused.map(drop), Err(Errno(libc::EPERM)));
    peer.clear_log();
    set(&mount, file, owner(1000, 1000)).await.unwrap();
    set(&mount, file, mode(0o640)).await.unwrap();
    assert_eq!(peer.count_op(op::SETATTR), 0, "its own, and unchanged");
    mount.cred = Credential::machine();
    set(&mount, file, mode(0o600)).await.unwrap();
    assert_eq!(peer.count_op(op::SETATTR), 2, "in the order they were made");
    assert_eq!(there(&mount).0, 0o600);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_there_or_was_closed_since_is_changed_at_once() {
    let mount = mount().await;
    let file = new_file(&mount).await;
    mount.close(file).await.unwrap();
    set(&mount, file, mode(0o640)).await.unwrap();
    assert_eq!(there(&mount).0, 0o640);
    let again = mount.open(file.ino, libc::O_RDWR).await.unwrap();
    set(&mount, again, mode(0o600)).await.unwrap();
    assert_eq!(there(&mount).0, 0o600);
    let known = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    set(&mount, known, mode(0o644)).await.unwrap();
    assert_eq!(there(&mount).0, 0o644);
}

/// As the kernel and other processes of this host ask meanwhile.
#[tokio::test(start_paused = true)]
async fn this_host_sees_them_whichever_way_it_asks() {
    let mount = mount().await;
    mount.peer.set_latency(Duration::from_millis(1));
    let file = new_file(&mount).await;
    mount.write(file, 0, b"unpacked").await.unwrap();
    set_all(&mount, file).await;
    let found = mount.vfs.lookup(&mount.cred, ROOT_INO, b"f").await.unwrap();
    let efs_fuse::vfs::types::Lookup::Found(entry) = found else {
        panic!("the name is gone");
    };
    assert_eq!((entry.stat.uid, entry.stat.perm), (7, 0o600));
    assert!(entry.attr_ttl.is_zero());
    mount.list(ROOT_INO, true).await.unwrap();
    assert_eq!(here(&mount, file).await, ALL);
    // Whoever opens it is judged by its new mode.
    let stranger = Arc::new(Credential {
        uid: 1234,
        gid: 1234,
        gids: Vec::new(),
    });
    let opened = mount.vfs.open(&stranger, file.ino, libc::O_RDONLY);
    let refused = within(60, opened).await.map(drop);
    assert_eq!(refused.unwrap_err(), Errno(libc::EACCES));
    mount.close(file).await.unwrap();
}
