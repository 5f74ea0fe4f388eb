//! Locks over lost replies, restarts and lost leases, on virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use efs_fuse::rpc::caller::{self, Caller};
use efs_fuse::vfs::types::{Errno, LockRange, Waiting};

use super::recovery::cut_short_at;
use super::rig::{Mount, Open, default_timeouts, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const UNLOCK: i32 = libc::F_UNLCK;
const END: u64 = i64::MAX as u64;

pub(super) fn range(typ: i32, start: u64, end: u64) -> LockRange {
    let pid = 7;
    LockRange {
        start,
        end,
        typ,
        pid,
    }
}

pub(super) async fn set(
    mount: &Mount,
    file: Open,
    owner: u64,
    range: LockRange,
) -> Result<(), Errno> {
    let caller = Waiting::default();
    Ok(within(600, mount.vfs.setlk(file.fh, owner, range, false, &caller)).await?)
}

async fn wait(
    mount: &Mount,
    file: Open,
    owner: u64,
    range: LockRange,
    caller: &Waiting,
) -> Result<(), Errno> {
    Ok(mount.vfs.setlk(file.fh, owner, range, true, caller).await?)
}

/// A process that is killed in the middle of what its lock protects: the kernel closes
/// its files while the request goes on.
#[tokio::test(start_paused = true)]
async fn the_locks_of_who_was_killed_are_held_until_its_last_change_has_ended() {
    const OWNER: u64 = 1;
    for way in ["flush", "unlock", "release"] {
        let peer = Peer::new(PeerConfig::default());
        peer.fs().write_file("/victim", b"x").unwrap();
        let mount = Mount::of(&peer, "one", default_timeouts()).await;
        let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
        set(&mount, file, OWNER, range(WRITE, 0, 10)).await.unwrap();
        let slow = Action::Delay(Duration::from_secs(3));
        once_at(&peer, op::REMOVE, slow);
        let (early, fs) = (Arc::new(AtomicBool::new(false)), peer.fs());
        let seen = Arc::clone(&early);
        let unlocks = async {
            let at_work = mount.vfs.abandoned().begin();
            let unlink = async {
                mount.unlink(1, "victim").await.unwrap();
                drop(at_work);
            };
            let gives_up = async {
                match way {
                    "flush" => mount.vfs.flush(file.fh, OWNER).await.unwrap(),
                    "unlock" => set(&mount, file, OWNER, range(UNLOCK, 0, END))
                        .await
                        .unwrap(),
                    _ => mount.vfs.release(file.fh).await.unwrap(),
                }
            };
            let watches = async {
                for _ in 0..40 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let locked = !fs.locks("/f").unwrap().is_empty();
                    seen.fetch_or(!locked && fs.exists("/victim"), Ordering::Relaxed);
                }
            };
            tokio::join!(unlink, gives_up, watches);
        };
        within(60, unlocks).await;
        assert!(!early.load(Ordering::Relaxed), "{way}: unlocked too early");
        assert_eq!(peer.fs().locks("/f").unwrap(), [], "{way}: still locked");
    }
}

/// Two hosts with one file open on both.
async fn two(peer: &Arc<Peer>) -> (Mount, Open, Mount, Open) {
    let one = Mount::of(peer, "one", default_timeouts()).await;
    let two = Mount::of(peer, "two", default_timeouts()).await;
    let here = one.create(1, "f", libc::O_RDWR).await.unwrap();
    let ino = two.walk("/f").await.unwrap();
    let there = two.open(ino, libc::O_RDWR).await.unwrap();
    (one, here, two, there)
}

const AGAIN: Result<(), Errno> = Err(Errno(libc::EAGAIN));
const EIO: Result<(), Errno> = Err(Errno(libc::EIO));

#[tokio::test(start_paused = true)]
async fn a_lock_whose_reply_was_lost_is_held_once_and_let_go_once() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    once_at(&peer, op::LOCK, Action::DropConnectionAfter);
    set(&one, here, 1, range(WRITE, 0, END)).await.unwrap();
    assert_eq!(set(&two, there, 1, range(READ, 5, 5)).await, AGAIN);
    once_at(&peer, op::LOCKU, Action::DropConnectionAfter);
    set(&one, here, 1, range(UNLOCK, 0, END)).await.unwrap();
    set(&two, there, 1, range(WRITE, 0, END)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn locks_are_reclaimed_before_anybody_else_gets_them() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    set(&one, here, 1, range(WRITE, 0, 99)).await.unwrap();
    set(&one, here, 1, range(UNLOCK, 40, 59)).await.unwrap();
    set(&one, here, 2, range(READ, 200, END)).await.unwrap();
    peer.clear_log();
    peer.crash_and_restart();
    assert_eq!(set(&two, there, 9, range(WRITE, 0, 0)).await, AGAIN);
    assert_eq!(set(&two, there, 9, range(WRITE, 99, 150)).await, AGAIN);
    assert_eq!(set(&two, there, 9, range(WRITE, 300, 300)).await, AGAIN);
    set(&two, there, 9, range(READ, 300, 300)).await.unwrap();
    set(&two, there, 9, range(WRITE, 40, 59)).await.unwrap();
    one.write(here, 0, b"still mine").await.unwrap();
    one.fsync(here).await.unwrap();
    set(&one, here, 1, range(UNLOCK, 0, END)).await.unwrap();
    set(&two, there, 9, range(WRITE, 0, 99)).await.unwrap();
    let log = peer.log();
    let order: Vec<u32> = log
        .iter()
        .flat_map(|executed| executed.ops.clone())
        .filter(|op| [op::OPEN, op::LOCK, op::RECLAIM_COMPLETE].contains(op))
        .collect();
    let done = order.iter().position(|&op| op == op::RECLAIM_COMPLETE);
    let first = order.iter().position(|&op| op == op::LOCK);
    assert!(first < done && first.is_some(), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_being_let_go_is_not_reclaimed_from_who_has_it_since() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    set(&one, here, 1, range(WRITE, 0, END)).await.unwrap();
    // It is executed, and its host does not hear of it.
    once_at(&peer, op::LOCKU, Action::SwallowReply);
    let lets_go = set(&one, here, 1, range(UNLOCK, 0, END));
    let takes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        set(&two, there, 9, range(WRITE, 0, END)).await.unwrap();
        peer.clear_log();
        peer.crash_and_restart();
        two.write(there, 0, b"mine now").await.unwrap();
        two.fsync(there).await.unwrap();
    };
    let (let_go, ()) = within(600, async { tokio::join!(lets_go, takes) }).await;
    let_go.unwrap();
    assert_eq!(peer.count_op(op::LOCK), 1, "one of them reclaims");
    assert_eq!(peer.fs().locks("/f").unwrap().len(), 1);
    assert_eq!(set(&one, here, 1, range(WRITE, 0, END)).await, AGAIN);
}

#[tokio::test(start_paused = true)]
async fn a_reclaimed_lock_whose_reply_does_not_decode_is_no_lost_lock() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    set(&one, here, 1, range(WRITE, 0, 99)).await.unwrap();
    cut_short_at(&peer, op::LOCK);
    peer.crash_and_restart();
    one.write(here, 0, b"still mine").await.unwrap();
    one.fsync(here).await.unwrap();
    assert_eq!(set(&two, there, 9, range(WRITE, 0, 0)).await, AGAIN);
    set(&one, here, 1, range(UNLOCK, 0, END)).await.unwrap();
    set(&two, there, 9, range(WRITE, 0, 99)).await.unwrap();
}

/// The session is lost when `what` of a recovery comes a second time, its connection having
/// been cut so: `cut` says whether the first was executed.
fn lose_session_at(peer: &Arc<Peer>, what: u32, cut: Action) {
    let (peer_again, mut cut) = (Arc::downgrade(peer), Some(cut));
    let mut lost = false;
    peer.on_op(move |event| {
        if event.op == what
            && let Some(cut) = cut.take()
        {
            return cut;
        }
        let is_second = cut.is_none() && event.op == op::SEQUENCE && event.compound.contains(&what);
        if is_second
            && !std::mem::replace(&mut lost, true)
            && let Some(peer) = peer_again.upgrade()
        {
            peer.destroy_sessions();
        }
        Action::Pass
    });
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_lost_during_a_recovery_costs_no_lock() {
    for (what, runs) in [
        (op::LOCK, false),
        (op::LOCK, true),
        (op::RECLAIM_COMPLETE, false),
        (op::RECLAIM_COMPLETE, true),
    ] {
        for keeps_sessions in [false, true] {
            let case = format!("{}, {runs}, {keeps_sessions}", op::name(what));
            let peer = Peer::new(PeerConfig::default());
            let one = Mount::of(&peer, "one", default_timeouts()).await;
            let here = one.create(1, "f", libc::O_RDWR).await.unwrap();
            set(&one, here, 1, range(WRITE, 0, 99)).await.unwrap();
            let cut = match runs {
                true => Action::DropConnectionAfter,
                false => Action::DropConnectionBefore,
            };
            lose_session_at(&peer, what, cut);
            match keeps_sessions {
                true => peer.restart_and_keep_sessions(),
                false => peer.crash_and_restart(),
            }
            let missing = within(60, one.walk("/never-seen")).await;
            missing.expect_err(&case);
            tokio::time::sleep(Duration::from_secs(1)).await;
            one.write(here, 0, b"still mine").await.expect(&case);
            one.fsync(here).await.expect(&case);
            assert_eq!(peer.fs().locks("/f").unwrap().len(), 1, "{case}");
            set(&one, here, 1, range(UNLOCK, 0, END))
                .await
                .expect(&case);
            assert_eq!(peer.fs().locks("/f").unwrap(), [], "{case}: for ever");
        }
    }
}

/// The contract of a lost lock: nothing through it any more, until it is closed.
pub(super) async fn is_dead(mount: &Mount, file: Open, owner: u64) {
    assert_eq!(mount.write(file, 0, b"mine").await, EIO);
    assert_eq!(mount.read(file, 0, 10).await.map(|_| ()), EIO);
    assert_eq!(mount.fsync(file).await, EIO);
    assert_eq!(set(mount, file, owner, range(READ, 0, 0)).await, EIO);
}

#[tokio::test(start_paused = true)]
async fn a_lock_lost_with_the_lease_makes_its_descriptor_fail_and_no_other() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    let other = one.create(1, "other", libc::O_RDWR).await.unwrap();
    set(&one, here, 1, range(WRITE, 0, END)).await.unwrap();
    peer.expire_clients();
    set(&two, there, 1, range(WRITE, 0, END)).await.unwrap();
    two.write(there, 0, b"theirs").await.unwrap();
    two.fsync(there).await.unwrap();
    // The first request finds out.
    one.write(other, 0, b"fine").await.unwrap();
    one.fsync(other).await.unwrap();
    is_dead(&one, here, 1).await;
    set(&one, here, 1, range(UNLOCK, 0, 5)).await.unwrap();
    is_dead(&one, here, 1).await;
    let _ = one.close(here).await;
    assert_eq!(peer.fs().read_file("/f").unwrap(), b"theirs");
    let again = one.open(here.ino, libc::O_RDWR).await.unwrap();
    assert_eq!(one.read(again, 0, 10).await.unwrap(), b"theirs");
    assert_eq!(set(&one, again, 1, range(READ, 0, 0)).await, AGAIN);
}

/// The lease ends, and LOCKU is what finds out: with all that was locked given up nothing is
/// lost, and the owner may lock again.
#[tokio::test(start_paused = true)]
async fn what_is_given_up_while_the_lease_ends_is_not_lost() {
    let whole = (0, END);
    for (held, given_up, lost) in [
        (whole, whole, false),
        ((0, 9), (0, 9), false),
        ((5, 9), (0, 20), false),
        (whole, (0, 5), true),
    ] {
        let peer = Peer::new(PeerConfig::default());
        let (one, here, ..) = two(&peer).await;
        let lock = |kind, (start, end)| set(&one, here, 1, range(kind, start, end));
        lock(WRITE, held).await.unwrap();
        one.write(here, 0, b"ours").await.unwrap();
        one.fsync(here).await.unwrap();
        peer.expire_clients();
        lock(UNLOCK, given_up).await.unwrap();
        if lost {
            is_dead(&one, here, 1).await;
            continue;
        }
        lock(WRITE, held).await.unwrap();
        one.write(here, 0, b"more").await.unwrap();
        one.fsync(here).await.unwrap();
        assert_eq!(peer.fs().read_file("/f").unwrap(), b"more");
    }
}

#[tokio::test(start_paused = true)]
async fn data_written_under_a_lock_that_was_lost_are_never_sent() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    set(&one, here, 1, range(WRITE, 0, END)).await.unwrap();
    // On its way when the lease ends.
    peer.on_op(|event| match event.op == op::WRITE {
        true => Action::Fail(st::DELAY),
        false => Action::Pass,
    });
    one.write(here, 0, b"stale!").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    peer.expire_clients();
    peer.clear_script();
    set(&two, there, 1, range(WRITE, 0, END)).await.unwrap();
    two.write(there, 0, b"theirs").await.unwrap();
    two.fsync(there).await.unwrap();
    assert_eq!(within(600, one.fsync(here)).await, EIO);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(peer.fs().read_file("/f").unwrap(), b"theirs");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_the_server_does_not_give_back_is_lost() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, _two, _there) = two(&peer).await;
    set(&one, here, 1, range(WRITE, 0, END)).await.unwrap();
    once_at(&peer, op::LOCK, Action::Fail(st::RECLAIM_CONFLICT));
    peer.crash_and_restart();
    // Not answered by a cache.
    within(600, one.create(1, "g", libc::O_RDWR)).await.unwrap();
    is_dead(&one, here, 1).await;
    let _ = one.close(here).await;
    let again = one.open(here.ino, libc::O_RDWR).await.unwrap();
    set(&one, again, 1, range(WRITE, 0, END)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_waiter_asks_with_pauses_and_its_neighbours_do_not_ask() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    set(&one, here, 1, range(WRITE, 0, END)).await.unwrap();
    let callers: Vec<_> = (0..10).map(|_| Arc::new(Waiting::default())).collect();
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let two = Arc::new(two);
    let mut tasks = Vec::new();
    for (number, caller) in callers.iter().enumerate() {
        let (two, caller, order) = (Arc::clone(&two), Arc::clone(caller), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let owner = 100 + number as u64;
            wait(&two, there, owner, range(WRITE, 0, 0), &caller)
                .await
                .unwrap();
            order.lock().push(number);
            set(&two, there, owner, range(UNLOCK, 0, 0)).await.unwrap();
        }));
        tokio::task::yield_now().await;
    }
    peer.clear_log();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = peer.count_op(op::LOCK);
    assert!((100..=200).contains(&asked), "{asked} LOCKs in 10 s");
    set(&one, here, 1, range(UNLOCK, 0, END)).await.unwrap();
    for task in tasks {
        within(10, task).await.unwrap();
    }
    assert_eq!(*order.lock(), (0..10).collect::<Vec<_>>(), "in line");
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_after_its_waiter_left_is_given_back() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    set(&one, here, 1, range(READ, 0, 9)).await.unwrap();
    let first = AtomicBool::new(true);
    peer.on_op(move |event| {
        let late = event.op == op::LOCK && first.swap(false, Ordering::Relaxed);
        match late {
            true => Action::Delay(Duration::from_secs(5)),
            false => Action::Pass,
        }
    });
    // An upgrade of a part, and of more than there was.
    let caller = Waiting::default();
    let upgrade = wait(&one, here, 1, range(WRITE, 5, 19), &caller);
    let gives_up = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(caller.give_up());
    };
    let (upgraded, ()) = tokio::join!(within(60, upgrade), gives_up);
    assert_eq!(upgraded, Err(Errno(libc::EINTR)));
    // As before: shared on 0 to 9, nothing above.
    set(&two, there, 1, range(READ, 0, 9)).await.unwrap();
    assert_eq!(set(&two, there, 1, range(WRITE, 0, 9)).await, AGAIN);
    set(&two, there, 1, range(WRITE, 10, 19)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn closing_any_descriptor_ends_the_locks_of_a_process_and_release_those_of_a_description() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    let second = one.open(here.ino, libc::O_RDWR).await.unwrap();
    set(&one, here, 1, range(WRITE, 0, 9)).await.unwrap();
    set(&one, here, 2, range(WRITE, 10, 19)).await.unwrap();
    // Process 1 closes its other descriptor.
    one.vfs.flush(second.fh, 1).await.unwrap();
    set(&two, there, 5, range(WRITE, 0, 9)).await.unwrap();
    assert_eq!(set(&two, there, 5, range(WRITE, 10, 19)).await, AGAIN);
    // 2 is a description, never named again.
    one.release(here).await;
    set(&two, there, 5, range(WRITE, 10, 19)).await.unwrap();
    one.release(second).await;
    two.release(there).await;
    one.vfs.client().closes_sent().await;
    two.vfs.client().closes_sent().await;
    assert_eq!(peer.open_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_server_is_asked_for_what_this_host_does_not_know_and_for_nothing_else() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    set(&one, here, 1, range(WRITE, 10, 19)).await.unwrap();
    peer.clear_log();
    assert_eq!(set(&one, here, 2, range(READ, 0, END)).await, AGAIN);
    let get = |mount: Arc<efs_fuse::vfs::Vfs>, file: Open, owner| async move {
        let cred = efs_fuse::rpc::auth::Credential::machine();
        let wanted = range(READ, 0, END);
        mount.getlk(&cred, file.fh, owner, wanted).await
    };
    let local = get(Arc::clone(&one.vfs), here, 2).await.unwrap();
    assert_eq!(local, range(WRITE, 10, 19));
    assert_eq!(peer.log().len(), 0, "known here");
    let remote = get(Arc::clone(&two.vfs), there, 2).await.unwrap();
    assert_eq!(remote, LockRange { pid: 0, ..local });
    let own = get(Arc::clone(&one.vfs), here, 1).await.unwrap();
    assert_eq!(own.typ, UNLOCK, "one's own lock is in nobody's way");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_room_for_locks_says_enolck_and_a_quota_edquot() {
    let peer = Peer::new(PeerConfig::default());
    let (one, here, two, there) = two(&peer).await;
    for (status, errno) in [(st::NOSPC, libc::ENOLCK), (st::DQUOT, libc::EDQUOT)] {
        once_at(&peer, op::LOCK, Action::Fail(status));
        let refused = set(&one, here, 1, range(WRITE, 0, 9)).await;
        assert_eq!(refused, Err(Errno(errno)));
        once_at(&peer, op::LOCK, Action::Fail(status));
        let caller = Waiting::default();
        let waited = within(60, wait(&one, here, 1, range(WRITE, 0, 9), &caller)).await;
        assert_eq!(waited, Err(Errno(errno)), "a wait ends with it");
        // Nothing is held, and nothing is broken.
        set(&two, there, 1, range(WRITE, 0, 9)).await.unwrap();
        set(&two, there, 1, range(UNLOCK, 0, 9)).await.unwrap();
        set(&one, here, 1, range(WRITE, 0, 9)).await.unwrap();
        set(&one, here, 1, range(UNLOCK, 0, 9)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_killed_while_it_closes_leaves_no_lock() {
    let peer = Peer::new(PeerConfig::default());
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
    // Another process has it open, so that no CLOSE takes the lock along.
    let other = mount.open(file.ino, libc::O_RDWR).await.unwrap();
    set(&mount, file, 1, range(WRITE, 0, END)).await.unwrap();
    let abandoned = Arc::clone(mount.vfs.abandoned());
    let killed = Caller::new(Some(abandoned), 7);
    killed.give_up();
    let flush = mount.vfs.flush(file.fh, 1);
    let _ = caller::on_behalf_of(Some(killed), flush).await;
    let released = mount.vfs.release(file.fh);
    released.await.unwrap();
    assert_eq!(peer.fs().locks("/f").unwrap(), [], "still locked");
    mount.close(other).await.unwrap();
}

/// FUSE tells of the last close(2) of a `flock` or OFD lock by RELEASE, for which the closer
/// does not wait.
#[tokio::test(start_paused = true)]
async fn a_lock_whose_descriptor_was_closed_is_in_nobodys_way() {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(20),
        ..PeerConfig::default()
    });
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let first = mount.create(1, "f", libc::O_RDWR).await.unwrap();
    let second = mount.open(first.ino, libc::O_RDWR).await.unwrap();
    let all = range(WRITE, 0, END);
    set(&mount, first, 1, all).await.unwrap();
    assert_eq!(set(&mount, second, 2, all).await, AGAIN, "it is held");
    // The task has not come to anything yet.
    let released = tokio::spawn(mount.vfs.release(first.fh));
    set(&mount, second, 2, all).await.unwrap();
    released.await.unwrap().unwrap();
    mount.close(second).await.unwrap();

    let third = mount.open(first.ino, libc::O_RDWR).await.unwrap();
    let fourth = mount.open(first.ino, libc::O_RDWR).await.unwrap();
    set(&mount, third, 3, all).await.unwrap();
    let released = tokio::spawn(mount.vfs.release(third.fh));
    let found = mount.vfs.getlk(&mount.cred, fourth.fh, 4, all).await;
    assert_eq!(found.unwrap().typ, UNLOCK, "F_GETLK");
    released.await.unwrap().unwrap();
    mount.close(fourth).await.unwrap();
}
