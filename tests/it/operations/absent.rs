//! What NFSv4.1 has not: extended attributes, ACLs, preallocation, clones and maps of a file.
//! Programs are told so by the errno after which they fall back, and the file stays as it was.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::ptr;

use crate::fixtures::sys::errno;
use crate::fixtures::{World, noise};

/// ENOTSUP is the same number.
const NOT_SUPPORTED: i32 = libc::EOPNOTSUPP;

/// The two that look into a file's structure (linux/fs.h, linux/fiemap.h); libc has no names
/// for them.
const FICLONE: libc::Ioctl = 0x4004_9409;
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b;

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).expect("open")
}

/// What a call has returned, as std has it.
fn result(returned: impl Into<i64>) -> io::Result<u64> {
    u64::try_from(returned.into()).map_err(|_| io::Error::last_os_error())
}

/// A file with data, and all that must be the same after a call that is not supported.
struct Untouched {
    // Dropped in this order: a mount that is in use is not unmounted.
    file: File,
    world: World,
    before: (Vec<u8>, u32, u64, i64, i64),
}

impl Untouched {
    fn new() -> Self {
        let world = World::new();
        fs::write(world.path("file"), noise(1, 10_000)).expect("write");
        let file = open(&world.path("file"));
        let before = Self::state(&world);
        Self {
            world,
            file,
            before,
        }
    }

    fn state(world: &World) -> (Vec<u8>, u32, u64, i64, i64) {
        let path = world.behind("file");
        let meta = fs::metadata(&path).expect("stat behind");
        let content = fs::read(&path).expect("read behind");
        let (mode, blocks) = (meta.mode(), meta.blocks());
        (content, mode, blocks, meta.mtime(), meta.mtime_nsec())
    }

    #[track_caller]
    fn check(&self, what: &str) {
        let after = Self::state(&self.world);
        assert!(after == self.before, "{what} has touched the file");
        let shown = fs::read(self.world.path("file")).expect("read");
        assert!(shown == self.before.0, "{what} has changed what is shown");
    }

    /// It fails so, and the file stays as it was.
    #[track_caller]
    fn refuses(&self, what: &str, expected: i32, call: impl FnOnce() -> io::Result<u64>) {
        assert_eq!(errno(call()), expected, "{what}");
        self.check(what);
    }
}

fn set_attribute(file: &File, name: &CStr, value: &[u8]) -> io::Result<u64> {
    // SAFETY: name and value live through the call.
    result(unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
}

fn get_attribute(file: &File, name: &CStr) -> io::Result<u64> {
    // SAFETY: the name lives through the call; no buffer is given, and none is written to.
    result(unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), ptr::null_mut(), 0) } as i64)
}

fn remove_attribute(file: &File, name: &CStr) -> io::Result<u64> {
    // SAFETY: the name lives through the call.
    result(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) })
}

#[test]
fn extended_attributes_are_not_supported() {
    let it = Untouched::new();
    for name in [
        c"user.name",
        c"trusted.name",
        c"security.selinux",
        c"system.nfs4_acl",
    ] {
        let what = |call| format!("{call} of {name:?}");
        it.refuses(&what("setxattr"), NOT_SUPPORTED, || {
            set_attribute(&it.file, name, b"value")
        });
        it.refuses(&what("getxattr"), NOT_SUPPORTED, || {
            get_attribute(&it.file, name)
        });
        it.refuses(&what("removexattr"), NOT_SUPPORTED, || {
            remove_attribute(&it.file, name)
        });
    }
    it.refuses("listxattr", NOT_SUPPORTED, || {
        // SAFETY: no buffer is given, and none is written to.
        result(unsafe { libc::flistxattr(it.file.as_raw_fd(), ptr::null_mut(), 0) } as i64)
    });
}

/// ENODATA is what acl(3) takes for a file that has its mode and nothing else.
#[test]
fn a_file_has_no_acl_and_is_given_none() {
    /// Version 2, and the entries of a mode and of one user more (linux/posix_acl_xattr.h).
    fn list_of_user(uid: u32) -> Vec<u8> {
        let nobody = u32::MAX;
        let mut list = 2u32.to_le_bytes().to_vec();
        let entries = [
            (0x01u16, 6u16, nobody),
            (0x02, 4, uid),
            (0x04, 4, nobody),
            (0x10, 6, nobody),
            (0x20, 4, nobody),
        ];
        for (tag, rights, id) in entries {
            list.extend(tag.to_le_bytes());
            list.extend(rights.to_le_bytes());
            list.extend(id.to_le_bytes());
        }
        list
    }
    let it = Untouched::new();
    let (access, default) = (c"system.posix_acl_access", c"system.posix_acl_default");
    let list = list_of_user(1000);
    it.refuses("getfacl", libc::ENODATA, || get_attribute(&it.file, access));
    it.refuses("setfacl", NOT_SUPPORTED, || {
        set_attribute(&it.file, access, &list)
    });
    it.refuses("setfacl -b", NOT_SUPPORTED, || {
        remove_attribute(&it.file, access)
    });
    let dir = File::open(it.world.mount.path()).expect("open");
    it.refuses("setfacl -d", NOT_SUPPORTED, || {
        set_attribute(&dir, default, &list)
    });
}

#[test]
fn fallocate_is_not_supported_and_posix_fallocate_falls_back() {
    let it = Untouched::new();
    let fd = it.file.as_raw_fd();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    for mode in [
        0,
        libc::FALLOC_FL_KEEP_SIZE,
        punch,
        libc::FALLOC_FL_ZERO_RANGE,
        libc::FALLOC_FL_COLLAPSE_RANGE,
        libc::FALLOC_FL_INSERT_RANGE,
    ] {
        let what = format!("fallocate in mode {mode:#x}");
        it.refuses(&what, NOT_SUPPORTED, || {
            // SAFETY: a call without pointers.
            result(unsafe { libc::fallocate(fd, mode, 0, 20_480) })
        });
    }
    // The C library writes instead: what was there stays.
    // SAFETY: a call without pointers.
    let done = unsafe { libc::posix_fallocate(fd, 0, 20_480) };
    assert_eq!(done, 0);
    it.file.sync_all().expect("fsync");
    let mut expected = it.before.0.clone();
    expected.resize(20_480, 0);
    assert!(fs::read(it.world.behind("file")).expect("read behind") == expected);
}

/// The kernel reads and writes in its place. Between two mounts it does not, and programs do.
#[test]
fn copy_file_range_falls_back_and_its_copy_is_right() {
    let it = Untouched::new();
    let copy = |from: &File, to: &File, offset: i64, len: usize| {
        let (mut from_offset, mut to_offset) = (offset, offset + 5);
        // SAFETY: both offsets live through the call.
        result(unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                &raw mut from_offset,
                to.as_raw_fd(),
                &raw mut to_offset,
                len,
                0,
            )
        } as i64)
    };
    let to = open(&it.world.path("copy"));
    to.write_all_at(&[7; 10_100], 0).expect("write");
    assert_eq!(copy(&it.file, &to, 100, 9_000).expect("copy"), 9_000);
    to.sync_all().expect("fsync");
    let mut expected = vec![7; 10_100];
    expected[105..9_105].copy_from_slice(&it.before.0[100..9_100]);
    assert!(fs::read(it.world.behind("copy")).expect("read behind") == expected);
    it.check("a copy");
    let local = tempfile::tempfile().expect("a file elsewhere");
    it.refuses("copy to another file system", libc::EXDEV, || {
        copy(&it.file, &local, 0, 100)
    });
}

#[test]
fn a_file_can_be_neither_cloned_nor_mapped_to_blocks() {
    let it = Untouched::new();
    let clone = open(&it.world.path("clone"));
    it.refuses("FICLONE", NOT_SUPPORTED, || {
        // SAFETY: both are descriptors; the call takes no pointer.
        result(unsafe { libc::ioctl(clone.as_raw_fd(), FICLONE, it.file.as_raw_fd()) })
    });
    assert_eq!(clone.metadata().expect("stat").len(), 0);
    it.refuses("FIEMAP", NOT_SUPPORTED, || {
        // struct fiemap: start, length, flags, mapped extents, room for extents, reserved.
        let mut map = [0u64, u64::MAX, 0, 0];
        // SAFETY: the struct has room for no extent, and lives through the call.
        result(unsafe { libc::ioctl(it.file.as_raw_fd(), FS_IOC_FIEMAP, map.as_mut_ptr()) })
    });
    // cp(1) makes a copy unless it is told not to.
    let mut cp = std::process::Command::new("cp");
    cp.arg("--reflink=auto").current_dir(it.world.mount.path());
    assert!(cp.args(["file", "copied"]).status().expect("cp").success());
    let copied = fs::read(it.world.behind("copied")).expect("read behind");
    assert!(copied == it.before.0);
}
