//! `efs-fuse umount`: takes the mount out of the tree and sees its daemon off.
//!
//! Unmounting makes the kernel close `/dev/fuse` under the daemon, which then
//! flushes, unlocks, destroys its session and ends. The command waits for
//! that. A daemon whose server is dead cannot flush; after its time is up it
//! is asked (SIGTERM) and then made (SIGKILL) to end, so that the promise
//! "gone after umount" holds with any server.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::error::{MOUNT, MountError, SYSTEM, USAGE};
use super::found::Found;
use super::mountinfo::{Mount, MountTable};
use super::place;
use super::process::Process;
use super::registry::Registry;
use crate::quoting;

/// How an unmount treats those who still use the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Busy is an error.
    Plain,
    /// Taken out of the tree at once; open files live until the daemon ends.
    Lazy,
    /// Pending calls fail at once, then as `Lazy`. For a dead server.
    Force,
}

impl Mode {
    /// How long the daemon has from the beginning, all in all.
    fn patience(self) -> Duration {
        match self {
            Self::Plain => Duration::from_secs(10),
            // So that the command is back within 5 s.
            Self::Lazy | Self::Force => Duration::from_millis(4500),
        }
    }

    /// How long it has before it is asked to end: a detached mount that is
    /// still in use does not end by itself.
    fn courtesy(self) -> Duration {
        match self {
            Self::Plain => Duration::from_secs(5),
            Self::Lazy | Self::Force => Duration::from_secs(1),
        }
    }
}

/// Unmounts what we have mounted at `path` and waits for its daemon to end.
/// Returns warnings for the user.
///
/// # Errors
/// Not our mount (status 1), not permitted (2), in use (32).
pub fn unmount(path: &Path, mode: Mode) -> Result<Vec<String>, MountError> {
    let table =
        MountTable::read().map_err(|why| MountError::system("reading the mount table", why))?;
    let canonical = find(path, &table)?;
    let mount = table.at(&canonical).cloned();
    let found = mount.as_ref().and_then(Found::of);
    let daemon = found.map(Server::of);
    let begun = Instant::now();
    take_out(&canonical, mount.as_ref(), mode, daemon.as_ref(), begun)?;
    let mut warnings = Vec::new();
    if let Some(daemon) = &daemon {
        see_off(daemon, mode, begun, &mut warnings);
    }
    Registry::of_user().clean();
    Ok(warnings)
}

/// The canonical path of our mount that `path` names.
fn find(path: &Path, table: &MountTable) -> Result<PathBuf, MountError> {
    let not_ours = |why: String| {
        MountError::new(
            USAGE,
            format_args!("unmounting {}", quoting::path(path)),
            why,
        )
        .remedy("efs-fuse status")
    };
    let canonical = place::canonical(path).map_err(|why| not_ours(why.to_string()))?;
    match table.at(&canonical) {
        Some(mount) if mount.is_ours() => Ok(canonical),
        Some(mount) => Err(not_ours(format!(
            "it is a mount of type {}, not ours",
            mount.fs_type
        ))),
        None => Err(not_ours("nothing is mounted there".to_owned())),
    }
}

fn take_out(
    canonical: &Path,
    mount: Option<&Mount>,
    mode: Mode,
    daemon: Option<&Server>,
    begun: Instant,
) -> Result<(), MountError> {
    if mode == Mode::Plain {
        return detach_with(canonical, mode).map_err(|why| refused(canonical, &why));
    }
    if mode == Mode::Force
        && let Some(mount) = mount
    {
        abort(mount);
    }
    // Even a lazy unmount may wait for dirty pages of shared mappings, that
    // is, for the server: do it beside, and let the end of the daemon, which
    // fails whatever is pending, also end it.
    let (done, result) = mpsc::channel();
    let path = canonical.to_owned();
    std::thread::spawn(move || done.send(detach_with(&path, mode)));
    let outcome = match result.recv_timeout(mode.patience().saturating_sub(begun.elapsed())) {
        Ok(outcome) => outcome,
        Err(_) => {
            if let Some(daemon) = daemon {
                daemon.make_end();
            }
            result
                .recv_timeout(Duration::from_secs(2))
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    };
    outcome.map_err(|why| refused(canonical, &why))
}

/// The processes of a mount.
struct Server {
    /// None while another one is about to take over.
    daemon: Option<Process>,
    keeper: Option<Process>,
}

impl Server {
    fn of(found: Found) -> Self {
        Self {
            daemon: found.process(),
            keeper: found.keeper(),
        }
    }

    /// Asks the daemon to end: by way of the keeper, so that it is followed by no other. An
    /// error means that there is none any more.
    fn ask_to_end(&self) {
        if let Some(process) = self.keeper.as_ref().or(self.daemon.as_ref()) {
            let _ = process.signal(libc::SIGTERM);
        }
    }

    /// The keeper first: it would start another.
    fn make_end(&self) {
        for process in [&self.keeper, &self.daemon].into_iter().flatten() {
            let _ = process.signal(libc::SIGKILL);
        }
    }

    /// Waits for their end. Whether they have ended.
    fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut all = [&self.daemon, &self.keeper].into_iter().flatten();
        all.all(|process| process.wait(end.saturating_duration_since(Instant::now())))
    }
}

fn see_off(daemon: &Server, mode: Mode, begun: Instant, warnings: &mut Vec<String>) {
    let left_of = |time: Duration| time.saturating_sub(begun.elapsed());
    if daemon.wait(left_of(mode.courtesy())) {
        return;
    }
    daemon.ask_to_end();
    if daemon.wait(left_of(mode.patience())) {
        return;
    }
    daemon.make_end();
    daemon.wait(Duration::from_secs(2));
    warnings.push(
        "the daemon could not finish with its server in time and was ended; what was written without a close or fsync \
         may be lost"
            .to_owned(),
    );
}

/// Fails all calls that wait for the daemon. Works where the FUSE control file
/// system is mounted; elsewhere MNT_FORCE does it, for root.
fn abort(mount: &Mount) {
    let _ = std::fs::write(
        format!("/sys/fs/fuse/connections/{}/abort", mount.minor),
        "1",
    );
}

/// Takes a mount out of the tree at once, in use or not: for dead ones.
///
/// # Errors
/// Not permitted, or nothing is mounted there.
pub fn detach(canonical: &Path) -> io::Result<()> {
    detach_with(canonical, Mode::Lazy)
}

fn detach_with(canonical: &Path, mode: Mode) -> io::Result<()> {
    let path = CString::new(canonical.as_os_str().as_bytes())?;
    let flags = match mode {
        Mode::Plain => 0,
        Mode::Lazy => libc::MNT_DETACH,
        Mode::Force => libc::MNT_FORCE | libc::MNT_DETACH,
    };
    // SAFETY: a valid string and documented flags.
    if unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    let why = io::Error::last_os_error();
    // SAFETY: geteuid cannot fail and has no memory effects.
    if why.raw_os_error() == Some(libc::EPERM) && unsafe { libc::geteuid() } != 0 {
        return fusermount(canonical, mode);
    }
    Err(why)
}

/// The set-user-id helper that unmounts for users.
fn fusermount(canonical: &Path, mode: Mode) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if mode != Mode::Plain {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(canonical)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("no reason given").to_owned();
    Err(if said.contains("busy") {
        io::Error::from_raw_os_error(libc::EBUSY)
    } else {
        io::Error::new(io::ErrorKind::PermissionDenied, said)
    })
}

fn refused(canonical: &Path, why: &io::Error) -> MountError {
    let shown = quoting::path(canonical);
    let error = |status, why: &dyn std::fmt::Display| {
        MountError::new(status, format_args!("unmounting {shown}"), why)
    };
    match why.raw_os_error() {
        Some(libc::EBUSY) => error(MOUNT, &"it is busy").remedy(format_args!(
            "end what uses it (fuser -vm {shown}), or efs-fuse umount --lazy {shown}"
        )),
        Some(libc::EPERM) => {
            error(SYSTEM, &"not permitted").remedy("root, or the user who mounted it")
        }
        Some(libc::EINVAL) => error(USAGE, &"nothing is mounted there"),
        _ if why.kind() == io::ErrorKind::NotFound => {
            error(SYSTEM, &"fusermount3 is not installed")
        }
        _ if why.kind() == io::ErrorKind::PermissionDenied => error(SYSTEM, why),
        _ if why.kind() == io::ErrorKind::TimedOut => {
            error(MOUNT, &"the kernel still waits for the server")
        }
        _ => error(MOUNT, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_our_mount_is_left_alone_with_status_1() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        for path in [dir.path(), Path::new("/proc"), Path::new("/nonexistent/x")] {
            for mode in [Mode::Plain, Mode::Lazy, Mode::Force] {
                let refused = unmount(path, mode);
                assert!(
                    matches!(&refused, Err(error) if error.status == 1),
                    "{refused:?}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_busy_mount_is_32_with_a_hint_and_a_forbidden_one_2() {
        let path = Path::new("/volumes");
        let busy = refused(path, &io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(busy.status, 32);
        assert!(busy.remedy.is_some_and(|remedy| remedy.contains("--lazy")));
        assert_eq!(
            refused(path, &io::Error::from_raw_os_error(libc::EPERM)).status,
            2
        );
    }

    #[test]
    fn the_promised_times_hold_in_every_mode() {
        for mode in [Mode::Plain, Mode::Lazy, Mode::Force] {
            assert!(mode.courtesy() < mode.patience());
            assert!(mode.patience() <= Duration::from_secs(10));
        }
        assert!(Mode::Force.patience() < Duration::from_secs(5));
    }
}
