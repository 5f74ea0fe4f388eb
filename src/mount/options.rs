//! What the mount options mean, after all names and defaults are resolved.
//!
//! How they are written is the business of the command line
//! (`cli::options`), which fills in this struct. Everything below it reads
//! values here and never an option's name.

use std::path::PathBuf;
use std::time::Duration;

use crate::disk_cache::{Amount, DiskCacheConfig};
use crate::efs::Settings;
use crate::rpc::Connections;
use crate::telemetry::serve::Address;

/// The largest READ and WRITE asked for, and the largest that FUSE carries in
/// one request. EFS grants as much.
pub const MAX_IO: u32 = 1 << 20;
/// The smallest: a page.
pub const MIN_IO: u32 = 4 << 10;

/// `nconnect=` and `max_connections=` go up to here, as in `nfs(5)`.
pub const MAX_CONNECTIONS: usize = 16;
/// What EFS allows a client unless it says otherwise.
const EFS_CONNECTIONS: usize = 5;

/// How long mounting goes on against a server that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountWait {
    /// One attempt, given up after this time (`mount_timeout=`).
    GiveUpAfter(Duration),
    /// Attempt after attempt, with progress lines, for this time (`wait=SECONDS`).
    WaitFor(Duration),
    /// The same without end (`wait=forever`).
    WaitForever,
}

impl MountWait {
    /// The time after which mounting is given up; `None` for never.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::GiveUpAfter(time) | Self::WaitFor(time) => Some(time),
            Self::WaitForever => None,
        }
    }

    /// Whether a failed attempt is repeated.
    pub fn retries(self) -> bool {
        !matches!(self, Self::GiveUpAfter(_))
    }
}

/// How long attributes may be believed without asking, as in `nfs(5)`: an
/// inode that was seen to change lately is believed for the minimum, one that
/// has been quiet for up to the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheTimes {
    /// Files, shortest.
    pub reg_min: Duration,
    /// Files, longest. Never less than `reg_min`.
    pub reg_max: Duration,
    /// Directories, shortest.
    pub dir_min: Duration,
    /// Directories, longest. Never less than `dir_min`.
    pub dir_max: Duration,
}

impl CacheTimes {
    /// The defaults of `nfs(5)`.
    pub const DEFAULT: Self = Self {
        reg_min: Duration::from_secs(3),
        reg_max: Duration::from_secs(60),
        dir_min: Duration::from_secs(30),
        dir_max: Duration::from_secs(60),
    };
    /// Nothing is believed without asking (`noac`).
    pub const NONE: Self = Self {
        reg_min: Duration::ZERO,
        reg_max: Duration::ZERO,
        dir_min: Duration::ZERO,
        dir_max: Duration::ZERO,
    };
}

/// Which names may be answered from the cache (`lookupcache=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameCache {
    /// As `All`; and a directory whose names are all known says by itself that any
    /// other is missing, although another host may have made it since.
    Complete,
    /// Names that exist and names that do not.
    All,
    /// Only names that exist.
    Positive,
    /// None: every lookup asks the server.
    None,
}

/// Who keeps file locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocksOf {
    /// The server: they exclude processes of all hosts.
    Server,
    /// The kernel: they exclude processes of this host.
    Host,
}

/// `nolock`, `local_lock=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locks {
    /// `flock(2)`.
    pub flock: LocksOf,
    /// `fcntl(2)`, POSIX and OFD.
    pub posix: LocksOf,
}

impl From<LocksOf> for Locks {
    fn from(of: LocksOf) -> Self {
        let (flock, posix) = (of, of);
        Self { flock, posix }
    }
}

/// What becomes of a call that the server does not answer (`nfs(5)`). Either way
/// the request itself goes on until it is answered, so that its session slot stays
/// in order; what it leaves behind for a caller that is gone is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// `hard`: it waits until the server answers or the caller is killed.
    Hard,
    /// `soft`: it fails with EIO after `timeo` × `retrans`.
    Soft,
    /// `softerr`: the same, with ETIMEDOUT.
    SoftErr,
}

/// Access times, as far as the kernel is concerned: the server keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atime {
    /// Nothing was said.
    Default,
    /// `noatime`
    Never,
    /// `relatime`
    Relative,
    /// `atime`, `strictatime`
    Strict,
}

/// All options of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`: nothing can be changed through this mount.
    pub read_only: bool,
    /// How to find the server and to talk to it: `port=`, `tls`, `iam`, …
    pub server: Settings,
    /// `mount_timeout=`, `wait=`.
    pub mount_wait: MountWait,
    /// `rsize=`: most bytes of a READ. [`MIN_IO`]`..=`[`MAX_IO`], multiple of 1024.
    pub rsize: u32,
    /// `wsize=`: most bytes of a WRITE, same limits.
    pub wsize: u32,
    /// `acregmin=` ... `actimeo=`; all zero with `noac`.
    pub cache_times: CacheTimes,
    /// `lookupcache=`; `None` with `noac`.
    pub name_cache: NameCache,
    /// `cto`: each open asks the server. Without (`nocto`), one for reading asks nothing while
    /// what is known of the file may be believed.
    pub close_to_open: bool,
    /// `cache=`: where data are kept on this host's disk, absolute.
    pub disk_cache: Option<PathBuf>,
    /// `cache_size=`: what they may take there, of all mounts with that directory.
    pub disk_cache_size: Amount,
    /// `cache_min_free=`: what of that disk stays free.
    pub disk_cache_min_free: Amount,
    /// `cache_key=memory`: they are encrypted with a key that dies with the daemon.
    pub disk_cache_secret: bool,
    /// `cache_names=`: names remembered, found and missing ones.
    pub cache_names: u64,
    /// `cache_inodes=`: files that the kernel may hold before it is asked to
    /// forget some.
    pub cache_inodes: usize,
    /// `nolock`, `local_lock=`.
    pub locks: Locks,
    /// `write_window=`: bytes that may be on their way to the server after
    /// their `write(2)` has returned. 0 (also by `sync`): every write waits.
    pub write_window: u64,
    /// `fuse_threads=`: threads that read requests from the kernel, at least 1.
    pub fuse_threads: usize,
    /// `max_requests=`: session slots to ask the server for, at least 1.
    pub max_requests: u32,
    /// `nconnect=`: so many connections from the beginning.
    pub nconnect: Option<usize>,
    /// `max_connections=`: up to so many, as there is much to carry. `None`: as the
    /// server is known to gain from it.
    pub max_connections: Option<usize>,
    /// `hard`, `soft`, `softerr`.
    pub unanswered: Unanswered,
    /// `timeo=`: how long a call may take before its connection is suspected.
    pub timeo: Duration,
    /// `retrans=`: in so many `timeo` the server must have answered.
    pub retrans: u32,
    /// `debug`: log at debug level.
    pub debug: bool,
    /// `log=FILE`, absolute: the daemon changes its directory.
    pub log_file: Option<PathBuf>,
    /// `slow_op_ms=`: an operation that takes this long is logged.
    pub slow_op: Option<Duration>,
    /// `metrics=`: where to serve them.
    pub metrics: Option<Address>,
    /// `remount`: change what is mounted already.
    pub remount: bool,
    /// `dev`: device nodes work. As with every mount by root, unless `nodev`.
    pub dev: bool,
    /// `suid`: set-user-id bits work. As with every mount by root, unless `nosuid`.
    pub suid: bool,
    /// `exec`: programs can be run. Unless `noexec`.
    pub exec: bool,
    /// `atime`, `noatime`, `relatime`.
    pub atime: Atime,
    /// `nosymfollow`: symbolic links are not followed.
    pub nosymfollow: bool,
    /// `context=` and the like, as they are written: for the kernel's security module.
    pub security: Vec<String>,
    /// `allow_other`: users other than the mounting one have access. `None`:
    /// yes for root, else no (`user_allow_other` of `fuse.conf` is needed).
    pub allow_other: Option<bool>,
    /// `default_permissions`: the kernel checks mode bits itself and asks for
    /// no ACCESS.
    pub default_permissions: bool,
    /// `writeback`: this host's changes are answered before the server knows of them.
    pub writeback: bool,
    /// `writeback_delay`: what is answered so stays back for this long at most.
    pub writeback_delay: Duration,
    /// `takeover`: a keeper holds the mount, so that another daemon can take over.
    pub takeover: TakeOver,
}

/// From which daemons another one takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeOver {
    /// From none: there is no keeper.
    Never,
    /// From one that is asked to leave.
    Upgrade,
    /// From one that has died as well.
    Always,
}

impl TakeOver {
    /// There is a keeper.
    pub fn has_keeper(self) -> bool {
        self != Self::Never
    }
}

impl MountOptions {
    /// What a soft mount waits for an answer: `timeo` × `retrans`, once at least.
    pub fn soft_limit(&self) -> Duration {
        self.timeo.saturating_mul(self.retrans.max(1))
    }

    /// Whether a mount with these options serves its users as one with `other` does: what
    /// differs is at most how it was waited for, what is logged, and what EFS is told of
    /// the client.
    pub fn serves_like(&self, other: &Self) -> bool {
        let same = |of: &Self| Self {
            server: Settings {
                ask_api: true,
                client_source: None,
                renew: Settings::default().renew,
                ..of.server.clone()
            },
            mount_wait: MountWait::WaitForever,
            debug: false,
            log_file: None,
            slow_op: None,
            remount: false,
            ..of.clone()
        };
        same(self) == same(other)
    }

    /// The cache on this host's disk, if there is to be one.
    pub fn disk_cache_config(&self) -> Option<DiskCacheConfig> {
        Some(DiskCacheConfig {
            dir: self.disk_cache.clone()?,
            size: self.disk_cache_size,
            min_free: self.disk_cache_min_free,
            secret: self.disk_cache_secret,
        })
    }

    /// How many connections a mount of EFS, or of another server, may have. EFS has
    /// a limit for each.
    pub fn connections(&self, efs: bool) -> Connections {
        let least = self.nconnect.unwrap_or(1);
        let most = match (self.max_connections, self.nconnect) {
            (Some(most), _) | (None, Some(most)) => most,
            (None, None) if efs => EFS_CONNECTIONS,
            (None, None) => 1,
        };
        Connections {
            least: least.min(most),
            most,
        }
    }
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            server: Settings::default(),
            mount_wait: MountWait::GiveUpAfter(Duration::from_secs(30)),
            rsize: MAX_IO,
            wsize: MAX_IO,
            cache_times: CacheTimes::DEFAULT,
            name_cache: NameCache::All,
            close_to_open: true,
            disk_cache: None,
            disk_cache_size: Amount::Percent(10),
            disk_cache_min_free: Amount::Percent(5),
            disk_cache_secret: false,
            cache_names: 100_000,
            cache_inodes: 100_000,
            locks: LocksOf::Server.into(),
            write_window: 64 << 20,
            fuse_threads: default_fuse_threads(),
            max_requests: 64,
            writeback: false,
            writeback_delay: Duration::from_secs(1),
            nconnect: None,
            max_connections: None,
            unanswered: Unanswered::Hard,
            timeo: Duration::from_secs(60),
            retrans: 2,
            debug: false,
            log_file: None,
            slow_op: None,
            metrics: None,
            remount: false,
            dev: true,
            suid: true,
            exec: true,
            atime: Atime::Default,
            nosymfollow: false,
            security: Vec::new(),
            allow_other: None,
            default_permissions: true,
            takeover: TakeOver::Never,
        }
    }
}

/// More than four threads never helped; one alone makes every request wait for
/// the wake-up of the thread that just went to sleep.
fn default_fuse_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().min(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_is_the_default_but_for_efs() {
        let connections = |nconnect, max_connections, efs| {
            let options = MountOptions {
                nconnect,
                max_connections,
                ..MountOptions::default()
            };
            let Connections { least, most } = options.connections(efs);
            (least, most)
        };
        assert_eq!(connections(None, None, false), (1, 1));
        assert_eq!(connections(None, None, true), (1, 5));
        assert_eq!(connections(Some(4), None, false), (4, 4));
        assert_eq!(connections(Some(1), None, true), (1, 1));
        assert_eq!(connections(None, Some(8), false), (1, 8));
        assert_eq!(connections(Some(2), Some(6), true), (2, 6));
        assert_eq!(connections(Some(6), Some(2), true), (2, 2));
    }

    #[test]
    fn who_is_served_does_not_notice_how_it_was_waited_for() {
        let options = MountOptions::default();
        let mut other = MountOptions {
            mount_wait: MountWait::WaitForever,
            log_file: Some("/log".into()),
            ..options.clone()
        };
        other.server.client_source = Some("k8s".to_owned());
        assert!(options.serves_like(&other));
        other.server.iam = true;
        assert!(!options.serves_like(&other));
        let read_only = MountOptions {
            read_only: true,
            ..options.clone()
        };
        assert!(!options.serves_like(&read_only));
    }

    #[test]
    fn the_defaults_are_those_that_the_manual_states() {
        let options = MountOptions::default();
        assert_eq!(options.mount_wait.limit(), Some(Duration::from_secs(30)));
        assert!(!options.mount_wait.retries());
        assert_eq!(options.cache_times.reg_min, Duration::from_secs(3));
        assert_eq!(options.cache_times.dir_max, Duration::from_secs(60));
        assert_eq!(options.write_window, 67_108_864);
        assert_eq!(
            (options.cache_names, options.cache_inodes),
            (100_000, 100_000)
        );
        assert!((1..=4).contains(&options.fuse_threads));
        assert_eq!(options.max_requests, 64);
        assert_eq!((options.rsize, options.wsize), (1_048_576, 1_048_576));
    }
}
