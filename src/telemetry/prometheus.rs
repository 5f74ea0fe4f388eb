//! The numbers of mounts as Prometheus wants them.
//!
//! Every name begins with `efs_fuse_`, and every sample has the label `mountpoint`; times
//! are seconds, sizes bytes. What is shown is read from what a daemon answers at its
//! control socket, so that one process can show the mounts of a whole machine
//! (`efs-fuse metrics`). Such an answer may be anybody's: names come from the tables
//! here, only numbers are taken from it, and texts are labels' values.

use std::time::Duration;

use serde_json::Value;

use super::exposition::{Kind, Page};
use super::histogram::Counts;
use super::operations::{Cache, FuseOp, NFS_NAMES, NFS_OTHER};

/// The `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The longest text that is shown of an answer.
const MAX_TEXT: usize = 1024;

/// A mount of the machine.
#[derive(Debug)]
pub struct Shown {
    /// Where, as the mount table has it.
    pub mountpoint: String,
    /// The device, from there too.
    pub device: String,
    /// How long the answer took, or was waited for.
    pub took: Duration,
    /// What its daemon answers; `None` if it does not.
    pub answer: Option<Answer>,
}

/// What the daemon of a mount answers.
#[derive(Debug)]
pub struct Answer {
    /// As [`Metrics::snapshot_with_buckets`](super::Metrics::snapshot_with_buckets).
    pub numbers: Value,
    /// As `efs-fuse status --json` shows it.
    pub status: Value,
}

/// All metrics of these mounts.
pub fn render(mounts: &[Shown]) -> String {
    let mut page = Page::default();
    for mount in mounts {
        let mut of_mount = OfMount {
            page: &mut page,
            mountpoint: &mount.mountpoint,
        };
        of_mount.one(
            "up",
            Kind::Gauge,
            "1 if the daemon of the mount answers, 0 if it is gone or does not.",
            f64::from(u8::from(mount.answer.is_some())),
        );
        of_mount.one(
            "answer_seconds",
            Kind::Gauge,
            "How long the daemon took to answer, or was waited for.",
            mount.took.as_secs_f64(),
        );
        let nothing = Value::Null;
        let status = mount.answer.as_ref().map_or(&nothing, |said| &said.status);
        let text = |key: &str| shortened(status[key].as_str().unwrap_or_default());
        of_mount.labelled(
            "mount_info",
            Kind::Gauge,
            "What is mounted where, as labels.",
            &[
                ("device", shortened(&mount.device)),
                ("server", text("server")),
                ("version", text("version")),
            ],
            1.0,
        );
        if let Some(answer) = &mount.answer {
            of_mount.answer(answer);
        }
    }
    page.text()
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// Counters without further labels: name, where they are in the numbers, what they count.
const TOTALS: [(&str, &str, &str); 8] = [
    (
        "round_trips_total",
        "/round_trips",
        "Compounds sent to the server and answered.",
    ),
    (
        "read_bytes_total",
        "/bytes/read",
        "File data that READ brought from the server.",
    ),
    (
        "written_bytes_total",
        "/bytes/written",
        "File data that WRITE took to the server.",
    ),
    (
        "reconnects_total",
        "/reconnects",
        "Connections made anew after a loss.",
    ),
    (
        "recoveries_total",
        "/recoveries",
        "Recoveries of session, client id or state that were begun.",
    ),
    (
        "interrupts_total",
        "/interrupts",
        "FUSE requests that were ended by a signal of their caller.",
    ),
    (
        "names_left_out_total",
        "/names_left_out",
        "Entries of listings that were no names and left out.",
    ),
    (
        "slow_operations_total",
        "/slow_operations",
        "Operations that took longer than -o slow_op_ms=.",
    ),
];

/// What comes and goes; the names are those of [`Gauges`](super::Gauges).
const GAUGES: [(&str, &str); 10] = [
    (
        "fuse_in_flight",
        "FUSE requests read from the kernel and not answered yet.",
    ),
    ("rpc_in_flight", "RPC calls sent and not answered yet."),
    ("slots_in_use", "Session slots that carry a request."),
    ("connections", "Connections to the server that are up."),
    ("open_files", "Open file handles the kernel holds."),
    ("open_dirs", "Open directory handles the kernel holds."),
    ("inodes", "Inodes in the inode table."),
    (
        "closes_pending",
        "Closed files whose CLOSE the server has not had yet.",
    ),
    (
        "window_bytes",
        "Bytes accepted by write(2) and not yet answered by the server.",
    ),
    (
        "names_ahead",
        "Changes of names answered (writeback) that the server does not know yet.",
    ),
];

/// Of a cache on the disk: name, its key in the numbers, what it is. Those that end in `total` are
/// counters.
const DISK: [(&str, &str, &str); 8] = [
    (
        "disk_cache_hit_bytes_total",
        "hit_bytes",
        "File data that came from the disk cache instead of the server.",
    ),
    (
        "disk_cache_miss_bytes_total",
        "miss_bytes",
        "File data that were asked of the server, as the disk cache had them not.",
    ),
    (
        "disk_cache_filled_bytes_total",
        "filled_bytes",
        "File data that were put into the disk cache.",
    ),
    (
        "disk_cache_dropped_bytes_total",
        "dropped_bytes",
        "File data that were not put there, as the disk was too slow or full.",
    ),
    (
        "disk_cache_evictions_total",
        "evictions",
        "Files of the disk cache that were removed to make room.",
    ),
    (
        "disk_cache_damaged_total",
        "damaged",
        "Files of the disk cache that did not verify, and were not used.",
    ),
    (
        "disk_cache_errors_total",
        "errors",
        "Errors of the disk of the disk cache.",
    ),
    (
        "disk_cache_bytes",
        "bytes",
        "Bytes in the disk cache, by this daemon's account.",
    ),
];

/// Of the session and the write window: name, where it is in the status, what it is.
const SESSION: [(&str, &str, &str); 4] = [
    (
        "session_slots",
        "/session/slots",
        "Slots that the session may use: requests at once.",
    ),
    (
        "lease_seconds",
        "/session/lease_s",
        "How long the server keeps our state without hearing from us.",
    ),
    (
        "lease_idle_seconds",
        "/session/idle_s",
        "Time since the lease was last renewed.",
    ),
    (
        "window_limit_bytes",
        "/write_window/limit",
        "The write window (-o write_window=).",
    ),
];

/// The page, for one of the mounts on it.
struct OfMount<'a> {
    page: &'a mut Page,
    mountpoint: &'a str,
}

impl OfMount<'_> {
    fn one(&mut self, name: &'static str, kind: Kind, help: &'static str, value: f64) {
        self.labelled(name, kind, help, &[], value);
    }

    fn labelled(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let all = [&[("mountpoint", self.mountpoint)], labels].concat();
        self.page.family(name, kind, help).add(&all, value);
    }

    fn answer(&mut self, Answer { numbers, status }: &Answer) {
        if let Some(since) = status["since"].as_f64() {
            let help = "When it was mounted, in seconds since 1970.";
            self.one("start_time_seconds", Kind::Gauge, help, since);
        }
        for (name, pointer, help) in TOTALS {
            if let Some(value) = numbers.pointer(pointer).and_then(Value::as_f64) {
                self.one(name, Kind::Counter, help, value);
            }
        }
        for (name, help) in GAUGES {
            if let Some(value) = numbers["gauges"][name].as_f64() {
                self.one(name, Kind::Gauge, help, value);
            }
        }
        for (name, key, help) in DISK {
            if let Some(value) = numbers["disk_cache"][key].as_f64() {
                let kind = match name.ends_with("_total") {
                    true => Kind::Counter,
                    false => Kind::Gauge,
                };
                self.one(name, kind, help, value);
            }
        }
        self.session(status);
        self.takeovers(&status["takeover"]);
        self.caches(&numbers["cache"]);
        self.operations(numbers);
    }

    fn session(&mut self, status: &Value) {
        let up = status["session"]["state"] == "up";
        self.one(
            "session_up",
            Kind::Gauge,
            "1 if the NFS session is up, 0 while it is being recovered.",
            f64::from(u8::from(up)),
        );
        let connections = status["connections"].as_array();
        let connected = connections
            .into_iter()
            .flatten()
            .filter(|connection| connection["state"] == "up");
        self.one(
            "connections_up",
            Kind::Gauge,
            "Connections to the server that are up.",
            connected.count() as f64,
        );
        for (name, pointer, help) in SESSION {
            if let Some(value) = status.pointer(pointer).and_then(Value::as_f64) {
                self.one(name, Kind::Gauge, help, value);
            }
        }
    }

    /// Of a mount with a keeper.
    fn takeovers(&mut self, takeover: &Value) {
        let kinds = ["planned", "crash"].map(|kind| (kind, takeover["takeovers"][kind].as_f64()));
        if kinds.iter().any(|(_, times)| times.is_some()) {
            for (kind, times) in kinds {
                self.labelled(
                    "takeovers_total",
                    Kind::Counter,
                    "Daemons that went on with the mount of another.",
                    &[("kind", kind)],
                    times.unwrap_or_default(),
                );
            }
        }
        if let Some(pause) = takeover["pause_ms"].as_f64() {
            let help = "How long requests waited at the last of them.";
            self.one("takeover_pause_seconds", Kind::Gauge, help, pause / 1000.0);
        }
    }

    fn caches(&mut self, caches: &Value) {
        for (name, key, help) in [
            (
                "cache_hits_total",
                "hits",
                "Questions that a cache answered.",
            ),
            (
                "cache_misses_total",
                "misses",
                "Questions that a cache could not answer.",
            ),
        ] {
            for cache in Cache::ALL.iter().map(|cache| cache.name()) {
                if let Some(value) = caches[cache][key].as_f64() {
                    self.labelled(name, Kind::Counter, help, &[("cache", cache)], value);
                }
            }
        }
    }

    /// FUSE requests and NFS operations: how many failed, and how long they took.
    fn operations(&mut self, numbers: &Value) {
        let fuse: Vec<_> = FuseOp::ALL.iter().map(|op| op.name()).collect();
        let nfs: Vec<_> = NFS_NAMES.iter().copied().chain([NFS_OTHER]).collect();
        for (key, ops, errors, duration) in [
            (
                "fuse_ops",
                fuse,
                ("fuse_errors_total", "FUSE requests that failed."),
                (
                    "fuse_duration_seconds",
                    "Time of FUSE requests, from their arrival to their answer.",
                ),
            ),
            (
                "nfs_ops",
                nfs,
                (
                    "nfs_errors_total",
                    "NFS operations that failed; NVERIFY, VERIFY and LOCKT that answered no did not.",
                ),
                (
                    "nfs_duration_seconds",
                    "Time of compounds, each once, by the operation that it was sent for.",
                ),
            ),
        ] {
            for op in ops {
                if let Some(failed) = numbers[key][op]["errors"].as_f64() {
                    let (name, help) = errors;
                    self.labelled(name, Kind::Counter, help, &[("op", op)], failed);
                }
                self.histogram(duration, op, &numbers["buckets"][key][op]);
            }
        }
        for op in NFS_NAMES.iter().copied().chain([NFS_OTHER]) {
            if let Some(ran) = numbers["nfs_ops"][op]["count"].as_f64() {
                let help =
                    "NFS operations of compounds that the server has run, several a compound.";
                let labels = [("op", op)];
                self.labelled("nfs_operations_total", Kind::Counter, help, &labels, ran);
            }
        }
    }

    fn histogram(&mut self, (name, help): (&'static str, &'static str), op: &str, sparse: &Value) {
        if let Some(sparse) = sparse.as_array() {
            let counts = Counts::from_json(sparse);
            let labels = [("mountpoint", self.mountpoint), ("op", op)];
            self.page
                .family(name, Kind::Histogram, help)
                .histogram(&labels, &counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::telemetry::{FuseOp, Gauges, Metrics};

    fn mount(mountpoint: &str) -> Shown {
        let metrics = Metrics::new();
        metrics.round_trip();
        metrics.cache(Cache::Attr, true);
        metrics.gauges.open_files.add(3);
        metrics.nfs_op(22, true);
        metrics.nfs_op(25, false);
        metrics.compound(25, Duration::from_micros(900));
        for us in [10, 20, 40_000] {
            metrics.fuse_op(FuseOp::Read, true, Duration::from_micros(us));
        }
        let status = json!({
            "mountpoint": "/another",
            "device": "another:/",
            "server": "h:2049",
            "version": "1.2.3",
            "since": 1_700_000_000u64,
            "session": {"state": "up", "slots": 64, "lease_s": 90, "idle_s": 1.5},
            "connections": [{"state": "up"}, {"state": "down"}],
            "write_window": {"bytes": 0, "limit": 1024},
            "takeover": {"takeovers": {"planned": 2, "crash": 1}, "pause_ms": 250.0},
        });
        Shown {
            mountpoint: mountpoint.to_owned(),
            device: "h:/".to_owned(),
            took: Duration::from_millis(2),
            answer: Some(Answer {
                numbers: metrics.snapshot_with_buckets(),
                status,
            }),
        }
    }

    #[test]
    fn the_promised_names_are_there_and_all_begin_alike() {
        let page = render(&[mount("/a")]);
        for line in [
            "efs_fuse_up{mountpoint=\"/a\"} 1",
            "efs_fuse_mount_info{mountpoint=\"/a\",device=\"h:/\",server=\"h:2049\",version=\"1.2.3\"} 1",
            "efs_fuse_round_trips_total{mountpoint=\"/a\"} 1",
            "efs_fuse_cache_hits_total{mountpoint=\"/a\",cache=\"attr\"} 1",
            "efs_fuse_open_files{mountpoint=\"/a\"} 3",
            "efs_fuse_nfs_errors_total{mountpoint=\"/a\",op=\"READ\"} 1",
            "efs_fuse_nfs_operations_total{mountpoint=\"/a\",op=\"PUTFH\"} 1",
            "efs_fuse_nfs_duration_seconds_count{mountpoint=\"/a\",op=\"READ\"} 1",
            "efs_fuse_connections_up{mountpoint=\"/a\"} 1",
            "efs_fuse_session_slots{mountpoint=\"/a\"} 64",
            "efs_fuse_takeovers_total{mountpoint=\"/a\",kind=\"planned\"} 2",
            "efs_fuse_takeovers_total{mountpoint=\"/a\",kind=\"crash\"} 1",
            "efs_fuse_takeover_pause_seconds{mountpoint=\"/a\"} 0.25",
            "efs_fuse_fuse_duration_seconds_count{mountpoint=\"/a\",op=\"read\"} 3",
        ] {
            assert!(
                page.lines().any(|found| found == line),
                "{line} is not in\n{page}"
            );
        }
        let timed =
            |line: &str| line.starts_with("efs_fuse_nfs_duration") && line.contains("PUTFH");
        assert!(!page.lines().any(timed), "it only accompanies");
        for line in page.lines() {
            let name = line
                .trim_start_matches("# HELP ")
                .trim_start_matches("# TYPE ");
            assert!(name.starts_with("efs_fuse_"), "{line}");
        }
    }

    #[test]
    fn every_counter_and_gauge_that_there_is_is_shown() {
        let snapshot = Metrics::new().snapshot();
        for (name, pointer, _) in TOTALS {
            assert!(snapshot.pointer(pointer).is_some(), "{name}");
        }
        let gauges = Gauges::default().read().map(|(name, _)| name);
        assert_eq!(gauges, GAUGES.map(|(name, _)| name));
    }

    #[test]
    fn every_sample_says_of_which_mount_it_is_and_a_dead_one_is_not_left_out() {
        let mut dead = mount("/dead");
        dead.answer = None;
        let page = render(&[mount("/a"), dead, mount("/b \"x\"\n")]);
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("{mountpoint=\"/"), "{line}");
        }
        for line in [
            "efs_fuse_up{mountpoint=\"/dead\"} 0",
            "efs_fuse_up{mountpoint=\"/b \\\"x\\\"\\n\"} 1",
            "efs_fuse_mount_info{mountpoint=\"/dead\",device=\"h:/\",server=\"\",version=\"\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{page}");
        }
        let headings = page.lines().filter(|line| line.starts_with("# TYPE"));
        let names: Vec<_> = headings.clone().collect();
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len(), "one heading a name: {names:?}");
        assert!(!page.contains("session_up{mountpoint=\"/dead\"}"));
    }

    #[test]
    fn the_buckets_of_a_histogram_only_grow_and_end_with_the_count() {
        let page = render(&[mount("/a")]);
        let buckets: Vec<u64> = page
            .lines()
            .filter(|line| line.starts_with("efs_fuse_fuse_duration_seconds_bucket"))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!((buckets[0], buckets[1]), (1, 2), "10 us, 20 us");
        assert!(buckets.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(buckets.last(), Some(&3));
    }
}
