//! A file that is open is replaced by rename: its name leads somewhere at any moment,
//! what was open stays what it was, and all of it happens once.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::rpc::caller::{self, Caller};
use efs_fuse::vfs::types::{Errno, ROOT_INO};
use parking_lot::Mutex;

use super::rig::{Mount, Open, Rig, default_timeouts, join_all, millis, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

/// What goes wrong, and how it is brought about.
type Fault = (&'static str, fn(&Arc<Peer>));

/// "target" is open, and "new" is to replace it.
async fn prepared(cfg: PeerConfig) -> (Mount, Open) {
    let peer = Peer::new(cfg);
    let fs = peer.fs();
    fs.write_file("/target", b"old").unwrap();
    fs.write_file("/new", b"new").unwrap();
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let ino = mount.walk("/target").await.unwrap();
    mount.walk("/new").await.unwrap();
    let open = mount.open(ino, libc::O_RDWR).await.unwrap();
    peer.clear_log();
    (mount, open)
}

async fn replace(mount: &Mount) -> Result<(), Errno> {
    within(60, mount.rename((ROOT_INO, "new"), (ROOT_INO, "target"))).await
}

/// It is replaced, and what was open has the old content until it is closed.
async fn assert_replaced(mount: &Mount, open: Open, what: &str) {
    let fs = mount.peer.fs();
    assert_eq!(fs.read_file("/target").unwrap(), b"new", "{what}");
    assert!(!fs.exists("/new"), "{what}");
    assert_eq!(mount.read(open, 0, 10).await.unwrap(), b"old", "{what}");
    mount.close(open).await.unwrap();
    millis(100).await;
    assert_eq!(fs.list("/").unwrap(), ["target"], "{what}");
}

#[tokio::test(start_paused = true)]
async fn another_host_that_looks_up_in_a_loop_never_misses_a_name_that_is_replaced() {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    });
    peer.fs().write_file("/target", b"0").unwrap();
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let other = Rig::of(Arc::clone(&peer), "two").await;
    let (missing, files) = (Arc::new(Mutex::new(Vec::new())), peer.fs());
    // Between any two operations, and that is more than any host can see.
    let seen = Arc::clone(&missing);
    peer.on_op(move |event| {
        if !files.exists("/target") {
            seen.lock().push(event.compound.to_vec());
        }
        Action::Pass
    });
    let looks = async {
        for _ in 0..500 {
            assert!(other.lookup("target").await.unwrap().is_some());
        }
    };
    let replaces = async {
        for round in 0..50 {
            let ino = mount.walk("/target").await.unwrap();
            let held = mount.open(ino, libc::O_RDWR).await.unwrap();
            let new = mount.create(ROOT_INO, "new", libc::O_RDWR).await.unwrap();
            mount.write(new, 0, b"new").await.unwrap();
            mount.close(new).await.unwrap();
            replace(&mount).await.unwrap();
            // Open for some, closed for others when the next one comes.
            if round % 2 == 0 {
                mount.close(held).await.unwrap();
            }
        }
    };
    within(600, async { tokio::join!(looks, replaces) }).await;
    assert_eq!(*missing.lock(), Vec::<Vec<u32>>::new());
}

/// Between the LOOKUP and the GETATTR of one compound the file is replaced, and is gone.
#[tokio::test(start_paused = true)]
async fn a_name_replaced_while_it_is_looked_up_is_not_missing() {
    const LOOKUP: [u32; 6] = [
        op::SEQUENCE,
        op::PUTFH,
        op::GETATTR,
        op::LOOKUP,
        op::GETFH,
        op::GETATTR,
    ];
    let peer = Peer::new(PeerConfig::default());
    let fs = peer.fs();
    fs.write_file("/target", b"old").unwrap();
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let files = peer.fs();
    let mut times = 3;
    peer.on_op(move |event| {
        if event.compound == LOOKUP && event.op_index == 5 && times > 0 {
            times -= 1;
            files.remove("/target").unwrap();
            files.write_file("/target", b"new").unwrap();
            return Action::Fail(st::STALE);
        }
        Action::Pass
    });
    let found = mount.lookup(ROOT_INO, "target").await.unwrap();
    let open = mount
        .open(found.unwrap().ino, libc::O_RDONLY)
        .await
        .unwrap();
    assert_eq!(mount.read(open, 0, 10).await.unwrap(), b"new");
}

#[tokio::test(start_paused = true)]
async fn a_session_of_few_operations_is_enough_and_no_name_is_missing() {
    let (mount, open) = prepared(PeerConfig {
        max_ops: 8,
        ..PeerConfig::default()
    })
    .await;
    let files = mount.peer.fs();
    mount.peer.on_op(move |_| {
        assert!(files.exists("/target"));
        Action::Pass
    });
    replace(&mount).await.unwrap();
    mount.peer.clear_script();
    assert_replaced(&mount, open, "eight operations").await;
}

#[tokio::test(start_paused = true)]
async fn where_the_server_refuses_the_link_the_file_is_moved_away_first() {
    for status in [st::NOTSUPP, st::PERM, st::MLINK, st::ACCESS, st::NOSPC] {
        for max_ops in [8, 16] {
            let (mount, open) = prepared(PeerConfig {
                max_ops,
                ..PeerConfig::default()
            })
            .await;
            mount.peer.on_op(move |event| match event.op {
                op::LINK => Action::Fail(status),
                _ => Action::Pass,
            });
            replace(&mount).await.unwrap();
            assert_replaced(&mount, open, &format!("{status}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_is_refused_leaves_the_name_and_no_other() {
    for max_ops in [8, 16] {
        let (mount, open) = prepared(PeerConfig {
            max_ops,
            ..PeerConfig::default()
        })
        .await;
        mount.peer.on_op(|event| match event.op {
            op::RENAME => Action::Fail(st::NOSPC),
            _ => Action::Pass,
        });
        assert_eq!(replace(&mount).await, Err(Errno(libc::ENOSPC)));
        mount.peer.clear_script();
        let fs = mount.peer.fs();
        assert_eq!(fs.list("/").unwrap(), ["new", "target"]);
        assert_eq!(fs.read_file("/target").unwrap(), b"old");
        assert_eq!(mount.getattr(open.ino).await.unwrap().nlink, 1);
        replace(&mount).await.unwrap();
        assert_replaced(&mount, open, "in the end").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_whose_reply_or_session_is_lost_happens_once() {
    let faults: [Fault; 8] = [
        ("put off at RENAME", |peer| {
            once_at(peer, op::RENAME, Action::Fail(st::DELAY));
        }),
        ("put off at LINK", |peer| {
            once_at(peer, op::LINK, Action::Fail(st::DELAY));
        }),
        ("cut before RENAME", |peer| {
            once_at(peer, op::RENAME, Action::DropConnectionBefore);
        }),
        ("cut after", |peer| {
            once_at(peer, op::RENAME, Action::DropConnectionAfter);
        }),
        ("cut before LINK", |peer| {
            once_at(peer, op::LINK, Action::DropConnectionBefore);
        }),
        ("reply not kept", |peer| {
            once_at(
                peer,
                op::SEQUENCE,
                Action::FailAfter(st::RETRY_UNCACHED_REP),
            );
        }),
        ("session lost before", |peer| {
            once_at(peer, op::SEQUENCE, Action::Fail(st::BADSESSION));
        }),
        ("reply swallowed", |peer| {
            once_at(peer, op::RENAME, Action::SwallowReply);
        }),
    ];
    for max_ops in [8, 16] {
        for (what, fault) in faults {
            let (mount, open) = prepared(PeerConfig {
                max_ops,
                ..PeerConfig::default()
            })
            .await;
            fault(&mount.peer);
            replace(&mount).await.unwrap_or_else(|why| {
                panic!("{what}, {max_ops} operations: {why}");
            });
            mount.peer.clear_script();
            assert_replaced(&mount, open, what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_that_ran_before_its_session_was_lost_keeps_the_open_file() {
    for restart in [false, true] {
        let (mount, open) = prepared(PeerConfig::default()).await;
        let peer = Arc::clone(&mount.peer);
        let mut step = 0;
        mount.peer.on_op(move |event| {
            let ours = event.compound.contains(&op::RENAME);
            // The last operation: all before it have run.
            let last = event.op_index + 1 == event.compound.len();
            if step == 0 && ours && last {
                step = 1;
                return Action::DropConnectionAfter;
            }
            if step == 1 && ours && event.op == op::SEQUENCE {
                step = 2;
                if restart {
                    peer.crash_and_restart();
                } else {
                    peer.destroy_sessions();
                }
                return Action::Fail(st::BADSESSION);
            }
            Action::Pass
        });
        // Whose doing it was cannot be told; what is lost of it is not the open file.
        assert_eq!(replace(&mount).await, Err(Errno(libc::ENOENT)));
        mount.peer.clear_script();
        assert_replaced(&mount, open, "ran").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_closed_while_it_is_replaced_leaves_no_hidden_name() {
    let (mount, open) = prepared(PeerConfig {
        latency: Duration::from_millis(5),
        ..PeerConfig::default()
    })
    .await;
    let close = async {
        millis(2).await;
        mount.close(open).await.unwrap();
    };
    let (replaced, ()) = tokio::join!(replace(&mount), close);
    replaced.unwrap();
    millis(500).await;
    let fs = mount.peer.fs();
    assert_eq!(fs.list("/").unwrap(), ["target"]);
    assert_eq!(fs.read_file("/target").unwrap(), b"new");
}

#[tokio::test(start_paused = true)]
async fn many_open_files_are_replaced_at_once_in_two_directories() {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(5),
        ..PeerConfig::default()
    });
    let fs = peer.fs();
    fs.mkdir("/from").unwrap();
    fs.mkdir("/to").unwrap();
    for n in 0..20 {
        fs.write_file(&format!("/from/{n}"), b"new").unwrap();
        fs.write_file(&format!("/to/{n}"), b"old").unwrap();
    }
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let (from, to) = (
        mount.walk("/from").await.unwrap(),
        mount.walk("/to").await.unwrap(),
    );
    let mount = &mount;
    let done = join_all((0..20).map(|n| async move {
        let name = n.to_string();
        let ino = mount.walk(&format!("/to/{n}")).await.unwrap();
        let open = mount.open(ino, libc::O_RDONLY).await.unwrap();
        mount.rename((from, &name), (to, &name)).await.unwrap();
        assert_eq!(mount.read(open, 0, 10).await.unwrap(), b"old");
        let found = mount.walk(&format!("/to/{n}")).await.unwrap();
        assert_ne!(found, ino);
        mount.close(open).await.unwrap();
    }));
    within(60, done).await;
    millis(500).await;
    assert_eq!(fs.list("/from").unwrap(), Vec::<String>::new());
    assert_eq!(fs.list("/to").unwrap().len(), 20);
}

/// What becomes of the operation that a caller is killed in.
#[derive(Clone, Copy, Debug)]
enum Then {
    Passes,
    IsSlow,
    IsLostBefore,
    IsLostAfter,
}

impl Then {
    fn action(self) -> Action {
        match self {
            Self::Passes => Action::Pass,
            Self::IsSlow => Action::Delay(Duration::from_secs(20)),
            Self::IsLostBefore => Action::DropConnectionBefore,
            Self::IsLostAfter => Action::DropConnectionAfter,
        }
    }
}

/// When the caller of a replacement is killed.
#[derive(Clone, Copy, Debug)]
struct Death {
    /// As the server is about to execute this operation,
    at: u32,
    /// for the first time, or a later one.
    nth: usize,
    then: Then,
    /// The server refuses hard links.
    no_links: bool,
}

impl Death {
    fn with_links(at: u32, then: Then) -> Self {
        Self {
            at,
            nth: 1,
            then,
            no_links: false,
        }
    }

    /// The first RENAME hides, the second replaces.
    fn without_links(nth: usize, then: Then) -> Self {
        Self {
            at: op::RENAME,
            nth,
            then,
            no_links: true,
        }
    }
}

/// One who is killed in the middle of a replacement. Returns whether it took place.
async fn killed(max_ops: u32, death: Death) -> bool {
    let context = format!("{max_ops} operations, {death:?}");
    let (mount, open) = prepared(PeerConfig {
        max_ops,
        ..PeerConfig::default()
    })
    .await;
    let mount = Arc::new(mount);
    let abandoned = Arc::clone(mount.vfs.abandoned());
    let caller = Caller::new(Some(Arc::clone(&abandoned)), 7);
    let (killed, mut seen) = (Arc::clone(&caller), 0);
    mount.peer.on_op(move |event| {
        if event.op == death.at {
            seen += 1;
            if seen == death.nth {
                killed.give_up();
                return death.then.action();
            }
        }
        match event.op {
            op::LINK if death.no_links => Action::Fail(st::NOTSUPP),
            _ => Action::Pass,
        }
    });
    let replacing = Arc::clone(&mount);
    let work = async move { replace(&replacing).await };
    let task = tokio::spawn(caller::on_behalf_of(Some(Arc::clone(&caller)), work));
    let _ = within(120, task).await.unwrap();
    assert!(caller.is_answered(), "{context}: nobody was killed");
    // What the adapter has every operation do first.
    within(120, abandoned.ended()).await;
    millis(1000).await;
    mount.peer.clear_script();
    let fs = mount.peer.fs();
    let mut names = fs.list("/").unwrap();
    names.retain(|name| !name.starts_with(".nfs"));
    let is_done = !fs.exists("/new");
    let content = fs.read_file("/target").unwrap_or_default();
    let expected: (&[&str], &[u8]) = match is_done {
        true => (&["target"], b"new"),
        false => (&["new", "target"], b"old"),
    };
    assert_eq!(names, expected.0, "{context}");
    assert_eq!(content, expected.1, "{context}");
    assert_eq!(mount.read(open, 0, 10).await.unwrap(), b"old", "{context}");
    mount.close(open).await.unwrap();
    millis(1000).await;
    assert_eq!(
        fs.list("/").unwrap(),
        expected.0,
        "{context}: a name is left"
    );
    // What this host shows is what is there.
    assert_eq!(
        mount.list(ROOT_INO, true).await.unwrap(),
        expected.0,
        "{context}"
    );
    is_done
}

/// Each death is seen, also if one before it has left something wrong. With each comes whether
/// the replacement has taken place.
async fn all_killed(max_ops: u32, deaths: &[(Death, bool)]) {
    let mut wrong = Vec::new();
    for &(death, replaced) in deaths {
        let done = tokio::spawn(killed(max_ops, death)).await.ok();
        if done != Some(replaced) {
            wrong.push((death, done));
        }
    }
    assert!(wrong.is_empty(), "{max_ops} operations: {wrong:#?}");
}

/// The hidden name is made by LINK, and then RENAME replaces the other.
#[tokio::test(start_paused = true)]
async fn who_is_killed_between_link_and_rename_has_replaced_the_open_file_or_has_not() {
    let deaths = [
        (Death::with_links(op::LINK, Then::Passes), false),
        (Death::with_links(op::LINK, Then::IsSlow), false),
        (Death::with_links(op::LINK, Then::IsLostBefore), false),
        (Death::with_links(op::LINK, Then::IsLostAfter), false),
        (Death::with_links(op::RENAME, Then::Passes), true),
        (Death::with_links(op::RENAME, Then::IsSlow), true),
        (Death::with_links(op::RENAME, Then::IsLostBefore), false),
        (Death::with_links(op::RENAME, Then::IsLostAfter), true),
    ];
    all_killed(16, &deaths).await;
    all_killed(8, &deaths).await;
}

/// Without hard links the name is moved away first.
#[tokio::test(start_paused = true)]
async fn who_is_killed_between_the_two_renames_has_replaced_the_open_file_or_has_not() {
    let deaths = [
        (Death::without_links(1, Then::Passes), false),
        (Death::without_links(1, Then::IsSlow), false),
        (Death::without_links(1, Then::IsLostBefore), false),
        (Death::without_links(1, Then::IsLostAfter), false),
        (Death::without_links(2, Then::Passes), true),
        (Death::without_links(2, Then::IsLostBefore), false),
    ];
    all_killed(16, &deaths).await;
}

#[tokio::test(start_paused = true)]
async fn who_is_killed_while_the_second_rename_runs_does_not_lose_the_new_file() {
    let deaths = [
        (Death::without_links(2, Then::IsSlow), true),
        (Death::without_links(2, Then::IsLostAfter), true),
    ];
    all_killed(16, &deaths).await;
}

/// The same with nobody killed: the RENAME that is sent anew finds nothing to move.
#[tokio::test(start_paused = true)]
async fn without_links_a_replacement_that_ran_before_its_session_was_lost_keeps_both_files() {
    let (mount, open) = prepared(PeerConfig::default()).await;
    let peer = Arc::clone(&mount.peer);
    let (mut step, mut renames) = (0, 0);
    mount.peer.on_op(move |event| {
        if event.op == op::LINK {
            return Action::Fail(st::NOTSUPP);
        }
        renames += usize::from(event.op == op::RENAME);
        let ours = event.compound.contains(&op::RENAME);
        let last = event.op_index + 1 == event.compound.len();
        if step == 0 && renames == 2 && ours && last {
            step = 1;
            return Action::DropConnectionAfter;
        }
        if step == 1 && ours && event.op == op::SEQUENCE {
            step = 2;
            peer.destroy_sessions();
            return Action::Fail(st::BADSESSION);
        }
        Action::Pass
    });
    assert_eq!(replace(&mount).await, Err(Errno(libc::ENOENT)));
    mount.peer.clear_script();
    assert_replaced(&mount, open, "ran").await;
}
