//! `efs-fuse mount` and `mount.efs-fuse`.

use std::path::PathBuf;

use super::arguments::{Helper, Mount};
use super::exit::{self, Failure};
use super::option_list::{self, OptionError};
use crate::efs::device::{Device, RegionError};
use crate::mount::launch;
use crate::mount::{MountError, MountOptions, MountRequest, daemon};

/// What both ways of calling come down to.
#[derive(Debug)]
pub(super) struct Asked {
    device: String,
    mountpoint: PathBuf,
    options: Vec<String>,
    sloppy: bool,
    foreground: bool,
    /// Stop before anything is changed.
    fake: bool,
    verbose: bool,
}

impl From<Mount> for Asked {
    fn from(mount: Mount) -> Self {
        Self {
            device: mount.device,
            mountpoint: mount.mountpoint,
            options: mount.options,
            sloppy: mount.sloppy,
            foreground: mount.foreground,
            fake: false,
            verbose: false,
        }
    }
}

impl From<Helper> for Asked {
    fn from(helper: Helper) -> Self {
        Self {
            device: helper.device,
            mountpoint: helper.mountpoint,
            options: helper.options,
            sloppy: helper.sloppy,
            foreground: false,
            fake: helper.fake,
            verbose: helper.verbose,
        }
    }
}

pub(super) fn run(asked: &Asked) -> Result<(), Failure> {
    if !asked.foreground {
        daemon::close_inherited();
    }
    let options = read_options(asked)?;
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
        foreground: asked.foreground,
    };
    launch::mount(request, exit::warn)?;
    if asked.verbose {
        say(asked, &spec, "mounted")
    } else {
        Ok(())
    }
}

fn say(asked: &Asked, spec: &str, how: &str) -> Result<(), Failure> {
    exit::print(&format!("{spec} {how} on {}\n", asked.mountpoint.display()))
}

fn read_options(asked: &Asked) -> Result<MountOptions, Failure> {
    let wrong = |why: OptionError| {
        let remedy = why.remedy();
        let failure = Failure::usage("reading the mount options", why);
        match remedy {
            Some(remedy) => failure.remedy(remedy),
            None => failure,
        }
    };
    let read = option_list::read(&asked.options, asked.sloppy).map_err(wrong)?;
    for name in &read.ignored {
        exit::warn(&format!("unknown option {name:?} is ignored"));
    }
    option_list::mean(&read.typed).map_err(wrong)
}

fn find_device(written: &str, options: &MountOptions) -> Result<Device, Failure> {
    let device = Device::parse(written).map_err(|why| {
        Failure::usage("reading the device", why)
            .remedy("HOST:/dir, [IPV6]:/dir or fs-0123abcd:/dir")
    })?;
    if device.is_file_system_id() && !options.notls {
        let why =
            format!("{written} would be mounted by TLS, which this version does not have yet");
        return Err(Failure::usage("mounting", why)
            .remedy("-o notls, if an unencrypted connection is acceptable"));
    }
    device.locate(options.region.as_deref()).map_err(|why| {
        let error = MountError::mount("finding the region", &why);
        let error = match why {
            RegionError::Unknown(_) => error.remedy("-o region=REGION, or set AWS_REGION"),
            RegionError::Malformed(_) => error.remedy("a region such as eu-west-1"),
        };
        error.into()
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
    fn a_file_system_id_needs_notls_until_there_is_tls() {
        let refused = found("fs-0123abcd", "region=eu-west-1");
        assert!(
            refused.is_err_and(|why| why.status() == 1 && why.to_string().contains("-o notls"))
        );
        let host = found("fs-0123abcd", "region=eu-west-1,notls").map(|device| device.host);
        assert_eq!(
            host.ok().as_deref(),
            Some("fs-0123abcd.efs.eu-west-1.amazonaws.com")
        );
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
