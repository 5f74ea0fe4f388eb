//! `mount.efs`: the command lines of the programs that call amazon-efs-utils' helper, each
//! as it stands in their sources, run twice on a machine that looks like EC2.
//!
//! Only ids, addresses and paths are the look-alike's. The sources are aws/efs-utils
//! def6e74, kubernetes-sigs/aws-efs-csi-driver a4fc676 and aws/amazon-ecs-agent 8dfceca.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixtures::aws::{FS, KEY_ID, NAME, POINT, SECRET, TOKEN};
use crate::fixtures::isolated::Isolated;
use crate::fixtures::mount::{EFS_FUSE, Mountpoint, mounted_at};
use crate::fixtures::process::{Finished, eventually, run};
use crate::lookalike::services::{CREDENTIALS_URI, ROLE_ARN};

const LIMIT: Duration = Duration::from_secs(60);

/// A machine with the helper in `/sbin` and the official client's configuration, its
/// network that of the look-alike. What a script changes is gone with it.
struct Machine {
    isolated: Isolated,
    dir: tempfile::TempDir,
    at: Mountpoint,
}

/// Of the configuration, beside the CA file: what the driver writes
/// (aws-efs-csi-driver/pkg/driver/efs_watch_dog.go:45-163), as far as it may matter.
const CONF: &str = "[DEFAULT]\nlogging_level = INFO\n[mount]\n\
    dns_name_format = {az}.{fs_id}.efs.{region}.{dns_name_suffix}\n\
    dns_name_suffix = amazonaws.com\nfips_mode_enabled = false\n\
    fall_back_to_mount_target_ip_address_enabled = true\n\
    disable_fetch_ec2_metadata_token = false\n\
    [mount.cn-north-1]\ndns_name_suffix = amazonaws.com.cn\n\
    [client-info] \nsource=k8s\n[cloudwatch-log]\nenabled = false\n";

impl Machine {
    fn new() -> Self {
        let isolated = Isolated::start();
        for server in [&isolated.aws.server, &isolated.aws.point] {
            fs::create_dir_all(server.export().join("a/b")).expect("mkdir");
            fs::create_dir_all(server.export().join("test")).expect("mkdir");
        }
        Self {
            isolated,
            dir: tempfile::tempdir().expect("temporary directory"),
            at: Mountpoint::new(),
        }
    }

    fn conf(&self, more: &str) -> String {
        let ca = self.isolated.aws.ca_file().display();
        format!("{CONF}[mount]\nstunnel_cafile = {ca}\n{more}")
    }

    /// Runs a script in which `$AT` is a mount point, with this configuration.
    fn run(&self, conf: &str, script: &str) -> Finished {
        let inside = |name: &str| self.dir.path().join(name);
        for name in ["sbin", "sbin-work", "etc", "etc-work"] {
            fs::create_dir_all(inside(name)).expect("mkdir");
        }
        fs::write(inside("conf"), conf).expect("write");
        let hosts: String = ["", "eu-west-1a.", "euw1-az1."]
            .map(|zone| format!("127.0.0.1 {zone}{NAME}\n"))
            .concat();
        fs::write(inside("hosts"), hosts).expect("write");
        let prologue = "set -eu\n\
            overlay() { mount -t overlay overlay -o lowerdir=$1,upperdir=$DIR/$2,workdir=$DIR/$2-work $1; }\n\
            overlay /usr/sbin sbin\n\
            overlay /etc etc\n\
            ln -sf \"$EFS_FUSE\" /usr/sbin/mount.efs\n\
            mkdir -p /etc/amazon/efs\n\
            cp $DIR/conf /etc/amazon/efs/efs-utils.conf\n\
            cp $DIR/hosts /etc/hosts\n\
            mkdir -p /run/mount\n\
            mount -t tmpfs tmpfs /run/mount\n\
            trap 'umount -l $AT 2>/dev/null || :' EXIT\n";
        let network = self.isolated.option();
        let mut command = Command::new("nsenter");
        command
            .arg(network.replace("netns=", "--net="))
            .args([
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "bash",
                "-c",
            ])
            .arg(format!("{prologue}{script}"))
            .envs(self.isolated.aws.environment())
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
            .env(
                "EFS_FUSE",
                Path::new(EFS_FUSE).canonicalize().expect("binary"),
            )
            .env("DIR", self.dir.path())
            .env("AT", self.at.path());
        let profile = format!(
            "[test-profile]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
        );
        let profile = self.isolated.aws.file("credentials", &profile);
        command.env("AWS_SHARED_CREDENTIALS_FILE", profile);
        let done = run(&mut command, LIMIT);
        let ended = eventually(Duration::from_secs(10), || {
            self.at.daemons().is_empty().then_some(())
        });
        assert!(ended.is_some(), "still running: {:?}", self.at.daemons());
        assert!(
            mounted_at(self.at.path()).is_empty(),
            "outside of the namespace"
        );
        done
    }
}

/// How a command line connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Plain,
    Tls,
    /// TLS with the identity of an IAM principal.
    Iam,
}

#[test]
fn the_command_lines_of_those_who_call_mount_efs_mount_and_twice_is_once() {
    let machine = Machine::new();
    let token = machine.isolated.aws.world().web_token.clone();
    let token = machine.isolated.aws.file("JWT_TOKEN_FILE", &token);
    let ecs = format!("tls,tlsport=123,iam,awscredsuri={CREDENTIALS_URI},accesspoint={POINT}");
    let role = format!(
        "tls,iam,rolearn=\"{ROLE_ARN}\",jwtpath=\"{}\"",
        token.display()
    );
    let netns = machine.isolated.option();
    let (point, tls_point) = (
        format!("accesspoint={POINT},tls"),
        format!("tls,accesspoint={POINT}"),
    );
    let fstab = format!("_netdev,tls,iam,accesspoint={POINT}");
    let lines: &[(By, &str, &str)] = &[
        // aws-efs-csi-driver/pkg/driver/node.go:171-176, node_test.go:123.
        (By::Tls, ":/", "tls"),
        // node.go:177 (encryptInTransit: "false"), node_test.go:283.
        (By::Plain, ":/", ""),
        // node.go:196-198, node_test.go:163.
        (By::Tls, ":/", "tls,ro"),
        // node.go:160, node_test.go:197 and 210: a path with and without a slash.
        (By::Tls, ":/a/b", "tls"),
        (By::Tls, ":a/b", "tls"),
        // node.go:167-169, node_test.go:222 and 234.
        (By::Tls, ":/", &point),
        (By::Tls, ":/a/b", &point),
        // node.go:191-192, node_test.go:296.
        (By::Tls, ":/", "tls,crossaccount"),
        // node.go:115-119, node_test.go:323.
        (By::Tls, ":/", "mounttargetip=127.0.0.1,tls"),
        // node.go:243-245: mountOptions of a PersistentVolume.
        (By::Iam, ":/", "tls,iam"),
        // controller.go:526 and 555; 531; 538.
        (By::Iam, "", "tls,iam"),
        (By::Iam, "", "tls,iam,crossaccount"),
        (By::Iam, "", "tls,iam,mounttargetip=127.0.0.1"),
        // amazon-ecs-agent/agent/taskresource/volume/dockervolume_efs.go:93-117,
        // dockervolume_efs_test.go:62; run by ecs-init/volumes/efs_mount_helper.go:40-60.
        (By::Iam, ":/test", &ecs),
        // ecs-init/volumes/ecs_volume_plugin_test.go:628 and 1211, efs_mount_helper_test.go:25.
        (By::Tls, "", "tls"),
        (By::Iam, "", "tls,iam"),
        (By::Plain, "", ""),
        // efs-utils/README.md:112, 122, 132, 142, 152, 164, 171, 181, 191.
        (By::Plain, "", ""),
        (By::Plain, "", "mounttargetip=127.0.0.1"),
        (By::Plain, "", &netns),
        (By::Plain, "", "az=eu-west-1a"),
        (By::Plain, "", "region=eu-west-1"),
        (By::Plain, "", "crossaccount"),
        (By::Tls, "", &tls_point),
        // README.md:201, a line of fstab; 256; 445; 495; 560.
        (By::Iam, "", &fstab),
        (By::Plain, "", "notls"),
        (By::Plain, "", "rsize=1048576"),
        (By::Iam, "", "tls,iam,awsprofile=test-profile"),
        (By::Iam, "", &role),
        // efs-utils/src/mount_efs/__init__.py:19; man/mount.efs.8 (verify=0).
        (By::Plain, "", "_netdev"),
        (By::Tls, "", "tls,verify=0"),
        // What the official client itself hands to mount.nfs4
        // (efs_utils_common/mount_options.py:57-110, as written by who knows it).
        (
            By::Tls,
            "",
            "tls,nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport",
        ),
    ];
    for (by, path, options) in lines {
        let before = {
            let record = machine.isolated.aws.record();
            (record.plain, record.seen.len())
        };
        // As `mount [-t TYPE] [-o OPTIONS] SOURCE TARGET`: k8s.io/mount-utils'
        // mount_linux.go:350-378, efs_mount_helper.go:42-48.
        let dash_o = if options.is_empty() { "" } else { "-o" };
        let line = format!("mount -t efs {dash_o} '{options}' {FS}{path} $AT").replace(" ''", "");
        let script = format!(
            "{line} 2>$DIR/first\n\
             [ $(findmnt -n $AT | wc -l) = 1 ]\n\
             ls $AT >/dev/null\n\
             {line} >$DIR/again 2>&1\n\
             [ $(findmnt -n $AT | wc -l) = 1 ]\n\
             findmnt -n -o SOURCE,OPTIONS $AT\n\
             cat $DIR/first $DIR/again >&2\n\
             umount $AT\n"
        );
        let done = machine
            .run(&machine.conf(""), &script)
            .expect_success(&line);
        let said: Vec<_> = done.stderr.lines().collect();
        let again = said.last().copied().unwrap_or_default();
        assert!(again.contains("is already mounted on"), "{line}: {said:?}");
        let warned = said[..said.len() - 1].join("\n");
        let plain = warned.contains("is mounted without encryption");
        let unsaid = *by == By::Plain && !options.contains("notls");
        assert_eq!(plain, unsaid, "{line}: {warned}");
        let expected = usize::from(unsaid) + usize::from(options.contains("verify=0"));
        assert_eq!(said.len(), 1 + expected, "{line}: {said:?}");
        assert!(done.stdout.starts_with(FS), "{line}: {}", done.stdout);
        let record = machine.isolated.aws.record();
        assert_eq!(record.refused, [""; 0], "{line}");
        assert_eq!(record.plain > before.0, *by == By::Plain, "{line}");
        let seen = record.seen[before.1..].last();
        assert_eq!(seen.is_some(), *by != By::Plain, "{line}");
        if let Some(seen) = seen {
            assert_eq!(seen.source, "k8s", "{line}");
            assert_eq!(seen.key_id.is_some(), *by == By::Iam, "{line}");
            assert_eq!(
                seen.access_point.is_some(),
                options.contains(POINT),
                "{line}"
            );
        }
    }
}

#[test]
fn another_mount_at_the_same_place_is_refused_and_says_what_differs() {
    let machine = Machine::new();
    let script = format!(
        "mount -t efs -o tls,ro {FS}:/a $AT\n\
         refused() {{ status=0; mount -t efs \"$@\" $AT 2>$DIR/said || status=$?; [ $status = 32 ]; cat $DIR/said >&2; }}\n\
         refused -o tls,ro {FS}:/test\n\
         refused -o tls {FS}:/a\n\
         refused -o tls,ro,actimeo=1 {FS}:/a\n\
         mount -t efs -o ro,tls,wait=5,x-y,_netdev {FS}:a/ $AT\n\
         umount $AT\n"
    );
    let done = machine
        .run(&machine.conf(""), &script)
        .expect_success("the script");
    let said: Vec<_> = done
        .stderr
        .lines()
        .filter(|line| line.starts_with("efs-fuse: "))
        .collect();
    assert_eq!(said.len(), 3, "{}", done.stderr);
    assert!(
        said[0].contains(&format!("{FS}:/a is already mounted there. Try: ")),
        "{}",
        said[0]
    );
    assert!(
        said[1].contains("with other options (ro there"),
        "{}",
        said[1]
    );
    assert!(said[2].contains("actimeo=1 here"), "{}", said[2]);
}

#[test]
fn what_cannot_be_mounted_is_one_line_with_the_status_of_mount_8() {
    let machine = Machine::new();
    for (options, device, status, words) in [
        ("tls", "fs-XYZ", 1, "fs-XYZ is no file system of EFS"),
        ("tls,ocsp", FS, 1, "option ocsp is not supported"),
        ("iam,notls", FS, 1, "leave out notls"),
        ("tls,acces_point=x", FS, 1, "-o accesspoint=fsap-ID"),
        (
            "tls,region=eu-west-9,noapi",
            FS,
            32,
            "resolving fs-f223e6bb.efs.eu-west-9.amazonaws.com",
        ),
    ] {
        let line = format!("mount -t efs -o {options} {device} $AT\n");
        let done = machine.run(&machine.conf(""), &line);
        assert_eq!(done.code(), status, "{line}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{line}: {}", done.stderr);
        assert!(done.stderr.contains(words), "{line}: {}", done.stderr);
    }
}

#[test]
fn the_official_clients_configuration_counts_and_the_log_says_which_of_its_keys() {
    let machine = Machine::new();
    let more = "region = eu-west-1\n[cloudwatch-log]\nenabled = true\n";
    let script = format!(
        "mount -t efs -o tls,log=$DIR/log {FS} $AT\n\
         \"$EFS_FUSE\" status $AT\n\
         umount $AT\n\
         cat $DIR/log\n"
    );
    machine.isolated.aws.world().imds_v2 = false;
    let done = machine
        .run(&machine.conf(more), &script)
        .expect_success("the script");
    for words in [
        "region=eu-west-1",
        "client_source=k8s",
        "honoured: mount.region, mount.",
        "without meaning here: DEFAULT.logging_level",
    ] {
        assert!(done.stdout.contains(words), "{words}: {}", done.stdout);
    }
    assert!(
        done.stderr.contains("nothing is sent to CloudWatch"),
        "{}",
        done.stderr
    );

    for (conf, words) in [
        ("nonsense\n", "line 1 is neither [SECTION] nor KEY = VALUE"),
        (
            "[mount]\nregion = EU WEST\n",
            "region = \"EU WEST\" in [mount] is not a region",
        ),
        (
            "[mount]\nfips_mode_enabled = maybe\n",
            "is not true or false",
        ),
    ] {
        let done = machine.run(conf, &format!("mount -t efs -o tls {FS} $AT"));
        let said: Vec<_> = done.stderr.lines().collect();
        assert_eq!((done.code(), said.len()), (1, 1), "{said:?}");
        let start = "efs-fuse: reading /etc/amazon/efs/efs-utils.conf failed: ";
        assert!(
            said[0].starts_with(start) && said[0].contains(words),
            "{said:?}"
        );
    }
}

#[test]
fn status_says_what_the_name_mount_efs_adds_and_what_its_configuration_does() {
    let machine = Machine::new();
    let script = format!(
        "mount -t efs -o ro,log=$DIR/log {FS} $AT\n\
         \"$EFS_FUSE\" status $AT --json\n\
         umount $AT\n"
    );
    let done = machine
        .run(&machine.conf("region = eu-west-1\n"), &script)
        .expect_success("the script");
    let status: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let origins = status["mounts"][0]["option_origins"].as_array();
    let origins = origins.unwrap_or_else(|| panic!("{status}"));
    let from: Vec<_> = origins.iter().map(|origin| &origin["from"]).collect();
    let conf = "/etc/amazon/efs/efs-utils.conf";
    assert_eq!(from, ["mount.efs", conf], "{origins:?}");
    assert_eq!(origins[0]["options"], json!(["notls"]));
    let of_conf = origins[1]["options"].as_array().expect("a list");
    for option in ["region=eu-west-1", "client_source=k8s"] {
        assert!(of_conf.contains(&json!(option)), "{option}: {of_conf:?}");
    }
    // What was written for the mount has no origin of its own.
    let all = origins
        .iter()
        .flat_map(|origin| origin["options"].as_array());
    assert!(all.flatten().all(|option| option != "ro"), "{origins:?}");
}

#[test]
fn where_the_api_may_not_be_asked_a_name_that_does_not_resolve_is_the_end() {
    let machine = Machine::new();
    let off = "fall_back_to_mount_target_ip_address_enabled = false\n";
    // Without names, mount targets are found by the API.
    let target = machine
        .isolated
        .aws
        .target("eu-west-1a", "euw1-az1", "available");
    machine.isolated.aws.world().mount_targets.push(target);
    let script = format!(": >/etc/hosts\nmount -t efs -o tls,iam {FS} $AT\numount $AT\n");
    machine
        .run(&machine.conf(""), &script)
        .expect_success("by the API");
    let done = machine.run(&machine.conf(off), &script);
    assert_eq!(done.code(), 32, "{}", done.stderr);
    assert!(done.stderr.contains("resolving fs-"), "{}", done.stderr);
}

#[test]
fn a_helper_mounts_in_the_namespace_that_mount_8_names() {
    let machine = Machine::new();
    let script = format!(
        "unshare --mount --propagation private sleep 60 & other=$!\n\
         trap 'kill $other' EXIT\n\
         until [ \"$(readlink /proc/$other/ns/mnt)\" != \"$(readlink /proc/self/ns/mnt)\" ]; do sleep 0.1; done\n\
         mount.efs {FS}:/ $AT -N /proc/$other/ns/mnt -o rw,tls\n\
         ! findmnt -n $AT || exit 9\n\
         nsenter --mount=/proc/$other/ns/mnt findmnt -n -o SOURCE $AT\n\
         mount.efs {FS}:/ $AT -N $other -o rw,tls\n\
         nsenter --mount=/proc/$other/ns/mnt umount $AT\n\
         ! mount.efs {FS}:/ $AT -N /etc/hosts --options tls\n"
    );
    let done = machine
        .run(&machine.conf(""), &script)
        .expect_success("the script");
    assert!(done.stdout.starts_with(FS), "{}", done.stdout);
    assert!(
        done.stdout.contains("is already mounted on"),
        "{}",
        done.stdout
    );
    let said = "entering the mount namespace /etc/hosts failed";
    assert!(done.stderr.contains(said), "{}", done.stderr);
}
