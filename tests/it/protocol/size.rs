//! Operations are futures, and what they may come to is part of each: one that is too
//! large overflows a stack on its way into its task.

use efs_fuse::vfs::types::{ROOT_INO, SetAttr, Waiting, WriteFlags};

use super::rig::Mount;
use crate::peer::PeerConfig;

/// Bytes. A worker's stack has 2 MiB, and a debug build keeps several copies.
const MOST: usize = 8 << 10;

#[tokio::test(start_paused = true)]
async fn no_operation_is_larger_than_a_stack_takes_many_times() {
    let mount = Mount::new(PeerConfig::default()).await;
    let (vfs, cred) = (&mount.vfs, &mount.cred);
    let range = super::locks::range(libc::F_WRLCK, 0, 1);
    let waiting = Waiting::default();
    let flags = WriteFlags::default();
    let data = bytes::Bytes::new();
    let sizes = [
        ("lookup", size_of_val(&vfs.lookup(cred, ROOT_INO, b"f"))),
        (
            "lookup_asked",
            size_of_val(&vfs.lookup_asked(cred, ROOT_INO, b"f")),
        ),
        (
            "lookup_to_open",
            size_of_val(&vfs.lookup_to_open(cred, ROOT_INO, b"f", 0, 1)),
        ),
        ("getattr", size_of_val(&vfs.getattr(cred, ROOT_INO, None))),
        (
            "setattr",
            size_of_val(&vfs.setattr(cred, 1, None, SetAttr::default())),
        ),
        ("mkdir", size_of_val(&vfs.mkdir(cred, 1, b"d", 0))),
        ("mknod", size_of_val(&vfs.mknod(cred, 1, b"d", 0, 0))),
        ("link", size_of_val(&vfs.link(cred, 1, 1, b"d"))),
        ("unlink", size_of_val(&vfs.unlink(cred, 1, b"d"))),
        ("rmdir", size_of_val(&vfs.rmdir(cred, 1, b"d"))),
        (
            "rename",
            size_of_val(&vfs.rename(cred, 1, b"d", 1, b"e", 0)),
        ),
        ("open", size_of_val(&vfs.open(cred, 1, 0))),
        ("open_found", size_of_val(&vfs.open_found(cred, 1, 0, 1))),
        ("create", size_of_val(&vfs.create(cred, 1, b"f", 0, 0))),
        ("read", size_of_val(&vfs.read(1, 0, 0, 0))),
        ("write", size_of_val(&vfs.write(1, 0, data, flags))),
        ("flush", size_of_val(&vfs.flush(1, 1))),
        ("fsync", size_of_val(&vfs.fsync(1))),
        ("release", size_of_val(&vfs.release(1))),
        (
            "setlk",
            size_of_val(&vfs.setlk(1, 1, range, true, &waiting)),
        ),
        ("getlk", size_of_val(&vfs.getlk(cred, 1, 1, range))),
        ("opendir", size_of_val(&vfs.opendir(cred, 1, 1))),
    ];
    println!("{sizes:?}");
    for (operation, size) in sizes {
        assert!(size <= MOST, "{operation}: {size} bytes");
    }
}
