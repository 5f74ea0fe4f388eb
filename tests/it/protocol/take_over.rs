//! A mount that another process goes on with: what programs have, they have still.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efs_fuse::vfs::DentryState;
use efs_fuse::vfs::types::{Errno, FileKind, Ino, KernelCache, LockRange, ROOT_INO, Waiting};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::locks::{range, set};
use super::rig::{Mount, Names, Open, default_timeouts, millis, seconds, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const AGAIN: Result<(), Errno> = Err(Errno(libc::EAGAIN));
const EIO: Errno = Errno(libc::EIO);
const END: u64 = i64::MAX as u64;

/// What the kernel was told.
#[derive(Default)]
struct Told {
    pages: Mutex<Vec<Ino>>,
    attrs: Mutex<Vec<Ino>>,
    /// Everything waits in the queue.
    stuck: std::sync::atomic::AtomicBool,
    backlog: AtomicUsize,
}

impl Told {
    fn pages(&self) -> Vec<Ino> {
        std::mem::take(&mut self.pages.lock())
    }
}

impl KernelCache for Told {
    fn inval_inode(&self, ino: Ino) {
        self.pages.lock().push(ino);
    }
    fn inval_inode_grown(&self, ino: Ino, _: u64) {
        self.pages.lock().push(ino);
    }
    fn inval_inode_now(&self, ino: Ino) {
        self.pages.lock().push(ino);
    }
    fn is_telling(&self, ino: Ino) -> bool {
        self.stuck.load(Ordering::Relaxed) && self.pages.lock().contains(&ino)
    }
    fn settle(&self, _: Ino) {}
    fn inval_attr(&self, ino: Ino) {
        self.attrs.lock().push(ino);
    }
    fn inval_entry(&self, _: Ino, _: &[u8]) {}
    fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }
}

async fn mount() -> Mount {
    Mount::new(PeerConfig::default()).await
}

/// A file with this content, open.
async fn made(mount: &Mount, name: &str, data: &[u8]) -> Open {
    let file = mount.create(ROOT_INO, name, libc::O_RDWR).await.unwrap();
    mount.write(file, 0, data).await.unwrap();
    file
}

#[tokio::test(start_paused = true)]
async fn an_open_file_is_read_and_written_after_a_hand_over() {
    let mount = mount().await;
    let file = made(&mount, "f", b"before").await;
    let second = mount.open(file.ino, libc::O_RDONLY).await.unwrap();
    let opens = mount.peer.open_count();
    let mount = mount.handed_over().await;
    assert_eq!(mount.peer.open_count(), opens);
    for file in [file, second] {
        assert_eq!(mount.read(file, 0, 100).await.unwrap(), b"before");
    }
    mount.write(file, 6, b" and after").await.unwrap();
    assert_eq!(mount.getattr(file.ino).await.unwrap().size, 16);
    mount.fsync(file).await.unwrap();
    let new = mount.open(file.ino, libc::O_RDONLY).await.unwrap();
    assert!(new.fh > second.fh, "a number for each handle");
    assert_eq!(mount.read(new, 0, 100).await.unwrap(), b"before and after");
    for file in [file, second, new] {
        mount.close(file).await.unwrap();
    }
    within(60, mount.vfs.settled()).await;
    assert_eq!(mount.peer.open_count(), 0);
    assert_eq!(
        mount.peer.fs().read_file("/f").unwrap(),
        b"before and after"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_stable_before_a_hand_over_and_attributes_are_set() {
    let mount = mount().await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    for at in 0..20 {
        mount.write(file, at * 5000, &[7; 5000]).await.unwrap();
    }
    let estate = mount.left().await;
    let peer = estate.taken_over(default_timeouts()).await.peer;
    assert_eq!(peer.fs().read_file("/f").unwrap(), [7; 100_000]);
    assert!(!peer.fs().has_unstable("/f").unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_held_after_a_hand_over_and_goes_with_its_owner() {
    let peer = Peer::new(PeerConfig::default());
    let one = Mount::of(&peer, "one", default_timeouts()).await;
    let two = Mount::of(&peer, "two", default_timeouts()).await;
    let file = made(&one, "f", b"x").await;
    let again = one.open(file.ino, libc::O_RDWR).await.unwrap();
    let ino = two.walk("/f").await.unwrap();
    let there = two.open(ino, libc::O_RDWR).await.unwrap();
    // A process by one handle, and two descriptions: flock(2) and OFD.
    let (read, write, unlock) = (libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK);
    set(&one, file, 1, range(write, 0, 9)).await.unwrap();
    set(&one, again, 2, range(read, 20, 29)).await.unwrap();
    set(&one, again, 3, range(write, 40, END)).await.unwrap();
    // One that has nothing.
    assert_eq!(set(&one, file, 4, range(write, 0, 0)).await, AGAIN);
    let held = peer.fs().locks("/f").unwrap();
    let one = one.handed_over().await;
    assert_eq!(peer.fs().locks("/f").unwrap(), held);
    for at in [5, 25, 45] {
        assert_eq!(set(&two, there, 1, range(write, at, at)).await, AGAIN);
        // By another owner of this host: nobody asks the server.
        let before = peer.count_op(op::LOCK);
        assert_eq!(set(&one, file, 9, range(write, at, at)).await, AGAIN);
        assert_eq!(peer.count_op(op::LOCK), before);
    }
    let wanted = LockRange {
        pid: 0,
        ..range(write, 5, 5)
    };
    let found = one.vfs.getlk(&one.cred, file.fh, 9, wanted).await.unwrap();
    assert_eq!(
        (found.pid, found.start, found.end),
        (7, 0, 9),
        "whose it is"
    );
    // The owner is the same: it goes on with what it has.
    set(&one, file, 1, range(write, 0, 12)).await.unwrap();
    set(&one, file, 1, range(unlock, 0, 5)).await.unwrap();
    set(&two, there, 1, range(write, 0, 3)).await.unwrap();
    // close(2) by the process, and the last one of the descriptions.
    one.vfs.flush(file.fh, 1).await.unwrap();
    set(&two, there, 1, range(write, 0, 12)).await.unwrap();
    one.release(again).await;
    set(&two, there, 1, range(write, 0, END)).await.unwrap();
    one.close(file).await.unwrap();
    within(60, one.vfs.settled()).await;
    two.close(there).await.unwrap();
    within(60, two.vfs.settled()).await;
    assert_eq!((peer.open_count(), peer.lock_count()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lock_gets_it_if_he_asks_again_after_a_hand_over() {
    let mount = mount().await;
    let file = made(&mount, "f", b"x").await;
    set(&mount, file, 1, range(libc::F_WRLCK, 0, END))
        .await
        .unwrap();
    let gives_up = Arc::new(Waiting::default());
    let waits = {
        let (vfs, gives_up) = (Arc::clone(&mount.vfs), Arc::clone(&gives_up));
        let lock = async move {
            let wanted = range(libc::F_WRLCK, 0, 5);
            vfs.setlk(file.fh, 2, wanted, true, &gives_up).await
        };
        tokio::spawn(lock)
    };
    millis(50).await;
    gives_up.give_up();
    assert!(waits.await.unwrap().is_err());
    let mount = mount.handed_over().await;
    let caller = Waiting::default();
    let asks = mount
        .vfs
        .setlk(file.fh, 2, range(libc::F_WRLCK, 0, 5), true, &caller);
    let unlocks = async {
        millis(100).await;
        set(&mount, file, 1, range(libc::F_UNLCK, 0, END))
            .await
            .unwrap();
    };
    let (got, ()) = within(60, async { tokio::join!(asks, unlocks) }).await;
    got.unwrap();
    assert_eq!(mount.peer.fs().locks("/f").unwrap(), [(0, 5, true)]);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_lost_is_an_error_after_a_hand_over_too() {
    let mount = mount().await;
    let file = made(&mount, "f", b"x").await;
    set(&mount, file, 1, range(libc::F_WRLCK, 0, 9))
        .await
        .unwrap();
    let estate = mount.left().await;
    estate.peer.expire_clients();
    let other = Mount::of(&estate.peer, "two", default_timeouts()).await;
    let ino = other.walk("/f").await.unwrap();
    let there = other.open(ino, libc::O_RDWR).await.unwrap();
    set(&other, there, 1, range(libc::F_WRLCK, 0, END))
        .await
        .unwrap();
    let mount = estate.taken_over(default_timeouts()).await;
    seconds(1).await;
    assert_eq!(mount.read(file, 0, 1).await, Err(EIO));
    // Once more, and it is known still.
    let mount = mount.handed_over().await;
    assert_eq!(mount.read(file, 0, 1).await, Err(EIO));
    assert_eq!(mount.close(file).await, Ok(()));
    let file = mount.open(file.ino, libc::O_RDWR).await.unwrap();
    assert_eq!(mount.read(file, 0, 1).await.unwrap(), b"x");
}

#[tokio::test(start_paused = true)]
async fn a_hidden_name_goes_with_its_last_close_after_a_hand_over_and_none_comes_twice() {
    let mount = mount().await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    let mut files = Vec::new();
    for name in ["a", "b"] {
        let file = mount.create(dir, name, libc::O_RDWR).await.unwrap();
        mount.write(file, 0, b"kept").await.unwrap();
        mount.unlink(dir, name).await.unwrap();
        files.push(file);
    }
    let second = mount.open(files[0].ino, libc::O_RDONLY).await;
    let before = mount.peer.fs().list("/dir").unwrap();
    assert_eq!(before.len(), 2);
    let mount = mount.handed_over().await;
    let fs = mount.peer.fs();
    assert_eq!(
        fs.list("/dir").unwrap(),
        before,
        "no hidden name is touched"
    );
    for plus in [true, false] {
        assert_eq!(mount.list(dir, plus).await.unwrap(), [""; 0], "{plus}");
    }
    let third = mount.create(dir, "c", libc::O_RDWR).await.unwrap();
    mount.unlink(dir, "c").await.unwrap();
    assert_eq!(fs.list("/dir").unwrap().len(), 3);
    for &file in &files {
        assert_eq!(mount.read(file, 0, 10).await.unwrap(), b"kept");
        assert_eq!(mount.getattr(file.ino).await.unwrap().nlink, 0);
    }
    // A directory of nothing else is empty.
    mount
        .vfs
        .rmdir(&mount.cred, ROOT_INO, b"dir")
        .await
        .unwrap();
    assert_eq!(fs.list("/").unwrap().len(), 3);
    assert_eq!(mount.list(ROOT_INO, true).await.unwrap(), [""; 0]);
    for file in files.into_iter().chain([third]).chain(second.ok()) {
        mount.close(file).await.unwrap();
    }
    millis(100).await;
    assert_eq!(fs.list("/").unwrap(), [""; 0]);
}

/// The names that one READDIR brings, and where it goes on.
async fn some(mount: &Mount, fh: u64, at: u64, room: usize, plus: bool) -> Names {
    let mut names = Names {
        room,
        last: at,
        ..Names::default()
    };
    mount.vfs.readdir(fh, at, plus, &mut names).await.unwrap();
    names
}

/// All that follow, with the offset behind each.
async fn rest(mount: &Mount, fh: u64, mut at: u64, plus: bool) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    loop {
        let one = some(mount, fh, at, 1, plus).await;
        match one.names.into_iter().next() {
            Some(name) => all.push((name, one.last)),
            None => return all,
        }
        at = one.last;
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_in_the_middle_goes_on_after_a_hand_over_with_no_name_twice_and_none_missing() {
    for (files, page, known) in [
        (50, 7, false),
        (50, 1000, false),
        (50, 1000, true),
        (0, 9, true),
    ] {
        for (at, plus) in [(0, true), (3, true), (25, false), (30, true), (52, false)] {
            let cfg = PeerConfig {
                readdir_page_entries: page,
                ..PeerConfig::default()
            };
            let mount = Mount::new(cfg).await;
            let fs = mount.peer.fs();
            fs.mkdir("/dir").unwrap();
            for number in 0..files {
                fs.write_file(&format!("/dir/{number}"), b"").unwrap();
            }
            let dir = mount.walk("/dir").await.unwrap();
            if known {
                mount.list(dir, true).await.unwrap();
            }
            let fh = mount.vfs.opendir(&mount.cred, dir, 1).await.unwrap().fh;
            let first = match at {
                0 => Names::default(),
                at => some(&mount, fh, 0, at, plus).await,
            };
            let whole = match at {
                0 => Vec::new(),
                _ => rest(&mount, fh, first.last, plus).await,
            };
            let mount = mount.handed_over().await;
            let says = format!("{files} in pages of {page}, {known}: from {at}, {plus}");
            let rest_now = rest(&mount, fh, first.last, plus).await;
            let mut all: Vec<_> = rest_now.iter().map(|(name, _)| name.clone()).collect();
            all.extend(first.names);
            all.sort();
            all.dedup();
            assert_eq!(all.len(), rest_now.len() + at.min(files + 2), "{says}");
            assert_eq!(all.len(), files + 2, "{says}");
            if at > 0 {
                assert_eq!(rest_now, whole, "{says}: the same order");
                // seekdir(3), also to what came before.
                for (index, (_, offset)) in whole.iter().enumerate() {
                    let on = rest(&mount, fh, *offset, plus).await;
                    assert_eq!(on, whole[index + 1..], "{says}: seekdir to {offset}");
                }
            }
            // rewinddir(3) shows what has come since.
            mount.peer.fs().write_file("/dir/new", b"").unwrap();
            seconds(100).await;
            let all = rest(&mount, fh, 0, plus).await;
            assert_eq!(all.len(), files + 3, "{says}");
            mount.vfs.releasedir(fh).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_whose_cookies_are_refused_after_a_hand_over_leaves_out_what_was_given() {
    let cfg = PeerConfig {
        readdir_page_entries: 10,
        ..PeerConfig::default()
    };
    let mount = Mount::new(cfg).await;
    for number in 0..60 {
        mount
            .peer
            .fs()
            .write_file(&format!("/{number}"), b"")
            .unwrap();
    }
    let fh = mount
        .vfs
        .opendir(&mount.cred, ROOT_INO, 1)
        .await
        .unwrap()
        .fh;
    let first = some(&mount, fh, 0, 40, false).await;
    let estate = mount.left().await;
    estate.peer.renew_cookie_verifier();
    let mount = estate.taken_over(default_timeouts()).await;
    let mut all = first.names;
    let more = rest(&mount, fh, first.last, false).await;
    all.extend(more.into_iter().map(|(name, _)| name));
    assert_eq!(all.len(), 62);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 62, "none twice");
}

#[tokio::test(start_paused = true)]
async fn a_listing_in_the_middle_costs_sixteen_bytes_a_name_that_was_given() {
    let mount = mount().await;
    for number in 0..20_000 {
        let name = format!("/a-name-that-is-not-a-short-one-{number}");
        mount.peer.fs().write_file(&name, b"").unwrap();
    }
    let fh = mount
        .vfs
        .opendir(&mount.cred, ROOT_INO, 1)
        .await
        .unwrap()
        .fh;
    some(&mount, fh, 0, 18_000, false).await;
    let estate = mount.left().await;
    assert!(estate.size() < 20_000 * 16 + 10_000, "{}", estate.size());
}

/// The next WRITEs fail.
fn fail_writes(mount: &Mount) {
    mount.peer.on_op(|event| match event.op {
        op::WRITE => Action::Fail(st::DQUOT),
        _ => Action::Pass,
    });
}

#[tokio::test(start_paused = true)]
async fn an_untold_write_error_is_told_once_to_each_descriptor_after_a_hand_over() {
    let quota = Err(Errno(libc::EDQUOT));
    let mount = mount().await;
    let file = made(&mount, "f", b"x").await;
    mount.fsync(file).await.unwrap();
    let [told, second] = [(); 2].map(|()| mount.open(file.ino, libc::O_RDWR));
    let (told, second) = (told.await.unwrap(), second.await.unwrap());
    fail_writes(&mount);
    mount.write(file, 0, b"lost").await.unwrap();
    millis(500).await;
    mount.peer.clear_script();
    assert_eq!(mount.fsync(told).await, quota);
    let mount = mount.handed_over().await;
    assert_eq!(mount.fsync(told).await, Ok(()), "it was told before");
    let error = mount.vfs.fsync(second.fh).await.unwrap_err();
    let words = format!("from WRITE: NFS4ERR_DQUOT (inode {})", file.ino);
    assert!(error.to_string().ends_with(&words), "{error}");
    assert_eq!(mount.fsync(second).await, Ok(()), "once");
    let mount = mount.handed_over().await;
    assert_eq!(mount.write(file, 0, b"y").await, quota);
    assert_eq!(
        mount.flush(file).await,
        quota,
        "close(2) leaves it to be told"
    );
    assert_eq!(mount.fsync(file).await, quota);
    assert_eq!(mount.fsync(file).await, Ok(()));
    assert_eq!(mount.fsync(second).await, Ok(()));
    let late = mount.open(file.ino, libc::O_RDWR).await.unwrap();
    assert_eq!(mount.fsync(late).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn lookups_are_counted_on_after_a_hand_over() {
    let mount = mount().await;
    mount.peer.fs().mkdir("/d").unwrap();
    mount.peer.fs().write_file("/d/f", b"x").unwrap();
    let ino = mount.walk("/d/f").await.unwrap();
    for _ in 0..4 {
        assert_eq!(mount.walk("/d/f").await.unwrap(), ino);
    }
    mount.vfs.forget(ino, 2);
    let generation = |entry: Option<efs_fuse::vfs::types::Entry>| entry.unwrap().generation;
    let dir = mount.walk("/d").await.unwrap();
    let before = generation(mount.lookup(dir, "f").await.unwrap());
    let (mount, metrics) = mount.left().await.taken_over_with(default_timeouts()).await;
    assert_eq!(metrics.gauges.inodes.get(), 2);
    // Looked up six times, and given back twice.
    mount.vfs.forget(ino, 3);
    assert_eq!(mount.getattr(ino).await.unwrap().size, 1, "it is held");
    mount.vfs.forget(ino, 1);
    assert_eq!(mount.getattr(ino).await, Err(Errno(libc::ESTALE)));
    assert_eq!(metrics.gauges.inodes.get(), 1);
    let entry = mount.lookup(dir, "f").await.unwrap();
    assert_eq!(entry.as_ref().map(|entry| entry.ino), Some(ino));
    assert_eq!(generation(entry), before, "for exported handles");
}

#[tokio::test(start_paused = true)]
async fn a_number_that_two_files_want_stays_with_the_one_that_has_it() {
    let cfg = PeerConfig {
        reuse_fileids: true,
        ..PeerConfig::default()
    };
    let mount = Mount::new(cfg).await;
    let fs = mount.peer.fs();
    fs.write_file("/old", b"old").unwrap();
    let old = mount.walk("/old").await.unwrap();
    fs.remove("/old").unwrap();
    fs.write_file("/new", b"new").unwrap();
    let new = mount.walk("/new").await.unwrap();
    assert_ne!(old, new, "the kernel holds the first");
    let mount = mount.handed_over().await;
    assert_eq!(mount.walk("/new").await.unwrap(), new);
    assert_eq!(mount.getattr(new).await.unwrap().ino, old, "as st_ino");
    assert_eq!(mount.getattr(old).await, Err(Errno(libc::ESTALE)));
    mount.vfs.forget(new, 2);
    mount.vfs.forget(old, 1);
    assert_eq!(mount.walk("/new").await.unwrap(), old, "it is free");
}

#[tokio::test(start_paused = true)]
async fn a_file_changed_elsewhere_during_the_hand_over_is_noticed_and_others_keep_their_pages() {
    let mount = mount().await;
    let mut files = Vec::new();
    for name in ["same", "open", "closed"] {
        files.push(made(&mount, name, b"old").await);
    }
    let [same, open, closed] = files[..] else {
        unreachable!()
    };
    mount.close(closed).await.unwrap();
    let estate = mount.left().await;
    let fs = estate.peer.fs();
    seconds(1).await;
    fs.write_at("/open", 0, b"new").unwrap();
    fs.write_at("/closed", 0, b"new").unwrap();
    let mount = estate.taken_over(default_timeouts()).await;
    let told = Arc::new(Told::default());
    mount.vfs.set_kernel(Arc::clone(&told) as _);
    assert_eq!(told.pages(), [0; 0]);
    // As the task of the mount does: it does not wait for the time of before.
    mount.vfs.revalidate_due().await;
    assert_eq!(told.pages(), [open.ino]);
    assert_eq!(mount.read(open, 0, 10).await.unwrap(), b"new");
    assert_eq!(mount.read(same, 0, 10).await.unwrap(), b"old");
    for ino in [closed.ino, same.ino] {
        let opened = mount.vfs.open(&mount.cred, ino, libc::O_RDONLY).await;
        let opened = opened.unwrap();
        assert!(!opened.keep_cache, "nobody knows what the pages are of");
        mount.vfs.read(opened.fh, 0, 10, 0).await.unwrap();
        mount.vfs.release(opened.fh).await.unwrap();
        let opened = mount.vfs.open(&mount.cred, ino, libc::O_RDONLY).await;
        assert!(opened.unwrap().keep_cache, "as ever");
    }
    assert!(told.pages().contains(&closed.ino));
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_was_not_told_before_a_hand_over_it_is_told_after_it() {
    let mount = mount().await;
    let file = made(&mount, "f", b"old").await;
    let other = made(&mount, "g", b"old").await;
    let told = Arc::new(Told::default());
    mount.vfs.set_kernel(Arc::clone(&told) as _);
    told.stuck.store(true, Ordering::Relaxed);
    mount.fsync(file).await.unwrap();
    seconds(200).await;
    mount.peer.fs().write_at("/f", 0, b"new").unwrap();
    mount.vfs.revalidate_due().await;
    assert_eq!(*told.pages.lock(), [file.ino]);
    let mut mount = mount.handed_over().await;
    for _ in 0..2 {
        // Twice: the second one before there is a kernel to be told.
        mount = mount.handed_over().await;
    }
    let told = Arc::new(Told::default());
    mount.vfs.set_kernel(Arc::clone(&told) as _);
    assert_eq!(told.pages(), [file.ino]);
    assert_eq!(mount.read(other, 0, 9).await.unwrap(), b"old");
}

#[tokio::test(start_paused = true)]
async fn an_open_after_a_hand_over_finds_another_file_under_the_name_it_was_found_by() {
    let mount = mount().await;
    mount.peer.fs().write_file("/f", b"old").unwrap();
    let ino = mount.walk("/f").await.unwrap();
    let estate = mount.left().await;
    estate.peer.fs().write_file("/g", b"new").unwrap();
    estate.peer.fs().rename("/g", "/f").unwrap();
    let mount = estate.taken_over(default_timeouts()).await;
    // The kernel believes the name, and does not ask for it.
    let stale = mount.open(ino, libc::O_RDONLY).await;
    assert_eq!(stale.unwrap_err(), Errno(libc::ESTALE));
    let ino = mount.walk("/f").await.unwrap();
    let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(mount.read(file, 0, 9).await.unwrap(), b"new");
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_believes_of_a_name_is_known_after_a_hand_over() {
    let mount = mount().await;
    for name in ["/believed", "/short", "/never"] {
        mount.peer.fs().write_file(name, b"x").unwrap();
    }
    for (name, secs) in [("believed", 50), ("short", 1)] {
        let ino = mount.walk(name).await.unwrap();
        let ttl = Duration::from_secs(secs);
        mount.vfs.tells(ROOT_INO, name.as_bytes(), ino, ttl);
    }
    mount.walk("never").await.unwrap();
    seconds(2).await;
    let mount = mount.handed_over().await;
    let state = |name: &str| mount.vfs.dentry_state(ROOT_INO, name.as_bytes());
    assert_eq!(state("believed"), DentryState::Open, "for the server");
    mount.list(ROOT_INO, true).await.unwrap();
    assert_eq!(state("believed"), DentryState::Believed(FileKind::Regular));
    assert_eq!(state("short"), DentryState::Leads);
    assert_eq!(state("never"), DentryState::Leads);
    seconds(49).await;
    assert_eq!(state("believed"), DentryState::Leads, "its time is over");
}

#[tokio::test(start_paused = true)]
async fn a_journal_beside_a_locked_file_is_asked_for_after_a_hand_over() {
    let peer = Peer::new(PeerConfig::default());
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let file = made(&mount, "db", b"x").await;
    let journal = made(&mount, "db-journal", b"x").await;
    set(&mount, file, 1, range(libc::F_WRLCK, 0, 9))
        .await
        .unwrap();
    set(&mount, file, 1, range(libc::F_UNLCK, 0, 9))
        .await
        .unwrap();
    let estate = mount.left().await;
    peer.fs().write_at("/db", 0, b"y").unwrap();
    let mount = estate.taken_over(default_timeouts()).await;
    let told = Arc::new(Told::default());
    mount.vfs.set_kernel(Arc::clone(&told) as _);
    set(&mount, file, 1, range(libc::F_WRLCK, 0, 9))
        .await
        .unwrap();
    assert_eq!(*told.attrs.lock(), [journal.ino]);
}

#[tokio::test(start_paused = true)]
async fn a_second_hand_over_right_after_the_first_changes_nothing() {
    let mount = mount().await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    let file = made(&mount, "f", b"data").await;
    set(&mount, file, 1, range(libc::F_WRLCK, 0, 9))
        .await
        .unwrap();
    let gone = made(&mount, "gone", b"kept").await;
    mount.unlink(ROOT_INO, "gone").await.unwrap();
    let fh = mount
        .vfs
        .opendir(&mount.cred, ROOT_INO, 1)
        .await
        .unwrap()
        .fh;
    let first = some(&mount, fh, 0, 3, false).await;
    let (mount, metrics) = mount.left().await.taken_over_with(default_timeouts()).await;
    let gauges = &metrics.gauges;
    let counts = (
        gauges.open_files.get(),
        gauges.open_dirs.get(),
        gauges.inodes.get(),
    );
    assert_eq!(counts, (2, 1, 3));
    let estate = mount.left().await;
    let extent = estate.vfs().extent();
    assert_eq!((extent.files, extent.dirs, extent.inodes), (2, 1, 3));
    assert_eq!((extent.owners, extent.hidden), (1, 1));
    let mount = estate.taken_over(default_timeouts()).await;
    let again = mount.left().await;
    assert_eq!(again.vfs(), estate.vfs());
    let mount = again.taken_over(default_timeouts()).await;
    assert_eq!(mount.read(file, 0, 9).await.unwrap(), b"data");
    assert_eq!(mount.read(gone, 0, 9).await.unwrap(), b"kept");
    let mut names = first.names;
    let more = rest(&mount, fh, first.last, false).await;
    names.extend(more.into_iter().map(|(name, _)| name));
    names.sort();
    assert_eq!(names, [".", "..", "dir", "f"]);
    assert_eq!(mount.getattr(dir).await.unwrap().kind, FileKind::Directory);
    mount.vfs.releasedir(fh).await.unwrap();
    for file in [file, gone] {
        mount.vfs.flush(file.fh, 1).await.unwrap();
        mount.release(file).await;
    }
    within(60, mount.vfs.settled()).await;
    let peer = &mount.peer;
    assert_eq!((peer.open_count(), peer.lock_count()), (0, 0));
    assert_eq!(peer.fs().list("/").unwrap(), ["dir", "f"]);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_this_host_removed_is_shown_to_who_is_in_it_after_a_hand_over() {
    let mount = mount().await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    mount
        .vfs
        .rmdir(&mount.cred, ROOT_INO, b"dir")
        .await
        .unwrap();
    let mount = mount.handed_over().await;
    for _ in 0..2 {
        assert_eq!(mount.getattr(dir).await.unwrap().nlink, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_waits_for_the_server_and_may_be_given_up() {
    let mount = mount().await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    mount.peer.black_hole(true);
    mount.write(file, 0, b"data").await.unwrap();
    let drained = tokio::time::timeout(Duration::from_secs(5), mount.vfs.drained());
    assert!(drained.await.is_err(), "the server does not answer");
    mount.peer.black_hole(false);
    let began = Instant::now();
    mount.fsync(file).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(mount.read(file, 0, 9).await.unwrap(), b"data");
    let mount = mount.handed_over().await;
    assert_eq!(mount.read(file, 0, 9).await.unwrap(), b"data");
}
