//! Bugs that were found by reading, each as the promise it broke. The vfs runs
//! against the scripted server in memory, on tokio's paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use efs_fuse::nfs::session::establish::Identity;
use efs_fuse::nfs::{Client, ClientConfig};
use efs_fuse::rpc::auth::Credential;
use efs_fuse::rpc::{Connections, Tolerance};
use efs_fuse::telemetry::Metrics;
use efs_fuse::vfs::Timeouts;
use efs_fuse::vfs::types::{Errno, Ino, Lookup, MissingNames, ROOT_INO, SetAttr, WriteFlags};
use efs_fuse::vfs::{Vfs, VfsConfig};
use tokio::time::{Instant, sleep, timeout};

use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const SOON: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

/// A mount without a kernel.
struct Host {
    vfs: Arc<Vfs>,
    cred: Arc<Credential>,
}

impl Host {
    async fn new(peer: &Arc<Peer>) -> Self {
        Self::with(peer, 64 * MIB, Duration::from_secs(30)).await
    }

    async fn with(peer: &Arc<Peer>, write_window: usize, timeout: Duration) -> Self {
        let config = ClientConfig {
            identity: Identity {
                owner: b"regressions".to_vec(),
                verifier: [1; 8],
                machine_name: "host".to_owned(),
            },
            slots: 64,
            rsize: 1 << 20,
            wsize: 1 << 20,
            tolerance: Tolerance::default(),
            connections: Connections::ONE,
            suspended: efs_fuse::nfs::suspended,
            wal: efs_fuse::wal::Wal::off(),
        };
        let metrics = Metrics::new();
        let client = Client::connect(peer.connector(), config, Arc::clone(&metrics))
            .await
            .expect("a client");
        let cred = Credential::machine();
        let sent = Instant::now();
        client.find_root(&cred, b"/").await.expect("a root");
        let config = VfsConfig {
            timeouts: Timeouts {
                reg_min: timeout,
                reg_max: timeout,
                dir_min: timeout,
                dir_max: timeout,
            },
            write_window,
            read_ahead: 8 << 20,
            max_names: 1000,
            missing_names: MissingNames::AskedFor,
            max_inodes: usize::MAX,
            asks_who_searches: false,
            writeback: None,
            close_to_open: true,
        };
        let vfs = Vfs::new(client, config, sent, metrics);
        Self { vfs, cred }
    }

    async fn create(&self, name: &str) -> (Ino, u64) {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let (entry, opened) = self
            .vfs
            .create(&self.cred, ROOT_INO, name.as_bytes(), 0o644, flags)
            .await
            .expect("create");
        (entry.ino, opened.fh)
    }

    async fn open(&self, ino: Ino, flags: i32) -> u64 {
        let opened = self.vfs.open(&self.cred, ino, flags).await;
        opened.expect("open").fh
    }

    async fn find(&self, name: &str) -> Lookup {
        let found = self.vfs.lookup(&self.cred, ROOT_INO, name.as_bytes()).await;
        found.expect("lookup")
    }

    async fn ino(&self, name: &str) -> Ino {
        match self.find(name).await {
            Lookup::Found(entry) => entry.ino,
            Lookup::Missing { .. } => panic!("{name} is missing"),
        }
    }

    async fn write(&self, fh: u64, offset: u64, data: impl Into<Bytes>) -> Result<u32, Errno> {
        let flags = WriteFlags::default();
        Ok(self.vfs.write(fh, offset, data.into(), flags).await?)
    }

    async fn read(&self, fh: u64, offset: u64, size: u32) -> Bytes {
        let data = self.vfs.read(fh, offset, size, 0).await;
        data.expect("read")
    }

    async fn flush(&self, fh: u64) -> Result<(), Errno> {
        let flushed = timeout(SOON, self.vfs.flush(fh, 0)).await;
        Ok(flushed.expect("an end of flush")?)
    }

    async fn set(&self, ino: Ino, fh: Option<u64>, set: SetAttr) -> u64 {
        let stat = self.vfs.setattr(&self.cred, ino, fh, set).await;
        stat.expect("setattr").0.size
    }
}

fn slow(peer: &Peer, slow: u32, time: Duration) {
    peer.on_op(move |event| match event.op == slow {
        true => Action::Delay(time),
        false => Action::Pass,
    });
}

fn once() -> impl Fn() -> bool + Send + 'static {
    let first = AtomicBool::new(true);
    move || first.swap(false, Ordering::Relaxed)
}

/// The kernel believes the size in every reply with attributes: one that is too
/// small cuts its pages, and the next O_APPEND write lands on earlier data.
#[tokio::test(start_paused = true)]
async fn no_reply_shows_a_file_shorter_than_what_was_written_to_it() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (ino, fh) = host.create("f").await;
    slow(&peer, op::WRITE, Duration::from_secs(1));
    host.write(fh, 0, vec![7; 3 * MIB]).await.unwrap();
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(host.set(ino, Some(fh), mode).await, 3 * MIB as u64);
    let Lookup::Found(entry) = host.find("f").await else {
        panic!("missing");
    };
    assert_eq!(entry.stat.size, 3 * MIB as u64);
    assert_eq!(
        entry.attr_ttl,
        Duration::ZERO,
        "its times are about to move"
    );
    // Replies of single WRITEs know nothing of those behind them.
    for _ in 0..20 {
        sleep(Duration::from_millis(100)).await;
        if let Some(Ok(Lookup::Found(entry))) = host.vfs.lookup_cached(ROOT_INO, b"f") {
            assert_eq!(entry.stat.size, 3 * MIB as u64);
        }
    }
    host.flush(fh).await.unwrap();
}

/// A short answer is the end of the file for the kernel.
#[tokio::test(start_paused = true)]
async fn a_hole_below_data_on_their_way_is_read_in_full() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (_, fh) = host.create("f").await;
    slow(&peer, op::WRITE, Duration::from_secs(1));
    host.write(fh, 2 * MIB as u64, &b"end"[..]).await.unwrap();
    assert_eq!(host.read(fh, 4096, 4096).await, vec![0; 4096]);
}

async fn read_ahead(peer: &Arc<Peer>) -> (Host, Ino, u64) {
    peer.fs().write_file("/f", &vec![b'a'; 6 * MIB]).unwrap();
    let host = Host::new(peer).await;
    let ino = host.ino("f").await;
    let reader = host.open(ino, libc::O_RDONLY).await;
    for at in 0..4 {
        host.read(reader, at << 17, 1 << 17).await;
    }
    sleep(Duration::from_secs(1)).await;
    (host, ino, reader)
}

#[tokio::test(start_paused = true)]
async fn what_one_descriptor_wrote_is_read_by_another_that_has_read_ahead() {
    let peer = Peer::new(PeerConfig::default());
    let (host, ino, reader) = read_ahead(&peer).await;
    let writer = host.open(ino, libc::O_WRONLY).await;
    for at in [(MIB + 5) as u64, (3 * MIB + 5) as u64] {
        host.write(writer, at, &b"new"[..]).await.unwrap();
        assert_eq!(host.read(reader, at, 3).await, &b"new"[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_cut_and_grown_again_is_zeros_for_who_has_read_ahead() {
    let peer = Peer::new(PeerConfig::default());
    let (host, ino, reader) = read_ahead(&peer).await;
    for size in [0, 6 * MIB as u64] {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        assert_eq!(host.set(ino, None, set).await, size);
    }
    assert_eq!(host.read(reader, MIB as u64 + 5, 3).await, vec![0; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_truncation_is_answered_with_the_new_size_whatever_overtook_it() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", &[1; 100]).unwrap();
    let host = Host::with(&peer, MIB, Duration::ZERO).await;
    let ino = host.ino("f").await;
    slow(&peer, op::SETATTR, Duration::from_secs(1));
    let set = SetAttr {
        size: Some(10),
        ..SetAttr::default()
    };
    let (size, ()) = tokio::join!(host.set(ino, None, set), async {
        sleep(Duration::from_millis(100)).await;
        let (stat, _) = host.vfs.getattr(&host.cred, ino, None).await.unwrap();
        assert_eq!(stat.size, 100);
    });
    assert_eq!(size, 10);
}

#[tokio::test(start_paused = true)]
async fn a_full_window_is_emptied_although_nobody_syncs() {
    let peer = Peer::new(PeerConfig {
        latency: Duration::from_millis(10),
        ..PeerConfig::default()
    });
    let host = Host::with(&peer, MIB, Duration::from_secs(30)).await;
    let mut files = Vec::new();
    for name in ["a", "b", "c"] {
        files.push(host.create(name).await.1);
    }
    for fh in files {
        let written = host.write(fh, 0, vec![1; 400 << 10]);
        timeout(SOON, written).await.expect("room").unwrap();
    }
}

/// A name that this host has removed stays removed, also for a LOOKUP or a
/// listing that was on its way before.
#[tokio::test(start_paused = true)]
async fn a_lookup_overtaken_by_a_removal_leaves_no_ghost() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", b"").unwrap();
    peer.fs().link("/f", "/still there").unwrap();
    let host = Host::new(&peer).await;
    host.ino("f").await;
    slow(&peer, op::GETFH, Duration::from_secs(1));
    let (found, ()) = tokio::join!(host.find("f"), async {
        sleep(Duration::from_millis(100)).await;
        host.vfs.unlink(&host.cred, ROOT_INO, b"f").await.unwrap();
    });
    let Lookup::Found(found) = found else {
        panic!("it was still there");
    };
    assert_eq!(found.entry_ttl, Duration::ZERO);
    let cached = host.vfs.lookup_cached(ROOT_INO, b"f");
    assert!(!matches!(cached, Some(Ok(Lookup::Found(_)))), "{cached:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_goes_while_it_is_looked_up_is_missing_and_its_directory_is_not() {
    let peer = Peer::new(PeerConfig {
        keep_unlinked: false,
        ..PeerConfig::default()
    });
    peer.fs().write_file("/f", b"").unwrap();
    let host = Host::new(&peer).await;
    let (files, first) = (peer.fs(), once());
    peer.on_op(move |event| {
        if event.op == op::GETFH && first() {
            files.remove("/f").unwrap();
        }
        Action::Pass
    });
    assert!(matches!(host.find("f").await, Lookup::Missing { .. }));
}

/// mkdir(2) is a lock for some programs: a reply out of the server's cache is
/// the truth, also the second time it is sent.
#[tokio::test(start_paused = true)]
async fn a_name_that_existed_before_is_not_taken_for_ours_after_a_lost_reply() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().mkdir("/lock").unwrap();
    let host = Host::new(&peer).await;
    let first = once();
    peer.on_op(move |event| match event.op {
        op::CREATE | op::REMOVE if first() => Action::DropConnectionAfter,
        _ => Action::Pass,
    });
    let made = host.vfs.mkdir(&host.cred, ROOT_INO, b"lock", 0o755).await;
    assert_eq!(made.unwrap_err(), Errno(libc::EEXIST));
    let first = once();
    peer.on_op(move |event| match event.op {
        op::REMOVE if first() => Action::DropConnectionAfter,
        _ => Action::Pass,
    });
    let removed = host.vfs.unlink(&host.cred, ROOT_INO, b"none").await;
    assert_eq!(removed.unwrap_err(), Errno(libc::ENOENT));
}

/// The slot moved: used again under the same sequence id it would be refused,
/// or answered with another request's reply.
#[tokio::test(start_paused = true)]
async fn a_reply_that_the_server_did_not_keep_is_asked_for_anew() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", b"data").unwrap();
    let host = Host::new(&peer).await;
    let ino = host.ino("f").await;
    let fh = host.open(ino, libc::O_RDONLY).await;
    let first = once();
    peer.on_op(move |event| {
        let is_read = event.op == op::SEQUENCE && event.compound.contains(&op::READ);
        match is_read && first() {
            true => Action::FailAfter(st::RETRY_UNCACHED_REP),
            false => Action::Pass,
        }
    });
    assert_eq!(host.read(fh, 0, 4).await, &b"data"[..]);
    let misordered = peer.log().iter().any(|done| {
        let first = done.statuses.first();
        first.is_some_and(|&status| status == st::SEQ_MISORDERED || status == st::SEQ_FALSE_RETRY)
    });
    assert!(!misordered);
}

/// After a lease that ran out there is nothing to reclaim, and a plain OPEN gets
/// GRACE until RECLAIM_COMPLETE.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_open_survives_a_lost_lease() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (_, fh) = host.create("f").await;
    host.write(fh, 0, &b"one"[..]).await.unwrap();
    host.flush(fh).await.unwrap();
    peer.expire_clients();
    host.write(fh, 3, &b"two"[..]).await.unwrap();
    host.flush(fh).await.unwrap();
    assert_eq!(peer.fs().read_file("/f").unwrap(), b"onetwo");
    host.vfs.release(fh).await.unwrap();
    host.vfs.client().closes_sent().await;
    assert_eq!(peer.open_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_is_interrupted_reclaims_all_the_same() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (_, fh) = host.create("f").await;
    host.write(fh, 0, &b"one"[..]).await.unwrap();
    peer.crash_and_restart();
    let first = once();
    peer.on_op(move |event| {
        let reclaims = event.op == op::SEQUENCE && event.compound.contains(&op::OPEN);
        match reclaims && first() {
            true => Action::Fail(st::BADSESSION),
            false => Action::Pass,
        }
    });
    host.flush(fh).await.unwrap();
    assert_eq!(peer.fs().read_file("/f").unwrap(), b"one");
    assert!(!peer.in_grace(), "RECLAIM_COMPLETE was sent");
    assert_eq!(peer.open_count(), 1);
}

/// Reading ahead may still be under way when the file is closed.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_closed_is_not_opened_again_for_a_late_read() {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", &vec![1; 8 * MIB]).unwrap();
    let host = Host::new(&peer).await;
    let ino = host.ino("f").await;
    let fh = host.open(ino, libc::O_RDONLY).await;
    // Each later than the one before.
    let mut reads = 0;
    peer.on_op(move |event| {
        reads += u64::from(event.op == op::READ);
        match event.op == op::READ {
            true => Action::Delay(Duration::from_secs(reads)),
            false => Action::Pass,
        }
    });
    for at in 0..3 {
        host.read(fh, at << 17, 1 << 17).await;
    }
    let under_way = peer.count_op(op::READ);
    host.vfs.release(fh).await.unwrap();
    sleep(SOON).await;
    assert!(
        peer.count_op(op::READ) > under_way,
        "nothing was read ahead"
    );
    assert_eq!(peer.open_count(), 0);
}

/// The decision that nobody has the file open holds until it is removed.
#[tokio::test(start_paused = true)]
async fn a_file_is_not_opened_while_its_last_name_is_being_removed() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (ino, fh) = host.create("f").await;
    host.flush(fh).await.unwrap();
    host.vfs.release(fh).await.unwrap();
    slow(&peer, op::REMOVE, Duration::from_secs(1));
    let (removed, opened) = tokio::join!(host.vfs.unlink(&host.cred, ROOT_INO, b"f"), async {
        sleep(Duration::from_millis(100)).await;
        host.vfs.open(&host.cred, ino, libc::O_RDWR).await
    });
    removed.unwrap();
    assert_eq!(opened.unwrap_err(), Errno(libc::ESTALE));
}

/// The session may go away while an open is being renewed.
#[tokio::test(start_paused = true)]
async fn an_open_is_renewed_over_the_loss_of_a_session() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (_, fh) = host.create("f").await;
    peer.revoke_state(st::EXPIRED);
    let first = once();
    peer.on_op(move |event| {
        let renews = event.op == op::SEQUENCE && event.compound.contains(&op::OPEN);
        match renews && first() {
            true => Action::Fail(st::BADSESSION),
            false => Action::Pass,
        }
    });
    host.write(fh, 0, &b"one"[..]).await.unwrap();
    host.flush(fh).await.unwrap();
    assert_eq!(peer.fs().read_file("/f").unwrap(), b"one");
}

/// close(2) does not wait for the CLOSE, but rmdir(2) behind it finds the
/// directory empty.
#[tokio::test(start_paused = true)]
async fn a_directory_whose_last_file_was_unlinked_and_just_closed_can_be_removed() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (vfs, cred) = (&host.vfs, &host.cred);
    let dir = vfs.mkdir(cred, ROOT_INO, b"d", 0o755).await.unwrap().ino;
    let flags = libc::O_RDWR | libc::O_CREAT;
    let file = vfs.create(cred, dir, b"f", 0o644, flags).await.unwrap();
    vfs.unlink(cred, dir, b"f").await.unwrap();
    slow(&peer, op::CLOSE, Duration::from_secs(1));
    let (released, removed) = tokio::join!(vfs.release(file.1.fh), vfs.rmdir(cred, ROOT_INO, b"d"));
    assert_eq!((released, removed), (Ok(()), Ok(())));
}

/// The kernel drops its pages when it has the answer, not when it is given.
#[tokio::test(start_paused = true)]
async fn pages_are_not_kept_by_an_open_that_overtakes_the_one_that_drops_them() {
    let peer = Peer::new(PeerConfig::default());
    let (host, other) = (Host::new(&peer).await, Host::new(&peer).await);
    let (_, theirs) = other.create("f").await;
    let ino = host.ino("f").await;
    let open = async || host.vfs.open(&host.cred, ino, libc::O_RDONLY).await;
    let first = open().await.expect("open");
    host.flush(first.fh).await.expect("flush");
    assert!(open().await.expect("open").keep_cache, "nothing has moved");
    other.write(theirs, 0, vec![7; 100]).await.expect("write");
    other.flush(theirs).await.expect("flush");
    let drops = open().await.expect("open");
    let overtakes = open().await.expect("open");
    assert!(!drops.keep_cache && !overtakes.keep_cache);
    host.read(drops.fh, 0, 10).await;
    assert!(open().await.expect("open").keep_cache);
}

/// What the kernel writes out of its pages is zeros behind a new, smaller end
/// that another process of the host makes it see meanwhile.
#[tokio::test(start_paused = true)]
async fn a_file_that_another_host_has_cut_is_not_written_through_pages() {
    let peer = Peer::new(PeerConfig::default());
    let (host, other) = (Host::new(&peer).await, Host::new(&peer).await);
    let (theirs, fh) = other.create("f").await;
    other.write(fh, 0, vec![7; 10_000]).await.expect("write");
    other.flush(fh).await.expect("flush");
    let ino = host.ino("f").await;
    let open = async |flags| host.vfs.open(&host.cred, ino, flags).await.expect("open");
    assert!(!open(libc::O_RDWR).await.direct_io);
    let cut = SetAttr {
        size: Some(2_000),
        ..SetAttr::default()
    };
    other.set(theirs, Some(fh), cut).await;
    assert!(open(libc::O_WRONLY).await.direct_io);
    assert!(!open(libc::O_RDONLY).await.direct_io);
    let rdwr = open(libc::O_RDWR).await;
    assert!(rdwr.direct_io);
    // From a cut of its own on, the kernel knows the size.
    let cut = SetAttr {
        size: Some(1_000),
        ..SetAttr::default()
    };
    host.set(ino, Some(rdwr.fh), cut).await;
    assert!(!open(libc::O_RDWR).await.direct_io);
}

#[tokio::test(start_paused = true)]
async fn every_open_by_a_name_that_was_given_away_is_refused_not_only_the_first() {
    let peer = Peer::new(PeerConfig::default());
    let (host, other) = (Host::new(&peer).await, Host::new(&peer).await);
    let (_, fh) = other.create("f").await;
    let ino = host.ino("f").await;
    other.create("f.new").await;
    let rename = other
        .vfs
        .rename(&other.cred, ROOT_INO, b"f.new", ROOT_INO, b"f", 0);
    rename.await.expect("rename");
    for _ in 0..3 {
        let opened = host.vfs.open(&host.cred, ino, libc::O_RDONLY).await;
        assert_eq!(opened.expect_err("an old file"), Errno(libc::ESTALE));
    }
    let _keeps_it_alive = fh;
}

#[tokio::test(start_paused = true)]
async fn a_name_whose_open_file_is_replaced_is_missing_for_nobody_at_no_moment() {
    for links in [true, false] {
        let peer = Peer::new(PeerConfig::default());
        let (host, other) = (Host::new(&peer).await, Host::new(&peer).await);
        let (_, fh) = host.create("f").await;
        host.write(fh, 0, &b"old"[..]).await.unwrap();
        host.flush(fh).await.unwrap();
        host.create("f.new").await;
        peer.on_op(move |event| match event.op {
            op::LINK if !links => Action::Fail(st::NOTSUPP),
            op::LINK | op::RENAME => Action::Delay(Duration::from_secs(1)),
            _ => Action::Pass,
        });
        let rename = host
            .vfs
            .rename(&host.cred, ROOT_INO, b"f.new", ROOT_INO, b"f", 0);
        let look = async {
            let mut missing = 0;
            for _ in 0..30 {
                sleep(Duration::from_millis(100)).await;
                let found = other.vfs.lookup_asked(&other.cred, ROOT_INO, b"f").await;
                missing += i32::from(!matches!(found, Ok(Lookup::Found(_))));
            }
            missing
        };
        let (renamed, missing) = tokio::join!(rename, look);
        renamed.unwrap();
        // Where there are no links it cannot be helped.
        assert_eq!(missing == 0, links, "{missing}");
        assert_eq!(&host.read(fh, 0, 10).await[..], b"old", "it is kept");
        let names = || peer.fs().list("/").unwrap().len();
        assert_eq!(names(), 2, "hidden");
        host.vfs.release(fh).await.unwrap();
        sleep(SOON).await;
        assert_eq!(names(), 1, "and removed when it is closed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_fails_leaves_the_open_file_its_one_name() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    let (ino, fh) = host.create("f").await;
    host.create("f.new").await;
    peer.on_op(|event| match event.op {
        op::RENAME => Action::Fail(st::NOSPC),
        _ => Action::Pass,
    });
    let renamed = host
        .vfs
        .rename(&host.cred, ROOT_INO, b"f.new", ROOT_INO, b"f", 0)
        .await;
    assert_eq!(renamed.unwrap_err(), Errno(libc::ENOSPC));
    peer.clear_script();
    assert_eq!(peer.fs().list("/").unwrap().len(), 2);
    let (stat, _) = host.vfs.getattr(&host.cred, ino, Some(fh)).await.unwrap();
    assert_eq!(stat.nlink, 1);
    assert_eq!(host.ino("f").await, ino);
}

#[tokio::test(start_paused = true)]
async fn a_link_does_not_explain_what_another_host_wrote_before_it() {
    let peer = Peer::new(PeerConfig::default());
    let (host, other) = (Host::new(&peer).await, Host::new(&peer).await);
    let (_, fh) = other.create("f").await;
    other.write(fh, 0, &b"one"[..]).await.unwrap();
    other.flush(fh).await.unwrap();
    let ino = host.ino("f").await;
    let open = || async {
        let opened = host.vfs.open(&host.cred, ino, libc::O_RDONLY).await;
        let opened = opened.expect("open");
        let read = host.read(opened.fh, 0, 3).await;
        host.vfs.release(opened.fh).await.unwrap();
        (opened.keep_cache, read)
    };
    open().await;
    assert!(open().await.0, "the kernel has the file's pages");
    other.write(fh, 0, &b"two"[..]).await.unwrap();
    other.flush(fh).await.unwrap();
    let linked = host.vfs.link(&host.cred, ino, ROOT_INO, b"g").await;
    linked.expect("link");
    assert_eq!(open().await, (false, Bytes::from_static(b"two")));
}

/// What is written into it would be lost with it.
#[tokio::test(start_paused = true)]
async fn a_file_whose_name_was_given_away_is_not_cut_either() {
    let peer = Peer::new(PeerConfig::default());
    let (host, other) = (Host::new(&peer).await, Host::new(&peer).await);
    let (theirs, fh) = other.create("f").await;
    other.write(fh, 0, &b"kept"[..]).await.unwrap();
    other.flush(fh).await.unwrap();
    let ino = host.ino("f").await;
    other.create("f.new").await;
    let rename = other
        .vfs
        .rename(&other.cred, ROOT_INO, b"f.new", ROOT_INO, b"f", 0);
    rename.await.expect("rename");
    let flags = libc::O_WRONLY | libc::O_TRUNC;
    let opened = host.vfs.open(&host.cred, ino, flags).await;
    assert_eq!(opened.expect_err("an old file"), Errno(libc::ESTALE));
    let (stat, _) = other
        .vfs
        .getattr(&other.cred, theirs, Some(fh))
        .await
        .unwrap();
    assert_eq!(stat.size, 4, "nor has it lost anything");
}

/// A file with two names may be opened by either; that the other one was taken
/// away here says nothing about this one.
#[tokio::test(start_paused = true)]
async fn a_file_that_has_lost_one_of_its_names_is_still_asked_for_by_the_other() {
    let peer = Peer::new(PeerConfig::default());
    let (host, other) = (Host::new(&peer).await, Host::new(&peer).await);
    let (_, fh) = other.create("f").await;
    peer.fs().link("/f", "/g").unwrap();
    let ino = host.ino("f").await;
    assert_eq!(host.ino("g").await, ino);
    host.vfs.unlink(&host.cred, ROOT_INO, b"g").await.unwrap();
    other.create("f.new").await;
    let rename = other
        .vfs
        .rename(&other.cred, ROOT_INO, b"f.new", ROOT_INO, b"f", 0);
    rename.await.expect("rename");
    // As the kernel does: what a name with several leads to is asked for each time.
    let found = host.vfs.lookup_cached(ROOT_INO, b"f");
    let entry = match found {
        Some(Ok(Lookup::Found(entry))) => entry,
        other => panic!("{other:?}"),
    };
    assert!(entry.ino == ino, "believed for a while");
    let opened = host.vfs.open(&host.cred, ino, libc::O_RDONLY).await;
    assert_eq!(opened.expect_err("an old file"), Errno(libc::ESTALE));
    let _keeps_it_alive = fh;
}

#[tokio::test(start_paused = true)]
async fn the_kernel_asks_each_time_for_a_name_of_a_file_that_has_several() {
    let peer = Peer::new(PeerConfig::default());
    let host = Host::new(&peer).await;
    peer.fs().write_file("/f", b"").unwrap();
    peer.fs().write_file("/one", b"").unwrap();
    peer.fs().link("/f", "/g").unwrap();
    for (name, asks) in [("f", true), ("g", true), ("one", false)] {
        let found = host.vfs.lookup(&host.cred, ROOT_INO, name.as_bytes()).await;
        let Ok(Lookup::Found(entry)) = found else {
            panic!("{name}: {found:?}");
        };
        assert_eq!(entry.entry_ttl.is_zero(), asks, "{name}");
    }
}
