//! name_to_handle_at(2) and open_by_handle_at(2).

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::fixtures::World;
use crate::fixtures::sys::errno;

#[repr(C)]
#[derive(Clone)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    data: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
    let mut handle = Handle {
        bytes: 128,
        kind: 0,
        data: [0; 128],
    };
    let mut mount: libc::c_int = 0;
    // SAFETY: all pointers live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    handle
}

fn open(mount: &File, handle: &Handle, flags: libc::c_int) -> io::Result<File> {
    let mut handle = handle.clone();
    // SAFETY: the pointer lives through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            // Programs that other tests start meanwhile are not to have it.
            flags | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now.
    Ok(unsafe { File::from_raw_fd(fd as libc::c_int) })
}

/// The kernel forgets every inode that nobody uses.
fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
}

fn path_of(file: &File) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("readlink")
}

#[test]
fn a_handle_opens_the_object_also_after_the_kernel_has_forgotten_it() {
    let world = World::new();
    fs::create_dir_all(world.path("a/b")).expect("mkdir");
    fs::write(world.path("a/b/file"), b"content").expect("write");
    let root = File::open(world.mount.path()).expect("open");
    let file = handle_of(&world.path("a/b/file"));
    let dir = handle_of(&world.path("a/b"));
    let top = handle_of(world.mount.path());
    for round in 0..3 {
        if round > 0 {
            forget();
        }
        let mut content = String::new();
        open(&root, &file, libc::O_RDONLY)
            .and_then(|mut file| file.read_to_string(&mut content))
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(content, "content");
        let dir = open(&root, &dir, libc::O_RDONLY | libc::O_DIRECTORY)
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(path_of(&dir), world.path("a/b"), "connected");
        let top = open(&root, &top, libc::O_RDONLY).expect("the root");
        assert_eq!(path_of(&top), world.mount.path());
    }
    // Moved: what its directory holds may have to be looked up again.
    fs::rename(world.path("a/b"), world.path("c")).expect("rename");
    forget();
    let moved = open(&root, &dir, libc::O_RDONLY).expect("the same directory");
    assert_eq!(path_of(&moved), world.path("c"));
    fs::metadata(world.path("c/file")).expect("stat");
    forget();
    let file = open(&root, &file, libc::O_RDONLY).expect("the same file");
    assert_eq!(file.metadata().expect("fstat").len(), 7);
}

#[test]
fn a_handle_of_what_is_removed_is_stale() {
    let world = World::new();
    fs::write(world.path("file"), b"content").expect("write");
    fs::create_dir(world.path("dir")).expect("mkdir");
    let root = File::open(world.mount.path()).expect("open");
    let (file, dir) = (
        handle_of(&world.path("file")),
        handle_of(&world.path("dir")),
    );
    fs::remove_file(world.path("file")).expect("unlink");
    fs::remove_dir(world.path("dir")).expect("rmdir");
    for _ in 0..2 {
        assert_eq!(errno(open(&root, &file, libc::O_RDONLY)), libc::ESTALE);
        assert_eq!(errno(open(&root, &dir, libc::O_RDONLY)), libc::ESTALE);
        forget();
    }
    // The same name, and perhaps the same number, is another file.
    fs::write(world.path("file"), b"other").expect("write");
    assert_eq!(errno(open(&root, &file, libc::O_RDONLY)), libc::ESTALE);
}

#[test]
fn what_was_removed_or_replaced_while_it_is_open_has_no_links() {
    let world = World::new();
    for (name, by_rename) in [("one", true), ("two", false)] {
        fs::create_dir(world.path(name)).expect("mkdir");
        fs::create_dir(world.path("new")).expect("mkdir");
        let dir = File::open(world.path(name)).expect("open");
        if by_rename {
            fs::rename(world.path("new"), world.path(name)).expect("rename");
        } else {
            fs::remove_dir(world.path(name)).expect("rmdir");
        }
        assert_eq!(dir.metadata().expect("fstat").nlink(), 0, "{name}");
    }
    fs::write(world.path("file"), b"old").expect("write");
    fs::write(world.path("other"), b"new").expect("write");
    let file = File::open(world.path("file")).expect("open");
    fs::rename(world.path("other"), world.path("file")).expect("rename");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
}

/// As `docs/SEMANTICS.md` says it: FUSE does not tell of such a descriptor, nor of a bind
/// mount.
#[test]
fn a_descriptor_of_o_path_does_not_keep_the_file() {
    use std::os::unix::fs::OpenOptionsExt;
    let world = World::new();
    fs::write(world.path("file"), b"content").expect("write");
    let mut path_only = fs::OpenOptions::new();
    let file = path_only
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(world.path("file"))
        .expect("open");
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    assert_eq!(fs::read(&again).expect("read"), b"content");
    fs::remove_file(world.path("file")).expect("unlink");
    assert_eq!(errno(File::open(&again)), libc::ESTALE);
}
