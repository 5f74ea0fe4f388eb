//! stat, chmod, chown, truncate, utimensat, access, statfs.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, chown, lchown};
use std::path::Path;
use std::time::Duration;

use crate::fixtures::sys::{self, Identity, errno};
use crate::fixtures::{World, noise};

/// What must be the same through the mount and behind it.
fn attributes(meta: &fs::Metadata) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.len(),
        ),
        (meta.mtime(), meta.mtime_nsec()),
        // The server itself reads a symbolic link when asked about it.
        (!meta.is_symlink()).then_some((meta.atime(), meta.atime_nsec())),
        (meta.ctime(), meta.ctime_nsec()),
    )
}

#[track_caller]
fn same(world: &World, name: &str) {
    let mount = fs::symlink_metadata(world.path(name)).expect("lstat");
    let behind = fs::symlink_metadata(world.behind(name)).expect("lstat behind");
    assert_eq!(attributes(&mount), attributes(&behind), "{name}");
}

#[test]
fn stat_shows_what_the_server_holds_for_every_kind() {
    let world = World::new();
    fs::write(world.behind("file"), noise(1, 12_345)).expect("write");
    fs::create_dir(world.behind("dir")).expect("mkdir");
    std::os::unix::fs::symlink("file", world.behind("link")).expect("symlink");
    sys::mknod(&world.behind("fifo"), libc::S_IFIFO | 0o622, 0).expect("mkfifo");
    chown(world.behind("file"), Some(1234), Some(5678)).expect("chown");
    for name in ["file", "dir", "link", "fifo"] {
        same(&world, name);
    }
    let mount = fs::metadata(world.path("file")).expect("stat");
    let behind = fs::metadata(world.behind("file")).expect("stat");
    assert_eq!(mount.ino(), behind.ino(), "the file id is the inode number");
    assert!(mount.blocks() > 0 && mount.blksize() >= 4096);
}

#[test]
fn chmod_changes_mode_and_ctime() {
    let world = World::new();
    fs::write(world.path("file"), b"").expect("write");
    fs::create_dir(world.path("dir")).expect("mkdir");
    for name in ["file", "dir"] {
        for mode in [0o000, 0o644, 0o777, 0o4755, 0o2755, 0o1777] {
            let before = fs::metadata(world.path(name)).expect("stat");
            std::thread::sleep(Duration::from_millis(10));
            sys::chmod(&world.path(name), mode).expect("chmod");
            let after = fs::metadata(world.path(name)).expect("stat");
            assert_eq!(after.mode() & 0o7777, mode, "{name}");
            assert!(
                (after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()),
                "{name}: ctime must move"
            );
            same(&world, name);
        }
    }
}

#[test]
fn chown_changes_owner_and_group_each_alone() {
    let world = World::new();
    fs::write(world.path("file"), b"").expect("write");
    let owner = || {
        let meta = fs::metadata(world.path("file")).expect("stat");
        (meta.uid(), meta.gid())
    };
    chown(world.path("file"), Some(1000), None).expect("chown");
    assert_eq!(owner(), (1000, 0));
    chown(world.path("file"), None, Some(2000)).expect("chown");
    assert_eq!(owner(), (1000, 2000));
    chown(world.path("file"), Some(65534), Some(4_000_000_000)).expect("chown");
    assert_eq!(owner(), (65534, 4_000_000_000));
    same(&world, "file");
    std::os::unix::fs::symlink("file", world.path("link")).expect("symlink");
    lchown(world.path("link"), Some(7), Some(8)).expect("lchown");
    same(&world, "link");
    assert_eq!(owner(), (65534, 4_000_000_000), "the target is untouched");
}

#[test]
fn truncate_shrinks_grows_and_zeroes_what_comes_back() {
    let world = World::new();
    fs::write(world.path("file"), noise(1, 100_000)).expect("write");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(world.path("file"))
        .expect("open");
    for len in [50_001, 4096, 4095, 200_000, 0, 1] {
        file.set_len(len).expect("ftruncate");
        assert_eq!(file.metadata().expect("fstat").len(), len);
        let behind = fs::read(world.behind("file")).expect("read behind");
        assert!(
            fs::read(world.path("file")).expect("read") == behind,
            "len {len}"
        );
        assert_eq!(behind.len() as u64, len);
    }
    file.set_len(0).expect("ftruncate");
    file.write_all_at(&noise(2, 8192), 0).expect("write");
    file.set_len(100).expect("ftruncate");
    file.set_len(8192).expect("ftruncate");
    let mut bytes = vec![1; 8192];
    file.read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes[..100] == noise(2, 8192)[..100]);
    assert!(
        bytes[100..].iter().all(|&byte| byte == 0),
        "cut bytes must not come back"
    );
}

#[test]
fn truncate_by_path_needs_no_open_file() {
    let world = World::new();
    fs::write(world.path("file"), noise(1, 10_000)).expect("write");
    let path = std::ffi::CString::new(world.path("file").to_str().expect("utf-8")).expect("path");
    // SAFETY: the string lives through the call.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), 77) }, 0);
    // Before the read behind, which moves the access time there.
    same(&world, "file");
    assert!(fs::read(world.behind("file")).expect("read") == noise(1, 10_000)[..77]);
}

#[test]
fn times_are_set_to_the_nanosecond_also_before_1970_and_after_2038() {
    let world = World::new();
    fs::write(world.path("file"), b"").expect("write");
    // ext4 keeps seconds from 1901 to 2446.
    for (seconds, nanos) in [
        (0, 0),
        (1, 999_999_999),
        (1_600_000_000, 123_456_789),
        (-1, 1),
        (-86_400, 500_000_000),
        (i64::from(i32::MIN), 0),
        (i64::from(i32::MAX) + 1, 1),
        (10_000_000_000, 5),
    ] {
        sys::set_times(&world.path("file"), (seconds, nanos), (seconds + 2, nanos))
            .expect("utimensat");
        let meta = fs::metadata(world.path("file")).expect("stat");
        assert_eq!((meta.atime(), meta.atime_nsec()), (seconds, nanos));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (seconds + 2, nanos));
        same(&world, "file");
    }
}

#[test]
fn each_time_can_be_left_alone_or_set_to_now() {
    let world = World::new();
    fs::write(world.path("file"), b"").expect("write");
    let path = world.path("file");
    let times = || {
        let meta = fs::metadata(&path).expect("stat");
        (meta.atime(), meta.mtime())
    };
    sys::set_times(&path, (100, 0), (200, 0)).expect("both");
    sys::set_times(&path, (0, libc::UTIME_OMIT), (300, 0)).expect("mtime only");
    assert_eq!(times(), (100, 300));
    sys::set_times(&path, (400, 0), (0, libc::UTIME_OMIT)).expect("atime only");
    assert_eq!(times(), (400, 300));
    sys::set_times(&path, (0, libc::UTIME_OMIT), (0, libc::UTIME_OMIT)).expect("none");
    assert_eq!(times(), (400, 300));
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("clock")
        .as_secs()
        .cast_signed();
    sys::set_times(&path, (0, libc::UTIME_OMIT), (0, libc::UTIME_NOW)).expect("mtime now");
    assert_eq!(times().0, 400);
    assert!((times().1 - now).abs() <= 2);
    sys::set_times(&path, (0, libc::UTIME_NOW), (500, 0)).expect("atime now");
    assert!((times().0 - now).abs() <= 2);
    assert_eq!(times().1, 500);
    same(&world, "file");
}

#[test]
fn times_set_on_a_symlink_leave_its_target_alone() {
    let world = World::new();
    fs::write(world.path("file"), b"").expect("write");
    std::os::unix::fs::symlink("file", world.path("link")).expect("symlink");
    let before = fs::metadata(world.path("file")).expect("stat").mtime();
    sys::set_times(&world.path("link"), (11, 0), (22, 0)).expect("utimensat");
    // nfs-ganesha says NFS4_OK and keeps the link's own times as they are.
    assert_eq!(
        fs::metadata(world.path("file")).expect("stat").mtime(),
        before
    );
}

#[test]
fn writing_moves_mtime_and_ctime_and_explicit_times_survive_close() {
    let world = World::new();
    let file = File::create(world.path("file")).expect("create");
    let before = file.metadata().expect("fstat");
    std::thread::sleep(Duration::from_millis(20));
    file.write_all_at(b"x", 0).expect("write");
    let after = file.metadata().expect("fstat");
    let stamp = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec());
    assert!(stamp(&after) > stamp(&before), "fstat after write");
    // As tar and cp -p do: write, set the times, close.
    file.write_all_at(&noise(1, 100_000), 0).expect("write");
    sys::set_times(&world.path("file"), (100, 0), (200, 0)).expect("utimensat");
    drop(file);
    assert_eq!(fs::metadata(world.path("file")).expect("stat").mtime(), 200);
    assert_eq!(
        fs::metadata(world.behind("file")).expect("stat").mtime(),
        200
    );
}

#[test]
fn access_answers_for_the_caller() {
    let world = World::new();
    fs::write(world.path("file"), b"").expect("write");
    chown(world.path("file"), Some(1000), Some(1000)).expect("chown");
    sys::chmod(&world.path("file"), 0o640).expect("chmod");
    let path = world.path("file");
    let ask = |who: Identity, mode| who.run(|| sys::access(&path, mode));
    let owner = || Identity::new(1000, 1000, &[]);
    let member = || Identity::new(1001, 1001, &[1000]);
    let stranger = || Identity::new(1002, 1002, &[]);
    ask(owner(), libc::R_OK | libc::W_OK).expect("owner reads and writes");
    ask(member(), libc::R_OK).expect("group reads");
    assert_eq!(errno(ask(owner(), libc::X_OK)), libc::EACCES);
    assert_eq!(errno(ask(member(), libc::W_OK)), libc::EACCES);
    assert_eq!(errno(ask(stranger(), libc::R_OK)), libc::EACCES);
    ask(stranger(), libc::F_OK).expect("it exists");
    let none = world.path("none");
    assert_eq!(errno(sys::access(&none, libc::F_OK)), libc::ENOENT);
}

#[test]
fn statfs_tells_the_servers_space() {
    let world = World::new();
    let mount = sys::statvfs(world.mount.path()).expect("statvfs");
    let behind = sys::statvfs(&world.server.export()).expect("statvfs behind");
    let total = |s: &libc::statvfs| s.f_blocks * s.f_frsize;
    let free = |s: &libc::statvfs| s.f_bavail * s.f_frsize;
    let (a, b) = (total(&mount), total(&behind));
    assert!(a.abs_diff(b) <= b / 100, "total {a} and {b}");
    // Others write to the same disk while the test runs.
    let (a, b) = (free(&mount), free(&behind));
    assert!(a.abs_diff(b) <= b / 5 + (1 << 30), "free {a} and {b}");
    assert_eq!(mount.f_namemax, 255);
}

#[test]
fn fstat_shows_the_time_of_the_last_write_and_reading_its_size_takes_no_notice() {
    let world = World::new();
    let mut file = OpenOptions::new();
    let file = file.create_new(true).read(true).write(true);
    let mut file = file.open(world.path("file")).expect("create");
    let (mut data, mut last) = (Vec::new(), None);
    for round in 0..20_u8 {
        file.write_all(&[round; 10]).expect("write");
        data.extend([round; 10]);
        // The end of the file is asked for twice, by read and by lseek.
        let mut found = vec![0; 500];
        let got = file.read_at(&mut found, 0).expect("read");
        assert_eq!(found[..got], data);
        let end = file.seek(SeekFrom::End(0)).expect("lseek");
        assert_eq!(end, data.len() as u64);
        let meta = file.metadata().expect("fstat");
        let now = Some((meta.mtime(), meta.mtime_nsec()));
        assert_eq!(meta.len(), data.len() as u64);
        assert!(now > last, "{now:?} after {last:?}");
        assert_eq!(fs::metadata(world.behind("file")).expect("stat").len(), end);
        last = now;
        std::thread::sleep(Duration::from_millis(15));
    }
}

#[test]
fn a_write_takes_set_id_rights_away_also_past_the_page_cache() {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let world = World::new();
    let mut block = Box::new(sys::Aligned([0; 8192]));
    block.0.fill(b'x');
    for (n, (flags, writer, mode, left)) in [
        (0, 1002, 0o6777, 0o777),
        (libc::O_DIRECT, 1002, 0o6777, 0o777),
        (libc::O_DIRECT, 1002, 0o6666, 0o666),
        (libc::O_DIRECT, 1002, 0o4666, 0o666),
        // Its owner is no better than others here.
        (libc::O_DIRECT, 1001, 0o6777, 0o777),
        (libc::O_DIRECT | libc::O_SYNC, 1001, 0o4766, 0o766),
        // Without the right to execute it is no right of setgid: its group may keep it.
        (libc::O_DIRECT, 1001, 0o2667, 0o2667),
        (libc::O_DIRECT, 1002, 0o2666, 0o666),
        // Root keeps them: it has CAP_FSETID.
        (libc::O_DIRECT, 0, 0o6777, 0o6777),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("file{n}");
        let path = world.path(&name);
        fs::write(&path, [0; 8192]).expect("write");
        chown(&path, Some(1001), Some(1001)).expect("chown");
        sys::chmod(&path, mode).expect("chmod");
        assert_eq!(
            fs::metadata(&path).expect("stat").permissions().mode() & 0o7777,
            mode
        );
        Identity::new(writer, writer, &[]).run(|| {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(flags)
                .open(&path)
                .expect("open");
            file.write_all_at(&block.0, 0).expect("write");
        });
        for (at, path) in [("here", path), ("server", world.behind(&name))] {
            let mode = fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
            assert_eq!(mode, left, "{at}: {flags:#o}, uid {writer}: {mode:#o}");
        }
    }
}

#[test]
fn who_may_write_a_set_id_file_may_cut_it_and_its_rights_are_gone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let by_path = |path: &Path| sys::truncate(path, 1);
    let by_open = |path: &Path| {
        OpenOptions::new().write(true).truncate(true).open(path)?;
        Ok(())
    };
    let by_file = |path: &Path| OpenOptions::new().write(true).open(path)?.set_len(1);
    type Cut<'a> = &'a (dyn Fn(&Path) -> std::io::Result<()> + Sync);
    for (how, cut) in [
        ("truncate", &by_path as Cut<'_>),
        ("O_TRUNC", &by_open),
        ("ftruncate", &by_file),
    ] {
        for (uid, left) in [(1002, 0o777), (1001, 0o777), (0, 0o6777)] {
            let name = format!("{how}{uid}");
            let path = world.path(&name);
            fs::write(&path, b"content").expect("write");
            chown(&path, Some(1001), Some(1001)).expect("chown");
            sys::chmod(&path, 0o6777).expect("chmod");
            let done = Identity::new(uid, uid, &[]).run(|| cut(&path));
            done.unwrap_or_else(|error| panic!("{name}: {error}"));
            for (at, path) in [("here", path), ("server", world.behind(&name))] {
                let meta = fs::metadata(path).expect("stat");
                assert!(meta.len() <= 1, "{name} {at}");
                let mode = meta.permissions().mode() & 0o7777;
                assert_eq!(mode, left, "{name} {at}: {mode:#o}");
            }
        }
    }
}
