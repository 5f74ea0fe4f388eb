//! A daemon dies without having been asked to, and another one goes on.
//!
//! The first tests are of the keeper by itself, with shell scripts for daemons; the last ones of
//! real mounts.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::keeper::{Keeper, held};
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{EFS_FUSE, Mount, MountRequest};
use crate::fixtures::process::{eventually, run};
use crate::fixtures::sys;

const SOON: Duration = Duration::from_secs(60);

/// A keeper of a daemon that serves and survives; its program is a shell, which runs the
/// script `take-over`.
fn surviving(take_over: &str) -> Keeper {
    let keeper = Keeper::start();
    keeper.script("take-over", take_over);
    let shell = File::open("/bin/sh").expect("a shell");
    keeper.say(&[b'h', 3], Some(shell.as_fd()));
    held(&keeper, 2, &keeper.path("log"), "the log\n");
    keeper.say(b"r", None);
    keeper.say(b"w", None);
    keeper
}

const DIE: &str = "kill -KILL $(exec sh -c 'echo $PPID')";

#[test]
fn a_daemon_that_crashes_is_followed_by_its_own_program_which_hears_how_it_died() {
    let mut keeper = surviving(
        "{ echo \"$1 $# $2\"; echo \"$3\"; cat <&6; } > seen.new; mv seen.new seen\n\
         printf w >&3; printf r >&3; printf g >&3; exit 9",
    );
    keeper.order(DIE);
    let seen = keeper.read("seen");
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!((lines[0], lines[2]), ("/k 3 ", "the log"), "{seen}");
    let died: Vec<u64> = lines[1].split(' ').flat_map(str::parse).collect();
    let [status, hung, noticed, crashes] = died[..] else {
        panic!("{seen}");
    };
    assert_eq!((status, hung, crashes), (9, 0, 1), "{seen}");
    let uptime = fs::read_to_string("/proc/uptime").expect("uptime");
    let uptime: f64 = uptime
        .split(' ')
        .next()
        .map(str::parse)
        .expect("a word")
        .expect("seconds");
    let ago = uptime - noticed as f64 / 1000.0;
    assert!((-1.0..20.0).contains(&ago), "noticed {ago} s ago");
    // It has said goodbye.
    assert_eq!(keeper.ends().code(), Some(9));
}

#[test]
fn a_daemon_that_says_goodbye_is_followed_by_nobody_however_it_ends() {
    let mut keeper = surviving("echo > seen");
    keeper.say(b"g", None);
    keeper.order("exit 3");
    assert_eq!(keeper.ends().code(), Some(3));
    assert!(!keeper.path("seen").exists());
}

#[test]
fn a_taker_that_dies_is_followed_by_another_from_the_same_log() {
    let mut keeper = surviving(
        "cat /proc/self/fd/6 >> seen; echo >> turns; [ $(wc -l < turns) = 2 ] || { sleep 1.2; exit 1; }\n\
         printf r >&3; exit 4",
    );
    keeper.order(DIE);
    assert_eq!(keeper.ends().code(), Some(4));
    assert_eq!(keeper.read("seen"), "the log\nthe log\n");
}

#[test]
fn a_keeper_gives_up_when_two_daemons_have_died_at_their_start_and_says_so() {
    let mut keeper = surviving("echo >> seen; exit 1");
    thread::sleep(Duration::from_millis(1200));
    keeper.order(DIE);
    assert_eq!(keeper.ends().code(), Some(1));
    assert_eq!(keeper.read("seen"), "\n\n");
}

#[test]
fn who_is_told_to_end_while_nobody_serves_ends_when_somebody_does() {
    let mut keeper = surviving(
        "echo > seen; trap 'echo > asked; exit 7' TERM; sleep 1; printf w >&3; printf r >&3\n\
         while :; do sleep 0.05; done",
    );
    keeper.order(DIE);
    keeper.read("seen");
    // SAFETY: the child is not waited for yet.
    unsafe { libc::kill(keeper.child.id().cast_signed(), libc::SIGTERM) };
    assert_eq!(keeper.ends().code(), Some(7));
    assert!(keeper.path("asked").exists());
}

fn server() -> Server {
    Server::start(ServerOptions::default())
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: the pid was found a moment ago by its program and this test's directory.
    unsafe { libc::kill(pid, signal) };
}

fn efs_fuse(command: &str, mount: &Mount) -> crate::fixtures::process::Finished {
    run(Command::new(EFS_FUSE).arg(command).arg(mount.path()), SOON)
}

#[test]
fn a_mount_between_two_daemons_is_no_dead_one() {
    let server = server();
    let mount = MountRequest::of(&server).option("takeover=crash").mount();
    fs::write(mount.join("file"), "closed").expect("write");
    let (keeper, daemon) = (mount.keeper(), mount.pid());
    // So the pause is as long as it takes.
    signal(keeper, libc::SIGSTOP);
    signal(daemon, libc::SIGKILL);
    let said = eventually(SOON, || {
        let said = efs_fuse("status", &mount).stdout;
        said.contains("taking over").then_some(said)
    });
    assert!(said.is_some(), "{}", efs_fuse("status", &mount).stdout);
    let mut again = MountRequest::of(&server).command(mount.path());
    let refused = run(&mut again, SOON);
    assert_ne!(refused.code(), 0, "it was replaced");
    signal(keeper, libc::SIGCONT);
    assert_eq!(fs::read(mount.join("file")).expect("read"), b"closed");
    mount.unmount();
}

#[test]
fn a_mount_without_a_daemon_can_be_unmounted() {
    let server = server();
    let mount = MountRequest::of(&server).option("takeover=crash").mount();
    let (keeper, daemon) = (mount.keeper(), mount.pid());
    signal(keeper, libc::SIGSTOP);
    signal(daemon, libc::SIGKILL);
    let mut command = Command::new(EFS_FUSE);
    command.args(["umount", "--lazy"]).arg(mount.path());
    run(&mut command, SOON).expect_success("umount");
    let gone = eventually(SOON, || mount.at().daemons().is_empty().then_some(()));
    assert!(gone.is_some(), "the keeper lives");
}

fn open(mount: &Mount, name: &str) -> File {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true);
    options.open(mount.join(name)).expect("open")
}

/// Does its work again and again; the longest turn, and how many there were.
fn load(
    stop: &Arc<AtomicBool>,
    work: impl Fn(u64) -> std::io::Result<()> + Send + 'static,
) -> JoinHandle<Result<(Duration, u64), String>> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let (mut longest, mut turns) = (Duration::ZERO, 0);
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            work(turns).map_err(|why| format!("turn {turns}: {why}"))?;
            longest = longest.max(begun.elapsed());
            turns += 1;
        }
        Ok((longest, turns))
    })
}

/// An appender that syncs, and a reader.
fn works(
    mount: &Mount,
    stop: &Arc<AtomicBool>,
) -> [JoinHandle<Result<(Duration, u64), String>>; 2] {
    fs::write(mount.join("kept"), vec![7; 1 << 20]).expect("write");
    let mut options = OpenOptions::new();
    let log = options.append(true).create(true).open(mount.join("log"));
    let log = log.expect("open");
    let kept = File::open(mount.join("kept")).expect("open");
    [
        load(stop, move |turn| {
            (&log).write_all(format!("{turn:09}\n").as_bytes())?;
            log.sync_data()
        }),
        load(stop, move |turn| {
            let mut page = [0; 4096];
            kept.read_exact_at(&mut page, turn % 256 * 4096)?;
            match page == [7; 4096] {
                true => Ok(()),
                false => Err(std::io::Error::other("other bytes")),
            }
        }),
    ]
}

/// What was appended is there, once each.
fn assert_appended(other: &Mount, turns: u64) {
    let log = fs::read_to_string(other.join("log")).expect("read");
    let expected: String = (0..turns).map(|turn| format!("{turn:09}\n")).collect();
    assert!(log == expected, "appended bytes are lost, or there twice");
}

fn crashes(mount: &Mount) -> u64 {
    let status = mount.status();
    status["takeover"]["takeovers"]["crash"]
        .as_u64()
        .unwrap_or_default()
}

/// The numbers of its handles are not given to others, although most daemons gave out none.
#[test]
fn what_is_open_for_long_stays_open_over_daemons_that_open_nothing() {
    let server = server();
    let request = MountRequest::of(&server).option("takeover=crash");
    let mount = request.env("EFS_FUSE_TEST_CRASHES", "1").mount();
    let files: Vec<_> = (0..5).map(|n| open(&mount, &format!("held-{n}"))).collect();
    for (kill, byte) in (1..=4).zip(b'a'..) {
        for file in &files {
            file.write_all_at(&[byte], kill).expect("write");
        }
        signal(mount.pid(), libc::SIGKILL);
        let taken = eventually(SOON, || (crashes(&mount) == kill).then_some(()));
        assert!(taken.is_some(), "{}", mount.status());
    }
    for number in 0..20 {
        fs::write(mount.join(format!("other-{number}")), "text").expect("write");
    }
    for (number, file) in files.into_iter().enumerate() {
        file.write_all_at(b"x", 5).expect("write");
        sys::close(file).expect("close");
        let content = fs::read(mount.join(format!("held-{number}"))).expect("read");
        assert_eq!(content, b"\0abcdx");
    }
    mount.unmount();
}

#[test]
fn a_killed_daemon_is_an_error_to_nobody() {
    let server = server();
    let mount = MountRequest::of(&server).option("takeover=crash").mount();
    let other = Mount::new(&server);
    let stop = Arc::new(AtomicBool::new(false));
    let works = works(&mount, &stop);
    let held = open(&mount, "held");
    sys::record_lock(&held, libc::F_WRLCK).expect("a lock");
    let removed = open(&mount, "removed");
    fs::remove_file(mount.join("removed")).expect("unlink");
    let theirs = open(&other, "theirs");
    sys::record_lock(&theirs, libc::F_WRLCK).expect("a lock");
    let ours = open(&mount, "theirs");
    let waiting = thread::spawn(move || sys::record_lock(&ours, libc::F_WRLCK).map(|()| ours));
    let mut container = Command::new("unshare");
    container
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(
            r#"mount --bind "$0" /mnt && umount --lazy "$0" && cd /mnt && echo 0 &&
               while read -r word; do echo "$word" >> words && cat words | wc -l; done"#,
        )
        .arg(mount.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut container = container.spawn().expect("a container");
    let mut said = BufReader::new(container.stdout.take().expect("a pipe")).lines();
    let mut hear = || said.next().expect("it lives").expect("text");
    let mut stdin = container.stdin.take().expect("a pipe");
    assert_eq!(hear(), "0");
    thread::sleep(Duration::from_millis(1200));

    signal(mount.pid(), libc::SIGKILL);

    let taken = eventually(SOON, || (crashes(&mount) == 1).then_some(()));
    assert!(taken.is_some(), "{}", mount.status());
    thread::sleep(Duration::from_millis(500));
    writeln!(stdin, "word").expect("it reads");
    assert_eq!(hear().trim(), "1");
    removed.write_all_at(b"alive", 0).expect("write");
    let seen = removed.metadata().expect("fstat");
    assert_eq!((seen.nlink(), seen.len()), (0, 5));
    assert!(!waiting.is_finished(), "it has a lock that another has");
    sys::record_lock(&theirs, libc::F_UNLCK).expect("unlock");
    waiting.join().expect("no panic").expect("the lock");
    let wanted = open(&other, "held");
    assert!(wanted.try_lock().is_err(), "the lock was lost");
    stop.store(true, Ordering::Relaxed);
    let ended = works.map(|work| work.join().expect("no panic").expect("no error"));
    for (longest, _) in ended {
        assert!(longest < Duration::from_secs(1), "a pause of {longest:?}");
    }
    assert_appended(&other, ended[0].1);
    drop(stdin);
    assert!(container.wait().expect("it ends").success());
    drop((held, removed));
    mount.unmount();
}

#[test]
fn thirty_kills_at_random_moments_lose_nothing_and_do_nothing_twice() {
    let server = server();
    let request = MountRequest::of(&server).option("takeover=crash");
    let mount = request.env("EFS_FUSE_TEST_CRASHES", "1").mount();
    let other = Mount::new(&server);
    let stop = Arc::new(AtomicBool::new(false));
    let works = works(&mount, &stop);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..30 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        thread::sleep(Duration::from_millis(50 + (random >> 33) % 500));
        let daemon = eventually(SOON, || {
            let mut daemons = mount.at().daemons();
            let keeper = mount.keeper();
            daemons.retain(|pid| *pid != keeper);
            daemons.first().copied()
        });
        signal(daemon.expect("a daemon"), libc::SIGKILL);
    }
    let up = eventually(SOON, || (crashes(&mount) >= 20).then_some(()));
    assert!(up.is_some(), "{}", mount.status());
    stop.store(true, Ordering::Relaxed);
    let ended = works.map(|work| work.join().expect("no panic").expect("no error"));
    assert_appended(&other, ended[0].1);
    mount.unmount();
}
