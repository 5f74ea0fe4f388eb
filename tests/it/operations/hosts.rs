//! Locks between hosts with processes of their own (`fixtures::host`): contention,
//! and hosts that die or are cut off with a lock in hand.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::ServerOptions;
use crate::fixtures::host::{Host, Hosts};
use crate::fixtures::process::{Background, eventually};
use crate::fixtures::setting;

const SOON: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(600);

/// `lock` and `unlock` of the file handle $f, as $how says. What POSIX locks belong
/// to is a process, and perl is the one that every Debian has.
const LOCKS: &str = r#"
    use Fcntl ":flock";
    sub record { fcntl($f, $_[0], pack("s s x4 q q l x4", $_[1], 0, 0, 8, 0)) }
    sub lock_it { ($how eq "flock" ? flock($f, LOCK_EX) : record(7, 1)) or die "lock: $!" }
    sub unlock_it { ($how eq "flock" ? flock($f, LOCK_UN) : record(6, 2)) or die "unlock: $!" }
"#;

fn perl(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("perl");
    command
        .args(["-e", &format!("our ($f, $how);{LOCKS}{script}")])
        .args(arguments)
        .current_dir("/");
    command
}

/// Adds one to a number in a file, so many times, each under a lock.
const COUNT: &str = r#"
    (my $file, $how, my $times) = @ARGV;
    open($f, "+<", $file) or die "open: $!";
    for (1 .. $times) {
        lock_it();
        sysseek($f, 0, 0);
        sysread($f, my $bytes, 8) == 8 or die "read: $!";
        sysseek($f, 0, 0);
        syswrite($f, pack("Q<", 1 + unpack("Q<", $bytes))) == 8 or die "write: $!";
        unlock_it();
    }
"#;

/// 3 hosts × 4 processes; `EFS_FUSE_COUNTER=10000` for the long run.
#[test]
fn a_counter_under_a_lock_ends_at_the_sum_of_three_hosts() {
    let each = setting("EFS_FUSE_COUNTER", 240).div_ceil(12);
    let hosts = Hosts::with(3, ServerOptions::default(), &[], LIMIT * 2);
    for how in ["flock", "fcntl"] {
        fs::write(hosts.hosts[0].path(how), [0; 8]).expect("write");
        let begun = Instant::now();
        let mut counters = Vec::new();
        for host in &hosts.hosts {
            for _ in 0..4 {
                let file = format!("/volumes/{how}");
                let count = perl(COUNT, &[&file, how, &each.to_string()]);
                counters.push(host.spawn(count).expect("perl"));
            }
        }
        for counter in &mut counters {
            let status = counter.wait(LIMIT).expect("the counter ends");
            assert!(status.success(), "{how}: {status}");
        }
        println!("{how}: {} increments in {:?}", each * 12, begun.elapsed());
        let sum = fs::read(hosts.behind(how)).expect("read behind");
        assert_eq!(sum, (each * 12).to_le_bytes(), "{how}");
    }
}

/// Adds one under a lock again and again, until the file STOP appears.
const HAMMER: &str = r#"
    (my $file, $how, my $stop) = @ARGV;
    open($f, "+<", $file) or die "open: $!";
    until (-e $stop) {
        lock_it();
        sysseek($f, 0, 0);
        sysread($f, my $bytes, 8) == 8 or die "read: $!";
        sysseek($f, 0, 0);
        syswrite($f, pack("Q<", 1 + unpack("Q<", $bytes))) == 8 or die "write: $!";
        unlock_it();
    }
"#;

/// Two processes that hand a lock to each other all the time leave room for a third
/// one, on another host, that has to ask the server for it.
#[test]
fn a_host_that_hands_a_lock_around_does_not_starve_the_others() {
    let hosts = Hosts::with(3, ServerOptions::default(), &[], LIMIT);
    fs::write(hosts.hosts[0].path("flock"), [0; 8]).expect("write");
    let dir = tempfile::tempdir().expect("temporary directory");
    let stop = dir.path().join("stop");
    let arguments = ["/volumes/flock", "flock", stop.to_str().expect("UTF-8")];
    let mut busy: Vec<_> = (0..3)
        .map(|_| {
            hosts.hosts[0]
                .spawn(perl(HAMMER, &arguments))
                .expect("perl")
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    let mut waits = Vec::new();
    for host in hosts.hosts[1..].iter().cycle().take(8) {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(host.path("flock"))
            .expect("open");
        let begun = Instant::now();
        file.lock().expect("lock");
        waits.push(begun.elapsed());
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).expect("read");
        thread::sleep(Duration::from_millis(100));
        let mut again = [0; 8];
        file.read_exact_at(&mut again, 0).expect("read");
        assert_eq!(bytes, again, "nobody counts meanwhile");
        file.unlock().expect("unlock");
    }
    fs::write(&stop, "").expect("stop");
    for process in &mut busy {
        assert!(process.wait(SOON).is_some_and(|status| status.success()));
    }
    let sum = fs::read(hosts.behind("flock")).expect("read behind");
    let sum = u64::from_le_bytes(sum.try_into().expect("eight bytes"));
    waits.sort();
    println!("{sum} rounds; the others waited {waits:?}");
    assert!(sum > 20, "the lock went around");
    assert!(waits[7] < Duration::from_secs(10), "{waits:?}");
}

/// Appends lines of several lengths, each by one write(2).
const APPEND: &str = r#"
    use Fcntl;
    my ($file, $name, $lines) = @ARGV;
    sysopen(my $log, $file, O_WRONLY | O_APPEND | O_CREAT) or die "open: $!";
    for my $line (1 .. $lines) {
        my $text = "$name $line " . "x" x ($line * 37 % 3000) . "\n";
        syswrite($log, $text) == length($text) or die "write: $!";
    }
    close($log) or die "close: $!";
"#;

#[test]
fn appends_of_several_processes_of_one_host_are_all_there_and_none_is_cut() {
    let hosts = Hosts::new(1);
    let (writers, lines) = (4, 200);
    let mut running: Vec<_> = (0..writers)
        .map(|number| {
            let (name, count) = (number.to_string(), lines.to_string());
            let append = perl(APPEND, &["/volumes/log", &name, &count]);
            hosts.hosts[0].spawn(append).expect("perl")
        })
        .collect();
    for writer in &mut running {
        assert!(writer.wait(SOON * 3).is_some_and(|status| status.success()));
    }
    let log = fs::read_to_string(hosts.behind("log")).expect("read behind");
    let mut seen: Vec<Vec<usize>> = vec![Vec::new(); writers];
    for text in log.lines() {
        let words: Vec<_> = text.splitn(3, ' ').collect();
        let [name, line, filling] = words[..] else {
            panic!("cut: {text}")
        };
        let (name, line): (usize, usize) = (name.parse().expect(text), line.parse().expect(text));
        assert_eq!(filling, "x".repeat(line * 37 % 3000), "{name} {line}");
        seen[name].push(line);
    }
    let all: Vec<_> = (1..=lines).collect();
    assert!(
        seen.iter().all(|lines| *lines == all),
        "each one's in order"
    );
}

/// Locks the file, writes its name into it where others see it, makes MARK and
/// waits.
const HOLD: &str = r#"
    (my $file, $how, my $name, my $mark) = @ARGV;
    open($f, "+<", $file) or die "open: $!";
    lock_it();
    syswrite($f, $name) or die "write: $!";
    require IO::Handle;
    $f->sync or die "sync: $!";
    open(my $m, ">", $mark) or die "mark: $!";
    close $m;
    sleep 1000;
"#;

/// A holder, and the mark that appears when it holds.
fn holder(host: &Host, how: &str) -> (Background, std::path::PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mark = dir.path().join("mark");
    let name = host.name();
    let text = mark.to_str().expect("UTF-8");
    let hold = perl(HOLD, &[&format!("/volumes/{how}"), how, &name, text]);
    (host.spawn(hold).expect("perl"), mark, dir)
}

#[test]
fn a_lock_of_a_dead_host_is_freed_when_its_lease_is_over() {
    let options = short_lease();
    let lease = options.lease;
    let mut hosts = Hosts::with(3, options, &[], LIMIT);
    for how in ["flock", "fcntl"] {
        fs::write(hosts.hosts[1].path(how), "nobody").expect("write");
    }
    let dying = hosts.hosts.remove(0);
    let held: Vec<_> = ["flock", "fcntl"].map(|how| holder(&dying, how)).into();
    for (_, mark, _) in &held {
        eventually(SOON, || mark.exists().then_some(())).expect("locked");
    }
    // One host waits for the one lock, the other for the other.
    let waiting = [
        holder(&hosts.hosts[0], "flock"),
        holder(&hosts.hosts[1], "fcntl"),
    ];
    thread::sleep(Duration::from_secs(1));
    dying.power_off();
    let died = Instant::now();
    for (_, mark, _) in &waiting {
        let limit = Duration::from_secs(u64::from(lease) * 3 + 10);
        eventually(limit, || mark.exists().then_some(())).expect("freed");
        let took = died.elapsed();
        println!("freed {took:?} after the death, lease {lease} s");
        // The last renewal was at most two thirds of a lease ago.
        assert!(took > Duration::from_secs(u64::from(lease) / 3), "{took:?}");
    }
    for (how, host) in ["flock", "fcntl"].iter().zip(&hosts.hosts) {
        assert_eq!(
            fs::read_to_string(host.path(how)).expect("read"),
            host.name()
        );
    }
}

/// Says what a holder of a lost lock can still do when its cable is back.
const LOSE: &str = r#"
    (my $file, $how, my $go, my $report) = @ARGV;
    open($f, "+<", $file) or die "open: $!";
    lock_it();
    open(my $m, ">", "$go.held") or die; close $m;
    select(undef, undef, undef, 0.02) until -e $go;
    my $wrote = syswrite($f, "stale") ? "wrote" : $!{EIO} ? "EIO" : "$!";
    my $synced = $f->sync ? "synced" : $!{EIO} ? "EIO" : "$!";
    close $f;
    open($f, "+<", $file) or die "open: $!";
    my $bytes = "";
    sysread($f, $bytes, 100) or $bytes = "nothing: $!";
    open(my $r, ">", "$report.new") or die; print $r "$wrote, $synced, $bytes"; close $r;
    rename "$report.new", $report;
"#;

/// A process that runs [`LOSE`].
struct Loser {
    process: Background,
    how: &'static str,
    dir: tempfile::TempDir,
}

impl Loser {
    /// It has the lock when this comes back.
    fn start(host: &Host, how: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let [go, report] = ["go", "report"].map(|name| dir.path().join(name));
        let arguments = [
            &format!("/volumes/{how}"),
            how,
            go.to_str().expect("UTF-8"),
            report.to_str().expect("UTF-8"),
        ];
        let script = format!("use IO::Handle; use Errno;{LOSE}");
        let process = host.spawn(perl(&script, &arguments)).expect("perl");
        let held = dir.path().join("go.held");
        eventually(SOON, || held.exists().then_some(())).expect("locked");
        Self { process, how, dir }
    }

    /// Lets it go on, now that `other` has the lock.
    #[track_caller]
    fn finds_it_lost(mut self, hosts: &Hosts, other: &Host) {
        fs::write(self.dir.path().join("go"), "").expect("go");
        let status = self.process.wait(Duration::from_secs(60)).expect("it ends");
        assert!(status.success(), "{status}");
        let report = fs::read_to_string(self.dir.path().join("report")).expect("a report");
        // The write may be accepted before the loss is known, fsync tells of it.
        let lost = ["EIO", "wrote"].map(|wrote| format!("{wrote}, EIO, {}", other.name()));
        assert!(lost.contains(&report), "{report}");
        let there = fs::read_to_string(hosts.behind(self.how)).expect("read behind");
        assert_eq!(there, other.name());
    }
}

#[test]
fn a_host_that_was_cut_off_longer_than_its_lease_finds_its_lock_lost_and_changes_nothing() {
    let options = short_lease();
    let limit = Duration::from_secs(u64::from(options.lease) * 3 + 10);
    let hosts = Hosts::with(2, options, &[], LIMIT);
    let [cut, other] = &hosts.hosts[..] else {
        panic!("two hosts")
    };
    fs::write(other.path("fcntl"), "nobody").expect("write");
    let loser = Loser::start(cut, "fcntl");
    let (_holder, mark, _dir) = holder(other, "fcntl");
    cut.cut_off();
    eventually(limit, || mark.exists().then_some(())).expect("freed");
    cut.plug_in();
    loser.finds_it_lost(&hosts, other);
}

fn short_lease() -> ServerOptions {
    ServerOptions {
        lease: 6,
        ..ServerOptions::default()
    }
}

/// Writes a file before the cable is pulled and one while it is out, and says when
/// both are stable. Not the test's own process: one that forks closes what is open
/// here in the child, which waits for the server.
const WRITE: &str = r#"
    (my $marks) = @ARGV;
    sub file { open(my $f, "+>", "/volumes/$_[0]") or die "open: $!"; $f }
    sub fill { for (1 .. 48) { syswrite($_[0], $_[1] x 65536) == 65536 or die "write: $!" } }
    sub mark { open(my $m, ">", "$marks/$_[0]") or die "mark: $!"; close $m }
    my ($before, $during, $idle) = (file("before"), file("during"), file("idle"));
    syswrite($idle, "idle"); $idle->sync or die "fsync: $!";
    fill($before, "b");
    mark("ready");
    select(undef, undef, undef, 0.02) until -e "$marks/cut";
    fill($during, "d");
    mark("written");
    for ($before, $during, $idle) { $_->sync or die "fsync: $!" }
    sysseek($idle, 0, 0);
    sysread($idle, my $text, 10) == 4 or die "read: $!";
    mark("stable");
"#;

/// That writer on a host, up to where the host is cut off and everything written.
fn write_and_cut(host: &Host) -> (Background, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let script = format!("use IO::Handle;{WRITE}");
    let writer = perl(&script, &[dir.path().to_str().expect("UTF-8")]);
    let writer = host.spawn(writer).expect("perl");
    let mark = |name: &str| {
        let mark = dir.path().join(name);
        eventually(SOON, || mark.exists().then_some(())).unwrap_or_else(|| panic!("{name}"));
    };
    mark("ready");
    host.cut_off();
    fs::write(dir.path().join("cut"), "").expect("mark");
    mark("written");
    (writer, dir)
}

#[track_caller]
fn is_stable(hosts: &Hosts, (mut writer, dir): (Background, tempfile::TempDir)) {
    let status = writer.wait(Duration::from_secs(60)).expect("it ends");
    assert!(status.success() && dir.path().join("stable").exists());
    for (name, byte) in [("before", b'b'), ("during", b'd')] {
        let there = fs::read(hosts.behind(name)).expect("read behind");
        assert!(there == vec![byte; 48 << 16], "{name}");
    }
}

/// Nobody took anything from the host meanwhile: what it had open and had not
/// written yet arrives, though the server has forgotten it.
#[test]
fn a_host_that_was_cut_off_longer_than_its_lease_loses_no_data() {
    let hosts = Hosts::with(2, short_lease(), &[], LIMIT);
    let [cut, other] = &hosts.hosts[..] else {
        panic!("two hosts")
    };
    let writer = write_and_cut(cut);
    thread::sleep(Duration::from_secs(16));
    // So that the server looks who is still there.
    fs::write(other.path("other"), b"x").expect("write");
    cut.plug_in();
    is_stable(&hosts, writer);
}

/// The server reboots while a host is cut off, and its grace is over when that is
/// back: others may have had the lock.
#[test]
fn a_host_that_missed_the_grace_period_loses_its_lock_and_no_data() {
    let mut hosts = Hosts::with(2, short_lease(), &[], LIMIT);
    fs::write(hosts.hosts[0].path("flock"), b"before").expect("write");
    let loser = Loser::start(&hosts.hosts[0], "flock");
    let writer = write_and_cut(&hosts.hosts[0]);
    hosts.server.kill();
    hosts.server.restart();
    let (_holder, mark, _dir) = holder(&hosts.hosts[1], "flock");
    eventually(SOON * 2, || mark.exists().then_some(())).expect("after the grace period");
    hosts.hosts[0].plug_in();
    loser.finds_it_lost(&hosts, &hosts.hosts[1]);
    is_stable(&hosts, writer);
}

#[test]
fn a_wait_for_a_lock_goes_on_over_a_cut_cable_and_a_reboot_of_the_server() {
    let mut hosts = Hosts::with(2, ServerOptions::default(), &[], LIMIT);
    fs::write(hosts.hosts[0].path("flock"), b"nobody").expect("write");
    let (mut first, mark, _dir) = holder(&hosts.hosts[0], "flock");
    eventually(SOON, || mark.exists().then_some(())).expect("locked");
    let (mut second, mark, _dir) = holder(&hosts.hosts[1], "flock");
    thread::sleep(Duration::from_millis(300));
    hosts.hosts[1].cut_off();
    thread::sleep(Duration::from_secs(2));
    hosts.hosts[1].plug_in();
    thread::sleep(Duration::from_secs(1));
    hosts.server.kill();
    hosts.server.restart();
    thread::sleep(Duration::from_secs(1));
    assert!(second.ended().is_none() && !mark.exists(), "it waits");
    first.kill();
    eventually(SOON * 3, || mark.exists().then_some(())).expect("its turn");
    let text = fs::read_to_string(hosts.hosts[0].path("flock")).expect("read");
    assert_eq!(text, hosts.hosts[1].name());
    second.kill();
}

/// Locks the file, and forks: the child has the descriptor for as long as the file
/// STOP is not there.
const FORK: &str = r#"
    (my $file, $how, my $mark, my $stop) = @ARGV;
    open($f, "+<", $file) or die "open: $!";
    lock_it();
    if (fork() == 0) {
        open(my $m, ">", $mark) or die "mark: $!";
        close $m;
        select(undef, undef, undef, 0.02) until -e $stop;
        rename($stop, "$stop.seen");
        exit 0;
    }
    select(undef, undef, undef, 0.02) until -e $mark;
    exit 0;
"#;

#[test]
fn a_forked_child_keeps_a_flock_and_not_the_record_locks_of_its_parent() {
    let hosts = Hosts::new(2);
    let [a, b] = &hosts.hosts[..] else {
        panic!("two hosts")
    };
    for how in ["flock", "fcntl"] {
        fs::write(a.path(how), [0; 8]).expect("write");
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mark, stop) = (dir.path().join("mark"), dir.path().join("stop"));
        let arguments = [
            &format!("/volumes/{how}"),
            how,
            mark.to_str().expect("UTF-8"),
            stop.to_str().expect("UTF-8"),
        ];
        let mut parent = a.spawn(perl(FORK, &arguments)).expect("perl");
        assert!(parent.wait(SOON).is_some_and(|status| status.success()));
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(b.path(how))
            .expect("open");
        // The child lives, and has the file open.
        if how == "flock" {
            thread::sleep(Duration::from_millis(300));
            assert!(file.try_lock().is_err(), "the child's as well");
            fs::write(&stop, "").expect("stop");
        }
        eventually(SOON, || file.try_lock().ok()).expect("free");
        if how == "fcntl" {
            fs::write(&stop, "").expect("stop");
        }
        let seen = dir.path().join("stop.seen");
        eventually(SOON, || seen.exists().then_some(())).expect("the child ends");
    }
}
