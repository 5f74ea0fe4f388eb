//! Connections that go silent without a word: how soon they are found dead, and that
//! no number of them costs the lease (RFC 8881 §8.3) while there is a way to the
//! server.

use std::sync::Arc;
use std::time::Duration;

use efs_fuse::nfs::Client;
use efs_fuse::rpc::Tolerance;
use efs_fuse::rpc::auth::Credential;
use efs_fuse::telemetry::Metrics;
use tokio::time::Instant;

use super::locks::{range, set};
use super::rig::{Mount, Open, client_config, default_timeouts, millis, seconds, within};
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};

const TIMEO: Duration = Duration::from_secs(60);

fn peer(lease_s: u32) -> Arc<Peer> {
    Peer::new(PeerConfig {
        lease_s,
        ..PeerConfig::default()
    })
}

/// A mount with `timeo`, and a file that is locked.
async fn locked(peer: &Arc<Peer>, timeo: Duration) -> (Mount, Open) {
    let mut config = client_config("one");
    config.tolerance = Tolerance::of(timeo, 2);
    let client = Client::connect(peer.connector(), config, Metrics::new())
        .await
        .expect("a session");
    client
        .find_root(&Credential::machine(), b"/")
        .await
        .expect("the root");
    let mount = Mount::over(&client, peer, default_timeouts(), 64 << 20);
    let file = mount.create(1, "f", libc::O_RDWR).await.expect("create");
    set(&mount, file, 1, range(libc::F_WRLCK, 0, 99))
        .await
        .expect("lock");
    (mount, file)
}

/// Something that goes to the server.
async fn ask(mount: &Mount, file: Open) {
    mount.write(file, 0, b"mine").await.expect("write");
    mount.fsync(file).await.expect("fsync");
}

/// The client id and everything under it are the first ones.
fn assert_kept(peer: &Peer, what: &str) {
    assert_eq!(peer.count_op(op::EXCHANGE_ID), 1, "{what}");
    assert_eq!(peer.lock_count(), 1, "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_was_lost_often_is_found_dead_as_soon_as_the_first_time() {
    for (lease, timeo, found) in [(60, 5, 5), (90, 60, 15), (10, 60, 5)] {
        let peer = peer(lease);
        let (mount, file) = locked(&peer, Duration::from_secs(timeo)).await;
        for nth in 0..20 {
            for _ in 0..10 {
                ask(&mount, file).await;
                millis(300).await;
            }
            peer.lose_connections();
            let begun = Instant::now();
            within(600, ask(&mount, file)).await;
            let took = begun.elapsed().as_secs_f64();
            assert!(took < found as f64 + 0.5, "{nth}: found after {took} s");
        }
        assert_kept(&peer, "the lease");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_outlives_every_silence_that_ends_before_it_does() {
    for (lease, timeo) in [
        (90, TIMEO),
        (60, Duration::from_secs(5)),
        (60, TIMEO),
        (20, Duration::from_secs(2)),
        (10, TIMEO),
    ] {
        // The last connection may have been made just before the end of the silence,
        // and must be found dead like the others.
        let last = (u64::from(lease) / 6 + 1).min(16);
        for busy in [true, false] {
            let steps = (lease as usize / 20).max(1);
            for ends in (1..=u64::from(lease) - last).rev().step_by(steps) {
                let peer = peer(lease);
                let (mount, file) = locked(&peer, timeo).await;
                // Silences that came before are forgotten.
                for _ in 0..3 {
                    ask(&mount, file).await;
                    peer.lose_connections();
                }
                ask(&mount, file).await;
                peer.black_hole(true);
                let what =
                    format!("lease {lease}, timeo {timeo:?}, silent for {ends} s, busy: {busy}");
                let work = async {
                    if busy {
                        ask(&mount, file).await;
                    } else {
                        seconds(u64::from(lease) * 2).await;
                        ask(&mount, file).await;
                    }
                };
                let over = async {
                    seconds(ends).await;
                    peer.black_hole(false);
                };
                within(600, async { tokio::join!(work, over) }).await;
                assert_kept(&peer, &what);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silence_longer_than_the_lease_is_ended_soon_after_the_line_is_back() {
    for silence in [100, 300, 1000] {
        let peer = peer(60);
        let (mount, file) = locked(&peer, TIMEO).await;
        peer.black_hole(true);
        let lookup = mount.lookup(1, "g");
        tokio::pin!(lookup);
        let early = tokio::time::timeout(Duration::from_secs(silence), &mut lookup).await;
        assert!(early.is_err());
        peer.black_hole(false);
        let begun = Instant::now();
        within(600, lookup).await.expect("lookup");
        let took = begun.elapsed().as_secs();
        assert!(took <= 36, "half a lease and a pause: {took} s");
        mount.release(file).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_only_slow_is_not_drowned_in_repetitions() {
    let peer = peer(600);
    let (mount, _file) = locked(&peer, Duration::from_secs(5)).await;
    peer.on_op(|event| match event.op {
        op::LOOKUP => Action::Delay(Duration::from_secs(40)),
        _ => Action::Pass,
    });
    let connections = || peer.log().last().expect("answered").conn_id;
    for nth in 0..10 {
        let before = connections();
        within(600, mount.lookup(1, &format!("g{nth}")))
            .await
            .expect("lookup");
        let more = connections() - before;
        let most = if nth == 0 { 3 } else { 0 };
        assert!(more <= most, "{nth}: {more} more connections");
    }
}
