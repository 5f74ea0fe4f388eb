//! A task or a thread of the daemon dies: nobody hangs, and it is seen. The daemon is
//! told by its environment where to panic, which only a build with debug assertions
//! heeds, as the suite's is.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{
    COMMAND_LIMIT, EFS_FUSE, Mount, MountRequest, Mountpoint, mounted_at,
};
use crate::fixtures::process::{Background, eventually, run};
use crate::fixtures::proxy::Proxy;
use crate::fixtures::{needs, noise};

/// Where to panic.
const PANIC: &str = "EFS_FUSE_TEST_PANIC";
/// Longer than anything here may take; less than a mount of a test may live.
const LIMIT: Duration = Duration::from_secs(30);

/// Fails the test if `work` takes too long: what hangs is ended with the mount.
#[track_caller]
fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    match result.recv_timeout(LIMIT) {
        Ok(result) => result,
        Err(_) => panic!("{what} hangs"),
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("open")
}

/// A mount in which a task dies, and its log.
struct Dying {
    mount: Mount,
    log: tempfile::NamedTempFile,
}

impl Dying {
    fn new(server: &Server, dies: &str, options: &[&str]) -> Self {
        Self::by(MountRequest::of(server), dies, options)
    }

    fn by(request: MountRequest, dies: &str, options: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().expect("temporary file");
        let mut request = request
            .env(PANIC, dies)
            .option(&format!("log={}", log.path().display()));
        for option in options {
            request = request.option(option);
        }
        let mount = request.time_limit(LIMIT * 2).mount();
        Self { mount, log }
    }

    /// How often a task has died, by `status`.
    fn deaths(&self, task: &str) -> u64 {
        let status = self.mount.status();
        let tasks = status["tasks"].as_array().expect("tasks of status");
        let of = tasks.iter().find(|of| of["name"] == task);
        of.map_or(0, |of| of["died"].as_u64().expect("a number"))
    }

    #[track_caller]
    fn assert_seen(&self, task: &str) {
        let died = eventually(LIMIT, || (self.deaths(task) > 0).then_some(()));
        assert!(died.is_some(), "status does not show that {task} died");
        assert_logged(self.log.path(), task);
        let shown = run(
            Command::new(EFS_FUSE).arg("status").arg(self.mount.path()),
            COMMAND_LIMIT,
        );
        let shown = shown.expect_success("status").stdout;
        assert!(shown.contains(&format!("{task} died ")), "{shown}");
    }
}

/// One line names the task and says what the panic said.
#[track_caller]
fn assert_logged(log: &Path, task: &str) {
    let log = fs::read_to_string(log).expect("log");
    let says = format!("in the task {task} (a test wants {task} to panic)");
    let line = log.lines().find(|line| line.contains(&says));
    assert!(line.is_some_and(|line| line.contains("ERROR")), "{log}");
    assert!(!log.contains("stack backtrace"), "{log}");
}

#[test]
fn fsync_tells_of_a_write_whose_task_died_and_readers_of_it_do_not_hang() {
    let server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "send_write:1", &[]);
    let path = dying.mount.join("file");
    // One request of the kernel's: a write(2) of several would come back short.
    let data = noise(1, 100_000);
    let (written, read) = within("write, fsync and read", {
        let (path, data) = (path.clone(), data.clone());
        move || {
            let file = open(&path);
            file.write_all_at(&data, 0).expect("write");
            let synced = file.sync_all().map_err(|why| why.raw_os_error());
            (synced, fs::read(&path).map(drop))
        }
    });
    assert_eq!(written, Err(Some(libc::EIO)));
    read.expect("what is there can be read");
    dying.assert_seen("send_write");
    within("the same again", move || {
        let file = open(&path);
        file.write_all_at(&data, 0).expect("write");
        file.sync_all().expect("fsync");
        assert!(fs::read(&path).expect("read") == data);
    });
    assert!(fs::read(server.export().join("file")).expect("read") == noise(1, 100_000));
}

#[test]
fn fsync_tells_of_a_commit_whose_task_died() {
    let server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "send_commit:1", &[]);
    let path = dying.mount.join("file");
    let data = noise(2, 8 << 20);
    within("write and fsync", move || {
        let file = open(&path);
        for round in 0..2 {
            file.write_all_at(&data, 0).expect("write");
            // All are sent, and what is left is a COMMIT.
            std::thread::sleep(Duration::from_secs(1));
            let synced = file.sync_all().map_err(|why| why.raw_os_error());
            match round {
                0 => assert_eq!(synced, Err(Some(libc::EIO))),
                _ => assert_eq!(synced, Ok(())),
            }
        }
    });
    dying.assert_seen("send_commit");
    assert!(fs::read(server.export().join("file")).expect("read") == noise(2, 8 << 20));
}

fn flock(file: &File, how: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open while `file` lives.
    match unsafe { libc::flock(file.as_raw_fd(), how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn an_idle_mount_keeps_its_locks_although_its_renewal_died() {
    let server = Server::start(ServerOptions {
        lease: 6,
        ..ServerOptions::default()
    });
    let dying = Dying::new(&server, "renew:2,renew:4", &[]);
    let other = Mount::new(&server);
    let file = open(&dying.mount.join("file"));
    flock(&file, libc::LOCK_EX).expect("lock");
    let theirs = open(&other.join("file"));
    // Three leases.
    let taken = eventually(Duration::from_secs(18), || {
        flock(&theirs, libc::LOCK_EX | libc::LOCK_NB).ok()
    });
    assert!(taken.is_none(), "the lock of an idle holder is gone");
    dying.assert_seen("renew");
    assert_eq!(dying.mount.stat("/recoveries"), 0);
    drop(file);
}

#[test]
fn closes_whose_task_died_reach_the_server() {
    let server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "send_together:1", &[]);
    for number in 0..20 {
        fs::write(dying.mount.join(format!("{number}")), "x").expect("write");
    }
    dying.assert_seen("send_together");
    let none = eventually(LIMIT, || {
        (dying.mount.stat("/gauges/closes_pending") == 0).then_some(())
    });
    assert!(none.is_some(), "files stay open at the server");
    within("removing them", move || {
        for number in 0..20 {
            fs::remove_file(dying.mount.join(format!("{number}"))).expect("unlink");
        }
    });
}

#[test]
fn changes_of_others_are_seen_although_the_thread_that_tells_the_kernel_died() {
    let server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "notify:1,notify:2", &["actimeo=1"]);
    let path = dying.mount.join("file");
    let behind = server.export().join("file");
    for round in 0..6u8 {
        fs::write(&behind, vec![round; 10_000 + usize::from(round)]).expect("write behind");
        // Old attributes are found out by a look, pages are dropped by an open.
        std::thread::sleep(Duration::from_millis(1100));
        let path = path.clone();
        let seen = within("stat, open and read", move || {
            fs::metadata(&path).expect("stat");
            fs::read(&path).expect("read")
        });
        assert!(seen == fs::read(&behind).expect("read behind"), "{round}");
    }
    dying.assert_seen("notify");
}

#[test]
fn a_killed_process_goes_away_although_the_thread_that_looks_for_signals_died() {
    let server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "interrupt:1,interrupt:2,interrupt:3", &[]);
    let stopped = server.stopped();
    let mut command = Command::new("cat");
    command
        .arg(dying.mount.join("never-seen"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = Background::spawn(command).expect("spawn");
    std::thread::sleep(Duration::from_millis(1500));
    child.signal(libc::SIGKILL);
    let status = child.wait(Duration::from_secs(10));
    drop(stopped);
    assert_eq!(
        status.and_then(|status| status.signal()),
        Some(libc::SIGKILL),
        "it cannot be killed"
    );
    dying.assert_seen("interrupt");
}

#[test]
fn a_server_that_does_not_respond_is_told_of_although_the_watch_on_it_died() {
    let server = Server::start(ServerOptions::default());
    let options = ["timeo=10", "retrans=1"];
    let dying = Dying::new(&server, "watch_responses:1,watch_responses:2", &options);
    let stopped = server.stopped();
    let path = dying.mount.join("never-seen");
    let asked = std::thread::spawn(move || fs::metadata(path).map(drop));
    let told = eventually(LIMIT, || {
        let responding = dying.mount.status()["connections"][0]["responding"].as_bool();
        (responding == Some(false)).then_some(())
    });
    drop(stopped);
    let missing = asked.join().expect("thread").expect_err("it is not there");
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    assert!(told.is_some(), "status says that it responds");
    let log = fs::read_to_string(dying.log.path()).expect("log");
    assert!(log.contains("not responding"), "{log}");
    dying.assert_seen("watch_responses");
}

#[test]
fn status_and_sigterm_are_heard_although_those_who_listen_died() {
    let server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "control:2,control:3,signals:1", &[]);
    for _ in 0..4 {
        dying.mount.status();
    }
    dying.assert_seen("control");
    dying.assert_seen("signals");
    // SAFETY: the pid was found a moment ago as the daemon of this test's mount.
    unsafe { libc::kill(dying.mount.pid(), libc::SIGTERM) };
    let ended = eventually(LIMIT, || {
        dying.mount.at().daemons().is_empty().then_some(())
    });
    assert!(ended.is_some(), "SIGTERM is not heard");
    assert!(dying.mount.at().mounted().is_empty());
}

#[test]
fn a_connection_whose_task_died_is_replaced_and_nothing_is_lost() {
    let server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "connection:30,connection:60", &[]);
    let path = dying.mount.path().to_owned();
    within("a hundred files", move || {
        for number in 0..100 {
            fs::write(path.join(format!("{number}")), noise(number, 5000)).expect("write");
        }
    });
    dying.assert_seen("connection");
    assert_eq!(dying.mount.stat("/recoveries"), 0);
    for number in 0..100 {
        let behind = server.export().join(format!("{number}"));
        assert!(fs::read(behind).expect("read") == noise(number, 5000));
    }
}

#[test]
fn a_recovery_that_died_is_begun_again() {
    let mut server = Server::start(ServerOptions::default());
    let dying = Dying::new(&server, "rebuild:1", &[]);
    let path = dying.mount.join("file");
    let file = open(&path);
    file.write_all_at(b"before", 0).expect("write");
    file.sync_all().expect("fsync");
    server.restart();
    within("going on", move || {
        file.write_all_at(b"after!", 0).expect("write");
        file.sync_all().expect("fsync");
    });
    dying.assert_seen("rebuild");
    let behind = fs::read(server.export().join("file")).expect("read");
    assert_eq!(behind, b"after!");
}

/// A daemon in the foreground, so that its end can be seen, that dies of what `upset`
/// does. Its mount is left behind, dead, and is replaced by the next.
fn ends_loudly(
    server: &mut Server,
    request: impl Fn(&Server) -> MountRequest,
    (dies, task): (&str, &str),
    upset: impl FnOnce(&mut Server),
) {
    needs::mounts_and_servers();
    let log = tempfile::NamedTempFile::new().expect("temporary file");
    let at = Mountpoint::new();
    let mut command = request(server)
        .env(PANIC, dies)
        .option(&format!("log={}", log.path().display()))
        .command(at.path());
    command
        .arg("--foreground")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut daemon = Background::spawn(command).expect("spawn");
    let there = eventually(LIMIT, || (!at.mounted().is_empty()).then_some(()));
    assert!(there.is_some(), "{dies}");
    let file = at.path().join("file");
    fs::write(&file, "synced").expect("write");
    let held = open(&file);
    upset(server);
    // Programs wait meanwhile, and none for ever.
    let waiting = {
        let dir = at.path().to_owned();
        std::thread::spawn(move || {
            (0..1000).try_for_each(|number| fs::write(dir.join(format!("new{number}")), "x"))
        })
    };
    let status = daemon.wait(LIMIT);
    let code = status.and_then(|status| status.code());
    assert_eq!(code, Some(32), "{dies}: {status:?}");
    let seen = eventually(LIMIT, || waiting.is_finished().then_some(()));
    assert!(seen.is_some(), "{dies}: a program hangs");
    waiting
        .join()
        .expect("thread")
        .expect_err("nobody serves it");
    let text = fs::read_to_string(log.path()).expect("log");
    let says = format!("the task {task} has died");
    let line = text.lines().find(|line| line.contains(&says));
    assert!(line.is_some_and(|line| line.contains("ERROR")), "{text}");
    // What lies below is not to be taken for the volume.
    assert_eq!(mounted_at(at.path()).len(), 1, "{dies}");
    for dead in [
        fs::metadata(at.path()).map(drop),
        fs::write(at.path().join("lost"), "x"),
        held.read_at(&mut [0; 1], 0).map(drop),
    ] {
        let why = dead.expect_err("it is dead").raw_os_error();
        let clean = [Some(libc::ENOTCONN), Some(libc::ECONNABORTED)];
        assert!(clean.contains(&why), "{dies}: {why:?}");
    }
    run(&mut request(server).command(at.path()), COMMAND_LIMIT)
        .expect_success("mount over the dead one");
    assert_eq!(at.mounted().len(), 1, "{dies}");
    assert_eq!(fs::read(&file).expect("read"), b"synced", "{dies}");
}

#[test]
fn a_recovery_that_is_dead_ends_the_daemon_and_leaves_a_dead_mount() {
    for (dies, task) in [("recover:1", "recover"), ("rebuild:1+", "recover")] {
        let mut server = Server::start(ServerOptions::default());
        ends_loudly(&mut server, MountRequest::of, (dies, task), Server::restart);
    }
}

#[test]
fn a_supervisor_that_is_dead_ends_the_daemon_and_leaves_a_dead_mount() {
    for dies in ["supervise:1", "connection:40+"] {
        let mut server = Server::start(ServerOptions::default());
        let proxy = Proxy::to(server.address());
        let request = |server: &Server| MountRequest::new(server.device("/"), proxy.port());
        let upset = |_: &mut Server| proxy.cut();
        ends_loudly(&mut server, request, (dies, "supervise"), upset);
    }
}
