//! Files that a mount makes where others may write: its log and its metrics' socket; and
//! who asks for metrics.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::fixtures::World;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, MountRequest, Mountpoint, daemons_of, umount_command};
use crate::fixtures::port;
use crate::fixtures::private::ALICE;
use crate::fixtures::process::{eventually, run};
use crate::fixtures::sys;

/// A directory of Alice's.
fn hers() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    chown(dir.path(), Some(ALICE), Some(ALICE)).expect("chown");
    dir
}

fn mount_with_log(server: &Server, log: &Path) -> crate::fixtures::process::Finished {
    let at = Mountpoint::new();
    let request = MountRequest::of(server).option(&format!("log={}", log.display()));
    let done = run(&mut request.command(at.path()), Duration::from_secs(20));
    if !at.mounted().is_empty() {
        run(&mut umount_command(at.path()), COMMAND_LIMIT);
    }
    done
}

#[test]
fn the_log_of_root_is_written_through_no_link_of_a_user() {
    let server = Server::start(ServerOptions::default());
    let (dir, roots) = (hers(), tempfile::tempdir().expect("temporary directory"));
    let secret = roots.path().join("secret");
    fs::write(&secret, "kept").expect("write");
    symlink(&secret, dir.path().join("log")).expect("symlink");
    symlink(roots.path(), dir.path().join("way")).expect("symlink");
    for name in ["log", "way/log"] {
        let refused = mount_with_log(&server, &dir.path().join(name));
        assert_eq!(refused.code(), 2, "{name}: {}", refused.stderr);
        assert_eq!(fs::read(&secret).expect("read"), b"kept", "{name}");
        assert!(!roots.path().join("log").exists(), "{name}");
        assert!(refused.stderr.contains("a link"), "{}", refused.stderr);
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    }
    mount_with_log(&server, &roots.path().join("log")).expect_success("mount");
    let text = fs::read_to_string(roots.path().join("log")).expect("a log");
    assert!(text.contains("is mounted on"), "{text}");
}

#[test]
fn a_pipe_or_device_for_a_log_neither_hangs_a_mount_nor_is_written() {
    let server = Server::start(ServerOptions::default());
    let dir = hers();
    let pipe = dir.path().join("pipe");
    sys::mknod(&pipe, libc::S_IFIFO | 0o666, 0).expect("mkfifo");
    for path in [&pipe, Path::new("/dev/null")] {
        let refused = mount_with_log(&server, path);
        assert_eq!(refused.code(), 2, "{}", refused.stderr);
        assert!(refused.took < Duration::from_secs(10), "{:?}", refused.took);
    }
}

#[test]
fn who_sends_half_a_request_for_metrics_keeps_nobody_from_them() {
    let address = format!("127.0.0.1:{}", port::free([127, 0, 0, 1].into()));
    let _world = World::with(|request| request.option(&format!("metrics={address}")));
    let half: Vec<_> = (0..40)
        .map(|_| {
            let mut client = TcpStream::connect(&address).expect("connect");
            client
                .write_all(b"GET /metrics HTTP/1.1\r\n")
                .expect("half a request");
            client
        })
        .collect();
    let begun = Instant::now();
    let mut client = TcpStream::connect(&address).expect("connect");
    client
        .write_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        .expect("a request");
    let mut page = String::new();
    client.read_to_string(&mut page).expect("an answer");
    let took = begun.elapsed();
    assert!(page.contains("efs_fuse_session_up{mountpoint="), "{page}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(half);
}

#[test]
fn the_metrics_socket_has_its_mode_whatever_the_umask_and_replaces_only_our_own() {
    let server = Server::start(ServerOptions::default());
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("metrics");
    let request = MountRequest::of(&server).option(&format!("metrics={}", socket.display()));
    let at = Mountpoint::new();
    let mount = |umask: &str| {
        let command = request.command(at.path());
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask $0 && exec \"$@\"", umask]);
        shell.arg(command.get_program()).args(command.get_args());
        run(&mut shell, COMMAND_LIMIT).expect_success("mount")
    };
    let is_served = || UnixStream::connect(&socket).is_ok();
    for umask in ["077", "000"] {
        mount(umask);
        let mode = fs::metadata(&socket)
            .expect("a socket")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o660, "umask {umask}");
        for pid in daemons_of(at.path()) {
            // SAFETY: found a moment ago as the daemon of this test's mount.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        eventually(COMMAND_LIMIT, || {
            daemons_of(at.path()).is_empty().then_some(())
        });
        // Its memory goes before its sockets do.
        let left = eventually(COMMAND_LIMIT, || (!is_served()).then_some(()));
        assert!(left.is_some() && socket.exists(), "left behind");
    }
    // The next one knows it for its predecessor's.
    mount("022");
    assert!(is_served());
    run(&mut umount_command(at.path()), COMMAND_LIMIT).expect_success("umount");
    assert!(!socket.exists());
    // A service's that is not up just now: not ours.
    drop(UnixListener::bind(&socket).expect("bind"));
    let before = fs::symlink_metadata(&socket).expect("a socket").ino();
    let warned = mount("022");
    assert!(warned.stderr.contains("no metrics"), "{}", warned.stderr);
    assert_eq!(
        fs::symlink_metadata(&socket).expect("it stays").ino(),
        before
    );
    run(&mut umount_command(at.path()), COMMAND_LIMIT).expect_success("umount");
    assert_eq!(
        fs::symlink_metadata(&socket).expect("it stays").ino(),
        before
    );
}
