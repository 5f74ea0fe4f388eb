//! Where AWS credentials come from.
//!
//! | option | source, and no other |
//! |---|---|
//! | `awscredsuri=` | the container credential service |
//! | `rolearn=` with `jwtpath=` | STS, for a web identity token |
//! | `awsprofile=` | that profile of `~/.aws` |
//! | `iam` with none of them | the chain of the AWS SDKs: environment, profile, web identity, container (ECS, EKS Pod Identity), instance role |
//! | no `iam` | the same without profiles, for the EFS API where names do not resolve |
//!
//! The files of profiles are believed as [`super::profile`] says. A profile may name a
//! program (`credential_process`): everything here runs in a thread of its own that has
//! given up all capabilities for good ([`privilege::renounce`]), so that the program has
//! none.
//!
//! Secrets are held by `aws_credential_types::Credentials`, which does not show
//! them, and for as long as a signature takes.

use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_runtime::env_config::file::EnvConfigFiles;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::connector::env;
use super::http::{self, innermost};
use super::problem::{Problem, Step};
use super::profile::{self, Profiles};
use super::settings::Settings;
use crate::privilege;
use crate::quoting;

/// The container credential service.
const CONTAINER: &str = "http://169.254.170.2";
/// How STS is told who asks.
const SESSION: &str = "efs-fuse";
/// How long finding credentials may take: some answers come over the network.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who waits for credentials at a time: those that mint a certificate, one by one, and
/// the SDK's client.
const WAITING: usize = 16;

/// One source of credentials.
#[derive(Debug, Clone)]
pub(super) struct Source {
    provider: SharedCredentialsProvider,
    which: Which,
    /// Where they may be read.
    profiles: Option<Profiles>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    Uri(String),
    WebIdentity { role: String, file: String },
    Profile(String),
    Chain { profiles: bool },
}

impl Source {
    /// The one that the options choose.
    ///
    /// # Errors
    /// A configuration file is not to be believed, or there is no thread.
    pub(super) fn of(settings: &Settings, region: &str) -> Result<Self, Problem> {
        let which = Which::of(settings);
        let profiles = match settings.may_read_profiles() {
            true => Some(profile::read(env)?),
            false => None,
        };
        let plan = Plan {
            which: which.clone(),
            files: files_of(profiles.as_ref()),
            region: Region::new(region.to_owned()),
            fips: settings.fips,
        };
        let apart = Apart::start(plan).map_err(|why| {
            Problem::new(
                Step::Credentials,
                "starting a thread for AWS credentials",
                why,
            )
        })?;
        Ok(Self {
            provider: SharedCredentialsProvider::new(apart),
            which,
            profiles,
        })
    }

    /// Any provider, where the chain would be.
    #[cfg(test)]
    pub(super) fn for_tests(provider: impl ProvideCredentials + 'static) -> Self {
        Self {
            provider: SharedCredentialsProvider::new(provider),
            which: Which::Chain { profiles: true },
            profiles: None,
        }
    }

    /// For the SDK's own clients.
    pub(super) fn provider(&self) -> SharedCredentialsProvider {
        self.provider.clone()
    }

    /// A configuration of the SDK that reads no files but those that are believed.
    pub(super) fn config(&self, region: &str) -> ConfigLoader {
        let files = files_of(self.profiles.as_ref());
        loader(&self.which, &files, Region::new(region.to_owned()))
    }

    /// Credentials, as they are now.
    ///
    /// # Errors
    /// There are none, each source with its own remedy.
    pub(super) async fn get(&self) -> Result<Credentials, Problem> {
        if let (Which::Profile(name), Some(profiles)) = (&self.which, &self.profiles) {
            profiles.find(name).await?;
        }
        match tokio::time::timeout(PATIENCE, self.provider.provide_credentials()).await {
            Ok(Ok(credentials)) => Ok(credentials),
            Ok(Err(why)) => Err(self.which.problem(&why)),
            Err(_) => {
                let why = format!("no answer within {} s", PATIENCE.as_secs());
                Err(self.which.failed(&why))
            }
        }
    }
}

fn files_of(profiles: Option<&Profiles>) -> EnvConfigFiles {
    profiles.map_or_else(profile::none, |read| read.files().clone())
}

/// The profile that `settings` name, and the files in which it may be written; `None` where no
/// option names one.
///
/// # Errors
/// There is no such profile, or a file is not to be believed.
pub(super) async fn named_profile(settings: &Settings) -> Result<Option<String>, Problem> {
    let Which::Profile(name) = Which::of(settings) else {
        return Ok(None);
    };
    let files = profile::read(env)?.find(&name).await?;
    Ok(Some(format!("{}, of {files}", quoting::plain(&name))))
}

fn loader(which: &Which, files: &EnvConfigFiles, region: Region) -> ConfigLoader {
    let loader = aws_config::defaults(BehaviorVersion::latest())
        .region(region)
        .profile_files(files.clone());
    match which {
        // AWS_PROFILE would name one that is not there.
        Which::Chain { profiles: true } | Which::Profile(_) => loader,
        _ => loader.profile_name("default"),
    }
}

/// What the thread makes its provider of.
#[derive(Debug)]
struct Plan {
    which: Which,
    files: EnvConfigFiles,
    region: Region,
    fips: bool,
}

impl Plan {
    async fn provider(self) -> Option<SharedCredentialsProvider> {
        let mut config = ProviderConfig::default().with_region(Some(self.region.clone()));
        if self.fips {
            config = config.with_use_fips(Some(true));
        }
        Some(match self.which {
            Which::Uri(uri) => {
                SharedCredentialsProvider::new(Container(format!("{CONTAINER}{uri}")))
            }
            Which::WebIdentity { role, file } => {
                let provider = WebIdentityTokenCredentialsProvider::builder()
                    .static_configuration(StaticConfiguration {
                        web_identity_token_file: file.into(),
                        role_arn: role,
                        session_name: SESSION.to_owned(),
                    })
                    .configure(&config)
                    .build();
                SharedCredentialsProvider::new(provider)
            }
            Which::Profile(name) => {
                let provider = ProfileFileCredentialsProvider::builder()
                    .profile_name(name)
                    .profile_files(self.files)
                    .configure(&config)
                    .build();
                SharedCredentialsProvider::new(provider)
            }
            Which::Chain { .. } => {
                let loader = loader(&self.which, &self.files, self.region);
                let loader = match self.fips {
                    true => loader.use_fips(true),
                    false => loader,
                };
                loader.load().await.credentials_provider()?
            }
        })
    }
}

type ProviderReply = oneshot::Sender<provider::Result>;

/// A provider in a thread without capabilities, which ends with this.
#[derive(Debug)]
struct Apart(mpsc::Sender<ProviderReply>);

impl Apart {
    fn start(plan: Plan) -> std::io::Result<Self> {
        let (asking, asked) = mpsc::channel(WAITING);
        std::thread::Builder::new()
            .name("efs-fuse-iam".to_owned())
            .spawn(move || {
                if let Err(why) = provide(plan, asked) {
                    tracing::error!("AWS credentials: {why}");
                }
            })?;
        Ok(Self(asking))
    }
}

/// Answers until nobody can ask any more.
fn provide(plan: Plan, mut asked: mpsc::Receiver<ProviderReply>) -> std::io::Result<()> {
    privilege::renounce()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let provider = plan.provider().await;
        while let Some(reply) = asked.recv().await {
            let found = match &provider {
                Some(provider) => provider.provide_credentials().await.and_then(usable),
                None => Err(CredentialsError::not_loaded_no_source()),
            };
            // Who asked may have given up.
            let _ = reply.send(found);
        }
    });
    Ok(())
}

impl ProvideCredentials for Apart {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let ended = || CredentialsError::unhandled("the thread that finds them has ended");
            let (reply, found) = oneshot::channel();
            self.0.send(reply).await.map_err(|_| ended())?;
            found.await.map_err(|_| ended())?
        })
    }
}

impl Which {
    fn of(settings: &Settings) -> Self {
        if let Some(uri) = &settings.credentials_uri {
            return Self::Uri(uri.clone());
        }
        if let (Some(role), Some(file)) = (&settings.role, &settings.token_file) {
            return Self::WebIdentity {
                role: role.clone(),
                file: file.display().to_string(),
            };
        }
        match &settings.profile {
            Some(profile) => Self::Profile(profile.clone()),
            None => Self::Chain {
                profiles: settings.may_read_profiles(),
            },
        }
    }

    fn problem(&self, why: &CredentialsError) -> Problem {
        let words = innermost(why);
        match (self, why) {
            (Self::Chain { .. }, CredentialsError::CredentialsNotLoaded(_)) => self.failed(
                "there are none in the environment, in ~/.aws, from a web identity, a container or an instance role",
            ),
            _ => self.failed(&words),
        }
    }

    fn failed(&self, why: &str) -> Problem {
        let (what, remedy) = match self {
            Self::Uri(uri) => (
                format!("getting AWS credentials from awscredsuri={uri}"),
                "the value of AWS_CONTAINER_CREDENTIALS_RELATIVE_URI of an ECS task that has a task role".to_owned(),
            ),
            Self::WebIdentity { role, file } => (
                format!("getting AWS credentials of {role} for the token in {}", quoting::name(file)),
                "check that the file is there and the token fresh, and that the role trusts its issuer".to_owned(),
            ),
            Self::Profile(name) => (
                format!("getting AWS credentials of profile {name}"),
                format!("check [{name}] in ~/.aws/credentials and [profile {name}] in ~/.aws/config, of the user who mounts"),
            ),
            Self::Chain { .. } => (
                "getting AWS credentials for iam".to_owned(),
                "attach a role to this instance or task, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or -o awsprofile=NAME"
                    .to_owned(),
            ),
        };
        Problem::new(Step::Credentials, what, why).remedy(remedy)
    }
}

/// The container credential service, by a URL.
#[derive(Debug)]
struct Container(String);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerCredentials {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
}

impl ProvideCredentials for Container {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let answer = http::request("GET", &self.0, &[], Duration::from_secs(3))
                .await
                .map_err(CredentialsError::provider_error)?;
            if answer.status != 200 {
                let why = format!("HTTP status {}", answer.status);
                return Err(CredentialsError::provider_error(why));
            }
            read(&answer.body)
        })
    }
}

/// What the container credential service has answered.
///
/// # Errors
/// No credentials.
pub fn read(body: &str) -> provider::Result {
    // serde's words would quote what it read.
    let read: ContainerCredentials = serde_json::from_str(body)
        .map_err(|_| CredentialsError::provider_error("the answer holds no credentials"))?;
    Ok(Credentials::new(
        read.access_key_id,
        read.secret_access_key,
        read.token,
        None,
        "awscredsuri",
    ))
}

/// Credentials that requests can carry. The SDK puts key id and token into headers, and
/// panics where they do not fit.
///
/// # Errors
/// There are characters in them that none has.
pub fn usable(credentials: Credentials) -> provider::Result {
    let id = credentials.access_key_id();
    let token = credentials.session_token().unwrap_or_default();
    let fits = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    match !id.is_empty() && fits(id) && fits(token) {
        true => Ok(credentials),
        false => Err(CredentialsError::provider_error(
            "the access key id or the session token is malformed",
        )),
    }
}

/// What is said of it that the source which `settings` choose has no credentials.
pub fn none_found(settings: &Settings, why: &CredentialsError) -> Problem {
    Which::of(settings).problem(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzzer.
    #[test]
    fn what_no_request_can_carry_is_no_credentials() {
        let of = |id: &str, token: Option<&str>| {
            usable(Credentials::new(
                id,
                "s3cret",
                token.map(str::to_owned),
                None,
                "test",
            ))
        };
        assert!(of("AKIDEXAMPLE", None).is_ok());
        assert!(of("AKIDEXAMPLE", Some("IQoJb3JpZ2lu//+/=")).is_ok());
        for (id, token) in [
            ("", None),
            ("AKID\n", None),
            ("AKID\u{1b}[2J", None),
            ("AKID", Some("a b")),
            ("AKID", Some("\u{202e}ä")),
        ] {
            let why = of(id, token).expect_err("usable");
            let problem = none_found(&Settings::default(), &why).to_string();
            assert!(problem.contains("malformed"), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }

    #[tokio::test]
    async fn an_option_is_the_only_source_and_its_absence_is_said() {
        let settings = [
            (
                Settings {
                    profile: Some("no-such-profile".to_owned()),
                    ..Settings::default()
                },
                "profile no-such-profile",
            ),
            (
                Settings {
                    role: Some("arn:aws:iam::123456789012:role/r".to_owned()),
                    token_file: Some("/nonexistent/token".into()),
                    ..Settings::default()
                },
                "role/r for the token in /nonexistent/token",
            ),
        ];
        for (settings, what) in settings {
            let settings = Settings {
                iam: true,
                ..settings
            };
            let source = Source::of(&settings, "eu-west-1").unwrap_or_else(|why| panic!("{why}"));
            match source.get().await {
                Ok(credentials) => panic!("{credentials:?}"),
                Err(problem) => {
                    assert!(problem.what.contains(what), "{problem:?}");
                    assert!(problem.remedy.is_some(), "{problem:?}");
                }
            }
        }
    }
}
