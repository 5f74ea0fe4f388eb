//! `stats --json`: stable keys, round trips, gauges that go back to zero.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use crate::fixtures::mount::{Mount, number};
use crate::fixtures::process::eventually;
use crate::fixtures::{World, noise};

#[test]
fn stats_have_the_promised_keys() {
    let world = World::new();
    fs::write(world.path("file"), noise(1, 100_000)).expect("write");
    let World { mount, server } = world;
    let mount = mount.remount();
    assert!(fs::read(mount.join("file")).expect("read") == noise(1, 100_000));
    fs::write(mount.join("file"), b"x").expect("write");
    // CLOSE belongs to RELEASE, which close(2) does not wait for.
    eventually(Duration::from_secs(5), || {
        (mount.stat("/nfs_ops/CLOSE/count") >= 2).then_some(())
    });
    let stats = mount.stats();
    assert!(number(&stats, "/round_trips") > 0);
    for op in ["READ", "WRITE", "OPEN", "CLOSE", "SEQUENCE"] {
        for key in [
            "count",
            "errors",
            "compounds",
            "p50_us",
            "p99_us",
            "p999_us",
        ] {
            let pointer = format!("/nfs_ops/{op}/{key}");
            let value = stats
                .pointer(&pointer)
                .unwrap_or_else(|| panic!("no {pointer}: {stats}"));
            // What no compound was sent for has no latency of its own.
            let timed = number(&stats, &format!("/nfs_ops/{op}/compounds")) > 0;
            let is_missing = key.ends_with("_us") && !timed;
            assert_eq!(value.is_null(), is_missing, "{pointer} is {value}");
        }
        assert!(number(&stats, &format!("/nfs_ops/{op}/count")) > 0, "{op}");
    }
    assert!(
        stats
            .pointer("/fuse_ops")
            .is_some_and(|ops| ops.is_object())
    );
    assert_eq!(number(&stats, "/bytes/read"), 100_000);
    assert_eq!(number(&stats, "/bytes/written"), 1);
    for cache in ["attr", "dentry"] {
        for key in ["hits", "misses"] {
            let pointer = format!("/cache/{cache}/{key}");
            assert!(
                stats.pointer(&pointer).is_some_and(|value| value.is_u64()),
                "{pointer}"
            );
        }
    }
    drop(mount);
    drop(server);
}

#[test]
fn a_cached_stat_costs_no_round_trip_and_a_new_one_costs_one() {
    let world = World::with(|request| request.option("actimeo=60"));
    fs::write(world.behind("file"), b"x").expect("write behind");
    let (_, first) = world
        .mount
        .round_trips(|| fs::metadata(world.path("file")).expect("stat"));
    assert!((1..=2).contains(&first), "a first stat took {first}");
    let (_, again) = world.mount.round_trips(|| {
        for _ in 0..100 {
            fs::metadata(world.path("file")).expect("stat");
        }
    });
    assert_eq!(again, 0, "attributes are cached for a minute");
}

#[test]
fn reading_stats_costs_no_round_trip() {
    let world = World::new();
    let ((), cost) = world.mount.round_trips(|| {
        for _ in 0..5 {
            world.mount.stats();
        }
    });
    assert!(cost <= 1, "{cost} (one may be the lease)");
}

#[test]
fn gauges_return_to_zero_when_everything_is_closed() {
    let world = World::new();
    let files: Vec<_> = (0..50)
        .map(|i| {
            let mut file = File::create(world.path(format!("{i}"))).expect("create");
            file.write_all(&noise(i, 100_000)).expect("write");
            file
        })
        .collect();
    let stats = world.mount.stats();
    assert_eq!(number(&stats, "/gauges/open_files"), 50, "{stats}");
    drop(files);
    assert_gauges_return_to_zero(&world.mount);
}

#[test]
fn inodes_are_forgotten_when_their_files_are_gone() {
    let world = World::new();
    fs::create_dir(world.path("dir")).expect("mkdir");
    for i in 0..200 {
        fs::write(world.path(format!("dir/{i}")), b"x").expect("write");
    }
    assert!(world.mount.stat("/gauges/inodes") >= 200);
    fs::remove_dir_all(world.path("dir")).expect("rm -rf");
    let left = eventually(Duration::from_secs(10), || {
        (world.mount.stat("/gauges/inodes") <= 2).then_some(())
    });
    assert!(
        left.is_some(),
        "{} inodes are still known",
        world.mount.stat("/gauges/inodes")
    );
    assert_gauges_return_to_zero(&world.mount);
}

/// What counts work in progress. `inodes` is not among them: the kernel keeps
/// those it may use again.
const IN_PROGRESS: [&str; 7] = [
    "fuse_in_flight",
    "rpc_in_flight",
    "slots_in_use",
    "open_files",
    "open_dirs",
    "window_bytes",
    "names_ahead",
];

/// Closing is done in the background (RELEASE): a moment is allowed.
#[track_caller]
pub(crate) fn assert_gauges_return_to_zero(mount: &Mount) {
    let gauges = || mount.stats()["gauges"].clone();
    let zero = eventually(Duration::from_secs(10), || {
        let gauges = gauges();
        IN_PROGRESS
            .iter()
            .all(|name| gauges[name].as_i64() == Some(0))
            .then_some(())
    });
    assert!(zero.is_some(), "{}", gauges());
}
