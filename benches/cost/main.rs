//! What runs for every request: how much it allocates and how many instructions it
//! takes, which are exact and checked, and its time, which is shown against the time
//! of a small `memcpy` of the same process, so that numbers of two machines compare.
//!
//! `cargo test` runs this for the counts alone, in its own profile; `cargo bench`
//! counts what users get, and times it as well. Instructions need valgrind.

mod cached;
mod codec;
mod instructions;
#[allow(unused_imports)] // those of its own tests, which need cargo's harness
#[path = "../../tests/it/peer/mod.rs"]
mod peer;
#[allow(dead_code)] // a client on that server, of which the tests need more
#[path = "../../tests/it/protocol/rig.rs"]
mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The system's allocator, counted for each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: usize) {
    // A thread that ends allocates without its counters.
    let _ = COUNT.try_with(|cell| {
        let (calls, total) = cell.get();
        cell.set((calls + 1, total + bytes));
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for this function.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as for this function.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Something that is done, and what may be spent on it once.
struct Case {
    name: &'static str,
    allocations: usize,
    /// Asked for in them.
    bytes: usize,
    /// In the profile of the tests, and in that of the release. A case that takes
    /// [`SLACK`] more fails.
    instructions: [u64; 2],
    /// Runs whose instructions are counted.
    times: u32,
    run: Box<dyn Fn()>,
}

/// Percent: compilers differ a little, and where names fall in a hash table differs
/// from run to run.
const SLACK: u64 = 15;

/// The cases, a group at a time: a group may have to prepare something.
const GROUPS: [fn() -> Vec<Case>; 2] = [codec::cases, cached::cases];

/// The time of one run: the shortest of some batches.
fn time(run: &dyn Fn()) -> Duration {
    let batch = |times: u32| {
        let start = Instant::now();
        (0..times).for_each(|_| run());
        start.elapsed()
    };
    let once = batch(1).max(Duration::from_nanos(100));
    let times = (Duration::from_millis(20).as_nanos() / once.as_nanos()).clamp(1, 100_000) as u32;
    let best = (0..10).map(|_| batch(times)).min();
    best.unwrap_or_default() / times
}

/// Of one run: allocations, and bytes asked for in them.
fn allocated(run: &dyn Fn()) -> (usize, usize) {
    run(); // what is made once is made now
    let before = COUNT.get();
    run();
    let after = COUNT.get();
    (after.0 - before.0, after.1 - before.1)
}

/// One line about `case`; whether it keeps to what it may spend.
fn judge(case: &Case, unit: Option<Duration>) -> Result<bool, String> {
    let (calls, bytes) = allocated(&*case.run);
    let instructions = instructions::count(case)?;
    let allowed = case.instructions[usize::from(!cfg!(debug_assertions))];
    let kept = calls <= case.allocations
        && bytes <= case.bytes
        && instructions * 100 <= allowed * (100 + SLACK);
    print!(
        "{:<26} {calls:>5} allocations {bytes:>7} bytes {instructions:>8} instructions",
        case.name
    );
    if let Some(unit) = unit {
        let took = time(&*case.run);
        let ratio = took.as_secs_f64() / unit.as_secs_f64();
        print!(" {took:>10.1?} = {ratio:.2} copies of 4 KiB");
    }
    if !kept {
        print!(
            "  OVER {} allocations {} bytes {allowed} instructions",
            case.allocations, case.bytes
        );
    }
    println!();
    Ok(kept)
}

/// The value behind `name` among the arguments.
fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

/// Runs one case so many times: what `instructions` counts.
fn run_only(name: &str) -> ExitCode {
    let times = argument("--times").and_then(|times| times.parse().ok());
    let mut cases = GROUPS.iter().flat_map(|group| group());
    let found = cases.find(|case| case.name == name);
    let (Some(case), Some(times)) = (found, times) else {
        eprintln!("cost: no case {name}, or no --times");
        return ExitCode::FAILURE;
    };
    (0..times).for_each(|_: u32| (case.run)());
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    if let Some(name) = argument("--only") {
        return run_only(&name);
    }
    let source = vec![7_u8; 4096];
    let with_times = std::env::args().any(|argument| argument == "--bench");
    let unit = with_times.then(|| time(&|| drop(black_box(source.clone()))));
    let mut outcome = ExitCode::SUCCESS;
    for case in GROUPS.iter().flat_map(|group| group()) {
        match judge(&case, unit) {
            Ok(true) => {}
            Ok(false) => outcome = ExitCode::FAILURE,
            Err(why) => {
                eprintln!("cost: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    outcome
}
