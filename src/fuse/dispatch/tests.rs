use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;

/// What a test reply saw; `Dropped` is fuser's own EIO.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Ok(u32),
    Error(i32),
    Dropped,
}

struct Probe(Option<mpsc::Sender<Said>>);

impl Probe {
    fn new() -> (Self, mpsc::Receiver<Said>) {
        let (tx, rx) = mpsc::channel();
        (Self(Some(tx)), rx)
    }

    fn say(mut self, what: Said) {
        self.0.take().unwrap().send(what).unwrap();
    }
}

impl FuseReply for Probe {
    fn refuse(self, errno: fuser::Errno) {
        self.say(Said::Error(errno.code()));
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(tx) = self.0.take() {
            let _ = tx.send(Said::Dropped);
        }
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    metrics: Arc<Metrics>,
    dispatch: Dispatcher,
}

fn bench() -> Bench {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let metrics = Metrics::new();
    let watcher = InterruptWatcher::start(Arc::clone(&metrics), None).unwrap();
    let dispatch = Dispatcher::new(
        runtime.handle().clone(),
        watcher,
        Arc::default(),
        Arc::default(),
        Arc::clone(&metrics),
        None,
    );
    Bench {
        runtime,
        metrics,
        dispatch,
    }
}

fn call() -> FuseRequest {
    FuseRequest {
        op: FuseOp::Open,
        unique: 1,
        resent: false,
        ino: 2,
        tid: 0,
        wait_mode: WaitMode::Killable,
        started: Instant::now(),
    }
}

const SOON: Duration = Duration::from_secs(20);

fn say_ok(reply: Probe, n: u32) {
    reply.say(Said::Ok(n));
}

#[test]
fn a_result_is_answered_once_and_not_undone() {
    let bench = bench();
    let (reply, said) = Probe::new();
    bench
        .dispatch
        .run(call(), reply, async { Ok(7) }, say_ok, |_| async {
            panic!("undone")
        });
    assert_eq!(said.recv_timeout(SOON).unwrap(), Said::Ok(7));
    assert!(said.recv_timeout(SOON).is_err(), "a second answer");
}

#[test]
fn an_error_is_answered_as_the_kernel_understands_it() {
    let bench = bench();
    let (reply, said) = Probe::new();
    let work = async { Err(Errno(libc::ENOSYS).into()) };
    bench.dispatch.run(call(), reply, work, say_ok, keep);
    assert_eq!(
        said.recv_timeout(SOON).unwrap(),
        Said::Error(libc::EOPNOTSUPP)
    );
}

#[test]
fn a_panic_answers_eio_and_leaves_the_runtime_running() {
    let bench = bench();
    for late in [false, true] {
        let (reply, said) = Probe::new();
        let work = async move { if late { Ok(1) } else { panic!("in the work") } };
        bench.dispatch.run(
            call(),
            reply,
            work,
            |_reply: Probe, _n: u32| panic!("in the answer"),
            keep,
        );
        let expected = if late {
            // fuser's reply objects answer EIO when they are dropped.
            Said::Dropped
        } else {
            Said::Error(libc::EIO)
        };
        assert_eq!(said.recv_timeout(SOON).unwrap(), expected);
    }
    let (reply, said) = Probe::new();
    bench
        .dispatch
        .run(call(), reply, async { Ok(3) }, say_ok, keep);
    assert_eq!(said.recv_timeout(SOON).unwrap(), Said::Ok(3));
    while bench.metrics.gauges.fuse_in_flight.get() != 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_runtime_that_is_gone_answers_eio() {
    let bench = bench();
    bench.runtime.shutdown_timeout(SOON);
    let (reply, said) = Probe::new();
    bench
        .dispatch
        .run(call(), reply, async { Ok(3) }, say_ok, keep);
    assert_eq!(said.recv_timeout(SOON).unwrap(), Said::Error(libc::EIO));
}

#[test]
fn a_result_that_comes_after_eintr_is_undone_and_not_answered() {
    let bench = bench();
    let (reply, said) = Probe::new();
    let (go, gone) = oneshot::channel::<()>();
    let (undone_tx, undone) = mpsc::channel();
    let (started_tx, started) = mpsc::channel();
    let mut cell = None;
    bench.dispatch.run_with(
        call(),
        reply,
        |pending| {
            cell = Some(Arc::clone(pending));
            async move {
                let _effect = caller::Effect::begin().unwrap();
                started_tx.send(()).unwrap();
                gone.await.unwrap();
                Ok(9)
            }
        },
        say_ok,
        move |n| async move { undone_tx.send(n).unwrap() },
    );
    let pending = cell.unwrap();
    started.recv_timeout(SOON).unwrap();
    assert_eq!(pending.with(|_| ()), Some(()));
    assert!(pending.give_up(libc::EINTR));
    assert!(!pending.give_up(libc::EINTR), "interrupted twice");
    assert_eq!(pending.with(|_| ()), None);
    assert_eq!(said.recv_timeout(SOON).unwrap(), Said::Error(libc::EINTR));
    let abandoned = &bench.dispatch.abandoned;
    assert!(abandoned.any(), "nothing waits for what is still at work");
    go.send(()).unwrap();
    assert_eq!(undone.recv_timeout(SOON).unwrap(), 9);
    while abandoned.any() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(said.recv_timeout(SOON).is_err(), "a second answer");
}

#[test]
fn who_is_withdrawn_while_he_waits_for_a_lock_hears_nothing_of_it() {
    let bench = bench();
    for _ in 0..200 {
        let (reply, said) = Probe::new();
        let waiting = Arc::<Waiting>::default();
        let waits = Arc::clone(&waiting);
        let (kept_tx, kept) = mpsc::channel();
        let again: Again<Probe> = Box::new(move |reply| kept_tx.send(reply).unwrap());
        // As the vfs does.
        let work = async move {
            waits.gave_up().await;
            Err::<u32, _>(Errno(libc::EINTR).into())
        };
        let call = call().wait_mode(WaitMode::Interruptible);
        let waiting = (waiting, Some(again));
        bench
            .dispatch
            .run_waiting(call, reply, waiting, work, say_ok);
        bench.dispatch.watcher.withdraw_waits();
        let reply = kept.recv_timeout(SOON).expect("it was not withdrawn");
        while bench.dispatch.gate.under_way() > 0 {
            std::thread::yield_now();
        }
        assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Empty));
        say_ok(reply, 1);
        assert_eq!(said.recv_timeout(SOON).unwrap(), Said::Ok(1));
    }
}

#[test]
fn a_panic_in_a_cache_is_a_miss() {
    assert_eq!(attempt(|| -> Option<u32> { panic!("in the cache") }), None);
    assert_eq!(attempt(|| Some(1)), Some(1));
}
