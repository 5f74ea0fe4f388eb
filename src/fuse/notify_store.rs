//! Tells the kernel how large a file is, without a request of the kernel's and without data.
//!
//! FUSE has no notification for a size. But FUSE_NOTIFY_STORE, which puts data into the page
//! cache, makes the file as long as the data reach (`fuse_notify_store`,
//! `fuse_write_update_attr`), and copies them after that, page by page. Data are not what
//! is to be stored: they might overwrite what a process of this host has just written
//! into that page. So the one byte that is announced lies in memory that cannot be
//! read: the size is set, the copy ends with EFAULT, and no page is changed.
//!
//! A file only grows by this. A kernel that copied first would refuse all of it; the size is
//! then told by the answer of the next GETATTR.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};

use crate::vfs::types::Ino;

/// `FUSE_NOTIFY_STORE` of `enum fuse_notify_code` in `<linux/fuse.h>`.
const NOTIFY_STORE: i32 = 4;

/// Bytes of `fuse_out_header` and `fuse_notify_store_out`.
const HEADERS: usize = 16 + 24;

/// A byte of data that no kernel can copy.
#[derive(Debug)]
struct Unreadable(NonNull<libc::c_void>);

// SAFETY: nobody reads or writes what it points to.
unsafe impl Send for Unreadable {}
// SAFETY: as above.
unsafe impl Sync for Unreadable {}

impl Unreadable {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping, at no address of anybody's.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                1,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(mapped)
            .map(Self)
            .ok_or_else(|| io::Error::other("mmap(2) has mapped the address 0"))
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        // SAFETY: `new` has mapped it, and nobody else has the address.
        unsafe { libc::munmap(self.0.as_ptr(), 1) };
    }
}

/// Where sizes are told.
#[derive(Debug)]
pub(super) struct SizeTeller {
    device: OwnedFd,
    unreadable: Unreadable,
}

impl SizeTeller {
    /// On a descriptor of `/dev/fuse` that belongs to the mount.
    ///
    /// # Errors
    /// There is no memory for a mapping.
    pub(super) fn new(device: OwnedFd) -> io::Result<Self> {
        let unreadable = Unreadable::new()?;
        Ok(Self { device, unreadable })
    }

    /// The file has at least `size` bytes. What the kernel holds of its pages stays; its
    /// attributes are asked for before they are used again.
    ///
    /// # Errors
    /// ENOENT: the kernel does not hold the inode. Others: it cannot be told this way.
    pub(super) fn has_grown(&self, ino: Ino, size: u64) -> io::Result<()> {
        let Some(offset) = size.checked_sub(1) else {
            return Ok(());
        };
        let headers = headers(ino, offset);
        let parts = [
            libc::iovec {
                iov_base: headers.as_ptr().cast_mut().cast(),
                iov_len: HEADERS,
            },
            libc::iovec {
                iov_base: self.unreadable.0.as_ptr(),
                iov_len: 1,
            },
        ];
        // SAFETY: both parts are mapped for the time of the call; writev(2) answers EFAULT for
        // what it cannot read.
        let sent = unsafe { libc::writev(self.device.as_raw_fd(), parts.as_ptr(), 2) };
        if sent >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
            error => Err(error),
        }
    }
}

/// What announces one byte at `offset` of the file.
fn headers(ino: Ino, offset: u64) -> [u8; HEADERS] {
    let mut bytes = [0; HEADERS];
    let length = u32::try_from(HEADERS + 1).unwrap_or(0);
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..8].copy_from_slice(&NOTIFY_STORE.to_ne_bytes());
    // The number of the request, 0: a notification is no answer.
    bytes[16..24].copy_from_slice(&ino.to_ne_bytes());
    bytes[24..32].copy_from_slice(&offset.to_ne_bytes());
    bytes[32..36].copy_from_slice(&1u32.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_headers_are_those_of_linux() {
        let expected = [
            // len, error (the code), unique
            [41, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(),
            // nodeid, offset
            &[7, 0, 0, 0, 0, 0, 0, 0, 0xff, 0x0f, 0, 0, 0, 0, 0, 0],
            // size, padding
            &[1, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(headers(7, 4095).as_slice(), expected.concat());
    }

    #[test]
    fn a_file_without_bytes_is_not_told_of() {
        let null = std::fs::File::open("/dev/null").expect("open");
        let teller = SizeTeller::new(null.into()).expect("a page");
        teller.has_grown(7, 0).expect("nothing is written");
        // EBADF: it is open for reading.
        assert!(teller.has_grown(7, 1).is_err());
    }
}
