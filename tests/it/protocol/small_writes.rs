//! Small writes, one soon after the other: how many requests they are, and when the server
//! has them. What is sent when is in `vfs::writeback::tests::linger`.

use std::collections::BTreeSet;
use std::time::Duration;

use efs_fuse::vfs::types::{MissingNames, ROOT_INO};
use tokio::time::Instant;

use super::rig::{Mount, Open, connect, default_timeouts, millis, seconds, within};
use crate::fixtures::noise;
use crate::peer::proto::op;
use crate::peer::{Peer, PeerConfig};

const BLOCK: usize = 4096;

/// A host, and a file that it has made.
async fn writer() -> (Mount, Open) {
    let cfg = PeerConfig {
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    };
    let mount = Mount::new(cfg).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    mount.peer.clear_log();
    (mount, file)
}

fn there(mount: &Mount, name: &str) -> Vec<u8> {
    mount.peer.fs().read_file(name).unwrap()
}

async fn micros(micros: u64) {
    tokio::time::sleep(Duration::from_micros(micros)).await;
}

#[tokio::test(start_paused = true)]
async fn blocks_that_follow_each_other_go_in_full_requests_and_none_besides() {
    for pause in [20, 250, 4000] {
        let (mount, file) = writer().await;
        let all = noise(pause, 16 << 20);
        for (number, block) in all.chunks(BLOCK).enumerate() {
            let at = (number * BLOCK) as u64;
            mount.write(file, at, block).await.unwrap();
            micros(pause).await;
        }
        within(60, mount.fsync(file)).await.unwrap();
        let spent = mount.peer.round_trips();
        // At four milliseconds a block is slower than a full request a second: one in a second.
        let writes = if pause < 4000 {
            16
        } else {
            4096 * 4 / 1000 + 1
        };
        assert!(mount.peer.count_op(op::WRITE) <= writes, "{pause}");
        assert!(spent <= writes as u64 + 4, "{spent} at {pause}");
        assert!(there(&mount, "/f") == all);
        assert!(!mount.peer.fs().has_unstable("/f").unwrap());
        within(60, mount.close(file)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn lines_of_a_log_that_goes_on_are_a_request_a_second() {
    for (lines, pause) in [(3000, 0), (3000, 1), (300, 20), (60, 300)] {
        let (mount, file) = writer().await;
        let all = noise(pause, lines * 100);
        for (number, line) in all.chunks(100).enumerate() {
            mount.write(file, number as u64 * 100, line).await.unwrap();
            millis(pause).await;
        }
        within(60, mount.close(file)).await.unwrap();
        let took = lines as u64 * pause / 1000;
        // Four more: the first lines, and the last.
        let (spent, most) = (mount.peer.count_op(op::WRITE), took + 4);
        assert!(spent as u64 <= most, "{spent} of {most}");
        assert!(there(&mount, "/f") == all);
    }
}

#[tokio::test(start_paused = true)]
async fn blocks_all_over_a_file_are_no_more_than_a_write_each_and_small_ones_share_requests() {
    let cases = [
        (BLOCK, 0, 2010),
        (BLOCK, 5000, 2010),
        (500, 0, 450),
        (500, 250, 450),
    ];
    for (block_size, pause, most) in cases {
        let (mount, file) = writer().await;
        let blocks = 20_000_u64;
        let size = blocks * BLOCK as u64;
        mount.truncate(file.ino, Some(file.fh), size).await.unwrap();
        mount.peer.clear_log();
        let mut written = BTreeSet::new();
        for round in 0..2000_u64 {
            let number = round * round * 31 % blocks;
            let block = noise(number, block_size);
            let at = number * BLOCK as u64;
            mount.write(file, at, &block).await.unwrap();
            written.insert(number);
            micros(pause).await;
        }
        within(60, mount.close(file)).await.unwrap();
        let (writes, requests) = (mount.peer.count_op(op::WRITE), mount.peer.round_trips());
        assert!(writes <= 2000, "{writes} at {pause}");
        assert!(requests <= most, "{requests} at {pause}");
        let file = there(&mount, "/f");
        for number in written {
            let at = number as usize * BLOCK;
            let block = noise(number, block_size);
            assert!(file[at..at + block_size] == block, "{number}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_on_writing_is_seen_within_a_second_and_whoever_stops_within_what_he_took() {
    for (lines, pause) in [(2500, 1), (300, 20), (40, 200), (8, 900)] {
        let (mount, file) = writer().await;
        let mut late = Duration::ZERO;
        let mut written = std::collections::VecDeque::new();
        let mut next = Instant::now();
        let (start, mut number) = (next, 0_u64);
        while number < lines || !written.is_empty() {
            if number < lines && Instant::now() >= next {
                mount.write(file, number * 100, &[1; 100]).await.unwrap();
                number += 1;
                written.push_back((number * 100, Instant::now()));
                next += Duration::from_millis(pause);
            }
            let len = there(&mount, "/f").len() as u64;
            while let Some((_, at)) = written.pop_front_if(|(end, _)| *end <= len) {
                late = late.max(at.elapsed());
            }
            millis(1).await;
        }
        let most = Duration::from_secs(1).min(start.elapsed()) + Duration::from_millis(10);
        assert!(late <= most, "{late:?} at {pause}");
        within(60, mount.close(file)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_write_after_a_sync_a_close_or_a_pause_lingers_for_milliseconds() {
    for end in 0..3 {
        let (mount, mut file) = writer().await;
        for number in 0..500 {
            mount.write(file, number * 100, &[1; 100]).await.unwrap();
            millis(2).await;
        }
        match end {
            0 => within(60, mount.fsync(file)).await.unwrap(),
            1 => {
                within(60, mount.close(file)).await.unwrap();
                file = mount.open(file.ino, libc::O_RDWR).await.unwrap();
            }
            _ => seconds(3).await,
        }
        mount.write(file, 50_000, b"single").await.unwrap();
        millis(10).await;
        assert!(there(&mount, "/f").ends_with(b"single"), "{end}");
        within(60, mount.close(file)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_got_a_name_or_is_asked_for_lingers_no_more() {
    let (mount, file) = writer().await;
    let mut end = 0;
    let mut go_on = async |steps: u64| {
        for _ in 0..steps {
            mount.write(file, end, &[1; 100]).await.unwrap();
            end += 100;
            millis(2).await;
        }
        end
    };
    let written = go_on(500).await;
    assert!((there(&mount, "/f").len() as u64) < written, "it lingers");
    let renamed = mount.rename((ROOT_INO, "f"), (ROOT_INO, "g")).await;
    renamed.unwrap();
    millis(10).await;
    assert_eq!(there(&mount, "/g").len() as u64, written, "renamed");
    let written = go_on(500).await;
    assert!((there(&mount, "/g").len() as u64) < written, "it lingers");
    // With all that was written before it.
    let stat = mount.getattr(file.ino).await.unwrap();
    assert_eq!(stat.size, written);
    assert_eq!(there(&mount, "/g").len() as u64, written, "stat");
    within(60, mount.close(file)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn with_noac_nothing_lingers_longer_than_milliseconds() {
    let peer = Peer::new(PeerConfig::default());
    let timeouts = efs_fuse::vfs::Timeouts {
        reg_min: Duration::ZERO,
        reg_max: Duration::ZERO,
        dir_min: Duration::ZERO,
        dir_max: Duration::ZERO,
    };
    let mount = Mount::of(&peer, "one", timeouts).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    for number in 0..1000_u64 {
        mount.write(file, number * 10, &[1; 10]).await.unwrap();
        millis(1).await;
        let len = there(&mount, "/f").len() as u64;
        assert!(len + 10 * 10 >= number * 10, "{len} of {number}");
    }
    within(60, mount.close(file)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_does_not_wait_for_what_lingers() {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(1),
        ..PeerConfig::default()
    });
    let client = connect(&peer, "one").await;
    let missing = MissingNames::AskedFor;
    let mount = Mount::knowing(&client, &peer, default_timeouts(), 1 << 20, missing);
    let mut files = Vec::new();
    for number in 0..8 {
        let name = format!("f{number}");
        files.push(mount.create(ROOT_INO, &name, libc::O_RDWR).await.unwrap());
    }
    let mut slowest = Duration::ZERO;
    for round in 0..300_u64 {
        for file in &files {
            let start = Instant::now();
            let written = mount.write(*file, round * 20_000, &[1; 10_000]);
            within(60, written).await.unwrap();
            slowest = slowest.max(start.elapsed());
        }
        millis(1).await;
    }
    assert!(slowest < Duration::from_millis(50), "{slowest:?}");
    for file in files {
        within(60, mount.close(file)).await.unwrap();
    }
}

/// Git and others look at what they have written before they close it.
#[tokio::test(start_paused = true)]
async fn a_small_file_that_is_looked_at_before_its_close_is_one_write_and_no_commit() {
    let (mount, file) = writer().await;
    mount.write(file, 0, &noise(1, 3000)).await.unwrap();
    let stat = within(60, mount.getattr(file.ino)).await.unwrap();
    assert_eq!(stat.size, 3000);
    assert!(!mount.peer.fs().has_unstable("/f").unwrap());
    within(60, mount.flush(file)).await.unwrap();
    assert_eq!(mount.peer.round_trips(), 1);
    assert_eq!(mount.peer.count_op(op::WRITE), 1);
    assert_eq!(mount.peer.count_op(op::COMMIT), 0);
    mount.release(file).await;
}

/// The attributes come with the WRITE: who reads pages of the file is told of another
/// host's changes as soon as if nothing were written here.
#[tokio::test(start_paused = true)]
async fn what_lingers_goes_when_the_attributes_of_its_file_are_too_old_to_read_by() {
    let peer = Peer::new(PeerConfig::default());
    let timeouts = efs_fuse::vfs::Timeouts {
        reg_min: Duration::from_millis(100),
        reg_max: Duration::from_millis(100),
        ..default_timeouts()
    };
    let mount = Mount::of(&peer, "one", timeouts).await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    for number in 0..50 {
        mount.write(file, number * 10, &[1; 10]).await.unwrap();
        millis(10).await;
    }
    assert!(there(&mount, "/f").len() < 500, "it lingers");
    mount.vfs.revalidate_due().await;
    millis(1).await;
    assert_eq!(there(&mount, "/f").len(), 500);
    within(60, mount.close(file)).await.unwrap();
}
