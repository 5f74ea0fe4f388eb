//! The work that the kernel's client was counted at, done by this one: the same
//! steps on the same amounts, its round trips beside ours.
//!
//! What the kernel needs is written down here, because it needs a host with a
//! kernel NFS client, which not every machine has: Linux 6.1.176, NFSv4.1 with
//! the options EFS recommends, no delegations, nfs-ganesha 4.3 on ext4, RPC calls
//! from /proc/self/mountstats. They repeat to within one per cent and do not
//! depend on the network. Ours are all compounds, also those that nobody waits
//! for.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::{Context, Result, go_on, run};
use crate::mount::Mount;
use crate::proxy::Proxy;
use crate::report::Report;
use crate::server::Server;

const ROUND_TRIP: Duration = Duration::from_millis(1);

/// A step, what the Linux 6.1 client was measured to need for it, and what we
/// may need at most.
struct Step {
    name: &'static str,
    kernel: u64,
    limit: u64,
    cold: bool,
    work: fn(&Path, &Amounts) -> Result<()>,
}

const STEPS: [Step; 14] = [
    step("untar", 27_143, 12_500, untar),
    cold("ls -lR cold", 654, 300, list),
    step("ls -lR warm", 200, 100, list),
    cold("find -ls cold", 658, 300, find),
    step("find -ls warm", 403, 150, find),
    cold("read all cold", 9_458, 3_900, read_all),
    step("read all warm", 6_891, 3_400, read_all),
    step("create 2000x4K, 1 thread", 9_898, 4_400, |root, amounts| {
        create(&root.join("c1"), amounts.small, 1)
    }),
    step(
        "create 2000x4K, 8 threads",
        9_283,
        4_400,
        |root, amounts| create(&root.join("c8"), amounts.small, 8),
    ),
    step("rm 2000 files", 5_131, 2_200, |root, _| {
        run(Command::new("rm").arg("-rf").arg(root.join("c1")))
    }),
    step("open+append+fsync+close x1000", 3_003, 2_200, append),
    step("fcntl lock+unlock x1000", 3_003, 2_050, lock),
    step("seq write 1G+fsync", 1_035, 1_045, write_stream),
    cold("seq read 1G cold", 1_031, 1_045, read_stream),
];

const fn step(
    name: &'static str,
    kernel: u64,
    limit: u64,
    work: fn(&Path, &Amounts) -> Result<()>,
) -> Step {
    Step {
        name,
        kernel,
        limit,
        cold: false,
        work,
    }
}

/// A step that begins with a fresh mount.
const fn cold(
    name: &'static str,
    kernel: u64,
    limit: u64,
    work: fn(&Path, &Amounts) -> Result<()>,
) -> Step {
    Step {
        cold: true,
        ..step(name, kernel, limit, work)
    }
}

/// How much of each; the kernel's numbers are those of the whole.
struct Amounts {
    archive: PathBuf,
    small: usize,
    times: usize,
    blocks: usize,
}

#[derive(Clone, Copy)]
struct Outcome {
    round_trips: u64,
    time: Duration,
}

pub(crate) fn measure(report: &mut Report, parent: &Path, quick: bool) -> Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("efs-fuse-bench-archive-")
        .tempdir_in(parent)
        .context("a directory for the archive")?;
    // A tenth, if it must be quick: then only the trend can be read.
    let part = if quick { 10 } else { 1 };
    let amounts = Amounts {
        archive: archive(scratch.path(), 3_000 / part)?,
        small: 2_000 / part,
        times: 1_000 / part,
        blocks: 1_024 / part,
    };
    let near = {
        let server = Server::start(parent)?;
        all(server.address(), &amounts)?
    };
    let far = {
        let server = Server::start(parent)?;
        let proxy = Proxy::new(server.address(), ROUND_TRIP)?;
        all(proxy.address(), &amounts)?
    };
    report.heading(
        "Round trips beside the kernel's client",
        &[
            "",
            "kernel",
            "ours",
            "1 ms",
            "ours / kernel",
            "at most",
            "time, 0 ms",
            "1 ms",
        ],
    );
    let seconds = |outcome: &Outcome| format!("{:.2} s", outcome.time.as_secs_f64());
    let mut rows = Vec::new();
    for ((step, near), far) in STEPS.iter().zip(&near).zip(&far) {
        let part = part as u64;
        let (kernel, limit) = (step.kernel / part, step.limit / part);
        let worst = near.round_trips.max(far.round_trips);
        report.row(&[
            step.name.into(),
            kernel.to_string(),
            near.round_trips.to_string(),
            far.round_trips.to_string(),
            format!("{:.2}", worst as f64 / kernel as f64),
            format!("{limit} {}", Report::verdict(worst <= limit)),
            seconds(near),
            seconds(far),
        ]);
        rows.push(json!({
            "name": step.name,
            "kernel": kernel,
            "limit": limit,
            "round_trips": {"0_ms": near.round_trips, "1_ms": far.round_trips},
            "seconds": {"0_ms": near.time.as_secs_f64(), "1_ms": far.time.as_secs_f64()},
        }));
    }
    report.put("kernel", Value::Array(rows));
    report.note(&chart(
        near.iter()
            .zip(&far)
            .map(|(near, far)| near.round_trips.max(far.round_trips)),
        part as u64,
    ));
    Ok(())
}

/// A bar for each step, the kernel's of the same length in all of them.
fn chart(ours: impl Iterator<Item = u64>, part: u64) -> String {
    const KERNEL: usize = 40;
    let mut text = String::from("```text\n");
    for (step, ours) in STEPS.iter().zip(ours) {
        let kernel = step.kernel / part;
        let length = (ours as usize * KERNEL).div_ceil(kernel as usize);
        let (inside, beyond) = (length.min(KERNEL), length.saturating_sub(KERNEL));
        let bar = "█".repeat(inside) + &"░".repeat(KERNEL - inside) + &"█".repeat(beyond);
        text += &format!("{:30} {bar} {ours} of {kernel}\n", step.name);
    }
    text + "```"
}

fn all(server: SocketAddr, amounts: &Amounts) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut mount = Mount::new(server)?;
    for step in &STEPS {
        go_on()?;
        if step.cold {
            mount.end()?;
            mount = Mount::new(server)?;
        }
        mount.round_trips()?;
        let begun = Instant::now();
        (step.work)(mount.path(), amounts).context(step.name)?;
        outcomes.push(Outcome {
            time: begun.elapsed(),
            round_trips: mount.round_trips()?,
        });
    }
    mount.end()?;
    Ok(outcomes)
}

/// A source tree as an archive: small files of a log-normal size (median 4 KiB,
/// at most 256 KiB), fifteen a directory, one in sixty a symbolic link.
pub(crate) fn archive(scratch: &Path, files: usize) -> Result<PathBuf> {
    let mut chance = Chance::of(0x9e37_79b9_7f4a_7c15);
    let mut dirs = vec![PathBuf::from("src")];
    while dirs.len() < files / 15 {
        let above = &dirs[chance.below(dirs.len())];
        if above.components().count() < 6 {
            dirs.push(above.join(format!("directory{}", dirs.len())));
        }
    }
    let text: Vec<u8> = (0..256 << 10).map(|_| chance.letter()).collect();
    for dir in &dirs {
        fs::create_dir(scratch.join(dir)).context("mkdir")?;
    }
    for number in 0..files {
        let dir = scratch.join(&dirs[chance.below(dirs.len())]);
        if number % 60 == 59 {
            symlink("../README", dir.join(format!("l{number}"))).context("symlink")?;
            continue;
        }
        let path = dir.join(format!("file_{number}.c"));
        let size = (4096.0 * (1.2 * chance.normal()).exp()) as usize;
        fs::write(&path, &text[..size.min(text.len())]).context("write")?;
        let mode = if number % 20 == 0 { 0o755 } else { 0o644 };
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).context("chmod")?;
    }
    let archive = scratch.join("src.tar");
    run(Command::new("tar")
        .arg("cf")
        .arg(&archive)
        .arg("-C")
        .arg(scratch)
        // In the past: what an archive brings is not of today.
        .args(["--mtime=2023-11-15", "src"]))?;
    Ok(archive)
}

/// The same numbers at each run (xorshift64*).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn letter(&mut self) -> u8 {
        b"etaoin shrdlu\n"[self.below(14)]
    }

    /// Of the standard normal distribution: the sum of twelve of the uniform
    /// one, less its mean.
    pub(crate) fn normal(&mut self) -> f64 {
        let sum: f64 = (0..12).map(|_| self.next() as f64 / u64::MAX as f64).sum();
        sum - 6.0
    }
}

fn shell(script: &str, root: &Path) -> Result<()> {
    run(Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(root.join("src")))
}

fn untar(root: &Path, amounts: &Amounts) -> Result<()> {
    run(Command::new("tar")
        .arg("xf")
        .arg(&amounts.archive)
        .arg("-C")
        .arg(root))
}

fn list(root: &Path, _: &Amounts) -> Result<()> {
    shell("ls -lR \"$1\" >/dev/null", root)
}

fn find(root: &Path, _: &Amounts) -> Result<()> {
    shell("find \"$1\" -ls >/dev/null", root)
}

fn read_all(root: &Path, _: &Amounts) -> Result<()> {
    let script = "find \"$1\" -type f -print0 | xargs -0 cat >/dev/null";
    shell(script, root)
}

fn create(dir: &Path, files: usize, threads: usize) -> Result<()> {
    fs::create_dir(dir).context("mkdir")?;
    let one = |number: usize| -> std::io::Result<()> {
        let mut file = File::create_new(dir.join(format!("f{number:05}")))?;
        file.write_all(&[b'z'; 4096])
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || (thread..files).step_by(threads).try_for_each(one)))
            .collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| "a thread panicked")?
                .context("create")
        })
    })?;
    match fs::read_dir(dir).context("readdir")?.count() {
        found if found == files => Ok(()),
        found => Err(format!("{found} files of {files}").into()),
    }
}

fn append(root: &Path, amounts: &Amounts) -> Result<()> {
    let path = root.join("log");
    for number in 0..amounts.times {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .context("open")?;
        // One write(2): `writeln!` makes several.
        let record = format!("{number:099}\n");
        file.write_all(record.as_bytes()).context("write")?;
        file.sync_all().context("fsync")?;
    }
    let size = fs::metadata(&path).context("stat")?.len();
    fs::remove_file(&path).context("unlink")?;
    match size == 100 * amounts.times as u64 {
        true => Ok(()),
        false => Err(format!("{size} bytes of {} records", amounts.times).into()),
    }
}

fn lock(root: &Path, amounts: &Amounts) -> Result<()> {
    let path = root.join("lk");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .context("open")?;
    for _ in 0..amounts.times {
        for kind in [libc::F_WRLCK, libc::F_UNLCK] {
            // SAFETY: flock is plain data, and the kernel only reads it.
            let done = unsafe {
                let mut range: libc::flock = std::mem::zeroed();
                range.l_type = kind as i16;
                range.l_len = 1;
                libc::fcntl(file.as_raw_fd(), libc::F_SETLKW, &range)
            };
            if done != 0 {
                return Err(std::io::Error::last_os_error()).context("fcntl");
            }
        }
    }
    drop(file);
    fs::remove_file(&path).context("unlink")
}

const BLOCK: usize = 1 << 20;

fn write_stream(root: &Path, amounts: &Amounts) -> Result<()> {
    let mut file = File::create(root.join("big")).context("create")?;
    let block = vec![0; BLOCK];
    for _ in 0..amounts.blocks {
        file.write_all(&block).context("write")?;
    }
    file.sync_all().context("fsync")
}

fn read_stream(root: &Path, _: &Amounts) -> Result<()> {
    let mut file = File::open(root.join("big")).context("open")?;
    let mut block = vec![0; BLOCK];
    while file.read(&mut block).context("read")? > 0 {}
    Ok(())
}
