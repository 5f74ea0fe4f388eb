//! The two kinds of number: a [`Counter`] only grows (until a reset), a
//! [`Gauge`] follows something that comes and goes.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A number of events since mount or since the last reset.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one event.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts `n` events (or bytes).
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(super) fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

/// How much of something there is now. Never reset: it must come back to zero
/// by itself, which is what the stress tests check.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// One less.
    pub fn dec(&self) {
        self.sub(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n as i64, Relaxed);
    }

    /// `n` less.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n as i64, Relaxed);
    }

    /// Exactly `n`, for a value that its owner computes.
    pub fn set(&self, n: u64) {
        self.0.store(n as i64, Relaxed);
    }

    /// The value now. Signed, so that a missing `inc` shows as a negative
    /// number instead of a huge one.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// What a cache on the disk did (`-o cache=`).
#[derive(Debug, Default)]
pub struct DiskCounters {
    /// Bytes of file data that came from the disk instead of the server.
    pub hit_bytes: Counter,
    /// Bytes that were asked of the server, as the disk had them not.
    pub miss_bytes: Counter,
    /// Bytes that were put on the disk.
    pub filled_bytes: Counter,
    /// Bytes that were not, as others were still being written.
    pub dropped_bytes: Counter,
    /// Slices that were removed to make room.
    pub evictions: Counter,
    /// Blocks or headers that did not verify, and were not used.
    pub damaged: Counter,
    /// Errors of the disk.
    pub errors: Counter,
    /// Bytes on the disk by this daemon's account.
    pub bytes: Gauge,
}

impl DiskCounters {
    /// Name and value of each, as `stats` has them.
    pub fn read(&self) -> [(&'static str, i64); 8] {
        let number = |counter: &Counter| i64::try_from(counter.get()).unwrap_or(i64::MAX);
        [
            ("hit_bytes", number(&self.hit_bytes)),
            ("miss_bytes", number(&self.miss_bytes)),
            ("filled_bytes", number(&self.filled_bytes)),
            ("dropped_bytes", number(&self.dropped_bytes)),
            ("evictions", number(&self.evictions)),
            ("damaged", number(&self.damaged)),
            ("errors", number(&self.errors)),
            ("bytes", self.bytes.get()),
        ]
    }

    /// Sets everything but the gauge back to zero.
    pub fn reset(&self) {
        let counters = [
            &self.hit_bytes,
            &self.miss_bytes,
            &self.filled_bytes,
            &self.dropped_bytes,
            &self.evictions,
            &self.damaged,
            &self.errors,
        ];
        counters.into_iter().for_each(Counter::reset);
    }
}

/// Every gauge of a mount.
#[derive(Debug, Default)]
pub struct Gauges {
    /// FUSE requests read from the kernel and not answered yet.
    pub fuse_in_flight: Gauge,
    /// RPC calls sent and not answered yet.
    pub rpc_in_flight: Gauge,
    /// Session slots that carry a request.
    pub slots_in_use: Gauge,
    /// Connections to the server that are up.
    pub connections: Gauge,
    /// Open file handles the kernel holds.
    pub open_files: Gauge,
    /// Open directory handles the kernel holds.
    pub open_dirs: Gauge,
    /// Inodes in the inode table.
    pub inodes: Gauge,
    /// Closed files that the server still keeps open: their CLOSEs go together.
    pub closes_pending: Gauge,
    /// Bytes accepted by `write(2)` and not yet answered by the server.
    pub window_bytes: Gauge,
    /// Changes of names that were answered and that the server has not (`writeback`).
    pub names_ahead: Gauge,
}

impl Gauges {
    /// Name and value of each gauge, in the order of the snapshot.
    pub fn read(&self) -> [(&'static str, i64); 10] {
        [
            ("fuse_in_flight", self.fuse_in_flight.get()),
            ("rpc_in_flight", self.rpc_in_flight.get()),
            ("slots_in_use", self.slots_in_use.get()),
            ("connections", self.connections.get()),
            ("open_files", self.open_files.get()),
            ("open_dirs", self.open_dirs.get()),
            ("inodes", self.inodes.get()),
            ("closes_pending", self.closes_pending.get()),
            ("window_bytes", self.window_bytes.get()),
            ("names_ahead", self.names_ahead.get()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_returns_to_zero_and_shows_a_missing_inc() {
        let gauge = Gauge::default();
        gauge.add(5);
        gauge.inc();
        gauge.sub(4);
        gauge.dec();
        gauge.dec();
        assert_eq!(gauge.get(), 0);
        gauge.dec();
        assert_eq!(gauge.get(), -1);
        gauge.set(9);
        assert_eq!(gauge.get(), 9);
    }
}
