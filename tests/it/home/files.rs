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

/// The unit that mounts, with the program under test in the place of the installed one. By a
/// link: a unit cannot name every path that a checkout may have.
fn unit(dir: &Path) -> PathBuf {
    unit_as(dir, "efs-fuse@.service", "efs-fuse@volumes.service")
}

/// A unit that is shipped as `shipped_as`, to be verified as `name`.
fn unit_as(dir: &Path, shipped_as: &str, name: &str) -> PathBuf {
    let text = fs::read_to_string(shipped("systemd").join(shipped_as)).expect("the unit");
    let at = dir.join(name);
    let program = dir.join("efs-fuse");
    let _ = fs::remove_file(&program);
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
    let metrics = "efs-fuse-metrics.service";
    let metrics = unit_as(dir.path(), metrics, metrics);
    for unit in [unit(dir.path()), metrics, mount] {
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

/// What systemd says of the unit, in tenths: 3.5, with a mount namespace of its own. That
/// its mounts are seen outside is for `scripts/boot-test`, which boots it, and for
/// `home::namespace`.
#[test]
fn the_exposure_of_the_unit_is_at_most_three_and_a_half() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new("systemd-analyze");
    command
        .args(["security", "--offline=yes", "--no-pager", "--threshold=35"])
        .arg(unit(dir.path()));
    run(&mut command, LIMIT).expect_success("systemd-analyze security");
}

/// It is for no device and mounts nothing.
#[test]
fn the_exposure_of_the_metrics_unit_is_at_most_three() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let name = "efs-fuse-metrics.service";
    let mut command = Command::new("systemd-analyze");
    command
        .args(["security", "--offline=yes", "--no-pager", "--threshold=30"])
        .arg(unit_as(dir.path(), name, name));
    run(&mut command, LIMIT).expect_success("systemd-analyze security");
}

#[test]
fn groff_finds_nothing_wrong_with_the_man_pages() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut command = Command::new(EFS_FUSE);
    command.args(["generate", "man"]).arg(dir.path());
    run(&mut command, LIMIT).expect_success("generate man");
    let pages = fs::read_dir(dir.path()).expect("readdir").flatten();
    let mut names = Vec::new();
    for page in pages.map(|page| page.path()) {
        let mut command = Command::new(needs::tool("groff"));
        command
            .args(["-man", "-Tutf8", "-ww", "-P-cbou"])
            .arg(&page);
        let done = run(&mut command, LIMIT).expect_success("groff");
        assert!(
            done.stderr.is_empty(),
            "{}: {}",
            page.display(),
            done.stderr
        );
        assert!(done.stdout.contains("SYNOPSIS"), "{}", done.stdout);
        names.extend(
            page.file_name()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    for name in [
        "efs-fuse.8",
        "efs-fuse-mount.8",
        "efs-fuse@.service.8",
        "efs-fuse.conf.5",
    ] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

#[test]
fn the_alerts_are_rules_that_prometheus_takes_and_fire_when_they_should() {
    let promtool = |arguments: [&str; 2], file: &str| {
        let mut command = Command::new(needs::tool("promtool"));
        command.args(arguments).arg(shipped(file));
        run(&mut command, LIMIT).expect_success("promtool")
    };
    promtool(["check", "rules"], "scripts/alerts.yaml");
    promtool(["test", "rules"], "scripts/alerts-test.yaml");
    let text = |name| fs::read_to_string(shipped(name)).expect("a file");
    let (alerts, tests) = (
        text("scripts/alerts.yaml"),
        text("scripts/alerts-test.yaml"),
    );
    let alerts = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: Vec<_> = alerts.collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        assert!(
            tests.contains(&format!("alertname=\"{alert}\"")),
            "{alert} is not tested"
        );
    }
}

#[test]
fn shellcheck_finds_nothing_wrong_with_the_scripts() {
    let mut scripts: Vec<PathBuf> = ["scripts", "scripts/deb", "deploy/kubernetes", ".ci"]
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

/// What UserData does with a package from the network, with programs in the place of
/// curl, apt-get and dpkg that only tell.
struct UserData {
    dir: tempfile::TempDir,
}

const ADDRESS: &str = "https://packages.example/efs-fuse_1_amd64.deb";

impl UserData {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = Self { dir };
        fs::create_dir(data.at("bin")).expect("directory");
        fs::create_dir(data.at("server")).expect("directory");
        fs::write(data.at("server/efs-fuse_1_amd64.deb"), "a package").expect("write");
        let server = data.at("server").display().to_string();
        data.program(
            "curl",
            &format!(
                "for last; do :; done\nwhile [ \"$1\" != -o ]; do shift; done\ncp {server}/\"${{last##*/}}\" \"$2\"\n\
                 stat -c '%a %n' \"$(dirname \"$2\")\" >>{server}.fetched\n"
            ),
        );
        for installer in ["apt-get", "dpkg"] {
            data.program(
                installer,
                &format!("echo {installer} \"$@\" >>{server}.installed\nexit 77\n"),
            );
        }
        data
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.at("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    /// The end of it, with these settings; what was installed.
    fn run(&self, settings: &[(&str, &str)]) -> (String, Option<String>) {
        let _ = fs::remove_file(self.at("server.installed"));
        let mut command = Command::new("bash");
        command
            .arg(shipped("scripts/userdata.sh"))
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.at("bin").display()),
            )
            .env("EFS_FUSE_PACKAGE", ADDRESS)
            .envs(settings.iter().copied());
        let done = run(&mut command, LIMIT);
        assert!(!done.status.success(), "the installers fail");
        let installed = fs::read_to_string(self.at("server.installed")).ok();
        (done.stderr, installed)
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(self.dir.path());
        run(&mut command, LIMIT).expect_success("openssl");
    }
}

/// Of "a package".
const SUM: &str = "c0cd5ccfdb563a59366e33e73001b78fdb8cca5a6c48e2f90fffcde44b81f1f6";

#[test]
fn userdata_installs_nothing_from_the_network_that_is_not_what_is_meant() {
    let data = UserData::new();
    let (said, installed) = data.run(&[]);
    assert!(said.contains("is not installed unverified"), "{said}");
    assert_eq!(installed, None);
    let (said, installed) = data.run(&[("EFS_FUSE_SHA256", &"0".repeat(64))]);
    assert!(said.contains("is not what is meant"), "{said}");
    assert_eq!(installed, None);
    let (said, installed) = data.run(&[("EFS_FUSE_PACKAGE", "http://packages.example/x.deb")]);
    assert!(said.contains("only s3:// and https://"), "{said}");
    assert_eq!(installed, None);
    let (said, installed) = data.run(&[("EFS_FUSE_SHA256", SUM)]);
    let installed = installed.unwrap_or_else(|| panic!("not installed: {said}"));
    assert!(installed.contains("apt-get install -y /"), "{installed}");
    // Below a directory that nobody else can look into, of a name that nobody knows.
    let fetched = fs::read_to_string(data.at("server.fetched")).expect("fetched");
    let mut places: Vec<_> = fetched.lines().collect();
    assert!(
        places.iter().all(|place| place.starts_with("700 ")),
        "{fetched}"
    );
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 2, "{fetched}");
}

#[test]
fn userdata_believes_the_signature_of_the_operators_key_and_no_other() {
    let data = UserData::new();
    for key in ["operator", "other"] {
        let private = format!("{key}.key");
        data.openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            &private,
        ]);
        data.openssl(&[
            "pkey",
            "-in",
            &private,
            "-pubout",
            "-out",
            &format!("{key}.pem"),
        ]);
    }
    let sums = format!("{SUM}  efs-fuse_1_amd64.deb\n");
    fs::write(data.at("server/SHA256SUMS"), sums).expect("write");
    data.openssl(&[
        "dgst",
        "-sha256",
        "-sign",
        "operator.key",
        "-out",
        "server/SHA256SUMS.sig",
        "server/SHA256SUMS",
    ]);
    let by = |key: &str| {
        let key = data.at(key).display().to_string();
        data.run(&[("EFS_FUSE_KEY", &key)])
    };
    let (said, installed) = by("other.pem");
    assert!(said.contains("is not signed by"), "{said}");
    assert_eq!(installed, None);
    let (said, installed) = by("operator.pem");
    assert!(installed.is_some(), "{said}");
    // What was signed is not what is there.
    fs::write(data.at("server/efs-fuse_1_amd64.deb"), "another package").expect("write");
    let (said, installed) = by("operator.pem");
    assert!(said.contains("is not what is meant"), "{said}");
    assert_eq!(installed, None);
}

#[test]
fn the_template_grants_nothing_beside_the_access_point_and_keeps_the_role_on_the_instance() {
    let text = fs::read_to_string(shipped("scripts/cloudformation.yaml")).expect("the template");
    let policy = text.split("FileSystemPolicy:").nth(1).expect("a policy");
    let policy = policy
        .split("MountTargetSecurityGroup:")
        .next()
        .expect("its end");
    assert!(!policy.contains("Effect: Allow"), "{policy}");
    assert!(
        policy.contains("aws:SecureTransport: \"false\""),
        "{policy}"
    );
    assert!(
        policy.contains("elasticfilesystem:AccessPointArn: \"true\""),
        "{policy}"
    );
    let role = text
        .split("MountThroughTheAccessPoint")
        .nth(1)
        .expect("a grant");
    let role = role.split("Sid:").next().expect("its end");
    assert!(
        role.contains("elasticfilesystem:AccessPointArn: !GetAtt AccessPoint.Arn"),
        "{role}"
    );
    assert!(text.contains("HttpPutResponseHopLimit: 1"));
    assert!(text.contains("HttpTokens: required"));
    assert!(text.contains("sha256sum --check"));
}

#[test]
fn examples_mount_without_set_user_ids_and_devices() {
    let mut seen = 0;
    for name in [
        "README.md",
        "docs/EFS.md",
        "docs/OPERATIONS.md",
        "docs/ec2.md",
        "docs/migrating-from-efs-utils.md",
        "systemd/example.conf",
        "systemd/volumes.mount",
        "scripts/userdata.sh",
        "scripts/userdata.cloud-config.yaml",
        "scripts/cloudformation.yaml",
    ] {
        let text = fs::read_to_string(shipped(name)).expect("an example");
        let options = |line: &&str| {
            let line = line.trim_start_matches(['#', ' ']);
            [
                "OPTIONS=tls",
                "OPTIONS=nosuid",
                "Options=_netdev",
                "Default: tls",
            ]
            .iter()
            .any(|start| line.starts_with(start))
                || line.contains("efs-fuse _netdev")
                || line.starts_with("EFS_FUSE_OPTIONS=")
        };
        for line in text.lines().filter(options) {
            seen += 1;
            assert!(line.contains("nosuid,nodev"), "{name}: {line}");
        }
    }
    assert!(seen >= 6, "{seen}");
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
    for file in [
        "lib/systemd/system/efs-fuse@.service",
        "lib/systemd/system/efs-fuse-metrics.service",
        "share/man/man8/efs-fuse@.service.8",
        "share/man/man5/efs-fuse.conf.5",
    ] {
        assert!(root.path().join("usr").join(file).exists(), "{file}");
    }
    assert!(install(&from).stdout.contains("nothing to do"));
    install(&["uninstall"]);
    let mut left = Command::new("find");
    let left = run(left.arg(root.path()).args(["-not", "-type", "d"]), LIMIT);
    assert_eq!(left.stdout, "");
}
