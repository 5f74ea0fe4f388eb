//! What the server refuses says something of the names that it was asked to change.

use std::sync::{Arc, Mutex};

use efs_fuse::vfs::types::{Errno, FileKind, Ino, KernelCache, ROOT_INO};

use super::names::{is_there, make, mount};
use super::rig::once_at;
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

/// What the kernel was told to forget.
#[derive(Default)]
struct Forgotten(Mutex<Vec<Vec<u8>>>);

impl KernelCache for Forgotten {
    fn inval_inode(&self, _: Ino) {}
    fn inval_inode_grown(&self, _: Ino, _: u64) {}
    fn inval_inode_now(&self, _: Ino) {}
    fn is_telling(&self, _: Ino) -> bool {
        false
    }
    fn settle(&self, _: Ino) {}
    fn inval_attr(&self, _: Ino) {}
    fn inval_entry(&self, _: Ino, name: &[u8]) {
        self.0.lock().unwrap().push(name.to_vec());
    }
    fn backlog(&self) -> usize {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_contradicts_what_is_known_ends_the_belief() {
    let mount = mount(PeerConfig::default()).await;
    let kernel = Arc::new(Forgotten::default());
    mount.vfs.set_kernel(Arc::clone(&kernel) as _);
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    make(&mount, dir, "gone").await;
    let fs = mount.peer.fs();
    fs.mkdir("/dir/theirs").unwrap();
    let refused = mount.mkdir(dir, "theirs").await.unwrap_err();
    assert_eq!(refused.0, libc::EEXIST);
    assert!(
        is_there(&mount, dir, "theirs").await,
        "EEXIST, so it is there"
    );
    fs.remove("/dir/gone").unwrap();
    let refused = mount.unlink(dir, "gone").await.unwrap_err();
    assert_eq!(refused.0, libc::ENOENT);
    assert!(!is_there(&mount, dir, "gone").await);
    // Else it answers stat(2) from its own entry, and older kernels do.
    assert_eq!(*kernel.0.lock().unwrap(), [b"gone"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_missing_is_there_once_the_server_has_refused_a_change_for_it() {
    let changes = ["mkdir", "link", "rename", "open"];
    for change in changes {
        let mount = mount(PeerConfig::default()).await;
        let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
        let file = mount.create(dir, "file", libc::O_RDWR).await.unwrap().ino;
        mount.mkdir(dir, "below").await.unwrap();
        assert!(!is_there(&mount, dir, "name").await);
        let fs = mount.peer.fs();
        match change {
            "rename" => fs.write_file("/dir/name", b"").unwrap(),
            _ => fs.mkdir("/dir/name").unwrap(),
        };
        let refused = match change {
            "mkdir" => mount.mkdir(dir, "name").await.err(),
            "link" => {
                let linked = mount.vfs.link(&mount.cred, file, dir, b"name").await;
                linked.err().map(Errno::from)
            }
            "rename" => mount.rename((dir, "below"), (dir, "name")).await.err(),
            _ => {
                let exclusive = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
                mount.create(dir, "name", exclusive).await.err()
            }
        };
        assert_eq!(refused.map(|errno| errno.0), Some(libc::EEXIST), "{change}");
        assert!(is_there(&mount, dir, "name").await, "{change} has found it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_has_moved_nothing_takes_no_name_away() {
    let mount = mount(PeerConfig::default()).await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    make(&mount, dir, "one").await;
    assert!(!is_there(&mount, dir, "two").await);
    mount.peer.fs().link("/dir/one", "/dir/two").unwrap();
    mount.rename((dir, "one"), (dir, "two")).await.unwrap();
    assert!(is_there(&mount, dir, "one").await, "two names of one file");
    assert!(is_there(&mount, dir, "two").await);
    mount.unlink(dir, "two").await.unwrap();
    mount.rename((dir, "one"), (dir, "three")).await.unwrap();
    let asked = mount.peer.round_trips();
    assert!(
        !is_there(&mount, dir, "one").await,
        "that was its only name"
    );
    assert_eq!(mount.peer.round_trips(), asked, "and that is known");
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_create_over_what_is_no_file_says_that_it_is_there() {
    let mount = mount(PeerConfig::default()).await;
    for status in [st::ISDIR, st::SYMLINK, st::WRONG_TYPE] {
        once_at(&mount.peer, op::OPEN, Action::Fail(status));
        let made = mount.create(ROOT_INO, "d", libc::O_RDWR | libc::O_EXCL);
        assert_eq!(made.await.map(drop), Err(Errno(libc::EEXIST)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_onto_what_another_host_has_made_a_directory_has_the_kernel_walk_again() {
    let mount = mount(PeerConfig::default()).await;
    let dir = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    make(&mount, dir, "file").await;
    make(&mount, dir, "name").await;
    let fs = mount.peer.fs();
    fs.remove("/dir/name").unwrap();
    fs.mkdir("/dir/name").unwrap();
    let refused = mount.rename((dir, "file"), (dir, "name")).await;
    assert_eq!(refused.unwrap_err().0, libc::ESTALE);
    let now = mount.lookup(dir, "name").await.unwrap().unwrap();
    assert_eq!(now.stat.kind, FileKind::Directory);
}

/// EXIST is a full directory, and two things that cannot replace each other: by what is known here
/// both are directories.
#[tokio::test(start_paused = true)]
async fn a_rename_is_refused_for_a_full_directory_only_if_there_is_one() {
    for (replaced, by_link) in [("from", false), ("to", false), ("to", true), ("", false)] {
        let mount = mount(PeerConfig::default()).await;
        for name in ["from", "to"] {
            mount.mkdir(ROOT_INO, name).await.unwrap();
        }
        let fs = mount.peer.fs();
        if replaced.is_empty() {
            fs.write_file("/to/file", b"x").unwrap();
            once_at(&mount.peer, op::RENAME, Action::Fail(st::EXIST));
        } else {
            fs.remove(&format!("/{replaced}")).unwrap();
            match by_link {
                true => fs.symlink("elsewhere", &format!("/{replaced}")).unwrap(),
                false => fs.write_file(&format!("/{replaced}"), b"x").unwrap(),
            }
        }
        let refused = mount.rename((ROOT_INO, "from"), (ROOT_INO, "to")).await;
        let expected = match replaced {
            "" => libc::ENOTEMPTY,
            _ => libc::ESTALE,
        };
        assert_eq!(refused.unwrap_err().0, expected, "{replaced}");
    }
}

/// The kernel has found the name, and this host has learnt since that it is gone; what has it now
/// it does not know.
#[tokio::test(start_paused = true)]
async fn a_rename_of_what_is_not_known_here_is_refused_for_what_it_is() {
    for (from, to, expected) in [
        ("directory", "full", libc::ENOTEMPTY),
        ("file", "directory", libc::ESTALE),
        ("link", "directory", libc::ESTALE),
        ("directory", "file", libc::ENOTDIR),
        ("file", "file that is a directory now", libc::ESTALE),
        ("directory", "file that is a directory now", libc::ESTALE),
    ] {
        let mount = mount(PeerConfig::default()).await;
        let fs = mount.peer.fs();
        match to {
            "full" | "directory" => drop(mount.mkdir(ROOT_INO, "to").await.unwrap()),
            _ => make(&mount, ROOT_INO, "to").await,
        }
        match to {
            "full" => fs.write_file("/to/file", b"x").unwrap(),
            "file that is a directory now" => {
                fs.remove("/to").unwrap();
                fs.mkdir("/to").unwrap();
                fs.write_file("/to/file", b"x").unwrap();
            }
            _ => {}
        }
        match from {
            "directory" => fs.mkdir("/from").unwrap(),
            "link" => fs.symlink("elsewhere", "/from").unwrap(),
            _ => fs.write_file("/from", b"x").unwrap(),
        }
        let refused = mount.rename((ROOT_INO, "from"), (ROOT_INO, "to")).await;
        assert_eq!(refused.unwrap_err().0, expected, "a {from} onto a {to}");
    }
}
