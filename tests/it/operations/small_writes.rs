//! Small writes on a real mount: how many requests they are, and when another host reads
//! them. To the byte and the millisecond it is in `protocol::small_writes`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::mount::MountRequest;
use crate::fixtures::{World, noise};

/// WRITEs, and requests, that `work` costs.
fn cost(world: &World, work: impl FnOnce()) -> (u64, u64) {
    let writes = || world.mount.stat("/nfs_ops/WRITE/count");
    let before = writes();
    let ((), requests) = world.mount.round_trips(work);
    (writes() - before, requests)
}

fn append_to(world: &World) -> File {
    let mut how = OpenOptions::new();
    how.append(true).create(true);
    how.open(world.path("log")).expect("open")
}

/// More, where a busy machine has not let a program run for milliseconds when it had just
/// begun: what it had written by then has gone.
const PAUSES: u64 = 8;

#[test]
fn sixteen_mib_written_in_blocks_of_a_page_are_sixteen_writes() {
    let world = World::new();
    let data = noise(1, 16 << 20);
    let (writes, requests) = cost(&world, || {
        let mut file = File::create(world.path("file")).expect("create");
        for block in data.chunks(4096) {
            file.write_all(block).expect("write");
        }
        file.sync_all().expect("fsync");
    });
    assert!(fs::read(world.behind("file")).expect("read") == data);
    println!("{writes} WRITEs, {requests} requests");
    assert!(writes <= 16 + PAUSES, "{writes} WRITEs");
    // LOOKUP, OPEN, COMMIT, CLOSE; what is asked again as its time is over depends on the machine.
    assert!(requests <= writes + 4 + PAUSES, "{requests} requests");
}

#[test]
fn lines_appended_to_an_open_log_share_requests() {
    let world = World::new();
    let lines = noise(2, 300_000);
    let start = Instant::now();
    let (writes, requests) = cost(&world, || {
        let mut log = append_to(&world);
        for line in lines.chunks(100) {
            log.write_all(line).expect("write");
        }
    });
    assert!(fs::read(world.behind("log")).expect("read") == lines);
    println!("{writes} WRITEs, {requests} requests");
    // One a second.
    let most = 1 + start.elapsed().as_secs() + PAUSES;
    assert!(writes <= most, "{writes} WRITEs of {most}");
    assert!(requests <= writes + 4 + PAUSES, "{requests} requests");
}

#[test]
fn blocks_written_all_over_a_file_are_a_write_each_at_most_and_small_ones_share_requests() {
    blocks_written(4096, 2010);
    blocks_written(500, 700);
}

fn blocks_written(size: usize, most: u64) {
    let world = World::new();
    let mut model = noise(3, 64 << 20);
    fs::write(world.path("file"), &model).expect("write");
    let file = OpenOptions::new().write(true).open(world.path("file"));
    let file = file.expect("open");
    let (writes, requests) = cost(&world, || {
        for round in 0..2000_u64 {
            let at = (round * 7919 % 16_384) as usize * 4096;
            let block = noise(round, size);
            file.write_all_at(&block, at as u64).expect("write");
            model[at..at + size].copy_from_slice(&block);
        }
        file.sync_all().expect("fsync");
    });
    assert!(fs::read(world.behind("file")).expect("read") == model);
    println!("{writes} WRITEs, {requests} requests");
    assert!(writes <= 2000, "{writes} WRITEs");
    assert!(requests <= most, "{requests} requests");
}

#[test]
fn another_host_reads_what_a_writer_who_goes_on_has_written_within_a_second() {
    let world = World::new();
    let other = MountRequest::of(&world.server).option("noac").mount();
    let start = Instant::now();
    let millis = || start.elapsed().as_millis() as u64;
    let mut file = append_to(&world);
    let (ended, lines) = (AtomicBool::new(false), AtomicU64::new(0));
    // When each line was written; when each length was read.
    let (written, read) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = Vec::new();
            while millis() < 5000 {
                file.write_all(&[b'x'; 100]).expect("write");
                written.push(millis());
                lines.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(3));
            }
            ended.store(true, Ordering::SeqCst);
            // What it wrote last is seen although it neither syncs nor closes.
            std::thread::sleep(Duration::from_secs(3));
            written
        });
        let mut read = Vec::new();
        while !writer.is_finished() {
            let at = millis();
            let len = fs::read(other.join("log")).map_or(0, |data| data.len() as u64);
            read.push((at, len / 100));
            std::thread::sleep(Duration::from_millis(20));
        }
        (writer.join().expect("the writer"), read)
    });
    let mut latest = 0;
    for (at, seen) in &read {
        // The first line that was not seen.
        if let Some(line) = written.get(*seen as usize) {
            latest = latest.max(at.saturating_sub(*line));
        }
    }
    println!("{latest} ms at most, {} lines", written.len());
    let (_, seen) = read.last().expect("a look");
    assert_eq!(*seen, written.len() as u64, "and the last");
    // The rest is what a busy machine may take.
    assert!(latest <= 1000 + 700, "{latest} ms");
    drop(file);
}
