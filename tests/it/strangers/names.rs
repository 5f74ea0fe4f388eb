//! A name is anything but "/" and NUL: a line break in it makes no line, and no terminal
//! does what it says.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fixtures::World;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE, MountRequest};
use crate::fixtures::private::{ALICE, Private, as_user};
use crate::fixtures::process::run;
use crate::fixtures::sys;

/// A line break, an order to a terminal, no UTF-8, a turn of direction, blanks, quotes.
const NAMES: [&[u8]; 6] = [
    b"a\nefs-fuse: forged",
    b"\x1b]0;title\x07\x1b[2J",
    b"\xff\xfe",
    b"tab\there",
    b"it's $HOME",
    b"plain",
];

fn grow(dir: &Path) {
    fs::create_dir_all(dir).expect("mkdir");
    for name in NAMES {
        let path = dir.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir(&path).expect("mkdir");
        fs::write(path.join("file"), "x").expect("write");
    }
}

/// What a program writes to a terminal.
fn on_a_terminal(command: &mut Command) -> String {
    let (mut ours, theirs) = sys::openpty().expect("openpty");
    command
        .stdin(Stdio::null())
        .stdout(theirs)
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("spawn");
    // The other end is then open in the child alone, whose end is that of the file.
    command.stdout(Stdio::null());
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    // EIO when nobody has the other end any more.
    while let Ok(count @ 1..) = ours.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
    }
    child.wait().expect("wait");
    String::from_utf8(shown)
        .expect("UTF-8")
        .replace("\r\n", "\n")
}

#[test]
fn a_terminal_is_shown_names_as_ls_shows_them() {
    let world = World::new();
    grow(&world.behind("tree"));
    let tree = world.path("tree");
    let mut ls = Command::new("ls");
    ls.args(["-d", "-1", "--quoting-style=shell-escape"])
        .env("LC_ALL", "C.UTF-8");
    for name in NAMES {
        ls.arg(tree.join(std::ffi::OsStr::from_bytes(name)));
    }
    let ls = run(&mut ls, COMMAND_LIMIT).expect_success("ls");
    let mut expected: Vec<_> = ls.stdout.lines().collect();
    expected.sort_unstable();
    let mut du = Command::new(EFS_FUSE);
    let shown = on_a_terminal(du.args(["du", "-d", "1", "--bytes"]).arg(&tree));
    let mut names: Vec<_> = shown
        .lines()
        .filter_map(|line| Some(line.split_once('\t')?.1))
        .filter(|name| *name != tree.to_str().expect("UTF-8"))
        .collect();
    names.sort_unstable();
    assert_eq!(names, expected);
    let mut rm = Command::new(EFS_FUSE);
    let shown = on_a_terminal(rm.args(["rm", "-r"]).arg(&tree));
    assert_eq!(shown.lines().count(), 2 * NAMES.len() + 1, "{shown:?}");
    let harmless = |c: char| c == '\n' || !c.is_control();
    assert!(shown.chars().all(harmless), "{shown:?}");
}

#[test]
fn a_script_gets_names_as_they_are_and_can_tell_them_apart() {
    let world = World::new();
    grow(&world.behind("tree"));
    let tree = world.path("tree");
    let output = |arguments: &[&str]| {
        let mut command = Command::new(EFS_FUSE);
        let output = command.args(arguments).arg(&tree).output().expect("run");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output.stdout
    };
    let mut listed: Vec<_> = output(&["rm", "-r", "-0"])
        .split(|&byte| byte == 0)
        .map(<[u8]>::to_vec)
        .collect();
    assert_eq!(listed.pop().as_deref(), Some(&b""[..]), "each is ended");
    let top = tree.as_os_str().as_bytes();
    let mut expected = vec![[top, b"/"].concat()];
    for name in NAMES {
        expected.push([top, b"/", name, b"/"].concat());
        expected.push([top, b"/", name, b"/file"].concat());
    }
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(
        output(&["du", "-0"])
            .iter()
            .filter(|&&byte| byte == 0)
            .count(),
        1
    );
    let plain = output(&["rm", "-r"]);
    assert!(
        plain.windows(5).any(|part| part == b"a\nefs"),
        "raw elsewhere"
    );
}

#[test]
fn an_error_about_a_name_is_one_line_whatever_the_name() {
    let server = Server::start(ServerOptions::default());
    let tree = server.export().join("tree");
    grow(&tree);
    // All of it Alice's but what is in the directories.
    chown(server.export(), Some(ALICE), Some(ALICE)).expect("chown");
    chown(&tree, Some(ALICE), Some(ALICE)).expect("chown");
    let mut command = as_user(ALICE, EFS_FUSE);
    command
        .args(["rm", "-r", "--yes"])
        .arg(server.device("/tree"));
    let done = run(
        command.arg("-o").arg(format!("port={}", server.port())),
        COMMAND_LIMIT,
    );
    assert_eq!(done.code(), 32, "{}", done.stderr);
    for line in done.stderr.lines() {
        assert!(line.starts_with("efs-fuse: "), "{line:?}");
        assert!(!line.starts_with("efs-fuse: forged"), "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    assert!(
        done.stderr.contains("'tree/a'$'\\n''efs-fuse: forged"),
        "{}",
        done.stderr
    );
    // Also of a name on the command line.
    let mut command = Command::new(EFS_FUSE);
    let done = run(command.args(["du", "/no\nefs-fuse: forged"]), COMMAND_LIMIT);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
}

#[test]
fn no_name_makes_a_line_of_the_log() {
    let server = Server::start(ServerOptions::default());
    let mut private = Private::new();
    let place = private.place("m\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[2J", 0);
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("log");
    let options = format!("port={},debug,log={}", server.port(), log.display());
    private.mount(0, &server.device("/"), &place, &options);
    fs::create_dir(server.export().join("a\nb")).expect("mkdir");
    let arguments = ["umount".as_ref(), place.as_os_str()];
    private.efs_fuse(0, &arguments).expect_success("umount");
    let text = fs::read_to_string(&log).expect("a log");
    assert!(text.contains("is mounted on"), "{text}");
    for line in text.lines() {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(
            !line.contains("Z ERROR forged") || line.contains("mounted"),
            "{line:?}"
        );
        assert!(!line.starts_with("2026-01-01"), "{line:?}");
    }
}

/// journald shows what it gets, and passes it on to others.
#[test]
fn no_name_makes_a_line_of_the_journal() {
    let server = Server::start(ServerOptions::default());
    let mut private = Private::new();
    fs::create_dir_all(private.inside("/run/systemd/journal")).expect("mkdir");
    let socket = private.inside("/run/systemd/journal/socket");
    let journal = std::os::unix::net::UnixDatagram::bind(&socket).expect("bind");
    // Taken at once: the socket holds few, and who writes waits.
    let (entries, collected) = std::sync::mpsc::channel::<Vec<u8>>();
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(count) = journal.recv(&mut buffer) {
            if &buffer[..count] == b"end" || entries.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let place = private.place("m", 0);
    // fuser says what it does to the log crate, as it is; so does the server's host name.
    let evil = private.place("m\nMESSAGE=forged\u{1b}[2J", 0);
    for place in [&place, &evil] {
        let options = format!("port={},debug", server.port());
        private.mount(0, &server.device("/"), place, &options);
        let arguments = ["umount".as_ref(), place.as_os_str()];
        private.efs_fuse(0, &arguments).expect_success("umount");
    }
    let end = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    end.send_to(b"end", &socket).expect("send");
    reader.join().expect("no panic");
    let (mut mounts, mut entries) = (0, 0);
    for entry in collected {
        let text = String::from_utf8_lossy(&entry);
        entries += 1;
        mounts += usize::from(text.contains("is mounted on"));
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(!text.contains("\nMESSAGE=forged"), "{text:?}");
    }
    assert!(
        mounts == 2 && entries > 3,
        "{mounts} mounts, {entries} entries"
    );
}

/// The last check of the mount point and mount(2) are apart by as long as the server takes.
#[test]
fn a_mount_point_that_has_become_a_link_is_not_mounted_through() {
    let server = Server::start(ServerOptions::default());
    let mut proxy = crate::fixtures::proxy::Proxy::to(server.address());
    proxy.refuse();
    let mut private = Private::new();
    // Alice's directory in a directory of hers, where root mounts.
    let home = private.place("home", ALICE);
    let (place, target) = (home.join("m"), private.place("etc", 0));
    fs::create_dir(&place).expect("mkdir");
    let request = MountRequest::new(server.device("/"), proxy.port()).option("wait=60");
    let mut command = request.command(&place);
    command.stderr(Stdio::null()).stdout(Stdio::null());
    let mut mounting = private.spawn(command);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(mounting.ended().is_none(), "it waits for its server");
    crate::fixtures::private::identity(ALICE).run(|| {
        fs::remove_dir(&place).expect("her own");
        std::os::unix::fs::symlink(&target, &place).expect("symlink");
    });
    proxy.accept();
    let status = mounting.wait(COMMAND_LIMIT).expect("it ends");
    let table = private.run(Command::new("mount")).stdout;
    let on = format!(" on {} ", target.display());
    assert!(
        !table.contains(&on),
        "mounted where Alice's link leads: {table}"
    );
    assert_eq!(status.code(), Some(32));
}
