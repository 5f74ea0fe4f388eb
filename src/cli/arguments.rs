//! The command line as clap knows it, and clap's complaints in our words.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};

use super::exit::{self, Failure};
use super::options;
use crate::telemetry::serve::Address;

/// `efs-fuse COMMAND ...`
#[derive(Debug, Parser)]
#[command(name = "efs-fuse", version, about, infer_subcommands = false)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Mount an EFS file system or any NFSv4.1 export
    #[command(after_help = options::help())]
    Mount(Mount),
    /// Flush, unmount and wait until the daemon is gone
    Umount(Umount),
    /// Wait until all that was done in a mount is stable at the server
    Sync(Sync),
    /// Show what a mount has done: operations, round trips, latencies
    Stats(Stats),
    /// Show what is mounted, and how it is doing
    Status(Status),
    /// Show the numbers of all mounts to Prometheus
    Metrics(Metrics),
    /// Walk the way of a mount step by step and say what is wrong
    Doctor(Doctor),
    /// Measure a directory tree, over NFS and without a mount
    Du(Du),
    /// Remove a directory tree, over NFS and without a mount
    Rm(Rm),
    /// Look at, check or empty the directory of a disk cache (-o cache=)
    Cache(DiskCache),
    /// Read a tree of a mount once, so that its disk cache has it
    Warm(Warm),
    /// Show or change what the daemon of a mount logs
    LogLevel(LogLevel),
    /// Have this program take over mounts from the daemons that serve them
    Upgrade(Upgrade),
    /// What a keeper starts
    #[command(hide = true)]
    TakeOver(TakeOver),
    /// Make man pages, completions, tables
    #[command(subcommand, hide = true)]
    Generate(Generate),
}

/// `efs-fuse generate`
#[derive(Debug, Subcommand)]
pub(super) enum Generate {
    /// Man pages
    Man {
        /// Where to
        dir: PathBuf,
    },
    /// Completions for bash, zsh and fish
    Completions {
        /// Where to
        dir: PathBuf,
    },
    /// The mount options as a Markdown table
    Options,
}

/// `efs-fuse cache`
#[derive(Debug, Args)]
pub(super) struct DiskCache {
    /// What to do
    #[arg(value_enum)]
    pub(super) action: CacheAction,
    /// The directory, as in -o cache=
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What is done with a cache
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CacheAction {
    /// Show how much is in it
    Status,
    /// Read all of it, and remove what is damaged
    Verify,
    /// Remove all of it, but not the directory
    Clear,
}

/// `efs-fuse warm`
#[derive(Debug, Args)]
pub(super) struct Warm {
    /// A directory or file in a mount with -o cache=
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) path: PathBuf,
    /// Stop when so many bytes were read, with k, m or g if you like
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    pub(super) max_bytes: Option<u64>,
    /// Files that are read at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) threads: u16,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn byte_count(text: &str) -> Result<u64, String> {
    super::option_value::size(text, 1, 1 << 60)
}

/// `efs-fuse mount`
#[derive(Debug, Args)]
pub(super) struct Mount {
    /// HOST[:/dir], [IPV6][:/dir], fs-ID[:/dir] or an EFS DNS name
    pub(super) device: String,
    /// The directory to mount on
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, long, value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Do not become a daemon; tell systemd when ready
    #[arg(long)]
    pub(super) foreground: bool,
    /// Mount in this mount namespace, such as /proc/1/ns/mnt: for a service that has
    /// one of its own
    #[arg(long, value_name = "PATH", requires = "foreground", value_hint = ValueHint::FilePath)]
    pub(super) mount_namespace: Option<PathBuf>,
    /// Ignore mount options that are unknown or refused
    #[arg(short)]
    pub(super) sloppy: bool,
}

/// `efs-fuse umount`
#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Where it is mounted
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,
    /// Fail pending calls first: for a dead server
    #[arg(long, short, conflicts_with = "lazy")]
    pub(super) force: bool,
    /// Take it out of the tree even if it is in use
    #[arg(long, short)]
    pub(super) lazy: bool,
}

/// `efs-fuse stats`
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// Where it is mounted
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Also say what the disk cache saved, at so many dollars for a gigabyte read from the server
    #[arg(long, value_name = "DOLLARS_PER_GB", value_parser = price)]
    pub(super) price: Option<f64>,
    /// Start again at zero, after printing
    #[arg(long, conflicts_with = "watch")]
    pub(super) reset: bool,
    /// Show what happens, again every SECONDS (1)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
        value_parser = seconds)]
    pub(super) watch: Option<Duration>,
}

fn price(text: &str) -> Result<f64, String> {
    let price = text.parse().ok();
    let price = price.filter(|price| (0.0..=1e6).contains(price));
    price.ok_or_else(|| "expected dollars, such as 0.03".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number of seconds, 0.1 to 3600".to_owned();
    let seconds = text.parse().map_err(|_| wrong())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(wrong())
    }
}

/// What `du` and `rm` work on.
#[derive(Debug, Args)]
pub(super) struct Tree {
    /// HOST:/dir, fs-ID:/dir, or a path in a mount of ours (beginning with / or .)
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) target: OsString,
    /// Mount options, separated by commas; those of the mount, for a path
    #[arg(short, value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// End each line of output with a NUL, and quote nothing
    #[arg(short = '0', long, conflicts_with = "json")]
    pub(super) null: bool,
}

/// `efs-fuse du`
#[derive(Debug, Args)]
pub(super) struct Du {
    #[command(flatten)]
    pub(super) tree: Tree,
    /// Bytes instead of human sizes
    #[arg(long)]
    pub(super) bytes: bool,
    /// Also show each directory at most N below
    #[arg(long, short, value_name = "N", default_value_t = 0)]
    pub(super) depth: usize,
}

/// `efs-fuse rm`
#[derive(Debug, Args)]
pub(super) struct Rm {
    #[command(flatten)]
    pub(super) tree: Tree,
    /// Directories too, with everything in them
    #[arg(long, short)]
    pub(super) recursive: bool,
    /// Only what was last modified longer ago than AGE: 90m, 12h, 30d, 8w
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub(super) older_than: Option<Duration>,
    /// Remove. Without it, what would be removed is only listed
    #[arg(long)]
    pub(super) yes: bool,
}

fn age(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number and a unit, s, m, h, d or w".to_owned();
    let unit = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 86_400,
        Some(b'w') => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * unit))
}

/// `efs-fuse sync`
#[derive(Debug, Args)]
pub(super) struct Sync {
    /// Where it is mounted
    pub(super) mountpoint: PathBuf,
}

/// `efs-fuse log-level`
#[derive(Debug, Args)]
pub(super) struct LogLevel {
    /// Where it is mounted
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,
    /// error, warn, info, debug, trace, or directives as in RUST_LOG; left
    /// out, the present one is shown
    pub(super) level: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `efs-fuse status`
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Where it is mounted: one is shown in words, several or all (if left out) as a table
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub(super) mountpoints: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `efs-fuse metrics`
#[derive(Debug, Args)]
pub(super) struct Metrics {
    /// Serve them at PORT (of 127.0.0.1), ADDRESS:PORT or /SOCKET, until a signal ends it;
    /// left out, they are printed once
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::FilePath)]
    pub(super) listen: Option<Address>,
}

/// `efs-fuse upgrade`
#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// Where it is mounted
    #[arg(required_unless_present = "all", value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: Option<PathBuf>,
    /// All mounts
    #[arg(long, conflicts_with = "mountpoint")]
    pub(super) all: bool,
}

/// `efs-fuse take-over`
#[derive(Debug, Args)]
pub(super) struct TakeOver {
    /// Where it is mounted
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,
    /// Why another program could not take over
    pub(super) failed: Option<String>,
    /// How the daemon has died
    pub(super) died: Option<String>,
}

/// `efs-fuse doctor`
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// What would be mounted
    pub(super) device: String,
    /// With these mount options
    #[arg(short, value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Also measure the server and how it treats what the protocol leaves open
    /// (makes and removes a file, a directory of 10,000 names and a deep one)
    #[arg(long)]
    pub(super) probe: bool,
}

/// `mount.efs-fuse DEVICE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, as `mount(8)` calls it.
#[derive(Debug, Parser)]
#[command(
    name = "mount.efs-fuse",
    version,
    about = "Mount helper of mount(8) for efs-fuse"
)]
#[command(after_help = options::help())]
pub(super) struct Helper {
    /// HOST[:/dir], [IPV6][:/dir], fs-ID[:/dir] or an EFS DNS name
    pub(super) device: String,
    /// The directory to mount on
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, long, value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Ignore mount options that are unknown or refused
    #[arg(short)]
    pub(super) sloppy: bool,
    /// Check what was written and this machine, ask no server, mount nothing
    #[arg(short)]
    pub(super) fake: bool,
    /// Accepted: there is no /etc/mtab to leave alone
    #[arg(short)]
    pub(super) no_mtab: bool,
    /// Say what is done
    #[arg(short)]
    pub(super) verbose: bool,
    /// Accepted: the type that mount(8) was asked for
    #[arg(short = 't', value_name = "TYPE")]
    pub(super) fs_type: Option<String>,
    /// Mount in this mount namespace: a path such as /proc/1/ns/mnt, or a process
    #[arg(short = 'N', long = "namespace", value_name = "NAMESPACE")]
    pub(super) namespace: Option<PathBuf>,
}

/// clap's answer to arguments that are no command: help and version are
/// answers, everything else one line and status 1. `program`: see [`called`].
pub(super) fn explain(error: &clap::Error, program: &str) -> Result<(), Failure> {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(complaint("no command is given", "efs-fuse --help"))
        }
        _ => {
            // The first paragraph says what is wrong, sometimes as a list.
            let paragraph = text.split("\n\n").next().unwrap_or(&text);
            let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
            let why = line.strip_prefix("error: ").unwrap_or(&line);
            Err(complaint(why, &remedy(error, program)))
        }
    }
}

fn complaint(why: &str, remedy: &str) -> Failure {
    Failure::usage("reading the command line", why).remedy(remedy)
}

/// The program with its command, if there is one: whose help says more.
pub(super) fn called(arguments: &[OsString]) -> String {
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    let command = words.find(|word| !word.starts_with('-'));
    let known = Cli::command();
    let known = command.and_then(|command| known.find_subcommand(command));
    match known {
        Some(command) => format!("efs-fuse {}", command.get_name()),
        None => "efs-fuse".to_owned(),
    }
}

/// What was probably meant, and the help of the command that was.
fn remedy(error: &clap::Error, program: &str) -> String {
    let help = format!("{program} --help");
    let kinds = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    let meant = kinds.iter().find_map(|kind| match error.get(*kind)? {
        ContextValue::String(one) => Some(one.clone()),
        // The likeliest is the last.
        ContextValue::Strings(several) => several.last().cloned(),
        _ => None,
    });
    match meant {
        Some(meant) => format!("{meant}, or {help}"),
        None => help,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complained(arguments: &[&str]) -> String {
        match Cli::try_parse_from(arguments) {
            Ok(cli) => panic!("{arguments:?} was taken for {cli:?}"),
            Err(error) => match explain(
                &error,
                &called(&arguments.iter().map(OsString::from).collect::<Vec<_>>()),
            ) {
                Ok(()) => panic!("{arguments:?} is no complaint"),
                Err(failure) => {
                    assert_eq!(failure.status(), 1);
                    failure.to_string()
                }
            },
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
        Helper::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_line_that_says_what_is_wrong() {
        for (arguments, because) in [
            (&["efs-fuse"][..], "no command"),
            (&["efs-fuse", "mout"], "'mout'"),
            (&["efs-fuse", "mount", "h:/"], "<MOUNTPOINT>"),
            (&["efs-fuse", "mount", "h:/", "/m", "extra"], "'extra'"),
            (
                &["efs-fuse", "mount", "h:/", "/m", "--frobnicate"],
                "'--frobnicate'",
            ),
            (&["efs-fuse", "mount", "h:/", "/m", "-o"], "-o"),
            (
                &["efs-fuse", "umount", "/m", "--lazy", "--force"],
                "--force",
            ),
            (&["efs-fuse", "stats"], "<MOUNTPOINT>"),
        ] {
            let line = complained(arguments);
            assert!(line.contains(because) && !line.contains('\n'), "{line}");
            assert!(
                line.starts_with("reading the command line failed: "),
                "{line}"
            );
        }
    }

    #[test]
    fn a_usage_error_says_what_was_meant_and_names_the_help_of_its_command() {
        for (arguments, remedy) in [
            (&["efs-fuse"][..], "efs-fuse --help"),
            (&["efs-fuse", "mout"], "mount, or efs-fuse --help"),
            (&["efs-fuse", "mount", "h:/"], "efs-fuse mount --help"),
            (
                &["efs-fuse", "mount", "h:/", "/m", "--foregroun"],
                "--foreground, or efs-fuse mount --help",
            ),
            (
                &["efs-fuse", "stats", "/m", "--watch=x"],
                "efs-fuse stats --help",
            ),
        ] {
            let line = complained(arguments);
            assert!(line.ends_with(&format!(". Try: {remedy}")), "{line}");
        }
        let Err(error) = Helper::try_parse_from(["mount.efs-fuse", "h:/"]) else {
            panic!("no mount point is no complaint");
        };
        let line = explain(&error, "mount.efs-fuse").map_err(|why| why.to_string());
        assert!(line.is_err_and(|line| line.ends_with(". Try: mount.efs-fuse --help")));
    }

    #[test]
    fn mount_s_way_of_calling_its_helper_is_understood() {
        for arguments in [
            &["mount.efs-fuse", "h:/", "/m", "-o", "rw,_netdev"][..],
            &["mount.efs-fuse", "h:/", "/m", "-sfnv", "-o", "rw"],
            &[
                "mount.efs-fuse",
                "h:/",
                "/m",
                "-n",
                "-t",
                "efs-fuse",
                "-o",
                "ro",
            ],
            &[
                "mount.efs",
                "fs-1",
                "/m",
                "--options",
                "tls",
                "-N",
                "/proc/1/ns/mnt",
            ],
            &["mount.efs", "fs-1", "/m", "-otls", "-v"],
        ] {
            assert!(Helper::try_parse_from(arguments).is_ok(), "{arguments:?}");
        }
    }

    #[test]
    fn ages_have_a_unit() {
        let seconds = |text| age(text).map(|age| age.as_secs());
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("2w"), Ok(1_209_600));
        for text in ["", "5", "d", "-1d", "1.5h", "5y", "9999999999d", "é"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_may_be_given_in_several_lists() {
        let cli = Cli::try_parse_from([
            "efs-fuse",
            "mount",
            "-o",
            "ro",
            "h:/",
            "/m",
            "-o",
            "port=1,noac",
        ]);
        assert!(
            matches!(cli, Ok(Cli { command: Command::Mount(mount) }) if mount.options == ["ro", "port=1,noac"])
        );
    }
}
