//! What a daemon of root may do once it has mounted: as good as nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::mount::{COMMAND_LIMIT, MountRequest, Mountpoint, umount_command};
use crate::fixtures::process::{eventually, run};
use crate::fixtures::sys;

/// Of the thread that mounts: CAP_DAC_READ_SEARCH and CAP_SYS_ADMIN.
const MOUNTS: u64 = 1 << 2 | 1 << 21;
/// Of the others: CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE for the ports that they connect
/// from, and CAP_SYS_PTRACE, which is in effect where /proc hides processes.
const LOOKS: u64 = 1 << 2 | NET_BIND | PTRACE;
const PTRACE: u64 = 1 << 19;
const NET_BIND: u64 = 1 << 10;

/// The status of each thread of a process.
fn threads(pid: i32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).ok();
    threads.flatten().filter_map(status).collect()
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.expect("the field").trim_start_matches(':').trim();
    u64::from_str_radix(value, 16).expect("a number")
}

#[test]
fn no_thread_of_the_daemon_has_a_capability_in_effect() {
    let world = World::new();
    fs::write(world.path("file"), "x").expect("write");
    let threads = threads(world.mount.pid());
    let mut keepers = 0;
    for status in &threads {
        assert_eq!(field(status, "CapEff") & !PTRACE, 0, "{status}");
        // One thread keeps what mounting takes, the others look at callers.
        let keeper = status.starts_with("Name:\tefs-fuse-mount");
        keepers += usize::from(keeper);
        let kept = if keeper { MOUNTS } else { LOOKS };
        for set in ["CapPrm", "CapBnd"] {
            assert_eq!(field(status, set) & !kept, 0, "{set}: {status}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(status, set), 0, "{set}: {status}");
        }
        assert_eq!(field(status, "NoNewPrivs"), 1, "{status}");
    }
    assert!(threads.len() > 3, "{} threads", threads.len());
    assert_eq!(keepers, 1);
}

#[test]
fn a_low_port_is_permitted_only_where_metrics_are_served_on_one_or_connections_come_from_one() {
    let world = World::new();
    let permitted = |option: &str| {
        let request = MountRequest::of(&world.server).option("noresvport");
        let mount = request.option(option).mount();
        let status = fs::read_to_string(format!("/proc/{}/status", mount.pid()));
        let permitted = field(&status.expect("status"), "CapPrm");
        mount.unmount();
        permitted & NET_BIND
    };
    assert_eq!(permitted("metrics=127.0.0.1:0"), 0);
    assert_eq!(permitted("resvport"), NET_BIND);
    assert_eq!(permitted("metrics=127.0.0.1:9"), NET_BIND);
    assert_eq!(
        permitted(&format!("metrics={}", crate::fixtures::port::closed())),
        0
    );
}

#[test]
fn every_thread_has_the_filter_and_what_a_daemon_never_does_is_denied_to_it() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("log");
    let mount = MountRequest::of(&world.server)
        .option(&format!("log={}", log.display()))
        .env("EFS_FUSE_TEST_SYSCALLS", "1")
        .mount();
    fs::write(mount.join("file"), "x").expect("write");
    for status in threads(mount.pid()) {
        assert_eq!(field(&status, "Seccomp"), 2, "{status}");
    }
    let said = fs::read_to_string(&log).expect("log");
    let answer = |call: &str| {
        let words = format!("test: {call} answers ");
        let rest = said.split_once(&words).map(|(_, rest)| rest);
        let number = rest.and_then(|rest| rest.lines().next()?.trim().parse::<i32>().ok());
        number.unwrap_or_else(|| panic!("{call} is not in {said}"))
    };
    for denied in [
        "mount",
        "fsopen",
        "open_tree",
        "move_mount",
        "setns",
        "unshare",
        "clone",
        "ptrace",
        "process_vm_writev",
        "open_by_handle_at",
        "bpf",
        "keyctl",
        "io_uring_setup",
        "mknodat",
        "setuid",
        "execve",
    ] {
        assert_eq!(answer(denied), libc::EPERM, "{denied}");
    }
    assert_eq!(answer("clone3"), libc::ENOSYS);
    // What it does at its end.
    assert_eq!(answer("umount2"), libc::EFAULT);
    mount.unmount();
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
