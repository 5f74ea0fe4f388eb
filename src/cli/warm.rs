//! `efs-fuse warm`: reads a tree through its mount, so that the mount's disk cache has it.
//!
//! Several threads work, each on a file or a directory at a time. Of a directory the daemon is asked first
//! to put the small files on the disk, many with a request ([`warm_call`]). What it leaves, which is also
//! all that has failed, is read like by anybody: what may not be read is left out and said, and what is put
//! on the disk is what the daemon finds fit for it. What the kernel has of such a file already is dropped
//! first, since the daemon would not see it read; so it is read from the server, or from the disk if that
//! has it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::arguments::Warm;
use super::exit::{self, Failure};
use super::format::bytes;
use super::running::Running;
use super::tree;
use crate::mount::mountinfo::MountTable;
use crate::mount::{WarmFrom, warm_call};
use crate::quoting;
use crate::tree::progress::Progress;

/// What is read at once: as much as FUSE carries.
const PIECE: usize = 1 << 20;
/// How long the daemon may take to put the last of it on the disk.
const SETTLE: Duration = Duration::from_secs(10);
/// A look at how far it is.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn run(asked: &Warm) -> Result<(), Failure> {
    let what = format!("warming {}", quoting::path(&asked.path));
    let wrong = |why: String| Failure::usage(&what, quoting::plain(&why));
    let top = asked.path.canonicalize();
    let top = top.map_err(|why| wrong(why.to_string()))?;
    let table = MountTable::read().map_err(|why| Failure::system(&what, why))?;
    let mount = table.containing(&top).filter(|mount| mount.is_ours());
    let mount = mount.ok_or_else(|| {
        wrong("it is not in a mount of efs-fuse".to_owned()).remedy("a path in a mount")
    })?;
    let running = Running::at(&mount.mountpoint)?;
    let before = disk_numbers(&running)?.ok_or_else(|| {
        wrong("its mount has no disk cache".to_owned()).remedy("mounting it with -o cache=DIR")
    })?;
    let progress = Progress::default();
    let begun = Instant::now();
    let work = Work::of(&top, asked.max_bytes.unwrap_or(u64::MAX));
    let work = work.map_err(|why| wrong(why.to_string()))?;
    read_all(&work, usize::from(asked.threads), &progress);
    let after = settled(&running)?;
    let seconds = begun.elapsed().as_secs_f64();
    exit::print(&report(asked.json, &progress, &before, &after, seconds))?;
    tree::verdict(&progress, "warming", asked.path.as_os_str().as_bytes())
}

/// What the mount's disk cache has done; `None` if it has none.
fn disk_numbers(running: &Running) -> Result<Option<Value>, Failure> {
    let disk = running.ask("stats")?["disk_cache"].take();
    Ok(disk.is_object().then_some(disk))
}

/// The same, when nothing more is being put on the disk.
fn settled(running: &Running) -> Result<Value, Failure> {
    let begun = Instant::now();
    let mut last = Value::Null;
    loop {
        let numbers = disk_numbers(running)?.unwrap_or_default();
        if numbers["filled_bytes"] == last["filled_bytes"] || begun.elapsed() >= SETTLE {
            return Ok(numbers);
        }
        last = numbers;
        thread::sleep(2 * LOOK);
    }
}

fn report(
    as_json: bool,
    progress: &Progress,
    before: &Value,
    after: &Value,
    seconds: f64,
) -> String {
    let grown = |key: &str| {
        let number = |of: &Value| of[key].as_u64().unwrap_or(0);
        number(after).saturating_sub(number(before))
    };
    if as_json {
        let files = progress.files.load(Relaxed);
        let read = progress.bytes.load(Relaxed);
        let answer = json!({
            "files": files,
            "bytes": read,
            "hit_bytes": grown("hit_bytes"),
            "filled_bytes": grown("filled_bytes"),
            "dropped_bytes": grown("dropped_bytes"),
            "errors": progress.errors().0,
            "seconds": seconds,
        });
        return format!("{answer}\n");
    }
    let mut text = format!(
        "{} in {seconds:.0} s: {} were on the disk, {} were put there\n",
        tree::found_line(progress),
        bytes(grown("hit_bytes")),
        bytes(grown("filled_bytes")),
    );
    match grown("dropped_bytes") {
        0 => {}
        dropped => text.push_str(&format!(
            "{} were not, as the disk is too slow or full: warm it once more\n",
            bytes(dropped)
        )),
    }
    text
}

/// What is left to be read.
struct Work {
    /// Paths, and whether each is a directory.
    left: Mutex<Vec<(PathBuf, bool)>>,
    /// Those that are not done with, among them those in `left`.
    open: AtomicUsize,
    /// Nothing else is read: what is mounted below is another file system.
    device: u64,
    most: u64,
}

impl Work {
    fn of(top: &Path, most: u64) -> io::Result<Self> {
        let about = top.symlink_metadata()?;
        Ok(Self {
            left: Mutex::new(vec![(top.to_owned(), about.is_dir())]),
            open: AtomicUsize::new(1),
            device: about.dev(),
            most,
        })
    }

    fn add(&self, path: PathBuf, is_dir: bool) {
        self.open.fetch_add(1, Relaxed);
        self.left.lock().push((path, is_dir));
    }

    fn next(&self) -> Option<(PathBuf, bool)> {
        loop {
            if let Some(next) = self.left.lock().pop() {
                return Some(next);
            }
            if self.open.load(Relaxed) == 0 {
                return None;
            }
            // Others are in directories, and may find more.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Reads everything, and shows how far it is.
fn read_all(work: &Work, threads: usize, progress: &Progress) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| read_some(work, progress)))
            .collect();
        if io::stderr().is_terminal() {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    let line = tree::found_line(progress);
                    let bar = tree::bar(progress);
                    // A terminal that is gone is no reason to stop.
                    let _ = write!(io::stderr(), "\r{bar} {line}\x1b[K");
                    thread::sleep(LOOK);
                }
                let _ = write!(io::stderr(), "\r\x1b[K");
            });
        }
        for reader in readers {
            // A panic is passed on when the scope ends.
            let _ = reader.join();
        }
        done.store(true, Relaxed);
    });
}

fn read_some(work: &Work, progress: &Progress) {
    let mut buffer = vec![0; PIECE];
    while let Some((path, is_dir)) = work.next() {
        let read = match is_dir {
            _ if progress.bytes.load(Relaxed) >= work.most => Ok(()),
            true => list(work, &path, progress),
            false => read_file(work, &path, &mut buffer, progress),
        };
        if let Err(why) = read {
            progress.failed(path.as_os_str().as_bytes(), why);
        }
        work.open.fetch_sub(1, Relaxed);
    }
}

fn list(work: &Work, path: &Path, progress: &Progress) -> io::Result<()> {
    progress.directories.fetch_add(1, Relaxed);
    let mut files = HashSet::new();
    for entry in path.read_dir()? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.metadata()?.dev() == work.device {
            work.add(entry.path(), true);
        } else if kind.is_file() {
            files.insert(entry.file_name());
        }
    }
    read_small(work, path, &mut files, progress)?;
    for name in files {
        work.add(path.join(name), false);
    }
    progress.finished.fetch_add(1, Relaxed);
    Ok(())
}

/// Has the daemon put the small ones of these files on the disk, many with a request. Those that it has
/// done with are `files` no more.
fn read_small(
    work: &Work,
    path: &Path,
    files: &mut HashSet<OsString>,
    progress: &Progress,
) -> io::Result<()> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let mut from = WarmFrom::default();
    while !files.is_empty() {
        from.most = work.most.saturating_sub(progress.bytes.load(Relaxed));
        if from.most == 0 {
            break;
        }
        let Ok(warmed) = warm_call::ask(&dir, from) else {
            break;
        };
        for file in warmed.files {
            // A file that has come since is not among them.
            if files.remove(OsStr::from_bytes(&file.name)) {
                progress.files.fetch_add(1, Relaxed);
                progress.bytes.fetch_add(file.size.into(), Relaxed);
            }
        }
        if warmed.eof || warmed.cookie == from.cookie {
            break;
        }
        (from.cookie, from.verifier) = (warmed.cookie, warmed.verifier);
    }
    Ok(())
}

fn read_file(work: &Work, path: &Path, buffer: &mut [u8], progress: &Progress) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    forget_pages(&file);
    progress.files.fetch_add(1, Relaxed);
    loop {
        let read = file.read(buffer)?;
        let all = progress.bytes.fetch_add(read as u64, Relaxed) + read as u64;
        if read == 0 || all >= work.most {
            break;
        }
    }
    // Memory is for what is used.
    forget_pages(&file);
    Ok(())
}

/// The kernel drops what it has of the file, as far as nobody uses it.
fn forget_pages(file: &File) {
    // SAFETY: an open descriptor; the advice changes no data.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warmed(top: &Path, most: u64) -> io::Result<Progress> {
        let progress = Progress::default();
        read_all(&Work::of(top, most)?, 4, &progress);
        Ok(progress)
    }

    #[test]
    fn every_file_of_a_tree_is_read_once_and_links_are_not_followed() -> io::Result<()> {
        let temp = tempfile::tempdir()?;
        let top = temp.path();
        let mut all = 0;
        for dir in ["a", "a/b", "c"] {
            std::fs::create_dir(top.join(dir))?;
            for number in 0..20 {
                std::fs::write(top.join(dir).join(number.to_string()), vec![1; number])?;
                all += number as u64;
            }
        }
        std::os::unix::fs::symlink("/etc", top.join("link"))?;
        let progress = warmed(top, u64::MAX)?;
        assert_eq!(progress.files.load(Relaxed), 60);
        assert_eq!(progress.bytes.load(Relaxed), all);
        assert_eq!(progress.directories.load(Relaxed), 4);
        assert_eq!(progress.errors().0, 0);
        Ok(())
    }

    #[test]
    fn it_stops_when_enough_was_read() -> io::Result<()> {
        let temp = tempfile::tempdir()?;
        for number in 0..50 {
            std::fs::write(temp.path().join(number.to_string()), vec![1; 1000])?;
        }
        let read = warmed(temp.path(), 5000)?.bytes.load(Relaxed);
        assert!((5000..9000).contains(&read), "{read}");
        Ok(())
    }

    #[test]
    fn the_report_says_what_was_put_on_the_disk_and_what_was_not() {
        let progress = Progress::default();
        progress.files.fetch_add(3, Relaxed);
        let before = json!({"hit_bytes": 10, "filled_bytes": 5, "dropped_bytes": 0});
        let after = json!({"hit_bytes": 1034, "filled_bytes": 2053, "dropped_bytes": 4096});
        let text = report(false, &progress, &before, &after, 1.0);
        for expected in [
            "3 files",
            "1.0 KiB were on",
            "2.0 KiB were put",
            "4.0 KiB were not",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
    }
}
