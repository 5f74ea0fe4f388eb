//! The mounter: the one thread of a daemon of root that keeps what it takes to mount, and the place
//! where it does: `CAP_SYS_ADMIN`, `CAP_DAC_READ_SEARCH`, and the mount namespace.
//!
//! All other threads have given them up for good. Work that needs them is handed over
//! ([`super::mounting`]) and waited for. Each piece runs in a thread of its own, which
//! the mounter starts and which inherits from it: a mount that does not answer holds up
//! nobody but who asked.
//!
//! A service that systemd gives a mount namespace of its own (ProtectSystem= and the like)
//! mounts where everybody sees it all the same: the mounter enters the namespace that it is
//! told, the rest of the process stays in that of the service.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use parking_lot::Mutex;

use super::{Capabilities, MOUNTING, SYS_ADMIN, Set, give_up, raised};

/// Who waits for the mounter to take their work.
const WAITING: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Its process, and how to hand work over to it. A process that was forked has none of
/// its threads.
static MOUNTER: Mutex<Option<(u32, SyncSender<Job>)>> = Mutex::new(None);

thread_local! {
    /// This thread was started by the mounter.
    static IS_MOUNTERS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The one of this process.
fn mounter() -> Option<SyncSender<Job>> {
    let mounter = MOUNTER.lock();
    let (process, mounter) = mounter.as_ref()?;
    (*process == process::id()).then(|| mounter.clone())
}

/// Whether there is one.
pub(super) fn is_there() -> bool {
    mounter().is_some()
}

/// Starts it, for a process with one thread, and before [`super::reduce`]. `namespace`:
/// where to mount, such as `/proc/1/ns/mnt`; `None`: where this process is. Nothing
/// happens in a process that may not mount, or that has one.
///
/// # Errors
/// The namespace is none or not for us, or there is no thread.
pub fn keep(namespace: Option<&Path>) -> io::Result<()> {
    if is_there() {
        return Ok(());
    }
    let may_mount = Capabilities::own()?.permitted & SYS_ADMIN != 0;
    let namespace = match namespace {
        Some(_) if !may_mount => return Err(io::ErrorKind::PermissionDenied.into()),
        None if !may_mount => return Ok(()),
        other => other.map(File::open).transpose()?,
    };
    let (hand_over, jobs) = mpsc::sync_channel(WAITING);
    let (tell, begun) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("efs-fuse-mount".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            let begun = begin(namespace);
            let go_on = begun.is_ok();
            if tell.send(begun).is_ok() && go_on {
                work(&jobs);
            }
        })?;
    let begun = begun.recv();
    begun.unwrap_or_else(|_| Err(io::Error::other("the thread that mounts has died")))?;
    *MOUNTER.lock() = Some((process::id(), hand_over));
    Ok(())
}

fn begin(namespace: Option<File>) -> io::Result<()> {
    if let Some(namespace) = namespace {
        enter(&namespace)?;
    }
    let kept: Set = MOUNTING & Capabilities::own()?.permitted;
    give_up(kept, 0)
}

/// Moves this thread, and those that it starts, into a mount namespace.
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: neither has memory effects. The root and the directory of this thread
    // become its own first, so that those of the others stay what they are.
    let entered = unsafe {
        libc::unshare(libc::CLONE_FS) == 0
            && libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) == 0
    };
    match entered {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

fn work(jobs: &Receiver<Job>) {
    // It ends with the process: the sender is never dropped.
    while let Ok(job) = jobs.recv() {
        let job = Arc::new(Mutex::new(Some(job)));
        let own = Arc::clone(&job);
        let started = thread::Builder::new()
            .name("efs-fuse-mounts".to_owned())
            .spawn(move || run(&own));
        if started.is_err() {
            run(&job);
        }
    }
}

fn run(job: &Mutex<Option<Job>>) {
    let job = job.lock().take();
    if let Some(job) = job {
        IS_MOUNTERS.set(true);
        raised(MOUNTING, job);
        IS_MOUNTERS.set(false);
    }
}

/// Has `work` done by a thread of the mounter's, or by this one if there is none.
pub(super) fn hand_over<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let Some(mounter) = mounter().filter(|_| !IS_MOUNTERS.get()) else {
        return raised(MOUNTING, work);
    };
    let (done, outcome) = mpsc::sync_channel(1);
    let job: Box<dyn FnOnce() + Send + '_> = Box::new(move || {
        let result = catch_unwind(AssertUnwindSafe(work));
        // The receiver is there: it waits below.
        let _ = done.send(result);
    });
    // SAFETY: only the lifetime is changed. What the job borrows outlives it: this
    // function does not return before `outcome` has a result or knows that there will be
    // none, and either is only when `work` has been run to its end or dropped.
    let job: Job = unsafe { std::mem::transmute::<Box<dyn FnOnce() + Send + '_>, Job>(job) };
    let handed = mounter.send(job);
    let result = handed.ok().and_then(|()| outcome.recv().ok());
    match result {
        Some(Ok(result)) => result,
        Some(Err(panic)) => resume_unwind(panic),
        // Its loop has no end and runs nothing that panics.
        None => unreachable!("the thread that mounts has ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_by_whoever_is_there_and_may_borrow_and_panic() {
        let (hand, jobs) = mpsc::sync_channel(WAITING);
        thread::spawn(move || work(&jobs));
        let text = "borrowed".to_owned();
        let here = hand_over(|| text.len());
        assert_eq!(here, 8);
        // The same by a mounter: each piece in a thread of its own, so that one that
        // hangs holds up nobody.
        let (tell, wait) = mpsc::sync_channel::<()>(0);
        let hang: Job = Box::new(move || {
            let _ = wait.recv();
        });
        let (done, outcome) = mpsc::sync_channel(1);
        let other: Job = Box::new(move || {
            let _ = done.send(IS_MOUNTERS.get());
        });
        assert!(hand.send(hang).is_ok() && hand.send(other).is_ok());
        assert_eq!(outcome.recv(), Ok(true));
        drop(tell);
    }
}
