//! Objects that the kernel asks for by number (open_by_handle_at(2)).

use efs_fuse::vfs::types::{Entry, Errno, Ino, Lookup, ROOT_INO, VfsResult};

use super::rig::{Mount, seconds};
use crate::peer::PeerConfig;

const STALE: Errno = Errno(libc::ESTALE);

fn found(lookup: VfsResult<Lookup>) -> Result<Entry, Errno> {
    match lookup? {
        Lookup::Found(entry) => Ok(entry),
        Lookup::Missing { .. } => panic!("an object, or ESTALE"),
    }
}

async fn itself(mount: &Mount, ino: Ino) -> Result<Entry, Errno> {
    found(mount.vfs.lookup_itself(&mount.cred, ino).await)
}

async fn parent(mount: &Mount, ino: Ino) -> Result<Entry, Errno> {
    found(mount.vfs.lookup_parent(&mount.cred, ino).await)
}

async fn tree() -> Mount {
    let mount = Mount::new(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/a").unwrap();
    fs.mkdir("/a/b").unwrap();
    fs.write_file("/a/b/file", b"content").unwrap();
    mount
}

#[tokio::test(start_paused = true)]
async fn a_number_means_its_object_as_long_as_its_name_is_known() {
    let mount = tree().await;
    let dir = mount.walk("/a/b").await.unwrap();
    let first = mount.lookup(dir, "file").await.unwrap().unwrap();
    for held in [true, false] {
        if !held {
            mount.vfs.forget(first.ino, 100);
        }
        let entry = itself(&mount, first.ino).await.unwrap();
        assert_eq!((entry.ino, entry.generation), (first.ino, first.generation));
        assert!(entry.entry_ttl.is_zero());
        assert!(mount.vfs.getattr_cached(first.ino, None).is_some());
    }
    mount.vfs.forget(first.ino, 1);
    assert!(
        mount.vfs.getattr_cached(first.ino, None).is_none(),
        "counted as one lookup"
    );
    assert_eq!(itself(&mount, 4711).await.unwrap_err(), STALE);
    // Older than may be believed: the server is asked.
    seconds(600).await;
    mount.peer.clear_log();
    itself(&mount, first.ino).await.unwrap();
    assert!(!mount.peer.log().is_empty());
    seconds(600).await;
    mount.peer.fs().remove("/a/b/file").unwrap();
    assert_eq!(itself(&mount, first.ino).await.unwrap_err(), STALE);
}

#[tokio::test(start_paused = true)]
async fn the_directory_above_is_the_servers() {
    let mount = tree().await;
    let (a, b) = (
        mount.walk("/a").await.unwrap(),
        mount.walk("/a/b").await.unwrap(),
    );
    assert_eq!(parent(&mount, b).await.unwrap().ino, a);
    assert_eq!(parent(&mount, a).await.unwrap().ino, ROOT_INO);
    assert_eq!(parent(&mount, ROOT_INO).await.unwrap_err(), STALE);
    mount.peer.fs().rename("/a/b", "/b").unwrap();
    assert_eq!(parent(&mount, b).await.unwrap().ino, ROOT_INO);
    mount.peer.fs().remove("/b/file").unwrap();
    mount.peer.fs().remove("/b").unwrap();
    assert_eq!(parent(&mount, b).await.unwrap_err(), STALE);
    assert_eq!(parent(&mount, 4711).await.unwrap_err(), STALE);
}
