//! Values of the vfs ⇄ values of fuser.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, TimeOrNow};

use crate::vfs::types::{Entry, Errno, FileKind, Ino, Opened, SetTime, Stat, Timestamp};

const NANOS_PER_SEC: u32 = 1_000_000_000;

/// The largest number the kernel takes as an error: it refuses a reply with
/// -512 or below (its internal restart codes), and the caller would hang.
const MAX_ERRNO: i32 = 511;

/// An error as it goes into a reply.
///
/// ENOSYS never leaves this way: the kernel takes it for "this file system
/// does not have that operation" and never asks again, for any file.
pub(super) fn errno(error: Errno) -> fuser::Errno {
    match error.raw() {
        libc::ENOSYS => fuser::Errno::EOPNOTSUPP,
        raw @ 1..=MAX_ERRNO => fuser::Errno::from_i32(raw),
        _ => fuser::Errno::EIO,
    }
}

/// The kind of an object.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
    }
}

/// Attributes for a reply that also names the inode: fuser takes the node id
/// of such a reply from `FileAttr::ino`, so this is `nodeid` and not the
/// `st_ino` of `stat`.
pub(super) fn attr(nodeid: Ino, stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(nodeid),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: stat.perm & 0o7777,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: stat.blksize,
        flags: 0,
    }
}

/// Attributes for a reply about an inode the kernel already has: under the
/// number that programs are shown, which is not always the node id.
pub(super) fn attr_of_node(stat: &Stat) -> FileAttr {
    attr(stat.ino, stat)
}

/// One TTL for replies that have room for only one.
pub(super) fn joint_ttl(entry: &Entry) -> Duration {
    entry.attr_ttl.min(entry.entry_ttl)
}

/// How the kernel may use an open file.
pub(super) fn open_flags(opened: Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if opened.direct_io {
        // Without the second flag the kernel sends one write at a time.
        flags |= FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    }
    if opened.keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    flags
}

/// How the kernel may use an open directory: it keeps the listing, and drops
/// it at the next open unless that one says `keep_cache`.
pub(super) fn opendir_flags(opened: Opened) -> FopenFlags {
    let mut flags = FopenFlags::FOPEN_CACHE_DIR;
    if opened.keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    flags
}

/// The moment `time` stands for; fuser's encoder puts it back exactly, also
/// before 1970. Nanoseconds beyond a second (a broken server) are cut.
pub(super) fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let nanos = Duration::from_nanos(time.nsec.min(NANOS_PER_SEC - 1).into());
    whole
        .and_then(|t| t.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// A time to set.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(requested_time(time)),
    }
}

/// The time the caller asked for, out of what fuser 0.18 made of it.
///
/// The kernel sends seconds and nanoseconds, both counted upwards. For
/// negative seconds fuser *subtracts* the nanoseconds (`system_time_from_time`
/// in its time.rs): -2 s + 0.8 s arrives as 2.8 s before the epoch. This is
/// the inverse of that function, not a conversion of the moment.
fn requested_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                sec: 0i64.saturating_sub_unsigned(before.as_secs()),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// fuser's decoder of SETATTR times, as in 0.18.0.
    fn fuser_decodes(sec: i64, nsec: u32) -> SystemTime {
        if sec >= 0 {
            UNIX_EPOCH + Duration::new(sec.unsigned_abs(), nsec)
        } else {
            UNIX_EPOCH - Duration::new(sec.unsigned_abs(), nsec)
        }
    }

    /// fuser's encoder of reply times, as in 0.18.0.
    fn fuser_encodes(time: SystemTime) -> (i64, u32) {
        match time.duration_since(UNIX_EPOCH) {
            Ok(d) => (d.as_secs().cast_signed(), d.subsec_nanos()),
            Err(e) => {
                let d = e.duration();
                match d.subsec_nanos() {
                    0 => (d.as_secs().wrapping_neg().cast_signed(), 0),
                    nanos => (-d.as_secs().cast_signed() - 1, NANOS_PER_SEC - nanos),
                }
            }
        }
    }

    const TIMES: [(i64, u32); 9] = [
        (0, 0),
        (0, 1),
        (1_700_000_000, 123_456_789),
        (-1, 0),
        (-1, 999_999_999),
        (-2, 800_000_000),
        (-2_208_988_800, 1),
        (i64::MAX, 999_999_999),
        (i64::MIN, 0),
    ];

    #[test]
    fn a_time_to_set_reaches_the_vfs_as_the_caller_gave_it() {
        for (sec, nsec) in TIMES {
            let decoded = TimeOrNow::SpecificTime(fuser_decodes(sec, nsec));
            assert_eq!(set_time(decoded), SetTime::At(Timestamp { sec, nsec }));
        }
        assert_eq!(set_time(TimeOrNow::Now), SetTime::Now);
    }

    #[test]
    fn a_time_of_the_server_reaches_the_kernel_unchanged() {
        for (sec, nsec) in TIMES {
            let shown = system_time(Timestamp { sec, nsec });
            assert_eq!(fuser_encodes(shown), (sec, nsec));
        }
    }

    #[test]
    fn nanoseconds_beyond_a_second_do_not_move_the_second() {
        let shown = system_time(Timestamp {
            sec: 5,
            nsec: u32::MAX,
        });
        assert_eq!(fuser_encodes(shown), (5, 999_999_999));
    }

    #[test]
    fn no_error_can_hang_the_caller_or_disable_an_operation() {
        assert_eq!(errno(Errno(libc::ENOENT)), fuser::Errno::ENOENT);
        assert_eq!(errno(Errno(libc::ENOSYS)), fuser::Errno::EOPNOTSUPP);
        for raw in [i32::MIN, -2, 0, 512, 10_001, i32::MAX] {
            assert_eq!(errno(Errno(raw)), fuser::Errno::EIO, "{raw}");
        }
    }

    pub(crate) fn stat(ino: Ino) -> Stat {
        let time = Timestamp { sec: 1, nsec: 2 };
        Stat {
            ino,
            kind: FileKind::Regular,
            perm: 0o4755,
            nlink: 1,
            uid: 7,
            gid: 8,
            rdev: 0,
            size: 9,
            blocks: 1,
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
        }
    }

    #[test]
    fn what_the_kernel_has_is_shown_under_its_own_number() {
        assert_eq!(attr_of_node(&stat(42)).ino, INodeNo(42));
        assert_eq!(attr(77, &stat(1)).ino, INodeNo(77));
    }

    #[test]
    fn every_permission_bit_is_kept() {
        assert_eq!(attr(2, &stat(2)).perm, 0o4755);
    }

    #[test]
    fn the_page_cache_is_kept_only_when_the_vfs_says_so() {
        let opened = |keep_cache, direct_io| Opened {
            fh: 1,
            keep_cache,
            direct_io,
        };
        assert_eq!(open_flags(opened(false, false)), FopenFlags::empty());
        assert_eq!(
            open_flags(opened(true, false)),
            FopenFlags::FOPEN_KEEP_CACHE
        );
        assert!(open_flags(opened(false, true)).contains(FopenFlags::FOPEN_DIRECT_IO));
        assert_eq!(
            opendir_flags(opened(false, false)),
            FopenFlags::FOPEN_CACHE_DIR
        );
        assert!(opendir_flags(opened(true, false)).contains(FopenFlags::FOPEN_KEEP_CACHE));
    }
}
