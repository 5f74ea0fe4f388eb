//! Much data of several files in a request: only where the server was found to write it rightly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::rig::{Mount, millis, within};
use super::{Ino, ROOT_INO, mounted, settled, unpack};
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

const FILES: usize = 120;

/// No file's data are like another's.
fn data(number: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(31) ^ number.wrapping_mul(7)) as u8;
    (0..5_000 + number * 100).map(byte).collect()
}

/// A server that takes data as they were sent; the peer is as Linux otherwise.
fn right() -> PeerConfig {
    PeerConfig {
        misplaces_later_data: false,
        ..PeerConfig::default()
    }
}

/// Makes the files, and says how many requests that took.
async fn unpacked(mount: &Mount) -> u64 {
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    let before = mount.peer.round_trips();
    make(mount, dir, 0..FILES).await;
    settled(mount).await;
    let requests = mount.peer.round_trips() - before;
    are_whole(mount, FILES);
    requests
}

async fn make(mount: &Mount, dir: Ino, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let made = unpack(mount, dir, &format!("f{number}"), &data(number)).await;
        made.expect("a file");
    }
}

fn are_whole(mount: &Mount, files: usize) {
    let fs = mount.peer.fs();
    assert_eq!(fs.list("/d").expect("names").len(), files, "and no other");
    for number in 0..files {
        let found = fs.read_file(&format!("/d/f{number}")).expect("data");
        assert!(found == data(number), "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_writes_them_rightly_is_sent_two_files_to_a_request() {
    let mount = mounted(right()).await;
    mount.peer.set_latency(std::time::Duration::from_millis(1));
    let requests = unpacked(&mount).await;
    // Four of one file, the trial, and the rest two by two.
    let most = 4 + 1 + (FILES - 4) / 2 + 4;
    assert!(requests <= most as u64, "{requests} requests");
    millis(2000).await;
    assert_eq!(mount.peer.open_count(), 0, "all are closed");
    within(60, mount.vfs.settled()).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_misplaces_later_data_is_never_sent_any_of_a_file() {
    let mount = mounted(PeerConfig::default()).await;
    mount.peer.set_latency(std::time::Duration::from_millis(1));
    let requests = unpacked(&mount).await;
    assert!(requests > FILES as u64, "{requests} requests");
    millis(2000).await;
    assert_eq!(mount.peer.open_count(), 0, "all are closed");
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_fails_in_the_middle_leaves_nothing_and_counts_as_no() {
    // Its OPEN, the first and the second WRITE, its READ, CLOSE and REMOVE.
    for (number, fails) in [
        (0, op::OPEN),
        (0, op::WRITE),
        (1, op::WRITE),
        (0, op::READ),
        (0, op::CLOSE),
        (0, op::REMOVE),
    ] {
        let mount = mounted(right()).await;
        mount.peer.set_latency(std::time::Duration::from_millis(1));
        let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
        let seen = Arc::new(AtomicUsize::new(0));
        mount.peer.on_op(move |event| {
            let reads_and_removes = [op::READ, op::REMOVE].map(|op| event.compound.contains(&op));
            let is_trial = event.op == fails && reads_and_removes == [true; 2];
            match is_trial && seen.fetch_add(1, Ordering::Relaxed) == number {
                true => Action::Fail(st::IO),
                false => Action::Pass,
            }
        });
        make(&mount, dir, 0..FILES).await;
        settled(&mount).await;
        are_whole(&mount, FILES);
        millis(2000).await;
        assert_eq!(mount.peer.open_count(), 0, "all are closed: {fails}");
        within(60, mount.vfs.settled()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_found_of_a_server_is_found_out_again_when_it_has_restarted() {
    let mount = mounted(right()).await;
    mount.peer.set_latency(std::time::Duration::from_millis(1));
    unpacked(&mount).await;
    mount.peer.crash_and_restart();
    // It is another one now.
    mount
        .peer
        .limit_sessions(|config| config.misplaces_later_data = true);
    let dir = mount.walk("d").await.expect("a directory");
    make(&mount, dir, FILES..2 * FILES).await;
    settled(&mount).await;
    are_whole(&mount, 2 * FILES);
}
