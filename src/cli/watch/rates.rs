//! What a mount did in one interval, from the numbers before and after it.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::super::exit::Failure;
use super::super::format::{bytes, count, micros};
use super::super::running::Running;
use crate::quoting;
use crate::telemetry::histogram::{Counts, Quantiles};

/// The numbers at one moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) numbers: Value,
}

impl Sample {
    pub(super) fn take(running: &Running) -> Result<Self, Failure> {
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
        pairs.map_or_else(Counts::default, |pairs| Counts::from_json(pairs))
    }
}

/// One operation in one interval.
#[derive(Debug, PartialEq)]
pub(super) struct Operation {
    pub(super) name: String,
    pub(super) per_second: f64,
    pub(super) errors: u64,
    /// `None` of an NFS operation that only accompanied others.
    pub(super) latency: Option<Quantiles>,
}

impl Operation {
    fn json(&self) -> Value {
        let latency = |of: fn(&Quantiles) -> f64| self.latency.as_ref().map(of);
        json!({
            "per_s": self.per_second, "errors": self.errors,
            "p50_us": latency(|all| all.p50_us),
            "p99_us": latency(|all| all.p99_us),
            "p999_us": latency(|all| all.p999_us),
        })
    }
}

/// What happened between two samples.
pub(super) struct Rates {
    pub(super) seconds: f64,
    pub(super) read: f64,
    pub(super) written: f64,
    pub(super) round_trips: f64,
    pub(super) fuse: Vec<Operation>,
    pub(super) nfs: Vec<Operation>,
    /// Name, questions a second, share of hits.
    pub(super) caches: Vec<(String, f64, Option<f64>)>,
    pub(super) gauges: Map<String, Value>,
    pub(super) reconnects: u64,
    pub(super) recoveries: u64,
    pub(super) slow: u64,
    pub(super) last_error: Option<String>,
}

impl Rates {
    pub(super) fn between(before: &Sample, after: &Sample) -> Self {
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
                    let many = grown(&format!("/{kind}/{name}/count"));
                    (many + counts.total() > 0).then(|| Operation {
                        name: name.clone(),
                        per_second: many as f64 / seconds,
                        errors: grown(&format!("/{kind}/{name}/errors")),
                        latency: (counts.total() > 0).then(|| counts.quantiles()),
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

    pub(super) fn json(&self) -> Value {
        let operations = |list: &[Operation]| {
            let each = list.iter().map(|op| (op.name.clone(), op.json()));
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

    pub(super) fn line(&self) -> String {
        let busiest = self.fuse.first().map_or_else(String::new, |op| {
            format!(
                "   {} {}/s p99 {}",
                quoting::plain(&op.name),
                whole(op.per_second),
                op.latency
                    .map_or_else(|| "-".to_owned(), |all| micros(all.p99_us))
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

    pub(super) fn gauge(&self, name: &str) -> i64 {
        self.gauges.get(name).and_then(Value::as_i64).unwrap_or(0)
    }
}

pub(super) fn whole(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        format!("{rate:.1}")
    } else {
        count(rate.round() as u64)
    }
}
