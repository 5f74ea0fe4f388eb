//! mmap(2).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use crate::fixtures::process::run;
use crate::fixtures::sys::Mapping;
use crate::fixtures::{World, noise};

const LEN: usize = 300_000;

fn open(world: &World) -> File {
    fs::write(world.path("file"), noise(1, LEN)).expect("write");
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(world.path("file"))
        .expect("open")
}

#[test]
fn a_shared_mapping_shows_the_file_and_msync_takes_it_to_the_server() {
    let world = World::new();
    let file = open(&world);
    let map = Mapping::new(&file, LEN, libc::MAP_SHARED).expect("mmap");
    assert!(map.get(0, LEN) == noise(1, LEN));
    map.put(4090, b"across a page");
    map.put(LEN - 3, b"end");
    let mut bytes = [0; 13];
    file.read_exact_at(&mut bytes, 4090).expect("read");
    assert_eq!(&bytes, b"across a page", "read(2) sees the mapping at once");
    map.sync().expect("msync");
    let mut model = noise(1, LEN);
    model[4090..4103].copy_from_slice(b"across a page");
    model[LEN - 3..].copy_from_slice(b"end");
    assert!(fs::read(world.behind("file")).expect("read behind") == model);
}

#[test]
fn a_mapping_outlives_its_descriptor_and_its_changes_reach_the_server() {
    let world = World::new();
    let file = open(&world);
    let map = Mapping::new(&file, LEN, libc::MAP_SHARED).expect("mmap");
    drop(file);
    map.put(1000, b"after close");
    map.sync().expect("msync");
    drop(map);
    let behind = fs::read(world.behind("file")).expect("read behind");
    assert_eq!(&behind[1000..1011], b"after close");
}

#[test]
fn writes_are_seen_through_a_mapping() {
    let world = World::new();
    let file = open(&world);
    let map = Mapping::new(&file, LEN, libc::MAP_SHARED).expect("mmap");
    assert_eq!(map.get(5000, 1), noise(1, LEN)[5000..5001]);
    file.write_all_at(b"written", 5000).expect("write");
    assert_eq!(map.get(5000, 7), b"written");
}

#[test]
fn a_private_mapping_changes_nothing() {
    let world = World::new();
    let file = open(&world);
    let map = Mapping::new(&file, LEN, libc::MAP_PRIVATE).expect("mmap");
    map.put(0, b"mine alone");
    assert_eq!(map.get(0, 10), b"mine alone");
    drop(map);
    file.sync_all().expect("fsync");
    assert!(fs::read(world.path("file")).expect("read") == noise(1, LEN));
    assert!(fs::read(world.behind("file")).expect("read behind") == noise(1, LEN));
}

#[test]
fn a_mapped_file_that_shrinks_and_grows_shows_zeros() {
    let world = World::new();
    let file = open(&world);
    let map = Mapping::new(&file, LEN, libc::MAP_SHARED).expect("mmap");
    map.put(200_000, b"to be cut");
    file.set_len(100_000).expect("ftruncate");
    file.set_len(LEN as u64).expect("ftruncate");
    assert_eq!(map.get(200_000, 9), [0; 9]);
    map.put(200_000, b"new");
    map.sync().expect("msync");
    let behind = fs::read(world.behind("file")).expect("read behind");
    assert!(behind[..100_000] == noise(1, LEN)[..100_000]);
    assert_eq!(&behind[200_000..200_004], b"new\0");
}

#[test]
fn programs_run_from_the_mount() {
    let world = World::new();
    // By another process: a descriptor of ours, open for writing, could be
    // shared with a child of another test and make the program "busy".
    run(
        Command::new("cp").arg("/bin/sh").arg(world.path("program")),
        Duration::from_secs(30),
    )
    .expect_success("cp");
    let done = run(
        Command::new(world.path("program")).args(["-c", "echo from the mount"]),
        Duration::from_secs(30),
    );
    assert_eq!(done.stdout, "from the mount\n");
}
