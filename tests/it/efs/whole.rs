//! The story of the README on one machine: the line that users type, at the
//! real port, with names, instance metadata and a role, in namespaces of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixtures::mount::{EFS_FUSE, Mountpoint};
use crate::fixtures::needs;
use crate::fixtures::process::run;

/// `cargo test` builds it beside the tests.
fn lookalike() -> PathBuf {
    let program = Path::new(EFS_FUSE)
        .with_file_name("examples")
        .join("efs-lookalike");
    assert!(
        program.exists(),
        "{} is not there: cargo build --example efs-lookalike",
        program.display()
    );
    program
}

#[test]
fn the_line_of_the_readme_works_with_nothing_but_a_machine_that_looks_like_ec2() {
    needs::mounts_and_servers();
    let at = Mountpoint::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo");
    let mut command = Command::new(demo);
    command
        .arg("--efs")
        .arg(at.path())
        .env("EFS_FUSE", EFS_FUSE)
        .env("EFS_LOOKALIKE", lookalike());
    let done = run(&mut command, Duration::from_secs(120)).expect_success("demo --efs");
    for words in [
        "$ efs-fuse mount fs-f223e6bb",
        "no IAM identity, no access point",
        "signed by ASIALOOKALIKE0000001, fsap-0123456789abcdef0",
        "TLSv1_3",
        "nothing left behind",
    ] {
        assert!(
            done.stdout.contains(words),
            "{words} is not in\n{}",
            done.stdout
        );
    }
    assert!(at.mounted().is_empty());
}
