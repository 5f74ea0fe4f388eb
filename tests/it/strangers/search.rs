//! Who may not search a directory learns nothing of what is in it, whoever has walked there
//! before and whatever this host knows of it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fixtures::World;
use crate::fixtures::mount::Mount;
use crate::fixtures::sys::{Identity, chmod, errno};

const ALICE: u32 = 1000;
const BOB: u32 = 1234;

fn as_user<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> T {
    Identity::new(user, user, &[]).run(work)
}

/// `priv`, which is alice's alone; in it a file that everybody might read, a link, and a
/// directory that everybody might write to.
fn private(world: &World) {
    let dir = world.path("priv");
    fs::create_dir(&dir).expect("mkdir");
    fs::write(dir.join("f644"), "secret").expect("write");
    symlink("f644", dir.join("link")).expect("symlink");
    fs::create_dir(dir.join("pub")).expect("mkdir");
    fs::write(dir.join("pub/file"), "theirs").expect("write");
    chmod(&dir.join("pub"), 0o777).expect("chmod");
    chmod(&dir.join("pub/file"), 0o666).expect("chmod");
    for name in ["f644", "pub", "pub/file", ""] {
        chown(dir.join(name), Some(ALICE), Some(ALICE)).expect("chown");
    }
    chmod(&dir, 0o700).expect("chmod");
}

/// Everything that alice may do, so that all of it is known.
fn walk(dir: &Path) {
    assert_eq!(fs::read_dir(dir).expect("list").count(), 3);
    assert_eq!(fs::read(dir.join("f644")).expect("read"), b"secret");
    fs::read_link(dir.join("link")).expect("readlink");
    assert_eq!(fs::read(dir.join("pub/file")).expect("read"), b"theirs");
    assert_eq!(fs::read_dir(dir.join("pub")).expect("list").count(), 1);
    assert_eq!(
        errno(fs::metadata(dir.join("missing"))),
        libc::ENOENT,
        "a missing name is known, too"
    );
}

fn refused(dir: &Path) {
    let all = [
        ("stat", errno(fs::metadata(dir.join("f644")))),
        ("lstat", errno(fs::symlink_metadata(dir.join("link")))),
        ("a missing name", errno(fs::metadata(dir.join("missing")))),
        ("open", errno(File::open(dir.join("f644")))),
        ("readlink", errno(fs::read_link(dir.join("link")))),
        ("list", errno(fs::read_dir(dir).map(drop))),
        ("list below", errno(fs::read_dir(dir.join("pub")).map(drop))),
        ("stat below", errno(fs::metadata(dir.join("pub/file")))),
        (
            "write",
            errno(OpenOptions::new().write(true).open(dir.join("pub/file"))),
        ),
        ("make", errno(File::create(dir.join("pub/new")))),
        ("remove", errno(fs::remove_file(dir.join("pub/file")))),
        (
            "rename",
            errno(fs::rename(dir.join("pub/file"), dir.join("pub/other"))),
        ),
        (
            "link",
            errno(fs::hard_link(dir.join("pub/file"), dir.join("pub/other"))),
        ),
        ("chmod", errno(chmod(&dir.join("pub/file"), 0o600))),
    ];
    for (what, errno) in all {
        assert_eq!(errno, libc::EACCES, "{what}");
    }
}

#[test]
fn what_one_user_has_walked_another_may_not_who_may_not_search_it() {
    for option in ["nodefault_permissions", "default_permissions"] {
        // Whatever the machine is busy with, what is known stays known.
        let world = World::with(|request| request.option(option).option("actimeo=60"));
        private(&world);
        let dir = world.path("priv");
        for _ in 0..2 {
            as_user(ALICE, || walk(&dir));
            as_user(BOB, || refused(&dir));
        }
        // It is not that nothing is known any more.
        let (_, asked) = world.mount.round_trips(|| {
            as_user(ALICE, || fs::metadata(dir.join("f644")).expect("stat"));
        });
        assert!(asked <= 1, "{option}: {asked}");
        assert_eq!(
            fs::read(world.behind("priv/pub/file")).expect("read"),
            b"theirs"
        );
    }
}

/// The kernel believes the old mode; the server's refusal counts.
#[test]
fn a_directory_that_another_host_has_closed_lets_nobody_open_what_is_in_it() {
    let world = World::new();
    let other = Mount::new(&world.server);
    private(&world);
    chmod(&world.path("priv"), 0o755).expect("chmod");
    let file = world.path("priv/f644");
    as_user(BOB, || fs::read(&file).expect("open to all"));
    chmod(&other.join("priv"), 0o700).expect("chmod");
    let open = as_user(BOB, || errno(File::open(&file)));
    assert_eq!(open, libc::EACCES);
    as_user(ALICE, || fs::read(&file).expect("its owner may"));
}

/// With the kernel's check chmod(2) of a stranger comes no further than that.
#[test]
fn a_stranger_takes_no_set_id_bits_without_writing() {
    let world = World::with(|request| request.option("nodefault_permissions"));
    for (name, mode) in [("file", 0o6755), ("open", 0o6777)] {
        fs::write(world.path(name), "x").expect("write");
        chown(world.path(name), Some(ALICE), Some(ALICE)).expect("chown");
        chmod(&world.path(name), mode).expect("chmod");
    }
    fs::create_dir(world.path("dir")).expect("mkdir");
    chown(world.path("dir"), Some(ALICE), Some(ALICE)).expect("chown");
    chmod(&world.path("dir"), 0o6755).expect("chmod");
    let mode = |name: &str| {
        fs::metadata(world.behind(name))
            .expect("stat")
            .permissions()
            .mode()
    };
    for name in ["file", "dir"] {
        let path = world.path(name);
        let said = as_user(BOB, || {
            let _ = OpenOptions::new().write(true).open(&path);
            errno(chmod(&path, 0o755))
        });
        assert_eq!(said, libc::EPERM, "{name}");
        assert_eq!(mode(name) & 0o7777, 0o6755, "{name}");
    }
    // Who may write does, and takes them by it.
    let path = world.path("open");
    as_user(BOB, || fs::write(&path, "changed").expect("write"));
    let taken = Instant::now() + Duration::from_secs(5);
    while mode("open") & 0o6000 != 0 {
        assert!(Instant::now() < taken, "{:o}", mode("open"));
        sleep(Duration::from_millis(10));
    }
    assert_eq!(
        fs::metadata(world.behind("open")).expect("stat").uid(),
        ALICE
    );
}
