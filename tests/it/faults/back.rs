//! A server that was away and is back: its grace period is short, and nobody who comes
//! after it gets a lock back.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::MountRequest;
use crate::fixtures::sys;

/// Lease 4 s, grace 2 s: nfs-ganesha looks every half a lease whether it is over.
fn server() -> Server {
    Server::start(ServerOptions {
        lease: 4,
        grace: 2,
        ..ServerOptions::default()
    })
}

fn locked(path: &std::path::Path) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("open");
    sys::record_lock(&file, libc::F_WRLCK).expect("lock");
    file
}

#[test]
fn locks_survive_restarts_of_a_server_whatever_it_was_away_for() {
    let mut server = server();
    let mount = MountRequest::of(&server).mount();
    let files: Vec<_> = (0..20)
        .map(|n| locked(&mount.join(n.to_string())))
        .collect();
    // Longer than that, and pauses that double would be seconds long; 3 s after the first
    // attempt they just miss it.
    for (round, away) in [3000, 3150, 1600].into_iter().enumerate() {
        server.kill();
        std::thread::sleep(Duration::from_millis(away));
        server.restart();
        let back = Instant::now();
        for (n, file) in files.iter().enumerate() {
            let data = [round as u8; 8];
            file.write_all_at(&data, 0)
                .and_then(|()| file.sync_data())
                .unwrap_or_else(|err| panic!("round {round}, file {n}: its lock is lost: {err}"));
            assert_eq!(
                fs::read(server.export().join(n.to_string())).expect("read"),
                data
            );
        }
        println!("away {away} ms: at work {:?} after", back.elapsed());
    }
}

#[test]
fn hundreds_of_locks_that_are_lost_are_some_lines_of_the_log() {
    let mut server = server();
    let log = tempfile::NamedTempFile::new().expect("temporary file");
    let mount = MountRequest::of(&server)
        .without("log=")
        .option(&format!("log={}", log.path().display()))
        .mount();
    let files: Vec<_> = (0..150)
        .map(|n| locked(&mount.join(n.to_string())))
        .collect();
    server.kill();
    server.forget_clients();
    server.restart();
    for file in &files {
        let refused = file.write_all_at(b"x", 0).and_then(|()| file.sync_data());
        assert_eq!(sys::errno(refused), libc::EIO, "nobody may reclaim");
    }
    drop(files);
    mount.unmount();
    let log = fs::read_to_string(log.path()).expect("log");
    let loud = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    let loud: Vec<_> = log.lines().filter(loud).collect();
    let told = loud.iter().any(|line| line.contains("locks were lost"));
    assert!(told && loud.len() < 15, "{loud:#?}");
}
