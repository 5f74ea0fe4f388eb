//! The commands: what a user types, turned into calls of the layers below, and
//! what comes back, turned into text and an exit status.
//!
//! One file per command. [`options`] is the one table of `-o` options,
//! [`exit`] the one place where failures become lines and statuses.

mod arguments;
mod cache;
mod completion;
mod defaults;
mod doctor;
mod du;
mod efs_utils_conf;
pub mod exit;
mod format;
mod generate;
mod log_level;
mod metrics;
mod mount;
mod mount_efs;
mod names;
pub mod option_list;
mod option_origins;
mod option_profiles;
mod option_value;
pub mod options;
mod options_foreign;
mod probe;
mod rm;
mod running;
mod stats;
mod status;
mod sync;
mod take_over;
mod tree;
mod umount;
mod upgrade;
mod warm;
mod watch;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Cli, Command, Helper};
use exit::Failure;
use mount::MountCommand;

/// The names under which `mount(8)` calls this program: the second for the
/// type that the mount table shows, as in `mount -o remount`.
const HELPER_NAMES: [&str; 2] = ["mount.efs-fuse", "mount.fuse.efs-fuse"];
/// The name of amazon-efs-utils' helper, which this program can stand in for.
const MOUNT_EFS: &str = "mount.efs";

/// Runs the command that `arguments` (the program's name first) ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    exit::install_panic_hook();
    crate::mount::harden::settle_environment();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let name = arguments
        .first()
        .and_then(|name| Path::new(name).file_name());
    let is = |helper: &str| name.is_some_and(|name| name == helper);
    let outcome = if HELPER_NAMES.iter().any(|helper| is(helper)) || is(MOUNT_EFS) {
        let as_mount_efs = is(MOUNT_EFS);
        Helper::try_parse_from(&arguments)
            .map_err(|error| Box::new((error, "mount.efs-fuse".to_owned())))
            .map(|helper| mount::run(&MountCommand::of_helper(helper, as_mount_efs)))
    } else {
        Cli::try_parse_from(&arguments)
            .map_err(|error| Box::new((error, arguments::called(&arguments))))
            .map(dispatch)
    };
    exit::finish(outcome.unwrap_or_else(|wrong| arguments::explain(&wrong.0, &wrong.1)))
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Mount(arguments) => mount::run(&arguments.into()),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Sync(arguments) => sync::run(&arguments),
        Command::Stats(arguments) => stats::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Metrics(arguments) => metrics::run(&arguments),
        Command::Du(arguments) => du::run(&arguments),
        Command::Rm(arguments) => rm::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Cache(arguments) => cache::run(&arguments),
        Command::Warm(arguments) => warm::run(&arguments),
        Command::LogLevel(arguments) => log_level::run(&arguments),
        Command::Upgrade(arguments) => upgrade::run(&arguments),
        Command::TakeOver(arguments) => take_over::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
    }
}
