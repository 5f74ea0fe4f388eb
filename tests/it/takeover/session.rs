//! A mount that is brought to rest, and goes on: in this process if it does not come to rest,
//! else in another one.
//!
//! The file system is real down to a server in memory, and outlives both sessions, so that
//! what is seen here is FUSE's part alone. Both sessions are of this process: the reader
//! threads of the first, which would take requests from the second, are ended by what takes
//! the place of their device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use efs_fuse::fuse::{
    self, Adapter, KernelOptions, NotQuiet, Notify, Quiesced, Running, SessionOptions, Unmount,
};
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::Vfs;
use efs_fuse::vfs::types::{Ino, KernelCache};
use parking_lot::Mutex;

use crate::fixtures::{needs, noise};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};
use crate::protocol::rig::{self, default_timeouts};

const SOON: Duration = Duration::from_secs(20);

/// Tests here look at the descriptors of their process.
static ALONE: Mutex<()> = Mutex::new(());

/// The vfs hears of a kernel once; each session has a queue of its own.
struct Switch(Mutex<Arc<Notify>>);

impl Switch {
    fn now(&self) -> Arc<Notify> {
        Arc::clone(&self.0.lock())
    }
}

impl KernelCache for Switch {
    fn inval_inode(&self, ino: Ino) {
        self.now().inval_inode(ino);
    }
    fn inval_inode_grown(&self, ino: Ino, size: u64) {
        self.now().inval_inode_grown(ino, size);
    }
    fn inval_inode_now(&self, ino: Ino) {
        self.now().inval_inode_now(ino);
    }
    fn is_telling(&self, ino: Ino) -> bool {
        self.now().is_telling(ino)
    }
    fn settle(&self, ino: Ino) {
        self.now().settle(ino);
    }
    fn inval_attr(&self, ino: Ino) {
        self.now().inval_attr(ino);
    }
    fn inval_entry(&self, parent: Ino, name: &[u8]) {
        self.now().inval_entry(parent, name);
    }
    fn backlog(&self) -> usize {
        self.now().backlog()
    }
}

/// Takes the mount away, whoever serves it, so that no thread of a failed test hangs.
struct Place(tempfile::TempDir);

impl Place {
    fn path(&self) -> PathBuf {
        self.0.path().canonicalize().expect("a directory")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let path = std::ffi::CString::new(self.0.path().to_str().expect("a path")).expect("a path");
        for flags in [libc::MNT_FORCE, libc::MNT_DETACH] {
            // SAFETY: a C string.
            unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) };
        }
    }
}

struct World {
    at: PathBuf,
    vfs: Arc<Vfs>,
    peer: Arc<Peer>,
    switch: Arc<Switch>,
    running: Option<Running>,
    _place: Place,
    runtime: tokio::runtime::Runtime,
}

fn options() -> SessionOptions {
    SessionOptions {
        device: "taken over".to_owned(),
        threads: 2,
        clone_fd: false,
        ..SessionOptions::default()
    }
}

/// The device numbers' descriptors of this process.
fn devices() -> Vec<i32> {
    let all = fs::read_dir("/proc/self/fd")
        .expect("descriptors")
        .flatten();
    all.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("/dev/fuse")))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

impl World {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: SessionOptions) -> Self {
        needs::root();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let peer = Peer::new(PeerConfig::default());
        let mount = runtime.block_on(rig::Mount::of(&peer, "taken over", default_timeouts()));
        let vfs = mount.vfs;
        let switch = Arc::new(Switch(Mutex::new(Notify::new())));
        vfs.set_kernel(Arc::clone(&switch) as _);
        let place = Place(tempfile::tempdir().expect("a directory"));
        let at = place.path();
        let mut world = Self {
            at: at.clone(),
            vfs,
            peer,
            switch,
            running: None,
            _place: place,
            runtime,
        };
        let running = fuse::start(world.adapter(), &world.switch.now(), &at, &options);
        world.running = Some(running.expect("a mount"));
        world
    }

    fn adapter(&self) -> Adapter {
        let (runtime, metrics) = (self.runtime.handle().clone(), Metrics::new());
        let kernel = KernelOptions::default();
        Adapter::new(
            Arc::clone(&self.vfs),
            Arc::default(),
            runtime,
            metrics,
            kernel,
            None,
        )
        .expect("a thread")
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("a mount")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    fn quiesce(&self, limit: Duration) -> Result<Quiesced, NotQuiet> {
        let deadline = tokio::time::Instant::now() + limit;
        // Its vfs lives on: there is nothing that it must have done before.
        let drain = || std::future::ready(());
        self.runtime
            .block_on(self.running().quiesce(deadline, drain))
    }

    /// Another session takes the mount over, as another process would.
    fn hand_over(&mut self, quiesced: Quiesced) {
        let first = self.running.take().expect("a mount");
        first
            .can_be_handed_over()
            .expect("a kernel that sends again");
        let (device, init) = (
            first.device().expect("a descriptor"),
            first.init_values().clone(),
        );
        quiesced.leave();
        end_readers(&first, &device, &self.at);
        drop(first);
        let notify = Notify::new();
        *self.switch.0.lock() = Arc::clone(&notify);
        let adapter = self.adapter();
        let second = fuse::take_over(adapter, &notify, &self.at, &options(), device, init);
        self.running = Some(second.expect("taken over"));
    }
}

/// Has the reader threads of a session that parks everything end: what they read next is no
/// request.
fn end_readers(session: &Running, kept: &OwnedFd, at: &Path) {
    let (nothing, other) = std::os::unix::net::UnixStream::pair().expect("sockets");
    drop(other);
    for fd in devices().into_iter().filter(|fd| *fd != kept.as_raw_fd()) {
        // SAFETY: a descriptor of the session, which is at its end, becomes another one.
        assert_eq!(unsafe { libc::dup2(nothing.as_raw_fd(), fd) }, fd);
    }
    // Each of them is in a read(2) of the device until there is something to read, and
    // statfs(2) takes no lock that the caller of a parked request may have.
    let path = std::ffi::CString::new(at.to_str().expect("a path")).expect("a path");
    let start = Instant::now();
    while !session.has_ended() {
        assert!(start.elapsed() < SOON, "its threads go on");
        let path = path.clone();
        thread::spawn(move || {
            let mut found = std::mem::MaybeUninit::uninit();
            // SAFETY: a C string, and room for an answer that is not looked at.
            unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) }
        });
        thread::sleep(Duration::from_millis(100));
    }
}

fn call<T: Send + 'static>(
    what: &'static str,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> (&'static str, JoinHandle<io::Result<T>>) {
    (what, thread::spawn(call))
}

#[track_caller]
fn ends<T>((what, thread): (&'static str, JoinHandle<io::Result<T>>)) -> T {
    let start = Instant::now();
    while !thread.is_finished() {
        assert!(start.elapsed() < SOON, "{what} does not come back");
        thread::sleep(Duration::from_millis(2));
    }
    let result = thread.join().expect("no panic");
    result.unwrap_or_else(|why| panic!("{what}: {why}"))
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn lock_ofd(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: all zeros is a lock of the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    // SAFETY: the lock lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw mut lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Touches a page that nobody has read yet.
fn fault(file: &File, len: usize) -> io::Result<Vec<u8>> {
    let (prot, fd) = (libc::PROT_READ, file.as_raw_fd());
    // SAFETY: a new mapping, at no address of anybody's.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `len` bytes are mapped there, until they are unmapped below.
    unsafe {
        let seen = std::slice::from_raw_parts(at.cast::<u8>(), len).to_vec();
        libc::munmap(at, len);
        Ok(seen)
    }
}

#[test]
fn what_one_process_has_read_and_not_answered_the_next_one_answers() {
    let _alone = ALONE.lock();
    let mut world = World::new();
    let data = noise(1, 300_000);
    for name in ["read", "mapped", "renamed", "removed", "stat", "kept"] {
        fs::write(world.path(name), &data).expect("write");
    }
    fs::create_dir(world.path("dir")).expect("mkdir");
    for number in 0..300 {
        fs::write(world.path(&format!("dir/file {number}")), b"").expect("write");
    }
    // Nothing of them is in the page cache.
    let drop_pages = |file: &File| {
        // SAFETY: an open descriptor.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    };
    let kept = open(&world.path("kept")).expect("open");
    let (read, mapped) = (open(&world.path("read")), open(&world.path("mapped")));
    let (read, mapped) = (read.expect("open"), mapped.expect("open"));
    drop_pages(&read);
    drop_pages(&mapped);
    // Two locks that others wait for.
    let (holder, path) = (open(&world.path("kept")).expect("open"), world.path("kept"));
    holder.lock().expect("flock");
    lock_ofd(&holder, libc::F_WRLCK).expect("a lock");
    let other = path.clone();
    let flock = call("flock", move || open(&other)?.lock());
    let setlkw = call("F_OFD_SETLKW", move || {
        lock_ofd(&open(&path)?, libc::F_WRLCK)
    });
    thread::sleep(Duration::from_millis(300));
    assert!(!flock.1.is_finished() && !setlkw.1.is_finished());

    let quiesced = world.quiesce(SOON).expect("at rest");
    assert_eq!(
        quiesced.parked(),
        2,
        "who waited for a lock is to wait again"
    );
    let start = Instant::now();
    world.running().probe().expect("a sign of life");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "the watchdog would bark"
    );

    let path = |name: &str| world.path(name);
    let expected = data.clone();
    let calls = [
        call("read", move || {
            let mut seen = vec![0; 300_000];
            read.read_exact_at(&mut seen, 0)?;
            assert!(seen == expected, "other data");
            Ok(())
        }),
        call("page fault", {
            let expected = data.clone();
            move || {
                assert!(fault(&mapped, 300_000)? == expected, "other data");
                Ok(())
            }
        }),
        call("create", {
            let at = path("created");
            move || {
                let options = OpenOptions::new().write(true).create_new(true).open(at);
                options?.write_all_at(b"new", 0)
            }
        }),
        call("rename", {
            let (from, to) = (path("renamed"), path("dir/moved"));
            move || fs::rename(from, to)
        }),
        call("unlink", {
            let at = path("removed");
            move || fs::remove_file(at)
        }),
        call("stat", {
            let at = path("stat");
            move || {
                assert_eq!(fs::metadata(at)?.size(), 300_000);
                Ok(())
            }
        }),
        call("readdir", {
            let at = path("dir");
            move || {
                let names = fs::read_dir(at)?.collect::<io::Result<Vec<_>>>()?;
                assert!((300..=301).contains(&names.len()), "{}", names.len());
                Ok(())
            }
        }),
        call("write, fsync", move || {
            kept.write_all_at(b"after", 5)?;
            kept.sync_all()?;
            kept.write_all_at(b"wards", 10)
        }),
    ];
    eventually("the calls are not parked", || quiesced.parked() >= 6);
    thread::sleep(Duration::from_millis(200));
    assert!(calls.iter().all(|(_, thread)| !thread.is_finished()));

    world.hand_over(quiesced);
    calls.into_iter().for_each(ends);
    assert!(
        !flock.1.is_finished() && !setlkw.1.is_finished(),
        "locked twice"
    );
    holder.unlock().expect("unlock");
    ends(flock);
    lock_ofd(&holder, libc::F_UNLCK).expect("unlock");
    ends(setlkw);
    drop(holder);
    assert_eq!(fs::read(world.path("created")).expect("read"), b"new");
    assert!(!world.path("removed").exists() && world.path("dir/moved").exists());
    let mut expected = data;
    expected[5..15].copy_from_slice(b"afterwards");
    assert!(fs::read(world.path("kept")).expect("read") == expected);

    // Handed over once more, with nobody waiting; and unmounted by its last owner.
    let quiesced = world.quiesce(SOON).expect("at rest");
    world.hand_over(quiesced);
    assert!(world.path("created").exists());
    let running = world.running.take().expect("a mount");
    // A thread that has ended its predecessor may be on its way out of it.
    eventually("it cannot be unmounted", || {
        running.unmount(Unmount::Clean).is_ok()
    });
    world
        .runtime
        .block_on(running.ended())
        .expect("a clean end");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!table.contains(world.at.to_str().expect("a path")));
}

#[test]
fn a_mount_that_does_not_come_to_rest_goes_on_as_before() {
    let _alone = ALONE.lock();
    let world = World::new();
    fs::write(world.path("file"), b"text").expect("write");
    fs::create_dir(world.path("dir")).expect("mkdir");
    let holder = open(&world.path("file")).expect("open");
    holder.lock().expect("flock");
    let path = world.path("file");
    let flock = call("flock", move || open(&path)?.lock());
    thread::sleep(Duration::from_millis(200));
    // A server that takes its time.
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = Arc::clone(&slow);
    world.peer.on_op(move |event| {
        if event.op == op::REMOVE && is_slow.load(Ordering::SeqCst) {
            Action::Delay(Duration::from_secs(2))
        } else {
            Action::Pass
        }
    });
    let path = world.path("dir");
    let rmdir = call("rmdir", move || fs::remove_dir(path));
    thread::sleep(Duration::from_millis(200));
    let path = world.path("other");
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        fs::write(path, b"parked")
    });
    let refused = world.quiesce(Duration::from_millis(500));
    assert_eq!(refused.err(), Some(NotQuiet::UnderWay(1)));
    slow.store(false, Ordering::SeqCst);
    ends(("write", late));
    ends(rmdir);
    assert!(
        !flock.1.is_finished(),
        "it has a lock that another one holds"
    );
    holder.unlock().expect("unlock");
    ends(flock);
    // And it can be tried again.
    drop(world.quiesce(SOON).expect("at rest"));
    assert_eq!(fs::read(world.path("other")).expect("read"), b"parked");
}

#[test]
fn who_is_killed_while_the_mount_is_at_rest_need_not_wait_for_it() {
    let _alone = ALONE.lock();
    let world = World::new();
    let quiesced = world.quiesce(SOON).expect("at rest");
    let mut caller = Command::new("stat")
        .arg(world.path("no such name"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("stat(1)");
    eventually("the call is not parked", || quiesced.parked() == 1);
    assert!(caller.try_wait().expect("wait").is_none());
    caller.kill().expect("kill");
    let start = Instant::now();
    eventually("it cannot be killed", || {
        caller.try_wait().expect("wait").is_some()
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(quiesced.is_still_quiet());
    drop(quiesced);
    assert!(!world.path("no such name").exists());
}

#[test]
fn an_invalidation_that_waits_for_a_parked_read_is_not_waited_for_in_vain() {
    let _alone = ALONE.lock();
    let world = World::new();
    let data = noise(2, 100_000);
    fs::write(world.path("file"), &data).expect("write");
    let file = open(&world.path("file")).expect("open");
    let ino = file.metadata().expect("stat").ino();
    // SAFETY: an open descriptor.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let mut reader = None;
    let mut rounds = 0;
    let deadline = tokio::time::Instant::now() + SOON;
    let start = Instant::now();
    let switch = &world.switch;
    let quiesced = world
        .runtime
        .block_on(world.running().quiesce(deadline, || {
            rounds += 1;
            if rounds == 1 {
                let file = file.try_clone().expect("a descriptor");
                reader = Some(call("read", move || {
                    let mut seen = vec![0; 100_000];
                    file.read_exact_at(&mut seen, 0).map(|()| seen)
                }));
            }
            let first = rounds == 1;
            async move {
                if first {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    switch.now().inval_inode(ino);
                }
            }
        }));
    let quiesced = quiesced.expect("at rest");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        rounds > 1,
        "a read was answered after the file system had settled"
    );
    // What it asked for next is parked.
    drop(quiesced);
    assert!(ends(reader.expect("a reader")) == data);
}

#[test]
fn readers_with_descriptors_of_their_own_are_not_handed_over() {
    let _alone = ALONE.lock();
    let world = World::with(SessionOptions {
        clone_fd: true,
        ..options()
    });
    world
        .running()
        .can_be_handed_over()
        .expect_err("with clones");
}
