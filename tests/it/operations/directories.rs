//! opendir, readdir, positions, directories that change under the reader.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, MetadataExt};

use crate::fixtures::World;
use crate::fixtures::sys::{DirStream, errno};

fn fill(world: &World, dir: &str, count: usize) {
    fs::create_dir(world.behind(dir)).expect("mkdir");
    for i in 0..count {
        File::create(world.behind(format!("{dir}/{i:05}"))).expect("create");
    }
}

#[test]
fn readdir_lists_each_name_once_with_its_kind_and_inode() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    fs::write(world.path("file"), b"").expect("write");
    std::os::unix::fs::symlink("file", world.path("link")).expect("symlink");
    let list = |path| {
        let entries = fs::read_dir(path).expect("readdir").map(|entry| {
            let entry = entry.expect("entry");
            let kind = entry.file_type().expect("kind");
            (
                entry.file_name(),
                (entry.ino(), kind.is_dir(), kind.is_symlink()),
            )
        });
        entries.collect::<BTreeMap<_, _>>()
    };
    let listed = list(world.mount.path().to_owned());
    assert_eq!(listed.len(), 3);
    assert_eq!(listed, list(world.server.export()));
    for (name, (inode, ..)) in listed {
        let meta = fs::symlink_metadata(world.path(&name)).expect("lstat");
        assert_eq!(meta.ino(), inode, "{name:?}: d_ino and st_ino");
    }
}

#[test]
fn readdir_gives_dot_and_dot_dot_also_at_the_root() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    for path in [world.mount.path().to_owned(), world.path("dir")] {
        let mut stream = DirStream::open(&path).expect("opendir");
        let mut names = Vec::new();
        while let Some(name) = stream.next().expect("readdir") {
            names.push(name);
        }
        for dots in [".", ".."] {
            assert_eq!(
                names.iter().filter(|name| *name == dots).count(),
                1,
                "{dots}"
            );
        }
    }
}

#[test]
fn an_empty_directory_and_a_wrong_path() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    fs::write(world.path("file"), b"").expect("write");
    assert_eq!(fs::read_dir(world.path("dir")).expect("readdir").count(), 0);
    assert_eq!(errno(DirStream::open(&world.path("file"))), libc::ENOTDIR);
    assert_eq!(errno(DirStream::open(&world.path("none"))), libc::ENOENT);
}

#[test]
fn thousands_of_names_come_complete_and_with_right_attributes() {
    let world = World::new();
    fill(&world, "dir", 3000);
    for i in (0..3000).step_by(7) {
        fs::write(world.behind(format!("dir/{i:05}")), vec![b'x'; i]).expect("write");
    }
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(world.path("dir")).expect("readdir") {
        let entry = entry.expect("entry");
        let i: usize = entry
            .file_name()
            .to_str()
            .expect("utf-8")
            .parse()
            .expect("number");
        let len = if i.is_multiple_of(7) { i } else { 0 };
        assert_eq!(entry.metadata().expect("stat").len(), len as u64, "{i}");
        assert!(names.insert(i), "{i} twice");
    }
    assert_eq!(names.len(), 3000);
}

#[test]
fn deleting_while_listing_gives_each_stable_name_once_and_ends() {
    let world = World::new();
    fill(&world, "dir", 3000);
    let mut stream = DirStream::open(&world.path("dir")).expect("opendir");
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut read = 0;
    while let Some(name) = stream.next().expect("readdir") {
        let name = name.into_string().expect("utf-8");
        if name.starts_with('.') {
            continue;
        }
        read += 1;
        assert!(read <= 6000, "the listing does not end");
        // Even names go away while the stream is open: by the mount, and
        // every tenth by another host.
        let i: usize = name.parse().expect("number");
        if i.is_multiple_of(2) {
            let path = if i.is_multiple_of(10) {
                world.behind(format!("dir/{name}"))
            } else {
                world.path(format!("dir/{name}"))
            };
            fs::remove_file(path).expect("unlink");
        }
        *seen.entry(name).or_default() += 1;
    }
    for i in (1..3000).step_by(2) {
        let name = format!("{i:05}");
        assert_eq!(seen.get(&name), Some(&1), "{name}");
    }
    assert_eq!(
        fs::read_dir(world.behind("dir")).expect("readdir").count(),
        1500
    );
}

#[test]
fn rm_rf_of_a_big_directory_leaves_nothing() {
    let world = World::new();
    fill(&world, "dir", 3000);
    fs::create_dir_all(world.path("dir/a/b/c")).expect("mkdir");
    fs::remove_dir_all(world.path("dir")).expect("rm -rf");
    assert!(!world.behind("dir").exists());
}

#[test]
fn positions_lead_back_to_the_same_place() {
    let world = World::new();
    fill(&world, "dir", 500);
    let mut stream = DirStream::open(&world.path("dir")).expect("opendir");
    let mut positions = Vec::new();
    let mut names = Vec::new();
    loop {
        let at = stream.tell();
        let Some(name) = stream.next().expect("readdir") else {
            break;
        };
        positions.push(at);
        names.push(name);
    }
    assert_eq!(names.len(), 502);
    for i in [0, 501, 250, 1, 77, 499] {
        stream.seek(positions[i]);
        for name in names[i..].iter().take(5) {
            assert_eq!(
                stream.next().expect("readdir").as_ref(),
                Some(name),
                "after seek to {i}"
            );
        }
    }
    stream.rewind();
    let mut again = Vec::new();
    while let Some(name) = stream.next().expect("readdir") {
        again.push(name);
    }
    assert_eq!(again, names);
}

#[test]
fn rewinddir_shows_what_was_added_and_removed_meanwhile() {
    let world = World::new();
    fill(&world, "dir", 20);
    let mut stream = DirStream::open(&world.path("dir")).expect("opendir");
    let mut all = || {
        let mut names = BTreeSet::new();
        while let Some(name) = stream.next().expect("readdir") {
            names.insert(name.into_string().expect("utf-8"));
        }
        stream.rewind();
        names
    };
    assert_eq!(all().len(), 22);
    fs::write(world.path("dir/added"), b"").expect("write");
    fs::remove_file(world.path("dir/00007")).expect("unlink");
    let names = all();
    assert!(names.contains("added") && !names.contains("00007"));
}

#[test]
fn an_open_directory_survives_its_removal() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    let mut stream = DirStream::open(&world.path("dir")).expect("opendir");
    fs::remove_dir(world.path("dir")).expect("rmdir");
    // POSIX asks for no error and no foreign names; the end or ENOENT are both honest.
    for _ in 0..10 {
        match stream.next() {
            Ok(None) => break,
            Ok(Some(name)) => assert!(name == "." || name == "..", "{name:?}"),
            Err(err) => {
                assert!(
                    matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)),
                    "{err}"
                );
                break;
            }
        }
    }
}

#[test]
fn own_changes_are_listed_at_once() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    for i in 0..20 {
        fs::write(world.path(format!("dir/{i}")), b"").expect("write");
        assert_eq!(
            fs::read_dir(world.path("dir")).expect("readdir").count(),
            i + 1
        );
    }
    fs::rename(world.path("dir/3"), world.path("moved")).expect("rename");
    fs::remove_file(world.path("dir/4")).expect("unlink");
    assert_eq!(
        fs::read_dir(world.path("dir")).expect("readdir").count(),
        18
    );
}

/// What a page was read before may have changed by our own doing when it is shown.
#[test]
fn names_made_while_their_directory_is_open_are_listed_with_their_inode() {
    let world = World::new();
    let behind = world.behind("dir");
    fs::create_dir(&behind).expect("mkdir");
    for number in 0..3000 {
        fs::write(behind.join(format!("old{number:04}")), b"").expect("write");
    }
    let dir = world.path("dir");
    let look = |entry: fs::DirEntry| match fs::symlink_metadata(entry.path()) {
        Ok(meta) => {
            assert_eq!(meta.ino(), entry.ino(), "{:?}", entry.file_name());
            1
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
            0
        }
    };
    for round in 0..3 {
        let mut entries = fs::read_dir(&dir).expect("opendir");
        if round > 0 {
            let first = entries.next().expect("a name").expect("readdir");
            look(first);
        }
        for number in 0..20 {
            let name = format!("new{round}.{number}");
            fs::write(dir.join(&name), b"").expect("write");
            let gone = format!("old{:04}", 1000 * round + 37 * number);
            fs::remove_file(dir.join(gone)).expect("unlink");
        }
        let there: usize = entries.map(|entry| look(entry.expect("readdir"))).sum();
        // Names that come or go meanwhile may be listed or not.
        assert!((2900..=3060).contains(&there), "{there}");
        if round == 0 {
            assert_eq!(there, 3000, "nothing was read before");
        }
    }
}
