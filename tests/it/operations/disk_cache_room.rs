//! `-o cache=` on a disk that has no room for it from the beginning.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::noise;
use crate::fixtures::process::eventually;
use crate::fixtures::small_disk::SmallDisk;

const SOON: Duration = Duration::from_secs(30);

/// A mount with a cache on that disk, which reads, and whose status says why it does without.
fn mounted(server: &Server, disk: &SmallDisk, floor: &str, log: &Path) -> (Mount, String) {
    let cache = disk.path().join("cache");
    let mount = MountRequest::of(server)
        .option(&format!("cache={}", cache.display()))
        .option(&format!("cache_min_free={floor}"))
        .option(&format!("log={}", log.display()))
        .mount();
    let off = eventually(SOON, || {
        let status = mount.status();
        status["disk_cache"]["off"].as_str().map(str::to_owned)
    });
    let off = off.expect("it says that it is off before anything was read");
    assert!(fs::read(mount.join("file")).expect("read") == noise(1, 100_000));
    (mount, off)
}

/// The lines of the log that say so.
fn lines(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).expect("log");
    let lines = text.lines().filter(|line| line.contains("Try: free space"));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_disk_that_is_too_full_at_the_mount_is_said_at_once_with_what_to_do() {
    let server = Server::start(ServerOptions::default());
    fs::write(server.export().join("file"), noise(1, 100_000)).expect("write");
    let dir = tempfile::tempdir().expect("temporary directory");
    // Less is free than is to stay free.
    let disk = SmallDisk::new("8m");
    let log = dir.path().join("floor");
    let (mount, off) = mounted(&server, &disk, "16m", &log);
    assert!(off.contains("MiB of its disk are free"), "{off}");
    assert!(off.contains("16 MiB are to stay free"), "{off}");
    mount.unmount();
    assert_eq!(lines(&log).len(), 1, "{:?}", lines(&log));
    // Nothing is free: there is no room for the first bytes of a cache.
    let disk = SmallDisk::new("8m");
    disk.fill();
    let log = dir.path().join("nothing");
    let (mount, off) = mounted(&server, &disk, "1m", &log);
    let reasons = ["No space left", "0 MiB of its disk are free"];
    assert!(reasons.iter().any(|why| off.contains(why)), "{off}");
    mount.unmount();
    assert_eq!(lines(&log).len(), 1, "{:?}", lines(&log));
}
