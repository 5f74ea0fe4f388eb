//! `efs-fuse doctor` finds where the way of a mount ends, and mounts nothing.

use std::process::Command;

use serde_json::Value;

use crate::fixtures::aws::{Aws, FS, KEY_ID, POINT, SECRET, TOKEN};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE};
use crate::fixtures::process::{Finished, run};

fn doctor(aws: &Aws, options: &str, more: &[(&str, &str)], arguments: &[&str]) -> Finished {
    let mut command = Command::new(EFS_FUSE);
    let options = format!("{},{options}", aws.options());
    command
        .arg("doctor")
        .arg(FS)
        .arg("-o")
        .arg(options)
        .args(arguments);
    aws.equip(&mut command, more);
    run(&mut command, COMMAND_LIMIT)
}

fn json(done: &Finished) -> Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|why| panic!("{why}: {}", done.stdout))
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().expect("steps");
    let found = steps.iter().find(|step| step["step"] == name);
    found.unwrap_or_else(|| panic!("no step {name} in {report}"))
}

#[test]
fn all_steps_of_a_good_way_are_shown_and_nothing_is_left() {
    let aws = Aws::start();
    aws.world().iam_required = true;
    aws.world().tls_required = true;
    aws.world().binding.generations = vec![2];
    let options = format!("iam,accesspoint={POINT}");
    let done = doctor(&aws, &options, &Aws::keys(), &["--json", "--probe"]);
    assert_eq!(done.code(), 0, "{}", done.stderr);
    let report = json(&done);
    assert_eq!(report["ok"], true, "{report}");
    for (name, words) in [
        ("device", "by TLS"),
        ("kernel", "another daemon can take over"),
        ("fuse", "/dev/fuse can be opened"),
        ("region", "fs-f223e6bb in eu-west-1"),
        ("zone", "eu-west-1a (euw1-az1)"),
        ("clock", "within"),
        ("addresses", "127.0.0.1"),
        ("connection", " ms"),
        ("identity", KEY_ID),
        ("tls", "TLSv1.3"),
        ("session", "slots"),
        ("root", "/ is readable"),
    ] {
        let detail = step(&report, name)["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(words), "{name}: {detail}");
    }
    let probe = &report["probe"];
    for name in [
        "slots",
        "lease_s",
        "getattr_median_us",
        "write_4k_us",
        "commit_us",
        "handle_bytes",
        "longest_request",
        "longest_reply_kept",
        "seven_getattrs_in_one_median_us",
    ] {
        assert!(
            probe[name].as_u64().is_some_and(|value| value > 0),
            "{name}: {probe}"
        );
    }
    assert!(probe["unstable_write_is"].is_string(), "{probe}");
    // What the look-alike's server, nfs-ganesha, can.
    for name in [
        "unlinked_open_file_reads",
        "claim_fh",
        "current_stateid",
        "anonymous_read",
        "nverify",
        "bind_conn_to_session",
        "takes_names_that_are_not_utf8",
    ] {
        assert_eq!(probe[name], true, "{name}: {probe}");
    }
    assert_eq!(probe["change_info_is_atomic"], false, "{probe}");
    assert_eq!(probe["locks_of_a_file"], "600 or more", "{probe}");
    assert!(probe["server_scope"].is_string(), "{probe}");
    // What its front says in TLS, and to the bind calls.
    assert_eq!(probe["tls_asks_for_certificate"], true, "{probe}");
    assert_eq!(probe["tls_tickets"], 2, "{probe}");
    for (name, words) in [
        (
            "tls_names_of_server",
            "fs-f223e6bb.efs.eu-west-1.amazonaws.com",
        ),
        ("bind_program_400123", "READY, partition "),
        ("bind_program_100200", "not spoken"),
    ] {
        let said = probe[name].as_str().unwrap_or_default();
        assert!(said.contains(words), "{name}: {probe}");
    }
    assert_eq!(probe["readdir_10000_names"], 10_000, "{probe}");
    assert_eq!(probe["deepest_directory"], "1010 or more", "{probe}");
    assert_eq!(probe["readdir_cookies_are_stable"], true, "{probe}");
    let left = std::fs::read_dir(aws.point.export())
        .expect("export")
        .count();
    assert_eq!(left, 0, "the probe's file is still there");

    let shown = doctor(&aws, &options, &Aws::keys(), &[]);
    assert_eq!(shown.code(), 0);
    assert!(
        shown.stdout.lines().all(|line| line.starts_with("ok ")),
        "{}",
        shown.stdout
    );
}

#[test]
fn the_step_that_fails_has_the_cause_and_the_remedy() {
    let aws = Aws::start();
    aws.world().iam_required = true;
    let off: [(&str, &str); 1] = [("AWS_EC2_METADATA_DISABLED", "true")];
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, Variables<'_>, &str, &str); 4] = [
        ("iam", &off, "identity", "AWS_ACCESS_KEY_ID"),
        ("cafile=/nonexistent", &[], "identity", "cafile="),
        ("notls", &[], "session", "leave out notls"),
        ("port=1", &[], "connection", "describe-mount-targets"),
    ];
    for (options, environment, name, remedy) in cases {
        let done = doctor(&aws, options, environment, &["--json"]);
        assert_eq!(done.code(), 32, "{options}: {}", done.stderr);
        assert!(done.stderr.contains(". Try: "), "{}", done.stderr);
        let report = json(&done);
        let last = report["steps"]
            .as_array()
            .and_then(|steps| steps.last())
            .expect("steps");
        assert_eq!(
            (&last["step"], &last["ok"]),
            (&name.into(), &false.into()),
            "{report}"
        );
        let said = last["remedy"].as_str().unwrap_or_default();
        assert!(said.contains(remedy), "{said}");
    }
    // A clock that is off is noted, whatever comes after.
    aws.world().clock = -600;
    let report = json(&doctor(&aws, "", &[], &["--json"]));
    let note = step(&report, "clock")["note"].as_str().unwrap_or_default();
    assert!(note.contains("ahead of AWS's"), "{report}");
    // What does not fit is a usage error.
    let done = doctor(&aws, "awsprofile=x", &[], &["--json"]);
    assert_eq!((done.code(), done.stdout.as_str()), (1, ""));
}

#[test]
fn a_profile_that_nobody_has_written_is_told_before_anybody_is_asked() {
    let aws = Aws::start();
    let keys = format!("[web]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
    let credentials = aws.file(
        "credentials",
        &format!("{keys}aws_session_token = {TOKEN}\n"),
    );
    let config = aws.file("config", "[default]\nregion = eu-west-1\n");
    let (config, credentials) = (
        config.display().to_string(),
        credentials.display().to_string(),
    );
    let files = [
        ("AWS_CONFIG_FILE", config.as_str()),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str()),
    ];
    let done = doctor(&aws, "iam,awsprofile=nobody", &files, &["--json"]);
    assert_eq!(done.code(), 32, "{}", done.stderr);
    let report = json(&done);
    let steps = report["steps"].as_array().expect("steps");
    let failed = steps.last().expect("a step");
    assert_eq!(failed["step"], "profile", "{report}");
    let error = format!(
        "getting AWS credentials of profile nobody failed: there is no such profile in {config} and \
         {credentials}, only default, web"
    );
    assert_eq!(failed["error"], error.as_str());
    let remedy = failed["remedy"].as_str().unwrap_or_default();
    let write = format!("write [profile nobody] into {config} or [nobody] into {credentials}");
    assert!(remedy.starts_with(&write), "{remedy}");
    assert_eq!(done.stderr, format!("efs-fuse: {error}. Try: {remedy}\n"));
    assert!(aws.record().streams.is_empty(), "somebody was asked");

    let done = doctor(&aws, "iam,awsprofile=web", &files, &["--json"]);
    assert_eq!(done.code(), 0, "{}", done.stderr);
    let report = json(&done);
    assert_eq!(
        step(&report, "profile")["detail"],
        format!("web, of {config} and {credentials}")
    );
}
