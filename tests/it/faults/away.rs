//! The server does not answer, and perhaps never will.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::matrix::show;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, Mount, MountRequest, resident, umount_command};
use crate::fixtures::process::{Background, eventually, run};
use crate::fixtures::proxy::{Proxy, Way};
use crate::fixtures::{World, noise};
use crate::operations::counters::assert_gauges_return_to_zero;

/// A mount whose every byte goes through the proxy.
struct Line {
    // Dropped in this order.
    mount: Mount,
    proxy: Proxy,
    server: Server,
    /// The daemon's log.
    log: tempfile::NamedTempFile,
}

fn line(options: &[&str]) -> Line {
    line_to(ServerOptions::default(), options)
}

fn line_to(server: ServerOptions, options: &[&str]) -> Line {
    let server = Server::start(server);
    let proxy = Proxy::to(server.address());
    let log = tempfile::NamedTempFile::new().expect("log");
    let request = MountRequest::new(server.device("/"), proxy.port())
        .option(&format!("log={}", log.path().display()));
    let request = options
        .iter()
        .fold(request, |request, option| request.option(option));
    Line {
        mount: request.mount(),
        proxy,
        server,
        log,
    }
}

impl Line {
    /// How often the log says something.
    fn said(&self, what: &str) -> usize {
        let log = fs::read_to_string(self.log.path()).expect("log");
        log.lines().filter(|line| line.contains(what)).count()
    }
}

fn lock(file: &File) -> std::io::Result<()> {
    // SAFETY: the descriptor is open while `file` lives.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

type Try = fn(&Path, usize) -> std::io::Result<()>;

/// Calls that each need the server, in directories of their own: the kernel's lock
/// of a directory would make one wait for the other.
const CALLS: [(&str, Try); 8] = [
    // Not a stat of a missing name: of a directory that it made a mount knows what is
    // not in it.
    ("link", |dir, n| {
        fs::hard_link(dir.join("file"), dir.join(format!("new{n}")))
    }),
    ("read", |dir, _| {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(dir.join("file"))?;
        file.read_exact_at(&mut [0; 4096], 0)
    }),
    ("fsync", |dir, _| {
        let file = File::options().write(true).open(dir.join("file"))?;
        file.write_all_at(b"x", 0)?;
        file.sync_all()
    }),
    ("mkdir", |dir, n| {
        fs::create_dir(dir.join(format!("new{n}")))
    }),
    ("create", |dir, n| {
        File::create(dir.join(format!("new{n}"))).map(drop)
    }),
    ("unlink", |dir, _| fs::remove_file(dir.join("file"))),
    ("rename", |dir, n| {
        fs::rename(dir.join("file"), dir.join(format!("to{n}")))
    }),
    ("lock", |dir, _| {
        lock(&File::options().write(true).open(dir.join("file"))?)
    }),
];

fn lay_out(mount: &Mount) {
    for (name, _) in CALLS {
        fs::create_dir(mount.join(name)).expect("mkdir");
        fs::write(mount.join(name).join("file"), noise(1, 8192)).expect("write");
    }
}

#[test]
#[ignore = "holds files open on a silent line, which makes the forks of other tests wait: scripts/faults"]
fn a_soft_mount_gives_up_after_its_time_and_goes_on_in_order_when_the_server_is_back() {
    for (option, errno) in [("soft", libc::EIO), ("softerr", libc::ETIMEDOUT)] {
        let line = line(&[option, "timeo=10", "retrans=2"]);
        lay_out(&line.mount);
        line.proxy.freeze();
        std::thread::scope(|scope| {
            let calls = CALLS.map(|(name, call)| {
                let dir = line.mount.join(name);
                scope.spawn(move || {
                    let begun = Instant::now();
                    (name, call(&dir, 0), begun.elapsed())
                })
            });
            for call in calls {
                let (name, result, took) = call.join().expect("thread");
                let why = result.expect_err(name);
                assert_eq!(why.raw_os_error(), Some(errno), "{option} {name}: {why}");
                // Several calls in a row may each take their time (open, fsync, close).
                let (from, to) = (Duration::from_secs(2), Duration::from_secs(15));
                assert!((from..to).contains(&took), "{option} {name}: {took:?}");
            }
        });
        line.proxy.thaw();
        // What was given up on was done or not, once; the session is in order.
        let unlinked = line.mount.join("unlink/file");
        let gone = eventually(Duration::from_secs(20), || {
            (!unlinked.exists()).then_some(())
        });
        assert!(gone.is_some(), "the requests went on behind the back");
        for (name, call) in CALLS {
            let dir = line.mount.join(name);
            if !dir.join("file").exists() {
                fs::write(dir.join("file"), noise(1, 8192)).expect("write");
            }
            call(&dir, 1).unwrap_or_else(|why| panic!("{option} {name}: {why}"));
        }
        assert_gauges_return_to_zero(&line.mount);
        assert_eq!(line.mount.stat("/recoveries"), 0, "no slot was lost");
    }
}

#[test]
fn a_soft_mount_waits_for_a_server_that_is_slow_but_answers() {
    let line = line(&["soft", "timeo=10", "retrans=1"]);
    for way in [Way::ToServer, Way::ToClient] {
        line.proxy.delay(way, Duration::from_millis(150));
    }
    let begun = Instant::now();
    for i in 0..5 {
        fs::write(line.mount.join(format!("f{i}")), noise(i, 100_000)).expect("write");
    }
    let data = noise(9, 8 << 20);
    let mut file = File::create(line.mount.join("big")).expect("create");
    file.write_all(&data).expect("write");
    file.sync_all().expect("fsync");
    assert!(
        begun.elapsed() > Duration::from_secs(2),
        "longer than timeo"
    );
    assert!(fs::read(line.server.export().join("big")).expect("read behind") == data);
}

#[test]
fn a_silent_server_is_said_once_and_its_answer_once_and_status_shows_it() {
    let line = line(&["timeo=10", "retrans=2"]);
    fs::write(line.mount.join("file"), b"x").expect("write");
    let connection = |key: &str| line.mount.status()["connections"][0][key].clone();
    assert_eq!(connection("responding"), true);
    line.proxy.freeze();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| fs::metadata(line.mount.join("never-seen")));
        std::thread::sleep(Duration::from_secs(6));
        assert!(!call.is_finished(), "a hard mount waits");
        assert_eq!(connection("responding"), false);
        assert!(connection("silent_s").as_f64() > Some(2.0));
        assert_eq!(line.said("not responding, still trying"), 1);
        assert_eq!(line.said(" OK, after "), 0);
        line.proxy.thaw();
        let missing = call.join().expect("thread").expect_err("no such file");
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    });
    assert_eq!(line.said("not responding, still trying"), 1);
    assert_eq!(line.said(" OK, after "), 1);
    assert_eq!(connection("responding"), true);
}

#[test]
#[ignore = "holds files open on a silent line, which makes the forks of other tests wait: scripts/faults"]
fn a_path_that_loses_large_packets_is_noticed_and_said() {
    let line = line(&["timeo=10", "retrans=2"]);
    let data = noise(3, 1 << 20);
    line.proxy.narrow(Way::ToServer, Some(1400));
    fs::create_dir(line.mount.join("small")).expect("small calls pass");
    std::thread::scope(|scope| {
        let write = scope.spawn(|| fs::write(line.mount.join("large"), &data));
        let noticed = eventually(Duration::from_secs(20), || {
            (line.said("not responding") == 1).then_some(())
        });
        assert!(noticed.is_some(), "it is said");
        assert!(!write.is_finished());
        line.proxy.narrow(Way::ToServer, None);
        write.join().expect("thread").expect("write");
    });
    assert!(fs::read(line.server.export().join("large")).expect("read behind") == data);
}

#[test]
fn kill_9_ends_who_writes_syncs_closes_or_waits_for_a_lock() {
    let world = World::new();
    lay_out(&world.mount);
    // Each begins while the server answers, says so, and then hangs.
    let scripts = [
        (
            "write",
            "while :; do dd if=/dev/zero bs=1M count=200; done > $DIR/link/file",
        ),
        (
            "fsync",
            "dd if=/dev/zero of=$DIR/read/file bs=4k count=1 conv=notrunc,fsync",
        ),
        (
            "close",
            "exec 5>>$DIR/mkdir/file; echo more >&5; sleep 1000",
        ),
        ("lock", "exec 5>>$DIR/lock/file; flock 5; echo x"),
        ("list", "ls $DIR/rename"),
    ];
    let stopped = world.server.stopped();
    let mut children: Vec<_> = scripts
        .iter()
        .map(|(name, script)| {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", script])
                .current_dir("/")
                .env("DIR", world.mount.path())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            (name, Background::spawn(command).expect("spawn"))
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    for (name, child) in &mut children {
        let begun = Instant::now();
        let children = children_of(child.pid());
        child.signal(libc::SIGKILL);
        for child in children {
            // SAFETY: a child of a shell of this test's, which has not reaped it.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        let status = child.wait(Duration::from_secs(10));
        let ended = status.and_then(|status| status.signal());
        assert_eq!(ended, Some(libc::SIGKILL), "{name} hangs");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(3), "{name} took {took:?} to die");
    }
    drop(stopped);
    fs::write(world.path("after"), b"x").expect("the mount works after the stall");
}

fn children_of(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Sixteen writers at once while the line is silent, for so long. Returns the most
/// memory that the daemon took meanwhile, and before. What was written is there in
/// the end.
fn write_into_silence(options: ServerOptions, silence: Duration) -> (u64, u64) {
    const WRITERS: usize = 16;
    let line = line_to(options, &["write_window=32m", "timeo=20"]);
    let data = noise(1, 1 << 20);
    for n in 0..WRITERS {
        fs::create_dir(line.mount.join(format!("d{n}"))).expect("mkdir");
        fs::write(line.mount.join(format!("d{n}/read")), &data).expect("write");
    }
    let files: Vec<_> = (0..WRITERS)
        .map(|n| File::create(line.mount.join(format!("d{n}/file"))).expect("create"))
        .collect();
    // Now: looking for the daemon later may wait for a process that another test
    // has just forked, and that waits for our files to be closed.
    let daemon = line.mount.pid();
    let before = resident(daemon);
    line.proxy.freeze();
    let stop = AtomicBool::new(false);
    let mut peak = 0;
    let written: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = files
            .iter()
            .map(|file| {
                let (data, stop) = (&data, &stop);
                scope.spawn(move || {
                    let mut blocks = 0;
                    while !stop.load(Ordering::Relaxed) {
                        file.write_all_at(data, blocks << 20).expect("write");
                        blocks += 1;
                    }
                    blocks
                })
            })
            .collect();
        for n in 0..WRITERS {
            let dir = line.mount.join(format!("d{n}"));
            scope.spawn(move || fs::read(dir.join("read")).map(|data| data.len()));
            let dir = line.mount.join(format!("d{n}"));
            scope.spawn(move || fs::read_dir(dir).map(Iterator::count));
        }
        let end = Instant::now() + silence;
        while Instant::now() < end {
            peak = peak.max(resident(daemon));
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
        line.proxy.thaw();
        let writers = writers.into_iter();
        writers
            .map(|writer| writer.join().expect("writer"))
            .collect()
    });
    for (n, file) in files.iter().enumerate() {
        file.sync_all().expect("fsync");
        let behind = fs::read(line.server.export().join(format!("d{n}/file")));
        let behind = behind.expect("read behind");
        assert_eq!(behind.len() as u64, written[n] << 20, "file {n}");
        assert!(
            behind.chunks(1 << 20).all(|block| block == data),
            "file {n}"
        );
    }
    drop(files);
    (peak, before)
}

#[test]
#[ignore = "holds files open on a silent line, which makes the forks of other tests wait: scripts/faults"]
fn memory_stays_bounded_whatever_is_done_while_the_server_is_away() {
    const WINDOW: u64 = 32 << 20;
    let (peak, before) = write_into_silence(ServerOptions::default(), Duration::from_secs(8));
    show(&format!(
        "\nMemory of the daemon: {} MiB before, {} MiB at most while the server was away and 48 threads \
         went on; write window {} MiB\n",
        before >> 20,
        peak >> 20,
        WINDOW >> 20
    ));
    let grown = peak.saturating_sub(before);
    assert!(grown < WINDOW + (48 << 20), "{} MiB more", grown >> 20);
}

#[test]
#[ignore = "holds files open on a silent line, which makes the forks of other tests wait: scripts/faults"]
fn what_was_written_into_a_silence_longer_than_the_lease_is_not_lost() {
    let lease = ServerOptions {
        lease: 3,
        grace: 3,
        ..ServerOptions::default()
    };
    write_into_silence(lease, Duration::from_secs(12));
}

#[test]
fn unmounting_by_force_or_lazily_takes_five_seconds_at_most() {
    for option in ["--force", "--lazy"] {
        for busy in [false, true] {
            let mut server = Server::start(ServerOptions::default());
            let mount = Mount::new(&server);
            let mut waiting = None;
            fs::write(mount.join("file"), b"x").expect("write");
            if busy {
                // Data that were not synced, and a process that waits.
                let script = "exec 5>>$DIR/file; echo more >&5; read line; cat $DIR/never-seen";
                let mut command = Command::new("/bin/sh");
                command
                    .args(["-c", script])
                    .current_dir("/")
                    .env("DIR", mount.path())
                    .stderr(std::process::Stdio::null());
                waiting = Some(Background::spawn(command).expect("spawn"));
                std::thread::sleep(Duration::from_millis(500));
            }
            server.kill();
            std::thread::sleep(Duration::from_millis(500));
            let done =
                run(umount_command(mount.path()).arg(option), COMMAND_LIMIT).expect_success(option);
            assert!(
                done.took < Duration::from_secs(5),
                "{option}, busy {busy}: {:?}",
                done.took
            );
            let gone = eventually(Duration::from_secs(1), || {
                mount.at().daemons().is_empty().then_some(())
            });
            assert!(gone.is_some(), "{option}, busy {busy}: the daemon runs");
            assert!(mount.at().mounted().is_empty());
            if let Some(mut waiting) = waiting {
                let ended = waiting.wait(Duration::from_secs(5));
                assert!(ended.is_some(), "{option}: the process hangs");
            }
        }
    }
}
