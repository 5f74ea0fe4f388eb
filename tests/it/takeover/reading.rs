//! Requests that a daemon was reading when it was killed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::checker::Chance;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::MountRequest;
use crate::fixtures::setting;

/// The largest request.
const MIB: usize = 1 << 20;
const WRITERS: usize = 3;

/// The daemon of this keeper, as soon as it has threads for requests. `None`: the keeper has
/// ended.
fn reader(keeper: i32) -> Option<i32> {
    let has_readers = |daemon: &i32| {
        let threads = fs::read_dir(format!("/proc/{daemon}/task"));
        let names = threads.into_iter().flatten().flatten();
        let mut names = names.flat_map(|thread| fs::read_to_string(thread.path().join("comm")));
        names.any(|name| name.starts_with("fuser-"))
    };
    loop {
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"));
        let children = children.ok()?;
        let mut children = children.split_whitespace().flat_map(str::parse);
        if let Some(daemon) = children.find(has_readers) {
            return Some(daemon);
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// The kernel copies requests into pages of the daemon. Where it has to wait for one, and the daemon
/// is being killed, it does not wait, and it is the request that ends with EIO. So kills come
/// when a daemon's buffers are new, and requests are large. `EFS_FUSE_KILLS`: so many (40).
#[test]
fn a_request_that_a_killed_daemon_was_reading_is_no_error_to_anybody() {
    let kills = setting("EFS_FUSE_KILLS", 40);
    let mut chance = Chance(setting("EFS_FUSE_SEED", 3));
    let server = Server::start(ServerOptions::default());
    let request = MountRequest::of(&server).option("takeover=crash");
    let request = request.env("EFS_FUSE_TEST_CRASHES", "1");
    let mount = request.time_limit(Duration::from_secs(40 + kills)).mount();
    let keeper = mount.keeper();
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let file = File::create(mount.join(format!("file-{writer}"))).expect("create");
                let stop = &stop;
                scope.spawn(move || {
                    let mut turns = 0_u8;
                    while !stop.load(Ordering::Relaxed) {
                        turns = turns.wrapping_add(1);
                        file.write_all_at(&vec![turns; MIB], 0)?;
                    }
                    file.sync_all().map(|()| turns)
                })
            })
            .collect();
        for _ in 0..kills {
            let Some(daemon) = reader(keeper) else { break };
            thread::sleep(Duration::from_micros(chance.below(3_000)));
            // SAFETY: the pid was found a moment ago by its program and this test's directory.
            unsafe { libc::kill(daemon, libc::SIGKILL) };
            if writers.iter().any(|writer| writer.is_finished()) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let ended = writers.into_iter().map(|writer| writer.join());
        ended.collect::<Vec<_>>()
    });
    for (writer, ended) in written.into_iter().enumerate() {
        let last = ended.expect("no panic").expect("no error");
        let data = fs::read(server.export().join(format!("file-{writer}"))).expect("read");
        assert!(data == vec![last; MIB], "{writer}");
    }
    mount.unmount();
}
