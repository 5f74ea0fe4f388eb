//! The daemon's end of the line to its keeper.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process;
use std::ptr;
use std::sync::Arc;

use super::process::{NAME, SIGNALS, is_socket, keep};
use super::{MESSAGE, REASON, SOCKET, Slot, witness};
use crate::mount::process::Identity;

/// A daemon's line to its keeper. Messages are small and the keeper reads them at once: none
/// waits. Clones are one line.
#[derive(Debug, Clone)]
pub struct KeeperLink {
    socket: Arc<OwnedFd>,
    keeper: Option<Identity>,
}

/// Forks, for a process with one thread that is about to mount at `mountpoint`: the caller
/// goes on as the child, with the line to its parent, which is the keeper from here on and
/// does not return.
///
/// # Errors
/// No socket, or no fork; then the caller is what it was.
pub fn attach(mountpoint: &Path, foreground: bool) -> io::Result<KeeperLink> {
    let mountpoint = CString::new(mountpoint.as_os_str().as_bytes())?;
    let mut ends: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair writes two descriptors into the array.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new and belong to nobody else.
    let [ours, theirs] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    let former = block_signals();
    // SAFETY: there is one thread, so the child may go on as if nothing had happened.
    match unsafe { libc::fork() } {
        -1 => {
            let why = io::Error::last_os_error();
            set_mask(&former);
            Err(why)
        }
        0 => {
            set_mask(&former);
            let keeper = parent();
            Ok(KeeperLink {
                socket: Arc::new(ours),
                keeper,
            })
        }
        daemon => {
            drop(ours);
            become_keeper(&theirs, daemon, mountpoint, foreground)
        }
    }
}

/// The keeper as a program of its own, which is small; or, where that cannot be run, as what
/// this process is.
fn become_keeper(
    socket: &OwnedFd,
    daemon: libc::pid_t,
    mountpoint: CString,
    foreground: bool,
) -> ! {
    let name = CString::new(NAME).unwrap_or_default();
    let pid = CString::new(daemon.to_string()).unwrap_or_default();
    let place: &CStr = match foreground {
        true => c"foreground",
        false => c"background",
    };
    let arguments = [c"efs-fuse", &name, &mountpoint, &pid, place].map(CStr::as_ptr);
    let [zeroth, first, second, third, fourth] = arguments;
    let arguments = [zeroth, first, second, third, fourth, ptr::null()];
    // SAFETY: valid descriptors, and strings that live through the call. What is not given on
    // is closed by it.
    unsafe {
        match socket.as_raw_fd() {
            SOCKET => libc::fcntl(SOCKET, libc::F_SETFD, 0),
            other => libc::dup2(other, SOCKET),
        };
        libc::execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr());
    }
    process::exit(keep(SOCKET, daemon, mountpoint, foreground).into())
}

/// Blocks the keeper's signals, which are to wait until it reads them. The mask before.
fn block_signals() -> libc::sigset_t {
    // SAFETY: sets of signals that live through the calls.
    unsafe {
        let (mut set, mut former) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, &raw mut former);
        former
    }
}

fn set_mask(mask: &libc::sigset_t) {
    // SAFETY: a set of signals that lives through the call.
    unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut());
    }
}

fn parent() -> Option<Identity> {
    // SAFETY: getppid cannot fail and has no memory effects.
    let parent = u32::try_from(unsafe { libc::getppid() }).ok()?;
    Identity::of(parent)
}

impl KeeperLink {
    /// The keeper; `None` if it had ended when this process began.
    pub fn keeper(&self) -> Option<Identity> {
        self.keeper
    }

    /// The keeper lives, so that this daemon can be followed by another.
    pub fn is_alive(&self) -> bool {
        self.keeper.is_some_and(Identity::is_alive)
    }

    /// Gives the keeper something to hold, instead of what it held there.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn hold(&self, slot: Slot, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&[b'h', slot.number()], Some(descriptor))
    }

    /// Has the keeper know when this process is dying, also when not all of its threads can end.
    ///
    /// # Errors
    /// The keeper has ended, or the kernel does not know of threads (before Linux 6.9): then it
    /// hears of the end of the last one.
    pub fn witness(&self) -> io::Result<()> {
        let witness = witness::start()?;
        self.send(b"t", Some(witness.as_fd()))
    }

    /// This daemon serves, or is about to: from here on nothing can take it back.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn ready(&self) -> io::Result<()> {
        self.send(b"r", None)
    }

    /// The state is written: when this daemon has ended, `program` takes over.
    ///
    /// # Errors
    /// The keeper has ended, or the path is too long.
    pub fn next(&self, program: &Path) -> io::Result<()> {
        let message = [b"n", program.as_os_str().as_bytes()].concat();
        if message.len() >= MESSAGE || message.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.send(&message, None)
    }

    /// This daemon stays: [`next`](Self::next) is void.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn stay(&self) -> io::Result<()> {
        self.send(b"s", None)
    }

    /// This daemon cannot take over: the former program, which does then, is told why.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn failed(&self, reason: &str) -> io::Result<()> {
        let reason = &reason.as_bytes()[..reason.len().min(REASON)];
        self.send(&[b"f", reason].concat(), None)
    }

    /// What was given to be held as the state is a write-ahead log, and this daemon gives signs of
    /// life: should it die without [`goodbye`](Self::goodbye), its program is started again.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn survives(&self) -> io::Result<()> {
        self.send(b"w", None)
    }

    /// This daemon is alive. A keeper that does not hear is not waited for.
    pub fn beat(&self) {
        // SAFETY: one byte that lives through the call. An error means that there is no keeper,
        // or that it has many of these before it.
        unsafe {
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            libc::send(self.socket.as_raw_fd(), b"b".as_ptr().cast(), 1, flags);
        }
    }

    /// The mount ends with this daemon, however that ends.
    ///
    /// # Errors
    /// The keeper has ended.
    pub fn goodbye(&self) -> io::Result<()> {
        self.send(b"g", None)
    }

    fn send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut control = [0u64; 4];
        let mut part = libc::iovec {
            iov_base: message.as_ptr().cast_mut().cast(),
            iov_len: message.len(),
        };
        // SAFETY: of integers and pointers that may be null.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if let Some(descriptor) = descriptor {
            let size = size_of::<RawFd>() as u32;
            header.msg_control = control.as_mut_ptr().cast();
            // SAFETY: the buffer has room for a header and one descriptor.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(size) as _;
                let first = libc::CMSG_FIRSTHDR(&raw const header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(size) as _;
                ptr::write_unaligned(libc::CMSG_DATA(first).cast(), descriptor.as_raw_fd());
            }
        }
        let socket = self.socket.as_raw_fd();
        // SAFETY: the buffers live through the call, and have the lengths that are said.
        match unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// What a daemon that takes over is given.
#[derive(Debug)]
pub struct Inherited {
    /// The line to the keeper.
    pub link: KeeperLink,
    /// `/dev/fuse`, of the mount.
    pub device: OwnedFd,
    /// The lock file of the owner, if there was one.
    pub owner: Option<File>,
    /// The memory with the state.
    pub state: File,
}

impl Inherited {
    /// Takes what a keeper has given to this process. To be called once, before anything
    /// is opened.
    ///
    /// # Errors
    /// This process was not started by a keeper.
    pub fn take() -> io::Result<Self> {
        if !is_socket(SOCKET) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let take = |at: RawFd| {
            // SAFETY: whether it is valid is what is asked.
            if unsafe { libc::fcntl(at, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: it is open, and nobody else's by the contract of this function.
            Ok(unsafe { OwnedFd::from_raw_fd(at) })
        };
        let socket = take(SOCKET)?;
        let (device, owner, state) = (take(SOCKET + 1), take(SOCKET + 2), take(SOCKET + 3));
        Ok(Self {
            link: KeeperLink {
                socket: Arc::new(socket),
                keeper: parent(),
            },
            device: device?,
            owner: owner.ok().map(File::from),
            state: state?.into(),
        })
    }
}

/// The program that this process runs, to be held by its keeper: it stays what it is when its
/// file is replaced.
///
/// # Errors
/// `/proc` is not there.
pub fn own_program() -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let program = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open("/proc/self/exe")?;
    Ok(program.into())
}
