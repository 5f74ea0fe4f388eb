//! What SEQUENCE says about our state is acted upon: once, at once, and before
//! anybody uses what is no more.

use std::sync::Arc;

use efs_fuse::nfs::calls::HowToOpen;

use super::locks::{is_dead, range, set};
use super::rig::{Mount, Rig, default_timeouts, seconds, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

const ALL: efs_fuse::vfs::types::LockRange = efs_fuse::vfs::types::LockRange {
    start: 0,
    end: i64::MAX as u64,
    typ: libc::F_WRLCK,
    pid: 7,
};

#[tokio::test(start_paused = true)]
async fn revoked_opens_are_found_by_the_flag_freed_and_opened_again() {
    for status in [st::ADMIN_REVOKED, st::EXPIRED] {
        let rig = Rig::new(PeerConfig::default()).await;
        let mut opens = Vec::new();
        for name in ["a", "b", "c"] {
            opens.push(rig.create(name, HowToOpen::Existing).await.unwrap());
        }
        rig.peer.revoke_state(status);
        rig.peer.clear_log();
        within(60, rig.lookup("a")).await.unwrap();
        seconds(1).await;
        assert_eq!(rig.peer.open_count(), 3, "nobody had to use them");
        assert_eq!(rig.peer.count_op(op::TEST_STATEID), 1);
        assert_eq!(rig.peer.count_op(op::FREE_STATEID), 3);
        // The flag is down: the next revocation is news again.
        rig.peer.clear_log();
        within(60, rig.lookup("a")).await.unwrap();
        rig.peer.revoke_state(status);
        within(60, rig.lookup("a")).await.unwrap();
        seconds(1).await;
        assert_eq!(rig.peer.count_op(op::TEST_STATEID), 1);
        for open in &opens {
            within(60, rig.client.read(open, 0, 1)).await.expect("read");
            rig.client.close(open).await.expect("close");
        }
        assert_eq!(rig.peer.open_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_was_revoked_is_lost() {
    let mount = Mount::new(PeerConfig::default()).await;
    let lost = mount.create(1, "lost", libc::O_RDWR).await.unwrap();
    let kept = mount.create(1, "kept", libc::O_RDWR).await.unwrap();
    set(&mount, lost, 1, ALL).await.unwrap();
    set(&mount, kept, 1, ALL).await.unwrap();
    let fileid = mount.peer.fs().stat("/lost").unwrap().fileid;
    mount.peer.revoke_file(fileid, st::ADMIN_REVOKED);
    mount.walk("/never-seen").await.unwrap_err();
    seconds(1).await;
    is_dead(&mount, lost, 1).await;
    mount.write(kept, 0, b"mine").await.unwrap();
    mount.fsync(kept).await.unwrap();
    assert_eq!(mount.peer.fs().locks("/kept").unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restart_that_keeps_the_session_is_told_by_its_flag_and_everything_reclaimed() {
    let peer = Peer::new(PeerConfig::default());
    let mount = Mount::of(&peer, "one", default_timeouts()).await;
    let other = Mount::of(&peer, "two", default_timeouts()).await;
    let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
    set(&mount, file, 1, ALL).await.unwrap();
    mount.write(file, 0, b"before").await.unwrap();
    seconds(1).await;
    peer.restart_and_keep_sessions();
    mount.walk("/never-seen").await.unwrap_err();
    seconds(1).await;
    assert_eq!((peer.open_count(), peer.lock_count()), (1, 1));
    mount.write(file, 6, b" after").await.unwrap();
    mount.fsync(file).await.unwrap();
    assert_eq!(peer.fs().read_file("/f").unwrap(), b"before after");
    within(60, other.walk("/f"))
        .await
        .expect("the other client");
    other.mkdir(1, "d").await.expect("the grace period is over");
    assert!(!peer.in_grace());
}

#[tokio::test(start_paused = true)]
async fn no_flag_costs_a_lock_that_the_server_still_knows() {
    for (bit, times) in (0..13).flat_map(|bit| [(bit, 1), (bit, u32::MAX)]) {
        let mount = Mount::new(PeerConfig::default()).await;
        let file = mount.create(1, "f", libc::O_RDWR).await.unwrap();
        set(&mount, file, 1, range(libc::F_WRLCK, 0, 99))
            .await
            .unwrap();
        mount.peer.clear_log();
        mount.peer.set_status_flags(1 << bit, times);
        for at in 0..20 {
            mount.write(file, at, b"x").await.unwrap();
            mount.fsync(file).await.unwrap();
            seconds(1).await;
        }
        assert_eq!(mount.peer.lock_count(), 1, "flag {:#x}", 1 << bit);
        let sessions = mount.peer.count_op(op::CREATE_SESSION);
        assert!(
            sessions <= 1,
            "flag {:#x}: {sessions} new sessions",
            1 << bit
        );
        assert!(mount.peer.count_op(op::TEST_STATEID) <= 1);
        set(&mount, file, 1, range(libc::F_UNLCK, 0, 99))
            .await
            .unwrap();
        mount.close(file).await.unwrap();
        seconds(40).await;
        assert_eq!(mount.peer.session_count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_must_not_be_used_is_left_when_its_last_reply_is_in() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.fs().write_file("/f", b"content").unwrap();
    let mut slow = Some(Action::Delay(std::time::Duration::from_secs(5)));
    rig.peer.on_op(move |event| match event.op {
        op::CREATE => slow.take().unwrap_or(Action::Pass),
        _ => Action::Pass,
    });
    let client = Arc::clone(&rig.client);
    let (cred, root) = (Arc::clone(&rig.cred), rig.root.clone());
    let mkdir = tokio::spawn(async move {
        let make = efs_fuse::nfs::proto::ops::Make::Directory;
        client
            .make(&cred, &root, b"d", make, &Default::default())
            .await
    });
    seconds(1).await;
    rig.peer.set_status_flags(0x400, 1); // BACKCHANNEL_FAULT
    within(2, rig.lookup("f")).await.unwrap();
    within(2, rig.lookup("f")).await.expect("in a new session");
    assert_eq!(
        rig.peer.session_count(),
        2,
        "the old one still owes a reply"
    );
    within(10, mkdir).await.unwrap().expect("mkdir");
    assert_eq!(rig.peer.count_op(op::CREATE), 1, "it was not sent again");
    seconds(1).await;
    assert_eq!(rig.peer.session_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_test_stateids_is_no_trouble() {
    let rig = Rig::new(PeerConfig::default()).await;
    let open = rig.create("f", HowToOpen::Existing).await.unwrap();
    rig.peer.on_op(|event| match event.op {
        op::TEST_STATEID | op::FREE_STATEID => Action::Fail(st::NOTSUPP),
        _ => Action::Pass,
    });
    rig.peer.revoke_state(st::ADMIN_REVOKED);
    within(60, rig.lookup("f")).await.unwrap();
    seconds(10).await;
    within(60, rig.client.read(&open, 0, 1))
        .await
        .expect("read");
    let sent = rig.peer.round_trips();
    assert!(sent < 40, "{sent} requests");
}
