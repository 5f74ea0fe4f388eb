//! The `efs-fuse` program; `mount.efs-fuse` when called by that name.

use std::process::ExitCode;

fn main() -> ExitCode {
    efs_fuse::cli::run(std::env::args_os())
}
