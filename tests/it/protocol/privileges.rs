//! Set-id rights of a file whose size is set by somebody who does not own it.

use std::sync::Arc;

use efs_fuse::rpc::auth::Credential;
use efs_fuse::vfs::types::{Errno, SetAttr, Stat};

use super::rig::Mount;
use crate::peer::PeerConfig;

/// As the kernel asks for truncate(2) of a 06777 file by a user: it takes the rights
/// along.
async fn truncate_as(mount: &Mount, uid: u32, path: &str) -> Result<Stat, Errno> {
    let ino = mount.walk(path).await?;
    let user = Arc::new(Credential {
        uid,
        gid: uid,
        gids: Vec::new(),
    });
    let set = SetAttr {
        size: Some(1),
        mode: Some(0o777),
        ..SetAttr::default()
    };
    let (stat, _) = mount.vfs.setattr(&user, ino, None, set).await?;
    Ok(stat)
}

#[tokio::test(start_paused = true)]
async fn who_may_write_a_set_id_file_may_cut_it_and_the_rights_are_gone() {
    for kills_privileges in [true, false] {
        let cfg = PeerConfig {
            kills_privileges,
            ..PeerConfig::default()
        };
        let mount = Mount::new(cfg).await;
        let fs = mount.peer.fs();
        for (owner, mode, by, may) in [
            (1000, 0o6777, 2000, true),
            (1000, 0o6777, 1000, true),
            (1000, 0o6755, 2000, false),
        ] {
            fs.write_file("/file", b"content").unwrap();
            fs.chown("/file", owner, owner).unwrap();
            fs.chmod("/file", mode).unwrap();
            let mount = Mount::of(&mount.peer, "two", super::rig::default_timeouts()).await;
            let cut = truncate_as(&mount, by, "/file").await;
            let stat = fs.stat("/file").unwrap();
            let what = format!("{owner} {mode:o} {by} {kills_privileges}");
            if may {
                let cut = cut.unwrap();
                assert_eq!((cut.size, cut.perm), (1, 0o777), "{what}");
                assert_eq!((stat.size, stat.mode), (1, 0o777), "{what}");
            } else {
                assert_eq!(cut.unwrap_err(), Errno(libc::EACCES), "{what}");
                assert_eq!((stat.size, stat.mode), (7, mode), "{what}");
            }
            fs.remove("/file").unwrap();
        }
    }
}
