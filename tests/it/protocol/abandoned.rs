//! Changes whose callers were answered before they had ended: killed, or given up by a
//! soft mount. Nothing of them takes effect later.
//!
//! A table of operations × moments of death × what another host did meanwhile.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use efs_fuse::rpc::caller::{self, Abandoned, Caller};
use efs_fuse::vfs::types::{Errno, ROOT_INO, SetAttr, WriteFlags};
use tokio::task::JoinHandle;

use super::rig::{
    Mount, Open, client_config, connect_as, default_timeouts, millis, once_at, within,
};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};
use efs_fuse::telemetry::Metrics;

/// Everything that changes what another host sees.
const CHANGES: [Change; 11] = [
    Change::Unlink,
    Change::RmDir,
    Change::Rename,
    Change::Link,
    Change::MkDir,
    Change::Symlink,
    Change::Truncate,
    Change::Chmod,
    Change::Create,
    Change::OpenTrunc,
    Change::SyncWrite,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Unlink,
    RmDir,
    Rename,
    Link,
    MkDir,
    Symlink,
    Truncate,
    Chmod,
    Create,
    OpenTrunc,
    SyncWrite,
}

impl Change {
    /// The operation that makes it.
    fn op(self) -> u32 {
        match self {
            Change::Unlink | Change::RmDir => op::REMOVE,
            Change::Rename => op::RENAME,
            Change::Link => op::LINK,
            Change::MkDir | Change::Symlink => op::CREATE,
            Change::Truncate | Change::Chmod | Change::OpenTrunc => op::SETATTR,
            Change::Create => op::OPEN,
            Change::SyncWrite => op::WRITE,
        }
    }
}

/// A mount that knows its files, and a server.
struct World {
    peer: Arc<Peer>,
    mount: Arc<Mount>,
    open: Open,
}

impl World {
    async fn new() -> Self {
        let peer = Peer::new(PeerConfig::default());
        let fs = peer.fs();
        fs.write_file("/f", b"old old old").unwrap();
        fs.write_file("/t", b"temporary").unwrap();
        fs.mkdir("/d").unwrap();
        let mount = Mount::of(&peer, "one", default_timeouts()).await;
        for name in ["/f", "/t", "/d"] {
            mount.walk(name).await.unwrap();
        }
        let ino = mount.walk("/t").await.unwrap();
        let open = mount.open(ino, libc::O_RDWR).await.unwrap();
        let mount = Arc::new(mount);
        Self { peer, mount, open }
    }

    /// Begins the change in a task, for a caller.
    fn begin(&self, change: Change) -> (Arc<Caller>, JoinHandle<Result<(), Errno>>) {
        let (mount, open) = (Arc::clone(&self.mount), self.open);
        self.call(async move { make(&mount, open, change).await })
    }

    fn call<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> (Arc<Caller>, JoinHandle<T>) {
        let caller = Caller::new(Some(self.abandoned()), 7);
        let task = tokio::spawn(caller::on_behalf_of(Some(Arc::clone(&caller)), work));
        (caller, task)
    }

    fn abandoned(&self) -> Arc<Abandoned> {
        Arc::clone(self.mount.vfs.abandoned())
    }

    /// What other hosts see.
    fn seen(&self) -> Vec<(String, Vec<u8>, u32)> {
        let fs = self.peer.fs();
        let mut names = fs.list("/").unwrap();
        names.sort();
        let look = |name: String| {
            let path = format!("/{name}");
            let mode = fs.stat(&path).unwrap().mode;
            let content = fs.read_file(&path).unwrap_or_default();
            (name, content, mode)
        };
        names.into_iter().map(look).collect()
    }
}

async fn make(mount: &Mount, open: Open, change: Change) -> Result<(), Errno> {
    let (vfs, cred) = (&mount.vfs, &mount.cred);
    let f = mount.walk("/f").await?;
    match change {
        Change::Unlink => mount.unlink(ROOT_INO, "f").await,
        Change::RmDir => vfs.rmdir(cred, ROOT_INO, b"d").await.map_err(Errno::from),
        Change::Rename => mount.rename((ROOT_INO, "t"), (ROOT_INO, "f")).await,
        Change::Link => vfs
            .link(cred, f, ROOT_INO, b"l")
            .await
            .map(drop)
            .map_err(Errno::from),
        Change::MkDir => mount.mkdir(ROOT_INO, "new").await.map(drop),
        Change::Symlink => vfs
            .symlink(cred, ROOT_INO, b"s", b"f")
            .await
            .map(drop)
            .map_err(Errno::from),
        Change::Truncate => mount.truncate(f, None, 0).await,
        Change::Chmod => {
            let set = SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            };
            vfs.setattr(cred, f, None, set)
                .await
                .map(drop)
                .map_err(Errno::from)
        }
        Change::Create => {
            let made = mount
                .create(ROOT_INO, "n", libc::O_RDWR | libc::O_EXCL)
                .await?;
            mount.close(made).await
        }
        Change::OpenTrunc => {
            let opened = mount.open(f, libc::O_WRONLY | libc::O_TRUNC).await?;
            mount.close(opened).await
        }
        Change::SyncWrite => {
            let flags = WriteFlags {
                open_flags: libc::O_DIRECT,
                ..WriteFlags::default()
            };
            let data = Bytes::from_static(b"late");
            let written = vfs.write(open.fh, 0, data, flags).await;
            written.map(drop).map_err(Errno::from)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_when_its_caller_died_never_takes_effect() {
    for change in CHANGES {
        let world = World::new().await;
        let before = world.seen();
        world.peer.refuse_connections(true);
        world.peer.cut_all_connections();
        millis(50).await;
        let (caller, task) = world.begin(change);
        millis(500).await;
        assert!(!task.is_finished(), "{change:?}: nothing was to go through");
        caller.give_up();
        assert!(
            !world.abandoned().any(),
            "{change:?}: nothing is on its way"
        );
        // Another host goes on meanwhile.
        world.peer.fs().write_file("/f", b"new").unwrap();
        millis(600_000).await;
        world.peer.refuse_connections(false);
        within(60, task).await.unwrap().unwrap_err();
        millis(1000).await;
        let mut expected = before;
        expected[1].1 = b"new".to_vec();
        assert_eq!(world.seen(), expected, "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_with_its_connection_is_not_sent_again_for_a_caller_that_died() {
    for change in CHANGES {
        let world = World::new().await;
        let before = world.seen();
        once_at(&world.peer, change.op(), Action::DropConnectionBefore);
        world.peer.refuse_connections(true);
        let (caller, task) = world.begin(change);
        millis(500).await;
        assert!(!task.is_finished(), "{change:?}: it was lost");
        caller.give_up();
        assert!(world.abandoned().any(), "{change:?}: it may have run");
        world.peer.fs().write_file("/f", b"new").unwrap();
        millis(60_000).await;
        world.peer.clear_log();
        world.peer.refuse_connections(false);
        within(60, task).await.unwrap().unwrap_err();
        millis(1000).await;
        assert!(!world.abandoned().any(), "{change:?}");
        let mut expected = before;
        expected[1].1 = b"new".to_vec();
        assert_eq!(world.seen(), expected, "{change:?}");
        assert_eq!(
            world.peer.count_op(change.op()),
            usize::from(change == Change::Create),
            "{change:?}: but for the OPEN that finds out what is to be closed"
        );
        // The slot is as good as before, and so is the mount.
        world.mount.mkdir(ROOT_INO, "after").await.unwrap();
        assert_eq!(world.peer.session_count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_ran_although_its_reply_was_lost_leaves_nothing_behind_but_its_effect() {
    for change in CHANGES {
        let world = World::new().await;
        let opens = world.peer.open_count();
        once_at(&world.peer, change.op(), Action::DropConnectionAfter);
        world.peer.refuse_connections(true);
        let (caller, task) = world.begin(change);
        millis(500).await;
        caller.give_up();
        millis(5000).await;
        let done = world.seen();
        // Others go on; the effect is not repeated over what they do.
        world.peer.fs().write_file("/f", b"new").unwrap();
        let expected = world.seen();
        assert_ne!(done, expected);
        world.peer.refuse_connections(false);
        let ended = within(60, task).await.unwrap();
        millis(1000).await;
        assert_eq!(world.seen(), expected, "{change:?}");
        assert!(!world.abandoned().any(), "{change:?}");
        if let Ok(()) = ended {
            continue;
        }
        assert_eq!(
            world.peer.open_count(),
            opens,
            "{change:?}: an open is left"
        );
        // What this host shows is what is there.
        let listed = world.mount.list(ROOT_INO, true).await.unwrap();
        let names: Vec<_> = expected.iter().map(|(name, ..)| name.clone()).collect();
        assert_eq!(listed, names, "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_still_on_its_way_takes_effect_before_anything_that_begins_later() {
    for change in CHANGES {
        let world = World::new().await;
        once_at(
            &world.peer,
            change.op(),
            Action::Delay(Duration::from_secs(20)),
        );
        let (caller, task) = world.begin(change);
        millis(500).await;
        caller.give_up();
        let abandoned = world.abandoned();
        assert!(abandoned.any(), "{change:?}");
        let begun = tokio::time::Instant::now();
        // What the adapter has every operation do first.
        abandoned.ended().await;
        assert!(begun.elapsed() >= Duration::from_secs(19), "{change:?}");
        let seen = world.seen();
        let _ = within(60, task).await.unwrap();
        millis(1000).await;
        assert_eq!(world.seen(), seen, "{change:?}: something came after it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_waited_for_room_when_its_caller_died_is_not_accepted_later() {
    let peer = Peer::new(PeerConfig::default());
    let client = connect_as(&peer, client_config("one"), Metrics::new()).await;
    let mount = Arc::new(Mount::over(&client, &peer, default_timeouts(), 1 << 20));
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    peer.set_latency(Duration::from_secs(3600));
    mount.write(file, 1 << 20, &[b'x'; 1 << 20]).await.unwrap();
    let world = World {
        peer: Arc::clone(&peer),
        mount: Arc::clone(&mount),
        open: file,
    };
    let writer = Arc::clone(&mount);
    let (caller, task) = world.call(async move { writer.write(file, 0, &[b'B'; 4096]).await });
    millis(500).await;
    assert!(!task.is_finished(), "there is room");
    caller.give_up();
    assert_eq!(within(1, task).await.unwrap(), Err(Errno(libc::EINTR)));
    peer.set_latency(Duration::ZERO);
    millis(7_200_000).await;
    within(60, mount.write(file, 0, &[b'A'; 4096]))
        .await
        .unwrap();
    within(60, mount.fsync(file)).await.unwrap();
    assert!(peer.fs().read_file("/f").unwrap()[..4096] == [b'A'; 4096]);
}
