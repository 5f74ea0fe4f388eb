//! The daemon that comes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::record::Past;
use super::{HandedOver, Lifeline, Mounted, log_of};
use crate::fuse::{self, EstaleRetries};
use crate::mount::Ready;
use crate::mount::assembly::{self, History, Served};
use crate::mount::connecting::{client_config, connector, unidentified};
use crate::mount::disk_cache;
use crate::mount::error::MountError;
use crate::mount::keeper::{Died, Inherited};
use crate::mount::launch::MountRequest;
use crate::mount::owner::Owner;
use crate::mount::signals::Shutdown;
use crate::nfs::Client;
use crate::quoting;
use crate::telemetry::Metrics;
use crate::vfs::Vfs;
use crate::wal::clock;

/// Why a daemon takes over, beside that the one before has ended.
#[derive(Debug, Default)]
pub struct Circumstances {
    /// Why another program could not take over.
    pub failed: Option<String>,
    /// How the daemon before has died, if it was not asked to leave.
    pub died: Option<Died>,
}

/// Takes over the mount and serves it until it ends, or until another daemon takes over.
///
/// # Errors
/// It cannot be taken over, or it has ended in a way the user should know of.
pub async fn run(
    request: MountRequest,
    inherited: Inherited,
    state: HandedOver,
    Circumstances { failed, died }: Circumstances,
    metrics: Arc<Metrics>,
    ready: Ready,
) -> Result<(), MountError> {
    let shutdown = Shutdown::on_signals(&metrics.tasks)
        .map_err(|why| MountError::system("installing signal handlers", why))?;
    let connector = connector(&request)?;
    let owner = Owner::take_over(state.owner, inherited.owner).map_err(unidentified)?;
    // A new one: what the daemon before has left stays as it is until this one is ready.
    let wal = log_of(&request).map_err(assembly::no_log)?;
    let config = client_config(&request, &owner, &wal)?;
    let past = past(state.past, died);
    let lifeline = Lifeline::new(inherited.link, wal, state.generation + 1, past);
    let (client, taken) = Client::take_over_killed(
        Arc::clone(&connector) as _,
        config,
        Arc::clone(&metrics),
        state.client,
        state.unanswered,
    )
    .await
    .map_err(|why| MountError::mount("taking over the mount", why))?;
    let config = assembly::vfs_config(&request.options);
    let vfs = Vfs::take_over(
        Arc::clone(&client),
        config,
        Arc::clone(&metrics),
        state.vfs,
        taken,
    )
    .map_err(|why| MountError::mount("taking over the mount", why))?;
    let disk_cache = disk_cache::open(&request, &client, &metrics);
    if let Some(disk_cache) = disk_cache.get() {
        vfs.set_disk_cache(Arc::clone(disk_cache));
    }
    let mounted = Mounted::by(&request, state.mounted.since);
    let retries = Arc::new(EstaleRetries::take_over(
        state.walks,
        state.paused_at,
        client.wal().clone(),
    ));
    commit(&lifeline, mounted, &owner, &state.init);
    vfs.go_on().await;
    let running = take_device(
        &request,
        &client,
        &vfs,
        &retries,
        &metrics,
        inherited.device,
        state.init,
    )
    .await?;
    let pause = clock().saturating_sub(state.paused_at);
    let mountpoint = quoting::path(&request.mountpoint);
    match died {
        Some(died) => tracing::warn!(
            "the daemon of {mountpoint} {died}; this one has taken over after {pause:.1?}. What it was doing is \
             in the log above, and in its core dump if there is one (coredumpctl): please report it"
        ),
        None => tracing::info!(
            "{mountpoint} is taken over from efs-fuse {} after {pause:.1?}",
            quoting::plain(&state.version),
        ),
    }
    if let Some(why) = &failed {
        tracing::error!(
            "another program could not take over the mount: {}",
            quoting::plain(why)
        );
    }
    let served = Served {
        running: Arc::new(running),
        lifeline: Some(lifeline),
        history: History {
            since: state.mounted.since,
            pause: Some(pause),
            failed,
            died,
        },
        request,
        connector,
        client,
        vfs,
        retries,
        owner,
        metrics,
        disk_cache,
    };
    assembly::serve_to_the_end(served, ready, &shutdown).await
}

/// The take-overs, this one counted.
fn past(before: Past, died: Option<Died>) -> Past {
    match died {
        // Some may have died before they could write that they had been there.
        Some(died) => Past {
            crashes: died.crashes,
            ..before
        },
        None => Past {
            planned: before.planned + 1,
            ..before
        },
    }
}

/// From here on nobody can take the mount back: all is restored, and in the new log.
fn commit(lifeline: &Lifeline, mounted: Mounted, owner: &Owner, init: &fuse::InitValues) {
    let given = lifeline.record(mounted, owner, init).and_then(|()| {
        // With `ready`, as who dies before it serves has to be followed as well. Whether the
        // kernel sends again is known: it has done so before.
        match lifeline.has_log() {
            true => lifeline.survive(),
            false => Ok(()),
        }
    });
    if let Err(why) = given.and_then(|()| lifeline.ready()) {
        tracing::warn!(%why, "no other daemon can take over from this one");
    }
}

async fn take_device(
    request: &MountRequest,
    client: &Arc<Client>,
    vfs: &Arc<Vfs>,
    retries: &Arc<EstaleRetries>,
    metrics: &Arc<Metrics>,
    device: OwnedFd,
    init: fuse::InitValues,
) -> Result<fuse::Running, MountError> {
    let (adapter, notify) = assembly::adapter(request, client, vfs, retries, metrics)?;
    let session = assembly::session_options(request);
    let mountpoint = request.mountpoint.clone();
    let take = move || fuse::take_over(adapter, &notify, &mountpoint, &session, device, init);
    assembly::in_thread(take)
        .await
        .map_err(|why| MountError::mount("taking over the mount", why))
}
