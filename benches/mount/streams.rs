//! Sequential and random I/O through the mount, beside what limits it: the
//! same server over our client without FUSE, FUSE without a client, and the
//! server's directory itself.
//!
//! Files have a name of their own in each round: the server would go on with
//! one that was removed behind its back. The contestants take turns, three times over, and the median counts: what
//! else the machine does then strikes all of them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::direct::{BLOCK, Direct};
use crate::host::{Context, Result, cpu_seconds, go_on, median};
use crate::mount::Mount;
use crate::null::NullMount;
use crate::proxy::Proxy;
use crate::report::Report;
use crate::server::Server;

const ROUNDS: usize = 3;
/// WRITEs or READs that the pipelined loops have under way.
const DEPTHS: [usize; 2] = [2, 8];
/// Bytes of a random access.
const PAGE: usize = 4096;
/// Of the plain loop, or of FUSE without a client if that is slower.
const FLOOR: f64 = 0.85;
/// The same for random reads, [`MANY`] at a time.
const RANDOM_FLOOR: f64 = 0.6;
const MANY: usize = 32;
/// Of the mount's own rate without a round-trip time.
const FAR_FLOOR: f64 = 0.85;
const ROUND_TRIP: Duration = Duration::from_millis(1);

const PLAIN: &str = "own client, plain loop";
const NULL: &str = "FUSE without a client";
const MOUNT: &str = "mount";
const NEAR: &str = "mount, the same way at 0 ms";

/// Rates of contestants, in the order they first ran, and the processor time
/// of the server for each MiB (or access), which tells whose time it was.
#[derive(Default)]
struct Rates(Vec<(String, Vec<f64>, Vec<f64>)>);

impl Rates {
    fn add(
        &mut self,
        server: &Server,
        name: impl Into<String>,
        amount: f64,
        run: impl FnOnce() -> Result<Duration>,
    ) -> Result<()> {
        let before = server.cpu();
        let time = run()?;
        let cpu = (server.cpu() - before) / amount;
        let (name, rate) = (name.into(), amount / time.as_secs_f64());
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, rates, cpus)) => {
                rates.push(rate);
                cpus.push(cpu);
            }
            None => self.0.push((name, vec![rate], vec![cpu])),
        }
        Ok(())
    }

    /// Prints the medians; `floor` is what the mount is held to, as a part of the
    /// slowest of `of` (which need not all be there).
    fn print(
        self,
        report: &Report,
        title: &str,
        unit: &str,
        floor: Option<(f64, &[&str])>,
    ) -> Value {
        report.heading(
            title,
            &["", unit, "of the plain loop", "server's CPU, us each"],
        );
        let medians: Vec<_> = self
            .0
            .into_iter()
            .map(|(name, rates, cpus)| (name, median(rates), median(cpus)))
            .collect();
        let plain = medians.iter().find(|found| found.0 == PLAIN).map(|m| m.1);
        let least = floor.and_then(|(part, of)| {
            let ceilings = medians.iter().filter(|m| of.contains(&&*m.0)).map(|m| m.1);
            ceilings.reduce(f64::min).map(|ceiling| part * ceiling)
        });
        let mut json = Map::new();
        for (name, rate, cpu) in medians {
            let share = plain.map(|plain| rate / plain);
            let verdict = match least {
                Some(least) if name == MOUNT => Report::verdict(rate >= least),
                _ => "",
            };
            let share = share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share));
            report.row(&[
                name.clone(),
                format!("{rate:.0}"),
                format!("{share} {verdict}").trim().to_owned(),
                format!("{:.0}", cpu * 1e6),
            ]);
            json.insert(name, json!({"rate": rate, "server_cpu_s": cpu}));
        }
        Value::Object(json)
    }
}

fn pipelined(depth: usize) -> String {
    format!("own client, {depth} under way")
}

pub(crate) fn measure(report: &mut Report, parent: &Path, quick: bool) -> Result<()> {
    let server = Server::start(parent)?;
    let export = server.export();
    let size: u64 = if quick { 128 << 20 } else { 1 << 30 };
    let mib = size as f64 / f64::from(1 << 20);
    write_file(&export.join("read"), size)?;

    let (mut writes, mut reads) = (Rates::default(), Rates::default());
    // Processor time of the mount's daemon, writing and reading.
    let mut daemon = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        go_on()?;
        let named = |who: &str| format!("{who}{round}");
        writes.add(&server, "the server's directory", mib, || {
            write_file(&export.join(named("d")), size)
        })?;
        reads.add(&server, "the server's directory (cached)", mib, || {
            read_file(&export.join("read"), size)
        })?;
        {
            let null = NullMount::new()?;
            writes.add(&server, NULL, mib, || write_file(&null.file(), size))?;
        }
        {
            let null = NullMount::new()?;
            reads.add(&server, NULL, mib, || read_file(&null.file(), size))?;
        }
        {
            let direct = Direct::open(server.address(), &named("c"))?;
            writes.add(&server, PLAIN, mib, || direct.write(size, 1))?;
            let near = Direct::open(server.address(), "read")?;
            reads.add(&server, PLAIN, mib, || near.read(size, 1))?;
            for depth in DEPTHS {
                let name = pipelined(depth);
                // Each writes a new file: blocks that exist are cheaper.
                let direct = Direct::open(server.address(), &named(&format!("p{depth}-")))?;
                writes.add(&server, &*name, mib, || direct.write(size, depth))?;
                reads.add(&server, &*name, mib, || near.read(size, depth))?;
            }
        }
        let mount = Mount::new(server.address())?;
        writes.add(&server, MOUNT, mib, || {
            write_file(&mount.join(&named("m")), size)
        })?;
        daemon[0].push(cpu_seconds(mount.pid()) / mib);
        reads.add(&server, MOUNT, mib, || read_file(&mount.join("read"), size))?;
        daemon[1].push(cpu_seconds(mount.pid()) / mib - daemon[0][round]);
        mount.end()?;
        for who in ["d", "c", "p2-", "p8-", "m"] {
            fs::remove_file(export.join(named(who))).context(who)?;
        }
    }
    let title = |what: &str| format!("Sequential {what}, {mib:.0} MiB in blocks of 1 MiB, 0 ms");
    let floor = Some((FLOOR, &[PLAIN, NULL][..]));
    let write = writes.print(report, &title("write and fsync"), "MiB/s", floor);
    let read = reads.print(report, &title("read, cold"), "MiB/s", floor);
    let daemon = daemon.map(|times| 1e6 * median(times));
    report.note(&format!(
        "The mount's daemon takes {:.0} us of processor for a MiB written, {:.0} us for one read.",
        daemon[0], daemon[1]
    ));
    let random = random(report, &server, size, quick)?;
    let far = far(report, &server, size)?;
    report.put(
        "streams",
        json!({
            "write_mib_s": write,
            "read_mib_s": read,
            "daemon_cpu_us": {"write": daemon[0], "read": daemon[1]},
            "random_iops": random,
            "at_1_ms": far,
        }),
    );
    Ok(())
}

/// 4 KiB here and there, the page cache of the mount left out.
fn random(report: &Report, server: &Server, size: u64, quick: bool) -> Result<Value> {
    let count: u32 = if quick { 2_000 } else { 20_000 };
    let export = server.export();
    write_file(&export.join("random"), size)?;
    let mut json = Map::new();
    for depth in [1, 8, MANY] {
        let (mut reads, mut writes) = (Rates::default(), Rates::default());
        for _ in 0..ROUNDS {
            go_on()?;
            let n = f64::from(count);
            let here = export.join("random");
            reads.add(server, "the server's directory (cached)", n, || {
                scatter(&here, 0, size, count, depth, false)
            })?;
            {
                let null = NullMount::new()?;
                reads.add(server, NULL, n, || {
                    scatter(&null.file(), libc::O_DIRECT, size, count, depth, false)
                })?;
                writes.add(server, NULL, n, || {
                    scatter(&null.file(), 0, size, count, depth, true)
                })?;
            }
            {
                let direct = Direct::open(server.address(), "random")?;
                reads.add(server, PLAIN, n, || {
                    direct.read_at(anywhere(size, 1).take(count as usize), PAGE, depth)
                })?;
                writes.add(server, PLAIN, n, || {
                    direct.write_at(anywhere(size, 2).take(count as usize), PAGE, depth)
                })?;
            }
            let mount = Mount::new(server.address())?;
            let there = mount.join("random");
            reads.add(server, MOUNT, n, || {
                scatter(&there, libc::O_DIRECT, size, count, depth, false)
            })?;
            writes.add(server, MOUNT, n, || {
                scatter(&there, 0, size, count, depth, true)
            })?;
            mount.end()?;
        }
        let title = |what: &str| format!("Random {what}, 4 KiB, {depth} at a time, 0 ms");
        let floor = (depth == MANY).then_some((RANDOM_FLOOR, &[PLAIN][..]));
        let read = reads.print(report, &title("read, O_DIRECT"), "per s", floor);
        let write = writes.print(report, &title("write, and one fsync"), "per s", None);
        json.insert(format!("read_{depth}"), read);
        json.insert(format!("write_{depth}"), write);
    }
    Ok(Value::Object(json))
}

/// The streams again over a network with a round-trip time.
fn far(report: &Report, server: &Server, size: u64) -> Result<Value> {
    let proxy = Proxy::new(server.address(), ROUND_TRIP)?;
    // The proxy costs processor time, which is not the network's fault.
    let no_delay = Proxy::new(server.address(), Duration::ZERO)?;
    let export = server.export();
    let mib = size as f64 / f64::from(1 << 20);
    let (mut writes, mut reads) = (Rates::default(), Rates::default());
    for round in 0..ROUNDS {
        go_on()?;
        let (plain, mounted) = (format!("far-c{round}"), format!("far-m{round}"));
        {
            let direct = Direct::open(proxy.address(), &plain)?;
            writes.add(server, PLAIN, mib, || direct.write(size, 1))?;
            reads.add(server, PLAIN, mib, || direct.read(size, 1))?;
            for depth in DEPTHS {
                let name = pipelined(depth);
                let direct = Direct::open(proxy.address(), &format!("{plain}-{depth}"))?;
                writes.add(server, &*name, mib, || direct.write(size, depth))?;
                reads.add(server, &*name, mib, || direct.read(size, depth))?;
            }
        }
        let mount = Mount::new(proxy.address())?;
        writes.add(server, MOUNT, mib, || {
            write_file(&mount.join(&mounted), size)
        })?;
        reads.add(server, MOUNT, mib, || read_file(&mount.join("read"), size))?;
        mount.end()?;
        let near = format!("near-m{round}");
        let mount = Mount::new(no_delay.address())?;
        writes.add(server, NEAR, mib, || write_file(&mount.join(&near), size))?;
        reads.add(server, NEAR, mib, || read_file(&mount.join("read"), size))?;
        mount.end()?;
        let others = DEPTHS.map(|depth| format!("{plain}-{depth}"));
        for name in others.into_iter().chain([plain, mounted, near]) {
            fs::remove_file(export.join(&name)).context(name)?;
        }
    }
    let title = |what: &str| format!("Sequential {what}, {mib:.0} MiB, 1 ms");
    let floor = Some((FAR_FLOOR, &[NEAR][..]));
    Ok(json!({
        "write_mib_s": writes.print(report, &title("write and fsync"), "MiB/s", floor),
        "read_mib_s": reads.print(report, &title("read, cold"), "MiB/s", floor),
    }))
}

/// The time to write `size` bytes and make them stable.
pub(crate) fn write_file(path: &Path, size: u64) -> Result<Duration> {
    let block = vec![0x5a; BLOCK];
    let begun = Instant::now();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .context(path.display())?;
    for _ in (0..size).step_by(BLOCK) {
        file.write_all(&block).context("write")?;
    }
    file.sync_all().context("fsync")?;
    Ok(begun.elapsed())
}

/// The time to read the first `size` bytes.
pub(crate) fn read_file(path: &Path, size: u64) -> Result<Duration> {
    let mut block = vec![0; BLOCK];
    let begun = Instant::now();
    let mut file = File::open(path).context(path.display())?;
    for _ in (0..size).step_by(BLOCK) {
        file.read_exact(&mut block).context("read")?;
    }
    Ok(begun.elapsed())
}

/// The time of `count` accesses to random pages by `threads` threads.
fn scatter(
    path: &Path,
    flags: i32,
    size: u64,
    count: u32,
    threads: usize,
    write: bool,
) -> Result<Duration> {
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
        .context(path.display())?;
    let each = count as usize / threads;
    let begun = Instant::now();
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let file = &file;
                scope.spawn(move || {
                    let mut page = Page([0x5a; PAGE]);
                    anywhere(size, 3 + thread as u64)
                        .take(each)
                        .try_for_each(|at| match write {
                            true => file.write_all_at(&page.0, at),
                            false => file.read_exact_at(&mut page.0, at),
                        })
                })
            })
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| "a thread panicked")?
                .context("I/O")
        })
    })?;
    if write {
        file.sync_all().context("fsync")?;
    }
    Ok(begun.elapsed())
}

#[repr(align(4096))]
struct Page([u8; PAGE]);

/// Random pages of a file, the same ones for the same seed (splitmix64).
fn anywhere(size: u64, seed: u64) -> impl Iterator<Item = u64> {
    let pages = size / PAGE as u64;
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % pages * PAGE as u64
    })
}
