//! git on a shared volume: two hosts that push to one repository, and two that work
//! in one worktree, whose `index.lock` is the only thing between them.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::fixtures::ganesha::ServerOptions;
use crate::fixtures::host::{Host, Hosts};
use crate::fixtures::process::Finished;
use crate::fixtures::setting;

const LIMIT: Duration = Duration::from_secs(600);

fn git(host: &Host, dir: &str, words: &[&str]) -> Finished {
    host.run(command(host, dir, words), LIMIT)
}

fn command(host: &Host, dir: &str, words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(["-C", dir])
        .args(words)
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .current_dir("/");
    for who in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{who}_NAME"), host.name())
            .env(format!("GIT_{who}_EMAIL"), "git@example.com");
    }
    command
}

#[track_caller]
fn must(host: &Host, dir: &str, words: &[&str]) -> String {
    git(host, dir, words)
        .expect_success(&words.join(" "))
        .stdout
        .trim()
        .to_owned()
}

#[track_caller]
fn fsck(host: &Host, dir: &str) {
    let said = must(host, dir, &["fsck", "--full", "--strict", "--no-dangling"]);
    assert_eq!(said, "", "{}", host.name());
}

/// Packs a repository that others may be packing or pushing to. git lets one host
/// pack at a time; objects that nothing refers to yet are left alone, since they may
/// be those of a push on its way.
fn pack(host: &Host, dir: &str) {
    let done = git(host, dir, &["gc", "-q"]);
    if !done.stderr.contains("gc is already running") {
        done.expect_success("gc");
    }
}

/// Adds a file and commits it.
fn commit(host: &Host, dir: &str, name: &str) {
    let at = host.path(dir.strip_prefix("/volumes/").expect("on the volume"));
    fs::write(at.join(name), format!("{name} of {}\n", host.name())).expect("write");
    must(host, dir, &["add", name]);
    must(host, dir, &["commit", "-q", "-m", name]);
}

#[test]
fn two_hosts_push_to_one_git_repository_while_it_is_packed() {
    let rounds = setting("EFS_FUSE_GIT_ROUNDS", 5);
    let hosts = Hosts::with(2, ServerOptions::default(), &[], LIMIT);
    let [a, b] = &hosts.hosts[..] else {
        panic!("two hosts")
    };
    must(
        a,
        "/volumes",
        &["init", "-q", "--bare", "-b", "main", "repository"],
    );
    must(a, "/volumes", &["clone", "-q", "repository", "a"]);
    commit(a, "/volumes/a", "first");
    must(a, "/volumes/a", &["push", "-q", "origin", "HEAD:main"]);
    must(b, "/volumes", &["clone", "-q", "repository", "b"]);
    let work = |host: &Host, dir: &str| {
        for round in 0..rounds {
            commit(host, dir, &format!("{}-{round}", host.name()));
            let mut tries = 0;
            while !git(host, dir, &["push", "-q", "origin", "HEAD:main"])
                .status
                .success()
            {
                // The other one was faster.
                tries += 1;
                assert!(tries < 50, "cannot push");
                must(host, dir, &["pull", "-q", "--rebase", "origin", "main"]);
            }
            if round % 2 == 1 {
                pack(host, "/volumes/repository");
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| work(a, "/volumes/a"));
        scope.spawn(|| work(b, "/volumes/b"));
    });
    for (host, dir) in [(a, "/volumes/a"), (b, "/volumes/b")] {
        must(host, dir, &["pull", "-q", "--rebase", "origin", "main"]);
        must(host, dir, &["gc", "-q"]);
    }
    // Each host looks at what the other one wrote.
    for (host, dir) in [(a, "/volumes/b"), (b, "/volumes/a")] {
        fsck(host, dir);
        fsck(host, "/volumes/repository");
        let count = must(host, dir, &["rev-list", "--count", "HEAD"]);
        assert_eq!(count, (1 + 2 * rounds).to_string());
        assert_eq!(must(host, dir, &["status", "--porcelain"]), "");
        for round in 0..rounds {
            for author in [a, b] {
                let name = format!("{}-{round}", author.name());
                let path = format!("{}/{name}", dir.strip_prefix("/volumes/").expect("path"));
                let text = fs::read_to_string(host.path(path)).expect("read");
                assert_eq!(text, format!("{name} of {}\n", author.name()));
            }
        }
    }
    must(
        b,
        "/volumes",
        &["clone", "-q", "--no-local", "repository", "fresh"],
    );
    fsck(a, "/volumes/fresh");
}

/// Who is killed leaves a lock file at most, which git says to remove: every commit that
/// was reported is there, and the other host goes on. Every second time the network of
/// the dead one's host is cut at that moment.
#[test]
fn a_git_that_is_killed_leaves_every_commit_to_the_other_host() {
    let hosts = Hosts::with(2, ServerOptions::default(), &[], LIMIT);
    must(&hosts.hosts[0], "/volumes", &["init", "-q", "work"]);
    commit(&hosts.hosts[0], "/volumes/work", "first");
    let mut reported = 1;
    for round in 0..8_u64 {
        let (here, there) = match round % 4 {
            0 | 1 => (&hosts.hosts[0], &hosts.hosts[1]),
            _ => (&hosts.hosts[1], &hosts.hosts[0]),
        };
        let name = format!("file-{round}");
        fs::write(here.path("work").join(&name), &name).expect("write");
        // A lock file that the other host removed is gone here, too: O_EXCL asks the server.
        must(here, "/volumes/work", &["add", &name]);
        let words = ["commit", "-q", "-m", &name];
        let mut killed = here
            .spawn(command(here, "/volumes/work", &words))
            .expect("git");
        let moment = Duration::from_millis(5 + 7 * round);
        thread::sleep(moment);
        if round % 2 == 1 {
            here.cut_off();
            thread::sleep(Duration::from_millis(200));
        }
        let ended = killed.ended();
        let done = ended.is_some_and(|status| status.success());
        if ended.is_none() {
            killed.signal(libc::SIGKILL);
        }
        let ended = killed.wait(Duration::from_secs(60));
        assert!(ended.is_some(), "it can be killed");
        if round % 2 == 1 {
            thread::sleep(Duration::from_secs(2));
            here.plug_in();
        }
        println!("round {round}, killed after {moment:?}, done: {done}");
        // What is on a living connection may still come, within this.
        thread::sleep(Duration::from_secs(1));
        there.command(&["find", "/volumes/work/.git", "-name", "*.lock", "-delete"]);
        fsck(there, "/volumes/work");
        let count = || must(there, "/volumes/work", &["rev-list", "--count", "HEAD"]);
        let found: u64 = count().parse().expect("a number");
        let expected = match done {
            true => reported + 1..=reported + 1,
            false => reported..=reported + 1,
        };
        assert!(
            expected.contains(&found),
            "{found} commits, not {expected:?}"
        );
        commit(there, "/volumes/work", &format!("after-{round}"));
        reported = found + 1;
        let last = git(there, "/volumes/work", &["log", "-1", "--format=%s"]);
        assert!(last.stdout.contains("after"), "{}", last.stdout);
    }
    for host in &hosts.hosts {
        let count = must(host, "/volumes/work", &["rev-list", "--count", "HEAD"]);
        assert_eq!(count, reported.to_string());
        assert_eq!(must(host, "/volumes/work", &["status", "--porcelain"]), "");
        fsck(host, "/volumes/work");
    }
}

#[test]
fn two_hosts_commit_in_turn_in_one_worktree() {
    let hosts = Hosts::with(2, ServerOptions::default(), &[], LIMIT);
    let first = &hosts.hosts[0];
    must(first, "/volumes", &["init", "-q", "-b", "main", "work"]);
    let rounds = 10;
    for round in 0..rounds {
        let host = &hosts.hosts[round % 2];
        commit(host, "/volumes/work", &format!("file-{round}"));
        // The one commit before it is its parent.
        let count = must(host, "/volumes/work", &["rev-list", "--count", "HEAD"]);
        assert_eq!(count, (round + 1).to_string(), "{}", host.name());
    }
    for host in &hosts.hosts {
        assert_eq!(must(host, "/volumes/work", &["status", "--porcelain"]), "");
        fsck(host, "/volumes/work");
    }
}
