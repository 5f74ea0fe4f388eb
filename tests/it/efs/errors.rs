//! Each way of not being mounted has a line of its own that names the cause
//! and the remedy. The cases are those that users of EFS run into.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};

use crate::fixtures::aws::{Aws, NAME, POINT, REGION};
use crate::fixtures::isolated::{Isolated, SILENT};
use crate::fixtures::mount::MountRequest;
use crate::fixtures::port;
use crate::lookalike::Refusal;

/// The line must have all these words.
#[track_caller]
fn says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
    assert!(line.starts_with("efs-fuse: "), "{line}");
    assert!(line.contains(". Try: "), "{line}");
}

const OTHER_POINT: &str = "fsap-fedcba98765432100";

#[test]
fn what_efs_denies_is_told_apart() {
    let aws = Aws::start();
    let keys = |mut request: MountRequest| {
        for (name, value) in Aws::keys() {
            request = request.env(name, value);
        }
        request
    };
    // The policy demands an identity.
    aws.world().iam_required = true;
    says(
        &aws.request("").fail(),
        &[
            "access to / denied by the server",
            "without IAM identity",
            "add iam",
        ],
    );
    // ... and TLS.
    aws.world().tls_required = true;
    says(
        &aws.request("notls").fail(),
        &["without TLS", "leave out notls"],
    );
    // A principal that the policy does not know.
    let unknown = aws
        .request("iam")
        .env("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    says(
        &unknown.fail(),
        &["denied", "elasticfilesystem:ClientMount"],
    );
    // A wrong access point.
    let wrong_point = aws.request(&format!("iam,accesspoint={OTHER_POINT}"));
    says(
        &keys(wrong_point).fail(),
        &[
            "denied",
            "check that access point",
            OTHER_POINT,
            "root directory exists",
        ],
    );
    // A clock that is wrong by 20 minutes.
    aws.world().clock = 1200;
    says(
        &keys(aws.request("iam")).fail(),
        &[
            "the clock of this machine is 1",
            "behind that of AWS",
            "set the clock",
        ],
    );
    aws.world().clock = 0;
    let refused = aws.record().refused.clone();
    for why in [
        "no IAM identity",
        "an unknown key",
        "an access point that is not there",
        "a signature too old",
    ] {
        // What was told apart is what it was.
        assert!(
            refused.iter().any(|refused| refused.contains(why)),
            "{why} is not in {refused:?}"
        );
    }
    // The same by alert, and without a word.
    aws.world().refusal = Refusal::Alert;
    says(
        &keys(aws.request(&format!("iam,accesspoint={OTHER_POINT}"))).fail(),
        &["TLS with", "refuses the client certificate", "accesspoint="],
    );
    aws.world().refusal = Refusal::HangUp;
    says(
        &aws.request("").fail(),
        &["right after the TLS handshake", "the clock"],
    );
    // And after all that it mounts.
    keys(aws.request(&format!("iam,accesspoint={POINT}")))
        .mount()
        .unmount();
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_not_believed() {
    let wrong_name =
        Aws::with(|authority| authority.issue(&["fs-00000000.efs.eu-west-1.amazonaws.com"]));
    let name = format!("is not for {NAME}");
    says(
        &wrong_name.request("").fail(),
        &["TLS with", &name, "mount target of this file system"],
    );

    let expired = Aws::with(|authority| authority.issue_until(&[NAME], (2020, 1, 1)));
    says(
        &expired.request("").fail(),
        &["not valid at this time", "set the clock"],
    );
    // A zone in front of the name is not in the certificate.
    let aws = Aws::start();
    aws.request("az=eu-west-1b").mount().unmount();
    let missing = aws
        .request("")
        .without("cafile=")
        .option("cafile=/nonexistent/ca.pem");
    says(
        &missing.fail(),
        &["reading the CA file /nonexistent/ca.pem"],
    );
    says(
        &aws.request("").without("cafile=").fail(),
        &["of an unknown issuer", "cafile="],
    );
    assert_eq!(aws.record().seen.len(), 1);
}

#[test]
fn what_speaks_no_tls_is_said() {
    let aws = Aws::start();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(4) {
            let _ = stream.and_then(|mut stream| stream.write_all(b"SSH-2.0-not-tls\r\n"));
        }
    });
    let request = aws
        .request("")
        .without("port=")
        .option(&format!("port={port}"));
    let line = request.fail();
    says(
        &line,
        &["does not speak TLS", "a mount target of the file system"],
    );
    // Who sits in between would like that.
    assert!(!line.contains("notls"), "{line}");
}

#[test]
fn missing_credentials_name_the_source_that_has_none() {
    let aws = Aws::start();
    let request = |options: &str| {
        aws.request(options)
            .env("AWS_EC2_METADATA_DISABLED", "true")
    };
    says(
        &request("iam").fail(),
        &[
            "AWS credentials for iam",
            "there are none",
            "AWS_ACCESS_KEY_ID",
        ],
    );
    says(
        &request("iam,awsprofile=nobody").fail(),
        &["profile nobody", "there is neither", "AWS_CONFIG_FILE"],
    );
    says(
        &request("iam,rolearn=arn:aws:iam::1:role/r,jwtpath=/nonexistent/token").fail(),
        &["arn:aws:iam::1:role/r", "/nonexistent/token"],
    );
    let token = aws.file("stale", "stale token");
    let stale = format!(
        "iam,rolearn=arn:aws:iam::1:role/r,jwtpath={}",
        token.display()
    );
    let line = request(&stale).fail();
    says(&line, &["trusts its issuer"]);
    assert!(!line.contains("stale token"), "{line}");
    // Nobody was connected without the identity that was asked for.
    let record = aws.record();
    assert_eq!((record.seen.len(), record.plain), (0, 0));
}

#[test]
fn a_mount_target_that_cannot_be_reached_is_said_with_the_security_group() {
    let aws = Aws::start();
    let closed = format!("port={}", port::closed());
    says(
        &aws.request("").without("port=").option(&closed).fail(),
        &[
            "the mount target address",
            "connection refused",
            "describe-mount-targets",
        ],
    );
    // Packets that are dropped, as by a security group.
    let world = Isolated::start();
    let line = world.request(&format!("mounttargetip={SILENT}")).fail();
    says(
        &line,
        &[
            "10.99.0.1:2049",
            "no answer within 10 s",
            "security group",
            "2049",
        ],
    );
}

#[test]
fn where_names_do_not_resolve_the_api_says_why_there_is_no_mount_target() {
    let world = Isolated::start();
    let aws = &world.aws;
    let keys = || {
        let mut request = world.request("");
        for (name, value) in Aws::keys() {
            request = request.env(name, value);
        }
        request
    };
    let name = format!("fs-f223e6bb.efs.{REGION}.amazonaws.com");
    let missing = |words: &[&str]| {
        let line = keys().fail();
        says(&line, &["finding a mount target of fs-f223e6bb", &name]);
        says(&line, words);
    };
    missing(&["has no mount target", "create-mount-target"]);
    aws.world().mount_targets = vec![aws.target("eu-west-1b", "euw1-az2", "creating")];
    missing(&[
        "no mount target of fs-f223e6bb is available yet (creating)",
        "-o wait=300",
    ]);
    aws.world().api_error = Some((404, "FileSystemNotFound".to_owned()));
    missing(&[
        "knows no file system fs-f223e6bb in eu-west-1",
        "check the id and the region",
    ]);
    aws.world().api_error = Some((403, "AccessDeniedException".to_owned()));
    missing(&[
        "does not allow",
        "elasticfilesystem:DescribeMountTargets",
        "DNS hostnames",
    ]);
    aws.world().api_error = None;
    let nobody = world.request("").env("AWS_EC2_METADATA_DISABLED", "true");
    says(
        &nobody.fail(),
        &["want of AWS credentials", "DNS resolution"],
    );
    aws.world().mount_targets = vec![aws.target("eu-west-1b", "euw1-az2", "available")];
    says(
        &keys().option("az=eu-west-1c").fail(),
        &[
            "no mount target in zone eu-west-1c, only in euw1-az2 (eu-west-1b)",
            "leave out az=",
        ],
    );
    // No API for a name of the user's own making.
    says(
        &keys().option("crossaccount").fail(),
        &["resolving euw1-az1.fs-f223e6bb.efs", "DNS resolution"],
    );
}

#[test]
fn a_mount_target_of_another_zone_is_used_with_a_warning() {
    let world = Isolated::start();
    let aws = &world.aws;
    aws.world().mount_targets = vec![aws.target("eu-west-1b", "euw1-az2", "available")];
    let (mount, said) = world.request("").mount_and_hear();
    for words in [
        "warning",
        "zone euw1-az1 (eu-west-1a)",
        "zone euw1-az2 (eu-west-1b)",
    ] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    mount.unmount();
    aws.world()
        .mount_targets
        .push(aws.target("eu-west-1a", "euw1-az1", "available"));
    let (mount, said) = world.request("").mount_and_hear();
    assert_eq!(said, "");
    mount.unmount();
}

#[test]
fn waiting_goes_on_until_there_is_a_mount_target() {
    let world = Isolated::start();
    let aws = &world.aws;
    aws.world().mount_targets = vec![aws.target("eu-west-1a", "euw1-az1", "creating")];
    let (mount, said) = std::thread::scope(|scope| {
        let mounting = scope.spawn(|| world.request("wait=60").mount_and_hear());
        std::thread::sleep(std::time::Duration::from_secs(3));
        aws.world().mount_targets[0].state = "available".to_owned();
        mounting.join().expect("mounted")
    });
    assert!(
        said.contains("efs-fuse: waiting for") && said.contains("available yet"),
        "{said}"
    );
    mount.unmount();
}

#[test]
fn container_credentials_are_found_by_their_path() {
    let world = Isolated::start();
    world.aws.world().iam_required = true;
    let mount = world
        .request("iam,awscredsuri=/v2/credentials/0123-4567,mounttargetip=127.0.0.1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .mount();
    assert!(world.aws.record().seen[0].key_id.is_some());
    mount.unmount();
    let wrong = world
        .request("iam,awscredsuri=/v2/credentials/other,mounttargetip=127.0.0.1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    says(
        &wrong.fail(),
        &["awscredsuri=/v2/credentials/other", "404", "task role"],
    );
}
