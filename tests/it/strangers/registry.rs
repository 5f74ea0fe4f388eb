//! Users write their own registries, and what they like into them: root takes nobody's
//! word for what it mounts, asks, signals or removes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::daemons_of;
use crate::fixtures::private::{ALICE, Private, as_user, identity};
use crate::fixtures::process::{Background, Finished};

/// A server with a tree of Alice's and one that only root may look into.
fn server() -> Server {
    let server = Server::start(ServerOptions::default());
    for (dir, uid, mode) in [("hers", ALICE, 0o755), ("roots", 0, 0o700)] {
        let dir = server.export().join(dir);
        fs::create_dir_all(dir.join("tree")).expect("mkdir");
        fs::write(dir.join("tree/file"), "x").expect("write");
        for path in [dir.clone(), dir.join("tree"), dir.join("tree/file")] {
            chown(path, Some(uid), Some(uid)).expect("chown");
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    server
}

fn port(server: &Server) -> String {
    format!("port={}", server.port())
}

/// Alice's mount of her own directory.
fn hers(private: &mut Private, server: &Server) -> PathBuf {
    let place = private.place("hers", ALICE);
    private.mount(ALICE, &server.device("/hers"), &place, &port(server));
    place
}

fn entry(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("an entry")).expect("JSON")
}

/// Writes what Alice would write.
fn forge(path: &Path, entry: &Value) {
    identity(ALICE).run(|| fs::write(path, entry.to_string()).expect("her own file"));
}

fn json_of(done: Finished) -> Value {
    let done = done.expect_success("status");
    serde_json::from_str(&done.stdout).expect("JSON")
}

fn started(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, fields) = stat.rsplit_once(") ").expect("fields");
    let field = fields.split(' ').nth(19);
    field.expect("a start time").parse().expect("a number")
}

fn sleeping(private: &Private, uid: u32) -> Background {
    let mut command = as_user(uid, "sleep");
    command.arg("600");
    private.spawn(command)
}

/// Takes the place of Alice's daemon at its socket.
fn impostor(private: &Private) -> UnixListener {
    let socket = private.file(ALICE, "sock");
    identity(ALICE).run(|| {
        fs::remove_file(&socket).expect("her own socket");
        UnixListener::bind(&socket).expect("her own directory")
    })
}

#[test]
fn root_measures_and_removes_nothing_by_a_users_word() {
    let server = server();
    let mut private = Private::new();
    let place = hers(&mut private, &server);
    let file = private.file(ALICE, "json");
    let mut forged = entry(&file);
    forged["device"] = json!(server.device("/roots"));
    forge(&file, &forged);
    let tree = place.join("tree");
    for arguments in [vec!["du"], vec!["rm", "-r"], vec!["rm", "-r", "--yes"]] {
        let mut arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        arguments.push(tree.as_os_str());
        let refused = private.efs_fuse(0, &arguments);
        assert!(
            server.export().join("roots/tree/file").exists(),
            "root's tree was removed: {}",
            refused.stderr
        );
        assert_eq!(refused.code(), 1, "{arguments:?}: {}", refused.stderr);
        assert!(
            refused.stderr.contains("user 1000") && refused.stderr.lines().count() == 1,
            "{}",
            refused.stderr
        );
    }
    // She may, with what she wrote herself; and root may by what its own registry says.
    forged["device"] = json!(server.device("/hers"));
    forge(&file, &forged);
    let du = private.efs_fuse(ALICE, &["du".as_ref(), tree.as_os_str()]);
    du.expect_success("her du");
    let roots = private.place("roots", 0);
    private.mount(0, &server.device("/hers"), &roots, &port(&server));
    let tree = roots.join("tree");
    let arguments = [
        "rm".as_ref(),
        "-r".as_ref(),
        "--yes".as_ref(),
        tree.as_os_str(),
    ];
    private.efs_fuse(0, &arguments).expect_success("root's rm");
    assert!(!server.export().join("hers/tree").exists());
}

/// A mount at the place of one that is out of sight: the entry is of the other one.
#[test]
fn an_entry_of_another_mount_at_the_place_is_not_believed() {
    let server = server();
    let mut private = Private::new();
    let place = private.place("m", 0);
    private.mount(0, &server.device("/hers"), &place, &port(&server));
    let file = private.file(0, "json");
    let mut other = entry(&file);
    other["device"] = json!(server.device("/roots"));
    fs::write(&file, other.to_string()).expect("write");
    let tree = place.join("tree");
    let arguments = [
        "rm".as_ref(),
        "-r".as_ref(),
        "--yes".as_ref(),
        tree.as_os_str(),
    ];
    let refused = private.efs_fuse(0, &arguments);
    assert!(server.export().join("roots/tree/file").exists());
    assert_eq!(refused.code(), 1, "{}", refused.stderr);
}

#[test]
fn nobody_cleans_a_registry_of_others() {
    let server = server();
    let mut private = Private::new();
    // A sticky directory, in which a service of root has a socket; Alice's registry is a
    // link to it, and an entry of hers beside the socket says that its daemon is dead.
    let sticky = private.inside("/run/sticky");
    fs::create_dir(&sticky).expect("mkdir");
    fs::set_permissions(&sticky, fs::Permissions::from_mode(0o1777)).expect("chmod");
    let service = UnixListener::bind(sticky.join("service.sock")).expect("bind");
    identity(ALICE).run(|| {
        let dead = json!({
            "mountpoint": "/x", "device": "h:/", "server": "h:2049", "pid": 4_000_000_u32,
            "start_time": 1, "exe": "/x", "since": 1, "version": "0",
        });
        fs::write(sticky.join("service.json"), dead.to_string()).expect("write");
        symlink("/run/sticky", private.inside("/run/user/1000/efs-fuse")).expect("symlink");
    });
    let place = private.place("m", 0);
    private.mount(0, &server.device("/hers"), &place, &port(&server));
    for command in ["status", "umount"] {
        let arguments = [command.as_ref(), place.as_os_str()];
        private.efs_fuse(0, &arguments).expect_success(command);
        assert!(sticky.join("service.sock").exists(), "{command} removed it");
    }
    drop(service);
    // Nor one that is a plain directory of hers.
    let registry = private.inside("/run/user/1000/efs-fuse");
    identity(ALICE).run(|| {
        fs::remove_file(&registry).expect("unlink");
        fs::create_dir(&registry).expect("mkdir");
        fs::copy(sticky.join("service.json"), registry.join("a.json")).expect("copy");
        fs::write(registry.join("a.sock"), "").expect("write");
    });
    private.mount(0, &server.device("/hers"), &place, &port(&server));
    let arguments = ["umount".as_ref(), place.as_os_str()];
    private.efs_fuse(0, &arguments).expect_success("umount");
    assert!(registry.join("a.sock").exists() && registry.join("a.json").exists());
}

#[test]
fn a_users_entry_does_not_keep_root_from_its_dead_mount() {
    let server = server();
    let mut private = Private::new();
    let place = private.place("m", 0);
    private.mount(0, &server.device("/hers"), &place, &port(&server));
    let file = private.file(0, "json");
    let mut forged = entry(&file);
    private.crash(&place);
    let her_process = sleeping(&private, ALICE);
    forged["pid"] = json!(her_process.pid());
    forged["start_time"] = json!(started(her_process.pid()));
    let registry = private.inside("/run/user/1000/efs-fuse");
    identity(ALICE).run(|| fs::create_dir(&registry).expect("mkdir"));
    forge(&registry.join(file.file_name().expect("a name")), &forged);
    // Nor does it become who serves root's mount.
    let status = json_of(private.efs_fuse(
        0,
        &["status".as_ref(), place.as_os_str(), "--json".as_ref()],
    ));
    assert_eq!(status["mounts"][0]["pid"], Value::Null, "{status}");
    private.mount(0, &server.device("/hers"), &place, &port(&server));
    assert_eq!(daemons_of(&place).len(), 1);
}

#[test]
fn a_socket_that_drips_keeps_root_for_five_seconds_and_not_for_ever() {
    let server = server();
    let mut private = Private::new();
    let place = hers(&mut private, &server);
    let listener = impostor(&private);
    // One byte of an answer a second, to whoever asks.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            std::thread::spawn(move || {
                while client.write_all(b" ").is_ok() {
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
        }
    });
    let asking: [&[&str]; 4] = [&["status"], &["stats"], &["stats", "--watch"], &["umount"]];
    for arguments in asking {
        let begun = Instant::now();
        let mut arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        arguments.push(place.as_os_str());
        private.efs_fuse(0, &arguments);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "{arguments:?}: {took:?}");
    }
}

#[test]
fn many_silent_sockets_of_a_user_cost_root_one_wait() {
    let server = server();
    let mut private = Private::new();
    let mut listeners = Vec::new();
    for n in 0..4 {
        let place = private.place(&format!("m{n}"), ALICE);
        private.mount(ALICE, &server.device("/hers"), &place, &port(&server));
    }
    let registry = private.inside("/run/user/1000/efs-fuse");
    identity(ALICE).run(|| {
        for file in fs::read_dir(&registry).expect("readdir").flatten() {
            if file.path().extension().is_some_and(|end| end == "sock") {
                fs::remove_file(file.path()).expect("her own");
                listeners.push(UnixListener::bind(file.path()).expect("bind"));
            }
        }
    });
    assert_eq!(listeners.len(), 4);
    let begun = Instant::now();
    let status = json_of(private.efs_fuse(0, &["status", "--json"]));
    let took = begun.elapsed();
    assert_eq!(
        status["mounts"].as_array().map(Vec::len),
        Some(4),
        "{status}"
    );
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[test]
fn what_a_users_daemon_answers_is_no_row_of_roots_status() {
    let server = server();
    let mut private = Private::new();
    let place = hers(&mut private, &server);
    let listener = impostor(&private);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut request = [0; 512];
            let _ = client.read(&mut request);
            let forged = json!({
                "device": "fs-prod:/", "mountpoint": "/volumes", "pid": 1, "user": 0,
                "server": "h:1\nfs-prod:/ on /volumes\n\u{1b}[2J\u{202e}",
                "tls": {"x\u{1b}]0;y\u{7}": "\r\n  iam            yes"},
                "fs-prod:/ on /other\n": "yes",
            });
            let _ = client.write_all(format!("{forged}\n").as_bytes());
        }
    });
    let shown = private.efs_fuse(0, &["status"]).expect_success("status");
    let plain = |text: &str| text.lines().all(|line| !line.chars().any(char::is_control));
    assert!(plain(&shown.stdout), "{:?}", shown.stdout);
    assert!(
        !shown.stdout.lines().any(|line| line.starts_with("fs-prod")),
        "{}",
        shown.stdout
    );
    assert!(!shown.stdout.contains('\u{202e}'), "{}", shown.stdout);
    let status = json_of(private.efs_fuse(0, &["status", "--json"]));
    let row = &status["mounts"][0];
    assert_eq!(row["mountpoint"], json!(place.to_str()), "{row}");
    assert_eq!(row["device"], json!(server.device("/hers")), "{row}");
    assert_eq!(row["user"], ALICE, "{row}");
    assert_ne!(row["pid"], 1, "{row}");
    assert!(row.get("fs-prod:/ on /other\n").is_none(), "{row}");
    let refused = private.efs_fuse(0, &["stats".as_ref(), place.as_os_str()]);
    assert!(plain(&refused.stdout) && plain(&refused.stderr));
}

#[test]
fn root_says_nothing_to_a_socket_that_is_not_the_users_own() {
    let server = server();
    let mut private = Private::new();
    let place = hers(&mut private, &server);
    let service = private.inside("/run/service.sock");
    let listener = UnixListener::bind(&service).expect("bind");
    listener.set_nonblocking(true).expect("nonblocking");
    let socket = private.file(ALICE, "sock");
    identity(ALICE).run(|| {
        fs::remove_file(&socket).expect("her own socket");
        symlink("/run/service.sock", &socket).expect("symlink");
    });
    private.efs_fuse(0, &["status".as_ref(), place.as_os_str()]);
    let asked: Option<UnixStream> = listener.accept().ok().map(|(stream, _)| stream);
    assert!(asked.is_none(), "root spoke to a service of its own");
}

#[test]
fn unmounting_a_users_mount_signals_no_process_of_anybody_else() {
    let server = server();
    let mut private = Private::new();
    let place = hers(&mut private, &server);
    let mut service = sleeping(&private, 0);
    let file = private.file(ALICE, "json");
    let mut forged = entry(&file);
    forged["pid"] = json!(service.pid());
    forged["start_time"] = json!(started(service.pid()));
    let exe = fs::read_link(format!("/proc/{}/exe", service.pid())).expect("exe");
    forged["exe"] = json!(exe);
    // Of another pid namespace, so that nobody looks whose it is.
    forged["pid_namespace"] = json!(1);
    forged["since"] = json!(u32::MAX);
    let _listener = impostor(&private);
    forge(&file, &forged);
    let arguments = ["umount".as_ref(), "--force".as_ref(), place.as_os_str()];
    private.efs_fuse(0, &arguments).expect_success("umount");
    assert_eq!(service.ended(), None, "root killed a process of its own");
}

#[test]
fn a_name_with_a_line_break_makes_no_line_of_its_own_in_status() {
    let server = server();
    let mut private = Private::new();
    let place = private.place("m\nfs-prod: on \u{1b}[31m", 0);
    private.mount(0, &server.device("/hers"), &place, &port(&server));
    let shown = private.efs_fuse(0, &["status"]).expect_success("status");
    assert!(
        !shown.stdout.lines().any(|line| line.starts_with("fs-prod")),
        "{}",
        shown.stdout
    );
    assert!(!shown.stdout.contains('\u{1b}'), "{:?}", shown.stdout);
    let mut command = Command::new("umount");
    command.arg(&place);
    private.run(command).expect_success("umount");
}
