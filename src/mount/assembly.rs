//! Puts the layers together for one mount, and takes them apart in the
//! opposite order.
//!
//! ```text
//! connect ─► session ─► root ─► first READDIR ─► FUSE ─► registry, control ─► ready
//!                                    ... until unmounted or told to end ...
//! unmount ─► everything written and closed ─► DESTROY_SESSION ─► gone
//! ```

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::connecting::{FAREWELL, connect_patiently, connector, unidentified};
use super::daemon::Ready;
use super::disk_cache::MountCache;
use super::error::MountError;
use super::handover::leave::leave_to_another;
use super::handover::record::Past;
use super::handover::{DieOfPanic, Lifeline, Mounted, die, log_of};
use super::keeper::KeeperLink;
use super::launch::MountRequest;
use super::options::{CacheTimes, LocksOf, MountOptions, NameCache, TakeOver, Unanswered};
use super::owner::Owner;
use super::publish::publish;
use super::registry::Registry;
use super::signals::Shutdown;
use super::{checks, disk_cache, rest, upgrade, watchdog};
use crate::background::{Died, Tasks};
use crate::efs::ServerConnector;
use crate::fuse::{
    self, Adapter, EstaleRetries, KernelOptions, Notify, Running, SessionOptions, Soft, Unmount,
};
use crate::nfs::Client;
use crate::privilege::syscalls;
use crate::quoting;
use crate::telemetry::Metrics;
use crate::vfs::Timeouts;
use crate::vfs::types::MissingNames;
use crate::vfs::{Vfs, VfsConfig};
use crate::wal::Wal;

/// How long writing and closing may take once the kernel has let go. Nothing is
/// lost that a program has closed or synced: it was waited for then.
const SETTLE: Duration = Duration::from_secs(5);
/// After SIGTERM, how long programs may go on using the mount's open files.
const GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take over the end of a mount that is dead.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// What the kernel reads ahead of a sequential reader.
const KERNEL_READ_AHEAD_KIB: u32 = 8 << 10;
/// The same by us, where the kernel cannot be told.
const OWN_READ_AHEAD: u64 = 8 << 20;

/// A mount that is being served, and what it is made of.
pub(super) struct Served {
    pub(super) request: MountRequest,
    pub(super) connector: Arc<ServerConnector>,
    pub(super) client: Arc<Client>,
    pub(super) vfs: Arc<Vfs>,
    /// The calls that walk their path once more.
    pub(super) retries: Arc<EstaleRetries>,
    pub(super) running: Arc<Running>,
    pub(super) owner: Owner,
    pub(super) metrics: Arc<Metrics>,
    /// The cache on this host's disk, if there is one.
    pub(super) disk_cache: MountCache,
    /// What outlives this daemon, if anything does.
    pub(super) lifeline: Option<Lifeline>,
    /// How the mount came to this daemon.
    pub(super) history: History,
}

/// What came before this daemon.
#[derive(Debug, Clone)]
pub(super) struct History {
    /// When it was mounted, in seconds since 1970.
    pub(super) since: u64,
    /// How long requests were kept waiting when this daemon took over.
    pub(super) pause: Option<Duration>,
    /// Why another program could not take over, and this one did once more.
    pub(super) failed: Option<String>,
    /// How the daemon before has died, if that is why this one took over.
    pub(super) died: Option<super::keeper::Died>,
}

impl History {
    /// Of a mount that was made just now.
    fn begins() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            since: now.unwrap_or_default().as_secs(),
            pause: None,
            failed: None,
            died: None,
        }
    }
}

/// Mounts, serves until the mount ends, and cleans up.
///
/// # Errors
/// The mount did not come about, or ended in a way the user should know of.
pub async fn run(
    request: MountRequest,
    keeper: Option<KeeperLink>,
    metrics: Arc<Metrics>,
    ready: Ready,
) -> Result<(), MountError> {
    let shutdown = Shutdown::on_signals(&metrics.tasks)
        .map_err(|why| MountError::system("installing signal handlers", why))?;
    let connector = connector(&request)?;
    let device = format!("{} {}", request.device.spec, request.options.server.port);
    let owner = Owner::of_mount(&Registry::of_user(), &device, &request.mountpoint)
        .map_err(unidentified)?;
    let wal = match keeper {
        Some(_) => log_of(&request).map_err(no_log)?,
        None => Wal::off(),
    };
    let (client, sent) = tokio::select! {
        connected = connect_patiently(&request, &owner, &connector, &metrics, &wal) => connected?,
        () = shutdown.asked() => return Err(MountError::interrupted()),
        died = metrics.tasks.ended() => return Err(dead(&died)),
    };
    let config = vfs_config(&request.options);
    let vfs = Vfs::new(Arc::clone(&client), config, sent, Arc::clone(&metrics));
    let disk_cache = disk_cache::open(&request, &client, &metrics);
    if let Some(disk_cache) = disk_cache.get() {
        vfs.set_disk_cache(Arc::clone(disk_cache));
    }
    let retries = Arc::new(EstaleRetries::new(wal.clone()));
    let running = match start(&request, &client, &vfs, &retries, &metrics).await {
        Ok(running) => running,
        Err(error) => {
            say_farewell(&client, &metrics, owner).await;
            return Err(error);
        }
    };
    let history = History::begins();
    let lifeline = keeper.map(|link| Lifeline::new(link, wal, 0, Past::default()));
    let mounted = Mounted::by(&request, history.since);
    let served = Served {
        lifeline: lifeline.and_then(|lifeline| held(lifeline, mounted, &running, &owner)),
        running: Arc::new(running),
        history,
        request,
        connector,
        client,
        vfs,
        retries,
        owner,
        metrics,
        disk_cache,
    };
    serve_to_the_end(served, ready, &shutdown).await
}

/// Serves until the mount ends, and tells the server that this client does.
///
/// # Errors
/// It ended in a way the user should know of.
pub(super) async fn serve_to_the_end(
    served: Served,
    ready: Ready,
    shutdown: &Shutdown,
) -> Result<(), MountError> {
    let outcome = serve(&served, ready, shutdown).await;
    let Served {
        running,
        client,
        metrics,
        owner,
        disk_cache,
        ..
    } = served;
    drop(running);
    say_farewell(&client, &metrics, owner).await;
    if let MountCache::On(disk_cache) = disk_cache {
        // Its death leaves what nobody can read, until that is the oldest.
        let _ = tokio::task::spawn_blocking(move || disk_cache.end()).await;
    }
    outcome
}

async fn say_farewell(client: &Client, metrics: &Metrics, owner: Owner) {
    // There may be nobody left to send it; and the server must not let go of what
    // programs hold before the kernel has told them that the mount is dead.
    if !metrics.tasks.has_ended() && client.shut_down(FAREWELL).await {
        owner.retire();
    }
}

/// What outlives this daemon, in the keeper's hands; `None` if it cannot be there.
fn held(
    lifeline: Lifeline,
    mounted: Mounted,
    running: &Running,
    owner: &Owner,
) -> Option<Lifeline> {
    let held = || {
        lifeline.record(mounted, owner, running.init_values())?;
        lifeline.hold(running.device()?.as_fd(), owner.lock_file())?;
        lifeline.ready()
    };
    let held: io::Result<()> = held();
    if let Err(why) = running.can_be_handed_over() {
        tracing::warn!(
            why,
            "no other daemon can take over from this one: unmount before an upgrade"
        );
        eprintln!("efs-fuse: warning: takeover: no other daemon can take over: {why}");
    }
    held.inspect_err(|why| tracing::warn!(%why, "no other daemon can take over from this one"))
        .ok()
        .map(|()| lifeline)
}

/// There is no memory for what another daemon would have to know.
pub(super) fn no_log(why: io::Error) -> MountError {
    MountError::system("making the log of the mount", why).remedy("-o takeover=upgrade")
}

/// A task has died without which nothing goes on.
pub(super) fn dead(died: &Died) -> MountError {
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

/// Serves until the mount ends.
///
/// # Errors
/// It ended in a way the user should know of.
async fn serve(served: &Served, ready: Ready, shutdown: &Shutdown) -> Result<(), MountError> {
    let Served {
        request,
        running,
        metrics,
        ..
    } = served;
    let keeper = served.lifeline.as_ref().and_then(Lifeline::keeper);
    watchdog::start(running, &metrics.tasks, keeper.map(|keeper| keeper.pid));
    let (hear, mut requests) = upgrade::line();
    let published = publish(served, hear);
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
    let lifeline = served.lifeline.as_ref();
    let wal = lifeline.map_or_else(Wal::off, |lifeline| lifeline.wal().clone());
    rest::start(running, metrics, wal);
    // From here on, and not before: whoever waits for the mount has been told that it is there.
    let survives = lifeline.is_some_and(|lifeline| survive(lifeline, running, &metrics.tasks));
    let guard = survives.then_some(DieOfPanic);
    let goodbye = || {
        if let Some(lifeline) = lifeline {
            lifeline.goodbye();
        }
    };
    let ended = loop {
        tokio::select! {
            ended = running.ended() => match ended {
                Err(why) if survives => {
                    tracing::error!("the FUSE session ended: {why}. Another daemon takes over");
                    die();
                }
                ended => {
                    goodbye();
                    break ended;
                }
            },
            () = shutdown.asked() => {
                goodbye();
                break leave(running).await;
            }
            // Not where another one takes over: the process has ended before it was told.
            died = metrics.tasks.ended() => {
                goodbye();
                leave_dead(running).await;
                return Err(dead(&died));
            }
            // It does not return if another daemon takes over.
            asked = requests.next() => leave_to_another(served, asked).await,
        }
    };
    drop(guard);
    if let Err(why) = &ended {
        tracing::error!("the FUSE session ended: {why}");
    }
    if tokio::time::timeout(SETTLE, served.vfs.settled())
        .await
        .is_err()
    {
        tracing::warn!("the server did not take everything that was open");
    }
    tracing::info!("{} is unmounted", quoting::path(&request.mountpoint));
    ended.map_err(|why| MountError::mount("serving the mount", why))
}

/// From here on the end of this daemon without a goodbye is followed by another. Whether it is.
fn survive(lifeline: &Lifeline, running: &Arc<Running>, tasks: &Arc<Tasks>) -> bool {
    if !lifeline.survives(running) {
        return false;
    }
    lifeline.die_with(tasks);
    watchdog::beat(running, tasks, lifeline.link().clone());
    match lifeline.survive() {
        Ok(()) => true,
        Err(why) => {
            tracing::warn!(%why, "no other daemon would follow this one");
            false
        }
    }
}

/// Mounts: from here on the kernel's requests are answered.
async fn start(
    request: &MountRequest,
    client: &Arc<Client>,
    vfs: &Arc<Vfs>,
    retries: &Arc<EstaleRetries>,
    metrics: &Arc<Metrics>,
) -> Result<Running, MountError> {
    let (adapter, notify) = adapter(request, client, vfs, retries, metrics)?;
    let session = session_options(request);
    let mountpoint = request.mountpoint.clone();
    in_thread(move || fuse::start(adapter, &notify, &mountpoint, &session))
        .await
        .map_err(|why| MountError::mounting(&request.mountpoint, &why))
}

/// Waits for work that blocks.
///
/// # Errors
/// Those of the work, or it has panicked.
pub(super) async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// What is put on top of the vfs, and what tells the kernel.
pub(super) fn adapter(
    request: &MountRequest,
    client: &Arc<Client>,
    vfs: &Arc<Vfs>,
    retries: &Arc<EstaleRetries>,
    metrics: &Arc<Metrics>,
) -> Result<(Adapter, Arc<Notify>), MountError> {
    let options = &request.options;
    let notify = Notify::new();
    vfs.set_kernel(Arc::clone(&notify) as _);
    vfs.revalidate_open_files();
    let adapter = Adapter::new(
        Arc::clone(vfs),
        Arc::clone(retries),
        tokio::runtime::Handle::current(),
        Arc::clone(metrics),
        KernelOptions {
            posix_locks: options.locks.posix == LocksOf::Server,
            flock_locks: options.locks.flock == LocksOf::Server,
        },
        soft(options, client),
    )
    .map_err(|why| MountError::system("starting a thread", why))?;
    Ok((adapter, notify))
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

/// What the vfs is to do, by the options.
pub(super) fn vfs_config(options: &MountOptions) -> VfsConfig {
    VfsConfig {
        timeouts: timeouts(options),
        write_window: usize::try_from(options.write_window).unwrap_or(usize::MAX),
        read_ahead: if is_root() { 0 } else { OWN_READ_AHEAD },
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
        writeback: options.writeback.then_some(options.writeback_delay),
        close_to_open: options.close_to_open,
    }
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

pub(super) fn session_options(request: &MountRequest) -> SessionOptions {
    let (options, root) = (&request.options, is_root());
    SessionOptions {
        device: request.device.spec.clone(),
        read_only: options.read_only,
        dev: options.dev && root,
        suid: options.suid && root,
        noexec: !options.exec,
        noatime: options.atime == super::options::Atime::Never,
        nosymfollow: options.nosymfollow && root,
        security: match root && checks::has_selinux() {
            true => options.security.clone(),
            false => Vec::new(),
        },
        default_permissions: options.default_permissions,
        allow_other: options.allow_other.unwrap_or(root),
        threads: options.fuse_threads,
        // Another daemon inherits one descriptor; requests that were read from others would
        // end with this one.
        clone_fd: options.fuse_threads > 1 && !options.takeover.has_keeper(),
        survives: options.takeover == TakeOver::Always,
        read_ahead_kib: Some(KERNEL_READ_AHEAD_KIB),
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}
