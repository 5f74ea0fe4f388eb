//! What a daemon of root may do once it has mounted: as good as nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::mount::{COMMAND_LIMIT, MountRequest, Mountpoint, umount_command};
use crate::fixtures::process::{eventually, run};
use crate::fixtures::sys;

/// CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE, CAP_SYS_ADMIN; and CAP_SYS_PTRACE,
/// which is in effect where /proc hides processes.
const KEPT: u64 = 1 << 2 | 1 << 10 | 1 << 21;
const PTRACE: u64 = 1 << 19;

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.expect("the field").trim_start_matches(':').trim();
    u64::from_str_radix(value, 16).expect("a number")
}

#[test]
fn no_thread_of_the_daemon_has_a_capability_in_effect() {
    let world = World::new();
    fs::write(world.path("file"), "x").expect("write");
    let pid = world.mount.pid();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let mut seen = 0;
    for thread in threads.flatten() {
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else {
            continue;
        };
        seen += 1;
        assert_eq!(field(&status, "CapEff") & !PTRACE, 0, "{status}");
        for set in ["CapPrm", "CapBnd"] {
            assert_eq!(field(&status, set) & !(KEPT | PTRACE), 0, "{set}: {status}");
        }
        assert_eq!(field(&status, "CapInh"), 0, "{status}");
        assert_eq!(field(&status, "NoNewPrivs"), 1, "{status}");
    }
    assert!(seen > 3, "{seen} threads");
}

#[test]
fn a_mount_point_in_a_private_directory_is_mounted_and_unmounted_on_a_signal() {
    let world = World::new();
    let home = tempfile::tempdir().expect("temporary directory");
    let place = home.path().join("m");
    fs::create_dir(&place).expect("mkdir");
    std::os::unix::fs::chown(home.path(), Some(1000), Some(1000)).expect("chown");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
    run(
        &mut MountRequest::of(&world.server).command(&place),
        COMMAND_LIMIT,
    )
    .expect_success("mount");
    fs::write(place.join("file"), "x").expect("write");
    let [pid] = crate::fixtures::mount::daemons_of(&place)[..] else {
        panic!("one daemon");
    };
    // SAFETY: the pid was found a moment ago as the daemon of this test's mount.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let gone = eventually(Duration::from_secs(10), || {
        crate::fixtures::mount::mounted_at(&place)
            .is_empty()
            .then_some(())
    });
    if gone.is_none() {
        let _ = sys::detach(&place);
    }
    assert!(gone.is_some(), "SIGTERM did not unmount");
}

#[test]
fn what_the_daemon_gave_up_is_not_missed_by_its_users() {
    let world = World::new();
    // Its read-ahead was set, although sysfs is root's.
    let at = Mountpoint::new();
    run(
        &mut MountRequest::of(&world.server).command(at.path()),
        COMMAND_LIMIT,
    )
    .expect_success("mount");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let path = at.path().to_str().expect("UTF-8");
    let device = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(path))
        .and_then(|line| line.split(' ').nth(2))
        .expect("the mount");
    let kib = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).expect("bdi");
    assert_eq!(kib.trim(), "8192");
    run(&mut umount_command(at.path()), COMMAND_LIMIT).expect_success("umount");
}
