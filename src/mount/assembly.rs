//! Puts the layers together for one mount, and takes them apart in the
//! opposite order.
//!
//! ```text
//! connect ─► session ─► root ─► first READDIR ─► FUSE ─► registry, control ─► ready
//!                                    ... until unmounted or told to end ...
//! unmount ─► everything written and closed ─► DESTROY_SESSION ─► gone
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::daemon::Ready;
use super::error::{Asked, MountError};
use super::launch::MountRequest;
use super::options::{CacheTimes, LocksOf, MountOptions, NameCache, Patience, Unanswered};
use super::owner::Owner;
use super::registry::{Entry, Registry};
use super::signals::Shutdown;
use super::watchdog;
use crate::background::Died;
use crate::efs::{Problem, ServerConnector};
use crate::fuse::{self, Adapter, KernelOptions, Notify, Running, SessionOptions, Soft, Unmount};
use crate::nfs::proto::ops::Op;
use crate::nfs::proto::status::Status;
use crate::nfs::{Client, ClientConfig, ConnectError, NfsError};
use crate::privilege::{self, syscalls};
use crate::quoting;
use crate::rpc::auth::Credential;
use crate::rpc::{Channel, RpcError, Tolerance};
use crate::telemetry::{Metrics, control, serve};
use crate::vfs::Timeouts;
use crate::vfs::types::{FileKind, MissingNames};
use crate::vfs::{Vfs, VfsConfig};

/// How long writing and closing may take once the kernel has let go. Nothing is
/// lost that a program has closed or synced: it was waited for then.
const SETTLE: Duration = Duration::from_secs(5);
/// How long the server may take over our farewell.
const FAREWELL: Duration = Duration::from_secs(2);
/// After SIGTERM, how long programs may go on using the mount's open files.
const GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take over the end of a mount that is dead.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// A progress line while waiting for the server.
const PROGRESS: Duration = Duration::from_secs(10);
/// Between two attempts of `wait=`.
const RETRY: Duration = Duration::from_secs(1);
/// What the kernel reads ahead of a sequential reader.
const KERNEL_READ_AHEAD_KIB: u32 = 8 << 10;
/// The same by us, where the kernel cannot be told.
const OWN_READ_AHEAD: u64 = 8 << 20;

/// Mounts, serves until the mount ends, and cleans up.
///
/// # Errors
/// The mount did not come about, or ended in a way the user should know of.
pub async fn run(
    request: MountRequest,
    metrics: Arc<Metrics>,
    ready: Ready,
) -> Result<(), MountError> {
    let shutdown = Shutdown::on_signals(&metrics.tasks)
        .map_err(|why| MountError::system("installing signal handlers", why))?;
    let connector = connector(&request)?;
    let device = format!("{} {}", request.device.spec, request.options.server.port);
    let owner = Owner::of_mount(&Registry::of_user(), &device, &request.mountpoint)
        .map_err(unidentified)?;
    let (client, sent) = tokio::select! {
        connected = connect_patiently(&request, &owner, &connector, &metrics) => connected?,
        () = shutdown.asked() => return Err(MountError::interrupted()),
        died = metrics.tasks.ended() => return Err(dead(&died)),
    };
    let outcome = serve(
        &request, &connector, &client, sent, &metrics, ready, &shutdown,
    )
    .await;
    // There may be nobody left to send it; and the server must not let go of what
    // programs hold before the kernel has told them that the mount is dead.
    if !metrics.tasks.has_ended() && client.shut_down(FAREWELL).await {
        owner.retire();
    }
    outcome
}

fn unidentified(why: io::Error) -> MountError {
    MountError::system("making a client identity", why)
}

/// A task has died without which nothing goes on.
fn dead(died: &Died) -> MountError {
    MountError::mount("serving the mount", died)
        .remedy("mounting again; report it with what was done: this is a bug")
}

/// Ends what programs wait for, and leaves the mount where it is: everything in it
/// answers ENOTCONN until it is mounted again. Below it there is a directory that
/// programs must not take for the volume meanwhile.
async fn leave_dead(running: &Arc<Running>) {
    let running = Arc::clone(running);
    let leave = tokio::task::spawn_blocking(move || running.leave_dead());
    let _ = tokio::time::timeout(LAST_BREATH, leave).await;
}

async fn serve(
    request: &MountRequest,
    connector: &Arc<ServerConnector>,
    client: &Arc<Client>,
    sent: Instant,
    metrics: &Arc<Metrics>,
    ready: Ready,
    shutdown: &Shutdown,
) -> Result<(), MountError> {
    let options = &request.options;
    let root = is_root();
    let config = VfsConfig {
        timeouts: timeouts(options),
        write_window: usize::try_from(options.write_window).unwrap_or(usize::MAX),
        read_ahead: if root { 0 } else { OWN_READ_AHEAD },
        max_names: match options.name_cache {
            NameCache::None => 0,
            NameCache::Complete | NameCache::All | NameCache::Positive => options.cache_names,
        },
        missing_names: match options.name_cache {
            NameCache::Complete => MissingNames::AllOthers,
            NameCache::All => MissingNames::AskedFor,
            NameCache::Positive | NameCache::None => MissingNames::None,
        },
        max_inodes: options.cache_inodes,
        asks_who_searches: !options.default_permissions,
    };
    let vfs = Vfs::new(Arc::clone(client), config, sent, Arc::clone(metrics));
    let notify = Notify::new();
    vfs.set_kernel(Arc::clone(&notify) as _);
    vfs.revalidate_open_files();
    let adapter = Adapter::new(
        Arc::clone(&vfs),
        tokio::runtime::Handle::current(),
        Arc::clone(metrics),
        KernelOptions {
            posix_locks: options.locks.posix == LocksOf::Server,
            flock_locks: options.locks.flock == LocksOf::Server,
        },
        soft(options, client),
    )
    .map_err(|why| MountError::system("starting a thread", why))?;
    let session = session_options(request, root);
    let running = {
        let (mountpoint, notify) = (request.mountpoint.clone(), Arc::clone(&notify));
        tokio::task::spawn_blocking(move || fuse::start(adapter, &notify, &mountpoint, &session))
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
            .map_err(|why| MountError::mounting(&request.mountpoint, &why))?
    };
    let running = Arc::new(running);
    watchdog::start(&running, &metrics.tasks);
    let published = publish(request, connector, client, &vfs, metrics);
    if let Err(why) = &published {
        tracing::warn!("stats and status will not find this mount: {why}");
    }
    if let Err(why) = syscalls::settle() {
        tracing::warn!(%why, "mounting is not given up");
    }
    #[cfg(debug_assertions)]
    syscalls::tell();
    ready.ready();
    tracing::info!(
        "{} is mounted on {}",
        quoting::name(&request.device.spec),
        quoting::path(&request.mountpoint)
    );
    let ended = tokio::select! {
        ended = running.ended() => ended,
        () = shutdown.asked() => leave(&running).await,
        died = metrics.tasks.ended() => {
            leave_dead(&running).await;
            return Err(dead(&died));
        }
    };
    if let Err(why) = &ended {
        tracing::error!("the FUSE session ended: {why}");
    }
    if tokio::time::timeout(SETTLE, vfs.settled()).await.is_err() {
        tracing::warn!("the server did not take everything that was open");
    }
    tracing::info!("{} is unmounted", quoting::path(&request.mountpoint));
    ended.map_err(|why| MountError::mount("serving the mount", why))
}

/// Unmounts because we were told to end: at once if nothing is in use, else
/// out of sight at once and for good when the last user is gone or the grace
/// time over.
async fn leave(running: &Arc<Running>) -> io::Result<()> {
    let unmount = |how| {
        let running = Arc::clone(running);
        tokio::task::spawn_blocking(move || running.unmount(how))
    };
    let busy = |result: Result<io::Result<()>, tokio::task::JoinError>| {
        result.is_ok_and(|result| result.is_err())
    };
    if busy(unmount(Unmount::Clean).await) {
        tracing::warn!(
            "the mount is in use: it is unmounted lazily, and goes when its last user ends"
        );
        if busy(unmount(Unmount::Lazy).await) {
            tracing::warn!("the mount could not be unmounted lazily: end what uses it (fuser -m)");
        }
    }
    if let Ok(ended) = tokio::time::timeout(GRACE, running.ended()).await {
        return ended;
    }
    tracing::warn!("files of the mount are still in use: their processes get ENOTCONN");
    // Not waited for: the end of this process closes the connection.
    drop(unmount(Unmount::Force));
    Ok(())
}

/// What makes the connections of a mount.
fn connector(request: &MountRequest) -> Result<Arc<ServerConnector>, MountError> {
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
    let (client, _) = connect_patiently(request, &owner, &connector, metrics).await?;
    Ok(client)
}

/// Connects as often and as long as the options say.
async fn connect_patiently(
    request: &MountRequest,
    owner: &Owner,
    connector: &Arc<ServerConnector>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Client>, Instant), MountError> {
    let patience = request.options.patience;
    let begun = Instant::now();
    let mut told = begun;
    loop {
        let rest = patience
            .limit()
            .map(|limit| limit.saturating_sub(begun.elapsed()));
        // With `wait=` no attempt takes so long that nothing is told.
        let time = match patience {
            Patience::GiveUpAfter(_) => rest.unwrap_or(PROGRESS),
            Patience::WaitFor(_) | Patience::WaitForever => {
                rest.map_or(PROGRESS, |rest| rest.min(PROGRESS))
            }
        };
        let attempt = connect(request, owner, connector, metrics);
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
        let over = patience
            .limit()
            .is_some_and(|limit| begun.elapsed() + RETRY >= limit);
        if !patience.retries() || over || !is_passing(&error) {
            return Err(error);
        }
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

/// Waiting may help: the server is not up yet, or the network.
fn is_passing(error: &MountError) -> bool {
    error.status == super::error::MOUNT
}

async fn connect(
    request: &MountRequest,
    owner: &Owner,
    connector: &Arc<ServerConnector>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Client>, Instant), MountError> {
    let config = ClientConfig {
        identity: owner.identity().map_err(unidentified)?,
        slots: request.options.max_requests,
        rsize: request.options.rsize,
        wsize: request.options.wsize,
        tolerance: Tolerance::of(request.options.timeo, request.options.retrans),
        connections: request.options.connections(request.device.is_efs()),
        suspended: crate::nfs::suspended,
    };
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
                return refused(&peer, &error);
            }
            error
        }
        Unwelcome::Root(error) => error,
    };
    if is_denial(&error) {
        let (device, settings) = connector.asked();
        let asked = Asked {
            efs: device.is_efs(),
            tls: connector.uses_tls(),
            iam: settings.iam,
            access_point: settings.access_point.as_deref(),
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
        _ => MountError::mount("mounting", error),
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

fn refused(peer: &str, error: &NfsError) -> MountError {
    match error {
        NfsError::Rpc(RpcError::NotSpoken(_)) => MountError::no_minor_version(peer),
        NfsError::Compound(Status::MINOR_VERS_MISMATCH)
        | NfsError::Status(_, Status::MINOR_VERS_MISMATCH | Status::OP_ILLEGAL)
        | NfsError::Status(Op::ExchangeId, Status::NOTSUPP) => MountError::no_minor_version(peer),
        NfsError::Garbled(..) => MountError::not_nfs(peer),
        NfsError::Status(_, Status::ACCESS | Status::PERM | Status::WRONGSEC)
        | NfsError::Rpc(RpcError::AuthRefused(_)) => MountError::mount(
            "mounting",
            format_args!("{peer} refuses this client: {error}"),
        )
        .remedy("check the server's list of allowed clients"),
        error => MountError::mount("mounting", format_args!("{peer}: {error}")),
    }
}

/// When calls are given up, if they are.
fn soft(options: &MountOptions, client: &Arc<Client>) -> Option<Soft> {
    let errno = match options.unanswered {
        Unanswered::Hard => return None,
        Unanswered::Soft => libc::EIO,
        Unanswered::SoftErr => libc::ETIMEDOUT,
    };
    let client = Arc::downgrade(client);
    Some(Soft {
        limit: options.soft_limit(),
        errno,
        unanswered: Box::new(move || {
            let client = client.upgrade();
            client.map_or(Duration::ZERO, |client| client.channel().longest_wait())
        }),
    })
}

fn timeouts(options: &MountOptions) -> Timeouts {
    let CacheTimes {
        reg_min,
        reg_max,
        dir_min,
        dir_max,
    } = options.cache_times;
    Timeouts {
        reg_min,
        reg_max,
        dir_min,
        dir_max,
    }
}

fn session_options(request: &MountRequest, root: bool) -> SessionOptions {
    let options = &request.options;
    SessionOptions {
        device: request.device.spec.clone(),
        read_only: options.read_only,
        dev: options.dev && root,
        suid: options.suid && root,
        noexec: !options.exec,
        noatime: options.atime == super::options::Atime::Never,
        default_permissions: options.default_permissions,
        allow_other: options.allow_other.unwrap_or(root),
        threads: options.fuse_threads,
        clone_fd: options.fuse_threads > 1,
        read_ahead_kib: Some(KERNEL_READ_AHEAD_KIB),
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Makes the mount known to `stats` and `status`, as long as what is returned
/// lives.
fn publish(
    request: &MountRequest,
    connector: &Arc<ServerConnector>,
    client: &Arc<Client>,
    vfs: &Arc<Vfs>,
    metrics: &Arc<Metrics>,
) -> io::Result<impl Drop + use<>> {
    struct Published {
        _control: control::ControlServer,
        _metrics: Option<serve::Endpoint>,
        _registration: super::registry::Registration,
    }
    impl Drop for Published {
        fn drop(&mut self) {}
    }
    let peer = client.channel().peer();
    let mut entry = Entry::own(&request.mountpoint, &request.device.spec, &peer)?;
    entry.options.clone_from(&request.written);
    let since = entry.since;
    let registration = Registry::of_user().register(&entry)?;
    let (client, vfs, connector) = (Arc::clone(client), Arc::clone(vfs), Arc::clone(connector));
    let (device, mountpoint) = (request.device.spec.clone(), request.mountpoint.clone());
    let counted = Arc::clone(metrics);
    let status = move || {
        let mut status = status(&client, &vfs, &counted, &device, &mountpoint, &peer, since);
        (status["tls"], status["iam"]) = security(&connector);
        status
    };
    let status: control::StatusFn = Arc::new(status);
    let endpoint = request.options.metrics.as_ref();
    let endpoint =
        endpoint.and_then(|address| serve_metrics(address, Arc::clone(metrics), &status));
    let control = control::serve(registration.socket(), Arc::clone(metrics), status)?;
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
    let registry = Registry::of_user();
    let is_ours = |path: &Path, socket: &_| registry.has_claimed(path, socket);
    match privilege::binding(|| serve::bind(address, is_ours)) {
        Ok(bound) => {
            if let Some((path, socket)) = bound.socket()
                && let Err(why) = registry.claim(path, socket)
            {
                tracing::warn!(
                    "should this daemon be killed, {} is in the way of the next one: {why}",
                    quoting::path(path)
                );
            }
            let endpoint = bound.serve(metrics, Arc::clone(status));
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

/// What `efs-fuse status` shows of TLS and of who we are.
fn security(connector: &ServerConnector) -> (Value, Value) {
    let tls = connector.agreed().map(|agreed| {
        let shown = connector.identity();
        json!({
            "version": agreed.version,
            "cipher": agreed.cipher,
            "certificates_made": shown.as_ref().map(|shown| shown.certificates),
            "certificate_made_at": shown.map(|shown| crate::telemetry::log::utc(shown.made)),
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
    json!({
        "mountpoint": mountpoint.display().to_string(),
        "device": device,
        "server": server,
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
        "caches": stats["cache"],
        "write_window": { "bytes": window, "limit": limit },
        "tasks": metrics.tasks.snapshot(),
        "last_error": stats["last_error"],
    })
}
