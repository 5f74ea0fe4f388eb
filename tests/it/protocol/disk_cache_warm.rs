//! What `efs-fuse warm` asks of the daemon, against the scripted server: how many requests small files
//! cost, which are kept, and which are left to an open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use efs_fuse::rpc::auth::Credential;
use efs_fuse::vfs::types::{SetAttr, WarmFrom, WarmedFile};
use tokio::time::Instant;

use super::disk_cache::{Host, content, reads};
use super::rig::millis;
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

/// As much as an ioctl carries.
const ROOM: usize = 16_000;
/// What a file of so many bytes takes there, as it is counted.
fn on_disk(size: usize) -> i64 {
    size.next_multiple_of(4096) as i64
}

/// So many are worth waiting until they are settled.
const MANY: u8 = 60;

/// Everything of a directory that is done with, and how many calls that took.
async fn warm_some(host: &Host, path: &str, most: u64, room: usize) -> (Vec<WarmedFile>, usize) {
    let ino = host.mount.walk(path).await.expect("lookup");
    let mut from = WarmFrom {
        most,
        ..WarmFrom::default()
    };
    let (mut files, mut calls) = (Vec::new(), 0);
    loop {
        let (vfs, cred) = (&host.mount.vfs, &host.mount.cred);
        let warmed = vfs.warm(cred, ino, from, room).await.expect("warm");
        calls += 1;
        let bytes: u64 = warmed.files.iter().map(|file| u64::from(file.size)).sum();
        from.most = from.most.saturating_sub(bytes);
        files.extend(warmed.files);
        if warmed.eof || from.most == 0 {
            return (files, calls);
        }
        assert_ne!(warmed.cookie, from.cookie, "it goes on");
        (from.cookie, from.verifier) = (warmed.cookie, warmed.verifier);
    }
}

async fn warm(host: &Host, path: &str) -> BTreeSet<String> {
    let (files, _) = warm_some(host, path, u64::MAX, ROOM).await;
    let names = files
        .iter()
        .map(|file| String::from_utf8_lossy(&file.name).into_owned());
    names.collect()
}

/// A directory of files of so many bytes, which are settled: their number is their content.
fn files(peer: &Arc<Peer>, count: u8, size: usize) -> BTreeSet<String> {
    peer.fs().mkdir("/d").expect("mkdir");
    (0..count)
        .map(|number| {
            let name = format!("file{number}");
            let data = content(number, size);
            peer.fs()
                .write_file(&format!("/d/{name}"), &data)
                .expect("write");
            name
        })
        .collect()
}

/// Nothing of these files is asked of the server by a host that begins with that disk.
async fn are_on_the_disk(peer: &Arc<Peer>, dir: &std::path::Path, count: u8, size: usize) {
    let two = Host::of(peer, "two", dir).await;
    for number in 0..count {
        let path = format!("/d/file{number}");
        two.mount.walk(&path).await.expect("lookup");
        assert!(two.cat(&path).await == content(number, size), "{path}");
    }
    assert_eq!(two.count("miss_bytes"), 0);
}

#[tokio::test(start_paused = true)]
async fn three_thousand_small_files_are_put_on_the_disk_five_with_a_request() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    peer.fs().mkdir("/d").unwrap();
    for number in 0..3000 {
        let data = content(number as u8, 2048);
        peer.fs()
            .write_file(&format!("/d/file{number}"), &data)
            .unwrap();
    }
    for (round, most) in [(0, 620), (1, 20)] {
        let host = Host::of(&peer, "one", dir.path()).await;
        host.mount.walk("/d").await.unwrap();
        let before = peer.round_trips();
        let (files, calls) = warm_some(&host, "/d", u64::MAX, ROOM).await;
        let trips = peer.round_trips() - before;
        println!("round {round}: {trips} round trips, {calls} calls");
        let names: BTreeSet<_> = files.iter().map(|file| &file.name).collect();
        assert_eq!((files.len(), names.len()), (3000, 3000));
        assert!(files.iter().all(|file| file.size == 2048));
        assert!(trips <= most, "{trips} round trips in round {round}");
        assert_eq!(peer.count_op(op::OPEN), 0);
        assert!(peer.max_ops_seen() <= 16);
        let expected = match round {
            0 => (0, 3000 * on_disk(2048)),
            _ => (3000 * 2048, 0),
        };
        assert_eq!(
            (host.count("hit_bytes"), host.count("filled_bytes")),
            expected
        );
        assert_eq!(host.count("dropped_bytes"), 0);
    }
    let two = Host::of(&peer, "two", dir.path()).await;
    for number in [0, 7, 1234, 2999] {
        let path = format!("/d/file{number}");
        assert!(two.cat(&path).await == content(number as u8, 2048));
    }
    assert_eq!(two.count("miss_bytes"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_fits_what_the_session_allows() {
    for (max_ops, max_response, size) in [
        (16, 1 << 21, 200_000),
        (8, 1 << 21, 3000),
        (16, 70_000, 30_000),
        // Still a page with so many that it is worth to wait for them.
        (16, 20_000, 3000),
    ] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let peer = Peer::new(PeerConfig {
            max_ops,
            max_response,
            ..PeerConfig::default()
        });
        let names = files(&peer, MANY, size);
        let host = Host::of(&peer, "one", dir.path()).await;
        let case = (max_ops, max_response, size);
        assert_eq!(warm(&host, "/d").await, names, "{case:?}");
        assert!(peer.max_ops_seen() <= max_ops, "{case:?}");
        assert_eq!(
            host.count("filled_bytes"),
            i64::from(MANY) * on_disk(size),
            "{case:?}"
        );
        are_on_the_disk(&peer, dir.path(), MANY, size).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_does_not_let_its_caller_read_is_left_and_the_rest_is_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let mut names = files(&peer, MANY, 3000);
    let host = Host::of(&peer, "one", dir.path()).await;
    for number in [3, 4, 11] {
        let ino = host.mount.walk(&format!("/d/file{number}")).await.unwrap();
        let stranger = SetAttr {
            mode: Some(0o600),
            uid: Some(77),
            ..Default::default()
        };
        let (vfs, cred) = (&host.mount.vfs, &host.mount.cred);
        vfs.setattr(cred, ino, None, stranger).await.unwrap();
        names.remove(&format!("file{number}"));
    }
    let caller = Credential {
        uid: 1000,
        gid: 1000,
        gids: Vec::new(),
    };
    let dir_ino = host.mount.walk("/d").await.unwrap();
    let warmed = host
        .mount
        .vfs
        .warm(&Arc::new(caller), dir_ino, all(), ROOM)
        .await
        .unwrap();
    let done: BTreeSet<_> = warmed
        .files
        .iter()
        .map(|file| String::from_utf8_lossy(&file.name).into_owned())
        .collect();
    assert_eq!(done, names);
    assert_eq!(host.count("filled_bytes"), 57 * on_disk(3000));
}

fn all() -> WarmFrom {
    WarmFrom {
        most: u64::MAX,
        ..WarmFrom::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_changes_between_the_listing_and_its_read_is_not_kept() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let mut names = files(&peer, MANY, 3000);
    let host = Host::of(&peer, "one", dir.path()).await;
    // The second that the files are too young for.
    let warming = async { warm(&host, "/d").await };
    let change = async {
        millis(500).await;
        peer.fs()
            .write_file("/d/file7", &content(99, 3000))
            .unwrap();
    };
    let (done, ()) = tokio::join!(warming, change);
    names.remove("file7");
    assert_eq!(done, names);
    let two = Host::of(&peer, "two", dir.path()).await;
    assert!(two.cat("/d/file7").await == content(99, 3000));
}

#[tokio::test(start_paused = true)]
async fn files_that_are_too_young_are_read_a_second_after_they_were_listed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    peer.fs().make_changes_coarse(Duration::from_millis(4));
    let names = files(&peer, MANY, 3000);
    let host = Host::of(&peer, "one", dir.path()).await;
    let begun = Instant::now();
    assert_eq!(warm(&host, "/d").await, names);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    are_on_the_disk(&peer, dir.path(), MANY, 3000).await;
}

#[tokio::test(start_paused = true)]
async fn a_few_files_that_are_too_young_are_left_and_nobody_waits() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    files(&peer, 10, 3000);
    let host = Host::of(&peer, "one", dir.path()).await;
    let begun = Instant::now();
    assert!(warm(&host, "/d").await.is_empty());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!((reads(&peer), host.count("filled_bytes")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_nothing_without_an_open_is_asked_once() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    files(&peer, MANY, 3000);
    let host = Host::of(&peer, "one", dir.path()).await;
    peer.on_op(|event| match event.op {
        op::READ => Action::Fail(st::BAD_STATEID),
        _ => Action::Pass,
    });
    for _ in 0..3 {
        assert!(warm(&host, "/d").await.is_empty());
    }
    assert!(reads(&peer) <= 8, "{} at once", reads(&peer));
}

#[tokio::test(start_paused = true)]
async fn large_files_and_those_that_this_host_is_writing_are_left() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let mut names = files(&peer, MANY, 3000);
    peer.fs().mkdir("/d/sub").unwrap();
    peer.fs().symlink("file1", "/d/link").unwrap();
    peer.fs()
        .write_file("/d/large", &content(1, 300_000))
        .unwrap();
    peer.fs().write_file("/d/empty", b"").unwrap();
    names.insert("empty".to_owned());
    let host = Host::of(&peer, "one", dir.path()).await;
    let ino = host.mount.walk("/d/file5").await.unwrap();
    let file = host.mount.open(ino, libc::O_WRONLY).await.unwrap();
    host.mount.write(file, 0, b"new").await.unwrap();
    names.remove("file5");
    assert_eq!(warm(&host, "/d").await, names);
    host.mount.close(file).await.unwrap();
    millis(10).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_no_longer_than_it_may_be_and_ends_with_enough_bytes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let peer = Peer::new(PeerConfig::default());
    let names = files(&peer, 200, 3000);
    let host = Host::of(&peer, "one", dir.path()).await;
    let (found, calls) = warm_some(&host, "/d", u64::MAX, 1300).await;
    assert_eq!((found.len(), calls), (names.len(), 2));
    let (some, _) = warm_some(&host, "/d", 10_000, ROOM).await;
    assert_eq!(some.len(), 4, "12,000 bytes");
}
