//! What makes a mount known: its entry in the registry, its control socket with `status`
//! and `stats`, and its metrics.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::assembly::Served;
use super::endpoint;
use super::handover::Lifeline;
use super::registry::{Entry, Registration, Registry};
use crate::efs::ServerConnector;
use crate::nfs::Client;
use crate::quoting;
use crate::rpc::Channel;
use crate::telemetry::log::utc;
use crate::telemetry::prometheus::{self, Answer, Shown};
use crate::telemetry::{Metrics, control, serve};
use crate::vfs::{LateError, Vfs};

/// Makes the mount known to `stats` and `status`, as long as what is returned
/// lives.
pub(super) fn publish(
    served: &Served,
    upgrade: control::UpgradeFn,
) -> io::Result<impl Drop + use<>> {
    struct Published {
        _control: control::ControlServer,
        _metrics: Option<serve::Endpoint>,
        _registration: Registration,
    }
    impl Drop for Published {
        fn drop(&mut self) {}
    }
    let Served {
        request, metrics, ..
    } = served;
    let peer = served.client.channel().peer();
    let mut entry = Entry::own(&request.mountpoint, &request.device.spec, &peer)?;
    entry.options.clone_from(&request.written);
    entry.origins.clone_from(&request.origins);
    entry.since = served.history.since;
    let keeper = served.lifeline.as_ref().and_then(Lifeline::keeper);
    entry.keeper = keeper.map(|keeper| (keeper.pid, keeper.start_time));
    let since = entry.since;
    let registration = Registry::of_user().register(&entry)?;
    let (client, vfs) = (Arc::clone(&served.client), Arc::clone(&served.vfs));
    let connector = Arc::clone(&served.connector);
    let (device, mountpoint) = (request.device.spec.clone(), request.mountpoint.clone());
    let counted = Arc::clone(metrics);
    let takeover = takeover(served);
    let disk_cache = served.disk_cache.clone();
    let status = move || {
        let mut status = status(&client, &vfs, &counted, &device, &mountpoint, &peer, since);
        (status["tls"], status["iam"]) = security(&connector);
        status["takeover"] = takeover();
        status["disk_cache"] = disk_cache.status();
        status
    };
    let status: control::StatusFn = Arc::new(status);
    let endpoint = request.options.metrics.as_ref();
    let endpoint =
        endpoint.and_then(|address| serve_metrics(address, Arc::clone(metrics), &status));
    let answers = control::Answers {
        status,
        upgrade: Some(upgrade),
        sync: Some(sync(Arc::clone(&served.vfs), Arc::clone(metrics))),
    };
    let control = control::serve(registration.socket(), Arc::clone(metrics), answers)?;
    Ok(Published {
        _control: control,
        _metrics: endpoint,
        _registration: registration,
    })
}

/// Serves metrics. A volume matters more than its numbers: a port that is taken
/// is a warning, not the end of the mount.
fn serve_metrics(
    address: &serve::Address,
    metrics: Arc<Metrics>,
    status: &control::StatusFn,
) -> Option<serve::Endpoint> {
    match endpoint::bound(address) {
        Ok(bound) => {
            let tasks = Arc::clone(&metrics.tasks);
            let endpoint = bound.serve(&tasks, page(metrics, Arc::clone(status)));
            tracing::info!("metrics at {}", endpoint.address());
            Some(endpoint)
        }
        Err(why) => {
            tracing::warn!("no metrics: {address}: {why}");
            metrics.set_last_error(format!("no metrics at {address}: {why}"));
            let why = quoting::plain(&why.to_string());
            eprintln!(
                "efs-fuse: warning: no metrics: {address}: {why}. Try: another address in -o metrics="
            );
            None
        }
    }
}

/// `efs-fuse sync`: what has failed meanwhile is in the answer.
fn sync(vfs: Arc<Vfs>, metrics: Arc<Metrics>) -> control::SyncFn {
    Arc::new(move || {
        let (mut answer, outcome) = oneshot::channel();
        let vfs = Arc::clone(&vfs);
        metrics.tasks.harmless("a sync", async move {
            let (before, _) = vfs.late_errors();
            tokio::select! {
                () = vfs.sync() => {}
                () = answer.closed() => return,
            }
            let (_, mut errors) = vfs.late_errors();
            errors.retain(|error| error.number > before);
            // Who asked may be gone.
            let _ = answer.send(json!({ "errors": shown(&errors) }));
        });
        outcome
    })
}

fn shown(errors: &[LateError]) -> Value {
    let each = errors.iter().map(|error| {
        let since = error.at.duration_since(SystemTime::UNIX_EPOCH);
        json!({
            "at": utc(since.unwrap_or_default().as_secs()),
            "path": error.path,
            "what": error.what,
            "error": error.error,
            "times": error.times,
        })
    });
    each.collect()
}

/// The metrics of this mount alone, as they are when they are asked for.
fn page(metrics: Arc<Metrics>, status: control::StatusFn) -> serve::PageFn {
    Arc::new(move || {
        let begun = Instant::now();
        let status = status();
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        let shown = Shown {
            mountpoint: text("mountpoint"),
            device: text("device"),
            answer: Some(Answer {
                numbers: metrics.snapshot_with_buckets(),
                status,
            }),
            took: begun.elapsed(),
        };
        Box::pin(std::future::ready(prometheus::render(&[shown])))
    })
}

/// What `efs-fuse status` shows of who takes over from this daemon, and of those before it.
fn takeover(served: &Served) -> impl Fn() -> Value + Send + Sync + use<> {
    let keeper = served.lifeline.as_ref().and_then(Lifeline::keeper);
    let lifeline = served.lifeline.as_ref();
    let generation = lifeline.map_or(0, |held| held.generation);
    let past = lifeline.map(|held| held.past).unwrap_or_default();
    let survives = lifeline.is_some_and(|held| held.survives(&served.running));
    let obstacle = served.running.can_be_handed_over().err();
    let history = served.history.clone();
    move || {
        let keeper = keeper.filter(|keeper| keeper.is_alive());
        let why_not = match (&obstacle, keeper) {
            (_, None) => Some("no keeper holds the mount".to_owned()),
            (Some(why), _) => Some(why.to_string()),
            (None, Some(_)) => None,
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "keeper": keeper.map(|keeper| keeper.pid),
            "generation": generation,
            "pause_ms": history.pause.map(|pause| pause.as_secs_f64() * 1000.0),
            "failed": history.failed,
            "takeovers": { "planned": past.planned, "crash": past.crashes },
            "survives": survives && keeper.is_some(),
            "died": history.died.map(|died| format!("the daemon before {died}")),
            "why_not": why_not,
        })
    }
}

/// What `efs-fuse status` shows of TLS and of who we are.
fn security(connector: &ServerConnector) -> (Value, Value) {
    let tls = connector.agreed().map(|agreed| {
        let shown = connector.identity();
        json!({
            "version": agreed.version,
            "cipher": agreed.cipher,
            "certificates_made": shown.as_ref().map(|shown| shown.certificates),
            "certificate_made_at": shown.map(|shown| utc(shown.made)),
        })
    });
    let settings = connector.asked().1;
    let point = settings.access_point.as_deref();
    let iam = (settings.iam || point.is_some()).then(|| {
        json!({
            "access_key_id": connector.identity().and_then(|shown| shown.access_key_id),
            "access_point": point,
        })
    });
    (json!(tls), json!(iam))
}

/// What `efs-fuse status` shows of the connections: one at least, so that it is seen
/// when there is none, and with the first what is true of all.
fn connections(channel: &Channel, server: &str) -> Value {
    let link = channel.link();
    let shown = |state: &str, calls: usize| {
        json!({
            "peer": server,
            "state": state,
            "in_flight": calls,
        })
    };
    let connections = channel.connections().into_iter();
    let mut all: Vec<_> = connections
        .map(|connection| shown("up", connection.small + connection.bulk))
        .collect();
    if all.is_empty() {
        all.push(shown("down", 0));
    }
    let first = &mut all[0];
    first["made"] = json!(link.connections);
    first["responding"] = json!(link.silent_since.is_none());
    first["silent_s"] = json!(link.silent_since.map(|since| since.elapsed().as_secs_f64()));
    first["last_error"] = json!(link.last_error);
    json!(all)
}

/// What `efs-fuse status` shows of one mount.
fn status(
    client: &Client,
    vfs: &Vfs,
    metrics: &Metrics,
    device: &str,
    mountpoint: &Path,
    server: &str,
    since: u64,
) -> Value {
    let session = client.session_info();
    let (window, limit) = vfs.write_window();
    let stats = metrics.snapshot();
    let late = vfs.late_errors();
    json!({
        "mountpoint": mountpoint.display().to_string(),
        "device": device,
        "server": server,
        "version": env!("CARGO_PKG_VERSION"),
        "since": since,
        "session": {
            "state": session.state,
            "lease_s": session.lease,
            "idle_s": session.idle.as_secs_f64(),
            "slots": session.slots,
            "in_use": session.in_use,
            "max_ops": session.max_ops,
            "rsize": session.rsize,
            "wsize": session.wsize,
        },
        "connections": connections(client.channel(), server),
        "tls": null,
        "iam": null,
        "takeover": null,
        "disk_cache": null,
        "caches": stats["cache"],
        "write_window": { "bytes": window, "limit": limit },
        "tasks": metrics.tasks.snapshot(),
        "late_errors": { "count": late.0, "last": shown(&late.1) },
        "last_error": stats["last_error"],
    })
}
