//! `/etc/efs-fuse/efs-fuse.conf`, in a mount namespace of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::private::{ALICE, Private};

/// A machine with a server, and with an `/etc` that may be changed.
struct Machine {
    server: Server,
    private: Private,
    _layers: tempfile::TempDir,
    conf: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let private = Private::new();
        let layers = tempfile::tempdir().expect("temporary directory");
        let layer = |name: &str| {
            let dir = layers.path().join(name);
            fs::create_dir(&dir).expect("mkdir");
            dir.display().to_string()
        };
        let options = format!(
            "lowerdir=/etc,upperdir={},workdir={}",
            layer("upper"),
            layer("work")
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options, "/etc"]);
        private.run(mount).expect_success("an overlay of /etc");
        let dir = private.inside("/etc/efs-fuse");
        fs::create_dir_all(&dir).expect("mkdir");
        Self {
            server: Server::start(ServerOptions::default()),
            private,
            _layers: layers,
            conf: dir.join("efs-fuse.conf"),
        }
    }

    fn write(&self, text: &str, mode: u32) {
        fs::write(&self.conf, text).expect("write");
        fs::set_permissions(&self.conf, fs::Permissions::from_mode(mode)).expect("mode");
    }
}

#[test]
fn its_options_come_before_those_of_a_mount_and_the_later_counts() {
    let mut machine = Machine::new();
    let port = machine.server.address().port();
    machine.write(&format!("# all\nport={port},nosuid\n\nro\n"), 0o644);
    let (one, other) = (machine.private.place("m", 0), machine.private.place("n", 0));
    machine.private.mount(0, "127.0.0.1:/", &one, "nodev");
    machine.private.mount(0, "127.0.0.1:/", &other, "rw,suid");
    let status = machine.private.efs_fuse(0, &["status", "--json"]);
    let status = status.expect_success("status").stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let options = |place: &PathBuf| {
        let mounts = status["mounts"].as_array().expect("mounts");
        let of = mounts
            .iter()
            .find(|of| of["mountpoint"].as_str() == place.to_str());
        of.expect("the mount")["options"].to_string()
    };
    let port = format!("port={port}");
    assert_eq!(
        options(&one),
        format!("[\"{port}\",\"nosuid\",\"ro\",\"nodev\"]")
    );
    assert_eq!(
        options(&other),
        format!("[\"{port}\",\"nosuid\",\"ro\",\"rw\",\"suid\"]")
    );
    let mut touch = Command::new("touch");
    touch.arg(one.join("x"));
    let refused = machine.private.run(touch);
    assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
    let mut touch = Command::new("touch");
    touch.arg(other.join("x"));
    machine.private.run(touch).expect_success("touch");
    // What a mount has, a remount does not have again.
    let mut remount = Command::new(crate::fixtures::mount::EFS_FUSE);
    remount
        .arg("mount")
        .arg("127.0.0.1:/")
        .arg(&one)
        .args(["-o", "remount,rw"]);
    machine.private.run(remount).expect_success("remount");
    let doctor = machine.private.efs_fuse(0, &["doctor", "127.0.0.1:/"]);
    let doctor = doctor.expect_success("doctor").stdout;
    let shown = format!("{port},nosuid,ro (of /etc/efs-fuse/efs-fuse.conf)");
    assert!(doctor.contains(&shown), "{doctor}");
    for place in [one, other] {
        let arguments = ["umount".as_ref(), place.as_os_str()];
        machine
            .private
            .efs_fuse(0, &arguments)
            .expect_success("umount");
    }
}

#[test]
fn a_wrong_line_or_a_file_that_others_can_write_refuses_every_mount_and_leaves_nothing() {
    let mut machine = Machine::new();
    let port = format!("port={}", machine.server.address().port());
    let place = machine.private.place("m", 0);
    let her = machine.private.place("hers", ALICE);
    let refused = |machine: &Machine, uid, at: &PathBuf| {
        let arguments = [
            "mount",
            "127.0.0.1:/",
            at.to_str().expect("UTF-8"),
            "-o",
            &port,
        ];
        let refused = machine.private.efs_fuse(uid, &arguments);
        assert_eq!(refused.code(), 1, "{}", refused.stderr);
        let mut lines = refused.stderr.lines();
        let line = lines.next().unwrap_or_default().to_owned();
        assert_eq!(lines.next(), None, "{}", refused.stderr);
        line
    };
    let start = "efs-fuse: reading /etc/efs-fuse/efs-fuse.conf failed: ";
    for (text, mode, line) in [
        (
            "ro\n\nnosuit\n",
            0o644,
            "line 3: unknown option \"nosuit\". Try: nosuid",
        ),
        ("port=many\n", 0o644, "line 1: port=\"many\" is malformed: "),
        (
            "ro\n",
            0o666,
            "others than root can write it (owner 0, mode 666). Try: chown root ",
        ),
    ] {
        machine.write(text, mode);
        for (uid, at) in [(0, &place), (ALICE, &her)] {
            let told = refused(&machine, uid, at);
            assert!(told.starts_with(&format!("{start}{line}")), "{told}");
        }
    }
    machine.write("ro\n", 0o600);
    let told = refused(&machine, ALICE, &her);
    assert!(
        told.starts_with(&format!("{start}permission denied. Try: chmod 644")),
        "{told}"
    );
    let status = machine.private.efs_fuse(0, &["status"]);
    assert_eq!(
        status.expect_success("status").stdout,
        "nothing is mounted\n"
    );
}

#[test]
fn status_says_which_options_come_from_the_file_and_which_from_a_profile() {
    let mut machine = Machine::new();
    let port = format!("port={}", machine.server.address().port());
    machine.write(&format!("{port}\nnosuid,profile=home\n"), 0o644);
    let place = machine.private.place("m", 0);
    machine
        .private
        .mount(0, "127.0.0.1:/", &place, "nodev,acregmax=7");
    let at = place.to_str().expect("UTF-8");
    let told = |machine: &Machine| {
        let words = machine.private.efs_fuse(0, &["status", at]);
        let words = words.expect_success("status").stdout;
        let json = machine.private.efs_fuse(0, &["status", at, "--json"]);
        let json = json.expect_success("status --json").stdout;
        let json: Value = serde_json::from_str(&json).expect("JSON");
        (words, json["mounts"][0]["option_origins"].clone())
    };
    let (words, origins) = told(&machine);
    let home = "hard,lock,cto,lookupcache=all,acregmax=30,acdirmin=10,acdirmax=30";
    let file = format!("{port},nosuid,profile=home");
    let lines: Vec<_> = words.lines().collect();
    let options = format!("  options    {file},{home},nodev,acregmax=7");
    let at = lines.iter().position(|line| **line == options);
    let at = at.unwrap_or_else(|| panic!("{options} is not in\n{words}"));
    assert_eq!(
        lines[at + 1..at + 3],
        [
            format!("             from /etc/efs-fuse/efs-fuse.conf: {file}"),
            format!("             from profile=home: {home}"),
        ],
        "{words}"
    );
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        origins,
        serde_json::json!([
            {"from": "/etc/efs-fuse/efs-fuse.conf", "options": list(&file)},
            {"from": "profile=home", "options": list(home)},
        ])
    );
    let arguments = ["umount".as_ref(), place.as_os_str()];
    let ended = machine.private.efs_fuse(0, &arguments);
    ended.expect_success("umount");
}
