//! A name that was meant for EFS never leads to a mount without TLS.
//!
//! The attacker answers DNS (here: `/etc/hosts` of a mount namespace) and listens.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::fixtures::mount::EFS_FUSE;
use crate::fixtures::needs;

/// Listens, and notes the first byte of every connection.
struct Listener {
    port: u16,
    first: Arc<Mutex<Vec<u8>>>,
}

impl Listener {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("address").port();
        let first = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&first);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut byte = [0];
                if stream.read_exact(&mut byte).is_ok() {
                    heard.lock().expect("lock").push(byte[0]);
                }
            }
        });
        Self { port, first }
    }

    fn heard(&self) -> Vec<u8> {
        std::mem::take(&mut *self.first.lock().expect("lock"))
    }

    /// Mounts `device`, whose name leads here.
    fn mount(&self, device: &str, options: &str) -> Output {
        needs::root();
        let dir = tempfile::tempdir().expect("temporary directory");
        let host = device.split(':').next().unwrap_or_default();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, format!("127.0.0.1 {host}\n")).expect("write");
        let mountpoint = dir.path().join("m");
        std::fs::create_dir(&mountpoint).expect("directory");
        // What a test mounts here is gone with its last process.
        let script =
            "mount --bind \"$1\" /etc/hosts && mount -t tmpfs none /run && shift && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(&hosts)
            .arg(EFS_FUSE)
            .args(["mount", device])
            .arg(&mountpoint)
            .arg("-o")
            .arg(format!("port={},mount_timeout=2{options}", self.port))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", "eu-west-1");
        command.output().expect("efs-fuse")
    }
}

/// The first byte of a TLS record with a handshake in it.
const HANDSHAKE: u8 = 22;

#[test]
fn a_name_that_looks_like_efs_is_refused_and_nobody_is_connected_to() {
    let listener = Listener::start();
    for device in [
        "fs-0123abcd.efs.cn-north-1.amazonaws.com",
        "fs-0123abcd.efs.mars-north-7.amazonaws.mars",
        "fs-0123abcd.efs.us-east-1.api.aws",
        "fs-0123abcd.efs.us-east-1.amazonaws.com.corp.example:/dir",
        "us-east-1a.FS-0123abcd.efs.us-east-1.amazonaws.com.corp.example",
        "fs-0123ABCDzz",
        "fs-0123abcd.corp.example",
        "fs-12",
    ] {
        let out = listener.mount(device, "");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(
            listener.heard(),
            Vec::<u8>::new(),
            "{device} was connected to: {said}"
        );
        assert_eq!(out.status.code(), Some(1), "{device}: {said}");
        assert!(said.contains(". Try: "), "{device}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_name_of_efs_in_any_case_and_of_a_new_region_is_connected_to_by_tls() {
    let listener = Listener::start();
    for (device, options) in [
        ("fs-0123abcd.efs.cn-south-9.amazonaws.com.cn", ""),
        ("FS-0123ABCD.efs.mars-north-7.AMAZONAWS.com", ""),
        (
            "fs-0123abcd.efs.mars-north-7.amazonaws.mars",
            ",dns_suffix=amazonaws.mars",
        ),
        ("FS-0123ABCD", ",mounttargetip=127.0.0.1"),
        // Not EFS, as is said.
        ("fs-backup", ",tls"),
    ] {
        let out = listener.mount(device, options);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        std::thread::sleep(Duration::from_millis(50));
        let heard = listener.heard();
        assert!(!heard.is_empty(), "{device}: {said}");
        assert!(heard.iter().all(|byte| *byte == HANDSHAKE), "{heard:?}");
    }
    // In plaintext it is only if that is what is written.
    listener.mount("fs-backup", ",notls");
    std::thread::sleep(Duration::from_millis(50));
    let heard = listener.heard();
    assert!(
        !heard.is_empty() && !heard.contains(&HANDSHAKE),
        "{heard:?}"
    );
}
