//! The release binary, mounted on a directory of its own, unmounted with its
//! value.
//!
//! Questions go straight to the daemon's control socket. A program started for
//! that would inherit what is open in the mount, and closing it at exec waits
//! for the server; with the server stopped, for ever, and with it everybody
//! who looks at that process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use efs_fuse::mount::found::Found;
use efs_fuse::mount::registry::Registry;
use efs_fuse::telemetry::control;
use serde_json::{Value, json};

use crate::host::{Context, Result, eventually, go_on, run};

const EFS_FUSE: &str = env!("CARGO_BIN_EXE_efs-fuse");

#[derive(Debug)]
pub(crate) struct Mount {
    daemon: Found,
    /// Time from command to ready.
    pub(crate) took: Duration,
    mounted: bool,
    // Removed when nothing is mounted there any more.
    dir: Mountpoint,
}

impl Mount {
    pub(crate) fn new(server: SocketAddr) -> Result<Self> {
        Self::with(server, &[])
    }

    pub(crate) fn with(server: SocketAddr, options: &[&str]) -> Result<Self> {
        go_on()?;
        let dir = Mountpoint::new()?;
        let mut list = vec![format!("port={}", server.port())];
        list.extend(options.iter().map(|&option| option.to_owned()));
        let mut command = Command::new(EFS_FUSE);
        command
            .arg("mount")
            .arg(format!("{}:/", server.ip()))
            .arg(dir.path())
            .args(["-o", &list.join(",")]);
        let begun = Instant::now();
        run(&mut command)?;
        let took = begun.elapsed();
        let daemon = Registry::of_user()
            .find(dir.path())
            .ok_or("the mount has no daemon")?;
        Ok(Self {
            daemon,
            took,
            mounted: true,
            dir,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The daemon.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.written().map_or(0, |entry| entry.pid)
    }

    /// Unmounts; the time until the command is done and the daemon gone.
    pub(crate) fn end(mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.mounted = false;
        run(Command::new(EFS_FUSE).arg("umount").arg(self.path()))?;
        let gone = eventually(Duration::from_secs(10), || {
            // Also when its parent has not taken notice yet.
            std::fs::read_link(format!("/proc/{}/exe", self.pid())).is_err()
        });
        if !gone {
            return Err("the daemon outlives its mount".into());
        }
        Ok(begun.elapsed())
    }

    /// Fails everything that waits in it.
    pub(crate) fn abort(&self) {
        let _ = run(Command::new(EFS_FUSE)
            .args(["umount", "--force"])
            .arg(self.path()));
    }

    pub(crate) fn status(&self) -> Result<Value> {
        self.ask("status")
    }

    /// Round trips since the last time this was asked. Waits until everything
    /// under way has come back, also what a close left to be done.
    pub(crate) fn round_trips(&self) -> Result<u64> {
        let mut stats = Value::Null;
        eventually(Duration::from_secs(5), || {
            stats = self.ask("stats").unwrap_or_default();
            ["rpc_in_flight", "open_files", "fuse_in_flight"]
                .iter()
                .all(|gauge| stats["gauges"][gauge] == 0)
        });
        self.ask("reset")?;
        stats["round_trips"]
            .as_u64()
            .ok_or_else(|| "stats has no round_trips".into())
    }

    fn ask(&self, command: &str) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let answer = self
            .daemon
            .ask(&json!({"cmd": command}), deadline, control::MAX_REPLY);
        answer.context(command)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run(Command::new(EFS_FUSE)
                .args(["umount", "--lazy"])
                .arg(self.path()));
        }
    }
}

/// A directory to mount on. Never removed with something mounted on it.
#[derive(Debug)]
pub(crate) struct Mountpoint {
    path: PathBuf,
}

impl Mountpoint {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("efs-fuse-bench-mount-")
            .tempdir()
            .context("a mount point")?;
        let path = dir.keep().canonicalize().context("a mount point")?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        // Fails on a mount point that is still one, and on a full directory.
        let _ = std::fs::remove_dir(&self.path);
    }
}
