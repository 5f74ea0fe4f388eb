//! PostgreSQL dies on one host and starts on another, guarded by `flock(1)` on the
//! volume as `docs/OPERATIONS.md` shows.
//!
//! A ledger outside the database has the number of every row whose COMMIT was
//! acknowledged: each must be there after the move.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::ServerOptions;
use crate::fixtures::host::{Host, Hosts};
use crate::fixtures::process::{Background, eventually};
use crate::fixtures::setting;

const SOON: Duration = Duration::from_secs(60);
/// Rows that are inserted by one psql.
const ROWS: u64 = 100_000;

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

/// Where the volume's part of it lies.
const DATA: &str = "/volumes/app/data";
const LOCK: &str = "/volumes/app/lock";

/// What is not on the volume: sockets, logs, the ledger. It outlives every host.
struct Local(tempfile::TempDir);

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        own(dir.path());
        Self(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Where a host's server has its socket.
    fn sockets(&self, host: &Host) -> PathBuf {
        let dir = self.join(&host.name());
        if !dir.exists() {
            fs::create_dir(&dir).expect("mkdir");
            own(&dir);
        }
        dir
    }

    fn log(&self, host: &Host) -> PathBuf {
        self.join(&format!("{}.log", host.name()))
    }

    fn psql(&self, host: &Host, sql: &str) -> String {
        let dir = self.sockets(host);
        let words = [
            "psql",
            "-XqAt",
            "-h",
            text(&dir),
            "-d",
            "postgres",
            "-c",
            sql,
        ];
        let done = host.run(command(&words), SOON);
        done.expect_success(sql).stdout.trim().to_owned()
    }

    fn is_up(&self, host: &Host) -> bool {
        let (ready, dir) = (program("pg_isready"), self.sockets(host));
        let words = [text(&ready), "-q", "-h", text(&dir)];
        host.run(command(&words), SOON).status.success()
    }

    #[track_caller]
    fn wait_until_up(&self, host: &Host, limit: Duration) -> Duration {
        let begun = Instant::now();
        let up = eventually(limit, || {
            thread::sleep(Duration::from_millis(50));
            self.is_up(host).then_some(())
        });
        let log = || fs::read_to_string(self.log(host)).unwrap_or_default();
        assert!(up.is_some(), "no server within {limit:?}:\n{}", log());
        begun.elapsed()
    }

    /// The server under the volume's lock; it waits for that as long as it must.
    fn start(&self, host: &Host) -> Instance {
        let (postgres, dir) = (program("postgres"), self.sockets(host));
        let log = File::create(self.log(host)).expect("log");
        let mut command = command(&[
            "flock",
            "--no-fork",
            LOCK,
            text(&postgres),
            "-D",
            DATA,
            "-k",
            text(&dir),
            "-c",
            "listen_addresses=",
            "-c",
            "restart_after_crash=off",
        ]);
        command.stdout(log.try_clone().expect("log")).stderr(log);
        Instance(host.spawn(command).expect("postgres"))
    }

    /// A client that inserts row after row, and the file that has the number of
    /// each as soon as it was acknowledged.
    fn insert(&self, host: &Host, from: u64) -> Background {
        let script = self.join("inserts");
        let rows = from..from + ROWS;
        let lines: String = rows
            .map(|row| format!("insert into ledger values ({row}) returning row;\n"))
            .collect();
        fs::write(&script, lines).expect("write");
        let ledger = File::options()
            .create(true)
            .append(true)
            .open(self.join("ledger"))
            .expect("ledger");
        let dir = self.sockets(host);
        let mut command = command(&[
            "psql",
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            text(&dir),
            "-d",
            "postgres",
        ]);
        command
            .stdin(File::open(&script).expect("script"))
            .stdout(ledger)
            .stderr(Stdio::null());
        host.spawn(command).expect("psql")
    }

    fn load(&self, host: &Host) -> Background {
        let (bench, dir) = (program("pgbench"), self.sockets(host));
        let mut command = command(&[
            text(&bench),
            "-n", // else it empties the history first
            "-c",
            "2",
            "-T",
            // Until it is killed.
            "86400",
            "-h",
            text(&dir),
            "postgres",
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        host.spawn(command).expect("pgbench")
    }

    /// Rows that were acknowledged. A line without its end was not written whole
    /// when psql died.
    fn ledger(&self) -> Vec<u64> {
        let ledger = fs::read_to_string(self.join("ledger")).unwrap_or_default();
        ledger
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
            .map(|row| row.parse().expect("a row"))
            .collect()
    }

    /// Every acknowledged row is there, and the bank's books are balanced.
    #[track_caller]
    fn check(&self, host: &Host) -> u64 {
        let rows = self.psql(host, "select row from ledger order by row");
        let there: std::collections::HashSet<u64> = rows
            .lines()
            .map(|row| row.parse().expect("a row"))
            .collect();
        let ledger = self.ledger();
        let lost: Vec<_> = ledger.iter().filter(|row| !there.contains(row)).collect();
        assert!(lost.is_empty(), "committed and gone: {lost:?}");
        let balanced = self.psql(
            host,
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
    /// SIGKILL to those of its children that work for clients. How many.
    fn kill_backends(&self) -> usize {
        let pid = self.0.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let backends = children.split_whitespace().filter(|child| {
            let title = fs::read_to_string(format!("/proc/{child}/cmdline"));
            title.is_ok_and(|title| title.contains("[local]"))
        });
        let killed = backends.map(|child| {
            let child: i32 = child.parse().expect("a pid");
            // SAFETY: no memory effects. The pid was a child of the server a
            // moment ago.
            unsafe { libc::kill(child, libc::SIGKILL) };
        });
        killed.count()
    }

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

/// Gives a directory to the user postgres.
fn own(dir: &Path) {
    let (uid, gid) = postgres_user();
    chown(dir, Some(uid), Some(gid)).expect("chown");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// A cluster on the volume, its server running, and the tables.
fn first(local: &Local, host: &Host) -> Instance {
    fs::create_dir(host.path("app")).expect("mkdir");
    own(&host.path("app"));
    let initdb = program("initdb");
    let words = [text(&initdb), "-k", "-A", "trust", "-D", DATA];
    host.run(command(&words), SOON).expect_success("initdb");
    let running = local.start(host);
    local.wait_until_up(host, SOON);
    local.psql(host, "create table ledger(row bigint primary key)");
    let (bench, dir) = (program("pgbench"), local.sockets(host));
    let words = [text(&bench), "-i", "-q", "-h", text(&dir), "postgres"];
    host.run(command(&words), SOON).expect_success("pgbench -i");
    running
}

/// The whole of the data directory, read and verified.
fn verify_checksums(host: &Host) {
    let checksums = program("pg_checksums");
    let words = [text(&checksums), "--check", "-D", DATA];
    host.run(command(&words), SOON)
        .expect_success("pg_checksums");
}

/// The rolling deploy: the new instance is started while the old one runs,
/// waits for it, and finds every committed row when that one has been killed.
/// `EFS_FUSE_PG_CYCLES` moves, each after `EFS_FUSE_PG_SECONDS` of load.
#[test]
fn a_killed_postgres_starts_on_the_other_host_with_every_committed_row() {
    let cycles = setting("EFS_FUSE_PG_CYCLES", 3);
    let seconds = setting("EFS_FUSE_PG_SECONDS", 2);
    let limit = Duration::from_secs(180 + cycles * (seconds + 30));
    let hosts = Hosts::with(3, ServerOptions::default(), &[], limit);
    let local = Local::new();
    let mut running = first(&local, &hosts.hosts[0]);
    for cycle in 1..=cycles {
        let [old, new] = [cycle - 1, cycle].map(|number| &hosts.hosts[number as usize % 3]);
        let mut load = local.load(old);
        let from = local.ledger().last().map_or(1, |last| last + 1000);
        let mut inserts = local.insert(old, from);
        let half = Duration::from_millis(seconds * 500);
        thread::sleep(half);
        let next = local.start(new);
        thread::sleep(half);
        assert!(!local.is_up(new), "both instances run");
        running.kill();
        let took = local.wait_until_up(new, SOON);
        assert!(inserts.wait(SOON).is_some() && load.wait(SOON).is_some());
        running = next;
        let rows = local.check(new);
        println!("move {cycle}: up after {took:?}, {rows} acknowledged rows are there");
        assert!(rows > 10 * cycle, "no load");
    }
    running.stop();
    verify_checksums(&hosts.hosts[0]);
}

/// The daemon of the volume is killed again and again (`EFS_FUSE_KILLS` / 10 times, at least
/// 5), and another one goes on: no client and no server process has an error of it.
#[test]
fn a_postgres_whose_daemon_is_killed_again_and_again_notices_nothing() {
    let kills = (setting("EFS_FUSE_KILLS", 50) / 10).max(5);
    let limit = Duration::from_secs(180 + kills * 5);
    let log = std::env::var("EFS_FUSE_KILLS_LOG").map(|log| format!("debug,log={log}"));
    let options: Vec<&str> = ["takeover=crash"]
        .into_iter()
        .chain(log.as_deref().ok())
        .collect();
    let hosts = Hosts::with(1, ServerOptions::default(), &options, limit);
    let (local, host) = (Local::new(), &hosts.hosts[0]);
    let running = first(&local, host);
    let mut load = local.load(host);
    let (mut from, mut inserts) = (1, local.insert(host, 1));
    for kill in 0..kills {
        thread::sleep(Duration::from_millis(300 + kill * 97 % 700));
        let rows = local.ledger().len();
        host.kill_daemon(SOON);
        let goes_on = eventually(SOON, || {
            if inserts.ended().is_some_and(|ended| ended.success()) {
                from += ROWS;
                inserts = local.insert(host, from);
            }
            (local.ledger().len() > rows + 3).then_some(())
        });
        if goes_on.is_none() {
            let said = fs::read_to_string(local.log(host)).unwrap_or_default();
            let last: Vec<_> = said.lines().rev().take(30).collect();
            panic!(
                "no row more after {kill} kills; ended: {:?} {:?}; its log, backwards: {last:#?}",
                inserts.ended(),
                load.ended()
            );
        }
        assert_eq!(
            (inserts.ended(), load.ended()),
            (None, None),
            "{kill} kills"
        );
    }
    inserts.kill();
    load.kill();
    let rows = local.check(host);
    println!("{kills} kills, {rows} acknowledged rows are there");
    let log = fs::read_to_string(local.log(host)).expect("its log");
    let errors: Vec<_> = log
        .lines()
        // Of its files; what it could not tell its clients is that they were killed.
        .filter(|line| line.contains("PANIC") || line.contains("could not"))
        .filter(|line| !line.contains(" client"))
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    running.stop();
    verify_checksums(host);
}

/// SIGKILL to backends in the middle of their work: the server ends of it, as it does
/// where it is not to start again by itself. The second time the network is cut then.
#[test]
fn a_postgres_whose_backends_are_killed_goes_on_elsewhere_with_every_committed_row() {
    let hosts = Hosts::with(2, ServerOptions::default(), &[], Duration::from_secs(300));
    let local = Local::new();
    let mut running = first(&local, &hosts.hosts[0]);
    for (old, new, cut) in [(0, 1, false), (1, 0, true)] {
        let [old, new] = [old, new].map(|number: usize| &hosts.hosts[number]);
        let mut load = local.load(old);
        let from = local.ledger().last().map_or(1, |last| last + 1000);
        let before = local.ledger().len();
        let mut inserts = local.insert(old, from);
        thread::sleep(Duration::from_secs(2));
        let next = local.start(new);
        if cut {
            old.cut_off();
            thread::sleep(Duration::from_millis(300));
        }
        let killed = running.kill_backends();
        assert!(killed >= 2, "{killed} backends");
        if cut {
            thread::sleep(Duration::from_secs(3));
            old.plug_in();
        }
        let ended = running.0.wait(SOON);
        assert!(ended.is_some_and(|status| !status.success()), "{ended:?}");
        local.wait_until_up(new, SOON);
        assert!(inserts.wait(SOON).is_some() && load.wait(SOON).is_some());
        running = next;
        local.check(new);
        assert!(local.ledger().len() > before + 10, "no load");
    }
    running.stop();
    verify_checksums(&hosts.hosts[1]);
}

/// The host loses its network, then its power: the server frees its lock when
/// the lease is over.
#[test]
fn a_host_that_is_cut_off_and_dies_leaves_its_lock_and_every_committed_row() {
    let lease = 6;
    let options = ServerOptions {
        lease,
        ..ServerOptions::default()
    };
    let mut hosts = Hosts::with(3, options, &[], Duration::from_secs(300));
    let local = Local::new();
    let cut = hosts.hosts.remove(0);
    let [next, third] = &hosts.hosts[..] else {
        panic!("two hosts left")
    };
    let old = first(&local, &cut);
    let mut load = local.load(&cut);
    let mut inserts = local.insert(&cut, 1);
    thread::sleep(Duration::from_secs(2));
    let new = local.start(next);
    thread::sleep(Duration::from_secs(1));
    assert!(!local.is_up(next), "both instances run");
    cut.cut_off();
    thread::sleep(Duration::from_millis(500));
    cut.power_off();
    drop(old);
    let took = local.wait_until_up(next, Duration::from_secs(u64::from(lease) * 3 + 30));
    assert!(inserts.wait(SOON).is_some() && load.wait(SOON).is_some());
    let rows = local.check(next);
    println!("up after {took:?}, lease {lease} s, {rows} acknowledged rows are there");
    assert!(rows > 10, "no load");
    new.stop();
    verify_checksums(third);
}
