//! From the command to a mount that answers, and back to nothing.

use std::path::Path;

use serde_json::json;

use crate::host::{Result, go_on, median};
use crate::mount::Mount;
use crate::report::Report;
use crate::server::Server;

const LIMIT_MS: f64 = 150.0;
const TIMES: usize = 20;

pub(crate) fn measure(report: &mut Report, parent: &Path, _quick: bool) -> Result<()> {
    let server = Server::start(parent)?;
    let (mut ready, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        go_on()?;
        let mount = Mount::new(server.address())?;
        ready.push(mount.took.as_secs_f64() * 1e3);
        gone.push(mount.end()?.as_secs_f64() * 1e3);
    }
    let longest = ready.iter().copied().fold(0.0, f64::max);
    let (ready, gone) = (median(ready), median(gone));
    report.heading(
        "Start and end (20 times, loopback)",
        &["", "median", "longest", "limit"],
    );
    report.row(&[
        "mount: from command to ready".into(),
        format!("{ready:.1} ms"),
        format!("{longest:.1} ms"),
        format!("{LIMIT_MS} ms {}", Report::verdict(ready <= LIMIT_MS)),
    ]);
    report.row(&[
        "umount: until the daemon is gone".into(),
        format!("{gone:.1} ms"),
        String::new(),
        String::new(),
    ]);
    report.put(
        "startup",
        json!({"ready_ms": ready, "ready_longest_ms": longest, "gone_ms": gone}),
    );
    Ok(())
}
