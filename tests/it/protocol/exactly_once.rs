//! Requests that must not run twice, over connections and sessions that do not
//! last (RFC 8881 §2.10.6; the redo rules of `nfs::calls`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use efs_fuse::nfs::NfsError;
use efs_fuse::nfs::calls::HowToOpen;
use efs_fuse::nfs::proto::types::FileHandle;
use efs_fuse::vfs::types::ROOT_INO;
use parking_lot::Mutex;

use super::rig::{Mount, ONCE, Rig, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Executed, Peer, PeerConfig};

/// A tree in which every request of [`change`] has something to work on.
async fn prepared(cfg: PeerConfig) -> (Rig, FileHandle) {
    let peer = Peer::new(cfg);
    let fs = peer.fs();
    fs.write_file("/victim", b"x").unwrap();
    fs.write_file("/from", b"from").unwrap();
    fs.write_file("/object", b"object").unwrap();
    let rig = Rig::of(peer, "one").await;
    let object = rig.lookup("object").await.unwrap().unwrap();
    rig.peer.clear_log();
    (rig, object)
}

/// One request with `number`.
async fn try_change(rig: &Rig, object: &FileHandle, number: u32) -> Result<(), NfsError> {
    match number {
        op::CREATE => rig.mkdir("made").await.map(drop),
        op::REMOVE => rig.remove("victim").await,
        op::RENAME => rig.rename("from", "to").await,
        op::LINK => rig.link(object, "linked").await,
        op::SETATTR => rig.chmod(object, 0o600).await,
        op::OPEN => match rig.create("fresh", HowToOpen::Exclusive).await {
            Ok(open) => rig.client.close(&open).await,
            Err(error) => Err(error),
        },
        _ => unreachable!("not one of ONCE"),
    }
}

/// The same; it has to succeed.
async fn change(rig: &Rig, object: &FileHandle, number: u32) {
    if let Err(error) = try_change(rig, object, number).await {
        panic!("{}: {error}", op::name(number));
    }
}

/// What is said of a second sending of a change that had taken effect, where nothing
/// is left of the first: what is certain, and that is not always whose doing it was.
fn second_answer(number: u32) -> Result<(), i32> {
    match number {
        op::CREATE | op::LINK => Err(libc::EEXIST),
        op::REMOVE | op::RENAME => Err(libc::ENOENT),
        // The file carries our mark; and attributes are set to the same.
        op::OPEN | op::SETATTR => Ok(()),
        _ => unreachable!("not one of ONCE"),
    }
}

/// What [`change`] was to do has happened, once.
fn assert_changed(peer: &Arc<Peer>, number: u32) {
    let fs = peer.fs();
    match number {
        op::CREATE => assert!(fs.exists("/made")),
        op::REMOVE => assert!(!fs.exists("/victim")),
        op::RENAME => {
            assert!(!fs.exists("/from"));
            assert_eq!(fs.read_file("/to").unwrap(), b"from");
        }
        op::LINK => assert_eq!(fs.stat("/object").unwrap().nlink, 2),
        op::SETATTR => assert_eq!(fs.stat("/object").unwrap().mode, 0o600),
        op::OPEN => assert!(fs.exists("/fresh")),
        _ => unreachable!("not one of ONCE"),
    }
    assert_eq!(peer.open_count(), 0, "after {}", op::name(number));
}

fn with_op(log: &[Executed], number: u32) -> Vec<Executed> {
    log.iter()
        .filter(|entry| entry.ops.contains(&number))
        .cloned()
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_reply_lost_with_its_connection_is_fetched_again_under_the_same_name() {
    for number in ONCE {
        let (rig, object) = prepared(PeerConfig::default()).await;
        super::rig::once_at(&rig.peer, number, Action::DropConnectionAfter);
        within(30, change(&rig, &object, number)).await;
        assert_changed(&rig.peer, number);
        let sent = with_op(&rig.peer.log(), number);
        assert_eq!(sent.len(), 2, "{}: {sent:?}", op::name(number));
        let [first, again] = &sent[..] else {
            unreachable!()
        };
        assert!(!first.replayed && again.replayed, "{}", op::name(number));
        assert_eq!(
            (first.slot, first.seqid, first.xid, first.request_len),
            (again.slot, again.seqid, again.xid, again.request_len),
        );
        assert_ne!(first.conn_id, again.conn_id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_lost_with_its_connection_runs_once_on_the_next() {
    for number in ONCE {
        let (rig, object) = prepared(PeerConfig::default()).await;
        super::rig::once_at(&rig.peer, number, Action::DropConnectionBefore);
        within(30, change(&rig, &object, number)).await;
        assert_changed(&rig.peer, number);
        let sent = with_op(&rig.peer.log(), number);
        assert_eq!(sent.len(), 1, "{}", op::name(number));
        assert_eq!(rig.peer.session_count(), 1, "the same session");
    }
}

#[tokio::test(start_paused = true)]
async fn many_cuts_in_a_row_change_nothing() {
    for number in ONCE {
        let (rig, object) = prepared(PeerConfig::default()).await;
        let mut cuts = 0;
        rig.peer.on_op(move |event| {
            // The first SEQUENCE results, and every replay of the request.
            let ours = event.compound.contains(&number) && event.op == op::SEQUENCE;
            cuts += u32::from(ours);
            if ours && cuts <= 5 {
                Action::DropConnectionAfter
            } else {
                Action::Pass
            }
        });
        within(60, change(&rig, &object, number)).await;
        assert_changed(&rig.peer, number);
    }
}

/// The reply of the first sending is lost together with the session.
async fn lose_reply_and_session(number: u32, cfg: PeerConfig, lose: fn(&Peer)) -> Rig {
    let (rig, object) = prepared(cfg).await;
    let peer = Arc::downgrade(&rig.peer);
    let state = Arc::new(Mutex::new(0));
    rig.peer.on_op(move |event| {
        let mut seen = state.lock();
        if *seen == 0 && event.op == number {
            *seen = 1;
            return Action::DropConnectionAfter;
        }
        // The replay finds that its session is gone.
        if *seen == 1 && event.op == op::SEQUENCE {
            *seen = 2;
            if let Some(peer) = peer.upgrade() {
                lose(&peer);
            }
        }
        Action::Pass
    });
    let result = within(120, try_change(&rig, &object, number)).await;
    let told = result.map_err(|error| error.errno());
    assert_eq!(told, second_answer(number), "{}", op::name(number));
    rig
}

#[tokio::test(start_paused = true)]
async fn what_ran_before_its_session_was_lost_runs_once_and_is_ours_where_that_can_be_told() {
    for number in ONCE {
        let rig = lose_reply_and_session(number, PeerConfig::default(), |peer| {
            peer.destroy_sessions();
        })
        .await;
        assert_changed(&rig.peer, number);
    }
}

#[tokio::test(start_paused = true)]
async fn what_ran_before_the_server_restarted_runs_once_and_is_ours_where_that_can_be_told() {
    for number in ONCE {
        let rig = lose_reply_and_session(number, PeerConfig::default(), |peer| {
            peer.crash_and_restart();
        })
        .await;
        assert_changed(&rig.peer, number);
        assert!(!rig.peer.in_grace(), "RECLAIM_COMPLETE was sent");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_met_a_lost_session_runs_once_in_the_next() {
    for number in ONCE {
        let (rig, object) = prepared(PeerConfig::default()).await;
        rig.peer.destroy_sessions();
        within(30, change(&rig, &object, number)).await;
        assert_changed(&rig.peer, number);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_the_server_did_not_keep_leaves_what_was_done_once() {
    for number in ONCE {
        let (rig, object) = prepared(PeerConfig::default()).await;
        // It ran, says the server, but what came of it is forgotten.
        super::rig::once_at(&rig.peer, number, Action::FailAfter(st::RETRY_UNCACHED_REP));
        let result = within(30, try_change(&rig, &object, number)).await;
        let told = result.map_err(|error| error.errno());
        assert_eq!(told, second_answer(number), "{}", op::name(number));
        assert_changed(&rig.peer, number);
    }
}

// What is not ours stays an error, however the request got there.

async fn taken() -> Rig {
    let peer = Peer::new(PeerConfig::default());
    let fs = peer.fs();
    fs.mkdir("/made").unwrap();
    fs.write_file("/linked", b"another").unwrap();
    fs.write_file("/object", b"object").unwrap();
    fs.write_file("/fresh", b"fresh").unwrap();
    Rig::of(peer, "one").await
}

#[tokio::test(start_paused = true)]
async fn a_replayed_request_that_failed_is_an_error_and_not_taken_for_our_own_doing() {
    for action in [
        || Action::DropConnectionAfter,
        || Action::DropConnectionBefore,
    ] {
        for number in [op::CREATE, op::REMOVE, op::RENAME, op::LINK, op::OPEN] {
            let rig = taken().await;
            let object = rig.lookup("object").await.unwrap().unwrap();
            super::rig::once_at(&rig.peer, number, action());
            let result = within(30, async {
                match number {
                    op::CREATE => rig.mkdir("made").await.map(drop),
                    op::REMOVE => rig.remove("missing").await,
                    op::RENAME => rig.rename("missing", "to").await,
                    op::LINK => rig.link(&object, "linked").await,
                    _ => rig.create("fresh", HowToOpen::Exclusive).await.map(drop),
                }
            })
            .await;
            let errno = result.expect_err(op::name(number)).errno();
            let expected = match number {
                op::REMOVE | op::RENAME => libc::ENOENT,
                _ => libc::EEXIST,
            };
            assert_eq!(errno, expected, "{}", op::name(number));
        }
    }
}

/// A WRITE that ran and whose reply is lost is not run again over what another host has done
/// since: the server keeps its reply, too. (The kernel's client does not ask for that.)
#[tokio::test(start_paused = true)]
async fn a_write_whose_reply_was_lost_does_not_land_on_what_came_after_it() {
    let fragments: [&[u64]; 2] = [&[0], &[0, 5000, 9000]];
    for offsets in fragments {
        let mount = Mount::new(PeerConfig::default()).await;
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        let (peer, step) = (Arc::downgrade(&mount.peer), AtomicUsize::new(0));
        mount.peer.on_op(move |event| {
            match (step.load(Ordering::Relaxed), event.op) {
                (0, op::WRITE) => {
                    step.store(1, Ordering::Relaxed);
                    return Action::DropConnectionAfter;
                }
                (1, op::SEQUENCE) => {
                    step.store(2, Ordering::Relaxed);
                    let peer = peer.upgrade().unwrap();
                    assert!(!peer.fs().read_file("/f").unwrap().is_empty());
                    peer.fs().write_file("/f", b"").unwrap();
                }
                _ => {}
            }
            Action::Pass
        });
        for offset in offsets {
            mount.write(file, *offset, b"ours").await.unwrap();
        }
        within(60, mount.fsync(file)).await.unwrap();
        let content = mount.peer.fs().read_file("/f").unwrap();
        assert_eq!(content, b"", "{offsets:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_hosts_never_both_make_the_same_lock_directory() {
    let peer = Peer::new(PeerConfig::default());
    let one = Rig::of(Arc::clone(&peer), "one").await;
    let two = Rig::of(Arc::clone(&peer), "two").await;
    one.mkdir("lock").await.expect("the first to come");
    super::rig::once_at(&peer, op::CREATE, Action::DropConnectionAfter);
    let errno = within(30, two.mkdir("lock")).await.unwrap_err().errno();
    assert_eq!(errno, libc::EEXIST);
}

/// Fails the first sending as if it might have run, which it did not; another host
/// was `meanwhile`.
async fn fate_unknown(
    rig: &Rig,
    number: u32,
    mut meanwhile: impl FnMut(&Arc<Peer>) + Send + 'static,
) {
    let peer = Arc::downgrade(&rig.peer);
    let mut first = true;
    rig.peer.on_op(move |event| {
        if event.op != number || !std::mem::take(&mut first) {
            return Action::Pass;
        }
        meanwhile(&peer.upgrade().expect("the peer"));
        Action::Fail(st::RETRY_UNCACHED_REP)
    });
}

#[tokio::test(start_paused = true)]
async fn what_another_did_meanwhile_is_never_taken_for_ours() {
    let rig = Rig::new(PeerConfig::default()).await;
    fate_unknown(&rig, op::CREATE, |peer| peer.fs().mkdir("/lock").unwrap()).await;
    let error = within(30, rig.mkdir("lock")).await.unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST, "a lock directory of another");

    fate_unknown(&rig, op::CREATE, |peer| {
        peer.fs().symlink("here", "/l").unwrap();
    })
    .await;
    let error = within(30, rig.symlink("l", "here")).await.unwrap_err();
    assert_eq!(
        error.errno(),
        libc::EEXIST,
        "a link of another, of the same text"
    );

    rig.peer.fs().write_file("/job", b"x").unwrap();
    let job = rig.lookup("job").await.unwrap().unwrap();
    fate_unknown(&rig, op::LINK, |peer| {
        peer.fs().link("/job", "/claimed").unwrap();
    })
    .await;
    let error = within(30, rig.link(&job, "claimed")).await.unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST, "a claim of another");

    fate_unknown(&rig, op::RENAME, |peer| {
        peer.fs().rename("/job", "/active").unwrap();
    })
    .await;
    let error = within(30, rig.rename("job", "active")).await.unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT, "a job that another took");

    fate_unknown(&rig, op::REMOVE, |peer| {
        peer.fs().remove("/active").unwrap();
    })
    .await;
    let error = within(30, rig.remove("active")).await.unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT, "only one host removes a name");
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_create_is_known_for_ours_and_never_that_of_another() {
    // The server keeps the verifier in the times, which are set after it.
    let cfg = || PeerConfig {
        exclusive_in_times: true,
        ..PeerConfig::default()
    };
    let losses: [fn(&Peer); 2] = [Peer::destroy_sessions, Peer::crash_and_restart];
    for lose in losses {
        let rig = lose_reply_and_session(op::OPEN, cfg(), lose).await;
        assert_changed(&rig.peer, op::OPEN);
        assert!(rig.peer.open_count() <= 1, "no open is left behind");
    }
    let rig = Rig::new(cfg()).await;
    fate_unknown(&rig, op::OPEN, |peer| {
        peer.fs().write_file("/lock", b"").unwrap();
    })
    .await;
    let error = within(30, rig.create("lock", HowToOpen::Exclusive)).await;
    assert_eq!(error.unwrap_err().errno(), libc::EEXIST);
}

#[tokio::test(start_paused = true)]
async fn a_session_lost_while_the_server_was_still_at_work_may_have_run_the_request() {
    for number in ONCE {
        let (rig, object) = prepared(PeerConfig::default()).await;
        let peer = Arc::downgrade(&rig.peer);
        let state = Arc::new(Mutex::new(0));
        rig.peer.on_op(move |event| {
            let mut seen = state.lock();
            if *seen == 0 && event.op == number {
                *seen = 1;
                return Action::DropConnectionAfter;
            }
            if *seen > 0 && event.op == op::SEQUENCE && event.compound.contains(&number) {
                *seen += 1;
                match *seen {
                    // "Still at work", and at the next asking the session is gone.
                    2 => return Action::Fail(st::DELAY),
                    3 => {
                        if let Some(peer) = peer.upgrade() {
                            peer.destroy_sessions();
                        }
                    }
                    _ => {}
                }
            }
            Action::Pass
        });
        let result = within(60, try_change(&rig, &object, number)).await;
        let told = result.map_err(|error| error.errno());
        assert_eq!(told, second_answer(number), "{}", op::name(number));
        assert_changed(&rig.peer, number);
    }
}
