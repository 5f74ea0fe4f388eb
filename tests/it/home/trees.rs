//! `efs-fuse du` and `efs-fuse rm`: whole trees over NFS, without the mount.
//!
//! What is removed lies in the export directory that the test's own server
//! made, in which nothing leads out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE, Mount, MountRequest};
use crate::fixtures::process::{Finished, run};
use crate::fixtures::proxy::{Proxy, Way};
use crate::fixtures::{World, noise};

/// For what is slow on purpose.
const SLOW: Duration = Duration::from_secs(240);

/// A server whose export holds `tree`.
fn server() -> Server {
    let server = Server::start(ServerOptions::default());
    grow(&server.export().join("tree"), 3);
    server
}

/// 40 files, a link, and above the lowest level four directories.
fn grow(dir: &Path, levels: usize) {
    fs::create_dir(dir).expect("mkdir");
    for n in 0..40 {
        fs::write(dir.join(format!("file{n}")), noise(n, 1 + 127 * n as usize)).expect("write");
    }
    symlink("/etc/passwd", dir.join("link")).expect("symlink");
    if levels > 0 {
        (0..4).for_each(|n| grow(&dir.join(format!("dir{n}")), levels - 1));
    }
}

/// Every path below `dir`, links not followed.
fn paths(dir: &Path) -> BTreeSet<String> {
    fn walk(dir: &Path, top: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).expect("readdir").flatten() {
            let path = entry.path();
            let shown = path.strip_prefix(top).expect("below").display().to_string();
            if entry.file_type().expect("type").is_dir() {
                found.insert(format!("{shown}/"));
                walk(&path, top, found);
            } else {
                found.insert(shown);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(dir, dir, &mut found);
    found
}

fn tool(server: &Server, arguments: &[&str]) -> Finished {
    let mut command = Command::new(EFS_FUSE);
    command
        .args(arguments)
        .arg("-o")
        .arg(format!("port={}", server.port()));
    run(&mut command, COMMAND_LIMIT)
}

fn json(done: &Finished) -> Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|why| panic!("{why}: {}", done.stdout))
}

#[test]
fn du_counts_what_du_counts() {
    let server = server();
    let tree = server.export().join("tree");
    // A second name is no second file.
    fs::hard_link(tree.join("file39"), tree.join("dir0/again")).expect("link");
    let device = server.device("/tree");
    let found = json(&tool(&server, &["du", &device, "--json", "-d", "1"]).expect_success("du"));
    let all = paths(&tree);
    let directories = all.iter().filter(|path| path.ends_with('/')).count() + 1;
    assert_eq!(found["directories"], directories, "{found}");
    assert_eq!(found["files"], all.len() - (directories - 1) - 1, "{found}");
    let mut du = Command::new("du");
    let expected = run(du.args(["-s", "--block-size=1"]).arg(&tree), COMMAND_LIMIT);
    let expected: u64 = expected
        .stdout
        .split('\t')
        .next()
        .expect("a size")
        .parse()
        .expect("a number");
    assert_eq!(found["bytes"], expected, "{found}");
    let below = found["below"].as_array().expect("below");
    assert_eq!(below.len(), 4, "{found}");
    assert!(below.iter().all(|dir| {
        dir["path"]
            .as_str()
            .is_some_and(|path| path.starts_with(&device))
    }));
    // For people: the largest first, the whole last; and exact.
    let shown = tool(&server, &["du", &device, "--bytes"]).expect_success("du");
    assert_eq!(shown.stdout, format!("{expected}\t{device}\n"));
    let human = tool(&server, &["du", &device]).expect_success("du").stdout;
    assert!(
        human.contains(" MiB\t") || human.contains(" KiB\t"),
        "{human}"
    );
    let file = tool(&server, &["du", &server.device("/tree/file0"), "--json"]);
    assert_eq!(json(&file.expect_success("du"))["files"], 1);
}

#[test]
fn rm_lists_exactly_what_it_would_remove_and_removes_nothing_until_yes() {
    let server = server();
    let before = paths(&server.export());
    let device = server.device("/tree");
    let done = tool(&server, &["rm", "-r", &device]).expect_success("rm");
    assert_eq!(paths(&server.export()), before, "a dry run");
    let top = server.device("/");
    let listed: BTreeSet<_> = done
        .stdout
        .lines()
        .map(|line| line.strip_prefix(&top).expect("the device").to_owned())
        .collect();
    assert_eq!(listed, before);
    assert!(
        done.stderr.contains("nothing was removed; --yes removes"),
        "{}",
        done.stderr
    );
    let report = json(&tool(&server, &["rm", "-r", &device, "--json"]).expect_success("rm"));
    assert_eq!(report["dry_run"], true);
    assert_eq!(report["removed"], 0);
    // A directory is no file.
    let refused = tool(&server, &["rm", &device, "--yes"]);
    assert_eq!(refused.code(), 1, "{}", refused.stderr);
    assert_eq!(paths(&server.export()), before);
}

#[test]
fn rm_removes_the_tree_and_nothing_beside_it() {
    let server = server();
    let export = server.export();
    fs::create_dir(export.join("beside")).expect("mkdir");
    fs::write(export.join("beside/kept"), "x").expect("write");
    // Out of the tree, and still inside the export.
    symlink("../beside", export.join("tree/way out")).expect("symlink");
    let objects = paths(&export.join("tree")).len() + 1;
    let done = tool(
        &server,
        &["rm", "-r", &server.device("/tree"), "--yes", "--json"],
    )
    .expect_success("rm");
    let report = json(&done);
    assert_eq!(report["removed"], objects, "{report}");
    assert_eq!(
        (&report["complete"], &report["errors"]),
        (&true.into(), &0.into())
    );
    assert_eq!(
        paths(&export),
        BTreeSet::from(["beside/".to_owned(), "beside/kept".to_owned()])
    );
    let again = tool(&server, &["rm", "-r", &server.device("/tree"), "--yes"]);
    assert_eq!(again.code(), 32, "{}", again.stderr);
    assert!(again.stderr.contains("no such file"), "{}", again.stderr);
}

#[test]
fn a_symbolic_link_is_removed_and_not_followed() {
    let world = World::new();
    fs::create_dir(world.behind("real")).expect("mkdir");
    fs::write(world.behind("real/kept"), "x").expect("write");
    symlink("real", world.behind("link")).expect("symlink");
    for target in [world.path("link"), world.path("link/")] {
        let mut command = Command::new(EFS_FUSE);
        let done = run(
            command.args(["rm", "-r"]).arg(&target).arg("--json"),
            COMMAND_LIMIT,
        );
        let report = json(&done.expect_success("rm"));
        let slash = target
            .as_os_str()
            .to_str()
            .is_some_and(|path| path.ends_with('/'));
        // `link/` is the directory itself, as for every other program.
        assert_eq!(report["directories"], u64::from(slash), "{report}");
    }
    let mut command = Command::new(EFS_FUSE);
    run(
        command.args(["rm", "-r", "--yes"]).arg(world.path("link")),
        COMMAND_LIMIT,
    )
    .expect_success("rm");
    assert_eq!(
        paths(&world.server.export()),
        BTreeSet::from(["real/".to_owned(), "real/kept".to_owned()])
    );
    // Nor is one in the middle of a device's path.
    symlink("real", world.behind("link")).expect("symlink");
    let through = tool(
        &world.server,
        &["rm", "-r", &world.server.device("/link/kept"), "--yes"],
    );
    assert_eq!(through.code(), 32, "{}", through.stderr);
    assert!(world.behind("real/kept").exists());
}

#[test]
fn only_what_is_old_is_removed() {
    let server = server();
    let tree = server.export().join("tree");
    let long_ago = SystemTime::now() - Duration::from_secs(40 * 86_400);
    let age = |path: &Path| {
        let file = fs::File::open(path).expect("open");
        file.set_modified(long_ago).expect("set times");
    };
    // All of one directory, with everything in it; and one file elsewhere.
    fs::remove_dir_all(tree.join("dir1")).expect("remove");
    fs::create_dir(tree.join("dir1")).expect("mkdir");
    fs::write(tree.join("dir1/old"), "x").expect("write");
    age(&tree.join("dir1/old"));
    age(&tree.join("dir1"));
    age(&tree.join("file7"));
    let before = paths(&tree);
    let device = server.device("/tree");
    let done = tool(
        &server,
        &["rm", "-r", &device, "--older-than", "30d", "--yes"],
    )
    .expect_success("rm");
    let gone: BTreeSet<_> = before.difference(&paths(&tree)).cloned().collect();
    assert_eq!(
        gone,
        BTreeSet::from(["dir1/", "dir1/old", "file7"].map(str::to_owned))
    );
    assert!(
        done.stderr.contains("too young and kept"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_path_in_a_mount_is_found_with_the_mounts_own_options() {
    let server = server();
    let mount = Mount::new(&server);
    let command = |arguments: &[&str], path: &Path| {
        let mut command = Command::new(EFS_FUSE);
        command.arg(arguments[0]).arg(path).args(&arguments[1..]);
        run(&mut command, COMMAND_LIMIT)
    };
    let of_path = json(&command(&["du", "--json"], &mount.join("tree/dir2")).expect_success("du"));
    let of_device =
        json(&tool(&server, &["du", &server.device("/tree/dir2"), "--json"]).expect_success("du"));
    assert_eq!(
        (&of_path["bytes"], &of_path["files"]),
        (&of_device["bytes"], &of_device["files"])
    );
    // Asking did not disturb the mount's own session.
    fs::write(mount.join("still here"), "x").expect("write");
    assert_eq!(mount.stat("/recoveries"), 0);
    command(&["rm", "-r", "--yes"], &mount.join("tree/dir2")).expect_success("rm");
    assert!(!server.export().join("tree/dir2").exists());
    for (path, about) in [
        (mount.path().to_owned(), "root of the file system"),
        (Path::new("/proc").to_owned(), "not in a mount of efs-fuse"),
        (mount.join("nothing/there"), "no such file"),
    ] {
        let refused = command(&["rm", "-r", "--yes"], &path);
        assert_eq!(refused.code(), 1, "{}", refused.stderr);
        assert!(
            refused.stderr.to_lowercase().contains(about),
            "{}",
            refused.stderr
        );
    }
    let root = tool(&server, &["rm", "-r", &server.device("/"), "--yes"]);
    assert_eq!(root.code(), 1, "{}", root.stderr);
    assert!(server.export().join("tree").exists());
}

#[test]
fn rm_leaves_a_tree_alone_in_which_something_is_mounted() {
    let server = server();
    let mount = Mount::new(&server);
    // Another mount of ours, on a directory in the first.
    let inner = mount.join("tree/dir3");
    let mut command = Command::new(EFS_FUSE);
    command
        .arg("mount")
        .arg(server.device("/tree/dir0"))
        .arg(&inner)
        .arg("-o")
        .arg(format!("port={}", server.port()));
    run(&mut command, COMMAND_LIMIT).expect_success("mount");
    let mut command = Command::new(EFS_FUSE);
    let refused = run(
        command.args(["rm", "-r", "--yes"]).arg(mount.join("tree")),
        COMMAND_LIMIT,
    );
    let mut umount = Command::new(EFS_FUSE);
    let unmounted = run(umount.arg("umount").arg(&inner), COMMAND_LIMIT);
    assert_eq!(refused.code(), 1, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("something is mounted in it"),
        "{}",
        refused.stderr
    );
    unmounted.expect_success("umount");
    assert!(server.export().join("tree/dir0/file0").exists());
}

#[test]
fn what_may_not_be_removed_is_named_and_the_rest_is_gone() {
    let server = Server::start(ServerOptions::default());
    let export = server.export();
    // As uid 1000: its own files go, those in a directory of root stay.
    for (dir, uid) in [("tree", 1000), ("tree/mine", 1000), ("tree/roots", 0)] {
        fs::create_dir(export.join(dir)).expect("mkdir");
        for n in 0..20 {
            fs::write(export.join(dir).join(format!("{n}")), "x").expect("write");
        }
        std::os::unix::fs::chown(export.join(dir), Some(uid), Some(uid)).expect("chown");
    }
    std::os::unix::fs::chown(&export, Some(1000), Some(1000)).expect("chown");
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=1000",
            "--regid=1000",
            "--clear-groups",
            EFS_FUSE,
            "rm",
            "-r",
            "--yes",
        ])
        .arg(server.device("/tree"))
        .arg("-o")
        .arg(format!("port={}", server.port()));
    let done = run(&mut command, COMMAND_LIMIT);
    assert_eq!(done.code(), 32, "{}", done.stderr);
    assert!(done.stderr.contains("tree/roots/"), "{}", done.stderr);
    assert!(!export.join("tree/mine").exists() && !export.join("tree/3").exists());
    assert_eq!(
        fs::read_dir(export.join("tree/roots"))
            .expect("readdir")
            .count(),
        20
    );
}

#[test]
fn trees_are_removed_many_times_faster_than_through_the_mount() {
    // Each tree is 85 directories of some 41 entries.
    let server = server();
    grow(&server.export().join("other"), 3);
    let proxy = Proxy::to(server.address());
    proxy.delay(Way::ToClient, Duration::from_millis(2));
    let mount = MountRequest::new("127.0.0.1:/", proxy.port())
        .time_limit(Duration::from_secs(300))
        .mount();
    let through_the_mount = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let done = run(command.args(arguments).arg(mount.join("tree")), SLOW);
        done.expect_success(program).took.as_secs_f64()
    };
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(EFS_FUSE);
        command
            .args(arguments)
            .arg("127.0.0.1:/other")
            .arg("-o")
            .arg(format!("port={}", proxy.port()));
        run(&mut command, SLOW)
            .expect_success("efs-fuse")
            .took
            .as_secs_f64()
    };
    let (du, our_du) = (through_the_mount("du", &["-s"]), ours(&["du"]));
    let (rm, our_rm) = (
        through_the_mount("rm", &["-rf"]),
        ours(&["rm", "-r", "--yes"]),
    );
    println!(
        "2 ms a round trip, 85 directories, 3,485 files: du {du:.2} s, efs-fuse du {our_du:.2} s"
    );
    println!("rm -rf {rm:.2} s, efs-fuse rm {our_rm:.2} s");
    assert!(!server.export().join("other").exists() && !server.export().join("tree").exists());
    assert!(
        our_rm < rm / 3.0,
        "rm -rf {rm:.2} s, efs-fuse rm {our_rm:.2} s"
    );
}

#[test]
fn a_directory_of_many_entries_is_removed_whole() {
    let server = Server::start(ServerOptions::default());
    let dir = server.export().join("many");
    fs::create_dir(&dir).expect("mkdir");
    for n in 0..12_000 {
        fs::File::create(dir.join(format!("a rather long name of an entry {n}"))).expect("create");
    }
    let report = json(
        &tool(
            &server,
            &["rm", "-r", &server.device("/many"), "--yes", "--json"],
        )
        .expect_success("rm"),
    );
    assert_eq!(report["removed"], 12_001, "{report}");
    assert!(!dir.exists());
    assert!(server.export().exists());
}
