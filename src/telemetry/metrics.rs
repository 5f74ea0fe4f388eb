//! The numbers of one mount, and their JSON form.
//!
//! Everything a request touches is an atomic; an operation's histogram is
//! allocated when the operation happens for the first time, so that the fifty
//! operations a mount never uses cost one pointer each.
//!
//! The time of a compound is nobody's but its own: the server tells one time for all that was in it.
//! So it is booked once, under the operation that the compound was sent for, and the others are
//! counted without a time. Booked under each of them, a GETATTR behind a WRITE would be as slow as that.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::counters::{Counter, DiskCounters, Gauges};
use super::histogram::{Counts, Histogram};
use super::operations::{Cache, FuseOp, NFS_FIRST, NFS_NAMES, NFS_OTHER};
use super::slow::SlowLog;
use crate::background::Tasks;

/// All numbers of one mount. Shared by `Arc`; counting never blocks.
#[derive(Debug)]
pub struct Metrics {
    round_trips: Counter,
    /// By operation number, `NFS_OTHER` last.
    nfs: [NfsOperation; NFS_NAMES.len() + 1],
    fuse: [OnceLock<Box<Operation>>; FuseOp::COUNT],
    caches: [HitRatio; Cache::COUNT],
    bytes_read: Counter,
    bytes_written: Counter,
    /// What comes and goes.
    pub gauges: Gauges,
    /// Connections made anew after a loss.
    pub reconnects: Counter,
    /// Recoveries of session, client id or state that were begun.
    pub recoveries: Counter,
    /// FUSE requests that were ended by a signal of their caller.
    pub interrupts: Counter,
    /// Entries of listings that were left out, since they were no names.
    pub names_left_out: Counter,
    /// What a cache on the disk did, if there is one.
    pub disk_cache: OnceLock<Arc<DiskCounters>>,
    /// What took too long.
    pub slow: SlowLog,
    /// The tasks, and which of them have died.
    pub tasks: Arc<Tasks>,
    /// Rare (an error that is worth showing), hence a lock and not an atomic.
    last_error: Arc<Mutex<Option<String>>>,
    born: Instant,
    /// Milliseconds from `born` to the last reset.
    reset_at_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Operation {
    errors: Counter,
    latency: Histogram,
}

impl Operation {
    fn record(&self, ok: bool, elapsed: Duration) {
        self.latency.record(elapsed);
        if !ok {
            self.errors.inc();
        }
    }

    fn json(&self) -> Option<Value> {
        let count = self.latency.count();
        (count > 0).then(|| {
            let latency = self.latency.quantiles();
            json!({
                "count": count,
                "errors": self.errors.get(),
                "p50_us": latency.p50_us,
                "p99_us": latency.p99_us,
                "p999_us": latency.p999_us,
            })
        })
    }

    fn reset(&self) {
        self.errors.reset();
        self.latency.reset();
    }
}

/// An operation of compounds.
#[derive(Debug, Default)]
struct NfsOperation {
    ran: Counter,
    errors: Counter,
    /// The times of the compounds that were sent for it. Most operations only accompany others.
    compounds: OnceLock<Box<Histogram>>,
}

impl NfsOperation {
    /// An operation that was in no compound's name has no latencies: `null`, and never zero.
    fn json(&self) -> Option<Value> {
        let ran = self.ran.get();
        let compounds = self.compounds.get().map_or(0, |latency| latency.count());
        (ran + compounds > 0).then(|| {
            let latency = (self.compounds.get())
                .filter(|_| compounds > 0)
                .map(|latency| latency.quantiles());
            json!({
                "count": ran,
                "errors": self.errors.get(),
                "compounds": compounds,
                "p50_us": latency.map(|latency| latency.p50_us),
                "p99_us": latency.map(|latency| latency.p99_us),
                "p999_us": latency.map(|latency| latency.p999_us),
            })
        })
    }

    fn reset(&self) {
        self.ran.reset();
        self.errors.reset();
        if let Some(latency) = self.compounds.get() {
            latency.reset();
        }
    }
}

#[derive(Debug, Default)]
struct HitRatio {
    hits: Counter,
    misses: Counter,
}

impl Metrics {
    /// A new set of zeros.
    pub fn new() -> Arc<Self> {
        let last_error = Arc::<Mutex<Option<String>>>::default();
        Arc::new(Self {
            round_trips: Counter::default(),
            nfs: std::array::from_fn(|_| NfsOperation::default()),
            fuse: [const { OnceLock::new() }; FuseOp::COUNT],
            caches: Default::default(),
            bytes_read: Counter::default(),
            bytes_written: Counter::default(),
            gauges: Gauges::default(),
            reconnects: Counter::default(),
            recoveries: Counter::default(),
            interrupts: Counter::default(),
            names_left_out: Counter::default(),
            disk_cache: OnceLock::new(),
            slow: SlowLog::default(),
            tasks: Tasks::telling(Arc::clone(&last_error)),
            last_error,
            born: Instant::now(),
            reset_at_ms: AtomicU64::new(0),
        })
    }

    /// Counts one compound sent to the server and answered (`round_trips`,
    /// `efs_fuse_round_trips_total`).
    pub fn round_trip(&self) {
        self.round_trips.inc();
    }

    /// Counts one operation of a compound, which the server has run. `op` is its NFSv4.1
    /// number; numbers outside 3..=58 are counted as `OTHER`.
    pub fn nfs_op(&self, op: u32, ok: bool) {
        let operation = self.nfs_operation(op);
        operation.ran.inc();
        if !ok {
            operation.errors.inc();
        }
    }

    /// Books the time of one compound under the operation that it was sent for, whether or not
    /// the server came to that.
    pub fn compound(&self, sent_for: u32, elapsed: Duration) {
        self.nfs_operation(sent_for)
            .compounds
            .get_or_init(Box::default)
            .record(elapsed);
    }

    fn nfs_operation(&self, op: u32) -> &NfsOperation {
        let index = op
            .checked_sub(NFS_FIRST)
            .map_or(NFS_NAMES.len(), |index| NFS_NAMES.len().min(index as usize));
        &self.nfs[index]
    }

    /// Counts one FUSE request, `elapsed` from its arrival to its answer.
    pub fn fuse_op(&self, op: FuseOp, ok: bool, elapsed: Duration) {
        self.fuse[op as usize]
            .get_or_init(Box::default)
            .record(ok, elapsed);
    }

    /// FUSE requests that were answered; not the probes of our own.
    pub fn fuse_requests(&self) -> u64 {
        let operations = self.fuse.iter().filter_map(OnceLock::get);
        operations.map(|operation| operation.latency.count()).sum()
    }

    /// Counts bytes of file data that READ brought from the server.
    pub fn bytes_read(&self, n: u64) {
        self.bytes_read.add(n);
    }

    /// Counts bytes of file data that WRITE took to the server.
    pub fn bytes_written(&self, n: u64) {
        self.bytes_written.add(n);
    }

    /// Counts one question to a cache.
    pub fn cache(&self, cache: Cache, hit: bool) {
        let ratio = &self.caches[cache as usize];
        if hit {
            ratio.hits.inc()
        } else {
            ratio.misses.inc()
        }
    }

    /// Keeps the text of the most recent error, for `status`. Never a secret.
    pub fn set_last_error(&self, text: String) {
        *self.last_error.lock() = Some(text);
    }

    /// The text of the most recent error.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Round trips so far.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.get()
    }

    /// The whole as JSON, with the keys that `stats --json` promises.
    /// Operations that never happened are absent. The numbers are read one
    /// after the other: under load they may be a few events apart.
    pub fn snapshot(&self) -> Value {
        let nfs_names = NFS_NAMES.iter().copied().chain([NFS_OTHER]);
        let fuse_names = FuseOp::ALL.iter().map(|op| op.name());
        let fuse = self.fuse.iter().map(|operation| operation.get()?.json());
        let caches = Cache::ALL.iter().map(|cache| {
            let ratio = &self.caches[*cache as usize];
            let numbers = json!({"hits": ratio.hits.get(), "misses": ratio.misses.get()});
            (cache.name().to_owned(), numbers)
        });
        let gauges = self
            .gauges
            .read()
            .map(|(name, value)| (name.to_owned(), json!(value)));
        let age_ms = self.age_ms().saturating_sub(self.reset_at_ms.load(Relaxed));
        let mut snapshot = json!({
            "seconds": age_ms as f64 / 1000.0,
            "round_trips": self.round_trips.get(),
            "nfs_ops": happened(nfs_names, self.nfs.iter().map(NfsOperation::json)),
            "fuse_ops": happened(fuse_names, fuse),
            "cache": caches.collect::<Map<_, _>>(),
            "bytes": {"read": self.bytes_read.get(), "written": self.bytes_written.get()},
            "gauges": Map::from_iter(gauges),
            "reconnects": self.reconnects.get(),
            "recoveries": self.recoveries.get(),
            "interrupts": self.interrupts.get(),
            "names_left_out": self.names_left_out.get(),
            "slow_operations": self.slow.seen.get(),
            "last_error": self.last_error(),
        });
        if let Some(disk) = self.disk_cache.get() {
            let numbers = disk
                .read()
                .map(|(name, value)| (name.to_owned(), json!(value)));
            snapshot["disk_cache"] = Value::Object(Map::from_iter(numbers));
        }
        snapshot
    }

    /// The snapshot, and under `buckets` the histograms of all FUSE requests, and of the
    /// compounds that were sent for each NFS operation (`[[bucket, count], ...]` by name): for
    /// who wants the latencies between two snapshots.
    pub fn snapshot_with_buckets(&self) -> Value {
        let nfs = NFS_NAMES.iter().copied().chain([NFS_OTHER]).zip(&self.nfs);
        let nfs = nfs.filter_map(|(name, of)| Some((name, of.compounds.get()?.counts())));
        let fuse = FuseOp::ALL.iter().zip(&self.fuse);
        let fuse = fuse.filter_map(|(op, of)| Some((op.name(), of.get()?.latency.counts())));
        let mut snapshot = self.snapshot();
        snapshot["buckets"] = json!({"fuse_ops": sparse(fuse), "nfs_ops": sparse(nfs)});
        snapshot
    }

    /// Sets everything but the gauges back to zero. Events counted while it
    /// runs may survive in one number and not in another.
    pub fn reset(&self) {
        self.reset_at_ms.store(self.age_ms(), Relaxed);
        let counters = [
            &self.round_trips,
            &self.bytes_read,
            &self.bytes_written,
            &self.reconnects,
            &self.recoveries,
            &self.interrupts,
            &self.names_left_out,
            &self.slow.seen,
        ];
        counters.into_iter().for_each(Counter::reset);
        self.nfs.iter().for_each(NfsOperation::reset);
        for operation in self.fuse.iter().filter_map(OnceLock::get) {
            operation.reset();
        }
        for ratio in &self.caches {
            ratio.hits.reset();
            ratio.misses.reset();
        }
        if let Some(disk) = self.disk_cache.get() {
            disk.reset();
        }
        *self.last_error.lock() = None;
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn happened<'a>(
    names: impl Iterator<Item = &'a str>,
    operations: impl Iterator<Item = Option<Value>>,
) -> Map<String, Value> {
    names
        .zip(operations)
        .filter_map(|(name, numbers)| Some((name.to_owned(), numbers?)))
        .collect()
}

fn sparse<'a>(of: impl Iterator<Item = (&'a str, Counts)>) -> Map<String, Value> {
    of.map(|(name, counts)| (name.to_owned(), json!(counts.sparse())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_has_the_keys_that_scripts_rely_on() {
        let metrics = Metrics::new();
        metrics.round_trip();
        metrics.nfs_op(53, true);
        metrics.nfs_op(25, false);
        metrics.compound(25, Duration::from_micros(900));
        metrics.fuse_op(FuseOp::ReadDirPlus, true, Duration::from_micros(20));
        metrics.cache(Cache::Attr, true);
        metrics.cache(Cache::Dentry, false);
        metrics.bytes_read(4096);
        metrics.bytes_written(10);
        metrics.gauges.open_files.inc();
        metrics.reconnects.inc();
        metrics.set_last_error("the server went away".to_owned());

        let shown = metrics.snapshot();
        assert_eq!(shown["round_trips"], 1);
        assert_eq!(shown["nfs_ops"]["SEQUENCE"]["count"], 1);
        assert_eq!(shown["nfs_ops"]["SEQUENCE"]["errors"], 0);
        assert_eq!(shown["nfs_ops"]["READ"]["errors"], 1);
        assert!(
            shown["nfs_ops"]["READ"]["p50_us"]
                .as_f64()
                .is_some_and(|us| us > 850.0)
        );
        assert!(shown["nfs_ops"]["READ"]["p99_us"].is_f64());
        assert_eq!(shown["nfs_ops"]["READ"]["compounds"], 1);
        assert_eq!(shown["nfs_ops"]["SEQUENCE"]["compounds"], 0);
        let accompanies = &shown["nfs_ops"]["SEQUENCE"];
        for key in ["p50_us", "p99_us", "p999_us"] {
            assert_eq!(accompanies.get(key), Some(&Value::Null), "{key}");
        }
        assert_eq!(shown["fuse_ops"]["readdirplus"]["count"], 1);
        assert_eq!(shown["cache"]["attr"], json!({"hits": 1, "misses": 0}));
        assert_eq!(shown["cache"]["dentry"], json!({"hits": 0, "misses": 1}));
        assert_eq!(shown["bytes"], json!({"read": 4096, "written": 10}));
        assert_eq!(shown["gauges"]["open_files"], 1);
        assert_eq!(shown["reconnects"], 1);
        assert_eq!(shown["last_error"], "the server went away");
    }

    #[test]
    fn operations_that_never_happened_are_absent() {
        let shown = Metrics::new().snapshot();
        assert_eq!(shown["nfs_ops"], json!({}));
        assert_eq!(shown["fuse_ops"], json!({}));
    }

    #[test]
    fn an_unknown_operation_number_is_counted_as_other() {
        let metrics = Metrics::new();
        for op in [0, 2, 59, 10_044, u32::MAX] {
            metrics.nfs_op(op, false);
        }
        metrics.nfs_op(3, true);
        metrics.nfs_op(58, true);
        let shown = metrics.snapshot();
        assert_eq!(shown["nfs_ops"]["OTHER"]["count"], 5);
        assert_eq!(shown["nfs_ops"]["ACCESS"]["count"], 1);
        assert_eq!(shown["nfs_ops"]["RECLAIM_COMPLETE"]["count"], 1);
    }

    #[test]
    fn the_time_of_a_compound_is_booked_once_also_if_the_server_did_not_come_to_its_operation() {
        let metrics = Metrics::new();
        metrics.nfs_op(53, true);
        metrics.nfs_op(22, false);
        metrics.compound(25, Duration::from_millis(2));
        let shown = metrics.snapshot_with_buckets();
        assert_eq!(shown["nfs_ops"]["READ"]["count"], 0);
        assert_eq!(shown["nfs_ops"]["READ"]["compounds"], 1);
        let booked = shown["buckets"]["nfs_ops"].as_object().unwrap();
        assert_eq!(booked.keys().collect::<Vec<_>>(), ["READ"]);
    }

    #[test]
    fn a_reset_zeroes_counters_and_keeps_gauges() {
        let metrics = Metrics::new();
        metrics.round_trip();
        metrics.fuse_op(FuseOp::Read, false, Duration::from_millis(1));
        metrics.nfs_op(25, false);
        metrics.compound(25, Duration::from_millis(1));
        metrics.cache(Cache::Page, true);
        metrics.gauges.inodes.add(7);
        metrics.reset();
        let shown = metrics.snapshot();
        assert_eq!(shown["round_trips"], 0);
        assert_eq!(shown["fuse_ops"], json!({}));
        assert_eq!(shown["nfs_ops"], json!({}));
        assert_eq!(shown["cache"]["page"]["hits"], 0);
        assert_eq!(shown["gauges"]["inodes"], 7);
    }

    #[test]
    fn no_event_is_lost_when_many_threads_count() {
        let metrics = Metrics::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..1000u64 {
                        metrics.nfs_op(9, n % 2 == 0);
                        metrics.compound(9, Duration::from_nanos(n));
                        metrics.round_trip();
                    }
                });
            }
        });
        let shown = metrics.snapshot();
        assert_eq!(shown["nfs_ops"]["GETATTR"]["count"], 4000);
        assert_eq!(shown["nfs_ops"]["GETATTR"]["errors"], 2000);
        assert_eq!(shown["nfs_ops"]["GETATTR"]["compounds"], 4000);
        assert_eq!(shown["round_trips"], 4000);
    }
}
