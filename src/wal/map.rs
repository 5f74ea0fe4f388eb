//! The memory as this process sees it, and how it is divided.
//!
//! The file is as large as all of it and takes only the pages that were touched: what is not used
//! any more is given back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// A word at the beginning.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"EFSF-WAL");

/// Where the words of the header are.
pub(super) mod header {
    /// [`MAGIC`](super::MAGIC).
    pub(in crate::wal) const MAGIC: usize = 0;
    /// [`LAYOUT`](crate::wal::LAYOUT).
    pub(in crate::wal) const LAYOUT: usize = 8;
    /// Not 0: what is here is not all.
    pub(in crate::wal) const BROKEN: usize = 16;
    /// The end of the log, in the file: what lies behind it was never written. Of the one segment
    /// in which it is, everything from its beginning.
    pub(in crate::wal) const END: usize = 64;
}

/// The counts, a word each.
pub(super) const COUNTS: Range<usize> = 1 << 20..129 << 20;
/// The two segments of the log, of which one is in use.
pub(super) const SEGMENTS: [Range<usize>; 2] = [1 << 30..5 << 30, 5 << 30..9 << 30];
/// The data.
pub(super) const ARENA: Range<usize> = 9 << 30..13 << 30;
/// All of it.
pub(super) const ALL: usize = ARENA.end;

/// The memory, mapped.
#[derive(Debug)]
pub(super) struct Map(NonNull<u8>);

// SAFETY: it is memory that all threads may touch; who writes where is the owner's business:
// each range has one, who has a lock.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Makes the file as large as it has to be, and maps it.
    pub(super) fn of(memory: &File) -> io::Result<Self> {
        memory.set_len(ALL as u64)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping of an open file.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                ALL,
                access,
                flags,
                memory.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast())
            .map(Self)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// The word at this place, which is a multiple of eight.
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= ALL, "no word is there");
        // SAFETY: it lies in the mapping and is aligned; words are only used as atomics.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(at).cast()) }
    }

    /// Writes where nobody reads or writes meanwhile.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= ALL && bytes.len() <= ALL - at, "it has no room there");
        // SAFETY: it lies in the mapping; the range is the caller's, see `Sync`.
        unsafe {
            let to = self.0.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// The bytes there.
    ///
    /// # Safety
    /// Nobody writes there as long as they are borrowed.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(
            range.start <= range.end && range.end <= ALL,
            "it is not there"
        );
        // SAFETY: it lies in the mapping; for the rest the caller stands.
        unsafe {
            let from = self.0.as_ptr().add(range.start);
            std::slice::from_raw_parts(from, range.end - range.start)
        }
    }

    /// Where these bytes lie, if they are of the arena.
    pub(super) fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let at = (bytes.as_ptr() as usize).checked_sub(self.0.as_ptr() as usize)?;
        (at >= ARENA.start && at + bytes.len() <= ARENA.end).then_some(at)
    }

    /// Gives the pages of a range back; it reads as zeros. Parts of pages stay.
    pub(super) fn give_back(&self, range: Range<usize>) {
        const PAGE: usize = 64 << 10;
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end / PAGE * PAGE;
        if start < end && end <= ALL {
            // SAFETY: it lies in the mapping, and nobody uses what is there. An error leaves it.
            unsafe {
                let from = self.0.as_ptr().add(start);
                libc::madvise(from.cast(), end - start, libc::MADV_REMOVE);
            }
        }
    }

    /// Publishes: who reads this word finds all that was written before.
    pub(super) fn publish(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody has anything of it any more: they would hold it.
        unsafe {
            libc::munmap(self.0.as_ptr().cast(), ALL);
        }
    }
}
