//! `efs-fuse stats --watch`: what a mount does, second by second.
//!
//! On a terminal it is a screen of its own that ends with `q` or Ctrl-C and
//! leaves the terminal as it was; elsewhere a line, with `--json` an object,
//! for each interval. Latencies are those of the interval, not since mount.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::exit::Failure;
use super::format::{bytes, count, micros};
use super::running::Running;
use crate::quoting;
use crate::telemetry::histogram::Counts;
use crate::telemetry::log::utc;

/// Intervals that the curves show.
const HISTORY: usize = 60;

/// Shows `running` every `interval` until it is told to end or the mount is gone.
pub(super) fn run(running: &Running, interval: Duration, as_json: bool) -> Result<(), Failure> {
    let mut last = Sample::take(running)?;
    let mut history = History::default();
    if as_json || !io::stdout().is_terminal() {
        loop {
            std::thread::sleep(interval);
            let now = Sample::take(running)?;
            let rates = Rates::between(&last, &now);
            let line = if as_json {
                rates.json().to_string()
            } else {
                rates.line()
            };
            // The reader has gone away.
            if writeln!(io::stdout(), "{line}").is_err() {
                return Ok(());
            }
            last = now;
        }
    }
    let screen = Screen::open().map_err(|why| Failure::system("using the terminal", why))?;
    screen.show(&["waiting for the first interval".to_owned()]);
    loop {
        if screen.ended_within(interval) {
            return Ok(());
        }
        let now = Sample::take(running)?;
        let rates = Rates::between(&last, &now);
        history.add(&rates);
        let status = running.status();
        screen.show(&draw(&rates, &history, &status, screen.size()));
        last = now;
    }
}

/// The numbers at one moment.
struct Sample {
    at: Instant,
    numbers: Value,
}

impl Sample {
    fn take(running: &Running) -> Result<Self, Failure> {
        let numbers = running.ask("buckets")?;
        let at = Instant::now();
        Ok(Self { at, numbers })
    }

    fn number(&self, pointer: &str) -> u64 {
        let value = self.numbers.pointer(pointer);
        value.and_then(Value::as_u64).unwrap_or(0)
    }

    fn histogram(&self, kind: &str, name: &str) -> Counts {
        let pairs = self.numbers["buckets"][kind][name].as_array();
        let pairs = pairs.into_iter().flatten().filter_map(|pair| {
            let index = usize::try_from(pair[0].as_u64()?).ok()?;
            Some((index, pair[1].as_u64()?))
        });
        Counts::from_sparse(pairs)
    }
}

/// One operation in one interval.
#[derive(Debug, PartialEq)]
struct Operation {
    name: String,
    per_second: f64,
    errors: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

/// What happened between two samples.
struct Rates {
    seconds: f64,
    read: f64,
    written: f64,
    round_trips: f64,
    fuse: Vec<Operation>,
    nfs: Vec<Operation>,
    /// Name, questions a second, share of hits.
    caches: Vec<(String, f64, Option<f64>)>,
    gauges: Map<String, Value>,
    reconnects: u64,
    recoveries: u64,
    slow: u64,
    last_error: Option<String>,
}

impl Rates {
    fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = after.at.duration_since(before.at).as_secs_f64().max(1e-3);
        // After a reset everything there is has happened since.
        let grown = |pointer: &str| {
            let (then, now) = (before.number(pointer), after.number(pointer));
            now.checked_sub(then).unwrap_or(now)
        };
        let rate = |pointer: &str| grown(pointer) as f64 / seconds;
        let operations = |kind: &str| {
            let names = after.numbers[kind].as_object().into_iter().flatten();
            let mut operations: Vec<_> = names
                .filter_map(|(name, _)| {
                    let counts = after
                        .histogram(kind, name)
                        .since(&before.histogram(kind, name));
                    let latency = counts.quantiles();
                    (counts.total() > 0).then(|| Operation {
                        name: name.clone(),
                        per_second: counts.total() as f64 / seconds,
                        errors: grown(&format!("/{kind}/{name}/errors")),
                        p50_us: latency.p50_us,
                        p99_us: latency.p99_us,
                        p999_us: latency.p999_us,
                    })
                })
                .collect();
            operations.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
            operations
        };
        let caches = after.numbers["cache"].as_object().into_iter().flatten();
        let caches = caches.map(|(name, _)| {
            let hits = grown(&format!("/cache/{name}/hits")) as f64;
            let all = hits + grown(&format!("/cache/{name}/misses")) as f64;
            (name.clone(), all / seconds, (all > 0.0).then(|| hits / all))
        });
        Self {
            seconds,
            read: rate("/bytes/read"),
            written: rate("/bytes/written"),
            round_trips: rate("/round_trips"),
            fuse: operations("fuse_ops"),
            nfs: operations("nfs_ops"),
            caches: caches.collect(),
            gauges: after.numbers["gauges"]
                .as_object()
                .cloned()
                .unwrap_or_default(),
            reconnects: after.number("/reconnects"),
            recoveries: after.number("/recoveries"),
            slow: after.number("/slow_operations"),
            last_error: after.numbers["last_error"].as_str().map(str::to_owned),
        }
    }

    fn json(&self) -> Value {
        let operations = |list: &[Operation]| {
            let each = list.iter().map(|op| {
                let value = json!({
                    "per_s": op.per_second, "errors": op.errors,
                    "p50_us": op.p50_us, "p99_us": op.p99_us, "p999_us": op.p999_us,
                });
                (op.name.clone(), value)
            });
            each.collect::<Map<_, _>>()
        };
        let caches = self.caches.iter().map(|(name, per_s, ratio)| {
            (name.clone(), json!({"per_s": per_s, "hit_ratio": ratio}))
        });
        json!({
            "seconds": self.seconds,
            "round_trips_per_s": self.round_trips,
            "bytes_per_s": {"read": self.read, "written": self.written},
            "fuse_ops": operations(&self.fuse),
            "nfs_ops": operations(&self.nfs),
            "cache": caches.collect::<Map<_, _>>(),
            "gauges": self.gauges,
            "reconnects": self.reconnects,
            "recoveries": self.recoveries,
            "slow_operations": self.slow,
            "last_error": self.last_error,
        })
    }

    fn line(&self) -> String {
        let busiest = self.fuse.first().map_or_else(String::new, |op| {
            format!(
                "   {} {}/s p99 {}",
                quoting::plain(&op.name),
                whole(op.per_second),
                micros(op.p99_us)
            )
        });
        format!(
            "read {}/s   written {}/s   round trips {}/s   in flight {}{busiest}",
            bytes(self.read as u64),
            bytes(self.written as u64),
            whole(self.round_trips),
            self.gauge("fuse_in_flight"),
        )
    }

    fn gauge(&self, name: &str) -> i64 {
        self.gauges.get(name).and_then(Value::as_i64).unwrap_or(0)
    }
}

fn whole(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        format!("{rate:.1}")
    } else {
        count(rate.round() as u64)
    }
}

/// What the curves are drawn from.
#[derive(Default)]
struct History {
    read: VecDeque<f64>,
    written: VecDeque<f64>,
    round_trips: VecDeque<f64>,
}

impl History {
    fn add(&mut self, rates: &Rates) {
        for (curve, value) in [
            (&mut self.read, rates.read),
            (&mut self.written, rates.written),
            (&mut self.round_trips, rates.round_trips),
        ] {
            curve.push_back(value);
            if curve.len() > HISTORY {
                curve.pop_front();
            }
        }
    }
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const CYAN: &str = "\x1b[36m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// The newest values as a curve of `width` characters, as high as the highest.
fn curve(values: &VecDeque<f64>, width: usize) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = values.iter().skip(values.len().saturating_sub(width));
    let top = values.iter().copied().fold(0.0, f64::max);
    let drawn: String = shown
        .map(|&value| match value {
            v if v <= 0.0 || top <= 0.0 => ' ',
            v => STEPS[((v / top * 8.0).ceil() as usize).clamp(1, 8) - 1],
        })
        .collect();
    format!("{drawn:>width$}")
}

/// How full something is.
fn bar(part: f64, whole: f64, width: usize) -> String {
    let share = if whole > 0.0 {
        (part / whole).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let full = (share * width as f64).round() as usize;
    let colour = match share {
        s if s >= 0.9 => RED,
        s if s >= 0.6 => YELLOW,
        _ => GREEN,
    };
    format!(
        "{colour}{}{PLAIN}{DIM}{}{PLAIN}",
        "█".repeat(full),
        "░".repeat(width - full)
    )
}

fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// The screen, line by line; `size` is columns and rows.
fn draw(rates: &Rates, history: &History, status: &Value, size: (usize, usize)) -> Vec<String> {
    let (columns, rows) = (size.0.clamp(40, 200), size.1.max(10));
    let text = |value: &Value| quoting::plain(value.as_str().unwrap_or("?"));
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let up = now.saturating_sub(status["since"].as_u64().unwrap_or(now));
    let session = &status["session"];
    let state = text(&session["state"]);
    let colour = if state == "up" { GREEN } else { RED };
    let mut lines = vec![
        format!(
            "{BOLD}{}{PLAIN} on {BOLD}{}{PLAIN}   {DIM}{} · up {}{PLAIN}",
            quoting::name(status["device"].as_str().unwrap_or("?")),
            quoting::name(status["mountpoint"].as_str().unwrap_or("?")),
            &utc(now)[11..],
            age(up),
        ),
        format!(
            "{} · session {colour}{state}{PLAIN} · lease {} s, {:.0} s ago · connections {} · reconnects {} · recoveries {} · slow {}",
            text(&status["server"]),
            quoting::plain(&session["lease_s"].to_string()),
            session["idle_s"].as_f64().unwrap_or(0.0),
            rates.gauge("connections"),
            rates.reconnects,
            rates.recoveries,
            rates.slow,
        ),
        String::new(),
    ];
    let width = (columns.saturating_sub(36)).min(HISTORY);
    for (name, curve_of, value) in [
        (
            "read",
            &history.read,
            format!("{}/s", bytes(rates.read as u64)),
        ),
        (
            "written",
            &history.written,
            format!("{}/s", bytes(rates.written as u64)),
        ),
        (
            "round trips",
            &history.round_trips,
            format!("{}/s", whole(rates.round_trips)),
        ),
    ] {
        lines.push(format!(
            "{name:<12} {CYAN}{}{PLAIN} {BOLD}{value:>14}{PLAIN}",
            curve(curve_of, width)
        ));
    }
    let (window, limit) = (
        rates.gauge("window_bytes") as f64,
        status["write_window"]["limit"].as_f64().unwrap_or(0.0),
    );
    let (slots, of) = (
        rates.gauge("slots_in_use"),
        session["slots"].as_u64().unwrap_or(0),
    );
    let bars = (width / 2).clamp(8, 24);
    lines.push(format!(
        "{:<12} {} {} of {}",
        "window",
        bar(window, limit, bars),
        bytes(window.max(0.0) as u64),
        bytes(limit as u64)
    ));
    lines.push(format!(
        "{:<12} {} {slots} of {of}   {DIM}requests in flight {}, open files {}, inodes {}{PLAIN}",
        "slots",
        bar(slots as f64, of as f64, bars),
        rates.gauge("fuse_in_flight"),
        rates.gauge("open_files"),
        rates.gauge("inodes"),
    ));
    let caches: Vec<_> = rates
        .caches
        .iter()
        .map(|(name, _, ratio)| (quoting::plain(name), ratio))
        .map(|(name, ratio)| match ratio {
            Some(ratio) => format!("{name} {BOLD}{:.1} %{PLAIN}", 100.0 * ratio),
            None => format!("{DIM}{name} -{PLAIN}"),
        })
        .collect();
    lines.push(format!("{:<12} {}", "cache hits", caches.join("   ")));
    // What is left of the screen is shared by the two tables.
    let room = rows.saturating_sub(lines.len() + 6);
    let of_nfs = rates
        .nfs
        .len()
        .min((room / 2).max(room.saturating_sub(rates.fuse.len())));
    let of_fuse = room.saturating_sub(of_nfs);
    for (title, list, most) in [
        ("FUSE operation", &rates.fuse, of_fuse),
        ("NFS operation", &rates.nfs, of_nfs),
    ] {
        lines.push(String::new());
        lines.push(format!(
            "{DIM}{title:<20}{:>10}{:>10}{:>10}{:>10}{:>9}{PLAIN}",
            "per s", "p50", "p99", "p99.9", "errors"
        ));
        lines.extend(list.iter().take(most).map(|op| {
            let errors = if op.errors > 0 { RED } else { DIM };
            format!(
                "{:<20}{BOLD}{:>10}{PLAIN}{:>10}{:>10}{:>10}{errors}{:>9}{PLAIN}",
                quoting::plain(&op.name),
                whole(op.per_second),
                micros(op.p50_us),
                micros(op.p99_us),
                micros(op.p999_us),
                count(op.errors),
            )
        }));
    }
    lines.push(match &rates.last_error {
        Some(error) => format!("{RED}last error: {}{PLAIN}", quoting::plain(error)),
        None => format!("{DIM}q ends{PLAIN}"),
    });
    lines
}

/// The terminal's second screen, with keys read at once. Dropping it gives the
/// first one back.
struct Screen {
    before: Option<libc::termios>,
}

impl Screen {
    fn open() -> io::Result<Self> {
        let input = io::stdin().as_raw_fd();
        let mut now = std::mem::MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure, and is believed only if it did.
        let before =
            unsafe { (libc::tcgetattr(input, now.as_mut_ptr()) == 0).then(|| now.assume_init()) };
        if let Some(before) = before {
            let mut raw = before;
            // Signals stay with the terminal: Ctrl-C comes as a byte instead,
            // so that the way out is one.
            raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
            // SAFETY: a valid descriptor and a structure that was read from it.
            unsafe { libc::tcsetattr(input, libc::TCSANOW, &raw const raw) };
        }
        let mut stdout = io::stdout();
        stdout.write_all(b"\x1b[?1049h\x1b[?25l")?;
        stdout.flush()?;
        Ok(Self { before })
    }

    /// Columns and rows.
    fn size(&self) -> (usize, usize) {
        // SAFETY: TIOCGWINSZ fills the structure it is given.
        let size = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size);
            size
        };
        match (size.ws_col, size.ws_row) {
            (0, _) | (_, 0) => (80, 24),
            (columns, rows) => (columns.into(), rows.into()),
        }
    }

    fn show(&self, lines: &[String]) {
        let rows = self.size().1;
        // Line by line, each cleared to its end: no flicker.
        let mut text = String::from("\x1b[H");
        for (index, line) in lines.iter().take(rows).enumerate() {
            if index > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        let mut stdout = io::stdout();
        // A terminal that is gone ends the program soon enough.
        let _ = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
    }

    /// Waits for `time`; true at once when the user wants to end.
    fn ended_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd {
                fd: io::stdin().as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: one valid pollfd, counted as one.
            if unsafe { libc::poll(&raw mut poll, 1, millis) } <= 0 {
                return false;
            }
            let mut keys = [0u8; 64];
            // SAFETY: the buffer is ours and its length is given.
            let got = unsafe { libc::read(poll.fd, keys.as_mut_ptr().cast(), keys.len()) };
            let Ok(got @ 1..) = usize::try_from(got) else {
                // The terminal, or whatever is there instead, is gone.
                return true;
            };
            // q, Q, Ctrl-C, Ctrl-D, Escape alone.
            if keys[..got]
                .iter()
                .any(|key| matches!(key, b'q' | b'Q' | 3 | 4))
                || keys[..got] == [27]
            {
                return true;
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = io::stdout();
        let _ = stdout
            .write_all(b"\x1b[?25h\x1b[?1049l")
            .and_then(|()| stdout.flush());
        if let Some(before) = &self.before {
            // SAFETY: a valid descriptor and what was read from it.
            unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, before) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Cache, FuseOp, Metrics};

    fn samples() -> (Sample, Sample) {
        let metrics = Metrics::new();
        let take = |at| Sample {
            at,
            numbers: metrics.snapshot_with_buckets(),
        };
        let start = Instant::now();
        metrics.fuse_op(FuseOp::Read, true, Duration::from_secs(9));
        let before = take(start);
        for _ in 0..10 {
            metrics.fuse_op(FuseOp::Read, true, Duration::from_millis(2));
        }
        metrics.fuse_op(FuseOp::Lookup, false, Duration::from_millis(1));
        metrics.nfs_op(25, true, Duration::from_millis(1));
        metrics.bytes_read(4 << 20);
        metrics.round_trip();
        metrics.cache(Cache::Attr, true);
        metrics.gauges.slots_in_use.add(3);
        (before, take(start + Duration::from_secs(2)))
    }

    #[test]
    fn rates_and_latencies_are_those_of_the_interval() {
        let (before, after) = samples();
        let rates = Rates::between(&before, &after);
        assert_eq!(rates.read, f64::from(2 << 20));
        let read = &rates.fuse[0];
        assert_eq!((read.name.as_str(), read.per_second), ("read", 5.0));
        assert!(read.p999_us < 2_100.0, "the slow one was before: {read:?}");
        assert_eq!(rates.fuse[1].errors, 1);
        let attr = rates.caches.iter().find(|cache| cache.0 == "attr");
        assert_eq!(attr.and_then(|cache| cache.2), Some(1.0));
        let json = rates.json();
        assert_eq!(json["fuse_ops"]["read"]["per_s"], 5.0);
        assert_eq!(json["gauges"]["slots_in_use"], 3);
        assert!(rates.line().contains("read 2.0 MiB/s"), "{}", rates.line());
        // Nothing happened, and a reset: no negative numbers.
        assert!(Rates::between(&after, &after).fuse.is_empty());
        assert_eq!(Rates::between(&after, &before).fuse.len(), 1);
    }

    #[test]
    fn the_screen_fits_into_its_size_whatever_the_status_says() {
        let (before, after) = samples();
        let rates = Rates::between(&before, &after);
        let mut history = History::default();
        (0..100).for_each(|_| history.add(&rates));
        let status = json!({"device": "h:/", "mountpoint": "/v", "server": "h:2049", "since": 0,
            "session": {"state": "up", "slots": 64, "lease_s": 90, "idle_s": 1.0}, "write_window": {"limit": 100}});
        for (size, status) in [
            ((80, 24), &status),
            ((40, 10), &Value::Null),
            ((300, 100), &status),
        ] {
            let lines = draw(&rates, &history, status, size);
            assert!(lines.len() <= size.1 + 8, "{}", lines.len());
            assert!(lines.iter().all(|line| !line.contains('\n')));
        }
        let text = draw(&rates, &history, &status, (100, 40)).join("\n");
        for shown in ["h:/", "round trips", "READ", "lookup", "3 of 64"] {
            assert!(text.contains(shown), "{shown} is not in\n{text}");
        }
    }

    #[test]
    fn curves_and_bars_have_their_width() {
        let values: VecDeque<_> = [0.0, 1.0, 4.0, 8.0].into();
        assert_eq!(curve(&values, 6), "   ▁▄█");
        assert_eq!(curve(&values, 2), "▄█");
        assert_eq!(curve(&VecDeque::new(), 3), "   ");
        let full = |text: &str| text.matches('█').count();
        assert_eq!(full(&bar(1.0, 2.0, 10)), 5);
        assert_eq!((full(&bar(1.0, 0.0, 4)), full(&bar(9.0, 2.0, 4))), (0, 4));
    }
}
