//! statx(2) with AT_STATX_FORCE_SYNC asks the server, also within the cache time.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::fixtures::World;

const FORCE: libc::c_int = 0x2000;

/// The size, by path or of a file that is open.
fn size(path: &Path, flags: libc::c_int) -> u64 {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
    statx(libc::AT_FDCWD, &path, flags)
}

fn size_of(file: &File, flags: libc::c_int) -> u64 {
    statx(file.as_raw_fd(), c"", flags | libc::AT_EMPTY_PATH)
}

fn statx(fd: libc::c_int, path: &std::ffi::CStr, flags: libc::c_int) -> u64 {
    // SAFETY: plain data.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers live through the call.
    let done = unsafe {
        libc::statx(
            fd,
            path.as_ptr(),
            flags,
            libc::STATX_BASIC_STATS,
            &raw mut stat,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    stat.stx_size
}

fn long_lived() -> World {
    World::with(|request| request.option("actimeo=600"))
}

#[test]
fn a_forced_statx_is_answered_by_the_server_each_time() {
    let world = long_lived();
    let path = world.path("file");
    fs::write(world.behind("file"), b"").expect("write behind");
    let file = File::open(&path).expect("open");
    for len in 1..5_u64 {
        assert_eq!(size(&path, 0), len - 1, "believed");
        fs::write(world.behind("file"), vec![0; len as usize]).expect("write behind");
        assert_eq!(size(&path, 0), len - 1, "believed for 600 s");
        let forced = match len % 2 {
            0 => size(&path, FORCE),
            _ => size_of(&file, FORCE),
        };
        assert_eq!(forced, len);
        assert_eq!(size(&path, 0), len, "and known from then on");
    }
}

/// The kernel asks for the attributes after a read all the same (atime), so the moment
/// does not tell.
#[test]
fn a_forced_statx_right_after_a_read_is_answered_by_the_server() {
    let world = long_lived();
    let path = world.path("file");
    fs::write(world.behind("file"), b"1").expect("write behind");
    for len in 2..5 {
        let mut content = Vec::new();
        let mut file = File::open(&path).expect("open");
        file.read_to_end(&mut content).expect("read");
        fs::write(world.behind("file"), vec![b'1'; len]).expect("write behind");
        assert_eq!(size_of(&file, FORCE), len as u64);
    }
}

#[test]
fn what_is_asked_for_without_force_costs_no_round_trip() {
    let world = long_lived();
    fs::write(world.path("file"), b"content").expect("write");
    let mut file = File::open(world.path("file")).expect("open");
    size_of(&file, 0);
    let ((), trips) = world.mount.round_trips(|| {
        for _ in 0..10 {
            let mut content = Vec::new();
            file.read_to_end(&mut content).expect("read");
            size_of(&file, 0);
            fs::metadata(world.path("file")).expect("stat");
        }
    });
    assert!(trips <= 1, "{trips} round trips");
}
