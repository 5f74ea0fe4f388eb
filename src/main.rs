//! The `efs-fuse` program; `mount.efs-fuse` when called by that name.

use std::process::ExitCode;

use efs_fuse::{cli, fuse::RequestBuffers, mount::keeper};

#[global_allocator]
static ALLOCATOR: RequestBuffers = RequestBuffers;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    // Before anything is allocated that a command needs.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|name| name == keeper::NAME)
    {
        return keeper::run(arguments.by_ref().skip(2));
    }
    cli::run(arguments)
}
