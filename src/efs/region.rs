//! The AWS region of a bare file system id, and the DNS names of a region.
//!
//! The region is that of the file system, not of this machine: it becomes part
//! of the server's name. Order: `-o region=`, `AWS_REGION`,
//! `AWS_DEFAULT_REGION`. A variable that is set but empty counts as unset.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::ProvideRegion;

/// The longest region name; AWS's own are at most 16 characters.
const MAX_LEN: usize = 32;

/// Finds the region: `option` (of `-o region=`) wins, then the environment.
/// `None` if neither names one.
pub fn find(option: Option<&str>) -> Option<String> {
    let option = option.filter(|name| !name.is_empty()).map(str::to_owned);
    option.or_else(|| {
        let provided = provided();
        first_non_empty(provided, || std::env::var("AWS_DEFAULT_REGION").ok())
    })
}

/// What aws-config reads from `AWS_REGION` and `AWS_DEFAULT_REGION`. Its future
/// is ready at once (it only reads variables), so no runtime is needed; one
/// that were not would count as no region.
fn provided() -> Option<String> {
    let provider = EnvironmentVariableRegionProvider::new();
    let region = pin!(provider.region());
    match region.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(region) => region.map(|region| region.as_ref().to_owned()),
        Poll::Pending => None,
    }
}

/// aws-config takes an empty `AWS_REGION` for an answer; to us it is none, and
/// the variable behind it gets its turn.
fn first_non_empty(
    provided: Option<String>,
    default: impl FnOnce() -> Option<String>,
) -> Option<String> {
    provided
        .filter(|name| !name.is_empty())
        .or_else(|| default().filter(|name| !name.is_empty()))
}

/// Whether `name` can be a region: letters, digits and hyphens in lower case,
/// no hyphen at either end, at most 32 characters.
pub fn is_valid(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_LEN
        && name.bytes().all(|c| inner(c) || c == b'-')
        && name.bytes().next().is_some_and(inner)
        && name.bytes().last().is_some_and(inner)
}

/// The DNS suffix of the partition that `region` belongs to.
pub fn dns_suffix(region: &str) -> &'static str {
    match region {
        "cn-north-1" | "cn-northwest-1" => "amazonaws.com.cn",
        "eusc-de-east-1" => "amazonaws.eu",
        "eu-isoe-west-1" => "cloud.adc-e.uk",
        "us-iso-east-1" | "us-iso-west-1" => "c2s.ic.gov",
        "us-isob-east-1" | "us-isob-west-1" => "sc2s.sgov.gov",
        "us-isof-east-1" | "us-isof-south-1" => "csp.hci.ic.gov",
        _ => "amazonaws.com",
    }
}

/// The name of a file system's mount target in the zone of the resolver.
pub fn dns_name(fs_id: &str, region: &str) -> String {
    format!("{fs_id}.efs.{region}.{}", dns_suffix(region))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_wins_over_the_environment() {
        assert_eq!(find(Some("eu-north-1")).as_deref(), Some("eu-north-1"));
    }

    #[test]
    fn a_variable_that_is_set_but_empty_counts_as_unset() {
        let default = || Some("eu-west-1".to_owned());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            first_non_empty(some(""), default).as_deref(),
            Some("eu-west-1")
        );
        assert_eq!(
            first_non_empty(some("us-east-2"), default).as_deref(),
            Some("us-east-2")
        );
        assert_eq!(first_non_empty(None, || some("")), None);
        assert_eq!(first_non_empty(None, || None), None);
    }

    #[test]
    fn every_partition_has_its_own_suffix() {
        assert_eq!(
            dns_name("fs-f223e6bb", "us-east-1"),
            "fs-f223e6bb.efs.us-east-1.amazonaws.com"
        );
        assert_eq!(
            dns_name("fs-1", "cn-north-1"),
            "fs-1.efs.cn-north-1.amazonaws.com.cn"
        );
        assert_eq!(dns_suffix("us-gov-west-1"), "amazonaws.com");
        assert_eq!(dns_suffix("eusc-de-east-1"), "amazonaws.eu");
    }

    #[test]
    fn malformed_regions_are_refused() {
        for good in ["us-east-1", "mx-central-1", "x"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", "-a", "a-", "US-EAST-1", "a b", "a.b", &"a".repeat(33)] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
