//! What the mount options say about the server, and whether that can be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::device::{Device, DeviceKind};

/// How to find the server and how to talk to it. The names in code type are
/// those of the mount options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `port=`: the server's TCP port.
    pub port: u16,
    /// `tls`, `notls`; `None`: what the device suggests.
    pub tls: Option<bool>,
    /// `iam`: connect as the IAM principal whose credentials are found.
    pub iam: bool,
    /// `accesspoint=`
    pub access_point: Option<String>,
    /// `region=`, of the file system.
    pub region: Option<String>,
    /// `az=`: the name of the zone whose mount target is wanted.
    pub zone: Option<String>,
    /// `mounttargetip=`
    pub mount_target: Option<IpAddr>,
    /// `crossaccount`: the name of the mount target begins with the zone's id.
    pub cross_account: bool,
    /// `awsprofile=`
    pub profile: Option<String>,
    /// `awscredsuri=`: a path on the container credential service.
    pub credentials_uri: Option<String>,
    /// `rolearn=`
    pub role: Option<String>,
    /// `jwtpath=`
    pub token_file: Option<PathBuf>,
    /// `cafile=`: the only issuers that are believed.
    pub ca_file: Option<PathBuf>,
    /// Off by `verify=0`: anybody may be the server.
    pub verify: bool,
    /// `fips`: approved algorithms and endpoints only.
    pub fips: bool,
    /// `netns=`: the network namespace that everything happens in.
    pub netns: Option<PathBuf>,
    /// `tls_renew=`: a certificate older than this is made anew before the
    /// next connection.
    pub renew: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            port: 2049,
            tls: None,
            iam: false,
            access_point: None,
            region: None,
            zone: None,
            mount_target: None,
            cross_account: false,
            profile: None,
            credentials_uri: None,
            role: None,
            token_file: None,
            ca_file: None,
            verify: true,
            fips: false,
            netns: None,
            // As the official client, whose certificates are good for 3 h as well.
            renew: Duration::from_secs(3600),
        }
    }
}

/// Options that cannot be together, or not with this device. The text is the
/// WHY of an error line, the second part what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unfit {
    /// What does not fit.
    pub why: String,
    /// What to do instead.
    pub remedy: String,
}

impl Settings {
    /// Whether the connection is by TLS: as `tls` and `notls` say, else for
    /// EFS file systems and not for other servers.
    pub fn uses_tls(&self, device: &Device) -> bool {
        self.tls.unwrap_or_else(|| device.is_efs())
    }

    /// Checks the options against the device.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self, device: &Device) -> Result<(), Unfit> {
        let unfit = |why: String, remedy: &str| {
            Err(Unfit {
                why,
                remedy: remedy.to_owned(),
            })
        };
        let identity = match (&self.access_point, self.iam) {
            (Some(_), _) => Some("accesspoint="),
            (None, true) => Some("iam"),
            _ => None,
        };
        if let Some(option) = identity {
            if !self.uses_tls(device) {
                let why = format!("option {option} needs TLS, which carries it to EFS");
                return match self.tls {
                    Some(_) => unfit(why, "leave out notls"),
                    None => unfit(why, "add tls, or name the file system by its id, fs-…"),
                };
            }
            if device.kind == DeviceKind::Address {
                let why = format!("option {option} needs to know which file system is meant");
                return unfit(
                    why,
                    "fs-… as the device, with -o mounttargetip= for its address",
                );
            }
        }
        let of_efs = [
            ("az=", self.zone.is_some()),
            ("mounttargetip=", self.mount_target.is_some()),
            ("crossaccount", self.cross_account),
        ];
        if let Some((option, _)) = of_efs.iter().find(|(_, given)| *given)
            && !device.is_efs()
        {
            let why = format!(
                "option {option} is for EFS file systems, and {} is none",
                device.host
            );
            return unfit(
                why,
                &format!("leave out {option}, or name the file system by its id, fs-…"),
            );
        }
        if let DeviceKind::EfsName { zone, region, .. } = &device.kind {
            if let Some(wanted) = &self.region
                && wanted != region
            {
                let why = format!("region={wanted} is not the region in {}", device.host);
                return unfit(why, "leave out region=");
            }
            if let (Some(wanted), Some(zone)) = (&self.zone, zone)
                && wanted != zone
            {
                let why = format!("az={wanted} is not the zone in {}", device.host);
                return unfit(why, "leave out az=");
            }
            if self.cross_account && zone.is_some() {
                let why = format!("crossaccount makes a name of its own, not {}", device.host);
                return unfit(why, "fs-… as the device");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Device {
        Device::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    const NAME: &str = "eu-west-1a.fs-f223e6bb.efs.eu-west-1.amazonaws.com";

    #[test]
    fn efs_is_reached_by_tls_and_other_servers_are_not_unless_it_is_said() {
        let mut settings = Settings::default();
        for (text, expected) in [
            ("fs-f223e6bb", true),
            (NAME, true),
            ("h", false),
            ("[::1]", false),
        ] {
            assert_eq!(settings.uses_tls(&device(text)), expected, "{text}");
        }
        settings.tls = Some(false);
        assert!(!settings.uses_tls(&device("fs-f223e6bb")));
        settings.tls = Some(true);
        assert!(settings.uses_tls(&device("h")));
    }

    #[test]
    fn what_does_not_fit_together_is_said_with_a_way_out() {
        type Change = fn(&mut Settings);
        let cases: [(&str, Change, &str); 10] = [
            (
                "fs-f223e6bb",
                |s| (s.iam, s.tls) = (true, Some(false)),
                "iam needs TLS",
            ),
            ("h", |s| s.iam = true, "iam needs TLS"),
            (
                "h",
                |s| s.access_point = Some("fsap-1".to_owned()),
                "accesspoint= needs TLS",
            ),
            (
                "10.0.0.1",
                |s| (s.iam, s.tls) = (true, Some(true)),
                "which file system",
            ),
            ("h", |s| s.zone = Some("a".to_owned()), "az= is for EFS"),
            ("h", |s| s.cross_account = true, "crossaccount is for EFS"),
            (
                "h",
                |s| s.mount_target = Some([10, 0, 0, 1].into()),
                "mounttargetip= is for EFS",
            ),
            (
                NAME,
                |s| s.region = Some("us-east-1".to_owned()),
                "region=us-east-1 is not",
            ),
            (
                NAME,
                |s| s.zone = Some("eu-west-1b".to_owned()),
                "az=eu-west-1b is not",
            ),
            (NAME, |s| s.cross_account = true, "a name of its own"),
        ];
        for (text, change, because) in cases {
            let mut settings = Settings::default();
            change(&mut settings);
            match settings.check(&device(text)) {
                Ok(()) => panic!("{text}: expected {because}"),
                Err(unfit) => {
                    assert!(unfit.why.contains(because), "{unfit:?}");
                    assert!(!unfit.remedy.is_empty());
                }
            }
        }
    }

    #[test]
    fn tunnels_and_tests_may_have_any_port_and_address() {
        let settings = Settings {
            port: 20_049,
            iam: true,
            access_point: Some("fsap-0123456789abcdef0".to_owned()),
            mount_target: Some([127, 0, 0, 1].into()),
            region: Some("eu-west-1".to_owned()),
            ..Settings::default()
        };
        assert_eq!(settings.check(&device("fs-f223e6bb")), Ok(()));
        assert_eq!(
            settings.check(&device("fs-f223e6bb.efs.eu-west-1.amazonaws.com")),
            Ok(())
        );
    }
}
