//! `mount.efs`: this program in the place of amazon-efs-utils' mount helper, for whoever
//! calls that by its name: `/etc/fstab`, the ECS agent, the EFS CSI driver.
//!
//! What differs from `mount.efs-fuse`:
//!
//! - without `tls` the connection is not encrypted, unless `iam` or `accesspoint=` need it;
//! - `/etc/amazon/efs/efs-utils.conf` counts ([`super::efs_utils_conf`]);
//! - the directory of the device may be written without its first slash;
//! - any source port will do, as for EFS (`noresvport`);
//! - the same mount once more at the same place is done already: status 0. kubelet asks
//!   for a volume as often as it likes.

use std::path::Path;

use super::efs_utils_conf::{self, Conf};
use super::exit::Failure;
use super::option_list;
use crate::efs::device::DeviceKind;
use crate::efs::{Device, region};
use crate::mount::MountOptions;
use crate::mount::launch::Remarks;

/// What calling by this name adds to what is written.
#[derive(Debug, Default)]
pub(super) struct Added {
    /// Options to stand in front of the user's.
    pub(super) options: Vec<String>,
    /// What the configuration file means, to stand behind these.
    pub(super) of_conf: Vec<String>,
    pub(super) remarks: Remarks,
}

/// Options that say whether there is TLS, or need it.
const ABOUT_TLS: [&str; 4] = ["tls", "notls", "iam", "accesspoint"];

/// What calling by this name means for a mount of `device` with the options of `lists`,
/// which are `options`.
///
/// # Errors
/// The configuration file cannot be understood.
pub(super) fn added(
    device: &Device,
    lists: &[String],
    options: &MountOptions,
) -> Result<Added, Failure> {
    let conf = Conf::read(Path::new(efs_utils_conf::PATH)).map_err(malformed)?;
    add(device, lists, options, &conf, |name| {
        std::env::var(name).ok()
    })
}

fn malformed(why: String) -> Failure {
    let file = efs_utils_conf::PATH;
    Failure::usage(format_args!("reading {file}"), why)
        .remedy("to mend it, or to remove it: nothing of it is needed")
}

fn add(
    device: &Device,
    lists: &[String],
    options: &MountOptions,
    conf: &Conf,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Added, Failure> {
    let mut added = Added::default();
    if let DeviceKind::Doubtful { why } = &device.kind {
        let why = format!("{} is no file system of EFS: {why}", device.host);
        return Err(Failure::usage("reading the device", why).remedy("the id, fs-…, as the device"));
    }
    if !device.is_efs() {
        // Another server. The official client has this option for all; of EFS it is the
        // default here.
        if !option_list::names_any(lists, &["resvport", "noresvport"]) {
            added.options.push("noresvport".to_owned());
        }
        return Ok(added);
    }
    if !option_list::names_any(lists, &ABOUT_TLS) {
        added.options.push("notls".to_owned());
        added.remarks.warnings.push(format!(
            "{} is mounted without encryption, as mount.efs does without the option tls",
            device.host
        ));
    }
    let here = match &device.kind {
        DeviceKind::EfsName { region, .. } => Some(region.clone()),
        _ => options
            .server
            .region
            .clone()
            .or_else(|| region::of_env(env)),
    };
    let of_conf = conf.region().map_err(malformed)?.map(str::to_owned);
    let asked = here.is_none();
    let region = here.or(of_conf);
    let meant = conf.means(region.as_deref(), asked).map_err(malformed)?;
    added.remarks.notes = meant.notes();
    added.of_conf = meant.options;
    added.remarks.warnings.extend(meant.warnings);
    Ok(added)
}

/// The device with a slash in front of its directory.
pub(super) fn with_slash(device: &str) -> String {
    match device.split_once(':') {
        Some((host, path)) if !device.starts_with('[') && !path.is_empty() => {
            let slash = if path.starts_with('/') { "" } else { "/" };
            format!("{host}:{slash}{path}")
        }
        _ => device.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_of(device: &str, list: &str) -> (Vec<String>, Remarks) {
        let added = added_to(device, list).unwrap_or_else(|why| panic!("{why}"));
        ([added.options, added.of_conf].concat(), added.remarks)
    }

    fn added_to(device: &str, list: &str) -> Result<Added, Failure> {
        let device = Device::parse(device).unwrap_or_else(|why| panic!("{why}"));
        let lists = [list.to_owned()];
        let typed = option_list::read(&lists, false)
            .and_then(|read| option_list::mean(&read.typed))
            .unwrap_or_else(|why| panic!("{why}"));
        add(&device, &lists, &typed, &Conf::default(), |_| None)
    }

    #[test]
    fn what_is_no_id_is_refused_whatever_is_said_of_tls() {
        for list in ["", "tls", "notls"] {
            let refused = added_to("fs-xyz", list);
            let refused = refused.map_err(|why| (why.status(), why.to_string()));
            assert!(
                refused.is_err_and(|(status, line)| status == 1 && line.contains("fs-xyz is no")),
                "{list}"
            );
        }
    }

    #[test]
    fn without_tls_there_is_none_unless_something_needs_it() {
        let (options, remarks) = options_of("fs-0123abcd", "ro");
        assert_eq!(options, ["notls"]);
        assert!(remarks.warnings[0].contains("without encryption"));
        for list in [
            "tls",
            "notls",
            "iam",
            "accesspoint=fsap-0123456789abcdef0",
            "rw,tls,iam",
        ] {
            let (options, remarks) = options_of("fs-0123abcd", list);
            assert_eq!(options, Vec::<String>::new(), "{list}");
            assert!(remarks.warnings.is_empty(), "{list}");
        }
        assert_eq!(options_of("volumes.example:/", "").0, ["noresvport"]);
        let asked = options_of("volumes.example", "resvport").0;
        assert_eq!(asked, Vec::<String>::new());
    }

    #[test]
    fn a_directory_may_begin_without_a_slash() {
        for (written, meant) in [
            ("fs-0123abcd:a/b", "fs-0123abcd:/a/b"),
            ("fs-0123abcd:/a", "fs-0123abcd:/a"),
            ("fs-0123abcd:", "fs-0123abcd:"),
            ("fs-0123abcd", "fs-0123abcd"),
            ("[::1]:/a", "[::1]:/a"),
        ] {
            assert_eq!(with_slash(written), meant);
        }
    }
}
