//! Daemons that are killed while the kernel is at work for them: it reads requests to them, or
//! drops pages.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::checker::Chance;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest, served_by};
use crate::fixtures::process::eventually;
use crate::fixtures::proxy::{Message, Proxy, Way};
use crate::fixtures::setting;

/// The largest request.
const MIB: usize = 1 << 20;
const WRITERS: usize = 3;

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
            let Some(daemon) = served_by(keeper) else {
                break;
            };
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

/// A thread that has the kernel drop pages waits for those that are being read, and cannot be killed
/// before the read is answered: by the daemon that takes over.
#[test]
fn a_daemon_that_is_killed_while_the_kernel_drops_pages_for_it_is_followed_at_once() {
    let server = Server::start(ServerOptions::default());
    let line = Proxy::to(server.address());
    let request = MountRequest::new(server.device("/"), line.port());
    let mount = request.option("takeover=crash,actimeo=1").mount();
    let keeper = mount.keeper();
    let other = Mount::new(&server);
    fs::write(other.join("file"), vec![1; MIB]).expect("write");
    let file = File::open(mount.join("file")).expect("open");
    let (read, told) = thread::scope(|scope| {
        let daemon = served_by(keeper).expect("a daemon");
        // Its page is locked until the answer comes.
        line.next_message(Way::ToClient, Message::Swallowed);
        let reads = scope.spawn(|| {
            let mut byte = [0];
            file.read_at(&mut byte, MIB as u64 / 2).map(|_| byte[0])
        });
        fs::write(other.join("file"), vec![2; MIB]).expect("write");
        thread::sleep(Duration::from_millis(1300));
        let asks = scope.spawn(|| fs::metadata(mount.join("file")));
        let waits = eventually(Duration::from_secs(10), || {
            is_dropping_pages(daemon).then_some(())
        });
        waits.expect("the kernel waits for the page");
        let killed = Instant::now();
        // SAFETY: the pid was found a moment ago among the children of this test's keeper.
        unsafe { libc::kill(daemon, libc::SIGKILL) };
        let read = (reads.join().expect("no panic"), killed.elapsed());
        (read, (asks.join().expect("no panic"), killed.elapsed()))
    });
    assert!(matches!(read.0, Ok(1 | 2)), "{read:?}");
    assert_eq!(told.0.expect("stat").len(), MIB as u64);
    assert!(told.1 < Duration::from_secs(10), "{:?}", told.1);
    drop(file);
    mount.unmount();
}

/// Whether one of its threads waits for a page of the kernel's.
fn is_dropping_pages(daemon: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{daemon}/task")).expect("threads");
    let mut waits = threads
        .flatten()
        .flat_map(|thread| fs::read_to_string(thread.path().join("wchan")));
    waits.any(|place| place.contains("folio"))
}
