//! `efs-fuse upgrade`: a living mount goes over to another daemon, and who uses it sees a
//! pause.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{EFS_FUSE, Mount, MountRequest, Mountpoint, served_by};
use crate::fixtures::private::Private;
use crate::fixtures::process::{Background, Finished, eventually, run};
use crate::fixtures::sys;

const SOON: Duration = Duration::from_secs(60);

fn server() -> Server {
    Server::start(ServerOptions::default())
}

/// A mount that can be handed over.
fn held(server: &Server) -> Mount {
    MountRequest::of(server).option("takeover").mount()
}

fn upgrade(mount: &Mount) -> Finished {
    let mut command = Command::new(EFS_FUSE);
    run(command.arg("upgrade").arg(mount.path()), SOON)
}

fn takeover(mount: &Mount) -> Value {
    mount.status()["takeover"].clone()
}

fn open(path: &Path) -> File {
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    options.expect("open")
}

#[test]
fn what_is_open_locked_hidden_and_listed_goes_on_over_an_upgrade() {
    let server = server();
    let (mount, other) = (held(&server), Mount::new(&server));
    let daemon = mount.pid();
    let mut file = open(&mount.join("file"));
    file.write_all(b"before ").expect("write");
    let locked = open(&mount.join("locked"));
    sys::record_lock(&locked, libc::F_WRLCK).expect("a lock");
    let mut hidden = open(&mount.join("hidden"));
    hidden.write_all(b"no name").expect("write");
    fs::remove_file(mount.join("hidden")).expect("unlink");
    fs::create_dir(mount.join("dir")).expect("mkdir");
    let names: Vec<_> = (0..300).map(|n| format!("{n:03}")).collect();
    for name in &names {
        File::create(mount.join("dir").join(name)).expect("create");
    }
    let mut listing = sys::DirStream::open(&mount.join("dir")).expect("opendir");
    let mut listed: Vec<_> = (0..50).map(|_| listing.next().expect("readdir")).collect();

    let done = upgrade(&mount).expect_success("upgrade");

    assert!(done.stdout.contains("has taken over"), "{}", done.stdout);
    assert_ne!(mount.pid(), daemon);
    let status = takeover(&mount);
    assert_eq!(status["generation"], 1, "{status}");
    assert_eq!(status["failed"], Value::Null, "{status}");
    file.write_all(b"after").expect("write");
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "before after");
    file.sync_all().expect("fsync");
    assert_eq!(fs::read(other.join("file")).expect("read"), b"before after");
    let theirs = open(&other.join("locked"));
    assert!(theirs.try_lock().is_err(), "the lock was lost");
    sys::record_lock(&locked, libc::F_UNLCK).expect("unlock");
    theirs.try_lock().expect("a lock");
    hidden.seek(SeekFrom::Start(0)).expect("seek");
    text.clear();
    hidden.read_to_string(&mut text).expect("read");
    assert_eq!(text, "no name");
    drop(hidden);
    while let Some(name) = listing.next().expect("readdir") {
        listed.push(Some(name));
    }
    let mut listed: Vec<_> = listed
        .into_iter()
        .flatten()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    listed.sort();
    assert_eq!(listed, names);
    drop((listing, file, locked));
    let left = |name: &str| name.starts_with(".nfs") || name.starts_with(".fuse");
    let hidden = eventually(SOON, || {
        let names = fs::read_dir(server.export()).expect("the export");
        let mut names = names.flatten().map(|name| name.file_name());
        (!names.any(|name| left(&name.to_string_lossy()))).then_some(())
    });
    assert!(hidden.is_some(), "the hidden name stays");
    mount.unmount();
}

#[test]
fn a_call_that_waits_for_a_lock_gets_it_after_an_upgrade() {
    let server = server();
    let (mount, other) = (held(&server), Mount::new(&server));
    let theirs = open(&other.join("locked"));
    sys::record_lock(&theirs, libc::F_WRLCK).expect("a lock");
    let ours = open(&mount.join("locked"));
    let waiting = thread::spawn(move || sys::record_lock(&ours, libc::F_WRLCK));
    thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    upgrade(&mount).expect_success("upgrade");
    thread::sleep(Duration::from_millis(300));
    assert!(
        !waiting.is_finished(),
        "it has a lock that another host has"
    );
    sys::record_lock(&theirs, libc::F_UNLCK).expect("unlock");
    waiting.join().expect("no panic").expect("the lock");
    mount.unmount();
}

#[test]
fn a_volume_bound_into_a_container_goes_on_over_an_upgrade() {
    let server = server();
    let mount = held(&server);
    let inside = mount.join("inside");
    fs::create_dir(&inside).expect("mkdir");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(
            r#"mount --bind "$1" /mnt && umount --lazy "$0" && cd /mnt && echo ready &&
               while read -r word; do echo "$word" >> words && cat words | wc -l; done"#,
        )
        .args([mount.path(), &inside])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut container = command.spawn().expect("a container");
    let mut said = BufReader::new(container.stdout.take().expect("a pipe")).lines();
    let mut stdin = container.stdin.take().expect("a pipe");
    let mut hear = || said.next().expect("it lives").expect("text");
    assert_eq!(hear(), "ready");
    for n in 1..=3 {
        writeln!(stdin, "word").expect("it reads");
        assert_eq!(hear().trim(), n.to_string());
        upgrade(&mount).expect_success("upgrade");
    }
    drop(stdin);
    assert!(container.wait().expect("it ends").success());
    assert_eq!(takeover(&mount)["generation"], 3);
    mount.unmount();
}

/// Something that uses the mount again and again until it is told to stop; how often it has.
fn load(
    stop: &Arc<AtomicBool>,
    work: impl Fn(u64) -> std::io::Result<()> + Send + 'static,
) -> JoinHandle<Result<u64, String>> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut turns = 0;
        while !stop.load(Ordering::Relaxed) {
            work(turns).map_err(|why| format!("turn {turns}: {why}"))?;
            turns += 1;
        }
        Ok(turns)
    })
}

fn wrong(what: &str) -> std::io::Error {
    std::io::Error::other(what.to_owned())
}

#[test]
fn twenty_upgrades_under_load_are_no_error_to_anybody() {
    let server = server();
    let (mount, other) = (held(&server), Mount::new(&server));
    let stop = Arc::new(AtomicBool::new(false));
    let path = |name: &str| mount.join(name);
    let (at, counter, kept) = (path("made"), path("counter"), path("kept"));
    fs::write(&counter, format!("{:020}", 0)).expect("write");
    fs::write(&kept, vec![7; 1 << 20]).expect("write");
    let appended = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path("log"));
    let appended = appended.expect("open");
    let their_counter = other.join("counter");
    let count = |path: &Path| {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        sys::record_lock(&file, libc::F_WRLCK)?;
        let mut text = [0; 20];
        file.read_exact_at(&mut text, 0)?;
        let number: u64 = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| wrong("no number"))?;
        file.write_all_at(format!("{:020}", number + 1).as_bytes(), 0)?;
        sys::record_lock(&file, libc::F_UNLCK)
    };
    let works: Vec<JoinHandle<Result<u64, String>>> = vec![
        load(&stop, move |turn| {
            (&appended).write_all(format!("{turn:09}\n").as_bytes())?;
            match turn % 16 {
                0 => appended.sync_data(),
                _ => Ok(()),
            }
        }),
        load(&stop, move |turn| {
            let (from, to) = (at.with_extension("a"), at.with_extension("b"));
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&from)?;
            file.write_all(&turn.to_le_bytes())?;
            drop(file);
            fs::rename(&from, &to)?;
            match fs::read(&to)? == turn.to_le_bytes() {
                true => fs::remove_file(&to),
                false => Err(wrong("another file")),
            }
        }),
        load(&stop, move |turn| {
            let mut page = [0; 4096];
            let file = File::open(&kept)?;
            file.read_exact_at(&mut page, turn % 256 * 4096)?;
            fs::metadata(&kept)?;
            match page == [7; 4096] {
                true => Ok(()),
                false => Err(wrong("other bytes")),
            }
        }),
        load(&stop, move |_| count(&counter)),
        load(&stop, move |_| count(&their_counter)),
    ];
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(150));
        upgrade(&mount).expect_success("upgrade");
    }
    stop.store(true, Ordering::Relaxed);
    let turns: Vec<u64> = works
        .into_iter()
        .map(|work| work.join().expect("no panic").expect("no error"))
        .collect();
    assert!(turns.iter().all(|turns| *turns > 20), "{turns:?}");
    let log = fs::read_to_string(other.join("log")).expect("read");
    let expected = (0..turns[0]).map(|turn| format!("{turn:09}\n"));
    assert!(
        log == expected.collect::<String>(),
        "appended bytes are lost"
    );
    let count = fs::read_to_string(other.join("counter")).expect("read");
    assert_eq!(
        count.parse().ok(),
        Some(turns[3] + turns[4]),
        "a lock was lost"
    );
    assert_eq!(takeover(&mount)["generation"], 20);
    mount.unmount();
}

/// Asks the daemon of `mount` at its control socket to have `program` take over.
fn ask_for(mount: &Mount, program: &Path) {
    let entries = fs::read_dir("/run/efs-fuse").expect("the registry");
    let entry = entries.flatten().map(|entry| entry.path()).find(|path| {
        let text = fs::read(path).unwrap_or_default();
        let entry: Value = serde_json::from_slice(&text).unwrap_or_default();
        path.extension().is_some_and(|end| end == "json")
            && entry["mountpoint"] == mount.path().to_string_lossy().as_ref()
    });
    let socket = entry.expect("an entry").with_extension("sock");
    let mut socket = UnixStream::connect(socket).expect("the control socket");
    let request = json!({"cmd": "upgrade", "program": program, "layouts": [1]});
    writeln!(socket, "{request}").expect("it hears");
    let mut answer = String::new();
    let read = BufReader::new(socket).read_line(&mut answer);
    assert_eq!(read.unwrap_or(0), 0, "{answer}");
}

#[test]
fn a_program_that_crashes_at_its_start_gives_the_mount_back_and_status_says_so() {
    let server = server();
    let mount = held(&server);
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut file = open(&mount.join("file"));
    file.write_all(b"before ").expect("write");
    for (n, script) in [(1, "kill -SEGV $$"), (2, "exit 1"), (3, "exit 0")] {
        let program = dir.path().join("efs-fuse");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        ask_for(&mount, &program);
        let status = eventually(SOON, || {
            let status = takeover(&mount);
            (status["generation"] == n).then_some(status)
        });
        let status = status.expect("a daemon");
        assert_eq!(status["failed"], "it ended at its start", "{status}");
        file.write_all(b"after ").expect("write");
    }
    assert_eq!(
        fs::read_to_string(mount.join("file")).expect("read"),
        "before after after after "
    );
    // And the next one comes up.
    upgrade(&mount).expect_success("upgrade");
    assert_eq!(takeover(&mount)["failed"], Value::Null);
    drop(file);
    mount.unmount();
}

#[test]
fn a_mount_whose_server_is_silent_stays_with_its_daemon() {
    let server = server();
    let mount = held(&server);
    let daemon = mount.pid();
    let path = mount.join("file");
    fs::write(&path, "text").expect("write");
    let silent = server.stopped();
    let mut command = Command::new("stat");
    command.arg(mount.join("another"));
    let mut waiting = Background::spawn(command).expect("stat");
    thread::sleep(Duration::from_millis(200));
    let done = upgrade(&mount);
    assert_eq!(done.code(), 32, "{}", done.stderr);
    assert!(
        done.stderr.contains("waiting for the server"),
        "{}",
        done.stderr
    );
    assert_eq!(mount.pid(), daemon);
    assert!(waiting.ended().is_none());
    drop(silent);
    assert!(waiting.wait(SOON).is_some());
    assert_eq!(fs::read_to_string(&path).expect("read"), "text");
    upgrade(&mount).expect_success("upgrade");
    mount.unmount();
}

#[test]
fn a_daemon_that_is_killed_takes_its_keeper_along_and_the_place_can_be_mounted_again() {
    let server = server();
    let planned = || MountRequest::of(&server).option("takeover=upgrade");
    let mount = planned().mount();
    fs::write(mount.join("file"), "closed").expect("write");
    // SAFETY: the pid was found a moment ago by its program and this test's directory.
    unsafe { libc::kill(mount.pid(), libc::SIGKILL) };
    let ended = eventually(SOON, || mount.at().daemons().is_empty().then_some(()));
    assert!(ended.is_some(), "the keeper lives");
    // The kernel may be about to end the connection still.
    let dead = [libc::ENOTCONN, libc::ECONNABORTED];
    let errno = sys::errno(fs::read(mount.join("file")));
    assert!(dead.contains(&errno), "{errno}");
    let mut again = planned().command(mount.path());
    run(&mut again, SOON).expect_success("mount");
    assert_eq!(fs::read(mount.join("file")).expect("read"), b"closed");
    mount.unmount();
}

#[test]
fn without_a_keeper_the_daemon_goes_on_and_cannot_be_followed() {
    let server = server();
    let mount = held(&server);
    fs::write(mount.join("file"), "text").expect("write");
    // SAFETY: the pid was found a moment ago by its program and this test's directory.
    unsafe { libc::kill(mount.keeper(), libc::SIGKILL) };
    assert_eq!(
        fs::read_to_string(mount.join("file")).expect("read"),
        "text"
    );
    let done = upgrade(&mount);
    assert_eq!(done.code(), 32);
    assert!(done.stderr.contains("no keeper"), "{}", done.stderr);
    fs::write(mount.join("file"), "more").expect("write");
    mount.unmount();
}

/// Before Linux 6.9 nothing can take over. That is said when it is asked for and to whoever asks,
/// and the death of a daemon is ENOTCONN: nobody waits for a daemon that cannot come.
#[test]
fn on_a_kernel_that_sends_nothing_again_a_mount_says_that_nobody_can_take_over() {
    let server = server();
    let old = |option| {
        let request = MountRequest::of(&server).option(option);
        request.env("EFS_FUSE_TEST_NO_RESEND", "1")
    };
    for option in ["takeover", "takeover=crash"] {
        let place = Mountpoint::new();
        let done = run(&mut old(option).command(place.path()), SOON);
        let done = done.expect_success("mount");
        assert!(
            done.stderr
                .contains("warning: takeover: no other daemon can take over: "),
            "{}",
            done.stderr
        );
        assert!(done.stderr.contains("Linux 6.9"), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    }
    let mount = old("takeover=crash").mount();
    let said = takeover(&mount);
    assert!(said["why_not"].to_string().contains("Linux 6.9"), "{said}");
    assert_eq!(said["survives"], false);
    let done = upgrade(&mount);
    assert_eq!(done.code(), 32);
    assert!(done.stderr.contains("Linux 6.9"), "{}", done.stderr);
    fs::write(mount.join("file"), "goes on").expect("write");

    let daemon = served_by(mount.keeper()).expect("a daemon");
    // SAFETY: it is the child of this mount's keeper, which waits for its end.
    unsafe { libc::kill(daemon, libc::SIGKILL) };
    let ended = eventually(SOON, || mount.at().daemons().is_empty().then_some(()));
    assert!(ended.is_some(), "the keeper lives");
    // The kernel may be about to end the connection still.
    let dead = [libc::ENOTCONN, libc::ECONNABORTED];
    let errno = sys::errno(fs::read(mount.join("file")));
    assert!(dead.contains(&errno), "{errno}");
}

#[test]
fn what_cannot_be_upgraded_is_refused_in_one_line_with_a_remedy() {
    let server = server();
    let mount = Mount::new(&server);
    let at = |path: &Path| {
        let mut command = Command::new(EFS_FUSE);
        run(command.arg("upgrade").arg(path), SOON)
    };
    let dir = tempfile::tempdir().expect("temporary directory");
    for (path, status, because) in [
        (mount.path(), 32, "no keeper holds the mount"),
        (dir.path(), 1, "not a mount point"),
        (Path::new("/nonexistent/x"), 1, "does not exist"),
    ] {
        let done = at(path);
        assert_eq!(done.code(), status, "{}", done.stderr);
        assert!(done.stderr.contains(because), "{}", done.stderr);
        assert!(done.stderr.contains("Try: "), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    }
    let done = run(Command::new(EFS_FUSE).arg("upgrade"), SOON);
    assert_eq!(done.code(), 1, "{}", done.stderr);
    mount.unmount();
}

/// What dpkg runs behind the new files of a package that was installed before.
#[test]
fn a_package_that_is_upgraded_takes_over_what_it_can_and_names_the_rest() {
    let server = server();
    let mut private = Private::new();
    let (held, other) = (private.place("held", 0), private.place("other", 0));
    let port = format!("port={}", server.port());
    private.mount(0, &server.device("/"), &held, &format!("{port},takeover"));
    private.mount(0, &server.device("/"), &other, &port);
    let program = Path::new(EFS_FUSE).parent().expect("a directory");
    let configured = |arguments: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/deb/postinst");
        let mut command = Command::new("sh");
        command.arg(script).args(arguments);
        let path = std::env::var("PATH").expect("a path");
        command.env("PATH", format!("{}:{path}", program.display()));
        private.run(command).expect_success("postinst")
    };
    // A first installation has nothing to take over.
    let done = configured(&["configure", ""]);
    assert_eq!((&*done.stdout, &*done.stderr), ("", ""));
    let done = configured(&["configure", "0.0.1"]);
    let line = format!("{}: efs-fuse ", held.display());
    assert!(done.stdout.starts_with(&line), "{done:?}");
    assert!(done.stdout.contains("has taken over"), "{done:?}");
    let line = format!("efs-fuse: upgrading {}", other.display());
    assert!(done.stderr.starts_with(&line), "{done:?}");
    assert!(done.stderr.contains("served as before"), "{done:?}");
    for place in [held, other] {
        private.efs_fuse(0, &["umount".as_ref(), place.as_os_str()]);
    }
}
