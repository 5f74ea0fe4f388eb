//! Replies, sessions and servers that are lost, and a daemon that another goes on for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO};

use super::super::rig::{Mount, millis, once_at, within};
use super::{EXCLUSIVE, MAKES_OR_REMOVES, mounted, private, settled, unpack};
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

#[tokio::test(start_paused = true)]
async fn a_file_whose_times_were_set_before_its_reply_and_session_were_lost_is_known_again() {
    for theirs in [false, true] {
        let (mount, dir) = forgetful().await;
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

/// As a server that keeps verifiers in the times of files, which dies in the middle of a request.
async fn forgetful() -> (Mount, Ino) {
    let mount = mounted(PeerConfig {
        exclusive_in_times: true,
        exclusive_until_times: true,
        ..PeerConfig::default()
    })
    .await;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    (mount, dir)
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_request_ended_in_its_middle_with_the_server_is_known_again() {
    for (about, which) in [
        (op::WRITE, 0),
        (op::SETATTR, 0),
        (op::CLOSE, 0),
        (op::SETATTR, 3),
    ] {
        let (mount, dir) = forgetful().await;
        let peer = Arc::downgrade(&mount.peer);
        let seen = AtomicUsize::new(0);
        mount.peer.on_op(move |event| {
            if event.op != about || seen.fetch_add(1, Ordering::Relaxed) != which {
                return Action::Pass;
            }
            peer.upgrade().expect("it lives").crash_and_restart();
            Action::DropConnectionBefore
        });
        for number in 0..5 {
            let name = format!("f{number}");
            unpack(&mount, dir, &name, name.as_bytes())
                .await
                .expect("a file");
        }
        let told = within(600, mount.vfs.fsyncdir(dir)).await;
        assert_eq!(told.map_err(Errno::from), Ok(()), "{about} {which}");
        assert_eq!(mount.vfs.late_errors().0, 0);
        let fs = mount.peer.fs();
        for number in 0..5 {
            let path = format!("/d/f{number}");
            assert_eq!(fs.read_file(&path).expect("data"), &path.as_bytes()[3..]);
            let stat = fs.stat(&path).expect("stat");
            let made = (stat.mode, stat.mtime.secs);
            assert_eq!(made, (0o600, 1_000_000_000), "{path}");
        }
        within(600, mount.vfs.settled()).await;
        assert_eq!(mount.peer.open_count(), 0, "all are closed");
    }
}

/// What the file is by then is not what it was made as.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_written_to_while_the_request_that_made_it_was_lost_is_known_again() {
    let (mount, dir) = forgetful().await;
    let peer = Arc::downgrade(&mount.peer);
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        if event.op != op::OPEN {
            return Action::Pass;
        }
        match seen.fetch_add(1, Ordering::Relaxed) {
            0 => {
                peer.upgrade().expect("it lives").destroy_sessions();
                Action::DropConnectionAfter
            }
            1..4 => Action::Fail(st::GRACE),
            _ => Action::Pass,
        }
    });
    mount.peer.set_latency(Duration::from_millis(50));
    let file = mount.create(dir, "f", EXCLUSIVE).await.expect("create");
    mount.write(file, 0, b"one").await.expect("write");
    let later = async {
        for number in 0..10_u64 {
            millis(60).await;
            let at = 3 + number * 3;
            mount.write(file, at, b"two").await.expect("write");
        }
    };
    let (told, ()) = tokio::join!(within(600, mount.fsync(file)), later);
    assert_eq!(told, Ok(()));
    mount.close(file).await.expect("close");
    settled(&mount).await;
    assert_eq!(mount.vfs.late_errors().0, 0);
    let data = mount.peer.fs().read_file("/d/f").expect("data");
    assert_eq!(data, [&b"one"[..], &b"two".repeat(10)].concat());
    within(600, mount.vfs.settled()).await;
    assert_eq!(mount.peer.open_count(), 0);
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
