//! What can be seen of a running mount: metrics, logs, the live screen.

mod endpoint;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{COMMAND_LIMIT, EFS_FUSE, Mount, MountRequest};
use crate::fixtures::process::{Finished, eventually, run};
use crate::fixtures::proxy::{Proxy, Way};
use crate::fixtures::{World, needs, noise, port};

fn efs_fuse(arguments: &[&str], path: &Path) -> Finished {
    let mut command = Command::new(EFS_FUSE);
    command.arg(arguments[0]).arg(path).args(&arguments[1..]);
    run(&mut command, COMMAND_LIMIT)
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("reply");
    reply
}

/// The value of a metric that has no label but the mount point.
fn sample(page: &str, name: &str) -> f64 {
    let start = format!("{name}{{mountpoint=");
    page.lines()
        .filter(|line| line.starts_with(&start))
        .find_map(|line| line.rsplit_once(' ')?.1.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in\n{page}"))
}

/// The page is what Prometheus takes, and promtool finds nothing to say about it.
fn promtool(page: &str) {
    let mut promtool = Command::new(needs::tool("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    let mut input = promtool.stdin.take().expect("stdin");
    input.write_all(page.as_bytes()).expect("write");
    drop(input);
    let verdict = promtool.wait_with_output().expect("promtool");
    assert!(
        verdict.status.success() && verdict.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&verdict.stderr)
    );
}

#[test]
fn metrics_are_served_and_promtool_finds_nothing_wrong() {
    let address = format!("127.0.0.1:{}", port::free([127, 0, 0, 1].into()));
    let world = World::with(|request| request.option(&format!("metrics={address}")));
    fs::write(world.path("file"), noise(1, 300_000)).expect("write");
    fs::read(world.path("file")).expect("read");
    fs::metadata(world.path("missing")).expect_err("missing");
    let reply = get(&address);
    let (head, page) = reply.split_once("\r\n\r\n").expect("a head");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    let round_trips = world.mount.stat("/round_trips") as f64;
    let shown = sample(page, "efs_fuse_round_trips_total");
    assert!(
        shown > 0.0 && shown <= round_trips,
        "{shown} of {round_trips}"
    );
    assert_eq!(sample(page, "efs_fuse_written_bytes_total"), 300_000.0);
    assert_eq!(sample(page, "efs_fuse_session_up"), 1.0);
    promtool(page);
}

#[test]
fn the_dashboard_and_the_alerts_ask_only_for_metrics_that_exist() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let socket = dir.path().join("metrics");
    let world = World::with(|request| request.option(&format!("metrics={}", socket.display())));
    fs::write(world.path("file"), "x").expect("write");
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connect");
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .expect("request");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("reply");
    let dashboard = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/grafana-dashboard.json");
    let mut text = fs::read_to_string(dashboard).expect("the dashboard");
    assert!(
        text.contains("label_values(efs_fuse_mount_info{instance=~"),
        "a mount to choose"
    );
    let parsed: Value = serde_json::from_str(&text).expect("JSON");
    assert!(
        parsed["panels"]
            .as_array()
            .is_some_and(|panels| panels.len() >= 8)
    );
    for query in text
        .lines()
        .filter(|line| line.trim_start().starts_with("\"expr\""))
    {
        assert!(query.contains("mountpoint=~\\\"$mountpoint\\\""), "{query}");
    }
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/alerts.yaml");
    let alerts = fs::read_to_string(alerts).expect("the alerts");
    let queries = alerts.lines().filter(|line| !line.contains("takeovers"));
    text.extend(queries);
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names = text
        .match_indices("efs_fuse_")
        .map(|(at, _)| text[at..].split(|c| !word(c)).next().unwrap_or_default());
    let mut asked = 0;
    for name in names {
        asked += 1;
        assert!(
            page.lines()
                .any(|line| line.split([' ', '{']).next() == Some(name)),
            "{name} is not served"
        );
    }
    assert!(asked > 10, "{asked}");
    world.mount.unmount();
    assert!(!socket.exists(), "the socket goes with the mount");
}

#[test]
fn a_port_that_is_taken_costs_the_metrics_and_not_the_mount() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address");
    let server = Server::start(ServerOptions::default());
    let at = crate::fixtures::mount::Mountpoint::new();
    let request = MountRequest::of(&server).option(&format!("metrics={address}"));
    let done = run(&mut request.command(at.path()), COMMAND_LIMIT).expect_success("mount");
    assert!(
        done.stderr.starts_with("efs-fuse: warning: no metrics: "),
        "{}",
        done.stderr
    );
    fs::write(at.path().join("file"), "x").expect("the mount works");
    efs_fuse(&["umount"], at.path()).expect_success("umount");
}

#[test]
fn the_log_level_changes_at_run_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("log");
    let world = World::with(|request| request.option(&format!("log={}", log.display())));
    let at = world.mount.path();
    let level = |arguments: &[&str]| efs_fuse(arguments, at);
    let logged = || fs::read_to_string(&log).expect("log");
    assert_eq!(
        level(&["log-level"]).expect_success("show").stdout,
        "info\n"
    );
    fs::create_dir(at.join("quiet")).expect("mkdir");
    assert!(!logged().contains("DEBUG"), "{}", logged());
    let now = level(&["log-level", "debug", "--json"]).expect_success("debug");
    let now: Value = serde_json::from_str(&now.stdout).expect("JSON");
    assert!(
        now["filter"]
            .as_str()
            .is_some_and(|filter| filter.contains("efs_fuse=debug"))
    );
    fs::create_dir(at.join("quiet/not empty")).expect("mkdir");
    fs::remove_dir(at.join("quiet")).expect_err("it is not empty");
    let refused = eventually(Duration::from_secs(5), || {
        logged().contains("op=RmDir").then_some(())
    });
    assert!(refused.is_some(), "{}", logged());
    let wrong = level(&["log-level", "loud"]);
    assert_eq!(wrong.code(), 2, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("\"loud\""), "{}", wrong.stderr);
    level(&["log-level", "error"]).expect_success("error");
    let before = logged().len();
    fs::remove_dir(at.join("quiet")).expect_err("it is not empty");
    assert_eq!(logged().len(), before, "{}", logged());
}

#[test]
fn slow_operations_are_logged_with_what_the_server_took() {
    let server = Server::start(ServerOptions::default());
    let proxy = Proxy::to(server.address());
    proxy.delay(Way::ToClient, Duration::from_millis(120));
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = dir.path().join("log");
    let mount = MountRequest::new("127.0.0.1:/", proxy.port())
        .option("slow_op_ms=100")
        .option(&format!("log={}", log.display()))
        .mount();
    fs::create_dir(mount.join("dir")).expect("mkdir");
    let line = |what: &str| {
        let found = eventually(Duration::from_secs(5), || {
            let text = fs::read_to_string(&log).expect("log");
            text.lines()
                .find(|line| line.contains(what))
                .map(str::to_owned)
        });
        found.unwrap_or_else(|| {
            panic!(
                "{what} is not in {}",
                fs::read_to_string(&log).expect("log")
            )
        })
    };
    let of_fuse = line("slow: mkdir took ");
    assert!(
        of_fuse.contains(" WARN ") && of_fuse.contains("ok=true"),
        "{of_fuse}"
    );
    line("slow: the server took ");
    assert!(mount.stat("/slow_operations") >= 2);
}

#[test]
fn watching_prints_the_rates_of_each_interval() {
    let world = World::new();
    fs::write(world.path("file"), noise(1, 10_000)).expect("write");
    let mut watch = Command::new(EFS_FUSE)
        .arg("stats")
        .arg(world.mount.path())
        .args(["--watch=0.2", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("watch");
    let out = std::io::BufReader::new(watch.stdout.take().expect("stdout"));
    let mut read = 0.0;
    for (n, line) in std::io::BufRead::lines(out).enumerate() {
        // Past the page cache, so that there is something to see.
        let mut command = Command::new("dd");
        command
            .arg(format!("if={}", world.path("file").display()))
            .args(["iflag=direct", "bs=64k", "of=/dev/null", "status=none"]);
        run(&mut command, COMMAND_LIMIT).expect_success("dd");
        let shown: Value = serde_json::from_str(&line.expect("line")).expect("JSON");
        read += shown["bytes_per_s"]["read"].as_f64().expect("a rate");
        assert!(shown["gauges"]["inodes"].is_u64());
        if n >= 5 {
            break;
        }
    }
    watch.kill().expect("kill");
    watch.wait().expect("wait");
    assert!(read > 0.0, "reads were seen");
}

#[test]
fn the_live_screen_ends_with_q_and_gives_the_terminal_back() {
    let world = World::new();
    fs::write(world.path("file"), noise(1, 10_000)).expect("write");
    let shown = tempfile::NamedTempFile::new().expect("temporary file");
    // script(1) gives it a terminal; the key comes when there is something to see.
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg("(for _ in $(seq 300); do grep -q 'cache hits' \"$OUT\" && break; sleep 0.1; done; printf q) | script -qefc \"stty rows 30 cols 100; '$EFS_FUSE' stats '$AT' --watch=0.2\" \"$OUT\" >/dev/null")
        .env("EFS_FUSE", EFS_FUSE)
        .env("AT", world.mount.path())
        .env("OUT", shown.path());
    run(&mut command, COMMAND_LIMIT).expect_success("the screen");
    let shown = fs::read_to_string(shown.path()).expect("what was shown");
    let at = world.mount.path().display().to_string();
    for expected in [
        "\x1b[?1049h",
        "\x1b[?25l",
        &at,
        "round trips",
        "cache hits",
        "\x1b[?25h",
        "\x1b[?1049l",
    ] {
        assert!(shown.contains(expected), "{expected:?} is not in {shown}");
    }
}

#[test]
fn the_control_socket_is_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let _world = World::new();
    let dir = fs::metadata("/run/efs-fuse").expect("the directory of sockets");
    assert_eq!(dir.permissions().mode() & 0o777, 0o700);
    let sockets = fs::read_dir("/run/efs-fuse").expect("readdir");
    for socket in sockets
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "sock"))
    {
        // Another test's may be gone by now.
        if let Ok(found) = socket.metadata() {
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
        }
    }
}

#[test]
fn several_mounts_are_all_shown_by_status() {
    let server = Server::start(ServerOptions::default());
    let (one, other) = (Mount::new(&server), Mount::new(&server));
    let mut command = Command::new(EFS_FUSE);
    let done = run(command.args(["status", "--json"]), COMMAND_LIMIT).expect_success("status");
    let status: Value = serde_json::from_str(&done.stdout).expect("JSON");
    for mount in [&one, &other] {
        let at = mount.path().to_str();
        let mounts = status["mounts"].as_array().expect("mounts");
        assert!(
            mounts
                .iter()
                .any(|shown| shown["mountpoint"].as_str() == at)
        );
    }
}
