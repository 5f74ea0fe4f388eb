//! The one table of `-o` options: how each is written, what it is for, what it
//! means. The help text, the parser ([`super::option_list`]) and its
//! suggestions come from it.
//!
//! The names are those of `mount.efs`, `nfs(5)` and `mount(8)`. What those
//! accept and what changes nothing here is accepted silently; what would
//! change the meaning of the mount and is not there yet is an error.

use std::path::PathBuf;
use std::time::Duration;

use Value::{Allowed, Needed, No};

use super::option_profiles;
use super::option_value as value;
use super::options_foreign::FOREIGN;
use crate::mount::options::{
    Atime, CacheTimes, Locks, LocksOf, MAX_CONNECTIONS, MAX_IO, MIN_IO, MountOptions, MountWait,
    NameCache, TakeOver, Unanswered,
};

/// One option of the table.
#[derive(Debug)]
pub struct OptionSpec {
    /// As it is written, without value.
    pub name: &'static str,
    /// Whether a value follows.
    pub value: Value,
    /// One line for the help; empty for what is merely tolerated.
    pub help: &'static str,
    pub(super) meaning: Meaning,
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

/// What an option does.
#[derive(Debug)]
pub(super) enum Meaning {
    /// Changes the options; the error says what was expected.
    Set(fn(&mut MountOptions, &str) -> Result<(), String>),
    /// Changes the options, without a value.
    Flag(fn(&mut MountOptions)),
    /// For the kernel's security module, as it is written.
    Security,
    /// Changes nothing.
    Tolerated,
    /// Changes nothing, and the user is told why.
    Vain(&'static str),
    /// Only these values are what this program does anyway.
    Only(&'static [&'static str]),
    /// The same, and `sloppy` does not let another one pass: less would be secret than was
    /// asked for.
    Strictly(&'static [&'static str]),
    /// Says why this version refuses it.
    Refused(&'static str),
}

/// All options that are known.
pub fn all() -> impl Iterator<Item = &'static OptionSpec> {
    TABLE.iter().chain(FOREIGN)
}

impl OptionSpec {
    /// As it is written, with a placeholder for its value.
    pub fn written(&self) -> String {
        match self.value {
            Needed(placeholder) => format!("{}={placeholder}", self.name),
            _ => self.name.to_owned(),
        }
    }
}

/// The help of all options that have one.
pub fn help() -> String {
    let mut text = String::from("Options (-o NAME[=VALUE],...):\n");
    for spec in TABLE.iter().filter(|spec| !spec.help.is_empty()) {
        text.push_str(&format!("  {:<24} {}\n", spec.written(), spec.help));
    }
    text.push_str("Further options of nfs(5) and mount(8) that change nothing here are accepted.");
    text
}

pub(super) const fn set(
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

pub(super) const fn flag(
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

/// An option of SELinux's, which the kernel reads.
const fn security(name: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        value: Needed("CONTEXT"),
        help,
        meaning: Meaning::Security,
    }
}

/// The options that mean something here. Those of one concern stand together; what is
/// accepted without effect, or refused, is in [`super::options_foreign`].
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
    flag("symfollow", "symbolic links are followed (default)", |o| {
        o.nosymfollow = false;
    }),
    flag("nosymfollow", "symbolic links are not followed", |o| {
        o.nosymfollow = true;
    }),
    security("context", "all files have this SELinux context"),
    security("fscontext", "the file system itself has it"),
    security("defcontext", "files without one have it"),
    security("rootcontext", "the root directory has it"),
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
    // The server.
    set("port", "PORT", "the server's TCP port (2049)", |o, text| {
        o.server.port = value::number(text, 1, u16::MAX)?;
        Ok(())
    }),
    // RPC-with-TLS (RFC 9289) begins in the clear; `tls` does not.
    set("xprtsec", "none", "", |o, text| {
        if text != "none" {
            return Err(
                "expected none: RPC-with-TLS (RFC 9289) is not spoken; -o tls is TLS from the first byte on"
                    .to_owned(),
            );
        }
        o.server.tls = Some(false);
        Ok(())
    }),
    flag(
        "resvport",
        "as root, connect from a port below 1024 (default but for EFS)",
        |o| o.server.reserved_port = Some(true),
    ),
    flag(
        "noresvport",
        "connect from any port (default for EFS)",
        |o| o.server.reserved_port = Some(false),
    ),
    flag("tls", "connect by TLS (default for EFS)", |o| {
        o.server.tls = Some(true);
    }),
    flag(
        "notls",
        "an unencrypted connection (default for other servers)",
        |o| {
            o.server.tls = Some(false);
        },
    ),
    set(
        "cafile",
        "FILE",
        "believe only certificates of these issuers (EFS: Amazon's, else the system's)",
        |o, text| {
            o.server.ca_file = Some(absolute(text)?);
            Ok(())
        },
    ),
    set(
        "verify",
        "LEVEL",
        "0: believe any certificate; above: check it (2)",
        |o, text| {
            o.server.verify = value::number::<u8>(text, 0, 4)? > 0;
            Ok(())
        },
    ),
    flag(
        "fips",
        "FIPS endpoints and approved algorithms only (by a module that is not validated)",
        |o| o.server.fips = true,
    ),
    flag(
        "iam",
        "connect as the IAM principal whose credentials are found",
        |o| {
            o.server.iam = true;
        },
    ),
    set(
        "accesspoint",
        "fsap-ID",
        "through this access point",
        |o, text| {
            let digits = text.strip_prefix("fsap-").unwrap_or_default();
            let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
            if digits.len() != 17 || !digits.bytes().all(hex) {
                return Err("expected fsap- and 17 hexadecimal digits in lower case".to_owned());
            }
            o.server.access_point = Some(text.to_owned());
            Ok(())
        },
    ),
    set(
        "region",
        "REGION",
        "AWS region of a bare file system id (AWS_REGION, instance metadata)",
        |o, text| {
            if !crate::efs::region::is_valid(text) {
                return Err("expected a region such as eu-west-1".to_owned());
            }
            o.server.region = Some(text.to_owned());
            Ok(())
        },
    ),
    set(
        "dns_suffix",
        "SUFFIX",
        "what the names of mount targets end in (amazonaws.com, or as the region has it)",
        |o, text| {
            if !crate::efs::region::is_suffix(text) {
                return Err("expected a domain in lower case such as amazonaws.com".to_owned());
            }
            o.server.dns_suffix = Some(text.to_owned());
            Ok(())
        },
    ),
    set(
        "az",
        "ZONE",
        "use the mount target of this zone",
        |o, text| {
            if !crate::efs::region::is_valid(text) {
                return Err("expected a zone such as eu-west-1a".to_owned());
            }
            o.server.zone = Some(text.to_owned());
            Ok(())
        },
    ),
    set(
        "mounttargetip",
        "ADDRESS",
        "connect to this mount target; the name is not resolved",
        |o, text| {
            let inside = text
                .strip_prefix('[')
                .and_then(|text| text.strip_suffix(']'));
            let address = inside.unwrap_or(text).parse();
            let address = address.map_err(|_| "expected an IP address".to_owned())?;
            o.server.mount_target = Some(address);
            Ok(())
        },
    ),
    flag(
        "api",
        "ask the EFS API for mount targets where names do not resolve (default)",
        |o| o.server.ask_api = true,
    ),
    flag("noapi", "do not", |o| o.server.ask_api = false),
    flag(
        "crossaccount",
        "the name of the mount target begins with the zone's id",
        |o| o.server.cross_account = true,
    ),
    set(
        "awsprofile",
        "NAME",
        "credentials of this profile of ~/.aws only",
        |o, text| {
            o.server.profile = Some(text.to_owned());
            Ok(())
        },
    ),
    set(
        "awscredsuri",
        "/PATH",
        "credentials of the container credential service at this path",
        |o, text| {
            if !text.starts_with('/') {
                return Err("expected a path that begins with /".to_owned());
            }
            o.server.credentials_uri = Some(text.to_owned());
            Ok(())
        },
    ),
    set(
        "rolearn",
        "ARN",
        "credentials of this role, for the token in jwtpath=",
        |o, text| {
            if !text.starts_with("arn:") {
                return Err("expected arn:aws:iam::ACCOUNT:role/NAME".to_owned());
            }
            o.server.role = Some(text.to_owned());
            Ok(())
        },
    ),
    set("jwtpath", "FILE", "a web identity token", |o, text| {
        o.server.token_file = Some(absolute(text)?);
        Ok(())
    }),
    set(
        "client_source",
        "NAME",
        "what this client calls itself to EFS (efs-fuse)",
        |o, text| {
            if !crate::efs::settings::is_client_source(text) {
                return Err("expected 1 to 100 characters of ASCII".to_owned());
            }
            o.server.client_source = Some(text.to_owned());
            Ok(())
        },
    ),
    set(
        "tls_renew",
        "SECONDS",
        "make a new client certificate for a connection after this time (3600)",
        |o, text| {
            o.server.renew = value::seconds(text, 1)?;
            Ok(())
        },
    ),
    set(
        "netns",
        "PATH",
        "do everything on the network in this namespace",
        |o, text| {
            o.server.netns = Some(absolute(text)?);
            Ok(())
        },
    ),
    // How long to try.
    set(
        "mount_timeout",
        "SECONDS",
        "give up mounting after this time (30)",
        |o, text| {
            o.mount_wait = MountWait::GiveUpAfter(value::seconds(text, 1)?);
            Ok(())
        },
    ),
    set(
        "wait",
        "SECONDS|forever",
        "keep trying to mount for this time",
        |o, text| {
            o.mount_wait = match text {
                "forever" => MountWait::WaitForever,
                _ => MountWait::WaitFor(
                    value::seconds(text, 1).map_err(|why| format!("{why}, or forever"))?,
                ),
            };
            Ok(())
        },
    ),
    set("retry", "MINUTES", "", |o, text| {
        o.mount_wait = match value::number::<u64>(text, 0, 52_560_000)? {
            0 => MountOptions::default().mount_wait,
            minutes => MountWait::WaitFor(Duration::from_secs(60 * minutes)),
        };
        Ok(())
    }),
    flag(
        "hard",
        "calls wait for an unreachable server (default)",
        |o| o.unanswered = Unanswered::Hard,
    ),
    flag("soft", "they fail with EIO after timeo x retrans", |o| {
        o.unanswered = Unanswered::Soft
    }),
    flag(
        "softerr",
        "they fail with ETIMEDOUT after timeo x retrans",
        |o| o.unanswered = Unanswered::SoftErr,
    ),
    set(
        "timeo",
        "DECISECONDS",
        "what a call may take before its connection is suspected (600)",
        |o, text| {
            let tenths = value::number::<u64>(text, 1, 36_000);
            let tenths = tenths.map_err(|_| {
                "expected tenths of a second, a number from 1 to 36000: 600 is a minute".to_owned()
            })?;
            o.timeo = Duration::from_millis(100 * tenths);
            Ok(())
        },
    ),
    set(
        "retrans",
        "N",
        "soft mounts: give up after so many times that (2)",
        |o, text| {
            o.retrans = value::number(text, 0, 1000)?;
            Ok(())
        },
    ),
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
        "nconnect",
        "N",
        "that many connections, from the beginning (1)",
        |o, text| {
            o.nconnect = Some(value::number(text, 1, MAX_CONNECTIONS)?);
            Ok(())
        },
    ),
    set(
        "max_connections",
        "N",
        "up to so many while there is much to carry (EFS 5, else nconnect)",
        |o, text| {
            o.max_connections = Some(value::number(text, 1, MAX_CONNECTIONS)?);
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
        |o| o.write_window = 0,
    ),
    flag("async", "", |o| {
        if o.write_window == 0 {
            o.write_window = MountOptions::default().write_window;
        }
    }),
    set("write", "lazy|eager|wait", "", |o, text| {
        match text {
            // No write waits here longer than milliseconds for others to join it.
            "lazy" | "eager" => {}
            "wait" => o.write_window = 0,
            _ => return Err("expected lazy, eager or wait".to_owned()),
        }
        Ok(())
    }),
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
        "all|positive|none|complete",
        "names answered from the cache (all)",
        |o, text| {
            o.name_cache = match text {
                "all" => NameCache::All,
                "complete" => NameCache::Complete,
                "pos" | "positive" => NameCache::Positive,
                "none" => NameCache::None,
                _ => return Err("expected all, positive, none or complete".to_owned()),
            };
            Ok(())
        },
    ),
    flag("cto", "every open asks the server (default)", |o| {
        o.close_to_open = true;
    }),
    flag(
        "nocto",
        "opens for reading ask nothing while the file's attributes are believed",
        |o| o.close_to_open = false,
    ),
    set(
        "cache",
        "DIR",
        "keep what is read of files in this directory of a local disk, which nobody but root may enter",
        |o, text| {
            o.disk_cache = Some(absolute(text)?);
            Ok(())
        },
    ),
    set(
        "cache_size",
        "BYTES|PERCENT%",
        "what it may take there, for all mounts with that directory (10% of the disk)",
        |o, text| {
            o.disk_cache_size = value::amount(text)?;
            Ok(())
        },
    ),
    set(
        "cache_min_free",
        "BYTES|PERCENT%",
        "what of that disk stays free (5%)",
        |o, text| {
            o.disk_cache_min_free = value::amount(text)?;
            Ok(())
        },
    ),
    set(
        "cache_key",
        "none|memory",
        "memory: encrypt it with a key that dies with the daemon, for who mounts next it is empty (none)",
        |o, text| {
            o.disk_cache_secret = match text {
                "none" => false,
                "memory" => true,
                _ => return Err("expected none or memory".to_owned()),
            };
            Ok(())
        },
    ),
    set(
        "cache_names",
        "N",
        "names remembered; of one directory a quarter (100000)",
        |o, text| {
            o.cache_names = value::number(text, 0, 1 << 40)?;
            Ok(())
        },
    ),
    set(
        "cache_inodes",
        "N",
        "files the kernel may hold before it is asked to forget some (100000)",
        |o, text| {
            o.cache_inodes = value::number(text, 1, 1 << 40)?;
            Ok(())
        },
    ),
    // Sets of what is here and above.
    set(
        "profile",
        "ci|db|home|ml|web",
        "options for what the volume is used for; later options win (see README)",
        |_, text| option_profiles::members(text).map(drop),
    ),
    // The daemon.
    OptionSpec {
        name: "takeover",
        value: Allowed,
        help: "a keeper holds the mount, so that another daemon can take over, when efs-fuse upgrade asks for it; =crash: also after a crash (young: see OPERATIONS)",
        meaning: Meaning::Set(|o, text| {
            o.takeover = match text {
                "" | "upgrade" => TakeOver::Upgrade,
                "crash" => TakeOver::Always,
                _ => return Err("takeover, takeover=upgrade or takeover=crash".to_owned()),
            };
            Ok(())
        }),
    },
    flag("notakeover", "no keeper (default)", |o| {
        o.takeover = TakeOver::Never;
    }),
    flag(
        "writeback",
        "answer this host's changes of names, attributes and data before the server has them; fsync, locks and umount wait",
        |o| o.writeback = true,
    ),
    flag(
        "nowriteback",
        "answer changes when the server has them (default)",
        |o| {
            o.writeback = false;
        },
    ),
    set(
        "writeback_delay",
        "MS",
        "with writeback: the longest that a change stays back (1000)",
        |o, text| {
            let time = value::number(text, 10, 60_000_u64)?;
            o.writeback_delay = Duration::from_millis(time);
            Ok(())
        },
    ),
    // Logs.
    flag("debug", "log more", |o| o.debug = true),
    set("log", "FILE", "log to this file", |o, text| {
        o.log_file = Some(absolute(text)?);
        Ok(())
    }),
    set(
        "slow_op_ms",
        "MILLISECONDS",
        "log every operation that takes this long",
        |o, text| {
            let time = Duration::from_millis(value::number(text, 1, 86_400_000)?);
            o.slow_op = Some(time);
            Ok(())
        },
    ),
    set(
        "metrics",
        "[ADDRESS:]PORT|/SOCKET",
        "serve Prometheus metrics there, at /metrics",
        |o, text| {
            o.metrics = Some(text.parse()?);
            Ok(())
        },
    ),
    flag(
        "remount",
        "change ro, rw, dev, suid, exec, atime, symfollow of a mount",
        |o| o.remount = true,
    ),
    OptionSpec {
        name: "sloppy",
        value: No,
        help: "options that are unknown or refused are warnings (as -s)",
        meaning: Meaning::Tolerated,
    },
    flag("lock", "file locks are the server's (default)", |o| {
        o.locks = LocksOf::Server.into();
    }),
    flag(
        "nolock",
        "file locks exclude only processes of this host",
        |o| {
            o.locks = LocksOf::Host.into();
        },
    ),
    set(
        "local_lock",
        "none|flock|posix|all",
        "which file locks exclude only processes of this host (none)",
        |o, text| {
            let (flock, posix) = match text {
                "none" => (LocksOf::Server, LocksOf::Server),
                "flock" => (LocksOf::Host, LocksOf::Server),
                "posix" => (LocksOf::Server, LocksOf::Host),
                "all" => (LocksOf::Host, LocksOf::Host),
                _ => return Err("expected none, flock, posix or all".to_owned()),
            };
            o.locks = Locks { flock, posix };
            Ok(())
        },
    ),
];

/// The daemon changes its directory.
fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|why| why.to_string())
}

/// As `nfs(5)` treats them: rounded down to 1024, brought within the limits.
fn io_size(text: &str) -> Result<u32, String> {
    let size = value::size(text, 1024, 1 << 40)?;
    Ok(u32::try_from(size).unwrap_or(MAX_IO).clamp(MIN_IO, MAX_IO) & !1023)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_stands_twice_in_the_table_and_the_help_lists_them() {
        let mut names: Vec<_> = all().map(|spec| spec.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        assert!(help().contains("write_window=BYTES"));
    }
}
