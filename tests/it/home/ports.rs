//! Servers that demand a port that only root may use, as Linux exports do unless they are
//! told otherwise (`secure` of exports(5)).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE, MountRequest};
use crate::fixtures::process::{eventually, run};
use crate::peer::proto::{op, st};
use crate::peer::{Action, Peer, PeerConfig};

/// Denies its root to who comes from another port than one of root's.
struct Secure {
    port: u16,
    peer: Arc<Peer>,
    /// Where its clients came from.
    came_from: Arc<Mutex<Vec<u16>>>,
    _runtime: Runtime,
}

impl Secure {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("address").port();
        listener.set_nonblocking(true).expect("non-blocking");
        let inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
        let (peer, strict) = (
            Peer::new(PeerConfig::default()),
            Peer::new(PeerConfig::default()),
        );
        strict.on_op(|event| match event.op {
            op::PUTROOTFH => Action::Fail(st::PERM),
            _ => Action::Pass,
        });
        let came_from = Arc::new(Mutex::new(Vec::new()));
        let (open, seen) = (Arc::clone(&peer), Arc::clone(&came_from));
        runtime.spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                seen.lock().expect("lock").push(from.port());
                match from.port() < 1024 {
                    true => open.serve(stream),
                    false => strict.serve(stream),
                };
            }
        });
        drop(inside);
        Self {
            port,
            peer,
            came_from,
            _runtime: runtime,
        }
    }

    fn request(&self) -> MountRequest {
        MountRequest::new("127.0.0.1:/", self.port)
    }

    fn came_from(&self) -> Vec<u16> {
        self.came_from.lock().expect("lock").clone()
    }
}

#[test]
fn root_connects_from_a_port_of_root_s_also_when_it_connects_again() -> io::Result<()> {
    let server = Secure::start();
    let mount = server.request().mount();
    for round in 1..=3 {
        fs::write(mount.join("file"), format!("{round}"))?;
        server.peer.cut_all_connections();
        assert_eq!(fs::read_to_string(mount.join("file"))?, format!("{round}"));
        let again = || (server.came_from().len() > round).then_some(());
        assert!(eventually(Duration::from_secs(10), again).is_some());
    }
    mount.unmount();
    let ports = server.came_from();
    assert!(
        ports.iter().all(|port| (665..1024).contains(port)),
        "{ports:?}"
    );
    Ok(())
}

#[test]
fn several_connections_have_each_a_port_of_its_own() {
    let server = Secure::start();
    let mount = server.request().option("nconnect=3").mount();
    let made = || (server.came_from().len() >= 3).then_some(());
    assert!(eventually(Duration::from_secs(10), made).is_some());
    let mut ports = server.came_from();
    ports.sort_unstable();
    ports.dedup();
    assert!(
        ports.len() >= 3 && ports.iter().all(|port| *port < 1024),
        "{ports:?}"
    );
    mount.unmount();
}

/// nfs-ganesha is as strict as Linux if it is told to be.
#[test]
fn a_real_server_that_demands_such_a_port_lets_root_in_and_nobody_from_another_one() {
    let server = Server::start(ServerOptions {
        privileged_port: true,
        ..ServerOptions::default()
    });
    let mount = MountRequest::of(&server).mount();
    fs::write(mount.join("file"), "x").expect("write");
    assert!(server.export().join("file").exists());
    mount.unmount();
    let said = MountRequest::of(&server).option("noresvport").fail();
    assert!(said.contains("without noresvport"), "{said}");
}

#[test]
fn who_is_refused_for_its_port_is_told_so_by_mount_and_by_doctor() {
    let server = Secure::start();
    let said = server.request().option("noresvport").fail();
    for words in [
        "denied by the server to a client that comes from port ",
        "without noresvport",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    let doctor = |more: &str| {
        let options = format!("port={}{more}", server.port);
        let mut command = Command::new(EFS_FUSE);
        command.args(["doctor", "127.0.0.1:/", "-o", &options]);
        run(&mut command, COMMAND_LIMIT)
    };
    let refused = doctor(",noresvport");
    assert_eq!(refused.code(), 32, "{}", refused.stderr);
    assert!(refused.stdout.contains(" from port "), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("without noresvport"),
        "{}",
        refused.stderr
    );
    doctor("").expect_success("doctor");
}
