//! `writeback` on a real mount: what programs that own their tree for a while gain by it, and
//! what they may rely on. To the request it is in `protocol::name_writeback`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fixtures::mount::{EFS_FUSE, MountRequest};
use crate::fixtures::process::{self, Finished, eventually};
use crate::fixtures::{World, noise};

fn ahead() -> World {
    World::with(|request| request.option("writeback"))
}

fn run(command: &str, at: &Path) {
    let done = Command::new("sh")
        .args(["-ec", command])
        .current_dir(at)
        .output()
        .expect("sh");
    assert!(
        done.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn sync(dir: &Path) {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .expect("fsync");
}

/// An archive of `files` small files in directories of 20, `tree.tar`, and the `tree` beside it.
fn archive(files: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    let from = dir.path().join("tree");
    for number in 0..files {
        let dir = from.join(format!("d{}", number / 20));
        fs::create_dir_all(&dir).expect("mkdir");
        let data = noise(number as u64, 100 + number % 3000);
        fs::write(dir.join(format!("f{number}")), data).expect("write");
    }
    let made = Command::new("tar")
        .arg("-cf")
        .arg(dir.path().join("tree.tar"))
        .arg("-C")
        .arg(&from)
        .arg(".")
        .status();
    assert!(made.expect("tar").success());
    dir
}

#[test]
fn an_archive_is_unpacked_with_less_than_a_request_a_file_and_is_there_after_a_sync() {
    let world = ahead();
    let files = 600;
    let archive = archive(files);
    let tree = archive.path().join("tree");
    fs::create_dir(world.path("out")).expect("mkdir");
    let ((), requests) = world.mount.round_trips(|| {
        run(
            &format!("tar -xf {}.tar", tree.display()),
            &world.path("out"),
        );
        sync(&world.path("out"));
    });
    println!("{files} files: {requests} requests");
    let compare = format!("diff -r . {}", tree.display());
    run(&compare, &world.behind("out"));
    run(&compare, &world.path("out"));
    for number in [0, 77, files - 1] {
        let name = format!("d{}/f{number}", number / 20);
        let from = fs::metadata(tree.join(&name)).expect("stat");
        let there = fs::metadata(world.behind("out").join(&name)).expect("stat");
        assert_eq!((there.mtime(), there.mode()), (from.mtime(), from.mode()));
    }
    // Half a request a file, and more where a busy machine has let the server be the faster one.
    assert!(requests <= files as u64, "{requests} requests");
    let ((), requests) = world.mount.round_trips(|| {
        run("rm -rf out", &world.path(""));
        sync(&world.path(""));
    });
    println!("removed with {requests} requests");
    assert!(requests <= files as u64 / 2, "{requests} requests");
    assert!(!world.behind("out").exists());
}

#[test]
fn what_is_closed_is_seen_by_another_host_within_a_second_and_after_a_sync_at_once() {
    let world = ahead();
    let other = MountRequest::of(&world.server).option("noac").mount();
    let dir = world.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    fs::write(dir.join("one"), b"one").expect("write");
    let seen = eventually(Duration::from_secs(2), || {
        fs::read(other.join("dir/one"))
            .ok()
            .filter(|data| data == b"one")
    });
    assert!(seen.is_some());
    let mut file = File::create(dir.join("two")).expect("create");
    file.write_all(b"two").expect("write");
    fs::write(dir.join("three"), b"three").expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(fs::read(other.join("dir/two")).expect("read"), b"two");
    assert_eq!(
        fs::read(other.join("dir/three")).expect("read"),
        b"three",
        "all before it"
    );
}

#[test]
fn programs_find_what_they_have_just_made_by_every_call() {
    let world = ahead();
    let dir = world.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    let inner = dir.join("inner");
    for round in 0..30 {
        fs::create_dir(&inner).expect("mkdir");
        fs::write(inner.join("f"), format!("round {round}")).expect("write");
        fs::set_permissions(inner.join("f"), fs::Permissions::from_mode(0o640)).expect("chmod");
        assert_eq!(
            fs::metadata(inner.join("f")).expect("stat").mode() & 0o777,
            0o640
        );
        fs::hard_link(inner.join("f"), inner.join("g")).expect("link");
        assert_eq!(fs::metadata(inner.join("f")).expect("stat").nlink(), 2);
        fs::rename(inner.join("g"), dir.join("g")).expect("rename");
        assert_eq!(
            fs::read_to_string(dir.join("g")).expect("read"),
            format!("round {round}")
        );
        let mut names: Vec<_> = (fs::read_dir(&dir).expect("readdir"))
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["g", "inner"]);
        assert!(
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(inner.join("f"))
                .is_err()
        );
        assert!(fs::remove_dir(&inner).is_err(), "it is not empty");
        fs::write(inner.join("tmp"), b"new").expect("write");
        fs::rename(inner.join("tmp"), inner.join("f")).expect("rename over");
        assert_eq!(fs::read(inner.join("f")).expect("read"), b"new");
        fs::remove_file(inner.join("f")).expect("unlink");
        fs::remove_dir(&inner).expect("rmdir");
        fs::remove_file(dir.join("g")).expect("unlink");
    }
    sync(&dir);
    assert_eq!(
        fs::read_dir(world.behind("dir")).expect("readdir").count(),
        0
    );
}

#[test]
fn a_mount_that_ends_leaves_nothing_behind() {
    let world = ahead();
    fs::create_dir(world.path("dir")).expect("mkdir");
    for number in 0..200 {
        fs::write(world.path(format!("dir/f{number}")), format!("{number}")).expect("write");
    }
    let World { server, mount } = world;
    mount.unmount().expect_success("umount");
    for number in 0..200 {
        let data = fs::read_to_string(server.export().join(format!("dir/f{number}")));
        assert_eq!(data.expect("read"), format!("{number}"));
    }
}

fn efs_fuse_sync(at: &Path) -> Finished {
    let mut command = Command::new(EFS_FUSE);
    command.arg("sync").arg(at);
    process::run(&mut command, Duration::from_secs(60))
}

#[test]
fn the_command_sync_waits_until_all_that_was_accepted_is_at_the_server_with_the_option_and_without()
{
    for option in ["writeback", "nowriteback"] {
        let world = World::with(|request| request.option(option));
        fs::create_dir(world.path("dir")).expect("mkdir");
        let mut open = Vec::new();
        for number in 0..40 {
            let mut file = File::create(world.path(format!("dir/f{number}"))).expect("create");
            file.write_all(format!("{number}").as_bytes())
                .expect("write");
            open.push(file);
        }
        efs_fuse_sync(world.mount.path()).expect_success("sync");
        for number in 0..40 {
            let data = fs::read_to_string(world.behind(format!("dir/f{number}")));
            assert_eq!(data.expect("read"), format!("{number}"), "{option}");
        }
        let status = world.mount.status();
        assert_eq!(status["late_errors"]["count"], 0);
    }
}

#[test]
fn the_command_sync_says_what_is_no_mount_in_one_line() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for path in [
        dir.path().to_owned(),
        dir.path().join("none"),
        "/proc".into(),
    ] {
        let done = efs_fuse_sync(&path);
        assert_eq!(done.code(), 1, "{}", done.stderr);
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{}", done.stderr);
    }
}
