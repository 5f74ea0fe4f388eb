//! The daemon that comes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::{HandedOver, Lifeline, clock};
use crate::fuse;
use crate::mount::Ready;
use crate::mount::assembly::{self, History, Served};
use crate::mount::connecting::{client_config, connector, unidentified};
use crate::mount::error::MountError;
use crate::mount::keeper::Inherited;
use crate::mount::launch::MountRequest;
use crate::mount::owner::Owner;
use crate::mount::signals::Shutdown;
use crate::nfs::Client;
use crate::quoting;
use crate::telemetry::Metrics;
use crate::vfs::Vfs;

/// How long the server may take before this daemon takes the mount all the same: what the
/// server does not answer now it would not answer to the former daemon either.
const SERVER: Duration = Duration::from_secs(10);

/// Takes over the mount and serves it until it ends, or until another daemon takes over.
/// `failed` says why another program could not.
///
/// # Errors
/// It cannot be taken over, or it has ended in a way the user should know of.
pub async fn run(
    request: MountRequest,
    inherited: Inherited,
    state: HandedOver,
    failed: Option<String>,
    metrics: Arc<Metrics>,
    ready: Ready,
) -> Result<(), MountError> {
    let shutdown = Shutdown::on_signals(&metrics.tasks)
        .map_err(|why| MountError::system("installing signal handlers", why))?;
    let connector = connector(&request)?;
    let owner = Owner::take_over(state.owner, inherited.owner).map_err(unidentified)?;
    let config = client_config(&request, &owner)?;
    let generation = state.generation + 1;
    let lifeline = Lifeline::taken(inherited.link, inherited.state, generation)
        .map_err(|why| MountError::system("asking the keeper", why))?;
    let client = Client::take_over(
        Arc::clone(&connector) as _,
        config,
        Arc::clone(&metrics),
        state.client,
    );
    tokio::pin!(client);
    let (client, taken) = tokio::select! {
        client = &mut client => client.map_err(|why| MountError::mount("taking over the mount", why))?,
        () = tokio::time::sleep(SERVER) => {
            // Nobody else would do better.
            commit(&lifeline);
            client.await.map_err(|why| MountError::mount("taking over the mount", why))?
        }
    };
    let config = assembly::vfs_config(&request.options);
    let vfs = Vfs::take_over(
        Arc::clone(&client),
        config,
        Arc::clone(&metrics),
        state.vfs,
        taken,
    )
    .map_err(|why| MountError::mount("taking over the mount", why))?;
    commit(&lifeline);
    let running = take_device(
        &request,
        &client,
        &vfs,
        &metrics,
        inherited.device,
        state.init,
    )
    .await?;
    let pause = clock().saturating_sub(state.paused_at);
    tracing::info!(
        "{} is taken over from efs-fuse {} after {pause:.1?}",
        quoting::path(&request.mountpoint),
        quoting::plain(&state.version),
    );
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
        },
        request,
        connector,
        client,
        vfs,
        owner,
        metrics,
    };
    assembly::serve_to_the_end(served, ready, &shutdown).await
}

/// From here on nobody can take the mount back.
fn commit(lifeline: &Lifeline) {
    if let Err(why) = lifeline.ready() {
        tracing::warn!(%why, "no other daemon can take over from this one");
    }
}

async fn take_device(
    request: &MountRequest,
    client: &Arc<Client>,
    vfs: &Arc<Vfs>,
    metrics: &Arc<Metrics>,
    device: OwnedFd,
    init: fuse::InitValues,
) -> Result<fuse::Running, MountError> {
    let (adapter, notify) = assembly::adapter(request, client, vfs, metrics)?;
    let session = assembly::session_options(request);
    let mountpoint = request.mountpoint.clone();
    let take = move || fuse::take_over(adapter, &notify, &mountpoint, &session, device, init);
    assembly::in_thread(take)
        .await
        .map_err(|why| MountError::mount("taking over the mount", why))
}
