//! Where AWS credentials come from.
//!
//! | option | source, and no other |
//! |---|---|
//! | `awscredsuri=` | the container credential service |
//! | `rolearn=` with `jwtpath=` | STS, for a web identity token |
//! | `awsprofile=` | that profile of `~/.aws` |
//! | none of them | the chain of the AWS SDKs: environment, profile, web identity, container (ECS, EKS Pod Identity), instance role |
//!
//! Secrets are held by `aws_credential_types::Credentials`, which does not show
//! them, and for as long as a signature takes.

use std::time::Duration;

use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use serde::Deserialize;

use super::http::{self, innermost};
use super::problem::{Problem, Step};
use super::settings::Settings;
use crate::quoting;

/// The container credential service.
const CONTAINER: &str = "http://169.254.170.2";
/// How STS is told who asks.
const SESSION: &str = "efs-fuse";
/// How long finding credentials may take: some answers come over the network.
const PATIENCE: Duration = Duration::from_secs(10);

/// One source of credentials.
#[derive(Debug, Clone)]
pub(super) struct Source {
    provider: SharedCredentialsProvider,
    which: Which,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    Uri(String),
    WebIdentity { role: String, file: String },
    Profile(String),
    Chain,
}

impl Source {
    /// The one that the options choose.
    pub(super) async fn of(settings: &Settings, region: &str) -> Self {
        let mut config =
            ProviderConfig::default().with_region(Some(Region::new(region.to_owned())));
        if settings.fips {
            config = config.with_use_fips(Some(true));
        }
        if let Some(uri) = &settings.credentials_uri {
            return Self {
                provider: SharedCredentialsProvider::new(Container(format!("{CONTAINER}{uri}"))),
                which: Which::Uri(uri.clone()),
            };
        }
        if let (Some(role), Some(file)) = (&settings.role, &settings.token_file) {
            let provider = WebIdentityTokenCredentialsProvider::builder()
                .static_configuration(StaticConfiguration {
                    web_identity_token_file: file.clone(),
                    role_arn: role.clone(),
                    session_name: SESSION.to_owned(),
                })
                .configure(&config)
                .build();
            return Self {
                provider: SharedCredentialsProvider::new(provider),
                which: Which::WebIdentity {
                    role: role.clone(),
                    file: quoting::path(file).to_string(),
                },
            };
        }
        if let Some(profile) = &settings.profile {
            let provider = ProfileFileCredentialsProvider::builder()
                .profile_name(profile)
                .configure(&config)
                .build();
            return Self {
                provider: SharedCredentialsProvider::new(provider),
                which: Which::Profile(profile.clone()),
            };
        }
        let chain = DefaultCredentialsChain::builder()
            .configure(config)
            .build()
            .await;
        Self {
            provider: SharedCredentialsProvider::new(chain),
            which: Which::Chain,
        }
    }

    /// Any provider, where the chain would be.
    #[cfg(test)]
    pub(super) fn for_tests(provider: impl ProvideCredentials + 'static) -> Self {
        Self {
            provider: SharedCredentialsProvider::new(provider),
            which: Which::Chain,
        }
    }

    /// For the SDK's own clients.
    pub(super) fn provider(&self) -> SharedCredentialsProvider {
        self.provider.clone()
    }

    /// Credentials, as they are now.
    ///
    /// # Errors
    /// There are none, each source with its own remedy.
    pub(super) async fn get(&self) -> Result<Credentials, Problem> {
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

impl Which {
    fn problem(&self, why: &CredentialsError) -> Problem {
        let words = innermost(why);
        match (self, why) {
            (Self::Chain, CredentialsError::CredentialsNotLoaded(_)) => self.failed(
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
                format!("getting AWS credentials of {role} for the token in {file}"),
                "check that the file is there and the token fresh, and that the role trusts its issuer".to_owned(),
            ),
            Self::Profile(name) => (
                format!("getting AWS credentials of profile {name}"),
                format!("check [{name}] in ~/.aws/credentials and [profile {name}] in ~/.aws/config, of the user who mounts"),
            ),
            Self::Chain => (
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
struct Answer {
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
            // serde's words would quote what it read.
            let read: Answer = serde_json::from_str(&answer.body)
                .map_err(|_| CredentialsError::provider_error("the answer holds no credentials"))?;
            Ok(Credentials::new(
                read.access_key_id,
                read.secret_access_key,
                read.token,
                None,
                "awscredsuri",
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let problem = Source::of(&settings, "eu-west-1").await.get().await;
            match problem {
                Ok(credentials) => panic!("{credentials:?}"),
                Err(problem) => {
                    assert!(problem.what.contains(what), "{problem:?}");
                    assert!(problem.remedy.is_some(), "{problem:?}");
                }
            }
        }
    }
}
