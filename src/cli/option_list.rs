//! From option lists as they are written to what they mean.
//!
//! Two steps: [`read`] turns text into [`Typed`] options, checked against the
//! table ([`super::options`]) one by one; [`mean`] turns them into
//! [`MountOptions`], checked against each other. An option given twice counts
//! as its last, and of two that contradict each other the later counts, as with mount(8):
//! lines of fstab are extended by the command line. An error are those that mean
//! different things at the same time. A profile is read as the options that it stands for.

use std::time::Duration;

use super::option_profiles;
use super::option_value as value;
use super::options::{Meaning, OptionSpec, Value, all};
use crate::mount::options::{CacheTimes, MountOptions, NameCache};

/// An option as the user wrote it.
#[derive(Debug, Clone)]
pub struct Typed {
    spec: &'static OptionSpec,
    value: String,
    /// The profile that stands for it, as that is written.
    profile: Option<String>,
}

/// What is wrong with the options. The text is the WHY of an error line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not in the table.
    #[error("unknown option {name:?}")]
    Unknown {
        /// What was written.
        name: String,
        /// One of the table whose name is close to it, as it is written.
        nearest: Option<String>,
    },
    /// A value that cannot be understood.
    #[error("{name}={value:?} is malformed: {expected}")]
    Malformed {
        /// The option.
        name: &'static str,
        /// What was written.
        value: String,
        /// What can be written.
        expected: String,
    },
    /// A value is missing.
    #[error("option {name} needs a value, {name}={placeholder}")]
    NeedsValue {
        /// The option.
        name: &'static str,
        /// What the value is.
        placeholder: &'static str,
    },
    /// A value where none belongs.
    #[error("option {0} takes no value")]
    TakesNoValue(&'static str),
    /// Known, and not supported.
    #[error("option {name} is not supported: {why}")]
    Unsupported {
        /// The option, with its value if that is the point.
        name: String,
        /// The reason.
        why: String,
    },
    /// An option means nothing without another one.
    #[error("option {0} needs {1}")]
    Lacks(String, String),
    /// Two options contradict each other.
    #[error("options {0} and {1} contradict each other")]
    Conflict(String, String),
}

impl Typed {
    /// As it is written, with its value.
    pub fn written(&self) -> String {
        match self.value.as_str() {
            "" => self.spec.name.to_owned(),
            value => format!("{}={value}", self.spec.name),
        }
    }

    /// The profile that stands for it, as that is written; `None` if it was written itself.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    fn means_something(&self) -> bool {
        let meaning = &self.spec.meaning;
        matches!(
            meaning,
            Meaning::Set(_) | Meaning::Flag(_) | Meaning::Security
        )
    }

    /// Whether mounts that differ in it serve their users differently.
    pub fn matters(&self) -> bool {
        !PASSING.contains(&self.spec.name) && self.means_something()
    }

    /// Whether it means anything to a mount that is there already, other than
    /// what a remount can change.
    pub fn is_fixed(&self) -> bool {
        !REMOUNTABLE.contains(&self.spec.name) && self.means_something()
    }
}

impl OptionError {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Unknown {
                nearest: Some(nearest),
                ..
            } => Some(format!("-o {nearest}, or -o sloppy to ignore it")),
            Self::Unknown { .. } => {
                Some("efs-fuse mount --help for the list, or -o sloppy to ignore it".to_owned())
            }
            Self::Conflict(_, second) => Some(format!("leave out {second}")),
            Self::Lacks(_, needed) => Some(format!("add {needed}")),
            _ => None,
        }
    }
}

/// What [`read`] found.
#[derive(Debug, Default)]
pub struct Read {
    /// Known options, in order.
    pub typed: Vec<Typed>,
    /// What is ignored, and why: lines for the user.
    pub ignored: Vec<String>,
}

/// Reads option lists (`a,b=c`), each checked against the table. A value may
/// stand in double quotes if there is a comma in it. `sloppy` (also as an
/// option in the lists) lets pass what is unknown or refused.
///
/// # Errors
/// The first option that is unknown, unsupported, or has a wrong value.
pub fn read<S: AsRef<str>>(lists: &[S], sloppy: bool) -> Result<Read, OptionError> {
    let words: Vec<&str> = lists.iter().flat_map(|list| split(list.as_ref())).collect();
    let sloppy = sloppy || words.contains(&"sloppy");
    let mut found = Read::default();
    for word in words {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(unquoted(value))),
            None => (word, None),
        };
        match all().find(|spec| spec.name == name) {
            Some(spec) => match checked(spec, value) {
                Ok(value) => {
                    if let Meaning::Vain(why) = spec.meaning {
                        found
                            .ignored
                            .push(format!("option {name} has no effect: {why}"));
                    }
                    let members = match name {
                        // One that there is not is malformed, as `mean` finds.
                        "profile" => option_profiles::members(&value).unwrap_or_default(),
                        _ => &[],
                    };
                    let option = Typed {
                        spec,
                        value,
                        profile: None,
                    };
                    let members = members.iter();
                    let members = members.filter_map(|one| member(one, &option.written()));
                    let members: Vec<_> = members.collect();
                    found.typed.push(option);
                    found.typed.extend(members);
                }
                Err(OptionError::Unsupported { name, why, .. }) if sloppy && may_pass(spec) => {
                    found
                        .ignored
                        .push(format!("option {name} is ignored: {why}"));
                }
                Err(why) => return Err(why),
            },
            // mount(8) and systemd keep notes for themselves under these.
            None if name.starts_with("x-") || name.starts_with("X-") => {}
            None if sloppy => found
                .ignored
                .push(format!("unknown option {name:?} is ignored")),
            None => {
                return Err(OptionError::Unknown {
                    name: name.to_owned(),
                    nearest: nearest(name),
                });
            }
        }
    }
    Ok(found)
}

/// An option of the table, as it is written, that a profile stands for.
fn member(written: &str, profile: &str) -> Option<Typed> {
    let (name, value) = written.split_once('=').unwrap_or((written, ""));
    let value = value.to_owned();
    let spec = all().find(|spec| spec.name == name)?;
    Some(Typed {
        spec,
        value,
        profile: Some(profile.to_owned()),
    })
}

/// Whether `sloppy` may make a warning of what is refused.
fn may_pass(spec: &OptionSpec) -> bool {
    !matches!(spec.meaning, Meaning::Strictly(_))
}

fn checked(spec: &'static OptionSpec, value: Option<&str>) -> Result<String, OptionError> {
    let name = spec.name;
    if let Meaning::Refused(why) = spec.meaning {
        return Err(OptionError::Unsupported {
            name: name.to_owned(),
            why: why.to_owned(),
        });
    }
    match (spec.value, value) {
        (Value::Needed(placeholder), None | Some("")) => {
            return Err(OptionError::NeedsValue { name, placeholder });
        }
        (Value::No, Some(_)) => return Err(OptionError::TakesNoValue(name)),
        _ => {}
    }
    let value = value.unwrap_or_default();
    if let Meaning::Only(values) | Meaning::Strictly(values) = spec.meaning
        && !values.contains(&value)
    {
        return Err(OptionError::Unsupported {
            name: format!("{name}={value}"),
            why: format!("only {name}={} is", values.join(&format!(", {name}="))),
        });
    }
    Ok(value.to_owned())
}

/// Turns what was written into what it means.
///
/// # Errors
/// A malformed value, or two options that cannot both be meant.
pub fn mean(typed: &[Typed]) -> Result<MountOptions, OptionError> {
    let place = |name: &str| typed.iter().rposition(|option| option.spec.name == name);
    fit_together(|name| place(name).is_some())?;
    let mut options = MountOptions::default();
    for option in typed {
        let name = option.spec.name;
        match option.spec.meaning {
            Meaning::Flag(set) => set(&mut options),
            Meaning::Set(set) => {
                set(&mut options, &option.value).map_err(|expected| OptionError::Malformed {
                    name,
                    value: option.value.clone(),
                    expected,
                })?
            }
            Meaning::Security => {
                let others = |word: &String| !word.starts_with(&format!("{name}="));
                options.security.retain(others);
                options.security.push(quoted(&option.written()));
            }
            _ => {}
        }
    }
    cache_times(&mut options, place);
    // An access point may make one user of all; mode bits, checked here, would
    // then deny what the server allows.
    if options.server.access_point.is_some() && place("default_permissions").is_none() {
        options.default_permissions = false;
    }
    Ok(options)
}

/// No option excludes another, or lacks one that it needs.
fn fit_together(given: impl Fn(&str) -> bool) -> Result<(), OptionError> {
    // mount(8) puts what is to change behind what is mounted: the last counts.
    let remount = given("remount");
    for (one, other) in CONTRADICTIONS {
        if given(one) && given(other) && !remount {
            return Err(OptionError::Conflict(
                (*one).to_owned(),
                (*other).to_owned(),
            ));
        }
    }
    for (one, needed) in NEEDS {
        if given(one) && !given(needed) {
            return Err(OptionError::Lacks((*one).to_owned(), (*needed).to_owned()));
        }
    }
    Ok(())
}

/// What `noac` means for the times of caches, and that none of them is before another;
/// `place` is where an option stands for the last time.
fn cache_times(options: &mut MountOptions, place: impl Fn(&str) -> Option<usize>) {
    // As for Linux' own client: times that are written beside it do not make it believe more.
    if place("noac") > place("ac") {
        options.cache_times = CacheTimes::NONE;
        options.name_cache = NameCache::None;
        return;
    }
    let times = &mut options.cache_times;
    order(
        (&mut times.reg_min, place("acregmin")),
        (&mut times.reg_max, place("acregmax")),
    );
    order(
        (&mut times.dir_min, place("acdirmin")),
        (&mut times.dir_max, place("acdirmax")),
    );
}

/// The smaller of two times must not exceed the larger: that gives way which was not
/// given, or was given before.
fn order(min: (&mut Duration, Option<usize>), max: (&mut Duration, Option<usize>)) {
    if *min.0 <= *max.0 {
        return;
    }
    match max.1 > min.1 {
        true => *min.0 = *max.0,
        false => *max.0 = *min.0,
    }
}

/// Whether one of these names is in the lists, whatever is behind it.
pub fn names_any<S: AsRef<str>>(lists: &[S], names: &[&str]) -> bool {
    let mut words = lists.iter().flat_map(|list| split(list.as_ref()));
    words.any(|word| {
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        names.contains(&name)
    })
}

/// An option as it stands in a list: a value with commas is in quotes.
pub fn quoted(option: &str) -> String {
    match option.split_once('=') {
        Some((name, value)) if value.contains(',') => format!("{name}=\"{value}\""),
        _ => option.to_owned(),
    }
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    list.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .map(str::trim)
    .filter(|word| !word.is_empty())
}

fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

/// The option that `written` was probably meant to be, and that does something.
fn nearest(written: &str) -> Option<String> {
    let length = written.chars().count();
    let far = (length / 3).clamp(1, 3);
    let useful =
        |spec: &&OptionSpec| !matches!(spec.meaning, Meaning::Refused(_) | Meaning::Vain(_));
    all()
        .filter(useful)
        // A difference in length is a distance already, and costs nothing to see.
        .filter(|spec| spec.name.len().abs_diff(length) <= far)
        .map(|spec| (value::distance(written, spec.name), spec.name, spec))
        .filter(|(distance, ..)| *distance <= far)
        .min_by_key(|(distance, name, _)| (*distance, *name))
        .map(|(_, _, spec)| spec.written())
}

/// Each says something of its own, and neither says the opposite of the other.
const CONTRADICTIONS: &[(&str, &str)] = &[
    ("mounttargetip", "crossaccount"),
    ("az", "crossaccount"),
    ("awsprofile", "awscredsuri"),
    ("awsprofile", "rolearn"),
    ("awscredsuri", "rolearn"),
];

/// The first means nothing without the second.
const NEEDS: &[(&str, &str)] = &[
    ("cache_size", "cache"),
    ("cache_min_free", "cache"),
    ("cache_key", "cache"),
    ("awsprofile", "iam"),
    ("awscredsuri", "iam"),
    ("rolearn", "iam"),
    ("jwtpath", "iam"),
    ("rolearn", "jwtpath"),
    ("jwtpath", "rolearn"),
];

/// What the kernel alone keeps, and changes in a living mount.
const REMOUNTABLE: &[&str] = &[
    "remount",
    "ro",
    "rw",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "relatime",
    "strictatime",
    "symfollow",
    "nosymfollow",
];

/// About how a mount is made, and its log. [`MountOptions::serves_like`] leaves out the
/// same.
const PASSING: &[&str] = &[
    "mount_timeout",
    "wait",
    "retry",
    "debug",
    "log",
    "slow_op_ms",
    "remount",
    "api",
    "noapi",
    "client_source",
    "tls_renew",
];

#[cfg(test)]
mod tests;
