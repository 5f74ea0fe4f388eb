//! What a daemon that root started may do: the capabilities (capabilities(7)) that it
//! keeps and when it uses them, and the system calls that it gives up
//! ([`syscalls`]). Any layer may ask for a capability; this module calls nobody.
//!
//! Capabilities belong to threads, and threads inherit them. So the daemon
//! gives up what it never needs before it starts its threads
//! ([`reduce`]), and lays down the rest: it stays permitted, but is in effect
//! only while a call that needs it runs, and only that one.
//!
//! | permitted | to | for | in effect |
//! |---|---|---|---|
//! | `CAP_SYS_ADMIN` | one thread ([`keep`]) | mount(2), umount2(2), fusectl's `abort` | while [`mounting`] runs |
//! | `CAP_DAC_READ_SEARCH` | the same | the path of a mount point below a private directory | while [`mounting`] runs |
//! | `CAP_NET_BIND_SERVICE` | the others, where connections come from ports below 1024 or `-o metrics=` is on one | that port | while [`binding`] runs |
//! | `CAP_SYS_PTRACE`, `CAP_DAC_READ_SEARCH` | the others | the call that a caller is in: what it looks a name up for, by which call it waits in a deadlock; the groups of callers | while [`tracing_callers`] runs; `CAP_SYS_PTRACE` always where `/proc` is mounted with `hidepid=` |
//!
//! A program that the daemon runs (`credential_process` of an AWS profile, and no other)
//! gets none of them, although it runs as root:
//!
//! - the secure bits say that user 0 is nobody special to execve(2), and are locked;
//!   setting them takes `CAP_SETPCAP`, which the systemd unit does not have;
//! - it is started by a thread that has given up even what is permitted ([`renounce`]),
//!   which with `no_new_privs` is enough without the bits.
//!
//! A process of another user has no capabilities to lose. It keeps its way to
//! `fusermount3`, which is set-user-id: neither `no_new_privs` nor the filter of system
//! calls is for it.

use std::io;

mod mounter;
pub mod syscalls;

pub use mounter::keep;

/// A set of capabilities, by the kernel's numbers.
type Set = u64;

const DAC_READ_SEARCH: Set = 1 << 2;
const NET_BIND_SERVICE: Set = 1 << 10;
const SYS_PTRACE: Set = 1 << 19;
const SYS_ADMIN: Set = 1 << 21;

const MOUNTING: Set = SYS_ADMIN | DAC_READ_SEARCH;
/// `/proc/TID/syscall` is readable for its owner only, and tells who may trace.
const TRACING: Set = SYS_PTRACE | DAC_READ_SEARCH;

/// What a mount needs by its options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// It listens on a port below 1024, or connects from one.
    pub low_port: bool,
}

impl Needs {
    /// What threads may need after the daemon has begun, beside the one that mounts.
    fn kept(self) -> Set {
        let port = if self.low_port { NET_BIND_SERVICE } else { 0 };
        TRACING | port
    }
}

/// What [`reduce`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduced {
    /// The process has no capabilities.
    Nothing,
    /// It had, and has those that are needed.
    Capabilities {
        /// mount(2) is among what they are good for.
        may_mount: bool,
    },
}

/// Of securebits.h: user 0 is nobody special to execve(2); the bits on either side stay
/// as they are (ids that change drop capabilities), no capability becomes ambient; all
/// of it is locked, which programs that are run inherit.
const SECURE_BITS: libc::c_ulong = NOROOT
    | lock(NOROOT)
    | lock(NO_SETUID_FIXUP)
    | lock(KEEP_CAPS)
    | NO_CAP_AMBIENT_RAISE
    | lock(NO_CAP_AMBIENT_RAISE);
const NOROOT: libc::c_ulong = 1 << 0;
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
const KEEP_CAPS: libc::c_ulong = 1 << 4;
const NO_CAP_AMBIENT_RAISE: libc::c_ulong = 1 << 6;

/// The bit that locks `bit` is the next one.
const fn lock(bit: libc::c_ulong) -> libc::c_ulong {
    bit << 1
}

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
/// the one thread of a process that is about to become a daemon, beside [`keep`]'s; a
/// process without capabilities is left as it is.
///
/// # Errors
/// The kernel refuses. The process has what it had, or less.
pub fn reduce(needs: Needs) -> io::Result<Reduced> {
    let own = Capabilities::own()?;
    if own.permitted == 0 {
        return Ok(Reduced::Nothing);
    }
    let mount_info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let always = if hides_processes(&mount_info) {
        SYS_PTRACE
    } else {
        0
    };
    let kept = needs.kept() & own.permitted;
    give_up(kept, always & kept)?;
    Ok(Reduced::Capabilities {
        may_mount: own.permitted & SYS_ADMIN != 0,
    })
}

/// Leaves this thread, and those that it will start, `kept`, of which `effective` is in
/// effect.
fn give_up(kept: Set, effective: Set) -> io::Result<()> {
    // SAFETY: prctl with these arguments has no memory effects. Without CAP_SETPCAP it
    // fails, and what is then is said above.
    let locked = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0) } == 0;
    if !locked {
        tracing::debug!("the secure bits are as they were");
    }
    // Programs that this one runs get no more than it has itself.
    for capability in (0..=LAST).filter(|capability| kept >> capability & 1 == 0) {
        // SAFETY: prctl with these arguments has no memory effects. It fails
        // beyond the last capability, and without CAP_SETPCAP, where the next
        // call is what counts.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    no_new_privileges()?;
    Capabilities {
        effective,
        permitted: kept,
    }
    .set()
}

/// No program that this thread, or one that it starts, runs has more than it has.
fn no_new_privileges() -> io::Result<()> {
    // SAFETY: prctl with these arguments has no memory effects.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives up all that this thread has, for good: for one that runs programs of others,
/// and threads that it starts.
///
/// # Errors
/// The kernel refuses.
pub fn renounce() -> io::Result<()> {
    no_new_privileges()?;
    Capabilities {
        effective: 0,
        permitted: 0,
    }
    .set()
}

/// Has `work` done, which mounts or unmounts, or goes to a mount point by its path, by the
/// thread that keeps what that takes ([`keep`]), if there is one. Blocks meanwhile.
/// Like all of these, `work` must not start threads: they would keep what is in effect.
pub fn mounting<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    mounter::hand_over(work)
}

/// Runs `work`, which looks at what a caller's thread is doing.
pub fn tracing_callers<T>(work: impl FnOnce() -> T) -> T {
    raised(TRACING, work)
}

/// Runs `work`, which binds a port below 1024.
pub fn binding<T>(work: impl FnOnce() -> T) -> T {
    raised(NET_BIND_SERVICE, work)
}

/// Runs `work` with that of `wanted` in effect which this thread may use, and lays
/// it down again.
fn raised<T>(wanted: Set, work: impl FnOnce() -> T) -> T {
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
    let up = Capabilities {
        effective: own.effective | wanted & own.permitted,
        ..own
    };
    if up == own {
        return work();
    }
    // Without them the call below says what is missing.
    let _down = up.set().is_ok().then(|| LayDown(own));
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
    fn what_is_laid_down_is_in_effect_only_while_it_is_needed_and_only_what_is() {
        in_a_thread(|| {
            let before = Capabilities::own().unwrap();
            let down = Capabilities {
                effective: 0,
                ..before
            };
            down.set().unwrap();
            let of = |wanted: Set| before.permitted & wanted;
            let within = mounting(|| Capabilities::own().unwrap());
            assert_eq!(within.effective, of(MOUNTING));
            let within = tracing_callers(|| Capabilities::own().unwrap());
            assert_eq!(within.effective, of(TRACING));
            let within = binding(|| Capabilities::own().unwrap());
            assert_eq!(within.effective, of(NET_BIND_SERVICE));
            assert_eq!(Capabilities::own().unwrap(), down);
        });
    }

    #[test]
    fn what_is_renounced_does_not_come_back() {
        in_a_thread(|| {
            renounce().unwrap();
            let none = Capabilities {
                effective: 0,
                permitted: 0,
            };
            assert_eq!(mounting(|| Capabilities::own().unwrap()), none);
            let of_child = std::thread::spawn(|| Capabilities::own().unwrap());
            assert_eq!(of_child.join().unwrap(), none);
        });
    }

    #[test]
    fn a_low_port_is_permitted_only_to_who_listens_there() {
        assert_eq!(Needs::default().kept() & NET_BIND_SERVICE, 0);
        let needs = Needs { low_port: true };
        assert_ne!(needs.kept() & NET_BIND_SERVICE, 0);
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
