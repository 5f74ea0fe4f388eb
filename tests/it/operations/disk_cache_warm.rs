//! `efs-fuse warm` on real mounts: what it costs, what is on the disk after it, and what it says of files
//! that cannot be read. `EFS_FUSE_WARM_FILES` is the number of files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE, Mount, MountRequest};
use crate::fixtures::process::run;
use crate::fixtures::{noise, setting};

fn request(server: &Server, dir: &Path) -> MountRequest {
    MountRequest::of(server)
        .option(&format!("cache={}", dir.join("cache").display()))
        .option("cache_min_free=1m")
}

/// What `warm --json` says of a directory of the mount, and how many round trips it took.
fn warm(mount: &Mount, name: &str, more: &[&str]) -> (Value, u64) {
    let tree = mount.join(name).display().to_string();
    let mut command = Command::new(EFS_FUSE);
    command.args(["warm", &tree, "--json"]).args(more);
    let (done, trips) = mount.round_trips(|| run(&mut command, COMMAND_LIMIT));
    let text = done.expect_success("warm").stdout;
    (serde_json::from_str(&text).expect("JSON"), trips)
}

#[test]
fn a_tree_of_small_files_is_warmed_with_a_fraction_of_their_number_in_requests() {
    let count = setting("EFS_FUSE_WARM_FILES", 3000);
    let server = Server::start(ServerOptions::default());
    let dir = tempfile::tempdir().expect("temporary directory");
    for folder in 0..3 {
        let at = server.export().join(format!("tree/d{folder}"));
        fs::create_dir_all(&at).expect("mkdir");
        for number in 0..count / 3 {
            let data = noise(folder * 10_000 + number, 2048);
            fs::write(at.join(format!("file{number}")), data).expect("write");
        }
    }
    let all = count / 3 * 3;
    let mount = request(&server, dir.path()).mount();
    let begun = Instant::now();
    let (said, trips) = warm(&mount, "tree", &[]);
    println!(
        "{all} files: {trips} round trips, {:.2?}: {said}",
        begun.elapsed()
    );
    assert_eq!(
        (said["files"].as_u64(), said["errors"].as_u64()),
        (Some(all), Some(0))
    );
    assert_eq!(said["bytes"].as_u64(), Some(all * 2048));
    // In pages.
    assert_eq!(said["filled_bytes"].as_u64(), Some(all * 4096));
    assert!(trips <= all / 4, "{trips} round trips for {all} files");
    // What the disk has already is not read again.
    let mount = mount.remount();
    let begun = Instant::now();
    let (said, trips) = warm(&mount, "tree", &[]);
    println!(
        "once more: {trips} round trips, {:.2?}: {said}",
        begun.elapsed()
    );
    assert_eq!(said["hit_bytes"].as_u64(), Some(all * 2048));
    assert_eq!(mount.stat("/bytes/read"), 0);
    assert!(
        trips <= all / 50 + 20,
        "{trips} round trips for {all} files"
    );
    for number in (0..count / 3).step_by(97) {
        let read = fs::read(mount.join(format!("tree/d1/file{number}"))).expect("read");
        assert!(read == noise(10_000 + number, 2048), "{number}");
    }
    assert_eq!(mount.stat("/bytes/read"), 0);
}

#[test]
fn what_cannot_be_read_is_said_by_name_and_a_part_of_a_tree_is_warmed_up_to_a_number_of_bytes() {
    let server = Server::start(ServerOptions::default());
    let dir = tempfile::tempdir().expect("temporary directory");
    let at = server.export().join("tree");
    fs::create_dir(&at).expect("mkdir");
    for number in 0..200 {
        fs::write(at.join(format!("file{number}")), noise(number, 2000)).expect("write");
    }
    fs::write(at.join("large"), noise(1, 2_000_000)).expect("write");
    let mount = request(&server, dir.path()).mount();
    let (said, _) = warm(&mount, "tree", &["--max-bytes", "100k"]);
    let bytes = said["bytes"].as_u64().expect("a number");
    assert!((100 << 10..2_300_000).contains(&bytes), "{said}");
    // Root's own, on a server that takes root for nobody: as for the test of who may read.
    let squashed = Server::start(ServerOptions {
        squash: "Root_Squash",
        ..ServerOptions::default()
    });
    let at = squashed.export().join("tree");
    fs::create_dir(&at).expect("mkdir");
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).expect("chmod");
    for number in 0..100 {
        let path = at.join(format!("file{number}"));
        fs::write(&path, noise(number, 2000)).expect("write");
        let mode = if number == 7 { 0o600 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let other = tempfile::tempdir().expect("temporary directory");
    let mount = request(&squashed, other.path()).mount();
    let tree = mount.join("tree").display().to_string();
    let done = run(Command::new(EFS_FUSE).args(["warm", &tree]), COMMAND_LIMIT);
    assert_ne!(done.code(), 0);
    assert!(done.stderr.contains("file7: "), "{}", done.stderr);
    assert!(!done.stderr.contains("file70"), "{}", done.stderr);
    assert!(
        done.stdout.contains("100 files") || done.stdout.contains("99 files"),
        "{}",
        done.stdout
    );
    assert_eq!(mount.stat("/disk_cache/filled_bytes"), 99 * 4096);
}
