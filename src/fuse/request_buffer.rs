//! The memory that the kernel's requests are read into.
//!
//! The kernel copies a request into a reader thread's buffer, in that thread's read(2). If a page of
//! the buffer is not there, the copy has to get it; for a thread that is being killed the kernel
//! does not. Then it is the *request* that fails: the program is told EIO, and nothing is left to
//! be sent again to whoever takes over. In a new process no page is there, and the largest
//! requests, which are writes, need 257 of them.
//!
//! So where another process may have to go on with what this one was reading, each page that a
//! request can reach is there before the first one is read, and stays: it is locked (mlock(2)),
//! as far as RLIMIT_MEMLOCK allows. That is 1 MiB a reader thread.
//!
//! fuser allocates the buffers and shows them to nobody. What they can be known by is their size,
//! where they are allocated: so this is the allocator of the program, and hands everything on to the
//! system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use super::kernel::MAX_WRITE;

/// Bytes of fuser's buffer for one request: the most that it could agree on, and a page.
const BUFFER: usize = (16 << 20) + 4096;

/// Bytes of it that the kernel may fill: data, and the headers before them.
const REACHED: usize = MAX_WRITE as usize + 4096;

/// Whether buffers are wanted whole.
static RESIDENT: AtomicBool = AtomicBool::new(false);

/// Buffers for requests that are allocated from here on are wholly there.
pub(super) fn keep_resident() {
    RESIDENT.store(true, Ordering::Release);
}

/// The system's allocator, but for those buffers.
#[derive(Debug)]
pub struct RequestBuffers;

// SAFETY: every call is handed on to the system's allocator as it is, and what that gives back is
// given back. Within a buffer of `BUFFER` zeroed bytes zeroes are written.
unsafe impl GlobalAlloc for RequestBuffers {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let buffer = unsafe { System.alloc_zeroed(layout) };
        if layout.size() == BUFFER && !buffer.is_null() && RESIDENT.load(Ordering::Acquire) {
            // SAFETY: the buffer is this long, and nobody else has it yet.
            unsafe { make_resident(buffer) };
        }
        buffer
    }
}

/// Gets the pages of a buffer that requests reach.
///
/// # Safety
/// `REACHED` zeroed bytes lie at `buffer`, and nobody else uses them.
#[cold]
unsafe fn make_resident(buffer: *mut u8) {
    const PAGE: usize = 4096;
    // The alignment that the buffer is shifted by is less than a page.
    for offset in (0..REACHED + PAGE).step_by(PAGE) {
        // SAFETY: it lies in the buffer, which is longer.
        unsafe { buffer.add(offset).write_volatile(0) };
    }
    // Without the right to, they are there until memory runs short.
    // SAFETY: the range lies in the buffer; its pages hold nothing that must not be locked.
    unsafe {
        libc::mlock(buffer.cast(), REACHED + PAGE);
    }
}
