//! The one ioctl(2) that a directory of a mount knows: its small files are to be put on the disk of
//! the mount's cache, many with a request.
//!
//! `efs-fuse warm` asks this way and not at the control socket, because a request of the kernel's carries what
//! matters: which directory is meant, by a descriptor that its caller was allowed to open, and who the
//! caller is. An ioctl of a FUSE file system carries as many bytes as its number says, there and back.
//!
//! | bytes | there | back |
//! |---|---|---|
//! | 8 | where to begin | where to go on |
//! | 8 | verifier of that | the same |
//! | 8 | when to end, bytes of files | flags: [`EOF`]; then how many files follow |
//! | the rest | | of each file: the length of its name (2), its size (4), its name |
//!
//! Numbers are little-endian.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::vfs::types::{WarmFrom, Warmed, WarmedFile};

/// The most that an ioctl's number can say, in whole words.
const SIZE: usize = (1 << 14) - 8;
const HEAD: usize = 24;
/// What an answer has room for.
pub(super) const ROOM: usize = SIZE - HEAD;
/// There is nothing more in the directory.
const EOF: u32 = 1;
/// `_IOWR('e', 0x57, [u8; SIZE])`. A number that no file system is known to use.
const NUMBER: u32 = 3 << 30 | (SIZE as u32) << 16 | (b'e' as u32) << 8 | 0x57;

/// What an ioctl asks, if it is this one.
pub(super) fn asked(number: u32, data: &[u8]) -> Option<WarmFrom> {
    if number != NUMBER || data.len() != SIZE {
        return None;
    }
    let word = |at: usize| data[at..at + 8].try_into().ok();
    Some(WarmFrom {
        cookie: u64::from_le_bytes(word(0)?),
        verifier: word(8)?,
        most: u64::from_le_bytes(word(16)?),
    })
}

/// Whether it is this one.
pub(super) fn is_asked(number: u32) -> bool {
    number == NUMBER
}

/// The answer as it goes back.
pub(super) fn answer(warmed: &Warmed) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend(warmed.cookie.to_le_bytes());
    bytes.extend(warmed.verifier);
    bytes.extend(if warmed.eof { EOF } else { 0 }.to_le_bytes());
    bytes.extend((warmed.files.len() as u32).to_le_bytes());
    for WarmedFile { name, size } in &warmed.files {
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend_from_slice(name);
    }
    bytes.resize(SIZE, 0);
    bytes
}

/// What an answer says; `None` if it is none.
fn answered(bytes: &[u8]) -> Option<Warmed> {
    let mut rest = bytes;
    let mut take = |length: usize| {
        let (part, left) = rest.split_at_checked(length)?;
        rest = left;
        Some(part)
    };
    let cookie = u64::from_le_bytes(take(8)?.try_into().ok()?);
    let verifier = take(8)?.try_into().ok()?;
    let eof = u32::from_le_bytes(take(4)?.try_into().ok()?) & EOF != 0;
    let count = u32::from_le_bytes(take(4)?.try_into().ok()?);
    let mut files = Vec::new();
    for _ in 0..count {
        let length = u16::from_le_bytes(take(2)?.try_into().ok()?);
        let size = u32::from_le_bytes(take(4)?.try_into().ok()?);
        let name = take(length.into())?.to_vec().into();
        files.push(WarmedFile { name, size });
    }
    Some(Warmed {
        cookie,
        verifier,
        eof,
        files,
    })
}

/// Asks the daemon of an open directory's mount. It may take as long as it takes to read some hundred
/// small files.
///
/// # Errors
/// The daemon's. ENOTTY: it has no cache on a disk, or is older than this call.
pub fn ask(dir: &File, from: WarmFrom) -> io::Result<Warmed> {
    let mut bytes = vec![0; SIZE];
    bytes[..8].copy_from_slice(&from.cookie.to_le_bytes());
    bytes[8..16].copy_from_slice(&from.verifier);
    bytes[16..24].copy_from_slice(&from.most.to_le_bytes());
    // SAFETY: an open descriptor; the kernel reads and writes as many bytes as the number says, which
    // is how many there are.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), NUMBER.into(), bytes.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    answered(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warmed() -> Warmed {
        let file = |name: &'static [u8], size| WarmedFile {
            name: name.into(),
            size,
        };
        Warmed {
            cookie: 77,
            verifier: [9; 8],
            eof: true,
            files: vec![file(b"a", 0), file(b"not\xffutf-8", 262_144)],
        }
    }

    #[test]
    fn what_is_answered_is_understood() {
        let bytes = answer(&warmed());
        assert_eq!(bytes.len(), SIZE);
        assert_eq!(answered(&bytes), Some(warmed()));
        assert_eq!(answered(&bytes[..40]), None);
    }

    #[test]
    fn an_answer_that_is_as_long_as_it_may_be_fits() {
        let name = vec![b'x'; 10];
        let count = ROOM / (name.len() + WarmedFile::OVERHEAD);
        let file = WarmedFile {
            name: name.into(),
            size: 1,
        };
        let all = Warmed {
            files: vec![file; count],
            ..warmed()
        };
        assert_eq!(answered(&answer(&all)), Some(all));
    }

    #[test]
    fn no_other_ioctl_is_taken_for_it() {
        assert_eq!(asked(0x8008_6601, &[0; 8]), None, "FS_IOC_GETFLAGS");
        assert_eq!(asked(NUMBER, &[0; 8]), None);
        let mut bytes = vec![0; SIZE];
        bytes[0] = 5;
        bytes[16] = 7;
        let from = asked(NUMBER, &bytes);
        assert_eq!(from.map(|from| (from.cookie, from.most)), Some((5, 7)));
    }
}
