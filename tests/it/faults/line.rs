//! Broken connections, stalls and reboots between a mount and its server: a
//! hard mount waits, goes on, and does everything exactly once.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::noise;
use crate::fixtures::process::eventually;
use crate::fixtures::proxy::{Proxy, Way};
use crate::fixtures::sys::syncfs;

/// A mount whose every byte goes through the proxy.
struct Line {
    // Dropped in this order: unmounting needs the proxy, the proxy the server.
    mount: Mount,
    proxy: Proxy,
    server: Server,
}

impl Line {
    fn new(options: ServerOptions) -> Self {
        let server = Server::start(options);
        let proxy = Proxy::to(server.address());
        let mount = MountRequest::new(server.device("/"), proxy.port()).mount();
        Self {
            mount,
            proxy,
            server,
        }
    }
}

/// Cuts the line again and again, each time in the middle of something.
fn cutting<T>(proxy: &Proxy, work: impl FnOnce() -> T) -> T {
    /// Ends the cutting also when `work` panics: the scope waits for its thread.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stopped);
        scope.spawn(|| {
            let mut round = 0;
            while !stopped.load(Ordering::Relaxed) {
                // Inside a header, inside an answer, between two records.
                let way = [Way::ToClient, Way::ToServer][round as usize % 2];
                proxy.cut_after(way, round * 37 % 400);
                round += 1;
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        work()
    })
}

#[test]
fn operations_that_must_not_happen_twice_happen_once_over_a_line_that_breaks() {
    let line = Line::new(ServerOptions::default());
    let path = |name: String| line.mount.join(name);
    let before = line.proxy.connections();
    let mut done = 0;
    cutting(&line.proxy, || {
        let mut i = 0;
        while i < 30 || (i < 3000 && line.proxy.connections() < before + 5) {
            // Done twice, each of these fails with EEXIST, ENOENT or ENOTEMPTY.
            fs::create_dir(path(format!("d{i}"))).expect("mkdir");
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path(format!("d{i}/new")))
                .expect("exclusive create");
            fs::hard_link(path(format!("d{i}/new")), path(format!("l{i}"))).expect("link");
            fs::rename(path(format!("d{i}/new")), path(format!("r{i}"))).expect("rename");
            fs::remove_file(path(format!("l{i}"))).expect("unlink");
            fs::remove_dir(path(format!("d{i}"))).expect("rmdir");
            i += 1;
        }
        done = i;
    });
    assert!(line.proxy.connections() > before + 3, "the line did break");
    let left = fs::read_dir(line.server.export()).expect("readdir").count();
    assert_eq!(left, done, "the renamed files");
}

#[test]
fn appended_bytes_arrive_once_and_in_order_over_a_line_that_breaks() {
    let line = Line::new(ServerOptions::default());
    let data = noise(1, 3_000_000);
    cutting(&line.proxy, || {
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(line.mount.join("log"))
            .expect("open");
        for piece in data.chunks(30_011) {
            log.write_all(piece).expect("append");
        }
        log.sync_all().expect("fsync");
    });
    assert!(fs::read(line.server.export().join("log")).expect("read behind") == data);
    assert!(fs::read(line.mount.join("log")).expect("read") == data);
}

#[test]
fn reads_are_whole_and_right_over_a_line_that_breaks() {
    let line = Line::new(ServerOptions::default());
    let data = noise(2, 8 << 20);
    fs::write(line.server.export().join("file"), &data).expect("write behind");
    let read = cutting(&line.proxy, || {
        fs::read(line.mount.join("file")).expect("read")
    });
    assert!(read == data);
}

#[test]
fn a_frozen_line_is_waited_for_and_nothing_is_lost() {
    let line = Line::new(ServerOptions::default());
    let data = noise(3, 2 << 20);
    line.proxy.freeze();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| fs::write(line.mount.join("file"), &data));
        std::thread::sleep(Duration::from_secs(3));
        assert!(!writer.is_finished(), "a hard mount waits");
        line.proxy.thaw();
        writer.join().expect("thread").expect("write");
    });
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(fs::read(line.server.export().join("file")).expect("read behind") == data);
}

/// The kernel sends no FUSE_SYNCFS to such a mount.
#[test]
fn syncfs_returns_while_what_was_written_cannot_have_arrived_and_fsync_does_not() {
    let line = Line::new(ServerOptions::default());
    let file = File::create(line.mount.join("file")).expect("create");
    file.write_all_at(b"before", 0).expect("write");
    file.sync_all().expect("fsync");
    let behind = || fs::read(line.server.export().join("file")).expect("read behind");
    line.proxy.freeze();
    file.write_all_at(b"after!", 0).expect("write");
    std::thread::scope(|scope| {
        let syncfs = scope.spawn(|| syncfs(&file));
        let limit = Duration::from_secs(5);
        let returned = eventually(limit, || syncfs.is_finished().then(behind));
        let fsync = scope.spawn(|| file.sync_all());
        std::thread::sleep(Duration::from_secs(1));
        let waits = !fsync.is_finished();
        // Comes before any of these can fail: the scope waits for its threads.
        line.proxy.thaw();
        syncfs.join().expect("thread").expect("syncfs");
        fsync.join().expect("thread").expect("fsync");
        assert_eq!(returned.as_deref(), Some(&b"before"[..]));
        assert!(waits, "fsync has returned before the data can have arrived");
    });
    assert_eq!(behind(), b"after!");
}

#[test]
fn a_line_that_vanished_without_a_word_is_replaced() {
    let line = Line::new(ServerOptions::default());
    fs::write(line.mount.join("a"), b"x").expect("write");
    line.proxy.half_open();
    let start = Instant::now();
    fs::write(line.mount.join("b"), b"y").expect("write over a new connection");
    let took = start.elapsed();
    assert!(
        took < Duration::from_secs(90),
        "noticed only after {took:?}"
    );
    assert_eq!(
        fs::read(line.server.export().join("b")).expect("read behind"),
        b"y"
    );
}

#[test]
fn a_server_refusing_for_a_while_is_waited_for() {
    let mut line = Line::new(ServerOptions::default());
    fs::write(line.mount.join("file"), b"before").expect("write");
    line.proxy.refuse();
    line.proxy.cut();
    let (mount, proxy) = (&line.mount, &mut line.proxy);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| fs::write(mount.join("file"), b"after"));
        std::thread::sleep(Duration::from_secs(2));
        assert!(!writer.is_finished(), "a hard mount waits");
        proxy.accept();
        writer.join().expect("thread").expect("write");
    });
    assert_eq!(
        fs::read(line.server.export().join("file")).expect("read behind"),
        b"after"
    );
}

#[test]
fn a_garbled_record_costs_a_connection_and_nothing_else() {
    let line = Line::new(ServerOptions::default());
    let pid = line.mount.pid();
    for i in 0..5 {
        // The first byte of the next answer: the mark of its record.
        line.proxy.garble_after(Way::ToClient, 0);
        let name = format!("file{i}");
        fs::write(line.mount.join(&name), noise(i, 1000)).expect("write");
        assert!(fs::read(line.server.export().join(&name)).expect("read") == noise(i, 1000));
    }
    assert_eq!(line.mount.pid(), pid, "the daemon lives");
}

#[test]
fn open_files_survive_a_reboot_of_the_server() {
    let mut server = Server::start(ServerOptions {
        lease: 10,
        grace: 5,
        ..ServerOptions::default()
    });
    let mount = Mount::new(&server);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mount.join("file"))
        .expect("create");
    file.write_all_at(&noise(1, 2 << 20), 0).expect("write");
    server.restart();
    file.write_all_at(b"after the reboot", 2 << 20)
        .expect("write");
    file.sync_all().expect("fsync");
    let mut bytes = vec![0; 2 << 20];
    file.read_exact_at(&mut bytes, 0).expect("read");
    assert!(
        bytes == noise(1, 2 << 20),
        "what the old instance took is not lost"
    );
    fs::write(mount.join("new"), b"x").expect("create after the grace period");
    let behind = fs::read(server.export().join("file")).expect("read behind");
    assert!(behind[..2 << 20] == bytes && behind[2 << 20..] == *b"after the reboot");
    drop(file);
}

#[test]
fn unsynced_writes_survive_a_crash_of_the_server() {
    // The write verifier changes: what was not committed is sent again.
    let mut server = Server::start(ServerOptions {
        lease: 10,
        grace: 5,
        ..ServerOptions::default()
    });
    let mount = Mount::new(&server);
    let mut file = File::create(mount.join("file")).expect("create");
    let mut model = Vec::new();
    for round in 0..3 {
        let data = noise(round, 3 << 20);
        file.write_all(&data).expect("write");
        model.extend_from_slice(&data);
        if round < 2 {
            server.restart();
        }
    }
    file.sync_all().expect("fsync");
    assert!(fs::read(server.export().join("file")).expect("read behind") == model);
    drop(file);
}

#[test]
fn an_unlinked_open_file_survives_a_reboot_and_leaves_nothing() {
    let mut server = Server::start(ServerOptions {
        lease: 10,
        grace: 3,
        ..ServerOptions::default()
    });
    let mount = Mount::new(&server);
    let open = |name: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(mount.join(name))
            .expect("open")
    };
    let (unlinked, replaced) = (open("unlinked"), open("replaced"));
    unlinked.write_all_at(b"unlinked", 0).expect("write");
    replaced.write_all_at(b"replaced", 0).expect("write");
    fs::remove_file(mount.join("unlinked")).expect("unlink");
    fs::write(mount.join("new"), b"new").expect("write");
    fs::rename(mount.join("new"), mount.join("replaced")).expect("rename over");
    server.restart();
    for (file, content) in [(&unlinked, b"unlinked"), (&replaced, b"replaced")] {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert_eq!(&bytes, content);
        file.write_all_at(b"more", 8).expect("write");
        file.sync_all().expect("fsync");
    }
    assert_eq!(fs::read(mount.join("replaced")).expect("read"), b"new");
    drop((unlinked, replaced));
    mount.unmount();
    let left: Vec<_> = fs::read_dir(server.export())
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(left, ["replaced"]);
}

#[test]
fn a_lease_is_kept_while_nobody_works() {
    let server = Server::start(ServerOptions {
        lease: 4,
        grace: 2,
        ..ServerOptions::default()
    });
    let mount = Mount::new(&server);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mount.join("file"))
        .expect("create");
    file.write_all_at(b"before", 0).expect("write");
    let (_, cost) = mount.round_trips(|| std::thread::sleep(Duration::from_secs(10)));
    assert!(
        (1..=20).contains(&cost),
        "{cost} round trips in ten idle seconds"
    );
    assert_eq!(mount.stat("/recoveries"), 0, "the state was never lost");
    file.write_all_at(b"after!", 0).expect("write");
    file.sync_all().expect("fsync");
    assert_eq!(
        fs::read(server.export().join("file")).expect("read behind"),
        b"after!"
    );
    drop(file);
}
