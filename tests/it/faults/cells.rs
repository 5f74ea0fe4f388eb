//! One fault, tried on a real mount with a real server while all kinds of work go
//! on, and a second host asks for a lock that the first one holds.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::work::{self, KINDS, Kind, Place, Record};
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest, served_by};
use crate::fixtures::proxy::Proxy;

/// A server, and the line to it.
pub(super) struct Line {
    pub(super) proxy: Proxy,
    pub(super) server: Server,
    /// The mount whose line it is.
    pub(super) near: PathBuf,
    /// Another host, on a line of its own.
    pub(super) other: PathBuf,
    /// Who holds the first one, if it survives its daemon.
    pub(super) keeper: Option<i32>,
    /// What the fault itself saw go wrong; told in the last column.
    pub(super) wrong: Option<String>,
}

impl Line {
    /// The daemon dies, and another one goes on.
    pub(super) fn kill_daemon(&mut self) {
        match self.keeper.and_then(served_by) {
            // SAFETY: the pid was found a moment ago among the children of this test's keeper.
            Some(daemon) => unsafe {
                libc::kill(daemon, libc::SIGKILL);
            },
            None => self.wrong = Some("the mount has no keeper any more".to_owned()),
        }
    }
}

/// Something that goes wrong.
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// It begins; comes back when it is over.
    pub(super) strike: fn(&mut Line),
    /// How often.
    pub(super) times: u32,
    /// Everything goes on so soon after it, what needs new state at a server that was
    /// started anew so soon after the end of its grace period.
    pub(super) resumes: Duration,
    /// The server is started anew.
    pub(super) restarts: bool,
    /// The lease may run out: locks may be lost, and then say so.
    pub(super) locks_may_go: bool,
    pub(super) server: fn() -> ServerOptions,
    /// Background tasks of the daemon that die, as `EFS_FUSE_TEST_PANIC` has it. The
    /// writes of one that has died are told as failed.
    pub(super) dies: &'static str,
    /// The mount survives its daemon (`-o takeover=crash`).
    pub(super) survives: bool,
}

pub(super) fn quick_server() -> ServerOptions {
    ServerOptions {
        lease: 20,
        grace: 4,
        ..ServerOptions::default()
    }
}

/// What a cell of the matrix shows.
pub(super) struct Cell {
    pub(super) kind: Kind,
    /// The longest pause after the fault was over (after the grace period, for work that
    /// has to wait for its end); `None` for idle.
    pub(super) pause: Option<Duration>,
    /// The longest grace period that the server says it had after the fault.
    pub(super) grace: Option<Duration>,
    pub(super) operations: usize,
    pub(super) wrong: Option<String>,
}

/// Tries a fault.
pub(super) fn strike(fault: &Fault) -> Vec<Cell> {
    let server = Server::start((fault.server)());
    let proxy = Proxy::to(server.address());
    let export = server.export();
    work::prepare(&export);
    let limit = Duration::from_secs(150);
    let log = tempfile::NamedTempFile::new().expect("log");
    // A dead connection is to be found soon, or these tests would take long.
    let mut near = MountRequest::new(server.device("/"), proxy.port())
        .option("timeo=20")
        .option(&format!("log={}", log.path().display()))
        .env("EFS_FUSE_TEST_PANIC", fault.dies)
        .time_limit(limit);
    if fault.survives {
        near = near.option("takeover=crash");
        near = near.env("EFS_FUSE_TEST_CRASHES", "1");
    }
    let near = near.mount();
    let other = MountRequest::of(&server).time_limit(limit).mount();
    let mut line = Line {
        proxy,
        server,
        near: near.path().to_owned(),
        other: other.path().to_owned(),
        keeper: fault.survives.then(|| near.keeper()),
        wrong: None,
    };
    let stop = AtomicBool::new(false);
    let place = Place {
        mount: near.path(),
        export: &export,
        locks_may_go: fault.locks_may_go,
        writes_may_fail: !fault.dies.is_empty(),
        stop: &stop,
    };
    let records = KINDS.map(|_| Record::default());
    let held = work::hold(&near.join("held"));
    let stolen = Mutex::new(false);
    let mut overs = Vec::new();
    std::thread::scope(|scope| {
        /// Ends the work also when this thread panics: the scope waits for it.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        for (kind, record) in KINDS.into_iter().zip(&records) {
            let place = &place;
            scope.spawn(move || work::work(kind, place, record));
        }
        scope.spawn(|| steal(&other, &stop, &stolen));
        wait_for_work(&records);
        for _ in 0..fault.times {
            (fault.strike)(&mut line);
            let over = Instant::now();
            let past_grace = fault.restarts.then(|| past_grace(&line.server));
            overs.push(Over { over, past_grace });
            wait_for_more(&records, over, fault.resumes * 3 + Duration::from_secs(5));
        }
    });
    if records.iter().any(|record| record.wrong.lock().is_some()) {
        // For whoever has to find out.
        let said = std::fs::read_to_string(log.path()).unwrap_or_default();
        println!("{}: the daemon's log:\n{said}", fault.name);
    }
    if !fault.dies.is_empty() {
        let alive = near.status()["tasks"].as_array().cloned();
        match alive {
            Some(died) if !died.is_empty() => {}
            other => line.wrong = Some(format!("no task has died: {other:?}")),
        }
    }
    let held = match held {
        Ok(_) if *stolen.lock() && !fault.locks_may_go => {
            Some("another host got a lock that was held".to_owned())
        }
        Ok(_) => None,
        Err(why) => Some(format!("holding a lock: {why}")),
    };
    KINDS
        .into_iter()
        .zip(records)
        .map(|(kind, record)| {
            let wrong = record.wrong.lock().take();
            let pause = (kind != Kind::Idle).then(|| pause(kind, &record, &overs));
            let mut wrong = wrong.or_else(|| match pause {
                Some(None) => Some("it did not go on".to_owned()),
                _ => None,
            });
            if kind == Kind::Locking {
                wrong = wrong.or_else(|| held.clone());
            }
            if kind == Kind::Idle {
                wrong = wrong.or_else(|| line.wrong.take());
            }
            Cell {
                kind,
                pause: pause.flatten(),
                grace: overs.iter().filter_map(Over::grace).max(),
                operations: record.count(),
                wrong,
            }
        })
        .collect()
}

/// The end of a fault.
struct Over {
    over: Instant,
    /// When the server that was started anew said that its grace period is over.
    past_grace: Option<Instant>,
}

impl Over {
    fn grace(&self) -> Option<Duration> {
        Some(self.past_grace?.saturating_duration_since(self.over))
    }
}

/// The longest time from the end of a fault to the end of the next operation. No server
/// gives new opens and locks before its grace period is over (RFC 8881 §8.4.2.1): for
/// work that needs them that is the end of the fault.
fn pause(kind: Kind, record: &Record, overs: &[Over]) -> Option<Duration> {
    let pauses = overs.iter().map(|over| {
        let next = record.first_after(over.over)?;
        let needs_new_state = matches!(kind, Kind::Creating | Kind::Locking);
        let from = match over.past_grace {
            Some(past_grace) if needs_new_state => past_grace,
            _ => over.over,
        };
        Some(next.saturating_duration_since(from))
    });
    pauses.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Waits for the end of the server's grace period.
fn past_grace(server: &Server) -> Instant {
    let end = Instant::now() + Duration::from_secs(60);
    while !server.is_past_grace() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    Instant::now()
}

fn wait_for_work(records: &[Record]) {
    let end = Instant::now() + Duration::from_secs(30);
    let all_busy = || records[..4].iter().all(|record| record.count() > 2);
    while !all_busy() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until everybody has gone on since `begun`, and then a little.
fn wait_for_more(records: &[Record], begun: Instant, limit: Duration) {
    let on = |record: &Record| record.first_after(begun).is_some() || record.wrong.lock().is_some();
    while !records[..4].iter().all(on) && begun.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
}

/// Another host, on a line of its own, that wants what is held.
fn steal(other: &Mount, stop: &AtomicBool, stolen: &Mutex<bool>) {
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        if work::hold(&other.join("held")).is_ok() {
            *stolen.lock() = true;
        }
    }
}
