//! mkdir, rmdir, symlink, readlink, link, mknod.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::fixtures::World;
use crate::fixtures::sys::{self, errno};

#[test]
fn mkdir_and_rmdir_keep_the_link_counts() {
    let world = World::new();
    let links = || fs::metadata(world.mount.path()).expect("stat").nlink();
    let before = links();
    fs::create_dir(world.path("dir")).expect("mkdir");
    assert!(world.behind("dir").is_dir());
    assert_eq!(links(), before + 1);
    assert_eq!(fs::metadata(world.path("dir")).expect("stat").nlink(), 2);
    fs::create_dir(world.path("dir/sub")).expect("mkdir");
    assert_eq!(fs::metadata(world.path("dir")).expect("stat").nlink(), 3);
    assert_eq!(errno(fs::remove_dir(world.path("dir"))), libc::ENOTEMPTY);
    fs::remove_dir(world.path("dir/sub")).expect("rmdir");
    fs::remove_dir(world.path("dir")).expect("rmdir");
    assert!(!world.behind("dir").exists());
    assert_eq!(links(), before);
}

#[test]
fn mkdir_and_rmdir_refuse_what_posix_refuses() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    fs::write(world.path("file"), b"").expect("write");
    assert_eq!(errno(fs::create_dir(world.path("dir"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(world.path("file"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(world.path("none/dir"))), libc::ENOENT);
    assert_eq!(errno(fs::create_dir(world.path("file/dir"))), libc::ENOTDIR);
    assert_eq!(
        errno(fs::create_dir(world.path("n".repeat(256)))),
        libc::ENAMETOOLONG
    );
    assert_eq!(errno(fs::remove_dir(world.path("none"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(world.path("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_dir(world.path("dir/."))), libc::EINVAL);
    assert!(world.behind("dir").is_dir());
}

#[test]
fn names_of_any_bytes_and_of_255_bytes_are_kept() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    let longest = "é".repeat(127) + "x";
    for name in [
        "with space".as_bytes(),
        "naïve-日本語".as_bytes(),
        b"tab\tnewline\nquote\"",
        b"..three",
        b"latin1-\xe9",
        longest.as_bytes(),
    ] {
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        fs::write(world.path(name), b"x").unwrap_or_else(|err| panic!("{name:?}: {err}"));
        assert!(world.behind(name).is_file(), "{name:?}");
        let listed = fs::read_dir(world.mount.path())
            .expect("readdir")
            .any(|entry| entry.expect("entry").file_name() == name);
        assert!(listed, "{name:?}");
        fs::remove_file(world.path(name)).expect("unlink");
    }
}

#[test]
fn symlinks_keep_their_target_whatever_it_is() {
    let world = World::new();
    let long = "d/".repeat(500) + "file";
    let longest = "x".repeat(4095);
    for (i, target) in ["file", "../up", "/absolute/path", " ", &long, &longest]
        .into_iter()
        .enumerate()
    {
        let name = format!("link{i}");
        match symlink(target, world.path(&name)) {
            Ok(()) => {}
            // The server's own limit: its disk takes no longer one either.
            Err(err) if symlink(target, world.behind("probe")).is_err() => {
                assert_eq!(err.raw_os_error(), Some(libc::ENAMETOOLONG));
                continue;
            }
            Err(err) => panic!("{name}: {err}"),
        }
        let _ = fs::remove_file(world.behind("probe"));
        assert_eq!(
            fs::read_link(world.path(&name)).expect("readlink"),
            PathBuf::from(target)
        );
        assert_eq!(
            fs::read_link(world.behind(&name)).expect("readlink"),
            PathBuf::from(target)
        );
        let meta = fs::symlink_metadata(world.path(&name)).expect("lstat");
        assert!(meta.file_type().is_symlink());
        assert_eq!(meta.len(), target.len() as u64);
    }
}

#[test]
fn paths_go_through_symlinks_and_readlink_refuses_files() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    fs::write(world.path("dir/file"), b"content").expect("write");
    symlink("dir", world.path("link")).expect("symlink");
    assert_eq!(fs::read(world.path("link/file")).expect("read"), b"content");
    assert_eq!(errno(fs::read_link(world.path("dir/file"))), libc::EINVAL);
    assert_eq!(errno(symlink("x", world.path("link"))), libc::EEXIST);
}

#[test]
fn a_link_replaced_on_the_server_is_followed_anew() {
    let world = World::with(|request| request.option("noac"));
    symlink("one", world.path("link")).expect("symlink");
    assert_eq!(
        fs::read_link(world.path("link")).expect("readlink"),
        Path::new("one")
    );
    fs::remove_file(world.behind("link")).expect("unlink behind");
    symlink("two", world.behind("link")).expect("symlink behind");
    assert_eq!(
        fs::read_link(world.path("link")).expect("readlink"),
        Path::new("two")
    );
}

#[test]
fn hard_links_share_content_and_count() {
    let world = World::new();
    fs::write(world.path("a"), b"one").expect("write");
    fs::create_dir(world.path("dir")).expect("mkdir");
    fs::hard_link(world.path("a"), world.path("dir/b")).expect("link");
    let (a, b) = (
        fs::metadata(world.path("a")).expect("stat"),
        fs::metadata(world.path("dir/b")).expect("stat"),
    );
    assert_eq!((a.nlink(), b.nlink()), (2, 2));
    assert_eq!(a.ino(), b.ino());
    fs::write(world.path("dir/b"), b"two").expect("write");
    assert_eq!(fs::read(world.path("a")).expect("read"), b"two");
    fs::remove_file(world.path("a")).expect("unlink");
    assert_eq!(fs::metadata(world.path("dir/b")).expect("stat").nlink(), 1);
    assert_eq!(fs::read(world.behind("dir/b")).expect("read"), b"two");
    assert_eq!(
        errno(fs::hard_link(world.path("none"), world.path("c"))),
        libc::ENOENT
    );
    assert_eq!(
        errno(fs::hard_link(world.path("dir/b"), world.path("dir"))),
        libc::EEXIST
    );
    assert_eq!(
        errno(fs::hard_link(world.path("dir"), world.path("c"))),
        libc::EPERM
    );
}

#[test]
fn hard_link_to_a_symlink_is_a_link_to_the_link() {
    let world = World::new();
    symlink("nowhere", world.path("link")).expect("symlink");
    fs::hard_link(world.path("link"), world.path("same")).expect("link");
    assert_eq!(
        fs::read_link(world.behind("same")).expect("readlink"),
        Path::new("nowhere")
    );
    assert_eq!(
        fs::symlink_metadata(world.path("same"))
            .expect("lstat")
            .nlink(),
        2
    );
}

#[test]
fn fifos_connect_local_processes() {
    let world = World::new();
    sys::mknod(&world.path("fifo"), libc::S_IFIFO | 0o600, 0).expect("mkfifo");
    let meta = fs::metadata(world.path("fifo")).expect("stat");
    assert!(meta.file_type().is_fifo());
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert!(
        fs::metadata(world.behind("fifo"))
            .expect("stat")
            .file_type()
            .is_fifo()
    );
    let path = world.path("fifo");
    let writer = std::thread::spawn(move || fs::write(path, b"through the pipe"));
    assert_eq!(
        fs::read(world.path("fifo")).expect("read"),
        b"through the pipe"
    );
    writer.join().expect("thread").expect("write");
}

#[test]
fn sockets_can_be_bound_and_connected() {
    let world = World::new();
    // A socket address holds 108 bytes: bind by a short name through /proc.
    let dir = fs::File::open(world.mount.path()).expect("open");
    let short = PathBuf::from(format!("/proc/self/fd/{}/sock", sys::fd(&dir)));
    let listener = UnixListener::bind(&short).expect("bind");
    assert!(
        fs::metadata(world.behind("sock"))
            .expect("stat")
            .file_type()
            .is_socket()
    );
    UnixStream::connect(&short).expect("connect");
    drop(listener);
    fs::remove_file(world.path("sock")).expect("unlink");
    sys::mknod(&world.path("plain"), libc::S_IFSOCK | 0o600, 0).expect("mknod");
    sys::mknod(&world.path("file"), libc::S_IFREG | 0o640, 0).expect("mknod");
    assert_eq!(
        fs::metadata(world.behind("file")).expect("stat").mode(),
        0o100_640
    );
}

#[test]
fn device_nodes_are_made_by_the_server_or_refused_with_eperm() {
    let world = World::new();
    for (name, kind) in [("char", libc::S_IFCHR), ("block", libc::S_IFBLK)] {
        match sys::mknod(&world.path(name), kind | 0o600, libc::makedev(1, 3)) {
            Ok(()) => {
                let behind = fs::symlink_metadata(world.behind(name)).expect("stat behind");
                assert_eq!(behind.mode() & libc::S_IFMT, kind);
                assert_eq!(behind.rdev(), libc::makedev(1, 3));
            }
            Err(err) => {
                assert_eq!(err.raw_os_error(), Some(libc::EPERM));
                assert!(!world.behind(name).exists());
            }
        }
    }
}

#[test]
fn parallel_creates_in_one_directory_all_happen() {
    let world = World::new();
    const THREADS: usize = 128;
    const EACH: usize = 4;
    fs::create_dir(world.path("dir")).expect("mkdir");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let dir = world.path("dir");
            scope.spawn(move || {
                for i in 0..EACH {
                    let path = dir.join(format!("{thread:03}-{i}"));
                    fs::write(&path, format!("{thread} {i}")).expect("create");
                    assert_eq!(
                        fs::read_to_string(&path).expect("read"),
                        format!("{thread} {i}")
                    );
                }
            });
        }
    });
    for dir in [world.path("dir"), world.behind("dir")] {
        assert_eq!(fs::read_dir(dir).expect("readdir").count(), THREADS * EACH);
    }
}
