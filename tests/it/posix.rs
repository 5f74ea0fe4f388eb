//! Foreign judges: pjdfstest for what POSIX says, fsx for what the data say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::MountRequest;
use crate::fixtures::process::{Finished, run};
use crate::fixtures::{World, needs, sys};

/// Random operations of fsx in the suite; `scripts/fsx-long` asks for more.
const FSX_OPERATIONS: u64 = 20_000;
const FSX_SEED: u64 = 20_261_123;

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
        _ => default,
    }
}

/// Excluded cases of the configuration: name and reason.
fn excluded() -> Vec<(String, String)> {
    let text = fs::read_to_string(config("pjdfstest/pjdfstest.toml")).expect("configuration");
    let list = text
        .split_once("expected_failures = [\n")
        .and_then(|(_, rest)| rest.split_once(']'))
        .expect("the list of expected failures")
        .0;
    list.lines()
        .map(|line| {
            let (name, reason) = line.split_once('#').unwrap_or((line, ""));
            let name = name.trim().trim_end_matches(',').trim_matches('"');
            (name.to_owned(), reason.trim().to_owned())
        })
        .collect()
}

#[test]
fn every_excluded_case_has_its_reason() {
    for (name, reason) in excluded() {
        assert!(name.contains("::"), "not a case: {name:?}");
        assert!(
            reason.split_whitespace().count() >= 4,
            "{name}: why? {reason:?}"
        );
    }
}

/// What is different with `writeback`, by its rules: the start of the case, and why.
const AHEAD: [(&str, &str); 7] = [
    (
        "rename::preserve_metadata_",
        "what the server allocates for a link or a directory is known once it has made it",
    ),
    ("rename::unchanged_ctime_failed", CTIME),
    ("open::exists_no_update", CTIME),
    ("chmod::failed_chmod_unchanged_ctime", CTIME),
    ("chown::failed_chown_unchanged_ctime", CTIME),
    ("link::unchanged_ctime_fails", CTIME),
    (
        "utimensat::follow_symlink",
        "times of a link are shown as they were set, until nfs-ganesha has left them as they were",
    ),
];

const CTIME: &str =
    "times of directories, and ctime, become the server's when it hears of the change";

#[test]
fn pjdfstest_finds_nothing_that_is_ours() {
    let bad = pjdfstest("nowriteback");
    assert_eq!(bad, [""; 0]);
}

#[test]
fn pjdfstest_finds_with_writeback_what_its_rules_say_and_nothing_else() {
    let mut bad = pjdfstest("writeback");
    bad.retain(|case| !AHEAD.iter().any(|(start, _)| case.starts_with(start)));
    assert_eq!(bad, [""; 0]);
}

/// The cases that fail, or pass unexpectedly.
fn pjdfstest(option: &str) -> Vec<String> {
    let program = needs::tool("pjdfstest");
    let server = Server::start(ServerOptions {
        caching: true,
        ..ServerOptions::default()
    });
    let mount = MountRequest::of(&server)
        .option(option)
        .time_limit(Duration::from_secs(600))
        .mount();
    let world = World { mount, server };
    // Other users walk through the root of the mount.
    sys::chmod(world.mount.path(), 0o755).expect("chmod");
    // Another file system, for the cases of EXDEV.
    let elsewhere = tempfile::tempdir().expect("temporary directory");
    let done = run(
        Command::new(program)
            .arg("-c")
            .arg(config("pjdfstest/pjdfstest.toml"))
            .arg("-p")
            .arg(world.mount.path())
            .arg("-s")
            .arg(elsewhere.path())
            .env("RUST_BACKTRACE", "0"),
        Duration::from_secs(580),
    );
    let summary = done
        .stdout
        .lines()
        .rev()
        .find(|line| line.starts_with("Summary"));
    let summary = summary.unwrap_or_else(|| panic!("pjdfstest did not finish: {done:?}"));
    println!("{summary} in {:?}", done.took);
    let bad: Vec<_> = (done.stdout.lines())
        .filter(|line| line.contains("FAILED") || line.contains("UNEXPECTEDLY"))
        .map(str::to_owned)
        .collect();
    if !bad.is_empty() {
        println!("{}", done.stdout);
    }
    assert!(done.status.success() || !bad.is_empty(), "{done:?}");
    // A run that filtered everything out would pass as well.
    let passed: u64 = number_before(summary, "passed");
    assert!(passed >= 350, "only {passed} cases ran: {summary}");
    bad
}

fn number_before(summary: &str, word: &str) -> u64 {
    let words: Vec<_> = summary
        .split([' ', ','])
        .filter(|word| !word.is_empty())
        .collect();
    let at = words
        .iter()
        .position(|&found| found == word)
        .expect("the word");
    words[at - 1].parse().expect("a number")
}

/// fsx 0.3.2 leaks a mapping with each mapped read, and the kernel gives a process
/// 65,530 of them: a longer run is several, on one file.
const FSX_AT_ONCE: u64 = 250_000;

/// One run of fsx on this file.
pub(crate) fn fsx(file: &Path, operations: u64, seed: u64) -> Finished {
    let artifacts = tempfile::tempdir().expect("temporary directory");
    println!("fsx: {operations} operations, seed {seed}");
    let done = run(
        Command::new(needs::tool("fsx"))
            .arg("-f")
            .arg(config("fsx/fsx.toml"))
            .args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"])
            .arg(artifacts.path())
            .arg(file),
        // A busy machine does two hundred operations a second.
        Duration::from_secs(60 + operations / 50),
    );
    if !done.status.success() {
        let kept = artifacts.keep();
        panic!(
            "fsx with seed {seed}: {}\n{}\nartifacts in {}",
            done.status,
            tail(&done.stderr, 60),
            kept.display()
        );
    }
    done
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[test]
fn fsx_reads_back_what_it_wrote_and_mapped() {
    let operations = setting("EFS_FUSE_FSX_OPERATIONS", FSX_OPERATIONS);
    let seed = setting("EFS_FUSE_FSX_SEED", FSX_SEED);
    let limit = Duration::from_secs(120 + operations / 40);
    let world = World::with(|request| request.time_limit(limit));
    for (round, done) in (0..operations).step_by(FSX_AT_ONCE as usize).enumerate() {
        let count = FSX_AT_ONCE.min(operations - done);
        let done = fsx(&world.path("file"), count, seed + round as u64);
        println!("in {:?}", done.took);
        let here = fs::read(world.path("file")).expect("read");
        assert!(here == fs::read(world.behind("file")).expect("read behind"));
    }
}

#[test]
fn fsx_holds_without_attribute_caching_and_with_a_small_window() {
    let world = World::with(|request| request.option("noac").option("write_window=1M"));
    fsx(
        &world.path("file"),
        5_000,
        setting("EFS_FUSE_FSX_SEED", FSX_SEED) + 1,
    );
}

#[test]
fn several_fsx_at_once_do_not_disturb_each_other() {
    let world = World::new();
    let seed = setting("EFS_FUSE_FSX_SEED", FSX_SEED);
    std::thread::scope(|scope| {
        for i in 0..4 {
            let mount = &world.mount;
            scope.spawn(move || fsx(&mount.join(format!("file{i}")), 3_000, seed + 10 + i));
        }
    });
}
