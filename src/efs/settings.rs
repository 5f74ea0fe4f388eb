//! What the mount options say about the server, and whether that can be.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::certificate::MAX_SOURCE;
use super::device::{Device, DeviceKind};
use super::region;

/// How to find the server and how to talk to it. The names in code type are
/// those of the mount options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `port=`: the server's TCP port.
    pub port: u16,
    /// `resvport`, `noresvport`; `None`: what the device suggests.
    pub reserved_port: Option<bool>,
    /// `tls`, `notls`; `None`: what the device suggests.
    pub tls: Option<bool>,
    /// `iam`: connect as the IAM principal whose credentials are found.
    pub iam: bool,
    /// `accesspoint=`
    pub access_point: Option<String>,
    /// `region=`, of the file system.
    pub region: Option<String>,
    /// `dns_suffix=`: what the names of mount targets end in, where it is not
    /// what follows from the region.
    pub dns_suffix: Option<String>,
    /// `az=`: the name of the zone whose mount target is wanted.
    pub zone: Option<String>,
    /// `mounttargetip=`
    pub mount_target: Option<IpAddr>,
    /// Off by `noapi`: where names do not resolve, the EFS API is not asked for mount
    /// targets.
    pub ask_api: bool,
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
    /// `client_source=`: what this client calls itself to EFS.
    pub client_source: Option<String>,
    /// `tls_renew=`: a certificate older than this is made anew before the
    /// next connection.
    pub renew: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            port: 2049,
            reserved_port: None,
            tls: None,
            iam: false,
            access_point: None,
            region: None,
            dns_suffix: None,
            zone: None,
            mount_target: None,
            ask_api: true,
            cross_account: false,
            profile: None,
            credentials_uri: None,
            role: None,
            token_file: None,
            ca_file: None,
            verify: true,
            fips: false,
            netns: None,
            client_source: None,
            // As the official client, whose certificates are good for 3 h as well.
            renew: Duration::from_secs(3600),
        }
    }
}

/// Whether this can be what a client calls itself to EFS.
pub fn is_client_source(text: &str) -> bool {
    (1..=MAX_SOURCE).contains(&text.len()) && text.bytes().all(|c| matches!(c, b' '..=b'~'))
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
    /// It is the device itself that cannot be.
    pub of_device: bool,
}

impl Settings {
    /// Whether the connection is by TLS: as `tls` and `notls` say, else for
    /// EFS file systems, what might be one, and not for other servers.
    pub fn uses_tls(&self, device: &Device) -> bool {
        let in_doubt = matches!(device.kind, DeviceKind::Doubtful { .. });
        self.tls.unwrap_or_else(|| device.is_efs() || in_doubt)
    }

    /// Whether connections come from ports below 1024, which only root may use and which
    /// servers may demand (`secure` of exports(5)): as `resvport` and `noresvport` say, else
    /// unless it is EFS.
    pub fn from_reserved_port(&self, device: &Device) -> bool {
        self.reserved_port.unwrap_or_else(|| !device.is_efs())
    }

    /// Whether credentials are looked for in the profiles of the AWS configuration
    /// files, which may name a program to run. Without `iam` nothing is.
    pub fn may_read_profiles(&self) -> bool {
        self.iam && self.credentials_uri.is_none() && self.role.is_none()
    }

    /// What the names of mount targets of `region` end in.
    pub fn suffix_of(&self, region: &str) -> String {
        let given = self.dns_suffix.as_deref();
        given
            .unwrap_or_else(|| region::dns_suffix(region))
            .to_owned()
    }

    /// Checks the options against the device.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self, device: &Device) -> Result<(), Unfit> {
        if let (DeviceKind::Doubtful { why }, None) = (&device.kind, self.tls) {
            let why = format!(
                "{} looks like a file system of EFS and is none: {why}",
                device.host
            );
            return Err(Unfit {
                why,
                remedy: "the id, fs-…, as the device; or -o tls or -o notls for a server of that name that is \
                         not EFS"
                    .to_owned(),
                of_device: true,
            });
        }
        self.check_identity(device)?;
        let of_efs = [
            ("az=", self.zone.is_some()),
            ("mounttargetip=", self.mount_target.is_some()),
            ("crossaccount", self.cross_account),
            ("dns_suffix=", self.dns_suffix.is_some()),
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
                format!("leave out {option}, or name the file system by its id, fs-…"),
            );
        }
        if let DeviceKind::EfsName {
            zone,
            region,
            suffix,
            ..
        } = &device.kind
        {
            self.check_name(&device.host, zone.as_deref(), region, suffix)?;
        }
        Ok(())
    }

    /// An identity goes to EFS only, and only by TLS.
    fn check_identity(&self, device: &Device) -> Result<(), Unfit> {
        let option = match (&self.access_point, self.iam) {
            (Some(_), _) => "accesspoint=",
            (None, true) => "iam",
            _ => return Ok(()),
        };
        if !self.uses_tls(device) {
            let why = format!("option {option} needs TLS, which carries it to EFS");
            return match self.tls {
                Some(_) => unfit(why, "leave out notls"),
                None => unfit(why, "add tls, or name the file system by its id, fs-…"),
            };
        }
        if !device.is_efs() {
            // A DNS alias of it will not do: who makes DNS answer would choose the
            // file system that is trusted.
            let why = format!("option {option} needs to know which file system is meant");
            return unfit(
                why,
                "fs-… as the device, with -o mounttargetip= for its address if need be",
            );
        }
        Ok(())
    }

    /// The options and the name of a mount target, `host`, say the same.
    fn check_name(
        &self,
        host: &str,
        zone: Option<&str>,
        region: &str,
        suffix: &str,
    ) -> Result<(), Unfit> {
        let expected = self.suffix_of(region);
        if suffix != expected {
            let why = format!(
                "{host} is no name of EFS: those of {region} end in {expected}, not in {suffix}"
            );
            return unfit(
                why,
                format!(
                    "the id, fs-…, with -o region={region}; or -o dns_suffix={suffix} if that is where its names are"
                ),
            );
        }
        if let Some(wanted) = &self.region
            && wanted != region
        {
            let why = format!("region={wanted} is not the region in {host}");
            return unfit(why, "leave out region=");
        }
        if let (Some(wanted), Some(zone)) = (&self.zone, zone)
            && wanted != zone
        {
            let why = format!("az={wanted} is not the zone in {host}");
            return unfit(why, "leave out az=");
        }
        if self.cross_account && zone.is_some() {
            let why = format!("crossaccount makes a name of its own, not {host}");
            return unfit(why, "fs-… as the device");
        }
        Ok(())
    }
}

fn unfit(why: String, remedy: impl Into<String>) -> Result<(), Unfit> {
    Err(Unfit {
        why,
        remedy: remedy.into(),
        of_device: false,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            ("fs-F223E6BB", true),
            ("fs-backup", true),
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
        let cases: [(&str, Change, &str); 13] = [
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
            (
                "volumes.example",
                |s| (s.iam, s.tls) = (true, Some(true)),
                "which file system",
            ),
            ("h", |s| s.zone = Some("a".to_owned()), "az= is for EFS"),
            (
                "h",
                |s| s.dns_suffix = Some("a.b".to_owned()),
                "dns_suffix= is for EFS",
            ),
            (
                NAME,
                |s| s.dns_suffix = Some("a.b".to_owned()),
                "end in a.b, not in amazonaws.com",
            ),
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

    /// What the review mounted in plaintext, exit 0 and nothing on stderr.
    const LOOKALIKES: [&str; 9] = [
        "fs-0123abcd.efs.cn-north-1.amazonaws.com",
        "fs-0123abcd.efs.mars-north-7.amazonaws.mars",
        "fs-0123abcd.efs.us-east-1.api.aws",
        "fs-0123abcd.efs.us-east-1.amazonaws.com.corp.example",
        "us-east-1a.fs-0123abcd.efs.us-east-1.amazonaws.com.corp.example",
        "fs-0123ABCDzz",
        "fs-12",
        "fs-backup",
        "us-east-1a.FS-0123abcd.example",
    ];

    #[test]
    fn what_looks_like_efs_and_is_none_is_an_error_that_names_the_doubt() {
        for text in LOOKALIKES {
            let device = device(text);
            let settings = Settings::default();
            assert!(settings.uses_tls(&device), "{text}");
            match settings.check(&device) {
                Ok(()) => panic!("{text} would be mounted"),
                Err(unfit) => {
                    assert!(unfit.why.contains(&device.host), "{unfit:?}");
                    assert!(!unfit.remedy.is_empty());
                }
            }
        }
        // These are EFS, in a region that is not in the table and in upper case.
        for text in ["fs-0123abcd.efs.cn-south-9.amazonaws.com.cn", "FS-0123ABCD"] {
            let device = device(text);
            let settings = Settings::default();
            assert_eq!(settings.check(&device), Ok(()), "{text}");
            assert!(settings.uses_tls(&device) && device.is_efs(), "{text}");
        }
    }

    #[test]
    fn somebodys_server_that_looks_like_efs_is_mounted_as_it_is_said() {
        for (text, tls) in [("fs-backup", false), ("fs-1.example", true)] {
            let settings = Settings {
                tls: Some(tls),
                ..Settings::default()
            };
            let device = device(text);
            assert_eq!(settings.check(&device), Ok(()));
            assert_eq!((settings.uses_tls(&device), device.is_efs()), (tls, false));
        }
    }

    #[test]
    fn a_suffix_that_is_given_is_the_one_that_counts() {
        let text = "fs-0123abcd.efs.mars-north-7.amazonaws.mars";
        let settings = Settings {
            dns_suffix: Some("amazonaws.mars".to_owned()),
            ..Settings::default()
        };
        assert_eq!(settings.check(&device(text)), Ok(()));
        assert!(settings.uses_tls(&device(text)));
    }

    /// The label of a name: anything that DNS allows, `fs-` before some of it.
    fn label(marked: bool) -> impl Strategy<Value = String> {
        let rest = prop_oneof!["[0-9a-fA-F]{1,20}", "[a-zA-Z0-9_-]{0,12}"];
        let mark = match marked {
            true => prop_oneof!["fs-", "FS-", "Fs-", "fS-"].boxed(),
            false => Just(String::new()).boxed(),
        };
        (mark, rest).prop_map(|(mark, rest)| format!("{mark}{rest}"))
    }

    fn lookalike() -> impl Strategy<Value = String> {
        let tail = prop_oneof![
            Just(String::new()),
            Just(".efs.eu-west-1.amazonaws.com".to_owned()),
            "(\\.[a-z0-9-]{1,8}){1,5}",
            "\\.efs\\.[a-z]{2}-[a-z]{4,5}-[1-9](\\.[a-z]{2,9}){1,3}",
        ];
        let path = prop_oneof![Just(""), Just(":"), Just(":/dir"), Just(".:/")];
        (prop::option::of(label(false)), label(true), tail, path).prop_map(
            |(zone, name, tail, path)| {
                let zone = zone.map(|zone| format!("{zone}.")).unwrap_or_default();
                format!("{zone}{name}{tail}{path}")
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn no_name_with_a_label_of_efs_is_mounted_in_plaintext_unless_notls_is_written(
            text in lookalike(),
            region in prop::option::of("[a-z]{2}-[a-z]{4,5}-[1-9]"),
            dns_suffix in prop::option::of("[a-z]{2,5}\\.[a-z]{2,3}"),
            verify: bool,
        ) {
            let settings = Settings { region, dns_suffix, verify, ..Settings::default() };
            if let Ok(device) = Device::parse(&text) {
                prop_assert!(settings.uses_tls(&device), "{:?}", device);
                let mountable = settings.check(&device).is_ok();
                prop_assert!(device.is_efs() || !mountable, "{:?}", device);
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
