//! Programs that an AWS profile has run: whose word they are run on, and what they may.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::fixtures::aws::{Aws, KEY_ID, SECRET, TOKEN};
use crate::fixtures::isolated::Isolated;
use crate::fixtures::mount::{COMMAND_LIMIT, Mountpoint, umount_command};
use crate::fixtures::process::run;
use crate::lookalike::services::ROLE_ARN;

/// A configuration whose default profile runs a program that notes its status and gives
/// credentials.
struct Profile {
    config: PathBuf,
    noted: PathBuf,
}

impl Profile {
    fn of(aws: &Aws) -> Self {
        let noted = aws.file("noted", "");
        fs::remove_file(&noted).expect("remove");
        let answer = format!(
            r#"{{"Version":1,"AccessKeyId":"{KEY_ID}","SecretAccessKey":"{SECRET}","SessionToken":"{TOKEN}"}}"#
        );
        let script = format!(
            "#!/bin/sh\ncat /proc/self/status >{}\ncat <<'X'\n{answer}\nX\n",
            noted.display()
        );
        let program = aws.file("program", &script);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
        let config = format!("[default]\ncredential_process = {}\n", program.display());
        Self {
            config: aws.file("config", &config),
            noted,
        }
    }

    fn has_run(&self) -> bool {
        self.noted.exists()
    }

    /// The program has run as root, and had nothing of it.
    fn ran_without_rights(&self) {
        let status = fs::read_to_string(&self.noted).expect("the program has run");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = status.lines().find_map(|line| line.strip_prefix(set));
            let held = line.expect("the field").trim_start_matches(':').trim();
            assert_eq!(held, "0000000000000000", "{set}: {status}");
        }
        for (name, value) in [("Uid:", "0"), ("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let found = line.and_then(|line| line.split_whitespace().next());
            assert_eq!(found, Some(value), "{name} {status}");
        }
    }
}

#[test]
fn a_program_of_a_profile_regains_no_capability() {
    let aws = Aws::start();
    let profile = Profile::of(&aws);
    let mount = aws
        .request("iam")
        .env("AWS_CONFIG_FILE", profile.config.to_str().expect("UTF-8"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .mount();
    profile.ran_without_rights();
    mount.unmount();
}

/// As in the systemd unit.
#[test]
fn it_regains_none_where_the_secure_bits_cannot_be_set() {
    let aws = Aws::start();
    let profile = Profile::of(&aws);
    let at = Mountpoint::new();
    let mount = aws
        .request("iam")
        .env("AWS_CONFIG_FILE", profile.config.to_str().expect("UTF-8"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .command(at.path());
    let mut without = Command::new("setpriv");
    without
        .arg("--bounding-set=-setpcap")
        .arg(mount.get_program());
    without.args(mount.get_args());
    for (name, value) in mount.get_envs() {
        match value {
            Some(value) => without.env(name, value),
            None => without.env_remove(name),
        };
    }
    run(&mut without, COMMAND_LIMIT).expect_success("mount");
    profile.ran_without_rights();
    run(&mut umount_command(at.path()), COMMAND_LIMIT).expect_success("umount");
}

#[test]
fn a_configuration_that_somebody_else_can_write_is_refused_and_nothing_of_it_is_run() {
    let aws = Aws::start();
    let profile = Profile::of(&aws);
    let config = profile.config.to_str().expect("UTF-8");
    let line = || {
        aws.request("iam")
            .env("AWS_CONFIG_FILE", config)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .fail()
    };
    let mode = |mode| {
        fs::set_permissions(&profile.config, fs::Permissions::from_mode(mode)).expect("mode");
    };
    for wrong in [0o666, 0o664] {
        mode(wrong);
        let said = line();
        assert!(
            said.contains(config) && said.contains("chmod go-w"),
            "{said}"
        );
    }
    mode(0o644);
    std::os::unix::fs::chown(&profile.config, Some(1234), Some(1234)).expect("chown");
    let said = line();
    assert!(said.contains("belongs to user 1234"), "{said}");
    // By HOME, as under sudo.
    let home = profile.config.parent().expect("a directory").join("home");
    fs::create_dir_all(home.join(".aws")).expect("directory");
    fs::copy(&profile.config, home.join(".aws/config")).expect("copy");
    std::os::unix::fs::chown(home.join(".aws/config"), Some(1234), None).expect("chown");
    let said = aws
        .request("iam")
        .env("AWS_CONFIG_FILE", "")
        .env("HOME", home.to_str().expect("UTF-8"))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .fail();
    assert!(said.contains("home/.aws/config"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!profile.has_run());
    assert_eq!(aws.record().seen.len(), 0);
}

#[test]
fn without_iam_no_profile_is_read_also_where_names_do_not_resolve() {
    let world = Isolated::start();
    let aws = &world.aws;
    let profile = Profile::of(aws);
    aws.world().mount_targets = vec![aws.target("eu-west-1b", "euw1-az2", "available")];
    let request = |options: &str| {
        world
            .request(options)
            .env("AWS_CONFIG_FILE", profile.config.to_str().expect("UTF-8"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
    };
    let said = request("").fail();
    assert!(said.contains("want of AWS credentials"), "{said}");
    let said = request("").env("AWS_PROFILE", "default").fail();
    assert!(said.contains("want of AWS credentials"), "{said}");
    assert!(!profile.has_run());
    // With it, the profile is what the mount target is found by.
    request("iam").mount().unmount();
    assert!(profile.has_run());
}

/// A FIFO in the place of the configuration: who opened it to read would wait for ever.
#[test]
fn a_source_that_an_option_names_is_the_only_one_and_no_profile_is_read_for_it() {
    let aws = Aws::start();
    let fifo = aws.file("fifo", "");
    fs::remove_file(&fifo).expect("remove");
    run(Command::new("mkfifo").arg(&fifo), COMMAND_LIMIT).expect_success("mkfifo");
    let fifo = fifo.to_str().expect("UTF-8");
    let token = aws.world().web_token.clone();
    let token = aws.file("token", &token);
    let request = |options: &str| {
        aws.request(options)
            .env("AWS_CONFIG_FILE", fifo)
            .env("AWS_SHARED_CREDENTIALS_FILE", fifo)
            .env("AWS_EC2_METADATA_DISABLED", "true")
    };
    let web = format!("iam,rolearn={ROLE_ARN},jwtpath={}", token.display());
    request(&web).mount().unmount();
    let refused = request("iam").fail();
    assert!(refused.contains("it is no regular file"), "{refused}");
}
