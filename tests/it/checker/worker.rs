//! A process of the checker on real mounts: the test program once more, with orders on its
//! stdin. What it does is written down before it is done and after, line by line on
//! its stderr, so that nothing of it is lost when it is killed.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::history::{Answer, Call, Fd, How, Kind, Path, Seen, Time};
use super::kernel::{SLOTS, filled, link_text, link_token, listed, slot_size, tokens};
use super::plan::{Chance, Plan, Theme};
use crate::fixtures::sys;

/// Until what a file holds is settled (`checker::real::disk`), and then until it is on the disk.
const UNTIL_KEPT: [Duration; 2] = [Duration::from_millis(15), Duration::from_millis(5)];

/// The name of the test that is such a process.
pub(super) const WORKER: &str = "checker::worker::a_process_of_the_checker";

/// What a process does in one round.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// The plot, as its host sees it.
    pub(super) plot: PathBuf,
    pub(super) theme: Theme,
    pub(super) host: u8,
    pub(super) number: u16,
    pub(super) seed: u64,
    pub(super) calls: u64,
    /// The longest pause between two calls, in microseconds.
    pub(super) pause: u64,
}

/// What a process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Line {
    Begins {
        call: Call,
        at: Time,
    },
    Ended {
        answer: Answer,
        at: Time,
    },
    /// All of its order is done.
    Idle,
}

/// Microseconds on the clock that all processes of a machine share.
pub(super) fn clock() -> Time {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes a timespec, and this is one.
    let said = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(said, 0, "CLOCK_MONOTONIC");
    now.tv_sec as Time * 1_000_000 + now.tv_nsec as Time / 1000
}

fn say(line: &Line) {
    let text = serde_json::to_string(line).expect("a line");
    // One write each: a process may be killed between two.
    let said = io::stderr().write_all(format!("{text}\n").as_bytes());
    said.expect("the checker hears");
}

/// Not a test of its own: a process that [`super::real`] starts, gives orders and kills.
#[test]
#[ignore = "a process of the checker, which starts it"]
fn a_process_of_the_checker() {
    // SAFETY: umask cannot fail, and this process is for nothing else.
    unsafe { libc::umask(0o022) };
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line.expect("stdin")).expect("an order");
        follow(&order);
        say(&Line::Idle);
    }
}

fn follow(order: &Order) {
    let mut chance = Chance(order.seed);
    let mut plan = Plan::new(order.theme, order.host, order.number, chance.split(), true);
    let mut files = HashMap::new();
    for _ in 0..order.calls {
        let pause = match chance.below(8) {
            0 => chance.below(order.pause),
            1..3 => chance.below(order.pause / 50),
            _ => 0,
        };
        std::thread::sleep(Duration::from_micros(pause));
        let call = plan.next();
        plan.hears(&call, &make(order, &mut files, call));
    }
    for fd in plan.open() {
        make(order, &mut files, Call::Close(fd));
    }
}

/// Makes a call, and says so.
fn make(order: &Order, files: &mut HashMap<Fd, File>, call: Call) -> Answer {
    say(&Line::Begins { call, at: clock() });
    let said = match call.fd() {
        Some(fd) if !matches!(call, Call::Open { .. }) => on_open(files, call, fd),
        _ => by_path(&order.plot, files, call),
    };
    let at = clock();
    let answer = said.unwrap_or_else(|error| {
        let errno = error.raw_os_error();
        Answer::Refused(errno.unwrap_or_else(|| panic!("{call:?}: {error}")))
    });
    say(&Line::Ended {
        answer: answer.clone(),
        at,
    });
    answer
}

fn by_path(plot: &FilePath, files: &mut HashMap<Fd, File>, call: Call) -> io::Result<Answer> {
    let path = |at: Path| plot.join(at.text());
    match call {
        Call::Mkdir(at) => DirBuilder::new().mode(0o755).create(path(at))?,
        Call::Rmdir(at) => fs::remove_dir(path(at))?,
        Call::Unlink(at) => unlink(&path(at))?,
        Call::Symlink(at, token) => symlink(link_text(token), path(at))?,
        Call::Link(from, to) => fs::hard_link(path(from), path(to))?,
        Call::Rename { from, to, replaces } => {
            let flags = if replaces { 0 } else { libc::RENAME_NOREPLACE };
            sys::rename_with(&path(from), &path(to), flags)?;
        }
        Call::Chmod(at, mode) => sys::chmod(&path(at), mode.into())?,
        Call::Truncate(at) => sys::truncate(&path(at), 0)?,
        Call::Readlink(at) => {
            let text = fs::read_link(path(at))?;
            return Ok(Answer::Text(link_token(text.as_os_str().as_bytes())));
        }
        Call::Stat(at) => return Ok(Answer::Seen(seen(&fs::symlink_metadata(path(at))?))),
        Call::List(dir) => {
            let dir = dir.map_or_else(|| plot.to_owned(), |name| path(Path { dir: None, name }));
            return Ok(Answer::Listed(listed(&names(&dir)?)));
        }
        Call::Open { at, how, fd } => {
            files.insert(fd, open(&path(at), how)?);
        }
        _ => unreachable!("by descriptor"),
    }
    Ok(Answer::Done)
}

pub(super) fn names(dir: &FilePath) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// unlink(2) alone: the library's looks what it is on EISDIR on some systems.
fn unlink(path: &FilePath) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a string that ends with NUL and lives through the call.
    match unsafe { libc::unlink(path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open(path: &FilePath, how: How) -> io::Result<File> {
    let flags = [
        (true, libc::O_NOFOLLOW),
        (how.create, libc::O_CREAT),
        (how.exclusive, libc::O_EXCL),
        (how.truncate, libc::O_TRUNC),
        (how.append, libc::O_APPEND),
        (how.direct, libc::O_DIRECT),
    ];
    let flags = flags.iter().filter(|(set, _)| *set);
    OpenOptions::new()
        .read(true)
        .write(!how.reads)
        .mode(0o644)
        .custom_flags(flags.map(|(_, flag)| flag).sum())
        .open(path)
}

fn seen(stat: &fs::Metadata) -> Seen {
    let kind = match stat.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink,
        _ => Kind::File,
    };
    Seen {
        kind,
        mode: (stat.permissions().mode() & 0o7777) as u16,
        links: stat.nlink() as u32,
        size: match kind {
            Kind::File => stat.size().div_ceil(slot_size() as u64) as u32,
            _ => 0,
        },
    }
}

fn on_open(files: &mut HashMap<Fd, File>, call: Call, fd: Fd) -> io::Result<Answer> {
    let file = files.get_mut(&fd).expect("an open file");
    let whole = |written| assert_eq!(written, slot_size(), "{call:?}: not all was written");
    match call {
        Call::Write { slot, token, .. } => {
            whole(file.write_at(&filled(token), u64::from(slot) * slot_size() as u64)?);
        }
        Call::Append { token, .. } => whole(file.write(&filled(token))?),
        Call::Read(_) => return read(file).map(|data| Answer::Data(tokens(&data))),
        Call::Ftruncate(_) => file.set_len(0)?,
        Call::Fstat(_) => return Ok(Answer::Seen(seen(&file.metadata()?))),
        Call::Fsync(_) => file.sync_all()?,
        Call::Close(fd) => close(files.remove(&fd).expect("an open file"))?,
        Call::Lock {
            exclusive: true, ..
        } => lock(file, libc::F_WRLCK)?,
        Call::Lock { .. } => lock(file, libc::F_RDLCK)?,
        Call::Unlock(_) => lock(file, libc::F_UNLCK)?,
        _ => unreachable!("by path"),
    }
    Ok(Answer::Done)
}

/// What the file holds. With a cache on a disk (`EFS_FUSE_CHECKER_CACHE`) it is read twice before, with
/// pauses: by then the daemon may have kept it, and what counts is what is read last, from there.
fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut data = vec![0; SLOTS * slot_size()];
    let fd = file.as_raw_fd();
    let mut once = || {
        file.rewind()?;
        file.read(&mut data)
    };
    if std::env::var_os("EFS_FUSE_CHECKER_CACHE").is_some() {
        for pause in UNTIL_KEPT {
            once()?;
            std::thread::sleep(pause);
            // SAFETY: the descriptor is open; the advice changes no data.
            unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }
    let read = once()?;
    data.truncate(read);
    Ok(data)
}

fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is the file's own, which gives it away here.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A lock of the open file (OFD), waited for: threads and descriptors of one process
/// are apart as processes are.
fn lock(file: &File, typ: libc::c_int) -> io::Result<()> {
    // SAFETY: a flock is numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = typ as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads a flock.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
