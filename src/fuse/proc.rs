//! What `/proc/<tid>/status` says about a caller: its groups and its pending
//! signals. FUSE passes neither.
//!
//! The process id of a FUSE request is a thread id in the pid namespace of the
//! mounter; the kernel opens `/proc/<tid>` for any thread although it lists
//! only processes.

use std::fs::File;
use std::io::{self, Read};
use std::sync::OnceLock;

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
        std::fs::read_link("/proc/self").is_ok_and(|link| link.to_str() == Some(&own))
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
