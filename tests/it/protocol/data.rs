//! Data through the vfs: short counts, lost unstable data, and errors that
//! come after write(2) was answered.

use std::time::Duration;

use efs_fuse::vfs::types::{Errno, ROOT_INO};

use super::rig::{Mount, millis, once_at, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 3 % 251) as u8).collect()
}

#[tokio::test(start_paused = true)]
async fn short_counts_of_the_server_are_completed() {
    for (write, read, len) in [(1, 1, 300), (1000, 777, 100_000), (65_537, 65_537, 3 << 20)] {
        let mount = Mount::new(PeerConfig::default()).await;
        mount.peer.limit_io(write, read);
        let data = pattern(len);
        within(3600, async {
            let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
            for (at, part) in data.chunks(128 << 10).enumerate() {
                let at = (at * (128 << 10)) as u64;
                mount.write(file, at, part).await.unwrap();
            }
            mount.fsync(file).await.unwrap();
            for at in (0..len).step_by(128 << 10) {
                let part = mount.read(file, at as u64, 128 << 10).await.unwrap();
                assert_eq!(part, data[at..(at + (128 << 10)).min(len)]);
            }
            mount.close(file).await.unwrap();
        })
        .await;
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), data);
        assert!(!mount.peer.fs().has_unstable("/f").unwrap());
    }
}

/// Changes a word of the next reply to `number`.
fn set_word(mount: &Mount, number: u32, at: usize, value: u32) {
    once_at(
        &mount.peer,
        number,
        Action::Rewrite(Box::new(move |mut message| {
            message[at..at + 4].copy_from_slice(&value.to_be_bytes());
            message
        })),
    );
}

/// RPC header, compound header, SEQUENCE, PUTFH: where the third result begins.
const THIRD: usize = 24 + 12 + 44 + 8;

#[tokio::test(start_paused = true)]
async fn impossible_counts_of_read_are_an_error_and_not_a_loop() {
    let mount = Mount::new(PeerConfig::default()).await;
    // More than comes along with the OPEN.
    mount.peer.fs().write_file("/f", &pattern(3 << 20)).unwrap();
    let file = mount
        .open(mount.walk("/f").await.unwrap(), libc::O_RDONLY)
        .await
        .unwrap();
    // Neither data nor the end of the file.
    mount.peer.limit_io(u32::MAX, 0);
    let read = within(600, mount.read(file, 0, 4096)).await;
    assert_eq!(read, Err(Errno(libc::EIO)));
    assert!(mount.peer.count_op(op::READ) < 50);
    mount.peer.limit_io(u32::MAX, u32::MAX);
    // More data than the record has.
    set_word(&mount, op::READ, THIRD + 12, 1 << 30);
    let read = within(600, mount.read(file, 0, 4096)).await;
    assert_ne!(read.as_deref().map(<[u8]>::len), Ok(1 << 30));
    mount.peer.clear_script();
    let read = within(600, mount.read(file, 0, 4096)).await;
    assert_eq!(read.unwrap(), pattern(3 << 20)[..4096]);
}

#[tokio::test(start_paused = true)]
async fn a_write_of_more_than_was_sent_is_an_error() {
    let mount = Mount::new(PeerConfig::default()).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    // Behind GETATTR of the change attribute.
    set_word(&mount, op::WRITE, THIRD + 28 + 8, 0x7fff_ffff);
    mount.write(file, 0, &pattern(5000)).await.unwrap();
    let synced = within(600, mount.fsync(file)).await;
    assert_eq!(synced, Err(Errno(libc::EIO)));
    mount.peer.clear_script();
    mount.write(file, 0, &pattern(5000)).await.unwrap();
    mount.fsync(file).await.expect("the next one counts");
    assert_eq!(mount.peer.fs().read_file("/f").unwrap(), pattern(5000));
}

#[tokio::test(start_paused = true)]
async fn data_lost_between_write_and_commit_are_written_again() {
    let mount = Mount::new(PeerConfig::default()).await;
    let data = pattern(5 << 20);
    let peer = std::sync::Arc::downgrade(&mount.peer);
    let mut losses = 0;
    mount.peer.on_op(move |event| {
        if event.op == op::COMMIT && losses < 2 {
            losses += 1;
            if let Some(peer) = peer.upgrade() {
                peer.lose_unstable_data();
            }
        }
        Action::Pass
    });
    within(60, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        for (at, part) in data.chunks(1 << 20).enumerate() {
            let at = (at as u64) << 20;
            mount.write(file, at, part).await.unwrap();
        }
        mount.fsync(file).await.unwrap();
        assert_eq!(mount.read(file, 0, 5 << 20).await.unwrap(), data);
        mount.close(file).await.unwrap();
    })
    .await;
    assert_eq!(mount.peer.fs().read_file("/f").unwrap(), data);
    assert!(!mount.peer.fs().has_unstable("/f").unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_commit_of_an_fsync_goes_behind_its_last_write_and_alone_if_that_fails() {
    for refused in [false, true] {
        let mount = Mount::new(PeerConfig::default()).await;
        let data = pattern((1 << 20) + 3);
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, &data[..1 << 20]).await.unwrap();
        millis(50).await;
        mount.write(file, 1 << 20, &data[1 << 20..]).await.unwrap();
        mount.peer.clear_log();
        if refused {
            once_at(&mount.peer, op::COMMIT, Action::Fail(st::IO));
        }
        within(60, mount.fsync(file)).await.unwrap();
        let log = mount.peer.log();
        let commits = log.iter().filter(|entry| entry.ops.contains(&op::COMMIT));
        let behind: Vec<_> = commits
            .map(|entry| entry.ops.contains(&op::WRITE))
            .collect();
        let expected: &[bool] = if refused { &[true, false] } else { &[true] };
        assert_eq!(behind, expected);
        assert!(!mount.peer.fs().has_unstable("/f").unwrap());
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), data);
        mount.close(file).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_loses_data_before_every_commit_is_given_up() {
    let mount = Mount::new(PeerConfig::default()).await;
    let peer = std::sync::Arc::downgrade(&mount.peer);
    mount.peer.on_op(move |event| {
        if event.op == op::COMMIT
            && let Some(peer) = peer.upgrade()
        {
            peer.lose_unstable_data();
        }
        Action::Pass
    });
    within(600, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        for at in 0..4 {
            mount
                .write(file, at << 20, &pattern(1 << 20))
                .await
                .unwrap();
        }
        // Either stable in the end by other means, or an error; but an end.
        if mount.fsync(file).await.is_ok() {
            assert!(!mount.peer.fs().has_unstable("/f").unwrap());
        }
        mount.release(file).await;
    })
    .await;
    assert!(mount.peer.count_op(op::WRITE) < 200);
}

/// Writes to fail with `status` until the script is cleared.
fn fail_writes(mount: &Mount, status: u32) {
    mount.peer.on_op(move |event| match event.op {
        op::WRITE => Action::Fail(status),
        _ => Action::Pass,
    });
}

#[tokio::test(start_paused = true)]
async fn a_write_error_is_told_by_the_next_write_and_once_by_fsync_or_close() {
    for (status, errno) in [
        (st::NOSPC, libc::ENOSPC),
        (st::DQUOT, libc::EDQUOT),
        (st::IO, libc::EIO),
        (st::ROFS, libc::EROFS),
    ] {
        for teller in ["write", "fsync", "close"] {
            let mount = Mount::new(PeerConfig::default()).await;
            within(60, async {
                let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
                fail_writes(&mount, status);
                mount.write(file, 0, b"lost").await.expect("buffered");
                millis(500).await;
                mount.peer.clear_script();
                let told = match teller {
                    "write" => mount.write(file, 10, b"x").await,
                    "fsync" => mount.fsync(file).await,
                    _ => mount.flush(file).await,
                };
                assert_eq!(told, Err(Errno(errno)), "{teller}");
                if teller != "fsync" {
                    // Close of a copy: who still has the file open is told as well. And a
                    // write may be the rest of one that is told to be short instead.
                    assert_eq!(mount.fsync(file).await, Err(Errno(errno)));
                }
                mount.fsync(file).await.expect("told once");
                mount.write(file, 0, b"kept").await.expect("write");
                mount.close(file).await.expect("close");
            })
            .await;
            assert_eq!(mount.peer.fs().read_file("/f").unwrap()[..4], *b"kept");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_write_error_says_which_request_it_comes_from_and_of_which_file() {
    let mount = Mount::new(PeerConfig::default()).await;
    within(60, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        fail_writes(&mount, st::DQUOT);
        mount.write(file, 0, b"lost").await.expect("buffered");
        millis(500).await;
        mount.peer.clear_script();
        for told in [
            mount.vfs.flush(file.fh, 0).await.unwrap_err(),
            mount.vfs.fsync(file.fh).await.unwrap_err(),
        ] {
            assert_eq!(told, Errno(libc::EDQUOT));
            let cause = told.cause().expect("the server's status");
            assert_eq!(cause.ino(), Some(file.ino));
            let words = format!("WRITE: NFS4ERR_DQUOT (inode {})", file.ino);
            assert_eq!(cause.to_string(), words);
        }
        mount.close(file).await.expect("told by fsync");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_handle_that_was_open_hears_of_a_write_error_and_later_ones_do_not() {
    let mount = Mount::new(PeerConfig::default()).await;
    within(60, async {
        let one = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        let two = mount.open(one.ino, libc::O_RDWR).await.unwrap();
        fail_writes(&mount, st::NOSPC);
        mount.write(one, 0, b"lost").await.expect("buffered");
        millis(500).await;
        let three = mount.open(one.ino, libc::O_RDWR).await.unwrap();
        mount.peer.clear_script();
        let nospc = Err(Errno(libc::ENOSPC));
        assert_eq!(mount.close(two).await, nospc);
        assert_eq!(mount.fsync(one).await, nospc);
        mount.close(one).await.expect("told by fsync");
        mount.close(three).await.expect("opened later");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_size_after_a_failed_write_is_that_of_the_server() {
    let mount = Mount::new(PeerConfig::default()).await;
    within(60, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, b"safe").await.unwrap();
        mount.fsync(file).await.unwrap();
        fail_writes(&mount, st::NOSPC);
        mount.write(file, 4, b" and lost").await.unwrap();
        mount.fsync(file).await.unwrap_err();
        mount.peer.clear_script();
        assert_eq!(mount.getattr(file.ino).await.unwrap().size, 4);
        assert_eq!(mount.read(file, 0, 100).await.unwrap(), b"safe");
        mount.close(file).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_commit_is_told_and_the_next_one_counts() {
    let mount = Mount::new(PeerConfig::default()).await;
    within(60, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        for at in 0..3 {
            mount
                .write(file, at << 20, &pattern(1 << 20))
                .await
                .unwrap();
        }
        once_at(&mount.peer, op::COMMIT, Action::Fail(st::IO));
        millis(100).await;
        assert_eq!(mount.fsync(file).await, Err(Errno(libc::EIO)));
        mount.write(file, 0, b"again").await.unwrap();
        mount.close(file).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_file_held_is_read_whatever_is_pending_for_it() {
    let mount = Mount::new(PeerConfig {
        latency: Duration::from_millis(5),
        ..PeerConfig::default()
    })
    .await;
    within(60, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        let (mut expected, mut size) = (vec![0; 64 << 10], 0);
        for round in 0..40_u64 {
            let at = (round * 7919 % 60_000) as usize;
            let part = pattern(3000 + round as usize);
            expected[at..at + part.len()].copy_from_slice(&part);
            mount.write(file, at as u64, &part).await.unwrap();
            size = size.max(at + part.len());
            if round % 3 == 0 {
                let from = (round * 4999 % 50_000) as usize;
                let got = mount.read(file, from as u64, 9000).await.unwrap();
                let (from, to) = (from.min(size), (from + 9000).min(size));
                assert!(got == expected[from..to], "round {round}, {from}..{to}");
                let stat = mount.getattr(file.ino).await.unwrap();
                assert_eq!(stat.size as usize, size, "round {round}");
            }
        }
        mount.close(file).await.unwrap();
    })
    .await;
}

/// O_CREAT and O_TRUNC by a name that another host has linked to the file and that is not known
/// here: OPEN cuts the file, and what this host had accepted for it by its other name comes after that.
#[tokio::test(start_paused = true)]
async fn what_was_written_before_an_open_that_cuts_is_cut_by_whatever_name() {
    // Not sent yet, on its way, and there without a COMMIT.
    for pause in [0, 5, 20] {
        let mount = Mount::new(PeerConfig::default()).await;
        mount.peer.set_latency(Duration::from_millis(2));
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, b"old").await.unwrap();
        mount.fsync(file).await.unwrap();
        mount.peer.fs().link("/f", "/g").unwrap();
        mount.write(file, 3, b"before").await.unwrap();
        millis(pause).await;
        let flags = libc::O_RDWR | libc::O_TRUNC;
        let again = mount.create(ROOT_INO, "g", flags).await.unwrap();
        assert_eq!(again.ino, file.ino);
        assert_eq!(mount.getattr(file.ino).await.unwrap().size, 0, "{pause} ms");
        mount.write(again, 1, b"after").await.unwrap();
        mount.close(again).await.unwrap();
        mount.fsync(file).await.unwrap();
        let content = mount.peer.fs().read_file("/f").unwrap();
        assert_eq!(content, b"\0after", "{pause} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_file_grows_zeros_and_not_its_old_end() {
    let mount = Mount::new(PeerConfig::default()).await;
    within(60, async {
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, &[1; 10_000]).await.unwrap();
        mount.truncate(file.ino, Some(file.fh), 100).await.unwrap();
        mount.truncate(file.ino, None, 5000).await.unwrap();
        mount.write(file, 9000, &[2; 10]).await.unwrap();
        let mut expected = vec![1; 100];
        expected.resize(9000, 0);
        expected.resize(9010, 2);
        assert_eq!(mount.read(file, 0, 20_000).await.unwrap(), expected);
        mount.close(file).await.unwrap();
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), expected);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_nobody_syncs_is_committed_soon_so_that_a_later_crash_finds_nothing_to_lose() {
    let mount = Mount::new(PeerConfig::default()).await;
    let files = [
        mount.create(ROOT_INO, "a", libc::O_RDWR).await.unwrap(),
        mount.create(ROOT_INO, "b", libc::O_RDWR).await.unwrap(),
    ];
    for file in files {
        for at in 0..8 {
            let data = pattern(1 << 20);
            mount.write(file, at << 20, &data).await.unwrap();
        }
    }
    millis(1000).await;
    assert!(mount.vfs.write_window().0 >= 16 << 20, "held until then");
    millis(10_000).await;
    assert_eq!(mount.vfs.write_window().0, 0, "and not longer");
    assert_eq!(mount.peer.count_op(op::COMMIT), 2, "one a file");
    mount.peer.clear_log();
    mount.peer.crash_and_restart();
    millis(10_000).await;
    for file in files {
        let data = within(600, mount.read(file, 5 << 20, 100)).await.unwrap();
        assert_eq!(data, pattern(1 << 20)[..100]);
    }
    assert_eq!(mount.peer.count_op(op::WRITE), 0, "nothing is sent again");
    // An idle file costs nothing from then on.
    mount.peer.clear_log();
    millis(20_000).await;
    assert_eq!(mount.peer.count_op(op::COMMIT), 0);
    for file in files {
        mount.close(file).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_crashes_again_and_again_before_a_sync_loses_nothing() {
    let mount = Mount::new(PeerConfig::default()).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    let data = pattern(3 << 20);
    mount.write(file, 0, &data[..1 << 20]).await.unwrap();
    mount.write(file, 2 << 20, &data[2 << 20..]).await.unwrap();
    for _ in 0..12 {
        millis(2000).await;
        mount.peer.crash_and_restart();
    }
    mount
        .write(file, 1 << 20, &data[1 << 20..2 << 20])
        .await
        .unwrap();
    within(600, mount.fsync(file)).await.expect("fsync");
    assert!(mount.peer.fs().read_file("/f").unwrap() == data);
    assert!(!mount.peer.fs().has_unstable("/f").unwrap());
    mount.close(file).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_readers_together_hold_no_more_than_the_mount_allows() {
    const READERS: u64 = 60;
    const PART: u64 = 128 << 10;
    let mount = Mount::new(PeerConfig::default()).await;
    let data = pattern(20 << 20);
    mount.peer.fs().write_file("/f", &data).unwrap();
    let ino = mount.walk("/f").await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(mount.open(ino, libc::O_RDONLY).await.unwrap());
    }
    let mut most = 0;
    for at in (0..6 << 20).step_by(PART as usize) {
        for file in &readers {
            let part = mount.read(*file, at, PART as u32).await.unwrap();
            assert!(part == data[at as usize..(at + PART) as usize]);
            let (held, limit) = mount.vfs.read_ahead_bytes();
            assert!(held <= limit, "{held} bytes");
            most = most.max(held);
        }
    }
    assert_eq!(most, mount.vfs.read_ahead_bytes().1, "all of it is used");
    // They rest, and another one reads: it is not left without.
    millis(2000).await;
    let late = mount.open(ino, libc::O_RDONLY).await.unwrap();
    mount.peer.clear_log();
    for at in (0..10 << 20).step_by(PART as usize) {
        let part = mount.read(late, at, PART as u32).await.unwrap();
        assert!(part == data[at as usize..(at + PART) as usize]);
    }
    let reads = mount.peer.count_op(op::READ);
    assert!(reads < 45, "{reads} READs of chunks, not of 80 parts");
    for file in readers.into_iter().chain([late]) {
        mount.close(file).await.unwrap();
    }
    millis(100).await;
    assert_eq!(mount.vfs.read_ahead_bytes().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_ends_elsewhere_has_the_attributes_asked_for_again() {
    let mount = Mount::new(PeerConfig::default()).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    mount.write(file, 0, b"twelve bytes").await.unwrap();
    mount.fsync(file).await.unwrap();
    let known = || mount.vfs.getattr_cached(file.ino, None);
    assert_eq!(mount.getattr(file.ino).await.unwrap().size, 12);
    for theirs in [&b""[..], b"a longer one than that"] {
        mount.peer.fs().write_file("/f", theirs).unwrap();
        let believed = known().is_some_and(|(_, ttl)| !ttl.is_zero());
        assert!(believed, "nobody has told of it");
        assert_eq!(mount.read(file, 0, 4096).await.unwrap(), theirs);
        let believed = known().is_some_and(|(_, ttl)| !ttl.is_zero());
        assert!(!believed, "the end was found elsewhere");
        let size = mount.getattr(file.ino).await.unwrap().size;
        assert_eq!(size, theirs.len() as u64);
    }
    mount.close(file).await.unwrap();
}
