//! A daemon that is killed with changes ahead of the server (`takeover=crash`), and the one that goes on
//! from its log: nothing that was answered is lost, and nothing is done twice.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::nfs::Client;
use efs_fuse::nfs::handover::{ClientState, Unanswered};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::caller::{self, Caller, KernelRequest};
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::Vfs;
use efs_fuse::vfs::handover::VfsState;
use efs_fuse::vfs::types::{Errno, Ino, ROOT_INO, SetAttr};
use efs_fuse::wal::{Survived, Wal};

use super::super::killed_state::{Lifeline, with_log};
use super::super::rig::{Mount, ahead, connect_by, default_timeouts, millis, within};
use super::{EXCLUSIVE, settled, shut, unpack};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

/// Bytes of data that a log has room for.
const DATA: usize = 1 << 20;

/// A mount whose daemon may be killed.
pub(super) struct Surviving {
    pub(super) mount: Mount,
    lifeline: Arc<Lifeline>,
    wal: Wal,
    /// What is dropped in a process that goes on is not dropped in one that was killed.
    dead: Vec<Mount>,
}

impl Surviving {
    pub(super) async fn new(config: PeerConfig) -> Self {
        let peer = Peer::new(config);
        let (config, lifeline, wal) = with_log(&peer, DATA);
        let client = connect_by(Arc::clone(&lifeline) as _, config, Metrics::new()).await;
        Self {
            mount: Mount::ahead(&client, &peer),
            lifeline,
            wal,
            dead: Vec::new(),
        }
    }

    /// The log of this moment is all that is left, and another process goes on with it.
    pub(super) async fn killed(self) -> Self {
        let memory = self.wal.memory().expect("it is on").try_clone();
        let log = Survived::read(memory.expect("a dup")).expect("a log");
        let mut client = ClientState::survived(&log).expect("a client");
        let vfs = VfsState::survived(&log, &mut client).expect("a file system");
        let left = Unanswered::read(&log).expect("requests");
        let peer = Arc::clone(&self.mount.peer);
        self.lifeline.cut(&peer);
        let mut dead = self.dead;
        dead.push(self.mount);
        let (config, lifeline, wal) = with_log(&peer, DATA);
        let (connector, metrics) = (Arc::clone(&lifeline) as _, Metrics::new());
        let to = || Arc::clone(&metrics);
        let taken = Client::take_over_killed(connector, config, to(), client, left);
        let (client, taken) = within(600, taken).await.expect("the server goes on");
        let behaviour = ahead(default_timeouts());
        let vfs = Vfs::take_over(client, behaviour, to(), vfs, taken);
        let vfs = vfs.expect("the state is whole");
        within(600, vfs.go_on()).await;
        Self {
            mount: Mount {
                vfs,
                peer,
                cred: Credential::machine(),
            },
            lifeline,
            wal,
            dead,
        }
    }
}

/// The kernel asks for it, for the first time or again.
async fn asked<T>(unique: u64, resent: bool, work: impl Future<Output = T>) -> T {
    let caller = Caller::of(None, 0, KernelRequest { unique, resent });
    within(600, caller::on_behalf_of(Some(caller), work)).await
}

/// What [`work`] leaves.
fn is_as_it_was_left(mount: &Mount, when: u64) {
    let fs = mount.peer.fs();
    let names = fs.list("/d").expect("names");
    let mut expected: Vec<String> = (0..12).map(|number| format!("f{number}")).collect();
    expected.retain(|name| name != "f3" && name != "f4");
    expected.extend(["g4", "link", "s"].map(str::to_owned));
    expected.sort_unstable();
    assert_eq!(names, expected, "after {when} ms");
    for number in (0..12).filter(|number| *number != 3) {
        let name = if number == 4 { "g" } else { "f" };
        let path = format!("/d/{name}{number}");
        let data = fs.read_file(&path).expect("data");
        assert_eq!(data, format!("data {number}").as_bytes(), "{when} ms");
        let stat = fs.stat(&path).expect("stat");
        let is = (stat.mode, stat.mtime.secs);
        assert_eq!(is, (0o600, 1_000_000_000), "{path} after {when} ms");
    }
    assert_eq!(fs.readlink("/d/link").expect("a link"), "target");
    assert_eq!(fs.stat("/d/s").expect("stat").mode, 0o700, "{when} ms");
    assert_eq!(fs.list("/d/s").expect("names"), ["in"]);
    assert_eq!(fs.read_file("/d/s/in").expect("data"), b"inside");
}

async fn work(mount: &Mount, dir: Ino) {
    for number in 0..12 {
        let data = format!("data {number}");
        unpack(mount, dir, &format!("f{number}"), data.as_bytes())
            .await
            .expect("a file");
    }
    let sub = mount.mkdir(dir, "s").await.expect("mkdir");
    unpack(mount, sub, "in", b"inside").await.expect("a file");
    let set = SetAttr {
        mode: Some(0o700),
        ..SetAttr::default()
    };
    mount
        .vfs
        .setattr(&mount.cred, sub, None, set)
        .await
        .expect("chmod");
    mount
        .vfs
        .symlink(&mount.cred, dir, b"link", b"target")
        .await
        .expect("symlink");
    mount.unlink(dir, "f3").await.expect("unlink");
    mount
        .rename((dir, "f4"), (dir, "g4"))
        .await
        .expect("rename");
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_is_there_whenever_its_daemon_is_killed() {
    for when in (0..200).step_by(7) {
        let host = Surviving::new(PeerConfig::default()).await;
        let dir = host.mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
        host.mount.peer.set_latency(Duration::from_millis(20));
        // Some of it waits for an answer.
        let working = async {
            work(&host.mount, dir).await;
            millis(when).await;
        };
        within(600, working).await;
        let mut host = host.killed().await;
        if when % 2 == 0 {
            // So is the one that has just taken over.
            host = host.killed().await;
        }
        settled(&host.mount).await;
        is_as_it_was_left(&host.mount, when);
        assert_eq!(host.mount.vfs.late_errors().0, 0, "after {when} ms");
        within(600, host.mount.vfs.settled()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_file_that_is_not_made_yet_goes_on_with_its_data_and_times() {
    for kills in 1..3 {
        let host = Surviving::new(PeerConfig::default()).await;
        let dir = host.mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
        host.mount.peer.set_latency(Duration::from_millis(50));
        let file = host
            .mount
            .create(dir, "f", EXCLUSIVE)
            .await
            .expect("create");
        host.mount.write(file, 0, b"one").await.expect("write");
        let shown = host.mount.getattr(file.ino).await.expect("stat");
        let mut host = host;
        for _ in 0..kills {
            host = host.killed().await;
        }
        let mount = &host.mount;
        mount.write(file, 3, b"two").await.expect("write");
        assert_eq!(mount.read(file, 0, 10).await.expect("read"), b"onetwo");
        mount.fsync(file).await.expect("fsync");
        mount.close(file).await.expect("close");
        let found = mount.lookup(dir, "f").await.expect("a name");
        let stat = found.expect("a file").stat;
        assert_eq!((stat.size, stat.ino), (6, shown.ino));
        assert!(
            stat.mtime >= shown.mtime,
            "{:?} {:?}",
            stat.mtime,
            shown.mtime
        );
        let data = mount.peer.fs().read_file("/d/f").expect("data");
        assert_eq!(data, b"onetwo");
        within(600, mount.vfs.settled()).await;
        assert_eq!(mount.peer.open_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_times_of_a_file_are_those_that_were_shown_before_the_kill() {
    let host = Surviving::new(PeerConfig::default()).await;
    let dir = host.mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    host.mount.peer.set_latency(Duration::from_millis(50));
    let file = host
        .mount
        .create(dir, "f", EXCLUSIVE)
        .await
        .expect("create");
    host.mount.write(file, 0, b"one").await.expect("write");
    let shown = host.mount.getattr(file.ino).await.expect("stat");
    let host = host.killed().await;
    settled(&host.mount).await;
    let stat = host.mount.peer.fs().stat("/d/f").expect("stat");
    assert_eq!(
        (stat.mtime.secs, stat.mtime.nanos),
        (shown.mtime.sec, shown.mtime.nsec)
    );
    assert_eq!(
        (stat.atime.secs, stat.atime.nanos),
        (shown.atime.sec, shown.atime.nsec)
    );
}

/// Requests that were answered ahead, which the kernel sends again as it has not got that.
#[tokio::test(start_paused = true)]
async fn a_request_that_comes_again_is_answered_as_it_was_and_done_once() {
    // Its change waits when the daemon is killed, is under way, or is done.
    for when in [0, 30, 500] {
        let host = Surviving::new(PeerConfig::default()).await;
        let mount = &host.mount;
        let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
        for name in ["gone", "moved"] {
            unpack(mount, dir, name, name.as_bytes())
                .await
                .expect("a file");
        }
        mount.mkdir(dir, "empty").await.expect("mkdir");
        settled(mount).await;
        mount.peer.set_latency(Duration::from_millis(50));
        let made = asked(1, false, mount.mkdir(dir, "sub")).await;
        let link = |mount: &Mount| {
            let (vfs, cred) = (Arc::clone(&mount.vfs), Arc::clone(&mount.cred));
            async move { vfs.symlink(&cred, dir, b"link", b"to").await }
        };
        let linked = asked(2, false, link(mount)).await.expect("symlink");
        let file = asked(3, false, mount.create(dir, "new", EXCLUSIVE)).await;
        let file = file.expect("create");
        let told = asked(4, false, mount.unlink(dir, "gone")).await;
        assert_eq!(told, Ok(()));
        let names = ((dir, "moved"), (dir, "there"));
        let told = asked(5, false, mount.rename(names.0, names.1)).await;
        assert_eq!(told, Ok(()));
        let rmdir = |mount: &Mount| {
            let (vfs, cred) = (Arc::clone(&mount.vfs), Arc::clone(&mount.cred));
            async move { vfs.rmdir(&cred, dir, b"empty").await.map_err(Errno::from) }
        };
        assert_eq!(asked(6, false, rmdir(mount)).await, Ok(()));
        millis(when).await;
        let mut host = host.killed().await;
        if when == 30 {
            host = host.killed().await;
        }
        let mount = &host.mount;
        assert_eq!(asked(1, true, mount.mkdir(dir, "sub")).await, made);
        let again = asked(2, true, link(mount)).await.expect("symlink");
        assert_eq!(again.ino, linked.ino);
        let again = asked(3, true, mount.create(dir, "new", EXCLUSIVE)).await;
        let again = again.expect("create");
        assert_eq!((again.ino, again.fh), (file.ino, file.fh));
        assert_eq!(asked(4, true, mount.unlink(dir, "gone")).await, Ok(()));
        let told = asked(5, true, mount.rename(names.0, names.1)).await;
        assert_eq!(told, Ok(()), "{when}");
        assert_eq!(asked(6, true, rmdir(mount)).await, Ok(()));
        for unique in 1..7 {
            mount.vfs.request_answered(unique);
        }
        mount.write(again, 0, b"data").await.expect("write");
        shut(mount, again).await.expect("close");
        settled(mount).await;
        let fs = mount.peer.fs();
        let names = fs.list("/d").expect("names");
        assert_eq!(names, ["link", "new", "sub", "there"], "{when}");
        assert_eq!(fs.read_file("/d/there").expect("data"), b"moved");
        assert_eq!(fs.read_file("/d/new").expect("data"), b"data");
        // And what is asked for anew is another request.
        let twice = asked(7, false, mount.mkdir(dir, "sub")).await;
        assert_eq!(twice, Err(Errno(libc::EEXIST)));
        within(600, mount.vfs.settled()).await;
        assert_eq!(mount.peer.open_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_told_after_the_kill() {
    let host = Surviving::new(PeerConfig::default()).await;
    let mount = &host.mount;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    let seen = AtomicUsize::new(0);
    mount.peer.on_op(move |event| {
        match event.op == op::OPEN && seen.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Action::Fail(st::DQUOT),
            false => Action::Pass,
        }
    });
    mount.peer.set_latency(Duration::from_millis(20));
    let file = mount.create(dir, "a", EXCLUSIVE).await.expect("create");
    mount.write(file, 0, b"data").await.expect("write");
    unpack(mount, dir, "b", b"data").await.expect("a file");
    millis(2000).await;
    let host = host.killed().await;
    let mount = &host.mount;
    assert!(mount.fsync(file).await.is_err(), "it was never made");
    let told = within(60, mount.vfs.fsyncdir(dir)).await;
    assert_eq!(told.map_err(Errno::from), Err(Errno(libc::EDQUOT)));
    let told = within(60, mount.vfs.fsyncdir(dir)).await;
    assert_eq!(told.map_err(Errno::from), Ok(()), "it was told once");
    assert_eq!(mount.peer.fs().list("/d").expect("names"), ["b"]);
    mount.release(file).await;
    within(600, mount.vfs.settled()).await;
}

/// What became of a file is on record for as long as changes of before are not done.
#[tokio::test(start_paused = true)]
async fn what_is_written_and_set_after_a_file_was_made_and_closed_is_there() {
    let host = Surviving::new(PeerConfig::default()).await;
    let mount = &host.mount;
    let dir = mount.mkdir(ROOT_INO, "d").await.expect("mkdir");
    let other = mount.mkdir(ROOT_INO, "other").await.expect("mkdir");
    mount.peer.on_op(move |event| match event.op {
        op::CREATE => Action::Fail(st::DELAY),
        _ => Action::Pass,
    });
    mount.mkdir(other, "late").await.expect("mkdir");
    let made = unpack(mount, dir, "f", b"data").await.expect("a file");
    millis(900).await;
    assert_eq!(mount.peer.fs().read_file("/d/f").expect("data"), b"data");
    let file = mount.open(made.ino, libc::O_WRONLY).await.expect("open");
    mount.write(file, 4, b" and more").await.expect("write");
    let host = host.killed().await;
    let mount = &host.mount;
    mount.peer.clear_script();
    mount.fsync(file).await.expect("fsync");
    let data = mount.peer.fs().read_file("/d/f").expect("data");
    assert_eq!(data, b"data and more");
    mount.close(file).await.expect("close");
    settled(mount).await;
    assert_eq!(mount.peer.fs().list("/other").expect("names"), ["late"]);
    within(600, mount.vfs.settled()).await;
}
