//! A mount that reaches over several file systems of the server: its pseudo file system,
//! and an export in it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::MountRequest;
use crate::fixtures::sys::{self, DirStream};

#[test]
fn the_servers_pseudo_root_is_seen_as_any_directory_and_exports_tell_their_own_space() {
    let server = Server::start(ServerOptions {
        pseudo: "/volumes/data",
        ..ServerOptions::default()
    });
    let device = server.device("/");
    let mount = MountRequest::new(device, server.port()).mount();
    let root = fs::metadata(mount.path()).expect("stat");
    assert_ne!(root.ino(), 0);
    let mut names: Vec<OsString> = Vec::new();
    let mut stream = DirStream::open(mount.path()).expect("opendir");
    while let Some(name) = stream.next().expect("readdir") {
        names.push(name);
    }
    names.sort();
    assert_eq!(names, [".", "..", "volumes"]);
    fs::write(mount.join("volumes/data/file"), b"content").expect("write");
    let behind = sys::statvfs(&server.export()).expect("statvfs");
    let total = |s: &libc::statvfs| s.f_blocks * s.f_frsize;
    for path in ["volumes/data", "volumes/data/file"] {
        let space = sys::statvfs(&mount.join(path)).expect("statvfs");
        let (a, b) = (total(&space), total(&behind));
        assert!(a.abs_diff(b) <= b / 100, "{path}: {a} and {b}");
    }
    let pseudo = sys::statvfs(mount.path()).expect("statvfs");
    assert_ne!(total(&pseudo), total(&behind), "it has no space of its own");
    // One st_dev, and so no number twice.
    let mut numbers = vec![root.ino()];
    for path in ["volumes", "volumes/data", "volumes/data/file"] {
        let meta = fs::metadata(mount.join(path)).expect("stat");
        assert_eq!(meta.dev(), root.dev());
        assert!(!numbers.contains(&meta.ino()), "{path}");
        numbers.push(meta.ino());
    }
    let listed = fs::read_dir(mount.join("volumes/data")).expect("readdir");
    let listed = listed.map(|entry| entry.expect("entry").ino());
    assert_eq!(listed.collect::<Vec<_>>(), numbers[3..]);
}
