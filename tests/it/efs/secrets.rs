//! No key, token or secret where somebody could find it.

use std::fs;
use std::path::Path;

use crate::fixtures::aws::{Aws, POINT, SECRET, TOKEN};
use crate::lookalike::services::ROLE_ARN;

/// Every file below `dir`, in one piece.
fn everything_in(dir: &Path, all: &mut Vec<u8>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => everything_in(&path, all),
            Ok(kind) if kind.is_file() => all.extend(fs::read(&path).unwrap_or_default()),
            _ => {}
        }
    }
}

#[track_caller]
fn assert_clean(what: &str, bytes: &[u8], web_token: &str) {
    let encoded = |text: &str| {
        text.replace('/', "%2F")
            .replace('+', "%2B")
            .replace('=', "%3D")
    };
    let mut secrets = vec!["PRIVATE KEY".to_owned()];
    for secret in [SECRET, TOKEN, web_token] {
        secrets.extend([secret.to_owned(), encoded(secret)]);
    }
    for secret in secrets {
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} is in {what}");
    }
}

#[test]
fn no_secret_is_in_a_log_a_file_or_a_core() {
    let aws = Aws::start();
    let web_token = aws.world().web_token.clone();
    let token_file = aws.file("token", &web_token);
    let log = aws.file("log", "");
    let options = format!(
        "iam,accesspoint={POINT},rolearn={ROLE_ARN},jwtpath={},tls_renew=1,log={}",
        token_file.display(),
        log.display()
    );
    // As loud as it gets, for every library too.
    let mount = aws.request(&options).env("RUST_LOG", "trace").mount();
    fs::write(mount.join("file"), b"x").expect("write");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    aws.cut();
    fs::write(mount.join("file"), b"y").expect("write");
    assert!(aws.record().seen.len() >= 2);

    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid())).expect("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let numbers: Vec<_> = core
        .expect("a limit")
        .split_whitespace()
        .skip(4)
        .take(2)
        .collect();
    assert_eq!(numbers, ["0", "0"]);
    let status = format!("{}{}", mount.status(), mount.stats());
    assert_clean("status", status.as_bytes(), &web_token);
    let arguments = fs::read(format!("/proc/{}/cmdline", mount.pid())).expect("cmdline");
    assert_clean("the arguments", &arguments, &web_token);
    let mut registry = Vec::new();
    everything_in(Path::new("/run/efs-fuse"), &mut registry);
    assert!(
        !registry.is_empty(),
        "the registry was looked for at the wrong place"
    );
    assert_clean("the registry", &registry, &web_token);
    mount.unmount();
    let logged = fs::read(&log).expect("log");
    assert!(
        logged.len() > 1000,
        "a trace is longer than {}",
        logged.len()
    );
    assert_clean("the log", &logged, &web_token);
}
