//! `efs-fuse stats --watch`: what a mount does, second by second.
//!
//! On a terminal it is a screen of its own that ends with `q` or Ctrl-C and
//! leaves the terminal as it was; elsewhere a line, with `--json` an object,
//! for each interval. Latencies are those of the interval, not since mount.

mod drawing;
mod rates;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use self::drawing::{History, draw};
use self::rates::{Rates, Sample};
use self::screen::Screen;
use super::exit::Failure;
use super::running::Running;

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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::drawing::{bar, curve};
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
        metrics.nfs_op(22, true);
        metrics.nfs_op(25, true);
        metrics.compound(25, Duration::from_millis(1));
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
        let slowest = read.latency.map(|all| all.p999_us);
        assert!(
            slowest.is_some_and(|us| us < 2_100.0),
            "the slow one was before: {read:?}"
        );
        assert_eq!(rates.fuse[1].errors, 1);
        let attr = rates.caches.iter().find(|cache| cache.0 == "attr");
        assert_eq!(attr.and_then(|cache| cache.2), Some(1.0));
        let json = rates.json();
        assert_eq!(json["fuse_ops"]["read"]["per_s"], 5.0);
        assert!(json["nfs_ops"]["READ"]["p50_us"].is_f64());
        let accompanies = &json["nfs_ops"]["PUTFH"];
        assert_eq!(
            (&accompanies["per_s"], &accompanies["p50_us"]),
            (&json!(0.5), &Value::Null)
        );
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
            // The screen shows the first of them, where there are more than it has rows.
            assert!(lines.len() <= size.1 + 10, "{}", lines.len());
            assert!(lines.iter().all(|line| !line.contains('\n')));
        }
        let text = draw(&rates, &history, &status, (100, 40)).join("\n");
        for shown in ["h:/", "round trips", "READ", "lookup", "3 of 64"] {
            assert!(text.contains(shown), "{shown} is not in\n{text}");
        }
    }

    /// What a terminal shows of a line: all but what colours it.
    fn shown(line: &str) -> String {
        let mut parts = line.split('\x1b');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |all, part| {
            all + part.split_once('m').map_or("", |(_, text)| text)
        })
    }

    /// Where it did not, what follows a line was pushed off the screen.
    #[test]
    fn no_line_is_longer_than_the_screen_is_wide_and_nothing_is_left_out_for_it() {
        let (before, after) = samples();
        let rates = Rates::between(&before, &after);
        let mut history = History::default();
        (0..100).for_each(|_| history.add(&rates));
        let status = json!({"device": "fs-0123456789abcdef0:/a/directory", "mountpoint": "/volumes/application/data",
            "server": "fs-0123456789abcdef0.efs.eu-west-1.amazonaws.com:2049", "since": 0,
            "session": {"state": "up", "slots": 1024, "lease_s": 90, "idle_s": 41.0}, "write_window": {"limit": 1 << 30}});
        for columns in [80, 100, 130] {
            let lines = draw(&rates, &history, &status, (columns, 50));
            let shown: Vec<_> = lines.iter().map(|line| shown(line)).collect();
            for line in &shown {
                let width = line.chars().count();
                assert!(width <= columns, "{width} of {columns}: {line}");
            }
            let text = shown.join("\n");
            for words in [
                "data",
                "amazonaws.com:2049",
                "up ",
                "session up",
                "lease 90 s, 41 s ago",
                "connections 0",
                "reconnects 0",
                "recoveries 0",
                "slow 0",
                "0 B of 1.0 GiB",
                "3 of 1024",
                "requests in flight 0, open files 0, inodes 0",
                "attr 100.0 %",
                "p99.9",
                "errors",
            ] {
                assert!(text.contains(words), "{columns}: {words} is not in\n{text}");
            }
            for (name, _, _) in &rates.caches {
                assert!(text.contains(name), "{columns}: {name} is not in\n{text}");
            }
        }
        // What is in one piece too long is cut, and the colour ends.
        let long = json!({"device": "d".repeat(300), "mountpoint": "/日本".repeat(50)});
        for line in draw(&rates, &history, &long, (80, 24)) {
            let width: usize = shown(&line)
                .chars()
                .map(|c| 1 + usize::from(c > '\u{3000}'))
                .sum();
            assert!(width <= 80, "{width}: {line}");
            assert!(
                line.rfind("\x1b[")
                    .is_none_or(|at| line[at..].starts_with("\x1b[0m")),
                "{line:?}"
            );
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
