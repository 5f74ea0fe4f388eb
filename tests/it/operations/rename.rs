//! rename(2) and renameat2(2).

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fixtures::World;
use crate::fixtures::mount::MountRequest;
use crate::fixtures::process::eventually;
use crate::fixtures::sys::{errno, rename_with};

fn write(world: &World, name: &str, content: &str) {
    fs::write(world.path(name), content).expect("write");
}

#[test]
fn rename_moves_the_same_file() {
    let world = World::new();
    write(&world, "a", "content");
    let inode = fs::metadata(world.path("a")).expect("stat").ino();
    fs::rename(world.path("a"), world.path("b")).expect("rename");
    assert!(!world.path("a").exists() && !world.behind("a").exists());
    assert_eq!(fs::metadata(world.path("b")).expect("stat").ino(), inode);
    assert_eq!(
        fs::read_to_string(world.behind("b")).expect("read"),
        "content"
    );
}

#[test]
fn rename_replaces_a_file_atomically() {
    let world = World::new();
    write(&world, "target", "old");
    let reader = {
        let path = world.path("target");
        std::thread::spawn(move || {
            for _ in 0..300 {
                let content = fs::read_to_string(&path).expect("the name never vanishes");
                assert!(
                    content == "old" || content.starts_with("new"),
                    "{content:?}"
                );
            }
        })
    };
    for i in 0..30 {
        write(&world, "temporary", &format!("new {i}"));
        fs::rename(world.path("temporary"), world.path("target")).expect("rename");
    }
    reader.join().expect("reader");
    assert_eq!(
        fs::read_to_string(world.behind("target")).expect("read"),
        "new 29"
    );
}

#[test]
fn rename_between_directories_moves_links_and_children() {
    let world = World::new();
    fs::create_dir_all(world.path("from/dir/sub")).expect("mkdir");
    fs::create_dir(world.path("to")).expect("mkdir");
    write(&world, "from/dir/sub/file", "deep");
    fs::rename(world.path("from/dir"), world.path("to/moved")).expect("rename");
    assert_eq!(
        fs::read_to_string(world.path("to/moved/sub/file")).expect("read"),
        "deep"
    );
    assert!(world.behind("to/moved/sub/file").is_file());
    let links = |name: &str| fs::metadata(world.path(name)).expect("stat").nlink();
    assert_eq!((links("from"), links("to")), (2, 3));
    let up = |name: &str| fs::metadata(world.path(name)).expect("stat").ino();
    assert_eq!(
        up("to/moved/.."),
        up("to"),
        "dot-dot leads to the new parent"
    );
}

#[test]
fn rename_over_directories_follows_posix() {
    let world = World::new();
    for dir in ["empty", "full", "other"] {
        fs::create_dir(world.path(dir)).expect("mkdir");
    }
    write(&world, "full/file", "x");
    write(&world, "file", "x");
    let rename = |from: &str, to: &str| fs::rename(world.path(from), world.path(to));
    let refused = errno(rename("other", "full"));
    assert!(
        matches!(refused, libc::ENOTEMPTY | libc::EEXIST),
        "{refused}"
    );
    assert_eq!(errno(rename("file", "empty")), libc::EISDIR);
    assert_eq!(errno(rename("empty", "file")), libc::ENOTDIR);
    assert_eq!(errno(rename("full", "full/below")), libc::EINVAL);
    assert_eq!(errno(rename("none", "x")), libc::ENOENT);
    rename("full", "empty").expect("an empty directory is replaced");
    assert!(world.behind("empty/file").is_file() && !world.behind("full").exists());
}

#[test]
fn rename_of_a_link_onto_its_twin_does_nothing() {
    let world = World::new();
    write(&world, "a", "content");
    fs::hard_link(world.path("a"), world.path("b")).expect("link");
    fs::rename(world.path("a"), world.path("b")).expect("rename");
    assert!(world.path("a").exists() && world.path("b").exists());
    fs::rename(world.path("a"), world.path("a")).expect("onto itself");
    assert_eq!(fs::metadata(world.behind("a")).expect("stat").nlink(), 2);
}

#[test]
fn a_file_replaced_by_rename_stays_usable_where_it_is_open() {
    let world = World::new();
    write(&world, "target", "old content");
    write(&world, "new", "new content");
    let mut open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(world.path("target"))
        .expect("open");
    fs::rename(world.path("new"), world.path("target")).expect("rename");
    let mut content = String::new();
    open.read_to_string(&mut content).expect("read");
    assert_eq!(content, "old content");
    open.write_all(b" and more").expect("write");
    open.rewind().expect("seek");
    content.clear();
    open.read_to_string(&mut content).expect("read");
    assert_eq!(content, "old content and more");
    assert_eq!(open.metadata().expect("fstat").nlink(), 0);
    drop(open);
    assert_eq!(
        fs::read_to_string(world.behind("target")).expect("read"),
        "new content"
    );
    // Its hidden name goes with RELEASE, which close(2) does not wait for.
    eventually(Duration::from_secs(5), || {
        let names = fs::read_dir(world.server.export()).expect("readdir");
        (names.count() == 1).then_some(())
    });
}

#[test]
fn another_host_never_misses_the_name_of_an_open_file_that_is_replaced() {
    let world = World::new();
    let other = MountRequest::of(&world.server).option("noac").mount();
    write(&world, "target", "first");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while !stop.load(Ordering::Relaxed) {
                fs::metadata(other.path().join("target")).expect("the name never vanishes");
                looks += 1;
            }
            looks
        });
        let mut open = Vec::new();
        for i in 0..100 {
            open.push(fs::File::open(world.path("target")).expect("open"));
            write(&world, "new", &format!("number {i}"));
            fs::rename(world.path("new"), world.path("target")).expect("rename");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(looking.join().expect("it looked") > 0);
    });
}

#[test]
fn an_open_file_goes_on_under_its_new_name() {
    let world = World::new();
    let mut open = fs::File::create(world.path("a")).expect("create");
    open.write_all(b"one ").expect("write");
    fs::rename(world.path("a"), world.path("b")).expect("rename");
    open.write_all(b"two").expect("write");
    drop(open);
    assert_eq!(
        fs::read_to_string(world.behind("b")).expect("read"),
        "one two"
    );
}

#[test]
fn noreplace_never_replaces_and_exchange_is_refused_honestly() {
    let world = World::new();
    write(&world, "a", "a");
    write(&world, "b", "b");
    // On the server only: this mount has never looked it up.
    fs::write(world.behind("unseen"), "c").expect("write behind");
    let rename =
        |from: &str, to: &str, flags| rename_with(&world.path(from), &world.path(to), flags);
    for target in ["b", "unseen"] {
        assert_eq!(
            errno(rename("a", target, libc::RENAME_NOREPLACE)),
            libc::EEXIST
        );
    }
    // RENAME of the protocol always replaces: without a target it cannot be
    // promised that none appears meanwhile.
    assert_eq!(
        errno(rename("a", "free", libc::RENAME_NOREPLACE)),
        libc::EINVAL
    );
    assert_eq!(errno(rename("a", "b", libc::RENAME_EXCHANGE)), libc::EINVAL);
    for (name, content) in [("a", "a"), ("b", "b"), ("unseen", "c")] {
        assert_eq!(
            fs::read_to_string(world.behind(name)).expect("read"),
            content
        );
    }
    assert!(!world.behind("free").exists());
}

#[test]
fn renames_of_other_hosts_are_seen_by_name() {
    let world = World::with(|request| request.option("noac"));
    write(&world, "a", "one");
    write(&world, "b", "two");
    fs::rename(world.behind("a"), world.behind("b")).expect("rename behind");
    assert!(!world.path("a").exists());
    assert_eq!(fs::read_to_string(world.path("b")).expect("read"), "one");
}
