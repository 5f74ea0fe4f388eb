//! The end of a client.

use std::time::Duration;

use efs_fuse::nfs::calls::HowToOpen;
use tokio::time::Instant;

use super::rig::{Rig, seconds, within};
use crate::peer::proto::{op, st};
use crate::peer::{Action, PeerConfig};

const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_takes_its_session_and_its_id_along() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.mkdir("d").await.unwrap();
    within(1, rig.client.shut_down(PATIENCE)).await;
    assert_eq!((rig.peer.session_count(), rig.peer.client_count()), (0, 0));
    seconds(1).await;
    assert_eq!(rig.peer.connection_count(), 0);
    rig.peer.clear_log();
    let error = within(1, rig.lookup("d")).await.unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    seconds(1000).await;
    assert_eq!(rig.peer.round_trips(), 0, "nothing goes on behind the back");
}

#[tokio::test(start_paused = true)]
async fn leaving_a_server_that_hangs_or_is_gone_takes_no_longer_than_the_patience() {
    for gone in [false, true] {
        let rig = Rig::new(PeerConfig::default()).await;
        if gone {
            rig.peer.refuse_connections(true);
            rig.peer.cut_all_connections();
        } else {
            rig.peer.on_op(|_| Action::Hang);
        }
        let begun = Instant::now();
        within(10, rig.client.shut_down(PATIENCE)).await;
        assert!(begun.elapsed() <= PATIENCE + Duration::from_millis(100));
    }
}

#[tokio::test(start_paused = true)]
async fn calls_under_way_fail_when_the_client_leaves() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.on_op(|event| match event.op {
        op::LOOKUP => Action::Hang,
        _ => Action::Pass,
    });
    let (client, cred, root) = (rig.client.clone(), rig.cred.clone(), rig.root.clone());
    let call = tokio::spawn(async move { client.lookup(&cred, &root, b"x").await });
    seconds(1).await;
    within(10, rig.client.shut_down(PATIENCE)).await;
    let result = within(10, call).await.unwrap();
    assert_eq!(result.unwrap_err().errno(), libc::EIO);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_in_the_middle_of_recovery_is_gone() {
    let rig = Rig::new(PeerConfig::default()).await;
    let _open = rig.create("f", HowToOpen::Existing).await.unwrap();
    rig.peer.on_op(|event| match event.op {
        op::CREATE_SESSION => Action::Fail(st::DELAY),
        _ => Action::Pass,
    });
    rig.peer.crash_and_restart();
    let (client, cred, root) = (rig.client.clone(), rig.cred.clone(), rig.root.clone());
    let call = tokio::spawn(async move { client.lookup(&cred, &root, b"x").await });
    seconds(5).await;
    assert_eq!(rig.client.session_info().state, "recovering");
    within(10, rig.client.shut_down(PATIENCE)).await;
    assert!(within(10, call).await.unwrap().is_err());
    rig.peer.clear_script();
    rig.peer.clear_log();
    seconds(1000).await;
    assert_eq!(rig.peer.round_trips(), 0);
}
