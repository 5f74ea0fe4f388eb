//! `-o cache=` on real mounts: what is read once is read from this host's disk, and never believed
//! without asking.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE, Mount, MountRequest, Mountpoint};
use crate::fixtures::noise;
use crate::fixtures::process::{Finished, eventually, run};
use crate::fixtures::small_disk::SmallDisk;
use crate::fixtures::sys::{self, Mapping};

const SOON: Duration = Duration::from_secs(30);
/// A change attribute that was known for a second is settled.
const SETTLED: Duration = Duration::from_millis(1200);

/// A server, and a directory for caches. Mounts are to be dropped before.
struct Rig {
    server: Server,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self {
            server: Server::start(ServerOptions::default()),
            dir: tempfile::tempdir().expect("temporary directory"),
        }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn request(&self) -> MountRequest {
        self.request_in(&self.cache())
    }

    fn request_in(&self, cache: &Path) -> MountRequest {
        MountRequest::of(&self.server)
            .option(&format!("cache={}", cache.display()))
            .option("cache_min_free=1m")
    }

    /// Makes a file behind the mount.
    fn make(&self, name: &str, data: &[u8]) {
        fs::write(self.server.export().join(name), data).expect("write");
    }

    fn cache_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.cache()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("readdir").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name().is_some_and(|name| name.len() == 32) {
                    found.push(path);
                }
            }
        }
        found
    }
}

/// Reads files that were known for long enough to be put on the disk, and waits until they are.
#[track_caller]
fn read_into_cache(mount: &Mount, files: &[(&str, &[u8])]) {
    for (name, _) in files {
        drop(File::open(mount.join(name)).expect("open"));
    }
    std::thread::sleep(SETTLED);
    for (name, data) in files {
        assert!(fs::read(mount.join(name)).expect("read") == *data, "{name}");
    }
    let all: u64 = files.iter().map(|(_, data)| data.len() as u64).sum();
    let filled = eventually(SOON, || {
        (mount.stat("/disk_cache/filled_bytes") >= all).then_some(())
    });
    assert!(filled.is_some(), "{} of {all}", mount.stats()["disk_cache"]);
}

/// Bytes that came from the server meanwhile.
fn from_the_server<T>(mount: &Mount, work: impl FnOnce() -> T) -> (T, u64) {
    let before = mount.stat("/bytes/read");
    let value = work();
    (value, mount.stat("/bytes/read") - before)
}

fn efs_fuse(arguments: &[&str]) -> Finished {
    run(Command::new(EFS_FUSE).args(arguments), COMMAND_LIMIT)
}

#[test]
fn what_was_read_once_is_read_from_the_disk_after_a_remount() {
    let rig = Rig::new();
    let large = noise(1, 9_000_001);
    let small = noise(2, 5000);
    rig.make("large", &large);
    rig.make("small", &small);
    rig.make("empty", b"");
    let mount = rig.request().mount();
    read_into_cache(&mount, &[("large", &large), ("small", &small)]);
    let mount = mount.remount();
    let (_, bytes) = from_the_server(&mount, || {
        assert!(fs::read(mount.join("large")).expect("read") == large);
        assert!(fs::read(mount.join("small")).expect("read") == small);
        assert_eq!(fs::read(mount.join("empty")).expect("read"), b"");
    });
    assert_eq!(bytes, 0, "{}", mount.stats()["disk_cache"]);
    let hits = mount.stat("/disk_cache/hit_bytes");
    assert!(hits >= large.len() as u64 + 5000, "{hits}");
    // One round trip an open, as without: nothing else is asked.
    let file = mount.join("large");
    let _ = fs::metadata(&file).expect("stat");
    let (_, trips) = mount.round_trips(|| {
        let mut byte = [0; 1];
        let file = OpenOptions::new().read(true).open(&file).expect("open");
        file.read_exact_at(&mut byte, 4_000_000).expect("read");
        assert_eq!(byte[0], large[4_000_000]);
    });
    assert!(
        trips <= 2,
        "an OPEN, and a CLOSE of the one before: {trips}"
    );
}

#[test]
fn a_change_elsewhere_makes_what_is_on_the_disk_useless_and_never_wrong() {
    let rig = Rig::new();
    let mut mount = rig.request().mount();
    let other = Mount::new(&rig.server);
    let name = "file";
    for (round, len) in [
        (1, 300_000),
        (2, 300_000),
        (3, 5000),
        (4, 5000),
        (5, 400_000),
    ] {
        let data = noise(round, len);
        fs::write(other.join(name), &data).expect("write");
        read_into_cache(&mount, &[(name, &data)]);
        // In place, of the same size, by another host, before and after a remount.
        let file = OpenOptions::new().write(true).open(other.join(name));
        let file = file.expect("open");
        file.write_all_at(&noise(100 + round, 3000), 1000)
            .expect("write");
        drop(file);
        let mut expected = data.clone();
        expected[1000..4000].copy_from_slice(&noise(100 + round, 3000));
        if round % 2 == 0 {
            mount = mount.remount();
        }
        let read = fs::read(mount.join(name)).expect("read");
        assert!(read == expected, "round {round}");
    }
    assert_eq!(mount.stat("/disk_cache/damaged"), 0);
}

#[test]
fn what_this_host_writes_cuts_and_appends_is_read_back() {
    let rig = Rig::new();
    let mut model = noise(1, 500_000);
    rig.make("file", &model);
    let mut mount = rig.request().mount();
    read_into_cache(&mount, &[("file", &model)]);
    for round in 0..12_u64 {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(mount.join("file"))
            .expect("open");
        match round % 3 {
            0 => {
                let at = 7000 * round as usize;
                file.write_all_at(&noise(round, 5000), at as u64)
                    .expect("write");
                model[at..at + 5000].copy_from_slice(&noise(round, 5000));
            }
            1 => {
                let len = model.len() - 10_000;
                file.set_len(len as u64).expect("truncate");
                model.truncate(len);
            }
            _ => {
                let end = model.len() as u64;
                file.write_all_at(&noise(round, 3000), end).expect("append");
                model.extend_from_slice(&noise(round, 3000));
            }
        }
        // Through the same descriptor, and by an open of its own.
        let mut read = vec![0; model.len()];
        file.read_exact_at(&mut read, 0).expect("read");
        assert!(read == model, "round {round}");
        drop(file);
        assert!(
            fs::read(mount.join("file")).expect("read") == model,
            "round {round}"
        );
        if round % 4 == 3 {
            mount = mount.remount();
            assert!(
                fs::read(mount.join("file")).expect("read") == model,
                "{round}"
            );
        }
    }
}

#[test]
fn a_lock_shows_what_its_last_holder_wrote_whatever_is_on_the_disk() {
    let rig = Rig::new();
    let old = noise(1, 200_000);
    rig.make("file", &old);
    let mount = rig.request().mount();
    read_into_cache(&mount, &[("file", &old)]);
    let mount = mount.remount();
    let other = Mount::new(&rig.server);
    let open = |mount: &Mount| {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.open(mount.join("file")).expect("open")
    };
    let (here, there) = (open(&mount), open(&other));
    let mut read = vec![0; 100_000];
    here.read_exact_at(&mut read, 0).expect("read");
    assert!(read == old[..100_000]);
    for round in 2..6 {
        sys::record_lock(&there, libc::F_WRLCK).expect("lock");
        there
            .write_all_at(&noise(round, 200_000), 0)
            .expect("write");
        sys::record_lock(&there, libc::F_UNLCK).expect("unlock");
        sys::record_lock(&here, libc::F_RDLCK).expect("lock");
        let mut read = vec![0; 200_000];
        here.read_exact_at(&mut read, 0).expect("read");
        sys::record_lock(&here, libc::F_UNLCK).expect("unlock");
        assert!(read == noise(round, 200_000), "round {round}");
    }
}

#[test]
fn direct_reads_go_to_the_server() {
    let rig = Rig::new();
    let data = noise(1, 256 << 10);
    rig.make("file", &data);
    let mount = rig.request().mount();
    read_into_cache(&mount, &[("file", &data)]);
    let mount = mount.remount();
    let (_, bytes) = from_the_server(&mount, || {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(mount.join("file"))
            .expect("open");
        let mut read = Vec::new();
        file.read_to_end(&mut read).expect("read");
        assert!(read == data);
    });
    assert_eq!(bytes, data.len() as u64);
    assert_eq!(mount.stat("/disk_cache/hit_bytes"), 0);
}

#[test]
fn a_mapping_is_read_from_the_disk_like_any_file() {
    let rig = Rig::new();
    let data = noise(1, 1 << 20);
    rig.make("file", &data);
    let mount = rig.request().mount();
    read_into_cache(&mount, &[("file", &data)]);
    let mount = mount.remount();
    let (_, bytes) = from_the_server(&mount, || {
        let file = File::open(mount.join("file")).expect("open");
        let map = Mapping::new(&file, data.len(), libc::MAP_PRIVATE).expect("mmap");
        assert!(map.get(0, data.len()) == data);
    });
    assert_eq!(bytes, 0);
}

#[test]
fn flipped_bits_cut_files_and_strange_ones_in_the_cache_are_misses_and_a_line_in_the_log() {
    let rig = Rig::new();
    let files: Vec<(String, Vec<u8>)> = (0..20)
        .map(|n| (format!("file{n}"), noise(n, 40_000 + 30_000 * n as usize)))
        .collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, d)| (&**n, &**d)).collect();
    for (name, data) in &files {
        rig.make(name, data);
    }
    let log = rig.dir.path().join("log");
    let request = rig.request().option(&format!("log={}", log.display()));
    let mount = request.mount();
    read_into_cache(&mount, &files);
    let mut mount = mount;
    for round in 0..6_u64 {
        for (number, path) in rig.cache_files().iter().enumerate() {
            let file = OpenOptions::new().read(true).write(true).open(path);
            let file = file.expect("open");
            let len = file.metadata().expect("stat").len();
            match (number as u64 + round) % 5 {
                0 => file.set_len(len / 2).expect("cut"),
                1 => drop(fs::remove_file(path)),
                2 => fs::rename(path, rig.cache_files().last().expect("one")).expect("rename"),
                _ if len <= 36_865 => {}
                _ => {
                    let mut byte = [0; 1];
                    let at = 36_864 + (round * 7919) % (len - 36_864);
                    file.read_exact_at(&mut byte, at).expect("read");
                    byte[0] ^= 4;
                    file.write_all_at(&byte, at).expect("write");
                }
            }
        }
        mount = mount.remount();
        for (name, data) in &files {
            assert!(fs::read(mount.join(name)).expect("read") == *data, "{name}");
        }
        let damaged = mount.stat("/disk_cache/damaged");
        assert!(round > 0 || damaged > 0);
        // They come back to the disk.
        std::thread::sleep(SETTLED);
        mount = mount.remount();
        read_some_into_cache(&mount, &files);
    }
    mount.unmount();
    let log = fs::read_to_string(log).expect("log");
    assert!(log.contains("does not verify"), "{log}");
    let verified = efs_fuse(&[
        "cache",
        "verify",
        &rig.cache().display().to_string(),
        "--json",
    ]);
    let verified = verified.expect_success("verify");
    assert!(verified.stdout.contains("\"good\""), "{}", verified.stdout);
}

/// Reads files whose attributes were known for long enough by then, if only some of them are filled.
fn read_some_into_cache(mount: &Mount, files: &[(&str, &[u8])]) {
    for (name, _) in files {
        drop(File::open(mount.join(name)).expect("open"));
    }
    std::thread::sleep(SETTLED);
    for (name, data) in files {
        assert!(fs::read(mount.join(name)).expect("read") == *data, "{name}");
    }
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn a_full_disk_makes_the_cache_step_aside_and_reads_go_on() {
    let rig = Rig::new();
    let data = noise(1, 12 << 20);
    rig.make("file", &data);
    let small = SmallDisk::new("8m");
    let cache = small.path().join("cache");
    let log = rig.dir.path().join("log");
    let mount = MountRequest::of(&rig.server)
        .option(&format!("cache={}", cache.display()))
        .option("cache_size=1g")
        .option("cache_min_free=1m")
        .option(&format!("log={}", log.display()))
        .mount();
    // Somebody else's data take most of it.
    fs::write(small.path().join("others"), noise(2, 5 << 20)).expect("write");
    drop(File::open(mount.join("file")).expect("open"));
    std::thread::sleep(SETTLED);
    assert!(fs::read(mount.join("file")).expect("read") == data);
    let filled = eventually(SOON, || {
        let disk = mount.stats()["disk_cache"].clone();
        let seen = disk["filled_bytes"].as_u64()? + disk["dropped_bytes"].as_u64()?;
        (seen > 0 && (disk["errors"].as_u64()? > 0 || disk["evictions"].as_u64()? > 0))
            .then_some(())
    });
    assert!(filled.is_some(), "{}", mount.stats()["disk_cache"]);
    let free = sys::statvfs(small.path()).expect("statvfs");
    assert!(
        free.f_bavail * free.f_frsize >= 900 << 10,
        "the floor is kept"
    );
    // Now nothing at all is left, nor what the cache gives back.
    let mut rest = File::create(small.path().join("rest")).expect("create");
    let mut off = None;
    for round in 0..10 {
        while rest.write_all(&[1; 4096]).is_ok() {}
        let data = noise(10 + round, 2 << 20);
        let name = format!("more{round}");
        rig.make(&name, &data);
        drop(File::open(mount.join(&name)).expect("open"));
        std::thread::sleep(SETTLED);
        assert!(fs::read(mount.join(&name)).expect("read") == data);
        let status = mount.status();
        off = status["disk_cache"]["off"].as_str().map(str::to_owned);
        if off.is_some() {
            break;
        }
    }
    let off = off.expect("it says why it is off");
    assert!(off.contains("the disk cache"), "{off}");
    mount.unmount();
    let log = fs::read_to_string(log).expect("log");
    let lines = log.lines().filter(|line| line.contains("the disk cache: "));
    assert_eq!(lines.count(), 1, "{log}");
}

#[test]
fn two_mounts_of_one_host_share_a_directory_and_different_servers_do_not_collide() {
    let rig = Rig::new();
    let another = Server::start(ServerOptions::default());
    let data = noise(1, 700_000);
    rig.make("file", &data);
    let other_data = noise(2, 700_000);
    fs::write(another.export().join("file"), &other_data).expect("write");
    let one = rig.request().mount();
    let two = rig.request().mount();
    let stranger = MountRequest::of(&another)
        .option(&format!("cache={}", rig.cache().display()))
        .option("cache_min_free=1m")
        .mount();
    read_into_cache(&one, &[("file", &data)]);
    read_into_cache(&stranger, &[("file", &other_data)]);
    // It looks from time to time what others have made.
    std::thread::sleep(Duration::from_secs(3));
    let (_, bytes) = from_the_server(&two, || {
        assert!(fs::read(two.join("file")).expect("read") == data);
    });
    assert_eq!(bytes, 0, "{}", two.stats()["disk_cache"]);
    let (one, stranger) = (one.remount(), stranger.remount());
    assert!(fs::read(one.join("file")).expect("read") == data);
    assert!(fs::read(stranger.join("file")).expect("read") == other_data);
}

#[test]
fn with_nocto_what_is_on_the_disk_costs_no_request_at_all() {
    let rig = Rig::new();
    let data = noise(1, 300_000);
    rig.make("file", &data);
    let request = rig.request().option("nocto").option("actimeo=600");
    let mount = request.mount();
    read_into_cache(&mount, &[("file", &data)]);
    let path = mount.join("file");
    let forget = || {
        let file = File::open(&path).expect("open");
        // SAFETY: an open descriptor.
        unsafe {
            libc::posix_fadvise(sys::fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED);
        }
    };
    let mut least = u64::MAX;
    for _ in 0..4 {
        let closed = eventually(SOON, || {
            (mount.stat("/gauges/closes_pending") == 0).then_some(())
        });
        assert!(closed.is_some());
        forget();
        let hits = mount.stat("/disk_cache/hit_bytes");
        let (_, trips) = mount.round_trips(|| {
            assert!(fs::read(&path).expect("read") == data);
        });
        assert!(mount.stat("/disk_cache/hit_bytes") > hits, "from the disk");
        least = least.min(trips);
    }
    assert_eq!(least, 0);
}

#[test]
fn a_killed_daemon_leaves_a_cache_that_the_next_one_uses() {
    let rig = Rig::new();
    let data = noise(1, 3_000_000);
    rig.make("file", &data);
    let request = rig.request();
    for round in 0..3 {
        let mount = request.clone().mount();
        if round > 0 {
            let (_, bytes) = from_the_server(&mount, || {
                assert!(fs::read(mount.join("file")).expect("read") == data);
            });
            assert_eq!(bytes, 0, "round {round}");
        } else {
            read_into_cache(&mount, &[("file", &data)]);
        }
        let pid = mount.pid();
        // SAFETY: a process that this test has started.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        sys::detach(mount.path()).expect("umount");
    }
}

#[test]
fn a_key_in_memory_is_gone_with_its_daemon_and_nothing_is_left_in_the_clear() {
    let rig = Rig::new();
    let data = b"a very secret text ".repeat(10_000);
    rig.make("file", &data);
    let mount = rig.request().option("cache_key=memory").mount();
    read_into_cache(&mount, &[("file", &data)]);
    assert_eq!(mount.status()["disk_cache"]["encrypted"], true);
    let files = rig.cache_files();
    assert!(!files.is_empty());
    for file in files {
        let text = fs::read(file).expect("read");
        assert!(!text.windows(11).any(|part| part == b"very secret"));
    }
    let mount = mount.remount();
    assert!(rig.cache_files().is_empty(), "nobody could read them");
    let (_, bytes) = from_the_server(&mount, || {
        assert!(fs::read(mount.join("file")).expect("read") == data);
    });
    assert_eq!(bytes, data.len() as u64);
}

#[test]
fn another_daemon_that_takes_over_finds_the_cache_again() {
    let rig = Rig::new();
    let data = noise(1, 2_000_000);
    rig.make("file", &data);
    let mount = rig.request().option("takeover").mount();
    read_into_cache(&mount, &[("file", &data)]);
    let done = efs_fuse(&["upgrade", &mount.path().display().to_string()]);
    done.expect_success("upgrade");
    let file = File::open(mount.join("file")).expect("open");
    // SAFETY: an open descriptor.
    unsafe { libc::posix_fadvise(sys::fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED) };
    drop(file);
    let (_, bytes) = from_the_server(&mount, || {
        assert!(fs::read(mount.join("file")).expect("read") == data);
    });
    assert_eq!(bytes, 0, "{}", mount.stats()["disk_cache"]);
}

#[test]
fn a_directory_that_is_not_roots_alone_is_refused_in_one_line() {
    let rig = Rig::new();
    let dir = rig.dir.path();
    let open = dir.join("open");
    fs::create_dir(&open).expect("mkdir");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("chmod");
    let foreign = dir.join("foreign");
    fs::create_dir(&foreign).expect("mkdir");
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o700)).expect("chmod");
    std::os::unix::fs::chown(&foreign, Some(1000), None).expect("chown");
    let link = dir.join("link");
    std::os::unix::fs::symlink(&open, &link).expect("symlink");
    let file = dir.join("file");
    fs::write(&file, "").expect("write");
    let nowhere = dir.join("no/where");
    for (path, why) in [
        (&open, "others have access"),
        (&foreign, "belongs to user 1000"),
        (&link, "symbolic link"),
        (&file, "no directory"),
        (&nowhere, "no such file"),
    ] {
        let said = rig.request_in(path).fail();
        assert!(said.contains(why), "{said}");
        assert!(
            said.contains("as cache failed") && said.contains("Try: "),
            "{said}"
        );
    }
    let at = Mountpoint::new();
    let inside = at.path().join("cache");
    let mut command = rig.request_in(&inside).command(at.path());
    let done = run(&mut command, COMMAND_LIMIT);
    assert_eq!(done.code(), 32, "{}", done.stderr);
    assert!(
        done.stderr.contains("in the mount itself"),
        "{}",
        done.stderr
    );
}

#[test]
fn warm_reads_a_tree_onto_the_disk_and_the_commands_tell_of_it() {
    let rig = Rig::new();
    fs::create_dir(rig.server.export().join("tree")).expect("mkdir");
    let files: Vec<(String, Vec<u8>)> = (0..30)
        .map(|n| {
            (
                format!("tree/file{n}"),
                noise(n, 1000 + 10_000 * n as usize),
            )
        })
        .collect();
    for (name, data) in &files {
        rig.make(name, data);
    }
    let all: u64 = files.iter().map(|(_, data)| data.len() as u64).sum();
    let mount = rig.request().mount();
    for (name, _) in &files {
        drop(File::open(mount.join(name)).expect("open"));
    }
    std::thread::sleep(SETTLED);
    let tree = mount.join("tree").display().to_string();
    let some = efs_fuse(&["warm", &tree, "--max-bytes", "100k", "--json"]);
    let some = some.expect_success("warm").stdout;
    let some: serde_json::Value = serde_json::from_str(&some).expect("JSON");
    assert!(
        some["bytes"].as_u64().is_some_and(|read| read < all),
        "{some}"
    );
    let done = efs_fuse(&["warm", &tree]).expect_success("warm");
    assert!(done.stdout.contains("30 files"), "{}", done.stdout);
    let cache = rig.cache().display().to_string();
    let status = efs_fuse(&["cache", "status", &cache]).expect_success("status");
    assert!(status.stdout.contains("in 30 files"), "{}", status.stdout);
    let mount = mount.remount();
    let (_, bytes) = from_the_server(&mount, || {
        for (name, data) in &files {
            assert!(fs::read(mount.join(name)).expect("read") == *data, "{name}");
        }
    });
    assert_eq!(bytes, 0);
    let path = mount.path().display().to_string();
    let shown = efs_fuse(&["stats", &path, "--price", "0.03"]).expect_success("stats");
    assert!(
        shown.stdout.contains("100.0 % of the bytes read"),
        "{}",
        shown.stdout
    );
    let words = efs_fuse(&["status", &path]).expect_success("status");
    assert!(words.stdout.contains("disk cache"), "{}", words.stdout);
    let verified = efs_fuse(&["cache", "verify", &cache]).expect_success("verify");
    assert!(
        verified.stdout.contains(" 0 are damaged"),
        "{}",
        verified.stdout
    );
    efs_fuse(&["cache", "clear", &cache]).expect_success("clear");
    assert!(rig.cache_files().is_empty());
    for (name, data) in &files {
        assert!(fs::read(mount.join(name)).expect("read") == *data, "{name}");
    }
    let without = Mount::new(&rig.server);
    let refused = efs_fuse(&["warm", &without.path().display().to_string()]);
    assert_eq!(refused.code(), 1);
    assert!(
        refused.stderr.contains("no disk cache"),
        "{}",
        refused.stderr
    );
}

#[test]
fn who_may_not_read_a_file_is_given_nothing_of_it_from_the_disk() {
    let rig = Rig::new();
    let data = noise(1, 100_000);
    rig.make("file", &data);
    let behind = rig.server.export().join("file");
    let mount = rig.request().option("allow_other").mount();
    read_into_cache(&mount, &[("file", &data)]);
    fs::set_permissions(&behind, fs::Permissions::from_mode(0o600)).expect("chmod");
    let mount = mount.remount();
    assert!(fs::read(mount.join("file")).expect("read") == data);
    let path = mount.join("file");
    let stranger = sys::Identity::new(1000, 1000, &[]);
    let refused = stranger.run(|| File::open(&path).map(drop));
    assert_eq!(sys::errno(refused), libc::EACCES);
}

#[test]
fn many_readers_at_once_read_what_is_there_through_a_small_cache() {
    let rig = Rig::new();
    let files: Vec<(String, Vec<u8>)> = (0..16)
        .map(|n| (format!("file{n}"), noise(n, 600_000)))
        .collect();
    for (name, data) in &files {
        rig.make(name, data);
    }
    let mount = rig.request().option("cache_size=3m").mount();
    for (name, _) in &files {
        drop(File::open(mount.join(name)).expect("open"));
    }
    std::thread::sleep(SETTLED);
    std::thread::scope(|scope| {
        for (name, data) in &files {
            let path = mount.join(name);
            scope.spawn(move || {
                for _ in 0..8 {
                    let mut read = Vec::new();
                    let mut file = File::open(&path).expect("open");
                    file.read_to_end(&mut read).expect("read");
                    assert!(read == *data);
                    // SAFETY: an open descriptor.
                    unsafe {
                        libc::posix_fadvise(sys::fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED);
                    }
                }
            });
        }
    });
    assert!(mount.stat("/disk_cache/evictions") > 0);
    let taken = || -> u64 {
        use std::os::unix::fs::MetadataExt;
        let files = rig.cache_files();
        let sizes = files.iter().filter_map(|file| fs::metadata(file).ok());
        sizes.map(|about| about.blocks() * 512).sum()
    };
    let within = eventually(SOON, || (taken() <= 3 << 20).then_some(()));
    assert!(within.is_some(), "{}", taken());
}
