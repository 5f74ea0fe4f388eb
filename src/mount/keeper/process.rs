//! The keeper's process: one thread, one loop, and nothing allocated in it.

use std::ffi::{CStr, CString, OsString};
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::ptr;
use std::time::Instant;

use super::crashes::Crashes;
use super::machine::{Action, Crash, Event, Hopeless, Machine, Program};
use super::{DIED, Died, MESSAGE, REASON, SOCKET, Slot};
use crate::mount::{harden, memory};
use crate::quoting;
use crate::telemetry::log;
use crate::wal::clock;

/// What the keeper is called with, instead of a command.
pub const NAME: &str = "keeper";
/// What a daemon that takes over is called with.
const TAKE_OVER: &CStr = c"take-over";

/// Descriptors of the keeper's own are from here on, so that those below can be given out.
const OWN: RawFd = 16;

/// The signals that are the keeper's business: to end, and that a child has ended.
pub(super) const SIGNALS: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// Becomes a keeper, as the arguments behind [`NAME`] say: the mount point, the daemon's pid,
/// and whether it is in the foreground.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let [mountpoint, daemon, place] = &*arguments else {
        return refuse();
    };
    let daemon = daemon.to_str().and_then(|pid| pid.parse().ok());
    let mountpoint = CString::new(mountpoint.clone().into_vec());
    match (daemon, mountpoint) {
        (Some(daemon), Ok(mountpoint)) if is_socket(SOCKET) => {
            keep(SOCKET, daemon, mountpoint, place == "foreground").into()
        }
        _ => refuse(),
    }
}

fn refuse() -> ExitCode {
    eprintln!("efs-fuse: keeper: it is started by efs-fuse mount. Try: efs-fuse mount --help");
    ExitCode::from(1)
}

/// Whether a descriptor is a socket of packets.
pub(super) fn is_socket(descriptor: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut length = size_of_val(&kind) as libc::socklen_t;
    // SAFETY: an int and its length, which live through the call.
    let known = unsafe {
        libc::getsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut length,
        )
    };
    known == 0 && kind == libc::SOCK_SEQPACKET
}

/// Keeps what the daemon gives it, until that ends for good. The exit status.
pub(super) fn keep(
    socket: RawFd,
    daemon: libc::pid_t,
    mountpoint: CString,
    foreground: bool,
) -> u8 {
    // The environment may hold keys, as that of the daemon, which is not dumped either. What
    // is refused here leaves a keeper that is as good as a shell with the same environment.
    let _ = harden::not_dumpable();
    let mut keeper = Keeper {
        socket: own(socket),
        signals: signals(),
        daemon,
        witness: -1,
        held: [-1; Slot::COUNT],
        offered: [-1; Slot::COUNT],
        next: Text::new(),
        reason: Text::new(),
        died: Text::new(),
        hopeless: None,
        mountpoint,
        foreground,
        has_served: false,
        begun: Instant::now(),
        machine: Machine::new(Crashes::new(is_unlimited())),
    };
    // It may have ended before there was anybody to hear of it.
    let mut turn = keeper.reap();
    loop {
        match turn {
            Turn::Continue(()) => turn = keeper.turn(),
            Turn::Break(status) => {
                keeper.last_words();
                return end_as(status);
            }
        }
    }
}

/// Tests kill more often than anybody bears.
fn is_unlimited() -> bool {
    cfg!(debug_assertions) && std::env::var_os("EFS_FUSE_TEST_CRASHES").is_some()
}

/// A text of at most `N` - 1 bytes that ends with a NUL, in its place.
struct Text<const N: usize> {
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    const fn new() -> Self {
        Self { bytes: [0; N] }
    }

    fn set(&mut self, text: &[u8]) {
        let length = text.len().min(N - 1);
        self.bytes[..length].copy_from_slice(&text[..length]);
        self.bytes[length] = 0;
    }

    fn as_ptr(&self) -> *const libc::c_char {
        self.bytes.as_ptr().cast()
    }

    fn is_empty(&self) -> bool {
        self.bytes[0] == 0
    }
}

struct Keeper {
    /// To the daemon; -1 if there is none.
    socket: RawFd,
    signals: RawFd,
    daemon: libc::pid_t,
    /// Can be read when the daemon is dying; -1 from then on.
    witness: RawFd,
    held: [RawFd; Slot::COUNT],
    /// What a daemon gave that is not ready yet: it is held when that is.
    offered: [RawFd; Slot::COUNT],
    /// The program that takes over.
    next: Text<MESSAGE>,
    /// Why the last one could not.
    reason: Text<REASON>,
    /// How a daemon has crashed, for the one that takes over.
    died: Text<DIED>,
    /// Why no daemon is started any more.
    hopeless: Option<Hopeless>,
    mountpoint: CString,
    foreground: bool,
    has_served: bool,
    begun: Instant,
    machine: Machine,
}

/// `Break`: the wait status to end with.
type Turn = ControlFlow<i32>;

impl Keeper {
    /// Waits for something to happen, and does what that asks for.
    fn turn(&mut self) -> Turn {
        let is_dying = self.wait();
        // What a daemon has said counts before its end does.
        self.hear()?;
        if is_dying {
            close(std::mem::replace(&mut self.witness, -1));
            self.on(Event::Dying)?;
        }
        if self.heed_signals() {
            self.reap()?;
        }
        let late = self.machine.deadline();
        match late.is_some_and(|late| self.begun.elapsed() >= late) {
            true => self.on(Event::Late),
            false => Turn::Continue(()),
        }
    }

    /// Waits for a message, a signal, or the deadline. Whether the daemon is dying.
    fn wait(&self) -> bool {
        let left = self
            .machine
            .deadline()
            .map(|late| late.saturating_sub(self.begun.elapsed()));
        let millis = left.map_or(-1, |left| {
            i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
        });
        let watch = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // A descriptor of -1 is passed over.
        let mut polled = [watch(self.signals), watch(self.socket), watch(self.witness)];
        // SAFETY: three valid pollfds, counted as three. An error is a turn for nothing.
        let any = unsafe { libc::poll(polled.as_mut_ptr(), 3, millis) };
        any > 0 && polled[2].revents != 0
    }

    /// Takes in all that the daemon has said.
    fn hear(&mut self) -> Turn {
        let mut message = [0; MESSAGE];
        loop {
            let (length, descriptor) = receive(self.socket, &mut message);
            let event = match (length, &message[..length.unwrap_or(0)]) {
                (None, _) => return Turn::Continue(()),
                // The daemon has closed its end: it has ended, or is about to.
                (Some(0), _) => {
                    close(self.socket);
                    self.socket = -1;
                    return Turn::Continue(());
                }
                (_, [b'h', slot]) if usize::from(*slot) < Slot::COUNT && descriptor >= 0 => {
                    let slots = match self.machine.is_starting() {
                        true => &mut self.offered,
                        false => &mut self.held,
                    };
                    let held = &mut slots[usize::from(*slot)];
                    close(*held);
                    *held = own(descriptor);
                    continue;
                }
                (_, b"t") => {
                    close(std::mem::replace(&mut self.witness, own(descriptor)));
                    continue;
                }
                (_, [b'n', path @ ..]) => {
                    self.next.set(path);
                    Event::Next
                }
                (_, [b'f', reason @ ..]) => {
                    self.reason.set(reason);
                    continue;
                }
                (_, b"s") => Event::Stay,
                (_, b"w") => Event::Survives,
                (_, b"b") => Event::Beat,
                (_, b"g") => Event::Goodbye,
                (_, b"r") => {
                    self.take_offered();
                    self.served();
                    Event::Ready
                }
                _ => {
                    close(descriptor);
                    continue;
                }
            };
            close(descriptor);
            self.on(event)?;
        }
    }

    /// A daemon has taken over: what it gave is held from here on, all of it at once.
    fn take_offered(&mut self) {
        for (held, offered) in self.held.iter_mut().zip(&mut self.offered) {
            if *offered >= 0 {
                close(*held);
                *held = std::mem::replace(offered, -1);
            }
        }
    }

    /// A daemon serves. From the first time on the keeper has nothing to do with whoever
    /// started it.
    fn served(&mut self) {
        if self.has_served || self.foreground {
            return;
        }
        self.has_served = true;
        // What comes next may be days away; it is read again then.
        let _ = memory::give_back_program();
        // SAFETY: static strings; what cannot be done is left as it is.
        unsafe {
            libc::chdir(c"/".as_ptr());
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            if null >= 0 {
                (0..=2).for_each(|standard| {
                    libc::dup2(null, standard);
                });
                libc::close(null);
            }
        }
    }

    /// Passes on what is the daemon's. Whether a child has ended.
    fn heed_signals(&mut self) -> bool {
        let mut any_ended = false;
        loop {
            // SAFETY: of integers alone.
            let mut signal: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
            let size = size_of_val(&signal);
            // SAFETY: as many bytes as there are; the descriptor does not block.
            let read = unsafe { libc::read(self.signals, (&raw mut signal).cast(), size) };
            if usize::try_from(read) != Ok(size) {
                return any_ended;
            }
            match i32::try_from(signal.ssi_signo).unwrap_or_default() {
                libc::SIGCHLD => any_ended = true,
                other => {
                    // This does not fail, as it is no end.
                    let _ = self.on(Event::Asked);
                    // One that is starting could not hear it yet; it is asked when it is ready.
                    if !self.machine.is_starting() {
                        self.signal(other);
                    }
                }
            }
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the child is not reaped yet, so the pid is still its own.
        unsafe {
            libc::kill(self.daemon, signal);
        }
    }

    /// Takes in that the daemon has ended, if it has; and the last of one that was followed
    /// before it could.
    fn reap(&mut self) -> Turn {
        loop {
            let mut status = 0;
            // SAFETY: waitpid writes one int.
            let ended = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if ended <= 0 {
                return Turn::Continue(());
            }
            if ended == self.daemon {
                self.hear()?;
                self.on(Event::Ended(status))?;
            }
        }
    }

    fn on(&mut self, event: Event) -> Turn {
        match self.machine.on(self.begun.elapsed(), event) {
            Action::Wait => {}
            Action::End(status) => return Turn::Break(status),
            Action::Kill => {
                if self.machine.is_starting() {
                    self.reason.set(b"it was not ready in time");
                }
                self.signal(libc::SIGKILL);
            }
            Action::Ask => self.signal(libc::SIGTERM),
            Action::GiveUp(status, why) => {
                self.hopeless = Some(why);
                return Turn::Break(status);
            }
            Action::Again(crash) => return self.again(crash),
            Action::Start(program) => {
                if program == Program::Next {
                    self.reason.set(b"");
                } else if self.reason.is_empty() {
                    self.reason.set(b"it ended at its start");
                }
                self.died.set(b"");
                if !self.start(program) {
                    // 127, as a shell says of a program that it cannot start.
                    return self.on(Event::Ended(127 << 8));
                }
            }
        }
        Turn::Continue(())
    }

    /// Starts the same program again, and tells it how the daemon before it has ended.
    fn again(&mut self, crash: Crash) -> Turn {
        // `at` is of another clock than what processes compare.
        let ago = self.begun.elapsed().saturating_sub(crash.at);
        Died {
            status: crash.status,
            hung: crash.hung,
            noticed: clock().saturating_sub(ago),
            crashes: self.machine.crashes().into(),
        }
        .encode(&mut self.died.bytes);
        match self.start(Program::Former) {
            true => Turn::Continue(()),
            false => self.on(Event::Ended(127 << 8)),
        }
    }

    /// Says why no daemon is started any more. The loop is over.
    fn last_words(&self) {
        let Some(why) = self.hopeless else {
            return;
        };
        let destination = log::Destination::choose(self.foreground, None);
        if log::init(&destination, false).is_ok() {
            let place = std::ffi::OsStr::from_bytes(self.mountpoint.as_bytes());
            tracing::error!(
                "the mount at {0} is given up: {1}. Programs get ENOTCONN; mount it again, with \
                 -o takeover=upgrade if this happens once more",
                quoting::path(place.as_ref()),
                why.text()
            );
        }
    }

    /// Starts a daemon that takes over. False if there is no process.
    fn start(&mut self, program: Program) -> bool {
        for offered in &mut self.offered {
            close(std::mem::replace(offered, -1));
        }
        let mut ends = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: socketpair writes two descriptors into the array.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
            return false;
        }
        let (ours, theirs) = (own(ends[0]), own(ends[1]));
        // SAFETY: there is one thread.
        let child = unsafe { libc::fork() };
        if child == 0 {
            self.become_daemon(program, theirs);
        }
        close(theirs);
        close(self.socket);
        self.socket = ours;
        if child > 0 {
            self.daemon = child;
            close(std::mem::replace(&mut self.witness, -1));
        }
        child > 0
    }

    /// In the child: the program, with what is held.
    fn become_daemon(&self, program: Program, socket: RawFd) -> ! {
        let given = Slot::INHERITED.map(|slot| self.held[usize::from(slot.number())]);
        let arguments = [
            c"efs-fuse".as_ptr(),
            TAKE_OVER.as_ptr(),
            self.mountpoint.as_ptr(),
            match program {
                Program::Next => ptr::null(),
                Program::Former => self.reason.as_ptr(),
            },
            match self.died.is_empty() {
                true => ptr::null(),
                false => self.died.as_ptr(),
            },
            ptr::null(),
        ];
        let former = self.held[usize::from(Slot::Program.number())];
        // SAFETY: the descriptors are the keeper's, all of them above those that they are
        // given as; the arguments are strings and end with a null.
        unsafe {
            for (at, descriptor) in (SOCKET..).zip([socket].into_iter().chain(given)) {
                match descriptor {
                    -1 => libc::close(at),
                    held => libc::dup2(held, at),
                };
            }
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            match program {
                Program::Next => {
                    libc::execve(self.next.as_ptr(), arguments.as_ptr(), environ);
                }
                // Its file may have been replaced: what is held is what ran.
                Program::Former => {
                    let empty = c"".as_ptr();
                    libc::syscall(
                        libc::SYS_execveat,
                        former,
                        empty,
                        arguments.as_ptr(),
                        environ,
                        libc::AT_EMPTY_PATH,
                    );
                }
            }
            libc::_exit(127)
        }
    }
}

/// The descriptor as one of the keeper's own, which no program is given.
fn own(descriptor: RawFd) -> RawFd {
    if !(0..OWN).contains(&descriptor) {
        return descriptor;
    }
    // SAFETY: a valid descriptor; a copy of it takes its place.
    unsafe {
        let copy = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, OWN);
        libc::close(descriptor);
        copy
    }
}

fn close(descriptor: RawFd) {
    if descriptor >= 0 {
        // SAFETY: who calls this has no further use for it.
        unsafe {
            libc::close(descriptor);
        }
    }
}

/// The descriptor at which the keeper's signals are read, which are blocked from here on.
fn signals() -> RawFd {
    // SAFETY: sets of signals that live through the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        own(libc::signalfd(-1, &raw const set, flags))
    }
}

/// A message, and the descriptor that came with it or -1. `None`: there is none now; 0 bytes:
/// there will be none.
fn receive(socket: RawFd, message: &mut [u8]) -> (Option<usize>, RawFd) {
    if socket < 0 {
        return (None, -1);
    }
    // Room for one descriptor, aligned as a header of such.
    let mut control = [0u64; 4];
    let mut part = libc::iovec {
        iov_base: message.as_mut_ptr().cast(),
        iov_len: message.len(),
    };
    // SAFETY: of integers and pointers that may be null.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the buffers live through the call, and have the lengths that are said.
    let length = unsafe { libc::recvmsg(socket, &raw mut header, flags) };
    let Ok(length) = usize::try_from(length) else {
        return (None, -1);
    };
    let mut descriptor = -1;
    // SAFETY: the header is as the kernel has left it.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        if !first.is_null()
            && (*first).cmsg_level == libc::SOL_SOCKET
            && (*first).cmsg_type == libc::SCM_RIGHTS
        {
            descriptor = ptr::read_unaligned(libc::CMSG_DATA(first).cast());
        }
    }
    (Some(length), descriptor)
}

/// Ends this process as the daemon has ended; the exit status, if that was no signal.
fn end_as(status: i32) -> u8 {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the default action of the signal, which is the end, without a dump of a
        // memory that says nothing.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::signal(signal, libc::SIG_DFL);
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
            libc::raise(signal);
        }
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX)
}
