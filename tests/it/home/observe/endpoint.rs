//! `efs-fuse metrics`: one endpoint for all mounts of the machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{get, promtool};
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE, Mount};
use crate::fixtures::port;
use crate::fixtures::private::{ALICE, Private, as_user};
use crate::fixtures::process::{Background, eventually, run};

/// The endpoint at a free port, serving.
fn endpoint() -> (Background, String) {
    let address = format!("127.0.0.1:{}", port::free([127, 0, 0, 1].into()));
    let mut command = Command::new(EFS_FUSE);
    command.args(["metrics", "--listen", &address]);
    command.stderr(Stdio::null());
    let serving = Background::spawn(command).expect("spawn");
    let there = eventually(Duration::from_secs(10), || {
        std::net::TcpStream::connect(&address).ok()
    });
    assert!(there.is_some(), "it listens");
    (serving, address)
}

/// The value of a metric without further labels of this mount.
fn of(page: &str, name: &str, mount: &Mount) -> Option<f64> {
    let start = format!("{name}{{mountpoint=\"{}\"}} ", mount.path().display());
    page.lines()
        .find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: the pid was found a moment ago as the daemon of this test's mount.
    let done = unsafe { libc::kill(pid, signal) };
    assert_eq!(done, 0, "kill: {}", std::io::Error::last_os_error());
}

#[test]
fn one_endpoint_has_every_mount_and_says_of_each_sample_whose_it_is() {
    let server = Server::start(ServerOptions::default());
    let (one, other) = (Mount::new(&server), Mount::new(&server));
    fs::write(one.join("file"), [7; 70_000]).expect("write");
    let (mut serving, address) = endpoint();
    let reply = get(&address);
    let (head, page) = reply.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    promtool(page);
    assert_eq!(of(page, "efs_fuse_up", &one), Some(1.0), "{page}");
    assert_eq!(of(page, "efs_fuse_up", &other), Some(1.0));
    assert_eq!(
        of(page, "efs_fuse_written_bytes_total", &one),
        Some(70_000.0)
    );
    assert_eq!(of(page, "efs_fuse_written_bytes_total", &other), Some(0.0));
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.contains("{mountpoint=\""), "{line}");
    }
    // What is unmounted is not there any more, and the others are.
    other.unmount();
    std::thread::sleep(Duration::from_millis(600));
    let page = get(&address);
    assert_eq!(of(&page, "efs_fuse_up", &one), Some(1.0), "{page}");
    // A signal ends it at once, and well.
    serving.signal(libc::SIGTERM);
    let ended = serving.wait(Duration::from_secs(2)).expect("it ends");
    assert!(ended.success(), "{ended}");
}

#[test]
fn a_mount_that_hangs_or_is_dead_costs_its_own_samples_and_no_others() {
    let server = Server::start(ServerOptions::default());
    let (well, hung, dead) = (
        Mount::new(&server),
        Mount::new(&server),
        Mount::new(&server),
    );
    let (_serving, address) = endpoint();
    let stopped = hung.pid();
    signal(stopped, libc::SIGSTOP);
    signal(dead.pid(), libc::SIGKILL);
    let gone = eventually(Duration::from_secs(5), || {
        dead.at().daemons().is_empty().then_some(())
    });
    assert!(gone.is_some(), "it is killed");
    let begun = Instant::now();
    // Several at once wait for the same answers.
    let pages: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| get(&address))).collect();
        let pages = asked.into_iter().map(|page| page.join().expect("a page"));
        pages.collect()
    });
    let took = begun.elapsed();
    signal(stopped, libc::SIGCONT);
    assert!(took < Duration::from_secs(5), "{took:?}");
    for page in pages {
        assert_eq!(of(&page, "efs_fuse_up", &well), Some(1.0), "{page}");
        assert!(of(&page, "efs_fuse_round_trips_total", &well).is_some());
        for ill in [&hung, &dead] {
            assert_eq!(of(&page, "efs_fuse_up", ill), Some(0.0), "{page}");
            assert_eq!(of(&page, "efs_fuse_round_trips_total", ill), None);
        }
    }
    let back = eventually(Duration::from_secs(5), || {
        (of(&get(&address), "efs_fuse_up", &hung)? == 1.0).then_some(())
    });
    assert!(back.is_some(), "it goes on");
}

#[test]
fn without_an_address_the_numbers_are_printed_once() {
    let server = Server::start(ServerOptions::default());
    let mount = Mount::new(&server);
    let mut command = Command::new(EFS_FUSE);
    let printed = run(command.arg("metrics"), COMMAND_LIMIT).expect_success("metrics");
    promtool(&printed.stdout);
    assert_eq!(of(&printed.stdout, "efs_fuse_up", &mount), Some(1.0));
}

#[test]
fn an_address_that_is_wrong_or_taken_is_one_line_with_cause_and_remedy() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().expect("address").to_string();
    let file = dir.path().join("file");
    fs::write(&file, "precious").expect("write");
    let file = file.to_str().expect("UTF-8");
    for (address, status, because) in [
        ("nowhere", 1, "expected PORT, ADDRESS:PORT or the path"),
        ("127.0.0.1:99999", 1, "expected PORT"),
        (&taken, 2, "address already in use"),
        ("192.0.2.1:9400", 2, "cannot assign requested address"),
        (file, 2, "is there already"),
        ("/nonexistent/socket", 2, "no such file or directory"),
    ] {
        let mut command = Command::new(EFS_FUSE);
        command.args(["metrics", "--listen", address]);
        let refused = run(&mut command, COMMAND_LIMIT);
        assert_eq!(refused.code(), status, "{address}: {}", refused.stderr);
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(because), "{}", refused.stderr);
        assert!(refused.stderr.contains("Try: "), "{}", refused.stderr);
    }
    assert_eq!(fs::read(file).expect("read"), b"precious");
}

#[test]
fn a_socket_is_replaced_after_a_kill_and_goes_with_an_orderly_end() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("metrics");
    let start = || {
        let mut command = Command::new(EFS_FUSE);
        command.args(["metrics", "--listen"]).arg(&socket);
        command.stderr(Stdio::null());
        let serving = Background::spawn(command).expect("spawn");
        let there = eventually(Duration::from_secs(10), || {
            let mut stream = UnixStream::connect(&socket).ok()?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
            let mut page = String::new();
            stream.read_to_string(&mut page).ok()?;
            page.starts_with("HTTP/1.0 200").then_some(())
        });
        assert!(there.is_some(), "it serves");
        serving
    };
    let mut killed = start();
    killed.kill();
    assert!(socket.exists());
    let mut second = start();
    second.signal(libc::SIGINT);
    assert!(
        second
            .wait(Duration::from_secs(2))
            .is_some_and(|end| end.success())
    );
    assert!(!socket.exists());
}

#[test]
fn a_user_is_shown_the_own_mounts_and_root_all() {
    let server = Server::start(ServerOptions::default());
    let mut private = Private::new();
    let (roots, alices) = (private.place("root", 0), private.place("alice", ALICE));
    let (device, options) = ("127.0.0.1:/", format!("port={}", server.address().port()));
    private.mount(0, device, &roots, &options);
    private.mount(ALICE, device, &alices, &options);
    let up = |uid| {
        let mut command = as_user(uid, EFS_FUSE);
        command.arg("metrics");
        let page = private.run(command).expect_success("metrics").stdout;
        let lines = page.lines().filter(|line| line.starts_with("efs_fuse_up{"));
        lines.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let line =
        |place: &std::path::Path| format!("efs_fuse_up{{mountpoint=\"{}\"}} 1", place.display());
    assert_eq!(up(0), BTreeSet::from([line(&roots), line(&alices)]));
    assert_eq!(up(ALICE), BTreeSet::from([line(&alices)]));
}
