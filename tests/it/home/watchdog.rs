//! Signs of life for the service manager.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{MountRequest, Mountpoint};
use crate::fixtures::process::Background;

/// Datagrams that come within `time`.
fn heard(socket: &UnixDatagram, time: Duration) -> Vec<String> {
    let end = Instant::now() + time;
    let mut heard = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return heard;
        }
        socket.set_read_timeout(Some(left)).expect("timeout");
        let mut buffer = [0; 256];
        if let Ok(length) = socket.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    }
}

/// Datagrams until three pings have come, or some time is over: a busy machine
/// is slow, a daemon that does not ping never does.
fn three_pings(socket: &UnixDatagram) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..60 {
        all.extend(heard(socket, Duration::from_millis(500)));
        if pings(&all) >= 3 {
            break;
        }
    }
    all
}

fn pings(heard: &[String]) -> usize {
    heard.iter().filter(|said| *said == "WATCHDOG=1").count()
}

#[test]
fn the_watchdog_hears_of_a_daemon_that_serves_also_while_its_server_is_dead() {
    let server = Server::start(ServerOptions::default());
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bind");
    let at = Mountpoint::new();
    let mut command = MountRequest::of(&server).command(at.path());
    command
        .arg("--foreground")
        .env("NOTIFY_SOCKET", &path)
        // A third of it is the pace.
        .env("WATCHDOG_USEC", "600000")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut daemon = Background::spawn(command).expect("spawn");
    let first = three_pings(&socket);
    assert!(
        first.iter().any(|said| said.starts_with("READY=1")),
        "{first:?}"
    );
    assert!(pings(&first) >= 3, "{first:?}");
    fs::write(at.path().join("file"), "x").expect("write");
    {
        let _stopped = server.stopped();
        // Something waits for the server meanwhile.
        let file = at.path().join("new");
        let waiting = std::thread::spawn(move || fs::write(file, "x"));
        let dead = three_pings(&socket);
        assert!(pings(&dead) >= 3, "{dead:?}");
        drop(_stopped);
        waiting.join().expect("thread").expect("write");
    }
    // A daemon that does not serve does not ping.
    daemon.signal(libc::SIGSTOP);
    heard(&socket, Duration::from_millis(300));
    let stopped = heard(&socket, Duration::from_secs(1));
    daemon.signal(libc::SIGCONT);
    assert_eq!(pings(&stopped), 0, "{stopped:?}");
    daemon.signal(libc::SIGTERM);
    let ended = daemon.wait(Duration::from_secs(20)).expect("it ends");
    assert!(ended.success(), "{ended}");
    let last = heard(&socket, Duration::from_millis(100));
    assert!(
        last.iter().any(|said| said.starts_with("STOPPING=1")),
        "{last:?}"
    );
}
