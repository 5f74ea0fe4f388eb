//! A sign of life: one request of our own through the kernel and back.
//!
//! A statfs(2) on our own mount is answered on the reader thread, without the
//! server, if it comes from the one thread that probes just now. So it comes
//! back exactly if the kernel's queue is read and answers reach the kernel,
//! however dead the server is; and it never keeps the mount busy for longer.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Which thread probes; 0 for none. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Prober(Arc<AtomicU32>);

impl Prober {
    /// Whether a request of thread `tid` is a probe.
    pub(super) fn is(&self, tid: u32) -> bool {
        tid != 0 && self.0.load(SeqCst) == tid
    }

    /// Sends a probe and waits for its answer, perhaps for ever: to be called
    /// on a thread that can be left behind, and once at a time.
    ///
    /// # Errors
    /// The mount is gone or dead.
    pub(super) fn probe(&self, mountpoint: &Path) -> io::Result<()> {
        let path = CString::new(mountpoint.as_os_str().as_bytes())?;
        let mut answer = std::mem::MaybeUninit::uninit();
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() };
        self.0.store(tid.cast_unsigned(), SeqCst);
        // SAFETY: a C string, and room for an answer that is not looked at.
        let done = unsafe { libc::statfs(path.as_ptr(), answer.as_mut_ptr()) };
        let why = io::Error::last_os_error();
        self.0.store(0, SeqCst);
        // The answer to a probe is an error that says nothing.
        if done == 0 || why.raw_os_error() == Some(ANSWER) {
            Ok(())
        } else {
            Err(why)
        }
    }
}

/// What a probe is answered.
pub(super) const ANSWER: i32 = libc::EAGAIN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_probes_is_recognised_and_only_meanwhile() {
        let prober = Prober::default();
        // SAFETY: gettid has no preconditions.
        let own = unsafe { libc::gettid() }.cast_unsigned();
        assert!(!prober.is(own) && !prober.is(0));
        assert!(prober.probe(Path::new("/")).is_ok());
        assert!(!prober.is(own));
        prober.0.store(own, SeqCst);
        assert!(prober.is(own) && !prober.is(own + 1));
    }
}
