//! One daemon after another is killed, under programs of many kinds on two hosts: none of them
//! may notice. `scripts/kills` asks for many.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::checker::Chance;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest, served_by};
use crate::fixtures::process::run;
use crate::fixtures::proxy::Proxy;
use crate::fixtures::{setting, sys};
use crate::posix::fsx;

const SOON: Duration = Duration::from_secs(120);
/// Operations of fsx in one turn.
const FSX_OPERATIONS: u64 = 1_000;
/// Names in the directory that is listed again and again.
const NAMES: usize = 300;
/// Files in the archive that is unpacked again and again.
const ARCHIVED: usize = 60;

/// What a program has done: turns, and the longest of them.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    turns: u64,
    longest: Duration,
    /// Turns that ended with an error as the server was restarted.
    unsure: u64,
}

/// What all programs hear of.
#[derive(Default)]
struct Heard {
    /// They are to end.
    stop: AtomicBool,
    /// Moves before the server is killed and when it is there again.
    restarts: AtomicU64,
}

/// What an error of a program is.
#[derive(Clone, Copy, PartialEq)]
enum Errors {
    /// The end of it.
    Never,
    /// As well, if the server was not restarted meanwhile: a change of names that it had made and
    /// not answered is EEXIST or ENOENT when it is asked for once more, as the rule book says.
    OfNames,
}

/// A program that does its work again and again until it is told to stop.
struct Program {
    name: &'static str,
    thread: JoinHandle<io::Result<Done>>,
}

impl Program {
    fn start(
        name: &'static str,
        (errors, heard): (Errors, &Arc<Heard>),
        mut work: impl FnMut(u64) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let heard = Arc::clone(heard);
        let thread = thread::spawn(move || {
            let mut done = Done::default();
            while !heard.stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let before = heard.restarts.load(Ordering::SeqCst);
                if let Err(why) = work(done.turns) {
                    let is_unsure = heard.restarts.load(Ordering::SeqCst) != before;
                    if errors == Errors::Never || !is_unsure {
                        return Err(io::Error::other(format!("turn {}: {why}", done.turns)));
                    }
                    done.unsure += 1;
                }
                done.longest = done.longest.max(begun.elapsed());
                done.turns += 1;
            }
            Ok(done)
        });
        Self { name, thread }
    }

    fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    #[track_caller]
    fn end(self) -> Done {
        let name = self.name;
        let ended = self.thread.join();
        let done = ended.unwrap_or_else(|_| panic!("{name} has panicked"));
        let done = done.unwrap_or_else(|why| panic!("{name}: {why}"));
        println!(
            "{name}: {} turns, the longest {:?}, {} unsure",
            done.turns, done.longest, done.unsure
        );
        done
    }
}

fn must(holds: bool, what: &str) -> io::Result<()> {
    match holds {
        true => Ok(()),
        false => Err(io::Error::other(what.to_owned())),
    }
}

/// An error that says which call it is of.
fn at<T>(call: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|why| io::Error::new(why.kind(), format!("{call}: {why}")))
}

/// Counts and appends a line under a lock that the other host wants, too.
fn counts(dir: PathBuf, host: &'static str) -> impl FnMut(u64) -> io::Result<()> {
    let open = |name: &str| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .open(dir.join(name))
    };
    let (counter, log) = (open("counter"), dir.join("entries"));
    let counter = counter.expect("open");
    move |turn| {
        at("lock", sys::record_lock(&counter, libc::F_WRLCK))?;
        let mut number = [0; 20];
        let len = at("read", counter.read_at(&mut number, 0))?;
        let text = std::str::from_utf8(&number[..len]).expect("digits");
        let number: u64 = text.trim().parse().unwrap_or(0);
        let next = format!("{:019}\n", number + 1);
        at("write", counter.write_all_at(next.as_bytes(), 0))?;
        let mut options = OpenOptions::new();
        let mut log = at("open", options.append(true).create(true).open(&log))?;
        at(
            "append",
            log.write_all(format!("{host} {turn}\n").as_bytes()),
        )?;
        drop(log);
        at("unlock", sys::record_lock(&counter, libc::F_UNLCK))?;
        // So that the other is not starved: nobody's turn comes after another's.
        thread::sleep(Duration::from_millis(10));
        Ok(())
    }
}

/// A small tree that is made, moved and removed: every call has one right answer. The other host
/// is asked what is there if one is wrong.
fn tree(dir: PathBuf, there: PathBuf) -> impl FnMut(u64) -> io::Result<()> {
    move |turn| {
        let top = dir.join(format!("tree-{turn}"));
        let file = |name: &str| top.join(name);
        at("mkdir", fs::create_dir(&top))?;
        let mut options = OpenOptions::new();
        let exclusive = options.write(true).create_new(true);
        let made = at("create", exclusive.open(file("a")))?;
        at("write", (&made).write_all(b"content"))?;
        at("close", made.sync_all())?;
        at("link", fs::hard_link(file("a"), file("b")))?;
        at("rename", fs::rename(file("a"), file("c")))?;
        at("symlink", std::os::unix::fs::symlink("c", file("d")))?;
        let links = at("stat", fs::metadata(file("d")))?.nlink();
        must(links == 2, "two links")?;
        let mut names: Vec<_> = at("readdir", fs::read_dir(&top))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        must(
            names == ["b", "c", "d"],
            &format!("three names, not {names:?}"),
        )?;
        at("rename over", fs::rename(file("b"), file("c")))?;
        // Two names of one file: nothing is done.
        at("unlink", fs::remove_file(file("b")))?;
        let content = at("read", fs::read(file("c")))?;
        must(content == b"content", "its content")?;
        at("unlink", fs::remove_file(file("d")))?;
        at("unlink", fs::remove_file(file("c")))?;
        fs::remove_dir(&top).map_err(|why| {
            let left = fs::read_dir(there.join(format!("tree-{turn}")));
            let left = left.map(|names| names.flatten().collect::<Vec<_>>());
            io::Error::other(format!("rmdir: {why}; the other host sees {left:?}"))
        })
    }
}

/// A directory that nobody changes, in the middle of whose listing a daemon may die.
fn listing(dir: &Path) -> impl FnMut(u64) -> io::Result<()> + use<> {
    let dir = dir.join("listed");
    fs::create_dir(&dir).expect("mkdir");
    for number in 0..NAMES {
        fs::write(dir.join(format!("name-{number}")), "").expect("write");
    }
    move |_| {
        let mut names = std::collections::HashSet::new();
        for entry in at("readdir", fs::read_dir(&dir))? {
            let name = at("readdir", entry)?.file_name();
            must(names.insert(name.clone()), &format!("{name:?} twice"))?;
        }
        must(names.len() == NAMES, &format!("{} names", names.len()))
    }
}

/// A removed file that is open still, and read and written.
fn removed(dir: &Path) -> impl FnMut(u64) -> io::Result<()> + use<> {
    let path = dir.join("removed");
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true);
    let file = options.open(&path).expect("create");
    fs::remove_file(&path).expect("unlink");
    move |turn| {
        let block = [turn as u8; 512];
        let offset = turn % 64 * 512;
        at("write", file.write_all_at(&block, offset))?;
        let mut back = [0; 512];
        at("read", file.read_exact_at(&mut back, offset))?;
        must(back == block, "its bytes")?;
        must(at("fstat", file.metadata())?.nlink() == 0, "no link")
    }
}

fn command(words: &[&str], dir: &Path) -> io::Result<()> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(dir);
    command
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "a");
        command.env(format!("GIT_{who}_EMAIL"), "a@example.com");
    }
    let done = run(&mut command, SOON);
    must(
        done.status.success(),
        &format!("{words:?}: {}\n{}{}", done.status, done.stdout, done.stderr),
    )
}

/// A repository that is committed to, and verified; another one after an error.
fn git(dir: &Path) -> impl FnMut(u64) -> io::Result<()> + use<> {
    let (all, mut repository) = (dir.to_owned(), None);
    move |turn| {
        let dir = match repository.take() {
            Some(dir) => dir,
            None => {
                let dir = all.join(format!("repository-{turn}"));
                at("mkdir", fs::create_dir(&dir))?;
                command(&["git", "init", "-q", "-b", "main"], &dir)?;
                dir
            }
        };
        fs::write(dir.join(format!("file-{}", turn % 20)), format!("{turn}\n"))?;
        command(&["git", "add", "--all"], &dir)?;
        command(&["git", "commit", "-q", "-m", &turn.to_string()], &dir)?;
        if turn % 10 == 9 {
            command(&["git", "fsck", "--full", "--strict"], &dir)?;
        }
        repository = Some(dir);
        Ok(())
    }
}

/// An archive that is unpacked, compared and removed.
fn unpacks(dir: &Path, local: &Path) -> impl FnMut(u64) -> io::Result<()> + use<> {
    let (source, archive) = (local.join("source"), local.join("archive.tar"));
    fs::create_dir(&source).expect("mkdir");
    for number in 0..ARCHIVED {
        let file = source.join(format!("file-{number}"));
        fs::write(&file, vec![number as u8; 300 * number]).expect("write");
        sys::chmod(&file, 0o600 | (number as u32 % 64)).expect("chmod");
    }
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (source, archive) = (text(&source), text(&archive));
    command(&["tar", "-cf", &archive, "-C", &source, "."], local).expect("tar -c");
    let dir = dir.to_owned();
    move |turn| {
        let to = dir.join(format!("unpacked-{turn}"));
        at("mkdir", fs::create_dir(&to))?;
        command(&["tar", "-xpf", &archive], &to)?;
        command(&["tar", "-df", &archive], &to)?;
        command(&["diff", "-r", &source, "."], &to)?;
        at("rm -r", fs::remove_dir_all(&to))
    }
}

/// An archive that is unpacked and synced: then the other host has all of it.
fn unpacks_for(
    dir: &Path,
    there: &Path,
    local: &Path,
) -> impl FnMut(u64) -> io::Result<()> + use<> {
    let archive = local
        .join("archive.tar")
        .to_str()
        .expect("UTF-8")
        .to_owned();
    let (dir, there) = (dir.to_owned(), there.to_owned());
    move |turn| {
        let name = format!("for-another-{turn}");
        let (to, seen) = (dir.join(&name), there.join(&name));
        at("mkdir", fs::create_dir(&to))?;
        command(&["tar", "-xpf", &archive], &to)?;
        at("fsync", File::open(&to).and_then(|dir| dir.sync_all()))?;
        command(&["tar", "-df", &archive], &seen)?;
        // Names that are used again, while what had them is on its way.
        for number in 0..20 {
            let name = |of: &str| to.join(format!("{of}-{number}"));
            at("rename", fs::rename(name("file"), name("kept")))?;
            at("write", fs::write(name("file"), format!("new {number}")))?;
        }
        at("fsync", File::open(&to).and_then(|dir| dir.sync_all()))?;
        for number in 0..20 {
            let read = |of: &str| at("read", fs::read(seen.join(format!("{of}-{number}"))));
            must(
                read("kept")? == vec![number as u8; 300 * number],
                "what it was",
            )?;
            must(
                read("file")? == format!("new {number}").as_bytes(),
                "what is new",
            )?;
        }
        at("rm -r", fs::remove_dir_all(&to))
    }
}

/// Names all programs, which work in `here`, a directory of the mount whose daemons are killed, and in
/// `there`, the same directory of another host.
fn programs(here: &Path, there: &Path, local: &Path, heard: &Arc<Heard>) -> Vec<Program> {
    let file = here.join("of fsx");
    let (never, of_names) = ((Errors::Never, heard), (Errors::OfNames, heard));
    vec![
        Program::start("counter here", never, counts(here.into(), "here")),
        Program::start("counter there", never, counts(there.into(), "there")),
        Program::start("tree", of_names, tree(here.into(), there.into())),
        Program::start("listing", never, listing(here)),
        Program::start("removed file", never, removed(here)),
        Program::start("git", of_names, git(here)),
        Program::start("tar", of_names, unpacks(here, local)),
        Program::start("tar, then sync", of_names, unpacks_for(here, there, local)),
        Program::start("fsx", never, move |turn| {
            fsx(&file, FSX_OPERATIONS, turn);
            Ok(())
        }),
    ]
}

/// Each line of a host is there once, and in its order; the counter is their number.
fn assert_counted(dir: &Path, here: Done, there: Done) {
    let log = fs::read_to_string(dir.join("entries")).expect("read");
    for (host, done) in [("here", here), ("there", there)] {
        let turns = log
            .lines()
            .filter_map(|line| line.strip_prefix(host)?.strip_prefix(' '));
        let turns: Vec<u64> = turns.map(|turn| turn.parse().expect("a turn")).collect();
        assert!(turns.iter().copied().eq(0..done.turns), "{host}: {turns:?}");
    }
    let counter = fs::read_to_string(dir.join("counter")).expect("read");
    let counter: u64 = counter.trim().parse().expect("a number");
    assert_eq!(counter, here.turns + there.turns);
}

/// Names below a directory of the server that no program has given.
fn hidden_names(dir: &Path) -> Vec<PathBuf> {
    let mut hidden = Vec::new();
    for entry in fs::read_dir(dir).expect("readdir").flatten() {
        match entry.file_type().expect("a kind").is_dir() {
            true => hidden.extend(hidden_names(&entry.path())),
            false if entry.file_name().to_string_lossy().starts_with(".nfs") => {
                hidden.push(entry.path());
            }
            false => {}
        }
    }
    hidden
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

struct Kills {
    count: u64,
    chance: Chance,
    /// Every so manieth comes together with a restart of the server; 0 for none.
    restarts: u64,
    /// Every so manieth comes while the server stands still; 0 for none.
    stops: u64,
    /// Every so manieth comes as the line is cut; 0 for none.
    cuts: u64,
}

impl Kills {
    /// Kills daemons. How long it took each time until a question was answered that goes to the
    /// server.
    fn kill(
        &mut self,
        mount: &Mount,
        (line, server): (&Proxy, &mut Server),
        (programs, heard): (&[Program], &Heard),
    ) -> Vec<Duration> {
        let mut pauses = Vec::new();
        for number in 1..=self.count {
            thread::sleep(Duration::from_millis(50 + self.chance.below(800)));
            if let Some(failed) = programs.iter().find(|program| program.has_failed()) {
                println!("after {number} kills: {} has ended", failed.name);
                break;
            }
            let daemon = served_by(mount.keeper()).expect("a keeper");
            let is_nth = |every: u64| every > 0 && number.is_multiple_of(every);
            let stopped = is_nth(self.stops).then(|| server.stopped());
            let killed = Instant::now();
            let is_cut = is_nth(self.cuts);
            let cut_first = is_cut && self.chance.below(2) == 0;
            if cut_first {
                line.cut();
            }
            // SAFETY: it is the child of this mount's keeper, which waits for its end.
            unsafe { libc::kill(daemon, libc::SIGKILL) };
            if is_cut && !cut_first {
                line.cut();
            }
            if stopped.is_some() {
                thread::sleep(Duration::from_millis(500));
            }
            drop(stopped);
            if is_nth(self.restarts) {
                heard.restarts.fetch_add(1, Ordering::SeqCst);
                server.restart();
                heard.restarts.fetch_add(1, Ordering::SeqCst);
            }
            let absent = fs::metadata(mount.join(format!("absent-{number}")));
            let answered = absent.expect_err("no such file").kind();
            assert_eq!(answered, io::ErrorKind::NotFound, "after {number} kills");
            pauses.push(killed.elapsed());
            // Half of the next kills come while the server is in its grace period.
            if is_nth(self.restarts) && self.chance.below(2) == 0 {
                File::create(mount.join("behind the grace period")).expect("create");
            }
        }
        pauses.sort_unstable();
        pauses
    }
}

/// `EFS_FUSE_KILLS` of them (10), from `EFS_FUSE_SEED` on; every
/// `EFS_FUSE_KILLS_RESTARTS`th with a restart of the server, every `EFS_FUSE_KILLS_STOPS`th while that
/// stands still, every `EFS_FUSE_KILLS_CUTS`th as the line is cut. `EFS_FUSE_KILLS_LOG` is a file for
/// what the daemons have to say.
#[test]
fn no_program_notices_that_one_daemon_after_another_is_killed() {
    kill_daemons("");
}

/// The same with `writeback`.
#[test]
fn no_program_notices_that_daemons_with_changes_ahead_are_killed() {
    kill_daemons("writeback");
}

fn kill_daemons(option: &str) {
    let mut kills = Kills {
        count: setting("EFS_FUSE_KILLS", 10),
        chance: Chance(setting("EFS_FUSE_SEED", 18)),
        restarts: setting("EFS_FUSE_KILLS_RESTARTS", 0),
        stops: setting("EFS_FUSE_KILLS_STOPS", 0),
        cuts: setting("EFS_FUSE_KILLS_CUTS", 0),
    };
    let limit = Duration::from_secs(300 + kills.count * 10);
    let mut server = Server::start(ServerOptions {
        lease: 6,
        ..ServerOptions::default()
    });
    let line = Proxy::to(server.address());
    let request = MountRequest::new(server.device("/"), line.port());
    let mut request = request.option("takeover=crash");
    if !option.is_empty() {
        request = request.option(option);
    }
    if let Ok(log) = std::env::var("EFS_FUSE_KILLS_LOG") {
        request = request.option("debug").option(&format!("log={log}"));
    }
    let request = request.env("EFS_FUSE_TEST_CRASHES", "1").time_limit(limit);
    let mount = request.mount();
    let other = MountRequest::of(&server).time_limit(limit).mount();
    let local = tempfile::tempdir().expect("temporary directory");
    let heard = Arc::new(Heard::default());
    let programs = programs(mount.path(), other.path(), local.path(), &heard);

    let pauses = kills.kill(&mount, (&line, &mut server), (&programs, &heard));

    heard.stop.store(true, Ordering::Relaxed);
    let mut done = Vec::new();
    for program in programs {
        done.push(program.end());
    }
    assert_counted(other.path(), done[0], done[1]);
    let [median, most] = [50, 99].map(|percent| percentile(&pauses, percent));
    println!(
        "{} kills; a pause is {median:?} at the median, {most:?} at the 99th percentile",
        pauses.len()
    );
    assert_eq!(pauses.len() as u64, kills.count);
    mount.unmount();
    assert_eq!(hidden_names(&server.export()), [""; 0].map(PathBuf::from));
}
