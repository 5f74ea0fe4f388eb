//! Processes that wait on a silent server can be ended.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::fixtures::World;
use crate::fixtures::process::Background;

fn shell(script: &str, world: &World) -> Background {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script])
        .current_dir("/")
        .env("DIR", world.mount.path())
        .env("BEHIND", world.behind("gone"));
    Background::spawn(command).expect("spawn")
}

#[test]
fn kill_9_ends_a_process_that_waits_on_a_stopped_server() {
    let world = World::with(|request| request.option("actimeo=60"));
    // Each blocks in another operation, and in a directory of its own: the
    // kernel's lock of a directory lets no signal through, on any file system.
    let scripts = [
        "exec cat \"$DIR/0/file\"",
        "exec touch \"$DIR/1/new\"",
        "exec mkdir \"$DIR/2/dir\"",
        "exec rm -f \"$DIR/3/file\"",
        "exec stat \"$DIR/4/never-seen\"",
    ];
    for i in 0..scripts.len() {
        fs::create_dir(world.path(format!("{i}"))).expect("mkdir");
        fs::write(world.path(format!("{i}/file")), vec![1; 1 << 20]).expect("write");
    }
    let stopped = world.server.stopped();
    let mut children = scripts.map(|script| shell(script, &world));
    std::thread::sleep(Duration::from_millis(500));
    for (child, script) in children.iter_mut().zip(scripts) {
        assert!(
            child.ended().is_none(),
            "{script} should wait for the server"
        );
        let start = Instant::now();
        child.signal(libc::SIGKILL);
        let status = child.wait(Duration::from_secs(5));
        let took = start.elapsed();
        assert_eq!(
            status.and_then(|status| status.signal()),
            Some(libc::SIGKILL),
            "{script}"
        );
        assert!(
            took < Duration::from_secs(1),
            "{script} took {took:?} to die"
        );
    }
    drop(stopped);
    // Whether the interrupted calls happened is open; the mount must work.
    fs::write(world.path("after"), b"x").expect("the mount works after the stall");
    assert_eq!(fs::read(world.behind("after")).expect("read"), b"x");
}

#[test]
fn a_fatal_signal_ends_a_waiting_process_and_a_stall_alone_ends_nothing() {
    let world = World::new();
    fs::write(world.path("file"), b"content").expect("write");
    let stopped = world.server.stopped();
    let mut patient = shell(
        "exec cat \"$DIR/never-seen\" \"$DIR/file\" 2>/dev/null",
        &world,
    );
    let mut killed = shell("exec cat \"$DIR/not-there\"", &world);
    std::thread::sleep(Duration::from_millis(500));
    killed.signal(libc::SIGTERM);
    let status = killed
        .wait(Duration::from_secs(1))
        .expect("SIGTERM ends the process");
    assert_eq!(status.signal(), Some(libc::SIGTERM));
    std::thread::sleep(Duration::from_secs(2));
    assert!(patient.ended().is_none(), "a hard mount waits");
    drop(stopped);
    let status = patient
        .wait(Duration::from_secs(20))
        .expect("goes on after the stall");
    assert_eq!(status.code(), Some(1), "cat: one file missing, one read");
}

#[test]
fn processes_that_are_killed_and_closes_that_fail_are_no_errors_of_the_log() {
    let log = tempfile::NamedTempFile::new().expect("temporary file");
    let world = World::with(|request| {
        request
            .without("log=")
            .option(&format!("log={}", log.path().display()))
    });
    fs::write(world.path("file"), vec![1; 1 << 20]).expect("write");
    let stopped = world.server.stopped();
    let scripts = [
        "exec cat \"$DIR/file\"",
        "exec touch \"$DIR/new\"",
        "exec dd if=/dev/zero of=\"$DIR/long\" bs=1M count=200 2>/dev/null",
    ];
    let mut children: Vec<_> = (scripts.iter().cycle().take(9))
        .map(|script| shell(script, &world))
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    for child in &mut children {
        child.signal(libc::SIGKILL);
        child.wait(Duration::from_secs(5)).expect("it dies");
    }
    drop(stopped);
    // A write that the server refuses, told by close(2): nothing of it was mapped.
    let mut script = shell(
        "exec 3>\"$DIR/gone\"; rm \"$BEHIND\"; echo x >&3; exec 3>&-; exit 0",
        &world,
    );
    script.wait(Duration::from_secs(10)).expect("it ends");
    let World { mount, server } = world;
    mount.unmount();
    drop(server);
    let log = fs::read_to_string(log.path()).expect("log");
    assert!(!log.contains(" ERROR "), "{log}");
}
