//! The instance metadata service of EC2: where this machine is.
//!
//! Version 2 only, with a token: a version 1 that anybody can be talked into asking is
//! nothing to fall back to. Where no token comes, as in a container whose packets may not
//! go far enough, the region is said by an option or a variable. The variables of the AWS
//! SDKs count: `AWS_EC2_METADATA_DISABLED`, `AWS_EC2_METADATA_SERVICE_ENDPOINT` and
//! its `_MODE`.

use std::time::Duration;

use serde::Deserialize;

use super::http::{self, Response};
use super::region;

/// Where it listens.
const IPV4: &str = "http://169.254.169.254";
const IPV6: &str = "http://[fd00:ec2::254]";
/// It is on the same host: what is not there answers no packet at all.
const TOKEN_TIME: Duration = Duration::from_millis(500);
const TOKEN_TRIES: u32 = 3;
const DATA_TIME: Duration = Duration::from_secs(1);

/// The metadata service, as the environment describes it.
#[derive(Debug, Clone)]
pub struct Imds {
    endpoint: String,
    enabled: bool,
}

/// Where this machine is, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instance {
    /// `eu-west-1`
    pub region: Option<String>,
    /// The zone's name in this account, `eu-west-1a`.
    pub zone: Option<String>,
    /// The zone's id, the same for all accounts: `euw1-az1`.
    pub zone_id: Option<String>,
    /// What the service's clock says, as an HTTP date.
    pub date: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    region: Option<String>,
    availability_zone: Option<String>,
}

impl Instance {
    /// From an instance identity document and the answer to the question for the zone's
    /// id. They become parts of DNS names and of messages: what cannot be the name of a
    /// region or a zone is as good as none.
    ///
    /// # Errors
    /// One line: the document is no such document.
    pub fn read(
        document: &str,
        zone_id: Option<&str>,
        date: Option<String>,
    ) -> Result<Self, String> {
        let read: Document = serde_json::from_str(document)
            .map_err(|_| "the instance identity document is malformed".to_owned())?;
        let known = |text: Option<String>| text.filter(|text| region::is_valid(text));
        Ok(Self {
            region: known(read.region),
            zone: known(read.availability_zone),
            zone_id: known(zone_id.map(|text| text.trim().to_owned())),
            date,
        })
    }
}

impl Imds {
    /// By the variables of `env`.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name: &str| env(name).filter(|value| !value.is_empty());
        let is_true =
            |name: &str| given(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let ipv6 = given("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")
            .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
        let endpoint = given("AWS_EC2_METADATA_SERVICE_ENDPOINT")
            .unwrap_or_else(|| if ipv6 { IPV6 } else { IPV4 }.to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            enabled: !is_true("AWS_EC2_METADATA_DISABLED"),
        }
    }

    /// Asks where this machine is.
    ///
    /// # Errors
    /// One line that says why it is not known.
    pub async fn instance(&self) -> Result<Instance, String> {
        if !self.enabled {
            return Err(
                "instance metadata are switched off (AWS_EC2_METADATA_DISABLED)".to_owned(),
            );
        }
        let token = self.token().await?;
        let document = self
            .get("/latest/dynamic/instance-identity/document", &token)
            .await?;
        let zone_id = self
            .get("/latest/meta-data/placement/availability-zone-id", &token)
            .await;
        let zone_id = zone_id.ok().map(|answer| answer.body);
        Instance::read(&document.body, zone_id.as_deref(), document.date)
    }

    async fn token(&self) -> Result<String, String> {
        let url = format!("{}/latest/api/token", self.endpoint);
        let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "300")];
        let mut last = String::new();
        for _ in 0..TOKEN_TRIES {
            match http::request("PUT", &url, &ttl, TOKEN_TIME).await {
                Ok(answer) if answer.status == 200 && !answer.body.is_empty() => {
                    return Ok(answer.body);
                }
                Ok(answer) if answer.status < 500 => {
                    return Err(format!(
                        "instance metadata give no token (HTTP status {})",
                        answer.status
                    ));
                }
                Ok(answer) => {
                    last = format!("instance metadata fail (HTTP status {})", answer.status)
                }
                Err(why) => {
                    last = format!("instance metadata at {}: {why}", self.endpoint);
                    // Nobody there: no use in asking again.
                    if !why.starts_with("no answer") {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    async fn get(&self, path: &str, token: &str) -> Result<Response, String> {
        let url = format!("{}{path}", self.endpoint);
        let header = [("X-aws-ec2-metadata-token", token)];
        match http::request("GET", &url, &header, DATA_TIME).await {
            Ok(answer) if answer.status == 200 => Ok(answer),
            Ok(answer) => Err(format!(
                "instance metadata refuse {path} (HTTP status {})",
                answer.status
            )),
            Err(why) => Err(format!("instance metadata at {}: {why}", self.endpoint)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Imds {
        Imds::from_env(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_of_the_sdks_count_and_empty_ones_do_not() {
        let plain = of(&[]);
        assert_eq!((plain.endpoint.as_str(), plain.enabled), (IPV4, true));
        let empty = of(&[
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", ""),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", ""),
            ("AWS_EC2_METADATA_DISABLED", ""),
        ]);
        assert_eq!((empty.endpoint.as_str(), empty.enabled), (IPV4, true));
        assert_eq!(
            of(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")]).endpoint,
            IPV6
        );
        let other = of(&[(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            "http://127.0.0.1:1338/",
        )]);
        assert_eq!(other.endpoint, "http://127.0.0.1:1338");
        assert!(!of(&[("AWS_EC2_METADATA_DISABLED", "TRUE")]).enabled);
    }

    #[test]
    fn what_cannot_be_the_name_of_a_region_or_a_zone_is_as_good_as_none() {
        let read = |document: &str, zone_id: &str| {
            Instance::read(document, Some(zone_id), None).unwrap_or_else(|why| panic!("{why}"))
        };
        let good =
            r#"{"region":"eu-west-1","availabilityZone":"eu-west-1a","version":"2017-09-30"}"#;
        let known = |text: &str| Some(text.to_owned());
        assert_eq!(
            read(good, "euw1-az1\n"),
            Instance {
                region: known("eu-west-1"),
                zone: known("eu-west-1a"),
                zone_id: known("euw1-az1"),
                date: None,
            }
        );
        let bad = r#"{"region":"eu-west-1.evil.example/","availabilityZone":"a\n\u001b[2J"}"#;
        for zone_id in ["", "a b", "<html><title>Sign in</title>", &"a".repeat(64)] {
            assert_eq!(read(bad, zone_id), Instance::default(), "{zone_id}");
        }
        assert!(Instance::read("<html>", None, None).is_err());
    }

    #[tokio::test]
    async fn what_is_switched_off_is_not_asked() {
        let off = of(&[("AWS_EC2_METADATA_DISABLED", "true")])
            .instance()
            .await;
        assert!(off.is_err_and(|why| why.contains("AWS_EC2_METADATA_DISABLED")));
    }

    #[tokio::test]
    async fn nobody_there_is_said_soon() {
        let begun = std::time::Instant::now();
        let nobody = of(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")]);
        let why = nobody.instance().await;
        assert!(
            why.as_ref()
                .is_err_and(|why| why.contains("connection refused")),
            "{why:?}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
