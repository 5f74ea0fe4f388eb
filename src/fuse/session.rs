//! The mount: made, tuned, watched until it is gone, and unmade.
//!
//! fuser 0.18 must not unmount. At the end of a session it takes a dead
//! connection for a live one (`is_mounted` in its mnt/mod.rs has POLLERR the
//! wrong way round) and unmounts whatever lies at the path by then: the mount
//! below ours, or the next one. Its unmounter also gives up for good at the
//! first EBUSY. So its handle of the mount is leaked, and [`MountPlace`] unmounts.

use std::fs;
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use tokio::sync::watch;
use tokio::time::Instant;

use super::adapter::Adapter;
use super::gate::Gate;
use super::gated::Gated;
use super::inherited::{self, InitValues};
use super::interrupt::InterruptWatcher;
use super::mounting::{self, NO_SYMFOLLOW};
use super::notify::Notify;
use super::place::{MountPlace, Unmount};
use super::prober::Prober;
use super::quiesce::{NotQuiet, Quiesced, Traffic, quiesce};
use super::request_buffer;
use crate::background::Tasks;
use crate::privilege;
use crate::quoting;

/// How a file system is mounted.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// What `mount` shows as the source.
    pub device: String,
    /// `ro`.
    pub read_only: bool,
    /// `dev`: device files work. Off unless asked for.
    pub dev: bool,
    /// `suid`: setuid bits count. Off unless asked for.
    pub suid: bool,
    /// `noexec`.
    pub noexec: bool,
    /// `noatime`.
    pub noatime: bool,
    /// `nosymfollow`. For root alone: `fusermount3` does not know it.
    pub nosymfollow: bool,
    /// Words for the kernel's security module. For root alone.
    pub security: Vec<String>,
    /// The kernel checks mode bits, without asking. Wrong where the server
    /// acts as somebody else than the caller (an access point with an enforced
    /// identity).
    pub default_permissions: bool,
    /// Users other than the one who mounts may use the mount.
    pub allow_other: bool,
    /// Threads that read requests; at least 1.
    pub threads: usize,
    /// Each of them reads from a descriptor of its own. Such a mount cannot be handed over
    /// to another process ([`Running::can_be_handed_over`]).
    pub clone_fd: bool,
    /// Another process is to go on with what this one was reading when it was killed.
    pub survives: bool,
    /// Read-ahead of the kernel in KiB, if we may set it (root); `None` leaves
    /// the kernel's 128.
    pub read_ahead_kib: Option<u32>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            device: String::new(),
            read_only: false,
            dev: false,
            suid: false,
            noexec: false,
            noatime: false,
            nosymfollow: false,
            security: Vec::new(),
            default_permissions: true,
            allow_other: is_root(),
            // More than four never helped; one makes a single caller wait for
            // wake-ups.
            threads: thread::available_parallelism().map_or(2, |n| n.get().min(4)),
            clone_fd: true,
            survives: false,
            read_ahead_kib: Some(8192),
        }
    }
}

impl SessionOptions {
    fn config(&self) -> Config {
        let mut options = vec![MountOption::FSName(if is_root() {
            self.device.clone()
        } else {
            escaped(&self.device)
        })];
        // Not MountOption::Subtype: fuser keeps that from mount(2), and the
        // type would be shown as plain "fuse".
        if kernel_takes_subtype() {
            options.push(MountOption::CUSTOM("subtype=efs-fuse".into()));
        }
        let chosen = [
            (self.read_only, MountOption::RO),
            (self.dev, MountOption::Dev),
            (!self.dev, MountOption::NoDev),
            (self.suid, MountOption::Suid),
            (!self.suid, MountOption::NoSuid),
            (self.noexec, MountOption::NoExec),
            (self.noatime, MountOption::NoAtime),
            (self.default_permissions, MountOption::DefaultPermissions),
        ];
        if self.nosymfollow {
            options.push(MountOption::CUSTOM(NO_SYMFOLLOW.to_owned()));
        }
        let security = self.security.iter().cloned();
        options.extend(security.map(MountOption::CUSTOM));
        options.extend(chosen.into_iter().filter(|(on, _)| *on).map(|(_, o)| o));
        let mut config = Config::default();
        config.mount_options = options;
        config.acl = if self.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(self.threads.max(1));
        config.clone_fd = self.clone_fd && self.threads > 1;
        config
    }
}

/// A mount that is being served. Dropping it unmounts lazily, so that no way
/// out of the program leaves a dead mount behind that is not meant to.
#[derive(Debug)]
pub struct Running {
    place: MountPlace,
    prober: Prober,
    ended: watch::Receiver<Option<Result<(), Arc<io::Error>>>>,
    traffic: Traffic,
    device: OwnedFd,
    init: InitValues,
    /// Reader threads have descriptors of their own.
    clones: bool,
}

/// Mounts and serves `adapter` at `mountpoint`, which must be canonical, in threads of its
/// own. When it returns, the kernel and the adapter have agreed (FUSE_INIT) and the mount
/// answers.
///
/// # Errors
/// The mount point cannot be used, `/dev/fuse` is missing, or the mount is not
/// permitted; nothing is left mounted.
pub fn start(
    adapter: Adapter,
    notify: &Arc<Notify>,
    mountpoint: &Path,
    options: &SessionOptions,
) -> io::Result<Running> {
    let gated = Gated::new(adapter);
    let (served, init) = (Served::of(&gated, options, false), gated.init_values());
    // No thread is started within: fuser's begin with `spawn`.
    let session = privilege::mounting(|| mounted(gated, mountpoint, options.config()))?;
    let place = MountPlace::find(mountpoint.to_owned());
    let agreed = init.get().cloned();
    // Its device is closed when it fails.
    let init = agreed
        .ok_or_else(|| io::Error::other("fuser has not asked what to agree on"))
        .inspect_err(|_| place.clear())?;
    let init = InitValues {
        mount: place.device().map(str::to_owned),
        ..init
    };
    let running = served.run(session, notify, place.clone(), init);
    let running = running.inspect_err(|_| place.clear())?;
    if let Some(kib) = options.read_ahead_kib
        && is_root()
    {
        running.place.set_read_ahead(kib);
    }
    Ok(running)
}

/// Serves a mount that another process has served before, and does not any more: `device` is
/// a descriptor of it, and `init` what the first process has agreed on with the kernel
/// ([`Running::init_values`]). What was read there and not answered is asked for again, and
/// nothing of it is read before this process serves. The mount's options stay as they are,
/// its read-ahead too; of `options` the threads count and who may use the mount.
///
/// # Errors
/// The mount is gone, or the kernel cannot send again; the mount stays as it is.
pub fn take_over(
    adapter: Adapter,
    notify: &Arc<Notify>,
    mountpoint: &Path,
    options: &SessionOptions,
    device: OwnedFd,
    init: InitValues,
) -> io::Result<Running> {
    let gated = Gated::new(adapter);
    let served = Served::of(&gated, options, true);
    let session = inherited::session(gated, &device, &init, options.config())?;
    inherited::resend(&device)?;
    let place = MountPlace::of(mountpoint.to_owned(), init.mount.clone());
    served.run(session, notify, place, init)
}

/// What remains of an adapter that fuser has got.
struct Served {
    prober: Prober,
    tasks: Arc<Tasks>,
    gate: Arc<Gate>,
    watcher: Arc<InterruptWatcher>,
    clones: bool,
    /// The mount is another process's, which may yet have another successor.
    inherited: bool,
}

impl Served {
    fn of(gated: &Gated, options: &SessionOptions, inherited: bool) -> Self {
        if options.survives {
            // Before fuser's threads begin.
            request_buffer::keep_resident();
        }
        let adapter = gated.adapter();
        Self {
            inherited,
            prober: adapter.prober(),
            tasks: adapter.tasks(),
            gate: adapter.gate(),
            watcher: adapter.watcher(),
            clones: options.config().clone_fd,
        }
    }

    /// Begins to serve.
    ///
    /// # Errors
    /// There are no threads or descriptors.
    fn run(
        self,
        session: Session<Gated>,
        notify: &Arc<Notify>,
        place: MountPlace,
        init: InitValues,
    ) -> io::Result<Running> {
        let device = session.as_fd().try_clone_to_owned()?;
        notify.direct_writes_drop_pages(init.drops_pages_at_direct_writes());
        let serving = serve(session, notify, self.tasks)?;
        let (end, ended) = watch::channel(None);
        // From here on, dropping this unmounts.
        let running = Running {
            place: place.clone(),
            prober: self.prober,
            ended,
            traffic: Traffic {
                gate: self.gate,
                watcher: self.watcher,
                notify: Arc::clone(notify),
                place: place.clone(),
            },
            device,
            init,
            clones: self.clones,
        };
        let (serving, queue) = (ManuallyDrop::new(serving), Arc::clone(notify));
        let as_it_was = place.clone();
        thread::Builder::new()
            .name("fuse-session".into())
            .spawn(move || {
                let result = join(serving).map_err(Arc::new);
                queue.close();
                match &result {
                    Ok(()) => place.clear(),
                    Err(error) => {
                        tracing::error!(%error, "the FUSE session failed");
                        place.abandon();
                    }
                }
                end.send_replace(Some(result));
            })
            .inspect_err(|_| {
                notify.close();
                if self.inherited {
                    as_it_was.leave();
                }
            })?;
        Ok(running)
    }
}

/// Begins to answer the kernel, and to tell it what is old.
fn serve(
    session: Session<Gated>,
    notify: &Arc<Notify>,
    tasks: Arc<Tasks>,
) -> io::Result<BackgroundSession> {
    let device = session.as_fd().try_clone_to_owned()?;
    notify.connect(session.notifier(), device, tasks)?;
    session.spawn().inspect_err(|_| notify.close())
}

/// Mounts, and agrees with the kernel. By the descriptor of the directory where mount(2) is
/// ours to call, else by `fusermount3`.
fn mounted(adapter: Gated, mountpoint: &Path, config: Config) -> io::Result<Session<Gated>> {
    if !is_root() {
        return Session::new(adapter, mountpoint, &config);
    }
    match mounting::mount(mountpoint, &config) {
        Ok(device) => {
            let acl = config.acl;
            let session = Session::from_fd(adapter, device, acl, config);
            // Its device is closed by now.
            session.inspect_err(|_| MountPlace::find(mountpoint.to_owned()).clear())
        }
        // Root in a container, say, which may have the helper.
        Err(why) if why.raw_os_error() == Some(libc::EPERM) => {
            Session::new(adapter, mountpoint, &config)
        }
        Err(why) => Err(why),
    }
}

/// Waits for fuser's threads, and for nothing else that its handle does.
///
/// # Errors
/// Reading from the kernel failed, or a reader thread panicked.
fn join(serving: ManuallyDrop<BackgroundSession>) -> io::Result<()> {
    // SAFETY: `serving` is not used again, and never dropped: the join handle
    // has one owner.
    let threads = unsafe { std::ptr::read(&raw const serving.guard) };
    threads
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the FUSE session panicked")))
}

impl Running {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        self.place.mountpoint()
    }

    /// The kernel has let go of the mount.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits until the kernel has let go of the mount: it was unmounted, here
    /// or by anybody, and the last file in it was closed.
    ///
    /// # Errors
    /// Reading from the kernel failed; the mount is gone all the same.
    pub async fn ended(&self) -> io::Result<()> {
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            // The sender is gone and was not used: the thread has died.
            Err(_) => return Err(io::Error::other("the thread of the FUSE session died")),
        };
        match result {
            Some(Err(error)) => Err(io::Error::new(error.kind(), error)),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Sends a request through the kernel and waits until it is answered, which
    /// takes no server. Blocks, for ever if the mount does not serve: not to be
    /// called on a thread of the runtime, and by one caller at a time.
    ///
    /// # Errors
    /// The mount is gone or dead.
    pub fn probe(&self) -> io::Result<()> {
        privilege::mounting(|| self.prober.probe(self.place.mountpoint()))
    }

    /// Whether another process can take the mount over from this one.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn can_be_handed_over(&self) -> Result<(), &'static str> {
        if !self.init.has_resend() {
            return Err(
                "the kernel does not send requests again (FUSE_HAS_RESEND): Linux 6.9 or newer \
                 is needed",
            );
        }
        // Each has a list of what was read from it, which ends with it; fuser makes them
        // behind our back.
        match self.clones {
            true => Err("each reader thread has a descriptor of its own"),
            false => Ok(()),
        }
    }

    /// What FUSE_INIT has come to, for the process that takes over.
    pub fn init_values(&self) -> &InitValues {
        &self.init
    }

    /// Another descriptor of the device. The mount lives as long as there is one, whoever
    /// has it.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn device(&self) -> io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// Brings the mount to rest for a hand-over: requests wait, those under way are finished,
    /// and calls that wait for a file lock become such that have just arrived. Then `drain`
    /// has the file system do what it has put off; it is called again if something has come
    /// up meanwhile. Dropping what this returns, or this future, lets the mount go on, on the
    /// thread that does so.
    ///
    /// # Errors
    /// That has not come about by `deadline`; the mount goes on as before.
    pub async fn quiesce<D, F>(&self, deadline: Instant, drain: D) -> Result<Quiesced, NotQuiet>
    where
        D: FnMut() -> F,
        F: Future<Output = ()>,
    {
        quiesce(self.traffic.clone(), deadline, drain).await
    }

    /// Ends the mount for who uses it and leaves it there: ENOTCONN for everything, until
    /// somebody takes it away. Blocks, like [`unmount`](Self::unmount), which does
    /// nothing after this.
    pub fn leave_dead(&self) {
        self.place.leave_dead();
    }

    /// Unmounts. Blocks while the kernel does, which may ask us things: not
    /// to be called on a thread of the runtime. Success if nothing of ours is
    /// mounted there any more; [`ended`](Self::ended) tells when the kernel is
    /// through.
    ///
    /// # Errors
    /// EBUSY: something is in use. After [`Unmount::Force`] the mount is dead
    /// all the same, and goes when the session has ended.
    /// EPERM: neither root nor, by way of `fusermount3`, the owner.
    pub fn unmount(&self, how: Unmount) -> io::Result<()> {
        if self.has_ended() || self.place.is_left() {
            return Ok(());
        }
        self.place.unmount(how)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(Unmount::Lazy) {
            tracing::warn!(%error, mountpoint = %quoting::path(self.mountpoint()), "not unmounted");
        }
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// A source as `fusermount3` reads it: it splits options at commas.
fn escaped(source: &str) -> String {
    source.replace('\\', "\\\\").replace(',', "\\,")
}

/// mount(2) knows `subtype=` for fuse since Linux 5.4, and refuses what it
/// does not know.
fn kernel_takes_subtype() -> bool {
    kernel_release() >= (5, 4)
}

/// The first Linux that sends requests again (FUSE_HAS_RESEND).
pub const RESENDS_FROM: (u32, u32) = (6, 9);

/// Major and minor of the kernel's release; (0, 0) if it cannot be read.
pub fn kernel_release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease");
    text.map_or((0, 0), |text| release(&text))
}

/// Major and minor of a kernel release such as `6.1.0-18-amd64`.
fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(release("6.18.44"), (6, 18));
        assert_eq!(release("5.10.0-18-amd64\n"), (5, 10));
        assert_eq!(release("4.14"), (4, 14));
        assert_eq!(release("strange"), (0, 0));
    }

    #[test]
    fn devices_and_setuid_are_off_unless_asked_for() {
        let given = SessionOptions::default().config().mount_options;
        assert!(given.contains(&MountOption::NoDev) && given.contains(&MountOption::NoSuid));
        let asked = SessionOptions {
            dev: true,
            suid: true,
            read_only: true,
            ..SessionOptions::default()
        };
        let given = asked.config().mount_options;
        assert!(given.contains(&MountOption::Dev) && given.contains(&MountOption::Suid));
        assert!(given.contains(&MountOption::RO));
        assert!(!given.contains(&MountOption::NoDev) && !given.contains(&MountOption::NoSuid));
    }

    #[test]
    fn one_thread_needs_no_cloned_descriptor_and_none_is_one() {
        let config = |threads| {
            SessionOptions {
                threads,
                ..SessionOptions::default()
            }
            .config()
        };
        assert_eq!((config(0).n_threads, config(0).clone_fd), (Some(1), false));
        assert_eq!((config(2).n_threads, config(2).clone_fd), (Some(2), true));
    }

    #[test]
    fn a_comma_in_the_device_does_not_end_the_option() {
        assert_eq!(escaped("fs-1:/a,b\\c"), "fs-1:/a\\,b\\\\c");
    }
}
