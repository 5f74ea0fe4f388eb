//! How many instructions a case takes, counted by valgrind.
//!
//! Counts are exact and repeatable where times are not. A case runs in a process of
//! its own, some times and twice as many times; the difference is what those runs
//! took, without start and end of the process.

use std::io;
use std::process::{Child, Command, Output, Stdio};

use crate::Case;

/// Of one run of `case`.
///
/// # Errors
/// One line: valgrind is missing, or fails.
pub(crate) fn count(case: &Case) -> Result<u64, String> {
    let once = start(case.name, case.times)?;
    let twice = start(case.name, 2 * case.times)?;
    // Both have an end, whatever comes of the first.
    let (once, twice) = (once.wait_with_output(), twice.wait_with_output());
    let (once, twice) = (collected(case.name, once)?, collected(case.name, twice)?);
    Ok(twice.saturating_sub(once) / u64::from(case.times))
}

fn start(name: &str, times: u32) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|why| format!("this program: {why}"))?;
    Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--only", name, "--times", &times.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|why| format!("valgrind, which counts instructions: {why}; install it"))
}

fn collected(name: &str, done: io::Result<Output>) -> Result<u64, String> {
    let done = done.map_err(|why| format!("valgrind on {name}: {why}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        return Err(format!("valgrind on {name}: {}\n{said}", done.status));
    }
    let number = said
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .and_then(|(_, number)| number.trim().parse().ok());
    number.ok_or_else(|| format!("valgrind on {name} tells no count:\n{said}"))
}
