//! What is shipped beside the program: units, scripts, templates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixtures::mount::EFS_FUSE;
use crate::fixtures::needs;
use crate::fixtures::process::run;

const LIMIT: Duration = Duration::from_secs(120);

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The unit, with the program under test in the place of the installed one. By a link:
/// a unit cannot name every path that a checkout may have.
fn unit(dir: &Path) -> PathBuf {
    let text = fs::read_to_string(shipped("systemd/efs-fuse@.service")).expect("the unit");
    let at = dir.join("efs-fuse@volumes.service");
    let program = dir.join("efs-fuse");
    std::os::unix::fs::symlink(EFS_FUSE, &program).expect("symlink");
    let program = program.to_str().expect("a path in UTF-8");
    fs::write(&at, text.replace("/usr/sbin/efs-fuse", program)).expect("write");
    at
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mount = dir.path().join("volumes.mount");
    fs::copy(shipped("systemd/volumes.mount"), &mount).expect("copy");
    for unit in [unit(dir.path()), mount] {
        let mut command = Command::new("systemd-analyze");
        let done = run(command.args(["verify", "--man=no"]).arg(&unit), LIMIT);
        // Unknown keys only warn, with status 0.
        let said = format!("{}{}", done.stdout, done.stderr);
        assert!(
            done.status.success() && said.is_empty(),
            "{}: {said}",
            unit.display()
        );
    }
}

#[test]
fn the_unit_is_as_hardened_as_a_service_that_mounts_can_be() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new("systemd-analyze");
    // In tenths. What is missing below hides mounts from everybody else.
    command
        .args(["security", "--offline=yes", "--no-pager", "--threshold=52"])
        .arg(unit(dir.path()));
    run(&mut command, LIMIT).expect_success("systemd-analyze security");
    let text = fs::read_to_string(shipped("systemd/efs-fuse@.service")).expect("the unit");
    for hides in [
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "DynamicUser",
        "ReadWritePaths",
        "InaccessiblePaths",
        "TemporaryFileSystem",
        "BindPaths",
        "RootDirectory",
    ] {
        let set = text
            .lines()
            .any(|line| line.starts_with(&format!("{hides}=")));
        assert!(!set, "{hides}= gives the unit a mount namespace of its own");
    }
}

#[test]
fn shellcheck_finds_nothing_wrong_with_the_scripts() {
    let mut scripts: Vec<PathBuf> = ["scripts", "scripts/deb", ".ci"]
        .iter()
        .flat_map(|dir| fs::read_dir(shipped(dir)).expect("readdir").flatten())
        .map(|entry| entry.path())
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let first = text.lines().next().unwrap_or_default();
            first.starts_with("#!") && first.ends_with("sh")
        })
        .collect();
    scripts.sort();
    assert!(scripts.len() > 10, "{scripts:?}");
    let mut command = Command::new(needs::tool("shellcheck"));
    run(command.args(&scripts), LIMIT).expect_success("shellcheck");
}

#[test]
fn the_cloudformation_template_is_valid() {
    let mut command = Command::new(needs::tool("cfn-lint"));
    command.arg(shipped("scripts/cloudformation.yaml"));
    run(&mut command, LIMIT).expect_success("cfn-lint");
}

#[test]
fn every_command_has_help_and_those_that_print_data_can_print_json() {
    let of = |arguments: &[&str]| {
        let mut command = Command::new(EFS_FUSE);
        run(command.args(arguments), LIMIT)
            .expect_success("help")
            .stdout
    };
    for command in [
        "mount",
        "umount",
        "status",
        "stats",
        "log-level",
        "du",
        "rm",
    ] {
        let help = of(&[command, "--help"]);
        assert!(help.contains("Usage:"), "{help}");
        let prints_data = !matches!(command, "mount" | "umount");
        assert_eq!(help.contains("--json"), prints_data, "{help}");
    }
    assert!(!of(&["--help"]).contains("generate"), "it is for packages");
}

#[test]
fn installing_below_a_directory_twice_changes_nothing_and_uninstalling_leaves_nothing() {
    let root = tempfile::tempdir().expect("temporary directory");
    let install = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command
            .arg(shipped("scripts/install.sh"))
            .args(arguments)
            .arg("--root")
            .arg(root.path());
        run(&mut command, LIMIT).expect_success("install.sh")
    };
    let from = ["install", "--from", EFS_FUSE];
    assert!(install(&from).stdout.contains("installed efs-fuse"));
    let sbin = root.path().join("usr/sbin");
    for helper in ["mount.efs-fuse", "mount.fuse.efs-fuse"] {
        assert_eq!(
            fs::read_link(sbin.join(helper)).expect("a link"),
            Path::new("efs-fuse")
        );
    }
    assert!(
        root.path()
            .join("usr/share/man/man8/efs-fuse-mount.8")
            .exists()
    );
    assert!(
        root.path()
            .join("usr/lib/systemd/system/efs-fuse@.service")
            .exists()
    );
    assert!(install(&from).stdout.contains("nothing to do"));
    install(&["uninstall"]);
    let mut left = Command::new("find");
    let left = run(left.arg(root.path()).args(["-not", "-type", "d"]), LIMIT);
    assert_eq!(left.stdout, "");
}
