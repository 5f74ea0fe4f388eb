//! The way of a mount up to the first READDIR: a connection, a session, the directory;
//! as often as the options say. What stands in the way becomes a [`MountError`] here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::{AccessRequest, MountError, Retry};
use super::launch::MountRequest;
use super::options::MountWait;
use super::owner::Owner;
use crate::efs::source_port::is_reserved;
use crate::efs::{Problem, ServerConnector};
use crate::nfs::proto::ops::Op;
use crate::nfs::proto::status::Status;
use crate::nfs::{Client, ClientConfig, ConnectError, NfsError};
use crate::quoting;
use crate::rpc::auth::Credential;
use crate::rpc::{RpcError, Tolerance};
use crate::telemetry::Metrics;
use crate::vfs::types::FileKind;
use crate::wal::Wal;

/// How long the server may take over our farewell.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);
/// A progress line while waiting for the server.
const PROGRESS: Duration = Duration::from_secs(10);
/// Between two attempts of `wait=`.
const RETRY: Duration = Duration::from_secs(1);

pub(super) fn unidentified(why: io::Error) -> MountError {
    MountError::system("making a client identity", why)
}

/// What makes the connections of a mount.
pub(super) fn connector(request: &MountRequest) -> Result<Arc<ServerConnector>, MountError> {
    let (device, options) = (&request.device, &request.options);
    let connector = ServerConnector::new(device.clone(), options.server.clone());
    if options.connections(device.is_efs()).most == 1 {
        return Ok(Arc::new(connector));
    }
    let connector = connector.several().map_err(unidentified)?;
    Ok(Arc::new(connector))
}

/// Connects as a mount does, and mounts nothing: the directory of the device is
/// what the client takes for its root. The caller must shut the client down.
///
/// # Errors
/// As for a mount.
pub async fn connect_only(
    request: &MountRequest,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Client>, MountError> {
    let connector = connector(request)?;
    let owner = Owner::passing().map_err(unidentified)?;
    let (client, _) = connect_patiently(request, &owner, &connector, metrics, &Wal::off()).await?;
    Ok(client)
}

/// Connects as often and as long as the options say.
pub(super) async fn connect_patiently(
    request: &MountRequest,
    owner: &Owner,
    connector: &Arc<ServerConnector>,
    metrics: &Arc<Metrics>,
    wal: &Wal,
) -> Result<(Arc<Client>, Instant), MountError> {
    let wait = request.options.mount_wait;
    let begun = Instant::now();
    let mut told = begun;
    loop {
        let rest = wait
            .limit()
            .map(|limit| limit.saturating_sub(begun.elapsed()));
        // With `wait=` no attempt takes so long that nothing is told.
        let time = match wait {
            MountWait::GiveUpAfter(_) => rest.unwrap_or(PROGRESS),
            MountWait::WaitFor(_) | MountWait::WaitForever => {
                rest.map_or(PROGRESS, |rest| rest.min(PROGRESS))
            }
        };
        let attempt = connect(request, owner, connector, metrics, wal);
        let attempt = tokio::time::timeout(time, attempt).await;
        let peer = crate::rpc::transport::Connector::peer(&**connector);
        // In the foreground the log has said it on stderr already.
        for warning in connector.take_warnings() {
            if !request.foreground {
                eprintln!("efs-fuse: warning: {}", quoting::plain(&warning));
            }
        }
        let error = match attempt {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => error,
            Err(_) => MountError::silent(&peer, begun.elapsed()),
        };
        let over = wait
            .limit()
            .is_some_and(|limit| begun.elapsed() + RETRY >= limit);
        let Retry::MayHelp(why) = error.retry else {
            return Err(error);
        };
        if !wait.retries() || over {
            return Err(error);
        }
        tracing::debug!("mounting is tried again: {why}");
        if told == begun || told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!(
                "efs-fuse: waiting for {}: {} ({} s so far)",
                quoting::plain(&peer),
                quoting::plain(&error.message),
                begun.elapsed().as_secs()
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// How to be the client of a mount.
pub(super) fn client_config(
    request: &MountRequest,
    owner: &Owner,
    wal: &Wal,
) -> Result<ClientConfig, MountError> {
    Ok(ClientConfig {
        identity: owner.identity().map_err(unidentified)?,
        slots: request.options.max_requests,
        rsize: request.options.rsize,
        wsize: request.options.wsize,
        tolerance: Tolerance::of(request.options.timeo, request.options.retrans),
        connections: request.options.connections(request.device.is_efs()),
        suspended: crate::nfs::suspended,
        wal: wal.clone(),
    })
}

async fn connect(
    request: &MountRequest,
    owner: &Owner,
    connector: &Arc<ServerConnector>,
    metrics: &Arc<Metrics>,
    wal: &Wal,
) -> Result<(Arc<Client>, Instant), MountError> {
    let config = client_config(request, owner, wal)?;
    let client = Client::connect(Arc::clone(connector) as _, config, Arc::clone(metrics)).await;
    let sent = Instant::now();
    let error = match client {
        Ok(client) => match find_root(&request.device.path, &client).await {
            Ok(()) => return Ok((client, sent)),
            Err(error) => {
                client.shut_down(FAREWELL).await;
                error
            }
        },
        Err(error) => Unwelcome::Client(error),
    };
    Err(explain(error, &request.device.path, connector).await)
}

/// Why a server that can be reached is no use.
#[derive(Debug)]
pub enum Unwelcome {
    /// No session.
    Client(ConnectError),
    /// The directory is not ours to see.
    Root(NfsError),
    /// It is no directory.
    NoDirectory,
}

/// The words for it. Where the server denies access, this machine's clock is
/// compared first.
pub async fn explain(error: Unwelcome, path: &str, connector: &ServerConnector) -> MountError {
    let peer = crate::rpc::transport::Connector::peer(connector);
    let error = match error {
        Unwelcome::Client(ConnectError::Io(why)) => return MountError::connecting(&peer, &why),
        Unwelcome::Client(ConnectError::NotNfs { garbled, cause, .. }) => {
            return match cause.as_deref().and_then(Problem::of) {
                Some(problem) => problem.clone().into(),
                None if connector.uses_tls() && !garbled => MountError::hung_up(&peer),
                None => MountError::not_nfs(&peer),
            };
        }
        Unwelcome::NoDirectory => return MountError::not_a_directory(path),
        Unwelcome::Client(ConnectError::Nfs(error)) => {
            if !is_denial(&error) || !connector.asked().0.is_efs() {
                return refused(&peer, connector.port(), &error);
            }
            error
        }
        Unwelcome::Root(error) => error,
    };
    if is_denial(&error) {
        let (device, settings) = connector.asked();
        let asked = AccessRequest {
            efs: device.is_efs(),
            tls: connector.uses_tls(),
            iam: settings.iam,
            access_point: settings.access_point.as_deref(),
            port: connector.port(),
            skew: match settings.iam {
                true => connector.clock_skew().await,
                false => None,
            },
        };
        return MountError::denied(path, &asked);
    }
    match error.status() {
        Some(Status::NOENT) => MountError::no_directory(path),
        Some(Status::NOTDIR | Status::SYMLINK) => MountError::not_a_directory(path),
        _ => MountError::mount("mounting", error).with_retry(Retry::HALF_UP),
    }
}

fn is_denial(error: &NfsError) -> bool {
    matches!(
        error.status(),
        Some(Status::ACCESS | Status::PERM | Status::WRONGSEC)
    )
}

/// Finds the directory to mount and reads it, which is the promise of a mount
/// that succeeds.
///
/// # Errors
/// It cannot be read, or is no directory.
pub async fn find_root(path: &str, client: &Arc<Client>) -> Result<(), Unwelcome> {
    let cred = Credential::of_process();
    let found = client.find_root(&cred, path.as_bytes()).await;
    found.map_err(Unwelcome::Root)?;
    let fs = client.fs();
    if crate::vfs::kind_of(fs.root_attrs.kind) != FileKind::Directory {
        return Err(Unwelcome::NoDirectory);
    }
    let read = client.read_dir(&cred, &fs.root, 0, [0; 8], u32::MAX).await;
    read.map_err(Unwelcome::Root)?;
    Ok(())
}

fn refused(peer: &str, port: Option<u16>, error: &NfsError) -> MountError {
    match error {
        NfsError::Rpc(RpcError::NotSpoken(_)) => MountError::no_minor_version(peer),
        NfsError::Compound(Status::MINOR_VERS_MISMATCH)
        | NfsError::Status(_, Status::MINOR_VERS_MISMATCH | Status::OP_ILLEGAL)
        | NfsError::Status(Op::ExchangeId, Status::NOTSUPP) => MountError::no_minor_version(peer),
        NfsError::Garbled(..) => MountError::not_nfs(peer),
        NfsError::Status(_, Status::ACCESS | Status::PERM | Status::WRONGSEC)
        | NfsError::Rpc(RpcError::AuthRefused(_)) => {
            let why = format!("{peer} refuses this client: {error}");
            let refused = MountError::mount("mounting", why).with_retry(Retry::NOT_SET_UP_YET);
            match port.filter(|port| !is_reserved(*port)) {
                Some(port) => refused.remedy(format_args!(
                    "check the server's list of allowed clients; or as root and without noresvport, if it \
                     demands a port below 1024 (this came from {port})"
                )),
                None => refused.remedy("check the server's list of allowed clients"),
            }
        }
        error => MountError::mount("mounting", format_args!("{peer}: {error}"))
            .with_retry(Retry::HALF_UP),
    }
}
