//! A service in a mount namespace of its own mounts where everybody sees it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::mount::{EFS_FUSE, Mountpoint};
use crate::fixtures::process::eventually;

const LIMIT: Duration = Duration::from_secs(20);

/// The daemon, which is ended and, if it does not end, killed with this.
struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its pid is its own.
        let _ = unsafe { libc::kill(self.0.id().cast_signed(), signal) };
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.signal(libc::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// As systemd starts one: nothing that is mounted in the namespace leaves it, and what is
/// system's is read-only there.
fn service(world: &World, at: &Path, mount_namespace: &str) -> Daemon {
    let script = "mount --make-rslave / && mount -t tmpfs -o ro none /sys && exec \"$@\"";
    let address = world.server.address();
    let child = Command::new("unshare")
        .args([
            "-m",
            "--propagation",
            "unchanged",
            "sh",
            "-c",
            script,
            "sh",
            EFS_FUSE,
            "mount",
        ])
        .arg("127.0.0.1:/")
        .arg(at)
        .arg("-o")
        .arg(format!("port={}", address.port()))
        .args(["--foreground", "--mount-namespace", mount_namespace])
        .stdin(Stdio::null())
        .spawn()
        .expect("unshare");
    Daemon(child)
}

#[test]
fn what_a_service_mounts_is_seen_outside_of_its_namespace_and_gone_when_it_ends() {
    let world = World::new();
    fs::write(world.path("file"), "x").expect("write");
    let at = Mountpoint::new();
    let mut daemon = service(
        &world,
        at.path(),
        &format!("/proc/{}/ns/mnt", std::process::id()),
    );
    let seen = eventually(LIMIT, || fs::read_to_string(at.path().join("file")).ok());
    assert_eq!(seen.as_deref(), Some("x"));
    let pid = daemon.0.id();
    let namespace = |of: String| fs::metadata(of).expect("a namespace").ino();
    let here = namespace("/proc/self/ns/mnt".to_owned());
    let mut inside = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("threads") {
        let thread = thread.expect("a thread").path();
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        if name.starts_with("efs-fuse-mount") {
            assert_eq!(namespace(format!("{}/ns/mnt", thread.display())), here);
        } else {
            assert_ne!(
                namespace(format!("{}/ns/mnt", thread.display())),
                here,
                "{name}"
            );
            inside += 1;
        }
    }
    assert!(inside > 3, "{inside} threads");
    // What goes through /sys, which is read-only in there.
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let path = at.path().to_str().expect("UTF-8");
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(path));
    let device = line
        .and_then(|line| line.split(' ').nth(2))
        .expect("the mount");
    let kib = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).expect("bdi");
    assert_eq!(kib.trim(), "8192");
    daemon.signal(libc::SIGTERM);
    let ended = eventually(LIMIT, || daemon.has_ended().then_some(()));
    assert!(ended.is_some(), "it does not end");
    assert!(at.mounted().is_empty());
}

#[test]
fn what_is_no_mount_namespace_is_an_error() {
    let world = World::new();
    let at = Mountpoint::new();
    let mut daemon = service(&world, at.path(), "/proc/self/ns/net");
    let status = eventually(LIMIT, || daemon.0.try_wait().ok().flatten());
    assert_eq!(status.and_then(|status| status.code()), Some(2));
}
