//! `efs-fuse metrics`: one Prometheus endpoint for all mounts of the machine.
//!
//! It belongs to no mount, and none to it: the daemons are asked at their control sockets
//! when somebody asks here. One that hangs or is gone costs its own samples, and is shown
//! with `efs_fuse_up 0`; the others are there in time.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use super::arguments::Metrics;
use super::exit::{self, Failure};
use super::running::Running;
use crate::background::Tasks;
use crate::mount::{endpoint, notify};
use crate::quoting;
use crate::telemetry::prometheus;
use crate::telemetry::serve::{Address, CLIENT_TIME, PageFn};

/// How long all daemons together may take for their answers. They answer from memory; what
/// is left of a client's time is for the page to reach it.
const PATIENCE: Duration = Duration::from_secs(3);
const _: () = assert!(PATIENCE.as_millis() < CLIENT_TIME.as_millis());
/// A page that was made so shortly ago is given to the next one, too: who asks without
/// pause, or many at once, make the daemons no work.
const FRESH: Duration = Duration::from_millis(500);

pub(super) fn run(asked: &Metrics) -> Result<(), Failure> {
    match &asked.listen {
        Some(address) => serve(address),
        None => exit::print(&prometheus::render(&Running::numbers(PATIENCE)?)),
    }
}

fn serve(address: &Address) -> Result<(), Failure> {
    let cannot = |why: std::io::Error| {
        let what = format!("serving metrics at {address}");
        Failure::system(what, quoting::plain(&why.to_string()))
            .remedy("another address for --listen")
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|why| Failure::system("starting the runtime", why))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let tasks = Tasks::telling(Arc::default());
        let endpoint = endpoint::bound(address).map_err(cannot)?;
        let endpoint = endpoint.serve(&tasks, pages());
        exit::note(&format!("metrics at {}", endpoint.address()));
        notify::serving();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok::<_, Failure>(())
    })?;
    // Who is being asked may not answer; nobody waits for that here.
    runtime.shutdown_background();
    Ok(())
}

/// One page after the other; who comes meanwhile waits for the one that is being made.
fn pages() -> PageFn {
    type Last = Option<(Instant, Arc<str>)>;
    let last: Arc<Mutex<Last>> = Arc::default();
    Arc::new(move || {
        let last = Arc::clone(&last);
        let page: Pin<Box<dyn Future<Output = String> + Send>> = Box::pin(async move {
            let mut last = last.lock().await;
            if let Some((made, page)) = &*last
                && made.elapsed() < FRESH
            {
                return page.to_string();
            }
            let page = tokio::task::spawn_blocking(page).await.unwrap_or_default();
            *last = Some((Instant::now(), page.clone().into()));
            page
        });
        page
    })
}

/// A mount table that cannot be read is the machine's trouble, and soon over or seen
/// everywhere: the page is empty meanwhile.
fn page() -> String {
    let shown = Running::numbers(PATIENCE);
    let shown = shown.inspect_err(|why| exit::warn(&why.to_string()));
    prometheus::render(&shown.unwrap_or_default())
}
