//! The command line as clap knows it, and clap's complaints in our words.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use super::exit::{self, Failure};
use super::options;

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
    /// Show what a mount has done: operations, round trips, latencies
    Stats(Stats),
    /// Show what is mounted, and how it is doing
    Status(Status),
}

/// `efs-fuse mount`
#[derive(Debug, Args)]
pub(super) struct Mount {
    /// HOST[:/dir], [IPV6][:/dir], fs-ID[:/dir] or an EFS DNS name
    pub(super) device: String,
    /// The directory to mount on
    pub(super) mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Do not become a daemon; tell systemd when ready
    #[arg(long)]
    pub(super) foreground: bool,
    /// Ignore unknown mount options
    #[arg(short)]
    pub(super) sloppy: bool,
}

/// `efs-fuse umount`
#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Where it is mounted
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
    pub(super) mountpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Start again at zero, after printing
    #[arg(long)]
    pub(super) reset: bool,
}

/// `efs-fuse status`
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Where it is mounted; all mounts if left out
    pub(super) mountpoint: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `mount.efs-fuse DEVICE DIR [-sfnv] [-o OPTIONS]`, as `mount(8)` calls it.
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
    pub(super) mountpoint: PathBuf,
    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTIONS")]
    pub(super) options: Vec<String>,
    /// Ignore unknown mount options
    #[arg(short)]
    pub(super) sloppy: bool,
    /// Check everything, mount nothing
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
}

/// clap's answer to arguments that are no command: help and version are
/// answers, everything else one line and status 1.
pub(super) fn explain(error: &clap::Error) -> Result<(), Failure> {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(complaint("no command is given"))
        }
        _ => {
            // The first paragraph says what is wrong, sometimes as a list.
            let paragraph = text.split("\n\n").next().unwrap_or(&text);
            let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(complaint(line.strip_prefix("error: ").unwrap_or(&line)))
        }
    }
}

fn complaint(why: &str) -> Failure {
    Failure::usage("reading the command line", why).remedy("efs-fuse --help")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn complained(arguments: &[&str]) -> String {
        match Cli::try_parse_from(arguments) {
            Ok(cli) => panic!("{arguments:?} was taken for {cli:?}"),
            Err(error) => match explain(&error) {
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
        ] {
            assert!(Helper::try_parse_from(arguments).is_ok(), "{arguments:?}");
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
