//! Synchronous writes (O_DIRECT, O_SYNC, O_DSYNC): each is answered by the fate of its
//! own bytes, and by nothing else if it is a direct one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use efs_fuse::vfs::types::{Errno, Ino, KernelCache, ROOT_INO, WriteFlags};

use super::rig::{Mount, Open, join_all, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

const KIB: usize = 1024;

async fn write(mount: &Mount, file: Open, flags: i32, at: u64, data: u8) -> Result<u32, Errno> {
    let flags = WriteFlags {
        open_flags: flags,
        ..WriteFlags::default()
    };
    let data = Bytes::from(vec![data; 4 * KIB]);
    Ok(mount.vfs.write(file.fh, at, data, flags).await?)
}

const NOSPC: Result<u32, Errno> = Err(Errno(libc::ENOSPC));
const WRITTEN: Result<u32, Errno> = Ok(4 * KIB as u32);

/// A server that refuses every `n`th WRITE.
async fn refusing(n: usize) -> (Mount, Open) {
    let mount = Mount::new(PeerConfig {
        latency: std::time::Duration::from_millis(1),
        ..PeerConfig::default()
    })
    .await;
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    let mut count = 0;
    mount.peer.on_op(move |event| {
        count += usize::from(event.op == op::WRITE);
        match event.op == op::WRITE && count % n == 0 {
            true => Action::Fail(st::NOSPC),
            false => Action::Pass,
        }
    });
    (mount, file)
}

#[tokio::test(start_paused = true)]
async fn of_many_writes_at_once_each_is_told_what_became_of_its_own() {
    for flags in [libc::O_DIRECT, libc::O_DSYNC] {
        let (mount, file) = refusing(3).await;
        let place = |n: usize| (n * 8 * KIB) as u64;
        let writes = (0..48).map(|n| write(&mount, file, flags, place(n), n as u8 + 1));
        let told = within(60, join_all(writes)).await;
        let content = mount.peer.fs().read_file("/f").unwrap();
        for (n, told) in told.iter().enumerate() {
            let at = place(n) as usize;
            let there = content
                .get(at..at + 4 * KIB)
                .is_some_and(|b| *b == [n as u8 + 1; 4 * KIB]);
            assert_eq!(*told, if there { WRITTEN } else { NOSPC }, "{n}");
        }
        assert_eq!(told.iter().filter(|told| **told == NOSPC).count(), 16);
        mount.peer.clear_script();
        assert_eq!(mount.fsync(file).await, Ok(()), "each was told already");
    }
}

#[tokio::test(start_paused = true)]
async fn a_direct_write_neither_takes_nor_tells_the_error_of_what_was_buffered_before() {
    let (mount, file) = refusing(1).await;
    mount.write(file, 0, b"buffered").await.unwrap();
    super::rig::millis(1000).await;
    mount.peer.clear_script();
    let direct = write(&mount, file, libc::O_DIRECT, 0, 7).await;
    assert_eq!(direct, WRITTEN);
    assert_eq!(mount.fsync(file).await, Err(Errno(libc::ENOSPC)));
    assert_eq!(mount.fsync(file).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_synchronous_write_over_what_is_on_its_way_loses_nothing_but_itself() {
    for flags in [libc::O_DIRECT, libc::O_DSYNC] {
        let (mount, file) = refusing(2).await;
        mount.write(file, 0, &[1; 8 * KIB]).await.unwrap();
        let told = within(60, write(&mount, file, flags, 0, 2)).await;
        assert_eq!(told, NOSPC);
        mount.peer.clear_script();
        assert_eq!(mount.fsync(file).await, Ok(()));
        let content = mount.peer.fs().read_file("/f").unwrap();
        assert_eq!(content, [1; 8 * KIB], "the data accepted before it");
    }
}

/// A kernel before Linux 6.6, or not; it counts how often it was to drop pages at once.
struct Pages {
    are_left: bool,
    dropped: AtomicUsize,
}

impl KernelCache for Pages {
    fn inval_inode(&self, _: Ino) {}
    fn inval_inode_grown(&self, _: Ino, _: u64) {}
    fn inval_inode_now(&self, _: Ino) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
    fn is_telling(&self, _: Ino) -> bool {
        false
    }
    fn settle(&self, _: Ino) {}
    fn inval_attr(&self, _: Ino) {}
    fn inval_entry(&self, _: Ino, _: &[u8]) {}
    fn backlog(&self) -> usize {
        0
    }
    fn direct_writes_leave_pages(&self) -> bool {
        self.are_left
    }
}

/// Seen by the checker with Linux 6.1, seed 2303.
#[tokio::test]
async fn an_older_kernel_drops_its_pages_before_a_direct_write_is_answered() {
    for (are_left, flags, expected) in [
        (true, libc::O_DIRECT, 1),
        (true, libc::O_DSYNC, 0),
        (true, 0, 0),
        (false, libc::O_DIRECT, 0),
    ] {
        let mount = Mount::new(PeerConfig::default()).await;
        let kernel = Arc::new(Pages {
            are_left,
            dropped: AtomicUsize::new(0),
        });
        mount.vfs.set_kernel(Arc::clone(&kernel) as _);
        let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
        write(&mount, file, flags, 0, 1).await.unwrap();
        let dropped = kernel.dropped.load(Ordering::Relaxed);
        assert_eq!(dropped, expected, "{are_left} {flags:o}");
        mount.close(file).await.unwrap();
    }
}
