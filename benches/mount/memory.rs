//! Resident memory of the daemon: idle, and with the write window full and the
//! server silent, the most that writers can make it hold.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::host::{Result, eventually, go_on, memory_kib};
use crate::mount::Mount;
use crate::report::Report;
use crate::server::Server;

const WRITERS: usize = 8;
const IDLE_LIMIT_MIB: f64 = 30.0;
/// Of the window.
const FULL_LIMIT: f64 = 1.5;

pub(crate) fn measure(report: &mut Report, parent: &Path, _quick: bool) -> Result<()> {
    let server = Server::start(parent)?;
    let mount = Mount::new(server.address())?;
    let mib = |field| {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            memory_kib(mount.pid(), field)? as f64 / 1024.0,
        )
    };
    std::fs::read_dir(mount.path())?.count();
    thread::sleep(Duration::from_secs(1));
    let (idle, idle_anonymous) = (mib("VmRSS")?, mib("RssAnon")?);

    let mut files = Vec::new();
    for n in 0..WRITERS {
        files.push(File::create(mount.join(&format!("w{n}")))?);
    }
    let window = || -> Result<(u64, u64)> {
        let status = mount.status()?;
        let number = |key: &str| status["write_window"][key].as_u64().unwrap_or(0);
        Ok((number("bytes"), number("limit")))
    };
    let limit = window()?.1;
    let enough = AtomicBool::new(false);
    let (held, full) = thread::scope(|scope| {
        let stopped = server.stop();
        let writers: Vec<_> = files
            .into_iter()
            .map(|file| scope.spawn(|| fill(file, &enough)))
            .collect();
        let mut held = 0;
        eventually(Duration::from_secs(20), || {
            held = window().map_or(0, |(bytes, _)| bytes);
            held >= limit - (limit >> 5) || go_on().is_err()
        });
        // Those that did not fit any more stand in write(2) now, too.
        thread::sleep(Duration::from_secs(1));
        let full = mib("VmRSS");
        enough.store(true, Ordering::Relaxed);
        drop(stopped);
        let done = eventually(Duration::from_secs(60), || {
            go_on().is_err() || writers.iter().all(|writer| writer.is_finished())
        });
        go_on().inspect_err(|_| mount.abort())?;
        if !done {
            mount.abort();
            return Err("writers still hang after the server went on".into());
        }
        full.map(|full| (held, full))
    })?;
    thread::sleep(Duration::from_secs(1));
    let after = mib("VmRSS")?;
    let peak = mib("VmHWM")?;
    mount.end()?;

    let window_mib = limit as f64 / f64::from(1 << 20);
    let full_limit = idle + FULL_LIMIT * window_mib;
    report.heading("Resident memory of the daemon", &["", "RSS", "limit"]);
    report.row(&[
        format!("idle ({idle_anonymous:.1} MiB of it anonymous)"),
        format!("{idle:.1} MiB"),
        format!(
            "{IDLE_LIMIT_MIB:.0} MiB {}",
            Report::verdict(idle <= IDLE_LIMIT_MIB)
        ),
    ]);
    let held_mib = held as f64 / f64::from(1 << 20);
    report.row(&[
        format!("window full ({held_mib:.0} of {window_mib:.0} MiB), server silent"),
        format!("{full:.1} MiB"),
        format!(
            "{full_limit:.0} MiB {}",
            Report::verdict(full <= full_limit)
        ),
    ]);
    report.row(&[
        "peak, until all of it was written".into(),
        format!("{peak:.1} MiB"),
        String::new(),
    ]);
    report.row(&[
        "afterwards".into(),
        format!("{after:.1} MiB"),
        String::new(),
    ]);
    report.put(
        "memory_mib",
        json!({
            "idle": idle, "idle_anonymous": idle_anonymous, "window": window_mib, "held": held_mib,
            "window_full": full, "peak": peak, "afterwards": after,
        }),
    );
    Ok(())
}

/// Writes until told that it is enough, 64 MiB at the most.
fn fill(mut file: File, enough: &AtomicBool) {
    let block = vec![0xa5; 1 << 20];
    for _ in 0..64 {
        if enough.load(Ordering::Relaxed) || file.write_all(&block).is_err() {
            return;
        }
    }
}
