//! What `/proc/<tid>` says about a caller: its groups, its pending signals, and by
//! which call it waits for a lock. FUSE passes none of them.
//!
//! The process id of a FUSE request is a thread id in the pid namespace of the
//! mounter; the kernel opens `/proc/<tid>` for any thread although it lists
//! only processes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::privilege;
use crate::vfs::types::LockCall;

/// No status file is longer: 65536 groups of at most 11 characters, and two
/// kilobytes of the rest.
const STATUS_LIMIT: usize = 1 << 20;

/// The bit of SIGKILL in a signal mask.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Whether `/proc` shows this process under the number that it has for itself; found out
/// once. It is of another pid namespace where one was made without mounting `/proc` anew:
/// then the numbers that FUSE gives are those of other processes there.
pub(super) fn is_ours() -> bool {
    static OURS: OnceLock<bool> = OnceLock::new();
    *OURS.get_or_init(|| {
        let own = std::process::id().to_string();
        fs::read_link("/proc/self").is_ok_and(|link| link.to_str() == Some(&own))
    })
}

/// Reads the status file of thread `tid` into `buf`, replacing what was there.
///
/// # Errors
/// The thread is gone, is not visible from this pid namespace, or procfs is
/// mounted with `hidepid`, or it is that of others ([`is_ours`]).
pub(super) fn read_status(tid: u32, buf: &mut Vec<u8>) -> io::Result<()> {
    if !is_ours() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut file = File::open(format!("/proc/{tid}/status"))?;
    let mut filled = 0;
    loop {
        if buf.len() < filled + 2048 {
            buf.resize(filled + 4096, 0);
        }
        match file.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if filled >= STATUS_LIMIT {
            break;
        }
    }
    buf.truncate(filled);
    Ok(())
}

/// The signal masks of one thread; bit `n - 1` stands for signal `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signals {
    /// Sent to the thread or to its process and not taken yet.
    pub(super) pending: u64,
    /// Held back by the thread.
    pub(super) blocked: u64,
    /// Ignored by the process.
    pub(super) ignored: u64,
}

impl Signals {
    /// The masks in a status file; `None` if one of them is not there.
    pub(super) fn parse(status: &[u8]) -> Option<Self> {
        let mask = |name: &[u8]| {
            let text = std::str::from_utf8(field(status, name)?).ok()?;
            u64::from_str_radix(text.trim(), 16).ok()
        };
        Some(Self {
            pending: mask(b"SigPnd:")? | mask(b"ShdPnd:")?,
            blocked: mask(b"SigBlk:")?,
            ignored: mask(b"SigIgn:")?,
        })
    }

    /// The thread is about to die. For every deadly signal, exit_group(2) and
    /// execve(2) the kernel marks SIGKILL pending in each thread concerned.
    pub(super) fn fatal(self) -> bool {
        self.pending & KILL_BIT != 0
    }

    /// A signal would be delivered if the thread returned from its call.
    /// Those whose default is to be ignored never become pending.
    pub(super) fn deliverable(self) -> bool {
        self.pending & !self.blocked & !self.ignored != 0
    }
}

/// The supplementary groups in a status file, in the order of the kernel.
pub(super) fn groups(status: &[u8]) -> Vec<u32> {
    let line = field(status, b"Groups:").unwrap_or_default();
    line.split(u8::is_ascii_whitespace)
        .filter_map(|gid| std::str::from_utf8(gid).ok()?.parse().ok())
        .collect()
}

/// By which call thread `tid`, whose request for a lock is in our hands, waits for it.
/// `None` if that cannot be told: the thread is gone or of another pid namespace, we may
/// not trace it, or it runs for another architecture.
pub(super) fn lock_call(tid: u32) -> Option<LockCall> {
    // The request is here before its caller sleeps, and on a busy machine that may take.
    const LONGEST: Duration = Duration::from_secs(2);
    let until = Instant::now() + LONGEST;
    let mut pause = Duration::from_millis(1);
    if tid == 0 {
        return None;
    }
    let path = format!("/proc/{tid}/syscall");
    while Instant::now() < until {
        let text = privilege::tracing_callers(|| fs::read_to_string(&path)).ok()?;
        if !text.starts_with("running") {
            return parse_call(&text);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    None
}

/// The call in a `syscall` file: its number, then its arguments.
fn parse_call(text: &str) -> Option<LockCall> {
    let mut words = text.split_ascii_whitespace();
    let number: libc::c_long = words.next()?.parse().ok()?;
    // The second argument; an int, of whose register the upper half means nothing.
    let hex = words.nth(1)?.strip_prefix("0x")?;
    let command = u64::from_str_radix(hex, 16).ok()? as u32;
    match (number, command.cast_signed()) {
        (libc::SYS_fcntl, libc::F_SETLKW) => Some(LockCall::Process),
        (libc::SYS_fcntl, libc::F_OFD_SETLKW) => Some(LockCall::Description),
        (libc::SYS_flock, _) => Some(LockCall::Flock),
        _ => None,
    }
}

/// The rest of the line that begins with `name`. The process name, the only
/// free text in the file, is printed with its line breaks escaped.
fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    status
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &[u8] = b"Name:\tdd\nUmask:\t0022\nState:\tD (disk sleep)\nPid:\t71\n\
        Uid:\t1000\t1000\t1000\t1000\nGroups:\t4 24 27 4294967294 \nThreads:\t1\n\
        SigQ:\t1/95000\nSigPnd:\t0000000000004100\nShdPnd:\t0000000000000002\n\
        SigBlk:\t0000000000010000\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000000\n";

    #[test]
    fn the_masks_of_thread_and_process_are_joined() {
        let signals = Signals::parse(STATUS).unwrap();
        assert_eq!(signals.pending, 0x4102);
        assert_eq!(signals.blocked, 0x10000);
        assert_eq!(signals.ignored, 0x1000);
    }

    #[test]
    fn only_the_kill_bit_is_fatal() {
        let with = |pending| Signals {
            pending,
            ..Signals::default()
        };
        assert!(with(0x100).fatal());
        assert!(with(0x4100).fatal());
        assert!(!with(0x4000).fatal());
        assert!(!with(0).fatal());
    }

    #[test]
    fn a_blocked_or_ignored_signal_interrupts_nothing() {
        let with = |pending, blocked, ignored| Signals {
            pending,
            blocked,
            ignored,
        };
        assert!(with(0x2, 0, 0).deliverable());
        assert!(!with(0x2, 0x2, 0).deliverable());
        assert!(!with(0x2, 0, 0x2).deliverable());
        assert!(with(0x6, 0x2, 0).deliverable());
        assert!(!with(0, 0, 0).deliverable());
    }

    #[test]
    fn the_call_that_waits_for_a_lock_is_known_by_number_and_command() {
        let call = |number: libc::c_long, command: i32| {
            parse_call(&format!(
                "{number} 0x3 {command:#x} 0x7ffc 0x0 0x0 0x0 0x7ffd 0x7fe0\n"
            ))
        };
        assert_eq!(
            call(libc::SYS_fcntl, libc::F_SETLKW),
            Some(LockCall::Process)
        );
        assert_eq!(
            call(libc::SYS_fcntl, libc::F_OFD_SETLKW),
            Some(LockCall::Description)
        );
        assert_eq!(call(libc::SYS_flock, libc::LOCK_EX), Some(LockCall::Flock));
        assert_eq!(call(libc::SYS_read, libc::F_SETLKW), None);
        assert_eq!(call(libc::SYS_fcntl, libc::F_SETLK), None);
        for text in ["", "running\n", "-1 0x7ffd 0x7fe0\n", "72 0x3", "72 0x3 zz"] {
            assert_eq!(parse_call(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_call_of_a_thread_that_waits_for_a_lock_is_found_out() {
        use std::os::fd::AsRawFd;
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = file.reopen().unwrap();
        held.lock().unwrap();
        let waits = file.reopen().unwrap();
        let (tell, hear) = std::sync::mpsc::channel();
        let waiter = thread::spawn(move || {
            // SAFETY: gettid has no preconditions, and flock none but a descriptor.
            unsafe {
                tell.send(libc::gettid().unsigned_abs()).unwrap();
                libc::flock(waits.as_raw_fd(), libc::LOCK_EX);
            }
        });
        let tid = hear.recv().unwrap();
        let found = (0..1000).find_map(|_| {
            thread::sleep(Duration::from_millis(1));
            lock_call(tid)
        });
        drop(held);
        waiter.join().unwrap();
        assert_eq!(found, Some(LockCall::Flock));
        assert_eq!(lock_call(u32::MAX), None);
        assert_eq!(lock_call(0), None);
    }

    #[test]
    fn a_torn_status_has_no_masks() {
        assert_eq!(Signals::parse(b""), None);
        assert_eq!(Signals::parse(&STATUS[..STATUS.len() - 60]), None);
        assert_eq!(
            Signals::parse(b"SigPnd:\tzz\nShdPnd:\t0\nSigBlk:\t0\nSigIgn:\t0\n"),
            None
        );
    }

    #[test]
    fn groups_are_read_in_order_and_absence_means_none() {
        assert_eq!(groups(STATUS), [4, 24, 27, 4_294_967_294]);
        assert_eq!(groups(b"Groups:\t \n"), Vec::<u32>::new());
        assert_eq!(groups(b"Name:\tx\n"), Vec::<u32>::new());
    }

    #[test]
    fn the_status_of_this_thread_can_be_read_and_that_of_nobody_cannot() {
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() };
        let mut buf = vec![b'x'; 10_000];
        read_status(tid.unsigned_abs(), &mut buf).unwrap();
        let signals = Signals::parse(&buf).unwrap();
        assert!(!signals.fatal());
        assert!(read_status(u32::MAX, &mut buf).is_err());
    }
}
