//! What is counted of compounds: each operation, and the time of each compound once.

use std::sync::Arc;

use efs_fuse::telemetry::Metrics;
use serde_json::Value;

use super::rig::{Mount, client_config, connect_as, default_timeouts};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

async fn mount() -> (Mount, Arc<Metrics>) {
    let peer = Peer::new(PeerConfig::default());
    peer.fs().write_file("/f", b"first").unwrap();
    let metrics = Metrics::new();
    let client = connect_as(&peer, client_config("one"), Arc::clone(&metrics)).await;
    let mount = Mount::over(&client, &peer, default_timeouts(), 64 << 20);
    metrics.reset();
    (mount, metrics)
}

async fn open_and_read(mount: &Mount) {
    let ino = mount.walk("/f").await.unwrap();
    let file = mount.open(ino, libc::O_RDONLY).await.unwrap();
    assert_eq!(mount.read(file, 0, 4096).await.unwrap(), b"first");
    mount.close(file).await.unwrap();
}

fn number(shown: &Value, operation: &str, key: &str) -> u64 {
    shown["nfs_ops"][operation][key].as_u64().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_compound_is_booked_once_under_what_it_was_sent_for() {
    let (mount, metrics) = mount().await;
    open_and_read(&mount).await;
    let shown = metrics.snapshot();
    let operations = shown["nfs_ops"].as_object().expect("operations");
    let booked = operations
        .keys()
        .map(|name| number(&shown, name, "compounds"));
    assert_eq!(booked.sum::<u64>(), metrics.round_trips(), "{shown}");
    // It came along with its OPEN.
    assert_eq!(number(&shown, "READ", "count"), 1, "{shown}");
    assert_eq!(number(&shown, "READ", "compounds"), 0, "{shown}");
    assert_eq!(shown["nfs_ops"]["READ"]["p50_us"], Value::Null);
    assert_eq!(number(&shown, "OPEN", "compounds"), 1, "{shown}");
    assert!(shown["nfs_ops"]["OPEN"]["p50_us"].is_f64(), "{shown}");
    for accompanies in ["SEQUENCE", "PUTFH"] {
        assert!(number(&shown, accompanies, "count") > 1, "{shown}");
        assert_eq!(number(&shown, accompanies, "compounds"), 0, "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_answers_no_is_no_error_and_one_that_fails_is() {
    let (mount, metrics) = mount().await;
    open_and_read(&mount).await;
    let ino = mount.walk("/f").await.unwrap();
    mount.peer.clear_log();
    let opened = mount.vfs.open(&mount.cred, ino, libc::O_RDONLY).await;
    mount.vfs.release(opened.unwrap().fh).await.unwrap();
    let log = mount.peer.log();
    assert_eq!(log[0].statuses.last(), Some(&st::SAME), "{log:?}");
    let shown = metrics.snapshot();
    assert_eq!(number(&shown, "NVERIFY", "count"), 1, "{shown}");
    assert_eq!(number(&shown, "NVERIFY", "errors"), 0, "{shown}");

    mount.peer.on_op(|event| match event.op == op::NVERIFY {
        true => Action::Fail(st::NOTSUPP),
        false => Action::Pass,
    });
    let opened = mount.vfs.open(&mount.cred, ino, libc::O_RDONLY).await;
    mount.vfs.release(opened.unwrap().fh).await.unwrap();
    assert_eq!(number(&metrics.snapshot(), "NVERIFY", "errors"), 1);
}
