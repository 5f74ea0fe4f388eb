//! From a checked request to a running mount: fork, log, runtime, assembly.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;

use super::assembly;
use super::checks::{self, CheckedMountpoint};
use super::daemon::{self, Announcer, Side};
use super::disk_cache;
use super::error::{MOUNT, MountError};
use super::handover::HandedOver;
use super::handover::take::{self, Circumstances};
use super::harden;
use super::keeper::{self, Inherited, KeeperLink};
use super::memory;
use super::options::MountOptions;
use super::origins::Origin;
use super::registry::Registry;
use crate::efs::{Device, Settings};
use crate::fuse;
use crate::privilege::syscalls::{self, Programs};
use crate::privilege::{self, Reduced};
use crate::quoting;
use crate::telemetry::serve::Address;
use crate::telemetry::{Metrics, log};

/// Everything the assembly has to know.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The server and the directory; a file system id has its host name.
    pub device: Device,
    /// The canonical mount point.
    pub mountpoint: PathBuf,
    /// The options, complete.
    pub options: MountOptions,
    /// The options as they were written, for a later remount to compare.
    pub written: Vec<String>,
    /// Where those of them come from that were not written for this mount.
    pub origins: Vec<Origin>,
    /// Stay in the foreground (`--foreground`).
    pub foreground: bool,
    /// Mount in this namespace (`--mount-namespace`, `-N`).
    pub mount_namespace: Option<PathBuf>,
    /// What is to be said about it.
    pub remarks: Remarks,
}

/// What is said about a mount when it comes about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remarks {
    /// For the user, each a line of its own.
    pub warnings: Vec<String>,
    /// For the log alone.
    pub notes: Vec<String>,
}

/// Checks this machine and mounts. In the foreground it returns when the mount
/// has ended; otherwise when it is usable, leaving a daemon behind. `warn`
/// prints a warning for the user.
///
/// # Errors
/// The one line that the user sees.
pub fn mount(mut request: MountRequest, warn: impl Fn(&str)) -> Result<(), MountError> {
    // Before there is any thread. The process that was started stays, as the keeper.
    let keeper = match request.foreground {
        true => keeper_of(&request, &warn),
        false => None,
    };
    enter(request.mount_namespace.as_deref())?;
    let place = privilege::mounting(|| checks::prepare(&request.mountpoint, &Registry::of_user()))?;
    let missing = checks::missing(&request.options);
    let remarks = request.remarks.warnings.iter().chain(&missing);
    remarks
        .chain(&place.warnings)
        .for_each(|warning| warn(warning));
    checks::fuse_device()?;
    let CheckedMountpoint {
        mountpoint, lock, ..
    } = place;
    request.mountpoint = mountpoint;
    disk_cache::prepare(&request)?;
    if request.foreground {
        let how = How::Mount(keeper);
        return serve(request, how, &Announcer::foreground(lock));
    }
    match daemon::fork(lock).map_err(|why| MountError::system("starting the daemon", why))? {
        Side::Parent(waiter) => waiter.wait(),
        Side::Child(announcer) => {
            let how = How::Mount(keeper_of(&request, &warn));
            let outcome = serve(request, how, &announcer);
            // Not by returning: the runtime's blocking threads may hang in a
            // resolver, and the command's own cleanup is the parent's.
            process::exit(outcome.map_or_else(|error| report(&announcer, error), |()| 0))
        }
    }
}

/// What [`mount`] checks on this machine, without doing anything. Returns what it would warn
/// of.
///
/// # Errors
/// The one line that the user sees.
pub fn check(request: &MountRequest) -> Result<Vec<String>, MountError> {
    enter(request.mount_namespace.as_deref())?;
    let found = privilege::mounting(|| checks::look(&request.mountpoint, &Registry::of_user()))?;
    checks::fuse_device()?;
    let missing = checks::missing(&request.options);
    Ok([request.remarks.warnings.clone(), missing, found].concat())
}

/// Whether this kernel lets another daemon take over a mount (`-o takeover`), in words.
///
/// # Errors
/// It does not.
pub fn takeover() -> Result<String, String> {
    let (major, minor) = fuse::kernel_release();
    if (major, minor) >= fuse::RESENDS_FROM {
        return Ok(format!(
            "Linux {major}.{minor}: another daemon can take over (-o takeover)"
        ));
    }
    let (from, since) = fuse::RESENDS_FROM;
    Err(format!(
        "Linux {major}.{minor}: no other daemon can take over a mount (-o takeover), that takes Linux {from}.{since}"
    ))
}

/// Mounts are made in this mount namespace from here on, and looked for there.
///
/// # Errors
/// It is none, or not for us.
pub fn enter(namespace: Option<&Path>) -> Result<(), MountError> {
    let Some(namespace) = namespace else {
        return Ok(());
    };
    privilege::keep(Some(namespace)).map_err(|why| {
        let what = format!("entering the mount namespace {}", quoting::path(namespace));
        MountError::system(what, why).remedy("a path such as /proc/1/ns/mnt, as root")
    })
}

/// How a daemon comes to its mount.
enum How {
    /// It makes it.
    Mount(Option<KeeperLink>),
    /// It takes over from another, or once more from itself, as a program could not.
    TakeOver(Box<(Inherited, HandedOver)>, Circumstances),
}

/// A keeper for this process, which is its child from here on, if one is wanted.
fn keeper_of(request: &MountRequest, warn: &impl Fn(&str)) -> Option<KeeperLink> {
    if !request.options.takeover.has_keeper() {
        return None;
    }
    let attached = keeper::attach(&request.mountpoint, request.foreground);
    attached
        .inspect_err(|why| warn(&format!("no other daemon can take over: no keeper: {why}")))
        .ok()
}

/// Takes over a mount from a daemon that has ended, and serves it until it ends. The mount is
/// as `request` says, which was made of what that daemon has left.
///
/// # Errors
/// It cannot be taken over; the keeper was told why.
pub fn take_over(
    request: MountRequest,
    inherited: Inherited,
    state: HandedOver,
    why: Circumstances,
) -> Result<(), MountError> {
    if let Some(namespace) = &request.mount_namespace {
        privilege::keep(Some(namespace))
            .map_err(|why| MountError::system(format!("entering {}", namespace.display()), why))?;
    }
    let announcer = Announcer::taken_over(request.foreground);
    let how = How::TakeOver(Box::new((inherited, state)), why);
    serve(request, how, &announcer)
}

/// Passes an error on to the parent or, if that has gone its way, to the log.
fn report(announcer: &Announcer, error: MountError) -> i32 {
    let status = i32::from(error.status);
    if let Some(unheard) = announcer.failed(error) {
        tracing::error!("{unheard}");
    }
    // What is still buffered for stderr would be lost by exit.
    let _ = std::io::stderr().flush();
    status
}

/// What must be done before a process with one thread connects: no core dumps
/// where there will be keys, and the network namespace of `netns=`.
///
/// # Errors
/// The kernel refuses.
pub fn confine(device: &Device, server: &Settings) -> Result<(), MountError> {
    if server.uses_tls(device) {
        harden::no_core_dumps()
            .map_err(|why| MountError::system("switching core dumps off", why))?;
    }
    match &server.netns {
        Some(namespace) => harden::enter_network(namespace).map_err(|why| {
            let what = format!(
                "entering the network namespace {}",
                quoting::path(namespace)
            );
            MountError::system(what, why).remedy("a path such as /run/netns/NAME, as root")
        }),
        None => Ok(()),
    }
}

fn serve(request: MountRequest, how: How, announcer: &Announcer) -> Result<(), MountError> {
    memory::tune();
    let destination =
        log::Destination::choose(request.foreground, request.options.log_file.as_deref());
    log::init(&destination, request.options.debug).map_err(|why| {
        let error = MountError::system("starting the log", why);
        match &request.options.log_file {
            Some(file) => error.remedy(format_args!("another file than {}", quoting::path(file))),
            None => error.remedy("-o log=FILE"),
        }
    })?;
    request
        .remarks
        .notes
        .iter()
        .for_each(|note| tracing::info!("{note}"));
    confine(&request.device, &request.options.server)?;
    // Before the first thread, which all others would inherit from.
    give_up_privileges(&request);
    announcer
        .watch_parent()
        .map_err(|why| MountError::system("starting a thread", why))?;
    let metrics = Metrics::new();
    if let Some(threshold) = request.options.slow_op {
        metrics.slow.set(threshold);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("efs-fuse")
        .enable_all()
        .build()
        .map_err(|why| MountError::system("starting the runtime", why))?;
    let outcome = runtime.block_on(async {
        // A panic in the assembly is a bug, but not a reason to leave the
        // parent without an answer.
        let ready = announcer.ready();
        let task = match how {
            How::Mount(keeper) => tokio::spawn(assembly::run(request, keeper, metrics, ready)),
            How::TakeOver(left, why) => {
                let (inherited, state) = *left;
                let taken = take::run(request, inherited, state, why, metrics, ready);
                tokio::spawn(taken)
            }
        };
        task.await.unwrap_or_else(|_| {
            Err(MountError::new(
                MOUNT,
                "mounting",
                "an internal error, which is a bug",
            ))
        })
    });
    runtime.shutdown_background();
    outcome
}

/// Gives up what a daemon with these options never needs. Where the kernel does not
/// take it, the mount goes on: it was mounted so before there was a way to.
fn give_up_privileges(request: &MountRequest) {
    let options = &request.options;
    let low =
        |address: &Address| matches!(address, Address::Tcp(at) if (1..1024).contains(&at.port()));
    let needs = privilege::Needs {
        low_port: options.metrics.as_ref().is_some_and(low)
            || options.server.from_reserved_port(&request.device),
    };
    // That of the command has stayed with the command.
    if let Err(why) = privilege::keep(request.mount_namespace.as_deref()) {
        return tracing::warn!(%why, "running with more privileges than needed");
    }
    let may_mount = match privilege::reduce(needs) {
        Ok(Reduced::Nothing) => return,
        Ok(Reduced::Capabilities { may_mount }) => may_mount,
        Err(why) => return tracing::warn!(%why, "running with more privileges than needed"),
    };
    // A profile may name a program that knows the credentials, and only a profile.
    // Who may not mount has fusermount3 do it.
    let programs = match options.server.may_read_profiles() || !may_mount {
        true => Programs::Some,
        false => Programs::None,
    };
    if let Err(why) = syscalls::begin(programs) {
        tracing::warn!(%why, "running without a filter of system calls");
    }
}
