//! `efs-fuse mount`, `mount.efs-fuse` and `mount.efs`.

use std::path::PathBuf;

use super::arguments::{Helper, Mount};
use super::defaults;
use super::exit::{self, Failure};
use super::option_list::{self, OptionError, Typed};
use super::option_origins::{self, Source};
use super::{efs_utils_conf, mount_efs};
use crate::efs::Device;
use crate::mount::again::Standing;
use crate::mount::launch::{self, Remarks};
use crate::mount::options::Atime;
use crate::mount::origins::Origin;
use crate::mount::remount::{Flags, Remount};
use crate::mount::{MountOptions, MountRequest, daemon};
use crate::quoting;

/// What an option comes from that the helper of this name adds.
const MOUNT_EFS: &str = "mount.efs";

/// What both ways of calling come down to.
#[derive(Debug)]
pub(super) struct MountCommand {
    device: String,
    mountpoint: PathBuf,
    options: Vec<String>,
    sloppy: bool,
    foreground: bool,
    mount_namespace: Option<PathBuf>,
    /// Stop before anything is changed.
    fake: bool,
    verbose: bool,
    /// Called in the place of amazon-efs-utils' helper.
    as_mount_efs: bool,
}

impl From<Mount> for MountCommand {
    fn from(mount: Mount) -> Self {
        Self {
            device: mount.device,
            mountpoint: mount.mountpoint,
            options: mount.options,
            sloppy: mount.sloppy,
            foreground: mount.foreground,
            mount_namespace: mount.mount_namespace,
            fake: false,
            verbose: false,
            as_mount_efs: false,
        }
    }
}

impl MountCommand {
    /// As `mount(8)` calls a helper; `as_mount_efs`: that of amazon-efs-utils.
    pub(super) fn of_helper(helper: Helper, as_mount_efs: bool) -> Self {
        Self {
            device: helper.device,
            mountpoint: helper.mountpoint,
            options: helper.options,
            sloppy: helper.sloppy,
            foreground: false,
            mount_namespace: helper.namespace.map(namespace),
            fake: helper.fake,
            verbose: helper.verbose,
            as_mount_efs,
        }
    }
}

pub(super) fn run(asked: &MountCommand) -> Result<(), Failure> {
    if !asked.foreground {
        daemon::close_inherited();
    }
    let Wanted {
        options,
        typed,
        origins,
        device,
        remarks,
    } = match wanted(asked)? {
        Asked::Mount(wanted) => *wanted,
        Asked::Remount(options, typed) => return remount(asked, &options, &typed),
    };
    let spec = device.to_string();
    let request = MountRequest {
        device,
        mountpoint: asked.mountpoint.clone(),
        options,
        written: typed.iter().map(Typed::written).collect(),
        origins,
        foreground: asked.foreground,
        mount_namespace: asked.mount_namespace.clone(),
        remarks,
    };
    if asked.as_mount_efs && again(&request, &typed)? {
        return say(asked, &spec, "is already mounted");
    }
    if asked.fake {
        let warnings = launch::check(&request)?;
        warnings.iter().for_each(|warning| exit::warn(warning));
    } else {
        launch::mount(request, exit::warn)?;
    }
    match (asked.verbose, asked.fake) {
        (false, _) => Ok(()),
        (true, true) => say(asked, &spec, "would be mounted"),
        (true, false) => say(asked, &spec, "mounted"),
    }
}

/// What a command line asks for.
enum Asked {
    Mount(Box<Wanted>),
    Remount(Box<MountOptions>, Vec<Typed>),
}

struct Wanted {
    options: MountOptions,
    typed: Vec<Typed>,
    origins: Vec<Origin>,
    device: Device,
    remarks: Remarks,
}

/// Reads the options and the device.
fn wanted(asked: &MountCommand) -> Result<Asked, Failure> {
    let lists = defaults::before(&asked.options)?;
    let (of_all, own) = lists.split_at(lists.len() - asked.options.len());
    let sources: [Source<'_>; 2] = [(Some(defaults::PATH), of_all), (None, own)];
    let remarks = remarks_of(of_all);
    let (options, typed) = read_lists(&lists, asked.sloppy)?;
    if options.remount {
        return Ok(Asked::Remount(Box::new(options), typed));
    }
    if !asked.as_mount_efs {
        let device = find_device(&asked.device, &options)?;
        return Ok(Asked::Mount(Box::new(Wanted {
            options,
            typed,
            origins: option_origins::of(&sources),
            device,
            remarks,
        })));
    }
    let written = mount_efs::with_slash(&asked.device);
    let device = parse_device(&written)?;
    let mut added = mount_efs::added(&device, &lists, &options)?;
    added.remarks.notes.extend(remarks.notes);
    let by_name: [Source<'_>; 2] = [
        (Some(MOUNT_EFS), &added.options),
        (Some(efs_utils_conf::PATH), &added.of_conf),
    ];
    let origins = option_origins::of(&[by_name, sources].concat());
    let lists = [added.options, added.of_conf, lists].concat();
    // What is unknown in it was said above.
    let read = option_list::read(&lists, asked.sloppy).map_err(wrong_options)?;
    let options = option_list::mean(&read.typed).map_err(wrong_options)?;
    check_fit(&device, &options)?;
    Ok(Asked::Mount(Box::new(Wanted {
        options,
        typed: read.typed,
        origins,
        device,
        remarks: added.remarks,
    })))
}

/// What the log is told of the options that nobody has written for this mount.
fn remarks_of(added: &[String]) -> Remarks {
    let mut remarks = Remarks::default();
    if !added.is_empty() {
        let note = format!("options of {}: {}", defaults::PATH, added.join(","));
        remarks.notes.push(note);
    }
    remarks
}

/// Whether the same is mounted there already, and lives.
///
/// # Errors
/// What is there differs.
fn again(request: &MountRequest, typed: &[Typed]) -> Result<bool, Failure> {
    launch::enter(request.mount_namespace.as_deref())?;
    let Some(standing) = Standing::at(&request.mountpoint) else {
        return Ok(false);
    };
    // Another file system's: for that there is an error with a remedy.
    if standing.device != request.device.spec {
        return Ok(false);
    }
    let lists: Vec<_> = standing
        .options
        .iter()
        .map(|one| option_list::quoted(one))
        .collect();
    let there = option_list::read(&lists, true).unwrap_or_default().typed;
    let mut meant = option_list::mean(&there).unwrap_or_default();
    meant.read_only = standing.read_only;
    if meant.serves_like(&request.options) {
        return Ok(true);
    }
    let what = format!("mounting on {}", quoting::path(&request.mountpoint));
    let others = |all: &[Typed], but: &[Typed]| {
        let known: Vec<_> = but.iter().map(Typed::written).collect();
        let others = all.iter().filter(|one| one.matters());
        let others = others
            .map(Typed::written)
            .filter(|one| !known.contains(one));
        let others: Vec<_> = others.collect();
        match others.is_empty() {
            true => "none".to_owned(),
            false => others.join(","),
        }
    };
    let why = format!(
        "{} is already mounted there, with other options ({} there, {} here)",
        quoting::name(&standing.device),
        others(&there, typed),
        others(typed, &there)
    );
    let remedy = format!("efs-fuse umount {}", quoting::path(&request.mountpoint));
    Err(Failure::mount(what, why).remedy(remedy))
}

/// `-N NAMESPACE`, which mount(8) takes as a process, too.
fn namespace(written: PathBuf) -> PathBuf {
    let process = written.to_str().and_then(|text| text.parse::<u32>().ok());
    process.map_or(written, |pid| format!("/proc/{pid}/ns/mnt").into())
}

fn say(asked: &MountCommand, spec: &str, how: &str) -> Result<(), Failure> {
    exit::print(&format!(
        "{} {how} on {}\n",
        quoting::name(spec),
        quoting::path(&asked.mountpoint)
    ))
}

/// `mount -o remount`: what the kernel keeps is changed; what the daemon was
/// started with must be what it is asked to be now.
fn remount(asked: &MountCommand, options: &MountOptions, typed: &[Typed]) -> Result<(), Failure> {
    let running = Remount::of(&asked.mountpoint)?;
    let known = |option: &&Typed| running.has(&option.written());
    if let Some(changed) = typed
        .iter()
        .filter(|option| option.is_fixed())
        .find(|option| !known(option))
    {
        let what = format!("remounting {}", quoting::path(&asked.mountpoint));
        let why = format!(
            "{} was not among its options, and only ro, rw, dev, suid, exec, atime and symfollow can change in a living mount",
            changed.written()
        );
        return Err(Failure::usage(what, why).remedy("to unmount and mount again"));
    }
    let given = |names: &[&str]| {
        let name = |option: &Typed| option.written();
        typed
            .iter()
            .any(|option| names.contains(&name(option).as_str()))
    };
    if asked.fake {
        return Ok(());
    }
    running.apply(Flags {
        read_only: given(&["ro", "rw"]).then_some(options.read_only),
        nodev: given(&["dev", "nodev"]).then_some(!options.dev),
        nosuid: given(&["suid", "nosuid"]).then_some(!options.suid),
        noexec: given(&["exec", "noexec"]).then_some(!options.exec),
        noatime: given(&["atime", "noatime", "relatime", "strictatime"])
            .then_some(options.atime == Atime::Never),
        nosymfollow: given(&["symfollow", "nosymfollow"]).then_some(options.nosymfollow),
    })?;
    Ok(())
}

/// Reads lists of options as the user wrote them, and what they mean.
pub(super) fn read_lists(
    lists: &[String],
    sloppy: bool,
) -> Result<(MountOptions, Vec<Typed>), Failure> {
    let read = option_list::read(lists, sloppy).map_err(wrong_options)?;
    read.ignored.iter().for_each(|line| exit::warn(line));
    let options = option_list::mean(&read.typed).map_err(wrong_options)?;
    Ok((options, read.typed))
}

fn wrong_options(why: OptionError) -> Failure {
    let remedy = why.remedy();
    let failure = Failure::usage("reading the mount options", why);
    match remedy {
        Some(remedy) => failure.remedy(remedy),
        None => failure,
    }
}

/// Reads the device and sees whether the options fit it.
pub(super) fn find_device(written: &str, options: &MountOptions) -> Result<Device, Failure> {
    let device = parse_device(written)?;
    check_fit(&device, options)?;
    Ok(device)
}

fn parse_device(written: &str) -> Result<Device, Failure> {
    Device::parse(written).map_err(|why| {
        Failure::usage("reading the device", why)
            .remedy("HOST:/dir, [IPV6]:/dir or fs-0123abcd:/dir")
    })
}

fn check_fit(device: &Device, options: &MountOptions) -> Result<(), Failure> {
    options.server.check(device).map_err(|unfit| {
        let what = match unfit.of_device {
            true => "reading the device",
            false => "reading the mount options",
        };
        let remedy = unfit.remedy.clone();
        Failure::usage(what, unfit).remedy(remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(device: &str, options: &str) -> Result<Device, Failure> {
        let typed =
            option_list::read(&[options], false).and_then(|read| option_list::mean(&read.typed));
        find_device(device, &typed.unwrap_or_default())
    }

    #[test]
    fn options_that_do_not_fit_the_device_are_a_usage_error() {
        for (device, options, because) in [
            ("h:/", "iam", "iam needs TLS"),
            ("h:/", "az=eu-west-1a", "az= is for EFS"),
            ("10.0.0.1:/", "tls,iam", "which file system"),
        ] {
            let refused = found(device, options);
            assert!(
                refused
                    .as_ref()
                    .is_err_and(|why| why.status() == 1 && why.to_string().contains(because)),
                "{refused:?}"
            );
        }
        assert!(found("fs-0123abcd", "").is_ok());
        assert!(found("fs-0123abcd", "iam,region=eu-west-1").is_ok());
    }

    #[test]
    fn a_malformed_device_is_a_usage_error() {
        for device in ["", ":/x", "::1:/x", "a b"] {
            assert!(
                found(device, "").is_err_and(|why| why.status() == 1),
                "{device}"
            );
        }
    }
}
