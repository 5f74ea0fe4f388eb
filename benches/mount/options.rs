//! What people wait for, with the options that they may choose: unpacking, installing, copying,
//! removing, reading; round trips and time at 1 ms, as ratios to the default of the same run.
//!
//! With `--on DIR` the same work is done there and by nobody's mount of ours: so the requests of
//! the kernel's client are counted (`/proc/self/mountstats`), which are those beside ours.
//!
//! They are written down here, because they need a host with a kernel NFS client, which not
//! every machine has: Linux 6.1.192 (Debian's 6.1.0-57), NFSv4.1 with the options EFS recommends
//! and the cache times of nfs(5), no delegations, knfsd of the same kernel on ext4, 1 ms,
//! 2026-11-30, operations of /proc/self/mountstats. A second run differed by 0.6 % at most,
//! `git status` by 2 %. The machine was an emulated one, where a step takes minutes, and a cache
//! time is over after less work than on a real one: attributes may have been asked for more often.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::{Context, Result, go_on, run};
use crate::kernel::{Chance, archive};
use crate::mount::Mount;
use crate::proxy::Proxy;
use crate::report::Report;
use crate::server::Server;
use crate::workloads::{make_site, read_site};

const ROUND_TRIP: Duration = Duration::from_millis(1);

/// What is chosen, under the name of its column.
const CHOICES: [(&str, &[&str]); 3] = [
    ("default", &[]),
    ("nocto", &["nocto,lookupcache=complete"]),
    ("writeback", &["writeback"]),
];

/// Requests to a site of three hundred files.
const REQUESTS: usize = 50;

/// A step, and the requests that the Linux 6.1 client was counted to need for it (`--on`).
struct Step {
    name: &'static str,
    kernel: u64,
    work: fn(&Path, &Material) -> Result<()>,
}

const STEPS: [Step; 10] = [
    step("tar x, 3,000 files", 22_233, untar),
    step("npm install, 5,000 files", 39_609, install),
    step("git clone, 743 files", 4_276, clone),
    step("cp -a, 3,000 files", 28_376, copy),
    step("rsync -a, 3,000 files", 41_016, rsync),
    step("chmod -R, chown -R", 7_369, change),
    step("read all, warm", 6_272, read_all),
    step("rm -rf, 3,000 files", 4_005, remove),
    step("a site's 300 files, 50 times", 30_395, site),
    step("git status, warm", 952, status),
];

const fn step(name: &'static str, kernel: u64, work: fn(&Path, &Material) -> Result<()>) -> Step {
    Step { name, kernel, work }
}

/// What is unpacked, installed, cloned: on a local disk.
struct Material {
    // Removed with it.
    _scratch: tempfile::TempDir,
    archive: PathBuf,
    packages: Vec<PathBuf>,
    repository: PathBuf,
}

#[derive(Clone, Copy)]
struct Outcome {
    round_trips: u64,
    time: Duration,
}

pub(crate) fn measure(report: &mut Report, parent: &Path, quick: bool) -> Result<()> {
    let material = Material::make(parent, quick)?;
    let mut outcomes = Vec::new();
    for (_, options) in CHOICES {
        let server = Server::start(parent)?;
        let proxy = Proxy::new(server.address(), ROUND_TRIP)?;
        let mount = Mount::with(proxy.address(), options)?;
        mount.round_trips()?;
        let count = || mount.round_trips();
        outcomes.push(all(mount.path(), &material, &count)?);
        mount.end()?;
    }
    tell(report, &outcomes, if quick { 10 } else { 1 });
    Ok(())
}

/// On whatever is mounted there.
pub(crate) fn measure_on(report: &mut Report, dir: &Path, quick: bool) -> Result<()> {
    let material = Material::make(&std::env::temp_dir(), quick)?;
    let before = std::cell::Cell::new(requests_of_kernel(dir)?);
    let count = || {
        let now = requests_of_kernel(dir)?;
        Ok(now - before.replace(now))
    };
    let outcomes = all(dir, &material, &count)?;
    report.heading("Requests of the kernel's client", &["", "requests", "time"]);
    for (step, outcome) in STEPS.iter().zip(outcomes) {
        let time = format!("{:.2} s", outcome.time.as_secs_f64());
        report.row(&[step.name.into(), outcome.round_trips.to_string(), time]);
    }
    Ok(())
}

fn all(root: &Path, material: &Material, count: &dyn Fn() -> Result<u64>) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    make_site(&root.join("site"))?;
    // What is read warm has been read.
    read_site(&root.join("site"))?;
    count()?;
    for step in &STEPS {
        go_on()?;
        let begun = Instant::now();
        (step.work)(root, material).context(step.name)?;
        outcomes.push(Outcome {
            time: begun.elapsed(),
            round_trips: count()?,
        });
    }
    Ok(outcomes)
}

/// All requests of the NFS mount that the directory is in, since it was mounted.
fn requests_of_kernel(dir: &Path) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/mountstats").context("mountstats")?;
    let head = format!(" mounted on {} with fstype nfs", dir.display());
    let mut lines = text
        .lines()
        .skip_while(|line| !line.contains(&head))
        .skip(1);
    let of_it = lines
        .by_ref()
        .take_while(|line| !line.starts_with("device "));
    let each = of_it
        .skip_while(|line| line.trim() != "per-op statistics")
        .skip(1);
    let sum = each
        .filter_map(|line| {
            line.split_once(':')?
                .1
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum();
    match sum {
        0 => Err(format!("{} is no NFS mount of the kernel's", dir.display()).into()),
        sum => Ok(sum),
    }
}

fn tell(report: &mut Report, outcomes: &[Vec<Outcome>], part: u64) {
    let columns = CHOICES.map(|(name, _)| name);
    let mut heads = vec!["1 ms", "kernel's requests"];
    heads.extend(columns);
    let times = columns.map(|name| format!("{name}, time"));
    heads.extend(times.iter().map(String::as_str));
    report.heading("Options", &heads);
    let mut rows = Vec::new();
    let mut chart = String::from("```text\n");
    for (number, step) in STEPS.iter().enumerate() {
        let of_step: Vec<Outcome> = outcomes.iter().map(|all| all[number]).collect();
        let default = of_step[0];
        let kernel = step.kernel / part;
        let mut cells = vec![step.name.to_owned(), kernel.to_string()];
        cells.extend(
            of_step
                .iter()
                .map(|outcome| outcome.round_trips.to_string()),
        );
        cells.extend(of_step.iter().map(|outcome| {
            let ratio = outcome.time.as_secs_f64() / default.time.as_secs_f64();
            format!("{:.2} s ({ratio:.2})", outcome.time.as_secs_f64())
        }));
        report.row(&cells);
        for ((name, _), outcome) in CHOICES.iter().zip(&of_step) {
            let seconds = outcome.time.as_secs_f64();
            chart += &bar(
                step.name,
                name,
                seconds / default.time.as_secs_f64(),
                seconds,
            );
            rows.push(json!({
                "name": step.name,
                "options": name,
                "round_trips": outcome.round_trips,
                "seconds": seconds,
                "kernel": kernel,
            }));
        }
    }
    report.put("options", Value::Array(rows));
    report.note(&(chart + "```"));
}

/// Of the default's length, which is the same everywhere.
fn bar(step: &str, choice: &str, ratio: f64, seconds: f64) -> String {
    const WHOLE: f64 = 40.0;
    let step = if choice == CHOICES[0].0 { step } else { "" };
    let length = (ratio.min(1.5) * WHOLE).ceil() as usize;
    format!(
        "{step:28} {choice:10} {} {seconds:.1} s\n",
        "█".repeat(length)
    )
}

impl Material {
    fn make(parent: &Path, quick: bool) -> Result<Self> {
        let scratch = tempfile::Builder::new()
            .prefix("efs-fuse-bench-material-")
            .tempdir_in(parent)
            .context("a directory for what is unpacked")?;
        let part = if quick { 10 } else { 1 };
        let archive = archive(scratch.path(), 3_000 / part)?;
        let packages = packages(&scratch.path().join("packages"), 100 / part)?;
        let repository = repository(&scratch.path().join("repository"), 743 / part)?;
        Ok(Self {
            _scratch: scratch,
            archive,
            packages,
            repository,
        })
    }
}

/// Archives of fifty small files in eight directories each, as packages of npm are.
fn packages(dir: &Path, number: usize) -> Result<Vec<PathBuf>> {
    let mut chance = Chance::of(0x00c0_ffee);
    let text: Vec<u8> = (0..64 << 10).map(|_| chance.letter()).collect();
    let mut archives = Vec::new();
    for package in 0..number {
        let name = format!("package{package}");
        for file in 0..50 {
            let at = dir
                .join(&name)
                .join(["lib", "dist", "src", "test"][file % 4]);
            let at = if file % 8 < 4 { at } else { at.join("more") };
            fs::create_dir_all(&at).context("mkdir")?;
            let size = (1200.0 * chance.normal().exp()) as usize;
            fs::write(
                at.join(format!("file{file}.js")),
                &text[..size.min(text.len())],
            )
            .context("write")?;
        }
        let archive = dir.join(format!("{name}.tar"));
        let mut tar = Command::new("tar");
        tar.arg("cf").arg(&archive).arg("-C").arg(dir).arg(&name);
        run(&mut tar)?;
        archives.push(archive);
    }
    Ok(archives)
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
        .args(["-c", "safe.directory=*", "-c", "gc.auto=0"]);
    git
}

/// One commit, as packed as what one clones.
fn repository(dir: &Path, files: usize) -> Result<PathBuf> {
    let mut chance = Chance::of(0x00de_cade);
    let text: Vec<u8> = (0..64 << 10).map(|_| chance.letter()).collect();
    for file in 0..files {
        let at = dir.join(format!("d{}", file % 40));
        fs::create_dir_all(&at).context("mkdir")?;
        let size = (2000.0 * chance.normal().exp()) as usize;
        let from = chance.below(1000);
        let to = (from + size).min(text.len());
        fs::write(at.join(format!("f{file}.c")), &text[from..to]).context("write")?;
    }
    run(git().args(["init", "-q"]).arg(dir))?;
    run(git().arg("-C").arg(dir).args(["add", "-A"]))?;
    run(git().arg("-C").arg(dir).args(["commit", "-qm", "all"]))?;
    run(git().arg("-C").arg(dir).args(["gc", "-q"]))?;
    Ok(dir.to_owned())
}

fn untar(root: &Path, material: &Material) -> Result<()> {
    let mut tar = Command::new("tar");
    run(tar.arg("xf").arg(&material.archive).arg("-C").arg(root))
}

/// A package after the other, as they come.
fn install(root: &Path, material: &Material) -> Result<()> {
    let modules = root.join("node_modules");
    fs::create_dir(&modules).context("mkdir")?;
    for package in &material.packages {
        let mut tar = Command::new("tar");
        run(tar.arg("xf").arg(package).arg("-C").arg(&modules))?;
    }
    Ok(())
}

fn clone(root: &Path, material: &Material) -> Result<()> {
    let mut git = git();
    git.args(["clone", "-q", "--no-hardlinks"]);
    run(git.arg(&material.repository).arg(root.join("clone")))
}

fn copy(root: &Path, _: &Material) -> Result<()> {
    let mut cp = Command::new("cp");
    run(cp.arg("-a").arg(root.join("src")).arg(root.join("copy")))
}

fn rsync(root: &Path, _: &Material) -> Result<()> {
    let mut rsync = Command::new("rsync");
    run(rsync
        .arg("-a")
        .arg(root.join("src"))
        .arg(root.join("synced")))
}

fn change(root: &Path, _: &Material) -> Result<()> {
    let copy = root.join("copy");
    run(Command::new("chmod").args(["-R", "g+w"]).arg(&copy))?;
    let owner = fs::metadata(&copy).context("stat")?;
    let owner = format!("{}:{}", owner.uid(), owner.gid() + 1);
    run(Command::new("chown").arg("-R").arg(owner).arg(&copy))
}

fn read_all(root: &Path, _: &Material) -> Result<()> {
    let script = "find \"$1\" -type f -print0 | xargs -0 cat >/dev/null";
    run(Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(root.join("src")))
}

fn remove(root: &Path, _: &Material) -> Result<()> {
    run(Command::new("rm").arg("-rf").arg(root.join("copy")))
}

fn site(root: &Path, _: &Material) -> Result<()> {
    (0..REQUESTS).try_for_each(|_| read_site(&root.join("site")))
}

fn status(root: &Path, _: &Material) -> Result<()> {
    run(git()
        .arg("-C")
        .arg(root.join("clone"))
        .args(["status", "--short"]))
}
