//! Lockers that are killed, and files that are closed with a lock on them: nothing of
//! theirs stays at the server.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::calls::{HowToOpen, Locked};
use efs_fuse::nfs::state::OpenState;
use efs_fuse::nfs::state::locks::LockState;
use efs_fuse::nfs::state::ranges::{LockKind, Span};
use efs_fuse::vfs::types::{Errno, ROOT_INO, Waiting};

use super::locks::{range, set};
use super::rig::{Mount, Rig, default_timeouts, millis, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const OWNER: u64 = 1;

/// The operations of the kind that the server has run, with their statuses.
fn ran(peer: &Peer, wanted: &[u32]) -> Vec<(u32, u32)> {
    let log = peer.log();
    let pairs = log.iter().flat_map(|entry| {
        entry
            .ops
            .iter()
            .copied()
            .zip(entry.statuses.iter().copied())
    });
    pairs.filter(|(op, _)| wanted.contains(op)).collect()
}

/// What the server owes an answer for when the caller is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owed {
    /// The LOCK, asked for once (F_SETLK) or with patience, which has run already or
    /// has not.
    Lock { sleep: bool, ran: bool },
    /// The OPEN that a `flock` through a descriptor that cannot write needs first.
    Open,
    /// The LOCKU of the process's close(2).
    Flush,
    /// The LOCKU of F_UNLCK.
    Unlock,
}

/// The kernel closes the files of a killed process at once: FLUSH, RELEASE. What the
/// server was asked for in its name is put back before the CLOSE.
#[tokio::test(start_paused = true)]
async fn who_is_killed_while_a_lock_is_on_its_way_leaves_no_lock_and_no_open() {
    let lock = |sleep, ran| Owed::Lock { sleep, ran };
    for owed in [
        lock(false, false),
        lock(false, true),
        lock(true, false),
        lock(true, true),
        Owed::Open,
        Owed::Flush,
        Owed::Unlock,
    ] {
        for removed in [false, true] {
            killed(owed, removed).await;
        }
    }
}

async fn killed(owed: Owed, removed: bool) {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", b"data").unwrap();
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let ino = mount.walk("/f").await.unwrap();
    let flags = match owed {
        Owed::Open => libc::O_RDONLY,
        _ => libc::O_RDWR,
    };
    let file = mount.open(ino, flags).await.unwrap();
    if removed {
        mount.unlink(ROOT_INO, "f").await.unwrap();
    }
    let held = matches!(owed, Owed::Flush | Owed::Unlock);
    if held {
        let all = range(libc::F_WRLCK, 0, 9);
        set(&mount, file, OWNER, all).await.unwrap();
    }
    peer.clear_log();
    let slow = match owed {
        Owed::Lock { .. } => op::LOCK,
        Owed::Open => op::OPEN,
        Owed::Flush | Owed::Unlock => op::LOCKU,
    };
    // A reply waits for the operation behind the one that it is about.
    let behind = matches!(owed, Owed::Lock { ran: true, .. });
    let mut delay = Some(Action::Delay(Duration::from_secs(5)));
    peer.on_op(move |event| {
        let at = event.op_index - usize::from(behind && event.op_index > 0);
        match event.compound[at] == slow {
            true => delay.take().unwrap_or(Action::Pass),
            false => Action::Pass,
        }
    });
    let caller = Waiting::default();
    let kind = match owed {
        Owed::Unlock => libc::F_UNLCK,
        _ => libc::F_WRLCK,
    };
    let sleep = !matches!(owed, Owed::Lock { sleep: false, .. });
    let asks = async {
        let wanted = range(kind, 0, 9);
        match owed {
            Owed::Flush => mount.vfs.flush(file.fh, OWNER).await,
            _ => {
                let vfs = &mount.vfs;
                vfs.setlk(file.fh, OWNER, wanted, sleep, &caller).await
            }
        }
    };
    let dies = async {
        millis(1000).await;
        assert!(caller.give_up());
        if owed != Owed::Flush {
            mount.vfs.flush(file.fh, OWNER).await.unwrap();
        }
        mount.release(file).await;
    };
    let (asked, ()) = within(60, async { tokio::join!(asks, dies) }).await;
    if !held {
        assert_eq!(asked.unwrap_err(), Errno(libc::EINTR), "{owed:?}");
    }
    within(60, mount.vfs.settled()).await;
    let context = format!("{owed:?}, removed: {removed}");
    assert_eq!((peer.lock_count(), peer.open_count()), (0, 0), "{context}");
    let ended = ran(&peer, &[op::LOCK, op::LOCKU, op::CLOSE]);
    assert_eq!(ended.last(), Some(&(op::CLOSE, st::OK)), "{context}");
    assert!(
        ended.iter().all(|(_, status)| *status == st::OK),
        "{context}: {ended:?}"
    );
}

/// truncate(2) uses an open that another process has, and gives up meanwhile.
#[tokio::test(start_paused = true)]
async fn a_truncation_by_path_keeps_the_open_that_it_uses() {
    let peer = Peer::new(PeerConfig::default());
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    mount.write(file, 0, b"some data").await.unwrap();
    mount.flush(file).await.unwrap();
    once_at(&peer, op::SETATTR, Action::Delay(Duration::from_secs(5)));
    let closes = async {
        millis(1000).await;
        mount.release(file).await;
    };
    let cut = mount.truncate(file.ino, None, 4);
    let (cut, ()) = within(60, async { tokio::join!(cut, closes) }).await;
    cut.unwrap();
    assert_eq!(peer.fs().read_file("/f").unwrap(), b"some");
    within(60, mount.vfs.settled()).await;
    assert_eq!(peer.open_count(), 0);
}

/// While a lock is reclaimed nothing is known at the server that could be unlocked.
#[tokio::test(start_paused = true)]
async fn a_lock_that_is_let_go_of_while_it_is_reclaimed_is_let_go_of() {
    let peer = Peer::new(PeerConfig::default());
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    set(&mount, file, OWNER, range(libc::F_WRLCK, 0, 9))
        .await
        .unwrap();
    peer.crash_and_restart();
    once_at(&peer, op::LOCK, Action::Delay(Duration::from_secs(5)));
    let finds_out = mount.vfs.statfs(&mount.cred, ROOT_INO);
    let unlocks = async {
        millis(3000).await;
        set(&mount, file, OWNER, range(libc::F_UNLCK, 0, 9)).await
    };
    let (_, unlocked) = within(60, async { tokio::join!(finds_out, unlocks) }).await;
    unlocked.unwrap();
    assert!(peer.count_op(op::LOCK) > 0, "reclaimed");
    assert_eq!(peer.lock_count(), 0);
    mount.release(file).await;
}

/// The same owner goes on with another descriptor, of another user, while the one that
/// it locked through is gone.
#[tokio::test(start_paused = true)]
async fn an_open_is_not_closed_before_the_locks_that_were_made_with_it() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", b"data").unwrap();
    peer.fs().chmod("/f", 0o666).unwrap();
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let ino = mount.walk("/f").await.unwrap();
    let first = mount.open(ino, libc::O_RDWR).await.unwrap();
    set(&mount, first, OWNER, range(libc::F_WRLCK, 0, 9))
        .await
        .unwrap();
    let other = Arc::new(efs_fuse::rpc::auth::Credential {
        uid: 1000,
        gid: 1000,
        gids: Vec::new(),
    });
    let opened = mount.vfs.open(&other, ino, libc::O_RDWR).await.unwrap();
    let second = super::rig::Open { ino, fh: opened.fh };
    set(&mount, second, OWNER, range(libc::F_WRLCK, 10, 19))
        .await
        .unwrap();
    mount.release(first).await;
    within(60, mount.vfs.client().closes_sent()).await;
    let held = [(0, 9, true), (10, 19, true)];
    assert_eq!(peer.fs().locks("/f").unwrap(), held, "through the second");
    mount.release(second).await;
    within(60, mount.vfs.settled()).await;
    assert_eq!((peer.lock_count(), peer.open_count()), (0, 0));
    let closes = ran(&peer, &[op::CLOSE]);
    assert_eq!(closes, [(op::CLOSE, st::OK), (op::CLOSE, st::OK)]);
}

/// A lock that nobody here has let go of, as after a LOCKU that failed.
async fn left_locked(rig: &Rig, open: &Arc<OpenState>) -> Arc<LockState> {
    let lock = rig.client.prepare_lock(open);
    let all = Span { start: 0, end: 9 };
    let turn = lock.turn().await;
    let locked = rig.client.lock(&turn, all, LockKind::Write, false).await;
    assert!(matches!(locked, Ok(Locked::Granted(_))));
    drop(turn);
    lock
}

#[derive(Clone, Copy, Debug)]
enum Way {
    /// By itself.
    Alone,
    /// With six others, at this place.
    Among(usize),
    /// In front of an OPEN.
    BeforeOpen,
    /// In front of a REMOVE.
    BeforeRemove,
    /// At once.
    AtOnce,
}

/// LOCKS_HELD is answered by LOCKU and CLOSE again, wherever the CLOSE went.
#[tokio::test(start_paused = true)]
async fn a_close_refused_for_a_lock_lets_the_lock_go_and_closes() {
    let ways = [Way::Alone, Way::BeforeOpen, Way::BeforeRemove, Way::AtOnce];
    for way in ways.into_iter().chain((0..7).map(Way::Among)) {
        let rig = Rig::new(PeerConfig::default()).await;
        let open = rig.create("f", HowToOpen::Exclusive).await.unwrap();
        let lock = left_locked(&rig, &open).await;
        match way {
            Way::Alone => rig.client.close_soon(&open),
            Way::Among(place) => {
                let mut opens = Vec::new();
                for number in 0..6 {
                    let name = format!("f{number}");
                    opens.push(rig.create(&name, HowToOpen::Exclusive).await.unwrap());
                }
                opens.insert(place, Arc::clone(&open));
                opens.iter().for_each(|open| rig.client.close_soon(open));
            }
            Way::BeforeOpen => {
                rig.client.close_soon(&open);
                let made = rig.create("new", HowToOpen::Exclusive).await.unwrap();
                within(60, rig.client.closes_sent()).await;
                rig.client.close(&made).await.unwrap();
            }
            Way::BeforeRemove => {
                rig.client.close_soon(&open);
                let (cred, name) = (&rig.cred, b"f".as_slice());
                let removed = rig
                    .client
                    .remove_closed(cred, &rig.root, name, Some(&open.handle));
                within(60, removed).await.unwrap();
            }
            Way::AtOnce => within(60, rig.client.close(&open)).await.unwrap(),
        }
        // The owner is gone; what its lock is known by is kept for the CLOSE.
        drop(lock);
        within(60, rig.client.closes_sent()).await;
        let left = (rig.peer.lock_count(), rig.peer.open_count());
        assert_eq!(left, (0, 0), "{way:?}");
        assert_eq!(rig.client.opens(), 0, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_sees_locks_for_ever_is_not_asked_for_ever() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.on_op(|event| match event.op {
        op::CLOSE => Action::Fail(st::LOCKS_HELD),
        _ => Action::Pass,
    });
    for soon in [true, false] {
        let name = format!("{soon}");
        let open = rig.create(&name, HowToOpen::Exclusive).await.unwrap();
        let _lock = left_locked(&rig, &open).await;
        rig.peer.clear_log();
        match soon {
            true => rig.client.close_soon(&open),
            false => assert!(within(60, rig.client.close(&open)).await.is_err()),
        }
        within(60, rig.client.closes_sent()).await;
        assert!((2..5).contains(&rig.peer.count_op(op::CLOSE)));
        assert_eq!(rig.peer.lock_count(), 0, "what is known was let go of");
    }
}
