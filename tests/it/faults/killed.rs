//! Callers that are killed in the middle of a change, and who comes after them.
//!
//! An estate is a directory of files that a caller changes under a lock. It is killed;
//! somebody else, on its host or another, makes the files his own and syncs them:
//! nothing of the dead one may change them any more.
//!
//! On one host what is still on its way of the dead one is ordered before what begins
//! later. Another host can know that it is over only by the lock, or when the line of
//! the dead one's host is cut and nothing of it is in the network.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::fixtures::noise;
use crate::fixtures::process::{Background, eventually};

/// The kinds of change that a caller is killed in.
pub(crate) const CHANGES: [&str; 8] = [
    "write", "append", "truncate", "rename", "unlink", "chmod", "mkdir", "lock",
];

/// Files of an estate that have content.
const FILES: [&str; 6] = ["data", "appended", "truncated", "renamed", "made", "moded"];
/// The mode of the one whose mode is changed.
const MODE: u32 = 0o604;

/// Longer than names are believed (`acdirmax`).
const BELIEVED: Duration = Duration::from_secs(70);
/// Longer than it takes to end a process that waits for a server that is away.
const DIES: Duration = Duration::from_secs(20);

fn told<T>(what: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|why| format!("{what}: {why}"))
}

fn flock(file: &File, how: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` lives.
    match unsafe { libc::flock(file.as_raw_fd(), how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a caller leaves behind.
pub(crate) struct Estate {
    name: String,
    /// What who took it over wrote, by the order of `FILES`.
    contents: Option<Vec<Vec<u8>>>,
}

impl Estate {
    /// Makes the directory and its files, through a mount at `root`.
    pub(crate) fn new(root: &Path, name: String) -> Result<Self, String> {
        let dir = root.join(&name);
        told("mkdir of an estate", fs::create_dir(&dir))?;
        for file in FILES.iter().chain(&["lock", "other"]) {
            told("create in an estate", fs::write(dir.join(file), "old"))?;
        }
        let contents = None;
        Ok(Self { name, contents })
    }

    /// Starts a caller on the mount at `root`.
    pub(crate) fn caller(&self, root: &Path, changes: &[&str]) -> Caller {
        let said = tempfile::NamedTempFile::new().expect("temporary file");
        let mut command = Command::new("perl");
        command
            .args(["-e", include_str!("caller.pl"), "--"])
            .arg(root.join(&self.name))
            .args(changes)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.reopen().expect("temporary file"));
        let process = Background::spawn(command).expect("perl");
        Caller { process, said }
    }

    /// Makes the dead one's files one's own, through the mount at `root`: with the lock
    /// or without.
    pub(crate) fn take(&mut self, root: &Path, locked: bool, seed: u64) -> Result<(), String> {
        let dir = root.join(&self.name);
        let open = |name: &str, options: &mut OpenOptions| {
            let file = options.write(true).open(dir.join(name));
            told("open of a dead one's file", file)
        };
        let lock = open("lock", &mut File::options())?;
        if locked {
            told("a dead one's lock", flock(&lock, libc::LOCK_EX))?;
        }
        let mut contents = Vec::new();
        for (number, name) in (0..).zip(FILES) {
            let seed = seed ^ (number << 32);
            let bytes = noise(seed, 2000 + (seed % 60_000) as usize);
            let file = match name {
                "data" => open(name, &mut File::options())?,
                "renamed" => open("new", File::options().create(true).truncate(true))?,
                "made" => open(name, File::options().create(true).truncate(true))?,
                _ => open(name, File::options().truncate(true))?,
            };
            told("write", file.write_all_at(&bytes, 0))?;
            if name == "data" {
                told("ftruncate", file.set_len(bytes.len() as u64))?;
            }
            told("fsync", file.sync_all())?;
            if name == "renamed" {
                told("rename", fs::rename(dir.join("new"), dir.join(name)))?;
            }
            if name == "moded" {
                let mode = fs::Permissions::from_mode(MODE);
                told("chmod", fs::set_permissions(dir.join(name), mode))?;
            }
            contents.push(bytes);
        }
        match fs::create_dir(dir.join("d")) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("mkdir: {why}"));
            }
            _ => {}
        }
        let other = open("other", &mut File::options())?;
        told(
            "a lock that the dead one took",
            flock(&other, libc::LOCK_EX),
        )?;
        self.contents = Some(contents);
        Ok(())
    }

    /// Everything is as who took it over left it, by the server (or by another mount).
    pub(crate) fn check(&self, root: &Path) -> Result<(), String> {
        let dir = root.join(&self.name);
        let contents = self.contents.as_ref().ok_or("not taken over")?;
        for (name, expected) in FILES.iter().zip(contents) {
            let there = told(name, fs::read(dir.join(name)))?;
            if there != *expected {
                let dead = there.windows(5).filter(|bytes| bytes == b"dead\n").count();
                return Err(format!(
                    "{}/{name}, written and synced after its caller was killed, has {} bytes and not {}; {dead} \
                     lines of the dead one's",
                    self.name,
                    there.len(),
                    expected.len()
                ));
            }
        }
        let mode = told("stat", fs::metadata(dir.join("moded")))?;
        match mode.permissions().mode() & 0o7777 {
            MODE => {}
            mode => return Err(format!("{}: mode {mode:o}, not {MODE:o}", self.name)),
        }
        match dir.join("d").is_dir() {
            true => Ok(()),
            false => Err(format!("{}: the dead one removed a directory", self.name)),
        }
    }

    /// Removes it, through a mount at `root`, which may have listed the directory before
    /// the dead one made its last name there.
    pub(crate) fn remove(self, root: &Path) -> Result<(), String> {
        let dir = root.join(&self.name);
        let removed = eventually(BELIEVED, || fs::remove_dir_all(&dir).ok());
        if removed.is_some() {
            return Ok(());
        }
        told(
            "removal of an estate",
            fs::remove_dir_all(root.join(self.name)),
        )
    }
}

/// A process at work in an estate.
pub(crate) struct Caller {
    process: Background,
    said: tempfile::NamedTempFile,
}

impl Caller {
    /// SIGKILL. It must have been at work until then, and die of it soon.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        if let Some(ended) = self.process.ended() {
            let said = fs::read_to_string(self.said.path()).unwrap_or_default();
            return Err(format!("a caller has ended: {ended}: {said}"));
        }
        self.process.signal(libc::SIGKILL);
        match self.process.wait(DIES) {
            Some(_) => Ok(()),
            None => Err(format!("a killed caller lives on for {DIES:?}")),
        }
    }
}
