//! The AWS region of a bare file system id, and the DNS names of a region.
//!
//! The region is that of the file system, not of this machine: it becomes part
//! of the server's name and of the signature. Order: `-o region=`,
//! `AWS_REGION`, `AWS_DEFAULT_REGION`, the region this machine is in by its
//! instance metadata. A variable that is set but empty counts as unset.

/// The longest region name; AWS's own are at most 16 characters.
const MAX_LEN: usize = 32;
/// The longest suffix that leaves room for what comes before it in a DNS name
/// (253 characters, RFC 1035 section 2.3.4).
const MAX_SUFFIX: usize = 128;

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

/// Whose certificates the mount targets of a partition have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Issuers {
    /// Amazon Root CA 1 to 4, which are built in.
    Amazon,
    /// Those that the machine images of the partition bring, so this system's.
    System,
}

/// A partition of AWS whose names differ from the usual.
struct Partition {
    /// What the names of all its regions begin with, so that a region is known
    /// that is younger than this program.
    regions: &'static str,
    /// What its DNS names end in.
    suffix: &'static str,
    issuers: Issuers,
}

const fn apart(regions: &'static str, suffix: &'static str) -> Partition {
    Partition {
        regions,
        suffix,
        issuers: Issuers::System,
    }
}

/// The suffix of all partitions that are not among the exceptions, GovCloud's too.
const USUAL: &str = "amazonaws.com";

/// The exceptions, and only those (the official client's configuration has the
/// same, region by region).
const EXCEPTIONS: [Partition; 6] = [
    Partition {
        regions: "cn-",
        suffix: "amazonaws.com.cn",
        issuers: Issuers::Amazon,
    },
    apart("eusc-", "amazonaws.eu"),
    apart("eu-isoe-", "cloud.adc-e.uk"),
    apart("us-iso-", "c2s.ic.gov"),
    apart("us-isob-", "sc2s.sgov.gov"),
    apart("us-isof-", "csp.hci.ic.gov"),
];

/// The DNS suffix of the partition that `region` belongs to.
pub fn dns_suffix(region: &str) -> &'static str {
    let partition = EXCEPTIONS
        .iter()
        .find(|partition| region.starts_with(partition.regions));
    partition.map_or(USUAL, |partition| partition.suffix)
}

/// Who issues the certificates of mount targets whose names end in `suffix`:
/// Amazon, unless it is that of a partition with issuers of its own.
pub fn issuers(suffix: &str) -> Issuers {
    let partition = EXCEPTIONS
        .iter()
        .find(|partition| partition.suffix == suffix);
    partition.map_or(Issuers::Amazon, |partition| partition.issuers)
}

/// Whether `text` can be what DNS names end in: at least two labels of letters,
/// digits and hyphens in lower case, and no address.
pub fn is_suffix(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| inner(c) || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= MAX_SUFFIX
        && text.contains('.')
        && text.split('.').all(label)
        && !last.bytes().all(|c| c.is_ascii_digit())
}

/// The name of a file system's mount target in the zone of the resolver.
pub fn dns_name(fs_id: &str, region: &str, suffix: &str) -> String {
    format!("{fs_id}.efs.{region}.{suffix}")
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
    fn every_partition_has_its_own_suffix_also_for_regions_that_are_younger_than_this() {
        for (region, suffix) in [
            ("us-east-1", "amazonaws.com"),
            ("us-gov-west-1", "amazonaws.com"),
            ("mars-north-7", "amazonaws.com"),
            ("us-isolation-1", "amazonaws.com"),
            ("cn-north-1", "amazonaws.com.cn"),
            ("cn-south-9", "amazonaws.com.cn"),
            ("eusc-de-east-1", "amazonaws.eu"),
            ("eusc-fr-west-2", "amazonaws.eu"),
            ("eu-isoe-west-1", "cloud.adc-e.uk"),
            ("us-iso-north-3", "c2s.ic.gov"),
            ("us-isob-west-1", "sc2s.sgov.gov"),
            ("us-isof-south-1", "csp.hci.ic.gov"),
        ] {
            assert_eq!(dns_suffix(region), suffix, "{region}");
        }
        assert_eq!(
            dns_name("fs-1", "cn-north-1", dns_suffix("cn-north-1")),
            "fs-1.efs.cn-north-1.amazonaws.com.cn"
        );
    }

    #[test]
    fn the_issuers_of_the_system_are_for_partitions_that_have_no_others() {
        for suffix in ["amazonaws.com", "amazonaws.com.cn", "corp.example"] {
            assert_eq!(issuers(suffix), Issuers::Amazon, "{suffix}");
        }
        for suffix in ["c2s.ic.gov", "amazonaws.eu"] {
            assert_eq!(issuers(suffix), Issuers::System, "{suffix}");
        }
    }

    #[test]
    fn malformed_suffixes_are_refused() {
        for good in ["amazonaws.com", "a.b-c.d1"] {
            assert!(is_suffix(good), "{good}");
        }
        for bad in [
            "", "com", ".com", "a.", "a..b", "A.com", "a_b.com", "-a.com", "10.0.0.1", "a.b/c",
        ] {
            assert!(!is_suffix(bad), "{bad}");
        }
        assert!(!is_suffix(&"a.".repeat(90)));
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
