//! The numbers of a mount in the Prometheus text format (version 0.0.4).
//!
//! Every name begins with `efs_fuse_`; times are seconds, sizes bytes. The
//! latency histograms have a bucket for each power of two nanoseconds from
//! [`FIRST`] to [`LAST`], which are borders of our own finer buckets, so the
//! counts are exact; sums are within 3.2 % (see [`Counts::sum_s`]).

use std::fmt::Write;

use serde_json::Value;

use super::Metrics;
use super::histogram::Counts;

/// The lowest bucket ends at 2^14 ns = 16 us.
const FIRST: u32 = 14;
/// The highest but infinity, at 2^36 ns = 69 s.
const LAST: u32 = 36;

/// The `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of a mount; `status` as `efs-fuse status` shows it.
pub fn render(metrics: &Metrics, status: &Value) -> String {
    let mut page = Page::default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    page.head("build_info", "gauge", "The version, as a label.");
    let version = env!("CARGO_PKG_VERSION").to_owned();
    page.sample("build_info", &[("version", &version)], 1.0);
    page.head("mount_info", "gauge", "What is mounted where, as labels.");
    let labels = ["device", "mountpoint", "server"].map(|key| (key, text(&status[key])));
    page.sample("mount_info", &labels.each_ref().map(|(k, v)| (*k, v)), 1.0);
    if let Some(since) = status["since"].as_f64() {
        page.one(
            "start_time_seconds",
            "gauge",
            "When it was mounted, in seconds since 1970.",
            since,
        );
    }

    for (name, value) in metrics.totals() {
        let name = format!("{name}_total");
        page.one(&name, "counter", explain(&name), value as f64);
    }
    for (name, value) in metrics.gauges.read() {
        page.one(name, "gauge", explain(name), value as f64);
    }
    session(&mut page, status);
    takeovers(&mut page, &status["takeover"]);

    caches(&mut page, metrics);
    operations(&mut page, metrics);
    page.0
}

/// Of a mount with a keeper.
fn takeovers(page: &mut Page, takeover: &Value) {
    let name = "takeovers_total";
    let kinds = ["planned", "crash"].map(|kind| (kind, takeover["takeovers"][kind].as_f64()));
    if kinds.iter().any(|(_, times)| times.is_some()) {
        page.head(
            name,
            "counter",
            "Daemons that went on with the mount of another.",
        );
        for (kind, times) in kinds {
            page.sample(
                name,
                &[("kind", &kind.to_owned())],
                times.unwrap_or_default(),
            );
        }
    }
    if let Some(pause) = takeover["pause_ms"].as_f64() {
        let help = "How long requests waited at the last of them.";
        page.one("takeover_pause_seconds", "gauge", help, pause / 1000.0);
    }
}

fn caches(page: &mut Page, metrics: &Metrics) {
    page.head(
        "cache_hits_total",
        "counter",
        "Questions that a cache answered.",
    );
    for (cache, hits, _) in metrics.cache_counts() {
        page.sample(
            "cache_hits_total",
            &[("cache", &cache.to_owned())],
            hits as f64,
        );
    }
    page.head(
        "cache_misses_total",
        "counter",
        "Questions that a cache could not answer.",
    );
    for (cache, _, misses) in metrics.cache_counts() {
        page.sample(
            "cache_misses_total",
            &[("cache", &cache.to_owned())],
            misses as f64,
        );
    }
}

/// FUSE requests and NFS operations: how many failed, and how long they took.
fn operations(page: &mut Page, metrics: &Metrics) {
    for (fuse, kind, what) in [
        (
            true,
            "fuse",
            "FUSE requests, from their arrival to their answer",
        ),
        (
            false,
            "nfs",
            "NFS operations, by the compound each travelled in",
        ),
    ] {
        let operations: Vec<_> = metrics.operations(fuse).collect();
        let errors = format!("{kind}_errors_total");
        page.head(&errors, "counter", &format!("Failed {what}."));
        for (name, failed, _) in &operations {
            page.sample(&errors, &[("op", &(*name).to_owned())], *failed as f64);
        }
        let duration = format!("{kind}_duration_seconds");
        page.head(&duration, "histogram", &format!("Time of {what}."));
        for (name, _, counts) in &operations {
            page.histogram(&duration, name, counts);
        }
    }
}

fn session(page: &mut Page, status: &Value) {
    let session = &status["session"];
    let up = |yes: bool| f64::from(u8::from(yes));
    page.one(
        "session_up",
        "gauge",
        "1 if the NFS session is up, 0 while it is being recovered.",
        up(session["state"] == "up"),
    );
    let connections = status["connections"].as_array();
    let connected = connections
        .into_iter()
        .flatten()
        .filter(|connection| connection["state"] == "up");
    page.one(
        "connections_up",
        "gauge",
        "Connections to the server that are up.",
        connected.count() as f64,
    );
    for (key, name, help) in [
        (
            "slots",
            "session_slots",
            "Slots that the session may use: requests at once.",
        ),
        (
            "lease_s",
            "lease_seconds",
            "How long the server keeps our state without hearing from us.",
        ),
        (
            "idle_s",
            "lease_idle_seconds",
            "Time since the lease was last renewed.",
        ),
    ] {
        if let Some(value) = session[key].as_f64() {
            page.one(name, "gauge", help, value);
        }
    }
    if let Some(limit) = status["write_window"]["limit"].as_f64() {
        page.one(
            "window_limit_bytes",
            "gauge",
            "The write window (-o write_window=).",
            limit,
        );
    }
}

fn explain(name: &str) -> &'static str {
    match name {
        "round_trips_total" => "Compounds sent to the server and answered.",
        "read_bytes_total" => "File data that READ brought from the server.",
        "written_bytes_total" => "File data that WRITE took to the server.",
        "reconnects_total" => "Connections made anew after a loss.",
        "recoveries_total" => "Recoveries of session, client id or state that were begun.",
        "interrupts_total" => "FUSE requests that were ended by a signal of their caller.",
        "names_left_out_total" => "Entries of listings that were no names and left out.",
        "slow_operations_total" => "Operations that took longer than -o slow_op_ms=.",
        "fuse_in_flight" => "FUSE requests read from the kernel and not answered yet.",
        "rpc_in_flight" => "RPC calls sent and not answered yet.",
        "slots_in_use" => "Session slots that carry a request.",
        "connections" => "Connections to the server that are up.",
        "open_files" => "Open file handles the kernel holds.",
        "open_dirs" => "Open directory handles the kernel holds.",
        "inodes" => "Inodes in the inode table.",
        "window_bytes" => "Bytes accepted by write(2) and not yet answered by the server.",
        "names_ahead" => "Changes of names answered (writeback) that the server does not know yet.",
        _ => "See the documentation.",
    }
}

/// The text as it grows.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(
            self.0,
            "# HELP efs_fuse_{name} {help}\n# TYPE efs_fuse_{name} {kind}"
        );
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &String)], value: f64) {
        let _ = write!(self.0, "efs_fuse_{name}");
        for (index, (key, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{key}=\"{}\"", escaped(text));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn histogram(&mut self, name: &str, op: &str, counts: &Counts) {
        let total = counts.total();
        for exponent in FIRST..=LAST {
            let le = (1u64 << exponent) as f64 / 1e9;
            let below = counts.below(exponent);
            let _ = writeln!(
                self.0,
                "efs_fuse_{name}_bucket{{op=\"{op}\",le=\"{le}\"}} {below}"
            );
        }
        let _ = writeln!(
            self.0,
            "efs_fuse_{name}_bucket{{op=\"{op}\",le=\"+Inf\"}} {total}\n\
             efs_fuse_{name}_sum{{op=\"{op}\"}} {}\n\
             efs_fuse_{name}_count{{op=\"{op}\"}} {total}",
            counts.sum_s()
        );
    }
}

/// A label's value: paths may hold anything.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::telemetry::{Cache, FuseOp};

    fn page() -> String {
        let metrics = Metrics::new();
        metrics.round_trip();
        metrics.cache(Cache::Attr, true);
        metrics.gauges.open_files.add(3);
        metrics.nfs_op(25, false, Duration::from_micros(900));
        for us in [10, 20, 40_000] {
            metrics.fuse_op(FuseOp::Read, true, Duration::from_micros(us));
        }
        let status = json!({
            "mountpoint": "/a \"b\"\n",
            "device": "h:/",
            "server": "h:2049",
            "since": 1_700_000_000u64,
            "session": {"state": "up", "slots": 64, "lease_s": 90, "idle_s": 1.5},
            "connections": [{"state": "up"}, {"state": "down"}],
            "write_window": {"bytes": 0, "limit": 1024},
            "takeover": {"takeovers": {"planned": 2, "crash": 1}, "pause_ms": 250.0},
        });
        render(&metrics, &status)
    }

    #[test]
    fn the_promised_names_are_there_and_all_begin_alike() {
        let page = page();
        for line in [
            "efs_fuse_round_trips_total 1",
            "efs_fuse_cache_hits_total{cache=\"attr\"} 1",
            "efs_fuse_open_files 3",
            "efs_fuse_nfs_errors_total{op=\"READ\"} 1",
            "efs_fuse_connections_up 1",
            "efs_fuse_session_slots 64",
            "efs_fuse_takeovers_total{kind=\"planned\"} 2",
            "efs_fuse_takeovers_total{kind=\"crash\"} 1",
            "efs_fuse_takeover_pause_seconds 0.25",
            "efs_fuse_fuse_duration_seconds_count{op=\"read\"} 3",
        ] {
            assert!(
                page.lines().any(|found| found == line),
                "{line} is not in\n{page}"
            );
        }
        for line in page.lines() {
            let name = line
                .trim_start_matches("# HELP ")
                .trim_start_matches("# TYPE ");
            assert!(name.starts_with("efs_fuse_"), "{line}");
        }
    }

    #[test]
    fn the_buckets_of_a_histogram_only_grow_and_end_with_the_count() {
        let page = page();
        let buckets: Vec<u64> = page
            .lines()
            .filter(|line| line.starts_with("efs_fuse_fuse_duration_seconds_bucket"))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!((buckets[0], buckets[1]), (1, 2), "10 us, 20 us");
        assert!(buckets.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(buckets.last(), Some(&3));
    }

    #[test]
    fn a_path_cannot_break_a_label() {
        assert!(page().contains(r#"mountpoint="/a \"b\"\n""#));
    }
}
