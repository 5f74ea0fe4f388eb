//! unlink(2), also of files that are open.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use crate::fixtures::process::eventually;
use crate::fixtures::sys::errno;
use crate::fixtures::{World, noise};

#[test]
fn unlink_removes_the_name_at_once_everywhere() {
    let world = World::new();
    fs::write(world.path("file"), b"x").expect("write");
    fs::create_dir(world.path("dir")).expect("mkdir");
    fs::remove_file(world.path("file")).expect("unlink");
    assert!(!world.behind("file").exists());
    assert_eq!(errno(fs::metadata(world.path("file"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_file(world.path("file"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_file(world.path("dir"))), libc::EISDIR);
    fs::write(world.path("file"), b"again").expect("the name is free");
    assert_eq!(fs::read(world.behind("file")).expect("read"), b"again");
}

#[test]
fn an_unlinked_open_file_stays_readable_and_writable_and_leaves_nothing() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    let path = world.path("dir/file");
    fs::write(&path, noise(1, 300_000)).expect("write");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    fs::remove_file(&path).expect("unlink");
    assert!(!path.exists());
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    let mut bytes = vec![0; 300_000];
    file.read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes == noise(1, 300_000));
    file.write_all_at(&noise(2, 100_000), 250_000)
        .expect("write");
    file.sync_all().expect("fsync");
    file.read_exact_at(&mut bytes[..100_000], 250_000)
        .expect("read");
    assert!(bytes[..100_000] == noise(2, 100_000));
    file.set_len(10).expect("ftruncate");
    assert_eq!(file.metadata().expect("fstat").len(), 10);
    drop(file);
    // At once: what is still to be removed in it is waited for.
    fs::remove_dir(world.path("dir")).expect("the directory is empty");
}

#[test]
fn an_unlinked_file_made_anew_is_another_file() {
    let world = World::new();
    let path = world.path("file");
    fs::write(&path, b"old").expect("write");
    let old = fs::File::open(&path).expect("open");
    fs::remove_file(&path).expect("unlink");
    fs::write(&path, b"new!").expect("write");
    let mut bytes = [0; 3];
    old.read_exact_at(&mut bytes, 0).expect("read");
    assert_eq!(&bytes, b"old");
    assert_eq!(fs::read(&path).expect("read"), b"new!");
}

#[test]
fn temporary_files_the_way_programs_make_them_work() {
    // Open, unlink, use: mkstemp, sort, databases.
    let world = World::new();
    let files: Vec<_> = (0..100_u64)
        .map(|i| {
            let path = world.path(format!("tmp{i}"));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .expect("create");
            fs::remove_file(&path).expect("unlink");
            file.write_all_at(&noise(i, 5000), 0).expect("write");
            file
        })
        .collect();
    for (i, file) in files.iter().enumerate() {
        let mut bytes = vec![0; 5000];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes == noise(i as u64, 5000), "file {i}");
    }
    // While they are open the server keeps them under hidden names only.
    let names = |hidden: bool| {
        fs::read_dir(world.server.export())
            .expect("readdir")
            .map(|entry| entry.expect("entry").file_name())
            .filter(|name| name.to_string_lossy().starts_with(".nfs") == hidden)
            .count()
    };
    assert_eq!(names(false), 0);
    drop(files);
    eventually(Duration::from_secs(5), || (names(true) == 0).then_some(()));
}

#[test]
fn a_file_removed_by_another_host_stays_usable_where_it_is_open() {
    let world = World::new();
    fs::write(world.path("file"), b"content").expect("write");
    let file = fs::File::open(world.path("file")).expect("open");
    fs::remove_file(world.behind("file")).expect("unlink behind");
    let mut bytes = [0; 7];
    file.read_exact_at(&mut bytes, 0)
        .expect("the server keeps what is open");
    assert_eq!(&bytes, b"content");
}
