//! The running mounts, as the commands that only look at them find them: the
//! mount table, the registry and the daemons' control sockets put together.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::exit::Failure;
use crate::mount::found::{Found, effective_user};
use crate::mount::mountinfo::{Mount, MountTable};
use crate::mount::place;
use crate::quoting;
use crate::telemetry::control;
use crate::telemetry::log::utc;
use crate::telemetry::prometheus::{Answer, Shown};

/// A daemon answers from memory; one that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer to `status`.
const MAX_STATUS: u64 = 256 << 10;

/// What a daemon may say of itself in `status`; who it is and what it serves is known
/// better.
const SAID: [&str; 14] = [
    "server",
    "version",
    "since",
    "session",
    "connections",
    "tls",
    "iam",
    "takeover",
    "disk_cache",
    "caches",
    "write_window",
    "tasks",
    "late_errors",
    "last_error",
];
/// Users whose daemons are asked at the same time.
const AT_ONCE: usize = 16;
/// Mounts that are asked for their numbers at the same time, each by a thread that waits.
const ASKED_AT_ONCE: usize = 256;

/// One of our mounts.
#[derive(Debug)]
pub(super) struct Running {
    /// Where, canonical.
    pub(super) mountpoint: PathBuf,
    /// The device as the mount table has it.
    pub(super) device: String,
    /// Who mounted it, by the mount table.
    user: Option<u32>,
    /// Who serves it; `None` if that has ended or belongs to somebody else.
    daemon: Option<Found>,
}

/// Why a daemon does not answer.
enum Unanswered {
    /// There is none.
    Gone,
    /// The mount is another user's, who alone may ask, and root.
    Foreign,
    /// It took too long.
    Silent,
    Failed(io::Error),
}

/// Whose a mount of this user is, as one says it.
pub(super) fn owner(user: Option<u32>) -> String {
    match user {
        Some(0) => "root's".to_owned(),
        Some(user) => format!("user {user}'s"),
        None => "another user's".to_owned(),
    }
}

impl Running {
    fn new(mount: &Mount) -> Self {
        Self {
            mountpoint: mount.mountpoint.clone(),
            device: mount.source.clone(),
            user: mount.user(),
            daemon: Found::of(mount),
        }
    }

    /// All mounts of ours in the mount table, one per place.
    pub(super) fn all() -> Result<Vec<Self>, Failure> {
        Ok(visible()?.iter().map(Self::new).collect())
    }

    /// The numbers and the state of all mounts whose daemons this user may ask, as they are
    /// shown to Prometheus. All are asked at the same time, and none is waited for after
    /// `patience`: what a daemon does that hangs is its mount's business alone.
    pub(super) fn numbers(patience: Duration) -> Result<Vec<Shown>, Failure> {
        let deadline = Instant::now() + patience;
        let own = effective_user();
        let mut mounts = visible()?;
        mounts.retain(|mount| own == 0 || mount.user() == Some(own));
        let mut shown = Vec::new();
        for some in mounts.chunks(ASKED_AT_ONCE) {
            std::thread::scope(|scope| {
                let asking: Vec<_> = some
                    .iter()
                    .map(|mount| scope.spawn(move || Self::shown(mount, deadline)))
                    .collect();
                shown.extend(asking.into_iter().filter_map(|asked| asked.join().ok()));
            });
        }
        Ok(shown)
    }

    /// Whether a daemon lives is asked here too: of one in a container that takes time.
    fn shown(mount: &Mount, deadline: Instant) -> Shown {
        let begun = Instant::now();
        let running = Self::new(mount);
        let ask = |command: &str, limit| {
            let request = json!({"cmd": command});
            running.request_until(&request, deadline, limit).ok()
        };
        let answer = ask("status", MAX_STATUS)
            .and_then(|status| Some((status, ask("buckets", control::MAX_REPLY)?)));
        Shown {
            mountpoint: mount.mountpoint.to_string_lossy().into_owned(),
            device: mount.source.clone(),
            took: begun.elapsed(),
            answer: answer.map(|(status, numbers)| Answer { numbers, status }),
        }
    }

    /// The mount of ours at `path`; anything else is a usage error.
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let not_ours = |why: &str| {
            let what = format!("asking about {}", quoting::path(path));
            Failure::usage(what, why).remedy("efs-fuse status, which lists all mounts")
        };
        let canonical = place::canonical(path).map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => not_ours("it does not exist"),
            _ => not_ours(&why.to_string()),
        })?;
        match read_table()?.at(&canonical) {
            Some(mount) if mount.is_ours() => Ok(Self::new(mount)),
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
        self.request_until(request, Instant::now() + PATIENCE, control::MAX_REPLY)
    }

    /// Asks for what the daemon does by ending.
    ///
    /// # Errors
    /// Why it does not.
    pub(super) fn ask_to_leave(&self, request: &Value, patience: Duration) -> Result<(), String> {
        let daemon = self.daemon.as_ref().ok_or("its daemon is gone")?;
        match daemon.ask(request, Instant::now() + patience, control::MAX_REPLY) {
            Ok(answer) => Err(format!("its daemon answers {answer}")),
            Err(why) => match why.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe => Ok(()),
                io::ErrorKind::TimedOut => Err("its daemon does not answer".to_owned()),
                _ => Err(quoting::plain(&why.to_string())),
            },
        }
    }

    /// The same of what takes as long as it takes, as the server may be away.
    pub(super) fn ask_for_ever(&self, command: &str) -> Result<Value, Failure> {
        let year = Duration::from_secs(365 * 86_400);
        let request = json!({"cmd": command});
        self.request_until(&request, Instant::now() + year, control::MAX_REPLY)
    }

    fn request_until(
        &self,
        request: &Value,
        deadline: Instant,
        limit: u64,
    ) -> Result<Value, Failure> {
        let asked = self.try_request(request, deadline, limit);
        asked.map_err(|why| self.unanswered(&why))
    }

    fn try_request(
        &self,
        request: &Value,
        deadline: Instant,
        limit: u64,
    ) -> Result<Value, Unanswered> {
        let Some(daemon) = &self.daemon else {
            let own = effective_user();
            let is_ours = own == 0 || self.user.is_none_or(|user| user == own);
            return Err(match is_ours {
                true => Unanswered::Gone,
                false => Unanswered::Foreign,
            });
        };
        let answer = daemon.ask(request, deadline, limit);
        answer.map_err(|why| match why.kind() {
            io::ErrorKind::PermissionDenied => Unanswered::Foreign,
            io::ErrorKind::TimedOut => Unanswered::Silent,
            _ => Unanswered::Failed(why),
        })
    }

    /// In words, and with what can be done. That a mount is another's is no reason to
    /// unmount it.
    fn unanswered(&self, why: &Unanswered) -> Failure {
        let shown = quoting::path(&self.mountpoint);
        let what = format!("asking the daemon of {shown}");
        match why {
            Unanswered::Gone => {
                let remedy = format!("efs-fuse umount --lazy {shown}");
                Failure::system(what, "it is gone").remedy(remedy)
            }
            Unanswered::Foreign => {
                let whose = owner(self.user);
                Failure::system(what, format_args!("the mount is {whose}")).remedy("as root")
            }
            Unanswered::Silent => {
                let silent = format!("no answer within {} s", PATIENCE.as_secs());
                Failure::system(what, silent)
            }
            Unanswered::Failed(why) => Failure::system(what, quoting::plain(&why.to_string())),
        }
    }

    /// All of these as [`status`](Self::status) shows them, in the same order. The daemons of
    /// a user have so much time together: none makes who asks wait for each of many.
    pub(super) fn statuses(running: &[Self]) -> Vec<Value> {
        let mut of_users: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for (at, mount) in running.iter().enumerate() {
            of_users.entry(mount.user).or_default().push(at);
        }
        let mut shown = vec![Value::Null; running.len()];
        let own = Some(effective_user());
        let users: Vec<_> = of_users.into_iter().collect();
        for some in users.chunks(AT_ONCE) {
            std::thread::scope(|scope| {
                let asking: Vec<_> = some
                    .iter()
                    .map(|(user, mounts)| {
                        scope.spawn(move || {
                            let end = Instant::now() + PATIENCE;
                            let each = mounts.iter().map(|&at| {
                                let deadline = match *user == own {
                                    true => Instant::now() + PATIENCE,
                                    false => end,
                                };
                                (at, running[at].status_until(deadline))
                            });
                            each.collect::<Vec<_>>()
                        })
                    })
                    .collect();
                for answers in asking.into_iter().filter_map(|asked| asked.join().ok()) {
                    for (at, status) in answers {
                        shown[at] = status;
                    }
                }
            });
        }
        shown
    }

    /// The mount as `status --json` shows it: what the daemon says, completed
    /// by what is known without it. Every promised key is there.
    pub(super) fn status(&self) -> Value {
        self.status_until(Instant::now() + PATIENCE)
    }

    fn status_until(&self, deadline: Instant) -> Value {
        let mut status = json!({
            "mountpoint": self.mountpoint.to_string_lossy(),
            "device": self.device,
            "user": self.user,
            "server": null,
            "version": null,
            "since": null,
            "pid": self.daemon.as_ref().and_then(Found::pid),
            "options": [],
            "option_origins": [],
            "daemon": "answers",
            "session": null,
            "connections": [],
            "tls": null,
            "iam": null,
            "takeover": null,
            "disk_cache": null,
            "caches": {},
            "write_window": null,
            "late_errors": null,
            "last_error": null,
        });
        if let Some(entry) = self.daemon.as_ref().and_then(Found::written) {
            status["server"] = json!(entry.server);
            status["since"] = json!(utc(entry.since));
            status["pid"] = json!(entry.pid);
            status["options"] = json!(entry.options);
            status["option_origins"] = json!(entry.origins);
        }
        match self.try_request(&json!({"cmd": "status"}), deadline, MAX_STATUS) {
            Ok(said) => {
                for key in SAID {
                    if let Some(value) = said.get(key) {
                        status[key] = value.clone();
                    }
                }
            }
            Err(_) if self.daemon.as_ref().is_some_and(Found::is_taking_over) => {
                status["daemon"] = json!("taking over");
                status["takeover"] = json!({"state": "taking over"});
                let error = "its daemon has ended, and its keeper starts another";
                status["last_error"] = json!(error);
            }
            Err(why) => {
                status["daemon"] = json!(match why {
                    Unanswered::Gone => "gone",
                    Unanswered::Foreign => "not ours",
                    Unanswered::Silent | Unanswered::Failed(_) => "silent",
                });
                status["last_error"] = json!(self.unanswered(&why).to_string());
            }
        }
        status
    }
}

/// The mounts of ours that are not below another one, one per place.
fn visible() -> Result<Vec<Mount>, Failure> {
    let table = read_table()?;
    let visible = table
        .ours()
        .filter(|mount| table.at(&mount.mountpoint) == Some(mount));
    Ok(visible.cloned().collect())
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
    fn a_mount_of_root_is_said_to_be_root_s_and_not_to_be_unmounted() {
        let mut mount = Running {
            mountpoint: "/volumes".into(),
            device: "h:/".to_owned(),
            user: Some(0),
            daemon: None,
        };
        let told = mount.unanswered(&Unanswered::Foreign).to_string();
        assert_eq!(
            told,
            "asking the daemon of /volumes failed: the mount is root's. Try: as root"
        );
        mount.user = Some(1000);
        let told = mount.unanswered(&Unanswered::Foreign).to_string();
        assert!(told.contains("user 1000's"), "{told}");
        let gone = mount.unanswered(&Unanswered::Gone).to_string();
        assert!(
            gone.ends_with("it is gone. Try: efs-fuse umount --lazy /volumes"),
            "{gone}"
        );
    }

    #[test]
    fn a_mount_without_daemon_still_has_every_key() {
        let dead = Running {
            mountpoint: "/volumes".into(),
            device: "h:/".to_owned(),
            user: Some(0),
            daemon: None,
        };
        let status = dead.status();
        for key in [
            "mountpoint",
            "device",
            "user",
            "server",
            "version",
            "daemon",
            "since",
            "options",
            "option_origins",
            "session",
            "connections",
            "tls",
            "iam",
            "takeover",
            "disk_cache",
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
