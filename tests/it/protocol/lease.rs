//! The lease when nobody asks for anything.

use std::time::Duration;

use efs_fuse::nfs::calls::HowToOpen;

use super::rig::{Rig, seconds, suspend, within};
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
async fn after_the_machine_slept_the_lease_is_looked_after_at_once() {
    let rig = Rig::new(PeerConfig {
        lease_s: 300,
        ..PeerConfig::default()
    })
    .await;
    rig.lookup("x").await.unwrap();
    rig.peer.clear_log();
    seconds(20).await;
    assert_eq!(rig.peer.round_trips(), 0);
    suspend(Duration::from_secs(1000));
    assert!(rig.client.session_info().idle > Duration::from_secs(1000));
    seconds(11).await;
    assert_eq!(rig.peer.count_op(op::SEQUENCE), 1);
    assert!(rig.client.session_info().idle < Duration::from_secs(12));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_to_answer_is_said_not_to_respond_until_it_does() {
    let rig = Rig::new(PeerConfig::default()).await;
    let silent = || rig.client.channel().link().silent_since;
    seconds(1000).await;
    assert!(silent().is_none(), "an idle server is no silent one");
    rig.peer.on_op(|_| crate::peer::Action::Hang);
    let lookup = rig.lookup("x");
    tokio::pin!(lookup);
    let mut wait = async |secs| {
        let time = Duration::from_secs(secs);
        assert!(tokio::time::timeout(time, &mut lookup).await.is_err());
    };
    wait(10).await;
    assert!(silent().is_none());
    wait(25).await;
    let since = silent().expect("not responding").elapsed();
    assert!((35..36).contains(&since.as_secs()), "{since:?}");
    // A new connection is no answer.
    rig.peer.cut_all_connections();
    wait(60).await;
    let since = silent().expect("still").elapsed();
    assert!((95..96).contains(&since.as_secs()), "{since:?}");
    assert!(rig.client.channel().longest_wait() > Duration::from_secs(94));
    rig.peer.clear_script();
    rig.peer.destroy_sessions();
    rig.peer.cut_all_connections();
    within(60, lookup).await.expect("lookup");
    assert!(silent().is_none());
    assert_eq!(rig.client.channel().longest_wait(), Duration::ZERO);
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
    // A server that is back has to be found within a fraction of its grace period.
    assert!((500..=700).contains(&before), "{before} attempts in 300 s");
    rig.peer.refuse_connections(false);
    assert!(within(10, lookup).await.unwrap().is_none());
}
