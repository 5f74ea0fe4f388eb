//! `efs-fuse mount` and `mount.efs-fuse`.

use std::path::PathBuf;

use super::arguments::{Helper, Mount};
use super::exit::{self, Failure};
use super::option_list::{self, OptionError, Typed};
use crate::efs::Device;
use crate::mount::launch;
use crate::mount::options::Atime;
use crate::mount::remount::{Flags, Remount};
use crate::mount::{MountOptions, MountRequest, daemon};
use crate::quoting;

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
        }
    }
}

impl From<Helper> for MountCommand {
    fn from(helper: Helper) -> Self {
        Self {
            device: helper.device,
            mountpoint: helper.mountpoint,
            options: helper.options,
            sloppy: helper.sloppy,
            foreground: false,
            mount_namespace: None,
            fake: helper.fake,
            verbose: helper.verbose,
        }
    }
}

pub(super) fn run(asked: &MountCommand) -> Result<(), Failure> {
    if !asked.foreground {
        daemon::close_inherited();
    }
    let (options, typed) = read_options(asked)?;
    if options.remount {
        return remount(asked, &options, &typed);
    }
    let device = find_device(&asked.device, &options)?;
    let spec = device.to_string();
    if asked.fake {
        return if asked.verbose {
            say(asked, &spec, "would be mounted")
        } else {
            Ok(())
        };
    }
    let request = MountRequest {
        device,
        mountpoint: asked.mountpoint.clone(),
        options,
        written: typed.iter().map(Typed::written).collect(),
        foreground: asked.foreground,
        mount_namespace: asked.mount_namespace.clone(),
    };
    launch::mount(request, exit::warn)?;
    if asked.verbose {
        say(asked, &spec, "mounted")
    } else {
        Ok(())
    }
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
            "{} was not among its options, and only ro, rw, dev, suid, exec and atime can change in a living mount",
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
    })?;
    Ok(())
}

fn read_options(asked: &MountCommand) -> Result<(MountOptions, Vec<Typed>), Failure> {
    read_lists(&asked.options, asked.sloppy)
}

/// Reads lists of options as the user wrote them, and what they mean.
pub(super) fn read_lists(
    lists: &[String],
    sloppy: bool,
) -> Result<(MountOptions, Vec<Typed>), Failure> {
    let wrong = |why: OptionError| {
        let remedy = why.remedy();
        let failure = Failure::usage("reading the mount options", why);
        match remedy {
            Some(remedy) => failure.remedy(remedy),
            None => failure,
        }
    };
    let read = option_list::read(lists, sloppy).map_err(wrong)?;
    for name in &read.ignored {
        exit::warn(&format!("unknown option {name:?} is ignored"));
    }
    let options = option_list::mean(&read.typed).map_err(wrong)?;
    Ok((options, read.typed))
}

/// Reads the device and sees whether the options fit it.
pub(super) fn find_device(written: &str, options: &MountOptions) -> Result<Device, Failure> {
    let device = Device::parse(written).map_err(|why| {
        Failure::usage("reading the device", why)
            .remedy("HOST:/dir, [IPV6]:/dir or fs-0123abcd:/dir")
    })?;
    options.server.check(&device).map_err(|unfit| {
        let remedy = unfit.remedy.clone();
        Failure::usage("reading the mount options", unfit).remedy(remedy)
    })?;
    Ok(device)
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
