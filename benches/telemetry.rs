//! What seeing costs: the time that counting, timing and the switched-off logs
//! take of one request. `cargo bench --bench telemetry`.
//!
//! The number to hold it against is the time of the cheapest request a mount
//! answers, one that a cache answers on the reader thread: some 10 us between
//! the program's system call and its return (`scripts/bench`). Less than 2 % of
//! that is the aim.

use std::hint::black_box;
use std::time::{Duration, Instant};

use efs_fuse::telemetry::{Cache, FuseOp, Metrics};

const ROUNDS: u32 = 2_000_000;
/// The best of several runs: what else the machine does only adds.
const RUNS: usize = 7;

/// What this thread has had of a processor: others on the machine do not count.
fn processor_time() -> Duration {
    // SAFETY: clock_gettime fills the structure it is given.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
        time
    };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Nanoseconds of processor time that `work` takes, less what the loop itself takes.
fn cost(work: impl Fn()) -> f64 {
    let time = |work: &dyn Fn()| {
        let runs = (0..RUNS).map(|_| {
            let begun = processor_time();
            (0..ROUNDS).for_each(|_| work());
            processor_time() - begun
        });
        runs.min().unwrap_or(Duration::MAX).as_secs_f64() * 1e9 / f64::from(ROUNDS)
    };
    (time(&work) - time(&|| black_box(()))).max(0.0)
}

fn main() {
    let metrics = Metrics::new();
    metrics.slow.set(Duration::from_secs(3600));
    // As `fuse::dispatch` does it for a request that a cache answers.
    let cached = || {
        let started = black_box(Instant::now());
        metrics.cache(Cache::Attr, true);
        let elapsed = started.elapsed();
        metrics.fuse_op(FuseOp::GetAttr, true, elapsed);
        black_box(metrics.slow.line(elapsed));
    };
    // What a task of its own adds, and one compound of five operations.
    let asked = || {
        cached();
        metrics.gauges.fuse_in_flight.inc();
        let span = tracing::debug_span!("fuse", id = 1, op = "getattr", ino = 7);
        let _entered = black_box(span).entered();
        metrics.gauges.slots_in_use.inc();
        let sent = black_box(Instant::now());
        metrics.gauges.rpc_in_flight.inc();
        metrics.gauges.rpc_in_flight.dec();
        metrics.round_trip();
        let elapsed = sent.elapsed();
        black_box(metrics.slow.line(elapsed));
        for op in [53, 22, 9, 25, 9] {
            metrics.nfs_op(op, true);
        }
        metrics.compound(25, elapsed);
        metrics.bytes_read(4096);
        metrics.gauges.slots_in_use.dec();
        metrics.gauges.fuse_in_flight.dec();
    };
    println!("a request that a cache answers  {:6.0} ns", cost(cached));
    println!("one that asks the server        {:6.0} ns", cost(asked));
}
