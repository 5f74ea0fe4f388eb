//! The daemon that goes.

use std::fs::Metadata;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{HandedOver, Lifeline, Mounted, memory};
use crate::mount::assembly::Served;
use crate::mount::found::effective_user;
use crate::mount::keeper::Slot;
use crate::mount::upgrade::Asked;
use crate::nfs::handover::Unanswered;
use crate::quoting;
use crate::wal::clock;

/// How long requests may be kept waiting before the mount stays where it is.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether the mount is at rest.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Leaves the mount to another daemon, and does not return then. If it cannot, whoever asked is
/// told why, and the mount is served as before.
pub(in crate::mount) async fn leave_to_another(served: &Served, asked: Asked) {
    let program = asked.program.clone();
    tracing::info!("{} is to take over this mount", quoting::path(&program));
    let why = leave(served, &program).await;
    tracing::warn!("this daemon stays: {why}");
    asked.refuse(&why);
}

/// Only why it could not be is returned.
async fn leave(served: &Served, program: &Path) -> String {
    let lifeline = match able(served, program) {
        Ok(lifeline) => lifeline,
        Err(why) => return why,
    };
    let memory = match memory::create() {
        Ok(memory) => memory,
        Err(why) => return format!("there is no memory for the state: {why}"),
    };
    // None is given while the gate is closed.
    lifeline.link().beat();
    let paused_at = clock();
    let deadline = Instant::now() + PATIENCE;
    let vfs = Arc::clone(&served.vfs);
    let drain = move || {
        let vfs = Arc::clone(&vfs);
        async move { vfs.drained().await }
    };
    let quiesced = match served.running.quiesce(deadline, drain).await {
        Ok(quiesced) => quiesced,
        Err(why) => return why.to_string(),
    };
    loop {
        if let Err(why) = memory::write(&memory, &state(served, lifeline, paused_at)) {
            return format!("the state cannot be written: {why}");
        }
        if quiesced.is_still_quiet() {
            break;
        }
        // Something that had been asked for ahead was answered meanwhile, and the kernel is
        // being told.
        if Instant::now() >= deadline {
            return "it has not come to rest".to_owned();
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // Should this daemon die from here on the next one begins from the state, which is as true
    // as the log.
    let link = lifeline.link();
    let given = link.hold(Slot::State, memory.as_fd());
    if let Err(why) = given.and_then(|()| link.next(program)) {
        let _ = lifeline.hold_log();
        return no_keeper(&why);
    }
    let parked = quiesced.leave();
    tracing::info!(
        "{} takes over, and {parked} requests",
        quoting::path(program)
    );
    end()
}

fn state(served: &Served, lifeline: &Lifeline, paused_at: Duration) -> HandedOver {
    // The vfs first: what it learns changes nothing that the client has then.
    let vfs = served.vfs.hand_over();
    HandedOver {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        generation: lifeline.generation,
        paused_at,
        mounted: Mounted::by(&served.request, served.history.since),
        owner: served.owner.hand_over(),
        init: served.running.init_values().clone(),
        past: lifeline.past,
        client: served.client.hand_over(),
        vfs,
        walks: served.retries.hand_over(),
        unanswered: Unanswered::default(),
    }
}

/// What there must be for another daemon to take over.
fn able<'a>(served: &'a Served, program: &Path) -> Result<&'a Lifeline, String> {
    let lifeline = served.lifeline.as_ref();
    let lifeline = lifeline.filter(|held| held.link().is_alive());
    let lifeline = lifeline.ok_or("no keeper holds the mount (-o takeover)")?;
    served
        .running
        .can_be_handed_over()
        .map_err(|why| why.to_string())?;
    let shown = quoting::path(program);
    let about = program.metadata();
    // Whoever can write to it would be given the rights of the keeper.
    let is_own = |about: &Metadata| [0, effective_user()].contains(&about.uid());
    match about {
        Ok(about) if !about.is_file() => Err(format!("{shown} is no program")),
        Ok(about) if !is_own(&about) || about.mode() & 0o022 != 0 => {
            Err(format!("others may write to {shown}"))
        }
        Ok(_) => Ok(lifeline),
        Err(why) => Err(format!("{shown}: {why}")),
    }
}

fn no_keeper(why: &io::Error) -> String {
    format!("the keeper has ended: {why}")
}

/// Ends this process at once: nothing of it may answer the kernel, tell the server that it
/// goes, or take away what the next daemon finds.
fn end() -> ! {
    // SAFETY: it does not return, and runs nothing of this process.
    unsafe { libc::_exit(0) }
}
