//! The fault matrix: what breaks × what is going on, on a real server; and the
//! table of all scenarios, each with the tests that try it.
//!
//! Both are printed whether they pass or not, past the test harness. `scripts/faults`
//! runs them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use parking_lot::Mutex;

use super::cells::{Cell, Fault, Line, quick_server, strike};
use super::killed::{CHANGES, Estate};
use super::scenarios::SCENARIOS;
use crate::fixtures::ganesha::ServerOptions;
use crate::fixtures::process::run;
use crate::fixtures::proxy::{Message, Way};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Faults tried at the same time: they wait more than they compute.
const AT_ONCE: usize = 3;

/// "Within 1 s after a cut when the server answers."
const CUT: Duration = ms(1000);
/// The line was silent: the connection may have been given up, and the next one is
/// tried after a pause of up to 5 s.
const SILENCE: Duration = ms(8000);

const GRACE: u32 = 4;
/// "Within grace + 2 s after its restart": opens and locks that were there go on so soon
/// after the restart, new ones so soon after the server says that its grace period is
/// over. (nfs-ganesha looks every 10 s whether it is, however short it is to be.)
const RESTART: Duration = ms(2000);

/// A lease that a fault of a few seconds outlasts.
fn short_lease() -> ServerOptions {
    ServerOptions {
        lease: 3,
        grace: GRACE,
        ..ServerOptions::default()
    }
}

const fn fault(name: &'static str, strike: fn(&mut Line), times: u32, resumes: Duration) -> Fault {
    Fault {
        name,
        strike,
        times,
        resumes,
        restarts: false,
        locks_may_go: false,
        server: quick_server,
        dies: "",
        survives: false,
    }
}

/// The daemon is killed, too, and another one takes over.
const fn survived(fault: Fault) -> Fault {
    Fault {
        survives: true,
        ..fault
    }
}

const fn restart(name: &'static str, strike: fn(&mut Line)) -> Fault {
    Fault {
        restarts: true,
        ..fault(name, strike, 1, RESTART)
    }
}

const fn outlasting(name: &'static str, strike: fn(&mut Line), resumes: Duration) -> Fault {
    Fault {
        locks_may_go: true,
        server: short_lease,
        ..fault(name, strike, 1, resumes)
    }
}

static FAULTS: [Fault; 34] = [
    fault("connection cut", |line| line.proxy.cut(), 5, CUT),
    fault(
        "cut inside a request",
        |line| cut_at(line, Way::ToServer),
        5,
        CUT,
    ),
    fault(
        "cut inside a reply",
        |line| cut_at(line, Way::ToClient),
        5,
        CUT,
    ),
    fault("reply lost, then cut", lose_reply_and_cut, 5, CUT),
    fault("request lost, then cut", lose_request_and_cut, 5, CUT),
    fault(
        "reply twice",
        |line| at_messages(line, || Message::Twice),
        3,
        CUT,
    ),
    fault("garbage in a reply", garble, 3, CUT),
    fault("bytes of a reply missing", truncate, 3, CUT),
    fault(
        "record of 2 GiB announced",
        |line| {
            at_messages(line, || Message::Behind(vec![0xff, 0xff, 0xff, 0xff]));
        },
        3,
        CUT,
    ),
    fault(
        "empty fragments",
        |line| {
            at_messages(line, || Message::Behind(vec![0; 64]));
        },
        3,
        CUT,
    ),
    fault("50 ms more each way for 2 s", delay, 1, CUT),
    fault("a byte each millisecond for 2 s", drip, 1, SILENCE),
    fault("line frozen for 4 s", freeze, 1, SILENCE),
    fault(
        "half-open connection",
        |line| line.proxy.half_open(),
        1,
        SILENCE,
    ),
    fault("black hole for 6 s", black_hole, 1, SILENCE),
    fault("refused for 3 s", refuse, 1, SILENCE),
    fault("server stalled for 4 s", stall, 1, SILENCE),
    restart("server killed, back in 1 s", |line| restart_after(line, 1)),
    restart("server killed again in its grace", restart_twice),
    restart("server killed, line cut on and off", restart_and_flap),
    fault(
        "callers killed",
        |line| callers(line, |_| {}, |_| {}),
        2,
        CUT,
    ),
    fault(
        "callers killed, line refused",
        |line| {
            let refuse = |line: &mut Line| {
                line.proxy.refuse();
                line.proxy.cut();
            };
            callers(line, refuse, |line| line.proxy.accept());
        },
        2,
        SILENCE,
    ),
    fault(
        "callers killed, line frozen",
        |line| callers(line, |line| line.proxy.freeze(), |line| line.proxy.thaw()),
        2,
        SILENCE,
    ),
    restart("callers killed, server killed", |line| {
        callers(
            line,
            |line| line.server.kill(),
            |line| line.server.restart(),
        );
    }),
    Fault {
        dies: EVERY_FEW,
        ..fault("background tasks die", |_| sleep(ms(4000)), 2, CUT)
    },
    Fault {
        dies: EVERY_FEW,
        ..fault(
            "background tasks die, line cut",
            |line| {
                for _ in 0..8 {
                    line.proxy.cut();
                    sleep(ms(500));
                }
            },
            1,
            SILENCE,
        )
    },
    survived(fault("daemon killed", Line::kill_daemon, 8, CUT)),
    survived(fault(
        "daemon killed, line cut",
        |line| {
            line.kill_daemon();
            line.proxy.cut();
        },
        5,
        CUT,
    )),
    survived(fault(
        "daemon killed, line frozen for 4 s",
        |line| {
            line.kill_daemon();
            freeze(line);
        },
        1,
        SILENCE,
    )),
    survived(restart("daemon killed, server killed", |line| {
        line.kill_daemon();
        restart_after(line, 1);
    })),
    survived(restart(
        "server killed, daemon killed in its grace",
        |line| {
            line.server.restart();
            sleep(ms(500));
            line.kill_daemon();
        },
    )),
    outlasting("server stalled beyond the lease", stall_long, ms(20_000)),
    outlasting("black hole beyond the lease", black_hole_long, ms(20_000)),
    outlasting("server back without its records", forget, ms(20_000)),
];

fn cut_at(line: &Line, way: Way) {
    static NTH: AtomicUsize = AtomicUsize::new(0);
    let at = NTH.fetch_add(37, Ordering::Relaxed) % 300;
    let before = line.proxy.connections();
    line.proxy.cut_after(way, at as u64);
    until(|| line.proxy.connections() > before);
}

/// Something happens soon, for there is work going on.
fn until(done: impl Fn() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        sleep(ms(5));
    }
    panic!("the fault did not come about");
}

fn lose_reply_and_cut(line: &mut Line) {
    line.proxy.next_message(Way::ToClient, Message::Swallowed);
    sleep(ms(50));
    line.proxy.cut();
}

fn lose_request_and_cut(line: &mut Line) {
    line.proxy.next_message(Way::ToServer, Message::Swallowed);
    sleep(ms(50));
    line.proxy.cut();
}

fn at_messages(line: &Line, message: fn() -> Message) {
    for _ in 0..10 {
        line.proxy.next_message(Way::ToClient, message());
        sleep(ms(20));
    }
}

fn garble(line: &mut Line) {
    // Not inside of data: nothing but the checksum of TCP protects those.
    line.proxy.next_message(Way::ToClient, Message::Garbled);
    sleep(ms(50));
}

fn truncate(line: &mut Line) {
    line.proxy.next_message(Way::ToClient, Message::Hole);
    sleep(ms(100));
}

fn delay(line: &mut Line) {
    for way in [Way::ToServer, Way::ToClient] {
        line.proxy.delay(way, ms(50));
    }
    sleep(ms(2000));
    for way in [Way::ToServer, Way::ToClient] {
        line.proxy.delay(way, Duration::ZERO);
    }
}

fn drip(line: &mut Line) {
    line.proxy.drip(Way::ToClient, Some(1));
    sleep(ms(2000));
    line.proxy.drip(Way::ToClient, None);
}

fn freeze(line: &mut Line) {
    line.proxy.freeze();
    sleep(ms(4000));
    line.proxy.thaw();
}

fn black_hole(line: &mut Line) {
    line.proxy.blackhole(true);
    sleep(ms(6000));
    line.proxy.blackhole(false);
}

fn refuse(line: &mut Line) {
    line.proxy.refuse();
    line.proxy.cut();
    sleep(ms(3000));
    line.proxy.accept();
}

fn stall(line: &mut Line) {
    let stopped = line.server.stopped();
    sleep(ms(4000));
    drop(stopped);
}

fn restart_after(line: &mut Line, secs: u64) {
    line.server.kill();
    sleep(Duration::from_secs(secs));
    line.server.restart();
}

fn restart_twice(line: &mut Line) {
    line.server.restart();
    sleep(ms(1000));
    line.server.restart();
}

fn restart_and_flap(line: &mut Line) {
    line.server.restart();
    for _ in 0..10 {
        sleep(ms(150));
        line.proxy.cut();
    }
}

fn stall_long(line: &mut Line) {
    let stopped = line.server.stopped();
    sleep(ms(8000));
    drop(stopped);
}

fn black_hole_long(line: &mut Line) {
    line.proxy.blackhole(true);
    sleep(ms(10_000));
    line.proxy.blackhole(false);
}

/// Its records of who had been there are gone: nobody may reclaim.
fn forget(line: &mut Line) {
    line.server.kill();
    line.server.forget_clients();
    line.server.restart();
}

/// What dies now and then while a daemon goes on: all that is not vital.
const EVERY_FEW: &str = "send_write:20,send_write:50,send_write:90,send_commit:2,send_commit:5,send_fragments:2,\
    send_together:3,send_together:9,renew:1,renew:3,connection:2,connection:5,watch_responses:2,look_after:1,check_states:1,\
    notify:3,notify:9,interrupt:2,wake_at:3,deferred_setattr:2,fetch:2,ask_page:2,settle:3,settle:9,rebuild:2";

/// Callers in the middle of each kind of change, when the fault begins; they are killed,
/// and others go on with their files: on their host at once, on the other one when
/// it has the lock.
fn callers(line: &mut Line, begin: fn(&mut Line), end: fn(&mut Line)) {
    static ESTATES: AtomicU64 = AtomicU64::new(1);
    let mut work = || -> Result<(), String> {
        let mut estates = Vec::new();
        for change in CHANGES {
            for host in [line.near.clone(), line.other.clone()] {
                let number = ESTATES.fetch_add(1, Ordering::Relaxed);
                let estate = Estate::new(&line.near, format!("estate{number}"))?;
                let caller = estate.caller(&line.near, &[change, "lock"]);
                estates.push((number, host, estate, caller));
            }
        }
        sleep(ms(500));
        begin(line);
        sleep(ms(300));
        let mut left = Vec::new();
        for (number, host, estate, caller) in estates {
            left.push((number, host, estate, caller.kill()));
        }
        let near = &line.near.clone();
        std::thread::scope(|scope| {
            let heirs: Vec<_> = left
                .into_iter()
                .map(|(number, host, mut estate, killed)| {
                    scope.spawn(move || {
                        killed?;
                        estate.take(&host, host != *near, number << 8)?;
                        Ok::<_, String>(estate)
                    })
                })
                .collect();
            sleep(ms(1500));
            end(line);
            let mut estates = Vec::new();
            for heir in heirs {
                estates.push(heir.join().map_err(|_| "an heir panicked")??);
            }
            // Whatever of the dead is still to come.
            sleep(ms(2000));
            let export = line.server.export();
            for estate in estates {
                estate.check(&export)?;
                estate.check(near)?;
                estate.remove(near)?;
            }
            Ok(())
        })
    };
    if let Err(why) = work() {
        line.wrong.get_or_insert(why);
    }
}

/// Red cells of a fault.
fn red(fault: &Fault, cells: &[Cell]) -> Vec<String> {
    let late = |cell: &Cell| cell.pause.is_some_and(|pause| pause > fault.resumes);
    cells
        .iter()
        .filter_map(|cell| {
            let why = match &cell.wrong {
                Some(why) => why.clone(),
                None if late(cell) => format!("went on after {:?}", cell.pause?),
                None => return None,
            };
            Some(format!("{} × {:?}: {why}", fault.name, cell.kind))
        })
        .collect()
}

/// Past the harness, which keeps what passing tests print.
pub(crate) fn show(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn mark(fault: &Fault, cell: &Cell) -> String {
    let late = cell.pause.is_some_and(|pause| pause > fault.resumes);
    match (&cell.wrong, cell.pause) {
        (Some(_), _) => "RED".to_owned(),
        (None, None) => "ok".to_owned(),
        (None, Some(pause)) => {
            let late = if late { " LATE" } else { "" };
            format!("{:.2} s{late}", pause.as_secs_f64())
        }
    }
}

#[test]
#[ignore = "holds files open on a silent line, which makes the forks of other tests wait: scripts/faults"]
fn every_fault_leaves_every_kind_of_work_right_and_on_its_way() {
    // One of them alone, for who looks for something: `EFS_FUSE_FAULT=stalled`.
    let chosen = std::env::var("EFS_FUSE_FAULT").unwrap_or_default();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(fault) = FAULTS.get(index) else {
                        return;
                    };
                    if !fault.name.contains(&chosen) {
                        continue;
                    }
                    let mut cells = strike(fault);
                    // What is only late is tried once more: the machine may have
                    // been busy with something else.
                    if cells.iter().all(|cell| cell.wrong.is_none())
                        && !red(fault, &cells).is_empty()
                    {
                        cells = strike(fault);
                    }
                    results.lock().insert(index, cells);
                }
            });
        }
    });
    let mut table = String::from(
        "\nFault matrix: longest time from the end of the fault to the end of the next operation\n",
    );
    let _ = writeln!(
        table,
        "{:38} {:>9} {:>10} {:>10} {:>10} {:>10} {:>5}  of the server's grace period",
        "fault", "promised", "reading", "writing", "creating", "locking", "idle"
    );
    let mut reds = Vec::new();
    for (index, cells) in results.into_inner() {
        let fault = &FAULTS[index];
        let _ = write!(table, "{:38} {:>7} s", fault.name, fault.resumes.as_secs());
        for (cell, width) in cells.iter().zip([10, 10, 10, 10, 5]) {
            let _ = write!(table, " {:>width$}", mark(fault, cell));
        }
        if let Some(grace) = cells.iter().find_map(|cell| cell.grace) {
            let _ = write!(
                table,
                "  {:.2} s ({GRACE} s configured); creating and locking from its end",
                grace.as_secs_f64()
            );
        }
        table.push('\n');
        reds.extend(red(fault, &cells));
        let idle = cells.iter().filter(|cell| cell.operations == 0);
        reds.extend(idle.map(|cell| format!("{} × {:?}: nothing was done", fault.name, cell.kind)));
    }
    show(&table);
    assert!(reds.is_empty(), "{reds:#?}");
}

#[test]
fn every_scenario_names_tests_that_there_are() {
    let mut list = Command::new(std::env::current_exe().expect("this program"));
    list.args(["--list", "--include-ignored"]);
    let there = run(&mut list, Duration::from_secs(60)).stdout;
    for (number, .., tests) in SCENARIOS {
        for name in *tests {
            let line = format!("{name}: test");
            assert!(there.lines().any(|said| said == line), "{number}: {name}");
        }
    }
}

#[test]
#[ignore = "holds files open on a silent line, which makes the forks of other tests wait: scripts/faults"]
fn every_scenario_is_tried_by_a_test_that_passes() {
    let names: Vec<&str> = SCENARIOS
        .iter()
        .flat_map(|(.., tests)| tests.iter().copied())
        .collect();
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command
        .args(["--exact", "--include-ignored", "--test-threads=1"])
        .args(&names);
    let done = run(&mut command, Duration::from_secs(600));
    let passed = |name: &str| {
        // Not by the "ok": what its processes print may come in between.
        let (begins, failed) = (format!("test {name} ... "), format!("    {name}"));
        let mut lines = done.stdout.lines();
        lines.clone().any(|said| said.starts_with("test result: "))
            && lines.clone().any(|said| said.starts_with(&begins))
            && !lines.any(|said| said == failed)
    };
    let mut table =
        String::from("\nScenarios, the result each must have, and the tests that try it\n");
    let mut reds: Vec<&str> = Vec::new();
    for (number, scenario, result, tests) in SCENARIOS {
        let red: Vec<&str> = tests.iter().copied().filter(|name| !passed(name)).collect();
        let state = if red.is_empty() { "ok " } else { "RED" };
        let _ = writeln!(table, "{number:>3} {state} {scenario}: {result}");
        for name in *tests {
            let _ = writeln!(
                table,
                "        {name}{}",
                if passed(name) { "" } else { "  RED" }
            );
        }
        reds.extend(red);
    }
    show(&table);
    assert!(reds.is_empty(), "{reds:#?}\n{}", done.stdout);
}
