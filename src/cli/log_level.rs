//! `efs-fuse log-level`.

use serde_json::json;

use super::arguments::LogLevel;
use super::exit::{self, Failure};
use super::running::Running;
use crate::quoting;

pub(super) fn run(asked: &LogLevel) -> Result<(), Failure> {
    let running = Running::at(&asked.mountpoint)?;
    let mut request = json!({"cmd": "log"});
    if let Some(level) = &asked.level {
        request["filter"] = json!(level);
    }
    let answer = running.request(&request)?;
    exit::print(&if asked.json {
        format!("{answer}\n")
    } else {
        let filter = answer["filter"].as_str().unwrap_or("?");
        format!("{}\n", quoting::plain(filter))
    })
}
