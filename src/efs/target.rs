//! From DEVICE and options to what is connected to: which file system in
//! which region, by which name, and which name its certificate must have.

use std::net::{IpAddr, SocketAddr};

use super::device::{Device, DeviceKind};
use super::imds::{Imds, Instance};
use super::mount_targets::{self, MountTarget, Reason};
use super::problem::Problem;
use super::region;
use super::resolve;
use super::settings::Settings;

/// An EFS file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// `fs-…`
    pub id: String,
    /// Its region.
    pub region: String,
    /// What the names of its mount targets end in.
    pub suffix: String,
}

/// What a mount connects to. Names in it are resolved at every connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The name or address to connect to; IPv6 without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// Connect here instead of to what `host` resolves to.
    pub address: Option<IpAddr>,
    /// The file system, if the server is EFS.
    pub file_system: Option<FileSystem>,
    /// The name that the server's certificate must have.
    pub tls_name: String,
    /// `az=`, which the mount target must be in.
    pub zone: Option<String>,
    /// Mount targets may be looked for by the API.
    pub may_ask_api: bool,
}

/// Addresses to try, and what the user should know about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// In the order to try them.
    pub addresses: Vec<SocketAddr>,
    /// A mount target of another zone, say.
    pub warning: Option<String>,
}

impl Target {
    /// Completes what the user wrote: the region by options, environment or
    /// `imds`, the zone's id likewise.
    ///
    /// # Errors
    /// Something is missing that nothing supplies.
    pub async fn find(
        device: &Device,
        settings: &Settings,
        imds: &Imds,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Problem> {
        let mut target = Self {
            host: device.host.clone(),
            port: settings.port,
            address: settings.mount_target,
            file_system: None,
            tls_name: device.host.trim_end_matches('.').to_owned(),
            zone: settings.zone.clone(),
            may_ask_api: settings.ask_api
                && !settings.cross_account
                && settings.mount_target.is_none(),
        };
        match &device.kind {
            DeviceKind::FileSystemId { fs_id } => {
                let given = settings.region.clone().or_else(|| region::of_env(env));
                let region = match given {
                    Some(region) => region,
                    None => region_of(imds.instance().await, fs_id)?,
                };
                if !region::is_valid(&region) {
                    let why = format!("{region:?} is no AWS region");
                    return Err(Problem::new(
                        super::problem::Step::Region,
                        "finding the region",
                        why,
                    )
                    .remedy("a region such as eu-west-1"));
                }
                let suffix = settings.suffix_of(&region);
                let name = region::dns_name(fs_id, &region, &suffix);
                target.host = match (&settings.zone, settings.cross_account) {
                    (_, true) => format!("{}.{name}", zone_id(imds.instance().await)?),
                    (Some(zone), false) => format!("{zone}.{name}"),
                    (None, false) => name,
                };
                target.of_efs(fs_id, region, suffix);
            }
            DeviceKind::EfsName {
                zone,
                fs_id,
                region,
                suffix,
            } => {
                let name = region::dns_name(fs_id, region, suffix);
                if settings.cross_account {
                    target.host = format!("{}.{name}", zone_id(imds.instance().await)?);
                } else if let (None, Some(zone)) = (zone, &settings.zone) {
                    target.host = format!("{zone}.{name}");
                }
                target.zone = target.zone.or_else(|| zone.clone());
                target.of_efs(fs_id, region.clone(), suffix.clone());
            }
            // What the user wrote is what the certificate must name. A DNS alias
            // (CNAME) decides nothing: who can answer it would choose who is believed.
            DeviceKind::Doubtful { .. } | DeviceKind::Host | DeviceKind::Address => {}
        }
        Ok(target)
    }

    /// The certificate never names the zone.
    fn of_efs(&mut self, fs_id: &str, region: String, suffix: String) {
        self.tls_name = region::dns_name(fs_id, &region, &suffix);
        self.file_system = Some(FileSystem {
            id: fs_id.to_owned(),
            region,
            suffix,
        });
    }

    /// The addresses as they are now: the given one, those of the name, or,
    /// where EFS names do not resolve, those that the EFS API knows.
    ///
    /// # Errors
    /// There is none.
    pub async fn addresses(&self, api: &mount_targets::Api, imds: &Imds) -> Result<Found, Problem> {
        if let Some(address) = self.address {
            let addresses = vec![SocketAddr::new(address, self.port)];
            return Ok(Found {
                addresses,
                warning: None,
            });
        }
        let unresolved = match resolve::resolve(&self.host, self.port).await {
            Ok(addresses) => {
                return Ok(Found {
                    addresses,
                    warning: None,
                });
            }
            Err(why) => why,
        };
        let Some(file_system) = self.file_system.as_ref().filter(|_| self.may_ask_api) else {
            let efs = self.file_system.is_some();
            return Err(Problem::resolving(&self.host, unresolved, efs));
        };
        let (targets, instance) = tokio::join!(api.describe(file_system), imds.instance());
        self.among(
            targets,
            &instance.unwrap_or_default(),
            file_system,
            &unresolved.to_string(),
        )
    }

    /// The addresses of the mount target to use, where the name did not resolve for the
    /// reason `unresolved` and the API has said `targets`.
    pub(super) fn among(
        &self,
        targets: Result<Vec<MountTarget>, Reason>,
        here: &Instance,
        file_system: &FileSystem,
        unresolved: &str,
    ) -> Result<Found, Problem> {
        let chosen =
            targets.and_then(|targets| mount_targets::choose(&targets, self.zone.as_deref(), here));
        match chosen {
            Ok(chosen) => Ok(Found {
                addresses: chosen.addresses(self.port),
                warning: chosen.warning,
            }),
            Err(reason) => Err(reason.problem(&self.host, unresolved, file_system)),
        }
    }
}

fn region_of(instance: Result<Instance, String>, fs_id: &str) -> Result<String, Problem> {
    match instance.map(|instance| instance.region) {
        Ok(Some(region)) => Ok(region),
        Ok(None) => Err(Problem::no_region(fs_id, "instance metadata name none")),
        Err(why) => Err(Problem::no_region(fs_id, &why)),
    }
}

fn zone_id(instance: Result<Instance, String>) -> Result<String, Problem> {
    match instance.map(|instance| instance.zone_id) {
        Ok(Some(zone)) => Ok(zone),
        Ok(None) => Err(Problem::no_zone("instance metadata name none")),
        Err(why) => Err(Problem::no_zone(&why)),
    }
}

impl Reason {
    /// The whole story: the name did not resolve, and the API was no help.
    fn problem(&self, host: &str, unresolved: &str, file_system: &FileSystem) -> Problem {
        let why = format!("{unresolved}, and {}", self.words(file_system));
        Problem::new(
            super::problem::Step::MountTarget,
            format_args!("finding a mount target of {}", file_system.id),
            why,
        )
        .remedy(self.remedy(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_imds() -> Imds {
        Imds::from_env(|name| (name == "AWS_EC2_METADATA_DISABLED").then(|| "true".to_owned()))
    }

    async fn found(device: &str, settings: &Settings) -> Result<Target, Problem> {
        let device = Device::parse(device).unwrap_or_else(|why| panic!("{device}: {why}"));
        Target::find(&device, settings, &no_imds(), |_| None).await
    }

    fn in_ireland() -> Settings {
        Settings {
            region: Some("eu-west-1".to_owned()),
            ..Settings::default()
        }
    }

    const NAME: &str = "fs-f223e6bb.efs.eu-west-1.amazonaws.com";

    #[tokio::test]
    async fn an_id_becomes_a_name_and_the_certificate_never_has_the_zone() -> Result<(), Problem> {
        let target = found("fs-f223e6bb", &in_ireland()).await?;
        assert_eq!(
            (target.host.as_str(), target.tls_name.as_str()),
            (NAME, NAME)
        );
        let zoned = Settings {
            zone: Some("eu-west-1b".to_owned()),
            mount_target: Some([10, 0, 0, 1].into()),
            ..in_ireland()
        };
        let target = found("fs-f223e6bb", &zoned).await?;
        assert_eq!(target.host, format!("eu-west-1b.{NAME}"));
        assert_eq!(target.tls_name, NAME);
        let target = found(&format!("eu-west-1c.{NAME}"), &Settings::default()).await?;
        assert_eq!(target.host, format!("eu-west-1c.{NAME}"));
        assert_eq!(
            (target.tls_name.as_str(), target.zone.as_deref()),
            (NAME, Some("eu-west-1c"))
        );
        Ok(())
    }

    #[tokio::test]
    async fn without_a_region_nothing_is_guessed() {
        let why = found("fs-f223e6bb", &Settings::default()).await;
        assert!(why.is_err_and(|problem| {
            problem.why.contains("no region")
                && problem
                    .remedy
                    .is_some_and(|remedy| remedy.contains("region="))
        }),);
        let device = Device::parse("fs-f223e6bb").unwrap_or_else(|why| panic!("{why}"));
        let env = |_: &str| Some("EU WEST".to_owned());
        let why = Target::find(&device, &Settings::default(), &no_imds(), env).await;
        assert!(why.is_err_and(|problem| problem.why.contains("no AWS region")));
    }

    #[tokio::test]
    async fn an_unknown_zone_id_is_said() {
        let settings = Settings {
            cross_account: true,
            ..in_ireland()
        };
        let why = found("fs-f223e6bb", &settings).await;
        assert!(why.is_err_and(|problem| problem.why.contains("crossaccount")));
    }

    #[tokio::test]
    async fn a_plain_host_may_have_tls_but_is_nobodys_file_system() -> Result<(), Problem> {
        let settings = Settings {
            tls: Some(true),
            ..Settings::default()
        };
        let target = found("localhost", &settings).await?;
        assert_eq!(
            (target.tls_name.as_str(), target.file_system),
            ("localhost", None)
        );
        Ok(())
    }

    #[tokio::test]
    async fn the_suffix_follows_from_the_region_unless_it_is_given() -> Result<(), Problem> {
        let mut settings = Settings {
            region: Some("cn-south-9".to_owned()),
            ..Settings::default()
        };
        let target = found("FS-F223E6BB", &settings).await?;
        let name = "fs-f223e6bb.efs.cn-south-9.amazonaws.com.cn";
        assert_eq!(
            (target.host.as_str(), target.tls_name.as_str()),
            (name, name)
        );
        settings.dns_suffix = Some("efs.example".to_owned());
        let target = found("fs-f223e6bb", &settings).await?;
        assert_eq!(target.tls_name, "fs-f223e6bb.efs.cn-south-9.efs.example");
        Ok(())
    }

    #[tokio::test]
    async fn a_given_address_needs_no_resolver() -> Result<(), Problem> {
        let settings = Settings {
            mount_target: Some([127, 0, 0, 1].into()),
            ..in_ireland()
        };
        let target = found("fs-f223e6bb", &settings).await?;
        let api = mount_targets::Api::new(&settings);
        let found = target.addresses(&api, &no_imds()).await?;
        assert_eq!(found.addresses, [SocketAddr::from(([127, 0, 0, 1], 2049))]);
        Ok(())
    }
}
