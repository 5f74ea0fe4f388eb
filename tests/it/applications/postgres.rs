//! PostgreSQL dies on one host and starts on another (two mounts as two hosts),
//! guarded by `flock(1)` on the volume as the README shows.
//!
//! A ledger outside the database has the number of every row whose COMMIT was
//! acknowledged: each must be there after the move.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::World;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::process::{Background, eventually, run};
use crate::fixtures::proxy::Proxy;

const SOON: Duration = Duration::from_secs(60);

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}")),
        Err(_) => default,
    }
}

/// The newest installed version's programs.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<_> = versions
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| panic!("no {name}: apt-get install postgresql (scripts/test does)"))
}

fn postgres_user() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let line = passwd
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .expect("the package makes the user postgres");
    let number = |at: usize| line.split(':').nth(at).and_then(|text| text.parse().ok());
    number(2).zip(number(3)).expect("numbers in /etc/passwd")
}

/// `words` as the user postgres.
fn command(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=postgres",
            "--regid=postgres",
            "--init-groups",
            "--",
        ])
        .args(words)
        .current_dir("/")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// What is not on the volume: sockets, logs, the ledger.
struct Local(tempfile::TempDir);

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (uid, gid) = postgres_user();
        chown(dir.path(), Some(uid), Some(gid)).expect("chown");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        Self(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn psql(&self, port: u16, sql: &str) -> String {
        let (port, dir) = (port.to_string(), self.0.path());
        let done = run(
            &mut command(&[
                "psql",
                "-XqAt",
                "-h",
                text(dir),
                "-p",
                &port,
                "-d",
                "postgres",
                "-c",
                sql,
            ]),
            SOON,
        );
        done.expect_success(sql).stdout.trim().to_owned()
    }

    fn is_up(&self, port: u16) -> bool {
        let (port, dir) = (port.to_string(), self.0.path());
        let ready = program("pg_isready");
        let words = [text(&ready), "-q", "-h", text(dir), "-p", &port];
        run(&mut command(&words), SOON).status.success()
    }

    #[track_caller]
    fn wait_until_up(&self, port: u16, limit: Duration) -> Duration {
        let begun = Instant::now();
        let up = eventually(limit, || {
            thread::sleep(Duration::from_millis(50));
            self.is_up(port).then_some(())
        });
        let log = || fs::read_to_string(self.join(&format!("log-{port}"))).unwrap_or_default();
        assert!(up.is_some(), "no server within {limit:?}:\n{}", log());
        begun.elapsed()
    }

    /// The server under the volume's lock; it waits for that as long as it must.
    fn start(&self, volume: &Path, port: u16) -> Instance {
        let postgres = program("postgres");
        let (lock, data) = (volume.join("lock"), volume.join("data"));
        let (dir, number) = (self.0.path(), port.to_string());
        let log = File::create(self.join(&format!("log-{port}"))).expect("log");
        let mut command = command(&[
            "flock",
            "--no-fork",
            text(&lock),
            text(&postgres),
            "-D",
            text(&data),
            "-k",
            text(dir),
            "-p",
            &number,
            "-c",
            "listen_addresses=",
            "-c",
            "restart_after_crash=off",
        ]);
        command.stdout(log.try_clone().expect("log")).stderr(log);
        Instance(Background::spawn(command).expect("postgres"))
    }

    /// A client that inserts row after row, and the file that has the number of
    /// each as soon as it was acknowledged.
    fn insert(&self, port: u16, from: u64) -> Background {
        let script = self.join("inserts");
        let rows = from..from + 100_000;
        let lines: String = rows
            .map(|row| format!("insert into ledger values ({row}) returning row;\n"))
            .collect();
        fs::write(&script, lines).expect("write");
        let ledger = File::options()
            .create(true)
            .append(true)
            .open(self.join("ledger"))
            .expect("ledger");
        let (port, dir) = (port.to_string(), self.0.path());
        let mut command = command(&[
            "psql",
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            text(dir),
            "-p",
            &port,
            "-d",
            "postgres",
        ]);
        command
            .stdin(File::open(&script).expect("script"))
            .stdout(ledger)
            .stderr(Stdio::null());
        Background::spawn(command).expect("psql")
    }

    fn load(&self, port: u16) -> Background {
        let bench = program("pgbench");
        let (port, dir) = (port.to_string(), self.0.path());
        let mut command = command(&[
            text(&bench),
            "-n", // else it empties the history first
            "-c",
            "2",
            "-T",
            "600",
            "-h",
            text(dir),
            "-p",
            &port,
            "postgres",
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Background::spawn(command).expect("pgbench")
    }

    /// Rows that were acknowledged.
    fn ledger(&self) -> Vec<u64> {
        let ledger = fs::read_to_string(self.join("ledger")).unwrap_or_default();
        ledger
            .lines()
            .map(|row| row.parse().expect("a row"))
            .collect()
    }

    /// Every acknowledged row is there, and the bank's books are balanced.
    #[track_caller]
    fn check(&self, port: u16) -> u64 {
        let rows = self.psql(port, "select row from ledger order by row");
        let there: std::collections::HashSet<u64> = rows
            .lines()
            .map(|row| row.parse().expect("a row"))
            .collect();
        let ledger = self.ledger();
        let lost: Vec<_> = ledger.iter().filter(|row| !there.contains(row)).collect();
        assert!(lost.is_empty(), "committed and gone: {lost:?}");
        let balanced = self.psql(
            port,
            "select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers)
                and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
        );
        assert_eq!(balanced, "t");
        ledger.len() as u64
    }
}

/// A running server, or one that waits for the lock.
struct Instance(Background);

impl Instance {
    /// SIGKILL to the postmaster and all its children.
    fn kill(mut self) {
        let pid = self.0.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        self.0.kill();
        for child in children.unwrap_or_default().split_whitespace() {
            let child: i32 = child.parse().expect("a pid");
            // SAFETY: no memory effects. The pid was a child of the server a
            // moment ago.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
    }

    /// A fast shutdown, as an orchestrator asks for it.
    fn stop(mut self) {
        self.0.signal(libc::SIGINT);
        let status = self.0.wait(SOON).expect("postgres ends");
        assert!(status.success(), "{status}");
    }
}

fn prepare(volume: &Path) {
    let (uid, gid) = postgres_user();
    chown(volume, Some(uid), Some(gid)).expect("chown");
    let (initdb, data) = (program("initdb"), volume.join("data"));
    let words = [text(&initdb), "-k", "-A", "trust", "-D", text(&data)];
    run(&mut command(&words), SOON).expect_success("initdb");
}

fn fill(local: &Local, port: u16) {
    local.psql(port, "create table ledger(row bigint primary key)");
    let bench = program("pgbench");
    let (port, dir) = (port.to_string(), local.0.path());
    let words = [
        text(&bench),
        "-i",
        "-q",
        "-h",
        text(dir),
        "-p",
        &port,
        "postgres",
    ];
    run(&mut command(&words), SOON).expect_success("pgbench -i");
}

/// The whole of the data directory, read and verified.
fn verify_checksums(volume: &Path) {
    let (checksums, data) = (program("pg_checksums"), volume.join("data"));
    let words = [text(&checksums), "--check", "-D", text(&data)];
    run(&mut command(&words), SOON).expect_success("pg_checksums");
}

/// The rolling deploy: the new instance is started while the old one runs,
/// waits for it, and finds every committed row when that one has been killed.
/// `EFS_FUSE_PG_CYCLES` moves, each after `EFS_FUSE_PG_SECONDS` of load.
#[test]
fn a_killed_postgres_starts_on_the_other_host_with_every_committed_row() {
    let cycles = setting("EFS_FUSE_PG_CYCLES", 2);
    let seconds = setting("EFS_FUSE_PG_SECONDS", 3);
    let limit = Duration::from_secs(120 + cycles * (seconds + 20));
    let world = World::with(|request| request.time_limit(limit));
    let other = MountRequest::of(&world.server).time_limit(limit).mount();
    let volumes = [world.mount.path(), other.path()];
    let local = Local::new();
    prepare(volumes[0]);
    let mut port = 5501;
    let mut running = local.start(volumes[0], port);
    local.wait_until_up(port, SOON);
    fill(&local, port);
    for cycle in 1..=cycles {
        let mut load = local.load(port);
        let from = local.ledger().last().map_or(1, |last| last + 1000);
        let mut inserts = local.insert(port, from);
        let half = Duration::from_millis(seconds * 500);
        thread::sleep(half);
        let new = local.start(volumes[(cycle % 2) as usize], port + 1);
        thread::sleep(half);
        assert!(!local.is_up(port + 1), "both instances run");
        running.kill();
        let took = local.wait_until_up(port + 1, SOON);
        assert!(inserts.wait(SOON).is_some() && load.wait(SOON).is_some());
        running = new;
        port += 1;
        let rows = local.check(port);
        println!("move {cycle}: up after {took:?}, {rows} acknowledged rows are there");
        assert!(rows > 10 * cycle, "no load");
    }
    running.stop();
    verify_checksums(volumes[0]);
}

/// The host loses its network, then its power: the server frees its lock when
/// the lease is over.
#[test]
fn a_host_that_is_cut_off_and_dies_leaves_its_lock_and_every_committed_row() {
    let lease = 6;
    let server = Server::start(ServerOptions {
        lease,
        ..ServerOptions::default()
    });
    let proxy = Proxy::to(server.address());
    let cut = MountRequest::new("127.0.0.1:/", proxy.port()).mount();
    let other = Mount::new(&server);
    let local = Local::new();
    prepare(cut.path());
    let old = local.start(cut.path(), 5501);
    local.wait_until_up(5501, SOON);
    fill(&local, 5501);
    let mut load = local.load(5501);
    let mut inserts = local.insert(5501, 1);
    thread::sleep(Duration::from_secs(2));
    let new = local.start(other.path(), 5502);
    thread::sleep(Duration::from_secs(1));
    assert!(!local.is_up(5502), "both instances run");
    proxy.freeze();
    thread::sleep(Duration::from_millis(500));
    // SAFETY: no memory effects; the daemon is this test's own.
    unsafe { libc::kill(cut.pid(), libc::SIGKILL) };
    old.kill();
    let took = local.wait_until_up(5502, Duration::from_secs(u64::from(lease) * 3 + 10));
    assert!(inserts.wait(SOON).is_some() && load.wait(SOON).is_some());
    let rows = local.check(5502);
    println!("up after {took:?}, lease {lease} s, {rows} acknowledged rows are there");
    assert!(rows > 10, "no load");
    new.stop();
    verify_checksums(other.path());
}
