//! The mount targets of a file system, as the EFS API knows them: what is left
//! where the names of EFS do not resolve.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_efs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_efs::types::MountTargetDescription;

use super::credentials::Source;
use super::http::{in_short, innermost};
use super::imds::Instance;
use super::region;
use super::settings::Settings;
use super::target::FileSystem;

/// One call with its repetitions.
const PATIENCE: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(4);
/// Of a list of mount targets, of which a file system has one in a zone and a page a
/// hundred.
const MAX_PAGES: usize = 4;

/// A mount target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MountTarget {
    pub(super) ipv4: Option<IpAddr>,
    pub(super) ipv6: Option<IpAddr>,
    pub(super) zone_id: Option<String>,
    pub(super) zone: Option<String>,
    /// `available`, `creating`, …
    pub(super) state: String,
}

impl MountTarget {
    fn is_available(&self) -> bool {
        self.state == "available" && (self.ipv4.is_some() || self.ipv6.is_some())
    }

    /// The zone as a person would name it.
    fn place(&self) -> String {
        match (&self.zone_id, &self.zone) {
            (Some(id), Some(name)) => format!("{id} ({name})"),
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => "an unknown zone".to_owned(),
        }
    }
}

/// The one to use, and what the user should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    target: MountTarget,
    pub(super) warning: Option<String>,
}

impl Chosen {
    pub(super) fn addresses(&self, port: u16) -> Vec<SocketAddr> {
        [self.target.ipv4, self.target.ipv6]
            .into_iter()
            .flatten()
            .map(|address| SocketAddr::new(address, port))
            .collect()
    }
}

/// Why the API was no help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// The file system does not exist, or not in this account and region.
    NoFileSystem,
    /// It has no mount target.
    NoTarget,
    /// It has, but none is ready; their states.
    NotReady(String),
    /// None in the zone that was asked for; where there are some.
    NotInZone(String, String),
    /// The principal may not ask.
    NotAllowed,
    /// There are no credentials to ask with.
    NoCredentials(String),
    /// Anything else.
    Failed(String),
}

impl Reason {
    /// To follow "…, and".
    pub(super) fn words(&self, file_system: &FileSystem) -> String {
        let FileSystem { id, region, .. } = file_system;
        match self {
            Self::NoFileSystem => format!("the EFS API knows no file system {id} in {region}"),
            Self::NoTarget => format!("{id} has no mount target"),
            Self::NotReady(states) => {
                format!("no mount target of {id} is available yet ({states})")
            }
            Self::NotInZone(zone, others) => {
                format!("{id} has no mount target in zone {zone}, only in {others}")
            }
            Self::NotAllowed => {
                "the EFS API does not allow this principal to ask for mount targets".to_owned()
            }
            Self::NoCredentials(why) => {
                format!("the EFS API was not asked for want of AWS credentials ({why})")
            }
            Self::Failed(why) => format!("the EFS API did not help ({why})"),
        }
    }

    /// What to try.
    pub(super) fn remedy(&self, host: &str) -> String {
        match self {
            Self::NoFileSystem => {
                "check the id and the region; for a file system of another account, -o mounttargetip=ADDRESS or \
                 crossaccount"
                    .to_owned()
            }
            Self::NoTarget => {
                "create a mount target in a subnet of this zone (aws efs create-mount-target)".to_owned()
            }
            Self::NotReady(_) => {
                "wait some minutes, or let mounting wait with -o wait=300".to_owned()
            }
            Self::NotInZone(..) => {
                "create a mount target there, or leave out az= to use one of another zone".to_owned()
            }
            Self::NotAllowed => {
                "enable DNS resolution and DNS hostnames of the VPC, or allow elasticfilesystem:DescribeMountTargets, \
                 or -o mounttargetip=ADDRESS"
                    .to_owned()
            }
            Self::NoCredentials(_) | Self::Failed(_) => format!(
                "check id and region, that there is a mount target in this VPC, and that the VPC has DNS resolution \
                 and DNS hostnames enabled (getent hosts {host}); or -o mounttargetip=ADDRESS"
            ),
        }
    }
}

/// Chooses among `targets`: the zone that was asked for by name, else this
/// machine's own, else any other, which is slower, costs money, and is said.
pub(super) fn choose(
    targets: &[MountTarget],
    wanted: Option<&str>,
    here: &Instance,
) -> Result<Chosen, Reason> {
    if targets.is_empty() {
        return Err(Reason::NoTarget);
    }
    // In the order of zones: every client of a zone makes the same choice.
    let mut usable: Vec<_> = targets
        .iter()
        .filter(|target| target.is_available())
        .collect();
    usable.sort_by(|one, other| one.zone_id.cmp(&other.zone_id));
    let places = |targets: &[&MountTarget]| {
        let places: Vec<_> = targets.iter().map(|target| target.place()).collect();
        in_short(&places.join(", "))
    };
    let Some(first) = usable.first() else {
        let mut states: Vec<_> = targets.iter().map(|target| target.state.as_str()).collect();
        states.sort_unstable();
        states.dedup();
        return Err(Reason::NotReady(in_short(&states.join(", "))));
    };
    let chosen = |target: &MountTarget, warning| Chosen {
        target: target.clone(),
        warning,
    };
    if let Some(wanted) = wanted {
        let there = usable
            .iter()
            .find(|target| [&target.zone, &target.zone_id].contains(&&Some(wanted.to_owned())));
        return match there {
            Some(target) => Ok(chosen(target, None)),
            None => Err(Reason::NotInZone(wanted.to_owned(), places(&usable))),
        };
    }
    let same = |one: &Option<String>, other: &Option<String>| one.is_some() && one == other;
    let own = usable
        .iter()
        .find(|target| same(&target.zone_id, &here.zone_id) || same(&target.zone, &here.zone));
    if let Some(own) = own {
        return Ok(chosen(own, None));
    }
    let here = MountTarget {
        zone_id: here.zone_id.clone(),
        zone: here.zone.clone(),
        ..MountTarget::default()
    };
    let warning = if here.zone_id.is_none() && here.zone.is_none() {
        format!(
            "this machine's zone is not known; using the mount target in zone {}",
            first.place()
        )
    } else {
        format!(
            "there is no mount target in this machine's zone {}; using the one in zone {}, which is slower and is \
             charged as traffic between zones",
            here.place(),
            first.place()
        )
    };
    Ok(chosen(first, Some(warning)))
}

/// The EFS API, as far as it is used.
#[derive(Debug, Clone)]
pub struct Api {
    settings: Settings,
}

impl Api {
    /// With the credentials that `settings` choose. Nothing is asked yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
        }
    }

    pub(super) async fn describe(
        &self,
        file_system: &FileSystem,
    ) -> Result<Vec<MountTarget>, Reason> {
        let source = Source::of(&self.settings, &file_system.region)
            .map_err(|problem| Reason::NoCredentials(problem.to_string()))?;
        let config = source
            .config(&file_system.region)
            .credentials_provider(source.provider())
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_timeout(PATIENCE)
                    .operation_attempt_timeout(ATTEMPT)
                    .build(),
            );
        let config = match self.settings.fips {
            true => config.use_fips(true),
            false => config,
        };
        let client = aws_sdk_efs::Client::new(&config.load().await);
        all(&client, file_system).await
    }
}

/// All mount targets, page by page. A list without an end is none.
pub(super) async fn all(
    client: &aws_sdk_efs::Client,
    file_system: &FileSystem,
) -> Result<Vec<MountTarget>, Reason> {
    let mut targets = Vec::new();
    let mut marker = None;
    for _ in 0..MAX_PAGES {
        let page = client
            .describe_mount_targets()
            .file_system_id(&file_system.id)
            .set_marker(marker)
            .send()
            .await
            .map_err(|why| reason(&why))?;
        targets.extend(page.mount_targets().iter().map(read));
        marker = page.next_marker().map(str::to_owned);
        if marker.is_none() {
            return Ok(targets);
        }
    }
    Err(Reason::Failed("its list has no end".to_owned()))
}

/// Zones become parts of messages: what cannot be the name of one is as good as none.
fn read(target: &MountTargetDescription) -> MountTarget {
    let address = |text: Option<&str>| text.and_then(|text| text.parse().ok());
    let zone = |text: Option<&str>| {
        let name = text.filter(|text| region::is_valid(text));
        name.map(str::to_owned)
    };
    MountTarget {
        ipv4: address(target.ip_address()),
        ipv6: address(target.ipv6_address()),
        zone_id: zone(target.availability_zone_id()),
        zone: zone(target.availability_zone_name()),
        state: target.life_cycle_state().as_str().to_owned(),
    }
}

fn reason<E, R>(why: &SdkError<E, R>) -> Reason
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: std::fmt::Debug + 'static,
{
    if let Some(code) = why.code() {
        return match code {
            "FileSystemNotFound" => Reason::NoFileSystem,
            "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => {
                Reason::NotAllowed
            }
            _ => Reason::Failed(in_short(&match why.message() {
                Some(message) => format!("{code}: {message}"),
                None => code.to_owned(),
            })),
        };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(why);
    while let Some(error) = cause {
        if error.downcast_ref::<CredentialsError>().is_some() {
            return Reason::NoCredentials(innermost(error));
        }
        cause = error.source();
    }
    Reason::Failed(innermost(why))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_credential_types::Credentials;
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
    use aws_smithy_types::body::SdkBody;

    use super::*;

    fn target(zone: &str, id: &str, state: &str, last: u8) -> MountTarget {
        MountTarget {
            ipv4: Some([10, 0, 0, last].into()),
            ipv6: None,
            zone_id: Some(id.to_owned()),
            zone: Some(zone.to_owned()),
            state: state.to_owned(),
        }
    }

    fn here(zone: &str, id: &str) -> Instance {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Instance {
            zone: some(zone),
            zone_id: some(id),
            ..Instance::default()
        }
    }

    fn chosen(targets: &[MountTarget], wanted: Option<&str>, here: &Instance) -> (String, String) {
        match choose(targets, wanted, here) {
            Ok(chosen) => (
                chosen.addresses(2049)[0].ip().to_string(),
                chosen.warning.unwrap_or_default(),
            ),
            Err(reason) => panic!("{reason:?}"),
        }
    }

    #[test]
    fn the_own_zone_comes_first_and_needs_no_warning() {
        let targets = [
            target("eu-west-1b", "euw1-az1", "available", 1),
            target("eu-west-1a", "euw1-az2", "available", 2),
        ];
        let none = String::new();
        assert_eq!(
            chosen(&targets, None, &here("eu-west-1a", "euw1-az2")),
            ("10.0.0.2".to_owned(), none.clone())
        );
        assert_eq!(
            chosen(&targets, None, &here("", "euw1-az1")),
            ("10.0.0.1".to_owned(), none)
        );
    }

    #[test]
    fn another_zone_is_used_with_a_warning_that_names_id_and_name() {
        let targets = [
            target("eu-west-1c", "euw1-az3", "available", 3),
            target("eu-west-1b", "euw1-az1", "available", 1),
            target("eu-west-1a", "euw1-az2", "creating", 2),
        ];
        let (address, warning) = chosen(&targets, None, &here("eu-west-1a", "euw1-az2"));
        assert_eq!(address, "10.0.0.1");
        for words in ["euw1-az2 (eu-west-1a)", "euw1-az1 (eu-west-1b)"] {
            assert!(warning.contains(words), "{warning}");
        }
        let (_, warning) = chosen(&targets, None, &Instance::default());
        assert!(warning.contains("not known") && warning.contains("euw1-az1 (eu-west-1b)"));
    }

    #[test]
    fn a_zone_that_was_asked_for_is_the_only_one() {
        let targets = [
            target("eu-west-1b", "euw1-az1", "available", 1),
            target("eu-west-1a", "euw1-az2", "available", 2),
        ];
        let here = here("eu-west-1a", "euw1-az2");
        assert_eq!(chosen(&targets, Some("eu-west-1b"), &here).0, "10.0.0.1");
        assert_eq!(
            choose(&targets, Some("eu-west-1c"), &here),
            Err(Reason::NotInZone(
                "eu-west-1c".to_owned(),
                "euw1-az1 (eu-west-1b), euw1-az2 (eu-west-1a)".to_owned()
            ))
        );
    }

    /// Answers every request with the same body.
    #[derive(Debug)]
    struct Always {
        body: &'static str,
        asked: Arc<AtomicUsize>,
    }

    impl HttpConnector for Always {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let ok = 200.try_into().unwrap_or_else(|why| panic!("{why}"));
            HttpConnectorFuture::ready(Ok(HttpResponse::new(ok, SdkBody::from(self.body))))
        }
    }

    async fn listed(body: &'static str) -> (Result<Vec<MountTarget>, Reason>, usize) {
        let asked = Arc::new(AtomicUsize::new(0));
        let connector = SharedHttpConnector::new(Always {
            body,
            asked: Arc::clone(&asked),
        });
        let config = aws_sdk_efs::Config::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("AKID", "SECRET", None, None, "test"))
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .build();
        let file_system = FileSystem {
            id: "fs-f223e6bb".to_owned(),
            region: "eu-west-1".to_owned(),
            suffix: "amazonaws.com".to_owned(),
        };
        let targets = all(&aws_sdk_efs::Client::from_conf(config), &file_system).await;
        (targets, asked.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_list_without_an_end_is_not_followed() {
        let (targets, asked) = listed(
            r#"{"MountTargets":[{"MountTargetId":"fsmt-1","FileSystemId":"fs-f223e6bb",
            "SubnetId":"subnet-1","LifeCycleState":"available"}],"NextMarker":"m"}"#,
        )
        .await;
        assert!(matches!(&targets, Err(Reason::Failed(why)) if why.contains("no end")));
        assert_eq!(asked, MAX_PAGES);
    }

    #[tokio::test]
    async fn what_cannot_be_the_name_of_a_zone_is_as_good_as_none() {
        let (targets, _) = listed(
            r#"{"MountTargets":[{"MountTargetId":"fsmt-1","FileSystemId":"fs-f223e6bb",
            "SubnetId":"subnet-1","LifeCycleState":"available","IpAddress":"10.0.0.1",
            "AvailabilityZoneId":"a\n","AvailabilityZoneName":"eu-west-1a"}]}"#,
        )
        .await;
        assert_eq!(
            targets,
            Ok(vec![MountTarget {
                zone_id: None,
                ..target("eu-west-1a", "", "available", 1)
            }])
        );
    }

    #[test]
    fn each_way_of_having_none_has_its_own_words_and_remedy() {
        let nowhere = Instance::default();
        assert_eq!(choose(&[], None, &nowhere), Err(Reason::NoTarget));
        let creating = [
            target("a", "b", "creating", 1),
            target("a", "b", "deleting", 1),
        ];
        assert_eq!(
            choose(&creating, None, &nowhere),
            Err(Reason::NotReady("creating, deleting".to_owned()))
        );
        let file_system = FileSystem {
            id: "fs-f223e6bb".to_owned(),
            region: "eu-west-1".to_owned(),
            suffix: "amazonaws.com".to_owned(),
        };
        let reasons = [
            Reason::NoFileSystem,
            Reason::NoTarget,
            Reason::NotReady("creating".to_owned()),
            Reason::NotInZone("a".to_owned(), "b".to_owned()),
            Reason::NotAllowed,
            Reason::NoCredentials("none".to_owned()),
            Reason::Failed("x".to_owned()),
        ];
        let mut words: Vec<_> = reasons
            .iter()
            .map(|reason| reason.words(&file_system))
            .collect();
        assert!(reasons.iter().all(|reason| !reason.remedy("h").is_empty()));
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), reasons.len());
    }
}
