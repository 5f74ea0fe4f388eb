//! Tasks and threads that work in the background, and what happens when one dies.
//!
//! A task that is spawned and forgotten takes what it owes with it when it panics: a
//! range of a file that nobody reports any more, a session that nobody rebuilds. So
//! nothing in the daemon is spawned bare. Each task has a name and one of these
//! policies; a death is one line in the log (by the panic hook, which asks
//! [`current`]), is counted, and is shown by `efs-fuse status` under `tasks`:
//!
//! - *vital* ([`Tasks::vital`]): everybody waits for it and it cannot be started
//!   again. Whoever waits is given an error, and the daemon ends with a status that
//!   is not zero ([`Tasks::ended`]), for the service manager to start it anew. The
//!   mount is left behind, dead: no program writes below it meanwhile. Where another daemon
//!   takes over, the process ends before anybody is given an error
//!   ([`Tasks::instead_of_ending`]).
//! - *restarted* ([`Tasks::restarted`], [`Tasks::round`] in a thread): a loop that
//!   has no state of its own. It is started again after a pause ([`Pause`]).
//! - *watched* ([`Tasks::watched`]): a piece of work. Who spawned it takes its death
//!   for a failure: gives back what it had, or tries again, so often.
//!
//! Returning is not dying: a task that returns has done what it was there for.
//!
//! | task | policy | upon its death |
//! |---|---|---|
//! | `supervise` | vital | the channel is closed: every call fails |
//! | `connect`, `further` | watched | a connection that could not be made |
//! | `connection` | watched | a connection that broke; six in a row are a death of `supervise` |
//! | `watch_responses` | restarted | |
//! | `renew` | restarted | |
//! | `recover` | vital | the session is down for good: every request fails |
//! | `rebuild` | watched | `recover` tries again; three in a row are its death |
//! | a reclaim | its `JoinSet` | that open is reclaimed once more |
//! | `drain` | watched | the server keeps an old session until it notices |
//! | `check_states` | restarted | |
//! | `look_after` | restarted | |
//! | `revalidate` | restarted | open files are looked at later |
//! | `send_together` | watched | the CLOSEs go out again; after three times they are given up |
//! | `send_write`, `send_fragments`, `send_commit` | watched | EIO at fsync or close for the range, which is free again; pages are dropped |
//! | `wake_at`, `wake_names` | restarted | |
//! | `send_names` | watched | what was promised is not kept: EIO for who asks for it; the queue goes on |
//! | `close_made` | restarted | |
//! | `deferred_setattr` | restarted | what was on its way waits once more |
//! | `disk_fill` | restarted | what it was putting on the disk is not there |
//! | `disk_look_after` | restarted | the disk cache is looked after later |
//! | `disk_read` | watched | a miss: the server is asked |
//! | `warm` | watched | its files are opened and read by who wants them on the disk |
//! | `fetch`, `ask_page` | watched | its readers ask for themselves |
//! | `kept_open` | harmless | the open stays until its thread walks again, or the mount's end |
//! | `settle` | [`Tasks::blocking`] | tried three times; then as a vital one, since pages may be old |
//! | `notify` (thread) | restarted | the invalidation is sent again, after the others |
//! | `interrupt` (thread) | restarted | |
//! | `fuse-session` (thread) | by its channel | the mount has ended, with an error |
//! | `control`, `metrics`, `signals` | restarted | |
//! | a client of those two | watched | its connection is closed |
//! | `watchdog` | restarted | no pings meanwhile |
//! | `resent` | restarted | replies of a killed process's requests are kept longer |
//! | `heartbeat` | restarted | no signs of life for the keeper meanwhile |
//! | a look at a caller's system call | its `JoinHandle` | it is not known: the server is asked |
//! | a request of the kernel's | `fuse::dispatch` | EIO for that request |
//! | the assembly | its `JoinHandle` | the daemon ends |
//! | `efs-fuse-iam` (thread) | by its channel | no credentials: the connection says so |
//! | the watch on the parent (thread) | none | only reads a pipe, until the mount is ready |
//!
//! The state is behind one mutex that is taken alone, and only when something dies.

#[cfg(debug_assertions)]
mod failpoint;
mod pause;

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::pause::Pause;

/// So often is work tried that must not be left out.
pub const TRIES: u32 = 3;

/// The longest text of a panic that is kept, characters.
const TEXT: usize = 200;

thread_local! {
    static CURRENT: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The task that this thread is in, for the panic hook.
pub fn current() -> Option<&'static str> {
    CURRENT.get()
}

/// What a panic says, fit for one line.
pub fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let text = text.unwrap_or("a panic without words");
    text.chars().take(TEXT).map(printable).collect()
}

/// A task has died.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the task {task} has died of an internal error: {text}")]
pub struct Died {
    /// Its name.
    pub task: &'static str,
    /// What the panic said.
    pub text: String,
}

struct Instead(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Instead {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Instead")
    }
}

#[derive(Debug)]
struct Deaths {
    times: u64,
    last: String,
}

/// The tasks of one mount. Shared by `Arc`.
#[derive(Debug)]
pub struct Tasks {
    deaths: Mutex<BTreeMap<&'static str, Deaths>>,
    /// The one without which nothing goes on.
    ended: watch::Sender<Option<Died>>,
    /// What is to be done when that has died, before anybody is told.
    instead: OnceLock<Instead>,
    /// The most recent error of the mount; a death is one.
    last_error: Arc<Mutex<Option<String>>>,
    #[cfg(debug_assertions)]
    points: failpoint::Points,
}

impl Tasks {
    /// No task so far.
    pub fn new() -> Arc<Self> {
        Self::telling(Arc::default())
    }

    /// The same; deaths are told as the most recent error.
    pub fn telling(last_error: Arc<Mutex<Option<String>>>) -> Arc<Self> {
        Arc::new(Self {
            deaths: Mutex::default(),
            ended: watch::Sender::new(None),
            instead: OnceLock::new(),
            last_error,
            #[cfg(debug_assertions)]
            points: failpoint::Points::of_environment(),
        })
    }

    /// Runs a piece of work. What it borrowed is free again when this returns, so
    /// that whoever calls can report what it has not.
    ///
    /// # Errors
    /// It panicked.
    pub async fn watched<T>(
        &self,
        task: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, Died> {
        let mut work = pin!(work);
        poll_fn(
            |context| match self.round(task, || work.as_mut().poll(context)) {
                Ok(polled) => polled.map(Ok),
                Err(died) => Poll::Ready(Err(died)),
            },
        )
        .await
    }

    /// The same without waiting: one round of a thread.
    ///
    /// # Errors
    /// It panicked.
    pub fn round<T>(&self, task: &'static str, work: impl FnOnce() -> T) -> Result<T, Died> {
        struct Named(Option<&'static str>);
        impl Drop for Named {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let named = Named(CURRENT.replace(Some(task)));
        let done = catch_unwind(AssertUnwindSafe(work));
        drop(named);
        done.map_err(|panic| self.died(task, text_of(&*panic)))
    }

    fn died(&self, task: &'static str, text: String) -> Died {
        let mut deaths = self.deaths.lock();
        let of = deaths.entry(task).or_insert_with(|| Deaths {
            times: 0,
            last: String::new(),
        });
        of.times += 1;
        of.last.clone_from(&text);
        drop(deaths);
        let died = Died { task, text };
        *self.last_error.lock() = Some(died.to_string());
        died
    }

    /// Spawns a piece of work that leaves nothing behind when it dies.
    pub fn harmless(
        self: &Arc<Self>,
        task: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let tasks = Arc::clone(self);
        tokio::spawn(async move {
            // It is counted, and the hook has said it.
            let _ = tasks.watched(task, work).await;
        });
    }

    /// Spawns what everybody waits for. When it dies, `bereaved` gives those an error.
    pub fn vital(
        self: &Arc<Self>,
        task: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
        bereaved: impl FnOnce() + Send + 'static,
    ) {
        let tasks = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(died) = tasks.watched(task, work).await {
                // First: that this is the end is to be known before its effects are.
                tasks.end(died);
                let _ = tasks.round(task, bereaved);
            }
        });
    }

    /// Spawns a loop. `make` makes it, again whenever it has died.
    pub fn restarted<F>(
        self: &Arc<Self>,
        task: &'static str,
        mut make: impl FnMut() -> F + Send + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let tasks = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = Pause::default();
            loop {
                let begun = Instant::now();
                if tasks.watched(task, make()).await.is_ok() {
                    return;
                }
                let pause = pause.after(begun.elapsed());
                tracing::warn!("the task {task} is started again in {pause:?}");
                tokio::time::sleep(pause).await;
            }
        })
    }

    /// Runs what blocks, and must be done before anybody goes on, on a thread for
    /// that. If it cannot be, the daemon ends.
    pub async fn blocking(
        self: &Arc<Self>,
        task: &'static str,
        work: impl Fn() + Send + Sync + 'static,
    ) {
        let tasks = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut tries = 0;
            while let Err(died) = tasks.round(task, &work) {
                tries += 1;
                if tries == TRIES {
                    tasks.end(died);
                    return;
                }
            }
        });
        // Neither panics nor is aborted, but when the runtime ends.
        let _ = done.await;
    }

    /// Nothing goes on without what has died here.
    pub fn end(&self, died: Died) {
        tracing::error!("{died}. Everything waits for it: this daemon has to end");
        if let Some(Instead(instead)) = self.instead.get() {
            instead();
        }
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(died);
            first
        });
    }

    /// When a vital task dies, this is done first; once it is set it stays. It may end the process.
    pub fn instead_of_ending(&self, instead: Box<dyn Fn() + Send + Sync>) {
        let _ = self.instead.set(Instead(instead));
    }

    /// Completes when a vital task has died.
    pub async fn ended(&self) -> Died {
        let mut ended = self.ended.subscribe();
        let died = ended.wait_for(Option::is_some).await;
        match died.ok().and_then(|died| died.clone()) {
            Some(died) => died,
            // Not reached: the sender is in `self`.
            None => std::future::pending().await,
        }
    }

    /// Whether a vital task has died.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// How often tasks of this name have died.
    pub fn deaths(&self, task: &str) -> u64 {
        self.deaths.lock().get(task).map_or(0, |of| of.times)
    }

    /// Those that have died, for `status`; empty where none has.
    pub fn snapshot(&self) -> Value {
        let ended = self.ended.borrow().as_ref().map(|died| died.task);
        let deaths = self.deaths.lock();
        let shown = deaths.iter().map(|(task, of)| {
            let state = match ended == Some(*task) {
                true => "dead",
                false => "running",
            };
            json!({"name": task, "state": state, "died": of.times, "last": of.last})
        });
        shown.collect()
    }

    /// A place where a test may want `task` to panic. Nothing in a release build.
    #[inline]
    pub fn point(&self, task: &'static str) {
        #[cfg(debug_assertions)]
        self.points.pass(task);
        #[cfg(not(debug_assertions))]
        let _ = task;
    }

    /// Makes places panic that are passed by a task: `NAME:N` at the `N`th time from
    /// now on, `NAME:N+` from then on always; several with commas between.
    #[cfg(debug_assertions)]
    pub fn arm(&self, points: &str) {
        self.points.arm(points);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_dies_is_started_again_and_one_that_returns_is_not() {
        let tasks = Tasks::new();
        let rounds = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&rounds);
        let make = move || {
            let round = counted.fetch_add(1, Ordering::SeqCst);
            async move { assert!(round >= 3, "round\n{round}") }
        };
        assert!(tasks.restarted("loop", make).await.is_ok());
        assert_eq!(rounds.load(Ordering::SeqCst), 4);
        assert_eq!(tasks.deaths("loop"), 3);
        let shown = tasks.snapshot();
        assert_eq!(shown[0]["last"], "round 2");
        assert_eq!(shown[0]["state"], "running");
        assert!(!tasks.has_ended());
        assert_eq!(current(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_vital_task_hears_of_its_death_and_not_of_its_return() {
        let tasks = Tasks::new();
        tasks.vital("one", async {}, || panic!("not bereaved"));
        tokio::task::yield_now().await;
        assert!(!tasks.has_ended());
        let (told, hears) = tokio::sync::oneshot::channel::<()>();
        let work = async { panic!("{}", current().unwrap_or("nobody")) };
        tasks.vital("two", work, move || drop(told));
        let died = tasks.ended().await;
        assert_eq!((died.task, died.text.as_str()), ("two", "two"));
        assert!(hears.await.is_err());
        assert_eq!(tasks.snapshot()[0]["state"], "dead");
    }

    #[tokio::test]
    async fn work_that_blocks_is_tried_again_and_at_last_ends_everything() {
        let tasks = Tasks::new();
        let rounds = AtomicU32::new(0);
        let once = move || assert_ne!(rounds.fetch_add(1, Ordering::SeqCst), 0);
        tasks.blocking("settle", once).await;
        assert_eq!((tasks.deaths("settle"), tasks.has_ended()), (1, false));
        tasks.blocking("settle", || panic!("again")).await;
        assert_eq!((tasks.deaths("settle"), tasks.has_ended()), (4, true));
    }

    /// Where something is spawned without this module, because its end is awaited, or
    /// watched by what is spawned.
    const AWAITED: [&str; 20] = [
        "background/mod.rs",
        "cli/metrics.rs",
        "cli/rm.rs",
        "cli/tree.rs",
        "disk_cache/mod.rs",
        "efs/identity.rs",
        "efs/resolve.rs",
        "fuse/intent.rs",
        "mount/assembly.rs",
        "mount/launch.rs",
        "mount/unmount.rs",
        "mount/watchdog.rs",
        "nfs/close_queue.rs",
        "telemetry/control.rs",
        "vfs/dirs/fetch.rs",
        "vfs/files/read.rs",
        "vfs/files/send_names.rs",
        "vfs/files/write.rs",
        "vfs/namespace/invalidation.rs",
        "vfs/types.rs",
    ];

    #[test]
    fn nothing_is_spawned_bare() {
        let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (mut dirs, mut bare) = (vec![src.clone()], Vec::new());
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                if path.ends_with("tests.rs") {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                let spawns = ["tokio::spawn(", "thread::spawn(", "spawn_blocking("];
                let name = path.strip_prefix(&src).unwrap().to_string_lossy();
                if spawns.iter().any(|spawn| code.contains(spawn)) && !AWAITED.contains(&&*name) {
                    bare.push(name.into_owned());
                }
            }
        }
        assert_eq!(bare, [""; 0], "use `Tasks`, and its table");
    }

    #[tokio::test]
    async fn what_died_is_told_from_what_was_done() {
        let tasks = Tasks::new();
        assert_eq!(tasks.watched("work", async { 5 }).await.ok(), Some(5));
        let owed = Mutex::new(vec![1, 2]);
        let died = tasks
            .watched("work", async {
                owed.lock().pop();
                tokio::task::yield_now().await;
                panic!("in the middle")
            })
            .await;
        assert_eq!(died.map(|()| 0).unwrap_err().text, "in the middle");
        assert_eq!(*owed.lock(), [1], "what is left can be given back");
    }

    #[cfg(debug_assertions)]
    #[test]
    fn a_point_panics_when_it_is_armed_and_only_then() {
        let tasks = Tasks::new();
        tasks.point("a");
        tasks.arm("a:2,b:1+");
        let dies = |task| tasks.round(task, || tasks.point(task)).is_err();
        assert_eq!([dies("a"), dies("a"), dies("a")], [false, true, false]);
        assert_eq!([dies("b"), dies("b"), dies("c")], [true, true, false]);
    }
}
