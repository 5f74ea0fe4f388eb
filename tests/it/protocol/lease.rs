//! The lease when nobody asks for anything.

use std::time::Duration;

use efs_fuse::nfs::calls::HowToOpen;

use super::rig::{Rig, seconds, within};
use crate::peer::PeerConfig;
use crate::peer::proto::op;

#[tokio::test(start_paused = true)]
async fn an_idle_lease_is_renewed_at_a_third_of_its_time_and_not_more_often() {
    for lease_s in [10, 90, 300] {
        let rig = Rig::new(PeerConfig {
            lease_s,
            ..PeerConfig::default()
        })
        .await;
        let open = rig.create("f", HowToOpen::Existing).await.unwrap();
        seconds(2 * u64::from(lease_s)).await;
        rig.peer.clear_log();
        seconds(20 * u64::from(lease_s)).await;
        let renewals = rig.peer.round_trips();
        assert!((58..=62).contains(&renewals), "{renewals} in 20 leases");
        assert_eq!(rig.peer.count_op(op::SEQUENCE) as u64, renewals);
        assert_eq!(rig.peer.open_count(), 1, "the state is still there");
        rig.client.close(&open).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_renewal_of_a_short_lease_is_in_time() {
    let rig = Rig::new(PeerConfig {
        lease_s: 10,
        ..PeerConfig::default()
    })
    .await;
    let _open = rig.create("f", HowToOpen::Existing).await.unwrap();
    seconds(60).await;
    rig.lookup("f").await.expect("lookup");
    assert_eq!(rig.peer.count_op(op::EXCHANGE_ID), 1, "the state was kept");
    assert_eq!(rig.peer.open_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_renew_the_lease_so_that_nothing_else_is_sent() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.clear_log();
    for _ in 0..100 {
        seconds(20).await;
        rig.lookup("x").await.unwrap();
    }
    assert!(rig.peer.round_trips() <= 102);
}

#[tokio::test(start_paused = true)]
async fn a_partition_shorter_than_the_lease_is_only_a_pause() {
    let rig = Rig::new(PeerConfig::default()).await;
    let open = rig.create("f", HowToOpen::Existing).await.unwrap();
    rig.peer.refuse_connections(true);
    rig.peer.cut_all_connections();
    seconds(60).await;
    rig.peer.refuse_connections(false);
    within(10, rig.client.read(&open, 0, 1))
        .await
        .expect("read");
    assert_eq!(rig.peer.count_op(op::CREATE_SESSION), 1);
}

#[tokio::test(start_paused = true)]
async fn a_partition_longer_than_the_lease_costs_the_state_and_not_the_file() {
    let rig = Rig::new(PeerConfig::default()).await;
    let open = rig.create("f", HowToOpen::Existing).await.unwrap();
    rig.peer.refuse_connections(true);
    rig.peer.cut_all_connections();
    seconds(600).await;
    rig.peer.refuse_connections(false);
    within(60, rig.client.read(&open, 0, 1))
        .await
        .expect("read");
    rig.client.close(&open).await.expect("close");
    assert_eq!(rig.peer.open_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_tried_at_a_sane_rate() {
    let rig = Rig::new(PeerConfig::default()).await;
    rig.peer.refuse_connections(true);
    rig.peer.cut_all_connections();
    let lookup = rig.lookup("x");
    tokio::pin!(lookup);
    let early = tokio::time::timeout(Duration::from_secs(300), &mut lookup).await;
    assert!(early.is_err(), "hard: it waits");
    let before = rig.client.channel().link().fruitless;
    assert!((50..=80).contains(&before), "{before} attempts in 300 s");
    rig.peer.refuse_connections(false);
    assert!(within(10, lookup).await.unwrap().is_none());
}
