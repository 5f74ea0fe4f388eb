//! The system calls that a daemon of root gives up (seccomp(2)).
//!
//! What a file system daemon never does after it has begun is refused with EPERM, to it
//! and to what it runs: whoever takes it over by a bug finds its capabilities of little
//! use. It is a list of what is denied, not of what is allowed: a new C library or
//! kernel that reaches for a new call must not stop a mount that programs wait for. For
//! the same reason a denied call fails and does not kill; the kernel's audit log has a
//! line of each (`type=SECCOMP`), as far as `kernel.seccomp.actions_logged` has `errno`.
//!
//! Filters only add up, so there are two steps: [`begin`] before anything is asked of a server, and
//! [`settle`] for all threads when the mount is there. A call by another architecture's
//! numbers ends the process, but for x32's, which are denied like the others.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Which programs a daemon may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programs {
    /// None.
    None,
    /// `credential_process` of an AWS profile, `fusermount3`.
    Some,
}

/// Never done by a daemon that has begun.
const NEVER: &[libc::c_long] = &[
    // The memory and the descriptors of other processes. Reading a caller's memory stays:
    // what it asks for by name stands there (`fuse::intent`).
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_process_madvise,
    // Other files than those that a path leads to.
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_acct,
    // Other namespaces. netns= has been entered by then.
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    // Other users: requests say who asks, the process stays who it is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // The kernel and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    // What has been a way into kernels, and is not used here.
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_personality,
    libc::SYS_remap_file_pages,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_lookup_dcookie,
];

/// The same, of one architecture.
#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[libc::c_long] = &[
    libc::SYS_kexec_file_load,
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[libc::c_long] = &[];

/// Running programs.
const RUN: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// Mounting. Unmounting stays.
const MOUNT: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
];

/// Namespaces that clone(2) could make, and unshare(2), which is only to give a thread a
/// umask of its own (`telemetry::serve`).
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// What x32's numbers have beside those of x86_64, whose architecture they share.
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;
/// Calls that have another number there: ptrace, `process_vm_writev`, `kexec_load`,
/// `move_pages`; and execve, execveat.
#[cfg(target_arch = "x86_64")]
const NEVER_X32: &[libc::c_long] = &[521, 540, 528, 533];
#[cfg(target_arch = "x86_64")]
const RUN_X32: &[libc::c_long] = &[520, 545];

/// The first step has been taken.
static BEGUN: AtomicBool = AtomicBool::new(false);

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The first step, for all threads. It takes `no_new_privs`.
///
/// # Errors
/// The kernel has no seccomp, or the architecture is none that the filter is made for.
pub fn begin(programs: Programs) -> io::Result<()> {
    filter(programs, libc::SECCOMP_FILTER_FLAG_TSYNC)?;
    BEGUN.store(true, Ordering::Relaxed);
    Ok(())
}

fn filter(programs: Programs, flags: libc::c_ulong) -> io::Result<()> {
    let mut rules = Rules::new();
    deny(&mut rules, NEVER);
    deny(&mut rules, NEVER_HERE);
    if programs == Programs::None {
        deny(&mut rules, RUN);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let by_number = |numbers: &[libc::c_long]| -> Vec<_> {
            numbers.iter().map(|number| number | X32).collect()
        };
        deny(&mut rules, &by_number(NEVER));
        deny(&mut rules, &by_number(NEVER_X32));
        deny(&mut rules, &by_number(MOUNT));
        deny(&mut rules, &by_number(&[libc::SYS_unshare]));
        if programs == Programs::None {
            deny(&mut rules, &by_number(RUN_X32));
        }
    }
    rules.insert(libc::SYS_clone, with_any_of(NAMESPACES)?);
    let and_time = NAMESPACES | libc::CLONE_NEWTIME as u64;
    rules.insert(libc::SYS_unshare, with_any_of(and_time)?);
    install(rules, libc::EPERM, flags)?;
    // Its flags are in memory, where a filter cannot look. ENOSYS makes the C library
    // fall back to clone(2).
    let mut unseen = Rules::new();
    deny(&mut unseen, &[libc::SYS_clone3]);
    install(unseen, libc::ENOSYS, flags)
}

/// The second step, for all threads: the mount is there, and no other will be made.
/// Nothing where there was no first.
///
/// # Errors
/// As above, or a thread has another filter.
pub fn settle() -> io::Result<()> {
    if !BEGUN.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut rules = Rules::new();
    deny(&mut rules, MOUNT);
    install(rules, libc::EPERM, libc::SECCOMP_FILTER_FLAG_TSYNC)
}

fn deny(rules: &mut Rules, calls: &[libc::c_long]) {
    rules.extend(calls.iter().map(|call| (*call, Vec::new())));
}

/// Matches where the first argument has any of these bits.
fn with_any_of(flags: u64) -> io::Result<Vec<SeccompRule>> {
    // One bit a rule: a masked comparison wants all of its bits.
    let bits = (0..64).map(|bit| 1 << bit).filter(|bit| flags & bit != 0);
    let rule = |bit| {
        let masked = SeccompCmpOp::MaskedEq(bit);
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, masked, bit)?;
        SeccompRule::new(vec![condition])
    };
    bits.map(|bit| rule(bit).map_err(io::Error::other))
        .collect()
}

/// Compiles `rules`, of which each that matches answers `errno`, and installs them.
fn install(rules: Rules, errno: i32, flags: libc::c_ulong) -> io::Result<()> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch);
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)?;
    // Logged, for which the library has no way.
    let flags = flags | libc::SECCOMP_FILTER_FLAG_LOG;
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: the kernel copies the program, which lives through the call and whose
    // instructions have the layout of sock_filter (both are repr(C) of filter.h).
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match done {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!(
            "thread {thread} has another filter"
        ))),
    }
}

/// What calls answer that are denied, and that would answer otherwise if they were not:
/// for a test, which asks for it by `EFS_FUSE_TEST_SYSCALLS`. The arguments are such
/// that nothing would happen.
#[cfg(debug_assertions)]
pub fn tell() {
    if std::env::var_os("EFS_FUSE_TEST_SYSCALLS").is_none() {
        return;
    }
    let none: libc::c_long = 0;
    let nobody: libc::c_long = -1;
    let user_namespace = libc::c_long::from(libc::CLONE_NEWUSER);
    for (name, call, first) in [
        ("mount", libc::SYS_mount, none),
        ("fsopen", libc::SYS_fsopen, none),
        ("open_tree", libc::SYS_open_tree, nobody),
        ("move_mount", libc::SYS_move_mount, nobody),
        ("setns", libc::SYS_setns, nobody),
        ("unshare", libc::SYS_unshare, user_namespace),
        // Without CLONE_VM and the like it would be a fork, but with CLONE_FS beside
        // CLONE_NEWUSER it is EINVAL.
        (
            "clone",
            libc::SYS_clone,
            user_namespace | libc::c_long::from(libc::CLONE_FS),
        ),
        ("clone3", libc::SYS_clone3, none),
        ("ptrace", libc::SYS_ptrace, nobody),
        ("process_vm_writev", libc::SYS_process_vm_writev, nobody),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, nobody),
        ("bpf", libc::SYS_bpf, nobody),
        ("keyctl", libc::SYS_keyctl, nobody),
        ("io_uring_setup", libc::SYS_io_uring_setup, none),
        ("mknodat", libc::SYS_mknodat, nobody),
        ("setuid", libc::SYS_setuid, nobody),
        ("execve", libc::SYS_execve, none),
        ("umount2", libc::SYS_umount2, none),
    ] {
        let errno = super::mounting(|| {
            // SAFETY: every pointer is null and every descriptor and number impossible:
            // a call that is not denied fails before it does anything.
            let done = unsafe { libc::syscall(call, first, 0, 0, 0, 0, 0) };
            match done {
                -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
                _ => 0,
            }
        });
        tracing::info!("test: {name} answers {errno}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_stands_twice_and_unmounting_is_not_denied() {
        let mut all: Vec<_> = [NEVER, NEVER_HERE, RUN, MOUNT].concat();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(!all.contains(&libc::SYS_umount2));
    }

    /// In a thread of its own, which ends with its filter.
    #[test]
    fn what_is_denied_fails_and_the_rest_goes_on() {
        let denied = std::thread::spawn(|| {
            super::super::renounce()?;
            filter(Programs::None, 0)?;
            // SAFETY: it would make a namespace for this thread, which ends.
            let unshared = unsafe { libc::unshare(libc::CLONE_NEWUSER) };
            let errno = io::Error::last_os_error().raw_os_error();
            assert_eq!((unshared, errno), (-1, Some(libc::EPERM)));
            // Threads, files and sockets are as they were.
            let thread = std::thread::spawn(|| std::fs::read("/proc/self/status"));
            assert!(thread.join().is_ok_and(|read| read.is_ok()));
            std::net::TcpListener::bind("127.0.0.1:0")?;
            // No program is run.
            let run = std::process::Command::new("/bin/true").status();
            io::Result::Ok(run.map_err(|why| why.kind()))
        });
        let run = denied.join().expect("no panic").expect("a filter");
        assert_eq!(run.err(), Some(io::ErrorKind::PermissionDenied));
    }
}
