//! A small file's data come along with its OPEN: never older than close-to-open
//! allows, and never instead of what this host has written.

use std::time::Duration;

use efs_fuse::vfs::types::ROOT_INO;

use super::rig::{Mount, Open, default_timeouts, millis, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

async fn mount() -> Mount {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", b"first").unwrap();
    Mount::of(&peer, "one", default_timeouts()).await
}

/// Open, read all, close; and the round trips until the data were there, those
/// of earlier CLOSEs not counted.
async fn cat(mount: &Mount, path: &str) -> (Vec<u8>, u64) {
    let ino = mount.walk(path).await.unwrap();
    mount.peer.clear_log();
    let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
    let size = mount.getattr(ino).await.unwrap().size;
    let pages = size.next_multiple_of(4096).max(4096);
    let data = mount.read(file, 0, pages as u32).await.unwrap();
    let log = mount.peer.log();
    let has = |ops: &[u32], number| ops.contains(&number);
    let closes = log
        .iter()
        .filter(|entry| has(&entry.ops, op::CLOSE) && !has(&entry.ops, op::OPEN));
    let cost = mount.peer.round_trips() - closes.count() as u64;
    mount.close(file).await.unwrap();
    (data, cost)
}

#[tokio::test(start_paused = true)]
async fn opening_and_reading_a_small_file_is_one_round_trip() {
    let mount = mount().await;
    assert_eq!(cat(&mount, "/f").await, (b"first".to_vec(), 1));
    let at_most = vec![7; 128 << 10];
    mount.peer.fs().write_file("/g", &at_most).unwrap();
    assert_eq!(cat(&mount, "/g").await, (at_most, 1));
}

#[tokio::test(start_paused = true)]
async fn data_that_the_kernel_has_are_not_sent_again_unless_the_file_moved() {
    let mount = mount().await;
    cat(&mount, "/f").await;
    let ino = mount.walk("/f").await.unwrap();
    mount.peer.clear_log();
    let opened = mount
        .vfs
        .open(&mount.cred, ino, libc::O_RDONLY)
        .await
        .unwrap();
    assert!(opened.keep_cache);
    let log = mount.peer.log();
    assert_eq!(log[0].statuses.last(), Some(&st::SAME), "{log:?}");
    mount.vfs.release(opened.fh).await.unwrap();
    mount.peer.fs().write_file("/f", b"second one").unwrap();
    assert_eq!(cat(&mount, "/f").await, (b"second one".to_vec(), 1));
}

/// Servers that lack what this is made of cost one more round trip, not more,
/// and are not asked a second time.
#[tokio::test(start_paused = true)]
async fn a_server_without_current_stateid_anonymous_read_or_nverify_is_read_all_the_same() {
    for lacks in [op::READ, op::NVERIFY] {
        for status in [st::BAD_STATEID, st::NOTSUPP, st::OPENMODE] {
            let mount = mount().await;
            let peer = mount.peer.clone();
            peer.on_op(move |event| {
                let along = event.compound.contains(&op::OPEN);
                match along && event.op == lacks {
                    true => Action::Fail(status),
                    false => Action::Pass,
                }
            });
            for round in 0..6_u8 {
                let content = vec![round; 1000];
                peer.fs().write_file("/f", &content).unwrap();
                let (data, cost) = cat(&mount, "/f").await;
                assert_eq!(data, content);
                assert!(cost <= 2, "{cost} round trips");
                let (data, cost) = cat(&mount, "/f").await;
                assert_eq!(data, content);
                assert!(cost <= 2, "{cost} round trips");
            }
            let asked = peer.log().iter().any(|entry| entry.ops.contains(&lacks));
            let known = lacks == op::READ && status == st::BAD_STATEID || lacks == op::NVERIFY;
            if known {
                let ino = mount.walk("/f").await.unwrap();
                peer.clear_log();
                mount.open(ino, libc::O_RDONLY).await.unwrap();
                let again = peer.log().iter().any(|entry| entry.ops.contains(&lacks));
                assert!(!again, "asked again; before: {asked}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_host_closed_before_the_open_is_what_is_read() {
    let peer = Peer::new(PeerConfig::default());
    let one = Mount::of(&peer, "one", default_timeouts()).await;
    let two = Mount::of(&peer, "two", default_timeouts()).await;
    let file = two.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    for round in 0..20_u8 {
        let content = vec![round; 100 * usize::from(round) + 1];
        let there = two.open(file.ino, libc::O_WRONLY).await.unwrap();
        two.truncate(file.ino, Some(there.fh), 0).await.unwrap();
        two.write(there, 0, &content).await.unwrap();
        two.close(there).await.unwrap();
        assert_eq!(cat(&one, "/f").await.0, content);
        assert_eq!(cat(&one, "/f").await.0, content);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_grew_since_it_was_looked_up_is_read_to_its_new_end() {
    let mount = mount().await;
    let ino = mount.walk("/f").await.unwrap();
    for size in [100_000, 128 << 10, 300_000] {
        let content: Vec<u8> = (0..size).map(|at| (at / 7) as u8).collect();
        mount.peer.fs().write_file("/f", &content).unwrap();
        let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
        let mut data = Vec::new();
        loop {
            let next = mount.read(file, data.len() as u64, 40_000).await.unwrap();
            if next.is_empty() {
                break;
            }
            data.extend(next);
        }
        assert!(data == content, "{size}");
        mount.close(file).await.unwrap();
        // Small again for the next round.
        mount.peer.fs().write_file("/f", b"").unwrap();
        mount.peer.clear_log();
        super::rig::seconds(120).await;
        mount.getattr(ino).await.unwrap();
    }
}

async fn reads(mount: &Mount, file: Open, expected: &[u8]) {
    let data = mount.read(file, 0, 4096).await.unwrap();
    assert_eq!(data, expected);
}

/// Every moment in which this host may write while a small file is opened.
#[tokio::test(start_paused = true)]
async fn what_this_host_has_written_is_read_whenever_the_file_was_opened() {
    for moment in 0..4 {
        let mount = mount().await;
        let ino = mount.walk("/f").await.unwrap();
        let writer = mount.open(ino, libc::O_RDWR).await.unwrap();
        if moment == 0 {
            // Accepted, and not on its way yet.
            mount.write(writer, 0, b"FIRST").await.unwrap();
        }
        mount.peer.set_latency(Duration::from_millis(50));
        let opening = mount.open(ino, libc::O_RDONLY);
        let writing = async {
            if moment == 1 {
                // The OPEN has left and is not answered.
                millis(70).await;
                mount.write(writer, 0, b"FIRST").await.unwrap();
            }
        };
        let (reader, ()) = tokio::join!(opening, writing);
        let reader = reader.unwrap();
        match moment {
            2 => mount.write(writer, 0, b"FIRST").await.unwrap(),
            3 => {
                mount.write(writer, 0, b"FIRST").await.unwrap();
                mount.fsync(writer).await.unwrap();
            }
            _ => {}
        }
        reads(&mount, reader, b"FIRST").await;
        mount.truncate(ino, Some(writer.fh), 2).await.unwrap();
        reads(&mount, reader, b"FI").await;
        mount.close(reader).await.unwrap();
        mount.close(writer).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_change_that_this_host_has_seen_is_not_hidden_by_what_came_along() {
    let mount = mount().await;
    let ino = mount.walk("/f").await.unwrap();
    let old = mount.open(ino, libc::O_RDONLY).await.unwrap();
    mount.peer.fs().write_file("/f", b"second").unwrap();
    let new = mount.open(ino, libc::O_RDONLY).await.unwrap();
    reads(&mount, new, b"second").await;
    reads(&mount, old, b"second").await;
}

/// What one descriptor has been given, another does not know older: another host's change that
/// a READ has shown is not known by any attribute yet.
#[tokio::test(start_paused = true)]
async fn nobody_is_given_older_bytes_by_another_descriptor_than_a_read_has_shown() {
    const SIZE: usize = 4 << 20;
    // What comes along with an OPEN, and what is read ahead.
    for size in [5, SIZE] {
        let peer = Peer::new(PeerConfig::default());
        peer.fs().write_file("/f", &vec![b'a'; size]).unwrap();
        let mount = Mount::of(&peer, "one", default_timeouts()).await;
        let ino = mount.walk("/f").await.unwrap();
        let (ahead, other) = (
            mount.open(ino, libc::O_RDONLY).await.unwrap(),
            mount.open(ino, libc::O_RDONLY).await.unwrap(),
        );
        let piece = 128 << 10;
        if size == SIZE {
            for at in 0..8 {
                let data = mount.read(ahead, at * piece, piece as u32).await.unwrap();
                assert_eq!(data[0], b'a');
            }
            millis(100).await;
            assert!(mount.vfs.read_ahead_bytes().0 > 0);
        } else {
            // What came along for this one is used up.
            reads(&mount, other, b"aaaaa").await;
        }
        peer.fs().write_file("/f", &vec![b'b'; size]).unwrap();
        let at = if size == SIZE { 8 * piece } else { 0 };
        let len = piece.min(size as u64) as usize;
        for file in [other, ahead] {
            let data = mount.read(file, at, piece as u32).await.unwrap();
            assert!(data == vec![b'b'; len], "{size}: {:?}", &data[..5]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn data_that_nobody_reads_are_not_asked_for_until_somebody_does() {
    let mount = mount().await;
    let ino = mount.walk("/f").await.unwrap();
    let read_along = |mount: &Mount| mount.peer.count_op(op::READ);
    mount.peer.clear_log();
    for _ in 0..10 {
        let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
        mount.close(file).await.unwrap();
    }
    assert_eq!(read_along(&mount), 2);
    assert_eq!(cat(&mount, "/f").await, (b"first".to_vec(), 2));
    mount.peer.fs().write_file("/f", b"again").unwrap();
    assert_eq!(cat(&mount, "/f").await, (b"again".to_vec(), 1));
}

#[tokio::test(start_paused = true)]
async fn an_open_whose_reply_with_data_is_lost_is_one_open() {
    for action in [
        || Action::DropConnectionAfter,
        || Action::DropConnectionBefore,
    ] {
        let mount = mount().await;
        let ino = mount.walk("/f").await.unwrap();
        super::rig::once_at(&mount.peer, op::OPEN, action());
        let file = within(60, mount.open(ino, libc::O_RDONLY)).await.unwrap();
        reads(&mount, file, b"first").await;
        assert_eq!(mount.peer.open_count(), 1);
        mount.close(file).await.unwrap();
        within(60, mount.vfs.client().closes_sent()).await;
        assert_eq!(mount.peer.open_count(), 0);
    }
}
