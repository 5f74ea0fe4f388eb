//! A mount with several connections to a real server (`nconnect=`), and one of them
//! breaks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::noise;
use crate::fixtures::process::eventually;
use crate::fixtures::proxy::{Proxy, Way};

const MIB: usize = 1 << 20;

/// MiB that are copied; `EFS_FUSE_COPY=1024` is the whole test.
pub(crate) fn copied() -> usize {
    std::env::var("EFS_FUSE_COPY").map_or(48, |mib| mib.parse().expect("EFS_FUSE_COPY=MIB"))
}

fn up(mount: &Mount) -> usize {
    let status = mount.status();
    let all = status["connections"].as_array().expect("connections");
    all.iter().filter(|one| one["state"] == "up").count()
}

pub(crate) fn until_up(mount: &Mount, count: usize) {
    let there = eventually(Duration::from_secs(30), || {
        (up(mount) == count).then_some(())
    });
    assert!(there.is_some(), "{}", mount.status()["connections"]);
}

/// Copies a file in and out; in the middle of each, `fault` happens.
pub(crate) fn copy_through(mount: &Mount, behind: &Path, mut fault: impl FnMut()) {
    let blocks = copied();
    let block = noise(7, MIB + 4096);
    // Each is another piece of the same noise, so that a lost or swapped one shows.
    let piece = |number: usize| &block[number % 4096..][..MIB];
    let path = mount.join("copy");
    let mut file = File::create(&path).expect("create");
    for number in 0..blocks {
        file.write_all(piece(number)).expect("write");
        if number == blocks / 2 {
            fault();
        }
    }
    file.sync_all().expect("fsync");
    drop(file);
    let mut found = vec![0; MIB];
    let mut file = File::open(behind.join("copy")).expect("open behind");
    for number in 0..blocks {
        file.read_exact(&mut found).expect("read behind");
        assert!(
            found == piece(number),
            "block {number} differs on the server"
        );
    }
    assert_eq!(file.read(&mut found).expect("read"), 0);

    // Past our own pages: a file by another name.
    fs::rename(behind.join("copy"), behind.join("other")).expect("rename behind");
    let path = mount.join("other");
    let mut file = File::open(&path).expect("open");
    for number in 0..blocks {
        file.read_exact(&mut found).expect("read");
        assert!(found == piece(number), "block {number} differs");
        if number == blocks / 2 {
            fault();
        }
    }
    assert_eq!(file.read(&mut found).expect("read"), 0);
    drop(file);
    fs::remove_file(&path).expect("unlink");
}

#[test]
fn killing_one_of_five_connections_during_a_copy_costs_no_error() {
    let server = Server::start(ServerOptions::default());
    let proxy = Proxy::to(server.address());
    let request = MountRequest::new(server.device("/"), proxy.port());
    let mount = request.option("nconnect=5").mount();
    until_up(&mount, 5);
    assert_eq!(proxy.connections(), 5);
    // So that some are on their way.
    proxy.delay(Way::ToClient, Duration::from_millis(3));
    let mut victims = [3, 4].into_iter();
    let begun = Instant::now();
    copy_through(&mount, &server.export(), || {
        proxy.cut_one(victims.next().expect("two faults"));
    });
    println!("{} MiB there and back in {:?}", copied(), begun.elapsed());
    until_up(&mount, 5);
    assert_eq!(mount.stat("/reconnects"), 2, "the others went on");
    assert_eq!(proxy.connections(), 7);
    assert_eq!(mount.stat("/recoveries"), 0);
    assert_eq!(mount.stats()["gauges"]["connections"], 5);
    // The first one, which has the small requests.
    proxy.cut_one(1);
    fs::create_dir(mount.join("dir")).expect("mkdir");
    fs::remove_dir(mount.join("dir")).expect("rmdir");
    until_up(&mount, 5);
    mount.unmount().expect_success("umount");
}

#[test]
fn a_mount_has_one_connection_unless_told_otherwise_and_more_as_there_is_need() {
    let server = Server::start(ServerOptions::default());
    let proxy = Proxy::to(server.address());
    let plain = MountRequest::new(server.device("/"), proxy.port()).mount();
    fs::write(plain.join("file"), noise(3, 24 * MIB)).expect("write");
    assert_eq!((up(&plain), proxy.connections()), (1, 1));
    plain.unmount();

    let request = MountRequest::new(server.device("/"), proxy.port());
    let mount = request.option("max_connections=3").mount();
    assert_eq!(up(&mount), 1);
    // A server far away, and more to write than is under way at a time: three or four
    // round trips full of data.
    proxy.delay(Way::ToClient, Duration::from_millis(200));
    let data = noise(3, 8 * MIB);
    let grown = eventually(Duration::from_secs(120), || {
        let mut file = File::create(mount.join("file")).expect("create");
        for _ in 0..20 {
            file.write_all(&data).expect("write");
        }
        file.sync_all().expect("fsync");
        (up(&mount) == 3).then_some(())
    });
    assert!(grown.is_some(), "{}", mount.status()["connections"]);
    assert_eq!(mount.stat("/reconnects"), 0);
}
