//! What another host has removed, replaced or made anew, met by path: two mounts of one
//! server.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::World;
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::process::eventually;
use crate::fixtures::sys;

fn two() -> (World, Mount) {
    let world = World::new();
    let other = Mount::new(&world.server);
    (world, other)
}

/// Until this host has heard of it.
fn is_there(path: &Path) {
    let seen = eventually(Duration::from_secs(5), || path.exists().then_some(()));
    seen.unwrap_or_else(|| panic!("{}", path.display()));
}

/// A tree is made here, and made anew by the other host; then `act` in the deepest
/// directory.
fn made_anew(what: &str, act: impl Fn(&Path) -> io::Result<()>) {
    let (world, other) = two();
    for (number, top) in ["t/s", "t"].into_iter().enumerate() {
        let base = format!("{number}");
        let (here, there) = (world.path(&base), other.join(&base));
        fs::create_dir_all(here.join("t/s")).expect("mkdir");
        fs::write(here.join("t/s/n1"), "old").expect("write");
        assert_eq!(fs::read_dir(here.join("t/s")).expect("readdir").count(), 1);
        assert_eq!(fs::read(here.join("t/s/n1")).expect("read"), b"old");
        is_there(&there.join("t/s/n1"));
        fs::remove_dir_all(there.join(top)).expect("remove");
        fs::create_dir_all(there.join("t/s")).expect("mkdir");
        fs::write(there.join("t/s/n1"), "new data").expect("write");
        fs::write(there.join("t/s/n2"), "two").expect("write");
        act(&here.join("t/s")).unwrap_or_else(|error| panic!("{what}, {top} made anew: {error}"));
    }
}

#[test]
fn a_tree_that_another_host_made_anew_is_used_by_path_as_if_nothing_had_happened() {
    let names = |dir: &Path| -> io::Result<Vec<_>> {
        let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
        let mut names = entries.collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    made_anew("read", |dir| {
        assert_eq!(fs::read(dir.join("n1"))?, b"new data");
        Ok(())
    });
    made_anew("list", |dir| {
        assert_eq!(names(dir)?, ["n1", "n2"]);
        Ok(())
    });
    made_anew("truncate", |dir| sys::truncate(&dir.join("n1"), 3));
    made_anew("chmod", |dir| {
        fs::set_permissions(dir.join("n1"), PermissionsExt::from_mode(0o600))
    });
    made_anew("create", |dir| fs::write(dir.join("c"), b""));
    made_anew("create anew", |dir| {
        File::create_new(dir.join("x")).map(drop)
    });
    made_anew("symlink", |dir| symlink("n1", dir.join("l")));
    made_anew("mkdir", |dir| fs::create_dir(dir.join("m")));
    made_anew("link", |dir| fs::hard_link(dir.join("n1"), dir.join("h")));
    made_anew("rename", |dir| fs::rename(dir.join("n1"), dir.join("r")));
    made_anew("unlink", |dir| fs::remove_file(dir.join("n2")));
    made_anew("remove all", |dir| fs::remove_dir_all(dir));
}

type Way<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

/// The lock of many scripts: whose call makes the name has it.
#[test]
fn a_name_that_another_host_has_removed_can_be_made_at_once() {
    let world = World::new();
    // Which believes nothing, also what it has removed itself.
    let other = MountRequest::of(&world.server).option("noac").mount();
    fs::write(world.path("target"), b"").expect("write");
    let ways: [(&str, Way<'_>); 4] = [
        ("mkdir", &|path| fs::create_dir(path)),
        ("O_EXCL", &|path| File::create_new(path).map(drop)),
        ("symlink", &|path| symlink("target", path)),
        ("link", &|path| fs::hard_link(world.path("target"), path)),
    ];
    for (what, make) in ways {
        for round in 0..3 {
            let name = format!("lock {what}");
            make(&world.path(&name)).unwrap_or_else(|error| panic!("{what} {round}: {error}"));
            // It is there, and this host believes so.
            let again = make(&world.path(&name)).expect_err("a second lock");
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists, "{what}");
            is_there(&other.join(&name));
            let gone = other.join(&name);
            match gone.is_dir() {
                true => fs::remove_dir(gone).expect("rmdir"),
                false => fs::remove_file(gone).expect("unlink"),
            }
        }
    }
}

/// What the kernel asks although it has the answer costs no more than it must.
#[test]
fn names_that_are_known_are_asked_for_only_by_who_must_know() {
    let world = World::with(|request| request.option("actimeo=600"));
    fs::create_dir_all(world.path("a/b/c")).expect("mkdir");
    for name in ["a/f", "a/b/f", "g"] {
        fs::write(world.path(name), b"").expect("write");
    }
    symlink("f", world.path("a/l")).expect("symlink");
    let cost = |what: &str, most: u64, work: &dyn Fn() -> io::Result<()>| {
        let ((), spent) = world.mount.round_trips(|| work().expect(what));
        assert!(spent <= most, "{what}: {spent} of {most} round trips");
    };
    let path = |name: &str| world.path(name);
    cost("look at all", 0, &|| {
        for name in ["a", "a/b", "a/b/c", "a/f", "a/b/f", "g", "a/l"] {
            fs::symlink_metadata(path(name))?;
        }
        Ok(())
    });
    cost("rename over a file of the same name", 1, &|| {
        fs::rename(path("a/f"), path("a/b/f"))
    });
    cost("rename over a file", 1, &|| {
        fs::rename(path("g"), path("a/b/f"))
    });
    cost("make it again", 2, &|| fs::write(path("g"), b""));
    cost("rename over a link", 1, &|| {
        fs::rename(path("g"), path("a/l"))
    });
    // As the kernel's client: each mkdir that finds a name asks whether it is there.
    cost("mkdir -p", 3 + 1, &|| fs::create_dir_all(path("a/b/c/d")));
    // The time of change of what was renamed.
    cost("look at all of them", 2, &|| {
        for name in ["a", "a/b", "a/b/c", "a/b/c/d", "a/b/f", "a/l"] {
            fs::symlink_metadata(path(name))?;
        }
        Ok(())
    });
}

#[test]
fn an_open_never_fails_because_another_host_replaces_the_file() {
    let (world, other) = two();
    fs::write(other.join("cfg"), vec![b'0'; 1000]).expect("write");
    is_there(&world.path("cfg"));
    let over = AtomicBool::new(false);
    let opens = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let digit = b'0' + (round % 10) as u8;
                fs::write(other.join("cfg.new"), vec![digit; 1000 + round % 5000]).expect("write");
                fs::rename(other.join("cfg.new"), other.join("cfg")).expect("rename");
            }
        });
        let (start, mut opens) = (Instant::now(), 0);
        let mut wrong = None;
        while start.elapsed() < Duration::from_secs(4) && wrong.is_none() {
            opens += 1;
            match File::open(world.path("cfg")) {
                Ok(mut file) => {
                    let mut data = Vec::new();
                    // ESTALE: the file is gone by now.
                    let read = file.read_to_end(&mut data);
                    let torn = read.is_ok() && data.iter().any(|byte| *byte != data[0]);
                    wrong = torn.then(|| "torn".to_owned());
                }
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(wrong, None, "at open {opens}");
        opens
    });
    assert!(opens > 50, "{opens}");
}

/// tar(1) compares the two: "file changed as we read it".
#[test]
fn a_directory_that_is_opened_has_the_attributes_of_what_is_listed() {
    let (world, other) = two();
    for round in 0..4 {
        let name = format!("d{round}");
        let (here, there) = (world.path(&name), other.join(&name));
        fs::create_dir(&there).expect("mkdir");
        fs::write(there.join("f"), b"").expect("write");
        is_there(&here);
        fs::metadata(here.join("f")).expect("stat");
        if round % 2 == 1 {
            assert_eq!(fs::read_dir(&here).expect("readdir").count(), 1);
        }
        // Later than the first by more than a tick of the server's clock.
        std::thread::sleep(Duration::from_millis(30));
        fs::write(there.join("later"), b"").expect("write");
        let dir = File::open(&here).expect("open");
        let before = dir.metadata().expect("fstat");
        let listed = fs::read_dir(format!("/proc/self/fd/{}", sys::fd(&dir)));
        assert_eq!(listed.expect("readdir").count(), 2, "round {round}");
        let after = dir.metadata().expect("fstat");
        let of = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec());
        assert_eq!(of(&before), of(&after), "round {round}");
    }
}

/// Python's rmtree compares what it has looked at with what it has opened.
#[test]
fn a_directory_that_was_listed_is_looked_at_anew_before_it_is_walked_again() {
    let (world, other) = two();
    for round in 0..3 {
        let (here, there) = (
            world.path(format!("d{round}")),
            other.join(format!("d{round}")),
        );
        fs::create_dir(&here).expect("mkdir");
        fs::write(here.join("file"), "old").expect("write");
        assert_eq!(fs::read_dir(&here).expect("readdir").count(), 1);
        is_there(&there.join("file"));
        fs::remove_dir_all(&there).expect("remove");
        fs::create_dir(&there).expect("mkdir");
        let seen = fs::symlink_metadata(&here).expect("lstat").ino();
        let opened = File::open(&here).and_then(|dir| dir.metadata());
        assert_eq!(opened.expect("fstat").ino(), seen, "round {round}");
        assert_eq!(fs::read_dir(&here).expect("readdir").count(), 0);
    }
}

/// What that costs: nothing on a walk, where opening would ask.
#[test]
fn looking_at_a_directory_that_was_listed_costs_what_opening_it_would() {
    let (world, _) = two();
    for dir in 0..20 {
        fs::create_dir(world.behind(format!("d{dir}"))).expect("mkdir");
        fs::write(world.behind(format!("d{dir}/file")), "x").expect("write");
    }
    let walk = |looks: bool| {
        for dir in 0..20 {
            let path = world.path(format!("d{dir}"));
            if looks {
                fs::symlink_metadata(&path).expect("lstat");
            }
            assert_eq!(fs::read_dir(&path).expect("readdir").count(), 1);
        }
    };
    walk(false);
    let ((), looked) = world.mount.round_trips(|| walk(true));
    let ((), opened) = world.mount.round_trips(|| walk(false));
    assert!(looked <= opened + 2, "{looked} and {opened}");
}
