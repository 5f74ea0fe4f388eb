//! Every way to ask for the impossible: one clear message, the right status,
//! nothing mounted, nothing left running.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{
    COMMAND_LIMIT, EFS_FUSE, Mount, MountRequest, Mountpoint, daemons_of, mounted_at,
    umount_command, unmount_by,
};
use crate::fixtures::process::{Finished, run};
use crate::fixtures::sys::{self, Identity};
use crate::fixtures::{needs, port};

/// The exit statuses of the contract.
const USAGE: i32 = 1;
const SYSTEM: i32 = 2;
const MOUNT: i32 = 32;

/// The message: one to three lines, each `efs-fuse: …`, that name `about`.
#[track_caller]
fn message(done: &Finished, status: i32, about: &[&str]) {
    assert_eq!(done.code(), status, "stderr: {}", done.stderr);
    let lines: Vec<_> = done.stderr.lines().collect();
    assert!(
        (1..=3).contains(&lines.len()),
        "one to three lines: {}",
        done.stderr
    );
    for line in &lines {
        assert!(line.starts_with("efs-fuse: "), "{line}");
    }
    let text = done.stderr.to_lowercase();
    assert!(
        !text.contains("panicked") && !text.contains("backtrace"),
        "{}",
        done.stderr
    );
    for word in about {
        assert!(
            text.contains(&word.to_lowercase()),
            "no {word:?} in: {}",
            done.stderr
        );
    }
}

/// Refused with this status and a message about these words, and without a trace.
#[track_caller]
fn refused(command: &mut Command, at: &Path, status: i32, about: &[&str]) -> Finished {
    let before = mounted_at(at).len();
    let done = run(command, COMMAND_LIMIT);
    message(&done, status, about);
    assert_eq!(mounted_at(at).len(), before, "something was mounted");
    if before == 0 {
        let left = daemons_of(at);
        assert!(left.is_empty(), "left running: {left:?}");
    }
    done
}

fn mount(device: &str, port: u16, options: &str, at: &Path) -> Command {
    let request = MountRequest::new(device, port);
    let request = if options.is_empty() {
        request
    } else {
        request.option(options)
    };
    request.command(at)
}

#[test]
fn mountpoint_missing() {
    let at = Mountpoint::new();
    let missing = at.path().join("missing");
    let name = missing.to_str().expect("utf-8");
    refused(
        &mut mount("127.0.0.1:/", port::closed(), "", &missing),
        &missing,
        MOUNT,
        &[name, "no such"],
    );
}

#[test]
fn mountpoint_not_a_directory() {
    let at = Mountpoint::new();
    let file = at.path().join("file");
    fs::write(&file, b"").expect("write");
    let name = file.to_str().expect("utf-8");
    refused(
        &mut mount("127.0.0.1:/", port::closed(), "", &file),
        &file,
        MOUNT,
        &[name, "directory"],
    );
}

#[test]
fn mountpoint_not_empty_is_a_warning_and_mounts() {
    let server = Server::start(ServerOptions::default());
    let at = Mountpoint::new();
    fs::write(at.path().join("hidden"), b"").expect("write");
    let done = run(
        &mut MountRequest::of(&server).command(at.path()),
        COMMAND_LIMIT,
    );
    message(&done, 0, &["efs-fuse: warning: ", "empty"]);
    assert_eq!(at.mounted().len(), 1);
    assert!(!at.path().join("hidden").exists(), "the mount covers it");
    unmount_by(|| umount_command(at.path())).expect_success("umount");
    assert!(at.path().join("hidden").exists());
}

#[test]
fn two_mounts_at_one_place() {
    let server = Server::start(ServerOptions::default());
    let mount = Mount::new(&server);
    fs::write(mount.join("file"), b"x").expect("write");
    refused(
        &mut MountRequest::of(&server).command(mount.path()),
        mount.path(),
        MOUNT,
        &["already"],
    );
    assert_eq!(
        fs::read(mount.join("file")).expect("the first mount lives"),
        b"x"
    );
    mount.pid();
}

/// Runs the rest of the command line where a shell has done this first, in a mount namespace of its own.
fn after(first: &str, inner: &Command) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c"])
        .arg(format!("{first} && exec \"$@\""))
        .arg("sh")
        .arg(inner.get_program())
        .args(inner.get_args());
    command
}

#[test]
fn no_fuse_device() {
    let server = Server::start(ServerOptions::default());
    let at = Mountpoint::new();
    let request = MountRequest::of(&server);
    refused(
        &mut after("mount -t tmpfs none /dev", &request.command(at.path())),
        at.path(),
        SYSTEM,
        &["/dev/fuse"],
    );
}

#[test]
fn something_else_in_the_place_of_the_fuse_device_is_told_by_mount_and_doctor() {
    let server = Server::start(ServerOptions::default());
    let at = Mountpoint::new();
    for (first, kind) in [
        ("mount --bind /dev/null /dev/fuse", "device 1:3"),
        ("mount --bind /etc/hostname /dev/fuse", "a regular file"),
    ] {
        let because = format!("opening /dev/fuse failed: it is no FUSE device but {kind}");
        let words = [because.as_str(), "umount /dev/fuse", "--device /dev/fuse"];
        let request = MountRequest::of(&server);
        let mut mount = after(first, &request.command(at.path()));
        refused(&mut mount, at.path(), SYSTEM, &words);
        let mut inner = Command::new(EFS_FUSE);
        let port = format!("port={}", server.address().port());
        inner.args(["doctor", "127.0.0.1:/", "-o", &port]);
        let done = run(&mut after(first, &inner), COMMAND_LIMIT);
        message(&done, SYSTEM, &words);
        // The server is looked at all the same.
        for line in ["FAILED  fuse", "ok      root"] {
            assert!(done.stdout.contains(line), "{}", done.stdout);
        }
    }
}

#[test]
fn not_permitted_to_mount() {
    let server = Server::start(ServerOptions::default());
    let at = Mountpoint::new();
    // Where another user can run it: the build directory may be closed to all.
    let dir = tempfile::tempdir().expect("temporary directory");
    sys::chmod(dir.path(), 0o755).expect("chmod");
    let program = dir.path().join("efs-fuse");
    run(
        Command::new("cp").arg(EFS_FUSE).arg(&program),
        COMMAND_LIMIT,
    )
    .expect_success("cp");
    let inner = MountRequest::of(&server).command(at.path());
    let mut command = Command::new(&program);
    // Whether /dev/fuse itself or the setuid fusermount3 says no depends on the machine.
    command.args(inner.get_args()).current_dir("/").env_clear();
    let nobody = Identity::new(65534, 65534, &[]);
    // SAFETY: `assume` makes three system calls and nothing else.
    unsafe { command.pre_exec(move || nobody.assume()) };
    let done = run(&mut command, COMMAND_LIMIT);
    message(&done, SYSTEM, &["mount"]);
    assert!(at.mounted().is_empty());
}

#[test]
fn host_does_not_resolve() {
    let at = Mountpoint::new();
    // RFC 6761: .invalid never resolves.
    refused(
        &mut mount("no-such-host.invalid:/", 2049, "", at.path()),
        at.path(),
        MOUNT,
        &["no-such-host.invalid"],
    );
}

#[test]
fn connection_refused() {
    let at = Mountpoint::new();
    let closed = port::closed();
    refused(
        &mut mount("127.0.0.1:/", closed, "", at.path()),
        at.path(),
        MOUNT,
        &["127.0.0.1", &closed.to_string(), "refused"],
    );
}

/// A listener that hands each connection to `serve`, for as long as the test runs.
fn impostor(serve: fn(std::net::TcpStream)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

#[test]
fn port_open_but_not_nfs() {
    let at = Mountpoint::new();
    let http = impostor(|mut stream| {
        let mut request = [0; 64];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    refused(
        &mut mount("127.0.0.1:/", http, "", at.path()),
        at.path(),
        MOUNT,
        &["nfs"],
    );
    let closer = impostor(drop);
    refused(
        &mut mount("127.0.0.1:/", closer, "", at.path()),
        at.path(),
        MOUNT,
        &["127.0.0.1"],
    );
    let noise = impostor(|mut stream| {
        let _ = stream.write_all(&[0xff; 4096]);
    });
    refused(
        &mut mount("127.0.0.1:/", noise, "", at.path()),
        at.path(),
        MOUNT,
        &["127.0.0.1"],
    );
}

#[test]
fn a_silent_server_is_given_up_after_mount_timeout() {
    let at = Mountpoint::new();
    let silent = impostor(|mut stream| {
        let mut sink = [0; 1024];
        while matches!(stream.read(&mut sink), Ok(1..)) {}
    });
    let done = refused(
        &mut mount("127.0.0.1:/", silent, "mount_timeout=2", at.path()),
        at.path(),
        MOUNT,
        &["127.0.0.1"],
    );
    assert!(
        (Duration::from_millis(1900)..Duration::from_secs(6)).contains(&done.took),
        "took {:?}",
        done.took
    );
}

#[test]
fn server_that_speaks_nfs_4_0_only() {
    let server = Server::start(ServerOptions {
        minor_versions: "0",
        ..ServerOptions::default()
    });
    let at = Mountpoint::new();
    refused(
        &mut MountRequest::of(&server).command(at.path()),
        at.path(),
        MOUNT,
        &["4.1"],
    );
}

#[test]
fn export_or_subdirectory_missing() {
    let server = Server::start(ServerOptions::default());
    fs::write(server.export().join("file"), b"").expect("write");
    fs::create_dir(server.export().join("dir")).expect("mkdir");
    let at = Mountpoint::new();
    for missing in ["/none", "/dir/none"] {
        let device = server.device(missing);
        refused(
            &mut mount(&device, server.port(), "", at.path()),
            at.path(),
            MOUNT,
            &[missing, "no such"],
        );
    }
    refused(
        &mut mount(&server.device("/file"), server.port(), "", at.path()),
        at.path(),
        MOUNT,
        &["/file", "directory"],
    );
}

#[test]
fn permission_denied_by_the_server() {
    // Root is nobody there, as on EFS without root access.
    let server = Server::start(ServerOptions {
        squash: "Root_Squash",
        ..ServerOptions::default()
    });
    let private = server.export().join("private");
    fs::create_dir_all(private.join("sub")).expect("mkdir");
    sys::chmod(&private, 0o700).expect("chmod");
    let at = Mountpoint::new();
    for path in ["/private/sub", "/private"] {
        refused(
            &mut mount(&server.device(path), server.port(), "", at.path()),
            at.path(),
            MOUNT,
            &[path, "denied"],
        );
    }
}

#[test]
fn unknown_option() {
    needs::root();
    let at = Mountpoint::new();
    for options in ["wibble", "wibble=7"] {
        refused(
            &mut mount("127.0.0.1:/", port::closed(), options, at.path()),
            at.path(),
            USAGE,
            &["wibble"],
        );
    }
}

#[test]
fn malformed_options() {
    let at = Mountpoint::new();
    for (options, name) in [
        ("rsize=big", "rsize"),
        ("wsize=", "wsize"),
        ("timeo=-1", "timeo"),
        ("actimeo=99999999999999999999", "actimeo"),
        ("iam,notls", "iam"),
        ("tls,port=1,awsprofile=x", "iam"),
        ("uid=1000", "owners"),
        ("retry=soon", "retry"),
        ("xprtsec=tls", "RFC 9289"),
        ("mount_timeout=soon", "mount_timeout"),
    ] {
        refused(
            &mut mount("127.0.0.1:/", port::closed(), options, at.path()),
            at.path(),
            USAGE,
            &[name],
        );
    }
    for port in ["0", "65536", "http", ""] {
        let mut command = Command::new(EFS_FUSE);
        command
            .args(["mount", "127.0.0.1:/"])
            .arg(at.path())
            .args(["-o", &format!("port={port}")]);
        refused(&mut command, at.path(), USAGE, &["port"]);
    }
}

#[test]
fn malformed_device() {
    let at = Mountpoint::new();
    for device in ["", ":/", "[::1:/", "[]:/", "host:relative", "[zz]:/"] {
        refused(
            &mut mount(device, port::closed(), "", at.path()),
            at.path(),
            USAGE,
            &["efs-fuse: "],
        );
    }
}

#[test]
fn ipv6_literal_in_brackets_mounts() {
    let server = Server::start(ServerOptions {
        address: Ipv6Addr::LOCALHOST.into(),
        ..ServerOptions::default()
    });
    fs::write(server.export().join("file"), b"by IPv6").expect("write");
    let mount = Mount::new(&server);
    assert_eq!(fs::read(mount.join("file")).expect("read"), b"by IPv6");
    assert_eq!(mount.at().mounted()[0].source, "[::1]:/");
}

#[test]
fn commands_about_what_is_not_our_mount() {
    let at = Mountpoint::new();
    let missing = at.path().join("none");
    for path in [at.path(), Path::new("/proc"), &missing] {
        for name in ["umount", "stats", "status"] {
            let mut command = Command::new(EFS_FUSE);
            command.arg(name).arg(path);
            refused(&mut command, path, USAGE, &[path.to_str().expect("utf-8")]);
        }
    }
    assert_eq!(
        mounted_at(Path::new("/proc")).len(),
        1,
        "/proc is still there"
    );
}

#[test]
fn missing_arguments() {
    for arguments in [
        &["mount"][..],
        &["mount", "127.0.0.1:/"],
        &["umount"],
        &["wibble"],
    ] {
        let done = run(Command::new(EFS_FUSE).args(arguments), COMMAND_LIMIT);
        assert_eq!(done.code(), USAGE, "{arguments:?}: {}", done.stderr);
        assert!(
            done.stderr.starts_with("efs-fuse: "),
            "{arguments:?}: {}",
            done.stderr
        );
    }
}
