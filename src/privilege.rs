//! Capabilities (capabilities(7)) of a daemon that root started: which it
//! keeps, and when it uses them.
//!
//! Capabilities belong to threads, and threads inherit them. So the daemon
//! gives up what it never needs before it starts its first thread
//! ([`reduce`]), and lays down the rest: it stays permitted, but is in effect
//! only while a call that needs it runs ([`raised`]).
//!
//! | kept | for |
//! |---|---|
//! | `CAP_SYS_ADMIN` | mount(2), umount2(2), entering a network namespace |
//! | `CAP_DAC_READ_SEARCH` | the path of a mount point below a private directory |
//! | `CAP_NET_BIND_SERVICE` | `-o metrics=` on a port below 1024 |
//! | `CAP_SYS_PTRACE` | the call that a caller is in: what it looks a name up for, by which call it waits in a deadlock; the groups of callers, where `/proc` is mounted with `hidepid=`: in effect always then |
//!
//! Any layer may raise; this module calls nobody.

use std::io;

/// A set of capabilities, by the kernel's numbers.
type Set = u64;

const DAC_READ_SEARCH: Set = 1 << 2;
const NET_BIND_SERVICE: Set = 1 << 10;
const SYS_PTRACE: Set = 1 << 19;
const SYS_ADMIN: Set = 1 << 21;

/// What may be needed after the daemon has begun.
const KEPT: Set = DAC_READ_SEARCH | NET_BIND_SERVICE | SYS_ADMIN | SYS_PTRACE;

const LAST: u32 = 63;

/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The capabilities of the calling thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// In effect.
    pub effective: u64,
    /// Can be put into effect.
    pub permitted: u64,
}

impl Capabilities {
    /// Of the calling thread.
    ///
    /// # Errors
    /// A kernel without capabilities.
    pub fn own() -> io::Result<Self> {
        let mut header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let mut data = [Data::default(); 2];
        // SAFETY: version 3 reads the header and fills two data records.
        let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let [low, high] = data;
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Ok(Self {
            effective: join(low.effective, high.effective),
            permitted: join(low.permitted, high.permitted),
        })
    }

    fn set(self) -> io::Result<()> {
        let mut header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let half = |shift: u32| Data {
            effective: (self.effective >> shift) as u32,
            permitted: (self.permitted >> shift) as u32,
            inheritable: 0,
        };
        let data = [half(0), half(32)];
        // SAFETY: version 3 reads the header and two data records.
        match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Gives up what the daemon never needs, for good, and lays down the rest. For
/// the one thread of a process that is about to become a daemon; a process
/// without capabilities is left as it is.
///
/// # Errors
/// The kernel refuses. The process has what it had, or less.
pub fn reduce() -> io::Result<()> {
    let own = Capabilities::own()?;
    if own.permitted == 0 {
        return Ok(());
    }
    let mount_info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let always = if hides_processes(&mount_info) {
        SYS_PTRACE
    } else {
        0
    };
    let kept = KEPT & own.permitted;
    // Programs that this one runs get no more than it has itself.
    for capability in (0..=LAST).filter(|capability| kept >> capability & 1 == 0) {
        // SAFETY: prctl with these arguments has no memory effects. It fails
        // beyond the last capability, and without CAP_SETPCAP, where the next
        // call is what counts.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: as above.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Capabilities {
        effective: always & kept,
        permitted: kept,
    }
    .set()
}

/// Runs `work` with everything in effect that this thread may use, and lays
/// it down again. `work` must not start threads: they would keep it.
pub fn raised<T>(work: impl FnOnce() -> T) -> T {
    struct LayDown(Capabilities);
    impl Drop for LayDown {
        fn drop(&mut self) {
            if let Err(why) = self.0.set() {
                tracing::error!(%why, "cannot lay down capabilities");
            }
        }
    }
    let Ok(own) = Capabilities::own() else {
        return work();
    };
    if own.effective == own.permitted {
        return work();
    }
    let all = Capabilities {
        effective: own.permitted,
        ..own
    };
    // Without them the call below says what is missing.
    let _down = all.set().is_ok().then(|| LayDown(own));
    work()
}

/// Whether `/proc` keeps the processes of others from us.
fn hides_processes(mount_info: &str) -> bool {
    let proc = |line: &&str| line.split(' ').nth(4) == Some("/proc");
    mount_info.lines().rfind(proc).is_some_and(|line| {
        line.split([' ', ','])
            .filter_map(|word| word.strip_prefix("hidepid="))
            .any(|value| !matches!(value, "0" | "off"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: capabilities of others are left alone.
    fn in_a_thread(test: impl FnOnce() + Send + 'static) {
        assert!(std::thread::spawn(test).join().is_ok());
    }

    #[test]
    fn what_is_laid_down_is_in_effect_only_while_it_is_needed() {
        in_a_thread(|| {
            let before = Capabilities::own().unwrap();
            let down = Capabilities {
                effective: 0,
                ..before
            };
            down.set().unwrap();
            let within = raised(|| Capabilities::own().unwrap());
            assert_eq!(within.effective, before.permitted);
            assert_eq!(Capabilities::own().unwrap(), down);
        });
    }

    #[test]
    fn proc_hides_processes_only_if_mounted_so() {
        let line = |options| format!("22 1 0:21 / /proc rw,nosuid shared:5 - proc proc {options}");
        assert!(!hides_processes(&line("rw")));
        assert!(!hides_processes(&line("rw,hidepid=0")));
        assert!(hides_processes(&line("rw,gid=4,hidepid=2")));
        assert!(hides_processes(&line("rw,hidepid=invisible")));
        assert!(!hides_processes(
            "22 1 0:21 / /mnt/proc rw - proc proc rw,hidepid=2"
        ));
        assert!(!hides_processes(""));
    }
}
