//! What people do, each counted in round trips and timed on a network without
//! and with a round-trip time. Round trips are what a far server costs; they
//! are the same on every machine.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::direct::Direct;
use crate::host::{Context, Result, go_on, run};
use crate::mount::Mount;
use crate::proxy::Proxy;
use crate::report::Report;
use crate::server::Server;
use crate::streams::{read_file, write_file};

const ROUND_TRIP: Duration = Duration::from_millis(1);
const FILES_PER_DIRECTORY: usize = 50;
/// Files that a request to a site has its server read.
const SITE: usize = 300;

struct Sizes {
    /// Files of the tree.
    tree: usize,
    /// Small files made in one directory.
    small: usize,
    appends: usize,
    /// Requests to a site.
    requests: usize,
    stream: u64,
}

/// One workload on one network.
struct Outcome {
    name: String,
    /// What it is counted by.
    things: usize,
    time: Duration,
    round_trips: u64,
}

pub(crate) fn measure(report: &mut Report, parent: &Path, quick: bool) -> Result<()> {
    let sizes = if quick {
        Sizes {
            tree: 200,
            small: 200,
            appends: 50,
            requests: 10,
            stream: 128 << 20,
        }
    } else {
        Sizes {
            tree: 2_000,
            small: 1_000,
            appends: 200,
            requests: 50,
            stream: 1 << 30,
        }
    };
    let (near, near_rtt) = {
        let server = Server::start(parent)?;
        let rtt = Direct::open(server.address(), "rtt")?.round_trip()?;
        (all(server.address(), &sizes)?, rtt)
    };
    let (far, far_rtt) = {
        let server = Server::start(parent)?;
        let proxy = Proxy::new(server.address(), ROUND_TRIP)?;
        let rtt = Direct::open(proxy.address(), "rtt")?.round_trip()?;
        (all(proxy.address(), &sizes)?, rtt)
    };
    report.heading(
        "Workloads through the mount",
        &[
            "",
            "round trips",
            "each",
            "0 ms",
            "1 ms",
            "1 ms, round trips",
        ],
    );
    let seconds = |time: Duration| format!("{:.3} s", time.as_secs_f64());
    let mut rows = Vec::new();
    for (near, far) in near.iter().zip(&far) {
        report.row(&[
            near.name.clone(),
            near.round_trips.to_string(),
            format!("{:.2}", near.round_trips as f64 / near.things as f64),
            seconds(near.time),
            seconds(far.time),
            far.round_trips.to_string(),
        ]);
        rows.push(json!({
            "name": near.name,
            "things": near.things,
            "round_trips": {"0_ms": near.round_trips, "1_ms": far.round_trips},
            "seconds": {"0_ms": near.time.as_secs_f64(), "1_ms": far.time.as_secs_f64()},
        }));
    }
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    report.note(&format!(
        "A GETATTR of our own client takes {:.0} us at 0 ms and {:.0} us at 1 ms.",
        us(near_rtt),
        us(far_rtt)
    ));
    report.put(
        "workloads",
        json!({"getattr_us": {"0_ms": us(near_rtt), "1_ms": us(far_rtt)}, "table": Value::Array(rows)}),
    );
    Ok(())
}

/// All workloads in turn; a cold one begins with a fresh mount.
fn all(server: SocketAddr, sizes: &Sizes) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut mount = Mount::new(server)?;
    let mut timed =
        |mount: &Mount, name: String, things: usize, work: &dyn Fn(&Path) -> Result<()>| {
            go_on()?;
            mount.round_trips()?;
            let begun = Instant::now();
            work(mount.path()).context(&name)?;
            outcomes.push(Outcome {
                time: begun.elapsed(),
                round_trips: mount.round_trips()?,
                name,
                things,
            });
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
    let (tree, small) = (sizes.tree, sizes.small);
    let again_with =
        |mount: Mount, options: &[&str]| mount.end().and_then(|_| Mount::with(server, options));
    let again = |mount: Mount| again_with(mount, &[]);
    let list: &dyn Fn(&Path) -> Result<()> =
        &|root| run(Command::new("ls").arg("-lR").arg(root.join("tree")));
    let read_all: &dyn Fn(&Path) -> Result<()> = &|root| read_tree(&root.join("tree"));

    timed(&mount, format!("unpack {tree} files"), tree, &|root| {
        make_tree(&root.join("tree"), tree)
    })?;
    mount = again(mount)?;
    timed(&mount, "ls -lR of them, cold".into(), tree, list)?;
    timed(&mount, "ls -lR of them, warm".into(), tree, list)?;
    mount = again(mount)?;
    timed(&mount, "read all of them, cold".into(), tree, read_all)?;
    timed(&mount, "read all of them, warm".into(), tree, read_all)?;
    mount = again_with(mount, &["profile=ci"])?;
    let how = "read all of them with profile=ci";
    timed(&mount, format!("{how}, cold"), tree, read_all)?;
    timed(&mount, format!("{how}, warm"), tree, read_all)?;
    timed(&mount, "rm -r of them".into(), tree, &|root| {
        run(Command::new("rm").arg("-r").arg(root.join("tree")))
    })?;
    for threads in [1, 8] {
        timed(
            &mount,
            format!("create {small} files of 4 KiB, {threads} threads"),
            small,
            &|root| make_small(&root.join(format!("small{threads}")), small, threads),
        )?;
    }
    timed(
        &mount,
        format!("append 4 KiB and fsync, {} times", sizes.appends),
        sizes.appends,
        &|root| append(&root.join("log"), sizes.appends),
    )?;
    make_site(&mount.path().join("site"))?;
    let requests = sizes.requests;
    for (how, options) in [("", &[][..]), (" with profile=web", &["profile=web"])] {
        mount = again_with(mount, options)?;
        let name = format!("{requests} requests to a site of {SITE} files{how}");
        timed(&mount, name, requests * SITE, &|root| {
            (0..requests).try_for_each(|_| read_site(&root.join("site")))
        })?;
    }
    mount = again(mount)?;
    let mib = (sizes.stream >> 20) as usize;
    timed(&mount, format!("write {mib} MiB and fsync"), mib, &|root| {
        write_file(&root.join("stream"), sizes.stream).map(drop)
    })?;
    mount = again(mount)?;
    timed(&mount, format!("read {mib} MiB, cold"), mib, &|root| {
        read_file(&root.join("stream"), sizes.stream).map(drop)
    })?;
    mount.end()?;
    Ok(outcomes)
}

/// As tar does: each file made, written, dated, closed. 0 to 32 KiB each.
fn make_tree(root: &Path, files: usize) -> Result<()> {
    let content = vec![0x41; 32 << 10];
    let date = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30));
    fs::create_dir(root).context("mkdir")?;
    for n in 0..files {
        let dir = root.join(format!("d{}", n / FILES_PER_DIRECTORY));
        if n % FILES_PER_DIRECTORY == 0 {
            go_on()?;
            fs::create_dir(&dir).context("mkdir")?;
        }
        let mut file = File::create_new(dir.join(format!("f{n}"))).context("create")?;
        // Sizes vary in a fixed way; 7919 is prime to the number of sizes.
        file.write_all(&content[..n * 7919 % content.len()])
            .context("write")?;
        file.set_times(date).context("utimens")?;
    }
    Ok(())
}

fn read_tree(root: &Path) -> Result<()> {
    let mut content = Vec::new();
    for dir in fs::read_dir(root).context("readdir")? {
        go_on()?;
        for file in fs::read_dir(dir.context("readdir")?.path()).context("readdir")? {
            content.clear();
            File::open(file.context("readdir")?.path())
                .and_then(|mut file| file.read_to_end(&mut content))
                .context("read")?;
        }
    }
    Ok(())
}

fn site(root: &Path) -> impl Iterator<Item = PathBuf> {
    (0..SITE).map(move |n| root.join(format!("d{}/f{n}.php", n % 30)))
}

pub(crate) fn make_site(root: &Path) -> Result<()> {
    for (n, file) in site(root).enumerate() {
        let dir = file.parent().ok_or("a file without a directory")?;
        fs::create_dir_all(dir).context("mkdir")?;
        fs::write(file, vec![0x44; 500 + n * 37 % 9000]).context("write")?;
    }
    Ok(())
}

/// As an interpreter does: each file is looked at, opened, read, closed.
pub(crate) fn read_site(root: &Path) -> Result<()> {
    go_on()?;
    for file in site(root) {
        fs::metadata(&file).context("stat")?;
        fs::read(&file).context("read")?;
    }
    Ok(())
}

fn make_small(dir: &PathBuf, files: usize, threads: usize) -> Result<()> {
    fs::create_dir(dir).context("mkdir")?;
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || -> std::io::Result<()> {
                    for n in 0..files / threads {
                        fs::write(dir.join(format!("{thread}-{n}")), [0x42; 4096])?;
                    }
                    Ok(())
                })
            })
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| "a thread panicked")?
                .context("create")
        })
    })
}

fn append(path: &Path, times: usize) -> Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .context("open")?;
    for _ in 0..times {
        file.write_all(&[0x43; 4096])
            .and_then(|()| file.sync_all())
            .context("append")?;
    }
    Ok(())
}
