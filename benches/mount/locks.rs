//! A lock goes from one host to another, and what a lock costs.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::host::{Context, Result, go_on, median};
use crate::mount::Mount;
use crate::proxy::Proxy;
use crate::report::Report;
use crate::server::Server;

const ROUND_TRIP: Duration = Duration::from_millis(1);
const TIMES: u32 = 40;
const MEDIAN_MS: f64 = 50.0;
const LONGEST_MS: f64 = 300.0;
/// Of a wait that a signal ends.
const END_MS: f64 = 100.0;
/// Of one lock and its unlock.
const BUDGET: f64 = 2.0;

pub(crate) fn measure(report: &mut Report, parent: &Path, quick: bool) -> Result<()> {
    let server = Server::start(parent)?;
    let proxy = Proxy::new(server.address(), ROUND_TRIP)?;
    let mounts = [Mount::new(proxy.address())?, Mount::new(proxy.address())?];
    let open = |mount: &Mount| -> Result<File> {
        let path = mount.join("lock");
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .context(path.display())
    };
    let files = [open(&mounts[0])?, open(&mounts[1])?];

    let times = if quick { TIMES / 4 } else { TIMES };
    let mut delays = Vec::new();
    for round in 0..times {
        go_on()?;
        let (holder, waiter) = match round % 2 {
            0 => (&files[0], &files[1]),
            _ => (&files[1], &files[0]),
        };
        holder.lock().context("lock")?;
        let (granted, grant) = mpsc::channel();
        let released = thread::scope(|scope| {
            scope.spawn(move || {
                let _ = granted.send(waiter.lock().map(|()| Instant::now()));
            });
            // Spread over the waiter's pauses.
            thread::sleep(Duration::from_millis(200 + u64::from(round) * 37 % 500));
            let released = Instant::now();
            holder.unlock().map(|()| released)
        });
        let released = released.context("unlock")?;
        let granted = grant.recv().context("the waiter")?.context("lock")?;
        waiter.unlock().context("unlock")?;
        delays.push(granted.duration_since(released).as_secs_f64() * 1e3);
    }
    let longest = delays.iter().copied().fold(0.0, f64::max);
    let delay = median(delays);

    // A process that waits, and the signal that ends it.
    let mut ends = Vec::new();
    files[0].lock().context("lock")?;
    for round in 0..times {
        go_on()?;
        let mut waiter = Command::new("flock")
            .arg(mounts[1].join("lock"))
            .arg("true")
            .spawn()
            .context("flock")?;
        thread::sleep(Duration::from_millis(200 + u64::from(round) * 37 % 200));
        let begun = Instant::now();
        // SAFETY: no memory effects; the child is not reaped yet.
        unsafe { libc::kill(waiter.id().cast_signed(), libc::SIGTERM) };
        waiter.wait().context("flock")?;
        ends.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    files[0].unlock().context("unlock")?;
    let longest_end = ends.iter().copied().fold(0.0, f64::max);
    let end = median(ends);

    mounts[0].round_trips()?;
    for _ in 0..times {
        files[0].lock().context("lock")?;
        files[0].unlock().context("unlock")?;
    }
    let each = mounts[0].round_trips()? as f64 / f64::from(times);

    report.heading(
        &format!("Locks between two hosts, 1 ms round trip, {times} times"),
        &["", "measured", "limit"],
    );
    report.row(&[
        "from unlock to the other host's lock, median".into(),
        format!("{delay:.1} ms"),
        format!("{MEDIAN_MS} ms {}", Report::verdict(delay <= MEDIAN_MS)),
    ]);
    report.row(&[
        "the longest".into(),
        format!("{longest:.1} ms"),
        format!("{LONGEST_MS} ms {}", Report::verdict(longest <= LONGEST_MS)),
    ]);
    report.row(&[
        "from SIGTERM to the end of a process that waits, median".into(),
        format!("{end:.1} ms"),
        format!("{END_MS} ms {}", Report::verdict(end <= END_MS)),
    ]);
    report.row(&[
        "the longest".into(),
        format!("{longest_end:.1} ms"),
        format!("{END_MS} ms {}", Report::verdict(longest_end <= END_MS)),
    ]);
    report.row(&[
        "round trips of a lock and its unlock".into(),
        format!("{each:.2}"),
        format!("{BUDGET} {}", Report::verdict(each <= BUDGET)),
    ]);
    report.put(
        "locks",
        json!({
            "handover_ms": delay, "handover_longest_ms": longest,
            "sigterm_ms": end, "sigterm_longest_ms": longest_end,
            "round_trips": each,
        }),
    );
    drop(files);
    for mount in mounts {
        mount.end()?;
    }
    Ok(())
}
