//! Servers that grant little: EFS, and worse.

use bytes::Bytes;
use efs_fuse::nfs::calls::{BehindOpen, HowToOpen, OpenRequest};
use efs_fuse::nfs::proto::attrs::NewAttributes;
use efs_fuse::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE, CAN_READ};
use efs_fuse::nfs::proto::types::Stable;
use efs_fuse::vfs::types::{Errno, ROOT_INO, WriteFlags};

use super::rig::{Mount, Rig, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, CommitMode, PeerConfig};

/// Everything the client can ask for, once, with its result looked at.
async fn every_call(rig: &Rig) {
    let (client, cred, root) = (&rig.client, &rig.cred, &rig.root);
    let dir = rig.mkdir("dir").await.expect("mkdir");
    let link = rig.symlink("soft", "dir/file").await.expect("symlink");
    let texts = client.read_links(cred, &[&link]).await.expect("readlink");
    assert_eq!(&texts[0][..], b"dir/file");
    for (name, how) in [
        ("unchecked", HowToOpen::Existing),
        ("cut", HowToOpen::Truncate),
        ("exclusive", HowToOpen::Exclusive),
    ] {
        let open = rig.create(name, how).await.expect("create");
        client.close(&open).await.expect("close");
        assert_eq!(rig.peer.fs().stat(&format!("/{name}")).unwrap().mode, 0o644);
    }
    let data = Bytes::from(vec![7; client.wsize() as usize]);
    let open = rig.create("file", HowToOpen::Existing).await.unwrap();
    let written = client
        .write(&open, 0, 0, Stable::Unstable, std::slice::from_ref(&data))
        .await
        .expect("write");
    assert_eq!(written.result.count, client.wsize(), "of wsize bytes");
    client.commit(&open, 0, 0).await.expect("commit");
    let read = client.read(&open, 0, client.rsize()).await.expect("read");
    assert_eq!(read.data.len(), client.rsize().min(client.wsize()) as usize);
    let handle = open.handle.clone();
    client.close(&open).await.expect("close");
    let open = client.prepare_open(handle.clone(), cred.clone());
    let both = ACCESS_READ | ACCESS_WRITE;
    client
        .open_by_handle(OpenRequest::of(&open, both))
        .await
        .expect("open by handle");
    let cut = client
        .open_by_handle(OpenRequest {
            behind: BehindOpen::Truncate,
            ..OpenRequest::of(&open, both)
        })
        .await
        .expect("open and cut")
        .expect("the file");
    assert_eq!(cut.attrs.size, 0);
    client.close(&open).await.expect("close");
    let new = NewAttributes {
        uid: Some(1234),
        gid: Some(4321),
        ..NewAttributes::default()
    };
    let moved = client
        .set_attrs(cred, &handle, None, &new)
        .await
        .expect("chown");
    if let Some(after) = moved.after {
        assert_eq!((after.uid, after.gid), (1234, 4321));
    }
    let (granted, _) = client
        .access(cred, &handle, CAN_READ)
        .await
        .expect("access");
    assert_eq!(granted, CAN_READ);
    rig.link(&handle, "hard").await.expect("link");
    rig.rename("hard", "moved").await.expect("rename");
    assert_eq!(rig.lookup("moved").await.unwrap(), Some(handle.clone()));
    assert_eq!(rig.lookup("hard").await.unwrap(), None);
    rig.remove("moved").await.expect("remove");
    let attrs = client.get_attrs(cred, &handle).await.expect("getattr");
    assert_eq!(attrs.nlink, 1);
    client.space(cred, &client.fs().root).await.expect("space");
    let mut names = Vec::new();
    let (mut cookie, mut verifier) = (0, [0; 8]);
    loop {
        let (_, page) = client
            .read_dir(cred, root, cookie, verifier, u32::MAX)
            .await
            .expect("readdir");
        verifier = page.verifier;
        for entry in &page.entries {
            cookie = entry.cookie;
            names.push(String::from_utf8_lossy(&entry.name).into_owned());
        }
        if page.eof {
            break;
        }
    }
    names.sort();
    assert_eq!(names, rig.peer.fs().list("/").unwrap());
    assert_eq!(client.get_attrs(cred, &dir).await.unwrap().nlink, 2);
    assert_eq!(rig.peer.open_count(), 0, "nothing stays open");
}

#[tokio::test(start_paused = true)]
async fn every_call_fits_the_limits_of_efs() {
    let rig = Rig::new(PeerConfig::default()).await;
    within(60, every_call(&rig)).await;
    assert!(rig.peer.max_ops_seen() <= 16);
    assert_eq!(rig.root.as_bytes().len(), 128);
    let never = [
        op::LOCKT,
        op::DELEGRETURN,
        op::BACKCHANNEL_CTL,
        op::BIND_CONN_TO_SESSION,
    ];
    for number in never {
        assert_eq!(rig.peer.count_op(number), 0, "{}", op::name(number));
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_asked_for_than_efs_has() {
    let rig = Rig::new(PeerConfig {
        max_ops: 100,
        slots: 1000,
        max_request: 64 << 20,
        max_response: 64 << 20,
        ..PeerConfig::default()
    })
    .await;
    let info = rig.client.session_info();
    assert_eq!(info.max_ops, 16);
    assert_eq!(info.slots, 64);
    assert_eq!((info.rsize, info.wsize), (1 << 20, 1 << 20));
}

#[tokio::test(start_paused = true)]
async fn every_call_fits_into_eight_operations() {
    let rig = Rig::new(PeerConfig {
        max_ops: 8,
        ..PeerConfig::default()
    })
    .await;
    within(60, every_call(&rig)).await;
    assert!(rig.peer.max_ops_seen() <= 8);
}

#[tokio::test(start_paused = true)]
async fn one_slot_small_messages_and_a_small_reply_cache_are_enough() {
    for max_cached in [0, 512, 1024, 4096] {
        for commit_mode in [CommitMode::Unstable, CommitMode::FileSync] {
            let rig = Rig::new(PeerConfig {
                slots: 1,
                max_request: 8192,
                max_response: 8192,
                max_cached,
                commit_mode,
                reply_fragment: 7,
                ..PeerConfig::default()
            })
            .await;
            let info = rig.client.session_info();
            assert_eq!(info.slots, 1);
            assert!(info.wsize < 8192 && info.wsize >= 4096, "{info:?}");
            within(60, every_call(&rig)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_allows_less_than_the_one_before_is_kept_to() {
    let data: Vec<u8> = (0..300_000_u32).map(|i| (i % 253) as u8).collect();
    let mount = Mount::new(PeerConfig::default()).await;
    within(600, async {
        let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
        mount.write(file, 0, &data[..100_000]).await.unwrap();
        mount.peer.limit_sessions(|cfg| {
            (cfg.max_request, cfg.max_response) = (8192, 8192);
            cfg.max_ops = 8;
        });
        // Some data are on their way, cut to the size that was.
        mount
            .write(file, 100_000, &data[100_000..200_000])
            .await
            .unwrap();
        mount.peer.crash_and_restart();
        mount.write(file, 200_000, &data[200_000..]).await.unwrap();
        mount.fsync(file).await.unwrap();
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), data);
        let mut read = Vec::new();
        while read.len() < data.len() {
            let piece = mount
                .read(file, read.len() as u64, 128 << 10)
                .await
                .unwrap();
            assert!(!piece.is_empty());
            read.extend(piece);
        }
        assert!(read == data);
        mount.close(file).await.unwrap();
    })
    .await;
    let longest = mount.peer.log().iter().map(|e| e.request_len).max();
    assert!(longest > Some(50_000), "the first session allowed more");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_finds_a_message_too_large_gets_smaller_ones() {
    for status in [st::REQ_TOO_BIG, st::REP_TOO_BIG] {
        let mount = Mount::new(PeerConfig::default()).await;
        mount.peer.fs().write_file("/old", &[7; 100_000]).unwrap();
        let mut left = 6;
        mount.peer.on_op(move |event| {
            let bulk = event
                .compound
                .iter()
                .any(|&o| o == op::READ || o == op::WRITE);
            if event.op == op::SEQUENCE && bulk && left > 0 {
                left -= 1;
                return Action::Fail(status);
            }
            Action::Pass
        });
        within(600, async {
            let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
            mount.write(file, 0, &[5; 500_000]).await.unwrap();
            mount.close(file).await.expect("written");
            let old = mount
                .open(mount.walk("/old").await.unwrap(), libc::O_RDONLY)
                .await
                .unwrap();
            assert_eq!(mount.read(old, 0, 10).await.unwrap(), [7; 10]);
        })
        .await;
        assert_eq!(mount.peer.fs().read_file("/f").unwrap(), [5; 500_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_too_small_to_work_with_is_refused_with_a_word() {
    let changes: [fn(&mut PeerConfig); 3] = [
        |cfg| cfg.max_response = 2048,
        |cfg| cfg.max_request = 2048,
        |cfg| cfg.max_ops = 7,
    ];
    for change in changes {
        let mut cfg = PeerConfig::default();
        change(&mut cfg);
        let peer = crate::peer::Peer::new(cfg);
        let connecting = efs_fuse::nfs::Client::connect(
            peer.connector(),
            super::rig::client_config("one"),
            efs_fuse::telemetry::Metrics::new(),
        );
        let error = within(60, connecting).await.expect_err("too small");
        assert!(error.to_string().contains("too small"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_file_goes_through_a_small_channel_whole() {
    let mount = Mount::new(PeerConfig {
        slots: 1,
        max_request: 8192,
        max_response: 8192,
        ..PeerConfig::default()
    })
    .await;
    let data: Vec<u8> = (0..300_000_u32).map(|i| (i / 7) as u8).collect();
    within(60, async {
        let file = mount.create(1, "big", libc::O_RDWR).await.unwrap();
        for (at, part) in data.chunks(128 << 10).enumerate() {
            mount
                .write(file, (at * (128 << 10)) as u64, part)
                .await
                .unwrap();
        }
        assert_eq!(mount.read(file, 0, 300_000).await.unwrap(), data);
        mount.close(file).await.unwrap();
    })
    .await;
    assert_eq!(mount.peer.fs().read_file("/big").unwrap(), data);
    assert!(!mount.peer.fs().has_unstable("/big").unwrap());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_accepted_beyond_the_longest_file_of_the_server() {
    const MOST: u64 = 1 << 30;
    let mount = Mount::new(PeerConfig {
        max_file_size: MOST,
        ..PeerConfig::default()
    })
    .await;
    let too_big = Err(Errno(libc::EFBIG));
    let file = mount.create(ROOT_INO, "f", libc::O_RDWR).await.unwrap();
    assert_eq!(mount.write(file, MOST, b"x").await, too_big);
    assert_eq!(mount.write(file, u64::MAX - 1, b"x").await, too_big);
    assert_eq!(
        mount.truncate(file.ino, Some(file.fh), MOST + 1).await,
        too_big
    );
    assert_eq!(mount.truncate(file.ino, None, u64::MAX).await, too_big);
    assert_eq!(mount.getattr(file.ino).await.unwrap().size, 0);
    mount
        .write(file, MOST - 1, b"x")
        .await
        .expect("the last byte");
    // What begins below it ends there, as on every file system.
    let flags = WriteFlags::default();
    let some = Bytes::from_static(b"four");
    let written = mount.vfs.write(file.fh, MOST - 2, some, flags);
    assert_eq!(written.await, Ok(2));
    mount.fsync(file).await.expect("the server takes it");
    mount
        .truncate(file.ino, Some(file.fh), MOST)
        .await
        .expect("as long as it may be");
    mount.close(file).await.expect("nothing is left to be told");
    assert_eq!(mount.peer.fs().stat("/f").unwrap().size, MOST);
}
