//! Who a mount is to EFS, and where its credentials come from.

use std::fs;

use crate::fixtures::aws::{Aws, KEY_ID, NAME, POINT, SECRET, TOKEN};
use crate::fixtures::mount::MountRequest;
use crate::lookalike::Seen;
use crate::lookalike::services::{POD_URI, ROLE_ARN};

#[track_caller]
fn only(seen: &[Seen]) -> &Seen {
    match seen {
        [seen] => seen,
        _ => panic!("one connection expected: {seen:?}"),
    }
}

fn with_keys(mut request: MountRequest) -> MountRequest {
    for (name, value) in Aws::keys() {
        request = request.env(name, value);
    }
    request
}

#[test]
fn tls_iam_and_access_point_work_end_to_end() {
    let aws = Aws::start();
    aws.world().iam_required = true;
    aws.world().tls_required = true;
    let mount = with_keys(aws.request(&format!("iam,accesspoint={POINT}"))).mount();
    fs::write(mount.join("file"), b"through the access point").expect("write");
    let behind = fs::read(aws.point.export().join("file")).expect("read");
    assert_eq!(behind, b"through the access point");

    let seen = only(&aws.record().seen).clone();
    assert_eq!(seen.access_point.as_deref(), Some(POINT));
    assert_eq!(seen.key_id.as_deref(), Some(KEY_ID));
    assert_eq!((seen.serial, seen.source.as_str()), (0, "efs-fuse"));
    assert_eq!(
        (seen.tls.as_str(), seen.sni.as_deref()),
        ("TLSv1_3", Some(NAME))
    );
    assert!(!seen.resumed);
    assert_eq!(aws.record().plain, 0);
    assert_eq!(aws.record().refused, [""; 0]);

    let status = &mount.status();
    assert_eq!(status["tls"]["version"], "TLSv1.3", "{status}");
    assert_eq!(status["iam"]["access_key_id"], KEY_ID, "{status}");
    assert_eq!(status["iam"]["access_point"], POINT, "{status}");
    mount.unmount();
}

#[test]
fn an_id_is_mounted_by_tls_and_names_nobody_unless_it_is_told_to() {
    let aws = Aws::start();
    aws.world().tls_required = true;
    let mount = aws.request("").mount();
    fs::write(mount.join("file"), b"x").expect("write");
    assert!(aws.server.export().join("file").exists());
    let seen = only(&aws.record().seen).clone();
    assert_eq!((seen.access_point, seen.key_id), (None, None));
    assert_eq!(mount.status()["iam"], serde_json::Value::Null);
    mount.unmount();

    aws.world().tls_required = false;
    let mount = aws.request("notls").mount();
    assert!(mount.join("file").exists());
    assert_eq!(aws.record().plain, 1);
    assert_eq!(mount.status()["tls"], serde_json::Value::Null);
}

#[test]
fn a_plain_host_has_tls_if_it_is_told_to() {
    let aws = Aws::with(|authority| authority.issue(&["localhost"]));
    let request = |options: [&str; 2]| {
        let request = MountRequest::new("localhost:/", aws.port());
        options
            .iter()
            .fold(request, |request, option| request.option(option))
    };
    let ca = format!("cafile={}", aws.ca_file().display());
    let mount = request(["tls", &ca]).mount();
    fs::write(mount.join("file"), b"x").expect("write");
    assert_eq!(mount.status()["tls"]["version"], "TLSv1.3");
    assert_eq!(aws.record().plain, 0);
    mount.unmount();
    let mount = request(["tls", "verify=0"]).mount();
    assert!(mount.join("file").exists());
    mount.unmount();
    request(["notls", &ca]).mount().unmount();
    assert_eq!(aws.record().plain, 1);
}

#[test]
fn every_source_of_credentials_reaches_the_certificate() {
    let aws = Aws::start();
    aws.world().iam_required = true;
    let profile = aws.file(
        "credentials",
        &format!(
            "[mine]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
        ),
    );
    let answer = serde_json::json!({
        "Version": 1, "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET, "SessionToken": TOKEN,
    });
    let answer = aws.file("answer", &answer.to_string());
    let config = aws.file(
        "config",
        &format!(
            "[profile by-program]\ncredential_process = /bin/cat {}\n",
            answer.display()
        ),
    );
    let web_token = aws.file("web-token", &aws.world().web_token);
    let container_token = aws.file("container-token", &aws.world().container_token);
    let text = |path: &std::path::Path| path.display().to_string();
    let (profile, config) = (text(&profile), text(&config));
    let (web, container) = (text(&web_token), text(&container_token));
    let pod = aws.url(POD_URI);
    let by_role = format!("iam,rolearn={ROLE_ARN},jwtpath={web}");
    let nobody = [("AWS_EC2_METADATA_DISABLED", "true")];
    type Variables<'a> = Vec<(&'a str, &'a str)>;
    let cases: [(&str, &str, Variables<'_>); 8] = [
        ("static keys", "iam", Aws::keys().to_vec()),
        (
            "a named profile",
            "iam,awsprofile=mine",
            vec![("AWS_SHARED_CREDENTIALS_FILE", &profile)],
        ),
        (
            "AWS_PROFILE and a program",
            "iam",
            vec![("AWS_PROFILE", "by-program"), ("AWS_CONFIG_FILE", &config)],
        ),
        (
            "a web identity of the environment",
            "iam",
            vec![
                ("AWS_ROLE_ARN", ROLE_ARN),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &web),
            ],
        ),
        ("a web identity of the options", &by_role, nobody.to_vec()),
        (
            "pod identity",
            "iam",
            vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &pod),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &container),
            ],
        ),
        ("the instance's role", "iam", vec![]),
        // The options were chosen by this mount, the environment by somebody for all.
        (
            "options before the environment",
            &by_role,
            vec![
                ("AWS_ACCESS_KEY_ID", "AKIAOTHER"),
                ("AWS_SECRET_ACCESS_KEY", "other"),
            ],
        ),
    ];
    for (number, (source, options, environment)) in cases.iter().enumerate() {
        let mut request = aws.request(options);
        for (name, value) in environment {
            request = request.env(name, value);
        }
        let mount = request.mount();
        fs::write(mount.join("file"), source).expect("write");
        mount.unmount();
        let record = aws.record();
        assert_eq!(record.refused, [""; 0], "{source}");
        let seen = &record.seen[number..];
        assert_eq!(only(seen).key_id.as_deref(), Some(KEY_ID), "{source}");
    }
}

#[test]
fn the_region_comes_from_instance_metadata_with_a_token_and_never_without() {
    let aws = Aws::start();
    let request = || aws.request("").without("region=");
    aws.world().imds_v2_only = true;
    request().mount().unmount();
    // Set but empty counts as unset.
    request()
        .env("AWS_EC2_METADATA_DISABLED", "")
        .mount()
        .unmount();
    assert_eq!(aws.record().seen.len(), 2);
    // Somebody answers who gives no token: as a proxy that can be talked into a GET.
    {
        let mut world = aws.world();
        (world.imds_v2, world.imds_v2_only) = (false, false);
    }
    let refused = request().fail();
    assert!(
        refused.contains("no region is given for fs-f223e6bb"),
        "{refused}"
    );
    assert_eq!(aws.record().seen.len(), 2);
}
