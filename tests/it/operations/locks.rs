//! File locks between processes and hosts (two mounts as two hosts).
//!
//! `flock` and OFD locks belong to a descriptor, so threads of the test can
//! hold them; POSIX locks belong to a process, and processes are perl, which
//! every Debian has.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::process::{Background, eventually};
use crate::fixtures::sys::{Mapping, errno};
use crate::fixtures::{World, setting};

const SOON: Duration = Duration::from_secs(20);

fn two() -> (World, Mount) {
    let world = World::new();
    let other = Mount::new(&world.server);
    (world, other)
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

fn fcntl(file: &File, command: i32, typ: i32, start: i64, len: i64) -> io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: typ as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the struct lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock),
    }
}

/// F_OFD_SETLK.
fn ofd(file: &File, typ: i32, start: i64, len: i64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, typ, start, len).map(|_| ())
}

#[track_caller]
fn denied(result: io::Result<()>) {
    assert_eq!(errno(result), libc::EAGAIN);
}

/// A process that locks (F_SETLKW) bytes 0 to 9 of FILE, writes "have" to MARK,
/// and waits.
fn locker(file: &Path, mark: &Path) -> Background {
    let script = r#"
        open(my $f, "+<", $ENV{FILE}) or die; my $lock = pack("s s x4 q q l x4", 1, 0, 0, 10, 0);
        fcntl($f, 7, $lock) or die "lock: $!"; open(my $m, ">", $ENV{MARK}) or die; close $m; sleep 1000;"#;
    let mut command = Command::new("perl");
    command
        .args(["-e", script])
        .current_dir("/")
        .env("FILE", file)
        .env("MARK", mark);
    Background::spawn(command).expect("perl")
}

fn appears(mark: &Path) -> bool {
    eventually(SOON, || mark.exists().then_some(())).is_some()
}

#[test]
fn flock_excludes_on_one_host_and_between_hosts() {
    let (world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    let a2 = open(&world.path("f"));
    a.lock().expect("exclusive");
    assert!(a2.try_lock().is_err() && b.try_lock_shared().is_err());
    a.lock_shared().expect("downgrade");
    b.lock_shared().expect("shared");
    assert!(a.try_lock().is_err(), "an upgrade against a reader");
    b.unlock().expect("unlock");
    a.try_lock().expect("upgrade");
    drop(a);
    // RELEASE comes after close(2) has returned.
    let granted = eventually(SOON, || b.try_lock().ok());
    assert!(granted.is_some(), "released with the last descriptor");
}

#[test]
fn ranges_are_split_and_merged_and_told_to_who_asks() {
    let (world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    ofd(&a, libc::F_WRLCK, 0, 0).expect("all");
    ofd(&a, libc::F_UNLCK, 100, 50).expect("a hole");
    ofd(&b, libc::F_WRLCK, 100, 50).expect("the hole");
    denied(ofd(&b, libc::F_RDLCK, 99, 1));
    denied(ofd(&b, libc::F_RDLCK, 150, 1));
    let found = fcntl(&b, libc::F_OFD_GETLK, libc::F_WRLCK, 150, 0).expect("getlk");
    assert_eq!(
        (i32::from(found.l_type), found.l_start, found.l_len),
        (libc::F_WRLCK, 150, 0)
    );
    ofd(&b, libc::F_UNLCK, 0, 0).expect("unlock");
    // nfs-ganesha 4.3 does not downgrade the part of a lock that reaches the end.
    ofd(&a, libc::F_UNLCK, 1000, 0).expect("unlock the rest");
    ofd(&a, libc::F_RDLCK, 0, 1000).expect("downgrade of all, the hole filled");
    ofd(&b, libc::F_RDLCK, 0, 1000).expect("readers share");
    let found = fcntl(&b, libc::F_OFD_GETLK, libc::F_WRLCK, 5, 1).expect("getlk");
    assert_eq!((found.l_start, found.l_len), (0, 1000), "one lock again");
}

#[test]
fn a_process_that_is_killed_leaves_no_lock() {
    let (world, other) = two();
    drop(open(&world.path("f")));
    let b = open(&other.join("f"));
    let marks = tempfile::tempdir().expect("temporary directory");
    let mut holder = locker(&world.path("f"), &marks.path().join("1"));
    assert!(appears(&marks.path().join("1")));
    denied(ofd(&b, libc::F_RDLCK, 9, 1));
    ofd(&b, libc::F_WRLCK, 10, 1).expect("behind it");
    let found = fcntl(
        &open(&world.path("f")),
        // With F_OFD_GETLK the kernel says -1 of any holder.
        libc::F_GETLK,
        libc::F_WRLCK,
        0,
        1,
    );
    assert_eq!(found.expect("getlk").l_pid, holder.pid());
    let found = fcntl(&b, libc::F_GETLK, libc::F_WRLCK, 0, 1).expect("getlk");
    assert_eq!(found.l_pid, 0, "a process of another host");
    holder.kill();
    let granted = eventually(SOON, || ofd(&b, libc::F_WRLCK, 0, 10).ok());
    assert!(granted.is_some());
}

#[test]
fn a_signal_ends_a_wait_for_a_lock_and_nothing_is_left_of_it() {
    let (world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    ofd(&a, libc::F_WRLCK, 0, 10).expect("lock");
    let marks = tempfile::tempdir().expect("temporary directory");
    let mut times = Vec::new();
    for round in 0..5 {
        let mut waiter = locker(&other.join("f"), &marks.path().join("1"));
        // At any moment between two questions to the server.
        thread::sleep(Duration::from_millis(500 + 23 * round));
        assert!(waiter.ended().is_none());
        let begun = Instant::now();
        waiter.signal(libc::SIGTERM);
        assert!(waiter.wait(SOON).is_some());
        times.push(begun.elapsed());
    }
    times.sort();
    println!("ended within {times:?}");
    assert!(times[2] < Duration::from_millis(100), "{times:?}");
    assert!(times[4] < Duration::from_millis(500), "{times:?}");
    ofd(&a, libc::F_UNLCK, 0, 10).expect("unlock");
    thread::sleep(Duration::from_millis(300));
    ofd(&a, libc::F_WRLCK, 0, 10).expect("not taken by the dead");
    drop(b);
}

#[test]
fn a_lock_shows_what_was_written_before_the_last_unlock() {
    let (world, other) = two();
    let a = open(&world.path("f"));
    a.write_all_at(&[0; 8192], 0).expect("write");
    a.sync_all().expect("fsync");
    let b = open(&other.join("f"));
    let map = Mapping::new(&b, 8192, libc::MAP_SHARED).expect("mmap");
    for round in 1..50u8 {
        // Cached at the other host, by read and by mapping.
        let mut seen = [0; 8192];
        b.read_exact_at(&mut seen, 0).expect("read");
        assert_eq!(map.get(4096, 1), [round - 1]);
        a.lock().expect("lock");
        a.write_all_at(&[round; 8192], 0).expect("write");
        a.unlock().expect("unlock");
        assert_eq!(
            fs::read(world.behind("f")).expect("read behind"),
            [round; 8192],
            "stable before the lock goes"
        );
        b.lock_shared().expect("lock");
        b.read_exact_at(&mut seen, 0).expect("read");
        assert_eq!(seen, [round; 8192]);
        assert_eq!(map.get(0, 8192), [round; 8192]);
        b.unlock().expect("unlock");
    }
}

/// A database and its journal: who has the lock and does not see the journal of one who died
/// with it takes half a transaction for a whole one.
#[test]
fn what_lies_beside_a_file_that_another_host_has_changed_is_seen_under_its_lock() {
    let (world, other) = two();
    for (here, there) in [
        (world.mount.path(), other.path()),
        (other.path(), world.mount.path()),
    ] {
        fs::write(here.join("db"), [1; 4096]).expect("write");
        for round in 0..10 {
            // What this host knows of the journal: that it has removed it, or cut it.
            let journal = here.join("db-journal");
            fs::write(&journal, b"mine").expect("write");
            match round % 2 {
                0 => fs::remove_file(&journal).expect("unlink"),
                _ => drop(File::create(&journal).expect("truncate")),
            }
            let size = || fs::metadata(&journal).map_or(0, |meta| meta.len());
            assert_eq!(size(), 0);
            let theirs = open(&there.join("db"));
            ofd(&theirs, libc::F_WRLCK, 0, 1).expect("lock");
            fs::write(there.join("db-journal"), b"theirs").expect("write");
            theirs.write_all_at(&[round; 100], 0).expect("write");
            ofd(&theirs, libc::F_UNLCK, 0, 1).expect("unlock");
            drop(theirs);
            let ours = open(&here.join("db"));
            ofd(&ours, libc::F_RDLCK, 0, 1).expect("lock");
            assert_eq!(size(), 6, "round {round}");
            drop(ours);
            fs::remove_file(there.join("db-journal")).expect("unlink");
        }
    }
}

#[test]
fn a_waiter_on_the_same_host_is_woken_at_once_and_in_line() {
    let world = World::new();
    let file = open(&world.path("f"));
    file.lock().expect("lock");
    let (tell, hear) = mpsc::channel();
    let waiters: Vec<_> = (0..5)
        .map(|number| {
            let (tell, file) = (tell.clone(), open(&world.path("f")));
            let waiter = thread::spawn(move || {
                file.lock().expect("lock");
                tell.send((number, Instant::now())).expect("send");
                file.unlock().expect("unlock");
            });
            thread::sleep(Duration::from_millis(60));
            waiter
        })
        .collect();
    let polls = world.mount.stat("/nfs_ops/LOCK/count");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(
        world.mount.stat("/nfs_ops/LOCK/count"),
        polls,
        "a lock of this host is known here"
    );
    let released = Instant::now();
    file.unlock().expect("unlock");
    let order: Vec<_> = (0..5)
        .map(|_| hear.recv_timeout(SOON).expect("grant"))
        .collect();
    for waiter in waiters {
        waiter.join().expect("waiter");
    }
    let numbers: Vec<_> = order.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    let took = order[0].1.duration_since(released);
    assert!(took < Duration::from_millis(50), "{took:?}");
}

#[test]
fn a_flock_needs_no_descriptor_that_may_write_but_a_user_who_may() {
    let world = World::new();
    drop(open(&world.path("f")));
    let reader = File::open(world.path("f")).expect("open");
    reader.lock().expect("exclusive, through a reader");
    assert!(open(&world.path("f")).try_lock().is_err());
    drop(reader);
    let writer = OpenOptions::new()
        .append(true)
        .open(world.path("f"))
        .expect("open");
    eventually(SOON, || writer.try_lock_shared().ok()).expect("shared, through a writer");
}

#[test]
fn nothing_is_left_of_many_opens_and_locks() {
    let world = World::new();
    let held = open(&world.path("f"));
    let rounds = setting("EFS_FUSE_LOCK_ROUNDS", 500);
    for _ in 0..rounds {
        let file = open(&world.path("f"));
        ofd(&file, libc::F_WRLCK, 0, 1)
            .or_else(|_| {
                // The RELEASE of the round before is still at work.
                fcntl(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, 0, 1).map(|_| ())
            })
            .expect("lock");
    }
    held.lock().expect("nobody has it");
    drop(held);
    let gone = eventually(SOON, || {
        (world.mount.stat("/gauges/open_files") == 0).then_some(())
    });
    assert!(gone.is_some());
    assert!(world.mount.stat("/nfs_ops/LOCK/count") >= rounds);
    // Nobody waits for these; and the CLOSE of an open frees what was locked by it too.
    let freed = || world.mount.stat("/nfs_ops/FREE_STATEID/count");
    let most = eventually(SOON, || (freed() >= rounds * 9 / 10).then_some(()));
    assert!(most.is_some(), "{} of {rounds}", freed());
}

#[test]
fn nolock_keeps_locks_to_the_host() {
    let world = World::with(|request| request.option("nolock"));
    let other = MountRequest::of(&world.server)
        .option("local_lock=flock")
        .mount();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    a.lock().expect("lock");
    assert!(
        open(&world.path("f")).try_lock().is_err(),
        "the kernel's own"
    );
    b.try_lock().expect("another host does not know");
    ofd(&b, libc::F_WRLCK, 0, 0).expect("fcntl goes to the server");
    let asked = (world.mount.stats(), other.stats());
    assert_eq!(asked.0["nfs_ops"]["LOCK"]["count"].as_u64().unwrap_or(0), 0);
    assert_eq!(asked.1["nfs_ops"]["LOCK"]["count"].as_u64(), Some(1));
}

#[test]
fn locks_survive_a_reboot_of_the_server_and_nobody_comes_between() {
    let (mut world, other) = two();
    let (a, b) = (open(&world.path("f")), open(&other.join("f")));
    a.lock().expect("lock");
    a.write_all_at(b"before", 0).expect("write");
    world.server.kill();
    world.server.restart();
    assert!(b.try_lock_shared().is_err(), "still locked after the grace");
    a.write_all_at(b"after!", 0).expect("write");
    a.unlock().expect("unlock");
    b.lock_shared().expect("lock");
    let mut seen = [0; 6];
    b.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!(&seen, b"after!");
}

/// A process that does what it is told, a line each, and says what became of it.
struct Process {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Process {
    fn new(uid: u32) -> Self {
        let script = r#"
            $| = 1; my %file; $SIG{USR1} = sub {};
            while (<STDIN>) {
                my ($what, $name, @rest) = split; my $done;
                if ($what eq "open") { $done = open($file{$name}, "+<", $rest[0]) }
                elsif ($what eq "flock") { $done = flock($file{$name}, $rest[0]) }
                else { $done = fcntl($file{$name}, $what, pack("s s x4 q q l x4", $rest[0], 0, $rest[1], $rest[2], 0)) }
                print $done ? "ok" : $! + 0, "\n";
            }"#;
        let mut command = Command::new("perl");
        command.args(["-e", script]).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.uid(uid).gid(uid);
        let mut child = command.spawn().expect("perl");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let (tell, said) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self { child, said }
    }

    /// One that has these files open, called a, b, …
    fn with(files: &[&Path]) -> Self {
        Self::of(0, files)
    }

    fn of(uid: u32, files: &[&Path]) -> Self {
        let mut process = Self::new(uid);
        for (name, path) in ('a'..).zip(files) {
            process.ok(&format!("open {name} {}", path.display()));
        }
        process
    }

    fn tell(&mut self, what: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{what}").expect("tell");
    }

    /// What became of the last thing it was told; `None` if it is at it still.
    fn says(&self, within: Duration) -> Option<String> {
        self.said.recv_timeout(within).ok()
    }

    #[track_caller]
    fn ok(&mut self, what: &str) {
        self.tell(what);
        assert_eq!(self.says(SOON).as_deref(), Some("ok"), "{what}");
    }

    /// What it waits for ends with EINTR.
    #[track_caller]
    fn interrupt(&self) {
        // SAFETY: the child is ours and is not waited for before the end.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGUSR1) };
        let said = self.says(SOON).and_then(|said| said.parse().ok());
        assert_eq!(said, Some(libc::EINTR));
    }

    /// It is told, and has to wait.
    #[track_caller]
    fn waits(&mut self, what: &str) {
        self.tell(what);
        assert_eq!(self.says(Duration::from_millis(300)), None, "{what}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// F_SETLKW of bytes of a file.
fn lock(file: char, typ: i32, start: u64, len: u64) -> String {
    format!("{} {file} {typ} {start} {len}", libc::F_SETLKW)
}

const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;

#[test]
fn who_has_a_lock_gets_it_again_more_of_it_and_what_is_beside_it_past_those_who_wait_for_him() {
    let world = World::new();
    let path = world.path("f");
    drop(open(&path));
    let flock = |how: i32| format!("flock a {how}");
    let ofd = |typ, start, len| format!("{} a {typ} {start} {len}", libc::F_OFD_SETLKW);
    for (has, waits, again) in [
        (
            lock('a', WRITE, 0, 10),
            lock('a', WRITE, 0, 10),
            lock('a', WRITE, 0, 10),
        ),
        (
            lock('a', READ, 0, 10),
            lock('a', WRITE, 0, 10),
            lock('a', WRITE, 0, 10),
        ),
        (
            lock('a', WRITE, 0, 10),
            lock('a', WRITE, 0, 100),
            lock('a', WRITE, 50, 10),
        ),
        (
            flock(libc::LOCK_EX),
            flock(libc::LOCK_EX),
            flock(libc::LOCK_EX),
        ),
        (
            flock(libc::LOCK_SH),
            flock(libc::LOCK_EX),
            flock(libc::LOCK_EX),
        ),
        (ofd(READ, 0, 10), ofd(WRITE, 0, 10), ofd(WRITE, 0, 10)),
    ] {
        let (mut holder, mut waiter) = (Process::with(&[&path]), Process::with(&[&path]));
        holder.ok(&has);
        waiter.waits(&waits);
        holder.ok(&again);
        assert_eq!(waiter.says(Duration::from_millis(200)), None, "{again}");
        drop(holder);
        assert_eq!(waiter.says(SOON).as_deref(), Some("ok"), "{again}");
    }
}

#[test]
fn processes_that_wait_for_one_another_are_told_of_it_over_any_number_and_over_files() {
    let world = World::new();
    let paths = [world.path("f"), world.path("g"), world.path("h")];
    for path in &paths {
        let file = open(path);
        file.set_permissions(fs::Permissions::from_mode(0o666))
            .expect("chmod");
    }
    for count in [2, 3, 5] {
        for files in [1, 2, 3] {
            let at = |n: u64| (('a'..).nth(n as usize % files).expect("a name"), n);
            let paths: Vec<&Path> = paths[..files].iter().map(AsRef::as_ref).collect();
            // Their calls are seen although they are other users.
            let who = |n| Process::of([0, 1000][n % 2], &paths);
            let mut all: Vec<_> = (0..count as usize).map(who).collect();
            for (process, n) in all.iter_mut().zip(0..) {
                let (file, byte) = at(n);
                process.ok(&lock(file, WRITE, byte, 1));
            }
            for n in 0..count - 1 {
                let (file, byte) = at(n + 1);
                all[n as usize].waits(&lock(file, WRITE, byte, 1));
            }
            let begun = Instant::now();
            let mut last = all.pop().expect("the last");
            last.tell(&lock('a', WRITE, 0, 1));
            let context = format!("{count} processes, {files} files");
            let said = last.says(SOON).and_then(|said| said.parse().ok());
            assert_eq!(said, Some(libc::EDEADLK), "{context}");
            assert!(begun.elapsed() < Duration::from_millis(500), "{context}");
            // It has what it had; when it is gone, they get on one after the other.
            let before = all.pop().expect("the one before");
            assert_eq!(before.says(Duration::from_millis(100)), None, "{context}");
            drop(last);
            assert_eq!(before.says(SOON).as_deref(), Some("ok"), "{context}");
            drop(before);
            while let Some(next) = all.pop() {
                assert_eq!(next.says(SOON).as_deref(), Some("ok"), "{context}");
            }
        }
    }
}

/// As in Linux: OFD locks know no EDEADLK, and a `flock` that is turned into another is
/// let go of first.
#[test]
fn descriptions_that_wait_for_one_another_wait_and_flocks_let_go() {
    let world = World::new();
    let path = world.path("f");
    drop(open(&path));
    let ofd = |byte| format!("{} a {WRITE} {byte} 1", libc::F_OFD_SETLKW);
    let (mut a, mut b) = (Process::with(&[&path]), Process::with(&[&path]));
    a.ok(&ofd(0));
    b.ok(&ofd(1));
    a.waits(&ofd(1));
    b.waits(&ofd(0));
    assert_eq!(a.says(Duration::from_secs(2)), None);
    drop(b);
    assert_eq!(a.says(SOON).as_deref(), Some("ok"));
    drop(a);

    let flock = |how: i32| format!("flock a {how}");
    let (mut a, mut b) = (Process::with(&[&path]), Process::with(&[&path]));
    a.ok(&flock(libc::LOCK_SH));
    b.ok(&flock(libc::LOCK_SH));
    a.waits(&flock(libc::LOCK_EX));
    b.tell(&flock(libc::LOCK_EX));
    assert_eq!(a.says(SOON).as_deref(), Some("ok"));
    assert_eq!(b.says(Duration::from_millis(200)), None);
    a.ok(&flock(libc::LOCK_UN));
    assert_eq!(b.says(SOON).as_deref(), Some("ok"));
}

/// A lock of another's that becomes less lets those in whom that is enough for.
#[test]
fn a_waiter_is_woken_by_a_downgrade() {
    let world = World::new();
    let path = world.path("f");
    drop(open(&path));
    let (mut holder, mut waiter) = (Process::with(&[&path]), Process::with(&[&path]));
    for how in [libc::F_SETLKW, libc::F_SETLK] {
        holder.ok(&lock('a', WRITE, 0, 10));
        waiter.waits(&lock('a', READ, 0, 10));
        let begun = Instant::now();
        holder.ok(&format!("{how} a {READ} 0 10"));
        assert_eq!(waiter.says(SOON).as_deref(), Some("ok"));
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(250), "{took:?}");
        waiter.ok(&lock('a', libc::F_UNLCK, 0, 10));
    }
}

#[track_caller]
fn would_block(result: Result<(), TryLockError>) {
    assert!(
        matches!(result, Err(TryLockError::WouldBlock)),
        "{result:?}"
    );
}

/// To the server they are two owners, whoever holds them.
#[test]
fn a_flock_and_a_posix_lock_of_one_process_on_one_file_exclude_each_other() {
    let world = World::new();
    let (one, two) = (open(&world.path("f")), open(&world.path("f")));
    let posix = |file: &File, typ| fcntl(file, libc::F_SETLK, typ, 0, 10).map(|_| ());
    for other in [&one, &two] {
        one.lock().expect("flock");
        denied(posix(other, WRITE));
        denied(posix(other, READ));
        one.unlock().expect("unlock");
        posix(other, WRITE).expect("POSIX lock");
        would_block(one.try_lock());
        would_block(one.try_lock_shared());
        posix(other, READ).expect("downgrade");
        would_block(one.try_lock());
        one.try_lock_shared().expect("readers share");
        denied(posix(other, WRITE));
        posix(other, libc::F_UNLCK).expect("unlock");
        one.try_lock().expect("upgrade");
        one.unlock().expect("unlock");
    }
}

/// NFS has one owner for both: the open file description.
#[test]
fn a_flock_and_an_ofd_lock_of_one_description_are_one_lock() {
    let (world, other) = two();
    let (one, two) = (open(&world.path("f")), open(&world.path("f")));
    let theirs = open(&other.join("f"));
    ofd(&one, WRITE, 0, 0).expect("OFD lock");
    would_block(two.try_lock_shared());
    one.try_lock().expect("the same owner");
    denied(ofd(&theirs, READ, 0, 0));
    denied(ofd(&two, READ, 0, 0));
    one.unlock().expect("unlock");
    ofd(&theirs, WRITE, 0, 0).expect("both have gone");
}

/// Each client decides by itself, and knows nothing of who waits on another host. Within one
/// host it is EDEADLK.
#[test]
fn a_deadlock_between_hosts_is_not_told_and_ends_as_soon_as_one_lets_go() {
    let (world, other) = two();
    let (here, there) = (world.mount.path(), other.path());
    let files = |host: &Path| [host.join("f"), host.join("g")];
    for file in files(here) {
        drop(open(&file));
    }
    let [mut one, mut two] = [here, there].map(|host| {
        let [f, g] = files(host);
        Process::with(&[&f, &g])
    });
    one.ok(&lock('a', WRITE, 0, 1));
    two.ok(&lock('b', WRITE, 0, 1));
    one.tell(&lock('b', WRITE, 0, 1));
    two.tell(&lock('a', WRITE, 0, 1));
    // Neither EDEADLK nor the lock.
    assert_eq!(one.says(Duration::from_secs(3)), None);
    assert_eq!(two.says(Duration::from_millis(1)), None);
    two.interrupt();
    assert_eq!(
        one.says(Duration::from_millis(500)),
        None,
        "it has it still"
    );
    two.ok(&lock('b', libc::F_UNLCK, 0, 1));
    assert_eq!(one.says(Duration::from_secs(2)).as_deref(), Some("ok"));
}
