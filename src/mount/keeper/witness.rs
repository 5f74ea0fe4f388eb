//! A thread whose end says that the daemon is dying.
//!
//! The kernel tells a parent of its child's end when the last thread of that has ended, and one that
//! waits for a page of a file system cannot be ended. (It is as late to tell of the end of the first
//! thread, since Linux 6.15.) Of any other thread it tells when it ends, to who has a descriptor of it
//! (PIDFD_THREAD, Linux 6.9). So there is one that does nothing, and never waits for anything that
//! does not come.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc;
use std::thread;

/// Bytes; it calls nothing.
const STACK: usize = 16 << 10;

/// Starts the thread. The descriptor can be read when it has ended, with the process.
///
/// # Errors
/// The kernel knows no descriptors of threads, or there is no thread.
pub(super) fn start() -> io::Result<OwnedFd> {
    let (tell, told) = mpsc::channel();
    let witness = move || {
        // SAFETY: gettid has no preconditions.
        let _ = tell.send(unsafe { libc::gettid() });
        loop {
            thread::park();
        }
    };
    let thread = thread::Builder::new().name("witness".into());
    thread.stack_size(STACK).spawn(witness)?;
    let thread = told.recv().map_err(io::Error::other)?;
    // SAFETY: of integers alone.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, thread, libc::PIDFD_THREAD) };
    match RawFd::try_from(descriptor) {
        // SAFETY: it is new, and nobody else's.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
