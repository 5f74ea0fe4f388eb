//! Mounted again at a place whose former mount lives on: in a container, a bind mount,
//! or unmounted lazily while a program has files open there. Both daemons serve, and to
//! the server they are two clients.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, MountRequest, Mountpoint};
use crate::fixtures::process::{eventually, run};
use crate::fixtures::sys::{self, errno};

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("open")
}

/// F_OFD_SETLK of the whole file for writing.
fn lock(file: &File) -> io::Result<()> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the struct lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A place that is mounted at several times.
struct Again {
    at: Mountpoint,
    logs: tempfile::TempDir,
    server: Server,
    daemons: Vec<i32>,
}

impl Again {
    fn new() -> Self {
        let server = Server::start(ServerOptions {
            lease: 60,
            ..ServerOptions::default()
        });
        Self {
            at: Mountpoint::new(),
            logs: tempfile::tempdir().expect("temporary directory"),
            server,
            daemons: Vec::new(),
        }
    }

    /// Mounts; returns the number of the mount.
    fn mount(&mut self) -> usize {
        let number = self.daemons.len();
        let log = self.log(number);
        let request = MountRequest::of(&self.server).option(&format!("log={}", log.display()));
        run(&mut request.command(self.at.path()), COMMAND_LIMIT).expect_success("mount");
        let new = |pid: &i32| !self.daemons.contains(pid);
        let daemon = self.at.daemons().into_iter().find(new);
        self.daemons.push(daemon.expect("a new daemon"));
        number
    }

    fn log(&self, number: usize) -> PathBuf {
        self.logs.path().join(number.to_string())
    }

    fn file(&self) -> File {
        open(&self.at.path().join("file"))
    }

    fn unmount_lazily(&self) {
        sys::detach(self.at.path()).expect("umount -l");
    }

    fn kill(&self, number: usize) {
        // SAFETY: no memory effects. The daemon was found by its directory, which is
        // this test's alone.
        unsafe { libc::kill(self.daemons[number], libc::SIGKILL) };
        let gone = || (!self.at.daemons().contains(&self.daemons[number])).then_some(());
        eventually(Duration::from_secs(10), gone).expect("it dies");
    }

    #[track_caller]
    fn nobody_lost_a_session(&self) {
        for number in 0..self.daemons.len() {
            let log = fs::read_to_string(self.log(number)).expect("log");
            assert!(!log.contains("session is lost"), "mount {number}: {log}");
        }
    }
}

#[test]
fn a_mount_at_the_place_of_one_that_lives_on_takes_nothing_from_it() {
    let mut place = Again::new();
    place.mount();
    let holder = place.file();
    lock(&holder).expect("a free file");
    place.unmount_lazily();
    place.mount();
    let other = place.file();
    assert_eq!(errno(lock(&other)), libc::EAGAIN, "the first one has it");
    let end = Instant::now() + Duration::from_secs(4);
    let mut round = 0_u64;
    while Instant::now() < end {
        holder.write_at(&round.to_le_bytes(), 0).expect("write");
        holder.sync_data().expect("the first holder's data");
        let beside = place.at.path().join("beside");
        fs::write(&beside, round.to_le_bytes()).expect("write");
        assert_eq!(errno(lock(&other)), libc::EAGAIN, "round {round}");
        round += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    place.nobody_lost_a_session();
    let behind = fs::read(place.server.export().join("file")).expect("read");
    assert_eq!(behind, (round - 1).to_le_bytes());
    drop(holder);
    // close(2) does not wait for RELEASE, which gives an flock back.
    let freed = eventually(Duration::from_secs(5), || lock(&other).ok());
    freed.expect("the holder has closed it");
}

#[test]
fn what_a_killed_daemon_held_is_free_at_once_and_the_living_ones_keep_theirs() {
    let mut place = Again::new();
    let first = place.mount();
    let of_first = place.file();
    lock(&of_first).expect("a free file");
    place.unmount_lazily();
    place.mount();
    let kept = open(&place.at.path().join("kept"));
    lock(&kept).expect("a free file");
    place.unmount_lazily();
    place.kill(first);
    let begun = Instant::now();
    place.mount();
    let successor = place.file();
    lock(&successor).expect("its holder's daemon is dead");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "that was the lease: {:?}",
        begun.elapsed()
    );
    let taken = lock(&open(&place.at.path().join("kept")));
    assert_eq!(errno(taken), libc::EAGAIN, "the second one lives");
    kept.write_at(b"still mine", 0).expect("write");
    kept.sync_data().expect("fsync");
    place.nobody_lost_a_session();
}
