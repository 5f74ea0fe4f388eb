//! What goes on while something breaks: five kinds of work, each of which judges
//! every result it gets.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fixtures::noise;

/// The kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Reading,
    Writing,
    Creating,
    Locking,
    Idle,
}

pub(crate) const KINDS: [Kind; 5] = [
    Kind::Reading,
    Kind::Writing,
    Kind::Creating,
    Kind::Locking,
    Kind::Idle,
];

/// Bytes of the file that is read and of the one that is written.
const SIZE: usize = 2 << 20;
const BLOCK: usize = 64 << 10;

/// What became of one worker.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// When operations ended.
    ends: Mutex<Vec<Instant>>,
    pub(crate) wrong: Mutex<Option<String>>,
}

impl Record {
    fn done(&self) {
        self.ends.lock().push(Instant::now());
    }

    /// The first end of an operation after `moment`.
    pub(crate) fn first_after(&self, moment: Instant) -> Option<Instant> {
        let ends = self.ends.lock();
        ends.iter().copied().find(|end| *end > moment)
    }

    pub(crate) fn count(&self) -> usize {
        self.ends.lock().len()
    }
}

/// Where the work is done: below a mount, checked behind the export.
pub(crate) struct Place<'a> {
    pub(crate) mount: &'a Path,
    pub(crate) export: &'a Path,
    /// Locks may be lost: a worker whose descriptor is dead opens anew.
    pub(crate) locks_may_go: bool,
    /// A write or an fsync may say EIO: then all that was not synced is written anew.
    pub(crate) writes_may_fail: bool,
    pub(crate) stop: &'a AtomicBool,
}

impl Place<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount.join(name)
    }

    fn forgives(&self, why: &io::Error) -> bool {
        self.writes_may_fail && why.raw_os_error() == Some(libc::EIO)
    }

    /// What a write may say: its failure is told again by fsync.
    fn written(&self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(why) if self.forgives(&why) => Ok(()),
            result => result,
        }
    }

    /// Syncs `file`. Where that may fail, all of it is written anew until it does not.
    fn sync(&self, file: &File, content: &[u8]) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match file.sync_all() {
                Err(why) if self.forgives(&why) && tries < 100 => {
                    tries += 1;
                    self.written(file.write_all_at(content, 0))?;
                }
                result => return result,
            }
        }
    }
}

/// Lays out what the workers need, behind the export.
pub(crate) fn prepare(export: &Path) {
    fs::write(export.join("read"), noise(77, SIZE)).expect("write behind");
    fs::write(export.join("counter"), "0").expect("write behind");
    fs::write(export.join("held"), "").expect("write behind");
    fs::create_dir(export.join("made")).expect("mkdir behind");
}

/// Does one kind of work until it is told to stop, and checks all of it.
pub(crate) fn work(kind: Kind, place: &Place<'_>, record: &Record) {
    let result = match kind {
        Kind::Reading => reading(place, record),
        Kind::Writing => writing(place, record),
        Kind::Creating => creating(place, record),
        Kind::Locking => locking(place, record),
        Kind::Idle => idle(place, record),
    };
    if let Err(why) = result {
        *record.wrong.lock() = Some(why);
    }
}

type Checked = Result<(), String>;

fn told<T>(what: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|why| format!("{what}: {why}"))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Past the kernel's cache: each read goes to the server.
fn reading(place: &Place<'_>, record: &Record) -> Checked {
    let expected = noise(77, SIZE);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(place.path("read"));
    let file = told("open", file)?;
    let mut bytes = vec![0; BLOCK];
    for block in (0..SIZE / BLOCK).cycle() {
        if !place.goes_on() {
            return Ok(());
        }
        let at = block * BLOCK;
        told("read", file.read_exact_at(&mut bytes, at as u64))?;
        if bytes != expected[at..at + BLOCK] {
            return Err(format!("wrong data at {at}"));
        }
        record.done();
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Over and over, each round with other data; one fsync a round.
fn writing(place: &Place<'_>, record: &Record) -> Checked {
    let file = told("create", open(&place.path("written")))?;
    let (mut model, mut len) = (vec![0; SIZE], 0);
    for step in 0.. {
        if !place.goes_on() {
            break;
        }
        let at = step * BLOCK % SIZE;
        let block = noise(1000 + step as u64, BLOCK);
        told("write", place.written(file.write_all_at(&block, at as u64)))?;
        model[at..at + BLOCK].copy_from_slice(&block);
        len = len.max(at + BLOCK);
        if step % 8 == 7 {
            told("fsync", place.sync(&file, &model[..len]))?;
            record.done();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    told("last fsync", place.sync(&file, &model[..len]))?;
    drop(file);
    let behind = told("read behind", fs::read(place.export.join("written")))?;
    if behind != model[..len] {
        return Err("what was synced is not what the server has".to_owned());
    }
    Ok(())
}

/// Each of these fails if it is done twice, and one after it if it is not done.
fn creating(place: &Place<'_>, record: &Record) -> Checked {
    let dir = place.path("made");
    for step in 0.. {
        if !place.goes_on() {
            break;
        }
        let name = |kind: &str| dir.join(format!("{kind}{step}"));
        told("mkdir", fs::create_dir(name("d")))?;
        let new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(name("d").join("new"));
        told("exclusive create", new)?;
        told("link", fs::hard_link(name("d").join("new"), name("l")))?;
        told("rename", fs::rename(name("d").join("new"), name("r")))?;
        told("symlink", std::os::unix::fs::symlink("x", name("s")))?;
        for gone in ["l", "r", "s"] {
            told("unlink", fs::remove_file(name(gone)))?;
        }
        told("rmdir", fs::remove_dir(name("d")))?;
        record.done();
        std::thread::sleep(Duration::from_millis(5));
    }
    match told("readdir behind", fs::read_dir(place.export.join("made")))?.count() {
        0 => Ok(()),
        left => Err(format!("{left} names are left")),
    }
}

fn flock(file: &File, how: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` lives.
    match unsafe { libc::flock(file.as_raw_fd(), how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Counts in a file under its lock. A step whose lock was lost is undone or done,
/// and says which by what the counter is at the next.
fn locking(place: &Place<'_>, record: &Record) -> Checked {
    let path = place.path("counter");
    let mut expected = 0_u64;
    let mut file = told("open", open(&path))?;
    while place.goes_on() {
        match count(place, &file, expected) {
            Ok(()) => {
                expected += 1;
                record.done();
            }
            Err(Failed::Wrong(found)) => {
                return Err(format!("the counter is {found} and not {expected}"));
            }
            Err(Failed::Io(what, why)) => {
                let dead = why.raw_os_error() == Some(libc::EIO);
                if !dead || !place.locks_may_go {
                    return Err(format!("{what}: {why}"));
                }
                // Closed, and only then forgiven.
                drop(file);
                file = told("open anew", open(&path))?;
                told("lock anew", flock(&file, libc::LOCK_EX))?;
                let found = told("read", read_number(&file))?;
                if found != expected && found != expected + 1 {
                    return Err(format!(
                        "after a lost lock: {found}, not {expected} or one more"
                    ));
                }
                expected = found;
                told("unlock", flock(&file, libc::LOCK_UN))?;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let behind = told(
        "read behind",
        fs::read_to_string(place.export.join("counter")),
    )?;
    if behind.trim_end() == expected.to_string() {
        Ok(())
    } else {
        Err(format!("the server has {behind:?}, not {expected}"))
    }
}

enum Failed {
    Io(&'static str, io::Error),
    Wrong(u64),
}

fn read_number(file: &File) -> io::Result<u64> {
    let mut text = [0; 20];
    let len = file.read_at(&mut text, 0)?;
    let text = std::str::from_utf8(&text[..len]).map_err(io::Error::other)?;
    text.trim_end().parse().map_err(io::Error::other)
}

fn count(place: &Place<'_>, file: &File, expected: u64) -> Result<(), Failed> {
    let io = |what| move |why| Failed::Io(what, why);
    flock(file, libc::LOCK_EX).map_err(io("lock"))?;
    let found = read_number(file).map_err(io("read"))?;
    if found != expected {
        return Err(Failed::Wrong(found));
    }
    let next = format!("{}", found + 1);
    let written = place.written(file.write_all_at(next.as_bytes(), 0));
    written.map_err(io("write"))?;
    let synced = place.sync(file, next.as_bytes());
    synced.map_err(io("fsync"))?;
    flock(file, libc::LOCK_UN).map_err(io("unlock"))
}

/// Has a file open with data that nobody synced, and does nothing until the end.
fn idle(place: &Place<'_>, record: &Record) -> Checked {
    let file = told("create", open(&place.path("idle")))?;
    let mut content = noise(5, BLOCK);
    told("write", place.written(file.write_all_at(&content, 0)))?;
    while place.goes_on() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    content.extend(b"again");
    let again = file.write_all_at(b"again", BLOCK as u64);
    told("write", place.written(again))?;
    told("fsync", place.sync(&file, &content))?;
    record.done();
    let mut bytes = vec![0; BLOCK];
    told("read", file.read_exact_at(&mut bytes, 0))?;
    if bytes != noise(5, BLOCK) {
        return Err("wrong data".to_owned());
    }
    drop(file);
    let behind = told("read behind", fs::read(place.export.join("idle")))?;
    if behind.len() != BLOCK + 5 || behind[..BLOCK] != bytes || behind[BLOCK..] != *b"again" {
        return Err("what was synced is not what the server has".to_owned());
    }
    match begun.elapsed() {
        time if time < Duration::from_secs(30) => Ok(()),
        time => Err(format!("took {time:?} to go on")),
    }
}

/// Takes a lock for good (until it is dropped).
pub(crate) fn hold(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    flock(&file, libc::LOCK_EX | libc::LOCK_NB)?;
    Ok(file)
}
