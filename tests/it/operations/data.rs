//! read(2), write(2), holes, sizes and big files.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::fixtures::sys::errno;
use crate::fixtures::{World, noise};

fn read_write(world: &World, name: &str) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(world.path(name))
        .expect("open")
}

#[test]
fn every_size_around_page_and_request_borders_comes_back() {
    let world = World::new();
    const MIB: usize = 1 << 20;
    for len in [
        0,
        1,
        4095,
        4096,
        4097,
        131_071,
        131_073,
        MIB - 1,
        MIB,
        MIB + 1,
        3 * MIB + 17,
    ] {
        let data = noise(len as u64, len);
        fs::write(world.path("file"), &data).expect("write");
        assert!(
            fs::read(world.path("file")).expect("read") == data,
            "len {len} by the mount"
        );
        assert!(
            fs::read(world.behind("file")).expect("read") == data,
            "len {len} on the server"
        );
    }
}

#[test]
fn unaligned_overwrites_change_exactly_their_range() {
    let world = World::new();
    let mut model = noise(1, 300_000);
    fs::write(world.path("file"), &model).expect("write");
    let file = read_write(&world, "file");
    for (i, (at, len)) in [
        (1, 1),
        (4095, 2),
        (100_000, 50_001),
        (262_143, 3),
        (299_999, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let patch = noise(100 + i as u64, len);
        model[at..at + len].copy_from_slice(&patch);
        file.write_all_at(&patch, at as u64).expect("write");
        let mut around = vec![0; (len + 10).min(model.len() - at.saturating_sub(5))];
        file.read_exact_at(&mut around, at.saturating_sub(5) as u64)
            .expect("read");
        let start = at.saturating_sub(5);
        assert!(around == model[start..start + around.len()], "patch {i}");
    }
    drop(file);
    assert!(fs::read(world.behind("file")).expect("read behind") == model);
}

#[test]
fn holes_read_as_zeros_and_take_no_space() {
    let world = World::new();
    let file = read_write(&world, "sparse");
    file.write_all_at(b"head", 0).expect("write");
    file.write_all_at(b"tail", 64 << 20).expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(file.metadata().expect("fstat").len(), (64 << 20) + 4);
    let mut middle = vec![1; 1 << 20];
    file.read_exact_at(&mut middle, 32 << 20).expect("read");
    assert!(middle.iter().all(|&byte| byte == 0));
    assert!(fs::metadata(world.path("sparse")).expect("stat").blocks() < 1024);
}

#[test]
fn offsets_beyond_four_gigabytes_are_exact() {
    let world = World::new();
    let file = read_write(&world, "large");
    for at in [(1_u64 << 31) - 2, (1 << 32) - 2, (1 << 40) + 3] {
        file.write_all_at(b"mark", at).expect("write");
        file.sync_data().expect("fdatasync");
        let mut mark = [0; 4];
        file.read_exact_at(&mut mark, at).expect("read");
        assert_eq!(&mark, b"mark");
        let behind = File::open(world.behind("large")).expect("open behind");
        behind.read_exact_at(&mut mark, at).expect("read behind");
        assert_eq!(&mark, b"mark", "at {at}");
    }
    assert_eq!(file.metadata().expect("fstat").len(), (1 << 40) + 7);
    // ext4's own limit is 16 TiB; the server's refusal must arrive somewhere.
    let refused = file
        .write_all_at(b"x", 1 << 60)
        .and_then(|()| file.sync_all());
    assert!(matches!(
        errno(refused),
        libc::EFBIG | libc::EINVAL | libc::ENOSPC
    ));
}

#[test]
fn reads_end_at_the_end_of_the_file() {
    let world = World::new();
    fs::write(world.path("file"), noise(1, 10_000)).expect("write");
    let file = read_write(&world, "file");
    let mut buffer = vec![0; 20_000];
    assert_eq!(file.read_at(&mut buffer, 0).expect("read"), 10_000);
    assert_eq!(file.read_at(&mut buffer, 9_990).expect("read"), 10);
    assert_eq!(file.read_at(&mut buffer, 10_000).expect("read"), 0);
    assert_eq!(file.read_at(&mut buffer, 1 << 40).expect("read"), 0);
    file.write_all_at(b"more", 10_000).expect("write");
    assert_eq!(
        file.read_at(&mut buffer, 9_999).expect("read"),
        5,
        "growth is seen at once"
    );
}

#[test]
fn a_descriptor_cannot_do_what_it_was_not_opened_for() {
    let world = World::new();
    fs::write(world.path("file"), b"x").expect("write");
    let reader = File::open(world.path("file")).expect("open");
    let writer = OpenOptions::new()
        .write(true)
        .open(world.path("file"))
        .expect("open");
    assert_eq!(errno(reader.write_at(b"y", 0)), libc::EBADF);
    assert_eq!(errno(writer.read_at(&mut [0], 0)), libc::EBADF);
}

#[test]
fn data_are_on_the_server_after_fsync_and_after_close() {
    let world = World::new();
    let data = noise(3, 5 << 20);
    let mut file = File::create(world.path("file")).expect("create");
    file.write_all(&data).expect("write");
    file.sync_all().expect("fsync");
    assert!(
        fs::read(world.behind("file")).expect("read") == data,
        "after fsync"
    );
    file.write_all(b"end").expect("write");
    drop(file);
    let behind = fs::read(world.behind("file")).expect("read");
    assert!(behind[data.len()..] == *b"end", "after close");
}

#[test]
fn a_read_by_another_descriptor_sees_writes_in_flight() {
    let world = World::new();
    let writer = read_write(&world, "file");
    let reader = File::open(world.path("file")).expect("open");
    for round in 0..20 {
        let data = noise(round, 200_000);
        writer.write_all_at(&data, round * 1000).expect("write");
        let mut seen = vec![0; data.len()];
        reader.read_exact_at(&mut seen, round * 1000).expect("read");
        assert!(seen == data, "round {round}");
    }
}

#[test]
fn threads_that_write_their_own_parts_of_one_file_do_not_disturb_each_other() {
    let world = World::new();
    const PART: usize = 1 << 20;
    let file = read_write(&world, "file");
    std::thread::scope(|scope| {
        for part in 0..8_u64 {
            let file = &file;
            scope.spawn(move || {
                for (i, piece) in noise(part, PART).chunks(70_001).enumerate() {
                    let at = part * PART as u64 + i as u64 * 70_001;
                    file.write_all_at(piece, at).expect("write");
                }
            });
        }
    });
    drop(file);
    let behind = fs::read(world.behind("file")).expect("read behind");
    for (part, bytes) in behind.chunks(PART).enumerate() {
        assert!(bytes == noise(part as u64, PART), "part {part}");
    }
}

#[test]
fn a_write_the_server_refuses_is_reported_once_and_poisons_nothing() {
    // Beyond the largest offset of the server's file system: the kernel here
    // lets it pass, WRITE itself is refused.
    let world = World::new();
    let file = read_write(&world, "file");
    file.write_all_at(b"ok", 0).expect("write");
    let at = (1 << 62) + 1;
    let first = file.write_all_at(b"x", at).and_then(|()| file.sync_all());
    assert!(first.is_err(), "the refusal must reach write or fsync");
    file.write_all_at(b"still works", 0)
        .expect("a refused write does not poison the file");
    file.sync_all().expect("the error was reported once");
    let behind = fs::read(world.behind("file")).expect("read behind");
    assert_eq!(behind, b"still works");
}

#[test]
fn what_is_written_is_at_the_server_within_milliseconds_although_nobody_syncs() {
    // Files of their own: who goes on writing one is waited for longer
    // (`operations::small_writes`).
    let world = World::new();
    let mut worst = std::time::Duration::ZERO;
    for round in 1..=50_u64 {
        let name = format!("log{round}");
        let file = read_write(&world, &name);
        let line = noise(round, 100);
        file.write_all_at(&line, 0).expect("write");
        let written = std::time::Instant::now();
        let there = || (fs::read(world.behind(&name)).ok()? == line).then_some(());
        let found = crate::fixtures::process::eventually(std::time::Duration::from_secs(5), there);
        assert!(found.is_some(), "round {round}: nothing of it after 5 s");
        worst = worst.max(written.elapsed());
    }
    println!("{worst:?} at worst");
    // It lingers for 5 ms; the rest is what a busy machine may take.
    assert!(worst < std::time::Duration::from_secs(1), "{worst:?}");
}
