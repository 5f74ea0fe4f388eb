//! `efs-fuse sync`: waits until all that was done in a mount is stable at the server.
//!
//! sync(1) does half of it: it has the kernel write back what programs have written to their
//! mappings, and does not wait for what the daemon has accepted. That comes second here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use serde_json::Value;

use super::arguments::Sync;
use super::exit::Failure;
use super::running::Running;
use crate::quoting;

pub(super) fn run(asked: &Sync) -> Result<(), Failure> {
    let running = Running::at(&asked.mountpoint)?;
    let what = format!("syncing {}", quoting::path(&running.mountpoint));
    let written = sync_kernel(&running.mountpoint);
    let answer = running.ask_for_ever("sync")?;
    let errors = answer["errors"].as_array().map_or(&[][..], Vec::as_slice);
    if !errors.is_empty() {
        let each: Vec<_> = errors.iter().map(late_error).collect();
        let why = format!(
            "what was answered is not at the server: {}",
            each.join("; ")
        );
        return Err(Failure::system(what, why).remedy("efs-fuse status, and the log"));
    }
    written.map_err(|why| Failure::system(what, quoting::plain(&why.to_string())))
}

/// syncfs(2).
fn sync_kernel(mountpoint: &Path) -> io::Result<()> {
    let dir = File::open(mountpoint)?;
    // SAFETY: an open descriptor.
    match unsafe { libc::syncfs(dir.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One that came late, in words.
pub(super) fn late_error(error: &Value) -> String {
    let text = |key: &str| quoting::plain(error[key].as_str().unwrap_or("?"));
    let times = match error["times"].as_u64() {
        Some(times) if times > 1 => format!(" ({times} times)"),
        _ => String::new(),
    };
    format!(
        "{} of {}: {}{times}",
        text("what"),
        text("path"),
        text("error")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_a_line_whatever_is_in_its_path() {
        let error = json!({"what": "data", "path": "/a\nb", "error": "no space", "times": 3});
        assert!(!late_error(&error).contains('\n'));
        assert!(late_error(&error).ends_with(": no space (3 times)"));
        assert!(late_error(&json!({})).contains('?'));
    }
}
