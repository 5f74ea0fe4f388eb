//! What others may rely on once they are told of a file: its attributes are at the
//! server when chmod, chown or utimensat has returned, unless nobody can have been told
//! anything of it yet.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::mount::Mount;
use crate::fixtures::process::run;
use crate::fixtures::sys::{Identity, errno, record_lock};

/// A new file, 0600, written and open.
fn made(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(path).expect("a new file");
    std::io::Write::write_all(&mut &file, b"x").expect("write");
    file
}

fn publish(way: &str, file: &File, path: &Path) -> Option<File> {
    match way {
        "fsync" => file.sync_all().expect("fsync"),
        "close of a copy" => drop(file.try_clone().expect("dup")),
        "open" => return Some(File::open(path).expect("open")),
        "lock" => record_lock(file, libc::F_WRLCK).expect("lock"),
        "link" => fs::hard_link(path, path.with_extension("link")).expect("link"),
        "rename" => {
            let aside = path.with_extension("aside");
            fs::rename(path, &aside).expect("rename");
            fs::rename(&aside, path).expect("rename");
        }
        _ => unreachable!("{way}"),
    }
    None
}

#[test]
fn the_mode_of_a_file_that_was_published_is_at_the_server_when_fchmod_has_returned() {
    let world = World::new();
    for way in ["fsync", "close of a copy", "open", "lock", "link", "rename"] {
        let name = way.replace(' ', "-");
        let file = made(&world.path(&name));
        let _open = publish(way, &file, &world.path(&name));
        for mode in [0o644, 0o640] {
            file.set_permissions(Permissions::from_mode(mode))
                .expect("fchmod");
            let there = fs::metadata(world.behind(&name)).unwrap().mode() & 0o7777;
            assert_eq!(there, mode, "after {way}");
        }
    }
}

#[test]
fn another_process_that_changes_an_open_new_file_is_told_what_the_server_says() {
    let world = World::new();
    let file = made(&world.path("f"));
    let status = run(
        Command::new("chmod").arg("644").arg(world.path("f")),
        Duration::from_secs(20),
    );
    status.expect_success("chmod by another process");
    let there = fs::metadata(world.behind("f")).unwrap().mode() & 0o7777;
    assert_eq!(there, 0o644);
    let stranger = Identity::new(4002, 4002, &[]);
    let path = world.path("f");
    let changed = stranger.run(|| fs::set_permissions(&path, Permissions::from_mode(0o666)));
    assert_eq!(errno(changed), libc::EPERM);
    file.sync_all()
        .expect("the refusal was told to whom it was about");
}

#[test]
fn removing_a_name_or_unlocking_tells_of_what_was_changed_before() {
    let world = World::new();
    let lock = made(&world.path("lock"));
    for way in ["rmdir", "unlink", "unlock"] {
        record_lock(&lock, libc::F_WRLCK).expect("lock");
        fs::create_dir(world.path("dir")).expect("mkdir");
        fs::write(world.path("go"), b"").expect("write");
        let file = made(&world.path(way));
        file.set_permissions(Permissions::from_mode(0o644))
            .expect("fchmod");
        match way {
            "rmdir" => fs::remove_dir(world.path("dir")).expect("rmdir"),
            "unlink" => fs::remove_file(world.path("go")).expect("unlink"),
            _ => record_lock(&lock, libc::F_UNLCK).expect("unlock"),
        }
        let there = fs::metadata(world.behind(way)).unwrap().mode() & 0o7777;
        assert_eq!(there, 0o644, "after {way}");
        fs::remove_dir(world.path("dir")).ok();
        fs::remove_file(world.path("go")).ok();
        record_lock(&lock, libc::F_UNLCK).expect("unlock");
    }
}

#[test]
fn another_user_of_another_host_reads_a_file_as_soon_as_it_is_told_of_its_mode() {
    let world = World::new();
    let other = Mount::new(&world.server);
    fs::set_permissions(world.mount.path(), Permissions::from_mode(0o755)).unwrap();
    for n in 0..30 {
        let name = format!("tell{n}");
        let file = made(&world.path(&name));
        file.sync_all().expect("fsync");
        file.set_permissions(Permissions::from_mode(0o644))
            .expect("fchmod");
        let reader = Identity::new(4002, 4002, &[]);
        let read = reader.run(|| fs::read(other.join(&name)));
        assert_eq!(read.expect("readable"), b"x", "{n}");
    }
}
