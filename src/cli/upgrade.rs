//! `efs-fuse upgrade`: has this program take over mounts from the daemons that serve them.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::arguments::Upgrade;
use super::exit::{self, Failure};
use super::running::Running;
use crate::mount::handover::memory::LAYOUT;
use crate::quoting;

/// How long a daemon may take until it goes, or says that it does not: longer than it lets
/// requests wait.
const LEAVING: Duration = Duration::from_secs(30);
/// How long the next one may take, and the former program after one that does not come up.
const COMING: Duration = Duration::from_secs(100);
/// Between two looks for the next daemon.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn run(asked: &Upgrade) -> Result<(), Failure> {
    let mounts = match &asked.mountpoint {
        Some(mountpoint) => vec![Running::at(mountpoint)?],
        None => Running::all()?,
    };
    let program = std::env::current_exe().map_err(|why| {
        Failure::system("upgrading", format_args!("which program this is: {why}"))
    })?;
    let mut first = None;
    for mount in &mounts {
        let outcome = upgrade(mount, &program);
        match outcome {
            Ok(said) => exit::print(&said)?,
            // The others are upgraded all the same.
            Err(why) if first.is_some() => exit::warn(&why.to_string()),
            Err(why) => first = Some(why),
        }
    }
    first.map_or(Ok(()), Err)
}

/// What a daemon says of itself and of those before it.
struct Serving {
    pid: Value,
    generation: u64,
    takeover: Value,
}

fn look(mountpoint: &Path) -> Result<Serving, Failure> {
    let status = Running::at(mountpoint)?.status();
    let takeover = status["takeover"].clone();
    Ok(Serving {
        pid: status["pid"].clone(),
        generation: takeover["generation"].as_u64().unwrap_or_default(),
        takeover,
    })
}

/// The line about a mount that this program has taken over.
fn upgrade(mount: &Running, program: &Path) -> Result<String, Failure> {
    let shown = quoting::path(&mount.mountpoint);
    let what = format!("upgrading {shown}");
    let stays = |why: String| {
        Failure::mount(&what, why).remedy(format_args!(
            "efs-fuse umount {shown}, then mount again; until then it is served as before"
        ))
    };
    let before = look(&mount.mountpoint)?;
    if before.takeover.is_null() {
        return Err(stays(
            "its daemon does not answer, or knows no upgrade".to_owned(),
        ));
    }
    if let Some(why) = before.takeover["why_not"].as_str() {
        return Err(stays(quoting::plain(why)));
    }
    let request = json!({
        "cmd": "upgrade",
        "program": program.to_string_lossy(),
        "layouts": [LAYOUT],
    });
    mount.ask_to_leave(&request, LEAVING).map_err(stays)?;
    let end = Instant::now() + COMING;
    while Instant::now() < end {
        std::thread::sleep(LOOK);
        let Ok(now) = look(&mount.mountpoint) else {
            continue;
        };
        if now.takeover.is_null() || now.generation <= before.generation {
            continue;
        }
        if let Some(why) = now.takeover["failed"].as_str() {
            let why = format!(
                "{} could not take over: {}",
                program.display(),
                quoting::plain(why)
            );
            return Err(stays(why));
        }
        let pause = now.takeover["pause_ms"].as_f64().unwrap_or_default();
        return Ok(format!(
            "{shown}: efs-fuse {} (pid {}) has taken over, after a pause of {pause:.0} ms\n",
            env!("CARGO_PKG_VERSION"),
            now.pid,
        ));
    }
    Err(
        Failure::mount(&what, "no daemon has come up").remedy(format_args!(
            "efs-fuse umount --lazy {shown}, then mount again"
        )),
    )
}
