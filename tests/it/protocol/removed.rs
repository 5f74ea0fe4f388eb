//! What fstat(2) shows of what this host has removed while it is open.

use efs_fuse::vfs::types::ROOT_INO;

use super::rig::{Mount, seconds};
use crate::peer::PeerConfig;

#[tokio::test(start_paused = true)]
async fn a_directory_that_was_removed_or_replaced_has_no_links() {
    for keep_removed_dirs in [true, false] {
        for replaced in [true, false] {
            let cfg = PeerConfig {
                keep_removed_dirs,
                ..PeerConfig::default()
            };
            let mount = Mount::new(cfg).await;
            let old = mount.mkdir(ROOT_INO, "old").await.unwrap();
            mount.mkdir(ROOT_INO, "new").await.unwrap();
            if replaced {
                let (from, to) = ((ROOT_INO, "new"), (ROOT_INO, "old"));
                mount.rename(from, to).await.unwrap();
            } else {
                mount
                    .vfs
                    .rmdir(&mount.cred, ROOT_INO, b"old")
                    .await
                    .unwrap();
            }
            let what = format!("replaced {replaced} kept {keep_removed_dirs}");
            for _ in 0..3 {
                let stat = mount.getattr(old).await;
                let stat = stat.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                assert_eq!(stat.nlink, 0, "{what}");
                seconds(100).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_replaced_while_it_is_open_has_no_links() {
    let mount = Mount::new(PeerConfig::default()).await;
    for name in ["old", "new"] {
        let file = mount.create(ROOT_INO, name, libc::O_RDWR).await.unwrap();
        mount.close(file).await.unwrap();
    }
    let ino = mount.walk("/old").await.unwrap();
    let open = mount.open(ino, libc::O_RDONLY).await.unwrap();
    mount
        .rename((ROOT_INO, "new"), (ROOT_INO, "old"))
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(mount.getattr(ino).await.unwrap().nlink, 0);
        seconds(100).await;
    }
    mount.close(open).await.unwrap();
}

/// The name that was known to lead to the directory leads to another one by now, and that
/// is what was removed.
#[tokio::test(start_paused = true)]
async fn a_directory_that_another_host_has_moved_away_is_not_taken_for_removed() {
    let mount = Mount::new(PeerConfig::default()).await;
    let moved = mount.mkdir(ROOT_INO, "dir").await.unwrap();
    let fs = mount.peer.fs();
    fs.rename("/dir", "/moved").unwrap();
    fs.mkdir("/dir").unwrap();
    mount
        .vfs
        .rmdir(&mount.cred, ROOT_INO, b"dir")
        .await
        .unwrap();
    assert_eq!(mount.getattr(moved).await.unwrap().nlink, 2);
    assert_eq!(mount.walk("/moved").await.unwrap(), moved);
    mount.mkdir(moved, "below").await.unwrap();
    assert!(fs.exists("/moved/below"));
}
