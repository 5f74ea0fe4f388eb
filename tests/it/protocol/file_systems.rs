//! Objects of several file systems of one server below one mount.

use efs_fuse::vfs::types::ROOT_INO;

use super::rig::{Mount, seconds};
use crate::peer::PeerConfig;

/// "/two" is another file system, with numbers of its own.
async fn two_file_systems() -> Mount {
    let mount = Mount::new(PeerConfig::default()).await;
    let fs = mount.peer.fs();
    fs.mkdir("/two").unwrap();
    fs.number("/two", 2, 5).unwrap();
    fs.write_file("/two/file", b"two").unwrap();
    fs.number("/two/file", 2, 7).unwrap();
    fs.write_file("/file", b"one").unwrap();
    fs.number("/file", 1, 7).unwrap();
    mount
}

#[tokio::test(start_paused = true)]
async fn statfs_asks_the_file_system_of_the_object() {
    let mount = two_file_systems().await;
    let two = mount.walk("/two").await.unwrap();
    let blocks = async |ino| mount.vfs.statfs(&mount.cred, ino).await.unwrap().blocks;
    let root = blocks(ROOT_INO).await;
    assert_eq!(blocks(two).await, root / 2);
    assert_eq!(blocks(ROOT_INO).await, root, "right after it");
    seconds(2).await;
    assert_eq!(blocks(two).await, root / 2);
    mount.peer.clear_log();
    for _ in 0..10 {
        assert_eq!(blocks(two).await, root / 2);
    }
    assert_eq!(mount.peer.log().len(), 0, "known for a second");
}

#[tokio::test(start_paused = true)]
async fn two_objects_with_one_fileid_in_two_file_systems_are_not_taken_for_links() {
    let mount = two_file_systems().await;
    let one = mount.walk("/file").await.unwrap();
    let two = mount.walk("/two/file").await.unwrap();
    let (one, two) = (mount.getattr(one).await, mount.getattr(two).await);
    let (one, two) = (one.unwrap().ino, two.unwrap().ino);
    assert_eq!(one, 7, "the server's own");
    assert_ne!(one, two, "st_dev is the same");
}

#[tokio::test(start_paused = true)]
async fn a_root_without_a_number_is_shown_with_one() {
    let mount = Mount::new(PeerConfig::default()).await;
    mount.peer.fs().number("/", 1, 0).unwrap();
    let mount = Mount::of(&mount.peer, "two", super::rig::default_timeouts()).await;
    mount.peer.fs().write_file("/one", b"").unwrap();
    mount.peer.fs().number("/one", 1, 1).unwrap();
    let root = mount.getattr(ROOT_INO).await.unwrap().ino;
    assert_ne!(root, 0, "readdir(3) leaves out what has no number");
    let one = mount.walk("/one").await.unwrap();
    assert_ne!(mount.getattr(one).await.unwrap().ino, root);
}
