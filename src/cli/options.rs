//! The one table of `-o` options: how each is written, what it is for, what it
//! means. The help text, the parser and the suggestions come from it.
//!
//! Two steps: [`read`] turns text into [`Typed`] options, checked against the
//! table one by one; [`mean`] turns them into [`MountOptions`], checked against
//! each other. An option given twice counts as its last (fstab lines are
//! extended by the command line); two that contradict each other are an error.
//!
//! The names are those of `mount.efs`, `nfs(5)` and `mount(8)`. What those
//! accept and what changes nothing here is accepted silently; what would
//! change the meaning of the mount and is not there yet is an error.

use std::time::Duration;

use Value::{Allowed, Needed, No};

use super::option_value as value;
use crate::mount::options::{Atime, CacheTimes, MAX_IO, MIN_IO, MountOptions, NameCache, Patience};

/// One option of the table.
#[derive(Debug)]
pub struct OptionSpec {
    /// As it is written, without value.
    pub name: &'static str,
    /// Whether a value follows.
    pub value: Value,
    /// One line for the help; empty for what is merely tolerated.
    pub help: &'static str,
    meaning: Meaning,
}

/// Whether `=VALUE` follows a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Never.
    No,
    /// Always; the text names it in the help.
    Needed(&'static str),
    /// As the user likes.
    Allowed,
}

#[derive(Debug)]
enum Meaning {
    /// Changes the options; the error says what was expected.
    Set(fn(&mut MountOptions, &str) -> Result<(), String>),
    /// Changes the options, without a value.
    Flag(fn(&mut MountOptions)),
    /// Changes nothing.
    Tolerated,
    /// Only these values are what this program does anyway.
    Only(&'static [&'static str]),
    /// Says why this version refuses it.
    Refused(&'static str),
}

/// An option as the user wrote it.
#[derive(Debug, Clone)]
pub struct Typed {
    spec: &'static OptionSpec,
    value: String,
}

/// What is wrong with the options. The text is the WHY of an error line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not in the table.
    #[error("unknown option {name:?}")]
    Unknown {
        /// What was written.
        name: String,
        /// A name of the table that is close to it.
        nearest: Option<&'static str>,
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
    /// Two options contradict each other.
    #[error("options {0} and {1} contradict each other")]
    Conflict(String, String),
}

impl OptionError {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Unknown {
                nearest: Some(name),
                ..
            } => Some(format!("-o {name}, or -o sloppy to ignore it")),
            Self::Unknown { .. } => {
                Some("efs-fuse mount --help for the list, or -o sloppy to ignore it".to_owned())
            }
            Self::Conflict(_, second) => Some(format!("leave out {second}")),
            _ => None,
        }
    }
}

/// What [`read`] found.
#[derive(Debug, Default)]
pub struct Read {
    /// Known options, in order.
    pub typed: Vec<Typed>,
    /// Names that `sloppy` let pass.
    pub ignored: Vec<String>,
}

/// Reads option lists (`a,b=c`), each checked against the table. A value may
/// stand in double quotes if there is a comma in it. `sloppy` (also as an
/// option in the lists) lets unknown names pass.
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
        match TABLE.iter().find(|spec| spec.name == name) {
            Some(spec) => found.typed.push(Typed {
                spec,
                value: checked(spec, value)?,
            }),
            // mount(8) and systemd keep notes for themselves under these.
            None if name.starts_with("x-") || name.starts_with("X-") => {}
            None if sloppy => found.ignored.push(name.to_owned()),
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

fn checked(spec: &'static OptionSpec, value: Option<&str>) -> Result<String, OptionError> {
    let name = spec.name;
    if let Meaning::Refused(why) = spec.meaning {
        return Err(OptionError::Unsupported {
            name: name.to_owned(),
            why: why.to_owned(),
        });
    }
    match (spec.value, value) {
        (Needed(placeholder), None | Some("")) => {
            return Err(OptionError::NeedsValue { name, placeholder });
        }
        (No, Some(_)) => return Err(OptionError::TakesNoValue(name)),
        _ => {}
    }
    let value = value.unwrap_or_default();
    if let Meaning::Only(values) = spec.meaning
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
/// A malformed value, or two options that contradict each other.
pub fn mean(typed: &[Typed]) -> Result<MountOptions, OptionError> {
    let last = |name: &str| typed.iter().rev().find(|option| option.spec.name == name);
    for (one, other) in CONTRADICTIONS {
        if let (Some(_), Some(_)) = (last(one), last(other)) {
            return Err(OptionError::Conflict(
                (*one).to_owned(),
                (*other).to_owned(),
            ));
        }
    }
    let mut options = MountOptions::default();
    for option in typed {
        match option.spec.meaning {
            Meaning::Flag(set) => set(&mut options),
            Meaning::Set(set) => {
                set(&mut options, &option.value).map_err(|expected| OptionError::Malformed {
                    name: option.spec.name,
                    value: option.value.clone(),
                    expected,
                })?
            }
            _ => {}
        }
    }
    let given = |name: &str| last(name).map(|option| format!("{name}={}", option.value));
    if let Some(noac) = last("noac") {
        // nfs(5) users write "noac,actimeo=0", which says the same twice.
        let nonzero =
            |name| given(name).filter(|times| times.bytes().any(|c| matches!(c, b'1'..=b'9')));
        if let Some(times) = CACHE_TIMES.iter().find_map(|name| nonzero(name)) {
            return Err(OptionError::Conflict(noac.spec.name.to_owned(), times));
        }
        options.cache_times = CacheTimes::NONE;
        options.name_cache = NameCache::None;
    }
    order(
        &mut options.cache_times.reg_min,
        &mut options.cache_times.reg_max,
        "acregmin",
        "acregmax",
        given,
    )?;
    order(
        &mut options.cache_times.dir_min,
        &mut options.cache_times.dir_max,
        "acdirmin",
        "acdirmax",
        given,
    )?;
    if let (Some(_), Some(window), true) = (
        last("sync"),
        given("write_window"),
        options.write_window > 0,
    ) {
        return Err(OptionError::Conflict("sync".to_owned(), window));
    }
    if last("sync").is_some() {
        options.write_window = 0;
    }
    Ok(options)
}

/// The smaller of two times must not exceed the larger. If the user gave only
/// one of them, the default of the other gives way.
fn order(
    min: &mut Duration,
    max: &mut Duration,
    min_name: &str,
    max_name: &str,
    given: impl Fn(&str) -> Option<String>,
) -> Result<(), OptionError> {
    if *min <= *max {
        return Ok(());
    }
    match (given(min_name), given(max_name)) {
        (Some(min), Some(max)) => return Err(OptionError::Conflict(min, max)),
        (None, Some(_)) => *min = *max,
        _ => *max = *min,
    }
    Ok(())
}

/// The help of all options that have one.
pub fn help() -> String {
    let mut text = String::from("Options (-o NAME[=VALUE],...):\n");
    for spec in TABLE.iter().filter(|spec| !spec.help.is_empty()) {
        let written = match spec.value {
            Needed(placeholder) => format!("{}={placeholder}", spec.name),
            _ => spec.name.to_owned(),
        };
        text.push_str(&format!("  {written:<24} {}\n", spec.help));
    }
    text.push_str("Further options of nfs(5) and mount(8) that change nothing here are accepted.");
    text
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

/// The name of the table that `written` was probably meant to be.
fn nearest(written: &str) -> Option<&'static str> {
    let far = (written.chars().count() / 3).clamp(1, 3);
    TABLE
        .iter()
        .map(|spec| (value::distance(written, spec.name), spec.name))
        .filter(|(distance, _)| *distance <= far)
        .min()
        .map(|(_, name)| name)
}

const CONTRADICTIONS: &[(&str, &str)] = &[
    ("ro", "rw"),
    ("ac", "noac"),
    ("sync", "async"),
    ("mount_timeout", "wait"),
];

const CACHE_TIMES: &[&str] = &["actimeo", "acregmin", "acregmax", "acdirmin", "acdirmax"];

const NEEDS_TLS: &str = "this version has no TLS yet";
const LATER: &str = "this version does not have it yet";
const NOT_V41: &str = "this is an NFSv4.1 client over TCP";

const fn set(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    meaning: fn(&mut MountOptions, &str) -> Result<(), String>,
) -> OptionSpec {
    OptionSpec {
        name,
        value: Needed(value),
        help,
        meaning: Meaning::Set(meaning),
    }
}

const fn flag(
    name: &'static str,
    help: &'static str,
    meaning: fn(&mut MountOptions),
) -> OptionSpec {
    OptionSpec {
        name,
        value: No,
        help,
        meaning: Meaning::Flag(meaning),
    }
}

const fn tolerated(name: &'static str, value: Value) -> OptionSpec {
    OptionSpec {
        name,
        value,
        help: "",
        meaning: Meaning::Tolerated,
    }
}

const fn only(name: &'static str, values: &'static [&'static str]) -> OptionSpec {
    OptionSpec {
        name,
        value: Needed("VALUE"),
        help: "",
        meaning: Meaning::Only(values),
    }
}

const fn refused(name: &'static str, why: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        value: Allowed,
        help: "",
        meaning: Meaning::Refused(why),
    }
}

/// All options. Those of one concern stand together.
pub static TABLE: &[OptionSpec] = &[
    // What may be done through the mount.
    flag("ro", "mount read-only", |o| o.read_only = true),
    flag("rw", "mount read-write (default)", |o| o.read_only = false),
    flag("dev", "device nodes work (default)", |o| o.dev = true),
    flag("nodev", "device nodes do not work", |o| o.dev = false),
    flag("suid", "set-user-id bits work (default)", |o| o.suid = true),
    flag("nosuid", "set-user-id bits do not work", |o| o.suid = false),
    flag("exec", "programs can be run (default)", |o| o.exec = true),
    flag("noexec", "programs cannot be run", |o| o.exec = false),
    flag(
        "atime",
        "access times are the server's business (default)",
        |o| o.atime = Atime::Strict,
    ),
    flag("strictatime", "", |o| o.atime = Atime::Strict),
    flag(
        "noatime",
        "shown in the mount table; the server decides",
        |o| o.atime = Atime::Never,
    ),
    flag("relatime", "the same", |o| o.atime = Atime::Relative),
    flag(
        "allow_other",
        "all users have access (default for root)",
        |o| o.allow_other = Some(true),
    ),
    flag("noallow_other", "only the mounting user has access", |o| {
        o.allow_other = Some(false)
    }),
    flag(
        "default_permissions",
        "the kernel checks mode bits itself (default)",
        |o| o.default_permissions = true,
    ),
    flag(
        "nodefault_permissions",
        "every access is checked by the server",
        |o| o.default_permissions = false,
    ),
    // The server, and how long to try.
    set("port", "PORT", "the server's TCP port (2049)", |o, text| {
        o.port = value::number(text, 1, u16::MAX)?;
        Ok(())
    }),
    set(
        "region",
        "REGION",
        "AWS region of a bare file system id (AWS_REGION)",
        |o, text| {
            if !crate::efs::region::is_valid(text) {
                return Err("expected a region such as eu-west-1".to_owned());
            }
            o.region = Some(text.to_owned());
            Ok(())
        },
    ),
    flag("notls", "an unencrypted connection is wanted", |o| {
        o.notls = true
    }),
    set(
        "mount_timeout",
        "SECONDS",
        "give up mounting after this time (30)",
        |o, text| {
            o.patience = Patience::GiveUpAfter(value::seconds(text, 1)?);
            Ok(())
        },
    ),
    set(
        "wait",
        "SECONDS|forever",
        "keep trying to mount for this time",
        |o, text| {
            o.patience = match text {
                "forever" => Patience::WaitForever,
                _ => Patience::WaitFor(
                    value::seconds(text, 1).map_err(|why| format!("{why}, or forever"))?,
                ),
            };
            Ok(())
        },
    ),
    flag(
        "hard",
        "calls wait for an unreachable server (default)",
        |_| (),
    ),
    set(
        "timeo",
        "DECISECONDS",
        "hint: when to suspect a connection",
        |o, text| {
            o.timeo = Some(Duration::from_millis(
                100 * value::number::<u64>(text, 1, 36_000)?,
            ));
            Ok(())
        },
    ),
    set("retrans", "N", "hint, as in nfs(5)", |o, text| {
        o.retrans = Some(value::number(text, 0, 1000)?);
        Ok(())
    }),
    // How much at once.
    set(
        "rsize",
        "BYTES",
        "most bytes of one READ (1m)",
        |o, text| {
            o.rsize = io_size(text)?;
            Ok(())
        },
    ),
    set(
        "wsize",
        "BYTES",
        "most bytes of one WRITE (1m)",
        |o, text| {
            o.wsize = io_size(text)?;
            Ok(())
        },
    ),
    set(
        "write_window",
        "BYTES",
        "bytes on their way when write() returns (64m; 0: none)",
        |o, text| {
            o.write_window = value::size(text, 0, 1 << 40)?;
            Ok(())
        },
    ),
    set(
        "max_requests",
        "N",
        "session slots to ask for (64)",
        |o, text| {
            o.max_requests = value::number(text, 1, 1024)?;
            Ok(())
        },
    ),
    set(
        "fuse_threads",
        "N",
        "threads that read requests (4, or the cores if fewer)",
        |o, text| {
            o.fuse_threads = value::number(text, 1, 64)?;
            Ok(())
        },
    ),
    flag(
        "sync",
        "every write waits for the server (write_window=0)",
        |_| (),
    ),
    // What may be believed without asking.
    set(
        "actimeo",
        "SECONDS",
        "sets the four times below",
        |o, text| {
            let time = value::seconds(text, 0)?;
            o.cache_times = CacheTimes {
                reg_min: time,
                reg_max: time,
                dir_min: time,
                dir_max: time,
            };
            Ok(())
        },
    ),
    set(
        "acregmin",
        "SECONDS",
        "least time to believe a file's attributes (3)",
        |o, text| {
            o.cache_times.reg_min = value::seconds(text, 0)?;
            Ok(())
        },
    ),
    set("acregmax", "SECONDS", "longest time (60)", |o, text| {
        o.cache_times.reg_max = value::seconds(text, 0)?;
        Ok(())
    }),
    set(
        "acdirmin",
        "SECONDS",
        "least time to believe a directory's (30)",
        |o, text| {
            o.cache_times.dir_min = value::seconds(text, 0)?;
            Ok(())
        },
    ),
    set("acdirmax", "SECONDS", "longest time (60)", |o, text| {
        o.cache_times.dir_max = value::seconds(text, 0)?;
        Ok(())
    }),
    flag("noac", "believe nothing without asking", |_| ()),
    flag("ac", "believe for the times above (default)", |_| ()),
    set(
        "lookupcache",
        "all|positive|none",
        "names answered from the cache (all)",
        |o, text| {
            o.name_cache = match text {
                "all" => NameCache::All,
                "pos" | "positive" => NameCache::Positive,
                "none" => NameCache::None,
                _ => return Err("expected all, positive or none".to_owned()),
            };
            Ok(())
        },
    ),
    // Logs.
    flag("debug", "log more", |o| o.debug = true),
    set("log", "FILE", "log to this file", |o, text| {
        let path = std::path::absolute(text).map_err(|why| why.to_string())?;
        o.log_file = Some(path);
        Ok(())
    }),
    OptionSpec {
        name: "sloppy",
        value: No,
        help: "unknown options are warnings (as -s)",
        meaning: Meaning::Tolerated,
    },
    // What this program does anyway.
    only("vers", &["4.1"]),
    only("nfsvers", &["4.1"]),
    only("minorversion", &["1"]),
    only("proto", &["tcp", "tcp6"]),
    only("sec", &["sys"]),
    only("local_lock", &["none"]),
    tolerated("tcp", No),
    tolerated("async", No),
    tolerated("lock", No),
    tolerated("cto", No),
    tolerated("noacl", No),
    tolerated("fg", No),
    // mount(8)'s, systemd's and init's own.
    tolerated("defaults", No),
    tolerated("auto", No),
    tolerated("noauto", No),
    tolerated("_netdev", No),
    tolerated("nofail", No),
    tolerated("user", Allowed),
    tolerated("nouser", No),
    tolerated("users", No),
    tolerated("owner", No),
    tolerated("group", No),
    tolerated("comment", Allowed),
    tolerated("norelatime", No),
    tolerated("nostrictatime", No),
    tolerated("diratime", No),
    tolerated("nodiratime", No),
    tolerated("lazytime", No),
    tolerated("nolazytime", No),
    tolerated("iversion", No),
    tolerated("noiversion", No),
    tolerated("silent", No),
    tolerated("loud", No),
    // Of nfs(5), without a counterpart here.
    tolerated("intr", No),
    tolerated("nointr", No),
    tolerated("resvport", No),
    tolerated("noresvport", No),
    tolerated("rdirplus", Allowed),
    tolerated("nordirplus", No),
    tolerated("sharecache", No),
    tolerated("nosharecache", No),
    tolerated("clientaddr", Needed("ADDRESS")),
    tolerated("addr", Needed("ADDRESS")),
    tolerated("nosoftreval", No),
    // What later versions bring.
    refused("tls", NEEDS_TLS),
    refused("iam", NEEDS_TLS),
    refused("accesspoint", NEEDS_TLS),
    refused("cafile", NEEDS_TLS),
    refused("verify", NEEDS_TLS),
    refused("ocsp", NEEDS_TLS),
    refused("noocsp", NEEDS_TLS),
    refused("stunnel", NEEDS_TLS),
    refused("tlsport", NEEDS_TLS),
    refused("awsprofile", NEEDS_TLS),
    refused("awscredsuri", NEEDS_TLS),
    refused("rolearn", NEEDS_TLS),
    refused("jwtpath", NEEDS_TLS),
    refused("az", LATER),
    refused("azid", LATER),
    refused("crossaccount", LATER),
    refused("mounttargetip", LATER),
    refused("netns", LATER),
    refused("soft", LATER),
    refused("softerr", LATER),
    refused("softreval", LATER),
    refused("nconnect", LATER),
    refused("max_connect", LATER),
    refused("trunkdiscovery", LATER),
    refused("metrics", LATER),
    refused("slow_op_ms", LATER),
    // What it will never be.
    refused("remount", "unmount and mount again to change options"),
    refused("bg", "use wait=forever, or nofail in fstab"),
    refused("nocto", "close-to-open consistency is always kept"),
    refused("nolock", "locks are always the server's"),
    refused("acl", "there are no ACLs"),
    refused("fsc", "there is no cache on local disk"),
    refused("udp", NOT_V41),
    refused("rdma", NOT_V41),
    refused("mountproto", NOT_V41),
    refused("mountport", NOT_V41),
    refused("mountvers", NOT_V41),
    refused("mounthost", NOT_V41),
];

/// As `nfs(5)` treats them: rounded down to 1024, brought within the limits.
fn io_size(text: &str) -> Result<u32, String> {
    let size = value::size(text, 1024, 1 << 40)?;
    Ok(u32::try_from(size).unwrap_or(MAX_IO).clamp(MIN_IO, MAX_IO) & !1023)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(list: &str) -> Result<MountOptions, OptionError> {
        mean(&read(&[list], false)?.typed)
    }

    #[track_caller]
    fn taken(list: &str) -> MountOptions {
        meant(list).unwrap_or_else(|why| panic!("{list}: {why}"))
    }

    #[track_caller]
    fn wrong(list: &str, because: &str) -> OptionError {
        match meant(list) {
            Ok(options) => panic!("{list} was taken for {options:?}"),
            Err(why) => {
                assert!(why.to_string().contains(because), "{list}: {why}");
                why
            }
        }
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        for list in ["", ",", "defaults", "rw", "hard,ac,dev,suid,exec,async"] {
            assert_eq!(taken(list), MountOptions::default(), "{list}");
        }
    }

    #[test]
    fn every_supported_option_reaches_its_field() {
        let o = taken(
            "ro,nodev,nosuid,noexec,noatime,allow_other,nodefault_permissions,port=12049,region=eu-west-1,notls,\
             mount_timeout=7,timeo=600,retrans=2,rsize=64k,wsize=131072,write_window=8m,max_requests=16,fuse_threads=3,\
             acregmin=1,acregmax=2,acdirmin=4,acdirmax=5,lookupcache=pos,debug,log=/var/log/e",
        );
        assert!(
            o.read_only
                && !o.dev
                && !o.suid
                && !o.exec
                && o.notls
                && o.debug
                && !o.default_permissions
        );
        assert_eq!(
            (o.atime, o.allow_other, o.port),
            (Atime::Never, Some(true), 12049)
        );
        assert_eq!(o.region.as_deref(), Some("eu-west-1"));
        assert_eq!(o.patience, Patience::GiveUpAfter(Duration::from_secs(7)));
        assert_eq!(
            (o.timeo, o.retrans),
            (Some(Duration::from_secs(60)), Some(2))
        );
        assert_eq!(
            (o.rsize, o.wsize, o.write_window),
            (65_536, 131_072, 8 << 20)
        );
        assert_eq!((o.max_requests, o.fuse_threads), (16, 3));
        let seconds = |s| Duration::from_secs(s);
        let times = CacheTimes {
            reg_min: seconds(1),
            reg_max: seconds(2),
            dir_min: seconds(4),
            dir_max: seconds(5),
        };
        assert_eq!((o.cache_times, o.name_cache), (times, NameCache::Positive));
        assert_eq!(o.log_file.as_deref(), Some("/var/log/e".as_ref()));
    }

    #[test]
    fn waiting_is_for_a_time_or_forever() {
        assert_eq!(
            taken("wait=90").patience,
            Patience::WaitFor(Duration::from_secs(90))
        );
        assert_eq!(taken("wait=forever").patience, Patience::WaitForever);
        wrong("wait=never", "forever");
        wrong("wait=0", "at least 1");
        wrong("wait=5,mount_timeout=5", "mount_timeout and wait");
    }

    #[test]
    fn what_mount_and_fstab_add_is_tolerated() {
        taken("defaults,_netdev,nofail,noauto,auto,user,user=joe,users,owner,group,comment=x");
        taken(
            "x-systemd.automount,x-systemd.idle-timeout=60,X-mount.mkdir,noresvport,nointr,intr,tcp",
        );
        taken(
            "vers=4.1,nfsvers=4.1,minorversion=1,proto=tcp,sec=sys,timeo=600,retrans=2,lookupcache=all,cto,fg",
        );
    }

    #[test]
    fn another_protocol_is_a_clear_error() {
        for list in [
            "vers=3",
            "nfsvers=4",
            "vers=4.2",
            "minorversion=0",
            "proto=udp",
            "sec=krb5",
            "udp",
        ] {
            let why = wrong(list, "not supported");
            assert!(
                why.to_string()
                    .contains(list.split('=').next().unwrap_or(list)),
                "{why}"
            );
        }
    }

    #[test]
    fn what_later_versions_bring_is_refused_by_name() {
        for list in [
            "tls",
            "iam",
            "accesspoint=fsap-1",
            "soft",
            "nconnect=4",
            "mounttargetip=1.2.3.4",
            "metrics=:9",
        ] {
            let why = wrong(list, "not supported").to_string();
            assert!(why.contains("this version"), "{why}");
            // Sloppiness is for what is unknown, not for what would be missed.
            assert!(read(&[list], true).is_err());
        }
        assert!(taken("notls").notls);
    }

    #[test]
    fn an_unknown_option_is_named_with_its_nearest_neighbour() {
        let why = wrong("rszie=4096", "unknown option \"rszie\"");
        assert!(
            why.remedy()
                .is_some_and(|remedy| remedy.contains("-o rsize"))
        );
        let why = wrong("frobnicate", "\"frobnicate\"");
        assert!(why.remedy().is_some_and(|remedy| remedy.contains("--help")));
        // Case matters.
        wrong("RO", "\"RO\"");
    }

    #[test]
    fn sloppy_turns_unknown_options_into_warnings() {
        let by_flag = read(&["frobnicate=1,ro"], true);
        let by_name = read(&["frobnicate=1", "ro,sloppy"], false);
        for found in [by_flag, by_name] {
            let found = found.unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(found.ignored, ["frobnicate"]);
            assert!(mean(&found.typed).is_ok_and(|options| options.read_only));
        }
        assert!(read(&["port=x"], true).is_ok_and(|found| mean(&found.typed).is_err()));
    }

    #[test]
    fn malformed_values_are_named() {
        for list in [
            "port=0",
            "port=65536",
            "port=nfs",
            "rsize=big",
            "rsize=0",
            "acregmin=-1",
            "acdirmax=1.5",
            "write_window=1x",
            "fuse_threads=0",
            "max_requests=0",
            "mount_timeout=0",
            "lookupcache=some",
            "region=EU",
            "timeo=0",
            "retrans=many",
        ] {
            let name = list.split('=').next().unwrap_or(list);
            let why = wrong(list, "malformed").to_string();
            assert!(why.starts_with(&format!("{name}=")), "{why}");
        }
        wrong("port", "needs a value, port=PORT");
        wrong("port=", "needs a value");
        wrong("ro=1", "takes no value");
    }

    #[test]
    fn contradictions_are_named() {
        for (list, because) in [
            ("ro,rw", "ro and rw"),
            ("noac,ac", "ac and noac"),
            ("noac,actimeo=30", "noac and actimeo=30"),
            ("acregmax=9,noac", "noac and acregmax=9"),
            ("acregmin=10,acregmax=5", "acregmin=10 and acregmax=5"),
            ("acdirmin=2,acdirmax=1", "acdirmin=2 and acdirmax=1"),
            ("sync,async", "sync and async"),
            ("sync,write_window=1m", "sync and write_window=1m"),
        ] {
            assert!(wrong(list, because).remedy().is_some());
        }
    }

    #[test]
    fn the_last_of_several_counts() {
        assert_eq!(taken("port=1,port=2").port, 2);
        assert!(taken("nosuid,suid").suid);
        let two_lists =
            read(&["acregmin=1", "acregmin=2"], false).and_then(|found| mean(&found.typed));
        assert!(two_lists.is_ok_and(|o| o.cache_times.reg_min == Duration::from_secs(2)));
    }

    #[test]
    fn a_default_gives_way_to_what_was_given() {
        assert_eq!(
            taken("acregmax=1").cache_times.reg_min,
            Duration::from_secs(1)
        );
        assert_eq!(
            taken("acdirmin=600").cache_times.dir_max,
            Duration::from_secs(600)
        );
    }

    #[test]
    fn noac_believes_nothing() {
        for list in ["noac", "noac,actimeo=0"] {
            let options = taken(list);
            assert_eq!(
                (options.cache_times, options.name_cache),
                (CacheTimes::NONE, NameCache::None)
            );
        }
        let options = taken("actimeo=0");
        assert_eq!(
            (options.cache_times, options.name_cache),
            (CacheTimes::NONE, NameCache::All)
        );
    }

    #[test]
    fn sizes_are_brought_within_the_limits() {
        assert_eq!(taken("rsize=1024").rsize, MIN_IO);
        assert_eq!(taken("wsize=1g").wsize, MAX_IO);
        assert_eq!(taken("rsize=5000").rsize, 4096);
        assert_eq!(taken("sync").write_window, 0);
        assert_eq!(taken("sync,write_window=0").write_window, 0);
    }

    #[test]
    fn a_quoted_value_may_contain_commas_and_equals_signs() {
        assert_eq!(
            taken("log=\"/a,b=c\",ro").log_file.as_deref(),
            Some("/a,b=c".as_ref())
        );
        // Split at the first equals sign only.
        assert_eq!(taken("log=/a=b").log_file.as_deref(), Some("/a=b".as_ref()));
    }

    #[test]
    fn a_relative_log_file_is_of_the_directory_of_the_command() {
        let expected = std::env::current_dir().map(|dir| dir.join("x.log")).ok();
        assert_eq!(taken("log=x.log").log_file, expected);
    }

    #[test]
    fn no_name_stands_twice_in_the_table_and_the_help_lists_them() {
        let mut names: Vec<_> = TABLE.iter().map(|spec| spec.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(help().contains("write_window=BYTES"));
        for (one, other) in CONTRADICTIONS {
            assert!(names.contains(one) && names.contains(other));
        }
    }
}
