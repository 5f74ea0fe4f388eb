//! The AWS region of a bare file system id, and the DNS names of a region.
//!
//! The region is that of the file system, not of this machine: it becomes part
//! of the server's name and of the signature. Order: `-o region=`,
//! `AWS_REGION`, `AWS_DEFAULT_REGION`, the region this machine is in by its
//! instance metadata. A variable that is set but empty counts as unset.

/// The longest region name; AWS's own are at most 16 characters.
const MAX_LEN: usize = 32;

/// The region that the variables `env` name, if they name one.
pub fn of_env(env: impl Fn(&str) -> Option<String>) -> Option<String> {
    ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .iter()
        .find_map(|name| env(name).filter(|region| !region.is_empty()))
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
    fn a_variable_that_is_set_but_empty_counts_as_unset() {
        let of = |region: &'static str, default: &'static str| {
            of_env(move |name| {
                let value = if name == "AWS_REGION" {
                    region
                } else {
                    default
                };
                Some(value.to_owned())
            })
        };
        assert_eq!(of("", "eu-west-1").as_deref(), Some("eu-west-1"));
        assert_eq!(of("us-east-2", "eu-west-1").as_deref(), Some("us-east-2"));
        assert_eq!(of("", ""), None);
        assert_eq!(of_env(|_| None), None);
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
