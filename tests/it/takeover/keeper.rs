//! The keeper by itself, with shell scripts for daemons.
//!
//! A shell starts the first "daemon" and becomes the keeper, as `efs-fuse mount` does. What a
//! daemon would say is said by the test, which has the other end of the socket; the later ones
//! say it themselves, with the shell's own `printf` to descriptor 3.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use crate::fixtures::mount::EFS_FUSE;
use crate::fixtures::process;

const SOON: Duration = Duration::from_secs(20);

/// A keeper whose first daemon waits for a line at its standard input, and then does what that
/// says.
pub(super) struct Keeper {
    pub(super) dir: tempfile::TempDir,
    pub(super) child: Child,
    /// The daemon's end of the socket.
    socket: OwnedFd,
}

fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let done = process::eventually(limit, || done().then_some(()));
    assert!(done.is_some(), "{what}: not within {limit:?}");
}

fn packets() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair writes two descriptors, which belong to nobody else.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

impl Keeper {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (ours, theirs) = packets().expect("socketpair");
        let theirs_raw = theirs.as_raw_fd();
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(r#"exec 4<&0; (read -r order <&4; eval "$order") 3<&- & exec "$0" keeper /k $! foreground 4<&-"#)
            .arg(EFS_FUSE)
            .current_dir(dir.path())
            .stdin(std::process::Stdio::piped())
            // With its daemons.
            .process_group(0);
        // SAFETY: dup2 is async-signal-safe.
        unsafe {
            command.pre_exec(move || match libc::dup2(theirs_raw, 3) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let child = command.spawn().expect("a shell");
        let keeper = Self {
            dir,
            child,
            socket: ours,
        };
        keeper.until_it_keeps();
        keeper
    }

    /// The shell has become the keeper, and that is deaf for signals but by its descriptor.
    fn until_it_keeps(&self) {
        let path = format!("/proc/{}/status", self.child.id());
        eventually("there is a keeper", SOON, || {
            let status = fs::read_to_string(&path).unwrap_or_default();
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            let blocked = blocked.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
            blocked.is_some_and(|set| set & 1 << (libc::SIGTERM - 1) != 0)
        });
    }

    pub(super) fn say(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) {
        let rights = descriptor.map(|descriptor| [descriptor]);
        send(
            &self.socket,
            message,
            rights.as_ref().map(<[_; 1]>::as_slice).unwrap_or_default(),
        )
        .expect("the keeper hears");
    }

    /// What the first daemon does now.
    pub(super) fn order(&mut self, order: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{order}").expect("the daemon reads");
    }

    pub(super) fn ends(&mut self) -> ExitStatus {
        let mut ended = None;
        eventually("the keeper has ended", SOON, || {
            ended = self.child.try_wait().expect("a child");
            ended.is_some()
        });
        ended.expect("it has ended")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }

    /// What a later daemon has written.
    pub(super) fn read(&self, name: &str) -> String {
        let path = self.path(name);
        eventually("a daemon has written", SOON, || {
            fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
        });
        fs::read_to_string(path).expect("readable")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // SAFETY: the group is the keeper's, which is not waited for yet unless it has ended,
        // and its daemons', which this test has started.
        unsafe { libc::kill(-self.child.id().cast_signed(), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// sendmsg(2) with descriptors.
fn send(socket: &OwnedFd, message: &[u8], rights: &[BorrowedFd<'_>]) -> io::Result<()> {
    let part = IoSlice::new(message);
    let mut control = [0u64; 8];
    // SAFETY: of integers and pointers that may be null.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = (&raw const part).cast_mut().cast();
    header.msg_iovlen = 1;
    if let Some(first) = rights.first() {
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: the buffer has room for one descriptor.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(4) as _;
            let head = libc::CMSG_FIRSTHDR(&raw const header);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(head)
                .cast::<i32>()
                .write_unaligned(first.as_raw_fd());
        }
    }
    // SAFETY: the buffers live through the call.
    match unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

pub(super) fn held(keeper: &Keeper, slot: u8, path: &Path, text: &str) {
    fs::write(path, text).expect("a file");
    let file = File::open(path).expect("the file");
    keeper.say(&[b'h', slot], Some(file.as_fd()));
}

#[test]
fn the_keeper_ends_as_its_daemon_ends() {
    for (order, code, signal) in [
        ("exit 0", Some(0), None),
        ("exit 32", Some(32), None),
        (
            "kill -KILL $(exec sh -c 'echo $PPID')",
            None,
            Some(libc::SIGKILL),
        ),
    ] {
        let mut keeper = Keeper::start();
        keeper.say(b"r", None);
        keeper.order(order);
        let ended = keeper.ends();
        assert_eq!((ended.code(), ended.signal()), (code, signal), "{order}");
    }
}

#[test]
fn a_signal_of_the_keeper_goes_on_to_its_daemon() {
    let mut keeper = Keeper::start();
    keeper.order("trap 'exit 7' TERM; echo > ready; while :; do sleep 0.05; done");
    keeper.read("ready");
    // SAFETY: the child is not waited for yet.
    unsafe { libc::kill(keeper.child.id().cast_signed(), libc::SIGTERM) };
    assert_eq!(keeper.ends().code(), Some(7));
}

#[test]
fn the_next_program_gets_what_the_keeper_holds_and_the_last_of_each() {
    let mut keeper = Keeper::start();
    held(&keeper, 0, &keeper.path("a"), "an older device\n");
    held(&keeper, 0, &keeper.path("b"), "device\n");
    held(&keeper, 2, &keeper.path("c"), "state\n");
    let next = keeper.script(
        "next",
        "{ echo \"$1 $2 $#\"; cat <&4; [ ! -e /proc/self/fd/5 ] || echo an owner; cat <&6; } > seen.new\n\
         mv seen.new seen\nprintf r >&3\nexit 9",
    );
    keeper.say(b"r", None);
    keeper.say(&[b"n", next.as_os_str().as_encoded_bytes()].concat(), None);
    keeper.order("exit 0");
    assert_eq!(keeper.read("seen"), "take-over /k 2\ndevice\nstate\n");
    assert_eq!(keeper.ends().code(), Some(9));
}

#[test]
fn the_former_program_takes_over_from_one_that_ends_at_its_start_and_hears_why() {
    let mut keeper = Keeper::start();
    held(&keeper, 2, &keeper.path("c"), "state\n");
    // What is called "take-over" is what a shell runs that is called as a daemon is.
    let shell = File::open("/bin/sh").expect("a shell");
    keeper.say(&[b'h', 3], Some(shell.as_fd()));
    keeper.script(
        "take-over",
        "{ echo \"$1: $2\"; cat <&6; } > seen.new\nmv seen.new seen\nprintf r >&3\nexit 0",
    );
    let next = keeper.script("next", "printf 'fit is another layout' >&3\nexit 1");
    keeper.say(b"r", None);
    keeper.say(&[b"n", next.as_os_str().as_encoded_bytes()].concat(), None);
    // However it ends: its state is written.
    keeper.order("kill -KILL $(exec sh -c 'echo $PPID')");
    assert_eq!(keeper.read("seen"), "/k: it is another layout\nstate\n");
    assert_eq!(keeper.ends().code(), Some(0));
}

#[test]
fn a_program_that_is_not_there_is_as_one_that_ends_at_its_start() {
    let mut keeper = Keeper::start();
    let shell = File::open("/bin/sh").expect("a shell");
    keeper.say(&[b'h', 3], Some(shell.as_fd()));
    keeper.script("take-over", "echo \"$2\" > seen\nexit 5");
    keeper.say(b"r", None);
    keeper.say(b"n/nonexistent/efs-fuse", None);
    keeper.order("exit 0");
    assert_eq!(keeper.read("seen"), "it ended at its start\n");
    // Nobody is left who could take over.
    assert_eq!(keeper.ends().code(), Some(5));
}

#[test]
fn a_daemon_that_stays_after_all_is_followed_by_nobody() {
    let mut keeper = Keeper::start();
    let next = keeper.script("next", "echo > seen");
    keeper.say(b"r", None);
    keeper.say(&[b"n", next.as_os_str().as_encoded_bytes()].concat(), None);
    keeper.say(b"s", None);
    keeper.order("exit 3");
    assert_eq!(keeper.ends().code(), Some(3));
    assert!(!keeper.path("seen").exists());
}

#[test]
fn who_calls_keeper_or_take_over_by_hand_is_told_what_to_call() {
    for (arguments, remedy) in [
        (&["keeper"][..], "efs-fuse mount"),
        (&["keeper", "/k", "1", "foreground"], "efs-fuse mount"),
        (&["take-over", "/k"], "efs-fuse upgrade"),
    ] {
        let output = Command::new(EFS_FUSE).args(arguments).output();
        let output = output.expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(remedy) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_keeper_is_small() {
    let mut keeper = Keeper::start();
    keeper.say(b"r", None);
    let pid = keeper.child.id();
    let mut status = String::new();
    let file = File::open(format!("/proc/{pid}/status"));
    file.and_then(|mut file| file.read_to_string(&mut status))
        .expect("its status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(u64::MAX)
    };
    // What it shares with the daemon, which runs the same program, costs nothing.
    let own = field("RssAnon:") + field("RssShmem:");
    assert!(own <= 2048, "{own} KiB");
    keeper.order("exit 0");
    assert_eq!(keeper.ends().code(), Some(0));
}
