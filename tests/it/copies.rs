//! A tree of many files and one big file, copied in, compared after a remount.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixtures::process::run;
use crate::fixtures::{World, noise, sys};

/// Smaller in the suite than in `scripts/stress`.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
        _ => default,
    }
}

/// A tree with what source trees have: nested directories, empty and large
/// files, odd modes and times, symlinks, hard links.
fn plant(root: &Path, files: u64) {
    for i in 0..files {
        let dir = root.join(format!("d{}/e{}", i % 17, i % 101));
        fs::create_dir_all(&dir).expect("mkdir");
        let path = dir.join(format!("file-{i}"));
        let len = match i % 50 {
            0 => 0,
            1 => 100_000 + i as usize % 4099,
            _ => (i * 7919 % 6000) as usize,
        };
        fs::write(&path, noise(i, len)).expect("write");
        match i % 10 {
            0 => sys::chmod(&path, 0o755).expect("chmod"),
            1 => sys::chmod(&path, 0o400).expect("chmod"),
            2 => std::os::unix::fs::symlink("../up", dir.join(format!("link-{i}"))).expect("link"),
            3 => fs::hard_link(&path, dir.join(format!("twin-{i}"))).expect("link"),
            _ => {}
        }
        let time = (1_000_000_000 + i as i64, i as i64 * 1000 % 1_000_000_000);
        sys::set_times(&path, time, time).expect("utimensat");
    }
}

#[derive(Debug, PartialEq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    mtime: (i64, i64),
    content: Vec<u8>,
}

/// Everything below `root`, by relative path. Directories keep no times: the
/// copy of a directory is touched by the copies in it.
fn survey(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("readdir") {
            let path = entry.expect("entry").path();
            let meta = fs::symlink_metadata(&path).expect("lstat");
            let kind = meta.file_type();
            let content = if kind.is_dir() {
                todo.push(path.clone());
                Vec::new()
            } else if kind.is_symlink() {
                fs::read_link(&path)
                    .expect("readlink")
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).expect("read")
            };
            let entry = Entry {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                links: meta.nlink(),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                content,
            };
            let name = path.strip_prefix(root).expect("below the root").to_owned();
            assert!(
                found.insert(name, entry).is_none(),
                "{} is listed twice",
                path.display()
            );
        }
    }
    found
}

#[track_caller]
fn same(source: &BTreeMap<PathBuf, Entry>, copy: &BTreeMap<PathBuf, Entry>) {
    for (path, entry) in source {
        let other = copy
            .get(path)
            .unwrap_or_else(|| panic!("{} is missing", path.display()));
        // Not assert_eq: the contents are long.
        assert!(
            entry.content == other.content,
            "{}: the content differs",
            path.display()
        );
        // nfs-ganesha takes SETATTR of a symbolic link's times and does nothing.
        let is_link = entry.mode & libc::S_IFMT == libc::S_IFLNK;
        assert!(
            (entry.mode, entry.owner, entry.links) == (other.mode, other.owner, other.links)
                && (is_link || entry.mtime == other.mtime),
            "{}: {entry:?}\n{other:?}",
            path.display()
        );
    }
    assert_eq!(source.len(), copy.len(), "names that were never copied");
}

#[test]
fn a_copied_tree_compares_equal_after_remount() {
    let files = setting("EFS_FUSE_TREE_FILES", 1500);
    let limit = Duration::from_secs(300 + files / 50);
    let world = World::with(|request| request.time_limit(limit));
    let source = tempfile::tempdir().expect("temporary directory");
    plant(source.path(), files);
    let planted = survey(source.path());
    let done = run(
        Command::new("cp")
            .arg("-a")
            .arg(source.path().join("."))
            .arg(world.path("tree")),
        limit,
    )
    .expect_success("cp -a");
    println!("{} names copied in {:?}", planted.len(), done.took);
    let World { mount, server } = world;
    let mount = mount.remount();
    same(&planted, &survey(&mount.join("tree")));
    same(&planted, &survey(&server.export().join("tree")));
    fs::remove_dir_all(mount.join("tree")).expect("rm -rf");
    assert_eq!(fs::read_dir(server.export()).expect("readdir").count(), 0);
}

#[test]
fn a_big_file_compares_equal_after_remount() {
    const PIECE: usize = 4 << 20;
    let pieces = setting("EFS_FUSE_BIG_FILE_MIB", 256) / 4;
    let limit = Duration::from_secs(300 + pieces);
    let world = World::with(|request| request.time_limit(limit));
    let mut file = File::create(world.path("big")).expect("create");
    for piece in 0..pieces {
        file.write_all(&noise(piece, PIECE)).expect("write");
    }
    drop(file);
    let World { mount, server } = world;
    let mount = mount.remount();
    for path in [mount.join("big"), server.export().join("big")] {
        let mut file = File::open(&path).expect("open");
        assert_eq!(file.metadata().expect("fstat").len(), pieces * PIECE as u64);
        let mut bytes = vec![0; PIECE];
        for piece in 0..pieces {
            file.read_exact(&mut bytes).expect("read");
            assert!(
                bytes == noise(piece, PIECE),
                "piece {piece} of {}",
                path.display()
            );
        }
    }
}
