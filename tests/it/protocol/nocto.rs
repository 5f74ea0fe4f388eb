//! `nocto`: an open for reading asks nothing while what is known of the file is believed, and is as
//! good as any other when it needs the server.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::caller::{self, Caller};
use efs_fuse::vfs::types::{ROOT_INO, SetAttr};

use super::locks::{range, set};
use super::rig::{
    Mount, Open, connect, default_timeouts, join_all, millis, nocto, once_at, seconds, within,
};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const OLD: &[u8] = b"as it was";
const NEW: &[u8] = b"as another host has made it";

async fn mount_of(peer: &Arc<Peer>, name: &str) -> Mount {
    let client = connect(peer, name).await;
    Mount::behaving(&client, peer, nocto(default_timeouts()))
}

/// A file of root's, and a mount that has read it.
async fn warm_on(config: PeerConfig) -> (Mount, efs_fuse::vfs::types::Ino) {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..config
    });
    peer.fs().write_file("/f", OLD).unwrap();
    let mount = mount_of(&peer, "one").await;
    let ino = mount.walk("f").await.unwrap();
    assert_eq!(cat(&mount, ino).await, OLD);
    mount.vfs.client().closes_sent().await;
    mount.peer.clear_log();
    (mount, ino)
}

async fn warm() -> (Mount, efs_fuse::vfs::types::Ino) {
    warm_on(PeerConfig::default()).await
}

async fn cat(mount: &Mount, ino: u64) -> Vec<u8> {
    let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
    let data = mount.read(file, 0, 4096).await.unwrap();
    mount.close(file).await.unwrap();
    data
}

/// Whether the kernel keeps its pages over an open, and what that costs.
async fn reopened(mount: &Mount, ino: u64) -> (bool, u64) {
    mount.vfs.client().closes_sent().await;
    mount.peer.clear_log();
    let opened = mount.vfs.open(&mount.cred, ino, libc::O_RDONLY).await;
    let opened = opened.unwrap();
    let cost = mount.peer.round_trips();
    mount.vfs.release(opened.fh).await.unwrap();
    (opened.keep_cache, cost)
}

async fn unasked(mount: &Mount, ino: u64) -> Open {
    mount.peer.clear_log();
    let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(mount.peer.round_trips(), 0, "nothing is asked");
    assert_eq!(mount.peer.open_count(), 0);
    file
}

async fn nothing_is_left(mount: &Mount) {
    within(60, mount.vfs.client().closes_sent()).await;
    assert_eq!((mount.peer.open_count(), mount.peer.lock_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_open_of_what_is_known_asks_nothing_and_its_close_sends_nothing() {
    let (mount, ino) = warm().await;
    for _ in 0..50 {
        assert_eq!(reopened(&mount, ino).await, (true, 0));
    }
    let file = unasked(&mount, ino).await;
    mount.close(file).await.unwrap();
    mount.vfs.client().closes_sent().await;
    assert_eq!(mount.peer.round_trips(), 0);
    let usual = Mount::of(&mount.peer, "two", default_timeouts()).await;
    let ino = usual.walk("f").await.unwrap();
    cat(&usual, ino).await;
    assert_eq!(reopened(&usual, ino).await, (true, 1), "without nocto");
}

#[tokio::test(start_paused = true)]
async fn who_writes_cuts_or_reads_past_the_caches_is_asked_for() {
    let (mount, ino) = warm().await;
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDONLY | libc::O_DIRECT,
        libc::O_RDONLY | libc::O_TRUNC,
    ] {
        mount.peer.clear_log();
        let file = mount.open(ino, flags).await.unwrap();
        assert!(mount.peer.count_op(op::OPEN) > 0, "{flags:#o}");
        mount.close(file).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_host_has_written_is_seen_when_the_attributes_are_too_old() {
    let (mount, ino) = warm().await;
    mount.peer.fs().write_file("/f", NEW).unwrap();
    assert_eq!(reopened(&mount, ino).await, (true, 0), "it is believed");
    seconds(4).await;
    let (keeps, cost) = reopened(&mount, ino).await;
    assert!(!keeps && cost > 0);
    assert_eq!(cat(&mount, ino).await, NEW);
    // At the latest, however long the file was left alone.
    for _ in 0..8 {
        seconds(61).await;
        assert!(reopened(&mount, ino).await.0);
    }
    mount.peer.fs().write_file("/f", OLD).unwrap();
    seconds(61).await;
    assert_eq!(cat(&mount, ino).await, OLD);
    nothing_is_left(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn what_another_host_has_replaced_removed_or_forbidden_is_seen_when_the_caches_are_too_old() {
    for what in ["replaced", "removed", "forbidden"] {
        let (mut mount, ino) = warm().await;
        mount.cred = Arc::new(Credential {
            uid: 1000,
            gid: 1000,
            gids: Vec::new(),
        });
        cat(&mount, ino).await;
        let fs = mount.peer.fs();
        match what {
            "replaced" => {
                fs.write_file("/new", NEW).unwrap();
                fs.rename("/new", "/f").unwrap();
            }
            "removed" => fs.remove("/f").unwrap(),
            _ => fs.chmod("/f", 0o600).unwrap(),
        }
        assert_eq!(reopened(&mount, ino).await, (true, 0), "{what}");
        seconds(61).await;
        match what {
            "replaced" => {
                let now = mount.walk("f").await.unwrap();
                assert_ne!(now, ino);
                assert_eq!(cat(&mount, now).await, NEW);
            }
            "removed" => {
                let gone = mount.open(ino, libc::O_RDONLY).await.unwrap_err();
                assert_eq!(gone.0, libc::ESTALE);
                assert_eq!(mount.walk("f").await.unwrap_err().0, libc::ENOENT);
            }
            _ => {
                let refused = mount.open(ino, libc::O_RDONLY).await.unwrap_err();
                assert_eq!(refused.0, libc::EACCES);
            }
        }
        nothing_is_left(&mount).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_of_which_this_host_knows_that_it_may_lead_elsewhere_is_asked_for() {
    let (mount, ino) = warm().await;
    mount.peer.fs().write_file("/new", NEW).unwrap();
    mount.peer.fs().rename("/new", "/f").unwrap();
    // It learns that the directory has moved, and of no name.
    mount.list(ROOT_INO, false).await.unwrap();
    let refused = mount.open(ino, libc::O_RDONLY).await.unwrap_err();
    assert_eq!(refused.0, libc::ESTALE, "upon which the kernel walks anew");
    let now = mount.walk("f").await.unwrap();
    assert_eq!(cat(&mount, now).await, NEW);
}

#[tokio::test(start_paused = true)]
async fn what_this_host_does_is_seen_by_the_next_open() {
    let (mount, ino) = warm().await;
    let writer = mount.open(ino, libc::O_WRONLY).await.unwrap();
    for round in 0..10_u8 {
        let content = vec![round; 500 + usize::from(round)];
        mount.write(writer, 0, &content).await.unwrap();
        assert_eq!(cat(&mount, ino).await, content, "not sent yet");
        mount.fsync(writer).await.unwrap();
        assert_eq!(cat(&mount, ino).await, content);
        assert_eq!(reopened(&mount, ino).await.1, 0, "by its own change");
    }
    mount.truncate(ino, None, 3).await.unwrap();
    assert_eq!(cat(&mount, ino).await, [9, 9, 9]);
    mount.close(writer).await.unwrap();
    nothing_is_left(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn who_may_not_read_a_file_is_refused_by_the_server_each_time() {
    let (mut mount, ino) = warm().await;
    mount.peer.fs().chmod("/f", 0o600).unwrap();
    seconds(61).await;
    mount.walk("f").await.unwrap();
    cat(&mount, ino).await;
    assert_eq!(reopened(&mount, ino).await, (true, 0), "root");
    mount.cred = Arc::new(Credential {
        uid: 1000,
        gid: 1000,
        gids: Vec::new(),
    });
    for _ in 0..3 {
        mount.peer.clear_log();
        let refused = mount.open(ino, libc::O_RDONLY).await.unwrap_err();
        assert_eq!(refused.0, libc::EACCES);
        assert_eq!(mount.peer.count_op(op::OPEN), 1);
    }
    // What this host changes it knows at once, and asks.
    let (user, root) = (Arc::clone(&mount.cred), Credential::machine());
    let mode = |mode| SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    mount
        .vfs
        .setattr(&root, ino, None, mode(0o644))
        .await
        .unwrap();
    cat(&mount, ino).await;
    assert_eq!(reopened(&mount, ino).await, (true, 0));
    mount
        .vfs
        .setattr(&root, ino, None, mode(0o600))
        .await
        .unwrap();
    let refused = mount.vfs.open(&user, ino, libc::O_RDONLY).await;
    assert!(refused.is_err_and(|error| error.is(libc::EACCES)));
}

#[tokio::test(start_paused = true)]
async fn access_that_was_granted_is_enough_and_one_that_was_refused_is_not_believed() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", OLD).unwrap();
    let mount = mount_of(&peer, "one").await;
    let ino = mount.walk("f").await.unwrap();
    mount
        .vfs
        .access(&mount.cred, ino, libc::R_OK as u32)
        .await
        .unwrap();
    let file = unasked(&mount, ino).await;
    assert_eq!(mount.read(file, 0, 100).await.unwrap(), OLD);
    mount.close(file).await.unwrap();
    let user = Arc::new(Credential {
        uid: 1000,
        gid: 1000,
        gids: Vec::new(),
    });
    peer.fs().chmod("/f", 0o600).unwrap();
    seconds(61).await;
    let ino = mount.walk("f").await.unwrap();
    let refused = mount.vfs.access(&user, ino, libc::R_OK as u32).await;
    assert!(refused.is_err_and(|error| error.is(libc::EACCES)));
    peer.clear_log();
    let refused = mount.vfs.open(&user, ino, libc::O_RDONLY).await;
    assert!(refused.is_err_and(|error| error.is(libc::EACCES)));
    assert_eq!(peer.count_op(op::OPEN), 1, "the server refuses it");
}

#[tokio::test(start_paused = true)]
async fn the_first_read_that_needs_the_server_tells_it_of_the_open_in_its_own_round_trip() {
    let (mount, ino) = warm().await;
    let file = unasked(&mount, ino).await;
    assert_eq!(mount.read(file, 3, 5).await.unwrap(), &OLD[3..8]);
    assert_eq!(mount.peer.round_trips(), 1);
    assert_eq!(mount.peer.open_count(), 1);
    assert_eq!(mount.read(file, 0, 100).await.unwrap(), OLD);
    assert_eq!(mount.peer.count_op(op::OPEN), 1, "once");
    mount.close(file).await.unwrap();
    nothing_is_left(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_late_open_finds_changed_is_read_as_it_is_and_no_page_of_before_is_kept() {
    let (mount, ino) = warm().await;
    let file = unasked(&mount, ino).await;
    mount.peer.fs().write_file("/f", NEW).unwrap();
    assert_eq!(mount.read(file, 0, 100).await.unwrap(), NEW);
    assert_eq!(mount.getattr(ino).await.unwrap().size, NEW.len() as u64);
    assert!(!reopened(&mount, ino).await.0, "its pages are old");
    mount.close(file).await.unwrap();
    nothing_is_left(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn a_large_file_that_is_read_ahead_and_closed_in_the_middle_leaves_no_open() {
    let content: Vec<u8> = (0..3_u32 << 20).map(|at| (at >> 12) as u8).collect();
    let (mount, _) = warm().await;
    mount.peer.fs().write_file("/large", &content).unwrap();
    let ino = mount.walk("large").await.unwrap();
    cat(&mount, ino).await;
    for reads in [1, 2, 5, 24] {
        mount.vfs.client().closes_sent().await;
        seconds(1).await;
        let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
        for number in 0..reads {
            let (at, len) = (number * (128 << 10), 128 << 10);
            let data = mount.read(file, at as u64, len).await.unwrap();
            assert_eq!(data, content[at..at + len as usize]);
        }
        mount.close(file).await.unwrap();
        millis(100).await;
        nothing_is_left(&mount).await;
    }
    // Reads that come together.
    let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
    let reads = (0..8).map(|number| mount.read(file, number << 18, 1 << 17));
    for (number, data) in join_all(reads).await.into_iter().enumerate() {
        let at = number << 18;
        assert_eq!(data.unwrap(), content[at..at + (1 << 17)]);
    }
    mount.close(file).await.unwrap();
    nothing_is_left(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_has_the_server_learn_of_the_open() {
    let (mount, ino) = warm().await;
    let file = unasked(&mount, ino).await;
    set(&mount, file, 7, range(libc::F_RDLCK, 0, 10))
        .await
        .unwrap();
    assert_eq!((mount.peer.open_count(), mount.peer.lock_count()), (1, 1));
    set(&mount, file, 7, range(libc::F_UNLCK, 0, 10))
        .await
        .unwrap();
    // flock(2) does not care how the file is open.
    set(&mount, file, 7, range(libc::F_WRLCK, 0, 10))
        .await
        .unwrap();
    assert_eq!(mount.read(file, 0, 100).await.unwrap(), OLD);
    mount.close(file).await.unwrap();
    nothing_is_left(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_told_what_the_server_has_against_a_late_open() {
    for (what, told) in [("removed", libc::ESTALE), ("forbidden", libc::EACCES)] {
        let (mut mount, ino) = warm().await;
        mount.cred = Arc::new(Credential {
            uid: 1000,
            gid: 1000,
            gids: Vec::new(),
        });
        cat(&mount, ino).await;
        mount.vfs.client().closes_sent().await;
        let file = unasked(&mount, ino).await;
        match what {
            "removed" => mount.peer.fs().remove("/f").unwrap(),
            _ => mount.peer.fs().chmod("/f", 0o600).unwrap(),
        }
        assert_eq!(mount.read(file, 0, 100).await.unwrap_err().0, told);
        assert_eq!(mount.read(file, 0, 100).await.unwrap_err().0, told);
        mount.close(file).await.unwrap();
        nothing_is_left(&mount).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_a_file_open_may_read_it_although_this_host_forbids_it_then() {
    let (mut mount, _) = warm().await;
    // His own: of others a server may look at the mode with each READ.
    mount.peer.fs().write_file("/his", OLD).unwrap();
    mount.peer.fs().chown("/his", 1000, 1000).unwrap();
    let ino = mount.walk("his").await.unwrap();
    mount.cred = Arc::new(Credential {
        uid: 1000,
        gid: 1000,
        gids: Vec::new(),
    });
    cat(&mount, ino).await;
    mount.vfs.client().closes_sent().await;
    let file = unasked(&mount, ino).await;
    let set = SetAttr {
        mode: Some(0),
        ..SetAttr::default()
    };
    let root = Credential::machine();
    mount.vfs.setattr(&root, ino, None, set).await.unwrap();
    assert_eq!(mount.read(file, 0, 100).await.unwrap(), OLD);
    mount.close(file).await.unwrap();
    nothing_is_left(&mount).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_this_host_removes_or_replaces_stays_readable_where_it_is_open() {
    for preserve_unlinked in [false, true] {
        for replaced in [false, true] {
            let (mount, ino) = warm_on(PeerConfig {
                preserve_unlinked,
                ..PeerConfig::default()
            })
            .await;
            mount.peer.fs().write_file("/new", NEW).unwrap();
            mount.walk("new").await.unwrap();
            let file = unasked(&mount, ino).await;
            match replaced {
                true => mount.rename((ROOT_INO, "new"), (ROOT_INO, "f")).await,
                false => mount.unlink(ROOT_INO, "f").await,
            }
            .unwrap();
            assert_eq!(mount.read(file, 0, 100).await.unwrap(), OLD);
            mount.close(file).await.unwrap();
            nothing_is_left(&mount).await;
            let left = mount.peer.fs().list("/").unwrap();
            assert!(
                left.iter().all(|name| !name.starts_with(".nfs")),
                "{left:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_that_the_server_does_not_know_outlives_its_restart_the_lease_and_revocation() {
    for what in 0..4 {
        let (mount, ino) = warm().await;
        let file = unasked(&mount, ino).await;
        match what {
            0 => mount.peer.crash_and_restart(),
            1 => mount.peer.expire_clients(),
            2 => mount.peer.destroy_sessions(),
            _ => mount.peer.revoke_state(st::ADMIN_REVOKED),
        }
        let data = within(600, mount.read(file, 0, 100)).await;
        assert_eq!(data.unwrap(), OLD, "{what}");
        assert_eq!(mount.peer.open_count(), 1);
        mount.close(file).await.unwrap();
        nothing_is_left(&mount).await;
        let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
        mount.peer.cut_all_connections();
        assert_eq!(mount.read(file, 0, 100).await.unwrap(), OLD, "{what}");
        mount.close(file).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn another_process_goes_on_with_an_open_that_the_server_does_not_know() {
    let (mount, ino) = warm().await;
    let file = unasked(&mount, ino).await;
    let other = unasked(&mount, ino).await;
    let estate = mount.left().await;
    let (mount, _) = estate.taken_over_as(nocto(default_timeouts())).await;
    assert_eq!(mount.peer.open_count(), 0);
    mount.close(other).await.unwrap();
    assert_eq!(mount.peer.count_op(op::CLOSE), 0);
    assert_eq!(mount.read(file, 0, 100).await.unwrap(), OLD);
    assert_eq!(mount.peer.open_count(), 1);
    mount.close(file).await.unwrap();
    nothing_is_left(&mount).await;
    assert_eq!(cat(&mount, ino).await, OLD);
}

#[tokio::test(start_paused = true)]
async fn who_is_killed_in_the_middle_of_a_late_open_leaves_nothing_open() {
    for action in [
        Action::Delay(Duration::from_millis(50)),
        Action::DropConnectionBefore,
        Action::DropConnectionAfter,
    ] {
        let (mount, ino) = warm().await;
        let mount = Arc::new(mount);
        let file = unasked(&mount, ino).await;
        let abandoned = Arc::clone(mount.vfs.abandoned());
        let caller = Caller::new(Some(abandoned), 7);
        once_at(&mount.peer, op::OPEN, action);
        let reading = tokio::spawn({
            let mount = Arc::clone(&mount);
            let read = async move { mount.read(file, 0, 100).await };
            caller::on_behalf_of(Some(Arc::clone(&caller)), read)
        });
        millis(2).await;
        caller.give_up();
        let _ = within(600, reading).await;
        mount.peer.clear_script();
        mount.close(file).await.unwrap();
        nothing_is_left(&mount).await;
        assert_eq!(cat(&mount, ino).await, OLD);
        nothing_is_left(&mount).await;
    }
}

#[tokio::test(start_paused = true)]
async fn attributes_that_are_too_old_are_asked_for_together() {
    let (mount, _) = warm().await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir").unwrap();
    for number in 0..70 {
        fs.write_file(&format!("/dir/{number}"), OLD).unwrap();
    }
    let dir = mount.walk("dir").await.unwrap();
    mount.list(dir, true).await.unwrap();
    let mut files = Vec::new();
    for number in 0..70 {
        let entry = mount.lookup(dir, &number.to_string()).await.unwrap();
        files.push(entry.unwrap().ino);
        cat(&mount, files[number]).await;
    }
    mount.vfs.client().closes_sent().await;
    seconds(4).await;
    mount.peer.clear_log();
    for &ino in &files {
        let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
        mount.close(file).await.unwrap();
    }
    let cost = mount.peer.round_trips();
    assert!(cost <= 4, "{cost} round trips for 70 files");
    assert_eq!(mount.peer.count_op(op::OPEN), 0);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_known_whole_is_listed_without_being_asked_for_within_its_time() {
    let (mount, _) = warm().await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir").unwrap();
    fs.write_file("/dir/a", OLD).unwrap();
    let dir = mount.walk("dir").await.unwrap();
    assert_eq!(mount.list(dir, true).await.unwrap(), ["a"]);
    fs.write_file("/dir/b", OLD).unwrap();
    mount.peer.clear_log();
    assert_eq!(mount.list(dir, true).await.unwrap(), ["a"]);
    assert_eq!(mount.peer.round_trips(), 0);
    let own = mount.create(dir, "c", libc::O_WRONLY).await.unwrap();
    mount.close(own).await.unwrap();
    let names = mount.list(dir, true).await.unwrap();
    assert!(names.contains(&"c".to_owned()), "its own: {names:?}");
    seconds(61).await;
    assert_eq!(mount.list(dir, true).await.unwrap(), ["a", "b", "c"]);
}
