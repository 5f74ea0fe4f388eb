//! What dead daemons and commands leave in a registry, and how long it stays.
//!
//! | file | is left by | is removed |
//! |---|---|---|
//! | `HASH.json`, `HASH.sock` | a daemon that was killed | as soon as it is found dead |
//! | `HASH.new` | one that was killed while it wrote its entry | when it is a minute old |
//! | `HASH.lock` | a command that was killed while it mounted | when nobody holds it |
//! | `HASH.owner-N` | a daemon that was killed, for its successor ([`owner`](super::owner)) | [`KEPT`] after it was found dead |
//! | `HASH.claim` | a daemon with `metrics=/SOCKET` that was killed ([`claim`](super::claim)) | when that socket is not there any more |
//!
//! An owner's file is what a successor at the same place needs to free at once what its
//! predecessor had open and locked. After that one's lease nothing is left to be freed:
//! the server has forgotten it. No lease is as long as [`KEPT`]. When a daemon died is
//! not to be seen from its file; but whether it lives is, by its lock. So the first who
//! finds a file that nobody holds notes the time in it (as its modification time), and a
//! daemon that takes it takes the note away.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::claim::Claim;
use super::found::Found;
use super::private_dir::PrivateDir;

/// How long the owner of a dead daemon is kept. Leases are minutes at most: those of EFS
/// and of other servers 90 s, and Linux's server takes no more than an hour.
const KEPT: Duration = Duration::from_secs(2 * 3600);
/// At most this many owners of dead daemons are kept, those that died last.
const MOST: usize = 1024;
/// How long an entry may take to be written.
const WRITING: Duration = Duration::from_secs(60);

/// In an owner's file: a daemon has it, or has had it and nobody has looked since.
pub(super) const IN_LIFE: SystemTime = UNIX_EPOCH;

/// Removes what dead daemons left behind. To be called while nobody else changes the
/// directory ([`PrivateDir::alone`]).
pub(super) fn clear(dir: &Arc<PrivateDir>) {
    let names = dir.names().unwrap_or_default();
    let mut dead = Vec::new();
    for name in &names {
        let suffix = Path::new(name).extension().and_then(OsStr::to_str);
        match suffix.unwrap_or_default() {
            "json" => {
                if let Some(found) = Found::load(dir, name)
                    && !found.is_alive()
                {
                    remove(dir, name);
                    remove(dir, &with_suffix(name, "sock"));
                }
            }
            // Asked anew: a daemon may have begun since the names were read, and writes
            // its entry first.
            "sock" if is_missing(dir, &with_suffix(name, "json")) => remove(dir, name),
            "new" if age(dir, name).is_some_and(|age| age > WRITING) => remove(dir, name),
            "lock" => {
                // Its holder removes it; who waits for it looks whether it is still there.
                if let Some(_held) = held(dir, name) {
                    remove(dir, name);
                }
            }
            "claim" if !Claim::read(dir, name).is_some_and(|claim| claim.stands()) => {
                remove(dir, name);
            }
            owner if owner.starts_with("owner-") => {
                if let Some(since) = dead_since(dir, name) {
                    dead.push((since, name));
                }
            }
            _ => {}
        }
    }
    dead.sort();
    let too_many = dead.len().saturating_sub(MOST);
    for (at, (since, name)) in dead.into_iter().enumerate() {
        let age = SystemTime::now().duration_since(since).unwrap_or_default();
        if (at < too_many || age > KEPT)
            && let Some(_held) = held(dir, name)
        {
            remove(dir, name);
        }
    }
}

/// Since when an owner's file is known to belong to nobody alive.
fn dead_since(dir: &PrivateDir, name: &OsStr) -> Option<SystemTime> {
    let file = held(dir, name)?;
    let noted = file.metadata().ok()?.modified().ok()?;
    if noted > IN_LIFE {
        return Some(noted);
    }
    let now = SystemTime::now();
    file.set_modified(now).ok()?;
    Some(now)
}

/// Holds a file that nobody holds, so that nobody begins to while it is removed.
fn held(dir: &PrivateDir, name: &OsStr) -> Option<File> {
    let file = dir.file(name).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    // SAFETY: a valid descriptor and a documented operation.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
    let (now, ours) = (dir.about(name).ok()?, file.metadata().ok()?);
    (locked && (now.dev(), now.ino()) == (ours.dev(), ours.ino())).then_some(file)
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    Path::new(name).with_extension(suffix).into_os_string()
}

fn is_missing(dir: &PrivateDir, name: &OsStr) -> bool {
    let about = dir.about(name);
    about.is_err_and(|why| why.kind() == io::ErrorKind::NotFound)
}

fn age(dir: &PrivateDir, name: &OsStr) -> Option<Duration> {
    let modified = dir.about(name).ok()?.modified().ok()?;
    SystemTime::now().duration_since(modified).ok()
}

fn remove(dir: &PrivateDir, name: &OsStr) {
    // Somebody else may have been faster.
    let _ = dir.remove(name);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::registry::Registry;
    use super::*;

    fn files(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = names
            .map(|file| file.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn registry() -> io::Result<(tempfile::TempDir, std::path::PathBuf, Registry)> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("efs-fuse");
        let registry = Registry::at(&path);
        registry.private_file(Path::new("/x"), "json")?;
        Ok((dir, path, registry))
    }

    #[test]
    fn the_owner_of_a_dead_daemon_is_kept_for_two_hours_after_it_was_found() -> io::Result<()> {
        let (_dir, path, registry) = registry()?;
        let file = File::create(path.join("a.owner-0"))?;
        file.set_modified(IN_LIFE)?;
        registry.clean();
        let noted = file.metadata()?.modified()?;
        assert!(noted > IN_LIFE, "the time is noted");
        registry.clean();
        assert_eq!(file.metadata()?.modified()?, noted, "and stays");
        file.set_modified(SystemTime::now() - KEPT + Duration::from_secs(60))?;
        registry.clean();
        assert_eq!(files(&path), ["a.owner-0"]);
        file.set_modified(SystemTime::now() - KEPT - Duration::from_secs(1))?;
        // As long as one has it, it stays, whatever it says.
        let holder = File::open(path.join("a.owner-0"))?;
        // SAFETY: a valid descriptor and a documented operation.
        assert_eq!(unsafe { libc::flock(holder.as_raw_fd(), libc::LOCK_EX) }, 0);
        registry.clean();
        assert_eq!(files(&path), ["a.owner-0"]);
        drop(holder);
        registry.clean();
        assert_eq!(files(&path), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn of_very_many_dead_daemons_the_last_ones_are_kept() -> io::Result<()> {
        let (_dir, path, registry) = registry()?;
        let now = SystemTime::now();
        for n in 0..MOST as u64 + 3 {
            let file = File::create(path.join(format!("{n}.owner-0")))?;
            file.set_modified(now - Duration::from_secs(60 + n))?;
        }
        registry.clean();
        assert_eq!(files(&path).len(), MOST);
        assert!(path.join("0.owner-0").exists());
        assert!(!path.join(format!("{}.owner-0", MOST + 2)).exists());
        Ok(())
    }

    #[test]
    fn what_killed_commands_left_is_removed_and_what_is_in_use_is_not() -> io::Result<()> {
        let (_dir, path, registry) = registry()?;
        let _held = registry.lock(Path::new("/held"), Duration::ZERO)?;
        let held = files(&path);
        for name in ["a.lock", "b.sock", "young.new"] {
            fs::write(path.join(name), "")?;
        }
        let old = File::create(path.join("old.new"))?;
        old.set_modified(SystemTime::now() - 2 * WRITING)?;
        registry.clean();
        let mut left = held;
        left.push("young.new".to_owned());
        left.sort();
        assert_eq!(files(&path), left);
        Ok(())
    }
}
