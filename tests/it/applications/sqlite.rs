//! SQLite on two hosts, one database: with a rollback journal it needs no more than
//! `fcntl` locks, fsync and close-to-open, all of which are the server's.
//!
//! The journal is deleted (the default) or truncated after each transaction. WAL
//! needs memory that all hosts share, and works on no network file system.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::ServerOptions;
use crate::fixtures::host::{Host, Hosts};
use crate::fixtures::process::Background;
use crate::fixtures::setting;

const LIMIT: Duration = Duration::from_secs(1200);
const SOON: Duration = Duration::from_secs(60);

const MODES: [&str; 2] = ["DELETE", "TRUNCATE"];

fn sqlite(database: &str) -> Command {
    let mut command = Command::new("sqlite3");
    command
        .args(["-batch", "-bail", "-init", "/dev/null", database])
        .current_dir("/");
    command
}

/// Runs statements; what they print.
#[track_caller]
fn ask(host: &Host, database: &str, sql: &str) -> String {
    let mut command = sqlite(database);
    command.arg(".timeout 60000").arg(sql);
    let done = host.run(command, SOON).expect_success(sql);
    done.stdout.trim().to_owned()
}

fn create(host: &Host, database: &str, mode: &str) {
    let made = ask(
        host,
        database,
        &format!(
            "PRAGMA journal_mode={mode};
             CREATE TABLE sum(n INTEGER NOT NULL);
             INSERT INTO sum VALUES (0);
             CREATE TABLE ledger(host TEXT, row INTEGER, PRIMARY KEY(host, row));"
        ),
    );
    assert_eq!(made, mode.to_lowercase());
}

/// A program that makes `rows` transactions, each of a number that is read and
/// written and of a row, and prints each row's number once it is committed.
fn writer(
    host: &Host,
    database: &str,
    mode: &str,
    rows: std::ops::Range<u64>,
    local: &Path,
) -> (Background, PathBuf) {
    let name = host.name();
    let begin = format!(".timeout 120000\nPRAGMA journal_mode={mode};\nPRAGMA synchronous=FULL;\n");
    let script: String = rows
        .map(|row| {
            format!(
                "BEGIN IMMEDIATE; UPDATE sum SET n = n + 1; INSERT INTO ledger VALUES ('{name}', {row}); COMMIT; SELECT {row};\n"
            )
        })
        .collect();
    let (input, output) = (
        local.join(format!("{name}-{mode}.sql")),
        local.join(format!("{name}-{mode}.out")),
    );
    fs::write(&input, begin + &script).expect("write");
    let mut command = sqlite(database);
    command
        .stdin(File::open(&input).expect("script"))
        .stdout(File::create(&output).expect("output"))
        .stderr(File::create(output.with_extension("err")).expect("output"));
    (host.spawn(command).expect("sqlite3"), output)
}

/// The numbers that were printed, after the line that tells the journal's mode.
fn acknowledged(output: &Path) -> Vec<u64> {
    let text = fs::read_to_string(output).expect("output");
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n')?.parse().ok())
        .collect()
}

/// `EFS_FUSE_SQLITE=10000` for the long run: transactions of each mode.
#[test]
fn sqlite_on_two_hosts_loses_no_transaction_and_no_page() {
    let each = setting("EFS_FUSE_SQLITE", 200) / 2;
    let hosts = Hosts::with(2, ServerOptions::default(), &[], LIMIT);
    let local = tempfile::tempdir().expect("temporary directory");
    for mode in MODES {
        let database = format!("/volumes/{mode}.db");
        create(&hosts.hosts[0], &database, mode);
        let begun = Instant::now();
        let mut writers: Vec<_> = hosts
            .hosts
            .iter()
            .map(|host| writer(host, &database, mode, 0..each, local.path()))
            .collect();
        for (writer, output) in &mut writers {
            let status = writer.wait(LIMIT).expect("the writer ends");
            let said = fs::read_to_string(output.with_extension("err")).unwrap_or_default();
            assert!(status.success(), "{mode}: {status}: {said}");
            assert_eq!(acknowledged(output), (0..each).collect::<Vec<_>>());
        }
        println!("{mode}: {} transactions in {:?}", each * 2, begun.elapsed());
        for host in &hosts.hosts {
            assert_eq!(ask(host, &database, "PRAGMA integrity_check"), "ok");
            let counts = ask(
                host,
                &database,
                "SELECT n, (SELECT count(*) FROM ledger) FROM sum",
            );
            assert_eq!(counts, format!("{0}|{0}", each * 2), "{mode}");
        }
    }
}

/// SIGKILL in the middle of a transaction leaves a hot journal: who comes next rolls
/// it back, on whichever host.
#[test]
fn a_transaction_of_a_killed_sqlite_is_rolled_back_by_the_other_host() {
    killed_in_turn(6, |_, writer| writer.kill());
}

/// The same while the killed one's host has no network: when it is back, nothing of the
/// dead one may come after the other host's recovery.
#[test]
fn a_sqlite_killed_without_a_network_changes_nothing_when_that_is_back() {
    killed_in_turn(2, |host, writer| {
        host.cut_off();
        thread::sleep(Duration::from_millis(300));
        writer.signal(libc::SIGKILL);
        assert!(writer.wait(SOON).is_some(), "it can be killed");
        thread::sleep(Duration::from_secs(2));
        host.plug_in();
    });
}

/// `rounds` writers, on each host in turn, each ended by `kill` in the middle of its
/// transactions; the other host then looks at what is there.
fn killed_in_turn(rounds: u64, kill: fn(&Host, &mut Background)) {
    let hosts = Hosts::with(2, ServerOptions::default(), &[], LIMIT);
    let local = tempfile::tempdir().expect("temporary directory");
    for mode in MODES {
        let database = format!("/volumes/{mode}.db");
        create(&hosts.hosts[0], &database, mode);
        let mut from = 0;
        for round in 0..rounds {
            let (here, there) = match round % 2 {
                0 => (&hosts.hosts[0], &hosts.hosts[1]),
                _ => (&hosts.hosts[1], &hosts.hosts[0]),
            };
            let rows = from..from + 10_000;
            from += 10_000;
            let (mut writer, output) = writer(here, &database, mode, rows, local.path());
            thread::sleep(Duration::from_millis(300 + 41 * round));
            assert!(writer.ended().is_none(), "killed in the middle");
            kill(here, &mut writer);
            assert_eq!(ask(there, &database, "PRAGMA integrity_check"), "ok");
            let counts = ask(
                there,
                &database,
                "SELECT n, (SELECT count(*) FROM ledger) FROM sum",
            );
            let (sum, rows) = counts.split_once('|').expect("two numbers");
            assert_eq!(sum, rows, "half a transaction");
            let there: std::collections::HashSet<u64> =
                ask(there, &database, "SELECT row FROM ledger")
                    .lines()
                    .map(|row| row.parse().expect("a row"))
                    .collect();
            let lost: Vec<_> = acknowledged(&output)
                .into_iter()
                .filter(|row| !there.contains(row))
                .collect();
            assert!(lost.is_empty(), "committed and gone: {lost:?}");
        }
        let rows = ask(&hosts.hosts[0], &database, "SELECT count(*) FROM ledger");
        assert!(
            rows.parse::<u64>().expect("a number") > rounds,
            "no work: {rows}"
        );
    }
}
