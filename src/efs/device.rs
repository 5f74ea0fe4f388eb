//! The DEVICE argument: which server, which directory of it.
//!
//! | written | means |
//! |---|---|
//! | `fs-f223e6bb`, `fs-f223e6bb:/dir` | an EFS file system of the region in force |
//! | `fs-….efs.REGION.SUFFIX[:/dir]`, also with a zone before it | the same, by its DNS name |
//! | `HOST[:/dir]`, `192.0.2.1:/dir` | any NFSv4.1 server |
//! | `[2001:db8::1]:/dir`, `[fe80::1%eth0]` | the same by IPv6 address |
//!
//! The directory is relative to the server's root and defaults to it. Reading
//! is pure: no name is resolved here.
//!
//! EFS is encrypted and other servers are not unless it is said, so a name that
//! was meant for EFS must not be taken for another server's. A name whose first
//! or second label begins with `fs-`, in any case, is one of EFS or in doubt
//! ([`DeviceKind::Doubtful`]), which [`super::settings`] refuses until `tls` or
//! `notls` says what it is.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::region;

/// The longest DNS name (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 253;
/// The longest path: PATH_MAX without its zero byte.
const MAX_PATH: usize = 4095;

/// What kind of server a [`Device`] names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    /// A bare EFS file system id.
    FileSystemId {
        /// `fs-` and 8 to 40 hexadecimal digits.
        fs_id: String,
    },
    /// An EFS DNS name.
    EfsName {
        /// The zone name or id before the file system id, if there is one.
        zone: Option<String>,
        /// `fs-` and hexadecimal digits.
        fs_id: String,
        /// The region in the name.
        region: String,
        /// What follows the region, without a dot at its end. Whether it is that
        /// of the region is for [`super::settings`] to say: `dns_suffix=` counts.
        suffix: String,
    },
    /// A host name that looks like one of EFS and is none.
    Doubtful {
        /// What is missing for it to be one.
        why: &'static str,
    },
    /// Any other host name.
    Host,
    /// An IPv4 or IPv6 address.
    Address,
}

/// A parsed DEVICE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What was named.
    pub kind: DeviceKind,
    /// The name or address to connect to; an IPv6 address without brackets, the
    /// name of a file system in lower case.
    /// A bare file system id has none before its region is known
    /// (`super::target`).
    pub host: String,
    /// Absolute path on the server: no empty, `.` or `..` components, no `/` at
    /// the end unless it is all of it.
    pub path: String,
    /// The name of the mount in the mount table: `HOST:/dir`, as typed but with
    /// the directory made explicit.
    pub spec: String,
}

/// Why a DEVICE cannot be understood. The text is the WHY of an error line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Nothing was given.
    #[error("the device is empty")]
    Empty,
    /// There is a path but nothing before it.
    #[error("{0:?} names no server")]
    NoHost(String),
    /// Not a name that DNS allows.
    #[error("{host:?} is no host name: {why}")]
    BadHost {
        /// The text before the colon.
        host: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Brackets that do not hold an IPv6 address.
    #[error("{0:?} is no IPv6 address")]
    BadAddress(String),
    /// An IPv6 address without brackets cannot be told from `HOST:PATH`.
    #[error("an IPv6 address is written in brackets, [{0}]")]
    Unbracketed(String),
    /// The directory is not usable.
    #[error("the directory {path:?} {why}")]
    BadPath {
        /// The text after the colon.
        path: String,
        /// Which rule it breaks.
        why: &'static str,
    },
}

impl Device {
    /// Reads a DEVICE argument.
    ///
    /// # Errors
    /// The text names no server, or its directory cannot be used.
    pub fn parse(text: &str) -> Result<Self, DeviceError> {
        if text.is_empty() {
            return Err(DeviceError::Empty);
        }
        let (host, path) = split(text)?;
        if host.is_empty() {
            return Err(DeviceError::NoHost(text.to_owned()));
        }
        let path = clean_path(path)?;
        let (kind, host, shown) = match host.strip_prefix('[') {
            Some(inside) => {
                let address = inside.strip_suffix(']').unwrap_or(inside);
                check_ipv6(address)?;
                (DeviceKind::Address, address, format!("[{address}]"))
            }
            None => (kind_of(host)?, host, host.to_owned()),
        };
        // Ids are in lower case, and so is what is signed; in DNS it is the same.
        let (host, shown) = match &kind {
            DeviceKind::FileSystemId { fs_id } => (fs_id.clone(), fs_id.clone()),
            DeviceKind::EfsName { .. } => (host.to_ascii_lowercase(), shown.to_ascii_lowercase()),
            _ => (host.to_owned(), shown),
        };
        Ok(Self {
            kind,
            host,
            spec: format!("{shown}:{path}"),
            path,
        })
    }

    /// Whether this is an EFS file system, by its id or its DNS name.
    pub fn is_efs(&self) -> bool {
        matches!(
            self.kind,
            DeviceKind::FileSystemId { .. } | DeviceKind::EfsName { .. }
        )
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.spec)
    }
}

/// Splits at the first colon outside brackets; no colon, or nothing after it,
/// means the root.
fn split(text: &str) -> Result<(&str, &str), DeviceError> {
    if text.starts_with('[') {
        let end = text
            .find(']')
            .ok_or_else(|| DeviceError::BadAddress(text.to_owned()))?;
        let (host, rest) = text.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(path) => Ok((host, path)),
            None if rest.is_empty() => Ok((host, "")),
            None => Err(DeviceError::BadAddress(text.to_owned())),
        };
    }
    let Some((host, path)) = text.split_once(':') else {
        return Ok((text, ""));
    };
    // "::1:/x": everything before the path is an address.
    let before_path = text.split_once('/').map_or(text, |(before, _)| before);
    let bare = before_path
        .strip_suffix(':')
        .filter(|_| path.contains('/'))
        .unwrap_or(before_path);
    for address in [bare, before_path] {
        let number = address
            .split_once('%')
            .map_or(address, |(number, _)| number);
        if number.parse::<Ipv6Addr>().is_ok() {
            return Err(DeviceError::Unbracketed(address.to_owned()));
        }
    }
    Ok((host, path))
}

fn clean_path(path: &str) -> Result<String, DeviceError> {
    let refuse = |why| {
        Err(DeviceError::BadPath {
            path: path.to_owned(),
            why,
        })
    };
    if path.is_empty() {
        return Ok("/".to_owned());
    }
    if !path.starts_with('/') {
        return refuse("does not begin with /");
    }
    if path.len() > MAX_PATH {
        return refuse("is too long");
    }
    if path.bytes().any(|byte| byte.is_ascii_control()) {
        return refuse("contains a control character");
    }
    let mut clean = String::new();
    for component in path
        .split('/')
        .filter(|component| !matches!(*component, "" | "."))
    {
        // The server may give ".." no meaning (RFC 8881 section 18.13.3), and
        // resolving it here would be wrong behind a symbolic link.
        if component == ".." {
            return refuse("contains ..");
        }
        if component.len() > 255 {
            return refuse("has a component of more than 255 bytes");
        }
        clean.push('/');
        clean.push_str(component);
    }
    if clean.is_empty() {
        clean.push('/');
    }
    Ok(clean)
}

fn check_ipv6(text: &str) -> Result<(), DeviceError> {
    let (number, zone) = text
        .split_once('%')
        .map_or((text, None), |(number, zone)| (number, Some(zone)));
    // An interface name is at most IFNAMSIZ - 1 bytes.
    let zone_ok = zone.is_none_or(|zone| {
        (1..16).contains(&zone.len()) && zone.bytes().all(|c| c.is_ascii_graphic())
    });
    match number.parse::<Ipv6Addr>() {
        Ok(_) if zone_ok => Ok(()),
        _ => Err(DeviceError::BadAddress(text.to_owned())),
    }
}

fn kind_of(host: &str) -> Result<DeviceKind, DeviceError> {
    if host.parse::<Ipv4Addr>().is_ok() {
        return Ok(DeviceKind::Address);
    }
    check_host(host)?;
    let lower = host.to_ascii_lowercase();
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let mut labels = name.split('.');
    let (first, second) = (labels.next().unwrap_or_default(), labels.next());
    let marked = |label: &str| label.starts_with("fs-");
    if !marked(first) && !second.is_some_and(marked) {
        return Ok(DeviceKind::Host);
    }
    if second.is_none() && is_fs_id(first) {
        return Ok(DeviceKind::FileSystemId {
            fs_id: first.to_owned(),
        });
    }
    let why = match efs_name(name) {
        Some(name) => return Ok(name),
        None if second.is_none() => {
            "a file system id is fs- and 8 to 40 hexadecimal digits, and nothing else"
        }
        None => "a name of EFS is [ZONE.]fs-ID.efs.REGION.SUFFIX, with 8 to 40 hexadecimal digits",
    };
    Ok(DeviceKind::Doubtful { why })
}

fn is_fs_id(text: &str) -> bool {
    text.strip_prefix("fs-").is_some_and(|digits| {
        (8..=40).contains(&digits.len())
            && digits
                .bytes()
                .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// `[ZONE.]FSID.efs.REGION.SUFFIX`, if `host` is one, whatever its suffix.
pub(super) fn efs_name(host: &str) -> Option<DeviceKind> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let (zone, rest) = match host.split_once('.')? {
        (first, _) if is_fs_id(first) => (None, host),
        (zone, rest) => (Some(zone), rest),
    };
    let (fs_id, rest) = rest.split_once('.')?;
    let (region, suffix) = rest.strip_prefix("efs.")?.split_once('.')?;
    let zone_ok = zone.is_none_or(region::is_valid);
    (is_fs_id(fs_id) && zone_ok && region::is_valid(region) && region::is_suffix(suffix)).then(
        || DeviceKind::EfsName {
            zone: zone.map(str::to_owned),
            fs_id: fs_id.to_owned(),
            region: region.to_owned(),
            suffix: suffix.to_owned(),
        },
    )
}

fn check_host(host: &str) -> Result<(), DeviceError> {
    let refuse = |why| {
        Err(DeviceError::BadHost {
            host: host.to_owned(),
            why,
        })
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > MAX_HOST {
        return refuse("it is too long");
    }
    if name.contains('/') {
        return refuse("a directory follows the server after a colon, HOST:/dir");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return refuse("there is an empty label in it");
        }
        if label.len() > 63 {
            return refuse("a label is longer than 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return refuse("a label begins or ends with a hyphen");
        }
        // Underscores are no host name in DNS's eyes but resolve in practice.
        if !label
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        {
            return refuse("only letters, digits, hyphens and dots can be in it");
        }
    }
    // "1.2.3.300" must not be asked of DNS: inet_aton would guess at it.
    if name.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
        return refuse("it is no IPv4 address either");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Device {
        Device::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[track_caller]
    fn refused(text: &str, because: &str) {
        match Device::parse(text) {
            Ok(device) => panic!("{text} was taken for {device:?}"),
            Err(why) => assert!(why.to_string().contains(because), "{text}: {why}"),
        }
    }

    #[test]
    fn a_host_without_directory_means_its_root() {
        for text in [
            "nfs.example.com",
            "nfs.example.com:",
            "nfs.example.com:/",
            "nfs.example.com://",
        ] {
            let device = parsed(text);
            assert_eq!(device.kind, DeviceKind::Host);
            assert_eq!(device.host, "nfs.example.com");
            assert_eq!(device.path, "/");
            assert_eq!(device.spec, "nfs.example.com:/");
        }
    }

    #[test]
    fn the_directory_is_cleaned() {
        assert_eq!(parsed("h:/a//b/./c/").path, "/a/b/c");
        assert_eq!(parsed("h:/a:b,c d").spec, "h:/a:b,c d");
        assert_eq!(parsed("h:/ä").path, "/ä");
        refused("h:a", "does not begin with /");
        refused("h:/a/../b", "contains ..");
        refused("h:/a\nb", "control character");
        refused(&format!("h:/{}", "x".repeat(256)), "255");
        refused(&format!("h:{}", "/x".repeat(3000)), "too long");
    }

    #[test]
    fn addresses_of_both_families_are_understood() {
        let four = parsed("192.0.2.1:/x");
        assert_eq!(
            (four.kind, four.host.as_str()),
            (DeviceKind::Address, "192.0.2.1")
        );
        let six = parsed("[::1]:/x");
        assert_eq!((six.kind, six.host.as_str()), (DeviceKind::Address, "::1"));
        assert_eq!(six.spec, "[::1]:/x");
        assert_eq!(parsed("[2001:db8::5]").spec, "[2001:db8::5]:/");
        assert_eq!(parsed("[fe80::1%lo]").host, "fe80::1%lo");
    }

    #[test]
    fn malformed_addresses_are_refused() {
        refused("[::1", "IPv6");
        refused("[::1]x:/", "IPv6");
        refused("[]:/", "IPv6");
        refused("[192.0.2.1]", "IPv6");
        refused("[fe80::1%]", "IPv6");
        refused("[fe80::1%a b]", "IPv6");
        refused("::1:/x", "in brackets, [::1]");
        refused("fe80::1%eth0:/x", "in brackets, [fe80::1%eth0]");
        refused("2001:db8::5", "in brackets");
        refused("1.2.3.300:/", "IPv4");
    }

    #[test]
    fn file_system_ids_are_told_from_hosts() {
        for id in ["fs-f223e6bb", "fs-0123456789abcdef0"] {
            assert_eq!(
                parsed(id).kind,
                DeviceKind::FileSystemId {
                    fs_id: id.to_owned()
                }
            );
        }
        assert_eq!(parsed("fs-f223e6bb:/dir").path, "/dir");
        assert_eq!(parsed("fs-f223e6bb:").path, "/");
        // In DNS upper case is the same, and a dot at the end is the root's.
        for text in ["FS-0123ABCD", "Fs-0123aBcd:/", "fs-0123abcd.:/"] {
            let device = parsed(text);
            assert!(device.is_efs(), "{text}");
            assert!(device.spec.starts_with("fs-0123abcd"), "{}", device.spec);
        }
    }

    #[test]
    fn efs_names_are_recognised_with_and_without_zone() {
        let name = parsed("fs-f223e6bb.efs.us-east-1.amazonaws.com:/d");
        assert_eq!(
            name.kind,
            DeviceKind::EfsName {
                zone: None,
                fs_id: "fs-f223e6bb".to_owned(),
                region: "us-east-1".to_owned(),
                suffix: "amazonaws.com".to_owned(),
            }
        );
        let zoned = parsed("CN-NORTH-1A.fs-f223e6bb.EFS.cn-north-1.amazonaws.com.cn.");
        assert!(
            matches!(&zoned.kind, DeviceKind::EfsName { zone: Some(zone), .. } if zone == "cn-north-1a")
        );
        assert_eq!(
            zoned.host,
            "cn-north-1a.fs-f223e6bb.efs.cn-north-1.amazonaws.com.cn."
        );
    }

    /// Each was mounted in plaintext once, without a word.
    #[test]
    fn what_looks_like_efs_is_never_just_a_host() {
        for text in [
            "fs-f223e6bb.efs.cn-north-1.amazonaws.com",
            "fs-f223e6bb.efs.cn-south-9.amazonaws.com.cn",
            "fs-f223e6bb.efs.mars-north-7.amazonaws.mars",
            "fs-f223e6bb.efs.us-east-1.api.aws",
            "fs-f223e6bb.efs.us-east-1.amazonaws.com.corp.example",
            "us-east-1a.FS-F223E6BB.efs.us-east-1.amazonaws.com.corp.example",
            "FS-0123ABCD",
        ] {
            assert!(parsed(text).is_efs(), "{text}");
        }
        for text in [
            "fs-0123ABCDzz",
            "fs-12",
            "FS-backup",
            "fs-backup.corp.example",
            "fs-0123abcd.corp.example",
            "a.fs-0123abcd",
            "nfs.fs-eu.example",
            "fs-0123abcd.efs.us-east-1",
            "fs-0123abcd.elasticfilesystem.us-east-1.amazonaws.com",
            "a_b.fs-0123abcd.efs.us-east-1.amazonaws.com",
        ] {
            let kind = parsed(text).kind;
            assert_ne!(kind, DeviceKind::Host, "{text}");
        }
        for text in ["nfs-1", "fs1", "a.b.fs-1.example", "xfs-0123abcd", "fs"] {
            assert_eq!(parsed(text).kind, DeviceKind::Host, "{text}");
        }
        refused("fs-", "hyphen");
    }

    #[test]
    fn malformed_hosts_are_refused() {
        refused("", "empty");
        refused(":/x", "names no server");
        refused("a b:/x", "letters");
        refused("-a", "hyphen");
        refused("a..b", "empty label");
        refused("/srv", "HOST:/dir");
        refused(&"a".repeat(64), "63");
        refused(&"a.".repeat(140), "too long");
    }
}
