//! The disk that the mounts of a run keep data on: one for all of them, small, and full at times.
//!
//! The hosts share its directory. So that the kernel's pages do not answer everything, a process reads three
//! times for once ([`worker`](super::super::worker)).

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use super::super::plan::Chance;
use super::Run;
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::setting;
use crate::fixtures::small_disk::SmallDisk;

/// What is known for so many milliseconds is kept: some ticks of a server that runs here.
const SETTLED: &str = "10";
/// How long a cache steps aside, in milliseconds, when its disk was full.
const REST: &str = "50";

pub(super) struct CacheDisk {
    disk: SmallDisk,
    /// How long it is full, on average, in milliseconds. It is free for three times as long.
    turn: u64,
    /// How often it was full.
    full: AtomicU64,
}

impl CacheDisk {
    pub(super) fn of_setting() -> Option<Self> {
        let turn = setting("EFS_FUSE_CHECKER_CACHE", 0);
        (turn > 0).then(|| Self {
            disk: SmallDisk::new("2m"),
            turn,
            full: AtomicU64::new(0),
        })
    }

    pub(super) fn under(&self, request: MountRequest) -> MountRequest {
        let dir = self.disk.path().join("cache");
        (request.option(&format!("cache={}", dir.display())))
            .option("cache_size=1g")
            .option("cache_min_free=1%")
            .env("EFS_FUSE_TEST_SETTLED", SETTLED)
            .env("EFS_FUSE_TEST_REST", REST)
    }

    /// Fills the disk and makes room again until the run is over.
    pub(super) fn fills(&self, run: &Run, mut chance: Chance) {
        while !run.is_over() {
            sleep(Duration::from_millis(chance.below(6 * self.turn)));
            self.disk.fill();
            self.full.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(chance.below(2 * self.turn)));
            self.disk.relieve();
        }
    }

    /// What the daemons that are there now have counted.
    pub(super) fn summary<'a>(&self, mounts: impl Iterator<Item = &'a Mount>) -> String {
        let mut text = format!(
            "the disk was full {} times",
            self.full.load(Ordering::Relaxed)
        );
        let mounts: Vec<_> = mounts.collect();
        for what in [
            "hit_bytes",
            "miss_bytes",
            "filled_bytes",
            "dropped_bytes",
            "evictions",
            "errors",
            "damaged",
        ] {
            let all: u64 = mounts
                .iter()
                .map(|mount| mount.stat(&format!("/disk_cache/{what}")))
                .sum();
            text.push_str(&format!(", {all} {what}"));
        }
        text
    }
}
