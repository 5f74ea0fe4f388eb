//! `/etc/amazon/efs/efs-utils.conf`, the configuration of the official client: read where
//! this program stands in for it ([`super::mount_efs`]), as mount options.
//!
//! Its keys become options in front of those that the user wrote, so that they count for
//! all that follows (status, remount, a daemon that takes over) and the user's win. What
//! has no meaning here is named in the log; what would have changed the mount is a warning.
//!
//! The format is that of Python's configparser: `[section]`, `key = value` or `key: value`,
//! comments that begin a line, values that go on in lines further to the right, and a
//! section `[DEFAULT]` whose keys are in all others.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::option_list::quoted;
use crate::efs::{region, settings};

/// Where it is.
pub(super) const PATH: &str = "/etc/amazon/efs/efs-utils.conf";
/// The one that is shipped has 5 KiB.
const MAX_SIZE: u64 = 1 << 20;

/// Issuers that this program believes without a file: those of the official client, and of
/// the machine images of partitions that have their own (`efs::region`).
const BUILT_IN: [&str; 2] = [
    "/etc/amazon/efs/efs-utils.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];
/// How names of mount targets are made here, too.
const NAMES: &str = "{az}.{fs_id}.efs.{region}.{dns_name_suffix}";
/// The suffix that is written where nobody has thought of one.
const USUAL_SUFFIX: &str = "amazonaws.com";
/// `tls_cert_renewal_interval_min` where nothing is written; it is ours, too.
const USUAL_RENEWAL: u64 = 60;

/// Sections, each with its keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conf {
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

/// What a file means for a mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Meant {
    /// Options, to stand in front of the user's.
    pub(super) options: Vec<String>,
    /// The keys that these come from.
    pub(super) honoured: Vec<String>,
    /// The keys without meaning here.
    pub(super) ignored: Vec<String>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

impl Conf {
    /// The file at `path`; nothing if there is none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut text));
        match read {
            Ok(_) => Self::parse(&String::from_utf8_lossy(&text)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(why) => Err(why.to_string()),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut conf = Self::default();
        let mut section = None;
        let mut last: Option<(String, String)> = None;
        for (number, line) in text.lines().enumerate() {
            let wrong = |what: &str| format!("line {} {what}", number + 1);
            let word = line.trim();
            if word.is_empty() || word.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with([' ', '\t'])
                && let Some((section, key)) = &last
            {
                let keys = conf.sections.entry(section.clone()).or_default();
                let value = keys.entry(key.clone()).or_default();
                *value = format!("{value}\n{word}");
                continue;
            }
            if let Some(name) = word.strip_prefix('[') {
                let name = name.split(']').next().unwrap_or_default();
                conf.sections.entry(name.to_owned()).or_default();
                (section, last) = (Some(name.to_owned()), None);
                continue;
            }
            let (key, value) = word
                .split_once(['=', ':'])
                .ok_or_else(|| wrong("is neither [SECTION] nor KEY = VALUE"))?;
            let section = section
                .clone()
                .ok_or_else(|| wrong("stands before any [SECTION]"))?;
            let key = key.trim().to_ascii_lowercase();
            let keys = conf.sections.entry(section.clone()).or_default();
            keys.insert(key.clone(), value.trim().to_owned());
            last = Some((section, key));
        }
        Ok(conf)
    }

    fn value(&self, section: &str, key: &str) -> Option<&str> {
        let of = |section: &str| self.sections.get(section)?.get(key);
        let value = of(section).or_else(|| of("DEFAULT"))?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// `true` and `false` as configparser has them.
    fn switch(&self, section: &str, key: &str) -> Result<Option<bool>, String> {
        let Some(value) = self.value(section, key) else {
            return Ok(None);
        };
        match value.to_ascii_lowercase().as_str() {
            "1" | "yes" | "true" | "on" => Ok(Some(true)),
            "0" | "no" | "false" | "off" => Ok(Some(false)),
            _ => Err(malformed(section, key, value, "true or false")),
        }
    }

    /// The region that a mount is in unless it is said elsewhere.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn region(&self) -> Result<Option<&str>, String> {
        let region = self.value("mount", "region");
        match region.filter(|region| !region::is_valid(region)) {
            Some(bad) => Err(malformed("mount", "region", bad, "a region")),
            None => Ok(region),
        }
    }

    /// What it means for a mount of an EFS file system. `region`: that of the file system,
    /// as far as it is known by now; `asked`: whether this file's is to be used.
    ///
    /// # Errors
    /// A value that cannot be understood.
    pub(super) fn means(&self, region: Option<&str>, asked: bool) -> Result<Meant, String> {
        let mut meant = Meant::default();
        if let (Some(region), true) = (self.region()?, asked) {
            meant.honour("mount.region", format!("region={region}"));
        }
        let own = region.map(|region| format!("mount.{region}"));
        self.names(&mut meant, region, own.as_deref())?;
        // What is written as it is anyway counts, and needs no option.
        let by_api = "fall_back_to_mount_target_ip_address_enabled";
        let switches = [
            ("fips_mode_enabled", true, "fips"),
            (by_api, false, "noapi"),
        ];
        for (key, differs, option) in switches {
            if let Some(value) = self.switch("mount", key)? {
                let option = if value == differs { option } else { "" };
                meant.honour(&format!("mount.{key}"), option.to_owned());
            }
        }
        if let Some(source) = self.value("client-info", "source") {
            if !settings::is_client_source(source) {
                let expected = "1 to 100 characters of ASCII";
                return Err(malformed("client-info", "source", source, expected));
            }
            meant.honour("client-info.source", format!("client_source={source}"));
        }
        self.renewal(&mut meant)?;
        self.warn_of(&mut meant)?;
        self.ignore(&mut meant, own.as_deref());
        Ok(meant)
    }

    /// The suffix of names, and whose certificates are believed: the region's own
    /// section counts before the general one.
    fn names(
        &self,
        meant: &mut Meant,
        region: Option<&str>,
        own: Option<&str>,
    ) -> Result<(), String> {
        let of = |section: Option<&str>, key| {
            let section = section?;
            let value = self.sections.get(section)?.get(key)?;
            Some((section.to_owned(), value.as_str()))
        };
        let found = |key| of(own, key).or_else(|| of(Some("mount"), key));
        if let Some((section, suffix)) = found("dns_name_suffix") {
            let usual = region.map_or(USUAL_SUFFIX, region::dns_suffix);
            let general = section == "mount" && suffix == USUAL_SUFFIX;
            if !region::is_suffix(suffix) {
                let expected = "a domain in lower case";
                return Err(malformed(&section, "dns_name_suffix", suffix, expected));
            }
            let option = match general || suffix == usual {
                // It is so anyway.
                true => String::new(),
                false => format!("dns_suffix={suffix}"),
            };
            meant.honour(&format!("{section}.dns_name_suffix"), option);
        }
        if let Some((section, file)) = found("stunnel_cafile") {
            let option = match BUILT_IN.contains(&file) {
                true => String::new(),
                false if !file.starts_with('/') => {
                    return Err(malformed(&section, "stunnel_cafile", file, "a path"));
                }
                false => format!("cafile={file}"),
            };
            meant.honour(&format!("{section}.stunnel_cafile"), option);
        }
        if region.is_none() {
            self.warn_of_regions(meant);
        }
        Ok(())
    }

    /// Where the region comes from instance metadata it is known too late for a section
    /// that says something else of it than is built in.
    fn warn_of_regions(&self, meant: &mut Meant) {
        for (section, keys) in &self.sections {
            let Some(region) = section.strip_prefix("mount.") else {
                continue;
            };
            let suffix = keys.get("dns_name_suffix");
            let file = keys.get("stunnel_cafile");
            if suffix.is_some_and(|suffix| suffix != region::dns_suffix(region))
                || file.is_some_and(|file| !BUILT_IN.contains(&file.as_str()))
            {
                meant.warnings.push(format!(
                    "{PATH}: [{section}] counts only where the region is given: -o region={region}, \
                     AWS_REGION, or region in [mount]"
                ));
            }
        }
    }

    fn renewal(&self, meant: &mut Meant) -> Result<(), String> {
        let key = "tls_cert_renewal_interval_min";
        let Some(value) = self.value("mount-watchdog", key) else {
            return Ok(());
        };
        let expected = "a number of minutes, at least 1";
        let minutes = value.parse().ok().filter(|minutes| *minutes > 0);
        let minutes: u64 =
            minutes.ok_or_else(|| malformed("mount-watchdog", key, value, expected))?;
        let option = match minutes {
            USUAL_RENEWAL => String::new(),
            other => format!("tls_renew={}", other.saturating_mul(60)),
        };
        meant.honour(&format!("mount-watchdog.{key}"), option);
        Ok(())
    }

    /// What somebody has set to get something that is not there.
    fn warn_of(&self, meant: &mut Meant) -> Result<(), String> {
        let switches = [
            (
                "mount",
                "disable_fetch_ec2_metadata_token",
                true,
                "instance metadata are asked with a token (IMDSv2) and not without",
            ),
            (
                "mount",
                "stunnel_check_cert_hostname",
                false,
                "the server's name is checked; -o verify=0 believes anybody",
            ),
            (
                "mount",
                "stunnel_check_cert_validity",
                true,
                "issuers are not asked whether they revoked a certificate",
            ),
            (
                "cloudwatch-log",
                "enabled",
                true,
                "nothing is sent to CloudWatch; the log is in the journal, or in log=FILE",
            ),
        ];
        for (section, key, matters, why) in switches {
            if self.switch(section, key)? == Some(matters) {
                meant
                    .warnings
                    .push(format!("{PATH}: {key} = {matters} is ignored: {why}"));
            }
        }
        if let Some(format) = self.value("mount", "dns_name_format")
            && format != NAMES
        {
            meant.warnings.push(format!(
                "{PATH}: dns_name_format is ignored: names of mount targets are {NAMES}"
            ));
        }
        Ok(())
    }

    /// Of all that is written, what was not honoured. Sections of other regions do not count.
    fn ignore(&self, meant: &mut Meant, own: Option<&str>) {
        let counts = |section: &str| !section.starts_with("mount.") || Some(section) == own;
        for (section, keys) in self.sections.iter().filter(|(name, _)| counts(name)) {
            for key in keys.keys() {
                let name = format!("{section}.{key}");
                let regional = own.map(|own| format!("{own}.{key}"));
                let counted = [Some(&name), regional.as_ref()];
                let counted = counted.into_iter().flatten();
                if !counted
                    .into_iter()
                    .any(|name| meant.honoured.contains(name))
                {
                    meant.ignored.push(name);
                }
            }
        }
    }
}

impl Meant {
    /// A key that counts, and the option for it; empty if it is the default.
    fn honour(&mut self, key: &str, option: String) {
        self.honoured.push(key.to_owned());
        if !option.is_empty() {
            self.options.push(quoted(&option));
        }
    }

    /// For the log.
    pub(super) fn notes(&self) -> Vec<String> {
        let line = |what: &str, keys: &[String]| {
            (!keys.is_empty()).then(|| format!("{PATH}: {what}: {}", keys.join(", ")))
        };
        let notes = [
            line("honoured", &self.honoured),
            line("without meaning here", &self.ignored),
        ];
        notes.into_iter().flatten().collect()
    }
}

fn malformed(section: &str, key: &str, value: &str, expected: &str) -> String {
    format!("{key} = {value:?} in [{section}] is not {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is shipped with the official client, without its comments.
    const SHIPPED: &str = "\
        [DEFAULT]\nlogging_level = INFO\nlogging_max_bytes = 1048576\n\
        [mount]\ndns_name_format = {az}.{fs_id}.efs.{region}.{dns_name_suffix}\n\
        dns_name_suffix = amazonaws.com\n#region = us-east-1\nstunnel_debug_enabled = false\n\
        stunnel_cafile = /etc/amazon/efs/efs-utils.crt\nstunnel_check_cert_hostname = true\n\
        stunnel_check_cert_validity = false\nfips_mode_enabled = false\n\
        port_range_lower_bound = 20049\noptimize_readahead = true\n\
        fall_back_to_mount_target_ip_address_enabled = true\n\
        disable_fetch_ec2_metadata_token = false\n\
        [mount.cn-north-1]\ndns_name_suffix = amazonaws.com.cn\n\
        [mount.us-iso-east-1]\ndns_name_suffix = c2s.ic.gov\n\
        stunnel_cafile = /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem\n\
        [mount-watchdog]\nenabled = true\ntls_cert_renewal_interval_min = 60\n\
        [cloudwatch-log]\n# enabled = true\nlog_group_name = /aws/efs/utils\n";

    fn meant(text: &str, region: Option<&str>) -> Meant {
        let conf = Conf::parse(text).unwrap_or_else(|why| panic!("{why}"));
        conf.means(region, true)
            .unwrap_or_else(|why| panic!("{why}"))
    }

    #[test]
    fn the_file_as_it_is_shipped_changes_nothing_in_any_region() {
        for region in [
            None,
            Some("eu-west-1"),
            Some("cn-north-1"),
            Some("us-iso-east-1"),
        ] {
            let meant = meant(SHIPPED, region);
            assert_eq!(meant.options, Vec::<String>::new(), "{region:?}");
            assert_eq!(meant.warnings, Vec::<String>::new(), "{region:?}");
            let notes = meant.notes();
            assert!(notes[0].contains("mount.stunnel_cafile") || region == Some("us-iso-east-1"));
            assert!(notes[1].contains("DEFAULT.logging_level"), "{notes:?}");
            assert!(!notes[1].contains("dns_name_suffix"), "{notes:?}");
        }
    }

    #[test]
    fn what_somebody_has_set_counts() {
        let text = "[mount]\nregion = eu-west-1\ndns_name_suffix: efs.example\nstunnel_cafile=/ca,1.pem\n\
                    FIPS_mode_enabled = Yes\nfall_back_to_mount_target_ip_address_enabled = off\n\
                    [mount-watchdog]\ntls_cert_renewal_interval_min = 5\n[client-info]\nsource=k8s\n";
        assert_eq!(
            meant(text, Some("eu-west-1")).options,
            [
                "region=eu-west-1",
                "dns_suffix=efs.example",
                "cafile=\"/ca,1.pem\"",
                "fips",
                "noapi",
                "client_source=k8s",
                "tls_renew=300",
            ]
        );
    }

    #[test]
    fn the_section_of_the_region_counts_before_the_general_one() {
        let text = "[mount]\ndns_name_suffix = a.example\nstunnel_cafile = /a\n\
                    [mount.eu-west-1]\ndns_name_suffix = b.example\n\
                    [mount.eu-west-2]\nstunnel_cafile = /c\n";
        let options = |region| meant(text, region).options;
        assert_eq!(
            options(Some("eu-west-1")),
            ["dns_suffix=b.example", "cafile=/a"]
        );
        assert_eq!(
            options(Some("eu-west-2")),
            ["dns_suffix=a.example", "cafile=/c"]
        );
        // Not known yet: what is said of single regions cannot count, and that is said.
        let unknown = meant(text, None);
        assert_eq!(unknown.options, ["dns_suffix=a.example", "cafile=/a"]);
        assert_eq!(unknown.warnings.len(), 2, "{:?}", unknown.warnings);
    }

    #[test]
    fn what_is_asked_for_and_not_there_is_a_warning() {
        let text = "[DEFAULT]\nenabled = true\n[mount]\ndns_name_format = {fs_id}.x\n\
                    disable_fetch_ec2_metadata_token = true\nstunnel_check_cert_hostname = false\n\
                    stunnel_check_cert_validity = 1\n";
        let warnings = meant(text, None).warnings.join("\n");
        for words in [
            "IMDSv2",
            "verify=0",
            "revoked",
            "CloudWatch",
            "dns_name_format",
        ] {
            assert!(warnings.contains(words), "{words}: {warnings}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named_with_its_place() {
        for (text, because) in [
            ("x = 1\n", "line 1 stands before any [SECTION]"),
            ("[mount]\n\nnonsense\n", "line 3 is neither"),
        ] {
            assert!(Conf::parse(text).is_err_and(|why| why.contains(because)));
        }
        for (text, because) in [
            (
                "region = EU WEST",
                "region = \"EU WEST\" in [mount] is not a region",
            ),
            ("fips_mode_enabled = maybe", "is not true or false"),
            ("dns_name_suffix = .", "is not a domain"),
            ("stunnel_cafile = x", "is not a path"),
        ] {
            let conf = Conf::parse(&format!("[mount]\n{text}\n")).unwrap_or_default();
            let why = conf
                .means(Some("eu-west-1"), true)
                .err()
                .unwrap_or_default();
            assert!(why.contains(because), "{why}");
        }
    }

    #[test]
    fn a_value_may_go_on_in_the_next_line_and_a_file_may_be_missing() {
        let conf = Conf::parse("[a]\nb = c\n  d\n# no\n").unwrap_or_default();
        assert_eq!(conf.value("a", "b"), Some("c\nd"));
        let missing = Conf::read(Path::new("/nonexistent/efs-utils.conf"));
        assert_eq!(missing, Ok(Conf::default()));
    }
}
