//! The running mounts, as the commands that only look at them find them: the
//! mount table, the registry and the daemons' control sockets put together.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::exit::Failure;
use crate::mount::mountinfo::{Mount, MountTable};
use crate::mount::place;
use crate::mount::registry::{Found, Registry};
use crate::telemetry::control;
use crate::telemetry::log::utc;

/// A daemon answers from memory; one that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of our mounts.
#[derive(Debug)]
pub(super) struct Running {
    /// Where, canonical.
    pub(super) mountpoint: PathBuf,
    /// The device as the mount table has it.
    pub(super) device: String,
    /// Who serves it; `None` if that has ended or belongs to somebody else.
    pub(super) daemon: Option<Found>,
}

impl Running {
    fn new(mount: &Mount, registries: &[Registry]) -> Self {
        Self {
            mountpoint: mount.mountpoint.clone(),
            device: mount.source.clone(),
            daemon: registries
                .iter()
                .find_map(|registry| registry.find(&mount.mountpoint)),
        }
    }

    /// All mounts of ours in the mount table, one per place.
    pub(super) fn all() -> Result<Vec<Self>, Failure> {
        let table = read_table()?;
        let registries = Registry::visible();
        let visible = table
            .ours()
            .filter(|mount| table.at(&mount.mountpoint) == Some(mount));
        Ok(visible.map(|mount| Self::new(mount, &registries)).collect())
    }

    /// The mount of ours at `path`; anything else is a usage error.
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let not_ours = |why: &str| {
            let what = format!("asking about {}", path.display());
            Failure::usage(what, why).remedy("efs-fuse status, which lists all mounts")
        };
        let canonical = place::canonical(path).map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => not_ours("it does not exist"),
            _ => not_ours(&why.to_string()),
        })?;
        match read_table()?.at(&canonical) {
            Some(mount) if mount.is_ours() => Ok(Self::new(mount, &Registry::visible())),
            Some(_) => Err(not_ours("another file system is mounted there, not ours")),
            None => Err(not_ours("it is not a mount point of efs-fuse")),
        }
    }

    /// Asks the daemon.
    pub(super) fn ask(&self, command: &str) -> Result<Value, Failure> {
        self.request(&json!({"cmd": command}))
    }

    /// The same for a request with more to it than its name.
    pub(super) fn request(&self, request: &Value) -> Result<Value, Failure> {
        let what = format!("asking the daemon of {}", self.mountpoint.display());
        let Some(daemon) = &self.daemon else {
            let remedy = format!("efs-fuse umount --lazy {}", self.mountpoint.display());
            return Err(Failure::system(what, "it is gone, or it is another user's").remedy(remedy));
        };
        control::request(&daemon.socket, request, PATIENCE).map_err(|why| match why.kind() {
            io::ErrorKind::PermissionDenied => {
                Failure::system(what, "permission denied").remedy("as root")
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::system(
                what,
                format_args!("no answer within {} s", PATIENCE.as_secs()),
            ),
            _ => Failure::system(what, why),
        })
    }

    /// The mount as `status --json` shows it: what the daemon says, completed
    /// by what is known without it. Every promised key is there.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "mountpoint": self.mountpoint.to_string_lossy(),
            "device": self.device,
            "server": null,
            "since": null,
            "pid": null,
            "session": null,
            "connections": [],
            "tls": null,
            "iam": null,
            "caches": {},
            "write_window": null,
            "last_error": null,
        });
        if let Some(Found { entry, .. }) = &self.daemon {
            status["server"] = json!(entry.server);
            status["since"] = json!(utc(entry.since));
            status["pid"] = json!(entry.pid);
        }
        match self.ask("status") {
            Ok(Value::Object(said)) => {
                for (key, value) in said {
                    status[key] = value;
                }
            }
            Ok(_) => {}
            Err(failure) => status["last_error"] = json!(failure.to_string()),
        }
        status
    }
}

fn read_table() -> Result<MountTable, Failure> {
    MountTable::read().map_err(|why| Failure::system("reading the mount table", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_our_mount_is_a_usage_error() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        for path in [dir.path(), Path::new("/proc"), Path::new("/nonexistent/x")] {
            let refused = Running::at(path);
            assert!(
                refused.as_ref().is_err_and(|why| why.status() == 1),
                "{refused:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_mount_without_daemon_still_has_every_key() {
        let dead = Running {
            mountpoint: "/volumes".into(),
            device: "h:/".to_owned(),
            daemon: None,
        };
        let status = dead.status();
        for key in [
            "mountpoint",
            "device",
            "server",
            "since",
            "session",
            "connections",
            "tls",
            "iam",
            "caches",
            "write_window",
            "last_error",
        ] {
            assert!(status.get(key).is_some(), "{key}");
        }
        assert!(
            status["last_error"]
                .as_str()
                .is_some_and(|why| why.contains("gone"))
        );
    }
}
