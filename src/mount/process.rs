//! Which process a pid in a file means, now that pids are used again.
//!
//! A process is identified by its pid together with its start time; signals go
//! through a pidfd that was opened before the identity was checked, so that
//! nobody else can be hit in between.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A process that is, or was, running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl Identity {
    /// This process.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn own() -> io::Result<Self> {
        let pid = std::process::id();
        Ok(Self::of(pid).ok_or(io::ErrorKind::NotFound)?)
    }

    /// The process that has this pid now, if one has.
    pub fn of(pid: u32) -> Option<Self> {
        let start_time = start_time(pid)?;
        Some(Self { pid, start_time })
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// A handle to it, if it still runs.
    pub fn open(self) -> Option<Process> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // The descriptor holds whatever process has the pid now; if that has
        // our start time, it is the one that is meant, for ever.
        self.is_alive().then_some(Process { fd, identity: self })
    }
}

/// The pid namespace of this process, by its inode number; 0 if `/proc` does not tell.
pub fn own_pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// A running process that cannot be taken for another.
#[derive(Debug)]
pub struct Process {
    fd: OwnedFd,
    identity: Identity,
}

impl Process {
    /// Waits until it has ended, at most `patience`. True if it has.
    pub fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let mut poll = libc::pollfd {
                fd: self.fd.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid pollfd, counted as one.
            let ready = unsafe { libc::poll(&raw mut poll, 1, millis) };
            if ready > 0 {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    /// Sends a signal to exactly this process.
    ///
    /// # Errors
    /// It has ended, or belongs to somebody else.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a valid descriptor, and a null siginfo, which the kernel allows.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                no_info,
                0,
            )
        };
        if sent == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Whether it runs the program `exe`, also if that file was replaced by an
    /// upgrade since.
    pub fn runs(&self, exe: &Path) -> bool {
        executable(self.identity.pid).is_some_and(|running| running == exe)
    }
}

/// The program that `pid` runs, without the mark of a deleted file.
pub fn executable(pid: u32) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    match path
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
    {
        Some(deleted) => Some(deleted.into()),
        None => Some(path),
    }
}

/// The users of a process: real, effective, saved and of the file system, as the kernel
/// tells everybody. (The owner of `/proc/PID` is root where a process keeps its memory to
/// itself, as ours does where there are keys in it.)
pub fn users(pid: u32) -> Option<[u32; 4]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut users = line.split_whitespace().map(str::parse);
    let mut next = || users.next()?.ok();
    Some([next()?, next()?, next()?, next()?])
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

/// The start time, `None` for the dead. The program's name, in parentheses,
/// may contain anything, parentheses too.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    // `fields` is now behind field 3; the start time is field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(start_time)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::private_dir::effective_user;
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("12 (a) b ) {tail}")), Some(4711));
        assert_eq!(
            parse_stat(&format!("12 (x) {}", tail.replace('S', "Z"))),
            None
        );
        assert_eq!(parse_stat("12 (x) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn this_process_is_alive_and_its_namesake_of_another_time_is_not() -> io::Result<()> {
        let own = Identity::own()?;
        assert!(own.is_alive());
        let namesake = Identity {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!namesake.is_alive() && namesake.open().is_none());
        assert_eq!(users(own.pid).map(|users| users[1]), Some(effective_user()));
        assert!(
            own.open()
                .is_some_and(|process| process.runs(&std::env::current_exe().unwrap_or_default()))
        );
        Ok(())
    }

    #[test]
    fn a_child_is_waited_for_and_killed() -> io::Result<()> {
        let mut child = Command::new("sleep").arg("60").spawn()?;
        let pid = child.id();
        let identity = Identity {
            pid,
            start_time: start_time(pid).unwrap_or_default(),
        };
        let process = identity.open().ok_or(io::ErrorKind::NotFound)?;
        assert!(!process.wait(Duration::from_millis(20)));
        process.signal(libc::SIGKILL)?;
        assert!(process.wait(Duration::from_secs(5)));
        // Unreaped, it is a zombie: dead to us.
        assert!(!identity.is_alive());
        child.wait()?;
        Ok(())
    }
}
